// Package socket is how one of our processes reaches another on the same
// machine: HTTP over a Unix socket that only its owner may open. It knows
// nothing of what is said over it.
package socket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxPath is what fits into sockaddr_un on Linux and macOS with room to spare.
const maxPath = 100

// tempPrefix begins the name of the directory of a socket whose path is too long.
const tempPrefix = "regmirror-"

// ErrInUse is returned by Listen where a living process answers already.
var ErrInUse = errors.New("another process answers at this socket")

// ErrNoRoute is returned by Call where the process does not know the request.
var ErrNoRoute = errors.New("the running command does not do this")

var errEnded = errors.New("it ended before it answered")

// Listen makes a socket at path, mode 0600. A socket left over from a process
// that died is replaced; one that is answered is ErrInUse.
//
// A path too long for a Unix socket is kept as a small file that names a
// shorter one in the temporary directory.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if Alive(context.Background(), path) {
		return nil, fmt.Errorf("listen on %s: %w", path, ErrInUse)
	}
	if old, err := resolve(path); err == nil && old != path && strings.HasPrefix(filepath.Base(filepath.Dir(old)), tempPrefix) {
		os.Remove(old) // what a killed process left in the temporary directory
		os.Remove(filepath.Dir(old))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	real := path
	if len(path) > maxPath {
		dir, err := os.MkdirTemp("", tempPrefix+"*") // mode 0700
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
		real = filepath.Join(dir, "s")
		if err := os.WriteFile(path, []byte(real+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	l, err := net.Listen("unix", real)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(real, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &listener{Listener: l, path: path, real: real}, nil
}

type listener struct {
	net.Listener
	path, real string
}

// Close removes the socket.
func (l *listener) Close() error {
	err := l.Listener.Close()
	if l.real != l.path {
		os.Remove(l.path)
		os.RemoveAll(filepath.Dir(l.real))
	}
	return err
}

// resolve returns the socket that path is or names.
func resolve(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return path, nil
	}
	if !info.Mode().IsRegular() || info.Size() > 4096 {
		return "", fmt.Errorf("%s is not a socket", path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(raw)), nil
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	real, err := resolve(path)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	return d.DialContext(ctx, "unix", real)
}

// Alive tells whether a process answers at path.
func Alive(ctx context.Context, path string) bool {
	conn, err := Dial(ctx, path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// Client speaks HTTP over the socket at path; the host of its URLs is ignored.
func Client(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, path) },
		MaxIdleConns:    8,
		IdleConnTimeout: 30 * time.Second,
	}}
}

// maxAnswer bounds what Call reads, in bytes.
const maxAnswer = 16 << 20

// Call asks the process at path and decodes its JSON answer into out, within
// five minutes unless ctx has a deadline of its own. An answer that is no success is a
// *Refusal with what it says: {"error": text}, or the text itself.
func Call(ctx context.Context, path, method, what string, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
	}
	body, err := Stream(ctx, path, method, what, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the running command: %w", err)
	}
	return json.Unmarshal(raw, out)
}

// Stream asks the process at path, with a body where that is not nil, and returns
// its answer as it comes, of any length, for as long as ctx lasts. The answer may begin
// before the body was read, which is then sent on until the answer is closed. Errors are
// as of Call.
func Stream(ctx context.Context, path, method, what string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://socket"+what, body)
	if err != nil {
		return nil, err
	}
	client := Client(path)
	resp, err := client.Do(req)
	if err != nil {
		client.CloseIdleConnections()
		var of *url.Error // it says a URL that nobody typed
		if errors.As(err, &of) {
			err = of.Err
		}
		if errors.Is(err, io.EOF) {
			err = errEnded
		}
		return nil, fmt.Errorf("ask the running command: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return answer{resp.Body, client}, nil
	}
	defer client.CloseIdleConnections()
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("ask the running command: %w", err)
	}
	if resp.StatusCode == http.StatusNotFound && resp.Header.Get("Content-Type") != "application/json" {
		return nil, ErrNoRoute // http.ServeMux's own answer
	}
	var failed struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(said, &failed) != nil || failed.Error == "" {
		failed.Error = strings.TrimSpace(string(said[:min(len(said), 1000)]))
	}
	return nil, &Refusal{resp.StatusCode, failed.Error}
}

// Refusal is Call's error where the process answers with another status than 200.
type Refusal struct {
	Status int    // of HTTP
	Text   string // what it says
}

func (r *Refusal) Error() string { return "the running command says: " + r.Text }

// answer is a body that is the last of its client.
type answer struct {
	io.ReadCloser
	client *http.Client
}

func (a answer) Close() error {
	err := a.ReadCloser.Close()
	a.client.CloseIdleConnections()
	return err
}

// Serve serves h on l until ctx ends, then closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() {
		srv.Close() // Serve failed by itself
		return err
	}
	<-ended // Serve returns when Shutdown begins, not when it has ended
	return nil
}
