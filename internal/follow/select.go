package follow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/resolve"
)

// latest is the tag whose version is selected beside what was asked for.
const latest = "latest"

// wanted is the ledger's selection, ready to be asked about names.
type wanted struct {
	wants []ledger.Want
	all   []ledger.Want // those of every package
	names map[npm.Name]bool
	// waiting are packages that are refused or retried as a whole. It is
	// empty where every package is wanted.
	waiting map[npm.Name]bool
}

// wanted reads the selection.
func (f *Follower) wanted(ctx context.Context) (wanted, error) {
	wants, err := f.ledger.Wants(ctx)
	if err != nil {
		return wanted{}, own(err)
	}
	w := wanted{wants: wants, names: make(map[npm.Name]bool), waiting: make(map[npm.Name]bool)}
	for _, want := range wants {
		if want.Spec.Name == "" {
			w.all = append(w.all, want)
			continue
		}
		w.names[want.Spec.Name] = true
	}
	if len(w.all) > 0 {
		return w, nil
	}
	refused, err := f.ledger.Refused(ctx)
	if err != nil {
		return wanted{}, own(err)
	}
	retries, err := f.ledger.Retries(ctx)
	if err != nil {
		return wanted{}, own(err)
	}
	for _, r := range refused {
		w.waiting[r.Name] = w.waiting[r.Name] || r.Version == ""
	}
	for _, r := range retries {
		w.waiting[r.Name] = w.waiting[r.Name] || r.Version == ""
	}
	return w, nil
}

// concerns reports whether a change of a package is ours to follow: it is
// wanted, or the ledger holds a document of it, which the feed keeps current.
func (f *Follower) concerns(ctx context.Context, w wanted, name npm.Name) (bool, error) {
	if len(w.all) > 0 || w.names[name] || w.waiting[name] {
		return true, nil
	}
	_, err := f.ledger.Package(ctx, name)
	if errors.Is(err, ledger.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, own(err)
	}
	return true, nil
}

