package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// Offline signing is Publish in three parts, on machines that need not know each
// other: Draft where ledger, node and journal are, SignDraft where the key is, Put
// wherever there is a node.

var (
	// ErrDraft is returned for what is not, byte for byte, a draft as Draft writes it.
	ErrDraft = errors.New("not a draft of a record")
	// ErrSigned is returned by Draft when the newest release has a record that was
	// signed and will do.
	ErrSigned = errors.New("nothing to sign: the newest release has its record")
	// ErrOvertaken is returned for a draft or a record below a newer sequence, or
	// of one that was abandoned. Nothing is signed or put.
	ErrOvertaken = errors.New("a newer record took its place")
	// ErrNotDrafted is returned by Put for a record that says what the journal
	// intends, but not with the same end of life, TTL, form or bytes.
	ErrNotDrafted = errors.New("not the record that the journal intends")
	// ErrNotKept is returned by DraftFormer for a name that the registry never had,
	// or that is not kept up any more.
	ErrNotKept = errors.New("not a former name of this registry that is kept up")
	// ErrLifetime is returned by SignDraft for a draft that would be valid for
	// longer than MaxLifetime.
	ErrLifetime = errors.New("a record would be valid for too long")
)

const (
	draftFormat = 1
	// maxDraft bounds a draft in bytes; one takes about 350.
	maxDraft = 4 << 10
)

// Draft is a record to be signed: an intent that is in the journal of the
// machine that drafted it.
type Draft struct {
	Name     ipns.Name
	Release  uint64 // its number
	Value    cid.Cid
	Sequence uint64
	EOL      time.Time // whole seconds
	TTL      time.Duration
	V2Only   bool
}

type draftJSON struct {
	Format   int           `json:"format"`
	Name     string        `json:"name"`
	Release  uint64        `json:"release"`
	Value    string        `json:"value"`
	Sequence uint64        `json:"sequence"`
	EOL      time.Time     `json:"eol"`
	TTL      time.Duration `json:"ttl"` // nanoseconds
	V2Only   bool          `json:"v2_only"`
}

// Encode gives the draft's one form: JSON in lines.
func (d Draft) Encode() ([]byte, error) {
	text, err := json.MarshalIndent(draftJSON{
		draftFormat, d.Name.String(), d.Release, d.Value.String(), d.Sequence, d.EOL.UTC(), d.TTL, d.V2Only,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode draft: %w", err)
	}
	return append(text, '\n'), nil
}

// ParseDraft reads a draft. It must be Encode's own bytes, so that no two readers
// take it for two things: JSON has many ways to say one, and to say two. Error:
// ErrDraft.
func ParseDraft(raw []byte) (Draft, error) {
	if len(raw) > maxDraft {
		return Draft{}, fmt.Errorf("%w: over %d bytes", ErrDraft, maxDraft)
	}
	var v draftJSON
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return Draft{}, fmt.Errorf("%w: %w", ErrDraft, err)
	}
	if v.Format != draftFormat {
		return Draft{}, fmt.Errorf("%w: its format is %d, this version knows %d", ErrDraft, v.Format, draftFormat)
	}
	d := Draft{Release: v.Release, Sequence: v.Sequence, EOL: v.EOL, TTL: v.TTL, V2Only: v.V2Only}
	var err error
	if d.Name, err = ipns.NameFromString(v.Name); err != nil {
		return Draft{}, fmt.Errorf("%w: name: %w", ErrDraft, err)
	}
	if d.Value, err = cid.Decode(v.Value); err != nil {
		return Draft{}, fmt.Errorf("%w: value: %w", ErrDraft, err)
	}
	if d.Sequence == 0 || d.Sequence >= ipnsrecord.MaxSequence {
		return Draft{}, fmt.Errorf("%w: sequence %d", ErrDraft, d.Sequence)
	}
	if d.TTL < 0 || !d.EOL.Equal(d.EOL.Truncate(time.Second)) {
		return Draft{}, fmt.Errorf("%w: TTL %s, end of life %s", ErrDraft, d.TTL, d.EOL.Format(time.RFC3339Nano))
	}
	if own, err := d.Encode(); err != nil || !bytes.Equal(own, raw) {
		return Draft{}, fmt.Errorf("%w: it was written by something else, or changed", ErrDraft)
	}
	return d, nil
}

func (d Draft) attempt() attempt {
	return attempt{Sequence: d.Sequence, Release: d.Release, Value: d.Value, EOL: d.EOL, TTL: d.TTL, V2Only: d.V2Only}
}

