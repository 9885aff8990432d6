package ipfs

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
)

// TestFind: what is there is found, and what is nowhere is known long before the
// context ends.
func TestFind(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, b := newEmbedded(t), newEmbedded(t)
	lost := randomLeaf(7, 5000)
	if _, err := b.Find(ctx, lost.Cid()); !errors.Is(err, ErrNoPeers) {
		t.Fatalf("alone: %v", err)
	}
	info, err := a.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Connect(ctx, info.Addrs[0]); err != nil {
		t.Fatal(err)
	}
	have := randomLeaf(8, 5000)
	if err := a.Put(ctx, []blocks.Block{have}); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Find(ctx, have.Cid()); err != nil || !bytes.Equal(got.RawData(), have.RawData()) {
		t.Fatalf("what a peer has: %v", err)
	}
	// The peer is of the session now, so it is asked by name, and says no.
	if _, err := b.Find(ctx, lost.Cid()); !errors.Is(err, ErrLacking) {
		t.Fatalf("what no peer has: %v", err)
	}
	// That is not remembered, once bitswap has taken its want back.
	eventually(t, func(context.Context) error {
		if len(b.swap.GetWantlist()) > 0 {
			return errors.New("still wanted")
		}
		return nil
	})
	if err := a.Put(ctx, []blocks.Block{lost}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Find(ctx, lost.Cid()); err != nil {
		t.Fatalf("once a peer has it: %v", err)
	}
	if len(b.wants.of) != 0 {
		t.Errorf("%d wants are left", len(b.wants.of))
	}
}
