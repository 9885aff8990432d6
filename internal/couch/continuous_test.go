package couch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// roundTrip answers requests with bodies that take their time.
type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// slow is an answer whose body write makes, until it returns or the request ends.
func slow(r *http.Request, write func(w io.Writer)) *http.Response {
	pr, pw := io.Pipe()
	go func() {
		write(pw)
		pw.Close()
	}()
	context.AfterFunc(r.Context(), func() { pr.CloseWithError(r.Context().Err()) })
	return &http.Response{StatusCode: 200, Status: "200", Header: http.Header{}, Body: pr, Request: r}
}

func quick(r *http.Request, status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Status: strconv.Itoa(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}
}

// script is CouchDB with one row for each sequence up to head. Each continuous
// feed is answered by the next of feeds, the last of them for ever.
type script struct {
	head    *counter
	feeds   []func(r *http.Request, since int) *http.Response
	longs   func(r *http.Request, since int) *http.Response // nil: refused
	streams int
	polls   int // normal pages
	long    int
}

func couchRow(n int) string {
	return fmt.Sprintf(`{"seq":"%d-x","id":"p%d","changes":[{"rev":"1-%d"}],"doc":{"_id":"p%d"}}`, n, n, n, n)
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, "_changes") {
		return quick(r, 200, fmt.Sprintf(`{"db_name":"db","update_seq":"%d-x"}`, s.head.Head())), nil
	}
	q := r.URL.Query()
	digits, _, _ := strings.Cut(q.Get("since"), "-")
	since, _ := strconv.Atoi(digits)
	switch q.Get("feed") {
	case "continuous":
		s.streams++
		return s.feeds[min(s.streams, len(s.feeds))-1](r, since), nil
	case "longpoll":
		s.long++
		if s.longs == nil {
			return quick(r, 405, `{"error":"method_not_allowed"}`), nil
		}
		return s.longs(r, since), nil
	}
	s.polls++
	return quick(r, 200, s.page(since)), nil
}

func (s *script) page(since int) string {
	var rows []string
	head := int(s.head.Head())
	for n := since + 1; n <= head; n++ {
		rows = append(rows, couchRow(n))
	}
	return fmt.Sprintf(`{"results":[%s],"last_seq":"%d-x","pending":0}`, strings.Join(rows, ","), max(head, since))
}

func (s *script) client(o Options) *Client {
	o.URL, o.HTTP = "http://feed.example.test/db", &http.Client{Transport: s}
	return New(o)
}

// arrival is a page and when it came.
type arrival struct {
	at  time.Duration
	ids string
}

// follow follows until the page with last, and at most for a day.
func follow(t *testing.T, c *Client, last string) (got []arrival, errs []error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
	defer cancel()
	for page, err := range c.Changes(ctx, "", true) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		got = append(got, arrival{time.Since(begun), ids(page)})
		if page.LastSeq == last {
			break
		}
	}
	return got, errs
}

// Rows that arrive together are one page, and none waits for longer than 100 ms.
func TestContinuousIsPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{head: newCounter(1)}
		s.feeds = append(s.feeds, func(r *http.Request, since int) *http.Response {
			if h := r.URL.Query().Get("heartbeat"); h != "20000" || since != 1 || r.URL.Query().Get("include_docs") != "true" {
				t.Errorf("asked %s", r.URL)
			}
			return slow(r, func(w io.Writer) {
				for range 180 { // an hour but for the last minute, in silence
					time.Sleep(19 * time.Second)
					io.WriteString(w, "\n")
				}
				io.WriteString(w, couchRow(2)+"\n"+couchRow(3)+"\n\n"+couchRow(4)+"\r\n")
				time.Sleep(time.Second)
				for n := 5; n < 30; n++ { // one each 8 ms
					io.WriteString(w, couchRow(n)+"\n")
					time.Sleep(8 * time.Millisecond)
				}
				<-r.Context().Done()
			})
		})
		got, errs := follow(t, s.client(Options{}), "29-x")
		if len(errs) > 0 || len(got) != 4 || s.streams != 1 || s.polls != 2 {
			t.Fatalf("%v, %v, %d streams, %d polls", got, errs, s.streams, s.polls)
		}
		base := 180 * 19 * time.Second
		if got[1].ids != "p2 p3 p4" || got[1].at != base+10*time.Millisecond {
			t.Errorf("together: %v", got[1])
		}
		if n := strings.Count(got[2].ids, " ") + 1; n != 13 || got[2].at != base+time.Second+100*time.Millisecond {
			t.Errorf("a steady stream: %d rows at %v", n, got[2].at)
		}
	})
}

