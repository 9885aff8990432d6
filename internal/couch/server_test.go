package couch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/couch/couchtest"
)

// bare is a Source and nothing else.
type bare struct{ couch.Source }

func TestTheHandlerIsAFeedOfOurOwn(t *testing.T) {
	for _, docs := range []bool{false, true} {
		src := couchtest.New("abc")
		src.Put("gone")
		src.Put("a")
		src.Put("@s/b")
		src.Delete("gone")
		var source couch.Source = bare{src}
		if docs {
			source = couchtest.Documents{Source: src}
		}
		srv := httptest.NewServer(http.StripPrefix("/feed", couch.Handler(source)))
		ctx, cancel := context.WithCancel(t.Context())
		c := couch.New(couch.Options{URL: srv.URL + "/feed", MirrorDocs: true})
		want := couch.ServerInfo{Engine: couch.EngineMirror, Name: "registry", UUID: "abc", UpdateSeq: "4-abc", DocCount: 2, IncludeDocs: docs}
		if info, err := c.Server(ctx); err != nil || info != want {
			t.Fatalf("server %+v, %v", info, err)
		}
		var got []couch.Change
		for page, err := range c.Changes(ctx, "", true) {
			if err != nil {
				break
			}
			got = append(got, page.Changes...)
			switch page.LastSeq {
			case "4-abc": // what comes later comes by the continuous feed
				src.Put("c")
			case "5-abc":
				src.Put("d")
			case "6-abc":
				cancel()
			}
		}
		cancel()
		changes := []couch.Change{
			{Seq: "2-abc", ID: "a", Revs: []string{"2-abc"}},
			{Seq: "3-abc", ID: "@s/b", Revs: []string{"3-abc"}},
			{Seq: "4-abc", ID: "gone", Revs: []string{"4-abc"}, Deleted: true},
			{Seq: "5-abc", ID: "c", Revs: []string{"5-abc"}},
			{Seq: "6-abc", ID: "d", Revs: []string{"6-abc"}},
		}
		for i := range changes {
			if c := &changes[i]; docs && !c.Deleted {
				c.Doc = json.RawMessage(fmt.Sprintf(`{"_id":%q,"_rev":%q}`, c.ID, c.Revs[0]))
			}
		}
		if !reflect.DeepEqual(got, changes) {
			t.Errorf("changes %+v\nwant %+v", got, changes)
		}
		// A source made anew, or put back to an earlier state, is no going on.
		for _, since := range []string{"2-other", "7-abc"} {
			for _, err := range c.Changes(t.Context(), since, true) {
				if !errors.Is(err, couch.ErrReset) {
					t.Errorf("after %s: %v", since, err)
				}
			}
		}
		var listed []couch.Doc
		var failed error
		for run, err := range c.AllDocs(t.Context()) {
			listed, failed = append(listed, run...), err
		}
		if docs && (failed != nil || !reflect.DeepEqual(listed, []couch.Doc{{ID: "@s/b", Rev: "3-abc"}, {ID: "a", Rev: "2-abc"}, {ID: "c", Rev: "5-abc"}, {ID: "d", Rev: "6-abc"}})) {
			t.Errorf("listing %+v, %v", listed, failed)
		}
		if !docs && !errors.Is(failed, couch.ErrRefused) {
			t.Errorf("listing %+v, %v", listed, failed)
		}
		srv.Close()
	}
}

