package clients

import (
	"errors"
	"strings"
	"testing"
)

const (
	first  = "http://127.0.0.1:4873"
	second = "http://mirror.example.test:8080/npm"
)

// configs are configuration files as people have them.
var configs = map[format][]string{
	npmrc: {
		"", "fund=false", "fund=false\n", "registry=https://r.example.test/", "# a\r\nregistry=https://r.example.test/\r\n//r.example.test/:_authToken=secret\r\n; b\r\n",
		"registry=https://r.example.test/\n[section]\nregistry=https://section.example.test/", "[section]\r\nx=y\r\n", "\n\n", "registry = \"https://r.example.test/\" \n\n\nfund=false\r",
		"@acme:registry=https://acme.example.test/\n", "\ufeffregistry=https://r.example.test/\n",
	},
	yarnrc: {
		"", "# a\nregistry \"https://r.example.test/\"", "yarn-offline-mirror \"./m\"\r\nregistry \"https://r.example.test/\"\r\n", "\"@acme:registry\" \"https://acme.example.test/\"\n", "--install.frozen-lockfile true\n",
	},
	yarnrcYML: {
		"", "# a\nnodeLinker: node-modules", "npmRegistryServer: \"https://r.example.test\" # why\r\nnodeLinker: pnp\r\n", "npmRegistryServer:\n  \"https://r.example.test\"\nnodeLinker: pnp\n",
		"unsafeHttpWhitelist:\n  - a.example.test\n  # b\n  - c.example.test\nnpmRegistryServer: https://r.example.test",
		"unsafeHttpWhitelist:\n- a.example.test\nnpmAuthToken: secret\n", "unsafeHttpWhitelist: [ a.example.test, ]\n", "unsafeHttpWhitelist: []", "'npmRegistryServer': https://r.example.test\n\n\n",
		"npmScopes:\n    other:\n        npmAuthToken: secret\nnodeLinker: pnp\n", "plugins:\n  - path: x\n    spec: y\n",
	},
	bunfig: {
		"", "[install]", "[install]\n", "[install]\r\nregistry = \"https://r.example.test\"\r\ncache = false\r\n", "[install]\ncache = false\nregistry = { url = \"https://r.example.test\", token = \"secret\" } # x",
		"install.registry = \"https://r.example.test\"\n[test]\ncoverage = true\n", "[install.scopes]\n\"@acme\" = \"https://acme.example.test\"\nother = { url = \"https://o.example.test\" }", "[test]\ncoverage = true",
		"# a\n[ install ] # b\nexact = true\n[run]\nregistry = \"no\"\n",
	},
}

// What is set is what the client reads, a second time replaces the first, and nothing of
// it is left in the end: not a byte.
func TestSetAndRestore(t *testing.T) {
	for f, texts := range configs {
		for _, text := range texts {
			for _, scopes := range [][]string{nil, {"@acme"}, {"@acme", "@b-c"}} {
				there, now := true, text
				for _, registry := range []string{first, first, second} {
					next, err := set(f, now, there, Settings{Registry: registry, Scopes: scopes, Portable: f == npmrc})
					if err != nil {
						t.Fatalf("%d %q: %v", f, text, err)
					}
					if registry == first && now != text && next != now {
						t.Errorf("%q is not set twice to the same:\n%s", text, next)
					}
					if strings.Contains(text, "secret") && strings.Count(next, "secret") != strings.Count(text, "secret") {
						t.Errorf("%q: a secret was copied:\n%s", text, next)
					}
					now = next
				}
				if strings.Contains(now, first) {
					t.Errorf("%q: the registry of before is still there:\n%s", text, now)
				}
				if r := restore(f, now); r.text != text || !r.found || r.made {
					t.Errorf("%q came back as %q (found %t, made %t) from\n%s", text, r.text, r.found, r.made, now)
				}
				now, err := set(f, "", false, Settings{Registry: first, Scopes: scopes})
				if err != nil {
					t.Fatal(err)
				}
				if r := restore(f, now); r.text != "" || !r.made {
					t.Errorf("a file that was not there: %+v", r)
				}
			}
		}
	}
}

