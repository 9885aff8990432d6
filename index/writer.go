package index

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// blockWriter writes a release's blocks, in a batch of their own: before the
// release's batch nothing leads to them, and that one comes after them in one log,
// so that its sync covers them. Those of a whole list it writes as tables, which are
// durable at once. What a crash leaves of them is nobody's.
type blockWriter struct {
	db    *pebble.DB
	batch *pebble.Batch
	ahead bool // no release comes with them

	// fresh is what was written and not yet flushed. Nil where that is too much
	// to hold, which is then in bulk. Guarded by mu, for Get may run while write
	// does.
	fresh map[cid.Cid]blocks.Block
	mu    sync.Mutex
	bulk  *tables
	known *pebble.Iterator // over the blocks that need not be written again; nil for none

	// keep, where not nil, gets the blocks too, in batches of some MiB.
	keep func([]blocks.Block) error
	kept []blocks.Block
	size int // of kept
}

// handOnBytes is the size of a batch for keep.
const handOnBytes = 4 << 20

// newBlockWriter holds what is written until flush, which is for what changes of a
// list.
func newBlockWriter(db *pebble.DB) *blockWriter {
	return &blockWriter{db: db, batch: db.NewBatch(), fresh: map[cid.Cid]blocks.Block{}}
}

// newBulkWriter writes as it goes, which is for a whole list. Where known is set it
// passes over what the index had when it began.
func (ix *Index) newBulkWriter(known bool) (*blockWriter, error) {
	db := ix.db
	w := &blockWriter{db: db, batch: db.NewBatch(), bulk: ix.newTables(rowBlock)}
	if !known {
		return w, nil
	}
	// Most are not there: their filters say so, which Get does not ask on the
	// lowest level.
	var err error
	w.known, err = db.NewIter(&pebble.IterOptions{LowerBound: []byte{rowBlock}, UpperBound: []byte{rowBlock + 1}, UseL6Filters: true})
	if err != nil {
		return nil, errors.Join(err, w.batch.Close())
	}
	return w, nil
}

func (w *blockWriter) close() error {
	var err error
	if w.known != nil {
		err = w.known.Close()
	}
	return errors.Join(err, w.batch.Close())
}

func (w *blockWriter) write(blk blocks.Block) error {
	key := blockKey(blk.Cid())
	if w.fresh != nil && !w.isNew(blk) {
		return nil
	}
	if w.known != nil {
		if w.known.SeekPrefixGE(key) {
			return nil
		}
		if err := w.known.Error(); err != nil {
			return located(err)
		}
	}
	set := w.batchSet
	if w.bulk != nil {
		set = w.bulk.set
	}
	if err := set(key, blk.RawData()); err != nil {
		return err
	}
	if w.ahead {
		if err := w.batch.Set(aheadKey(blk.Cid()), nil, nil); err != nil {
			return err
		}
	}
	if w.keep != nil {
		w.kept = append(w.kept, blk)
		if w.size += len(blk.RawData()); w.size >= handOnBytes {
			if err := w.handOn(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *blockWriter) batchSet(key, value []byte) error { return w.batch.Set(key, value, nil) }

// isNew adds a block to fresh, if it is not there.
func (w *blockWriter) isNew(blk blocks.Block) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fresh[blk.Cid()] != nil {
		return false
	}
	w.fresh[blk.Cid()] = blk
	return true
}

// has gives what was written and not yet flushed.
func (w *blockWriter) has(c cid.Cid) blocks.Block {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fresh[c]
}

// Get reads what was written, else the index. With it w is a unixfs.Getter, which
// several goroutines may read from, also while one writes; only where fresh is nil
// no one else may.
func (w *blockWriter) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if blk := w.has(c); blk != nil {
		return blk, nil
	}
	if w.fresh == nil {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	return readBlock(w.db, c)
}

// flush hands what was written to the store. A batch it does not sync.
func (w *blockWriter) flush() error {
	if w.bulk != nil {
		return w.bulk.flush()
	}
	if w.batch.Empty() {
		return nil
	}
	if err := errors.Join(w.batch.Commit(pebble.NoSync), w.batch.Close()); err != nil {
		return err
	}
	w.batch = w.db.NewBatch()
	clear(w.fresh)
	return nil
}

// handOn gives keep what waits for its batch to be full.
func (w *blockWriter) handOn() error {
	if len(w.kept) == 0 {
		return nil
	}
	err := w.keep(w.kept)
	w.kept, w.size = nil, 0
	return err
}

// finish hands on what waits: to keep, then to the store.
func (w *blockWriter) finish() error {
	if err := w.handOn(); err != nil {
		return err
	}
	return w.flush()
}

// given writes blocks of strangers' making.
func (w *blockWriter) given(blks []blocks.Block) error {
	for _, blk := range blks {
		if _, err := checkedBlock(blk.Cid(), blk.RawData()); err != nil {
			return fmt.Errorf("%w: %w", ErrEntry, err)
		}
		if err := w.write(blk); err != nil {
			return err
		}
	}
	return nil
}
