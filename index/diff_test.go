package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// differences collects what Diff yields, by name.
func differences(t testing.TB, g unixfs.Getter, old, new List) map[npm.Name]Difference {
	t.Helper()
	got := map[npm.Name]Difference{}
	for d, err := range Diff(t.Context(), g, old, new) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[d.New.Name]; twice || d.Old.Name != d.New.Name {
			t.Fatalf("%+v: twice, or of two names", d)
		}
		got[d.New.Name] = d
	}
	return got
}

// differing is what Diff must say of two sets.
func differing(old, new map[npm.Name]Entry) map[npm.Name]Difference {
	want := map[npm.Name]Difference{}
	listed := func(set map[npm.Name]Entry, name npm.Name) Entry {
		e := set[name]
		return Entry{Name: name, CID: e.CID, Tsize: e.Tsize}
	}
	for _, set := range []map[npm.Name]Entry{old, new} {
		for name := range set {
			if d := (Difference{listed(old, name), listed(new, name)}); d.Old != d.New {
				want[name] = d
			}
		}
	}
	return want
}

// TestDiffOfHistory compares the lists of a random history, each with any other.
// Among the names are pairs of one hash, in the root and in scopes of either form,
// so that packages come to the overflow and leave it unchanged.
func TestDiffOfHistory(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	var names []string
	for i := range 500 {
		names = append(names, fmt.Sprintf("p%d", i), fmt.Sprintf("@small%d/p%d", i%40, i))
	}
	long := strings.Repeat("long", 40)
	for i := range 200 { // 160 of them fill a basic directory
		names = append(names, fmt.Sprintf("@crossing/%s%d", long, i))
	}
	var pairs []string
	for _, scope := range []string{"", "@crossing/", "@small1/", "@pair/"} {
		pairs = append(pairs, scope+collideA, scope+collideB)
	}
	ix := newIndexFor(t)
	var lists []List
	var sets []map[npm.Name]Entry
	set := map[npm.Name]Entry{}
	moved := 0
	for round := range 60 {
		batch := map[string]Change{}
		pick := func(from []string, n int) {
			for range n {
				name := from[rng.IntN(len(from))]
				batch[name] = put(t, name, rng.IntN(50))
				if rng.IntN(3) == 0 {
					batch[name] = drop(name)
				}
			}
		}
		pick(names, []int{2, 2, 100, 600}[round%4])
		pick(pairs, 1+rng.IntN(3))
		for i := range 20 {
			name := fmt.Sprintf("@crossing/%s%d", long, (round*20+i)%200)
			if batch[name] = put(t, name, round); round/8%2 == 1 {
				batch[name] = drop(name)
			}
		}
		r := mustApply(t, ix, slices.Collect(maps.Values(batch))...)
		set = maps.Clone(set)
		for name, c := range batch {
			if delete(set, npm.Name(name)); !c.Delete {
				set[npm.Name(name)] = c.Entry
			}
		}
		if n := len(lists); n > 0 {
			for c, err := range unixfs.Diff(t.Context(), ix, lists[n-1].Overflow, r.List.Overflow) {
				name := npm.Name(strings.Replace(c.New.Name, "%2f", "/", 1))
				if err == nil && set[name] == sets[n-1][name] {
					moved++
				}
			}
		}
		lists, sets = append(lists, r.List), append(sets, set)
		for _, other := range []int{len(lists) - 1, max(0, len(lists)-2), rng.IntN(len(lists))} {
			if got, want := differences(t, ix, lists[other], r.List), differing(sets[other], set); !maps.Equal(got, want) {
				t.Fatalf("release %d to %d: %d differences, want %d", other+1, r.Number, len(got), len(want))
			}
			if got, want := differences(t, ix, r.List, lists[other]), differing(set, sets[other]); !maps.Equal(got, want) {
				t.Fatalf("release %d to %d: %d differences, want %d", r.Number, other+1, len(got), len(want))
			}
		}
		if got, want := differences(t, ix, List{}, r.List), differing(nil, set); !maps.Equal(got, want) {
			t.Fatalf("nothing to release %d: %d differences, want %d", r.Number, len(got), len(want))
		}
	}
	if moved < 5 {
		t.Errorf("%d packages moved to or from the overflow unchanged", moved)
	}

	// A difference is the change that leads there.
	last := lists[len(lists)-1]
	for _, to := range []int{0, 20, 40} {
		var back []Change
		for _, d := range differences(t, ix, last, lists[to]) {
			back = append(back, d.Change())
		}
		r := mustApply(t, ix, back...)
		if r.List != lists[to] {
			t.Errorf("back at release %d: %v, want %v", to+1, r.List, lists[to])
		}
		last = r.List
	}
}

// TestDiffReadsLittle counts the blocks that one change takes in a large list.
func TestDiffReadsLittle(t *testing.T) {
	ix := newIndexFor(t)
	var all []Change
	for i := range 5000 {
		all = append(all, put(t, fmt.Sprintf("p%d", i), 0), put(t, fmt.Sprintf("@s%d/p", i%900), 0))
	}
	r1 := mustApply(t, ix, all...)
	r2 := mustApply(t, ix, put(t, "p7", 1), put(t, "@s8/p", 1))
	from := &meter{g: ix}
	if got := differences(t, from, r1.List, r2.List); len(got) != 2 {
		t.Errorf("%d differences", len(got))
	}
	if n := from.blocks.Load(); n > 12 { // of each list the root, two shards, a scope and one shard more
		t.Errorf("%d blocks read", n)
	}
}

