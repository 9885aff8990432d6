package unixfs

import (
	"context"
	"fmt"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// open gives a directory block's entries and the shards below it.
func open(at shardAt, blk blocks.Block) ([]Link, []*visit[shardAt], error) {
	n, d, err := decodeUnixFS(blk)
	if err != nil {
		return nil, nil, err
	}
	if at.depth == 0 && d.kind == typeDirectory {
		if err := checkBasic(n); err != nil {
			return nil, nil, fmt.Errorf("decode %s: %w", blk.Cid(), err)
		}
		links, err := n.decodedLinks()
		return links, nil, err
	}
	cs, err := decodeShard(n, d)
	if err != nil {
		return nil, nil, fmt.Errorf("decode %s: %w", blk.Cid(), err)
	}
	// Without this a few blocks could keep a reader busy for ever: an empty shard
	// fits in every place, one with a name in one alone.
	if at.depth > 0 && len(cs) == 0 {
		return nil, nil, fmt.Errorf("decode %s: %w: an empty shard below the root", blk.Cid(), ErrMalformed)
	}
	if at.depth == hashLen-1 && slices.ContainsFunc(cs, func(c child) bool { return c.sub }) {
		return nil, nil, fmt.Errorf("decode %s: %w: more than %d levels", blk.Cid(), ErrMalformed, hashLen)
	}
	var links []Link
	var below []*visit[shardAt]
	shift := 56 - 8*at.depth
	for _, c := range cs {
		l, err := c.link.link()
		if err != nil {
			return nil, nil, fmt.Errorf("decode %s: %w: %w", blk.Cid(), ErrMalformed, err)
		}
		prefix := at.prefix | uint64(c.slot)<<shift
		if c.sub {
			below = append(below, &visit[shardAt]{cid: l.CID, what: shardAt{at.depth + 1, prefix}})
			continue
		}
		if Hash(l.Name)>>shift != prefix>>shift {
			return nil, nil, fmt.Errorf("decode %s: %w: %q does not belong there", blk.Cid(), ErrMalformed, l.Name)
		}
		links = append(links, l)
	}
	return links, below, nil
}

// loadShard reads a HAMT shard.
func loadShard(ctx context.Context, g Getter, c cid.Cid) ([]child, error) {
	blk, err := get(ctx, g, c)
	if err != nil {
		return nil, err
	}
	n, d, err := decodeUnixFS(blk)
	if err != nil {
		return nil, err
	}
	cs, err := decodeShard(n, d)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", c, err)
	}
	return cs, nil
}
