package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Evict makes fakeNode an ipfs.Evictor.
func (n *fakeNode) Evict(ctx context.Context, victims iter.Seq[[]cid.Cid]) (c ipfs.Collected, err error) {
	for batch := range victims {
		n.w.mu.Lock()
		for _, v := range batch {
			for held := range n.held {
				if bytes.Equal(held.Hash(), v.Hash()) {
					delete(n.held, held)
					c.Removed++
				}
			}
		}
		n.w.mu.Unlock()
	}
	return c, ctx.Err()
}

// holds says whether the node has a block.
func (n *fakeNode) holds(c cid.Cid) bool {
	_, err := n.Local(context.Background(), c)
	return err == nil
}

func testCache(t *testing.T, o CacheOptions) *Cache {
	t.Helper()
	if o.FS == nil {
		o.FS = vfs.NewMem()
	}
	o.Dir, o.Grain = "cache", -1
	c, err := OpenCache(o)
	check(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// quiet waits until nothing is in use and nothing is to be evicted.
func quiet(t *testing.T, c *Cache) {
	t.Helper()
	for range 1000 {
		c.mu.Lock()
		calm := len(c.inUse) == 0 && len(c.going) == 0 && c.size <= c.o.Bound
		c.mu.Unlock()
		if calm {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the cache does not come to rest")
}

// cachedWorld is a registry of four packages, each with a tarball of size bytes.
func cachedWorld(t *testing.T, size int) (w *world, names []string) {
	var archive strings.Builder
	for _, name := range []string{"a", "b", "c", "d"} {
		fmt.Fprintf(&archive, "-- %s@1.0.0/package.json --\n{\"name\":%q,\"version\":\"1.0.0\"}\n", name, name)
		names = append(names, name)
	}
	w = newWorldOf(t, archive.String())
	for i, name := range names {
		data := make([]byte, size)
		for j, r := 0, rand.New(rand.NewPCG(uint64(i), 3)); j < len(data); j++ {
			data[j] = byte(r.Uint32())
		}
		w.replace(name, data)
	}
	w.publish(names...)
	return w, names
}

// replace puts data in the place of name's tarball of 1.0.0, and its digests into the
// document.
func (w *world) replace(name string, data []byte) {
	sri, old := (npm.Integrity{}).NewVerifier(), (npm.Integrity{}).NewVerifier()
	sri.Write(data)
	old.Write(w.registry.Tarball(name, "1.0.0"))
	w.registry.Edit(name, func(doc []byte) []byte {
		doc = bytes.ReplaceAll(doc, []byte(old.SRI()), []byte(sri.SRI()))
		return bytes.ReplaceAll(doc, []byte(old.Shasum()), []byte(sri.Shasum()))
	})
	w.big[name+"-1.0.0.tgz"] = data
}

// TestCacheBound: a mirror keeps within its bound whole files, those used last; what
// was evicted is fetched again; the list's directories stay. With a node, and with
// blocks of its own from a gateway.
func TestCacheBound(t *testing.T) {
	const size = 1500 << 10 // two leaves and their root
	for _, node := range []bool{true, false} {
		t.Run(fmt.Sprint("node=", node), func(t *testing.T) {
			w, names := cachedWorld(t, size)
			c := testCache(t, CacheOptions{Bound: 2*size + size/2, Now: func() time.Time { return w.now }})
			part := c.Part("node", w.node, nil)
			m := w.synced(func(o *Options) {
				if !node {
					part = c.Part("mirror x", nil, nil)
					o.Node, o.Gateways = nil, []Gateway{&fakeGateway{w: w}}
				}
				o.Cached = part
			})
			holds := func(name string) bool {
				_, whole := m.pieces(t.Context(), w.files[name+"-1.0.0.tgz"])
				return whole
			}
			fetch := func(name string) {
				t.Helper()
				file := name + "-1.0.0.tgz"
				if r := get(m, tarballPath(name, file)); r.Code != http.StatusOK || !bytes.Equal(r.Body.Bytes(), w.big[file]) {
					t.Fatalf("%s: %d, %d bytes", name, r.Code, r.Body.Len())
				}
				quiet(t, c)
				if s := c.Status(); s.Bytes > s.Bound {
					t.Errorf("%+v", s)
				}
			}
			fetch("a")
			fetch("b")
			if !holds("a") || !holds("b") {
				t.Error("evicted below the bound")
			}
			fetch("a") // b is the older now
			fetch("c")
			if holds("b") || !holds("a") || !holds("c") {
				t.Errorf("held: a %v, b %v, c %v", holds("a"), holds("b"), holds("c"))
			}
			fetch("b")
			if holds("a") || !holds("b") || !holds("c") {
				t.Errorf("held: a %v, b %v, c %v", holds("a"), holds("b"), holds("c"))
			}
			for _, name := range names {
				if _, err := m.held(t.Context(), w.dirs[name]); name < "d" && err != nil {
					t.Errorf("directory of %s: %v", name, err)
				}
			}
		})
	}
}

// TestCacheSending: a file that is being sent is not evicted, however full the cache
// is, and goes after that.
func TestCacheSending(t *testing.T) {
	const size = 3 << 20
	w, _ := cachedWorld(t, size)
	c := testCache(t, CacheOptions{Bound: 4 << 20})
	m := w.synced(func(o *Options) { o.Cached = c.Part("node", w.node, nil) })
	server := httptest.NewServer(m.Handler())
	t.Cleanup(server.Close)
	file := w.files["a-1.0.0.tgz"]
	done := m.using(t.Context(), "a", file) // a slow reader's
	var g sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "b", "c"} {
		g.Go(func() {
			resp, err := http.Get(server.URL + tarballPath(name, name+"-1.0.0.tgz"))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if data, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(data, w.big[name+"-1.0.0.tgz"]) {
				t.Errorf("%s: %d bytes, %v", name, len(data), err)
			}
		})
	}
	g.Wait()
	if _, whole := m.pieces(t.Context(), file); !whole {
		t.Error("what is being sent was evicted")
	}
	done()
	quiet(t, c)
	if s := c.Status(); s.Bytes > s.Bound {
		t.Errorf("%+v", s)
	}
}

// TestCachePins: what is pinned is fetched, stays and comes back with a new release;
// its node pins it; unpinned it goes.
func TestCachePins(t *testing.T) {
	const size = 1500 << 10
	w, names := cachedWorld(t, size)
	c := testCache(t, CacheOptions{Bound: 2*size + size/2})
	node := &pinningNode{pins: map[cid.Cid]bool{}}
	m := w.synced(func(o *Options) { o.Cached = c.Part("node", w.node, node) })
	table, err := NewTable(Registry{Label: "x", Mirror: m})
	check(t, err)
	admin := table.Admin()
	r := newRecorder(admin, http.MethodPost, "/pins?name=a&version=1.0.0")
	var got Pinned
	if r.Code != http.StatusOK || json.Unmarshal(r.Body.Bytes(), &got) != nil || got.Files != 3 || len(got.Missing) > 0 {
		t.Fatalf("%d %s", r.Code, r.Body)
	}
	file := w.files["a-1.0.0.tgz"]
	if !node.pins[file] || !node.pins[w.docs["a"]] {
		t.Error("the node does not pin it")
	}
	for _, name := range []string{"b", "c", "d", "b"} {
		get(m, tarballPath(name, name+"-1.0.0.tgz"))
		quiet(t, c)
	}
	if !w.node.holds(w.docs["a"]) || !w.node.holds(file) {
		t.Error("what is pinned was evicted")
	}
	old := w.docs["a"]
	w.registry.Edit("a", func(doc []byte) []byte { return bytes.Replace(doc, []byte("{"), []byte(`{"renewed":true,`), 1) })
	w.publish(names...)
	check(t, m.Sync(t.Context()))
	if !table.fetchPins(t.Context(), c) || old == w.docs["a"] || !node.pins[w.docs["a"]] || node.pins[old] || !node.pins[file] {
		t.Error("the node does not pin what the new release has, or still what the old one had")
	}
	for _, tt := range []struct {
		method, query string
		code          int
	}{
		{http.MethodPost, "name=a&version=9.9.9", http.StatusOK}, // missing, and said
		{http.MethodPost, "name=nowhere", http.StatusOK},         // likewise
		{http.MethodPost, "name=..", http.StatusBadRequest},
		{http.MethodDelete, "name=b", http.StatusConflict},
		{http.MethodDelete, "name=a&version=2.0.0", http.StatusConflict},
		{http.MethodDelete, "name=nowhere&version=1.0.0", http.StatusConflict}, // pinned whole
		{http.MethodDelete, "name=nowhere", http.StatusOK},
		{http.MethodDelete, "name=a", http.StatusOK},
	} {
		if r := newRecorder(admin, tt.method, "/pins?"+tt.query); r.Code != tt.code {
			t.Errorf("%s %s: %d %s", tt.method, tt.query, r.Code, r.Body)
		}
	}
	table.fetchPins(t.Context(), c)
	if len(node.pins) > 0 {
		t.Errorf("the node still pins %v", node.pins)
	}
	for _, name := range []string{"c", "d"} {
		get(m, tarballPath(name, name+"-1.0.0.tgz"))
		quiet(t, c)
	}
	if w.node.holds(file) {
		t.Error("it was unpinned and stays")
	}
}

type pinningNode struct{ pins map[cid.Cid]bool }

func (n *pinningNode) Pin(_ context.Context, _ string, _, root cid.Cid) error {
	n.pins[root] = true
	return nil
}

func (n *pinningNode) Unpin(_ context.Context, _ string, root cid.Cid) error {
	delete(n.pins, root)
	return nil
}

func (n *pinningNode) Pins(context.Context, string) (roots []cid.Cid, err error) {
	for root := range n.pins {
		roots = append(roots, root)
	}
	return roots, nil
}

// bin is a store of blocks, in which files lie whose blocks are partly the same.
type bin struct {
	held  map[string]bool // by multihash
	files map[cid.Cid][]piece
}

func (b *bin) Evict(_ context.Context, victims iter.Seq[[]cid.Cid]) (c ipfs.Collected, err error) {
	for batch := range victims {
		for _, v := range batch {
			delete(b.held, string(v.Hash()))
		}
	}
	return c, nil
}

func (b *bin) look(_ context.Context, file cid.Cid) (pieces []piece, whole bool) {
	whole = true
	for _, p := range b.files[file] {
		if b.held[string(p.hash)] {
			pieces = append(pieces, p)
		} else {
			whole = false
		}
	}
	return pieces, whole
}

// read is a request for a file: what is missing is fetched.
func (b *bin) read(t *testing.T, p *Part, file cid.Cid) {
	t.Helper()
	p.use(t.Context(), file, "bin")
	for _, piece := range b.files[file] {
		b.held[string(piece.hash)] = true
	}
	if !p.done(file, false) {
		pieces, whole := b.look(t.Context(), file)
		if err := p.took(file, pieces, whole); err != nil && !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		p.done(file, true)
	}
}

var errCut = errors.New("power is cut")

// binOf makes n files, each of some of n blocks of its own and a few that others have.
func binOf(rng *rand.Rand, n int) (b *bin, files []cid.Cid) {
	b = &bin{held: map[string]bool{}, files: map[cid.Cid][]piece{}}
	block := func(i int) piece {
		return piece{blocks.NewBlock([]byte(fmt.Sprint("block ", i))).Cid().Hash(), int64(10 + 7*i%90)}
	}
	for i := range n {
		file := cid.NewCidV1(cid.DagProtobuf, block(i).hash)
		b.files[file] = []piece{block(i)}
		for range rng.IntN(4) {
			if p := block(n + rng.IntN(n)); !slices.ContainsFunc(b.files[file], func(q piece) bool { return bytes.Equal(p.hash, q.hash) }) {
				b.files[file] = append(b.files[file], p)
			}
		}
		files = append(files, file)
	}
	return b, files
}

// plainLRU is what a Cache should be, in the plainest way.
type plainLRU struct {
	bin    *bin
	bound  int64
	order  []cid.Cid // least recently used first
	pinned map[cid.Cid]bool
	busy   map[cid.Cid]bool
}

func (m *plainLRU) size() (size int64) {
	counted := map[string]bool{}
	for _, file := range m.order {
		for _, p := range m.bin.files[file] {
			if !counted[string(p.hash)] {
				counted[string(p.hash)] = true
				size += p.size
			}
		}
	}
	return size
}

func (m *plainLRU) use(file cid.Cid) {
	m.order = append(slices.DeleteFunc(m.order, func(f cid.Cid) bool { return f == file }), file)
}

func (m *plainLRU) trim() {
	if m.size() <= m.bound {
		return
	}
	for i := 0; i < len(m.order) && m.size() > m.bound-m.bound/16; {
		if file := m.order[i]; m.pinned[file] || m.busy[file] {
			i++
		} else {
			m.order = slices.Delete(m.order, i, i+1)
		}
	}
}

// TestCacheRandomly compares random uses, pins, long reads and restarts with a plain
// LRU: the same files are there, in the same order, and the same bytes count.
func TestCacheRandomly(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 11))
			b, files := binOf(rng, 40)
			model := &plainLRU{bin: b, bound: 900, pinned: map[cid.Cid]bool{}, busy: map[cid.Cid]bool{}}
			o := CacheOptions{FS: vfs.NewMem(), Bound: model.bound, Now: func() time.Time { return someday }}
			var c *Cache
			var p *Part
			open := func() {
				c = testCache(t, o)
				check(t, c.Stop()) // trims are ours
				p = c.Part("x", b, nil)
				p.attach(b.look, nil, func(cid.Cid) {})
			}
			open()
			evicted := 0
			for range 600 {
				file := files[rng.IntN(len(files))]
				switch name := npm.Name(fmt.Sprint("p", rng.IntN(4))); rng.IntN(12) {
				case 0:
					check(t, c.Pin(name, ""))
					old := c.pins[name].Files
					check(t, c.setFiles(c.pins[name], "x", []string{file.String()}))
					model.pinned[file] = true
					for _, text := range old {
						was, err := cid.Decode(text)
						check(t, err)
						model.pinned[was] = c.pinned[p.key(was)] > 0
					}
				case 1:
					for _, text := range c.pins[name].Files {
						was, err := cid.Decode(text)
						check(t, err)
						check(t, c.Unpin(name, ""))
						model.pinned[was] = c.pinned[p.key(was)] > 0
					}
				case 2:
					for busy := range model.busy {
						p.done(busy, true)
						delete(model.busy, busy)
						break
					}
				case 3:
					if !model.busy[file] && len(model.busy) < 3 {
						b.read(t, p, file)
						p.use(t.Context(), file, "bin")
						model.use(file)
						model.busy[file] = true
					}
				case 4:
					if len(model.busy) == 0 {
						check(t, c.Close())
						open()
					}
				default:
					b.read(t, p, file)
					model.use(file)
				}
				before := len(model.order)
				model.trim()
				evicted += before - len(model.order)
				check(t, c.trim(t.Context()))
				if s := c.Status(); s.Bytes != model.size() {
					t.Fatalf("%d bytes, want %d", s.Bytes, model.size())
				}
				var order []cid.Cid
				for row, err := range c.rows(c.db, []byte{timeSpace}, false) {
					check(t, err)
					file, err := cid.Cast(row[9+len("x\x00"):])
					check(t, err)
					order = append(order, file)
				}
				if !slices.Equal(order, model.order) {
					t.Fatalf("%d files, want %d", len(order), len(model.order))
				}
				counted := map[string]bool{}
				for _, file := range order {
					for _, piece := range b.files[file] {
						counted[string(piece.hash)] = true
					}
				}
				if len(counted) != len(b.held) {
					t.Fatalf("%d blocks are held, %d count", len(b.held), len(counted))
				}
			}
			if evicted == 0 {
				t.Error("nothing was evicted: the test tried nothing")
			}
		})
	}
}

