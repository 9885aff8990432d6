package mirror

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Cache is the account of the files that the mirrors of one state fetched, tarballs
// and documents, each with all its blocks; and of what is pinned. While it is above
// its bound, the file that was used least recently goes, whole. What is being sent
// stays until that is done, and what is pinned stays whatever happens. It knows
// nothing of the list and its directories, which therefore stay too.
//
// The bound is soft: a file counts from the end of the request that brought it on.
// So what is on its way is beyond it, and what is pinned may be.
//
// The order is law:
//
//  1. A file is written down, synced, before anything of it is fetched.
//  2. Its blocks and their sizes are written once they have come.
//  3. To evict it, its blocks go from the node first, durably, and then its rows.
//
// A crash between 1 and 2 leaves a file whose blocks are looked for when it is used
// or evicted next; one within 3, rows of blocks that are gone: the file is fetched
// again when it is used, and evicted again where it is not. Never is there a block
// that came with a file and that no row leads to.
//
// In Pebble there is:
//
//	f <file>               8 bytes: when it was used last; 1: whether its blocks are known
//	t <when> <file>        the same by time
//	l <file>               its blocks: length and bytes of each multihash, size
//	b <part> 0 <multihash> <CID>   a block, and a file that has it: size
//	v                      "2": the form of these rows; in form 1 a part had a space after its label
//	s                      bytes of all blocks, each once in its part
//	p <name>               JSON: a Pin
//	o <file> <registry>    a registry that has the file
//
// <file> is <part> 0 <CID>. Times are nanoseconds since 1970, never the same twice.
type Cache struct {
	o    CacheOptions
	db   *pebble.DB
	lock io.Closer
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup

	anchoring sync.Mutex // held by who has a node pin and unpin; taken before mu

	mu     sync.Mutex // guards all below, and rows between being read and written
	closed bool
	parts  map[string]*Part
	size   int64
	last   int64                    // the newest time in any row
	inUse  map[string]int           // files, and by how many
	going  map[string]chan struct{} // files being evicted; closed once they are gone
	seen   map[string]seen          // files used lately, at most maxSeenFiles
	young  map[string]bool          // files whose rows no sync has covered yet
	pins   map[npm.Name]Pin
	pinned map[string]int // files of pins, and how many have them
	held   int            // holds: nothing goes
	over   bool           // it was said that the bound cannot be held
	trims  chan struct{}  // holds a token: there may be something to evict
	repin  chan struct{}  // holds a token: pins have changed

	fault func(step string) error // a test's
}

// CacheOptions say how a Cache is kept. Dir is required.
type CacheOptions struct {
	Dir string // made when absent
	FS  vfs.FS // nil: the operating system's
	// Bound is how many bytes of blocks are kept; 0: all. Above it, files go until
	// a sixteenth below it.
	Bound int64
	Log   *slog.Logger     // nil: none
	Now   func() time.Time // nil: time.Now
	// Grain is how long a use after the one before is not written down; 0: a minute,
	// below: none.
	Grain time.Duration
}

// seen is what of a file's row need not be read again.
type seen struct {
	used  int64
	known bool
}

const (
	fileSpace   = 'f'
	timeSpace   = 't'
	listSpace   = 'l'
	sharedSpace = 'b'
	sizeRow     = 's'
	pinRows     = 'p'
	ownerSpace  = 'o'
	formatRow   = 'v'
	cacheFormat = "2"

	maxSeenFiles = 1 << 16
	// evictAtOnce is how many files go with one sync of the node.
	evictAtOnce = 64
	// evictAgain is how long an eviction that failed is left alone.
	evictAgain = 10 * time.Second
)

