package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

func TestMain(m *testing.M) { loopback.Main(m) }

const archive = `
-- left-pad@1.0.0/index.js --
module.exports = 1
-- @s/dep@1.0.0/index.js --
module.exports = 2
`

// client returns a client of the registry that wastes no time between attempts.
func client(registry string, change ...func(*Options)) *Client {
	o := Options{Registry: npm.Config{Registry: registry}, UserAgent: "test/1", Attempts: 3, Backoff: time.Microsecond}
	for _, c := range change {
		c(&o)
	}
	return New(o)
}

func distOf(t *testing.T, c *Client, name npm.Name, version string) npm.Dist {
	t.Helper()
	p, err := c.Packument(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := npm.ParsePackument(p.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return doc.Versions[version].Dist
}

func TestPackument(t *testing.T) {
	r := npmtest.New(t, archive)
	var header http.Header
	r.Fault("/", func(_ http.ResponseWriter, req *http.Request) bool { header = req.Header; return false })
	c := client(r.URL)
	p, err := c.Packument(t.Context(), "@s/dep", "")
	if err != nil {
		t.Fatal(err)
	}
	if doc, err := npm.ParsePackument(p.Raw); err != nil || doc.Name != "@s/dep" || p.ETag == "" || p.NotModified {
		t.Errorf("%+v, %v", p, err)
	}
	if header.Get("Accept") != "application/json" || header.Get("User-Agent") != "test/1" || header.Get("Accept-Encoding") != "gzip" || r.Requests("/@s%2fdep") != 1 {
		t.Errorf("header %v", header)
	}
	again, err := c.Packument(t.Context(), "@s/dep", p.ETag)
	if err != nil || !again.NotModified || again.Raw != nil || again.ETag != p.ETag {
		t.Errorf("%+v, %v", again, err)
	}
	r.Publish("-- @s/dep@1.0.1/index.js --\n3\n")
	again, err = c.Packument(t.Context(), "@s/dep", p.ETag)
	if err != nil || again.NotModified || again.ETag == p.ETag || !bytes.Contains(again.Raw, []byte("1.0.1")) {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := c.Packument(t.Context(), "nothing", ""); !errors.Is(err, ErrNotFound) || r.Requests("/nothing") != 1 {
		t.Errorf("404: %v after %d requests", err, r.Requests("/nothing"))
	}
}

// Each fault is served until it has been served `times` times.
func TestPackumentFaults(t *testing.T) {
	status := func(code int, header ...string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	body := func(s string) func(http.ResponseWriter) { return func(w http.ResponseWriter) { io.WriteString(w, s) } }
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, `{"name":`)
	}
	abort := func(w http.ResponseWriter) {
		io.WriteString(w, `{"name":"x"}`)
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	bomb := func(w http.ResponseWriter) {
		w.Header().Set("Content-Encoding", "gzip")
		zw := gzip.NewWriter(w)
		zw.Write(bytes.Repeat([]byte("{}"), 1<<20)) // a few kilobytes on the wire
		zw.Close()
	}
	chunks := func(w http.ResponseWriter) {
		for range 100 {
			w.Write(make([]byte, 10_000))
			http.NewResponseController(w).Flush()
		}
	}
	for _, c := range []struct {
		name     string
		fault    func(http.ResponseWriter)
		times    int
		want     error
		requests int
	}{
		{"500Once", status(500), 1, nil, 2},
		{"503Twice", status(503), 2, nil, 3},
		{"503Always", status(503), 9, ErrUnavailable, 3},
		{"429", status(429, "Retry-After", "0.001"), 1, nil, 2},
		{"429Zero", status(429, "Retry-After", "0"), 1, nil, 2},
		{"408", status(408), 1, nil, 2},
		{"404", status(404), 9, ErrNotFound, 1},
		{"410", status(410), 9, ErrNotFound, 1},
		{"401", status(401), 9, ErrRefused, 1},
		{"403", status(403), 9, ErrRefused, 1},
		{"451", status(451), 9, ErrRefused, 1},
		{"304Unasked", status(304), 9, ErrUnavailable, 3},
		{"204", status(204), 9, ErrUnavailable, 3},
		{"302Nowhere", status(302), 9, ErrUnavailable, 3},
		{"HTML", body("<html>"), 1, nil, 2},
		{"HTMLAlways", body("<html>"), 9, ErrUnavailable, 3},
		{"Empty", body(""), 1, nil, 2},
		{"CutBehindAProxy", body(`{"name":"x","versions":{"1`), 1, nil, 2},
		{"Cut", cut, 1, nil, 2},
		{"CutAlways", cut, 9, ErrUnavailable, 3},
		{"Aborted", abort, 1, nil, 2},
		{"TooLarge", status(200, "Content-Length", "100001"), 9, ErrTooLarge, 1},
		{"TooLargeInChunks", chunks, 9, ErrTooLarge, 1},
		{"Bomb", bomb, 9, ErrTooLarge, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := npmtest.New(t, archive)
			var served atomic.Int32
			r.Fault("/left-pad", func(w http.ResponseWriter, _ *http.Request) bool {
				if int(served.Add(1)) > c.times {
					return false
				}
				c.fault(w)
				return true
			})
			_, err := client(r.URL, func(o *Options) { o.MaxPackument = 100_000 }).Packument(t.Context(), "left-pad", "")
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Errorf("%v; want %v", err, c.want)
			}
			if n := r.Requests("/left-pad"); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
			if err != nil && !strings.Contains(err.Error(), "left-pad") {
				t.Errorf("the error does not say of what: %v", err)
			}
		})
	}
}

func TestNetworkDown(t *testing.T) {
	r := npmtest.New(t, "")
	c := client(r.URL)
	r.Close()
	if _, err := c.Packument(t.Context(), "x", ""); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	// A name that cannot be looked up; the tests' resolver refuses.
	if _, err := client("https://r.example.test").Packument(t.Context(), "x", ""); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

func TestContextEnds(t *testing.T) {
	r := npmtest.New(t, archive)
	ctx, cancel := context.WithCancel(t.Context())
	r.Fault("/left-pad", func(_ http.ResponseWriter, req *http.Request) bool {
		cancel()
		<-req.Context().Done()
		return true
	})
	if _, err := client(r.URL).Packument(ctx, "left-pad", ""); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if r.Requests("/left-pad") != 1 {
		t.Error("asked again after the context ended")
	}
}

func TestTarball(t *testing.T) {
	r := npmtest.New(t, archive)
	spool := t.TempDir()
	c := client(r.URL, func(o *Options) { o.Spool = spool })
	d := distOf(t, c, "@s/dep", "1.0.0")
	tb, err := c.Tarball(t.Context(), "@s/dep", "1.0.0", d)
	if err != nil {
		t.Fatal(err)
	}
	defer tb.Close()
	want := r.Tarball("@s/dep", "1.0.0")
	for range 2 {
		got, err := io.ReadAll(tb)
		if err != nil || !bytes.Equal(got, want) || tb.Size != int64(len(want)) {
			t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
		}
		if _, err := tb.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
	if tb.SRI != d.Integrity || tb.Shasum != d.Shasum {
		t.Errorf("SRI %s, shasum %s", tb.SRI, tb.Shasum)
	}
	// Where the document says npm's public host, the configured registry is meant.
	d.Tarball = npm.DefaultRegistry() + strings.TrimPrefix(d.Tarball, r.URL)
	if tb, err := c.Tarball(t.Context(), "@s/dep", "1.0.0", d); err != nil {
		t.Error(err)
	} else {
		tb.Close()
	}
	if n := r.Requests("/@s/dep/-/dep-1.0.0.tgz"); n != 2 {
		t.Errorf("%d requests", n)
	}
}

func sri(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

func TestTarballSpool(t *testing.T) {
	body := make([]byte, largeTarball+100_000)
	for i := range body {
		body[i] = byte(i * i >> 8)
	}
	for _, c := range []struct {
		name    string
		size    int
		crowded bool // all large ones that may be in memory are
		spooled bool // where the size was said; without it, all beyond memoryTarball are
	}{
		{"Empty", 0, false, false}, {"Small", 1000, false, false}, {"JustInMemory", memoryTarball, true, false}, {"JustBeyond", memoryTarball + 1, false, false},
		{"JustBeyondCrowded", memoryTarball + 1, true, true}, {"JustLarge", largeTarball, false, false}, {"TooLargeForMemory", len(body), false, true},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, chunked), func(t *testing.T) {
				body := body[:c.size]
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if req.Header.Get("Accept-Encoding") != "identity" {
						t.Errorf("Accept-Encoding %q", req.Header.Get("Accept-Encoding"))
					}
					// Some servers label a .tgz so. It must not be unpacked.
					w.Header().Set("Content-Encoding", "gzip")
					if chunked {
						http.NewResponseController(w).Flush()
					} else {
						w.Header().Set("Content-Length", fmt.Sprint(len(body)))
					}
					w.Write(body)
				}))
				defer s.Close()
				spool := t.TempDir()
				client := client(s.URL, func(o *Options) { o.Spool = spool; o.MaxTarball = int64(max(1, len(body))) })
				for range maxLarge - 1 {
					client.large <- struct{}{}
				}
				if c.crowded {
					client.large <- struct{}{}
				}
				taken := len(client.large)
				tb, err := client.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: s.URL + "/n.tgz", Integrity: sri(body)})
				if err != nil {
					t.Fatal(err)
				}
				spooled := c.spooled || chunked && c.size > memoryTarball
				if got, err := io.ReadAll(tb); err != nil || !bytes.Equal(got, body) || tb.Size != int64(len(body)) || (tb.file != nil) != spooled {
					t.Errorf("%d of %d bytes, spooled %v, %v", len(got), len(body), tb.file != nil, err)
				}
				if data := tb.Bytes(); (data == nil) != spooled || data != nil && !bytes.Equal(data, body) {
					t.Errorf("%d bytes in memory, spooled %v", len(data), spooled)
				}
				if left, err := filepath.Glob(filepath.Join(spool, "*")); err != nil || len(left) != 0 {
					t.Errorf("the spool has a name: %q", left)
				}
				if err := tb.Close(); err != nil {
					t.Error(err)
				}
				if len(client.large) != taken {
					t.Errorf("%d large tarballs count as in memory, want %d", len(client.large), taken)
				}
				if c.size < 2 {
					return
				}
				client.o.MaxTarball = int64(len(body)) - 1
				if _, err := client.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: s.URL + "/n.tgz", Integrity: sri(body)}); !errors.Is(err, ErrTooLarge) {
					t.Errorf("one byte too large: %v", err)
				}
				if len(client.large) != taken {
					t.Errorf("%d large tarballs count as in memory after a refusal, want %d", len(client.large), taken)
				}
			})
		}
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }))
	defer s.Close()
	c := client(s.URL, func(o *Options) { o.Spool = filepath.Join(t.TempDir(), "missing") })
	if _, err := c.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: s.URL + "/n.tgz", Integrity: sri(body)}); !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrUnavailable) {
		t.Errorf("no place to spool: %v", err)
	}
}

