//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// busy is a registry that changes all the time. It keeps digests alone: a
// tarball is made when it is published, and again each time it is asked for.
type busy struct {
	url         string
	seed        uint64
	rate        float64
	most        int // packages
	mostOfOne   int // versions of a package
	rnd         *rand.Rand
	mu          sync.Mutex
	packages    []busyPackage
	rows        []busyRow // of the feed, superseded ones among them
	changes     int
	requests    int
	versions    int
	stopped     bool
	stopChanges context.CancelFunc
}

type busyPackage struct {
	rev        int
	seq        int64
	versions   []digests
	latest     int
	deprecated map[int]int // by version, the revision that did it
	modified   time.Time
}

type digests struct {
	sha512 [sha512.Size]byte
	sha1   [sha1.Size]byte
}

type busyRow struct {
	seq int64
	pkg int
	at  time.Time
}

// registry is the process that serves `run`: it prints its URL, makes changes
// until it is told to stop, and serves until it is interrupted.
func registry(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("soak registry", flag.ContinueOnError)
	b := &busy{}
	flags.Float64Var(&b.rate, "rate", 50, "changes a second")
	flags.IntVar(&b.most, "packages", 20_000, "packages at the most")
	flags.IntVar(&b.mostOfOne, "versions", 40, "versions of a package at the most")
	flags.Uint64Var(&b.seed, "seed", 1, "of the changes")
	if err := parse(flags, args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.url = "http://" + l.Addr().String()
	b.rnd = rand.New(rand.NewPCG(b.seed, 0x62757379))
	for range min(500, b.most) {
		b.publish(len(b.packages), time.Now())
	}
	b.changes = 0
	changing, stop := context.WithCancel(ctx)
	b.stopChanges = stop
	server := &http.Server{Handler: b, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	fmt.Println(b.url)
	b.change(changing)
	<-ctx.Done()
	return errors.Join(ignoreClosed(server.Close()), ignoreClosed(<-served))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// change makes changes at their rate until ctx ends.
func (b *busy) change(ctx context.Context) {
	began, made := time.Now(), 0
	for rest(ctx, 20*time.Millisecond) == nil {
		for ; float64(made) < time.Since(began).Seconds()*b.rate; made++ {
			b.mu.Lock()
			b.one(time.Now())
			b.mu.Unlock()
		}
	}
	b.mu.Lock()
	b.stopped = true
	b.mu.Unlock()
}

// one makes one change: 70 new versions and 20 new packages of a hundred, the
// rest deprecations and moved tags. b.mu is held.
func (b *busy) one(now time.Time) {
	pick := b.rnd.IntN(100)
	if pick < 20 && len(b.packages) < b.most {
		b.publish(len(b.packages), now)
		return
	}
	i := b.rnd.IntN(len(b.packages))
	for try := 0; pick < 90 && try < 20; try++ {
		if len(b.packages[i].versions) < b.mostOfOne {
			b.publish(i, now)
			return
		}
		i = b.rnd.IntN(len(b.packages))
	}
	p := &b.packages[i]
	if pick%2 == 0 {
		p.latest = b.rnd.IntN(len(p.versions))
	} else {
		if p.deprecated == nil {
			p.deprecated = map[int]int{}
		}
		p.deprecated[b.rnd.IntN(len(p.versions))] = p.rev + 1
	}
	b.bump(i, now)
}

// publish adds a version to package i, which may be new. b.mu is held, or
// nobody else is there yet.
func (b *busy) publish(i int, now time.Time) {
	if i == len(b.packages) {
		b.packages = append(b.packages, busyPackage{})
	}
	p := &b.packages[i]
	raw := b.tarball(i, len(p.versions))
	p.versions = append(p.versions, digests{sha512.Sum512(raw), sha1.Sum(raw)})
	p.latest = len(p.versions) - 1
	b.versions++
	b.bump(i, now)
}

func (b *busy) bump(i int, now time.Time) {
	b.changes++
	p := &b.packages[i]
	p.rev++
	p.seq, p.modified = b.head()+3, now
	b.rows = append(b.rows, busyRow{p.seq, i, now})
	if len(b.rows) > 100_000+4*len(b.packages) {
		kept := b.rows[:0]
		for _, row := range b.rows {
			if b.packages[row.pkg].seq == row.seq {
				kept = append(kept, row)
			}
		}
		b.rows = kept
	}
}

func (b *busy) head() int64 {
	if len(b.rows) == 0 {
		return 100
	}
	return b.rows[len(b.rows)-1].seq
}

func busyName(i int) string         { return fmt.Sprintf("pkg-%06d", i) }
func busyVersion(v int) string      { return fmt.Sprintf("1.%d.0", v) }
func (p busyPackage) named() string { return fmt.Sprintf("%d-%032x", p.rev, p.seq) }

// number reads what busyName wrote, -1 where it is none.
func number(name string) int {
	digits, ok := strings.CutPrefix(name, "pkg-")
	i, err := strconv.Atoi(digits)
	if !ok || err != nil || busyName(i) != name {
		return -1
	}
	return i
}

// tarball makes the tarball of a version, always the same: log-normal in size
// around 10 KB, of bytes that do not compress.
func (b *busy) tarball(i, v int) []byte {
	rnd := rand.New(rand.NewPCG(b.seed, uint64(i)<<20|uint64(v)))
	noise := make([]byte, int(min(512<<10, math.Exp(math.Log(9_000)+rnd.NormFloat64()))))
	for at := 0; at+8 <= len(noise); at += 8 {
		x := rnd.Uint64()
		for k := range 8 {
			noise[at+k] = byte(x >> (8 * k))
		}
	}
	var buf bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&buf, gzip.NoCompression) // a level that there is
	tw := tar.NewWriter(zw)
	manifest := fmt.Appendf(nil, `{"name":%q,"version":%q}`, busyName(i), busyVersion(v))
	for _, f := range []struct {
		name string
		data []byte
	}{{"package/package.json", manifest}, {"package/noise", noise}} {
		tw.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Format: tar.FormatUSTAR}) // to memory, as all here
		tw.Write(f.data)
	}
	tw.Close()
	zw.Close()
	return buf.Bytes()
}

