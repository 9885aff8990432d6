package unixfs

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// UnixFS data types (specs.ipfs.tech/unixfs).
const (
	typeRaw       = 0
	typeDirectory = 1
	typeFile      = 2
	typeHAMT      = 5
)

// murmur3x64 is the multicodec of the HAMT's hash function, murmur3-x64-64.
const murmur3x64 = 0x22

// node is a decoded dag-pb node. Its strings and slices are its own or alias
// the block's bytes, which nobody changes.
type node struct {
	links []Link
	data  []byte
}

// fsData is the UnixFS message in a node's Data.
type fsData struct {
	kind       uint64
	data       []byte
	size       uint64
	blocksizes []uint64
	hash       uint64
	fanout     uint64
}

// newBlock gives data its CIDv1 with SHA-256.
func newBlock(codec uint64, data []byte) (blocks.Block, error) {
	sum := sha256.Sum256(data)
	mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, cid.NewCidV1(codec, mh))
}

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// linkBodyLen is the length of a PBLink message whose name has nameLen bytes.
func linkBodyLen(l *Link, nameLen int) int {
	c := l.CID.ByteLen()
	return 1 + uvarintLen(uint64(c)) + c + 1 + uvarintLen(uint64(nameLen)) + nameLen + 1 + uvarintLen(l.Tsize)
}

// linkLen is what a link adds to a block's length.
func linkLen(l *Link, nameLen int) int {
	n := linkBodyLen(l, nameLen)
	return 1 + uvarintLen(uint64(n)) + n
}

// appendLink writes the link under the name prefix+l.Name.
func appendLink(b []byte, prefix string, l *Link) []byte {
	nameLen := len(prefix) + len(l.Name)
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(linkBodyLen(l, nameLen)))
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(l.CID.ByteLen()))
	b = append(b, l.CID.KeyString()...)
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(nameLen))
	b = append(b, prefix...)
	b = append(b, l.Name...)
	b = append(b, 0x18)
	return binary.AppendUvarint(b, l.Tsize)
}

func appendData(b, data []byte) []byte {
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// field reads one protobuf field: a varint (wire type 0) in v, or bytes (wire
// type 2) in val. Groups and fixed-width fields are refused.
func field(b []byte) (num, v uint64, val, rest []byte, err error) {
	tag, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, 0, nil, nil, fmt.Errorf("%w: bad tag", ErrMalformed)
	}
	b = b[n:]
	v, n = binary.Uvarint(b)
	if n <= 0 {
		return 0, 0, nil, nil, fmt.Errorf("%w: bad varint", ErrMalformed)
	}
	b = b[n:]
	switch tag & 7 {
	case 0:
		return tag >> 3, v, nil, b, nil
	case 2:
		if v > uint64(len(b)) {
			return 0, 0, nil, nil, fmt.Errorf("%w: cut short", ErrMalformed)
		}
		return tag >> 3, 0, b[:v:v], b[v:], nil
	}
	return 0, 0, nil, nil, fmt.Errorf("%w: wire type %d", ErrMalformed, tag&7)
}

// wire checks that a field of bytes was not written as a varint, and the reverse.
func wire(isBytes bool, val []byte) error {
	if isBytes != (val != nil) {
		return fmt.Errorf("%w: wrong wire type", ErrMalformed)
	}
	return nil
}

// decodeNode reads a dag-pb node with its links before or after its data, in
// the order they stand.
func decodeNode(b []byte) (node, error) {
	var n node
	for hasData, last := false, uint64(0); len(b) > 0; {
		num, _, val, rest, err := field(b)
		if err != nil {
			return node{}, err
		}
		if err := wire(true, val); err != nil {
			return node{}, err
		}
		switch num {
		case 2:
			if last == 1 && len(n.links) > 0 {
				return node{}, fmt.Errorf("%w: links on both sides of data", ErrMalformed)
			}
			l, err := decodeLink(val)
			if err != nil {
				return node{}, err
			}
			n.links = append(n.links, l)
		case 1:
			if hasData {
				return node{}, fmt.Errorf("%w: data twice", ErrMalformed)
			}
			n.data, hasData = val, true
		default:
			return node{}, fmt.Errorf("%w: field %d", ErrMalformed, num)
		}
		b, last = rest, num
	}
	return n, nil
}

