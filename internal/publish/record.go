package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// Result is what a Publish or Republish did.
type Result struct {
	Release   index.Release
	Number    uint64    // of the release
	CID       cid.Cid   // of the release
	Name      ipns.Name // "/ipns/NAME" is the release
	Sequence  uint64
	EOL       time.Time // the record is valid until
	Due       time.Time // from then on a run signs anew
	Packages  int
	Versions  int
	Signed    bool // a new record was signed; else bytes from before were put again
	Routes    []Route
	LocalOnly bool // the node has no peers: nobody else can know yet
	Withheld  []Withheld
	// RolledBack is what a Rollback did; nil for what is none.
	RolledBack *RolledBack
	// Former is what was done under the names that the registry had before, whose
	// overlap has not ended, the oldest first.
	Former []FormerResult
}

// FormerResult is what was done under a former name.
type FormerResult struct {
	Name     ipns.Name
	Until    time.Time // it is kept up
	Sequence uint64
	EOL      time.Time
	Signed   bool
	Routes   []Route
	// Problem is why it was not put, or not read back; nil where it was. It stops
	// nothing: whoever has a stolen key could else stop the registry.
	Problem error
}

// Route is what happened on one way to the network.
type Route struct {
	Name     string // "node", or as it was configured
	Put      string // why the put failed, "" where it did not
	ReadBack bool   // the record, or a longer-lived one of the same value, was read back
	Via      string // how: of the node "gateway" over HTTP, or "node" where it serves none; else "http" or "file"
	Error    string // why it was not read back
}

// Publish builds a release if the ledger moved, and makes the name point at the
// newest. With nothing new it puts the same record again, or, once half of its
// lifetime is over, signs the same release under the next sequence. Errors:
// Build's, ErrIncomplete, ErrNoSequence, ErrNewer, ipnsrecord.ErrEquivocation,
// ErrSigner, ErrUnconfirmed, ErrLocked, ErrJournal, ipfs.ErrAway. The Result is
// filled as far as it came.
func (p *Publisher) Publish(ctx context.Context) (Result, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	release, _, err := p.build(ctx)
	if err != nil {
		return Result{}, err
	}
	result, err := p.publish(ctx, release)
	if errors.Is(err, ErrIndexBehind) {
		// The journal began only now, with what the network has: above that, then.
		if release, _, err = p.build(ctx); err != nil {
			return result, err
		}
		return p.publish(ctx, release)
	}
	return result, err
}

// Republish is Publish for the newest release in the index, without a look at
// the ledger. Further errors: index.ErrNoRelease, ErrIndexBehind.
func (p *Publisher) Republish(ctx context.Context) (Result, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	release, err := p.o.Index.Head()
	if err != nil {
		return Result{}, fmt.Errorf("republish: %w", err)
	}
	return p.publish(ctx, release)
}

// publish is law 2's last part and law 5. In this order, each durable before
// the next begins:
//
//  1. the release's blocks are in the node, synced, and below its pin;
//  2. the intent {sequence, value, EOL, TTL, with or without V1} is in the journal;
//  3. the record is signed, checked, and its bytes are in the journal;
//  4. those bytes are put;
//  5. they are read back by another route, and the journal says so.
//
// A crash between any two: what was not signed is signed from the intent as it
// stands, what was signed is put as it stands; or, where the release has moved
// on or time has run, that sequence is abandoned and the next is used. So there
// are never two values under one sequence.
//
// Once the record of the registry's name is signed, the same is done under each
// former name whose overlap has not ended, with its own journal and sequence.
func (p *Publisher) publish(ctx context.Context, release index.Release) (Result, error) {
	result, err := p.publishName(ctx, release)
	if result.Sequence == 0 {
		return result, err
	}
	for _, f := range p.overlapping() {
		if ctx.Err() != nil {
			return result, errors.Join(err, ctx.Err())
		}
		q := p.as(f)
		q.pushed = release.Root
		r, problem := q.publishName(ctx, release)
		if problem != nil {
			p.o.Log.WarnContext(ctx, "the release was not put under a former name", "registry", p.o.Registry, "name", f.IPNSName.String(), "until", f.Until, "error", problem)
		}
		result.Former = append(result.Former, FormerResult{f.IPNSName, f.Until, r.Sequence, r.EOL, r.Signed, r.Routes, problem})
	}
	return result, err
}

