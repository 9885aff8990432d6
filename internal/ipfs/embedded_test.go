package ipfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	ma "github.com/multiformats/go-multiaddr"
)

// TestEmbeddedRestart: blocks, pins, records, the identity and the addresses
// are the same after a restart.
func TestEmbeddedRestart(t *testing.T) {
	t.Parallel()
	ctx, dirname := t.Context(), t.TempDir()
	if _, err := OpenEmbedded(ctx, EmbeddedOptions{Dir: dirname}); !errors.Is(err, ErrNoNode) {
		t.Fatalf("open of nothing: %v, want ErrNoNode", err)
	}
	n, err := CreateEmbedded(ctx, EmbeddedOptions{Dir: dirname})
	if err != nil {
		t.Fatal(err)
	}
	before, err := n.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	small, large := randomLeaf(1, 100), randomLeaf(2, 1<<20)
	root := dir(small, large)
	s := newSigner(t)
	raw := s.sign(t, root.Cid(), 3, time.Now().Add(time.Hour))
	for _, step := range []func() error{
		func() error { return n.Put(ctx, []blocks.Block{small, large, root}) },
		func() error { return n.Pin(ctx, "root", cid.Undef, root.Cid()) },
		func() error { return n.PutRecord(ctx, s.name, raw) },
		n.Close,
		n.Close, // again, which does nothing
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Put(ctx, []blocks.Block{randomLeaf(3, 9)}); err == nil {
		t.Error("a closed node took a block")
	}
	if _, err := CreateEmbedded(ctx, EmbeddedOptions{Dir: dirname}); !errors.Is(err, ErrExists) {
		t.Fatalf("create again: %v, want ErrExists", err)
	}
	if _, err := OpenEmbedded(ctx, EmbeddedOptions{Dir: dirname, Network: Public}); err == nil {
		t.Fatal("a local node was opened as a public one")
	}
	n, err = OpenEmbedded(ctx, EmbeddedOptions{Dir: dirname})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	after, err := n.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if after.ID != before.ID || after.Addrs[0] != before.Addrs[0] || after.Gateway != before.Gateway {
		t.Errorf("was %+v, is %+v", before, after)
	}
	for _, want := range []blocks.Block{small, large, root} {
		got, err := n.Local(ctx, want.Cid())
		if err != nil || !bytes.Equal(got.RawData(), want.RawData()) {
			t.Errorf("block %s: %v", want.Cid(), err)
		}
	}
	if pinned, err := n.Pins(ctx, "root"); err != nil || !slices.Equal(pinned, []cid.Cid{root.Cid()}) {
		t.Errorf("pins: %s, %v", pinned, err)
	}
	if got, err := n.Record(ctx, s.name); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("record: %v", err)
	}
}

// TestEmbeddedPortsTaken: ports that the node chose itself are no promise
// worth not starting for.
func TestEmbeddedPortsTaken(t *testing.T) {
	t.Parallel()
	first := newEmbedded(t)
	second := t.TempDir()
	n, err := CreateEmbedded(t.Context(), EmbeddedOptions{Dir: second})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := readState(first.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.write(second); err != nil {
		t.Fatal(err)
	}
	if n, err = OpenEmbedded(t.Context(), EmbeddedOptions{Dir: second}); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	a, _ := first.Info(t.Context())
	b, _ := n.Info(t.Context())
	if strings.Split(a.Addrs[0], "/p2p/")[0] == strings.Split(b.Addrs[0], "/p2p/")[0] || a.Gateway == b.Gateway {
		t.Errorf("two nodes at one address: %+v, %+v", a, b)
	}
	if _, err := CreateEmbedded(t.Context(), EmbeddedOptions{Dir: t.TempDir(), GatewayListen: strings.TrimPrefix(a.Gateway, "http://")}); err == nil {
		t.Error("a port that was asked for was silently replaced")
	}
}

// TestEmbeddedIsLocal: a local node neither listens nor dials beyond loopback,
// whatever it is told.
func TestEmbeddedIsLocal(t *testing.T) {
	t.Parallel()
	for _, o := range []EmbeddedOptions{
		{Listen: []string{"/ip4/0.0.0.0/tcp/0"}},
		{Listen: []string{"/ip4/192.0.2.1/tcp/0"}},
		{GatewayListen: "0.0.0.0:0"},
		{GatewayListen: ":0"},
		{Network: "moon"},
	} {
		o.Dir = t.TempDir()
		if n, err := CreateEmbedded(t.Context(), o); err == nil {
			n.Close()
			t.Errorf("%+v was accepted", o)
		}
	}
	n := newEmbedded(t)
	for _, a := range n.host.Network().ListenAddresses() {
		if !strings.HasPrefix(a.String(), "/ip4/127.0.0.1/") {
			t.Errorf("listens at %s", a)
		}
	}
	for addr, want := range map[string]string{
		"/ip4/192.0.2.1/tcp/4001":       "gater",
		"/ip4/10.0.0.1/tcp/4001":        "gater",
		"/dns4/peer.example.test/tcp/1": "no good addresses", // not even looked up
	} {
		id := newSigner(t).name.Peer() // a peer ID of nobody
		err := n.Connect(t.Context(), addr+"/p2p/"+id.String())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("dial %s: %v, want %q", addr, err, want)
		}
	}
	if got := reach(func(ma.Multiaddr) bool { return false }); got.InterceptAddrDial("", nil) {
		t.Error("the gater lets all through")
	}
}

