package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
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
//	b <multihash>                     a block from a gateway, where there is no node
//	c <CID>                           what a release says of itself, JSON (see chain.go)
const (
	headKey     = 'h'
	verifiedKey = 'v'
	blockKey    = 'b'
	oldListKey  = 'l' // of lists that lay here once
)

// head is the list being served. It is never changed, only replaced.
type head struct {
	Release index.Release
	Synced  time.Time
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
		return nil
	}
	if err != nil {
		return fmt.Errorf("open mirror: %w: %w", ErrState, err)
	}
	h := &head{Release: r}
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
	return nil
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
	h := &head{Release: got.Release, Synced: m.o.Now().UTC()}
	m.setHead(h)
	err = m.note(linkOf(got.Release)) // for when nobody keeps its directories
	if err != nil || m.newest != nil {
		return got, err
	}
	raw, err := json.Marshal(syncedRow{root, h.Synced})
	if err == nil {
		err = m.db.Set([]byte{headKey}, raw, pebble.Sync)
	}
	if err != nil {
		return got, fmt.Errorf("note release %d: %w", got.Release.Number, err)
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
// not in the list. It returns ErrNotSynced where there is no list.
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

// names walks one list in the order of names: a sync does not disturb it.
func (m *Mirror) names(ctx context.Context) iter.Seq2[index.Entry, error] {
	return func(yield func(index.Entry, error) bool) {
		if m.head.Load() == nil {
			yield(index.Entry{}, fmt.Errorf("walk the list: %w", ErrNotSynced))
			return
		}
		if err := m.tooOld(); err != nil {
			yield(index.Entry{}, fmt.Errorf("walk the list: %w", err))
			return
		}
		for e, err := range m.list.Entries(ctx) {
			if err != nil {
				err = fmt.Errorf("walk the list: %w", err)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func verifiedMark(name npm.Name, file string, c cid.Cid) []byte {
	key := append([]byte{verifiedKey}, name...)
	key = append(append(append(key, 0), file...), 0)
	return append(key, c.Bytes()...)
}
