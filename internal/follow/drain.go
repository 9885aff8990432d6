package follow

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

const (
	// look is how many rows of the queue are looked at in one go.
	look = 1000
	// settle is how long changed documents wait for others before what they
	// select is resolved again, while there is other work.
	settle = time.Second
)

// drain works the queue off: it takes packages as their rows fall due and works
// on Workers of them at once, so that a slow one holds up nobody else. It ends
// once more is closed, or nil, and nothing is due, nothing is in work and nothing
// that was done calls for more; else with ctx. Any other error is our own fault.
//
// The law: a row leaves the queue in the commit that records what came of it.
// Whatever is cut short is still in the queue.
func (f *Follower) drain(ctx context.Context, more <-chan struct{}) error {
	if err := take(ctx, f.draining); err != nil {
		return err
	}
	defer release(f.draining)
	d := &drain{
		f: f, flying: make(map[npm.Name]bool), ended: make(chan struct{}, 1),
		packages: make(chan struct{}, f.workers), tarballs: make(chan struct{}, 2*f.workers),
	}
	d.progress.tell = f.progress
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	d.gather = f.newGathering(d.ctx, f.gatherTime)
	err := d.run(more)
	if err != nil {
		d.cancel(err)
	}
	d.work.Wait()
	err = errors.Join(err, d.gather.close())
	cause := context.Cause(d.ctx)
	d.cancel(nil)
	if err != nil && cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}

// drain is one run of Follower.drain.
type drain struct {
	f      *Follower
	ctx    context.Context // ends when one part fails
	cancel context.CancelCauseFunc
	gather *gathering

	packages chan struct{} // a token per package in work
	tarballs chan struct{} // a token per tarball that is fetched
	work     sync.WaitGroup
	ended    chan struct{} // something in work has ended
	looked   time.Duration // what this pass spent on looking at rows; owned by run

	mu        sync.Mutex
	flying    map[npm.Name]bool // packages whose rows are in work, or being committed
	resolving bool

	progress meter
}

func (d *drain) run(more <-chan struct{}) error {
	var resolved time.Time
	for {
		// Both before the queue is read: what comes after that is seen next time.
		queued, last := d.f.ledger.Queued(), over(more)
		idle := d.idle()
		d.looked = 0
		started, later, err := d.pass()
		if err != nil {
			return err
		}
		if (d.idle() || time.Since(resolved) >= settle) && d.resolve() {
			resolved = time.Now()
		} else if started == 0 && d.idle() && idle && last {
			return nil
		} else if !idle && d.idle() {
			continue // what has just ended may have queued more
		}
		wait := time.Minute
		if !d.idle() {
			wait = settle
		}
		if !later.IsZero() {
			wait = min(wait, later.Sub(d.f.now()))
		}
		// Rows in work are passed over each time: looking at them must cost little.
		pause := 5*time.Millisecond + 4*d.looked
		timer := time.NewTimer(max(wait, pause))
		select {
		case <-d.ctx.Done():
		case <-queued:
		case <-waitFor(more, last):
		case <-d.f.touches:
		case <-d.ended:
		case <-timer.C:
		}
		timer.Reset(pause)
		select {
		case <-d.ctx.Done():
			timer.Stop()
			return d.ctx.Err()
		case <-timer.C:
		}
	}
}

// over reports whether no more is to come: more is nil or closed.
func over(more <-chan struct{}) bool {
	if more == nil {
		return true
	}
	select {
	case <-more:
		return true
	default:
		return false
	}
}

// waitFor is more, until it is over: a closed channel wakes nobody again.
func waitFor(more <-chan struct{}, over bool) <-chan struct{} {
	if over {
		return nil
	}
	return more
}

