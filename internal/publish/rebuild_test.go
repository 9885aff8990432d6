package publish

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// reader is a mirror as far as it accepts releases.
type reader struct {
	w     *world
	state ipnsrecord.State
}

// accepts holds the network's record, and the release behind it, to what was
// accepted before.
func (r *reader) accepts() index.Release {
	r.w.t.Helper()
	record := r.w.best()
	release, err := index.ReadRelease(r.w.t.Context(), r.w.node, record.Value)
	if err != nil {
		r.w.t.Fatal(err)
	}
	state, err := ipnsrecord.Accept(r.state, record)
	if err == nil {
		state, err = ipnsrecord.AcceptRelease(state, ipnsrecord.Release{Root: record.Value, Number: release.Number, Names: release.Names, Next: release.Next})
	}
	if err != nil {
		r.w.t.Fatal(err)
	}
	r.state = state
	return release
}

// forget takes from the node all that the ledger did not put there.
func (n *memNode) forget(l *memLedger) {
	n.set(func() {
		keep := map[string]bool{}
		for _, p := range l.packages {
			keep[string(p.Document.CID.Hash())] = true
			for _, v := range p.Versions {
				keep[string(v.CID.Hash())] = true
			}
		}
		maps.DeleteFunc(n.durable, func(hash string, _ blocks.Block) bool { return !keep[hash] })
	})
}

