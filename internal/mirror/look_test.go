package mirror

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// looks has m look at what is held, as Run does, and waits until nothing is due.
func looks(t testing.TB, m *Mirror) {
	t.Helper()
	for {
		more, err := m.lookOn(t.Context())
		check(t, err)
		if !more {
			return
		}
	}
}

// due is how many packages are to be looked at.
func due(t testing.TB, m *Mirror) int {
	t.Helper()
	return countRows(t, m, lookKey)
}

func countRows(t testing.TB, m *Mirror, space byte) (n int) {
	t.Helper()
	it, err := m.db.NewIter(&pebble.IterOptions{LowerBound: []byte{space}, UpperBound: []byte{space + 1}})
	check(t, err)
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	check(t, it.Close())
	return n
}

// install gets what npm's install does of one version: the short document, and the
// tarball. Once it returns, both count.
func install(t testing.TB, m *Mirror, name, version string) {
	t.Helper()
	if got := get(m, "/"+name, "Accept: application/vnd.npm.install-v1+json"); got.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", name, got.Code, got.Body)
	}
	if got := get(m, tarballPath(name, npm.Name(name).Base()+"-"+version+".tgz")); got.Code != http.StatusOK {
		t.Fatalf("tarball of %s: %d %s", name, got.Code, got.Body)
	}
	m.wg.Wait()
}

// finding holds searches of m to what they are to find.
func finding(t testing.TB, m *Mirror) func(text string, want ...npm.Name) Hits {
	return func(text string, want ...npm.Name) Hits {
		t.Helper()
		hits, err := m.Search(t.Context(), text, 0, 100)
		check(t, err)
		var names []npm.Name
		for _, h := range hits.Hits {
			names = append(names, h.Name)
		}
		if !slices.Equal(names, want) {
			t.Errorf("%q: %q, want %q", text, names, want)
		}
		return hits
	}
}

// installed is an archive whose tarballs have something to say, and whose versions say
// different things.
const installed = `
-- left-pad@1.0.0/package.json --
{"name":"left-pad","version":"1.0.0","description":"early filler"}
-- left-pad@1.1.0/package.json --
{"name":"left-pad","version":"1.1.0","description":"middle filler"}
-- left-pad@1.3.0/package.json --
{"name":"left-pad","version":"1.3.0","description":"current filler","keywords":["Align"],"author":"Ann <ann@example.test> (https://example.test)"}
-- left-pad/dist-tags.json --
{"latest":"1.3.0"}
-- is-odd@3.0.1/package.json --
{"name":"is-odd","version":"3.0.1","description":"tells numbers"}
`

