package lockfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func (f *File) strings() (packages, foreign []string) {
	for _, p := range f.Packages {
		packages = append(packages, string(p.Name)+"@"+p.Version)
	}
	for _, x := range f.Foreign {
		foreign = append(foreign, x.String())
	}
	return packages, foreign
}

// The files of testdata are what each client made of one project: with a
// workspace, an alias, an archive beside it, and an optional package of another
// platform, of which yarn 4 makes a patch.
func TestEveryClientsLockfile(t *testing.T) {
	want := []string{"@types/ms@2.1.0", "debug@4.3.4", "fsevents@2.3.2", "ms@2.0.0", "ms@2.1.1", "ms@2.1.2", "ms@2.1.3"}
	const debug = "sha512-PRWFHuSU3eDtQJPvnNY7Jcket1j0t5OuOsFzPPzsekD52Zl8qUfFIPEiswXqIvHWGVHOgX+7G/vCNNhehwxfkQ=="
	for _, test := range []struct {
		file, format, integrity string
		foreign                 []string
	}{
		{"npm11.json", "package-lock.json", debug, []string{`"local" (file)`, `"w" (workspace)`}},
		{"pnpm8.yaml", "pnpm-lock.yaml", debug, []string{`"local" (file)`}},
		{"pnpm10.yaml", "pnpm-lock.yaml", debug, []string{`"local" (file)`}},
		{"yarn1.lock", "yarn.lock", debug, []string{`"local" (file)`}},
		{"yarn4.lock", "yarn.lock", "", []string{`"local" (file)`, `"p" (workspace)`, `"w" (workspace)`}},
		{"bun1.lock", "bun.lock", debug, []string{`"local" (file)`, `"w" (workspace)`}},
	} {
		t.Run(test.file, func(t *testing.T) {
			f, err := Open(filepath.Join("testdata", test.file))
			if err != nil {
				t.Fatal(err)
			}
			packages, foreign := f.strings()
			if f.Format != test.format || !slices.Equal(packages, want) || !slices.Equal(foreign, test.foreign) {
				t.Errorf("%s: %q, and not of a registry %q", f.Format, packages, foreign)
			}
			if f.Packages[1].Integrity != test.integrity {
				t.Errorf("integrity of %s: %q, want %q", packages[1], f.Packages[1].Integrity, test.integrity)
			}
			var ranges []string
			for _, r := range f.Ranges {
				if r != (npm.Spec{Name: "ms", Range: "2.1.2"}) { // which debug asks for, and yarn does not say so
					ranges = append(ranges, string(r.Name)+"@"+r.Range)
				}
			}
			if want := []string{"@types/ms@^2.1.0", "debug@4.3.4", "fsevents@2.3.2", "ms@2.0.0", "ms@2.1.1", "ms@2.1.3"}; !slices.Equal(ranges, want) {
				t.Errorf("ranges %q, want %q", ranges, want)
			}
			if specs := f.Specs(); len(specs) != len(want) || specs[1] != (npm.Spec{Name: "debug", Range: "4.3.4"}) {
				t.Errorf("Specs() = %v", specs)
			}
		})
	}
}

