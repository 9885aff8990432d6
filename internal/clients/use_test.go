package clients

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// world is a project and a home.
type world struct {
	*testing.T
	project, home string
	env           map[string]string
	keeper        *Keeper
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, project: t.TempDir(), home: t.TempDir(), env: map[string]string{}}
	w.keeper = &Keeper{Dir: filepath.Join(t.TempDir(), "state", "clients")}
	w.write(w.project, map[string]string{"package.json": "{}"})
	return w
}

func (w *world) place() Place {
	return Place{Project: w.project, Home: w.home, Getenv: func(k string) string { return w.env[k] }}
}

func (w *world) write(dir string, files map[string]string) {
	w.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o640)); err != nil {
			w.Fatal(err)
		}
	}
}

// files is everything in a directory.
func (w *world) files(dir string) map[string]string {
	w.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir+"/")] = string(raw)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.Fatal(err)
	}
	return all
}

func (w *world) use(registry string) []Change {
	w.Helper()
	changes, err := w.keeper.Use(w.place(), All, Settings{Registry: registry})
	if err != nil {
		w.Fatal(err)
	}
	return changes
}

func (w *world) unuse() []Change {
	w.Helper()
	changes, err := w.keeper.Unuse(w.place(), nil)
	if err != nil {
		w.Fatal(err)
	}
	return changes
}

var project = map[string]string{
	".npmrc": "; mine\r\nregistry=https://r.example.test/\r\n//r.example.test/:_authToken=secret", ".yarnrc.yml": "nodeLinker: node-modules\n", "bunfig.toml": "[install]\nregistry = \"https://r.example.test\"\n",
}

