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
// them. The work, and the new blocks, grow with the changes, and hardly with the
// list.
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
	now, err := readCounts(ctx, ix.db)
	if err != nil {
		return Release{}, false, err
	}
	all := now.packages
	touched, shown, err := writeEntries(b, batch.Changes, ix.parameters.Gateway != "", &now)
	if err != nil {
		return Release{}, false, err
	}
	if err := writeCounts(b, now); err != nil {
		return Release{}, false, err
	}
	sourcesMoved, err := writeSources(b, batch.Sources)
	if err != nil {
		return Release{}, false, err
	}
	same := !first && !passed && batch.Next == old.Next && slices.Equal(batch.Peers, old.Peers)
	if same && len(touched) == 0 {
		if sourcesMoved {
			err = b.Commit(pebble.Sync)
		}
		return old, false, err
	}

	keep := func(blk blocks.Block) error { return writeBlock(b, number, blk) }
	// Where most of the list changes it is cheaper to build it than to edit it.
	anew := first || len(touched) > all/anewShare
	var list built
	if anew {
		list, err = buildList(ctx, entries(ctx, b), keep)
	} else {
		list, err = editList(ctx, b, old.List, touched, keep)
	}
	if err != nil {
		return Release{}, false, err
	}
	same = same && list.list() == old.List
	front := list.root
	if ix.parameters.Gateway != "" && (shown || !same) {
		var before unixfs.Ref
		if !first {
			if before, err = frontOf(ctx, getter{b}, old.Root); err != nil {
				return Release{}, false, err
			}
		}
		if anew {
			front, err = buildFront(ctx, b, keep)
		} else {
			front, err = editFront(ctx, b, old.List, before, touched, keep)
		}
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
		Packages: now.packages, Versions: now.versions, Sources: batch.Sources, Parameters: ix.parameters,
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

// anewShare is the share of a list (one in so many) from which on as many
// changes are dearer than all of it.
const anewShare = 8

// writeEntries puts the changes into the batch, brings the counts up to date, and
// says which names have other rows than before, and whether any of them has
// another directory for a gateway. Only with gateway may an entry have one.
func writeEntries(b *pebble.Batch, changes []Change, gateway bool, now *counts) (touched []npm.Name, shown bool, err error) {
	last := make(map[npm.Name]int, len(changes))
	for i, c := range changes {
		last[c.Name] = i
	}
	for i, c := range changes {
		if err := checkChange(c, gateway); err != nil {
			return nil, false, err
		}
		if last[c.Name] != i {
			continue
		}
		old, found, err := readEntry(b, c.Name)
		if err != nil {
			return nil, false, err
		}
		switch {
		case c.Delete && !found, !c.Delete && found && old == c.Entry:
			continue
		case c.Delete:
			if err = b.Delete(entryKey(c.Name), nil); err == nil {
				err = leave(b, c.Name)
			}
			now.packages--
		default:
			if err = b.Set(entryKey(c.Name), encodeEntry(c.Entry), nil); err == nil && !found {
				err = enter(b, c.Name)
				now.packages++
			}
			now.versions += c.Versions
		}
		if err != nil {
			return nil, false, err
		}
		now.versions -= old.Versions
		touched = append(touched, c.Name)
		shown = shown || old.Gateway != c.Gateway
	}
	return touched, shown, nil
}

// checkChange refuses what the list cannot hold.
func checkChange(c Change, gateway bool) error {
	if _, err := npm.ParseName(string(c.Name)); err != nil {
		return fmt.Errorf("%w: %w", ErrEntry, err)
	}
	switch {
	case c.Delete:
		return nil
	case !usable(c.CID, c.Tsize) || c.Versions < 0:
		return fmt.Errorf("%w: %s: CID %s, Tsize %d, %d versions", ErrEntry, c.Name, c.CID, c.Tsize, c.Versions)
	case c.Gateway != unixfs.Ref{} && !(gateway && usable(c.Gateway.CID, c.Gateway.Tsize)):
		return fmt.Errorf("%w: %s: gateway's directory %s, Tsize %d", ErrEntry, c.Name, c.Gateway.CID, c.Gateway.Tsize)
	}
	return nil
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
