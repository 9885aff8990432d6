package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Three registries: a public one, a company's, and another public one. Who
// wrote the public ones knew the company's names, and gave his higher versions.
func threeRegistries(t *testing.T) (table *Table, public, acme, other *world) {
	public = newWorldOf(t, `
-- left-pad@1.3.0/package.json --
{"name":"left-pad","version":"1.3.0","description":"public"}
-- @acme/thing@99.0.0/package.json --
{"name":"@acme/thing","version":"99.0.0","description":"evil"}
-- secret-sauce@99.0.0/package.json --
{"name":"secret-sauce","version":"99.0.0","description":"evil"}
`)
	acme = newWorldOf(t, `
-- @acme/thing@1.0.0/package.json --
{"name":"@acme/thing","version":"1.0.0","description":"acme's"}
-- left-pad@0.0.1/package.json --
{"name":"left-pad","version":"0.0.1","description":"acme's, and not asked for"}
`)
	other = newWorldOf(t, `
-- left-pad@9.9.9/package.json --
{"name":"left-pad","version":"9.9.9","description":"second"}
-- is-odd@3.0.1/package.json --
{"name":"is-odd","version":"3.0.1","description":"second"}
`)
	public.publish("left-pad", "@acme/thing", "secret-sauce")
	acme.publish("@acme/thing", "left-pad")
	other.publish("left-pad", "is-odd")
	table, err := NewTable(
		Registry{Label: "acme", Scopes: []string{"@acme"}, Names: []npm.Name{"secret-sauce"}, Mirror: acme.synced()},
		Registry{Label: "public", Mirror: public.synced()},
		Registry{Label: "other", Mirror: other.synced()},
	)
	check(t, err)
	return table, public, acme, other
}

func ask(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:4873"+path, nil)
	r.Header.Set("User-Agent", "pnpm/12.21.0 npm/? node/? linux x64")
	h.ServeHTTP(w, r)
	return w
}

// A claimed name comes from its registry or not at all, however it is spelt; any
// other from the first open registry that lists it.
func TestConfusion(t *testing.T) {
	table, public, _, _ := threeRegistries(t)
	h := table.Handler()
	before := public.node.asked()
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/@acme/thing", 200, "acme's"},
		{"/@acme%2fthing", 200, "acme's"},
		{"/@acme%2Fthing", 200, "acme's"},
		{"/%40acme%2fthing", 200, "acme's"},
		{"/%40%61cme/thing", 200, "acme's"},
		{"/@acme/thing/latest", 200, `"1.0.0"`},
		{"/@acme/thing/99.0.0", 404, "version not found"},
		{"/-/package/@acme%2fthing/dist-tags", 200, `"1.0.0"`},
		{"/-/package/@acme/thing/dist-tags", 200, `"1.0.0"`},
		{"/@acme/thing/-/thing-1.0.0.tgz", 200, "\x1f\x8b"},
		{"/@acme/thing/-/thing-99.0.0.tgz", 404, "error"},
		{"/@acme%2fthing/-/@acme/thing-99.0.0.tgz", 404, "error"},
		{"/@acme/no-such", 404, "error"},
		{"/secret-sauce", 404, "error"},
		{"/secret-sauce/-/secret-sauce-99.0.0.tgz", 404, "error"},
		{"/-/package/secret-sauce/dist-tags", 404, "error"},
	} {
		got := ask(h, tt.path)
		if got.Code != tt.status || !strings.Contains(got.Body.String(), tt.body) || strings.Contains(got.Body.String(), "evil") {
			t.Errorf("%s: %d %.200q, want %d with %q", tt.path, got.Code, got.Body.String(), tt.status, tt.body)
		}
	}
	if got := public.node.asked(); got != before {
		t.Errorf("the public registry's node was asked for %d blocks", got-before)
	}
	for path, body := range map[string]string{"/left-pad": "public", "/is-odd": "second"} {
		if got := ask(h, path); got.Code != 200 || !strings.Contains(got.Body.String(), `"`+body+`"`) {
			t.Errorf("%s: %d %.200q, want it to be %s", path, got.Code, got.Body.String(), body)
		}
	}
	if got := ask(h, "/no-such"); got.Code != 404 {
		t.Errorf("a name that nobody has: %d", got.Code)
	}
}

// A search shows what an install would find.
func TestSearchOfAll(t *testing.T) {
	table, _, _, _ := threeRegistries(t)
	var got struct {
		Objects []struct {
			Package struct{ Name, Version string }
		}
		Total int
	}
	answer := ask(table.Handler(), "/-/v1/search?text=")
	check(t, json.Unmarshal(answer.Body.Bytes(), &got))
	var found []string
	for _, o := range got.Objects {
		found = append(found, o.Package.Name+"@"+o.Package.Version)
	}
	slices.Sort(found)
	if want := []string{"@acme/thing@1.0.0", "is-odd@3.0.1", "left-pad@1.3.0"}; !slices.Equal(found, want) || got.Total != 3 {
		t.Errorf("found %q, %d in all, want %q", found, got.Total, want)
	}
}

