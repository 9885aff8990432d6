package mirror

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// fakeTarballs is the registry that documents name.
type fakeTarballs struct {
	w     *world
	asked atomic.Int64
	other []byte // where not nil, in place of every tarball
	none  bool
}

func (f *fakeTarballs) get(_ context.Context, name npm.Name, version string, d npm.Dist) (io.ReadCloser, error) {
	f.asked.Add(1)
	if f.none || !strings.HasPrefix(d.Tarball, f.w.registry.URL+"/") {
		return nil, fs.ErrNotExist
	}
	data := f.w.registry.Tarball(string(name), version)
	if f.other != nil {
		data = f.other
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// A listed tarball that no peer gives comes from the registry that its document
// names, if it has the listed bytes; and nothing else is asked for there.
func TestRefetch(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	up := &fakeTarballs{w: w, other: []byte("a version with new bytes")}
	m := w.synced(func(o *Options) { o.Tarballs, o.Deadline = up.get, 300*time.Millisecond })
	get(m, "/left-pad")
	w.lose(w.files["left-pad-1.3.0.tgz"])
	if got := get(m, leftPad); got.Code != http.StatusServiceUnavailable {
		t.Errorf("other bytes: %d", got.Code)
	}
	up.other, up.none = nil, true
	if got := get(m, leftPad); got.Code != http.StatusNotFound || !strings.Contains(got.Body.String(), "upstream") {
		t.Errorf("upstream has none: %d %s", got.Code, got.Body)
	}
	up.none = false
	want := w.registry.Tarball("left-pad", "1.3.0")
	if got := get(m, leftPad); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), want) {
		t.Errorf("fetched again: %d", got.Code)
	}
	if by := m.Status(t.Context()).BytesBySource.Tarballs; by.Upstream != int64(len(want)) {
		t.Errorf("%+v, want %d from upstream", by, len(want))
	}
	before := up.asked.Load()
	for _, path := range []string{leftPad, "/left-pad/-/left-pad-9.9.9.tgz", "/is-odd", "/is-odd/-/is-odd-3.0.1.tgz", "/left-pad"} {
		get(m, path)
	}
	if got := up.asked.Load(); got != before {
		t.Errorf("upstream was asked %d times for what is held or not listed", got-before)
	}
}

