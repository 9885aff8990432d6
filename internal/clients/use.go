package clients

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Keeper changes the configuration of clients and takes that back.
//
// The marks in a file say all that is needed to bring it back, so it can be done from
// anywhere, as often as one likes, and with the state gone. But `npm config set`, `npm
// login` and `yarn config set` write their file anew without any comment. For that case
// Dir keeps, for each file, what it said of registries before.
//
// The order is law: first the note of what was before is durable, then the file is
// replaced by a rename; the note goes once the file is back and that is durable. A crash
// between any two leaves a file that is whole, the old or the new, and a note that does
// no harm: Unuse ends what was begun.
type Keeper struct {
	Dir string // of the notes; made when it is needed, for its owner alone

	// crash, in tests, ends the work after a step.
	crash func(step string) error
}

// Change is what became of one file.
type Change struct {
	Clients []Client `json:"clients"`
	File    string   `json:"file"`
	// Changed is false where the file was as it had to be.
	Changed bool `json:"changed"`
	// Gone says that the file was there for our settings alone, and is no more.
	Gone bool `json:"gone,omitempty"`
	// Approximate says that another program had taken our marks out of the file, so
	// that its settings are as they were, and not each byte.
	Approximate bool `json:"approximate,omitempty"`
}

// note is what is kept about a file. It may hold credentials.
type note struct {
	Format int    `json:"format"` // noteFormat
	File   string `json:"file"`
	Made   bool   `json:"made"` // there was none
	// Was are the lines of the former file that ours go before, Now is ours.
	Was      []string `json:"was,omitempty"`
	Settings Settings `json:"settings"`
}

const noteFormat = 1

// Use makes clients at a place use what s says. Files are changed one by one, each
// atomically: after an error those that are returned are changed, and the others as
// before. Errors: ErrEdit, or those of files.
func (k *Keeper) Use(p Place, all []Client, s Settings) (changes []Change, err error) {
	for _, g := range p.byFile(all) {
		one := s
		one.Portable = g.format == npmrc && slices.Contains(g.clients, NPM)
		changed, err := k.use(g.file, one)
		if err != nil {
			return changes, fmt.Errorf("use the mirror in %s: %w", g.path, err)
		}
		changes = append(changes, Change{Clients: g.clients, File: g.path, Changed: changed})
	}
	return changes, nil
}

func (k *Keeper) use(f file, s Settings) (bool, error) {
	before, err := readConfig(f.path)
	if err != nil {
		return false, err
	}
	after, err := set(f.format, string(before), before != nil, s)
	if err != nil || before != nil && after == string(before) {
		return false, err
	}
	old := restore(f.format, string(before))
	n := note{Format: noteFormat, File: f.path, Made: before == nil || old.made, Was: registryLines(f.format, old.text), Settings: s}
	if kept, err := k.note(f.path); err == nil && !old.found && before != nil && lost(f.format, old.text, kept) {
		n.Was, n.Made = kept.Was, kept.Made // these lines are our own, without their marks
		if after, err = set(f.format, without(f.format, old.text, kept), true, s); err != nil {
			return false, err
		}
	}
	if err := k.keep(n); err != nil {
		return false, err
	}
	if err := k.step("noted"); err != nil {
		return false, err
	}
	if err := replace(f.path, []byte(after), k.step); err != nil {
		return false, err
	}
	return true, k.step("written")
}

// Unuse takes back, for clients at a place, what Use did; no clients are all. Files in
// which there is nothing of ours stay untouched and are not returned.
func (k *Keeper) Unuse(p Place, all []Client) (changes []Change, err error) {
	if len(all) == 0 {
		all = All
	}
	for _, g := range p.byFile(all) {
		c, err := k.unuse(g.file)
		if err != nil {
			return changes, fmt.Errorf("take back what is in %s: %w", g.path, err)
		}
		if c.Changed {
			c.Clients = g.clients
			changes = append(changes, c)
		}
	}
	return changes, nil
}

func (k *Keeper) unuse(f file) (Change, error) {
	c := Change{File: f.path}
	before, err := readConfig(f.path)
	if err != nil {
		return c, err
	}
	r := restore(f.format, string(before))
	kept, err := k.note(f.path)
	noted := err == nil
	if !r.found && noted && before != nil && lost(f.format, r.text, kept) {
		r = restored{text: without(f.format, r.text, kept), found: true, made: kept.Made}
		if r.made && strings.TrimSpace(r.text) == "" {
			r.text = ""
		}
		c.Approximate = true
	}
	switch {
	case !r.found:
	case r.made && r.text == "":
		c.Changed, c.Gone = true, true
		if err := remove(f.path); err != nil {
			return c, err
		}
	default:
		c.Changed = true
		if err := replace(f.path, []byte(r.text), k.step); err != nil {
			return c, err
		}
	}
	if err := k.step("restored"); err != nil || !noted {
		return c, err
	}
	return c, remove(k.notePath(f.path))
}

// group is a file, and those clients of a list that read it.
type group struct {
	file
	clients []Client
}