// document is package i's packument. b.mu is held.
func (b *busy) document(i int) []byte {
	p, name := &b.packages[i], busyName(i)
	doc := fmt.Appendf(nil, `{"_id":%q,"_rev":%q,"name":%q,"dist-tags":{"latest":%q},"versions":{`, name, p.named(), name, busyVersion(p.latest))
	for v, d := range p.versions {
		if v > 0 {
			doc = append(doc, ',')
		}
		version := busyVersion(v)
		doc = fmt.Appendf(doc, `%q:{"name":%q,"version":%q,"description":"Package %d, as the soak test makes it","license":"MIT",`, version, name, version, i)
		if rev := p.deprecated[v]; rev > 0 {
			doc = fmt.Appendf(doc, `"deprecated":"since revision %d",`, rev)
		}
		doc = fmt.Appendf(doc, `"dist":{"integrity":"sha512-%s","shasum":"%s","tarball":"%s/%s/-/%s-%s.tgz"}}`,
			base64.StdEncoding.EncodeToString(d.sha512[:]), hex.EncodeToString(d.sha1[:]), b.url, name, name, version)
	}
	doc = fmt.Appendf(doc, `},"time":{"created":"2020-01-01T00:00:00.000Z","modified":%q`, p.modified.UTC().Format("2006-01-02T15:04:05.000Z"))
	for v := range p.versions {
		doc = fmt.Appendf(doc, `,%q:"2020-01-01T00:00:00.000Z"`, busyVersion(v))
	}
	return append(doc, "}}"...)
}

