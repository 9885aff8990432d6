package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/ipfs/boxo/ipns"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func TestSyncFollowsReleases(t *testing.T) {
	w := newWorld(t)
	w.peers = []string{"/ip4/127.0.0.1/tcp/4001/p2p/a", "/ip4/127.0.0.1/tcp/4001/p2p/b"}
	m := w.open()
	if got := get(m, "/left-pad"); got.Code != http.StatusServiceUnavailable || got.Header().Get("Retry-After") == "" {
		t.Errorf("before the first sync: %d, Retry-After %q; want 503 with one", got.Code, got.Header().Get("Retry-After"))
	}
	if err := m.Sync(t.Context()); !errors.Is(err, ErrNoRecord) {
		t.Errorf("Sync without a record: %v, want ErrNoRecord", err)
	}
	w.publish("left-pad", "@types/node")
	check(t, m.Sync(t.Context()))
	if got, want := listedNames(t, m), []string{"@types/node", "left-pad"}; !slices.Equal(got, want) {
		t.Errorf("list %q, want %q", got, want)
	}
	w.publish("@types/node", "is-odd")
	check(t, m.Sync(t.Context()))
	if got, want := listedNames(t, m), []string{"@types/node", "is-odd"}; !slices.Equal(got, want) {
		t.Errorf("list %q, want %q", got, want)
	}
	if code := get(m, "/left-pad").Code; code != http.StatusNotFound {
		t.Errorf("a name no longer listed: %d, want 404", code)
	}
	s := m.Status(t.Context())
	if s.Release.Number != 2 || s.Release.Packages != 2 || s.Record.Sequence != 2 || s.Stale || s.Error != "" || s.Release.Root != w.release.String() {
		t.Errorf("status %+v", s)
	}
	m.Close() // waits for the dialling
	slices.Sort(w.node.dialled)
	if got := slices.Compact(w.node.dialled); !slices.Equal(got, w.peers) {
		t.Errorf("dialled %q, want %q", got, w.peers)
	}
}

// What a release shows to bare gateways is none of a mirror's business: it
// follows the list beside it, and only where the release's own word fits.
func TestSyncFollowsTheList(t *testing.T) {
	w := newWorld(t)
	w.shown = []string{"is-odd"}
	w.publish("left-pad", "@types/node")
	m := w.synced()
	listed := func() {
		t.Helper()
		if got, want := listedNames(t, m), []string{"@types/node", "left-pad"}; !slices.Equal(got, want) {
			t.Errorf("list %q, want %q", got, want)
		}
		for _, name := range []npm.Name{"left-pad", "@types/node"} {
			if dir, ok, err := m.entry(name); err != nil || !ok || dir != w.dirs[string(name)] {
				t.Errorf("%s: directory %s, %v, %v; want %s", name, dir, ok, err, w.dirs[string(name)])
			}
		}
		if code := get(m, "/is-odd").Code; code != http.StatusNotFound {
			t.Errorf("a name that only gateways are shown: %d, want 404", code)
		}
	}
	listed()

	// Another origin of the gateway: another release of the same list.
	before := m.head.Load()
	w.page = "elsewhere"
	w.publish("left-pad", "@types/node")
	check(t, m.Sync(t.Context()))
	after := m.head.Load()
	if after.Release.Root == before.Release.Root || after.Release.Number != 2 || after.Release.List != before.Release.List {
		t.Errorf("release %d %s of %v; want the list %v", after.Release.Number, after.Release.Root, after.Release.List, before.Release.List)
	}
	listed()

	w.astray = true
	w.publish("left-pad", "@types/node")
	if err := m.Sync(t.Context()); !errors.Is(err, index.ErrRelease) {
		t.Errorf("another list beside release.json: %v", err)
	}
	listed()
}

