// Package mirror is what a developer runs: an npm registry on this machine out
// of one IPNS name. It resolves the name and syncs the list beside the request
// path, reads packages by CID from the node, its peers, trustless gateways and,
// where allowed, an upstream registry, checks what it serves and serves for
// ever what it holds. It knows nothing of private keys, ledgers or feeds, and
// of npm's registry only what Origin tells it.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/singleflight"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

var (
	// ErrLocked is returned by Open when another process owns the state.
	ErrLocked = errors.New("the mirror's state is in use by another process")
	// ErrState is returned by Open for a state that cannot be read or that
	// belongs to another name. It is never read as an empty one.
	ErrState = errors.New("the mirror's state is not usable")
	// ErrNoRecord is returned by Sync when no route had a record of the name
	// that is valid now.
	ErrNoRecord = errors.New("no valid IPNS record found")
	// ErrNotSynced is returned while no list has ever been synced.
	ErrNotSynced = errors.New("the registry's list has not been synced yet")
	// ErrUnavailable is returned for content that no source gave in time.
	ErrUnavailable = errors.New("content is not available from any source")
	// ErrNowhere is returned, beside ErrUnavailable, where every source has said that it
	// does not have the content: to ask again soon is vain.
	ErrNowhere = errors.New("every source lacks it")
	// ErrOffline is returned, beside ErrUnavailable where content was wanted, by a
	// mirror that was told to ask nobody.
	ErrOffline = errors.New("this mirror is offline")
	// ErrStale is returned where Options.MaxStale forbids to serve what is held.
	ErrStale = errors.New("the registry's list is too old to be served")
	// ErrNoSuccessor is returned by FollowTo for a name that was not promised.
	ErrNoSuccessor = errors.New("not the successor that was promised")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the mirror is closed")
)

// NodeReader is what the mirror needs of an IPFS node, a part of ipfs.Node.
// Methods may run concurrently. A block handed out has been checked against its
// CID. Every error is taken as a miss: the next source is asked.
type NodeReader interface {
	// Local returns a block that the node holds. It never asks the network.
	Local(ctx context.Context, c cid.Cid) (blocks.Block, error)
	// Find returns a block, asking the network until ctx ends or until that is vain:
	// ipfs.ErrLacking says that nobody has it. It is kept.
	Find(ctx context.Context, c cid.Cid) (blocks.Block, error)
	// Put keeps blocks that came from a gateway.
	Put(ctx context.Context, blks []blocks.Block) error
	// Record returns the best IPNS record that the node can find.
	Record(ctx context.Context, name ipns.Name) ([]byte, error)
	// Connect dials a peer by multiaddr with /p2p/ID.
	Connect(ctx context.Context, addr string) error
	Info(ctx context.Context) (ipfs.Info, error)
}

// RecordKeeper is what a NodeReader may be too: the mirror gives it each record that
// it accepts, so that its neighbours on a network that is cut off get it from there.
type RecordKeeper interface {
	// KeepRecord keeps a record and tells nobody unasked.
	KeepRecord(ctx context.Context, name ipns.Name, record []byte) error
}

// Gateway is a trustless HTTP gateway; *ipfs.Gateway is one. Methods may run
// concurrently and end with their ctx. Every block has been checked against its
// CID and was asked for: it is the root or linked to by a block before it.
type Gateway interface {
	// URL names the gateway in logs.
	URL() string
	// Get returns one block.
	Get(ctx context.Context, c cid.Cid) (blocks.Block, error)
	// Fetch hands sink the blocks from root along path and of its end as much
	// as scope says, at most maxBytes. An error from sink ends it. With
	// ipfs.ScopeAll and no path it returns nil only when every block has come.
	Fetch(ctx context.Context, root cid.Cid, path []string, scope ipfs.Scope, maxBytes int64, sink func(blocks.Block) error) error
	// Record returns the gateway's IPNS record of name, one that has expired too.
	Record(ctx context.Context, name ipns.Name) ([]byte, error)
}

// RecordRoute is a place where records lie, and nothing else.
type RecordRoute struct {
	Name string // what people call it
	// Get gives the record of name that lies there, which it need not check;
	// ipfs.ErrNotFound where there is none. It ends with ctx.
	Get func(ctx context.Context, name ipns.Name) ([]byte, error)
	// Cached says that it is asked as seldom as the record's TTL allows.
	Cached bool
}

// Origin is an upstream registry that the mirror may ask (pull-through). An
// error that matches fs.ErrNotExist says that upstream has no such name or
// file; npm.ErrIntegrity that its bytes were refused. Methods may run
// concurrently and end with their ctx.
type Origin interface {
	// Packument returns the full packument, as fresh as upstream gives it.
	Packument(ctx context.Context, name npm.Name) ([]byte, error)
	// Tarball fetches a tarball by its file name, verifies and stores it, and
	// returns its CID. Once it returns, the node holds the blocks.
	Tarball(ctx context.Context, name npm.Name, file string) (cid.Cid, error)
}

