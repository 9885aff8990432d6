package follow

import (
	"context"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Bounds of what one batch gathers: items, bytes of their blocks, and how
// long the first of them waits for company. Twice as many bytes may wait before
// whoever brings more must wait too.
const (
	gatherItems = 1024
	gatherBytes = 16 << 20
	gatherTime  = 20 * time.Millisecond
	// maxBrought is how many batches may wait for a checkpoint.
	maxBrought = 8
)

// item is one thing to record: what was stored, or why it was not.
type item struct {
	name npm.Name
	// blocks go to the node first.
	blocks []blocks.Block
	ahead  bool  // some are with the node already, not yet durable
	bytes  int64 // of the tarball, for progress

	done     []ledger.Done   // rows of the queue that end with it
	paper    *paper          // a document that upstream just gave or confirmed
	version  *ledger.Version // a version that is stored with blocks…
	doc      *paper          // … and the document that named it
	gone     string          // a tombstone: the revision of the deletion after a "?"
	why      string          // the ledger's reason of a removal, "" for the usual one
	approved bool            // a removal that the breaker may not hold
	refused  *ledger.Refusal
	again    bool           // refused for the same reason as before
	queue    []ledger.Retry // rows that come into the queue
	pardon   []ledger.Key   // rows that leave the dead-letter list
}

func (it *item) size() (n int) {
	for _, b := range it.blocks {
		n += len(b.RawData())
	}
	return n
}

// gathering commits the items of concurrent callers together, in the order in
// which they came, by two stages that work at the same time:
//
//	post -> waiting -> lead: Hold, Put -> brought -> settle: Checkpoint, Commit -> done
//
// What comes while one batch is put is the next one, and all that were put while
// one checkpoint ran are under the next: the slower the disk, the fewer syncs.
// So sixty tarballs of one install, or a thousand of a feed, cost a few. The law
// of the four steps is at Follower.store; each batch goes through it in order.
type gathering struct {
	f      *Follower
	ctx    context.Context // of the commits: no single caller's, for they serve several
	linger time.Duration   // how long a batch waits for company

	mu       sync.Mutex
	waiting  []pending
	since    time.Time     // when the first of waiting came, or moved up
	size     int           // bytes of what waits or is being put
	brought  []brought     // batches that wait for a checkpoint
	moved    chan struct{} // closed and replaced when size or brought fall
	leading  bool          // lead runs
	settling bool          // settle runs
	stages   sync.WaitGroup
}

type pending struct {
	item item
	size int
	done func(error)
}

func (f *Follower) newGathering(ctx context.Context, linger time.Duration) *gathering {
	return &gathering{f: f, ctx: ctx, linger: linger, moved: make(chan struct{})}
}

// add returns once the item is durable, or why it is not.
func (g *gathering) add(ctx context.Context, it item) error {
	done := make(chan error, 1)
	if err := g.post(ctx, it, func(err error) { done <- err }); err != nil {
		return err
	}
	return <-done
}

// post returns once there is room for the item, and calls done, which must not
// block, once it is durable or will not be. An error of post's own is ctx's;
// done is not called then.
func (g *gathering) post(ctx context.Context, it item, done func(error)) error {
	size := it.size()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.size > 0 && g.size+size > 2*gatherBytes {
		if err := g.wait(ctx); err != nil {
			return err
		}
	}
	if len(g.waiting) == 0 {
		g.since = time.Now()
	}
	g.waiting = append(g.waiting, pending{it, size, done})
	g.size += size
	if !g.leading {
		g.leading = true
		g.stages.Go(g.lead)
	}
	return nil
}

// wait lets g.mu go until something has moved, or ctx ends.
func (g *gathering) wait(ctx context.Context) error {
	moved := g.moved
	g.mu.Unlock()
	defer g.mu.Lock()
	select {
	case <-moved:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// move wakes those who wait. g.mu is held.
func (g *gathering) move() {
	close(g.moved)
	g.moved = make(chan struct{})
}

// close waits for all that was posted. Its error is that of the context of the
// commits, if it ended: then some of them did not happen.
func (g *gathering) close() error {
	g.stages.Wait()
	return g.ctx.Err()
}

// lead brings what waits to the node, batch by batch, until nothing does.
func (g *gathering) lead() {
	for {
		batch, size := g.take()
		if len(batch) == 0 {
			return
		}
		items := make([]item, len(batch))
		for i, p := range batch {
			items[i] = p.item
		}
		b, err := g.f.bring(g.ctx, items)
		b.done = func(err error) {
			for _, p := range batch {
				p.done(err)
			}
		}
		g.mu.Lock()
		g.size -= size
		if err == nil {
			g.brought = append(g.brought, b)
			if !g.settling {
				g.settling = true
				g.stages.Go(g.settle)
			}
		}
		g.move()
		g.mu.Unlock()
		if err != nil {
			b.done(err)
		}
	}
}

// take returns the next batch and its bytes, once it is full or its first item
// is as old as linger, and not too many wait for a checkpoint. None ends lead.
func (g *gathering) take() (batch []pending, size int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.brought) >= maxBrought && g.wait(g.ctx) == nil {
	}
	if rest := g.linger - time.Since(g.since); rest > 0 && len(g.waiting) > 0 && len(g.waiting) < g.f.gatherItems {
		g.mu.Unlock()
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-g.ctx.Done():
			timer.Stop()
		}
		g.mu.Lock()
	}
	n := 0
	for n < len(g.waiting) && n < g.f.gatherItems && size < gatherBytes {
		size += g.waiting[n].size
		n++
	}
	batch = slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	g.since = time.Now()
	g.leading = n > 0
	return batch, size
}

// settle makes durable and commits what was brought, until nothing waits for it.
func (g *gathering) settle() {
	for {
		g.mu.Lock()
		batches := g.brought
		g.brought = nil
		g.settling = len(batches) > 0
		g.move()
		g.mu.Unlock()
		if len(batches) == 0 {
			return
		}
		err := g.f.settle(g.ctx, batches, nil)
		for _, b := range batches {
			b.done(err)
		}
	}
}

// meter adds up the progress of one run.
type meter struct {
	mu     sync.Mutex
	tell   func(stage string, done, total int, bytes int64)
	stages map[string]*stage
}

type stage struct {
	done, total int
	bytes       int64
}

func (m *meter) add(name string, done, total int, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stages == nil {
		m.stages = make(map[string]*stage)
	}
	s := m.stages[name]
	if s == nil {
		s = &stage{}
		m.stages[name] = s
	}
	s.done += done
	s.total += total
	s.bytes += bytes
	m.tell(name, s.done, s.total, s.bytes)
}
