package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

func TestParseMoment(t *testing.T) {
	for text, want := range map[string]string{
		"41": "41", "1": "1", "18446744073709551615": "18446744073709551615",
		"2026-11-20": "2026-11-20T23:59:59Z", "2026-11-20T01:02:03Z": "2026-11-20T01:02:03Z", "2026-11-20T01:02:03+02:00": "2026-11-19T23:02:03Z",
		"2024-02-29": "2024-02-29T23:59:59Z",
	} {
		m, err := ParseMoment(text)
		check(t, err)
		got := fmt.Sprint(m.number)
		if !m.IsNumber() {
			got = m.time.UTC().Format(time.RFC3339)
		}
		if got != want || m.String() != text {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "0", "041", "+41", "-1", "18446744073709551616", "now", "2026-11-31", "2025-02-29", "2026-11-20 10:00", "2026-11-20T10:00:00", "2026-11-20t10:00:00z", "..", "41/..", strings.Repeat("9", 1000)} {
		if _, err := ParseMoment(text); !errors.Is(err, ErrMoment) || len(err.Error()) > 300 {
			t.Errorf("%q: %v, want ErrMoment", text, err)
		}
	}
}

// A time that has not come is none to serve; the day that runs is as of now, and clocks
// differ a little.
func TestMomentBegun(t *testing.T) {
	for text, begun := range map[string]bool{
		"1": true, "18446744073709551615": true, "2026-02-28": true, "2026-03-01": true, "2026-03-02": false, "2099-01-01": false,
		"2026-03-01T12:04:59Z": true, "2026-03-01T12:05:01Z": false, "2026-03-01T13:30:00+02:00": true, "2026-03-01T11:00:00-02:00": false,
	} {
		m, err := ParseMoment(text)
		check(t, err)
		if err := m.Begun(someday); (err == nil) != begun || err != nil && !errors.Is(err, ErrFuture) {
			t.Errorf("%s: %v, begun is %t", text, err, begun)
		}
		err = DiffQuery{From: "now", To: text}.Check(someday)
		if (err == nil) != begun || err != nil && !errors.Is(err, ErrFuture) {
			t.Errorf("diff to %s: %v, begun is %t", text, err, begun)
		}
	}
	if err := (Moment{}).Begun(someday); err != nil {
		t.Error(err)
	}
}

// dated is so many days after someday.
func dated(n int) time.Time { return someday.AddDate(0, 0, n) }

// history publishes a release for each day, with other packages in each other one,
// and returns the roots by number.
func (w *world) history(days ...int) map[uint64]cid.Cid {
	roots := map[uint64]cid.Cid{}
	for i, n := range days {
		w.now = dated(n)
		w.publish(everything[:1+i%2]...)
		roots[w.number] = w.release
	}
	w.now = dated(slices.Max(days))
	w.seq++
	w.setRecord(w.sign(w.release, w.seq))
	return roots
}

// Clocks lie: what a date means is the newest release of then or before, unless one
// of those that came shortly before it says that it came later.
func TestFindByDate(t *testing.T) {
	ahead := []int{1, 2}
	for range honest + 3 { // for longer than is thought of
		ahead = append(ahead, 900)
	}
	ahead = append(ahead, 3, 4, 5)
	for _, tt := range []struct {
		name string
		days []int // on which releases 1, 2, … say they were made
		on   int
		want uint64 // 0: ErrNoRelease
	}{
		{"in order", []int{1, 2, 3, 4, 5}, 3, 3},
		{"between two", []int{1, 2, 4, 5}, 3, 2},
		{"several on that day", []int{1, 3, 3, 3, 5}, 3, 4},
		{"after the newest", []int{1, 2, 3}, 9, 3},
		{"the first", []int{1, 2, 3}, 1, 1},
		{"before the first", []int{2, 3, 4}, 1, 0},
		{"one went back to 1970", []int{1, 2, 3, 4, -20000, 5, 6}, 3, 3},
		{"several went back", []int{1, 2, 3, 4, -9, -9, -8, 5, 6}, 3, 3},
		{"the newest went back", []int{1, 2, 3, 4, -9}, 3, 3},
		{"one was ahead", []int{1, 2, 900, 3, 4, 5}, 4, 2}, // rather older than newer
		{"one was ahead, and the day is long past it", append(append([]int{1, 900}, slices.Repeat([]int{3}, honest+1)...), 4), 3, honest + 3},
		{"ahead for long", ahead, 2, 2},
		{"all ahead", []int{900, 901}, 3, 0},
	} {
		for _, jumps := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, jumps %v", tt.name, jumps), func(t *testing.T) {
				w := newWorld(t)
				if jumps {
					w.jump = w.myers
				}
				roots := w.history(tt.days...)
				m := w.synced()
				w.now = dated(max(tt.on, slices.Max(tt.days)))
				moment, err := ParseMoment(dated(tt.on).Format(time.DateOnly))
				check(t, err)
				got, err := m.find(t.Context(), moment, nil)
				if tt.want == 0 {
					if !errors.Is(err, ErrNoRelease) || !strings.Contains(err.Error(), "the oldest that can be rebuilt is release 1 of") {
						t.Fatalf("%v, %v", got, err)
					}
					return
				}
				check(t, err)
				if got.Number != tt.want || !got.Root.Equals(roots[tt.want]) {
					t.Errorf("%v, want release %d", got, tt.want)
				}
			})
		}
	}
}

