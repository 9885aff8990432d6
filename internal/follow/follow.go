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
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// Ledger is what the follower needs of its ledger. *ledger.Store is one; each
// method is as described there. Methods may run concurrently.
type Ledger interface {
	Package(ctx context.Context, name npm.Name) (ledger.Package, error)
	Packages(ctx context.Context) iter.Seq2[ledger.Package, error]
	Heads(ctx context.Context, names []npm.Name) ([]ledger.Head, error)
	Wants(ctx context.Context) ([]ledger.Want, error)
	Refused(ctx context.Context) ([]ledger.Refusal, error)
	Refusals(ctx context.Context, name npm.Name) ([]ledger.Refusal, error)
	Former(ctx context.Context, before time.Time, limit int) ([]ledger.Former, error)
	Dropped(ctx context.Context, before time.Time, after ledger.Former, limit int, progress func(versions int)) ([]ledger.Former, *ledger.Former, error)
	Queue(ctx context.Context, name npm.Name) ([]ledger.Retry, error)
	Due(ctx context.Context, from ledger.Due, now time.Time, limit int) ([]ledger.Key, ledger.Due, time.Time, error)
	// Queued is closed when a row comes into the queue.
	Queued() <-chan struct{}
	Cursor(feed string) (value string, ok bool)
	Counts() ledger.Counts
	// Reasons are how many refusals there are of each reason.
	Reasons() map[string]int
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
	// Hold keeps garbage collection away from roots and from all below them,
	// also from what is put later.
	Hold(ctx context.Context, label string, roots []cid.Cid) error
	// Unhold lets go of roots, durably from a later Checkpoint on. What is not
	// held is no error.
	Unhold(ctx context.Context, label string, roots []cid.Cid) error
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
	// AllDocs lists what the feed's database holds. Only an iteration without
	// an error is a whole listing.
	AllDocs(ctx context.Context) iter.Seq2[[]couch.Doc, error]
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
	// Workers bounds the packages that are worked on at once, 16 if zero, and
	// the tarballs that are fetched at once, to twice as many. Upstream's client
	// may have a lower bound of its own.
	Workers int
	// RefreshAfter is the age up to which the ledger's own document is as good
	// as asking upstream, 5 minutes if zero.
	RefreshAfter time.Duration
	// Attempts bounds how often an item is tried that fails for passing
	// causes, before it is refused; 20 if zero, which takes about 12 hours.
	Attempts int
	// Signature says what a version's registry signature is worth, by the
	// policy of whoever gives it: a verdict for the ledger, or an error that
	// refuses the version. published is the version's entry in `time`. nil
	// looks at none.
	Signature func(name npm.Name, version string, d npm.Dist, published string) (npm.Verdict, error)
	// Confirm is how often upstream must say that a package is gone before it
	// counts, and ConfirmOver how long that must take at the least, while
	// upstream gives others; 3 times and an hour if zero (law 4).
	Confirm     int
	ConfirmOver time.Duration
	// Removals bounds the packages that may lose something within an hour; more
	// are refused until an operator has looked. Zero is 50, or a thousandth of
	// what is held if that is more.
	Removals int
	// Free tells the bytes that are free where the ledger and the node keep
	// what they store. Below Reserve (1 GiB if zero) no work is begun until
	// there is room again. nil is never asked.
	Free    func(ctx context.Context) (uint64, error)
	Reserve uint64
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

// Follower fills a ledger. Its methods may run concurrently; what a client asks
// for through PullThrough does not wait for the rest.
type Follower struct {
	ledger             Ledger
	upstream           Upstream
	node               Node
	feed               Feed
	feedName           string
	workers            int
	refresh            time.Duration
	attempts           int
	signature          func(name npm.Name, version string, d npm.Dist, published string) (npm.Verdict, error)
	confirm            int
	confirmOver        time.Duration
	free               func(ctx context.Context) (uint64, error)
	reserve            uint64
	progress           func(stage string, done, total int, bytes int64)
	stored             func()
	log                *slog.Logger
	now                func() time.Time
	started            time.Time
	gatherItems, early int // the constants of these names; tests make them small
	gatherTime         time.Duration

	resolving chan struct{} // holds one token; who has it resolves the selection
	draining  chan struct{} // the same, for working the queue off
	measuring chan struct{} // the same, for looking at what is free on the disk
	wake      chan struct{} // a Fill is asked for
	touches   chan struct{} // documents changed that the selection may depend on

	// recording is held from the read of the ledger's row to the commit that
	// depends on it.
	recording sync.Mutex

	// checkpointing is held while the node makes a checkpoint and, if it failed,
	// until that is counted.
	checkpointing     sync.Mutex
	failedCheckpoints atomic.Int64

	roots     roots
	removals  breaker
	parsed    parsed
	encoder   *document.Encoder
	selection selection

	mu    sync.Mutex
	state seen // owned by note
}

// encoded is how many bytes of compressed sections are remembered: those of some
// fifty of the largest packages.
const encoded = 64 << 20

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
		workers: o.Workers, refresh: o.RefreshAfter, attempts: o.Attempts, signature: o.Signature,
		confirm: o.Confirm, confirmOver: o.ConfirmOver, free: o.Free, reserve: o.Reserve,
		progress: o.Progress, stored: o.OnStored, log: o.Log, now: o.Now,
		gatherItems: gatherItems, early: early, gatherTime: gatherTime,
		resolving: make(chan struct{}, 1), draining: make(chan struct{}, 1), measuring: make(chan struct{}, 1), wake: make(chan struct{}, 1), touches: make(chan struct{}, 1),
		removals: breaker{limit: o.Removals}, encoder: document.NewEncoder(encoded),
	}
	f.selection.dirty = make(map[npm.Name]bool)
	f.roots = roots{coming: make(map[cid.Cid]int), leaving: make(map[cid.Cid]bool), moved: make(chan struct{})}
	if f.workers <= 0 {
		f.workers = 16
	}
	if f.refresh <= 0 {
		f.refresh = 5 * time.Minute
	}
	if f.attempts <= 0 {
		f.attempts = 20
	}
	if f.confirm <= 0 {
		f.confirm = 3
	}
	if f.confirmOver <= 0 {
		f.confirmOver = time.Hour
	}
	if f.reserve == 0 {
		f.reserve = 1 << 30
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

// Remove takes wants out of the selection, by their specs and scopes. Versions
// that are held stay, and stay in releases: they are only no longer kept up to
// date for this want.
func (f *Follower) Remove(ctx context.Context, wants []ledger.Want) error {
	if _, err := f.ledger.Commit(ctx, ledger.Batch{Unwants: wants}); err != nil {
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
// context; all else ends stored, refused or in the queue. It may be
// killed at any moment and called again. While Run runs it waits for that to
// end: a running one is asked with Wake.
func (f *Follower) Fill(ctx context.Context) error {
	if err := f.working(ctx, f.fill); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	f.note(func(s *seen) { s.LastSuccess = f.now() })
	return nil
}

// working runs queueing, which queues work, while the queue is worked off, and
// returns once both have come to an end.
func (f *Follower) working(ctx context.Context, queueing func(context.Context) error) error {
	if err := f.checkProfile(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	all := make(chan struct{})
	g.Go(func() error {
		defer close(all)
		return queueing(ctx)
	})
	g.Go(func() error { return f.drain(ctx, all) })
	return g.Wait()
}

// fill resolves the whole selection and queues what is missing of it.
func (f *Follower) fill(ctx context.Context) error {
	w, err := f.wanted(ctx)
	if err != nil {
		return err
	}
	if f.feed == nil && len(w.all)+len(w.scopes) > 0 {
		f.log.WarnContext(ctx, "packages are wanted that only a feed names, and there is no feed")
	}
	return f.resolve(ctx, w.wants, f.refresh)
}

// Wake asks a running Run for a Fill soon. It never blocks.
func (f *Follower) Wake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take takes the token of turn, which release gives back.
func take(ctx context.Context, turn chan struct{}) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func release(turn chan struct{}) { <-turn }
