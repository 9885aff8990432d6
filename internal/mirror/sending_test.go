package mirror

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/crowd"
)

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
		if d := took(func() { next = begin(60) }); d < crowd.Patience || d > crowd.Patience+2*crowd.Look {
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
		if s.held != 0 {
			t.Errorf("%d bytes are held when all are done", s.held)
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