// TestCachePowerCuts: power is cut between every two steps of reads and evictions.
// Afterwards a file leads to every block that is held; and after all were looked for
// once, the bytes that count are those that are held.
func TestCachePowerCuts(t *testing.T) {
	ctx := t.Context()
	steps := 0
	for cut := 0; cut == 0 || cut < steps; cut++ {
		for seed := range uint64(2) {
			rng := rand.New(rand.NewPCG(5, 5))
			b, files := binOf(rng, 30)
			disk := vfs.NewCrashableMem()
			o := CacheOptions{FS: disk, Bound: 600, Now: func() time.Time { return someday }}
			c := testCache(t, o)
			check(t, c.Stop())
			p := c.Part("x", b, nil)
			p.attach(b.look, nil, func(cid.Cid) {})
			n := 0
			var after *vfs.MemFS
			c.fault = func(string) error {
				if n++; n <= cut || cut == 0 && seed == 0 {
					return nil
				}
				if after == nil {
					cfg := vfs.CrashCloneCfg{}
					if seed > 0 {
						cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(seed, uint64(cut)))}
					}
					after = disk.CrashClone(cfg)
				}
				return errCut
			}
			for range 60 {
				b.read(t, p, files[rng.IntN(len(files))])
				if after == nil {
					if err := c.trim(ctx); err != nil && !errors.Is(err, errCut) {
						t.Fatal(err)
					}
				}
				if after != nil {
					break
				}
			}
			if cut == 0 && seed == 0 {
				if steps = n; steps < 30 {
					t.Fatalf("%d steps", steps)
				}
				continue
			}
			o.FS = after
			c = testCache(t, o)
			check(t, c.Stop())
			p = c.Part("x", b, nil)
			p.attach(b.look, nil, func(cid.Cid) {})
			led := map[string]bool{}
			for row, err := range c.rows(c.db, []byte{fileSpace}, false) {
				check(t, err)
				file, err := cid.Cast(row[1+len("x\x00"):])
				check(t, err)
				for _, piece := range b.files[file] {
					led[string(piece.hash)] = true
				}
			}
			for hash := range b.held {
				if !led[hash] {
					t.Fatalf("cut %d, seed %d: a block is held and no file leads to it", cut, seed)
				}
			}
			for row, err := range c.rows(c.db, []byte{fileSpace}, false) {
				check(t, err)
				key := string(row[1:])
				s, _, err := c.row(key)
				check(t, err)
				s.known = false
				batch := c.db.NewBatch()
				check(t, errors.Join(c.setRow(batch, key, s), batch.Commit(nil)))
			}
			check(t, c.recover(ctx))
			var size int64
			counted := map[string]bool{}
			for _, pieces := range b.files {
				for _, piece := range pieces {
					if b.held[string(piece.hash)] && !counted[string(piece.hash)] {
						counted[string(piece.hash)] = true
						size += piece.size
					}
				}
			}
			if got := c.Status().Bytes; got != size {
				t.Fatalf("cut %d, seed %d: %d bytes count, %d are held", cut, seed, got, size)
			}
			check(t, c.trim(ctx))
			if s := c.Status(); s.Bytes > s.Bound {
				t.Errorf("%+v", s)
			}
		}
	}
}

