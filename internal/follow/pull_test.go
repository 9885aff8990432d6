package follow

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

type npmName = npm.Name

func (w *world) pull() *PullThrough {
	t := NewPullThrough(w.f)
	w.t.Cleanup(func() { t.Close() })
	return t
}

func TestPullThrough(t *testing.T) {
	w := newWorld(t, small)
	stored := make(chan struct{}, 100)
	w.opts.OnStored = func() { stored <- struct{}{} }
	w.start()
	pull := w.pull()
	raw, err := pull.Packument(t.Context(), "lib")
	if err != nil || string(raw) != string(w.document("lib")) {
		t.Fatalf("Packument = %s, %v", raw, err)
	}
	if p := w.pkg("lib"); len(p.Versions) != 0 || !p.Document.CID.Defined() {
		t.Errorf("the ledger's record is %+v", p)
	}
	// Eight clients ask for the same tarball, upstream is asked once.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			c, err := pull.Tarball(t.Context(), "lib", "lib-1.2.0.tgz")
			if err != nil || !c.Defined() {
				t.Errorf("Tarball = %v, %v", c, err)
			}
		})
	}
	all.Wait()
	w.expect("lib@1.2.0")
	if n := w.reg.Requests("/lib/-/lib-1.2.0.tgz"); n != 1 {
		t.Errorf("the tarball was asked for %d times", n)
	}
	// Many at once are committed together or apart, each before it returns.
	for _, file := range []string{"lib-1.0.0.tgz", "lib-2.0.0.tgz", "lib-2.1.0-beta.tgz"} {
		all.Go(func() {
			c, err := pull.Tarball(t.Context(), "lib", file)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := (durableGetter{w.node}).Get(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	w.expect("lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta")
	if len(stored) == 0 {
		t.Error("OnStored was not called")
	}
	// A tarball whose packument was never asked for.
	if _, err := pull.Tarball(t.Context(), "@s/deep", "deep-0.1.0.tgz"); err != nil {
		t.Error(err)
	}
	// Held now: asked of nobody, also when the node lost it, where it is brought back.
	c, err := pull.Tarball(t.Context(), "@s/deep", "deep-0.1.0.tgz")
	if n := w.reg.Requests("/@s/deep/-/deep-0.1.0.tgz"); err != nil || n != 1 {
		t.Errorf("asked for %d times, %v", n, err)
	}
	w.node.lose(c)
	if again, err := pull.Tarball(t.Context(), "@s/deep", "deep-0.1.0.tgz"); err != nil || again != c {
		t.Errorf("Tarball = %v, %v", again, err)
	}
	w.stored()
}

func TestPullThroughFreshness(t *testing.T) {
	w := newWorld(t, small)
	pull := w.pull()
	get := func() string {
		t.Helper()
		raw, err := pull.Packument(t.Context(), "lib")
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	first := get()
	w.reg.Publish("-- lib@2.2.0/index.js --\n22\n")
	if get() != first || w.reg.Requests("/lib") != 1 {
		t.Error("upstream was asked again within a minute")
	}
	w.clock.add(2 * time.Minute)
	second := get()
	if second == first {
		t.Error("upstream was not asked again after a minute")
	}
	// A file that only a newer document names.
	w.reg.Publish("-- lib@2.3.0/index.js --\n23\n")
	w.clock.add(2 * time.Minute)
	if _, err := pull.Tarball(t.Context(), "lib", "lib-2.3.0.tgz"); err != nil {
		t.Error(err)
	}
	// Upstream away: what is held is served.
	third := get()
	w.reg.Fault("/", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	w.clock.add(time.Hour)
	if get() != third {
		t.Error("not our own document")
	}
	if _, err := pull.Packument(t.Context(), "other"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Packument returned %v", err)
	}
}

func TestPullThroughRefuses(t *testing.T) {
	w := newWorld(t, small)
	pull := w.pull()
	for name, file := range map[npm.Name]string{"lib": "lib-7.0.0.tgz", "nowhere": "nowhere-1.0.0.tgz"} {
		if _, err := pull.Tarball(t.Context(), name, file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Tarball(%s, %s) returned %v", name, file, err)
		}
	}
	if _, err := pull.Packument(t.Context(), "nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Packument returned %v", err)
	}
	w.reg.SetTarball("other", "1.0.0", []byte("forged"))
	if _, err := pull.Tarball(t.Context(), "other", "other-1.0.0.tgz"); !errors.Is(err, npm.ErrIntegrity) {
		t.Errorf("Tarball returned %v", err)
	}
	w.expect()
	w.expectRefused("other@1.0.0 integrity")
	if len(w.node.written) != 0 {
		t.Error("unverified bytes were kept")
	}
}

func TestPullThroughCloses(t *testing.T) {
	w := newWorld(t, small)
	pull := w.pull()
	asked, goOn := make(chan struct{}), make(chan struct{})
	w.reg.Fault("/lib/-/", func(_ http.ResponseWriter, r *http.Request) bool {
		close(asked)
		<-r.Context().Done()
		close(goOn)
		return true
	})
	// The client leaves, the fetch goes on.
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := pull.Tarball(ctx, "lib", "lib-2.0.0.tgz")
		left <- err
	}()
	<-asked
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("Tarball returned %v", err)
	}
	select {
	case <-goOn:
		t.Error("the fetch ended with its client")
	default:
	}
	pull.Close()
	<-goOn
	if _, err := pull.Packument(t.Context(), "lib"); !errors.Is(err, ErrClosed) {
		t.Errorf("Packument returned %v", err)
	}
}

// TestOlderDocumentsNeverReplaceNewer: a pass and a client saw different
// documents, the older one is recorded last, whenever it was asked for.
func TestOlderDocumentsNeverReplaceNewer(t *testing.T) {
	for _, later := range []time.Duration{0, time.Hour} {
		w := newWorld(t, small)
		ctx := t.Context()
		old, _, err := w.f.load(ctx, "lib", 0)
		if err != nil {
			t.Fatal(err)
		}
		old.checked = old.checked.Add(later)
		late, err := w.f.tarball(ctx, old, "1.0.0")
		if err != nil {
			t.Fatal(err)
		}
		good, err := w.f.tarball(ctx, old, "1.2.0")
		if err != nil {
			t.Fatal(err)
		}
		w.reg.Unpublish("lib", "1.0.0")
		w.add("lib")
		before := w.pkg("lib").Document
		if err := w.f.store(ctx, []item{{name: "lib", paper: old, blocks: old.blocks}, late, good}, nil); err != nil {
			t.Fatal(err)
		}
		w.expect("lib@2.0.0", "lib@1.2.0")
		if after := w.pkg("lib").Document; after != before {
			t.Errorf("the document is %+v, was %+v", after, before)
		}
	}
}

// Where there is no room for one more fetch, a client waits for as long as it likes,
// and takes no room then.
func TestPullThroughIsBounded(t *testing.T) {
	w := newWorld(t, small)
	pull := w.pull()
	for range maxPulls {
		pull.papers <- struct{}{}
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := pull.Packument(gone, "lib"); !errors.Is(err, context.Canceled) || w.reg.Requests("/lib") != 0 {
		t.Errorf("without room: %v", err)
	}
	<-pull.papers
	if _, err := pull.Packument(t.Context(), "lib"); err != nil {
		t.Error(err)
	}
	if len(pull.papers) != maxPulls-1 {
		t.Errorf("%d places are taken, want %d", len(pull.papers), maxPulls-1)
	}
}
