package unixfs

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
)

// Bulk builds a HAMT of millions of links in little more memory than their
// bytes: it keeps them encoded, by the root's slots, and takes one slot's apart
// at a time. The zero value is ready.
type Bulk struct {
	slots [Fanout][][]byte // chunks of links: name, CID (with lengths before them) and Tsize, one after the other
	count [Fanout]int
}

// A slot's chunks double in size up to bulkChunk. None is ever moved, as a slice that
// grows would be, which leaves its old bytes behind.
const bulkChunk = 64 << 10

// Add adds a link, which Bulk does not keep. Errors are BuildDir's.
func (b *Bulk) Add(l Link) error {
	if err := checkLink(&l, false); err != nil {
		return err
	}
	slot := slotAt(Hash(l.Name), 0)
	chunks := b.slots[slot]
	need := 3*binary.MaxVarintLen64 + len(l.Name) + l.CID.ByteLen()
	if last := len(chunks) - 1; last < 0 || cap(chunks[last])-len(chunks[last]) < need {
		size := 256
		if last >= 0 {
			size = min(2*cap(chunks[last]), bulkChunk)
		}
		chunks = append(chunks, make([]byte, 0, max(size, need)))
		b.slots[slot] = chunks
	}
	buf := chunks[len(chunks)-1]
	buf = binary.AppendUvarint(buf, uint64(len(l.Name)))
	buf = append(buf, l.Name...)
	buf = binary.AppendUvarint(buf, uint64(l.CID.ByteLen()))
	buf = append(buf, l.CID.KeyString()...)
	chunks[len(chunks)-1] = binary.AppendUvarint(buf, l.Tsize)
	b.count[slot]++
	return nil
}

// Build makes the HAMT, and gives back the links that have no place in it, as
// BuildDir with limit 0 does. It leaves b empty.
func (b *Bulk) Build(sink Sink) (ref Ref, overflow []Link, err error) {
	build := builder{sink: sink}
	var root []child
	for slot := range b.slots {
		links := make([]Link, 0, b.count[slot])
		for _, chunk := range b.slots[slot] {
			var err error
			if links, err = decodeLinks(links, chunk); err != nil {
				return Ref{}, nil, err
			}
		}
		b.slots[slot], b.count[slot] = nil, 0
		if len(links) == 0 {
			continue
		}
		es := make([]entry, len(links))
		for i := range links {
			es[i] = entry{hash: Hash(links[i].Name), link: &links[i]}
		}
		slices.SortFunc(es, entry.compare)
		es, over, err := settle(es)
		if err != nil {
			return Ref{}, nil, err
		}
		overflow = append(overflow, over...)
		c := child{slot: byte(slot), link: es[0].link.pb()}
		if len(es) > 1 {
			id, tsize, err := build.shard(es, 1)
			if err != nil {
				return Ref{}, nil, err
			}
			c = child{slot: byte(slot), sub: true, link: pbLink{cid: id.KeyString(), tsize: tsize}}
		}
		root = append(root, c)
	}
	slices.SortFunc(overflow, compareNames)
	c, tsize, err := writeShard(root, sink)
	return Ref{CID: c, Tsize: tsize}, overflow, err
}

// decodeLinks takes apart what Add wrote, and appends it to links.
func decodeLinks(links []Link, buf []byte) ([]Link, error) {
	text, at := string(buf), 0 // whose parts the names are
	number := func() uint64 {
		v, k := binary.Uvarint(buf[at:])
		at += k
		return v
	}
	for at < len(buf) {
		var l Link
		size := int(number())
		l.Name = text[at : at+size]
		at += size
		size = int(number())
		var err error
		if l.CID, err = cid.Cast(buf[at : at+size]); err != nil {
			return nil, fmt.Errorf("link %q: %w", l.Name, err)
		}
		at += size
		l.Tsize = number()
		links = append(links, l)
	}
	return links, nil
}