// What was only installed is found by what its package.json says, with the version that
// the short document has; the tarball of the latest version speaks first, then the
// highest, and the document before all of them. What is evicted is not found, or by what
// is left. With a node and without one.
func TestSearchOfWhatWasInstalled(t *testing.T) {
	for _, node := range []bool{true, false} {
		t.Run(fmt.Sprint("node=", node), func(t *testing.T) {
			w := newWorldOf(t, installed)
			w.publish("left-pad", "is-odd")
			c := testCache(t, CacheOptions{})
			check(t, c.Stop()) // evictions are ours
			fs, part := vfs.NewMem(), c.Part("node", w.node, nil)
			open := func() *Mirror {
				return w.synced(func(o *Options) {
					if o.FS = fs; !node {
						part = c.Part("mirror", nil, nil)
						o.Node, o.Gateways = nil, []Gateway{&fakeGateway{w: w}}
					}
					o.Cached = part
				})
			}
			m := open()
			finds := finding(t, m)
			evict := func(files ...cid.Cid) {
				t.Helper()
				var victims []victim
				for _, file := range files {
					s, ok, err := c.row(part.key(file))
					if err != nil || !ok {
						t.Fatalf("%s does not count: %v", file, err)
					}
					victims = append(victims, victim{part.key(file), s.used})
				}
				var failed error
				_, err := part.from.Evict(t.Context(), c.evicting(victims, &failed))
				check(t, errors.Join(err, failed))
			}
			tarball := func(v string) cid.Cid { return w.files["left-pad-"+v+".tgz"] }

			install(t, m, "left-pad", "1.0.0")
			if n := due(t, m); n != 1 {
				t.Errorf("%d packages are to be looked at", n)
			}
			finds("filler") // and waits for nothing
			asked := w.node.asked()
			looks(t, m)
			hits := finds("early", "left-pad")
			if h := hits.Hits[0]; h.Version != "1.3.0" || !h.Held || h.Date == "" {
				t.Errorf("%+v", h)
			}
			install(t, m, "left-pad", "1.1.0")
			looks(t, m)
			finds("early")
			finds("middle", "left-pad")
			install(t, m, "left-pad", "1.3.0")
			install(t, m, "left-pad", "1.0.0")
			looks(t, m)
			for range 2 {
				finds("filler keywords:align", "left-pad")
				finds("author:ann current", "left-pad")
				finds("early")
				finds("middle")
				m.wg.Wait()
				check(t, m.Close())
				m = open()
				finds = finding(t, m)
				if looks(t, m); due(t, m) != 0 {
					t.Error("something is still due")
				}
			}
			if body := get(m, "/-/v1/search?text=left", "User-Agent: npm/11.0.0").Body.String(); !strings.Contains(body, `"description":"current filler"`) {
				t.Errorf("npm is told %s", body)
			}
			if w.node.holds(w.docs["left-pad"]) || node && w.node.asked() > asked+4 {
				t.Errorf("%d blocks were fetched for it", w.node.asked()-asked)
			}

			evict(tarball("1.3.0"))
			finds("filler")
			looks(t, m)
			finds("middle", "left-pad")
			get(m, "/left-pad") // the document
			m.wg.Wait()
			looks(t, m)
			if hits := finds("current", "left-pad"); !slices.Equal(hits.Hits[0].Keywords, []string{"Align"}) {
				t.Errorf("%+v", hits.Hits)
			}
			install(t, m, "left-pad", "1.3.0")
			looks(t, m)
			if d := m.described.byName["left-pad"]; d.From != byDocument {
				t.Errorf("a tarball came before the document: %+v", d)
			}
			evict(w.docs["left-pad"], tarball("1.3.0"), tarball("1.1.0"))
			looks(t, m)
			finds("early", "left-pad")
			evict(tarball("1.0.0"))
			looks(t, m)
			finds("filler")
			if hits := finds("left-pad", "left-pad"); hits.Hits[0].Version != "1.3.0" {
				t.Errorf("of the short document alone: %+v", hits.Hits[0])
			}
			p, err := m.directory(t.Context(), w.dirs["left-pad"])
			check(t, err)
			evict(p.install)
			looks(t, m)
			if hits := finds("left-pad", "left-pad"); hits.Hits[0].Held || hits.Hits[0].Version != "" {
				t.Errorf("of nothing: %+v", hits.Hits[0])
			}
		})
	}
}

// A tarball comes by one request, and is read whole and checked by a later one. Of one
// that was checked nothing is noted again. With and without an account of what is held.
func TestSearchOfWhatCameBefore(t *testing.T) {
	for _, counted := range []bool{true, false} {
		t.Run(fmt.Sprint("counted=", counted), func(t *testing.T) {
			w := newWorldOf(t, installed)
			w.publish("left-pad", "is-odd")
			c := testCache(t, CacheOptions{})
			fs := vfs.NewMem()
			open := func() *Mirror {
				return w.synced(func(o *Options) {
					if o.FS = fs; counted {
						o.Cached = c.Part("node", w.node, nil)
					}
				})
			}
			m := open()
			install(t, m, "left-pad", "1.3.0") // the walk is beyond is-odd with it
			get(m, "/is-odd", "Accept: application/vnd.npm.install-v1+json")
			path := tarballPath("is-odd", "is-odd-3.0.1.tgz")
			if got := do(m, http.MethodHead, path, nil); got.Code != http.StatusOK {
				t.Fatalf("HEAD: %d", got.Code)
			}
			m.wg.Wait()
			looks(t, m)
			finding(t, m)("tells")
			install(t, m, "is-odd", "3.0.1")
			looks(t, m)
			finding(t, m)("tells", "is-odd")
			if counted {
				check(t, m.Close())
				m = open()
				install(t, m, "is-odd", "3.0.1")
			}
			install(t, m, "is-odd", "3.0.1")
			if n := due(t, m); n != 0 {
				t.Errorf("%d are due for what was held", n)
			}
		})
	}
}

// What did not come at first is looked at once it comes, where nothing is counted.
func TestSearchOfWhatComesLate(t *testing.T) {
	w := newWorldOf(t, installed)
	w.publish("is-odd")
	m := w.synced()
	m.using(t.Context(), "is-odd", w.docs["is-odd"])()
	m.wg.Wait()
	if n := due(t, m); n != 0 {
		t.Errorf("%d are due for what did not come", n)
	}
	looks(t, m)
	get(m, "/is-odd")
	m.wg.Wait()
	looks(t, m)
	finding(t, m)("tells", "is-odd")
}