func (b *busy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.requests++
	b.mu.Unlock()
	switch path := strings.TrimPrefix(r.URL.Path, "/"); path {
	case "-/feed", "-/feed/":
		b.mu.Lock()
		defer b.mu.Unlock()
		answer(w, map[string]any{"db_name": "registry", "engine": "npm-replicate", "doc_count": len(b.packages), "update_seq": b.head()})
	case "-/feed/_changes":
		b.feed(w, r)
	case "-/feed/_all_docs":
		b.listing(w, r)
	case "-/npm/v1/keys":
		answer(w, map[string]any{"keys": []any{}})
	case "-/soak":
		cursor, _ := strconv.ParseInt(r.URL.Query().Get("cursor"), 10, 64) // none is the beginning
		answer(w, b.tell(cursor))
	case "-/soak/stop":
		b.stopChanges()
	case "-/soak/world":
		b.mu.Lock()
		defer b.mu.Unlock()
		for i, p := range b.packages {
			fmt.Fprintf(w, "%s %s %d\n", busyName(i), p.named(), len(p.versions))
		}
	default:
		name, file, _ := strings.Cut(path, "/-/")
		b.serve(w, r, number(name), file)
	}
}

// serve answers for package i: its document, or a tarball.
func (b *busy) serve(w http.ResponseWriter, r *http.Request, i int, file string) {
	b.mu.Lock()
	if i < 0 || i >= len(b.packages) {
		b.mu.Unlock()
		http.Error(w, `{"error":"Not found"}`, http.StatusNotFound)
		return
	}
	if file == "" {
		etag := `"` + b.packages[i].named() + `"`
		doc := b.document(i)
		b.mu.Unlock()
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Write(doc)
		return
	}
	versions := len(b.packages[i].versions)
	b.mu.Unlock()
	minor, _, _ := strings.Cut(strings.TrimPrefix(file, busyName(i)+"-1."), ".")
	v, err := strconv.Atoi(minor)
	if err != nil || v < 0 || v >= versions {
		http.Error(w, `{"error":"Not found"}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(b.tarball(i, v))
}

// after is the index of the first row behind a cursor. b.mu is held.
func (b *busy) after(cursor int64) int {
	return sort.Search(len(b.rows), func(i int) bool { return b.rows[i].seq > cursor })
}

func (b *busy) feed(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	since, err := strconv.ParseInt(q.Get("since"), 10, 64)
	limit, err2 := strconv.Atoi(q.Get("limit"))
	if err != nil || err2 != nil || limit < 1 || limit > 10_000 || q.Has("feed") || q.Has("include_docs") {
		http.Error(w, `{"error":"Bad Request"}`, http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out bytes.Buffer
	last, n := since, 0
	out.WriteString(`{"results":[`)
	for _, row := range b.rows[b.after(since):] {
		p := &b.packages[row.pkg]
		if p.seq != row.seq {
			continue
		}
		if n == limit {
			break
		}
		if n++; n > 1 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, `{"seq":%d,"id":%q,"changes":[{"rev":%q}]}`, row.seq, busyName(row.pkg), p.named())
		last = row.seq
	}
	fmt.Fprintf(&out, `],"last_seq":%d}`, last)
	w.Write(out.Bytes())
}

func (b *busy) listing(w http.ResponseWriter, r *http.Request) {
	start := ""
	if s := r.URL.Query().Get("startkey"); s != "" && json.Unmarshal([]byte(s), &start) != nil {
		http.Error(w, `{"error":"Bad Request"}`, http.StatusBadRequest)
		return
	}
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil {
		limit = 1000
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	first := sort.Search(len(b.packages), func(i int) bool { return busyName(i) >= start })
	type row struct {
		ID    string            `json:"id"`
		Key   string            `json:"key"`
		Value map[string]string `json:"value"`
	}
	rows := []row{}
	for i := first; i < len(b.packages) && len(rows) < limit; i++ {
		rows = append(rows, row{busyName(i), busyName(i), map[string]string{"rev": b.packages[i].named()}})
	}
	answer(w, map[string]any{"total_rows": len(b.packages), "offset": first, "rows": rows})
}

// told is what the registry says of itself, and of a follower whose cursor it
// is given.
type told struct {
	Changes, Packages, Versions, Requests int
	Head                                  int64
	Behind                                float64 // age in seconds of the oldest change behind the cursor
	Stopped                               bool
}

func (b *busy) tell(cursor int64) told {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := told{b.changes, len(b.packages), b.versions, b.requests, b.head(), 0, b.stopped}
	if i := b.after(cursor); i < len(b.rows) {
		t.Behind = time.Since(b.rows[i].at).Seconds()
	}
	return t
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // whoever went away needs no answer
}
