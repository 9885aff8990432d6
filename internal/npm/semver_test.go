package npm

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// The answers are node-semver 7's valid(v, {loose: true}), but where we say
// that they are our own.
func TestParseVersion(t *testing.T) {
	long := func(n int) string { return "1.0.0-" + strings.Repeat("a", n-6) }
	for _, c := range []struct {
		version string
		ok      bool
	}{
		{"1.0.0", true}, {"0.0.0", true}, {"1.0.0-beta.1", true}, {"1.0.0-0a", true}, {"1.0.0-0.0", true},
		{"1.0.0--", true}, {"1.0.0---1", true}, {"1.0.0-9007199254740993", true}, {long(256), true},
		// Build metadata.
		{"1.0.0+b-c", true}, {"1.0.0-a+b.c", true}, {"1.0.0--+b", true}, {"1.0.0+01", true}, {"1.0.0+" + strings.Repeat("1", 250), true},
		{"1.0.0+", false}, {"1.0.0+b..c", false}, {"1.0.0+b+c", false}, {"1.0.0+.a", false},
		// Loose: leading zeros, no hyphen.
		{"01.2.3", true}, {"1.02.3", true}, {"0001.0.0", true}, {"1.0.0-01", true}, {"1.0.0-00", true}, {"1.0.0-a.01", true},
		{"1.0.0beta", true}, {"1.0.01beta", true}, {"1.0.0a+b", true},
		// Never.
		{"", false}, {"1", false}, {"1.0", false}, {"1.0.0.4", false}, {"1.0.0.beta", false}, {"1.2.x", false}, {"*", false}, {"latest", false},
		{"1.0.0-beta..1", false}, {"1.0.0-beta.", false}, {"1.0.0-.", false}, {"1.0.0-a_b", false}, {"1.0.0-a b", false},
		{"1.0.0-é", false}, {"1.0.0-1.é", false}, {"1.2.3\uFFFD", false}, {"1.2.3-\x00", false}, {"1.2.3/../x", false}, {"__proto__", false},
		{"9007199254740991.0.0", true}, {"9007199254740992.0.0", false}, {long(257), false},
		// Our own: node-semver takes these for other versions (without the
		// prefix; with the hyphen itself as the prerelease; with zeros cut), and
		// a registry keeps what they were taken for.
		{"v1.0.0", false}, {"=1.0.0", false}, {" 1.0.0", false}, {"1.0.0 ", false},
		{"1.0.0-", false}, {"1.0.0-+b", false}, {"1.2.3-.a", false}, {"00000000000000001.0.0", false},
	} {
		if err := ParseVersion(c.version); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrVersion) {
			t.Errorf("ParseVersion(%q): %v, want it to pass: %v", c.version, err, c.ok)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	want := []string{"", "x", "0.0.1", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.0+a", "1.0.0+b", "1.2.3beta", "1.2.3", "1.10.0", "10.0.0"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, CompareVersions)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q", got)
	}
	if !IsPrerelease("1.0.0-a") || !IsPrerelease("1.2.3beta") || IsPrerelease("1.0.0") || IsPrerelease("1.0.0+a-b") || IsPrerelease("x-a") {
		t.Error("IsPrerelease is wrong")
	}
}

