package publish

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// past gives a registry three releases: leaf has another version in each, twig
// comes in the second, branch goes in the third.
func past(t *testing.T, w *world, p *Publisher) (releases []Result) {
	t.Helper()
	w.ledger.hold(t, "leaf", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "branch", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "stays", []string{"1.0.0"}, "1.0.0")
	releases = append(releases, w.publish(p))
	w.ledger.hold(t, "leaf", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	w.ledger.hold(t, "@scope/twig", []string{"1.0.0"}, "1.0.0")
	releases = append(releases, w.publish(p))
	w.ledger.hold(t, "leaf", []string{"1.1.0", "2.0.0"}, "1.1.0", "2.0.0")
	branch := w.ledger.packages["branch"]
	branch.Deleted = true
	w.ledger.set(branch)
	return append(releases, w.publish(p))
}

func (w *world) rollback(p *Publisher, number uint64) Result {
	w.t.Helper()
	r, err := p.Rollback(w.t.Context(), number)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// notes says what is noted as rolled back.
func (w *world) notes(p *Publisher) string {
	w.t.Helper()
	withheld, err := p.Withheld()
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, x := range withheld {
		if x.Reason == RolledBackReason {
			all = append(all, fmt.Sprintf("%s %s", x.Name, x.Detail))
		}
	}
	return strings.Join(all, ", ")
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	mirror := reader{w: w}
	var log bytes.Buffer
	p, stop := w.start(func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	defer stop()
	before := past(t, w, p)
	mirror.accepts()
	w.node.collect(t, w.ledger) // but for what is pinned and what the follower holds
	w.ledger.mu.Lock()
	leaf := w.ledger.packages["leaf"]
	w.ledger.mu.Unlock()

	// The node has lost the documents of leaf's first version.
	indexHead, ops := before[2].Release, w.ops()
	_, err := p.Rollback(t.Context(), 1)
	if !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "leaf") || strings.Contains(err.Error(), "stays") {
		t.Errorf("content is gone: %v", err)
	}
	if head, err := p.o.Index.Head(); err != nil || head.Root != indexHead.Root || w.ops() != ops || w.notes(p) != "" {
		t.Errorf("something was changed: %+v, %v, %s, %s", head, err, w.ops(), w.notes(p))
	}
	if _, err := p.Rollback(t.Context(), 9); !errors.Is(err, index.ErrNoRelease) {
		t.Errorf("no such release: %v", err)
	}

	// It has them again, as a backup would bring them; the directories are pushed.
	for _, v := range [][]string{{"1.0.0"}, {"1.0.0", "1.1.0"}} {
		w.again(t, "leaf", v)
	}
	w.again(t, "branch", []string{"1.0.0"})
	sources, err := p.o.Index.Sources()
	if err != nil {
		t.Fatal(err)
	}
	back := w.rollback(p, 1)
	if back.Number != 4 || back.Release.List != before[0].Release.List || back.Sequence != 4 || !back.Signed ||
		back.Packages != 3 || back.Versions != 3 || *back.RolledBack != (RolledBack{To: 1, Put: 2, Removed: 1}) {
		t.Errorf("%+v %+v", back, back.RolledBack)
	}
	if got := mirror.accepts(); got.List != before[0].Release.List {
		t.Errorf("a mirror has %v", got.List)
	}
	if now, err := p.o.Index.Sources(); err != nil || fmt.Sprint(now) != fmt.Sprint(sources) {
		t.Errorf("sources %v, %v; want %v", now, err, sources)
	}
	if err := p.o.Index.Check(t.Context()); err != nil {
		t.Error(err)
	}
	// A bare gateway shows what it did then.
	for _, name := range []npm.Name{"leaf", "branch", "stays"} {
		was, err := index.ReadEntry(t.Context(), p.o.Index, before[0].Release, name)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.o.Index.Entry(name); err != nil || e != was {
			t.Errorf("%s: %+v, %v; want %+v", name, e, err, was)
		}
	}
	if got := w.notes(p); got != "@scope/twig not in release 1, branch as in release 1, leaf as in release 1" {
		t.Errorf("noted: %s", got)
	}
	for name, want := range map[npm.Name]string{"@scope/twig": "not in release 1", "leaf": "as in release 1", "stays": ""} {
		if note, ok, err := p.RolledBack(name); err != nil || ok != (want != "") || note.Detail != want {
			t.Errorf("%s: %+v, %t, %v; want %q", name, note, ok, err, want)
		}
	}

	// Nothing undoes it: not the next publish, nor a change elsewhere, nor a
	// restart.
	if again := w.publish(p); again.CID != back.CID || again.Signed {
		t.Errorf("again: %+v", again)
	}
	w.ledger.hold(t, "other", []string{"1.0.0"}, "1.0.0")
	stop()
	p, stop = w.start(func(o *Options) { o.Log = p.o.Log })
	defer stop()
	next := w.publish(p)
	if got := w.standing(p); !strings.HasPrefix(got, "branch leaf other stays |") || next.Number != 5 || next.Versions != 4 {
		t.Errorf("%s, %+v", got, next)
	}
	if log.Len() > 0 {
		t.Errorf("warned: %s", log.String())
	}

	// What changes upstream moves on, and is said to.
	leaf.Versions = leaf.Versions[1:]
	w.ledger.set(leaf)
	w.publish(p)
	if e, err := p.o.Index.Entry("leaf"); err != nil || e.Versions != 1 {
		t.Errorf("leaf: %+v, %v", e, err)
	}
	if got := w.notes(p); got != "@scope/twig not in release 1, branch as in release 1" {
		t.Errorf("noted: %s", got)
	}
	if _, ok, err := p.RolledBack("leaf"); err != nil || ok {
		t.Errorf("leaf is rolled back still: %t, %v", ok, err)
	}
	if !strings.Contains(log.String(), "no longer rolled back") || !strings.Contains(log.String(), "package=leaf") {
		t.Errorf("log: %s", log.String())
	}
	mirror.accepts()
}

// again puts what the node has lost of a package back, but for its directories.
func (w *world) again(t *testing.T, name string, versions []string) {
	t.Helper()
	w.ledger.mu.Lock()
	was, head := w.ledger.packages[npm.Name(name)], w.ledger.head
	w.ledger.mu.Unlock()
	w.ledger.hold(t, name, versions, versions...)
	// In an index of its own, whose blocks are the node's.
	other := *w
	other.disk = w.powerCut(0).disk
	if err := other.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	p, stop := other.start()
	if _, _, err := p.Build(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	w.ledger.packages[npm.Name(name)], w.ledger.head = was, head
}

// Back, and back again to where it was: then nothing is rolled back any more.
func TestRollbackUndone(t *testing.T) {
	w := newWorld(t)
	mirror := reader{w: w}
	p, stop := w.start()
	defer stop()
	before := past(t, w, p)
	w.rollback(p, 2)
	if got := w.notes(p); got != "branch as in release 2, leaf as in release 2" {
		t.Errorf("noted: %s", got)
	}
	mirror.accepts()
	w.rollback(p, 1)
	if got := w.notes(p); got != "@scope/twig not in release 1, branch as in release 2, leaf as in release 1" {
		t.Errorf("noted: %s", got)
	}
	mirror.accepts()
	undone := w.rollback(p, 3)
	if undone.Number != 6 || undone.Release.List != before[2].Release.List || len(undone.Withheld) != 0 || w.notes(p) != "" {
		t.Errorf("%+v, noted: %s", undone, w.notes(p))
	}
	mirror.accepts()

	// The list that stands is published as it is.
	same := w.rollback(p, 3)
	if same.Number != 6 || same.Signed || *same.RolledBack != (RolledBack{To: 3}) {
		t.Errorf("%+v", same)
	}
	if err := p.o.Index.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// A name in the place of another's hash comes back by a rollback, and neither is
// taken for one that waits.
func TestRollbackCollision(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.ledger.hold(t, collideFirst, []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	first := w.ledger.packages[collideFirst]
	gone := first
	gone.Deleted = true
	w.ledger.set(gone)
	w.ledger.hold(t, collideLater, []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	w.ledger.set(first)
	if w.publish(p); w.standing(p) != collideLater+" | "+collideFirst+":hash-collision" {
		t.Fatal(w.standing(p))
	}
	w.rollback(p, 1)
	want := collideFirst + " | " + collideLater + ":rolled-back " + collideFirst + ":rolled-back"
	if got := w.standing(p); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	w.ledger.hold(t, "other", []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	if got := w.standing(p); got != strings.Replace(want, collideFirst+" |", "other "+collideFirst+" |", 1) {
		t.Errorf("after a change elsewhere: %s", got)
	}
}

// Entries that are in no release yet are not rolled back in passing.
func TestRollbackUnderWay(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	past(t, w, p)
	w.ledger.hold(t, "a", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "b", []string{"1.0.0"}, "1.0.0")
	p.pageSize = 1
	p.fault = func(step string) error {
		if step == "page applied" {
			return errCrash
		}
		return nil
	}
	if _, err := p.Publish(t.Context()); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	p.fault = nil
	if _, err := p.Rollback(t.Context(), 1); !errors.Is(err, ErrUnderWay) {
		t.Errorf("got %v", err)
	}
	w.publish(p)
	w.rollback(p, 1)
}

// Power is cut between every two durable steps of a rollback. Afterwards it is done
// or not done at all, as its notes say, and can be done again.
func TestRollbackPowerCuts(t *testing.T) {
	var steps []string
	func() {
		w := newWorld(t)
		p, stop := w.start()
		defer stop()
		past(t, w, p)
		p.fault = func(step string) error { steps = append(steps, step); return nil }
		w.rollback(p, 1)
	}()
	for _, want := range []string{"old content durable", "rollback noted", "rolled back", "pushed", "pinned synced", "intent synced", "confirmed synced"} {
		if !strings.Contains("|"+strings.Join(steps, "|")+"|", "|"+want+"|") {
			t.Errorf("step %q was not passed", want)
		}
	}
	const all = "@scope/twig not in release 1, branch as in release 1, leaf as in release 1"
	for i, step := range steps {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %s again=%v", i, step, again), func(t *testing.T) {
				w := newWorld(t)
				p, stop := w.start()
				before := past(t, w, p)
				n := 0
				var after *world
				p.fault = func(string) error {
					if n++; n == i+1 {
						after = w.powerCut(uint64(i % 3))
						return errCrash
					}
					return nil
				}
				if _, err := p.Rollback(t.Context(), 1); !errors.Is(err, errCrash) {
					t.Fatalf("got %v", err)
				}
				stop()

				w = after
				w.t = t
				p, stop = w.start()
				defer stop()
				var r Result
				if again {
					r = w.rollback(p, 1)
				} else {
					r = w.publish(p)
				}
				want, notes := before[0], all
				if !again && r.Number == 3 {
					want, notes = before[2], ""
				}
				if r.Release.List != want.Release.List || w.notes(p) != notes {
					t.Errorf("release %d has %v, noted: %s", r.Number, r.Release.List, w.notes(p))
				}
				if got := w.best(); got.Value != r.CID || got.Sequence != r.Sequence {
					t.Errorf("the name is %+v", got)
				}
				if settled := w.publish(p); settled.Signed || settled.CID != r.CID || w.notes(p) != notes {
					t.Errorf("again: %+v, noted: %s", settled, w.notes(p))
				}
				for seq, values := range w.node.puts {
					if len(values) != 1 {
						t.Errorf("sequence %d was put as %v", seq, values)
					}
				}
			})
		}
	}
}
