package index

import (
	"bytes"
	"errors"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// A release says by which keys its packages are signed, byte for byte; other keys
// make a release of the same list, and the same ones none.
func TestKeys(t *testing.T) {
	ix := newIndexFor(t)
	first := mustApply(t, ix, put(t, "a", 0))
	if raw, err := ReadKeys(t.Context(), ix, first.Root); err != nil || raw != nil {
		t.Errorf("without keys: %q, %v", raw, err)
	}
	number := first.Number
	for _, c := range []struct {
		keys    []byte
		changes []Change
		changed bool
	}{
		{[]byte("{ \"keys\":[]}\n"), nil, true},
		{[]byte("{ \"keys\":[]}\n"), nil, false},
		{[]byte("{ \"keys\":[]}\n"), []Change{put(t, "b", 0)}, true},
		{[]byte("another"), nil, true},
		{bytes.Repeat([]byte("k"), MaxKeys), nil, true},
		{nil, nil, true},
		{nil, nil, false},
	} {
		r, changed, err := ix.Apply(t.Context(), Batch{Changes: c.changes, Keys: c.keys, Now: epoch})
		if changed {
			number++
		}
		if err != nil || changed != c.changed || r.Number != number {
			t.Fatalf("%.20q: release %d, changed %v, %v", c.keys, r.Number, changed, err)
		}
		if len(c.changes) == 0 && changed && r.Number == 2 && r.List != first.List {
			t.Error("the list depends on the keys")
		}
		raw, err := ReadKeys(t.Context(), ix, r.Root)
		if err != nil || !bytes.Equal(raw, c.keys) || (raw == nil) != (c.keys == nil) {
			t.Errorf("%.20q: read %.20q, %v", c.keys, raw, err)
		}
		if _, err := ReadRelease(t.Context(), ix, r.Root); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := ix.Apply(t.Context(), Batch{Keys: make([]byte, MaxKeys+1), Now: epoch}); !errors.Is(err, ErrRelease) {
		t.Errorf("a document that is too large: %v", err)
	}
	// The newest two releases stay whole where older ones go.
	r, _, err := ix.Apply(t.Context(), Batch{Keys: []byte("kept"), Now: epoch})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ix.Collect(t.Context(), r.Number, nil); err != nil {
		t.Fatal(err)
	}
	if raw, err := ReadKeys(t.Context(), ix, r.Root); err != nil || string(raw) != "kept" {
		t.Errorf("after a collection: %q, %v", raw, err)
	}
}

// A stranger's directory in the file's place is refused.
func TestReadKeysRefuses(t *testing.T) {
	n := newNode()
	dir, err := unixfs.BasicDir(nil, n.put)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := unixfs.BasicDir([]unixfs.Link{{Name: keysName, CID: dir.CID, Tsize: dir.Tsize}}, n.put)
	if err != nil {
		t.Fatal(err)
	}
	root, err := unixfs.BasicDir([]unixfs.Link{{Name: registryName, CID: registry.CID, Tsize: registry.Tsize}}, n.put)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeys(t.Context(), n, root.CID); !errors.Is(err, ErrRelease) {
		t.Errorf("a directory: %v", err)
	}
}
