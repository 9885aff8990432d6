package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

func changed(id string, revs ...string) couch.Change { return couch.Change{ID: id, Revs: revs} }

// rev is the revision that the registry has of a package.
func (w *world) rev(name string) string {
	w.t.Helper()
	doc := w.document(name)
	var d struct {
		Rev string `json:"_rev"`
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		w.t.Fatal(err)
	}
	return d.Rev
}

func (w *world) document(name string) []byte {
	w.t.Helper()
	resp, err := http.Get(w.reg.URL + "/" + strings.ReplaceAll(name, "/", "%2f"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var raw json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func (w *world) cursor(key, want string) {
	w.t.Helper()
	if got, _ := w.store.Cursor(key); got != want {
		w.t.Errorf("the cursor is %q, want %q", got, want)
	}
}

// follow gives the world a feed of pages, as npm's or CouchDB's.
func (w *world) follow(engine string) *pages {
	feed := newPages(engine)
	w.feed = feed
	w.start()
	return feed
}

func TestFeedBringsNewVersions(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	w.add("app")
	w.run()
	w.reg.Publish("-- app@2.1.0/package.json --\n{\"dependencies\": {\"lib\": \"^2.0.0\", \"fresh\": \"1\"}}\n" +
		"-- fresh@1.0.0/index.js --\nfresh\n-- other@5.0.0/index.js --\n5\n")
	feed.push(changed("other", "2-x"), changed("app", "1-old"), changed("_design/app"), changed("app", w.rev("app")))
	feed.push(changed("Not a name!"))
	asked := w.reg.Requests("/app")
	w.run()
	w.expect("app@2.0.0", "app@2.1.0", "lib@2.0.0", "fresh@1.0.0")
	w.expectRefused()
	w.cursor(feedName, "2")
	if n := w.reg.Requests("/app") - asked; n != 1 {
		t.Errorf("a package with two changes in a page was asked for %d times", n)
	}
	if n := w.reg.Requests("/other"); n != 0 {
		t.Errorf("a package that nobody wants was asked for %d times", n)
	}
	if s := w.f.Status(); s.Cursor != "2" || s.Head != "2" || s.LagRows != 0 || s.Engine != couch.EngineNPM {
		t.Errorf("status is %+v", s)
	}
	// A dependency that gets a version matters as much as what was asked for.
	w.reg.Publish("-- lib@2.5.0/index.js --\n25\n")
	feed.push(changed("lib", w.rev("lib")))
	w.run()
	w.expect("app@2.0.0", "app@2.1.0", "lib@2.0.0", "lib@2.5.0", "fresh@1.0.0")
	if want := []string{"0", "0", "2"}; !slices.Equal(feed.since, want) {
		t.Errorf("the feed was read from %q, want %q", feed.since, want)
	}
}

// TestNpmsService follows the fake of npm's replicate service with the real
// client.
func TestNpmsService(t *testing.T) {
	w := newWorld(t, small)
	w.feed = couch.New(couch.Options{URL: w.reg.FeedURL, Idle: time.Millisecond})
	w.start()
	w.add("app")
	w.run()
	w.expect("app@2.0.0", "lib@2.0.0")
	w.reg.Publish("-- app@2.1.0/package.json --\n{\"dependencies\": {\"lib\": \"1\"}}\n-- unwanted@1.0.0/index.js --\n1\n")
	w.run()
	w.expect("app@2.0.0", "app@2.1.0", "lib@1.2.0", "lib@2.0.0")
	w.reg.Delete("app")
	for range 3 { // once is no proof
		w.expect("app@2.0.0", "app@2.1.0", "lib@1.2.0", "lib@2.0.0")
		w.run()
		w.clock.add(30 * time.Minute)
	}
	w.expect("lib@1.2.0", "lib@2.0.0")
	w.cursor(feedName, fmt.Sprint(w.reg.Head()))
	if s := w.f.Status(); s.LagRows != 0 || s.Engine != couch.EngineNPM {
		t.Errorf("status is %+v", s)
	}
}

func TestAPackumentOlderThanItsChangeIsRetried(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	w.add("lib")
	w.run()
	w.reg.Publish("-- lib@2.2.0/index.js --\n22\n")
	rev := w.rev("lib")
	w.reg.Lag("lib", 3)
	feed.push(changed("lib", rev))
	w.run() // the change, and nothing due
	w.expect("lib@2.0.0")
	w.cursor(feedName, "1")
	if r := w.retries(); len(r) != 1 || r[0].Name != "lib" || r[0].Rev != rev || r[0].Next.Sub(w.clock.Now()) > 2*time.Second {
		t.Fatalf("retries are %+v", r)
	}
	// A Fill that sees the old document as well does not take the retry away.
	for n := 0; len(w.retries()) > 0; n++ {
		if n == 10 {
			t.Fatal("it is never done")
		}
		w.clock.add(time.Minute)
		if err := w.f.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	w.expect("lib@2.0.0", "lib@2.2.0")
	w.expectRefused()
}

func TestDeletion(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	w.add("app", "other")
	w.run()
	deleted := couch.Change{ID: "other", Revs: []string{"2-gone"}, Deleted: true}

	// The registry still serves the package: not confirmed, to be asked again.
	feed.push(deleted)
	w.run()
	w.expect("app@2.0.0", "lib@2.0.0", "other@1.0.0")
	if r := w.retries(); len(r) != 1 || r[0].Name != "other" || r[0].Rev != "2-gone"+deletedMark {
		t.Fatalf("retries are %+v", r)
	}
	// Gone there too: it counts once that was said three times over an hour.
	w.reg.Delete("other")
	w.clock.add(time.Hour)
	for n := 1; n <= 3; n++ {
		w.expect("app@2.0.0", "lib@2.0.0", "other@1.0.0")
		if err := w.f.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if r := w.retries(); n < 3 && (len(r) != 1 || r[0].Missing != n) {
			t.Fatalf("said %d times, the queue is %+v", n, r)
		}
		w.clock.add(30 * time.Minute)
	}
	w.expect("app@2.0.0", "lib@2.0.0")
	if p := w.pkg("other"); !p.Deleted || p.Removed == nil || p.Removed.Reason != ledger.RemovedDeleted || p.Removed.Versions != 1 {
		t.Errorf("no tombstone: %+v", p)
	}
	if r := w.retries(); len(r) != 0 {
		t.Errorf("still retried: %+v", r)
	}

	// It comes back with the next version.
	w.reg.Publish("-- other@2.0.0/index.js --\n2\n")
	feed.push(changed("other", w.rev("other")))
	w.run()
	w.expect("app@2.0.0", "lib@2.0.0", "other@2.0.0")

	// Unpublished to the last version: the stub says so.
	w.reg.Unpublish("other", "2.0.0")
	feed.push(changed("other", w.rev("other")))
	w.run()
	w.expect("app@2.0.0", "lib@2.0.0")
	w.cursor(feedName, "3")
	w.stored()
}

// couchDoc is the registry's document as a CouchDB feed would give it.
func (w *world) couchDoc(name string) couch.Change {
	w.t.Helper()
	doc := w.document(name)
	doc = append([]byte(`{"_attachments":{"x.tgz":{"stub":true,"name":"versions"}},`), doc[1:]...)
	return couch.Change{ID: name, Revs: []string{w.rev(name)}, Doc: doc}
}

func TestCouchDBGivesTheDocuments(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	if err := w.store.Close(); err != nil { // the wants of a new start
		t.Fatal(err)
	}
	w.store, _ = ledger.Open("ledger", ledger.Options{FS: w.fs, Now: w.clock.Now})
	w.start()
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*")}); err != nil {
		t.Fatal(err)
	}
	feed.push(w.couchDoc("app"), w.couchDoc("lib"), couch.Change{ID: "junk", Revs: []string{"1-a"}, Doc: []byte(`{"_id":"junk","some":"thing"}`)})
	before := w.reg.Requests("/app") + w.reg.Requests("/lib")
	w.run()
	w.expect("app@1.0.0", "app@1.1.0", "app@2.0.0", "lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta")
	w.expectRefused("junk@ packument")
	if n := w.reg.Requests("/app") + w.reg.Requests("/lib") - before; n != 0 {
		t.Errorf("upstream was asked for %d packuments", n)
	}
	raw, err := w.f.readBack(t.Context(), w.pkg("app").Document)
	if err != nil || string(raw) != string(w.document("app")) {
		t.Errorf("the document is %s, %v", raw, err)
	}
	w.cursor(feedName+allMark, "1")

	// The same again, as after a crash, moves nothing.
	head := w.store.Head()
	feed.push(w.couchDoc("app"), couch.Change{ID: "unheard-of", Revs: []string{"2-b"}, Deleted: true}, couch.Change{ID: "../x"})
	w.run()
	if w.store.Head() != head {
		t.Error("a change that is known made a new one")
	}
	w.expectRefused("../x@ name", "junk@ packument")

	feed.push(couch.Change{ID: "lib", Revs: []string{"9-c"}, Deleted: true})
	w.run()
	w.expect("app@1.0.0", "app@1.1.0", "app@2.0.0")
	if p := w.pkg("lib"); !p.Deleted || p.Rev != "9-c" {
		t.Errorf("no tombstone: %+v", p)
	}
}

// TestWantingEverythingReadsTheFeedFromItsBeginning also when it was read
// before for some packages.
func TestWantingEverythingReadsTheFeedFromItsBeginning(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	feed.push(w.couchDoc("other"))
	feed.push(w.couchDoc("@s/deep"))
	w.add("@s/deep")
	w.run()
	w.expect("@s/deep@0.1.0")
	w.add("*")
	w.run()
	w.expect("@s/deep@0.1.0", "other@1.0.0")
	if want := []string{"0", "0"}; !slices.Equal(feed.since, want) {
		t.Errorf("the feed was read from %q", feed.since)
	}
}

func TestNpmsFeedBeginsNearItsHead(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	for range rewind + 5 {
		feed.pages = append(feed.pages, nil)
	}
	w.add("other")
	w.run()
	if want := []string{"5"}; !slices.Equal(feed.since, want) {
		t.Errorf("the feed was read from %q, want %q", feed.since, want)
	}
	w.cursor(feedName, fmt.Sprint(rewind+5))
}

// TestCrashInAPage breaks every durable step of reading a feed in turn. The
// cursor is never past work that is not recorded, and a restart ends like an
// undisturbed run.
func TestCrashInAPage(t *testing.T) {
	t.Run("EverythingFromCouchDB", func(t *testing.T) {
		reg := npmtest.New(t, npmtest.Generate(8, 3))
		crashInAPage(t, true, func() *world {
			w := worldOn(t, reg)
			feed := w.follow(couch.EngineCouch)
			if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*")}); err != nil {
				t.Fatal(err)
			}
			for i := range 8 {
				if i%2 == 0 {
					feed.push()
				}
				at := len(feed.pages) - 1
				feed.pages[at] = append(feed.pages[at], w.couchDoc(npmtest.GeneratedName(i)))
			}
			w.opts.Upstream = noPackuments{w.f.upstream} // the feed has them all
			w.start()
			return w
		})
	})
	t.Run("ClosureFromNpm", func(t *testing.T) {
		base := newWorld(t, small)
		base.follow(couch.EngineNPM)
		base.add("app", "@s/deep")
		base.run()
		base.reg.Publish(`
-- app@3.0.0/package.json --
{"dependencies": {"lib": "^3.0.0", "other": "1"}}
-- lib@3.0.0/package.json --
{"dependencies": {"leaf": "*"}}
-- lib@3.1.0/package.json --
{"dependencies": {"leaf": "1", "twig": "*"}}
-- leaf@1.0.0/index.js --
leaf
-- leaf@2.0.0/index.js --
leaf 2
-- twig@1.0.0/index.js --
twig
-- @s/deep@0.2.0/package.json --
{"dependencies": {"leaf": "2"}}
`)
		crashInAPage(t, false, func() *world {
			w := base.clone()
			feed := w.follow(couch.EngineNPM)
			for _, name := range []string{"lib", "leaf", "app", "@s/deep"} {
				feed.push(changed(name, w.rev(name)))
			}
			return w
		})
	})
}

// clone is another world in the durable state of this one.
func (w *world) clone() *world {
	w.t.Helper()
	c := &world{t: w.t, reg: w.reg, fs: w.fs.CrashClone(vfs.CrashCloneCfg{}), node: newNode(), clock: w.clock, opts: w.opts}
	maps.Copy(c.node.durable, w.node.durable)
	var err error
	if c.store, err = ledger.Open("ledger", ledger.Options{FS: c.fs, Now: c.clock.Now}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.store.Close() })
	c.start()
	return c
}

// crashInAPage breaks the runs of the worlds that begin makes, which all have
// four pages.
func crashInAPage(t *testing.T, all bool, begin func() *world) {
	calm := begin()
	calm.run()
	want := calm.stored()
	if len(want) < 15 {
		t.Fatalf("only %d rows: too small a test", len(want))
	}
	key, err := calm.f.cursorKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calm.cursor(key, "4")
	for _, kept := range []bool{false, true} {
		for at := 1; ; at++ {
			w := begin()
			broken := w.arm(at, kept)
			err := w.f.Run(t.Context(), true)
			if !broken.fired {
				if err != nil || at < 10 {
					t.Fatalf("a run of %d steps: %v", at, err)
				}
				break
			}
			if !errors.Is(err, errInjected) {
				t.Fatalf("step %d broke and Run returned %v", at, err)
			}
			w.crash()
			partial := w.stored()
			// Past the cursor all is stored or in the queue; what a closure
			// selects is resolved again by each start.
			if cursor, _ := w.store.Cursor(key); cursor == "4" {
				queued := w.queued()
				for _, row := range want {
					item, _, _ := strings.Cut(row, " ")
					name, version, _ := strings.Cut(item[1:], "@") // a scope's @ is no version's
					name = item[:1] + name
					if recorded := slices.Contains(partial, row) || queued[name+"@"] || queued[name+"@"+version]; all && !recorded {
						t.Fatalf("step %d: the cursor is at the end, and %s is neither stored nor queued", at, row)
					}
				}
			}
			w.run()
			if got := w.stored(); !slices.Equal(got, want) {
				t.Fatalf("step %d (kept %v):\n%s\nwant\n%s", at, kept, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			w.expectRefused()
			w.cursor(key, "4")
			w.store.Close()
		}
	}
}

// noPackuments is a registry that has only tarballs.
type noPackuments struct{ Upstream }

func (noPackuments) Packument(context.Context, npmName, string) (upstream.Packument, error) {
	return upstream.Packument{}, upstream.ErrUnavailable
}

// TestRunFollows holds that a running follower takes up changes, wants and
// retries until its context ends.
func TestRunFollows(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	w.add("other")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.f.Run(ctx, false) }()

	has := func(name string, n int) func() bool {
		return func() bool {
			p, err := w.store.Package(t.Context(), npmName(name))
			return err == nil && len(p.Versions) == n
		}
	}
	w.reg.Publish("-- other@2.0.0/index.js --\n2\n")
	feed.push(w.couchDoc("other"))
	w.until(has("other", 2))
	// A want that another process recorded.
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "@s/deep")}); err != nil {
		t.Fatal(err)
	}
	w.until(has("@s/deep", 1))
	// Every package, from the feed's beginning.
	feed.push(w.couchDoc("lib"))
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*")}); err != nil {
		t.Fatal(err)
	}
	w.until(has("lib", 4))
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
	w.stored()
}

