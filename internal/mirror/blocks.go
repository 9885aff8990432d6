package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// kind is what a block's bytes are part of, for the account.
type kind int

const (
	tarballs    kind = iota // bytes of tarballs
	documents               // bytes of compressed packuments
	directories             // nodes of directories and files, and release.json
)

// source is where a block came from.
type source int

const (
	fromCache    source = iota // the node, this mirror's store or its memory held it
	fromBitswap                // the node fetched it
	fromCAR                    // a gateway sent it
	fromUpstream               // Origin fetched it
)

// dag reads blocks of one kind for unixfs: from memory, from what the node
// holds, from its peers, from gateways after a head start for the peers, and
// through rescue where all that fails. Get is safe for concurrent use.
type dag struct {
	m    *Mirror
	kind kind
	// root is the file that is being read: gateways are asked for all below it
	// at once. Undefined: they are asked block by block.
	root cid.Cid
	// rescue, where not nil, brings the blocks below root into the node; rescued
	// is then not nil either.
	rescue func(ctx context.Context) error
	// rescued, where not nil and set, says that Origin has just brought the
	// blocks: they are not counted a second time.
	rescued *atomic.Bool
	// again says that the file was read before: its large blocks are kept in
	// memory. Those of an install that comes once would fill it for nothing.
	again bool
	// transfer, where not nil, is the answer that it is read for.
	transfer *transfer
}

// smallBlock is the most bytes of a block that is kept in memory when it is
// first read: every node of a directory or a file is smaller.
const smallBlock = 256 << 10

// Get returns the block of c, ErrUnavailable when no source gave it within
// Options.Deadline or before ctx ended; ErrNowhere too once all have said no.
func (d dag) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	m := d.m
	key := c.KeyString()
	b, ok := m.blocks.get(key)
	if !ok && d.again {
		b, ok = m.leaves.get(key)
	}
	if ok {
		m.stats.count(d.kind, fromCache, b)
		return b, nil
	}
	b, err := m.held(ctx, c)
	if err == nil {
		if d.rescued == nil || !d.rescued.Load() {
			m.stats.count(d.kind, fromCache, b)
		}
	} else {
		over := d.transfer.fetch()
		b, err = shared(ctx, m, "block "+key, 3*m.o.Deadline, func(ctx context.Context) (blocks.Block, error) {
			return d.fetch(ctx, c)
		})
		over()
	}
	if err != nil {
		return nil, err // unixfs names the block
	}
	switch size := int64(len(b.RawData())); {
	case size > smallBlock && d.again:
		m.leaves.put(key, b, size+256)
	case size <= smallBlock && d.kind != documents:
		m.blocks.put(key, b, size+256)
	}
	return b, nil
}

// held returns a block that lies on this machine.
func (m *Mirror) held(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if m.o.Node != nil {
		ctx, cancel := context.WithTimeout(ctx, localDeadline)
		defer cancel()
		return m.o.Node.Local(ctx, c)
	}
	raw, closer, err := m.db.Get(append([]byte{blockKey}, c.Hash()...))
	if err != nil {
		return nil, err
	}
	data := bytes.Clone(raw)
	closer.Close()
	// The store is not trusted: a block is what its CID says, or a miss.
	return blockOf(c, data)
}

// blockOf checks data against c.
func blockOf(c cid.Cid, data []byte) (blocks.Block, error) {
	got, err := c.Prefix().Sum(data)
	if err != nil {
		return nil, err
	}
	if !got.Equals(c) {
		return nil, fmt.Errorf("block %s: %w", c, blocks.ErrWrongHash)
	}
	return blocks.NewBlockWithCid(data, c)
}

// keep stores blocks that a gateway sent. It need not be durable: what a crash
// takes is fetched again.
func (m *Mirror) keep(ctx context.Context, blks []blocks.Block) error {
	if m.o.Node != nil {
		return m.o.Node.Put(ctx, blks)
	}
	batch := m.db.NewBatch()
	defer batch.Close()
	for _, b := range blks {
		if err := batch.Set(append([]byte{blockKey}, b.Cid().Hash()...), b.RawData(), nil); err != nil {
			return err
		}
	}
	return batch.Commit(pebble.NoSync)
}

// fetch asks peers and gateways for c, then rescue. It looks at home once more:
// the block may have come since the caller looked.
func (d dag) fetch(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if b, err := d.m.held(ctx, c); err == nil {
		d.m.stats.count(d.kind, fromCache, b)
		return b, nil
	}
	if d.m.o.Offline {
		return nil, fmt.Errorf("%w: %w, and does not hold it", ErrUnavailable, ErrOffline)
	}
	return d.race(ctx, c)
}

