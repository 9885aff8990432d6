package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.txtar"), []byte("-- a@1.0.0/index.js --\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-dir", dir, "-packages", "3"}, in) }()
	lines := bufio.NewScanner(out)
	lines.Scan()
	url := lines.Text()
	lines.Scan()
	if feed := lines.Text(); !strings.HasPrefix(feed, url+"/") {
		t.Fatalf("printed %q, %q", url, feed)
	}
	status := func(method, path, body string) int {
		req, err := http.NewRequest(method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/a", "", 200}, {"GET", "/pkg-0002", "", 200}, {"GET", "/b", "", 404},
		{"POST", "/-/npmtest/publish", "-- b@1.0.0/index.js --\n1\n", 200}, {"GET", "/b", "", 200},
		{"POST", "/-/npmtest/publish", "-- b@1.0.0/index.js --\n1\n", 400},
		{"POST", "/-/npmtest/unpublish?name=b&version=1.0.0", "", 200}, {"GET", "/b/1.0.0", "", 404},
		{"POST", "/-/npmtest/unpublish?name=b&version=1.0.0", "", 400},
		{"POST", "/-/npmtest/delete?name=b", "", 200}, {"GET", "/b", "", 404},
		{"GET", "/-/npmtest/delete?name=a", "", 405}, {"POST", "/-/npmtest/x", "", 400}, {"GET", "/a", "", 200},
	} {
		if got := status(c.method, c.path, c.body); got != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, got, c.want)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