// TestEmbeddedLocked: one owner, in this process or another.
func TestEmbeddedLocked(t *testing.T) {
	t.Parallel()
	if dirname := os.Getenv("TEST_LOCKED_DIR"); dirname != "" {
		_, err := OpenEmbedded(t.Context(), EmbeddedOptions{Dir: dirname})
		if !errors.Is(err, ErrLocked) {
			t.Fatalf("%v, want ErrLocked", err)
		}
		return
	}
	n := newEmbedded(t)
	if _, err := OpenEmbedded(t.Context(), EmbeddedOptions{Dir: n.Dir()}); !errors.Is(err, ErrLocked) {
		t.Errorf("open twice: %v, want ErrLocked", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEmbeddedLocked$", "-test.v")
	cmd.Env = append(os.Environ(), "TEST_LOCKED_DIR="+n.Dir())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestEmbeddedLocked")) {
		t.Errorf("another process: %v\n%s", err, out)
	}
}

// TestEmbeddedIdentity: the key of the node is its user's alone.
func TestEmbeddedIdentity(t *testing.T) {
	t.Parallel()
	n := newEmbedded(t)
	path := filepath.Join(n.Dir(), identityFile)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode %o", info.Mode())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(t.Context(), EmbeddedOptions{Dir: n.Dir()}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others read was used: %v", err)
	}
}

// TestCreateInterrupted: a directory where CreateEmbedded was cut off is taken
// up again.
func TestCreateInterrupted(t *testing.T) {
	t.Parallel()
	dirname := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dirname, blocksDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := mintIdentity(dirname); err != nil {
		t.Fatal(err)
	}
	n, err := CreateEmbedded(t.Context(), EmbeddedOptions{Dir: dirname})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

func testStore(t *testing.T, fsys vfs.FS) *store {
	t.Helper()
	if err := fsys.MkdirAll("blocks", 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := pebble.LockDirectory("blocks", fsys)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openStore(fsys, "blocks", lock, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); lock.Close() })
	return s
}