// A number is found where it is, also beyond one that was never given; and each link
// is asked for once.
func TestFindByNumber(t *testing.T) {
	w := newWorld(t)
	w.history(1, 2)
	w.number = 7 // as after an index was lost
	roots := w.history(3, 4)
	roots[9] = w.release
	m := w.synced()
	find := func(text string) (link, error) {
		moment, err := ParseMoment(text)
		check(t, err)
		return m.find(t.Context(), moment, nil)
	}
	for number, root := range map[string]cid.Cid{"8": roots[8], "9": roots[9]} {
		l, err := find(number)
		check(t, err)
		if !l.Root.Equals(root) {
			t.Errorf("%s is %v", number, l)
		}
	}
	if _, err := find("1"); err != nil {
		t.Error(err)
	}
	asked := w.node.asked()
	if _, err := find("1"); err != nil || w.node.asked() != asked {
		t.Errorf("%v; %d blocks were asked for once more", err, w.node.asked()-asked)
	}
	for text, says := range map[string]string{"5": "none of that number", "10": "the newest here is release 9"} {
		if _, err := find(text); !errors.Is(err, ErrNoRelease) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
	fresh := w.open()
	if _, err := fresh.find(t.Context(), Moment{number: 1}, nil); !errors.Is(err, ErrNotSynced) {
		t.Errorf("without a list: %v", err)
	}
}

// What stands in the place of the release before must be one, and of a lower number:
// so no chain is without end.
func TestHostileChain(t *testing.T) {
	past := func(w *world) error {
		m := w.synced()
		_, err := m.find(w.t.Context(), Moment{number: 1, text: "1"}, nil)
		return err
	}
	t.Run("numbers go round", func(t *testing.T) {
		w := newWorld(t)
		w.history(1, 2, 3)
		w.number = 1 // the next is a second release 2
		w.history(4)
		err := past(w)
		if !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "release 3") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a list in its place", func(t *testing.T) {
		w := newWorld(t)
		w.number = 1
		w.history(1) // whose "previous" is its own list
		if err := past(w); !errors.Is(err, ErrChain) {
			t.Errorf("%v", err)
		}
	})
	t.Run("nobody has it", func(t *testing.T) {
		w := newWorld(t)
		roots := w.history(1, 2, 3)
		w.lose(roots[1], roots[2])
		w.now = dated(3)
		err := past(w)
		if !errors.Is(err, ErrNoRelease) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "the oldest that can be rebuilt is release 3 of") {
			t.Errorf("%v", err)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		w := newWorld(t)
		w.history(1, 2, 3)
		m := w.synced(func(o *Options) { o.Deadline = 50 * time.Millisecond })
		w.mu.Lock()
		w.node.hang = true
		w.mu.Unlock()
		_, err := m.find(t.Context(), Moment{number: 1, text: "1"}, nil)
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	})
}

