package ipfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/damage"
)

// Key spaces of the embedded node's Pebble. The DHT's own values lie under
// "/", where go-ds-pebble puts them.
const (
	blockSpace    = 'b' // + multihash -> bytes of the block
	placeSpace    = 'l' // + multihash -> place of the block in a CAR file
	recordSpace   = 'r' // + routing key -> signed IPNS record
	strangerSpace = 's' // + routing key -> the same, brought by whoever reached the gateway
	pinSpace      = 'p' // + label, a NUL, and a CID's bytes -> CID; once, + label -> the one CID
	holdSpace     = 'h' // + label, a slash, and a CID's bytes -> nothing
	looseSpace    = 'g' // + multihash -> when a collection found nothing that keeps the block
)

const (
	// separateFrom is the size in bytes from which a block lies in a CAR file
	// and not in Pebble. Most of a registry's bytes are in such blocks.
	separateFrom = 16 << 10
	// maxWaiting is how many blocks in CAR files wait for a Checkpoint before
	// one is made unasked. A crash loses what waits.
	maxWaiting = 8192
)

var errClosed = errors.New("the embedded node is closed")

// store is the embedded node's state: blocks by multihash, IPNS records and
// pins, in one Pebble, but for the bytes of large blocks, in CAR files. It is the blockstore that bitswap and the gateway read,
// so what it hands out has been hashed first, whoever asks.
type store struct {
	db   *pebble.DB
	cars *cars
	log  *slog.Logger

	// closed is guarded by mu; every use of db holds mu for reading, for
	// Pebble panics when used after Close.
	mu     sync.RWMutex
	closed bool

	// bad holds the multihashes that failed their check, which the next Put
	// overwrites. Guarded by badMu.
	badMu sync.Mutex
	bad   map[string]struct{}

	lost atomic.Pointer[error] // of a Sync that failed since the last checkpoint

	// removing is held for reading by whoever puts or pins blocks, from the look at
	// what is held on, and for writing while a collection removes some. It is taken
	// before mu.
	removing   sync.RWMutex
	gc         *collection     // that runs, nil for none; guarded by removing
	pinning    map[cid.Cid]int // roots on their way to a pin, and how many; guarded by removing
	collecting sync.Mutex      // held by the collection that runs
	loose      atomic.Bool     // there may be rows of looseSpace

	gone func(mh.Multihash) // told of each block that is removed, where not nil; fixed once the node is open

	// Fixed after open; tests change them.
	grace time.Duration // looseGrace
	now   func() time.Time
	fault func(step string) error
}

// openStore opens or begins the Pebble in dir, whose lock the caller holds.
func openStore(fs vfs.FS, dir string, lock *pebble.Lock, cacheSize int64, log *slog.Logger) (*store, error) {
	if cacheSize <= 0 {
		cacheSize = 32 << 20
	}
	cache := pebble.NewCache(cacheSize)
	defer cache.Unref()
	o := &pebble.Options{
		Cache:              cache,
		FS:                 damage.Sparing(fs),
		FormatMajorVersion: pebble.FormatValueSeparation,
		Lock:               lock,
		Logger:             pebbleLog{log},
		EventListener:      damage.Listener(log),
		MemTableSize:       32 << 20,
	}
	// Each table that is open costs memory and a file: fewer, larger ones.
	o.TargetFileSizes[0] = 16 << 20
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open blocks in %s: %w", dir, damage.AtOpen(err, ErrDamaged))
	}
	cars, err := openCARs(fs, fs.PathJoin(dir, "cars"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blocks in %s: %w", dir, err), db.Close())
	}
	s := &store{db: db, cars: cars, log: log, bad: map[string]struct{}{}, pinning: map[cid.Cid]int{}, grace: looseGrace, now: time.Now}
	err = s.each(looseSpace, nil, func(_, _ []byte) bool {
		s.loose.Store(true)
		return false
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blocks in %s: %w", dir, err), s.Close())
	}
	return s, nil
}

// Close makes what was put durable and gives up the Pebble.
func (s *store) Close() error {
	err := s.Sync()
	if errors.Is(err, errClosed) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(err, s.cars.close(), s.db.Close())
}

// use lets f work on the open Pebble.
func (s *store) use(f func(*pebble.DB) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return errClosed
	}
	return damage.As(f(s.db), ErrDamaged)
}

