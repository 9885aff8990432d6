package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ipfs/boxo/ipns"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// Run keeps the list up to date until ctx ends, and then returns nil: it
// resolves the name at once, then every Options.Interval and whenever Refresh
// is called. A failure is logged, shown in Status and tried again.
func (m *Mirror) Run(ctx context.Context) error {
	var last string
	for {
		err := m.Sync(ctx)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil:
			last = ""
		case err.Error() != last: // the same failure is said once
			last = err.Error()
			m.log.WarnContext(ctx, "sync failed; what is held is served", "error", err)
		}
		wait := time.NewTimer(m.interval())
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-m.refresh:
		}
		wait.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// Refresh tells Run that there is a new record. It does not wait.
func (m *Mirror) Refresh() {
	select {
	case m.refresh <- struct{}{}:
	default: // one is due already
	}
}

// interval is how long to wait until the next resolution, with a tenth of
// jitter, so that a farm of mirrors does not ask as one.
func (m *Mirror) interval() time.Duration {
	d := m.o.Interval
	if d == 0 {
		d = defaultInterval
		if high := m.high.Load(); high.Record != nil {
			if r, _ := ipnsrecord.Check(m.following(), high.Record, m.o.Now()); r.TTL > 0 {
				d = min(max(r.TTL, 5*time.Second), 5*time.Minute)
			}
		}
	}
	return d - d/20 + time.Duration(rand.Int64N(int64(d)/10+1))
}

// Sync does one round: it asks every route for the record, follows the best
// that it may follow, and reads the list where that is new. It returns nil when
// the list served is the one that the newest valid record points at. While
// another round runs, it waits for that first.
func (m *Mirror) Sync(ctx context.Context) error {
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
	if h := m.head.Load(); h != nil {
		m.dial(h.Release.Peers)
	}
	err := m.round(ctx)
	if ctx.Err() == nil {
		err = m.succession(ctx, err)
	}
	if ctx.Err() == nil {
		m.stats.mu.Lock()
		m.stats.failure = ""
		if err != nil {
			m.stats.failure = err.Error()
		}
		m.stats.mu.Unlock()
	}
	return err
}

// round needs the syncing token. A record is followed as soon as it is there:
// a slow route never holds a fast one up.
func (m *Mirror) round(ctx context.Context) error {
	resolving, cancel := context.WithTimeout(ctx, resolveDeadline)
	defer cancel()
	name := m.following()
	answers, pending := m.resolve(resolving, name)
	followed := false
	var expired ipnsrecord.Record // the best of those
	var errs []error
	for pending > 0 {
		var seen []answer
		select {
		case a := <-answers:
			seen = append(seen, a)
		case <-resolving.Done():
			if followed && ctx.Err() == nil {
				return errors.Join(errs...)
			}
			m.hear(ctx, expired)
			return errors.Join(append(errs, fmt.Errorf("resolve %s: %w: %w", name, ErrNoRecord, resolving.Err()))...)
		}
		for more := true; more; {
			select {
			case a := <-answers:
				seen = append(seen, a)
			default:
				more = false
			}
		}
		pending -= len(seen)
		// The best one first: the others then are seen for what they are.
		for len(seen) > 0 {
			at := 0
			for i := range seen {
				if ipnsrecord.Better(seen[i].record, seen[at].record) {
					at = i
				}
			}
			a := seen[at]
			seen = append(seen[:at], seen[at+1:]...)
			if a.err != nil {
				m.log.DebugContext(ctx, "route gave no record", "route", a.route, "error", a.err)
				if errors.Is(a.err, ipnsrecord.ErrExpired) && ipnsrecord.Better(a.expired, expired) {
					expired = a.expired
				}
				if !followed {
					errs = append(errs, fmt.Errorf("%s: %w", a.route, a.err))
				}
				continue
			}
			err := m.follow(ctx, a.record)
			switch {
			case err == nil:
				if !followed {
					followed, errs = true, nil
					time.AfterFunc(resolveGrace, cancel)
				}
			case followed && errors.Is(err, ipnsrecord.ErrRollback):
				// A route that lags behind another is no cause for alarm.
			default:
				errs = append(errs, fmt.Errorf("record from %s: %w", a.route, err))
			}
		}
	}
	if !followed {
		m.hear(ctx, expired)
	}
	if !followed && len(errs) == 0 {
		return ErrNoRecord
	}
	return errors.Join(errs...)
}

// hear takes up the successor that an expired record's release announces: the name
// before is renewed for a while only, and this mirror was off for longer. Nothing
// else of it counts.
func (m *Mirror) hear(ctx context.Context, r ipnsrecord.Record) {
	held := m.high.Load()
	if r.Raw == nil || held.Next == "" || held.Successor != "" {
		return
	}
	release, err := index.ReadRelease(ctx, dag{m: m, kind: directories}, r.Value)
	if err == nil {
		err = m.announced(ctx, held.State, ipnsrecord.Release{Root: r.Value, Number: release.Number, Names: release.Names, Next: release.Next})
	}
	if err != nil {
		m.log.DebugContext(ctx, "an expired record's release tells nothing", "name", held.Name, "error", err)
	}
}

// answer is what one route said, checked.
type answer struct {
	route  string
	record ipnsrecord.Record
	err    error
	// expired is the record where that is all that is wrong with it.
	expired ipnsrecord.Record
}

