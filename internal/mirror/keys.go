package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
)

// signingKeys is the document of the keys that sign the packages of a release.
type signingKeys struct {
	root cid.Cid
	doc  []byte // nil: there is none
}

// keys is the document that the list's publisher gives, nil where there is none:
// the list's signature speaks for it too.
func (m *Mirror) keys(ctx context.Context) ([]byte, error) {
	h := m.head.Load()
	if h == nil {
		return nil, ErrNotSynced
	}
	root := h.Release.Root
	if k := m.signing.Load(); k != nil && k.root.Equals(root) {
		return k.doc, nil
	}
	return shared(ctx, m, "keys "+root.String(), m.o.Deadline, func(ctx context.Context) ([]byte, error) {
		doc, err := index.ReadKeys(ctx, dag{m: m, kind: directories}, root)
		if errors.Is(err, ErrNowhere) {
			// Its 404 would say that nothing is signed.
			return nil, fmt.Errorf("%w: signing keys: %v", ErrUnavailable, err)
		}
		if err == nil {
			m.signing.Store(&signingKeys{root, doc})
		}
		return doc, err
	})
}

// serveKeys answers with it, byte for byte.
func (m *Mirror) serveKeys(w http.ResponseWriter, r *http.Request) {
	doc, err := m.keys(r.Context())
	if err != nil {
		m.fail(w, r, err)
		return
	}
	sendKeys(w, r, doc)
}

// noKeys is what clients are told: they take the 404 for a registry that does not
// sign.
const noKeys = "whoever publishes this registry gives no signing keys"

func sendKeys(w http.ResponseWriter, r *http.Request, doc []byte) {
	if doc == nil {
		sendError(w, r, http.StatusNotFound, noKeys)
		return
	}
	sendPart(w, r, doc)
}

// serveKeys answers with the keys of all registries, each once: clients ask for
// those of an address, and what each signs comes from it alone. One registry's are
// its own bytes.
func (t *Table) serveKeys(w http.ResponseWriter, r *http.Request) {
	var docs [][]byte
	for _, reg := range t.rows {
		doc, err := reg.keys(r.Context())
		if err != nil {
			reg.fail(w, r, err) // without its keys its packages would seem not to be signed
			return
		}
		if doc != nil {
			docs = append(docs, doc)
		}
	}
	if len(docs) < 2 {
		sendKeys(w, r, append(docs, nil)[0])
		return
	}
	var all struct {
		Keys []jsontext.Value `json:"keys"`
	}
	seen := map[string]bool{}
	for _, doc := range docs {
		var one struct {
			Keys []jsontext.Value `json:"keys"`
		}
		_ = json.Unmarshal(doc, &one) // the registry's own fault, and not the others'
		for _, k := range one.Keys {
			var id struct {
				KeyID string `json:"keyid"`
			}
			if read(k, &id) && !seen[id.KeyID] {
				seen[id.KeyID] = true
				all.Keys = append(all.Keys, k)
			}
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		abort()
	}
	sendPart(w, r, data)
}
