// Package kubod runs throw-away Kubo daemons for tests: a new repository, free
// loopback ports, no contact beyond this machine. It knows nothing of the
// project but where its tests find the daemon's binary, which
// internal/ipfs/kubotest builds.
package kubod

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Variable is the environment variable that names the ipfs binary.
const Variable = "REGMIRROR_TEST_KUBO"

// binary is read before a TestMain clears the project's variables.
var binary = os.Getenv(Variable)

// Binary is the ipfs binary to test with, "" where none was named.
func Binary() string {
	_ = os.Getenv(Variable) // go test notes only what is read after its start: without it, it would take a result without a Kubo for one with
	return binary
}

// Daemon is a running Kubo daemon.
type Daemon struct {
	Binary  string
	Repo    string // IPFS_PATH
	API     string // multiaddr of its RPC API
	Gateway string // base URL of its gateway and /routing/v1
	ID      string // peer ID
	Addr    string // multiaddr of its swarm on loopback, with /p2p/ID

	cmd    *exec.Cmd
	log    logBuffer
	exited chan struct{}
}

// Start runs a daemon until the test ends, or skips the test where no binary
// was named. On a failed test, its log is in the test's.
func Start(t testing.TB) *Daemon {
	t.Helper()
	if Binary() == "" {
		t.Skipf("no Kubo: %s does not name an ipfs binary (go build -C internal/ipfs/kubotest -o OUT github.com/ipfs/kubo/cmd/ipfs)", Variable)
	}
	d, err := Run(t.Context(), binary, filepath.Join(t.TempDir(), "kubo"))
	if err != nil {
		t.Fatalf("start Kubo: %v", err)
	}
	if t, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if end, ok := t.Deadline(); ok {
			// A test binary that times out runs no cleanup.
			time.AfterFunc(time.Until(end)-3*time.Second, func() { d.Stop() })
		}
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stop Kubo: %v", err)
		}
		if t.Failed() {
			t.Logf("Kubo's log:\n%s", d.log.String())
		}
	})
	return d
}

// Run initialises a repository in repo, which must not exist, and runs a
// daemon on it until Stop. ctx is for the start alone.
func Run(ctx context.Context, binary, repo string) (*Daemon, error) {
	d := &Daemon{Binary: binary, Repo: repo}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if _, err := d.Command(ctx, "init", "--profile=test,autoconf-off,unixfs-v1-2025"); err != nil {
		return nil, err
	}
	for key, value := range map[string]any{
		"Addresses.API":     "/ip4/127.0.0.1/tcp/0",
		"Addresses.Gateway": "/ip4/127.0.0.1/tcp/0",
		"Addresses.Swarm":   []string{"/ip4/127.0.0.1/tcp/0"},
	} {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		if _, err := d.Command(ctx, "config", "--json", key, string(raw)); err != nil {
			return nil, err
		}
	}
	return d, d.Restart(ctx)
}

// Command runs the ipfs binary on the daemon's repository and returns what it
// printed.
func (d *Daemon) Command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.Binary, args...)
	cmd.Env = d.env()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("ipfs %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

func (d *Daemon) env() []string {
	return append(os.Environ(), "IPFS_PATH="+d.Repo, "IPFS_TELEMETRY=off")
}

// Restart starts the daemon again after Stop, on the same repository and, but
// for the first start, the same ports.
func (d *Daemon) Restart(ctx context.Context) error {
	d.cmd = exec.Command(d.Binary, "daemon")
	d.cmd.Env = d.env()
	endWithParent(d.cmd)
	pr, pw := io.Pipe()
	d.cmd.Stdout = io.MultiWriter(&d.log, pw)
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	d.exited = exited
	go func() {
		d.cmd.Wait()
		pw.Close()
		close(exited)
	}()
	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(pr)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "Daemon is ready") {
				ready <- true
				break
			}
		}
		io.Copy(io.Discard, pr)
		ready <- false
	}()
	select {
	case ok := <-ready:
		if !ok {
			return fmt.Errorf("the daemon ended:\n%s", d.log.String())
		}
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("the daemon is not ready:\n%s", d.log.String()), ctx.Err(), d.Stop())
	}
	if err := d.learn(ctx); err != nil {
		return errors.Join(err, d.Stop())
	}
	return nil
}

// learn finds out the addresses and fixes them, so that a restart keeps them.
func (d *Daemon) learn(ctx context.Context) error {
	api, err := os.ReadFile(filepath.Join(d.Repo, "api"))
	if err != nil {
		return err
	}
	d.API = strings.TrimSpace(string(api))
	gateway, err := os.ReadFile(filepath.Join(d.Repo, "gateway"))
	if err != nil {
		return err
	}
	d.Gateway = strings.TrimRight(strings.TrimSpace(string(gateway)), "/")
	out, err := d.Command(ctx, "id")
	if err != nil {
		return err
	}
	var id struct {
		ID        string
		Addresses []string
	}
	if err := json.Unmarshal(out, &id); err != nil {
		return err
	}
	d.ID = id.ID
	for _, a := range id.Addresses {
		if strings.HasPrefix(a, "/ip4/127.0.0.1/tcp/") {
			d.Addr = a
		}
	}
	if d.Addr == "" {
		return fmt.Errorf("the daemon has no loopback address: %v", id.Addresses)
	}
	swarm, _, _ := strings.Cut(d.Addr, "/p2p/")
	_, err = d.Command(ctx, "config", "--json", "Addresses.Swarm", fmt.Sprintf("[%q]", swarm))
	if err == nil {
		_, err = d.Command(ctx, "config", "Addresses.API", d.API)
	}
	return err
}

// Exited is closed when the daemon has ended.
func (d *Daemon) Exited() <-chan struct{} { return d.exited }

// Stop ends the daemon and waits for it, at most 20 seconds.
func (d *Daemon) Stop() error {
	select {
	case <-d.exited:
		return nil
	default:
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.exited:
		return nil
	case <-time.After(20 * time.Second):
		err := d.cmd.Process.Kill()
		<-d.exited
		return errors.Join(errors.New("the daemon had to be killed"), err)
	}
}

// Kill ends the daemon with SIGKILL, as a crash of it would, and waits for it.
func (d *Daemon) Kill() error {
	err := d.cmd.Process.Kill()
	<-d.exited
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Process is the daemon's process ID.
func (d *Daemon) Process() int { return d.cmd.Process.Pid }

// logBuffer keeps what a daemon prints.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