// What was synced is served at the next start with nobody to ask.
func TestRestartOffline(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	fs := vfs.NewMem()
	m := w.synced(func(o *Options) { o.FS = fs })
	want := get(m, "/left-pad").Body.String()
	record := m.Record()
	check(t, m.Close())

	w.node.alone = true
	w.now = w.now.Add(365 * 24 * time.Hour)
	m = w.open(func(o *Options) { o.FS = fs })
	got := get(m, "/left-pad")
	if got.Code != http.StatusOK || got.Body.String() != want {
		t.Errorf("after a restart offline: %d", got.Code)
	}
	if s := m.Status(t.Context()); !s.Stale || s.Release.Number != 1 {
		t.Errorf("status %+v, want release 1, stale", s)
	}
	if string(m.Record()) != string(record) {
		t.Error("the record was not kept")
	}
	if err := m.Sync(t.Context()); !errors.Is(err, ErrNoRecord) {
		t.Errorf("Sync offline: %v, want ErrNoRecord", err)
	}
}

// Each of these must leave the list as it was, now and after a restart whose
// cache is gone.
func TestRefusedRecords(t *testing.T) {
	for _, tt := range []struct {
		name     string
		lie      func(w *world)
		want     error
		evidence int
	}{
		{"rollback of the record", func(w *world) {
			w.setRecord(w.sign(w.build("is-odd"), 4))
		}, ipnsrecord.ErrRollback, 0},
		{"second value under one sequence", func(w *world) {
			w.setRecord(w.sign(w.build("is-odd"), 5))
		}, ipnsrecord.ErrEquivocation, 1},
		{"rollback of the release number", func(w *world) {
			w.number = 1
			w.setRecord(w.sign(w.build("is-odd"), 6))
		}, ipnsrecord.ErrRollback, 0},
		{"second release under one number", func(w *world) {
			w.number--
			w.setRecord(w.sign(w.build("is-odd"), 6))
		}, ipnsrecord.ErrEquivocation, 1},
		{"another successor", func(w *world) {
			w.next = "somebody else"
			w.setRecord(w.sign(w.build("is-odd"), 6))
		}, ipnsrecord.ErrSuccessor, 1},
		{"expired", func(w *world) {
			w.setRecord(w.signUntil(w.build("is-odd"), 6, w.now.Add(-time.Second)))
		}, ipnsrecord.ErrExpired, 0},
		{"foreign key", func(w *world) {
			other := newWorld(t)
			w.setRecord(other.sign(w.build("is-odd"), 6))
		}, ipnsrecord.ErrSignature, 0},
		{"sequence out of bounds", func(w *world) {
			w.setRecord(w.sign(w.build("is-odd"), 1<<63))
		}, ipnsrecord.ErrSequence, 0},
		{"rubbish", func(w *world) { w.setRecord([]byte("rubbish")) }, ipnsrecord.ErrMalformed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.seq, w.number, w.next = 4, 7, "the successor"
			w.publish("left-pad")
			fs := vfs.NewMem()
			m := w.synced(func(o *Options) { o.FS = fs })
			good := w.record
			tt.lie(w)
			for range 2 { // evidence is kept once
				if err := m.Sync(t.Context()); !errors.Is(err, tt.want) {
					t.Fatalf("Sync: %v, want %v", err, tt.want)
				}
			}
			if got := listedNames(t, m); !slices.Equal(got, []string{"left-pad"}) {
				t.Errorf("list %q, want left-pad", got)
			}
			check(t, m.Close())
			files, _ := fs.List("mirror/evidence")
			if len(files) != tt.evidence {
				t.Errorf("evidence %q, want %d file", files, tt.evidence)
			}
			check(t, errors.Join(fs.RemoveAll("mirror/list"), fs.RemoveAll("mirror/index")))
			m = w.open(func(o *Options) { o.FS = fs })
			if err := m.Sync(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("Sync after the cache is gone: %v, want %v", err, tt.want)
			}
			if got := listedNames(t, m); got != nil {
				t.Errorf("list %q, want none", got)
			}
			if high := m.high.Load(); high.Sequence == 5 {
				w.setRecord(good)
				check(t, m.Sync(t.Context()))
			}
		})
	}
}