// pass goes through what is due once, and starts work on what is not in work.
// Rows without a time are urgent: they are looked for again before each page of
// the others, whatever has piled up. later is when the next row falls due.
func (d *drain) pass() (started int, later time.Time, err error) {
	var at, urgent ledger.Due
	for {
		for more := true; more; {
			var n int
			if n, more, _, err = d.start(&urgent, time.Time{}); err != nil {
				return started, later, err
			}
			started += n
		}
		urgent = ledger.Due{}
		n, more, next, err := d.start(&at, d.f.now())
		if err != nil {
			return started, later, err
		}
		started += n
		if !more {
			return started, next, nil
		}
	}
}

// start looks at some rows from at on and works on those that are due by then
// and not in work. It waits for others to end where enough are.
func (d *drain) start(at *ledger.Due, due time.Time) (started int, more bool, later time.Time, err error) {
	began := time.Now()
	keys, next, later, err := d.f.ledger.Due(d.ctx, *at, due, look)
	d.looked += time.Since(began) // but not what waiting for others takes
	if err != nil {
		return 0, false, later, own(err)
	}
	*at = next
	for _, k := range keys {
		d.mu.Lock()
		busy := d.flying[k.Name]
		d.mu.Unlock()
		if busy {
			continue
		}
		if err := d.f.room(d.ctx); err != nil {
			return started, false, later, err
		}
		select {
		case d.packages <- struct{}{}:
		case <-d.ctx.Done():
			return started, false, later, d.ctx.Err()
		}
		d.mu.Lock()
		d.flying[k.Name] = true
		d.mu.Unlock()
		started++
		d.work.Go(func() { d.workOn(k.Name) })
	}
	return started, len(keys) == look, later, nil
}

func (d *drain) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flying) == 0 && !d.resolving
}

// resolve begins to resolve what changed documents may select now, unless that
// runs already or there is nothing to do.
func (d *drain) resolve() bool {
	d.f.selection.mu.Lock()
	dirty := len(d.f.selection.dirty) > 0
	d.f.selection.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !dirty || d.resolving {
		return false
	}
	d.resolving = true
	d.work.Go(func() {
		if _, err := d.f.resolveTouched(d.ctx); err != nil {
			d.cancel(err)
		}
		d.mu.Lock()
		d.resolving = false
		d.mu.Unlock()
		d.tell()
	})
	return true
}

func (d *drain) tell() {
	select {
	case d.ended <- struct{}{}:
	default:
	}
}

// workOn does what is due of one package. Its rows are in work until all that
// came of them is durable, so that none is taken twice.
func (d *drain) workOn(name npm.Name) {
	j := &job{drain: d, name: name}
	if err := j.do(); err != nil {
		d.cancel(err)
	}
	<-d.packages
	j.posted.Wait()
	if j.asked {
		d.f.touch(name) // also where there is no document: others wait for it
	}
	d.mu.Lock()
	delete(d.flying, name)
	d.mu.Unlock()
	d.tell()
}

// job is the work on one package.
type job struct {
	*drain
	name   npm.Name
	asked  bool           // upstream was asked for the document
	posted sync.WaitGroup // items that are not durable yet
}

// record hands an item to be committed. Its failure ends the drain.
func (j *job) record(it item) error {
	j.posted.Add(1)
	size := uint64(it.bytes)
	j.f.note(func(s *seen) { s.pending += size })
	arrived := func() {
		j.f.note(func(s *seen) { s.pending -= size })
		j.posted.Done()
	}
	err := j.gather.post(j.ctx, it, func(err error) {
		defer arrived()
		if err != nil {
			j.cancel(err)
		}
	})
	if err != nil {
		arrived()
	}
	return err
}

