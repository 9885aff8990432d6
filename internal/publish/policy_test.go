package publish

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/policy"
)

// by has a publisher curate by rules.
func by(t testing.TB, r policy.Rules) func(*Options) {
	t.Helper()
	p, err := policy.Parse(r)
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.Policy, o.PolicyName = p, "careful" }
}

// seen has the versions of a package first seen so many hours after day zero, in
// order, and the last hour for the rest; a negative one is never.
func (l *memLedger) seen(name string, hours ...int) {
	p := l.packages[npm.Name(name)]
	p.Versions = slices.Clone(p.Versions)
	for i := range p.Versions {
		h := hours[min(i, len(hours)-1)]
		if p.Versions[i].FirstSeen = dayZero.Add(time.Duration(h) * time.Hour); h < 0 {
			p.Versions[i].FirstSeen = time.Time{}
		}
	}
	l.packages[npm.Name(name)] = p // of the same change: sequences without a gap
}

// holds says what the policy keeps out.
func (w *world) holds(p *Publisher) string {
	w.t.Helper()
	var all []string
	for held, err := range p.Held(w.t.Context()) {
		if err != nil || held.Detail == "" {
			w.t.Fatal(held, err)
		}
		all = append(all, fmt.Sprintf("%s@%s %s", held.Name, held.Version, held.Reason))
	}
	return strings.Join(all, ", ")
}

// lists says what is listed.
func (w *world) lists(p *Publisher) string {
	w.t.Helper()
	names, _, _ := strings.Cut(w.standing(p), " |")
	return names
}

// fromNothing is the list that a build from nothing gives, of what the ledger has now.
func (w *world) fromNothing(change ...func(*Options)) index.List {
	w.t.Helper()
	other := *w
	other.disk = vfs.NewCrashableMem()
	if err := CreateJournal(other.disk, journalPath); err != nil {
		w.t.Fatal(err)
	}
	p, stop := other.start(change...)
	defer stop()
	return other.build(p).List
}

// A version comes of age though the ledger stands still, and its tag with it.
func TestMinAge(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0", "1.2.0"}, "1.0.0", "1.1.0", "1.2.0")
	w.ledger.seen("left-pad", 0, 24, 48)
	w.ledger.hold(t, "young", []string{"1.0.0"}, "1.0.0")
	w.ledger.seen("young", 36)
	w.ledger.hold(t, "never", []string{"1.0.0"}, "1.0.0")
	w.ledger.seen("never", -1)
	w.clock.add(48 * time.Hour)
	p, stop := w.start(by(t, policy.Rules{MinAge: "1d"}))
	defer stop()
	first := w.publish(p)
	latest := func() string {
		t.Helper()
		e, err := p.o.Index.Entry("left-pad")
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, w.document(e.CID, "install.json.gz")).DistTags["latest"]
	}
	if latest() != "1.1.0" || first.Packages != 1 || first.Versions != 2 || w.holds(p) != "left-pad@1.2.0 min-age, never@1.0.0 min-age, young@1.0.0 min-age" {
		t.Errorf("latest %s, %+v, held %s", latest(), first, w.holds(p))
	}
	if !strings.HasPrefix(first.Release.Policy, "careful sha256:") {
		t.Errorf("policy %q", first.Release.Policy)
	}
	if behind, err := p.Behind(); err != nil || behind {
		t.Errorf("behind %v, %v", behind, err)
	}
	if again := w.publish(p); again.CID != first.CID {
		t.Errorf("another release for nothing: %+v", again)
	}
	s, err := p.Status(t.Context())
	if err != nil || len(s.Held) != 3 || !s.Due.Equal(dayZero.Add(60*time.Hour)) || s.Next == "build" {
		t.Errorf("status %+v, %v", s, err)
	}
	w.clock.add(12*time.Hour - time.Second)
	if behind, err := p.Behind(); err != nil || behind {
		t.Errorf("behind a second too early: %v, %v", behind, err)
	}
	w.clock.add(time.Second)
	if s, err := p.Status(t.Context()); err != nil || s.Next != "build" || !s.Behind {
		t.Errorf("due, and next is %s, %v", s.Next, err)
	}
	if _, found, text := w.check(p); len(found) > 0 {
		t.Errorf("what is due is no fault: %s", text)
	}
	if r := w.publish(p); r.Packages != 2 || r.Number != 2 || latest() != "1.1.0" {
		t.Errorf("%+v", r)
	}
	w.clock.add(12 * time.Hour)
	if r := w.publish(p); r.Packages != 2 || latest() != "1.2.0" || w.holds(p) != "never@1.0.0 min-age" {
		t.Errorf("%+v, held %s", r, w.holds(p))
	}
	if next, err := p.o.Index.NextDue(); err != nil || !next.IsZero() {
		t.Errorf("next due %v, %v", next, err)
	}
}

