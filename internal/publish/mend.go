package publish

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// mendAtOnce is how many lost documents are built together.
const mendAtOnce = 256

// mend looks for documents that the node has lost, of packages that release lists
// and pinned, if that is one, does not or otherwise; and gives them to it again. So it
// is where a build was cut short, and the node collected its garbage before the next
// run: nothing holds what is built until it is pinned.
func (p *Publisher) mend(ctx context.Context, pinned cid.Cid, release index.Release) error {
	var before index.List
	if pinned.Defined() {
		r, err := index.ReadRelease(ctx, p.o.Index, pinned)
		if err != nil {
			return err
		}
		before = r.List
	}
	var gone []piece
	for d, err := range index.Diff(ctx, p.o.Index, before, release.List) {
		if err != nil {
			return err
		}
		if !d.New.CID.Defined() {
			continue
		}
		e, err := index.ReadEntry(ctx, p.o.Index, release, d.New.Name)
		if err != nil {
			return err
		}
		is, err := p.lostDocument(ctx, e)
		if err != nil {
			return fmt.Errorf("documents of %s: %w", e.Name, err)
		}
		if is {
			gone = append(gone, piece{of: index.PackumentName, in: e.Name})
		}
		if len(gone) == mendAtOnce {
			if err := p.putAgain(ctx, gone); err != nil {
				return err
			}
			gone = gone[:0]
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return p.putAgain(ctx, gone)
}

// lostDocument says whether the node lacks a block of a package's documents.
func (p *Publisher) lostDocument(ctx context.Context, e index.Entry) (bool, error) {
	dir := e.CID
	if e.Gateway.CID.Defined() {
		dir = e.Gateway.CID // the same, and index.html
	}
	files, err := index.ReadPackage(ctx, p.o.Index, dir)
	if err != nil {
		return false, err
	}
	for _, doc := range []cid.Cid{files.Packument.CID, files.Install.CID, files.Index.CID} {
		if !doc.Defined() {
			continue
		}
		for _, err := range unixfs.Beyond(ctx, offline{p.o.Node}, cid.Undef, doc) {
			if lost(err) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// pinOrMend pins a release. Where the node lacks some of it, what can be built is
// given to it again, for the next run to pin; the error is of the pin.
func (p *Publisher) pinOrMend(ctx context.Context, near, pinned cid.Cid, release index.Release) error {
	err := p.o.Node.Pin(ctx, p.label, near, release.Root)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("pin %s: %w", release.Root, err)
	if lost(err) {
		err = errors.Join(err, p.mend(ctx, pinned, release))
	}
	return err
}
