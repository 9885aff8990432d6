package index

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// chronicle writes down what releases changed, before their directories go.
type chronicle struct {
	ix *Index
	b  *pebble.Batch
}

// write notes what stood under a name before a release, and what stands since.
func (h *chronicle) write(number uint64, d Difference) error {
	if err := h.b.Set(historyKey(number, d.New.Name), encodeDifference(d), nil); err != nil || h.b.Len() < h.ix.chunk {
		return err
	}
	if err := errors.Join(h.b.Commit(pebble.NoSync), h.b.Close()); err != nil {
		return err
	}
	h.b = h.ix.db.NewBatch()
	return nil
}

func historyKey(number uint64, name npm.Name) []byte {
	return append(numbered(rowHistory, number), name...)
}

func encodeDifference(d Difference) (raw []byte) {
	for _, e := range []Entry{d.Old, d.New} {
		if !e.CID.Defined() {
			raw = append(raw, 0)
			continue
		}
		raw = append(append(raw, 1), e.CID.Hash()[2:]...)
		raw = binary.AppendUvarint(raw, e.Tsize)
	}
	return raw
}

func decodeDifference(name npm.Name, raw []byte) (Difference, error) {
	d := Difference{Old: Entry{Name: name}, New: Entry{Name: name}}
	for _, e := range []*Entry{&d.Old, &d.New} {
		switch {
		case len(raw) > 0 && raw[0] == 0:
			raw = raw[1:]
			continue
		case len(raw) > 33 && raw[0] == 1:
		default:
			return Difference{}, fmt.Errorf("history of %s: %w", name, ErrCorrupt)
		}
		e.CID = directory([32]byte(raw[1:33]))
		tsize, n := binary.Uvarint(raw[33:])
		if n <= 0 {
			return Difference{}, fmt.Errorf("history of %s: %w", name, ErrCorrupt)
		}
		e.Tsize, raw = tsize, raw[33+n:]
	}
	if len(raw) > 0 {
		return Difference{}, fmt.Errorf("history of %s: %w", name, ErrCorrupt)
	}
	return d, nil
}

// writeSnapshot notes the snapshot that a release shows, where there is none yet
// of its month.
func (h *chronicle) writeSnapshot(ctx context.Context, r Release) error {
	s, err := snapshotOf(ctx, getter{h.ix.db}, r.Root)
	if err != nil || s.Number == 0 {
		return err
	}
	_, of, err := releaseAndBefore(h.ix.db, s.Number)
	if errors.Is(err, ErrNoRelease) {
		return nil // of an index that was lost
	}
	if err != nil {
		return err
	}
	key := monthKey(of.Created)
	if row, err := get(h.ix.db, key); err != nil || row != nil {
		return err
	}
	raw := binary.AppendUvarint(nil, s.Number)
	raw = binary.AppendUvarint(raw, s.File.Tsize)
	return h.b.Set(key, append(raw, s.File.CID.Bytes()...), nil)
}

func monthKey(t time.Time) []byte { return t.UTC().AppendFormat([]byte{rowMonth}, "2006-01") }

// Snapshots are those of releases whose directories were collected, one of each
// month, the oldest first: files that are for ListAt, and nothing else leads to.
func (ix *Index) Snapshots(ctx context.Context) ([]Snapshot, error) {
	if err := ix.begin(); err != nil {
		return nil, err
	}
	defer ix.end()
	return snapshots(ctx, ix.db)
}

func snapshots(ctx context.Context, r pebble.Reader) (all []Snapshot, err error) {
	for row, err := range scan(ctx, r, []byte{rowMonth}) {
		if err != nil {
			return nil, err
		}
		number, n := binary.Uvarint(row.value)
		tsize, m := binary.Uvarint(row.value[max(n, 0):])
		if n <= 0 || m <= 0 {
			return nil, fmt.Errorf("snapshot of %s: %w", row.key[1:], ErrCorrupt)
		}
		c, err := cid.Cast(append([]byte(nil), row.value[n+m:]...))
		if err != nil {
			return nil, fmt.Errorf("snapshot of %s: %w: %w", row.key[1:], ErrCorrupt, err)
		}
		all = append(all, Snapshot{number, unixfs.Ref{CID: c, Tsize: tsize}})
	}
	return all, nil
}

