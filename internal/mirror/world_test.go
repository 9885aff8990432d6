package mirror

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var someday = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const archive = `
-- left-pad@1.0.0/package.json --
{"name":"left-pad","version":"1.0.0","description":"pads left"}
-- left-pad@1.3.0/package.json --
{"name":"left-pad","version":"1.3.0","description":"pads left"}
-- left-pad/dist-tags.json --
{"latest":"1.3.0","old":"1.0.0"}
-- @types/node@20.0.0/package.json --
{"name":"@types/node","version":"20.0.0"}
-- is-odd@3.0.1/package.json --
{"name":"is-odd","version":"3.0.1","dependencies":{"left-pad":"^1.0.0"}}
`

var everything = []string{"left-pad", "@types/node", "is-odd"}

// world is a publisher with its own blocks: what node and gateways of a test
// can get. Tests reach into its fields to make it lie.
type world struct {
	t        testing.TB
	registry *npmtest.Registry
	key      ic.PrivKey
	name     ipns.Name
	now      time.Time
	ttl      time.Duration // of records
	node     *fakeNode

	mu      sync.Mutex
	blocks  map[cid.Cid]blocks.Block
	seq     uint64
	number  uint64
	peers   []string
	next    string
	names   []string          // that release.json names
	records map[string][]byte // of other names than w.name
	keys    []byte            // "_registry/keys.json"
	whole   []byte            // "_registry/snapshot/NUMBER"
	big     map[string][]byte // tarballs put in the place of the registry's, by file
	files   map[string]cid.Cid
	docs    map[string]cid.Cid // packument.json.gz by package
	dirs    map[string]cid.Cid // directory in the list by package
	page    string             // text of every index.html
	shown   []string           // packages that only gateways are shown
	astray  bool               // "_registry/list" is what gateways are shown
	jump    func() any         // what release.json has for one; nil: nothing
	past    []link             // the releases that were built
	record  []byte
	release cid.Cid
}

func newWorld(t testing.TB) *world { return newWorldOf(t, archive) }

func newWorldOf(t testing.TB, archive string) *world {
	key, public, err := ic.GenerateEd25519Key(rand.Reader)
	check(t, err)
	id, err := peer.IDFromPublicKey(public)
	check(t, err)
	w := &world{
		t: t, registry: npmtest.New(t, archive), key: key, name: ipns.NameFromPeer(id), now: someday, ttl: time.Minute,
		blocks: map[cid.Cid]blocks.Block{}, big: map[string][]byte{}, files: map[string]cid.Cid{}, docs: map[string]cid.Cid{}, dirs: map[string]cid.Cid{},
	}
	w.node = &fakeNode{w: w, held: map[cid.Cid]blocks.Block{}}
	return w
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) sink(b blocks.Block) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocks[b.Cid()] = b
	return nil
}

func (w *world) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.blocks[c]; ok {
		return b, nil
	}
	return nil, ipfs.ErrNotFound
}

// packument is what the upstream registry says of name.
func (w *world) packument(name string) []byte {
	resp, err := http.Get(w.registry.URL + "/" + npm.Name(name).Escape())
	check(w.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	check(w.t, err)
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("packument of %s: %s", name, resp.Status)
	}
	return raw
}

// dir builds a package's directory, and what gateways are shown.
func (w *world) dir(name string) (dir, gateway unixfs.Ref) {
	raw := w.packument(name)
	doc, err := npm.ParsePackument(raw)
	check(w.t, err)
	var links []unixfs.Link
	for v, m := range doc.Versions {
		file, err := npm.TarballFile(npm.Name(name), v, m.Dist.Tarball)
		check(w.t, err)
		data, ok := w.big[file]
		if !ok {
			data = w.registry.Tarball(name, v)
		}
		ref, err := unixfs.AddFile(bytes.NewReader(data), w.sink)
		check(w.t, err)
		w.files[file] = ref.CID
		links = append(links, unixfs.Link{Name: file, CID: ref.CID, Tsize: ref.Tsize})
	}
	short, err := npm.Abbreviate(raw, npm.AbbreviateOptions{Time: true})
	check(w.t, err)
	page, err := unixfs.AddChunks([][]byte{[]byte("page " + w.page)}, w.sink)
	check(w.t, err)
	files := index.PackageFiles{Packument: w.document(raw), Install: w.document(short), Index: page, Tarballs: links}
	w.docs[name] = files.Packument.CID
	dir, gateway, err = index.PackageDir(files, w.sink)
	check(w.t, err)
	w.dirs[name] = dir.CID
	return dir, gateway
}

