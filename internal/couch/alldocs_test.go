package couch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

func TestAllDocsOfNPM(t *testing.T) {
	reg := npmtest.New(t, npmtest.Generate(25, 1))
	reg.Publish("-- @s/c@1.0.0/package.json --\n{}\n-- b@1.0.0/package.json --\n{}\n")
	reg.Delete("b")
	revs := map[string]string{}
	for page, err := range New(Options{URL: reg.FeedURL}).Changes(t.Context(), "", false) {
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Changes {
			if !c.Deleted {
				revs[c.ID] = c.Revs[0]
			}
		}
	}
	for _, limit := range []int{1, 2, 3, 13, 25, 26, 27, 0, 20_000} {
		for _, err := range New(Options{URL: reg.FeedURL, Limit: limit}).Changes(t.Context(), "", false) {
			if err != nil {
				t.Errorf("changes, limit %d: %v", limit, err)
			}
		}
		var got []string
		for run, err := range New(Options{URL: reg.FeedURL, Limit: limit}).AllDocs(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range run {
				if got = append(got, d.ID); d.Rev != revs[d.ID] || d.Deleted {
					t.Errorf("document %+v, want revision %s", d, revs[d.ID])
				}
			}
		}
		if len(got) != 26 || !slices.IsSorted(got) {
			t.Errorf("limit %d: %d documents %v", limit, len(got), got)
		}
	}
}

// docsFeed lists documents in an order of its own.
func docsFeed(total int, ids ...string) feed {
	return func(r *http.Request) (int, http.Header, string) {
		if !strings.HasSuffix(r.URL.Path, "_all_docs") {
			return 200, nil, fmt.Sprintf(npmRoot, 1)
		}
		q := r.URL.Query()
		limit, _ := strconv.Atoi(q.Get("limit"))
		var start string
		json.Unmarshal([]byte(q.Get("startkey")), &start) // "" if there is none
		return 200, nil, docsPageOf(total, ids[max(0, slices.Index(ids, start)):], limit)
	}
}

func docsPageOf(total int, ids []string, limit int) string {
	rows := []string{}
	for _, id := range ids[:min(limit, len(ids))] {
		rows = append(rows, fmt.Sprintf(`{"id":%q,"key":%q,"value":{"rev":"1-a"}}`, id, id))
	}
	return fmt.Sprintf(`{"total_rows":%d,"offset":0,"rows":[%s]}`, total, strings.Join(rows, ",\n"))
}

func list(ctx context.Context, c *Client) (ids []string, err error) {
	for run, err := range c.AllDocs(ctx) {
		if err != nil {
			return ids, err
		}
		for _, d := range run {
			ids = append(ids, d.ID)
		}
	}
	return ids, nil
}

// The order is the server's: some sort as CouchDB's views do.
func TestAllDocsInTheServersOrder(t *testing.T) {
	all := []string{"_design/a", "b", "A", "ä", "@s/x", "_design/z", `"quoted" & more`}
	for limit := 2; limit < 9; limit++ {
		got, err := list(t.Context(), docsFeed(len(all), all...).client(Options{Limit: limit}))
		if err != nil || !slices.Equal(got, []string{"b", "A", "ä", "@s/x", `"quoted" & more`}) {
			t.Errorf("limit %d: %q, %v", limit, got, err)
		}
	}
}

