//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// limit is how long one update may take before the run has failed.
const limit = 3 * time.Minute

// bench is one run, in a directory of its own.
type bench struct {
	dir      string
	from, to *kubod.Daemon
	registry *npmtest.Registry
	mirror   string // URL
}

func run(ctx context.Context, binary string, updates int) (r result, err error) {
	if binary == "" {
		return r, errNoKubo
	}
	r.Updates = updates
	dir, err := os.MkdirTemp("", "bench-publish-")
	if err != nil {
		return r, err
	}
	b := &bench{dir: dir}
	defer os.RemoveAll(dir)
	if err := b.command(ctx, "go", "build", "-o", dir+"/bin/", "github.com/registry-mirror/registry-mirror/cmd/..."); err != nil {
		return r, err
	}
	if b.from, err = kubod.Run(ctx, binary, filepath.Join(dir, "from")); err != nil {
		return r, err
	}
	defer b.from.Stop()
	if b.to, err = kubod.Run(ctx, binary, filepath.Join(dir, "to")); err != nil {
		return r, err
	}
	defer b.to.Stop()
	if b.registry, err = npmtest.Start("127.0.0.1:0", version(0)); err != nil {
		return r, err
	}
	defer b.registry.Close()
	stop, err := b.begin(ctx)
	if err != nil {
		return r, err
	}
	defer stop()

	var resolved, after []float64
	for i := range updates {
		all, done, err := b.update(ctx, i+1)
		if err != nil {
			return r, fmt.Errorf("update %d: %w", i+1, err)
		}
		resolved, after = append(resolved, all), append(after, done)
	}
	r.PublishToResolved, r.DoneToResolved = spreadOf(resolved), spreadOf(after)
	kubo, err := b.kubo(ctx, updates)
	if err != nil {
		return r, err
	}
	r.KuboToResolved = spreadOf(kubo)
	return r, r.records()
}

// version is what npm's registry has after so many updates.
func version(i int) string {
	return fmt.Sprintf("-- thing@1.0.%d/package.json --\n{\"name\":\"thing\",\"version\":\"1.0.%[1]d\"}\n", i)
}

