package index

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Operations, the way in which deltas and snapshots say what stands in a list:
// names rising bytewise, each with what it shares with the one before:
//
//	uvarint shared, uvarint len(rest)<<1 | put, rest
//	put: digest (32 bytes) of the package directory's CID, uvarint Tsize
//
// A delta is deltaMagic and operations; a snapshot is snapshotMagic and the same,
// all of them puts, compressed with zstd.
const (
	deltaMagic    = "rmd\x01"
	snapshotMagic = "rms\x01"
)

// ErrDelta is returned for a delta or snapshot that is malformed, or that does
// not lead to the list that it should.
var ErrDelta = errors.New("not a usable delta or snapshot")

// maxTsize is the greatest Tsize of an entry.
const maxTsize = 1 << 62

// opWriter writes operations. Errors are w's, which a bufio.Writer keeps.
type opWriter struct {
	w    *bufio.Writer
	last npm.Name
	buf  []byte
}

func newOpWriter(w io.Writer, magic string) *opWriter {
	o := &opWriter{w: bufio.NewWriterSize(w, 64<<10)}
	o.w.WriteString(magic)
	return o
}

// writeOps writes operations, whose names must rise.
func writeOps(w io.Writer, magic string, ops iter.Seq2[Change, error]) error {
	o := newOpWriter(w, magic)
	for c, err := range ops {
		if err != nil {
			return err
		}
		o.write(c)
	}
	return o.w.Flush()
}

// write writes what stands under a name, which must come after the last one.
func (o *opWriter) write(c Change) {
	shared := 0
	for shared < min(len(o.last), len(c.Name)) && o.last[shared] == c.Name[shared] {
		shared++
	}
	rest := c.Name[shared:]
	o.last = c.Name
	put := uint64(1)
	if c.Delete {
		put = 0
	}
	o.buf = binary.AppendUvarint(o.buf[:0], uint64(shared))
	o.buf = binary.AppendUvarint(o.buf, uint64(len(rest))<<1|put)
	o.buf = append(o.buf, rest...)
	if !c.Delete {
		digest := c.CID.Hash()
		o.buf = append(o.buf, digest[len(digest)-32:]...)
		o.buf = binary.AppendUvarint(o.buf, c.Tsize)
	}
	o.w.Write(o.buf)
}

// readOps yields the operations that r holds behind magic, each checked: names
// are npm's and rise strictly. It ends at the first error, which wraps ErrDelta
// but for r's own. Memory is bounded by a name.
func readOps(r io.Reader, magic string) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		in := opReader{r: bufio.NewReaderSize(r, 64<<10)}
		err := in.begin(magic)
		for err == nil {
			if _, err = in.r.Peek(1); err != nil {
				break
			}
			var c Change
			if c, err = in.next(); err == nil && !yield(c, nil) {
				return
			}
		}
		if err != io.EOF {
			yield(Change{}, err)
		}
	}
}

// mergeOps yields what stands after both of two runs of operations; where both
// say something of a name, the newer.
func mergeOps(older, newer iter.Seq2[Change, error]) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		next, stop := iter.Pull2(older)
		defer stop()
		old, err, more := next()
		for c, err2 := range newer {
			for more && err == nil && err2 == nil && old.Name < c.Name {
				if !yield(old, nil) {
					return
				}
				old, err, more = next()
			}
			if more && err == nil && old.Name == c.Name {
				old, err, more = next()
			}
			if err = errors.Join(err, err2); err != nil {
				yield(Change{}, err)
				return
			}
			if !yield(c, nil) {
				return
			}
		}
		for ; more; old, err, more = next() {
			if !yield(old, err) || err != nil {
				return
			}
		}
	}
}

// directory is the CID of a directory whose SHA-256 is digest.
func directory(digest [32]byte) cid.Cid {
	hash := [34]byte{multihash.SHA2_256, byte(len(digest))}
	copy(hash[2:], digest[:])
	return cid.NewCidV1(cid.DagProtobuf, hash[:])
}

type opReader struct {
	r          *bufio.Reader
	last, rest []byte
}

// short makes an end before its time an ErrDelta.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: cut short", ErrDelta)
	}
	return err
}

func (o *opReader) begin(magic string) error {
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(o.r, head); err != nil {
		return short(err)
	}
	if string(head) != magic {
		return fmt.Errorf("%w: it begins with %q", ErrDelta, head)
	}
	return nil
}

// number reads a uvarint of at most that.
func (o *opReader) number(most uint64) (v uint64, err error) {
	for shift := 0; shift < 63; shift += 7 {
		b, err := o.r.ReadByte()
		if err != nil {
			return 0, short(err)
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if v > most {
				break
			}
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: a number is out of range", ErrDelta)
}

func (o *opReader) next() (Change, error) {
	shared, err := o.number(uint64(len(o.last)))
	if err != nil {
		return Change{}, err
	}
	size, err := o.number(1 << 10)
	if err != nil {
		return Change{}, err
	}
	o.rest = append(o.rest[:0], make([]byte, size>>1)...)
	if _, err := io.ReadFull(o.r, o.rest); err != nil {
		return Change{}, short(err)
	}
	if len(o.last) > 0 && bytes.Compare(o.rest, o.last[shared:]) <= 0 {
		return Change{}, fmt.Errorf("%w: %.300q after %.300q", ErrDelta, append(o.last[:shared:shared], o.rest...), o.last)
	}
	o.last = append(o.last[:shared], o.rest...)
	c := Change{Delete: size&1 == 0}
	if c.Name, err = npm.ParseName(string(o.last)); err != nil {
		return Change{}, fmt.Errorf("%w: %w", ErrDelta, err)
	}
	if c.Delete {
		return c, nil
	}
	var digest [32]byte
	if _, err := io.ReadFull(o.r, digest[:]); err != nil {
		return Change{}, short(err)
	}
	c.CID = directory(digest)
	c.Tsize, err = o.number(maxTsize)
	return c, err
}
