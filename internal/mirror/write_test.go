package mirror

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A write of a claimed name goes to its registry with the token, and its answer comes
// back; no other goes anywhere.
func TestWrites(t *testing.T) {
	var got []string
	status := http.StatusCreated
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.EscapedPath()+" "+r.URL.RawQuery+" "+r.Header.Get("Authorization")+" "+r.Header.Get("Npm-Otp")+r.Header.Get("Cookie")+" "+string(body))
		w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(status)
		io.WriteString(w, `{"ok":"created"}`)
	}))
	defer owner.Close()
	threeTables, public, acme, _ := threeRegistries(t)
	table, err := NewTable(
		Registry{Label: "acme", Scopes: []string{"@acme"}, PublishTo: owner.URL + "/npm/", Mirror: threeTables.rows[0].Mirror},
		Registry{Label: "sauce", Scopes: []string{"@sauce"}, Mirror: acme.synced()},
		Registry{Label: "public", Mirror: public.synced()},
	)
	check(t, err)
	h := table.Handler()
	send := func(method, path string) *httptest.ResponseRecorder {
		got = nil
		r := httptest.NewRequest(method, "http://127.0.0.1:4873"+path, strings.NewReader("{}"))
		r.Header.Set("Authorization", "Bearer secret")
		r.Header.Set("Npm-Otp", "123456")
		r.Header.Set("Cookie", "mine")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for _, tt := range []struct{ method, path, want string }{
		{"PUT", "/@acme%2fthing", "PUT /npm/@acme%2fthing "},
		{"PUT", "/%40acme/thing", "PUT /npm/@acme%2fthing "},
		{"GET", "/@acme%2Fthing?write=true", "GET /npm/@acme%2fthing write=true"},
		{"PUT", "/-/package/@acme%2fthing/dist-tags/beta", "PUT /npm/-/package/@acme%2fthing/dist-tags/beta "},
		{"DELETE", "/@acme%2fthing/-rev/1-a", "DELETE /npm/@acme%2fthing/-rev/1-a "},
		{"DELETE", "/@acme/thing/-/thing-1.0.0.tgz/-rev/1-a", "DELETE /npm/@acme%2fthing/-/thing-1.0.0.tgz/-rev/1-a "},
	} {
		w := send(tt.method, tt.path)
		if len(got) != 1 || got[0] != tt.want+" Bearer secret 123456 {}" || w.Code != status || !strings.Contains(w.Body.String(), "created") {
			t.Errorf("%s %s: %d %s, the owner got %q", tt.method, tt.path, w.Code, w.Body, got)
		}
		if w.Header().Get("Set-Cookie")+w.Header().Get("Location") != "" {
			t.Errorf("%s %s: %v", tt.method, tt.path, w.Header())
		}
	}
	for _, tt := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"PUT", "/@sauce%2fthing", 405, "of the registry sauce"},
		{"PUT", "/left-pad", 405, "npm publish --registry=URL"},
		{"DELETE", "/left-pad/-rev/1-a", 405, "no registry here claims it"},
		{"PUT", "/-/user/org.couchdb.user:me", 405, "acme takes writes: `npm login --registry=" + owner.URL},
		{"PUT", "/@acme%2fthing/%2e%2e/admin", 400, "no part of a path"},
		{"GET", "/left-pad?write=true", 200, "left-pad"},
		{"GET", "/@acme%2fthing", 200, "acme's"},
	} {
		if w := send(tt.method, tt.path); w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) || got != nil {
			t.Errorf("%s %s: %d %s, the owner got %q", tt.method, tt.path, w.Code, w.Body, got)
		}
	}
	status = http.StatusTemporaryRedirect
	if w := send("PUT", "/@acme%2fthing"); w.Code != http.StatusBadGateway || len(got) != 1 || !strings.Contains(w.Body.String(), "leads elsewhere") {
		t.Errorf("a redirect: %d %s, the owner got %q", w.Code, w.Body, got)
	}
	owner.Close()
	if w := send("PUT", "/@acme%2fthing"); w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "does not answer") {
		t.Errorf("away: %d %s", w.Code, w.Body)
	}
}

func TestCheckPublishTo(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://npm.acme.example": true, "https://npm.acme.example/npm/": true, "http://127.0.0.1:4875": true, "http://[::1]:4875": true,
		"http://npm.acme.example": false, "http://192.0.2.1": false, "http://localhost.acme.example": false, "ftp://127.0.0.1": false, "": false,
		"https://me:word@npm.acme.example": false, "https://npm.acme.example?a": false, "https://npm.acme.example#a": false, "https:npm": false,
	} {
		if err := CheckPublishTo(text); (err == nil) != ok || err != nil && !errors.Is(err, ErrPublishTo) {
			t.Errorf("%q: %v", text, err)
		}
	}
	w := newWorld(t)
	if _, err := NewTable(Registry{Label: "open", PublishTo: "https://npm.acme.example", Mirror: w.open()}); !errors.Is(err, ErrPublishTo) {
		t.Errorf("an open registry: %v", err)
	}
}
