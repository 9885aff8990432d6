// Package resolve finds what npm would install: the versions of a package and
// of everything that it depends on. The walk through the tree is deps.dev's npm
// resolver; this package gives it packuments and npm 7's rules (peers are
// installed, an optional dependency may fail). It knows nothing of HTTP, stores
// or tarballs: packuments come from a function.
package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"deps.dev/util/resolve"
	"deps.dev/util/resolve/dep"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

var (
	// ErrUnsatisfied is the cause of a problem where a package has no version
	// in the range, or no such tag.
	ErrUnsatisfied = errors.New("no version satisfies the range")
	// ErrPackument is the cause of a problem where no packument came. It wraps
	// what Packuments returned.
	ErrPackument = errors.New("no packument")
)

// Packuments gives the packument of a package. It may be called concurrently,
// once per package and Closure; what it returns is not changed.
type Packuments func(ctx context.Context, name npm.Name) (*npm.Packument, error)

// Options tune Closure. The zero value is usable.
type Options struct {
	// Parallel bounds concurrent calls of Packuments; 0 means 16.
	Parallel int
	// MaxNodes bounds the tree of one root; 0 means 10,000. Packuments can be
	// written so that the tree has no end; a tree beyond the bound is given up
	// for a list in which every range is met by npm's choice for it alone.
	MaxNodes int
	// Missing tells errors of Packuments that will stay (the package does not
	// exist) from passing ones. An optional dependency that is missing is no
	// problem, one that could not be asked for is. nil: all errors will stay.
	Missing func(error) bool
}

// Problem is a dependency for which no version was found, so that an install
// would fail or npm would fetch it from elsewhere.
type Problem struct {
	Name   npm.Name `json:"name"`         // of the package that is asked for
	Range  string   `json:"range"`        // as its dependent writes it
	By     string   `json:"by,omitempty"` // dependent, "name@version"; "" for a root
	Reason string   `json:"reason"`       // Err as text
	Err    error    `json:"-"`            // npm.ErrSpec, npm.ErrName, ErrUnsatisfied or ErrPackument
}

// Result is the closure of all roots together.
type Result struct {
	// Versions are sorted by precedence and unique.
	Versions map[npm.Name][]string
	// Problems are sorted by Name, Range and By, and unique.
	Problems []Problem
	// Flat are the roots, and dependencies, whose tree had to be given up
	// (Options.MaxNodes), with the reason.
	Flat map[npm.Spec]string
}

// Closure resolves each root as if it were alone in a project, and unites the
// results: every dependency of every version in it is met by a version in it,
// or is a Problem.
//
// Dependencies and peer dependencies count, those of a bundle do not, for they
// lie in the tarball. Optional dependencies count whatever platform they are
// for; those that cannot be met are no problem. Peers marked optional are left
// out. A dist-tag means the version that it names now, an alias ("npm:…") the
// package behind it.
//
// The error is ctx's. Memory holds every packument until Closure returns: who
// has thousands of roots calls it for some hundreds at a time.
func Closure(ctx context.Context, roots []npm.Spec, get Packuments, o Options) (Result, error) {
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if o.MaxNodes <= 0 {
		o.MaxNodes = 10_000
	}
	work := make([]npm.Spec, 0, len(roots))
	for _, root := range roots {
		root.Range = cmp.Or(strings.TrimSpace(root.Range), "latest")
		work = append(work, root)
	}
	src := newSource(get, o.Parallel)
	stop := src.prefetch(ctx, work)
	defer stop()

	c := &closure{
		src: src, options: o,
		versions: make(map[npm.Name]map[string]bool),
		problems: make(map[problemKey]Problem),
		seen:     make(map[npm.Spec]bool),
		flat:     make(map[npm.Spec]string),
	}
	for len(work) > 0 {
		root := work[0]
		work = work[1:]
		if c.seen[root] {
			continue
		}
		c.seen[root] = true
		again, err := c.add(ctx, root)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return Result{}, fmt.Errorf("resolve %s: %w", root, err)
		}
		work = append(work, again...)
	}
	return c.result(), nil
}

