package unixfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

const (
	// fileAhead is how many blocks a Reader asks for at once.
	fileAhead = 8
	// maxFileDepth bounds the levels of a file's tree: 1024 links a node need
	// three for a pebibyte, the narrowest writers a few more.
	maxFileDepth = 16
)

// part is what a Reader knows of a file's block before it has it.
type part struct {
	start, size int64 // its bytes' place in the file
	depth       int
}

// Reader reads a file in order and asks for fileAhead blocks ahead. One
// goroutine may use it at a time. It ends with the context that Open had, or
// with Close.
type Reader struct {
	ctx  context.Context
	g    Getter
	root blocks.Block
	size int64
	off  int64       // of the next byte that Read returns
	buf  []byte      // read already, at off
	walk *walk[part] // nil before the first Read, after a Seek, and where the root is all
	err  error
}

// Open fetches the file's root block. It returns ErrMalformed where file is not
// a file of raw leaves or UnixFS nodes.
func Open(ctx context.Context, g Getter, file cid.Cid) (*Reader, error) {
	root, err := get(ctx, g, file)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	size, err := fileSize(root)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return &Reader{ctx: ctx, g: g, root: root, size: size}, nil
}

// ReadFile returns the whole file, ErrTooLarge when it has more than max bytes.
func ReadFile(ctx context.Context, g Getter, file cid.Cid, max int64) ([]byte, error) {
	r, err := Open(ctx, g, file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.size > max {
		return nil, fmt.Errorf("read %s: %d bytes, %d allowed: %w", file, r.size, max, ErrTooLarge)
	}
	out := make([]byte, r.size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Size is the file's length in bytes as its root says. Read fails with
// ErrMalformed where a block does not bear that out.
func (r *Reader) Size() int64 { return r.size }

func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.off >= r.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.buf)
	r.skip(n)
	return n, nil
}

// WriteTo writes what Read has not returned yet, each block's bytes in one call
// and as they are. An error of w ends no Reader: the bytes that w took are read.
func (r *Reader) WriteTo(w io.Writer) (written int64, err error) {
	for r.err == nil && r.off < r.size {
		if err := r.fill(); err != nil {
			return written, err
		}
		n, err := w.Write(r.buf)
		r.skip(n)
		if written += int64(n); err != nil {
			return written, err
		}
	}
	return written, r.err
}

// fill makes sure that buf has a byte, of which off is before size.
func (r *Reader) fill() error {
	for len(r.buf) == 0 {
		if err := r.step(); err != nil {
			r.err = fmt.Errorf("read %s: %w", r.root.Cid(), err)
			return r.err
		}
	}
	return nil
}

func (r *Reader) skip(n int) {
	r.buf = r.buf[n:]
	r.off += int64(n)
}

// Seek moves to a byte of the file. The next Read skips what lies before it
// without fetching.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.size
	default:
		return 0, errors.New("seek: unknown whence")
	}
	if offset < 0 {
		return 0, errors.New("seek: before the start")
	}
	if offset != r.off {
		r.stop()
		r.off = offset
	}
	return offset, nil
}

// Close ends the fetches that are under way and waits for them.
func (r *Reader) Close() error {
	r.stop()
	if r.err == nil {
		r.err = errClosed
	}
	return nil
}

var errClosed = errors.New("read after close")

func (r *Reader) stop() {
	if r.walk != nil {
		r.walk.close()
		r.walk = nil
	}
	r.buf = nil
}

// step takes the next block: a node's children go on the stack, a leaf's bytes
// into buf.
func (r *Reader) step() error {
	at, blk := part{size: r.size}, r.root
	if r.walk != nil {
		var ok bool
		var err error
		if at, blk, ok, err = r.walk.next(); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("%w: ends at byte %d of %d", ErrMalformed, r.off, r.size)
		}
	}
	data, links, sizes, err := filePart(blk)
	if err != nil {
		return err
	}
	start, end := at.start+int64(len(data)), at.start+at.size
	vs := make([]*visit[part], 0, len(links))
	for i, l := range links {
		if sizes[i] > end-start {
			return fmt.Errorf("decode %s: %w: more bytes than announced", blk.Cid(), ErrMalformed)
		}
		if start+sizes[i] > r.off {
			vs = append(vs, &visit[part]{cid: l.CID, what: part{start, sizes[i], at.depth + 1}})
		}
		start += sizes[i]
	}
	if start != end {
		return fmt.Errorf("decode %s: %w: %d bytes, announced %d", blk.Cid(), ErrMalformed, start-at.start, at.size)
	}
	if len(vs) > 0 && at.depth == maxFileDepth {
		return fmt.Errorf("decode %s: %w: more than %d levels", blk.Cid(), ErrMalformed, maxFileDepth)
	}
	if r.walk == nil && len(links) > 0 { // most files are one block
		r.walk = newWalk[part](r.ctx, r.g, fileAhead)
	}
	if r.walk != nil {
		r.walk.push(vs)
	}
	if skip := r.off - at.start; skip < int64(len(data)) {
		r.buf = data[skip:]
	}
	return nil
}

// filePart takes a block of a file apart. Every link has its size above zero:
// an empty one would let a few blocks keep a reader busy for ever.
func filePart(blk blocks.Block) (data []byte, links []Link, sizes []int64, err error) {
	if blk.Cid().Prefix().Codec == cid.Raw {
		return blk.RawData(), nil, nil, nil
	}
	n, d, err := decodeUnixFS(blk)
	if err != nil {
		return nil, nil, nil, err
	}
	if d.kind != typeFile && d.kind != typeRaw {
		return nil, nil, nil, fmt.Errorf("decode %s: %w: not a file", blk.Cid(), ErrMalformed)
	}
	if len(n.links) != len(d.blocksizes) {
		return nil, nil, nil, fmt.Errorf("decode %s: %w: %d links, %d sizes", blk.Cid(), ErrMalformed, len(n.links), len(d.blocksizes))
	}
	sizes = make([]int64, len(d.blocksizes))
	for i, s := range d.blocksizes {
		if s == 0 || s > math.MaxInt64 {
			return nil, nil, nil, fmt.Errorf("decode %s: %w: a child of %d bytes", blk.Cid(), ErrMalformed, s)
		}
		sizes[i] = int64(s)
	}
	links, err = n.decodedLinks()
	return d.data, links, sizes, err
}

// fileSize is the size that a file's root block announces.
func fileSize(root blocks.Block) (int64, error) {
	data, _, sizes, err := filePart(root)
	if err != nil {
		return 0, err
	}
	size := int64(len(data))
	for _, s := range sizes {
		if s > math.MaxInt64-size {
			return 0, fmt.Errorf("decode %s: %w: sizes overflow", root.Cid(), ErrMalformed)
		}
		size += s
	}
	return size, nil
}