// TestDiffScopeInOverflow has a whole scope go to the overflow, once as it was and
// once changed: no pair of names is known that would do this to an index.
func TestDiffScopeInOverflow(t *testing.T) {
	n := newNode()
	dir := func(limit int, links ...unixfs.Link) cid.Cid {
		ref, over, err := unixfs.BuildDir(links, limit, n.put)
		if err != nil || len(over) > 0 {
			t.Fatal(err, over)
		}
		return ref.CID
	}
	link := func(name string, c cid.Cid) unixfs.Link { return unixfs.Link{Name: name, CID: c} }
	a, b := put(t, "@s/a", 0).Entry, put(t, "b", 0).Entry
	scope := dir(unixfs.DirLimit, link("a", a.CID))
	later := dir(unixfs.DirLimit, link("a", a.CID), link("c", b.CID))
	lists := []List{
		{dir(0, link("@s", scope), link("b", b.CID)), dir(unixfs.DirLimit)},
		{dir(0, link("b", b.CID)), dir(unixfs.DirLimit, link("@s", scope))},
		{dir(0, link("b", b.CID)), dir(unixfs.DirLimit, link("@s", later))},
		{dir(0, link("@s", later), link("b", b.CID)), dir(unixfs.DirLimit, link("@s%2fx", a.CID))},
		{dir(0, link("@s", later), link("b", b.CID)), dir(unixfs.DirLimit)},
	}
	sets := []map[npm.Name]Entry{
		{"@s/a": {CID: a.CID}, "b": {CID: b.CID}},
		{"@s/a": {CID: a.CID}, "b": {CID: b.CID}},
		{"@s/a": {CID: a.CID}, "b": {CID: b.CID}, "@s/c": {CID: b.CID}},
		{"@s/a": {CID: a.CID}, "b": {CID: b.CID}, "@s/c": {CID: b.CID}, "@s/x": {CID: a.CID}},
		{"@s/a": {CID: a.CID}, "b": {CID: b.CID}, "@s/c": {CID: b.CID}},
	}
	for i := range lists {
		for j := range lists {
			if got, want := differences(t, n, lists[i], lists[j]), differing(sets[i], sets[j]); !maps.Equal(got, want) {
				t.Errorf("%d to %d: %v, want %v", i, j, got, want)
			}
		}
	}
}

func TestDiffRefuses(t *testing.T) {
	n := newNode()
	e := put(t, "x", 0).Entry
	dir := func(limit int, names ...string) cid.Cid {
		var links []unixfs.Link
		for _, name := range names {
			links = append(links, unixfs.Link{Name: name, CID: e.CID})
		}
		ref, _, err := unixfs.BuildDir(links, limit, n.put)
		if err != nil {
			t.Fatal(err)
		}
		return ref.CID
	}
	many := make([]string, maxOverflow+1)
	for i := range many {
		many[i] = fmt.Sprint("p", i)
	}
	empty := List{dir(0), dir(unixfs.DirLimit)}
	file, err := unixfs.AddBytes([]byte("x"), n.put)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		list List
		want error
	}{
		"a name":                 {List{dir(0, "_other"), empty.Overflow}, ErrRelease},
		"a name in the overflow": {List{empty.Root, dir(unixfs.DirLimit, "a b")}, ErrRelease},
		"a large overflow":       {List{empty.Root, dir(0, many...)}, ErrRelease},
		"a scope that is none":   {List{dir(0, "@s"), empty.Overflow}, nil}, // a package's directory, which is not there
		"a file":                 {List{file.CID, empty.Overflow}, unixfs.ErrMalformed},
	} {
		for _, pair := range [][2]List{{c.list, empty}, {empty, c.list}, {c.list, {}}} {
			errs := 0
			var last error
			for _, last = range Diff(t.Context(), n, pair[0], pair[1]) {
				if last != nil {
					errs++
				}
			}
			if errs != 1 || last == nil || c.want != nil && !errors.Is(last, c.want) {
				t.Errorf("%s: %v", what, last)
			}
		}
	}

	// It ends when it is no longer listened to, and with its context.
	ix := newIndexFor(t)
	var all []Change
	for i := range 300 {
		all = append(all, put(t, fmt.Sprintf("p%d", i), 0), put(t, fmt.Sprintf("@s%d/p%d", i%50, i), 0))
	}
	r := mustApply(t, ix, all...)
	for _, stop := range []int{1, 200, 400, 599} {
		n := 0
		for _, err := range Diff(t.Context(), ix, r.List, List{}) {
			if n++; err != nil {
				t.Fatal(err)
			}
			if n == stop {
				break
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k := 0
	var last error
	for _, last = range Diff(ctx, ix, List{}, r.List) {
		if k++; k == 310 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("cancelled after %d: %v", k, last)
	}
}
