package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// ErrClaimed is returned by NewTable where two registries claim one name, or
// have one label.
var ErrClaimed = errors.New("claimed twice")

// Registry is one of those that a Table serves.
type Registry struct {
	// Label is what people here call it; no two of a table have the same.
	Label string
	// Scopes ("@acme") and Names are what it claims: they are looked up in it and
	// nowhere else, whether it has them or not. A registry that claims nothing is
	// open: it is asked for what nobody claims.
	Scopes []string
	Names  []npm.Name
	// PublishTo is the URL of a registry that takes what npm writes of the names that
	// this one claims; "": nobody here knows one. See CheckPublishTo.
	PublishTo string
	*Mirror
}

func (r Registry) open() bool { return len(r.Scopes) == 0 && len(r.Names) == 0 }

// Table serves several registries as one. It keeps a name that a company uses
// for itself from ever being taken from a public registry that has the same
// one (dependency confusion). Of open registries the first that lists a name
// has it; and where that one has no list yet, nobody is asked in its place.
type Table struct {
	rows   []Registry
	scopes map[string]int // who claims one, as an index into rows
	names  map[npm.Name]int
	moment Moment // as of which it is, where At made it

	// URL is where it is served, "" where it is not. It is set before Admin and Run.
	URL string
}

// NewTable makes a table of registries in the order in which they are asked.
// Errors: ErrClaimed, ErrPublishTo, npm.ErrName.
func NewTable(rows ...Registry) (*Table, error) {
	if len(rows) == 0 {
		return nil, errors.New("no registry to serve")
	}
	t := &Table{rows: rows, scopes: map[string]int{}, names: map[npm.Name]int{}}
	labels := map[string]bool{}
	for i, r := range rows {
		if labels[r.Label] {
			return nil, fmt.Errorf("registry %s: %w", r.Label, ErrClaimed)
		}
		labels[r.Label] = true
		if r.PublishTo != "" {
			err := CheckPublishTo(r.PublishTo)
			if err == nil && r.open() {
				err = fmt.Errorf("%w: it claims no names", ErrPublishTo)
			}
			if err != nil {
				return nil, fmt.Errorf("registry %s: %w", r.Label, err)
			}
		}
		for _, s := range r.Scopes {
			if name, err := npm.ParseName(s + "/x"); err != nil || name.Scope() != s {
				return nil, fmt.Errorf("scope %q of registry %s: %w", s, r.Label, npm.ErrName)
			}
			if other, ok := t.scopes[s]; ok && other != i {
				return nil, fmt.Errorf("scope %s, by %s and %s: %w", s, rows[other].Label, r.Label, ErrClaimed)
			}
			t.scopes[s] = i
		}
		for _, n := range r.Names {
			if _, err := npm.ParseName(string(n)); err != nil {
				return nil, fmt.Errorf("name %q of registry %s: %w", n, r.Label, err)
			}
			if other, ok := t.names[n]; ok && other != i {
				return nil, fmt.Errorf("package %s, by %s and %s: %w", n, rows[other].Label, r.Label, ErrClaimed)
			}
			t.names[n] = i
		}
	}
	for n, i := range t.names {
		if other, ok := t.scopes[n.Scope()]; ok && other != i {
			return nil, fmt.Errorf("package %s, by %s and with its scope by %s: %w", n, rows[i].Label, rows[other].Label, ErrClaimed)
		}
	}
	return t, nil
}

// owner is who claims a name.
func (t *Table) owner(name npm.Name) (i int, claimed bool) {
	if i, claimed = t.names[name]; !claimed {
		i, claimed = t.scopes[name.Scope()]
	}
	return i, claimed
}

// of is the registry that is asked for a name, nil where there is none.
func (t *Table) of(name npm.Name) *Mirror {
	if i, claimed := t.owner(name); claimed {
		return t.rows[i].Mirror
	}
	var last *Mirror
	for _, r := range t.rows {
		if !r.open() {
			continue
		}
		last = r.Mirror
		// What cannot be known is that registry's to answer for.
		if _, has, err := r.entry(name); has || err != nil {
			break
		}
	}
	return last
}

// Handler is the npm registry that all of them make. Below /-/at/<moment>/ (see
// ParseMoment) it is that registry as it stood then. Tarball URLs that are rewritten
// lie there too, since a client may take only those below its registry's URL; npm
// gets the stored ones, and its lockfile says nothing of the moment.
func (t *Table) Handler() http.Handler {
	now := t.handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, rest, ok := cutAt(r.URL)
		if !ok {
			now.ServeHTTP(w, r)
			return
		}
		moment, err := ParseMoment(text)
		if err != nil {
			t.rows[0].fail(w, r, err)
			return
		}
		t.serveAt(w, r, moment, rest)
	})
}