// Options say what a mirror serves and from where. Dir is required, Name or
// Root, and a Node or one Gateway.
type Options struct {
	Dir string // state; made when absent
	FS  vfs.FS // nil: the operating system's
	// Name is the one to begin with. Where the state came to follow its successor,
	// it goes on with that; either name opens it.
	Name ipns.Name
	// Root is the one release that is served, for ever, in place of what a Name
	// points at: nothing is resolved, and its CID is all that is trusted.
	Root     cid.Cid
	Node     NodeReader // nil: gateways only, whose blocks are then kept in Dir
	Gateways []Gateway  // in order of preference
	// Routes are asked for records beside the node and the gateways.
	Routes []RecordRoute
	Origin Origin // nil: names and files that are not listed do not exist
	// Withheld says why nothing but what is listed is served of a package, whatever
	// Origin has; "" where that is not so. nil: of none it is. It may be called
	// concurrently, by every request beside an Origin.
	Withheld func(name npm.Name) (string, error)
	// Tarballs, where not nil, fetches listed tarballs that no peer and no gateway
	// gives. Nothing else is asked for there, and Origin comes first.
	Tarballs Tarballs
	// Attestations asks an upstream registry for a version's attestations, its
	// document byte for byte; an error that matches fs.ErrNotExist says that it has
	// none. nil: nobody can be asked. It may be called concurrently and ends with ctx.
	Attestations func(ctx context.Context, name npm.Name, version string) ([]byte, error)
	// Background says what the ledger and the publisher beside this mirror know of a
	// package. nil: there are none. It may be called concurrently and ends with ctx.
	Background func(ctx context.Context, name npm.Name) (Background, error)
	// PublicURL is what tarball URLs begin with. "": the address that the client
	// used.
	PublicURL string
	// TrustedProxies are the peers whose X-Forwarded-Proto, -Host and -Prefix say
	// which address the client used. From others these headers mean nothing.
	TrustedProxies []netip.Prefix

	// Offline asks nobody for anything: what is held is served.
	Offline bool
	// AcceptStale follows a record that has expired where there is no better one.
	AcceptStale bool
	// MaxStale is for how long after its record expired a list is served; 0: for
	// ever, and it is said.
	MaxStale time.Duration

	Interval time.Duration // between resolutions; 0: as each route deserves, from a second to the record's TTL
	Deadline time.Duration // for a block or a document to come; 0: 30 s
	Hedge    time.Duration // head start of peers over gateways; 0: 200 ms
	Cache    int64         // bytes of memory for rendered documents; 0: 128 MiB
	// Cached keeps account of the files that are fetched, and evicts some. nil: all
	// stay.
	Cached *Part
	// HoldsAll says that Node holds what is listed, as that of whoever publishes it: then
	// searches know what all of it says of itself, and not of what was asked for alone.
	HoldsAll bool
	// Announce is told which blocks of this registry are here: the newest release and
	// its list, package directories as they are read, and the files of Cached that are
	// whole. nil: nobody is told.
	Announce ipfs.Announcer

	Log *slog.Logger     // nil: none
	Now func() time.Time // nil: time.Now
}

const (
	resolveDeadline = 15 * time.Second // for one route to give a record
	resolveGrace    = 2 * time.Second  // for slower routes, once one gave a good record
	localDeadline   = 5 * time.Second  // for the node to say whether it holds a block
	originPatience  = 5 * time.Second  // for Origin, where the list has an answer too
	originFresh     = 10 * time.Second // an answer of Origin is used again for so long
	firstPatience   = 10 * time.Second // a request waits for the first list of all; none ever waits for a newer one
	rescueHedge     = time.Second      // head start of peers and gateways over upstream
	stallDeadline   = 5 * time.Second  // a gateway that sends no block for so long is left
	wholeDeadline   = 15 * time.Minute // for all blocks below one root from gateways

	// Where Options gives 0.
	defaultInterval = 30 * time.Second
	defaultDeadline = 30 * time.Second
	defaultHedge    = 200 * time.Millisecond
	defaultCache    = 128 << 20

	blockCache    = 64 << 20  // bytes of small blocks kept in memory
	leafCache     = 32 << 20  // bytes of large blocks of tarballs kept in memory
	entryCache    = 4 << 20   // bytes of the list's entries kept in memory
	fileCache     = 8 << 20   // bytes of the tarballs' CIDs kept in memory
	unknownCache  = 1 << 20   // bytes of names that Origin does not know
	maxCompressed = 64 << 20  // bytes of a compressed document
	maxDocument   = 256 << 20 // bytes of a document
	maxPeers      = 16        // of those that release.json lists
)

