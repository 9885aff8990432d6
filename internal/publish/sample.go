package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// What is read back of a release, at the most. A small one is read back whole.
const (
	sampleBlocks   = 64 // of those pushed
	samplePackages = 4  // of those that changed
	sampleTarballs = 4  // of such a package
	sampleFiles    = 24 // blocks of its documents and those tarballs
	sampleAtOnce   = 8
)

// reservoir keeps most of what it is offered, each with the same chance.
type reservoir[T any] struct {
	most, offered int
	kept          []T
}

func (r *reservoir[T]) offer(v T) {
	r.offered++
	if len(r.kept) < r.most {
		r.kept = append(r.kept, v)
	} else if i := rand.IntN(r.offered); i < r.most {
		r.kept[i] = v
	}
}

// piece is a block to read back.
type piece struct {
	cid cid.Cid
	of  string   // what it is a part of
	in  npm.Name // whose documents and tarballs; "" for the index's own blocks
}

func (s piece) String() string {
	if s.in != "" {
		return fmt.Sprintf("block %s of %s of package %s", s.cid, s.of, s.in)
	}
	return fmt.Sprintf("block %s of %s", s.cid, s.of)
}

// lost tells that a node answered, and does not have a block as it should be.
func lost(err error) bool {
	return errors.Is(err, ipfs.ErrNotFound) || errors.Is(err, ipfs.ErrCorrupt)
}

