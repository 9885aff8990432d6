package follow

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/lockfile"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const locked = `{"name": "p", "lockfileVersion": 3, "packages": {
	"": {"dependencies": {"app": "^1.0.0"}},
	"node_modules/app": {"version": "1.0.0"},
	"node_modules/lib": {"version": "1.0.0"}
}}`

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSelectionReads(t *testing.T) {
	list := write(t, "names.txt", "# what we use\n\n  @s/deep  # a scope\r\nlib@1 || 2\n")
	lock := write(t, "package-lock.json", locked)
	spec := func(name npm.Name, rng string) npm.Spec { return npm.Spec{Name: name, Range: rng} }
	for _, test := range []struct {
		name string
		s    Selection
		want []ledger.Want
	}{
		{"Nothing", Selection{NoDeps: true, Every: true}, nil},
		{"Specs", Selection{Specs: []string{"app", "lib@^1"}}, []ledger.Want{{Spec: spec("app", "")}, {Spec: spec("lib", "^1")}}},
		{"Flags", Selection{Specs: []string{"app"}, NoDeps: true, Every: true}, []ledger.Want{{Spec: spec("app", ""), NoDeps: true, Every: true}}},
		{"All", Selection{All: true}, []ledger.Want{{Every: true, NoDeps: true}}},
		{"List", Selection{Lists: []string{list}, NoDeps: true}, []ledger.Want{{Spec: spec("@s/deep", ""), NoDeps: true}, {Spec: spec("lib", "1 || 2"), NoDeps: true}}},
		{"Lockfile", Selection{Lockfiles: []string{lock}}, []ledger.Want{{Spec: spec("app", "1.0.0"), Exact: true}, {Spec: spec("lib", "1.0.0"), Exact: true}}},
		// The other flags are for what is named otherwise.
		{"LockfileAndEvery", Selection{Lockfiles: []string{lock}, Every: true}, []ledger.Want{{Spec: spec("app", "1.0.0"), Exact: true}, {Spec: spec("lib", "1.0.0"), Exact: true}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.s.Wants()
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("Wants() = %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

func TestSelectionRefuses(t *testing.T) {
	list := write(t, "names.txt", "app\n\n../evil\n")
	long := write(t, "long.txt", "app\n"+strings.Repeat("x", maxListLine+1))
	for _, test := range []struct {
		name string
		s    Selection
		is   error  // nil for any
		says string // part of the message
	}{
		{"Name", Selection{Specs: []string{"../evil"}}, npm.ErrSpec, "evil"},
		{"NameInAList", Selection{Lists: []string{list}}, npm.ErrSpec, list + ":3: "},
		{"LongLine", Selection{Lists: []string{long}}, nil, long},
		{"NoList", Selection{Lists: []string{"nowhere.txt"}}, fs.ErrNotExist, "nowhere.txt"},
		{"NoLockfile", Selection{Lockfiles: []string{"nowhere.json"}}, fs.ErrNotExist, "nowhere.json"},
		{"OtherFile", Selection{Lockfiles: []string{list}}, lockfile.ErrFormat, list},
	} {
		t.Run(test.name, func(t *testing.T) {
			wants, err := test.s.Wants()
			if err == nil || wants != nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Wants() = %+v, %v, want no wants and an error that wraps %v and says %q", wants, err, test.is, test.says)
			}
		})
	}
}

// TestALockfileSelectsWhatItNames and nothing beside: neither dependencies nor
// what the tag latest names, not even when the feed brings newer versions.
func TestALockfileSelectsWhatItNames(t *testing.T) {
	w := newWorld(t, small)
	s := Selection{Lockfiles: []string{write(t, "package-lock.json", locked)}}
	all, err := s.Wants()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.f.Add(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	w.expect("app@1.0.0", "lib@1.0.0")
	feed := w.follow(couch.EngineNPM)
	w.reg.Publish("-- app@3.0.0/index.js --\n3\n-- lib@1.0.1/index.js --\n101\n")
	feed.push(changed("app", w.rev("app")), changed("lib", w.rev("lib")))
	w.run()
	w.expect("app@1.0.0", "lib@1.0.0")
	w.expectRefused()

	// What is asked for by name as well is wanted in that wider way.
	s.Specs = []string{"app@1.0.0"}
	if all, err = s.Wants(); err != nil {
		t.Fatal(err)
	}
	if err := w.f.Add(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	w.expect("app@1.0.0", "app@3.0.0", "lib@1.0.0", "lib@1.2.0") // app@3.0.0 has no dependencies
}
