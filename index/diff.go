package index

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Difference is one package that two lists have otherwise. Both entries have its
// name; the one without a CID is that of a list which does not have it.
type Difference struct{ Old, New Entry }

// Change leads from the old list to the new.
func (d Difference) Change() Change {
	return Change{Entry: d.New, Delete: !d.New.CID.Defined()}
}

// Diff yields the packages that are new, other or gone in the list new since the
// list old, each once and in no promised order; the zero List is empty. It reads
// the directories that differ and no others, many blocks at a time, and goes
// through both at once: what it keeps grows with their depth and their overflows.
// A package that went to the overflow, or came from it, with the directory that
// it had is no difference.
//
// It ends at the first error: ErrRelease for a name that is none of npm's and for
// an overflow beyond the format's bounds.
func Diff(ctx context.Context, g unixfs.Getter, old, new List) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		d := differ{ctx: ctx, g: g, yield: yield, over: map[string]unixfs.LinkChange{}}
		if err := d.lists(old, new); err != nil && !d.stopped {
			yield(Difference{}, fmt.Errorf("diff of lists %s and %s: %w", text(old.Root), text(new.Root), err))
		}
	}
}

type differ struct {
	ctx     context.Context
	g       unixfs.Getter
	yield   func(Difference, error) bool
	stopped bool // yield was false
	// over is what differs between the overflows, by the path of a place, and is
	// not yet put together with what differs between the directories.
	over map[string]unixfs.LinkChange
}

// maxOverflow bounds the links of two overflows: a link takes 45 bytes and more.
const maxOverflow = 2 * unixfs.ChunkSize / 45

func (d *differ) lists(old, new List) error {
	for c, err := range unixfs.Diff(d.ctx, d.g, old.Overflow, new.Overflow) {
		if err != nil {
			return fmt.Errorf("overflow: %w", err)
		}
		if len(d.over) == maxOverflow {
			return fmt.Errorf("%w: an overflow of more than %d bytes", ErrRelease, unixfs.ChunkSize)
		}
		d.over[strings.Replace(c.New.Name, "%2f", "/", 1)] = c
	}
	var scopes []unixfs.LinkChange
	for c, err := range unixfs.Diff(d.ctx, d.g, old.Root, new.Root) {
		if err != nil {
			return err
		}
		name := c.New.Name
		if !isScope(name) {
			if err := d.entry(name, c); err != nil || d.stopped {
				return err
			}
			continue
		}
		c = d.join(name, c)
		c.New.Name = name
		if scopes = append(scopes, c); len(scopes) == scopesAtOnce {
			if err := d.scopes(scopes); err != nil || d.stopped {
				return err
			}
			scopes = scopes[:0]
		}
	}
	// What the overflows alone say.
	for _, path := range slices.Sorted(maps.Keys(d.over)) {
		if isScope(path) {
			scopes = append(scopes, d.over[path])
			delete(d.over, path)
		}
	}
	for some := range slices.Chunk(scopes, scopesAtOnce) {
		if err := d.scopes(some); err != nil || d.stopped {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(d.over)) {
		if err := d.entry(path, unixfs.LinkChange{}); err != nil || d.stopped {
			return err
		}
	}
	return nil
}

// isScope tells a scope's directory from a package's, by the path of its place.
func isScope(path string) bool {
	return strings.HasPrefix(path, "@") && !strings.Contains(path, "/")
}

// join is c with what the overflows say of its place.
func (d *differ) join(path string, c unixfs.LinkChange) unixfs.LinkChange {
	if over, ok := d.over[path]; ok {
		delete(d.over, path)
		if !c.Old.CID.Defined() {
			c.Old = over.Old
		}
		if !c.New.CID.Defined() {
			c.New = over.New
		}
	}
	return c
}

// entry hands over a package, if it differs.
func (d *differ) entry(path string, c unixfs.LinkChange) error {
	c = d.join(path, c)
	name, err := npm.ParseName(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRelease, err)
	}
	diff := Difference{
		Old: Entry{Name: name, CID: c.Old.CID, Tsize: c.Old.Tsize},
		New: Entry{Name: name, CID: c.New.CID, Tsize: c.New.Tsize},
	}
	d.stopped = diff.Old != diff.New && !d.yield(diff, nil)
	return nil
}

// scopes hands over what differs within scopes, one scope after the other, while
// all of them are read, each some entries ahead.
func (d *differ) scopes(changed []unixfs.LinkChange) error {
	type found struct {
		unixfs.LinkChange
		err error
	}
	ctx, cancel := context.WithCancel(d.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ahead := make([]chan found, len(changed))
	for i, scope := range changed {
		ahead[i] = make(chan found, 64)
		wg.Go(func() {
			defer close(ahead[i])
			for c, err := range unixfs.Diff(ctx, d.g, scope.Old.CID, scope.New.CID) {
				select {
				case ahead[i] <- found{c, err}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for i, scope := range changed {
		for f := range ahead[i] {
			err := f.err
			if err == nil {
				err = d.entry(scope.New.Name+"/"+f.New.Name, f.LinkChange)
			}
			if err != nil {
				return fmt.Errorf("scope %s: %w", scope.New.Name, err)
			}
			if d.stopped {
				return nil
			}
		}
	}
	return d.ctx.Err()
}
