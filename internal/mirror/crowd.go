package mirror

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

const (
	// maxConnections bounds the connections of one Serve. Those of 500 installs at once
	// have room, of which npm has 15 each. One that is idle costs some 20 KB here.
	maxConnections = 8192
	// maxSending bounds the bytes that answers under way of one registry hold in memory.
	maxSending = 256 << 20
	// maxHeld is the most that a tarball on its way holds, in bytes: as many blocks
	// as are read ahead, and that which is being written.
	maxHeld = 9 * unixfs.ChunkSize
	// crowdPatience is how long a client may keep waiting those that wait for room.
	// Where there is room, it has writePatience and the server's timeouts.
	crowdPatience = time.Second
	// crowdLook is the time after which a full crowd is looked over again.
	crowdLook = 50 * time.Millisecond
)

// guest is one of a crowd.
type guest interface {
	comparable
	// waits is since when it has waited for its client alone; zero: it does not.
	waits() time.Time
	// client is the address that it is at, as far as it is known.
	client() string
	// end makes it go, soon. It may be called while it goes by itself.
	end()
}

// crowd is who lasts as long as a client lets it. There a client that takes its time
// (a half-open connection, a header that trickles, an answer that is not read) costs
// those that do not: so where there is no room for one more, one goes that waits for
// its client. Who works for its client never does.
type crowd[T guest] struct {
	mu sync.Mutex
	in map[T]struct{}
}

func (c *crowd[T]) add(g T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in == nil {
		c.in = map[T]struct{}{}
	}
	c.in[g] = struct{}{}
}

func (c *crowd[T]) remove(g T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.in, g)
}

// makeRoom ends one that has waited for crowdPatience or more: of the client that has
// the most of these, the one that has waited longest. It reports whether there was one.
func (c *crowd[T]) makeRoom() bool {
	type slow struct {
		many    int
		longest T
		since   time.Time
	}
	by := map[string]*slow{}
	var most *slow
	c.mu.Lock()
	for g := range c.in {
		t := g.waits()
		if t.IsZero() || time.Since(t) < crowdPatience {
			continue
		}
		s := by[g.client()]
		if s == nil {
			s = &slow{}
			by[g.client()] = s
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
		most.longest.end()
	}
	return most != nil
}

// moment is a time that may be none.
type moment struct{ nanos atomic.Int64 }

func (m *moment) now()   { m.nanos.Store(time.Now().UnixNano()) }
func (m *moment) never() { m.nanos.Store(0) }
func (m *moment) time() (t time.Time) {
	if n := m.nanos.Load(); n != 0 {
		t = time.Unix(0, n)
	}
	return t
}

// lobby is a crowd of connections, those of all listeners of one Serve.
type lobby struct {
	crowd crowd[*conn]
	room  chan struct{} // holds one token for each connection
}

func newLobby(max int) *lobby { return &lobby{room: make(chan struct{}, max)} }

// listener gives a connection once there is room for it.
type listener struct {
	net.Listener
	lobby  *lobby
	closed chan struct{}
	once   sync.Once
}

func (l *lobby) listener(of net.Listener) net.Listener {
	return &listener{Listener: of, lobby: l, closed: make(chan struct{})}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Accept gives the next connection. Those after it are in the system's queue until
// there is room for this one. Where there is no descriptor left for one, those that
// are here are too many too.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	for (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && l.lobby.crowd.makeRoom() {
		c, err = l.Listener.Accept()
	}
	if err != nil {
		return nil, err
	}
	for {
		select {
		case l.lobby.room <- struct{}{}:
			return l.lobby.enter(c), nil
		default:
		}
		l.lobby.crowd.makeRoom()
		select {
		case l.lobby.room <- struct{}{}:
			return l.lobby.enter(c), nil
		case <-time.After(crowdLook):
		case <-l.closed:
			c.Close()
			return nil, net.ErrClosed
		}
	}
}

func (l *lobby) enter(c net.Conn) *conn {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	g := &conn{Conn: c, lobby: l, host: host}
	g.idle.now()
	l.crowd.add(g)
	return g
}

// conn is a connection. It waits for its client while no request, or not all of one,
// has come, and while it writes.
type conn struct {
	net.Conn
	lobby   *lobby
	host    string
	once    sync.Once
	idle    moment
	writing moment

	// Of who writes, which is one at a time.
	holding bool
	held    *bytes.Buffer // nil: nothing is
}

func (c *conn) waits() time.Time {
	if t := c.writing.time(); !t.IsZero() {
		return t
	}
	return c.idle.time()
}

func (c *conn) client() string { return c.host }

func (c *conn) end() { c.Close() }

