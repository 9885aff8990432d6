package npm

import (
	"errors"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

func TestParseName(t *testing.T) {
	for _, s := range []string{
		"express", "@types/node", "JSONStream", "-", "--hepl", "a.b", "@s/_internal", "@_s/x", "x!~*'()", "fs",
		"@scope/node_modules", strings.Repeat("a", 255), "0", "constructor",
	} {
		n, err := ParseName(s)
		if err != nil || string(n) != s {
			t.Errorf("ParseName(%q) = %q, %v", s, n, err)
		}
	}
	for _, s := range []string{
		"", ".", "..", ".bin", "_registry", "__proto__", "node_modules", "Favicon.ico", " a", "a ", "a b", "a/b", "@", "@/", "@s", "@s/", "@/x",
		"@s/..", "@s/.x", "@s/a/b", "@s%2fx", "a%2fb", "../x", "@../..", "a\x00", "a\n", "é", "ſ", "a?b", "a#b", "a\\b", "a:b", "a@1", "a+b",
		strings.Repeat("a", 256),
	} {
		if n, err := ParseName(s); !errors.Is(err, ErrName) {
			t.Errorf("ParseName(%q) = %q, %v; want ErrName", s, n, err)
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
			if p == "" || p == "." || p == ".." || strings.ContainsAny(p, "\x00\\%:\"<>|?\n\r\t ") {
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
