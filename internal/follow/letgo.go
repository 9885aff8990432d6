package follow

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
)

// LetGo is what a LetGo let go of.
type LetGo struct {
	Documents int `json:"documents"` // former ones of packages
	Tarballs  int `json:"tarballs"`  // of versions that no package has any more
}

// letGoRows is how much is let go of at once. A Kubo daemon has all that it holds read
// for each such step.
const letGoRows = 100_000

// LetGo tells the node that it need not hold documents that packages no longer
// have since documents ago or longer, nor tarballs of versions that were dropped
// tarballs ago or longer; 0 keeps those for ever. What a release that is pinned has of
// them stays. It may run beside all else. report, where not nil, is told how many it
// let go, and looked, for either.
//
// The order is law:
//
//  1. One batch of the ledger gives a package another document, or drops a version,
//     and records what was before (step 4 of store).
//  2. Unhold: the node lets go of it, unless it is on its way back.
//  3. Checkpoint: that is durable.
//  4. The ledger strikes it.
//
// A crash between any two leaves the ledger's record, by which it is done again.
// What comes back meanwhile waits at its own step 1 until 4 is done, and is held
// anew then.
func (f *Follower) LetGo(ctx context.Context, documents, tarballs time.Duration, report func(LetGo)) (all LetGo, err error) {
	if report == nil {
		report = func(LetGo) {}
	}
	before := f.now().Add(-documents)
	for {
		n, more, err := f.letGo(ctx, func() ([]ledger.Former, bool, error) {
			rows, err := f.ledger.Former(ctx, before, letGoRows)
			return rows, len(rows) == letGoRows, err
		})
		all.Documents += n
		if err != nil {
			return all, fmt.Errorf("let go of former documents: %w", err)
		}
		report(all)
		if !more || n == 0 {
			break
		}
	}
	if tarballs <= 0 {
		return all, nil
	}
	before = f.now().Add(-tarballs)
	for after := (ledger.Former{}); ; {
		var last *ledger.Former
		n, more, err := f.letGo(ctx, func() (rows []ledger.Former, more bool, err error) {
			rows, last, err = f.ledger.Dropped(ctx, before, after, letGoRows, func(int) { report(all) })
			return rows, last != nil, err
		})
		all.Tarballs += n
		if err != nil {
			return all, fmt.Errorf("let go of tarballs of dropped versions: %w", err)
		}
		report(all)
		if !more {
			return all, nil
		}
		after = *last
	}
}

// letGo lets go of what list gives, and says whether there may be more.
func (f *Follower) letGo(ctx context.Context, list func() ([]ledger.Former, bool, error)) (n int, more bool, err error) {
	rows, more, err := list()
	if err != nil || len(rows) == 0 {
		return 0, more, own(err)
	}
	leaving := f.roots.leave(rootsOf(rows))
	defer f.roots.left(leaving)
	// Asked again: none of them can become a package's from here on.
	if rows, more, err = list(); err != nil {
		return 0, false, own(err)
	}
	rows = slices.DeleteFunc(rows, func(r ledger.Former) bool { return !leaving[r.CID] })
	if len(rows) == 0 {
		return 0, more, nil
	}
	failed := f.failedCheckpoints.Load()
	if err := f.node.Unhold(ctx, holdLabel, rootsOf(rows)); err != nil {
		return 0, false, own(fmt.Errorf("unhold %d roots: %w", len(rows), err))
	}
	if err := f.checkpoint(ctx, []brought{{dirty: true, failed: failed}}); err != nil {
		return 0, false, err
	}
	if _, err := f.ledger.Commit(ctx, ledger.Batch{LetGo: rows}); err != nil {
		return 0, false, own(fmt.Errorf("commit %d roots: %w", len(rows), err))
	}
	return len(rows), more, nil
}

// rootsOf are the CIDs of rows.
func rootsOf(rows []ledger.Former) []cid.Cid {
	all := make([]cid.Cid, len(rows))
	for i, r := range rows {
		all[i] = r.CID
	}
	return all
}

// roots keeps what is being brought and what is being let go of apart.
type roots struct {
	mu      sync.Mutex
	coming  map[cid.Cid]int  // held, and not in the ledger yet
	leaving map[cid.Cid]bool // one LetGo's, or several's
	moved   chan struct{}    // closed and replaced when leaving shrinks
}

// come waits until none of cs is being let go of, which from then on none is
// until came.
func (r *roots) come(ctx context.Context, cs []cid.Cid) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for slices.ContainsFunc(cs, func(c cid.Cid) bool { return r.leaving[c] }) {
		moved := r.moved
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for _, c := range cs {
		r.coming[c]++
	}
	return nil
}

// came says that the ledger names cs, or that they were not brought.
func (r *roots) came(cs []cid.Cid) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range cs {
		if r.coming[c]--; r.coming[c] == 0 {
			delete(r.coming, c)
		}
	}
}

// leave gives those of cs that nobody brings or lets go of. Nobody does until
// left.
func (r *roots) leave(cs []cid.Cid) map[cid.Cid]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	leaving := make(map[cid.Cid]bool, len(cs))
	for _, c := range cs {
		if r.coming[c] == 0 && !r.leaving[c] {
			r.leaving[c], leaving[c] = true, true
		}
	}
	return leaving
}

func (r *roots) left(leaving map[cid.Cid]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range leaving {
		delete(r.leaving, c)
	}
	close(r.moved)
	r.moved = make(chan struct{})
}