// Run does not sleep past the hour at which a version comes of age.
func TestRunComesOfAge(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.ledger.seen("left-pad", 0)
	p, stop := w.start(by(t, policy.Rules{MinAge: "1d"}))
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	runs := 0
	err := p.Run(ctx, 0, func(r Result, err error) {
		if err != nil {
			t.Error(err)
		}
		if runs++; runs == 1 {
			w.clock.add(24 * time.Hour)
			return
		}
		if r.Packages != 1 {
			t.Errorf("run %d: %+v", runs, r)
		}
		cancel()
	})
	if !errors.Is(err, ctx.Err()) || runs != 2 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

// What the index notes of the policy is held to what that gives.
func TestCheckHeld(t *testing.T) {
	for what, held := range map[string]index.Held{
		"":                   {Name: "other"},
		"withheld left-pad":  {Name: "left-pad"},
		"withheld right-pad": {Name: "right-pad", Note: []byte("[]")},
		"withheld unknown":   {Name: "unknown", Due: dayZero.Add(100 * time.Hour)},
	} {
		w := newWorld(t)
		w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
		w.ledger.hold(t, "right-pad", []string{"1.0.0"}, "1.0.0")
		p, stop := w.start(by(t, policy.Rules{Except: []string{"left-pad"}}))
		w.publish(p)
		cursor, err := p.cursor()
		c, err2 := p.curation()
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		b := p.batch(cursor, made{}, c)
		b.Held = []index.Held{held}
		if _, _, err := p.o.Index.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, _, text := w.check(p); text != what {
			t.Errorf("%+v: %q, want %q", held, text, what)
		}
		stop()
	}
}

// What only does not take is not even read, and not noted.
func TestOnly(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "@acme/one", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "@acme/bad", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "lodash", []string{"3.0.0", "4.0.0"}, "3.0.0", "4.0.0")
	w.ledger.hold(t, "express", []string{"4.0.0"}, "4.0.0")
	p, stop := w.start(by(t, policy.Rules{Only: []string{"@acme/*", "lodash@4"}, Except: []string{"@acme/bad"}}))
	defer stop()
	r := w.publish(p)
	if got := w.lists(p); got != "@acme/one lodash" || w.holds(p) != "@acme/bad@1.0.0 except, lodash@3.0.0 only" || r.Versions != 2 || len(r.Withheld) > 0 {
		t.Errorf("listed %s, held %s, %+v", got, w.holds(p), r)
	}
	if _, found, text := w.check(p); len(found) > 0 {
		t.Errorf("check: %s", text)
	}
}

// Signatures are the ledger's verdicts.
func TestRequireSignatures(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	pkg := w.ledger.packages["left-pad"]
	pkg.Versions[0].Signature = string(npm.Verified)
	w.ledger.set(pkg)
	p, stop := w.start(by(t, policy.Rules{Signatures: "require"}))
	defer stop()
	if r := w.publish(p); r.Versions != 1 || w.holds(p) != "left-pad@1.1.0 signatures" {
		t.Errorf("%+v, held %s", r, w.holds(p))
	}
}

