// Package lockfile reads what npm, pnpm, yarn and bun lock a project's packages
// in: package-lock.json and npm-shrinkwrap.json (lockfileVersion 1 to 3),
// pnpm-lock.yaml (6 to 9), yarn.lock (of yarn 1, and of yarn 2 and later) and
// bun.lock. It knows them by what is in them and not by their names, and knows
// nothing of registries.
package lockfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

var (
	// ErrFormat is returned for a file that is no lockfile, or a broken one.
	ErrFormat = errors.New("not a lockfile that can be read")
	// ErrBinary is returned for a bun.lockb, which bun alone can read.
	ErrBinary = errors.New("it is bun's binary lockfile: `bun install --save-text-lockfile` writes it as text")
)

// Bounds of a lockfile, in bytes. A YAML one takes some fifty times its size in
// memory while it is read.
const (
	maxLockfile = 256 << 20
	maxYAML     = 16 << 20
)

// File is what a lockfile locks.
type File struct {
	// Format is the name that its client gives it: "package-lock.json",
	// "pnpm-lock.yaml", "yarn.lock" or "bun.lock".
	Format string
	// Packages are those of registries, each version once, sorted by name and
	// version: development and optional ones too, of every platform.
	Packages []Package
	// Foreign are those that no registry has, sorted.
	Foreign []Foreign
	// Ranges are those of packages of registries by which the project and its workspaces
	// ask for them, each once and sorted; of yarn, which does not tell those from others,
	// all. An npm lockfile of version 1 has none.
	Ranges []npm.Spec
}

// Package is one version of a package of a registry. The name of an alias is
// that of the package behind it.
type Package struct {
	Name    npm.Name
	Version string // exact, as npm.ParseVersion takes it
	// Integrity is a list of SRI hashes, or "" where the lockfile has none:
	// yarn 2 and later lock another archive than the registry's.
	Integrity string
}

// Foreign is an entry that no registry has.
type Foreign struct {
	Name string // as the lockfile has it, which may be any text
	Kind Kind
}

// Kind is where an entry that no registry has comes from.
type Kind string

// What is bundled in another package, and yarn's patches of packages that are
// entries themselves, are no entries of their own.
const (
	Workspace Kind = "workspace" // of the project itself, or linked to
	Git       Kind = "git"
	Local     Kind = "file" // an archive or a folder
	URL       Kind = "URL"  // an archive
	Unknown   Kind = "unknown"
)

func (f Foreign) String() string { return fmt.Sprintf("%.100q (%s)", f.Name, f.Kind) }

// Specs are f's packages as exact specs.
func (f *File) Specs() []npm.Spec {
	specs := make([]npm.Spec, len(f.Packages))
	for i, p := range f.Packages {
		specs[i] = npm.Spec{Name: p.Name, Range: p.Version}
	}
	return specs
}

// Open reads the lockfile at path. Errors are those of Read, with the path.
func Open(path string) (*File, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read lockfile: %w", err)
	}
	defer in.Close()
	f, err := Read(in)
	if err != nil {
		return nil, fmt.Errorf("read lockfile %s: %w", path, err)
	}
	return f, nil
}

// Read reads a lockfile of at most 256 MiB, or 16 MiB if it is YAML. It returns
// ErrBinary, or errors that wrap ErrFormat with the line where it is known.
func Read(r io.Reader) (*File, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxLockfile+1))
	switch {
	case err != nil:
		return nil, err
	case len(raw) > maxLockfile:
		return nil, fmt.Errorf("%w: it is larger than %d MiB", ErrFormat, maxLockfile>>20)
	}
	raw = bytes.TrimPrefix(raw, []byte("\ufeff"))
	f := &File{}
	switch start := bytes.TrimSpace(raw[:min(len(raw), 4<<10)]); {
	case len(start) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrFormat)
	case bytes.HasPrefix(start, []byte("#!/usr/bin/env bun\nbun-lockfile-format-")):
		return nil, ErrBinary
	case start[0] == '{', bytes.HasPrefix(start, []byte("//")), bytes.HasPrefix(start, []byte("/*")):
		err = f.readJSON(raw)
	case bytes.Contains(start, []byte("# yarn lockfile v1")):
		err = f.readYarn1(raw)
	default:
		err = f.readYAML(raw)
	}
	if err != nil {
		return nil, err
	}
	f.settle()
	return f, nil
}