// TestRunWithoutAFeed holds that what is wanted is asked for again: when
// another process wants more, when Wake says so, and after RefreshAfter.
func TestRunWithoutAFeed(t *testing.T) {
	w := newWorld(t, small)
	w.run()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.f.Run(ctx, false) }()
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "other")}); err != nil {
		t.Fatal(err)
	}
	w.until(func() bool { return slices.Equal(w.held(), []string{"other@1.0.0"}) })
	w.reg.Publish("-- other@2.0.0/index.js --\n2\n")
	w.clock.add(time.Hour)
	w.f.Wake()
	w.until(func() bool { return len(w.held()) == 2 })
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}

	w.opts.RefreshAfter = time.Millisecond
	w.start()
	ctx, stop = context.WithCancel(t.Context())
	go func() { ended <- w.f.Run(ctx, false) }()
	for n := 3; n < 6; n++ {
		w.reg.Publish(fmt.Sprintf("-- other@%d.0.0/index.js --\n%d\n", n, n))
		w.clock.add(time.Hour)
		w.until(func() bool { return len(w.held()) == n })
	}
	stop()
	<-ended
}

// until waits for a state of the ledger or of the follower: what the follower
// says of itself changes without a write.
func (w *world) until(done func() bool) {
	w.t.Helper()
	for late := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(late) {
			w.t.Fatalf("it never came to that, holding %d, as %q", len(w.held()), w.held()[:min(20, len(w.held()))])
		}
		change, cancel := context.WithTimeout(w.t.Context(), 50*time.Millisecond)
		_ = w.store.Wait(change, w.store.Head())
		cancel()
	}
}