// Evidence holds both records, so that another can judge them.
func TestEvidence(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	first := w.record
	fs := vfs.NewMem()
	m := w.synced(func(o *Options) { o.FS = fs })
	second := w.sign(w.build("is-odd"), 1)
	w.setRecord(second)
	if err := m.Sync(t.Context()); !errors.Is(err, ipnsrecord.ErrEquivocation) {
		t.Fatalf("Sync: %v", err)
	}
	files, err := fs.List("mirror/evidence")
	check(t, err)
	f, err := fs.Open("mirror/evidence/" + files[0])
	check(t, err)
	defer f.Close()
	raw, err := io.ReadAll(f)
	check(t, err)
	var e struct{ Held, Seen []byte }
	check(t, json.Unmarshal(raw, &e))
	if string(e.Held) != string(first) || string(e.Seen) != string(second) {
		t.Error("the evidence does not hold the two records")
	}
	if got := m.Status(t.Context()).Equivocations; got != 1 {
		t.Errorf("equivocations %d, want 1", got)
	}
}

// The newest record wins, whatever the other routes say.
func TestRoutes(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	old := w.record
	w.publish("is-odd")
	gateways := []Gateway{
		&fakeGateway{w: w, record: old},
		&fakeGateway{w: w, record: []byte("rubbish")},
		&fakeGateway{w: w, hang: true},
	}
	m := w.synced(func(o *Options) { o.Gateways = gateways })
	if got := listedNames(t, m); !slices.Equal(got, []string{"is-odd"}) {
		t.Errorf("list %q, want is-odd", got)
	}
}

// A list of which a part is missing is no list.
func TestNeverHalfAList(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	m := w.synced(func(o *Options) { o.Deadline = 50 * time.Millisecond })
	w.publish("left-pad", "is-odd", "@types/node")
	scope := w.scopeDir(t, "@types")
	lost := w.blocks[scope]
	w.lose(scope)
	if err := m.Sync(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("Sync: %v, want ErrUnavailable", err)
	}
	if got := listedNames(t, m); !slices.Equal(got, []string{"left-pad"}) {
		t.Errorf("list %q, want the one before", got)
	}
	if s := m.Status(t.Context()); s.Release.Number != 1 || s.Error == "" || s.Record.Sequence != 2 {
		t.Errorf("status %+v, want release 1, sequence 2 and an error", s)
	}
	check(t, w.sink(lost))
	check(t, m.Sync(t.Context()))
	if got := listedNames(t, m); len(got) != 3 {
		t.Errorf("list %q, want all three", got)
	}
}

