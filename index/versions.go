package index

import (
	"context"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// What changed of a package.
const (
	IsNew     = "new"
	IsChanged = "changed"
	IsGone    = "gone"
	// IsSame is of a package of which there is something else to say.
	IsSame = "unchanged"
)

// PackageChange says what a Difference is to people, by what lies in the package's
// directories.
type PackageChange struct {
	Name     npm.Name `json:"name"`
	Change   string   `json:"change"`                     // IsNew, IsChanged, IsGone or IsSame
	Old      string   `json:"old,omitempty"`              // CID of the directory, "" where there was none
	New      string   `json:"new,omitempty"`              // CID of the directory, "" where there is none
	Added    []string `json:"added,omitempty"`            // versions
	Removed  []string `json:"removed,omitempty"`          // versions
	Replaced []string `json:"replaced,omitempty"`         // versions with another tarball, which no follower stores
	Unknown  bool     `json:"versions_unknown,omitempty"` // a directory cannot be had
}

// Package reads both directories of a difference. Where one cannot be had the error is
// g's, and all but the versions is said, with Unknown.
func (d Difference) Package(ctx context.Context, g unixfs.Getter) (PackageChange, error) {
	c := PackageChange{Name: d.New.Name, Change: IsChanged, Old: text(d.Old.CID), New: text(d.New.CID)}
	switch {
	case c.Old == "":
		c.Change = IsNew
	case c.New == "":
		c.Change = IsGone
	}
	old, err := Tarballs(ctx, g, d.Old)
	if err == nil {
		var now map[string]cid.Cid
		if now, err = Tarballs(ctx, g, d.New); err == nil {
			c.compare(old, now)
		}
	}
	c.Unknown = err != nil
	return c, err
}

func (c *PackageChange) compare(old, now map[string]cid.Cid) {
	for version, file := range old {
		switch {
		case !now[version].Defined():
			c.Removed = append(c.Removed, version)
		case now[version] != file:
			c.Replaced = append(c.Replaced, version)
		}
	}
	for version := range now {
		if !old[version].Defined() {
			c.Added = append(c.Added, version)
		}
	}
	for _, versions := range [][]string{c.Added, c.Removed, c.Replaced} {
		slices.SortFunc(versions, npm.CompareVersions)
	}
}

// Words are sign and name, then what is given, then the versions, each with its sign:
// + for new, ~ for other, - for gone.
func (c PackageChange) Words(more ...string) []string {
	words := append([]string{map[string]string{IsNew: "+", IsChanged: "~", IsGone: "-", IsSame: "="}[c.Change], string(c.Name)}, more...)
	for _, some := range []struct {
		sign     string
		versions []string
	}{{"+", c.Added}, {"~", c.Replaced}, {"-", c.Removed}} {
		for _, v := range some.versions {
			words = append(words, some.sign+v)
		}
	}
	return words
}

// Tarballs are those in an entry's directory, by version; none for an entry without a
// CID.
func Tarballs(ctx context.Context, g unixfs.Getter, e Entry) (map[string]cid.Cid, error) {
	if !e.CID.Defined() {
		return nil, nil
	}
	files, err := ReadPackage(ctx, g, e.CID)
	all := make(map[string]cid.Cid, len(files.Tarballs))
	for _, l := range files.Tarballs {
		all[VersionOf(e.Name, l.Name)] = l.CID
	}
	return all, err
}

// VersionOf is the version of which a package's directory has the tarball file:
// what its name says, else the name itself.
func VersionOf(name npm.Name, file string) string {
	version, ok := strings.CutPrefix(file, name.Base()+"-")
	for _, end := range []string{".tgz", ".tar.gz", ".tar"} {
		if v, cut := strings.CutSuffix(version, end); cut && ok && npm.ParseVersion(v) == nil {
			return v
		}
	}
	return file
}