func TestWithoutAttachments(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`{"_id": "a", "_attachments": {"b": [1, {"_attachments": 2}]}, "versions" : { "_attachments": 1 } }`, `{"_id":"a","versions":{ "_attachments": 1 }}`},
		{`{ "name":  "a" }`, `{ "name":  "a" }`},
		{`{"_attachments":{}}`, `{}`},
		{`{}`, `{}`},
	} {
		got, err := withoutAttachments([]byte(test.in))
		if err != nil || string(got) != test.want {
			t.Errorf("withoutAttachments(%s) = %s, %v, want %s", test.in, got, err, test.want)
		}
	}
	for _, bad := range []string{"", "[]", `{"a":1,"a":2}`, `{"a"`, `nul`} {
		if got, err := withoutAttachments([]byte(bad)); err == nil {
			t.Errorf("withoutAttachments(%s) = %s", bad, got)
		}
	}
}

func TestRevisions(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"9-a", "10-b", true}, {"10-b", "9-a", false}, {"2-a", "2-b", false},
		{"", "1-a", false}, {"x", "1-a", false}, {"1-a", "x-1", false}, {"1", "2-a", false},
		{"1-a", "3-b" + deletedMark, true}, {"99999999999999999999-a", "1-a", false},
	} {
		if got := older(test.a, test.b); got != test.want {
			t.Errorf("older(%q, %q) = %v", test.a, test.b, got)
		}
	}
}

