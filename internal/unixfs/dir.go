package unixfs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/spaolacci/murmur3"
)

// hashLen is the number of levels that 64 bits of hash allow.
const hashLen = 8

// Hash is the HAMT's hash of a name: the first 64 bits of murmur3-x64-128. The
// slot on level d is its byte d, the highest first. Names with equal hashes
// cannot lie in one HAMT.
func Hash(name string) uint64 { return murmur3.Sum64([]byte(name)) }

func slotAt(hash uint64, depth int) byte { return byte(hash >> (56 - 8*depth)) }

var hexSlot = func() (t [Fanout]string) {
	for i := range t {
		t[i] = fmt.Sprintf("%02X", i)
	}
	return t
}()

// BuildDir makes the directory of links, which may come in any order and are
// left as they are. Up to limit bytes of exact block size it is basic, beyond
// that a HAMT; with limit 0 it is always a HAMT, also with no links. The result
// depends on the set of links and limit alone, and equals, CID and Tsize, what
// boxo's hamt and io.Directory (SizeEstimationBlock) make of the links kept; but
// an io.Directory that was a HAMT before is not exact about the limit.
//
// Of names with equal hashes one is kept, whatever the directory's size:
// Reserved where it is among them, else the bytewise smallest. The others come
// back in overflow, sorted by name.
func BuildDir(links []Link, limit int, sink Sink) (ref Ref, overflow []Link, err error) {
	es, overflow, err := sortLinks(links)
	if err != nil {
		return Ref{}, nil, err
	}
	if limit > 0 && basicLen(es) <= limit {
		ref, err = writeBasic(es, sink)
		return ref, overflow, err
	}
	b := builder{sink: sink}
	c, tsize, err := b.shard(es, 0)
	return Ref{CID: c, Tsize: tsize}, overflow, err
}

// sortLinks gives the entries that keep their places, by their hashes, and the
// others.
func sortLinks(links []Link) (es []entry, overflow []Link, err error) {
	es = make([]entry, len(links))
	for i := range links {
		l := &links[i]
		if err := checkLink(l, false); err != nil {
			return nil, nil, err
		}
		es[i] = entry{hash: Hash(l.Name), link: l}
	}
	slices.SortFunc(es, entry.compare)
	return settle(es)
}

// checkLink refuses what no directory can hold; a link without a CID too, unless
// it says what is to go.
func checkLink(l *Link, gone bool) error {
	switch {
	case l.Name == "" || strings.Contains(l.Name, "/"):
		return fmt.Errorf("link %q: %w", l.Name, ErrName)
	case !l.CID.Defined() && !gone:
		return fmt.Errorf("link %q has no CID: %w", l.Name, ErrMalformed)
	case l.Tsize > math.MaxInt64:
		return fmt.Errorf("link %q has Tsize %d: %w", l.Name, l.Tsize, ErrTooLarge)
	}
	return nil
}

// IsBasic tells whether BuildDir makes a basic directory of links. Errors are its
// own.
func IsBasic(links []Link, limit int) (bool, error) {
	es, _, err := sortLinks(links)
	return err == nil && limit > 0 && basicLen(es) <= limit, err
}

// entry is a link with its hash.
type entry struct {
	hash uint64
	link *Link
	late bool // of an Editor: its link is to be asked for
}

// compare orders by hash, and within one hash by who keeps the place.
func (e entry) compare(o entry) int {
	if c := cmp.Compare(e.hash, o.hash); c != 0 {
		return c
	}
	switch a, b := e.link.Name, o.link.Name; {
	case a == b:
		return 0
	case a == Reserved:
		return -1
	case b == Reserved:
		return 1
	default:
		return strings.Compare(a, b)
	}
}

// settle leaves one entry per hash. es is sorted by compare, and reused: what
// is kept never reaches past the entry before the one looked at.
func settle(es []entry) (kept []entry, overflow []Link, err error) {
	kept = es[:0]
	for i, e := range es {
		if i > 0 && es[i-1].hash == e.hash {
			if es[i-1].link.Name == e.link.Name {
				return nil, nil, fmt.Errorf("link %q is there twice: %w", e.link.Name, ErrName)
			}
			overflow = append(overflow, *e.link)
			continue
		}
		kept = append(kept, e)
	}
	slices.SortFunc(overflow, compareNames)
	return kept, overflow, nil
}

func compareNames(a, b Link) int { return strings.Compare(a.Name, b.Name) }

// directoryData is the UnixFS message of a basic directory.
var directoryData = []byte{0x08, typeDirectory}

// basicLen is the exact length of the basic directory's block.
func basicLen(es []entry) int {
	n := 1 + 1 + len(directoryData)
	for i := range es {
		n += linkLen(es[i].link.pb(), len(es[i].link.Name))
	}
	return n
}

// writeBasic writes es as a basic directory, sorted by name as dag-pb asks.
func writeBasic(es []entry, sink Sink) (Ref, error) {
	es = slices.Clone(es)
	slices.SortFunc(es, func(a, b entry) int { return strings.Compare(a.link.Name, b.link.Name) })
	buf := make([]byte, 0, basicLen(es))
	var tsize uint64
	for i := range es {
		buf = appendLink(buf, "", es[i].link.pb())
		tsize += es[i].link.Tsize
	}
	buf = appendData(buf, directoryData)
	blk, err := newBlock(cid.DagProtobuf, buf)
	if err != nil {
		return Ref{}, err
	}
	if err := sink(blk); err != nil {
		return Ref{}, err
	}
	return Ref{CID: blk.Cid(), Tsize: tsize + uint64(len(buf))}, nil
}

