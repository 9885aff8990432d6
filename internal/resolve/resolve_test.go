package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var errGone, errBusy = errors.New("404"), errors.New("503")

// universe reads packages from lines such as
//
//	a@1.0.0 b@^1 c=npm:d@2 opt:e@1 peer:f@* maybe:g@* bundle:h@1 deprecated
//	a#next 1.0.0
//
// where # sets a dist-tag (latest is otherwise the highest version), and gives
// them as Packuments. A package named "busy…" answers errBusy.
func universe(text string) Packuments {
	all := make(map[npm.Name]*npm.Packument)
	get := func(name string) *npm.Packument {
		p := all[npm.Name(name)]
		if p == nil {
			p = &npm.Packument{Name: npm.Name(name), DistTags: make(map[string]string), Versions: make(map[string]*npm.Manifest)}
			all[p.Name] = p
		}
		return p
	}
	cut := func(s string) (string, string) {
		if name, rest, ok := strings.Cut(s, "="); ok && !strings.ContainsAny(name, "@<>") {
			return name, rest
		}
		i := strings.LastIndex(s[1:], "@") + 1
		return s[:i], s[i+1:]
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if name, tag, ok := strings.Cut(fields[0], "#"); ok {
			get(name).DistTags[tag] = fields[1]
			continue
		}
		name, version := cut(fields[0])
		m := &npm.Manifest{Name: npm.Name(name), Version: version,
			Dependencies: map[string]string{}, OptionalDependencies: map[string]string{},
			PeerDependencies: map[string]string{}, OptionalPeers: map[string]bool{}}
		for _, f := range fields[1:] {
			kind, item, ok := strings.Cut(f, ":")
			switch kind {
			case "opt", "peer", "maybe", "bundle":
			default:
				kind, item = "", f
			}
			if item == "deprecated" {
				m.Deprecated = "yes"
				continue
			}
			on, rng := cut(strings.ReplaceAll(item, "_", " "))
			switch kind {
			case "opt":
				m.OptionalDependencies[on] = rng
			case "peer":
				m.PeerDependencies[on] = rng
			case "maybe":
				m.PeerDependencies[on] = rng
				m.OptionalPeers[on] = true
			case "bundle":
				m.Dependencies[on] = rng
				m.Bundled = append(m.Bundled, on)
			default:
				m.Dependencies[on] = rng
			}
			_ = ok
		}
		get(name).Versions[version] = m
	}
	for _, p := range all {
		if _, ok := p.DistTags["latest"]; !ok {
			p.DistTags["latest"] = npm.MaxSatisfying(slices.Collect(maps.Keys(p.Versions)), "*")
		}
	}
	return func(ctx context.Context, name npm.Name) (*npm.Packument, error) {
		if strings.HasPrefix(string(name), "busy") {
			return nil, errBusy
		}
		if p := all[name]; p != nil {
			return p, nil
		}
		return nil, errGone
	}
}

func specs(t testing.TB, text string) []npm.Spec {
	t.Helper()
	var all []npm.Spec
	for _, f := range strings.Fields(text) {
		s, err := npm.ParseSpec(strings.ReplaceAll(f, "_", " "))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func versions(r Result) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		for _, v := range r.Versions[name] {
			all = append(all, string(name)+"@"+v)
		}
	}
	return strings.Join(all, " ")
}

func problems(r Result) string {
	var all []string
	for _, p := range r.Problems {
		cause := "?"
		for text, err := range map[string]error{"spec": npm.ErrSpec, "name": npm.ErrName, "unsatisfied": ErrUnsatisfied, "packument": ErrPackument} {
			if errors.Is(p.Err, err) {
				cause = text
			}
		}
		all = append(all, fmt.Sprintf("%s@%s by %s: %s", p.Name, p.Range, p.By, cause))
	}
	return strings.Join(all, "; ")
}

