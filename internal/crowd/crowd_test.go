package crowd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// visitor is a Guest whose waiting a test decides.
type visitor struct {
	at    string
	since time.Time
	ended *[]string
	name  string
}

func (v *visitor) Waits() time.Time { return v.since }
func (v *visitor) Client() string   { return v.at }
func (v *visitor) End()             { *v.ended = append(*v.ended, v.name) }

func TestWhoLeavesACrowd(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		name string
		in   []visitor
		want []string // in this order
	}{
		{"nobody is there", nil, nil},
		{"all work", []visitor{{name: "a"}, {name: "b"}}, nil},
		{"a short wait is none", []visitor{{name: "a", since: ago(0)}}, nil},
		{"the longest first", []visitor{{name: "a", since: ago(5 * time.Second)}, {name: "b", since: ago(9 * time.Second)}, {name: "c"}}, []string{"b", "a"}},
		{"of whom there are most", []visitor{
			{name: "old", at: "1", since: ago(time.Minute)},
			{name: "x", at: "2", since: ago(3 * time.Second)}, {name: "y", at: "2", since: ago(2 * time.Second)},
		}, []string{"x"}},
		{"those that work do not count as many", []visitor{
			{name: "a", at: "1"}, {name: "b", at: "1"}, {name: "c", at: "2", since: ago(2 * time.Second)},
		}, []string{"c"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ended []string
			var c Crowd[*visitor]
			for i := range tt.in {
				tt.in[i].ended = &ended
				c.Add(&tt.in[i])
			}
			for range tt.want {
				if !c.MakeRoom() {
					t.Error("nobody had to go")
				}
			}
			if fmt.Sprint(ended) != fmt.Sprint(tt.want) {
				t.Errorf("%v went, want %v", ended, tt.want)
			}
			if len(tt.want) == 0 && c.MakeRoom() {
				t.Error("somebody had to go")
			}
		})
	}
}

// pipes is a listener for connections within a test's bubble.
type pipes struct {
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{queue: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.queue:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(t *testing.T) net.Conn {
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	select {
	case p.queue <- there:
	case <-time.After(time.Hour):
		t.Fatal("nobody took the connection")
	}
	return here
}

// inLobby runs test against a server with room for max connections, in a bubble
// where time is what it waits for.
func inLobby(t *testing.T, max int, h http.HandlerFunc, test func(t *testing.T, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		lobby := newLobby(max)
		ended := make(chan error)
		go func() { ended <- serve(ctx, slog.New(slog.DiscardHandler), h, lobby, p) }()
		test(t, p)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // Shutdown looks now and then
		synctest.Wait()
		if n := len(lobby.room); n != 0 {
			t.Errorf("%d connections are counted when all have gone", n)
		}
	})
}

func converse(c net.Conn, text string) (int, error) {
	go io.WriteString(c, text) // a pipe has no buffer; it ends with c
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

const aGet = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestConnectionsAreBounded(t *testing.T) {
	fine := func(http.ResponseWriter, *http.Request) {}
	for _, tt := range []struct {
		name  string
		begin string // what those that are there first send
		body  bool   // which is answered: they stay, idle
	}{
		{"half-open", "", false},
		{"a header that does not end", "GET / HTTP/1.1\r\nX: y", false},
		{"a body that does not end", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", false},
		{"kept alive", aGet, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fine
			if strings.HasPrefix(tt.begin, "POST") {
				h = func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
			}
			inLobby(t, 3, h, func(t *testing.T, p *pipes) {
				var first []net.Conn
				for range 3 {
					c := p.dial(t)
					first = append(first, c)
					if tt.body {
						if status, err := converse(c, tt.begin); status != 200 || err != nil {
							t.Fatal(status, err)
						}
					} else if _, err := io.WriteString(c, tt.begin); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				began := time.Now()
				if status, err := converse(p.dial(t), aGet); status != 200 || err != nil {
					t.Errorf("one more is answered %d, %v", status, err)
				}
				if took := time.Since(began); took > Patience+2*Look {
					t.Errorf("it took %v", took)
				}
				gone := 0
				for _, c := range first {
					c.SetReadDeadline(time.Now().Add(time.Millisecond))
					var timeout net.Error
					if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
						gone++
					}
				}
				if gone != 1 {
					t.Errorf("%d went for one that came", gone)
				}
			})
		})
	}
}

func TestWorkIsNotPutOut(t *testing.T) {
	inLobby(t, 1, func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) }, func(t *testing.T, p *pipes) {
		first, second := make(chan int, 1), make(chan int, 1)
		c := p.dial(t)
		go func() {
			status, _ := converse(c, aGet)
			first <- status
		}()
		synctest.Wait()
		go func() {
			status, _ := converse(p.dial(t), aGet)
			second <- status
		}()
		if status := <-first; status != 200 {
			t.Errorf("the first is answered %d", status)
		}
		if status := <-second; status != 200 { // once the first waits for its client
			t.Errorf("the second is answered %d", status)
		}
	})
}