// Whoever comes late with less does not take the place of what says more: a look may end
// after a search has read the document.
func TestWhichDescriptionCounts(t *testing.T) {
	w := newWorldOf(t, installed)
	w.publish("left-pad")
	m := w.synced()
	here, there := w.dirs["left-pad"], w.docs["left-pad"] // of two releases
	files := []cid.Cid{w.docs["left-pad"], w.files["left-pad-1.0.0.tgz"], w.files["left-pad-1.3.0.tgz"]}
	for i, c := range []struct {
		dir  cid.Cid
		from saidBy
		want string
	}{
		{here, byInstall, "0"}, {here, byTarball, "1"}, {here, byInstall, "1"}, {here, byTarball, "3"},
		{here, byDocument, "4"}, {here, byTarball, "4"}, {there, byInstall, "4"}, {there, byTarball, "7"},
		{there, byDocument, "8"}, {here, byDocument, "9"},
	} {
		check(t, m.describe(t.Context(), &description{
			Name: "left-pad", Dir: c.dir, From: c.from, file: files[i%3], Summary: summary{Name: "left-pad", Version: fmt.Sprint(i)},
		}))
		for range 2 {
			hits, err := m.Search(t.Context(), "left-pad", 0, 1)
			check(t, err)
			if got := hits.Hits[0].Version; got != c.want {
				t.Errorf("%d: %s counts, want %s", i, got, c.want)
			}
			m.described.loaded = false // as after a start
		}
	}
}

// A crash leaves a description whose file is gone: what else is here takes its place.
func TestAfterACrashWhatIsLeftIsFound(t *testing.T) {
	w := newWorldOf(t, installed)
	w.publish("left-pad")
	c := testCache(t, CacheOptions{})
	fs := vfs.NewMem()
	open := func() *Mirror {
		return w.synced(func(o *Options) { o.FS, o.Cached = fs, c.Part("node", w.node, nil) })
	}
	m := open()
	install(t, m, "left-pad", "1.0.0")
	install(t, m, "left-pad", "1.3.0")
	looks(t, m)
	finding(t, m)("current", "left-pad")
	check(t, m.Close())
	part := c.Part("node", w.node, nil)
	key := part.key(w.files["left-pad-1.3.0.tgz"])
	c.mu.Lock()
	check(t, c.db.Delete(append([]byte{fileSpace}, key...), nil))
	clear(c.seen)
	c.mu.Unlock()
	m = open()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.loadDescriptions(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("for a search that ends while the rows are read: %v", err)
	}
	finding(t, m)("filler")
	looks(t, m)
	finding(t, m)("early", "left-pad")
}

// What was installed before there were such rows is found after a walk; so is what a
// bundle brought, with its version.
func TestSearchOfWhatWasHere(t *testing.T) {
	w := newWorldOf(t, installed)
	w.publish("left-pad", "is-odd")
	m := w.synced()
	install(t, m, "left-pad", "1.1.0")
	install(t, m, "is-odd", "3.0.1")
	check(t, m.db.DeleteRange([]byte{lookKey}, []byte{lookKey + 1}, pebble.NoSync))
	asked := w.node.asked()
	looks(t, m)
	finding(t, m)("filler", "left-pad")
	finding(t, m)("tells", "is-odd")
	if n := w.node.asked() - asked; n != 0 {
		t.Errorf("%d blocks were fetched for it", n)
	}

	car := w.export(t, false, "left-pad@1.0.0", "is-odd")
	other := w.isolated(t)
	table := tableOf(t, other, offline)
	_, err := take(t, table, car)
	check(t, err)
	there := table.rows[0].Mirror
	there.wg.Wait()
	looks(t, there)
	if hits := finding(t, there)("current", "left-pad"); hits.Hits[0].Version != "1.3.0" {
		t.Errorf("%+v", hits.Hits)
	}
	if body := get(there, "/-/v1/search?text=odd").Body.String(); !strings.Contains(body, `"version":"3.0.1"`) {
		t.Errorf("a bundle's: %s", body)
	}
}

