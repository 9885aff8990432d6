// Package hosted is a registry that is published to: what npm publish, dist-tag and
// deprecate send is verified, made durable in an IPFS node and written to a ledger
// of the registry's own, and what is in that ledger is read back over npm's
// protocol. It owns the settings file, with the scopes that the registry takes and
// the hashes of its tokens. It knows nothing of keys, indexes and releases: it is
// told what a release has (Released), and answers who published once that is so.
package hosted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Ledger is what is needed of the registry's ledger, of which the Registry is the
// only writer. *ledger.Store is one.
type Ledger interface {
	Package(ctx context.Context, name npm.Name) (ledger.Package, error)
	Commit(ctx context.Context, b ledger.Batch) (ledger.Seq, error)
	Cursor(feed string) (string, bool)
	Former(ctx context.Context, before time.Time, limit int) ([]ledger.Former, error)
}

// Node is what is needed of the IPFS node; see ipfs.Node for each.
type Node interface {
	Hold(ctx context.Context, label string, roots []cid.Cid) error
	Unhold(ctx context.Context, label string, roots []cid.Cid) error
	Put(ctx context.Context, blks []blocks.Block) error
	Checkpoint(ctx context.Context) error
	Local(ctx context.Context, c cid.Cid) (blocks.Block, error)
}

// Options are what a Registry is made of. Settings, Ledger, Node and Spool must be
// given.
type Options struct {
	Settings string // the file that Create made
	Ledger   Ledger
	Node     Node
	Spool    string // directory for tarballs while they come in
	// MaxTarball bounds a tarball, in bytes; DefaultMaxTarball unless set.
	MaxTarball int64
	Log        *slog.Logger // discarded unless set
	Now        func() time.Time
}

// DefaultMaxTarball is 256 MiB. npm's registry has no documented bound; its largest
// packages are of this size.
const DefaultMaxTarball = 256 << 20

const (
	// maxDocument bounds what is sent beside a tarball, in bytes.
	maxDocument = 8 << 20
	// maxPackument bounds the document of a package, with all its versions.
	maxPackument = 128 << 20
	// uploads are how many publications are read and checked at once. More wait.
	uploads = 4
	// putBytes is how many bytes of a tarball's blocks are put at once.
	putBytes = 8 << 20
	// storeTime bounds making a publication durable. It goes on when the client has
	// gone: the version is then there, whole, or not at all.
	storeTime = 5 * time.Minute
	// releaseTime is how long an answer waits for the release.
	releaseTime = time.Minute
	// keepDocuments is how long the node holds a document that its package has no more:
	// a release that is being made may still be about it.
	keepDocuments = 24 * time.Hour
	// letGoEvery is how often those are looked for, and letGoRows how many are let go of
	// at once.
	letGoEvery = time.Hour
	letGoRows  = 1000
	// maxUnanswered bounds those that are remembered; the oldest go.
	maxUnanswered = 256
)

// holdLabel is what the node knows the registry's roots by.
const holdLabel = "hosted"

// unanswered is the ledger's cursor that lists the versions whose publisher may have
// had no answer.
const unanswered = ledger.MarkPrefix + "unanswered"

var (
	// errConflict is for a version that exists or existed: it never changes (law 3).
	errConflict = errors.New("this version was published before")
	// errNotFound is for what the registry does not have.
	errNotFound = errors.New("not found")
	// errRequest is for a request that cannot be meant.
	errRequest = errors.New("not possible")
)

// Registry takes publications and serves what was published. New starts nothing. Its
// methods may run concurrently.
type Registry struct {
	o       Options
	log     *slog.Logger
	encoder *document.Encoder
	upload  chan struct{} // a token per publication that is read and checked

	turn sync.Mutex // held by whoever writes to node and ledger
	// open are the versions whose publisher may have had no answer, oldest first.
	open []ledger.Key

	mu       sync.Mutex
	released ledger.Seq    // what a release has
	failures int           // releases that failed
	failure  error         // the last one's
	moved    chan struct{} // closed when one of these changes

	patience time.Duration // fixed after New; tests shorten it
}

