// Package publish turns what a ledger holds into a signed release: it curates
// each changed package's documents, puts them in the IPFS node, moves the
// index, signs one IPNS record for the new release, and says done only when that
// record was read back over HTTP. It owns the publication journal, and how a
// registry's journal, key and index begin. It knows nothing of feeds, of how
// packages came into the ledger, or of how keys are kept: a Signer is handed to it.
package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/route"
)

// Ledger is what the publisher reads of a ledger: the store itself, or its
// owner over a socket. Methods may run concurrently.
type Ledger interface {
	// Identity is the ledger's own: sequences of two do not compare.
	Identity() string
	// Head is the newest sequence.
	Head() ledger.Seq
	// Package gives a package with its versions, a tombstone, or ledger.ErrNotFound.
	Package(ctx context.Context, name npm.Name) (ledger.Package, error)
	// Changes gives what changed after since, by rising sequence, at most limit
	// rows; fewer mean that there were no more.
	Changes(ctx context.Context, since ledger.Seq, limit int) ([]ledger.Change, error)
	// Wait returns once there is a change after since.
	Wait(ctx context.Context, since ledger.Seq) error
}

// Signer signs IPNS records for one name; equal arguments give equal bytes.
type Signer interface {
	IPNSName() ipns.Name
	Sign(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error)
	// SignV2Only is Sign without the fields of V1.
	SignV2Only(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error)
}

// Witness reads through another node than the publisher's; *ipfs.Gateway is one.
// Its methods may run concurrently.
type Witness interface {
	// URL names it.
	URL() string
	// Get gives a block, checked against its CID, in a time of its own.
	Get(ctx context.Context, c cid.Cid) (blocks.Block, error)
}

var (
	// ErrOtherLedger is returned when the index was built from another ledger:
	// its packages would be mixed with this one's.
	ErrOtherLedger = errors.New("the index was built from another ledger")
	// ErrLedgerBehind is returned when the ledger ends before what the index
	// has read of it: it was restored from a backup.
	ErrLedgerBehind = errors.New("the ledger is older than the index")
	// ErrIndexBehind is returned for a release that is older than the newest
	// that the journal speaks of, or another under its number: readers would
	// refuse it. Nothing is signed. The next Build makes one above it.
	ErrIndexBehind = errors.New("the index is older than what was published")
	// ErrNoSequence is returned when neither a journal nor the network says
	// what the last sequence was. Nothing is signed.
	ErrNoSequence = errors.New("no journal, and the network has no record: the last sequence is unknown")
	// ErrNewer is returned when the network has a record that this journal
	// never saw: the journal is an old copy, or the key is in two hands.
	ErrNewer = errors.New("the network has a record that this journal does not know")
	// ErrSpent is returned when a record of our key has the last sequence that there
	// is, or one beyond: no record can follow it, for ever. It comes with ErrNewer
	// where the journal does not know that record.
	ErrSpent = errors.New("no record can follow it")
	// ErrSigner is returned when the signer is missing or gives no good record.
	ErrSigner = errors.New("signer unavailable")
	// ErrUnconfirmed is returned when a record was signed and kept but not read
	// back. The next run puts the very same bytes.
	ErrUnconfirmed = errors.New("published, but not read back")
	// ErrWithheld is returned where the file beside the journal that says what is
	// withheld cannot be read.
	ErrWithheld = errors.New("what is withheld cannot be read")
	// ErrUnseen is returned, beside ErrIncomplete, when a witness did not get a block
	// that the node holds.
	ErrUnseen = errors.New("another node cannot fetch it")
	// ErrIncomplete is returned when the release's blocks could not be made
	// whole and durable in the node. Nothing is signed.
	ErrIncomplete = errors.New("the release is not whole in the node")
)

