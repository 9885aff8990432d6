package mirror

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sent is a bundle that is sent to a table's Admin, and what is said of it.
func sent(ctx context.Context, client *http.Client, url string, body io.Reader) (Imported, []string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/import", body)
	if err != nil {
		return Imported{}, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Imported{}, nil, err
	}
	defer resp.Body.Close()
	var stages []string
	got, err := ReadImport(resp.Body, func(stage string, _, _ int, _ int64) { stages = append(stages, stage) })
	return got, stages, err
}

func TestImportBySocket(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0")
	table := tableOf(t, w.isolated(t), offline)
	m := table.rows[0].Mirror
	server := httptest.NewServer(table.Admin())
	defer server.Close()

	// A bundle that is refused early is refused while the rest of it is still coming.
	thief := newWorld(t)
	thief.publish("left-pad")
	stolen := thief.export(t, false, "left-pad@1.3.0")
	_, _, err := sent(t.Context(), server.Client(), server.URL, io.MultiReader(bytes.NewReader(stolen), endless{}))
	if err == nil || !strings.Contains(err.Error(), ErrNotTaken.Error()) {
		t.Errorf("a bundle of another registry: %v", err)
	}
	if _, _, err := sent(t.Context(), server.Client(), server.URL, bytes.NewReader(car[:len(car)-10])); err == nil || !strings.Contains(err.Error(), ErrBundle.Error()) {
		t.Errorf("one that is cut off: %v", err)
	}
	if got := status(m, "/left-pad"); got == http.StatusOK || m.high.Load().Value != "" || len(table.Pins()) != 0 {
		t.Error("what was refused left a mark")
	}
	got, stages, err := sent(t.Context(), server.Client(), server.URL, bytes.NewReader(car))
	check(t, err)
	if got.Sequence != 1 || len(got.Packages) != 1 || got.Blocks == 0 || len(stages) == 0 {
		t.Errorf("imported %+v, stages %q", got, stages)
	}
	if got := status(m, tarballPath("left-pad", "left-pad-1.3.0.tgz")); got != http.StatusOK {
		t.Errorf("its tarball at once: %d", got)
	}
	if len(table.Pins()) != 1 || table.cache().held != 0 {
		t.Errorf("pins %+v, held %d", table.Pins(), table.cache().held)
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Who sends a bundle goes away in the middle: all of it is served or nothing, nobody
// waits for it, and the same bundle comes in after it.
func TestAnImportWhoseSenderGoes(t *testing.T) {
	for _, step := range []string{"WhileItComes", "AtTheMark"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.publish(everything...)
			car := w.export(t, false, "left-pad@1.3.0")
			table := tableOf(t, w.isolated(t), offline)
			m := table.rows[0].Mirror
			ended := make(chan struct{})
			admin := table.Admin()
			ctx, gone := context.WithCancel(t.Context())
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				m.wrote = func() {
					gone()
					<-r.Context().Done()
				}
				admin.ServeHTTP(w, r)
				close(ended)
			}))
			defer server.Close()
			var body io.Reader = bytes.NewReader(car)
			if step == "WhileItComes" {
				body = io.MultiReader(bytes.NewReader(car[:len(car)/2]), leaving{gone, ctx})
			}
			if _, _, err := sent(ctx, server.Client(), server.URL, body); !errors.Is(err, context.Canceled) {
				t.Errorf("who went away: %v", err)
			}
			<-ended
			document, tarball := status(m, "/left-pad"), status(m, tarballPath("left-pad", "left-pad-1.3.0.tgz"))
			marked := m.high.Load().Value != ""
			if marked != (step == "AtTheMark") || len(table.Pins()) != 0 {
				t.Errorf("the high-water mark: %t, pins %+v", marked, table.Pins())
			}
			if document != tarball || document == http.StatusOK && !marked {
				t.Errorf("some of it is served: %d and %d", document, tarball)
			}
			if len(m.syncing) > 0 || table.cache().held != 0 {
				t.Error("it holds what others wait for")
			}
			m.wrote = nil
			_, err := take(t, table, car)
			check(t, err)
			if got := status(m, tarballPath("left-pad", "left-pad-1.3.0.tgz")); got != http.StatusOK {
				t.Errorf("done again: %d", got)
			}
		})
	}
}

// leaving is a body whose sender leaves.
type leaving struct {
	leave func()
	ctx   context.Context
}