// manyPackages is an archive of n packages, each with a word of its own to say.
func manyPackages(n int) (archive string, names []string) {
	var b strings.Builder
	for i := range n {
		name := fmt.Sprintf("p%03d", i)
		fmt.Fprintf(&b, "-- %s@1.0.0/package.json --\n{\"name\":%q,\"version\":\"1.0.0\",\"description\":\"word%03d of many\"}\n", name, name, i)
		names = append(names, name)
	}
	return b.String(), names
}

// holdingAll is a mirror whose node holds all that is published, as that of `up`.
func (w *world) holdingAll(fs vfs.FS) *Mirror {
	w.t.Helper()
	m := w.synced(func(o *Options) { o.FS, o.HoldsAll = fs, true })
	w.holdAll()
	return m
}

func (w *world) holdAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, b := range w.blocks {
		w.node.held[c] = b
	}
}

// With a node that holds all, what nobody looked at is found, and what a release
// changes; a start goes on where the one before ended, and nothing is fetched.
func TestSearchOfAllThatANodeHolds(t *testing.T) {
	archive, names := manyPackages(lookPiece + 20)
	w := newWorldOf(t, archive)
	fs := vfs.NewMem()
	w.publish(names...)
	m := w.holdingAll(fs)
	asked := w.node.asked()
	if more, err := m.lookOn(t.Context()); err != nil || !more {
		t.Fatalf("after a piece: %v, %v", more, err)
	}
	finding(t, m)("word001", "p001")
	finding(t, m)("word075")
	// What is looked at again would be found again.
	check(t, m.db.Delete(descriptionKey(w.docs["p001"]), nil))
	check(t, m.Close())
	m = w.holdingAll(fs)
	looks(t, m)
	finding(t, m)("word001")
	finding(t, m)("word002", "p002")
	finding(t, m)("word075", "p075")

	w.registry.Publish("-- p003@2.0.0/package.json --\n{\"name\":\"p003\",\"version\":\"2.0.0\",\"description\":\"another one\"}\n-- p003/dist-tags.json --\n{\"latest\":\"2.0.0\"}\n" +
		"-- fresh@1.0.0/package.json --\n{\"name\":\"fresh\",\"version\":\"1.0.0\",\"description\":\"just come\"}\n")
	w.publish(append(slices.Clone(names[1:]), "fresh")...)
	check(t, m.Sync(t.Context()))
	w.holdAll()
	if n := due(t, m); n != 3 {
		t.Errorf("%d packages are to be looked at", n)
	}
	if looks(t, m); m.described.byName["p000"] != nil || countRows(t, m, describedKey) != len(m.described.byName) {
		t.Error("what a package said stays that is not listed any more")
	}
	if hits := finding(t, m)("another", "p003"); hits.Hits[0].Version != "2.0.0" {
		t.Errorf("%+v", hits.Hits)
	}
	finding(t, m)("just come", "fresh")
	finding(t, m)("word000") // it is not listed
	finding(t, m)("word001") // it was not walked through again
	if n := w.node.asked() - asked; n > 20 {
		t.Errorf("%d blocks were fetched", n) // of two lists
	}

	// A crash after the list moved, before what changed was noted.
	before, closer, err := m.db.Get([]byte{walkKey})
	check(t, err)
	row := bytes.Clone(before)
	closer.Close()
	w.registry.Publish("-- p004@2.0.0/package.json --\n{\"name\":\"p004\",\"version\":\"2.0.0\",\"description\":\"yet another\"}\n-- p004/dist-tags.json --\n{\"latest\":\"2.0.0\"}\n")
	w.publish(names...)
	check(t, m.Sync(t.Context()))
	check(t, errors.Join(m.db.Set([]byte{walkKey}, row, nil), m.db.DeleteRange([]byte{lookKey}, []byte{lookKey + 1}, nil)))
	check(t, m.Close())
	m = w.holdingAll(fs)
	looks(t, m)
	finding(t, m)("yet", "p004")
	finding(t, m)("word001", "p001")
}

// watchedNode calls local before it says whether it holds a block.
type watchedNode struct {
	*fakeNode
	local func() error
}

func (n *watchedNode) Local(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if err := n.local(); err != nil {
		return nil, err
	}
	return n.fakeNode.Local(ctx, c)
}

