package couch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// feed answers requests in memory, so that tests in a synctest bubble need no
// network and no real time.
type feed func(r *http.Request) (status int, header http.Header, body string)

func (f feed) RoundTrip(r *http.Request) (*http.Response, error) {
	status, header, body := f(r)
	if status == 0 {
		return nil, errors.New("connection refused")
	}
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Status: strconv.Itoa(status), Header: header,
		Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (f feed) client(o Options) *Client {
	o.URL = "http://feed.example.test/registry/"
	o.HTTP = &http.Client{Transport: f}
	return New(o)
}

const npmRoot = `{"db_name":"registry","engine":"npm-replicate","doc_count":3,"update_seq":%d}`

func newHead(n int64) *atomic.Int64 {
	var head atomic.Int64
	head.Store(n)
	return &head
}

// npmFeed is npm's service with these rows, "seq id" each. before may answer in
// its place.
func npmFeed(t *testing.T, head *atomic.Int64, before func(r *http.Request) (int, http.Header, string)) feed {
	return func(r *http.Request) (int, http.Header, string) {
		if before != nil {
			if status, header, body := before(r); status != 0 {
				return status, header, body
			}
		}
		if !strings.HasSuffix(r.URL.Path, "/_changes") {
			return 200, nil, fmt.Sprintf(npmRoot, head.Load())
		}
		q := r.URL.Query()
		for name := range q {
			if name != "since" && name != "limit" {
				t.Errorf("npm refuses %s", r.URL)
				return 400, nil, `{"error":"Bad Request"}`
			}
		}
		since, err := strconv.Atoi(q.Get("since"))
		limit, err2 := strconv.Atoi(q.Get("limit"))
		if err != nil || err2 != nil || limit > 10000 {
			t.Errorf("npm refuses %s", r.URL)
			return 400, nil, ""
		}
		var rows []string
		last := since
		for n := since + 1; n <= int(head.Load()) && len(rows) < limit; n++ {
			rows = append(rows, fmt.Sprintf(`{"seq":%d,"id":"p%d","changes":[{"rev":"1-%d"}]}`, n, n, n))
			last = n
		}
		return 200, nil, fmt.Sprintf(`{"results":[%s],"last_seq":%d}`, strings.Join(rows, ","), last)
	}
}

func ids(p Page) string {
	var all []string
	for _, c := range p.Changes {
		all = append(all, c.ID)
	}
	return strings.Join(all, " ")
}

func TestNPMUpToItsHead(t *testing.T) {
	reg := npmtest.New(t, "-- a@1.0.0/package.json --\n{}\n-- b@1.0.0/package.json --\n{}\n-- @s/c@1.0.0/package.json --\n{}\n")
	reg.Delete("b")
	ctx := context.Background()
	c := New(Options{URL: reg.FeedURL, Limit: 2, UserAgent: "test"})
	info, err := c.Server(ctx)
	if err != nil || info.Engine != EngineNPM || info.IncludeDocs || info.UpdateSeq != fmt.Sprint(reg.Head()) {
		t.Fatalf("server %+v, %v", info, err)
	}
	var got []Change
	since := ""
	for page, err := range c.Changes(ctx, "", false) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Changes...)
		since = page.LastSeq
	}
	if len(got) != 3 || got[0].ID != "a" || got[1].ID != "@s/c" || got[2].ID != "b" || !got[2].Deleted || got[0].Deleted || len(got[0].Revs) != 1 {
		t.Errorf("changes %+v", got)
	}
	if since != info.UpdateSeq {
		t.Errorf("cursor %q, head %q", since, info.UpdateSeq)
	}
	for page, err := range c.Changes(ctx, since, false) {
		t.Errorf("after the head: %+v, %v", page, err)
	}
	for _, err := range c.Changes(ctx, "99999", false) {
		if !errors.Is(err, ErrReset) {
			t.Errorf("a cursor beyond the head: %v", err)
		}
	}
	reg.Publish("-- a@1.1.0/package.json --\n{}\n")
	n := 0
	for page, err := range c.Changes(ctx, since, false) {
		if n++; err != nil || ids(page) != "a" {
			t.Errorf("after a publication: %+v, %v", page, err)
		}
	}
	if n != 1 {
		t.Errorf("%d pages", n)
	}
}