// String is what the record says, to tell it from another of its sequence.
func (a attempt) String() string {
	form := "V1 and V2"
	if a.V2Only {
		form = "V2 only"
	}
	return fmt.Sprintf("%s until %s, TTL %s, %s", a.Value, a.EOL.Format(time.RFC3339), a.TTL, form)
}

// Draft is Publish up to the signature: a release is built if the ledger moved,
// its content is whole in the node, and the intent is in the journal, each durable
// before the next begins. Drafted again, it is the same draft, until the release
// moves on or half of Lifetime is over: then that sequence is abandoned and the
// next is used. Publish, where there is a key, signs the same intent to the same
// bytes. With ErrSigned there is nothing to sign, and the Draft is of the record
// that was. Further errors: Publish's, but for the signer's and the putting.
func (p *Publisher) Draft(ctx context.Context) (Draft, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	release, _, err := p.build(ctx)
	if err != nil {
		return Draft{}, err
	}
	return p.draft(ctx, release)
}

// DraftFormer is Draft for a name that the registry had before and whose overlap has
// not ended: it is to point at the same release. Further error: ErrNotKept.
func (p *Publisher) DraftFormer(ctx context.Context, name ipns.Name) (Draft, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	for _, f := range p.overlapping() {
		if !f.IPNSName.Equal(name) {
			continue
		}
		release, _, err := p.build(ctx)
		if err != nil {
			return Draft{}, err
		}
		h, err := p.spoken()
		if err != nil {
			return Draft{}, err
		}
		q := p.as(f)
		q.pushed = h.pinned.root
		return q.draft(ctx, release)
	}
	return Draft{}, fmt.Errorf("draft for %s: %w", name, ErrNotKept)
}

