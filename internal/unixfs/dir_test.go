package unixfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// Two valid npm names with one 64-bit hash, 0x6bd5996107bb55c9.
const (
	collideA = "x2sectmad7mumj"
	collideB = "xd53ovnfc5dl4l"
)

func mustBuild(t testing.TB, links []Link, limit int, sink Sink) Ref {
	t.Helper()
	ref, over, err := BuildDir(links, limit, sink)
	if err != nil || len(over) != 0 {
		t.Fatalf("BuildDir of %d links: overflow %v, err %v", len(links), over, err)
	}
	return ref
}

func TestHAMTEqualsBoxo(t *testing.T) {
	links := linksNamed(t, 20_000)
	for _, n := range []int{0, 1, 2, 3, 255, 256, 257, 1000, 20_000} {
		some := slices.Clone(links[:n])
		rand.Shuffle(n, func(i, j int) { some[i], some[j] = some[j], some[i] })
		if got, want := mustBuild(t, some, 0, newStore().sink), boxoHAMT(t, some); got != want {
			t.Errorf("%d links: %v, boxo %v", n, got, want)
		}
	}
}

// deepNames gives names in pairs that share at least 20 bits of hash.
func deepNames(n int) []string {
	seen := map[uint64]string{}
	var out []string
	for i := 0; len(out) < n; i++ {
		name := fmt.Sprintf("deep%d", i)
		key := Hash(name) >> 44
		if other, ok := seen[key]; ok {
			out = append(out, other, name)
			delete(seen, key)
			continue
		}
		seen[key] = name
	}
	return out
}

func TestDeepShardsEqualBoxoAndCollapse(t *testing.T) {
	names := deepNames(40)
	var links []Link
	for _, name := range names {
		links = append(links, linkNamed(t, name))
	}
	s := newStore()
	ref := mustBuild(t, links, 0, s.sink)
	if want := boxoHAMT(t, links); ref != want {
		t.Fatalf("%v, boxo %v", ref, want)
	}
	// One of each pair goes: its chain of shards must go with it.
	var rest, gone []Link
	for i, l := range links {
		if i%2 == 1 {
			rest = append(rest, l)
		} else {
			gone = append(gone, Link{Name: l.Name})
		}
	}
	if ref = mustEdit(t, s, ref, gone...).Ref; ref != mustBuild(t, rest, 0, s.sink) {
		t.Errorf("after deletes %v, not what the rest gives", ref)
	}
}

// TestDirEqualsBoxoAroundLimit grows and shrinks io.Directory over the edge.
func TestDirEqualsBoxoAroundLimit(t *testing.T) {
	links := linksNamed(t, 620)
	d, err := uio.NewDirectory(mdtest.Mock(), uio.WithCidBuilder(uio.UnixFS_v1_2025.CidBuilder()),
		uio.WithSizeEstimationMode(uio.SizeEstimationBlock))
	if err != nil {
		t.Fatal(err)
	}
	// Through io.Directory itself: it alone switches between the two forms.
	dyn := &uio.DynamicDirectory{Directory: d}
	if inner, ok := d.(*uio.DynamicDirectory); ok {
		dyn = inner
	}
	dyn.SetHAMTShardingSize(DirLimit)
	forms := map[bool]int{}
	check := func(n int) {
		t.Helper()
		nd, err := dyn.GetNode()
		if err != nil {
			t.Fatal(err)
		}
		want := Ref{CID: nd.Cid(), Tsize: sizeOf(t, nd)}
		if got := mustBuild(t, links[:n], DirLimit, newStore().sink); got != want {
			t.Errorf("%d links: %v, boxo %v", n, got, want)
		}
		_, basic := dyn.Directory.(*uio.BasicDirectory)
		forms[basic]++
	}
	check(0)
	for i, l := range links {
		if err := dyn.AddChild(t.Context(), l.Name, stub{link: l}); err != nil {
			t.Fatal(err)
		}
		if i < 3 || i > 500 {
			check(i + 1)
		}
	}
	if forms[true] < 20 || forms[false] < 20 {
		t.Fatalf("the samples lie on one side of the limit: %v", forms)
	}
	for i := len(links) - 1; i >= 500; i-- {
		if err := dyn.RemoveChild(t.Context(), links[i].Name); err != nil {
			t.Fatal(err)
		}
		check(i)
	}
}