// The power fails before every operation on the file system that a sync makes:
// what comes up is one of the two lists, whole, never an older one than was
// acknowledged, with a high-water mark that is not behind it.
func TestPowerCuts(t *testing.T) {
	w := newWorld(t)
	type release struct {
		names  []string
		record []byte
	}
	var releases []release
	for i := range 6 {
		names := everything[:1+i%3]
		w.publish(names...)
		releases = append(releases, release{slices.Sorted(slices.Values(names)), w.record})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	base := vfs.NewCrashableMem()
	var cuts []*vfs.MemFS
	var mu sync.Mutex
	m := w.open(func(o *Options) {
		o.FS = errorfs.Wrap(base, errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				cuts = append(cuts, base.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng}))
			}
			return nil
		}))
	})
	searched := func(m *Mirror, names []string) {
		t.Helper()
		hits, err := m.Search(t.Context(), "", 0, len(everything))
		check(t, err)
		var found []string
		for _, h := range hits.Hits {
			found = append(found, string(h.Name))
		}
		if slices.Sort(found); !slices.Equal(found, names) || hits.Total != len(names) {
			t.Fatalf("a search finds %q of %d, want %q", found, hits.Total, names)
		}
	}
	for i, r := range releases {
		mu.Lock()
		cuts = nil
		mu.Unlock()
		if i > 0 && i != 3 { // then its names follow the list
			searched(m, releases[i-1].names)
		}
		w.setRecord(r.record)
		check(t, m.Sync(t.Context()))
		mu.Lock()
		during := slices.Clone(cuts) // Pebble goes on in the background
		mu.Unlock()
		if len(during) < 5 {
			t.Fatalf("sync %d: %d operations seen; the cuts do not reach it", i, len(during))
		}
		after := base.CrashClone(vfs.CrashCloneCfg{})
		for j, clone := range append(during, after) {
			acknowledged := i - 1
			if clone == after {
				acknowledged = i
			}
			c := w.open(func(o *Options) { o.FS = clone })
			number := 0
			if h := c.head.Load(); h != nil {
				number = int(h.Release.Number)
			}
			if number-1 != i && number-1 != acknowledged {
				t.Fatalf("cut %d of sync %d: release %d", j, i, number)
			}
			if number > 0 && !slices.Equal(listedNames(t, c), releases[number-1].names) {
				t.Fatalf("cut %d of sync %d: release %d lists %q", j, i, number, listedNames(t, c))
			}
			if number > 0 {
				searched(c, releases[number-1].names)
			}
			if high := c.high.Load(); int(high.Sequence) < number || int(high.Number) < number {
				t.Fatalf("cut %d of sync %d: high-water mark %+v behind release %d", j, i, high.State, number)
			}
			check(t, c.Sync(t.Context()))
			if got := listedNames(t, c); !slices.Equal(got, r.names) {
				t.Fatalf("cut %d of sync %d: replay lists %q, want %q", j, i, got, r.names)
			}
			searched(c, r.names)
			check(t, c.Close())
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	fs := vfs.NewMem()
	options := Options{Dir: "mirror", FS: fs, Node: w.node, Name: w.name}
	m := w.synced(func(o *Options) { o.FS = fs })
	if _, err := Open(options); !errors.Is(err, ErrLocked) {
		t.Errorf("a second owner: %v, want ErrLocked", err)
	}
	check(t, m.Close())
	other := options
	other.Name = newWorld(t).name
	if _, err := Open(other); !errors.Is(err, ErrState) {
		t.Errorf("state of another name: %v, want ErrState", err)
	}
	check(t, writeDurably(fs, "mirror", "highwater.json", []byte(`{"sequence":`)))
	if _, err := Open(options); !errors.Is(err, ErrState) {
		t.Errorf("a damaged high-water mark: %v, want ErrState", err)
	}
	options.Node = nil
	if _, err := Open(options); err == nil {
		t.Error("no node and no gateway: want an error")
	}
}

// keeper is a node that hands records on.
type keeper struct {
	*fakeNode
	kept [][]byte
}

func (k *keeper) KeepRecord(_ context.Context, _ ipns.Name, raw []byte) error {
	k.kept = append(k.kept, raw)
	return nil
}

// What is accepted is handed on to the neighbours; a record that has expired is
// followed where that was asked for, and a better one all the same.
func TestExpiredRecord(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	w.now = w.now.Add(48 * time.Hour) // the record is valid for 24
	unasked := w.open()
	if err := unasked.Sync(t.Context()); !errors.Is(err, ErrNoRecord) || !unasked.Status(t.Context()).Expired {
		t.Errorf("not asked for: %v", err)
	}
	node := &keeper{fakeNode: w.node}
	m := w.synced(func(o *Options) { o.AcceptStale, o.Node = true, node })
	if s := m.Status(t.Context()); s.Release.Number != 1 || !s.Stale {
		t.Errorf("asked for: %+v", s)
	}
	if len(node.kept) != 1 || !bytes.Equal(node.kept[0], w.record) {
		t.Errorf("handed on: %q", node.kept)
	}
	w.publish("left-pad", "is-odd")
	check(t, m.Sync(t.Context()))
	if s := m.Status(t.Context()); s.Release.Number != 2 || s.Stale || len(node.kept) != 2 {
		t.Errorf("a better one: %+v, handed on %d", s, len(node.kept))
	}
}

// A record that has expired is followed by whichever route it comes, where that was
// asked for, but never one that is older than what was accepted.
func TestExpiredByEachRoute(t *testing.T) {
	for name, by := range map[string]func(w *world, raw *[]byte, o *Options){
		"gateway": func(w *world, raw *[]byte, o *Options) {
			o.Gateways = []Gateway{&answering{&fakeGateway{w: w}, raw}}
		},
		"route": func(w *world, raw *[]byte, o *Options) {
			o.Routes = []RecordRoute{{Name: "/var/www", Get: func(context.Context, ipns.Name) ([]byte, error) { return *raw, nil }}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.publish("left-pad")
			first := w.record
			w.publish("left-pad", "is-odd")
			said := w.record
			w.setRecord(nil) // the node has none
			w.now = w.now.Add(48 * time.Hour)
			unasked := w.open(func(o *Options) { by(w, &said, o) })
			if err := unasked.Sync(t.Context()); !errors.Is(err, ErrNoRecord) || !unasked.Status(t.Context()).Expired {
				t.Errorf("not asked for: %v", err)
			}
			m := w.synced(func(o *Options) {
				o.AcceptStale = true
				by(w, &said, o)
			})
			s := m.Status(t.Context())
			if s.Release.Number != 2 || !s.Stale {
				t.Errorf("asked for: %+v", s)
			}
			if last := s.Routes[len(s.Routes)-1]; last.Sequence != 2 || !last.Expired || last.Error != "" {
				t.Errorf("what the route said: %+v", last)
			}
			if r := get(m, "/left-pad", "User-Agent: npm/11.0.0"); !strings.Contains(r.Header().Get("Npm-Notice"), "expired at") {
				t.Errorf("the notice: %q", r.Header().Get("Npm-Notice"))
			}
			said = first
			if err := m.Sync(t.Context()); !errors.Is(err, ipnsrecord.ErrRollback) {
				t.Errorf("an older one: %v", err)
			}
			if s := m.Status(t.Context()); s.Release.Number != 2 || s.Rollbacks != 1 {
				t.Errorf("an older one: %+v", s)
			}
		})
	}
}

// answering is a gateway with another record.
type answering struct {
	*fakeGateway
	raw *[]byte
}

func (a *answering) Record(context.Context, ipns.Name) ([]byte, error) { return *a.raw, nil }

// The best of what lies in several places is followed, and each is shown with what it has.
func TestRecordRoutes(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	old := w.record
	w.publish("left-pad", "is-odd")
	newest := w.record
	w.setRecord(old)
	m := w.synced(func(o *Options) {
		o.Routes = []RecordRoute{
			{Name: "/var/www", Get: func(context.Context, ipns.Name) ([]byte, error) { return newest, nil }},
			{Name: "https://router.example", Cached: true, Get: func(context.Context, ipns.Name) ([]byte, error) { return nil, ipfs.ErrNotFound }},
			{Name: "https://liar.example", Cached: true, Get: func(context.Context, ipns.Name) ([]byte, error) { return []byte("record"), nil }},
		}
	})
	s := m.Status(t.Context())
	if s.Release.Number != 2 || s.Error != "" {
		t.Errorf("followed: %+v", s)
	}
	if r := s.Routes; len(r) != 4 || r[0].Name != "node" || r[1].Name != "route /var/www" || r[1].Sequence != 2 || r[2].Error == "" || r[3].Error == "" {
		t.Errorf("routes: %+v", r)
	}
}

// Run syncs at once and when told.
func TestRun(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	m := w.open(func(o *Options) { o.Interval = time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	until(t, func() bool { return len(listedNames(t, m)) == 1 })
	w.publish("left-pad", "is-odd")
	m.Refresh()
	until(t, func() bool { return len(listedNames(t, m)) == 2 })
	cancel()
	check(t, <-ended)
}

// fickle is a route whose every failure has another text.
type fickle struct {
	*fakeGateway
	failures atomic.Int64
	back     atomic.Bool
}

func (c *fickle) Record(ctx context.Context, name ipns.Name) ([]byte, error) {
	if c.back.Load() {
		return c.w.recordOf(name)
	}
	return nil, fmt.Errorf("%w: from port %d", ipfs.ErrUnavailable, 40000+c.failures.Add(1))
}

// A registry that goes away is told of once, and once when it is back, however often it
// is asked in between and whatever the network says of it.
func TestAwayIsSaidOnce(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	away := &fickle{fakeGateway: &fakeGateway{w: w}}
	var log lines
	m := w.open(func(o *Options) {
		o.Node, o.Gateways = nil, []Gateway{away}
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	until(t, func() bool { m.Refresh(); return away.failures.Load() > 3 })
	if got := log.count("sync failed"); got != 1 {
		t.Errorf("said %d times that it is away", got)
	}
	away.back.Store(true)
	until(t, func() bool { m.Refresh(); return log.count("reached again") > 0 })
	cancel()
	check(t, <-ended)
}

// lines keeps what is logged.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(line))
	return len(line), nil
}

func (l *lines) count(what string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		if strings.Contains(one, what) {
			n++
		}
	}
	return n
}

// until waits for cond without a rhythm of its own; the test's deadline ends it.
func until(t *testing.T, cond func() bool) {
	t.Helper()
	for !cond() {
		if t.Context().Err() != nil {
			t.Fatal("it never came")
		}
	}
}

// A route is asked as often as its answers are cheap, and never more often than a
// cache would know better.
func TestPause(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	near, cache := &route{}, &route{cached: true}
	away := errors.New("connection refused")
	none := fmt.Errorf("%w: %w", ErrNoRecord, ipfs.ErrNotFound)
	for _, tc := range []struct {
		name string
		r    *route
		took time.Duration
		err  error
		ttl  time.Duration // of the record held; 0: there is none
		want time.Duration
	}{
		{"a neighbour", near, 3 * time.Millisecond, nil, time.Minute, time.Second},
		{"a neighbour without it", near, 3 * time.Millisecond, none, 0, time.Second},
		{"further away", near, 200 * time.Millisecond, nil, time.Minute, 10 * time.Second},
		{"the public DHT", near, 4 * time.Second, nil, time.Minute, time.Minute},
		{"it says so of years", near, 4 * time.Second, nil, 8760 * time.Hour, 200 * time.Second},
		{"no record and slow", near, 10 * time.Second, none, 0, 30 * time.Second},
		{"a cache", cache, 3 * time.Millisecond, nil, time.Minute, time.Minute},
		{"a cache of years", cache, 3 * time.Millisecond, nil, 8760 * time.Hour, 5 * time.Minute},
		{"away", near, time.Millisecond, away, time.Minute, 5 * time.Second},
		{"a cache that is away", cache, time.Millisecond, away, time.Minute, 5 * time.Second},
	} {
		high := &highWater{}
		if tc.ttl > 0 {
			w.ttl = tc.ttl
			w.publish("left-pad")
			high.Record = w.record
		}
		m.high.Store(high)
		if got := m.pause(tc.r, tc.took, tc.err); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		if got := jitter(tc.want); got < tc.want*94/100 || got > tc.want*106/100 {
			t.Errorf("%s: jitter makes %v of %v", tc.name, got, tc.want)
		}
	}
}

// Routes that are asked at other times than the best one alarm nobody: what they
// lag behind was confirmed a moment ago.
func TestLaggards(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	lags := &fakeGateway{w: w, record: w.record}
	w.publish("is-odd")
	m := w.synced(func(o *Options) { o.Gateways = []Gateway{lags, &fakeGateway{w: w, none: true}} })
	for range 3 {
		if err := m.sync(t.Context(), m.routes[1:2]); err != nil {
			t.Error("the one that lags:", err)
		}
		if err := m.sync(t.Context(), m.routes[2:]); err != nil {
			t.Error("the one that has none:", err)
		}
	}
	if s := m.Status(t.Context()); s.Rollbacks != 1 || s.Error != "" {
		t.Errorf("rollbacks %d, error %q; want one, and no error", s.Rollbacks, s.Error)
	}
	w.now = w.now.Add(3 * time.Minute) // the TTL, three times: now nothing else is known
	if err := m.sync(t.Context(), m.routes[1:2]); !errors.Is(err, ipnsrecord.ErrRollback) {
		t.Errorf("after minutes without the newer one: %v", err)
	}
	if err := m.sync(t.Context(), m.routes[2:]); !errors.Is(err, ErrNoRecord) {
		t.Errorf("after minutes without any: %v", err)
	}
}

// Run asks a route again when it is due, not others.
func TestRunAsksWhoIsDue(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	slow := &fakeGateway{w: w}
	m := w.open(func(o *Options) { o.Gateways = []Gateway{slow} })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	until(t, func() bool { return len(listedNames(t, m)) == 1 })
	w.publish("left-pad", "is-odd") // nobody says so
	until(t, func() bool { return len(listedNames(t, m)) == 2 })
	cancel()
	check(t, <-ended)
	if got := slow.asked.Load(); got != 1 {
		t.Errorf("the gateway was asked %d times within its TTL", got)
	}
}

func TestAdmin(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	ask := func(method, path string) (int, map[string]any) {
		t.Helper()
		rec := newRecorder(alone(t, m).Admin(), method, path)
		var v map[string]any
		check(t, json.Unmarshal(rec.Body.Bytes(), &v))
		if all, ok := v["registries"].([]any); ok && len(all) == 1 {
			v = all[0].(map[string]any)
		}
		return rec.Code, v
	}
	if code, v := ask("POST", "/sync"); code != http.StatusGatewayTimeout || v["error"] == "" {
		t.Errorf("sync without a record: %d %v", code, v)
	}
	w.publish(everything...)
	if code, v := ask("POST", "/sync"); code != http.StatusOK || fmt.Sprint(v["release"].(map[string]any)["number"]) != "1" {
		t.Errorf("sync: %d %v", code, v)
	}
	code, v := ask("GET", "/status")
	by, _ := v["bytes_by_source"].(map[string]any)
	if code != http.StatusOK || v["name"] != w.name.String() || by["tarballs"] == nil || by["documents"] == nil {
		t.Errorf("status: %d %v", code, v)
	}
}

// A record counts from the moment it was accepted, also when nothing of its
// release could be read and the mirror was started anew.
func TestAcceptedRecordCounts(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	first := w.record
	w.publish("is-odd")
	lost := w.blocks[w.release]
	w.lose(w.release)
	fs := vfs.NewMem()
	options := func(o *Options) { o.FS, o.Deadline = fs, 50*time.Millisecond }
	m := w.open(options)
	if err := m.Sync(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("Sync: %v, want ErrUnavailable", err)
	}
	check(t, m.Close())
	second := w.record
	w.setRecord(first)
	m = w.open(options)
	if err := m.Sync(t.Context()); !errors.Is(err, ipnsrecord.ErrRollback) {
		t.Errorf("Sync with the record before: %v, want ErrRollback", err)
	}
	w.setRecord(second)
	check(t, w.sink(lost))
	check(t, m.Sync(t.Context()))
}

// A name that every list has is found at every moment, while lists are replaced.
func TestSwap(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	m := w.synced()
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	for range 2 {
		g.Go(func() error {
			for ctx.Err() == nil {
				if _, ok, err := m.entry("left-pad"); !ok || err != nil {
					return fmt.Errorf("left-pad: found %v, %v", ok, err)
				}
			}
			return nil
		})
	}
	for i := range 20 {
		w.publish(everything[:1+i%3]...)
		check(t, m.Sync(t.Context()))
	}
	stop()
	check(t, g.Wait())
}

// TestEntriesAreOfTheHead asks for packages, so that their entries are
// remembered, before a release that changes one and has no other.
func TestEntriesAreOfTheHead(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad", "is-odd")
	m := w.synced()
	isOdd := tarballPath("is-odd", "is-odd-3.0.1.tgz")
	for _, path := range []string{"/left-pad", "/left-pad", "/is-odd", isOdd} {
		if got := get(m, path); got.Code != http.StatusOK {
			t.Errorf("%s: %d", path, got.Code)
		}
	}
	w.registry.Publish("-- left-pad@1.4.0/package.json --\n{}\n")
	w.publish("left-pad")
	check(t, m.Sync(t.Context()))
	if got := get(m, "/left-pad", "User-Agent: npm/11.0.0"); !strings.Contains(got.Body.String(), `"1.4.0"`) {
		t.Errorf("left-pad is still the old one: %s", got.Body)
	}
	for _, path := range []string{"/is-odd", isOdd} {
		if got := get(m, path); got.Code != http.StatusNotFound {
			t.Errorf("%s, which is not listed now: %d", path, got.Code)
		}
	}
}