// BasicDir makes a basic directory of links whatever its size and whatever the
// names' hashes. The block must stay within ChunkSize bytes, else ErrTooLarge.
func BasicDir(links []Link, sink Sink) (Ref, error) {
	es := make([]entry, len(links))
	seen := make(map[string]bool, len(links))
	for i := range links {
		l := &links[i]
		if l.Name == "" || strings.Contains(l.Name, "/") || seen[l.Name] {
			return Ref{}, fmt.Errorf("link %q: %w", l.Name, ErrName)
		}
		seen[l.Name] = true
		es[i] = entry{link: l}
	}
	if n := basicLen(es); n > ChunkSize {
		return Ref{}, fmt.Errorf("basic directory of %d bytes: %w", n, ErrTooLarge)
	}
	return writeBasic(es, sink)
}

// child is one slot of a shard: an entry, or a shard below where sub is set
// and the link's name is empty.
type child struct {
	slot byte
	sub  bool
	link pbLink
}

// empty tells the slot in which nothing is.
func (c child) empty() bool { return c.link.cid == "" }

// builder builds a HAMT from entries in the order of their hashes.
type builder struct {
	sink    Sink
	scratch [hashLen][]child
}

// shard writes the shard at depth that holds es, and all below it. An entry
// alone in its slot stays in the shard; two or more become a shard below.
func (b *builder) shard(es []entry, depth int) (cid.Cid, uint64, error) {
	if depth == hashLen { // settle left one entry per hash
		return cid.Undef, 0, fmt.Errorf("%d names share a hash: %w", len(es), ErrName)
	}
	cs := b.scratch[depth][:0]
	for len(es) > 0 {
		slot := slotAt(es[0].hash, depth)
		n := 1
		for n < len(es) && slotAt(es[n].hash, depth) == slot {
			n++
		}
		if n == 1 {
			cs = append(cs, child{slot: slot, link: es[0].link.pb()})
		} else {
			c, tsize, err := b.shard(es[:n], depth+1)
			if err != nil {
				return cid.Undef, 0, err
			}
			cs = append(cs, child{slot: slot, sub: true, link: pbLink{cid: c.KeyString(), tsize: tsize}})
		}
		es = es[n:]
	}
	b.scratch[depth] = cs
	return writeShard(cs, b.sink)
}

func writeShard(cs []child, sink Sink) (cid.Cid, uint64, error) {
	buf := encodeShard(cs)
	blk, err := newBlock(cid.DagProtobuf, buf)
	if err != nil {
		return cid.Undef, 0, err
	}
	if err := sink(blk); err != nil {
		return cid.Undef, 0, err
	}
	tsize := uint64(len(buf))
	for i := range cs {
		tsize += cs[i].link.tsize
	}
	return blk.Cid(), tsize, nil
}

// encodeShard writes a shard of Fanout slots. cs is sorted by slot, one each.
// The bit field is big-endian without leading zero bytes, and left out when
// there is no child.
func encodeShard(cs []child) []byte {
	var field [Fanout / 8]byte
	size := 0
	for i := range cs {
		s := cs[i].slot
		field[len(field)-1-int(s)/8] |= 1 << (s % 8)
		size += linkLen(cs[i].link, 2+len(cs[i].link.name))
	}
	bitmap := field[:]
	for len(bitmap) > 0 && bitmap[0] == 0 {
		bitmap = bitmap[1:]
	}
	data := make([]byte, 0, 2+2+len(bitmap)+2+3)
	data = append(data, 0x08, typeHAMT)
	if len(bitmap) > 0 {
		data = append(data, 0x12, byte(len(bitmap)))
		data = append(data, bitmap...)
	}
	data = append(data, 0x28, murmur3x64, 0x30)
	data = binary.AppendUvarint(data, Fanout)

	buf := make([]byte, 0, size+2+len(data))
	for i := range cs {
		buf = appendLink(buf, hexSlot[cs[i].slot], cs[i].link)
	}
	return appendData(buf, data)
}

// decodeShard reads what encodeShard writes. The bit field and the names'
// prefixes must agree, slots strictly rising.
func decodeShard(n node, d fsData) ([]child, error) {
	if d.kind != typeHAMT || d.hash != murmur3x64 || d.fanout != Fanout {
		return nil, fmt.Errorf("%w: not a HAMT of fanout %d with murmur3", ErrMalformed, Fanout)
	}
	if len(d.data) > Fanout/8 {
		return nil, fmt.Errorf("%w: bit field of %d bytes", ErrMalformed, len(d.data))
	}
	set := 0
	for _, b := range d.data {
		set += bits.OnesCount8(b)
	}
	if set != len(n.links) {
		return nil, fmt.Errorf("%w: %d slots set, %d links", ErrMalformed, set, len(n.links))
	}
	cs := make([]child, len(n.links))
	at := -1
	for i, l := range n.links {
		for at++; d.data[len(d.data)-1-at/8]&(1<<(at%8)) == 0; at++ {
		}
		if len(l.name) < 2 || l.name[:2] != hexSlot[at] {
			return nil, fmt.Errorf("%w: link %q in slot %02X", ErrMalformed, l.name, at)
		}
		l.name = l.name[2:]
		if strings.Contains(l.name, "/") {
			return nil, fmt.Errorf("%w: link %q", ErrMalformed, l.name)
		}
		cs[i] = child{slot: byte(at), sub: l.name == "", link: l}
	}
	return cs, nil
}