func TestExactlyAtLimitIsBasic(t *testing.T) {
	links := linksNamed(t, 100)
	s := newStore()
	ref := mustBuild(t, links, 1<<30, s.sink)
	size := len(s.blks[ref.CID].RawData())
	if got := mustBuild(t, links, size, newStore().sink); got != ref {
		t.Error("a block of exactly the limit is not basic")
	}
	if got, want := mustBuild(t, links, size-1, newStore().sink), boxoHAMT(t, links); got != want {
		t.Error("a block one byte over the limit is no HAMT")
	}
}

func TestCollisionOverflow(t *testing.T) {
	if Hash(collideA) != Hash(collideB) || Hash(collideA) != 0x6bd5996107bb55c9 {
		t.Fatalf("hashes %x, %x", Hash(collideA), Hash(collideB))
	}
	kept := append(linksNamed(t, 300), linkNamed(t, collideA))
	links := append(slices.Clone(kept), linkNamed(t, collideB))
	for _, limit := range []int{0, DirLimit, 1 << 30} {
		want := mustBuild(t, kept, limit, newStore().sink)
		for range 3 {
			rand.Shuffle(len(links), func(i, j int) { links[i], links[j] = links[j], links[i] })
			got, over, err := BuildDir(links, limit, newStore().sink)
			if err != nil || got != want {
				t.Fatalf("limit %d: %v, %v; want %v", limit, got, err, want)
			}
			if len(over) != 1 || over[0] != linkNamed(t, collideB) {
				t.Fatalf("limit %d: overflow %v", limit, over)
			}
		}
	}
}

// TestReservedKeepsItsPlace orders a group that shares Reserved's hash by hand:
// no second name with that hash is known.
func TestReservedKeepsItsPlace(t *testing.T) {
	a, r := linkNamed(t, "0"), linkNamed(t, Reserved)
	es := []entry{{hash: 7, link: &a}, {hash: 7, link: &r}}
	slices.SortFunc(es, entry.compare)
	kept, over, err := settle(es)
	if err != nil || len(kept) != 1 || kept[0].link.Name != Reserved || len(over) != 1 {
		t.Errorf("kept %v, overflow %v, %v", kept, over, err)
	}
}

func TestBuildDirRefuses(t *testing.T) {
	good := linkNamed(t, "a")
	for name, links := range map[string][]Link{
		"twice":  {good, good},
		"empty":  {{Name: "", CID: good.CID}},
		"path":   {{Name: "a/b", CID: good.CID}},
		"no cid": {{Name: "a"}},
		"tsize":  {{Name: "a", CID: good.CID, Tsize: 1 << 63}},
	} {
		for _, limit := range []int{0, DirLimit} {
			if _, _, err := BuildDir(links, limit, newStore().sink); err == nil {
				t.Errorf("%s, limit %d: no error", name, limit)
			}
		}
	}
	boom := errors.New("boom")
	if _, _, err := BuildDir(linksNamed(t, 300), 0, func(b blocks.Block) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("the sink's error is lost: %v", err)
	}
}

func TestBasicDir(t *testing.T) {
	s := newStore()
	links := []Link{linkNamed(t, collideB), linkNamed(t, collideA)}
	ref, err := BasicDir(links, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if got, err := Lookup(t.Context(), s, ref.CID, l.Name); err != nil || got != l {
			t.Errorf("%v, %v", got, err)
		}
	}
	empty, err := BasicDir(nil, s.sink)
	if want := "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"; err != nil || empty.CID.String() != want {
		t.Errorf("empty directory %v, %v", empty, err)
	}
	if _, err := BasicDir(linksNamed(t, 20_000), s.sink); !errors.Is(err, ErrTooLarge) {
		t.Errorf("20,000 entries in one block: %v", err)
	}
}

