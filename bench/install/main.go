// Command install times `npm ci` of one project, with an empty npm cache each
// time: straight from npm's registry, through a mirror that holds everything
// (warm), and through a mirror that holds nothing and has one peer on loopback
// (cold). The three take turns in one run; figures are medians in seconds.
//
//	go run ./bench/install [--quick] [--json] [--rounds N]
//
// It needs npm and the registry that npm's configuration names.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// result is what --json prints. Seconds are medians over the rounds.
type result struct {
	NPM      float64 `json:"npm"`
	OursWarm float64 `json:"ours_warm"`
	OursCold float64 `json:"ours_cold"`
	WarmOver float64 `json:"warm_over_npm"`
	ColdOver float64 `json:"cold_over_npm"`
	Packages int     `json:"packages"`
	Rounds   int     `json:"rounds"`
	FirstUp  float64 `json:"first_up"` // the first `up`, all fetched from npm's registry
	StartMs  float64 `json:"start_ms"` // a later `up`, until it serves
	RSSMiB   float64 `json:"rss_mib"`  // of the warm mirror, follower and publisher in it, at the end
	BinaryMB float64 `json:"binary_mb"`
}

var (
	small = map[string]string{"express": "^4.18.0"}
	large = map[string]string{"express": "^4.18.0", "eslint": "^8.57.0", "webpack": "^5.90.0", "jest": "^29.7.0", "react": "^18.3.0", "typescript": "^5.4.0"}
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	quick := flag.Bool("quick", false, "a smaller project, fewer rounds: under 50 seconds once built")
	asJSON := flag.Bool("json", false, "print one JSON object")
	rounds := flag.Int("rounds", 0, "rounds; 0 means 5, or 2 with --quick")
	flag.Parse()
	deps := large
	if *rounds == 0 {
		*rounds = 5
	}
	if *quick {
		deps, *rounds = small, 2
	}
	r, err := run(ctx, deps, *rounds)
	if err != nil {
		fmt.Fprintln(os.Stderr, "install: error:", err)
		os.Exit(1)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(r)
		return
	}
	fmt.Printf("npm ci of %d packages, median of %d rounds\n", r.Packages, r.Rounds)
	fmt.Printf("  npm        %6.2f s\n  ours_warm  %6.2f s  %.2fx\n  ours_cold  %6.2f s  %.2fx\n", r.NPM, r.OursWarm, r.WarmOver, r.OursCold, r.ColdOver)
	fmt.Printf("  first up %.1f s, later start %.0f ms, %.0f MiB resident, binary %.1f MB\n", r.FirstUp, r.StartMs, r.RSSMiB, r.BinaryMB)
}

// bench is one run, in a directory of its own.
type bench struct {
	dir     string
	bin     string // registry-mirror
	project string // package.json and package-lock.json
	running []*exec.Cmd
}

func run(ctx context.Context, deps map[string]string, rounds int) (r result, err error) {
	dir, err := os.MkdirTemp("", "bench-install-")
	if err != nil {
		return r, err
	}
	b := &bench{dir: dir, bin: filepath.Join(dir, "registry-mirror"), project: filepath.Join(dir, "project")}
	defer os.RemoveAll(dir)
	defer b.stopAll()
	if err := b.command(ctx, "", "go", "build", "-o", b.bin, "github.com/registry-mirror/registry-mirror/cmd/registry-mirror"); err != nil {
		return r, err
	}
	if info, err := os.Stat(b.bin); err == nil {
		r.BinaryMB = float64(info.Size()) / 1e6
	}
	if r.Packages, err = b.makeProject(ctx, deps); err != nil {
		return r, err
	}
	r.Rounds = rounds

	// The origin: everything from npm's registry, once; then again, warm.
	state := filepath.Join(dir, "origin")
	lock := filepath.Join(b.project, "package-lock.json")
	var origin up
	for i := range 2 {
		begin := time.Now()
		origin, err = b.up(ctx, state, lock)
		if err != nil {
			return r, err
		}
		if i == 0 {
			r.FirstUp = time.Since(begin).Seconds()
			b.stopAll()
		} else {
			r.StartMs = float64(time.Since(begin).Milliseconds())
		}
	}
	warm := b.running[0]

	var npm, oursWarm, oursCold []float64
	for i := range rounds {
		t, err := b.ci(ctx, "")
		if err != nil {
			return r, err
		}
		npm = append(npm, t)
		if t, err = b.ci(ctx, origin.Registry); err != nil {
			return r, err
		}
		oursWarm = append(oursWarm, t)
		cold, registry, err := b.mirror(ctx, filepath.Join(dir, fmt.Sprint("cold", i)), origin)
		if err != nil {
			return r, err
		}
		if t, err = b.ci(ctx, registry); err != nil {
			return r, err
		}
		oursCold = append(oursCold, t)
		b.stop(cold)
	}
	r.NPM, r.OursWarm, r.OursCold = median(npm), median(oursWarm), median(oursCold)
	r.WarmOver, r.ColdOver = r.OursWarm/r.NPM, r.OursCold/r.NPM
	r.RSSMiB = rss(warm.Process.Pid)
	return r, nil
}

