package follow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/singleflight"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

const (
	// pullAfter is the age up to which a document serves clients without
	// asking upstream.
	pullAfter = time.Minute
	// pullTime bounds one fetch. It goes on when the client that asked for it
	// has left, so that its next attempt finds it done.
	pullTime = 15 * time.Minute
	// maxPulls bounds the documents that are fetched at one time, and the tarballs
	// likewise, with those for which nobody waits any more. Who asks for one more waits.
	maxPulls = 512
)

// ErrClosed is returned once Close was called.
var ErrClosed = errors.New("the pull-through is closed")

// PullThrough fetches what a client asks for and the selection does not hold,
// verified and recorded as all else. Versions that come this way are held, not
// wanted: newer ones come when they are asked for.
// Methods may run concurrently. Errors that match fs.ErrNotExist say that
// upstream has no such package or file.
type PullThrough struct {
	f      *Follower
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	flight singleflight.Group

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // fetches; Add under mu, while not closed

	// papers and tarballs hold a token for each question under way. A tarball waits for
	// its document, never the other way round.
	papers, tarballs chan struct{}

	gather *gathering
}

// NewPullThrough returns the pull-through of f. It starts nothing by itself.
// Close it before the ledger and the node.
func NewPullThrough(f *Follower) *PullThrough {
	ctx, cancel := context.WithCancel(context.Background())
	return &PullThrough{f: f, ctx: ctx, cancel: cancel, gather: f.newGathering(ctx, 0),
		papers: make(chan struct{}, maxPulls), tarballs: make(chan struct{}, maxPulls)}
}

// Close ends the fetches that run and waits for them.
func (t *PullThrough) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.running.Wait()
	_ = t.gather.close() // what the end of its context cut short was told to whoever waited
	return nil
}

// once runs work for all that ask for key meanwhile, when there is room. It goes on
// when ctx ends, bounded by pullTime and Close.
func once[T any](ctx context.Context, t *PullThrough, room chan struct{}, key string, work func(context.Context) (T, error)) (T, error) {
	var none T
	select {
	case room <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		<-room
		return none, ErrClosed
	}
	// This call itself counts, so that the flight it may begin is waited for.
	t.running.Add(1)
	t.mu.Unlock()
	result := t.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(t.ctx, pullTime)
		defer cancel()
		return work(ctx)
	})
	ended := make(chan singleflight.Result, 1)
	go func() {
		defer t.running.Done()
		r := <-result
		<-room
		ended <- r
	}()
	select {
	case r := <-ended:
		if r.Err != nil {
			return none, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// Packument returns a package's full packument, at most a minute old where
// upstream answers, else the ledger's own: what is held is served for ever.
func (t *PullThrough) Packument(ctx context.Context, name npm.Name) ([]byte, error) {
	pap, err := t.paper(ctx, name, pullAfter)
	if err != nil {
		return nil, outward(err)
	}
	return pap.raw, nil
}

// Tarball fetches, verifies and stores the tarball that a package's packument
// gives this file name, and returns its CID. Where the ledger and the node hold
// it, upstream is not asked.
func (t *PullThrough) Tarball(ctx context.Context, name npm.Name, file string) (cid.Cid, error) {
	c, err := once(ctx, t, t.tarballs, "tarball "+string(name)+" "+file, func(ctx context.Context) (cid.Cid, error) {
		return t.tarball(ctx, name, file)
	})
	return c, outward(err)
}

func (t *PullThrough) paper(ctx context.Context, name npm.Name, age time.Duration) (*paper, error) {
	return once(ctx, t, t.papers, fmt.Sprintf("packument %s %d", name, age), func(ctx context.Context) (*paper, error) {
		pap, late, err := t.f.load(ctx, name, age)
		if err != nil {
			return nil, err
		}
		if late != nil {
			t.f.log.WarnContext(ctx, "served our own document, upstream gave none", "package", name, "err", late)
		}
		if pap.checked.IsZero() {
			return pap, nil
		}
		raw := pap.raw
		for _, it := range t.f.document(pap, nil, nil) { // a retry may wait for a newer document than this one
			if err := t.gather.add(ctx, it); err != nil {
				return nil, err
			}
		}
		pap.raw = raw
		return pap, nil
	})
}

func (t *PullThrough) tarball(ctx context.Context, name npm.Name, file string) (cid.Cid, error) {
	held, err := t.f.held(ctx, name)
	if err != nil {
		return cid.Undef, err
	}
	for _, v := range held.Versions {
		if v.File != file {
			continue
		}
		err := t.f.whole(ctx, v.CID)
		if err == nil {
			return v.CID, nil
		}
		if !lost(err) {
			return cid.Undef, own(err)
		}
		t.f.log.ErrorContext(ctx, "a tarball is missing or corrupt in the node", "package", name, "version", v.Version, "cid", v.CID, "err", err)
	}
	// Any document that names the file will do: a version never changes.
	pap, err := t.paper(ctx, name, forever)
	version, ok := "", false
	if err == nil {
		version, ok = byFile(pap.doc, file)
	}
	if err == nil && !ok {
		if pap, err = t.paper(ctx, name, pullAfter); err == nil {
			version, ok = byFile(pap.doc, file)
		}
	}
	if err != nil {
		return cid.Undef, err
	}
	if !ok {
		return cid.Undef, fmt.Errorf("no version of %s has the file %.200q: %w", name, file, fs.ErrNotExist)
	}
	it, err := t.f.tarball(ctx, pap, version)
	if why := reason(err); err != nil && why != "" && why != ReasonNotFound && !ours(ctx, err) {
		refused := &ledger.Refusal{Name: name, Version: version, Reason: why, Detail: detail(err), Time: t.f.now(), Seen: pap.seen(version)}
		err = errors.Join(err, t.gather.add(ctx, item{name: name, refused: refused}))
	}
	if err != nil {
		return cid.Undef, err
	}
	c := it.version.CID
	return c, t.gather.add(ctx, it)
}

// byFile finds the version whose tarball has a file name. A parsed packument
// has at most one.
func byFile(doc *npm.Packument, file string) (string, bool) {
	for version, m := range doc.Versions {
		if f, err := npm.TarballFile(doc.Name, version, m.Dist.Tarball); err == nil && f == file {
			return version, true
		}
	}
	return "", false
}

// outward lets a caller that knows nothing of upstream tell what is not there.
func outward(err error) error {
	if errors.Is(err, upstream.ErrNotFound) || errors.Is(err, errManifest) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}
