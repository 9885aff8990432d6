package follow

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

const small = `
-- app@1.0.0/package.json --
{"dependencies": {"lib": "^1.0.0"}}
-- app@1.1.0/package.json --
{"dependencies": {"lib": "^1.0.0", "@s/deep": "*"}}
-- app@2.0.0/package.json --
{"dependencies": {"lib": "^2.0.0"}}
-- lib@1.0.0/index.js --
1
-- lib@1.2.0/index.js --
12
-- lib@2.0.0/index.js --
2
-- lib@2.1.0-beta/index.js --
21
-- @s/deep@0.1.0/index.js --
deep
-- other@1.0.0/index.js --
other
`

func TestFillSelects(t *testing.T) {
	for _, test := range []struct {
		name  string
		wants []string
		want  []string
	}{
		{"Latest", []string{"app"}, []string{"app@2.0.0", "lib@2.0.0"}},
		{"RangeAndLatest", []string{"app@1"}, []string{"app@1.1.0", "app@2.0.0", "lib@1.2.0", "lib@2.0.0", "@s/deep@0.1.0"}},
		{"OneVersion", []string{"app@1.0.0"}, []string{"app@1.0.0", "app@2.0.0", "lib@1.2.0", "lib@2.0.0"}},
		{"Exact", []string{"app@1.0.0 exact", "lib@1.0.0 exact"}, []string{"app@1.0.0", "lib@1.0.0"}},
		{"ExactBesideOthers", []string{"app@1.0.0 exact", "@s/deep"}, []string{"app@1.0.0", "@s/deep@0.1.0"}},
		{"ExactAndARange", []string{"lib@1.0.0 exact", "lib@1 nodeps"}, []string{"lib@1.0.0", "lib@1.2.0", "lib@2.0.0"}},
		{"NoDeps", []string{"app@1.0.0 nodeps"}, []string{"app@1.0.0", "app@2.0.0"}},
		{"EveryNoDeps", []string{"lib every nodeps"}, []string{"lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta"}},
		{"EveryInRange", []string{"lib@1 every"}, []string{"lib@1.0.0", "lib@1.2.0", "lib@2.0.0"}},
		{"EveryWithDeps", []string{"app every"}, []string{"app@1.0.0", "app@1.1.0", "app@2.0.0", "lib@1.2.0", "lib@2.0.0", "@s/deep@0.1.0"}},
		{"Two", []string{"@s/deep", "other"}, []string{"@s/deep@0.1.0", "other@1.0.0"}},
		{"Nothing", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, small)
			w.add(test.wants...)
			w.expect(test.want...)
			w.expectRefused()
		})
	}
}

// A document of a moment ago is good enough, but not for what it cannot satisfy.
func TestJustPublishedIsAskedFor(t *testing.T) {
	w := newWorld(t, small)
	w.add("app", "lib@1")
	asked := w.reg.Requests("/app")
	w.reg.Publish("-- lib@1.9.0/index.js --\n19\n")
	w.add("lib@^1.5")
	w.expect("app@2.0.0", "lib@1.2.0", "lib@1.9.0", "lib@2.0.0")
	w.expectRefused()
	if again := w.reg.Requests("/app"); again != asked {
		t.Errorf("app was asked for %d times more, though its document satisfies all", again-asked)
	}
}

func TestUnresolvedIsRefusedUntilItIsThere(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib@9", "nowhere", "app")
	w.expect("app@2.0.0", "lib@2.0.0")
	w.expectRefused("lib@9 unresolved", "nowhere@ not-found")
	w.reg.Publish("-- lib@9.0.0/index.js --\n9\n-- nowhere@1.0.0/index.js --\nhere\n")
	w.clock.add(time.Hour)
	w.fill()
	w.expect("app@2.0.0", "lib@2.0.0", "lib@9.0.0", "nowhere@1.0.0")
	w.expectRefused()
}

