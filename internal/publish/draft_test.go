package publish

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// vault is the machine that has the key of a world, and nothing else of it.
type vault struct {
	w      *world
	disk   *vfs.MemFS
	signer Signer
	fault  func(string) error
}

// newVault moves the world's key there: the world knows its public half alone.
func newVault(t testing.TB) (*world, *vault) {
	t.Helper()
	w := newWorld(t)
	v := &vault{w: w, disk: vfs.NewCrashableMem(), signer: w.signer}
	if err := CreateJournal(v.disk, journalPath); err != nil {
		t.Fatal(err)
	}
	return w, v
}

func (v *vault) sign(d Draft) ([]byte, error) {
	p := New(Options{Signer: v.signer, Journal: journalPath, FS: v.disk, Now: v.w.clock.Now})
	p.fault = v.fault
	return p.SignDraft(d)
}

// keyless starts a publisher that has no key.
func (w *world) keyless(change ...func(*Options)) (*Publisher, func()) {
	return w.start(append(change, func(o *Options) { o.Signer, o.IPNSName = nil, w.signer.IPNSName() })...)
}

func (w *world) draft(p *Publisher) Draft {
	w.t.Helper()
	d, err := p.Draft(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (v *vault) mustSign(d Draft) []byte {
	v.w.t.Helper()
	raw, err := v.sign(d)
	if err != nil {
		v.w.t.Fatal(err)
	}
	return raw
}

func TestDraft(t *testing.T) {
	w, v := newVault(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.keyless()
	defer stop()
	name := w.signer.IPNSName()

	d := w.draft(p)
	if d.Sequence != 1 || d.Release != 1 || !d.Name.Equal(name) || !d.EOL.Equal(dayZero.Add(DefaultLifetime)) || d.TTL != DefaultTTL || d.V2Only {
		t.Errorf("draft is %+v", d)
	}
	if got := w.ops(); got != "created pinned intent" {
		t.Errorf("journal: %s", got)
	}
	w.clock.add(time.Hour)
	if again := w.draft(p); again != d {
		t.Errorf("drafted again it is %+v", again)
	}
	if len(w.node.puts) != 0 {
		t.Error("something was put")
	}
	raw := v.mustSign(d)
	if again := v.mustSign(d); !bytes.Equal(raw, again) {
		t.Error("signed again it has other bytes")
	}
	// A key beside the journal would have given these very bytes.
	if own, err := v.signer.Sign(d.Value, d.Sequence, d.EOL, d.TTL); err != nil || !bytes.Equal(raw, own) {
		t.Errorf("other bytes than Publish's (%v)", err)
	}
	for range 2 {
		got, err := p.Put(t.Context(), name, raw)
		if err != nil {
			t.Fatal(err)
		}
		if got.Sequence != 1 || got.CID != d.Value || got.Number != 1 || len(got.Routes) != 1 || !got.Routes[0].ReadBack {
			t.Errorf("put: %+v", got)
		}
	}
	if got := w.ops(); got != "created pinned intent record confirmed" {
		t.Errorf("journal: %s", got)
	}
	if best := w.best(); !bytes.Equal(best.Raw, raw) {
		t.Errorf("the name is %+v", best)
	}
	if got, err := p.Draft(t.Context()); !errors.Is(err, ErrSigned) || got != d {
		t.Errorf("a draft of what is signed: %+v, %v", got, err)
	}
	if s, err := p.Status(t.Context()); err != nil || s.Next != "put again" || s.Network == nil || s.Problem != nil {
		t.Errorf("status: %+v, %v", s, err)
	}
	// Half of its lifetime on, it is drafted anew; and the next publish, with a key,
	// goes on from there.
	w.clock.add(DefaultLifetime / 2)
	next := w.draft(p)
	if next.Sequence != 2 || next.Value != d.Value {
		t.Errorf("next draft is %+v", next)
	}
	stop()
	p, stop = w.start()
	defer stop()
	if got := w.publish(p); got.Sequence != 2 || !got.Signed || !got.EOL.Equal(next.EOL) {
		t.Errorf("publish: %+v", got)
	}
	if again := v.mustSign(next); !bytes.Equal(again, w.best().Raw) {
		t.Error("the draft and Publish gave two records of one sequence")
	}
}

func TestDraftIncomplete(t *testing.T) {
	w, _ := newVault(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.keyless()
	defer stop()
	w.node.set(func() { w.node.failPin = func() error { return errors.New("full") } })
	if _, err := p.Draft(t.Context()); !errors.Is(err, ErrIncomplete) {
		t.Errorf("got %v", err)
	}
	if got := w.ops(); got != "created" {
		t.Errorf("journal: %s", got)
	}
}

// A draft whose release was overtaken is refused wherever its sequence is known.
func TestDraftOvertaken(t *testing.T) {
	w, v := newVault(t)
	name := w.signer.IPNSName()
	p, stop := w.keyless()
	defer stop()
	old := w.draft(p)
	oldRaw := v.mustSign(old)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	d := w.draft(p)
	if d.Sequence != 2 || d.Value == old.Value {
		t.Fatalf("draft is %+v", d)
	}
	if _, err := p.Put(t.Context(), name, oldRaw); !errors.Is(err, ErrOvertaken) {
		t.Errorf("put of the old one, before the new one: %v", err)
	}
	raw := v.mustSign(d)
	if _, err := v.sign(old); !errors.Is(err, ErrOvertaken) {
		t.Errorf("signing the old one after the new one: %v", err)
	}
	if _, err := p.Put(t.Context(), name, raw); err != nil {
		t.Fatal(err)
	}
	for where, journal := range map[string]string{"with the journal": journalPath, "anywhere": ""} {
		p := New(Options{Node: w.node, IPNSName: name, Journal: journal, FS: w.disk, Now: w.clock.Now})
		if _, err := p.Put(t.Context(), name, oldRaw); !errors.Is(err, ErrOvertaken) {
			t.Errorf("put of the old one after the new one, %s: %v", where, err)
		}
	}
	if len(w.node.puts[1]) != 0 {
		t.Error("it was put all the same")
	}
}

// Anybody may put: no key, no journal, no index.
func TestPutAnywhere(t *testing.T) {
	w, v := newVault(t)
	name := w.signer.IPNSName()
	p, stop := w.keyless()
	defer stop()
	raw := v.mustSign(w.draft(p))
	anywhere := New(Options{Node: w.node, Now: w.clock.Now})
	got, err := anywhere.Put(t.Context(), name, raw)
	if err != nil || got.Number != 0 || got.Sequence != 1 || !got.Routes[0].ReadBack {
		t.Errorf("%+v, %v", got, err)
	}
	// The machine that drafted it was not told, and goes on all the same.
	if got, err := p.Put(t.Context(), name, raw); err != nil || got.Number != 1 {
		t.Errorf("%+v, %v", got, err)
	}

	rival, err := v.signer.Sign(w.emptyDir(), 1, dayZero.Add(time.Hour), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.add(DefaultLifetime * 2)
	for _, c := range []struct {
		what string
		raw  []byte
		want error
	}{
		{"expired", raw, ipnsrecord.ErrExpired},
		{"garbage", []byte("hello"), ipnsrecord.ErrMalformed},
		{"over 10 KiB", bytes.Repeat([]byte("x"), ipnsrecord.MaxSize+1), ipnsrecord.ErrTooBig},
	} {
		if _, err := anywhere.Put(t.Context(), name, c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	w.clock.add(-DefaultLifetime * 2)
	if _, err := anywhere.Put(t.Context(), name, rival); !errors.Is(err, ipnsrecord.ErrEquivocation) {
		t.Errorf("a rival: %v", err)
	}
	if _, err := anywhere.Put(t.Context(), testSigner(t, 2).IPNSName(), raw); !errors.Is(err, ipnsrecord.ErrSignature) {
		t.Errorf("another's name: %v", err)
	}
}

// What the journal does not intend is not put by the machine that has it.
func TestPutNotDrafted(t *testing.T) {
	w, v := newVault(t)
	name := w.signer.IPNSName()
	p, stop := w.keyless()
	defer stop()
	d := w.draft(p)
	other := w.emptyDir()
	signed := func(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) []byte {
		raw, err := v.signer.Sign(value, seq, eol, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	v2, err := v.signer.SignV2Only(d.Value, d.Sequence, d.EOL, d.TTL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		raw  []byte
		want error
	}{
		{"another value", signed(other, d.Sequence, d.EOL, d.TTL), ipnsrecord.ErrEquivocation},
		{"valid for longer", signed(d.Value, d.Sequence, d.EOL.Add(time.Hour), d.TTL), ErrNotDrafted},
		{"another TTL", signed(d.Value, d.Sequence, d.EOL, d.TTL+1), ErrNotDrafted},
		{"another form", v2, ErrNotDrafted},
		{"a sequence that was not drafted", signed(d.Value, d.Sequence+1, d.EOL, d.TTL), ErrNewer},
	} {
		if _, err := p.Put(t.Context(), name, c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if got := w.ops(); got != "created pinned intent" || len(w.node.puts) != 0 {
		t.Errorf("journal: %s; put: %v", got, w.node.puts)
	}
}

// A key that signs drafts keeps the law of sequences by its own journal, whatever
// it is given.
func TestSignDraft(t *testing.T) {
	w, v := newVault(t)
	p, stop := w.keyless()
	defer stop()
	d := w.draft(p)
	d.Sequence = 7
	v.mustSign(d)
	with := func(edit func(*Draft)) Draft {
		other := d
		edit(&other)
		return other
	}
	for _, c := range []struct {
		what string
		d    Draft
		now  time.Duration // after dayZero
		want error
	}{
		{"the same", d, 0, nil},
		{"another value", with(func(d *Draft) { d.Value = w.emptyDir() }), 0, ipnsrecord.ErrEquivocation},
		{"valid for longer", with(func(d *Draft) { d.EOL = d.EOL.Add(time.Hour) }), 0, ipnsrecord.ErrEquivocation},
		{"V2 only", with(func(d *Draft) { d.V2Only = true }), 0, ipnsrecord.ErrEquivocation},
		{"an older sequence", with(func(d *Draft) { d.Sequence = 6 }), 0, ErrOvertaken},
		{"another's", with(func(d *Draft) { d.Name = testSigner(t, 2).IPNSName() }), 0, ipnsrecord.ErrName},
		{"three years late", d, 3 * 365 * 24 * time.Hour, ipnsrecord.ErrExpired},
		{"three years early", d, -3 * 365 * 24 * time.Hour, ErrLifetime},
		{"for ever", with(func(d *Draft) { d.EOL, d.Sequence = d.EOL.AddDate(100, 0, 0), 8 }), 0, ErrLifetime},
	} {
		w.clock.add(c.now)
		if _, err := v.sign(c.d); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v", c.what, err)
		}
		w.clock.add(-c.now)
	}
	if h, _, err := readJournal(v.disk, journalPath); err != nil || h.max != 7 {
		t.Errorf("the journal ends with %d (%v)", h.max, err)
	}
	// Where the memory is lost, one begins with the draft.
	v.disk = vfs.NewCrashableMem()
	v.mustSign(d)
	if _, err := v.sign(with(func(d *Draft) { d.Sequence = 6 })); !errors.Is(err, ErrOvertaken) {
		t.Errorf("below where it began: %v", err)
	}
	if _, err := New(Options{Journal: journalPath, FS: v.disk, IPNSName: d.Name}).SignDraft(d); !errors.Is(err, ErrSigner) {
		t.Errorf("without a key: %v", err)
	}
}

func TestParseDraft(t *testing.T) {
	w, _ := newVault(t)
	p, stop := w.keyless(func(o *Options) { o.V2Only = true })
	defer stop()
	d := w.draft(p)
	raw, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseDraft(raw)
	if err != nil || back.Sequence != d.Sequence || back.Value != d.Value || !back.V2Only || !back.attempt().same(d.attempt()) {
		t.Errorf("%+v became %+v (%v)", d, back, err)
	}
	text := string(raw)
	for what, bad := range map[string]string{
		"empty":                 "",
		"no JSON":               "hello",
		"over its bound":        text + strings.Repeat(" ", maxDraft),
		"another format":        strings.Replace(text, `"format": 1`, `"format": 2`, 1),
		"a field twice":         strings.Replace(text, `"sequence": 1,`, `"sequence": 9, "sequence": 1,`, 1),
		"a field in capitals":   strings.Replace(text, `"sequence"`, `"SEQUENCE"`, 1),
		"a further field":       strings.Replace(text, `"sequence"`, `"x": 1, "sequence"`, 1),
		"more behind it":        text + text,
		"other spaces":          strings.ReplaceAll(text, "  ", "\t"),
		"no name":               strings.Replace(text, d.Name.String(), "", 1),
		"no value":              strings.Replace(text, d.Value.String(), "x", 1),
		"sequence 0":            strings.Replace(text, `"sequence": 1`, `"sequence": 0`, 1),
		"sequence 2^62":         strings.Replace(text, `"sequence": 1`, `"sequence": 4611686018427387904`, 1),
		"sequence below 0":      strings.Replace(text, `"sequence": 1`, `"sequence": -1`, 1),
		"TTL below 0":           strings.Replace(text, `"ttl": 6`, `"ttl": -6`, 1),
		"end in another zone":   strings.Replace(text, `00:00:00Z`, `00:00:00+00:00`, 1),
		"end within a second":   strings.Replace(text, `00:00:00Z`, `00:00:00.5Z`, 1),
		"name in another form":  strings.Replace(text, d.Name.String(), d.Name.Peer().String(), 1),
		"value in another form": strings.Replace(text, d.Value.String(), "/ipfs/"+d.Value.String(), 1),
	} {
		if bad == text {
			t.Errorf("%s: nothing was changed", what)
		}
		if got, err := ParseDraft([]byte(bad)); !errors.Is(err, ErrDraft) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

// What is read as a draft is written as these very bytes.
func FuzzParseDraft(f *testing.F) {
	d := Draft{Name: testSigner(f, 1).IPNSName(), Release: 7, Value: cid.MustParse(testValue), Sequence: 8, EOL: dayZero, TTL: time.Minute}
	raw, err := d.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ParseDraft(raw)
		if err != nil {
			return
		}
		if back, err := d.Encode(); err != nil || !bytes.Equal(back, raw) || d.Sequence == 0 || d.Sequence >= ipnsrecord.MaxSequence || !d.Value.Defined() {
			t.Fatalf("%+v, %v", d, err)
		}
	})
}

// Power is cut on either machine between every two durable steps of draft, sign
// and put. Afterwards, with the ledger as it was or moved on, the three done again
// end with the newest release, and no sequence ever had two values.
func TestDraftPowerCuts(t *testing.T) {
	// signed collects every record that left the vault, whether or not it was put.
	all := func(ctx *testing.T, w *world, v *vault, fault func(string) error, signed map[uint64][][]byte) (Draft, error) {
		p, stop := w.keyless()
		defer stop()
		p.fault, v.fault = fault, nil
		d, err := p.Draft(ctx.Context())
		if err != nil {
			return d, err
		}
		text, err := d.Encode()
		if err == nil {
			err = hook(fault, "drafted")
		}
		if err != nil {
			return d, err
		}
		if d, err = ParseDraft(text); err != nil {
			return d, err
		}
		if fault != nil {
			v.fault = func(step string) error { return fault("vault: " + step) }
		}
		raw, err := v.sign(d)
		if err != nil {
			return d, err
		}
		signed[d.Sequence] = append(signed[d.Sequence], raw)
		if err := hook(fault, "handed out"); err != nil {
			return d, err
		}
		_, err = p.Put(ctx.Context(), d.Name, raw)
		return d, err
	}
	fill := func(w *world) { w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0") }

	w, v := newVault(t)
	fill(w)
	var steps []string
	if _, err := all(t, w, v, func(step string) error { steps = append(steps, step); return nil }, map[uint64][][]byte{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pinned synced", "intent written", "intent synced", "drafted", "vault: intent synced", "vault: signed",
		"vault: record written", "vault: record synced", "handed out", "record written", "record synced", "put", "read back", "confirmed synced"} {
		if !strings.Contains("|"+strings.Join(steps, "|")+"|", "|"+want+"|") {
			t.Errorf("step %q was not passed", want)
		}
	}
	for i, step := range steps {
		for _, moved := range []bool{false, true} {
			for seed := range uint64(2) {
				t.Run(fmt.Sprintf("%d %s moved=%v seed=%d", i, step, moved, seed), func(t *testing.T) {
					w, v := newVault(t)
					fill(w)
					n, signed := 0, map[uint64][][]byte{}
					var after *world
					_, err := all(t, w, v, func(string) error {
						if n++; n == i+1 {
							after = w.powerCut(seed)
							v.disk = v.disk.CrashClone(vfs.CrashCloneCfg{})
							return errCrash
						}
						return nil
					}, signed)
					if !errors.Is(err, errCrash) {
						t.Fatalf("got %v", err)
					}
					w, v.w = after, after
					if moved {
						w.ledger.hold(t, "later", []string{"3.0.0"}, "3.0.0")
					}
					d, err := all(t, w, v, nil, signed)
					if err != nil && !(errors.Is(err, ErrSigned) && !moved) {
						t.Fatal(err)
					}
					// What was signed and not yet known to be put is put again.
					for _, raw := range signed[d.Sequence] {
						p, stop := w.keyless()
						if _, err := p.Put(t.Context(), d.Name, raw); err != nil {
							t.Error(err)
						}
						stop()
					}
					if got := w.best(); got.Value != d.Value || got.Sequence != d.Sequence {
						t.Errorf("the name is %+v", got)
					}
					if h, _, err := readJournal(w.disk, journalPath); err != nil || h.last.Confirmed.IsZero() || h.last.Sequence != d.Sequence {
						t.Errorf("the journal's last is %+v (%v)", h.last, err)
					}
					for seq, raws := range w.node.putRaws {
						for _, raw := range append(raws, signed[seq]...) {
							if !bytes.Equal(raw, raws[0]) {
								t.Errorf("sequence %d has two records", seq)
							}
						}
					}
					for seq, raws := range signed {
						for _, raw := range raws {
							if !bytes.Equal(raw, raws[0]) {
								t.Errorf("sequence %d was signed twice", seq)
							}
						}
					}
				})
			}
		}
	}
}
