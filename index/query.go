package index

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Release returns the release of that number, ErrNoRelease where there is none.
func (ix *Index) Release(number uint64) (Release, error) {
	if err := ix.begin(); err != nil {
		return Release{}, err
	}
	defer ix.end()
	key := numbered(rowRelease, number)
	raw, err := get(ix.db, key)
	if err == nil && raw == nil {
		err = ErrNoRelease
	}
	if err != nil {
		return Release{}, fmt.Errorf("release %d: %w", number, err)
	}
	return readReleaseRow(keyValue{key, raw})
}

// Log yields the releases from the newest to the first.
func (ix *Index) Log(ctx context.Context) iter.Seq2[Release, error] {
	return func(yield func(Release, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Release{}, err)
			return
		}
		defer ix.end()
		it, err := ix.db.NewIter(&pebble.IterOptions{LowerBound: []byte{rowRelease}, UpperBound: []byte{rowRelease + 1}})
		if err != nil {
			yield(Release{}, err)
			return
		}
		ended := false
		defer func() {
			if !ended { // the loop's body panicked, as a handler's may
				it.Close()
			}
		}()
		stopped := false
		for ok := it.Last(); ok && !stopped; ok = it.Prev() {
			var r Release
			value, err := it.ValueAndErr()
			if err = cmp.Or(located(err), ctx.Err()); err == nil {
				r, err = readReleaseRow(keyValue{it.Key(), value})
			}
			stopped = !yield(r, err) || err != nil
		}
		ended = true
		if err := it.Close(); err != nil && !stopped {
			yield(Release{}, located(err))
		}
	}
}

// Blocks yields the blocks of release number that release since does not have in
// the same place, parents before their children: those of its directories, of
// package directories and of deltas, but not of the packages' files, which the index
// does not have. A since of 0 is of nothing, and then they are the whole release; one
// whose directories were collected only costs the short cut. A block that stands in
// two places may come twice. ErrNoRelease where there is none.
func (ix *Index) Blocks(ctx context.Context, since, number uint64) iter.Seq2[blocks.Block, error] {
	return func(yield func(blocks.Block, error) bool) {
		if err := ix.begin(); err != nil {
			yield(nil, err)
			return
		}
		defer ix.end()
		var before Release
		_, r, err := releaseAndBefore(ix.db, number)
		if err == nil && since > 0 {
			_, before, err = releaseAndBefore(ix.db, since)
		}
		if err != nil {
			yield(nil, fmt.Errorf("blocks of release %d since %d: %w", number, since, err))
			return
		}
		for blk, err := range releaseBlocks(ctx, held{ix.db}, before, r) {
			if err != nil {
				err = fmt.Errorf("blocks of release %d since %d: %w", number, since, err)
			}
			if !yield(blk, err) {
				return
			}
		}
	}
}

// releaseBlocks yields the blocks of a release that the one before, which may be
// zero, does not have in the same place.
func releaseBlocks(ctx context.Context, g unixfs.Getter, before, r Release) iter.Seq2[blocks.Block, error] {
	return func(yield func(blocks.Block, error) bool) {
		for blk, err := range unixfs.Beyond(ctx, g, before.List.Root, r.List.Root) {
			if !yield(blk, err) || err != nil {
				return
			}
		}
		// What a gateway shows is the list itself, or what it showed before.
		like := r.List.Root
		if r.Parameters.Gateway != "" {
			like = before.Root
		}
		for blk, err := range unixfs.Beyond(ctx, g, like, r.Root, r.List.Root) {
			if !yield(blk, err) {
				return
			}
		}
	}
}

// held gives what the index has, and passes over the packages' files.
type held struct{ r pebble.Reader }

func (h held) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	blk, err := readBlock(h.r, c)
	if errors.Is(err, ErrNoBlock) {
		err = unixfs.ErrSkipBlock
	}
	return blk, err
}

