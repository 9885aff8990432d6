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
		return n.links, nil, nil
	}
	cs, err := decodeShard(n, d)
	if err != nil {
		return nil, nil, fmt.Errorf("decode %s: %w", blk.Cid(), err)
	}
	if at.depth == hashLen-1 && slices.ContainsFunc(cs, func(c child) bool { return c.sub }) {
		return nil, nil, fmt.Errorf("decode %s: %w: more than %d levels", blk.Cid(), ErrMalformed, hashLen)
	}
	var links []Link
	var below []*visit[shardAt]
	shift := 56 - 8*at.depth
	for _, c := range cs {
		prefix := at.prefix | uint64(c.slot)<<shift
		if c.sub {
			below = append(below, &visit[shardAt]{cid: c.link.CID, what: shardAt{at.depth + 1, prefix}})
			continue
		}
		if Hash(c.link.Name)>>shift != prefix>>shift {
			return nil, nil, fmt.Errorf("decode %s: %w: %q does not belong there", blk.Cid(), ErrMalformed, c.link.Name)
		}
		links = append(links, c.link)
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

// With returns the HAMT dir with l added, or put in place of the entry of that
// name: what BuildDir with limit 0 makes of the larger set. It reads and writes
// one block a level. An entry of another name with the same hash is an ErrName.
func With(ctx context.Context, g Getter, dir cid.Cid, l Link, sink Sink) (Ref, error) {
	c, tsize, err := with(ctx, g, dir, l, Hash(l.Name), 0, sink)
	if err != nil {
		return Ref{}, fmt.Errorf("add %q to %s: %w", l.Name, dir, err)
	}
	return Ref{CID: c, Tsize: tsize}, nil
}

func with(ctx context.Context, g Getter, dir cid.Cid, l Link, hash uint64, depth int, sink Sink) (cid.Cid, uint64, error) {
	if depth == hashLen {
		return cid.Undef, 0, fmt.Errorf("%w: more than %d levels", ErrMalformed, hashLen)
	}
	cs, err := loadShard(ctx, g, dir)
	if err != nil {
		return cid.Undef, 0, err
	}
	slot := slotAt(hash, depth)
	i, ok := findSlot(cs, slot)
	switch {
	case !ok:
		cs = slices.Insert(cs, i, child{slot: slot, link: l})
	case cs[i].sub:
		c, tsize, err := with(ctx, g, cs[i].link.CID, l, hash, depth+1, sink)
		if err != nil {
			return cid.Undef, 0, err
		}
		cs[i].link = Link{CID: c, Tsize: tsize}
	case cs[i].link.Name == l.Name:
		cs[i].link = l
	default: // two entries for one slot become a shard below
		old := cs[i].link
		es := []entry{{Hash(old.Name), &old}, {hash, &l}}
		if es[0].hash == es[1].hash {
			return cid.Undef, 0, fmt.Errorf("%w: %q has the same hash", ErrName, old.Name)
		}
		slices.SortFunc(es, entry.compare)
		b := builder{sink: sink}
		c, tsize, err := b.shard(es, depth+1)
		if err != nil {
			return cid.Undef, 0, err
		}
		cs[i] = child{slot: slot, sub: true, link: Link{CID: c, Tsize: tsize}}
	}
	return writeShard(cs, sink)
}

// Without returns the HAMT dir without name: what BuildDir with limit 0 makes
// of the smaller set. It reads and writes one block a level, and returns
// ErrNotFound where dir has no such entry.
func Without(ctx context.Context, g Getter, dir cid.Cid, name string, sink Sink) (Ref, error) {
	c, err := without(ctx, g, dir, name, 0, sink)
	if err != nil {
		return Ref{}, fmt.Errorf("remove %q from %s: %w", name, dir, err)
	}
	return Ref{CID: c.link.CID, Tsize: c.link.Tsize}, nil
}

// without returns what stands for the shard dir in its parent: the shard
// without name, or below the root its only entry when no more is left.
func without(ctx context.Context, g Getter, dir cid.Cid, name string, depth int, sink Sink) (child, error) {
	if depth == hashLen {
		return child{}, fmt.Errorf("%w: more than %d levels", ErrMalformed, hashLen)
	}
	cs, err := loadShard(ctx, g, dir)
	if err != nil {
		return child{}, err
	}
	i, ok := findSlot(cs, slotAt(Hash(name), depth))
	switch {
	case !ok || !cs[i].sub && cs[i].link.Name != name:
		return child{}, ErrNotFound
	case cs[i].sub:
		c, err := without(ctx, g, cs[i].link.CID, name, depth+1, sink)
		if err != nil {
			return child{}, err
		}
		cs[i].sub, cs[i].link = c.sub, c.link
	default:
		cs = slices.Delete(cs, i, i+1)
	}
	if depth > 0 && len(cs) == 0 {
		return child{}, fmt.Errorf("%w: %s held one entry alone", ErrMalformed, dir)
	}
	if depth > 0 && len(cs) == 1 && !cs[0].sub {
		return child{link: cs[0].link}, nil
	}
	c, tsize, err := writeShard(cs, sink)
	return child{sub: true, link: Link{CID: c, Tsize: tsize}}, err
}
