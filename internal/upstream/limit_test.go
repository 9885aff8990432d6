package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// fill takes as many slots as there are.
func fill(t *testing.T, l *limiter) []slot {
	t.Helper()
	var slots []slot
	for range l.status().Limit {
		s, err := l.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, s)
	}
	return slots
}

// window is one window of answers of the given latency from a host that is
// kept busy.
func window(t *testing.T, l *limiter, latency time.Duration) {
	t.Helper()
	slots := fill(t, l)
	for range max(len(slots), minWindow) {
		l.release(slots[0], answered, latency, 0)
		if l.now.InFlight < l.now.Limit {
			l.acquire(t.Context())
		}
	}
	for l.now.InFlight > 0 {
		l.release(slots[0], unknown, 0, 0)
	}
}

func TestLimit(t *testing.T) {
	limit := func(l *limiter) int { return l.status().Limit }
	t.Run("Grows", func(t *testing.T) {
		l := newLimiter("h", 12)
		for want := firstLimit; want < 12; want++ {
			if limit(l) != want {
				t.Fatalf("%d, want %d", limit(l), want)
			}
			window(t, l, time.Millisecond)
		}
		window(t, l, time.Millisecond)
		if s := l.status(); s.Limit != 12 || s.InFlight != 0 || s.Throttled != 0 || s.Host != "h" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("NotWhenUnused", func(t *testing.T) {
		l := newLimiter("h", 64)
		for range 1000 {
			s, _ := l.acquire(t.Context())
			l.release(s, answered, time.Millisecond, 0)
		}
		if limit(l) != firstLimit {
			t.Errorf("%d", limit(l))
		}
	})
	t.Run("HalvesOncePerRound", func(t *testing.T) {
		l := newLimiter("h", 64)
		for _, want := range []int{4, 2, 1, 1} {
			for _, s := range fill(t, l) {
				l.release(s, throttled, 0, 0)
			}
			if limit(l) != want {
				t.Fatalf("%d, want %d", limit(l), want)
			}
		}
		if s := l.status(); s.Throttled != 8+4+2+1 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
		window(t, l, time.Millisecond)
		if limit(l) != 2 {
			t.Errorf("does not grow again: %d", limit(l))
		}
	})
	t.Run("Latency", func(t *testing.T) {
		l := newLimiter("h", 64)
		window(t, l, 50*time.Millisecond)
		// One slow answer, and a little more for all, is no queue.
		slots := fill(t, l)
		l.release(slots[0], answered, time.Minute, 0)
		for range slots[1:] {
			l.release(slots[0], unknown, 0, 0)
		}
		window(t, l, 190*time.Millisecond)
		if s := l.status(); s.Limit <= firstLimit || s.Slowed != 0 {
			t.Errorf("%+v", s)
		}
		l = newLimiter("h", 64)
		window(t, l, 50*time.Millisecond)
		window(t, l, 250*time.Millisecond)
		if s := l.status(); s.Limit != (firstLimit+1)/2 || s.Slowed != 1 || s.Throttled != 0 {
			t.Errorf("%+v", s)
		}
		// A path that became longer for good is got used to.
		for range 20 {
			window(t, l, 250*time.Millisecond)
		}
		if s := l.status(); s.Limit < firstLimit || s.Slowed > 5 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("CapBelowTheFirst", func(t *testing.T) {
		l := newLimiter("h", 1)
		window(t, l, time.Millisecond)
		if limit(l) != 1 {
			t.Errorf("%d", limit(l))
		}
	})
}

func TestLimitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter("h", 1)
		first, err := l.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		given := make(chan error, 1)
		go func() { _, err := l.acquire(ctx); given <- err }()
		synctest.Wait()
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				s, err := l.acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				order <- i
				l.release(s, answered, 0, 0)
			}()
			synctest.Wait()
		}
		if s := l.status(); s.Waiting != 4 || s.InFlight != 1 {
			t.Errorf("%+v", s)
		}
		cancel(gone)
		if err := <-given; err != gone {
			t.Error(err)
		}
		if _, err := l.acquire(ctx); err != gone {
			t.Error(err)
		}
		l.release(first, answered, 0, 0)
		synctest.Wait()
		for want := range 3 {
			if got := <-order; got != want {
				t.Errorf("%d came in place of %d", got, want)
			}
		}
		if s := l.status(); s.Waiting != 0 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestLimitPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		l := newLimiter("h", 64)
		slots := fill(t, l)
		l.release(slots[0], throttled, 0, 20*time.Second)
		l.release(slots[1], throttled, 0, 5*time.Second) // no end to the longer one
		l.release(slots[2], throttled, 0, 30*time.Second)
		l.release(slots[3], answered, time.Millisecond, 0)
		if s := l.status(); !s.PausedUntil.Equal(start.Add(30*time.Second)) || s.Limit != 4 || s.Throttled != 3 {
			t.Errorf("%+v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := l.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		for _, s := range slots[4:] {
			l.release(s, unknown, 0, 0)
		}
		if _, err := l.acquire(t.Context()); err != nil || time.Since(start) != 30*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// pipe is a server that a client in the same bubble reaches, and nothing else.
func pipe(t *testing.T, c *Client, handler http.HandlerFunc) {
	l := listener{make(chan net.Conn), make(chan struct{}), new(sync.Once)}
	s := &http.Server{Handler: handler}
	go s.Serve(l)
	transport := c.http.Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case l.conns <- there:
			return here, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		s.Close()
		synctest.Wait()
	})
}

type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   *sync.Once
}

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

const small = `{"name":"n"}`