// handler is Handler without that.
func (t *Table) handler() http.Handler {
	if len(t.rows) == 1 && t.rows[0].open() {
		return t.rows[0].Mirror.Handler()
	}
	handlers := map[*Mirror]http.Handler{}
	for _, r := range t.rows {
		handlers[r.Mirror] = r.Mirror.Handler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		segments, err := npm.SplitPath(r.URL)
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		audit := r.Method == http.MethodPost && len(segments) > 3 && slices.Equal(segments[:4], []string{"-", "npm", "v1", "security"})
		if err == nil && writes(r) && !audit {
			name, _ := nameIn(segments)
			if i, claimed := t.owner(name); name != "" && claimed && t.rows[i].PublishTo != "" {
				t.rows[i].passOn(w, r, segments)
				return
			}
			if !read {
				t.refuseWrite(w, r, name)
				return
			}
		}
		switch {
		case err == nil && len(segments) == 0 && read:
			t.serveRoot(w, r)
		case err == nil && read && slices.Equal(segments, []string{"-", "v1", "search"}):
			t.serveSearch(w, r)
		case err == nil && read && slices.Equal(segments, []string{"-", "npm", "v1", "keys"}):
			t.serveKeys(w, r)
		default:
			m := t.rows[0].Mirror // for what is of no package
			if name, ok := nameIn(segments); ok {
				if m = t.of(name); m == nil {
					w.Header().Set("Npm-Notice", string(name)+" is claimed by no registry here, and none is open to other names: `registry-mirror list` shows them")
					sendError(w, r, http.StatusNotFound, "Not found")
					return
				}
			}
			handlers[m].ServeHTTP(w, r)
		}
	})
}

// nameIn is the package that a path is about.
func nameIn(segments []string) (npm.Name, bool) {
	if len(segments) > 4 && slices.Equal(segments[:4], []string{"-", "npm", "v1", "attestations"}) {
		spec := strings.Join(segments[4:], "/")
		name, err := npm.ParseName(spec[:max(0, strings.LastIndexByte(spec, '@'))])
		return name, err == nil
	}
	if len(segments) > 2 && segments[0] == "-" && segments[1] == "package" {
		segments = segments[2:]
	}
	if len(segments) == 0 || segments[0] == "-" {
		return "", false
	}
	name, _, err := npm.TakeName(segments)
	return name, err == nil
}

// serveRoot says what the registries are.
func (t *Table) serveRoot(w http.ResponseWriter, r *http.Request) {
	type row struct {
		Registry string     `json:"registry"`
		Name     string     `json:"db_name"`
		Scopes   []string   `json:"scopes,omitempty"`
		Claims   []npm.Name `json:"claims,omitempty"`
		Packages int        `json:"doc_count"`
		Release  uint64     `json:"update_seq"`
	}
	all := make([]row, len(t.rows))
	for i, reg := range t.rows {
		all[i] = row{Registry: reg.Label, Name: reg.Address(), Scopes: reg.Scopes, Claims: reg.Names}
		if h := reg.head.Load(); h != nil {
			all[i].Packages, all[i].Release = h.Release.Packages, h.Release.Number
		}
	}
	sendJSON(w, r, http.StatusOK, map[string]any{"registries": all})
}

// shelves are the registries whose names are searched, each with those that are
// looked up in it. One that has no list is left out, and if it is open so are the
// open ones after it: it may have what they have.
func (t *Table) shelves() (in []shelf) {
	owned := make([][]span, len(t.rows))
	var claimed []span
	for scope, i := range t.scopes {
		owned[i] = append(owned[i], spanOfScope(scope))
	}
	for name, i := range t.names {
		if _, ok := t.scopes[name.Scope()]; !ok { // else its scope has it already
			owned[i] = append(owned[i], spanOfName(name))
		}
	}
	inOrder := func(a, b span) int { return cmp.Compare(a.from, b.from) }
	for _, spans := range owned {
		slices.SortFunc(spans, inOrder)
		claimed = append(claimed, spans...)
	}
	slices.SortFunc(claimed, inOrder)
	known := true // all open ones so far
	for i, r := range t.rows {
		listed := r.head.Load() != nil && r.tooOld() == nil
		switch {
		case r.open() && known && listed:
			in = append(in, shelf{Mirror: r.Mirror, label: r.Label, but: claimed, open: true})
		case r.open():
			known = false
		case listed:
			in = append(in, shelf{Mirror: r.Mirror, label: r.Label, only: owned[i]})
		}
	}
	return in
}

// serveSearch searches all of them, and shows of each what is looked up in it.
func (t *Table) serveSearch(w http.ResponseWriter, r *http.Request) {
	search(w, r, t.rows[0].Mirror, t.shelves())
}

// Run keeps all lists up to date until ctx ends, and says which claimed names
// are in an open registry too.
func (t *Table) Run(ctx context.Context) error {
	var g errgroup.Group
	for _, r := range t.rows {
		g.Go(func() error { return r.Run(ctx) })
	}
	g.Go(func() error {
		t.warn(ctx)
		return nil
	})
	g.Go(func() error {
		t.keepPins(ctx)
		return nil
	})
	return g.Wait()
}

