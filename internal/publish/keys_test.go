package publish

import (
	"errors"
	"testing"

	"github.com/registry-mirror/registry-mirror/index"
)

// A release has the registry's signing keys as they are when it is built; other
// keys alone make one.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "a", []string{"1.0.0"}, "1.0.0")
	var keys []byte
	var away error
	p, stop := w.start(func(o *Options) { o.Keys = func() ([]byte, error) { return keys, away } })
	defer stop()
	number := uint64(0)
	for _, c := range []struct {
		keys string
		made bool
	}{{"", true}, {"{\"keys\":[]}\n", true}, {"{\"keys\":[]}\n", false}, {"other", true}} {
		keys = []byte(c.keys)
		if c.keys == "" {
			keys = nil
		}
		if c.made {
			number++
		}
		r := w.publish(p)
		if r.Number != number {
			t.Errorf("%q: release %d, want %d", c.keys, r.Number, number)
		}
		// In the node, where readers come for it.
		raw, err := index.ReadKeys(t.Context(), w.node, r.CID)
		if err != nil || string(raw) != c.keys {
			t.Errorf("%q: %q, %v", c.keys, raw, err)
		}
	}
	away = errors.New("no such disk")
	if _, _, err := p.Build(t.Context()); !errors.Is(err, away) {
		t.Errorf("keys that cannot be read: %v", err)
	}
}
