package publish

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/routing/http/server"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/route"
)

// delegated is a delegated routing server, boxo's, that keeps the last record put.
type delegated struct {
	server.DelegatedRouter // nil: nothing else is asked for
	*httptest.Server

	mu      sync.Mutex
	records map[string]*ipns.Record
	down    bool
}

func newDelegated(t *testing.T) *delegated {
	d := &delegated{records: map[string]*ipns.Record{}}
	api := server.Handler(d)
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		down := d.down
		d.mu.Unlock()
		if down {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		api.ServeHTTP(w, r)
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *delegated) GetIPNS(_ context.Context, name ipns.Name) (*ipns.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.records[name.String()]; r != nil {
		return r, nil
	}
	return nil, routing.ErrNotFound
}

func (d *delegated) PutIPNS(_ context.Context, name ipns.Name, record *ipns.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records[name.String()] = record
	return nil
}

func (d *delegated) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// hold has the server keep a record that someone else put.
func (d *delegated) hold(t *testing.T, name ipns.Name, raw []byte) {
	t.Helper()
	r, err := ipns.UnmarshalRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	d.set(func() { d.records[name.String()] = r })
}

// routed starts a publisher with these routes.
func routed(t *testing.T, w *world, routes ...string) (*Publisher, func()) {
	t.Helper()
	return w.start(func(o *Options) {
		for _, s := range routes {
			r, err := route.Parse(s, nil)
			if err != nil {
				t.Fatal(err)
			}
			o.Routes = append(o.Routes, r)
		}
	})
}

// TestRoutes puts a record to the node, to a delegated router and into a web server's
// directory, and has each give it back; one after the other out of order, what the
// others have counts, and the next run makes up for it.
func TestRoutes(t *testing.T) {
	w := newWorld(t)
	router, dir := newDelegated(t), t.TempDir()
	p, stop := routed(t, w, router.URL, dir)
	defer stop()
	first := w.publish(p)
	want := []Route{{Name: "node", ReadBack: true, Via: "gateway"}, {Name: router.URL, ReadBack: true, Via: "http"}, {Name: dir, ReadBack: true, Via: "file"}}
	if len(first.Routes) != 3 || first.Routes[0] != want[0] || first.Routes[1] != want[1] || first.Routes[2] != want[2] {
		t.Errorf("routes: %+v", first.Routes)
	}
	name := first.Name
	path := filepath.Join(dir, "routing", "v1", "ipns", name.String())
	if raw, err := os.ReadFile(path); err != nil || string(raw) != string(w.best().Raw) {
		t.Errorf("in the directory: %d bytes, %v", len(raw), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("in the directory: %v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("in the directory: %v, %v", left, err)
	}

	router.set(func() { router.down = true })
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	second, err := p.Publish(t.Context())
	if !errors.Is(err, ErrUnconfirmed) || !strings.Contains(err.Error(), router.URL) {
		t.Errorf("one route away: %v", err)
	}
	if r := second.Routes; len(r) != 3 || !r[0].ReadBack || r[1].ReadBack || r[1].Put == "" || r[1].Error == "" || !r[2].ReadBack {
		t.Errorf("one route away: %+v", r)
	}
	if got := w.ops(); !strings.HasSuffix(got, "intent record confirmed") {
		t.Errorf("journal: %s", got)
	}
	s, err := p.Status(t.Context())
	if err != nil || s.Problem != nil || len(s.Routes) != 3 || s.Routes[1].Error == nil || s.Routes[2].Record.Sequence != second.Sequence {
		t.Errorf("status: %+v, %v", s, err)
	}

	router.set(func() { router.down = false })
	again := w.publish(p)
	if again.Signed || again.Sequence != second.Sequence || !again.Routes[1].ReadBack {
		t.Errorf("again: %+v", again)
	}
}

// TestRouteKnowsMore: a sequence counts wherever it is read.
func TestRouteKnowsMore(t *testing.T) {
	w := newWorld(t)
	router := newDelegated(t)
	p, stop := routed(t, w, router.URL)
	defer stop()
	first := w.publish(p)
	far := w.clock.Now().Add(24 * time.Hour)

	router.hold(t, first.Name, sign(t, testSigner(t, 1), w.emptyDir(), first.Sequence+5, far))
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer record on a route: %v", err)
	}
	router.hold(t, first.Name, sign(t, testSigner(t, 1), w.emptyDir(), first.Sequence, far))
	if _, err := p.Publish(t.Context()); !errors.Is(err, ipnsrecord.ErrEquivocation) {
		t.Errorf("another value under our sequence on a route: %v", err)
	}
	stop()

	// The journal is lost and the node has forgotten: the route says what was last.
	lost := newWorld(t)
	if err := lost.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	router.hold(t, first.Name, sign(t, testSigner(t, 1), w.emptyDir(), 41, far))
	p, stop = routed(t, lost, router.URL)
	defer stop()
	if got := lost.publish(p); got.Sequence != 42 {
		t.Errorf("sequence %d after the route's 41", got.Sequence)
	}
	stop()
	if err := lost.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	// The node has a record, but the route may have a newer one.
	router.set(func() { router.down = true })
	p, stop = routed(t, lost, router.URL)
	defer stop()
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNoSequence) {
		t.Errorf("no journal, and a route that cannot be read: %v", err)
	}
}
