package index

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// edition makes the directories of one release out of those of the one before:
// what buildList would make of all entries, with work that grows with the change.
//
// Scopes are made by several goroutines, which share what is behind mu. A batch may
// be read by several while nobody writes to it.
type edition struct {
	r    pebble.Reader // entries as they are now
	g    unixfs.Getter // blocks of the list as it was
	mu   *sync.Mutex   // over sink, replaced and overflow
	sink unixfs.Sink
	// replaced is told what unixfs.Edit replaces.
	replaced func(cid.Cid)
	view     func(Entry) Entry
	root     cid.Cid // of the list as it was
	// overflow is as it was in the beginning, as it is now in the end. A link
	// without a CID is that of a scope or a package whose directory is not known.
	overflow map[string]unixfs.Link
}

// newEdition is of the list old, with its overflow.
func newEdition(ctx context.Context, d edition, old List) (*edition, error) {
	sink, replaced := d.sink, d.replaced
	d.mu = new(sync.Mutex)
	d.sink = func(b blocks.Block) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return sink(b)
	}
	d.replaced = func(c cid.Cid) {
		d.mu.Lock()
		defer d.mu.Unlock()
		replaced(c)
	}
	d.overflow = map[string]unixfs.Link{}
	for l, err := range unixfs.List(ctx, d.g, old.Overflow) {
		if err != nil {
			return nil, fmt.Errorf("read overflow: %w", err)
		}
		d.overflow[l.Name] = l
	}
	return &d, nil
}

// editList makes the list of entries of which those of names are new, other or
// gone since it was old, and no others. It counts none. replaced, where not nil, is
// told which blocks of old's directories the list may have no more: those that sink
// was not given again.
func editList(ctx context.Context, r pebble.Reader, g unixfs.Getter, old List, names []npm.Name, sink unixfs.Sink, replaced func(cid.Cid)) (list built, err error) {
	gone := map[cid.Cid]bool{old.Overflow: true}
	d, err := newEdition(ctx, edition{r: r, g: g, sink: sink, replaced: func(c cid.Cid) { gone[c] = true }, view: func(e Entry) Entry { return e }, root: old.Root}, old)
	if err != nil {
		return built{}, err
	}
	if list.root, err = d.edit(ctx, names); err != nil {
		return built{}, err
	}
	list.overflow, err = unixfs.BasicDir(slices.Collect(maps.Values(d.overflow)), sink)
	if err != nil {
		return built{}, fmt.Errorf("build overflow: %w", err)
	}
	if replaced == nil {
		return list, nil
	}
	for _, l := range d.overflow { // what lost its place lies there
		delete(gone, l.CID)
	}
	for c := range gone {
		replaced(c)
	}
	return list, nil
}

// editFront does the same for what a bare gateway shows, which was front beside
// the list old. The front has no overflow, so of what was in it only the names
// are known.
func editFront(ctx context.Context, r pebble.Reader, g unixfs.Getter, old List, front unixfs.Ref, names []npm.Name, sink unixfs.Sink) (unixfs.Ref, error) {
	d, err := newEdition(ctx, edition{r: r, g: g, sink: sink, replaced: func(cid.Cid) {}, view: Entry.shown, root: front.CID}, old)
	if err != nil {
		return unixfs.Ref{}, err
	}
	for name := range d.overflow {
		d.overflow[name] = unixfs.Link{Name: name}
	}
	return d.edit(ctx, names)
}

// over is a name's link in the overflow.
func (d *edition) over(name string) (l unixfs.Link, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok = d.overflow[name]
	return l, ok
}

func (d *edition) setOver(l unixfs.Link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.overflow[l.Name] = l
}

func (d *edition) deleteOver(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.overflow, name)
}