// makeProject writes the project with a lockfile that names no registry, and
// returns how many packages it installs.
func (b *bench) makeProject(ctx context.Context, deps map[string]string) (int, error) {
	if err := os.MkdirAll(b.project, 0o755); err != nil {
		return 0, err
	}
	manifest, err := json.Marshal(map[string]any{"name": "bench", "version": "1.0.0", "private": true, "dependencies": deps})
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(b.project, "package.json"), manifest, 0o644); err != nil {
		return 0, err
	}
	err = b.command(ctx, b.project, "npm", "install", "--package-lock-only", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", filepath.Join(b.dir, "cache-lock"))
	if err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(filepath.Join(b.project, "package-lock.json"))
	if err != nil {
		return 0, err
	}
	var lock struct {
		Packages map[string]json.RawMessage `json:"packages"`
	}
	if err := json.Unmarshal(raw, &lock); err != nil {
		return 0, err
	}
	return len(lock.Packages) - 1, nil
}

// ci times one `npm ci` in a fresh copy of the project with an empty cache.
// An empty registry means npm's own configuration.
func (b *bench) ci(ctx context.Context, registry string) (float64, error) {
	dir, err := os.MkdirTemp(b.dir, "ci-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"package.json", "package-lock.json"} {
		raw, err := os.ReadFile(filepath.Join(b.project, name))
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
			return 0, err
		}
	}
	args := []string{"ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", filepath.Join(dir, ".cache")}
	if registry != "" {
		args = append(args, "--registry", registry)
	}
	begin := time.Now()
	if err := b.command(ctx, dir, "npm", args...); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}

// up is what `registry-mirror up --json` prints once it serves.
type up struct {
	Name     string   `json:"name"`
	Registry string   `json:"registry"`
	Peers    []string `json:"peers"`
}

func (b *bench) up(ctx context.Context, state, lock string) (up, error) {
	var u up
	address, err := freeAddress()
	if err != nil {
		return u, err
	}
	out, err := b.start(ctx, "up", "--lockfile", lock, "--state", state, "--listen", address, "--json")
	if err != nil {
		return u, err
	}
	err = wait(ctx, 5*time.Minute, func() error { return json.Unmarshal(out.Bytes(), &u) })
	return u, err
}

func (b *bench) mirror(ctx context.Context, state string, origin up) (*exec.Cmd, string, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	args := []string{"daemon", "--ipfs", origin.Name, "--state", state, "--network", "local", "--listen", address}
	for _, p := range origin.Peers {
		args = append(args, "--peer", p)
	}
	if _, err := b.start(ctx, args...); err != nil {
		return nil, "", err
	}
	registry := "http://" + address
	err = wait(ctx, time.Minute, func() error {
		resp, err := http.Get(registry + "/express")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	return b.running[len(b.running)-1], registry, err
}

func (b *bench) start(ctx context.Context, args ...string) (*output, error) {
	out := &output{}
	cmd := exec.CommandContext(ctx, b.bin, args...)
	cmd.Env = append(os.Environ(), "REGMIRROR_CONFIG=/dev/null")
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.running = append(b.running, cmd)
	return out, nil
}

func (b *bench) stop(cmd *exec.Cmd) {
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	b.running = slices.DeleteFunc(b.running, func(c *exec.Cmd) bool { return c == cmd })
}

func (b *bench) stopAll() {
	for len(b.running) > 0 {
		b.stop(b.running[0])
	}
}

func (b *bench) command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stderr, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return nil
}
