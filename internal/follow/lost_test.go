package follow

import (
	"encoding/base64"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// large is an archive with a tarball of several blocks.
func large() string {
	noise := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	return small + "-- big@1.0.0/noise --\n" + base64.StdEncoding.EncodeToString(noise) + "\n"
}

// harms are what can become of a block in a node.
var harms = map[string]func(*memNode, cid.Cid){"Lost": (*memNode).lose, "Corrupt": (*memNode).rot}

// blocksOf are the blocks of a version's tarball, the root first.
func (w *world) blocksOf(name, version string) []cid.Cid {
	w.t.Helper()
	for _, v := range w.pkg(name).Versions {
		if v.Version != version {
			continue
		}
		root, err := w.node.Local(w.t.Context(), v.CID)
		if err != nil {
			w.t.Fatal(err)
		}
		children, err := unixfs.Children(root)
		if err != nil {
			w.t.Fatal(err)
		}
		return append([]cid.Cid{v.CID}, children...)
	}
	w.t.Fatalf("%s@%s is not held", name, version)
	return nil
}

// TestWhatTheNodeLostIsFetchedAgain: a garbage collection may run before the
// publisher pins, and disks rot.
func TestWhatTheNodeLostIsFetchedAgain(t *testing.T) {
	reg := npmtest.New(t, large())
	for how, harm := range harms {
		for what, block := range map[string]func(*world) cid.Cid{
			"Tarball":  func(w *world) cid.Cid { return w.blocksOf("lib", "2.0.0")[0] },
			"Root":     func(w *world) cid.Cid { return w.blocksOf("big", "1.0.0")[0] },
			"Leaf":     func(w *world) cid.Cid { return w.blocksOf("big", "1.0.0")[2] },
			"Document": func(w *world) cid.Cid { return w.pkg("app").Document.CID },
		} {
			for _, later := range []time.Duration{0, time.Hour} {
				t.Run(how+what+later.String(), func(t *testing.T) {
					w := worldOn(t, reg)
					w.add("app", "big")
					before := w.stored()
					harm(w.node, block(w))
					w.clock.add(later)
					w.start()
					w.fill()
					if got := w.stored(); !slices.Equal(got, before) {
						t.Errorf("the ledger holds %q, held %q", got, before)
					}
					w.expectRefused()
					if r := w.retries(); len(r) != 0 {
						t.Errorf("retries are %+v", r)
					}
				})
			}
		}
	}
}

// TestALostTarballIsTriedAgain: that it is held does not end its retries, and
// that it was refused does not outlast it.
func TestALostTarballIsTriedAgain(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib")
	before := w.stored()
	status := http.StatusBadGateway
	w.reg.Fault("/lib/-/", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(status)
		return true
	})
	lost := w.blocksOf("lib", "2.0.0")[0]
	w.node.lose(lost)
	w.fill()
	w.clock.add(time.Hour)
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if r := w.retries(); len(r) != 1 || r[0].Version != "2.0.0" || r[0].Attempts != 2 {
		t.Fatalf("retries are %+v", r)
	}
	w.reg.Heal()
	w.clock.add(time.Hour)
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if r := w.retries(); len(r) != 0 || !slices.Equal(w.stored(), before) {
		t.Fatalf("retries are %+v", r)
	}

	status = http.StatusNotFound
	w.reg.Fault("/lib/-/", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(status)
		return true
	})
	w.node.lose(lost)
	w.fill()
	w.expectRefused("lib@2.0.0 not-found")
	w.reg.Heal()
	w.fill()
	w.expectRefused()
	if !slices.Equal(w.stored(), before) {
		t.Error("it was not brought back")
	}
}

// TestALostTarballThatChangedIsRefused: law 3 holds for what comes again too.
func TestALostTarballThatChangedIsRefused(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib")
	held := w.pkg("lib").Versions
	w.node.lose(w.blocksOf("lib", "2.0.0")[0])
	w.reg.SetTarball("lib", "2.0.0", w.reg.Tarball("lib", "1.2.0"))
	w.reg.Edit("lib", func(doc []byte) []byte {
		p, err := npm.ParsePackument(doc)
		if err != nil {
			t.Error(err)
			return doc
		}
		from, to := p.Versions["2.0.0"].Dist, p.Versions["1.2.0"].Dist
		return []byte(strings.NewReplacer(from.Integrity, to.Integrity, from.Shasum, to.Shasum).Replace(string(doc)))
	})
	w.clock.add(time.Hour)
	for range 2 { // upstream says the same again: there is nothing to ask for
		w.fill()
		w.expectRefused("lib@2.0.0 integrity-changed")
		if got := w.pkg("lib").Versions; !slices.Equal(got, held) {
			t.Errorf("versions are %+v, were %+v", got, held)
		}
	}
	if n := w.reg.Requests("/lib/-/lib-2.0.0.tgz"); n != 1 {
		t.Errorf("the tarball was asked for %d times", n)
	}
}

