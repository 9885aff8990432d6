package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// check is what Check finds, as "what package", sorted.
func (w *world) check(p *Publisher) (Checked, []Found, string) {
	w.t.Helper()
	var sum Checked
	var all []Found
	for f, err := range p.Check(w.t.Context(), &sum, nil) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, f)
	}
	var texts []string
	for _, f := range all {
		texts = append(texts, strings.TrimSpace(f.What+" "+string(f.Package)))
	}
	slices.Sort(texts)
	if sum.Found != len(all) {
		w.t.Errorf("%d found, %d yielded", sum.Found, len(all))
	}
	return sum, all, strings.Join(texts, ", ")
}

// motley is a registry with something of each kind: listed, withheld whole and in
// part, out of the place of another, taken out, and rolled back.
func motley(t *testing.T, change ...func(*Options)) (w *world, p *Publisher, stop func()) {
	w = newWorld(t)
	p, stop = w.start(change...)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0")
	w.ledger.hold(t, "@scope/thing", []string{"2.0.0"}, "2.0.0", "3.0.0") // 3.0.0 is not in the document
	w.ledger.hold(t, collideFirst, []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, collideLater, []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "broken", []string{"1.0.0"}, "1.0.0")
	broken := w.ledger.packages["broken"]
	broken.Document.CID = w.ledger.packages["left-pad"].Versions[0].CID
	w.ledger.set(broken)
	w.ledger.hold(t, "_registry", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "known", []string{"1.0.0"})
	w.ledger.hold(t, "gone", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "leaf", []string{"1.0.0"}, "1.0.0")
	first := w.publish(p)
	gone := w.ledger.packages["gone"]
	gone.Deleted = true
	w.ledger.set(gone)
	w.ledger.hold(t, "leaf", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	w.ledger.hold(t, "twig", []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	w.rollback(p, first.Number)
	return w, p, stop
}

func TestCheckWhole(t *testing.T) {
	w, p, stop := motley(t)
	p.pageSize = 3
	sum, _, got := w.check(p)
	if got != "" || sum.Packages != 10 || sum.Ahead != 0 || sum.Release != 3 || sum.Blocks == 0 {
		t.Errorf("%s, %+v", got, sum)
	}

	// What changed since is the next build's: also where it is another's place.
	w.ledger.hold(t, "leaf", []string{"1.0.0", "1.2.0"}, "1.0.0", "1.2.0")
	w.ledger.hold(t, "new", []string{"1.0.0"}, "1.0.0")
	if sum, _, got := w.check(p); got != "" || sum.Packages != 9 || sum.Ahead != 2 {
		t.Errorf("%s, %+v", got, sum)
	}
	w.publish(p)
	if sum, _, got := w.check(p); got != "" || sum.Packages != 11 || sum.Ahead != 0 || sum.Release != 4 {
		t.Errorf("%s, %+v", got, sum)
	}
	stop()

	// So in another process, and where nothing is there yet.
	p, stop = w.start()
	defer stop()
	if _, _, got := w.check(p); got != "" {
		t.Error(got)
	}
	empty := newWorld(t)
	q, stop2 := empty.start()
	defer stop2()
	if sum, _, got := empty.check(q); got != "" || sum != (Checked{}) {
		t.Errorf("%s, %+v", got, sum)
	}
}

// What a release took back is known also once its directories were collected.
func TestCheckCollected(t *testing.T) {
	w, p, stop := motley(t)
	defer stop()
	w.ledger.hold(t, "new", []string{"1.0.0"}, "1.0.0")
	r := w.publish(p)
	if _, err := p.o.Index.Collect(t.Context(), r.Number, nil); err != nil {
		t.Fatal(err)
	}
	if sum, _, got := w.check(p); got != "" {
		t.Errorf("%s, %+v", got, sum)
	}
	e, err := p.o.Index.Entry("left-pad")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []npm.Name{"leaf", "twig"} {
		e.Name = name
		w.apply(p, index.Change{Entry: e})
	}
	if _, all, got := w.check(p); got != "extra twig, other leaf" {
		t.Errorf("%s: %+v", got, all)
	}
}

// apply moves the list behind the publisher's back.
func (w *world) apply(p *Publisher, changes ...index.Change) {
	w.t.Helper()
	cursor, err := p.cursor()
	if err != nil {
		w.t.Fatal(err)
	}
	b := p.batch(cursor, made{}, curation{})
	b.Changes = changes
	if _, _, err := p.o.Index.Apply(w.t.Context(), b); err != nil {
		w.t.Fatal(err)
	}
}

// Whatever is otherwise than the ledger gives is found, and nothing beside it.
func TestCheckFinds(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(w *world, p *Publisher, entry func(npm.Name) index.Entry)
		want  string
	}{
		"another CID": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.CID = entry("@scope/thing").CID
			w.apply(p, index.Change{Entry: e})
		}, "other left-pad"},
		"another Tsize": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Tsize++
			w.apply(p, index.Change{Entry: e})
		}, "other left-pad"},
		"other versions": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Versions++
			w.apply(p, index.Change{Entry: e})
		}, "other left-pad"},
		"another gateway directory": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Gateway = entry("@scope/thing").Gateway
			w.apply(p, index.Change{Entry: e})
		}, "other left-pad"},
		"not listed": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.apply(p, index.Change{Entry: index.Entry{Name: "left-pad"}, Delete: true})
		}, "missing left-pad"},
		"a stranger": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Name = "stranger"
			w.apply(p, index.Change{Entry: e})
		}, "extra stranger"},
		"taken out upstream, and listed": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Name = "known"
			w.apply(p, index.Change{Entry: e})
		}, "extra known"},
		"withheld, and listed": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Name = "broken"
			w.apply(p, index.Change{Entry: e})
		}, "extra broken"},
		"rolled back, and not": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Name = "leaf"
			w.apply(p, index.Change{Entry: e})
		}, "other leaf"},
		"taken out by a rollback, and listed": {func(w *world, p *Publisher, entry func(npm.Name) index.Entry) {
			e := entry("left-pad")
			e.Name = "twig"
			w.apply(p, index.Change{Entry: e})
		}, "extra twig"},
		"put back by a rollback, and not listed": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.apply(p, index.Change{Entry: index.Entry{Name: "leaf"}, Delete: true})
		}, "missing leaf"},
		"nothing noted": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.write(p, func([]Withheld) []Withheld { return nil })
		}, // and so what was rolled back is as the ledger does not have it
			"extra gone, missing twig, other leaf, withheld @scope/thing, withheld _registry, withheld broken, withheld " + collideLater},
		"another reason": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.write(p, func(all []Withheld) []Withheld {
				for i := range all {
					if all[i].Name == "broken" {
						all[i].Reason = reasonReserved
					}
				}
				return all
			})
		}, "withheld broken"},
		"another version": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.write(p, func(all []Withheld) []Withheld {
				return append(all, Withheld{Name: "left-pad", Version: "9.9.9", Reason: reasonNoEntry})
			})
		}, "withheld left-pad"},
		"rolled back by no release": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.write(p, func(all []Withheld) []Withheld {
				return append(all, Withheld{Name: "left-pad", Reason: RolledBackReason, Release: 0, Instead: "x"})
			})
		}, "withheld left-pad"},
		"of nobody": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.write(p, func(all []Withheld) []Withheld {
				return append(all, Withheld{Name: "nobody", Reason: reasonDocument})
			})
		}, "withheld nobody"},
		"a place that is free": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.apply(p, index.Change{Entry: index.Entry{Name: collideFirst}, Delete: true})
		}, "missing " + collideLater + ", missing " + collideFirst + ", withheld " + collideLater},
		"an upstream document is gone": {func(w *world, p *Publisher, _ func(npm.Name) index.Entry) {
			w.node.set(func() { delete(w.node.durable, string(w.ledger.packages["left-pad"].Document.CID.Hash())) })
		}, "lost left-pad"},
	} {
		t.Run(what, func(t *testing.T) {
			w, p, stop := motley(t)
			defer stop()
			c.spoil(w, p, func(name npm.Name) index.Entry {
				e, err := p.o.Index.Entry(name)
				if err != nil {
					t.Fatal(err)
				}
				return e
			})
			if _, all, got := w.check(p); got != c.want {
				t.Errorf("%s, want %s: %+v", got, c.want, all)
			}
		})
	}
}

