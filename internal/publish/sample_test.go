package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// below are all blocks of the node below root.
func (n *memNode) below(t testing.TB, root cid.Cid) (all []blocks.Block) {
	t.Helper()
	for b, err := range unixfs.Beyond(t.Context(), n, cid.Undef, root) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// A node that loses or spoils any block between the put and the sample is found
// out, nothing is signed, and the next run heals it; but for what the follower
// stored, which only the follower has.
func TestSampleReadBack(t *testing.T) {
	fill := func(w *world) map[string]bool {
		w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0")
		w.ledger.hold(t, "@scope/thing", []string{"2.0.0"}, "2.0.0")
		stored := map[string]bool{}
		for hash := range w.node.durable {
			stored[hash] = true
		}
		return stored
	}
	w := newWorld(t)
	fill(w)
	p, stop := w.start()
	root := w.publish(p).CID
	stop()
	healed, kept := 0, 0
	for _, b := range w.node.below(t, root) {
		for _, spoil := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s spoilt=%v", b.Cid(), spoil), func(t *testing.T) {
				w := newWorld(t)
				stored := fill(w)
				p, stop := w.start()
				defer stop()
				hash, fired := string(b.Cid().Hash()), false
				p.fault = func(step string) error {
					if step != "checkpoint" || fired {
						return nil
					}
					fired = true
					w.node.set(func() {
						if spoil {
							w.node.spoilt[hash] = true
						} else {
							delete(w.node.durable, hash)
						}
					})
					return nil
				}
				_, err := p.Publish(t.Context())
				if !fired || !errors.Is(err, ErrIncomplete) || !lost(err) || !strings.Contains(err.Error(), b.Cid().String()) {
					t.Fatalf("fired %v, %v", fired, err)
				}
				if got := w.ops(); got != "created" || len(w.node.records) != 0 {
					t.Errorf("journal: %s, records: %v", got, w.node.records)
				}
				if stored[hash] {
					kept++
					if _, err := p.Publish(t.Context()); !errors.Is(err, ErrIncomplete) {
						t.Errorf("the next run, without what the follower had stored: %v", err)
					}
					if err := w.node.Put(t.Context(), []blocks.Block{b}); err != nil { // it fetches it again
						t.Fatal(err)
					}
				} else {
					healed++
				}
				if r := w.publish(p); r.CID != root || w.best().Value != root {
					t.Errorf("the next run: %+v", r)
				}
			})
		}
	}
	if healed == 0 || kept == 0 {
		t.Errorf("%d healed, %d of the follower's", healed, kept)
	}
}

// What two releases share is not pushed with the second, and read back all the
// same where every reader begins: the overflow.
func TestSampleShared(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	defer stop()
	overflow := w.publish(p).Release.List.Overflow
	w.ledger.hold(t, "right-pad", []string{"1.0.0"}, "1.0.0")
	w.node.set(func() { delete(w.node.durable, string(overflow.Hash())) })
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), "the overflow") {
		t.Errorf("lost: %v", err)
	}
	if got := w.ops(); got != "created pinned intent record confirmed" {
		t.Errorf("journal: %s", got)
	}
	w.publish(p)
}

// What the pinned release had need not be known any more.
func TestSamplePinnedCollected(t *testing.T) {
	w := newWorld(t)
	for i := range samplePackages {
		w.ledger.hold(t, fmt.Sprint("pad-", i), []string{"1.0.0"}, "1.0.0")
	}
	p, stop := w.start()
	defer stop()
	r := w.publish(p).Release
	for _, c := range []struct {
		pinned cid.Cid
		want   int
	}{{cid.Undef, samplePackages}, {r.Root, 0}, {w.ledger.packages["pad-0"].Document.CID, samplePackages}} {
		if some, err := p.someChanged(t.Context(), c.pinned, r); err != nil || len(some) != c.want {
			t.Errorf("beside %s: %v, %v", c.pinned, some, err)
		}
	}
}

// A node that goes away meanwhile has lost nothing.
func TestSampleAway(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	defer stop()
	away := errors.New("away")
	p.fault = func(step string) error {
		if step == "checkpoint" {
			w.node.set(func() { w.node.failLocal = func() error { return away } })
		}
		return nil
	}
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrIncomplete) || !errors.Is(err, away) || lost(err) {
		t.Errorf("%v", err)
	}
	w.node.set(func() { w.node.failLocal = nil })
	p.fault = nil
	w.publish(p)
}

