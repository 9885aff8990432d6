package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/policy"
)

// mark is what the index keeps of the policy that its list follows, as JSON; "" for
// a list that never had one.
type mark struct {
	Policy string `json:"policy"`         // in canonical form
	Name   string `json:"name,omitempty"` // by which release.json calls it
	// From are the policies that some of the list still follows, where another took
	// their place, and At is up to where in the ledger it was brought to Policy.
	From []string   `json:"from,omitempty"`
	At   ledger.Seq `json:"at,omitempty"`
}

func (m mark) String() string {
	if m.Policy == "" && len(m.From) == 0 { // which has no name either
		return ""
	}
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and a number
	}
	return string(raw)
}

// curation is how one run judges packages: by one policy, at one time, so that what
// it makes of a package does not change while it runs.
type curation struct {
	mark
	policy *policy.Policy
	from   []*policy.Policy // mark.From
	now    time.Time
}

// label is what release.json says of the policy, "" for none.
func (c curation) label() string {
	if c.Policy == "" {
		return ""
	}
	return c.Name + " " + c.policy.Hash()
}

// policyOf is the hash of the policy that release.json names, "" for none: it may have
// had another name.
func policyOf(label string) string { return label[strings.LastIndexByte(label, ' ')+1:] }

// ErrPolicyLost is returned where an index is to begin without a policy, and the
// release that readers have follows one: all that it keeps out would be listed.
var ErrPolicyLost = errors.New("the newest release follows a policy, and none is configured")

// keepsPolicy holds a new index to the policy of the release that was made known
// last, where the node still tells what that is.
func (p *Publisher) keepsPolicy(ctx context.Context, newest made) error {
	if p.o.Policy != nil || !newest.root.Defined() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	r, err := index.ReadRelease(ctx, offline{p.o.Node}, newest.root)
	if err != nil {
		p.o.Log.WarnContext(ctx, "whether the newest release follows a policy cannot be read", "release", newest.number, "error", err)
		return nil
	}
	if r.Policy != "" {
		return fmt.Errorf("%w: %s", ErrPolicyLost, r.Policy)
	}
	return nil
}

// curation is the policy that the list follows, or is being brought to.
func (p *Publisher) curation() (curation, error) {
	c := curation{now: p.now()}
	raw, err := p.o.Index.Mark()
	if err == nil && raw != "" {
		err = json.Unmarshal([]byte(raw), &c.mark)
	}
	if err == nil {
		err = c.read()
	}
	if err != nil {
		return curation{}, fmt.Errorf("the policy that the index notes: %w: %w", index.ErrCorrupt, err)
	}
	return c, nil
}

func (c *curation) read() (err error) {
	if c.policy, err = policy.Decode(c.Policy); err != nil {
		return err
	}
	c.from = nil
	for _, text := range c.From {
		from, err := policy.Decode(text)
		if err != nil {
			return err
		}
		c.from = append(c.from, from)
	}
	return nil
}

// change makes c the curation by the policy that p was given, if it was given one.
// read is how far the index has read the ledger.
func (p *Publisher) change(c *curation, read ledger.Seq) error {
	if p.o.Policy == nil {
		return nil
	}
	want := p.o.Policy.Canonical()
	if c.Name = ""; want != "" {
		c.Name = p.o.PolicyName
	}
	if want == c.Policy {
		return nil
	}
	c.From = append(slices.DeleteFunc(c.From, func(text string) bool { return text == want }), c.Policy)
	c.Policy, c.At = want, 0
	if read == 0 {
		c.From = nil // nothing follows any
	}
	return c.read()
}

// done notes that all of the list follows the policy.
func (c *curation) done() { c.From, c.from, c.At = nil, nil, 0 }

// judgement is what a policy makes of a package of the ledger.
type judgement struct {
	kept []ledger.Version
	held index.Held
}