// atTable is a table of one open registry.
func atTable(t *testing.T, m *Mirror) *Table {
	table, err := NewTable(Registry{Label: "main", Mirror: m})
	check(t, err)
	return table
}

// One request is answered as of then and the next as of now, tarballs too, and a
// document's tarball URLs lie where the client's registry does.
func TestServeAt(t *testing.T) {
	w := newWorld(t)
	w.history(1, 2, 3) // left-pad; left-pad and @types/node; left-pad
	m := w.synced()
	h := atTable(t, m).Handler()
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/left-pad", 200, `"http://127.0.0.1:4873/left-pad/-/left-pad-1.0.0.tgz"`},
		{"/@types%2fnode", 404, `"Not found"}`},
		{"/-/at/2/@types%2fnode", 200, `"http://127.0.0.1:4873/-/at/2/@types/node/-/node-20.0.0.tgz"`},
		{"/-/at/2/@types/node", 200, `"20.0.0"`},
		{"/-/at/2/@types/node/-/node-20.0.0.tgz", 200, "\x1f\x8b"},
		{"/-/at/2026-03-03/@types/node", 200, "/-/at/2026-03-03/@types/node/-/"},
		{"/-/at/2026-03-03T23:00:00Z/@types/node", 200, "/-/at/2026-03-03T23:00:00Z/@types/node/-/"},
		{"/-/at/2026-03-03T23%3A00%3A00Z/@types/node", 200, "/-/at/2026-03-03T23:00:00Z/@types/node/-/"},
		{"/-/at/1/@types/node", 404, `"Not found in release 1 of 2026-03-02 `},
		{"/-/at/3/@types/node", 404, `"Not found in release 3 of 2026-03-04 `},
		{"/-/at/2026-03-02/@types/node", 404, `"Not found in release 1 of 2026-03-02 `},
		{"/-/at/2026-03-04/@types/node", 404, `"Not found in release 3 of 2026-03-04 `}, // which is the newest
		{"/-/at/2/left-pad/9.9.9", 404, `"version not found: 9.9.9 in release 2 of 2026-03-03 `},
		{"/left-pad/9.9.9", 404, `"version not found: 9.9.9"}`},
		{"/-/at/2026-03-04/left-pad", 200, `/-/at/2026-03-04/left-pad/`},
		{"/-/at/2026-03-05/left-pad", 404, "release as of 2026-03-05: that moment has not come yet"},
		{"/-/at/2026-03-05", 404, "that moment has not come yet"},
		{"/-/at/2026-03-04T13:00:00Z/left-pad/latest", 404, "that moment has not come yet"},
		{"/-/at/2026-03-05/left-pad/-/left-pad-1.0.0.tgz", 200, "\x1f\x8b"},
		{"/-/at/2", 200, `"update_seq":2`},
		{"/-/at/2/", 200, `"update_seq":2`},
		{"/-/at/2/-/ping", 200, "{}"},
		{"/-/at/2/-/v1/search?text=node", 200, `"@types/node"`},
		{"/-/at/2/left-pad/latest", 200, `/-/at/2/left-pad/-/left-pad-1.3.0.tgz`},
		{"/-/at/2/-/at/1/left-pad", 404, "Not found"},
		{"/-/at/4/left-pad", 404, "the newest here is release 3"},
		{"/-/at/2026-03-01/left-pad", 404, "the oldest that can be rebuilt is release 1 of 2026-03-02"},
		{"/-/at/2026-03-01/left-pad/-/left-pad-1.0.0.tgz", 200, "\x1f\x8b"}, // from the newest
		{"/-/at/2026-03-01/@types%2fnode/-/node-20.0.0.tgz", 404, "Not found"},
		{"/-/at/yesterday/left-pad", 404, "neither a release's number nor a date"},
		{"/-/at/..%2f2/left-pad", 404, "neither a release's number nor a date"},
		{"/-/at/", 404, "neither a release's number nor a date"},
		{"/-/at", 404, "Not found"},
		{"/-/at%2f2/left-pad", 404, "Not found"},
	} {
		got := ask(h, tt.path)
		if got.Code != tt.status || !strings.Contains(got.Body.String(), tt.body) {
			t.Errorf("%s: %d %.200s, want %d %s", tt.path, got.Code, got.Body, tt.status, tt.body)
		}
	}

	// npm is told, and its lockfile stays free of it all.
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:4873/-/at/2/left-pad", nil)
	r.Header.Set("User-Agent", "npm/11.0.0")
	got := httptest.NewRecorder()
	h.ServeHTTP(got, r)
	if notice := got.Header().Get("Npm-Notice"); !strings.Contains(notice, "as it stood in release 2 of 2026-03-03") {
		t.Errorf("notice %q", notice)
	}

	// What is newest moves on, and the past does not.
	w.now = dated(4)
	w.publish(everything...)
	check(t, m.Sync(t.Context()))
	if got := ask(h, "/-/at/2026-03-05/is-odd"); got.Code != 200 {
		t.Errorf("as of the newest day: %d %s", got.Code, got.Body)
	}
	if got := ask(h, "/-/at/3/is-odd"); got.Code != 404 {
		t.Errorf("release 3: %d", got.Code)
	}
}

