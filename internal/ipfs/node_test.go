package ipfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// newNodes are the kinds of Node whose promises are tested.
var newNodes = []struct {
	name string
	make func(t *testing.T) Node
}{
	{"embedded", func(t *testing.T) Node { return newEmbedded(t) }},
	{"socket", func(t *testing.T) Node { return overSocket(t, newEmbedded(t)) }},
	{"kubo", func(t *testing.T) Node { return newKubo(t, kubod.Start(t)) }},
}

func newEmbedded(t *testing.T) *Embedded {
	t.Helper()
	n, err := CreateEmbedded(t.Context(), EmbeddedOptions{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
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

func overSocket(t *testing.T, n *Embedded) *Kubo {
	t.Helper()
	api, err := n.ListenAPI()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx) }()
	addr, err := EmbeddedAPI(n.Dir())
	if err != nil {
		t.Fatal(err)
	}
	k, err := OpenKubo(t.Context(), KuboOptions{API: addr, Patience: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve the API: %v", err)
		}
	})
	return k
}

func newKubo(t *testing.T, d *kubod.Daemon) *Kubo {
	t.Helper()
	k, err := OpenKubo(t.Context(), KuboOptions{API: d.API, Patience: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	k.suspect = 200 * time.Millisecond
	return k
}

func leaf(data []byte) blocks.Block {
	sum, err := mh.Sum(data, mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	b, err := blocks.NewBlockWithCid(data, cid.NewCidV1(cid.Raw, sum))
	if err != nil {
		panic(err)
	}
	return b
}

// randomLeaf is the same for the same seed.
func randomLeaf(seed uint64, size int) blocks.Block {
	data := make([]byte, size)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	mrand.NewChaCha8(key).Read(data)
	return leaf(data)
}

// dir is a UnixFS directory with children 0, 1, …
func dir(children ...blocks.Block) blocks.Block {
	n := merkledag.NodeWithData([]byte{8, 1})
	n.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256})
	for i, c := range children {
		if err := n.AddRawLink(fmt.Sprint(i), &ipld.Link{Cid: c.Cid(), Size: uint64(len(c.RawData()))}); err != nil {
			panic(err)
		}
	}
	b, err := blocks.NewBlockWithCid(n.RawData(), n.Cid()) // n is encoded when it is asked, by whoever
	if err != nil {
		panic(err)
	}
	return b
}

type signer struct {
	key  crypto.PrivKey
	name ipns.Name
}

func newSigner(t testing.TB) signer {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, ipns.NameFromPeer(id)}
}

