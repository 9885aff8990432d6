package mirror

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const corgi = "Accept: application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"

func TestRoutesOfTheRegistry(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	const immutable = "public, max-age=31536000, immutable"
	const revalidate = "private, max-age=0, must-revalidate"
	for _, tt := range []struct {
		method, path string
		header       string
		status       int
		kind, cache  string
		body         string // a part of it
	}{
		{"GET", "/left-pad", "", 200, "application/json", revalidate, `"description":"pads left"`},
		{"GET", "/left-pad", "Accept: */*", 200, "application/json", revalidate, `"_id"`},
		{"GET", "/left-pad", corgi, 200, npm.AbbreviatedType, revalidate, `"modified"`},
		{"GET", "/left-pad/", "", 200, "application/json", revalidate, `"left-pad"`},
		{"HEAD", "/left-pad", "", 200, "application/json", revalidate, ""},
		{"GET", "/@types/node", "", 200, "application/json", revalidate, `"@types/node"`},
		{"GET", "/@types%2fnode", "", 200, "application/json", revalidate, `"@types/node"`},
		{"GET", "/@types%2Fnode", corgi, 200, npm.AbbreviatedType, revalidate, `"@types/node"`},
		{"GET", "/%40types%2fnode", "", 200, "application/json", revalidate, `"@types/node"`},
		{"GET", "/left-pad/1.0.0", "", 200, "application/json; charset=utf-8", revalidate, `"version":"1.0.0"`},
		{"GET", "/left-pad/latest", "", 200, "application/json; charset=utf-8", revalidate, `"version":"1.3.0"`},
		{"GET", "/left-pad/old", "", 200, "application/json; charset=utf-8", revalidate, `http://127.0.0.1:4873/left-pad/-/left-pad-1.0.0.tgz`},
		{"GET", "/left-pad/2.0.0", "", 404, "application/json; charset=utf-8", "no-store", `{"error":"version not found: 2.0.0"}`},
		{"GET", "/@types%2fnode/latest", "", 200, "application/json; charset=utf-8", revalidate, `"20.0.0"`},
		{"GET", "/@types/node/20.0.0", "", 200, "application/json; charset=utf-8", revalidate, `"20.0.0"`},
		{"GET", "/left-pad/-/left-pad-1.3.0.tgz", "", 200, "application/octet-stream", immutable, "\x1f\x8b"},
		{"HEAD", "/left-pad/-/left-pad-1.3.0.tgz", "", 200, "application/octet-stream", immutable, ""},
		{"GET", "/@types/node/-/node-20.0.0.tgz", "", 200, "application/octet-stream", immutable, "\x1f\x8b"},
		{"GET", "/@types%2fnode/-/node-20.0.0.tgz", "", 200, "application/octet-stream", immutable, "\x1f\x8b"},
		{"GET", "/@types/node/-/@types/node-20.0.0.tgz", "", 200, "application/octet-stream", immutable, "\x1f\x8b"},
		{"GET", "/left-pad/-/left-pad-9.9.9.tgz", "", 404, "application/json; charset=utf-8", "no-store", `{"error":"Not found"}`},
		{"GET", "/left-pad/-/..%2fleft-pad-1.0.0.tgz", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/left-pad/-/%00", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/no-such", "", 404, "application/json; charset=utf-8", "no-store", `{"error":"Not found"}`},
		{"HEAD", "/no-such", "", 404, "application/json; charset=utf-8", "no-store", ""},
		{"GET", "/no-such/-/no-such-1.0.0.tgz", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/_registry", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/@types", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/%2e%2e/etc", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/", "", 200, "application/json; charset=utf-8", "no-store", `"doc_count":3`},
		{"GET", "/-/ping", "", 200, "application/json; charset=utf-8", "no-store", "{}"},
		{"GET", "/-/ping?write=true", "", 200, "application/json; charset=utf-8", "no-store", "{}"},
		{"GET", "/-/whoami", "", 401, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/-/package/left-pad/dist-tags", "", 200, "application/json; charset=utf-8", revalidate, `{"latest":"1.3.0","old":"1.0.0"}`},
		{"GET", "/-/package/@types%2fnode/dist-tags", "", 200, "application/json; charset=utf-8", revalidate, `{"latest":"20.0.0"}`},
		{"GET", "/-/package/@types/node/dist-tags", "", 200, "application/json; charset=utf-8", revalidate, `{"latest":"20.0.0"}`},
		{"GET", "/-/package/no-such/dist-tags", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/-/npm/v1/keys", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/-/npm/v1/attestations/left-pad@1.0.0", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"POST", "/-/npm/v1/security/advisories/bulk", "", 200, "application/json; charset=utf-8", "no-store", "{}"},
		{"POST", "/-/npm/v1/security/audits/quick", "", 200, "application/json; charset=utf-8", "no-store", `"advisories":{}`},
		{"GET", "/-/npm/v1/security/advisories/bulk", "", 404, "application/json; charset=utf-8", "no-store", `"error"`},
		{"PUT", "/left-pad", "", 405, "application/json; charset=utf-8", "no-store", `"error":"this registry is a read-only mirror`},
		{"DELETE", "/left-pad/-rev/1-0", "", 405, "application/json; charset=utf-8", "no-store", `"error"`},
		{"PUT", "/-/user/org.couchdb.user:me", "", 405, "application/json; charset=utf-8", "no-store", `"error"`},
		{"GET", "/left-pad", "Host: evil\"host", 400, "application/json; charset=utf-8", "no-store", `"error"`},
	} {
		got := do(m, tt.method, tt.path, strings.NewReader("{}"), tt.header)
		h := got.Header()
		if got.Code != tt.status || h.Get("Content-Type") != tt.kind || h.Get("Cache-Control") != tt.cache {
			t.Errorf("%s %s: %d %q %q, want %d %q %q", tt.method, tt.path, got.Code, h.Get("Content-Type"), h.Get("Cache-Control"), tt.status, tt.kind, tt.cache)
		}
		if !strings.Contains(got.Body.String(), tt.body) || tt.method == "HEAD" && got.Body.Len() > 0 {
			t.Errorf("%s %s: body %.300q, want %q in it", tt.method, tt.path, got.Body.String(), tt.body)
		}
		if h.Get("Content-Encoding") != "" {
			t.Errorf("%s %s: encoded though nobody asked", tt.method, tt.path)
		}
	}
}

// What is read out of documents has a strong validator of its bytes.
func TestValidatorsOfParts(t *testing.T) {
	w := newWorld(t)
	w.keys = []byte(`{"keys":[]}`)
	w.publish(everything...)
	m := w.synced()
	seen := map[string]string{}
	for _, path := range []string{"/left-pad/latest", "/left-pad/1.0.0", "/-/package/left-pad/dist-tags", "/-/package/is-odd/dist-tags", keysPath} {
		got := get(m, path)
		etag := got.Header().Get("ETag")
		if other, ok := seen[etag]; ok || len(etag) < 20 || etag[0] != '"' {
			t.Errorf("%s: ETag %s, that of %q", path, etag, other)
		}
		seen[etag] = path
		if head := do(m, "HEAD", path, nil); head.Code != 200 || head.Body.Len() > 0 || head.Header().Get("ETag") != etag || head.Header().Get("Content-Length") != got.Header().Get("Content-Length") {
			t.Errorf("HEAD %s: %d %v, %d bytes", path, head.Code, head.Header(), head.Body.Len())
		}
		for _, method := range []string{"GET", "HEAD"} {
			if again := do(m, method, path, nil, "If-None-Match: "+etag); again.Code != 304 || again.Body.Len() > 0 || again.Header().Get("ETag") != etag {
				t.Errorf("%s %s again: %d %v", method, path, again.Code, again.Header())
			}
		}
	}
	if got := get(m, "/left-pad/1.3.0"); seen[got.Header().Get("ETag")] != "/left-pad/latest" {
		t.Error("one version has two validators")
	}
	if got := get(m, "/left-pad/latest", "Host: registry.example.test"); seen[got.Header().Get("ETag")] != "" {
		t.Error("another address has the same validator")
	}
}

// Each representation has its own validator, and its 304 touches no document.
func TestValidators(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	seen := map[string]string{}
	requests := map[string][]string{
		"full":                {},
		"full gzip":           {"Accept-Encoding: gzip, deflate"},
		"abbreviated":         {corgi},
		"abbreviated gzip":    {corgi, "Accept-Encoding: gzip"},
		"full elsewhere":      {"Host: registry.example.test"},
		"full elsewhere gzip": {"Host: registry.example.test", "Accept-Encoding: gzip"},
	}
	for what, headers := range requests {
		got := get(m, "/left-pad", headers...)
		etag := got.Header().Get("ETag")
		if other, ok := seen[etag]; ok || !strings.HasPrefix(etag, `"`) {
			t.Errorf("%s: ETag %s, that of %q", what, etag, other)
		}
		seen[etag] = what
		if vary := got.Header().Get("Vary"); vary != "Accept, Accept-Encoding" {
			t.Errorf("%s: Vary %q", what, vary)
		}
	}
	// A mirror that has just started, and whose documents are nowhere.
	w.publish(everything...)
	w.lose(w.docs["left-pad"])
	m = w.synced()
	get(m, "/left-pad/-/left-pad-1.3.0.tgz") // brings the package's directory
	for etag, what := range seen {
		for _, agent := range []string{"npm/11.0.0 node/v22.0.0", "yarn/1.22.0"} {
			headers := append([]string{"User-Agent: " + agent, "If-None-Match: " + etag}, requests[what]...)
			got := get(m, "/left-pad", headers...)
			if got.Code != http.StatusNotModified || got.Header().Get("ETag") != etag || got.Body.Len() > 0 {
				t.Errorf("%s by %s: %d, ETag %s, want 304 with %s", what, agent, got.Code, got.Header().Get("ETag"), etag)
			}
		}
	}
	if got := m.Status(t.Context()).BytesBySource.Documents; got.Cache+got.Bitswap == 0 {
		t.Error("the integrity was read from no document")
	}
	if got := get(m, "/left-pad", `If-None-Match: "another"`); got.Code == http.StatusNotModified {
		t.Error("304 for another ETag")
	}
}

// Everybody gets tarball URLs at the address that they used; npm gets the
// stored bytes where it rewrites all of them itself.
func TestTarballURLs(t *testing.T) {
	w := newWorld(t)
	w.registry.Edit("is-odd", func(doc []byte) []byte {
		return bytes.ReplaceAll(doc, []byte(w.registry.URL), []byte(npm.DefaultRegistry()))
	})
	w.registry.Edit("@types/node", func(doc []byte) []byte {
		return bytes.ReplaceAll(doc, []byte(w.registry.URL), []byte(npm.DefaultRegistry()))
	})
	w.publish(everything...)
	m := w.synced()
	const isNPM, isYarn = "User-Agent: npm/11.0.0 node/v22.0.0 linux x64", "User-Agent: yarn/1.22.22 npm/? node/v22"
	for _, tt := range []struct{ name, agent, host, want string }{
		{"is-odd", isNPM, "127.0.0.1:4873", npm.DefaultRegistry() + "/is-odd/-/is-odd-3.0.1.tgz"},
		{"is-odd", isYarn, "127.0.0.1:4873", "http://127.0.0.1:4873/is-odd/-/is-odd-3.0.1.tgz"},
		{"is-odd", isYarn, "localhost:4873", "http://localhost:4873/is-odd/-/is-odd-3.0.1.tgz"},
		{"is-odd", isYarn, "[::1]:4873", "http://[::1]:4873/is-odd/-/is-odd-3.0.1.tgz"},
		{"@types/node", isNPM, "127.0.0.1:4873", npm.DefaultRegistry() + "/@types/node/-/node-20.0.0.tgz"},
		{"@types/node", isYarn, "127.0.0.1:4873", "http://127.0.0.1:4873/@types/node/-/node-20.0.0.tgz"},
		// Its URLs are of another upstream: npm would go there.
		{"left-pad", isNPM, "127.0.0.1:4873", "http://127.0.0.1:4873/left-pad/-/left-pad-1.3.0.tgz"},
	} {
		for _, accept := range []string{"Accept: application/json", corgi} {
			for _, encoding := range []string{"identity", "gzip"} {
				got := get(m, "/"+tt.name, tt.agent, accept, "Host: "+tt.host, "Accept-Encoding: "+encoding)
				p, err := npm.ParsePackument(plain(t, got.Result()))
				check(t, err)
				latest := p.Versions[p.DistTags["latest"]]
				if latest == nil || latest.Dist.Tarball != tt.want {
					t.Errorf("%s by %s at %s (%s, %s): %+v, want %s", tt.name, tt.agent, tt.host, accept, encoding, latest, tt.want)
				}
			}
		}
	}
	stored, _, _ := strings.Cut(w.docs["is-odd"].String(), "?")
	if got := get(m, "/is-odd", isNPM).Header().Get("ETag"); got != `"`+stored+`"` {
		t.Errorf("ETag of the stored bytes %s, want the document's CID", got)
	}
	if got := get(m, "/is-odd", isNPM).Body.Bytes(); !bytes.Equal(got, w.packument("is-odd")) {
		t.Error("npm does not get upstream's bytes")
	}
	m = w.synced(func(o *Options) { o.PublicURL = "https://npm.example.test/mirror/" })
	if got := get(m, "/is-odd", isYarn).Body.String(); !strings.Contains(got, `"https://npm.example.test/mirror/is-odd/-/is-odd-3.0.1.tgz"`) {
		t.Errorf("with a public URL: %s", got)
	}
}

// plain is a response's body without its encoding; its length must be the one
// announced.
func plain(t *testing.T, resp *http.Response) []byte {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.ContentLength != int64(len(body)) {
		t.Errorf("Content-Length %d, body %d", resp.ContentLength, len(body))
	}
	switch resp.Header.Get("Content-Encoding") {
	case "":
		return body
	case "zstd":
		d, err := zstd.NewReader(nil)
		check(t, err)
		defer d.Close()
		body, err = d.DecodeAll(body, nil)
		check(t, err)
		return body
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	check(t, err)
	body, err = io.ReadAll(z)
	check(t, err)
	return body
}

func TestAudit(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	const bulk = "/-/npm/v1/security/advisories/bulk"
	// A bomb is taken as the bytes it is.
	got := do(m, "POST", bulk, strings.NewReader("\x1f\x8b\x08 not even gzip"), "Content-Encoding: gzip", "Npm-Command: audit")
	if got.Code != 200 || got.Header().Get("Npm-Notice") == "" {
		t.Errorf("%d, notice %q; who asks for an audit is to be told that there is none", got.Code, got.Header().Get("Npm-Notice"))
	}
	if got := do(m, "POST", bulk, strings.NewReader("{}"), "Npm-Command: install"); got.Header().Get("Npm-Notice") != "" {
		t.Error("an install is disturbed by a notice")
	}
	if got := do(m, "POST", bulk, io.LimitReader(zeroes{}, maxAudit+1)); got.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a giant body: %d, want 413", got.Code)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSearch(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	if got := get(m, "/-/v1/search?text=a"); got.Code != http.StatusServiceUnavailable {
		t.Errorf("before the first sync: %d, want 503", got.Code)
	}
	w.publish(everything...)
	check(t, m.Sync(t.Context()))
	type result struct {
		Objects []struct {
			Package struct{ Name, Version, Description, Date string }
		}
		Total int
	}
	search := func(query string) (names []string, r result) {
		t.Helper()
		check(t, json.Unmarshal(get(m, "/-/v1/search?"+query, asNPM).Body.Bytes(), &r))
		for _, o := range r.Objects {
			names = append(names, o.Package.Name)
			if o.Package.Version == "" {
				t.Errorf("%s has no version: pnpm aborts", o.Package.Name)
			}
		}
		return names, r
	}
	if names, r := search("text=PAD+left"); len(names) != 1 || r.Objects[0].Package.Version != "1.3.0" || r.Objects[0].Package.Description != "pads left" || r.Objects[0].Package.Date == "" {
		t.Errorf("PAD left: %+v", r)
	}
	if names, r := search("text=&size=2"); len(names) != 2 || r.Total != 3 {
		t.Errorf("two of all: %v of %d", names, r.Total)
	}
	if names, r := search("text=&size=2&from=2"); len(names) != 1 || r.Total != 3 {
		t.Errorf("the rest: %v of %d", names, r.Total)
	}
	if names, _ := search("text=nothing"); len(names) != 0 {
		t.Errorf("nothing: %v", names)
	}
	if got := get(m, "/-/v1/search?text=a&size=x"); got.Code != http.StatusBadRequest {
		t.Errorf("size=x: %d", got.Code)
	}
}

// Whatever upstream has in a document, a search result has the types that
// clients take without looking.
func TestSearchTypes(t *testing.T) {
	for _, tt := range []struct{ fields, want string }{
		{``, `"keywords":[],"maintainers":[]`},
		{`"description":7,"keywords":"a, b","maintainers":"me"`, `"version":"1.3.0","keywords":["a","b"],"maintainers":[]`},
		{`"keywords":["a",1,null,"b"]`, `"keywords":["a","b"]`},
		{`"maintainers":[{"name":"me","email":"me@example.test"},"x",null,{"email":"e"},{"name":"we"}]`,
			`"maintainers":[{"username":"me","email":"me@example.test"},{"username":"x"},{"username":"we"}]`},
		{`"description":"<b>"`, `"description":"\u003cb\u003e"`},
		{`"time":{"1.3.0":"yesterday"}`, `"maintainers":[],"links"`},
		{`"time":{"1.3.0":"2020-01-01T00:00:00.000Z"}`, `"date":"2020-01-01T00:00:00.000Z"`},
		{`"time":[]`, `"maintainers":[],"links"`},
	} {
		w := newWorld(t)
		w.registry.Edit("left-pad", func(doc []byte) []byte {
			var d map[string]json.RawMessage
			check(t, json.Unmarshal(doc, &d))
			for _, key := range []string{"description", "time"} {
				delete(d, key)
			}
			check(t, json.Unmarshal([]byte("{"+tt.fields+"}"), &d))
			doc, err := json.Marshal(d)
			check(t, err)
			return doc
		})
		w.publish("left-pad")
		if got := get(w.synced(), "/-/v1/search?text=left-pad", asNPM).Body.String(); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s in it", tt.fields, got, tt.want)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for _, tt := range []struct {
		header       string
		stored, made coding // where gzip is preferred, and where zstd is
	}{
		{"", identity, identity},
		{"gzip", gzipped, gzipped},
		{"GZIP", gzipped, gzipped},
		{"x-gzip", gzipped, gzipped},
		{"gzip, deflate", gzipped, gzipped},             // npm, yarn 1, pnpm 11
		{"gzip,deflate,br", gzipped, gzipped},           // yarn 4, pnpm 10
		{"zstd,gzip,deflate", gzipped, zstandard},       // pnpm 12
		{"gzip, deflate, br, zstd", gzipped, zstandard}, // bun
		{"zstd", zstandard, zstandard},
		{"zstd;q=0", identity, identity},
		{"zstd;q=0.9, gzip", gzipped, gzipped},
		{"gzip;q=0.5, zstd;q=0.6", zstandard, zstandard},
		{"gzip;q=0.5 , zstd ; q=0.5", gzipped, zstandard},
		{"gzip;q=0, zstd", zstandard, zstandard},
		{"gzip;q=0.5", gzipped, gzipped},
		{"gzip; Q=0.5", gzipped, gzipped},
		{"gzip;q=0", identity, identity},
		{"gzip;q=0.000", identity, identity},
		{"gzip;q=x", identity, identity},
		{"gzip;q=2", identity, identity},
		{"gzip;q=NaN", identity, identity},
		{"gzip;q=-1", identity, identity},
		{"br", identity, identity},
		{"*", gzipped, gzipped}, // zstd only for those who name it
		{"*;q=0", identity, identity},
		{"gzip;q=0, *", identity, identity},
		{"identity", identity, identity},
		{"identity, gzip", gzipped, gzipped},
		{"identity;q=1, gzip;q=0.5", identity, identity},
		{"identity;q=0, gzip", gzipped, gzipped},
		{", ,gzip,", gzipped, gzipped},
	} {
		if stored, made := negotiate(tt.header, gzipped), negotiate(tt.header, zstandard); stored != tt.stored || made != tt.made {
			t.Errorf("%q: %s and %s, want %s and %s", tt.header, stored, made, tt.stored, tt.made)
		}
	}
}

// A document comes in the coding that was negotiated, each with a validator of
// its own, and is compressed once.
func TestCodings(t *testing.T) {
	w := newWorld(t)
	w.registry.Edit("is-odd", func(doc []byte) []byte {
		return bytes.ReplaceAll(doc, []byte(w.registry.URL), []byte(npm.DefaultRegistry()))
	})
	w.publish(everything...)
	m := w.synced()
	const isNPM, isPNPM = "User-Agent: npm/12.0.0 node/v22.0.0", "User-Agent: pnpm/12.21.0"
	tags := map[string]bool{}
	for _, tt := range []struct{ agent, accept, want, suffix string }{
		{isPNPM, "zstd,gzip,deflate", "zstd", `.zst"`},
		{isPNPM, "gzip", "gzip", `.gz"`},
		{isPNPM, "identity", "", `"`},
		{isNPM, "gzip, zstd", "gzip", `.gz"`}, // the stored bytes
		{isNPM, "zstd", "zstd", `.zst"`},
		{isNPM, "br", "", `"`},
	} {
		headers := []string{tt.agent, "Accept-Encoding: " + tt.accept}
		first := get(m, "/is-odd", headers...)
		h, etag := first.Header(), first.Header().Get("ETag")
		if h.Get("Content-Encoding") != tt.want || !strings.HasSuffix(etag, tt.suffix) || tags[etag] {
			t.Errorf("%s to %s: %q, ETag %s", tt.accept, tt.agent, h.Get("Content-Encoding"), etag)
		}
		tags[etag] = true
		if _, err := npm.ParsePackument(plain(t, first.Result())); err != nil {
			t.Errorf("%s to %s: %v", tt.accept, tt.agent, err)
		}
		held := m.bodies.used
		if again := get(m, "/is-odd", headers...); !bytes.Equal(again.Body.Bytes(), first.Body.Bytes()) || m.bodies.used != held {
			t.Errorf("%s to %s: made again", tt.accept, tt.agent)
		}
		head := do(m, "HEAD", "/is-odd", nil, headers...)
		if head.Header().Get("Content-Length") != h.Get("Content-Length") || head.Header().Get("ETag") != etag || head.Body.Len() > 0 {
			t.Errorf("%s to %s: HEAD %v, GET %v", tt.accept, tt.agent, head.Header(), h)
		}
		if got := get(m, "/is-odd", append(headers, `If-None-Match: "x", `+etag)...); got.Code != http.StatusNotModified {
			t.Errorf("%s to %s: %d for its ETag", tt.accept, tt.agent, got.Code)
		}
	}
}

// A tarball is its bytes and nothing else, whatever a client would take.
func TestTarballHeaders(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	tarball := w.registry.Tarball("left-pad", "1.3.0")
	etag := `"` + w.files["left-pad-1.3.0.tgz"].String() + `"`
	size := len(tarball)
	for _, tt := range []struct {
		method  string
		headers []string
		status  int
		body    []byte
		length  int
	}{
		{"GET", []string{"Accept-Encoding: zstd, gzip, br"}, 200, tarball, size},
		{"HEAD", []string{"Accept-Encoding: gzip"}, 200, nil, size},
		{"GET", []string{"Range: bytes=0-9"}, 206, tarball[:10], 10},
		{"GET", []string{"Range: bytes=-4"}, 206, tarball[size-4:], 4},
		{"GET", []string{"Range: bytes=10-", "If-Range: " + etag}, 206, tarball[10:], size - 10},
		{"GET", []string{"Range: bytes=10-", `If-Range: "other"`}, 200, tarball, size},
		{"GET", []string{"Range: bytes=99999999-"}, 416, nil, -1},
		{"GET", []string{"If-None-Match: " + etag}, 304, nil, -1},
		{"GET", []string{`If-None-Match: "x", W/` + etag}, 304, nil, -1},
		{"HEAD", []string{"If-None-Match: " + etag}, 304, nil, -1},
		{"GET", []string{"If-None-Match: *"}, 304, nil, -1},
		{"GET", []string{`If-None-Match: "x"`}, 200, tarball, size},
		{"GET", []string{"If-None-Match: " + etag, "Range: bytes=0-9"}, 304, nil, -1},
	} {
		for _, path := range []string{"/left-pad/-/left-pad-1.3.0.tgz", "/left-pad/-/left-pad-1%2E3.0.tgz?x=1"} {
			got := do(m, tt.method, path, nil, tt.headers...)
			h := got.Header()
			if got.Code != tt.status || tt.body != nil && !bytes.Equal(got.Body.Bytes(), tt.body) || tt.method == "HEAD" && got.Body.Len() > 0 {
				t.Errorf("%s %q: %d, %d bytes, want %d, %d bytes", tt.method, tt.headers, got.Code, got.Body.Len(), tt.status, len(tt.body))
			}
			if h.Get("Content-Encoding") != "" || h.Get("Vary") != "" || got.Code < 400 && h.Get("ETag") != etag {
				t.Errorf("%s %q: %v", tt.method, tt.headers, h)
			}
			if length := h.Get("Content-Length"); tt.length >= 0 && length != strconv.Itoa(tt.length) {
				t.Errorf("%s %q: Content-Length %s, want %d", tt.method, tt.headers, length, tt.length)
			}
		}
	}
}

// Full or abbreviated: who names npm's type gets it, at whatever weight, as from
// npm's own registry; all else means the full document.
func TestForms(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	for accept, short := range map[string]bool{
		"": false, "*/*": false, "application/json": false, "application/json; q=1.0, */*": false, "text/html": false,
		npm.AbbreviatedType: true, strings.TrimPrefix(corgi, "Accept: "): true, npm.AbbreviatedType + ";q=0.1, application/json": true,
	} {
		for _, path := range []string{"/left-pad", "/@types/node", "/@types%2fnode", "/@types%2Fnode", "/%40types%2Fnode", "/@types%2Fnode/"} {
			var headers []string
			if accept != "" {
				headers = append(headers, "Accept: "+accept)
			}
			got := get(m, path, headers...)
			kind, full := "application/json", strings.Contains(got.Body.String(), `"_id"`)
			if short {
				kind = npm.AbbreviatedType
			}
			if got.Code != 200 || got.Header().Get("Content-Type") != kind || full == short || !strings.Contains(got.Body.String(), `"time"`) {
				t.Errorf("%s, Accept %q: %d %s, full %v", path, accept, got.Code, got.Header().Get("Content-Type"), full)
			}
		}
	}
}

func TestMatches(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, `"a"`: true, `W/"a"`: true, `"b", "a"`: true, `"b"`: false, "*": true, "a": false,
	} {
		if got := matches(header, `"a"`); got != want {
			t.Errorf("matches(%q) = %v", header, got)
		}
	}
}

