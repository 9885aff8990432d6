//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// connections is how many requests are under way at any time.
const connections = 10

// loadVariable is set where this program is to be its own load generator: it
// reads a job and writes a load, both JSON.
const loadVariable = "BENCH_MIRROR_LOAD"

// job is one measurement.
type job struct {
	Address string `json:"address"` // host:port
	Request string `json:"request"` // sent as it is, again and again
	Status  int    `json:"status"`  // of every response
	Length  int64  `json:"length"`  // of every body, in bytes
	// Seconds are measured, after WarmUp which is not.
	WarmUp  float64 `json:"warm_up"`
	Seconds float64 `json:"seconds"`
}

// load is what a job measured: a request's time is from its first byte sent to
// the last byte of the body received.
type load struct {
	Requests int     `json:"requests"`
	RPS      float64 `json:"rps"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
}

// measure runs the job in a process of its own.
func measure(ctx context.Context, j job) (l load, err error) {
	self, err := os.Executable()
	if err != nil {
		return l, err
	}
	in, err := json.Marshal(j)
	if err != nil {
		return l, err
	}
	// A response that never ends must not stop the run.
	ctx, cancel := context.WithTimeout(ctx, time.Duration((j.WarmUp+j.Seconds)*float64(time.Second))+2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), loadVariable+"=1")
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return l, fmt.Errorf("load generator: %w: %s", err, stderr.Bytes())
	}
	return l, json.Unmarshal(out, &l)
}

// generate is the load generator.
func generate(in io.Reader, out io.Writer) error {
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return err
	}
	clients := make([]*client, connections)
	for i := range clients {
		c, err := dial(j)
		if err != nil {
			return err
		}
		clients[i] = c
	}
	from := time.Now().Add(time.Duration(j.WarmUp * float64(time.Second)))
	until := from.Add(time.Duration(j.Seconds * float64(time.Second)))
	errs := make([]error, connections)
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { errs[i] = c.run(from, until) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var l load
	var took []time.Duration
	for _, c := range clients {
		// Each connection has its own time: the slowest one's last response
		// must not count as idleness of the others.
		l.RPS += float64(len(c.took)) / c.busy.Seconds()
		took = append(took, c.took...)
	}
	slices.Sort(took)
	at := func(percent int) float64 {
		return float64(took[(len(took)*percent+99)/100-1].Microseconds()) / 1000
	}
	l.Requests, l.P50, l.P99 = len(took), at(50), at(99)
	return json.NewEncoder(out).Encode(l)
}

// client is one keep-alive connection. It reads HTTP/1.1 as little as can be:
// a generator must cost less than what it measures.
type client struct {
	job
	conn net.Conn
	r    *bufio.Reader
	took []time.Duration
	busy time.Duration // all of took
}

func dial(j job) (*client, error) {
	conn, err := net.Dial("tcp", j.Address)
	if err != nil {
		return nil, err
	}
	return &client{job: j, conn: conn, r: bufio.NewReaderSize(conn, 256<<10)}, nil
}

// run measures the requests that it sends between from and until, and at least
// one.
func (c *client) run(from, until time.Time) error {
	request := []byte(c.Request)
	for {
		began := time.Now()
		if _, err := c.conn.Write(request); err != nil {
			return err
		}
		status, length, err := c.response()
		if err != nil {
			return fmt.Errorf("read response: %w", err)
		}
		if status != c.Status || length != c.Length {
			return fmt.Errorf("response has status %d and %d bytes, not %d and %d", status, length, c.Status, c.Length)
		}
		ended := time.Now()
		if began.After(from) {
			c.took = append(c.took, ended.Sub(began))
			c.busy += ended.Sub(began)
			if ended.After(until) {
				return nil
			}
		}
	}
}

// response reads one response and drops its body, whose length it returns.
func (c *client) response() (status int, length int64, err error) {
	line, err := c.line()
	if err != nil {
		return 0, 0, err
	}
	if len(line) < 12 {
		return 0, 0, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, err
	}
	chunked := false
	for {
		if line, err = c.line(); err != nil {
			return 0, 0, err
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, 0, err
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		}
	}
	switch {
	case status == 304:
		return status, 0, nil
	case chunked:
		length, err = c.chunks()
		return status, length, err
	}
	return status, length, c.drop(length)
}

func (c *client) chunks() (length int64, err error) {
	for {
		line, err := c.line()
		if err != nil {
			return 0, err
		}
		size, err := strconv.ParseInt(string(line), 16, 64)
		if err != nil {
			return 0, err
		}
		if err := c.drop(size); err != nil {
			return 0, err
		}
		if line, err = c.line(); err != nil || len(line) > 0 {
			return 0, fmt.Errorf("end of a chunk: %q, %w", line, err)
		}
		if length += size; size == 0 {
			return length, nil
		}
	}
}

// line is valid until the next read.
func (c *client) line() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	return bytes.TrimRight(line, "\r\n"), err
}

func (c *client) drop(n int64) error {
	_, err := c.r.Discard(int(n))
	return err
}

// median takes each figure's median.
func median(loads []load) load {
	of := func(f func(load) float64) float64 {
		var s []float64
		for _, l := range loads {
			s = append(s, f(l))
		}
		slices.Sort(s)
		if n := len(s); n%2 == 0 {
			return (s[n/2-1] + s[n/2]) / 2
		}
		return s[len(s)/2]
	}
	m := load{RPS: of(func(l load) float64 { return l.RPS }), P50: of(func(l load) float64 { return l.P50 }), P99: of(func(l load) float64 { return l.P99 })}
	for _, l := range loads {
		m.Requests += l.Requests
	}
	return m
}

// requestOf is a GET with these headers, each "Name: value".
func requestOf(address, path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n"
}
