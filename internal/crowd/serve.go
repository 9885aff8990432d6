package crowd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// maxConnections bounds the connections of one Serve. Those of 500 installs at once
	// have room, of which npm has 15 each. One that is idle costs some 20 KB here.
	maxConnections = 8192
	// bodyPatience is how long a request's body may take, unless its handler sets
	// another deadline.
	bodyPatience = 30 * time.Second
)

// Serve answers with h on every listener until ctx ends; requests under way
// then have ten seconds. It closes the listeners. Of connections there are at most
// 8192: for one more, the one goes that has kept it waiting longest.
func Serve(ctx context.Context, log *slog.Logger, h http.Handler, listeners ...net.Listener) error {
	return serve(ctx, log, h, newLobby(maxConnections), listeners...)
}

func serve(ctx context.Context, log *slog.Logger, h http.Handler, lobby *lobby, listeners ...net.Listener) error {
	server := &http.Server{
		Handler:           impatient(h),
		ConnState:         lobby.became,
		ConnContext:       lobby.context,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// Bodies have their deadline where they are read, responses theirs in
		// the handler: one for all would cut a large tarball off.
	}
	// A request leaves a few KB behind, and all else that lives may be 5 MB: the
	// collector would run ten times a second, and the slowest answers are those that
	// wait for it. This counts as heap, and is never touched: it takes no memory, and
	// under load there are 16 MiB more of what is to be collected.
	ballast := make([]byte, 16<<20)
	defer runtime.KeepAlive(ballast)

	var g errgroup.Group
	for _, l := range listeners {
		g.Go(func() error {
			err := server.Serve(lobby.listener(l))
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			// One listener gone is the end of all: no half-served registry.
			server.Close()
			return err
		})
	}
	stopped := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	})
	err := g.Wait()
	if !stopped() {
		// Serve returns when Shutdown begins; requests are still under way.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 11*time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	}
	return err
}

// lobby is a crowd of connections, those of all listeners of one Serve.
type lobby struct {
	crowd Crowd[*Conn]
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
	for (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && l.lobby.crowd.MakeRoom() {
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
		l.lobby.crowd.MakeRoom()
		select {
		case l.lobby.room <- struct{}{}:
			return l.lobby.enter(c), nil
		case <-time.After(Look):
		case <-l.closed:
			c.Close()
			return nil, net.ErrClosed
		}
	}
}

func (l *lobby) enter(c net.Conn) *Conn {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	g := &Conn{Conn: c, lobby: l, host: host}
	g.idle.Now()
	l.crowd.Add(g)
	return g
}

// Conn is a connection of Serve's. It waits for its client while no request, or not
// all of one, has come, and while it writes.
type Conn struct {
	net.Conn
	lobby   *lobby
	host    string
	once    sync.Once
	idle    Moment
	writing Moment

	// Of who writes, which is one at a time.
	holding bool
	held    *bytes.Buffer // nil: nothing is
}

func (c *Conn) Waits() time.Time {
	if t := c.writing.Time(); !t.IsZero() {
		return t
	}
	return c.idle.Time()
}

func (c *Conn) Client() string { return c.host }

func (c *Conn) End() { c.Close() }

// maxHead is how much of a response net/http gathers before it writes, in bytes: its
// header and the first of its body. The rest of a large body it writes by itself.
const maxHead = 4 << 10

// heads are what is held; most connections hold nothing.
var heads = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Send writes a piece of the body of w, whose request came by c, in one system call
// with the header if that is still to be sent. A nil Conn writes to w alone.
func (c *Conn) Send(w http.ResponseWriter, piece []byte) (int, error) {
	if c == nil {
		return w.Write(piece)
	}
	c.hold()
	n, err := w.Write(piece)
	return n, errors.Join(err, c.release())
}

// hold has the next Write, of at most maxHead, wait for the one after it. release
// must follow: it sends what still waits.
func (c *Conn) hold() { c.holding = true }

func (c *Conn) release() error {
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

func (c *Conn) Write(p []byte) (int, error) {
	if c.holding && len(p) <= maxHead {
		c.holding, c.held = false, heads.Get().(*bytes.Buffer)
		return c.held.Write(p)
	}
	c.writing.Now()
	defer c.writing.Never()
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

func (c *Conn) Close() error {
	c.once.Do(func() {
		c.lobby.crowd.Remove(c)
		<-c.lobby.room
	})
	return c.Conn.Close()
}

// became is http.Server's ConnState: a new connection is idle until a whole header
// has come.
func (l *lobby) became(nc net.Conn, s http.ConnState) {
	switch c := nc.(*Conn); s {
	case http.StateNew, http.StateIdle:
		c.idle.Now()
	case http.StateActive:
		c.idle.Never()
	}
}

// connKey is where a request's context has its connection.
type connKey struct{}

func (l *lobby) context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// ConnOf is the connection by which a request of Serve's came, nil for another
// server's.
func ConnOf(r *http.Request) *Conn {
	c, _ := r.Context().Value(connKey{}).(*Conn)
	return c
}

// impatient gives a request's body bodyPatience to come, whether h reads it or
// leaves it to net/http, which would wait for it for ever. Until it is answered such
// a request waits for its client.
func impatient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyPatience))
			if c := ConnOf(r); c != nil {
				c.idle.Now()
			}
		}
		h.ServeHTTP(w, r)
	})
}