// Where the first open registry has no list yet, the second is not asked in its
// place: who keeps the first away must not choose what is installed.
func TestUnsyncedIsNotPassedOver(t *testing.T) {
	_, public, _, other := threeRegistries(t)
	table, err := NewTable(Registry{Label: "public", Mirror: public.open()}, Registry{Label: "other", Mirror: other.synced()})
	check(t, err)
	if got := ask(table.Handler(), "/is-odd"); got.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", got.Code, got.Body)
	}
}

// Who has just started a mirror asks at once: the first list is waited for.
func TestFirstListIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	m := w.open()
	m.patience = time.Hour
	got := make(chan int)
	go func() { got <- get(m, "/left-pad").Code }()
	if code := get(m, "/-/ping").Code; code != 200 {
		t.Errorf("ping: %d", code)
	}
	check(t, m.Sync(t.Context()))
	if code := <-got; code != 200 {
		t.Errorf("got %d", code)
	}
}

// What an open registry lists of claimed names is told.
func TestOverlaps(t *testing.T) {
	table, _, _, _ := threeRegistries(t)
	got, err := table.Overlaps(t.Context())
	check(t, err)
	want := []Overlap{{"@acme/thing", "acme", "public"}, {"secret-sauce", "acme", "public"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	s := table.Status(t.Context())
	if len(s.Registries) != 3 || s.Registries[0].Registry != "acme" || s.Registries[0].Release.Number != 1 || !slices.Equal(s.Overlaps, want) {
		t.Errorf("status %+v", s)
	}
}

// No open registry: what nobody claims does not exist, and the person is told.
func TestNothingOpen(t *testing.T) {
	_, _, acme, _ := threeRegistries(t)
	table, err := NewTable(Registry{Label: "acme", Scopes: []string{"@acme"}, Mirror: acme.synced()})
	check(t, err)
	got := ask(table.Handler(), "/left-pad")
	if got.Code != 404 || !strings.Contains(got.Header().Get("Npm-Notice"), "claimed by no registry") {
		t.Errorf("%d %v", got.Code, got.Header())
	}
	if got := ask(table.Handler(), "/-/ping"); got.Code != 200 {
		t.Errorf("ping: %d", got.Code)
	}
}

func TestClaims(t *testing.T) {
	m := newWorld(t).open()
	for _, tt := range []struct {
		name string
		rows []Registry
		want error
	}{
		{"one scope twice", []Registry{{Label: "a", Scopes: []string{"@x"}, Mirror: m}, {Label: "b", Scopes: []string{"@x"}, Mirror: m}}, ErrClaimed},
		{"one name twice", []Registry{{Label: "a", Names: []npm.Name{"x"}, Mirror: m}, {Label: "b", Names: []npm.Name{"x"}, Mirror: m}}, ErrClaimed},
		{"a name of another's scope", []Registry{{Label: "a", Scopes: []string{"@x"}, Mirror: m}, {Label: "b", Names: []npm.Name{"@x/y"}, Mirror: m}}, ErrClaimed},
		{"a name of its own scope", []Registry{{Label: "a", Scopes: []string{"@x"}, Names: []npm.Name{"@x/y"}, Mirror: m}}, nil},
		{"one label twice", []Registry{{Label: "a", Mirror: m}, {Label: "a", Mirror: m}}, ErrClaimed},
		{"no scope", []Registry{{Label: "a", Scopes: []string{"x"}, Mirror: m}}, npm.ErrName},
		{"a scope and more", []Registry{{Label: "a", Scopes: []string{"@x/y"}, Mirror: m}}, npm.ErrName},
		{"no name", []Registry{{Label: "a", Names: []npm.Name{"../x"}, Mirror: m}}, npm.ErrName},
	} {
		if _, err := NewTable(tt.rows...); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if _, err := NewTable(); err == nil {
		t.Error("no registry at all was no error")
	}
}

// A frozen release is what its CID says, whatever the name points at now.
func TestFrozen(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	root := w.release
	w.publish("is-odd")
	m := w.synced(func(o *Options) { o.Name, o.Root = ipns.Name{}, root })
	if got := listedNames(t, m); !slices.Equal(got, []string{"left-pad"}) {
		t.Errorf("list %q", got)
	}
	if s := m.Status(t.Context()); s.Name != "/ipfs/"+root.String() || s.Stale || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if got := get(m, "/left-pad/-/left-pad-1.3.0.tgz"); got.Code != 200 {
		t.Errorf("tarball: %d", got.Code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	cancel()
	check(t, <-ended)
	if _, err := Open(Options{Dir: "x", Name: w.name, Root: root, Node: w.node}); err == nil {
		t.Error("a name and a root together were no error")
	}
}

// A release that nobody has is an error, and tried again.
func TestFrozenUnknown(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	root := w.release
	gone := newWorld(t)
	m := gone.open(func(o *Options) { o.Name, o.Root = ipns.Name{}, root; o.Deadline = 100 * time.Millisecond })
	if err := m.Sync(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if got := get(m, "/left-pad"); got.Code != http.StatusServiceUnavailable {
		t.Errorf("served %d", got.Code)
	}
}