// readBack reads from the node what every reader of the release begins with, some
// of the blocks that were pushed, and some of the files of packages that are other
// than in the release pinned, if that is one; and gives what it read. What the node has lost it is given
// again, so that the next run finds it; this one ends with what was lost.
func (p *Publisher) readBack(ctx context.Context, pinned cid.Cid, release index.Release, pushed []cid.Cid) (sample []piece, err error) {
	todo, err := p.entrance(ctx, release)
	if err != nil {
		return nil, err
	}
	for _, c := range pushed {
		todo = append(todo, piece{cid: c, of: "the list"})
	}
	changed, err := p.someChanged(ctx, pinned, release)
	if err != nil {
		return nil, err
	}
	var gone []piece
	var cause error
	for _, d := range changed {
		files, missing, err := p.someFiles(ctx, d)
		if err != nil && !lost(err) {
			return nil, err
		}
		todo, gone, cause = append(todo, files...), append(gone, missing...), cmp.Or(cause, err)
	}
	failed := make([]error, len(todo))
	group, ctx2 := errgroup.WithContext(ctx)
	group.SetLimit(sampleAtOnce)
	for i, s := range todo {
		group.Go(func() error {
			_, err := p.o.Node.Local(ctx2, s.cid)
			if failed[i] = err; lost(err) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	for i, err := range failed {
		if err != nil {
			gone, cause = append(gone, todo[i]), cmp.Or(cause, err)
		}
	}
	if len(gone) == 0 {
		return todo, nil
	}
	err = fmt.Errorf("read back: %s: %w", gone[0], cause)
	if n := len(gone) - 1; n > 0 {
		err = fmt.Errorf("read back: %s, and %d more that were looked at: %w", gone[0], n, cause)
	}
	err = errors.Join(err, p.putAgain(ctx, gone))
	if slices.ContainsFunc(gone, func(s piece) bool { return s.in != "" }) { // and more, most likely
		err = errors.Join(err, p.mend(ctx, pinned, release))
	}
	return nil, err
}

// witnessed fetches a sample of what the node holds through each witness: who can
// be reached by nobody publishes nothing.
func (p *Publisher) witnessed(ctx context.Context, sample []piece) error {
	if len(p.o.Witnesses) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sampleAtOnce)
	for _, w := range p.o.Witnesses {
		for _, s := range sample {
			group.Go(func() error {
				if _, err := w.Get(ctx, s.cid); err != nil {
					return fmt.Errorf("%s through %s: %w: %w", s, w.URL(), ErrUnseen, err)
				}
				return nil
			})
		}
	}
	return group.Wait()
}

// entrance is what every reader of a release begins with.
func (p *Publisher) entrance(ctx context.Context, release index.Release) ([]piece, error) {
	dir, err := unixfs.Lookup(ctx, p.o.Index, release.Root, string(reserved))
	if err != nil {
		return nil, err
	}
	file, err := unixfs.Lookup(ctx, p.o.Index, dir.CID, "release.json")
	if err != nil {
		return nil, err
	}
	return []piece{
		{cid: release.Root, of: "the release's root"}, {cid: dir.CID, of: string(reserved)}, {cid: file.CID, of: "release.json"},
		{cid: release.List.Overflow, of: "the overflow"}, {cid: release.List.Root, of: "the list's root"},
	}, nil
}

// someChanged are some of the packages that release lists and pinned does not, or
// otherwise; of all, where what pinned had is not known any more.
func (p *Publisher) someChanged(ctx context.Context, pinned cid.Cid, release index.Release) ([]index.Difference, error) {
	some := reservoir[index.Difference]{most: samplePackages}
	diff := func(before index.List) error {
		for d, err := range index.Diff(ctx, p.o.Index, before, release.List) {
			if err != nil {
				return err
			}
			if d.New.CID.Defined() {
				some.offer(d)
			}
		}
		return nil
	}
	var before index.Release
	var err error
	if pinned.Defined() {
		before, err = index.ReadRelease(ctx, p.o.Index, pinned)
	}
	if err == nil {
		err = diff(before.List)
	}
	if errors.Is(err, index.ErrNoBlock) { // collected, or in part
		some = reservoir[index.Difference]{most: samplePackages}
		err = diff(index.List{})
	}
	if err != nil {
		return nil, err
	}
	for i, d := range some.kept {
		e, err := index.ReadEntry(ctx, p.o.Index, release, d.New.Name)
		if err != nil {
			return nil, err
		}
		some.kept[i].New = e
	}
	return some.kept, nil
}

// someFiles are blocks of a package's documents and tarballs, those apart that it
// had before. Inner nodes are read on the way: gone are those that are lost.
func (p *Publisher) someFiles(ctx context.Context, d index.Difference) (some, gone []piece, err error) {
	files, err := index.ReadPackage(ctx, p.o.Index, d.New.CID)
	if err != nil {
		return nil, nil, err
	}
	had := map[cid.Cid]bool{}
	if d.Old.CID.Defined() {
		before, err := index.ReadPackage(ctx, p.o.Index, d.Old.CID)
		if err != nil && !errors.Is(err, index.ErrNoBlock) {
			return nil, nil, err
		}
		for _, l := range before.Tarballs {
			had[l.CID] = true
		}
		had[before.Packument.CID], had[before.Install.CID] = true, true
	}
	todo := []piece{{cid: files.Packument.CID, of: index.PackumentName}, {cid: files.Install.CID, of: index.InstallName}}
	if d.New.Gateway.CID.Defined() {
		shown, err := index.ReadPackage(ctx, p.o.Index, d.New.Gateway.CID)
		if err != nil {
			return nil, nil, err
		}
		todo = append(todo, piece{cid: shown.Index.CID, of: index.IndexName})
	}
	tarballs := reservoir[piece]{most: sampleTarballs}
	for _, l := range files.Tarballs {
		if !had[l.CID] {
			tarballs.offer(piece{cid: l.CID, of: l.Name})
		}
	}
	todo = append(todo, tarballs.kept...)
	todo = slices.DeleteFunc(todo, func(s piece) bool { return !s.cid.Defined() || had[s.cid] })

	leaves := reservoir[piece]{most: sampleFiles}
	for ; len(todo) > 0; todo = todo[1:] {
		s := todo[0]
		s.in = d.New.Name
		if s.cid.Type() == cid.Raw {
			leaves.offer(s)
			continue
		}
		b, err2 := p.o.Node.Local(ctx, s.cid)
		if lost(err2) {
			gone, err = append(gone, s), cmp.Or(err, err2)
			continue
		}
		var children []cid.Cid
		if err2 == nil {
			children, err2 = unixfs.Children(b)
		}
		if err2 != nil {
			return nil, nil, fmt.Errorf("read back %s: %w", s, err2)
		}
		for _, c := range children {
			todo = append(todo, piece{cid: c, of: s.of})
		}
	}
	return leaves.kept, gone, err
}

// putAgain gives the node what it has lost, durably: blocks that the index has, and
// documents, built anew. Tarballs are the follower's to fetch.
func (p *Publisher) putAgain(ctx context.Context, gone []piece) error {
	put := &putter{node: p.o.Node}
	var packages []ledger.Change
	for _, s := range gone {
		if s.in == "" {
			b, err := p.o.Index.Get(ctx, s.cid)
			if err == nil {
				err = put.add(ctx, []blocks.Block{b})
			}
			if err != nil {
				return fmt.Errorf("put again: %w", err)
			}
		} else if !slices.ContainsFunc(packages, func(c ledger.Change) bool { return c.Name == s.in }) {
			packages = append(packages, ledger.Change{Name: s.in})
		}
	}
	by, err := p.curation()
	if err == nil {
		_, err = p.buildAll(ctx, by, packages, put, func() {})
	}
	// Of several packages one may have no upstream document any more.
	if err = errors.Join(err, put.flush(ctx)); err == nil {
		err = p.o.Node.Checkpoint(ctx)
	}
	if err != nil {
		return fmt.Errorf("put again: %w", err)
	}
	return nil
}
