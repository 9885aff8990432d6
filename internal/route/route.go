// Package route is where IPNS records lie beside the node: servers of the delegated
// routing API, and directories of web servers. It carries records and checks none: what
// Get gives is whatever lies there. It knows nothing of releases, journals or keys.
package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// ErrRoute is returned for what no route can be: neither an http or https URL nor
// an absolute path.
var ErrRoute = errors.New("not a route")

// Router is a way to readers that leads past the node. Its methods may run
// concurrently.
type Router interface {
	// String is how the operator wrote it.
	String() string
	// Put hands over a record, whole; an older one is replaced.
	Put(ctx context.Context, name ipns.Name, record []byte) error
	// Get gives what readers get there, ipfs.ErrNotFound where that is nothing.
	Get(ctx context.Context, name ipns.Name) ([]byte, error)
}

// Parse reads a route: the URL of a server of the delegated routing API, or
// the absolute path of a directory that a web server serves, in which records lie as
// that API has them, in routing/v1/ipns/NAME. client may be nil.
// Error: ErrRoute.
func Parse(s string, client *http.Client) (Router, error) {
	if filepath.IsAbs(s) {
		return Dir(filepath.Clean(s)), nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRoute, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: %q", ErrRoute, s)
	}
	return NewHTTP(s, client), nil
}

// routingPath is where records are in the delegated routing API
// (https://specs.ipfs.tech/routing/http-routing-v1/).
const routingPath = "/routing/v1/ipns/"

// HTTP is a server of the delegated routing API, or a gateway to read from.
type HTTP struct {
	base   string
	client *http.Client
}

// NewHTTP is the server at an http or https URL. client may be nil.
func NewHTTP(base string, client *http.Client) HTTP {
	if client == nil {
		client = &http.Client{}
	}
	return HTTP{strings.TrimRight(base, "/"), client}
}

func (r HTTP) String() string {
	if u, err := url.Parse(r.base); err == nil {
		return u.Redacted()
	}
	return r.base
}

// Put implements Router. A server may take a record and drop it: see Get.
func (r HTTP) Put(ctx context.Context, name ipns.Name, record []byte) error {
	resp, err := r.do(ctx, http.MethodPut, name, bytes.NewReader(record))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("PUT %s: %s: %q", r, resp.Status, said)
	}
	return nil
}

// Get implements Router. It reads no more than the largest record and a byte.
func (r HTTP) Get(ctx context.Context, name ipns.Name) ([]byte, error) {
	resp, err := r.do(ctx, http.MethodGet, name, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, int64(ipnsrecord.MaxSize)+1))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", r, err)
	}
	kind := resp.Header.Get("Content-Type")
	switch {
	// A router that knows no record says so with 200 and another type (IPIP-513).
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusOK && !strings.HasPrefix(kind, ipnsrecord.MediaType):
		return nil, fmt.Errorf("GET %s: %s, %q: %w", r, resp.Status, kind, ipfs.ErrNotFound)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("GET %s: %s, %q", r, resp.Status, kind)
	}
	return raw, nil
}

// httpTimeout is for a server to answer in.
const httpTimeout = 5 * time.Second

// do asks; the body that it gives ends httpTimeout after the question.
func (r HTTP) do(ctx context.Context, method string, name ipns.Name, body io.Reader) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	req, err := http.NewRequestWithContext(ctx, method, r.base+routingPath+name.String(), body)
	if err != nil {
		cancel()
		return nil, backoff.Permanent(err)
	}
	req.Header.Set("Accept", ipnsrecord.MediaType)
	req.Header.Set("Cache-Control", "no-cache")
	if body != nil {
		req.Header.Set("Content-Type", ipnsrecord.MediaType)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		cancel()
		if full := (*url.Error)(nil); errors.As(err, &full) {
			err = full.Err // whoever reports it names the route
		}
		return nil, err
	}
	resp.Body = cancelBody{resp.Body, cancel}
	return resp, nil
}

// cancelBody gives a request's time free with its answer.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// Dir is the absolute path of a directory of a web server.
type Dir string

func (r Dir) String() string { return string(r) }

func (r Dir) path(name ipns.Name) string {
	return filepath.Join(string(r), filepath.FromSlash(routingPath), name.String())
}

// Put implements Router: it replaces the file by a rename, durably; the file is for everyone to read.
func (r Dir) Put(_ context.Context, name ipns.Name, record []byte) (err error) {
	if _, err := os.Stat(string(r)); err != nil { // a disk that is not mounted is no place to write
		return err
	}
	path := r.path(name)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".record-")
	if err != nil {
		return err
	}
	defer func() {
		if gone := os.Remove(f.Name()); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	_, err = f.Write(record)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get implements Router, and reads as HTTP does.
func (r Dir) Get(_ context.Context, name ipns.Name) ([]byte, error) {
	f, err := os.Open(r.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ipfs.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(ipnsrecord.MaxSize)+1))
}
