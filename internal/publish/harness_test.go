package publish

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// memNode is a node in memory. What was put is lost at a power cut unless a
// checkpoint came after it. Its HTTP side serves records as /routing/v1 does.
type memNode struct {
	mu      sync.Mutex
	durable map[string]blocks.Block
	fresh   map[string]blocks.Block
	pins    map[string][]cid.Cid
	records map[string][]byte   // the network's best, by name
	puts    map[uint64][]string // by sequence, every value put
	putRaws map[uint64][][]byte
	said    map[string][][]byte // by name and sequence, every record put
	spoilt  map[string]bool     // blocks that are held, with other bytes, until they are put again
	peers   int
	gateway *httptest.Server

	failLocal, failPut, failRecord, failPutRecord, failPin, failUnpin func() error
	serve                                                             http.HandlerFunc // in place of the record's bytes
}

func newNode(t testing.TB) *memNode {
	n := &memNode{
		durable: map[string]blocks.Block{}, fresh: map[string]blocks.Block{}, pins: map[string][]cid.Cid{},
		spoilt: map[string]bool{}, records: map[string][]byte{}, puts: map[uint64][]string{}, putRaws: map[uint64][][]byte{},
		said: map[string][][]byte{},
	}
	n.gateway = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		serve, raw := n.serve, n.records[strings.TrimPrefix(r.URL.Path, "/routing/v1/ipns/")]
		n.mu.Unlock()
		if serve != nil {
			serve(w, r)
			return
		}
		if raw == nil {
			http.Error(w, "none", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", ipnsrecord.MediaType)
		w.Write(raw)
	}))
	t.Cleanup(n.gateway.Close)
	return n
}

func call(f func() error) error {
	if f == nil {
		return nil
	}
	return f()
}

func (n *memNode) Put(_ context.Context, blks []blocks.Block) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := call(n.failPut); err != nil {
		return err
	}
	for _, b := range blks {
		n.fresh[string(b.Cid().Hash())] = b
		delete(n.spoilt, string(b.Cid().Hash()))
	}
	return nil
}

func (n *memNode) Checkpoint(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, b := range n.fresh {
		n.durable[k] = b
	}
	clear(n.fresh)
	return nil
}

// powerCut loses what no checkpoint covered.
func (n *memNode) powerCut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.fresh)
}

func (n *memNode) Local(_ context.Context, c cid.Cid) (blocks.Block, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := call(n.failLocal); err != nil {
		return nil, err
	}
	if n.spoilt[string(c.Hash())] {
		return nil, fmt.Errorf("block %s: %w", c, ipfs.ErrCorrupt)
	}
	if b, ok := n.fresh[string(c.Hash())]; ok {
		return b, nil
	}
	if b, ok := n.durable[string(c.Hash())]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("block %s: %w", c, ipfs.ErrNotFound)
}

func (n *memNode) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) { return n.Local(ctx, c) }

// Pin refuses what is not whole and durable, so that a release can only be
// announced once it is.
func (n *memNode) Pin(_ context.Context, label string, _, root cid.Cid) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := call(n.failPin); err != nil {
		return err
	}
	seen := map[string]bool{}
	todo := []cid.Cid{root}
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		if seen[c.KeyString()] {
			continue
		}
		seen[c.KeyString()] = true
		b, ok := n.durable[string(c.Hash())]
		if !ok {
			return fmt.Errorf("block %s is not durable: %w", c, ipfs.ErrNotFound)
		}
		children, err := unixfs.Children(b)
		if err != nil {
			return err
		}
		todo = append(todo, children...)
	}
	if !slices.Contains(n.pins[label], root) {
		n.pins[label] = append(n.pins[label], root)
	}
	return nil
}

func (n *memNode) Unpin(_ context.Context, label string, root cid.Cid) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := call(n.failUnpin); err != nil {
		return err
	}
	n.pins[label] = slices.DeleteFunc(n.pins[label], root.Equals)
	return nil
}

func (n *memNode) Pins(_ context.Context, label string) ([]cid.Cid, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pins[label]), nil
}

func (n *memNode) PutRecord(_ context.Context, name ipns.Name, raw []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := call(n.failPutRecord); err != nil {
		return err
	}
	r, err := ipnsrecord.Check(name, raw, time.Time{})
	if err != nil {
		return err
	}
	if !slices.Contains(n.puts[r.Sequence], r.Value.String()) {
		n.puts[r.Sequence] = append(n.puts[r.Sequence], r.Value.String())
	}
	which := fmt.Sprintf("%s/%d", name, r.Sequence)
	n.said[which] = append(n.said[which], raw)
	n.putRaws[r.Sequence] = append(n.putRaws[r.Sequence], raw)
	var best ipnsrecord.Record
	if old := n.records[name.String()]; old != nil {
		if best, err = ipnsrecord.Check(name, old, time.Time{}); err != nil {
			return err
		}
	}
	if ipnsrecord.Better(r, best) {
		n.records[name.String()] = raw
	}
	return nil
}