// The answers are node-semver's, with {loose: true}.
func TestSatisfies(t *testing.T) {
	for _, c := range []struct {
		version, rng string
		want         bool
	}{
		{"1.2.3", "", true}, {"1.2.3", "*", true}, {"1.2.3", "x", true}, {"1.2.3", "||", true},
		{"1.2.3-a", "", false}, {"1.2.3-a", "*", false},
		{"1.2.3", "^1.2", true}, {"2.0.0", "^1.2", false}, {"0.2.9", "^0.2.3", true}, {"0.3.0", "^0.2.3", false}, {"0.0.4", "^0.0.3", false},
		{"1.2.9", "~1.2.3", true}, {"1.3.0", "~1.2.3", false}, {"1.2.3", "~> 1.2", true},
		{"2.3.4", "1.2.3 - 2.3", true}, {"2.4.0", "1.2.3 - 2.3", false},
		{"1.2.3", ">1", false}, {"2.0.0", ">1", true}, {"1.2.3", "<=1", true},
		{"1.2.3-a.2", ">=1.2.3-a", true}, {"1.2.4-a.2", ">=1.2.3-a", false},
		{"1.2.3", "=v1.2.3", true}, {"1.2.3", " 1.2.3 ", true}, {"1.2.3+b", "1.2.3", true},
		{"1.2.3", "1.x || >=2.5.0", true}, {"2.4.0", "1.x || >=2.5.0", false},
		{"1.0.2", ">1.0.0beta", true}, {"1.1.2", "1.1.2beta - 2.1.2", true}, {"1.0.2", "~1.0.0beta", true}, {"1.2.3", "^1.2.3beta+b", true},
		{"1.2.3", "latest", false}, {"x", "*", false}, {"1.2.3", "1.2.3, <3", false},
	} {
		if got := Satisfies(c.version, c.rng); got != c.want {
			t.Errorf("Satisfies(%q, %q) = %v", c.version, c.rng, got)
		}
	}
	if v := MaxSatisfying([]string{"1.0.0", "1.10.0", "1.9.0", "2.0.0-a", "x"}, "*"); v != "1.10.0" {
		t.Errorf("MaxSatisfying = %q", v)
	}
	if v := MaxSatisfying([]string{"1.0.0"}, "^2"); v != "" {
		t.Errorf("MaxSatisfying = %q", v)
	}
}

// The answers are npm-pick-manifest's.
func TestPick(t *testing.T) {
	doc := func(latest string, deprecated ...string) *Packument {
		p := &Packument{DistTags: map[string]string{"latest": latest, "next": "3.0.0-rc.1", "gone": "9.9.9"}, Versions: map[string]*Manifest{}}
		for _, v := range []string{"1.0.0", "1.1.0", "2.0.0", "2.1.0", "3.0.0-rc.1"} {
			m := &Manifest{Version: v}
			if slices.Contains(deprecated, v) {
				m.Deprecated = "no"
			}
			p.Versions[v] = m
		}
		return p
	}
	for _, c := range []struct {
		name string
		p    *Packument
		rng  string
		want string
	}{
		{"NothingAskedFor", doc("2.0.0"), "", "2.0.0"},
		{"Star", doc("2.0.0"), "*", "2.0.0"},
		{"StarLatestIsPrerelease", doc("3.0.0-rc.1"), "*", "3.0.0-rc.1"},
		{"LatestInRange", doc("2.0.0"), "^2", "2.0.0"},
		{"LatestNotInRange", doc("2.0.0"), "^1", "1.1.0"},
		{"LatestDeprecated", doc("2.0.0", "2.0.0"), "^2", "2.1.0"},
		{"LatestDeprecatedByTag", doc("2.0.0", "2.0.0"), "latest", "2.0.0"},
		{"LatestDeprecatedNothingAskedFor", doc("2.0.0", "2.0.0"), "", "2.1.0"},
		{"AllInRangeDeprecated", doc("2.0.0", "1.0.0", "1.1.0"), "^1", "1.1.0"},
		{"HighestDeprecated", doc("2.0.0", "1.1.0"), "^1", "1.0.0"},
		{"Tag", doc("2.0.0"), "next", "3.0.0-rc.1"},
		{"TagOfMissingVersion", doc("2.0.0"), "gone", ""},
		{"NoSuchTag", doc("2.0.0"), "beta", ""},
		{"Exact", doc("2.0.0"), "1.0.0", "1.0.0"},
		{"ExactDeprecated", doc("2.0.0", "1.0.0"), "=v1.0.0", "1.0.0"},
		{"ExactMissing", doc("2.0.0"), "1.0.1", ""},
		{"NothingInRange", doc("2.0.0"), "^7", ""},
		{"Prerelease", doc("2.0.0"), ">=3.0.0-rc.0", "3.0.0-rc.1"},
		{"LatestMissing", doc("8.0.0"), "*", "2.1.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := Pick(c.p, c.rng)
			if ok != (c.want != "") || ok && got != c.want {
				t.Errorf("Pick(%q) = %q, %v; want %q", c.rng, got, ok, c.want)
			}
		})
	}
}