// A node that is away is asked again, and nothing is passed over for it.
func TestLookWaitsForTheNode(t *testing.T) {
	archive, names := manyPackages(3)
	w := newWorldOf(t, archive)
	w.publish(names...)
	m := w.holdingAll(vfs.NewMem())
	node := &watchedNode{w.node, func() error { return ipfs.ErrAway }}
	m.o.Node = node
	for range 2 {
		if more, err := m.lookOn(t.Context()); !errors.Is(err, ipfs.ErrAway) || more {
			t.Errorf("with the node away: %v, %v", more, err)
		}
		m.lookAt("p001") // which is no other's concern
	}
	if n := due(t, m); n != 1 {
		t.Errorf("%d are due", n)
	}
	// Nor is anything where the mirror ends while it looks.
	ctx, cancel := context.WithCancel(t.Context())
	node.local = func() error { cancel(); return ctx.Err() }
	if more, err := m.lookOn(ctx); !errors.Is(err, context.Canceled) || more || due(t, m) != 1 {
		t.Errorf("at the end: %v, %v, %d are due", more, err, due(t, m))
	}
	node.local = func() error { return nil }
	looks(t, m)
	finding(t, m)("word000", "p000")
	finding(t, m)("word001", "p001")

	// What comes while its package is looked at has it looked at again.
	w.registry.Publish("-- p002@2.0.0/package.json --\n{\"name\":\"p002\",\"version\":\"2.0.0\"}\n")
	w.publish(names...)
	m.o.HoldsAll = false
	check(t, m.Sync(t.Context()))
	m.lookAt("p002")
	node.local = func() error {
		node.local = func() error { return nil }
		m.lookAt("p002")
		return nil
	}
	if more, err := m.lookOn(t.Context()); err != nil || !more || due(t, m) != 1 {
		t.Errorf("after a file came meanwhile: %v, %v, %d are due", more, err, due(t, m))
	}
}

// A package that cannot be looked at is not asked for again before all others were.
func TestLookGoesRound(t *testing.T) {
	archive, names := manyPackages(3)
	w := newWorldOf(t, archive)
	w.publish(names...)
	m := w.holdingAll(vfs.NewMem())
	node := &watchedNode{fakeNode: w.node}
	m.o.Node = node
	m.lookAt("p000", "p002")
	node.local = func() error {
		node.local = func() error { return nil }
		return ipfs.ErrAway
	}
	for i, said := range [][]npm.Name{{}, {"p002"}, {"p000", "p002"}} {
		if _, err := m.lookOn(t.Context()); (err != nil) != (i == 0) {
			t.Errorf("%d: %v", i, err)
		}
		finding(t, m)("of many", said...)
	}
}