// A rebuilt list is the one that the chain's CID says, or nothing is served: a
// snapshot of another list is passed over, and where the directories are gone that is
// the end.
func TestServeAtOfFalseSnapshot(t *testing.T) {
	w := newWorld(t)
	w.history(1)
	z, err := zstd.NewWriter(nil)
	check(t, err)
	lie := []byte("rms\x01\x00\x09evil") // a name of four bytes that is there
	lie = append(append(lie, w.dirs["left-pad"].Hash()[2:]...), 1)
	w.whole = z.EncodeAll(lie, nil)
	w.now = dated(2)
	w.publish(everything[:2]...)
	second := w.release
	w.whole, w.now = nil, dated(3)
	w.publish("left-pad", "is-odd")
	m := w.synced()
	h := atTable(t, m).Handler()
	for path, status := range map[string]int{"/-/at/2/left-pad": 200, "/-/at/2/@types/node": 200, "/-/at/2/evil": 404, "/-/at/2/is-odd": 404} {
		if got := ask(h, path); got.Code != status {
			t.Errorf("%s: %d %s, want %d", path, got.Code, got.Body, status)
		}
	}

	l, err := unixfs.Path(t.Context(), w, second, "_registry", "list", "@types")
	check(t, err)
	w.lose(l.CID)
	w.node.held = map[cid.Cid]blocks.Block{}
	m = w.synced(func(o *Options) { o.Dir = "other" })
	w.lose(l.CID)
	h = atTable(t, m).Handler()
	for _, path := range []string{"/-/at/2/left-pad", "/-/at/2/evil"} {
		if got := ask(h, path); got.Code != 404 || !strings.Contains(got.Body.String(), ErrUnavailable.Error()) { // everybody said no
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	for _, path := range []string{"/-/at/1/left-pad", "/left-pad"} {
		if got := ask(h, path); got.Code != 200 {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
}

// So many earlier releases are open at once, and their lists on disk, and no more.
func TestEarlierReleasesAreBounded(t *testing.T) {
	w := newWorld(t)
	days := []int{1, 2, 3, 4, 5, 6, 7, 8, 9}
	roots := w.history(days...)
	fsys := vfs.NewMem()
	m := w.open(func(o *Options) { o.FS = fsys })
	check(t, m.Sync(t.Context()))
	lists := func() []string {
		names, err := fsys.List(m.listsDir())
		check(t, err)
		return names
	}
	h := atTable(t, m).Handler()
	for _, n := range days {
		if got := ask(h, fmt.Sprintf("/-/at/%d/left-pad", n)); got.Code != 200 {
			t.Fatalf("release %d: %d %s", n, got.Code, got.Body)
		}
	}
	if len(m.earlier.open) != maxEarlier || len(lists()) > maxEarlier {
		t.Errorf("%d are open, %d on disk", len(m.earlier.open), len(lists()))
	}
	// Those in use stay, and one more is refused.
	var done []func()
	for n := 1; n <= maxEarlier; n++ {
		_, leave, err := m.openAt(t.Context(), roots[uint64(n)])
		check(t, err)
		done = append(done, leave)
	}
	if got := ask(h, "/-/at/7/left-pad"); got.Code != 503 || !strings.Contains(got.Body.String(), "in use") {
		t.Errorf("one more: %d %s", got.Code, got.Body)
	}
	if got := ask(h, "/-/at/3/left-pad"); got.Code != 200 {
		t.Errorf("one of them: %d %s", got.Code, got.Body)
	}
	done[1]()
	if got := ask(h, "/-/at/7/left-pad"); got.Code != 200 {
		t.Errorf("once one was left: %d %s", got.Code, got.Body)
	}
	for i, f := range done {
		if i != 1 {
			f()
		}
	}
}

// A table of the past stays there, asks nobody for a record, and lowers no mark.
func TestTableAt(t *testing.T) {
	w := newWorld(t)
	w.history(1, 2)
	fsys := vfs.NewMem()
	o := func(o *Options) { o.FS = fsys }
	m := w.open(o)
	check(t, m.Sync(t.Context()))
	before := m.high.Load()
	then, err := atTable(t, m).At(t.Context(), Moment{number: 1, text: "1"}, nil)
	check(t, err)
	w.publish(everything...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- then.Run(ctx) }()
	check(t, then.Sync(t.Context()))
	if got := ask(then.Handler(), "/@types/node"); got.Code != 404 {
		t.Errorf("what came later: %d", got.Code)
	}
	s := then.Status(t.Context()).Registries[0]
	if s.At != "1" || s.Release.Number != 1 || s.Name != w.name.String() || s.Stale {
		t.Errorf("status %+v", s.Status)
	}
	if got := ask(then.Handler(), "/-/at/2/@types/node"); got.Code != 404 {
		t.Errorf("later than that: %d %s", got.Code, got.Body)
	}
	cancel()
	check(t, <-ended)
	if m.high.Load() != before {
		t.Error("the high-water mark moved")
	}
	check(t, m.Close())

	// With nobody there, what was rebuilt is.
	w.node.alone = true
	again := w.open(o, func(o *Options) { o.Offline = true })
	then, err = atTable(t, again).At(t.Context(), Moment{number: 1, text: "1"}, nil)
	check(t, err)
	if got := listedNames(t, then.rows[0].Mirror); !slices.Equal(got, []string{"left-pad"}) {
		t.Errorf("lists %v", got)
	}
	raw, err := fsys.Open("mirror/highwater.json")
	check(t, err)
	defer raw.Close()
	var high highWater
	check(t, json.NewDecoder(raw).Decode(&high))
	if high.Number != 2 {
		t.Errorf("the high-water mark is of release %d", high.Number)
	}
}

// A number is of one registry; a day is of all, each having its own release of then.
func TestTableAtOfSeveral(t *testing.T) {
	one, two := newWorld(t), newWorld(t)
	one.history(1, 3)
	two.history(2, 3)
	rows := []Registry{{Label: "one", Scopes: []string{"@types"}, Mirror: one.synced()}, {Label: "two", Mirror: two.synced()}}
	table, err := NewTable(rows...)
	check(t, err)
	if _, err := table.At(t.Context(), Moment{number: 1, text: "1"}, nil); !errors.Is(err, ErrMoment) {
		t.Errorf("a number: %v", err)
	}
	h := table.Handler()
	if got := ask(h, "/-/at/1/left-pad"); got.Code != 404 || !strings.Contains(got.Body.String(), "name a day") {
		t.Errorf("a number: %d %s", got.Code, got.Body)
	}
	if got := ask(h, "/-/at/2026-03-03/@types/node"); got.Code != 404 {
		t.Errorf("of one: %d %s", got.Code, got.Body)
	}
	if got := ask(h, "/-/at/2026-03-04/@types/node"); got.Code != 200 {
		t.Errorf("of one, later: %d %s", got.Code, got.Body)
	}
	if got := ask(h, "/-/at/2026-03-02/left-pad"); got.Code != 404 || !strings.Contains(got.Body.String(), "registry two: ") {
		t.Errorf("before two began: %d %s", got.Code, got.Body)
	}
}
