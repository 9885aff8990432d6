package ipfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

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

// errBadCAR is returned for bytes that are no CAR, or whose blocks do not
// match their CIDs.
var errBadCAR = errors.New("malformed CAR")

// readCAR gives f each block of a CAR, checked against its CID and at most
// 2 MiB, in order. It keeps none.
func readCAR(r io.Reader, f func(blocks.Block) error) error {
	// The limit of a section is the block's plus that of a CID.
	br, err := car.NewBlockReader(r, car.MaxAllowedSectionSize(maxBlock+256), car.MaxAllowedHeaderSize(32<<10))
	if err != nil {
		return fmt.Errorf("%w: %w", errBadCAR, err)
	}
	for {
		b, err := br.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errBadCAR, err)
		}
		if len(b.RawData()) > maxBlock {
			return fmt.Errorf("%w: block %s has %d bytes", errBadCAR, b.Cid(), len(b.RawData()))
		}
		if err := f(b); err != nil {
			return err
		}
	}
}