// What is no whole listing is never taken for one.
func TestAllDocsHostile(t *testing.T) {
	rows := func(total int, ids ...string) string { return docsPageOf(total, ids, len(ids)) }
	fixed := func(pages ...string) feed {
		n := 0
		return func(r *http.Request) (int, http.Header, string) {
			if !strings.HasSuffix(r.URL.Path, "_all_docs") {
				return 200, nil, fmt.Sprintf(npmRoot, 1)
			}
			n++
			return 200, nil, pages[min(n, len(pages))-1]
		}
	}
	status := func(code int) feed {
		return func(r *http.Request) (int, http.Header, string) {
			if !strings.HasSuffix(r.URL.Path, "_all_docs") {
				return 200, nil, fmt.Sprintf(npmRoot, 1)
			}
			return code, nil, ""
		}
	}
	for name, c := range map[string]struct {
		feed feed
		want error
	}{
		"the same page again":       {fixed(rows(9, "a", "b", "c")), ErrMalformed},
		"the last page again":       {fixed(rows(9, "a", "b"), rows(9, "b", "c"), rows(9, "a", "b")), ErrMalformed},
		"a circle of pages":         {fixed(rows(9, "a", "b"), rows(9, "b", "c", "d"), rows(9, "d", "x", "b")), ErrMalformed},
		"a row twice":               {fixed(rows(9, "a", "b", "a")), ErrMalformed},
		"the start key twice":       {fixed(rows(9, "a", "b"), rows(9, "b", "b")), ErrMalformed},
		"it ends in the middle":     {fixed(rows(9, "a", "b"), rows(9, "b")), ErrMalformed},
		"it is empty":               {fixed(rows(9)), ErrMalformed},
		"the start key went away":   {fixed(rows(3, "a", "b"), rows(3, "c"), rows(3, "c")), nil},
		"it does not say its size":  {fixed(rows(0, "a", "b"), rows(0, "b")), nil},
		"it is cut":                 {fixed(`{"total_rows":9,"rows":[{"id":"a","value":{"rev":"1"}},`), ErrMalformed},
		"HTML":                      {fixed(`<html>`), ErrMalformed},
		"no rows":                   {fixed(`{"total_rows":0}`), ErrMalformed},
		"an error in 200":           {fixed(`{"error":"timeout"}`), ErrMalformed},
		"something after it":        {fixed(rows(3, "a", "b") + "{}"), ErrMalformed},
		"a row without an id":       {fixed(`{"rows":[{"key":"a","error":"not_found"}]}`), ErrMalformed},
		"a row without a value":     {fixed(`{"rows":[{"id":"a","value":null}]}`), ErrMalformed},
		"a row with an id twice":    {fixed(`{"rows":[{"id":"a","id":"b","value":{"rev":"1"}}]}`), ErrMalformed},
		"an id of absurd length":    {fixed(rows(3, strings.Repeat("a", 5000))), ErrMalformed},
		"a row beyond all measure":  {fixed(`{"rows":[{"id":"a","x":"` + strings.Repeat("a", 200_000) + `"}]}`), ErrTooLarge},
		"refused":                   {status(400), ErrRefused},
		"not there":                 {status(404), ErrRefused},
		"broken":                    {status(500), ErrUnavailable},
		"pages beyond what we take": {docsFeed(900, many(900)...), nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				got, err := list(t.Context(), c.feed.client(Options{MaxBody: 20_000}))
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Errorf("%d documents, %v", len(got), err)
				}
				if name == "pages beyond what we take" && len(got) != 900 {
					t.Errorf("%d documents", len(got))
				}
				if d := time.Since(begun); d > 6*time.Minute {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

func many(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("package-%06d", i))
	}
	return ids
}

// A listing that never ends is given up when it is twice what the server says it
// holds, and a million more.
func TestAllDocsEndless(t *testing.T) {
	for total, most := range map[int]int{1: 1_000_002, 50_000: 1_100_000} {
		l := listing{total: total, bounds: map[string]bool{}}
		var err error
		n := 0
		for ; err == nil && n < 2_000_000; n += 50_000 {
			docs := make([]Doc, 50_000)
			for i := range docs {
				docs[i].ID = strconv.Itoa(n + i)
			}
			_, err = l.move(docsPage{docs: docs})
		}
		if !errors.Is(err, ErrMalformed) || n < most || n > most+100_000 {
			t.Errorf("of %d: given up after %d, %v", total, n, err)
		}
	}
}

// Faults that pass are waited for.
func TestAllDocsFaultsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, asked := docsFeed(5, "a", "b", "c", "d", "e"), 0
		c := feed(func(r *http.Request) (int, http.Header, string) {
			switch asked++; asked % 3 {
			case 1:
				return 503, http.Header{"Retry-After": {"9"}}, ""
			case 2:
				return 200, nil, "<html>"
			}
			return good(r)
		}).client(Options{Limit: 2})
		got, err := list(t.Context(), c)
		if err != nil || strings.Join(got, "") != "abcde" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// A feed that is away is told of once, and once when it is back.
func TestAwayIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, asked := docsFeed(2, "a", "b"), 0
		var logged bytes.Buffer
		c := feed(func(r *http.Request) (int, http.Header, string) {
			if asked++; asked < 6 {
				return 503, nil, ""
			}
			return good(r)
		}).client(Options{Log: slog.New(slog.NewTextHandler(&logged, nil))})
		if _, err := list(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if asked < 6 || strings.Count(logged.String(), "asking the feed again") != 1 || strings.Count(logged.String(), "answers again") != 1 {
			t.Errorf("asked %d times: %s", asked, &logged)
		}
	})
}

// Nothing runs once the iteration has ended: synctest would not let it.
func TestReadAheadIsJoined(t *testing.T) {
	for name, walk := range map[string]func(ctx context.Context, c *Client){
		"AllDocs": func(ctx context.Context, c *Client) {
			for range c.AllDocs(ctx) {
				break
			}
		},
		"Changes": func(ctx context.Context, c *Client) {
			for range c.Changes(ctx, "", false) {
				break
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			running, asked := 0, 0
			c := New(Options{URL: "http://feed.example.test", Limit: 2, HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				running++
				defer func() { running-- }()
				q := r.URL.Query()
				if q.Get("startkey") != "" || q.Get("since") == "2" { // the second page hangs
					asked++
					<-r.Context().Done()
					return nil, r.Context().Err()
				}
				switch {
				case strings.HasSuffix(r.URL.Path, "_all_docs"):
					return quick(r, 200, docsPageOf(9, []string{"a", "b"}, 2)), nil
				case strings.HasSuffix(r.URL.Path, "_changes"):
					return quick(r, 200, `{"results":[{"seq":1,"id":"a","changes":[]},{"seq":2,"id":"b","changes":[]}],"last_seq":2}`), nil
				}
				return quick(r, 200, fmt.Sprintf(npmRoot, 9)), nil
			})}})
			begun := time.Now()
			walk(t.Context(), c)
			if running != 0 || asked > 1 || time.Since(begun) > 0 {
				t.Errorf("%s: %d run, %d asked, after %v", name, running, asked, time.Since(begun))
			}
		})
	}
}

func BenchmarkReadDocs(b *testing.B) {
	body := []byte(docsPageOf(10_000, many(10_000), 10_000))
	for b.Loop() {
		if _, err := readDocs(body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "rows/s")
}