func (s signer) sign(t testing.TB, value cid.Cid, seq uint64, eol time.Time) []byte {
	t.Helper()
	rec, err := ipns.NewRecord(s.key, path.FromCid(value), seq, eol, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ipns.MarshalRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// eventually repeats f until it returns nil or the test's patience is over.
func eventually(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestNode states what every Node promises.
func TestNode(t *testing.T) {
	t.Parallel()
	for _, kind := range newNodes {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			n := kind.make(t)
			ctx := t.Context()
			hour := time.Now().Add(time.Hour)

			t.Run("KeepsBlocks", func(t *testing.T) {
				var put []blocks.Block
				for i := range 40 {
					put = append(put, randomLeaf(uint64(i), 1+i*i*700)) // up to 1.07 MB, on both sides of separateFrom
				}
				put = append(put, dir(put[:3]...), put[0]) // one twice
				if err := n.Put(ctx, put); err != nil {
					t.Fatal(err)
				}
				if err := n.Put(ctx, put[:2]); err != nil {
					t.Fatalf("put again: %v", err)
				}
				if err := n.Checkpoint(ctx); err != nil {
					t.Fatal(err)
				}
				for _, want := range put {
					for name, get := range map[string]func(context.Context, cid.Cid) (blocks.Block, error){"Local": n.Local, "Get": n.Get} {
						got, err := get(ctx, want.Cid())
						if err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						if !bytes.Equal(got.RawData(), want.RawData()) || !got.Cid().Equals(want.Cid()) {
							t.Fatalf("%s(%s) is another block", name, want.Cid())
						}
					}
				}
			})
			t.Run("NothingIsPutByNothing", func(t *testing.T) {
				if err := n.Put(ctx, nil); err != nil {
					t.Fatal(err)
				}
			})
			t.Run("AbsentBlock", func(t *testing.T) {
				absent := randomLeaf(1000, 100).Cid()
				if _, err := n.Local(ctx, absent); !errors.Is(err, ErrNotFound) {
					t.Errorf("Local: %v, want ErrNotFound", err)
				}
				short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
				if _, err := n.Get(short, absent); !errors.Is(err, ErrNotFound) {
					t.Errorf("Get: %v, want ErrNotFound", err)
				}
			})
			t.Run("PinsWhatIsWhole", func(t *testing.T) {
				a, b, c, missing := randomLeaf(2000, 100), randomLeaf(2001, 200), randomLeaf(2002, 300), randomLeaf(2003, 10)
				first, second, third := dir(dir(a, b), c), dir(dir(a, a), c), dir(dir(a, missing), c)
				if err := n.Put(ctx, []blocks.Block{a, b, c, dir(a, b), dir(a, a), dir(a, missing), first, second, third}); err != nil {
					t.Fatal(err)
				}
				if err := n.Pin(ctx, "whole", cid.Undef, third.Cid()); !errors.Is(err, ErrNotFound) {
					t.Errorf("first pin of a DAG with a hole: %v, want ErrNotFound", err)
				}
				if err := n.Pin(ctx, "whole", cid.Undef, first.Cid()); err != nil {
					t.Fatal(err)
				}
				if err := n.Pin(ctx, "whole", first.Cid(), third.Cid()); !errors.Is(err, ErrNotFound) {
					t.Errorf("update to a DAG with a hole: %v, want ErrNotFound", err)
				}
				if err := n.Pin(ctx, "whole", first.Cid(), second.Cid()); err != nil {
					t.Errorf("update: %v", err)
				}
				if err := n.Pin(ctx, "whole", second.Cid(), second.Cid()); err != nil {
					t.Errorf("update to the same: %v", err)
				}
				if err := n.Pin(ctx, "whole", first.Cid(), second.Cid()); err != nil {
					t.Errorf("update again, after a crash before it was noted: %v", err)
				}
				if err := n.Put(ctx, []blocks.Block{missing}); err != nil {
					t.Fatal(err)
				}
				if err := n.Pin(ctx, "whole", second.Cid(), third.Cid()); err != nil {
					t.Errorf("update once the hole is filled: %v", err)
				}
			})
			t.Run("PinsSeveral", func(t *testing.T) {
				a, b := randomLeaf(2050, 100), randomLeaf(2051, 200)
				first, second := dir(a), dir(a, b)
				if err := n.Put(ctx, []blocks.Block{a, b, first, second}); err != nil {
					t.Fatal(err)
				}
				pins := func(label string, want ...blocks.Block) {
					t.Helper()
					got, err := n.Pins(ctx, label)
					if err != nil || len(got) != len(want) {
						t.Fatalf("pins of %s: %v, %v, want %d", label, got, err, len(want))
					}
					for _, b := range want {
						if !slices.Contains(got, b.Cid()) {
							t.Errorf("pins of %s: %v, without %s", label, got, b.Cid())
						}
					}
				}
				must := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				const label = "registry-mirror/several"
				pins(label)
				must(n.Pin(ctx, label, cid.Undef, first.Cid()))
				for range 2 { // again, after a crash before it was noted
					must(n.Pin(ctx, label, first.Cid(), second.Cid()))
				}
				must(n.Pin(ctx, label+"2", cid.Undef, b.Cid()))
				pins(label, first, second)
				must(n.Unpin(ctx, label, b.Cid())) // another label's
				pins(label+"2", b)
				for range 2 {
					must(n.Unpin(ctx, label, first.Cid()))
				}
				pins(label, second)
				// A near that is pinned no more is no reason to trust what it had.
				missing := randomLeaf(2052, 10)
				hole := dir(missing)
				must(n.Put(ctx, []blocks.Block{hole, dir(hole)}))
				if err := n.Pin(ctx, label, hole.Cid(), dir(hole).Cid()); !errors.Is(err, ErrNotFound) {
					t.Errorf("beside what is not pinned: %v, want ErrNotFound", err)
				}
				pins(label, second)
			})
			t.Run("Holds", func(t *testing.T) {
				roots := []cid.Cid{randomLeaf(2100, 100).Cid(), randomLeaf(2101, 30_000).Cid()}
				for range 2 { // again, after a crash before it was noted
					if err := n.Hold(ctx, "some label", roots); err != nil {
						t.Fatalf("before anything is put: %v", err)
					}
				}
				if err := n.Hold(ctx, "some label", nil); err != nil {
					t.Errorf("nothing: %v", err)
				}
				if err := n.Put(ctx, []blocks.Block{randomLeaf(2100, 100), randomLeaf(2101, 30_000)}); err != nil {
					t.Fatal(err)
				}
				if err := n.Checkpoint(ctx); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if err := n.Unhold(ctx, "some label", append(roots, randomLeaf(2102, 1).Cid())); err != nil {
						t.Errorf("unhold: %v", err)
					}
				}
				if err := n.Unhold(ctx, "some label", nil); err != nil {
					t.Errorf("unhold nothing: %v", err)
				}
				for _, label := range []string{"", ".", "..", "a/b", "a\x00b", "\xff", strings.Repeat("a", 101)} {
					if n.Hold(ctx, label, roots) == nil || n.Unhold(ctx, label, roots) == nil {
						t.Errorf("label %q was taken", label)
					}
				}
			})
			t.Run("KnowsItsDisk", func(t *testing.T) {
				free, known, err := n.Free(ctx)
				if err != nil || !known || free == 0 {
					t.Errorf("%d, %v, %v", free, known, err)
				}
			})
			t.Run("KeepsRecords", func(t *testing.T) {
				s, value := newSigner(t), randomLeaf(3000, 10).Cid()
				if _, err := n.Record(ctx, s.name); !errors.Is(err, ErrNotFound) {
					t.Errorf("record of an unknown name: %v, want ErrNotFound", err)
				}
				first, second := s.sign(t, value, 7, hour), s.sign(t, value, 8, hour)
				for _, raw := range [][]byte{first, first, second} {
					if err := n.PutRecord(ctx, s.name, raw); err != nil {
						t.Fatal(err)
					}
					got, err := n.Record(ctx, s.name)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, raw) {
						t.Fatal("another record came back")
					}
				}
				if err := n.PutRecord(ctx, s.name, first); !errors.Is(err, ErrSuperseded) {
					t.Errorf("older record: %v, want ErrSuperseded", err)
				}
				other := s.sign(t, randomLeaf(3001, 10).Cid(), 8, hour.Add(time.Hour))
				if err := n.PutRecord(ctx, s.name, other); !errors.Is(err, ErrSuperseded) {
					t.Errorf("another value for a sequence: %v, want ErrSuperseded", err)
				}
			})
			t.Run("RefusesRecords", func(t *testing.T) {
				s, value := newSigner(t), randomLeaf(3000, 10).Cid()
				for name, raw := range map[string][]byte{
					"another name's": newSigner(t).sign(t, value, 1, hour),
					"expired":        s.sign(t, value, 1, time.Now().Add(-time.Hour)),
					"no record":      []byte("hello"),
					"empty":          nil,
					"too long":       append(s.sign(t, value, 1, hour), make([]byte, ipns.MaxRecordSize)...),
				} {
					if err := n.PutRecord(ctx, s.name, raw); !errors.Is(err, ErrInvalidRecord) {
						t.Errorf("%s: %v, want ErrInvalidRecord", name, err)
					}
				}
				if _, err := n.Record(ctx, s.name); !errors.Is(err, ErrNotFound) {
					t.Errorf("after refused records: %v, want ErrNotFound", err)
				}
			})
			t.Run("SaysWhatItIs", func(t *testing.T) {
				info, err := n.Info(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if info.ID == "" || info.Agent == "" || len(info.Addrs) == 0 || info.Gateway == "" || !info.Durable || info.Peers != 0 {
					t.Errorf("incomplete: %+v", info)
				}
			})
			t.Run("ServesHTTP", func(t *testing.T) {
				info, err := n.Info(ctx)
				if err != nil {
					t.Fatal(err)
				}
				g := NewGateway(info.Gateway)
				a, b := randomLeaf(4000, 5000), randomLeaf(4001, 300<<10)
				root := dir(a, b, a)
				if err := n.Put(ctx, []blocks.Block{a, b, root}); err != nil {
					t.Fatal(err)
				}
				got, err := g.Get(ctx, b.Cid())
				if err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
					t.Errorf("raw block: %v", err)
				}
				var cids []cid.Cid
				err = g.Fetch(ctx, root.Cid(), nil, ScopeAll, 1<<20, func(b blocks.Block) error {
					cids = append(cids, b.Cid())
					return nil
				})
				if err != nil || len(cids) != 3 {
					t.Errorf("CAR of all: %v, %v", cids, err)
				}
				cids = nil
				err = g.Fetch(ctx, root.Cid(), []string{"1"}, ScopeEntity, 1<<20, func(b blocks.Block) error {
					cids = append(cids, b.Cid())
					return nil
				})
				if err != nil || len(cids) != 2 {
					t.Errorf("CAR of a path: %v, %v", cids, err)
				}
				s := newSigner(t)
				raw := s.sign(t, root.Cid(), 1, hour)
				if _, err := g.Record(ctx, s.name); !errors.Is(err, ErrNotFound) {
					t.Errorf("record that was not put: %v, want ErrNotFound", err)
				}
				if err := n.PutRecord(ctx, s.name, raw); err != nil {
					t.Fatal(err)
				}
				if got, err := g.Record(ctx, s.name); err != nil || !bytes.Equal(got, raw) {
					t.Errorf("record: %v", err)
				}
			})
		})
	}
}

