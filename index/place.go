package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// place is where a name or a scope stands in the list. Two names in one
// directory with one hash contend for a place; the loser goes to the overflow,
// which tools other than ours do not read.
type place struct {
	dir  string // "" for the root, else a scope
	name string
}

// places are the places that a package needs: its own and its scope's.
func places(name npm.Name) []place {
	if scope := name.Scope(); scope != "" {
		return []place{{scope, name.Base()}, {"", scope}}
	}
	return []place{{"", string(name)}}
}

// path is p as a reader of the list writes it.
func (p place) path() string {
	if p.dir == "" {
		return p.name
	}
	return p.dir + "/" + p.name
}

// overflow is p's name in the overflow.
func (p place) overflow() string { return npm.Name(p.path()).Escape() }

// overflowPlace is the place of a name in the overflow.
func overflowPlace(name string) place { return pathPlace(strings.Replace(name, "%2f", "/", 1)) }

// pathPlace is the place of that path.
func pathPlace(path string) place {
	if scope, base, ok := strings.Cut(path, "/"); ok {
		return place{scope, base}
	}
	return place{"", path}
}

// hashKey is what the keys of all rows with p's hash begin with: names of other
// directories too.
func (p place) hashKey() []byte {
	return binary.BigEndian.AppendUint64([]byte{rowPlace}, unixfs.Hash(p.name))
}

func (p place) key() []byte { return append(p.hashKey(), p.path()...) }

