package index

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/bbloom"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Stages of a collection, in their order, as Collect reports them.
const (
	StageHistory = "history" // changes written down, of releases that go
	StageMark    = "mark"    // blocks that stay
	StageSweep   = "sweep"   // blocks looked at
)

// Collected says what a collection did.
type Collected struct {
	Oldest uint64 `json:"oldest"` // the release whose directories are the oldest that are left
	Kept   int    `json:"kept_blocks"`
	Blocks int    `json:"blocks"` // that went
	Bytes  uint64 `json:"bytes"`  // of those
}

// Collect takes away the blocks that neither release number keep nor a newer one
// has. What releases before it changed is written down first, so that ListAt can
// tell their lists for ever, and of each month one snapshot is noted (Snapshots).
// Readers of a release before keep find ErrNoBlock from then on.
//
// Apply and readers go on meanwhile: the marks are made beside them, and blocks
// are taken away a thousand at a time, between two Applies; what comes back in
// between, and package directories that came ahead of their release, stay. One
// block in a hundred stays though it could go, until the next time. Memory is two
// bytes or so for each block.
//
// Law: the history is written, then that it now begins with keep, in one synced
// batch after it; only then blocks go. It can be stopped at any time, and begun
// again. A block that is damaged ends it (ErrCorrupt) before anything goes. A keep
// that is no release, or one whose directories are gone already, is ErrNoRelease.
//
// progress, where not nil, is told how far each stage has come.
func (ix *Index) Collect(ctx context.Context, keep uint64, progress func(stage string, done int)) (Collected, error) {
	if err := ix.begin(); err != nil {
		return Collected{}, err
	}
	defer ix.end()
	ix.collecting.Lock()
	defer ix.collecting.Unlock()
	if progress == nil {
		progress = func(string, int) {}
	}
	c := collection{ix: ix, progress: progress}
	err := c.writeHistory(ctx, keep)
	if err == nil {
		err = c.mark(ctx, keep)
	}
	if err == nil {
		err = c.sweep(ctx)
	}
	if err != nil {
		return Collected{}, fmt.Errorf("collect before release %d: %w", keep, err)
	}
	ix.log.InfoContext(ctx, "collected blocks", "before", keep, "blocks", c.done.Blocks, "bytes", c.done.Bytes, "kept", c.done.Kept)
	return c.done, nil
}

// Oldest is the number of the oldest release whose directories are there;
// ErrNoRelease before the first.
func (ix *Index) Oldest() (uint64, error) {
	if err := ix.begin(); err != nil {
		return 0, err
	}
	defer ix.end()
	return oldest(ix.db)
}

// oldest is what Collect wrote, or the first release.
func oldest(r pebble.Reader) (number uint64, err error) {
	raw, err := get(r, []byte{rowOldest})
	if err != nil {
		return 0, err
	}
	if raw != nil {
		if len(raw) != 8 {
			return 0, fmt.Errorf("row of the oldest release %x: %w", raw, ErrCorrupt)
		}
		return binary.BigEndian.Uint64(raw), nil
	}
	for row, err := range scan(context.Background(), r, []byte{rowRelease}) {
		if err != nil {
			return 0, err
		}
		return binary.BigEndian.Uint64(row.key[1:]), nil
	}
	return 0, ErrNoRelease
}

type collection struct {
	ix       *Index
	progress func(stage string, done int)
	done     Collected
	marks    marks
	newest   Release // up to which all that is kept is marked
}

// told is after how many steps progress is told.
const told = 10_000

func (c *collection) step(stage string, n int) {
	if n%told == 0 {
		c.progress(stage, n)
	}
}

// writeHistory writes down what each release up to keep changed since the oldest
// that is left.
func (c *collection) writeHistory(ctx context.Context, keep uint64) error {
	from, err := oldest(c.ix.db)
	if err != nil {
		return err
	}
	if _, _, err := releaseAndBefore(c.ix.db, keep); err != nil || keep < from {
		return cmp.Or(err, ErrNoRelease)
	}
	if c.done.Oldest = keep; keep == from {
		return nil
	}
	h := chronicle{b: c.ix.db.NewBatch(), ix: c.ix}
	defer func() { h.b.Close() }()
	before, n := Release{}, 0
	for row, err := range scanBetween(ctx, c.ix.db, numbered(rowRelease, from), numbered(rowRelease, keep+1)) {
		var r Release
		if err == nil {
			r, err = readReleaseRow(row)
		}
		if err != nil {
			return err
		}
		if before.Number > 0 {
			for d, err := range Diff(ctx, getter{c.ix.db}, before.List, r.List) {
				if err == nil {
					err = h.write(r.Number, d)
				}
				if errors.Is(err, ErrNoBlock) {
					err = fmt.Errorf("%w: %w", ErrCorrupt, err)
				}
				if err != nil {
					return fmt.Errorf("history of release %d: %w", r.Number, err)
				}
				n++
				c.step(StageHistory, n)
			}
			if err := h.writeSnapshot(ctx, before); err != nil {
				return fmt.Errorf("snapshot of release %d: %w", before.Number, err)
			}
		}
		before = r
	}
	c.progress(StageHistory, n)
	if err := h.b.Set([]byte{rowOldest}, binary.BigEndian.AppendUint64(nil, keep), nil); err != nil {
		return err
	}
	return h.b.Commit(pebble.Sync)
}

