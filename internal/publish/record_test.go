package publish

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"
)

// How records are made is in the intent: a restart with other options gives the
// very same bytes, and the options count from the next record on.
func TestRecordForm(t *testing.T) {
	for _, was := range []bool{false, true} {
		t.Run(fmt.Sprintf("v2_only=%v", was), func(t *testing.T) {
			w := newWorld(t)
			p, stop := w.start(func(o *Options) { o.V2Only = was })
			p.fault = func(step string) error {
				if step == "signed" {
					return errCrash
				}
				return nil
			}
			if _, err := p.Publish(t.Context()); !errors.Is(err, errCrash) {
				t.Fatalf("got %v", err)
			}
			stop()
			w = w.powerCut(0)
			if text := contents(t, w.disk); bytes.Contains(text, []byte("v2_only")) != was {
				t.Errorf("journal: %s", text)
			}
			p, stop = w.start(func(o *Options) { o.V2Only, o.TTL, o.Lifetime = !was, time.Hour, 8*24*time.Hour })
			defer stop()
			w.publish(p)
			best := w.best()
			sign := testSigner(t, 1).Sign
			if was {
				sign = testSigner(t, 1).SignV2Only
			}
			want, err := sign(best.Value, 1, dayZero.Add(DefaultLifetime), DefaultTTL)
			if err != nil || !bytes.Equal(best.Raw, want) || best.V2Only != was {
				t.Errorf("after the restart it is %+v (%v)", best, err)
			}
			w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
			w.publish(p)
			if best := w.best(); best.Sequence != 2 || best.V2Only == was || best.TTL != time.Hour || !best.EOL.Equal(dayZero.Add(8*24*time.Hour)) {
				t.Errorf("the next one is %+v", best)
			}
		})
	}
}