func (w *world) document(raw []byte) unixfs.Ref {
	b, err := compress(raw, gzipped)
	check(w.t, err)
	ref, err := unixfs.AddChunks([][]byte{b.data}, w.sink)
	check(w.t, err)
	return ref
}

// build makes the next release of these packages and returns its root.
func (w *world) build(names ...string) cid.Cid {
	w.number++
	dirs, front := map[string]unixfs.Ref{}, map[string]unixfs.Ref{}
	for _, name := range names {
		dirs[name], front[name] = w.dir(name)
	}
	for _, name := range w.shown {
		_, front[name] = w.dir(name)
	}
	list, overflow := w.directory(dirs)
	root, _ := w.directory(front)
	return w.buildRelease(len(names), root, list, overflow)
}

// directory builds a list's root of package directories, and its overflow.
func (w *world) directory(dirs map[string]unixfs.Ref) (root, overflow unixfs.Ref) {
	var top []unixfs.Link
	scopes := map[string][]unixfs.Link{}
	for name, ref := range dirs {
		scope, base := npm.Name(name).Scope(), npm.Name(name).Base()
		link := unixfs.Link{Name: base, CID: ref.CID, Tsize: ref.Tsize}
		if scope == "" {
			top = append(top, link)
		} else {
			scopes[scope] = append(scopes[scope], link)
		}
	}
	for scope, links := range scopes {
		ref, _, err := unixfs.BuildDir(links, unixfs.DirLimit, w.sink)
		check(w.t, err)
		top = append(top, unixfs.Link{Name: scope, CID: ref.CID, Tsize: ref.Tsize})
	}
	root, over, err := unixfs.BuildDir(top, 0, w.sink)
	check(w.t, err)
	overflow, _, err = unixfs.BuildDir(over, unixfs.DirLimit, w.sink)
	check(w.t, err)
	return root, overflow
}

// buildRelease puts "_registry" into front, and returns the release's root.
func (w *world) buildRelease(packages int, front, list, overflow unixfs.Ref) cid.Cid {
	said := map[string]any{
		"format": index.Format, "number": w.number, "created": w.now.Format(time.RFC3339),
		"list":       map[string]string{"root": list.CID.String(), "overflow": overflow.CID.String()},
		"parameters": map[string]any{"fanout": 256, "dir_limit": 32768, "documents": "sections-64k-16k-gzip-1"},
		"packages":   packages, "versions": packages, "peers": w.peers, "next": w.next,
	}
	if w.names != nil {
		said["names"] = w.names
	}
	if w.release.Defined() {
		said["previous"] = w.release.String()
	} else if w.number > 1 {
		said["previous"] = list.CID.String()
	}
	if w.jump != nil {
		if j := w.jump(); j != nil {
			said["jump"] = j
		}
	}
	raw, err := json.Marshal(said)
	check(w.t, err)
	file, err := unixfs.AddFile(bytes.NewReader(raw), w.sink)
	check(w.t, err)
	if w.astray {
		list = front
	}
	var keys []unixfs.Link
	if w.keys != nil {
		ref, err := unixfs.AddFile(bytes.NewReader(w.keys), w.sink)
		check(w.t, err)
		keys = []unixfs.Link{{Name: "keys.json", CID: ref.CID, Tsize: ref.Tsize}}
	}
	if w.whole != nil {
		ref, err := unixfs.AddFile(bytes.NewReader(w.whole), w.sink)
		check(w.t, err)
		dir, _, err := unixfs.BuildDir([]unixfs.Link{{Name: fmt.Sprint(w.number), CID: ref.CID, Tsize: ref.Tsize}}, unixfs.DirLimit, w.sink)
		check(w.t, err)
		keys = append(keys, unixfs.Link{Name: "snapshot", CID: dir.CID, Tsize: dir.Tsize})
	}
	registry, _, err := unixfs.BuildDir(append(keys, []unixfs.Link{
		{Name: "release.json", CID: file.CID, Tsize: file.Tsize},
		{Name: "overflow", CID: overflow.CID, Tsize: overflow.Tsize},
		{Name: "list", CID: list.CID, Tsize: list.Tsize},
	}...), unixfs.DirLimit, w.sink)
	check(w.t, err)
	root, err := unixfs.Edit(context.Background(), w, front.CID, []unixfs.Link{{Name: unixfs.Reserved, CID: registry.CID, Tsize: registry.Tsize}}, w.sink, nil)
	check(w.t, err)
	w.release = root.CID
	w.past = append(w.past, link{Root: root.CID, Number: w.number, Created: w.now})
	return root.CID
}