// mark notes the blocks of release keep and of all after it.
func (c *collection) mark(ctx context.Context, keep uint64) (err error) {
	snap := c.ix.db.NewSnapshot()
	defer snap.Close()
	r, err := head(snap)
	if err != nil {
		return err
	}
	// A package has two directories of its own, three with a gateway's, and most
	// names share the list's with others. Where there are more, more stays.
	size := max(4*float64(r.Packages), 100_000)
	if c.marks.seen, err = bbloom.NewWithKeys(rand.Uint64(), rand.Uint64(), size, 0.01); err != nil {
		return err
	}
	_, first, err := releaseAndBefore(snap, keep)
	if err != nil {
		return err
	}
	return c.markSince(ctx, snap, Release{}, first, r.Number)
}

// markSince notes the blocks of the release first that before, which is marked,
// does not have, and so on to release last.
func (c *collection) markSince(ctx context.Context, r pebble.Reader, before, first Release, last uint64) error {
	if err := c.marks.open(r); err != nil {
		return err
	}
	err := func() error {
		for row, err := range scanBetween(ctx, r, numbered(rowRelease, first.Number), numbered(rowRelease, last+1)) {
			var next Release
			if err == nil {
				next, err = readReleaseRow(row)
			}
			if err != nil {
				return err
			}
			for _, err := range releaseBlocks(ctx, &c.marks, before, next) {
				if err != nil {
					return fmt.Errorf("blocks of release %d: %w", next.Number, err)
				}
				c.done.Kept++
				c.step(StageMark, c.done.Kept)
			}
			// Of these the next Apply makes what a gateway shows.
			if _, err := frontOf(ctx, &c.marks, next.Root, c.marks.add); err != nil {
				return fmt.Errorf("what a gateway shows of release %d: %w", next.Number, err)
			}
			before = next
		}
		return nil
	}()
	c.newest = before
	c.progress(StageMark, c.done.Kept)
	return errors.Join(err, c.marks.it.Close())
}

// marks gives the index's blocks and notes which were asked for. Those that the
// index does not have, and raw ones, which lead nowhere, it passes over.
type marks struct {
	seen *bbloom.Bloom
	it   *pebble.Iterator
}

// open is for the blocks of r.
func (m *marks) open(r pebble.Reader) (err error) {
	// Most package's files are not there: the filters of the lowest level say so.
	m.it, err = r.NewIter(&pebble.IterOptions{LowerBound: []byte{rowBlock}, UpperBound: []byte{rowBlock + 1}, UseL6Filters: true})
	return err
}

func (m *marks) add(blk blocks.Block) error {
	m.seen.Add(blockKey(blk.Cid()))
	return nil
}

func (m *marks) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	key := blockKey(c)
	m.seen.Add(key)
	if c.Type() == cid.Raw {
		return nil, unixfs.ErrSkipBlock
	}
	if !m.it.SeekPrefixGE(key) {
		return nil, cmp.Or(located(m.it.Error()), unixfs.ErrSkipBlock)
	}
	raw, err := m.it.ValueAndErr()
	if err != nil {
		return nil, located(err)
	}
	blk, err := checkedBlock(c, append([]byte(nil), raw...))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return blk, nil
}

// sweepAtOnce is how many blocks go while an Apply waits.
const sweepAtOnce = 1000

// sweep takes away the blocks without a mark.
func (c *collection) sweep(ctx context.Context) error {
	var unmarked [][]byte
	looked := 0
	for row, err := range scan(ctx, c.ix.db, []byte{rowBlock}) {
		if err != nil {
			return err
		}
		looked++
		c.step(StageSweep, looked)
		if c.marks.seen.Has(row.key) {
			continue
		}
		unmarked = append(unmarked, append([]byte(nil), row.key...))
		if len(unmarked) == sweepAtOnce {
			if err := c.remove(ctx, unmarked); err != nil {
				return err
			}
			unmarked = unmarked[:0]
		}
	}
	if err := c.remove(ctx, unmarked); err != nil {
		return err
	}
	c.progress(StageSweep, looked)
	if err := c.ix.db.LogData(nil, pebble.Sync); err != nil {
		return err
	}
	return c.compact(ctx)
}

// compactShare is the share (one in so many) of the blocks' room that must have
// come free for the rest to be written together.
const compactShare = 4

// compact gives the disk its room back, for by itself Pebble does so only as new
// blocks come to lie over those that went.
func (c *collection) compact(ctx context.Context) error {
	used, err := c.ix.db.EstimateDiskUsage([]byte{rowBlock}, []byte{rowBlock + 1})
	if err != nil || c.done.Bytes < used/compactShare {
		return err
	}
	return c.ix.db.Compact(ctx, []byte{rowBlock}, []byte{rowBlock + 1}, false)
}

// remove takes blocks away that had no mark, but for those of releases that were
// made since the marks, and those that came again ahead of the next.
func (c *collection) remove(ctx context.Context, keys [][]byte) error {
	c.ix.apply.Lock()
	defer c.ix.apply.Unlock()
	now, err := head(c.ix.db)
	if err == nil && now.Number != c.newest.Number {
		err = c.markSince(ctx, c.ix.db, c.newest, Release{Number: c.newest.Number + 1}, now.Number)
	}
	if err != nil {
		return err
	}
	b := c.ix.db.NewBatch()
	defer b.Close()
	for _, key := range keys {
		if c.marks.seen.Has(key) {
			continue
		}
		ahead, err := get(c.ix.db, append([]byte{rowAhead}, key[1:]...))
		if err != nil {
			return err
		}
		if ahead != nil {
			continue
		}
		block, closer, err := c.ix.db.Get(key)
		if errors.Is(err, pebble.ErrNotFound) {
			continue // a copy took it away
		}
		if err != nil {
			return located(err)
		}
		c.done.Bytes += uint64(len(block))
		c.done.Blocks++
		if err := errors.Join(closer.Close(), b.Delete(key, nil)); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}