// Sync makes all earlier writes durable: the CAR files, then the places in them
// as one batch. That batch is synced after all that was written to Pebble
// before, in one log, and so syncs it too.
func (s *store) Sync() error {
	err := s.sync()
	if err != nil {
		s.lost.Store(&err)
	}
	return err
}

// checkpoint is Sync. It fails also where a Sync that nobody asked for, or that
// another asked for, failed since the last checkpoint: blocks of this caller's
// may have gone with it.
func (s *store) checkpoint() error {
	err := s.Sync()
	if lost := s.lost.Swap(nil); lost != nil {
		return *lost
	}
	return err
}

func (s *store) sync() error {
	return s.use(func(db *pebble.DB) error {
		return s.cars.sync(func(places map[string]place) error {
			batch := db.NewBatch()
			defer batch.Close()
			for hash, p := range places {
				if err := batch.Set(append([]byte{placeSpace}, hash...), p.encode(), nil); err != nil {
					return err
				}
			}
			if batch.Empty() {
				return db.LogData(nil, pebble.Sync)
			}
			return batch.Commit(pebble.Sync)
		})
	})
}

// value returns a copy of key's value, nil where there is none.
func (s *store) value(key []byte) (val []byte, err error) {
	err = s.use(func(db *pebble.DB) error {
		v, closer, err := db.Get(key)
		if errors.Is(err, pebble.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		val = append(make([]byte, 0, len(v)), v...)
		return closer.Close()
	})
	return val, err
}

// setSync keeps value under key and forgets the keys gone, as one batch.
func (s *store) setSync(key, value []byte, gone ...[]byte) error {
	return s.use(func(db *pebble.DB) error {
		batch := db.NewBatch()
		defer batch.Close()
		err := batch.Set(key, value, nil)
		for _, k := range gone {
			err = errors.Join(err, batch.Delete(k, nil))
		}
		if err != nil {
			return err
		}
		return batch.Commit(pebble.Sync)
	})
}

// each calls f with the keys (without their space) that begin with prefix, and
// their values, of a key space, in key order, until f returns false. f must not
// keep what it is given.
func (s *store) each(space byte, prefix []byte, f func(key, value []byte) bool) error {
	return s.use(func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: append([]byte{space}, prefix...), UpperBound: []byte{space + 1}})
		if err != nil {
			return err
		}
		for ok := it.First(); ok && bytes.HasPrefix(it.Key()[1:], prefix); ok = it.Next() {
			v, err := it.ValueAndErr()
			if err != nil {
				it.Close()
				return err
			}
			if !f(it.Key()[1:], v) {
				break
			}
		}
		return it.Close()
	})
}

func blockKey(c cid.Cid) []byte { return key(blockSpace, c) }

func key(space byte, c cid.Cid) []byte {
	h := c.Hash()
	return append(append(make([]byte, 0, 1+len(h)), space), h...)
}

// place returns where a block lies in a CAR file, if it does.
func (s *store) place(c cid.Cid) (place, bool, error) {
	if p, ok := s.cars.uncovered(c.Hash()); ok {
		return p, true, nil
	}
	raw, err := s.value(key(placeSpace, c))
	if err != nil || raw == nil {
		return place{}, false, err
	}
	p, err := decodePlace(raw)
	if err != nil {
		return place{}, false, fmt.Errorf("block %s: %w: %w", c, ErrCorrupt, err)
	}
	return p, true, nil
}

