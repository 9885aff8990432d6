package mirror

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// nodeOfWorld is the embedded node, which gets the world's records.
type nodeOfWorld struct {
	*ipfs.Embedded
	w *world
}

func (n nodeOfWorld) Record(ctx context.Context, name ipns.Name) ([]byte, error) {
	return n.w.node.Record(ctx, name)
}

// BenchmarkServe is of requests over TCP for what the mirror and the embedded
// node hold. The clients' share of the time, in the same process, is small but
// for the bytes that they read. bench/mirror measures the whole.
func BenchmarkServe(b *testing.B) {
	w := newWorld(b)
	w.now = time.Now()
	random := rand.NewChaCha8([32]byte{1})
	noise := func(n int) string {
		data := make([]byte, n)
		random.Read(data)
		return base64.StdEncoding.EncodeToString(data)
	}
	var archive strings.Builder
	for i := range 287 {
		fmt.Fprintf(&archive, "-- express@4.%d.0/package.json --\n{\"gitHead\":%q,\"files\":[%s\"LICENSE\"]}\n", i, noise(90), strings.Repeat(`"lib/some-file.js",`, 100))
	}
	sizes := map[string]int{"small": 2_500, "medium": 55_000, "large": 4_260_000}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		fmt.Fprintf(&archive, "-- %s@1.0.0/noise.txt --\n%s\n", name, noise(sizes[name]))
	}
	w.registry.Publish(archive.String())
	w.publish("express", "small", "medium", "large")
	node, err := ipfs.CreateEmbedded(b.Context(), ipfs.EmbeddedOptions{Dir: b.TempDir()})
	check(b, err)
	b.Cleanup(func() { check(b, node.Close()) })
	check(b, node.Put(b.Context(), slices.Collect(maps.Values(w.blocks))))
	m := w.synced(func(o *Options) {
		o.Node, o.Now, o.FS, o.Dir = nodeOfWorld{node, w}, time.Now, vfs.Default, b.TempDir()
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- crowd.Serve(ctx, m.log, m.Handler(), l) }()
	b.Cleanup(func() {
		cancel()
		check(b, <-served)
	})
	const install = "Accept: application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"
	for _, bb := range []struct {
		name, path, accept string
		has                bool
	}{
		{"packument_full", "/express", "Accept: application/json", false},
		{"packument_abbreviated", "/express", install, false},
		{"not_modified", "/express", install, true},
		{"tarball_3k", tarballPath("small", "small-1.0.0.tgz"), "Accept: */*", false},
		{"tarball_55k", tarballPath("medium", "medium-1.0.0.tgz"), "Accept: */*", false},
		{"tarball_4m", tarballPath("large", "large-1.0.0.tgz"), "Accept: */*", false},
	} {
		headers := []string{"Host: " + l.Addr().String(), bb.accept, "Accept-Encoding: gzip, deflate", "User-Agent: pnpm/10.34.8 npm/? node/v22.23.3 linux x64"}
		first := exchange(b, l.Addr().String(), bb.path, headers)
		if bb.has {
			headers = append(headers, "If-None-Match: "+first.Header.Get("ETag"))
		}
		want := first.StatusCode
		if bb.has {
			want = http.StatusNotModified
		}
		b.Run(bb.name, func(b *testing.B) {
			if got := exchange(b, l.Addr().String(), bb.path, headers); got.StatusCode != want {
				b.Fatalf("status %s", got.Status)
			}
			if first.ContentLength > 0 && !bb.has {
				b.SetBytes(first.ContentLength)
			}
			b.ReportAllocs()
			b.SetParallelism(5)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				r := bufio.NewReaderSize(conn, 256<<10)
				request := []byte("GET " + bb.path + " HTTP/1.1\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n")
				for pb.Next() {
					if _, err := conn.Write(request); err != nil {
						b.Error(err)
						return
					}
					// Read as little as can be: all that varies is the date.
					for line := []byte("status"); len(line) > 2; {
						if line, err = r.ReadSlice('\n'); err != nil {
							b.Error(err)
							return
						}
					}
					if !bb.has {
						if _, err := r.Discard(int(first.ContentLength)); err != nil {
							b.Error(err)
							return
						}
					}
				}
			})
		})
	}
}

// exchange asks once, and drops the body.
func exchange(b *testing.B, address, path string, headers []string) *http.Response {
	req, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
	check(b, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	check(b, err)
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	check(b, err)
	return resp
}