// What a host says about being asked too much holds for all who ask it.
func TestClientLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var mu sync.Mutex
		now, most, asked := 0, 0, 0
		c := client("http://r.example.test", func(o *Options) { o.Attempts = 2; o.Parallel = 3 })
		pipe(t, c, func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			asked++
			first, early := asked == 1, asked <= 3
			now++
			most = max(most, now)
			mu.Unlock()
			if first {
				w.Header().Set("Retry-After", "20")
				w.WriteHeader(http.StatusTooManyRequests)
			} else {
				if since := time.Since(start); !early && since < 20*time.Second {
					t.Errorf("asked after %v", since)
				}
				time.Sleep(time.Second)
				io.WriteString(w, small)
			}
			mu.Lock()
			now--
			mu.Unlock()
		})
		var calls sync.WaitGroup
		for range 20 {
			calls.Go(func() {
				if _, err := c.Packument(t.Context(), "n", ""); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		limits := c.Limits()
		if len(limits) != 1 || limits[0].Host != "r.example.test:80" || limits[0].Throttled != 1 || limits[0].InFlight != 0 || limits[0].Waiting != 0 {
			t.Errorf("%+v", limits)
		}
		if most > 3 || asked != 21 {
			t.Errorf("%d at once of %d", most, asked)
		}
	})
}

// A host that answers nothing in time gets fewer requests, and the others as many.
func TestClientLimitsByHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client("http://r.example.test", func(o *Options) { o.Attempts = 1; o.Hosts = []string{"cdn.example.test"} })
		pipe(t, c, func(w http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.Host, "cdn") {
				<-req.Context().Done()
				return
			}
			io.WriteString(w, small)
		})
		var calls sync.WaitGroup
		for _, port := range []string{":1", ":2"} {
			calls.Go(func() {
				_, err := c.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: "http://cdn.example.test" + port + "/n.tgz", Integrity: sri(nil)})
				if !errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		if _, err := c.Packument(t.Context(), "n", ""); err != nil {
			t.Error(err)
		}
		limits := c.Limits()
		if len(limits) != 2 || limits[0].Host != "cdn.example.test" || limits[0].Limit != firstLimit/2 || limits[0].Throttled != 2 || limits[1].Limit != firstLimit {
			t.Errorf("%+v", limits)
		}
	})
}

func TestRates(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		calls  int
		want   time.Duration
	}{
		{"NoBound", func(*Options) {}, 5, 0},
		// 5 bodies of 1 MB at 64 KiB a second, but for the first burst.
		{"Bytes", func(o *Options) { o.MaxRate = 64 << 10 }, 5, 5_000_000*time.Second/(64<<10) - time.Second},
		// So slow that each transfer alone would count as stalled, and as too long.
		{"SlowerThanAStall", func(o *Options) { o.MaxRate = 500 }, 5, (5_000_000 - maxBurst) * time.Second / 500},
		{"Requests", func(o *Options) { o.MaxRequests = 2 }, 5, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body := make([]byte, 1_000_000)
				cl := client("http://r.example.test", func(o *Options) { o.Attempts = 1 }, c.change)
				pipe(t, cl, func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
				start := time.Now()
				var calls sync.WaitGroup
				for range c.calls {
					calls.Go(func() {
						tb, err := cl.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: "http://r.example.test/n.tgz", Integrity: sri(body)})
						if err != nil {
							t.Error(err)
							return
						}
						tb.Close()
					})
				}
				calls.Wait()
				// The clock is the bubble's: only the buckets' rounding moves it.
				if took := time.Since(start); took < c.want-time.Millisecond || took > c.want+time.Millisecond {
					t.Errorf("took %v, want %v", took, c.want)
				}
			})
		})
	}
}

// One call ends at its deadline, whatever it waits for.
func TestTimeout(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"Silence": func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() },
		"Drip": func(w http.ResponseWriter, req *http.Request) {
			for req.Context().Err() == nil {
				select {
				case <-time.After(time.Second):
				case <-req.Context().Done():
				}
				io.WriteString(w, " ")
				http.NewResponseController(w).Flush()
			}
		},
		"Retries": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"Pause": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := client("http://r.example.test", func(o *Options) { o.Attempts = 1000; o.Backoff = time.Second; o.Timeout = 10 * time.Second })
				pipe(t, c, handler)
				start := time.Now()
				_, err := c.Packument(t.Context(), "n", "")
				if !errors.Is(err, ErrUnavailable) || time.Since(start) != 10*time.Second {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				// The caller's own end is the caller's.
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if _, err := c.Packument(ctx, "n", ""); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
				if l := c.Limits(); l[0].InFlight != 0 || l[0].Waiting != 0 {
					t.Errorf("%+v", l)
				}
			})
		})
	}
}

// With one attempt everything is asked for once.
func TestOneAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"Status":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, ErrUnavailable},
		"Throttle": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, ErrUnavailable},
		"Mismatch": {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") }, npm.ErrIntegrity},
		"Cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			io.WriteString(w, "x")
		}, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				cl := client("http://r.example.test", func(o *Options) { o.Attempts = 1; o.Backoff = time.Hour })
				pipe(t, cl, func(w http.ResponseWriter, req *http.Request) { asked++; c.handler(w, req) })
				start := time.Now()
				_, err := cl.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: "http://r.example.test/n.tgz", Integrity: sri(nil)})
				if !errors.Is(err, c.want) || asked != 1 || time.Since(start) != 0 {
					t.Errorf("%v after %d requests and %v", err, asked, time.Since(start))
				}
			})
		})
	}
}
