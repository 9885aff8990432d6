package npm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadConfig(t *testing.T) {
	write := func(t *testing.T, text string) string {
		t.Helper()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ".npmrc"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	env := func(kv ...string) func(string) string {
		return func(key string) string {
			for i := 0; i < len(kv); i += 2 {
				if kv[i] == key {
					return kv[i+1]
				}
			}
			return ""
		}
	}
	dir := write(t, "registry = https://project.example.test/npm/\n@a:registry=\"https://a.example.test\"\n")
	home := write(t, "; comment\n# comment\nno setting\nregistry=https://user.example.test # why\nregistry=https://last.example.test\n@b:registry=https://${BHOST}/b\n[section]\nregistry=https://section.example.test\n")
	for _, c := range []struct {
		name           string
		getenv         func(string) string
		dir, home      string
		registry, a, b string
	}{
		{"Nothing", env(), t.TempDir(), t.TempDir(), DefaultRegistry(), "", ""},
		{"NoDirectories", env(), "", "", DefaultRegistry(), "", ""},
		{"Environment", env("npm_config_registry", "http://127.0.0.1:4873/"), dir, home, "http://127.0.0.1:4873", "https://a.example.test", ""},
		{"EnvironmentUpper", env("NPM_CONFIG_REGISTRY", "http://127.0.0.1:4873"), dir, "", "http://127.0.0.1:4873", "https://a.example.test", ""},
		{"Project", env("BHOST", "b.example.test"), dir, home, "https://project.example.test/npm", "https://a.example.test", "https://b.example.test/b"},
		{"User", env("BHOST", "b.example.test"), "", home, "https://last.example.test", "", "https://b.example.test/b"},
		{"UserConfigElsewhere", env("npm_config_userconfig", filepath.Join(dir, ".npmrc")), "", home, "https://project.example.test/npm", "https://a.example.test", ""},
		{"Global", env("npm_config_globalconfig", filepath.Join(dir, ".npmrc")), "", t.TempDir(), "https://project.example.test/npm", "https://a.example.test", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.b == "" && c.home == home {
				c.getenv = withDefault(c.getenv, "BHOST", "ignored.example.test")
			}
			got, err := LoadConfig(c.getenv, c.dir, c.home)
			if err != nil {
				t.Fatal(err)
			}
			if got.Registry != c.registry || got.RegistryFor("express") != c.registry {
				t.Errorf("registry %s, want %s", got.Registry, c.registry)
			}
			if want := c.a; got.Scopes["@a"] != want || want != "" && got.RegistryFor("@a/x") != want {
				t.Errorf("@a: %s, want %s", got.Scopes["@a"], want)
			}
			if c.b != "" && got.RegistryFor("@b/x") != c.b {
				t.Errorf("@b: %s, want %s", got.RegistryFor("@b/x"), c.b)
			}
			if got.RegistryFor("@c/x") != c.registry {
				t.Errorf("@c: %s, want %s", got.RegistryFor("@c/x"), c.registry)
			}
		})
	}
	for _, text := range []string{"registry=example.test", "registry=ftp://example.test", "registry=https://", "registry=https://u:hunter2@example.test/", "@s:registry=${UNSET}", "registry=https://example.test/?x"} {
		_, err := LoadConfig(env(), "", write(t, text))
		if !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v; want ErrConfig", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	if _, err := LoadConfig(env(), "", write(t, strings.Repeat("#", maxNpmrc+1))); !errors.Is(err, ErrConfig) {
		t.Errorf("a huge file: %v", err)
	}
	if got := (Config{}).RegistryFor("x"); got != DefaultRegistry() {
		t.Errorf("the zero Config: %s", got)
	}
}

func withDefault(getenv func(string) string, key, value string) func(string) string {
	return func(k string) string {
		if v := getenv(k); v != "" || k != key {
			return v
		}
		return value
	}
}

func TestExpand(t *testing.T) {
	getenv := func(k string) string { return map[string]string{"A": "a"}[k] }
	for in, want := range map[string]string{
		"x${A}y${A}": "xaya", "${NO}": "${NO}", "${NO?}x": "x", "${A?}": "a", `\${A}`: "${A}", `\\${A}`: `\a`, "$A": "$A", "${}": "${}", "${${A}}": "${a}",
	} {
		if got := expand(in, getenv); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAuthorization(t *testing.T) {
	home := t.TempDir()
	rc := `//r.example.test/:_authToken=${TOKEN}
//r.example.test/team/:_authToken=team
//R.example.test:8443/:_auth=dTpw
//p.example.test/:username=u
//p.example.test/:_password=cHc=
//both.example.test/:_auth=never
//both.example.test/:_authToken=yes
_authToken=for-nobody
`
	if err := os.WriteFile(filepath.Join(home, ".npmrc"), []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(func(k string) string { return map[string]string{"TOKEN": "s3cret"}[k] }, "", home)
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"https://r.example.test/express":                  "Bearer s3cret",
		"https://R.example.test":                          "Bearer s3cret",
		"https://r.example.test/teammate/x":               "Bearer s3cret",
		"https://r.example.test/team/@s%2fx/-/x-1.tgz?y=": "Bearer team",
		"https://r.example.test/team":                     "Bearer team",
		"https://r.example.test:8443/x":                   "Basic dTpw",
		"https://p.example.test/x":                        "Basic dTpwdw==",
		"https://both.example.test/x":                     "Bearer yes",
		"https://r.example.test:444/x":                    "",
		"https://evil.r.example.test/x":                   "",
		"https://r.example.test.evil.example/x":           "",
		"https://r.example.test@evil.example/x":           "",
		"https://evil.example/r.example.test/":            "",
		"/x":                                              "",
		"::":                                              "",
	} {
		if got := c.Authorization(url); got != want {
			t.Errorf("Authorization(%s) = %q, want %q", url, got, want)
		}
	}
	for _, shown := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%v", &c), c.LogValue().String()} {
		if strings.Contains(shown, "s3cret") {
			t.Errorf("shown: %s", shown)
		}
	}
}