// A node that is away is left alone for a while, whatever comes; one that is too slow for
// a package holds no other up.
func TestLookLeavesTheNodeAlone(t *testing.T) {
	archive, names := manyPackages(3)
	w := newWorldOf(t, archive)
	w.publish(names...)
	synctest.Test(t, func(t *testing.T) {
		var log lines
		m := w.holdingAll(vfs.NewMem())
		m.log = slog.New(slog.NewTextHandler(&log, nil))
		asked, slow := 0, true
		var back atomic.Bool
		m.o.Node = &watchedNode{w.node, func() error {
			switch {
			case !back.Load():
				asked++
				return ipfs.ErrAway
			case slow:
				slow = false
				time.Sleep(lookLimit)
				return ipfs.ErrAway
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go m.describeHeld(ctx)
		for range 3 {
			synctest.Wait()
			m.lookAt("p000")
		}
		synctest.Wait()
		if asked != 1 {
			t.Errorf("it was asked %d times", asked)
		}
		m.lookAt("p001")
		time.Sleep(3 * lookLater)
		synctest.Wait()
		if n := log.count("not all found"); n != 1 || asked != 4 {
			t.Errorf("it was asked %d times, and %d times it was said why", asked, n)
		}
		back.Store(true)
		time.Sleep(lookLater + lookShare*lookLimit)
		synctest.Wait()
		finding(t, m)("word000", "p000") // by the walk
		finding(t, m)("word002", "p002")
		if n := due(t, m); n != 0 {
			t.Errorf("%d are due", n)
		}
		cancel()
		check(t, m.Close())
	})
}

// Run looks, also where nobody is asked for anything.
func TestRunLooks(t *testing.T) {
	w := newWorldOf(t, installed)
	fs := vfs.NewMem()
	w.publish("is-odd")
	check(t, w.holdingAll(fs).Close())
	m := w.open(offline, func(o *Options) { o.FS, o.HoldsAll = fs, true })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	until(t, func() bool {
		hits, err := m.Search(ctx, "tells", 0, 1)
		check(t, err)
		return hits.Total == 1
	})
	cancel()
	check(t, <-ended)
	m.wg.Wait()
}

// Beyond the bound nothing is written down, the walk leaves room for what is asked for,
// and names are found.
func TestDescriptionsAreBounded(t *testing.T) {
	archive, names := manyPackages(2*lookPiece + 20)
	w := newWorldOf(t, archive)
	fs := vfs.NewMem()
	w.publish(names...)
	m := w.holdingAll(fs)
	d := &description{Name: "p000", Summary: summary{Description: "word000 of many"}}
	d.ready(w.docs["p000"])
	m.described.most = d.cost() * lookPiece
	looks(t, m)
	hits := finding(t, m)("of many", asNames(names[:lookPiece])...)
	finding(t, m)("p140", "p140")
	fit := func(n int) {
		t.Helper()
		if rows := countRows(t, m, describedKey); rows != n || m.described.size > m.described.most {
			t.Errorf("%d rows and %d bytes for %d descriptions", rows, m.described.size, n)
		}
	}
	fit(hits.Total)

	m.described.most = d.cost() * 2 * lookPiece // half full now: the walk stops after one more piece
	looks(t, m)
	finding(t, m)("word120", "p120")
	finding(t, m)("word140")
	m.lookAt("p140", "p141") // there is none for them
	looks(t, m)
	finding(t, m)("word140")
	if n := due(t, m); n != 0 {
		t.Errorf("%d are still due", n)
	}

	// One that says more than there is room for, and rows of when there was more room.
	m.described.most = m.described.size
	check(t, m.describe(t.Context(), &description{
		Name: "p000", Dir: w.dirs["p000"], file: w.docs["p000"], Summary: summary{Description: strings.Repeat("longer", 99)},
	}))
	fit(len(m.described.byName))
	m.described.most, m.described.loaded = d.cost()*10, false
	check(t, m.loadDescriptions(t.Context()))
	fit(10)
}

// Where there is no room for more of a walk that begins again, what a release changes is
// noted all the same.
func TestChangesAreNotedWithoutRoom(t *testing.T) {
	archive, names := manyPackages(3)
	w := newWorldOf(t, archive)
	w.publish(names...)
	m := w.holdingAll(vfs.NewMem())
	looks(t, m)
	m.described.most = m.described.size
	check(t, m.db.Delete([]byte{walkKey}, nil)) // as by a crash
	looks(t, m)
	w.registry.Publish("-- p001@2.0.0/package.json --\n{\"name\":\"p001\",\"version\":\"2.0.0\",\"description\":\"other\"}\n-- p001/dist-tags.json --\n{\"latest\":\"2.0.0\"}\n")
	w.publish(names...)
	check(t, m.Sync(t.Context()))
	w.holdAll()
	looks(t, m)
	finding(t, m)("word001")
	finding(t, m)("other", "p001")
}

func asNames(texts []string) (names []npm.Name) {
	for _, text := range texts {
		names = append(names, npm.Name(text))
	}
	return names
}

// entry is a file of a test's archive.
type entry struct {
	name string
	kind byte // 0: a file
	size int64
	data string // of it, and zeros after that
}

// archiveOf is a gzipped tar of entries, cut off after most bytes unpacked, 0: whole.
func archiveOf(t testing.TB, most int64, entries ...entry) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { r.Close() })
	go func() {
		z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
		out := &cutting{z, cmp.Or(most, 1<<62)}
		tw := tar.NewWriter(out)
		for _, e := range entries {
			size := cmp.Or(e.size, int64(len(e.data)))
			err := tw.WriteHeader(&tar.Header{Name: e.name, Typeflag: cmp.Or(e.kind, tar.TypeReg), Size: size, Mode: 0o644, Linkname: strings.Repeat("package/real", int(e.kind/tar.TypeSymlink))})
			if err == nil {
				_, err = io.Copy(tw, io.LimitReader(io.MultiReader(strings.NewReader(e.data), zeros{}), size))
			}
			if err != nil {
				w.CloseWithError(z.Close())
				return
			}
		}
		w.CloseWithError(errors.Join(tw.Close(), z.Close()))
	}()
	return r
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// cutting takes so many bytes, and then nothing.
type cutting struct {
	w    io.Writer
	left int64
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, io.ErrShortWrite
	}
	return c.w.Write(p)
}

// metered counts what is read.
type metered struct {
	io.Reader
	n int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.n += int64(n)
	return n, err
}

func TestPackageJSON(t *testing.T) {
	const fine = `{"name":"a"}`
	var many []entry
	for i := range maxEntries {
		many = append(many, entry{name: fmt.Sprintf("package/d%d/", i), kind: tar.TypeDir})
	}
	for name, c := range map[string]struct {
		most    int64
		entries []entry
		want    string
	}{
		"first":             {0, []entry{{name: "package/package.json", data: fine}, {name: "package/big", size: 1 << 20}}, fine},
		"last":              {0, []entry{{name: "package/big", size: 32 << 20}, {name: "package/package.json", data: fine}}, fine},
		"in another folder": {0, []entry{{name: "./left-pad/package.json", data: fine}}, fine},
		"the first of two":  {0, []entry{{name: "package/package.json", data: fine}, {name: "package/package.json", data: "{}"}}, fine},
		"empty":             {0, []entry{{name: "package/package.json"}}, ""},
		"none":              {0, []entry{{name: "package/index.js", data: fine}}, "-"},
		"deeper":            {0, []entry{{name: "package/lib/package.json", data: fine}}, "-"},
		"not below":         {0, []entry{{name: "package.json", data: fine}}, "-"},
		"a link":            {0, []entry{{name: "package/package.json", kind: tar.TypeSymlink}}, "-"},
		"too large":         {0, []entry{{name: "package/package.json", size: maxPackageJSON + 1}}, "-"},
		"of a GiB":          {80 << 20, []entry{{name: "package/package.json", data: fine, size: 1 << 30}}, "-"},
		"after a bomb":      {0, []entry{{name: "package/zeros", size: maxUnpacked}, {name: "package/package.json", data: fine}}, "-"},
		"after too many":    {0, append(many, entry{name: "package/package.json", data: fine}), "-"},
		"cut off":           {512 + 4, []entry{{name: "package/package.json", data: fine}}, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := packageJSON(archiveOf(t, c.most, c.entries...))
			if c.want == "-" {
				if !errors.Is(err, errNoPackageJSON) {
					t.Errorf("%.40q, %v", raw, err)
				}
				return
			}
			if check(t, err); string(raw) != c.want {
				t.Errorf("%.40q, want %q", raw, c.want)
			}
		})
	}
	for name, r := range map[string]io.Reader{
		"not gzip": strings.NewReader("<html>"), "nothing": strings.NewReader(""),
		"gzip of no tar": gzipped1(t, strings.Repeat("x", 4096)),
	} {
		if raw, err := packageJSON(r); !errors.Is(err, errNoPackageJSON) {
			t.Errorf("%s: %.40q, %v", name, raw, err)
		}
	}
	// Members without end, each of a byte: more is read than unpacked.
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	_, err := z.Write([]byte{0})
	check(t, errors.Join(err, z.Close()))
	endless := &metered{Reader: &repeating{data: bytes.Repeat(member.Bytes(), 1000)}}
	if raw, err := packageJSON(endless); !errors.Is(err, errNoPackageJSON) || endless.n > maxSought {
		t.Errorf("of what never ends: %.40q, %v after %d bytes", raw, err, endless.n)
	}
}

