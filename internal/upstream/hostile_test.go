package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// bomb is a gzip stream of 64 MiB of zeros, 64 KiB on the wire.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	for range 64 {
		zw.Write(make([]byte, 1<<20))
	}
	zw.Close()
	return b.Bytes()
})

// endless writes until the other side has had enough.
func endless(w http.ResponseWriter, req *http.Request, block []byte) {
	for req.Context().Err() == nil {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// Whatever a registry answers ends in one of the package's errors, after as
// many requests as that one is worth, in bounded memory.
func TestHostile(t *testing.T) {
	const limit = 8 << 20 // of packuments and of tarballs
	body := bytes.Repeat([]byte("tarball "), 1000)
	shasum := sha1.Sum(body)
	right := npm.Dist{Integrity: sri(body), Shasum: hex.EncodeToString(shasum[:])}
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) }
	}
	length := func(n string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			// Past net/http, which keeps a server from lying.
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s", n, body)
			rw.Flush()
			conn.Close()
		}
	}
	bomb() // before anything is measured
	past := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		dist    *npm.Dist // of the tarball to fetch; nil for the packument
		want    error     // nil: it must work
		asked   int
	}{
		{"HTML", text("<!doctype html><html></html>"), nil, ErrUnavailable, 2},
		{"Empty", text(""), nil, ErrUnavailable, 2},
		{"CutJSON", text(`{"name":"n","versions":{"1.0.0":{`), nil, ErrUnavailable, 2},
		{"LongerThanSaid", length("5", []byte(`{"name":"n"}`)), nil, ErrUnavailable, 2},
		{"ShorterThanSaid", length("500", []byte(`{"name":"n"}`)), nil, ErrUnavailable, 2},
		{"HugeThanSaid", length("9223372036854775807", []byte(`{"name":"n"}`)), nil, ErrTooLarge, 1},
		{"NegativeLength", length("-1", []byte(`{"name":"n"}`)), nil, ErrUnavailable, 2},
		{"NoNumber", length("12, 13", []byte(`{"name":"n"}`)), nil, ErrUnavailable, 2},
		{"Endless", func(w http.ResponseWriter, req *http.Request) { endless(w, req, make([]byte, 64<<10)) }, nil, ErrTooLarge, 1},
		{"GzipBomb", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb())
		}, nil, ErrTooLarge, 1},
		{"GzipNonsense", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, `{"name":"n"}`)
		}, nil, ErrUnavailable, 2},
		{"GzipCut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			var b bytes.Buffer
			zw := gzip.NewWriter(&b)
			io.WriteString(zw, `{"name":"n"}`)
			zw.Close()
			w.Write(b.Bytes()[:b.Len()-6])
		}, nil, ErrUnavailable, 2},
		{"RedirectLoop", func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, req.URL.Path, http.StatusFound) }, nil, ErrRefused, 10},
		{"RedirectToPrivate", status(302, "Location", "http://169.254.169.254/latest/meta-data"), nil, ErrRefused, 1},
		{"RedirectToOtherHost", status(302, "Location", "https://other.example.test/n"), nil, ErrRefused, 1},
		{"RedirectToOtherPort", status(307, "Location", "http://127.0.0.1:1/n"), nil, ErrRefused, 1},
		{"RedirectToListedPrivate", status(302, "Location", "http://[::ffff:127.0.0.1]/n"), nil, ErrRefused, 1},
		{"RedirectNowhere", status(302), nil, ErrUnavailable, 2},
		{"429Zero", status(429, "Retry-After", "0"), nil, ErrUnavailable, 2},
		{"429Past", status(429, "Retry-After", past), nil, ErrUnavailable, 2},
		{"429Nonsense", status(429, "Retry-After", "soon"), nil, ErrUnavailable, 2},
		{"500Always", status(500), nil, ErrUnavailable, 2},
		{"304Unasked", status(304), nil, ErrUnavailable, 2},
		{"206", status(206), nil, ErrUnavailable, 2},
		{"HeaderBomb", status(200, "X", strings.Repeat("x", 1<<20)), nil, ErrUnavailable, 2},
		{"ManyHeaders", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 20_000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), "xxxxxxxxxxxxxxxx")
			}
		}, nil, ErrUnavailable, 2},
		{"EarlyHints", func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				w.WriteHeader(http.StatusEarlyHints)
			}
			io.WriteString(w, `{"name":"n"}`)
		}, nil, nil, 1},
		{"NotHTTP", func(w http.ResponseWriter, _ *http.Request) {
			conn, rw, _ := http.NewResponseController(w).Hijack()
			rw.WriteString("SSH-2.0-x\r\n")
			rw.Flush()
			conn.Close()
		}, nil, ErrUnavailable, 2},

		{"Tarball", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, &right, nil, 1},
		{"TarballCut", length("8000", body[:4000]), &right, ErrUnavailable, 2},
		{"TarballCutSilently", func(w http.ResponseWriter, _ *http.Request) { w.Write(body[:4000]) }, &right, npm.ErrIntegrity, 2},
		{"TarballLonger", length("7999", body), &right, npm.ErrIntegrity, 2},
		{"TarballHTML", text("<html>"), &right, npm.ErrIntegrity, 2},
		{"TarballEndless", func(w http.ResponseWriter, req *http.Request) { endless(w, req, make([]byte, 64<<10)) }, &right, ErrTooLarge, 1},
		{"TarballHuge", length("9223372036854775807", nil), &right, ErrTooLarge, 1},
		{"TarballGzipBomb", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip") // not unpacked
			w.Write(bomb())
		}, &right, npm.ErrIntegrity, 2},
		{"WrongIntegrity", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, &npm.Dist{Integrity: sri(nil), Shasum: right.Shasum}, npm.ErrIntegrity, 2},
		{"WrongShasum", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, &npm.Dist{Integrity: right.Integrity, Shasum: strings.Repeat("0", 40)}, npm.ErrIntegrity, 2},
		{"SHA1Only", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, &npm.Dist{Shasum: right.Shasum}, nil, 1},
		{"SHA1OnlyWrong", text("x"), &npm.Dist{Shasum: right.Shasum}, npm.ErrIntegrity, 2},
		{"UnknownAlgorithmOnly", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, &npm.Dist{Integrity: "sha3-512-AAAA", Shasum: right.Shasum}, npm.ErrNoIntegrity, 0},
		{"NoIntegrity", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }, &npm.Dist{}, npm.ErrNoIntegrity, 0},
		{"TarballRedirectToOtherHost", status(302, "Location", "https://other.example.test/n.tgz"), &right, ErrRefused, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { asked++; c.handler(w, req) }))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.Start()
			defer s.Close()
			cl := client(s.URL, func(o *Options) {
				o.Attempts, o.MaxPackument, o.MaxTarball, o.Spool = 2, limit, limit, t.TempDir()
				o.Hosts = []string{"::ffff:127.0.0.1"}
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var err error
			if c.dist == nil {
				_, err = cl.Packument(t.Context(), "n", "")
			} else {
				d := *c.dist
				d.Tarball = s.URL + "/n.tgz"
				var tb *Tarball
				if tb, err = cl.Tarball(t.Context(), "n", "1.0.0", d); err == nil {
					if got, err := io.ReadAll(tb); err != nil || !bytes.Equal(got, body) || tb.SRI != right.Integrity {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					tb.Close()
				}
			}
			runtime.ReadMemStats(&after)
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Errorf("%v; want %v", err, c.want)
			}
			if asked != c.asked {
				t.Errorf("%d requests, want %d", asked, c.asked)
			}
			// All that was ever allocated, by the server too: twice what is let
			// through, in each attempt, and room for both ends.
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 2*2*limit+16<<20 {
				t.Errorf("allocated %d MiB", grown>>20)
			}
			if l := cl.Limits(); len(l) > 0 && l[0].InFlight != 0 {
				t.Errorf("still in flight: %+v", l)
			}
		})
	}
}

