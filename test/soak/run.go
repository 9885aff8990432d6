//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// sample is what is seen of the follower at one moment.
type sample struct {
	at         time.Duration // since the follower began
	rss        uint64
	goroutines int
	fds        int
	queue      int
	lag        float64 // seconds
	changes    int
	stored     int
}

type running struct {
	*follower
	*process
	registry string
	listen   string // the follower's metrics
	began    time.Time
	samples  []sample
	csv      *csv.Writer
}

// run is the scenario of that name: a registry that changes all the time, and
// what the follower takes of memory meanwhile.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("soak run", flag.ContinueOnError)
	lasts := flags.Duration("for", time.Hour, "how long")
	rate := flags.Float64("rate", 50, "changes a second")
	packages := flags.Int("packages", 20_000, "packages at the most")
	binary := flags.String("kubo", "", "the ipfs binary of a Kubo to store in; without it, the embedded node")
	node := flags.String("node", "embedded", "embedded, or kubo with the binary of $"+kubod.Variable)
	every := flags.Duration("every", 10*time.Second, "time from one sample to the next")
	out := flags.String("csv", "soak-run.csv", "file for the samples")
	seed := flags.Uint64("seed", 1, "of the changes")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *node == "kubo" && *binary == "" {
		if *binary = kubod.Binary(); *binary == "" {
			return fmt.Errorf("%w: name an ipfs binary with --kubo", errUsage)
		}
	}
	samples, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	return inWork(ctx, func(dir string) (err error) {
		nodeFlags := []string{"--node", "embedded"}
		if *binary != "" {
			kubo, err := kubod.Run(ctx, *binary, filepath.Join(dir, "kubo"))
			if err != nil {
				return err
			}
			defer kubo.Stop() // its end is not what this is about
			nodeFlags = []string{"--node", "kubo", "--ipfs-api", kubo.API}
		}
		file, err := os.Create(samples)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		r := &running{csv: csv.NewWriter(file)}
		stop, err := r.startRegistry("--rate", fmt.Sprint(*rate), "--packages", strconv.Itoa(*packages), "--seed", fmt.Sprint(*seed))
		if err != nil {
			return err
		}
		defer stop()
		if r.follower, err = newFollower(ctx, dir, "state", r.registry, r.registry+"/-/feed", nodeFlags...); err != nil {
			return err
		}
		if r.listen, err = freeAddress(); err != nil {
			return err
		}
		r.began = time.Now()
		if r.process, err = r.start("--listen", r.listen); err != nil {
			return err
		}
		defer r.end(syscall.SIGKILL)
		say("seed %d, %v changes a second for %v; samples in %s", *seed, *rate, *lasts, samples)
		return r.watch(ctx, *lasts, *every)
	})
}

