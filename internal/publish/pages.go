package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"

	blocks "github.com/ipfs/go-block-format"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// rebased is the registry's URL on the gateway that its index was made for, under
// the name that it has now. It is the index's own unless the key was rotated.
func (p *Publisher) rebased() string {
	made := p.o.Index.Parameters().Gateway
	for _, f := range p.o.Former {
		if origin, ok := strings.CutSuffix(made, f.IPNSName.AsPath().String()); ok {
			return origin + p.o.IPNSName.AsPath().String()
		}
	}
	return made
}

// remakePages brings every index.html from a former name of the registry to the one
// that it has: npm takes a tarball's URL only below its registry's. It goes by the
// list and not by the ledger, so that what was rolled back stays so, and says
// whether there was anything to do; the release that is then due moves
// Parameters.Gateway. A page that cannot be read stays as it is, with a warning:
// nothing is to hold a rotation up.
//
// Law, for each page of packages: the new pages are durable in the node, then one
// batch of the index has the entries. A crash makes them all again, to the same.
func (p *Publisher) remakePages(ctx context.Context, cursor ledger.Seq, newest made, by curation) (bool, error) {
	before, base := p.o.Index.Parameters().Gateway, p.rebased()
	if before == base {
		return false, nil
	}
	var all []index.Entry
	flush := func() error {
		if len(all) == 0 {
			return nil
		}
		batch, err := p.pagesOf(ctx, all, before, base)
		if err != nil {
			return err
		}
		if err := hook(p.fault, "pages durable"); err != nil {
			return err
		}
		more := p.batch(cursor, newest, by)
		more.Changes, more.Blocks, more.More = batch.Changes, batch.Blocks, true
		if _, _, err := p.o.Index.Apply(ctx, more); err != nil {
			return err
		}
		all = all[:0]
		return hook(p.fault, "pages applied")
	}
	for e, err := range p.o.Index.Entries(ctx) {
		if err != nil {
			return false, fmt.Errorf("pages of the former name: %w", err)
		}
		if !e.Gateway.CID.Defined() {
			continue
		}
		if all = append(all, e); len(all) < p.pageSize {
			continue
		}
		if err := flush(); err != nil {
			return false, fmt.Errorf("pages of the former name: %w", err)
		}
	}
	if err := flush(); err != nil {
		return false, fmt.Errorf("pages of the former name: %w", err)
	}
	p.gateway = base
	return true, nil
}

// pagesBack is remakePages for what a rollback brings back from a release that was
// made under a former name. It gives the new directories.
func (p *Publisher) pagesBack(ctx context.Context, differences []index.Difference, before string) ([]blocks.Block, error) {
	if before == p.gateway || before == "" || p.gateway == "" {
		return nil, nil
	}
	at := map[npm.Name]int{}
	var entries []index.Entry
	for i, d := range differences {
		if d.New.Gateway.CID.Defined() {
			at[d.New.Name] = i
			entries = append(entries, d.New)
		}
	}
	batch, err := p.pagesOf(ctx, entries, before, p.gateway)
	for _, c := range batch.Changes {
		differences[at[c.Name]].New = c.Entry
	}
	return batch.Blocks, err
}

// pagesOf makes the pages of entries, durably.
func (p *Publisher) pagesOf(ctx context.Context, entries []index.Entry, before, base string) (index.Batch, error) {
	made := make([]built, len(entries))
	put := &putter{node: p.o.Node}
	var g errgroup.Group
	g.SetLimit(p.o.Workers)
	for i, e := range entries {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, packageTimeout)
			defer cancel()
			b, err := p.pageOf(ctx, e, before, base)
			if ctx.Err() != nil || errors.Is(err, ipfs.ErrAway) {
				return errors.Join(err, ctx.Err())
			}
			if err != nil {
				p.o.Log.WarnContext(ctx, "a page for gateways stays with the former name", "registry", p.o.Registry, "package", string(e.Name), "error", err)
				return nil
			}
			if err := put.add(ctx, b.blocks); err != nil {
				return err
			}
			b.blocks = nil
			made[i] = b
			return nil
		})
	}
	err := g.Wait()
	if err == nil {
		err = put.flush(ctx)
	}
	if err == nil {
		err = p.checkpoint(ctx)
	}
	var batch index.Batch
	for _, b := range made {
		if b.change.Name != "" {
			batch.Changes = append(batch.Changes, b.change)
			batch.Blocks = append(batch.Blocks, b.dirs...)
		}
	}
	return batch, err
}

// pageOf makes one. What the page says beside its URLs is as it was.
func (p *Publisher) pageOf(ctx context.Context, e index.Entry, before, base string) (b built, err error) {
	files, err := index.ReadPackage(ctx, p.o.Index, e.Gateway.CID)
	if err != nil {
		return b, err
	}
	raw, err := unixfs.ReadFile(ctx, &getter{node: p.o.Node}, files.Index.CID, p.o.MaxDocument)
	if err != nil {
		return b, err
	}
	page, err := npm.Check(raw)
	if err != nil {
		return b, err
	}
	page = page.Abbreviate(npm.AbbreviateOptions{Time: true, Tarball: func(_, url string) string {
		if rest, ok := strings.CutPrefix(url, before+"/"); ok {
			return base + "/" + rest
		}
		return url
	}})
	sink := func(blk blocks.Block) error { b.blocks = append(b.blocks, blk); return nil }
	if files.Index, err = unixfs.AddChunks(document.Sections(page.Bytes()), sink); err != nil {
		return b, err
	}
	dir, gateway, err := index.PackageDir(files, func(blk blocks.Block) error {
		b.dirs = append(b.dirs, blk)
		return sink(blk)
	})
	if err != nil {
		return b, err
	}
	if dir.CID != e.CID {
		return b, fmt.Errorf("its directory is %s, not %s", dir.CID, e.CID)
	}
	e.Gateway = gateway
	b.change = index.Change{Entry: e}
	return b, nil
}
