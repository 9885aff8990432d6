package mirror

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

const leftPad = "/left-pad/-/left-pad-1.3.0.tgz"

// bigWorld has a tarball of several blocks for left-pad 1.3.0, and its packument
// says so.
func bigWorld(t *testing.T) (*world, []byte) {
	w := newWorld(t)
	data := make([]byte, 3<<20+12345)
	for i, r := 0, rand.New(rand.NewPCG(7, 7)); i < len(data); i++ {
		data[i] = byte(r.Uint32())
	}
	sri, old := (npm.Integrity{}).NewVerifier(), (npm.Integrity{}).NewVerifier()
	sri.Write(data)
	old.Write(w.registry.Tarball("left-pad", "1.3.0"))
	w.registry.Edit("left-pad", func(doc []byte) []byte {
		doc = bytes.ReplaceAll(doc, []byte(old.SRI()), []byte(sri.SRI()))
		return bytes.ReplaceAll(doc, []byte(old.Shasum()), []byte(sri.Shasum()))
	})
	w.big["left-pad-1.3.0.tgz"] = data
	return w, data
}

func TestBigTarball(t *testing.T) {
	w, data := bigWorld(t)
	w.publish("left-pad")
	m := w.synced()
	server := httptest.NewServer(m.Handler())
	t.Cleanup(server.Close)
	for i := range 2 {
		resp, err := http.Get(server.URL + leftPad)
		check(t, err)
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		resp.Body.Close()
		if !bytes.Equal(body, data) || resp.ContentLength != int64(len(data)) || resp.Header.Get("ETag") == "" {
			t.Errorf("read %d: %d bytes, Content-Length %d", i, len(body), resp.ContentLength)
		}
	}
	by := m.Status(t.Context()).BytesBySource.Tarballs
	if by.Bitswap != int64(len(data)) || by.Cache != int64(len(data)) || by.CAR+by.Upstream != 0 {
		t.Errorf("first from peers, then held: %+v, want %d each", by, len(data))
	}
}

// TestReadAgain reads a tarball until its blocks are in memory, and then without
// any source. A tarball that was read once is not kept.
func TestReadAgain(t *testing.T) {
	w, data := bigWorld(t)
	w.publish("left-pad")
	m := w.synced()
	leaves := func() int64 {
		m.leaves.mu.Lock()
		defer m.leaves.mu.Unlock()
		return m.leaves.used
	}
	for i, kept := range []bool{false, true, true} {
		if i == 2 {
			w.lose(slices.Collect(maps.Keys(w.blocks))...)
		}
		got := get(m, leftPad)
		if got.Code != http.StatusOK || !bytes.Equal(got.Body.Bytes(), data) {
			t.Errorf("read %d: %d, %d bytes", i, got.Code, got.Body.Len())
		}
		if (leaves() >= 3<<20) != kept {
			t.Errorf("read %d: %d bytes of it in memory", i, leaves())
		}
	}
	for _, h := range []string{"Range: bytes=10-19", "If-Match: \"other\""} {
		if got := get(m, leftPad, h); got.Code == http.StatusOK {
			t.Errorf("%s: the whole was sent", h)
		}
	}
}

func TestRanges(t *testing.T) {
	w, data := bigWorld(t)
	w.publish("left-pad")
	m := w.synced()
	// Not checked yet: the whole, so that it can be.
	if got := get(m, leftPad, "Range: bytes=5-9"); got.Code != http.StatusOK || !bytes.Equal(got.Body.Bytes(), data) {
		t.Errorf("range of unchecked content: %d, %d bytes", got.Code, got.Body.Len())
	}
	got := get(m, leftPad, "Range: bytes=2000000-2000099")
	if got.Code != http.StatusPartialContent || !bytes.Equal(got.Body.Bytes(), data[2000000:2000100]) {
		t.Errorf("range: %d, %d bytes", got.Code, got.Body.Len())
	}
	if got := get(m, leftPad, "Range: bytes=99999999-"); got.Code != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("range beyond the end: %d", got.Code)
	}
	etag := get(m, leftPad).Header().Get("ETag")
	if got := get(m, leftPad, "If-None-Match: "+etag); got.Code != http.StatusNotModified {
		t.Errorf("If-None-Match: %d", got.Code)
	}
	head := do(m, "HEAD", leftPad, nil)
	if head.Code != 200 || head.Header().Get("Content-Length") != strconv.Itoa(len(data)) || head.Body.Len() > 0 {
		t.Errorf("HEAD: %d %v", head.Code, head.Header())
	}
	if got := get(m, leftPad, "Accept-Encoding: gzip"); got.Header().Get("Content-Encoding") != "" {
		t.Error("a tarball was encoded")
	}
}