// Prefix yields the entries whose names begin with prefix, as Entries does: with
// "@types/" a scope's.
func (ix *Index) Prefix(ctx context.Context, prefix string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Entry{}, err)
			return
		}
		defer ix.end()
		for row, err := range scan(ctx, ix.db, entryKey(npm.Name(prefix))) {
			var e Entry
			if err == nil {
				e, err = decodeEntry(string(row.key[1:]), row.value)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Match yields the entries whose names match pattern, as Matching does. It reads
// no more than those that begin as the pattern does up to its first wildcard.
func (ix *Index) Match(ctx context.Context, pattern string) iter.Seq2[Entry, error] {
	prefix := pattern
	if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
		prefix = pattern[:i]
	}
	return Matching(ix.Prefix(ctx, prefix), pattern)
}

// Matching yields those of entries whose names match pattern, as path.Match
// has it: no wildcard matches a slash, so that "*" is every package without a
// scope and "@*/*" every one with a scope. A pattern that is none is
// path.ErrBadPattern.
func Matching(entries iter.Seq2[Entry, error], pattern string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if _, err := path.Match(pattern, ""); err != nil {
			yield(Entry{}, fmt.Errorf("pattern %q: %w", pattern, err))
			return
		}
		for e, err := range entries {
			if err == nil {
				matches, _ := path.Match(pattern, string(e.Name))
				if !matches {
					continue
				}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Since yields the entries that are new or other in the newest release since the
// release number, as Diff does: not those that are gone. ErrNoRelease where
// there is no such release.
func (ix *Index) Since(ctx context.Context, number uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		now, err := ix.Head()
		if err != nil {
			yield(Entry{}, err)
			return
		}
		for d, err := range ix.Between(ctx, number, now.Number) {
			if err == nil && !d.New.CID.Defined() {
				continue
			}
			e := d.New
			if err == nil { // a build that is under way may have another entry
				var known Entry
				if known, err = ix.Entry(e.Name); err == nil && known.CID == e.CID {
					e = known
				} else if errors.Is(err, ErrNotFound) {
					err = nil
				}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Totals are what entries come to.
type Totals struct {
	Packages int    `json:"packages"`
	Versions int    `json:"versions,omitempty"`
	Bytes    uint64 `json:"bytes"` // of their Tsizes: what packages share counts for each
}

// Count adds entries up.
func Count(entries iter.Seq2[Entry, error]) (t Totals, err error) {
	for e, err := range entries {
		if err != nil {
			return Totals{}, err
		}
		t.Packages++
		t.Versions += e.Versions
		t.Bytes += e.Tsize
	}
	return t, nil
}

// Largest gives the n entries of the greatest Tsize, the largest first, of equal
// ones those whose names come first. It keeps no more than n.
func Largest(entries iter.Seq2[Entry, error], n int) ([]Entry, error) {
	var top smallest
	for e, err := range entries {
		switch {
		case err != nil:
			return nil, err
		case len(top) < n:
			heap.Push(&top, e)
		case n > 0 && bySize(e, top[0]) < 0:
			top[0] = e
			heap.Fix(&top, 0)
		}
	}
	slices.SortFunc(top, bySize)
	return top, nil
}

// bySize orders the largest first.
func bySize(a, b Entry) int {
	return cmp.Or(cmp.Compare(b.Tsize, a.Tsize), strings.Compare(string(a.Name), string(b.Name)))
}

// smallest is a heap whose first entry is the last by size.
type smallest []Entry

func (s smallest) Len() int           { return len(s) }
func (s smallest) Less(i, j int) bool { return bySize(s[i], s[j]) > 0 }
func (s smallest) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *smallest) Push(e any)        { *s = append(*s, e.(Entry)) }
func (s *smallest) Pop() any {
	last := (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return last
}

// ReadEntry is Lookup in a release, with what its directories say of the package
// beside: how many versions there are, and what a bare gateway shows. A package
// in the overflow is shown by none.
func ReadEntry(ctx context.Context, g unixfs.Getter, r Release, name npm.Name) (Entry, error) {
	e, err := Lookup(ctx, g, r.List, name)
	if err != nil {
		return Entry{}, err
	}
	files, err := ReadPackage(ctx, g, e.CID)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s of release %d: %w", name, r.Number, err)
	}
	e.Versions = len(files.Tarballs)
	if r.Parameters.Gateway == "" {
		return e, nil
	}
	shown, err := unixfs.Path(ctx, g, r.Root, strings.Split(string(name), "/")...)
	if errors.Is(err, unixfs.ErrNotFound) {
		return e, nil
	}
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s of release %d: %w", name, r.Number, err)
	}
	if shown.CID != e.CID {
		e.Gateway = unixfs.Ref{CID: shown.CID, Tsize: shown.Tsize}
	}
	return e, nil
}