// Options say what to publish and where. Ledger, Index, Node and Journal must
// be given, and Signer for whatever signs.
type Options struct {
	// Registry is a short name for this registry, in pins and logs; "main"
	// unless set.
	Registry string
	Ledger   Ledger
	Index    *index.Index
	Node     ipfs.Node
	Signer   Signer
	// IPNSName is the registry's; the Signer's where there is one. It is enough to
	// draft what is signed elsewhere, and to look.
	IPNSName ipns.Name
	// Policy curates the list from the next Build on. With nil the list follows the
	// policy that it follows: to be without one is said by an empty one. PolicyName is
	// what release.json calls it, beside its hash.
	Policy     *policy.Policy
	PolicyName string
	// Next commits to the key that will follow the signer's, for release.json.
	Next string
	// Former are the keys that the registry had before, the oldest first.
	Former []Former
	// Journal is the publication journal's file; see CreateJournal. What was
	// withheld is listed in "withheld.json" beside it.
	Journal string
	FS      vfs.FS // of Journal; the machine's unless set

	TTL       time.Duration // cache hint of records; DefaultTTL unless set
	Lifetime  time.Duration // how long a record is valid; DefaultLifetime unless set, at most MaxLifetime
	V2Only    bool          // records without the fields of V1
	Republish time.Duration // how often Run puts an unchanged record again; 4 hours unless set
	Alone     time.Duration // the same while the node has no peers to tell; 1 minute unless set
	Peers     []string      // multiaddrs that readers may dial, for release.json
	// Keys gives the document of the public keys by which what is in the ledger is
	// signed, for keys.json, nil where there is none. It is asked with each build; nil
	// gives none.
	Keys func() ([]byte, error)
	// Routes are where records are put and read back beside the node.
	Routes []route.Router
	// Witnesses are other nodes' ways to readers: a sample of a release is fetched
	// through each of them before its record is signed.
	Witnesses []Witness
	// Retain is how long a release stays whole once there is a newer one; 0 is for
	// ever. See Collect.
	Retain time.Duration

	MaxDocument int64 // bytes of an upstream document; 256 MiB unless set
	Workers     int   // packages built at once; one a CPU, at least 2, unless set

	Progress func(Progress) // called now and then, from one goroutine at a time; may be nil
	// Collecting is told how far each stage of a collection came; may be nil.
	Collecting func(stage string, done int)
	Log        *slog.Logger // discarded unless set
	Now        func() time.Time
	HTTP       *http.Client // for reading back; a plain one unless set
}

// Former is a key that the registry had, whose successor has taken its place. Until
// it ends, the newest release is put under its name too, by a journal of its own.
type Former struct {
	IPNSName ipns.Name
	Signer   Signer // nil where nothing can be signed any more
	Journal  string
	Until    time.Time
}

// Progress is how far a build came.
type Progress struct {
	Done  int // packages looked at in this build
	Total int // of those known so far; grows
}

// Withheld says why something in the ledger is not in the list.
type Withheld struct {
	Name    npm.Name `json:"name"`
	Version string   `json:"version,omitempty"` // "" for the whole package
	Reason  string   `json:"reason"`            // a short code, as in documents.go and rollback.go
	Detail  string   `json:"detail"`
	// Release and Instead are of what Rollback took back alone: the number of the
	// release that did, and the CID of the directory that the package had before,
	// "" where it was not listed.
	Release uint64 `json:"release,omitempty"`
	Instead string `json:"instead,omitempty"`
	// Listed says of such a package that it is listed, as it stood then, and lacks
	// versions alone.
	Listed bool `json:"listed,omitempty"`
}

// What names what is withheld: a version, a package, or versions of it.
func (w Withheld) What() string {
	switch {
	case w.Version != "":
		return string(w.Name) + " " + w.Version
	case w.Listed:
		return "versions of " + string(w.Name)
	}
	return string(w.Name)
}

