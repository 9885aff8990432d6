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
	links []pbLink
	data  []byte
}

// pbLink is a link as it stands in a block. Most of a shard's are read to be
// written again just so: there their CIDs need not be taken out.
type pbLink struct {
	cid, name string // the CID in its binary form
	tsize     uint64
}

func (l *Link) pb() pbLink { return pbLink{l.CID.KeyString(), l.Name, l.Tsize} }

// link takes out the CID, which was checked.
func (l pbLink) link() (Link, error) {
	c, err := cid.Cast([]byte(l.cid))
	return Link{Name: l.name, CID: c, Tsize: l.tsize}, err
}

// decodedLinks are the links of n.
func (n node) decodedLinks() ([]Link, error) {
	if len(n.links) == 0 {
		return nil, nil
	}
	links := make([]Link, len(n.links))
	for i := range n.links {
		var err error
		if links[i], err = n.links[i].link(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	return links, nil
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
func linkBodyLen(l pbLink, nameLen int) int {
	c := len(l.cid)
	return 1 + uvarintLen(uint64(c)) + c + 1 + uvarintLen(uint64(nameLen)) + nameLen + 1 + uvarintLen(l.tsize)
}

// linkLen is what a link adds to a block's length.
func linkLen(l pbLink, nameLen int) int {
	n := linkBodyLen(l, nameLen)
	return 1 + uvarintLen(uint64(n)) + n
}

// appendLink writes the link under the name prefix+l.name.
func appendLink(b []byte, prefix string, l pbLink) []byte {
	nameLen := len(prefix) + len(l.name)
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(linkBodyLen(l, nameLen)))
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(len(l.cid)))
	b = append(b, l.cid...)
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(nameLen))
	b = append(b, prefix...)
	b = append(b, l.name...)
	b = append(b, 0x18)
	return binary.AppendUvarint(b, l.tsize)
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
	n := node{links: make([]pbLink, 0, min(len(b)/minLink, Fanout))}
	text := string(b) // whose parts the names and CIDs are
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
			end := len(text) - len(rest)
			l, err := decodeLink(val, text[end-len(val):end])
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

// minLink is the length of a link with a SHA-256 and a name of a shard's.
const minLink = 46

// decodeLink reads a link's message, of which text is a copy.
func decodeLink(b []byte, text string) (l pbLink, err error) {
	for last := uint64(0); len(b) > 0; {
		num, v, val, rest, err := field(b)
		if err != nil {
			return pbLink{}, err
		}
		if num <= last || num > 3 {
			return pbLink{}, fmt.Errorf("%w: link field %d after %d", ErrMalformed, num, last)
		}
		if err := wire(num != 3, val); err != nil {
			return pbLink{}, err
		}
		end := len(text) - len(rest)
		switch num {
		case 1:
			if l.cid = text[end-len(val) : end]; usual(l.cid) {
				break
			}
			if _, err := cid.Cast(val); err != nil {
				return pbLink{}, fmt.Errorf("%w: %w", ErrMalformed, err)
			}
		case 2:
			l.name = text[end-len(val) : end]
		case 3:
			if v > math.MaxInt64 {
				return pbLink{}, fmt.Errorf("%w: Tsize %d", ErrMalformed, v)
			}
			l.tsize = v
		}
		b, last = rest, num
	}
	if l.cid == "" {
		return pbLink{}, fmt.Errorf("%w: link without CID", ErrMalformed)
	}
	return l, nil
}

// usual tells a CIDv1 of a dag-pb or raw block with its SHA-256, in its binary
// form, from what is to be looked at more closely.
func usual(c string) bool {
	return len(c) == 36 && (c[:4] == "\x01\x70\x12\x20" || c[:4] == "\x01\x55\x12\x20")
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
		return n.decodedLinks()
	}
	return nil, fmt.Errorf("decode %s: %w: neither raw nor dag-pb", blk.Cid(), ErrMalformed)
}
