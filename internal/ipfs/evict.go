package ipfs

import (
	"context"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
)

// Evictor is a Node out of which single blocks go when its user's cache is full.
type Evictor interface {
	// Evict removes the blocks of each batch that victims yields, but for those that
	// a pin or a hold has below it. When it asks for the next batch, or returns nil,
	// the removal is durable. Each batch should be some thousand blocks at most. It may
	// run beside all else but Collect: ErrCollecting then.
	Evict(ctx context.Context, victims iter.Seq[[]cid.Cid]) (Collected, error)
}

var _ Evictor = (*Embedded)(nil)

// falseVictims is the share of victims that an eviction takes for kept, and so
// leaves to a later collection.
const falseVictims = 1e-6

// Evict implements Evictor. Its work is first a walk of all that is pinned and held,
// with some 4 bytes of memory a block, then what goes.
func (n *Embedded) Evict(ctx context.Context, victims iter.Seq[[]cid.Cid]) (Collected, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	c, err := n.blocks.evict(ctx, victims)
	if err != nil {
		return c, fmt.Errorf("evict blocks: %w", err)
	}
	return c, nil
}

// evict removes what victims yields and nothing keeps. The order is law:
//
//  1. The roots are marked, and all below them.
//  2. Each batch goes, synced, under removing: no Put is at work then, and roots
//     that came since 1 began are marked first.
//  3. CAR files are given back, as collect does it.
//
// A crash between any two leaves blocks that the next eviction is told of again,
// bytes that no place points to, and a file without places.
func (s *store) evict(ctx context.Context, victims iter.Seq[[]cid.Cid]) (c Collected, err error) {
	if !s.collecting.TryLock() {
		return c, ErrCollecting
	}
	defer s.collecting.Unlock()
	g, _, err := s.begin(falseVictims)
	if err != nil {
		return c, err
	}
	defer s.end()
	if err := g.mark(ctx, func(int) {}); err != nil {
		return c, err
	}
	for batch := range victims {
		for done := false; !done; {
			if err := ctx.Err(); err != nil {
				return c, err
			}
			if err := g.markFresh(ctx); err != nil {
				return c, err
			}
			if err := s.cover(batch); err != nil {
				return c, err
			}
			if err := s.step("marked"); err != nil {
				return c, err
			}
			if done, err = g.evict(batch, &c); err != nil {
				return c, err
			}
		}
	}
	return c, g.shrink(ctx, &c)
}

// cover makes a Sync where one of some blocks has a place that Pebble does not know
// yet: it could not be struck there.
func (s *store) cover(cs []cid.Cid) error {
	for _, c := range cs {
		if _, fresh := s.cars.uncovered(c.Hash()); fresh {
			return s.Sync()
		}
	}
	return nil
}

// evict removes those of some blocks that have no mark, durably, as removing does. What
// was put again just now stays.
func (g *collection) evict(cs []cid.Cid, c *Collected) (done bool, err error) {
	return g.removing(pebble.Sync, func(db *pebble.DB, batch *pebble.Batch) error {
		for _, victim := range cs {
			hash := victim.Hash()
			if _, fresh := g.s.cars.uncovered(hash); fresh || g.marks.HasTS(hash) {
				continue
			}
			if err := g.s.strike(db, batch, hash, c); err != nil {
				return err
			}
		}
		return nil
	})
}