func TestDelay(t *testing.T) {
	for _, stale := range []bool{false, true} {
		first := 10 * time.Second
		if stale {
			first = 2 * time.Second
		}
		for n := 1; n < 100; n++ {
			d := delay(n, stale)
			if d <= 0 || d > time.Hour || n == 1 && d > first {
				t.Errorf("delay(%d, %v) = %v", n, stale, d)
			}
		}
	}
}

// TestANewPackageThatIsNotThereYet: the registry's copies lag behind its feed by
// more than a revision.
func TestANewPackageThatIsNotThereYet(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*"), Cursor: &ledger.Cursor{Feed: feedName + allMark, Value: "0"}}); err != nil {
		t.Fatal(err)
	}
	feed.push(changed("newcomer", "1-x"), changed("never", "1-y"), couch.Change{ID: "gone", Revs: []string{"2-z"}, Deleted: true})
	w.run()
	w.expectRefused()
	if r := w.retries(); len(r) != 2 || r[0].Missing != 1 || r[0].Next.Sub(w.clock.Now()) > 2*time.Second {
		t.Fatalf("the queue is %+v", r)
	}
	w.reg.Publish("-- newcomer@1.0.0/index.js --\n1\n")
	w.clock.add(time.Minute)
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.expect("newcomer@1.0.0")
	w.clock.add(time.Hour)
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.expectRefused("never@ not-found")
}

