package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// TestEditsEqualRebuild changes a large list a little, often, and has Check
// rebuild it from its entries each time: the list, what a gateway shows, their
// overflow, the places and the counts. Among the names are scopes on either side
// of the limit of a basic directory, whose names are long so that they cross it
// often, pairs of one hash, and entries that differ for a gateway alone.
func TestEditsEqualRebuild(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var names []string
	for i := range 1500 {
		names = append(names, fmt.Sprintf("p%d", i))
	}
	long := strings.Repeat("long", 40)
	for i := range 300 { // 160 of them fill a basic directory
		names = append(names, fmt.Sprintf("@crossing/%s%d", long, i), fmt.Sprintf("@small%d/p", i%40), fmt.Sprintf("@once%d/p", i))
	}
	for i := range 900 {
		names = append(names, fmt.Sprintf("@large/p%d", i))
	}
	pairs := []string{collideA, collideB, "@large/" + collideA, "@large/" + collideB, "@crossing/" + collideA, "@crossing/" + collideB, "@small1/" + collideA, "@small1/" + collideB,
		collideName, collideScope + "/a", collideScope + "/b", collideScopeA + "/a", collideScopeB + "/a", collideScopeB + "/b"}
	names = append(names, pairs...)
	slices.Sort(names)
	names = slices.Compact(names)

	ix := newIndexFor(t)
	random := func(name string) Change {
		return show(t, name, rng.IntN(1000), []string{"", "a", "b"}[rng.IntN(3)])
	}
	var all []Change
	for _, name := range names {
		if !strings.HasPrefix(name, "@crossing/") || rng.IntN(2) == 0 {
			all = append(all, random(name))
		}
	}
	mustApply(t, ix, all...)
	crossed, hamt := 0, false
	for round := range 40 {
		batch := map[string]Change{}
		pick := func(from []string, n int) {
			for range n {
				name := from[rng.IntN(len(from))]
				batch[name] = random(name)
				if rng.IntN(3) == 0 {
					batch[name] = drop(name)
				}
			}
		}
		pick(names, 1+rng.IntN(120))
		pick(pairs, rng.IntN(6))
		for i := range 20 { // the scope grows and shrinks around its limit
			name := fmt.Sprintf("@crossing/%s%d", long, (round*20+i)%300)
			if batch[name] = random(name); round/5%2 == 1 {
				batch[name] = drop(name)
			}
		}
		changes := slices.Collect(maps.Values(batch))
		for range rng.IntN(3) { // pages before it, some of which the last batch undoes
			var page Batch
			page.More = true
			for range 20 {
				name := names[rng.IntN(len(names))]
				page.Changes = append(page.Changes, random(name), drop(names[rng.IntN(len(names))]))
				if _, there := batch[name]; !there && rng.IntN(2) == 0 {
					changes = append(changes, drop(name))
				}
			}
			if _, changed, err := ix.Apply(t.Context(), page); err != nil || changed {
				t.Fatal(changed, err)
			}
			if err := ix.Check(t.Context()); err != nil {
				t.Fatalf("round %d, in a page: %v", round, err)
			}
		}
		r := mustApply(t, ix, changes...)
		if err := ix.Check(t.Context()); err != nil {
			t.Fatalf("round %d, %d changes: %v", round, len(batch), err)
		}
		if is := isHAMT(t, ix, r, "@crossing"); is != hamt {
			crossed, hamt = crossed+1, is
		}
	}
	if crossed < 4 {
		t.Errorf("the scope crossed its limit %d times", crossed)
	}
	var rest []Change
	for e, err := range ix.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		rest = append(rest, drop(string(e.Name)))
	}
	for some := range slices.Chunk(rest, 200) { // down to nothing, never anew until near the end
		mustApply(t, ix, some...)
		if err := ix.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// isHAMT tells whether a scope of a release's list is in shards.
func isHAMT(t *testing.T, ix *Index, r Release, scope string) bool {
	t.Helper()
	l, err := unixfs.Lookup(t.Context(), ix, r.List.Root, scope)
	if errors.Is(err, unixfs.ErrNotFound) {
		return false
	}
	_, basic, err2 := unixfs.Basic(t.Context(), ix, l.CID)
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return !basic
}

// TestNewBlocksGrowWithTheChange counts the blocks of one change in lists of
// very different sizes.
func TestNewBlocksGrowWithTheChange(t *testing.T) {
	count := func(packages int) int {
		ix := newIndexFor(t)
		var all []Change
		for i := range packages {
			all = append(all, put(t, fmt.Sprintf("p%d", i), 0))
		}
		mustApply(t, ix, all...)
		r := mustApply(t, ix, put(t, "p7", 1))
		return len(collect(t, ix.Blocks(t.Context(), r.Number-1, r.Number)))
	}
	small, large := count(20), count(5000)
	if large > small+4 {
		t.Errorf("%d new blocks in a list of 20, %d in one of 5,000", small, large)
	}
}

// TestStoreFormat1 takes up an index from before there were counts, and with rows
// of the blocks that came with each release: those that came after the newest are
// ahead of it.
func TestStoreFormat1(t *testing.T) {
	fs := vfs.NewMem()
	ix, err := Create("ix", memory(fs))
	if err != nil {
		t.Fatal(err)
	}
	r := mustApply(t, ix, put(t, "a", 0), put(t, "b", 2))
	// Since then: "c" is new, and "a" too was changed, in pages without a release.
	// All that was listed had a place, until format 3.
	if _, _, err := ix.Apply(t.Context(), Batch{Changes: []Change{put(t, "a", 1), put(t, "@s/c", 0)}, More: true}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []place{{"", "a"}, {"", "b"}} {
		if err := ix.db.Set(p.key(), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.Marshal(formatRow{1, ix.Parameters()})
	newRow := func(number uint64, c cid.Cid) error {
		return ix.db.Set(append(numbered('n', number), c.KeyString()...), nil, nil)
	}
	if err == nil {
		err = errors.Join(newRow(r.Number, r.List.Root), newRow(r.Number+1, r.List.Overflow))
	}
	if err == nil {
		err = errors.Join(ix.db.Set([]byte{rowFormat}, raw, nil), ix.db.Delete([]byte{rowCounts}, nil), ix.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if ix, err = Open("ix", memory(fs)); err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	row, err := readFormat(ix.db)
	if err != nil || row.Format != storeFormat || row.Parameters != ix.Parameters() {
		t.Errorf("%+v, %v", row, err)
	}
	var keys []string
	for _, space := range []byte{'n', rowAhead} {
		for row, err := range scan(t.Context(), ix.db, []byte{space}) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, string(row.key))
		}
	}
	if want := string(aheadKey(r.List.Overflow)); len(keys) != 1 || keys[0] != want {
		t.Errorf("rows %q, want %q", keys, want)
	}
	keys = nil
	for row := range scan(t.Context(), ix.db, []byte{rowPlace}) {
		keys = append(keys, string(row.key[1+8:]))
	}
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"@s", "@s/c"}) {
		t.Errorf("places of %q", keys)
	}
	if r := mustApply(t, ix, drop("a"), drop("@s/c")); r.Packages != 1 || r.Versions != 3 {
		t.Errorf("%d packages, %d versions", r.Packages, r.Versions)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
