package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
)

const (
	// minRetained is how many releases stay whatever the clock says.
	minRetained = 8
	// retainShare is how much of Retain goes by between two collections.
	retainShare = 7
)

// Collected is what Collect did.
type Collected struct {
	index.Collected
	Unpinned int `json:"unpinned"` // releases that the node pins no more
}

// Collect lets go of the releases that are older than Options.Retain: of those the
// index keeps what they changed, and the node a snapshot a month, so that their
// lists can still be told; their blocks go, in the index at once and in the node
// when it next collects its own garbage, but for those that a release which stays
// has too. What the ledger holds the follower keeps for itself.
//
// A release stays while it, or the one before it, was the newest within Retain;
// while it is among the newest eight; and while the newest record, or the newest
// pin, is of it or of one before it. Where Retain is 0 all stay, and only what no
// release has goes.
//
// Law: the index writes down what it must, then takes away blocks; the node pins
// the snapshots of the months, durably, and only then unpins releases. Releases
// may be built and published meanwhile. It can be stopped at any time and begun
// again. Errors: index.ErrNoRelease, ErrJournal, the index's and the node's.
func (p *Publisher) Collect(ctx context.Context) (c Collected, err error) {
	p.collecting.Lock()
	defer p.collecting.Unlock()
	keep, err := p.retained(ctx)
	if err == nil {
		c.Collected, err = p.o.Index.Collect(ctx, keep, func(stage string, done int) {
			if p.o.Collecting != nil {
				p.o.Collecting(stage, done)
			}
		})
	}
	if err == nil {
		err = hook(p.fault, "index collected")
	}
	if err == nil {
		err = p.pinSnapshots(ctx)
	}
	if err == nil {
		c.Unpinned, err = p.unpin(ctx, keep)
	}
	if err != nil {
		return c, fmt.Errorf("collect: %w", err)
	}
	return c, nil
}

// collectIsDue says whether enough of Retain has gone by since the last Collect for
// another one.
func (p *Publisher) collectIsDue(ctx context.Context) (bool, error) {
	if p.o.Retain <= 0 {
		return false, nil
	}
	due, err := p.collectDue(ctx)
	if errors.Is(err, index.ErrNoRelease) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("is a collection due: %w", err)
	}
	return due, nil
}

func (p *Publisher) collectDue(ctx context.Context) (bool, error) {
	keep, err := p.retained(ctx)
	if err != nil {
		return false, err
	}
	oldest, err := p.o.Index.Oldest()
	if err != nil || keep <= oldest {
		return false, err
	}
	from, err := p.o.Index.Release(oldest)
	if err != nil {
		return false, err
	}
	to, err := p.o.Index.Release(keep)
	return to.Created.Sub(from.Created) >= p.o.Retain/retainShare, err
}

// retained is the number of the oldest release that stays.
func (p *Publisher) retained(ctx context.Context) (keep uint64, err error) {
	oldest, err := p.o.Index.Oldest()
	if err != nil || p.o.Retain <= 0 {
		return oldest, err
	}
	h, err := p.spoken()
	if err != nil {
		return 0, err
	}
	needed := h.newest.number // those that readers may be sent to
	if h.pinned.root.Defined() {
		needed = min(needed, h.pinned.number)
	}
	if h.last != nil {
		needed = min(needed, h.last.Release)
	}
	for _, f := range p.overlapping() {
		was, _, err := readJournal(p.o.FS, f.Journal)
		if err != nil && !errors.Is(err, ErrNoJournal) {
			return 0, err
		}
		if was.last != nil {
			needed = min(needed, was.last.Release)
		}
	}
	since, n := p.now().Add(-p.o.Retain), 0
	for r, err := range p.o.Index.Log(ctx) {
		if err != nil {
			return 0, err
		}
		keep = r.Number
		if n++; keep <= oldest || n >= minRetained && keep <= needed && !r.Created.After(since) {
			break
		}
	}
	return keep, nil
}

// snapshotLabel is what the snapshots of the months are pinned under.
func (p *Publisher) snapshotLabel() string { return p.label + "/snapshots" }

func (p *Publisher) pinSnapshots(ctx context.Context) error {
	all, err := p.o.Index.Snapshots(ctx)
	if err != nil || len(all) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, contentTimeout)
	defer cancel()
	pins, err := p.o.Node.Pins(ctx, p.snapshotLabel())
	if err != nil {
		return fmt.Errorf("pins of snapshots: %w", err)
	}
	pinned := map[cid.Cid]bool{}
	for _, c := range pins {
		pinned[c] = true
	}
	for _, s := range all {
		if pinned[s.File.CID] {
			continue
		}
		// One that the node has lost is missed by nobody but who looks far back, and
		// is not worth all that follows.
		if err := p.o.Node.Pin(ctx, p.snapshotLabel(), cid.Undef, s.File.CID); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p.o.Log.WarnContext(ctx, "a snapshot of the list cannot be pinned", "registry", p.o.Registry, "release", s.Number, "cid", s.File.CID.String(), "err", err)
		}
	}
	if err := p.checkpoint(ctx); err != nil {
		return err
	}
	return hook(p.fault, "snapshots pinned")
}

// unpin lets the node unpin what is no release from keep on, also what a crash
// left, and says how many that were.
func (p *Publisher) unpin(ctx context.Context, keep uint64) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, contentTimeout)
	defer cancel()
	roots, err := p.o.Node.Pins(ctx, p.label)
	if err != nil {
		return 0, fmt.Errorf("pins of releases: %w", err)
	}
	// The pins first: of a release that is made meanwhile there is none yet.
	gone := map[cid.Cid]bool{}
	for _, root := range roots {
		gone[root] = true
	}
	for r, err := range p.o.Index.Log(ctx) {
		if err != nil {
			return 0, err
		}
		if r.Number < keep {
			break
		}
		delete(gone, r.Root)
	}
	for root := range maps.Keys(gone) {
		if err := p.o.Node.Unpin(ctx, p.label, root); err != nil {
			return n, fmt.Errorf("unpin release %s: %w", root, err)
		}
		n++
		if err := hook(p.fault, "unpinned"); err != nil {
			return n, err
		}
	}
	return n, nil
}

// CollectIfDue is Collect, once a share of Retain has gone by since the last. It is
// for after a release is out: what goes wrong is logged, and tried again after the
// next one.
func (p *Publisher) CollectIfDue(ctx context.Context) {
	due, err := p.collectIsDue(ctx)
	if err == nil && due {
		_, err = p.Collect(ctx)
	}
	if err != nil && ctx.Err() == nil {
		p.o.Log.WarnContext(ctx, "letting go of old releases failed", "registry", p.o.Registry, "error", err)
	}
}

// DefaultRetain is as long as a record is valid: what one may still name is there.
const DefaultRetain = 7 * 24 * time.Hour