// publish builds and signs a release of these packages under the next sequence.
func (w *world) publish(names ...string) {
	root := w.build(names...)
	w.seq++
	w.setRecord(w.sign(root, w.seq))
}

func (w *world) sign(value cid.Cid, seq uint64) []byte {
	return w.signUntil(value, seq, w.now.Add(24*time.Hour))
}

func (w *world) signUntil(value cid.Cid, seq uint64, eol time.Time) []byte {
	rec, err := ipns.NewRecord(w.key, path.FromCid(value), seq, eol, w.ttl)
	check(w.t, err)
	raw, err := ipns.MarshalRecord(rec)
	check(w.t, err)
	return raw
}

func (w *world) setRecord(raw []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.record = raw
}

// lose takes blocks from everybody who had them.
func (w *world) lose(cids ...cid.Cid) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range cids {
		delete(w.blocks, c)
		delete(w.node.held, c)
	}
}

// fakeNode is a node whose peers have the world's blocks.
type fakeNode struct {
	w       *world
	held    map[cid.Cid]blocks.Block // under w.mu
	gets    map[cid.Cid]int          // under w.mu
	pins    map[string][]cid.Cid     // by label; under w.mu
	dialled []string                 // under w.mu
	hang    bool                     // peers never answer
	alone   bool                     // peers have nothing, and no record either
	gate    chan struct{}            // where not nil, Get waits for it
}

func (n *fakeNode) Local(_ context.Context, c cid.Cid) (blocks.Block, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if b, ok := n.held[c]; ok {
		return b, nil
	}
	// A block is kept by its hash, whatever its CID says of its form.
	if b, ok := n.held[cid.NewCidV1(cid.Raw, c.Hash())]; ok {
		return blocks.NewBlockWithCid(b.RawData(), c)
	}
	return nil, ipfs.ErrNotFound
}

func (n *fakeNode) Find(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	n.w.mu.Lock()
	if n.gets == nil {
		n.gets = map[cid.Cid]int{}
	}
	n.gets[c]++
	hang, alone, gate := n.hang, n.alone, n.gate
	n.w.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	b, err := n.w.Get(ctx, c)
	if alone {
		return nil, ipfs.ErrNoPeers
	}
	if err != nil {
		return nil, ipfs.ErrLacking
	}
	return b, n.Put(ctx, []blocks.Block{b})
}

func (n *fakeNode) Put(_ context.Context, blks []blocks.Block) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, b := range blks {
		n.held[b.Cid()] = b
	}
	return nil
}

func (n *fakeNode) Pin(_ context.Context, label string, _, root cid.Cid) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.pins == nil {
		n.pins = map[string][]cid.Cid{}
	}
	n.pins[label] = append(n.pins[label], root)
	return nil
}

func (n *fakeNode) Unpin(_ context.Context, label string, root cid.Cid) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.pins[label] = slices.DeleteFunc(n.pins[label], func(c cid.Cid) bool { return c == root })
	return nil
}

func (n *fakeNode) Pins(_ context.Context, label string) ([]cid.Cid, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return slices.Clone(n.pins[label]), nil
}

func (n *fakeNode) Record(_ context.Context, name ipns.Name) ([]byte, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.alone {
		return nil, ipfs.ErrNotFound
	}
	return n.w.recordOf(name)
}

// recordOf needs w.mu.
func (w *world) recordOf(name ipns.Name) ([]byte, error) {
	raw := w.record
	if !name.Equal(w.name) {
		raw = w.records[name.String()]
	}
	if raw == nil {
		return nil, ipfs.ErrNotFound
	}
	return raw, nil
}

