package follow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// putBlocks is how many blocks one Put takes: of a batch's items most have one,
// and those with more are bounded by their bytes.
const putBlocks = 4 * gatherItems

// put hands blocks to the node in portions that it takes.
func (f *Follower) put(ctx context.Context, blks []blocks.Block) error {
	for len(blks) > 0 {
		n, size := 0, 0
		for n < len(blks) && n < putBlocks && (n == 0 || size+len(blks[n].RawData()) <= gatherBytes) {
			size += len(blks[n].RawData())
			n++
		}
		if err := f.node.Put(ctx, blks[:n]); err != nil {
			return own(fmt.Errorf("put %d blocks: %w", n, err))
		}
		blks = blks[n:]
	}
	return nil
}

// holdLabel is what the node knows the follower's roots by.
const holdLabel = "follower"

// store makes items durable. The order is law 2, content before names:
//
//  1. Hold: the roots are safe from a garbage collection.
//  2. Put: the blocks are with the node.
//  3. Checkpoint: they survive a power cut.
//  4. Commit: one synced batch names them and moves the cursor.
//
// A crash before 4 leaves blocks that nothing names, and a cursor, a queue and a
// selection that bring the same work again, to the same CIDs. A crash after it
// leaves nothing undone.
//
// bring is 1 and 2, settle 3 and 4. One batch may be brought while others are
// settled (see gathering): 3 covers a batch only where it began after 2 had
// ended, and only where no checkpoint failed since 2 began. One that failed may
// have lost what others put.
func (f *Follower) store(ctx context.Context, items []item, cursor *ledger.Cursor) error {
	if len(items) == 0 && cursor == nil {
		return nil
	}
	b, err := f.bring(ctx, items)
	if err != nil {
		return err
	}
	return f.settle(ctx, []brought{b}, cursor)
}

// brought is a batch whose blocks are with the node, not yet durable.
type brought struct {
	items  []item
	dirty  bool      // it has blocks
	roots  []cid.Cid // that were held for them, until they are settled
	failed int64     // checkpoints that had failed before they were put
	done   func(error)
}

// bring holds what items bring and puts it.
func (f *Follower) bring(ctx context.Context, items []item) (_ brought, err error) {
	b := brought{items: items, failed: f.failedCheckpoints.Load()}
	var blks []blocks.Block
	var roots []cid.Cid
	ahead := false
	for i := range items {
		it := &items[i]
		blks = append(blks, it.blocks...)
		ahead = ahead || it.ahead
		if it.version != nil {
			roots = append(roots, it.version.CID)
		}
		if it.paper != nil && len(it.blocks) > 0 {
			roots = append(roots, it.paper.ref.CID)
		}
		it.blocks = nil
	}
	if b.dirty = len(blks) > 0 || ahead; !b.dirty {
		return b, nil
	}
	if err := f.roots.come(ctx, roots); err != nil {
		return b, err
	}
	defer func() {
		if err != nil {
			f.roots.came(roots)
		}
	}()
	b.roots = roots
	if err := f.node.Hold(ctx, holdLabel, roots); err != nil {
		return b, own(fmt.Errorf("hold %d roots: %w", len(roots), err))
	}
	if err := f.put(ctx, blks); err != nil {
		return b, err
	}
	if ahead {
		return b, f.checkAhead(ctx, items)
	}
	return b, nil
}

// settle makes batches durable, together, and commits them, in their order.
func (f *Follower) settle(ctx context.Context, batches []brought, cursor *ledger.Cursor) error {
	defer func() {
		for _, b := range batches {
			f.roots.came(b.roots)
		}
	}()
	if err := f.checkpoint(ctx, batches); err != nil {
		return err
	}
	var items []item
	for _, b := range batches {
		items = append(items, b.items...)
	}
	return f.commit(ctx, items, cursor)
}

// errCheckpoint is for a batch that was put when another's checkpoint failed.
var errCheckpoint = errors.New("a checkpoint failed after the blocks were put")

// checkpoint makes the blocks of batches durable, or fails.
func (f *Follower) checkpoint(ctx context.Context, batches []brought) error {
	if !slices.ContainsFunc(batches, func(b brought) bool { return b.dirty }) {
		return nil
	}
	f.checkpointing.Lock()
	defer f.checkpointing.Unlock()
	if err := f.node.Checkpoint(ctx); err != nil {
		f.failedCheckpoints.Add(1)
		return own(fmt.Errorf("checkpoint of the node: %w", err))
	}
	for _, b := range batches {
		if b.dirty && b.failed != f.failedCheckpoints.Load() {
			return own(errCheckpoint)
		}
	}
	return nil
}

