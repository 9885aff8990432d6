package publish

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Build brings the index up to the ledger: every package that changed since
// the index last read it is built anew, one page of changes after another. It
// gives the newest release, and whether it is new. A package whose upstream
// document is bad, or whose name's hash is that of a listed one, is withheld with
// a reason and stops no other. Errors: ErrOtherLedger, ErrLedgerBehind,
// ErrJournal, index.ErrParameters, the ledger's, the node's and the index's; what
// was built before the error stays.
//
// The release's number is above all that the journal speaks of, also where the
// index was lost and is built anew, or is an old copy. Without a journal, or with
// one that was begun from the network's record and has published nothing yet,
// those numbers are not known: the index alone then says what is next.
//
// Law, for each page: its blocks are put and durable in the node, then what is
// withheld is written down, then one batch of the index moves the list and the
// cursor, then what was withheld and now is listed is struck out. A crash between
// any two builds the page again, to the same list. There is one release for all
// pages, made with the last of them.
//
// Where the policy is another than the list follows, what the index has read is
// brought to it first: a package whose versions it does not touch stays as it is. How
// far that came moves with the list, so that a run that was cut short goes on there.
// What has come of age by the policy is built though the ledger stands still.
func (p *Publisher) Build(ctx context.Context) (index.Release, bool, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	return p.build(ctx)
}

func (p *Publisher) build(ctx context.Context) (index.Release, bool, error) {
	if made := p.o.Index.Parameters().Documents; made != document.Format {
		return index.Release{}, false, fmt.Errorf("build: %w: documents %q, not %q", index.ErrParameters, made, document.Format)
	}
	before, err := p.o.Index.Head()
	first := errors.Is(err, index.ErrNoRelease)
	if err != nil && !first {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	cursor, err := p.cursor()
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	h, err := p.spoken()
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	if err := p.settleRolledBack(before.Number); err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	// What changes while this runs is the next build's, so that this one ends.
	target := p.o.Ledger.Head()
	if target < cursor {
		return index.Release{}, false, fmt.Errorf("build: %w: it ends at %d, the index has read %d", ErrLedgerBehind, target, cursor)
	}
	pending, err := p.o.Index.Pending() // of a build that was cut short
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	if first && !pending {
		if err := p.keepsPolicy(ctx, h.newest); err != nil {
			return index.Release{}, false, fmt.Errorf("build: %w", err)
		}
	}
	r := run{p: p, newest: h.newest, cursor: cursor, release: before}
	if r.curation, err = p.curation(); err == nil {
		var remade bool
		remade, err = p.remakePages(ctx, cursor, h.newest, r.curation) // the policy as it was: that has not moved yet
		pending = pending || remade
	}
	if err == nil {
		err = p.change(&r.curation, cursor)
	}
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	waiting, err := p.o.Index.Due(ctx, r.now, 1)
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	keys, err := p.takeKeys(ctx, before)
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	r.due = keys || pending || first || h.passed(before) || before.Next != p.o.Next || before.Policy != r.label() || !slices.Equal(before.Names, p.names()) || !slices.Equal(before.Peers, p.o.Peers) ||
		len(r.From) > 0 || len(waiting) > 0
	// A snapshot that is due is of the list as it stands, for the release that
	// comes.
	snapshotDue, _, err := p.o.Index.SnapshotDue(ctx)
	if err == nil && snapshotDue && !pending && (r.due || cursor < target) {
		r.snapshot, err = p.snapshot(ctx)
	}
	if err == nil {
		err = r.build(ctx, target)
	}
	// The first list of many packages gets its snapshot at once: a reader who
	// comes now has no other list to go by.
	if err == nil {
		if due, shown, err2 := p.o.Index.SnapshotDue(ctx); err2 != nil || due && !shown {
			if err = err2; err == nil {
				r.snapshot, err = p.snapshot(ctx)
			}
			if err == nil {
				err = r.apply(ctx, r.batch())
			}
		}
	}
	if err != nil {
		return index.Release{}, false, fmt.Errorf("build: %w", err)
	}
	return r.release, first || r.release.Number != before.Number, nil
}

// run is one build.
type run struct {
	curation
	p        *Publisher
	newest   made // by the journal
	cursor   ledger.Seq
	snapshot index.Snapshot // to show; none without a number
	progress Progress
	release  index.Release // the newest
	due      bool          // there is to be a release though the ledger stands still
}

// build brings the list up to the ledger's target: first what is due by time and by
// another policy, of what the index has read, then what it has not read.
func (r *run) build(ctx context.Context, target ledger.Seq) error {
	if err := r.comeOfAge(ctx); err != nil {
		return err
	}
	if err := r.follow(ctx); err != nil {
		return err
	}
	for r.cursor < target {
		changes, err := r.p.o.Ledger.Changes(ctx, r.cursor, r.p.pageSize)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			break
		}
		r.cursor = changes[len(changes)-1].Seq
		// One release for all pages, with the last of them.
		more := r.cursor < target && len(changes) == r.p.pageSize
		if err := r.take(ctx, changes, nil, more); err != nil {
			return err
		}
		if r.due = more; len(changes) < r.p.pageSize {
			break
		}
	}
	if r.due {
		return r.apply(ctx, r.batch())
	}
	return nil
}