// startRegistry runs the registry in a process of its own, so that its memory
// and its collector's work are not the follower's.
func (r *running) startRegistry(args ...string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, append([]string{"registry"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() { cmd.Process.Kill(); cmd.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	r.registry = strings.TrimSpace(line)
	return stop, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// watch takes samples until the time is over, lets the follower catch up, stops it
// and compares.
func (r *running) watch(ctx context.Context, lasts, every time.Duration) error {
	if err := r.answers(ctx, r.process); err != nil {
		return err
	}
	r.csv.Write([]string{"seconds", "rss_bytes", "goroutines", "fds", "queue", "lag_seconds", "changes", "versions_stored"})
	for time.Since(r.began) < lasts {
		if err := rest(ctx, min(every, lasts-time.Since(r.began))); err != nil {
			return err
		}
		s, err := r.sample(ctx)
		if err != nil {
			return err
		}
		if n := len(r.samples); n%30 == 1 {
			say("%v: %s, %d goroutines, queue %d, lag %.0f s, %d changes", s.at.Round(time.Second), mib(s.rss), s.goroutines, s.queue, s.lag, s.changes)
		}
	}
	during := len(r.samples)
	if _, err := get(ctx, r.registry+"/-/soak/stop"); err != nil {
		return err
	}
	say("the changes are over: the follower has a minute to catch up")
	stopped := time.Now()
	lagErr := until(ctx, time.Minute, func() (bool, error) {
		s, err := r.sample(ctx)
		return err == nil && s.lag == 0 && s.queue == 0, err
	})
	caughtUp := time.Since(stopped)
	if r.alive() {
		peak, err := memory(r.Process.Pid, "VmHWM")
		if err != nil {
			return err
		}
		figure("peak memory", mib(peak))
	}
	if !r.end(syscall.SIGTERM) {
		return fmt.Errorf("the follower did not end well: %v: %s", r.ProcessState, r.logTail())
	}
	t, w, err := r.world(ctx)
	if err != nil {
		return err
	}
	r.samples = r.samples[:during]
	r.summary(lasts)
	figure("changes made", t.Changes)
	figure("requests to the registry", t.Requests)
	figure("packages, versions there", fmt.Sprintf("%d, %d", t.Packages, t.Versions))
	figure("caught up after", caughtUp.Round(time.Second))
	var h holdings
	if err := r.reading(func(l *ledger.Store) (err error) { h, err = hold(ctx, l); return errors.Join(err, l.Check(ctx)) }); err != nil {
		return err
	}
	err = h.account(w).print()
	if lagErr != nil {
		err = errors.Join(err, fmt.Errorf("the follower lags: %w", lagErr))
	}
	if len(h.excused) > 0 {
		err = errors.Join(err, fmt.Errorf("%d were refused or wait: %v", len(h.excused), h.excused))
	}
	return err
}

// sample looks once.
func (r *running) sample(ctx context.Context) (s sample, err error) {
	if !r.alive() {
		return s, fmt.Errorf("the follower ended: %v: %s", r.ProcessState, r.logTail())
	}
	st, loop, err := r.status(ctx)
	if err != nil {
		return s, err
	}
	t, err := r.told(ctx, loop.Cursor)
	if err != nil {
		return s, err
	}
	pid := r.Process.Pid
	s = sample{at: time.Since(r.began), queue: st.Counts.Queued + st.Counts.Retrying, stored: st.Counts.Versions, changes: t.Changes}
	s.lag = max(t.Behind, loop.LagSeconds)
	if s.rss, err = memory(pid, "VmRSS"); err != nil {
		return s, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return s, err
	}
	s.fds = len(fds)
	metrics, err := get(ctx, "http://"+r.listen+"/metrics")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(metrics)) {
		if value, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			s.goroutines, err = strconv.Atoi(strings.TrimSpace(value))
		}
	}
	if err != nil || s.goroutines == 0 {
		return s, fmt.Errorf("the metrics have no number of goroutines: %w", err)
	}
	r.samples = append(r.samples, s)
	r.csv.Write([]string{fmt.Sprintf("%.1f", s.at.Seconds()), fmt.Sprint(s.rss), strconv.Itoa(s.goroutines), strconv.Itoa(s.fds),
		strconv.Itoa(s.queue), fmt.Sprintf("%.1f", s.lag), strconv.Itoa(s.changes), strconv.Itoa(s.stored)})
	r.csv.Flush()
	return s, r.csv.Error()
}

func (r *running) told(ctx context.Context, cursor string) (t told, err error) {
	raw, err := get(ctx, r.registry+"/-/soak?cursor="+cursor)
	if err == nil {
		err = json.Unmarshal(raw, &t)
	}
	return t, err
}

// world is what the registry has in the end.
func (r *running) world(ctx context.Context) (told, world, error) {
	t, err := r.told(ctx, "0")
	if err != nil {
		return t, nil, err
	}
	raw, err := get(ctx, r.registry+"/-/soak/world")
	if err != nil {
		return t, nil, err
	}
	w := world{}
	for line := range bytes.Lines(raw) {
		var name, rev string
		var n int
		if _, err := fmt.Sscan(string(line), &name, &rev, &n); err != nil {
			return t, nil, err
		}
		p := upstreamPackage{rev: rev}
		for v := range n {
			p.versions = append(p.versions, busyVersion(v))
		}
		w[npm.Name(name)] = p
	}
	return t, w, nil
}

// summary prints how memory, goroutines and the rest went.
func (r *running) summary(lasts time.Duration) {
	warm := min(2*time.Minute, lasts/10)
	at := slices.IndexFunc(r.samples, func(s sample) bool { return s.at >= warm })
	during := r.samples[max(at, 0):]
	for _, of := range []struct {
		name  string
		value func(sample) float64
		unit  string
	}{
		{"memory", func(s sample) float64 { return float64(s.rss) / (1 << 20) }, "MiB"},
		{"goroutines", func(s sample) float64 { return float64(s.goroutines) }, ""},
		{"open files", func(s sample) float64 { return float64(s.fds) }, ""},
		{"queue", func(s sample) float64 { return float64(s.queue) }, ""},
		{"lag", func(s sample) float64 { return s.lag }, "s"},
	} {
		var values []float64
		for _, s := range during {
			values = append(values, of.value(s))
		}
		sorted := slices.Sorted(slices.Values(values))
		figure(of.name, strings.TrimSpace(fmt.Sprintf("first %.1f, median %.1f, last %.1f, least %.1f, most %.1f, slope %+.1f an hour  %s",
			values[0], sorted[len(sorted)/2], values[len(values)-1], sorted[0], sorted[len(sorted)-1], slope(during, of.value), of.unit)))
	}
	figure("samples", fmt.Sprintf("%d, the first %v left out above", len(r.samples), warm))
}

// slope is that of the line of least squares, an hour.
func slope(samples []sample, value func(sample) float64) float64 {
	n := float64(len(samples))
	var x, y float64
	for _, s := range samples {
		x += s.at.Hours() / n
		y += value(s) / n
	}
	var over, under float64
	for _, s := range samples {
		dx := s.at.Hours() - x
		over += dx * (value(s) - y)
		under += dx * dx
	}
	if under == 0 {
		return 0
	}
	return over / under
}
