package unixfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
)

// pieces is a chunk.Splitter over chunks made before.
type pieces [][]byte

func (p *pieces) Reader() io.Reader { return nil }

func (p *pieces) NextBytes() ([]byte, error) {
	if len(*p) == 0 {
		return nil, io.EOF
	}
	c := (*p)[0]
	*p = (*p)[1:]
	return c, nil
}

func boxoFile(t testing.TB, chunks [][]byte, width int) Ref {
	t.Helper()
	params := helpers.DagBuilderParams{Dagserv: mdtest.Mock(), Maxlinks: width, RawLeaves: true, CidBuilder: uio.UnixFS_v1_2025.CidBuilder()}
	p := pieces(chunks)
	db, err := params.New(&p)
	if err != nil {
		t.Fatal(err)
	}
	nd, err := balanced.Layout(db)
	if err != nil {
		t.Fatal(err)
	}
	var size uint64
	for _, c := range chunks {
		size += uint64(len(c))
	}
	return Ref{CID: nd.Cid(), Tsize: sizeOf(t, nd), Size: size}
}

func TestAddFileEqualsBoxo(t *testing.T) {
	data := make([]byte, 3*ChunkSize+17)
	rand.NewChaCha8(sha256.Sum256(nil)).Read(data)
	for _, n := range []int{0, 1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 3 * ChunkSize, 3*ChunkSize + 17} {
		var chunks [][]byte
		for rest := data[:n]; len(rest) > 0; {
			k := min(len(rest), ChunkSize)
			chunks, rest = append(chunks, rest[:k]), rest[k:]
		}
		s := newStore()
		got, err := AddFile(iotest.HalfReader(bytes.NewReader(data[:n])), s.sink)
		if err != nil {
			t.Fatal(err)
		}
		if want := boxoFile(t, chunks, Width); got != want {
			t.Errorf("%d bytes: %v, boxo %v", n, got, want)
		}
		if same, err := AddBytes(data[:n], newStore().sink); err != nil || same != got {
			t.Errorf("%d bytes in memory: %v (%v), read %v", n, same, err, got)
		}
		if n > 0 && n <= ChunkSize && got.CID.Prefix().Codec != cid.Raw {
			t.Errorf("%d bytes are not one raw leaf", n)
		}
		back, err := ReadFile(t.Context(), s, got.CID, int64(n))
		if err != nil || !bytes.Equal(back, data[:n]) {
			t.Errorf("%d bytes read back: %d, %v", n, len(back), err)
		}
		if n > 0 {
			if _, err := ReadFile(t.Context(), s, got.CID, int64(n)-1); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%d bytes, one too many: %v", n, err)
			}
		}
	}
}

func smallChunks(n int) (chunks [][]byte, whole []byte) {
	for i := range n {
		c := []byte{byte(i), byte(i >> 8), byte(i >> 16)}
		c = c[:1+i%3]
		chunks = append(chunks, c)
		whole = append(whole, c...)
	}
	return chunks, whole
}

func TestAddChunksEqualsBoxo(t *testing.T) {
	type shape struct{ width, chunks int }
	shapes := []shape{{Width, Width - 1}, {Width, Width}, {Width, Width + 1}, {Width, 2*Width + 1}}
	for n := range 90 { // up to five levels
		shapes = append(shapes, shape{3, n})
	}
	for _, sh := range shapes {
		chunks, whole := smallChunks(sh.chunks)
		s := newStore()
		l := layout{width: sh.width, sink: s.sink}
		for _, c := range chunks {
			if err := l.leaf(c); err != nil {
				t.Fatal(err)
			}
		}
		got, err := l.finish()
		if err != nil {
			t.Fatal(err)
		}
		if want := boxoFile(t, chunks, sh.width); got != want {
			t.Errorf("%v: %v, boxo %v", sh, got, want)
		}
		if sh.width == Width {
			if public, err := AddChunks(chunks, s.sink); err != nil || public != got {
				t.Errorf("%v: AddChunks gave %v, %v", sh, public, err)
			}
		}
		back, err := ReadFile(t.Context(), s, got.CID, int64(len(whole)))
		if err != nil || !bytes.Equal(back, whole) {
			t.Errorf("%v read back: %d bytes of %d, %v", sh, len(back), len(whole), err)
		}
	}
	if _, err := AddChunks([][]byte{make([]byte, ChunkSize+1)}, newStore().sink); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a chunk too large: %v", err)
	}
}