// Publisher builds and publishes one registry. New starts nothing. Its methods
// may run concurrently; Build, Publish and Republish take turns.
type Publisher struct {
	o     Options
	label string
	// gateway begins the URLs of index.html, "" for none: the index's parameter.
	gateway string
	encoder *document.Encoder

	// pushed is a release that another journal of this registry has as pinned.
	pushed cid.Cid

	turn       sync.Mutex // held by whoever builds or publishes
	collecting sync.Mutex // held by whoever collects, beside one who publishes
	keys       []byte     // what Options.Keys gave; of the turn

	noting     sync.Mutex            // over the file of what is withheld while it is replaced, and over
	rolledBack map[npm.Name]Withheld // what that has of rollbacks; nil: not read since

	// Fixed after New; tests shorten them.
	putTries  uint
	readTries uint
	retry     func() backoff.BackOff
	pageSize  int
	fault     func(step string) error
}

const (
	// DefaultTTL is how long readers may go without asking for a newer record.
	DefaultTTL = time.Minute
	// DefaultLifetime is how long a record is valid. It is signed anew at half.
	DefaultLifetime = 7 * 24 * time.Hour
	// MaxLifetime bounds it: until its end anybody may put a record again, and a
	// reader who knows no newer one believes it. IPNS has no bound.
	MaxLifetime = 366 * 24 * time.Hour
)

const (
	nodeTimeout    = 30 * time.Second // a question that the node answers by itself
	networkTimeout = 75 * time.Second // one that it passes on: a DHT walk takes up to a minute
	packageTimeout = 5 * time.Minute
	witnessTimeout = 2 * time.Minute // a sample of a release through another node, which may have to find this one first
	contentTimeout = 12 * time.Hour  // pushing, syncing and pinning a release: Kubo walks all of a first one
)

// encoded is how many bytes of compressed sections are remembered: those of some
// fifty of the largest packages.
const encoded = 64 << 20

