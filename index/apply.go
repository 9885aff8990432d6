package index

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Apply makes the next release of the entries that stand after the changes, and
// moves entries, blocks, release and sources in one synced batch: a crash leaves
// all or nothing of it, but for blocks that nothing leads to. With Batch.More
// there is no release yet: entries and sources alone move. Where the list, what a
// bare gateway shows, Names, Next, Peers, Policy, Keys and Snapshot are as the newest
// release has them there is no new release; Sources, Held and Mark move all the same, and changed
// is false. The
// first Apply always makes a release, if of an empty list, and so does one whose
// Batch.After this index does not have.
//
// List and front depend on the entries alone, not on the batches that led to
// them. The work, and the new blocks, grow with the changes, and hardly with the
// list.
//
// An unusable change, block or Held is an ErrEntry, Batch.After without AfterRoot and
// Keys beyond MaxKeys an ErrRelease, and nothing is done.
func (ix *Index) Apply(ctx context.Context, batch Batch) (r Release, changed bool, err error) {
	if err := ix.begin(); err != nil {
		return Release{}, false, err
	}
	defer ix.end()
	ix.apply.Lock()
	defer ix.apply.Unlock()

	r, changed, err = ix.applyLocked(ctx, batch)
	if err != nil {
		return Release{}, false, fmt.Errorf("apply %d changes: %w", len(batch.Changes), err)
	}
	return r, changed, nil
}

func (ix *Index) applyLocked(ctx context.Context, batch Batch) (Release, bool, error) {
	old, err := head(ix.db)
	first := errors.Is(err, ErrNoRelease)
	if err != nil && !first {
		return Release{}, false, err
	}
	if isCopy, err := readCopy(ix.db); err != nil || isCopy {
		return Release{}, false, cmp.Or(err, ErrCopy)
	}
	if batch.After > 0 && !batch.AfterRoot.Defined() {
		return Release{}, false, fmt.Errorf("%w: release %d, without its root", ErrRelease, batch.After)
	}
	if len(batch.Keys) > MaxKeys {
		return Release{}, false, fmt.Errorf("%w: signing keys of %d bytes, %d allowed", ErrRelease, len(batch.Keys), MaxKeys)
	}
	number, previous := old.Number+1, old.Root
	passed := old.Number < batch.After || old.Number == batch.After && batch.After > 0 && old.Root != batch.AfterRoot
	if passed {
		number, previous = batch.After+1, batch.AfterRoot
	}
	b := ix.db.NewIndexedBatchWithSize(4<<10 + 200*min(len(batch.Changes), 10_000))
	defer b.Close()
	now, err := readCounts(ctx, ix.db)
	if err != nil {
		return Release{}, false, err
	}
	parameters := ix.Parameters()
	if batch.Gateway != "" {
		if parameters.Gateway == "" {
			return Release{}, false, fmt.Errorf("%w: it has nothing for gateways", ErrParameters)
		}
		parameters.Gateway = batch.Gateway
	}
	gatewayMoved := parameters != ix.Parameters()
	touched, err := writeEntries(b, batch.Changes, parameters.Gateway != "", &now)
	if err != nil {
		return Release{}, false, err
	}
	if err := writeCounts(b, now); err != nil {
		return Release{}, false, err
	}
	moved, err := writeSources(b, batch.Sources)
	if err != nil {
		return Release{}, false, err
	}
	for _, write := range []func() (bool, error){
		func() (bool, error) { return writeHeld(b, batch.Held) },
		func() (bool, error) { return writeMark(b, batch.Mark) },
	} {
		also, err := write()
		if err != nil {
			return Release{}, false, err
		}
		moved = moved || also
	}
	if batch.More {
		return old, false, ix.applyPage(b, batch, touched)
	}
	pending, err := countPending(ix.db, max(old.Packages/anewShare, maxDeltaNames)+1)
	if err != nil {
		return Release{}, false, err
	}
	var snapshot Snapshot
	var keys []byte
	if !first {
		if snapshot, err = snapshotOf(ctx, getter{ix.db}, old.Root); err != nil {
			return Release{}, false, err
		}
		if keys, err = ReadKeys(ctx, getter{ix.db}, old.Root); err != nil {
			return Release{}, false, err
		}
	}
	snapshotMoved := batch.Snapshot.Number > 0 && batch.Snapshot.File.CID != snapshot.File.CID
	if snapshotMoved {
		snapshot = batch.Snapshot
	}
	same := !first && !passed && !snapshotMoved && !gatewayMoved && bytes.Equal(batch.Keys, keys) && batch.Next == old.Next && batch.Policy == old.Policy &&
		slices.Equal(batch.Names, old.Names) && slices.Equal(batch.Peers, old.Peers)
	if same && len(touched)+pending == 0 {
		if moved {
			err = b.Commit(pebble.Sync)
		}
		return old, false, err
	}

	m := making{
		b: b, old: old, first: first, snapshot: snapshot, keys: batch.Keys,
		anew:    first || len(touched)+pending > old.Packages/anewShare,
		inDelta: !first && len(touched)+pending <= maxDeltaNames,
	}
	if m.w, err = ix.writer(m.anew, first, len(touched)+pending); err != nil {
		return Release{}, false, err
	}
	defer m.w.close()
	if !m.anew || m.inDelta {
		if m.names, err = changedNames(ctx, b, touched); err != nil {
			return Release{}, false, err
		}
	}
	if err := m.makeList(ctx); err != nil {
		return Release{}, false, err
	}
	same = same && m.list.list() == old.List
	m.front = m.list.root
	shown := pending > 0 || slices.ContainsFunc(touched, func(t touch) bool { return t.shown })
	if parameters.Gateway != "" && (shown || !same) {
		if shown, err = m.makeFront(ctx); err != nil {
			return Release{}, false, err
		}
	}
	for _, row := range []byte{rowPending, rowAhead, rowPlace} {
		if err := b.DeleteRange([]byte{row}, []byte{row + 1}, nil); err != nil {
			return Release{}, false, err
		}
	}
	if same && !shown {
		// Only counts of versions changed, or what changed was changed back.
		// The release's own counts stay as they were until the next one; the
		// directories' blocks were there already.
		return old, false, b.Commit(pebble.Sync)
	}
	if err := m.w.given(batch.Blocks); err != nil {
		return Release{}, false, err
	}
	var jump Jump
	if !first && !passed {
		if jump, err = jumpAfter(ix.db, old); err != nil {
			return Release{}, false, err
		}
	}
	r := Release{
		Format: Format, Number: number, Created: batch.Now.UTC().Truncate(time.Second), Previous: previous, Jump: jump, List: m.list.list(),
		Packages: now.packages, Versions: now.versions, Sources: batch.Sources, Parameters: parameters,
		Policy: batch.Policy, Names: batch.Names, Next: batch.Next, Peers: batch.Peers,
	}
	if gatewayMoved {
		if err := writeParameters(b, parameters); err != nil {
			return Release{}, false, err
		}
	}
	if err := m.commit(ctx, &r); err != nil {
		return Release{}, false, err
	}
	ix.parameters.Store(&parameters)
	ix.log.InfoContext(ctx, "made a release", "number", r.Number, "root", r.Root.String(),
		"packages", r.Packages, "versions", r.Versions, "changes", len(batch.Changes))
	return r, true, nil
}