// Bytes that are not what the packument says never arrive whole, on the first
// read, on the next, and after a restart.
func TestIntegrity(t *testing.T) {
	w, data := bigWorld(t)
	w.big["left-pad-1.3.0.tgz"] = append(slices.Clone(data[:len(data)-1]), data[len(data)-1]^1)
	w.big["is-odd-3.0.1.tgz"] = []byte("not what was published")
	w.publish("left-pad", "is-odd")
	fs := vfs.NewMem()
	for start := range 2 {
		m := w.synced(func(o *Options) { o.FS = fs })
		server := httptest.NewServer(m.Handler())
		for range 2 {
			resp, err := http.Get(server.URL + leftPad)
			check(t, err)
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil || len(body) >= len(data) {
				t.Errorf("start %d: %d of %d bytes, error %v", start, len(body), len(data), err)
			}
			// A small one is refused with the cause.
			got := get(m, "/is-odd/-/is-odd-3.0.1.tgz")
			if got.Code != http.StatusForbidden || !strings.Contains(got.Body.String(), "integrity") {
				t.Errorf("start %d: %d %s", start, got.Code, got.Body)
			}
		}
		if got := m.Status(t.Context()).IntegrityFailures; got != 4 {
			t.Errorf("start %d: %d failures counted, want 4", start, got)
		}
		server.Close()
		check(t, m.Close())
	}
}

// A tarball that no version names cannot be checked, and is not served.
func TestUnnamedTarball(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	w.registry.Edit("left-pad", func(doc []byte) []byte {
		return bytes.ReplaceAll(doc, []byte("left-pad-1.3.0.tgz"), []byte("left-pad-9.9.9.tgz"))
	})
	w.big["left-pad-9.9.9.tgz"] = []byte("anything")
	w.publish("left-pad")
	m := w.synced()
	if got := get(m, "/left-pad/-/left-pad-9.9.9.tgz"); got.Code != http.StatusForbidden {
		t.Errorf("renamed and of other bytes: %d, want 403", got.Code)
	}
}

// After a restart a tarball is checked again, by the mark and without its
// packument.
func TestMarkSparesThePackument(t *testing.T) {
	w, data := bigWorld(t)
	w.publish("left-pad")
	fs := vfs.NewMem()
	m := w.synced(func(o *Options) { o.FS = fs })
	if got := get(m, leftPad); got.Code != 200 {
		t.Fatal(got.Code)
	}
	check(t, m.Close())
	m = w.open(func(o *Options) { o.FS = fs })
	for c := range w.node.held {
		if c != w.files["left-pad-1.3.0.tgz"] && w.isDocument(t, c) {
			w.lose(c)
		}
	}
	if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), data) {
		t.Errorf("after a restart: %d", got.Code)
	}
	if got := m.Status(t.Context()).BytesBySource.Documents; got != (Bytes{}) {
		t.Errorf("documents were read: %+v", got)
	}
}

func (w *world) isDocument(t *testing.T, c cid.Cid) bool {
	for _, doc := range w.docs {
		if c == doc {
			return true
		}
	}
	return false
}

