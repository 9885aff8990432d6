package ipfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/bbloom"
	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
)

var (
	// ErrCollecting is returned by Collect while another collection runs.
	ErrCollecting = errors.New("a garbage collection runs already")
	// ErrKuboCollects is returned by Collect for a Kubo daemon: its garbage is its
	// own (`ipfs repo gc`, or `ipfs daemon --enable-gc`).
	ErrKuboCollects = errors.New("a Kubo daemon collects its garbage itself")
)

// Collector is a Node whose garbage is collected when it is asked for, and never
// else: a node may hold what its user counts on and nothing pins, as what a mirror
// fetched.
type Collector interface {
	// Collect removes blocks that neither a pin nor a hold has below it and that an
	// earlier collection, a day before or more, found so too. It may run beside
	// all else, and be stopped by ctx at any time. progress, where not nil, is told
	// of stages ("marked", "looked at") how many blocks of about how many.
	Collect(ctx context.Context, progress func(stage string, done, total int)) (Collected, error)
}

// Collected is what a garbage collection did.
type Collected struct {
	Blocks  int   `json:"blocks"`  // looked at that stay
	Loose   int   `json:"loose"`   // of these, that nothing keeps: a later collection removes them
	Removed int   `json:"removed"` // blocks that went
	Bytes   int64 `json:"bytes"`   // of these
	Files   int   `json:"files"`   // CAR files that went
	Freed   int64 `json:"freed"`   // bytes of these files, less what was moved out of them
}

const (
	// looseGrace is how long a block is loose before it goes: long enough for
	// whoever puts blocks first and pins them later.
	looseGrace = 24 * time.Hour
	// falseMarks is the share of garbage that a collection takes for kept. The
	// next one takes another share.
	falseMarks = 0.01
	// pageRows is how many rows are read at once.
	pageRows = 4096
	// removeRows is how many are removed at once, while Puts wait.
	removeRows = 256
	// moveBlocks and moveBytes bound what is moved out of CAR files at once.
	moveBlocks, moveBytes = 64, 16 << 20
)

// collect removes blocks that neither a pin nor a hold has below it. A missing
// block is no error: what lies below it is not known. One that is held and cannot
// be read is: nothing is removed then.
//
// Blocks come before their roots. So a block is only noted as loose when a
// collection finds it first, and goes when a later one, s.grace after that or
// more, finds it so again. The note is struck when the block is put, looked for
// by one of our commands, or found by a pin, meanwhile: what comes back stays,
// also where a Put skipped it because it was held.
//
// The order is law:
//
//  1. The roots are marked, and all below them.
//  2. Blocks that were noted long ago and have no mark go, each batch with its
//     notes and under removing: no Put is at work then, and roots that came since
//     1 began are marked first.
//  3. Blocks without a mark are noted.
//  4. All that is synced; CAR files in which no block lies any more go.
//  5. Blocks are moved out of CAR files that are mostly dead: appended to the
//     newest, then synced, which moves their places; then the files go in which
//     no block lies.
//
// A crash, or an end of ctx, between any two leaves notes that a later collection
// looks at anew, bytes that no place points to, and a file without places.
func (s *store) collect(ctx context.Context, report func(stage string, done, total int)) (c Collected, err error) {
	if !s.collecting.TryLock() {
		return c, ErrCollecting
	}
	defer s.collecting.Unlock()
	if report == nil {
		report = func(string, int, int) {}
	}
	if err := s.Sync(); err != nil { // to find all places in Pebble
		return c, err
	}
	g, total, err := s.begin(falseMarks)
	if err != nil {
		return c, err
	}
	defer s.end()
	if err := g.mark(ctx, func(done int) { report("marked", done, max(done, total)) }); err != nil {
		return c, err
	}
	if err := g.sweep(ctx, &c); err != nil {
		return c, err
	}
	if err := g.note(ctx, &c, func(done int) { report("looked at", done, max(done, total)) }); err != nil {
		return c, err
	}
	return c, g.shrink(ctx, &c)
}

// collection is a garbage collection under way.
type collection struct {
	s     *store
	marks *bbloom.Bloom // of multihashes; its own methods lock it
	walk  wholeness
	count int       // marks set
	now   time.Time // when it began

	mu    sync.Mutex
	fresh []cid.Cid // roots that came since it began and are not marked yet
}