func TestLRU(t *testing.T) {
	c := newLRU[string, int](100)
	c.put("a", 1, 25)
	c.put("b", 2, 25)
	c.put("c", 3, 25)
	c.put("d", 4, 25)
	c.get("a")
	c.put("e", 5, 20)
	c.put("giant", 6, 26)
	for key, want := range map[string]bool{"a": true, "b": false, "c": true, "d": true, "e": true, "giant": false} {
		if _, ok := c.get(key); ok != want {
			t.Errorf("%s kept: %v", key, ok)
		}
	}
	c.put("a", 7, 5)
	if v, _ := c.get("a"); v != 7 || c.used != 75 {
		t.Errorf("a = %d, used %d, want 7 and 75", v, c.used)
	}
}

// Serve answers on real connections and ends with its context.
func TestServe(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	a, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	b, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- crowd.Serve(ctx, m.log, m.Handler(), a, b) }()
	for _, l := range []net.Listener{a, b} {
		resp, err := http.Get("http://" + l.Addr().String() + "/left-pad/-/left-pad-1.3.0.tgz")
		check(t, err)
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		resp.Body.Close()
		if !bytes.Equal(body, w.registry.Tarball("left-pad", "1.3.0")) {
			t.Error("other bytes than published")
		}
	}
	cancel()
	check(t, <-ended)
	if _, err := net.Dial("tcp", a.Addr().String()); err == nil {
		t.Error("still listening")
	}
}
