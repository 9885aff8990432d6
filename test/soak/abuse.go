//go:build linux

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
)

// harm is what clients do to the mirror at an address.
type harm struct {
	address string
	names   []string
	kinds   []*kind
}

// kind is one way to do harm.
type kind struct {
	about string
	// clients do it at once, again and again.
	clients int
	// do does it once, by a connection of its own, and says what came of it.
	do func(ctx context.Context, h *harm, c net.Conn) (came string, err error)
	// fair lists what may come of it; we may always have left before.
	fair []string
	// buffer is the receive buffer in bytes; 0 is the system's.
	buffer int

	mu   sync.Mutex
	came map[string]int
}

const (
	ended = "ended"   // the mirror closed the connection
	left  = "we left" // the abuse was over, or its client went
)

func newHarm(address string, names []string) *harm {
	return &harm{address: address, names: names, kinds: []*kind{
		{about: "half-open, nothing is sent", clients: 8000, do: halfOpen, fair: []string{ended}},
		{about: "a header, a byte a second", clients: 500, do: trickle("GET /pkg-0000 HTTP/1.1\r\nX: "), fair: []string{ended, "400", "408"}},
		{about: "an audit's body, a byte a second", clients: 300, do: trickle(post + "Content-Length: 100000\r\n\r\n"), fair: []string{ended}},
		{about: "a body to a GET, a byte a second", clients: 200, do: trickle("GET /pkg-0000 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"), fair: []string{ended, "200"}},
		{about: "a body to a PUT, a byte a second", clients: 100, do: trickle("PUT /pkg-0000 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"), fair: []string{ended, "405"}},
		{about: "6 MB, read a byte a second", clients: 400, do: slowReader, fair: []string{ended}, buffer: 4096},
		{about: "a header of 1 MiB", clients: 8, do: answers(func(*harm) string {
			return "GET /pkg-0000 HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"
		}), fair: []string{"431", ended}},
		{about: "ten thousand headers", clients: 8, do: answers(func(*harm) string {
			return "GET /pkg-0000 HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-A: b\r\n", 10_000) + "\r\n"
		}), fair: []string{"431", ended}},
		{about: "a URL of 1 MiB", clients: 8, do: answers(func(*harm) string { return request("GET", "/"+strings.Repeat("x", 1<<20)) }), fair: []string{"431", "414", ended}},
		{about: "names that climb, NULs", clients: 8, do: answers(func(*harm) string { return request("GET", climbing[rand.IntN(len(climbing))]) }), fair: []string{"404", "400", "405", ended}},
		{about: "names that nobody has", clients: 16, do: answers(func(*harm) string { return request("GET", fmt.Sprintf("/no-such-%x", rand.Uint64())) }), fair: []string{"404", "503", ended}},
		{about: "HEAD of a tarball", clients: 8, do: answers(func(*harm) string { return request("HEAD", giantTarball(rand.IntN(giants))) }), fair: []string{"200", ended}},
		{about: "ranges of a tarball", clients: 8, do: ranges, fair: []string{"200", "206", "416", ended}},
		{about: "odd Accept-Encodings", clients: 8, do: answers(func(h *harm) string {
			return request("GET", "/"+h.name(), "Accept-Encoding: "+encodings[rand.IntN(len(encodings))])
		}), fair: []string{"200", "404", ended}},
		{about: "a gzip bomb to the audit", clients: 4, do: answers(func(*harm) string {
			return post + fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", len(bombed())) + bombed()
		}), fair: []string{"200", ended}},
		{about: "17 MiB to the audit", clients: 2, do: answers(func(*harm) string { return post + "Content-Length: 17825792\r\n\r\n" + strings.Repeat(" ", 17<<20) }), fair: []string{"413", ended}},
		{about: "200 requests in one write", clients: 8, do: pipelined, fair: []string{"200", ended}},
		{about: "left midway", clients: 16, do: midway, fair: []string{ended}},
		{about: "searches", clients: 8, do: answers(func(*harm) string { return request("GET", fmt.Sprintf("/-/v1/search?text=%x", rand.IntN(16))) }), fair: []string{"200", "503", ended}},
		{about: "one version of a document", clients: 8, do: answers(func(h *harm) string { return request("GET", "/"+h.name()+"/latest") }), fair: []string{"200", "503", ended}},
	}}
}

const post = "POST /-/npm/v1/security/advisories/bulk HTTP/1.1\r\nHost: x\r\n"

var climbing = []string{
	"/..%2f..%2f..%2fetc%2fpasswd", "/../../../etc/passwd", "/@a%2f..%2f..%2fx", "/@..%2fx", "/pkg-0000/-/..%2f..%2fname", "/pkg-0000/-/%2e%2e",
	"/pkg-0000%00", "/%00", "/@%00/%00", "/pkg-0000/-/%00.tgz", "/pkg-0000/-/pkg-0000-1.0.0.tgz%00", "/%2e%2e", "/%ff%fe", "/%", "/%zz",
	"//etc/passwd", "/pkg-0000/..%5c..%5cx", "/-/package/..%2f/dist-tags", "/-/npm/v1/attestations/..%2f@1.0.0", "/node_modules", "/.hidden",
}

var encodings = []string{
	"gzip;q=0, zstd;q=0, identity;q=0", "*;q=0", strings.Repeat("gzip,", 5000), "gzip;q=NaN", "gzip;q=1e309", "br, deflate, compress", "zstd;q=1.0000000000001",
	"gzip;q=-1", ";;;,,,;q=", "identity", "\"gzip\"", "x-gzip",
}

// bombed is 64 MiB of blanks as gzip.
var bombed = sync.OnceValue(func() string {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for range 64 {
		zw.Write(blanks) // into memory
	}
	zw.Close()
	return b.String()
})

