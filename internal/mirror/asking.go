package mirror

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// maxAsking bounds the questions of one client to Origin that are under way. Beyond
// it a client waits for its own answers, and others go on: npm asks 15 at once.
const maxAsking = 128

// clientKey is where a request's context has its client.
type clientKey struct{}

// clientOf is the address that a request comes from, as far as it is known.
func (m *Mirror) clientOf(r *http.Request) string {
	host := r.RemoteAddr
	if a, err := netip.ParseAddrPort(host); err == nil {
		host = a.Addr().String()
	}
	if m.isTrusted(r) {
		host = forwarded(r, "X-Forwarded-For", host)
	}
	return host
}

// asking is who asks Origin now.
type asking struct {
	mu sync.Mutex
	by map[string]*places
}

// places are one client's.
type places struct {
	taken chan struct{} // a token for each question under way
	users int           // questions and who waits to ask one; under asking.mu
}

// enter waits for a place of client's, until ctx ends. Whoever gets one leaves it once.
func (a *asking) enter(ctx context.Context, client string) (leave func(), err error) {
	a.mu.Lock()
	if a.by == nil {
		a.by = map[string]*places{}
	}
	p := a.by[client]
	if p == nil {
		p = &places{taken: make(chan struct{}, maxAsking)}
		a.by[client] = p
	}
	p.users++
	a.mu.Unlock()
	left := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(a.by, client)
		}
	}
	select {
	case p.taken <- struct{}{}:
		return func() { <-p.taken; left() }, nil
	case <-ctx.Done():
		left()
		return nil, fmt.Errorf("%w: upstream: %d questions of this client are under way", ErrUnavailable, maxAsking)
	}
}

// asked is shared for a question to Origin. It takes a place of the client that ctx is
// of, until it is answered: also when the client has gone before that.
func asked[T any](ctx context.Context, m *Mirror, key string, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	client, ok := ctx.Value(clientKey{}).(string)
	if !ok { // of the mirror's own accord, for what is listed
		return shared(ctx, m, key, limit, f)
	}
	var zero T
	leave, err := m.asking.enter(ctx, client)
	if err != nil {
		return zero, err
	}
	var passed atomic.Bool // to whoever leaves the place
	v, err := shared(ctx, m, key, limit, func(ctx context.Context) (T, error) {
		if passed.CompareAndSwap(false, true) {
			defer leave()
		}
		return f(ctx)
	})
	if passed.CompareAndSwap(false, true) {
		leave() // another's question was joined
	}
	return v, err
}
