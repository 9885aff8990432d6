package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// archive is what the matrix installs: a leaf with three versions and two tags,
// what depends on it, a scope, and a sapling.
const archive = `
-- leaf@1.0.0/package.json --
{"name": "leaf", "version": "1.0.0", "description": "A leaf of the matrix"}
-- leaf@1.0.0/index.js --
module.exports = 'leaf ' + require('./package.json').version
-- leaf@1.1.0/package.json --
{"name": "leaf", "version": "1.1.0", "description": "A leaf of the matrix"}
-- leaf@1.1.0/index.js --
module.exports = 'leaf ' + require('./package.json').version
-- leaf@2.0.0/package.json --
{"name": "leaf", "version": "2.0.0", "description": "A leaf of the matrix"}
-- leaf@2.0.0/index.js --
module.exports = 'leaf ' + require('./package.json').version
-- leaf/dist-tags.json --
{"latest": "2.0.0", "old": "1.0.0"}
-- sapling@1.0.0/package.json --
{"name": "sapling", "version": "1.0.0"}
-- sapling@1.0.0/index.js --
module.exports = 'sapling ' + require('./package.json').version
-- branch@1.0.0/package.json --
{"name": "branch", "version": "1.0.0", "dependencies": {"leaf": "^1.0.0"}}
-- branch@1.0.0/index.js --
module.exports = 'branch of ' + require('leaf')
-- @scope/twig@0.1.0/package.json --
{"name": "@scope/twig", "version": "0.1.0", "dependencies": {"branch": "1"}}
-- @scope/twig@0.1.0/index.js --
module.exports = 'twig of ' + require('branch')
`

// grown is the sapling in the second release.
const grown = `
-- sapling@1.1.0/package.json --
{"name": "sapling", "version": "1.1.0"}
-- sapling@1.1.0/index.js --
module.exports = 'sapling ' + require('./package.json').version
`

// registry is the mirror that the clients are given.
type registry struct {
	host     string // host:port
	program  string // registry-mirror
	upstream *npmtest.Registry
	mirror   *exec.Cmd
	log      *output
	beyond   *refuser
	front    *front // below a path
	other    *front // another address
}

// serve starts an npmtest registry and `registry-mirror up` over it.
func serve(ctx context.Context, work string) (*registry, error) {
	up, err := npmtest.Start("127.0.0.1:0", archive)
	if err != nil {
		return nil, err
	}
	up.Sign()
	// One package as most are: its tarball URL is of npm's own registry, which
	// npm replaces, and which the mirror does for all others.
	up.Edit("branch", func(doc []byte) []byte {
		return bytes.ReplaceAll(doc, []byte(up.URL), []byte(npm.DefaultRegistry()))
	})
	r := &registry{upstream: up, log: &output{}, program: filepath.Join(work, "registry-mirror")}
	if r.beyond, err = newRefuser(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", r.program, "github.com/registry-mirror/registry-mirror/cmd/registry-mirror")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("build: %w\n%s", err, out), r.close())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.host = l.Addr().String()
	l.Close()
	if r.front, err = newFront(r.host, "/npm"); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if r.other, err = newFront(r.host, ""); err != nil {
		return nil, errors.Join(err, r.close())
	}
	specs := []string{"leaf@1.0.0", "leaf@1.1.0", "leaf", "@scope/twig", "sapling@1.0.0"}
	if err := r.start(ctx, work, specs...); err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.stop()
	if err := up.Add(grown); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if err := r.start(ctx, work, append(specs, "sapling@1.1.0")...); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// start runs `registry-mirror up` until it serves what was asked for.
func (r *registry) start(ctx context.Context, work string, specs ...string) error {
	var said output
	args := append([]string{"up"}, specs...)
	r.mirror = exec.CommandContext(ctx, r.program, append(args,
		"--upstream", r.upstream.URL, "--state", filepath.Join(work, "state"), "--listen", r.host, "--trusted-proxy", "127.0.0.1", "--json")...)
	r.mirror.Env = append(os.Environ(), "REGMIRROR_CONFIG=/dev/null")
	r.mirror.Stdout, r.mirror.Stderr = &said, r.log
	if err := r.mirror.Start(); err != nil {
		r.mirror = nil
		return err
	}
	end := time.Now().Add(2 * time.Minute)
	for !json.Valid(said.Bytes()) {
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("the mirror did not come up\n%s", r.log.Bytes())
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

func (r *registry) stop() {
	if r.mirror != nil {
		r.mirror.Process.Signal(os.Interrupt)
		r.mirror.Wait()
		r.mirror = nil
	}
}

func (r *registry) close() error {
	r.stop()
	if r.beyond != nil {
		r.beyond.Close()
	}
	for _, f := range []*front{r.front, r.other} {
		if f != nil {
			f.Close()
		}
	}
	r.upstream.Close()
	return nil
}

// refuser is the proxy that clients are told to reach other hosts by: it
// reaches none and notes who was asked for.
type refuser struct {
	*http.Server
	address string

	mu    sync.Mutex
	hosts []string
}

func newRefuser() (*refuser, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &refuser{address: "http://" + l.Addr().String()}
	p.Server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		if host := r.URL.Hostname(); !slices.Contains(p.hosts, host) {
			p.hosts = append(p.hosts, host)
		}
		p.mu.Unlock()
		http.Error(w, "the matrix stays on this machine", http.StatusForbidden)
	})}
	go p.Serve(l) // ends with Close
	return p, nil
}

// take gives the hosts that were asked for since the last time.
func (p *refuser) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	hosts := p.hosts
	p.hosts = nil
	return hosts
}

// front is a reverse proxy that has the registry below a path, and nothing beside it.
type front struct {
	*http.Server
	host  string
	asked atomic.Int64
}

func newFront(to, path string) (*front, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &front{host: l.Addr().String()}
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{DisableCompression: true}, // a client's own Accept-Encoding, or none
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: to})
			r.SetXForwarded()
			if path != "" {
				r.Out.Header.Set("X-Forwarded-Prefix", path)
			}
		},
	}
	f.Server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.StripPrefix(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		proxy.ServeHTTP(w, r)
	}))}
	go f.Serve(l) // ends with Close
	return f, nil
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

func (o *output) Bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.buf.Bytes())
}
