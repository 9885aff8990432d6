package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// age publishes n releases, one every ten minutes.
func age(w *world, p *Publisher, n int) (all []index.Release) {
	w.t.Helper()
	for range n {
		w.clock.add(10 * time.Minute)
		i := int(w.ledger.Head())
		w.ledger.hold(w.t, fmt.Sprintf("p%d", i%7), []string{"1.0.0", fmt.Sprintf("1.%d.0", 1+i)}, "1.0.0", fmt.Sprintf("1.%d.0", 1+i))
		all = append(all, w.publish(p).Release)
	}
	return all
}

// stand holds the world to releases that stay, all that they have, and pins of
// just these; and to lists that can be told of all.
func stand(w *world, p *Publisher, all []index.Release, lists map[uint64]map[npm.Name]cid.Cid, keep uint64) {
	w.t.Helper()
	if oldest, err := p.o.Index.Oldest(); err != nil || oldest != keep {
		w.t.Errorf("the oldest release is %d, %v, want %d", oldest, err, keep)
	}
	var want []string
	for _, r := range all {
		got := map[npm.Name]cid.Cid{}
		for e, err := range p.o.Index.ListAt(w.t.Context(), r.Number, w.node) {
			if err != nil {
				w.t.Fatal(err)
			}
			got[e.Name] = e.CID
		}
		if !maps.Equal(got, lists[r.Number]) {
			w.t.Errorf("release %d: %v, want %v", r.Number, got, lists[r.Number])
		}
		if r.Number < keep {
			continue
		}
		want = append(want, r.Root.String())
		for _, err := range unixfs.Beyond(w.t.Context(), kept{p.o.Index, w.node}, cid.Undef, r.Root) {
			if err != nil {
				w.t.Errorf("release %d: %v", r.Number, err)
			}
		}
	}
	var pins []string
	for _, c := range w.node.pins["registry-mirror/main"] {
		pins = append(pins, c.String())
	}
	slices.Sort(pins)
	slices.Sort(want)
	if !slices.Equal(pins, want) {
		w.t.Errorf("%d pins %v, want %d", len(pins), pins, len(want))
	}
}

func listsOf(w *world, p *Publisher, all []index.Release) map[uint64]map[npm.Name]cid.Cid {
	w.t.Helper()
	lists := map[uint64]map[npm.Name]cid.Cid{}
	for _, r := range all {
		lists[r.Number] = map[npm.Name]cid.Cid{}
		for d, err := range index.Diff(w.t.Context(), p.o.Index, index.List{}, r.List) {
			if err != nil {
				w.t.Fatal(err)
			}
			lists[r.Number][d.New.Name] = d.New.CID
		}
	}
	return lists
}

func retain(d time.Duration) func(*Options) { return func(o *Options) { o.Retain = d } }

// TestCollect lets releases grow old, loses power in every step of their
// collection, and collects again.
func TestCollect(t *testing.T) {
	steps := []string{"index collected", "unpinned", ""}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			p, stop := w.start(retain(3 * time.Hour))
			defer func() { stop() }()
			all := age(w, p, 12)
			if due, err := p.collectIsDue(t.Context()); err != nil || due {
				t.Errorf("due after two hours: %v, %v", due, err)
			}
			all = append(all, age(w, p, 28)...)
			lists := listsOf(w, p, all)
			if due, err := p.collectIsDue(t.Context()); err != nil || !due {
				t.Errorf("due after seven hours: %v, %v", due, err)
			}
			// Three hours back another release began to be the newest.
			keep := uint64(40 - 18)
			passed := 0
			p.fault = func(at string) error {
				if passed++; at == step && passed > 3 || at == step && at == steps[0] {
					return errPower
				}
				return nil
			}
			c, err := p.Collect(t.Context())
			if step == "" {
				if err != nil || c.Unpinned != 21 || c.Blocks == 0 {
					t.Errorf("%+v, %v", c, err)
				}
			} else {
				if !errors.Is(err, errPower) {
					t.Fatalf("%v", err)
				}
				stop()
				w = w.powerCut(1)
				p, stop = w.start(retain(3 * time.Hour))
				if _, err := p.Collect(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			stand(w, p, all, lists, keep)
			if due, err := p.collectIsDue(t.Context()); err != nil || due {
				t.Errorf("due again: %v, %v", due, err)
			}
			more := age(w, p, 2)
			maps.Copy(lists, listsOf(w, p, more))
			stand(w, p, append(all, more...), lists, keep)
		})
	}
}

