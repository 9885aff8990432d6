package npm

import (
	"slices"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, v := range []string{"1.2.3", "0.0.0", "1.2.3-beta.1", "1.2.3+b", "1.2.3-a+b-1", "1.2.3beta", "9007199254740991.0.0", "01.2.3"} {
		if err := ParseVersion(v); err != nil {
			t.Error(err)
		}
	}
	for _, v := range []string{"", "1", "1.2", "v1.2.3", "=1.2.3", " 1.2.3", "1.2.3 ", "1.2.x", "*", "latest", "1.2.3/../x", "1.2.3-é", "1.2.3.4", "9007199254740992.0.0", "1.2.3-\x00", "1.2.3-" + strings.Repeat("a", 300), "1.2.3\uFFFD", "__proto__"} {
		if err := ParseVersion(v); err == nil {
			t.Errorf("ParseVersion(%q) passes", v)
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
