package npm

import (
	"errors"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

func TestParseName(t *testing.T) {
	for _, c := range []struct {
		name string
		ok   bool
	}{
		{"express", true}, {"@types/node", true}, {"fs", true}, {"0", true}, {"a.b", true},
		// Of old packages: capitals, and what RFC 2396 calls marks.
		{"JSONStream", true}, {"x!~*'()", true}, {"!", true}, {"~", true}, {"(", true}, {"@s/!~*'()", true},
		{"-", true}, {"--hepl", true}, {"-v", true}, {"constructor", true}, {"toString", true}, {"package.json", true}, {"CON", true},
		{"@s/_internal", true}, {"@_s/x", true}, {"@s/__proto__", true}, {"@s/-", true}, {"@-/-", true}, {"@scope/node_modules", true},
		{strings.Repeat("a", 214), true}, {strings.Repeat("a", 255), true}, {"@" + strings.Repeat("s", 200) + "/" + strings.Repeat("a", 53), true},

		{strings.Repeat("a", 256), false}, {"@" + strings.Repeat("s", 200) + "/" + strings.Repeat("a", 55), false},
		{"", false}, {".", false}, {"..", false}, {"...", false}, {".bin", false}, {"_registry", false}, {"_", false}, {"__proto__", false},
		{"node_modules", false}, {"Node_Modules", false}, {"favicon.ico", false}, {"Favicon.ico", false},
		{"@", false}, {"@/", false}, {"@s", false}, {"@s/", false}, {"@/x", false}, {"@@s/x", false}, {"@s/@x", false}, {"@s//x", false}, {"@s/a/b", false},
		{"@s/..", false}, {"@s/.x", false}, {"@./x", false}, {"@../x", false}, {"@../..", false}, {"@.s/x", false},
		{"a/b", false}, {"/a", false}, {"../x", false}, {"a/../b", false}, {"a\\b", false}, {"..\\x", false}, {"-/npm/v1/keys", false},
		{"a%2fb", false}, {"@s%2fx", false}, {"%2e%2e", false}, {"a%00", false}, {"a?b", false}, {"a#b", false}, {"a:b", false}, {"a@1", false}, {"a+b", false}, {"a&b", false}, {"a=b", false},
		{" a", false}, {"a ", false}, {"a b", false}, {"a\x00", false}, {"a\n", false}, {"a\r", false}, {"a\t", false}, {"a\x7f", false}, {"a\u200b", false},
		{"é", false}, {"ſ", false}, {"a\xff", false}, {"\ufeffa", false}, {"ａ", false},
	} {
		n, err := ParseName(c.name)
		if c.ok && (err != nil || string(n) != c.name) || !c.ok && !errors.Is(err, ErrName) {
			t.Errorf("ParseName(%q) = %q, %v; want it to pass: %v", c.name, n, err, c.ok)
		}
	}
	n := Name("@types/node")
	if n.Scope() != "@types" || n.Base() != "node" || n.Escape() != "@types%2fnode" {
		t.Errorf("%s: scope %q, base %q, escaped %q", n, n.Scope(), n.Base(), n.Escape())
	}
	n = "express"
	if n.Scope() != "" || n.Base() != "express" || n.Escape() != "express" {
		t.Errorf("%s: scope %q, base %q, escaped %q", n, n.Scope(), n.Base(), n.Escape())
	}
}

func TestParseSpec(t *testing.T) {
	for in, want := range map[string]Spec{
		"express":               {"express", ""},
		"express@":              {"express", ""},
		"express@4":             {"express", "4"},
		" express@4 ":           {"express", "4"},
		"@types/node":           {"@types/node", ""},
		"@types/node@>=20 <23":  {"@types/node", ">=20 <23"},
		"lodash@latest":         {"lodash", "latest"},
		"x@npm:lodash@4":        {"lodash", "4"},
		"x@npm:@s/y@^1 || ^2":   {"@s/y", "^1 || ^2"},
		"@a/b@npm:c":            {"c", ""},
		"x@1.x || >=2.5.0 <=3":  {"x", "1.x || >=2.5.0 <=3"},
		"x@1.2.3 - 2":           {"x", "1.2.3 - 2"},
		"x@v1.2.3-beta.1+b":     {"x", "v1.2.3-beta.1+b"},
		"-@1":                   {"-", "1"},
		"x@next-11":             {"x", "next-11"},
		"typescript@npm:a@next": {"a", "next"},
	} {
		got, err := ParseSpec(in)
		if err != nil || got != want {
			t.Errorf("ParseSpec(%q) = %+v, %v; want %+v", in, got, err, want)
		}
		again, err := ParseSpec(got.String())
		if err != nil || again != got {
			t.Errorf("ParseSpec(%q) = %+v, %v; want %+v", got.String(), again, err, got)
		}
	}
	for _, in := range []string{
		"git+https://example.test/a.git", "github:a/b", "a/b", "x@a/b", "x@github:a/b", "x@git://example.test/a", "https://example.test/a.tgz",
		"x@https://example.test/a.tgz", "./a", "../a", "/a", "~/a", "x@file:../a", "x@./a", "x@workspace:*", "x@link:a", "a.tgz", "x@a.tgz",
		"x@npm:a@npm:b", "x@npm:npm:b", "x@git@example.test:a/b", "x@npm:a@file:b", "x@catalog:",
	} {
		if got, err := ParseSpec(in); !errors.Is(err, ErrSpec) {
			t.Errorf("ParseSpec(%q) = %+v, %v; want ErrSpec", in, got, err)
		}
	}
	for _, in := range []string{"", "@", "_x", ".", "x y@1", "@s@1"} {
		if got, err := ParseSpec(in); err == nil {
			t.Errorf("ParseSpec(%q) = %+v", in, got)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"express", "@types/node", "../x", "_registry", "@s/..", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Fatalf("ParseName(%q): %v is no ErrName", s, err)
			}
			return
		}
		if string(n) != s {
			t.Fatalf("ParseName(%q) = %q", s, n)
		}
		// Whatever passes is one or two safe path components, and splits back.
		parts := strings.Split(s, "/")
		if len(parts) > 2 || (len(parts) == 2) != strings.HasPrefix(s, "@") {
			t.Fatalf("%q has the wrong number of components", s)
		}
		for _, p := range parts {
			if strings.HasPrefix(p, "@") && p != parts[0] || strings.TrimPrefix(p, "@") == "" || strings.HasPrefix(strings.TrimPrefix(p, "@"), ".") || len(s) > maxName || strings.ContainsAny(p, "\x00\\%:\"<>|?\n\r\t ") {
				t.Fatalf("%q has the unsafe component %q", s, p)
			}
		}
		if whole := n.Base(); n.Scope() != "" && n.Scope()+"/"+whole != s || n.Scope() == "" && whole != s {
			t.Fatalf("%q: scope %q, base %q", s, n.Scope(), n.Base())
		}
		spec, err := ParseSpec(s)
		if err == nil && (spec.Name != n || spec.Range != "") {
			t.Fatalf("ParseSpec(%q) = %+v", s, spec)
		}
	})
}

// A spec that passes reads the same when it is written down, and its name is one.
func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"express", "@types/node@>=20 <23", "x@npm:@s/y@^1 || ^2", "x@1.x || >=2.5.0 <=3", "x@git+ssh://a/b", "a/b", "x@./a", "x@file:a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := ParseSpec(s)
		if err != nil {
			if !errors.Is(err, ErrSpec) && !errors.Is(err, ErrName) {
				t.Fatalf("ParseSpec(%q): %v is neither ErrSpec nor ErrName", s, err)
			}
			return
		}
		if _, err := ParseName(string(spec.Name)); err != nil {
			t.Fatalf("ParseSpec(%q) = %+v: %v", s, spec, err)
		}
		again, err := ParseSpec(spec.String())
		if err != nil || again != spec {
			t.Fatalf("ParseSpec(%q) = %+v, and of %q %+v, %v", s, spec, spec.String(), again, err)
		}
		if !IsRange(spec.Range) && strings.ContainsAny(spec.Range, "/\\:%?# \x00") {
			t.Fatalf("ParseSpec(%q) has the tag %q", s, spec.Range)
		}
	})
}
