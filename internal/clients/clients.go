// Package clients knows where npm's clients keep their configuration, which registry
// they use by it, and how to make them use another one and take that back. What it
// adds to a file it marks there, so that whatever else stands in the file stays byte
// for byte. It knows nothing of what registries hold.
//
// Which setting goes before which other was measured with npm 11 and 12, pnpm 10 to
// 12, yarn 1 and 4 and bun 1; docs/clients.md has it.
package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Client is one of npm's clients. yarn 1 and what came after it have nothing of their
// configuration in common.
type Client string

// The clients.
const (
	NPM   Client = "npm"
	PNPM  Client = "pnpm"
	Yarn  Client = "yarn" // 2 and later
	Yarn1 Client = "yarn1"
	Bun   Client = "bun"
)

// All are the clients, in the order in which they are told of.
var All = []Client{NPM, PNPM, Yarn, Yarn1, Bun}

var (
	// ErrUnknown is returned for the name of no client.
	ErrUnknown = errors.New("not a client that is known")
	// ErrNoEvidence is returned where nothing says which clients are used.
	ErrNoEvidence = errors.New("nothing here says which client is used")
	// ErrEdit is returned for a configuration file that says things in a way that
	// cannot be changed line by line. The file is left as it was.
	ErrEdit = errors.New("this file has to be edited by hand")
)

// maxFile bounds a configuration file, maxHead what is read of a lockfile to tell whose
// it is, in bytes.
const (
	maxFile = 1 << 20
	maxHead = 4 << 10
)

// Parse is the client of a name. Error: ErrUnknown.
func Parse(name string) (Client, error) {
	if c := Client(name); slices.Contains(All, c) {
		return c, nil
	}
	return "", fmt.Errorf("%.40q: %w", name, ErrUnknown)
}

// Place is whose configuration is meant: that of the project in Project, or, where that
// is "", the user's.
type Place struct {
	Project string
	Home    string
	Getenv  func(string) string
}

// file is a configuration file of a client, and how it is written.
type file struct {
	path   string
	format format
}

// file is where a client's configuration lies. npm and pnpm share one.
func (p Place) file(c Client) file {
	project := p.Project != ""
	dir := p.Project
	if !project {
		dir = p.Home
	}
	at := func(base string, f format) file { return file{filepath.Join(dir, base), f} }
	switch c {
	case Yarn:
		return at(".yarnrc.yml", yarnrcYML)
	case Yarn1:
		return at(".yarnrc", yarnrc)
	case Bun:
		if project {
			return at("bunfig.toml", bunfig)
		}
		// Where the variable is set, bun looks nowhere else.
		if xdg := p.Getenv("XDG_CONFIG_HOME"); xdg != "" {
			dir = xdg
		}
		return at(".bunfig.toml", bunfig)
	}
	if user := p.env("npm_config_userconfig"); !project && user != "" {
		return file{user, npmrc}
	}
	return at(".npmrc", npmrc)
}

// env is an environment variable that npm reads in any case of letters.
func (p Place) env(name string) string {
	if v := p.Getenv(name); v != "" {
		return v
	}
	return p.Getenv(strings.ToUpper(name))
}

// Files are the files that the configuration of all clients lies in, each once.
func (p Place) Files() (paths []string) {
	for _, c := range All {
		if f := p.file(c).path; !slices.Contains(paths, f) {
			paths = append(paths, f)
		}
	}
	return paths
}

// Found are the clients for which there is evidence: in a project their lockfile, a
// configuration file that no other client has, or packageManager in package.json; of
// a user, a program of theirs on the path. yarn on the path may be either yarn.
func (p Place) Found() []Client {
	found := map[Client]bool{}
	if p.Project == "" {
		for program, of := range map[string][]Client{"npm": {NPM}, "pnpm": {PNPM}, "yarn": {Yarn, Yarn1}, "bun": {Bun}} {
			if onPath(p.Getenv("PATH"), program) {
				for _, c := range of {
					found[c] = true
				}
			}
		}
	} else {
		for base, c := range map[string]Client{
			"package-lock.json": NPM, "npm-shrinkwrap.json": NPM, "pnpm-lock.yaml": PNPM, "pnpm-workspace.yaml": PNPM,
			".yarnrc.yml": Yarn, ".yarnrc": Yarn1, "bun.lock": Bun, "bun.lockb": Bun, "bunfig.toml": Bun,
		} {
			if _, err := os.Stat(filepath.Join(p.Project, base)); err == nil {
				found[c] = true
			}
		}
		if head, err := read(filepath.Join(p.Project, "yarn.lock"), maxHead, true); err == nil {
			switch {
			case strings.Contains(string(head), "yarn lockfile v1"):
				found[Yarn1] = true
			case strings.Contains(string(head), "__metadata:"):
				found[Yarn] = true
			case !found[Yarn1]: // an empty one is how a project of yarn 4 is begun
				found[Yarn] = true
			}
		}
		if c, ok := packageManager(filepath.Join(p.Project, "package.json")); ok {
			found[c] = true
		}
	}
	var all []Client
	for _, c := range All {
		if found[c] {
			all = append(all, c)
		}
	}
	return all
}

func onPath(path, program string) bool {
	for _, dir := range filepath.SplitList(path) {
		info, err := os.Stat(filepath.Join(dir, program))
		if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return true
		}
	}
	return false
}

// read reads a file of at most limit bytes. With head, a longer one is cut there.
func read(path string, limit int64, head bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is no regular file", path, ErrEdit)
	}
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if int64(len(raw)) > limit {
		if !head {
			return nil, fmt.Errorf("%s: %w: it is larger than %d bytes", path, ErrEdit, limit)
		}
		raw = raw[:limit]
	}
	return raw, err
}

// readConfig reads a configuration file; one that is not there is nil.
func readConfig(path string) ([]byte, error) {
	raw, err := read(path, maxFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && raw == nil {
		raw = []byte{}
	}
	return raw, err
}

// packageManager is the client that a package.json names, as in "yarn@4.18.1".
func packageManager(path string) (Client, bool) {
	raw, err := read(path, maxFile, false)
	if err != nil {
		return "", false
	}
	var manifest struct {
		PackageManager any `json:"packageManager"`
	}
	if json.Unmarshal(raw, &manifest) != nil {
		return "", false
	}
	text, _ := manifest.PackageManager.(string)
	name, version, _ := strings.Cut(text, "@")
	if name == "yarn" && strings.HasPrefix(version, "1.") {
		return Yarn1, true
	}
	c, err := Parse(name)
	return c, err == nil
}
