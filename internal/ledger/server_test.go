package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
)

// serveAt answers for h at a new socket until the test ends or stop is called.
func serveAt(t *testing.T, h http.Handler) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ledger.sock")
	l, err := socket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- socket.Serve(ctx, l, h) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return path, stop
}

// reader is what both a Store and a Client are to those who read a ledger.
type reader interface {
	Identity() string
	Head() Seq
	Package(context.Context, npm.Name) (Package, error)
	Changes(context.Context, Seq, int) ([]Change, error)
	Wait(context.Context, Seq) error
	Wants(context.Context) ([]Want, error)
	AddWants(context.Context, ...Want) ([]Want, error)
	RemoveWants(context.Context, ...Want) ([]Want, error)
	Refused(context.Context) ([]Refusal, error)
	Retries(context.Context) ([]Retry, error)
	Status(context.Context) (Status, error)
	Close() error
}

var _, _ reader = (*Store)(nil), (*Client)(nil)

func TestTheSocketSaysWhatTheStoreSays(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	path, _ := serveAt(t, Serve(s, WithLoop(func(context.Context) any { return map[string]int{"lag": 7} })))
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Identity() != s.Identity() || c.Head() != 0 {
		t.Errorf("identity %s, head %d", c.Identity(), c.Head())
	}
	if _, err := c.Package(ctx, "@types/node"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing: %v", err)
	}

	waited := make(chan error, 1)
	go func() { waited <- c.Wait(ctx, 0) }()
	commit(t, s, Batch{
		Packages: []PackageUpdate{testUpdate("@types/node", "d1", "1.0.0", "2.0.0-rc.1+b"), testUpdate("a", "d2", "1.0.0"), testUpdate("b", "d3")},
		Retries:  []Retry{{Name: "x", Attempts: 1, Next: testTime}},
		Refused:  []Refusal{{Name: "y\x00", Reason: "name", Detail: "<\xff>"}},
		Cursor:   &Cursor{"f", "1"},
	})
	commit(t, s, Batch{Packages: []PackageUpdate{{Name: "a", Deleted: true}}})
	if err := <-waited; err != nil {
		t.Errorf("Wait: %v", err)
	}

	same := func(what string, fromClient, fromStore any, errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !reflect.DeepEqual(fromClient, fromStore) {
			t.Errorf("%s: the socket says\n%+v, the store\n%+v", what, fromClient, fromStore)
		}
	}
	same("head", c.Head(), s.Head())
	for _, name := range []npm.Name{"@types/node", "a", "b"} {
		pc, err := c.Package(ctx, name)
		ps, err2 := s.Package(ctx, name)
		same("package "+string(name), pc, ps, err, err2)
	}
	for _, since := range []Seq{0, 1, 4, 1 << 40} {
		for _, limit := range []int{0, 1, 100} {
			cc, err := c.Changes(ctx, since, limit)
			cs, err2 := s.Changes(ctx, since, limit)
			same(fmt.Sprintf("changes %d %d", since, limit), append([]Change{}, cc...), append([]Change{}, cs...), err, err2)
		}
	}
	var lc, ls []Package
	for p, err := range c.Packages(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		lc = append(lc, p)
	}
	for p := range s.Packages(ctx) {
		ls = append(ls, p)
	}
	same("packages", lc, ls)
	if len(ls) != 3 {
		t.Errorf("packages %v", ls)
	}
	rc, err := c.Refused(ctx)
	rs, err2 := s.Refused(ctx)
	same("refused", rc, rs, err, err2)
	tc, err := c.Retries(ctx)
	ts, err2 := s.Retries(ctx)
	same("retries", tc, ts, err, err2)
	status, err := c.Status(ctx)
	if err != nil || string(status.Loop) != `{"lag":7}` {
		t.Errorf("loop %s, %v", status.Loop, err)
	}
	status.Loop = nil
	own, err := s.Status(ctx)
	same("status", status, own, err)
	if own.Cursors["f"] != "1" || own.Counts.Packages != 2 || own.Counts.Deleted != 1 {
		t.Errorf("status %+v", own)
	}
}