func TestWhatTheHandlerAnswers(t *testing.T) {
	src := couchtest.New("abc")
	src.Put("x")
	src.Put("a")
	src.Put("@s/b")
	src.Delete("x")
	full, plain := couch.Handler(couchtest.Documents{Source: src}), couch.Handler(bare{src})
	const (
		rowA = `{"seq":"2-abc","id":"a","changes":[{"rev":"2-abc"}]}`
		rowB = `{"seq":"3-abc","id":"@s/b","changes":[{"rev":"3-abc"}]}`
		rowX = `{"seq":"4-abc","id":"x","changes":[{"rev":"4-abc"}],"deleted":true}`
		docA = `{"id":"a","key":"a","value":{"rev":"2-abc"}}`
		docB = `{"id":"@s/b","key":"@s/b","value":{"rev":"3-abc"}}`
	)
	page := func(last string, pending int, rows ...string) string {
		return fmt.Sprintf("{\"results\":[\n%s\n],\n\"last_seq\":\"%s-abc\",\"pending\":%d}", strings.Join(rows, ",\n"), last, pending)
	}
	list := func(rows ...string) string {
		return "{\"total_rows\":2,\"offset\":null,\"rows\":[\n" + strings.Join(rows, ",\n") + "\n]}"
	}
	for _, c := range []struct {
		h           http.Handler
		method, url string
		send        string
		status      int
		want        string // "" for any
	}{
		{full, "GET", "/", "", 200, `{"db_name":"registry","engine":"registry-mirror-feed","uuid":"abc","doc_count":2,"update_seq":"4-abc","purge_seq":"0","instance_start_time":"0","compact_running":false,"props":{},"include_docs":true}`},
		{full, "HEAD", "/", "", 200, ""},

		// _changes
		{full, "GET", "/_changes", "", 200, page("4", 0, rowA, rowB, rowX)},
		{plain, "GET", "/_changes", "", 200, page("4", 0, rowA, rowB, rowX)},
		{full, "GET", "/_changes/", "", 200, page("4", 0, rowA, rowB, rowX)},
		{full, "GET", "/_changes?limit=1", "", 200, page("2", 2, rowA)},
		{full, "GET", "/_changes?limit=0", "", 200, page("2", 2, rowA)},
		{full, "GET", "/_changes?limit=3", "", 200, page("4", 0, rowA, rowB, rowX)},
		{full, "GET", "/_changes?since=2-abc", "", 200, page("4", 0, rowB, rowX)},
		{full, "GET", "/_changes?since=%222-abc%22", "", 200, page("4", 0, rowB, rowX)},
		{full, "GET", "/_changes?since=now", "", 200, page("4", 0)},
		{full, "GET", "/_changes?since=now&last-event-id=3-abc", "", 200, page("4", 0, rowX)},
		{full, "GET", "/_changes?since=4-abc&feed=longpoll&timeout=1", "", 200, page("4", 0)},
		{full, "GET", "/_changes?since=3-abc&feed=longpoll&heartbeat=true", "", 200, page("4", 0, rowX)},
		{full, "GET", "/_changes?since=4-abc&feed=continuous&timeout=1", "", 200, `{"last_seq":"4-abc","pending":0}`},
		{full, "GET", "/_changes?feed=continuous&limit=2", "", 200, rowA + "\n" + rowB + "\n" + `{"last_seq":"3-abc","pending":0}`},
		{full, "GET", "/_changes?since=3-abc&feed=eventsource&limit=1", "", 200, "data: " + rowX + "\nid: 4-abc"},
		{full, "GET", "/_changes?descending=true&limit=2", "", 200, page("3", 0, rowX, rowB)},
		{full, "GET", "/_changes?descending=true&since=3-abc", "", 200, page("4", 0, rowX)},
		{full, "GET", "/_changes?since=3-abc&include_docs=true", "", 200, page("4", 0, strings.TrimSuffix(rowX, "}")+`,"doc":{"_id":"x","_rev":"4-abc","_deleted":true}}`)},
		{full, "GET", "/_changes?since=2-abc&limit=1&include_docs=true", "", 200, page("3", 1, strings.TrimSuffix(rowB, "}")+`,"doc":{"_id":"@s/b","_rev":"3-abc"}}`)},
		{full, "GET", "/_changes?filter=_doc_ids&doc_ids=%5B%22x%22,%22a%22,%22a%22,%22none%22%5D", "", 200, page("4", 0, rowA, rowX)},
		{full, "GET", "/_changes?doc_ids=%5B%22a%22%5D", "", 200, page("4", 0, rowA)},
		{full, "GET", "/_changes?doc_ids=%5B%5D", "", 200, page("4", 0)},
		{full, "POST", "/_changes?filter=_doc_ids", `{"doc_ids":["a","x"]}`, 200, page("4", 0, rowA, rowX)},
		{full, "POST", "/_changes?filter=_doc_ids&limit=1", `{"doc_ids":["a","x"]}`, 200, page("2", 2, rowA)},
		{full, "POST", "/_changes?since=3-abc", `{}`, 200, page("4", 0, rowX)},
		{full, "POST", "/_changes?since=3-abc", ``, 200, page("4", 0, rowX)},
		{full, "GET", "/_changes?since=3-abc&style=all_docs&conflicts=true&attachments=true&att_encoding_info=true&seq_interval=5&heartbeat=1&timeout=1&_nonce=1", "", 200, page("4", 0, rowX)},
		{full, "HEAD", "/_changes?feed=continuous", "", 200, ""},
		{full, "GET", "/_changes?since=1", "", 400, `{"error":"bad_request","reason":"since \"1\""}`},
		{full, "GET", "/_changes?since=-1-abc", "", 400, ""},
		{full, "GET", "/_changes?since=99999999999999999999-abc", "", 400, ""},
		{full, "GET", "/_changes?since=5-abc", "", 409, `{"error":"reset","reason":"since \"5-abc\", the head is 4-abc: the feed was reset: it does not go on from this cursor"}`},
		{full, "GET", "/_changes?since=2-other", "", 409, ""},
		{full, "GET", "/_changes?limit=-1", "", 400, ""},
		{full, "GET", "/_changes?limit=1&limit=2", "", 400, ""},
		{full, "GET", "/_changes?feed=other", "", 400, ""},
		{full, "GET", "/_changes?filter=_view", "", 400, ""},
		{full, "GET", "/_changes?filter=_doc_ids", "", 400, ""},
		{full, "POST", "/_changes?filter=_selector", `{"selector":{}}`, 400, ""},
		{full, "GET", "/_changes?style=other", "", 400, ""},
		{full, "GET", "/_changes?timeout=x", "", 400, ""},
		{full, "GET", "/_changes?heartbeat=x", "", 400, ""},
		{full, "GET", "/_changes?descending=true&feed=longpoll", "", 400, ""},
		{full, "GET", "/_changes?unheard=of", "", 400, ""},
		{full, "GET", "/_changes?%zz", "", 400, ""},
		{full, "POST", "/_changes", `[]`, 400, ""},
		{full, "POST", "/_changes", `{"doc_ids":[1]}`, 400, ""},
		{full, "POST", "/_changes", `{"doc_ids":null}`, 400, ""},
		{full, "POST", "/_changes", `{"doc_ids":["` + strings.Repeat("a", 1<<20) + `"]}`, 413, ""},
		{full, "POST", "/_changes", `{"doc_ids":[""` + strings.Repeat(`,""`, 10_000) + `]}`, 400, ""},
		{plain, "GET", "/_changes?include_docs=false", "", 200, ""},
		{plain, "GET", "/_changes?include_docs=true", "", 400, ""},
		{plain, "GET", "/_changes?descending=true", "", 400, ""},
		{plain, "POST", "/_changes", `{"doc_ids":["a"]}`, 400, ""},
		{full, "PUT", "/_changes", "", 405, ""},

		// _all_docs
		{full, "GET", "/_all_docs", "", 200, list(docB, docA)},
		{full, "GET", "/_all_docs?limit=1", "", 200, list(docB)},
		{full, "GET", "/_all_docs?limit=0", "", 200, list()},
		{full, "GET", "/_all_docs?skip=1", "", 200, list(docA)},
		{full, "GET", "/_all_docs?startkey=%22a%22", "", 200, list(docA)},
		{full, "GET", "/_all_docs?start_key=%22A%22&endkey=%22a%22", "", 200, list(docA)},
		{full, "GET", "/_all_docs?endkey=%22a%22&inclusive_end=false", "", 200, list(docB)},
		{full, "GET", "/_all_docs?descending=true", "", 200, list(docA, docB)},
		{full, "GET", "/_all_docs?descending=true&startkey=%22a%22&endkey=%22B%22", "", 200, list(docA)},
		{full, "GET", "/_all_docs?key=%22a%22&include_docs=true", "", 200, list(strings.TrimSuffix(docA, "}") + `,"doc":{"_id":"a","_rev":"2-abc"}}`)},
		{full, "POST", "/_all_docs?include_docs=true", `{"keys":["x","none"]}`, 200, list(`{"id":"x","key":"x","value":{"rev":"4-abc","deleted":true},"doc":null}`, `{"error":"not_found","key":"none"}`)},
		{full, "GET", "/_all_docs?update_seq=true&limit=1", "", 200, `{"total_rows":2,"offset":null,"update_seq":"4-abc","rows":[` + "\n" + docB + "\n]}"},
		{full, "GET", "/_all_docs?startkey=a", "", 400, ""},
		{full, "GET", "/_all_docs?skip=10001", "", 400, ""},
		{full, "GET", "/_all_docs?group=true", "", 400, ""},
		{plain, "GET", "/_all_docs", "", 404, ""},

		// documents
		{full, "GET", "/a", "", 200, `{"_id":"a","_rev":"2-abc"}`},
		{full, "GET", "/@s/b", "", 200, `{"_id":"@s/b","_rev":"3-abc"}`},
		{full, "GET", "/%40s%2Fb?revs=true&rev=3-abc", "", 200, `{"_id":"@s/b","_rev":"3-abc"}`},
		{full, "GET", "/a?rev=1-abc", "", 404, `{"error":"not_found","reason":"missing"}`},
		{full, "GET", "/a?open_revs=all", "", 400, ""},
		{full, "GET", "/x", "", 404, `{"error":"not_found","reason":"deleted"}`},
		{full, "GET", "/none", "", 404, `{"error":"not_found","reason":"missing"}`},
		{plain, "GET", "/a", "", 404, `{"error":"not_found","reason":"this feed has no documents"}`},

		// What a database that can only be read has not.
		{full, "GET", "/_local/abc", "", 404, `{"error":"not_found","reason":"missing"}`},
		{full, "GET", "/_design/app", "", 404, ""},
		{full, "GET", "/_security", "", 404, ""},
		{full, "POST", "/_revs_diff", `{}`, 501, `{"error":"not_implemented","reason":"replication is not offered: follow _changes"}`},
		{full, "POST", "/_bulk_get", `{}`, 501, ""},
		{full, "POST", "/_missing_revs", `{}`, 501, ""},
		{full, "PUT", "/_local/abc", `{}`, 405, `{"error":"method_not_allowed","reason":"this database can only be read"}`},
		{full, "PUT", "/a", `{}`, 405, ""},
		{full, "DELETE", "/a", "", 405, ""},
		{full, "PUT", "/", "", 405, ""},
		{full, "DELETE", "/", "", 405, ""},
		{full, "POST", "/", `{}`, 405, ""},
		{full, "POST", "/_bulk_docs", `{}`, 405, ""},
		{full, "POST", "/_find", `{}`, 405, ""},
	} {
		w := httptest.NewRecorder()
		c.h.ServeHTTP(w, httptest.NewRequest(c.method, c.url, strings.NewReader(c.send)))
		got := strings.TrimSpace(w.Body.String())
		if w.Code != c.status || c.want != "" && got != c.want {
			t.Errorf("%s %s: %d %s\nwant %d %s", c.method, c.url, w.Code, got, c.status, c.want)
		}
		if w.Code != 200 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: %d is no JSON: %s", c.method, c.url, w.Code, got)
		}
	}
}

