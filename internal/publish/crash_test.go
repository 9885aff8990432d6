package publish

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/index"
)

// Power is cut between every two durable steps. Afterwards, with the ledger as
// it was or moved on, publishing ends with the list of an undisturbed run, and
// no sequence ever had two values.
func TestPowerCuts(t *testing.T) {
	fill := func(t *testing.T, w *world) {
		w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0")
		w.ledger.hold(t, "@scope/thing", []string{"2.0.0"}, "2.0.0")
		w.ledger.hold(t, "broken", []string{"1.0.0"}, "1.0.0")
		broken := w.ledger.packages["broken"]
		broken.Document.CID = w.ledger.packages["left-pad"].Versions[0].CID
		w.ledger.set(broken)
	}
	move := func(t *testing.T, w *world) { w.ledger.hold(t, "later", []string{"3.0.0"}, "3.0.0") }

	undisturbed := func(t *testing.T, moved bool) (index.List, []string) {
		w := newWorld(t)
		fill(t, w)
		p, stop := w.start()
		defer stop()
		p.pageSize = 2
		var steps []string
		p.fault = func(step string) error { steps = append(steps, step); return nil }
		r := w.publish(p)
		if moved {
			p.fault = nil
			move(t, w)
			r = w.publish(p)
		}
		return r.Release.List, steps
	}
	list, steps := undisturbed(t, false)
	movedList, _ := undisturbed(t, true)
	for _, want := range []string{"page durable", "withheld kept", "page applied", "pushed", "checkpoint", "pinned in the node",
		"pinned written", "pinned synced", "intent written", "intent synced", "signed", "record written", "record synced", "put", "read back",
		"confirmed written", "confirmed synced"} {
		if !strings.Contains("|"+strings.Join(steps, "|")+"|", "|"+want+"|") {
			t.Errorf("step %q was not passed", want)
		}
	}

	for i, step := range steps {
		for _, moved := range []bool{false, true} {
			for seed := range uint64(2) {
				t.Run(fmt.Sprintf("%d %s moved=%v seed=%d", i, step, moved, seed), func(t *testing.T) {
					w := newWorld(t)
					fill(t, w)
					p, stop := w.start()
					p.pageSize = 2
					n := 0
					var after *world
					p.fault = func(string) error {
						if n++; n == i+1 {
							after = w.powerCut(seed)
							return errCrash
						}
						return nil
					}
					if _, err := p.Publish(t.Context()); !errors.Is(err, errCrash) {
						t.Fatalf("got %v", err)
					}
					stop()

					w, want := after, list
					if moved {
						move(t, w)
						want = movedList
					}
					p, stop = w.start()
					defer stop()
					r := w.publish(p)
					if r.Release.List != want {
						t.Errorf("list is %v, want %v", r.Release.List, want)
					}
					if got := w.best(); got.Value != r.CID || got.Sequence != r.Sequence {
						t.Errorf("the name is %+v", got)
					}
					if len(r.Withheld) != 1 || r.Withheld[0].Name != "broken" {
						t.Errorf("withheld: %+v", r.Withheld)
					}
					for seq, values := range w.node.puts {
						if len(values) != 1 {
							t.Errorf("sequence %d was put as %v", seq, values)
						}
						for _, raw := range w.node.putRaws[seq] {
							if !bytes.Equal(raw, w.node.putRaws[seq][0]) {
								t.Errorf("sequence %d was put as other bytes", seq)
							}
						}
					}
					// And the same once more: all is settled.
					if again := w.publish(p); again.Signed || again.CID != r.CID {
						t.Errorf("again: %+v", again)
					}
				})
			}
		}
	}
}