// publishName is publish for one name alone.
func (p *Publisher) publishName(ctx context.Context, release index.Release) (result Result, err error) {
	if p.o.Signer == nil {
		return Result{}, fmt.Errorf("publish %s: %w: none is configured", p.o.Registry, ErrSigner)
	}
	name := p.o.Signer.IPNSName()
	result = Result{
		Release: release, Number: release.Number, CID: release.Root, Name: name,
		Packages: release.Packages, Versions: release.Versions,
	}
	if result.Withheld, err = p.Withheld(); err != nil {
		return result, err
	}
	info, err := p.info(ctx)
	if err != nil {
		return result, err
	}
	result.LocalOnly = info.Peers == 0

	network, views, err := p.network(ctx, name)
	if err != nil {
		return result, err
	}
	j, err := p.ready(ctx, name, network, views, release)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	a, signed, err := p.record(j, name, network, release)
	if err != nil {
		return result, err
	}
	result.Sequence, result.EOL, result.Due, result.Signed = a.Sequence, a.EOL, p.due(a), signed

	result.Routes, err = p.put(ctx, name, a, info)
	if readBack(result.Routes, err) {
		// Readers have it, if not by every route: it counts, and the next run puts
		// it again.
		err = errors.Join(err, p.confirm(ctx, j, a, release))
	}
	if err != nil {
		return result, fmt.Errorf("publish record %d of %s: %w", a.Sequence, name, err)
	}
	if err := hook(p.fault, "read back"); err != nil {
		return result, err
	}
	return result, p.confirm(ctx, j, a, release)
}

// confirm notes that a was read back.
func (p *Publisher) confirm(ctx context.Context, j *journal, a attempt, release index.Release) error {
	if !a.Confirmed.IsZero() {
		return nil
	}
	if err := j.append(line{Op: opConfirmed, Time: p.now(), Sequence: a.Sequence}); err != nil {
		return err
	}
	p.o.Log.InfoContext(ctx, "published release", "registry", p.o.Registry, "name", j.name,
		"release", release.Number, "cid", release.Root.String(), "sequence", a.Sequence, "packages", release.Packages)
	return nil
}