func TestNothingIsFetchedTwice(t *testing.T) {
	w := newWorld(t, small)
	w.add("app@1")
	before := w.stored()
	head := w.store.Head()
	paths := []string{"/app", "/lib", "/@s%2fdeep", "/app/-/app-1.1.0.tgz", "/lib/-/lib-1.2.0.tgz"}
	for _, path := range paths {
		if n := w.reg.Requests(path); n != 1 {
			t.Errorf("%s was asked for %d times", path, n)
		}
	}
	w.start()
	w.fill()
	for _, path := range paths {
		if n := w.reg.Requests(path); n != 1 {
			t.Errorf("within RefreshAfter %s was asked for %d times", path, n)
		}
	}
	// Later the documents are asked for again, and are the same.
	w.clock.add(time.Hour)
	modified := atomic.Int32{}
	w.reg.Fault("/app", func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("If-None-Match") == "" {
			modified.Add(1)
		}
		return false
	})
	w.fill()
	for _, path := range paths {
		want := 2
		if strings.HasSuffix(path, ".tgz") {
			want = 1
		}
		if n := w.reg.Requests(path); n != want {
			t.Errorf("after RefreshAfter %s was asked for %d times, want %d", path, n, want)
		}
	}
	if modified.Load() != 0 {
		t.Error("a document that is held was asked for without its ETag")
	}
	if !slices.Equal(w.stored(), before) || w.store.Head() != head {
		t.Errorf("the ledger moved from %d to %d, or holds other things", head, w.store.Head())
	}
}

func TestALostDocumentIsFetchedAgain(t *testing.T) {
	for _, later := range []time.Duration{0, time.Hour} {
		w := newWorld(t, small)
		w.add("app")
		before := w.stored()
		w.node.lose(w.pkg("app").Document.CID)
		w.clock.add(later)
		w.fill()
		if !slices.Equal(w.stored(), before) {
			t.Errorf("after %v the document was not brought back", later)
		}
	}
}

