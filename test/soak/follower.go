//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// follower is the follower's binary on one state directory.
type follower struct {
	work     string // directory with the binary; logs go there too
	state    state.Dir
	upstream string
	feed     string
	flags    []string // of `run`, beside upstream and feed
	logFile  string
}

// process is a command of the follower's that runs.
type process struct {
	*exec.Cmd
	exited chan struct{}
	log    *os.File
}

// newFollower is a follower of every package of a registry, on a new state.
func newFollower(ctx context.Context, work, name, upstream, feed string, node ...string) (*follower, error) {
	f := &follower{work: work, state: state.Dir(filepath.Join(work, name)), upstream: upstream, feed: feed,
		logFile: filepath.Join(work, filepath.Base(name)+".log")}
	_, err := f.command(ctx, append([]string{"add", "--all"}, node...)...)
	return f, err
}

func (f *follower) cmd(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(f.work, "follower"), append(args, "--state", string(f.state))...)
	cmd.Dir = f.work
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.work, "TMPDIR=" + f.work, "REGMIRROR_CONFIG=/dev/null"}
	// A harness that is killed leaves nothing running.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// command runs a command to its end and returns what it printed.
func (f *follower) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := f.cmd(args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	stop()
	if err != nil {
		err = errors.Join(ctx.Err(), fmt.Errorf("follower %s: %w: %s", strings.Join(args, " "), err, tail(stderr.Bytes())))
	}
	return out.Bytes(), err
}

// start begins `follower run`.
func (f *follower) start(args ...string) (*process, error) {
	log, err := os.OpenFile(f.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	args = append(append([]string{"run", "--feed", f.feed, "--upstream", f.upstream}, f.flags...), args...)
	cmd := f.cmd(args...)
	cmd.Stdout, cmd.Stderr = log, log
	return launch(cmd, log)
}

// launch starts cmd, whose output is log.
func launch(cmd *exec.Cmd, log *os.File) (*process, error) {
	p := &process{Cmd: cmd, exited: make(chan struct{}), log: log}
	if err := p.Start(); err != nil {
		log.Close()
		return nil, err
	}
	go func() {
		p.Wait() // its state says how it ended
		log.Close()
		close(p.exited)
	}()
	return p, nil
}

// once runs `follower run --once` to its end. Exit code 69 says that all that is
// left is tried again later.
func (f *follower) once(ctx context.Context) error {
	p, err := f.start("--once")
	if err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return err
	}
	if code := p.ProcessState.ExitCode(); code != 0 && code != 69 {
		return fmt.Errorf("follower run --once ended with code %d: %s", code, f.logTail())
	}
	return nil
}

// settle runs the follower until its queue is empty, at most rounds times: what
// waits for a later time is made due.
func (f *follower) settle(ctx context.Context, rounds int) error {
	for range rounds {
		if err := f.once(ctx); err != nil {
			return err
		}
		left := 0
		err := f.reading(func(l *ledger.Store) error {
			rows, err := l.Retries(ctx)
			left = len(rows)
			return err
		})
		if err != nil || left == 0 {
			return err
		}
		// Confirmations that a package is gone need some time between them.
		if err := rest(ctx, 600*time.Millisecond); err != nil {
			return err
		}
		if _, err := f.command(ctx, "retry", "--all"); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for the end of p, which it brings about when ctx ends.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		p.end(syscall.SIGKILL)
		return ctx.Err()
	}
}

// end sends a signal and waits. It reports whether the process ran until then.
func (p *process) end(sig syscall.Signal) bool {
	p.Process.Signal(sig)
	<-p.exited
	status, ok := p.ProcessState.Sys().(syscall.WaitStatus)
	return ok && (status.Signaled() && status.Signal() == sig || sig != syscall.SIGKILL && status.ExitStatus() == 0)
}

// alive reports whether p has not ended.
func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (f *follower) logTail() string {
	raw, err := os.ReadFile(f.logFile)
	if err != nil {
		return err.Error()
	}
	return tail(raw)
}

func tail(raw []byte) string {
	const most = 3000
	if len(raw) > most {
		raw = raw[len(raw)-most:]
	}
	return string(bytes.TrimSpace(raw))
}

// reading opens the ledger of a follower that does not run.
func (f *follower) reading(read func(*ledger.Store) error) (err error) {
	l, err := ledger.Open(f.state.Ledger(), ledger.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return read(l)
}

// asking calls ask with a client of the follower that runs.
func (f *follower) asking(ask func(*ledger.Client) error) (err error) {
	c, err := ledger.Dial(f.state.Socket("follower"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return ask(c)
}

// status is what the follower that runs says of itself.
func (f *follower) status(ctx context.Context) (s ledger.Status, loop follow.Status, err error) {
	err = f.asking(func(c *ledger.Client) error {
		if s, err = c.Status(ctx); err != nil {
			return err
		}
		return json.Unmarshal(s.Loop, &loop)
	})
	return s, loop, err
}

// answers waits until the follower's socket answers.
func (f *follower) answers(ctx context.Context, p *process) error {
	return until(ctx, time.Minute, func() (bool, error) {
		if !p.alive() {
			return false, fmt.Errorf("the follower ended: %s", f.logTail())
		}
		return f.asking(func(*ledger.Client) error { return nil }) == nil, nil
	})
}

// until asks until the answer is yes, for so long at the most.
func until(ctx context.Context, most time.Duration, ask func() (bool, error)) error {
	for end := time.Now().Add(most); ; {
		ok, err := ask()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v", most)
		}
		if err := rest(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check lets the follower read every block of what its ledger names.
func (f *follower) check(ctx context.Context) (follow.Checked, error) {
	var c follow.Checked
	raw, err := f.command(ctx, "check", "--json")
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &c); err != nil {
			return c, fmt.Errorf("what check printed: %w: %.300s", err, raw)
		}
	}
	return c, err
}

// memory reads a figure of a process in bytes, "VmRSS" or "VmHWM".
func memory(pid int, key string) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", key, pid)
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func item(name npm.Name, version string) string {
	if version == "" {
		return string(name)
	}
	return string(name) + "@" + version
}