func (l leaving) Read([]byte) (int, error) {
	l.leave()
	<-l.ctx.Done()
	return 0, l.ctx.Err()
}

// A bundle of which nothing more comes is given up.
func TestAnImportThatStalls(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0")
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		table := tableOf(t, w.isolated(t), offline, func(o *Options) { o.FS = fs })
		client, end := piped(table.Admin())
		defer end()
		body, sender := io.Pipe()
		defer sender.Close()
		go sender.Write(car[:len(car)/2])
		_, _, err := sent(t.Context(), client, "http://pipe", body)
		if err == nil || !strings.Contains(err.Error(), "timeout") {
			t.Errorf("a bundle of which half came: %v", err)
		}
		if table.cache().held != 0 || len(table.Pins()) != 0 {
			t.Error("it left a mark")
		}
		// One that came at once may take its time afterwards.
		m := table.rows[0].Mirror
		m.wrote = func() { time.Sleep(2 * importStall) }
		_, _, err = sent(t.Context(), client, "http://pipe", bytes.NewReader(car))
		check(t, err)
		check(t, m.Close())
	})
}

// One that still comes does not keep the command waiting that is to stop.
func TestAnImportEndsWithTheCommand(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0")
	synctest.Test(t, func(t *testing.T) {
		table := tableOf(t, w.isolated(t), offline)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan time.Time, 1)
		client, end := piped(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			table.Admin().ServeHTTP(w, r.WithContext(ctx))
			ended <- time.Now()
		}))
		defer end()
		body, sender := io.Pipe()
		defer sender.Close()
		go sender.Write(car[:len(car)/2])
		go sent(t.Context(), client, "http://pipe", body)
		synctest.Wait() // all of that is read
		stopped := time.Now()
		stop()
		if at := <-ended; !at.Equal(stopped) { // by the bubble's clock
			t.Errorf("it went on for %v", at.Sub(stopped))
		}
		if table.cache().held != 0 || len(table.Pins()) != 0 {
			t.Error("it left a mark")
		}
		check(t, table.rows[0].Mirror.Close())
	})
}

// While a bundle is taken in nothing is evicted, for what lies here already may be of it.
func TestNothingGoesWhileABundleComes(t *testing.T) {
	const size = 1500 << 10
	w, names := cachedWorld(t, size)
	one, all := w.export(t, false, "d@1.0.0"), w.export(t, false, "a@1.0.0", "b@1.0.0", "d@1.0.0")
	other := w.isolated(t)
	c := testCache(t, CacheOptions{Bound: 2*size + size/2, Now: func() time.Time { return w.now }})
	m := other.open(offline, func(o *Options) { o.Cached = c.Part("node", other.node, nil) })
	table, err := NewTable(Registry{Label: "npm", Mirror: m})
	check(t, err)
	_, err = take(t, table, one)
	check(t, err)
	check(t, table.Unpin("d", ""))

	b, err := OpenBundle(bytes.NewReader(all))
	check(t, err)
	trims := 0
	_, err = table.Import(t.Context(), b, ImportOptions{Progress: func(stage string, done, _ int, _ int64) {
		if stage != "check" || done != 2 {
			return
		}
		for inUse := 1; inUse > 0; { // until what came is counted
			c.mu.Lock()
			inUse = len(c.inUse)
			c.mu.Unlock()
			runtime.Gosched()
		}
		check(t, c.trim(t.Context()))
		trims++
	}})
	check(t, err)
	if trims != 1 || c.held != 0 {
		t.Errorf("%d trims, held %d", trims, c.held)
	}
	for _, name := range names {
		if _, whole := m.pieces(t.Context(), w.files[name+"-1.0.0.tgz"]); whole != (name != "c") {
			t.Errorf("%s is whole: %t", name, whole)
		}
	}
}

// piped is a client of a handler over net.Pipe, on which deadlines are of the bubble's
// clock. end ends the server.
func piped(h http.Handler) (client *http.Client, end func()) {
	l := pipes{make(chan net.Conn), make(chan struct{})}
	server := &http.Server{Handler: h}
	go server.Serve(l)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		l.conns <- there
		return here, nil
	}}
	return &http.Client{Transport: transport}, func() { server.Close() }
}

type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l pipes) Close() error   { close(l.closed); return nil }
func (l pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
