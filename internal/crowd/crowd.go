// Package crowd serves HTTP to more clients than there is room for: it bounds the
// connections, and where one more comes one goes that waits for its client. It knows
// nothing of what is served.
package crowd

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Patience is how long a client may keep waiting those that wait for room. Where
	// there is room, it has the timeouts of the server.
	Patience = time.Second
	// Look is the time after which a full crowd is looked over again.
	Look = 50 * time.Millisecond
)

// Guest is one of a Crowd.
type Guest interface {
	comparable
	// Waits is since when it has waited for its client alone; zero: it does not.
	Waits() time.Time
	// Client is the address that it is at, as far as it is known.
	Client() string
	// End makes it go, soon. It may be called while it goes by itself.
	End()
}

// Crowd is who lasts as long as a client lets it. There a client that takes its time
// (a half-open connection, a header that trickles, an answer that is not read) costs
// those that do not: so where there is no room for one more, one goes that waits for
// its client. Who works for its client never does.
type Crowd[T Guest] struct {
	mu sync.Mutex
	in map[T]struct{}
}

// Add takes one in.
func (c *Crowd[T]) Add(g T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in == nil {
		c.in = map[T]struct{}{}
	}
	c.in[g] = struct{}{}
}

// Remove takes one out that has gone, or never was in.
func (c *Crowd[T]) Remove(g T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.in, g)
}

// MakeRoom ends one that has waited for Patience or more: of the client that has
// the most of these, the one that has waited longest. It reports whether there was one.
func (c *Crowd[T]) MakeRoom() bool {
	type slow struct {
		many    int
		longest T
		since   time.Time
	}
	by := map[string]*slow{}
	var most *slow
	c.mu.Lock()
	for g := range c.in {
		t := g.Waits()
		if t.IsZero() || time.Since(t) < Patience {
			continue
		}
		s := by[g.Client()]
		if s == nil {
			s = &slow{}
			by[g.Client()] = s
		}
		if s.many++; s.since.IsZero() || t.Before(s.since) {
			s.longest, s.since = g, t
		}
		if most == nil || s.many > most.many {
			most = s
		}
	}
	if most != nil {
		delete(c.in, most.longest) // nobody else is to choose it
	}
	c.mu.Unlock()
	if most != nil {
		most.longest.End()
	}
	return most != nil
}

// Moment is a time that may be none. It may be read and set concurrently.
type Moment struct{ nanos atomic.Int64 }

// Now is the time, Never none, Time what it was set to.
func (m *Moment) Now()   { m.nanos.Store(time.Now().UnixNano()) }
func (m *Moment) Never() { m.nanos.Store(0) }
func (m *Moment) Time() (t time.Time) {
	if n := m.nanos.Load(); n != 0 {
		t = time.Unix(0, n)
	}
	return t
}