// write changes what is noted as withheld.
func (w *world) write(p *Publisher, f func([]Withheld) []Withheld) {
	w.t.Helper()
	all, err := p.Withheld()
	if err == nil {
		all = f(all)
		slices.SortFunc(all, compareWithheld)
		err = p.writeWithheld(all)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// Every block of the pinned release that is not of a tarball is read from the node:
// of each that is lost, or spoilt, the CID is told, and the package.
func TestCheckLost(t *testing.T) {
	w, p, stop := motley(t)
	defer stop()
	root, tarballs, of := w.best().Value, map[string]bool{}, map[cid.Cid]npm.Name{}
	for _, pkg := range w.ledger.packages {
		for _, v := range pkg.Versions {
			tarballs[string(v.CID.Hash())] = true
		}
	}
	for e, err := range p.o.Index.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range []cid.Cid{e.CID, e.Gateway.CID} {
			for _, b := range w.node.below(t, dir) {
				if of[b.Cid()] != "" && of[b.Cid()] != e.Name {
					t.Fatalf("%s is of two packages", b.Cid())
				}
				of[b.Cid()] = e.Name
			}
		}
	}
	seen := map[npm.Name]int{}
	for _, b := range w.node.below(t, root) {
		hash := string(b.Cid().Hash())
		if tarballs[hash] {
			continue
		}
		name := of[b.Cid()]
		seen[name]++
		for _, spoil := range []bool{false, true} {
			w.node.set(func() {
				if w.node.spoilt[hash] = spoil; !spoil {
					delete(w.node.durable, hash)
				}
			})
			_, all, _ := w.check(p)
			if !slices.ContainsFunc(all, func(f Found) bool {
				return f.What == FoundLost && f.Package == name && f.CID == b.Cid().String()
			}) {
				t.Errorf("%s of %q, spoilt %v: %+v", b.Cid(), name, spoil, all)
			}
			for _, f := range all { // an upstream document is told of twice
				if f.What != FoundLost || f.Package != name {
					t.Errorf("%s of %q, spoilt %v: %+v", b.Cid(), name, spoil, f)
				}
			}
			w.node.set(func() {
				w.node.durable[hash] = b
				delete(w.node.spoilt, hash)
			})
		}
	}
	if seen[""] < 6 || len(seen) != 6 {
		t.Errorf("blocks: %v", seen)
	}
	if _, _, got := w.check(p); got != "" {
		t.Errorf("healed: %s", got)
	}
}

// A damaged file of the index is found, and the other stages go on as far as they can.
func TestCheckCorruptIndex(t *testing.T) {
	w, p, stop := motley(t)
	for i := range 60 { // several blocks of a table
		w.ledger.hold(t, fmt.Sprint("pad-", i), []string{"1.0.0"}, "1.0.0")
	}
	w.publish(p)
	stop()
	_, stop = w.start() // which writes a table of what was logged
	stop()
	names, err := w.disk.List("state/index")
	if err != nil {
		t.Fatal(err)
	}
	table, size := "", int64(0)
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		info, err := w.disk.Stat("state/index/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > size {
			table, size = "state/index/"+name, info.Size()
		}
	}
	f, err := w.disk.OpenReadWrite(table, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), size/2); err != nil { // not what Open reads
		t.Fatal(err)
	}
	f.Close()
	p, stop = w.start()
	defer stop()
	if _, all, _ := w.check(p); len(all) == 0 || all[0].What != FoundCorrupt || !strings.Contains(all[0].Detail, table) {
		t.Errorf("%+v", all)
	}
}

