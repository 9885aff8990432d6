package index

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Names with one 64-bit hash: two of packages, two of scopes, and one of either.
const (
	collideA = "x2sectmad7mumj"
	collideB = "xd53ovnfc5dl4l"

	collideScopeA = "@rqsolmykow1ki"
	collideScopeB = "@cgef3sxg0ipwm"

	collideName  = "n1k3g03ylric1e"
	collideScope = "@hmki4b2ckgj2j"
)

func TestReleaseReadsBack(t *testing.T) {
	ix := newIndexFor(t)
	n := newNode()
	names := []string{"express", "lodash", "@types/node", "@types/express", "@a-b/x", "@a/x", collideA, collideB,
		"@s/" + collideA, "@s/" + collideB}
	var batch Batch
	want := map[npm.Name]Entry{}
	for i, name := range names {
		e, blks := entry(t, name, i)
		batch.Changes = append(batch.Changes, Change{Entry: e})
		batch.Blocks = append(batch.Blocks, blks...)
		e.Versions = 0
		want[e.Name] = e
	}
	batch.Now, batch.Next, batch.Peers = epoch, "successor", []string{"/ip4/127.0.0.1/tcp/4001/p2p/x"}
	batch.Sources = []Source{{ID: "ledger", Cursor: "17"}}
	r, changed, err := ix.Apply(t.Context(), batch)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if r.Number != 1 || r.Packages != len(names) || r.Versions != 55 || r.Previous.Defined() ||
		!r.Created.Equal(epoch.Truncate(time.Second)) {
		t.Errorf("release %+v", r)
	}
	if head, err := ix.Head(); err != nil || !equal(head, r) {
		t.Errorf("Head %+v, %v", head, err)
	}

	for _, b := range collect(t, ix.Blocks(t.Context(), 0, 1)) {
		n.put(b)
	}
	got, err := ReadRelease(t.Context(), n, r.Root)
	if err != nil || !equal(got, r) {
		t.Fatalf("ReadRelease %+v, %v; want %+v", got, err, r)
	}
	for name, e := range want {
		if got, err := Lookup(t.Context(), n, r.List, name); err != nil || got != e {
			t.Errorf("Lookup %s: %v, %v", name, got, err)
		}
		// Package directories came along in Blocks, so all can be walked.
		if _, err := unixfs.Path(t.Context(), n, e.CID, TarballsName, "x-1.0.0.tgz"); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []npm.Name{"absent", "@types/absent", "@absent/x", "_registry", "", "@types", "a/b"} {
		if _, err := Lookup(t.Context(), n, r.List, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("Lookup %q: %v", name, err)
		}
	}
	all := collect(t, Names(t.Context(), n, r.List))
	if len(all) != len(want) {
		t.Errorf("Names gave %d of %d", len(all), len(want))
	}
	for _, e := range all {
		if want[e.Name] != e {
			t.Errorf("Names gave %v", e)
		}
	}
	// As any IPFS tool walks it.
	if l, err := unixfs.Path(t.Context(), n, r.Root, "_registry", "list", "express"); err != nil || l.CID != want["express"].CID {
		t.Errorf("the list: %v, %v", l, err)
	}
	if l, err := unixfs.Path(t.Context(), n, r.Root, "@types", "node", InstallName); err != nil || !l.CID.Defined() {
		t.Errorf("path: %v, %v", l, err)
	}
	if l, err := unixfs.Path(t.Context(), n, r.Root, "_registry", "overflow", "@s%2f"+collideB); err != nil || l.CID != want["@s/"+collideB].CID {
		t.Errorf("overflow: %v, %v", l, err)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func equal(a, b Release) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// TestListEqualsBoxo builds the same root with boxo's own code.
func TestListEqualsBoxo(t *testing.T) {
	ix := newIndexFor(t)
	var changes []Change
	for i := range 700 {
		changes = append(changes, put(t, fmt.Sprintf("@scope/package-%d", i), 0), put(t, fmt.Sprintf("package-%d", i), 0))
	}
	r := mustApply(t, ix, changes...)

	scope, err := uio.NewDirectory(mdtest.Mock(), uio.WithCidBuilder(uio.UnixFS_v1_2025.CidBuilder()),
		uio.WithSizeEstimationMode(uio.SizeEstimationBlock))
	if err != nil {
		t.Fatal(err)
	}
	scope.(*uio.DynamicDirectory).SetHAMTShardingSize(unixfs.DirLimit)
	root, err := hamt.NewShard(mdtest.Mock(), 256)
	if err != nil {
		t.Fatal(err)
	}
	root.SetCidBuilder(uio.UnixFS_v1_2025.CidBuilder())
	for _, c := range changes {
		if c.Name.Scope() != "" {
			err = scope.AddChild(t.Context(), c.Name.Base(), stub{entry: c.Entry})
		} else {
			err = root.SetLink(t.Context(), string(c.Name), &ipld.Link{Cid: c.CID, Size: c.Tsize})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	link := func(name string, nd ipld.Node) {
		l, err := ipld.MakeLink(nd)
		if err == nil {
			err = root.SetLink(t.Context(), name, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	nd, err := scope.GetNode()
	if err != nil {
		t.Fatal(err)
	}
	link("@scope", nd)
	if nd, err = root.Node(); err != nil || nd.Cid() != r.List.Root {
		t.Errorf("list root %s, boxo %s, %v", r.List.Root, nd.Cid(), err)
	}
	registry, err := unixfs.Lookup(t.Context(), ix, r.Root, "_registry")
	if err != nil {
		t.Fatal(err)
	}
	if err := root.SetLink(t.Context(), "_registry", &ipld.Link{Cid: registry.CID, Size: registry.Tsize}); err != nil {
		t.Fatal(err)
	}
	if nd, err = root.Node(); err != nil || nd.Cid() != r.Root {
		t.Errorf("release root %s, boxo %s, %v", r.Root, nd.Cid(), err)
	}
}

type stub struct {
	ipld.Node
	entry Entry
}

func (s stub) Cid() cid.Cid          { return s.entry.CID }
func (s stub) Size() (uint64, error) { return s.entry.Tsize, nil }
func (s stub) RawData() []byte       { return nil }

// TestHistoryIndependent takes different ways to one set.
func TestHistoryIndependent(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var names []string
	for i := range 120 {
		names = append(names, fmt.Sprintf("p%d", i), fmt.Sprintf("@s%d/p", i%7), fmt.Sprintf("@big/p%d", i))
	}
	names = append(names, collideA, collideB, "@big/"+collideA, "@big/"+collideB)
	slices.Sort(names)
	names = slices.Compact(names)
	final := map[string]int{}
	for i, name := range names {
		if i%5 != 0 {
			final[name] = i
		}
	}
	var want List
	for way := range 3 {
		ix := newIndexFor(t)
		for range way * 6 { // wander first
			var batch Batch
			for range 40 {
				name := names[rng.IntN(len(names))]
				if rng.IntN(3) == 0 {
					batch.Changes = append(batch.Changes, drop(name))
				} else {
					batch.Changes = append(batch.Changes, put(t, name, rng.IntN(1000)))
				}
			}
			batch.Now = epoch.Add(time.Duration(rng.Int64N(1e15)))
			if _, _, err := ix.Apply(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			if err := ix.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var changes []Change
		for _, name := range names {
			if revision, ok := final[name]; ok {
				changes = append(changes, put(t, name, revision))
			} else {
				changes = append(changes, drop(name))
			}
		}
		rng.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
		r := mustApply(t, ix, changes...)
		if way == 0 {
			want = r.List
		} else if r.List != want {
			t.Errorf("way %d: list %v, want %v", way, r.List, want)
		}
		if r.Packages != len(final) {
			t.Errorf("%d packages, want %d", r.Packages, len(final))
		}
	}
}

func TestApplyMakesNoReleaseForNothing(t *testing.T) {
	ix := newIndexFor(t)
	if _, err := ix.Head(); !errors.Is(err, ErrNoRelease) {
		t.Fatalf("Head of an empty index: %v", err)
	}
	batch := Batch{Now: epoch, Next: "n", Peers: []string{"/a"}, Sources: []Source{{"l", "1"}}}
	r, changed, err := ix.Apply(t.Context(), batch)
	if err != nil || !changed || r.Number != 1 || r.Packages != 0 {
		t.Fatalf("first: %+v, %v, %v", r, changed, err)
	}
	apply := func(want bool, number uint64) Release {
		t.Helper()
		batch.Now = batch.Now.Add(time.Hour)
		r, changed, err := ix.Apply(t.Context(), batch)
		if err != nil || changed != want || r.Number != number {
			t.Fatalf("release %d, changed %v, %v; want %d, %v", r.Number, changed, err, number, want)
		}
		return r
	}
	apply(false, 1)
	batch.Changes = []Change{drop("absent")}
	apply(false, 1)
	batch.Sources = []Source{{"l", "2"}}
	if r := apply(false, 1); r.Sources[0].Cursor != "1" {
		t.Errorf("the release's sources moved: %v", r.Sources)
	}
	if s, err := ix.Sources(); err != nil || s[0].Cursor != "2" {
		t.Errorf("Sources: %v, %v", s, err)
	}
	batch.Changes = []Change{put(t, "a", 0), put(t, "a", 1), drop("a"), put(t, "a", 2)}
	first := apply(true, 2)
	if first.Previous != r.Root || first.Sources[0].Cursor != "2" || first.Versions != 3 {
		t.Errorf("second release %+v", first)
	}
	apply(false, 2)
	counts := batch.Changes[3]
	counts.Versions = 99
	batch.Changes = []Change{counts}
	apply(false, 2) // the same list, only our count differs
	if e, err := ix.Entry("a"); err != nil || e.Versions != 99 {
		t.Errorf("Entry: %v, %v", e, err)
	}
	if list := collect(t, ix.Blocks(t.Context(), 1, 2)); len(list) == 0 {
		t.Error("release 2 brought no blocks")
	}
	batch.Next = "other"
	if r := apply(true, 3); r.List != first.List {
		t.Error("the list depends on the successor key")
	}
	batch.Peers = append(batch.Peers, "/b")
	if r := apply(true, 4); r.List != first.List {
		t.Error("the list depends on the peers")
	}
	batch.Names = []string{"k51old", "k51new"}
	if r := apply(true, 5); r.List != first.List || !slices.Equal(r.Names, batch.Names) {
		t.Errorf("a rotation: %+v", r)
	}
	apply(false, 5)
	if rs := collect(t, ix.Releases(t.Context())); len(rs) != 5 || rs[4].Number != 5 {
		t.Errorf("Releases: %v", rs)
	}
	for _, err := range ix.Blocks(t.Context(), 5, 6) {
		if !errors.Is(err, ErrNoRelease) {
			t.Errorf("NewBlocks of no release: %v", err)
		}
	}
}

// Another URL for gateways comes with the release that has it, and stays.
func TestApplyMovesGateway(t *testing.T) {
	const before, after = "http://gateway.example.test/ipns/old", "http://gateway.example.test/ipns/new"
	dir := t.TempDir()
	ix, err := Create(dir, Options{Documents: "d", Gateway: before})
	if err != nil {
		t.Fatal(err)
	}
	batch := Batch{Now: epoch, Gateway: before, Changes: []Change{put(t, "a", 0)}}
	first, _, err := ix.Apply(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	batch.Gateway, batch.More = after, true
	if _, _, err := ix.Apply(t.Context(), batch); err != nil || ix.Parameters().Gateway != before {
		t.Errorf("before there is a release: %+v, %v", ix.Parameters(), err)
	}
	batch.More = false
	r, changed, err := ix.Apply(t.Context(), batch)
	if err != nil || !changed || r.Number != 2 || r.List != first.List || r.Parameters.Gateway != after || ix.Parameters().Gateway != after {
		t.Errorf("%+v, %v, %v", r, changed, err)
	}
	if _, changed, err = ix.Apply(t.Context(), batch); err != nil || changed {
		t.Errorf("again: %v, %v", changed, err)
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Documents: "d", Gateway: before}); !errors.Is(err, ErrParameters) {
		t.Errorf("opened with the one before: %v", err)
	}
	if ix, err = Open(dir, Options{Documents: "d", Gateway: after}); err != nil {
		t.Fatal(err)
	}
	if was, err := ix.Release(1); err != nil || was.Parameters.Gateway != before {
		t.Errorf("release 1: %+v, %v", was, err)
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}

	if ix, err = Create(t.TempDir(), Options{Documents: "d"}); err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	if _, _, err := ix.Apply(t.Context(), Batch{Now: epoch, Gateway: after}); !errors.Is(err, ErrParameters) {
		t.Errorf("an index without one: %v", err)
	}
}

func TestApplyRefuses(t *testing.T) {
	ix := newIndexFor(t)
	mustApply(t, ix, put(t, "a", 0))
	good := put(t, "b", 0)
	raw := good
	raw.CID = cid.NewCidV1(cid.Raw, raw.CID.Hash())
	undef := good
	undef.CID = cid.Undef
	halfGateway, rawGateway := good, good
	halfGateway.Gateway.Tsize = 1
	rawGateway.Gateway = unixfs.Ref{CID: raw.CID, Tsize: 1}
	lying, err := blocks.NewBlockWithCid([]byte("other bytes"), good.CID)
	if err != nil {
		t.Fatal(err)
	}
	named := func(name npm.Name) Batch {
		c := good
		c.Name = name
		return Batch{Changes: []Change{good, c}}
	}
	for what, batch := range map[string]Batch{
		"reserved": named("_registry"), "no name": named(""), "path": named("a/b"), "dots": named(".."), "scope": named("@s"),
		"a file": {Changes: []Change{good, raw}}, "no CID": {Changes: []Change{undef}},
		"a gateway's size": {Changes: []Change{good, halfGateway}}, "a gateway's file": {Changes: []Change{good, rawGateway}},
		"a lying block": {Changes: []Change{good}, Blocks: []blocks.Block{lying}},
	} {
		if _, changed, err := ix.Apply(t.Context(), batch); !errors.Is(err, ErrEntry) || changed {
			t.Errorf("%s: changed %v, %v", what, changed, err)
		}
	}
	if got := collect(t, ix.Entries(t.Context())); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("a refused batch left %v", got)
	}
	if _, err := ix.Entry("b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Entry b: %v", err)
	}
}

func TestCreateOpen(t *testing.T) {
	for name, o := range map[string]Options{"memory": memory(vfs.NewMem()), "disk": {Documents: "test-1", Gateway: "http://127.0.0.1:8080"}} {
		t.Run(name, func(t *testing.T) {
			dir := "ix"
			if o.FS == nil {
				dir = t.TempDir() + "/state/index"
			}
			if _, err := Open(dir, o); !errors.Is(err, ErrNoIndex) {
				t.Fatalf("Open of nothing: %v", err)
			}
			if _, err := Open(dir, o); !errors.Is(err, ErrNoIndex) {
				t.Fatalf("the first Open made something: %v", err)
			}
			ix, err := OpenOrCreate(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			r := mustApply(t, ix, put(t, "a", 0))
			for what, open := range map[string]func(string, Options) (*Index, error){"Open": Open, "Create": Create} {
				if _, err := open(dir, o); !errors.Is(err, ErrLocked) {
					t.Errorf("%s of an index in use: %v", what, err)
				}
			}
			if err := errors.Join(ix.Close(), ix.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := ix.Head(); !errors.Is(err, ErrClosed) {
				t.Errorf("Head after Close: %v", err)
			}
			if _, err := Create(dir, o); !errors.Is(err, ErrExists) {
				t.Errorf("Create over an index: %v", err)
			}
			other := o
			other.Gateway = "http://gateway.example.test"
			if _, err := Open(dir, other); !errors.Is(err, ErrParameters) {
				t.Errorf("other parameters: %v", err)
			}
			other.Documents, other.Gateway = "", ""
			again, err := Open(dir, other)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if head, err := again.Head(); err != nil || !equal(head, r) {
				t.Errorf("Head %+v, %v", head, err)
			}
			if again.Parameters() != r.Parameters || r.Parameters.Documents != "test-1" {
				t.Errorf("parameters %+v", again.Parameters())
			}
		})
	}
}

// TestCopy: a copy is the index of its moment, beside which the other goes on.
func TestCopy(t *testing.T) {
	for name, o := range map[string]Options{"memory": memory(vfs.NewMem()), "disk": {Documents: "test-1", Gateway: "http://127.0.0.1:8080"}} {
		t.Run(name, func(t *testing.T) {
			dir := "state"
			if o.FS == nil {
				dir = t.TempDir()
			}
			ix, err := Create(dir+"/index", o)
			if err != nil {
				t.Fatal(err)
			}
			defer ix.Close()
			first := mustApply(t, ix, put(t, "a", 0))
			if err := ix.Copy(dir + "/copy"); err != nil {
				t.Fatal(err)
			}
			second := mustApply(t, ix, put(t, "b", 0))
			if err := ix.Copy(dir + "/copy"); err == nil {
				t.Error("a copy over another one")
			}
			copied, err := Open(dir+"/copy", o)
			if err != nil {
				t.Fatal(err)
			}
			defer copied.Close()
			if head, err := copied.Head(); err != nil || !equal(head, first) {
				t.Errorf("of the copy: %+v, %v", head, err)
			}
			if head, err := ix.Head(); err != nil || !equal(head, second) {
				t.Errorf("of the index: %+v, %v", head, err)
			}
			if err := ix.Close(); err != nil {
				t.Fatal(err)
			}
			if err := ix.Copy(dir + "/late"); !errors.Is(err, ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

func TestPackageDir(t *testing.T) {
	n := newNode()
	doc, err := unixfs.AddChunks([][]byte{[]byte("doc")}, n.put)
	if err != nil {
		t.Fatal(err)
	}
	tar := func(name string) unixfs.Link { return unixfs.Link{Name: name, CID: doc.CID, Tsize: doc.Tsize} }
	ref, gateway, err := PackageDir(PackageFiles{Packument: doc, Install: doc, Tarballs: []unixfs.Link{tar("b.tgz"), tar("a.tgz")}}, n.put)
	if err != nil {
		t.Fatal(err)
	}
	if gateway != (unixfs.Ref{}) {
		t.Errorf("a gateway's directory without index.html: %v", gateway)
	}
	page, err := unixfs.AddChunks([][]byte{[]byte("page")}, n.put)
	if err != nil {
		t.Fatal(err)
	}
	again, gateway, err := PackageDir(PackageFiles{Packument: doc, Install: doc, Index: page, Tarballs: []unixfs.Link{tar("a.tgz"), tar("b.tgz")}}, n.put)
	if err != nil || again != ref {
		t.Errorf("in another order, with index.html, %v, %v; want %v", again, err, ref)
	}
	for what, c := range map[string]struct {
		dir  unixfs.Ref
		want []string
	}{
		"package": {ref, []string{"-", "install.json.gz", "packument.json.gz"}},
		"gateway": {gateway, []string{"-", "index.html", "install.json.gz", "packument.json.gz"}},
	} {
		var names []string
		for _, l := range collect(t, unixfs.List(t.Context(), n, c.dir.CID)) {
			names = append(names, l.Name)
		}
		if !slices.Equal(names, c.want) {
			t.Errorf("%s: directory holds %q, want %q", what, names, c.want)
		}
	}
	if l, err := unixfs.Lookup(t.Context(), n, gateway.CID, IndexName); err != nil || l.CID != page.CID {
		t.Errorf("index.html: %v, %v", l, err)
	}
	_, _, err = PackageDir(PackageFiles{Tarballs: []unixfs.Link{tar(collideB), tar("x"), tar(collideA)}}, n.put)
	var collision *CollisionError
	if !errors.As(err, &collision) || !errors.Is(err, ErrCollision) || !slices.Equal(collision.Files, []string{collideB}) {
		t.Errorf("colliding tarballs: %v", err)
	}
	if _, _, err := PackageDir(PackageFiles{Tarballs: []unixfs.Link{tar("x"), tar("x")}}, n.put); !errors.Is(err, unixfs.ErrName) {
		t.Errorf("a tarball twice: %v", err)
	}
}

// TestCheckSeesDamage breaks rows behind the index's back.
func TestCheckSeesDamage(t *testing.T) {
	delete := func(key []byte) func(*Index, Release) error {
		return func(ix *Index, _ Release) error { return ix.db.Delete(key, pebble.Sync) }
	}
	set := func(ix *Index, key, value []byte) error { return ix.db.Set(key, value, pebble.Sync) }
	for what, damage := range map[string]func(*Index, Release) error{
		"an entry gone": delete(entryKey("b")),
		"another CID": func(ix *Index, r Release) error {
			return set(ix, entryKey("b"), encodeEntry(Entry{CID: r.Root}))
		},
		"another gateway directory": func(ix *Index, r Release) error {
			e, err := ix.Entry("@s/c")
			if err != nil {
				return err
			}
			e.Gateway.CID = r.Root
			return set(ix, entryKey("@s/c"), encodeEntry(e))
		},
		"a gateway directory gone": func(ix *Index, r Release) error {
			e, err := ix.Entry("@s/c")
			if err != nil {
				return err
			}
			e.Gateway = unixfs.Ref{}
			return set(ix, entryKey("@s/c"), encodeEntry(e))
		},
		"a block gone":   func(ix *Index, r Release) error { return ix.db.Delete(blockKey(r.Root), pebble.Sync) },
		"a block broken": func(ix *Index, r Release) error { return set(ix, blockKey(r.List.Root), []byte("?")) },
		"a block of what gateways are shown gone": func(ix *Index, r Release) error {
			l, err := unixfs.Lookup(context.Background(), ix, r.Root, "@s")
			if err != nil {
				return err
			}
			return ix.db.Delete(blockKey(l.CID), pebble.Sync)
		},
		"a place gone": func(ix *Index, _ Release) error { return set(ix, pendingKey("a"), []byte{0}) },
		"a scope's place gone": func(ix *Index, _ Release) error {
			return errors.Join(set(ix, pendingKey("@s/c"), []byte{0}), set(ix, place{"@s", "c"}.key(), nil))
		},
		"a place of nothing":     func(ix *Index, _ Release) error { return set(ix, place{"@s", "x"}.key(), nil) },
		"another's release root": plantRelease,
	} {
		ix := newIndexFor(t)
		r := mustApply(t, ix, put(t, "a", 0), put(t, "b", 0), show(t, "@s/c", 0, "page"))
		if err := ix.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := damage(ix, r); err != nil {
			t.Fatal(err)
		}
		if err := ix.Check(t.Context()); err == nil {
			t.Errorf("%s: Check found nothing", what)
		}
	}
}

// plantRelease makes the newest release one that shows gateways a list without
// "b", beside a list with it: whole, and not what the entries give.
func plantRelease(ix *Index, r Release) error {
	ctx := context.Background()
	b := ix.db.NewIndexedBatch()
	defer b.Close()
	w := newBlockWriter(ix.db)
	defer w.close()
	keep := w.write
	front, err := frontOf(ctx, w, r.Root, discard)
	if err != nil {
		return err
	}
	without, err := unixfs.Edit(ctx, w, front.CID, []unixfs.Link{{Name: "b"}}, keep, nil)
	if err != nil {
		return err
	}
	registry, err := unixfs.Lookup(ctx, w, r.Root, registryName)
	if err != nil {
		return err
	}
	root, err := unixfs.Edit(ctx, w, without.CID, []unixfs.Link{registry}, keep, nil)
	if err != nil {
		return err
	}
	r.Root = root.CID
	raw, err := encodeRelease(r, true)
	if err != nil {
		return err
	}
	if err := errors.Join(w.flush(), b.Set(numbered(rowRelease, r.Number), raw, nil)); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// TestCloseWaits closes the index while it is listed, and asks it meanwhile.
func TestCloseWaits(t *testing.T) {
	ix, err := Create("ix", memory(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, ix, put(t, "a", 0), put(t, "b", 0))
	closed := make(chan error, 1)
	seen := 0
	for e, err := range ix.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen == 1 {
			go func() { closed <- ix.Close() }()
		}
		if _, err := ix.Entry(e.Name); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
	if err := <-closed; err != nil || seen != 2 {
		t.Errorf("saw %d, Close: %v", seen, err)
	}
}

// BenchmarkApply makes releases of some changes in lists of different sizes, a
// sync of the disk included.
func BenchmarkApply(b *testing.B) {
	for _, packages := range []int{50_000, 500_000} {
		ix, err := Create(b.TempDir(), Options{Documents: "test-1"})
		if err != nil {
			b.Fatal(err)
		}
		cheap := func(i, revision int) Change {
			name := fmt.Sprintf("package-%d", i)
			if i%2 == 0 {
				name = fmt.Sprintf("@scope-%d/package-%d", bits.TrailingZeros(uint(i))*97+i%1000, i)
			}
			sum, err := multihash.Sum(fmt.Append(nil, i, revision), multihash.SHA2_256, -1)
			if err != nil {
				b.Fatal(err)
			}
			return Change{Entry: Entry{Name: npm.Name(name), CID: cid.NewCidV1(cid.DagProtobuf, sum), Tsize: 1000, Versions: 1}}
		}
		var batch Batch
		for i := range packages {
			batch.Changes = append(batch.Changes, cheap(i, 0))
		}
		if _, _, err := ix.Apply(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		// As after a while: what the first batch left to do is done.
		if err := ix.db.Compact(b.Context(), []byte{0}, []byte{0xff}, true); err != nil {
			b.Fatal(err)
		}
		revision := 0
		for _, changes := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("packages=%d/changes=%d", packages, changes), func(b *testing.B) {
				rng := rand.New(rand.NewPCG(1, 1))
				for b.Loop() {
					revision++
					var batch Batch
					for range changes {
						batch.Changes = append(batch.Changes, cheap(rng.IntN(packages), revision))
					}
					if _, _, err := ix.Apply(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		if err := ix.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
