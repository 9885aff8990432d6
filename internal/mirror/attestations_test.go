package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Attestations are upstream's bytes where it can be asked, and a clear 404 where
// it cannot.
func TestAttestations(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"left-pad", "@types/node"} {
		w.registry.Edit(name, func(doc []byte) []byte {
			return bytes.ReplaceAll(doc, []byte(`"dist":{`), []byte(`"dist":{"attestations":{"url":"https://registry.example.test/"},`))
		})
	}
	w.registry.Publish("-- bare@1.0.0/package.json --\n{\"name\":\"bare\",\"version\":\"1.0.0\"}\n")
	w.publish(append([]string{"bare"}, everything...)...)
	const path = "/-/npm/v1/attestations/"
	if got := get(w.synced(), path+"left-pad@1.3.0"); got.Code != 404 || !strings.Contains(got.Body.String(), noAttestations) {
		t.Errorf("nobody to ask: %d %s", got.Code, got.Body)
	}
	asked := map[string]int{}
	m := w.synced(func(o *Options) {
		o.Attestations = func(_ context.Context, name npm.Name, version string) ([]byte, error) {
			asked[string(name)+" "+version]++
			switch string(name) + "@" + version {
			case "left-pad@1.3.0", "@types/node@20.0.0":
				return fmt.Appendf(nil, "{ \"attestations\": [\"%s\"] }\n", name), nil
			}
			return nil, errors.New("away")
		}
	})
	for _, tt := range []struct {
		spec   string
		status int
		body   string
	}{
		{"left-pad@1.3.0", 200, "{ \"attestations\": [\"left-pad\"] }\n"},
		{"left-pad@1.3.0", 200, "{ \"attestations\": [\"left-pad\"] }\n"},
		{"left-pad%401.3.0", 200, "{ \"attestations\": [\"left-pad\"] }\n"},
		{"@types%2fnode@20.0.0", 200, "{ \"attestations\": [\"@types/node\"] }\n"},
		{"@types%2Fnode@20.0.0", 200, "{ \"attestations\": [\"@types/node\"] }\n"},
		{"@types/node@20.0.0", 200, "{ \"attestations\": [\"@types/node\"] }\n"},
		{"left-pad@1.0.0", 503, "away"},
		{"left-pad@9.9.9", 404, `{"error":"Not found"}`}, // nor of a version that is not
		{"left-pad@1.0.0-rc.1+b", 404, `{"error":"Not found"}`},
		{"bare@1.0.0", 404, `{"error":"Not found"}`},    // nor of one that has none
		{"nowhere@1.0.0", 404, `{"error":"Not found"}`}, // nobody learns of a name that is not listed
		{"left-pad@latest", 404, `{"error":"Not found"}`},
		{"left-pad", 404, `{"error":"Not found"}`},
		{"@types", 404, `{"error":"Not found"}`},
		{"@", 404, `{"error":"Not found"}`},
		{"..%2fx@1.0.0", 404, `{"error":"Not found"}`},
	} {
		got := get(m, path+tt.spec)
		if got.Code != tt.status || !strings.Contains(got.Body.String(), tt.body) || got.Header().Get("Content-Type") != "application/json; charset=utf-8" {
			t.Errorf("%s: %d %v %s", tt.spec, got.Code, got.Header(), got.Body)
		}
	}
	for spec, n := range map[string]int{"nowhere 1.0.0": 0, "left-pad 1.3.0": 1, "@types/node 20.0.0": 1, "left-pad 9.9.9": 0, "bare 1.0.0": 0} {
		if asked[spec] != n {
			t.Errorf("%s: upstream was asked %d times, want %d", spec, asked[spec], n)
		}
	}

	// With pull-through upstream is asked for whatever a client is: that there are none
	// is asked again soon.
	m = w.synced(func(o *Options) {
		o.Origin = &fakeOrigin{w: w}
		o.Attestations = func(_ context.Context, name npm.Name, version string) ([]byte, error) {
			asked["pull "+string(name)]++
			if name == "left-pad" {
				return []byte("{}"), nil
			}
			return nil, fmt.Errorf("upstream: %w", fs.ErrNotExist)
		}
	})
	for range 2 {
		for range 2 {
			get(m, path+"is-odd@3.0.1")
			get(m, path+"left-pad@1.3.0")
		}
		w.now = w.now.Add(originFresh)
	}
	if asked["pull is-odd"] != 2 || asked["pull left-pad"] != 1 {
		t.Errorf("later: %v", asked)
	}
}