func (p *Publisher) draft(ctx context.Context, release index.Release) (d Draft, err error) {
	name := p.o.IPNSName
	network, views, err := p.network(ctx, name)
	if err != nil {
		return Draft{}, err
	}
	j, err := p.ready(ctx, name, network, views, release)
	if err != nil {
		return Draft{}, err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	a, err := p.intend(j, name, network, release)
	if err != nil {
		return Draft{}, err
	}
	d = Draft{Name: name, Release: a.Release, Value: a.Value, Sequence: a.Sequence, EOL: a.EOL, TTL: a.TTL, V2Only: a.V2Only}
	if a.Record != nil {
		return d, fmt.Errorf("draft a record for release %d: %w: %d, until %s", a.Release, ErrSigned, a.Sequence, a.EOL.Format(time.RFC3339))
	}
	return d, nil
}

// SignDraft signs d and gives the record. It needs neither ledger, index, node nor
// network: of Options, Signer and Journal, which is this machine's own memory of
// what it signed. Where there is none one begins with d. Signed again, it is the
// same record.
//
// Law: the intent is in this journal before the key is used, and the record before
// it is handed out. So a key that signs drafts alone never signs two values for one
// sequence, whatever it is given.
//
// Errors: ErrSigner, ErrOvertaken, ipnsrecord.ErrEquivocation (the sequence was used
// here for something else), ipnsrecord.ErrName (another key's), ipnsrecord.ErrExpired
// and ErrLifetime (both by this machine's clock), ErrLocked, ErrJournal.
func (p *Publisher) SignDraft(d Draft) (raw []byte, err error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	defer func() {
		if err != nil {
			raw, err = nil, fmt.Errorf("sign draft %d of %s: %w", d.Sequence, d.Name, err)
		}
	}()
	if p.o.Signer == nil {
		return nil, fmt.Errorf("%w: none is configured", ErrSigner)
	}
	name, now := p.o.IPNSName, p.now()
	if !d.Name.Equal(name) {
		return nil, fmt.Errorf("%w: the key's is %s", ipnsrecord.ErrName, name)
	}
	if now.After(d.EOL) {
		return nil, fmt.Errorf("%w: on %s, and it is %s here", ipnsrecord.ErrExpired, d.EOL.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	if d.EOL.Sub(now) > MaxLifetime {
		return nil, fmt.Errorf("%w: until %s, and it is %s here", ErrLifetime, d.EOL.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	j, err := openJournal(p.o.FS, p.o.Journal, p.fault)
	if errors.Is(err, ErrNoJournal) {
		first := line{Op: opAdopted, Time: now, Name: name.String(), Sequence: d.Sequence - 1}
		if err = create(p.o.FS, p.o.Journal, first, p.fault); err == nil {
			j, err = openJournal(p.o.FS, p.o.Journal, p.fault)
		}
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	if err := p.own(j, name); err != nil {
		return nil, err
	}
	a := d.attempt()
	switch last := j.last; {
	case !j.used || a.Sequence > j.max:
		if err := j.append(a.intent(name, now)); err != nil {
			return nil, err
		}
	case last == nil || a.Sequence < last.Sequence || last.Abandoned:
		return nil, fmt.Errorf("%w: the journal here has %d", ErrOvertaken, j.max)
	case !last.same(a):
		return nil, fmt.Errorf("%w: the journal here has %s; the draft %s", ipnsrecord.ErrEquivocation, last, a)
	case last.Record != nil:
		return last.Record, nil
	}
	a, _, err = p.sign(j, name, a)
	return a.Record, err
}

// Put hands a signed record of name to the node and reads it back. It needs no
// key, and of Options Node alone. Where Journal is there, the record must be the
// one that it intends; the record's bytes are in the journal before they are put,
// and that they were read back after. The Result has what the record says, the
// routes, and the release's number where a journal knows it.
//
// Errors: ipnsrecord.Check's, ErrOvertaken, ErrNotDrafted, ErrNewer,
// ipnsrecord.ErrEquivocation, ErrUnconfirmed, ErrLocked, ErrJournal, ipfs.ErrAway.
func (p *Publisher) Put(ctx context.Context, name ipns.Name, raw []byte) (result Result, err error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	r, err := ipnsrecord.Check(name, raw, p.now())
	if err != nil {
		return Result{}, fmt.Errorf("put a record of %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("put record %d of %s: %w", r.Sequence, name, err)
		}
	}()
	a := signed(r)
	result = Result{CID: a.Value, Name: name, Sequence: a.Sequence, EOL: a.EOL}
	info, err := p.info(ctx)
	if err != nil {
		return result, err
	}
	result.LocalOnly = info.Peers == 0
	network, views, err := p.network(ctx, name)
	if err != nil {
		return result, err
	}
	j, err := p.journal()
	switch {
	case errors.Is(err, ErrNoJournal):
	case err != nil:
		return result, err
	default:
		defer func() { err = errors.Join(err, j.close()) }()
		if err := p.own(j, name); err != nil {
			return result, err
		}
		if err := rivals(j.history, views); err != nil {
			return result, err
		}
		if a, err = enter(j, a, p.now()); err != nil {
			return result, err
		}
		result.Number = a.Release
	}
	if network != nil {
		switch {
		case network.Sequence > a.Sequence:
			return result, fmt.Errorf("%w: the network has %d (%s)", ErrOvertaken, network.Sequence, network.Value)
		case network.Sequence == a.Sequence && network.Value != a.Value:
			return result, fmt.Errorf("it says %s, the network's %s: %w", a.Value, network.Value, ipnsrecord.ErrEquivocation)
		}
	}
	result.Routes, err = p.put(ctx, name, a, info)
	if err != nil && !readBack(result.Routes, err) {
		return result, err
	}
	if err := hook(p.fault, "read back"); err != nil {
		return result, err
	}
	if j != nil && a.Confirmed.IsZero() {
		err = errors.Join(err, j.append(line{Op: opConfirmed, Time: p.now(), Sequence: a.Sequence}))
	}
	return result, err
}

// journal is nil and ErrNoJournal where Options name none, too.
func (p *Publisher) journal() (*journal, error) {
	if p.o.Journal == "" {
		return nil, ErrNoJournal
	}
	return openJournal(p.o.FS, p.o.Journal, p.fault)
}

// enter brings a record that was signed elsewhere into the journal.
func enter(j *journal, a attempt, now time.Time) (attempt, error) {
	last := j.last
	switch {
	case !j.used || a.Sequence > j.max:
		return a, fmt.Errorf("the journal here ends with %d: %w", j.max, ErrNewer)
	case last == nil && a.Sequence == j.max:
		a.Confirmed = now // the network's own, with which this journal began
		return a, nil
	case last == nil || a.Sequence < last.Sequence || last.Abandoned:
		return a, fmt.Errorf("%w: the journal here has %d", ErrOvertaken, j.max)
	case last.Value != a.Value:
		return a, fmt.Errorf("it says %s, the journal intends %s: %w", a.Value, last.Value, ipnsrecord.ErrEquivocation)
	case !last.same(a) || last.Record != nil && !bytes.Equal(last.Record, a.Record):
		return a, fmt.Errorf("%w: it is %s; intended is %s", ErrNotDrafted, a, last)
	case last.Record != nil:
		return *last, nil
	}
	if err := j.append(line{Op: opRecord, Time: now, Sequence: a.Sequence, Record: a.Record}); err != nil {
		return a, err
	}
	return *j.last, nil
}