// enter writes the places of a name that was not listed in the newest release.
func enter(b *pebble.Batch, name npm.Name) error {
	for _, p := range places(name) {
		if err := b.Set(p.key(), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// leave gives up the places of a name whose entry is gone already: its scope's
// with the last of the scope.
func leave(b *pebble.Batch, name npm.Name) error {
	for _, p := range places(name) {
		if stands, err := listed(b, p); err != nil || stands {
			return err
		}
		if err := b.Delete(p.key(), nil); err != nil {
			return err
		}
	}
	return nil
}

// listed tells whether there is an entry of p, or in the scope p.
func listed(r pebble.Reader, p place) (bool, error) {
	if p.dir != "" || !strings.HasPrefix(p.name, "@") {
		row, err := get(r, entryKey(npm.Name(p.path())))
		return row != nil, err
	}
	prefix := entryKey(npm.Name(p.name + "/"))
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: upperBound(prefix)})
	if err != nil {
		return false, err
	}
	found := it.First()
	return found, located(it.Close())
}

// Collision is a change that would not get the place of its name.
type Collision struct {
	At   int    // of the change among those asked about
	With string // the listed package or scope of that hash, or "_registry"
}

// Collisions says which of the changes, were they made in their order, would
// list a newcomer whose hash, or whose scope's, equals that of what is listed
// then; each is judged as if those said before it were left out. Of a change
// only Name and Delete count. The index stays as it is.
//
// Apply lists such a newcomer all the same, as BuildDir decides: who makes the
// list out of what strangers may name is to leave it out.
func (ix *Index) Collisions(ctx context.Context, changes []Change) ([]Collision, error) {
	if err := ix.begin(); err != nil {
		return nil, err
	}
	defer ix.end()
	b := ix.db.NewIndexedBatch()
	defer b.Close()
	found, err := collisions(ctx, b, changes)
	if err != nil {
		return nil, fmt.Errorf("collisions of %d changes: %w", len(changes), err)
	}
	return found, nil
}

func collisions(ctx context.Context, b *pebble.Batch, changes []Change) ([]Collision, error) {
	held, err := newHolders(ctx, b)
	if err != nil {
		return nil, err
	}
	var found []Collision
	for i, c := range changes {
		if _, err := npm.ParseName(string(c.Name)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrEntry, err)
		}
		row, err := get(b, entryKey(c.Name))
		if err != nil {
			return nil, err
		}
		switch listed := row != nil; {
		case c.Delete && listed:
			if err = b.Delete(entryKey(c.Name), nil); err == nil {
				err = leave(b, c.Name)
			}
		case !c.Delete && !listed:
			var with string
			if with, err = held.contender(ctx, c.Name); err == nil && with != "" {
				found = append(found, Collision{i, with})
				continue
			}
			if err == nil {
				err = b.Set(entryKey(c.Name), nil, nil) // for its key alone
			}
			if err == nil {
				err = enter(b, c.Name)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// holders knows who has which place: by the newest release's list, and by the rows
// of what came since.
type holders struct {
	r        pebble.Reader
	list     List                   // without CIDs where there is no release
	overflow map[uint64][]place     // by their hash
	links    map[string]unixfs.Link // of scopes in the overflow
}

func newHolders(ctx context.Context, r pebble.Reader) (*holders, error) {
	h := &holders{r: r, overflow: map[uint64][]place{}, links: map[string]unixfs.Link{}}
	release, err := head(r)
	if errors.Is(err, ErrNoRelease) {
		return h, nil
	}
	if err != nil {
		return nil, err
	}
	h.list = release.List
	for l, err := range unixfs.List(ctx, getter{r}, h.list.Overflow) {
		if err != nil {
			return nil, fmt.Errorf("read overflow: %w", err)
		}
		p := overflowPlace(l.Name)
		hash := unixfs.Hash(p.name)
		h.overflow[hash] = append(h.overflow[hash], p)
		h.links[p.path()] = l
	}
	return h, nil
}

// contender is the first rival for one of name's places, "" where all are free.
func (h *holders) contender(ctx context.Context, name npm.Name) (string, error) {
	for _, p := range places(name) {
		rivals, err := h.rivals(ctx, p)
		if err != nil {
			return "", err
		}
		for _, rival := range rivals {
			if rival == (place{"", registryName}) {
				return registryName, nil
			}
			if stands, err := listed(h.r, rival); err != nil || stands {
				return rival.path(), err
			}
		}
	}
	return "", nil
}

// rivals are who else has, or had, p's hash in p's directory; in the root
// "_registry" too, which is no place.
func (h *holders) rivals(ctx context.Context, p place) (all []place, err error) {
	hash := unixfs.Hash(p.name)
	add := func(o place) {
		if o.dir == p.dir && o != p {
			all = append(all, o)
		}
	}
	if hash == unixfs.Hash(registryName) {
		add(place{"", registryName})
	}
	prefix := p.hashKey()
	for row, err := range scan(ctx, h.r, prefix) {
		if err != nil {
			return nil, err
		}
		add(pathPlace(string(row.key[len(prefix):])))
	}
	for _, o := range h.overflow[hash] {
		add(o)
	}
	dir := h.list.Root
	if p.dir != "" && dir.Defined() {
		l, err := unixfs.Lookup(ctx, getter{h.r}, dir, p.dir)
		if errors.Is(err, unixfs.ErrNotFound) {
			l, err = h.links[p.dir], nil
		}
		if err != nil {
			return nil, err
		}
		dir = l.CID
	}
	if !dir.Defined() {
		return all, nil
	}
	l, err := unixfs.Holder(ctx, getter{h.r}, dir, hash)
	if errors.Is(err, unixfs.ErrNotFound) {
		return all, nil
	}
	add(place{p.dir, l.Name})
	return all, err
}

// checkPlaces holds the places to the entries that are new since the newest
// release.
func checkPlaces(ctx context.Context, r pebble.Reader) error {
	for row, err := range scan(ctx, r, []byte{rowPending}) {
		if err != nil {
			return err
		}
		name := npm.Name(row.key[1:])
		if stands, err := listed(r, places(name)[0]); err != nil {
			return err
		} else if !stands || wasListed(row.value) {
			continue
		}
		for _, p := range places(name) {
			row, err := get(r, p.key())
			if err != nil {
				return err
			}
			if row == nil {
				return fmt.Errorf("%s has no place", p.path())
			}
		}
	}
	for row, err := range scan(ctx, r, []byte{rowPlace}) {
		if err != nil {
			return err
		}
		path := string(row.key[min(len(row.key), 1+8):])
		if stands, err := listed(r, pathPlace(path)); err != nil {
			return err
		} else if !stands || string(row.key) != string(pathPlace(path).key()) {
			return fmt.Errorf("there is a place of %q, which is not listed", path)
		}
	}
	return nil
}
