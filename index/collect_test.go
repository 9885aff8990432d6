package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// past is an index with what each of its releases was.
type past struct {
	ix       *Index
	node     *node // of snapshots
	rng      *rand.Rand
	now      map[npm.Name]Entry
	lists    map[uint64]map[npm.Name]Entry
	releases []Release
	day      int
}

func newPast(t testing.TB, ix *Index, seed uint64) *past {
	p := &past{ix: ix, node: newNode(), rng: rand.New(rand.NewPCG(seed, 1)), now: map[npm.Name]Entry{}, lists: map[uint64]map[npm.Name]Entry{}}
	p.release(t, Batch{})
	return p
}

func (p *past) release(t testing.TB, b Batch) Release {
	t.Helper()
	b.Now = epoch.AddDate(0, 0, p.day)
	r, changed, err := p.ix.Apply(t.Context(), b)
	if err != nil || !changed {
		t.Fatalf("Apply: changed %v, %v", changed, err)
	}
	change(p.now, b)
	p.lists[r.Number] = maps.Clone(p.now)
	p.releases = append(p.releases, r)
	return r
}

// some are changes with the blocks of their directories. There are few revisions
// of each package, so that content comes back.
func (p *past) some(t testing.TB, n int) (b Batch) {
	for range n {
		name := fmt.Sprintf("p%d", p.rng.IntN(300))
		switch p.rng.IntN(4) {
		case 0:
			name = fmt.Sprintf("@s%d/q%d", p.rng.IntN(6), p.rng.IntN(40))
		case 1:
			name = []string{collideA, collideB, "@s1/" + collideA, "@s1/" + collideB, collideName, collideScope + "/a"}[p.rng.IntN(6)]
		}
		if p.rng.IntN(4) == 0 {
			b.Changes = append(b.Changes, drop(name))
			continue
		}
		e, blks := shownEntry(t, name, p.rng.IntN(3), []string{"", "a"}[p.rng.IntN(2)])
		b.Changes, b.Blocks = append(b.Changes, Change{Entry: e}), append(b.Blocks, blks...)
	}
	// What makes it another list than any before.
	e, blks := shownEntry(t, "always", len(p.releases), "")
	b.Changes, b.Blocks = append(b.Changes, Change{Entry: e}), append(b.Blocks, blks...)
	return b
}