func TestClosure(t *testing.T) {
	for _, c := range []struct{ name, universe, roots, want, problems string }{
		{"a chain", "a@1.0.0 b@^1\n b@1.0.0 c@~1.2\n b@2.0.0\n c@1.2.9\n c@1.3.0", "a", "a@1.0.0 b@1.0.0 c@1.2.9", ""},
		{"the root alone", "a@1.0.0\n a@2.0.0\n a@3.0.0-rc.1", "a", "a@2.0.0", ""},
		{"a range", "a@1.0.0\n a@1.5.0\n a@2.0.0", "a@1", "a@1.5.0", ""},
		{"a tag", "a@1.0.0\n a@2.0.0-x\n a#next 2.0.0-x", "a@next", "a@2.0.0-x", ""},
		{"latest is not the highest", "a@1.0.0\n a@2.0.0\n a#latest 1.0.0\n b@1.0.0 a@*", "a b", "a@1.0.0 b@1.0.0", ""},
		{"a tag that only contains latest", "a@1.0.0\n a@2.0.0\n a@1.5.0\n a#latest-1 1.0.0\n b@1.0.0 a@>=1", "b", "a@2.0.0 b@1.0.0", ""},
		{"deprecated is avoided", "a@1.0.0\n a@1.1.0 deprecated\n b@1.0.0 a@^1", "b", "a@1.0.0 b@1.0.0", ""},
		{"deprecated is better than nothing", "a@1.0.0 deprecated\n b@1.0.0 a@^1", "b", "a@1.0.0 b@1.0.0", ""},
		{"prereleases only where named", "a@1.0.0\n a@1.1.0-rc.1\n b@1.0.0 a@^1.0.0\n c@1.0.0 a@^1.1.0-0", "b c", "a@1.0.0 a@1.1.0-rc.1 b@1.0.0 c@1.0.0", ""},
		{"one version serves two", "a@1.0.0 x@1.0.0 b@1\n b@1.0.0 x@^1\n x@1.0.0\n x@1.9.0", "a", "a@1.0.0 b@1.0.0 x@1.0.0", ""},
		{"two versions of one name", "a@1.0.0 x@1 b@1\n b@1.0.0 x@2\n x@1.0.0\n x@2.0.0", "a", "a@1.0.0 b@1.0.0 x@1.0.0 x@2.0.0", ""},
		{"each root on its own", "a@1.0.0 x@1.0.0\n b@1.0.0 x@^1\n x@1.0.0\n x@1.9.0", "a b", "a@1.0.0 b@1.0.0 x@1.0.0 x@1.9.0", ""},
		{"a dependency by tag", "a@1.0.0 x@beta\n x@1.0.0\n x@2.0.0-beta.1\n x#beta 2.0.0-beta.1", "a", "a@1.0.0 x@2.0.0-beta.1", ""},
		{"an alias", "a@1.0.0 y=npm:x@^1 x@2\n x@1.0.0\n x@2.0.0", "a", "a@1.0.0 x@1.0.0 x@2.0.0", ""},
		{"an alias without a range", "a@1.0.0 y=npm:@s/x\n @s/x@1.0.0", "a", "@s/x@1.0.0 a@1.0.0", ""},
		{"an alias by tag, twice", "a@1.0.0 y=npm:x@beta b@1\n b@1.0.0 y=npm:x@beta\n x@1.0.0\n x@2.0.0-b\n x#beta 2.0.0-b", "a", "a@1.0.0 b@1.0.0 x@2.0.0-b", ""},
		{"an alias as optional beside the package", "a@1.0.0 x@1 opt:y=npm:x@2\n x@1.0.0\n x@2.0.0", "a", "a@1.0.0 x@1.0.0 x@2.0.0", ""},
		{"an alias as root", "x@1.0.0 z@*\n z@1.0.0", "y@npm:x@1", "x@1.0.0 z@1.0.0", ""},
		{"optional for another platform", "a@1.0.0 opt:win@1 opt:mac@1\n win@1.0.0\n mac@1.0.0 x@1\n x@1.0.0", "a", "a@1.0.0 mac@1.0.0 win@1.0.0 x@1.0.0", ""},
		{"optional and missing", "a@1.0.0 opt:gone@1 opt:x@9 opt:git=git+ssh://git@example.test/x.git\n x@1.0.0", "a", "a@1.0.0", ""},
		{"missing below optional", "a@1.0.0 opt:b@1\n b@1.0.0 gone@1", "a", "a@1.0.0 b@1.0.0", ""},
		{"missing below optional and required", "a@1.0.0 opt:b@1 c@1\n c@1.0.0 b@1\n b@1.0.0 gone@1", "a", "a@1.0.0 b@1.0.0 c@1.0.0", "gone@1 by b@1.0.0: packument"},
		{"optional wins over regular", "a@1.0.0 x@1 opt:x@2\n x@1.0.0\n x@2.0.0", "a", "a@1.0.0 x@2.0.0", ""},
		{"an optional that could not be asked for", "a@1.0.0 opt:busy@1", "a", "a@1.0.0", "busy@1 by a@1.0.0: packument"},
		{"peers are installed", "a@1.0.0 peer:p@^1\n p@1.0.0 q@1\n p@2.0.0\n q@1.0.0", "a", "a@1.0.0 p@1.0.0 q@1.0.0", ""},
		{"a peer that is there", "a@1.0.0 b@1 p@1.0.0\n b@1.0.0 peer:p@>=1\n p@1.0.0\n p@2.0.0", "a", "a@1.0.0 b@1.0.0 p@1.0.0", ""},
		{"a peer marked optional", "a@1.0.0 maybe:p@^1\n p@1.0.0", "a", "a@1.0.0", ""},
		{"regular wins over peer", "a@1.0.0 peer:p@1 p@2\n p@1.0.0\n p@2.0.0", "a", "a@1.0.0 p@2.0.0", ""},
		{"bundled lies in the tarball", "a@1.0.0 bundle:b@1 x@1\n b@1.0.0\n x@1.0.0", "a", "a@1.0.0 x@1.0.0", ""},
		{"a circle", "a@1.0.0 b@1\n b@1.0.0 a@1", "a", "a@1.0.0 b@1.0.0", ""},
		{"an older self", "a@2.0.0 a@1\n a@1.0.0 x@1\n x@1.0.0", "a@2", "a@1.0.0 a@2.0.0 x@1.0.0", ""},
		{"an older self below", "r@1.0.0 a@2\n a@2.0.0 a@1\n a@1.0.0 x@1\n x@1.0.0", "r", "a@1.0.0 a@2.0.0 r@1.0.0 x@1.0.0", ""},
		{"what no registry has", "a@1.0.0 g=git+https://example.test/g.git u=https://example.test/u.tgz f=file:../f s=user/repo w=workspace:* l=link:../l ok@1\n ok@1.0.0", "a", "a@1.0.0 ok@1.0.0",
			"f@file:../f by a@1.0.0: spec; g@git+https://example.test/g.git by a@1.0.0: spec; l@link:../l by a@1.0.0: spec; s@user/repo by a@1.0.0: spec; u@https://example.test/u.tgz by a@1.0.0: spec; w@workspace:* by a@1.0.0: spec"},
		{"names that are none", "a@1.0.0 ../x=1 .hidden=1 ok@1\n ok@1.0.0", "a", "a@1.0.0 ok@1.0.0", "../x@1 by a@1.0.0: name; .hidden@1 by a@1.0.0: name"},
		{"no version and no package", "a@1.0.0 x@9 gone@1 x2@nonsense-tag\n x@1.0.0\n x2@1.0.0", "a", "a@1.0.0",
			"gone@1 by a@1.0.0: packument; x@9 by a@1.0.0: unsatisfied; x2@nonsense-tag by a@1.0.0: unsatisfied"},
		{"roots that are not there", "a@1.0.0", "gone a@2 a@tag", "", "a@2 by : unsatisfied; a@tag by : unsatisfied; gone@latest by : packument"},
		{"ranges with alternatives and spaces", "a@1.0.0 x@>=1.0.0_<1.5.0_||_^3\n x@1.4.0\n x@2.0.0\n x@3.1.0\n x#latest 2.0.0", "a", "a@1.0.0 x@3.1.0", ""},
		{"nothing", "", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Closure(context.Background(), specs(t, c.roots), universe(c.universe), Options{Missing: func(err error) bool { return errors.Is(err, errGone) }})
			if err != nil {
				t.Fatal(err)
			}
			if got := versions(r); got != c.want {
				t.Errorf("versions %s\n    want %s", got, c.want)
			}
			if got := problems(r); got != c.problems {
				t.Errorf("problems %s\n    want %s", got, c.problems)
			}
			if len(r.Flat) != 0 {
				t.Errorf("flat: %v", r.Flat)
			}
		})
	}
}

