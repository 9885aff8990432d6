package follow

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// ErrNoFeed is returned by Reconcile and Resync of a follower without a feed.
var ErrNoFeed = errors.New("there is no feed to compare with")

// Reconciliation is what Reconcile found.
type Reconciliation struct {
	Listed   int `json:"listed"`   // packages that the feed's database has
	Held     int `json:"held"`     // packages that the ledger has
	New      int `json:"new"`      // listed, wanted and not held: queued
	Changed  int `json:"changed"`  // listed with another revision: queued
	Vanished int `json:"vanished"` // held and not listed: queued, to be looked into
}

// Reconcile compares the ledger with the list of all that the feed's database
// holds, by name and revision, and queues what differs: changes that the feed
// dropped, deletions that nobody announced. Nothing is removed by it: what
// vanished is asked for, and counts as gone by the rules for that (law 4). A
// listing that ends with an error queues what was found until then, and nothing
// as vanished.
//
// It holds some ten bytes a package in memory. report, where not nil, is told
// how many were looked at.
func (f *Follower) Reconcile(ctx context.Context, report func(done int)) (Reconciliation, error) {
	var r Reconciliation
	if f.feed == nil {
		return r, ErrNoFeed
	}
	info, err := f.feed.Server(ctx)
	if err != nil {
		return r, fmt.Errorf("reconcile with %s: %w", f.feedName, err)
	}
	w, err := f.wanted(ctx)
	if err != nil {
		return r, err
	}
	revisions := info.Engine == couch.EngineNPM || info.Engine == couch.EngineCouch
	// Names that were listed, as hashes: two that share one hide that one of
	// them vanished, once in many millions of runs.
	seed := maphash.MakeSeed()
	var listed []uint64
	for docs, err := range f.feed.AllDocs(ctx) {
		if err != nil {
			return r, fmt.Errorf("reconcile with %s: %w", f.feedName, err)
		}
		var queue []ledger.Retry
		names := make([]npm.Name, 0, len(docs))
		rows := make([]couch.Doc, 0, len(docs))
		for _, doc := range docs {
			name, err := npm.ParseName(doc.ID)
			if err != nil || doc.Deleted {
				continue // the feed itself brings such a name, and it is refused there
			}
			names, rows = append(names, name), append(rows, doc)
			listed = append(listed, maphash.String(seed, string(name)))
		}
		heads, err := f.ledger.Heads(ctx, names)
		if err != nil {
			return r, own(err)
		}
		for i, name := range names {
			head, rev := heads[i], rows[i].Rev
			if !revisions {
				rev = ""
			}
			switch {
			case !w.concerns(name, head):
				continue
			case !head.Known || head.Deleted:
				if head.Waiting {
					continue
				}
				r.New++
			case rev == "" || rev == head.Rev || older(rev, head.Rev):
				continue
			default:
				r.Changed++
			}
			// Not urgent: what the feed announces goes before a whole listing.
			queue = append(queue, ledger.Retry{Name: name, Rev: rev, Next: f.now()})
		}
		if err := f.room(ctx); err != nil {
			return r, err
		}
		if len(queue) > 0 {
			if _, err := f.ledger.Commit(ctx, ledger.Batch{Retries: queue}); err != nil {
				return r, own(err)
			}
		}
		if r.Listed += len(names); report != nil {
			report(r.Listed)
		}
	}
	slices.Sort(listed)
	return r, f.vanished(ctx, &r, func(name npm.Name) bool {
		_, found := slices.BinarySearch(listed, maphash.String(seed, string(name)))
		return found
	})
}

// vanished queues what the ledger holds and a whole listing does not.
func (f *Follower) vanished(ctx context.Context, r *Reconciliation, listed func(npm.Name) bool) error {
	var queue []ledger.Retry
	flush := func(atLeast int) error {
		if len(queue) < atLeast {
			return nil
		}
		_, err := f.ledger.Commit(ctx, ledger.Batch{Retries: queue})
		queue = nil
		return own(err)
	}
	for p, err := range f.ledger.Packages(ctx) {
		if err != nil {
			return own(err)
		}
		if p.Deleted {
			continue
		}
		r.Held++
		if listed(p.Name) {
			continue
		}
		waiting, err := f.waiting(ctx, p.Name)
		if err != nil {
			return err
		}
		if _, ok := waiting[""]; ok {
			continue
		}
		r.Vanished++
		queue = append(queue, ledger.Retry{Name: p.Name, Rev: p.Rev + deletedMark, Next: f.now()})
		if err := flush(1000); err != nil {
			return err
		}
	}
	return flush(1)
}

// Resync goes on after the feed began anew, or skips what lies between: it
// compares with the whole listing, as Reconcile, and moves the cursor to where
// the feed's head was before that, so that nothing in between is missed. The
// cursor moves only once the listing was read to its end.
func (f *Follower) Resync(ctx context.Context, report func(done int)) (Reconciliation, error) {
	if f.feed == nil {
		return Reconciliation{}, ErrNoFeed
	}
	w, err := f.wanted(ctx)
	if err != nil {
		return Reconciliation{}, err
	}
	info, err := f.feed.Server(ctx)
	if err != nil {
		return Reconciliation{}, fmt.Errorf("resync with %s: %w", f.feedName, err)
	}
	since, err := beforeHead(info)
	if err != nil {
		return Reconciliation{}, fmt.Errorf("resync with %s: %w", f.feedName, err)
	}
	r, err := f.Reconcile(ctx, report)
	if err != nil {
		return r, err
	}
	cursor := &ledger.Cursor{Feed: f.keyFor(w), Value: since}
	if _, err := f.ledger.Commit(ctx, ledger.Batch{Cursor: cursor}); err != nil {
		return r, own(err)
	}
	f.log.InfoContext(ctx, "the feed is read on from its new head", "feed", f.feedName, "cursor", since,
		"listed", r.Listed, "new", r.New, "changed", r.Changed, "vanished", r.Vanished)
	return r, nil
}