// snapshot makes the next release show one of the list as it stands.
func (p *past) snapshot(t testing.TB) Snapshot {
	t.Helper()
	s, err := p.ix.Snapshot(t.Context(), p.node.put)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reachable are the index's blocks that releases have.
func (p *past) reachable(t testing.TB, from uint64) map[cid.Cid]bool {
	t.Helper()
	all := map[cid.Cid]bool{}
	for _, r := range p.releases {
		if r.Number < from {
			continue
		}
		for b, err := range unixfs.Beyond(t.Context(), held{p.ix.db}, cid.Undef, r.Root) {
			if err != nil {
				t.Fatal(err)
			}
			all[b.Cid()] = true
		}
		_, err := frontOf(t.Context(), p.ix, r.Root, func(b blocks.Block) error {
			if _, err := p.ix.Get(t.Context(), b.Cid()); err != nil {
				return err
			}
			all[b.Cid()] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// holds holds the index to what it must be: all blocks of the releases from keep
// on, every list of the past, and an index that is sound.
func (p *past) holds(t testing.TB, want map[cid.Cid]bool) {
	t.Helper()
	if got := storedBlocks(t, p.ix); !maps.Equal(got, want) {
		missing, more := 0, 0
		for c := range want {
			if !got[c] {
				missing++
			}
		}
		for c := range got {
			if !want[c] {
				more++
			}
		}
		t.Errorf("%d blocks, want %d: %d are missing, %d too many", len(got), len(want), missing, more)
	}
	p.tells(t)
}

// tells holds every list that the index tells of to what it was.
func (p *past) tells(t testing.TB) {
	t.Helper()
	for i, r := range p.releases {
		if len(p.releases) > 20 && i > 0 && p.rng.IntN(len(p.releases)) > 10 {
			continue // some of many
		}
		got := map[npm.Name]Entry{}
		last := npm.Name("")
		for e, err := range p.ix.ListAt(t.Context(), r.Number, p.node) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Name <= last {
				t.Fatalf("%s after %s", e.Name, last)
			}
			got[e.Name], last = e, e.Name
		}
		want := map[npm.Name]Entry{}
		for name, e := range p.lists[r.Number] {
			want[name] = Entry{Name: name, CID: e.CID, Tsize: e.Tsize}
		}
		if !maps.Equal(got, want) {
			t.Errorf("list of release %d: %d entries, want %d", r.Number, len(got), len(want))
		}
	}
	for range 5 {
		a, b := p.releases[p.rng.IntN(len(p.releases))].Number, p.releases[p.rng.IntN(len(p.releases))].Number
		got := map[npm.Name]Difference{}
		for d, err := range p.ix.Between(t.Context(), a, b) {
			if err != nil {
				t.Fatal(err)
			}
			got[d.New.Name] = d
		}
		if want := differing(p.lists[a], p.lists[b]); !maps.Equal(got, want) {
			t.Errorf("%d differences between %d and %d, want %d", len(got), a, b, len(want))
		}
		for name := range p.lists[b] {
			want, listed := p.lists[a][name]
			got, err := p.ix.EntryAt(t.Context(), a, name)
			if listed && (err != nil || got.CID != want.CID || got.Tsize != want.Tsize) || !listed && !errors.Is(err, ErrNotFound) {
				t.Errorf("%s at %d: %+v, %v, want %+v", name, a, got, err, want)
			}
			break
		}
	}
	if err := p.ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func (p *past) collect(t testing.TB, keep uint64) Collected {
	t.Helper()
	c, err := p.ix.Collect(t.Context(), keep, nil)
	if err != nil {
		t.Fatal(err)
	}
	if from, err := p.ix.Oldest(); err != nil || from != keep || c.Oldest != keep {
		t.Errorf("the oldest is %d, %v, %+v, want %d", from, err, c, keep)
	}
	return c
}

// TestCollect makes a long history in which content comes back, some releases
// after many pages, and collects now and then: what the releases that are left
// have is there, nothing else is, and every list can still be told.
func TestCollect(t *testing.T) {
	p := newPast(t, newIndexFor(t), 1)
	p.release(t, p.some(t, 400))
	keep, went := uint64(1), 0
	for i := range 60 {
		p.day = i
		b := p.some(t, 1+p.rng.IntN(9))
		if p.rng.IntN(3) == 0 {
			page := b
			page.More, b = true, p.some(t, 3)
			if _, _, err := p.ix.Apply(t.Context(), page); err != nil {
				t.Fatal(err)
			}
			change(p.now, page)
		} else if p.rng.IntN(4) == 0 {
			b.Snapshot = p.snapshot(t)
		}
		r := p.release(t, b)
		if p.rng.IntN(6) == 0 {
			keep = min(keep+p.rng.Uint64N(12), r.Number)
			want := p.reachable(t, keep)
			c := p.collect(t, keep)
			went += c.Blocks
			p.holds(t, want)
		}
	}
	if went == 0 || keep < 20 {
		t.Fatalf("%d blocks went, the oldest release is %d", went, keep)
	}
	if c := p.collect(t, keep); c.Blocks > 0 && keep == p.releases[len(p.releases)-1].Number {
		t.Errorf("a second time takes %d blocks", c.Blocks)
	}
	newest := p.releases[len(p.releases)-1].Number
	want := p.reachable(t, newest)
	p.collect(t, newest)
	p.holds(t, want)
	for _, number := range []uint64{newest - 1, newest + 1, 0} {
		if _, err := p.ix.Collect(t.Context(), number, nil); !errors.Is(err, ErrNoRelease) {
			t.Errorf("Collect before release %d: %v", number, err)
		}
	}
}

// TestCollectLeavesWhatIsAhead collects between the pages of a build.
func TestCollectLeavesWhatIsAhead(t *testing.T) {
	p := newPast(t, newIndexFor(t), 2)
	p.release(t, p.some(t, 50))
	r := p.release(t, p.some(t, 50))
	want := p.reachable(t, r.Number)
	page := p.some(t, 50)
	page.More = true
	if _, _, err := p.ix.Apply(t.Context(), page); err != nil {
		t.Fatal(err)
	}
	for _, b := range page.Blocks {
		want[b.Cid()] = true
	}
	p.collect(t, r.Number)
	p.holds(t, want)
	change(p.now, page)
	last := p.release(t, p.some(t, 1))
	want = p.reachable(t, last.Number)
	for _, c := range page.Changes {
		if e, ok := p.now[c.Name]; ok && !want[e.CID] {
			t.Errorf("the directory of %s is gone", c.Name)
		}
	}
	p.collect(t, last.Number)
	p.holds(t, want)
}

// TestCollectBesideApply collects all the time while releases are made in which
// content comes back.
func TestCollectBesideApply(t *testing.T) {
	p := newPast(t, newIndexFor(t), 3)
	p.release(t, p.some(t, 300))
	ctx, stop := context.WithCancel(t.Context())
	rounds := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ctx.Err() == nil; rounds++ {
			r, err := p.ix.Head()
			if err == nil {
				_, err = p.ix.Collect(ctx, r.Number, nil)
			}
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	for range 60 {
		p.release(t, p.some(t, 1+p.rng.IntN(40)))
	}
	stop()
	wg.Wait()
	if rounds < 2 {
		t.Errorf("%d collections", rounds)
	}
	newest := p.releases[len(p.releases)-1].Number
	for name, e := range p.now {
		if _, err := unixfs.Path(t.Context(), p.ix, e.CID, TarballsName); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.collect(t, newest)
	p.tells(t)
}

// TestListAtBySnapshot has months go by: a list far back is told from the
// snapshot of its month, and from the newest list where that snapshot is lost or
// is another's.
func TestListAtBySnapshot(t *testing.T) {
	p := newPast(t, newIndexFor(t), 4)
	p.release(t, p.some(t, 300))
	for i := range 40 {
		p.day = 3 * i
		b := p.some(t, 4)
		if i%4 == 1 {
			b.Snapshot = p.snapshot(t)
		}
		p.release(t, b)
	}
	newest := p.releases[len(p.releases)-1].Number
	p.collect(t, newest)
	all, err := p.ix.Snapshots(t.Context())
	if err != nil || len(all) != 4 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	months := map[time.Month]bool{}
	for _, s := range all {
		r, err := p.ix.Release(s.Number)
		if err != nil || months[r.Created.Month()] {
			t.Errorf("%+v: %v %v", s, r.Created, err)
		}
		months[r.Created.Month()] = true
	}
	p.node.gets = 0
	p.tells(t)
	if p.node.gets == 0 {
		t.Error("no snapshot was read")
	}
	lost, other := all[0], all[1]
	delete(p.node.blks, lost.File.CID)
	wrong, err := p.ix.Snapshot(t.Context(), p.node.put)
	if err != nil {
		t.Fatal(err)
	}
	p.node.blks[other.File.CID] = p.node.blks[wrong.File.CID]
	p.tells(t)
}

// TestCollectPowerCuts fails the power before every write and sync of a
// collection. What comes back tells every list, has every block of the releases
// that stay, and can be collected again.
func TestCollectPowerCuts(t *testing.T) {
	disk := vfs.NewCrashableMem()
	var (
		mu   sync.Mutex
		cuts []*vfs.MemFS
		on   bool
	)
	rng := rand.New(rand.NewPCG(7, 8))
	fs := errorfs.Wrap(renaming{disk}, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpFilePreallocate {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if on {
			percent := []int{0, 50, 100}[len(cuts)%3]
			cuts = append(cuts, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
		}
		return nil
	}))
	o := memory(nil)
	o.FS, o.memTable, o.chunk = fs, 64<<10, 4<<10
	ix, err := Create("ix", o)
	if err != nil {
		t.Fatal(err)
	}
	p := newPast(t, ix, 5)
	p.release(t, p.some(t, 200))
	for i := range 9 {
		p.day = 9 * i
		b := p.some(t, 40)
		if i%3 == 0 {
			b.Snapshot = p.snapshot(t)
		}
		p.release(t, b)
	}
	keep := p.releases[len(p.releases)-3].Number
	want := p.reachable(t, keep)
	all := map[uint64]map[cid.Cid]bool{1: p.reachable(t, 1), keep: want}
	mu.Lock()
	on = true
	mu.Unlock()
	_, err = ix.Collect(t.Context(), keep, func(string, int) {
		mu.Lock()
		defer mu.Unlock()
		cuts = append(cuts, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng}))
	})
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	on = false
	mu.Unlock()
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	if len(cuts) < 20 {
		t.Fatalf("only %d cuts", len(cuts))
	}
	early := 0
	for i, cut := range cuts {
		if p.ix, err = Open("ix", memory(cut)); err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		from, err := p.ix.Oldest()
		if err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		got := storedBlocks(t, p.ix)
		if from != keep {
			early++
		}
		for c := range all[from] {
			if !got[c] {
				t.Errorf("cut %d, the oldest release is %d: block %s is gone", i, from, c)
			}
		}
		if i%10 == 0 {
			p.tells(t)
		}
		if _, err := p.ix.Collect(t.Context(), keep, nil); err != nil {
			t.Errorf("cut %d: %v", i, err)
		}
		if got := storedBlocks(t, p.ix); !maps.Equal(got, want) {
			t.Errorf("cut %d: %d blocks, want %d", i, len(got), len(want))
		}
		if err := p.ix.Check(t.Context()); err != nil {
			t.Errorf("cut %d: %v", i, err)
		}
		if err := p.ix.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d cuts, %d of them before a block could go", len(cuts), early)
	if early == 0 || early == len(cuts) {
		t.Errorf("%d of %d cuts came before a block could go", early, len(cuts))
	}
}

// TestCollectStopsAtDamage bends a block of the newest release.
func TestCollectStopsAtDamage(t *testing.T) {
	p := newPast(t, newIndexFor(t), 6)
	p.release(t, p.some(t, 100))
	r := p.release(t, p.some(t, 100))
	before := storedBlocks(t, p.ix)
	blk, err := p.ix.Get(t.Context(), r.List.Root)
	if err != nil {
		t.Fatal(err)
	}
	raw := slices.Clone(blk.RawData())
	raw[len(raw)/2] ^= 1
	if err := p.ix.db.Set(blockKey(r.List.Root), raw, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ix.Collect(t.Context(), r.Number, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Collect: %v", err)
	}
	if got := storedBlocks(t, p.ix); !maps.Equal(got, before) {
		t.Errorf("%d blocks of %d are left", len(got), len(before))
	}
}

// TestHistoryRows reads back what is written, and refuses anything else.
func TestHistoryRows(t *testing.T) {
	a, b := put(t, "a", 0).Entry, put(t, "a", 1).Entry
	a.Versions, b.Versions = 0, 0
	for _, d := range []Difference{{a, b}, {Entry{Name: "a"}, b}, {a, Entry{Name: "a"}}} {
		raw := encodeDifference(d)
		if got, err := decodeDifference("a", raw); err != nil || got != d {
			t.Errorf("%+v, %v; want %+v", got, err, d)
		}
		for n := range raw {
			if _, err := decodeDifference("a", raw[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d bytes of it: %v", n, err)
			}
		}
		if _, err := decodeDifference("a", append(raw, 0)); !errors.Is(err, ErrCorrupt) {
			t.Error("a byte more is taken")
		}
	}
}
