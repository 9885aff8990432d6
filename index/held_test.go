package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// What is held moves with a batch that makes no release too, falls due in the order
// of time, and nothing of it is in a release.
func TestHeld(t *testing.T) {
	ix := newIndexFor(t)
	first := mustApply(t, ix, put(t, "a", 1))
	at := func(hours int) time.Time { return epoch.Truncate(time.Second).Add(time.Duration(hours) * time.Hour) }
	apply := func(all ...Held) {
		t.Helper()
		if r, changed, err := ix.Apply(t.Context(), Batch{Held: all, Mark: "m", Now: epoch}); err != nil || changed || r.Root != first.Root {
			t.Fatal(r, changed, err)
		}
		if err := ix.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	due := func(now time.Time, limit int) string {
		t.Helper()
		names, err := ix.Due(t.Context(), now, limit)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(names)
	}
	if next, err := ix.NextDue(); err != nil || !next.IsZero() {
		t.Errorf("next of nothing: %v, %v", next, err)
	}
	apply(Held{"b", at(3), []byte("b")}, Held{"a", at(2), nil}, Held{"@s/c", time.Time{}, []byte("never")}, Held{"d", at(2).Add(time.Nanosecond), nil})
	for _, c := range []struct {
		now   time.Time
		limit int
		want  string
	}{
		{at(0), 9, "[]"}, {at(2), 9, "[a]"}, {at(2).Add(time.Second), 9, "[a d]"}, {at(9), 9, "[a d b]"}, {at(9), 2, "[a d]"}, {time.Unix(-1, 0), 9, "[]"},
	} {
		if got := due(c.now, c.limit); got != c.want {
			t.Errorf("due at %v: %s, want %s", c.now, got, c.want)
		}
	}
	apply(Held{"a", at(5), nil}, Held{"d", time.Time{}, nil})
	if next, err := ix.NextDue(); err != nil || !next.Equal(at(3)) || due(at(9), 9) != "[b a]" {
		t.Errorf("next %v, %v, due %s", next, err, due(at(9), 9))
	}
	if h, err := ix.Held("b"); err != nil || string(h.Note) != "b" || !h.Due.Equal(at(3)) {
		t.Errorf("%+v, %v", h, err)
	}
	if h, err := ix.Held("d"); err != nil || !h.none() {
		t.Errorf("%+v, %v", h, err)
	}
	var names []string
	for _, h := range collect(t, ix.AllHeld(t.Context())) {
		names = append(names, string(h.Name))
	}
	if !slices.Equal(names, []string{"@s/c", "a", "b"}) {
		t.Errorf("held: %v", names)
	}
	if mark, err := ix.Mark(); err != nil || mark != "m" {
		t.Errorf("mark %q, %v", mark, err)
	}
	if _, _, err := ix.Apply(t.Context(), Batch{Held: []Held{{Name: "../x", Due: epoch}}}); !errors.Is(err, ErrEntry) {
		t.Errorf("a name that is none: %v", err)
	}
	if r, changed, err := ix.Apply(t.Context(), Batch{Policy: "p", Now: epoch}); err != nil || !changed || r.Policy != "p" || r.List != first.List {
		t.Errorf("another policy: %+v, %v, %v", r, changed, err)
	}
}

// Check finds rows of what is held that do not fit each other.
func TestCheckHeld(t *testing.T) {
	for what, spoil := range map[string]func(*pebble.Batch) error{
		"due row gone":     func(b *pebble.Batch) error { return b.Delete(dueKey(dueAt(epoch), "a"), nil) },
		"due row of none":  func(b *pebble.Batch) error { return b.Set(dueKey(7, "b"), nil, nil) },
		"due twice":        func(b *pebble.Batch) error { return b.Set(dueKey(7, "a"), nil, nil) },
		"no due time":      func(b *pebble.Batch) error { return b.Set([]byte{rowDue, 1}, nil, nil) },
		"held row cut":     func(b *pebble.Batch) error { return b.Set(heldKey("a"), nil, nil) },
		"held for nothing": func(b *pebble.Batch) error { return b.Set(heldKey("a"), []byte{0}, nil) },
		"held name":        func(b *pebble.Batch) error { return b.Set(heldKey("../x"), []byte{0, 1}, nil) },
	} {
		ix := newIndexFor(t)
		mustApply(t, ix, put(t, "a", 1))
		if _, _, err := ix.Apply(t.Context(), Batch{Held: []Held{{Name: "a", Due: epoch}}, Now: epoch}); err != nil {
			t.Fatal(err)
		}
		b := ix.db.NewBatch()
		if err := errors.Join(spoil(b), b.Commit(pebble.Sync)); err != nil {
			t.Fatal(err)
		}
		if err := ix.Check(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "row") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An index of format 4, which knew of nothing held, is taken up with what is ahead of
// its release.
func TestStoreFormat4(t *testing.T) {
	fs := vfs.NewMem()
	ix, err := Create("ix", memory(fs))
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, ix, put(t, "a", 0))
	if _, _, err := ix.Apply(t.Context(), Batch{Changes: []Change{put(t, "@s/c", 0)}, More: true}); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(formatRow{4, ix.Parameters()})
	if err := errors.Join(err, ix.db.Set([]byte{rowFormat}, raw, nil), ix.Close()); err != nil {
		t.Fatal(err)
	}
	if ix, err = Open("ix", memory(fs)); err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	if row, err := readFormat(ix.db); err != nil || row.Format != storeFormat {
		t.Errorf("%+v, %v", row, err)
	}
	if r := mustApply(t, ix, put(t, "b", 0)); r.Packages != 3 {
		t.Errorf("%d packages", r.Packages)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// BenchmarkDue asks for what is due where so many names are held until later:
// what every turn of `publish --every` costs where nothing is due.
func BenchmarkDue(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ix := newIndexFor(b)
			var all []Held
			for i := range n {
				all = append(all, Held{npm.Name(fmt.Sprint("package-", i)), epoch.Add(time.Duration(i+1) * time.Minute), []byte("note")})
			}
			if _, _, err := ix.Apply(b.Context(), Batch{Held: all, Now: epoch}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if names, err := ix.Due(b.Context(), epoch, 1000); err != nil || len(names) > 0 {
					b.Fatal(names, err)
				}
			}
		})
	}
}
