//go:build linux

package main

import (
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Sizes of npm's tarballs, in bytes: log-normal with this median and 90th
// percentile, cut off at both ends.
const (
	medianSize = 10e3
	p90Size    = 150e3
	minSize    = 200
	maxSize    = 5e6
)

// file is one tarball: random bytes, which nothing can compress.
type file struct {
	name npm.Name
	data []byte
	sri  string
}

const version = "1.0.0"

func (f file) path() string { return fmt.Sprintf("/%s/-/%s-%s.tgz", f.name, f.name, version) }

// corpus is the same for the same number of files. Its bytes lie outside of
// Go's heap, for gigabytes of them would spare the pipelines most of the
// garbage collections that they have in real life.
type corpus struct {
	files []file
	bytes int64
	mem   []byte
}

func newCorpus(n int) (*corpus, error) {
	var seed [32]byte
	copy(seed[:], "bench/ingest")
	random := rand.NewChaCha8(seed)
	sizes := rand.New(random)
	sigma := math.Log(p90Size/medianSize) / 1.2815515655446004 // the normal distribution's 90th percentile
	lengths := make([]int, n)
	c := &corpus{files: make([]file, n)}
	for i := range lengths {
		lengths[i] = int(min(max(medianSize*math.Exp(sigma*sizes.NormFloat64()), minSize), maxSize))
		c.bytes += int64(lengths[i])
	}
	var err error
	c.mem, err = unix.Mmap(-1, 0, int(c.bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory for %d files: %w", n, err)
	}
	rest := c.mem
	for i, size := range lengths {
		data := rest[:size:size]
		rest = rest[size:]
		random.Read(data)
		sum := sha512.Sum512(data)
		c.files[i] = file{
			name: npm.Name("package-" + strconv.Itoa(i)),
			data: data,
			sri:  "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
		}
	}
	return c, nil
}

func (c *corpus) Close() error { return unix.Munmap(c.mem) }

// first is the sample of the first n files.
func (c *corpus) first(n int) *corpus {
	s := &corpus{files: c.files[:min(n, len(c.files))]}
	for _, f := range s.files {
		s.bytes += int64(len(f.data))
	}
	return s
}

// writeTree writes the files for `ipfs add -r`, a hundred to a directory.
func (c *corpus) writeTree(dir string) error {
	for i, f := range c.files {
		sub := filepath.Join(dir, strconv.Itoa(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, string(f.name)+".tgz"), f.data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// registry serves the corpus's tarballs on loopback, as npm's would.
type registry struct {
	url string
	srv *http.Server
}

func (c *corpus) serve() (*registry, error) {
	byPath := make(map[string]file, len(c.files))
	for _, f := range c.files {
		byPath[f.path()] = f
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{url: "http://" + l.Addr().String()}
	r.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := byPath[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(f.data)))
		w.Write(f.data)
	})}
	go r.srv.Serve(l)
	return r, nil
}

func (r *registry) dist(f file) npm.Dist {
	return npm.Dist{Tarball: r.url + f.path(), Integrity: f.sri}
}

func (r *registry) config() npm.Config {
	return npm.Config{Registry: strings.TrimRight(r.url, "/")}
}
