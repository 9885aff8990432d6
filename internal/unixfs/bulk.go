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
	slots [Fanout][]byte // links: name, CID (with lengths before them) and Tsize, one after the other
	count [Fanout]int
}

// Add adds a link, which Bulk does not keep. Errors are BuildDir's.
func (b *Bulk) Add(l Link) error {
	if err := checkLink(&l, false); err != nil {
		return err
	}
	slot := slotAt(Hash(l.Name), 0)
	buf := b.slots[slot]
	buf = binary.AppendUvarint(buf, uint64(len(l.Name)))
	buf = append(buf, l.Name...)
	buf = binary.AppendUvarint(buf, uint64(l.CID.ByteLen()))
	buf = append(buf, l.CID.KeyString()...)
	b.slots[slot] = binary.AppendUvarint(buf, l.Tsize)
	b.count[slot]++
	return nil
}

// Build makes the HAMT, and gives back the links that have no place in it, as
// BuildDir with limit 0 does. It leaves b empty.
func (b *Bulk) Build(sink Sink) (ref Ref, overflow []Link, err error) {
	build := builder{sink: sink}
	var root []child
	for slot := range b.slots {
		links, err := decodeLinks(b.slots[slot], b.count[slot])
		if err != nil {
			return Ref{}, nil, err
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

// decodeLinks takes apart what Add wrote.
func decodeLinks(buf []byte, n int) ([]Link, error) {
	links := make([]Link, n)
	text, at := string(buf), 0 // whose parts the names are
	number := func() uint64 {
		v, k := binary.Uvarint(buf[at:])
		at += k
		return v
	}
	for i := range links {
		l := &links[i]
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
	}
	return links, nil
}
