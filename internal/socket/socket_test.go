package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// dir is a directory whose name is short enough for a socket in it.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// serve answers "hello" at path until stop is called, which returns what Serve
// returned.
func serve(t *testing.T, path string) (stop func() error) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.URL.Path) }))
	}()
	return func() error {
		cancel()
		return <-ended
	}
}

func ask(path string) error {
	client := Client(path)
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://anything/you")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello /you" {
		return fmt.Errorf("it says %q, %v", body, err)
	}
	return nil
}

func TestSocket(t *testing.T) {
	for _, test := range []struct{ name, below string }{
		{"Short", "a.sock"},
		{"NewDirectory", "new/er/a.sock"},
		{"TooLong", strings.Repeat("long/", 30) + "a.sock"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, temp := filepath.Join(dir(t), test.below), dir(t)
			t.Setenv("TMPDIR", temp)
			if Alive(t.Context(), path) {
				t.Fatal("alive before it is there")
			}
			stop := serve(t, path)
			if err := ask(path); err != nil || !Alive(t.Context(), path) {
				t.Errorf("not alive: %v", err)
			}
			real, err := resolve(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{path, real} {
				info, err := os.Lstat(p)
				if err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v, want mode 0600", p, info.Mode(), err)
				}
			}
			if parent, err := os.Stat(filepath.Dir(real)); err != nil || parent.Mode().Perm() != 0o700 {
				t.Errorf("its directory: %v, %v, want mode 0700", parent.Mode(), err)
			}
			if err := stop(); err != nil {
				t.Errorf("Serve: %v", err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) || Alive(t.Context(), path) {
				t.Errorf("left behind: %v", err)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left in the temporary directory: %v, %v", left, err)
			}
			if _, err := Dial(t.Context(), path); err == nil {
				t.Error("Dial reached what has ended")
			}
		})
	}
}

// TestStaleSocketIsReplaced: a process that was killed leaves its socket.
func TestStaleSocketIsReplaced(t *testing.T) {
	for _, test := range []struct{ name, below string }{{"Short", "a.sock"}, {"TooLong", strings.Repeat("long/", 30) + "a.sock"}} {
		t.Run(test.name, func(t *testing.T) {
			path, temp := filepath.Join(dir(t), test.below), dir(t)
			t.Setenv("TMPDIR", temp)
			dead, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			inner := dead.(*listener).Listener.(*net.UnixListener)
			inner.SetUnlinkOnClose(false)
			inner.Close()
			if _, err := os.Lstat(path); err != nil {
				t.Fatalf("the dead process left nothing: %v", err)
			}
			if Alive(t.Context(), path) {
				t.Error("a dead socket is alive")
			}
			stop := serve(t, path)
			if err := ask(path); err != nil {
				t.Errorf("after it was replaced: %v", err)
			}
			if err := stop(); err != nil {
				t.Errorf("Serve: %v", err)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left in the temporary directory: %v, %v", left, err)
			}
		})
	}
}

// TestNotASocket: what is no socket of ours is never dialled.
func TestNotASocket(t *testing.T) {
	path := filepath.Join(dir(t), "x")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), path); err == nil {
		t.Error("Dial took a directory")
	}
	if err := os.WriteFile(filepath.Join(path, "y"), make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), filepath.Join(path, "y")); err == nil {
		t.Error("Dial took a large file")
	}
	if _, err := Listen(path); err == nil {
		t.Error("Listen replaced a directory with files in it")
	}
}

// TestServeEnds with its context, and not before a request under way was
// answered.
func TestServeEnds(t *testing.T) {
	path := filepath.Join(dir(t), "a.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(asked)
			<-r.Context().Done() // ends with Serve's context, for a long poll must not hold it up
			io.WriteString(w, "hello "+r.URL.Path)
		}))
	}()
	answered := make(chan error, 1)
	go func() { answered <- ask(path) }()
	<-asked
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the request under way: %v", err)
	}
}

// TestServeFails when its listener does, by itself.
func TestServeFails(t *testing.T) {
	l, err := Listen(filepath.Join(dir(t), "a.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, http.NotFoundHandler()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

func TestCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /good", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"n": 7}`) })
	mux.HandleFunc("GET /bad", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, `{"error": "no record"}`)
	})
	mux.HandleFunc("GET /plain", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", http.StatusInternalServerError) })
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, mux) }()
	var v struct{ N int }
	if err := Call(t.Context(), path, http.MethodGet, "/good", &v); err != nil || v.N != 7 {
		t.Errorf("good: %+v, %v", v, err)
	}
	for what, want := range map[string]string{"/bad": "no record", "/plain": "broken"} {
		if err := Call(t.Context(), path, http.MethodGet, what, &v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := Call(t.Context(), path, http.MethodGet, "/none", &v); !errors.Is(err, ErrNoRoute) {
		t.Errorf("none: %v", err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := Call(t.Context(), path, http.MethodGet, "/good", &v); err == nil {
		t.Error("nobody there, and no error")
	}
}

func TestStream(t *testing.T) {
	path := filepath.Join(dir(t), "x.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /long", func(w http.ResponseWriter, r *http.Request) {
		sent, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s%s", sent, strings.Repeat("x", maxAnswer))
	})
	mux.HandleFunc("POST /cut", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, strings.Repeat("x", 1<<20))
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("POST /ended", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("POST /bad", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, `{"error": "of several"}`)
	})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, mux) }()
	stream := func(what string) (got string, err error) {
		body, err := Stream(t.Context(), path, http.MethodPost, what, strings.NewReader(`{"n":7}`))
		if err != nil {
			return "", err
		}
		defer body.Close()
		raw, err := io.ReadAll(body)
		return string(raw), err
	}
	if got, err := stream("/long"); err != nil || !strings.HasPrefix(got, `{"n":7}x`) || len(got) != 7+maxAnswer {
		t.Errorf("long: %d bytes, %v", len(got), err)
	}
	if _, err := stream("/cut"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
	if _, err := stream("/ended"); err == nil || err.Error() != "ask the running command: it ended before it answered" {
		t.Errorf("ended: %v", err)
	}
	if _, err := stream("/bad"); err == nil || !strings.Contains(err.Error(), "of several") {
		t.Errorf("refused: %v", err)
	}
	if _, err := stream("/none"); !errors.Is(err, ErrNoRoute) {
		t.Errorf("none: %v", err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