// data returns a block's bytes as they are stored, nil where it is not held.
func (s *store) data(c cid.Cid) ([]byte, error) {
	p, ok, err := s.place(c)
	for {
		if err != nil {
			return nil, err
		}
		if !ok {
			return s.value(blockKey(c))
		}
		data, errRead := s.cars.read(p)
		if errRead == nil || !lostBytes(errRead) {
			return data, errRead
		}
		was := p
		// A collection may just have moved it, and removed the file.
		if p, ok, err = s.place(c); err == nil && ok && p == was {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, errRead)
		}
	}
}

// inline returns the data of an identity CID, which is its own block.
func inline(c cid.Cid) ([]byte, bool) {
	if c.Prefix().MhType != mh.IDENTITY {
		return nil, false
	}
	d, err := mh.Decode(c.Hash())
	if err != nil {
		return nil, false
	}
	return d.Digest, true
}

// verify checks data against its CID.
func verify(c cid.Cid, data []byte) error {
	sum, err := c.Prefix().Sum(data)
	if err != nil {
		return fmt.Errorf("hash %s: %w", c, err)
	}
	if !sum.Equals(c) {
		return fmt.Errorf("block %s has hash %s: %w", c, sum, ErrCorrupt)
	}
	return nil
}

// Get returns a block after hashing it. As boxo's blockstores do, it reports
// a block that is not held as ipld.ErrNotFound.
func (s *store) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if data, ok := inline(c); ok {
		return blocks.NewBlockWithCid(data, c)
	}
	data, err := s.data(c)
	if err != nil {
		switch {
		case errors.Is(err, ErrCorrupt):
			err = s.condemn(c, fmt.Errorf("read block %s: %w", c, err))
		case errors.Is(err, ErrDamaged):
			err = s.condemn(c, fmt.Errorf("read block %s: %w: %w", c, ErrCorrupt, err))
		}
		return nil, err
	}
	if data == nil {
		return nil, ipld.ErrNotFound{Cid: c}
	}
	if err := verify(c, data); err != nil {
		return nil, s.condemn(c, err)
	}
	return blocks.NewBlockWithCid(data, c)
}

// condemn notes that a block failed its check, so that a Put replaces it.
func (s *store) condemn(c cid.Cid, err error) error {
	s.badMu.Lock()
	_, known := s.bad[string(c.Hash())]
	s.bad[string(c.Hash())] = struct{}{}
	s.badMu.Unlock()
	if !known {
		s.log.Error("stored block is corrupt", "cid", c.String(), "err", err)
	}
	return err
}

// Has reports whether a block is held, without reading or hashing it.
func (s *store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := s.GetSize(ctx, c)
	if ipld.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// GetSize returns a block's size in bytes without reading the block, else ipld.ErrNotFound. A block that failed its check is not held.
func (s *store) GetSize(_ context.Context, c cid.Cid) (size int, err error) {
	if data, ok := inline(c); ok {
		return len(data), nil
	}
	s.badMu.Lock()
	_, bad := s.bad[string(c.Hash())]
	s.badMu.Unlock()
	if bad {
		return -1, ipld.ErrNotFound{Cid: c}
	}
	p, ok, err := s.place(c)
	if errors.Is(err, ErrCorrupt) {
		return -1, ipld.ErrNotFound{Cid: c}
	}
	if err != nil || ok {
		return p.size, err
	}
	key := blockKey(c)
	size = -1
	err = s.use(func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: key, UpperBound: append(key[:len(key):len(key)], 0)})
		if err != nil {
			return err
		}
		if it.SeekPrefixGE(key) {
			v := it.LazyValue()
			size = v.Len()
		}
		return it.Close()
	})
	if err == nil && size < 0 {
		err = ipld.ErrNotFound{Cid: c}
	}
	return size, err
}

// Put is PutMany of one block.
func (s *store) Put(ctx context.Context, b blocks.Block) error {
	return s.PutMany(ctx, []blocks.Block{b})
}

// PutMany writes blocks that are not held yet, without a sync; Sync makes them
// durable. A crash before may keep some of them and not others. It trusts each block to match its CID: readers
// hash.
func (s *store) PutMany(ctx context.Context, blks []blocks.Block) error {
	if err := s.putMany(ctx, blks); err != nil {
		return err
	}
	if s.cars.waiting() >= maxWaiting {
		return s.Sync()
	}
	return nil
}

