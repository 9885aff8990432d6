package follow

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/couch"
)

// TestLedgerFeed: documents are upstream's but for the ledger's own members, and
// what was lost or deleted has none.
func TestLedgerFeed(t *testing.T) {
	w := newWorld(t, small)
	w.add("lib", "@s/deep")
	h := couch.Handler(NewLedgerFeed(w.store, w.node))
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec.Code, rec.Body.String()
	}
	code, body := get("/lib")
	var doc, upstream map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &doc); code != http.StatusOK || err != nil {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	if err := json.Unmarshal(w.document("lib"), &upstream); err != nil {
		t.Fatal(err)
	}
	var own storedPackage
	if err := json.Unmarshal(doc["_registry_mirror"], &own); err != nil || len(own.Versions) != 1 || own.Rev != w.rev("lib") {
		t.Errorf("the ledger's member is %s, %v", doc["_registry_mirror"], err)
	}
	if rev := string(doc["_rev"]); rev != quote(revision(w.pkg("lib").Seq)) {
		t.Errorf("the revision is %s", rev)
	}
	for _, member := range []string{"name", "versions", "dist-tags"} {
		if string(doc[member]) != string(upstream[member]) {
			t.Errorf("%s is %s, upstream's %s", member, doc[member], upstream[member])
		}
	}
	if code, body = get("/_all_docs"); code != http.StatusOK || strings.Count(body, `"id"`) != 2 || !strings.Contains(body, `"@s/deep"`) {
		t.Errorf("the listing is %d %s", code, body)
	}
	if code, _ = get("/_all_docs?descending=true"); code != http.StatusNotImplemented {
		t.Errorf("backwards it is %d", code)
	}
	w.node.lose(w.pkg("lib").Document.CID)
	if code, _ = get("/lib"); code != http.StatusNotFound {
		t.Errorf("a lost document is %d", code)
	}
	if code, _ = get("/nobody"); code != http.StatusNotFound {
		t.Errorf("a stranger is %d", code)
	}
}