// Between yields what differs between the lists of two releases, also where their
// directories were collected: as Diff does, in no promised order. What was written
// down of releases between them is in memory meanwhile, some 300 bytes for each
// package. ErrNoRelease where there is no such release.
func (ix *Index) Between(ctx context.Context, from, to uint64) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Difference{}, err)
			return
		}
		defer ix.end()
		snap := ix.db.NewSnapshot()
		defer snap.Close()
		all, err := between(ctx, snap, from, to)
		if err != nil {
			yield(Difference{}, fmt.Errorf("between releases %d and %d: %w", from, to, err))
			return
		}
		for d, err := range all {
			if !yield(d, err) {
				return
			}
		}
	}
}

func between(ctx context.Context, r pebble.Reader, from, to uint64) (iter.Seq2[Difference, error], error) {
	_, a, err := releaseAndBefore(r, from)
	if err != nil {
		return nil, err
	}
	_, b, err := releaseAndBefore(r, to)
	if err != nil {
		return nil, err
	}
	first, err := oldest(r)
	if err != nil {
		return nil, err
	}
	if from >= first && to >= first {
		return Diff(ctx, getter{r}, a.List, b.List), nil
	}
	// First from the older of the two to the newer, and turned round in the end.
	older, newer := a, b
	if from > to {
		older, newer = b, a
	}
	changed := map[npm.Name]Difference{}
	add := func(d Difference) {
		if earlier, ok := changed[d.New.Name]; ok {
			d.Old = earlier.Old
		}
		changed[d.New.Name] = d
	}
	for row, err := range scanBetween(ctx, r, numbered(rowHistory, older.Number+1), numbered(rowHistory, min(newer.Number, first)+1)) {
		if err != nil {
			return nil, err
		}
		d, err := decodeDifference(npm.Name(row.key[9:]), row.value)
		if err != nil {
			return nil, err
		}
		add(d)
	}
	if newer.Number > first {
		_, f, err := releaseAndBefore(r, first)
		if err != nil {
			return nil, err
		}
		for d, err := range Diff(ctx, getter{r}, f.List, newer.List) {
			if err != nil {
				return nil, err
			}
			add(d)
		}
	}
	return func(yield func(Difference, error) bool) {
		for _, d := range changed {
			if from > to {
				d.Old, d.New = d.New, d.Old
			}
			if d.Old != d.New && !yield(d, nil) {
				return
			}
		}
	}, nil
}

// EntryAt returns what release number listed under a name, ErrNotFound for nothing,
// as ReadEntry does; where the release's directories were collected, CID and Tsize
// alone. ErrNoRelease where there is no such release.
func (ix *Index) EntryAt(ctx context.Context, number uint64, name npm.Name) (Entry, error) {
	if err := ix.begin(); err != nil {
		return Entry{}, err
	}
	defer ix.end()
	snap := ix.db.NewSnapshot()
	defer snap.Close()
	e, err := entryAt(ctx, snap, number, name)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s of release %d: %w", name, number, err)
	}
	return e, nil
}

func entryAt(ctx context.Context, r pebble.Reader, number uint64, name npm.Name) (Entry, error) {
	_, release, err := releaseAndBefore(r, number)
	if err != nil {
		return Entry{}, err
	}
	first, err := oldest(r)
	if err != nil {
		return Entry{}, err
	}
	if number >= first {
		return ReadEntry(ctx, getter{r}, release, name)
	}
	for row, err := range scanBetween(ctx, r, numbered(rowRelease, number+1), numbered(rowRelease, first+1)) {
		if err != nil {
			return Entry{}, err
		}
		if release, err = readReleaseRow(row); err != nil {
			return Entry{}, err
		}
		raw, err := get(r, historyKey(release.Number, name))
		if err != nil {
			return Entry{}, err
		}
		if raw == nil {
			continue
		}
		d, err := decodeDifference(name, raw)
		if err == nil && !d.Old.CID.Defined() {
			err = ErrNotFound
		}
		return d.Old, err
	}
	return Lookup(ctx, getter{r}, release.List, name) // which has not changed since
}

// ListAt yields the list of release number in the order of its names, also where
// its directories were collected: names, CIDs and Tsizes. It goes by what was
// written down of the releases between it and the newest, or the nearest of
// Snapshots, whose files g has; it holds the whole to what the release commits to
// before it yields any. What differs from that newest list or snapshot is in
// memory meanwhile, some 200 bytes for each package. A nil g has no snapshots. It
// ends at the first error: ErrNoRelease, ErrCorrupt where nothing leads to that list.
func (ix *Index) ListAt(ctx context.Context, number uint64, g unixfs.Getter) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Entry{}, err)
			return
		}
		defer ix.end()
		snap := ix.db.NewSnapshot()
		defer snap.Close()
		list, err := listAt(ctx, snap, number, g)
		if err != nil {
			yield(Entry{}, fmt.Errorf("list of release %d: %w", number, err))
			return
		}
		for e, err := range list {
			if !yield(e, err) {
				return
			}
		}
	}
}

