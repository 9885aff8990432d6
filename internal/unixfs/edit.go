package unixfs

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
)

// Edited is what Edit made.
type Edited struct {
	Ref
	// Overflow are the links that have no place, as BuildDir's are.
	Overflow []Link
	// Growth is by how many bytes a basic directory of the entries would be longer
	// than one of those before.
	Growth int
}

// Edit makes the HAMT dir with edits made, which may come in any order and are
// left as they are: a link with a CID takes its place, one without takes the entry
// of its name out. The result is what BuildDir with limit 0 makes of the entries
// that were there and of the edits: of names with one hash one is kept, and of
// those that lose, of the edits or of the entries, are told. It reads and writes
// each shard on the way to a change once.
//
// Errors: ErrNotFound where what is to be taken out is not there, ErrName for
// two edits of one name and for a name that no directory can hold, ErrMalformed
// where dir is no HAMT of this format, and g's and sink's own.
//
// replaced, where not nil, is told of every shard, by its CID, and of every link
// that was in dir and that the result has no more; where a shard is built again
// just as it was, of that too.
//
// Many edits are made by several goroutines: g must allow that. sink and replaced
// are called by one at a time, and no more once Edit has returned.
func Edit(ctx context.Context, g Getter, dir cid.Cid, edits []Link, sink Sink, replaced func(cid.Cid)) (Edited, error) {
	return EditLate(ctx, g, dir, edits, nil, nil, sink, replaced)
}

// EditLate is Edit, with more edits, of the names in late, of which link says what
// they are when their turn comes: it is given the entry that the name had, or a zero
// one, and gives the new one, or one without a CID. It may be called by several
// goroutines.
func EditLate(ctx context.Context, g Getter, dir cid.Cid, edits []Link, late []string, link func(ctx context.Context, name string, was Link) (Link, error), sink Sink, replaced func(cid.Cid)) (Edited, error) {
	es := make([]entry, 0, len(edits)+len(late))
	for i := range edits {
		es = append(es, entry{hash: Hash(edits[i].Name), link: &edits[i]})
	}
	for _, name := range late {
		es = append(es, entry{hash: Hash(name), link: &Link{Name: name}, late: true})
	}
	for _, e := range es {
		if err := checkLink(e.link, true); err != nil {
			return Edited{}, fmt.Errorf("edit %s: %w", dir, err)
		}
	}
	slices.SortFunc(es, entry.compare)
	for i := 1; i < len(es); i++ {
		if es[i].hash == es[i-1].hash && es[i].link.Name == es[i-1].link.Name {
			return Edited{}, fmt.Errorf("edit %s: %q twice: %w", dir, es[i].link.Name, ErrName)
		}
	}
	e := editor{g: g, builder: builder{sink: sink}, replaced: replaced, late: link}
	if replaced == nil {
		e.replaced = func(cid.Cid) {}
	}
	if len(es) >= manyEdits && runtime.GOMAXPROCS(0) > 1 {
		e = e.serial()
		e.several = true
	}
	c, err := e.shard(ctx, dir, es, 0)
	if err != nil {
		return Edited{}, fmt.Errorf("edit %s: %w", dir, err)
	}
	root, err := c.link.link()
	if err != nil {
		return Edited{}, fmt.Errorf("edit %s: %w", dir, err)
	}
	slices.SortFunc(e.overflow, compareNames)
	return Edited{Ref{CID: root.CID, Tsize: root.Tsize}, e.overflow, e.growth}, nil
}

// manyEdits is from how many edits on several goroutines are worth their while.
const manyEdits = 64

// editor edits a HAMT by edits in the order of their hashes.
type editor struct {
	g Getter
	builder
	replaced func(cid.Cid)
	late     func(ctx context.Context, name string, was Link) (Link, error)
	several  bool // goroutines, for the slots of the root
	overflow []Link
	growth   int
}

// serial gives an editor whose sink and replaced are called by one goroutine at a
// time, whatever copies of it do.
func (e editor) serial() editor {
	var mu sync.Mutex
	sink, replaced := e.sink, e.replaced
	e.sink = func(b blocks.Block) error {
		mu.Lock()
		defer mu.Unlock()
		return sink(b)
	}
	e.replaced = func(c cid.Cid) {
		mu.Lock()
		defer mu.Unlock()
		replaced(c)
	}
	return e
}