// Below a prefix the database is there with and without the last slash.
func TestTheHandlerBelowAPrefix(t *testing.T) {
	src := couchtest.New("abc")
	src.Put("@s/b")
	h := http.StripPrefix("/registry", couch.Handler(couchtest.Documents{Source: src}))
	mux := http.NewServeMux()
	mux.Handle("/registry", h)
	mux.Handle("/registry/", h)
	for path, want := range map[string]string{
		"/registry": `"db_name"`, "/registry/": `"db_name"`, "/registry/_changes": `"results"`,
		"/registry/@s%2fb": `"_id":"@s/b"`, "/registry/@s/b": `"_id":"@s/b"`,
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// A whole feed of more rows than are asked of the source at a time.
func TestLongAnswers(t *testing.T) {
	src := couchtest.New("abc")
	for i := range 2500 {
		src.Put(fmt.Sprintf("p%04d", i))
	}
	h := couch.Handler(src)
	for url, want := range map[string]int{
		"/_changes": 2500, "/_changes?limit=1500": 1500, "/_changes?descending=true": 2500, "/_changes?descending=true&since=600-abc": 1900,
		"/_all_docs": 2500, "/_all_docs?descending=true": 2500, "/_all_docs?limit=1001": 1001, "/_all_docs?skip=1200": 1300,
		"/_changes?feed=continuous&limit=2100": 2100, "/_changes?feed=longpoll": 2500,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", url, nil))
		seen := map[string]bool{}
		for line := range strings.SplitSeq(w.Body.String(), "\n") {
			var row struct{ ID string }
			if json.Unmarshal([]byte(strings.TrimSuffix(line, ",")), &row) == nil && row.ID != "" {
				seen[row.ID] = true
			}
		}
		if w.Code != 200 || len(seen) != want || !strings.Contains(url, "continuous") && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d with %d rows, want %d", url, w.Code, len(seen), want)
		}
	}
}

// lines passes on what a handler writes as it comes.
type lines struct {
	*httptest.ResponseRecorder
	got chan string
}

func (l lines) Write(p []byte) (int, error) {
	l.got <- string(p)
	return len(p), nil
}

func (l lines) WriteString(s string) (int, error) { return l.Write([]byte(s)) }

func TestHeldFeeds(t *testing.T) {
	type step struct {
		at   time.Duration
		text string
	}
	row := func(n int, id string) string {
		return fmt.Sprintf(`{"seq":"%d-abc","id":%q,"changes":[{"rev":"%d-abc"}]}`, n, id, n)
	}
	for url, want := range map[string][]step{
		// A change after 100 s and one after 130; the source closes after two hours.
		"/_changes?since=now&feed=continuous&heartbeat=40000": {
			{40 * time.Second, "\n"}, {80 * time.Second, "\n"}, {100 * time.Second, row(2, "b") + "\n"}, {130 * time.Second, row(3, "c") + "\n"}, {170 * time.Second, "\n"},
			{170 * time.Second, `{"last_seq":"3-abc","pending":0}` + "\n"}},
		"/_changes?since=now&feed=eventsource&heartbeat=90000&limit=1": {
			{90 * time.Second, "event: heartbeat\ndata: \n\n"}, {100 * time.Second, "data: " + row(2, "b") + "\nid: 2-abc\n\n"}},
		"/_changes?since=now&feed=continuous&timeout=110000": {
			{100 * time.Second, row(2, "b") + "\n"}, {130 * time.Second, row(3, "c") + "\n"}, {240 * time.Second, `{"last_seq":"3-abc","pending":0}` + "\n"}},
		"/_changes?since=now&feed=continuous": {{time.Minute, `{"last_seq":"1-abc","pending":0}` + "\n"}},
		"/_changes?since=now&feed=longpoll":   {{time.Minute, "{\"results\":[\n\n],\n\"last_seq\":\"1-abc\",\"pending\":0}\n"}},
		"/_changes?since=now&feed=longpoll&heartbeat=60000": {
			{time.Minute, "\n"}, {100 * time.Second, "{\"results\":[\n" + row(2, "b") + "\n],\n\"last_seq\":\"2-abc\",\"pending\":0}\n"}},
		"/_changes?since=now&feed=longpoll&timeout=100000000&doc_ids=%5B%22c%22%5D": {
			{130 * time.Second, "{\"results\":[\n" + row(3, "c") + "\n],\n\"last_seq\":\"3-abc\",\"pending\":0}\n"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			src := couchtest.New("abc")
			src.Put("a")
			begun := time.Now()
			time.AfterFunc(100*time.Second, func() { src.Put("b") })
			time.AfterFunc(130*time.Second, func() { src.Put("c") })
			w := lines{httptest.NewRecorder(), make(chan string)}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer close(w.got)
				couch.Handler(src).ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", url, nil))
			}()
			var got []step
			for text := range w.got {
				got = append(got, step{time.Since(begun), text})
				if time.Since(begun) == 170*time.Second {
					cancel() // with heartbeats it would go on
				}
			}
			cancel()
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %+v\nwant %+v", url, got, want)
			}
		})
	}
}