// every lists the versions of a document that wants of every package select,
// and those that wants by its name do. Unusable ones are among them where all
// are wanted: each ends stored or refused.
func (w wanted) every(doc *npm.Packument) []string {
	picked := make(map[string]bool)
	for _, want := range w.all {
		if want.Spec.Range == "" {
			for v := range doc.Bad {
				picked[v] = true
			}
		}
		maps.Copy(picked, inRange(doc, want.Spec.Range))
	}
	for _, want := range w.wants {
		if want.Spec.Name == doc.Name {
			maps.Copy(picked, direct(doc, want))
		}
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

// direct are the versions that a want selects of its own package: what it asks
// for and, unless that is exact, what the tag latest names.
func direct(doc *npm.Packument, want ledger.Want) map[string]bool {
	picked := make(map[string]bool)
	if want.Every {
		picked = inRange(doc, want.Spec.Range)
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

// versions are selected versions by name.
type versions map[npm.Name]map[string]bool

func (s versions) add(name npm.Name, version string) {
	if s[name] == nil {
		s[name] = make(map[string]bool)
	}
	s[name][version] = true
}

// selectVersions says which versions the wants by name select: their own and
// those of their dependencies. What cannot be satisfied is recorded as refused,
// and no longer once it can be.
//
// Before that, documents that may be too old to satisfy it are asked for again:
// who wants what was published a moment ago is right to.
func (p *pass) selectVersions(wants []ledger.Want) (versions, error) {
	picked, problems, err := p.choose(wants)
	if err == nil && p.renew(problems) {
		picked, problems, err = p.choose(wants)
	}
	if err != nil {
		return nil, err
	}
	return picked, p.recordProblems(problems)
}

// renew makes the pass ask upstream for those packages among problems whose
// document is the ledger's own, and tells whether there are any. Where the feed
// keeps documents current, none is asked for.
func (p *pass) renew(problems map[ledger.Key]string) (any bool) {
	if p.age == forever {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range problems {
		if m := p.papers[key.Name]; m != nil && m.paper != nil && m.paper.checked.IsZero() {
			p.papers[key.Name] = &memo{renew: true}
			any = true
		}
	}
	return any
}

// choose is selectVersions without the record of what cannot be satisfied.
func (p *pass) choose(wants []ledger.Want) (versions, map[ledger.Key]string, error) {
	picked := make(versions)
	problems := make(map[ledger.Key]string)
	docs := make([]*npm.Packument, len(wants))
	g, ctx := errgroup.WithContext(p.ctx)
	g.SetLimit(p.f.workers)
	for i, want := range wants {
		if want.Spec.Name == "" {
			continue
		}
		g.Go(func() error {
			pap, err := p.paper(ctx, want.Spec.Name)
			if err != nil && ours(ctx, err) {
				return err
			}
			if err == nil {
				docs[i] = pap.doc
			}
			return nil // else it is recorded
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var roots []npm.Spec
	for i, want := range wants {
		if docs[i] == nil {
			continue
		}
		name, rng := want.Spec.Name, want.Spec.Range
		if _, ok := npm.Pick(docs[i], rng); !ok && (!want.Every || len(inRange(docs[i], rng)) == 0) {
			problems[ledger.Key{Name: name, Version: rangeKey(rng)}] = "no version satisfies what is wanted"
		}
		for v := range direct(docs[i], want) {
			picked.add(name, v)
			if !want.NoDeps && !want.Exact {
				roots = append(roots, npm.Spec{Name: name, Range: v})
			}
		}
	}
	return picked, problems, p.closure(roots, picked, problems)
}

// rootsAtOnce bounds what one resolution holds in memory.
const rootsAtOnce = 256

// closure adds what the roots, exact versions, depend on, each as if it were
// installed alone.
func (p *pass) closure(roots []npm.Spec, picked versions, problems map[ledger.Key]string) error {
	if len(roots) == 0 {
		return nil
	}
	slices.SortFunc(roots, func(a, b npm.Spec) int {
		if c := strings.Compare(string(a.Name), string(b.Name)); c != 0 {
			return c
		}
		return npm.CompareVersions(a.Range, b.Range)
	})
	roots = slices.Compact(roots)
	get := func(ctx context.Context, name npm.Name) (*npm.Packument, error) {
		pap, err := p.paper(ctx, name)
		if err != nil {
			if errors.Is(err, errOwn) {
				p.cancel(err)
			}
			return nil, err
		}
		return pap.doc, nil
	}
	o := resolve.Options{Parallel: p.f.workers, Missing: func(err error) bool { return reason(err) != "" }}
	for part := range slices.Chunk(roots, rootsAtOnce) {
		result, err := resolve.Closure(p.ctx, part, get, o)
		if err == nil {
			err = context.Cause(p.ctx)
		}
		if err != nil {
			return fmt.Errorf("resolve dependencies: %w", p.cause(err))
		}
		for name, vs := range result.Versions {
			for _, v := range vs {
				picked.add(name, v)
			}
		}
		for _, problem := range result.Problems {
			if !errors.Is(problem.Err, resolve.ErrPackument) { // else it is recorded
				problems[ledger.Key{Name: problem.Name, Version: rangeKey(problem.Range)}] = problem.Reason
			}
		}
		for root, why := range result.Flat {
			p.f.log.WarnContext(p.ctx, "a dependency tree is too large, taking npm's choice for each range", "root", root.String(), "why", why)
		}
	}
	return nil
}

// rangeKey is a range in the place of a version: what was asked for in vain.
func rangeKey(rng string) string {
	if rng == "" {
		return latest
	}
	if len(rng) > 100 {
		rng = rng[:100]
	}
	return strings.ToValidUTF8(rng, "\uFFFD")
}

// recordProblems records what newly cannot be resolved, and pardons what no
// longer is a problem.
func (p *pass) recordProblems(problems map[ledger.Key]string) error {
	for key, why := range problems {
		if _, ok := p.refused[key]; ok || key.Name == "" {
			continue
		}
		it := item{name: key.Name, key: key, refused: &ledger.Refusal{
			Name: key.Name, Version: key.Version, Reason: ReasonUnresolved, Detail: detail(errors.New(why)), Time: p.f.now(),
		}}
		if err := p.send(p.ctx, it); err != nil {
			return err
		}
	}
	for key, r := range p.refused {
		if _, still := problems[key]; still || r.Reason != ReasonUnresolved {
			continue
		}
		if err := p.send(p.ctx, item{name: key.Name, key: key, pardon: true}); err != nil {
			return err
		}
	}
	return nil
}

// fetchMissing queues every selected version that the ledger lacks and, with
// check, those that the node lacks: each block of the selection is read for that.
func (p *pass) fetchMissing(s versions, check bool) error {
	g, ctx := errgroup.WithContext(p.ctx)
	g.SetLimit(p.f.workers)
	var fault error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		pap, err := p.paper(p.ctx, name)
		if err != nil {
			if ours(p.ctx, err) {
				fault = err
				break
			}
			continue // recorded
		}
		for _, version := range slices.Sorted(maps.Keys(s[name])) {
			g.Go(func() error { return p.fetch(ctx, pap, version, check) })
		}
	}
	return errors.Join(fault, g.Wait())
}