func request(method, path string, headers ...string) string {
	head := method + " " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
	for _, h := range headers {
		head += h + "\r\n"
	}
	return head + "\r\n"
}

func (h *harm) name() string { return h.names[rand.IntN(len(h.names))] }

// begin lets all of them do harm until ctx ends.
func (h *harm) begin(ctx context.Context, all *sync.WaitGroup) {
	for i, k := range h.kinds {
		k.came = map[string]int{}
		// An address for each kind: one alone has too few ports.
		from := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}
		for range k.clients {
			all.Go(func() {
				for ctx.Err() == nil {
					came := k.once(ctx, h, from)
					k.mu.Lock()
					k.came[came]++
					k.mu.Unlock()
					if rest(ctx, time.Duration(20+rand.IntN(60))*time.Millisecond) != nil {
						return
					}
				}
			})
		}
	}
}

// once does it once, in two minutes at the most.
func (k *kind) once(ctx context.Context, h *harm, from net.Addr) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d := net.Dialer{LocalAddr: from, Control: func(_, _ string, raw syscall.RawConn) error {
		if k.buffer == 0 {
			return nil
		}
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, k.buffer)
		}), err)
	}}
	c, err := d.DialContext(ctx, "tcp", h.address)
	if err != nil {
		return "no connection"
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	came, err := k.do(ctx, h, c)
	switch {
	case ctx.Err() != nil:
		return left
	case err != nil:
		return ended
	}
	return came
}

func halfOpen(_ context.Context, _ *harm, c net.Conn) (string, error) {
	_, err := c.Read(make([]byte, 1))
	return "it spoke", err
}

// trickle sends begin, then a byte a second until it has an answer.
func trickle(begin string) func(context.Context, *harm, net.Conn) (string, error) {
	return func(ctx context.Context, _ *harm, c net.Conn) (string, error) {
		if _, err := io.WriteString(c, begin); err != nil {
			return "", err
		}
		go func() {
			for rest(ctx, time.Second) == nil {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}()
		status, err := statusOf(bufio.NewReader(c))
		if err == nil {
			_, _ = io.Copy(io.Discard, c) // until the mirror has enough
		}
		return status, err
	}
}

func slowReader(ctx context.Context, _ *harm, c net.Conn) (string, error) {
	if _, err := io.WriteString(c, request("GET", giantTarball(rand.IntN(giants)))); err != nil {
		return "", err
	}
	for {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return "", err
		}
		if err := rest(ctx, time.Second); err != nil {
			return "", err
		}
	}
}

// answers sends one request after the other, and takes the answers.
func answers(of func(*harm) string) func(context.Context, *harm, net.Conn) (string, error) {
	return func(ctx context.Context, h *harm, c net.Conn) (string, error) {
		text := of(h)
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, text)
			sent <- err
		}()
		method, _, _ := strings.Cut(text, " ")
		status, err := answered(bufio.NewReader(c), method)
		c.Close()
		<-sent
		return status, err
	}
}

func answered(r *bufio.Reader, method string) (string, error) {
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	return fmt.Sprint(resp.StatusCode), nil
}

func statusOf(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil || len(line) < 12 {
		return "", errors.Join(err, io.ErrUnexpectedEOF)
	}
	return line[9:12], nil
}

var rangeOf atomic.Int64

func ranges(ctx context.Context, h *harm, c net.Conn) (string, error) {
	n := rangeOf.Add(1)
	asked := []string{"bytes=0-0", "bytes=-1", "bytes=999999999-", fmt.Sprintf("bytes=%d-%d", n, n+1000), "bytes=0-0" + strings.Repeat(",5-9", 2000), "bytes=1-0", "pages=1"}
	return answers(func(*harm) string {
		return request("GET", giantTarball(int(n)%giants), "Range: "+asked[n%int64(len(asked))])
	})(ctx, h, c)
}

func pipelined(_ context.Context, h *harm, c net.Conn) (string, error) {
	const many = 200
	go io.WriteString(c, strings.Repeat(request("GET", "/"+h.name()), many)) // ends with c
	r := bufio.NewReader(c)
	for range many {
		if status, err := answered(r, http.MethodGet); err != nil || status != "200" {
			return status, err
		}
	}
	return "200", nil
}

// midway asks for much and goes, without a word.
func midway(_ context.Context, h *harm, c net.Conn) (string, error) {
	paths := []string{giantTarball(rand.IntN(giants)), "/" + h.name(), "/-/v1/search?text=pkg"}
	if _, err := io.WriteString(c, request("GET", paths[rand.IntN(len(paths))])); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(c, make([]byte, rand.IntN(200)+1)); err != nil {
		return "", err
	}
	return left, c.(*net.TCPConn).SetLinger(0)
}

// print says what came of each kind, and lists what must not have.
func (h *harm) print(out io.Writer) (errs []error) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "abuse\tclients\ttimes\twhat came of it")
	for _, k := range h.kinds {
		var all []string
		times := 0
		for came := range k.came {
			all = append(all, came)
		}
		slices.Sort(all)
		for i, came := range all {
			n := k.came[came]
			all[i] = fmt.Sprintf("%s %d", came, n)
			if times += n; came != "no connection" && came != left && !slices.Contains(k.fair, came) {
				errs = append(errs, fmt.Errorf("%s: %d times %q came of it", k.about, n, came))
			}
		}
		if times == k.came["no connection"] {
			errs = append(errs, fmt.Errorf("%s: it never began", k.about))
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", k.about, k.clients, times, strings.Join(all, ", "))
	}
	table.Flush()
	return errs
}