// TestMassRemoval: more deletions than are likely wait for an operator, also
// after a restart.
func TestMassRemoval(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	w.opts.Removals = 1
	w.start()
	feed.push(w.couchDoc("app"), w.couchDoc("lib"), w.couchDoc("other"))
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*")}); err != nil {
		t.Fatal(err)
	}
	w.run()
	gone := func(name string) couch.Change { return couch.Change{ID: name, Revs: []string{"9-x"}, Deleted: true} }
	w.reg.Delete("app")
	w.reg.Delete("lib")
	feed.push(gone("app"), gone("lib"))
	w.run()
	w.expectRefused("lib@ mass-removal")
	if !w.pkg("app").Deleted || w.pkg("lib").Deleted {
		t.Error("the breaker held the wrong one")
	}
	// An hour later, and in another process, the first still waits.
	w.clock.add(2 * time.Hour)
	w.crash()
	w.reg.Delete("other")
	feed.push(gone("other"))
	w.run()
	w.expectRefused("lib@ mass-removal", "other@ mass-removal")
	if n, err := w.store.TryAgain(t.Context(), ledger.Again{Reason: ledger.ReasonMassRemoval}); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.expectRefused()
	if !w.pkg("lib").Deleted || !w.pkg("other").Deleted {
		t.Error("an approved removal was not done")
	}
}

// awayFeed is a feed that cannot be asked until it is back.
type awayFeed struct {
	*pages
	back chan struct{}
}

func (a awayFeed) Server(ctx context.Context) (couch.ServerInfo, error) {
	select {
	case <-a.back:
		return a.pages.Server(ctx)
	default:
		return couch.ServerInfo{}, fmt.Errorf("connection refused: %w", couch.ErrUnavailable)
	}
}

// TestAFeedThatIsAwayHoldsUpNothingElse: what is selected by name is fetched
// meanwhile, and the status says what is wrong.
func TestAFeedThatIsAwayHoldsUpNothingElse(t *testing.T) {
	w := newWorld(t, small)
	feed := awayFeed{newPages(couch.EngineNPM), make(chan struct{})}
	w.feed = feed
	w.start()
	if err := w.f.Run(t.Context(), true); !errors.Is(err, couch.ErrUnavailable) {
		t.Errorf("Run returned %v", err)
	}
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "lib")}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.f.Run(ctx, false) }()
	w.until(func() bool { return slices.Equal(w.held(), []string{"lib@2.0.0"}) })
	if s := w.f.Status(); !strings.Contains(s.Trouble, "the feed is away") {
		t.Errorf("status says %q", s.Trouble)
	}
	w.reg.Publish("-- lib@2.2.0/index.js --\n22\n")
	feed.push(changed("lib", w.rev("lib")))
	close(feed.back)
	w.until(func() bool { return len(w.held()) == 2 })
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
}
