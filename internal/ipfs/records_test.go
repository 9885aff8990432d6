package ipfs

import (
	"errors"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
)

// TestStrangersRecords: those who reach the gateway fill no more than their
// own places, over restarts, and an expired record gives its place up.
func TestStrangersRecords(t *testing.T) {
	t.Parallel()
	ctx, dirname := t.Context(), t.TempDir()
	n, err := CreateEmbedded(ctx, EmbeddedOptions{Dir: dirname})
	if err != nil {
		t.Fatal(err)
	}
	value, hour := randomLeaf(1, 1).Cid(), time.Now().Add(time.Hour)
	bring := func(s signer, seq uint64) error {
		rec, err := ipns.UnmarshalRecord(s.sign(t, value, seq, hour))
		if err != nil {
			t.Fatal(err)
		}
		return router{n}.PutIPNS(ctx, s.name, rec)
	}
	kept := func(s signer, seq uint64) {
		t.Helper()
		raw, err := n.Record(ctx, s.name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := must(ipns.UnmarshalRecord(raw)).Sequence(); err != nil || got != seq {
			t.Errorf("sequence %d is kept, want %d", got, seq)
		}
	}
	n.maxStrangers = 2
	strangers := []signer{newSigner(t), newSigner(t)}
	for _, s := range strangers {
		if err := bring(s, 1); err != nil {
			t.Fatal(err)
		}
	}
	late, own := newSigner(t), newSigner(t)
	if err := bring(late, 1); err == nil {
		t.Error("a stranger's third name was kept")
	}
	if err := bring(strangers[0], 2); err != nil {
		t.Errorf("news of a name that is kept: %v", err)
	}
	kept(strangers[0], 2)
	if err := n.PutRecord(ctx, own.name, own.sign(t, value, 1, hour)); err != nil {
		t.Fatalf("our own name was locked out: %v", err)
	}
	if err := bring(own, 2); err != nil {
		t.Errorf("news of our own name: %v", err)
	}
	kept(own, 2)

	// A restart counts again; then one of the two has expired.
	expired := strangers[1].sign(t, value, 1, time.Now().Add(-time.Hour))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	reopen := func() {
		t.Helper()
		if n, err = OpenEmbedded(ctx, EmbeddedOptions{Dir: dirname}); err != nil {
			t.Fatal(err)
		}
		n.maxStrangers = 2
	}
	reopen()
	if err := bring(late, 1); err == nil {
		t.Error("a restart made room")
	}
	if err := errors.Join(n.blocks.setSync(strangerKey(strangers[1].name), expired), n.Close()); err != nil {
		t.Fatal(err)
	}
	reopen()
	defer func() { n.Close() }()
	if err := bring(late, 1); err != nil {
		t.Errorf("an expired record is in the way: %v", err)
	}
	kept(late, 1)
	kept(strangers[0], 2)
	if raw, _, err := n.held(strangers[1].name); err != nil || raw != nil {
		t.Errorf("an expired record is still there, %v", err)
	}

	// A stranger's name that turns out to be ours leaves its place to another.
	if err := n.PutRecord(ctx, late.name, late.sign(t, value, 2, hour)); err != nil {
		t.Fatal(err)
	}
	kept(late, 2)
	if err := bring(newSigner(t), 1); err != nil {
		t.Errorf("our own name takes a stranger's place: %v", err)
	}
}

// The node judges records by the machine's clock, as every IPNS node does: one that ended
// three years ago by it is not taken, one that ends in three years is, and is no better
// for that than one of a higher sequence.
func TestRecordYearsOff(t *testing.T) {
	t.Parallel()
	const years = 3 * 365 * 24 * time.Hour
	n, s := newEmbedded(t), newSigner(t)
	value := randomLeaf(1, 1).Cid()
	for _, c := range []struct {
		seq   uint64
		off   time.Duration
		taken bool
	}{{1, -years, false}, {1, years, true}, {2, -years, false}, {2, time.Hour, true}} {
		raw := s.sign(t, value, c.seq, time.Now().Add(c.off))
		if err := n.PutRecord(t.Context(), s.name, raw); (err == nil) != c.taken || err != nil && !errors.Is(err, ErrInvalidRecord) {
			t.Errorf("sequence %d, %v off: %v", c.seq, c.off, err)
		}
	}
	raw, err := n.Record(t.Context(), s.name)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := must(ipns.UnmarshalRecord(raw)).Sequence(); err != nil || got != 2 {
		t.Errorf("sequence %d is kept", got)
	}
}
