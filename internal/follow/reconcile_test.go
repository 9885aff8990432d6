package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
)

// list makes the feed's listing what the registry has now.
func (w *world) list(feed *pages, names ...string) {
	w.t.Helper()
	feed.mu.Lock()
	defer feed.mu.Unlock()
	feed.docs = nil
	for _, name := range names {
		feed.docs = append(feed.docs, couch.Doc{ID: name, Rev: w.rev(name)})
	}
}

// TestReconcileFindsWhatTheFeedDropped: changes, new packages and deletions
// that no row of the feed announced.
func TestReconcileFindsWhatTheFeedDropped(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	feed.push(w.couchDoc("lib"), w.couchDoc("other"), w.couchDoc("@s/deep"))
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*")}); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.expect("lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta", "other@1.0.0", "@s/deep@0.1.0")

	w.reg.Publish("-- lib@3.0.0/index.js --\n3\n-- newcomer@1.0.0/index.js --\n1\n")
	w.reg.Delete("other")
	w.list(feed, "lib", "newcomer", "@s/deep")
	feed.docs = append(feed.docs, couch.Doc{ID: "No name!"}, couch.Doc{ID: "gone", Rev: "3-x", Deleted: true})
	got, err := w.f.Reconcile(t.Context(), nil)
	if want := (Reconciliation{Listed: 3, Held: 3, New: 1, Changed: 1, Vanished: 1}); err != nil || got != want {
		t.Fatalf("%+v, %v, want %+v", got, err, want)
	}
	// A second one finds the same on the way already.
	if got, err = w.f.Reconcile(t.Context(), nil); err != nil || got.Vanished != 0 || got.New != 0 {
		t.Errorf("again: %+v, %v", got, err)
	}
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.expect("lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta", "lib@3.0.0", "newcomer@1.0.0", "other@1.0.0", "@s/deep@0.1.0")
	for range 3 {
		w.clock.add(time.Hour)
		if err := w.f.drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if !w.pkg("other").Deleted {
		t.Error("what vanished is no tombstone")
	}
}

// TestAListingThatIsCutTakesNothingAway.
func TestAListingThatIsCutTakesNothingAway(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineCouch)
	feed.push(w.couchDoc("lib"), w.couchDoc("other"))
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Wants: wants(t, "*")}); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.list(feed, "lib")
	feed.listErr = io.ErrUnexpectedEOF
	before, _ := w.store.Cursor(feedName + allMark)
	if _, err := w.f.Reconcile(t.Context(), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Reconcile returned %v", err)
	}
	if _, err := w.f.Resync(t.Context(), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Resync returned %v", err)
	}
	if after, _ := w.store.Cursor(feedName + allMark); len(w.retries()) != 0 || after != before {
		t.Errorf("the queue is %+v, the cursor %q, was %q", w.retries(), after, before)
	}
}

// TestAllOfALongHistoryIsListed: npm's feed is not walked from its beginning, and
// goes on from where its head was before the listing.
func TestAllOfALongHistoryIsListed(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	for range rewind + 20 {
		feed.pages = append(feed.pages, nil)
	}
	w.list(feed, "lib", "other")
	w.add("*")
	w.run()
	w.expect("lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta", "other@1.0.0")
	if want := []string{"20"}; !slices.Equal(feed.since, want) {
		t.Errorf("the feed was read from %q, want %q", feed.since, want)
	}
	// A scope is another selection, with a listing and a cursor of its own.
	w.unwant("*")
	w.add("@s/*")
	w.list(feed, "lib", "other", "@s/deep")
	w.run()
	w.expect("lib@1.0.0", "lib@1.2.0", "lib@2.0.0", "lib@2.1.0-beta", "other@1.0.0", "@s/deep@0.1.0")
	w.cursor(feedName+"#@s", fmt.Sprint(rewind+20))
}

// TestAResetFeedHaltsUntilItIsResynced.
func TestAResetFeedHaltsUntilItIsResynced(t *testing.T) {
	w := newWorld(t, small)
	feed := w.follow(couch.EngineNPM)
	w.add("lib", "other")
	w.run()
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Cursor: &ledger.Cursor{Feed: feedName, Value: "5000"}}); err != nil {
		t.Fatal(err)
	}
	w.feed = resetFeed{feed}
	w.start()
	if err := w.f.Run(t.Context(), true); !errors.Is(err, couch.ErrReset) {
		t.Fatalf("Run returned %v", err)
	}
	w.reg.Publish("-- lib@2.2.0/index.js --\n22\n")
	feed.push()
	w.list(feed, "lib", "other", "app")
	r, err := w.f.Resync(t.Context(), nil)
	if err != nil || r.Changed != 1 || r.New != 0 || r.Vanished != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	w.feed = feed
	w.start()
	w.run()
	w.expect("lib@2.0.0", "lib@2.2.0", "other@1.0.0")
	w.cursor(feedName, "1")
}

type resetFeed struct{ *pages }

func (r resetFeed) Changes(context.Context, string, bool) iter.Seq2[couch.Page, error] {
	return func(yield func(couch.Page, error) bool) {
		yield(couch.Page{}, fmt.Errorf("the head is 1, the cursor 5000: %w", couch.ErrReset))
	}
}

func TestCheckFindsWhatTheNodeLost(t *testing.T) {
	w := newWorld(t, small)
	w.add("app", "other")
	before := w.stored()
	if c, err := w.f.Check(t.Context(), true, nil); err != nil || c.Lost != 0 || c.Packages != 3 || c.Versions != 3 {
		t.Fatalf("%+v, %v", c, err)
	}
	w.node.lose(w.blocksOf("lib", "2.0.0")[0])
	w.node.rot(w.pkg("other").Document.CID)
	for _, fetch := range []bool{false, true} {
		c, err := w.f.Check(t.Context(), fetch, nil)
		if err != nil || c.Lost != 2 || len(c.Broken) != 2 || c.Versions != 3 {
			t.Fatalf("%+v, %v", c, err)
		}
		if found := fmt.Sprint(c.Broken); !strings.Contains(found, "lib 2.0.0") || !strings.Contains(found, "other  ") {
			t.Errorf("it found %s", found)
		}
		if n := len(w.retries()); fetch != (n == 2) {
			t.Errorf("fetch %v: the queue has %d rows", fetch, n)
		}
	}
	if err := w.f.drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := w.stored(); !slices.Equal(got, before) {
		t.Errorf("it was not brought back: %q", got)
	}
}
