package index

import (
	"context"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"

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
	Index     unixfs.Ref // index.html, in the gateway's directory only
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

// PackageDir makes a package's directory, with its tarballs in "-", and of the
// same files and index.html the one that a bare gateway shows; gateway is zero
// where there is no index.html. Both depend on the files alone. Links of
// tarballs that cannot be there are ErrName.
func PackageDir(docs PackageFiles, sink unixfs.Sink) (dir, gateway unixfs.Ref, err error) {
	tarballs, over, err := unixfs.BuildDir(docs.Tarballs, unixfs.DirLimit, sink)
	if err != nil {
		return dir, gateway, fmt.Errorf("build tarball directory: %w", err)
	}
	if len(over) > 0 {
		e := new(CollisionError)
		for _, l := range over {
			e.Files = append(e.Files, l.Name)
		}
		return dir, gateway, fmt.Errorf("build tarball directory: %w", e)
	}
	links := []unixfs.Link{{Name: TarballsName, CID: tarballs.CID, Tsize: tarballs.Tsize}}
	add := func(name string, ref unixfs.Ref) {
		if ref.CID.Defined() {
			links = append(links, unixfs.Link{Name: name, CID: ref.CID, Tsize: ref.Tsize})
		}
	}
	add(PackumentName, docs.Packument)
	add(InstallName, docs.Install)
	if dir, _, err = unixfs.BuildDir(links, unixfs.DirLimit, sink); err != nil {
		return dir, gateway, fmt.Errorf("build package directory: %w", err)
	}
	if docs.Index.CID.Defined() {
		add(IndexName, docs.Index)
		if gateway, _, err = unixfs.BuildDir(links, unixfs.DirLimit, sink); err != nil {
			return dir, gateway, fmt.Errorf("build gateway directory: %w", err)
		}
	}
	return dir, gateway, nil
}

// ReadPackage reads a package's directory, also one that a bare gateway shows. A
// Ref without a CID is of a file that is not there; Size is not known. What
// PackageDir does not write is passed over.
func ReadPackage(ctx context.Context, g unixfs.Getter, dir cid.Cid) (files PackageFiles, err error) {
	tarballs := cid.Undef
	for l, err := range unixfs.List(ctx, g, dir) {
		if err != nil {
			return PackageFiles{}, fmt.Errorf("read package: %w", err)
		}
		ref := unixfs.Ref{CID: l.CID, Tsize: l.Tsize}
		switch l.Name {
		case PackumentName:
			files.Packument = ref
		case InstallName:
			files.Install = ref
		case IndexName:
			files.Index = ref
		case TarballsName:
			tarballs = l.CID
		}
	}
	if !tarballs.Defined() {
		return files, nil
	}
	for l, err := range unixfs.List(ctx, g, tarballs) {
		if err != nil {
			return PackageFiles{}, fmt.Errorf("read package: %w", err)
		}
		files.Tarballs = append(files.Tarballs, l)
	}
	return files, nil
}