// TestCacheRefuses: what is not its own form stops the start, and a second owner is
// told so.
func TestCacheRefuses(t *testing.T) {
	disk := vfs.NewMem()
	c := testCache(t, CacheOptions{FS: disk})
	if _, err := OpenCache(CacheOptions{Dir: "cache", FS: disk}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second owner: %v", err)
	}
	for _, row := range [][2]string{{"v", "3"}, {"s", ""}, {"p", "{"}, {"t", "short"}} {
		key := row[0]
		if key == "p" {
			key = "pname"
		}
		check(t, c.db.Set([]byte(key), []byte(row[1]), nil))
		check(t, c.Close())
		if _, err := OpenCache(CacheOptions{Dir: "cache", FS: disk}); !errors.Is(err, ErrState) {
			t.Errorf("%q: %v", row, err)
		}
		disk = vfs.NewMem()
		c = testCache(t, CacheOptions{FS: disk})
	}
}

// A cache that an earlier version wrote is read on: what is pinned stays pinned, and what
// is above the bound goes.
func TestCacheOfFormat1(t *testing.T) {
	const size = 1500 << 10
	w, _ := cachedWorld(t, size)
	o := CacheOptions{FS: vfs.NewMem(), Bound: 4 * size, Now: func() time.Time { return w.now }}
	c := testCache(t, o)
	old := c.Part("node ", w.node, nil) // as it was
	m := w.synced(func(o *Options) { o.Cached = old })
	table, err := NewTable(Registry{Label: "npm", Mirror: m})
	check(t, err)
	for _, name := range []string{"a", "b"} {
		_, err := table.Pin(t.Context(), npm.Name(name), "")
		check(t, err)
	}
	check(t, table.Unpin("b", ""))
	quiet(t, c)
	before := c.Status()
	check(t, m.Close())
	check(t, c.db.Set([]byte{formatRow}, []byte("1"), nil))
	check(t, c.Close())

	o.Bound = size + size/2
	c = testCache(t, o)
	m = w.open(func(o *Options) { o.Cached = c.Part("node", w.node, nil) })
	if pins := c.Pins(); len(pins) != 1 || pins[0].Part != "node" || len(pins[0].Files) == 0 {
		t.Errorf("pinned: %+v", pins)
	}
	if now := c.Status(); now.Bytes != before.Bytes && now.Bytes > o.Bound {
		t.Errorf("%+v, before %+v", now, before)
	}
	c.trimSoon()
	quiet(t, c)
	for name, stays := range map[string]bool{"a": true, "b": false} {
		if _, whole := m.pieces(t.Context(), w.files[name+"-1.0.0.tgz"]); whole != stays {
			t.Errorf("%s is whole: %t", name, whole)
		}
	}
	for row, err := range c.rows(c.db, []byte{fileSpace}, false) {
		check(t, err)
		if !strings.HasPrefix(string(row[1:]), "node\x00") {
			t.Errorf("row %q", row)
		}
	}
}