// begin makes a collection, which hears of new roots from then on, and estimates
// how many blocks there are. mistaken is the share of garbage that it takes for kept.
func (s *store) begin(mistaken float64) (*collection, int, error) {
	total, err := s.estimate()
	if err != nil {
		return nil, 0, err
	}
	// 1.2 to 2.4 bytes a block. Keys of its own: what a stranger put cannot be made
	// to look marked.
	marks, err := bbloom.NewWithKeys(rand.Uint64(), rand.Uint64(), float64(total+1<<16), mistaken)
	if err != nil {
		return nil, 0, err
	}
	g := &collection{s: s, marks: marks, now: s.now()}
	g.walk = wholeness{h: marker{g}, seen: map[string]struct{}{}}
	s.removing.Lock()
	defer s.removing.Unlock()
	for root := range s.pinning {
		g.fresh = append(g.fresh, root)
	}
	s.gc = g
	return g, total, nil
}

func (s *store) end() {
	s.removing.Lock()
	defer s.removing.Unlock()
	s.gc = nil
}

// estimate is how many blocks there are, or more, from what tables say of
// themselves. What is not in a table yet is left out.
func (s *store) estimate() (n int, err error) {
	err = s.use(func(db *pebble.DB) error {
		for _, space := range []byte{blockSpace, placeSpace} {
			levels, err := db.SSTables(pebble.WithProperties(), pebble.WithKeyRangeFilter([]byte{space}, []byte{space + 1}))
			if err != nil {
				return err
			}
			for _, tables := range levels {
				for _, t := range tables {
					n += int(t.Properties.NumEntries)
				}
			}
		}
		return nil
	})
	return n, err
}

// expect lets a collection that runs know of new roots. The caller holds
// removing.
func (s *store) expect(roots ...cid.Cid) {
	if s.gc == nil {
		return
	}
	s.gc.mu.Lock()
	defer s.gc.mu.Unlock()
	s.gc.fresh = append(s.gc.fresh, roots...)
}

// expectPin is expect of a root that is to be pinned, for as long as that takes:
// what the walk found whole stays until the pin is there, or done was called.
func (s *store) expectPin(root cid.Cid) (done func()) {
	s.removing.Lock()
	defer s.removing.Unlock()
	s.pinning[root]++
	s.expect(root)
	return func() {
		s.removing.Lock()
		defer s.removing.Unlock()
		if s.pinning[root]--; s.pinning[root] == 0 {
			delete(s.pinning, root)
		}
	}
}

// want strikes the notes that blocks are loose. The caller holds removing for
// reading.
func (s *store) want(cs ...cid.Cid) error {
	if !s.loose.Load() {
		return nil
	}
	return s.use(func(db *pebble.DB) error {
		batch := db.NewBatch()
		defer batch.Close()
		for _, c := range cs {
			note := key(looseSpace, c)
			noted, err := has(db, note)
			if err == nil && noted {
				err = batch.Delete(note, nil)
			}
			if err != nil {
				return err
			}
		}
		if batch.Empty() {
			return nil
		}
		return batch.Commit(pebble.NoSync)
	})
}

func has(db *pebble.DB, key []byte) (bool, error) {
	_, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, closer.Close()
}

// wanted are a store's blocks for one of our commands: what was found stays for a
// while, though nothing may keep it yet.
type wanted struct{ s *store }

func (w wanted) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := w.s.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	stays, err := w.s.stays(ctx, c)
	if err == nil && !stays {
		err = ipld.ErrNotFound{Cid: c}
	}
	return b, err
}

func (w wanted) Has(ctx context.Context, c cid.Cid) (bool, error) {
	held, err := w.s.Has(ctx, c)
	if err != nil || !held {
		return false, err
	}
	return w.s.stays(ctx, c)
}