func (n *fakeNode) Connect(_ context.Context, addr string) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.dialled = append(n.dialled, addr)
	return nil
}

func (n *fakeNode) Info(context.Context) (ipfs.Info, error) {
	return ipfs.Info{ID: "fake", Peers: 1}, nil
}

// fakeGateway is a trustless gateway over the world's blocks.
type fakeGateway struct {
	w       *world
	hang    bool
	record  []byte // where not nil, in place of the world's
	none    bool   // it has no record
	away    bool   // under w.mu
	asked   atomic.Int64
	fetches int // under w.mu
}

func (g *fakeGateway) URL() string { return "http://gateway.example.test" }

func (g *fakeGateway) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if g.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g.w.mu.Lock()
	away := g.away
	g.w.mu.Unlock()
	if away {
		return nil, ipfs.ErrUnavailable
	}
	return g.w.Get(ctx, c)
}

func (g *fakeGateway) Fetch(ctx context.Context, root cid.Cid, _ []string, _ ipfs.Scope, maxBytes int64, sink func(blocks.Block) error) error {
	g.w.mu.Lock()
	g.fetches++
	g.w.mu.Unlock()
	queue := []cid.Cid{root}
	for len(queue) > 0 {
		b, err := g.Get(ctx, queue[0])
		if err != nil {
			return err
		}
		if maxBytes -= int64(len(b.RawData())); maxBytes < 0 {
			return errors.New("too large")
		}
		children, err := unixfs.Children(b)
		if err != nil {
			return err
		}
		if err := sink(b); err != nil {
			return err
		}
		queue = append(queue[1:], children...)
	}
	return nil
}

func (g *fakeGateway) Record(ctx context.Context, name ipns.Name) ([]byte, error) {
	if g.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if g.record != nil {
		return g.record, nil
	}
	g.asked.Add(1)
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	if g.none {
		return nil, ipfs.ErrNotFound
	}
	return g.w.recordOf(name)
}

// open opens a mirror of the world with its node, unless change says otherwise.
func (w *world) open(change ...func(*Options)) *Mirror {
	w.t.Helper()
	o := Options{
		Dir: "mirror", FS: vfs.NewMem(), Node: w.node, Name: w.name,
		Now: func() time.Time { return w.now }, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
	for _, f := range change {
		f(&o)
	}
	m, err := Open(o)
	check(w.t, err)
	m.patience = 50 * time.Millisecond
	w.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return m
}

// synced is open and one round.
func (w *world) synced(change ...func(*Options)) *Mirror {
	w.t.Helper()
	m := w.open(change...)
	check(w.t, m.Sync(context.Background()))
	return m
}

// alone is a table of one open registry.
func alone(t testing.TB, m *Mirror) *Table {
	t.Helper()
	table, err := NewTable(Registry{Label: "main", Mirror: m})
	check(t, err)
	return table
}

// listed is the names of the list that m serves.
func listedNames(t testing.TB, m *Mirror) []string {
	t.Helper()
	var names []string
	for e, err := range m.list.Entries(context.Background()) {
		if errors.Is(err, ErrNotSynced) {
			return nil
		}
		check(t, err)
		names = append(names, string(e.Name))
	}
	slices.Sort(names)
	return names
}

// get asks m's handler. headers are "Name: value".
func get(m *Mirror, path string, headers ...string) *httptest.ResponseRecorder {
	return do(m, http.MethodGet, path, nil, headers...)
}

func do(m *Mirror, method, path string, body io.Reader, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:4873"+path, body)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
			continue
		}
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, r)
	return w
}

func tarballPath(name, file string) string { return fmt.Sprintf("/%s/-/%s", name, file) }

func newRecorder(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

// scopeDir is the CID of a scope's directory in the newest release.
func (w *world) scopeDir(t *testing.T, scope string) cid.Cid {
	t.Helper()
	l, err := unixfs.Path(t.Context(), w, w.release, "_registry", "list", scope)
	check(t, err)
	return l.CID
}

var (
	_ Gateway    = (*ipfs.Gateway)(nil)
	_ NodeReader = (*ipfs.Embedded)(nil)
)

// asked is how many blocks the node was asked to fetch.
func (n *fakeNode) asked() (sum int) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, times := range n.gets {
		sum += times
	}
	return sum
}
