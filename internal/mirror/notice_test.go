package mirror

import (
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const asNPM = "User-Agent: npm/12.2.0 node/v22.23.3 linux x64"

// Who uses npm is told once a minute that a list is stale, and what to do; other
// clients show no notice and get none.
func TestNoticeOfAStaleList(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced(func(o *Options) { o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	notice := func(path string, headers ...string) string {
		return get(m, path, append(headers, asNPM)...).Header().Get("Npm-Notice")
	}
	if got := notice("/left-pad"); got != "" {
		t.Errorf("while the record is valid: %q", got)
	}
	w.now = w.now.Add(25 * time.Hour)
	const want = "this registry's list is of 2026-03-01 12:00 UTC, release 1: its publisher's last word expired at 2026-03-02 12:00 UTC" +
		" and no newer one was found; `registry-mirror status`, where the mirror runs, says why"
	for _, agent := range []string{"yarn/1.22.22 npm/? node/v22", "pnpm/12.21.0 npm/? node/v22", ""} {
		if got := get(m, "/left-pad", "User-Agent: "+agent).Header().Get("Npm-Notice"); got != "" {
			t.Errorf("%q is told %q", agent, got)
		}
	}
	if got := notice("/left-pad/-/left-pad-1.3.0.tgz"); got != "" {
		t.Errorf("with a tarball, which caches keep: %q", got)
	}
	for _, path := range []string{"/left-pad", "/left-pad/latest", "/-/ping", "/-/package/left-pad/dist-tags", "/-/v1/search?text=left"} {
		first, again := notice(path), notice(path)
		if first != want || again != "" {
			t.Errorf("%s: %q, then %q", path, first, again)
		}
		w.now = w.now.Add(noticeEvery)
	}
	// An install's audit is told too: of what npm caches it prints no notice.
	notice("/left-pad")
	if got := do(m, "POST", "/-/npm/v1/security/advisories/bulk", strings.NewReader("{}"), asNPM).Header().Get("Npm-Notice"); got != want {
		t.Errorf("with an audit: %q", got)
	}
	// By host: those behind a proxy are not one.
	notice("/left-pad")
	for _, tt := range []struct {
		peer, client string
		told         bool
	}{
		{"198.51.100.1:1", "", true}, {"198.51.100.1:2", "", false}, {"198.51.100.2:1", "203.0.113.1", true}, {"198.51.100.2:1", "203.0.113.2", false},
		{"192.0.2.7:1", "203.0.113.1", true}, {"192.0.2.7:1", "203.0.113.1", false}, {"192.0.2.7:1", "203.0.113.2", true},
	} {
		r := httptest.NewRequest("GET", "http://127.0.0.1:4873/left-pad", nil)
		r.RemoteAddr = tt.peer
		r.Header.Set("User-Agent", "npm/12.2.0")
		if tt.client != "" {
			r.Header.Set("X-Forwarded-For", tt.client)
		}
		got := httptest.NewRecorder()
		m.Handler().ServeHTTP(got, r)
		if told := got.Header().Get("Npm-Notice") != ""; told != tt.told {
			t.Errorf("%s for %q: told %v", tt.peer, tt.client, told)
		}
	}
	w.publish(everything...)
	check(t, m.Sync(t.Context()))
	w.now = w.now.Add(noticeEvery)
	if got := notice("/left-pad"); got != "" {
		t.Errorf("with a new record: %q", got)
	}
}

// An error tells what a person can do about it, and has the status that its
// clients take for what it is.
func TestNoticeOfAnError(t *testing.T) {
	for _, tt := range []struct {
		what, path string
		spoil      func(w *world)
		status     int
		retry      bool
		notice     string
	}{
		{"nothing came yet", "/left-pad", func(w *world) { w.setRecord(nil) }, 503, true, "no list of this registry has come yet"},
		{"nothing came yet", "/left-pad/-/left-pad-1.3.0.tgz", func(w *world) { w.setRecord(nil) }, 503, true, "no list of this registry has come yet"},
		{"another tarball", "/left-pad/-/left-pad-1.3.0.tgz", func(w *world) {
			w.big["left-pad-1.3.0.tgz"] = []byte("other bytes")
			w.publish(everything...)
		}, 403, false, "withheld: the bytes at hand are not"},
		{"a document gone", "/left-pad", func(w *world) { w.lose(w.docs["left-pad"]) }, 404, false, "no source of this registry has it"},
		{"too old", "/left-pad", func(*world) {}, 503, true, "this registry's list is too old"},
		{"not listed", "/nowhere", func(*world) {}, 404, false, ""},
		{"not listed", "/left-pad/-/left-pad-9.9.9.tgz", func(*world) {}, 404, false, ""},
	} {
		w := newWorld(t)
		w.publish(everything...)
		tt.spoil(w)
		m := w.open(func(o *Options) { o.Deadline, o.MaxStale = 100*time.Millisecond, time.Hour })
		if err := m.Sync(t.Context()); err != nil && w.record != nil {
			t.Fatal(err)
		}
		if tt.what == "too old" {
			w.now = w.now.Add(26 * time.Hour)
		}
		got := get(m, tt.path, asNPM)
		h := got.Header()
		if got.Code != tt.status || (h.Get("Retry-After") != "") != tt.retry || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s, %s: %d %v", tt.what, tt.path, got.Code, h)
		}
		if n := h.Get("Npm-Notice"); !strings.HasPrefix(n, tt.notice) || tt.notice == "" && n != "" {
			t.Errorf("%s, %s: notice %q, want %q", tt.what, tt.path, n, tt.notice)
		}
		if !strings.HasPrefix(got.Body.String(), `{"error":"`) {
			t.Errorf("%s, %s: %s", tt.what, tt.path, got.Body)
		}
		if got := get(m, tt.path, asNPM); got.Header().Get("Npm-Notice") != "" {
			t.Errorf("%s, %s: told twice", tt.what, tt.path)
		}
		// pnpm retries these for minutes.
		if slices.Contains([]int{410, 451}, got.Code) {
			t.Errorf("%s, %s: %d", tt.what, tt.path, got.Code)
		}
	}
}
