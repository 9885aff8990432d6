package mirror

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// A mirror whose clock is three years off serves what it holds either way. Ahead, it
// follows no record, says that what it serves is stale, and begins nothing; behind, it
// follows as ever, and is not led back once the clock is right.
func TestClockOff(t *testing.T) {
	const years = 3 * 365 * 24 * time.Hour
	for _, c := range []struct {
		name  string
		off   time.Duration
		stale bool
	}{{"behind", -years, false}, {"ahead", years, true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.publish("is-odd")
			right := w.now
			fresh := w.open(func(o *Options) { o.Now = func() time.Time { return right.Add(c.off) } })
			if err := fresh.Sync(t.Context()); (err != nil) != c.stale || c.stale && !(errors.Is(err, ErrNoRecord) && errors.Is(err, ipnsrecord.ErrExpired)) {
				t.Errorf("begun by the wrong clock: %v", err)
			}

			off := time.Duration(0)
			m := w.synced(func(o *Options) { o.Now = func() time.Time { return right.Add(off) } })
			off = c.off
			w.publish(everything...) // by a publisher whose clock is right
			err := m.Sync(t.Context())
			s := m.Status(t.Context())
			if errors.Is(err, ipnsrecord.ErrExpired) != c.stale || s.Stale != c.stale || (s.Release.Number == 1) != c.stale {
				t.Errorf("by the wrong clock: %v, %+v", err, s)
			}
			if got := get(m, "/is-odd"); got.Code != http.StatusOK {
				t.Errorf("by the wrong clock: %d", got.Code)
			}
			off = 0
			if err := m.Sync(t.Context()); err != nil {
				t.Errorf("by the right clock: %v", err)
			}
			if s := m.Status(t.Context()); s.Stale || s.Release.Number != 2 || s.Record.Sequence != 2 {
				t.Errorf("by the right clock: %+v", s)
			}
		})
	}
}