// New makes a publisher.
func New(o Options) *Publisher {
	if o.Registry == "" {
		o.Registry = "main"
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.TTL <= 0 {
		o.TTL = DefaultTTL
	}
	if o.Lifetime <= 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.Republish <= 0 {
		o.Republish = 4 * time.Hour
	}
	if o.Alone <= 0 {
		o.Alone = time.Minute
	}
	if o.MaxDocument <= 0 {
		o.MaxDocument = 256 << 20
	}
	if o.Workers <= 0 {
		o.Workers = max(2, runtime.GOMAXPROCS(0))
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Signer != nil {
		o.IPNSName = o.Signer.IPNSName()
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{}
	}
	gateway := ""
	if o.Index != nil {
		gateway = o.Index.Parameters().Gateway
	}
	return &Publisher{
		o: o, label: "registry-mirror/" + o.Registry, gateway: gateway, encoder: document.NewEncoder(encoded),
		putTries: 3, readTries: 8, pageSize: 1000,
		retry: func() backoff.BackOff {
			b := backoff.NewExponentialBackOff()
			b.InitialInterval, b.MaxInterval = 200*time.Millisecond, 5*time.Second
			return b
		},
	}
}

// as is the publisher for the records of a former key alone.
func (p *Publisher) as(f Former) *Publisher {
	q := &Publisher{
		o: p.o, label: p.label, gateway: p.gateway, encoder: p.encoder,
		putTries: p.putTries, readTries: p.readTries, retry: p.retry, pageSize: p.pageSize, fault: p.fault,
	}
	q.o.Signer, q.o.IPNSName, q.o.Journal, q.o.Former = f.Signer, f.IPNSName, f.Journal, nil
	return q
}

// names are what release.json says of the registry's names: nothing where it was
// never rotated.
func (p *Publisher) names() []string {
	if len(p.o.Former) == 0 {
		return nil
	}
	names := make([]string, 0, len(p.o.Former)+1)
	for _, f := range p.o.Former {
		names = append(names, f.IPNSName.String())
	}
	return append(names, p.o.IPNSName.String())
}

// overlapping are the former keys whose names are still kept up.
func (p *Publisher) overlapping() []Former {
	var all []Former
	for _, f := range p.o.Former {
		if p.now().Before(f.Until) {
			all = append(all, f)
		}
	}
	return all
}

// takeKeys asks for the signing keys that the batches of this turn are to hold, and
// says whether they are others than the newest release has.
func (p *Publisher) takeKeys(ctx context.Context, newest index.Release) (moved bool, err error) {
	if p.o.Keys == nil {
		p.keys = nil
	} else if p.keys, err = p.o.Keys(); err != nil {
		return false, err
	}
	if newest.Number == 0 {
		return p.keys != nil, nil
	}
	held, err := index.ReadKeys(ctx, p.o.Index, newest.Root)
	return !bytes.Equal(held, p.keys), err
}

// Run publishes, then again whenever the ledger moves, at most once in every,
// and at least as often as Options.Republish, Options.Alone and the record's
// lifetime ask; and collects what is due meanwhile. It blocks until ctx ends, or
// until an error that no later run can mend. report, which may be nil, hears of each
// run; what Run goes on after it also logs.
func (p *Publisher) Run(ctx context.Context, every time.Duration, report func(Result, error)) error {
	published := make(chan struct{}, 1)
	var collector sync.WaitGroup
	defer collector.Wait()
	defer close(published)
	collector.Go(func() {
		for range published {
			p.CollectIfDue(ctx)
		}
	})
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = time.Second, 5*time.Minute
	for {
		began := time.Now()
		result, err := p.Publish(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if report != nil {
			report(result, err)
		}
		if Lasting(err) {
			return err
		}
		if err == nil {
			pause.Reset()
			select {
			case published <- struct{}{}:
			default: // it is still collecting
			}
			err = p.awaitWork(ctx, p.Again(result))
			if err == nil {
				if err := sleep(ctx, every-time.Since(began)); err != nil {
					return err
				}
				continue
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		wait := pause.NextBackOff()
		p.o.Log.WarnContext(ctx, "publishing failed", "registry", p.o.Registry, "error", err, "again_in", wait)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// Lasting says of an error of Publish that running again changes nothing: someone has
// to look.
func Lasting(err error) bool {
	for _, cause := range []error{ErrNoSequence, ErrNewer, ErrSpent, ErrJournal, ErrOtherLedger, ErrLedgerBehind, index.ErrParameters} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// Again is how long the record of r may be left as it is, with nothing new.
func (p *Publisher) Again(r Result) time.Duration {
	// A record is signed anew at half its lifetime.
	d := min(p.o.Republish, p.o.Lifetime/4)
	if r.LocalOnly {
		d = min(d, p.o.Alone) // what was put reached nobody
	}
	return d
}

// Behind says whether the newest release lacks what the ledger has, a version that has
// come of age, or the policy.
func (p *Publisher) Behind() (bool, error) {
	cursor, err := p.cursor()
	if err != nil || p.o.Ledger.Head() > cursor {
		return err == nil, err
	}
	c, err := p.curation()
	if err != nil || len(c.From) > 0 || p.o.Policy != nil && p.o.Policy.Canonical() != c.Policy {
		return err == nil, err
	}
	due, err := p.o.Index.NextDue()
	return !due.IsZero() && !due.After(c.now), err
}

// awaitWork returns when there is something to publish, a version that came of age
// included, and after again at the latest.
func (p *Publisher) awaitWork(ctx context.Context, again time.Duration) error {
	cursor, err := p.cursor()
	if err != nil {
		return err
	}
	due, err := p.o.Index.NextDue()
	if err != nil {
		return err
	}
	if !due.IsZero() {
		again = min(again, max(due.Sub(p.now()), 0))
	}
	wait, cancel := context.WithTimeout(ctx, again)
	defer cancel()
	err = p.o.Ledger.Wait(wait, cursor)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the ledger: %w", err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
