package publish

import (
	"errors"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// years is how far a clock is off that lost its battery, or that someone mistyped.
const years = 3 * 365 * 24 * time.Hour

// A run by a clock that is three years off, and the next by the right one: the sequence
// only rises, no sequence has two values, and by the right clock the name is valid after
// the first run that signs, and at once after one that had nothing to sign.
func TestPublishClockOff(t *testing.T) {
	for _, c := range []struct {
		name       string
		off        time.Duration
		release    bool // there is a new release, so that the run by the wrong clock signs
		signed     bool // by the wrong clock
		expired    bool // then by the right clock
		afterwards bool // signed by the right clock
		sequence   uint64
	}{
		{"behind, nothing new", -years, false, false, false, false, 1},
		{"behind, a release", -years, true, true, true, true, 3},
		{"ahead, nothing new", years, false, true, false, false, 2},
		{"ahead, a release", years, true, true, false, false, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			p, stop := w.start()
			defer stop()
			w.publish(p)
			if c.release {
				w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
			}
			w.clock.add(c.off)
			got := w.publish(p)
			if got.Signed != c.signed || got.Signed && !got.EOL.Equal(w.clock.Now().Add(DefaultLifetime)) {
				t.Errorf("by the wrong clock: %+v", got)
			}
			s, err := p.Status(t.Context())
			if err != nil || s.Problem != nil || s.Next != "put again" {
				t.Errorf("status by the wrong clock: %+v, %v", s, err)
			}
			if again, err := p.Republish(t.Context()); err != nil || again.Signed || again.Sequence != got.Sequence {
				t.Errorf("put again by the wrong clock: %+v, %v", again, err)
			}

			w.clock.add(-c.off)
			_, err = ipnsrecord.Check(w.signer.IPNSName(), w.node.records[w.signer.IPNSName().String()], w.clock.Now())
			if errors.Is(err, ipnsrecord.ErrExpired) != c.expired {
				t.Errorf("readers find %v", err)
			}
			if s, err := p.Status(t.Context()); err != nil || s.Problem != nil || (s.Next == "sign") != c.afterwards {
				t.Errorf("status by the right clock: %+v, %v", s, err)
			}
			after, err := p.Republish(t.Context())
			if err != nil || after.Signed != c.afterwards || after.Sequence != c.sequence || w.best().Sequence != c.sequence {
				t.Errorf("by the right clock: %+v, %v", after, err)
			}
			// A record that lives for years is overtaken all the same.
			w.ledger.hold(t, "is-odd", []string{"1.0.0"}, "1.0.0")
			next := w.publish(p)
			if next.Sequence != c.sequence+1 || w.best().Value != next.CID || !w.best().EOL.Equal(dayZero.Add(DefaultLifetime)) {
				t.Errorf("the next release: %+v", next)
			}
			for seq, values := range w.node.puts {
				if len(values) != 1 {
					t.Errorf("sequence %d is %v", seq, values)
				}
			}
		})
	}
}

// A draft is judged by the clock of each machine that it passes: what it says is signed
// nowhere that finds it expired, or valid for longer than MaxLifetime.
func TestDraftClockOff(t *testing.T) {
	for _, c := range []struct {
		name    string
		sign    time.Duration // how far the vault's clock is off
		put     time.Duration // and the publisher's when it puts
		signErr error
		putErr  error
	}{
		{"right", 0, 0, nil, nil},
		{"the vault is behind", -years, 0, ErrLifetime, nil},
		{"the vault is ahead", years, 0, ipnsrecord.ErrExpired, nil},
		{"the publisher is behind", 0, -years, nil, nil},
		{"the publisher is ahead", 0, years, nil, ipnsrecord.ErrExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, v := newVault(t)
			w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
			p, stop := w.keyless()
			defer stop()
			d := w.draft(p)
			w.clock.add(c.sign)
			raw, err := v.sign(d)
			w.clock.add(-c.sign)
			if !errors.Is(err, c.signErr) {
				t.Fatalf("sign: %v, not %v", err, c.signErr)
			}
			if err != nil {
				if raw != nil {
					t.Error("it was signed all the same")
				}
				return
			}
			w.clock.add(c.put)
			_, err = p.Put(t.Context(), d.Name, raw)
			if !errors.Is(err, c.putErr) || (err != nil) == (len(w.node.puts) > 0) {
				t.Errorf("put: %v, not %v; %v", err, c.putErr, w.node.puts)
			}
		})
	}
}