func (n *memNode) Record(_ context.Context, name ipns.Name) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := call(n.failRecord); err != nil {
		return nil, err
	}
	if raw := n.records[name.String()]; raw != nil {
		return raw, nil
	}
	return nil, fmt.Errorf("record of %s: %w", name, ipfs.ErrNotFound)
}

func (n *memNode) Hold(context.Context, string, []cid.Cid) error   { return nil }
func (n *memNode) Unhold(context.Context, string, []cid.Cid) error { return nil }
func (n *memNode) Free(context.Context) (uint64, bool, error)      { return 0, false, nil }
func (n *memNode) Connect(context.Context, string) error           { return nil }
func (n *memNode) Close() error                                    { return nil }
func (n *memNode) Info(context.Context) (ipfs.Info, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return ipfs.Info{ID: "node", Gateway: n.gateway.URL, Peers: n.peers}, nil
}

func (n *memNode) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// memLedger is a ledger in memory, filled by hold.
type memLedger struct {
	mu       sync.Mutex
	id       string
	head     ledger.Seq
	packages map[npm.Name]ledger.Package
	moved    chan struct{}
	node     *memNode
}

func newLedger(n *memNode) *memLedger {
	return &memLedger{id: "ledger-1", packages: map[npm.Name]ledger.Package{}, moved: make(chan struct{}), node: n}
}

func (l *memLedger) Identity() string { return l.id }

func (l *memLedger) Head() ledger.Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

func (l *memLedger) Package(_ context.Context, name npm.Name) (ledger.Package, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.packages[name]
	if !ok {
		return p, ledger.ErrNotFound
	}
	return p, nil
}

func (l *memLedger) Changes(_ context.Context, since ledger.Seq, limit int) ([]ledger.Change, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []ledger.Change
	for _, p := range l.packages {
		if p.Seq > since {
			all = append(all, ledger.Change{Seq: p.Seq, Name: p.Name, Deleted: p.Deleted})
		}
	}
	slices.SortFunc(all, func(a, b ledger.Change) int { return int(a.Seq) - int(b.Seq) })
	return all[:min(len(all), limit)], nil
}

