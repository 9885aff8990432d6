package follow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Bounds of what one commit gathers: items, bytes of their blocks, and how
// long the first of them waits for company.
const (
	gatherItems = 256
	gatherBytes = 64 << 20
	gatherTime  = 100 * time.Millisecond
)

// early is how many bytes of one tarball's blocks are held before they are put
// into the node ahead of its commit: memory stays flat whatever the size.
const early = 8 << 20

// item is one thing to record: what was stored, or why it was not.
type item struct {
	name npm.Name
	// key is what leaves the retry queue, unless retry puts it there again.
	key ledger.Key
	// blocks go to the node first.
	blocks []blocks.Block
	ahead  bool  // some are with the node already, not yet durable
	bytes  int64 // of the tarball, for progress

	paper   *paper          // a document that upstream just gave or confirmed
	version *ledger.Version // a version that is stored with blocks…
	doc     *paper          // … and the document that named it
	gone    string          // a tombstone: the revision of the deletion, "?" if none
	refused *ledger.Refusal
	again   bool // refused for the same reason as before
	retry   *ledger.Retry
	pardon  bool // key leaves the dead-letter list
}

func (it *item) size() (n int) {
	for _, b := range it.blocks {
		n += len(b.RawData())
	}
	return n
}

// job is one tarball to fetch.
type job struct {
	paper   *paper
	version string
}

// pass is one run of work: documents and tarballs are fetched in parallel, one
// goroutine gathers what they give into commits. It ends with finish, which
// moves the cursor with the last commit, or with abort, which moves nothing.
type pass struct {
	f   *Follower
	age time.Duration
	// retries and refused are the ledger's lists as the pass began.
	retries map[ledger.Key]ledger.Retry
	refused map[ledger.Key]ledger.Refusal

	ctx    context.Context // of the pass: it ends when one part of it fails
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	papers map[npm.Name]*memo
	queued map[ledger.Key]bool // tarballs that are fetched in this pass

	asking   chan struct{} // a token per packument request that runs
	jobs     chan job
	out      chan item
	workers  sync.WaitGroup
	cursor   *ledger.Cursor // set before last is closed
	last     chan struct{}  // closed once everything was sent
	done     chan struct{}  // closed when the committer has ended
	failure  error          // of the committer, once done is closed
	ended    bool           // finish or abort was called
	progress meter
}