// A continuous feed ends after an hour, for the client to come again, and when
// its source does.
func TestHeldFeedsEnd(t *testing.T) {
	for _, c := range []struct {
		url   string
		close time.Duration
		want  time.Duration
		code  int
	}{
		{"/_changes?feed=continuous&heartbeat=true", 2 * time.Hour, time.Hour, 200},
		{"/_changes?feed=continuous&heartbeat=true", time.Minute, time.Minute, 200},
		{"/_changes?feed=longpoll&timeout=60000", time.Second, time.Second, 503},
	} {
		synctest.Test(t, func(t *testing.T) {
			src := couchtest.New("abc")
			begun := time.Now()
			time.AfterFunc(c.close, src.Close)
			w := httptest.NewRecorder()
			couch.Handler(src).ServeHTTP(w, httptest.NewRequest("GET", c.url, nil))
			if d := time.Since(begun); d != c.want || w.Code != c.code {
				t.Errorf("%s: %d after %v", c.url, w.Code, d)
			}
			time.Sleep(c.close)
		})
	}
}

func TestTooManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := couch.Handler(couchtest.New("abc"))
		ctx, cancel := context.WithCancel(t.Context())
		get := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/_changes?feed=continuous&heartbeat=true", nil))
			return w
		}
		for range 1000 {
			go get()
		}
		synctest.Wait()
		if w := get(); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		cancel()
		synctest.Wait()
		if w := get(); w.Code != 200 {
			t.Errorf("%d once they are gone", w.Code)
		}
	})
}