// TestCheckpointSurvivesCrash: what a checkpoint covered is there after a
// power cut; what it did not cover may be gone, but never half or wrong.
func TestCheckpointSurvivesCrash(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	disk := vfs.NewCrashableMem()
	s := testStore(t, disk)
	var covered, after []blocks.Block
	for i := range 20 {
		covered = append(covered, randomLeaf(uint64(i), 1+i*4000))
		after = append(after, randomLeaf(uint64(100+i), 1+i*4000))
	}
	if err := s.PutMany(ctx, covered); err != nil {
		t.Fatal(err)
	}
	early := testStore(t, disk.CrashClone(vfs.CrashCloneCfg{}))
	if _, err := early.Get(ctx, covered[19].Cid()); !ipld.IsNotFound(err) {
		t.Errorf("unsynced block survived (%v): this test cannot fail", err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.PutMany(ctx, after); err != nil {
		t.Fatal(err)
	}
	crashed := testStore(t, disk.CrashClone(vfs.CrashCloneCfg{}))
	for _, b := range covered {
		if _, err := crashed.Get(ctx, b.Cid()); err != nil {
			t.Errorf("block of %d bytes after the crash: %v", len(b.RawData()), err)
		}
	}
	for _, b := range after {
		if _, err := crashed.Get(ctx, b.Cid()); err != nil && !ipld.IsNotFound(err) {
			t.Errorf("uncovered block: %v", err)
		}
	}
}

// TestPinIsDurable: Pin alone covers the blocks that were put before.
func TestPinIsDurable(t *testing.T) {
	t.Parallel()
	disk := vfs.NewCrashableMem()
	s := testStore(t, disk)
	b := randomLeaf(1, 50_000)
	if err := s.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := s.pin("x", b.Cid()); err != nil {
		t.Fatal(err)
	}
	crashed := testStore(t, disk.CrashClone(vfs.CrashCloneCfg{}))
	if pinned, err := crashed.pinned("x"); err != nil || !slices.Equal(pinned, []cid.Cid{b.Cid()}) {
		t.Errorf("pin %s, %v", pinned, err)
	}
	if _, err := crashed.Get(t.Context(), b.Cid()); err != nil {
		t.Error(err)
	}
}

// TestStoreSeparatesValues: leaves of 16 KiB and more are in CAR files, which
// any IPFS program reads.
func TestStoreSeparatesValues(t *testing.T) {
	t.Parallel()
	disk := vfs.NewMem()
	s := testStore(t, disk)
	if err := s.PutMany(t.Context(), []blocks.Block{randomLeaf(1, 100), randomLeaf(2, separateFrom)}); err != nil {
		t.Fatal(err)
	}
	f, err := disk.Open("blocks/cars/1.car")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cids []cid.Cid
	err = readCAR(f, func(b blocks.Block) error {
		cids = append(cids, b.Cid())
		return nil
	})
	if want := randomLeaf(2, separateFrom).Cid(); err != nil || len(cids) != 1 || !cids[0].Equals(want) {
		t.Errorf("the CAR holds %v (%v), want %s alone", cids, err, want)
	}
	for seed, size := range map[uint64]int{1: 100, 2: separateFrom} {
		c := randomLeaf(seed, size).Cid()
		if n, err := s.GetSize(t.Context(), c); err != nil || n != size {
			t.Errorf("size %d, %v; want %d", n, err, size)
		}
		if _, err := s.Get(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
}

// TestStoreRefusesCorruption: a block that does not match its CID goes to
// nobody, and putting it again heals it.
func TestStoreRefusesCorruption(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newEmbedded(t)
	b := randomLeaf(7, 1000)
	if err := n.Put(ctx, []blocks.Block{b}); err != nil {
		t.Fatal(err)
	}
	if err := n.blocks.db.Set(blockKey(b.Cid()), []byte("evil"), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Local(ctx, b.Cid()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	resp, err := http.Get(n.gateway + "/ipfs/" + b.Cid().String() + "?format=raw")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK || bytes.Contains(body, []byte("evil")) {
		t.Errorf("the gateway served it: %d %q", resp.StatusCode, body)
	}
	if err := n.Put(ctx, []blocks.Block{b}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Local(ctx, b.Cid()); err != nil {
		t.Errorf("put again: %v", err)
	}
}

func TestStoreRefusesHugeBlocks(t *testing.T) {
	t.Parallel()
	s := testStore(t, vfs.NewMem())
	if err := s.Put(t.Context(), randomLeaf(1, maxBlock+1)); err == nil {
		t.Error("a block was put that no peer would take")
	}
	if err := s.Put(t.Context(), randomLeaf(1, maxBlock)); err != nil {
		t.Error(err)
	}
}

// TestAPISocket: its modes, its end, and a directory whose path is too long
// for a socket.
func TestAPISocket(t *testing.T) {
	// Not parallel: it sets XDG_RUNTIME_DIR.
	short := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", short)
	long := filepath.Join(t.TempDir(), strings.Repeat("d", maxSocketPath))
	for _, dirname := range []string{t.TempDir(), long} {
		n, err := CreateEmbedded(t.Context(), EmbeddedOptions{Dir: dirname})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := EmbeddedAPI(dirname); !errors.Is(err, ErrAway) {
			t.Errorf("before it is served: %v, want ErrAway", err)
		}
		api, err := n.ListenAPI()
		if err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(api.Addr(), "/unix")
		if dirname == long && !strings.HasPrefix(path, short) {
			t.Errorf("socket at %s", path)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v", info.Mode(), err)
		}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("directory of the socket: %v, %v", info.Mode(), err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- api.Serve(ctx) }()
		k, err := OpenKubo(t.Context(), KuboOptions{API: api.Addr(), Patience: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Info(t.Context()); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
		if _, err := EmbeddedAPI(dirname); !errors.Is(err, ErrAway) {
			t.Errorf("after it was served: %v, want ErrAway", err)
		}
		if _, err := k.Info(t.Context()); !errors.Is(err, ErrAway) {
			t.Errorf("a call to nobody: %v, want ErrAway", err)
		}
		k.Close()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	// Somebody else's directory in a shared place is not used.
	if err := os.Chmod(filepath.Join(short, "regmirror-"+strconv.Itoa(os.Getuid())), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := socketPath(long); err == nil {
		t.Error("a socket directory that others may enter was used")
	}
}

// TestGatewayIsRegistry: /ipns/NAME/ of the embedded node is a file tree, for
// clients that know nothing of IPFS.
func TestGatewayIsRegistry(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newEmbedded(t)
	page := leaf([]byte(`{"name":"left-pad"}`))
	pkg := dirNamed(map[string]blocks.Block{"index.html": page})
	root := dirNamed(map[string]blocks.Block{"left-pad": pkg})
	second := dirNamed(map[string]blocks.Block{"right-pad": pkg})
	if err := n.Put(ctx, []blocks.Block{page, pkg, root, second}); err != nil {
		t.Fatal(err)
	}
	s := newSigner(t)
	get := func(path string) (int, string) {
		resp, err := http.Get(n.gateway + "/ipns/" + s.name.String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	if err := n.PutRecord(ctx, s.name, s.sign(t, root.Cid(), 1, time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if code, body := get("/left-pad"); code != 200 || body != string(page.RawData()) {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := get("/no-such-package"); code != 404 {
		t.Errorf("unknown package: %d, want 404", code)
	}
	// The next release is there at once, though the first may be cached.
	if err := n.PutRecord(ctx, s.name, s.sign(t, second.Cid(), 2, time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if code, body := get("/right-pad"); code != 200 {
		t.Errorf("after an update: %d %q", code, body)
	}
	if code, _ := get("/left-pad"); code != 404 {
		t.Errorf("after an update, the old one: %d, want 404", code)
	}
	// A DNSLink name would leave this machine.
	resp, err := http.Get(n.gateway + "/ipns/example.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode < 400 || !strings.Contains(string(body), errNoDNS.Error()) {
		t.Errorf("DNSLink: %d %s", resp.StatusCode, body)
	}
}

// TestRoutingPut: anybody may bring a valid record over HTTP, and only that.
func TestRoutingPut(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	n := newEmbedded(t)
	s, other := newSigner(t), newSigner(t)
	value, hour := randomLeaf(1, 1).Cid(), time.Now().Add(time.Hour)
	put := func(raw []byte) int {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, n.gateway+"/routing/v1/ipns/"+s.name.String(), bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", recordType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := put(other.sign(t, value, 1, hour)); code != 400 {
		t.Errorf("another key's: %d, want 400", code)
	}
	if code := put([]byte("x")); code != 400 {
		t.Errorf("garbage: %d, want 400", code)
	}
	raw := s.sign(t, value, 5, hour)
	if code := put(raw); code != 200 {
		t.Fatalf("valid: %d", code)
	}
	if code := put(s.sign(t, value, 4, hour)); code != 200 {
		t.Errorf("older: %d, want 200 as of Kubo", code)
	}
	if got, err := n.Record(ctx, s.name); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("kept another: %v", err)
	}
}

// TestReadsOldPins: a store from when a label had one pin has it still, beside
// others, until it is unpinned.
func TestReadsOldPins(t *testing.T) {
	t.Parallel()
	s := testStore(t, vfs.NewMem())
	old, next := randomLeaf(1, 10).Cid(), randomLeaf(2, 10).Cid()
	label := "registry-mirror/main"
	if err := s.setSync(append([]byte{pinSpace}, label...), []byte(`"`+old.String()+`"`)); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pinned := func(want ...cid.Cid) {
		t.Helper()
		got, err := s.pinned(label)
		must(err)
		slices.SortFunc(want, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })
		slices.SortFunc(got, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })
		if !slices.Equal(got, want) {
			t.Errorf("pinned: %v, want %v", got, want)
		}
	}
	pinned(old)
	must(s.pin(label, next))
	pinned(old, next)
	must(s.pin(label, old)) // the same root, as it is written now
	pinned(old, next)
	must(s.unpin(label, old))
	pinned(next)
}

// TestBlocksMovedAway: a node whose blocks were moved out of its directory, as one
// does with damaged ones, opens with none, and is the same node.
func TestBlocksMovedAway(t *testing.T) {
	t.Parallel()
	ctx, dirname := t.Context(), t.TempDir()
	n, err := CreateEmbedded(ctx, EmbeddedOptions{Dir: dirname})
	if err != nil {
		t.Fatal(err)
	}
	before, err := n.Info(ctx)
	leaf := randomLeaf(1, 100)
	if err := errors.Join(err, n.Put(ctx, []blocks.Block{leaf}), n.Checkpoint(ctx), n.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dirname, blocksDir), filepath.Join(t.TempDir(), "away")); err != nil {
		t.Fatal(err)
	}
	if n, err = OpenEmbedded(ctx, EmbeddedOptions{Dir: dirname}); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if after, err := n.Info(ctx); err != nil || after.ID != before.ID {
		t.Errorf("it is %s, was %s, %v", after.ID, before.ID, err)
	}
	if _, err := n.Local(ctx, leaf.Cid()); !errors.Is(err, ErrNotFound) {
		t.Errorf("a block that was moved away: %v", err)
	}
	if err := n.Put(ctx, []blocks.Block{leaf}); err != nil {
		t.Error(err)
	}
}
