package crowd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
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
	crowd Crowd[*conn]
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

func (l *lobby) enter(c net.Conn) *conn {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	g := &conn{Conn: c, lobby: l, host: host}
	g.idle.Now()
	l.crowd.Add(g)
	return g
}

// conn is a connection. It waits for its client while no request, or not all of one,
// has come, and while it writes.
type conn struct {
	net.Conn
	lobby   *lobby
	host    string
	once    sync.Once
	idle    Moment
	writing Moment
}

func (c *conn) Waits() time.Time {
	if t := c.writing.Time(); !t.IsZero() {
		return t
	}
	return c.idle.Time()
}

func (c *conn) Client() string { return c.host }

func (c *conn) End() { c.Close() }

func (c *conn) Write(p []byte) (int, error) {
	c.writing.Now()
	defer c.writing.Never()
	return c.Conn.Write(p)
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.lobby.crowd.Remove(c)
		<-c.lobby.room
	})
	return c.Conn.Close()
}

// became is http.Server's ConnState: a new connection is idle until a whole header
// has come.
func (l *lobby) became(nc net.Conn, s http.ConnState) {
	switch c := nc.(*conn); s {
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

// impatient gives a request's body bodyPatience to come, whether h reads it or
// leaves it to net/http, which would wait for it for ever. Until it is answered such
// a request waits for its client.
func impatient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyPatience))
			if c, ok := r.Context().Value(connKey{}).(*conn); ok {
				c.idle.Now()
			}
		}
		h.ServeHTTP(w, r)
	})
}