// edit makes the root. It brings the overflow up to date.
func (d *edition) edit(ctx context.Context, names []npm.Name) (unixfs.Ref, error) {
	var now []unixfs.Link
	scopes := map[string][]npm.Name{}
	for _, name := range names {
		if scope := name.Scope(); scope != "" {
			scopes[scope] = append(scopes[scope], name)
			continue
		}
		l, err := d.link(name)
		if err != nil {
			return unixfs.Ref{}, err
		}
		now = append(now, l)
	}
	// A scope's directory is edited when its place in the root comes up. One that
	// has no place there, or none now, is not to wait for that.
	var late []string
	for _, scope := range slices.Sorted(maps.Keys(scopes)) {
		was, lost := d.over(scope)
		if !lost && unixfs.Hash(scope) != unixfs.Hash(registryName) {
			late = append(late, scope)
			continue
		}
		l, err := d.scope(ctx, scope, scopes[scope], was)
		if err != nil {
			return unixfs.Ref{}, err
		}
		now = append(now, l)
	}
	edits, err := d.contend(ctx, "", now, late)
	if err != nil {
		return unixfs.Ref{}, err
	}
	root, err := unixfs.EditLate(ctx, d.g, d.root, edits, late, func(ctx context.Context, scope string, was unixfs.Link) (unixfs.Link, error) {
		return d.scope(ctx, scope, scopes[scope], was)
	}, d.sink, d.replaced)
	if err != nil {
		return unixfs.Ref{}, fmt.Errorf("edit root: %w", err)
	}
	d.lose("", root.Overflow)
	return root.Ref, nil
}

// link is a package's link in its directory, without a CID where it is not listed.
func (d *edition) link(name npm.Name) (unixfs.Link, error) {
	e, found, err := readEntry(d.r, name)
	if err != nil || !found {
		return unixfs.Link{Name: name.Base()}, err
	}
	e = d.view(e)
	return unixfs.Link{Name: name.Base(), CID: e.CID, Tsize: e.Tsize}, nil
}

// scope makes the directory of a scope in which names changed since it was was, and
// returns its link, without a CID where none of it is listed any more.
func (d *edition) scope(ctx context.Context, scope string, names []npm.Name, was unixfs.Link) (l unixfs.Link, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("edit scope %s: %w", scope, err)
		}
	}()
	if !was.CID.Defined() { // it is new
		return d.wholeScope(ctx, scope)
	}
	changed := make([]unixfs.Link, len(names))
	for i, name := range names {
		if changed[i], err = d.link(name); err != nil {
			return unixfs.Link{}, err
		}
	}
	links, basic, err := unixfs.Basic(ctx, d.g, was.CID)
	if err != nil {
		return unixfs.Link{}, err
	}
	if !basic {
		return d.hamtScope(ctx, scope, was.CID, changed)
	}
	lost, err := d.losers(ctx, scope, func(string) bool { return true })
	if err != nil {
		return unixfs.Link{}, err
	}
	is := make(map[string]unixfs.Link, len(links)+len(lost)+len(changed))
	for _, some := range [][]unixfs.Link{links, lost, changed} {
		for _, l := range some {
			is[l.Name] = l
		}
	}
	maps.DeleteFunc(is, func(_ string, l unixfs.Link) bool { return !l.CID.Defined() })
	return d.buildScope(scope, slices.Collect(maps.Values(is)))
}

// hamtScope edits a scope's directory that was too large for a basic one.
func (d *edition) hamtScope(ctx context.Context, scope string, was cid.Cid, changed []unixfs.Link) (unixfs.Link, error) {
	edits, err := d.contend(ctx, scope, changed, nil)
	if err != nil {
		return unixfs.Link{}, err
	}
	var blks []blocks.Block
	var gone []cid.Cid
	dir, err := unixfs.Edit(ctx, d.g, was, edits, func(b blocks.Block) error { blks = append(blks, b); return nil }, func(c cid.Cid) { gone = append(gone, c) })
	if err != nil {
		return unixfs.Link{}, err
	}
	d.lose(scope, dir.Overflow)
	for _, c := range gone {
		d.replaced(c)
	}
	if dir.Growth < 0 {
		if basic, err := d.fits(ctx, scope); err != nil {
			return unixfs.Link{}, err
		} else if basic {
			return d.wholeScope(ctx, scope)
		}
	}
	for _, b := range blks {
		if err := d.sink(b); err != nil {
			return unixfs.Link{}, err
		}
	}
	return unixfs.Link{Name: scope, CID: dir.CID, Tsize: dir.Tsize}, nil
}

// fits tells whether a basic directory can hold all of a scope that have a place.
func (d *edition) fits(ctx context.Context, scope string) (bool, error) {
	// Links that have no place do not count for a directory's size.
	links, whole, err := d.links(ctx, scope, maxBasicLinks+len(d.lost(scope)))
	if err != nil || !whole {
		return false, err
	}
	return unixfs.IsBasic(links, unixfs.DirLimit)
}

// maxBasicLinks is the greatest number of links that a basic directory of
// unixfs.DirLimit bytes can have: one takes 45 bytes and more.
const maxBasicLinks = unixfs.DirLimit / 45

