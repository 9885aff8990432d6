package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// Run keeps the list up to date until ctx ends, and then returns nil: it asks
// every route at once, then each when it is due (see pause), and all whenever
// Refresh is called. A failure is logged, shown in Status and tried again.
func (m *Mirror) Run(ctx context.Context) error {
	of := cmp.Or(m.newest, m) // whose descriptions there are
	of.spawn(func() { of.describeHeld(ctx) })
	if m.o.Offline {
		<-ctx.Done()
		return nil
	}
	m.handOn(ctx) // what the last run accepted
	m.spawn(func() { m.announceHeld(ctx) })
	said := map[string]bool{} // of the failures since the last success
	routes := m.routes
	for {
		err := m.sync(ctx, routes)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil && m.o.Root.Defined():
			<-ctx.Done() // there will never be another
			return nil
		case err == nil && len(said) > 0:
			m.log.InfoContext(ctx, "the registry is reached again")
			clear(said)
		case err != nil && !said[causeOf(err)]: // the same failure is said once
			said[causeOf(err)] = true
			m.log.WarnContext(ctx, "sync failed", "error", err)
		}
		wait := time.NewTimer(time.Until(m.due()))
		select {
		case <-ctx.Done():
		case <-wait.C:
			routes = m.dueAt(time.Now())
		case <-m.refresh:
			routes = m.routes
		}
		wait.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// causeOf is that by which one failure is told from another. Their texts will not do:
// they differ by ports, times and which route answered first.
func causeOf(err error) string {
	for _, one := range []error{
		ipnsrecord.ErrEquivocation, ipnsrecord.ErrRollback, ErrNoSuccessor, ErrChain, ipnsrecord.ErrExpired,
		ipnsrecord.ErrSignature, ErrNoRecord, ErrUnavailable,
	} {
		if errors.Is(err, one) {
			return one.Error()
		}
	}
	return err.Error()
}

// Refresh tells Run that there is a new record. It does not wait.
func (m *Mirror) Refresh() {
	select {
	case m.refresh <- struct{}{}:
	default: // one is due already
	}
}

// route is one way to the name's record.
type route struct {
	name string
	ask  func(context.Context, ipns.Name) ([]byte, error)
	// cached says that others keep the record for its TTL on this way: asking
	// more often is a burden to them and no use.
	cached bool
	// Guarded by Mirror.dueMu.
	due  time.Time   // when Run asks again
	last RouteStatus // what it said last
}

const (
	// A route is kept busy with us for at most one part in patience of the time.
	patience = 50
	quickest = time.Second     // between two questions to one route
	afresh   = 5 * time.Second // after a route failed, at the latest
)

// pause is how long a route is left alone after an answer that took so long.
// Where an answer costs next to nothing, as of a node whose peers are on the
// same network, it is asked every second, so that a release is here before a
// person is; a walk through the public DHT is worth its record's TTL, and so is
// a cache.
func (m *Mirror) pause(r *route, took time.Duration, err error) time.Duration {
	if m.o.Interval > 0 {
		return m.o.Interval
	}
	longest := m.longest()
	switch {
	case err != nil && !errors.Is(err, ipfs.ErrNotFound):
		return min(max(patience*took, afresh), longest)
	case r.cached:
		return longest
	}
	return min(max(patience*took, quickest), longest)
}

// longest is how long no route is left alone for more than: the record's TTL,
// within bounds.
func (m *Mirror) longest() time.Duration {
	if m.o.Interval > 0 {
		return m.o.Interval
	}
	if high := m.high.Load(); high.Record != nil {
		if r, _ := ipnsrecord.Check(m.following(), high.Record, m.o.Now()); r.TTL > 0 {
			return min(max(r.TTL, 5*time.Second), 5*time.Minute)
		}
	}
	return defaultInterval
}

// rest leaves a route alone for a while that was asked at began and has answered now.
func (m *Mirror) rest(r *route, began time.Time, err error) {
	now := time.Now()
	pause := jitter(m.pause(r, now.Sub(began), err))
	m.dueMu.Lock()
	defer m.dueMu.Unlock()
	r.due = now.Add(pause)
}

// heard notes for Status what a route said.
func (m *Mirror) heard(a answer) {
	said := RouteStatus{Name: a.route.name, Sequence: max(a.record.Sequence, a.expired.Sequence)}
	said.Expired = a.expired.Raw != nil || a.record.Raw != nil && m.o.Now().After(a.record.EOL)
	if a.err != nil && !said.Expired {
		said.Error = a.err.Error()
	}
	m.dueMu.Lock()
	defer m.dueMu.Unlock()
	a.route.last = said
}

// routeStatus is what each route said last.
func (m *Mirror) routeStatus() (all []RouteStatus) {
	m.dueMu.Lock()
	defer m.dueMu.Unlock()
	for _, r := range m.routes {
		if r.last.Name != "" {
			all = append(all, r.last)
		}
	}
	return all
}

// jitter is d with a tenth of chance in it, so that a farm of mirrors does not
// ask as one.
func jitter(d time.Duration) time.Duration {
	return d - d/20 + time.Duration(rand.Int64N(int64(d)/10+1))
}

// due is when the first route is to be asked again.
func (m *Mirror) due() time.Time {
	m.dueMu.Lock()
	defer m.dueMu.Unlock()
	return slices.MinFunc(m.routes, func(a, b *route) int { return a.due.Compare(b.due) }).due
}

// dueAt is which routes are to be asked at a time.
func (m *Mirror) dueAt(now time.Time) (due []*route) {
	m.dueMu.Lock()
	defer m.dueMu.Unlock()
	for _, r := range m.routes {
		if !r.due.After(now) {
			due = append(due, r)
		}
	}
	return due
}

// waysTo lists the routes to records: the node, every gateway, and what Routes names.
func waysTo(o Options) (routes []*route) {
	if o.Node != nil {
		routes = append(routes, &route{name: "node", ask: o.Node.Record})
	}
	for _, g := range o.Gateways {
		routes = append(routes, &route{name: "gateway " + g.URL(), cached: true, ask: g.Record})
	}
	for _, r := range o.Routes {
		routes = append(routes, &route{name: "route " + r.Name, cached: r.Cached, ask: r.Get})
	}
	return routes
}

// Sync does one round: it asks every route for the record, follows the best
// that it may follow, and reads the list where that is new. It returns nil when
// the list served is the one that the newest valid record points at. While
// another round runs, it waits for that first.
func (m *Mirror) Sync(ctx context.Context) error { return m.sync(ctx, m.routes) }

// sync is Sync by some of the routes. Where those are not all, it is no failure
// that they know less than another one said not long ago.
func (m *Mirror) sync(ctx context.Context, routes []*route) error {
	if !m.enter() {
		return ErrClosed
	}
	defer m.leave()
	if m.o.Offline {
		return fmt.Errorf("sync %s: %w", m.Address(), ErrOffline)
	}
	select {
	case m.syncing <- struct{}{}:
		defer func() { <-m.syncing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if h := m.head.Load(); h != nil {
		m.dial(h.Release.Peers)
	}
	var err error
	if m.o.Root.Defined() {
		err = m.frozen(ctx)
	} else {
		err = m.round(ctx, routes)
	}
	if ctx.Err() == nil {
		err = m.succession(ctx, err)
	}
	if ctx.Err() == nil {
		m.stats.mu.Lock()
		m.stats.failure, m.stats.expired = "", errors.Is(err, ipnsrecord.ErrExpired)
		if err != nil {
			m.stats.failure = err.Error()
		}
		m.stats.mu.Unlock()
	}
	return err
}

// frozen reads the one release that there is. It needs the syncing token.
func (m *Mirror) frozen(ctx context.Context) error {
	began := time.Now()
	if m.head.Load().serves(m.o.Root) {
		return nil
	}
	release, err := index.ReadRelease(ctx, dag{m: m, kind: directories}, m.o.Root)
	if err == nil {
		m.dial(release.Peers)
		var got index.Synced
		got, err = m.syncList(ctx, m.o.Root)
		m.warnRefused(ctx, got)
	}
	for _, r := range m.routes {
		m.rest(r, began, err)
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", m.Address(), err)
	}
	m.log.InfoContext(ctx, "synced", "release", release.Number, "root", m.o.Root, "packages", release.Packages)
	return nil
}

// Address is the path that the mirror serves: "/ipns/NAME" or "/ipfs/CID".
func (m *Mirror) Address() string {
	if m.o.Root.Defined() {
		return "/ipfs/" + m.o.Root.String()
	}
	return "/ipns/" + m.following().String()
}

// name is what a Status calls it.
func (m *Mirror) name() string {
	if m.newest != nil {
		return m.newest.name()
	}
	return strings.TrimPrefix(m.Address(), "/ipns/")
}

// round needs the syncing token. A record is followed as soon as it is there:
// a slow route never holds a fast one up.
func (m *Mirror) round(ctx context.Context, routes []*route) error {
	resolving, cancel := context.WithTimeout(ctx, resolveDeadline)
	defer cancel()
	name := m.following()
	began := time.Now()
	answers := m.resolve(resolving, routes, name)
	pending := len(routes)
	waiting := slices.Clone(routes)
	defer func() {
		for _, r := range waiting {
			m.rest(r, began, context.DeadlineExceeded)
		}
	}()
	followed, known := false, len(routes) < len(m.routes) && m.confirmed()
	var expired ipnsrecord.Record // the best of those
	var errs []error
	for pending > 0 {
		var seen []answer
		select {
		case a := <-answers:
			seen = append(seen, a)
		case <-resolving.Done():
			if (followed || known) && ctx.Err() == nil {
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
		for _, a := range seen {
			m.rest(a.route, began, a.err)
			m.heard(a)
			waiting = slices.DeleteFunc(waiting, func(r *route) bool { return r == a.route })
		}
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
				m.log.DebugContext(ctx, "route gave no record", "route", a.route.name, "error", a.err)
				if errors.Is(a.err, ipnsrecord.ErrExpired) && ipnsrecord.Better(a.expired, expired) {
					expired = a.expired
				}
				if !followed && !known {
					errs = append(errs, fmt.Errorf("%s: %w", a.route.name, a.err))
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
			case (followed || known) && errors.Is(err, ipnsrecord.ErrRollback):
				// A route that lags behind another is no cause for alarm.
			default:
				errs = append(errs, fmt.Errorf("record from %s: %w", a.route.name, err))
			}
		}
	}
	if !followed {
		m.hear(ctx, expired)
	}
	if !followed && !known && len(errs) == 0 {
		return ErrNoRecord
	}
	return errors.Join(errs...)
}

// confirmed says whether a route gave a valid record not long ago.
func (m *Mirror) confirmed() bool {
	m.stats.mu.Lock()
	defer m.stats.mu.Unlock()
	return !m.stats.checked.IsZero() && m.o.Now().Sub(m.stats.checked) < 2*m.longest()
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
	route  *route
	record ipnsrecord.Record
	err    error
	// expired is the record where that is all that is wrong with it.
	expired ipnsrecord.Record
}

// resolve asks routes for name at once. Each gives one answer before or soon after
// ctx ends.
func (m *Mirror) resolve(ctx context.Context, routes []*route, name ipns.Name) <-chan answer {
	answers := make(chan answer, len(routes))
	for _, r := range routes {
		if !m.spawn(func() {
			a := answer{route: r}
			raw, err := r.ask(ctx, name)
			if err == nil {
				a.record, err = ipnsrecord.Check(name, raw, m.o.Now())
				if m.o.AcceptStale && errors.Is(err, ipnsrecord.ErrExpired) {
					err = nil
				}
			}
			if a.err = err; err != nil {
				a.err = fmt.Errorf("%w: %w", ErrNoRecord, err)
				a.record, a.expired = ipnsrecord.Record{}, a.record
			}
			answers <- a
		}) {
			answers <- answer{route: r, err: ErrClosed}
		}
	}
	return answers
}

// follow moves to what the record says, or says why it must not. The order:
// the record's high-water mark is durable before anything is read by it; the
// release's mark and then the whole list are durable before one of its names
// is served. A crash between any two reads the same again, and never an older
// list as newer.
func (m *Mirror) follow(ctx context.Context, r ipnsrecord.Record) error {
	return m.followBy(ctx, r, false, func(release index.Release) error {
		got, err := m.syncList(ctx, r.Value)
		m.warnRefused(ctx, got)
		if err != nil {
			return err
		}
		m.log.InfoContext(ctx, "synced", "release", release.Number, "root", r.Value, "sequence", r.Sequence,
			"packages", release.Packages, "by", got.Way, "fetched", got.Fetched)
		return nil
	})
}

// followBy is follow where the release's list comes by arrive, which serves it. A record
// that is brought, by a person with a bundle, is refused where it is old, and does not
// count: it says nothing of the network.
func (m *Mirror) followBy(ctx context.Context, r ipnsrecord.Record, brought bool, arrive func(index.Release) error) error {
	held := m.high.Load()
	state, err := ipnsrecord.Accept(held.State, r)
	if brought && errors.Is(err, ipnsrecord.ErrRollback) {
		return err
	}
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
		m.handOn(ctx)
	}
	current := m.head.Load()
	served := current.serves(r.Value)
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
	if err := arrive(release); err != nil {
		return fmt.Errorf("sync release %d: %w", release.Number, err)
	}
	return nil
}

// warnRefused tells of ways to a list that led elsewhere.
func (m *Mirror) warnRefused(ctx context.Context, got index.Synced) {
	for _, refused := range got.Refused {
		m.log.WarnContext(ctx, "a way to the list led elsewhere; another was taken", "release", got.Release.Number, "error", refused)
	}
}

// handOn gives the node the record that was accepted last.
func (m *Mirror) handOn(ctx context.Context) {
	keeper, ok := m.o.Node.(RecordKeeper)
	high := m.high.Load()
	if !ok || high.Record == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, localDeadline)
	defer cancel()
	if err := keeper.KeepRecord(ctx, m.following(), high.Record); err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "the node does not hand on the record", "error", err)
	}
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
	again := bytes.Equal(r.Raw, m.refused) // however often it is given, it counts once
	m.refused = r.Raw
	switch {
	case errors.Is(cause, ipnsrecord.ErrEquivocation), errors.Is(cause, ipnsrecord.ErrSuccessor):
		if again {
			return cause
		}
		m.stats.equivocations.Add(1)
		err := m.keepEvidence(r, cause)
		if err != nil {
			m.refused = nil // to keep it the next time
		}
		return errors.Join(cause, err)
	case errors.Is(cause, ipnsrecord.ErrRollback) && !again:
		m.stats.rollbacks.Add(1)
	}
	return cause
}

// dial connects the node with the peers that the release lists, beside the
// caller, at most maxPeers and ten seconds each.
func (m *Mirror) dial(peers []string) {
	if m.o.Node == nil || m.o.Offline || len(peers) == 0 || !m.dialing.CompareAndSwap(false, true) {
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
