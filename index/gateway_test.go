package index

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

func indexWithGateway(t testing.TB, gateway string) *Index {
	t.Helper()
	o := memory(vfs.NewMem())
	o.Gateway = gateway
	ix, err := Create("ix", o)
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

// Two registries of one set show gateways different things, and have one list.
func TestGatewayIsNotInTheList(t *testing.T) {
	names := []string{"express", "lodash", "@types/node", "@types/express", collideA, collideB, "@s/" + collideA, "@s/" + collideB}
	releases := map[string]Release{}
	nodes := map[string]*node{}
	for _, gateway := range []string{"", "http://127.0.0.1:8080/ipns/a", "https://b.example.test/ipns/b"} {
		ix, n := indexWithGateway(t, gateway), newNode()
		batch := Batch{Now: epoch}
		for i, name := range names {
			page := ""
			if gateway != "" {
				page = gateway + " " + name
			}
			e, blks := shownEntry(t, name, i, page)
			batch.Changes = append(batch.Changes, Change{Entry: e})
			batch.Blocks = append(batch.Blocks, blks...)
		}
		r, _, err := ix.Apply(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		if err := ix.Check(t.Context()); err != nil {
			t.Error(err)
		}
		for _, b := range collect(t, ix.Blocks(t.Context(), 0, 1)) {
			n.put(b)
		}
		if got, err := ReadRelease(t.Context(), n, r.Root); err != nil || !equal(got, r) {
			t.Errorf("ReadRelease %+v, %v; want %+v", got, err, r)
		}
		// As a bare gateway walks it. It finds no overflow.
		for _, path := range [][]string{{"express"}, {"lodash"}, {"@types", "node"}, {"@types", "express"}, {collideA}, {"@s", collideA}} {
			l, err := unixfs.Path(t.Context(), n, r.Root, append(slices.Clone(path), IndexName)...)
			if gateway == "" {
				if !errors.Is(err, unixfs.ErrNotFound) {
					t.Errorf("%q: %v", path, err)
				}
				continue
			}
			name := path[0]
			if len(path) > 1 {
				name += "/" + path[1]
			}
			if err != nil {
				t.Errorf("%q: %v", path, err)
				continue
			}
			if raw, err := unixfs.ReadFile(t.Context(), n, l.CID, 1000); err != nil || string(raw) != gateway+" "+name {
				t.Errorf("%q: %q, %v", path, raw, err)
			}
			if _, err := unixfs.Path(t.Context(), n, r.Root, append(slices.Clone(path), TarballsName, "x-1.0.0.tgz")...); err != nil {
				t.Errorf("%q: tarball: %v", path, err)
			}
		}
		for _, e := range collect(t, Names(t.Context(), n, r.List)) {
			if _, err := unixfs.Lookup(t.Context(), n, e.CID, IndexName); !errors.Is(err, unixfs.ErrNotFound) {
				t.Errorf("%s in the list has index.html: %v", e.Name, err)
			}
		}
		releases[gateway], nodes[gateway] = r, n
	}
	roots := map[cid.Cid]bool{}
	for gateway, r := range releases {
		if r.List != releases[""].List {
			t.Errorf("gateway %q: list %v, want %v", gateway, r.List, releases[""].List)
		}
		roots[r.Root] = true
	}
	if len(roots) != len(releases) {
		t.Errorf("%d roots of %d registries", len(roots), len(releases))
	}
}

// A change of what gateways are shown is a release of the same list, and what
// is changed back within one batch is none.
func TestGatewayChanges(t *testing.T) {
	ix := newIndexFor(t)
	first := mustApply(t, ix, show(t, "a", 0, "one"), show(t, "@s/b", 0, "one"), put(t, "c", 0))
	want := uint64(1)
	for what, c := range []struct {
		changes []Change
		changed bool
	}{
		{[]Change{show(t, "@s/b", 0, "two")}, true},
		{[]Change{show(t, "@s/b", 0, "two")}, false},
		{[]Change{put(t, "a", 0)}, true},
		{[]Change{show(t, "c", 0, "one")}, true},
		{[]Change{show(t, "c", 0, "two"), drop("c"), show(t, "c", 0, "one")}, false},
		{[]Change{drop("@s/b"), show(t, "@s/b", 0, "two")}, false},
	} {
		r, changed, err := ix.Apply(t.Context(), Batch{Changes: c.changes, Now: epoch})
		if err != nil || changed != c.changed {
			t.Fatalf("%d: changed %v, %v", what, changed, err)
		}
		if changed {
			want++
		}
		if r.Number != want || r.List != first.List || changed && r.Previous == r.Root {
			t.Errorf("%d: release %d of %v, want %d of %v", what, r.Number, r.List, want, first.List)
		}
		if err := ix.Check(t.Context()); err != nil {
			t.Errorf("%d: %v", what, err)
		}
	}
	// What is shown is a function of the entries too.
	other := newIndexFor(t)
	mustApply(t, other, put(t, "c", 7), show(t, "@s/b", 0, "two"))
	r := mustApply(t, other, show(t, "c", 0, "one"), put(t, "a", 0))
	head, err := ix.Head()
	if err != nil {
		t.Fatal(err)
	}
	front, err := frontOf(t.Context(), ix, head.Root, discard)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := frontOf(t.Context(), other, r.Root, discard); err != nil || got != front {
		t.Errorf("front %v, %v; want %v", got, err, front)
	}
}

// An index that was made without a gateway takes no gateway's directories.
func TestNoGateway(t *testing.T) {
	ix := indexWithGateway(t, "")
	if _, _, err := ix.Apply(t.Context(), Batch{Changes: []Change{show(t, "a", 0, "page")}, Now: epoch}); !errors.Is(err, ErrEntry) {
		t.Errorf("Apply: %v", err)
	}
	r := mustApply(t, ix, put(t, "a", 0))
	if l, err := frontOf(t.Context(), ix, r.Root, discard); err != nil || l.CID != r.List.Root {
		t.Errorf("gateways are shown %v, %v; want the list %v", l, err, r.List)
	}
}

func TestEntryRows(t *testing.T) {
	e, _ := shownEntry(t, "a", 3, "page")
	bare := e
	bare.Gateway = unixfs.Ref{}
	v0 := e
	v0.Gateway.CID = cid.NewCidV0(e.CID.Hash())
	large := e
	large.Tsize, large.Gateway.Tsize, large.Versions = 1<<62, 1<<62, 1<<31
	for _, e := range []Entry{e, bare, v0, large} {
		if got, err := decodeEntry("a", encodeEntry(e)); err != nil || got != e {
			t.Errorf("%v became %v, %v", e, got, err)
		}
	}
	raw := encodeEntry(e)
	whole := len(encodeEntry(bare))
	for n := range raw { // cut short anywhere but between the two
		if _, err := decodeEntry("a", raw[:n]); n != whole && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(raw), err)
		}
	}
	if _, err := decodeEntry("a", append(raw, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	c := cid.MustParse("bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354")
	f.Add(encodeEntry(Entry{CID: c, Tsize: 300, Versions: 2}))
	f.Add(encodeEntry(Entry{CID: c, Tsize: 300, Versions: 2, Gateway: unixfs.Ref{CID: c, Tsize: 1 << 40}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEntry("a", raw)
		if err != nil {
			return
		}
		if again, err := decodeEntry("a", encodeEntry(e)); err != nil || again != e {
			t.Fatalf("%v became %v, %v", e, again, err)
		}
	})
}

func TestCollisions(t *testing.T) {
	ix := newIndexFor(t)
	ask := func(changes ...Change) string {
		t.Helper()
		found, err := ix.Collisions(t.Context(), changes)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(found)
	}
	add := func(name string) Change { return Change{Entry: Entry{Name: npm.Name(name)}} }
	for _, c := range []struct {
		what    string
		changes []Change
		want    string
	}{
		{"both new", []Change{add(collideB), add("x"), add(collideA)}, "[{2 " + collideB + "}]"},
		{"the first goes", []Change{add(collideB), drop(collideB), add(collideA)}, "[]"},
		{"in a scope", []Change{add("@s/" + collideA), add("@s/" + collideB)}, "[{1 @s/" + collideA + "}]"},
		{"in two scopes", []Change{add("@s/" + collideA), add("@t/" + collideB), add(collideA)}, "[]"},
		{"the one left out keeps nobody out", []Change{add(collideA), add(collideB), drop(collideA), add(collideB)}, "[{1 " + collideA + "}]"},
		{"twice", []Change{add(collideA), add(collideA)}, "[]"},
	} {
		if got := ask(c.changes...); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	mustApply(t, ix, put(t, collideB, 0), put(t, "@s/"+collideA, 0), put(t, "@s/x", 0))
	for _, c := range []struct {
		what    string
		changes []Change
		want    string
	}{
		{"a listed one stays", []Change{add(collideB), add("@s/" + collideA)}, "[]"},
		{"newcomers", []Change{add(collideA), add("@s/" + collideB)}, "[{0 " + collideB + "} {1 @s/" + collideA + "}]"},
		{"in their place", []Change{drop(collideB), add(collideA), add(collideB)}, "[{2 " + collideA + "}]"},
		{"nothing is kept of it", []Change{add(collideA)}, "[{0 " + collideB + "}]"},
	} {
		if got := ask(c.changes...); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	// Both listed all the same, as in a set made elsewhere; then each gone.
	mustApply(t, ix, put(t, collideA, 0))
	if got := ask(add(collideA), add(collideB)); got != "[]" {
		t.Errorf("both listed: %s", got)
	}
	mustApply(t, ix, drop(collideB), drop("@s/x"), drop("@s/"+collideA))
	if got := ask(add("@s/"+collideB), add(collideB)); got != "[{1 "+collideA+"}]" {
		t.Errorf("one gone: %s", got)
	}
	// What a page lists, or takes out, counts before there is a release of it.
	page := func(changes ...Change) {
		t.Helper()
		if _, _, err := ix.Apply(t.Context(), Batch{Changes: changes, More: true}); err != nil {
			t.Fatal(err)
		}
	}
	page(put(t, "@s/"+collideB, 0), drop(collideA), put(t, collideScopeA+"/x", 0))
	if got := ask(add("@s/"+collideA), add(collideB), add(collideA), add(collideScopeB+"/x")); got != "[{0 @s/"+collideB+"} {2 "+collideB+"} {3 "+collideScopeA+"}]" {
		t.Errorf("in a page: %s", got)
	}
	page(drop("@s/"+collideB), put(t, collideA, 1), drop(collideScopeA+"/x"))
	if got := ask(add("@s/"+collideA), add(collideB), add(collideScopeB+"/x")); got != "[{1 "+collideA+"}]" {
		t.Errorf("taken back: %s", got)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
	mustApply(t, ix, put(t, collideScopeB+"/x", 0))
	for row := range scan(t.Context(), ix.db, []byte{rowPlace}) {
		t.Errorf("after a release there is the place %q", row.key)
	}
	if got := ask(add(collideScopeA + "/x")); got != "[{0 "+collideScopeB+"}]" {
		t.Errorf("after a release: %s", got)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := ix.Collisions(t.Context(), []Change{add("../x")}); !errors.Is(err, ErrEntry) {
		t.Errorf("no name: %v", err)
	}
}

// TestScopeHoldsAPlace plants a name under a scope's hash, and a scope under a
// name's: no such pair of names is known.
func TestScopeHoldsAPlace(t *testing.T) {
	ix := newIndexFor(t)
	mustApply(t, ix, put(t, "a", 0))
	b := ix.db.NewIndexedBatch()
	defer b.Close()
	for _, p := range []place{{"", "@s"}, {"", "b"}} {
		other := place{"", "other" + p.name[len(p.name)-1:]}
		if err := b.Set(append(p.hashKey(), other.path()...), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []npm.Name{"others", "otherb"} {
		if err := b.Set(entryKey(name), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	held, err := newHolders(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[npm.Name]string{"@s/x": "others", "b": "otherb", "@t/b": "", "c": ""} {
		if with, err := held.contender(t.Context(), name); err != nil || with != want {
			t.Errorf("%s: %q, %v; want %q", name, with, err, want)
		}
	}
}
