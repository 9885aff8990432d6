package index

import (
	"fmt"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Names in a package's directory.
const (
	PackumentName = "packument.json.gz"
	InstallName   = "install.json.gz"
	IndexName     = "index.html"
	TarballsName  = "-"
)

// PackageFiles is what lies in a package's directory. A Ref without a CID is
// left out.
type PackageFiles struct {
	Packument unixfs.Ref // packument.json.gz
	Install   unixfs.Ref // install.json.gz
	Index     unixfs.Ref // index.html
	Tarballs  []unixfs.Link
}

// CollisionError names tarballs that cannot lie beside the others, since the
// hash of each collides with that of one that keeps its place. PackageDir
// succeeds without them.
type CollisionError struct{ Files []string }

func (e *CollisionError) Error() string {
	return fmt.Sprintf("%v: %s", ErrCollision, strings.Join(e.Files, ", "))
}

func (e *CollisionError) Unwrap() error { return ErrCollision }

// PackageDir makes a package's directory, with its tarballs in "-". It depends
// on the files alone. Links of tarballs that cannot be there are ErrName.
func PackageDir(docs PackageFiles, sink unixfs.Sink) (unixfs.Ref, error) {
	tarballs, over, err := unixfs.BuildDir(docs.Tarballs, unixfs.DirLimit, sink)
	if err != nil {
		return unixfs.Ref{}, fmt.Errorf("build tarball directory: %w", err)
	}
	if len(over) > 0 {
		e := new(CollisionError)
		for _, l := range over {
			e.Files = append(e.Files, l.Name)
		}
		return unixfs.Ref{}, fmt.Errorf("build tarball directory: %w", e)
	}
	links := []unixfs.Link{{Name: TarballsName, CID: tarballs.CID, Tsize: tarballs.Tsize}}
	for name, ref := range map[string]unixfs.Ref{PackumentName: docs.Packument, InstallName: docs.Install, IndexName: docs.Index} {
		if ref.CID.Defined() {
			links = append(links, unixfs.Link{Name: name, CID: ref.CID, Tsize: ref.Tsize})
		}
	}
	ref, _, err := unixfs.BuildDir(links, unixfs.DirLimit, sink)
	if err != nil {
		return unixfs.Ref{}, fmt.Errorf("build package directory: %w", err)
	}
	return ref, nil
}
