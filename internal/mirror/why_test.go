package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// accountOf is what the only registry of a table says.
func accountOf(t *testing.T, m *Mirror, name npm.Name, version string) Account {
	t.Helper()
	a, err := alone(t, m).Account(t.Context(), name, version, true)
	check(t, err)
	return a
}

func (a Account) result(what string) Result {
	i := slices.IndexFunc(a.Checks, func(c Check) bool { return c.What == what })
	if i < 0 {
		return ""
	}
	return a.Checks[i].Result
}

func TestAccount(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	w.publish("left-pad", "is-odd")
	w.publish(everything...)
	m := w.synced()
	a := accountOf(t, m, "left-pad", "")
	if a.State != Served || a.Version != "1.3.0" || a.Release.Number != 3 || *a.Since != (Since{1, someday, false}) || len(a.Versions) != 2 || a.Versions[0].Version != "1.3.0" {
		t.Errorf("%+v, since %+v", a, a.Since)
	}
	if a.Tarball.CID != w.files["left-pad-1.3.0.tgz"].String() || a.Tarball.Here || a.Tarball.Arrivals != nil || a.Directory != w.dirs["left-pad"].String() || a.Document != w.docs["left-pad"].String() {
		t.Errorf("%+v", a.Tarball)
	}
	if a.result("record") != Passed || a.result("list") != Passed || a.result("integrity") != Pending || a.result("signature") != None {
		t.Errorf("%+v", a.Checks)
	}
	if a = accountOf(t, m, "left-pad", "old"); a.Version != "1.0.0" || a.State != Served {
		t.Errorf("the tag old: %+v", a)
	}
	if a = accountOf(t, m, "is-odd", ""); a.Since.Number != 2 || a.Since.AtLeast || len(a.Manifest.Dependencies) != 1 {
		t.Errorf("is-odd: %+v, %+v", a.Since, a.Manifest)
	}
	if a = accountOf(t, m, "left-pad", "<1.1"); a.Version != "1.0.0" || a.State != Served {
		t.Errorf("a range: %+v", a)
	}
	if a = accountOf(t, m, "left-pad", "9.9.9"); a.State != Missing || !strings.Contains(a.Why, "says nothing of this one") {
		t.Errorf("%+v", a)
	}
	if a = accountOf(t, m, "no-such", ""); a.State != Unlisted || a.Release == nil || a.Directory != "" {
		t.Errorf("%+v", a)
	}
	if _, err := alone(t, m).Account(t.Context(), "../x", "", false); !errors.Is(err, npm.ErrName) {
		t.Errorf("%v, want ErrName", err)
	}
	if a = accountOf(t, w.open(func(o *Options) { o.Dir = "other" }), "left-pad", ""); a.State != Unsynced {
		t.Errorf("without a list: %+v", a)
	}
}

// Where bytes came from outlives a restart, and so does what was checked.
func TestAccountOfWhatWasFetched(t *testing.T) {
	w := newWorld(t)
	w.registry.Sign()
	w.keys = w.registry.Keys()
	w.publish(everything...)
	gateway := &fakeGateway{w: w}
	var o Options
	m := w.open(func(p *Options) { p.Gateways = []Gateway{gateway}; p.Node = nil; o = *p })
	check(t, m.Sync(t.Context()))
	if got := get(m, "/left-pad/-/left-pad-1.3.0.tgz"); got.Code != http.StatusOK {
		t.Fatal(got.Code)
	}
	check(t, m.Close())
	m, err := Open(o)
	check(t, err)
	defer m.Close()
	a := accountOf(t, m, "left-pad", "latest")
	if want := []Arrival{{"car", gateway.URL(), someday}}; !slices.Equal(a.Tarball.Arrivals, want) || !a.Tarball.Here || a.result("integrity") != Passed {
		t.Errorf("%+v, %+v", a.Tarball, a.Checks)
	}
	if a.result("signature") != Passed || a.Signature.Verdict != npm.Verified || a.Signature.Ring != "release" || len(a.Signature.Keys) != 1 {
		t.Errorf("%+v", a.Signature)
	}
	if a = accountOf(t, m, "is-odd", ""); a.Tarball.Arrivals != nil || a.Tarball.Here {
		t.Errorf("of what nobody asked for: %+v", a.Tarball)
	}

	node := w.synced(func(o *Options) { o.Dir = "node" })
	get(node, "/left-pad/-/left-pad-1.3.0.tgz")
	if a := accountOf(t, node, "left-pad", ""); len(a.Tarball.Arrivals) != 1 || a.Tarball.Arrivals[0].Source != "bitswap" {
		t.Errorf("from peers: %+v", a.Tarball)
	}
}

