package hosted

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var errInjected = errors.New("injected")

// faults breaks one step of many, as one that failed or as one that failed although
// it was done.
type faults struct {
	mu    sync.Mutex
	at    int // from 1; 0 is never
	kept  bool
	steps int
	fired string
}

func (f *faults) step(name string, do func() error) error {
	f.mu.Lock()
	f.steps++
	fire := f.steps == f.at
	if fire {
		f.fired = name
	}
	f.mu.Unlock()
	if !fire {
		return do()
	}
	if f.kept {
		if err := do(); err != nil {
			return err
		}
	}
	return errInjected
}

// memNode is a node in memory that loses what was not checkpointed in a crash, and
// whatever has no root.
type memNode struct {
	faults *faults

	mu               sync.Mutex
	durable, written map[cid.Cid]blocks.Block
	held             map[cid.Cid]bool
}

func newNode() *memNode {
	return &memNode{faults: &faults{}, durable: map[cid.Cid]blocks.Block{}, written: map[cid.Cid]blocks.Block{}, held: map[cid.Cid]bool{}}
}

func (n *memNode) Hold(_ context.Context, _ string, roots []cid.Cid) error {
	return n.faults.step("hold", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, c := range roots {
			n.held[c] = true
		}
		return nil
	})
}

// Unhold is durable at once: the worst that can be, for whoever holds again too late.
func (n *memNode) Unhold(_ context.Context, _ string, roots []cid.Cid) error {
	return n.faults.step("unhold", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, c := range roots {
			delete(n.held, c)
		}
		return nil
	})
}

func (n *memNode) Put(_ context.Context, blks []blocks.Block) error {
	return n.faults.step("put", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, b := range blks {
			n.written[b.Cid()] = b
		}
		return nil
	})
}

func (n *memNode) Checkpoint(context.Context) error {
	return n.faults.step("checkpoint", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		maps.Copy(n.durable, n.written)
		clear(n.written)
		return nil
	})
}

func (n *memNode) Local(_ context.Context, c cid.Cid) (blocks.Block, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b, ok := n.written[c]; ok {
		return b, nil
	}
	if b, ok := n.durable[c]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%s: %w", c, ipfs.ErrNotFound)
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

// world is a registry over a node in memory and a ledger on a file system that can
// lose power. Unless it is held, a release follows each change at once.
type world struct {
	t        *testing.T
	fs       *vfs.MemFS
	store    *ledger.Store
	node     *memNode
	settings string
	token    string
	later    time.Duration // that the registry's clock, and the ledger's, is ahead
	r        *Registry
	releases bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, fs: vfs.NewCrashableMem(), node: newNode(), settings: filepath.Join(t.TempDir(), "acme", "hosted.json"), releases: true}
	var err error
	if w.token, err = Create(w.settings, []string{"@acme", "@lab"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if w.store, err = ledger.Create("ledger", ledger.Options{FS: w.fs, Now: w.now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	w.start()
	return w
}

func (w *world) now() time.Time { return time.Now().Add(w.later) }

func (w *world) start() {
	w.t.Helper()
	r, err := New(Options{Settings: w.settings, Ledger: brittle{w.store, w.node.faults}, Node: w.node, Spool: w.t.TempDir(), MaxTarball: 1 << 20, Now: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	w.r = r
	if !w.releases {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var released sync.WaitGroup
	store := w.store
	released.Go(func() {
		for seq := ledger.Seq(0); store.Wait(ctx, seq) == nil; {
			seq = store.Head()
			r.Released(seq, nil)
		}
	})
	w.t.Cleanup(released.Wait)
	w.t.Cleanup(cancel)
}

// arm breaks a step of what comes next.
func (w *world) arm(at int, kept bool) *faults {
	w.node.faults = &faults{at: at, kept: kept}
	w.start()
	return w.node.faults
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
	if w.store, err = ledger.Open("ledger", ledger.Options{FS: w.fs, Now: w.now}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.store.Close() })
	w.node.mu.Lock()
	clear(w.node.written)
	w.node.mu.Unlock()
	w.node.faults = &faults{}
	w.start()
}

// ask sends a request from this machine, with the token where token is "own".
func (w *world) ask(method, path, token, body string, header ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	req.RemoteAddr, req.Host = "127.0.0.1:9", "registry.test:4874"
	if token == "own" {
		token = w.token
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "remote" {
			req.RemoteAddr = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	answer := httptest.NewRecorder()
	w.r.Handler().ServeHTTP(answer, req)
	return answer
}

// want asks, and checks the status and what the answer says.
func (w *world) want(status int, says, method, path, token, body string, header ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	answer := w.ask(method, path, token, body, header...)
	if answer.Code != status || !strings.Contains(answer.Body.String(), says) {
		w.t.Errorf("%s %s: %d %s, want %d and %q", method, path, answer.Code, answer.Body, status, says)
	}
	if answer.Code >= 400 {
		var npm struct{ Error string }
		if err := json.Unmarshal(answer.Body.Bytes(), &npm); err != nil || npm.Error == "" {
			w.t.Errorf("%s %s: %s is no error of npm's form", method, path, answer.Body)
		}
	}
	return answer
}

// publish sends a version.
func (w *world) publish(status int, says string, p publication) {
	w.t.Helper()
	w.want(status, says, "PUT", "/"+strings.Replace(p.name, "/", "%2f", 1), "own", p.document())
}

// publication is what npm publish makes of a package.
type publication struct {
	name, version string
	tags          string // JSON
	tarball       []byte
}

// version is a small package whose tarball depends on salt.
func version(name, version, salt string) publication {
	return publication{name, version, `{"latest":"` + version + `"}`, pack(entry{"package/package.json", fmt.Sprintf(`{"name":%q,"version":%q}`, name, version)}, entry{"package/index.js", salt})}
}

func (p publication) document() string {
	sri := sha512.Sum512(p.tarball)
	sum := sha1.Sum(p.tarball)
	return fmt.Sprintf(`{"_id":%[1]q,"name":%[1]q,"dist-tags":%[3]s,"versions":{%[2]q:{"name":%[1]q,"version":%[2]q,"dist":{"integrity":"sha512-%[4]s","shasum":"%[5]s","tarball":"http://elsewhere/x.tgz"}}},`+
		`"access":null,"_attachments":{"%[1]s-%[2]s.tgz":{"content_type":"application/octet-stream","data":"%[6]s","length":%[7]d}}}`,
		p.name, p.version, p.tags, base64.StdEncoding.EncodeToString(sri[:]), hex.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(p.tarball), len(p.tarball))
}

type entry struct{ name, data string }

// pack makes a package tarball.
func pack(entries ...entry) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(archive(entries...))
	z.Close()
	return out.Bytes()
}

func archive(entries ...entry) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		kind := byte(tar.TypeReg)
		if strings.HasSuffix(e.name, "@") {
			e.name, kind = strings.TrimSuffix(e.name, "@"), tar.TypeSymlink
		}
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data)), Typeflag: kind}
		if kind == tar.TypeSymlink {
			h.Linkname, h.Size, e.data = e.data, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		io.WriteString(w, e.data)
	}
	w.Close()
	return out.Bytes()
}

// zipped is gzip of anything.
func zipped(data []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(data)
	z.Close()
	return out.Bytes()
}
