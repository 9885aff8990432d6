package ipfs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	mrand "math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

func cidsOf(blks []blocks.Block) (cs []cid.Cid) {
	for _, b := range blks {
		cs = append(cs, b.Cid())
	}
	return cs
}

// TestEvict: what is named goes at once, on both sides of separateFrom and covered by
// a sync or not; what a pin or a hold has below it stays, also where that came while
// the eviction ran; what nobody named stays.
func TestEvict(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newEmbedded(t)
	n.blocks.cars.limit = 100_000
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var pinned, held, late, victims, others []blocks.Block
	for i := range uint64(8) {
		size := 100 + int(i)*8000
		pinned = append(pinned, randomLeaf(i, size))
		held = append(held, randomLeaf(100+i, size))
		late = append(late, randomLeaf(200+i, size))
		victims = append(victims, randomLeaf(300+i, size))
		others = append(others, randomLeaf(400+i, size))
	}
	pin, hold, fresh := dir(pinned...), dir(held...), dir(late...)
	must(n.Hold(ctx, "ledger", []cid.Cid{hold.Cid()}))
	must(n.Put(ctx, slices.Concat(pinned, held, late, others, []blocks.Block{pin, hold, fresh})))
	must(n.Pin(ctx, "registry", cid.Undef, pin.Cid()))
	must(n.Put(ctx, victims)) // in no sync
	all := cidsOf(slices.Concat(pinned, held, victims))
	asked := 0
	c, err := n.Evict(ctx, iter.Seq[[]cid.Cid](func(yield func([]cid.Cid) bool) {
		for batch := range slices.Chunk(all, 5) {
			asked++
			if !yield(batch) {
				return
			}
		}
		must(n.Hold(ctx, "mirror", []cid.Cid{fresh.Cid()}))
		yield(cidsOf(late))
	}))
	must(err)
	if c.Removed != len(victims) || asked != 5 {
		t.Errorf("%+v after %d batches: %d victims", c, asked, len(victims))
	}
	for name, blks := range map[string][]blocks.Block{"pinned": pinned, "held": held, "held late": late, "another's": others, "roots": {pin, hold, fresh}} {
		for _, b := range blks {
			if _, err := n.Local(ctx, b.Cid()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, b := range victims {
		if _, err := n.Local(ctx, b.Cid()); !errors.Is(err, ErrNotFound) {
			t.Errorf("a victim: %v", err)
		}
	}
	// It comes back like any other.
	must(n.Put(ctx, victims))
	for _, b := range victims {
		if _, err := n.Local(ctx, b.Cid()); err != nil {
			t.Error(err)
		}
	}
}

// TestEvictPowerCuts: power is cut between every two steps. What is pinned is there,
// and what was gone when the next batch was asked for does not come back.
func TestEvictPowerCuts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var kept, victims []blocks.Block
	for i := range uint64(12) {
		kept = append(kept, randomLeaf(i, 100+int(i%2)*20_000))
		victims = append(victims, randomLeaf(100+i, 100+int(i%3)*20_000))
	}
	root := dir(kept...)
	kept = append(kept, root)
	run := func(t *testing.T, disk *vfs.MemFS, fault func(string) error) (gone []blocks.Block, err error) {
		s := testStore(t, prompt{disk})
		s.cars.limit = 100_000
		for i := range victims {
			if err := s.PutMany(ctx, []blocks.Block{victims[i], kept[i]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.Put(ctx, root), s.pin("x", root.Cid())); err != nil {
			t.Fatal(err)
		}
		s.fault = fault
		_, err = s.evict(ctx, func(yield func([]cid.Cid) bool) {
			for batch := range slices.Chunk(victims, 4) {
				if !yield(cidsOf(append(slices.Clone(batch), kept[0]))) {
					return
				}
				gone = append(gone, batch...)
			}
		})
		return gone, err
	}
	var steps []string
	if gone, err := run(t, vfs.NewCrashableMem(), func(step string) error { steps = append(steps, step); return nil }); err != nil || len(gone) != len(victims) {
		t.Fatal(len(gone), err)
	}
	for _, want := range []string{"marked", "removed", "synced", "file removed"} {
		if !slices.Contains(steps, want) {
			t.Errorf("step %q was not passed: %v", want, steps)
		}
	}
	for i, step := range steps {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%d %s seed=%d", i, step, seed), func(t *testing.T) {
				disk := vfs.NewCrashableMem()
				var after *vfs.MemFS
				n := 0
				gone, err := run(t, disk, func(string) error {
					if n++; n <= i {
						return nil
					}
					cfg := vfs.CrashCloneCfg{}
					if seed > 0 {
						cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: mrand.New(mrand.NewPCG(seed, uint64(i)))}
					}
					after = disk.CrashClone(cfg)
					return context.Canceled
				})
				if !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				s := testStore(t, after)
				for _, b := range kept {
					if _, err := s.Get(ctx, b.Cid()); err != nil {
						t.Errorf("what is pinned: %v", err)
					}
				}
				for _, b := range gone {
					if held, err := s.Has(ctx, b.Cid()); held || err != nil {
						t.Errorf("what was gone is back: %v", err)
					}
				}
				for _, b := range victims {
					if _, err := s.Get(ctx, b.Cid()); err != nil && !ipld.IsNotFound(err) {
						t.Error(err)
					}
				}
			})
		}
	}
}