var errPower = errors.New("power cut")

// TestCollectSparesWhatReadersNeed has all releases be old: those that readers
// may be sent to stay, and with a clock gone wrong the newest few.
func TestCollectSparesWhatReadersNeed(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start(retain(time.Hour))
	defer stop()
	all := age(w, p, 20)
	w.node.set(func() { w.node.failPin = func() error { return ipfs.ErrAway } })
	for i := range 10 { // built and never published
		w.ledger.hold(t, fmt.Sprintf("q%d", i), []string{"1.0.0"}, "1.0.0")
		if _, err := p.Publish(t.Context()); !errors.Is(err, ErrIncomplete) {
			t.Fatal(err)
		}
		r, err := p.o.Index.Head()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	w.node.set(func() { w.node.failPin = nil })
	w.clock.add(30 * 24 * time.Hour)
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if oldest, err := p.o.Index.Oldest(); err != nil || oldest != 20 {
		t.Errorf("the oldest release is %d, %v", oldest, err)
	}
	if pins := w.node.pins["registry-mirror/main"]; !slices.Equal(pins, []cid.Cid{all[19].Root}) {
		t.Errorf("pinned: %v", pins)
	}
	w.publish(p)
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if oldest, err := p.o.Index.Oldest(); err != nil || oldest != 30-minRetained+1 {
		t.Errorf("the oldest release is %d, %v", oldest, err)
	}
	// For ever, and without a journal, nothing that a release has goes.
	stop()
	w.clock.add(30 * 24 * time.Hour)
	for _, change := range []func(*Options){retain(0), func(o *Options) { o.Retain, o.Journal = time.Hour, "state/none" }} {
		p, stop = w.start(change)
		age(w, p, 0)
		if c, err := p.Collect(t.Context()); err != nil || c.Oldest != 30-minRetained+1 || c.Unpinned != 0 {
			t.Errorf("%+v, %v", c, err)
		}
		stop()
	}
}

// TestCollectKeepsSnapshots has months go by in a list that is long enough for
// snapshots: one of each is pinned in the node.
func TestCollectKeepsSnapshots(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start(retain(time.Hour))
	defer stop()
	for i := range 1000 {
		w.ledger.hold(t, fmt.Sprintf("p%d", i), []string{"1.0.0"}, "1.0.0")
	}
	w.publish(p)
	for month := range 3 {
		for round := range 6 {
			for i := range 60 {
				w.ledger.hold(t, fmt.Sprintf("q%d-%d-%d", month, round, i), []string{"1.0.0"}, "1.0.0")
			}
			w.publish(p)
			w.clock.add(5 * 24 * time.Hour)
		}
	}
	age(w, p, minRetained)
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := p.o.Index.Snapshots(t.Context())
	if err != nil || len(all) < 3 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	var want []cid.Cid
	for _, s := range all {
		want = append(want, s.File.CID)
	}
	if pins := w.node.pins["registry-mirror/main/snapshots"]; !slices.Equal(pins, want) {
		t.Errorf("pinned: %v, want %v", pins, want)
	}
	// What is pinned stays so; what the node lost stops nothing.
	w.node.set(func() {
		w.node.pins["registry-mirror/main/snapshots"] = want[1:]
		delete(w.node.durable, string(want[0].Hash()))
	})
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRunCollects has Run collect beside its publishing.
func TestRunCollects(t *testing.T) {
	w := newWorld(t)
	var swept atomic.Int64
	p, stop := w.start(retain(time.Hour), func(o *Options) {
		o.Collecting = func(stage string, _ int) {
			if stage == index.StageSweep {
				swept.Add(1)
			}
		}
	})
	defer stop()
	age(w, p, 30)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, 0, nil) }()
	for swept.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if oldest, err := p.o.Index.Oldest(); err != nil || oldest < 20 {
		t.Errorf("the oldest release is %d, %v", oldest, err)
	}
}
