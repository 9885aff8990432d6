package index

import (
	"context"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Names in a release's directory.
const (
	registryName = unixfs.Reserved
	releaseName  = "release.json"
	listName     = "list"
	overflowName = "overflow"
)

// built is a list with what else a release says of it.
type built struct {
	root, overflow     unixfs.Ref
	packages, versions int
}

func (b built) list() List { return List{Root: b.root.CID, Overflow: b.overflow.CID} }

// buildList makes the list's directories of entries that come in the order of
// their names, each name once.
func buildList(ctx context.Context, entries iter.Seq2[Entry, error], sink unixfs.Sink) (built, error) {
	out, overflow, err := buildRoot(ctx, entries, sink)
	if err != nil {
		return built{}, err
	}
	if out.overflow, err = unixfs.BasicDir(overflow, sink); err != nil {
		return built{}, fmt.Errorf("build overflow: %w", err)
	}
	return out, nil
}

// buildFront makes what a bare gateway shows of the entries. It has the list's
// shape; those whose hash collides it does not have, for no gateway reads an
// overflow.
func buildFront(ctx context.Context, r pebble.Reader, sink unixfs.Sink) (unixfs.Ref, error) {
	b, _, err := buildRoot(ctx, gatewayEntries(ctx, r), sink)
	return b.root, err
}

// buildRoot makes the root. A scope is a directory of its own in it.
//
// Names whose hash collides with another's in their directory are left out of
// it and come back for the overflow, as BuildDir decides; so does a name in the
// root that collides with "_registry", which releaseDir puts into a directory of
// this shape. In the overflow, always one basic block, a scoped name stands as
// "@scope%2fname" and a whole scope as "@scope".
func buildRoot(ctx context.Context, entries iter.Seq2[Entry, error], sink unixfs.Sink) (out built, overflow []unixfs.Link, err error) {
	var top unixfs.Bulk
	var inScope []unixfs.Link
	scope := ""
	reserved := unixfs.Hash(registryName)
	addTop := func(l unixfs.Link) error {
		if unixfs.Hash(l.Name) == reserved {
			overflow = append(overflow, l)
			return nil
		}
		return top.Add(l)
	}
	closeScope := func() error {
		if scope == "" {
			return nil
		}
		ref, over, err := unixfs.BuildDir(inScope, unixfs.DirLimit, sink)
		if err != nil {
			return fmt.Errorf("build scope %s: %w", scope, err)
		}
		for _, l := range over {
			l.Name = place{scope, l.Name}.overflow()
			overflow = append(overflow, l)
		}
		inScope = inScope[:0]
		return addTop(unixfs.Link{Name: scope, CID: ref.CID, Tsize: ref.Tsize})
	}
	for e, err := range entries {
		if err != nil {
			return built{}, nil, err
		}
		if err := ctx.Err(); err != nil {
			return built{}, nil, err
		}
		if s := e.Name.Scope(); s != scope {
			if err := closeScope(); err != nil {
				return built{}, nil, err
			}
			scope = s
		}
		l := unixfs.Link{Name: e.Name.Base(), CID: e.CID, Tsize: e.Tsize}
		if scope != "" {
			inScope = append(inScope, l)
		} else if err := addTop(l); err != nil {
			return built{}, nil, err
		}
		out.packages++
		out.versions += e.Versions
	}
	if err := closeScope(); err != nil {
		return built{}, nil, err
	}
	var over []unixfs.Link
	if out.root, over, err = top.Build(sink); err != nil {
		return built{}, nil, fmt.Errorf("build root: %w", err)
	}
	return out, append(overflow, over...), nil
}

// frontOf is the front in the release's directory root. Those of its directories
// that are not the release's own, for "_registry" is not in them, go to sink.
func frontOf(ctx context.Context, g unixfs.Getter, root cid.Cid, sink unixfs.Sink) (unixfs.Ref, error) {
	ed, err := unixfs.Edit(ctx, g, root, []unixfs.Link{{Name: registryName}}, sink, nil)
	return ed.Ref, err
}

// discard is a sink for what is there already.
func discard(blocks.Block) error { return nil }

// releaseDir makes the release's directory: front, which is the list's root or
// what a bare gateway shows instead, with "_registry" in it, in which lie the list,
// release.json and more. g gives front's blocks.
func releaseDir(ctx context.Context, g unixfs.Getter, b built, front unixfs.Ref, release []byte, more []unixfs.Link, sink unixfs.Sink) (unixfs.Ref, error) {
	file, err := unixfs.AddChunks([][]byte{release}, sink)
	if err != nil {
		return unixfs.Ref{}, err
	}
	dir, err := unixfs.BasicDir(append([]unixfs.Link{
		{Name: listName, CID: b.root.CID, Tsize: b.root.Tsize},
		{Name: overflowName, CID: b.overflow.CID, Tsize: b.overflow.Tsize},
		{Name: releaseName, CID: file.CID, Tsize: file.Tsize},
	}, more...), sink)
	if err != nil {
		return unixfs.Ref{}, err
	}
	ed, err := unixfs.Edit(ctx, g, front.CID, []unixfs.Link{{Name: registryName, CID: dir.CID, Tsize: dir.Tsize}}, sink, nil)
	return ed.Ref, err
}
