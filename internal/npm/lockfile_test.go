package npm

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestReadLockfile(t *testing.T) {
	want := []string{"@s/b@2.0.0", "a@1.0.0", "a@1.2.0", "a@1.10.0", "real@3.0.0-rc.1"}
	for name, text := range map[string]string{
		"V3": `{"name":"p","lockfileVersion":3,"packages":{
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
		"V2": `{"lockfileVersion":2,"requires":true,"packages":{"node_modules/a":{"version":"1.10.0"},"node_modules/@s/b":{"version":"2.0.0"},
			"node_modules/b/node_modules/a":{"version":"1.2.0"},"node_modules/c/node_modules/a":{"version":"1.0.0"},
			"node_modules/alias":{"name":"real","version":"3.0.0-rc.1"}},"dependencies":{"never":{"version":"1.0.0"}}}`,
		"V1": `{"name":"p","version":"1.0.0","lockfileVersion":1,"requires":true,"dependencies":{
			"a":{"version":"1.10.0","resolved":"https://r.example.test/a/-/a-1.10.0.tgz","integrity":"x","requires":{"b":"1"}},
			"@s/b":{"version":"2.0.0","resolved":false,"dependencies":{"a":{"version":"1.2.0","dependencies":{"a":{"version":"1.0.0"}}},"in":{"version":"1.0.0","bundled":true}}},
			"alias":{"version":"npm:real@3.0.0-rc.1"},
			"git":{"version":"git+ssh://git@example.test/a/b.git#0123"},"file":{"version":"file:../x"},"url":{"version":"https://example.test/x.tgz"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			specs, err := ReadLockfile(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range specs {
				got = append(got, s.String())
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	for name, text := range map[string]string{
		"Empty": ``, "NoLockfile": `{"name":"p"}`, "YAML": "lockfileVersion: 5", "Truncated": `{"lockfileVersion":3,"packages":{`,
		"BadName": `{"lockfileVersion":3,"packages":{"node_modules/.x":{"version":"1.0.0"}}}`,
		"Twice":   `{"lockfileVersion":3,"packages":{"node_modules/a":{"version":"1.0.0"},"node_modules/a":{"version":"2.0.0"}}}`,
	} {
		if specs, err := ReadLockfile(strings.NewReader(text)); !errors.Is(err, ErrLockfile) {
			t.Errorf("%s: %v, %v; want ErrLockfile", name, specs, err)
		}
	}
	if specs, err := ReadLockfile(strings.NewReader(`{"lockfileVersion":3,"packages":{"":{}}}`)); err != nil || len(specs) != 0 {
		t.Errorf("a project without dependencies: %v, %v", specs, err)
	}
}