// npm's service is polled at its head, no oftener than Idle allows.
func TestNPMIsPolledAtItsHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		head, polls := newHead(2), 0
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		c := npmFeed(t, head, func(r *http.Request) (int, http.Header, string) {
			if strings.HasSuffix(r.URL.Path, "_changes") {
				polls++
			}
			return 0, nil, ""
		}).client(Options{})
		time.AfterFunc(time.Hour, func() { head.Store(3) })
		start := time.Now()
		var got []string
		var last error
		for page, err := range c.Changes(ctx, "0", true) {
			if last = err; err != nil {
				continue
			}
			got = append(got, ids(page))
			if page.LastSeq == "3" {
				if d := time.Since(start); d < time.Hour || d > time.Hour+45*time.Second {
					t.Errorf("seen after %v", d)
				}
				cancel()
			}
		}
		if !slices.Equal(got, []string{"p1 p2", "p3"}) || !errors.Is(last, context.Canceled) {
			t.Errorf("pages %q, %v", got, last)
		}
		// An hour at 22.5 to 37.5 seconds.
		if polls < 90 || polls > 170 {
			t.Errorf("%d polls in an hour", polls)
		}
	})
}

// A feed that goes back, or becomes another, is never followed on.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, spoil := range map[string]func(head *atomic.Int64) func(r *http.Request) (int, http.Header, string){
			"the head goes back while idle": func(head *atomic.Int64) func(r *http.Request) (int, http.Header, string) {
				time.AfterFunc(time.Hour, func() { head.Store(1) })
				return nil
			},
			"last_seq goes back": func(head *atomic.Int64) func(r *http.Request) (int, http.Header, string) {
				return func(r *http.Request) (int, http.Header, string) {
					if r.URL.Query().Get("since") == "5" {
						return 200, nil, `{"results":[{"seq":2,"id":"p","changes":[]}],"last_seq":2}`
					}
					return 0, nil, ""
				}
			},
			"another engine": func(head *atomic.Int64) func(r *http.Request) (int, http.Header, string) {
				at := time.Now().Add(time.Hour)
				return func(r *http.Request) (int, http.Header, string) {
					if !strings.HasSuffix(r.URL.Path, "_changes") && time.Now().After(at) {
						return 200, nil, `{"db_name":"registry","update_seq":"9-x"}`
					}
					return 0, nil, ""
				}
			},
		} {
			head := newHead(5)
			c := npmFeed(t, head, spoil(head)).client(Options{})
			ctx, cancel := context.WithTimeout(context.Background(), 24*time.Hour)
			var errs []error
			for _, err := range c.Changes(ctx, "3", true) {
				if err != nil {
					errs = append(errs, err)
				}
			}
			cancel()
			if len(errs) != 1 || !errors.Is(errs[0], ErrReset) {
				t.Errorf("%s: %v", name, errs)
			}
		}
	})
}

