package resolve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"deps.dev/util/resolve"
	"deps.dev/util/resolve/dep"
	npmresolve "deps.dev/util/resolve/npm"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// project is the name of the made-up package whose only dependency is the root.
// No package can have it. The root itself must not stand on top of the tree:
// npm treats the top differently.
const project = "\x00project"

// errTooLarge ends a tree beyond Options.MaxNodes.
var errTooLarge = errors.New("the tree has too many nodes")

// client gives deps.dev's resolver the packuments of one root's tree.
type client struct {
	src  *source
	root npm.Spec
	left int // calls of Requirements until errTooLarge; the resolver makes two a node
}

var _ resolve.Client = (*client)(nil)

// resolveTree runs the resolver. It is another's code on any registry's input:
// should it panic, that one root is lost to it and not the process.
func resolveTree(ctx context.Context, c *client) (g *resolve.Graph, err error) {
	defer func() {
		if r := recover(); r != nil {
			g, err = nil, fmt.Errorf("the resolver panicked: %v", r)
		}
	}()
	g, err = npmresolve.NewResolver(c).Resolve(ctx, c.top())
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (c *client) top() resolve.VersionKey { return concrete(project, "0.0.0") }

func concrete(name npm.Name, version string) resolve.VersionKey {
	return resolve.VersionKey{
		PackageKey:  resolve.PackageKey{System: resolve.NPM, Name: string(name)},
		VersionType: resolve.Concrete,
		Version:     version,
	}
}

// Version implements resolve.Client.
func (c *client) Version(ctx context.Context, vk resolve.VersionKey) (resolve.Version, error) {
	if vk.Name != project {
		p, err := c.src.packument(ctx, npm.Name(vk.Name))
		if err != nil || p.Versions[vk.Version] == nil {
			return resolve.Version{}, fmt.Errorf("version %v: %w", vk, resolve.ErrNotFound)
		}
	}
	return resolve.Version{VersionKey: vk}, nil
}

// Versions implements resolve.Client. The npm resolver does not call it.
func (c *client) Versions(ctx context.Context, pk resolve.PackageKey) ([]resolve.Version, error) {
	p, err := c.src.packument(ctx, npm.Name(pk.Name))
	if err != nil {
		return nil, fmt.Errorf("package %v: %w", pk, resolve.ErrNotFound)
	}
	var all []resolve.Version
	for _, version := range slices.SortedFunc(maps.Keys(p.Versions), npm.CompareVersions) {
		all = append(all, resolve.Version{VersionKey: concrete(npm.Name(pk.Name), version)})
	}
	return all, nil
}

// MatchingVersions implements resolve.Client. The resolver takes the last of
// the list where it must choose, so that is npm's choice (deprecation and
// `latest` weighed); the rest is only ever compared with versions chosen before,
// so no other versions are listed. A package or version that does not exist
// gives an empty list, because an error would end the whole tree.
func (c *client) MatchingVersions(ctx context.Context, vk resolve.VersionKey) ([]resolve.Version, error) {
	name := npm.Name(vk.Name)
	matching, err := c.src.matching(ctx, name, vk.Version)
	if err != nil {
		return nil, ctx.Err()
	}
	all := make([]resolve.Version, 0, len(matching))
	for _, version := range matching {
		all = append(all, resolve.Version{VersionKey: concrete(name, version)})
	}
	return all, nil
}

// Requirements implements resolve.Client.
func (c *client) Requirements(ctx context.Context, vk resolve.VersionKey) ([]resolve.RequirementVersion, error) {
	if c.left--; c.left < 0 {
		return nil, errTooLarge
	}
	wants, err := c.dependencies(ctx, vk)
	if err != nil {
		return nil, err
	}
	all := make([]resolve.RequirementVersion, 0, len(wants))
	for _, want := range wants {
		if want.err == nil {
			all = append(all, want.requirement())
		}
	}
	resolve.SortDependencies(all)
	return all, nil
}

// dependencies are those of a node of the tree: of the project, the root.
func (c *client) dependencies(ctx context.Context, vk resolve.VersionKey) ([]dependency, error) {
	if vk.Name == project {
		return []dependency{{name: c.root.Name, rng: c.root.Range, written: c.root.Range}}, nil
	}
	return c.src.dependencies(ctx, npm.Name(vk.Name), vk.Version)
}

// dependency is one thing that a version needs.
type dependency struct {
	name     npm.Name // the package, behind an alias too
	rng      string   // range or exact version; a tag only if it names nothing
	alias    string   // the name it is installed under, if another
	written  string   // as the manifest has it
	optional bool
	err      error // set if no registry has it
}

func (d dependency) requirement() resolve.RequirementVersion {
	r := resolve.RequirementVersion{VersionKey: concrete(d.name, d.rng)}
	r.VersionType = resolve.Requirement
	if d.optional {
		r.Type.AddAttr(dep.Opt, "")
	}
	if d.alias != "" {
		r.Type.AddAttr(dep.KnownAs, d.alias)
	}
	return r
}

// needs reads a manifest's dependencies as npm 7 and later do: of a name in
// several fields the optional one counts first, then the regular one, then the
// peer. The list is sorted by the name it is installed under.
func needs(m *npm.Manifest) []dependency {
	bundled := make(map[string]bool, len(m.Bundled))
	for _, name := range m.Bundled {
		bundled[name] = true
	}
	all := make(map[string]dependency)
	read := func(field map[string]string, optional bool, skip func(string) bool) {
		for name, written := range field {
			if bundled[name] || skip != nil && skip(name) {
				continue
			}
			d := dependency{name: npm.Name(name), rng: written, written: written, optional: optional}
			spec, err := npm.ParseDependency(name, written)
			if err != nil {
				d.err = err
			} else {
				d.name, d.rng = spec.Name, spec.Range
				if d.rng == "" {
					d.rng = "*"
				}
				if string(spec.Name) != name {
					d.alias = name
				}
			}
			all[name] = d
		}
	}
	read(m.PeerDependencies, false, func(name string) bool { return m.OptionalPeers[name] })
	read(m.Dependencies, false, nil)
	read(m.OptionalDependencies, true, nil)
	sorted := make([]dependency, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		sorted = append(sorted, all[name])
	}
	return sorted
}