// failing is a Source that fails after some rows.
type failing struct {
	*couchtest.Source
	after uint64
}

func (f failing) Changes(ctx context.Context, since uint64, limit int) ([]couch.Row, error) {
	if since >= f.after {
		return nil, errors.New("the disk is gone")
	}
	return f.Source.Changes(ctx, since, limit)
}

// A failure before the first row has a status; later, the answer is cut, which no
// client takes for its end.
func TestFailuresOfTheSource(t *testing.T) {
	src := couchtest.New("abc")
	for i := range 1500 {
		src.Put(fmt.Sprintf("a-name-of-some-length-that-fills-the-buffer-%d", i))
	}
	for after, status := range map[uint64]int{0: 500, 1: 200} {
		srv := httptest.NewServer(couch.Handler(failing{src, after}))
		resp, err := http.Get(srv.URL + "/_changes")
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status || (err == nil) != (status == 500) {
			t.Errorf("failing after %d: %d, %v", after, resp.StatusCode, err)
		}
		srv.Close()
	}
}

// What was written must be on its way, and a client that leaves ends its request.
func TestAClientThatLeaves(t *testing.T) {
	src := couchtest.New("abc")
	src.Put("a")
	ended := make(chan struct{})
	h := couch.Handler(src)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST /_changes?feed=continuous&heartbeat=true HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	buf := make([]byte, 4096)
	var got strings.Builder
	for !strings.Contains(got.String(), `"id":"a"`) {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(buf[:n])
	}
	conn.Close()
	<-ended
}