// stays strikes the note that a block which was just found is loose, and says
// whether the block is still there. Without a note nothing removes it for a while,
// so that most readers do not wait for a collection.
func (s *store) stays(ctx context.Context, c cid.Cid) (bool, error) {
	noted := false
	if s.loose.Load() {
		err := s.use(func(db *pebble.DB) (err error) {
			noted, err = has(db, key(looseSpace, c))
			return err
		})
		if err != nil {
			return false, err
		}
	}
	if !noted {
		return true, nil
	}
	s.removing.RLock()
	defer s.removing.RUnlock()
	held, err := s.Has(ctx, c)
	if err != nil || !held {
		return false, err
	}
	return true, s.want(c)
}

// rows calls f with copies of a key space's rows, in key order, a page at a time:
// between pages others may write. Keys are without their space; values are nil
// unless asked for.
func (s *store) rows(ctx context.Context, space byte, values bool, f func(page []row) error) error {
	from := []byte{space}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var page []row
		err := s.use(func(db *pebble.DB) error {
			it, err := db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: []byte{space + 1}})
			if err != nil {
				return err
			}
			for ok := it.First(); ok && len(page) < pageRows; ok = it.Next() {
				r := row{key: bytes.Clone(it.Key()[1:])}
				if values {
					v, err := it.ValueAndErr()
					if err != nil {
						return errors.Join(err, it.Close())
					}
					r.value = bytes.Clone(v)
				}
				page = append(page, r)
			}
			return it.Close()
		})
		if err != nil || len(page) == 0 {
			return err
		}
		if err := f(page); err != nil {
			return err
		}
		from = append(append([]byte{space}, page[len(page)-1].key...), 0)
	}
}

type row struct{ key, value []byte }

// hashed is the raw CID of a row's multihash.
func (r row) hashed() cid.Cid { return cid.NewCidV1(cid.Raw, mh.Multihash(r.key)) }

// mark marks what pins and holds have below them. Of the pins of a label each is
// marked beside the one before, of which it mostly is a part.
func (g *collection) mark(ctx context.Context, report func(done int)) error {
	pins, err := g.s.pins("")
	if err != nil {
		return err
	}
	var near pinRow
	for _, p := range pins {
		if p.label != near.label {
			near.root = cid.Undef
		}
		if err := g.walk.diff(ctx, near.root, p.root); err != nil {
			return fmt.Errorf("mark what %q pins: %w", p.label, err)
		}
		near = p
		report(g.count)
	}
	err = g.s.rows(ctx, holdSpace, false, func(page []row) error {
		for _, r := range page {
			label, raw, _ := bytes.Cut(r.key, []byte{'/'})
			root, err := cid.Cast(raw)
			if err == nil {
				err = g.walk.diff(ctx, cid.Undef, root)
			}
			if err != nil {
				return fmt.Errorf("mark what %q holds: %w", label, err)
			}
		}
		report(g.count)
		return nil
	})
	if err != nil {
		return err
	}
	return g.markFresh(ctx)
}

// markFresh marks roots that came since, until none is left.
func (g *collection) markFresh(ctx context.Context) error {
	for {
		g.mu.Lock()
		roots := g.fresh
		g.fresh = nil
		g.mu.Unlock()
		if len(roots) == 0 {
			return nil
		}
		for _, root := range roots {
			if err := g.walk.diff(ctx, cid.Undef, root); err != nil {
				return fmt.Errorf("mark a new root: %w", err)
			}
		}
	}
}

// marker is the store as wholeness walks it to mark what it comes upon. A missing
// block has no links.
type marker struct{ g *collection }

func (m marker) Has(_ context.Context, c cid.Cid) (bool, error) {
	m.g.marks.AddTS(c.Hash())
	m.g.count++
	return true, nil
}

func (m marker) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	m.g.marks.AddTS(c.Hash())
	m.g.count++
	b, err := m.g.s.Get(ctx, c)
	if ipld.IsNotFound(err) {
		return merkledag.NodeWithData(nil), nil
	}
	return b, err
}