// However a continuous feed ends, the client goes on from the last seq that it
// yielded; where it cannot work, it is done without.
func TestContinuousFails(t *testing.T) {
	row := func(w io.Writer, n int) { io.WriteString(w, couchRow(n)+"\n") }
	hold := func(r *http.Request, _ int) *http.Response {
		return slow(r, func(io.Writer) { <-r.Context().Done() })
	}
	say := func(texts ...string) func(r *http.Request, since int) *http.Response {
		return func(r *http.Request, since int) *http.Response { return quick(r, 200, strings.Join(texts, "\n")) }
	}
	for name, c := range map[string]struct {
		feed  func(s *script) func(r *http.Request, since int) *http.Response
		check func(s *script) bool
	}{
		// Each brings a row, then this happens.
		"last_seq":    {func(s *script) func(*http.Request, int) *http.Response { return s.bring("\n{\"last_seq\":\"%d-x\"}\n") }, (*script).streamed},
		"cut":         {func(s *script) func(*http.Request, int) *http.Response { return s.bring("\n{\"seq\":") }, (*script).streamed},
		"rubbish":     {func(s *script) func(*http.Request, int) *http.Response { return s.bring("\n<html>\n") }, (*script).streamed},
		"an error":    {func(s *script) func(*http.Request, int) *http.Response { return s.bring("\n{\"error\":\"x\"}\n") }, (*script).streamed},
		"two objects": {func(s *script) func(*http.Request, int) *http.Response { return s.bring("\n{}{}\n") }, (*script).streamed},
		"a long line": {func(s *script) func(*http.Request, int) *http.Response {
			return s.bring("\n" + strings.Repeat(" ", 200_000) + "\n")
		}, (*script).streamed},
		"silence": {func(s *script) func(*http.Request, int) *http.Response {
			return func(r *http.Request, since int) *http.Response {
				return slow(r, func(w io.Writer) {
					s.head.set(uint64(since + 1))
					row(w, since+1)
					<-r.Context().Done()
				})
			}
		}, (*script).streamed},
		// These never bring anything: another way is found.
		"400":           {func(*script) func(*http.Request, int) *http.Response { return s400 }, (*script).polled},
		"rubbish alone": {func(*script) func(*http.Request, int) *http.Response { return say("<html>") }, (*script).polled},
		"an object of a page": {func(*script) func(*http.Request, int) *http.Response {
			return say(`{"results":[`, `],"last_seq":"9-x"}`)
		}, (*script).polled},
		"cut at once":    {func(*script) func(*http.Request, int) *http.Response { return say("") }, (*script).polled},
		"silence alone":  {func(*script) func(*http.Request, int) *http.Response { return hold }, (*script).polled},
		"a drip":         {func(*script) func(*http.Request, int) *http.Response { return drip }, (*script).polled},
		"an endless row": {func(*script) func(*http.Request, int) *http.Response { return endless }, (*script).polled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{head: newCounter(1)}
				s.feeds = append(s.feeds, c.feed(s))
				for n := range 5 { // what is not brought by a stream
					time.AfterFunc(time.Duration(n+1)*3*time.Hour, func() { s.head.set(max(s.head.Head(), uint64(n+2))) })
				}
				got, errs := follow(t, s.client(Options{MaxBody: 100_000}), "6-x")
				var all []string
				for _, a := range got {
					all = append(all, a.ids)
				}
				if want := []string{"p1", "p2", "p3", "p4", "p5", "p6"}; len(errs) > 0 || !slices.Equal(strings.Fields(strings.Join(all, " ")), want) {
					t.Errorf("pages %q, %v", all, errs)
				}
				if !c.check(s) {
					t.Errorf("%d streams, %d long polls, %d polls", s.streams, s.long, s.polls)
				}
			})
		})
	}
}

