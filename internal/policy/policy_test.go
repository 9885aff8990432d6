package policy

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

var now = time.Date(2030, 1, 10, 12, 0, 0, 0, time.UTC)

// days is a version that was first seen so long before now.
func days(version string, n float64) Version {
	return Version{Version: version, FirstSeen: now.Add(-time.Duration(n * 24 * float64(time.Hour)))}
}

func mustParse(t testing.TB, r Rules) *Policy {
	t.Helper()
	p, err := Parse(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestJudge(t *testing.T) {
	old := func(versions ...string) (all []Version) {
		for _, v := range versions {
			all = append(all, days(v, 100))
		}
		return all
	}
	for _, test := range []struct {
		name     string
		rules    Rules
		pkg      npm.Name
		versions []Version
		want     string        // version and reason of what is withheld
		due      time.Duration // from now; 0 for none
	}{
		{name: "Nothing", pkg: "a", versions: []Version{{Version: "1.0.0"}}},
		{name: "OnlyAnother", rules: Rules{Only: []string{"b"}}, pkg: "a", versions: old("1.0.0"), want: "1.0.0 only"},
		{name: "OnlyName", rules: Rules{Only: []string{"b", "a"}}, pkg: "a", versions: old("1.0.0", "1.0.0-rc")},
		{name: "OnlyScope", rules: Rules{Only: []string{"@acme/*"}}, pkg: "@acme/a", versions: old("1.0.0")},
		{name: "OnlyOtherScope", rules: Rules{Only: []string{"@acme/*"}}, pkg: "@acme2/a", versions: old("1.0.0"), want: "1.0.0 only"},
		{name: "StarIsWithoutScope", rules: Rules{Only: []string{"*"}}, pkg: "@acme/a", versions: old("1.0.0"), want: "1.0.0 only"},
		{name: "AllScopes", rules: Rules{Only: []string{"*", "@*/*"}}, pkg: "@acme/a", versions: old("1.0.0")},
		{name: "StarWithin", rules: Rules{Only: []string{"eslint-*"}}, pkg: "eslint-plugin-x", versions: old("1.0.0")},
		{name: "NamesAreExact", rules: Rules{Only: []string{"lodash"}}, pkg: "lodash-es", versions: old("1.0.0"), want: "1.0.0 only"},
		{name: "OnlyRange", rules: Rules{Only: []string{"a@4"}}, pkg: "a", versions: old("3.0.0", "4.1.0", "4.2.0-rc.1", "5.0.0"), want: "3.0.0 only, 4.2.0-rc.1 only, 5.0.0 only"},
		{name: "OnlyRanges", rules: Rules{Only: []string{"a@1", "a@3"}}, pkg: "a", versions: old("1.0.0", "2.0.0", "3.0.0"), want: "2.0.0 only"},
		{name: "Except", rules: Rules{Except: []string{"a"}}, pkg: "a", versions: old("1.0.0"), want: "1.0.0 except"},
		{name: "ExceptRange", rules: Rules{Except: []string{"a@<2"}}, pkg: "a", versions: old("1.0.0", "2.0.0"), want: "1.0.0 except"},
		{name: "ExceptTakesPrereleases", rules: Rules{Except: []string{"a@2.0.0"}}, pkg: "a", versions: old("2.0.0-rc.1", "2.0.1"), want: "2.0.0-rc.1 except"},
		{name: "ExceptAfterOnly", rules: Rules{Only: []string{"@acme/*"}, Except: []string{"@acme/bad"}}, pkg: "@acme/bad", versions: old("1.0.0"), want: "1.0.0 except"},
		{name: "Prefer", rules: Rules{Signatures: "prefer"}, pkg: "a", versions: []Version{{Version: "1.0.0", Signature: npm.Unsigned}}},
		{name: "Require", rules: Rules{Signatures: "require"}, pkg: "a", versions: []Version{
			{Version: "1.0.0", Signature: npm.Verified}, {Version: "1.0.1", Signature: npm.Unsigned}, {Version: "1.0.2", Signature: npm.UnknownKey},
			{Version: "1.0.3"}, {Version: "1.0.4", Signature: npm.Unchecked}, {Version: "1.0.5", Signature: "verified by whom?"},
		}, want: "1.0.1 signatures, 1.0.2 signatures, 1.0.3 signatures, 1.0.4 signatures, 1.0.5 signatures"},
		{name: "Young", rules: Rules{MinAge: "3d"}, pkg: "a", versions: []Version{days("1.0.0", 4), days("1.1.0", 2), days("1.2.0", 1)}, want: "1.1.0 min-age, 1.2.0 min-age", due: 24 * time.Hour},
		{name: "OfAgeToTheSecond", rules: Rules{MinAge: "3d"}, pkg: "a", versions: []Version{days("1.0.0", 3)}},
		{name: "NeverSeen", rules: Rules{MinAge: "3d"}, pkg: "a", versions: []Version{{Version: "1.0.0"}}, want: "1.0.0 min-age"},
		{name: "SeenInTheFuture", rules: Rules{MinAge: "3d"}, pkg: "a", versions: []Version{days("1.0.0", -1)}, want: "1.0.0 min-age", due: 4 * 24 * time.Hour},
		{name: "MinAgeExcept", rules: Rules{MinAge: "3d", MinAgeExcept: []string{"@acme/*", "a@1.1"}}, pkg: "a", versions: []Version{days("1.0.0", 1), days("1.1.0", 1), {Version: "1.1.1"}}, want: "1.0.0 min-age", due: 2 * 24 * time.Hour},
		{name: "WhatNeverComesIsNotDue", rules: Rules{MinAge: "3d", Except: []string{"a@1.0.0"}}, pkg: "a", versions: []Version{days("1.0.0", 2), days("1.1.0", 1)}, want: "1.0.0 except, 1.1.0 min-age", due: 2 * 24 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := mustParse(t, test.rules)
			again, err := Decode(p.Canonical())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range []*Policy{p, again} {
				v := p.Judge(test.pkg, test.versions, now)
				var got []string
				for _, w := range v.Withheld {
					got = append(got, w.Version+" "+w.Reason)
					if w.Detail == "" || v.Keeps(w.Version) {
						t.Errorf("%+v", w)
					}
				}
				if text := strings.Join(got, ", "); text != test.want {
					t.Errorf("withheld %q, want %q", text, test.want)
				}
				var due time.Duration
				if !v.Due.IsZero() {
					due = v.Due.Sub(now)
				}
				if due != test.due {
					t.Errorf("due in %v, want %v", due, test.due)
				}
				if !p.Takes(test.pkg) && len(v.Withheld) < len(test.versions) {
					t.Error("not taken, and listed")
				}
			}
		})
	}
	var none *Policy
	if v := none.Judge("a", old("1.0.0"), now); len(v.Withheld) > 0 || none.Canonical() != "" || !none.Takes("a") {
		t.Errorf("no policy: %+v", v)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct {
		rules Rules
		says  string
	}{
		{Rules{Only: []string{"lodash@latest"}}, `only: "lodash@latest"`},
		{Rules{Only: []string{""}}, "only: "},
		{Rules{Except: []string{"../x"}}, "except: "},
		{Rules{Except: []string{"git+https://example.test/x"}}, "except: "},
		{Rules{Except: []string{"x@npm:lodash@4"}}, "alias"},
		{Rules{Except: []string{"a/b"}}, "except: "},
		{Rules{Except: []string{"[a-z]"}}, "except: "},
		{Rules{Only: make([]string, maxPatterns+1)}, "100000 are allowed"},
		{Rules{Signatures: "ignore"}, `"ignore" is neither require nor prefer`},
		{Rules{MinAge: "3"}, "min-age: "},
		{Rules{MinAge: "d"}, "min-age: "},
		{Rules{MinAge: "-3d"}, "min-age: "},
		{Rules{MinAge: "-1h"}, "min-age: "},
		{Rules{MinAge: "3d-1h"}, "min-age: "},
		{Rules{MinAge: "1.5d"}, "min-age: "},
		{Rules{MinAge: "4000d"}, "more than ten years"},
		{Rules{MinAge: "3653d2562047h"}, "more than ten years"},
		{Rules{MinAge: "3 weeks"}, "min-age: "},
		{Rules{MinAgeExcept: []string{"a"}}, "no min-age"},
		{Rules{MinAge: "3d", MinAgeExcept: []string{"a@beta"}}, "min-age-except: "},
	} {
		if _, err := Parse(test.rules); !errors.Is(err, ErrRule) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%.100v: %v, want %q", test.rules, err, test.says)
		}
	}
	for _, text := range []string{"x", "{}x", `{"onyl":["a"]}`, `{"only":"a"}`, `{"only":["a"],"only":["b"]}`} {
		if _, err := Decode(text); !errors.Is(err, ErrRule) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestCanonical(t *testing.T) {
	a := mustParse(t, Rules{Only: []string{"b", "a@ 4", "b"}, Signatures: "prefer", MinAge: "1d12h"})
	b := mustParse(t, Rules{Only: []string{"a@4", "b"}, MinAge: "36h"})
	if a.Canonical() != b.Canonical() || a.Hash() != b.Hash() || a.Canonical() != `{"only":["a@4","b"],"min-age":"36h0m0s"}` {
		t.Errorf("%s, %s", a.Canonical(), b.Canonical())
	}
	if none := mustParse(t, Rules{Signatures: "prefer", MinAge: "0d"}); none.Canonical() != "" || none.Hash() == a.Hash() {
		t.Errorf("%s", none.Canonical())
	}
}

// What is parsed keeps its meaning in its canonical form, and no version that one
// pattern takes is kept out by only.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{"lodash@4", "@acme/*", "*", "@*/*@>=1 <2 || 3", "a@1.0.0-rc", "a@v1", " a@ 4 ", "a**b", "a@=1", "a@", "*@*"} {
		f.Add(s, "lodash", "4.17.21")
	}
	f.Fuzz(func(t *testing.T, s, name, version string) {
		p, err := Parse(Rules{Only: []string{s}})
		if err != nil {
			if !errors.Is(err, ErrRule) {
				t.Fatal(err)
			}
			return
		}
		again, err := Decode(p.Canonical())
		if err != nil || again.Canonical() != p.Canonical() {
			t.Fatalf("%q: %s, then %v", s, p.Canonical(), err)
		}
		versions := []Version{{Version: version}, {Version: "1.0.0"}}
		v := p.Judge(npm.Name(name), versions, now)
		if w := again.Judge(npm.Name(name), versions, now); !slices.Equal(v.Withheld, w.Withheld) {
			t.Fatalf("%q judges %+v, its canonical form %+v", s, v, w)
		}
		except := mustParse(t, Rules{Except: []string{s}})
		if out := except.Judge(npm.Name(name), versions, now); len(v.Withheld) < 2 && len(out.Withheld) == 0 {
			t.Fatalf("%q as only takes what it does not take as except", s)
		}
		if !p.Takes(npm.Name(name)) && len(v.Withheld) < 2 {
			t.Fatalf("%q does not take the name, and lists it", s)
		}
	})
}

func TestRead(t *testing.T) {
	p, name, err := Read(map[string]any{"only": []any{"a@4", "@acme/*"}, "min-age": "3d", "name": "careful"}, "acme")
	if err != nil || name != "careful" || p.Canonical() != `{"only":["@acme/*","a@4"],"min-age":"72h0m0s"}` {
		t.Errorf("%s, %s, %v", p.Canonical(), name, err)
	}
	if p, name, err := Read(nil, "acme"); p != nil || name != "acme" || err != nil {
		t.Errorf("no table: %v, %s, %v", p, name, err)
	}
	if p, _, err := Read(map[string]any{}, "acme"); p == nil || p.Canonical() != "" || err != nil {
		t.Errorf("an empty table: %v, %v", p, err)
	}
	for says, table := range map[string]map[string]any{
		`"minage"`:         {"minage": "3d"},
		"min-age: ":        {"min-age": int64(3)},
		"only: ":           {"only": "a"},
		"is not in quotes": {"except": []any{int64(1)}},
		"name: ":           {"name": "two words"},
		"signatures: ":     {"signatures": "no"},
		"name: not a rule": {"name": ""},
	} {
		if _, _, err := Read(table, "acme"); !errors.Is(err, ErrRule) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want %q", table, err, says)
		}
	}
}
