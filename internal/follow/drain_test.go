package follow

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// slow is an upstream that takes its time to say that it has nothing.
type slow struct{ Upstream }

func (slow) Packument(context.Context, npm.Name, string) (upstream.Packument, error) {
	time.Sleep(10 * time.Second)
	return upstream.Packument{}, upstream.ErrNotFound
}

// TestTheQueueIsNotLeftAloneAfterSlowWork: however long a pass waited for work
// to end, the next one begins at once.
func TestTheQueueIsNotLeftAloneAfterSlowWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := ledger.Create("ledger", ledger.Options{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		const items = 20
		var b ledger.Batch
		for i := range items {
			b.Retries = append(b.Retries, ledger.Retry{Name: npm.Name(fmt.Sprintf("p%02d", i))})
		}
		if _, err := store.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		f, err := New(Options{Ledger: store, Upstream: slow{}, Node: newNode(), Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := f.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if c := store.Counts(); c.Refused != items {
			t.Errorf("%d refused, want %d", c.Refused, items)
		}
		if took := time.Since(began); took > items*10*time.Second+5*time.Second {
			t.Errorf("%d items of 10 s each, one at a time, took %v", items, took)
		}
	})
}
