package ipfs

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/routing"
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

// TestNeighbours: a node of ours hands on what it holds, also what has expired, to
// one that has never heard of it; and nothing that is not what was asked for.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, c := newEmbedded(t), newEmbedded(t), newEmbedded(t)
	s, other := newSigner(t), newSigner(t)
	for _, n := range []*Embedded{b, c} {
		info, err := n.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Connect(ctx, info.Addrs[0]); err != nil {
			t.Fatal(err)
		}
	}
	expired := s.sign(t, randomLeaf(1, 1).Cid(), 1, time.Now().Add(-time.Hour))
	if err := b.KeepRecord(ctx, s.name, expired); err != nil {
		t.Fatal(err)
	}
	is := func(want []byte) func(context.Context) error {
		return func(ctx context.Context) error {
			got, err := a.Record(ctx, s.name)
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("another record")
			}
			return err
		}
	}
	eventually(t, is(expired))
	if _, err := (values{a}).GetValue(ctx, string(s.name.RoutingKey())); !errors.Is(err, routing.ErrNotFound) {
		t.Errorf("the gateway gives an expired record: %v", err)
	}
	valid := s.sign(t, randomLeaf(1, 1).Cid(), 2, time.Now().Add(time.Hour))
	if err := c.KeepRecord(ctx, s.name, valid); err != nil {
		t.Fatal(err)
	}
	eventually(t, is(valid))
	// What is held is not moved back.
	if err := c.KeepRecord(ctx, s.name, expired); err != nil {
		t.Errorf("an older record: %v", err)
	}
	eventually(t, is(valid))
	if err := c.KeepRecord(ctx, other.name, valid); !errors.Is(err, ErrInvalidRecord) {
		t.Errorf("a record of another name: %v", err)
	}
	if got := a.fromNeighbours(ctx, other.name); len(got) != 0 {
		t.Errorf("%d records of a name that nobody holds", len(got))
	}
}

// TestFalseNeighbour: what a peer answers that is no record of the name is none.
func TestFalseNeighbour(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b := newEmbedded(t), newEmbedded(t)
	s, other := newSigner(t), newSigner(t)
	for name, answer := range map[string][]byte{
		"nothing":     nil,
		"rubbish":     []byte("rubbish"),
		"too long":    make([]byte, ipns.MaxRecordSize+1),
		"of another":  other.sign(t, randomLeaf(1, 1).Cid(), 1, time.Now().Add(time.Hour)),
		"without end": nil,
	} {
		b.host.SetStreamHandler(recordProtocol, func(s network.Stream) {
			if name == "without end" {
				<-ctx.Done()
			}
			_, _ = s.Write(answer)
			_ = s.Close()
		})
		info, err := b.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Connect(ctx, info.Addrs[0]); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		if raw, err := a.fromNeighbour(short, b.host.ID(), s.name); err == nil {
			t.Errorf("%s: got %d bytes", name, len(raw))
		}
		cancel()
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
