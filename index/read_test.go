package index

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// TestReadReleaseRefuses plants release.json files that do not fit.
func TestReadReleaseRefuses(t *testing.T) {
	ix := newIndexFor(t)
	r1 := mustApply(t, ix, put(t, "a", 0))
	r2 := mustApply(t, ix, put(t, "b", 0))
	n := newNode()
	for i := range uint64(2) {
		for _, b := range collect(t, ix.Blocks(t.Context(), i, i+1)) {
			n.put(b)
		}
	}
	raw, err := encodeRelease(r2, false)
	if err != nil {
		t.Fatal(err)
	}
	plant := func(list cid.Cid, overflow cid.Cid, raw []byte) cid.Cid {
		b := built{root: unixfs.Ref{CID: list}, overflow: unixfs.Ref{CID: overflow}}
		ref, err := releaseDir(t.Context(), n, b, unixfs.Ref{CID: r2.List.Root}, raw, nil, n.put)
		if err != nil {
			t.Fatal(err)
		}
		return ref.CID
	}
	if _, err := ReadRelease(t.Context(), n, plant(r2.List.Root, r2.List.Overflow, raw)); err != nil {
		t.Fatalf("the right one: %v", err)
	}
	text := string(raw)
	for what, c := range map[string]struct {
		root cid.Cid
		want error
	}{
		"another list":     {plant(r1.List.Root, r2.List.Overflow, raw), ErrRelease},
		"another overflow": {plant(r2.List.Root, r1.Root, raw), ErrRelease},
		"not JSON":         {plant(r2.List.Root, r2.List.Overflow, []byte("<html>")), ErrRelease},
		"a name twice":     {plant(r2.List.Root, r2.List.Overflow, []byte(strings.Replace(text, `"number"`, `"format": 1, "number"`, 1))), ErrRelease},
		"number zero":      {plant(r2.List.Root, r2.List.Overflow, []byte(strings.Replace(text, `"number": 2`, `"number": 0`, 1))), ErrRelease},
		"a new format":     {plant(r2.List.Root, r2.List.Overflow, []byte(strings.Replace(text, `"format": 1`, `"format": 2`, 1))), ErrFormat},
		"too large":        {plant(r2.List.Root, r2.List.Overflow, make([]byte, maxRelease)), ErrRelease},
		"a bare list":      {r2.List.Root, ErrRelease},
	} {
		if _, err := ReadRelease(t.Context(), n, c.root); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestWholeScopeInOverflow plants what buildList makes where a scope's hash
// collides with a package's: no such pair of names is known.
func TestWholeScopeInOverflow(t *testing.T) {
	n := newNode()
	a, _ := entry(t, "@s/a", 0)
	b, _ := entry(t, "b", 0)
	scope, _, err := unixfs.BuildDir([]unixfs.Link{{Name: "a", CID: a.CID, Tsize: a.Tsize}}, unixfs.DirLimit, n.put)
	if err != nil {
		t.Fatal(err)
	}
	overflow, err := unixfs.BasicDir([]unixfs.Link{{Name: "@s", CID: scope.CID, Tsize: scope.Tsize}}, n.put)
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := unixfs.BuildDir([]unixfs.Link{{Name: "b", CID: b.CID, Tsize: b.Tsize}}, 0, n.put)
	if err != nil {
		t.Fatal(err)
	}
	list := built{root: root, overflow: overflow, packages: 2}
	raw, err := encodeRelease(Release{Format: Format, Number: 1, Created: epoch, List: list.list(), Packages: 2}, false)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := releaseDir(t.Context(), n, list, list.root, raw, nil, n.put)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRelease(t.Context(), n, dir.CID); err != nil {
		t.Error(err)
	}
	if e, err := Lookup(t.Context(), n, list.list(), "@s/a"); err != nil || e.CID != a.CID {
		t.Errorf("Lookup: %v, %v", e, err)
	}
	var names []npm.Name
	for _, e := range collect(t, Names(t.Context(), n, list.list())) {
		names = append(names, e.Name)
	}
	if want := []npm.Name{"b", "@s/a"}; !slices.Equal(names, want) {
		t.Errorf("Names: %v", names)
	}
}

// TestNamesRefuses lists names that would lead a reader astray.
func TestNamesRefuses(t *testing.T) {
	for _, name := range []string{"..", ".hidden", "_other", "_registry", "a b"} {
		n := newNode()
		e, _ := entry(t, "x", 0)
		root, _, err := unixfs.BuildDir([]unixfs.Link{{Name: name, CID: e.CID}}, 0, n.put)
		if err != nil {
			t.Fatal(err)
		}
		overflow, err := unixfs.BasicDir(nil, n.put)
		if err != nil {
			t.Fatal(err)
		}
		var last error
		for _, last = range Names(t.Context(), n, List{root.CID, overflow.CID}) {
		}
		if !errors.Is(last, ErrRelease) {
			t.Errorf("%q: %v", name, last)
		}
	}
}

// TestMissingBlockIsNoAnswer tells "not in the list" from "cannot know".
func TestMissingBlockIsNoAnswer(t *testing.T) {
	ix := newIndexFor(t)
	r := mustApply(t, ix, put(t, "a", 0), put(t, "@s/a", 0))
	for _, c := range []cid.Cid{r.List.Overflow, r.List.Root} {
		if err := ix.db.Delete(blockKey(c), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if _, err := Lookup(t.Context(), ix, r.List, "b"); !errors.Is(err, ErrNoBlock) || errors.Is(err, ErrNotFound) {
			t.Errorf("Lookup: %v", err)
		}
		var last error
		for _, last = range Names(t.Context(), ix, r.List) {
		}
		if !errors.Is(last, ErrNoBlock) || errors.Is(last, ErrRelease) {
			t.Errorf("Names: %v", last)
		}
	}
	if err := ix.db.Delete(blockKey(r.Root), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRelease(t.Context(), ix, r.Root); !errors.Is(err, ErrNoBlock) || errors.Is(err, ErrRelease) {
		t.Errorf("ReadRelease: %v", err)
	}
}

func FuzzDecodeRelease(f *testing.F) {
	c := cid.MustParse("bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354")
	raw, err := encodeRelease(Release{Format: 1, Number: 2, Created: epoch, Previous: c, Root: c, List: List{c, c},
		Sources: []Source{{"a", "b"}}, Peers: []string{"p"}}, true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"format":1,"number":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRelease(raw)
		if err != nil {
			return
		}
		again, err := encodeRelease(r, true)
		if err != nil {
			return // too large
		}
		r2, err := decodeRelease(again)
		if err != nil || !r2.Created.Equal(r.Created) || r2.List != r.List || r2.Number != r.Number {
			t.Fatalf("%+v became %+v, %v", r, r2, err)
		}
	})
}