// shard returns what stands for the shard c in its parent once es are made:
// nothing (without a CID), an entry alone, or the shard anew. The root is always
// a shard.
func (e *editor) shard(ctx context.Context, c cid.Cid, es []entry, depth int) (child, error) {
	if depth == hashLen {
		return child{}, fmt.Errorf("%w: more than %d levels", ErrMalformed, hashLen)
	}
	old, err := loadShard(ctx, e.g, c)
	if err != nil {
		return child{}, err
	}
	if depth > 0 && (len(old) == 0 || len(old) == 1 && !old[0].sub) {
		return child{}, fmt.Errorf("%w: %s should not be a shard of its own", ErrMalformed, c)
	}
	e.replaced(c)
	var edits []slotEdit
	for len(es) > 0 {
		slot, n := slotAt(es[0].hash, depth), 1
		for n < len(es) && slotAt(es[n].hash, depth) == slot {
			n++
		}
		edits = append(edits, slotEdit{slot: slot, es: es[:n]})
		if i, found := findSlot(old, slot); found {
			edits[len(edits)-1].at = old[i]
		}
		es = es[n:]
	}
	if err := e.slots(ctx, edits, depth); err != nil {
		return child{}, err
	}
	cs := make([]child, 0, len(old)+len(edits))
	for _, ed := range edits {
		i, found := findSlot(old, ed.slot)
		cs = append(cs, old[:i]...)
		if old = old[i:]; found {
			old = old[1:]
		}
		if !ed.at.empty() {
			ed.at.slot = ed.slot
			cs = append(cs, ed.at)
		}
	}
	cs = append(cs, old...)
	if depth > 0 && len(cs) == 0 {
		return child{}, nil
	}
	if depth > 0 && len(cs) == 1 && !cs[0].sub {
		return child{link: cs[0].link}, nil
	}
	id, tsize, err := writeShard(cs, e.sink)
	return child{sub: true, link: pbLink{cid: id.KeyString(), tsize: tsize}}, err
}

// slotEdit is what to do in one slot of a shard: at is what was, then what is.
type slotEdit struct {
	slot byte
	at   child
	es   []entry
}

// slots makes the edits of a shard's slots.
func (e *editor) slots(ctx context.Context, edits []slotEdit, depth int) error {
	if !e.several || depth > 0 {
		for i := range edits {
			var err error
			if edits[i].at, err = e.slot(ctx, edits[i].at, edits[i].es, depth); err != nil {
				return err
			}
		}
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	owns := make([]editor, runtime.GOMAXPROCS(0))
	for k := range owns {
		// Neither scratch nor what is told may be shared.
		own := &owns[k]
		*own = editor{g: e.g, builder: builder{sink: e.sink}, replaced: e.replaced, late: e.late}
		group.Go(func() error {
			for i := next.Add(1) - 1; int(i) < len(edits); i = next.Add(1) - 1 {
				var err error
				if edits[i].at, err = own.slot(ctx, edits[i].at, edits[i].es, depth); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	for _, own := range owns {
		e.overflow = append(e.overflow, own.overflow...)
		e.growth += own.growth
	}
	return err
}

// slot returns what is in a slot once es are made there; at is what was.
func (e *editor) slot(ctx context.Context, at child, es []entry, depth int) (child, error) {
	var was Link
	if !at.empty() {
		var err error
		if was, err = at.link.link(); err != nil {
			return child{}, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	if at.sub {
		return e.shard(ctx, was.CID, es, depth+1)
	}
	left := make([]entry, 0, len(es)+1)
	if !at.empty() {
		held := entry{hash: Hash(was.Name), link: &was}
		if held.hash>>(56-8*depth) != es[0].hash>>(56-8*depth) {
			return child{}, fmt.Errorf("%w: %q does not belong there", ErrMalformed, was.Name)
		}
		left = append(left, held)
		e.growth -= linkLen(at.link, len(at.link.name))
	}
	for _, ed := range es {
		held := len(left) > 0 && left[0].link == &was && was.Name == ed.link.Name
		if held {
			left = left[1:]
		}
		if ed.late {
			var before Link
			if held {
				before = was
			}
			made, err := e.late(ctx, ed.link.Name, before)
			if err != nil {
				return child{}, err
			}
			made.Name = ed.link.Name
			if err := checkLink(&made, true); err != nil {
				return child{}, err
			}
			ed.link = &made
		} else if !held && !ed.link.CID.Defined() {
			return child{}, fmt.Errorf("%q: %w", ed.link.Name, ErrNotFound)
		}
		if ed.link.CID.Defined() {
			left = append(left, entry{hash: ed.hash, link: ed.link})
		}
	}
	slices.SortFunc(left, entry.compare)
	left, lost, err := settle(left)
	if err != nil {
		return child{}, err
	}
	e.overflow = append(e.overflow, lost...)
	e.growth += basicLen(left) - basicLen(nil)
	if !at.empty() && !slices.ContainsFunc(left, func(l entry) bool { return l.link.CID == was.CID }) {
		e.replaced(was.CID)
	}
	switch len(left) {
	case 0:
		return child{}, nil
	case 1:
		return child{link: left[0].link.pb()}, nil
	}
	id, tsize, err := e.builder.shard(left, depth+1)
	return child{sub: true, link: pbLink{cid: id.KeyString(), tsize: tsize}}, err
}
