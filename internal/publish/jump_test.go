package publish

import (
	"fmt"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
)

// What a reader finds behind the network's record: each jump leads to a release of the
// chain, through power cuts, a rollback, and the loss of the index, after which they
// begin anew.
func TestJumps(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	n := 0
	release := func() {
		t.Helper()
		n++
		w.ledger.hold(t, "leaf", []string{"1.0.0"}, "1.0.0")
		w.ledger.hold(t, fmt.Sprint("p", n), []string{"1.0.0"}, "1.0.0")
		w.publish(p)
	}
	release()
	release()
	stop()
	w = w.powerCut(1)
	p, stop = w.start()
	release()
	w.rollback(p, 2) // is release 4
	release()
	stop()
	w = w.powerCut(2)
	p, stop = w.start()
	for range 3 {
		release()
	}
	stop()
	if err := w.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	p, stop = w.start()
	defer stop()
	for range 4 {
		release()
	}
	if err := p.o.Index.Check(t.Context()); err != nil {
		t.Error(err)
	}

	roots, jumps := map[uint64]cid.Cid{}, map[uint64]index.Jump{}
	for root := w.best().Value; root.Defined(); {
		r, err := index.ReadRelease(t.Context(), w.node, root)
		if err != nil {
			t.Fatal(err)
		}
		roots[r.Number], jumps[r.Number], root = root, r.Jump, r.Previous
	}
	want := map[uint64]uint64{4: 1, 7: 4, 8: 1, 12: 9}
	for number := range uint64(13) {
		j := jumps[number]
		if j.Number != want[number] || j.Root != roots[j.Number] {
			t.Errorf("release %d has the jump %v, want to release %d", number, j, want[number])
		}
	}
	if len(roots) != 12 {
		t.Errorf("the chain has %d releases", len(roots))
	}
}
