package publish

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/index"
)

// A large list is published with a snapshot, from which a reader comes to it, and
// with deltas, by which the reader follows; once those are long there is another.
func TestSnapshots(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	for i := range 1000 {
		w.ledger.hold(t, fmt.Sprintf("p%d", i), []string{"1.0.0"}, "1.0.0")
	}
	reader, err := index.Create("reader", index.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	follow := func(want string) index.Release {
		t.Helper()
		got, err := reader.Sync(t.Context(), w.node, w.publish(p).CID, nil)
		if err != nil || got.Way != want || len(got.Refused) > 0 {
			t.Fatalf("by %s, %v, refused %v; want %s", got.Way, err, got.Refused, want)
		}
		return got.Release
	}
	if r := follow(index.WaySnapshot); r.Packages != 1000 {
		t.Errorf("%d packages", r.Packages)
	}
	times := 0
	for round := range 6 {
		for i := range 30 {
			w.ledger.hold(t, fmt.Sprintf("q%d-%d", round, i), []string{"1.0.0"}, "1.0.0")
		}
		r := follow(index.WayDelta)
		if r.Packages != 1000+30*(round+1) {
			t.Errorf("%d packages", r.Packages)
		}
		due, has, err := p.o.Index.SnapshotDue(t.Context())
		if err != nil || !has {
			t.Errorf("a snapshot %v, %v", has, err)
		}
		if due {
			times++
		}
	}
	if times == 0 || times > 3 {
		t.Errorf("a snapshot was due %d times in 6 releases", times)
	}
}