func TestTarballFaults(t *testing.T) {
	const path = "/left-pad/-/left-pad-1.0.0.tgz"
	wrong := func(w http.ResponseWriter, _ []byte) { io.WriteString(w, "something else") }
	for _, c := range []struct {
		name     string
		fault    func(w http.ResponseWriter, body []byte)
		times    int
		change   func(*npm.Dist)
		want     error
		requests int
	}{
		{"MismatchOnce", wrong, 1, nil, nil, 2},
		{"MismatchAlways", wrong, 9, nil, npm.ErrIntegrity, 2},
		{"RightIntegrityWrongShasum", nil, 0, func(d *npm.Dist) { d.Shasum = strings.Repeat("0", 40) }, npm.ErrIntegrity, 2},
		{"OneByteMore", func(w http.ResponseWriter, body []byte) { w.Write(append(body[:len(body):len(body)], 0)) }, 9, nil, npm.ErrIntegrity, 2},
		{"NoIntegrity", nil, 0, func(d *npm.Dist) { d.Shasum, d.Integrity = "", "" }, npm.ErrNoIntegrity, 0},
		{"CutOnce", func(w http.ResponseWriter, body []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body[:len(body)/2])
		}, 1, nil, nil, 2},
		{"AbortedAlways", func(w http.ResponseWriter, body []byte) {
			w.Write(body[:len(body)/2])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, 9, nil, ErrUnavailable, 3},
		{"304", func(w http.ResponseWriter, _ []byte) { w.WriteHeader(304) }, 9, nil, ErrUnavailable, 3},
		{"404", func(w http.ResponseWriter, _ []byte) { w.WriteHeader(404) }, 9, nil, ErrNotFound, 1},
		{"403", func(w http.ResponseWriter, _ []byte) { w.WriteHeader(403) }, 9, nil, ErrRefused, 1},
		{"503Once", func(w http.ResponseWriter, _ []byte) { w.WriteHeader(503) }, 1, nil, nil, 2},
		{"OtherHost", nil, 0, func(d *npm.Dist) { d.Tarball = "https://evil.example.test" + path }, ErrRefused, 0},
		{"OtherPort", nil, 0, func(d *npm.Dist) { d.Tarball = "http://127.0.0.1:1" + path }, ErrRefused, 0},
		{"File", nil, 0, func(d *npm.Dist) { d.Tarball = "file:///etc/passwd" }, ErrRefused, 0},
		{"Relative", nil, 0, func(d *npm.Dist) { d.Tarball = path }, ErrRefused, 0},
		{"User", nil, 0, func(d *npm.Dist) { d.Tarball = strings.Replace(d.Tarball, "://", "://u:p@", 1) }, ErrRefused, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := npmtest.New(t, archive)
			cl := client(r.URL)
			d := distOf(t, cl, "left-pad", "1.0.0")
			body := r.Tarball("left-pad", "1.0.0")
			var served atomic.Int32
			var caching []string
			r.Fault(path, func(w http.ResponseWriter, req *http.Request) bool {
				caching = append(caching, req.Header.Get("Cache-Control"))
				if int(served.Add(1)) > c.times {
					return false
				}
				c.fault(w, body)
				return true
			})
			if c.change != nil {
				c.change(&d)
			}
			tb, err := cl.Tarball(t.Context(), "left-pad", "1.0.0", d)
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if n := r.Requests(path); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
			if errors.Is(err, npm.ErrIntegrity) && caching[len(caching)-1] != "no-cache" {
				t.Errorf("asked past caches: %q", caching)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "left-pad@1.0.0") {
					t.Errorf("the error does not say of what: %v", err)
				}
				return
			}
			defer tb.Close()
			if got, err := io.ReadAll(tb); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d of %d bytes, %v", len(got), len(body), err)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	ring := npm.PublicKeys()
	if got, err := client(npm.DefaultRegistry()).Keys(t.Context()); err != nil || len(got) != len(ring) {
		t.Errorf("npm's own: %d keys, %v", len(got), err)
	}
	const list = `{"keys":[{"keyid":"SHA256:a","keytype":"ecdsa-sha2-nistp256","scheme":"ecdsa-sha2-nistp256","expires":null,` +
		`"key":"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEY6Ya7W++7aUPzvMTrezH6Ycx3c+HOKYCcNGybJZSCJq/fd7Qa8uuAKtdIkUQtQiEKERhAmE5lMMJhP8OkDOa2g=="}]}`
	for _, c := range []struct {
		name     string
		handler  http.HandlerFunc
		keys     int
		want     error
		requests int
	}{
		{"One", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, list) }, 1, nil, 1},
		{"None", http.NotFound, 0, nil, 1},
		{"Gone", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }, 0, nil, 1},
		{"Refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 0, ErrRefused, 1},
		{"Down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, 0, ErrUnavailable, 3},
		{"HTML", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, 0, npm.ErrKeys, 1},
		{"Endless", func(w http.ResponseWriter, req *http.Request) {
			for req.Context().Err() == nil {
				w.Write(make([]byte, 64<<10))
			}
		}, 0, ErrTooLarge, 1},
		{"304", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, 0, ErrUnavailable, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			requests := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if requests++; req.URL.Path != "/npm/-/npm/v1/keys" {
					t.Errorf("asked for %s", req.URL)
				}
				c.handler(w, req)
			}))
			defer s.Close()
			ring, err := client(s.URL + "/npm").Keys(t.Context())
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) || len(ring) != c.keys || requests != c.requests {
				t.Errorf("%d keys, %v after %d requests", len(ring), err, requests)
			}
		})
	}
}