// Packuments can be such that npm's tree never ends, each version shadowed by
// another. The tree is given up, the versions are found.
func TestATreeWithoutEnd(t *testing.T) {
	get := universe(`
		a@1.0.0 b@1
		a@2.0.0 c@2
		b@1.0.0 a@1 c@1
		b@2.0.0 a@2 c@1 gone@1 opt:gone2@1
		c@1.0.0 b@2
		c@2.0.0 a@2 b@1`)
	r, err := Closure(context.Background(), specs(t, "a@1.0.0"), get, Options{MaxNodes: 2000})
	if err != nil {
		t.Fatal(err)
	}
	if got := versions(r); got != "a@1.0.0 a@2.0.0 b@1.0.0 b@2.0.0 c@1.0.0 c@2.0.0" {
		t.Errorf("versions %s", got)
	}
	if got := problems(r); got != "gone@1 by b@2.0.0: packument" {
		t.Errorf("problems %s", got)
	}
	if reason := r.Flat[npm.Spec{Name: "a", Range: "1.0.0"}]; !strings.Contains(reason, errTooLarge.Error()) {
		t.Errorf("flat %v", r.Flat)
	}
}

// Small tangles: whatever shape the tree takes, or if it has no end, what every
// version needs is there.
func TestTangles(t *testing.T) {
	flat := 0
	for seed := uint64(1100); seed < 1500; seed++ { // 1433 has no end
		rng := rand.New(rand.NewPCG(seed, 1))
		names, perName := 2+rng.IntN(3), 2+rng.IntN(2)
		var text strings.Builder
		for i := range names {
			for v := range perName {
				fmt.Fprintf(&text, "%c@%d.0.0", 'a'+i, v+1)
				for on := range names {
					kind := []string{"", "", "peer:", "opt:", "x" + string(rune('a'+on)) + "=npm:"}[rng.IntN(5)]
					if rng.IntN(3) > 0 {
						fmt.Fprintf(&text, " %s%c@%s", kind, 'a'+on, []string{"1", "2", "*", ">=2"}[rng.IntN(4)])
					}
				}
				text.WriteString("\n")
			}
		}
		get := universe(text.String())
		r, err := Closure(context.Background(), specs(t, "a@1"), get, Options{MaxNodes: 300})
		if err != nil {
			t.Fatal(err)
		}
		flat += len(r.Flat)
		if len(r.Problems) != 0 {
			t.Errorf("seed %d: problems %s", seed, problems(r))
		}
		if n := checkClosed(t, r, get); n == 0 && len(r.Versions) > 1 {
			t.Errorf("seed %d: nothing was checked", seed)
		}
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, text.String())
		}
	}
	if flat == 0 {
		t.Error("no tangle was without end")
	}
}

