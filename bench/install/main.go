// Command install times installing one project from a lockfile, with an empty
// cache each time: straight from npm's registry, through a mirror that holds
// everything (warm), through a mirror that holds nothing and has one peer on
// loopback (cold), and through a Verdaccio that holds everything. All take turns in
// one run; figures are medians in seconds.
//
//	go run ./bench/install [--quick] [--json] [--rounds N] [--clients npm,pnpm,bun]
//
// It needs npm and the registry that npm's configuration names, from which it also
// installs Verdaccio, pnpm and Bun.
package main

import (
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
	"syscall"
	"text/tabwriter"
	"time"
)

// result is what --json prints.
type result struct {
	// npm's own row again, where npm is among the clients.
	NPM           float64 `json:"npm,omitempty"`
	OursWarm      float64 `json:"ours_warm,omitempty"`
	OursCold      float64 `json:"ours_cold,omitempty"`
	VerdaccioWarm float64 `json:"verdaccio_warm,omitempty"`
	WarmOver      float64 `json:"warm_over_npm,omitempty"`
	ColdOver      float64 `json:"cold_over_npm,omitempty"`

	Clients  []row   `json:"clients"`
	Packages int     `json:"packages"`
	Rounds   int     `json:"rounds"`
	FirstUp  float64 `json:"first_up"` // the first `up`, all fetched from npm's registry
	StartMs  float64 `json:"start_ms"` // a later `up`, until it serves
	RSSMiB   float64 `json:"rss_mib"`  // of the warm mirror, follower and publisher in it, at the end
	BinaryMB float64 `json:"binary_mb"`

	VerdaccioRSSMiB float64 `json:"verdaccio_rss_mib"` // at the end
}

// row is one client. Seconds are medians over the rounds.
type row struct {
	Client        string  `json:"client"`
	Version       string  `json:"version"`
	Direct        float64 `json:"direct"` // from its own registry
	OursWarm      float64 `json:"ours_warm"`
	OursCold      float64 `json:"ours_cold"`
	VerdaccioWarm float64 `json:"verdaccio_warm"`
	WarmOver      float64 `json:"warm_over_direct"`
	ColdOver      float64 `json:"cold_over_direct"`
	VerdaccioOver float64 `json:"verdaccio_over_direct"`
}

// What design.md asks of ours, over npm straight from its registry.
const (
	warmBudget = 1.0
	coldBudget = 1.2
)

var (
	small = map[string]string{"express": "^4.18.0"}
	large = map[string]string{"express": "^4.18.0", "eslint": "^8.57.0", "webpack": "^5.90.0", "jest": "^29.7.0", "react": "^18.3.0", "typescript": "^5.4.0"}
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	quick := flag.Bool("quick", false, "a smaller project, fewer rounds, npm alone: under a minute once built")
	asJSON := flag.Bool("json", false, "print one JSON object")
	rounds := flag.Int("rounds", 0, "rounds; 0 means 5, or 2 with --quick")
	names := flag.String("clients", "", "clients, with commas; empty means npm,pnpm,bun, or npm with --quick")
	flag.Parse()
	deps := large
	if *names == "" {
		*names = "npm,pnpm,bun"
		if *quick {
			*names = "npm"
		}
	}
	if *rounds == 0 {
		*rounds = 5
		if *quick {
			*rounds = 2
		}
	}
	if *quick {
		deps = small
	}
	clients, err := clientsNamed(*names)
	if err != nil {
		fmt.Fprintln(os.Stderr, "install: error:", err)
		os.Exit(64)
	}
	r, err := run(ctx, deps, *rounds, clients)
	if err != nil {
		fmt.Fprintln(os.Stderr, "install: error:", err)
		os.Exit(1)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(r)
		return
	}
	r.print()
}