func TestAccountOfWrongBytes(t *testing.T) {
	w := newWorld(t)
	w.big = map[string][]byte{"left-pad-1.3.0.tgz": []byte("not what was published")}
	w.publish(everything...)
	m := w.synced()
	if got := get(m, "/left-pad/-/left-pad-1.3.0.tgz"); got.Code != http.StatusForbidden {
		t.Fatal(got.Code)
	}
	a := accountOf(t, m, "left-pad", "")
	if a.State != Refused || a.result("integrity") != Failed || !strings.Contains(a.Why, "does not match its integrity") {
		t.Errorf("%+v", a)
	}
	if a.Readme != "" {
		t.Errorf("a readme was read from it: %q", a.Readme)
	}
}

// What is not there has a reason: the ledger's, else that the document dates it.
func TestAccountOfWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	w.registry.Edit("left-pad", func(doc []byte) []byte {
		return bytes.Replace(doc, []byte(`"time":{`), []byte(`"time":{"1.1.0":"2026-01-02T00:00:00Z","1.2.0":"2026-01-02T00:00:00Z",`), 1)
	})
	w.publish("left-pad")
	m := w.synced(func(o *Options) {
		o.Background = func(_ context.Context, name npm.Name) (Background, error) {
			if name == "evil" {
				return Background{NotListed: []Held{{"", "only", "no pattern of only takes the name"}}}, nil
			}
			return Background{
				FirstSeen: map[string]time.Time{"1.3.0": someday, "1.2.5": someday, "1.2.0": someday},
				Unlisted:  Held{"", "rolled-back", "it is stored"},
				NotListed: []Held{{"1.2.0", "min-age", "too young"}, {"1.3.0", "stale", "it is listed by now"}},
			}, nil
		}
	})
	a := accountOf(t, m, "left-pad", "")
	if !a.FirstSeen.Equal(someday) || !slices.Equal(a.NotListed[:2], []Held{{"1.2.5", "rolled-back", "it is stored"}, {"1.2.0", "min-age", "too young"}}) ||
		len(a.NotListed) != 3 || a.NotListed[2].Version != "1.1.0" || a.NotListed[2].Reason != "" {
		t.Errorf("%+v", a.NotListed)
	}
	for version, want := range map[string]State{"1.2.5": Withheld, "1.2.0": Withheld, "1.1.0": Missing} {
		if a := accountOf(t, m, "left-pad", version); a.State != want || a.Why == "" || a.Tarball != nil {
			t.Errorf("%s is %s: %s, want %s", version, a.State, a.Why, want)
		}
	}
	if a := accountOf(t, m, "evil", ""); a.State != Withheld || !strings.HasPrefix(a.Why, "only: ") {
		t.Errorf("%+v", a)
	}
}