// way is one way to a block.
type way struct {
	breaker *breaker      // nil: it is never put last
	after   time.Duration // head start of those before it
	limit   time.Duration
	get     func(context.Context) (blocks.Block, error)
}

// ways are the node's peers, the gateways and rescue, in that order; where a
// gateway is already sending c's root, the gateways come first. One whose breaker
// is open comes last, and nobody waits for it.
func (d dag) ways(c cid.Cid) (all []way) {
	m := d.m
	if m.o.Node != nil {
		all = append(all, way{&m.peers, 0, m.o.Deadline, func(ctx context.Context) (blocks.Block, error) {
			b, err := m.o.Node.Find(ctx, c)
			if err == nil {
				m.stats.count(d.kind, fromBitswap, b)
				if d.root.Defined() {
					m.noteArrival(d.root, fromBitswap, "")
				}
			}
			return b, err
		}})
	}
	if len(m.o.Gateways) > 0 {
		root, whole := c, false
		if d.root.Defined() {
			root, whole = d.root, true
		}
		car, running := m.carOf(root, whole, d.kind)
		gateways := way{nil, m.o.Hedge, m.o.Deadline, func(ctx context.Context) (blocks.Block, error) { return car().wait(ctx, m, c) }}
		if running {
			all = append([]way{gateways}, all...)
		} else {
			all = append(all, gateways)
		}
	}
	if d.rescue != nil {
		all = append(all, way{nil, rescueHedge, tarballPatience, func(ctx context.Context) (blocks.Block, error) {
			err := d.rescue(ctx)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotFound) {
				return nil, lacking{fmt.Errorf("upstream: %w", err)}
			}
			if err != nil {
				return nil, fmt.Errorf("upstream: %w", err)
			}
			d.rescued.Store(true)
			b, err := m.held(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("after upstream: %w", err)
			}
			return b, nil
		}})
	}
	if len(all) > 1 && all[0].breaker != nil && all[0].breaker.open(time.Now()) {
		all = append(all[1:], all[0])
	}
	return all
}

// race asks for c on all ways and returns the first answer. Each begins when the
// head start of those before it is over, or at once when one of them has failed.
func (d dag) race(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	m := d.m
	ways := d.ways(c)
	if len(ways) == 0 {
		return nil, fmt.Errorf("%w: no source", ErrUnavailable)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		way   way
		block blocks.Block
		err   error
	}
	answers := make(chan answer, len(ways)) // all fit: nobody waits for the slower ones
	hedge := time.NewTimer(0)
	defer hedge.Stop()
	pending := 0
	silent := map[*breaker]time.Time{} // since when
	var errs []error
	nowhere := true // so far
	start := func() {
		w := ways[0]
		ways = ways[1:]
		if w.breaker != nil {
			silent[w.breaker] = time.Now()
		}
		if !m.spawn(func() {
			ctx, cancel := context.WithTimeout(ctx, w.limit)
			defer cancel()
			b, err := w.get(ctx)
			answers <- answer{w, b, err}
		}) {
			answers <- answer{w, nil, ErrClosed}
		}
		if pending++; len(ways) > 0 {
			hedge.Reset(ways[0].after)
		}
	}
	for {
		select {
		case <-hedge.C:
			if len(ways) > 0 {
				start()
			}
		case a := <-answers:
			pending--
			if a.way.breaker != nil && ctx.Err() == nil {
				a.way.breaker.note(time.Now(), a.err)
				delete(silent, a.way.breaker)
			}
			if a.err == nil {
				for b, since := range silent {
					if time.Since(since) >= rescueHedge { // it had its time
						b.note(time.Now(), ErrUnavailable)
					}
				}
				return a.block, nil
			}
			nowhere = nowhere && saysNo(a.err)
			if errs = append(errs, a.err); len(ways) > 0 {
				start()
			} else if pending == 0 && nowhere {
				return nil, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNowhere, errors.Join(errs...))
			} else if pending == 0 {
				return nil, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
			}
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
		}
	}
}

// lacking is an error of a source that has said that it does not have what was asked.
type lacking struct{ error }

func (l lacking) Unwrap() error { return l.error }

// saysNo tells such an error from those of a source that may have it.
func saysNo(err error) bool {
	var no lacking
	return errors.As(err, &no) || errors.Is(err, ipfs.ErrLacking)
}

// carFetch is one request to the gateways, shared by all that wait for blocks
// of it.
type carFetch struct {
	mu      sync.Mutex
	arrived map[cid.Cid]blocks.Block // nil once kept
	batch   []blocks.Block           // arrived and not yet kept
	size    int                      // bytes of batch
	changed chan struct{}            // closed and replaced when a block arrives or the fetch ends
	ended   bool
	err     error
}

