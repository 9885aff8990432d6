//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/bench/verdaccio"
)

// server is one of the three, a process of its own and perhaps its children.
type server struct {
	name  string
	url   string
	pid   int
	close func() error
}

func (s *server) address() string { return strings.TrimPrefix(s.url, "http://") }

// pids are the server's process and its children.
func (s *server) pids() []int {
	pids := []int{s.pid}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", s.pid))
	for field := range strings.FieldsSeq(string(children)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// memory is resident memory in MiB: now, and at most so far. What the processes
// of one server share counts for each, which is little.
func (s *server) memory() (now, most float64) {
	for _, pid := range s.pids() {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(raw)) {
			var kib float64
			if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
				now += kib / 1024
			}
			if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
				most += kib / 1024
			}
		}
	}
	return now, most
}

// cpu is the seconds of processor time that the server has used.
func (s *server) cpu() float64 {
	ticks := 0
	for _, pid := range s.pids() {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// The command's name, in parentheses, may hold anything.
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		for _, at := range []int{11, 12} { // utime and stime, proc(5)
			if at < len(fields) {
				n, _ := strconv.Atoi(fields[at])
				ticks += n
			}
		}
	}
	return float64(ticks) / 100 // USER_HZ
}

// ours is `registry-mirror up` on a state that holds every version of every
// package, filled by the follower; the flags that it has say what and where.
func (b *bench) ours(ctx context.Context, packages []made, upstream string) (*server, error) {
	state := filepath.Join(b.dir, "state")
	var names []string
	for _, p := range packages {
		names = append(names, p.name)
	}
	for _, args := range [][]string{
		append([]string{"follower", "add", "--every", "--no-deps", "--state", state}, names...),
		{"follower", "run", "--once", "--feed", "none", "--upstream", upstream, "--state", state},
	} {
		if err := command(b.program(ctx, args...)); err != nil {
			return nil, err
		}
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	cmd := b.program(ctx, append([]string{"registry-mirror", "up", "--no-deps", "--upstream", upstream, "--state", state, "--listen", address, "--json"}, names...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return start("ours", cmd, "http://"+address)
}

// program is one of our commands, without the settings of whoever runs this.
func (b *bench) program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "bin", args[0]), args[1:]...)
	cmd.Env = append(os.Environ(), "REGMIRROR_CONFIG=/dev/null")
	return cmd
}

// verdaccio installs one, unless the caller has one.
func (b *bench) verdaccio(ctx context.Context, installed, uplink string) (*server, error) {
	if installed == "" {
		installed = filepath.Join(b.dir, "verdaccio")
		if err := verdaccio.Install(ctx, installed); err != nil {
			return nil, err
		}
	}
	v, err := verdaccio.Start(ctx, installed, filepath.Join(b.dir, "verdaccio-state"), uplink)
	if err != nil {
		return nil, err
	}
	return &server{name: "verdaccio", url: v.URL, pid: v.PID, close: v.Close}, nil
}

// errNoNginx says why there is no third column.
var errNoNginx = errors.New("no nginx, and none to be had from apt")

// findNginx gives the installed one, else its package's, unpacked into dir and
// not installed.
func findNginx(ctx context.Context, dir string) (string, error) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, line := range []string{"apt-get download nginx", "dpkg-deb -x nginx_*.deb ."} {
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Dir = dir
		if err := command(cmd); err != nil {
			return "", fmt.Errorf("%w: %w", errNoNginx, err)
		}
	}
	path := filepath.Join(dir, "usr", "sbin", "nginx")
	if err := command(exec.CommandContext(ctx, path, "-V")); err != nil { // a library may be missing
		return "", fmt.Errorf("%w: %w", errNoNginx, err)
	}
	return path, nil
}

const nginxConfig = `%[3]s
daemon off;
worker_processes auto;
pid %[1]s/pid;
error_log stderr crit;
events { worker_connections 512; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000000;
	open_file_cache max=1000 inactive=1h;
	open_file_cache_valid 1h;
	client_body_temp_path %[1]s/t1;
	proxy_temp_path %[1]s/t2;
	fastcgi_temp_path %[1]s/t3;
	uwsgi_temp_path %[1]s/t4;
	scgi_temp_path %[1]s/t5;
	types {}
	map $http_accept $form { default full; "~install-v1" install; }
	server {
		listen %[2]s;
		location / {
			root %[1]s/$form;
			gzip_static always;
			default_type application/json;
			add_header Cache-Control "private, max-age=0, must-revalidate";
			add_header Vary "Accept, Accept-Encoding";
			add_header X-Content-Type-Options nosniff;
		}
		location ~ /-/ {
			root %[1]s/tarballs;
			default_type application/octet-stream;
			add_header Cache-Control "public, max-age=31536000, immutable";
			add_header X-Content-Type-Options nosniff;
		}
	}
}
`

// static is nginx, serving from files the very bytes that ours sends.
func (b *bench) static(ctx context.Context, cases []benchCase, ours *server) (*server, error) {
	binary, err := findNginx(ctx, filepath.Join(b.dir, "nginx"))
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "static")
	for _, c := range cases {
		a, err := ours.ask(ctx, c, "")
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, "tarballs", c.path)
		switch c.form {
		case full:
			path = filepath.Join(dir, "full", c.path) + ".gz"
		case abbreviated:
			path = filepath.Join(dir, "install", c.path) + ".gz"
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, a.body, 0o644); err != nil {
			return nil, err
		}
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // the directory is this user's alone
	}
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, fmt.Appendf(nil, nginxConfig, dir, address, user), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "-c", path)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return start("static", cmd, "http://"+address)
}

// start starts a server and returns once it takes connections.
func start(name string, cmd *exec.Cmd, url string) (*server, error) {
	said := &output{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s := &server{name: name, url: url, pid: cmd.Process.Pid, close: func() error {
		if err := cmd.Cancel(); err != nil {
			return nil // it has ended
		}
		<-ended
		return nil
	}}
	for limit := time.Now().Add(5 * time.Minute); ; {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			return s, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("start %s: %w\n%s", name, err, said)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(limit) {
			return nil, errors.Join(fmt.Errorf("start %s: %w\n%s", name, err, said), s.close())
		}
	}
}

// output gathers what a running command prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// command runs cmd, and gives what it printed with its error.
func command(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// answer is one response, its body as it came.
type answer struct {
	status int
	etag   string
	body   []byte
}

// ask sends the request of c, with If-None-Match where etag is not "".
func (s *server) ask(ctx context.Context, c benchCase, etag string) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // the first time Verdaccio asks its uplink
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+c.path, nil)
	if err != nil {
		return a, err
	}
	for _, h := range c.headers(etag) {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header.Get("ETag"), body}, err
}

// versionsOf counts the versions in a document.
func versionsOf(document []byte) (int, error) {
	var d struct {
		Versions map[string]json.RawMessage `json:"versions"`
	}
	err := json.Unmarshal(document, &d)
	return len(d.Versions), err
}