func (p Place) byFile(all []Client) (groups []group) {
	for _, c := range all {
		f := p.file(c)
		i := slices.IndexFunc(groups, func(g group) bool { return g.path == f.path })
		if i < 0 {
			i, groups = len(groups), append(groups, group{file: f})
		}
		if !slices.Contains(groups[i].clients, c) {
			groups[i].clients = append(groups[i].clients, c)
		}
	}
	return groups
}

// registryLines are the lines of a file that Settings go before, if each stands in
// one line. bun rewrites nothing, so of its file none are needed.
func registryLines(f format, text string) (was []string) {
	if f == bunfig {
		return nil
	}
	for line := range strings.Lines(text) {
		bare := strings.TrimRight(line, "\r\n")
		if f.ours().MatchString(bare) && (f != yarnrcYML || yamlServer.MatchString(bare)) {
			was = append(was, bare)
		}
	}
	return was
}

// lost says whether a file without marks still says what a note says that we wrote.
func lost(f format, text string, n note) bool {
	if f == bunfig {
		return false
	}
	s, err := readFormat(f, []byte(text), func(string) string { return "" })
	if err != nil {
		return false
	}
	return len(n.Settings.Scopes) == 0 && Same(s.registry, n.Settings.Registry) ||
		slices.ContainsFunc(n.Settings.Scopes, func(scope string) bool { return Same(s.scopes[scope], n.Settings.Registry) })
}

// without takes our settings out of a file that lost its marks, and puts back what was
// before them where nothing says otherwise.
func without(f format, text string, n note) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		bare := strings.TrimRight(line, "\r\n")
		one, err := readFormat(f, []byte(bare), func(string) string { return "" })
		ours := err == nil && len(n.Settings.Scopes) == 0 && Same(one.registry, n.Settings.Registry)
		for _, scope := range n.Settings.Scopes {
			ours = ours || err == nil && Same(one.scopes[scope], n.Settings.Registry)
		}
		if f == npmrc && n.Settings.Portable && strings.HasPrefix(bare, "omit-lockfile-registry-resolved") {
			ours = true
		}
		if !ours {
			out.WriteString(line)
		}
	}
	rest := out.String()
	if u, err := url.Parse(n.Settings.Registry); f == yarnrcYML && err == nil {
		// As yarn writes it. One that has more entries stays, for they may be others'.
		rest = strings.Replace(rest, "unsafeHttpWhitelist:\n  - "+u.Hostname()+"\n\n", "", 1)
		rest = strings.Replace(rest, "unsafeHttpWhitelist:\n  - "+u.Hostname()+"\n", "", 1)
	}
	for _, line := range n.Was {
		key := strings.TrimRight(f.ours().FindString(line), " \t=:")
		has := slices.ContainsFunc(strings.Split(rest, "\n"), func(l string) bool {
			return key != "" && strings.TrimRight(f.ours().FindString(l), " \t=:") == key
		})
		if has {
			continue
		}
		if rest != "" && !strings.HasSuffix(rest, "\n") {
			rest += "\n"
		}
		rest += line + "\n"
	}
	return rest
}

// Used is the registry that Use had a client at p use, as the marks in a file say,
// whichever state's command put them there, else the note; "" where none does.
func (k *Keeper) Used(p Place) string {
	for _, path := range p.Files() {
		if raw, err := readConfig(path); err == nil {
			if registry := marked(string(raw)); registry != "" {
				return registry
			}
		}
	}
	for _, path := range p.Files() {
		if n, err := k.note(path); err == nil {
			return n.Settings.Registry
		}
	}
	return ""
}

func (k *Keeper) notePath(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(k.Dir, hex.EncodeToString(sum[:16])+".json")
}

func (k *Keeper) note(path string) (n note, err error) {
	raw, err := read(k.notePath(path), 2*maxFile, false)
	if err == nil {
		err = json.Unmarshal(raw, &n)
	}
	if err == nil && (n.Format != noteFormat || n.File != path) {
		err = fmt.Errorf("%s: is not of this version", k.notePath(path))
	}
	return n, err
}

func (k *Keeper) keep(n note) error {
	raw, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(k.Dir, 0o700); err != nil {
		return err
	}
	return replace(k.notePath(n.File), append(raw, '\n'), nil)
}

func (k *Keeper) step(name string) error {
	if k.crash == nil {
		return nil
	}
	return k.crash(name)
}

// replace replaces a file, or what a symbolic link of that name leads to, durably: the
// old one or the new one is there, whatever happens. It keeps mode and, where that is
// allowed, owner; a new file is its owner's alone, for tokens are put into such files.
func replace(path string, data []byte, step func(string) error) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if to, err := os.Readlink(path); err == nil {
		return fmt.Errorf("%s is a symbolic link to %s, which is not there: %w", path, to, ErrEdit)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(data)
	if info, e := os.Stat(path); e == nil {
		keepOwner(f, info)
		err = errors.Join(err, f.Chmod(info.Mode().Perm()))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if step != nil {
		if err := step("staged"); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// remove removes a file, durably. One that is not there is no error.
func remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
