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

// Bounds of what one commit gathers: items, bytes of their blocks, and how
// long the first of them waits for company. Twice as many bytes may wait before
// whoever brings more must wait too.
const (
	gatherItems = 1024
	gatherBytes = 64 << 20
	gatherTime  = 20 * time.Millisecond
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
// which they came: what comes while one commit runs is the next one. So sixty
// tarballs of one install, or a thousand of a feed, cost a few fsyncs.
type gathering struct {
	f      *Follower
	ctx    context.Context // of the commits: no single caller's, for they serve several
	linger time.Duration   // how long a commit waits for company

	mu      sync.Mutex
	waiting []pending
	size    int           // bytes of what waits or is being committed
	room    chan struct{} // closed and replaced when size falls
	busy    bool          // somebody commits
	leaders sync.WaitGroup
}

type pending struct {
	item item
	size int
	done func(error)
}

func (f *Follower) newGathering(ctx context.Context, linger time.Duration) *gathering {
	return &gathering{f: f, ctx: ctx, linger: linger, room: make(chan struct{})}
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
	for g.size > 0 && g.size+size > 2*gatherBytes {
		room := g.room
		g.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
		g.mu.Lock()
	}
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, pending{it, size, done})
	g.size += size
	if !g.busy {
		g.busy = true
		g.leaders.Go(g.lead)
	}
	return nil
}

// close waits for all that was posted. Its error is that of the context of the
// commits, if it ended: then some of them did not happen.
func (g *gathering) close() error {
	g.leaders.Wait()
	return g.ctx.Err()
}

// lead commits until nothing waits.
func (g *gathering) lead() {
	for {
		if g.linger > 0 {
			timer := time.NewTimer(g.linger)
			select {
			case <-timer.C:
			case <-g.ctx.Done():
				timer.Stop()
			}
		}
		g.mu.Lock()
		n, size := 0, 0
		for n < len(g.waiting) && n < g.f.gatherItems && size < gatherBytes {
			size += g.waiting[n].size
			n++
		}
		batch := slices.Clone(g.waiting[:n])
		g.waiting = slices.Delete(g.waiting, 0, n)
		if n == 0 {
			g.busy = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		items := make([]item, n)
		for i, p := range batch {
			items[i] = p.item
		}
		err := g.f.store(g.ctx, items, nil)
		g.mu.Lock()
		g.size -= size
		close(g.room)
		g.room = make(chan struct{})
		g.mu.Unlock()
		for _, p := range batch {
			p.done(err)
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