// Mirror serves one registry. Its methods may be called concurrently.
type Mirror struct {
	o   Options
	log *slog.Logger
	db  *pebble.DB
	// list is what index.Sync keeps; head says whether there is one yet.
	list *index.Index

	lock io.Closer // the directory's; released after db and list are closed

	// life ends with Close. Fetches belong to it and not to the request that
	// began them, since others may have joined.
	life context.Context
	end  context.CancelFunc

	mu     sync.Mutex // guards closed, and wg against Close
	closed bool
	wg     sync.WaitGroup

	head    atomic.Pointer[head]        // nil: never synced
	signing atomic.Pointer[signingKeys] // of the release whose keys were asked for last
	first   chan struct{}               // closed once head is there
	// patience is how long a request waits for that; tests shorten it.
	patience time.Duration

	routes  []*route
	dueMu   sync.Mutex    // guards the routes' due
	syncing chan struct{} // holds one token: who has it may write high, head and refused
	refresh chan struct{}
	high    atomic.Pointer[highWater]
	refused []byte // the record that was last refused
	dialing atomic.Bool

	sending *sending
	asking  asking // of Origin

	flights   singleflight.Group
	render    chan struct{} // one token for each document being decoded or made
	searching chan struct{} // one token for each search: it reads all names
	lines     listNames
	described *descriptions // shared with newest, of whose files they are
	looking   looking

	carsMu sync.Mutex
	cars   map[cid.Cid]*carFetch
	best   atomic.Int64 // index of the gateway that worked last
	peers  breaker      // of the node's

	entries   *lru[npm.Name, listedEntry]
	blocks    *lru[string, blocks.Block] // none is larger than smallBlock
	leaves    *lru[string, blocks.Block] // larger ones, of tarballs that were asked for again
	packages  *lru[cid.Cid, pkg]
	files     *lru[string, unixfs.Link] // tarballs by their package's directory and their name
	bodies    *lru[string, *body]
	portable  *lru[string, bool]
	integrity *lru[string, map[string]npm.Integrity]
	origins   *lru[npm.Name, *upstreamDoc]
	unknown   *lru[npm.Name, time.Time] // names that Origin did not know, and when
	told      *lru[string, time.Time]   // notices, by host and text
	attested  *lru[string, attestations]
	came      *lru[string, struct{}] // rows of arrivals that were written, and files of lookOnce
	wrong     *lru[string, string]   // tarballs that were refused, by name, 0 and file: why

	checkedMu sync.Mutex
	checked   map[[16]byte]struct{} // tarballs checked since start
	obtained  map[cid.Cid]struct{}  // tarballs that came by Origin since start; under checkedMu

	// stats are shared with newest's, and so is all that is kept by its hash.
	stats *stats

	earlier earlier
	// newest is the mirror of whose releases this is an earlier one; nil for one that
	// Open opened.
	newest *Mirror

	wrote func() // a test's: the high-water mark is durable; nil otherwise
}

// Open opens the state in o.Dir, or begins one, and serves at once what it
// holds. It starts nothing and asks no network.
func Open(o Options) (*Mirror, error) {
	if o.Dir == "" || o.Root.Defined() != (o.Name == (ipns.Name{})) {
		return nil, errors.New("open mirror: Dir is required, and either Name or Root")
	}
	if o.Node == nil && len(o.Gateways) == 0 {
		return nil, errors.New("open mirror: neither a node nor a gateway to read from")
	}
	if u, err := url.Parse(o.PublicURL); o.PublicURL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "") {
		return nil, fmt.Errorf("open mirror: the public address %q is no http or https URL", o.PublicURL)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Deadline = orDefault(o.Deadline, defaultDeadline)
	o.Hedge = orDefault(o.Hedge, defaultHedge)
	o.Cache = orDefault(o.Cache, defaultCache)

	if err := makeDir(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("open mirror: %w", err)
	}
	m := &Mirror{
		o: o, log: o.Log,
		routes: waysTo(o),
		first:  make(chan struct{}), patience: firstPatience,
		syncing: make(chan struct{}, 1), refresh: make(chan struct{}, 1),
		render:    make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		sending:   newSending(maxSending),
		searching: make(chan struct{}, runtime.GOMAXPROCS(0)),
		lines:     listNames{piece: namePiece, moved: maxMoved},
		described: &descriptions{most: maxDescribed},
		looking:   looking{wake: make(chan struct{}, 1)},
		cars:      map[cid.Cid]*carFetch{},

		entries:   newLRU[npm.Name, listedEntry](entryCache),
		blocks:    newLRU[string, blocks.Block](blockCache),
		leaves:    newLRU[string, blocks.Block](leafCache),
		packages:  newLRU[cid.Cid, pkg](16 << 20),
		files:     newLRU[string, unixfs.Link](fileCache),
		bodies:    newLRU[string, *body](o.Cache),
		portable:  newLRU[string, bool](8 << 20),
		integrity: newLRU[string, map[string]npm.Integrity](32 << 20),
		origins:   newLRU[npm.Name, *upstreamDoc](o.Cache / 2),
		unknown:   newLRU[npm.Name, time.Time](unknownCache),
		told:      newLRU[string, time.Time](1 << 20),
		attested:  newLRU[string, attestations](8 << 20),
		came:      newLRU[string, struct{}](4 << 20),
		wrong:     newLRU[string, string](1 << 20),
		checked:   map[[16]byte]struct{}{},
		obtained:  map[cid.Cid]struct{}{},
		stats:     &stats{started: o.Now()},
		earlier:   newEarlier(),
	}
	high, err := readHighWater(o.FS, o.Dir, o.Name)
	if err != nil {
		return nil, err
	}
	m.high.Store(high)
	if err := m.openList(); err != nil {
		return nil, err
	}
	m.life, m.end = context.WithCancel(context.Background())
	if o.Cached != nil {
		var own ipfs.Evictor
		if o.Node == nil {
			own = ownBlocks{m}
		}
		o.Cached.attach(m.pieces, own, m.forget)
	}
	return m, nil
}