// Gateways alone, no node: everything comes as CAR, and is held afterwards.
func TestGatewaysOnly(t *testing.T) {
	w, data := bigWorld(t)
	w.publish(everything...)
	fs := vfs.NewMem()
	gateways := []Gateway{&fakeGateway{w: w, hang: true}, &fakeGateway{w: w}}
	options := func(o *Options) { o.FS, o.Node, o.Gateways = fs, nil, gateways[1:] }
	m := w.synced(options)
	if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), data) {
		t.Fatalf("tarball by CAR: %d", got.Code)
	}
	by := m.Status(t.Context()).BytesBySource
	if by.Tarballs.CAR != int64(len(data)) || by.Tarballs.Bitswap+by.Tarballs.Upstream != 0 || by.Documents.CAR == 0 {
		t.Errorf("%+v, want %d by CAR", by, len(data))
	}
	// One request for the whole tarball, one for the document.
	if n := gateways[1].(*fakeGateway).fetches; n != 2 {
		t.Errorf("%d CARs asked for, want 2", n)
	}
	if got := get(m, "/left-pad"); got.Code != 200 {
		t.Fatalf("packument: %d", got.Code)
	}
	check(t, m.Close())

	for c := range w.blocks {
		w.lose(c)
	}
	m = w.open(options)
	if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), data) {
		t.Errorf("tarball after a restart without sources: %d", got.Code)
	}
	if got := get(m, "/left-pad"); got.Code != 200 {
		t.Errorf("packument after a restart without sources: %d", got.Code)
	}
	// The store is not trusted: a block that rotted is a miss.
	check(t, m.db.Set(append([]byte{blockKey}, w.docs["left-pad"].Hash()...), []byte("rot"), nil))
	if _, err := m.held(t.Context(), w.docs["left-pad"]); err == nil {
		t.Error("rotten block handed out")
	}
}

// Peers that do not answer never keep a gateway from answering.
func TestHedge(t *testing.T) {
	w, data := bigWorld(t)
	w.publish("left-pad")
	w.node.hang = true
	m := w.synced(func(o *Options) { o.Hedge, o.Gateways = time.Millisecond, []Gateway{&fakeGateway{w: w}} })
	if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), data) {
		t.Fatalf("%d", got.Code)
	}
	if by := m.Status(t.Context()).BytesBySource.Tarballs; by.CAR != int64(len(data)) || by.Bitswap != 0 {
		t.Errorf("%+v", by)
	}
}

// What nobody provides is said within the deadline, and the list is still served.
func TestNobodyProvides(t *testing.T) {
	for _, tt := range []struct {
		name   string
		hang   bool
		status int
	}{{"peers lack it", false, http.StatusNotFound}, {"peers hang", true, http.StatusServiceUnavailable}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.publish(everything...)
			m := w.synced(func(o *Options) { o.Deadline = 60 * time.Millisecond })
			get(m, "/is-odd")
			w.lose(w.files["left-pad-1.3.0.tgz"], w.docs["left-pad"])
			w.node.hang = tt.hang
			for _, path := range []string{leftPad, "/left-pad"} {
				got := get(m, path)
				if got.Code != tt.status || (got.Header().Get("Retry-After") != "") != tt.hang || !strings.Contains(got.Body.String(), `"error"`) {
					t.Errorf("%s: %d %s", path, got.Code, got.Body)
				}
			}
			if got := get(m, "/is-odd"); got.Code != 200 {
				t.Errorf("what is held: %d", got.Code)
			}
			if s := m.Status(t.Context()); s.Unavailable != 2 || !strings.HasPrefix(s.LastUnavailable, "/left-pad: ") {
				t.Errorf("status: %d, %q", s.Unavailable, s.LastUnavailable)
			}
		})
	}
}

// Many clients, one fetch.
func TestOneFetchForAll(t *testing.T) {
	w, data := bigWorld(t)
	w.publish("left-pad")
	m := w.synced()
	gate := make(chan struct{})
	w.node.gate = gate
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), data) {
				t.Errorf("%d", got.Code)
			}
		})
	}
	close(gate)
	wg.Wait()
	for c, n := range w.node.gets {
		if n != 1 {
			t.Errorf("block %s was fetched %d times", c, n)
		}
	}
}