// What passes is safe in paths, URLs and lines, is a range that it satisfies
// alone, and has one place in a total order.
func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"1.2.3", "1.2.3-beta.1+b", "1.2.3beta", "01.2.3", "v1.2.3", "1.0.0-9007199254740993"} {
		f.Add(s, "1.2.3-beta.2")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if err := ParseVersion(a); err != nil {
			if !errors.Is(err, ErrVersion) {
				t.Fatalf("%v is no ErrVersion", err)
			}
			if CompareVersions(a, "0.0.0-0") >= 0 {
				t.Fatalf("%q is no version, and above one", a)
			}
			return
		}
		if len(a) > maxVersion || strings.ContainsFunc(a, func(c rune) bool {
			return c > 0x7e || c != '-' && c != '+' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
		}) {
			t.Fatalf("%q passes", a)
		}
		if CompareVersions(a, a) != 0 || CompareVersions(a, b) != -CompareVersions(b, a) || (CompareVersions(a, b) == 0) != (a == b) {
			t.Fatalf("%q and %q have no order", a, b)
		}
		if !Satisfies(a, a) {
			t.Fatalf("%q does not satisfy itself", a)
		}
		if IsPrerelease(a) == Satisfies(a, "*") {
			t.Fatalf("%q: prerelease %v, and in *: %v", a, IsPrerelease(a), Satisfies(a, "*"))
		}
	})
}

// A range picks what satisfies it, and nothing else.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"", "*", "^1.2", "~> 1", "1.x || >=2.5.0 <=3", "1.2.3 - 2", "||", ">1.0.0beta", "latest", "=v1.2.3"} {
		f.Add(s)
	}
	versions := []string{"0.0.1", "1.0.0-a", "1.0.0", "1.2.3", "1.2.4-b.1", "2.0.0", "2.5.1", "10.0.0+b", "x"}
	p := &Packument{DistTags: map[string]string{"latest": "2.0.0", "gone": "7.0.0"}, Versions: map[string]*Manifest{}}
	for _, v := range versions {
		p.Versions[v] = &Manifest{Version: v}
	}
	f.Fuzz(func(t *testing.T, rng string) {
		best := MaxSatisfying(versions, rng)
		for _, v := range versions {
			if Satisfies(v, rng) && (!IsRange(rng) || CompareVersions(v, best) > 0) {
				t.Fatalf("%q: %s satisfies it, above %q", rng, v, best)
			}
		}
		if best != "" && !Satisfies(best, rng) {
			t.Fatalf("%q: %s does not satisfy it", rng, best)
		}
		v, ok := Pick(p, rng)
		if ok && p.Versions[v] == nil {
			t.Fatalf("%q picks %q, which is not there", rng, v)
		}
		if tag := strings.TrimSpace(rng); ok && !IsRange(tag) && p.DistTags[tag] != v {
			t.Fatalf("%q is no range, and picks %q", rng, v)
		}
	})
}

func TestTouches(t *testing.T) {
	for _, c := range []struct {
		version, rng string
		want         bool
	}{
		{"4.17.20", "<4.17.21", true},
		{"4.17.21", "<4.17.21", false},
		{"4.17.21-rc.1", "<4.17.21", true},
		{"4.17.21-rc.1", "4.17.21", true},
		{"4.17.21beta", "4.17.21", true},
		{"4.0.0-rc.1", "4", true},
		{"4.0.0-rc.1", ">=4", true},
		{"5.0.0-rc.1", "4", false},
		{"2.0.0-rc.1", "1.x || 2.x", true},
		{"1.0.0-a", "", true},
		{"1.0.0+build", "1.0.0", true},
		{"not a version", "", false},
		{"1.0.0", "latest", false},
	} {
		if got := Touches(c.version, c.rng); got != c.want {
			t.Errorf("Touches(%q, %q) = %v", c.version, c.rng, got)
		}
	}
}
