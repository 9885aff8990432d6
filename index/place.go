package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
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

// hashKey is what the keys of all rows with p's hash begin with: names of other
// directories too.
func (p place) hashKey() []byte {
	return binary.BigEndian.AppendUint64([]byte{rowPlace}, unixfs.Hash(p.name))
}

func (p place) key() []byte { return append(p.hashKey(), p.path()...) }

// enter writes the places of a name that was not listed.
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
	ps := places(name)
	if err := b.Delete(ps[0].key(), nil); err != nil || len(ps) == 1 {
		return err
	}
	prefix := entryKey(npm.Name(name.Scope() + "/"))
	it, err := b.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: upperBound(prefix)})
	if err != nil {
		return err
	}
	more := it.First()
	if err := it.Close(); err != nil || more {
		return located(err)
	}
	return b.Delete(ps[1].key(), nil)
}

// rivals yields who else has p's hash in p's directory, as the paths of places;
// in the root "_registry" too, which is no place. it is over the places.
func rivals(it *pebble.Iterator, p place) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if p.dir == "" && unixfs.Hash(p.name) == unixfs.Hash(registryName) && !yield(registryName, nil) {
			return
		}
		prefix := p.hashKey()
		for ok := it.SeekGE(prefix); ok && bytes.HasPrefix(it.Key(), prefix); ok = it.Next() {
			path := string(it.Key()[len(prefix):])
			dir, _, scoped := strings.Cut(path, "/")
			if !scoped {
				dir = ""
			}
			if dir == p.dir && path != p.path() && !yield(path, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield("", located(err))
		}
	}
}

// newPlaces is an iterator for rivals. It sees the places as they are now.
func newPlaces(r pebble.Reader) (*pebble.Iterator, error) {
	return r.NewIter(&pebble.IterOptions{LowerBound: []byte{rowPlace}, UpperBound: []byte{rowPlace + 1}})
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
	found, err := collisions(b, changes)
	if err != nil {
		return nil, fmt.Errorf("collisions of %d changes: %w", len(changes), err)
	}
	return found, nil
}

func collisions(b *pebble.Batch, changes []Change) ([]Collision, error) {
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
			if with, err = contender(b, c.Name); err == nil && with != "" {
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

// contender is the first rival for one of name's places, "" where all are free.
func contender(r pebble.Reader, name npm.Name) (string, error) {
	it, err := newPlaces(r)
	if err != nil {
		return "", err
	}
	defer it.Close()
	for _, p := range places(name) {
		for with, err := range rivals(it, p) {
			return with, err
		}
	}
	return "", nil
}

// checkPlaces holds the places to the entries.
func checkPlaces(ctx context.Context, r pebble.Reader) error {
	want, scope := 0, ""
	for e, err := range entries(ctx, r) {
		if err != nil {
			return err
		}
		for _, p := range places(e.Name) {
			row, err := get(r, p.key())
			if err != nil {
				return err
			}
			if row == nil {
				return fmt.Errorf("%s has no place", p.path())
			}
		}
		want++
		if s := e.Name.Scope(); s != scope {
			if scope = s; s != "" {
				want++ // the scope's own
			}
		}
	}
	for _, err := range scan(ctx, r, []byte{rowPlace}) {
		if err != nil {
			return err
		}
		want--
	}
	if want != 0 {
		return errors.New("there are places of what is not listed")
	}
	return nil
}