func (r result) print() {
	fmt.Printf("%d packages from a lockfile, empty cache, seconds, medians of %d rounds\n", r.Packages, r.Rounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "client\tdirect\tours_warm\t\tbudget\tours_cold\t\tbudget\tverdaccio_warm\t\t")
	for _, c := range r.Clients {
		verdict := func(over, budget float64) string {
			switch {
			case c.Client != "npm":
				return ""
			case over <= budget:
				return fmt.Sprintf("<= %.1fx, met", budget)
			}
			return fmt.Sprintf("<= %.1fx, missed", budget)
		}
		fmt.Fprintf(w, "%s %s\t%.2f\t%.2f\t%.2fx\t%s\t%.2f\t%.2fx\t%s\t%.2f\t%.2fx\t\n", c.Client, c.Version, c.Direct,
			c.OursWarm, c.WarmOver, verdict(c.WarmOver, warmBudget), c.OursCold, c.ColdOver, verdict(c.ColdOver, coldBudget), c.VerdaccioWarm, c.VerdaccioOver)
	}
	w.Flush()
	fmt.Printf("first up %.1f s, later start %.0f ms, %.0f MiB resident (Verdaccio %.0f), binary %.1f MB\n", r.FirstUp, r.StartMs, r.RSSMiB, r.VerdaccioRSSMiB, r.BinaryMB)
}

// bench is one run, in a directory of its own.
type bench struct {
	dir     string
	bin     string // registry-mirror
	project string // package.json and package-lock.json
	running []*exec.Cmd
}

func run(ctx context.Context, deps map[string]string, rounds int, clients []client) (r result, err error) {
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
	if err := b.installPeers(ctx, clients); err != nil {
		return r, err
	}
	if r.Packages, err = b.makeProject(ctx, deps); err != nil {
		return r, err
	}
	r.Rounds, r.Clients = rounds, make([]row, len(clients))
	for i, c := range clients {
		r.Clients[i].Client = c.name
		if r.Clients[i].Version, err = b.convert(ctx, c); err != nil {
			return r, err
		}
	}

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

	v, err := b.startVerdaccio(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	taken := make([]times, len(clients))
	for i := range rounds {
		for k, c := range clients {
			if i == 0 { // so that Verdaccio has all that this client asks for
				if _, err := b.ci(ctx, c, v.URL); err != nil {
					return r, err
				}
			}
			if err := b.round(ctx, c, origin, v.URL, &taken[k]); err != nil {
				return r, err
			}
		}
	}
	for i, t := range taken {
		c := &r.Clients[i]
		c.Direct, c.OursWarm, c.OursCold, c.VerdaccioWarm = median(t.direct), median(t.oursWarm), median(t.oursCold), median(t.verdaccioWarm)
		c.WarmOver, c.ColdOver, c.VerdaccioOver = c.OursWarm/c.Direct, c.OursCold/c.Direct, c.VerdaccioWarm/c.Direct
		if c.Client == "npm" {
			r.NPM, r.OursWarm, r.OursCold, r.VerdaccioWarm, r.WarmOver, r.ColdOver = c.Direct, c.OursWarm, c.OursCold, c.VerdaccioWarm, c.WarmOver, c.ColdOver
		}
	}
	r.RSSMiB, r.VerdaccioRSSMiB = rss(warm.Process.Pid), rss(v.PID)
	return r, nil
}

// times are one client's seconds, by round.
type times struct{ direct, oursWarm, oursCold, verdaccioWarm []float64 }

// round installs once from each.
func (b *bench) round(ctx context.Context, c client, origin up, verdaccio string, t *times) error {
	for _, from := range []struct {
		registry string
		to       *[]float64
	}{{"", &t.direct}, {origin.Registry, &t.oursWarm}, {verdaccio, &t.verdaccioWarm}} {
		seconds, err := b.ci(ctx, c, from.registry)
		if err != nil {
			return err
		}
		*from.to = append(*from.to, seconds)
	}
	state, err := os.MkdirTemp(b.dir, "cold-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	cold, registry, err := b.mirror(ctx, filepath.Join(state, "state"), origin)
	if err != nil {
		return err
	}
	defer b.stop(cold)
	seconds, err := b.ci(ctx, c, registry)
	t.oursCold = append(t.oursCold, seconds)
	return err
}

// makeProject writes the project with a lockfile that names no registry, and
// returns how many packages it installs.
func (b *bench) makeProject(ctx context.Context, deps map[string]string) (int, error) {
	if err := os.MkdirAll(b.project, 0o755); err != nil {
		return 0, err
	}
	if err := writeManifest(b.project, deps); err != nil {
		return 0, err
	}
	err := b.command(ctx, b.project, "npm", "install", "--package-lock-only", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", filepath.Join(b.dir, "cache-lock"))
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

func (b *bench) start(ctx context.Context, args ...string) (*printed, error) {
	out := &printed{}
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
	return output(cmd)
}
