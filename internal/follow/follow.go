// Package follow keeps a selection of npm packages up to date: it reads what is
// wanted and a feed of changes, fetches and verifies what the ledger lacks,
// stores it in the node and records it. It owns the order of those steps, what
// is refused or tried again and the feed's cursor. It knows nothing of
// releases, indexes, keys or of who reads the ledger, and of HTTP only what its
// clients' errors say.
package follow

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// Ledger is what the follower needs of its ledger. *ledger.Store is one; each
// method is as described there. Methods may run concurrently.
type Ledger interface {
	Package(ctx context.Context, name npm.Name) (ledger.Package, error)
	Wants(ctx context.Context) ([]ledger.Want, error)
	Refused(ctx context.Context) ([]ledger.Refusal, error)
	Retries(ctx context.Context) ([]ledger.Retry, error)
	Cursor(feed string) (value string, ok bool)
	Counts() ledger.Counts
	// WantsChanged is closed when a want comes or goes.
	WantsChanged() <-chan struct{}
	// Commit writes all of the batch, synced, or nothing.
	Commit(ctx context.Context, b ledger.Batch) (ledger.Seq, error)
}

// Upstream is what the follower needs of an npm registry. *upstream.Client is
// one. Methods may run concurrently.
type Upstream interface {
	// Packument asks for a package's full document, only if it is no longer
	// the one that etag names.
	Packument(ctx context.Context, name npm.Name, etag string) (upstream.Packument, error)
	// Tarball returns once every byte has been received and has matched d.
	Tarball(ctx context.Context, name npm.Name, version string, d npm.Dist) (*upstream.Tarball, error)
}

// Node is what the follower needs of an IPFS node. ipfs.Node is one. Methods
// may run concurrently.
type Node interface {
	// Put stores blocks. They are durable only once a later Checkpoint
	// returned nil.
	Put(ctx context.Context, blks []blocks.Block) error
	Checkpoint(ctx context.Context) error
	// Local returns a block that the node holds, else ipfs.ErrNotFound.
	Local(ctx context.Context, c cid.Cid) (blocks.Block, error)
}

// Feed is what the follower needs of a feed of changes. *couch.Client is one.
type Feed interface {
	Server(ctx context.Context) (couch.ServerInfo, error)
	Changes(ctx context.Context, since string, follow bool) iter.Seq2[couch.Page, error]
}

// Options are what New needs. Ledger, Upstream and Node must be given.
type Options struct {
	Ledger   Ledger
	Upstream Upstream
	Node     Node
	// Feed is read by Run; nil means that Run asks upstream again every
	// RefreshAfter instead.
	Feed Feed
	// FeedName is the key of the feed's cursor in the ledger: its URL. It must
	// be given with Feed.
	FeedName string
	// Workers bounds the requests to upstream that run at once, 16 if zero;
	// packuments and tarballs are counted apart.
	Workers int
	// RefreshAfter is the age up to which the ledger's own document is as good
	// as asking upstream, 5 minutes if zero.
	RefreshAfter time.Duration
	// Attempts bounds how often an item is tried that fails for passing
	// causes, before it is refused; 20 if zero, which takes about 12 hours.
	Attempts int
	// Progress, where not nil, is told how far a pass has come: what is done
	// ("packuments", "tarballs"), how many of how many that are known by now,
	// and the bytes stored. Calls do not overlap; it must not block.
	Progress func(stage string, done, total int, bytes int64)
	// OnStored, where not nil, is called after each commit that may have
	// changed what the ledger holds. It must not block.
	OnStored func()
	Log      *slog.Logger     // nil discards
	Now      func() time.Time // nil is time.Now
}