// OpenCache opens the cache in o.Dir, or begins one. Errors: ErrLocked, ErrState.
func OpenCache(o CacheOptions) (*Cache, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Grain = orDefault(o.Grain, time.Minute)
	if err := makeDir(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	lock, err := pebble.LockDirectory(o.Dir, o.FS)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open the cache: %w", err)
		}
		return nil, fmt.Errorf("open the cache: %w: %w", ErrLocked, err)
	}
	db, err := pebble.Open(o.Dir, &pebble.Options{
		FS: damage.Sparing(o.FS), Lock: lock, Logger: pebbleLog{o.Log}, EventListener: damage.Listener(o.Log),
		CacheSize: 8 << 20, MemTableSize: 4 << 20,
		FormatMajorVersion: pebble.FormatValueSeparation,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache: %w", damage.AtOpen(err, ErrState)), lock.Close())
	}
	c := &Cache{
		o: o, db: db, parts: map[string]*Part{}, inUse: map[string]int{}, going: map[string]chan struct{}{},
		seen: map[string]seen{}, young: map[string]bool{}, pins: map[npm.Name]Pin{}, pinned: map[string]int{},
		trims: make(chan struct{}, 1), repin: make(chan struct{}, 1),
	}
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache: %w", damage.As(err, ErrState)), db.Close(), lock.Close())
	}
	c.lock = lock
	c.wg.Go(c.run)
	c.trimSoon()
	return c, nil
}

// load reads the total, the newest time and the pins.
func (c *Cache) load() error {
	format, err := c.get([]byte{formatRow})
	switch {
	case err != nil:
		return err
	case format == nil:
		if err := c.db.Set([]byte{formatRow}, []byte(cacheFormat), pebble.Sync); err != nil {
			return err
		}
	case string(format) == "1":
		if err := c.relabel(); err != nil {
			return err
		}
	case string(format) != cacheFormat:
		return fmt.Errorf("%w: the cache has format %.20q, and this version knows %s", ErrState, format, cacheFormat)
	}
	raw, err := c.get([]byte{sizeRow})
	if err != nil {
		return err
	}
	if raw != nil {
		size, n := binary.Varint(raw)
		if n <= 0 || size < 0 {
			return fmt.Errorf("%w: the cache's size", ErrState)
		}
		c.size = size
	}
	for key, err := range c.rows(c.db, []byte{timeSpace}, true) {
		if err != nil {
			return err
		}
		if len(key) < 9 {
			return fmt.Errorf("%w: a time of the cache", ErrState)
		}
		c.last = int64(binary.BigEndian.Uint64(key[1:9]))
		break
	}
	for key, err := range c.rows(c.db, []byte{pinRows}, false) {
		if err != nil {
			return err
		}
		raw, err := c.get(key)
		if err != nil {
			return err
		}
		var p Pin
		if err := json.Unmarshal(raw, &p); err != nil || string(p.Name) != string(key[1:]) {
			return fmt.Errorf("%w: the pin of %q", ErrState, key[1:])
		}
		c.setPin(p)
	}
	return nil
}