// take builds the packages of changes, and applies them as one page, with what is held
// of others. With more there is no release yet.
func (r *run) take(ctx context.Context, changes []ledger.Change, held []index.Held, more bool) error {
	r.progress.Total += len(changes)
	made, err := r.page(ctx, changes)
	if err == nil && len(changes) > 0 {
		err = r.p.checkpoint(ctx)
	}
	if err != nil {
		return err
	}
	if err := hook(r.p.fault, "page durable"); err != nil {
		return err
	}
	if err := r.p.keepWithheld(changes, made.withheld); err != nil {
		return err
	}
	if err := hook(r.p.fault, "withheld kept"); err != nil {
		return err
	}
	made.batch.Held = append(held, made.batch.Held...)
	made.batch.More = more
	if err := r.apply(ctx, made.batch); err != nil {
		return err
	}
	if err := hook(r.p.fault, "page applied"); err != nil {
		return err
	}
	return r.p.keepWithheld(made.freed, made.freedWithheld)
}

func (r *run) apply(ctx context.Context, b index.Batch) (err error) {
	b.Snapshot = r.snapshot
	r.release, _, err = r.p.o.Index.Apply(ctx, b)
	return err
}

// snapshot puts the whole list as it stands into the node, durably.
func (p *Publisher) snapshot(ctx context.Context) (index.Snapshot, error) {
	put := &putter{node: p.o.Node}
	s, err := p.o.Index.Snapshot(ctx, func(b blocks.Block) error { return put.add(ctx, []blocks.Block{b}) })
	if err == nil {
		err = put.flush(ctx)
	}
	if err == nil {
		err = p.checkpoint(ctx)
	}
	return s, err
}

// cursor is how far the index has read this ledger.
func (p *Publisher) cursor() (ledger.Seq, error) {
	sources, err := p.o.Index.Sources()
	if err != nil {
		return 0, err
	}
	id, cursor := p.o.Ledger.Identity(), ledger.Seq(0)
	for _, s := range sources {
		if s.ID != id {
			return 0, fmt.Errorf("%w: %s, not %s", ErrOtherLedger, s.ID, id)
		}
		n, err := strconv.ParseUint(s.Cursor, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the index's cursor of ledger %s is %q: %w", id, s.Cursor, err)
		}
		cursor = ledger.Seq(n)
	}
	return cursor, nil
}

func (p *Publisher) batch(cursor ledger.Seq, newest made, c curation) index.Batch {
	return index.Batch{
		Sources: []index.Source{{ID: p.o.Ledger.Identity(), Cursor: strconv.FormatUint(uint64(cursor), 10)}},
		Names:   p.names(), Next: p.o.Next, Peers: p.o.Peers, Gateway: p.gateway, Keys: p.keys, Now: p.now(), Policy: c.label(), Mark: c.mark.String(),
		After: newest.number, AfterRoot: newest.root,
	}
}

