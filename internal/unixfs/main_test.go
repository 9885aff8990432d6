package unixfs

import (
	"context"
	"fmt"
	"sync"
	"testing"

	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// store keeps what a build gave its sink and counts what was read.
type store struct {
	mu   sync.Mutex
	blks map[cid.Cid]blocks.Block
	gets int
	deny func(cid.Cid) error
}

func newStore() *store { return &store{blks: make(map[cid.Cid]blocks.Block)} }

func (s *store) sink(b blocks.Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blks[b.Cid()] = b
	return nil
}

func (s *store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	if s.deny != nil {
		if err := s.deny(c); err != nil {
			return nil, err
		}
	}
	b, ok := s.blks[c]
	if !ok {
		return nil, fmt.Errorf("test store: no block %s", c)
	}
	return b, nil
}

// stub is a node of which only CID and size are known.
type stub struct {
	ipld.Node
	link Link
}

func (s stub) Cid() cid.Cid          { return s.link.CID }
func (s stub) Size() (uint64, error) { return s.link.Tsize, nil }
func (s stub) RawData() []byte       { return nil }

func sizeOf(t testing.TB, nd ipld.Node) uint64 {
	t.Helper()
	size, err := nd.Size()
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// boxoHAMT is the oracle for directories of limit 0.
func boxoHAMT(t testing.TB, links []Link) Ref {
	t.Helper()
	s, err := hamt.NewShard(mdtest.Mock(), Fanout)
	if err != nil {
		t.Fatal(err)
	}
	s.SetCidBuilder(uio.UnixFS_v1_2025.CidBuilder())
	for _, l := range links {
		if err := s.SetLink(t.Context(), l.Name, &ipld.Link{Size: l.Tsize, Cid: l.CID}); err != nil {
			t.Fatal(err)
		}
	}
	nd, err := s.Node()
	if err != nil {
		t.Fatal(err)
	}
	return Ref{CID: nd.Cid(), Tsize: sizeOf(t, nd)}
}

// linkNamed gives a name a CID and a Tsize of its own.
func linkNamed(t testing.TB, name string) Link {
	t.Helper()
	b, err := newBlock(cid.DagProtobuf, []byte("contents of "+name))
	if err != nil {
		t.Fatal(err)
	}
	return Link{Name: name, CID: b.Cid(), Tsize: Hash(name) % 300_000}
}

func linksNamed(t testing.TB, n int) []Link {
	t.Helper()
	out := make([]Link, n)
	for i := range out {
		out[i] = linkNamed(t, fmt.Sprintf("package-%d", i))
	}
	return out
}