// A body that no handler reads is read by net/http, which has no deadline for that.
func TestABodyHasItsTime(t *testing.T) {
	for _, method := range []string{"GET", "PUT"} {
		inLobby(t, 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, func(t *testing.T, p *pipes) {
			c := p.dial(t)
			began := time.Now()
			if _, err := io.WriteString(c, method+" / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > bodyPatience+time.Second {
				t.Errorf("%s: the connection was kept for %v", method, took)
			}
		})
	}
}

// written is a connection that notes what each Write brought, and takes at most so
// many bytes.
type written struct {
	net.Conn
	all  []string
	most int
}

func (w *written) Write(p []byte) (int, error) {
	n := min(len(p), w.most)
	w.most -= n
	w.all = append(w.all, string(p[:n]))
	if n < len(p) {
		return n, net.ErrClosed
	}
	return n, nil
}

func TestAHeaderWaitsForItsBody(t *testing.T) {
	long := strings.Repeat("x", maxHead+1)
	for _, tt := range []struct {
		name string
		most int
		do   func(c *Conn) (int, error)
		want []string
		n    int
		err  error
	}{
		{"alone", 1 << 20, func(c *Conn) (int, error) { return c.Write([]byte("head")) }, []string{"head"}, 4, nil},
		{"held", 1 << 20, func(c *Conn) (int, error) {
			c.hold()
			return c.Write([]byte("head"))
		}, nil, 4, nil},
		{"held and released", 1 << 20, func(c *Conn) (int, error) {
			c.hold()
			n, _ := c.Write([]byte("head"))
			return n, c.release()
		}, []string{"head"}, 4, nil},
		{"held and followed", 1 << 20, func(c *Conn) (int, error) {
			c.hold()
			c.Write([]byte("head"))
			n, err := c.Write([]byte("body"))
			return n, errors.Join(err, c.release())
		}, []string{"head", "body"}, 4, nil},
		{"too long to be held", 1 << 20, func(c *Conn) (int, error) {
			c.hold()
			return c.Write([]byte(long))
		}, []string{long}, len(long), nil},
		{"released with nothing held", 1 << 20, func(c *Conn) (int, error) {
			c.hold()
			err := c.release()
			n, _ := c.Write([]byte("head"))
			return n, err
		}, []string{"head"}, 4, nil},
		{"the head is cut short", 2, func(c *Conn) (int, error) {
			c.hold()
			c.Write([]byte("head"))
			return c.Write([]byte("body"))
		}, []string{"he"}, 0, net.ErrClosed},
		{"the body is cut short", 6, func(c *Conn) (int, error) {
			c.hold()
			c.Write([]byte("head"))
			return c.Write([]byte("body"))
		}, []string{"head", "bo"}, 2, net.ErrClosed},
		{"it fails when it is released", 2, func(c *Conn) (int, error) {
			c.hold()
			n, _ := c.Write([]byte("head"))
			return n, c.release()
		}, []string{"he"}, 4, net.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &written{most: tt.most}
			n, err := tt.do(&Conn{Conn: w})
			if n != tt.n || !errors.Is(err, tt.err) || fmt.Sprintf("%.9q", w.all) != fmt.Sprintf("%.9q", tt.want) {
				t.Errorf("%d, %v, and %.9q; want %d, %v, and %.9q", n, err, w.all, tt.n, tt.err, tt.want)
			}
		})
	}
}

// Whatever net/http gathers and whatever it writes by itself, it comes whole and in
// order.
func TestResponsesOfAnySize(t *testing.T) {
	body := make([]byte, 72<<10)
	for i := range body {
		body[i] = byte(i % 251)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, slog.New(slog.DiscardHandler), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			size, _ := strconv.Atoi(r.URL.Path[1:])
			w.Header().Set("Content-Length", r.URL.Path[1:])
			_, _ = ConnOf(r).Send(w, body[:size])
		}), l)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	sizes := []int{0, 1}
	for _, around := range []int{2 << 10, 4 << 10, 6 << 10, 8 << 10, 64 << 10} {
		for d := -300; d <= 300; d += 50 {
			sizes = append(sizes, around+d)
		}
	}
	for _, size := range sizes {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			fmt.Fprintf(c, "%s /%d HTTP/1.1\r\nHost: x\r\n\r\n", method, size)
			resp, err := http.ReadResponse(r, &http.Request{Method: method})
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			want := body[:size]
			if method == http.MethodHead {
				want = nil
			}
			if err != nil || resp.ContentLength != int64(size) || !bytes.Equal(got, want) {
				t.Fatalf("%s of %d bytes: %d came, %v", method, size, len(got), err)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
