package follow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/resolve"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// versions are selected versions by name.
type versions map[npm.Name]map[string]bool

func (s versions) add(name npm.Name, version string) {
	if s[name] == nil {
		s[name] = make(map[string]bool)
	}
	s[name][version] = true
}

// resolve says which versions the wants by name select, their own and those of
// their dependencies, and puts those that are missing into the queue, to be
// fetched now. What cannot be satisfied is recorded as refused, and no longer
// once it can be. age is how old the ledger's own documents may be. What is
// held is read back from the node, and is missing where that has lost it.
//
// Documents that may be too old to satisfy a want are asked for again:
// who wants what was published a moment ago is right to.
func (f *Follower) resolve(ctx context.Context, wants []ledger.Want, age time.Duration) error {
	return f.resolution(ctx, age, func(r *resolution) error {
		problems := make(map[ledger.Key]string)
		var named []ledger.Want
		for _, want := range wants {
			if want.Spec.Name != "" {
				named = append(named, want)
			}
		}
		for some := range slices.Chunk(named, aheadWants) {
			if err := r.prefetch(some); err != nil {
				return err
			}
			for group := range slices.Chunk(some, groupWants) {
				picked, wrong, err := r.selectVersions(group)
				if err != nil {
					return err
				}
				maps.Copy(problems, wrong)
				if err := r.queueMissing(picked, true); err != nil {
					return err
				}
			}
		}
		return r.settleProblems(problems)
	})
}

// resolveTouched is resolve for the wants that changed documents may have
// changed. It never asks upstream for a document that is held, and reports
// whether there was anything to do.
func (f *Follower) resolveTouched(ctx context.Context) (bool, error) {
	wants, names := f.touched()
	if len(names) == 0 {
		return false, nil
	}
	return true, f.resolution(ctx, forever, func(r *resolution) error {
		for group := range slices.Chunk(wants, groupWants) {
			picked, problems, err := r.selectVersions(group)
			if err != nil {
				return err
			}
			if err := r.recordProblems(problems); err != nil {
				return err
			}
			if err := r.queueMissing(picked, false); err != nil {
				return err
			}
		}
		return r.pardonSolved(names)
	})
}

// resolution is one run of resolving: each package's document is the same
// throughout, and is recorded on the way.
type resolution struct {
	f   *Follower
	age time.Duration
	dry bool // record nothing

	ctx    context.Context // ends when one part fails
	cancel context.CancelCauseFunc
	gather *gathering
	asking chan struct{} // a token per document that is asked for

	mu     sync.Mutex
	papers map[npm.Name]*memo

	progress meter
}

// resolution runs work and returns once all that it recorded is durable.
func (f *Follower) resolution(ctx context.Context, age time.Duration, work func(*resolution) error) error {
	if err := take(ctx, f.resolving); err != nil {
		return err
	}
	defer release(f.resolving)
	r := &resolution{f: f, age: age, asking: make(chan struct{}, f.workers), papers: make(map[npm.Name]*memo)}
	r.progress.tell = f.progress
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	defer r.cancel(nil)
	r.gather = f.newGathering(r.ctx, r.f.gatherTime)
	err := work(r)
	if err != nil {
		r.cancel(err)
	}
	err = errors.Join(err, r.gather.close())
	return r.cause(err)
}

// aheadWants is for how many wants documents are asked for before they are
// resolved, a multiple of groupWants.
const aheadWants = 4 * groupWants

// prefetch loads the documents of wants, all at once.
func (r *resolution) prefetch(wants []ledger.Want) error {
	g, ctx := errgroup.WithContext(r.ctx)
	g.SetLimit(r.f.workers)
	for _, want := range wants {
		g.Go(func() error {
			if _, err := r.paper(ctx, want.Spec.Name); err != nil && ours(ctx, err) {
				return err
			}
			return nil // else it is recorded
		})
	}
	return g.Wait()
}

// cause returns what ended the resolution, where err is only its echo.
func (r *resolution) cause(err error) error {
	if cause := context.Cause(r.ctx); err != nil && cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}

// record hands an item to be committed. Its failure ends the resolution.
func (r *resolution) record(ctx context.Context, it item) error {
	if r.dry {
		return nil
	}
	return r.gather.post(ctx, it, func(err error) {
		if err != nil {
			r.cancel(err)
		}
	})
}

// selectVersions says which versions a group of wants selects, and what cannot
// be satisfied.
func (r *resolution) selectVersions(wants []ledger.Want) (versions, map[ledger.Key]string, error) {
	picked, problems, names, err := r.choose(wants)
	if err == nil && r.renew(problems) {
		picked, problems, names, err = r.choose(wants)
	}
	if err != nil {
		return nil, nil, err
	}
	r.f.reached(wants, names)
	return picked, problems, nil
}

