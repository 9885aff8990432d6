package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// maxHops bounds the successors that one Sync follows, one after another. The next
// goes on from there.
const maxHops = 16

// following is the name that is followed now.
func (m *Mirror) following() ipns.Name {
	if high := m.high.Load(); high.Name != "" && high.Name != m.o.Name.String() {
		// Accept took it from a record's name, or Open from the file, as Check would.
		if name, err := ipns.NameFromString(high.Name); err == nil {
			return name
		}
	}
	return m.o.Name
}

// succession follows the successor that was announced, once there is a record of
// it, and the successor's own, as far as records are found. failure is what came
// of the round before: with nobody to succeed it stands. It needs the syncing
// token.
//
// Law: that the successor is followed, and what stood of the name before, is
// durable before anything is read by the successor's record; from there on the name
// before is not asked for. A crash leaves the old name, to be succeeded anew, or
// the new one. What is held is served throughout.
func (m *Mirror) succession(ctx context.Context, failure error) error {
	for range maxHops {
		held := m.high.Load()
		if held.Successor == "" {
			return failure
		}
		moved, err := m.succeed(ctx, held)
		if !moved {
			if failure != nil {
				failure = errors.Join(failure, err)
			} else if err != nil {
				m.log.DebugContext(ctx, "the successor cannot be followed yet", "name", held.Name, "successor", held.Successor, "error", err)
			}
			return failure
		}
		failure = err
	}
	return failure
}

// succeed moves to the successor where any route has a valid record of it, then
// follows the best of what the routes have.
func (m *Mirror) succeed(ctx context.Context, held *highWater) (moved bool, err error) {
	name, err := ipns.NameFromString(held.Successor)
	if err != nil {
		return false, fmt.Errorf("successor %q: %w", held.Successor, err)
	}
	resolving, cancel := context.WithTimeout(ctx, resolveDeadline)
	defer cancel()
	answers, pending := m.resolve(resolving, m.routes, name), len(m.routes)
	var errs []error
	for ; pending > 0; pending-- {
		var a answer
		select {
		case a = <-answers:
		case <-resolving.Done():
			return false, fmt.Errorf("resolve successor %s: %w: %w", name, ErrNoRecord, resolving.Err())
		}
		if a.err != nil {
			errs = append(errs, fmt.Errorf("successor %s: %s: %w", name, a.route.name, a.err))
			continue
		}
		state, err := ipnsrecord.Succeed(held.State, held.names(), a.record)
		if err != nil {
			return false, err
		}
		if err := m.keepHighWater(held.succeeded(state, a.record.Raw)); err != nil {
			return false, err
		}
		m.log.WarnContext(ctx, "the successor's name is followed from now on", "name", name.String(), "before", held.Name, "route", a.route.name)
		cancel()
		return true, m.round(ctx, m.routes)
	}
	return false, errors.Join(errs...)
}

// FollowTo is told by a person which name follows the one that is followed, for
// where no release that says so can come any more. It is held to the pin:
// ErrNoSuccessor. The next Sync follows it, once there is a record of it. One that
// is followed already changes nothing.
func (m *Mirror) FollowTo(ctx context.Context, name ipns.Name) error {
	if !m.enter() {
		return ErrClosed
	}
	defer m.leave()
	select {
	case m.syncing <- struct{}{}:
		defer func() { <-m.syncing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	held := m.high.Load()
	if held.Name == name.String() {
		return nil
	}
	state, err := ipnsrecord.Told(held.State, name)
	if err != nil {
		return fmt.Errorf("follow %s: %w: %w", name, ErrNoSuccessor, err)
	}
	m.log.WarnContext(ctx, "told which name follows, and it is the one that was promised", "name", state.Name, "successor", state.Successor)
	return m.keepHighWater(held.moved(state, held.Record))
}