func TestLookupListPath(t *testing.T) {
	links := linksNamed(t, 3000)
	for _, limit := range []int{0, 1 << 30} {
		s := newStore()
		ref := mustBuild(t, links, limit, s.sink)
		for _, l := range links[:200] {
			s.gets = 0
			got, err := Lookup(t.Context(), s, ref.CID, l.Name)
			if err != nil || got != l {
				t.Fatalf("Lookup %s: %v, %v", l.Name, got, err)
			}
			if s.gets > 4 {
				t.Errorf("Lookup %s read %d blocks", l.Name, s.gets)
			}
		}
		for _, name := range []string{"absent", "", "package-", "00package-1", "package-1/x"} {
			if _, err := Lookup(t.Context(), s, ref.CID, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("Lookup %q: %v", name, err)
			}
		}
		var got []Link
		for l, err := range List(t.Context(), s, ref.CID) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l)
		}
		byName := func(a, b Link) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }
		want := slices.SortedFunc(slices.Values(links), byName)
		slices.SortFunc(got, byName)
		if !slices.Equal(got, want) {
			t.Errorf("List gave %d links, want %d", len(got), len(want))
		}
		for range List(t.Context(), s, ref.CID) {
			break // ends and awaits the fetches
		}
		top := mustBuild(t, []Link{{Name: "dir", CID: ref.CID, Tsize: ref.Tsize}}, DirLimit, s.sink)
		l, err := Path(t.Context(), s, top.CID, "dir", "package-7")
		if err != nil || l != links[7] {
			t.Errorf("Path: %v, %v", l, err)
		}
		if _, err := Path(t.Context(), s, top.CID, "dir", "none", "x"); !errors.Is(err, ErrNotFound) {
			t.Errorf("Path: %v", err)
		}
	}
}

func TestListReportsAMissingShard(t *testing.T) {
	s := newStore()
	ref := mustBuild(t, linksNamed(t, 3000), 0, s.sink)
	gone := errors.New("gone")
	denied := 0
	s.deny = func(c cid.Cid) error {
		if c != ref.CID && c.KeyString()[10]%16 == 3 {
			denied++
			return gone
		}
		return nil
	}
	var last error
	for _, err := range List(t.Context(), s, ref.CID) {
		last = err
	}
	if denied == 0 || !errors.Is(last, gone) {
		t.Errorf("denied %d, err %v", denied, last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.deny = func(cid.Cid) error { return ctx.Err() }
	for _, err := range List(ctx, s, ref.CID) {
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("cancelled: %v", last)
	}
}

// TestHostileShards plants shards that lie about their names.
func TestHostileShards(t *testing.T) {
	s := newStore()
	l := linkNamed(t, "package-1")
	wrong := child{slot: slotAt(Hash(l.Name), 0) + 1, link: l.pb()}
	c, _, err := writeShard([]child{wrong}, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range List(t.Context(), s, c) {
		last = err
	}
	if !errors.Is(last, ErrMalformed) {
		t.Errorf("a name in a wrong slot: %v", last)
	}
	// A shard can never hold itself, but a chain may be deeper than the hash.
	for range hashLen + 1 {
		if c, _, err = writeShard([]child{{slot: slotAt(Hash(l.Name), 0), sub: true, link: pbLink{cid: c.KeyString()}}}, s.sink); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range List(t.Context(), s, c) {
		last = err
	}
	if !errors.Is(last, ErrMalformed) {
		t.Errorf("too deep: %v", last)
	}
	if _, err := Lookup(t.Context(), s, c, l.Name); err == nil {
		t.Error("Lookup in a chain too deep")
	}
	// Eight blocks, and in them 256^7 places without a name.
	if c, _, err = writeShard(nil, s.sink); err != nil {
		t.Fatal(err)
	}
	for range hashLen - 1 {
		cs := make([]child, Fanout)
		for i := range cs {
			cs[i] = child{slot: byte(i), sub: true, link: pbLink{cid: c.KeyString()}}
		}
		if c, _, err = writeShard(cs, s.sink); err != nil {
			t.Fatal(err)
		}
	}
	for _, last = range List(t.Context(), s, c) {
	}
	if !errors.Is(last, ErrMalformed) {
		t.Errorf("places without a name: %v", last)
	}
	raw, err := newBlock(cid.Raw, []byte("no directory"))
	if err != nil {
		t.Fatal(err)
	}
	s.sink(raw)
	if _, err := Lookup(t.Context(), s, raw.Cid(), "x"); !errors.Is(err, ErrMalformed) {
		t.Errorf("Lookup in a file: %v", err)
	}
}

func BenchmarkBuildDir(b *testing.B) {
	links := linksNamed(b, 100_000)
	b.ResetTimer()
	for b.Loop() {
		if _, _, err := BuildDir(links, 0, func(blocks.Block) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