// writer is for the blocks of a release. Those of a whole list go to the store as
// they come, for they may be many.
func (ix *Index) writer(anew, first bool, changes int) (*blockWriter, error) {
	if anew {
		return ix.newBulkWriter(!first)
	}
	w := newBlockWriter(ix.db)
	// A change of one name takes some 9 KB of blocks.
	w.batch = ix.db.NewBatchWithSize(min(changes*9<<10, 32<<20))
	return w, nil
}

// making is a release on its way.
type making struct {
	b        *pebble.Batch // with entries, places and counts as they are now
	w        *blockWriter
	old      Release // zero for the first
	first    bool
	names    []npm.Name // that changed since old
	anew     bool       // where most of the list changes it is cheaper to build it than to edit it
	inDelta  bool       // there is a delta from old
	snapshot Snapshot   // to show; none without a number
	keys     []byte     // document of signing keys; nil: none
	list     built
	front    unixfs.Ref
}

func (m *making) makeList(ctx context.Context) (err error) {
	if m.anew {
		m.list, err = buildList(ctx, entries(ctx, m.b), m.w.write)
	} else {
		m.list, err = editList(ctx, m.b, m.w, m.old.List, m.names, m.w.write, nil)
	}
	return err
}

// makeFront makes what a bare gateway shows, and says whether it is another than
// before.
func (m *making) makeFront(ctx context.Context) (changed bool, err error) {
	var before unixfs.Ref
	if !m.first {
		if before, err = frontOf(ctx, m.w, m.old.Root, discard); err != nil {
			return false, err
		}
	}
	if m.anew {
		m.front, err = buildFront(ctx, m.b, m.w.write)
	} else {
		m.front, err = editFront(ctx, m.b, m.w, m.old.List, before, m.names, m.w.write)
	}
	return before != m.front, err
}