func TestTheSocketEditsTheSelection(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	path, _ := serveAt(t, Serve(s))
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	changed := s.WantsChanged()
	all, err := c.AddWants(ctx, Want{Spec: npm.Spec{Name: "@types/node"}}, Want{Spec: npm.Spec{Name: "express", Range: "4 || 5"}, Every: true, NoDeps: true})
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	<-changed
	if own, err := s.Wants(ctx); err != nil || !reflect.DeepEqual(own, all) {
		t.Errorf("%v, %v, want %v", own, err, all)
	}
	// Only exactly that spec goes.
	all, err = c.RemoveWants(ctx, Want{Spec: npm.Spec{Name: "express"}}, Want{Spec: npm.Spec{Name: "@types/node"}})
	if err != nil || len(all) != 1 || all[0].Spec.Range != "4 || 5" || !all[0].Every {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := c.AddWants(ctx, Want{Spec: npm.Spec{Name: npm.Name(strings.Repeat("x", maxTerm+1))}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name too long: %v", err)
	}
	check(t, s)
}

func TestTheSocketRefusesNonsense(t *testing.T) {
	s := newStore(t)
	commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}})
	path, _ := serveAt(t, Serve(s, WithRoute("GET /extra", http.NotFoundHandler())))
	web := socket.Client(path)
	defer web.CloseIdleConnections()
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/_changes?since=-1", "", 400},
		{"GET", "/_changes?since=now", "", 400},
		{"GET", "/_changes?feed=continuous", "", 400},
		{"GET", "/_changes?limit=99999999999", "", 400},
		{"GET", "/_changes?feed=longpoll&since=1&timeout=1", "", 200},
		{"GET", "/package/a", "", 200},
		{"GET", "/package/b%00", "", 404},
		{"GET", "/package/..%2f..%2fetc", "", 404},
		{"POST", "/package/a", "", 405},
		{"POST", "/wants", `{"spec":{}}`, 400},
		{"POST", "/wants", `[{"spec":{"name":"a"},"evry":true}]`, 400},
		{"POST", "/wants", `["` + strings.Repeat("a", maxRequest) + `"]`, 400},
		{"DELETE", "/wants", `[`, 400},
		{"GET", "/extra", "", 404},
		{"GET", "/", "", 200},
	} {
		req, err := http.NewRequest(c.method, "http://ledger"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status {
			t.Errorf("%s %s: %s %.100s, %v", c.method, c.path, resp.Status, raw, err)
		}
		if resp.Header.Get(headerIdentity) != s.Identity() || resp.Header.Get(headerHead) != "1" {
			t.Errorf("%s %s: headers %v", c.method, c.path, resp.Header)
		}
		if c.status == 400 {
			var f failure
			if err := json.Unmarshal(raw, &f); err != nil || f.Error != "invalid" || len(f.Detail) > 1000 {
				t.Errorf("%s %s: body %.100s", c.method, c.path, raw)
			}
		}
	}
	if got := s.Counts().Wants; got != 0 {
		t.Errorf("%d wants", got)
	}
}

// Who dialled one ledger never reads another, nor takes silence for an answer.
func TestAnotherLedgerIsNoticed(t *testing.T) {
	ctx := context.Background()
	first := newStore(t)
	commit(t, first, Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}})
	second, err := Create("/second", testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	var now atomic.Pointer[Store]
	now.Store(first)
	path, stop := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Serve(now.Load()).ServeHTTP(w, r)
	}))
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	now.Store(second)
	if _, err := c.Changes(ctx, 0, 0); !errors.Is(err, ErrReplaced) {
		t.Errorf("Changes of another ledger: %v", err)
	}
	if _, err := c.Package(ctx, "a"); !errors.Is(err, ErrReplaced) {
		t.Errorf("Package of another ledger: %v", err)
	}
	if err := c.Wait(ctx, 0); !errors.Is(err, ErrReplaced) {
		t.Errorf("Wait on another ledger: %v", err)
	}
	if head := c.Head(); head != 1 {
		t.Errorf("head %d", head)
	}
	stop()
	if _, err := c.Changes(ctx, 0, 0); !errors.Is(err, ErrAway) {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := Dial(path); !errors.Is(err, ErrAway) {
		t.Errorf("Dial with nobody there: %v", err)
	}
}

// A list that ends early is an error, not a short list.
func TestACutListIsAnError(t *testing.T) {
	s := newStore(t)
	commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d"), testUpdate("b", "d")}})
	if err := s.db.Set(packageKey("b"), []byte{9}, nil); err != nil {
		t.Fatal(err)
	}
	path, _ := serveAt(t, Serve(s))
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var last error
	for _, err := range c.Packages(context.Background()) {
		last = err
	}
	if !errors.Is(last, ErrAway) {
		t.Errorf("error %v", last)
	}
}
