package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func due(t *testing.T, s *Store, now time.Time) (names []string, later time.Time) {
	t.Helper()
	var at Due
	for {
		keys, next, then, err := s.Due(t.Context(), at, now, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			names = append(names, string(k.Name)+"@"+k.Version)
		}
		if at = next; len(keys) < 2 {
			return names, then
		}
	}
}

func TestTheQueueIsReadInTheOrderInWhichItFallsDue(t *testing.T) {
	s := newStore(t)
	commit(t, s, Batch{Retries: []Retry{
		{Name: "late", Next: testTime.Add(time.Hour), Attempts: 1},
		{Name: "b", Version: "1.0.0", Next: testTime},
		{Name: "b"},
		{Name: "a", Next: testTime.Add(-time.Minute)},
		{Name: "soon", Next: testTime.Add(time.Second), Attempts: 2},
	}})
	names, later := due(t, s, testTime)
	if want := []string{"b@", "a@", "b@1.0.0"}; !slices.Equal(names, want) || !later.Equal(testTime.Add(time.Second)) {
		t.Errorf("due are %q, the next at %v", names, later)
	}
	// An item that is moved is due once.
	commit(t, s, Batch{Retries: []Retry{{Name: "a", Next: testTime.Add(2 * time.Hour), Attempts: 1}}})
	names, _ = due(t, s, testTime.Add(3*time.Hour))
	if want := []string{"b@", "b@1.0.0", "soon@", "late@", "a@"}; !slices.Equal(names, want) {
		t.Errorf("due are %q", names)
	}
	rows, err := s.Queue(t.Context(), "b")
	if err != nil || len(rows) != 2 || rows[0].Version != "" || rows[1].Version != "1.0.0" {
		t.Errorf("rows of b are %+v, %v", rows, err)
	}
	if c := s.Counts(); c.Queued != 2 || c.Retrying != 3 {
		t.Errorf("counts are %+v", c)
	}
	check(t, s)
}

// A change that comes while the one before is worked on is never taken for done.
func TestAChangeThatComesMeanwhileStays(t *testing.T) {
	s := newStore(t)
	row := func() Retry {
		t.Helper()
		rows, err := s.Queue(t.Context(), "a")
		if err != nil || len(rows) != 1 {
			t.Fatalf("%+v, %v", rows, err)
		}
		return rows[0]
	}
	commit(t, s, Batch{Retries: []Retry{{Name: "a", Rev: "1-x"}}})
	taken := row()
	commit(t, s, Batch{Retries: []Retry{{Name: "a", Rev: "2-x"}}})
	failed := taken
	failed.Attempts, failed.Next = 1, testTime.Add(time.Hour)
	for name, b := range map[string]Batch{
		"done":    {Done: []Done{{Key{Name: "a"}, taken.Stamp}}},
		"failed":  {Retries: []Retry{failed}},
		"refused": {Refused: []Refusal{{Name: "a", Reason: "unavailable", Stamp: taken.Stamp}}},
	} {
		commit(t, s, b)
		if r := row(); r.Rev != "2-x" || r.Attempts != 0 {
			t.Errorf("%s: the row is %+v", name, r)
		}
		check(t, s)
	}
	commit(t, s, Batch{Done: []Done{{Key{Name: "a"}, row().Stamp}}})
	if c := s.Counts(); c.Queued+c.Retrying != 0 {
		t.Errorf("counts are %+v", c)
	}
	check(t, s)
}

func TestQueuedTellsWhoWaits(t *testing.T) {
	s := newStore(t)
	told := s.Queued()
	commit(t, s, Batch{Refused: []Refusal{{Name: "a", Reason: "x"}}})
	select {
	case <-told:
		t.Fatal("told of a refusal")
	default:
	}
	commit(t, s, Batch{Retries: []Retry{{Name: "a"}}})
	<-told
}

func TestTryAgain(t *testing.T) {
	s := newStore(t)
	begin := Batch{
		Refused: []Refusal{
			{Name: "a", Version: "1.0.0", Reason: "integrity"}, {Name: "a", Version: "2.0.0", Reason: "too-large"},
			{Name: "b", Reason: "not-found"}, {Name: "../c", Reason: "name"},
			{Name: "d", Version: "^9", Reason: ReasonUnresolved},
			{Name: "e", Reason: ReasonMassRemoval, Seen: "7-x-deleted"},
		},
		Retries: []Retry{{Name: "f", Attempts: 7, Next: testTime.Add(time.Hour), Rev: "3-x"}, {Name: "g"}},
	}
	for _, test := range []struct {
		which   Again
		n       int
		due     []string
		refused int
	}{
		{Again{Names: []Key{{Name: "a", Version: "2.0.0"}}}, 1, []string{"a@2.0.0", "g@"}, 5},
		{Again{Names: []Key{{Name: "a"}}}, 2, []string{"a@1.0.0", "a@2.0.0", "g@"}, 4},
		{Again{Reason: "not-found"}, 1, []string{"b@", "g@"}, 5},
		{Again{Names: []Key{{Name: "a"}}, Reason: "integrity"}, 1, []string{"a@1.0.0", "g@"}, 5},
		{Again{Names: []Key{{Name: "f"}}}, 1, []string{"f@", "g@"}, 6},
		{Again{}, 6, []string{"a@1.0.0", "a@2.0.0", "b@", "d@", "e@", "f@", "g@"}, 1},
		{Again{Names: []Key{{Name: "nobody"}}}, 0, []string{"g@"}, 6},
	} {
		commit(t, s, begin)
		n, err := s.TryAgain(t.Context(), test.which)
		names, _ := due(t, s, testTime)
		slices.Sort(names)
		if err != nil || n != test.n || !slices.Equal(names, test.due) || s.Counts().Refused != test.refused {
			t.Errorf("%+v: %d, %v; due are %q, refused %d", test.which, n, err, names, s.Counts().Refused)
		}
		check(t, s)
		if rows, _ := s.Queue(t.Context(), "e"); len(rows) > 0 && (!rows[0].Approved || rows[0].Rev != "7-x-deleted") {
			t.Errorf("a removal is not approved: %+v", rows[0])
		}
		var clear Batch
		for _, name := range []npm.Name{"a", "b", "d", "e", "f", "g"} {
			rows, _ := s.Queue(t.Context(), name)
			for _, r := range rows {
				clear.Done = append(clear.Done, Done{Key: Key{r.Name, r.Version}})
			}
		}
		commit(t, s, clear)
	}
}

