package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	Packages  int
	Versions  int
	Signed    bool // a new record was signed; else bytes from before were put again
	Routes    []Route
	LocalOnly bool // the node has no peers: nobody else can know yet
	Withheld  []Withheld
	// RolledBack is what a Rollback did; nil for what is none.
	RolledBack *RolledBack
}

// Route is what happened on one way to the network.
type Route struct {
	Name     string // "node"
	Put      string // why the put failed, "" where it did not
	ReadBack bool   // the record, or a longer-lived one of the same value, was read back
	Via      string // how: "gateway" over HTTP, or "node" where it serves none
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
	return p.publish(ctx, release)
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
//  2. the intent {sequence, value, EOL, TTL} is in the journal;
//  3. the record is signed, checked, and its bytes are in the journal;
//  4. those bytes are put;
//  5. they are read back by another route, and the journal says so.
//
// A crash between any two: what was not signed is signed from the intent as it
// stands, what was signed is put as it stands; or, where the release has moved
// on or time has run, that sequence is abandoned and the next is used. So there
// are never two values under one sequence.
func (p *Publisher) publish(ctx context.Context, release index.Release) (result Result, err error) {
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

	network, err := p.network(ctx, name)
	if err != nil {
		return result, err
	}
	j, err := p.openJournal(name, network)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	if err := rival(j.history, network); err != nil {
		return result, err
	}
	if j.passed(release) {
		return result, fmt.Errorf("release %d (%s), the journal has %d (%s): %w",
			release.Number, release.Root, j.newest.number, j.newest.root, ErrIndexBehind)
	}
	if err := p.content(ctx, j, release); err != nil {
		return result, err
	}
	a, signed, err := p.record(j, name, network, release)
	if err != nil {
		return result, err
	}
	result.Sequence, result.EOL, result.Signed = a.Sequence, a.EOL, signed

	route, err := p.put(ctx, name, a, info)
	result.Routes = []Route{route}
	if err != nil {
		return result, fmt.Errorf("publish record %d of %s: %w", a.Sequence, name, err)
	}
	if err := hook(p.fault, "read back"); err != nil {
		return result, err
	}
	if a.Confirmed.IsZero() {
		if err := j.append(line{Op: opConfirmed, Time: p.now(), Sequence: a.Sequence}); err != nil {
			return result, err
		}
		p.o.Log.InfoContext(ctx, "published release", "registry", p.o.Registry, "name", name.String(),
			"release", release.Number, "cid", release.Root.String(), "sequence", a.Sequence, "packages", release.Packages)
	}
	return result, nil
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

// network is the best record that the node can find, or nil where it finds
// none that can be believed: then the journal alone decides. An expired record
// counts, since its sequence was used.
func (p *Publisher) network(ctx context.Context, name ipns.Name) (*ipnsrecord.Record, error) {
	look, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	raw, err := p.o.Node.Record(look, name)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !errors.Is(err, ipfs.ErrNotFound) {
			p.o.Log.WarnContext(ctx, "the network's record cannot be read", "name", name.String(), "error", err)
		}
		return nil, nil
	}
	r, err := ipnsrecord.Check(name, raw, p.now())
	if errors.Is(err, ipnsrecord.ErrSequence) {
		// Signed by our key and beyond bounds: nothing that we sign would win.
		return nil, fmt.Errorf("%w: %w", ErrNewer, err)
	}
	if err != nil && !errors.Is(err, ipnsrecord.ErrExpired) {
		p.o.Log.WarnContext(ctx, "the network's record is not valid", "name", name.String(), "error", err)
		return nil, nil
	}
	return &r, nil
}

// openJournal opens the journal; where there is none, what the network says
// begins one, and where the network says nothing, ErrNoSequence.
func (p *Publisher) openJournal(name ipns.Name, network *ipnsrecord.Record) (*journal, error) {
	j, err := openJournal(p.o.FS, p.o.Journal, p.fault)
	if errors.Is(err, ErrNoJournal) {
		if network == nil {
			return nil, fmt.Errorf("publish %s: %w", name, ErrNoSequence)
		}
		p.o.Log.Warn("journal is missing; going on from the network's record", "journal", p.o.Journal, "name", name.String(), "sequence", network.Sequence)
		err = create(p.o.FS, p.o.Journal, line{
			Op: opAdopted, Time: p.now(), Name: name.String(), Sequence: network.Sequence,
			Value: network.Value.String(), EOL: network.EOL, TTL: network.TTL, Record: network.Raw,
		}, p.fault)
		if err != nil {
			return nil, err
		}
		j, err = openJournal(p.o.FS, p.o.Journal, p.fault)
	}
	if err != nil {
		return nil, err
	}
	if j.name != "" && j.name != name.String() {
		return nil, errors.Join(fmt.Errorf("%s: %w: it is of %s, not of %s", p.o.Journal, ErrJournal, j.name, name), j.close())
	}
	return j, nil
}

// rival refuses to go on beside a record that this journal did not sign.
func rival(h history, network *ipnsrecord.Record) error {
	if network == nil {
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
	now := p.now()
	if a := j.last; a != nil && !a.Abandoned {
		if a.Value == release.Root && a.EOL.Sub(now) > p.o.Lifetime/2 {
			if a.Record != nil {
				return *a, false, nil // a restart, or nothing new: those very bytes
			}
			return p.sign(j, name, *a) // the intent stands
		}
		if a.Confirmed.IsZero() {
			if err := j.append(line{Op: opAbandoned, Time: now, Sequence: a.Sequence}); err != nil {
				return attempt{}, false, err
			}
		}
	}
	last := j.max
	if network != nil {
		last = max(last, network.Sequence)
	}
	a := attempt{
		Sequence: last + 1, Release: release.Number, Value: release.Root,
		EOL: now.Add(p.o.Lifetime).Truncate(time.Second), TTL: p.o.TTL,
	}
	if a.Sequence >= ipnsrecord.MaxSequence {
		return attempt{}, false, fmt.Errorf("publish %s: %w: %d", name, ipnsrecord.ErrSequence, a.Sequence)
	}
	err := j.append(line{
		Op: opIntent, Time: now, Name: name.String(), Sequence: a.Sequence,
		Release: a.Release, Value: a.Value.String(), EOL: a.EOL, TTL: a.TTL,
	})
	if err != nil {
		return attempt{}, false, err
	}
	return p.sign(j, name, a)
}

// sign signs what the journal says is intended, and keeps it there.
func (p *Publisher) sign(j *journal, name ipns.Name, a attempt) (attempt, bool, error) {
	raw, err := p.o.Signer.Sign(a.Value, a.Sequence, a.EOL, a.TTL)
	if err != nil {
		return attempt{}, false, fmt.Errorf("%w: %w", ErrSigner, err)
	}
	r, err := ipnsrecord.Check(name, raw, p.now())
	if err != nil {
		return attempt{}, false, fmt.Errorf("%w: what it signed: %w", ErrSigner, err)
	}
	if r.Value != a.Value || r.Sequence != a.Sequence || !r.EOL.Equal(a.EOL) {
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

// put hands the record to the node and reads it back over HTTP. A put that
// fails may have reached someone, and one that does not may have reached
// nobody: only the reading back counts.
func (p *Publisher) put(ctx context.Context, name ipns.Name, a attempt, info ipfs.Info) (Route, error) {
	route := Route{Name: "node"}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		ctx, cancel := context.WithTimeout(ctx, networkTimeout)
		defer cancel()
		err := p.o.Node.PutRecord(ctx, name, a.Record)
		if errors.Is(err, ipfs.ErrSuperseded) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(p.retry()), backoff.WithMaxTries(p.putTries))
	if ctx.Err() != nil {
		return route, ctx.Err()
	}
	if err != nil {
		route.Put = err.Error()
	}
	if err := hook(p.fault, "put"); err != nil {
		return route, err
	}

	read, via := p.readNode, "node"
	if info.Gateway != "" {
		read, via = p.readGateway(info.Gateway), "gateway"
	}
	route.Via = via
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		raw, err := read(ctx, name)
		if err == nil {
			err = p.compare(name, a, raw)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(p.retry()), backoff.WithMaxTries(p.readTries))
	if ctx.Err() != nil {
		return route, ctx.Err()
	}
	if err != nil {
		route.Error = err.Error()
		if errors.Is(err, ErrNewer) || errors.Is(err, ipnsrecord.ErrEquivocation) {
			return route, err
		}
		return route, fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	route.ReadBack = true
	return route, nil
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

func (p *Publisher) readNode(ctx context.Context, name ipns.Name) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	return p.o.Node.Record(ctx, name)
}

// readGateway asks for the record over HTTP, as readers without a node do
// (https://specs.ipfs.tech/routing/http-routing-v1/).
func (p *Publisher) readGateway(gateway string) func(context.Context, ipns.Name) ([]byte, error) {
	base := strings.TrimRight(gateway, "/") + "/routing/v1/ipns/"
	return func(ctx context.Context, name ipns.Name) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, httpTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+name.String(), nil)
		if err != nil {
			return nil, backoff.Permanent(err)
		}
		req.Header.Set("Accept", ipnsrecord.MediaType)
		req.Header.Set("Cache-Control", "no-cache")
		resp, err := p.o.HTTP.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(io.LimitReader(resp.Body, int64(ipnsrecord.MaxSize)+1))
		if err != nil {
			return nil, fmt.Errorf("GET %s: %w", req.URL, err)
		}
		// A router that knows no record says so with 200 and another type.
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), ipnsrecord.MediaType) {
			return nil, fmt.Errorf("GET %s: %s, %q", req.URL, resp.Status, resp.Header.Get("Content-Type"))
		}
		return raw, nil
	}
}
