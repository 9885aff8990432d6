// Package verdaccio runs Verdaccio, the mirror that benchmarks measure ours
// beside: installed from the registry that npm's configuration names, and
// configured to be fast. Only benchmarks import it.
package verdaccio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// What is measured: Verdaccio, on a Node that it runs on wherever this is.
const (
	Version = "6.10.4"
	Node    = "22.23.3"
)

// manifest brings Node as the package of its binary, and pins what Verdaccio
// asks for by a dist-tag, "cjs", which not every registry has: the versions of
// that tag are these.
const manifest = `{"private": true, "dependencies": {"verdaccio": "` + Version + `", %q: "` + Node + `"}, "overrides": {"node-fetch": "^2.6.7"}}`

// nodePackage is npm's package of Node's binary for this machine.
func nodePackage() string {
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	return "node-" + runtime.GOOS + "-" + arch
}

// config keeps all in files, asks the uplink for nothing twice, and leaves out
// what is not the registry.
const config = `storage: %s
uplinks:
  upstream:
    url: %s
    maxage: 24h
    timeout: 60s
packages:
  '@*/*': {access: $all, proxy: upstream}
  '**': {access: $all, proxy: upstream}
auth: {}
web: {enable: false}
log: {type: stdout, format: pretty, level: fatal}
max_body_size: 100mb
`

// Install installs Verdaccio into dir, which is made. It takes npm, and half a
// minute where npm's cache is empty.
func Install(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), fmt.Appendf(nil, manifest, nodePackage()), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("install Verdaccio %s: %w\n%s", Version, err, out)
	}
	return nil
}

// Server is a running Verdaccio.
type Server struct {
	URL   string // no slash at its end
	PID   int
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has
}

// Start runs the Verdaccio that Install put into dir, with storage and
// configuration below state, on a free loopback port and before the registry at
// uplink. It returns once it answers. Close, or the end of ctx, ends it.
func Start(ctx context.Context, dir, state, uplink string) (*Server, error) {
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(state, "config.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, config, filepath.Join(state, "storage"), uplink), 0o644); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	modules := filepath.Join(dir, "node_modules")
	cmd := exec.CommandContext(ctx, filepath.Join(modules, nodePackage(), "bin", "node"), filepath.Join(modules, "verdaccio", "bin", "verdaccio"), "--config", path, "--listen", address)
	cmd.Dir = state
	cmd.Env = append(os.Environ(), "NODE_ENV=production")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	log, err := os.Create(filepath.Join(state, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Server{URL: "http://" + address, PID: cmd.Process.Pid, cmd: cmd, ended: make(chan struct{})}
	go func() {
		cmd.Wait() // it is interrupted in the end, so that this fails
		close(s.ended)
	}()
	if err := s.answers(ctx); err != nil {
		said, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("start Verdaccio: %w\n%s", err, said), s.Close())
	}
	return s, nil
}

// answers returns once the server does, for a minute at most.
func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/-/ping", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-s.ended:
			return err
		case <-tick.C:
		}
	}
}

// Close ends the server.
func (s *Server) Close() error {
	err := s.cmd.Cancel()
	<-s.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
