package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Apply makes the next release of the entries that stand after the changes, and
// moves entries, blocks, release and sources in one synced batch: a crash leaves
// all or nothing of it. Where the list, what a bare gateway shows, Next and Peers
// are as the newest release has them there is no new release; Sources move all
// the same, and changed is false. The first Apply always makes a release, if of
// an empty list, and so does one whose Batch.After this index does not have.
//
// List and front depend on the entries alone, not on the batches that led to
// them: they are built anew from all of them.
//
// An unusable change or block is an ErrEntry, Batch.After without AfterRoot an
// ErrRelease, and nothing is done.
func (ix *Index) Apply(ctx context.Context, batch Batch) (r Release, changed bool, err error) {
	if err := ix.begin(); err != nil {
		return Release{}, false, err
	}
	defer ix.end()
	ix.apply.Lock()
	defer ix.apply.Unlock()

	r, changed, err = ix.applyLocked(ctx, batch)
	if err != nil {
		return Release{}, false, fmt.Errorf("apply %d changes: %w", len(batch.Changes), err)
	}
	return r, changed, nil
}

func (ix *Index) applyLocked(ctx context.Context, batch Batch) (Release, bool, error) {
	old, err := head(ix.db)
	first := errors.Is(err, ErrNoRelease)
	if err != nil && !first {
		return Release{}, false, err
	}
	if batch.After > 0 && !batch.AfterRoot.Defined() {
		return Release{}, false, fmt.Errorf("%w: release %d, without its root", ErrRelease, batch.After)
	}
	number, previous := old.Number+1, old.Root
	passed := old.Number < batch.After || old.Number == batch.After && batch.After > 0 && old.Root != batch.AfterRoot
	if passed {
		number, previous = batch.After+1, batch.AfterRoot
	}
	b := ix.db.NewIndexedBatch()
	defer b.Close()
	touched, shown, err := writeEntries(b, batch.Changes, ix.parameters.Gateway != "")
	if err != nil {
		return Release{}, false, err
	}
	sourcesMoved, err := writeSources(b, batch.Sources)
	if err != nil {
		return Release{}, false, err
	}
	same := !first && !passed && batch.Next == old.Next && slices.Equal(batch.Peers, old.Peers)
	if same && !touched {
		if sourcesMoved {
			err = b.Commit(pebble.Sync)
		}
		return old, false, err
	}

	keep := func(blk blocks.Block) error { return writeBlock(b, number, blk) }
	list, err := buildList(ctx, entries(ctx, b), keep)
	if err != nil {
		return Release{}, false, err
	}
	same = same && list.list() == old.List
	front := list.root
	if ix.parameters.Gateway != "" && (shown || !same) {
		if front, err = buildFront(ctx, b, keep); err != nil {
			return Release{}, false, err
		}
	}
	if same && shown {
		before, err := frontOf(ctx, getter{b}, old.Root)
		if err != nil {
			return Release{}, false, err
		}
		shown = before != front
	}
	if same && !shown {
		// Only counts of versions changed, or what changed was changed back.
		// The release's own counts stay as they were until the next one; the
		// directories' blocks were there already.
		return old, false, b.Commit(pebble.Sync)
	}
	for _, blk := range batch.Blocks {
		if _, err := checkedBlock(blk.Cid(), blk.RawData()); err != nil {
			return Release{}, false, fmt.Errorf("%w: %w", ErrEntry, err)
		}
		if err := keep(blk); err != nil {
			return Release{}, false, err
		}
	}
	r := Release{
		Format: Format, Number: number, Created: batch.Now.UTC().Truncate(time.Second), Previous: previous, List: list.list(),
		Packages: list.packages, Versions: list.versions, Sources: batch.Sources, Parameters: ix.parameters,
		Policy: ix.policy, Next: batch.Next, Peers: batch.Peers,
	}
	raw, err := encodeRelease(r, false)
	if err != nil {
		return Release{}, false, err
	}
	root, err := releaseDir(ctx, getter{b}, list, front, raw, keep)
	if err != nil {
		return Release{}, false, err
	}
	r.Root = root.CID
	if raw, err = encodeRelease(r, true); err != nil {
		return Release{}, false, err
	}
	if err := b.Set(numbered(rowRelease, number), raw, nil); err != nil {
		return Release{}, false, err
	}
	// The one durable step. Before it nothing of this release exists, after it
	// all does; what the node lacks of it NewBlocks gives again.
	if err := b.Commit(pebble.Sync); err != nil {
		return Release{}, false, err
	}
	ix.log.InfoContext(ctx, "made a release", "number", r.Number, "root", r.Root.String(),
		"packages", r.Packages, "versions", r.Versions, "changes", len(batch.Changes))
	return r, true, nil
}

// writeEntries puts the changes into the batch and says whether any of them
// changes a row, and whether any changes a gateway's directory. Only with gateway
// may an entry have one.
func writeEntries(b *pebble.Batch, changes []Change, gateway bool) (touched, shown bool, err error) {
	for _, c := range changes {
		if _, err := npm.ParseName(string(c.Name)); err != nil {
			return false, false, fmt.Errorf("%w: %w", ErrEntry, err)
		}
		old, found, err := readEntry(b, c.Name)
		if err != nil {
			return false, false, err
		}
		switch {
		case c.Delete && !found, !c.Delete && found && old == c.Entry:
			continue
		case c.Delete:
			if err = b.Delete(entryKey(c.Name), nil); err == nil {
				err = leave(b, c.Name)
			}
		case !usable(c.CID, c.Tsize) || c.Versions < 0:
			err = fmt.Errorf("%w: %s: CID %s, Tsize %d, %d versions", ErrEntry, c.Name, c.CID, c.Tsize, c.Versions)
		case c.Gateway != unixfs.Ref{} && !(gateway && usable(c.Gateway.CID, c.Gateway.Tsize)):
			err = fmt.Errorf("%w: %s: gateway's directory %s, Tsize %d", ErrEntry, c.Name, c.Gateway.CID, c.Gateway.Tsize)
		default:
			if err = b.Set(entryKey(c.Name), encodeEntry(c.Entry), nil); err == nil && !found {
				err = enter(b, c.Name)
			}
		}
		if err != nil {
			return false, false, err
		}
		touched = true
		shown = shown || old.Gateway != c.Gateway
	}
	return touched, shown, nil
}

// usable tells a directory that can be linked from a list.
func usable(c cid.Cid, tsize uint64) bool {
	return c.Defined() && c.Prefix().Codec == cid.DagProtobuf && tsize <= 1<<62
}

func writeSources(b *pebble.Batch, sources []Source) (moved bool, err error) {
	old, err := readSources(b)
	if err != nil || slices.Equal(old, sources) {
		return false, err
	}
	raw, err := json.Marshal(sources)
	if err != nil {
		return false, err
	}
	return true, b.Set([]byte{rowSources}, raw, nil)
}

// writeBlock keeps a block that the index does not have yet, as one that the
// release brought.
func writeBlock(b *pebble.Batch, number uint64, blk blocks.Block) error {
	key := blockKey(blk.Cid())
	_, closer, err := b.Get(key)
	if err == nil {
		return closer.Close()
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return err
	}
	if err := b.Set(key, blk.RawData(), nil); err != nil {
		return err
	}
	return b.Set(append(numbered(rowNew, number), blk.Cid().KeyString()...), nil, nil)
}