func TestReaderSeeks(t *testing.T) {
	chunks, whole := smallChunks(Width + 700)
	s := newStore()
	ref, err := AddChunks(chunks, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), s, ref.CID)
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != int64(len(whole)) {
		t.Fatalf("Size %d, want %d", r.Size(), len(whole))
	}
	if err := iotest.TestReader(r, whole); err != nil {
		t.Error(err)
	}
	s.gets = 0
	off := int64(len(whole) - 5)
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if tail, err := io.ReadAll(r); err != nil || !bytes.Equal(tail, whole[off:]) {
		t.Errorf("tail %x, %v; want %x", tail, err, whole[off:])
	}
	if s.gets > 12 {
		t.Errorf("reading the last 5 bytes took %d blocks", s.gets)
	}
	r.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read after Close: %v", err)
	}
}

// takes n bytes and then fails.
type takes int

var errFull = errors.New("full")

func (w *takes) Write(p []byte) (int, error) {
	if len(p) > int(*w) {
		n := int(*w)
		*w = 0
		return n, errFull
	}
	*w -= takes(len(p))
	return len(p), nil
}

func TestReaderWritesTo(t *testing.T) {
	for _, n := range []int{0, 1, 50, Width + 700} {
		chunks, whole := smallChunks(n)
		s := newStore()
		ref, err := AddChunks(chunks, s.sink)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []int{0, 1, len(whole) / 2, len(whole) - 1, len(whole), len(whole) + 1} {
			if from < 0 {
				continue
			}
			r, err := Open(t.Context(), s, ref.CID)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Seek(int64(from), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			rest := whole[min(from, len(whole)):]
			// A writer that fails midway has the first half, and Read gives the other.
			half := takes(len(rest) / 2)
			wrote, err := r.WriteTo(&half)
			if int(wrote) != len(rest)/2 || len(rest) > 0 && !errors.Is(err, errFull) {
				t.Errorf("%d chunks from %d: wrote %d of %d to a writer of half, %v", n, from, wrote, len(rest), err)
			}
			var out bytes.Buffer
			wrote, err = r.WriteTo(&out)
			if err != nil || int(wrote) != out.Len() || !bytes.Equal(out.Bytes(), rest[len(rest)/2:]) {
				t.Errorf("%d chunks from %d: wrote %d of %d, %v", n, from, wrote, len(rest), err)
			}
			r.Close()
			if _, err := r.WriteTo(&out); err == nil {
				t.Errorf("%d chunks from %d: WriteTo after Close gave no error", n, from)
			}
		}
	}
}

func TestReaderFailsOnMissingAndLying(t *testing.T) {
	chunks, whole := smallChunks(50)
	s := newStore()
	ref, err := AddChunks(chunks, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	leaf, err := newBlock(cid.Raw, chunks[30])
	if err != nil {
		t.Fatal(err)
	}
	s.deny = func(c cid.Cid) error {
		if c == leaf.Cid() {
			return gone
		}
		return nil
	}
	if _, err := ReadFile(t.Context(), s, ref.CID, int64(len(whole))); !errors.Is(err, gone) {
		t.Errorf("missing leaf: %v", err)
	}
	s.deny = nil
	// The same root over leaves of another length.
	longer := s.blks[leaf.Cid()]
	for _, size := range []byte{1, 9} {
		l := layout{width: Width, sink: s.sink}
		l.add(0, Ref{CID: longer.Cid(), Size: uint64(size)})
		l.add(0, Ref{CID: longer.Cid(), Size: uint64(len(longer.RawData()))})
		lying, err := l.finish()
		if err != nil {
			t.Fatal(err)
		}
		if int(size) == len(longer.RawData()) {
			continue
		}
		if _, err := ReadFile(t.Context(), s, lying.CID, 1000); !errors.Is(err, ErrMalformed) {
			t.Errorf("a leaf announced as %d bytes: %v", size, err)
		}
	}
	l := layout{width: Width, sink: s.sink}
	l.add(0, Ref{CID: longer.Cid()})
	l.add(0, Ref{CID: longer.Cid()})
	if lying, err := l.finish(); err != nil {
		t.Fatal(err)
	} else if _, err := Open(t.Context(), s, lying.CID); !errors.Is(err, ErrMalformed) {
		t.Errorf("empty children: %v", err)
	}
}

func TestChildren(t *testing.T) {
	chunks, _ := smallChunks(3)
	s := newStore()
	ref, err := AddChunks(chunks, s.sink)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Children(s.blks[ref.CID])
	if err != nil || len(got) != 3 {
		t.Fatalf("%v, %v", got, err)
	}
	for i, c := range got {
		if !bytes.Equal(s.blks[c].RawData(), chunks[i]) {
			t.Errorf("child %d is %s", i, c)
		}
		if below, err := Children(s.blks[c]); err != nil || below != nil {
			t.Errorf("children of a leaf: %v, %v", below, err)
		}
	}
}