// begin starts a pass. Its goroutines end with finish or abort.
func (f *Follower) begin(ctx context.Context, age time.Duration) (*pass, error) {
	retries, err := f.ledger.Retries(ctx)
	if err != nil {
		return nil, own(err)
	}
	refused, err := f.ledger.Refused(ctx)
	if err != nil {
		return nil, own(err)
	}
	p := &pass{
		f: f, age: age,
		retries: make(map[ledger.Key]ledger.Retry, len(retries)),
		refused: make(map[ledger.Key]ledger.Refusal, len(refused)),
		papers:  make(map[npm.Name]*memo),
		queued:  make(map[ledger.Key]bool),
		asking:  make(chan struct{}, f.workers),
		jobs:    make(chan job),
		out:     make(chan item),
		last:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	p.progress.tell = f.progress
	for _, r := range retries {
		p.retries[ledger.Key{Name: r.Name, Version: r.Version}] = r
	}
	for _, r := range refused {
		p.refused[ledger.Key{Name: r.Name, Version: r.Version}] = r
	}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	for range f.workers {
		p.workers.Go(p.work)
	}
	go func() {
		defer close(p.done)
		if p.failure = p.gather(); p.failure != nil {
			p.cancel(p.failure)
		}
	}()
	return p, nil
}

// finish waits for all that was asked for and commits it; cursor, where not
// nil, moves with the last of it (law 1).
func (p *pass) finish(cursor *ledger.Cursor) error {
	p.ended = true
	close(p.jobs)
	p.workers.Wait()
	p.cursor = cursor
	close(p.last)
	<-p.done
	defer p.cancel(nil)
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	return p.failure
}

// abort ends a pass that did not finish and waits for its goroutines. What was
// committed stays. After finish it does nothing.
func (p *pass) abort() {
	if p.ended {
		return
	}
	p.cancel(context.Canceled)
	_ = p.finish(nil) // the context has ended: nothing is committed
}

// cause returns what ended the pass, where err is only its echo.
func (p *pass) cause(err error) error {
	if cause := context.Cause(p.ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}

// send hands an item to the committer.
func (p *pass) send(ctx context.Context, it item) error {
	select {
	case p.out <- it:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch queues one tarball unless it is held, queued already, or was refused
// for a lasting reason by this process. The paper must have been recorded. With
// check, and where the version waits to be tried again, held means that the
// node has it whole: what comes again must have the same CID, or the ledger
// refuses it (law 3).
func (p *pass) fetch(ctx context.Context, pap *paper, version string, check bool) error {
	key := ledger.Key{Name: pap.name, Version: version}
	r, refused := p.refused[key]
	_, waiting := p.retries[key]
	held := pap.holds(version)
	if held != nil && (check || waiting) {
		err := p.f.whole(ctx, held.CID)
		if err != nil && !lost(err) {
			return own(err)
		}
		if err != nil {
			p.f.log.ErrorContext(ctx, "a tarball is missing or corrupt in the node", "package", pap.name, "version", version, "cid", held.CID, "err", err)
			held = nil
		}
	}
	if held != nil || refused && p.leaveAlone(r) {
		if waiting {
			return p.send(ctx, item{name: pap.name, key: key})
		}
		return nil
	}
	p.mu.Lock()
	again := p.queued[key]
	p.queued[key] = true
	p.mu.Unlock()
	if again {
		return nil
	}
	p.progress.add("tarballs", 0, 1, 0)
	select {
	case p.jobs <- job{pap, version}:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pass) leaveAlone(r ledger.Refusal) bool {
	return lasting(r.Reason) && !r.Time.Before(p.f.started) && p.f.now().Sub(r.Time) < refusedFor
}

// work fetches tarballs until there are no more. One that fails is recorded
// and the rest go on.
func (p *pass) work() {
	for j := range p.jobs {
		if p.ctx.Err() != nil {
			continue // drain, so that nobody waits for this worker
		}
		it, err := p.f.tarball(p.ctx, j.paper, j.version)
		if err != nil {
			if ours(p.ctx, err) {
				p.cancel(err)
				continue
			}
			p.f.log.DebugContext(p.ctx, "tarball not stored", "package", j.paper.name, "version", j.version, "err", err)
			it = p.failed(ledger.Key{Name: j.paper.name, Version: j.version}, "", err)
		} else if r, ok := p.refused[it.key]; ok && r.Reason != ledger.ReasonIntegrityChanged {
			// The ledger pardons what it newly holds; this may be what the node
			// had lost, refused while upstream did not give it.
			it.pardon = true
		}
		if p.send(p.ctx, it) == nil {
			p.progress.add("tarballs", 1, 0, it.bytes)
		}
	}
}

// errManifest is for a version that a packument lists and that is of no use.
var errManifest = errors.New("not a usable manifest")

// tarball fetches a version's tarball, verified, and cuts it to blocks.
func (f *Follower) tarball(ctx context.Context, pap *paper, version string) (item, error) {
	m := pap.doc.Versions[version]
	if m == nil {
		if bad := pap.doc.Bad[version]; bad != nil {
			return item{}, fmt.Errorf("%s@%s: %w: %w", pap.name, version, errManifest, bad)
		}
		return item{}, fmt.Errorf("%s@%s is not in its packument: %w", pap.name, version, errManifest)
	}
	file, err := npm.TarballFile(pap.name, version, m.Dist.Tarball)
	if err != nil {
		return item{}, fmt.Errorf("%s@%s: %w: %w", pap.name, version, errManifest, err)
	}
	// Verify, then keep (law 6): the bytes are whole and checked from here on.
	t, err := f.upstream.Tarball(ctx, pap.name, version, m.Dist)
	if err != nil {
		return item{}, fmt.Errorf("tarball of %s@%s: %w", pap.name, version, err)
	}
	it := item{name: pap.name, key: ledger.Key{Name: pap.name, Version: version}, doc: pap, bytes: t.Size}
	held := 0
	ref, err := unixfs.AddFile(t, func(b blocks.Block) error {
		it.blocks = append(it.blocks, b)
		if held += len(b.RawData()); held < f.early {
			return nil
		}
		err := f.put(ctx, it.blocks)
		it.blocks, it.ahead, held = nil, true, 0
		return err
	})
	if err = errors.Join(err, t.Close()); err != nil {
		return item{}, own(fmt.Errorf("store tarball of %s@%s: %w", pap.name, version, err))
	}
	it.version = &ledger.Version{
		Version: version, Integrity: t.SRI, Shasum: t.Shasum, File: file,
		CID: ref.CID, Size: ref.Size, Tsize: ref.Tsize, FirstSeen: f.now().UTC(),
	}
	return it, nil
}

// gather is the committer: it takes items as they come and commits them in
// batches, the last one with the cursor.
func (p *pass) gather() error {
	var batch []item
	size := 0
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	for {
		full := false
		select {
		case <-p.last:
			if p.ctx.Err() != nil {
				return context.Cause(p.ctx)
			}
			return p.f.store(p.ctx, batch, p.cursor)
		case it := <-p.out:
			if len(batch) == 0 {
				timer.Reset(gatherTime)
			}
			batch = append(batch, it)
			size += it.size()
			full = len(batch) >= p.f.gatherItems || size >= gatherBytes
		case <-timer.C:
			full = len(batch) > 0
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		if full {
			if err := p.f.store(p.ctx, batch, nil); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
}

// meter adds up the progress of one pass.
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