// links are a scope's packages, in the order of their names; with a limit above
// 0 no more than that and one, and whole says whether those are all.
func (d *edition) links(ctx context.Context, scope string, limit int) (all []unixfs.Link, whole bool, err error) {
	prefix := entryKey(npm.Name(scope + "/"))
	for row, err := range scan(ctx, d.r, prefix) {
		if err != nil {
			return nil, false, err
		}
		e, err := decodeEntry(string(row.key[1:]), row.value)
		if err != nil {
			return nil, false, err
		}
		e = d.view(e)
		if all = append(all, unixfs.Link{Name: e.Name.Base(), CID: e.CID, Tsize: e.Tsize}); limit > 0 && len(all) > limit {
			return all, false, nil
		}
	}
	return all, true, nil
}

// wholeScope makes a scope's directory of its entries.
func (d *edition) wholeScope(ctx context.Context, scope string) (unixfs.Link, error) {
	links, _, err := d.links(ctx, scope, 0)
	if err != nil {
		return unixfs.Link{}, err
	}
	return d.buildScope(scope, links)
}

// buildScope makes a scope's directory of all its links.
func (d *edition) buildScope(scope string, links []unixfs.Link) (unixfs.Link, error) {
	for _, name := range d.lost(scope) {
		d.deleteOver(name)
	}
	if len(links) == 0 {
		return unixfs.Link{Name: scope}, nil
	}
	ref, lost, err := unixfs.BuildDir(links, unixfs.DirLimit, d.sink)
	d.lose(scope, lost)
	return unixfs.Link{Name: scope, CID: ref.CID, Tsize: ref.Tsize}, err
}

// lost are the names in the overflow of what has no place in a directory.
func (d *edition) lost(dir string) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.overflow {
		if overflowPlace(name).dir == dir {
			names = append(names, name)
		}
	}
	return names
}

// contend says what to edit in a directory so that changed, its links that are
// new, other or gone (without a CID), have the places that BuildDir gives them
// among all links there, and those of late too. Of all of them, what Edit finds no
// place for is to be lost.
func (d *edition) contend(ctx context.Context, dir string, changed []unixfs.Link, late []string) (edits []unixfs.Link, err error) {
	names, hashes := make(map[string]bool, len(changed)), make(map[uint64]bool, len(changed))
	for _, l := range changed {
		hash, over := unixfs.Hash(l.Name), place{dir, l.Name}.overflow()
		_, lost := d.over(over)
		if lost {
			d.deleteOver(over)
		}
		switch {
		case dir == "" && hash == unixfs.Hash(registryName): // that place is taken
			d.lose(dir, only(l))
		case l.CID.Defined() || !lost:
			edits = append(edits, l)
			names[l.Name], hashes[hash] = true, true
		}
	}
	for _, name := range late {
		names[name], hashes[unixfs.Hash(name)] = true, true
	}
	// Who lost a place before may have it now.
	again, err := d.losers(ctx, dir, func(name string) bool { return hashes[unixfs.Hash(name)] && !names[name] })
	for _, l := range again {
		d.deleteOver(place{dir, l.Name}.overflow())
	}
	return append(edits, again...), err
}

// only is l alone, nothing where it is gone.
func only(l unixfs.Link) []unixfs.Link {
	if !l.CID.Defined() {
		return nil
	}
	return []unixfs.Link{l}
}

// lose puts what has no place in a directory into the overflow.
func (d *edition) lose(dir string, links []unixfs.Link) {
	for _, l := range links {
		l.Name = place{dir, l.Name}.overflow()
		d.setOver(l)
	}
}

// losers are the links that have no place in a directory, of those names that are
// wanted.
func (d *edition) losers(ctx context.Context, dir string, wanted func(name string) bool) (links []unixfs.Link, err error) {
	for _, over := range d.lost(dir) {
		p := overflowPlace(over)
		if !wanted(p.name) {
			continue
		}
		l, _ := d.over(over)
		if l.Name = p.name; !l.CID.Defined() {
			if dir == "" && strings.HasPrefix(p.name, "@") {
				l, err = d.wholeScope(ctx, p.name)
			} else {
				l, err = d.link(npm.Name(p.path()))
			}
		}
		if err != nil {
			return nil, err
		}
		if l.CID.Defined() {
			links = append(links, l)
		}
	}
	return links, nil
}