// Beside a ledger what has no other reason is not selected, where upstream has it.
func TestAccountOfWhatIsNotSelected(t *testing.T) {
	w := newWorld(t)
	w.registry.Edit("left-pad", func(doc []byte) []byte {
		return bytes.Replace(doc, []byte(`"time":{`), []byte(`"time":{"1.1.0":"2026-01-02T00:00:00Z","1.2.0":"2026-01-02T00:00:00Z",`), 1)
	})
	w.publish("left-pad")
	var selection []string
	var choices []npm.Spec
	m := w.synced(func(o *Options) {
		o.Background = func(context.Context, npm.Name) (Background, error) {
			return Background{Ledger: true, Selection: selection, Choices: choices, NotListed: []Held{{"1.2.0", "min-age", "too young"}}}, nil
		}
	})
	for _, test := range []struct {
		name      npm.Name
		version   string
		selection []string
		state     State
		not       bool
		why       string
	}{
		{"left-pad", "1.1.0", nil, Missing, true, "it is not selected: nothing selects the package by its name; upstream dates it 2026"},
		{"left-pad", "1.1.0", []string{"left-pad@1.3.0", "@x"}, Missing, true, "it is not selected: what is selected is left-pad@1.3.0, @x; upstream dates it 2026"},
		{"left-pad", "~1.1.0", []string{"1", "2", "3", "4", "5", "6", "7"}, Missing, true, "it is not selected: what is selected is 1, 2, 3, 4, 5 and 2 more; upstream"},
		{"left-pad", "1.2.0", nil, Withheld, false, "min-age: too young"},
		{"left-pad", "9.9.9", nil, Missing, false, "upstream's document has no such version"},
		{"nowhere", "", nil, Unlisted, true, "release 1 does not list it; nothing selects the package by its name"},
		{"nowhere", "", []string{"nowhere@1"}, Unlisted, false, "release 1 does not list it; what is selected is nowhere@1"},
	} {
		selection = test.selection
		if a := accountOf(t, m, test.name, test.version); a.State != test.state || a.NotSelected != test.not || !strings.HasPrefix(a.Why, test.why) {
			t.Errorf("%s@%s beside %q is %s (not selected: %t): %s", test.name, test.version, test.selection, a.State, a.NotSelected, a.Why)
		} else if a.Since != nil || a.Nowhere != (test.version == "9.9.9") {
			t.Errorf("%s@%s, which is not there: since %+v, nowhere: %t", test.name, test.version, a.Since, a.Nowhere)
		}
	}
	selection = []string{"left-pad@1.3.0", "left-pad@2", "left-pad@1"}
	for rng, want := range map[string]string{
		"1": "it is not selected: of left-pad@1 only what npm would choose is, 1.3.0; --every takes all versions; upstream dates it 2026",
		"":  "it is not selected: of left-pad only what npm would choose is, 1.3.0; --every takes all versions; upstream dates it 2026",
		"2": "it is not selected: what is selected is left-pad@1.3.0, left-pad@2, left-pad@1; upstream dates it 2026",
	} {
		choices = []npm.Spec{{Name: "left-pad", Range: "1.1.0"}, {Name: "left-pad", Range: "latest"}, {Name: "left-pad", Range: rng}}
		if a := accountOf(t, m, "left-pad", "1.1"); !a.NotSelected || !strings.HasPrefix(a.Why, want) {
			t.Errorf("beside the choice %q: %s", rng, a.Why)
		}
	}
}

func TestAccountSaysWhoseANameIs(t *testing.T) {
	acme, public := newWorld(t), newWorld(t)
	acme.publish("@types/node")
	public.publish(everything...)
	table, err := NewTable(
		Registry{Label: "acme", Scopes: []string{"@types"}, Mirror: acme.synced()},
		Registry{Label: "one", Names: []npm.Name{"left-pad"}, Mirror: acme.synced(func(o *Options) { o.Dir = "one" })},
		Registry{Label: "public", Mirror: public.synced()},
	)
	check(t, err)
	for name, want := range map[npm.Name]struct {
		registry, because string
		state             State
		others            int
	}{
		"@types/node":   {"acme", "claims the scope @types", Served, 2},
		"@types/nobody": {"acme", "claims the scope @types", Unlisted, 0},
		"left-pad":      {"one", "claims this name", Unlisted, 1},
		"is-odd":        {"public", "first that lists it", Served, 0},
		"no-such":       {"public", "no open registry lists it", Unlisted, 0},
	} {
		a, err := table.Account(t.Context(), name, "", false)
		check(t, err)
		if a.State != want.state || a.Owner.Registry != want.registry || !strings.Contains(a.Owner.Because, want.because) || len(a.Owner.Others) != want.others {
			t.Errorf("%s is %s: %+v, want %+v", name, a.State, a.Owner, want)
		}
	}
	table, err = NewTable(Registry{Label: "acme", Scopes: []string{"@types"}, Mirror: acme.synced(func(o *Options) { o.Dir = "two" })})
	check(t, err)
	if a, err := table.Account(t.Context(), "left-pad", "", false); err != nil || a.State != Nobodys {
		t.Errorf("%+v, %v", a, err)
	}

	r := newRecorder(table.Admin(), http.MethodGet, "/why?name=@types/node&version=latest")
	var got Account
	if err := json.Unmarshal(r.Body.Bytes(), &got); r.Code != 200 || err != nil || got.Version != "20.0.0" || got.State != Served {
		t.Errorf("%d %s", r.Code, r.Body)
	}
	if r := newRecorder(table.Admin(), http.MethodGet, "/why?name=..%2fx"); r.Code != 400 {
		t.Errorf("a name that is none: %d", r.Code)
	}
}

