//go:build linux

package main

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

const (
	// Of packages with a tarball of some 6 MB, whose readers take their time.
	giants     = 16
	giantBytes = 6 << 20
	// perInstall is npm's maxsockets, retries its fetch-retries.
	perInstall = 15
	retries    = 2

	// What a mirror under abuse may take: docs/soak.md says what for.
	mostMemory     = 3 << 29
	mostGoroutines = 20_000
)

// mirrored is `registry-mirror up` over a registry of which it holds everything.
type mirrored struct {
	*process
	reg     *npmtest.Registry
	state   state.Dir
	url     string
	address string
	logFile string
	names   []string
}

// abused is the scenario `mirror`: many installs at once, alone and then beside
// clients that mean harm.
func abused(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("soak mirror", flag.ContinueOnError)
	packages := flags.Int("packages", 2000, "generated packages")
	installs := flags.Int("installs", 500, "installs at once")
	pull := flags.Bool("pull-through", false, "ask the registry for what is not held, and for each document first")
	lasts := flags.Duration("for", 45*time.Second, "how long the abuse lasts at the least")
	seed := flags.Uint64("seed", 1, "of the packages and of what is installed")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *packages < 10 || *installs < 1 {
		return fmt.Errorf("%w: --packages takes 10 or more, --installs 1", errUsage)
	}
	return inWork(ctx, func(dir string) error {
		m, err := startMirror(ctx, dir, *packages, *seed, *pull)
		if err != nil {
			return err
		}
		defer m.reg.Close()
		defer m.end(syscall.SIGKILL)
		return m.abuse(ctx, *installs, *lasts, *seed)
	})
}