// Refresh is Mirror.Refresh of all.
func (t *Table) Refresh() {
	for _, r := range t.rows {
		r.Refresh()
	}
}

// Sync is Mirror.Sync of all, at once. The errors name their registries.
func (t *Table) Sync(ctx context.Context) error {
	errs := make([]error, len(t.rows))
	var g errgroup.Group
	for i, r := range t.rows {
		g.Go(func() error {
			if err := r.Sync(ctx); err != nil && len(t.rows) > 1 {
				errs[i] = fmt.Errorf("registry %s: %w", r.Label, err)
			} else {
				errs[i] = err
			}
			return nil
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

// FollowTo is Mirror.FollowTo of the registry to whose mirror that name was
// promised: ErrNoSuccessor where it was to none.
func (t *Table) FollowTo(ctx context.Context, name ipns.Name) error {
	var errs []error
	for _, r := range t.rows {
		err := r.Mirror.FollowTo(ctx, name)
		if err == nil || !errors.Is(err, ErrNoSuccessor) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Overlap is a claimed name that an open registry lists: whoever installs it
// without this table, or with a scope misspelt, gets another's package.
type Overlap struct {
	Name  npm.Name `json:"name"`
	Claim string   `json:"claimed_by"` // labels
	Open  string   `json:"listed_by"`
}

// maxOverlaps bounds those of one scope, which an open registry may have as its own.
const maxOverlaps = 10

// Overlaps looks for claimed names in the lists of the open registries: at most
// ten of each scope, by name.
func (t *Table) Overlaps(ctx context.Context) (all []Overlap, err error) {
	for _, r := range t.rows {
		if !r.open() || r.head.Load() == nil {
			continue
		}
		for name, i := range t.names {
			if _, listed, err := r.entry(name); err != nil {
				return nil, err
			} else if listed {
				all = append(all, Overlap{name, t.rows[i].Label, r.Label})
			}
		}
		for scope, i := range t.scopes {
			found := 0
			for e, err := range r.list.Prefix(ctx, scope+"/") {
				if err != nil {
					return nil, fmt.Errorf("look for %s in %s: %w", scope, r.Label, err)
				}
				all = append(all, Overlap{e.Name, t.rows[i].Label, r.Label})
				if found++; found == maxOverlaps {
					break
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b Overlap) int {
		return cmp.Or(strings.Compare(string(a.Name), string(b.Name)), strings.Compare(a.Open, b.Open))
	})
	return slices.Compact(all), nil
}

// warn logs overlaps once each, now and as new releases come.
func (t *Table) warn(ctx context.Context) {
	said := map[Overlap]bool{}
	var seen []*head
	for {
		var now []*head
		for _, r := range t.rows {
			now = append(now, r.head.Load())
		}
		if !slices.Equal(now, seen) {
			seen = now
			all, err := t.Overlaps(ctx)
			if err != nil && ctx.Err() == nil {
				t.rows[0].log.ErrorContext(ctx, "claimed names were not looked for", "error", err)
			}
			for _, o := range all {
				if !said[o] {
					said[o] = true
					t.rows[0].log.WarnContext(ctx, "a claimed name is in an open registry too; it is never taken from there", "package", string(o.Name), "claimed_by", o.Claim, "listed_by", o.Open)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// Meant is Mirror.Meant: all of them are at one address.
func (t *Table) Meant(r *http.Request) (base string, ok bool) { return t.rows[0].Mirror.Meant(r) }

// TableStatus is what `registry-mirror status` shows of several registries.
type TableStatus struct {
	URL        string           `json:"url,omitempty"` // where it is served
	Registries []RegistryStatus `json:"registries"`
	Overlaps   []Overlap        `json:"overlaps,omitempty"`
	Cache      *CacheStatus     `json:"cache,omitempty"`
}

// RegistryStatus is Status of one of several.
type RegistryStatus struct {
	Registry string     `json:"registry"` // its label
	Scopes   []string   `json:"scopes,omitempty"`
	Claims   []npm.Name `json:"claims,omitempty"`
	// PublishTo is where writes of what it claims are passed on to.
	PublishTo string `json:"publish_to,omitempty"`
	Status
}

// Status says how each is doing.
func (t *Table) Status(ctx context.Context) TableStatus {
	s := TableStatus{URL: t.URL, Registries: make([]RegistryStatus, len(t.rows))}
	var g errgroup.Group
	for i, r := range t.rows {
		g.Go(func() error {
			s.Registries[i] = RegistryStatus{Registry: r.Label, Scopes: r.Scopes, Claims: r.Names, PublishTo: r.PublishTo, Status: r.Status(ctx)}
			s.Registries[i].At = t.moment.String()
			return nil
		})
	}
	g.Wait()
	if c := t.cache(); c != nil {
		said := c.Status()
		s.Cache = &said
	}
	var err error
	if s.Overlaps, err = t.Overlaps(ctx); err != nil && ctx.Err() == nil {
		t.rows[0].log.ErrorContext(ctx, "claimed names were not looked for", "error", err)
	}
	return s
}
