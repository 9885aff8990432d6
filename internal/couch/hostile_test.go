package couch

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What a server can do to a follower, and what it ends as. Every case has the
// root document right and takes at most Options.Retry, or a little more.
func TestHostilePages(t *testing.T) {
	rows := func(last int, texts ...string) string {
		return fmt.Sprintf(`{"results":[%s],"last_seq":%d}`, strings.Join(texts, ","), last)
	}
	long := strings.Repeat("9", maxSeq+1)
	for name, c := range map[string]struct {
		body string
		want error // nil: it is taken, as the ids that follow
		ids  string
	}{
		"HTML":                    {"<!doctype html><html>", ErrMalformed, ""},
		"cut":                     {`{"results":[{"seq":2,"id":"a"`, ErrMalformed, ""},
		"cut after the rows":      {`{"results":[{"seq":2,"id":"a","changes":[]}]`, ErrMalformed, ""},
		"two answers":             {rows(2, `{"seq":2,"id":"a"}`) + rows(2), ErrMalformed, ""},
		"endless rows":            {rows(2, strings.Repeat(`{"seq":2,"id":"a","changes":[]},`, 10_000)+`{"seq":2}`), ErrTooLarge, ""},
		"an endless string":       {`{"results":[{"seq":2,"id":"` + strings.Repeat("a", 200_000), ErrTooLarge, ""},
		"a seq of absurd length":  {rows(2, `{"seq":"`+long+`","id":"a"}`), ErrMalformed, ""},
		"a last_seq like that":    {`{"results":[],"last_seq":"` + long + `"}`, ErrMalformed, ""},
		"a seq that is an array":  {rows(2, `{"seq":[2,"x"],"id":"a"}`), ErrMalformed, ""},
		"a seq that is no number": {`{"results":[{"seq":"x","id":"a"}],"last_seq":"x"}`, ErrMalformed, ""},
		"a fraction of a seq":     {`{"results":[{"seq":2.5,"id":"a"}],"last_seq":2.5}`, ErrMalformed, ""},
		"a row with two seqs":     {rows(2, `{"seq":2,"id":"a","seq":3}`), ErrMalformed, ""},
		"a row with two ids":      {rows(2, `{"seq":2,"id":"a","id":"b"}`), ErrMalformed, ""},
		"a row without a seq":     {rows(2, `{"id":"a"}`), ErrMalformed, ""},
		"a row that is null":      {rows(2, `null`), ErrMalformed, ""},
		"depth":                   {rows(2, strings.Repeat("[", 20_000)), ErrMalformed, ""},
		"many fields":             {rows(2, `{"seq":2,`+manyFields(200)+`}`), ErrMalformed, ""},
		"the head goes back":      {rows(0, `{"seq":0,"id":"a"}`), ErrReset, ""},
		"rows that lead nowhere":  {rows(1, `{"seq":1,"id":"a"}`), ErrMalformed, ""},
		"an empty page":           {rows(1), nil, ""},
		"an empty page that goes": {rows(2), nil, ""},
		"repeated ids":            {rows(2, `{"seq":2,"id":"a"}`, `{"seq":2,"id":"a"}`), nil, "a a"},
		"no ids":                  {rows(2, `{"seq":2,"changes":null}`), nil, ""},
		"a name from outside":     {rows(2, `{"seq":2,"id":"../../etc","doc":"x"}`), nil, "../../etc"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				given := false
				client := feed(func(r *http.Request) (int, http.Header, string) {
					switch since := r.URL.Query().Get("since"); {
					case !strings.HasSuffix(r.URL.Path, "_changes"):
						return 200, nil, fmt.Sprintf(npmRoot, 2)
					case since != "1" || given && c.want == nil:
						return 200, nil, fmt.Sprintf(`{"results":[],"last_seq":%s}`, since)
					}
					given = true
					return 200, nil, c.body
				}).client(Options{MaxBody: 100_000})
				begun := time.Now()
				var got []string
				var failed error
				for page, err := range client.Changes(t.Context(), "1", false) {
					if failed = err; err == nil && len(page.Changes) > 0 {
						got = append(got, ids(page))
					}
				}
				if !errors.Is(failed, c.want) || (failed == nil) != (c.want == nil) || strings.Join(got, " ") != c.ids {
					t.Errorf("%q, %v", got, failed)
				}
				if d := time.Since(begun); d > 6*time.Minute {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

func manyFields(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"f%d":%d`, i, i))
	}
	return strings.Join(all, ",")
}

// What a connection can do. Timeout covers the body.
func TestHostileConnections(t *testing.T) {
	rootly := func(r *http.Request) bool { return !strings.HasSuffix(r.URL.Path, "_changes") }
	for name, c := range map[string]struct {
		answer func(r *http.Request) (*http.Response, error)
		want   error
	}{
		"it drips": {func(r *http.Request) (*http.Response, error) {
			return slow(r, func(w io.Writer) {
				for {
					time.Sleep(time.Second)
					if _, err := io.WriteString(w, " "); err != nil {
						return
					}
				}
			}), nil
		}, ErrUnavailable},
		"it drips after the answer": {func(r *http.Request) (*http.Response, error) {
			return slow(r, func(w io.Writer) {
				for io.WriteString(w, `{"results":[],"last_seq":1}`); ; time.Sleep(time.Second) {
					if _, err := io.WriteString(w, "\n"); err != nil {
						return
					}
				}
			}), nil
		}, ErrUnavailable},
		"it says nothing": {func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}, ErrUnavailable},
		"it is cut": {func(r *http.Request) (*http.Response, error) {
			return slow(r, func(w io.Writer) { w.(*io.PipeWriter).CloseWithError(io.ErrUnexpectedEOF) }), nil
		}, ErrUnavailable},
		"429 now":       {tooMany("0"), ErrUnavailable},
		"429 at a date": {tooMany(time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC).Format(http.TimeFormat)), ErrUnavailable},
		"429 long ago":  {tooMany("Mon, 02 Jan 1995 15:04:05 GMT"), ErrUnavailable},
		"429 of a kind": {tooMany("soon"), ErrUnavailable},
		"429 for -1 s":  {tooMany("-1"), ErrUnavailable},
		"429 for ever":  {tooMany("99999999999999999999"), ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, asked := time.Now(), 0
				client := New(Options{URL: "http://feed.example.test", HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					if rootly(r) {
						return quick(r, 200, fmt.Sprintf(npmRoot, 1)), nil
					}
					asked++
					return c.answer(r)
				})}})
				var errs []error
				for _, err := range client.Changes(t.Context(), "1", false) {
					errs = append(errs, err)
				}
				if len(errs) != 1 || !errors.Is(errs[0], c.want) {
					t.Errorf("%v", errs)
				}
				if d := time.Since(begun); d > 10*time.Minute || asked > 100 || asked < 2 {
					t.Errorf("asked %d times in %v", asked, d)
				}
				time.Sleep(time.Minute) // for the server's side to see it
			})
		})
	}
}

func tooMany(after string) func(r *http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		resp := quick(r, 429, "")
		resp.Header.Set("Retry-After", after)
		return resp, nil
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "31536000": maxRetryAfter, "-1": 0, "soon": 0, "1.5": 0,
		"Fri, 02 Jan 2026 03:04:45 GMT": 40 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0, "Sat, 02 Jan 2027 03:04:45 GMT": maxRetryAfter,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// MaxBody is of what comes out of the compression.
func TestAGzipBomb(t *testing.T) {
	sent := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "_changes") {
			fmt.Fprintf(w, npmRoot, 1)
			return
		}
		sent++
		w.Header().Set("Content-Encoding", "gzip")
		zw := gzip.NewWriter(w)
		zeros := make([]byte, 1<<20)
		for range 64 {
			zw.Write(zeros) // until the client is gone
		}
		zw.Close()
	}))
	defer srv.Close()
	for _, err := range New(Options{URL: srv.URL, MaxBody: 1 << 20}).Changes(t.Context(), "0", false) {
		if !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	}
	if sent != 1 {
		t.Errorf("asked %d times", sent)
	}
}

// Redirects are followed within the feed's own host, and nothing that is secret
// goes anywhere else.
func TestRedirects(t *testing.T) {
	elsewhere := 0
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere++
		fmt.Fprintf(w, npmRoot, 1)
	}))
	defer other.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/same/"):
			http.Redirect(w, r, "/there/", http.StatusMovedPermanently)
		case strings.HasPrefix(r.URL.Path, "/there/"):
			if r.Header.Get("Authorization") != "Bearer x" {
				w.WriteHeader(http.StatusUnauthorized)
			}
			fmt.Fprintf(w, npmRoot, 1)
		case strings.HasPrefix(r.URL.Path, "/other/"):
			http.Redirect(w, r, other.URL, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/by/"):
			http.Redirect(w, r, "/other/", http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/file/"):
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/round/"):
			http.Redirect(w, r, "/round/", http.StatusTemporaryRedirect)
		}
	}))
	defer srv.Close()
	for path, want := range map[string]error{"/same": nil, "/other": ErrRefused, "/by": ErrRefused, "/file": ErrRefused, "/round": ErrRefused} {
		_, err := New(Options{URL: srv.URL + path, Authorization: "Bearer x"}).Server(t.Context())
		if !errors.Is(err, want) || (err == nil) != (want == nil) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if elsewhere != 0 {
		t.Errorf("another host was asked %d times", elsewhere)
	}
}

// HTTPS is never left again.
func TestNoWayBackFromHTTPS(t *testing.T) {
	ask := func(url string) *http.Request {
		r, err := http.NewRequestWithContext(context.Background(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"http://a.test/", "https://a.test/", true}, {"https://a.test/", "https://a.test/x", true}, {"https://a.test/", "http://a.test/", false},
		{"http://a.test/", "http://a.test:81/", false}, {"http://a.test/", "http://b.a.test/", false}, {"https://a.test/", "https://u:p@b.test/", false},
	} {
		if err := sameHost(ask(c.to), []*http.Request{ask(c.from)}); (err == nil) != c.ok || err != nil && (!errors.Is(err, ErrRefused) || strings.Contains(err.Error(), ":p@")) {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
	}
}