// Releases before this one are looked at on this machine alone, unless it is said
// otherwise; where they are not there, nothing is claimed.
func TestAccountOfAPastThatIsNotHeld(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad")
	first := w.release
	w.publish(everything...)
	m := w.synced()
	w.node.w.mu.Lock()
	delete(w.node.held, first)
	w.node.w.mu.Unlock()
	asked := w.node.asked()
	a, err := alone(t, m).Account(t.Context(), "left-pad", "", false)
	check(t, err)
	if *a.Since != (Since{2, someday, true}) {
		t.Errorf("%+v", a.Since)
	}
	w.node.w.mu.Lock()
	defer w.node.w.mu.Unlock()
	if w.node.gets[first] > 0 {
		t.Errorf("it was asked of peers, after %d blocks", asked)
	}
}

// A tarball's readme stands in for one that the document lacks.
func TestReadmeOfATarball(t *testing.T) {
	w := newWorldOf(t, "-- a@1.0.0/package.json --\n{\"name\":\"a\",\"version\":\"1.0.0\"}\n-- a@1.0.0/docs/README.md --\nanother\n-- a@1.0.0/ReadMe.MD --\n# Hello\n")
	w.publish("a")
	m := w.synced()
	if a := accountOf(t, m, "a", ""); a.Readme != "" {
		t.Errorf("read from what is not here: %q", a.Readme)
	}
	get(m, "/a/-/a-1.0.0.tgz")
	if a := accountOf(t, m, "a", ""); a.Readme != "# Hello\n" {
		t.Errorf("%q", a.Readme)
	}
	if got := readable(strings.Repeat("é", MaxReadme)); len(got) > MaxReadme || strings.ToValidUTF8(got, "") != got {
		t.Errorf("%d bytes", len(got))
	}
}

func TestMeant(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced(func(o *Options) { o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")} })
	for _, tt := range []struct {
		host, peer string
		base       string // "": not meant
	}{
		{"127.0.0.1:4873", "127.0.0.1:9", "http://127.0.0.1:4873"},
		{"localhost:4873", "127.0.0.1:9", "http://localhost:4873"},
		{"LOCALHOST.", "127.0.0.1:9", "http://LOCALHOST."},
		{"npm.localhost", "127.0.0.1:9", "http://npm.localhost"},
		{"[::1]:4873", "[::1]:9", "http://[::1]:4873"},
		{"192.0.2.1:4873", "192.0.2.9:9", "http://192.0.2.1:4873"},
		{"npm.example.test", "192.0.2.7:9", "http://npm.example.test"},
		{"npm.example.test", "192.0.2.9:9", ""},
		{"evil.example.test:4873", "127.0.0.1:9", ""},
		{"127.0.0.1.evil.example.test", "127.0.0.1:9", ""},
		{"localhost.evil.example.test", "127.0.0.1:9", ""},
		{"192.0.2.2", "127.0.0.1:9", ""},
		{"a\"b", "127.0.0.1:9", ""},
		{"", "127.0.0.1:9", ""},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host, r.RemoteAddr = tt.host, tt.peer
		at := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:4873"))
		base, ok := alone(t, m).Meant(r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, at)))
		if ok != (tt.base != "") || ok && base != tt.base {
			t.Errorf("%s from %s: %q, %v", tt.host, tt.peer, base, ok)
		}
	}
}

func TestArrivalsOfWhatIsEvicted(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	file := w.docs["left-pad"]
	for range 2 { // it comes, goes, and comes again
		m.noteArrival(file, fromCAR, "https://gateway.example.test")
		if all, err := m.arrivals(file); err != nil || len(all) != 1 || all[0].Source != "car" {
			t.Errorf("%+v, %v", all, err)
		}
		m.forget(file)
		if all, err := m.arrivals(file); err != nil || len(all) != 0 {
			t.Errorf("evicted: %+v, %v", all, err)
		}
	}
}