// fakeOrigin is an upstream registry of which the node gets what it fetches.
type fakeOrigin struct {
	w        *world
	down     atomic.Bool
	tarballs atomic.Int64
	other    []byte // where not nil, every tarball
}

var errDown = errors.New("upstream is down")

func (o *fakeOrigin) Packument(_ context.Context, name npm.Name) ([]byte, error) {
	if o.down.Load() {
		return nil, errDown
	}
	resp, err := http.Get(o.w.registry.URL + "/" + name.Escape())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, fs.ErrNotExist
	}
	return io.ReadAll(resp.Body)
}

func (o *fakeOrigin) Tarball(ctx context.Context, name npm.Name, file string) (cid.Cid, error) {
	if o.down.Load() {
		return cid.Undef, errDown
	}
	o.tarballs.Add(1)
	data := o.other
	if data == nil {
		resp, err := http.Get(o.w.registry.URL + tarballPath(string(name), file))
		if err != nil {
			return cid.Undef, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return cid.Undef, fs.ErrNotExist
		}
		if data, err = io.ReadAll(resp.Body); err != nil {
			return cid.Undef, err
		}
	}
	ref, err := unixfs.AddFile(bytes.NewReader(data), o.w.sink)
	if err != nil {
		return cid.Undef, err
	}
	_, err = o.w.node.Find(ctx, ref.CID)
	return ref.CID, err
}

func TestPullThrough(t *testing.T) {
	w := newWorld(t)
	origin := &fakeOrigin{w: w}
	m := w.open(func(o *Options) { o.Origin = origin })
	// Nothing synced, nothing listed: all comes from upstream.
	for _, header := range []string{"Accept: application/json", corgi} {
		got := get(m, "/is-odd", header)
		p, err := npm.ParsePackument(got.Body.Bytes())
		if got.Code != 200 || err != nil || p.Versions["3.0.1"].Dist.Tarball != "http://127.0.0.1:4873/is-odd/-/is-odd-3.0.1.tgz" {
			t.Errorf("unlisted packument: %d %v %s", got.Code, err, got.Body)
		}
	}
	want := w.registry.Tarball("is-odd", "3.0.1")
	for range 2 {
		if got := get(m, "/is-odd/-/is-odd-3.0.1.tgz"); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), want) {
			t.Errorf("unlisted tarball: %d", got.Code)
		}
	}
	if by := m.Status(t.Context()).BytesBySource.Tarballs; by.Upstream != int64(len(want)) {
		t.Errorf("%+v, want %d from upstream", by, len(want))
	}
	for _, path := range []string{"/no-such", "/no-such/-/no-such-1.0.0.tgz", "/is-odd/-/is-odd-9.0.0.tgz"} {
		if got := get(m, path); got.Code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, got.Code)
		}
	}

	// A listed name is answered with upstream's newest word; when upstream is
	// away, with the list's.
	w.publish("left-pad")
	check(t, m.Sync(t.Context()))
	w.registry.Publish("-- left-pad@2.0.0/package.json --\n{\"name\":\"left-pad\",\"version\":\"2.0.0\"}\n")
	if got := get(m, "/left-pad/2.0.0"); got.Code != 200 {
		t.Errorf("fresh version: %d", got.Code)
	}
	if got := get(m, "/left-pad/-/left-pad-2.0.0.tgz"); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), w.registry.Tarball("left-pad", "2.0.0")) {
		t.Errorf("tarball of the fresh version: %d", got.Code)
	}
	before := origin.tarballs.Load()
	if got := get(m, leftPad); got.Code != 200 || origin.tarballs.Load() != before {
		t.Errorf("listed tarball: %d, upstream asked %d times", got.Code, origin.tarballs.Load()-before)
	}
	origin.down.Store(true)
	w.now = w.now.Add(time.Minute)
	if got := get(m, "/left-pad/latest"); got.Code != 200 || !strings.Contains(got.Body.String(), `"1.3.0"`) {
		t.Errorf("listed, upstream away: %d %s", got.Code, got.Body)
	}
	if got := get(m, "/@types/node"); got.Code != http.StatusServiceUnavailable {
		t.Errorf("unlisted, upstream away: %d, want 503", got.Code)
	}
}