// Peers that never answer hold up three requests and no more.
func TestSilentPeersAreLeftOut(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad", "is-odd", "@types/node")
	up := &fakeTarballs{w: w}
	m := w.synced(func(o *Options) { o.Tarballs = up.get })
	for _, path := range []string{"/left-pad", "/is-odd", "/@types/node"} {
		get(m, path)
		get(m, path+"/-/no-such.tgz")
	}
	for _, c := range w.files {
		w.lose(c)
	}
	w.mu.Lock()
	w.node.hang = true
	w.mu.Unlock()
	for _, path := range []string{leftPad, "/left-pad/-/left-pad-1.0.0.tgz", "/is-odd/-/is-odd-3.0.1.tgz"} {
		if got := get(m, path); got.Code != 200 {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	if !m.peers.open(time.Now()) {
		t.Fatal("the peers are still waited for")
	}
	if got := get(m, "/@types/node/-/node-20.0.0.tgz"); got.Code != 200 {
		t.Errorf("past them: %d", got.Code)
	}
}

func TestBreaker(t *testing.T) {
	var b breaker
	now := someday
	bad := errors.New("bad")
	for range breakAfter - 1 {
		b.note(now, bad)
	}
	if b.open(now) {
		t.Error("open too early")
	}
	b.note(now, bad)
	if !b.open(now) || !b.open(now.Add(breakFor-1)) {
		t.Error("not open")
	}
	now = now.Add(breakFor)
	if b.open(now) {
		t.Error("no trial after the pause")
	}
	if !b.open(now) {
		t.Error("a second trial beside the first")
	}
	b.note(now, bad)
	if !b.open(now.Add(2*breakFor - 1)) {
		t.Error("the pause did not double")
	}
	for range 100 {
		b.note(now, bad)
	}
	if b.open(now.Add(breakMost)) {
		t.Error("the pause has no end")
	}
	b.note(now, nil)
	b.note(now, bad)
	if b.open(now) {
		t.Error("one success closes it")
	}
}

// An offline mirror serves what it holds and asks nobody.
func TestOffline(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad", "@types/node")
	var files Options
	m := w.synced(func(o *Options) { files = *o })
	if got := get(m, leftPad); got.Code != 200 {
		t.Fatal(got.Code)
	}
	check(t, m.Close())
	w.publish("left-pad", "is-odd")
	before := w.node.asked()
	m = w.open(func(o *Options) { *o = files; o.Offline = true })
	if err := m.Sync(t.Context()); !errors.Is(err, ErrOffline) {
		t.Errorf("sync: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	const away = "this mirror is offline, and does not hold it"
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		leftPad: {200, ""}, "/left-pad/-/left-pad-1.0.0.tgz": {404, away}, "/@types/node": {404, away}, "/@types/node/-/node-20.0.0.tgz": {404, away},
		"/@types/node/latest": {404, away}, "/-/package/@types/node/dist-tags": {404, away}, "/is-odd": {404, "Not found"},
	} {
		got := get(m, path, "User-Agent: npm/11.0.0 node/v24.0.0")
		if got.Code != want.status || !strings.Contains(got.Body.String(), want.text) || got.Header().Get("Retry-After") != "" {
			t.Errorf("%s: %d, want %d %s: %s", path, got.Code, want.status, want.text, got.Body)
		}
	}
	cancel()
	check(t, <-ended)
	if got := w.node.asked(); got != before || !m.Status(t.Context()).Offline {
		t.Errorf("%d blocks were asked for", got-before)
	}
	none := w.open(offline)
	if got := get(none, "/left-pad"); got.Code != 404 || !strings.Contains(got.Body.String(), "has not been synced yet: this mirror is offline") {
		t.Errorf("no list: %d %s", got.Code, got.Body)
	}
}

// What is held is served for ever, unless it may not.
func TestMaxStale(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	for limit, status := range map[time.Duration]int{0: 200, 48 * time.Hour: 200, 12 * time.Hour: 503} {
		now := w.now
		m := w.synced(func(o *Options) { o.MaxStale = limit; o.Now = func() time.Time { return now } })
		get(m, "/left-pad")
		now = now.Add(48 * time.Hour) // the record is valid for 24
		for _, path := range []string{"/left-pad", leftPad, "/-/v1/search?text=left"} {
			if got := get(m, path); got.Code != status {
				t.Errorf("%v: %s: %d, want %d: %s", limit, path, got.Code, status, got.Body)
			}
		}
		if got := get(m, "/-/ping"); got.Code != 200 {
			t.Errorf("ping: %d", got.Code)
		}
		if s := m.Status(t.Context()); !s.Stale || s.TooOld != (status == 503) {
			t.Errorf("%v: status %+v", limit, s)
		}
	}
}

// What every source says it lacks is 404, which no client tries again; where one may
// still have it, 503. Either is said at once, and lists what each source said.
func TestNowhere(t *testing.T) {
	for name, test := range map[string]struct {
		alone, away bool
		upstream    *fakeTarballs
		gateway     bool
		status      int
	}{
		"peers lack it":                 {status: 404},
		"peers and the gateway lack it": {gateway: true, status: 404},
		"upstream too":                  {gateway: true, upstream: &fakeTarballs{none: true}, status: 404},
		"no peer is connected":          {alone: true, status: 503},
		"upstream has other bytes":      {upstream: &fakeTarballs{other: []byte("new bytes")}, status: 503},
		"the gateway is away":           {gateway: true, away: true, status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.publish("left-pad")
			g := &fakeGateway{w: w}
			m := w.synced(func(o *Options) {
				if test.gateway {
					o.Gateways = []Gateway{g}
				}
				if test.upstream != nil {
					test.upstream.w = w
					o.Tarballs = test.upstream.get
				}
			})
			get(m, "/left-pad")
			w.lose(w.files["left-pad-1.3.0.tgz"])
			w.mu.Lock()
			w.node.alone, g.away = test.alone, test.away
			w.mu.Unlock()
			got := get(m, leftPad)
			if got.Code != test.status || (got.Header().Get("Retry-After") != "") != (test.status == 503) {
				t.Errorf("%d %v: %s", got.Code, got.Header(), got.Body)
			}
			if s := m.Status(t.Context()); s.LastUnavailable == "" {
				t.Error("status does not tell")
			}
		})
	}
	// A document likewise.
	w := newWorld(t)
	w.publish("left-pad")
	m := w.synced()
	for c := range w.blocks {
		w.lose(c)
	}
	if got := get(m, "/left-pad"); got.Code != 404 || !strings.Contains(got.Body.String(), ErrNowhere.Error()) {
		t.Errorf("document: %d %s", got.Code, got.Body)
	}
}