// The index is lost: built anew, in pages and as one release, it goes on above the
// journal, and all of it reaches the node.
func TestIndexLost(t *testing.T) {
	w := newWorld(t)
	mirror := reader{w: w}
	p, stop := w.start()
	w.ledger.hold(t, "@scope/thing", []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	mirror.accepts()
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	second := w.publish(p)
	mirror.accepts()
	stop()
	if err := w.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	w.node.forget(w.ledger)

	p, stop = w.start()
	p.pageSize = 1
	if s, err := p.Status(t.Context()); err != nil || s.Next != "build" {
		t.Errorf("status: %+v, %v", s, err)
	}
	built := w.build(p)
	if built.Number != 3 || built.List != second.Release.List {
		t.Errorf("built %+v, want the list %v", built, second.Release.List)
	}
	got := w.publish(p)
	if got.Number != 3 || got.Sequence != 3 || got.CID != built.Root {
		t.Errorf("%+v", got)
	}
	mirror.accepts()
	if all, err := releases(t, p); err != nil || len(all) != 1 || all[0].Previous != second.CID {
		t.Errorf("releases: %+v, %v", all, err)
	}
	stop()

	// Once more.
	if err := w.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	p, stop = w.start()
	defer stop()
	if got := w.publish(p); got.Number != 4 || got.Sequence != 4 {
		t.Errorf("%+v", got)
	}
	mirror.accepts()
	if again := w.publish(p); again.Number != 4 || again.Signed {
		t.Errorf("again: %+v", again)
	}
}

func releases(t *testing.T, p *Publisher) (all []index.Release, err error) {
	for r, err := range p.o.Index.Releases(t.Context()) {
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// Without a journal there is no number to go above.
func TestBuildWithoutJournal(t *testing.T) {
	w := newWorld(t)
	if err := w.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	p, stop := w.start()
	defer stop()
	if r := w.build(p); r.Number != 1 {
		t.Errorf("%+v", r)
	}
	if err := replace(w.disk, journalPath, strings.NewReader("damaged\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Build(t.Context()); !errors.Is(err, ErrJournal) {
		t.Errorf("damaged: %v", err)
	}
}

// An old copy of the index is not published as it is, and the next release is
// above the journal's, whether the ledger has moved since the copy or not.
func TestIndexRestored(t *testing.T) {
	for _, moved := range []bool{false, true} {
		w := newWorld(t)
		mirror := reader{w: w}
		p, stop := w.start()
		w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
		w.publish(p)
		mirror.accepts()
		stop()
		backup := w.disk.CrashClone(vfs.CrashCloneCfg{})

		p, stop = w.start(func(o *Options) {
			if !moved {
				o.Peers = nil
			}
		})
		if moved {
			w.ledger.hold(t, "right-pad", []string{"1.0.0"}, "1.0.0")
		}
		second := w.publish(p)
		mirror.accepts()
		stop()
		f, err := w.disk.Open(journalPath)
		if err != nil {
			t.Fatal(err)
		}
		if err := replace(backup, journalPath, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		w.disk = backup

		p, stop = w.start()
		defer stop()
		ops := w.ops()
		if got, err := p.Republish(t.Context()); !errors.Is(err, ErrIndexBehind) || got.Signed || w.ops() != ops {
			t.Errorf("moved %v: %v, journal %s", moved, err, w.ops())
		}
		if s, err := p.Status(t.Context()); err != nil || s.Next != "build" {
			t.Errorf("moved %v: status %+v, %v", moved, s, err)
		}
		got := w.publish(p)
		if got.Number != 3 || got.Sequence != 3 || got.Release.Previous != second.CID {
			t.Errorf("moved %v: %+v", moved, got)
		}
		mirror.accepts()
	}
}

// The node was lost with the index: what the copy has from before is pushed too.
func TestIndexAndNodeRestored(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start(func(o *Options) { o.Peers = nil })
	w.ledger.hold(t, "@scope/thing", []string{"1.0.0"}, "1.0.0")
	first := w.publish(p)
	stop()
	j, err := openJournal(w.disk, journalPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := cid.MustParse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
	err = j.append(line{Op: opPinned, Time: w.clock.Now(), Release: 7, Value: other.String()})
	if err := errors.Join(err, j.close()); err != nil {
		t.Fatal(err)
	}

	indexed := map[string]bool{}
	p, stop = w.start()
	defer stop()
	for b, err := range p.o.Index.Blocks(t.Context(), first.Number-1, first.Number) {
		if err != nil {
			t.Fatal(err)
		}
		indexed[string(b.Cid().Hash())] = true
	}
	w.node.set(func() {
		maps.DeleteFunc(w.node.durable, func(hash string, _ blocks.Block) bool { return indexed[hash] })
	})
	if got := w.publish(p); got.Number != 8 || got.Release.Previous != other {
		t.Errorf("%+v", got)
	}
}

// collect takes from the node what neither the newest release nor the ledger has, as
// a garbage collection does once the others are let go of.
func (n *memNode) collect(t testing.TB, l *memLedger) {
	t.Helper()
	keep := map[string]bool{}
	var mark func(c cid.Cid)
	mark = func(c cid.Cid) {
		b, err := n.Local(t.Context(), c)
		if keep[string(c.Hash())] || err != nil {
			return
		}
		keep[string(c.Hash())] = true
		children, err := unixfs.Children(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, child := range children {
			mark(child)
		}
	}
	for _, roots := range n.pins {
		mark(roots[len(roots)-1])
	}
	for _, p := range l.packages {
		mark(p.Document.CID)
		for _, v := range p.Versions {
			mark(v.CID)
		}
	}
	n.set(func() { maps.DeleteFunc(n.durable, func(hash string, _ blocks.Block) bool { return !keep[hash] }) })
}

// What comes back as it was, after the node has lost it, is pushed again though it
// is not new to the index.
func TestListComesBack(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "@scope/thing", []string{"1.0.0"}, "1.0.0")
	first := w.publish(p)
	thing := w.ledger.packages["@scope/thing"]
	gone := thing
	gone.Deleted = true
	w.ledger.set(gone)
	w.publish(p)
	w.node.collect(t, w.ledger)
	if _, err := w.node.Local(t.Context(), first.Release.List.Root); err == nil {
		t.Fatal("the node has lost nothing")
	}
	w.ledger.set(thing)
	if again := w.publish(p); again.Release.List != first.Release.List {
		t.Errorf("list %v, want %v", again.Release.List, first.Release.List)
	}
}

// A node that lost everything but what the follower stored is given all of the release
// anew, though nothing changed since: what the index has at once, and the documents
// that it lacks for the next run to pin.
func TestLostNode(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "right-pad", []string{"1.0.0"}, "1.0.0")
	stored := maps.Clone(w.node.durable)
	p, stop := w.start()
	defer stop()
	release := w.publish(p).CID
	whole := len(w.node.below(t, release))
	w.node.set(func() {
		w.node.durable = maps.Clone(stored)
		clear(w.node.pins)
	})
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrIncomplete) {
		t.Errorf("the documents are gone: %v", err)
	}
	if r := w.publish(p); r.CID != release {
		t.Errorf("after that: %s, want %s", r.CID, release)
	}
	if got := len(w.node.below(t, release)); got != whole {
		t.Errorf("%d blocks are there again, want %d", got, whole)
	}
}
