package mirror

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// The list in Pebble:
//
//	h                                 head, JSON
//	l <generation, 8 bytes> <name>    uvarint versions, uvarint Tsize, CID
//	v <name> 0 <file> 0 <CID>         SRI that the tarball's bytes matched
//	b <multihash>                     a block from a gateway, where there is no node
//
// One generation is current, the one that h names. A sync writes the next one
// beside it and then moves h, synced; since the log is sequential, whoever sees
// the new h sees the whole list. Any other generation is rubbish and deleted.
const (
	headKey     = 'h'
	listKey     = 'l'
	verifiedKey = 'v'
	blockKey    = 'b'
)

// head is the list being served. It is never changed, only replaced.
type head struct {
	Generation uint64        `json:"generation"`
	Root       cid.Cid       `json:"root"` // of the release
	Release    index.Release `json:"release"`
	Packages   int           `json:"packages"` // names counted while reading
	Synced     time.Time     `json:"synced"`
}

func generationPrefix(generation uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{listKey}, generation)
}

// loadHead takes up the current list and deletes what an unfinished sync left.
func (m *Mirror) loadHead() error {
	raw, closer, err := m.db.Get([]byte{headKey})
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return m.sweep(0)
	case err != nil:
		return fmt.Errorf("open mirror: %w", err)
	}
	var h head
	err = json.Unmarshal(raw, &h)
	closer.Close()
	if err != nil || h.Generation == 0 || !h.Root.Defined() {
		return fmt.Errorf("open mirror: %w: its head is damaged (%v)", ErrState, err)
	}
	m.head.Store(&h)
	return m.sweep(h.Generation)
}

// sweep deletes every generation but one. It needs no sync: what comes back
// after a crash is swept again.
func (m *Mirror) sweep(keep uint64) error {
	err := m.db.DeleteRange(generationPrefix(0), generationPrefix(keep), pebble.NoSync)
	if err == nil {
		err = m.db.DeleteRange(generationPrefix(keep+1), []byte{listKey + 1}, pebble.NoSync)
	}
	if err != nil {
		return fmt.Errorf("delete old lists: %w", err)
	}
	return nil
}

// writeList stores the names under a generation that nobody reads yet and
// returns how many there were. Nothing of it counts before moveHead.
func (m *Mirror) writeList(ctx context.Context, generation uint64, names iter.Seq2[index.Entry, error]) (int, error) {
	prefix := generationPrefix(generation)
	// Left by a sync that failed.
	if err := m.db.DeleteRange(prefix, generationPrefix(generation+1), pebble.NoSync); err != nil {
		return 0, fmt.Errorf("write list: %w", err)
	}
	batch := m.db.NewBatch()
	defer func() { batch.Close() }()
	count := 0
	for e, err := range names {
		if err != nil {
			return 0, fmt.Errorf("read list: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		value := binary.AppendUvarint(nil, uint64(max(e.Versions, 0)))
		value = binary.AppendUvarint(value, e.Tsize)
		value = append(value, e.CID.Bytes()...)
		if err := batch.Set(append(prefix[:len(prefix):len(prefix)], e.Name...), value, nil); err != nil {
			return 0, fmt.Errorf("write list: %w", err)
		}
		count++
		if batch.Len() > 2<<20 {
			if err := batch.Commit(pebble.NoSync); err != nil {
				return 0, fmt.Errorf("write list: %w", err)
			}
			batch.Close()
			batch = m.db.NewBatch()
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return 0, fmt.Errorf("write list: %w", err)
	}
	return count, nil
}

// moveHead makes h the list that is served. Once it returns nil, a crash does
// not undo it.
func (m *Mirror) moveHead(h *head) error {
	raw, err := json.Marshal(h)
	if err == nil {
		err = m.db.Set([]byte{headKey}, raw, pebble.Sync)
	}
	if err != nil {
		return fmt.Errorf("move to release %d: %w", h.Release.Number, err)
	}
	m.head.Store(h)
	return m.sweep(h.Generation)
}

// entry returns the directory of a listed name; ok is false for one that is
// not in the list. It returns ErrNotSynced where there is no list.
func (m *Mirror) entry(name npm.Name) (dir cid.Cid, ok bool, err error) {
	for {
		h := m.head.Load()
		if h == nil {
			return cid.Undef, false, ErrNotSynced
		}
		raw, closer, err := m.db.Get(append(generationPrefix(h.Generation), name...))
		if errors.Is(err, pebble.ErrNotFound) {
			// A list that has just been replaced is deleted while it is read.
			if m.head.Load() != h {
				continue
			}
			return cid.Undef, false, nil
		}
		if err != nil {
			return cid.Undef, false, fmt.Errorf("look up %s: %w", name, err)
		}
		_, dir, err := decodeEntry(raw)
		closer.Close()
		if err != nil {
			return cid.Undef, false, fmt.Errorf("look up %s: %w", name, err)
		}
		return dir, true, nil
	}
}

func decodeEntry(raw []byte) (versions int, dir cid.Cid, err error) {
	v, n := binary.Uvarint(raw)
	_, k := binary.Uvarint(raw[max(n, 0):])
	if n <= 0 || k <= 0 {
		return 0, cid.Undef, fmt.Errorf("%w: damaged list entry", ErrState)
	}
	dir, err = cid.Cast(append([]byte(nil), raw[n+k:]...))
	return int(v), dir, err
}

// names walks one list in the order of names, from a snapshot: a sync does not
// disturb it.
func (m *Mirror) names(ctx context.Context) iter.Seq2[index.Entry, error] {
	return func(yield func(index.Entry, error) bool) {
		snapshot := m.db.NewSnapshot()
		defer snapshot.Close()
		raw, closer, err := snapshot.Get([]byte{headKey})
		if errors.Is(err, pebble.ErrNotFound) {
			err = ErrNotSynced
		}
		if err != nil {
			yield(index.Entry{}, fmt.Errorf("walk the list: %w", err))
			return
		}
		var h head
		err = json.Unmarshal(raw, &h)
		closer.Close()
		if err != nil {
			yield(index.Entry{}, fmt.Errorf("walk the list: %w", err))
			return
		}
		prefix := generationPrefix(h.Generation)
		it, err := snapshot.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: prefix, UpperBound: generationPrefix(h.Generation + 1)})
		if err != nil {
			yield(index.Entry{}, fmt.Errorf("walk the list: %w", err))
			return
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
			if err := ctx.Err(); err != nil {
				yield(index.Entry{}, err)
				return
			}
			e := index.Entry{Name: npm.Name(it.Key()[len(prefix):])}
			e.Versions, e.CID, err = decodeEntry(it.Value())
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(index.Entry{}, fmt.Errorf("walk the list: %w", err))
		}
	}
}

func verifiedMark(name npm.Name, file string, c cid.Cid) []byte {
	key := append([]byte{verifiedKey}, name...)
	key = append(append(append(key, 0), file...), 0)
	return append(key, c.Bytes()...)
}
