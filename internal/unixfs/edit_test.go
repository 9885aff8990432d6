package unixfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

func mustEdit(t testing.TB, s *store, dir Ref, edits ...Link) Edited {
	t.Helper()
	ed, err := Edit(t.Context(), s, dir.CID, edits, s.sink, nil)
	if err != nil {
		t.Fatalf("Edit: %v", err)
	}
	return ed
}

// basicLength is that of the basic directory of links.
func basicLength(t testing.TB, links []Link) int {
	t.Helper()
	es, _, err := sortLinks(links)
	if err != nil {
		t.Fatal(err)
	}
	return basicLen(es)
}

// TestEditEqualsBuild edits a set at random, in batches, down to nothing and up
// again, with names that share most of their hashes among them.
func TestEditEqualsBuild(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	names := append(deepNames(10), Reserved)
	for i := range 2000 {
		names = append(names, fmt.Sprint("n", i))
	}
	s := newStore()
	set := map[string]Link{}
	ref := mustBuild(t, nil, 0, s.sink)
	for round := range 200 {
		batch, old := map[string]Link{}, maps.Clone(set)
		for range 1 + rng.IntN([]int{3, 40, 1000}[round%3]) {
			name := names[rng.IntN(len(names))]
			l := linkNamed(t, name)
			l.Tsize = rng.Uint64() >> 40
			batch[name] = l
		}
		for name := range set {
			if round%10 == 9 || rng.IntN(8) == 0 { // mass deletion each tenth time
				batch[name] = Link{Name: name}
			}
		}
		for name, l := range batch {
			if l.CID.Defined() {
				set[name] = l
			} else {
				delete(set, name)
			}
		}
		before := basicLength(t, slices.Collect(maps.Values(old)))
		var now []Link
		var late []string // every third one is told when its turn comes
		for name, l := range batch {
			if _, was := old[name]; len(name)%3 == 0 && (was || l.CID.Defined()) {
				late = append(late, name)
			} else {
				now = append(now, l)
			}
		}
		ed, err := EditLate(t.Context(), s, ref.CID, now, late, func(_ context.Context, name string, was Link) (Link, error) {
			if was != old[name] {
				return Link{}, fmt.Errorf("%q was %v, not %v", name, old[name], was)
			}
			return batch[name], nil
		}, s.sink, nil)
		if err != nil {
			t.Fatal(err)
		}
		if now := basicLength(t, slices.Collect(maps.Values(set))); ed.Growth != now-before || len(ed.Overflow) > 0 {
			t.Fatalf("round %d: from %d to %d bytes is a growth of %d; overflow %v", round, before, now, ed.Growth, ed.Overflow)
		}
		ref = ed.Ref
		if want := mustBuild(t, slices.Collect(maps.Values(set)), 0, s.sink); ref != want {
			t.Fatalf("round %d, %d entries: edited %v, built %v", round, len(set), ref, want)
		}
		if round%20 == 0 {
			if want := boxoHAMT(t, slices.Collect(maps.Values(set))); ref != want {
				t.Fatalf("round %d, %d entries: edited %v, boxo %v", round, len(set), ref, want)
			}
		}
	}
	for name := range set {
		ref = mustEdit(t, s, ref, Link{Name: name}).Ref
	}
	if want := mustBuild(t, nil, 0, s.sink); ref != want {
		t.Errorf("emptied %v, empty %v", ref, want)
	}
}