// Whatever goes wrong for a while, no row is lost and none is taken for the end.
func TestFaultsPass(t *testing.T) {
	page := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "_changes") }
	for name, fault := range map[string]func(r *http.Request) (int, http.Header, string){
		"500": func(r *http.Request) (int, http.Header, string) { return 500, nil, "" },
		"429": func(r *http.Request) (int, http.Header, string) { return 429, http.Header{"Retry-After": {"7"}}, "" },
		"429 for a year": func(r *http.Request) (int, http.Header, string) {
			return 429, http.Header{"Retry-After": {"31536000"}}, ""
		},
		"408":             func(r *http.Request) (int, http.Header, string) { return 408, nil, "" },
		"HTML":            func(r *http.Request) (int, http.Header, string) { return 200, nil, "<html>brownout</html>" },
		"nothing":         func(r *http.Request) (int, http.Header, string) { return 200, nil, "" },
		"null":            func(r *http.Request) (int, http.Header, string) { return 200, nil, "null" },
		"an empty object": func(r *http.Request) (int, http.Header, string) { return 200, nil, "{}" },
		"an error in 200": func(r *http.Request) (int, http.Header, string) { return 200, nil, `{"error":"timeout"}` },
		"cut": func(r *http.Request) (int, http.Header, string) {
			if page(r) {
				return 200, nil, `{"results":[{"seq":9,"id":"p9","changes":[]},`
			}
			return 200, nil, `{"engine":"npm-replicate",`
		},
		"two objects": func(r *http.Request) (int, http.Header, string) {
			return 200, nil, `{"results":[],"last_seq":9,"update_seq":9}{}`
		},
		"double names": func(r *http.Request) (int, http.Header, string) {
			return 200, nil, `{"results":[],"results":[],"last_seq":9,"update_seq":1,"update_seq":9}`
		},
		"rows without a sequence": func(r *http.Request) (int, http.Header, string) {
			if page(r) {
				return 200, nil, `{"results":[{"id":"p9"}],"last_seq":9}`
			}
			return 500, nil, ""
		},
		"rows that lead nowhere": func(r *http.Request) (int, http.Header, string) {
			if page(r) {
				return 200, nil, fmt.Sprintf(`{"results":[{"seq":1,"id":"p9"}],"last_seq":%s}`, r.URL.Query().Get("since"))
			}
			return 500, nil, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				head, asked, fired := newHead(6), 0, 0
				c := npmFeed(t, head, func(r *http.Request) (int, http.Header, string) {
					// The first time it works, then fails for 20 minutes.
					if asked++; asked <= 2 || time.Since(start(t)) > 20*time.Minute {
						return 0, nil, ""
					}
					fired++
					return fault(r)
				}).client(Options{Limit: 2})
				start(t)
				ctx, cancel := context.WithTimeout(context.Background(), 24*time.Hour)
				defer cancel()
				var got []string
				failed := 0
				for page, err := range c.Changes(ctx, "0", true) {
					if err != nil {
						failed++
						continue
					}
					if len(page.Changes) > 0 {
						got = append(got, ids(page))
					}
					if page.LastSeq == "6" {
						break
					}
				}
				if !slices.Equal(got, []string{"p1 p2", "p3 p4", "p5 p6"}) {
					t.Errorf("pages %q", got)
				}
				if fired == 0 || failed == 0 {
					t.Errorf("%d faults, %d errors: the fault did not fire, or nobody was told", fired, failed)
				}
				if fired > 2000 {
					t.Errorf("asked %d times in 20 minutes", fired)
				}
			})
		})
	}
}

// start is when the test's bubble began: synctest's clock starts at one moment.
func start(*testing.T) time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

// A refusal is final, and so is any failure without follow.
func TestFailuresEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			status int
			follow bool
			want   error
		}{
			{400, true, ErrRefused}, {401, true, ErrRefused}, {404, false, ErrRefused}, {409, true, ErrRefused},
			{500, false, ErrUnavailable}, {304, false, ErrUnavailable}, {0, false, ErrUnavailable},
		} {
			feed := feed(func(r *http.Request) (int, http.Header, string) { return c.status, nil, "" })
			begun := time.Now()
			var errs []error
			for _, err := range feed.client(Options{}).Changes(context.Background(), "0", c.follow) {
				errs = append(errs, err)
			}
			if len(errs) != 1 || !errors.Is(errs[0], c.want) {
				t.Errorf("%d: %v", c.status, errs)
			}
			if d := time.Since(begun); d > 6*time.Minute || c.want == ErrRefused && d > 0 {
				t.Errorf("%d: given up after %v", c.status, d)
			}
		}
	})
}

// counter is the head of a feed.
type counter struct {
	mu    sync.Mutex
	head  uint64
	moved chan struct{}
}

func newCounter(head uint64) *counter { return &counter{head: head, moved: make(chan struct{})} }

func (c *counter) Head() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head
}

func (c *counter) set(head uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.head = head
	close(c.moved)
	c.moved = make(chan struct{})
}