func (s *store) putMany(ctx context.Context, blks []blocks.Block) error {
	s.removing.RLock()
	defer s.removing.RUnlock()
	var small, large []blocks.Block
	var all []cid.Cid
	size := 0
	seen := make(map[string]struct{}, len(blks))
	for _, b := range blks {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := b.Cid()
		if len(b.RawData()) > maxBlock {
			return fmt.Errorf("put block %s: %d bytes are more than %d", c, len(b.RawData()), maxBlock)
		}
		if _, ok := inline(c); ok {
			continue
		}
		if _, ok := seen[string(c.Hash())]; ok {
			continue
		}
		seen[string(c.Hash())] = struct{}{}
		all = append(all, c)
		held, err := s.Has(ctx, c)
		if err != nil {
			return fmt.Errorf("put block %s: %w", c, err)
		}
		switch {
		case held:
		case len(b.RawData()) >= separateFrom:
			large = append(large, b)
		default:
			small = append(small, b)
			size += len(b.RawData()) + 64
		}
	}
	if err := errors.Join(s.want(all...), s.putLarge(large), s.putSmall(small, size)); err != nil {
		return fmt.Errorf("put %d blocks: %w", len(all), err)
	}
	s.badMu.Lock()
	for _, b := range slices.Concat(small, large) {
		delete(s.bad, string(b.Cid().Hash()))
	}
	s.badMu.Unlock()
	return nil
}

func (s *store) putLarge(blks []blocks.Block) error {
	if len(blks) == 0 {
		return nil
	}
	return s.use(func(*pebble.DB) error { return s.cars.append(blks) })
}

// putSmall writes blocks of size bytes, with what a batch adds to them.
func (s *store) putSmall(blks []blocks.Block, size int) error {
	if len(blks) == 0 {
		return nil
	}
	return s.use(func(db *pebble.DB) error {
		batch := db.NewBatchWithSize(size)
		defer batch.Close()
		for _, b := range blks {
			if err := batch.Set(blockKey(b.Cid()), b.RawData(), nil); err != nil {
				return err
			}
		}
		return full(batch.Commit(pebble.NoSync))
	})
}

// DeleteBlock forgets a block. In a CAR file its bytes stay. It makes a Sync,
// to find the block in Pebble.
func (s *store) DeleteBlock(_ context.Context, c cid.Cid) error {
	if err := s.Sync(); err != nil {
		return err
	}
	return s.use(func(db *pebble.DB) error {
		return errors.Join(db.Delete(key(placeSpace, c), pebble.NoSync), db.Delete(blockKey(c), pebble.NoSync))
	})
}

// AllKeysChan lists the blocks as raw CIDs, for boxo's Blockstore interface.
// It makes a Sync, to find all of them in Pebble.
func (s *store) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	out := make(chan cid.Cid)
	go func() {
		defer close(out)
		each := func(key, _ []byte) bool {
			select {
			case out <- cid.NewCidV1(cid.Raw, append(mh.Multihash(nil), key...)):
				return true
			case <-ctx.Done():
				return false
			}
		}
		err := errors.Join(s.Sync(), s.each(blockSpace, nil, each), s.each(placeSpace, nil, each))
		if err != nil {
			s.log.ErrorContext(ctx, "listing blocks failed", "err", err)
		}
	}()
	return out, nil
}

// checkPinLabel refuses what would not end where the key of a pin says.
func checkPinLabel(label string) error {
	if strings.Contains(label, "\x00") {
		return fmt.Errorf("label %.200q has a NUL in it", label)
	}
	return nil
}

func pinKey(label string, root cid.Cid) []byte {
	key := append([]byte{pinSpace}, label...)
	return append(append(key, 0), root.Bytes()...)
}