// judge holds a package to a policy. Of one that only does not take nothing is noted:
// that is to be seen of the policy alone, and such packages may be millions.
func judge(by *policy.Policy, pkg ledger.Package, now time.Time) (judgement, error) {
	j := judgement{held: index.Held{Name: pkg.Name}}
	if pkg.Deleted || !by.Takes(pkg.Name) {
		return j, nil
	}
	versions := make([]policy.Version, len(pkg.Versions))
	for i, v := range pkg.Versions {
		versions[i] = policy.Version{Version: v.Version, FirstSeen: v.FirstSeen, Signature: npm.Verdict(v.Signature)}
	}
	verdict := by.Judge(pkg.Name, versions, now)
	if len(verdict.Withheld) == 0 {
		j.kept = pkg.Versions
		return j, nil
	}
	withheld := make(map[string]bool, len(verdict.Withheld))
	for i, w := range verdict.Withheld {
		withheld[w.Version] = true
		verdict.Withheld[i].Detail = clip(w.Detail)
	}
	for _, v := range pkg.Versions {
		if !withheld[v.Version] {
			j.kept = append(j.kept, v)
		}
	}
	var err error
	j.held.Due = verdict.Due
	j.held.Note, err = json.Marshal(verdict.Withheld)
	return j, err
}

// touches says whether the policy lists other versions of a package than one of those
// before it, and what it holds of the package.
func (p *Publisher) touches(ctx context.Context, c curation, change ledger.Change) (bool, index.Held, error) {
	held := index.Held{Name: change.Name}
	takes := c.policy.Takes(change.Name)
	for _, from := range c.from {
		takes = takes || from.Takes(change.Name)
	}
	if !takes || change.Deleted || change.Name == reserved {
		return false, held, nil
	}
	pkg, err := p.o.Ledger.Package(ctx, change.Name)
	if errors.Is(err, ledger.ErrNotFound) {
		return false, held, nil
	}
	if err != nil {
		return false, held, fmt.Errorf("package %s: %w", change.Name, err)
	}
	now, err := judge(c.policy, pkg, c.now)
	if err != nil {
		return false, held, err
	}
	for _, from := range c.from {
		was, err := judge(from, pkg, c.now)
		if err != nil {
			return false, held, err
		}
		if !slices.EqualFunc(was.kept, now.kept, func(a, b ledger.Version) bool { return a.Version == b.Version }) {
			return true, now.held, nil
		}
	}
	return false, now.held, nil
}

// again is how long a package that was rolled back is let be, when a version of it
// has come of age: until it changes upstream, or the rollback is undone.
const again = 24 * time.Hour

// comeOfAge builds the packages of which a version has come of age since.
func (r *run) comeOfAge(ctx context.Context) error {
	for {
		names, err := r.p.o.Index.Due(ctx, r.now, r.p.pageSize)
		if err != nil || len(names) == 0 {
			return err
		}
		back, err := r.p.rolledBackNotes()
		if err != nil {
			return err
		}
		var changes []ledger.Change
		var held []index.Held
		for _, name := range names {
			if _, ok := back[name]; !ok {
				changes = append(changes, ledger.Change{Name: name})
				continue
			}
			h, err := r.p.o.Index.Held(name)
			if err != nil {
				return err
			}
			h.Due = r.now.Add(again)
			held = append(held, h)
		}
		if err := r.take(ctx, changes, held, true); err != nil {
			return err
		}
	}
}

