//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestGenerate(t *testing.T) {
	body := strings.Repeat("x", 70_000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunked":
			w.(http.Flusher).Flush()
			w.Write([]byte(body))
		case "/known":
			w.Header().Set("Content-Length", "70000")
			w.Write([]byte(body))
		case "/unchanged":
			if r.Header.Get("If-None-Match") != `"1"` {
				t.Errorf("headers %v", r.Header)
			}
			w.WriteHeader(http.StatusNotModified)
		case "/short":
			w.Write([]byte("x"))
		case "/gone":
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	for _, c := range []struct {
		path    string
		status  int
		length  int64
		refused string
	}{
		{"/chunked", 200, 70_000, ""},
		{"/known", 200, 70_000, ""},
		{"/unchanged", 304, 0, ""},
		{"/short", 200, 70_000, "1 bytes"},
		{"/gone", 200, 0, "status 404"},
	} {
		t.Run(c.path, func(t *testing.T) {
			in, err := json.Marshal(job{Address: address, Request: requestOf(address, c.path, `If-None-Match: "1"`), Status: c.status, Length: c.length, Seconds: 0.01})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = generate(bytes.NewReader(in), &out)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("error %v, want %q", err, c.refused)
				}
				return
			}
			var l load
			if err := json.Unmarshal(out.Bytes(), &l); err != nil || l.Requests < connections || l.RPS <= 0 || l.P99 < l.P50 {
				t.Fatalf("load %s, %v", out.Bytes(), err)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	m := median([]load{{Requests: 1, RPS: 3, P50: 1, P99: 9}, {Requests: 2, RPS: 1, P50: 2, P99: 7}, {Requests: 3, RPS: 2, P50: 3, P99: 8}})
	if want := (load{Requests: 6, RPS: 2, P50: 2, P99: 8}); m != want {
		t.Errorf("median %+v, want %+v", m, want)
	}
}
