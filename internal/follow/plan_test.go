package follow

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
)

func (w *world) plan(wants []ledger.Want) Plan {
	w.t.Helper()
	p, err := w.f.Plan(w.t.Context(), wants)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// unpacks makes a package's document say that each of its tarballs unpacks to
// so many bytes; nothing of it where that is "".
func (w *world) unpacks(name, size string) {
	member := regexp.MustCompile(`"unpackedSize":\d+`)
	w.reg.Edit(name, func(doc []byte) []byte {
		if size == "" {
			return member.ReplaceAll(doc, []byte(`"unpackedSize":null`))
		}
		return member.ReplaceAll(doc, []byte(`"unpackedSize":`+size))
	})
}

// TestPlanTarballs: what is known of sizes is used, else what is typical.
func TestPlanTarballs(t *testing.T) {
	for _, test := range []struct {
		name, unpacked string
		least, most    uint64 // of the estimate
	}{
		{"Tiny", "500", 1 << 10, 1200},
		{"Small", "10000", 3000, 4000},      // these have a factor of 2 to 3
		{"Ordinary", "200000", 45e3, 60e3},  // 4
		{"Large", "20000000", 6e6, 9e6},     // under 3
		{"NotSaid", "", 16 << 10, 16 << 10}, // typical of what has none
		{"Absurd", "9000000000000000000", 1 << 30, 1 << 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, small)
			w.unpacks("other", test.unpacked)
			p := w.plan(wants(t, "other"))
			if p.Bytes < test.least || p.Bytes > test.most || p.Exact || p.Versions != 1 {
				t.Errorf("%+v, want %d to %d bytes, estimated", p, test.least, test.most)
			}
		})
	}
}

// TestPlanByWhatIsHeld: versions that are held tell of the others.
func TestPlanByWhatIsHeld(t *testing.T) {
	w := newWorld(t, small)
	w.unpacks("lib", "5000")
	w.add("lib@1.0.0 exact", "lib@1.2.0 exact")
	size := w.pkg("lib").Versions[0].Size
	if p := w.plan(wants(t, "lib@2.0.0 exact")); p.Bytes < size-2 || p.Bytes > size+2 {
		t.Errorf("a version like two that are held, of %d bytes: %+v", size, p)
	}
	w.unpacks("lib", "")
	w.clock.add(w.f.refresh)
	if p := w.plan(wants(t, "lib@2.0.0 exact")); p.Bytes < size-2 || p.Bytes > size+2 {
		t.Errorf("without an unpacked size, where others have %d bytes: %+v", size, p)
	}
	if p := w.plan(wants(t, "lib@1.0.0 exact")); p.Held != 1 || p.Bytes != 0 || !p.Exact {
		t.Errorf("what is held: %+v", p)
	}
	// Two versions say little of other packages.
	w.unpacks("other", "")
	if p := w.plan(wants(t, "other")); p.Bytes < plainTarball*9/10 || p.Bytes > plainTarball {
		t.Errorf("another package: %+v", p)
	}
}

// TestPlanDocuments: documents are held too, and of some packages they alone.
func TestPlanDocuments(t *testing.T) {
	w := newWorld(t, small)
	feed := newPages(couch.EngineNPM)
	for _, name := range []string{"@s/deep", "app", "lib", "other"} {
		feed.docs = append(feed.docs, couch.Doc{ID: name})
	}
	w.feed = feed
	w.start()
	known := func(specs ...string) []ledger.Want {
		all := wants(t, specs...)
		for i := range all {
			all[i].Known = true
		}
		return all
	}
	p := w.plan(known("app", "lib", "no-such"))
	if p.Packages != 2 || p.Versions != 0 || p.Documents != 2 || p.DocumentsHeld != 0 || p.DocumentBytes < 200 || p.DocumentBytes > 2000 || p.Bytes != 0 || !p.Exact {
		t.Errorf("documents alone: %+v", p)
	}
	if len(p.Problems) != 1 {
		t.Errorf("problems %q", p.Problems)
	}
	if p := w.plan(known("*")); p.Packages != 4 || p.Versions != 0 || p.Documents != 4 || p.DocumentBytes != 4*typicalDocument || p.Bytes != 0 || p.Exact {
		t.Errorf("the documents of all packages: %+v", p)
	}
	if p := w.plan(wants(t, "*")); p.Versions != 4*typicalVersions || p.Bytes != 4*typicalVersions*typicalTarball {
		t.Errorf("all packages: %+v", p)
	}

	w.feed = nil
	w.start()
	w.add("app nodeps", "@s/deep")
	bytes := w.pkg("app").Document.Tsize
	if p := w.plan(known("app", "lib")); p.Documents != 2 || p.DocumentsHeld != 1 {
		t.Errorf("one of two held: %+v", p)
	}
	w.feed = feed
	w.start()
	if p := w.plan(known("*")); p.Documents != 4 || p.DocumentsHeld != 2 || p.DocumentBytes >= 2*typicalDocument {
		t.Errorf("two of four held, one of them of %d bytes: %+v", bytes, p)
	}
	if p := w.plan(known("@s/*")); p.Documents != 1 || p.DocumentsHeld != 1 || p.DocumentBytes != 0 {
		t.Errorf("a scope that is held: %+v", p)
	}
	if p := w.plan(wants(t, "@s/*")); p.Held != 1 {
		t.Errorf("a scope of which a version is held: %+v", p)
	}
	if fmt.Sprint(w.held()) != "[@s/deep@0.1.0 app@2.0.0]" {
		t.Errorf("a plan changed what is held: %v", w.held())
	}
}