func gzipped1(t *testing.T, text string) io.Reader {
	b, err := compress([]byte(text), gzipped)
	check(t, err)
	return b.reader()
}

// repeating gives data again and again.
type repeating struct {
	data []byte
	at   int
}

func (r *repeating) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

func TestReadPackageJSON(t *testing.T) {
	for raw, want := range map[string]string{
		`{"name":"a","version":"1.0.0","description":"d"}`:                                                                     "1.0.0 d [] []",
		"\uFEFF" + `{"name":"a","name":"a","version":"1.0.0","keywords":"x, y z"}`:                                             "1.0.0  [x y z] []",
		`{"name":"a","version":"1.0.0","description":"d","versions":3,"time":{"1.0.0":"2020-01-01T00:00:00Z"},"dist-tags":[]}`: "1.0.0 d [] []",
		`{"name":"a","version":"no","description":7,"keywords":{"x":1},"maintainers":["M <m@x>",{}]}`:                          "unknown  [] [M]",
		`{"name":"a","version":{},"keywords":["x",7,"","y"],"author":[]}`:                                                      "unknown  [x y] []",
		`{"name":"b","description":"d"}`:                                                                                       "-",
		`{"description":"d"}`:                                                                                                  "-",
		`{"name":"a","description":"d"`:                                                                                        "-",
		`[]`:                                                                                                                   "-",
		`null`:                                                                                                                 "-",
		``:                                                                                                                     "-",
		strings.Repeat(`[`, 100_000):                                                                                           "-",
	} {
		s, err := readPackageJSON("a", []byte(raw))
		if want == "-" {
			if !errors.Is(err, npm.ErrPackument) {
				t.Errorf("%.60q: %+v, %v", raw, s, err)
			}
			continue
		}
		var who []string
		for _, p := range s.Maintainers {
			who = append(who, p.Username)
		}
		if got := fmt.Sprint(s.Version, " ", s.Description, " ", s.Keywords, " ", who); err != nil || got != want || s.Date != "" {
			t.Errorf("%.60q: %s, %v, want %s", raw, got, err, want)
		}
	}
	for raw, want := range map[string]person{
		`"Ann Example <ann@example.test> (https://example.test)"`: {Name: "Ann Example", Email: "ann@example.test"},
		`"Ann"`:                {Name: "Ann"},
		`"Ann (nowhere)"`:      {Name: "Ann"},
		`"Ann <ann"`:           {Name: "Ann", Email: "ann"},
		`{"name":"Ann"}`:       {Name: "Ann"},
		`"<ann@example.test>"`: {},
		`""`:                   {},
		`7`:                    {},
	} {
		got := readPerson([]byte(raw))
		if got == nil {
			got = &person{}
		}
		if *got != want {
			t.Errorf("%s: %+v, want %+v", raw, *got, want)
		}
	}
}

