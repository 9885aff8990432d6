package ipfs

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
)

const (
	// carLimit is the size in bytes from which on a file is followed by the next.
	carLimit = 1 << 30
	// carWriteBehind is how many bytes the disk may lag behind what was
	// appended, so that a sync finds little left to do.
	carWriteBehind = 4 << 20
	// carCopy is the size in bytes up to which blocks are put together before
	// they are written.
	carCopy = 64 << 10
)

// cars holds the bytes of large blocks in CARv1 files, DIR/1.car and on, each
// block as one section. A file is only ever appended to, and by one process: a
// restart begins the next. A collection removes files as wholes. Where a block lies is a place, which the caller
// keeps: cars itself knows only those that no sync has covered yet. What a
// crash leaves in a file beyond the last place is nobody's.
//
// Written once, a block costs the disk its own size; in Pebble it would cost
// that twice, in the log and in a table or a blob file.
type cars struct {
	fs    vfs.FS
	dir   string
	limit int64 // carLimit; tests lower it

	// The files, guarded by mu.
	mu      sync.Mutex
	number  uint64     // of the newest file; 0 before the first
	file    vfs.File   // the newest, nil where the next append begins one
	size    int64      // of file
	full    []vfs.File // earlier files that wait for their last sync
	created bool       // a file was made since the directories were synced
	buf     []byte     // of append

	// Places that no sync has covered, by multihash. Guarded by placesMu, which
	// is never held while the disk works.
	placesMu sync.RWMutex
	pending  map[string]place // since the last sync began
	syncing  map[string]place // before

	syncMu sync.Mutex // one sync at a time; it owns syncing's changes
}

// place is where a block's data lies.
type place struct {
	file   uint64
	offset int64
	size   int
}

func (p place) encode() []byte {
	b := binary.AppendUvarint(nil, p.file)
	b = binary.AppendUvarint(b, uint64(p.offset))
	return binary.AppendUvarint(b, uint64(p.size))
}

func decodePlace(raw []byte) (place, error) {
	var v [3]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(raw); n <= 0 {
			return place{}, errors.New("not a place in a CAR")
		}
		raw = raw[n:]
	}
	if v[1] > 1<<62 || v[2] > maxBlock || len(raw) > 0 {
		return place{}, errors.New("not a place in a CAR")
	}
	return place{v[0], int64(v[1]), int(v[2])}, nil
}

func openCARs(fs vfs.FS, dir string) (*cars, error) {
	c := &cars{fs: fs, dir: dir, limit: carLimit, pending: map[string]place{}}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c.created = true // a crash may have come before the directories' sync
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if number, ok := carNumber(name); ok {
			c.number = max(c.number, number)
		}
	}
	return c, nil
}

// carNumber reads the name of a file.
func carNumber(name string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, ".car")
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, ok && err == nil
}

func (c *cars) path(number uint64) string {
	return c.fs.PathJoin(c.dir, strconv.FormatUint(number, 10)+".car")
}

// append writes blocks to the newest file. They can be read at once, and are
// durable after a later sync. On an error none of them is held.
func (c *cars) append(blks []blocks.Block) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	places := make(map[string]place, len(blks))
	for _, b := range blks {
		if c.file == nil {
			if err := c.begin(); err != nil {
				c.abandon()
				return err
			}
		}
		id := b.Cid().Bytes()
		c.buf = binary.AppendUvarint(c.buf, uint64(len(id)+len(b.RawData())))
		c.buf = append(c.buf, id...)
		places[string(b.Cid().Hash())] = place{c.number, c.size + int64(len(c.buf)), len(b.RawData())}
		var err error
		if len(b.RawData()) >= carCopy {
			if err = c.write(); err == nil {
				err = c.writeOut(b.RawData())
			}
		} else if c.buf = append(c.buf, b.RawData()...); len(c.buf) >= 1<<20 {
			err = c.write()
		}
		if err == nil {
			err = c.turn()
		}
		if err != nil {
			return err
		}
	}
	if err := errors.Join(c.write(), c.turn()); err != nil {
		return err
	}
	c.placesMu.Lock()
	maps.Copy(c.pending, places)
	c.placesMu.Unlock()
	return nil
}

// begin makes the next file.
func (c *cars) begin() error {
	f, err := c.fs.Create(c.path(c.number+1), vfs.WriteCategoryUnspecified)
	if err != nil {
		return full(err)
	}
	c.number++
	c.file = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: carWriteBehind})
	c.size, c.created = 0, true
	c.buf = append(c.buf[:0], carHeader...)
	return nil
}

// write hands buf to the file.
func (c *cars) write() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.writeOut(c.buf)
	c.buf = c.buf[:0]
	return err
}