// commit makes r's directory and commits all of it.
func (m *making) commit(ctx context.Context, r *Release) error {
	raw, err := encodeRelease(*r, false)
	if err != nil {
		return err
	}
	var more []unixfs.Link
	if m.snapshot.Number > 0 {
		l, err := m.snapshot.dir(m.w.write)
		if err != nil {
			return err
		}
		more = append(more, l)
	}
	if m.keys != nil {
		file, err := unixfs.AddChunks([][]byte{m.keys}, m.w.write)
		if err != nil {
			return err
		}
		more = append(more, unixfs.Link{Name: keysName, CID: file.CID, Tsize: file.Tsize})
	}
	if m.inDelta {
		deltas, err := addDelta(ctx, m.b, m.w, m.old, r.Number, m.names, m.w.write)
		if err != nil {
			return err
		}
		more = append(more, unixfs.Link{Name: deltaName, CID: deltas.CID, Tsize: deltas.Tsize})
	}
	root, err := releaseDir(ctx, m.w, m.list, m.front, raw, more, m.w.write)
	if err != nil {
		return err
	}
	r.Root = root.CID
	if raw, err = encodeRelease(*r, true); err != nil {
		return err
	}
	if err := m.b.Set(numbered(rowRelease, r.Number), raw, nil); err != nil {
		return err
	}
	// Blocks first, to which nothing leads yet; then the one durable step. Before
	// it nothing of this release exists, after it all does.
	if err := m.w.flush(); err != nil {
		return err
	}
	return m.b.Commit(pebble.Sync)
}

// applyPage writes a batch after which more come before there is a release.
func (ix *Index) applyPage(b *pebble.Batch, batch Batch, touched []touch) error {
	for _, t := range touched {
		if err := writePending(b, t); err != nil {
			return err
		}
	}
	w := newBlockWriter(ix.db)
	defer w.close()
	w.ahead = true
	if err := w.given(batch.Blocks); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// anewShare is the share of a list (one in so many) from which on as many
// changes are dearer than all of it.
const anewShare = 8

// maxDeltaNames bounds what one release may change for there to be a delta to it.
const maxDeltaNames = 250_000

// touch is a name whose row a batch changes.
type touch struct {
	name  npm.Name
	was   bool // listed before
	shown bool // with another directory for a gateway
}

// writeEntries puts the changes into the batch, which has none yet, brings the counts
// up to date, and says which names have other rows than before. Only with gateway may
// an entry have a directory for one.
func writeEntries(b *pebble.Batch, changes []Change, gateway bool, now *counts) (touched []touch, err error) {
	last := make(map[npm.Name]int, len(changes))
	for i, c := range changes {
		if err := checkChange(c, gateway); err != nil {
			return nil, err
		}
		last[c.Name] = i
	}
	before := make([]entryRow, len(changes))
	err = parallel(len(changes), func(i int) (err error) {
		if last[changes[i].Name] == i {
			before[i].Entry, before[i].found, err = readEntry(b, changes[i].Name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, c := range changes {
		if last[c.Name] != i {
			continue
		}
		old, found := before[i].Entry, before[i].found
		switch {
		case c.Delete && !found, !c.Delete && found && old == c.Entry:
			continue
		case c.Delete:
			err = b.Delete(entryKey(c.Name), nil)
			now.packages--
		default:
			err = b.Set(entryKey(c.Name), encodeEntry(c.Entry), nil)
			if !found {
				now.packages++
			}
			now.versions += c.Versions
		}
		if err != nil {
			return nil, err
		}
		now.versions -= old.Versions
		touched = append(touched, touch{c.Name, found, old.Gateway != c.Gateway})
	}
	return touched, nil
}

// entryRow is what stands under a name.
type entryRow struct {
	Entry
	found bool
}

// parallel calls f with each number below n, on all cores where that is worth it.
func parallel(n int, f func(i int) error) error {
	const share = 64 // of one core at a time
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for from := 0; from < n; from += share {
		group.Go(func() error {
			for i := from; i < min(n, from+share); i++ {
				if err := f(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// checkChange refuses what the list cannot hold.
func checkChange(c Change, gateway bool) error {
	if _, err := npm.ParseName(string(c.Name)); err != nil {
		return fmt.Errorf("%w: %w", ErrEntry, err)
	}
	switch {
	case c.Delete:
		return nil
	case !usable(c.CID, c.Tsize) || c.Versions < 0:
		return fmt.Errorf("%w: %s: CID %s, Tsize %d, %d versions", ErrEntry, c.Name, c.CID, c.Tsize, c.Versions)
	case c.Gateway != unixfs.Ref{} && !(gateway && usable(c.Gateway.CID, c.Gateway.Tsize)):
		return fmt.Errorf("%w: %s: gateway's directory %s, Tsize %d", ErrEntry, c.Name, c.Gateway.CID, c.Gateway.Tsize)
	}
	return nil
}

// directoryPrefix is that of every package directory's CID.
var directoryPrefix = cid.Prefix{Version: 1, Codec: cid.DagProtobuf, MhType: multihash.SHA2_256, MhLength: 32}

// usable tells a directory that can be linked from a list.
func usable(c cid.Cid, tsize uint64) bool {
	return c.Defined() && c.Prefix() == directoryPrefix && tsize <= maxTsize
}

func writeSources(b *pebble.Batch, sources []Source) (moved bool, err error) {
	old, err := readSources(b)
	if err != nil || slices.Equal(old, sources) {
		return false, err
	}
	raw, err := json.Marshal(sources)
	if err != nil {
		return false, err
	}
	return true, b.Set([]byte{rowSources}, raw, nil)
}