// relabel writes the rows of format 1 as those of format 2: the part of a state's own
// node was "node ". A crash between its writes has it begun again.
func (c *Cache) relabel() error {
	const was, is = "node ", "node"
	batch := c.db.NewBatch()
	defer func() { batch.Close() }()
	move := func(space byte, skip int) error {
		for key, err := range c.rows(c.db, []byte{space}, false) {
			if err != nil {
				return err
			}
			if len(key) < skip || !bytes.HasPrefix(key[skip:], []byte(was+"\x00")) {
				continue
			}
			value, err := c.get(key)
			if err == nil {
				err = errors.Join(batch.Set(slices.Concat(key[:skip], []byte(is), key[skip+len(was):]), value, nil), batch.Delete(key, nil))
			}
			if err == nil && batch.Len() > 1<<20 {
				err = batch.Commit(pebble.NoSync)
				batch.Close()
				batch = c.db.NewBatch()
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	for _, space := range []byte{fileSpace, listSpace, sharedSpace, ownerSpace} {
		if err := move(space, 1); err != nil {
			return err
		}
	}
	if err := move(timeSpace, 9); err != nil {
		return err
	}
	for key, err := range c.rows(c.db, []byte{pinRows}, false) {
		if err != nil {
			return err
		}
		var p Pin
		raw, err := c.get(key)
		if err == nil {
			err = json.Unmarshal(raw, &p)
		}
		if err != nil {
			return fmt.Errorf("%w: the pin of %q", ErrState, key[1:])
		}
		if p.Part != was {
			continue
		}
		p.Part = is
		if raw, err = json.Marshal(p); err == nil {
			err = batch.Set(key, raw, nil)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(batch.Set([]byte{formatRow}, []byte(cacheFormat), nil), batch.Commit(pebble.Sync))
}

// Stop ends evictions; uses are still written down.
func (c *Cache) Stop() error {
	c.end()
	c.wg.Wait()
	return nil
}

// Close ends evictions and closes the state. The mirrors must be closed before.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	return errors.Join(c.Stop(), c.db.Close(), c.lock.Close())
}

// Part is what lies in one node, or in one mirror that has none. Parts share the
// bound.
type Part struct {
	c     *Cache
	label string
	from  ipfs.Evictor // nil: nothing is counted, for nothing can be evicted
	node  Pinner       // nil: its node pins nothing
	// look finds the blocks of a file that are here, once a mirror reads this part.
	look func(ctx context.Context, file cid.Cid) (pieces []piece, whole bool)
	// gone are told of each file that was evicted.
	gone []func(file cid.Cid)
}

// Pinner is a node that keeps what is pinned from its garbage collection, a part of
// ipfs.Node.
type Pinner interface {
	Pin(ctx context.Context, label string, near, root cid.Cid) error
	Unpin(ctx context.Context, label string, root cid.Cid) error
	Pins(ctx context.Context, label string) ([]cid.Cid, error)
}

// Part returns the part of that label, which must have no NUL in it. Mirrors of one
// node have one. from takes blocks out of the node; nil is a node that decides for
// itself, as Kubo does: its files do not count. Mirrors without a node give nil for
// both, and each has a part of its own.
func (c *Cache) Part(label string, from ipfs.Evictor, node Pinner) *Part {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.parts[label]
	if !ok {
		p = &Part{c: c, label: label, from: from, node: node}
		c.parts[label] = p
	}
	return p
}

// attach makes a mirror's ways those of its part: to look for a file's blocks, and,
// where it has no node, to take them out of its own store. gone is told of each file
// that was evicted from now on.
func (p *Part) attach(look func(context.Context, cid.Cid) ([]piece, bool), own ipfs.Evictor, gone func(cid.Cid)) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.look, p.gone = look, append(p.gone, gone)
	if own != nil {
		p.from = own
	}
}

// counts says whether what lies here counts: it does where it can be evicted.
func (p *Part) counts() bool {
	if p == nil {
		return false
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.from != nil
}

func (p *Part) key(file cid.Cid) string { return p.label + "\x00" + string(file.Bytes()) }

// use makes a file the one that was used last, by a registry, and keeps it here until as
// many calls of done. Once it returns, the file is written down.
func (p *Part) use(ctx context.Context, file cid.Cid, registry string) {
	c, key := p.c, p.key(file)
	c.mu.Lock()
	for gone, ok := c.going[key]; ok; gone, ok = c.going[key] {
		c.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			break
		}
	}
	c.inUse[key]++
	err := c.touch(key, registry)
	young := c.young[key]
	c.mu.Unlock()
	if err == nil && young {
		if err = c.db.LogData(nil, pebble.Sync); err == nil { // of all that was written before
			c.mu.Lock()
			delete(c.young, key)
			c.mu.Unlock()
		}
	}
	if err != nil {
		c.o.Log.ErrorContext(ctx, "a file of the cache is not written down", "cid", file, "error", err)
	}
}

// again notes that a file is used whose bytes are in memory, if it has a row.
func (p *Part) again(ctx context.Context, file cid.Cid) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.touch(p.key(file), ""); err != nil {
		c.o.Log.ErrorContext(ctx, "a use of a file in the cache is not written down", "cid", file, "error", err)
	}
}

// touch notes that a file is used now, and makes a row where it has none and a registry
// is to have one. It needs mu.
func (c *Cache) touch(key, registry string) error {
	if s, ok := c.seen[key]; ok {
		if since := c.o.Now().UnixNano() - s.used; since >= 0 && since < int64(c.o.Grain) {
			return nil
		}
	}
	s, ok, err := c.row(key)
	if err != nil || !ok && registry == "" {
		return err
	}
	batch := c.db.NewBatch()
	defer batch.Close()
	if ok {
		err = batch.Delete(timeKey(s.used, key), nil)
	}
	c.last = max(c.last+1, c.o.Now().UnixNano())
	s.used = c.last
	if registry != "" {
		err = errors.Join(err, batch.Set(append(ownRow(key), registry...), nil, nil))
	}
	if err := errors.Join(err, c.setRow(batch, key, s), batch.Commit(pebble.NoSync)); err != nil {
		delete(c.seen, key)
		return err
	}
	if !ok {
		c.young[key] = true
	}
	return nil
}

// done is the end of a use. known says whether the file's blocks are written down;
// where they are not and this was the last use, it goes on, so that the caller can
// look for them; done with enough ends it then.
func (p *Part) done(file cid.Cid, enough bool) (known bool) {
	c, key := p.c, p.key(file)
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.seen[key]
	if !ok {
		s, _, _ = c.row(key)
	}
	if !enough && !s.known && c.inUse[key] == 1 {
		return false
	}
	if c.inUse[key]--; c.inUse[key] <= 0 {
		delete(c.inUse, key)
		if c.o.Bound > 0 && c.size > c.o.Bound {
			c.trimSoon()
		}
	}
	return true
}

// part of a file: the hash of a block, and its size in bytes.
type piece struct {
	hash mh.Multihash
	size int64
}

// took writes down which blocks of a file have come; whole says that these are all.
func (p *Part) took(file cid.Cid, pieces []piece, whole bool) error {
	c, key := p.c, p.key(file)
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok, err := c.row(key)
	if err != nil || !ok {
		return err
	}
	batch := c.db.NewIndexedBatch()
	defer batch.Close()
	size, _, err := c.setPieces(batch, key, c.size, pieces)
	if err != nil {
		return err
	}
	s.known = whole
	err = c.setRow(batch, key, s)
	if err == nil {
		err = c.step("counted")
	}
	if err == nil {
		err = batch.Commit(pebble.NoSync)
	}
	if err != nil {
		delete(c.seen, key)
		return err
	}
	c.size = size
	return nil
}

// knows says whether all blocks of a file were here when it was used last.
func (p *Part) knows(file cid.Cid) bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	key := p.key(file)
	if s, ok := p.c.seen[key]; ok {
		return s.known
	}
	s, ok, err := p.c.row(key)
	return err == nil && ok && s.known
}

// has says whether a file is written down: it was used here, and is not evicted.
func (p *Part) has(file cid.Cid) bool {
	_, ok, err := p.c.row(p.key(file))
	return err == nil && ok
}

// setPieces puts a file's blocks in the place of those it had. size is that of all
// blocks before; after and gone are what it is then, and which blocks no file has
// any more. It needs mu where batch is to be committed.
func (c *Cache) setPieces(batch *pebble.Batch, key string, size int64, pieces []piece) (after int64, gone []piece, err error) {
	part, file, _ := strings.Cut(key, "\x00")
	shared := func(hash mh.Multihash) []byte {
		return slices.Concat([]byte{sharedSpace}, []byte(part), []byte{0}, hash)
	}
	list := append([]byte{listSpace}, key...)
	raw, err := c.get(list)
	if err != nil {
		return 0, nil, err
	}
	old, err := decodePieces(raw)
	if err != nil {
		return 0, nil, err
	}
	for _, p := range old {
		if err := batch.Delete(append(shared(p.hash), file...), nil); err != nil {
			return 0, nil, err
		}
		other, err := c.any(batch, shared(p.hash))
		if err != nil {
			return 0, nil, err
		}
		if !other {
			size -= p.size
			gone = append(gone, p)
		}
	}
	raw = nil
	had := map[string]bool{}
	for _, p := range pieces {
		if had[string(p.hash)] {
			continue
		}
		had[string(p.hash)] = true
		other, err := c.any(batch, shared(p.hash))
		if err != nil {
			return 0, nil, err
		}
		if !other {
			size += p.size
		}
		if err := batch.Set(append(shared(p.hash), file...), nil, nil); err != nil {
			return 0, nil, err
		}
		raw = binary.AppendUvarint(raw, uint64(len(p.hash)))
		raw = append(raw, p.hash...)
		raw = binary.AppendUvarint(raw, uint64(p.size))
	}
	gone = slices.DeleteFunc(gone, func(p piece) bool { return had[string(p.hash)] })
	if len(raw) == 0 {
		err = batch.Delete(list, nil)
	} else {
		err = batch.Set(list, raw, nil)
	}
	return size, gone, errors.Join(err, batch.Set([]byte{sizeRow}, binary.AppendVarint(nil, size), nil))
}

func decodePieces(raw []byte) (pieces []piece, err error) {
	for len(raw) > 0 {
		n, w := binary.Uvarint(raw)
		if w <= 0 || n > uint64(len(raw)-w) {
			return nil, fmt.Errorf("%w: blocks of a file in the cache", ErrState)
		}
		p := piece{hash: bytes.Clone(raw[w : w+int(n)])}
		raw = raw[w+int(n):]
		size, w := binary.Uvarint(raw)
		if w <= 0 || size > 1<<40 {
			return nil, fmt.Errorf("%w: blocks of a file in the cache", ErrState)
		}
		p.size, raw = int64(size), raw[w:]
		pieces = append(pieces, p)
	}
	return pieces, nil
}

// CacheStatus is what the cache says of itself.
type CacheStatus struct {
	Bytes int64 `json:"bytes"`           // of the blocks of all files that count
	Bound int64 `json:"bound,omitempty"` // 0: none, or nothing that counts
	Pins  int   `json:"pins"`            // packages
}

// Status says how full the cache is.
func (c *Cache) Status() CacheStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := CacheStatus{Bytes: c.size, Pins: len(c.pins)}
	for _, p := range c.parts {
		if p.from != nil {
			s.Bound = c.o.Bound
		}
	}
	return s
}