// resolve asks the node and every gateway for name at once. Each gives one answer before
// or soon after ctx ends.
func (m *Mirror) resolve(ctx context.Context, name ipns.Name) (<-chan answer, int) {
	type route struct {
		name string
		ask  func(context.Context) ([]byte, error)
	}
	var routes []route
	if m.o.Node != nil {
		routes = append(routes, route{"node", func(ctx context.Context) ([]byte, error) { return m.o.Node.Record(ctx, name) }})
	}
	for _, g := range m.o.Gateways {
		routes = append(routes, route{"gateway " + g.URL(), func(ctx context.Context) ([]byte, error) { return g.Record(ctx, name) }})
	}
	answers := make(chan answer, len(routes))
	for _, r := range routes {
		if !m.spawn(func() {
			a := answer{route: r.name}
			raw, err := r.ask(ctx)
			if err == nil {
				a.record, err = ipnsrecord.Check(name, raw, m.o.Now())
			}
			if a.err = err; err != nil {
				a.err = fmt.Errorf("%w: %w", ErrNoRecord, err)
				a.record, a.expired = ipnsrecord.Record{}, a.record
			}
			answers <- a
		}) {
			answers <- answer{route: r.name, err: ErrClosed}
		}
	}
	return answers, len(routes)
}

// follow moves to what the record says, or says why it must not. The order:
// the record's high-water mark is durable before anything is read by it; the
// release's mark and then the whole list are durable before one of its names
// is served. A crash between any two reads the same again, and never an older
// list as newer.
func (m *Mirror) follow(ctx context.Context, r ipnsrecord.Record) error {
	held := m.high.Load()
	state, err := ipnsrecord.Accept(held.State, r)
	if err != nil {
		return m.refuse(ctx, r, err)
	}
	m.stats.mu.Lock()
	m.stats.checked = m.o.Now()
	m.stats.mu.Unlock()
	if state != held.State || held.Record == nil {
		if err := m.keepHighWater(held.moved(state, r.Raw)); err != nil {
			return err
		}
	}
	current := m.head.Load()
	served := current != nil && current.Release.Root.Equals(r.Value)
	if served && state.Root == r.Value.String() {
		return nil
	}

	var release index.Release
	if served { // under the name before, and not held to this one's state yet
		release = current.Release
	} else {
		if release, err = index.ReadRelease(ctx, dag{m: m, kind: directories}, r.Value); err != nil {
			return fmt.Errorf("read release %s: %w", r.Value, err)
		}
		m.dial(release.Peers)
	}
	said := ipnsrecord.Release{Root: r.Value, Number: release.Number, Names: release.Names, Next: release.Next}
	accepted, err := ipnsrecord.AcceptRelease(state, said)
	if err != nil {
		return m.refuse(ctx, r, errors.Join(err, m.announced(ctx, state, said)))
	}
	if accepted.Successor != state.Successor {
		m.log.WarnContext(ctx, "the registry's key was followed by the one that was promised", "name", state.Name, "successor", accepted.Successor)
	}
	if err := m.keepHighWater(held.moved(accepted, r.Raw)); err != nil {
		return err
	}
	if served {
		return nil
	}
	got, err := m.syncList(ctx, r.Value)
	for _, refused := range got.Refused {
		m.log.WarnContext(ctx, "a way to the list led elsewhere; another was taken", "release", release.Number, "error", refused)
	}
	if err != nil {
		return fmt.Errorf("sync release %d: %w", release.Number, err)
	}
	m.log.InfoContext(ctx, "synced", "release", release.Number, "root", r.Value, "sequence", r.Sequence,
		"packages", release.Packages, "by", got.Way, "fetched", got.Fetched)
	return nil
}

// announced takes up the successor of a release that is not followed itself: it fits
// the pin, and so nobody but the owner can have said it first.
func (m *Mirror) announced(ctx context.Context, state ipnsrecord.State, said ipnsrecord.Release) error {
	after, err := ipnsrecord.Announce(state, said)
	if err != nil || state.Next == "" || after == state {
		return nil // why is said already
	}
	m.log.WarnContext(ctx, "the registry's key was followed by the one that was promised", "name", state.Name, "successor", after.Successor)
	held := m.high.Load()
	return m.keepHighWater(held.moved(after, held.Record))
}

// refuse counts a record that must not be followed, keeps the evidence, and
// returns the cause.
func (m *Mirror) refuse(ctx context.Context, r ipnsrecord.Record, cause error) error {
	switch {
	case errors.Is(cause, ipnsrecord.ErrEquivocation), errors.Is(cause, ipnsrecord.ErrSuccessor):
		m.stats.equivocations.Add(1)
		return errors.Join(cause, m.keepEvidence(r, cause))
	case errors.Is(cause, ipnsrecord.ErrRollback):
		m.stats.rollbacks.Add(1)
	}
	return cause
}

// dial connects the node with the peers that the release lists, beside the
// caller, at most maxPeers and ten seconds each.
func (m *Mirror) dial(peers []string) {
	if m.o.Node == nil || len(peers) == 0 || !m.dialing.CompareAndSwap(false, true) {
		return
	}
	if !m.spawn(func() {
		defer m.dialing.Store(false)
		var g errgroup.Group
		g.SetLimit(4)
		for _, addr := range peers[:min(len(peers), maxPeers)] {
			g.Go(func() error {
				ctx, cancel := context.WithTimeout(m.life, 10*time.Second)
				defer cancel()
				if err := m.o.Node.Connect(ctx, addr); err != nil {
					m.log.DebugContext(ctx, "peer not reached", "peer", addr, "error", err)
				}
				return nil
			})
		}
		g.Wait()
	}) {
		m.dialing.Store(false)
	}
}

// Record returns the record that was accepted last, as it came, so that it can be
// handed on; nil before the first.
func (m *Mirror) Record() []byte { return bytes.Clone(m.high.Load().Record) }
