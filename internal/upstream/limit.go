package upstream

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// firstLimit is how many requests a host gets at once before anything is
	// known of it.
	firstLimit = 8
	// minWindow is how many answers a decision to raise the limit, or to lower
	// it for latency, takes at least.
	minWindow = 8
	// A host queues when even the fastest answer of a window took slowFactor
	// times the best ever and slowMargin more.
	slowFactor = 2
	slowMargin = 100 * time.Millisecond
)

// HostLimit says how many requests one host gets at once, and why.
type HostLimit struct {
	Host     string // "host:port", or "host" where Options.Hosts names no port
	Limit    int    // requests allowed at once now, 1 to Options.Parallel
	InFlight int
	Waiting  int // calls that wait for their turn
	// Throttled counts answers 408, 429, 503 and 504, and requests that timed out.
	Throttled uint64
	// Slowed counts how often the limit was halved because answers took longer.
	Slowed uint64
	// PausedUntil is when the host, by its Retry-After, may be asked again; in
	// the past or zero where it may be now.
	PausedUntil time.Time
}

// limiter bounds the requests in flight to one host: one more after each window
// of answers (as many as the limit, at least minWindow), half as many when the
// host says that it is too much, does not answer in time, or answers markedly
// later than it could. All that began before a cut count for that one.
//
// Latency is the time to the header, for bodies differ in size; and of a window
// only the fastest counts, for one slow document says nothing of the host. Each
// cut for latency also moves the best a little up, so that a path that became
// longer for good is not held to what it was.
type limiter struct {
	max int

	mu       sync.Mutex
	now      HostLimit // InFlight, Limit and the rest of what is told
	waiting  []*waiter // first come, first served
	cuts     int
	answers  int           // in this window
	fastest  time.Duration // in this window
	best     time.Duration // of all; 0 before the first
	resuming *time.Timer   // wakes those who wait when a pause ends
}

type waiter struct {
	ready chan struct{} // closed when it is this one's turn
	slot  slot
}

// slot is the right to one request. It is given back by release.
type slot struct{ cuts int }

// outcome is what a request told of its host.
type outcome int

const (
	unknown   outcome = iota // nothing: the caller gave up, the network failed
	answered                 // whatever the answer was
	throttled                // too many requests, or none in time
)

func newLimiter(host string, most int) *limiter {
	return &limiter{max: most, now: HostLimit{Host: host, Limit: min(firstLimit, most)}}
}

// acquire waits for a slot, or until ctx ends, whose cause is then the error.
func (l *limiter) acquire(ctx context.Context) (slot, error) {
	if ctx.Err() != nil {
		return slot{}, context.Cause(ctx)
	}
	l.mu.Lock()
	w := &waiter{ready: make(chan struct{})}
	l.waiting = append(l.waiting, w)
	l.admit()
	l.mu.Unlock()
	select {
	case <-w.ready:
		return w.slot, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, w); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	} else { // it was admitted meanwhile
		l.now.InFlight--
		l.admit()
	}
	return slot{}, context.Cause(ctx)
}

// admit lets in who may. l.mu is held.
func (l *limiter) admit() {
	if time.Now().Before(l.now.PausedUntil) {
		return // resuming calls again
	}
	for len(l.waiting) > 0 && l.now.InFlight < l.now.Limit {
		w := l.waiting[0]
		l.waiting = l.waiting[1:]
		l.now.InFlight++
		w.slot = slot{l.cuts}
		close(w.ready)
	}
}

// release gives a slot back with what its request told: latency for one that
// was answered, pause for how long a throttled one is to stay away.
func (l *limiter) release(s slot, o outcome, latency, pause time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	inUse := l.now.InFlight
	l.now.InFlight--
	switch o {
	case answered:
		l.answered(latency, inUse)
	case throttled:
		l.now.Throttled++
		if s.cuts == l.cuts {
			l.halve()
		}
		l.pause(pause)
	}
	l.admit()
}

func (l *limiter) answered(latency time.Duration, inUse int) {
	if l.best == 0 || latency < l.best {
		l.best = max(latency, 1)
	}
	if 2*inUse < l.now.Limit {
		return // that a limit is borne which nobody uses shows nothing
	}
	if l.answers++; l.answers == 1 || latency < l.fastest {
		l.fastest = latency
	}
	if l.answers < max(l.now.Limit, minWindow) {
		return
	}
	l.answers = 0
	switch {
	case l.fastest > slowFactor*l.best+slowMargin:
		l.now.Slowed++
		l.best += l.best / 4
		l.halve()
	case l.now.Limit < l.max:
		l.now.Limit++
	}
}

func (l *limiter) halve() {
	l.now.Limit = max(1, l.now.Limit/2)
	l.cuts++
	l.answers = 0
}

func (l *limiter) pause(d time.Duration) {
	until := time.Now().Add(d)
	if d <= 0 || !until.After(l.now.PausedUntil) {
		return
	}
	l.now.PausedUntil = until
	if l.resuming != nil {
		l.resuming.Stop()
	}
	l.resuming = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.admit()
	})
}

func (l *limiter) status() HostLimit {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now
	s.Waiting = len(l.waiting)
	return s
}

// limiters are the limiters of all hosts asked so far: the configuration's, and
// so no more than it names.
type limiters struct {
	most int
	mu   sync.Mutex
	of   map[string]*limiter
}

func (ls *limiters) host(host string) *limiter {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.of[host]
	if l == nil {
		l = newLimiter(host, ls.most)
		ls.of[host] = l
	}
	return l
}

// Limits tells of each host that was asked so far, sorted by host.
func (c *Client) Limits() []HostLimit {
	c.limits.mu.Lock()
	all := make([]HostLimit, 0, len(c.limits.of))
	for _, l := range c.limits.of {
		all = append(all, l.status())
	}
	c.limits.mu.Unlock()
	slices.SortFunc(all, func(a, b HostLimit) int { return strings.Compare(a.Host, b.Host) })
	return all
}