// startMirror fills a state with a registry of n packages, and serves it.
func startMirror(ctx context.Context, dir string, n int, seed uint64, pull bool) (_ *mirrored, err error) {
	m := &mirrored{logFile: filepath.Join(dir, "mirror.log")}
	var archive strings.Builder
	archive.WriteString(npmtest.Generate(n, seed))
	for i := range n {
		m.names = append(m.names, npmtest.GeneratedName(i))
	}
	random := rand.NewChaCha8([32]byte{byte(seed)})
	noise := make([]byte, giantBytes)
	list := slices.Clone(m.names)
	for i := range giants {
		random.Read(noise)
		fmt.Fprintf(&archive, "-- %s@1.0.0/noise.txt --\n%s\n", giant(i), base64.StdEncoding.EncodeToString(noise))
		list = append(list, giant(i))
	}
	began := time.Now()
	if m.reg, err = npmtest.Start("127.0.0.1:0", archive.String()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.reg.Close()
		}
	}()
	names := filepath.Join(dir, "names")
	if err := os.WriteFile(names, []byte(strings.Join(list, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	f := &follower{work: dir, state: state.Dir(filepath.Join(dir, "state")), upstream: m.reg.URL, feed: "none", logFile: filepath.Join(dir, "fill.log")}
	m.state = f.state
	if _, err := f.command(ctx, "add", "--every", "--no-deps", "--from-file", names); err != nil {
		return nil, err
	}
	if err := f.once(ctx); err != nil {
		return nil, err
	}
	if m.address, err = freeAddress(); err != nil {
		return nil, err
	}
	m.url = "http://" + m.address
	log, err := os.OpenFile(m.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := f.cmd("up", "--no-deps", "--from-file", names, "--listen", m.address, "--upstream", m.reg.URL, fmt.Sprintf("--pull-through=%v", pull), "--json")
	cmd.Path = filepath.Join(dir, "registry-mirror")
	cmd.Args[0] = cmd.Path
	cmd.Stdout, cmd.Stderr = log, log
	if m.process, err = launch(cmd, log); err != nil {
		return nil, err
	}
	err = until(ctx, 5*time.Minute, func() (bool, error) {
		if !m.alive() {
			return false, fmt.Errorf("the mirror ended: %s", m.logTail())
		}
		_, err := get(ctx, m.url+"/-/ping")
		return err == nil && socket.Alive(ctx, m.state.Socket("registry-mirror")), nil
	})
	if err != nil {
		m.end(syscall.SIGKILL)
		return nil, err
	}
	say("a mirror of %d packages is up after %v", len(list), time.Since(began).Round(time.Second))
	return m, nil
}

func giant(i int) string { return fmt.Sprintf("giant-%02d", i) }

func giantTarball(i int) string { return "/" + giant(i) + "/-/" + giant(i) + "-1.0.0.tgz" }

func (m *mirrored) logTail() string {
	raw, err := os.ReadFile(m.logFile)
	if err != nil {
		return err.Error()
	}
	return tail(raw)
}

// weight is what the mirror's process has at one moment.
type weight struct {
	rss        uint64
	goroutines int
	sockets    int
	files      int // all that are open, sockets too
}

func (w weight) String() string {
	return fmt.Sprintf("%s, %d goroutines, %d sockets, %d open files", mib(w.rss), w.goroutines, w.sockets, w.files)
}

func (m *mirrored) weigh(ctx context.Context) (w weight, err error) {
	if !m.alive() {
		return w, fmt.Errorf("the mirror ended: %v: %s", m.ProcessState, m.logTail())
	}
	if w.rss, err = memory(m.Process.Pid, "VmRSS"); err != nil {
		return w, err
	}
	dir := fmt.Sprintf("/proc/%d/fd", m.Process.Pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return w, err
	}
	w.files = len(fds)
	for _, fd := range fds {
		// One that was closed meanwhile has no link.
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			w.sockets++
		}
	}
	var s mirror.TableStatus
	if err := socket.Call(ctx, m.state.Socket("registry-mirror"), http.MethodGet, "/status", &s); err != nil {
		return w, err
	}
	w.goroutines = s.Registries[0].Goroutines
	return w, nil
}

// watch weighs until ctx ends, and gives the most of each.
func (m *mirrored) watch(ctx context.Context) (most weight, err error) {
	for {
		w, err := m.weigh(context.WithoutCancel(ctx))
		if err != nil {
			return most, err
		}
		most = weight{max(most.rss, w.rss), max(most.goroutines, w.goroutines), max(most.sockets, w.sockets), max(most.files, w.files)}
		if rest(ctx, 250*time.Millisecond) != nil {
			return most, nil
		}
	}
}

// abuse is the scenario once the mirror is up.
func (m *mirrored) abuse(ctx context.Context, installs int, lasts time.Duration, seed uint64) error {
	began := time.Now()
	if out := m.install(ctx, 1, seed); out.failed > 0 { // what is opened with the first
		return fmt.Errorf("an install alone fails: %w", out.err)
	}
	before, err := m.weigh(ctx)
	if err != nil {
		return err
	}
	alone, peakAlone, err := m.observed(ctx, func(ctx context.Context) outcome { return m.install(ctx, installs, seed) })
	if err != nil {
		return err
	}
	say("%d installs alone took %v", installs, alone.took.Round(time.Second))

	harm := newHarm(m.address, m.names)
	abusing, stop := context.WithCancel(ctx)
	defer stop()
	var abusers sync.WaitGroup
	harm.begin(abusing, &abusers)
	beside, peak, err := m.observed(ctx, func(ctx context.Context) outcome {
		if rest(ctx, 5*time.Second) != nil { // they are all there by then
			return outcome{}
		}
		begun := time.Now()
		out := m.install(ctx, installs, seed+1)
		for time.Since(begun) < lasts && ctx.Err() == nil && m.alive() {
			// They go on for as long as the abuse does: some of it takes its time.
			out = out.and(m.install(ctx, max(1, installs/10), rand.Uint64()))
		}
		return out
	})
	stop()
	abusers.Wait()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	say("%d installs beside the abuse took %v", beside.done+beside.failed, beside.took.Round(time.Second))
	var after weight
	level := until(ctx, time.Minute, func() (bool, error) {
		after, err = m.weigh(ctx)
		return after.sockets <= before.sockets+8 && after.goroutines <= before.goroutines+64, err
	})
	last := m.install(ctx, installs, seed+2)

	errs := harm.print(os.Stdout)
	print := func(name string, out outcome) {
		figure("installs "+name, fmt.Sprintf("%d done, %d failed, %d requests, %d retried", out.done, out.failed, out.requests, out.retried))
		figure("", fmt.Sprintf("p50 %v, p99 %v; a request p50 %v, p99 %v", quantile(out.installs, 50), quantile(out.installs, 99), quantile(out.answers, 50), quantile(out.answers, 99)))
		if out.failed > 0 {
			errs = append(errs, fmt.Errorf("%d installs %s failed: %w", out.failed, name, out.err))
		}
	}
	print("alone", alone)
	print("beside the abuse", beside)
	print("after it", last)
	figure("at the start", before)
	figure("most, installs alone", peakAlone)
	figure("most, beside the abuse", peak)
	figure("after it", after)
	if level != nil {
		errs = append(errs, fmt.Errorf("a minute after the abuse the mirror has %v, of %v before", after, before))
	}
	highest, err := memory(m.Process.Pid, "VmHWM")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	figure("peak memory", mib(highest))
	if highest > mostMemory {
		errs = append(errs, fmt.Errorf("the mirror took %s of memory, and may take %s", mib(highest), mib(mostMemory)))
	}
	if peak.goroutines > mostGoroutines {
		errs = append(errs, fmt.Errorf("the mirror had %d goroutines, and may have %d", peak.goroutines, mostGoroutines))
	}
	if !m.end(syscall.SIGTERM) {
		errs = append(errs, fmt.Errorf("the mirror did not end well: %v: %s", m.ProcessState, m.logTail()))
	}
	figure("duration", time.Since(began).Round(time.Second))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println("ok")
	return nil
}

// observed does f and watches the mirror meanwhile.
func (m *mirrored) observed(ctx context.Context, f func(context.Context) outcome) (out outcome, most weight, err error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() (err error) {
		most, err = m.watch(watching)
		return err
	})
	began := time.Now()
	out = f(ctx)
	out.took = time.Since(began)
	stop()
	err = group.Wait()
	return out, most, err
}

// outcome is what came of some installs.
type outcome struct {
	done, failed      int
	requests, retried int64
	installs, answers []time.Duration // times of each that was done
	took              time.Duration
	err               error // one of those that failed
}

func (o outcome) and(p outcome) outcome {
	return outcome{o.done + p.done, o.failed + p.failed, o.requests + p.requests, o.retried + p.retried,
		append(o.installs, p.installs...), append(o.answers, p.answers...), 0, cmp.Or(o.err, p.err)}
}

func quantile(all []time.Duration, percent int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)*percent+99)/100-1].Round(100 * time.Microsecond)
}