func FuzzParseSince(f *testing.F) {
	src := couchtest.New("abc")
	src.Put("a")
	src.Put("b")
	h := couch.Handler(src)
	for _, seed := range []string{"", "0", "now", "1-abc", "2-abc", "3-abc", "1-xyz", "1", "-1-abc", "+1-abc", `"1-abc"`, `"`, "18446744073709551616-abc", "1-abc-abc", "01-abc"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, since string) {
		r := httptest.NewRequest("GET", "/_changes", nil)
		q := r.URL.Query()
		q.Set("since", since)
		r.URL.RawQuery = q.Encode()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case 200:
			var page struct {
				LastSeq string `json:"last_seq"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || page.LastSeq != "2-abc" {
				t.Errorf("%q: %s, %v", since, w.Body, err)
			}
		case 400, 409:
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("%q: %s", since, w.Body)
			}
		default:
			t.Errorf("%q: %d", since, w.Code)
		}
	})
}

// one is a listener with one connection.
type one struct {
	conns chan net.Conn
	done  chan struct{}
}

func (o one) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.done:
		return nil, net.ErrClosed
	}
}

func (o one) Close() error   { close(o.done); return nil }
func (o one) Addr() net.Addr { return &net.IPAddr{} }

// A reader who stops reading holds nothing for ever; one who is slow but reads
// gets it all.
func TestASlowReader(t *testing.T) {
	src := couchtest.New("abc")
	for i := range 5000 {
		src.Put(strings.Repeat("a", 100) + fmt.Sprint(i))
	}
	for _, reads := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := couch.Handler(src)
			var ended atomic.Int64
			begun := time.Now()
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() { ended.Store(int64(time.Since(begun))) }()
				h.ServeHTTP(w, r)
			})}
			l := one{make(chan net.Conn, 1), make(chan struct{})}
			client, server := net.Pipe()
			l.conns <- server
			go srv.Serve(l)
			io.WriteString(client, "GET /_changes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			var got strings.Builder
			buf := make([]byte, 16<<10)
			for reads {
				time.Sleep(5 * time.Second)
				n, err := client.Read(buf)
				if got.Write(buf[:n]); err != nil {
					break
				}
			}
			time.Sleep(time.Hour)
			if reads && !strings.Contains(got.String(), `"last_seq":"5000-abc"`) {
				t.Errorf("cut after %d bytes", got.Len())
			}
			if held := time.Duration(ended.Load()); !reads && (held == 0 || held > time.Minute) {
				t.Errorf("held for %v", held)
			}
			client.Close()
			srv.Close()
		})
	}
}