// sweep removes what was noted long enough ago and has no mark.
func (g *collection) sweep(ctx context.Context, c *Collected) error {
	return g.s.rows(ctx, looseSpace, true, func(page []row) error {
		for notes := range slices.Chunk(page, removeRows) {
			for done := false; !done; {
				err := g.markFresh(ctx)
				if err == nil {
					err = g.s.step("marked")
				}
				if err == nil {
					done, err = g.remove(notes, c)
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// removing commits what f puts into a batch, as o says, with no block put and no root
// marked meanwhile. It does nothing and is not done where a root came just now.
func (g *collection) removing(o *pebble.WriteOptions, f func(db *pebble.DB, batch *pebble.Batch) error) (done bool, err error) {
	s := g.s
	s.removing.Lock()
	defer s.removing.Unlock()
	g.mu.Lock()
	fresh := len(g.fresh)
	g.mu.Unlock()
	if fresh > 0 {
		return false, nil
	}
	err = s.use(func(db *pebble.DB) error {
		batch := db.NewBatch()
		defer batch.Close()
		if err := f(db, batch); err != nil || batch.Empty() {
			return err
		}
		return batch.Commit(o)
	})
	if err != nil {
		return false, err
	}
	return true, s.step("removed")
}

// remove removes those of some notes whose time is over, as removing does.
func (g *collection) remove(notes []row, c *Collected) (done bool, err error) {
	s := g.s
	return g.removing(pebble.NoSync, func(db *pebble.DB, batch *pebble.Batch) error {
		for _, r := range notes {
			note := append([]byte{looseSpace}, r.key...)
			if g.marks.HasTS(r.key) {
				if err := batch.Delete(note, nil); err != nil {
					return err
				}
				continue
			}
			noted, err := has(db, note)
			if err != nil {
				return err
			}
			since, n := binary.Varint(r.value)
			if n <= 0 {
				return fmt.Errorf("note on %s: %w", r.hashed(), ErrCorrupt)
			}
			if !noted || g.now.Sub(time.Unix(since, 0)) < s.grace {
				continue
			}
			if _, fresh := s.cars.uncovered(r.key); fresh {
				continue
			}
			if err := s.strike(db, batch, r.key, c); err != nil {
				return err
			}
		}
		return nil
	})
}

// strike removes a block and its note in batch, and counts it. The caller holds
// removing.
func (s *store) strike(db *pebble.DB, batch *pebble.Batch, hash []byte, c *Collected) error {
	size, held, err := storedSize(db, hash)
	if err != nil {
		return err
	}
	if held {
		c.Removed++
		c.Bytes += int64(size)
	}
	for _, space := range []byte{looseSpace, blockSpace, placeSpace} {
		if err := batch.Delete(append([]byte{space}, hash...), nil); err != nil {
			return err
		}
	}
	s.badMu.Lock()
	delete(s.bad, string(hash))
	s.badMu.Unlock()
	if s.gone != nil {
		s.gone(hash)
	}
	return nil
}

// storedSize is a block's size in bytes, if it lies in Pebble or has a place.
func storedSize(db *pebble.DB, hash []byte) (size int, held bool, err error) {
	for _, space := range []byte{placeSpace, blockSpace} {
		value, closer, err := db.Get(append([]byte{space}, hash...))
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, false, err
		}
		size := len(value)
		if space == placeSpace {
			p, err := decodePlace(value)
			if err != nil {
				return 0, false, errors.Join(fmt.Errorf("%w: %w", ErrCorrupt, err), closer.Close())
			}
			size = p.size
		}
		return size, true, closer.Close()
	}
	return 0, false, nil
}

// note notes blocks that have no mark and no note yet.
func (g *collection) note(ctx context.Context, c *Collected, report func(done int)) error {
	s := g.s
	s.loose.Store(true)
	now := binary.AppendVarint(nil, g.now.Unix())
	for _, space := range []byte{blockSpace, placeSpace} {
		err := s.rows(ctx, space, false, func(page []row) error {
			err := s.use(func(db *pebble.DB) error {
				batch := db.NewBatch()
				defer batch.Close()
				for _, r := range page {
					c.Blocks++
					if g.marks.HasTS(r.key) {
						continue
					}
					c.Loose++
					note := append([]byte{looseSpace}, r.key...)
					noted, err := has(db, note)
					if err == nil && !noted {
						err = batch.Set(note, now, nil)
					}
					if err != nil {
						return err
					}
				}
				if batch.Empty() {
					return nil
				}
				return batch.Commit(pebble.NoSync)
			})
			if err != nil {
				return full(err)
			}
			report(c.Blocks)
			return s.step("noted")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shrink gives back the disk under CAR files that are mostly dead. Only those
// are looked at to which nothing is appended any more.
func (g *collection) shrink(ctx context.Context, c *Collected) error {
	s := g.s
	sizes, err := s.cars.finished()
	if err != nil {
		return err
	}
	// The removals, and all places in these files, are durable after it.
	if err := s.Sync(); err != nil {
		return err
	}
	if err := s.step("synced"); err != nil {
		return err
	}
	live, err := s.live(ctx)
	if err != nil {
		return err
	}
	mostlyDead := map[uint64]bool{}
	for number, size := range sizes {
		switch {
		case live[number] == 0:
			if err := g.removeFile(number, size, c); err != nil {
				return err
			}
		case 2*live[number] < size:
			mostlyDead[number] = true
		}
	}
	if len(mostlyDead) == 0 {
		return nil
	}
	moved, err := g.move(ctx, mostlyDead)
	if err != nil {
		return err
	}
	if err := s.Sync(); err != nil {
		return err
	}
	if err := s.step("moves synced"); err != nil {
		return err
	}
	// Asked anew: another's Sync may have failed and lost what was moved.
	if live, err = s.live(ctx); err != nil {
		return err
	}
	for number := range mostlyDead {
		if live[number] == 0 {
			if err := g.removeFile(number, sizes[number]-moved[number], c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *collection) removeFile(number uint64, freed int64, c *Collected) error {
	if err := g.s.cars.remove(number); err != nil {
		return err
	}
	c.Files++
	c.Freed += freed
	return g.s.step("file removed")
}

// live is how many bytes of blocks lie in each CAR file.
func (s *store) live(ctx context.Context) (map[uint64]int64, error) {
	live := map[uint64]int64{}
	err := s.rows(ctx, placeSpace, true, func(page []row) error {
		for _, r := range page {
			p, err := decodePlace(r.value)
			if err != nil {
				return fmt.Errorf("block %s: %w: %w", r.hashed(), ErrCorrupt, err)
			}
			live[p.file] += int64(max(p.size, 1))
		}
		return nil
	})
	return live, err
}

// move appends the blocks of files to the newest one, and says how many bytes it
// moved out of each. What cannot be read stays where it is.
func (g *collection) move(ctx context.Context, files map[uint64]bool) (moved map[uint64]int64, err error) {
	s := g.s
	moved = map[uint64]int64{}
	var batch []movable
	size := 0
	flush := func() error {
		err := g.append(batch, moved)
		batch, size = batch[:0], 0
		if err == nil && s.cars.waiting() >= maxWaiting {
			err = s.Sync()
		}
		if err != nil {
			return err
		}
		return s.step("moved")
	}
	err = s.rows(ctx, placeSpace, true, func(page []row) error {
		for _, r := range page {
			p, err := decodePlace(r.value)
			if err != nil {
				return fmt.Errorf("block %s: %w: %w", r.hashed(), ErrCorrupt, err)
			}
			if !files[p.file] {
				continue
			}
			data, err := s.cars.read(p)
			if lostBytes(err) {
				continue
			}
			if err != nil {
				return err
			}
			// Its codec is not known here, and a section's CID is read by nobody.
			b, err := blocks.NewBlockWithCid(data, r.hashed())
			if err != nil {
				return err
			}
			batch = append(batch, movable{b, p})
			if size += len(data); len(batch) >= moveBlocks || size >= moveBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return ctx.Err()
	})
	if err == nil && len(batch) > 0 {
		err = flush()
	}
	return moved, err
}

// movable is a block and where it was found.
type movable struct {
	blocks.Block
	from place
}

// append appends blocks to the newest file, but for those that lie elsewhere by
// now: one that was found corrupt may have been put anew.
func (g *collection) append(batch []movable, moved map[uint64]int64) error {
	s := g.s
	s.removing.Lock()
	defer s.removing.Unlock()
	var blks []blocks.Block
	for _, m := range batch {
		p, ok, err := s.place(m.Cid())
		if err != nil {
			return err
		}
		if ok && p == m.from {
			blks = append(blks, m.Block)
			moved[p.file] += int64(p.size)
		}
	}
	return s.putLarge(blks)
}

// step is for tests, which end a collection at it, or do something beside it.
func (s *store) step(name string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(name)
}
