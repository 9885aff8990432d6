package publish

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
	"slices"
	"strings"
	"sync"

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

// ParseRouter reads a route: the URL of a server of the delegated routing API, or
// the absolute path of a directory that a web server serves, in which records lie as
// that API has them, in routing/v1/ipns/NAME. client may be nil.
// Error: ErrRoute.
func ParseRouter(s string, client *http.Client) (Router, error) {
	if filepath.IsAbs(s) {
		return dirRouter(filepath.Clean(s)), nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRoute, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: %q", ErrRoute, s)
	}
	if client == nil {
		client = &http.Client{}
	}
	return httpRouter{strings.TrimRight(s, "/"), client}, nil
}

// routingPath is where records are in the delegated routing API
// (https://specs.ipfs.tech/routing/http-routing-v1/).
const routingPath = "/routing/v1/ipns/"

// httpRouter is a server of the delegated routing API, or a gateway to read from.
type httpRouter struct {
	base   string
	client *http.Client
}

func (r httpRouter) String() string {
	if u, err := url.Parse(r.base); err == nil {
		return u.Redacted()
	}
	return r.base
}

func (r httpRouter) Put(ctx context.Context, name ipns.Name, record []byte) error {
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

func (r httpRouter) Get(ctx context.Context, name ipns.Name) ([]byte, error) {
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

// do asks; the body that it gives ends httpTimeout after the question.
func (r httpRouter) do(ctx context.Context, method string, name ipns.Name, body io.Reader) (*http.Response, error) {
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

// dirRouter is a directory of a web server.
type dirRouter string

func (r dirRouter) String() string { return string(r) }

func (r dirRouter) path(name ipns.Name) string {
	return filepath.Join(string(r), filepath.FromSlash(routingPath), name.String())
}

// Put replaces the file by a rename, durably; the file is for everyone to read.
func (r dirRouter) Put(_ context.Context, name ipns.Name, record []byte) (err error) {
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

func (r dirRouter) Get(_ context.Context, name ipns.Name) ([]byte, error) {
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

// nodeRouter is the node itself, read over HTTP where it serves that.
type nodeRouter struct {
	node    ipfs.Node
	gateway Router // nil where the node has none
}

func (nodeRouter) String() string { return "node" }

func (r nodeRouter) Put(ctx context.Context, name ipns.Name, record []byte) error {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	err := r.node.PutRecord(ctx, name, record)
	if errors.Is(err, ipfs.ErrSuperseded) {
		err = backoff.Permanent(err)
	}
	return err
}

func (r nodeRouter) Get(ctx context.Context, name ipns.Name) ([]byte, error) {
	if r.gateway != nil {
		return r.gateway.Get(ctx, name)
	}
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	return r.node.Record(ctx, name)
}

// RouteStatus is what readers get by one route.
type RouteStatus struct {
	Name   string
	Record *ipnsrecord.Record // nil where there is none that can be believed
	Error  error              // why there is none; ipfs.ErrNotFound where nothing was put there
}

// views asks every route, the node's own network first, at once.
func (p *Publisher) views(ctx context.Context, name ipns.Name) []RouteStatus {
	ways := append([]Router{nodeRouter{node: p.o.Node}}, p.o.Routes...)
	views := make([]RouteStatus, len(ways))
	var all sync.WaitGroup
	for i, way := range ways {
		all.Go(func() {
			views[i].Name = way.String()
			raw, err := way.Get(ctx, name)
			var r ipnsrecord.Record
			if err == nil {
				r, err = ipnsrecord.Check(name, raw, p.now())
			}
			if views[i].Error = err; err == nil || errors.Is(err, ipnsrecord.ErrExpired) {
				views[i].Record = &r
			}
		})
	}
	all.Wait()
	return views
}

// routers are all ways that are configured, the node first.
func (p *Publisher) routers(info ipfs.Info) []Router {
	node := nodeRouter{node: p.o.Node}
	if info.Gateway != "" {
		node.gateway = httpRouter{strings.TrimRight(info.Gateway, "/"), p.o.HTTP}
	}
	return append([]Router{node}, p.o.Routes...)
}

// put hands the record to every route at once, then reads it back from each. A put
// that fails may have reached someone, and one that does not may have reached
// nobody: only the reading back counts. Where one route has a record that this
// journal does not know, that is the error; else ErrUnconfirmed, unless each route
// gave it back.
func (p *Publisher) put(ctx context.Context, name ipns.Name, a attempt, info ipfs.Info) ([]Route, error) {
	ways := p.routers(info)
	routes := make([]Route, len(ways))
	errs := make([]error, len(ways))
	each := func(f func(i int)) {
		var all sync.WaitGroup
		for i := range ways {
			all.Go(func() { f(i) })
		}
		all.Wait()
	}
	each(func(i int) {
		routes[i] = Route{Name: ways[i].String()}
		_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, ways[i].Put(ctx, name, a.Record) },
			backoff.WithBackOff(p.retry()), backoff.WithMaxTries(p.putTries))
		if err != nil {
			routes[i].Put = err.Error()
		}
	})
	if ctx.Err() != nil {
		return routes, ctx.Err()
	}
	if err := hook(p.fault, "put"); err != nil {
		return routes, err
	}
	each(func(i int) {
		routes[i].Via = via(ways[i])
		_, err := backoff.Retry(ctx, func() (struct{}, error) {
			raw, err := ways[i].Get(ctx, name)
			if err == nil {
				err = p.compare(name, a, raw)
			}
			return struct{}{}, err
		}, backoff.WithBackOff(p.retry()), backoff.WithMaxTries(p.readTries))
		if routes[i].ReadBack = err == nil; err != nil {
			routes[i].Error, errs[i] = err.Error(), fmt.Errorf("%s: %w", ways[i], err)
			switch routes[i].Put {
			case "":
			case err.Error():
				errs[i] = fmt.Errorf("%s: put and read back: %w", ways[i], err)
			default:
				errs[i] = fmt.Errorf("%s: put: %s; read back: %w", ways[i], routes[i].Put, err)
			}
		}
	})
	if ctx.Err() != nil {
		return routes, ctx.Err()
	}
	for _, err := range errs {
		if errors.Is(err, ErrNewer) || errors.Is(err, ipnsrecord.ErrEquivocation) {
			return routes, err
		}
	}
	if err := errors.Join(errs...); err != nil {
		return routes, fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	return routes, nil
}

// readBack says of a put that failed with err that readers have the record all the
// same, if not by every route.
func readBack(routes []Route, err error) bool {
	return errors.Is(err, ErrUnconfirmed) && slices.ContainsFunc(routes, func(r Route) bool { return r.ReadBack })
}

// via says how a route was read.
func via(r Router) string {
	switch r := r.(type) {
	case nodeRouter:
		if r.gateway == nil {
			return "node"
		}
		return "gateway"
	case dirRouter:
		return "file"
	}
	return "http"
}