// follow brings what was built by another policy to the one that holds now: of each
// package that the index has read of the ledger the two judgements are compared, and
// it is built again where they list other versions. A rollback stays where they do
// not. It goes on where a run was cut short.
func (r *run) follow(ctx context.Context) error {
	if len(r.From) == 0 {
		return nil
	}
	looked, built := 0, 0
	for {
		changes, err := r.p.o.Ledger.Changes(ctx, r.At, r.p.pageSize)
		if err != nil {
			return err
		}
		more := len(changes) == r.p.pageSize
		if i := slices.IndexFunc(changes, func(c ledger.Change) bool { return c.Seq > r.cursor }); i >= 0 {
			changes, more = changes[:i], false // the rest is built by the policy anyway
		}
		if len(changes) == 0 {
			break
		}
		back, err := r.p.rolledBackNotes()
		if err != nil {
			return err
		}
		touched, held, err := r.touched(ctx, changes)
		if err != nil {
			return err
		}
		held = slices.DeleteFunc(held, func(h index.Held) bool { _, ok := back[h.Name]; return ok })
		looked, built = looked+len(changes), built+len(touched)
		r.At = changes[len(changes)-1].Seq
		if err := r.take(ctx, touched, held, true); err != nil {
			return err
		}
		if !more {
			break
		}
	}
	r.done()
	r.p.o.Log.InfoContext(ctx, "the list follows another policy", "registry", r.p.o.Registry, "policy", r.label(), "looked_at", looked, "built", built)
	return nil
}

// touched are those of changes that the policy touches, and what it holds of the
// others.
func (r *run) touched(ctx context.Context, changes []ledger.Change) (touched []ledger.Change, held []index.Held, err error) {
	is, holds := make([]bool, len(changes)), make([]index.Held, len(changes))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(r.p.o.Workers)
	for i, change := range changes {
		if _, err := npm.ParseName(string(change.Name)); err != nil {
			continue // it is in no list
		}
		group.Go(func() (err error) {
			is[i], holds[i], err = r.p.touches(gctx, r.curation, change)
			return err
		})
	}
	if err := cmp.Or(group.Wait(), ctx.Err()); err != nil {
		return nil, nil, err
	}
	for i, change := range changes {
		if is[i] {
			touched = append(touched, change)
		} else if holds[i].Name != "" {
			held = append(held, holds[i])
		}
	}
	return touched, held, nil
}

// Held yields what the policy keeps out of the list though the ledger has it, by
// name, as of the last build. It leaves out the packages that no pattern of "only"
// takes. Errors are the index's.
func (p *Publisher) Held(ctx context.Context) iter.Seq2[Withheld, error] {
	return func(yield func(Withheld, error) bool) {
		for h, err := range p.o.Index.AllHeld(ctx) {
			var all []Withheld
			if err == nil {
				all, err = withheldBy(h)
			}
			if err != nil {
				yield(Withheld{}, err)
				return
			}
			for _, w := range all {
				if !yield(w, nil) {
					return
				}
			}
		}
	}
}

// WithheldOf is what Withheld and Held have of one package, and whether the policy
// takes its name at all.
func (p *Publisher) WithheldOf(name npm.Name) ([]Withheld, error) {
	all, err := p.Withheld()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(w Withheld) bool { return w.Name != name })
	h, err := p.o.Index.Held(name)
	if err != nil {
		return nil, err
	}
	held, err := withheldBy(h)
	if err != nil {
		return nil, err
	}
	text, err := p.Policy()
	if err != nil {
		return nil, err
	}
	by, err := policy.Decode(text)
	if err != nil {
		return nil, err
	}
	if !by.Takes(name) {
		all = append(all, Withheld{Name: name, Reason: policy.ReasonOnly, Detail: "no pattern of only takes the name"})
	}
	return append(all, held...), nil
}

// withheldBy reads what the policy noted of a package.
func withheldBy(h index.Held) (all []Withheld, err error) {
	if len(h.Note) == 0 {
		return nil, nil
	}
	var noted []policy.Withheld
	if err := json.Unmarshal(h.Note, &noted); err != nil {
		return nil, fmt.Errorf("what is held of %s: %w: %w", h.Name, index.ErrCorrupt, err)
	}
	for _, w := range noted {
		all = append(all, Withheld{Name: h.Name, Version: w.Version, Reason: w.Reason, Detail: w.Detail})
	}
	return all, nil
}

// Policy is the canonical text of the policy that the list follows, or is being
// brought to; "" for none.
func (p *Publisher) Policy() (string, error) {
	c, err := p.curation()
	return c.Policy, err
}