func (r *run) batch() index.Batch { return r.p.batch(r.cursor, r.newest, r.curation) }

func (p *Publisher) checkpoint(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, contentTimeout)
	defer cancel()
	if err := p.o.Node.Checkpoint(ctx); err != nil {
		return fmt.Errorf("sync the node: %w", err)
	}
	return nil
}

// inFlight bounds the bytes of documents being built at once, as upstream has
// them; one larger document is built alone.
const inFlight = 64 << 20

// page is what a page of changes comes to.
type page struct {
	batch    index.Batch
	withheld []Withheld // of the page's changes
	// freed are packages of earlier pages whose place was another's and is free
	// now. Their changes are in the batch too.
	freed         []ledger.Change
	freedWithheld []Withheld
}

// add takes up a package that was built.
func (g *page) add(b built) {
	g.batch.Changes = append(g.batch.Changes, b.change)
	g.batch.Blocks = append(g.batch.Blocks, b.dirs...)
}

// page builds the packages of changes and puts their blocks in the node.
func (r *run) page(ctx context.Context, changes []ledger.Change) (page, error) {
	g := page{batch: r.batch()}
	put := &putter{node: r.p.o.Node}
	packages, err := r.p.buildAll(ctx, r.curation, changes, put, func() {
		r.progress.Done++
		if r.p.o.Progress != nil {
			r.p.o.Progress(r.progress)
		}
	})
	if err != nil {
		return page{}, err
	}
	if err := r.settle(ctx, &g, changes, packages, put); err != nil {
		return page{}, err
	}
	return g, put.flush(ctx)
}

// buildAll builds the packages of changes by a policy, in their order, and hands
// their blocks to put. done is called after each, one call at a time.
func (p *Publisher) buildAll(ctx context.Context, by curation, changes []ledger.Change, put *putter, done func()) ([]built, error) {
	packages := make([]built, len(changes))
	var mu sync.Mutex // over done
	memory := semaphore.NewWeighted(inFlight)
	parent := ctx
	group, ctx := errgroup.WithContext(parent) // which ends with Wait
	group.SetLimit(p.o.Workers)
	for i, change := range changes {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, packageTimeout)
			defer cancel()
			b, err := p.buildPackage(ctx, by, change, memory)
			if err != nil {
				return fmt.Errorf("package %s: %w", change.Name, err)
			}
			if err := put.add(ctx, b.blocks); err != nil {
				return fmt.Errorf("package %s: %w", change.Name, err)
			}
			b.blocks = nil
			packages[i] = b
			mu.Lock()
			defer mu.Unlock()
			done()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return packages, parent.Err() // when some were never begun
}

// settle gives packages their places in the list, in the order of the ledger.
// One whose hash is that of a package listed before it is withheld; it is tried
// again with each page, since what stands in its way may go.
func (r *run) settle(ctx context.Context, g *page, changes []ledger.Change, packages []built, put *putter) error {
	before, err := r.p.Withheld()
	if err != nil {
		return err
	}
	var asked []index.Change
	var at []int // of asked, in packages
	for i, b := range packages {
		if b.change.Name != "" {
			asked, at = append(asked, b.change), append(at, i)
		}
	}
	again := waiting(before, changes)
	for _, c := range again {
		asked = append(asked, index.Change{Entry: index.Entry{Name: c.Name}})
	}
	found, err := r.p.o.Index.Collisions(ctx, asked)
	if err != nil {
		return err
	}
	for _, c := range slices.Backward(found) {
		if n := c.At - len(at); n >= 0 {
			again = slices.Delete(again, n, n+1)
			continue
		}
		packages[at[c.At]].collides(c.With)
	}
	for _, b := range packages {
		g.withheld = append(g.withheld, b.withheld...)
		if b.held.Name != "" {
			g.batch.Held = append(g.batch.Held, b.held)
		}
		if b.change.Name != "" {
			g.add(b)
		}
	}
	if len(again) == 0 {
		return nil
	}
	freed, err := r.p.buildAll(ctx, r.curation, again, put, func() {})
	if err != nil {
		return err
	}
	g.freed = again
	for _, b := range freed {
		g.freedWithheld = append(g.freedWithheld, b.withheld...)
		g.batch.Held = append(g.batch.Held, b.held)
		g.add(b)
	}
	return nil
}