// do works on a package's rows that are due: on its document, where that is to
// be asked for, then on its versions. An error is our own fault, or ctx's.
func (j *job) do() error {
	rows, err := j.f.ledger.Queue(j.ctx, j.name)
	if err != nil {
		return own(err)
	}
	now := j.f.now()
	var change *ledger.Retry
	due := make(map[string]ledger.Retry)
	for _, row := range rows {
		switch {
		case row.Next.After(now):
		case row.Version == "":
			change = &row
		default:
			due[row.Version] = row
		}
	}
	if change == nil && len(due) == 0 {
		return nil
	}
	w, err := j.f.wanted(j.ctx)
	if err != nil {
		return err
	}
	var pap *paper
	if change != nil {
		pap, err = j.document(*change, w, due)
	} else {
		pap, err = j.known()
	}
	if errors.Is(err, errDeleted) {
		return j.drop(due)
	}
	if err != nil && ours(j.ctx, err) {
		return err
	}
	if err != nil {
		return j.fail(due, err)
	}
	return j.versions(pap, due)
}

// drop ends the rows of versions that went with their package.
func (j *job) drop(due map[string]ledger.Retry) error {
	for version, row := range due {
		it := item{name: j.name, done: []ledger.Done{{Key: ledger.Key{Name: j.name, Version: version}, Stamp: row.Stamp}}}
		if err := j.record(it); err != nil {
			return err
		}
	}
	return nil
}

// fail records that no document tells of versions that are due.
func (j *job) fail(due map[string]ledger.Retry, err error) error {
	for _, row := range due {
		if err := j.record(j.f.failed(row, err)); err != nil {
			return err
		}
	}
	return nil
}

// known returns the paper of the ledger's own document, upstream's where there
// is none or the node lost it; errDeleted for a tombstone.
func (j *job) known() (*paper, error) {
	held, err := j.f.held(j.ctx, j.name)
	if err != nil {
		return nil, err
	}
	if held.Deleted {
		return nil, errDeleted
	}
	if held.Document.CID.Defined() {
		pap, err := j.f.current(j.ctx, held)
		if err == nil || !lost(err) {
			return pap, own(err)
		}
	}
	pap, late, err := j.f.load(j.ctx, j.name, forever)
	if err != nil {
		return nil, err
	}
	if late != nil || pap.checked.IsZero() {
		return pap, nil
	}
	for _, it := range j.f.document(pap, nil, nil) {
		if err := j.record(it); err != nil {
			return nil, err
		}
	}
	return pap, nil
}

// document does what a package's own row asks for and records what came of it.
// The versions that the new document brings come into the queue with it, and
// into due, to be fetched now.
func (j *job) document(row ledger.Retry, w *wanted, due map[string]ledger.Retry) (*paper, error) {
	j.progress.add("packuments", 0, 1, 0)
	defer j.progress.add("packuments", 1, 0, 0)
	j.asked = true
	pap, err := j.f.changed(j.ctx, row)
	if err != nil && ours(j.ctx, err) {
		return nil, err
	}
	it, fault := j.came(row, pap, err)
	if fault != nil {
		return nil, fault
	}
	if it.gone != "" {
		return nil, errors.Join(errDeleted, j.record(it))
	}
	if pap == nil {
		return nil, errors.Join(err, j.record(it))
	}
	if pap.checked.IsZero() {
		return pap, j.record(it)
	}
	queue, fault := j.f.missing(j.ctx, pap, w.picks(pap.doc, j.f.now()), false)
	if fault != nil {
		return nil, fault
	}
	queue = slices.DeleteFunc(queue, func(r ledger.Retry) bool { _, ok := due[r.Version]; return ok })
	for _, r := range queue {
		due[r.Version] = r
	}
	j.f.parsed.put(pap.ref.CID, pap.doc)
	items := append(j.f.document(pap, nil, queue), it)
	items[len(items)-2].approved = row.Approved
	for _, it := range items {
		if err := j.record(it); err != nil {
			return nil, err
		}
	}
	return pap, nil
}