// It can be stopped at any time: by its reader, and by its context.
func TestCheckStopped(t *testing.T) {
	w, p, stop := motley(t)
	defer stop()
	w.write(p, func([]Withheld) []Withheld { return nil })
	var sum Checked
	for _, err := range p.Check(t.Context(), &sum, nil) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	for _, stage := range []string{StagePackages, StageRelease} {
		ctx, cancel := context.WithCancel(t.Context())
		var last error
		for _, err := range p.Check(ctx, &sum, func(s string, _, _ int) {
			if s == stage {
				cancel()
			}
		}) {
			last = err
		}
		if !errors.Is(last, context.Canceled) {
			t.Errorf("%s: %v", stage, last)
		}
		cancel()
	}
	w.publish(p) // and nothing is held
}

// Errors that say nothing of what is checked end it.
func TestCheckErrors(t *testing.T) {
	run := func(p *Publisher) (last error) {
		var sum Checked
		for _, err := range p.Check(t.Context(), &sum, nil) {
			last = err
		}
		return last
	}
	w, p, stop := motley(t)
	defer stop()
	away := errors.New("away")
	w.node.set(func() { w.node.failLocal = func() error { return away } })
	if err := run(p); !errors.Is(err, away) {
		t.Errorf("node away: %v", err)
	}
	w.node.set(func() { w.node.failLocal = nil })
	w.ledger.id = "another"
	if err := run(p); !errors.Is(err, ErrOtherLedger) {
		t.Errorf("another ledger: %v", err)
	}
	w.ledger.id = "ledger-1"
	w.ledger.head = 1
	if err := run(p); !errors.Is(err, ErrLedgerBehind) {
		t.Errorf("ledger behind: %v", err)
	}
}

// A package that changes while it is compared is no difference.
func TestCheckMoving(t *testing.T) {
	w, p, stop := motley(t)
	defer stop()
	o := p.o
	o.Ledger = &moving{memLedger: w.ledger, t: t}
	q := New(o)
	sum, all, got := w.check(q)
	if got != "" || sum.Ahead != 1 {
		t.Errorf("%s, %+v: %+v", got, sum, all)
	}
}

// moving has a package change once, just before it is read.
type moving struct {
	*memLedger
	t     *testing.T
	moved bool
}

func (l *moving) Package(ctx context.Context, name npm.Name) (ledger.Package, error) {
	if name == "left-pad" && !l.moved {
		l.moved = true
		l.hold(l.t, "left-pad", []string{"1.0.0", "1.1.0", "1.2.0"}, "1.0.0", "1.2.0")
	}
	return l.memLedger.Package(ctx, name)
}

func BenchmarkCheck(b *testing.B) {
	w := newWorld(b)
	for i := range 1000 {
		w.ledger.hold(b, fmt.Sprintf("pad-%d", i), []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	}
	p, stop := w.start()
	defer stop()
	w.publish(p)
	for b.Loop() {
		var sum Checked
		for f, err := range p.Check(b.Context(), &sum, nil) {
			b.Fatal(f, err)
		}
	}
}