// settle sorts what was found, and joins what was found twice.
func (f *File) settle() {
	slices.SortFunc(f.Packages, func(a, b Package) int {
		return cmp.Or(strings.Compare(string(a.Name), string(b.Name)), npm.CompareVersions(a.Version, b.Version),
			strings.Compare(a.Version, b.Version), strings.Compare(a.Integrity, b.Integrity))
	})
	once := f.Packages[:0]
	for _, p := range f.Packages {
		last := len(once) - 1
		if last < 0 || once[last].Name != p.Name || once[last].Version != p.Version {
			once = append(once, p)
			continue
		}
		if have := strings.Fields(once[last].Integrity); p.Integrity != "" && !slices.Contains(have, p.Integrity) {
			once[last].Integrity = strings.Join(append(have, p.Integrity), " ")
		}
	}
	f.Packages = once
	slices.SortFunc(f.Foreign, func(a, b Foreign) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Kind), string(b.Kind)))
	})
	f.Foreign = slices.Compact(f.Foreign)
	slices.SortFunc(f.Ranges, func(a, b npm.Spec) int {
		return cmp.Or(strings.Compare(string(a.Name), string(b.Name)), strings.Compare(a.Range, b.Range))
	})
	f.Ranges = slices.Compact(f.Ranges)
}

// catalogs are ranges by the names of packages, by the name of the catalog that has them:
// pnpm and bun have a workspace say "catalog:" in the place of a range.
type catalogs map[string]map[string]string

// ask takes what the project or a workspace asks for.
func (f *File) ask(of map[string]string, by catalogs) {
	for name, rng := range of {
		if from, ok := strings.CutPrefix(rng, "catalog:"); ok {
			of[name] = by[cmp.Or(from, "default")][name]
			if of[name] == "" {
				delete(of, name)
			}
		}
	}
	f.Ranges = append(f.Ranges, npm.Dependencies(of)...)
}

// askSpec takes a range as yarn writes it, "express@^4.0.0" or "express@npm:^4.0.0".
func (f *File) askSpec(spec string) {
	name, rng, ok := cutName(spec)
	if !ok {
		return
	}
	rng, _, _ = strings.Cut(rng, "::") // which binds it to an archive
	if plain, ok := strings.CutPrefix(rng, "npm:"); ok && !strings.Contains(plain, "@") {
		rng = plain // yarn 2 and later; else an alias
	}
	f.ask(map[string]string{name: rng}, nil)
}

// add takes a package of a registry.
func (f *File) add(name, version, integrity string) error {
	n, err := npm.ParseName(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f.Packages = append(f.Packages, Package{n, version, integrity})
	return nil
}

// addFrom takes an entry whose version, or place, is from.
func (f *File) addFrom(name, from, integrity string) error {
	if npm.ParseVersion(from) == nil {
		return f.add(name, from, integrity)
	}
	f.Foreign = append(f.Foreign, Foreign{name, kindOf(from)})
	return nil
}

// kindOf is what a place that is no version is: each client writes it as npm
// does in package.json, or as its own protocol.
func kindOf(from string) Kind {
	for _, k := range []struct {
		kind     Kind
		prefixes []string
	}{
		{Workspace, []string{"workspace:", "link:", "portal:", "root:"}},
		{Git, []string{"git+", "git:", "git@", "github:", "gitlab:", "bitbucket:", "gist:", "ssh:"}},
		{Local, []string{"file:", ".", "/"}},
		{URL, []string{"https:", "http:"}},
	} {
		if slices.ContainsFunc(k.prefixes, func(p string) bool { return strings.HasPrefix(from, p) }) {
			return k.kind
		}
	}
	return Unknown
}

// cutName splits "name@rest" and "@scope/name@rest".
func cutName(s string) (name, rest string, ok bool) {
	if len(s) < 2 {
		return "", "", false
	}
	at := strings.IndexByte(s[1:], '@') + 1
	if at == 0 {
		return "", "", false
	}
	return s[:at], s[at+1:], true
}
