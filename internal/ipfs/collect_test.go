package ipfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
)

// clock is a time that tests move, in seconds since 1970.
type clock struct{ atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(c.Load(), 0) }

func (c *clock) pass(d time.Duration) { c.Add(int64(d / time.Second)) }

// TestCollect: what nothing keeps goes with the second collection that finds it
// so, a day later; what is pinned or held, with all below it, stays. Asked of the
// node itself, and over its socket.
func TestCollect(t *testing.T) {
	t.Parallel()
	for _, socket := range []bool{false, true} {
		t.Run(fmt.Sprint("socket=", socket), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			own := newEmbedded(t)
			var at clock
			own.blocks.now = at.now
			own.blocks.cars.limit = 100_000
			var n interface {
				Node
				Collector
			} = own
			if socket {
				n = overSocket(t, own)
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			var kept, loose []blocks.Block
			for i := range uint64(12) {
				kept = append(kept, randomLeaf(i, int(10+3000*i))) // on both sides of separateFrom
				loose = append(loose, randomLeaf(100+i, int(10+6000*i)))
			}
			old := dir(append(kept[:4:4], loose[5])...)
			pinned := dir(kept[:8]...)
			absent := randomLeaf(200, 10)
			held := dir(append(kept[8:12:12], absent)...) // with a hole
			kept = append(kept, pinned, held)
			loose = append(loose, old)
			must(n.Put(ctx, slices.Concat(kept, loose)))
			must(n.Pin(ctx, "a", cid.Undef, old.Cid()))
			must(n.Pin(ctx, "a", old.Cid(), pinned.Cid()))
			must(n.Unpin(ctx, "a", old.Cid()))
			must(n.Hold(ctx, "b", []cid.Cid{held.Cid(), absent.Cid()}))
			must(n.Hold(ctx, "b", []cid.Cid{old.Cid()}))
			must(n.Unhold(ctx, "b", []cid.Cid{old.Cid()}))
			here := func(blks []blocks.Block) (n int) {
				t.Helper()
				for _, b := range blks {
					ok, err := own.blocks.Has(ctx, b.Cid())
					must(err)
					if ok {
						n++
					}
				}
				return n
			}
			collect := func(want Collected) {
				t.Helper()
				seen := map[string]bool{}
				got, err := n.Collect(ctx, func(stage string, done, total int) {
					if seen[stage] = true; done > total {
						t.Errorf("%s: %d of %d", stage, done, total)
					}
				})
				must(err)
				if socket {
					want.Blocks, want.Loose = got.Blocks, got.Loose // and directories of its own
				}
				if want.Freed == 0 && got.Files > 0 { // as large as files happen to be
					want.Files, want.Freed = got.Files, got.Freed
				}
				if got != want || !seen["marked"] && !socket || !seen["looked at"] && !socket {
					t.Errorf("%+v, want %+v; %v", got, want, seen)
				}
			}
			collect(Collected{Blocks: len(kept) + len(loose), Loose: len(loose)})
			at.pass(looseGrace - time.Second)
			collect(Collected{Blocks: len(kept) + len(loose), Loose: len(loose)})
			if here(loose) != len(loose) {
				t.Fatal("something went within the grace")
			}
			// What comes back, or is looked for, stays.
			must(n.Put(ctx, loose[10:11]))
			if _, err := n.Local(ctx, loose[9].Cid()); err != nil {
				t.Fatal(err)
			}
			at.pass(time.Second)
			removed, size := 0, 0
			for i, b := range loose {
				if i != 9 && i != 10 {
					removed, size = removed+1, size+len(b.RawData())
				}
			}
			before := diskOf(t, own)
			if !socket {
				collect(Collected{Blocks: len(kept) + 2, Loose: 2, Removed: removed, Bytes: int64(size)})
			} else if c, err := n.Collect(ctx, nil); err != nil || c.Removed < removed || c.Loose < 2 {
				t.Errorf("%+v, %v", c, err)
			}
			if h, l := here(kept), here(loose); h != len(kept) || l != 2 {
				t.Errorf("%d of %d kept, %d loose", h, len(kept), l)
			}
			for _, b := range kept {
				if got, err := n.Local(ctx, b.Cid()); err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
					t.Error(err)
				}
			}
			if after := diskOf(t, own); after >= before-150_000 {
				t.Errorf("CAR files had %d bytes, have %d", before, after)
			}
		})
	}
	t.Run("Kubo", func(t *testing.T) {
		if _, err := newKubo(t, kubod.Start(t)).Collect(t.Context(), nil); !errors.Is(err, ErrKuboCollects) {
			t.Error(err)
		}
	})
}