// waiting are the packages withheld for another's place, but for those that
// have changed since.
func waiting(withheld []Withheld, changes []ledger.Change) []ledger.Change {
	var all []ledger.Change
	for _, w := range withheld {
		if w.Reason == reasonCollision && w.Version == "" &&
			!slices.ContainsFunc(changes, func(c ledger.Change) bool { return c.Name == w.Name }) {
			all = append(all, ledger.Change{Name: w.Name})
		}
	}
	return all
}

// putter gathers blocks into batches of a size that nodes like.
type putter struct {
	node interface {
		Put(ctx context.Context, blks []blocks.Block) error
	}
	mu   sync.Mutex
	blks []blocks.Block
	size int
}

const (
	putBlocks = 256
	putBytes  = 16 << 20
)

func (q *putter) add(ctx context.Context, blks []blocks.Block) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range blks {
		q.blks = append(q.blks, b)
		q.size += len(b.RawData())
		if len(q.blks) >= putBlocks || q.size >= putBytes {
			if err := q.put(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (q *putter) flush(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.put(ctx)
}

func (q *putter) put(ctx context.Context) error {
	if len(q.blks) == 0 {
		return nil
	}
	if err := q.node.Put(ctx, q.blks); err != nil {
		return fmt.Errorf("put %d blocks: %w", len(q.blks), err)
	}
	q.blks, q.size = nil, 0
	return nil
}

// content makes a release whole and durable in the node and pins it, before
// anything says that it exists. The index's own blocks (the list, release.json,
// package directories) are pushed that the last release pinned does not have, for
// the node may have lost what only releases before that one had; all of them
// where that one is another index's. The documents went in when they were built,
// the tarballs when the follower stored them.
//
// Law: pushed, durable, a sample read back, pinned, the sample fetched through the
// witnesses, who find only what is pinned, and only then written in the journal. So a run after one that failed in any of these pushes again.
func (p *Publisher) content(ctx context.Context, j *journal, release index.Release) error {
	if p.pushed.Defined() && p.pushed == release.Root && j.pinned.root != release.Root {
		return j.append(line{Op: opPinned, Time: p.now(), Release: release.Number, Value: release.Root.String()})
	}
	kept, err := p.keepsPinned(ctx, j)
	if err != nil {
		return fmt.Errorf("release %d: %w: %w", release.Number, ErrIncomplete, err)
	}
	if kept && j.pinned.root == release.Root {
		return nil
	}
	if err := p.push(ctx, j, release, kept); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("release %d: %w: %w", release.Number, ErrIncomplete, err)
	}
	return j.append(line{Op: opPinned, Time: p.now(), Release: release.Number, Value: release.Root.String()})
}

// keepsPinned says whether the node has the release that the journal says was pinned
// in it. One that was lost, with its disk or to another hand, is put anew.
func (p *Publisher) keepsPinned(ctx context.Context, j *journal) (bool, error) {
	if !j.pinned.root.Defined() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	pins, err := p.o.Node.Pins(ctx, p.label)
	if err != nil {
		return false, fmt.Errorf("pins of the node: %w", err)
	}
	if slices.ContainsFunc(pins, j.pinned.root.Equals) {
		return true, nil
	}
	p.o.Log.WarnContext(ctx, "the node has lost the release that was published last; all of it is put anew", "registry", p.o.Registry, "release", j.pinned.number)
	return false, nil
}

// push is content's work. Where the node has not kept the release pinned last,
// nothing of it is there to go by.
func (p *Publisher) push(ctx context.Context, j *journal, release index.Release, kept bool) error {
	ctx, cancel := context.WithTimeout(ctx, contentTimeout)
	defer cancel()
	// Nothing of it is this index's where that was built anew or is an old copy.
	since, pinned := uint64(0), cid.Undef
	near := j.pinned.root
	if !kept {
		near = cid.Undef
	}
	switch was, err := p.o.Index.Release(j.pinned.number); {
	case err == nil && was.Root == j.pinned.root && kept:
		since, pinned = was.Number, was.Root
	case err != nil && !errors.Is(err, index.ErrNoRelease):
		return err
	}
	put := &putter{node: p.o.Node}
	some := reservoir[cid.Cid]{most: sampleBlocks}
	for b, err := range p.o.Index.Blocks(ctx, since, release.Number) {
		if err != nil {
			return err
		}
		if err := put.add(ctx, []blocks.Block{b}); err != nil {
			return err
		}
		some.offer(b.Cid())
	}
	if err := put.flush(ctx); err != nil {
		return err
	}
	if err := hook(p.fault, "pushed"); err != nil {
		return err
	}
	if err := p.o.Node.Checkpoint(ctx); err != nil {
		return fmt.Errorf("sync the node: %w", err)
	}
	if err := hook(p.fault, "checkpoint"); err != nil {
		return err
	}
	sample, err := p.readBack(ctx, pinned, release, some.kept)
	if err != nil {
		return err
	}
	if err := hook(p.fault, "read back from the node"); err != nil {
		return err
	}
	if err := p.pinOrMend(ctx, near, pinned, release); err != nil {
		return err
	}
	if err := hook(p.fault, "pinned in the node"); err != nil {
		return err
	}
	return p.witnessed(ctx, sample)
}

// Withheld lists what the ledger holds and the list does not, with reasons.
func (p *Publisher) Withheld() ([]Withheld, error) {
	f, err := p.o.FS.Open(p.withheldPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is withheld: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read what is withheld: %w", err)
	}
	var all []Withheld
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p.withheldPath(), ErrWithheld, err)
	}
	return all, nil
}

