package ipfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

func newSharing(t *testing.T) *Embedded {
	t.Helper()
	n, err := CreateEmbedded(t.Context(), EmbeddedOptions{Dir: t.TempDir(), Share: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// providers are who has a block, as the DHT tells n.
func providers(ctx context.Context, n *Embedded, c cid.Cid) (ids []string) {
	for p := range n.table.routing.FindProvidersAsync(ctx, c, 20) {
		ids = append(ids, p.ID.String())
	}
	return ids
}

// TestAnnounce: a third node finds whoever announces through a node that both know, and
// fetches from there. What is not shared nobody is told of.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	hub, quiet, sharing, reader := newEmbedded(t), newEmbedded(t), newSharing(t), newEmbedded(t)
	at, err := hub.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pinned, told, kept, silent := randomLeaf(1, 900), randomLeaf(2, 900), randomLeaf(3, 900), randomLeaf(4, 900)
	for _, n := range []*Embedded{quiet, sharing} {
		if err := n.Put(ctx, []blocks.Block{pinned, told, kept, silent}); err != nil {
			t.Fatal(err)
		}
		if err := n.Pin(ctx, "releases", cid.Undef, pinned.Cid()); err != nil {
			t.Fatal(err)
		}
		if err := n.Pin(ctx, QuietLabel, cid.Undef, kept.Cid()); err != nil {
			t.Fatal(err)
		}
		n.Announce(told.Cid(), told.Cid())
	}
	for _, n := range []*Embedded{quiet, sharing, reader} {
		if err := n.Connect(ctx, at.Addrs[0]); err != nil {
			t.Fatal(err)
		}
	}
	who, err := sharing.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !who.Share || who.Announced != 2 {
		t.Errorf("it says of itself: %+v", who)
	}
	if info, _ := quiet.Info(ctx); info.Share || info.Announced != 0 {
		t.Errorf("a node that does not share says of itself: %+v", info)
	}
	for _, b := range []blocks.Block{pinned, told} {
		eventually(t, func(ctx context.Context) error {
			if found := providers(ctx, reader, b.Cid()); !slices.Contains(found, who.ID) {
				return fmt.Errorf("%s is found at %v", b.Cid(), found)
			}
			return nil
		})
		if found := providers(ctx, reader, b.Cid()); !slices.Equal(found, []string{who.ID}) {
			t.Errorf("announced by %v", found)
		}
	}
	for _, b := range []blocks.Block{kept, silent} {
		if found := providers(ctx, reader, b.Cid()); len(found) > 0 {
			t.Errorf("announced, though nobody asked for it, by %v", found)
		}
	}
	eventually(t, func(ctx context.Context) error {
		_, err := reader.Get(ctx, told.Cid())
		return err
	})
	// What is gone is announced no more, and what is pinned stays so.
	if _, err := sharing.Evict(ctx, slices.Values([][]cid.Cid{{told.Cid(), pinned.Cid()}})); err != nil {
		t.Fatal(err)
	}
	if err := sharing.Withdraw(pinned.Cid()); err != nil {
		t.Fatal(err)
	}
	if info, _ := sharing.Info(ctx); info.Announced != 1 {
		t.Errorf("%d blocks are announced after one of two was evicted", info.Announced)
	}
	if err := sharing.Unpin(ctx, "releases", pinned.Cid()); err != nil {
		t.Fatal(err)
	}
	if info, _ := sharing.Info(ctx); info.Announced != 0 {
		t.Errorf("%d blocks are announced after the last was unpinned", info.Announced)
	}
}

// sweep is a DHT that notes what is announced to it.
type sweep map[string]int

func (s sweep) StartProviding(_ bool, keys ...mh.Multihash) error {
	for _, k := range keys {
		s[string(k)]++
	}
	return nil
}

func (s sweep) StopProviding(keys ...mh.Multihash) error {
	for _, k := range keys {
		if _, ok := s[string(k)]; !ok {
			return errors.New("it was not announced")
		}
		delete(s, string(k))
	}
	return nil
}

func (s sweep) Close() error { return nil }

func TestAnnouncer(t *testing.T) {
	t.Parallel()
	s := sweep{}
	a := &announcer{to: s, log: slog.New(slog.DiscardHandler), said: map[string]struct{}{}, todo: map[string]bool{}, limit: 2}
	hash := func(i uint64) mh.Multihash { return randomLeaf(i, 100).Cid().Hash() }
	step := func(want ...uint64) {
		t.Helper()
		if err := a.flush(); err != nil {
			t.Fatal(err)
		}
		if len(s) != len(want) || a.count() != len(want) {
			t.Errorf("%d are announced, %d are counted, want %d", len(s), a.count(), len(want))
		}
		for _, i := range want {
			if s[string(hash(i))] != 1 {
				t.Errorf("block %d was announced %d times", i, s[string(hash(i))])
			}
		}
	}
	add := func(i uint64) { a.add(cid.NewCidV1(cid.Raw, hash(i))) }
	add(1)
	add(1)
	step(1)
	add(1)
	step(1)
	a.drop(hash(9))
	add(2)
	add(3) // one more than the limit
	step(1, 2)
	a.drop(hash(1))
	step(2)
	add(3)
	step(2, 3)
	a.drop(hash(3))
	a.drop(hash(2))
	step()
}