// The document is the registry's own bytes, of npm's public registry those that
// are compiled in.
func TestKeysDocument(t *testing.T) {
	r := npmtest.New(t, "")
	r.Sign()
	if raw, err := client(r.URL).KeysDocument(t.Context()); err != nil || !bytes.Equal(raw, r.Keys()) {
		t.Errorf("%q, %v, want %q", raw, err, r.Keys())
	}
	if raw, err := client(npm.DefaultRegistry()).KeysDocument(t.Context()); err != nil || !bytes.Equal(raw, npm.PublicKeysDocument()) {
		t.Errorf("npm's: %q, %v", raw, err)
	}
}

func TestAttestations(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    error
	}{
		{"Some", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{ \"attestations\": []}\n") }, nil},
		{"None", http.NotFound, ErrNotFound},
		{"Down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, ErrUnavailable},
		{"HTML", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, ErrUnavailable},
		{"Large", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxAttestations+1)) }, ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.RequestURI != "/npm/-/npm/v1/attestations/@s%2fdep@1.0.0+b" {
					t.Errorf("asked for %s", req.RequestURI)
				}
				c.handler(w, req)
			}))
			defer s.Close()
			raw, err := client(s.URL+"/npm").Attestations(t.Context(), "@s/dep", "1.0.0+b")
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) || err == nil && string(raw) != "{ \"attestations\": []}\n" {
				t.Errorf("%q, %v", raw, err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, " 5 ": 5 * time.Second, "-5": 0, "86400": maxRetryAfter, "soon": 0, "1h": 0,
		now.Add(10 * time.Second).Format(http.TimeFormat): 10 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("Retry-After %q: %v, want %v", header, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"0", "5", "-1", "1e9", "NaN", "Wed, 21 Oct 2015 07:28:00 GMT", "9999999999999999999999", "1h"} {
		f.Add(s, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, header string, now int64) {
		if wait := retryAfter(header, time.Unix(now%(1<<40), 0)); wait < 0 || wait > maxRetryAfter {
			t.Fatalf("Retry-After %q: %v", header, wait)
		}
	})
}

func TestRetryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, tries := time.Now(), 0
		resp := &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {"20"}}}
		_, err := retry(t.Context(), Options{Attempts: 3, Backoff: time.Second}, func(context.Context) (int, error) {
			tries++
			return 0, statusError(resp)
		})
		if !errors.Is(err, ErrUnavailable) || tries != 3 || time.Since(start) != 40*time.Second {
			t.Errorf("%v after %d tries and %v", err, tries, time.Since(start))
		}
	})
}

// A transfer that drips is given up, one that is merely slow is not.
func TestStall(t *testing.T) {
	for _, c := range []struct {
		name    string
		every   time.Duration
		stalled bool
	}{
		{"Slow", 20 * time.Second, false},
		{"Dripping", 31 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pr, pw := io.Pipe()
				errStalled := errors.New("stalled")
				w := newWatch(func() { pw.CloseWithError(errStalled) })
				defer w.stop()
				w.r, w.cause = pr, func() error { return nil }
				done := make(chan struct{})
				defer func() { <-done }()
				go func() {
					defer close(done)
					for range 20 {
						time.Sleep(c.every)
						if _, err := pw.Write(make([]byte, stallBytes)); err != nil {
							return
						}
					}
					pw.Close()
				}()
				_, err := io.Copy(io.Discard, w)
				if errors.Is(err, errStalled) != c.stalled {
					t.Error(err)
				}
			})
		})
	}
}