// commit writes items and cursor to the ledger as one batch.
func (f *Follower) commit(ctx context.Context, items []item, cursor *ledger.Cursor) error {
	f.recording.Lock()
	defer f.recording.Unlock()
	batch, err := f.batch(ctx, items)
	if err != nil {
		return err
	}
	batch.Cursor = cursor
	if _, err := f.ledger.Commit(ctx, batch); err != nil {
		return own(fmt.Errorf("commit %d items: %w", len(items), err))
	}
	for _, it := range items {
		if r := it.refused; r != nil && !it.again {
			f.log.WarnContext(ctx, "refused", "package", r.Name, "version", r.Version, "reason", r.Reason, "detail", r.Detail)
		}
		for _, r := range it.queue {
			if !r.Fresh() {
				f.log.InfoContext(ctx, "to be tried again", "package", r.Name, "version", r.Version, "attempts", r.Attempts, "next", r.Next, "detail", r.Detail)
			}
		}
	}
	f.count(batch)
	if len(batch.Packages) > 0 {
		f.stored()
	}
	return nil
}

// count notes what a commit did.
func (f *Follower) count(b ledger.Batch) {
	versions, bytes := 0, uint64(0)
	for _, u := range b.Packages {
		versions += len(u.Versions)
		for _, v := range u.Versions {
			bytes += v.Size
		}
	}
	f.note(func(s *seen) { s.count(f.now(), len(b.Done)+len(b.Refused), versions, bytes) })
}

// checkAhead sends tarballs back to the queue that a garbage collection cut
// into: some of their blocks were put before anything held them.
func (f *Follower) checkAhead(ctx context.Context, items []item) error {
	for i := range items {
		it := &items[i]
		if !it.ahead {
			continue
		}
		err := f.whole(ctx, it.version.CID)
		if err != nil && !lost(err) {
			return own(err)
		}
		if err != nil {
			row := ledger.Retry{Name: it.name, Version: it.version.Version, Next: f.now(), Detail: detail(err)}
			items[i] = item{name: it.name, queue: []ledger.Retry{row}}
		}
	}
	return nil
}

// batch turns items into what the ledger writes. The caller holds recording:
// the ledger's rows do not move between what is read here and the commit.
//
// The promise kept here is that a package's document names every version that
// is recorded as stored, also when two passes saw different documents: an older
// document never replaces a newer one, and a version goes in only under a
// document that names it.
func (f *Follower) batch(ctx context.Context, items []item) (ledger.Batch, error) {
	var b ledger.Batch
	byName := make(map[npm.Name][]item)
	var order []npm.Name
	// Rows that come into the queue, by item: one that is done or refused
	// within this batch never gets there.
	queue := make(map[ledger.Key]ledger.Retry)
	for _, it := range items {
		if it.paper != nil || it.version != nil || it.gone != "" {
			if byName[it.name] == nil {
				order = append(order, it.name)
			}
			byName[it.name] = append(byName[it.name], it)
		}
		for _, d := range it.done {
			delete(queue, d.Key)
		}
		b.Done = append(b.Done, it.done...)
		b.Pardoned = append(b.Pardoned, it.pardon...)
		if r := it.refused; r != nil {
			delete(queue, ledger.Key{Name: r.Name, Version: r.Version})
			b.Refused = append(b.Refused, *r)
		}
		for _, r := range it.queue {
			queue[ledger.Key{Name: r.Name, Version: r.Version}] = r
		}
	}
	for _, name := range order {
		u, err := f.update(ctx, name, byName[name])
		if err != nil {
			return b, err
		}
		b.Packages = append(b.Packages, u.packages...)
		b.Refused = append(b.Refused, u.refused...)
		for _, r := range u.queue {
			queue[ledger.Key{Name: r.Name, Version: r.Version}] = r
		}
	}
	for _, r := range queue {
		b.Retries = append(b.Retries, r)
	}
	return b, nil
}

// updates is what a batch says of one package.
type updates struct {
	packages []ledger.PackageUpdate
	queue    []ledger.Retry
	refused  []ledger.Refusal
}