// checkClosed checks that what every version needs is among the versions, and
// returns how many dependencies it looked at.
func checkClosed(t testing.TB, r Result, get Packuments) (checked int) {
	t.Helper()
	for name, all := range r.Versions {
		p, err := get(context.Background(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all {
			for _, want := range needs(p.Versions[v]) {
				checked++
				if !slices.ContainsFunc(r.Versions[want.name], func(v string) bool { return npm.Satisfies(v, want.rng) }) {
					t.Errorf("%s@%s needs %s@%s; there is %v", name, v, want.name, want.rng, r.Versions[want.name])
				}
			}
		}
	}
	return checked
}

func TestClosureEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan struct{})
	get := func(ctx context.Context, name npm.Name) (*npm.Packument, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	go func() { <-asked; cancel() }()
	if _, err := Closure(ctx, specs(t, "a"), get, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Packages at one depth are fetched together, never more than Parallel at once
// and none twice. Were they fetched one after the other, the barrier would not
// open.
func TestPackumentsAreFetchedConcurrently(t *testing.T) {
	const width = 8
	var text strings.Builder
	text.WriteString("root@1.0.0")
	for i := range 2 * width {
		fmt.Fprintf(&text, " d%d@1", i)
	}
	for i := range 2 * width {
		fmt.Fprintf(&text, "\nd%d@1.0.0", i)
	}
	inner := universe(text.String())
	var running, most atomic.Int32
	var mu sync.Mutex
	asked := make(map[npm.Name]int)
	arrived, open := 0, make(chan struct{})
	get := func(ctx context.Context, name npm.Name) (*npm.Packument, error) {
		n := running.Add(1)
		defer running.Add(-1)
		mu.Lock()
		asked[name]++
		most.Store(max(most.Load(), n))
		if name != "root" {
			if arrived++; arrived == width {
				close(open)
			}
		}
		mu.Unlock()
		if name != "root" {
			<-open
		}
		return inner(ctx, name)
	}
	r, err := Closure(context.Background(), specs(t, "root"), get, Options{Parallel: width})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Versions) != 2*width+1 || most.Load() != width {
		t.Errorf("%d packages, %d at once", len(r.Versions), most.Load())
	}
	for name, n := range asked {
		if n != 1 {
			t.Errorf("%s was fetched %d times", name, n)
		}
	}
}

// Over a generated registry, read as the registry serves it: what every version
// needs is among the versions, and the result does not depend on timing.
func TestClosureIsClosed(t *testing.T) {
	reg := npmtest.New(t, npmtest.Generate(80, 7))
	get := func(ctx context.Context, name npm.Name) (*npm.Packument, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, reg.URL+"/"+name.Escape(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s, %w", resp.Status, err)
		}
		return npm.ParsePackument(raw)
	}
	ctx := context.Background()
	var roots []npm.Spec
	for i := 40; i < 80; i += 3 {
		roots = append(roots, npm.Spec{Name: npm.Name(npmtest.GeneratedName(i))})
	}
	r, err := Closure(ctx, roots, get, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) != 0 || len(r.Flat) != 0 || len(r.Versions) <= len(roots) {
		t.Fatalf("%d packages, problems %v, flat %v", len(r.Versions), r.Problems, r.Flat)
	}
	checked := checkClosed(t, r, get)
	if checked < 20 {
		t.Errorf("only %d dependencies were checked", checked)
	}
	again, err := Closure(ctx, roots, get, Options{Parallel: 1})
	if err != nil || !reflect.DeepEqual(again, r) {
		t.Errorf("a second time: %v, %v", again, err)
	}
}
