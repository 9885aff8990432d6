package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Ways by which Sync comes to a list.
const (
	WayNone     = "none"     // it is the list that the index has
	WayDelta    = "delta"    // what changed since the release that the index has
	WaySnapshot = "snapshot" // a whole list, and what changed since
	WayDAG      = "dag"      // the directories themselves
)

// Synced says what Sync did.
type Synced struct {
	Release Release
	Way     string
	Fetched uint64  // bytes of the blocks that came from the getter
	Blocks  int     // how many those were
	Refused []error // ways that were tried before and did not lead there
	// Came and Went are the names that are listed now and were not before, and the
	// other way round, and Moved those whose entry is another than before: each once
	// and in no order; not after the first Sync of all.
	Came, Went, Moved []npm.Name
}

// Sync makes the release whose directory is root the newest, and only, release of
// this index: its list, held by an index of its own, that a reader keeps. It takes
// what is cheapest, a delta, a snapshot or the directories themselves, rebuilds
// list and overflow from it, and compares them with what the release commits to.
// What does not lead there is ErrDelta, in Refused, and the next way is taken.
// Readers of the index see the list before or the list after, never another, and
// so does the next start after a crash.
//
// keep, where not nil, is given the directories that were rebuilt, and not
// fetched, in batches of some MiB, before the index moves.
//
// An index is for Apply or for Sync, not both. Errors are those of ReadRelease,
// and of the last way.
func (ix *Index) Sync(ctx context.Context, g unixfs.Getter, root cid.Cid, keep func([]blocks.Block) error) (Synced, error) {
	if err := ix.begin(); err != nil {
		return Synced{}, err
	}
	defer ix.end()
	ix.apply.Lock()
	defer ix.apply.Unlock()

	from := &meter{g: g}
	s, err := ix.sync(ctx, from, root, keep)
	s.Fetched, s.Blocks = from.bytes.Load(), int(from.blocks.Load())
	if err != nil {
		return Synced{}, fmt.Errorf("sync with %s: %w", root, err)
	}
	return s, nil
}

func (ix *Index) sync(ctx context.Context, g unixfs.Getter, root cid.Cid, keep func([]blocks.Block) error) (Synced, error) {
	r, err := ReadRelease(ctx, g, root)
	if err != nil {
		return Synced{}, err
	}
	if r.Packages > maxPackages {
		return Synced{}, fmt.Errorf("%w: %d packages, %d are taken", ErrRelease, r.Packages, maxPackages)
	}
	s := Synced{Release: r, Way: WayNone}
	old, err := head(ix.db)
	first := errors.Is(err, ErrNoRelease)
	if err != nil && !first {
		return Synced{}, err
	}
	isCopy, err := readCopy(ix.db)
	switch {
	case err != nil:
		return Synced{}, err
	case !first && !isCopy:
		return Synced{}, fmt.Errorf("%w: it has releases of its own", ErrCopy)
	case first:
		if err := ix.wipe(); err != nil {
			return Synced{}, err
		}
	case old.Root == r.Root:
		return s, nil
	case old.List == r.List:
		b := ix.db.NewBatch()
		defer b.Close()
		return s, adopt(b, r)
	}
	ways, refused := ix.ways(ctx, g, old, r, first)
	if err := ctx.Err(); err != nil {
		return Synced{}, err
	}
	s.Refused = refused
	for i, w := range ways {
		s.Way = w.name
		keep := keep
		if w.name == WayDAG {
			keep = nil
		}
		if first {
			err = ix.load(ctx, r, w, keep)
		} else {
			err = ix.move(ctx, old, r, w.changes, keep, &s)
		}
		if err == nil || ctx.Err() != nil || i == len(ways)-1 {
			return s, err
		}
		s.Refused = append(s.Refused, fmt.Errorf("%s: %w", w.name, err))
		if first {
			if err := ix.wipe(); err != nil {
				return Synced{}, err
			}
		}
	}
	return s, err
}