// Of a large release a bounded number of blocks is read, whatever has changed.
func TestSampleBounded(t *testing.T) {
	w := newWorld(t)
	versions := make([]string, 60)
	for i := range versions {
		versions[i] = fmt.Sprintf("1.0.%d", i)
	}
	for i := range 40 {
		w.ledger.hold(t, fmt.Sprintf("pad-%d", i), versions, versions...)
	}
	p, stop := w.start()
	defer stop()
	reads := 0
	count := func() error { reads++; return nil }
	p.fault = func(step string) error {
		w.node.set(func() {
			if w.node.failLocal = nil; step == "checkpoint" {
				w.node.failLocal = count
			}
		})
		return nil
	}
	w.publish(p)
	// Inner nodes of documents and tarballs are read on the way to their leaves.
	const most = 5 + sampleBlocks + samplePackages*(sampleFiles+3+sampleTarballs)
	if reads < sampleBlocks || reads > most {
		t.Errorf("%d blocks were read back, at most %d should be", reads, most)
	}
}

// Each has the same chance to be kept, and no more are kept than asked for.
func TestReservoir(t *testing.T) {
	count := [10]int{}
	for range 4000 {
		r := reservoir[int]{most: 3}
		for i := range count {
			r.offer(i)
		}
		if len(r.kept) != 3 {
			t.Fatalf("kept %v", r.kept)
		}
		for _, i := range r.kept {
			count[i]++
		}
	}
	for i, n := range count {
		if n < 1000 || n > 1400 { // 1200, with a deviation of 29
			t.Errorf("%d was kept %d times", i, n)
		}
	}
	few := reservoir[int]{most: 3}
	if few.offer(7); len(few.kept) != 1 || few.kept[0] != 7 {
		t.Errorf("of one: %v", few.kept)
	}
}

func BenchmarkReadBack(b *testing.B) {
	w := newWorld(b)
	for i := range 1000 {
		w.ledger.hold(b, fmt.Sprintf("pad-%d", i), []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	}
	p, stop := w.start()
	defer stop()
	r := w.publish(p).Release
	some := reservoir[cid.Cid]{most: sampleBlocks}
	for blk, err := range p.o.Index.Blocks(context.Background(), 0, r.Number) {
		if err != nil {
			b.Fatal(err)
		}
		some.offer(blk.Cid())
	}
	for b.Loop() {
		if _, err := p.readBack(context.Background(), cid.Undef, r, some.kept); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMendsWhatACollectionTook has a build cut short, and the node collect all that
// nothing pins or holds before the next run: that one cannot pin, and mends; the one
// after it publishes.
func TestMendsWhatACollectionTook(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	for i := range 400 { // so that the sample leaves most out
		w.ledger.hold(t, fmt.Sprintf("pad-%d", i), []string{"1.0.0", "1.1.0"}, "1.0.0")
	}
	if _, _, err := p.Build(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.node.collect(t, w.ledger)
	for range 3 {
		_, err := p.Publish(t.Context())
		if err == nil {
			break
		}
		if !errors.Is(err, ErrIncomplete) {
			t.Fatal(err)
		}
	}
	if r := w.publish(p); w.best().Value != r.CID || r.Packages != 401 {
		t.Errorf("%+v", r)
	}
}

// witness is another node that gets what ours has pinned, but for what it lacks.
type witness struct {
	w     *world
	lacks cid.Cid
	asked atomic.Int64
}

func (*witness) URL() string { return "http://gateway.example.test" }

func (o *witness) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	o.asked.Add(1)
	if c == o.lacks {
		return nil, ipfs.ErrNotFound
	}
	if len(o.w.node.pins) == 0 {
		return nil, errors.New("asked before anything was pinned")
	}
	return o.w.node.Local(ctx, c)
}

// What a witness cannot fetch is not published; and once it can, it is.
func TestWitness(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	other := &witness{w: w}
	p, stop := w.start(func(o *Options) { o.Witnesses = []Witness{other} })
	defer stop()
	release, _, err := p.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other.lacks = release.List.Root
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrUnseen) || !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), other.URL()) {
		t.Errorf("without the list's root: %v", err)
	}
	if got := w.ops(); got != "created" || len(w.node.records) != 0 {
		t.Errorf("journal: %s, records: %v", got, w.node.records)
	}
	other.lacks = cid.Undef
	if r := w.publish(p); r.CID != release.Root {
		t.Errorf("released %s, not %s", r.CID, release.Root)
	}
	asked := other.asked.Load()
	w.publish(p)
	if got := other.asked.Load(); got != asked {
		t.Errorf("a record that was put again asked the witness %d times", got-asked)
	}
}
