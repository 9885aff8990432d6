package index

import (
	"errors"
	"testing"

	"github.com/ipfs/go-cid"
)

// An index that was lost, or is an old copy, goes on above what was made known.
func TestApplyAfter(t *testing.T) {
	old := newIndexFor(t)
	mustApply(t, old, put(t, "a", 0))
	known := mustApply(t, old, put(t, "b", 0))

	ix := newIndexFor(t)
	apply := func(want bool, number uint64, previous cid.Cid, changes ...Change) Release {
		t.Helper()
		r, changed, err := ix.Apply(t.Context(), Batch{Changes: changes, Now: epoch, After: known.Number, AfterRoot: known.Root})
		if err != nil || changed != want || r.Number != number || r.Previous != previous {
			t.Fatalf("release %d after %s, changed %v, %v; want %d after %s, %v", r.Number, r.Previous, changed, err, number, previous, want)
		}
		return r
	}
	first := apply(true, 3, known.Root, put(t, "a", 0))
	apply(false, 3, known.Root)
	second := apply(true, 4, first.Root, put(t, "b", 0))
	if second.List != known.List {
		t.Errorf("list %v, want %v", second.List, known.List)
	}
	if rs := collect(t, ix.Releases(t.Context())); len(rs) != 2 || rs[0].Number != 3 || rs[1].Number != 4 {
		t.Errorf("Releases: %v", rs)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}

	// What it has itself is no reason; another release of that number, or a
	// later one, is, though nothing else changed.
	known = second
	apply(false, 4, first.Root)
	known = first
	apply(false, 4, first.Root)
	known.Number, known.Root = 4, first.List.Root
	apply(true, 5, known.Root)
	known.Number = 9
	apply(true, 10, known.Root)

	if _, _, err := ix.Apply(t.Context(), Batch{Now: epoch, After: 11}); !errors.Is(err, ErrRelease) {
		t.Errorf("a number without a root: %v", err)
	}
}