func TestUseAndUnuse(t *testing.T) {
	w := newWorld(t)
	w.write(w.project, project)
	before := w.files(w.project)
	if err := os.Chmod(filepath.Join(w.project, ".npmrc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changes := w.use(first); len(changes) != 4 || !slices.Equal(changes[0].Clients, []Client{NPM, PNPM}) || !changes[0].Changed {
		t.Errorf("changes: %+v", changes)
	}
	for _, c := range All {
		got := w.place().Sources(c)
		if len(got) == 0 || got[0].Registry != first {
			t.Errorf("%s asks %+v", c, got)
		}
		if others := w.place().Before(c, w.place(), Settings{Registry: first}); others != nil {
			t.Errorf("%s: %+v goes before", c, others)
		}
	}
	for _, c := range w.use(first) {
		if c.Changed {
			t.Errorf("%s was changed by doing the same again", c.File)
		}
	}
	w.use(second)
	for name, mode := range map[string]fs.FileMode{".npmrc": 0o600, ".yarnrc.yml": 0o640, ".yarnrc": 0o600} {
		info, err := os.Stat(filepath.Join(w.project, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v (%v)", name, info.Mode().Perm(), mode, err)
		}
	}
	for name, text := range w.files(w.keeper.Dir) {
		info, err := os.Stat(filepath.Join(w.keeper.Dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("note %s: mode %v (%v)", name, info.Mode().Perm(), err)
		}
		if strings.Contains(text, "secret") {
			t.Errorf("a note holds a token: %s", text)
		}
	}
	if info, err := os.Stat(w.keeper.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the notes' directory: %v %v", info, err)
	}
	// The state may go, as the file may be elsewhere.
	if err := os.RemoveAll(w.keeper.Dir); err != nil {
		t.Fatal(err)
	}
	changes := w.unuse()
	if len(changes) != 4 {
		t.Errorf("%d changes taken back, not 4", len(changes))
	}
	for _, c := range changes {
		if gone := strings.HasSuffix(c.File, ".yarnrc"); c.Gone != gone || c.Approximate {
			t.Errorf("%+v", c)
		}
	}
	if after := w.files(w.project); !maps.Equal(after, before) {
		t.Errorf("not as before: %q", after)
	}
	if changes := w.unuse(); changes != nil {
		t.Errorf("a second time: %+v", changes)
	}
}

// Two projects, and the user, know nothing of one another.
func TestPlaces(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	b.home, b.keeper = a.home, a.keeper
	a.write(a.home, map[string]string{".npmrc": "fund=false\n"})
	a.use(first)
	b.use(second)
	user := Place{Home: a.home, Getenv: func(k string) string { return map[string]string{"XDG_CONFIG_HOME": filepath.Join(a.home, "x")}[k] }}
	if err := os.Mkdir(filepath.Join(a.home, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := a.keeper.Use(user, All, Settings{Registry: first}); err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(a.files(a.home))); !slices.Equal(got, []string{".npmrc", ".yarnrc", ".yarnrc.yml", "x/.bunfig.toml"}) {
		t.Errorf("the user's files: %q", got)
	}
	a.unuse()
	if got := b.place().Sources(NPM)[0]; got.Registry != second {
		t.Errorf("the other project asks %+v", got)
	}
	// The user's is nearer than nothing, and further than the project's.
	if others := user.Before(NPM, b.place(), Settings{Registry: first}); len(others) != 1 || others[0].Where != filepath.Join(b.project, ".npmrc") {
		t.Errorf("what goes before the user's: %+v", others)
	}
	b.unuse()
	if _, err := a.keeper.Unuse(user, nil); err != nil {
		t.Fatal(err)
	}
	if got := a.files(a.home); !maps.Equal(got, map[string]string{".npmrc": "fund=false\n"}) {
		t.Errorf("the user's files are not as before: %q", got)
	}
	if left := a.files(a.keeper.Dir); len(left) > 0 {
		t.Errorf("notes were left: %q", left)
	}
}

var errCrash = errors.New("crash")

// The work may end after any step: each file is then whole, the one of before or the one
// of after, and unuse, or use and unuse, end as if nothing had happened.
func TestCrash(t *testing.T) {
	for _, again := range []bool{false, true} {
		fired := map[string]bool{}
		for crashes := 1; ; crashes++ {
			w := newWorld(t)
			w.write(w.project, project)
			before := w.files(w.project)
			left := crashes
			run := func() error {
				for _, work := range []func() error{
					func() error {
						_, err := w.keeper.Use(w.place(), All, Settings{Registry: first})
						return err
					},
					func() error { _, err := w.keeper.Unuse(w.place(), nil); return err },
				} {
					if err := work(); err != nil {
						return err
					}
				}
				return nil
			}
			w.keeper.crash = func(step string) error {
				if left--; left == 0 {
					fired[step] = true
					return errCrash
				}
				return nil
			}
			err := run()
			w.keeper.crash = nil
			if err == nil {
				break
			}
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			for name, text := range w.files(w.project) {
				old, was := before[name]
				if text != old && (!strings.Contains(text, first) || restore(w.format(name), text).text != old) {
					t.Fatalf("after crash %d %s is neither: %q (there before: %t)", crashes, name, text, was)
				}
				if _, err := w.keeper.note(filepath.Join(w.project, name)); text != old && err != nil {
					t.Fatalf("after crash %d %s was changed and not noted: %v", crashes, name, err)
				}
			}
			if again {
				err = run()
			} else {
				_, err = w.keeper.Unuse(w.place(), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if after := w.files(w.project); !maps.Equal(after, before) {
				t.Fatalf("after crash %d not as before: %q", crashes, after)
			}
			if left := w.files(w.keeper.Dir); len(left) > 0 {
				t.Fatalf("after crash %d notes are left: %q", crashes, left)
			}
		}
		if got := slices.Sorted(maps.Keys(fired)); !slices.Equal(got, []string{"noted", "restored", "staged", "written"}) {
			t.Errorf("crashed only after %q", got)
		}
	}
}

func (w *world) format(name string) format {
	for _, c := range All {
		if f := w.place().file(c); f.path == filepath.Join(w.project, name) {
			return f.format
		}
	}
	w.Fatalf("%s is no configuration", name)
	return 0
}

// npm and yarn write files anew without comments. What was there before comes back.
func TestMarksLost(t *testing.T) {
	w := newWorld(t)
	w.write(w.project, map[string]string{
		".npmrc": "# mine\nregistry=https://r.example.test/\nfund=false\n", ".yarnrc.yml": "npmRegistryServer: \"https://r.example.test\"\n", ".yarnrc": "# mine\n",
	})
	w.use(first)
	w.use(second)
	rewrite := func() {
		w.write(w.project, map[string]string{
			".npmrc":      "registry=" + second + "/\nfund=false\nomit-lockfile-registry-resolved=true\n//r.example.test/:_authToken=new\n",
			".yarnrc.yml": "enableTelemetry: false\n\nnpmRegistryServer: \"" + second + "\"\n\nunsafeHttpWhitelist:\n  - mirror.example.test\n",
			".yarnrc":     "registry \"" + second + "/\"\nlastUpdateCheck 1\n",
		})
	}
	rewrite()
	w.use(first) // which must not take its own registry for that of before
	for _, c := range []Client{NPM, Yarn, Yarn1} {
		if got := w.place().Sources(c)[0]; got.Registry != first {
			t.Errorf("%s asks %+v", c, got)
		}
	}
	w.unuse()
	want := map[string]string{
		"package.json": "{}", ".npmrc": "fund=false\n//r.example.test/:_authToken=new\nregistry=https://r.example.test/\n",
		".yarnrc.yml": "enableTelemetry: false\n\nnpmRegistryServer: \"https://r.example.test\"\n", ".yarnrc": "lastUpdateCheck 1\n",
	}
	if got := w.files(w.project); !maps.Equal(normal(got), normal(want)) {
		t.Errorf("taken back after use: %q", got)
	}

	w.write(w.project, map[string]string{".npmrc": "# mine\nregistry=https://r.example.test/\nfund=false\n", ".yarnrc.yml": "npmRegistryServer: \"https://r.example.test\"\n", ".yarnrc": "# mine\n"})
	w.use(second)
	rewrite()
	for _, c := range w.unuse() {
		if approximate := !strings.HasSuffix(c.File, "bunfig.toml"); c.Approximate != approximate {
			t.Errorf("%+v", c)
		}
	}
	if got := w.files(w.project); !maps.Equal(normal(got), normal(want)) {
		t.Errorf("taken back at once: %q", got)
	}

	// What no longer leads to the mirror is someone's own.
	w.use(first)
	own := "registry=https://own.example.test/\n"
	w.write(w.project, map[string]string{".npmrc": own})
	w.unuse()
	if got := w.files(w.project)[".npmrc"]; got != own {
		t.Errorf("another registry became %q", got)
	}
}

// normal is files without the blank lines that rewriting leaves.
func normal(files map[string]string) map[string]string {
	all := map[string]string{}
	for name, text := range files {
		for line := range strings.Lines(text) {
			if strings.TrimSpace(line) != "" {
				all[name] += line
			}
		}
	}
	return all
}

func TestSymlink(t *testing.T) {
	w := newWorld(t)
	w.write(w.home, map[string]string{"dotfiles/npmrc": "fund=false\n"})
	link := filepath.Join(w.home, ".npmrc")
	if err := os.Symlink("dotfiles/npmrc", link); err != nil {
		t.Fatal(err)
	}
	user := Place{Home: w.home, Getenv: func(string) string { return "" }}
	if _, err := w.keeper.Use(user, []Client{NPM}, Settings{Registry: first}); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); err != nil || to != "dotfiles/npmrc" || !strings.Contains(w.files(w.home)["dotfiles/npmrc"], first) {
		t.Errorf("the link leads to %q (%v): %q", to, err, w.files(w.home))
	}
	if _, err := w.keeper.Unuse(user, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.files(w.home)["dotfiles/npmrc"]; got != "fund=false\n" {
		t.Errorf("not as before: %q", got)
	}
	if err := os.Remove(filepath.Join(w.home, "dotfiles/npmrc")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.keeper.Use(user, []Client{NPM}, Settings{Registry: first}); !errors.Is(err, ErrEdit) {
		t.Errorf("a link to nowhere: %v", err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := w.keeper.Use(user, []Client{NPM}, Settings{Registry: first}); !errors.Is(err, ErrEdit) {
		t.Errorf("a directory: %v", err)
	}
}