// maxHead is how much of a response net/http gathers before it writes, in bytes: its
// header and the first of its body. The rest of a large body it writes by itself.
const maxHead = 4 << 10

// heads are what is held; most connections hold nothing.
var heads = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// hold has the next Write, of at most maxHead, wait for the one after it, so that a
// header and its body are one system call. release must follow: it sends what still
// waits.
func (c *conn) hold() { c.holding = true }

func (c *conn) release() error {
	c.holding = false
	head := c.held
	if head == nil {
		return nil
	}
	c.held = nil
	defer putHead(head)
	_, err := c.Write(head.Bytes())
	return err
}

func putHead(head *bytes.Buffer) {
	head.Reset()
	heads.Put(head)
}

func (c *conn) Write(p []byte) (int, error) {
	if c.holding && len(p) <= maxHead {
		c.holding, c.held = false, heads.Get().(*bytes.Buffer)
		return c.held.Write(p)
	}
	c.writing.now()
	defer c.writing.never()
	head := c.held
	if head == nil {
		return c.Conn.Write(p)
	}
	c.held = nil
	defer putHead(head)
	both := net.Buffers{head.Bytes(), p}
	n, err := both.WriteTo(c.Conn)
	return max(int(n)-head.Len(), 0), err // head was counted when it was held
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.lobby.crowd.remove(c)
		<-c.lobby.room
	})
	return c.Conn.Close()
}

// became is http.Server's ConnState: a new connection is idle until a whole header
// has come.
func (l *lobby) became(nc net.Conn, s http.ConnState) {
	switch c := nc.(*conn); s {
	case http.StateNew, http.StateIdle:
		c.idle.now()
	case http.StateActive:
		c.idle.never()
	}
}

// connKey is where a request's context has its connection.
type connKey struct{}

func (l *lobby) context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connOf is the connection of a request of Serve's, nil of another server's.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// impatient gives a request's body writePatience to come, whether h reads it or
// leaves it to net/http, which would wait for it for ever. Until it is answered such
// a request waits for its client.
func impatient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(writePatience))
			if c := connOf(r); c != nil {
				c.idle.now()
			}
		}
		h.ServeHTTP(w, r)
	})
}

// sending is the answers under way that hold much memory.
type sending struct {
	crowd crowd[*transfer]
	most  int64 // bytes

	mu   sync.Mutex
	held int64         // bytes
	door chan struct{} // one token: who has it is the next to begin
	left chan struct{} // one token: there may be room
}

func newSending(most int64) *sending {
	return &sending{most: most, door: make(chan struct{}, 1), left: make(chan struct{}, 1)}
}

// transfer is one of these. It waits for its client while a piece is written; what it
// is to hold does not count while it waits for a block that is not here.
type transfer struct {
	*patientWriter
	of       *sending
	size     int64
	host     string
	fetching int // under of.mu
}

func (t *transfer) client() string { return t.host }

// begin waits for its turn, until the client has gone. Who holds nothing yet waits
// here; of those that do, one goes that is not read.
func (s *sending) begin(w http.ResponseWriter, r *http.Request, size int64) (*transfer, error) {
	p, ok := w.(*patientWriter)
	if !ok {
		return nil, errors.New("an answer that is not written with patience")
	}
	t := &transfer{patientWriter: p, of: s, size: min(max(size, 0), s.most)}
	t.host, _, _ = net.SplitHostPort(r.RemoteAddr)
	select {
	case s.door <- struct{}{}:
		defer func() { <-s.door }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	for !s.take(t) {
		s.crowd.makeRoom()
		select {
		case <-s.left:
		case <-time.After(crowdLook):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	s.crowd.add(t)
	// Its time to be written begins now.
	p.extend(writePatience + tarballPatience)
	return t, nil
}

func (s *sending) take(t *transfer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held+t.size > s.most {
		return false
	}
	s.held += t.size
	return true
}

// add counts bytes that are held, or no longer.
func (s *sending) add(bytes int64) {
	if s.held += bytes; bytes < 0 {
		select {
		case s.left <- struct{}{}:
		default:
		}
	}
}

// done is called once nothing is held any more.
func (t *transfer) done() {
	t.of.crowd.remove(t)
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.of.add(-t.size)
}

// fetch is called when a block is asked for that is not here, and its result when
// that is over. A nil transfer counts nothing.
func (t *transfer) fetch() (over func()) {
	if t == nil {
		return func() {}
	}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if t.fetching++; t.fetching == 1 {
		t.of.add(-t.size)
	}
	return func() {
		t.of.mu.Lock()
		defer t.of.mu.Unlock()
		if t.fetching--; t.fetching == 0 {
			t.of.add(t.size) // it goes on, room or not: it has begun
		}
	}
}
