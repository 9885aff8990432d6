package ipfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/ipfs/kubo/client/rpc"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// TestHoldAgainstGC: what was held survives Kubo's garbage collection, also a
// file of several blocks, and also where the hold came before the blocks, a
// collection and the checkpoint. What was not held is collected: the test can
// fail.
func TestHoldAgainstGC(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	d := kubod.Start(t)
	n := newKubo(t, d)
	collect := func() {
		t.Helper()
		if _, err := d.Command(ctx, "repo", "gc", "--quiet"); err != nil {
			t.Fatal(err)
		}
	}
	pins := func() string {
		t.Helper()
		out, err := d.Command(ctx, "pin", "ls", "--type=recursive", "--quiet")
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	before := pins() // Kubo's own
	var file []blocks.Block
	ref, err := unixfs.AddFile(bytes.NewReader(randomLeaf(1, 3<<20).RawData()), func(b blocks.Block) error {
		file = append(file, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	held := append(file, randomLeaf(2, 500))
	roots := []cid.Cid{ref.CID, randomLeaf(2, 500).Cid()}
	// So many that their directory is a HAMT.
	for i := range 1500 {
		b := leaf(fmt.Append(nil, "leaf ", i))
		held, roots = append(held, b), append(roots, b.Cid())
	}
	loose := randomLeaf(3, 500)

	if err := n.Hold(ctx, "first", roots); err != nil {
		t.Fatal(err)
	}
	collect()
	if err := n.Put(ctx, append(slices.Clone(held), loose)); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for _, b := range held {
			if _, err := n.Local(ctx, b.Cid()); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
	collect()
	check("after a collection")
	if _, err := n.Local(ctx, loose.Cid()); !errors.Is(err, ErrNotFound) {
		t.Errorf("the block that nothing holds: %v, want ErrNotFound", err)
	}
	if err := n.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	collect()
	check("after a restart and a collection")
	if after := pins(); after != before {
		t.Errorf("pins were %s, are %s", before, after)
	}
	// Some are let go of, also one that nobody held: the others stay.
	if err := n.Unhold(ctx, "first", []cid.Cid{ref.CID, loose.Cid()}); err != nil {
		t.Fatal(err)
	}
	if err := n.Unhold(ctx, "nobody's", roots); err != nil {
		t.Fatal(err)
	}
	collect()
	if _, err := n.Local(ctx, ref.CID); !errors.Is(err, ErrNotFound) {
		t.Errorf("what was let go of: %v, want ErrNotFound", err)
	}
	held = held[len(file):]
	check("after others were let go of")
	if err := n.Unhold(ctx, "first", roots); err != nil {
		t.Fatal(err)
	}
	collect()
	if _, err := n.Local(ctx, held[0].Cid()); !errors.Is(err, ErrNotFound) {
		t.Errorf("after letting go: %v, want ErrNotFound", err)
	}
	if err := n.Checkpoint(ctx); err != nil {
		t.Errorf("checkpoint without anything held: %v", err)
	}
}

// TestHoldOften: Kubo bounds how much of MFS may be unflushed, and Hold goes on.
func TestHoldOften(t *testing.T) {
	t.Parallel()
	n := newKubo(t, kubod.Start(t))
	for i := range 600 {
		if err := n.Hold(t.Context(), "often", []cid.Cid{leaf(fmt.Append(nil, i)).Cid()}); err != nil {
			t.Fatalf("hold %d: %v", i, err)
		}
	}
}

// TestHoldIsKept: the embedded node records what is held, from a checkpoint
// on, also when it is told over the socket.
func TestHoldIsKept(t *testing.T) {
	t.Parallel()
	disk := vfs.NewCrashableMem()
	s := testStore(t, disk)
	a, b := randomLeaf(1, 10).Cid(), randomLeaf(2, 10).Cid()
	for _, c := range []cid.Cid{a, a, b} {
		if err := s.hold("x", []cid.Cid{c}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.hold("xy", []cid.Cid{a}), s.unhold("xy", []cid.Cid{b})); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	crashed := testStore(t, disk.CrashClone(vfs.CrashCloneCfg{}))
	if held, err := crashed.held("x"); err != nil || len(held) != 2 || !slices.Contains(held, a) || !slices.Contains(held, b) {
		t.Errorf("held: %v, %v", held, err)
	}

	n := newEmbedded(t)
	if err := overSocket(t, n).Hold(t.Context(), "x", []cid.Cid{a, b}); err != nil {
		t.Fatal(err)
	}
	if held, err := n.blocks.held("x"); err != nil || len(held) != 2 || !slices.Contains(held, a) || !slices.Contains(held, b) {
		t.Errorf("held: %v, %v", held, err)
	}
}

// TestErrFull: a full disk is told apart, wherever it is.
func TestErrFull(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for text, want := range map[string]bool{
		"write /data/ipfs/blocks/XX/put-1: no space left on device": true,
		"import failed: write: disk quota exceeded":                 true,
		"permission denied": false,
	} {
		if err := failure(ctx, &rpc.Error{Message: text}); errors.Is(err, ErrFull) != want {
			t.Errorf("Kubo's %q: %v", text, err)
		}
	}
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		if err := full(&os.PathError{Op: "write", Path: "1.car", Err: cause}); !errors.Is(err, ErrFull) || !errors.Is(err, cause) {
			t.Errorf("%v", err)
		}
	}
	if err := full(errors.New("other")); errors.Is(err, ErrFull) {
		t.Error(err)
	}
	// The embedded node's, over its socket.
	srv := httptest.NewServer(APIHandler(fullNode{newEmbedded(t)}, slog.New(slog.DiscardHandler)))
	defer srv.Close()
	k, err := OpenKubo(ctx, KuboOptions{API: srv.URL, Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Put(ctx, []blocks.Block{randomLeaf(1, 1)}); !errors.Is(err, ErrFull) {
		t.Errorf("over the socket: %v, want ErrFull", err)
	}
}

type fullNode struct{ Node }

func (fullNode) Put(context.Context, []blocks.Block) error {
	return full(&os.PathError{Op: "write", Path: "1.car", Err: syscall.ENOSPC})
}

// TestFreeIsUnknownElsewhere: of a daemon whose repository is not found on this
// machine nothing is claimed.
func TestFreeIsUnknownElsewhere(t *testing.T) {
	t.Parallel()
	if _, known, err := (&Kubo{}).Free(t.Context()); known || err != nil {
		t.Errorf("known %v, %v", known, err)
	}
	if _, err := FreeSpace(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// faultyFS fails writes or syncs of CAR files once armed, and counts the
// faults that fired.
type faultyFS struct {
	vfs.FS
	write, sync bool
	fired       int
}

type faultyFile struct {
	vfs.File
	fs *faultyFS
}

func (f *faultyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err == nil && strings.HasSuffix(name, ".car") {
		file = faultyFile{file, f}
	}
	return file, err
}

func (f faultyFile) Write(p []byte) (int, error) {
	if f.fs.write {
		f.fs.fired++
		n, _ := f.File.Write(p[:len(p)/2])
		return n, syscall.ENOSPC
	}
	return f.File.Write(p)
}

func (f faultyFile) SyncData() error {
	if f.fs.sync {
		f.fs.fired++
		return syscall.EIO
	}
	return f.File.SyncData()
}

// TestStoreFaults: a block whose bytes may be lost is not held, and putting it
// again stores it; what an earlier checkpoint covered stays.
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	disk := vfs.NewCrashableMem()
	faulty := &faultyFS{FS: disk}
	s := testStore(t, faulty)
	var early, late []blocks.Block
	for i := range 10 {
		early = append(early, randomLeaf(uint64(i), 300<<10))
		late = append(late, randomLeaf(uint64(100+i), 300<<10))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.PutMany(ctx, early))
	must(s.Sync())

	faulty.write = true
	if err := s.PutMany(ctx, late); !errors.Is(err, ErrFull) {
		t.Errorf("a full disk: %v, want ErrFull", err)
	}
	faulty.write = false
	for _, b := range late {
		if held, err := s.Has(ctx, b.Cid()); held || err != nil {
			t.Fatalf("held after a failed write: %v, %v", held, err)
		}
	}
	must(s.PutMany(ctx, late))
	faulty.sync = true
	if err := s.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a failed sync: %v", err)
	}
	faulty.sync = false
	if faulty.fired < 2 {
		t.Fatal("the faults did not fire")
	}
	for _, b := range late {
		if held, err := s.Has(ctx, b.Cid()); held || err != nil {
			t.Fatalf("held after a failed sync: %v, %v", held, err)
		}
	}
	if err := s.checkpoint(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a checkpoint after blocks were lost: %v", err)
	}
	must(s.PutMany(ctx, late))
	must(s.checkpoint())
	crashed := testStore(t, disk.CrashClone(vfs.CrashCloneCfg{}))
	for _, b := range slices.Concat(early, late) {
		if _, err := crashed.Get(ctx, b.Cid()); err != nil {
			t.Error(err)
		}
	}
	// The next file, not one that a crash cut off.
	must(crashed.Put(ctx, randomLeaf(200, 20_000)))
	must(crashed.Sync())
	for _, b := range early {
		if _, err := crashed.Get(ctx, b.Cid()); err != nil {
			t.Error(err)
		}
	}
}

// TestStoreLosesCAR: a CAR that is cut off or gone is corruption, which
// putting again heals.
func TestStoreLosesCAR(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	disk := vfs.NewMem()
	s := testStore(t, disk)
	b := randomLeaf(1, 50_000)
	if err := errors.Join(s.Put(ctx, b), s.Sync()); err != nil {
		t.Fatal(err)
	}
	if err := disk.Remove("blocks/cars/1.car"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, b.Cid()); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%v, want ErrCorrupt", err)
	}
	s.cars.abandon() // the file that it still writes to has no name
	if err := errors.Join(s.Put(ctx, b), s.Sync()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, b.Cid()); err != nil {
		t.Errorf("put again: %v", err)
	}
	if err := s.DeleteBlock(ctx, b.Cid()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, b.Cid()); !ipld.IsNotFound(err) {
		t.Errorf("deleted: %v", err)
	}
}

// TestCARsRotate: a file that has reached its limit is followed by the next,
// and both are covered by one checkpoint.
func TestCARsRotate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	disk := vfs.NewCrashableMem()
	s := testStore(t, disk)
	s.cars.limit = 200_000
	var blks []blocks.Block
	for i := range 40 {
		blks = append(blks, randomLeaf(uint64(i), 30_000+i))
		if err := s.Put(ctx, blks[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	crashed := testStore(t, disk.CrashClone(vfs.CrashCloneCfg{}))
	if crashed.cars.number < 5 {
		t.Errorf("%d files", crashed.cars.number)
	}
	for _, b := range blks {
		if n, err := crashed.GetSize(ctx, b.Cid()); err != nil || n != len(b.RawData()) {
			t.Errorf("size %d, %v", n, err)
		}
		if _, err := crashed.Get(ctx, b.Cid()); err != nil {
			t.Error(err)
		}
	}
}

// TestOpensFormat1: a node from before CAR files is opened, and is of the new
// format from then on.
func TestOpensFormat1(t *testing.T) {
	t.Parallel()
	n := newEmbedded(t)
	large := randomLeaf(1, 100_000)
	if err := n.blocks.setSync(blockKey(large.Cid()), large.RawData()); err != nil { // as format 1 did
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.Dir(), stateFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := bytes.Replace(raw, []byte(`"format": 2`), []byte(`"format": 1`), 1)
	if bytes.Equal(old, raw) {
		t.Fatalf("no format in %s", raw)
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := OpenEmbedded(t.Context(), EmbeddedOptions{Dir: n.Dir()})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Local(t.Context(), large.Cid()); err != nil {
		t.Error(err)
	}
	var st state
	if raw, err = os.ReadFile(path); err != nil || json.Unmarshal(raw, &st) != nil || st.Format != stateFormat {
		t.Errorf("format %d, %v", st.Format, err)
	}
}
