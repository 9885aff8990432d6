package unixfs

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// LinkChange is what two directories have under one name. Both links have the
// name; the one without a CID is that of a directory which has no such entry. So
// New is also the edit that leads from the old directory to the new, as Edit
// takes it.
type LinkChange struct{ Old, New Link }

// Diff yields the entries that differ between the directories old and new, each
// basic or HAMT, each name once and in no promised order; cid.Undef is an empty
// directory. It reads the shards that differ and no others: what both have in one
// place is never read. Of each directory it asks for up to dirAhead shards at
// once, and what it keeps grows with the depth of the shards, not with their
// number.
//
// It ends at the first error: ErrMalformed where List would find one in what is
// read.
func Diff(ctx context.Context, g Getter, old, new cid.Cid) iter.Seq2[LinkChange, error] {
	return func(yield func(LinkChange, error) bool) {
		w := newWalk[half](ctx, g, 2*dirAhead)
		defer w.close()
		stopped := false
		emit := func(c LinkChange) bool {
			stopped = !yield(c, nil)
			return !stopped
		}
		w.push(fork(shardAt{}, [2]side{{shard: old}, {shard: new}}))
		for {
			h, blk, ok, err := w.next()
			if !ok {
				return
			}
			if err == nil {
				err = ctx.Err() // which g may not mind
			}
			if err == nil {
				err = h.read(blk)
			}
			if err != nil {
				yield(LinkChange{}, fmt.Errorf("diff %s and %s: %w", text(old), text(new), err))
				return
			}
			if h.pair.unread > 0 {
				continue
			}
			below := h.pair.compare(emit)
			if stopped {
				return
			}
			w.push(below)
		}
	}
}

func text(c cid.Cid) string {
	if !c.Defined() {
		return "nothing"
	}
	return c.String()
}

// side is what a directory has in one place: a shard that was not read yet, or
// entries, sorted by compareHashes.
type side struct {
	shard cid.Cid
	links []Link
}

// pair is one place in both directories.
type pair struct {
	at     shardAt
	links  [2][]Link // sorted by compareHashes
	below  [2][]*visit[shardAt]
	unread int // shards of the two
}

// half is one side of a pair, for a shard that is to be read.
type half struct {
	*pair
	side int
}

// fork gives the visits to the shards of a place that differs.
func fork(at shardAt, sides [2]side) (vs []*visit[half]) {
	if sides[0].shard == sides[1].shard {
		return nil
	}
	p := &pair{at: at}
	for i, s := range sides {
		p.links[i] = s.links
		if s.shard.Defined() {
			p.unread++
			vs = append(vs, &visit[half]{cid: s.shard, what: half{p, i}})
		}
	}
	return vs
}

func (h half) read(blk blocks.Block) (err error) {
	h.unread--
	h.links[h.side], h.below[h.side], err = open(h.at, blk)
	if h.at.depth == 0 { // a basic directory is in the order of names
		h.links[h.side] = slices.SortedFunc(slices.Values(h.links[h.side]), compareHashes)
	}
	return err
}

// compare hands over the entries that differ and gives the visits to the shards
// that do.
func (p *pair) compare(emit func(LinkChange) bool) (vs []*visit[half]) {
	var slots [Fanout][2]side
	for i := range p.links {
		for rest := p.links[i]; len(rest) > 0; {
			slot, n := slotAt(Hash(rest[0].Name), p.at.depth), 1
			for n < len(rest) && slotAt(Hash(rest[n].Name), p.at.depth) == slot {
				n++
			}
			slots[slot][i].links = rest[:n]
			rest = rest[n:]
		}
		for _, v := range p.below[i] {
			slots[slotAt(v.what.prefix, p.at.depth)][i].shard = v.cid
		}
	}
	for slot := range slots {
		s := slots[slot]
		if s[0].shard.Defined() || s[1].shard.Defined() {
			at := shardAt{p.at.depth + 1, p.at.prefix | uint64(slot)<<(56-8*p.at.depth)}
			vs = append(vs, fork(at, s)...)
		} else if !compareLinks(s[0].links, s[1].links, emit) {
			return nil
		}
	}
	return vs
}

// compareLinks hands over what differs between entries, both sorted by
// compareHashes, until emit is false.
func compareLinks(old, new []Link, emit func(LinkChange) bool) bool {
	for len(old)+len(new) > 0 {
		var c LinkChange
		order := -1
		if len(old) == 0 {
			order = 1
		} else if len(new) > 0 {
			order = compareHashes(old[0], new[0])
		}
		if order <= 0 {
			c.Old, c.New.Name, old = old[0], old[0].Name, old[1:]
		}
		if order >= 0 {
			c.New, c.Old.Name, new = new[0], new[0].Name, new[1:]
		}
		if c.Old != c.New && !emit(c) {
			return false
		}
	}
	return true
}

func compareHashes(a, b Link) int {
	if a.Name == b.Name {
		return 0
	}
	return cmp.Or(cmp.Compare(Hash(a.Name), Hash(b.Name)), strings.Compare(a.Name, b.Name))
}