func (l *memLedger) Wait(ctx context.Context, since ledger.Seq) error {
	for {
		l.mu.Lock()
		head, moved := l.head, l.moved
		l.mu.Unlock()
		if head > since {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// set records p as the newest change.
func (l *memLedger) set(p ledger.Package) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head++
	p.Seq = l.head
	l.packages[p.Name] = p
	close(l.moved)
	l.moved = make(chan struct{})
}

// durably adds a file to the node as the follower does before its ledger says so.
func (n *memNode) durably(t testing.TB, add func(unixfs.Sink) (unixfs.Ref, error)) unixfs.Ref {
	t.Helper()
	ref, err := add(func(b blocks.Block) error { return n.Put(context.Background(), []blocks.Block{b}) })
	if err == nil {
		err = n.Checkpoint(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// packument is an upstream document with these versions, and what comes after
// them as raw members.
func packument(name string, versions []string, more string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `{"_id":%q,"_rev":"1-x","name":%q,"dist-tags":{"latest":%q},"versions":{`, name, name, versions[len(versions)-1])
	for i, v := range versions {
		if i > 0 {
			b.WriteByte(',')
		}
		base := name[strings.LastIndexByte(name, '/')+1:]
		fmt.Fprintf(&b, `%q:{"name":%q,"version":%q,"description":"d","dist":{"tarball":"https://registry.example.test/%s/-/%s-%s.tgz","shasum":"da39a3ee5e6b4b0d3255bfef95601890afd80709"}}`, v, name, v, name, base, v)
	}
	b.WriteString(`},"time":{"modified":"2024-01-01T00:00:00.000Z","created":"2020-01-01T00:00:00.000Z"`)
	for i, v := range versions {
		fmt.Fprintf(&b, `,%q:"2020-01-0%dT00:00:00.000Z"`, v, i%9+1)
	}
	b.WriteString(`}` + more + `}`)
	return []byte(b.String())
}

// hold records a package whose upstream has versions, of which held are stored.
func (l *memLedger) hold(t testing.TB, name string, versions []string, held ...string) {
	t.Helper()
	l.holdRaw(t, name, packument(name, versions, ""), held...)
}

func (l *memLedger) holdRaw(t testing.TB, name string, raw []byte, held ...string) {
	t.Helper()
	doc := l.node.durably(t, func(sink unixfs.Sink) (unixfs.Ref, error) {
		return unixfs.AddChunks(document.Encode(raw).Segments, sink)
	})
	p := ledger.Package{Name: npm.Name(name), Document: ledger.Document{CID: doc.CID, Tsize: doc.Tsize, Size: uint64(len(raw))}}
	for _, v := range held {
		data := []byte("tarball of " + name + "@" + v)
		ref := l.node.durably(t, func(sink unixfs.Sink) (unixfs.Ref, error) { return unixfs.AddFile(bytes.NewReader(data), sink) })
		p.Versions = append(p.Versions, ledger.Version{
			Version: v, File: name[strings.LastIndexByte(name, '/')+1:] + "-" + v + ".tgz",
			CID: ref.CID, Size: uint64(len(data)), Tsize: ref.Tsize,
		})
	}
	l.set(p)
}

// clock is moved by hand.
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

func testSigner(t testing.TB, seed byte) *ipnskeys.Signer {
	t.Helper()
	s, err := ipnskeys.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const journalPath = "state/journal"

var dayZero = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// world is all that outlives a publisher's process.
type world struct {
	t      testing.TB
	node   *memNode
	ledger *memLedger
	disk   *vfs.MemFS
	clock  *clock
	signer Signer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	n := newNode(t)
	w := &world{
		t: t, node: n, ledger: newLedger(n), disk: vfs.NewCrashableMem(),
		clock: &clock{now: dayZero}, signer: testSigner(t, 1),
	}
	if err := CreateJournal(w.disk, journalPath); err != nil {
		t.Fatal(err)
	}
	return w
}

// start is a process: a publisher over the world. stop ends it in order.
func (w *world) start(change ...func(*Options)) (p *Publisher, stop func()) {
	w.t.Helper()
	io := IndexOptions("", w.signer.IPNSName())
	io.FS = w.disk
	ix, err := index.Open("state/index", index.Options{FS: w.disk}) // which may have a gateway of a later name
	if errors.Is(err, index.ErrNoIndex) {
		ix, err = index.Create("state/index", io)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	o := Options{
		Ledger: w.ledger, Index: ix, Node: w.node, Signer: w.signer, Next: strings.Repeat("ab", 32),
		Journal: journalPath, FS: w.disk, Now: w.clock.Now, Peers: []string{"/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWSzRuSFHgLsKr6jJboAPdP7xMga2YBgBspYuErxswcgvt"},
	}
	for _, c := range change {
		c(&o)
	}
	p = New(o)
	p.retry = func() backoff.BackOff { return &backoff.ZeroBackOff{} }
	p.readTries, p.putTries = 3, 2
	return p, sync.OnceFunc(func() {
		if err := ix.Close(); err != nil {
			w.t.Error(err)
		}
	})
}

// powerCut gives the world as a machine finds it after losing power.
func (w *world) powerCut(seed uint64) *world {
	after := *w
	cfg := vfs.CrashCloneCfg{}
	if seed > 0 { // some of what was not synced made it all the same
		cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(seed, 1))}
	}
	after.disk = w.disk.CrashClone(cfg)
	w.node.powerCut()
	return &after
}

func (w *world) publish(p *Publisher) Result {
	w.t.Helper()
	r, err := p.Publish(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) best() ipnsrecord.Record {
	w.t.Helper()
	raw, err := w.node.Record(context.Background(), w.signer.IPNSName())
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := ipnsrecord.Check(w.signer.IPNSName(), raw, w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) lines() []line {
	w.t.Helper()
	f, err := w.disk.Open(journalPath)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(f); err != nil {
		w.t.Fatal(err)
	}
	var all []line
	for text := range bytes.Lines(buf.Bytes()) {
		var l line
		if err := json.Unmarshal(text[33:], &l); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func (w *world) ops() string {
	var all []string
	for _, l := range w.lines() {
		all = append(all, l.Op)
	}
	return strings.Join(all, " ")
}

// emptyDir is a directory of nothing.
func (w *world) emptyDir() cid.Cid {
	w.t.Helper()
	ref := w.node.durably(w.t, func(sink unixfs.Sink) (unixfs.Ref, error) { return unixfs.BasicDir(nil, sink) })
	return ref.CID
}

var errCrash = errors.New("power cut")
