package mirror

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
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// visitor is a guest whose waiting a test decides.
type visitor struct {
	at    string
	since time.Time
	ended *[]string
	name  string
}

func (v *visitor) waits() time.Time { return v.since }
func (v *visitor) client() string   { return v.at }
func (v *visitor) end()             { *v.ended = append(*v.ended, v.name) }

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
			var c crowd[*visitor]
			for i := range tt.in {
				tt.in[i].ended = &ended
				c.add(&tt.in[i])
			}
			for range tt.want {
				if !c.makeRoom() {
					t.Error("nobody had to go")
				}
			}
			if fmt.Sprint(ended) != fmt.Sprint(tt.want) {
				t.Errorf("%v went, want %v", ended, tt.want)
			}
			if len(tt.want) == 0 && c.makeRoom() {
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
				if took := time.Since(began); took > crowdPatience+2*crowdLook {
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
			if took := time.Since(began); took > writePatience+time.Second {
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
		do   func(c *conn) (int, error)
		want []string
		n    int
		err  error
	}{
		{"alone", 1 << 20, func(c *conn) (int, error) { return c.Write([]byte("head")) }, []string{"head"}, 4, nil},
		{"held", 1 << 20, func(c *conn) (int, error) {
			c.hold()
			return c.Write([]byte("head"))
		}, nil, 4, nil},
		{"held and released", 1 << 20, func(c *conn) (int, error) {
			c.hold()
			n, _ := c.Write([]byte("head"))
			return n, c.release()
		}, []string{"head"}, 4, nil},
		{"held and followed", 1 << 20, func(c *conn) (int, error) {
			c.hold()
			c.Write([]byte("head"))
			n, err := c.Write([]byte("body"))
			return n, errors.Join(err, c.release())
		}, []string{"head", "body"}, 4, nil},
		{"too long to be held", 1 << 20, func(c *conn) (int, error) {
			c.hold()
			return c.Write([]byte(long))
		}, []string{long}, len(long), nil},
		{"released with nothing held", 1 << 20, func(c *conn) (int, error) {
			c.hold()
			err := c.release()
			n, _ := c.Write([]byte("head"))
			return n, err
		}, []string{"head"}, 4, nil},
		{"the head is cut short", 2, func(c *conn) (int, error) {
			c.hold()
			c.Write([]byte("head"))
			return c.Write([]byte("body"))
		}, []string{"he"}, 0, net.ErrClosed},
		{"the body is cut short", 6, func(c *conn) (int, error) {
			c.hold()
			c.Write([]byte("head"))
			return c.Write([]byte("body"))
		}, []string{"head", "bo"}, 2, net.ErrClosed},
		{"it fails when it is released", 2, func(c *conn) (int, error) {
			c.hold()
			n, _ := c.Write([]byte("head"))
			return n, c.release()
		}, []string{"he"}, 4, net.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &written{most: tt.most}
			n, err := tt.do(&conn{Conn: w})
			if n != tt.n || !errors.Is(err, tt.err) || fmt.Sprintf("%.9q", w.all) != fmt.Sprintf("%.9q", tt.want) {
				t.Errorf("%d, %v, and %.9q; want %d, %v, and %.9q", n, err, w.all, tt.n, tt.err, tt.want)
			}
		})
	}
}

// Whatever net/http gathers and whatever it writes by itself, it comes whole and in
// order.
func TestResponsesOfAnySize(t *testing.T) {
	body := make([]byte, maxPiece+8<<10)
	for i := range body {
		body[i] = byte(i % 251)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, slog.New(slog.DiscardHandler), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			size, _ := strconv.Atoi(r.URL.Path[1:])
			p := newPatientWriter(w, time.Minute)
			p.conn = connOf(r)
			sendRaw(p, r, http.StatusOK, body[:size])
		}), l)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	check(t, err)
	defer c.Close()
	r := bufio.NewReader(c)
	sizes := []int{0, 1}
	for _, around := range []int{2 << 10, 4 << 10, 6 << 10, 8 << 10, maxPiece, maxPiece + 4<<10} {
		for d := -300; d <= 300; d += 50 {
			sizes = append(sizes, around+d)
		}
	}
	for _, size := range sizes {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			fmt.Fprintf(c, "%s /%d HTTP/1.1\r\nHost: x\r\n\r\n", method, size)
			resp, err := http.ReadResponse(r, &http.Request{Method: method})
			check(t, err)
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
	check(t, <-ended)
}

// stuck is a response whose client reads nothing until its deadline.
type stuck struct {
	http.ResponseWriter
	deadline chan time.Time
}

func (s *stuck) Header() http.Header { return http.Header{} }
func (s *stuck) WriteHeader(int)     {}
func (s *stuck) SetWriteDeadline(t time.Time) error {
	s.deadline <- t
	return nil
}
func (s *stuck) Write([]byte) (int, error) {
	for end := time.Now().Add(time.Hour); ; {
		select {
		case end = <-s.deadline:
		case <-time.After(time.Until(end)):
			return 0, context.DeadlineExceeded
		}
	}
}

func TestMemoryOfAnswersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSending(100)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		check(t, err)
		begin := func(size int64) *transfer {
			tr, err := s.begin(newPatientWriter(&stuck{deadline: make(chan time.Time, 8)}, 0), r, size)
			check(t, err)
			return tr
		}
		took := func(f func()) time.Duration {
			began := time.Now()
			f()
			return time.Since(began)
		}
		unread, working := begin(60), begin(40)
		failed := make(chan error, 1)
		go func() {
			_, err := unread.Write([]byte("x"))
			unread.done()
			failed <- err
		}()
		synctest.Wait()

		// Whose client does not read makes room, and sooner than it would alone.
		var next *transfer
		if d := took(func() { next = begin(60) }); d < crowdPatience || d > crowdPatience+2*crowdLook {
			t.Errorf("the next one began after %v", d)
		}
		if err := <-failed; err == nil {
			t.Error("who is not read went on")
		}
		// Who works does not: one more has to wait.
		time.AfterFunc(time.Minute, next.done)
		if d := took(func() { next = begin(60) }); d != time.Minute {
			t.Errorf("one more began after %v", d)
		}
		// But what waits for a block holds nothing meanwhile.
		over := working.fetch()
		if d := took(func() { begin(40).done() }); d != 0 {
			t.Errorf("beside one that fetches, one began after %v", d)
		}
		over()
		next.done()
		working.done()
		// However much it is, alone there is room for it.
		if d := took(func() { begin(500).done() }); d != 0 {
			t.Errorf("one alone began after %v", d)
		}
		if s.held != 0 || len(s.crowd.in) != 0 {
			t.Errorf("%d bytes of %d are held when all are done", s.held, len(s.crowd.in))
		}
	})
}

// A client that goes while it waits for its turn leaves nothing behind.
func TestWhoWaitsMayGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSending(100)
		all, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		check(t, err)
		first, err := s.begin(newPatientWriter(&stuck{deadline: make(chan time.Time, 8)}, 0), all, 100)
		check(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.begin(newPatientWriter(&stuck{deadline: make(chan time.Time, 8)}, 0), all.WithContext(ctx), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		first.done()
		if s.held != 0 || len(s.door) != 0 {
			t.Errorf("%d bytes are held, %d at the door", s.held, len(s.door))
		}
	})
}

// A document counts as one of the few that are in memory for as long as it is used.
func TestDocumentsInMemoryAreBounded(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced(func(o *Options) { o.Deadline = 50 * time.Millisecond })
	m.render = make(chan struct{}, 1)
	p, err := m.packument(t.Context(), "left-pad", false)
	check(t, err)
	paths := []string{"/left-pad/latest", "/-/package/left-pad/dist-tags", "/left-pad", tarballPath("left-pad", "left-pad-1.3.0.tgz")}
	check(t, m.decoded(t.Context(), p, func([]byte) error {
		for _, path := range paths {
			if got := get(m, path); got.Code != http.StatusServiceUnavailable {
				t.Errorf("%s beside another document: %d %s", path, got.Code, got.Body)
			}
		}
		return nil
	}))
	for _, path := range paths {
		if got := get(m, path); got.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
}

func TestSearchesTakeTurns(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	turns := m.searching
	synctest.Test(t, func(t *testing.T) {
		m.searching = make(chan struct{}, 1)
		m.searching <- struct{}{}
		began := time.Now()
		got := newRecorder(http.HandlerFunc(m.serveSearch), http.MethodGet, "/-/v1/search?text=pad")
		if got.Code != http.StatusServiceUnavailable || time.Since(began) != searchBudget {
			t.Errorf("beside another search: %d %s after %v", got.Code, got.Body, time.Since(began))
		}
	})
	m.searching = turns
	if got := get(m, "/-/v1/search?text=pad"); got.Code != http.StatusOK {
		t.Errorf("alone: %d %s", got.Code, got.Body)
	}
}

// Whose client goes while its list is walked leaves nothing open: Close would panic.
func TestASearchLeftMidway(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/-/v1/search?text=pad", nil)
	check(t, err)
	m.searching = make(chan struct{}) // nobody's turn: its time is over first
	func() {
		defer func() {
			if got := recover(); got != http.ErrAbortHandler {
				t.Errorf("it ended with %v", got)
			}
		}()
		m.serveSearch(httptest.NewRecorder(), r)
	}()
	m.searching = make(chan struct{}, 1)
	for range 20 { // which of the two is ready is chosen at random
		func() {
			defer func() { recover() }()
			m.serveSearch(httptest.NewRecorder(), r)
		}()
	}
	if len(m.searching) != 0 {
		t.Error("its turn was not given back")
	}
	check(t, m.Close())
}