// A body that keeps coming, but hardly, ends with its attempt; the bubble's
// clock makes the minutes short.
func TestHostileDrip(t *testing.T) {
	drip := func(w http.ResponseWriter, req *http.Request) {
		for req.Context().Err() == nil {
			io.WriteString(w, " ")
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(time.Second):
			case <-req.Context().Done():
			}
		}
	}
	slow := func(w http.ResponseWriter, req *http.Request) { // just enough not to stall
		for req.Context().Err() == nil {
			w.Write(make([]byte, 2*stallBytes))
			select {
			case <-time.After(stallTime - time.Second):
			case <-req.Context().Done():
			}
		}
	}
	silent := func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		lasts   time.Duration
	}{
		"Drip": {drip, stallTime}, "SlowForEver": {slow, maxAttempt}, "Silent": {silent, 60 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl := client("http://r.example.test", func(o *Options) { o.Attempts = 1; o.MaxPackument = 1 << 30 })
				pipe(t, cl, c.handler)
				for what, fetch := range map[string]func(context.Context) error{
					"packument": func(ctx context.Context) error { _, err := cl.Packument(ctx, "n", ""); return err },
					"tarball": func(ctx context.Context) error {
						_, err := cl.Tarball(ctx, "n", "1.0.0", npm.Dist{Tarball: "http://r.example.test/n.tgz", Integrity: sri(nil)})
						return err
					},
					"keys": func(ctx context.Context) error { _, err := cl.Keys(ctx); return err },
				} {
					if what == "keys" && name == "SlowForEver" {
						continue // too large before it is too slow
					}
					start := time.Now()
					if err := fetch(t.Context()); !errors.Is(err, ErrUnavailable) || time.Since(start) != c.lasts {
						t.Errorf("%s: %v after %v", what, err, time.Since(start))
					}
				}
				if l := cl.Limits(); l[0].Throttled == 0 || l[0].InFlight != 0 {
					t.Errorf("%+v", l)
				}
			})
		})
	}
}

// A body costs twice its size while it comes, whatever its header promised.
func TestReadAllMemory(t *testing.T) {
	const size = 16 << 20
	for _, length := range []int64{-1, 0, 10, size, 1 << 40} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		raw, err := readAll(io.LimitReader(endlessZeros{}, size), length, size)
		runtime.ReadMemStats(&after)
		if err != nil || len(raw) != size || cap(raw) > size+size/8 {
			t.Errorf("length %d: %d bytes in %d, %v", length, len(raw), cap(raw), err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 2*size+2*maxChunk {
			t.Errorf("length %d: allocated %d MiB", length, grown>>20)
		}
		if _, err := readAll(io.LimitReader(endlessZeros{}, size), length, size-1); !errors.Is(err, ErrTooLarge) {
			t.Errorf("length %d: %v", length, err)
		}
	}
}

type endlessZeros struct{}

func (endlessZeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A document of the wrong package passes the transport, and not the parser.
func TestHostileName(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"_id":"m","name":"n"}`) }))
	defer s.Close()
	p, err := client(s.URL).Packument(t.Context(), "n", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := npm.ParsePackument(p.Raw); !errors.Is(err, npm.ErrPackument) {
		t.Error(err)
	}
}