func TestHeads(t *testing.T) {
	s := newStore(t)
	commit(t, s, Batch{
		Packages: []PackageUpdate{testUpdate("held", "d", "1.0.0"), testUpdate("gone", "d", "1.0.0")},
		Refused:  []Refusal{{Name: "refused", Reason: "x"}, {Name: "version", Version: "1.0.0", Reason: "x"}},
		Retries:  []Retry{{Name: "queued"}, {Name: "held", Version: "2.0.0"}},
	})
	commit(t, s, Batch{Packages: []PackageUpdate{{Name: "gone", Deleted: true, Rev: "9-x"}}})
	names := []npm.Name{"queued", "version", "held", "nobody", "gone", "refused"}
	heads, err := s.Heads(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	want := []Head{{Waiting: true}, {}, {Rev: testUpdate("held", "d").Rev, Known: true}, {}, {Rev: "9-x", Known: true, Deleted: true}, {Waiting: true}}
	if !slices.Equal(heads, want) {
		t.Errorf("heads are\n%+v, want\n%+v", heads, want)
	}
}

// TestUpgrade rewrites a ledger of row format 1, also after it was cut short.
func TestUpgrade(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Create("/ledger", testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, Batch{
		Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0", "2.0.0"), testUpdate("known", "d")},
		Refused:  []Refusal{{Name: "c", Reason: "name"}, {Name: "d", Reason: "name"}},
		Retries:  []Retry{{Name: "b", Attempts: 3, Next: testTime, Rev: "2-b"}, {Name: "e", Next: testTime}},
	})
	commit(t, s, Batch{Packages: []PackageUpdate{{Name: "a", Drop: []string{"2.0.0"}}}})
	want, err := s.Package(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	want.Removed = nil // format 1 did not keep it
	counts := s.Counts()

	// What format 1 had: JSON in the queue, no due rows, shorter rows.
	b := s.db.NewBatch()
	for kv, err := range scan(s.db, []byte{rowPackage}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		p, _ := readPackage(kv)
		p.Held, p.Listed, p.Removed = 0, 0, nil
		row := encodePackage(p)
		row = row[:len(row)-3]
		row[0] = 1
		b.Set(slices.Clone(kv.key), row, nil)
	}
	for kv := range scan(s.db, []byte{rowVersion}, nil) {
		v, _ := readVersion(kv)
		row := v.encode()
		row = row[:len(row)-2]
		row[0] = 1
		b.Set(slices.Clone(kv.key), row, nil)
	}
	for kv := range scan(s.db, []byte{rowRetry}, nil) {
		r, _ := readRetry(kv)
		row, _ := json.Marshal(map[string]any{"name": r.Name, "attempts": r.Attempts, "next": r.Next, "detail": "", "rev": r.Rev})
		b.Set(slices.Clone(kv.key), row, nil)
	}
	b.DeleteRange([]byte{rowDue}, []byte{rowDue + 1}, nil)
	b.Set([]byte{rowState}, fmt.Appendf(nil, `{"head":%d,"counts":{"packages":2,"versions":1,"bytes":%d,"refused":2,"retrying":2}}`, s.Head(), counts.Bytes), nil)
	b.Set([]byte{rowIdentity}, []byte("1."+s.identity), nil)
	if err := b.Commit(pebble.Sync); err != nil {
		t.Fatal(err)
	}
	identity := s.Identity()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if s, err = Open("/ledger", testOptions(fs)); err != nil {
			t.Fatal(err)
		}
		check(t, s)
		if s.Identity() != identity || s.Counts() != counts || s.Reasons()["name"] != 2 {
			t.Errorf("%s %+v %v, want %s %+v", s.Identity(), s.Counts(), s.Reasons(), identity, counts)
		}
		got, err := s.Package(context.Background(), "a")
		if err != nil || got.Held != 1 || got.Seq != want.Seq || !slices.Equal(got.Versions, want.Versions) {
			t.Errorf("package is %+v, %v; want %+v", got, err, want)
		}
		if names, _ := due(t, s, testTime); !slices.Equal(names, []string{"b@", "e@"}) {
			t.Errorf("due are %q", names)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