// A tarball that lies is served as it is, says nothing, and keeps no other from being
// found.
func TestHostileTarballs(t *testing.T) {
	w, names := cachedWorld(t, 100)
	for name, a := range map[string]io.Reader{
		"a": archiveOf(t, 0, entry{name: "package/zeros", size: maxUnpacked}, entry{name: "package/package.json", data: `{"name":"a","description":"evil"}`}),
		"b": archiveOf(t, 0, entry{name: "package/package.json", data: `{"name":"a","description":"evil"}`}),
		"c": archiveOf(t, 0, entry{name: "package/package.json", data: `{"name":"c","description":"evil"`}),
		"d": archiveOf(t, 0, entry{name: "package/package.json", data: `{"name":"d","description":"good"}`}),
	} {
		data, err := io.ReadAll(a)
		check(t, err)
		w.replace(name, data)
	}
	w.publish(names...)
	c := testCache(t, CacheOptions{})
	m := w.synced(func(o *Options) { o.Cached = c.Part("node", w.node, nil) })
	for _, name := range names {
		install(t, m, name, "1.0.0")
	}
	looks(t, m)
	finding(t, m)("evil")
	finding(t, m)("good", "d")
	for _, h := range finding(t, m)("", "a", "b", "c", "d").Hits {
		if h.Version != "1.0.0" || !h.Held {
			t.Errorf("%+v", h)
		}
	}
}

func noiseOf(n int) string {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	return string(data)
}

// BenchmarkDescribe is of learning what a package says from its tarball, which lies in
// a Pebble: one of 50 KB and one of 4 MB, with package.json first, as npm packs, and last.
func BenchmarkDescribe(b *testing.B) {
	own := entry{name: "package/package.json", data: `{"name":"a","version":"1.0.0","description":"fills text up","keywords":["align","column"],"author":"Ann <ann@example.test>"}`}
	for _, size := range []int64{50 << 10, 4 << 20} {
		for _, last := range []bool{false, true} {
			noise := entry{name: "package/noise", data: noiseOf(int(size))}
			entries := []entry{own, noise}
			if last {
				slices.Reverse(entries)
			}
			data, err := io.ReadAll(archiveOf(b, 0, entries...))
			check(b, err)
			w := newWorld(b)
			m := w.open(func(o *Options) { o.Node, o.Gateways = nil, []Gateway{&fakeGateway{w: w}} })
			ref, err := unixfs.AddFile(bytes.NewReader(data), func(blk blocks.Block) error { return m.keep(b.Context(), []blocks.Block{blk}) })
			check(b, err)
			check(b, m.db.Set(verifiedMark("a", "a-1.0.0.tgz", ref.CID), nil, nil))
			b.Run(fmt.Sprintf("size=%dK/last=%v", size>>10, last), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if d, err := m.heldOf(b.Context(), "a", ref.CID); err != nil || d == nil || d.From != byTarball {
						b.Fatalf("%+v, %v", d, err)
					}
				}
			})
		}
	}
}