// came is what becomes of a package's own row, once upstream has answered with
// pap, or with err, and pap is what serves meanwhile.
func (j *job) came(row ledger.Retry, pap *paper, err error) (item, error) {
	if err == nil {
		return item{name: j.name, done: []ledger.Done{{Key: ledger.Key{Name: j.name}, Stamp: row.Stamp}}}, nil
	}
	switch gone := errors.Is(err, upstream.ErrNotFound); {
	case gone && pap != nil:
		return j.f.missed(j.ctx, row)
	case gone && strings.HasSuffix(row.Rev, deletedMark):
		// It was never held: there is nothing to take away.
		return item{name: j.name, pardon: []ledger.Key{{Name: j.name}}, done: []ledger.Done{{Key: ledger.Key{Name: j.name}, Stamp: row.Stamp}}}, nil
	case gone && row.Rev != "":
		if it, ok := j.f.expected(row, err); ok {
			return it, nil
		}
	}
	stub := (*unpublished)(nil)
	if pap != nil && errors.As(err, &stub) && !older(stub.rev, strings.TrimSuffix(row.Rev, deletedMark)) {
		// The registry's own word that all of it is gone: as good as a deletion.
		return j.f.tombstone(row, stub.rev, ledger.RemovedUnpublished), nil
	}
	it := j.f.failed(row, err)
	if it.refused != nil {
		refusals, err := j.f.refusals(j.ctx, j.name)
		if err != nil {
			return it, err
		}
		it.again = refusals[""].Reason == it.refused.Reason
	}
	return it, nil
}

// versions fetches those versions that are due, in parallel, and records what
// came of each.
func (j *job) versions(pap *paper, due map[string]ledger.Retry) error {
	if len(due) == 0 {
		return nil
	}
	refusals, err := j.f.refusals(j.ctx, j.name)
	if err != nil {
		return err
	}
	j.progress.add("tarballs", 0, len(due), 0)
	var fetches sync.WaitGroup
	defer fetches.Wait()
	for version, row := range due {
		over, err := j.over(pap, version, row, refusals)
		if err != nil {
			return err
		}
		if over {
			j.progress.add("tarballs", 0, -1, 0)
			continue
		}
		if err := j.f.room(j.ctx); err != nil {
			return err
		}
		select {
		case j.tarballs <- struct{}{}:
		case <-j.ctx.Done():
			return j.ctx.Err()
		}
		fetches.Go(func() {
			it, err := j.f.tarball(j.ctx, pap, version)
			<-j.tarballs
			was, refused := refusals[version]
			switch {
			case err != nil && ours(j.ctx, err):
				j.cancel(err)
				return
			case err != nil:
				j.f.log.DebugContext(j.ctx, "tarball not stored", "package", j.name, "version", version, "err", err)
				if it = j.f.failed(row, err); it.refused != nil {
					it.refused.Seen, it.again = pap.seen(version), was.Reason == it.refused.Reason
				}
			case refused && was.Reason != ledger.ReasonIntegrityChanged:
				// The ledger pardons what it newly holds; this may be what the
				// node had lost, refused while upstream did not give it.
				it.pardon = []ledger.Key{{Name: j.name, Version: version}}
			}
			if j.record(it) == nil {
				j.progress.add("tarballs", 1, 0, it.bytes)
			}
		})
	}
	return nil
}

// over ends the row of a version that needs no fetching: it is held, was taken
// back, or was refused and upstream says the same of it.
func (j *job) over(pap *paper, version string, row ledger.Retry, refusals map[string]ledger.Refusal) (bool, error) {
	over := !names(pap.doc, version)
	if was, ok := refusals[version]; ok && pap.leaveAlone(version, was) {
		over = true
	}
	if held := pap.holds(version); held != nil && !over {
		// What waits although it is held may be what the node lost.
		ok, err := j.f.holds(j.ctx, j.name, held)
		if err != nil {
			return false, err
		}
		over = ok
	}
	if !over {
		return false, nil
	}
	return true, j.record(item{name: j.name, done: []ledger.Done{{Key: ledger.Key{Name: j.name, Version: version}}}})
}
