package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
)

const week = 7 * 24 * time.Hour

// written makes the item of a document, and says its CID.
func (w *world) written(description string) (item, cid.Cid) {
	w.t.Helper()
	held, err := w.f.held(w.t.Context(), "p")
	if err != nil {
		w.t.Fatal(err)
	}
	raw := fmt.Appendf(nil, `{"name":"p","description":%q,"versions":{"1.0.0":{"name":"p","version":"1.0.0","dist":{"tarball":"https://registry.example.test/p/-/p-1.0.0.tgz","shasum":"da39a3ee5e6b4b0d3255bfef95601890afd80709"}}}}`, description)
	pap, err := w.f.fresh("p", raw, "", held)
	if err != nil {
		w.t.Fatal(err)
	}
	return item{name: "p", paper: pap, blocks: pap.blocks}, pap.ref.CID
}

// keep stores a document.
func (w *world) keep(description string) cid.Cid {
	w.t.Helper()
	it, c := w.written(description)
	if err := w.f.store(w.t.Context(), []item{it}, nil); err != nil {
		w.t.Fatal(err)
	}
	w.clock.add(time.Minute)
	return c
}

func (w *world) letGo(want int) {
	w.t.Helper()
	if n, err := w.f.LetGo(w.t.Context(), week, 0, nil); err != nil || n.Documents != want {
		w.t.Errorf("let go of %d, %v; want %d", n.Documents, err, want)
	}
}

// holds checks that the node holds the first of cs, which the package has, and
// none of the others; and that all that the ledger records as former is held.
func (w *world) holds(now cid.Cid, gone ...cid.Cid) {
	w.t.Helper()
	p, err := w.store.Package(w.t.Context(), "p")
	if err != nil || p.Document.CID != now || !w.node.held[now] {
		w.t.Errorf("the document is %s, held %v, %v; want %s", p.Document.CID, w.node.held[now], err, now)
	}
	for _, c := range gone {
		if w.node.held[c] {
			w.t.Errorf("%s is still held", c)
		}
	}
	former, err := w.store.Former(w.t.Context(), w.clock.Now().Add(time.Hour), 100)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range former {
		if !w.node.held[f.CID] {
			w.t.Errorf("%s may be let go of, and was", f.CID)
		}
	}
	if err := w.store.Check(w.t.Context()); err != nil {
		w.t.Error(err)
	}
}

// TestLetGo: what was replaced long enough ago is let go of, once; what is recent,
// or came back, is not.
func TestLetGo(t *testing.T) {
	w := newWorld(t, small)
	a := w.keep("a")
	b := w.keep("b")
	w.letGo(0)
	w.clock.add(week)
	c := w.keep("c")
	w.letGo(1)
	w.holds(c, a)
	w.letGo(0)
	if again := w.keep("a"); again != a {
		t.Fatal("another document")
	}
	w.holds(a)
	w.clock.add(week)
	w.letGo(2)
	w.holds(a, b, c)
}

// TestLetGoCrash breaks each durable step of it. What the ledger records as former
// is held after it, or is let go of once more; what the package has is held.
func TestLetGoCrash(t *testing.T) {
	kinds := map[string]bool{}
	for _, kept := range []bool{false, true} {
		for at := 1; ; at++ {
			w := newWorld(t, small)
			a := w.keep("a")
			b := w.keep("b")
			w.clock.add(week)
			broken := w.arm(at, kept)
			if _, err := w.f.LetGo(t.Context(), week, 0, nil); !broken.fired {
				if err != nil {
					t.Fatal(err)
				}
				break
			} else if !errors.Is(err, errInjected) {
				t.Fatalf("step %d broke: %v", at, err)
			}
			step := broken.steps[at-1]
			kinds[step] = true
			w.crash()
			former, err := w.store.Former(t.Context(), w.clock.Now(), 100)
			if err != nil {
				t.Fatal(err)
			}
			if len(former) == 0 && w.node.held[a] {
				t.Errorf("step %d (%s, kept %v): %s is held for ever", at, step, kept, a)
			}
			if len(former) != 0 == (step == "commit" && kept) {
				t.Errorf("step %d (%s, kept %v): former %v", at, step, kept, former)
			}
			w.letGo(len(former))
			w.holds(b, a)
			w.letGo(0)
		}
	}
	for _, kind := range []string{"unhold", "checkpoint", "commit"} {
		if !kinds[kind] {
			t.Errorf("%s was not broken", kind)
		}
	}
}