// TestEditSettles: of names in one place the one that BuildDir keeps has it, and the
// others are told of.
func TestEditSettles(t *testing.T) {
	s := newStore()
	a, b := linkNamed(t, collideA), linkNamed(t, collideB)
	build := func(l ...Link) Ref { return mustBuild(t, append(linksNamed(t, 300), l...), 0, s.sink) }
	winner, loser := a, b
	if b.Name < a.Name {
		winner, loser = b, a
	}
	other := winner
	other.Tsize++
	for _, c := range []struct {
		what       string
		was, edits []Link
		want, lost []Link
	}{
		{"a loser comes", []Link{winner}, []Link{loser}, []Link{winner}, []Link{loser}},
		{"a winner comes", []Link{loser}, []Link{winner}, []Link{winner}, []Link{loser}},
		{"both come", nil, []Link{loser, winner}, []Link{winner}, []Link{loser}},
		{"a loser comes, the winner changes", []Link{winner}, []Link{other, loser}, []Link{other}, []Link{loser}},
		{"one for the other", []Link{winner}, []Link{{Name: winner.Name}, loser}, []Link{loser}, nil},
		{"and back", []Link{loser}, []Link{{Name: loser.Name}, winner}, []Link{winner}, nil},
	} {
		got := mustEdit(t, s, build(c.was...), c.edits...)
		if want := build(c.want...); got.Ref != want || !slices.Equal(got.Overflow, c.lost) {
			t.Errorf("%s: %v, overflow %v; built %v, overflow %v", c.what, got.Ref, got.Overflow, want, c.lost)
		}
	}
	ref := build(a)
	for what, edits := range map[string][]Link{
		"take out another's place": {{Name: collideB}},
		"take out what is not":     {{Name: "absent"}},
	} {
		if _, err := Edit(t.Context(), s, ref.CID, edits, s.sink, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, edits := range map[string][]Link{
		"twice":         {linkNamed(t, "x"), linkNamed(t, "x")},
		"put and taken": {linkNamed(t, "x"), {Name: "x"}},
		"a path":        {linkNamed(t, "a/b")},
		"no name":       {linkNamed(t, "")},
	} {
		if _, err := Edit(t.Context(), s, ref.CID, edits, s.sink, nil); !errors.Is(err, ErrName) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// counting counts what an edit reads.
type counting struct {
	*store
	reads int
}

func (c *counting) Get(ctx context.Context, id cid.Cid) (blocks.Block, error) {
	c.reads++
	return c.store.Get(ctx, id)
}

// TestEditTouchesPathsAlone: work and new blocks grow with the change.
func TestEditTouchesPathsAlone(t *testing.T) {
	s := &counting{store: newStore()}
	ref := mustBuild(t, linksNamed(t, 20_000), 0, s.sink)
	l := linkNamed(t, "package-7")
	l.Tsize++
	writes := 0
	if _, err := Edit(t.Context(), s, ref.CID, []Link{l}, func(blocks.Block) error { writes++; return nil }, nil); err != nil {
		t.Fatal(err)
	}
	if s.reads > hashLen || writes != s.reads {
		t.Errorf("%d blocks read, %d written", s.reads, writes)
	}
}

// TestEditRefusesHostile plants shards that no builder makes.
func TestEditRefusesHostile(t *testing.T) {
	s := newStore()
	l := linkNamed(t, "package-1")
	slot := slotAt(Hash(l.Name), 0)
	plant := func(cs ...child) Ref {
		c, tsize, err := writeShard(cs, s.sink)
		if err != nil {
			t.Fatal(err)
		}
		return Ref{CID: c, Tsize: tsize}
	}
	stray := linkNamed(t, "package-2")
	alone := plant(child{slot: slotAt(Hash(l.Name), 1), link: l.pb()})
	deep := alone
	for depth := hashLen - 1; depth >= 0; depth-- {
		deep = plant(child{slot: slotAt(Hash(l.Name), depth), sub: true, link: pbLink{cid: deep.CID.KeyString()}})
	}
	for what, dir := range map[string]Ref{
		"a name in a wrong slot":    plant(child{slot: slot, link: stray.pb()}),
		"a shard for one name":      plant(child{slot: slot, sub: true, link: pbLink{cid: alone.CID.KeyString()}}),
		"an empty shard below":      plant(child{slot: slot, sub: true, link: pbLink{cid: plant().CID.KeyString()}}),
		"more levels than the hash": deep,
	} {
		if _, err := Edit(t.Context(), s, dir.CID, []Link{l}, s.sink, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBulkEqualsBuild: another way to the same directory.
func TestBulkEqualsBuild(t *testing.T) {
	for _, n := range []int{0, 1, 2, 300, 20_000} {
		links := linksNamed(t, n)
		if n > 2 {
			links = append(links, linkNamed(t, collideB), linkNamed(t, collideA))
		}
		var b Bulk
		for _, l := range links {
			if err := b.Add(l); err != nil {
				t.Fatal(err)
			}
		}
		got, over, err := b.Build(newStore().sink)
		want, wantOver, wantErr := BuildDir(links, 0, newStore().sink)
		if err != nil || wantErr != nil || got != want || !slices.Equal(over, wantOver) {
			t.Errorf("%d links: %v, %v, %v; built %v, %v, %v", n, got, over, err, want, wantOver, wantErr)
		}
	}
	var b Bulk
	if err := b.Add(Link{Name: "a/b"}); !errors.Is(err, ErrName) {
		t.Errorf("a path: %v", err)
	}
	for range 2 {
		if err := b.Add(linkNamed(t, "twice")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := b.Build(newStore().sink); !errors.Is(err, ErrName) {
		t.Errorf("twice: %v", err)
	}
}
