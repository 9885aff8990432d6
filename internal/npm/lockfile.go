package npm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
)

// ErrLockfile is returned for a file that is no package-lock.json.
var ErrLockfile = errors.New("not a package-lock.json")

// maxLockfile bounds a lockfile, in bytes.
const maxLockfile = 256 << 20

type locked struct {
	Name     string `json:"name"`
	Version  any    `json:"version"`
	Resolved any    `json:"resolved"` // a string; npm 6 wrote false for some
	Link     bool   `json:"link"`
	InBundle bool   `json:"inBundle"` // lockfile version 2 and 3
	Bundled  bool   `json:"bundled"`  // lockfile version 1
}

// ReadLockfile reads a package-lock.json or npm-shrinkwrap.json (lockfile
// version 1, 2 or 3, at most 256 MiB) and returns its packages from
// registries, each at its exact version, sorted and without repeats: development and optional ones too, of every
// platform. Workspaces, links, bundled packages, git and file dependencies and tarballs by
// URL are left out; the name of an alias is that of the package behind it.
// Errors wrap ErrLockfile.
func ReadLockfile(r io.Reader) ([]Spec, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxLockfile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read lockfile: %w", err)
	case len(raw) > maxLockfile:
		return nil, fmt.Errorf("%w: it is larger than %d MiB", ErrLockfile, maxLockfile>>20)
	}
	var file struct {
		Version      int               `json:"lockfileVersion"`
		Packages     map[string]locked `json:"packages"`
		Dependencies map[string]oldest `json:"dependencies"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLockfile, err)
	}
	if file.Packages == nil && file.Dependencies == nil && file.Version == 0 {
		return nil, fmt.Errorf("%w: it has neither packages nor a lockfileVersion", ErrLockfile)
	}
	var specs []Spec
	if file.Packages != nil {
		for path, p := range file.Packages {
			const dir = "node_modules/"
			at := strings.LastIndex(path, dir)
			if at < 0 || at > 0 && path[at-1] != '/' {
				continue // the project itself, or a workspace
			}
			name := path[at+len(dir):]
			if p.Name != "" {
				name = p.Name // of an alias
			}
			if specs, err = p.appendSpec(specs, name); err != nil {
				return nil, err
			}
		}
	} else if specs, err = appendOldest(nil, file.Dependencies, 0); err != nil {
		return nil, err
	}
	slices.SortFunc(specs, func(a, b Spec) int {
		return cmp.Or(strings.Compare(string(a.Name), string(b.Name)), CompareVersions(a.Range, b.Range))
	})
	return slices.Compact(specs), nil
}

// oldest is an entry of lockfile version 1, which nests.
type oldest struct {
	locked
	Dependencies map[string]oldest `json:"dependencies"`
}

func appendOldest(specs []Spec, deps map[string]oldest, depth int) ([]Spec, error) {
	if depth > 512 {
		return nil, fmt.Errorf("%w: it nests too deep", ErrLockfile)
	}
	var err error
	for name, p := range deps {
		if v, ok := p.Version.(string); ok {
			if rest, isAlias := strings.CutPrefix(v, "npm:"); isAlias {
				if at := strings.LastIndexByte(rest, '@'); at > 0 {
					name, p.Version = rest[:at], rest[at+1:]
				}
			}
		}
		if specs, err = p.appendSpec(specs, name); err != nil {
			return nil, err
		}
		if specs, err = appendOldest(specs, p.Dependencies, depth+1); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

func (p locked) appendSpec(specs []Spec, name string) ([]Spec, error) {
	version, ok := p.Version.(string)
	if !ok || p.Link || p.InBundle || p.Bundled || ParseVersion(version) != nil {
		return specs, nil // in version 1 a git or URL dependency has that as its version
	}
	if resolved, ok := p.Resolved.(string); ok && !fromRegistry(resolved) {
		return specs, nil
	}
	n, err := ParseName(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLockfile, err)
	}
	return append(specs, Spec{Name: n, Range: version}), nil
}

// fromRegistry reports whether a "resolved" URL is one that registries give
// their tarballs: the lockfile does not otherwise tell them from tarballs by URL.
func fromRegistry(resolved string) bool {
	u, err := url.Parse(resolved)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return false
	}
	return strings.Contains(u.Path, "/-/") || strings.HasPrefix(u.Path, "/download/")
}
