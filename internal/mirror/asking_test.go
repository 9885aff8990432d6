package mirror

import (
	"context"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// slowOrigin answers once it is let.
type slowOrigin struct {
	fakeOrigin
	gate  chan struct{} // of names that begin with no-such
	asked chan struct{} // a token for each question
	now   atomic.Int64
	most  atomic.Int64
}

func (o *slowOrigin) wait(name npm.Name) {
	if len(name) < 7 || name[:7] != "no-such" {
		return
	}
	if n := o.now.Add(1); n > o.most.Load() {
		o.most.Store(n)
	}
	defer o.now.Add(-1)
	o.asked <- struct{}{}
	<-o.gate // whoever asked may have gone
}

func (o *slowOrigin) Packument(ctx context.Context, name npm.Name) ([]byte, error) {
	o.wait(name)
	return o.fakeOrigin.Packument(ctx, name)
}

func (o *slowOrigin) Tarball(ctx context.Context, name npm.Name, file string) (cid.Cid, error) {
	o.wait(name)
	if _, err := o.fakeOrigin.Packument(ctx, name); err != nil {
		return cid.Undef, fs.ErrNotExist
	}
	return o.fakeOrigin.Tarball(ctx, name, file)
}

// One client asks for names that nobody has, as many as it can, and leaves. It has its
// share of upstream and no more, another is answered, and nothing is left of it.
func TestFloodOfUnknownNames(t *testing.T) {
	const flood = 5 * maxAsking
	w := newWorld(t)
	o := &slowOrigin{fakeOrigin: fakeOrigin{w: w}, gate: make(chan struct{}), asked: make(chan struct{}, 2*flood)}
	m := w.open(func(opt *Options) { opt.Origin = o })
	ask := func(ctx context.Context, from, path string) int {
		r := httptest.NewRequestWithContext(ctx, "GET", "http://127.0.0.1:4873"+path, nil)
		r.RemoteAddr = from
		rec := httptest.NewRecorder()
		defer func() { _ = recover() }() // http.ErrAbortHandler: the client has gone
		m.Handler().ServeHTTP(rec, r)
		return rec.Code
	}
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range flood {
		path := fmt.Sprintf("/no-such-%d", i)
		if i%2 == 1 {
			path += fmt.Sprintf("/-/no-such-%d-1.0.0.tgz", i)
		}
		all.Go(func() { ask(ctx, fmt.Sprintf("192.0.2.1:%d", 1+i), path) })
	}
	for range maxAsking {
		<-o.asked
	}
	if got := ask(t.Context(), "192.0.2.2:1", "/left-pad"); got != 200 {
		t.Errorf("another client: %d", got)
	}
	leave()
	all.Wait()
	// It has gone, and what it asked has not been answered: its places are taken.
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	ask(short, "192.0.2.1:1", "/no-such-more")
	if n := o.most.Load(); n != maxAsking {
		t.Errorf("%d questions of one client at one time, want %d", n, maxAsking)
	}
	close(o.gate)
	if got := ask(t.Context(), "192.0.2.1:1", "/left-pad"); got != 200 {
		t.Errorf("the same client, later: %d", got)
	}
	for i := range 10_000 {
		if got := ask(t.Context(), "192.0.2.1:1", fmt.Sprintf("/none-%d", i)); got != 404 {
			t.Fatalf("a name that nobody has: %d", got)
		}
	}
	if m.unknown.used > unknownCache || len(m.origins.items) != 1 {
		t.Errorf("%d bytes of unknown names, %d documents", m.unknown.used, len(m.origins.items))
	}
	m.asking.mu.Lock()
	defer m.asking.mu.Unlock()
	if len(m.asking.by) != 0 {
		t.Errorf("%d clients are left", len(m.asking.by))
	}
}
