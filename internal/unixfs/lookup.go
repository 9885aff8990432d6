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
	hash := Hash(name)
	for c, depth := dir, 0; depth < hashLen; depth++ {
		blk, err := get(ctx, g, c)
		if err != nil {
			return Link{}, fmt.Errorf("look up %q: %w", name, err)
		}
		n, d, err := decodeUnixFS(blk)
		if err != nil {
			return Link{}, fmt.Errorf("look up %q: %w", name, err)
		}
		if depth == 0 && d.kind == typeDirectory {
			if err := checkBasic(n); err != nil {
				return Link{}, fmt.Errorf("look up %q: decode %s: %w", name, c, err)
			}
			for _, l := range n.links {
				if l.Name == name {
					return l, nil
				}
			}
			return Link{}, fmt.Errorf("look up %q in %s: %w", name, dir, ErrNotFound)
		}
		cs, err := decodeShard(n, d)
		if err != nil {
			return Link{}, fmt.Errorf("look up %q: decode %s: %w", name, c, err)
		}
		i, ok := findSlot(cs, slotAt(hash, depth))
		switch {
		case !ok || !cs[i].sub && cs[i].link.Name != name:
			return Link{}, fmt.Errorf("look up %q in %s: %w", name, dir, ErrNotFound)
		case !cs[i].sub:
			return cs[i].link, nil
		}
		c = cs[i].link.CID
	}
	return Link{}, fmt.Errorf("look up %q in %s: %w: more than %d levels", name, dir, ErrMalformed, hashLen)
}

// IsHAMT tells a directory in shards from one that is a basic block.
// ErrMalformed where dir is no directory of this format.
func IsHAMT(ctx context.Context, g Getter, dir cid.Cid) (bool, error) {
	blk, err := get(ctx, g, dir)
	if err != nil {
		return false, err
	}
	_, d, err := decodeUnixFS(blk)
	if err == nil && d.kind != typeHAMT && d.kind != typeDirectory {
		err = fmt.Errorf("decode %s: %w: not a directory", dir, ErrMalformed)
	}
	return d.kind == typeHAMT, err
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
		if l.Name == "" || strings.Contains(l.Name, "/") || i > 0 && n.links[i-1].Name >= l.Name {
			return fmt.Errorf("%w: link %q is empty, a path or out of order", ErrMalformed, l.Name)
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