// A list that never had a policy is made as before there were any: nothing of one is
// in the index or the release.
func TestNoPolicy(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	plain := w.publish(p)
	if mark, err := p.o.Index.Mark(); err != nil || mark != "" || plain.Release.Policy != "" {
		t.Errorf("mark %q, policy %q, %v", mark, plain.Release.Policy, err)
	}
	stop()
	p, stop = w.start(by(t, policy.Rules{}))
	defer stop()
	if again := w.publish(p); again.CID != plain.CID {
		t.Errorf("an empty policy makes another release: %+v", again)
	}
}

// A run that was given no policy keeps to the list's; an empty one takes it away.
func TestPolicyStays(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "right-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start(by(t, policy.Rules{Except: []string{"left-pad"}}))
	first := w.publish(p)
	stop()
	p, stop = w.start()
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.1.0")
	if r := w.publish(p); w.lists(p) != "right-pad" || r.CID != first.CID {
		t.Errorf("listed %s, %+v", w.lists(p), r)
	}
	stop()
	p, stop = w.start(by(t, policy.Rules{}))
	defer stop()
	if r := w.publish(p); w.lists(p) != "left-pad right-pad" || r.Release.Policy != "" || w.holds(p) != "" {
		t.Errorf("listed %s, policy %q", w.lists(p), r.Release.Policy)
	}
	if _, err := p.Rollback(t.Context(), first.Number); !errors.Is(err, ErrPolicy) {
		t.Errorf("rollback to another policy: %v", err)
	}
}

// Another policy builds again what it touches, and nothing else; where power is cut
// between any two steps, the next run goes on where it was.
func TestPolicyChanges(t *testing.T) {
	before, after := policy.Rules{Except: []string{"package-1", "package-2"}}, policy.Rules{Except: []string{"package-2", "package-4@1.1.0"}, MinAge: "1h"}
	begin := func(t *testing.T) *world {
		w := newWorld(t)
		for i := range 6 {
			name := fmt.Sprint("package-", i)
			w.ledger.hold(t, name, []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
			w.ledger.seen(name, 0)
		}
		w.clock.add(time.Hour)
		p, stop := w.start(by(t, before))
		w.publish(p)
		stop()
		return w
	}
	w := begin(t)
	want := w.fromNothing(by(t, after))
	p, stop := w.start(by(t, after))
	p.pageSize = 2
	var steps []string
	p.fault = func(step string) error { steps = append(steps, step); return nil }
	seen := Progress{}
	p.o.Progress = func(g Progress) { seen = g }
	if r := w.publish(p); r.Release.List != want || r.Number != 2 || seen != (Progress{Done: 2, Total: 2}) {
		t.Errorf("%+v, built %+v", r, seen)
	}
	if mark, err := p.o.Index.Mark(); err != nil || strings.Contains(mark, "from") {
		t.Errorf("mark %s, %v", mark, err)
	}
	stop()
	for i, step := range steps {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %s back=%v", i, step, back), func(t *testing.T) {
				w := begin(t)
				p, stop := w.start(by(t, after))
				p.pageSize = 2
				n := 0
				var cut *world
				p.fault = func(string) error {
					if n++; n == i+1 {
						cut = w.powerCut(0)
						return errCrash
					}
					return nil
				}
				if _, err := p.Publish(t.Context()); !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
				stop()
				w = cut
				w.t = t
				p, stop = w.start() // it goes on, whatever it is given
				if _, found, text := w.check(p); len(found) > 0 {
					t.Errorf("on its way: %s", text)
				}
				stop()
				now := after
				if back {
					now = before
				}
				p, stop = w.start(by(t, now))
				defer stop()
				if r, want := w.publish(p), w.fromNothing(by(t, now)); r.Release.List != want {
					t.Errorf("list %v, want %v", r.Release.List, want)
				}
				if _, found, text := w.check(p); len(found) > 0 {
					t.Errorf("%s", text)
				}
			})
		}
	}
}