// New makes a registry. Errors: those of Open, and ErrCorrupt for a ledger that is no
// such registry's.
func New(o Options) (*Registry, error) {
	if o.MaxTarball <= 0 {
		o.MaxTarball = DefaultMaxTarball
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if _, err := Open(o.Settings); err != nil {
		return nil, err
	}
	r := &Registry{
		o: o, log: o.Log, encoder: document.NewEncoder(8 << 20), upload: make(chan struct{}, uploads), moved: make(chan struct{}), patience: patience,
	}
	if value, ok := o.Ledger.Cursor(unanswered); ok {
		if err := json.Unmarshal([]byte(value), &r.open); err != nil {
			return nil, fmt.Errorf("the ledger's mark %s: %w: %w", unanswered, ErrCorrupt, err)
		}
	}
	return r, nil
}

// Run lets go of former documents now and then, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	again := time.NewTicker(letGoEvery)
	defer again.Stop()
	for {
		if err := r.letGo(ctx); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "former documents stay", "error", err) // until the next time
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

// letGo tells the node that it need not hold documents that packages had until
// keepDocuments ago. Each publication leaves one. What a release that is pinned has of
// them stays. The order is law:
//
//  1. One batch of the ledger gives a package another document, and records the one
//     before (step 4 of write).
//  2. Unhold: the node lets go of it.
//  3. Checkpoint: that is durable.
//  4. The ledger strikes it.
//
// A crash between any two leaves the ledger's record, by which it is done again. None
// comes back meanwhile: all is done in turn.
func (r *Registry) letGo(ctx context.Context) error {
	for {
		n, err := r.letGoSome(ctx)
		if err != nil || n < letGoRows {
			return err
		}
	}
}

func (r *Registry) letGoSome(ctx context.Context) (int, error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	rows, err := r.o.Ledger.Former(ctx, r.o.Now().Add(-keepDocuments), letGoRows)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	roots := make([]cid.Cid, len(rows))
	for i, row := range rows {
		roots[i] = row.CID
	}
	if err := r.o.Node.Unhold(ctx, holdLabel, roots); err != nil {
		return 0, fmt.Errorf("unhold %d roots: %w", len(roots), err)
	}
	if err := r.o.Node.Checkpoint(ctx); err != nil {
		return 0, fmt.Errorf("checkpoint of the node: %w", err)
	}
	if _, err := r.o.Ledger.Commit(ctx, ledger.Batch{LetGo: rows}); err != nil {
		return 0, err
	}
	return len(rows), nil
}

// Released says that a release has been published that has everything up to seq;
// with an error, that one could not be, for now.
func (r *Registry) Released(seq ledger.Seq, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failures++
		r.failure = err
	}
	r.released = max(r.released, seq)
	close(r.moved)
	r.moved = make(chan struct{})
}

// failed counts the releases that failed by now.
func (r *Registry) failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failures
}

// kept is a change that is durable.
type kept struct {
	seq    ledger.Seq
	failed int // releases that had failed before
}