// begin publishes the first release and waits until the mirror serves it.
func (b *bench) begin(ctx context.Context) (stop func(), err error) {
	if err := b.ours(ctx, "follower", "add", "thing", "--every"); err != nil {
		return nil, err
	}
	if err := b.follow(ctx); err != nil {
		return nil, err
	}
	if err := b.ours(ctx, "publisher", "key", "new"); err != nil {
		return nil, err
	}
	if err := b.ours(ctx, "publisher", "publish"); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	keys := b.program(ctx, "publisher", "key", "list", "--json", "--state", b.state())
	keys.Stdout = &out
	if err := keys.Run(); err != nil {
		return nil, err
	}
	var list struct {
		Keys []struct {
			IPNSName string `json:"ipns_name"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list.Keys) != 1 {
		return nil, fmt.Errorf("publisher key list: %w: %s", err, out.Bytes())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	daemon := b.program(ctx, "registry-mirror", "daemon", "--ipfs", list.Keys[0].IPNSName, "--node", "kubo", "--ipfs-api", b.to.API,
		"--state", filepath.Join(b.dir, "mirror"), "--listen", address, "--peer", b.from.Addr)
	var log bytes.Buffer
	daemon.Stderr = &log
	daemon.Cancel = func() error { return daemon.Process.Signal(os.Interrupt) }
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		daemon.Cancel()
		daemon.Wait()
	}
	b.mirror = "http://" + address
	if err := b.serves(ctx, 0); err != nil {
		stop()
		return nil, fmt.Errorf("the first release: %w: %s", err, log.Bytes())
	}
	return stop, nil
}

// update makes version i, publishes it, and gives the milliseconds until the
// mirror served it: from the command's start, and from its end.
func (b *bench) update(ctx context.Context, i int) (all, done float64, err error) {
	if err := b.registry.Add(version(i)); err != nil {
		return 0, 0, err
	}
	if err := b.follow(ctx); err != nil {
		return 0, 0, err
	}
	// The mirror asks in a rhythm of its own, which this one must not meet.
	if err := sleep(ctx, time.Second+rand.N(2*time.Second)); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	var end time.Time
	began := time.Now()
	go func() {
		err := b.ours(ctx, "publisher", "publish")
		end = time.Now()
		ended <- err
	}()
	errServes := b.serves(ctx, i)
	served := time.Now()
	if err := errors.Join(<-ended, errServes); err != nil {
		return 0, 0, err
	}
	return ms(served.Sub(began)), ms(served.Sub(end)), nil
}

// serves returns once the mirror's packument has version i.
func (b *bench) serves(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.mirror+"/thing", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			var doc struct {
				Tags map[string]string `json:"dist-tags"`
			}
			err = errors.Join(json.NewDecoder(resp.Body).Decode(&doc), resp.Body.Close())
			if err == nil && resp.StatusCode == http.StatusOK && doc.Tags["latest"] == fmt.Sprintf("1.0.%d", i) {
				return nil
			}
		}
		if slept := sleep(ctx, 5*time.Millisecond); slept != nil {
			return fmt.Errorf("version %d is not served: %w: %w", i, slept, err)
		}
	}
}

// kubo times IPNS between the two nodes without any of ours.
func (b *bench) kubo(ctx context.Context, updates int) (all []float64, err error) {
	if _, err := b.to.Command(ctx, "swarm", "connect", b.from.Addr); err != nil {
		return nil, err
	}
	_, api, err := endpoint(b.to.API)
	if err != nil {
		return nil, err
	}
	for i := range updates {
		add := exec.CommandContext(ctx, b.from.Binary, "add", "-Q")
		add.Env = append(os.Environ(), "IPFS_PATH="+b.from.Repo)
		add.Stdin = strings.NewReader(fmt.Sprint("update ", i))
		out, err := add.Output()
		if err != nil {
			return nil, err
		}
		value := "/ipfs/" + strings.TrimSpace(string(out))
		began := time.Now()
		if _, err := b.from.Command(ctx, "name", "publish", "-Q", value); err != nil {
			return nil, err
		}
		for got := ""; got != value; {
			if time.Since(began) > limit {
				return nil, fmt.Errorf("kubo's own name resolves to %q, not %q", got, value)
			}
			if got, err = resolve(ctx, api, b.from.ID); err != nil {
				return nil, err
			}
		}
		all = append(all, ms(time.Since(began)))
	}
	return all, nil
}

// resolve is `ipfs name resolve --nocache`.
func resolve(ctx context.Context, api, name string) (string, error) {
	q := url.Values{"arg": {name}, "nocache": {"true"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+api+"/api/v0/name/resolve?"+q.Encode(), nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	var answer struct{ Path string }
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", err
	}
	return answer.Path, nil
}

// endpoint is network and address of an RPC API's multiaddr.
func endpoint(api string) (network, address string, err error) {
	a, err := ma.NewMultiaddr(api)
	if err != nil {
		return "", "", err
	}
	return manet.DialArgs(a)
}

func (b *bench) state() string { return filepath.Join(b.dir, "state") }

func (b *bench) follow(ctx context.Context) error {
	return b.ours(ctx, "follower", "run", "--once", "--feed", b.registry.FeedURL, "--upstream", b.registry.URL)
}

// ours runs one of our commands on the publishing side's state and node.
func (b *bench) ours(ctx context.Context, name string, args ...string) error {
	return output(b.program(ctx, name, append(args, "--state", b.state(), "--node", "kubo", "--ipfs-api", b.from.API)...))
}

func (b *bench) command(ctx context.Context, name string, args ...string) error {
	return output(exec.CommandContext(ctx, name, args...))
}

// program is one of our three commands.
func (b *bench) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "bin", name), args...)
	cmd.Env = append(os.Environ(), "REGMIRROR_CONFIG=/dev/null")
	return cmd
}

// output runs cmd, and gives what it printed with its error.
func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