// carOf returns how to join the fetch of root, and whether it is under way.
func (m *Mirror) carOf(root cid.Cid, whole bool, k kind) (join func() *carFetch, running bool) {
	m.carsMu.Lock()
	_, running = m.cars[root]
	m.carsMu.Unlock()
	return func() *carFetch {
		m.carsMu.Lock()
		defer m.carsMu.Unlock()
		if f, ok := m.cars[root]; ok {
			return f
		}
		f := &carFetch{arrived: map[cid.Cid]blocks.Block{}, changed: make(chan struct{})}
		m.cars[root] = f
		if !m.spawn(func() {
			err := m.fromGateways(f, root, whole, k)
			m.carsMu.Lock()
			delete(m.cars, root)
			m.carsMu.Unlock()
			f.end(err)
		}) {
			delete(m.cars, root)
			f.end(ErrClosed)
		}
		return f
	}, running
}

func (f *carFetch) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.err = true, err
	close(f.changed)
}

// wait returns block c of the fetch as soon as it has come.
func (f *carFetch) wait(ctx context.Context, m *Mirror, c cid.Cid) (blocks.Block, error) {
	for {
		f.mu.Lock()
		b, ok := f.arrived[c]
		changed, ended, err := f.changed, f.ended, f.err
		f.mu.Unlock()
		switch {
		case ok && b != nil:
			return b, nil
		case ok:
			return m.held(ctx, c)
		case ended && err != nil:
			return nil, err
		case ended:
			return nil, errors.New("gateways sent no such block")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// add takes a block in and keeps what has gathered, 4 MiB at a time.
func (f *carFetch) add(ctx context.Context, m *Mirror, b blocks.Block) error {
	f.mu.Lock()
	if _, ok := f.arrived[b.Cid()]; ok {
		f.mu.Unlock()
		return nil
	}
	f.arrived[b.Cid()] = b
	f.batch = append(f.batch, b)
	f.size += len(b.RawData())
	full := f.size >= 4<<20 || len(f.batch) >= 256
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	if full {
		return f.flush(ctx, m)
	}
	return nil
}

// flush keeps the batch. Only the fetch's own goroutine calls it.
func (f *carFetch) flush(ctx context.Context, m *Mirror) error {
	f.mu.Lock()
	batch := f.batch
	f.batch, f.size = nil, 0
	f.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	if err := m.keep(ctx, batch); err != nil {
		return fmt.Errorf("keep blocks of a gateway: %w", err)
	}
	f.mu.Lock()
	for _, b := range batch {
		f.arrived[b.Cid()] = nil
	}
	f.mu.Unlock()
	return nil
}

// maxFetched bounds the bytes of one fetch: the greatest tarball (1 GiB) with
// its nodes.
const maxFetched = 1<<30 + 16<<20

// fromGateways asks one gateway after the other, the one that worked last
// first, until one has sent everything. One that sends nothing for
// stallDeadline is left.
func (m *Mirror) fromGateways(f *carFetch, root cid.Cid, whole bool, k kind) error {
	limit := m.o.Deadline
	if whole {
		limit = wholeDeadline
	}
	ctx, cancel := context.WithTimeout(m.life, limit)
	defer cancel()
	var errs []error
	no := true // so far all lack it
	first := int(m.best.Load())
	for i := range m.o.Gateways {
		n := (first + i) % len(m.o.Gateways)
		attempt, leave := context.WithCancelCause(ctx)
		stalled := time.AfterFunc(stallDeadline, func() { leave(errors.New("the gateway stalled")) })
		gateway := m.o.Gateways[n]
		take := func(b blocks.Block) error {
			stalled.Reset(stallDeadline)
			m.stats.count(k, fromCAR, b)
			if whole {
				m.noteArrival(root, fromCAR, gateway.URL())
			}
			return f.add(ctx, m, b)
		}
		var err error
		if whole {
			err = gateway.Fetch(attempt, root, nil, ipfs.ScopeAll, maxFetched, take)
		} else {
			var b blocks.Block
			if b, err = gateway.Get(attempt, root); err == nil {
				err = take(b)
			}
		}
		stalled.Stop()
		if cause := context.Cause(attempt); err != nil && cause != nil {
			err = cause // says more than "context canceled"
		}
		leave(nil)
		// Also after a failure: what has come is good.
		if keepErr := f.flush(ctx, m); err == nil {
			err = keepErr
		}
		if err == nil {
			m.best.Store(int64(n))
			return nil
		}
		no = no && errors.Is(err, ipfs.ErrNotFound)
		errs = append(errs, fmt.Errorf("gateway %s: %w", gateway.URL(), err))
		if ctx.Err() != nil {
			no = false
			break
		}
	}
	if no {
		return lacking{errors.Join(errs...)}
	}
	return errors.Join(errs...)
}