// TestCrash breaks every durable step of a Fill in turn, failed and failed but
// kept, takes the power away and starts again: the end is always that of an
// undisturbed run.
func TestCrash(t *testing.T) {
	reg := npmtest.New(t, npmtest.Generate(14, 7))
	names := []string{npmtest.GeneratedName(13), npmtest.GeneratedName(12) + "@* every"}
	calm := worldOn(t, reg)
	calm.opts.Workers = 4
	calm.start()
	calm.add(names...)
	want := calm.stored()
	if len(want) < 20 {
		t.Fatalf("only %d rows: too small a test", len(want))
	}
	kinds := map[string]int{}
	for _, kept := range []bool{false, true} {
		for at := 1; ; at++ {
			w := worldOn(t, reg)
			w.opts.Workers = 4
			broken := w.arm(at, kept)
			err := w.f.Add(t.Context(), wants(t, names...))
			if !broken.fired {
				if err != nil {
					t.Fatal(err)
				}
				if at < 10 {
					t.Fatalf("a run had only %d steps", at)
				}
				break
			}
			if !errors.Is(err, errInjected) {
				t.Fatalf("step %d broke and Add returned %v", at, err)
			}
			kinds[broken.steps[at-1]]++
			w.crash()
			w.stored() // nothing is named that is not durable
			if len(broken.steps) == 1 && !kept {
				w.add(names...) // not even the wants were recorded
			} else {
				w.fill()
			}
			if got := w.stored(); !slices.Equal(got, want) {
				t.Fatalf("step %d (%s, kept %v): %d rows, want %d:\n%s\nwant\n%s", at, broken.steps[at-1], kept,
					len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if err := w.store.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.store.Close()
		}
	}
	for _, kind := range []string{"hold", "put", "checkpoint", "commit"} {
		if kinds[kind] < 3 {
			t.Errorf("%s was broken only %d times", kind, kinds[kind])
		}
	}
}

// lawful is a ledger that looks, at each commit, at what law 2 promises of what
// the commit names: it is held, and durable in the node.
type lawful struct {
	*ledger.Store
	w     *world
	named int
}

func (l *lawful) Commit(ctx context.Context, b ledger.Batch) (ledger.Seq, error) {
	l.w.node.mu.Lock()
	for _, u := range b.Packages {
		roots := []cid.Cid{u.Document.CID}
		for _, v := range u.Versions {
			roots = append(roots, v.CID)
		}
		for _, c := range roots {
			if !c.Defined() {
				continue
			}
			l.named++
			if !l.w.node.held[c] || l.w.node.durable[c] == nil {
				l.w.t.Errorf("%s of %s was committed: held %v, durable %v", c, u.Name, l.w.node.held[c], l.w.node.durable[c] != nil)
			}
		}
	}
	l.w.node.mu.Unlock()
	return l.Store.Commit(ctx, b)
}

// TestOrder holds the order of law 2: nothing is put that is not held, and no
// commit names new blocks before a checkpoint after their put.
func TestOrder(t *testing.T) {
	w := worldOn(t, npmtest.New(t, npmtest.Generate(14, 7)))
	steps := w.arm(0, false)
	l := &lawful{Store: w.store, w: w}
	w.f.ledger = l
	w.add(npmtest.GeneratedName(13), npmtest.GeneratedName(12)+"@* every")
	if l.named < 20 || !slices.Contains(steps.steps, "put") {
		t.Fatalf("only %d roots were committed: %v", l.named, steps.steps)
	}
	if first := slices.Index(steps.steps, "hold"); first < 0 || first > slices.Index(steps.steps, "put") {
		t.Fatalf("blocks were put that nothing holds: %v", steps.steps)
	}
}

// hinderedNode lets a test act between the steps.
type hinderedNode struct {
	*memNode
	put, checkpoint func()
}

func (n *hinderedNode) Put(ctx context.Context, blks []blocks.Block) error {
	n.put()
	return n.memNode.Put(ctx, blks)
}

func (n *hinderedNode) Checkpoint(ctx context.Context) error {
	n.checkpoint()
	return n.memNode.Checkpoint(ctx)
}

// TestStages: a batch is put while the checkpoint of the one before runs, and
// one checkpoint covers all that were put by then.
func TestStages(t *testing.T) {
	w := newWorld(t, small)
	running, more := make(chan struct{}), make(chan struct{})
	puts, checkpoints := make(chan struct{}, 8), 0
	w.f.node = &hinderedNode{w.node, func() { puts <- struct{}{} }, func() {
		if checkpoints++; checkpoints == 1 {
			close(running)
			<-more
		}
	}}
	g := w.f.newGathering(t.Context(), 0)
	var wait sync.WaitGroup
	post := func(i byte) {
		wait.Add(1)
		it := item{blocks: []blocks.Block{blocks.NewBlock([]byte{i})}}
		if err := g.post(t.Context(), it, func(err error) {
			if err != nil {
				t.Error(err)
			}
			wait.Done()
		}); err != nil {
			t.Fatal(err)
		}
		<-puts
	}
	post(0)
	<-running
	post(1) // each is put, though the first is not durable
	post(2)
	g.mu.Lock()
	for len(g.brought) < 2 {
		if err := g.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.mu.Unlock()
	close(more)
	wait.Wait()
	if err := g.close(); err != nil || checkpoints != 2 {
		t.Errorf("%d checkpoints, %v; want 2", checkpoints, err)
	}
}

// TestAFailedCheckpoint fails all that was put before it ended: the node may
// have lost it, whoever put it, and whatever a later checkpoint says.
func TestAFailedCheckpoint(t *testing.T) {
	w := newWorld(t, small)
	put := func(i byte) brought {
		b, err := w.f.bring(t.Context(), []item{{blocks: []blocks.Block{blocks.NewBlock([]byte{i})}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, second := put(1), put(2)
	ended, end := context.WithCancel(t.Context())
	end()
	if err := w.f.checkpoint(ended, []brought{first}); !errors.Is(err, context.Canceled) {
		t.Fatalf("a checkpoint that fails: %v", err)
	}
	if err := w.f.checkpoint(t.Context(), []brought{second}); !errors.Is(err, errCheckpoint) {
		t.Errorf("the next one: %v, want errCheckpoint", err)
	}
	if err := w.f.checkpoint(t.Context(), []brought{put(3)}); err != nil {
		t.Errorf("of what was put after it: %v", err)
	}
}

func TestOnePoisonousPackageStopsNothing(t *testing.T) {
	w := newWorld(t, small)
	w.opts.Attempts = 3
	w.start()
	w.reg.Fault("/lib/-/", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusInternalServerError)
		return true
	})
	w.reg.SetTarball("other", "1.0.0", []byte("not what was published"))
	w.reg.Edit("@s/deep", func([]byte) []byte { return []byte(`{"name":"@s/deep","name":"@s/deep"}`) })
	w.add("app", "other", "@s/deep")
	w.expect("app@2.0.0")
	w.expectRefused("@s/deep@ packument", "other@1.0.0 integrity")
	if r := w.retries(); len(r) != 1 || r[0].Name != "lib" || r[0].Version != "2.0.0" || r[0].Attempts != 1 || !r[0].Next.After(w.clock.Now()) {
		t.Fatalf("retries are %+v", r)
	}
	// Not due: nothing happens.
	asked := w.reg.Requests("/lib/-/lib-2.0.0.tgz")
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := w.reg.Requests("/lib/-/lib-2.0.0.tgz"); n != asked {
		t.Error("a retry that is not due was run")
	}
	// Due, and failing to the limit: it ends refused.
	for range 2 {
		w.clock.add(2 * time.Hour)
		if err := w.f.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if r := w.retries(); len(r) != 0 {
		t.Fatalf("still retried: %+v", r)
	}
	w.expectRefused("@s/deep@ packument", "lib@2.0.0 unavailable", "other@1.0.0 integrity")
	// Once upstream is well, the next Fill has it; what was refused for good is
	// left alone while upstream says the same of it.
	w.reg.Heal()
	w.reg.Edit("@s/deep", nil)
	w.reg.SetTarball("other", "1.0.0", nil)
	w.clock.add(time.Hour)
	w.fill()
	w.expect("app@2.0.0", "lib@2.0.0", "@s/deep@0.1.0")
	w.expectRefused("other@1.0.0 integrity")
}

func TestARetryThatSucceedsLeavesTheQueue(t *testing.T) {
	w := newWorld(t, small)
	down := func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusBadGateway)
		return true
	}
	w.reg.Fault("/lib/-/", down)
	w.reg.Fault("/other", down)
	w.add("app", "other")
	if r := w.retries(); len(r) != 2 {
		t.Fatalf("retries are %+v", r)
	}
	w.reg.Heal()
	w.clock.add(time.Hour)
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.expect("app@2.0.0", "lib@2.0.0", "other@1.0.0")
	if r := w.retries(); len(r) != 0 {
		t.Errorf("still retried: %+v", r)
	}
	w.expectRefused()
}

// TestAVersionThatWaitsForADeletedPackage goes with it: it neither waits for
// ever nor brings the package back.
func TestAVersionThatWaitsForADeletedPackage(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	w.reg.Fault("/lib/-/", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusBadGateway)
		return true
	})
	w.add("lib")
	if r := w.retries(); len(r) != 1 || r[0].Version != "2.0.0" {
		t.Fatalf("the queue is %+v", r)
	}
	w.unwant("lib")
	feed.push(couch.Change{ID: "lib", Revs: []string{"9-a"}, Deleted: true})
	w.run()
	w.clock.add(time.Hour)
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if r := w.retries(); !w.pkg("lib").Deleted || len(r) != 0 {
		t.Errorf("deleted %v, the queue is %+v", w.pkg("lib").Deleted, r)
	}
	w.expectRefused()
}

func TestUpstreamAwayKeepsWhatIsHeld(t *testing.T) {
	w := newWorld(t, small)
	w.add("app")
	before := w.stored()
	w.reg.Fault("/", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	w.clock.add(time.Hour)
	w.fill()
	if !slices.Equal(w.stored(), before) {
		t.Error("what is held changed")
	}
	w.reg.Heal()
	w.reg.Delete("lib")
	w.clock.add(time.Hour)
	w.fill()
	if !slices.Equal(w.stored(), before) {
		t.Error("a 404 alone removed something")
	}
	if r := w.retries(); len(r) != 1 || r[0].Name != "lib" || r[0].Missing != 1 {
		t.Errorf("retries are %+v", r)
	}
}

func TestVersionsTakenBackAndChanged(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib every")
	w.reg.Unpublish("lib", "1.0.0")
	w.clock.add(time.Hour)
	w.fill()
	w.expect("lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta")

	// Another digest for a version that is held is refused, and the bytes stay.
	old := w.pkg("lib")
	w.reg.Edit("lib", func(doc []byte) []byte {
		p, err := npm.ParsePackument(doc)
		if err != nil {
			t.Error(err)
			return doc
		}
		return []byte(strings.Replace(string(doc), p.Versions["1.2.0"].Dist.Integrity, p.Versions["2.0.0"].Dist.Integrity, 1))
	})
	w.clock.add(time.Hour)
	w.fill()
	w.expectRefused("lib@1.2.0 integrity-changed")
	if got := w.pkg("lib"); !slices.Equal(got.Versions, old.Versions) {
		t.Errorf("versions are %+v, were %+v", got.Versions, old.Versions)
	}
}

func TestAnOldCopyTakesNothingBack(t *testing.T) {
	w := newWorld(t, small)
	w.reg.Publish("-- lib@3.0.0/index.js --\n3\n")
	w.add("lib every")
	before := w.stored()
	w.reg.Lag("lib", 1000)
	w.clock.add(time.Hour)
	w.fill()
	if got := w.stored(); !slices.Equal(got, before) {
		t.Errorf("the ledger holds %q", got)
	}
	if r := w.retries(); len(r) != 1 || r[0].Name != "lib" {
		t.Errorf("retries are %+v", r)
	}
}

func TestOurOwnFaultsEndTheRun(t *testing.T) {
	for at, what := range map[int]string{3: "hold", 4: "put", 5: "checkpoint", 6: "commit"} {
		w := newWorld(t, small)
		broken := w.arm(at, false)
		err := w.f.Add(t.Context(), wants(t, "app"))
		if !errors.Is(err, errInjected) || !errors.Is(err, errOwn) {
			t.Errorf("Add returned %v when step %d broke", err, at)
		}
		if !broken.fired || broken.steps[at-1] != what {
			t.Errorf("steps were %v, want %s at %d", broken.steps, what, at)
		}
		if rows := append(w.refused(), w.held()...); len(w.retries()) != 0 || len(rows) != 0 {
			t.Errorf("our own fault was put down to upstream: %q", rows)
		}
	}
}

// pickyNode does not take blocks that hold some bytes.
type pickyNode struct {
	Node
	refuse []byte
}

func (n pickyNode) Put(ctx context.Context, blks []blocks.Block) error {
	for _, b := range blks {
		if bytes.Contains(b.RawData(), n.refuse) {
			return errInjected
		}
	}
	return n.Node.Put(ctx, blks)
}

// TestANodeThatFailsInATarball: blocks that are put ahead of their commit are
// the node's business too, not upstream's.
func TestANodeThatFailsInATarball(t *testing.T) {
	w := newWorld(t, small)
	w.f.early = 1
	w.f.node = pickyNode{w.node, w.reg.Tarball("lib", "2.0.0")}
	if err := w.f.Add(t.Context(), wants(t, "lib")); !errors.Is(err, errInjected) {
		t.Errorf("Add returned %v", err)
	}
	w.expect()
	if r := w.retries(); len(r) != 1 || !r[0].Fresh() {
		t.Errorf("the queue is %+v", r)
	}
	w.expectRefused()
}

func TestCancel(t *testing.T) {
	w := newWorld(t, small)
	ctx, cancel := context.WithCancel(t.Context())
	w.reg.Fault("/lib", func(http.ResponseWriter, *http.Request) bool {
		cancel()
		return false
	})
	if err := w.f.Add(ctx, wants(t, "app")); !errors.Is(err, context.Canceled) {
		t.Errorf("Add returned %v", err)
	}
	if r := w.retries(); len(r) != 0 {
		t.Errorf("the end of a context was put down to upstream: %+v", r)
	}
	w.reg.Heal()
	w.fill()
	w.expect("app@2.0.0", "lib@2.0.0")
}

func TestRemoveKeepsWhatIsHeld(t *testing.T) {
	w := newWorld(t, small)
	w.add("app", "other")
	if err := w.f.Remove(t.Context(), wants(t, "other")); err != nil {
		t.Fatal(err)
	}
	w.reg.Publish("-- other@2.0.0/index.js --\n2\n")
	w.clock.add(time.Hour)
	w.fill()
	w.expect("app@2.0.0", "lib@2.0.0", "other@1.0.0")
}

func TestProgress(t *testing.T) {
	w := newWorld(t, small)
	last := map[string][3]int64{}
	w.opts.Progress = func(stage string, done, total int, bytes int64) {
		last[stage] = [3]int64{int64(done), int64(total), bytes}
	}
	commits := atomic.Int32{}
	w.opts.OnStored = func() { commits.Add(1) }
	w.start()
	w.add("app")
	c := w.store.Counts()
	if want := [3]int64{2, 2, int64(c.Bytes)}; last["tarballs"] != want {
		t.Errorf("tarballs are %v, want %v", last["tarballs"], want)
	}
	if p := last["packuments"]; p[0] != p[1] || p[0] < 2 {
		t.Errorf("packuments are %v", p)
	}
	if commits.Load() == 0 {
		t.Error("OnStored was not called")
	}
	if s := w.f.Status(); s.Stored != c || s.LastSuccess.IsZero() || s.LagRows != -1 {
		t.Errorf("status is %+v", s)
	}
}

var _ Ledger = (*ledger.Store)(nil)

func TestALedgerOfAnotherProfileIsRefused(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib")
	if have, ok := w.store.Cursor(profileMark); !ok || have != profile {
		t.Errorf("the profile is %q", have)
	}
	other := ledger.Batch{Cursor: &ledger.Cursor{Feed: profileMark, Value: "unixfs-v0"}}
	if _, err := w.store.Commit(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := w.f.Add(t.Context(), wants(t, "other")); !errors.Is(err, ErrProfile) {
		t.Errorf("Add returned %v", err)
	}
	w.expect("lib@2.0.0")
}
