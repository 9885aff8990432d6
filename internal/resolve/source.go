package resolve

import (
	"context"
	"fmt"
	"sync"

	"deps.dev/util/resolve"
	"deps.dev/util/resolve/dep"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// source holds the packuments of one Closure, each fetched once, and what was
// worked out from them. Its methods may run concurrently.
type source struct {
	get   Packuments
	slots chan struct{} // held while get runs

	mu      sync.Mutex
	entries map[npm.Name]*entry
}

// entry is one package. ready is closed once packument and err are set.
type entry struct {
	ready     chan struct{}
	packument *npm.Packument
	err       error

	mu sync.Mutex
	// picks are npm's choices by range, "" where there is none; chosen are
	// those of them that matching returned, in that order.
	picks   map[string]string
	chosen  []string
	depends map[string][]dependency // by version
}

func newSource(get Packuments, parallel int) *source {
	return &source{get: get, slots: make(chan struct{}, parallel), entries: make(map[npm.Name]*entry)}
}

// entry returns a package's entry, fetching its packument if nobody did. The
// error wraps ErrPackument, or is ctx's.
func (s *source) entry(ctx context.Context, name npm.Name) (*entry, error) {
	s.mu.Lock()
	e, ok := s.entries[name]
	if !ok {
		e = &entry{ready: make(chan struct{}), picks: make(map[string]string), depends: make(map[string][]dependency)}
		s.entries[name] = e
	}
	s.mu.Unlock()
	if !ok {
		e.packument, e.err = s.fetch(ctx, name)
		close(e.ready)
	}
	select {
	case <-e.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackument, e.err)
	}
	return e, nil
}

func (s *source) fetch(ctx context.Context, name npm.Name) (*npm.Packument, error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.slots }()
	return s.get(ctx, name)
}

func (s *source) packument(ctx context.Context, name npm.Name) (*npm.Packument, error) {
	e, err := s.entry(ctx, name)
	if err != nil {
		return nil, err
	}
	return e.packument, nil
}

// pick is the version that npm chooses for rng, else an error that wraps
// ErrUnsatisfied, ErrPackument or is ctx's.
func (s *source) pick(ctx context.Context, name npm.Name, rng string) (string, error) {
	e, err := s.entry(ctx, name)
	if err != nil {
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	pick := e.pick(rng)
	if pick == "" {
		return "", fmt.Errorf("%s@%.200q: %w", name, rng, ErrUnsatisfied)
	}
	return pick, nil
}

// pick needs e.mu.
func (e *entry) pick(rng string) string {
	pick, ok := e.picks[rng]
	if !ok {
		if version, found := npm.Pick(e.packument, rng); found {
			pick = version
		}
		e.picks[rng] = pick
	}
	return pick
}

// matching lists the versions returned before that are in rng, and then npm's
// choice for it.
func (s *source) matching(ctx context.Context, name npm.Name, rng string) ([]string, error) {
	e, err := s.entry(ctx, name)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	pick := e.pick(rng)
	if pick == "" {
		return nil, nil
	}
	var all []string
	known := false
	for _, version := range e.chosen {
		if version == pick {
			known = true
		} else if npm.Satisfies(version, rng) {
			all = append(all, version)
		}
	}
	if !known {
		e.chosen = append(e.chosen, pick)
	}
	return append(all, pick), nil
}

// dependencies are those of one version, tags replaced by what they name.
func (s *source) dependencies(ctx context.Context, name npm.Name, version string) ([]dependency, error) {
	e, err := s.entry(ctx, name)
	if err != nil {
		return nil, err
	}
	m := e.packument.Versions[version]
	if m == nil {
		return nil, fmt.Errorf("%s@%s: %w", name, version, ErrUnsatisfied)
	}
	e.mu.Lock()
	all, ok := e.depends[version]
	e.mu.Unlock()
	if ok {
		return all, nil
	}
	all = needs(m)
	for i, d := range all {
		// The resolver reads an alias' range as semver and no tag at all.
		if d.err != nil || npm.IsRange(d.rng) {
			continue
		}
		if pick, err := s.pick(ctx, d.name, d.rng); err == nil {
			all[i].rng = pick
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.depends[version] = all
	return all, nil
}

// prefetch walks ahead of the resolver, many packages at a time, along npm's
// choice for every range: nearly all that the resolver will ask for, while it
// asks for one after the other. What fails here fails again where it counts.
// The walk ends by itself, or when stop is called, which waits for it.
func (s *source) prefetch(ctx context.Context, roots []npm.Spec) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		walkers sync.WaitGroup
		mu      sync.Mutex
		seen    = make(map[npm.Spec]bool)
		visit   func(name npm.Name, rng string)
	)
	visit = func(name npm.Name, rng string) {
		mu.Lock()
		defer mu.Unlock()
		spec := npm.Spec{Name: name, Range: rng}
		if seen[spec] {
			return
		}
		seen[spec] = true
		walkers.Go(func() {
			version, err := s.pick(ctx, name, rng)
			if err != nil {
				return
			}
			wants, err := s.dependencies(ctx, name, version)
			if err != nil {
				return
			}
			for _, want := range wants {
				if want.err == nil {
					visit(want.name, want.rng)
				}
			}
		})
	}
	for _, root := range roots {
		visit(root.Name, root.Range)
	}
	return func() {
		cancel()
		walkers.Wait()
	}
}

// list is the tree given up: a graph that meets every range by npm's choice
// for it, each version once.
func (s *source) list(ctx context.Context, c *client) (*resolve.Graph, error) {
	g := &resolve.Graph{}
	ids := map[resolve.VersionKey]resolve.NodeID{c.top(): g.AddNode(c.top())}
	for at := 0; at < len(g.Nodes); at++ {
		wants, err := c.dependencies(ctx, g.Nodes[at].Version)
		if err != nil {
			return nil, err
		}
		for _, want := range wants {
			if want.err != nil {
				continue
			}
			version, err := s.pick(ctx, want.name, want.rng)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				continue
			}
			vk := concrete(want.name, version)
			id, ok := ids[vk]
			if !ok {
				id = g.AddNode(vk)
				ids[vk] = id
			}
			var t dep.Type
			if want.optional {
				t.AddAttr(dep.Opt, "")
			}
			if err := g.AddEdge(resolve.NodeID(at), id, want.rng, t); err != nil {
				return nil, err
			}
		}
	}
	return g, nil
}