func (c *counter) Wait(ctx context.Context, since uint64) error {
	for {
		c.mu.Lock()
		head, moved := c.head, c.moved
		c.mu.Unlock()
		if head > since {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// couchFeed is CouchDB with opaque sequences and documents. huge and broken are
// documents that no page can carry.
// It refuses feed=continuous.
func couchFeed(src *counter, huge, broken int) http.Handler {
	doc := func(n int) string {
		switch n {
		case huge:
			return `{"_id":"huge","x":"` + strings.Repeat("x", 200_000) + `"}`
		case broken:
			return `{"_id":`
		}
		return fmt.Sprintf(`{"_id":"p%d","a":1,"a":2}`, n) // for its own parser to refuse
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		since, _, _ := strings.Cut(q.Get("since"), "-")
		at, _ := strconv.Atoi(since)
		limit, _ := strconv.Atoi(q.Get("limit"))
		if r.URL.Path == "/db/" {
			fmt.Fprintf(w, `{"db_name":"db","update_seq":"%d-opaque","doc_count":1,"sizes":{"file":1}}`, src.Head())
			return
		}
		switch q.Get("feed") {
		case "continuous":
			http.Error(w, `{"error":"bad_request"}`, 400)
			return
		case "longpoll":
			if src.Wait(r.Context(), uint64(at)) != nil {
				return
			}
		}
		now := int(src.Head())
		var rows []string
		for n := at + 1; n <= now && len(rows) < limit; n++ {
			row := fmt.Sprintf(`{"seq":"%d-opaque","id":"p%d","changes":[{"rev":"1-a"},{"rev":"1-b"}]`, n, n)
			if n == 3 {
				row = fmt.Sprintf(`{"seq":"%d-opaque","id":"_design/app","changes":[{"rev":"1-a"}]`, n)
			}
			if q.Get("include_docs") == "true" {
				row += `,"doc":` + doc(n)
			}
			rows = append(rows, row+"}")
			at = n
		}
		fmt.Fprintf(w, `{"results":[%s],`+"\n"+`"last_seq":"%d-opaque","pending":0}`+"\n", strings.Join(rows, ",\n"), at)
	})
}

func TestCouchDBWithDocuments(t *testing.T) {
	src := newCounter(5)
	srv := httptest.NewServer(couchFeed(src, -1, -1))
	defer srv.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := New(Options{URL: srv.URL + "/db", Limit: 2})
	if info, err := c.Server(ctx); err != nil || !info.IncludeDocs || info.Engine != EngineCouch || info.UpdateSeq != "5-opaque" {
		t.Fatalf("server %+v, %v", info, err)
	}
	var got []string
	for page, err := range c.Changes(ctx, "1-opaque", true) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			break
		}
		for _, change := range page.Changes {
			if string(change.Doc) != fmt.Sprintf(`{"_id":"%s","a":1,"a":2}`, change.ID) || !slices.Equal(change.Revs, []string{"1-a", "1-b"}) {
				t.Errorf("change %+v", change)
			}
		}
		got = append(got, ids(page)+" to "+page.LastSeq)
		switch page.LastSeq {
		case "5-opaque": // the long poll brings what comes later
			src.set(6)
		case "6-opaque":
			cancel()
		}
	}
	if want := []string{"p2 to 3-opaque", "p4 p5 to 5-opaque", "p6 to 6-opaque"}; !slices.Equal(got, want) {
		t.Errorf("pages %q, want %q", got, want)
	}
}

// One document that is too large or no JSON does not stop the feed: its row
// comes without it, the others with theirs.
func TestOneDocumentNeverStopsTheFeed(t *testing.T) {
	for name, at := range map[string][2]int{"too large": {6, -1}, "not JSON": {-1, 6}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := newCounter(9)
				h := couchFeed(src, at[0], at[1])
				feed := feed(func(r *http.Request) (int, http.Header, string) {
					w := httptest.NewRecorder()
					r.URL.Path = strings.Replace(r.URL.Path, "/registry/", "/db/", 1)
					h.ServeHTTP(w, r)
					return w.Code, nil, w.Body.String()
				})
				var got []string
				for page, err := range feed.client(Options{MaxBody: 100_000}).Changes(context.Background(), "0", false) {
					if err != nil {
						t.Fatal(err)
					}
					for _, change := range page.Changes {
						if (change.Doc == nil) != (change.ID == "p6") {
							t.Errorf("change %s has document %.50s", change.ID, change.Doc)
						}
						got = append(got, change.ID)
					}
				}
				if want := []string{"p1", "p2", "p4", "p5", "p6", "p7", "p8", "p9"}; !slices.Equal(got, want) {
					t.Errorf("changes %v", got)
				}
			})
		})
	}
}

func BenchmarkReadPage(b *testing.B) {
	var rows []string
	for i := range 10_000 {
		rows = append(rows, fmt.Sprintf(`{"seq":%d,"id":"@scope/package-%d","changes":[{"rev":"37-0123456789abcdef0123456789abcdef"}]}`, 80_000_000+i, i))
	}
	body := []byte(`{"results":[` + strings.Join(rows, ",\n") + `],"last_seq":80010000}`)
	for b.Loop() {
		if _, err := readPage(body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "rows/s")
}