// update is what items say of one package, in their order; nothing where the
// ledger knows better by now. Versions of which nobody can tell, because the
// node lost the document that would name them, go back to the queue.
func (f *Follower) update(ctx context.Context, name npm.Name, items []item) (all updates, err error) {
	held, err := f.held(ctx, name)
	if err != nil {
		return all, err
	}
	u := ledger.PackageUpdate{Name: name}
	doc, known := (*npm.Packument)(nil), held.Document // doc is that of known, once it is needed
	for _, it := range items {
		if it.paper == nil {
			continue
		}
		drop, ok, err := f.supersedes(ctx, it.paper, held)
		if err != nil {
			return all, err
		}
		if !ok {
			f.log.DebugContext(ctx, "an older document came late", "package", name, "rev", it.paper.rev, "held_rev", held.Rev)
			continue
		}
		if len(drop) > 0 && !it.approved {
			if err := f.removals.pass(f.now(), f.ledger); err != nil {
				all.refused = append(all.refused, f.heldBack(name, it.paper.rev, fmt.Errorf("a document that lacks %d of the versions held: %w", len(drop), err)))
				continue
			}
		}
		doc, known = it.paper.doc, it.paper.ref
		u.Rev, u.ETag, u.Checked, u.Document, u.Drop = it.paper.rev, it.paper.etag, it.paper.checked, it.paper.ref, drop
		u.Listed, u.Reason = len(doc.Versions), it.why
		if securityHolding(doc) {
			u.Reason = ledger.RemovedSecurity
		}
		u.Versions = append(u.Versions, strengthened(it.paper, held)...)
	}
	for _, it := range items {
		if it.version == nil {
			continue
		}
		if it.doc.ref.CID != known.CID {
			if doc == nil {
				mine, err := f.mine(ctx, held)
				if lost(err) {
					all.queue = append(all.queue, ledger.Retry{
						Name: name, Version: it.version.Version, Attempts: 1, Next: f.now().Add(delay(1, false)), Detail: detail(err),
					})
					continue
				}
				if err != nil {
					return all, own(err)
				}
				doc = mine.doc
			}
			if !names(doc, it.version.Version) {
				f.log.InfoContext(ctx, "a version was taken back while it was fetched", "package", name, "version", it.version.Version)
				continue
			}
		}
		u.Versions = append(u.Versions, *it.version)
	}
	for _, it := range items {
		if it.gone != "" {
			all.packages = []ledger.PackageUpdate{{Name: name, Rev: strings.TrimPrefix(it.gone, "?"), Checked: f.now(), Deleted: true, Reason: it.why}}
			return all, nil
		}
	}
	if !u.Document.CID.Defined() && (len(u.Versions) == 0 || held.Deleted) {
		return all, nil
	}
	all.packages = []ledger.PackageUpdate{u}
	return all, nil
}

// strengthened are held versions for which a document gives a stronger digest
// than they were stored by, and which their bytes match.
func strengthened(pap *paper, held ledger.Package) (all []ledger.Version) {
	for _, v := range held.Versions {
		m := pap.doc.Versions[v.Version]
		if m == nil || v.Proof == proof(npm.Dist{Integrity: v.Integrity}) || proof(m.Dist) == v.Proof {
			continue
		}
		if want, err := npm.ParseIntegrity(m.Dist); err == nil && agrees(want, v) {
			v.Proof = proof(m.Dist)
			all = append(all, v)
		}
	}
	return all
}

// proof is the strongest algorithm by which a manifest vouches for a tarball.
func proof(d npm.Dist) string {
	in, err := npm.ParseIntegrity(d)
	if err != nil {
		return ""
	}
	algorithm, _, _ := strings.Cut(in.String(), "-")
	return algorithm
}

// supersedes reports whether pap may become the ledger's document in place of
// held's, and which held versions it takes back.
func (f *Follower) supersedes(ctx context.Context, pap *paper, held ledger.Package) (drop []string, ok bool, err error) {
	if !held.Document.CID.Defined() || held.Deleted || pap.ref.CID == held.Document.CID {
		return nil, true, nil
	}
	if older(pap.rev, held.Rev) {
		return nil, false, nil
	}
	for _, v := range held.Versions {
		if !names(pap.doc, v.Version) {
			drop = append(drop, v.Version)
		}
	}
	if older(held.Rev, pap.rev) {
		return drop, true, nil
	}
	// No revision says which of the two is newer. Another pass may have asked
	// after this one did; and an old copy from a cache must not take versions
	// back.
	if pap.held.Document.CID != held.Document.CID && !held.Checked.Before(pap.checked) {
		return nil, false, nil
	}
	if len(drop) == 0 {
		return nil, true, nil
	}
	old, err := f.mine(ctx, held)
	if lost(err) {
		return drop, true, nil
	}
	if err != nil {
		return nil, false, own(err)
	}
	before, errBefore := time.Parse(time.RFC3339, old.doc.Modified)
	after, errAfter := time.Parse(time.RFC3339, pap.doc.Modified)
	return drop, errBefore != nil || errAfter != nil || !after.Before(before), nil
}