// Follower fills a ledger. Its methods may run concurrently: passes over the
// selection take turns, what a client asks for through PullThrough does not
// wait for them.
type Follower struct {
	ledger             Ledger
	upstream           Upstream
	node               Node
	feed               Feed
	feedName           string
	workers            int
	refresh            time.Duration
	attempts           int
	progress           func(stage string, done, total int, bytes int64)
	stored             func()
	log                *slog.Logger
	now                func() time.Time
	started            time.Time
	gatherItems, early int // the constants of these names; tests make them small

	turn chan struct{} // holds one token; who has it runs a pass
	wake chan struct{} // a Fill is asked for

	// recording is held from the read of the ledger's row to the commit that
	// depends on it.
	recording sync.Mutex

	mu    sync.Mutex
	state seen // owned by note
}

// New returns a Follower. It starts nothing.
func New(o Options) (*Follower, error) {
	if o.Ledger == nil || o.Upstream == nil || o.Node == nil {
		return nil, errors.New("a follower needs a ledger, an upstream registry and a node")
	}
	if o.Feed != nil && o.FeedName == "" {
		return nil, errors.New("a feed needs a name for its cursor")
	}
	f := &Follower{
		ledger: o.Ledger, upstream: o.Upstream, node: o.Node, feed: o.Feed, feedName: o.FeedName,
		workers: o.Workers, refresh: o.RefreshAfter, attempts: o.Attempts,
		progress: o.Progress, stored: o.OnStored, log: o.Log, now: o.Now,
		gatherItems: gatherItems, early: early,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	if f.workers <= 0 {
		f.workers = 16
	}
	if f.refresh <= 0 {
		f.refresh = 5 * time.Minute
	}
	if f.attempts <= 0 {
		f.attempts = 20
	}
	if f.progress == nil {
		f.progress = func(string, int, int, int64) {}
	}
	if f.stored == nil {
		f.stored = func() {}
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	f.started = f.now()
	return f, nil
}

// Add puts wants into the selection and fills it. The wants are durable before
// anything is fetched, so that a later Fill takes up what a kill cut short. An
// error is our own fault or the context's; what upstream refuses is in the
// ledger's list.
func (f *Follower) Add(ctx context.Context, wants []ledger.Want) error {
	if _, err := f.ledger.Commit(ctx, ledger.Batch{Wants: wants}); err != nil {
		return fmt.Errorf("record what is wanted: %w", err)
	}
	return f.Fill(ctx)
}

// Remove takes specs out of the selection. Versions that are held stay, and
// stay in releases: they are only no longer kept up to date for this want.
func (f *Follower) Remove(ctx context.Context, wants []ledger.Want) error {
	unwants := make([]npm.Spec, len(wants))
	for i, w := range wants {
		unwants[i] = w.Spec
	}
	if _, err := f.ledger.Commit(ctx, ledger.Batch{Unwants: unwants}); err != nil {
		return fmt.Errorf("record what is no longer wanted: %w", err)
	}
	return nil
}

// Fill brings the ledger up to the selection: for every want by name the
// versions that it selects and their dependencies as npm would resolve them,
// what the tag latest names beside them. What of these the node lost or has
// corrupt is fetched again. Documents that upstream was asked for within
// RefreshAfter are not asked for again. It ends with an error only for
// our own faults (the node away, a ledger that cannot be written) or with the
// context; all else ends stored, refused or in the retry queue. It may be
// killed at any moment and called again.
func (f *Follower) Fill(ctx context.Context) error {
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.yield()
	wants, err := f.ledger.Wants(ctx)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	if f.feed == nil && slices.ContainsFunc(wants, func(w ledger.Want) bool { return w.Spec.Name == "" }) {
		f.log.WarnContext(ctx, "every package is wanted, and there is no feed that names them")
	}
	p, err := f.begin(ctx, f.refresh)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	defer p.abort()
	selected, err := p.selectVersions(wants)
	if err == nil {
		err = p.fetchMissing(selected, true)
	}
	if err == nil {
		err = p.finish(nil)
	}
	if err != nil {
		return fmt.Errorf("fill: %w", p.cause(err))
	}
	f.note(func(s *seen) { s.LastSuccess = f.now() })
	return nil
}

// Wake asks a running Run for a Fill soon. It never blocks.
func (f *Follower) Wake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *Follower) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Follower) yield() { <-f.turn }