// What is withheld is not served around the list: neither a package that is not in it,
// nor a version that upstream has of one that is. All else is pulled through as ever.
func TestPullThroughWithheld(t *testing.T) {
	w := newWorld(t)
	origin := &fakeOrigin{w: w}
	withheld := map[npm.Name]string{"left-pad": "rolled-back (as in release 1)", "is-odd": "rolled-back (not in release 1)"}
	var broken error
	m := w.open(func(o *Options) {
		o.Origin = origin
		o.Withheld = func(name npm.Name) (string, error) { return withheld[name], broken }
	})
	w.publish("left-pad")
	check(t, m.Sync(t.Context()))
	w.registry.Publish("-- left-pad@2.0.0/package.json --\n{\"name\":\"left-pad\",\"version\":\"2.0.0\"}\n")
	for _, path := range []string{"/is-odd", "/is-odd/3.0.1", "/-/package/is-odd/dist-tags", "/is-odd/-/is-odd-3.0.1.tgz", "/left-pad/2.0.0", "/left-pad/-/left-pad-2.0.0.tgz"} {
		got := get(m, path)
		if got.Code != http.StatusNotFound || !strings.Contains(got.Body.String(), "is withheld: rolled-back (") {
			t.Errorf("%s: %d %s, want 404 and why", path, got.Code, got.Body)
		}
	}
	if n := origin.tarballs.Load(); n != 0 {
		t.Errorf("%d tarballs of what is withheld were fetched", n)
	}
	for _, header := range []string{"Accept: application/json", corgi} {
		p, err := npm.ParsePackument(get(m, "/left-pad", header).Body.Bytes())
		if err != nil || len(p.Versions) != 2 || p.Versions["2.0.0"] != nil {
			t.Errorf("what is listed: %v, %d versions", err, len(p.Versions))
		}
	}
	for _, path := range []string{leftPad, "/@types/node", "/@types/node/-/node-20.0.0.tgz"} {
		if got := get(m, path); got.Code != http.StatusOK {
			t.Errorf("%s: %d %s, want 200", path, got.Code, got.Body)
		}
	}

	// Where it cannot be told what is withheld, nothing is pulled through.
	broken = errors.New("what is withheld cannot be read")
	for _, path := range []string{"/is-odd", "/is-odd/-/is-odd-3.0.1.tgz", "/left-pad/2.0.0"} {
		if got := get(m, path); got.Code != http.StatusInternalServerError {
			t.Errorf("%s: %d, want 500", path, got.Code)
		}
	}

	// It ended: upstream's word holds again.
	broken, withheld = nil, nil
	for _, path := range []string{"/is-odd", "/is-odd/-/is-odd-3.0.1.tgz", "/left-pad/2.0.0"} {
		if got := get(m, path); got.Code != http.StatusOK {
			t.Errorf("%s: %d %s, want 200", path, got.Code, got.Body)
		}
	}
}

// A listed tarball that nobody provides comes from upstream, if it has the very
// same bytes.
func TestRescue(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	origin := &fakeOrigin{w: w}
	m := w.synced(func(o *Options) { o.Origin, o.Deadline = origin, 300*time.Millisecond })
	get(m, "/left-pad/-/left-pad-1.0.0.tgz")
	file := w.files["left-pad-1.3.0.tgz"]
	w.lose(file)
	origin.other = []byte("a version with new bytes")
	if got := get(m, leftPad); got.Code != http.StatusServiceUnavailable {
		t.Errorf("upstream has other bytes: %d, want 503", got.Code)
	}
	origin.other = nil
	want := w.registry.Tarball("left-pad", "1.3.0")
	if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), want) {
		t.Errorf("rescued: %d", got.Code)
	}
	if by := m.Status(t.Context()).BytesBySource.Tarballs; by.Upstream != int64(len(want)) {
		t.Errorf("%+v, want %d from upstream", by, len(want))
	}
}