// pinned returns the roots pinned under label.
func (s *store) pinned(label string) (roots []cid.Cid, err error) {
	pins, err := s.pins(label)
	for _, p := range pins {
		if p.label == label && !slices.Contains(roots, p.root) {
			roots = append(roots, p.root)
		}
	}
	return roots, err
}

// pin records root under label, durably, after the blocks put before.
func (s *store) pin(label string, root cid.Cid) error {
	if err := s.Sync(); err != nil {
		return err
	}
	raw, err := json.Marshal(root.String())
	if err != nil {
		return err
	}
	return s.setSync(pinKey(label, root), raw)
}

// unpin strikes root from those under label, durably.
func (s *store) unpin(label string, root cid.Cid) error {
	pins, err := s.pins(label)
	if err != nil {
		return err
	}
	return s.use(func(db *pebble.DB) error {
		batch := db.NewBatch()
		defer batch.Close()
		for _, p := range pins {
			if p.label != label || p.root != root {
				continue
			}
			if err := batch.Delete(p.key, nil); err != nil {
				return err
			}
		}
		if batch.Empty() {
			return nil
		}
		return batch.Commit(pebble.Sync)
	})
}

// pinRow is one pin.
type pinRow struct {
	key   []byte
	label string
	root  cid.Cid
}

// pins returns the pins whose label begins with prefix.
func (s *store) pins(prefix string) (pins []pinRow, err error) {
	var bad error
	err = s.each(pinSpace, []byte(prefix), func(key, value []byte) bool {
		label, _, _ := bytes.Cut(key, []byte{0})
		p := pinRow{key: append([]byte{pinSpace}, key...), label: string(label)}
		var text string
		if bad = json.Unmarshal(value, &text); bad == nil {
			p.root, bad = cid.Decode(text)
		}
		if bad != nil {
			bad = fmt.Errorf("pin %q: %w", label, bad)
			return false
		}
		pins = append(pins, p)
		return true
	})
	return pins, errors.Join(err, bad)
}

func holdKey(label string, root cid.Cid) []byte {
	key := append([]byte{holdSpace}, label...)
	return append(append(key, '/'), root.Bytes()...)
}

// hold records roots under label, unsynced.
func (s *store) hold(label string, roots []cid.Cid) error {
	s.removing.RLock()
	defer s.removing.RUnlock()
	s.expect(roots...)
	return s.use(func(db *pebble.DB) error {
		batch := db.NewBatch()
		defer batch.Close()
		for _, c := range roots {
			if err := batch.Set(holdKey(label, c), nil, nil); err != nil {
				return err
			}
		}
		return batch.Commit(pebble.NoSync)
	})
}

// unhold strikes roots from those held under label, unsynced.
func (s *store) unhold(label string, roots []cid.Cid) error {
	return s.use(func(db *pebble.DB) error {
		batch := db.NewBatch()
		defer batch.Close()
		for _, c := range roots {
			if err := batch.Delete(holdKey(label, c), nil); err != nil {
				return err
			}
		}
		return batch.Commit(pebble.NoSync)
	})
}

// held returns the roots held under label.
func (s *store) held(label string) (roots []cid.Cid, err error) {
	prefix := []byte(label + "/")
	var bad error
	err = s.each(holdSpace, prefix, func(key, _ []byte) bool {
		var c cid.Cid
		if c, bad = cid.Cast(bytes.Clone(key[len(prefix):])); bad == nil {
			roots = append(roots, c)
		}
		return bad == nil
	})
	return roots, errors.Join(err, bad)
}

// pebbleLog hands Pebble's own messages to slog.
type pebbleLog struct{ log *slog.Logger }

// Infof is what its logs and tables are doing, which nobody can act on.
func (pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("pebble", "says", fmt.Sprintf(format, args...))
}

// Fatalf must not return: Pebble calls it when it can no longer keep what it
// acknowledged.
func (l pebbleLog) Fatalf(format string, args ...any) {
	l.log.Error("pebble", "says", fmt.Sprintf(format, args...))
	panic(fmt.Sprintf(format, args...))
}