// row reads a file's row.
func (c *Cache) row(key string) (s seen, ok bool, err error) {
	raw, err := c.get(append([]byte{fileSpace}, key...))
	if err != nil || raw == nil {
		return seen{}, false, err
	}
	if len(raw) != 9 {
		return seen{}, false, fmt.Errorf("%w: a file of the cache", ErrState)
	}
	return seen{int64(binary.BigEndian.Uint64(raw)), raw[8] == 1}, true, nil
}

// setRow writes a file's row. It needs mu.
func (c *Cache) setRow(batch *pebble.Batch, key string, s seen) error {
	value := binary.BigEndian.AppendUint64(nil, uint64(s.used))
	if s.known {
		value = append(value, 1)
	} else {
		value = append(value, 0)
	}
	if len(c.seen) >= maxSeenFiles {
		clear(c.seen)
	}
	c.seen[key] = s
	return errors.Join(batch.Set(append([]byte{fileSpace}, key...), value, nil), batch.Set(timeKey(s.used, key), nil, nil))
}

func timeKey(used int64, key string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{timeSpace}, uint64(used)), key...)
}

// get returns a copy of a value, nil where there is none.
func (c *Cache) get(key []byte) ([]byte, error) {
	raw, closer, err := c.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	value := append([]byte{}, raw...)
	return value, closer.Close()
}

// any says whether a key begins with prefix.
func (c *Cache) any(r pebble.Reader, prefix []byte) (bool, error) {
	for _, err := range c.rows(r, prefix, false) {
		return err == nil, err
	}
	return false, nil
}

// rows walks copies of the keys that begin with prefix.
func (c *Cache) rows(r pebble.Reader, prefix []byte, backwards bool) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		upper := bytes.Clone(prefix)
		for len(upper) > 0 && upper[len(upper)-1] == 0xff {
			upper = upper[:len(upper)-1]
		}
		upper[len(upper)-1]++ // a prefix begins with the letter of its space
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: upper})
		if err != nil {
			yield(nil, err)
			return
		}
		defer it.Close()
		first, next := it.First, it.Next
		if backwards {
			first, next = it.Last, it.Prev
		}
		for ok := first(); ok; ok = next() {
			if !yield(bytes.Clone(it.Key()), nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(nil, err)
		}
	}
}

// step is for tests, which end the work at it.
func (c *Cache) step(name string) error {
	if c.fault == nil {
		return nil
	}
	return c.fault(name)
}
