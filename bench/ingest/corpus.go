//go:build linux

package main

import (
	"crypto/sha1"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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

// perPackage is how many versions a package has; npm's mean is a little more.
const perPackage = 10

// file is one version's tarball: random bytes, which nothing can compress.
type file struct {
	name    npm.Name
	version string
	data    []byte
	offset  int64 // in the corpus
	sri     string
	shasum  string
}

func (f file) path() string { return fmt.Sprintf("/%s/-/%s-%s.tgz", f.name, f.name, f.version) }

// corpus is the same for the same number of files. Its bytes lie in a file in
// memory: in Go's heap, gigabytes of them would spare the follower most of the
// garbage collections that it has in real life; and from a file the system can
// send them without a copy.
type corpus struct {
	files []file
	bytes int64
	mem   []byte
	fd    int
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
	c.fd, err = unix.MemfdCreate("corpus", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(c.fd, c.bytes)
	}
	if err == nil {
		c.mem, err = unix.Mmap(c.fd, 0, int(c.bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, fmt.Errorf("memory for %d files: %w", n, err)
	}
	rest := c.mem
	for i, size := range lengths {
		offset := c.bytes - int64(len(rest))
		data := rest[:size:size]
		rest = rest[size:]
		random.Read(data)
		strong, weak := sha512.Sum512(data), sha1.Sum(data)
		c.files[i] = file{
			name:    npm.Name("package-" + strconv.Itoa(i/perPackage)),
			version: fmt.Sprintf("1.%d.0", i%perPackage),
			data:    data,
			offset:  offset,
			sri:     "sha512-" + base64.StdEncoding.EncodeToString(strong[:]),
			shasum:  hex.EncodeToString(weak[:]),
		}
	}
	return c, nil
}

func (c *corpus) Close() error { return errors.Join(unix.Munmap(c.mem), unix.Close(c.fd)) }

// send writes a file to w by sendfile(2).
func (c *corpus) send(w io.ReaderFrom, f file) error {
	own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", c.fd)) // with an offset of its own
	if err != nil {
		return err
	}
	defer own.Close()
	if _, err := own.Seek(f.offset, io.SeekStart); err != nil {
		return err
	}
	_, err = w.ReadFrom(io.LimitReader(own, int64(len(f.data))))
	return err
}

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
		if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(i)+".tgz"), f.data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// packages are the corpus's packages, each with its files.
func (c *corpus) packages() [][]file {
	return slices.Collect(slices.Chunk(c.files, perPackage))
}

// registry serves the corpus on loopback, as npm's would.
type registry struct {
	url string
	srv *http.Server
}

func (c *corpus) serve() (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{url: "http://" + l.Addr().String()}
	tarballs, documents := make(map[string]file, len(c.files)), make(map[string][]byte)
	for _, f := range c.files {
		tarballs[f.path()] = f
	}
	for _, files := range c.packages() {
		doc, err := json.Marshal(r.packument(files))
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		documents["/"+string(files[0].name)] = doc
	}
	r.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if doc, ok := documents[req.URL.Path]; ok {
			w.Header().Set("Content-Type", "application/json")
			w.Write(doc)
			return
		}
		f, ok := tarballs[req.URL.Path]
		if !ok {
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(f.data)))
		c.send(w.(io.ReaderFrom), f)
	})}
	go r.srv.Serve(l)
	return r, nil
}

// packument is the document of a package with these files.
func (r *registry) packument(files []file) map[string]any {
	const published = "2026-01-02T03:04:05.678Z"
	last := files[len(files)-1]
	versions, times := map[string]any{}, map[string]any{"created": published, "modified": published}
	for _, f := range files {
		d := r.dist(f)
		versions[f.version] = map[string]any{
			"name": f.name, "version": f.version, "description": "random bytes", "main": "index.js", "license": "MIT",
			"dist": map[string]any{"tarball": d.Tarball, "integrity": d.Integrity, "shasum": d.Shasum, "fileCount": 1, "unpackedSize": len(f.data)},
		}
		times[f.version] = published
	}
	return map[string]any{
		"_id": last.name, "_rev": "1-0123456789abcdef", "name": last.name, "description": "random bytes",
		"dist-tags": map[string]any{"latest": last.version}, "versions": versions, "time": times,
	}
}

func (r *registry) dist(f file) npm.Dist {
	return npm.Dist{Tarball: r.url + f.path(), Integrity: f.sri, Shasum: f.shasum}
}

func (r *registry) config() npm.Config {
	return npm.Config{Registry: strings.TrimRight(r.url, "/")}
}