// A package that was rolled back is not brought back by time, and is by a policy that
// touches it.
func TestPolicyAndRollback(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.ledger.seen("left-pad", 0)
	w.clock.add(24 * time.Hour)
	p, stop := w.start(by(t, policy.Rules{MinAge: "12h"}))
	first := w.publish(p)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0", "1.2.0"}, "1.0.0", "1.1.0", "1.2.0")
	w.ledger.seen("left-pad", 0, 12, 24)
	second := w.publish(p)
	if second.Versions != 2 {
		t.Fatalf("%+v", second)
	}
	back := w.rollback(p, first.Number)
	w.clock.add(24 * time.Hour) // 1.2.0 is of age
	if r := w.publish(p); r.Release.List != first.Release.List || r.CID != back.CID {
		t.Errorf("time undid the rollback: %+v", r)
	}
	if behind, err := p.Behind(); err != nil || behind {
		t.Errorf("behind: %v, %v", behind, err)
	}
	if _, found, text := w.check(p); len(found) > 0 {
		t.Errorf("%s", text)
	}
	for _, rules := range []policy.Rules{{MinAge: "12h", Except: []string{"other"}}, {MinAge: "12h"}} { // there and back
		stop()
		p, stop = w.start(by(t, rules))
		w.publish(p)
	}
	w.rollback(p, second.Number)
	w.clock.add(24 * time.Hour)
	if r := w.publish(p); r.Versions != 3 {
		t.Errorf("once undone, it comes of age: %+v", r)
	}
	w.rollback(p, first.Number)
	stop()
	p, stop = w.start(by(t, policy.Rules{MinAge: "12h", Except: []string{"other"}}))
	if r := w.publish(p); r.Release.List != first.Release.List {
		t.Errorf("a policy that does not touch it undid the rollback: %+v", r)
	}
	stop()
	p, stop = w.start(by(t, policy.Rules{Except: []string{"left-pad@1.1.0"}}))
	defer stop()
	if r := w.publish(p); r.Versions != 2 || w.holds(p) != "left-pad@1.1.0 except" {
		t.Errorf("%+v, %s", r, w.holds(p))
	}
}

// Whatever happens, the list is the one that a build from nothing gives under the same
// policy at the same time, and check finds nothing.
func TestRandomPolicies(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			w := newWorld(t)
			names := []string{"@acme/a", "@acme/b", "lodash", "express", "left-pad", "@types/node"}
			all := []string{"1.0.0", "1.1.0-rc.1", "1.1.0", "2.0.0"}
			some := func(from []string) (picked []string) {
				for _, s := range from {
					if rng.IntN(2) == 0 {
						picked = append(picked, s)
					}
				}
				return picked
			}
			patterns := []string{"@acme/*", "lodash@1", "express", "left-pad@<2", "@*/*", "*@>=1.1", "@types/node@2.0.0"}
			rules := policy.Rules{}
			for range 25 {
				switch rng.IntN(5) {
				case 0, 1:
					name := names[rng.IntN(len(names))]
					w.ledger.hold(t, name, all, some(all)...)
					pkg := w.ledger.packages[npm.Name(name)]
					pkg.Deleted = rng.IntN(6) == 0
					for i := range pkg.Versions {
						pkg.Versions[i].FirstSeen = w.clock.Now().Add(-time.Duration(rng.IntN(100)) * time.Hour)
						if pkg.Versions[i].Signature = string(npm.Unsigned); rng.IntN(2) == 0 {
							pkg.Versions[i].Signature = string(npm.Verified)
						}
					}
					w.ledger.packages[npm.Name(name)] = pkg
				case 2:
					w.clock.add(time.Duration(rng.IntN(60)) * time.Hour)
				case 3:
					rules = policy.Rules{}
					if rng.IntN(2) == 0 {
						rules.Only = some(patterns)
					}
					if rng.IntN(2) == 0 {
						rules.Except = some(patterns)
					}
					if rng.IntN(3) == 0 {
						rules.Signatures = "require"
					}
					if rng.IntN(2) == 0 {
						rules.MinAge, rules.MinAgeExcept = fmt.Sprintf("%dh", 1+rng.IntN(80)), some(patterns)
					}
				}
				p, stop := w.start(by(t, rules))
				p.pageSize = 1 + rng.IntN(4)
				if rng.IntN(3) == 0 { // cut short somewhere
					left := rng.IntN(8)
					var cut *world
					p.fault = func(string) error {
						if left--; left < 0 {
							cut = w.powerCut(uint64(left + 9))
							return errCrash
						}
						return nil
					}
					if _, _, err := p.Build(t.Context()); err != nil && !errors.Is(err, errCrash) {
						t.Fatal(err)
					}
					if stop(); cut != nil {
						w = cut
					}
					continue
				}
				got, want := w.build(p), w.fromNothing(by(t, rules))
				if got.List != want {
					t.Fatalf("under %+v the list has %s, from nothing it is another", rules, w.lists(p))
				}
				if _, found, text := w.check(p); len(found) > 0 {
					t.Errorf("under %+v: %s", rules, text)
				}
				stop()
			}
		})
	}
}