// openList opens Pebble and takes up the list that was current.
func (m *Mirror) openList() error {
	dir := m.o.FS.PathJoin(m.o.Dir, "list")
	if err := makeDir(m.o.FS, dir); err != nil {
		return fmt.Errorf("open mirror: %w", err)
	}
	lock, err := pebble.LockDirectory(dir, m.o.FS)
	if err != nil {
		// Neither Pebble nor its file systems have a sentinel for a held lock.
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open mirror: %w", err)
		}
		return fmt.Errorf("open mirror: %w: %w", ErrLocked, err)
	}
	db, err := pebble.Open(dir, &pebble.Options{
		FS: damage.Sparing(m.o.FS), Lock: lock, Logger: pebbleLog{m.log}, EventListener: damage.Listener(m.log),
		CacheSize: 32 << 20, MemTableSize: 8 << 20,
		FormatMajorVersion: pebble.FormatValueSeparation, // by name: an upgrade of the module moves no file
	})
	if err != nil {
		return errors.Join(fmt.Errorf("open mirror: %w", damage.AtOpen(err, ErrState)), lock.Close())
	}
	m.db, m.lock = db, lock
	m.list, err = index.OpenOrCreate(m.o.FS.PathJoin(m.o.Dir, "index"), index.Options{FS: m.o.FS, Log: m.log})
	if err != nil {
		return errors.Join(fmt.Errorf("open mirror: %w: %w", ErrState, err), db.Close(), lock.Close())
	}
	if err := m.loadHead(); err != nil {
		return errors.Join(err, m.list.Close(), db.Close(), lock.Close())
	}
	return nil
}

// Close ends every fetch and closes the state. Run and the servers of Handler
// must have returned.
func (m *Mirror) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.end()
	m.wg.Wait()
	err := errors.Join(m.earlier.close(), m.closeNames(), m.list.Close())
	if m.newest != nil { // whose the rest is
		return err
	}
	return errors.Join(err, m.db.Close(), m.lock.Close())
}

// enter keeps Close waiting until leave. It says false once closed.
func (m *Mirror) enter() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Add(1)
	return true
}

func (m *Mirror) leave() { m.wg.Done() }

// spawn runs f beside the caller, unless the mirror is closed; Close waits for
// it. f must end soon after life does.
func (m *Mirror) spawn(f func()) bool {
	if !m.enter() {
		return false
	}
	go func() {
		defer m.leave()
		f()
	}()
	return true
}

// shared runs f once for all that ask for key at the same time and returns its
// result to each, as long as their own ctx lasts. f gets a context of the
// mirror's life with the given limit.
func shared[T any](ctx context.Context, m *Mirror, key string, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	result := m.flights.DoChan(key, func() (any, error) {
		if !m.enter() {
			return nil, ErrClosed
		}
		defer m.leave()
		fctx, cancel := context.WithTimeout(m.life, limit)
		defer cancel()
		return f(fctx)
	})
	var zero T
	select {
	case r := <-result:
		if r.Err != nil {
			return zero, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return zero, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// pebbleLog passes on what an operator can act on.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(string, ...any) {}
func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("list store", "error", fmt.Sprintf(format, args...))
}

// Fatalf is called on corruption that Pebble cannot go on from.
func (l pebbleLog) Fatalf(format string, args ...any) {
	panic("list store: " + fmt.Sprintf(format, args...))
}
