package follow

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var errInjected = errors.New("injected fault")

// faults counts the durable steps of a run and breaks one of them, as a power
// cut would: nothing works afterwards.
type faults struct {
	mu    sync.Mutex
	at    int  // the step that breaks, from 1; 0: none
	kept  bool // the step takes effect before it is reported as failed
	steps []string
	fired bool
}

// step runs do as one durable step called name.
func (f *faults) step(name string, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fired {
		return errInjected
	}
	f.steps = append(f.steps, name)
	if f.at == 0 || len(f.steps) != f.at {
		return do()
	}
	f.fired = true
	if f.kept {
		if err := do(); err != nil {
			return err
		}
	}
	return errInjected
}

// memNode is a node in memory that loses what was not checkpointed in a crash.
type memNode struct {
	faults *faults

	mu      sync.Mutex
	durable map[cid.Cid]blocks.Block
	written map[cid.Cid]blocks.Block
	rotten  map[cid.Cid]bool // corrupt until they are put again
	held    map[cid.Cid]bool
	unheld  map[cid.Cid]bool // since the last checkpoint; held again after a crash
}

func newNode() *memNode {
	return &memNode{faults: &faults{}, durable: map[cid.Cid]blocks.Block{}, written: map[cid.Cid]blocks.Block{}, rotten: map[cid.Cid]bool{}, held: map[cid.Cid]bool{}, unheld: map[cid.Cid]bool{}}
}

func (n *memNode) Hold(ctx context.Context, _ string, roots []cid.Cid) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.faults.step("hold", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, c := range roots {
			n.held[c] = true
		}
		return nil
	})
}

func (n *memNode) Unhold(ctx context.Context, _ string, roots []cid.Cid) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.faults.step("unhold", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, c := range roots {
			if n.held[c] {
				delete(n.held, c)
				n.unheld[c] = true
			}
		}
		return nil
	})
}

func (n *memNode) Put(ctx context.Context, blks []blocks.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.faults.step("put", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, b := range blks {
			n.written[b.Cid()] = b
			delete(n.rotten, b.Cid())
		}
		return nil
	})
}

func (n *memNode) Checkpoint(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.faults.step("checkpoint", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		maps.Copy(n.durable, n.written)
		clear(n.written)
		clear(n.unheld)
		return nil
	})
}

func (n *memNode) Local(_ context.Context, c cid.Cid) (blocks.Block, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rotten[c] {
		return nil, fmt.Errorf("%s: %w", c, ipfs.ErrCorrupt)
	}
	if b, ok := n.written[c]; ok {
		return b, nil
	}
	if b, ok := n.durable[c]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%s: %w", c, ipfs.ErrNotFound)
}

func (n *memNode) crash() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.written)
	maps.Copy(n.held, n.unheld)
	clear(n.unheld)
	n.faults = &faults{}
}

func (n *memNode) lose(c cid.Cid) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.durable, c)
	delete(n.written, c)
}

func (n *memNode) rot(c cid.Cid) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rotten[c] = true
}

// brittle is a ledger whose commits are steps that may break.
type brittle struct {
	*ledger.Store
	faults *faults
}