// install does n installs at once, each of five packages and all they need.
func (m *mirrored) install(ctx context.Context, n int, seed uint64) (out outcome) {
	clients := make([]*installer, n)
	took := make([]time.Duration, n)
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range clients {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		// Each is a machine of its own.
		c := newInstaller(m.url, net.IPv4(127, 2, byte(i>>8), byte(i)))
		clients[i] = c
		var wants []string
		for range 5 {
			wants = append(wants, m.names[rnd.IntN(len(m.names))])
		}
		all.Go(func() {
			began := time.Now()
			errs[i] = c.install(ctx, wants)
			took[i] = time.Since(began)
			c.CloseIdleConnections()
		})
	}
	all.Wait()
	for i, c := range clients {
		out.requests += c.requests.Load()
		out.retried += c.retried.Load()
		out.answers = append(out.answers, c.answers...)
		if errs[i] != nil {
			out.failed++
			out.err = errs[i]
			continue
		}
		out.done++
		out.installs = append(out.installs, took[i])
	}
	return out
}

// installer is one client, as npm is: 15 connections that are kept, two retries.
type installer struct {
	http.Client
	url               string
	requests, retried atomic.Int64
	mu                sync.Mutex
	answers           []time.Duration
}

func newInstaller(url string, at net.IP) *installer {
	return &installer{url: url, Client: http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{ // npm's fetch-timeout
		DialContext:     (&net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{IP: at}}).DialContext,
		MaxConnsPerHost: perInstall, MaxIdleConnsPerHost: perInstall, DisableCompression: true,
	}}}
}

