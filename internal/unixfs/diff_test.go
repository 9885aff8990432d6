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

// reads notes which blocks were read.
type reads struct {
	*store
	of map[cid.Cid]int
}

func (r *reads) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	r.mu.Lock()
	r.of[c]++
	r.mu.Unlock()
	return r.store.Get(ctx, c)
}

// shardsOf gives a directory's blocks by their place, the root under "".
func shardsOf(t testing.TB, s *store, dir cid.Cid, path string, into map[string]cid.Cid) {
	t.Helper()
	into[path] = dir
	n, d, err := decodeUnixFS(s.blks[dir])
	if err != nil {
		t.Fatal(err)
	}
	if d.kind != typeHAMT {
		return
	}
	links, err := n.decodedLinks()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if len(l.Name) == 2 {
			shardsOf(t, s, l.CID, path+l.Name, into)
		}
	}
}

// checkDiff holds Diff to the sets of which the directories were built, and its
// reading to the shards that differ.
func checkDiff(t testing.TB, s *store, old, new cid.Cid, before, after map[string]Link) {
	t.Helper()
	r := &reads{s, map[cid.Cid]int{}}
	got := map[string]LinkChange{}
	for c, err := range Diff(t.Context(), r, old, new) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[c.New.Name]; twice || c.Old.Name != c.New.Name {
			t.Fatalf("%+v: twice, or of two names", c)
		}
		got[c.New.Name] = c
	}
	want := map[string]LinkChange{}
	for name, l := range before {
		if now, there := after[name]; now != l {
			if !there {
				now.Name = name
			}
			want[name] = LinkChange{l, now}
		}
	}
	for name, l := range after {
		if _, there := before[name]; !there {
			want[name] = LinkChange{Link{Name: name}, l}
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("%d entries to %d: %d changes, want %d", len(before), len(after), len(got), len(want))
	}
	// Which shards are in the same place of both?
	olds, news := map[string]cid.Cid{}, map[string]cid.Cid{}
	if old.Defined() {
		shardsOf(t, s, old, "", olds)
	}
	if new.Defined() {
		shardsOf(t, s, new, "", news)
	}
	expected := map[cid.Cid]int{}
	for path, c := range olds {
		if news[path] != c {
			expected[c]++
		}
	}
	for path, c := range news {
		if olds[path] != c {
			expected[c]++
		}
	}
	for c, n := range r.of {
		if n != expected[c] {
			t.Fatalf("%s was read %d times, want %d", c, n, expected[c])
		}
	}
	if len(r.of) != len(expected) {
		t.Fatalf("%d blocks read, %d differ", len(r.of), len(expected))
	}
}

// TestDiff compares random sets in either form, with names that share most of
// their hashes among them.
func TestDiff(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	names := deepNames(20)
	for i := range 3000 {
		names = append(names, fmt.Sprint("n", i))
	}
	s := newStore()
	var dir cid.Cid
	set := map[string]Link{}
	for round := range 300 {
		after := maps.Clone(set)
		switch few := rng.IntN(4) > 0; {
		case round%17 == 16:
			clear(after)
		default:
			n := 1 + rng.IntN(400)
			if few {
				n = 1 + rng.IntN(4)
			}
			for range n {
				name := names[rng.IntN(len(names))]
				if few && rng.IntN(2) == 0 {
					name = names[rng.IntN(20)]
				}
				delete(after, name)
				if rng.IntN(3) > 0 {
					l := linkNamed(t, name)
					l.Tsize = rng.Uint64() >> 40
					after[name] = l
				}
			}
		}
		limit := []int{0, DirLimit, 300}[rng.IntN(3)]
		next := mustBuild(t, slices.Collect(maps.Values(after)), limit, s.sink).CID
		checkDiff(t, s, dir, next, set, after)
		checkDiff(t, s, next, dir, after, set)
		checkDiff(t, s, next, next, after, after)
		checkDiff(t, s, cid.Undef, next, nil, after)
		set, dir = after, next
	}
	checkDiff(t, s, cid.Undef, cid.Undef, nil, nil)
}