func (p *Publisher) withheldPath() string {
	return p.o.FS.PathJoin(p.o.FS.PathDir(p.o.Journal), "withheld.json")
}

// keepWithheld replaces what was said before of the packages in changes.
func (p *Publisher) keepWithheld(changes []ledger.Change, now []Withheld) error {
	before, err := p.Withheld()
	if err != nil {
		return err
	}
	again := make(map[npm.Name]bool, len(changes))
	for _, c := range changes {
		again[c.Name] = true
	}
	after := slices.DeleteFunc(slices.Clone(before), func(w Withheld) bool { return again[w.Name] })
	after = append(after, now...)
	slices.SortFunc(after, compareWithheld)
	if slices.Equal(before, after) {
		return nil
	}
	for _, w := range now {
		if !slices.Contains(before, w) {
			p.o.Log.Warn("withheld from the list", "registry", p.o.Registry, "package", string(w.Name), "version", w.Version, "reason", w.Reason, "detail", w.Detail)
		}
	}
	for _, w := range before {
		if w.Reason == RolledBackReason && again[w.Name] {
			p.o.Log.Warn("no longer rolled back: it changed upstream", "registry", p.o.Registry, "package", string(w.Name), "rolled_back_by", w.Release)
		}
	}
	return p.writeWithheld(after)
}

func compareWithheld(a, b Withheld) int {
	return cmp.Or(strings.Compare(string(a.Name), string(b.Name)), strings.Compare(a.Version, b.Version),
		strings.Compare(a.Reason, b.Reason), cmp.Compare(a.Release, b.Release))
}

func (p *Publisher) writeWithheld(all []Withheld) error {
	raw, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	if err := p.o.FS.MkdirAll(p.o.FS.PathDir(p.o.Journal), 0o700); err != nil {
		return fmt.Errorf("keep what is withheld: %w", err)
	}
	p.noting.Lock()
	defer p.noting.Unlock()
	p.rolledBack = nil
	if err := replace(p.o.FS, p.withheldPath(), bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("keep what is withheld: %w", err)
	}
	return nil
}
