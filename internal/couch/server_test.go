package couch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// memory is a Source.
type memory struct {
	mu    sync.Mutex
	id    string
	rows  []Row
	moved chan struct{}
}

func (m *memory) add(rows ...Row) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows = append(m.rows, rows...)
	close(m.moved)
	m.moved = make(chan struct{})
}

func (m *memory) Changes(ctx context.Context, since uint64, limit int) ([]Row, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Row
	for _, r := range m.rows {
		if r.Seq > since && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

func (m *memory) Wait(ctx context.Context, since uint64) error {
	for {
		m.mu.Lock()
		moved := m.moved
		m.mu.Unlock()
		if m.Head() > since {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *memory) Head() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rows) == 0 {
		return 0
	}
	return m.rows[len(m.rows)-1].Seq
}

func (m *memory) Identity() string { return m.id }

type withDocs struct{ *memory }

func (withDocs) Document(_ context.Context, id string) (json.RawMessage, error) {
	return json.RawMessage(fmt.Sprintf(`{"_id":%q}`, id)), nil
}

func TestTheHandlerIsAFeedOfOurOwn(t *testing.T) {
	for _, docs := range []bool{false, true} {
		src := &memory{id: "abc", moved: make(chan struct{})}
		src.add(Row{Seq: 2, ID: "a", Rev: "1-x"}, Row{Seq: 5, ID: "@s/b", Deleted: true})
		var source Source = src
		if docs {
			source = withDocs{src}
		}
		srv := httptest.NewServer(http.StripPrefix("/feed", Handler(source)))
		ctx, cancel := context.WithCancel(context.Background())
		c := New(Options{URL: srv.URL + "/feed", Poll: 10 * time.Second})
		if info, err := c.Server(ctx); err != nil || info.Engine != EngineMirror || info.IncludeDocs != docs || info.UUID != "abc" {
			t.Fatalf("server %+v, %v", info, err)
		}
		var got []Change
		since := ""
		for page, err := range c.Changes(ctx, "", true) {
			if err != nil {
				break
			}
			got = append(got, page.Changes...)
			switch since = page.LastSeq; since {
			case "5-abc":
				src.add(Row{Seq: 6, ID: "c"})
			case "6-abc":
				cancel()
			}
		}
		cancel()
		want := []Change{{Seq: "2-abc", ID: "a", Revs: []string{"1-x"}}, {Seq: "5-abc", ID: "@s/b", Deleted: true}, {Seq: "6-abc", ID: "c"}}
		if docs {
			want[0].Doc, want[2].Doc = json.RawMessage(`{"_id":"a"}`), json.RawMessage(`{"_id":"c"}`)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("changes %+v\nwant %+v", got, want)
		}
		// A source made anew, or put back to an earlier state, is no going on.
		for _, since := range []string{"2-other", "7-abc"} {
			for _, err := range c.Changes(context.Background(), since, true) {
				if !errors.Is(err, ErrReset) {
					t.Errorf("after %s: %v", since, err)
				}
			}
		}
		srv.Close()
	}
}

func TestTheHandlerRefuses(t *testing.T) {
	src := &memory{id: "abc", moved: make(chan struct{})}
	src.add(Row{Seq: 1, ID: "a"}, Row{Seq: 2, ID: "b"})
	h := Handler(src)
	for _, c := range []struct {
		method, url string
		status      int
		body        string
	}{
		{"GET", "/_changes?limit=1", 200, `{"results":[{"seq":"1-abc","id":"a","changes":[]}],"last_seq":"1-abc"}`},
		{"GET", "/_changes?since=now", 200, `{"results":[],"last_seq":"2-abc"}`},
		{"GET", "/_changes?since=2-abc&feed=longpoll&timeout=1", 200, `{"results":[],"last_seq":"2-abc"}`},
		{"GET", "/_changes?since=2-abc&feed=normal&include_docs=false", 200, ""},
		{"GET", "/_changes?since=1", 400, ""},
		{"GET", "/_changes?since=-1-abc", 400, ""},
		{"GET", "/_changes?since=3-abc", 409, ""},
		{"GET", "/_changes?limit=0", 400, ""},
		{"GET", "/_changes?limit=10001", 400, ""},
		{"GET", "/_changes?limit=1&limit=2", 400, ""},
		{"GET", "/_changes?include_docs=true", 400, ""},
		{"GET", "/_changes?feed=continuous", 400, ""},
		{"GET", "/_changes?filter=_view", 400, ""},
		{"GET", "/_changes?timeout=x", 400, ""},
		{"POST", "/_changes", 405, ""},
		{"GET", "/a", 404, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.url, nil))
		if body := strings.TrimSpace(w.Body.String()); w.Code != c.status || c.body != "" && body != c.body {
			t.Errorf("%s %s: %d %s", c.method, c.url, w.Code, body)
		}
	}
}