// writeOut hands bytes to the file. A file that could not be written has unknown
// bytes at its end, so nothing more is appended to it.
func (c *cars) writeOut(p []byte) error {
	n, err := c.file.Write(p)
	c.size += int64(n)
	if err != nil {
		c.abandon()
		return full(err)
	}
	return nil
}

// turn makes the next append begin a file, where this one is full.
func (c *cars) turn() error {
	if c.file == nil || c.size+int64(len(c.buf)) < c.limit {
		return nil
	}
	err := c.write()
	c.abandon()
	return err
}

// abandon makes the next append begin a file.
func (c *cars) abandon() {
	c.buf = c.buf[:0]
	if c.file != nil {
		c.full, c.file = append(c.full, c.file), nil
	}
}

// sync makes what was appended before it durable. The order is law: the bytes,
// then the names of their files, and only then commit, which keeps the places
// durably. A crash between any two leaves bytes that no place points to.
//
// A sync that failed may have lost bytes that the system will never tell of
// again. So all blocks that were not covered are as never put, and no more is
// appended to a file of theirs.
func (c *cars) sync(commit func(map[string]place) error) error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()

	c.mu.Lock()
	closing, newest, created := c.full, c.file, c.created
	c.full, c.created = nil, false
	c.placesMu.Lock()
	c.syncing, c.pending = c.pending, map[string]place{}
	places := c.syncing
	c.placesMu.Unlock()
	c.mu.Unlock()

	var errs []error
	for _, f := range closing {
		errs = append(errs, f.Sync(), f.Close())
	}
	if len(places) > 0 && newest != nil {
		errs = append(errs, newest.Sync())
	}
	if created {
		errs = append(errs, c.syncDir())
	}
	err := errors.Join(errs...)
	if err == nil {
		err = commit(places)
	}
	if err != nil {
		c.mu.Lock()
		c.abandon()
		c.created = true
		c.placesMu.Lock()
		c.syncing, c.pending = nil, map[string]place{}
		c.placesMu.Unlock()
		c.mu.Unlock()
		return full(err)
	}
	c.placesMu.Lock()
	c.syncing = nil
	c.placesMu.Unlock()
	return nil
}

// syncDir makes the names of the files and of their directory durable.
func (c *cars) syncDir() error {
	for _, dir := range []string{c.dir, c.fs.PathDir(c.dir)} {
		d, err := c.fs.OpenDir(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// uncovered returns a place that no sync has covered yet.
func (c *cars) uncovered(hash []byte) (place, bool) {
	c.placesMu.RLock()
	defer c.placesMu.RUnlock()
	p, ok := c.pending[string(hash)]
	if !ok {
		p, ok = c.syncing[string(hash)]
	}
	return p, ok
}

// waiting is how many blocks no sync has covered.
func (c *cars) waiting() int {
	c.placesMu.RLock()
	defer c.placesMu.RUnlock()
	return len(c.pending)
}

// read returns the bytes at a place. Whether they are the block, its hash says.
func (c *cars) read(p place) ([]byte, error) {
	f, err := c.fs.Open(c.path(p.file), vfs.RandomReadsOption)
	if err != nil {
		return nil, err
	}
	data := make([]byte, p.size)
	n, err := f.ReadAt(data, p.offset)
	if n == len(data) {
		err = nil
	}
	return data, errors.Join(err, f.Close())
}

// finished are the files, by number, to which nothing is appended any more, with
// their sizes. A later sync covers all places in them.
func (c *cars) finished() (map[uint64]int64, error) {
	c.mu.Lock()
	below := c.number
	if c.file == nil {
		below++
	}
	c.mu.Unlock()
	names, err := c.fs.List(c.dir)
	if err != nil {
		return nil, err
	}
	sizes := map[uint64]int64{}
	for _, name := range names {
		number, ok := carNumber(name)
		if !ok || number >= below {
			continue
		}
		info, err := c.fs.Stat(c.path(number))
		if err != nil {
			return nil, err
		}
		sizes[number] = info.Size()
	}
	return sizes, nil
}

// remove removes a file in which no block lies. One that comes back in a crash is
// found again.
func (c *cars) remove(number uint64) error { return c.fs.Remove(c.path(number)) }

// close gives up the files. The caller has synced.
func (c *cars) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abandon()
	var errs []error
	for _, f := range c.full {
		errs = append(errs, f.Close())
	}
	c.full = nil
	return errors.Join(errs...)
}

// lostBytes tells whether an error of read means that the bytes are not there,
// rather than that the disk could not be asked.
func lostBytes(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, io.EOF)
}
