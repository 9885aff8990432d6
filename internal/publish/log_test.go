package publish

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func logOf(t *testing.T, w *world, p *Publisher) (all []Logged) {
	t.Helper()
	for l, err := range Log(t.Context(), p.o.Index, w.disk, journalPath) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func TestLog(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	if got := logOf(t, w, p); len(got) != 0 {
		t.Errorf("before the first release: %+v", got)
	}
	w.ledger.hold(t, "leaf", []string{"1.0.0"}, "1.0.0")
	w.publish(p)
	w.clock.add(4 * 24 * time.Hour)
	signed := w.clock.Now()
	w.publish(p) // the same release under the next sequence
	w.clock.add(time.Hour)
	w.ledger.hold(t, "twig", []string{"1.0.0"}, "1.0.0")
	w.build(p)
	w.rollback(p, 1)

	got := logOf(t, w, p)
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []struct {
		number, list, sequence uint64
		signed                 time.Time
		current                bool
	}{{3, 1, 3, w.clock.Now(), true}, {2, 2, 0, time.Time{}, false}, {1, 1, 2, signed, false}} {
		l := got[i]
		if l.Number != want.number || l.ListOf != want.list || l.Sequence != want.sequence || l.Current != want.current ||
			!l.Signed.Equal(want.signed) || !l.Confirmed.Equal(want.signed) {
			t.Errorf("%+v, want %+v", l, want)
		}
	}
	if err := w.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	if got := logOf(t, w, p); len(got) != 3 || got[0].Sequence != 0 || got[0].Current {
		t.Errorf("without a journal: %+v", got)
	}
	if err := replace(w.disk, journalPath, strings.NewReader("damaged\n")); err != nil {
		t.Fatal(err)
	}
	for _, err := range Log(t.Context(), p.o.Index, w.disk, journalPath) {
		if !errors.Is(err, ErrJournal) {
			t.Errorf("damaged: %v", err)
		}
	}
}
