package index

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// tables hands rows of a whole list to the store as tables, which costs neither its
// log nor its memory. Rows may come in any order; of equal keys the values are equal
// too, or the last of a table counts. What flush handed over is durable.
type tables struct {
	db   *pebble.DB
	fs   vfs.FS
	path string // of the file that becomes a table, in the store's directory
	opts sstable.WriterOptions

	limit int // bytes of rows that a table has, more or less
	buf   []byte
	rows  []tableRow
}

// tableRow is where a row's key and value are in the buffer, one after the other.
type tableRow struct{ at, value, end int }

// newTables makes tables of rows of that kind. Two of one kind must not be used at
// a time.
func (ix *Index) newTables(kind byte) *tables {
	path := ix.dir.fs.PathJoin(ix.dir.path, "new-"+string(kind)+".rows")
	return &tables{db: ix.db, fs: ix.dir.fs, path: path, opts: ix.writerOptions, limit: ix.chunk}
}

// set adds a row, whose bytes it does not keep.
func (t *tables) set(key, value []byte) error {
	if len(t.buf) > 0 && len(t.buf)+len(key)+len(value) > t.limit {
		if err := t.flush(); err != nil {
			return err
		}
	}
	if t.buf == nil {
		t.buf = make([]byte, 0, t.limit+len(key)+len(value))
	}
	at := len(t.buf)
	t.buf = append(append(t.buf, key...), value...)
	t.rows = append(t.rows, tableRow{at, at + len(key), len(t.buf)})
	return nil
}

// flush hands what was set to the store.
func (t *tables) flush() error {
	if len(t.rows) == 0 {
		return nil
	}
	key := func(r tableRow) []byte { return t.buf[r.at:r.value] }
	byKey := func(a, b tableRow) int { return bytes.Compare(key(a), key(b)) }
	if !slices.IsSortedFunc(t.rows, byKey) {
		slices.SortStableFunc(t.rows, byKey)
	}
	f, err := t.fs.Create(t.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), t.opts)
	for i, r := range t.rows {
		if i+1 < len(t.rows) && bytes.Equal(key(r), key(t.rows[i+1])) {
			continue
		}
		if err = w.Set(key(r), t.buf[r.value:r.end]); err != nil {
			break
		}
	}
	if err = errors.Join(err, w.Close()); err == nil {
		err = t.db.Ingest(context.Background(), []string{t.path})
	}
	t.buf, t.rows = t.buf[:0], t.rows[:0]
	if err != nil {
		if gone := t.fs.Remove(t.path); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}
