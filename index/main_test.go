package index

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)

// node is a store of blocks as an IPFS node is one.
type node struct {
	mu   sync.Mutex
	blks map[cid.Cid]blocks.Block
	gets int
}

func newNode() *node { return &node{blks: make(map[cid.Cid]blocks.Block)} }

func (n *node) put(b blocks.Block) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.blks[b.Cid()] = b
	return nil
}

func (n *node) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gets++
	if b, ok := n.blks[c]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("test node: no block %s", c)
}

// entry makes a package directory in which revision is all that differs, and
// returns its blocks.
func entry(t testing.TB, name string, revision int) (Entry, []blocks.Block) {
	t.Helper()
	return shownEntry(t, name, revision, "")
}

// shownEntry is entry with a gateway's directory too, whose index.html is page;
// without one where page is empty.
func shownEntry(t testing.TB, name string, revision int, page string) (Entry, []blocks.Block) {
	t.Helper()
	var blks []blocks.Block
	sink := func(b blocks.Block) error { blks = append(blks, b); return nil }
	doc, err := unixfs.AddChunks([][]byte{fmt.Appendf(nil, "%s at %d", name, revision)}, func(blocks.Block) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	files := PackageFiles{Packument: doc, Install: doc, Tarballs: []unixfs.Link{{Name: "x-1.0.0.tgz", CID: doc.CID, Tsize: doc.Tsize}}}
	if page != "" {
		if files.Index, err = unixfs.AddChunks([][]byte{[]byte(page)}, sink); err != nil {
			t.Fatal(err)
		}
	}
	ref, gateway, err := PackageDir(files, sink)
	if err != nil {
		t.Fatal(err)
	}
	return Entry{Name: npm.Name(name), CID: ref.CID, Tsize: ref.Tsize, Versions: revision + 1, Gateway: gateway}, blks
}

func put(t testing.TB, name string, revision int) Change {
	t.Helper()
	e, _ := entry(t, name, revision)
	return Change{Entry: e}
}

func show(t testing.TB, name string, revision int, page string) Change {
	t.Helper()
	e, _ := shownEntry(t, name, revision, page)
	return Change{Entry: e}
}

func drop(name string) Change { return Change{Entry: Entry{Name: npm.Name(name)}, Delete: true} }

func memory(fs *vfs.MemFS) Options {
	return Options{FS: fs, Documents: "test-1", Gateway: "http://127.0.0.1:8080",
		fatal: func(err error) { panic(err) }, memTable: 256 << 10}
}

func newIndexFor(t testing.TB) *Index {
	t.Helper()
	ix, err := Create("ix", memory(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ix.Close(); err != nil {
			t.Error(err)
		}
	})
	return ix
}

func mustApply(t testing.TB, ix *Index, changes ...Change) Release {
	t.Helper()
	r, changed, err := ix.Apply(t.Context(), Batch{Changes: changes, Now: epoch})
	if err != nil || !changed {
		t.Fatalf("Apply: changed %v, %v", changed, err)
	}
	return r
}

func collect[T any](t testing.TB, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var out []T
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}