// diskOf is how many bytes a node's CAR files have.
func diskOf(t *testing.T, n *Embedded) (size int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(n.Dir(), blocksDir, "cars"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		size += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// TestCollectEnds: one collection at a time, and it ends with its context, after
// which another does its work.
func TestCollectEnds(t *testing.T) {
	t.Parallel()
	n := newEmbedded(t)
	if err := n.Put(t.Context(), []blocks.Block{randomLeaf(1, 10)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := n.Collect(ctx, func(string, int, int) {
		if _, err := n.Collect(t.Context(), nil); !errors.Is(err, ErrCollecting) {
			t.Errorf("two at a time: %v", err)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's end", err)
	}
	if c, err := n.Collect(t.Context(), nil); err != nil || c.Loose != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestCollectCorrupt: below a node that cannot be read nothing is known, so
// nothing is removed.
func TestCollectCorrupt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t, vfs.NewMem())
	var at clock
	s.now = at.now
	a, b := randomLeaf(1, 10), randomLeaf(2, 10)
	root := dir(a)
	if err := errors.Join(s.PutMany(ctx, []blocks.Block{a, b, root}), s.pin("x", root.Cid())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.collect(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.setSync(blockKey(root.Cid()), []byte("rotten")); err != nil {
		t.Fatal(err)
	}
	at.pass(looseGrace)
	if _, err := s.collect(ctx, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	for _, leaf := range []blocks.Block{a, b} {
		if held, err := s.Has(ctx, leaf.Cid()); err != nil || !held {
			t.Errorf("%s went: %v", leaf.Cid(), err)
		}
	}
	if err := s.Put(ctx, root); err != nil { // heals it
		t.Fatal(err)
	}
	if c, err := s.collect(ctx, nil); err != nil || c.Removed != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestCollectRandomly compares random puts, pins, holds, looks, restarts and
// collections with what must be there.
func TestCollectRandomly(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := mrand.New(mrand.NewPCG(seed, 7))
			m := newModel(t, rng)
			for range 400 {
				m.step(rng)
			}
			m.collect()
			m.at.pass(looseGrace)
			m.collect()
			kept := m.kept()
			for h := range m.present {
				if !kept[h] {
					t.Errorf("%s is garbage and stays", m.all[h].Cid())
				}
			}
			if m.removed == 0 || m.files == 0 || m.pinned == 0 {
				t.Errorf("%d blocks removed, %d files, %d pins: the test tried nothing", m.removed, m.files, m.pinned)
			}
		})
	}
}

// model is a store, and what should be in it.
type model struct {
	t    *testing.T
	disk *vfs.MemFS
	s    *store
	at   clock

	all     map[string]blocks.Block // by multihash
	order   []blocks.Block          // children first
	below   map[string][]blocks.Block
	present map[string]bool
	wanted  map[string]time.Time // when it was put or looked for
	pins    map[string][]cid.Cid
	holds   map[string][]cid.Cid

	removed, files, pinned int
}

func newModel(t *testing.T, rng *mrand.Rand) *model {
	m := &model{t: t, disk: vfs.NewCrashableMem(), all: map[string]blocks.Block{}, below: map[string][]blocks.Block{},
		present: map[string]bool{}, wanted: map[string]time.Time{}, pins: map[string][]cid.Cid{}, holds: map[string][]cid.Cid{}}
	for i := range uint64(30) {
		size := 10 + rng.IntN(3000)
		if i%2 == 0 {
			size += separateFrom
		}
		m.order = append(m.order, randomLeaf(1000+i, size))
	}
	for range 20 {
		var children []blocks.Block
		for range 1 + rng.IntN(5) {
			children = append(children, m.order[rng.IntN(len(m.order))])
		}
		d := dir(children...)
		m.order = append(m.order, d)
		m.below[hash(d)] = children
	}
	for _, b := range m.order {
		m.all[hash(b)] = b
	}
	m.open()
	return m
}

func hash(b blocks.Block) string { return string(b.Cid().Hash()) }

func (m *model) open() {
	m.s = testStore(m.t, m.disk)
	m.s.now = m.at.now
	m.s.cars.limit = 60_000
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// reach adds what is there at and below b, and reports whether it is whole.
func (m *model) reach(b blocks.Block, into map[string]bool) bool {
	if !m.present[hash(b)] {
		return false
	}
	into[hash(b)] = true
	whole := true
	for _, c := range m.below[hash(b)] {
		whole = m.reach(c, into) && whole
	}
	return whole
}

func (m *model) kept() map[string]bool {
	kept := map[string]bool{}
	for _, roots := range []map[string][]cid.Cid{m.pins, m.holds} {
		for _, cs := range roots {
			for _, c := range cs {
				m.reach(m.all[string(c.Hash())], kept)
			}
		}
	}
	return kept
}

func (m *model) step(rng *mrand.Rand) {
	m.t.Helper()
	ctx := m.t.Context()
	b := m.order[rng.IntN(len(m.order))]
	label := []string{"a", "b", "a/b"}[rng.IntN(3)]
	drop := func(all map[string][]cid.Cid, f func(c cid.Cid) error) {
		if len(all[label]) > 0 {
			c := all[label][rng.IntN(len(all[label]))]
			m.must(f(c))
			all[label] = slices.DeleteFunc(all[label], c.Equals)
		}
	}
	switch rng.IntN(12) {
	case 0, 1, 2:
		var put []blocks.Block
		for range 1 + rng.IntN(8) {
			put = append(put, m.order[rng.IntN(len(m.order))])
		}
		m.must(m.s.PutMany(ctx, put))
		for _, b := range put {
			m.present[hash(b)], m.wanted[hash(b)] = true, m.at.now()
		}
	case 3, 4:
		near := cid.Undef
		if pins := m.pins[label]; len(pins) > 0 {
			near = pins[rng.IntN(len(pins))]
		}
		below := map[string]bool{}
		whole := m.reach(b, below)
		n := &Embedded{blocks: m.s}
		switch err := n.Pin(ctx, label, near, b.Cid()); {
		case whole && err == nil:
			m.pinned++
			m.pins[label] = append(m.pins[label], b.Cid())
		case whole || !errors.Is(err, ErrNotFound):
			m.t.Fatalf("pin, whole %v: %v", whole, err)
		}
	case 5:
		drop(m.pins, func(c cid.Cid) error { return m.s.unpin(label, c) })
	case 6:
		m.must(m.s.hold(strings.ReplaceAll(label, "/", ""), []cid.Cid{b.Cid()}))
		m.holds[label] = append(m.holds[label], b.Cid())
	case 7:
		drop(m.holds, func(c cid.Cid) error { return m.s.unhold(strings.ReplaceAll(label, "/", ""), []cid.Cid{c}) })
	case 8:
		_, err := (&Embedded{blocks: m.s}).Local(ctx, b.Cid())
		if m.present[hash(b)] != (err == nil) {
			m.t.Fatalf("look for a block, present %v: %v", m.present[hash(b)], err)
		}
		if err == nil {
			m.wanted[hash(b)] = m.at.now()
		}
	case 9:
		m.must(m.s.Sync())
		m.disk = m.disk.CrashClone(vfs.CrashCloneCfg{})
		m.open()
	default:
		m.at.pass(time.Duration(rng.IntN(60)) * time.Hour / 3)
		m.collect()
	}
}

// collect collects and compares: nothing went that must stay, all that stays can
// be read.
func (m *model) collect() {
	m.t.Helper()
	ctx := m.t.Context()
	kept := m.kept()
	c, err := m.s.collect(ctx, nil)
	m.must(err)
	m.removed += c.Removed
	m.files += c.Files
	gone := 0
	for h := range m.present {
		b := m.all[h]
		got, err := m.s.Get(ctx, b.Cid())
		switch {
		case err == nil && bytes.Equal(got.RawData(), b.RawData()):
			continue
		case !ipld.IsNotFound(err):
			m.t.Fatalf("block %s: %v", b.Cid(), err)
		case kept[h]:
			m.t.Fatalf("%s is kept and went", b.Cid())
		case m.at.now().Sub(m.wanted[h]) < looseGrace:
			m.t.Fatalf("%s was wanted %s ago and went", b.Cid(), m.at.now().Sub(m.wanted[h]))
		}
		gone++
		delete(m.present, h)
	}
	if gone != c.Removed {
		m.t.Fatalf("%d blocks went, %d are said to have", gone, c.Removed)
	}
}

// TestCollectExpects: a root that comes when a collection has marked all that
// there was, and is about to remove, keeps what is below it.
func TestCollectExpects(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t, vfs.NewMem())
	var at clock
	s.now = at.now
	held, pinned, other := randomLeaf(1, 10), randomLeaf(2, 30_000), randomLeaf(3, 10)
	if err := s.PutMany(ctx, []blocks.Block{held, pinned, other, dir(held), dir(pinned)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.collect(ctx, nil); err != nil {
		t.Fatal(err)
	}
	at.pass(looseGrace)
	came := 0
	s.fault = func(step string) error {
		if came++; step == "marked" && came == 1 {
			return errors.Join(s.hold("x", []cid.Cid{dir(held).Cid()}), (&Embedded{blocks: s}).Pin(ctx, "y", cid.Undef, dir(pinned).Cid()))
		}
		return nil
	}
	if c, err := s.collect(ctx, nil); err != nil || c.Removed != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, b := range []blocks.Block{held, pinned, dir(held), dir(pinned)} {
		if _, err := s.Get(ctx, b.Cid()); err != nil {
			t.Error(err)
		}
	}
}

// prompt is a file system on whose disk a removal is at once.
type prompt struct{ vfs.FS }

func (p prompt) Remove(name string) error {
	if err := p.FS.Remove(name); err != nil {
		return err
	}
	d, err := p.OpenDir(p.PathDir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// TestCollectPowerCuts: power is cut between every two steps of collections.
// Afterwards all that is pinned can be read, what is said to be held is, what
// comes back is stored, and a later collection does the work.
func TestCollectPowerCuts(t *testing.T) {
	t.Parallel()
	var kept, loose []blocks.Block
	for i := range uint64(20) {
		kept = append(kept, randomLeaf(i, 100+int(i%2)*20_000))
		loose = append(loose, randomLeaf(100+i, 100+int(i%3)*20_000))
	}
	root := dir(kept...)
	kept = append(kept, root)
	var dead []blocks.Block // files of their own
	for i := range uint64(10) {
		dead = append(dead, randomLeaf(200+i, 20_000))
	}
	ctx := t.Context()
	// begin makes a store with garbage that a first collection has noted.
	begin := func(t *testing.T, disk *vfs.MemFS) (*store, *clock) {
		s := testStore(t, prompt{disk})
		at := new(clock)
		s.now, s.cars.limit = at.now, 100_000
		if err := s.PutMany(ctx, dead); err != nil {
			t.Fatal(err)
		}
		for i := range loose { // so that each file has both
			if err := s.PutMany(ctx, []blocks.Block{kept[i], loose[i], loose[(i+7)%20]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.Put(ctx, root), s.pin("x", root.Cid())); err != nil {
			t.Fatal(err)
		}
		return s, at
	}
	collections := func(s *store, at *clock) error {
		for range 3 {
			if _, err := s.collect(ctx, nil); err != nil {
				return err
			}
			at.pass(looseGrace)
		}
		return nil
	}
	var steps []string
	s, at := begin(t, vfs.NewCrashableMem())
	s.fault = func(step string) error { steps = append(steps, step); return nil }
	if err := collections(s, at); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"noted", "removed", "synced", "file removed", "moved", "moves synced"} {
		if !slices.Contains(steps, want) {
			t.Errorf("step %q was not passed: %v", want, steps)
		}
	}
	for i, step := range steps {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%d %s seed=%d", i, step, seed), func(t *testing.T) {
				t.Parallel()
				disk := vfs.NewCrashableMem()
				s, at := begin(t, disk)
				var after *vfs.MemFS
				n := 0
				s.fault = func(string) error {
					if n++; n <= i {
						return nil
					}
					cfg := vfs.CrashCloneCfg{}
					if seed > 0 { // some of what was not synced made it all the same
						cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: mrand.New(mrand.NewPCG(seed, uint64(i)))}
					}
					after = disk.CrashClone(cfg)
					return context.Canceled
				}
				if err := collections(s, at); !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				s = testStore(t, after)
				s.now, s.cars.limit = at.now, 100_000
				check := func() {
					t.Helper()
					for _, b := range kept {
						if _, err := s.Get(ctx, b.Cid()); err != nil {
							t.Errorf("what is pinned: %v", err)
						}
					}
				}
				check()
				for _, b := range slices.Concat(loose, dead) {
					held, err := s.Has(ctx, b.Cid())
					if err != nil {
						t.Error(err)
					}
					if _, err := s.Get(ctx, b.Cid()); held && err != nil || !held && !ipld.IsNotFound(err) {
						t.Errorf("said to be held: %v, read: %v", held, err)
					}
				}
				back := loose[int(seed)%len(loose):][:5]
				if err := errors.Join(s.PutMany(ctx, back), s.hold("y", []cid.Cid{back[0].Cid()}), s.Sync()); err != nil {
					t.Fatal(err)
				}
				if err := collections(s, at); err != nil {
					t.Fatal(err)
				}
				check()
				for _, b := range slices.Concat(loose, dead) {
					if held, err := s.Has(ctx, b.Cid()); err != nil || held != (hash(b) == hash(back[0])) {
						t.Errorf("in the end %v, %v", held, err)
					}
				}
			})
		}
	}
}

// TestCollectBeside: while collections run one after the other, each a day later,
// whoever holds and puts, or puts and pins, finds all of it; and nobody reads
// anything but a block or its absence.
func TestCollectBeside(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	n := newEmbedded(t)
	var at clock
	n.blocks.now = at.now
	n.blocks.cars.limit = 300_000
	dags := make([][]blocks.Block, 12) // leaves first
	for i := range dags {
		var leaves []blocks.Block
		for j := range 6 {
			leaves = append(leaves, randomLeaf(uint64(3000+10*(i%8)+j), 50+(j%2)*30_000))
		}
		inner := dir(leaves...)
		dags[i] = append(leaves, inner, dir(inner, randomLeaf(uint64(4000+i), 20)), randomLeaf(uint64(4000+i), 20))
	}
	root := func(dag []blocks.Block) cid.Cid { return dag[len(dag)-2].Cid() }
	check := func(who string, dag []blocks.Block) {
		t.Helper()
		for _, b := range dag {
			if got, err := n.blocks.Get(ctx, b.Cid()); err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
				t.Errorf("%s: %v", who, err)
			}
		}
	}
	var work, beside sync.WaitGroup
	var collections, removed, files atomic.Int64
	beside.Go(func() {
		for ctx.Err() == nil {
			at.pass(looseGrace)
			c, err := n.Collect(ctx, nil)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			collections.Add(1)
			removed.Add(int64(c.Removed))
			files.Add(int64(c.Files))
		}
	})
	beside.Go(func() { // as bitswap and the gateway read
		for i := 0; ctx.Err() == nil; i++ {
			dag := dags[i%len(dags)]
			for _, b := range dag {
				if _, err := n.blocks.Get(ctx, b.Cid()); err != nil && !ipld.IsNotFound(err) && ctx.Err() == nil {
					t.Errorf("a reader: %v", err)
				}
			}
		}
	})
	const rounds = 60
	work.Go(func() {
		rng := mrand.New(mrand.NewPCG(1, 1))
		for range rounds {
			dag := dags[rng.IntN(len(dags))]
			label := "held"
			if err := n.Hold(ctx, label, []cid.Cid{root(dag)}); err != nil {
				t.Error(err)
			}
			// Days pass in no time here, so parents come first where it takes long.
			batches := [][]blocks.Block{dag}
			if rng.IntN(2) == 0 {
				batches = batches[:0]
				for _, b := range slices.Backward(dag) {
					batches = append(batches, []blocks.Block{b})
				}
				batches[0], batches[1] = batches[1], batches[0] // the root, then its last leaf
			}
			for _, batch := range batches {
				if err := n.Put(ctx, batch); err != nil {
					t.Error(err)
				}
			}
			was := collections.Load()
			for collections.Load() < was+2 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			check("held, then put", dag)
			if err := n.Unhold(ctx, label, []cid.Cid{root(dag)}); err != nil {
				t.Error(err)
			}
		}
	})
	work.Go(func() {
		rng := mrand.New(mrand.NewPCG(2, 2))
		near := cid.Undef
		for range rounds {
			dag := dags[rng.IntN(len(dags))]
			for {
				if err := n.Put(ctx, dag); err != nil {
					t.Error(err)
				}
				// What was put may be gone before it is pinned.
				err := n.Pin(ctx, "pinned", near, root(dag))
				if err == nil {
					break
				}
				if !errors.Is(err, ErrNotFound) {
					t.Error(err)
					return
				}
			}
			if near.Defined() && !near.Equals(root(dag)) {
				if err := n.Unpin(ctx, "pinned", near); err != nil {
					t.Error(err)
				}
			}
			near = root(dag)
			was := collections.Load()
			for collections.Load() < was+2 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			check("put, then pinned", dag)
		}
	})
	work.Wait()
	stop()
	beside.Wait()
	if removed.Load() == 0 || files.Load() == 0 {
		t.Errorf("%d blocks removed, %d files: the test tried nothing", removed.Load(), files.Load())
	}
	t.Logf("%d collections, %d blocks removed, %d files", collections.Load(), removed.Load(), files.Load())
}