// renew makes the resolution ask upstream for those packages among problems
// whose document is the ledger's own, and tells whether there are any. Where
// the feed keeps documents current, none is asked for.
func (r *resolution) renew(problems map[ledger.Key]string) (any bool) {
	if r.age == forever {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range problems {
		if m := r.papers[key.Name]; m != nil && m.paper != nil && m.paper.checked.IsZero() {
			r.papers[key.Name] = &memo{renew: true}
			any = true
		}
	}
	return any
}

// choose is selectVersions with the documents that there are. names are the
// packages that it looked at.
func (r *resolution) choose(wants []ledger.Want) (picked versions, problems map[ledger.Key]string, names map[npm.Name]bool, err error) {
	picked, problems, names = make(versions), make(map[ledger.Key]string), make(map[npm.Name]bool)
	docs := make([]*npm.Packument, len(wants))
	g, ctx := errgroup.WithContext(r.ctx)
	g.SetLimit(r.f.workers)
	for i, want := range wants {
		names[want.Spec.Name] = true
		g.Go(func() error {
			pap, err := r.paper(ctx, want.Spec.Name)
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
		return nil, nil, nil, err
	}
	var roots []npm.Spec
	for i, want := range wants {
		if docs[i] == nil || want.Known {
			continue
		}
		name, rng := want.Spec.Name, want.Spec.Range
		if _, ok := npm.Pick(docs[i], rng); !ok && (!want.Every || len(inRange(docs[i], rng)) == 0) {
			problems[ledger.Key{Name: name, Version: rangeKey(rng)}] = "no version satisfies what is wanted"
		}
		for v := range direct(docs[i], want, r.f.now()) {
			picked.add(name, v)
			if !want.NoDeps && !want.Exact {
				roots = append(roots, npm.Spec{Name: name, Range: v})
			}
		}
	}
	return picked, problems, names, r.closure(roots, picked, problems, names)
}

// rootsAtOnce bounds what one resolution holds in memory.
const rootsAtOnce = 256

// closure adds what the roots, exact versions, depend on, each as if it were
// installed alone.
func (r *resolution) closure(roots []npm.Spec, picked versions, problems map[ledger.Key]string, names map[npm.Name]bool) error {
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
	var mu sync.Mutex // guards names
	get := func(ctx context.Context, name npm.Name) (*npm.Packument, error) {
		mu.Lock()
		names[name] = true
		mu.Unlock()
		pap, err := r.paper(ctx, name)
		if err != nil {
			if errors.Is(err, errOwn) {
				r.cancel(err)
			}
			return nil, err
		}
		return pap.doc, nil
	}
	o := resolve.Options{Parallel: r.f.workers, Missing: func(err error) bool { return reason(err) != "" }}
	for part := range slices.Chunk(roots, rootsAtOnce) {
		result, err := resolve.Closure(r.ctx, part, get, o)
		if err == nil {
			err = context.Cause(r.ctx)
		}
		if err != nil {
			return fmt.Errorf("resolve dependencies: %w", r.cause(err))
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
			r.f.log.WarnContext(r.ctx, "a dependency tree is too large, taking npm's choice for each range", "root", root.String(), "why", why)
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

// recordProblems records what cannot be resolved and is not refused already.
func (r *resolution) recordProblems(problems map[ledger.Key]string) error {
	for key, why := range problems {
		if key.Name == "" {
			continue
		}
		refusals, err := r.f.refusals(r.ctx, key.Name)
		if err != nil {
			return err
		}
		if _, known := refusals[key.Version]; known {
			continue
		}
		it := item{name: key.Name, refused: &ledger.Refusal{
			Name: key.Name, Version: key.Version, Reason: ReasonUnresolved, Detail: detail(errors.New(why)), Time: r.f.now(),
		}}
		if err := r.record(r.ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// settleProblems is recordProblems for those of the whole selection, and pardons
// all others.
func (r *resolution) settleProblems(problems map[ledger.Key]string) error {
	if err := r.recordProblems(problems); err != nil {
		return err
	}
	if r.f.ledger.Reasons()[ReasonUnresolved] == 0 {
		return nil
	}
	all, err := r.f.ledger.Refused(r.ctx)
	if err != nil {
		return own(err)
	}
	for _, was := range all {
		key := ledger.Key{Name: was.Name, Version: was.Version}
		if _, still := problems[key]; still || was.Reason != ReasonUnresolved {
			continue
		}
		if err := r.record(r.ctx, item{name: key.Name, pardon: []ledger.Key{key}}); err != nil {
			return err
		}
	}
	return nil
}

// pardonSolved pardons ranges of changed packages that a version satisfies now.
func (r *resolution) pardonSolved(names map[npm.Name]bool) error {
	if r.f.ledger.Reasons()[ReasonUnresolved] == 0 {
		return nil
	}
	for name := range names {
		refusals, err := r.f.refusals(r.ctx, name)
		if err != nil {
			return err
		}
		for version, was := range refusals {
			if was.Reason != ReasonUnresolved {
				continue
			}
			pap, err := r.paper(r.ctx, name)
			if err != nil && ours(r.ctx, err) {
				return err
			}
			if err != nil {
				break // recorded
			}
			if _, ok := npm.Pick(pap.doc, version); !ok {
				continue
			}
			if err := r.record(r.ctx, item{name: name, pardon: []ledger.Key{{Name: name, Version: version}}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// queueMissing puts every selected version that the ledger lacks into the queue
// and, with check, those that the node lacks: each block of the selection is
// read for that. What waits there already becomes due now.
func (r *resolution) queueMissing(s versions, check bool) error {
	g, ctx := errgroup.WithContext(r.ctx)
	g.SetLimit(r.f.workers)
	var fault error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		pap, err := r.paper(r.ctx, name)
		if err != nil {
			if ours(r.ctx, err) {
				fault = err
				break
			}
			continue // recorded
		}
		g.Go(func() error {
			missing, err := r.f.missing(ctx, pap, slices.Sorted(maps.Keys(s[name])), check)
			if err != nil || len(missing) == 0 {
				return err
			}
			return r.record(ctx, item{name: name, queue: missing})
		})
	}
	return errors.Join(fault, g.Wait())
}

// memo is a package's paper within one resolution.
type memo struct {
	mu     sync.Mutex // held while it is loaded
	loaded bool
	renew  bool // ask upstream, whatever the age of the ledger's own
	paper  *paper
	err    error
}

// maxPapers bounds the papers that a resolution keeps; beyond it the first that
// come to hand are let go, and are the ledger's own when they are needed again.
const maxPapers = 20_000

// paper returns a package's paper, the same throughout the resolution, and
// records the document, or why there is none, on the way.
func (r *resolution) paper(ctx context.Context, name npm.Name) (*paper, error) {
	r.mu.Lock()
	m := r.papers[name]
	if m == nil {
		for other := range r.papers {
			if len(r.papers) < maxPapers {
				break
			}
			delete(r.papers, other)
		}
		m = &memo{}
		r.papers[name] = m
	}
	r.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loaded {
		return m.paper, m.err
	}
	pap, err := r.look(ctx, name, m.renew)
	if err != nil && ours(ctx, err) {
		return nil, err // of this call, not of the package
	}
	m.loaded, m.paper, m.err = true, pap, err
	return pap, err
}

func (r *resolution) look(ctx context.Context, name npm.Name, renew bool) (*paper, error) {
	select {
	case r.asking <- struct{}{}:
		defer func() { <-r.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	age := r.age
	if renew {
		age = 0
	}
	refusals, err := r.f.refusals(ctx, name)
	if err != nil {
		return nil, err
	}
	held, err := r.f.held(ctx, name)
	if err != nil {
		return nil, err
	}
	known := held.Document.CID.Defined() && !held.Deleted
	if was, ok := refusals[""]; ok && lasting(was.Reason) && r.f.now().Sub(was.Time) < refusedFor {
		if age = forever; !known {
			return nil, fmt.Errorf("refused before (%s): %s", was.Reason, was.Detail)
		}
	}
	waiting, err := r.f.waiting(ctx, name)
	if err != nil {
		return nil, err
	}
	r.progress.add("packuments", 0, 1, 0)
	defer r.progress.add("packuments", 1, 0, 0)
	pap, late, err := r.f.load(ctx, name, age)
	row := waiting[""]
	row.Name = name
	switch {
	case err != nil && ours(ctx, err):
		return nil, err
	case err != nil:
		it := r.f.failed(row, err)
		it.again = it.refused != nil && refusals[""].Reason == it.refused.Reason
		return nil, errors.Join(err, r.record(ctx, it))
	case errors.Is(late, upstream.ErrNotFound):
		r.f.log.WarnContext(ctx, "upstream no longer gives a document, keeping ours", "package", name, "err", late)
		if row.Stamp == 0 { // from now on it is looked into
			it, err := r.f.missed(ctx, row)
			if err == nil {
				err = r.record(ctx, it)
			}
			if err != nil {
				return nil, err
			}
		}
	case late != nil:
		if err := r.record(ctx, r.f.failed(row, late)); err != nil {
			return nil, err
		}
	}
	pap.raw = nil
	if pap.checked.IsZero() {
		return pap, nil
	}
	var done []ledger.Done
	if row.Stamp != 0 && late == nil && !older(pap.rev, row.Rev) && !strings.HasSuffix(row.Rev, deletedMark) {
		done = []ledger.Done{{Key: ledger.Key{Name: name}, Stamp: row.Stamp}}
	}
	for _, it := range r.f.document(pap, done, nil) {
		if err := r.record(ctx, it); err != nil {
			return nil, err
		}
	}
	return pap, nil
}
