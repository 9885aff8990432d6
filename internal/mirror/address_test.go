package mirror

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// The address in tarball URLs is the one that the client used. Only a trusted
// peer may say that it was another than ours.
func TestAddress(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced(func(o *Options) {
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")}
	})
	const trusted, stranger = "192.0.2.7:999", "198.51.100.1:999"
	for _, tt := range []struct {
		peer    string
		headers []string
		tls     bool
		want    string // "": 400
	}{
		{trusted, nil, false, "http://127.0.0.1:4873"},
		{stranger, nil, true, "https://127.0.0.1:4873"},
		{trusted, []string{"X-Forwarded-Proto: https", "X-Forwarded-Host: npm.example.test"}, false, "https://npm.example.test"},
		{trusted, []string{"X-Forwarded-Proto: https"}, false, "https://127.0.0.1:4873"},
		{trusted, []string{"X-Forwarded-Proto: http"}, true, "http://127.0.0.1:4873"},
		{trusted, []string{"X-Forwarded-Host: npm.example.test:8443", "X-Forwarded-Prefix: /npm/"}, false, "http://npm.example.test:8443/npm"},
		{trusted, []string{"X-Forwarded-Prefix: /a/b~c@d"}, false, "http://127.0.0.1:4873/a/b~c@d"},
		{trusted, []string{"X-Forwarded-Prefix: /"}, false, "http://127.0.0.1:4873"},
		{trusted, []string{"X-Forwarded-Host: "}, false, "http://127.0.0.1:4873"},
		{"[2001:db8::1]:999", []string{"X-Forwarded-Host: six.example.test"}, false, "http://six.example.test"},
		{"[::ffff:192.0.2.7]:999", []string{"X-Forwarded-Host: mapped.example.test"}, false, "http://mapped.example.test"},
		// What a proxy adds to a client's own header comes last.
		{trusted, []string{"X-Forwarded-Host: evil.example.test, npm.example.test"}, false, "http://npm.example.test"},
		{trusted, []string{"X-Forwarded-Host: evil.example.test", "X-Forwarded-Host: npm.example.test"}, false, "http://npm.example.test"},
		// A stranger's headers mean nothing.
		{stranger, []string{"X-Forwarded-Host: evil.example.test", "X-Forwarded-Proto: https", "X-Forwarded-Prefix: /e"}, false, "http://127.0.0.1:4873"},
		{"[2001:db8::2]:999", []string{"X-Forwarded-Host: evil.example.test"}, false, "http://127.0.0.1:4873"},
		{"@", []string{"X-Forwarded-Host: evil.example.test"}, false, "http://127.0.0.1:4873"},
		{trusted, []string{"X-Forwarded-Host: a b"}, false, ""},
		{trusted, []string{"X-Forwarded-Host: a/b"}, false, ""},
		{trusted, []string{"X-Forwarded-Host: a\"b"}, false, ""},
		{trusted, []string{"X-Forwarded-Proto: javascript"}, false, ""},
		{trusted, []string{"X-Forwarded-Prefix: npm"}, false, ""},
		{trusted, []string{"X-Forwarded-Prefix: /a?b"}, false, ""},
		{trusted, []string{"X-Forwarded-Prefix: /" + strings.Repeat("a", 300)}, false, ""},
		{stranger, []string{"Host: a\"b"}, false, ""},
	} {
		for _, path := range []string{"/left-pad", "/left-pad/latest"} {
			r := httptest.NewRequest("GET", "http://127.0.0.1:4873"+path, nil)
			r.RemoteAddr = tt.peer
			if tt.tls {
				r.TLS = &tls.ConnectionState{}
			}
			for _, h := range tt.headers {
				name, value, _ := strings.Cut(h, ": ")
				if name == "Host" {
					r.Host = value
				} else {
					r.Header.Add(name, value)
				}
			}
			got := httptest.NewRecorder()
			m.Handler().ServeHTTP(got, r)
			if tt.want == "" {
				if got.Code != http.StatusBadRequest {
					t.Errorf("%s %q: %d, want 400", tt.peer, tt.headers, got.Code)
				}
				continue
			}
			if want := `"` + tt.want + `/left-pad/-/left-pad-1.3.0.tgz"`; !strings.Contains(got.Body.String(), want) {
				t.Errorf("%s %s %q: no %s in %s", path, tt.peer, tt.headers, want, got.Body)
			}
		}
	}
}
