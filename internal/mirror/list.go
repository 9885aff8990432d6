package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// The list lies in an index of its own, which index.Sync keeps. In Pebble there
// is, beside it:
//
//	h                                 when which release was synced, JSON
//	v <name> 0 <file> 0 <CID>         SRI that the tarball's bytes matched
//	a <multihash> <source>            when that source brought bytes of the file, JSON
//	b <multihash>                     a block from a gateway, where there is no node
//	c <CID>                           what a release says of itself, JSON (see chain.go)
//	n                                 names that came and went, JSON: see names.go
//	d <CID>                           what a held file says of its package, JSON: see described.go
//	q <name>                          a package that is to be looked at: see look.go
//	w                                 which have been, JSON: see look.go
//	p                                 parts of newer lists that bundles brought, JSON
const (
	headKey     = 'h'
	verifiedKey = 'v'
	arrivalKey  = 'a'
	blockKey    = 'b'
	partsKey    = 'p'
	oldListKey  = 'l' // of lists that lay here once
)

// head is the list being served. It is never changed, only replaced.
type head struct {
	Release index.Release
	Synced  time.Time
	// list is the root of the release whose list is here whole, undefined where
	// there is none. parts are of newer releases, the newest first. Release is the
	// newest of all.
	list  cid.Cid
	parts []part
}

// serves says whether h is the whole list of the release at root.
func (h *head) serves(root cid.Cid) bool {
	return h != nil && len(h.parts) == 0 && h.Release.Root.Equals(root)
}

// syncedRow is the row h.
type syncedRow struct {
	Root   cid.Cid   `json:"root"`
	Synced time.Time `json:"synced"`
}

// loadHead takes up the list that is held.
func (m *Mirror) loadHead() error {
	if err := m.db.DeleteRange([]byte{oldListKey}, []byte{oldListKey + 1}, pebble.NoSync); err != nil {
		return fmt.Errorf("open mirror: %w", err)
	}
	r, err := m.list.Head()
	if errors.Is(err, index.ErrNoRelease) {
		return m.loadParts(nil)
	}
	if err != nil {
		return fmt.Errorf("open mirror: %w: %w", ErrState, err)
	}
	if err := m.loadNames(); err != nil {
		return fmt.Errorf("open mirror: %w", damage.As(err, ErrState))
	}
	h := &head{Release: r, list: r.Root}
	raw, closer, err := m.db.Get([]byte{headKey})
	switch {
	case errors.Is(err, pebble.ErrNotFound):
	case err != nil:
		return fmt.Errorf("open mirror: %w", damage.As(err, ErrState))
	default:
		// The list tells the truth; this row, what of it is known beside. A crash
		// between the two leaves the row of the list before.
		var row syncedRow
		err := json.Unmarshal(raw, &row)
		closer.Close()
		if err == nil && row.Root.Equals(r.Root) {
			h.Synced = row.Synced
		}
	}
	m.setHead(h)
	return m.loadParts(h)
}

// setHead serves a list from now on. Its caller has the syncing token, or the
// mirror to itself.
func (m *Mirror) setHead(h *head) {
	if m.head.Swap(h) == nil {
		close(m.first)
	}
}

// awaitFirst waits a while for the first list: who has just started a mirror asks
// at once.
func (m *Mirror) awaitFirst(ctx context.Context) {
	if m.head.Load() != nil || m.o.Offline {
		return
	}
	t := time.NewTimer(min(m.patience, m.o.Deadline))
	defer t.Stop()
	select {
	case <-m.first:
	case <-ctx.Done():
	case <-m.life.Done():
	case <-t.C:
	}
}