// bring answers with the next row, then with text.
func (s *script) bring(text string) func(r *http.Request, since int) *http.Response {
	return func(r *http.Request, since int) *http.Response {
		s.head.set(uint64(since + 1))
		if strings.Contains(text, "%d") {
			return quick(r, 200, couchRow(since+1)+fmt.Sprintf(text, since+1))
		}
		return quick(r, 200, couchRow(since+1)+text)
	}
}

func (s *script) streamed() bool { return s.streams == 5 && s.long == 0 && s.polls <= 12 }

// polled says that both better ways were given up, and that it then was polled
// no oftener than Idle allows.
func (s *script) polled() bool {
	return s.streams <= maxFails && s.streams > 0 && s.long == 1 && s.polls > 1000 && s.polls < 3000
}

func s400(r *http.Request, _ int) *http.Response { return quick(r, 400, `{"error":"bad_request"}`) }

func drip(r *http.Request, since int) *http.Response {
	return slow(r, func(w io.Writer) {
		for _, c := range []byte(couchRow(since + 1)) {
			time.Sleep(15 * time.Second)
			if _, err := w.Write([]byte{c}); err != nil {
				return
			}
		}
	})
}

func endless(r *http.Request, _ int) *http.Response {
	return slow(r, func(w io.Writer) {
		for {
			if _, err := io.WriteString(w, `{"seq":"9-x","id":"`+strings.Repeat("a", 1000)); err != nil {
				return
			}
		}
	})
}

// Long polls, where those work.
func TestLongPollsInPlaceOfContinuous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{head: newCounter(1), feeds: []func(*http.Request, int) *http.Response{s400}}
		s.longs = func(r *http.Request, since int) *http.Response {
			ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
			defer cancel()
			s.head.Wait(ctx, uint64(since)) // an empty page is the answer if not
			return quick(r, 200, s.page(since))
		}
		time.AfterFunc(time.Hour, func() { s.head.set(2) })
		got, errs := follow(t, s.client(Options{}), "2-x")
		if len(got) != 2 || got[1].at != time.Hour || len(errs) > 0 || s.streams != 1 || s.long < 60 || s.long > 62 {
			t.Errorf("%v, %v, %d long polls", got, errs, s.long)
		}
	})
}

// A caller who is slow is not taken for a feed that is silent, and one who leaves
// leaves nothing running.
func TestContinuousWaitsForItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{head: newCounter(1)}
		closed := 0
		s.feeds = append(s.feeds, func(r *http.Request, since int) *http.Response {
			return slow(r, func(w io.Writer) {
				for n := since + 1; ; n++ {
					if _, err := io.WriteString(w, couchRow(n)+"\n"); err != nil {
						closed++
						return
					}
					s.head.set(uint64(n))
					time.Sleep(time.Second)
				}
			})
		})
		pages, rows := 0, 0
		for page, err := range s.client(Options{}).Changes(t.Context(), "", true) {
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range page.Changes {
				if rows++; c.ID != fmt.Sprintf("p%d", rows) {
					t.Errorf("row %d is %s", rows, c.ID)
				}
			}
			time.Sleep(10 * time.Minute)
			if pages++; pages == 5 {
				break
			}
		}
		synctest.Wait()
		if s.streams != 1 || closed != 1 || rows < 5 {
			t.Errorf("%d streams, %d rows, %d closed", s.streams, rows, closed)
		}
	})
}

// A feed of our own that was made anew says so while it is waited for.
func TestContinuousReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		streams := 0
		c := New(Options{URL: "http://feed.example.test/db", HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			switch {
			case !strings.HasSuffix(r.URL.Path, "_changes"):
				return quick(r, 200, `{"engine":"registry-mirror-feed","update_seq":"1-a","uuid":"a"}`), nil
			case r.URL.Query().Get("feed") == "continuous":
				streams++
				fallthrough
			case streams > 0:
				resp := quick(r, 409, `{"error":"reset"}`)
				resp.Header.Set(headerReset, "b")
				return resp, nil
			}
			return quick(r, 200, `{"results":[],"last_seq":"1-a"}`), nil
		})}})
		got, errs := follow(t, c, "")
		if len(got) != 1 || got[0].ids != "" || len(errs) != 1 || !errors.Is(errs[0], ErrReset) {
			t.Errorf("%v, %v", got, errs)
		}
	})
}