// TestALostDocumentAndALaggingUpstream: an older document is no replacement.
func TestALostDocumentAndALaggingUpstream(t *testing.T) {
	for _, later := range []time.Duration{0, time.Hour} {
		w := newWorld(t, small)
		w.reg.Publish("-- lib@3.0.0/index.js --\n3\n")
		w.add("lib every")
		before := w.stored()
		w.node.lose(w.pkg("lib").Document.CID)
		w.reg.Lag("lib", 1)
		w.clock.add(later)
		w.fill()
		if r := w.retries(); len(r) != 1 || r[0].Name != "lib" || r[0].Version != "" {
			t.Fatalf("retries are %+v", r)
		}
		w.clock.add(time.Hour)
		if err := w.f.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(w.stored(), before) {
			t.Errorf("after %v the document was not brought back", later)
		}
	}
}

// TestALostDocumentStopsNoCommit, be it needed to say which of two is newer, or
// whether a version is still there.
func TestALostDocumentStopsNoCommit(t *testing.T) {
	for how, harm := range harms {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, small)
			ctx := t.Context()
			old, _, err := w.f.load(ctx, "lib", 0)
			if err != nil {
				t.Fatal(err)
			}
			good, err := w.f.tarball(ctx, old, "1.2.0")
			if err != nil {
				t.Fatal(err)
			}
			w.reg.Publish("-- lib@2.2.0/index.js --\n22\n")
			w.add("lib")
			harm(w.node, w.pkg("lib").Document.CID)
			if err := w.f.store(ctx, []item{good}, nil); err != nil {
				t.Fatal(err)
			}
			if r := w.retries(); len(r) != 1 || r[0].Version != "1.2.0" {
				t.Fatalf("retries are %+v", r)
			}
			w.clock.add(time.Hour)
			if err := w.f.drain(ctx, nil); err != nil {
				t.Fatal(err)
			}
			w.expect("lib@1.2.0", "lib@2.2.0")

			held := w.pkg("lib")
			w.reg.Unpublish("lib", "1.2.0")
			pap, _, err := w.f.load(ctx, "lib", 0)
			if err != nil {
				t.Fatal(err)
			}
			pap.rev = "" // as of a registry without revisions
			harm(w.node, held.Document.CID)
			if drop, ok, err := w.f.supersedes(ctx, pap, held); err != nil || !ok || !slices.Equal(drop, []string{"1.2.0"}) {
				t.Errorf("supersedes: %q, %v, %v", drop, ok, err)
			}
		})
	}
}

// TestALostDocumentThatTheFeedBrings is taken from there.
func TestALostDocumentThatTheFeedBrings(t *testing.T) {
	for how, harm := range harms {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, small)
			w.follow(couch.EngineCouch)
			w.add("lib")
			before := w.stored()
			held := w.pkg("lib")
			harm(w.node, held.Document.CID)
			change := couch.Change{ID: "lib", Revs: []string{held.Rev}, Doc: w.document("lib")}
			if err := w.f.page(t.Context(), couch.Page{Changes: []couch.Change{change}, LastSeq: "1"}, feedName, couch.EngineCouch); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.stored(), before) {
				t.Error("the document was not brought back")
			}
		})
	}
}

func TestPullThroughOfWhatTheNodeLost(t *testing.T) {
	reg := npmtest.New(t, large())
	for how, harm := range harms {
		t.Run(how, func(t *testing.T) {
			w := worldOn(t, reg)
			pull := w.pull()
			c, err := pull.Tarball(t.Context(), "big", "big-1.0.0.tgz")
			if err != nil {
				t.Fatal(err)
			}
			for _, block := range append(w.blocksOf("big", "1.0.0"), w.pkg("big").Document.CID) {
				harm(w.node, block)
				if again, err := pull.Tarball(t.Context(), "big", "big-1.0.0.tgz"); err != nil || again != c {
					t.Errorf("Tarball = %v, %v", again, err)
				}
				if _, err := pull.Packument(t.Context(), "big"); err != nil {
					t.Error(err)
				}
				w.stored()
			}
		})
	}
}