// ready opens the journal for an intent: nothing stands against a record of
// release, and its content is whole in the node.
func (p *Publisher) ready(ctx context.Context, name ipns.Name, network *ipnsrecord.Record, views []RouteStatus, release index.Release) (*journal, error) {
	j, err := p.openJournal(ctx, name, network, views)
	if err != nil {
		return nil, err
	}
	if err = rivals(j.history, views); err == nil {
		var h history
		if h, err = p.spoken(); err == nil && h.passed(release) {
			err = fmt.Errorf("release %d (%s), the journal has %d (%s): %w",
				release.Number, release.Root, h.newest.number, h.newest.root, ErrIndexBehind)
		}
	}
	if err == nil {
		err = p.content(ctx, j, release)
	}
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

func (p *Publisher) now() time.Time { return p.o.Now().UTC() }

func (p *Publisher) info(ctx context.Context) (ipfs.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	info, err := p.o.Node.Info(ctx)
	if err != nil {
		return info, fmt.Errorf("ask the node who it is: %w", err)
	}
	return info, nil
}

// network is the best record that the node or a route has, or nil where they have
// none that can be believed: then the journal alone decides. An expired record
// counts, since its sequence was used. views are what each has.
func (p *Publisher) network(ctx context.Context, name ipns.Name) (_ *ipnsrecord.Record, views []RouteStatus, err error) {
	views = p.views(ctx, name)
	if ctx.Err() != nil {
		return nil, views, ctx.Err()
	}
	var best *ipnsrecord.Record
	for _, v := range views {
		switch {
		case errors.Is(v.Error, ipnsrecord.ErrSequence):
			// Signed by our key and beyond bounds: nothing that we sign would win.
			return nil, views, fmt.Errorf("%s: %w: %w: %w", v.Name, ErrNewer, ErrSpent, v.Error)
		case v.Record != nil:
			if best == nil || ipnsrecord.Better(*v.Record, *best) {
				best = v.Record
			}
		case !errors.Is(v.Error, ipfs.ErrNotFound):
			p.o.Log.WarnContext(ctx, "a record cannot be read", "route", v.Name, "name", name.String(), "error", v.Error)
		}
	}
	return best, views, nil
}

// openJournal opens the journal; where there is none, what the network says
// begins one, and where the network says nothing, or a route cannot be read,
// ErrNoSequence. One that knows no more than what a human said was used at least
// goes on from the network, too.
func (p *Publisher) openJournal(ctx context.Context, name ipns.Name, network *ipnsrecord.Record, views []RouteStatus) (*journal, error) {
	j, err := openJournal(p.o.FS, p.o.Journal, p.fault)
	if errors.Is(err, ErrNoJournal) {
		for _, v := range views {
			if v.Record == nil && !errors.Is(v.Error, ipfs.ErrNotFound) {
				return nil, fmt.Errorf("publish %s: %w: %s: %v", name, ErrNoSequence, v.Name, v.Error)
			}
		}
		if network == nil {
			return nil, fmt.Errorf("publish %s: %w", name, ErrNoSequence)
		}
		p.o.Log.WarnContext(ctx, "there is no journal; going on from the network's record", "journal", p.o.Journal, "name", name.String(), "sequence", network.Sequence)
		if err := create(p.o.FS, p.o.Journal, p.adopted(ctx, name, network), p.fault); err != nil {
			return nil, err
		}
		j, err = openJournal(p.o.FS, p.o.Journal, p.fault)
	}
	if err != nil {
		return nil, err
	}
	if err := p.own(j, name); err != nil {
		return nil, errors.Join(err, j.close())
	}
	if j.floor && network != nil && network.Sequence > j.max {
		if err := j.append(p.adopted(ctx, name, network)); err != nil {
			return nil, errors.Join(err, j.close())
		}
	}
	return j, nil
}

// rivals is rival for each route: one that is behind the others tells of a second
// value too. Routes that have the same are named together.
func rivals(h history, views []RouteStatus) error {
	var all []error
	var names [][]string
	for _, v := range views {
		err := rival(h, v.Record)
		if err == nil {
			continue
		}
		i := slices.IndexFunc(all, func(other error) bool { return other.Error() == err.Error() })
		if i < 0 {
			i, all, names = len(all), append(all, err), append(names, nil)
		}
		names[i] = append(names[i], v.Name)
	}
	for i := range all {
		all[i] = fmt.Errorf("%s: %w", strings.Join(names[i], ", "), all[i])
	}
	return errors.Join(all...)
}

// adopted says that the network's record is the last that was signed, and, where its
// release can be read, which number that has: an index that is behind it as well is
// not published over it.
func (p *Publisher) adopted(ctx context.Context, name ipns.Name, network *ipnsrecord.Record) line {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	release, err := index.ReadRelease(ctx, p.o.Node, network.Value)
	if err != nil {
		p.o.Log.WarnContext(ctx, "the release of the network's record cannot be read; readers who have it refuse one with a lower number", "cid", network.Value.String(), "error", err)
	}
	return line{
		Op: opAdopted, Format: journalFormat, Time: p.now(), Name: name.String(), Sequence: network.Sequence, Release: release.Number,
		Value: network.Value.String(), EOL: network.EOL, TTL: network.TTL, Record: network.Raw,
	}
}

// own refuses a journal of another name.
func (p *Publisher) own(j *journal, name ipns.Name) error {
	if j.name != "" && j.name != name.String() {
		return fmt.Errorf("%s: %w: it is of %s, not of %s", p.o.Journal, ErrJournal, j.name, name)
	}
	return nil
}

// rival refuses to go on beside a record that this journal did not sign. One
// that holds no more than what a human said knows of no record.
func rival(h history, network *ipnsrecord.Record) error {
	if network == nil || h.floor {
		return nil
	}
	ours := "nothing"
	if h.last != nil {
		ours = fmt.Sprintf("sequence %d (%s)", h.last.Sequence, h.last.Value)
	} else if h.used {
		ours = fmt.Sprintf("sequence %d", h.max)
	}
	theirs := fmt.Sprintf("sequence %d (%s)", network.Sequence, network.Value)
	switch {
	case !h.used || network.Sequence > h.max:
		return fmt.Errorf("the network has %s, the journal %s: %w", theirs, ours, ErrNewer)
	case h.last != nil && network.Sequence == h.last.Sequence && network.Value != h.last.Value:
		return fmt.Errorf("the network has %s, the journal %s: %w", theirs, ours, ipnsrecord.ErrEquivocation)
	}
	return nil
}

// record gives the attempt to put, signed and in the journal.
func (p *Publisher) record(j *journal, name ipns.Name, network *ipnsrecord.Record, release index.Release) (attempt, bool, error) {
	a, err := p.intend(j, name, network, release)
	if err != nil || a.Record != nil {
		return a, false, err // a restart, or nothing new: those very bytes
	}
	return p.sign(j, name, a)
}

// intend gives the attempt that stands for release, in the journal: signed or
// to be signed.
func (p *Publisher) intend(j *journal, name ipns.Name, network *ipnsrecord.Record, release index.Release) (attempt, error) {
	now := p.now()
	if a := j.last; a != nil && !a.Abandoned {
		if a.Value == release.Root && now.Before(p.due(*a)) {
			return *a, nil
		}
		if a.Confirmed.IsZero() {
			if err := j.append(line{Op: opAbandoned, Time: now, Sequence: a.Sequence}); err != nil {
				return attempt{}, err
			}
		}
	}
	last := j.max
	if network != nil {
		last = max(last, network.Sequence)
	}
	a := attempt{
		Sequence: last + 1, Release: release.Number, Value: release.Root,
		EOL: now.Add(p.o.Lifetime).Truncate(time.Second), TTL: p.o.TTL, V2Only: p.o.V2Only,
	}
	if a.Sequence >= ipnsrecord.MaxSequence {
		return attempt{}, fmt.Errorf("publish %s: %w: %w: %d", name, ErrSpent, ipnsrecord.ErrSequence, a.Sequence)
	}
	return a, j.append(a.intent(name, now))
}

// due is from when on the release of a is signed anew: half of the lifetime that
// records have now is left of it.
func (p *Publisher) due(a attempt) time.Time { return a.EOL.Add(-p.o.Lifetime / 2) }

// intent is the line that says what a is to say.
func (a attempt) intent(name ipns.Name, now time.Time) line {
	return line{
		Op: opIntent, Time: now, Name: name.String(), Sequence: a.Sequence,
		Release: a.Release, Value: a.Value.String(), EOL: a.EOL, TTL: a.TTL, V2Only: a.V2Only,
	}
}

// sign signs what the journal says is intended, and keeps it there.
func (p *Publisher) sign(j *journal, name ipns.Name, a attempt) (attempt, bool, error) {
	sign := p.o.Signer.Sign
	if a.V2Only {
		sign = p.o.Signer.SignV2Only
	}
	raw, err := sign(a.Value, a.Sequence, a.EOL, a.TTL)
	if err != nil {
		return attempt{}, false, fmt.Errorf("%w: %w", ErrSigner, err)
	}
	r, err := ipnsrecord.Check(name, raw, p.now())
	if err != nil {
		return attempt{}, false, fmt.Errorf("%w: what it signed: %w", ErrSigner, err)
	}
	if !a.same(signed(r)) {
		return attempt{}, false, fmt.Errorf("%w: it signed something else", ErrSigner)
	}
	if err := hook(p.fault, "signed"); err != nil {
		return attempt{}, false, err
	}
	if err := j.append(line{Op: opRecord, Time: p.now(), Sequence: a.Sequence, Record: raw}); err != nil {
		return attempt{}, false, err
	}
	a.Record = raw
	return a, true, nil
}

// signed is the attempt whose record r is, but for the release's number.
func signed(r ipnsrecord.Record) attempt {
	return attempt{Sequence: r.Sequence, Value: r.Value, EOL: r.EOL, TTL: r.TTL, V2Only: r.V2Only, Record: r.Raw}
}

// same says whether a and b intend the same record.
func (a attempt) same(b attempt) bool {
	return a.Value == b.Value && a.Sequence == b.Sequence && a.EOL.Equal(b.EOL) && a.TTL == b.TTL && a.V2Only == b.V2Only
}

// compare says whether raw shows that a is what readers now get.
func (p *Publisher) compare(name ipns.Name, a attempt, raw []byte) error {
	if bytes.Equal(raw, a.Record) {
		return nil
	}
	got, err := ipnsrecord.Check(name, raw, p.now())
	if err != nil {
		return err
	}
	switch {
	case got.Sequence > a.Sequence:
		return backoff.Permanent(fmt.Errorf("sequence %d (%s) instead of %d (%s): %w", got.Sequence, got.Value, a.Sequence, a.Value, ErrNewer))
	case got.Sequence == a.Sequence && got.Value != a.Value:
		return backoff.Permanent(fmt.Errorf("sequence %d is %s and %s: %w", a.Sequence, got.Value, a.Value, ipnsrecord.ErrEquivocation))
	case got.Sequence < a.Sequence:
		return fmt.Errorf("sequence %d is still there", got.Sequence)
	}
	return nil
}