// await returns nil once a release has what is kept. Otherwise it says why none has
// it yet: one failed since, or took longer than releaseTime.
func (r *Registry) await(ctx context.Context, k kept) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	for {
		r.mu.Lock()
		released, failures, failure, moved := r.released, r.failures, r.failure, r.moved
		r.mu.Unlock()
		switch {
		case released >= k.seq:
			return nil
		case failures > k.failed:
			return failure
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change is what becomes of a package.
type change struct {
	name    npm.Name
	edit    func(*npm.Hosted, ledger.Package) error // the document; errors end it
	tarball *spooled                                // nil for none
	version string                                  // whose tarball it is
}

// tarballURL is where a packument says that a tarball is. Nothing is ever asked
// there: the name .invalid resolves nowhere (RFC 6761 section 6.4), and whoever
// serves the packument puts its own address in the place of this one.
func tarballURL(name npm.Name, version string) string {
	return "https://registry.invalid/" + string(name) + "/-/" + file(name, version)
}

func file(name npm.Name, version string) string { return name.Base() + "-" + version + ".tgz" }

// write makes a change durable. Where c.edit ends it, k is of what was there. The
// order is law 2, content before names:
//
//  1. Hold: the roots are safe from a garbage collection.
//  2. Put: the blocks of tarball and document are with the node.
//  3. Checkpoint: they survive a power cut.
//  4. Commit: one synced batch names them.
//
// A crash before 4 leaves blocks that nothing names, and no version; after it the
// version is there, and the next release has it. All is done in turn: a checkpoint
// that fails may have lost whatever was put before it, and then nothing of it is
// named.
func (r *Registry) write(ctx context.Context, c change) (k kept, err error) {
	// Cut, and so hashed, before the turn: the roots must be known to be held.
	var ref unixfs.Ref
	if c.tarball != nil {
		if ref, err = r.cut(c.tarball, func(blocks.Block) error { return nil }); err != nil {
			return k, err
		}
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	now := r.o.Now().UTC()
	held, doc, err := r.load(ctx, c.name)
	if err != nil {
		return k, err
	}
	if err := c.edit(doc, held); err != nil {
		return kept{held.Seq, r.failed()}, err
	}
	raw := doc.Bytes()
	if len(raw) > maxPackument {
		return k, fmt.Errorf("the package's document would have more than %d bytes: %w", maxPackument, errTooLarge)
	}
	// What is written is what every reader takes, this one's next start too.
	parsed, err := npm.ParsePackument(raw)
	if err != nil {
		return k, err
	}
	if len(parsed.Bad) > 0 {
		version := slices.Sorted(maps.Keys(parsed.Bad))[0]
		return k, fmt.Errorf("%w: version %s: %w", npm.ErrPublication, version, parsed.Bad[version])
	}
	var documents []blocks.Block
	docRef, err := unixfs.AddChunks(r.encoder.Encode(raw).Segments, func(b blocks.Block) error {
		documents = append(documents, b)
		return nil
	})
	if err != nil {
		return k, fmt.Errorf("cut the document: %w", err)
	}
	u := ledger.PackageUpdate{
		Name: c.name, Checked: now, Listed: len(parsed.Versions),
		Document: ledger.Document{CID: docRef.CID, Tsize: docRef.Tsize, Size: uint64(len(raw))},
	}
	batch := ledger.Batch{}
	roots := []cid.Cid{docRef.CID}
	if c.tarball != nil {
		u.Versions = []ledger.Version{{
			Version: c.version, Integrity: c.tarball.sri, Shasum: c.tarball.shasum, File: file(c.name, c.version),
			CID: ref.CID, Size: ref.Size, Tsize: ref.Tsize, FirstSeen: now, Proof: "sha512",
		}}
		roots = append(roots, ref.CID)
		batch.Cursor = r.mark(append(slices.Clone(r.open), ledger.Key{Name: c.name, Version: c.version}))
	}
	batch.Packages = []ledger.PackageUpdate{u}

	if err := r.o.Node.Hold(ctx, holdLabel, roots); err != nil {
		return k, fmt.Errorf("hold %d roots: %w", len(roots), err)
	}
	if c.tarball != nil {
		if err := r.put(ctx, c.tarball, ref.CID); err != nil {
			return k, fmt.Errorf("put the tarball: %w", err)
		}
	}
	if err := r.o.Node.Put(ctx, documents); err != nil {
		return k, fmt.Errorf("put the document: %w", err)
	}
	if err := r.o.Node.Checkpoint(ctx); err != nil {
		return k, fmt.Errorf("checkpoint of the node: %w", err)
	}
	k.failed = r.failed()
	if k.seq, err = r.o.Ledger.Commit(ctx, batch); err != nil {
		return k, err
	}
	if batch.Cursor != nil {
		r.open = r.marked(batch.Cursor)
	}
	return k, nil
}

// load gives what the ledger has of a package, and its document, both empty where
// nothing was published.
func (r *Registry) load(ctx context.Context, name npm.Name) (ledger.Package, *npm.Hosted, error) {
	held, err := r.o.Ledger.Package(ctx, name)
	if errors.Is(err, ledger.ErrNotFound) {
		return ledger.Package{Name: name}, npm.NewHosted(name), nil
	}
	if err != nil {
		return held, nil, err
	}
	raw, err := r.read(ctx, held)
	if err != nil {
		return held, nil, err
	}
	doc, err := npm.ParseHosted(raw)
	if err == nil && doc.Name != name {
		err = fmt.Errorf("it is of %q", doc.Name)
	}
	if err != nil {
		return held, nil, fmt.Errorf("the document of %s: %w: %w", name, ErrCorrupt, err)
	}
	return held, doc, nil
}

// local reads the blocks that the node holds, never the network's.
type local struct{ node Node }

func (l local) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) { return l.node.Local(ctx, c) }

// read gives the document of a package as it was written.
func (r *Registry) read(ctx context.Context, held ledger.Package) ([]byte, error) {
	f, err := unixfs.Open(ctx, local{r.o.Node}, held.Document.CID)
	if err != nil {
		return nil, fmt.Errorf("read the document of %s: %w", held.Name, err)
	}
	raw, err := document.Decode(f, int64(held.Document.Size), maxPackument)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read the document of %s: %w", held.Name, err)
	}
	return raw, nil
}

// cut makes blocks of a tarball.
func (r *Registry) cut(t *spooled, sink unixfs.Sink) (unixfs.Ref, error) {
	if _, err := t.Seek(0, io.SeekStart); err != nil {
		return unixfs.Ref{}, fmt.Errorf("spool: %w", err)
	}
	ref, err := unixfs.AddFile(t.File, sink)
	if err != nil {
		return ref, fmt.Errorf("cut the tarball: %w", err)
	}
	return ref, nil
}

// put hands a tarball's blocks to the node in portions.
func (r *Registry) put(ctx context.Context, t *spooled, root cid.Cid) error {
	var some []blocks.Block
	size := 0
	send := func() error {
		err := r.o.Node.Put(ctx, some)
		some, size = nil, 0
		return err
	}
	ref, err := r.cut(t, func(b blocks.Block) error {
		some = append(some, b)
		if size += len(b.RawData()); size < putBytes {
			return nil
		}
		return send()
	})
	if err == nil && ref.CID != root {
		err = fmt.Errorf("the spooled tarball changed: %w", ErrCorrupt)
	}
	if err == nil && len(some) > 0 {
		err = send()
	}
	return err
}

// mark is the cursor that lists open, without the oldest of too many.
func (r *Registry) mark(open []ledger.Key) *ledger.Cursor {
	open = open[max(0, len(open)-maxUnanswered):]
	raw, err := json.Marshal(open)
	if err != nil {
		panic(err) // names and versions are strings
	}
	return &ledger.Cursor{Feed: unanswered, Value: string(raw)}
}

func (r *Registry) marked(c *ledger.Cursor) (open []ledger.Key) {
	if err := json.Unmarshal([]byte(c.Value), &open); err != nil {
		panic(err) // mark wrote it
	}
	return open
}

// answered notes that the publisher of a version had an answer: from now on the same
// version is a conflict for everybody.
func (r *Registry) answered(ctx context.Context, key ledger.Key) {
	r.turn.Lock()
	defer r.turn.Unlock()
	open := slices.DeleteFunc(slices.Clone(r.open), func(k ledger.Key) bool { return k == key })
	if len(open) == len(r.open) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	if _, err := r.o.Ledger.Commit(ctx, ledger.Batch{Cursor: r.mark(open)}); err != nil {
		r.log.WarnContext(ctx, "an answer could not be noted", "package", key.Name, "version", key.Version, "error", err)
		return
	}
	r.open = open
}

// publish stores one new version. Where it is there already with the very same
// bytes, and its publisher may have had no answer, that is the same publication once
// more: npm sends a request again that got none. Else it is errConflict, for a
// version that was taken back too.
func (r *Registry) publish(ctx context.Context, p npm.Publication, t *spooled) (kept, error) {
	again := false
	k, err := r.write(ctx, change{name: p.Name, version: p.Version, tarball: t, edit: func(doc *npm.Hosted, held ledger.Package) error {
		for _, v := range append(slices.Clone(held.Versions), held.Dropped...) {
			if v.Version != p.Version {
				continue
			}
			again = v.Integrity == t.sri && slices.Contains(r.open, ledger.Key{Name: p.Name, Version: p.Version})
			if v.Integrity == t.sri {
				return fmt.Errorf("%s@%s: %w, with the very same bytes", p.Name, p.Version, errConflict)
			}
			return fmt.Errorf("%s@%s: %w: give it another number", p.Name, p.Version, errConflict)
		}
		if held.Deleted || doc.Has(p.Version) {
			return fmt.Errorf("%s@%s: %w: give it another number", p.Name, p.Version, errConflict)
		}
		doc.Add(p, npm.Dist{Integrity: t.sri, Shasum: t.shasum, Tarball: tarballURL(p.Name, p.Version), UnpackedSize: t.unpacked}, r.o.Now())
		return nil
	}})
	if again {
		return k, nil
	}
	return k, err
}

// setTag lets a dist-tag name a version; "" takes the tag away.
func (r *Registry) setTag(ctx context.Context, name npm.Name, tag, version string) (kept, error) {
	same := false
	k, err := r.write(ctx, change{name: name, edit: func(doc *npm.Hosted, _ ledger.Package) error {
		have, tagged := doc.Tags[tag]
		switch {
		case len(doc.Tags) == 0:
			return fmt.Errorf("%s: %w", name, errNotFound)
		case version == "" && tag == "latest":
			return fmt.Errorf("%w: every package has the dist-tag latest: it can be moved, not removed", errRequest)
		case version == "" && !tagged:
			return fmt.Errorf("%s has no dist-tag %s: %w", name, tag, errNotFound)
		case version == "":
			doc.RemoveTag(tag, r.o.Now())
		case !doc.Has(version):
			return fmt.Errorf("%s has no version %.100q: %w", name, version, errNotFound)
		case have == version:
			same = true
			return errUnchanged
		default:
			doc.SetTag(tag, version, r.o.Now())
		}
		return nil
	}})
	if same {
		return k, nil
	}
	return k, err
}

// errUnchanged ends a change that changes nothing.
var errUnchanged = errors.New("nothing to do")

// deprecate gives versions their messages, and changes nothing else of what raw, the
// whole document as npm deprecate sends it, says.
func (r *Registry) deprecate(ctx context.Context, name npm.Name, raw []byte) (kept, error) {
	p, err := npm.ParsePackument(raw)
	if err != nil {
		return kept{}, err
	}
	if p.Name != name {
		return kept{}, fmt.Errorf("%w: the document is of %s", errRequest, p.Name)
	}
	for version, bad := range p.Bad {
		return kept{}, fmt.Errorf("%w: version %.100q in the document: %w", errRequest, version, bad)
	}
	messages := make(map[string]string, len(p.Versions))
	for version, m := range p.Versions {
		messages[version] = m.Deprecated
	}
	k, err := r.write(ctx, change{name: name, edit: func(doc *npm.Hosted, _ ledger.Package) error {
		if len(doc.Tags) == 0 {
			return fmt.Errorf("%s: %w", name, errNotFound)
		}
		for version := range messages {
			if !doc.Has(version) {
				return fmt.Errorf("%w: the document has a version %s that was never published, and no tarball", errRequest, version)
			}
		}
		if !doc.Deprecate(messages, r.o.Now()) {
			return errUnchanged
		}
		return nil
	}})
	if errors.Is(err, errUnchanged) {
		return k, nil
	}
	return k, err
}

// line is an error as one line for people.
func line(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}