// closure is one call of Closure at work.
type closure struct {
	src      *source
	options  Options
	versions map[npm.Name]map[string]bool
	problems map[problemKey]Problem
	seen     map[npm.Spec]bool
	flat     map[npm.Spec]string
}

type problemKey struct {
	name npm.Name
	rng  string
	by   string
}

// add resolves one root and takes what is in its tree. It returns what must be
// resolved as well: npm's tree cannot hold every set of versions (two of one
// name under one parent, a package below another version of itself) and the
// resolver then leaves out a dependency that an install may still ask for.
func (c *closure) add(ctx context.Context, root npm.Spec) (again []npm.Spec, err error) {
	client := &client{src: c.src, root: root, left: 2 * c.options.MaxNodes}
	graph, err := resolveTree(ctx, client)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c.flat[root] = err.Error()
		if graph, err = c.src.list(ctx, client); err != nil {
			return nil, err
		}
	}

	selected := make(map[npm.Name]map[string]bool)
	for _, node := range graph.Nodes[1:] {
		name := npm.Name(node.Version.Name)
		take(selected, name, node.Version.Version)
		take(c.versions, name, node.Version.Version)
	}
	required := requiredNodes(graph)
	for id, node := range graph.Nodes {
		by := ""
		if id > 0 {
			by = node.Version.Name + "@" + node.Version.Version
		}
		wants, err := client.dependencies(ctx, node.Version)
		if err != nil {
			return nil, err
		}
		for _, want := range wants {
			met, err := c.met(ctx, want, selected[want.name])
			if err != nil {
				return nil, err
			}
			switch {
			case met == nil:
			case errors.Is(met, errLeftOut):
				again = append(again, npm.Spec{Name: want.name, Range: want.rng})
			case required[id] && !want.optional || c.passing(met):
				c.problems[problemKey{want.name, want.written, by}] = Problem{
					Name: want.name, Range: want.written, By: by, Reason: met.Error(), Err: met,
				}
			}
		}
	}
	return again, nil
}

// errLeftOut marks a dependency that can be met and is not in the tree.
var errLeftOut = errors.New("left out of the tree")

// met tells why none of the selected versions meets want, nil if one does. The
// second error is ctx's.
func (c *closure) met(ctx context.Context, want dependency, selected map[string]bool) (error, error) {
	if want.err != nil {
		return want.err, nil
	}
	pick, err := c.src.pick(ctx, want.name, want.rng)
	if err != nil {
		return err, ctx.Err()
	}
	if selected[pick] {
		return nil, nil
	}
	for version := range selected {
		if npm.Satisfies(version, want.rng) {
			return nil, nil
		}
	}
	return errLeftOut, nil
}

// passing tells an error of Packuments that may go away.
func (c *closure) passing(err error) bool {
	return errors.Is(err, ErrPackument) && c.options.Missing != nil && !c.options.Missing(err)
}

func (c *closure) result() Result {
	r := Result{Versions: make(map[npm.Name][]string, len(c.versions)), Flat: c.flat}
	for name, versions := range c.versions {
		r.Versions[name] = slices.SortedFunc(maps.Keys(versions), npm.CompareVersions)
	}
	r.Problems = slices.SortedFunc(maps.Values(c.problems), func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Range, b.Range), cmp.Compare(a.By, b.By))
	})
	return r
}

func take(into map[npm.Name]map[string]bool, name npm.Name, version string) {
	if into[name] == nil {
		into[name] = make(map[string]bool)
	}
	into[name][version] = true
}

// requiredNodes are those that an install cannot do without: reached from the
// root by no optional dependency. When something below an optional dependency
// cannot be met, npm leaves out the optional one.
func requiredNodes(g *resolve.Graph) []bool {
	next := make([][]resolve.NodeID, len(g.Nodes))
	for _, e := range g.Edges {
		if !e.Type.HasAttr(dep.Opt) {
			next[e.From] = append(next[e.From], e.To)
		}
	}
	required := make([]bool, len(g.Nodes))
	required[0] = true
	for queue := []resolve.NodeID{0}; len(queue) > 0; {
		from := queue[0]
		queue = queue[1:]
		for _, to := range next[from] {
			if !required[to] {
				required[to] = true
				queue = append(queue, to)
			}
		}
	}
	return required
}
