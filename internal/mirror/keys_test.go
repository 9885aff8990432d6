package mirror

import (
	"strings"
	"testing"
)

const keysPath = "/-/npm/v1/keys"

// The keys are those of the release that is served, byte for byte, and go offline
// with the list.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	if got := get(m, keysPath); got.Code != 503 {
		t.Errorf("before the first list: %d", got.Code)
	}
	w.publish(everything...)
	check(t, m.Sync(t.Context()))
	if got := get(m, keysPath); got.Code != 404 || !strings.Contains(got.Body.String(), noKeys) {
		t.Errorf("without keys: %d %s", got.Code, got.Body)
	}
	for _, keys := range []string{"{ \"keys\" : [] }\n", `{"keys":[{"keyid":"SHA256:x","expires":null}],"unknown":1}`} {
		w.keys = []byte(keys)
		w.publish(everything...)
		check(t, m.Sync(t.Context()))
		got := get(m, keysPath)
		if got.Code != 200 || got.Body.String() != keys || !strings.HasPrefix(got.Header().Get("Content-Type"), "application/json") {
			t.Errorf("%d %v %q, want %q", got.Code, got.Header(), got.Body, keys)
		}
	}
	if got := do(m, "HEAD", keysPath, nil); got.Code != 200 || got.Body.Len() > 0 {
		t.Errorf("HEAD: %d, %d bytes", got.Code, got.Body.Len())
	}
	w.keys = []byte("gone astray")
	w.publish(everything...)
	check(t, m.Sync(t.Context()))
	w.node.alone = true
	for c := range w.blocks {
		if b, err := w.Get(t.Context(), c); err == nil && string(b.RawData()) == "gone astray" {
			w.lose(c)
		}
	}
	if got := get(m, keysPath); got.Code != 503 {
		t.Errorf("keys, and no peer: %d", got.Code)
	}
	w.node.alone = false
	if got := get(m, keysPath); got.Code != 503 {
		t.Errorf("keys that cannot be had: %d, want 503: a 404 would say that nothing is signed", got.Code)
	}
}

// A table gives the keys of all its registries, each once.
func TestTableKeys(t *testing.T) {
	table, public, acme, other := threeRegistries(t)
	publish := func(w *world, keys string, names ...string) {
		w.keys = []byte(keys)
		w.publish(names...)
		check(t, table.Sync(t.Context()))
	}
	if got := ask(table.Handler(), keysPath); got.Code != 404 {
		t.Errorf("nobody's: %d", got.Code)
	}
	const one = "{\"keys\": [{\"keyid\":\"a\",\"key\":\"1\"}] }"
	publish(public, one, "left-pad")
	if got := ask(table.Handler(), keysPath); got.Body.String() != one {
		t.Errorf("one registry's: %s", got.Body)
	}
	publish(acme, `{"keys":[{"keyid":"b","key":"2"},7]}`, "@acme/thing")
	publish(other, `{"keys":[{"key":"1", "keyid":"a"}]}`, "is-odd")
	if got := ask(table.Handler(), keysPath).Body.String(); got != `{"keys":[{"keyid":"b","key":"2"},{"keyid":"a","key":"1"}]}` {
		t.Errorf("all three's: %s", got)
	}
	publish(other, `no JSON`, "is-odd")
	if got := ask(table.Handler(), keysPath).Body.String(); !strings.Contains(got, `"a"`) || !strings.Contains(got, `"b"`) {
		t.Errorf("with one that cannot be read: %s", got)
	}
}