func dirNamed(children map[string]blocks.Block) blocks.Block {
	n := merkledag.NodeWithData([]byte{8, 1})
	n.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256})
	for name, c := range children {
		if err := n.AddRawLink(name, &ipld.Link{Cid: c.Cid(), Size: uint64(len(c.RawData()))}); err != nil {
			panic(err)
		}
	}
	return n
}

// TestDamagedTable flips bytes of a table of the node's store: who reads a block
// there hears of it, the process goes on, and a Put heals the block.
func TestDamagedTable(t *testing.T) {
	fs := vfs.NewMem()
	log := slog.New(slog.DiscardHandler)
	open := func() *store {
		t.Helper()
		s, err := openStore(fs, "blocks", nil, 0, log)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	var all []blocks.Block
	for i := range 300 {
		all = append(all, blocks.NewBlock(fmt.Appendf(nil, "block %d", i)))
	}
	err := errors.Join(s.PutMany(t.Context(), all), s.Sync(), s.db.Flush(), s.Close())
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("blocks")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		f, err := fs.OpenReadWrite("blocks/"+name, vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, 300)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s = open()
	defer s.Close()
	lost := 0
	for _, b := range all {
		switch _, err := s.Get(t.Context(), b.Cid()); {
		case errors.Is(err, ErrCorrupt) && errors.Is(err, ErrDamaged) && strings.Contains(err.Error(), ".sst"):
			lost++
		case err != nil:
			t.Errorf("%v", err)
		}
	}
	if lost == 0 {
		t.Error("no block is lost")
	}
	if err := s.PutMany(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if _, err := s.Get(t.Context(), b.Cid()); err != nil {
			t.Errorf("put again: %v", err)
		}
	}
}