// basis is a list from which another is reached.
type basis struct {
	number uint64
	list   iter.Seq2[Change, error]
}

func listAt(ctx context.Context, snap *pebble.Snapshot, number uint64, g unixfs.Getter) (iter.Seq2[Entry, error], error) {
	_, r, err := releaseAndBefore(snap, number)
	if err != nil {
		return nil, err
	}
	from, err := oldest(snap)
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	if g != nil {
		if all, err = snapshots(ctx, snap); err != nil {
			return nil, err
		}
	}
	// The newest list is here, whatever else is; so is the way from it to the
	// oldest whose directories are.
	now := basis{number: max(from, number), list: func(yield func(Change, error) bool) {
		for e, err := range entries(ctx, snap) {
			if !yield(Change{Entry: e}, err) {
				return
			}
		}
	}}
	bases := []basis{now}
	for _, s := range all {
		bases = append(bases, basis{s.Number, s.ops(ctx, g)})
	}
	distance := func(b basis) uint64 { return max(b.number, number) - min(b.number, number) }
	slices.SortStableFunc(bases, func(a, b basis) int { return cmp.Compare(distance(a), distance(b)) })
	var failed []error
	for _, b := range bases {
		way := map[npm.Name]Change{}
		err := back(ctx, snap, b.number, number, way)
		if err == nil && b.number == now.number {
			err = sinceOldest(ctx, snap, max(from, number), way)
		}
		if err == nil {
			var list iter.Seq2[Entry, error]
			if list, err = reached(ctx, b.list, way, r); err == nil {
				return list, nil
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed = append(failed, fmt.Errorf("from release %d: %w", b.number, err))
	}
	return nil, fmt.Errorf("%w: nothing leads to it: %w", ErrCorrupt, errors.Join(failed...))
}

// back adds to way what turns the list of release from into that of release to,
// by what was written down of those between.
func back(ctx context.Context, r pebble.Reader, from, to uint64, way map[npm.Name]Change) error {
	low, high := min(from, to)+1, max(from, to)+1
	for row, err := range scanBetween(ctx, r, numbered(rowHistory, low), numbered(rowHistory, high)) {
		if err != nil {
			return err
		}
		name := npm.Name(row.key[9:])
		d, err := decodeDifference(name, row.value)
		if err != nil {
			return err
		}
		if from > to { // the first change after it says what stood there
			if _, ok := way[name]; !ok {
				way[name] = Change{Entry: d.Old, Delete: !d.Old.CID.Defined()}
			}
		} else {
			way[name] = d.Change()
		}
	}
	return nil
}

// sinceOldest adds to way, where it says nothing, what turns the entries into the
// list of a release whose directories are there.
func sinceOldest(ctx context.Context, r pebble.Reader, number uint64, way map[npm.Name]Change) error {
	now, err := head(r)
	if err != nil {
		return err
	}
	_, old, err := releaseAndBefore(r, number)
	if err != nil {
		return err
	}
	g := getter{r}
	for d, err := range Diff(ctx, g, now.List, old.List) {
		if err != nil {
			return err
		}
		if _, ok := way[d.New.Name]; !ok {
			way[d.New.Name] = d.Change()
		}
	}
	for row, err := range scan(ctx, r, []byte{rowPending}) { // ahead of the newest release
		if err != nil {
			return err
		}
		name := npm.Name(row.key[1:])
		if _, ok := way[name]; ok {
			continue
		}
		e, err := Lookup(ctx, g, old.List, name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		e.Name = name
		way[name] = Change{Entry: e, Delete: err != nil}
	}
	return nil
}

// reached is the list that way makes of base, once it was held to what r commits
// to.
func reached(ctx context.Context, base iter.Seq2[Change, error], way map[npm.Name]Change, r Release) (iter.Seq2[Entry, error], error) {
	names := slices.Sorted(maps.Keys(way))
	changes := func(yield func(Change, error) bool) {
		for _, name := range names {
			if !yield(way[name], nil) {
				return
			}
		}
	}
	list := func(yield func(Entry, error) bool) {
		for c, err := range standingOnly(mergeOps(base, changes)) {
			e := Entry{Name: c.Name, CID: c.CID, Tsize: c.Tsize}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
	made, err := buildList(ctx, list, discard)
	if err != nil {
		return nil, err
	}
	return list, leadsTo(made, counts{packages: made.packages}, r)
}