// slowNode lets a test act while the node lets go.
type slowNode struct {
	*memNode
	unhold func()
}

func (n slowNode) Unhold(ctx context.Context, label string, roots []cid.Cid) error {
	n.unhold()
	return n.memNode.Unhold(ctx, label, roots)
}

// TestLetGoBeside: a document that comes back while it is let go of is held anew
// afterwards; one that is on its way back is not let go of.
func TestLetGoBeside(t *testing.T) {
	w := newWorld(t, small)
	a := w.keep("a")
	b := w.keep("b")
	w.clock.add(week)
	back := make(chan error, 1)
	it, _ := w.written("a")
	w.f.node = slowNode{w.node, func() { go func() { back <- w.f.store(t.Context(), []item{it}, nil) }() }}
	w.letGo(1)
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	w.holds(a)
	w.f.node = w.node

	w.clock.add(week + time.Minute)
	it, _ = w.written("b")
	way, err := w.f.bring(t.Context(), []item{it})
	if err != nil {
		t.Fatal(err)
	}
	w.letGo(0)
	if err := w.f.settle(t.Context(), []brought{way}, nil); err != nil {
		t.Fatal(err)
	}
	w.holds(b)
	if len(w.f.roots.coming)+len(w.f.roots.leaving) != 0 {
		t.Errorf("still on their way: %v, %v", w.f.roots.coming, w.f.roots.leaving)
	}
	w.clock.add(week + time.Minute)
	w.letGo(1)
	w.holds(b, a)

	// Whoever waits for that ends with its context.
	leaving := w.f.roots.leave([]cid.Cid{a})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.f.roots.come(ctx, []cid.Cid{a}); !errors.Is(err, context.Canceled) {
		t.Errorf("waited: %v", err)
	}
	w.f.roots.left(leaving)
}

// TestLetGoOfTarballs: the tarball of a version that upstream took back is let go of
// when it was asked for, long enough after, unless another version has the same bytes;
// and one that comes back is fetched and held anew.
func TestLetGoOfTarballs(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib every")
	of := map[string]cid.Cid{}
	for _, v := range w.pkg("lib").Versions {
		of[v.Version] = v.CID
	}
	w.reg.Edit("lib", func(doc []byte) []byte {
		var p map[string]any
		err := json.Unmarshal(doc, &p)
		versions, _ := p["versions"].(map[string]any)
		delete(versions, "1.0.0")
		delete(versions, "2.0.0")
		p["dist-tags"] = map[string]string{"latest": "1.2.0"}
		doc, err2 := json.Marshal(p)
		if err := errors.Join(err, err2); err != nil {
			t.Error(err)
		}
		return doc
	})
	w.clock.add(time.Hour)
	w.fill()
	w.expect("lib@1.2.0", "lib@2.1.0-beta")
	twin := w.pkg("lib").Dropped[0] // its bytes are another package's, too
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Packages: []ledger.PackageUpdate{{Name: "twin", Versions: []ledger.Version{twin}}}}); err != nil {
		t.Fatal(err)
	}
	letGo := func(tarballs time.Duration, want int) {
		t.Helper()
		if n, err := w.f.LetGo(t.Context(), 52*week, tarballs, nil); err != nil || n != (LetGo{Tarballs: want}) {
			t.Errorf("let go of %+v, %v; want %d tarballs", n, err, want)
		}
		if err := w.store.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	letGo(week, 0) // too recent
	w.clock.add(week + time.Minute)
	letGo(0, 0) // for ever
	letGo(week, 1)
	letGo(week, 0)
	gone := map[string]string{"1.0.0": "2.0.0", "2.0.0": "1.0.0"}[twin.Version]
	for version, c := range of {
		if held := w.node.held[c]; held != (version != gone) {
			t.Errorf("lib@%s: held is %v", version, held)
		}
	}

	// Upstream has both again.
	w.reg.Edit("lib", nil)
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Packages: []ledger.PackageUpdate{{Name: "twin", Deleted: true}}}); err != nil {
		t.Fatal(err)
	}
	w.clock.add(time.Hour)
	w.fill()
	w.expect("lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta")
	if !w.node.held[of[gone]] {
		t.Errorf("lib@%s is back, and not held", gone)
	}
	w.clock.add(week + time.Minute)
	letGo(week, 0)
}
