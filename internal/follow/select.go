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
const groupWants = 32

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
const aheadWants = 32 * groupWants

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

// refusals are the dead letters of a package by version, "" its own.
func (f *Follower) refusals(ctx context.Context, name npm.Name) (map[string]ledger.Refusal, error) {
	rows, err := f.ledger.Refusals(ctx, name)
	if err != nil {
		return nil, own(err)
	}
	byVersion := make(map[string]ledger.Refusal, len(rows))
	for _, row := range rows {
		byVersion[row.Version] = row
	}
	return byVersion, nil
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

// missing are queue rows for those versions of a package that are not held, and
// with check for those that the node lost. What was refused is left alone while
// upstream says the same of it.
func (f *Follower) missing(ctx context.Context, pap *paper, versions []string, check bool) ([]ledger.Retry, error) {
	refusals, err := f.refusals(ctx, pap.name)
	if err != nil {
		return nil, err
	}
	var rows []ledger.Retry
	var waiting map[string]ledger.Retry
	for _, version := range versions {
		if held := pap.holds(version); held != nil {
			if !check {
				continue
			}
			ok, err := f.holds(ctx, pap.name, held)
			if err != nil {
				return nil, err
			}
			if ok {
				continue
			}
		}
		if r, ok := refusals[version]; ok && pap.leaveAlone(version, r) {
			continue
		}
		if waiting == nil {
			if waiting, err = f.waiting(ctx, pap.name); err != nil {
				return nil, err
			}
		}
		row := ledger.Retry{Name: pap.name, Version: version, Next: f.now()}
		if w, ok := waiting[version]; ok {
			if row = w; !check || !w.Next.After(f.now()) {
				continue
			}
			row.Next = f.now()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// waiting are the queue's rows of a package by version, "" its own.
func (f *Follower) waiting(ctx context.Context, name npm.Name) (map[string]ledger.Retry, error) {
	rows, err := f.ledger.Queue(ctx, name)
	if err != nil {
		return nil, own(err)
	}
	byVersion := make(map[string]ledger.Retry, len(rows))
	for _, row := range rows {
		byVersion[row.Version] = row
	}
	return byVersion, nil
}

// holds reads back a version from the node and reports whether it is whole.
func (f *Follower) holds(ctx context.Context, name npm.Name, v *ledger.Version) (bool, error) {
	err := f.whole(ctx, v.CID)
	if err != nil && !lost(err) {
		return false, own(err)
	}
	if err != nil {
		f.log.ErrorContext(ctx, "a tarball is missing or corrupt in the node", "package", name, "version", v.Version, "cid", v.CID, "err", err)
	}
	return err == nil, nil
}
