package ipfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	mh "github.com/multiformats/go-multihash"
)

// carHeader is the header of a CARv1 whose one root is the empty identity
// CID, for a CAR must name a root and a batch of blocks has none.
var carHeader = newHeader(cid.MustParse("bafkqaaa"))

// nobodysRoot is the header of a CARv1 whose one root is a block that cannot
// be: its SHA-256 is zero. Kubo takes its lock against garbage collection for
// the import of a CAR whose roots it is to pin, and passes over those that it
// does not find.
var nobodysRoot = newHeader(func() cid.Cid {
	hash, err := mh.Encode(make([]byte, 32), mh.SHA2_256)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, hash)
}())

func newHeader(root cid.Cid) []byte {
	var b bytes.Buffer
	if _, err := storage.NewWritable(&b, []cid.Cid{root}, car.WriteAsCarV1(true)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// newCAR returns blocks as a CARv1 (https://ipld.io/specs/transport/car/carv1/)
// with that header, without copying them.
func newCAR(header []byte, blks []blocks.Block) io.Reader {
	parts := make([]io.Reader, 0, 1+2*len(blks))
	parts = append(parts, bytes.NewReader(header))
	for _, b := range blks {
		id := b.Cid().Bytes()
		head := binary.AppendUvarint(nil, uint64(len(id)+len(b.RawData())))
		parts = append(parts, bytes.NewReader(append(head, id...)), bytes.NewReader(b.RawData()))
	}
	return io.MultiReader(parts...)
}

// ErrCAR is returned for bytes that are no CAR, or whose blocks do not match
// their CIDs.
var ErrCAR = errors.New("malformed CAR")

// CARReader reads a CAR (v1 or v2), one block at a time. It keeps none, and of
// none that is larger than a block may be it reads more than its length.
type CARReader struct {
	Roots []cid.Cid
	br    *car.BlockReader
}

// OpenCAR reads the header of a CAR, at most 32 KiB: ErrCAR where it is none.
func OpenCAR(r io.Reader) (*CARReader, error) {
	// The limit of a section is the block's plus that of a CID.
	br, err := car.NewBlockReader(r, car.MaxAllowedSectionSize(maxBlock+256), car.MaxAllowedHeaderSize(32<<10))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCAR, err)
	}
	return &CARReader{br.Roots, br}, nil
}

// Next returns the next block, checked against its CID and at most 2 MiB: io.EOF
// after the last, ErrCAR where it is not what its CID says, or is cut off.
func (c *CARReader) Next() (blocks.Block, error) {
	b, err := c.br.Next()
	switch {
	case err == io.EOF:
		return nil, io.EOF
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCAR, err)
	case len(b.RawData()) > maxBlock:
		return nil, fmt.Errorf("%w: block %s has %d bytes", ErrCAR, b.Cid(), len(b.RawData()))
	}
	return b, nil
}

// WriteCAR writes a CARv1 of those blocks, with that root. The bytes follow from
// them alone.
func WriteCAR(w io.Writer, root cid.Cid, blks iter.Seq2[blocks.Block, error]) error {
	if _, err := w.Write(newHeader(root)); err != nil {
		return err
	}
	for b, err := range blks {
		if err != nil {
			return err
		}
		id := b.Cid().Bytes()
		head := binary.AppendUvarint(nil, uint64(len(id)+len(b.RawData())))
		if _, err := w.Write(append(head, id...)); err != nil {
			return err
		}
		if _, err := w.Write(b.RawData()); err != nil {
			return err
		}
	}
	return nil
}

// readCAR gives f each block of a CAR, as Next does.
func readCAR(r io.Reader, f func(blocks.Block) error) error {
	c, err := OpenCAR(r)
	if err != nil {
		return err
	}
	for {
		b, err := c.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = f(b)
		}
		if err != nil {
			return err
		}
	}
}
