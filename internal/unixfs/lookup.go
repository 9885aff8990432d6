package unixfs

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/ipfs/go-cid"
)

// dirAhead is how many shards List asks for at once.
const dirAhead = 32

// Lookup finds name in the directory dir, basic or HAMT, in at most one block
// per level. It returns ErrNotFound where there is none, ErrMalformed where dir
// is no directory of this format.
func Lookup(ctx context.Context, g Getter, dir cid.Cid, name string) (Link, error) {
	l, err := lookup(ctx, g, dir, Hash(name), func(other string) bool { return other == name })
	if err != nil {
		return Link{}, fmt.Errorf("look up %q in %s: %w", name, dir, err)
	}
	return l, nil
}

// Holder finds whose name in dir has that hash, as Lookup finds a name.
func Holder(ctx context.Context, g Getter, dir cid.Cid, hash uint64) (Link, error) {
	l, err := lookup(ctx, g, dir, hash, func(name string) bool { return Hash(name) == hash })
	if err != nil {
		return Link{}, fmt.Errorf("look up the hash %016x in %s: %w", hash, dir, err)
	}
	return l, nil
}

func lookup(ctx context.Context, g Getter, dir cid.Cid, hash uint64, is func(name string) bool) (Link, error) {
	for c, depth := dir, 0; depth < hashLen; depth++ {
		blk, err := get(ctx, g, c)
		if err != nil {
			return Link{}, err
		}
		n, d, err := decodeUnixFS(blk)
		if err != nil {
			return Link{}, err
		}
		if depth == 0 && d.kind == typeDirectory {
			if err := checkBasic(n); err != nil {
				return Link{}, fmt.Errorf("decode %s: %w", c, err)
			}
			for _, l := range n.links {
				if is(l.name) {
					return l.link()
				}
			}
			return Link{}, ErrNotFound
		}
		cs, err := decodeShard(n, d)
		if err != nil {
			return Link{}, fmt.Errorf("decode %s: %w", c, err)
		}
		i, ok := findSlot(cs, slotAt(hash, depth))
		if !ok || !cs[i].sub && !is(cs[i].link.name) {
			return Link{}, ErrNotFound
		}
		l, err := cs[i].link.link()
		if err != nil || !cs[i].sub {
			return l, err
		}
		c = l.CID
	}
	return Link{}, fmt.Errorf("%w: more than %d levels", ErrMalformed, hashLen)
}

// Basic gives the links of a basic directory, in the order of their names; basic is
// false for a HAMT. ErrMalformed where dir is no directory of this format.
func Basic(ctx context.Context, g Getter, dir cid.Cid) (links []Link, basic bool, err error) {
	blk, err := get(ctx, g, dir)
	if err != nil {
		return nil, false, err
	}
	n, d, err := decodeUnixFS(blk)
	switch {
	case err != nil:
		return nil, false, err
	case d.kind == typeHAMT:
		return nil, false, nil
	case d.kind != typeDirectory:
		err = fmt.Errorf("%w: not a directory", ErrMalformed)
	default:
		err = checkBasic(n)
	}
	if err == nil {
		links, err = n.decodedLinks()
	}
	if err != nil {
		return nil, false, fmt.Errorf("decode %s: %w", dir, err)
	}
	return links, true, nil
}

func findSlot(cs []child, slot byte) (int, bool) {
	for i := range cs {
		if cs[i].slot >= slot {
			return i, cs[i].slot == slot
		}
	}
	return len(cs), false
}

// checkBasic holds a basic directory to names that rise strictly.
func checkBasic(n node) error {
	for i, l := range n.links {
		if l.name == "" || strings.Contains(l.name, "/") || i > 0 && n.links[i-1].name >= l.name {
			return fmt.Errorf("%w: link %q is empty, a path or out of order", ErrMalformed, l.name)
		}
	}
	return nil
}

// shardAt is what List knows of a shard before it has it: the hash bits that
// all names in it share.
type shardAt struct {
	depth  int
	prefix uint64
}

// List yields the directory's entries: of a basic one in the order of names, of
// a HAMT in the order of hashes. It asks for up to dirAhead shards at once and
// checks that each name lies where Lookup would find it, so that none comes
// twice. It ends at the first error.
func List(ctx context.Context, g Getter, dir cid.Cid) iter.Seq2[Link, error] {
	return func(yield func(Link, error) bool) {
		w := newWalk[shardAt](ctx, g, dirAhead)
		defer w.close()
		w.push([]*visit[shardAt]{{cid: dir}})
		for {
			at, blk, ok, err := w.next()
			if !ok {
				return
			}
			var links []Link
			if err == nil {
				var below []*visit[shardAt]
				if links, below, err = open(at, blk); err == nil {
					w.push(below)
				}
			}
			if err != nil {
				yield(Link{}, fmt.Errorf("list %s: %w", dir, err))
				return
			}
			for _, l := range links {
				if !yield(l, nil) {
					return
				}
			}
		}
	}
}

// Path walks from the directory root down path and returns the last link. An
// empty path gives root itself, without name and Tsize.
func Path(ctx context.Context, g Getter, root cid.Cid, path ...string) (Link, error) {
	l := Link{CID: root}
	for _, name := range path {
		var err error
		if l, err = Lookup(ctx, g, l.CID, name); err != nil {
			return Link{}, err
		}
	}
	return l, nil
}
