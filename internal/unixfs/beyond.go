package unixfs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// ErrSkipBlock is what a Getter returns to Beyond for a block that is to be passed
// over, with all below it.
var ErrSkipBlock = errors.New("skip this block")

// Beyond yields the blocks of new, a file or directory, parents before their
// children, without what it shares with old, of which cid.Undef is nothing: its
// work grows with the difference. Each link is held against those of the old
// block in the same place. An old block that cannot be had costs only the short
// cut. A block that stands in two places may come twice; what is had already, and
// all below it, does not come. It ends at the first error, g's or ErrMalformed.
func Beyond(ctx context.Context, g Getter, old, new cid.Cid, had ...cid.Cid) iter.Seq2[blocks.Block, error] {
	return func(yield func(blocks.Block, error) bool) {
		b := beyond{ctx, g, had, yield}
		if _, err := b.walk(old, new); err != nil {
			yield(nil, fmt.Errorf("walk %s: %w", new, err))
		}
	}
}

type beyond struct {
	ctx   context.Context
	g     Getter
	had   []cid.Cid
	yield func(blocks.Block, error) bool
}

// walk is false once the caller has had enough.
func (b beyond) walk(old, new cid.Cid) (bool, error) {
	if old == new || slices.Contains(b.had, new) {
		return true, nil
	}
	if err := b.ctx.Err(); err != nil {
		return false, err
	}
	blk, err := get(b.ctx, b.g, new)
	if errors.Is(err, ErrSkipBlock) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	links, err := linksOf(blk)
	if err != nil {
		return false, err
	}
	if !b.yield(blk, nil) {
		return false, nil
	}
	shared, byName := map[cid.Cid]bool{}, map[string]cid.Cid{}
	if old.Defined() && len(links) > 0 {
		if was, err := get(b.ctx, b.g, old); err == nil {
			before, err := linksOf(was)
			if err != nil {
				return false, err
			}
			for _, l := range before {
				shared[l.CID], byName[l.Name] = true, l.CID
			}
		}
	}
	for _, l := range links {
		if shared[l.CID] {
			continue
		}
		if more, err := b.walk(byName[l.Name], l.CID); !more || err != nil {
			return more, err
		}
	}
	return true, nil
}