func (b brittle) Commit(ctx context.Context, batch ledger.Batch) (seq ledger.Seq, err error) {
	err = b.faults.step("commit", func() error {
		seq, err = b.Store.Commit(ctx, batch)
		return err
	})
	return seq, err
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// world is a follower between a fake registry, a node in memory and a ledger on
// a file system that can lose power.
type world struct {
	t     *testing.T
	reg   *npmtest.Registry
	fs    *vfs.MemFS
	store *ledger.Store
	node  *memNode
	clock *clock
	feed  Feed
	opts  Options // further ones
	f     *Follower
}

func newWorld(t *testing.T, archive string) *world {
	t.Helper()
	return worldOn(t, npmtest.New(t, archive))
}

func worldOn(t *testing.T, reg *npmtest.Registry) *world {
	t.Helper()
	w := &world{
		t: t, reg: reg, fs: vfs.NewCrashableMem(), node: newNode(),
		clock: &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
	}
	var err error
	if w.store, err = ledger.Create("ledger", ledger.Options{FS: w.fs, Now: w.clock.Now}); err != nil {
		t.Fatal(err)
	}
	w.start()
	t.Cleanup(func() { w.store.Close() })
	return w
}

// start makes a new follower over what there is, as a new process would.
func (w *world) start() {
	w.t.Helper()
	o := w.opts
	o.Ledger, o.Node, o.Feed, o.Now = brittle{w.store, w.node.faults}, w.node, w.feed, w.clock.Now
	if o.Feed != nil {
		o.FeedName = feedName
	}
	if o.Upstream == nil {
		o.Upstream = upstream.New(upstream.Options{
			Registry: npm.Config{Registry: w.reg.URL}, Attempts: 2, Backoff: time.Millisecond, Spool: w.t.TempDir(),
		})
	}
	f, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	f.gatherItems, f.early, f.gatherTime = 3, 4<<10, 0 // many commits, many puts before them
	w.f = f
}

// crash takes the power away and starts again from what was durable.
func (w *world) crash() {
	w.t.Helper()
	clone := w.fs.CrashClone(vfs.CrashCloneCfg{})
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.fs = clone
	var err error
	if w.store, err = ledger.Open("ledger", ledger.Options{FS: w.fs, Now: w.clock.Now}); err != nil {
		w.t.Fatal(err)
	}
	w.node.crash()
	w.start()
}

// arm breaks a step of what the next follower does.
func (w *world) arm(at int, kept bool) *faults {
	w.node.faults = &faults{at: at, kept: kept}
	w.start()
	return w.node.faults
}

func (w *world) add(specs ...string) {
	w.t.Helper()
	if err := w.f.Add(w.t.Context(), wants(w.t, specs...)); err != nil {
		w.t.Fatalf("Add(%q): %v", specs, err)
	}
}

func (w *world) unwant(specs ...string) {
	w.t.Helper()
	if err := w.f.Remove(w.t.Context(), wants(w.t, specs...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) fill() {
	w.t.Helper()
	if err := w.f.Fill(w.t.Context()); err != nil {
		w.t.Fatalf("Fill: %v", err)
	}
}

func (w *world) run() {
	w.t.Helper()
	if err := w.f.Run(w.t.Context(), true); err != nil {
		w.t.Fatalf("Run: %v", err)
	}
}

// wants reads specs: "name@range", and flags after it: every, nodeps, exact.
func wants(t *testing.T, specs ...string) []ledger.Want {
	t.Helper()
	var all []ledger.Want
	for _, s := range specs {
		var want ledger.Want
		fields := bytes.Fields([]byte(s))
		if string(fields[0]) != "*" {
			if scope, ok := strings.CutSuffix(string(fields[0]), "/*"); ok {
				want.Scope = scope
				all = append(all, want)
				continue
			}
			spec, err := npm.ParseSpec(string(fields[0]))
			if err != nil {
				t.Fatal(err)
			}
			want.Spec = spec
		}
		for _, flag := range fields[1:] {
			switch string(flag) {
			case "every":
				want.Every = true
			case "nodeps":
				want.NoDeps = true
			case "exact":
				want.Exact = true
			}
		}
		all = append(all, want)
	}
	return all
}

// stored lists "name@version CID" of all that the ledger holds and "name
// document CID" of its documents, and checks what must hold at every moment:
// all of it is durable in the node and whole, the bytes match their integrity,
// and each document names the versions that are stored.
func (w *world) stored() []string {
	w.t.Helper()
	ctx := w.t.Context()
	var all []string
	durable := durableGetter{w.node}
	for p, err := range w.store.Packages(ctx) {
		if err != nil {
			w.t.Fatal(err)
		}
		full, err := w.store.Package(ctx, p.Name)
		if err != nil {
			w.t.Fatal(err)
		}
		if p.Deleted {
			all = append(all, fmt.Sprintf("%s deleted", p.Name))
			if len(full.Versions) > 0 {
				w.t.Errorf("%s is deleted and has versions", p.Name)
			}
			continue
		}
		all = append(all, fmt.Sprintf("%s document %s", p.Name, p.Document.CID))
		probe := &Follower{node: durable}
		raw, err := probe.readBack(ctx, p.Document)
		if err != nil {
			w.t.Errorf("document of %s: %v", p.Name, err)
			continue
		}
		doc, err := parse(p.Name, raw)
		if err != nil {
			w.t.Errorf("document of %s: %v", p.Name, err)
			continue
		}
		if len(raw) != int(p.Document.Size) || doc.Rev != p.Rev {
			w.t.Errorf("document of %s has %d bytes and revision %s, the ledger says %d and %s", p.Name, len(raw), doc.Rev, p.Document.Size, p.Rev)
		}
		for _, v := range full.Versions {
			all = append(all, fmt.Sprintf("%s@%s %s", p.Name, v.Version, v.CID))
			if !names(doc, v.Version) {
				w.t.Errorf("%s@%s is stored, and its document does not name it", p.Name, v.Version)
			}
			tarball, err := unixfs.ReadFile(ctx, durable, v.CID, 1<<30)
			if err != nil {
				w.t.Errorf("tarball of %s@%s: %v", p.Name, v.Version, err)
				continue
			}
			sum := sha512.Sum512(tarball)
			if sri := "sha512-" + base64.StdEncoding.EncodeToString(sum[:]); sri != v.Integrity || len(tarball) != int(v.Size) {
				w.t.Errorf("tarball of %s@%s is %s and %d bytes, the ledger says %s and %d", p.Name, v.Version, sri, len(tarball), v.Integrity, v.Size)
			}
		}
	}
	slices.Sort(all)
	return all
}

// durableGetter sees only what a crash would leave.
type durableGetter struct{ *memNode }

func (d durableGetter) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rotten[c] {
		return nil, fmt.Errorf("%s: %w", c, ipfs.ErrCorrupt)
	}
	if b, ok := d.durable[c]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%s is not durable: %w", c, ipfs.ErrNotFound)
}

func (d durableGetter) Local(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return d.Get(ctx, c)
}

// held lists "name@version" of all that is stored, in order.
func (w *world) held() []string {
	w.t.Helper()
	w.stored() // for its checks
	all := []string{}
	for p, err := range w.store.Packages(w.t.Context()) {
		if err != nil {
			w.t.Fatal(err)
		}
		full, err := w.store.Package(w.t.Context(), p.Name)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, v := range full.Versions {
			all = append(all, string(p.Name)+"@"+v.Version)
		}
	}
	return all
}

func (w *world) expect(versions ...string) {
	w.t.Helper()
	slices.Sort(versions)
	got := w.held()
	slices.Sort(got)
	if !slices.Equal(got, versions) {
		w.t.Errorf("the ledger holds %q, want %q", got, versions)
	}
}

// refused lists "name@version reason", in order.
func (w *world) refused() []string {
	w.t.Helper()
	rows, err := w.store.Refused(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	all := []string{}
	for _, r := range rows {
		all = append(all, fmt.Sprintf("%s@%s %s", r.Name, r.Version, r.Reason))
	}
	return all
}

func (w *world) expectRefused(rows ...string) {
	w.t.Helper()
	if got := w.refused(); !slices.Equal(got, rows) {
		w.t.Errorf("refused are %q, want %q", got, rows)
	}
}

// retries is the whole queue, by name and version.
func (w *world) retries() []ledger.Retry {
	w.t.Helper()
	var all []ledger.Retry
	names := map[npm.Name]bool{}
	keys, _, _, err := w.store.Due(w.t.Context(), ledger.Due{}, w.clock.Now().AddDate(1, 0, 0), 1000)
	for _, k := range keys {
		if names[k.Name] {
			continue
		}
		names[k.Name] = true
		rows, errRows := w.store.Queue(w.t.Context(), k.Name)
		all, err = append(all, rows...), errors.Join(err, errRows)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// queued lists "name@version" of what is in the queue, due or not.
func (w *world) queued() map[string]bool {
	w.t.Helper()
	all := map[string]bool{}
	for _, r := range w.retries() {
		all[string(r.Name)+"@"+r.Version] = true
	}
	return all
}

func (w *world) pkg(name string) ledger.Package {
	w.t.Helper()
	p, err := w.store.Package(w.t.Context(), npm.Name(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

const feedName = "http://feed.example.test/registry"

// pages is a feed of given pages. Their LastSeq is their number.
type pages struct {
	engine string
	mu     sync.Mutex
	pages  [][]couch.Change
	more   chan struct{} // closed and replaced when a page comes
	since  []string      // what was asked for

	docs    []couch.Doc // what AllDocs lists
	listErr error       // … and how that ends
}

func newPages(engine string) *pages { return &pages{engine: engine, more: make(chan struct{})} }

func (p *pages) push(changes ...couch.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pages = append(p.pages, changes)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *pages) Server(context.Context) (couch.ServerInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return couch.ServerInfo{Engine: p.engine, UpdateSeq: fmt.Sprint(len(p.pages)), IncludeDocs: p.engine != couch.EngineNPM}, nil
}

func (p *pages) AllDocs(context.Context) iter.Seq2[[]couch.Doc, error] {
	return func(yield func([]couch.Doc, error) bool) {
		p.mu.Lock()
		docs, err := slices.Clone(p.docs), p.listErr
		p.mu.Unlock()
		for page := range slices.Chunk(docs, 2) {
			if !yield(page, nil) {
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

func (p *pages) Changes(ctx context.Context, since string, follow bool) iter.Seq2[couch.Page, error] {
	return func(yield func(couch.Page, error) bool) {
		p.mu.Lock()
		p.since = append(p.since, since)
		p.mu.Unlock()
		var at int
		if _, err := fmt.Sscan(since, &at); err != nil {
			yield(couch.Page{}, err)
			return
		}
		for {
			p.mu.Lock()
			more := p.more
			var page couch.Page
			ok := at < len(p.pages)
			if ok {
				page = couch.Page{Changes: p.pages[at], LastSeq: fmt.Sprint(at + 1)}
			}
			p.mu.Unlock()
			if ok {
				if at++; !yield(page, nil) {
					return
				}
				continue
			}
			if !follow {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				yield(couch.Page{}, ctx.Err())
				return
			}
		}
	}
}