// way is one way to a list: what to change in the one that is held, or, where
// none is held, all that it has.
type way struct {
	name    string
	bytes   uint64
	changes iter.Seq2[Change, error]
	inOrder bool // of their names
}

// maxPackages bounds the list that a copy takes: three times npm's.
const maxPackages = 16 << 20

// ways are those that there are, the cheapest first; the directories, which need
// nobody's help, are always the last. refused says why there are no others.
func (ix *Index) ways(ctx context.Context, g unixfs.Getter, old, r Release, first bool) (ways []way, refused []error) {
	deltas, err := listDeltas(ctx, g, r.Root)
	if err != nil {
		deltas, refused = nil, append(refused, fmt.Errorf("deltas: %w", err))
	}
	snapshot, err := snapshotOf(ctx, g, r.Root)
	if err != nil {
		snapshot, refused = Snapshot{}, append(refused, fmt.Errorf("snapshot: %w", err))
	}
	changes := func(since []delta) (all iter.Seq2[Change, error], size uint64) {
		all = func(func(Change, error) bool) {}
		for _, d := range since {
			all, size = mergeOps(all, d.ops(ctx, g)), size+d.file.Tsize
		}
		return all, size
	}
	if since := shortWay(deltas, old.Number, r.Number); !first && len(since) > 0 {
		all, size := changes(since)
		ways = append(ways, way{WayDelta, size, all, true})
	}
	since := shortWay(deltas, snapshot.Number, r.Number)
	if snapshot.Number > 0 && (snapshot.Number == r.Number || len(since) > 0) {
		all, size := changes(since)
		all = standingOnly(mergeOps(snapshot.ops(ctx, g), all))
		if !first {
			all = difference(entries(ctx, ix.db), all)
		}
		ways = append(ways, way{WaySnapshot, size + snapshot.File.Tsize, all, true})
	}
	slices.SortStableFunc(ways, func(a, b way) int { return cmp.Compare(a.bytes, b.bytes) })
	var from List // empty
	if !first {
		from = old.List
	}
	var dag iter.Seq2[Change, error] = func(yield func(Change, error) bool) {
		for d, err := range Diff(ctx, ownFirst{getter{ix.db}, g}, from, r.List) {
			if !yield(d.Change(), err) {
				return
			}
		}
	}
	return append(ways, way{WayDAG, 0, dag, false}), refused
}

// shortWay is wayFrom within the bounds of a stranger's deltas.
func shortWay(deltas []delta, from, to uint64) []delta {
	since := wayFrom(deltas, from, to)
	left := uint64(maxWay)
	for _, d := range since {
		if d.file.Tsize > left {
			return nil
		}
		left -= d.file.Tsize
	}
	return since
}

