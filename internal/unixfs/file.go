package unixfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"
)

var chunkBuffers = sync.Pool{New: func() any { return new([ChunkSize]byte) }}

// AddFile cuts r into chunks of ChunkSize and lays them out as boxo's balanced
// layout does. It holds one chunk and one unfinished node per level. A file of
// up to ChunkSize bytes, also of none, is one raw leaf.
func AddFile(r io.Reader, sink Sink) (Ref, error) {
	buf := chunkBuffers.Get().(*[ChunkSize]byte)
	defer chunkBuffers.Put(buf)
	l := layout{width: Width, sink: sink}
	for {
		n, err := io.ReadFull(r, buf[:])
		if errors.Is(err, io.EOF) { // nothing read
			return l.finish()
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return Ref{}, fmt.Errorf("read file: %w", err)
		}
		if err := l.leaf(append([]byte(nil), buf[:n]...)); err != nil {
			return Ref{}, err
		}
		if n < ChunkSize {
			return l.finish()
		}
	}
}

// AddBytes is AddFile of a file in memory, without a copy: the blocks keep
// data's memory, which must not change.
func AddBytes(data []byte, sink Sink) (Ref, error) {
	return AddChunks(slices.Collect(slices.Chunk(data, ChunkSize)), sink)
}

// AddChunks makes a file in which each chunk is one leaf. Chunks are at most
// ChunkSize bytes, else ErrTooLarge; empty ones are passed over. The blocks keep
// the chunks' memory.
func AddChunks(chunks [][]byte, sink Sink) (Ref, error) {
	l := layout{width: Width, sink: sink}
	for _, c := range chunks {
		if len(c) == 0 {
			continue
		}
		if len(c) > ChunkSize {
			return Ref{}, fmt.Errorf("chunk of %d bytes: %w", len(c), ErrTooLarge)
		}
		if err := l.leaf(c); err != nil {
			return Ref{}, err
		}
	}
	return l.finish()
}

// layout builds the balanced tree from its leaves up: levels[0] holds leaves
// that have no parent yet, levels[1] nodes over width leaves, and so on.
type layout struct {
	width  int
	sink   Sink
	levels [][]Ref
}

func (l *layout) leaf(data []byte) error {
	blk, err := newBlock(cid.Raw, data)
	if err != nil {
		return err
	}
	if err := l.sink(blk); err != nil {
		return err
	}
	return l.add(0, Ref{CID: blk.Cid(), Tsize: uint64(len(data)), Size: uint64(len(data))})
}

// add puts ref on its level. A full level is closed only when one more comes,
// for a tree of exactly width leaves has one node and not two.
func (l *layout) add(level int, ref Ref) error {
	if len(l.levels) == level {
		l.levels = append(l.levels, nil)
	}
	if len(l.levels[level]) == l.width {
		if err := l.close(level); err != nil {
			return err
		}
	}
	l.levels[level] = append(l.levels[level], ref)
	return nil
}

// close makes one node of what waits on level and moves it one level up.
func (l *layout) close(level int) error {
	children := l.levels[level]
	var data []byte
	var ref Ref
	size := 0
	for _, c := range children {
		ref.Size += c.Size
		ref.Tsize += c.Tsize
		size += linkLen(pbLink{cid: c.CID.KeyString(), tsize: c.Tsize}, 0)
	}
	data = append(data, 0x08, typeFile, 0x18)
	data = binary.AppendUvarint(data, ref.Size)
	for _, c := range children {
		data = append(data, 0x20)
		data = binary.AppendUvarint(data, c.Size)
	}
	b := make([]byte, 0, size+len(data)+1+uvarintLen(uint64(len(data))))
	for _, c := range children {
		b = appendLink(b, "", pbLink{cid: c.CID.KeyString(), tsize: c.Tsize})
	}
	b = appendData(b, data)
	blk, err := newBlock(cid.DagProtobuf, b)
	if err != nil {
		return err
	}
	if err := l.sink(blk); err != nil {
		return err
	}
	ref.CID = blk.Cid()
	ref.Tsize += uint64(len(b))
	l.levels[level] = children[:0]
	return l.add(level+1, ref)
}

func (l *layout) finish() (Ref, error) {
	if len(l.levels) == 0 {
		if err := l.leaf([]byte{}); err != nil {
			return Ref{}, err
		}
	}
	for level := 0; ; level++ {
		if top := level == len(l.levels)-1; top && len(l.levels[level]) == 1 {
			return l.levels[level][0], nil
		}
		if err := l.close(level); err != nil {
			return Ref{}, err
		}
	}
}