// BenchmarkPolicyChanges has a list follow a policy that touches nothing of it, by a
// true ledger of five versions a package: what looking at each costs.
func BenchmarkPolicyChanges(b *testing.B) {
	const packages = 20_000
	w := newWorld(b)
	store, err := ledger.Create("ledger", ledger.Options{FS: vfs.NewMem()})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	w.ledger.hold(b, "left-pad", []string{"1.0.0"}, "1.0.0")
	one := w.ledger.packages["left-pad"].Versions[0]
	for from := 0; from < packages; from += 1000 {
		var batch ledger.Batch
		for i := range 1000 {
			u := ledger.PackageUpdate{Name: npm.Name(fmt.Sprint("package-", from+i)), Document: w.ledger.packages["left-pad"].Document, Listed: 5}
			for v := range 5 {
				one.Version = fmt.Sprintf("%d.0.0", v)
				one.File, one.Integrity, one.FirstSeen = fmt.Sprintf("package-%d.tgz", v), fmt.Sprint("sha512-", v), dayZero
				u.Versions = append(u.Versions, one)
			}
			batch.Packages = append(batch.Packages, u)
		}
		if _, err := store.Commit(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	to := func(rules policy.Rules) {
		p, stop := w.start(by(b, rules), func(o *Options) { o.Ledger = store })
		defer stop()
		w.build(p)
	}
	to(policy.Rules{Only: []string{"none"}})
	for i := 0; b.Loop(); i++ {
		to(policy.Rules{Except: []string{"package-*"}, Signatures: []string{"require", "prefer"}[i%2]})
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/packages*1e6, "µs/package")
}

// An index that begins anew does not list what the release before kept out because no
// policy is configured; to be without one has to be said.
func TestPolicyIsNotLost(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	rules := by(t, policy.Rules{Except: []string{"left-pad@1.1.0"}})
	p, stop := w.start(rules)
	list := w.publish(p).Release.List
	stop()
	if err := w.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	p, stop = w.start()
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrPolicyLost) || !strings.Contains(err.Error(), "careful") {
		t.Errorf("none is configured: %v", err)
	}
	stop()
	p, stop = w.start(rules)
	if r := w.publish(p); r.Release.List != list || r.Number != 2 {
		t.Errorf("with it: %+v", r)
	}
	stop()
	if err := w.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	p, stop = w.start(by(t, policy.Rules{}))
	defer stop()
	if r := w.publish(p); r.Versions != 2 {
		t.Errorf("with an empty one: %+v", r)
	}
}