// move changes the list that is held, and notes in s which names came, went and moved.
func (ix *Index) move(ctx context.Context, old, r Release, changes iter.Seq2[Change, error], keep func([]blocks.Block) error, s *Synced) error {
	b := ix.db.NewIndexedBatch()
	defer b.Close()
	now, err := readCounts(ctx, ix.db)
	if err != nil {
		return err
	}
	var all []Change
	for c, err := range changes {
		if err == nil && c.Delete { // of what came and went between, it is not here
			var here []byte
			if here, err = get(ix.db, entryKey(c.Name)); err == nil && here == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		// Each of the packages before may go, and each of those now be new.
		if all = append(all, c); len(all) > old.Packages+r.Packages {
			return fmt.Errorf("%w: more than %d changes", ErrDelta, old.Packages+r.Packages)
		}
	}
	touched, err := writeEntries(b, all, false, &now)
	if err != nil {
		return err
	}
	if err := writeCounts(b, now); err != nil {
		return err
	}
	s.Came, s.Went, s.Moved = nil, nil, nil // of a way that did not lead there
	for _, t := range touched {
		row, err := get(b, entryKey(t.name))
		switch {
		case err != nil:
			return err
		case row != nil && !t.was:
			s.Came = append(s.Came, t.name)
		case row == nil && t.was:
			s.Went = append(s.Went, t.name)
		case row != nil:
			s.Moved = append(s.Moved, t.name)
		}
	}
	if len(touched) > old.Packages/anewShare {
		return ix.anew(ctx, b, now, r, keep)
	}
	w := newBlockWriter(ix.db)
	defer w.close()
	w.keep = keep
	list, err := editCopy(ctx, b, w, old, touched)
	if errors.Is(err, ErrNoBlock) || errors.Is(err, ErrCorrupt) {
		// The disk lost or bent a block; or two scopes of the same content shared
		// one, and only one of them had it taken away. The entries have it all.
		ix.log.WarnContext(ctx, "the list is built anew", "because", err)
		return ix.anew(ctx, b, now, r, keep)
	}
	if err == nil {
		err = leadsTo(list, now, r)
	}
	if err != nil {
		return err
	}
	if err := w.finish(); err != nil {
		return err
	}
	return adopt(b, r)
}

// editCopy makes the list of b's entries, of which touched ones changed since old,
// and takes away what it has no more: a copy has no history.
func editCopy(ctx context.Context, b *pebble.Batch, w *blockWriter, old Release, touched []touch) (built, error) {
	names, err := changedNames(ctx, b, touched)
	if err != nil {
		return built{}, err
	}
	var replaced []cid.Cid
	list, err := editList(ctx, b, w, old.List, names, w.write, func(c cid.Cid) { replaced = append(replaced, c) })
	for _, c := range replaced {
		if err == nil && w.fresh[c] == nil {
			err = b.Delete(blockKey(c), nil)
		}
	}
	return list, err
}

// anew makes the list of all of b's entries, whatever blocks there are, and takes
// away those that are none of its own.
func (ix *Index) anew(ctx context.Context, b *pebble.Batch, now counts, r Release, keep func([]blocks.Block) error) error {
	w, err := ix.newBulkWriter(false)
	if err != nil {
		return err
	}
	defer w.close()
	w.keep = keep
	written := map[cid.Cid]bool{}
	list, err := buildList(ctx, entries(ctx, b), func(blk blocks.Block) error {
		written[blk.Cid()] = true
		return w.write(blk)
	})
	if err == nil {
		err = leadsTo(list, now, r)
	}
	if err != nil {
		return err
	}
	for row, err := range scan(ctx, ix.db, []byte{rowBlock}) {
		var c cid.Cid
		if err == nil {
			c, err = cid.Cast(row.key[1:])
		}
		if err == nil && !written[c] {
			err = b.Delete(row.key, nil)
		}
		if err != nil {
			return err
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	return adopt(b, r)
}

// load takes in a whole list, in tables that nothing leads to before the end.
func (ix *Index) load(ctx context.Context, r Release, by way, keep func([]blocks.Block) error) error {
	rows := ix.newTables(rowEntry)
	var now counts
	var key, value []byte
	stands := func(yield func(Entry, error) bool) {
		for c, err := range by.changes {
			if err == nil {
				err = checkChange(c, false)
			}
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				key, value = append(append(key[:0], rowEntry), c.Name...), appendEntry(value[:0], c.Entry)
				err = rows.set(key, value)
			}
			if now.packages++; err == nil && now.packages > r.Packages {
				err = fmt.Errorf("%w: more than %d packages", ErrDelta, r.Packages)
			}
			if !yield(c.Entry, err) || err != nil {
				return
			}
		}
	}
	all := iter.Seq2[Entry, error](stands)
	if !by.inOrder {
		for _, err := range stands {
			if err != nil {
				return err
			}
		}
		if err := rows.flush(); err != nil {
			return err
		}
		all = entries(ctx, ix.db)
	}
	w, err := ix.newBulkWriter(false)
	if err != nil {
		return err
	}
	defer w.close()
	w.keep = keep
	list, err := buildList(ctx, all, w.write)
	if err == nil {
		err = leadsTo(list, now, r)
	}
	if err == nil {
		err = rows.flush()
	}
	if err == nil {
		err = w.finish()
	}
	if err != nil {
		return err
	}
	b := ix.db.NewBatch()
	defer b.Close()
	if err := writeCounts(b, now); err != nil {
		return err
	}
	return adopt(b, r)
}

// leadsTo holds what was rebuilt to what the release commits to.
func leadsTo(list built, now counts, r Release) error {
	switch {
	case list.list() != r.List:
		return fmt.Errorf("%w: it gives the list {%s, %s}, release %d has {%s, %s}",
			ErrDelta, list.root.CID, list.overflow.CID, r.Number, r.List.Root, r.List.Overflow)
	case now.packages != r.Packages:
		return fmt.Errorf("%w: release %d says %d packages and has %d", ErrRelease, r.Number, r.Packages, now.packages)
	}
	return nil
}

// adopt commits b with r, whose blocks are in the store, as the only release. The
// one durable step is the last: before it readers see the list before, after it r's.
func adopt(b *pebble.Batch, r Release) error {
	raw, err := encodeRelease(r, true)
	if err != nil {
		return err
	}
	if err := b.DeleteRange([]byte{rowRelease}, []byte{rowRelease + 1}, nil); err != nil {
		return err
	}
	if err := b.Set(numbered(rowRelease, r.Number), raw, nil); err != nil {
		return err
	}
	if err := b.Set([]byte{rowCopy}, nil, nil); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// wipe takes away what a Sync that did not come to its first end left. Where there is
// nothing it writes nothing: tables that come after it then need no merging.
func (ix *Index) wipe() error {
	for _, row := range []byte{rowEntry, rowBlock, rowAhead, rowCounts} {
		for _, err := range scan(context.Background(), ix.db, []byte{row}) {
			if err == nil {
				err = ix.db.DeleteRange([]byte{row}, []byte{row + 1}, pebble.NoSync)
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// standingOnly leaves out what is gone.
func standingOnly(ops iter.Seq2[Change, error]) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for c, err := range ops {
			if (err != nil || !c.Delete) && !yield(c, err) {
				return
			}
		}
	}
}

// difference yields what turns entries into what stands, both in the order of
// their names.
func difference(entries iter.Seq2[Entry, error], stands iter.Seq2[Change, error]) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		next, stop := iter.Pull2(entries)
		defer stop()
		e, err, more := next()
		for c, err2 := range stands {
			for more && err == nil && err2 == nil && e.Name < c.Name {
				if !yield(Change{Entry: e, Delete: true}, nil) {
					return
				}
				e, err, more = next()
			}
			if err = errors.Join(err, err2); err != nil {
				yield(Change{}, err)
				return
			}
			same := false
			if more && e.Name == c.Name {
				same = e.CID == c.CID && e.Tsize == c.Tsize
				e, err, more = next()
			}
			if !same && !yield(c, nil) {
				return
			}
		}
		for ; more; e, err, more = next() {
			if !yield(Change{Entry: e, Delete: true}, err) || err != nil {
				return
			}
		}
	}
}

// ownFirst gives the blocks that are held, and asks for the others.
type ownFirst struct{ own, other unixfs.Getter }

func (o ownFirst) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if b, err := o.own.Get(ctx, c); err == nil {
		return b, nil
	}
	return o.other.Get(ctx, c)
}

// meter counts what comes from a getter. It keeps the first blocks, by which all
// that lies in "_registry" is found, so that they come once.
type meter struct {
	g      unixfs.Getter
	bytes  atomic.Uint64
	blocks atomic.Int64

	mu    sync.Mutex
	first map[cid.Cid]blocks.Block
}

// Bounds of what a meter keeps.
const (
	keptBlocks = 64
	keptBytes  = 64 << 10 // of one block
)

func (m *meter) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	m.mu.Lock()
	b := m.first[c]
	m.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := m.g.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	m.bytes.Add(uint64(len(b.RawData())))
	m.blocks.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first == nil {
		m.first = make(map[cid.Cid]blocks.Block, keptBlocks)
	}
	if len(m.first) < keptBlocks && len(b.RawData()) <= keptBytes {
		m.first[c] = b
	}
	return b, nil
}
