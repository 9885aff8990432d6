package follow

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// deletedMark ends the revision of a deletion that a feed announced, in the
// queue.
const deletedMark = "-deleted"

// ErrMassRemoval is the cause of removals that the breaker held: more packages
// lost something within an hour than is likely. They are on the dead-letter
// list; to try them again approves them.
var ErrMassRemoval = errors.New("more is being removed than is likely")

// breaker counts the packages that lost something within the last hour.
type breaker struct {
	limit int // 0: the larger of 50 and a thousandth of what is held

	mu    sync.Mutex
	times []time.Time
}

// pass counts one more removal, or is ErrMassRemoval. Once it has held one
// back, it holds all until an operator has dealt with those: the dead-letter
// list remembers that across restarts.
func (b *breaker) pass(now time.Time, l Ledger) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	limit := b.limit
	if limit == 0 {
		limit = max(50, l.Counts().Packages/1000)
	}
	first := 0
	for first < len(b.times) && now.Sub(b.times[first]) >= time.Hour {
		first++
	}
	b.times = b.times[first:]
	if waiting := l.Reasons()[ledger.ReasonMassRemoval]; waiting > 0 {
		return fmt.Errorf("%w: %d waiting for an operator", ErrMassRemoval, waiting)
	}
	if len(b.times) >= limit {
		return fmt.Errorf("%w: %d within an hour", ErrMassRemoval, len(b.times))
	}
	b.times = append(b.times, now)
	return nil
}

// heldBack is the dead letter of a removal that the breaker held.
func (f *Follower) heldBack(name npm.Name, rev string, err error) ledger.Refusal {
	return ledger.Refusal{Name: name, Reason: ledger.ReasonMassRemoval, Detail: detail(err), Time: f.now(), Seen: rev}
}

// missed is what to record once upstream says that a package which is held is
// not there: once more that it did, or a tombstone. A deletion is evidence, not
// an accident (law 4): it counts when upstream has said so Confirm times over
// ConfirmOver, each time while it gave other packages.
func (f *Follower) missed(ctx context.Context, row ledger.Retry) (item, error) {
	announced := strings.HasSuffix(row.Rev, deletedMark)
	now := f.now()
	if !row.Approved {
		switch ok, err := f.healthy(ctx, row.Name); {
		case err != nil:
			return item{}, err
		case !ok && !announced:
			row.Next, row.Detail = now.Add(f.confirmOver), "upstream has no such package, and gives no other one either"
			row.Missing = max(row.Missing, 1)
			return item{name: row.Name, queue: []ledger.Retry{row}}, nil
		}
		if row.Missing++; row.Missing == 1 || row.Since.IsZero() {
			row.Since = now
		}
		if row.Missing < f.confirm || now.Sub(row.Since) < f.confirmOver {
			row.Next = now.Add(f.confirmOver / time.Duration(max(1, f.confirm-1)))
			row.Detail = fmt.Sprintf("upstream has no such package; said %d of the %d times, over %v, after which it counts", row.Missing, f.confirm, f.confirmOver)
			return item{name: row.Name, queue: []ledger.Retry{row}}, nil
		}
	}
	return f.tombstone(row, strings.TrimSuffix(row.Rev, deletedMark), ledger.RemovedDeleted), nil
}

// expected is what to record of a package that a feed announced and upstream does
// not have yet: a registry's copies lag behind its feed. Past ConfirmOver it is
// not expected any more.
func (f *Follower) expected(row ledger.Retry, err error) (item, bool) {
	now := f.now()
	if row.Missing++; row.Missing == 1 || row.Since.IsZero() {
		row.Since = now
	}
	if now.Sub(row.Since) >= f.confirmOver {
		return item{}, false
	}
	row.Next, row.Detail = now.Add(min(delay(row.Missing, true), f.confirmOver)), detail(err)
	return item{name: row.Name, queue: []ledger.Retry{row}}, true
}

// tombstone is what to record of a package that is gone, unless the breaker
// holds it back.
func (f *Follower) tombstone(row ledger.Retry, rev, why string) item {
	if !row.Approved {
		if err := f.removals.pass(f.now(), f.ledger); err != nil {
			refused := f.heldBack(row.Name, row.Rev, err)
			refused.Stamp = row.Stamp
			return item{name: row.Name, refused: &refused}
		}
	}
	f.log.Info("a package is gone upstream", "package", row.Name, "why", why, "said", row.Missing)
	return item{name: row.Name, gone: "?" + rev, why: why, done: []ledger.Done{{Key: ledger.Key{Name: row.Name}, Stamp: row.Stamp}}}
}

// healthy reports whether upstream gives a package other than name: it did a
// moment ago, or does when it is asked.
func (f *Follower) healthy(ctx context.Context, name npm.Name) (bool, error) {
	f.mu.Lock()
	given, at := f.state.given, f.state.givenAt
	f.mu.Unlock()
	if given != name && given != "" && f.now().Sub(at) < time.Minute {
		return true, nil
	}
	tried := 0
	for p, err := range f.ledger.Packages(ctx) {
		if err != nil {
			return false, own(err)
		}
		if p.Deleted || p.Name == name {
			continue
		}
		_, err := f.ask(ctx, p.Name, p.ETag)
		if err == nil {
			return true, nil
		}
		if ours(ctx, err) {
			return false, err
		}
		if tried++; tried == 3 {
			break
		}
	}
	return false, nil
}

// securityHolding reports whether a document is what npm leaves in the place of
// a package that it took away for its malice.
func securityHolding(doc *npm.Packument) bool {
	if len(doc.Versions) == 0 {
		return false
	}
	for version := range doc.Versions {
		if !strings.HasSuffix(version, "-security") && !strings.Contains(version, "-security.") {
			return false
		}
	}
	return true
}