// What workspaces ask for is told from what packages do, and catalogs are looked up.
func TestRanges(t *testing.T) {
	for name, text := range map[string]string{
		"NPM": `{"lockfileVersion":3,"packages":{
			"":{"dependencies":{"a":"^1","git":"github:x/y","w":"*"},"peerDependencies":{"p":"1"}},
			"packages/w":{"devDependencies":{"a":"~1.2.0"},"optionalDependencies":{"alias":"npm:@s/b@>=2"}},
			"node_modules/w":{"resolved":"packages/w","link":true},
			"node_modules/a":{"version":"1.2.0","dependencies":{"deep":"^1"}}}}`,
		"Bun": `{"lockfileVersion":1,"workspaces":{"":{"dependencies":{"a":"catalog:","w":"*"}},
			"packages/w":{"devDependencies":{"a":"catalog:old","none":"catalog:"},"optionalDependencies":{"alias":"npm:@s/b@>=2"}}},
			"catalog":{"a":"^1"},"catalogs":{"old":{"a":"~1.2.0"}},"packages":{}}`,
		"PNPM": `
lockfileVersion: '9.0'
catalogs:
  default:
    a: {specifier: ^1, version: 1.2.0}
importers:
  .:
    dependencies:
      a: {specifier: 'catalog:', version: 1.2.0}
      w: {specifier: '*', version: link:packages/w}
  packages/w:
    devDependencies:
      a: {specifier: ~1.2.0, version: 1.2.0}
    optionalDependencies:
      alias: {specifier: 'npm:@s/b@>=2', version: '@s/b@2.0.0'}
`,
		"Yarn1": `# yarn lockfile v1
a@^1, a@~1.2.0:
  version "1.2.0"
"alias@npm:@s/b@>=2":
  version "2.0.0"
w@*:
  version "1.0.0"
`,
		"Yarn4": `
__metadata: {version: 8}
"a@npm:^1, a@npm:~1.2.0": {resolution: "a@npm:1.2.0"}
"alias@npm:@s/b@>=2": {resolution: "@s/b@npm:2.0.0"}
"w@npm:*": {resolution: "w@npm:1.0.0"}
"x@workspace:.": {resolution: "x@workspace:."}
`,
	} {
		f, err := Read(strings.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := []npm.Spec{{Name: "@s/b", Range: ">=2"}, {Name: "a", Range: "^1"}, {Name: "a", Range: "~1.2.0"}, {Name: "w", Range: "*"}}
		if !slices.Equal(f.Ranges, want) {
			t.Errorf("%s: %v, want %v", name, f.Ranges, want)
		}
	}
}

func TestRead(t *testing.T) {
	const all = "@s/b@2.0.0 a@1.0.0 a@1.2.0 a@1.10.0 real@3.0.0-rc.1"
	for name, test := range map[string]struct{ text, packages, foreign string }{
		"NPM3": {`{"name":"p","lockfileVersion":3,"packages":{
			"":{"name":"p","version":"9.9.9","dependencies":{"a":"^1"}},
			"packages/w":{"name":"w","version":"1.0.0"},
			"node_modules/w":{"resolved":"packages/w","link":true},
			"node_modules/a":{"version":"1.10.0","resolved":"https://r.example.test/a/-/a-1.10.0.tgz","integrity":"sha512-x"},
			"node_modules/@s/b":{"version":"2.0.0","dev":true,"optional":true,"os":["darwin"]},
			"node_modules/@s/b/node_modules/a":{"version":"1.2.0","resolved":"https://r.example.test/download/a/1.2.0/0123"},
			"packages/w/node_modules/a":{"version":"1.0.0","resolved":"http://127.0.0.1:4873/a/-/a-1.0.0.tgz"},
			"node_modules/x/node_modules/a":{"version":"1.0.0","resolved":"https://r.example.test/a/-/a-1.0.0.tgz"},
			"node_modules/alias":{"name":"real","version":"3.0.0-rc.1","resolved":"https://r.example.test/real/-/real-3.0.0-rc.1.tgz"},
			"node_modules/bundled":{"version":"1.0.0","inBundle":true},
			"node_modules/git":{"version":"1.0.0","resolved":"git+ssh://git@example.test/a/b.git#0123"},
			"node_modules/file":{"version":"1.0.0","resolved":"file:x-1.0.0.tgz"},
			"node_modules/url":{"version":"1.0.0","resolved":"https://example.test/archive/main.tgz"},
			"node_modules/no-version":{"resolved":"https://r.example.test/a/-/a.tgz"}}}`,
			all, `"file" (file) "git" (git) "no-version" (unknown) "url" (URL) "w" (workspace)`},
		"NPM2": {`{"lockfileVersion":2,"requires":true,"packages":{"node_modules/a":{"version":"1.10.0"},"node_modules/@s/b":{"version":"2.0.0"},
			"node_modules/b/node_modules/a":{"version":"1.2.0"},"node_modules/c/node_modules/a":{"version":"1.0.0"},
			"node_modules/alias":{"name":"real","version":"3.0.0-rc.1"}},"dependencies":{"never":{"version":"1.0.0"}}}`, all, ""},
		"NPM1": {`{"name":"p","version":"1.0.0","lockfileVersion":1,"requires":true,"dependencies":{
			"a":{"version":"1.10.0","resolved":"https://r.example.test/a/-/a-1.10.0.tgz","integrity":"x","requires":{"b":"1"}},
			"@s/b":{"version":"2.0.0","resolved":false,"dependencies":{"a":{"version":"1.2.0","dependencies":{"a":{"version":"1.0.0"}}},"in":{"version":"1.0.0","bundled":true}}},
			"alias":{"version":"npm:real@3.0.0-rc.1"},
			"git":{"version":"git+ssh://git@example.test/a/b.git#0123"},"file":{"version":"file:../x"},"url":{"version":"https://example.test/x.tgz"}}}`,
			all, `"file" (file) "git" (git) "url" (URL)`},
		"NPMNothing": {`{"lockfileVersion":3,"packages":{"":{}}}`, "", ""},
		"Pnpm6": {`lockfileVersion: '6.1'
packages:
  /@s/b@2.0.0(a@1.10.0)(real@3.0.0-rc.1): {resolution: {integrity: sha512-x}}
  /a@1.10.0: {resolution: {integrity: sha512-x, tarball: https://r.example.test/a.tgz}}
  /a@1.2.0(patch_hash=0123): {resolution: {integrity: sha512-x}}
  /a@1.0.0: {resolution: {integrity: sha512-x}}
  /real@3.0.0-rc.1: {resolution: {integrity: sha512-x}}
  github.example.test/a/git/0123: {resolution: {commit: '0123', repo: x, type: git}, name: git, version: 1.0.0}
  '@example.test/archive/main.tgz': {resolution: {tarball: 'https://example.test/archive/main.tgz'}, name: url}
  file:../x: {resolution: {directory: ../x, type: directory}, name: folder}
`, all, `"folder" (file) "git" (git) "url" (URL)`},
		// Of pnpm 11 and later: first what installs pnpm itself.
		"Pnpm9": {`---
lockfileVersion: '9.0'
importers: {.: {packageManagerDependencies: {a: {specifier: 1.10.0, version: 1.10.0}}}}
packages:
  a@1.10.0: {resolution: {integrity: sha512-x}}
---
lockfileVersion: '9.0'
packages:
  '@s/b@2.0.0': {resolution: {integrity: sha512-x}}
  a@1.2.0: {resolution: {integrity: sha512-x}}
  a@1.0.0: {resolution: {integrity: sha512-x}}
  real@3.0.0-rc.1: {resolution: {integrity: sha512-x}}
  git@git+ssh://git@example.test/a/b.git#0123: {resolution: {commit: '0123', repo: x, type: git}, version: 1.0.0}
  url@https://example.test/archive/main.tgz: {resolution: {tarball: 'https://example.test/archive/main.tgz'}}
snapshots:
  '@s/b@2.0.0(a@1.2.0)': {}
`, all, `"git" (git) "url" (URL)`},
		"PnpmNothing": {"lockfileVersion: '9.0'\n", "", ""},
		"Yarn1": {`# yarn lockfile v1


"@s/b@^2.0.0", "@s/b@~2.0.0":
  version "2.0.0"
  resolved "https://r.example.test/@s/b/-/b-2.0.0.tgz#0123"
  dependencies:
    version "5.0.0"

a@1, a@^1.2.3:
  version "1.10.0"
  resolved "a-1.10.0.tgz#0123"
a@1.2:
  version "1.2.0"
a@latest:
  version "1.0.0"
"alias@npm:real@next":
  version "3.0.0-rc.1"
"git@git+ssh://git@example.test/a/b.git":
  version "1.0.0"
  resolved "git+ssh://git@example.test/a/b.git#0123"
"folder@file:../x":
  version "1.0.0"
"url@https://example.test/archive/main.tgz":
  version "1.0.0"
  resolved "https://example.test/archive/main.tgz#0123"
`, all, `"folder" (file) "git" (git) "url" (URL)`},
		"Yarn1Nothing": {"# THIS IS AN AUTOGENERATED FILE. DO NOT EDIT THIS FILE DIRECTLY.\n# yarn lockfile v1\n\n\n", "", ""},
		"Yarn4": {`__metadata:
  version: 10
"@s/b@npm:^2.0.0, @s/b@npm:~2.0.0":
  resolution: "@s/b@npm:2.0.0"
"a@npm:1":
  resolution: "a@npm:1.10.0::__archiveUrl=https%3A%2F%2Fr.example.test%2Fa.tgz"
"a@npm:1.2":
  resolution: "a@npm:1.2.0"
"a@patch:a@npm%3A1.2.0#./a.patch":
  resolution: "a@patch:a@npm%3A1.2.0#./a.patch::version=1.2.0&hash=0123"
"a@npm:latest":
  resolution: "a@npm:1.0.0"
"alias@npm:real@next":
  resolution: "real@npm:3.0.0-rc.1"
"git@git+ssh://git@example.test/a/b.git":
  resolution: "git@ssh://git@example.test/a/b.git#commit=0123"
"url@https://example.test/archive/main.tgz":
  resolution: "url@https://example.test/archive/main.tgz"
"w@workspace:*, w@workspace:w":
  resolution: "w@workspace:w"
`, all, `"git" (git) "url" (URL) "w" (workspace)`},
		"Bun": {`// bun
{
  "lockfileVersion": 1, /* 2, */
  "workspaces": { "": { "name": "p // x" }, },
  "packages": {
    "@s/b": ["@s/b@2.0.0", "", { "dependencies": { "a": "1.2.0", }, }, "sha512-x"],
    "a": ["a@1.10.0", "https://r.example.test/a.tgz", {}, "sha512-x"],
    "b/a": ["a@1.2.0", "", {}],
    "c/a": ["a@1.0.0", "", {}, "sha512-x",],
    "alias": ["real@3.0.0-rc.1", "", {}, "sha512-x"],
    "git": ["git@git+ssh://git@example.test/a/b.git#0123", {}, "0123"],
    "hub": ["hub@github:a/b#0123", {}, "0123"],
    "folder": ["folder@file:../x", {}],
    "w": ["w@workspace:w"],
  },
}
`, all, `"folder" (file) "git" (git) "hub" (git) "w" (workspace)`},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Read(strings.NewReader(test.text))
			if err != nil {
				t.Fatal(err)
			}
			packages, foreign := f.strings()
			if got := strings.Join(packages, " "); got != test.packages {
				t.Errorf("got %s, want %s", got, test.packages)
			}
			if got := strings.Join(foreign, " "); got != test.foreign {
				t.Errorf("not of a registry: %s, want %s", got, test.foreign)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, says string }{
		"Empty":        {" \n", "it is empty"},
		"PackageJSON":  {`{"name":"p","workspaces":["w"]}`, "neither packages nor a lockfileVersion"},
		"Dependencies": {`{"name":"p","dependencies":{"express":"^4.0.0"}}`, `line 1: "/dependencies/express" is not what it is in a lockfile`},
		"Truncated":    {"{\"lockfileVersion\":3,\n\"packages\":{", "line 2: "},
		"BadName":      {`{"lockfileVersion":3,"packages":{"node_modules/.x":{"version":"1.0.0"}}}`, `".x"`},
		"Twice":        {`{"lockfileVersion":3,"packages":{"node_modules/a":{"version":"1.0.0"},"node_modules/a":{"version":"2.0.0"}}}`, "duplicate"},
		"Deep":         {`{"lockfileVersion":1,"dependencies":` + strings.Repeat(`{"a":{"dependencies":`, 600) + "{}" + strings.Repeat("}}", 600) + "}", "nests too deep"},
		"Deeper":       {strings.Repeat("{\"a\":", 1<<20), "line 1: "},
		"BunEntry":     {`{"lockfileVersion":1,"workspaces":{},"packages":{"a":["a"]}}`, "no entry of bun.lock"},
		"BunObject":    {`{"lockfileVersion":1,"workspaces":{},"packages":{"a":{"version":"1.0.0"}}}`, "no entry of bun.lock"},
		"OpenComment":  {`{"lockfileVersion":3, /* "packages":{}}`, "line 1: "},
		"Pnpm5":        {"lockfileVersion: 5.4\n", "pnpm 8"},
		"PnpmName":     {"lockfileVersion: '9.0'\npackages:\n  .x@1.0.0: {}\n", "line 3: "},
		"PnpmSequence": {"lockfileVersion: '9.0'\npackages: [a]\n", "line 2: "},
		"OtherYAML":    {"a: 1\n", "neither a lockfileVersion nor"},
		"Text":         {"hello\n", "neither JSON nor"},
		"BrokenYAML":   {"lockfileVersion: '9.0'\n\tx", "line 2: "},
		"DeepYAML":     {"a: " + strings.Repeat("[", 1<<20), "exceeded max depth"},
		"Aliases":      {"lockfileVersion: '9.0'\nx: &x {a@1.0.0: {}}\npackages: *x\n", "line 3: no mapping"},
		"BigYAML":      {"lockfileVersion: '9.0' #" + strings.Repeat("x", maxYAML), "larger than 16 MiB"},
		"YarnNoEntry":  {"# yarn lockfile v1\n  version \"1.0.0\"\n", "line 2: "},
		"YarnNoColon":  {"# yarn lockfile v1\na@1\n", "line 2: "},
		"YarnQuote":    {"# yarn lockfile v1\n\"a@1:\n", "line 2: "},
		"YarnNoRange":  {"# yarn lockfile v1\n\na:\n  version \"1.0.0\"\n", "line 3: "},
		"BerryNothing": {"__metadata: {version: 8}\na@npm:1: {version: 1.0.0}\n", "line 2: "},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Read(strings.NewReader(test.text))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v, %v; want an ErrFormat that says %q", f, err, test.says)
			}
		})
	}
	if _, err := Read(strings.NewReader("#!/usr/bin/env bun\nbun-lockfile-format-v0\n\x02\x00\x00")); !errors.Is(err, ErrBinary) {
		t.Errorf("bun.lockb: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"lockfileVersion":1,"dependencies":{"a":{"version":"npm:@s/b@1.0.0","dependencies":{"c":{"version":"file:x","bundled":true}}}}}`))
	f.Add([]byte("# yarn lockfile v1\n\"a@npm:@s/b@1\", a@2:\n  version \"1.0.0\"\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := Read(bytes.NewReader(raw))
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrBinary) {
				t.Fatalf("%v is no ErrFormat", err)
			}
			return
		}
		for i, p := range file.Packages {
			if _, err := npm.ParseName(string(p.Name)); err != nil || npm.ParseVersion(p.Version) != nil {
				t.Fatalf("%q gives %+v", raw, p)
			}
			if i > 0 && (file.Packages[i-1].Name > p.Name || file.Packages[i-1].Name == p.Name && file.Packages[i-1].Version == p.Version) {
				t.Fatalf("%q gives %+v before %+v", raw, file.Packages[i-1], p)
			}
		}
	})
}
