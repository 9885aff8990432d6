package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/route"
)

// nodeRouter is the node itself, read over HTTP where it serves that.
type nodeRouter struct {
	node    ipfs.Node
	gateway route.Router // nil where the node has none
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
	ways := append([]route.Router{nodeRouter{node: p.o.Node}}, p.o.Routes...)
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
func (p *Publisher) routers(info ipfs.Info) []route.Router {
	node := nodeRouter{node: p.o.Node}
	if info.Gateway != "" {
		node.gateway = route.NewHTTP(info.Gateway, p.o.HTTP)
	}
	return append([]route.Router{node}, p.o.Routes...)
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
func via(r route.Router) string {
	switch r := r.(type) {
	case nodeRouter:
		if r.gateway == nil {
			return "node"
		}
		return "gateway"
	case route.Dir:
		return "file"
	}
	return "http"
}