// Lines that someone wrote since stay, whether above, below or within ours.
func TestRestoreKeepsOthers(t *testing.T) {
	for f, texts := range configs {
		for _, text := range texts {
			now, err := set(f, text, true, Settings{Registry: first})
			if err != nil {
				t.Fatal(err)
			}
			if got := restore(f, "# above\n"+now).text; got != "# above\n"+text {
				t.Errorf("%q with a line above came back as %q", text, got)
			}
			if strings.HasSuffix(now, "\n") {
				want := text
				if want != "" && !strings.HasSuffix(want, "\n") && !strings.HasSuffix(restore(f, now+"x").text, text+"x") {
					want += "\n"
				}
				if got := restore(f, now+"# below\n").text; got != want+"# below\n" {
					t.Errorf("%q with a line below came back as %q", text, got)
				}
			}
			within := strings.Replace(now, endMark, "//127.0.0.1:4873/:_authToken=t\n"+endMark, 1)
			if got := restore(f, within).text; !strings.Contains(got, "//127.0.0.1:4873/:_authToken=t") || strings.Contains(got, first) {
				t.Errorf("%q with a line within came back as %q", text, got)
			}
		}
	}
}

// A mark that someone deleted costs nothing but itself.
func TestRestoreWithoutMarks(t *testing.T) {
	for f, texts := range configs {
		for _, text := range texts {
			now, err := set(f, text, true, Settings{Registry: first})
			if err != nil {
				t.Fatal(err)
			}
			var kept []string
			for line := range strings.Lines(now) {
				if !strings.Contains(line, endMark) {
					kept = append(kept, line)
				}
			}
			if got := restore(f, strings.Join(kept, "")).text; strings.TrimRight(got, "\r\n") != strings.TrimRight(text, "\r\n") {
				t.Errorf("%q came back as %q without the last mark", text, got)
			}
		}
	}
}

// What cannot be changed line by line is refused.
func TestSetRefuses(t *testing.T) {
	for text, f := range map[string]format{
		"npmScopes: {acme: {npmAuthToken: x}}\n":                        yarnrcYML,
		"npmScopes:\n  acme:\n    npmRegistryServer: https://a\n":       yarnrcYML,
		"unsafeHttpWhitelist: &a\n  - x\nb: 1\nc: [\n":                  yarnrcYML,
		"unsafeHttpWhitelist: [a,\n  b]\n":                              yarnrcYML,
		"a: 1\n---\nb: 1\n":                                             yarnrcYML,
		"a: 1\na: 2\n\t":                                                yarnrcYML,
		"[install.registry]\nurl = \"https://r\"\ntoken = \"secret\"\n": bunfig,
		"install = { scopes = {} }\n":                                   bunfig,
		"x = \"\"\"\n[install]\n\"\"\"\n":                               bunfig,
		"[install\n":                                                    bunfig,
	} {
		var err error
		for _, scopes := range [][]string{nil, {"@acme"}} {
			_, e := set(f, text, true, Settings{Registry: first, Scopes: scopes})
			err = errors.Join(err, e)
		}
		if !errors.Is(err, ErrEdit) {
			t.Errorf("%q: %v", text, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: a secret is in the error: %v", text, err)
		}
	}
}

func FuzzSetAndRestore(f *testing.F) {
	for kind, texts := range configs {
		for _, text := range texts {
			f.Add(int(kind), text)
		}
	}
	f.Fuzz(func(t *testing.T, kind int, text string) {
		if kind < 0 || kind > int(bunfig) || strings.Contains(text, beginMark) || strings.Contains(text, endMark) {
			return
		}
		now, err := set(format(kind), text, true, Settings{Registry: first})
		if err != nil {
			return
		}
		if r := restore(format(kind), now); r.text != text {
			t.Errorf("%q came back as %q", text, r.text)
		}
	})
}

// What a file is marked with is read back, and nothing else in it.
func TestMarked(t *testing.T) {
	for f := npmrc; f <= bunfig; f++ {
		for _, s := range []Settings{{Registry: "http://127.0.0.1:4903"}, {Registry: "http://127.0.0.1:4903", Scopes: []string{"@acme"}}} {
			was := map[format]string{
				npmrc: "registry=http://was.example/\n", yarnrc: "registry \"http://was.example/\"\n",
				yarnrcYML: "npmRegistryServer: \"http://was.example/\"\n", bunfig: "[install]\nregistry = \"http://was.example/\"\n",
			}[f]
			if got := marked(was); got != "" {
				t.Errorf("format %d: nothing is marked, and it says %q", f, got)
			}
			text, err := set(f, was, true, s)
			if err != nil {
				t.Fatal(err)
			}
			if got := marked(text + was); got != s.Registry {
				t.Errorf("format %d, %q: %q in\n%s", f, s.Scopes, got, text)
			}
		}
	}
}