func decodeLink(b []byte) (Link, error) {
	var l Link
	for last := uint64(0); len(b) > 0; {
		num, v, val, rest, err := field(b)
		if err != nil {
			return Link{}, err
		}
		if num <= last || num > 3 {
			return Link{}, fmt.Errorf("%w: link field %d after %d", ErrMalformed, num, last)
		}
		if err := wire(num != 3, val); err != nil {
			return Link{}, err
		}
		switch num {
		case 1:
			if l.CID, err = cid.Cast(val); err != nil {
				return Link{}, fmt.Errorf("%w: %w", ErrMalformed, err)
			}
		case 2:
			l.Name = string(val)
		case 3:
			if v > math.MaxInt64 {
				return Link{}, fmt.Errorf("%w: Tsize %d", ErrMalformed, v)
			}
			l.Tsize = v
		}
		b, last = rest, num
	}
	if !l.CID.Defined() {
		return Link{}, fmt.Errorf("%w: link without CID", ErrMalformed)
	}
	return l, nil
}

// decodeData reads the UnixFS message. Mode and mtime are passed over: nothing
// here writes them.
func decodeData(b []byte) (fsData, error) {
	var d fsData
	seen := uint64(0)
	for len(b) > 0 {
		num, v, val, rest, err := field(b)
		if err != nil {
			return fsData{}, err
		}
		b = rest
		if num == 0 || num > 8 {
			return fsData{}, fmt.Errorf("%w: UnixFS field %d", ErrMalformed, num)
		}
		if num != 4 && seen&(1<<num) != 0 {
			return fsData{}, fmt.Errorf("%w: UnixFS field %d twice", ErrMalformed, num)
		}
		seen |= 1 << num
		if num == 4 && val != nil { // packed form
			for len(val) > 0 {
				v, n := binary.Uvarint(val)
				if n <= 0 {
					return fsData{}, fmt.Errorf("%w: bad varint", ErrMalformed)
				}
				d.blocksizes, val = append(d.blocksizes, v), val[n:]
			}
			continue
		}
		if err := wire(num == 2 || num == 8, val); err != nil {
			return fsData{}, err
		}
		switch num {
		case 1:
			d.kind = v
		case 2:
			d.data = val
		case 3:
			d.size = v
		case 4:
			d.blocksizes = append(d.blocksizes, v)
		case 5:
			d.hash = v
		case 6:
			d.fanout = v
		}
	}
	if seen&(1<<1) == 0 {
		return fsData{}, fmt.Errorf("%w: no UnixFS type", ErrMalformed)
	}
	return d, nil
}

// decodeUnixFS reads a dag-pb block and the UnixFS message in it.
func decodeUnixFS(blk blocks.Block) (node, fsData, error) {
	if codec := blk.Cid().Prefix().Codec; codec != cid.DagProtobuf {
		return node{}, fsData{}, fmt.Errorf("decode %s: %w: codec %#x is not dag-pb", blk.Cid(), ErrMalformed, codec)
	}
	n, err := decodeNode(blk.RawData())
	if err != nil {
		return node{}, fsData{}, fmt.Errorf("decode %s: %w", blk.Cid(), err)
	}
	d, err := decodeData(n.data)
	if err != nil {
		return node{}, fsData{}, fmt.Errorf("decode %s: %w", blk.Cid(), err)
	}
	return n, d, nil
}

// Children returns the CIDs that a raw or dag-pb block links to, in order and
// as often as they stand there.
func Children(blk blocks.Block) ([]cid.Cid, error) {
	links, err := linksOf(blk)
	if err != nil || len(links) == 0 {
		return nil, err
	}
	out := make([]cid.Cid, len(links))
	for i := range links {
		out[i] = links[i].CID
	}
	return out, nil
}

// linksOf are a block's links as they stand there; a raw leaf has none.
func linksOf(blk blocks.Block) ([]Link, error) {
	switch blk.Cid().Prefix().Codec {
	case cid.Raw:
		return nil, nil
	case cid.DagProtobuf:
		n, err := decodeNode(blk.RawData())
		if err != nil {
			return nil, fmt.Errorf("decode %s: %w", blk.Cid(), err)
		}
		return n.links, nil
	}
	return nil, fmt.Errorf("decode %s: %w: neither raw nor dag-pb", blk.Cid(), ErrMalformed)
}