// manifest is what an install reads of a version.
type manifest struct {
	Dependencies         map[string]string `json:"dependencies"`
	OptionalDependencies map[string]string `json:"optionalDependencies"`
	Dist                 npm.Dist          `json:"dist"`
}

// install fetches the documents of a closure, then the tarballs, newest versions.
func (c *installer) install(ctx context.Context, wants []string) error {
	seen := map[string]bool{}
	var dists []npm.Dist
	var mu sync.Mutex
	for len(wants) > 0 {
		var group errgroup.Group
		group.SetLimit(perInstall)
		var next []string
		for _, name := range wants {
			if seen[name] {
				continue
			}
			seen[name] = true
			group.Go(func() error {
				v, err := c.document(ctx, name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				dists = append(dists, v.Dist)
				for name := range v.Dependencies {
					next = append(next, name)
				}
				for name := range v.OptionalDependencies {
					next = append(next, name)
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		wants = next
	}
	var group errgroup.Group
	group.SetLimit(perInstall)
	for _, d := range dists {
		group.Go(func() error { return c.tarball(ctx, d) })
	}
	return group.Wait()
}

// document gives the newest version.
func (c *installer) document(ctx context.Context, name string) (v manifest, err error) {
	var doc struct {
		Name     string              `json:"name"`
		Tags     map[string]string   `json:"dist-tags"`
		Versions map[string]manifest `json:"versions"`
	}
	err = c.ask(ctx, c.url+"/"+npm.Name(name).Escape(), npm.AbbreviatedType+"; q=1.0, application/json; q=0.8, */*", func(resp *http.Response) error {
		body := io.Reader(resp.Body)
		if resp.Header.Get("Content-Encoding") == "gzip" {
			if body, err = gzip.NewReader(resp.Body); err != nil {
				return err
			}
		}
		doc.Versions = nil
		return json.NewDecoder(body).Decode(&doc)
	})
	v, ok := doc.Versions[doc.Tags["latest"]]
	if err == nil && (!ok || doc.Name != name) {
		err = fmt.Errorf("a document of %q without its newest version", doc.Name)
	}
	return v, err
}

func (c *installer) tarball(ctx context.Context, d npm.Dist) error {
	if !strings.HasPrefix(d.Tarball, c.url+"/") {
		return fmt.Errorf("tarball at %s, not at the mirror", d.Tarball)
	}
	integrity, err := npm.ParseIntegrity(d)
	if err != nil {
		return err
	}
	err = c.ask(ctx, d.Tarball, "*/*", func(resp *http.Response) error {
		v := integrity.NewVerifier()
		if _, err := io.Copy(v, resp.Body); err != nil {
			return err
		}
		return v.Check()
	})
	if err != nil {
		return fmt.Errorf("%s: %w", d.Tarball, err)
	}
	return nil
}

// ask asks until read has taken the answer, three times at the most.
func (c *installer) ask(ctx context.Context, url, accept string, read func(*http.Response) error) (err error) {
	for try := 0; ; try++ {
		c.requests.Add(1)
		began := time.Now()
		if err = c.once(ctx, url, accept, read); err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.answers = append(c.answers, time.Since(began))
			return nil
		}
		if try == retries || rest(ctx, time.Second<<try) != nil {
			return err
		}
		c.retried.Add(1)
	}
}

func (c *installer) once(ctx context.Context, url, accept string, read func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("Accept-Encoding", "gzip,deflate")
	req.Header.Set("User-Agent", "npm/11.19.1 node/v22.23.3 linux x64 workspaces/false")
	req.Header.Set("Npm-Command", "install")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return fmt.Errorf("%s: %s", resp.Status, raw)
	}
	if err := read(resp); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body) // to its end, so that the connection is kept
	return err
}