// TestDiffSameHash: a basic directory may hold names of one hash, a HAMT one of
// them.
func TestDiffSameHash(t *testing.T) {
	s := newStore()
	a, b := linkNamed(t, collideA), linkNamed(t, collideB)
	both, err := BasicDir([]Link{a, b}, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	one := mustBuild(t, append(deepLinks(t), b), 0, s.sink)
	before, after := map[string]Link{a.Name: a, b.Name: b}, map[string]Link{b.Name: b}
	for _, l := range deepLinks(t) {
		after[l.Name] = l
	}
	checkDiff(t, s, both.CID, one.CID, before, after)
	checkDiff(t, s, one.CID, both.CID, after, before)
}

func deepLinks(t testing.TB) (links []Link) {
	for _, name := range deepNames(4) {
		links = append(links, linkNamed(t, name))
	}
	return links
}

// TestDiffStops: it ends when it is no longer listened to, at the first error,
// and at what List refuses.
func TestDiffStops(t *testing.T) {
	s := newStore()
	links := linksNamed(t, 3000)
	a, b := mustBuild(t, links[:2000], 0, s.sink).CID, mustBuild(t, links[1000:], 0, s.sink).CID
	n := 0
	for _, err := range Diff(t.Context(), s, a, b) {
		if n++; err != nil || n > 7 {
			t.Fatal(n, err)
		}
		if n == 7 {
			break
		}
	}
	var last error
	fail := func(g Getter, old, new cid.Cid) error {
		errs := 0
		for _, last = range Diff(t.Context(), g, old, new) {
			if last != nil {
				errs++
			}
		}
		if errs != 1 {
			t.Errorf("%d errors", errs)
		}
		return last
	}
	gone := errors.New("gone")
	denied := newStore()
	denied.blks = s.blks
	denied.deny = func(c cid.Cid) error {
		if denied.gets > 20 {
			return gone
		}
		return nil
	}
	if err := fail(denied, a, b); !errors.Is(err, gone) {
		t.Errorf("a block is gone: %v", err)
	}

	l := links[0]
	wrong, _, err := writeShard([]child{{slot: slotAt(Hash(l.Name), 0) + 1, link: l.pb()}}, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	empty, _, err := writeShard(nil, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	below, _, err := writeShard([]child{{slot: 3, sub: true, link: pbLink{cid: empty.KeyString()}}}, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	basic := mustBuild(t, links[:3], DirLimit, s.sink).CID
	hidden, _, err := writeShard([]child{{slot: 3, sub: true, link: pbLink{cid: basic.KeyString()}}}, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	file, err := AddBytes([]byte("no directory"), s.sink)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]cid.Cid{
		"a name in a wrong slot": wrong, "an empty shard below": below,
		"a basic directory for a shard": hidden, "a file": file.CID,
	} {
		for _, with := range []cid.Cid{cid.Undef, a, basic} {
			if err := fail(s, with, c); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %v", what, err)
			}
			if err := fail(s, c, with); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// FuzzDiff holds Diff to the sets: a byte puts one of 64 names into the old set,
// the new set or both, half of them deep in one another's shards; the first says
// of which form the directories are.
func FuzzDiff(f *testing.F) {
	names := deepNames(32)
	for i := range 32 {
		names = append(names, fmt.Sprint("name-", i))
	}
	f.Add([]byte{0, 1, 2, 3, 0x41, 0x82, 0xc3})
	f.Add([]byte{1, 10, 0x4b, 0x8c, 0xcd, 14, 15})
	f.Add([]byte{2, 0x40, 0x41, 0x82, 0x83})
	f.Fuzz(func(t *testing.T, moves []byte) {
		if len(moves) == 0 || len(moves) > 256 {
			return
		}
		sets := [2]map[string]Link{{}, {}}
		for i, m := range moves[1:] {
			l := linkNamed(t, names[m&63])
			switch m >> 6 {
			case 0:
				sets[0][l.Name], sets[1][l.Name] = l, l
			case 1:
				sets[0][l.Name] = l
			case 2:
				sets[1][l.Name] = l
			case 3:
				sets[0][l.Name] = l
				l.Tsize = uint64(i)
				sets[1][l.Name] = l
			}
		}
		s := newStore()
		var dirs [2]cid.Cid
		for i, set := range sets {
			limit := 0
			if moves[0]>>i&1 == 1 {
				limit = DirLimit
			}
			dirs[i] = mustBuild(t, slices.Collect(maps.Values(set)), limit, s.sink).CID
		}
		checkDiff(t, s, dirs[0], dirs[1], sets[0], sets[1])
	})
}

// TestBeyond: a walk visits what is new and nothing that is shared, and passes
// over what it is told to.
func TestBeyond(t *testing.T) {
	s := newStore()
	links := linksNamed(t, 2000)
	for i := range links {
		ref, err := AddBytes([]byte(links[i].Name), s.sink)
		if err != nil {
			t.Fatal(err)
		}
		links[i].CID, links[i].Tsize = ref.CID, ref.Tsize
	}
	old := mustBuild(t, links, 0, s.sink).CID
	file, err := AddBytes([]byte("new"), s.sink)
	if err != nil {
		t.Fatal(err)
	}
	links[7].CID = file.CID
	new := mustBuild(t, links, 0, s.sink).CID
	visit := func(g Getter, old cid.Cid) map[cid.Cid]bool {
		seen := map[cid.Cid]bool{}
		for b, err := range Beyond(t.Context(), g, old, new) {
			if err != nil {
				t.Fatal(err)
			}
			seen[b.Cid()] = true
		}
		return seen
	}
	olds, news := map[string]cid.Cid{}, map[string]cid.Cid{}
	shardsOf(t, s, old, "", olds)
	shardsOf(t, s, new, "", news)
	want := map[cid.Cid]bool{file.CID: true}
	for path, c := range news {
		if olds[path] != c {
			want[c] = true
		}
	}
	if got := visit(s, old); !maps.Equal(got, want) {
		t.Errorf("%d blocks, want %d", len(got), len(want))
	}
	if got := visit(s, new); len(got) != 0 {
		t.Errorf("%d blocks beyond itself", len(got))
	}
	if got := visit(s, cid.Undef); len(got) != len(news)+len(links) {
		t.Errorf("%d blocks of all, want %d", len(got), len(news)+len(links))
	}
	s.deny = func(c cid.Cid) error {
		switch c {
		case old:
			return errors.New("gone")
		case file.CID:
			return ErrSkipBlock
		}
		return nil
	}
	if got := visit(s, old); got[file.CID] || !got[new] || len(got) != len(news)+len(links)-1 {
		t.Errorf("%d blocks without the old one", len(got))
	}
	s.deny = func(c cid.Cid) error {
		if c == file.CID {
			return errors.New("gone")
		}
		return nil
	}
	var last error
	for _, last = range Beyond(t.Context(), s, cid.Undef, new) {
	}
	if last == nil {
		t.Error("a block is gone, and nobody says so")
	}
	for range Beyond(t.Context(), s, cid.Undef, new) {
		break
	}
}
