package follow

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// latest is the tag whose version is selected beside what was asked for.
const latest = "latest"

// wanted is the ledger's selection, ready to be asked about names. It is not
// changed once it is made.
type wanted struct {
	wants  []ledger.Want
	all    []ledger.Want // those of every package
	scopes map[string][]ledger.Want
	names  map[npm.Name][]ledger.Want
}

// selection is what is known of the ledger's selection. mu guards all of it.
type selection struct {
	mu      sync.Mutex
	wanted  *wanted
	changed <-chan struct{} // closed once wanted is no longer the ledger's
	groups  []*group        // of wanted
	dirty   map[npm.Name]bool
}

// group is some wants by name that are resolved together. names are all the
// packages whose documents that looked at: a change of any of them may change
// what the group selects. It is nil until the group was resolved.
type group struct {
	wants []ledger.Want
	names map[npm.Name]bool
}

// groupWants bounds the wants of a group: many share the work of resolving
// them, few are resolved again when a document changes.
const groupWants = 256

// wanted returns the selection as it is now.
func (f *Follower) wanted(ctx context.Context) (*wanted, error) {
	s := &f.selection
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted != nil {
		select {
		case <-s.changed:
		default:
			return s.wanted, nil
		}
	}
	changed := f.ledger.WantsChanged() // before they are read
	wants, err := f.ledger.Wants(ctx)
	if err != nil {
		return nil, own(err)
	}
	w := &wanted{wants: wants, scopes: make(map[string][]ledger.Want), names: make(map[npm.Name][]ledger.Want)}
	s.groups = nil
	var g *group
	for _, want := range wants {
		switch {
		case want.All():
			w.all = append(w.all, want)
		case want.Scope != "":
			w.scopes[want.Scope] = append(w.scopes[want.Scope], want)
		default:
			w.names[want.Spec.Name] = append(w.names[want.Spec.Name], want)
			if g == nil || len(g.wants) == groupWants {
				g = &group{}
				s.groups = append(s.groups, g)
			}
			g.wants = append(g.wants, want)
		}
	}
	s.wanted, s.changed = w, changed
	return w, nil
}

// whole are the wants that select a package for itself, whatever depends on it:
// those of every package and of its scope.
func (w *wanted) whole(name npm.Name) []ledger.Want {
	if scope := name.Scope(); scope != "" && len(w.scopes[scope]) > 0 {
		return append(slices.Clone(w.all), w.scopes[scope]...)
	}
	return w.all
}

// concerns reports whether a change of a package is ours to follow: it is
// wanted, or the ledger holds a document of it, which the feed keeps current,
// or it waits for one.
func (w *wanted) concerns(name npm.Name, head ledger.Head) bool {
	return head.Known || head.Waiting || len(w.names[name]) > 0 || len(w.whole(name)) > 0
}

// picks lists the versions of a document that a package's own change brings:
// those that wants of every package or of its scope select, and of wants by its
// name those that need no resolving. Unusable ones are among them where all are
// wanted: each ends stored or refused.
func (w *wanted) picks(doc *npm.Packument, now time.Time) []string {
	whole := w.whole(doc.Name)
	if len(whole) == 0 {
		return nil // what resolving brings
	}
	picked := make(map[string]bool)
	for _, want := range whole {
		want.Every = true
		if !want.Known && want.Spec.Range == "" && want.Newest == 0 && want.Days == 0 {
			for v := range doc.Bad {
				picked[v] = true
			}
		}
		maps.Copy(picked, direct(doc, want, now))
	}
	for _, want := range w.names[doc.Name] {
		maps.Copy(picked, direct(doc, want, now))
	}
	return slices.Sorted(maps.Keys(picked))
}

// inRange are the versions within rng: all where it is empty, the one that it
// names where it is a tag.
func inRange(doc *npm.Packument, rng string) map[string]bool {
	picked := make(map[string]bool)
	if rng != "" && !npm.IsRange(rng) {
		if v, ok := npm.Pick(doc, rng); ok {
			picked[v] = true
		}
		return picked
	}
	for v := range doc.Versions {
		if rng == "" || npm.Satisfies(v, rng) {
			picked[v] = true
		}
	}
	return picked
}

// direct are the versions that a want selects of a package itself: what it asks
// for and, unless that is exact, what the tag latest names; where it asks for
// every version within bounds, what any tag names.
func direct(doc *npm.Packument, want ledger.Want, now time.Time) map[string]bool {
	picked := make(map[string]bool)
	if want.Known {
		return picked
	}
	if want.Every {
		picked = inRange(doc, want.Spec.Range)
	}
	if want.Days > 0 {
		oldest := now.AddDate(0, 0, -want.Days)
		maps.DeleteFunc(picked, func(v string, _ bool) bool {
			published, err := time.Parse(time.RFC3339, doc.Time[v])
			return err == nil && published.Before(oldest) // undated: nobody can say that it is old
		})
	}
	if want.Newest > 0 && len(picked) > want.Newest {
		order := slices.SortedFunc(maps.Keys(picked), npm.CompareVersions)
		for _, v := range order[:len(order)-want.Newest] {
			delete(picked, v)
		}
	}
	if want.Every {
		for _, v := range doc.DistTags {
			if doc.Versions[v] != nil {
				picked[v] = true
			}
		}
	}
	ranges := []string{want.Spec.Range, latest}
	if want.Exact {
		ranges = ranges[:1]
	}
	for _, rng := range ranges {
		if v, ok := npm.Pick(doc, rng); ok {
			picked[v] = true
		}
	}
	return picked
}

// touch notes that a package's document changed, or that there is none, for the
// wants that may select other versions now.
func (f *Follower) touch(name npm.Name) {
	f.selection.mu.Lock()
	defer f.selection.mu.Unlock()
	if len(f.selection.groups) == 0 {
		return
	}
	f.selection.dirty[name] = true
	select {
	case f.touches <- struct{}{}:
	default:
	}
}

// touched takes the wants that changes since the last call may have changed.
func (f *Follower) touched() (wants []ledger.Want, names map[npm.Name]bool) {
	s := &f.selection
	s.mu.Lock()
	defer s.mu.Unlock()
	names = s.dirty
	s.dirty = make(map[npm.Name]bool)
	if len(names) == 0 {
		return nil, nil
	}
	for _, g := range s.groups {
		hit := g.names == nil
		for name := range names {
			hit = hit || g.names[name]
		}
		if hit {
			wants = append(wants, g.wants...)
		}
	}
	return wants, names
}

// reached notes what resolving wants looked at.
func (f *Follower) reached(wants []ledger.Want, names map[npm.Name]bool) {
	s := &f.selection
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		if len(g.wants) == len(wants) && g.wants[0] == wants[0] {
			g.names = names
		}
	}
}
