package ipfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

// holder tells what a node holds, without asking the network.
type holder interface {
	Has(ctx context.Context, c cid.Cid) (bool, error)
	Get(ctx context.Context, c cid.Cid) (blocks.Block, error)
}

// localBlocks are what a node holds.
type localBlocks struct{ n Node }

func (l localBlocks) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return l.n.Local(ctx, c)
}

func (l localBlocks) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := l.n.Local(ctx, c)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// whole checks that every block below root is held, without descending into
// what root shares with old, which was whole before: its work grows with the
// change. A missing block is reported as ErrNotFound.
func whole(ctx context.Context, h holder, old, root cid.Cid) error {
	w := wholeness{h: h, seen: map[string]struct{}{}}
	return w.diff(ctx, old, root)
}

type wholeness struct {
	h    holder
	seen map[string]struct{} // multihashes of nodes already found whole, at most maxSeen
}

// maxSeen bounds the nodes that a walk remembers, to some 150 MiB. One that it
// forgot is walked again.
const maxSeen = 1 << 20

// diff descends into links of root that old's node does not have, each beside
// the old link of the same name where there is one.
func (w *wholeness) diff(ctx context.Context, old, root cid.Cid) error {
	if old.Defined() && old.Equals(root) {
		return nil
	}
	if _, ok := w.seen[string(root.Hash())]; ok {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	links, err := w.links(ctx, root)
	if err != nil {
		return err
	}
	byName := map[string]cid.Cid{}
	held := map[cid.Cid]struct{}{}
	if old.Defined() && len(links) > 0 {
		// An old node that is gone only costs the short cut.
		before, err := w.links(ctx, old)
		if err == nil {
			for _, l := range before {
				byName[l.Name] = l.Cid
				held[l.Cid] = struct{}{}
			}
		}
	}
	for _, l := range links {
		if _, ok := held[l.Cid]; ok {
			continue
		}
		if err := w.diff(ctx, byName[l.Name], l.Cid); err != nil {
			return err
		}
	}
	if root.Prefix().Codec != cid.Raw {
		if len(w.seen) >= maxSeen {
			clear(w.seen)
		}
		w.seen[string(root.Hash())] = struct{}{}
	}
	return nil
}

// links returns the links of a held node; a raw leaf has none and is not read.
func (w *wholeness) links(ctx context.Context, c cid.Cid) ([]*ipld.Link, error) {
	switch c.Prefix().Codec {
	case cid.Raw:
		held, err := w.h.Has(ctx, c)
		if err == nil && !held {
			err = fmt.Errorf("block %s: %w", c, ErrNotFound)
		}
		return nil, err
	case cid.DagProtobuf:
		b, err := w.h.Get(ctx, c)
		if ipld.IsNotFound(err) {
			return nil, fmt.Errorf("block %s: %w", c, ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
		n, err := merkledag.DecodeProtobuf(b.RawData())
		if err != nil {
			return nil, fmt.Errorf("block %s: %w", c, err)
		}
		return n.Links(), nil
	default:
		return nil, fmt.Errorf("block %s: codec %#x is not UnixFS", c, c.Prefix().Codec)
	}
}
