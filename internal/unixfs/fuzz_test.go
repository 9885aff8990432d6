package unixfs

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	boxofs "github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
)

// FuzzDecode holds the decoders to boxo's: what they accept boxo accepts, and
// both read the same links; a shard that is accepted is one that encodeShard writes.
func FuzzDecode(f *testing.F) {
	s := newStore()
	links := linksNamed(f, 40)
	mustBuild(f, links, 0, s.sink)
	mustBuild(f, links[:3], DirLimit, s.sink)
	chunks, _ := smallChunks(4)
	if _, err := AddChunks(chunks, s.sink); err != nil {
		f.Fatal(err)
	}
	for _, b := range s.blks {
		f.Add(b.RawData())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		blk, err := newBlock(cid.DagProtobuf, data)
		if err != nil {
			t.Fatal(err)
		}
		n, d, err := decodeUnixFS(blk)
		if err != nil {
			return
		}
		nd, err := merkledag.DecodeProtobuf(data)
		if err != nil {
			t.Fatalf("boxo refuses the node: %v", err)
		}
		if len(nd.Links()) != len(n.links) || !bytes.Equal(nd.Data(), n.data) {
			t.Fatalf("%d links, boxo %d", len(n.links), len(nd.Links()))
		}
		links, err := n.decodedLinks()
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range nd.Links() {
			if got := links[i]; got.Name != l.Name || got.CID != l.Cid || got.Tsize != l.Size {
				t.Fatalf("link %d: %v, boxo %v", i, got, l)
			}
		}
		if d.kind == typeHAMT {
			if cs, err := decodeShard(n, d); err == nil {
				again, err := decodeNode(encodeShard(cs))
				if err != nil || !slices.Equal(again.links, n.links) {
					t.Fatalf("encoded again: %v, %v", again, err)
				}
			}
		}
		if d.kind == typeFile {
			if size, err := fileSize(blk); err == nil {
				if fsn, err := boxofs.FSNodeFromBytes(n.data); err == nil && fsn.NumChildren() != len(d.blocksizes) {
					t.Fatalf("size %d from %d parts, boxo %d", size, len(d.blocksizes), fsn.NumChildren())
				}
			}
		}
		_ = checkBasic(n)
		r := &Reader{ctx: t.Context(), g: s, root: blk, size: 1 << 20}
		r.Read(make([]byte, 10))
		r.Close()
	})
}

// FuzzBuild holds BuildDir to boxo's HAMT for any set of names, one a line.
func FuzzBuild(f *testing.F) {
	f.Add("express\nlodash\n@types")
	f.Add(collideA)
	f.Add(strings.Join(deepNames(4), "\n"))
	f.Fuzz(func(t *testing.T, text string) {
		names := strings.Split(text, "\n")
		slices.Sort(names)
		names = slices.Compact(names)
		names = slices.DeleteFunc(names, func(s string) bool { return s == "" || strings.Contains(s, "/") })
		hashes := map[uint64]bool{}
		var links []Link
		for _, name := range names {
			if h := Hash(name); !hashes[h] {
				hashes[h] = true
				links = append(links, linkNamed(t, name))
			}
		}
		s := newStore()
		ref := mustBuild(t, links, 0, s.sink)
		if want := boxoHAMT(t, links); ref != want {
			t.Fatalf("%v, boxo %v", ref, want)
		}
		for _, l := range links {
			if got, err := Lookup(t.Context(), s, ref.CID, l.Name); err != nil || got != l {
				t.Fatalf("Lookup %q: %v, %v", l.Name, got, err)
			}
		}
	})
}

// FuzzEdit holds Edit to boxo's HAMT after every batch of edits: each byte puts
// or takes out one of 64 names, half of them deep in one another's shards, and a
// zero ends a batch.
func FuzzEdit(f *testing.F) {
	names := deepNames(32)
	for i := range 32 {
		names = append(names, "name-"+strconv.Itoa(i))
	}
	f.Add([]byte{1, 2, 3, 0, 0x81, 0x82, 0, 0x83})
	f.Add([]byte{10, 11, 12, 13, 0, 0x8a, 12, 0, 0x8b, 0x8c, 0x8d})
	f.Fuzz(func(t *testing.T, moves []byte) {
		if len(moves) > 256 {
			return
		}
		s := newStore()
		set, batch := map[string]Link{}, map[string]Link{}
		ref := mustBuild(t, nil, 0, s.sink)
		for i, m := range append(moves, 0) {
			if m != 0 {
				name := names[m&63]
				l := Link{Name: name}
				if _, there := set[name]; m < 0x80 || !there {
					l = linkNamed(t, name)
					l.Tsize = uint64(i)
				}
				batch[name] = l
				continue
			}
			for name, l := range batch {
				if l.CID.Defined() {
					set[name] = l
				} else {
					delete(set, name)
				}
			}
			ref = mustEdit(t, s, ref, slices.Collect(maps.Values(batch))...).Ref
			clear(batch)
		}
		links := slices.Collect(maps.Values(set))
		if want := boxoHAMT(t, links); ref != want {
			t.Fatalf("%d links: edited %v, boxo %v", len(links), ref, want)
		}
	})
}
