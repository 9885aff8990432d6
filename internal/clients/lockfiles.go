package clients

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// maxLockfile bounds a lockfile that is looked at, in bytes.
const maxLockfile = 64 << 20

// Lockfile is a client's lockfile, and where it leads.
type Lockfile struct {
	File   string
	Client Client
	// Origins are the registries whose tarballs it names by URL, as scheme://host:port,
	// and how many. What names none is looked up at whatever registry is configured.
	Origins map[string]int
}

// resolved finds URLs of tarballs in each lockfile. That of bun.lockb is not text.
var resolved = []struct {
	base   string
	client Client
	url    *regexp.Regexp
}{
	{"package-lock.json", NPM, regexp.MustCompile(`"resolved"\s*:\s*"(https?://[^"\s]+)"`)},
	{"npm-shrinkwrap.json", NPM, regexp.MustCompile(`"resolved"\s*:\s*"(https?://[^"\s]+)"`)},
	{"pnpm-lock.yaml", PNPM, regexp.MustCompile(`tarball:\s*['"]?(https?://[^\s,'"}]+)`)},
	{"yarn.lock", Yarn1, regexp.MustCompile(`(?m)^\s+resolved "?(https?://[^"\s]+)`)},
	{"yarn.lock", Yarn, regexp.MustCompile(`__archiveUrl=(https?%3A%2F%2F[^\s"&]+)`)},
	{"bun.lock", Bun, regexp.MustCompile(`\[\s*"[^"\n]+",\s*"(https?://[^"\s]+)"`)},
}

// Lockfiles are those in a project, with the tarballs of registries that they name.
// Tarballs that are no registry's, as those of a repository's host, are not counted.
func Lockfiles(project string) (all []Lockfile, err error) {
	for _, r := range resolved {
		path := filepath.Join(project, r.base)
		raw, e := read(path, maxLockfile, false)
		if errors.Is(e, fs.ErrNotExist) {
			continue
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("read lockfile: %w", e))
			continue
		}
		l := Lockfile{File: path, Client: r.client, Origins: map[string]int{}}
		for _, m := range r.url.FindAllSubmatch(raw, -1) {
			text := string(m[1])
			if r.client == Yarn {
				text, _ = url.QueryUnescape(text)
			}
			if u, err := url.Parse(text); err == nil && u.Host != "" && strings.Contains(u.Path, "/-/") {
				l.Origins[u.Scheme+"://"+u.Host]++
			}
		}
		if len(l.Origins) > 0 || r.base != "yarn.lock" {
			all = append(all, l)
		}
	}
	return all, err
}