// syncList moves to the release at root. Once it returns nil, a crash does not
// undo it.
func (m *Mirror) syncList(ctx context.Context, root cid.Cid) (index.Synced, error) {
	got, err := m.list.Sync(ctx, dag{m: m, kind: directories}, root, m.keepDirectories(ctx))
	if err != nil {
		return got, err
	}
	before := m.head.Load()
	h := &head{Release: got.Release, list: got.Release.Root, Synced: m.o.Now().UTC()}
	v := move{to: h.list, came: got.Came, went: got.Went}
	if before != nil {
		v.from = before.list
	}
	if err := m.moveNames(h, v); err != nil {
		m.log.WarnContext(ctx, "a search after the next start takes longer", "error", err)
	}
	if err := m.lookAtMoved(v.from, v.to, slices.Concat(got.Came, got.Went, got.Moved)); err != nil {
		m.log.ErrorContext(ctx, "what changed may not be found by what it says", "error", err)
	}
	m.announceList(ctx, before, got.Release)
	err = m.note(linkOf(got.Release)) // for when nobody keeps its directories
	if err != nil || m.newest != nil {
		return got, err
	}
	raw, err := json.Marshal(syncedRow{root, h.Synced})
	if err == nil {
		batch := m.db.NewBatch()
		defer batch.Close()
		// The whole list has what its parts had.
		err = errors.Join(batch.Set([]byte{headKey}, raw, nil), batch.Delete([]byte{partsKey}, nil))
		if err == nil {
			err = batch.Commit(pebble.Sync)
		}
	}
	if err != nil {
		return got, fmt.Errorf("note release %d: %w", got.Release.Number, err)
	}
	if before != nil && len(before.parts) > 0 {
		m.letGoOfParts(ctx)
	}
	return got, nil
}

// keepDirectories gives the node the list's directories, so that it has them for
// its peers although nobody sent them: they were rebuilt here.
func (m *Mirror) keepDirectories(ctx context.Context) func([]blocks.Block) error {
	if m.o.Node == nil {
		return nil
	}
	return func(blks []blocks.Block) error {
		err := m.o.Node.Put(ctx, blks)
		if err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "the node lacks a part of the list for its peers", "error", err)
			err = nil
		}
		return err
	}
}

// entry returns the directory of a listed name; ok is false for one that is
// not in the list. It returns ErrNotSynced where there is no list, and
// ErrUnavailable where there are only parts of one, which do not have the name.
func (m *Mirror) entry(name npm.Name) (dir cid.Cid, ok bool, err error) {
	h := m.head.Load()
	if h == nil {
		return cid.Undef, false, ErrNotSynced
	}
	if err := m.tooOld(); err != nil {
		return cid.Undef, false, err
	}
	if e, ok := m.entries.get(name); ok && e.head == h {
		return e.dir, true, nil
	}
	for _, p := range h.parts {
		if dir, ok := p.Names[name]; ok {
			return dir, true, nil
		}
	}
	if !h.list.Defined() {
		return cid.Undef, false, fmt.Errorf("look up %s: %w: %w", name, ErrUnavailable, errNotInBundle)
	}
	e, err := m.list.Entry(name)
	if errors.Is(err, index.ErrNotFound) {
		return cid.Undef, false, nil
	}
	if err != nil {
		return cid.Undef, false, fmt.Errorf("look up %s: %w", name, err)
	}
	m.entries.put(name, listedEntry{h, e.CID}, int64(len(name))+256)
	return e.CID, true, nil
}

// tooOld is ErrStale where what is held must not be served any more. A frozen
// release has no record, and does not age.
func (m *Mirror) tooOld() error {
	high := m.high.Load()
	if m.o.MaxStale <= 0 || high.Value == "" || m.o.Now().Sub(high.EOL) <= m.o.MaxStale {
		return nil
	}
	return fmt.Errorf("%w: its record expired on %s", ErrStale, high.EOL.UTC().Format(time.RFC3339))
}

// listedEntry is what the list said of a name. head was loaded before it was
// read, and is replaced after the list has moved: so the entry is no older than
// head, and holds for as long as that is the newest.
type listedEntry struct {
	head *head
	dir  cid.Cid
}

func verifiedMark(name npm.Name, file string, c cid.Cid) []byte {
	key := append([]byte{verifiedKey}, name...)
	key = append(append(append(key, 0), file...), 0)
	return append(key, c.Bytes()...)
}
