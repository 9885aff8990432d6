package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/bench/verdaccio"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// The clients that are installed for the run; npm is the machine's own.
const (
	pnpmVersion = "10.34.8"
	bunVersion  = "1.4.5"
)

// client is a package manager that installs from a lockfile.
type client struct {
	name string
	lock string // its lockfile's name
	// program is its path below the directory that clients are installed in, or
	// a name for $PATH.
	program string
	pkg     string // that npm installs it from; "" for what is there
	version string // of pkg
	// convert are the arguments that make lock out of package-lock.json.
	convert []string
	// install are the arguments that install exactly what lock says, with an
	// empty cache below {dir}; env likewise.
	install []string
	env     []string
}

var clients = []client{
	{
		name: "npm", lock: "package-lock.json", program: "npm",
		install: []string{"ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", "{dir}/.cache"},
	},
	{
		name: "pnpm", lock: "pnpm-lock.yaml", program: "node_modules/.bin/pnpm", pkg: "pnpm", version: pnpmVersion,
		convert: []string{"import", "--config.store-dir={dir}/.store", "--config.cache-dir={dir}/.cache"},
		install: []string{"install", "--frozen-lockfile", "--ignore-scripts", "--store-dir", "{dir}/.store", "--config.cache-dir={dir}/.cache"},
	},
	{
		name: "bun", lock: "bun.lock", program: "node_modules/" + bunPackage() + "/bin/bun", pkg: bunPackage(), version: bunVersion,
		convert: []string{"install", "--lockfile-only", "--ignore-scripts"},
		install: []string{"install", "--frozen-lockfile", "--ignore-scripts"},
		env:     []string{"BUN_INSTALL_CACHE_DIR={dir}/.cache"},
	},
}

// bunPackage is npm's package of Bun's binary for this machine.
func bunPackage() string {
	arch := map[string]string{"amd64": "x64", "arm64": "aarch64"}[runtime.GOARCH]
	return "@oven/bun-" + runtime.GOOS + "-" + arch
}

// clientsNamed takes a list with commas.
func clientsNamed(list string) ([]client, error) {
	var all []client
	for name := range strings.SplitSeq(list, ",") {
		at := slices.IndexFunc(clients, func(c client) bool { return c.name == name })
		if at < 0 {
			return nil, fmt.Errorf("--clients: %q is none of npm, pnpm and bun", name)
		}
		all = append(all, clients[at])
	}
	return all, nil
}

// installPeers installs Verdaccio and the clients.
func (b *bench) installPeers(ctx context.Context, clients []client) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return verdaccio.Install(ctx, filepath.Join(b.dir, "verdaccio")) })
	group.Go(func() error {
		dependencies := map[string]string{}
		for _, c := range clients {
			if c.pkg != "" {
				dependencies[c.pkg] = c.version
			}
		}
		if len(dependencies) == 0 {
			return nil
		}
		if err := os.MkdirAll(b.clients(), 0o755); err != nil {
			return err
		}
		if err := writeManifest(b.clients(), dependencies); err != nil {
			return err
		}
		return b.command(ctx, b.clients(), "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error")
	})
	return group.Wait()
}

func (b *bench) clients() string { return filepath.Join(b.dir, "clients") }

func writeManifest(dir string, dependencies map[string]string) error {
	manifest, err := json.Marshal(map[string]any{"name": "bench", "version": "1.0.0", "private": true, "dependencies": dependencies})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "package.json"), manifest, 0o644)
}

// startVerdaccio runs a Verdaccio that holds nothing yet, before the registry
// that npm's configuration names.
func (b *bench) startVerdaccio(ctx context.Context) (*verdaccio.Server, error) {
	home, _ := os.UserHomeDir() // none: what is in the environment counts
	config, err := npm.LoadConfig(os.Getenv, "", home)
	if err != nil {
		return nil, err
	}
	return verdaccio.Start(ctx, filepath.Join(b.dir, "verdaccio"), filepath.Join(b.dir, "verdaccio-state"), config.Registry)
}

// program is c's command line in dir.
func (b *bench) program(ctx context.Context, c client, dir string, args []string) *exec.Cmd {
	path := c.program
	if c.pkg != "" {
		path = filepath.Join(b.clients(), filepath.FromSlash(path))
	}
	at := func(s string) string { return strings.ReplaceAll(s, "{dir}", dir) }
	cmd := exec.CommandContext(ctx, path)
	for _, a := range args {
		cmd.Args = append(cmd.Args, at(a))
	}
	cmd.Dir, cmd.Env = dir, os.Environ()
	for _, v := range c.env {
		cmd.Env = append(cmd.Env, at(v))
	}
	return cmd
}

// convert makes c's lockfile of the project's, and returns c's version.
func (b *bench) convert(ctx context.Context, c client) (version string, err error) {
	out, err := b.program(ctx, c, b.project, []string{"--version"}).Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", c.name, err)
	}
	if len(c.convert) > 0 {
		dir, err := b.copyProject("package.json", "package-lock.json")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(dir)
		if err := output(b.program(ctx, c, dir, c.convert)); err != nil {
			return "", err
		}
		if err := os.Rename(filepath.Join(dir, c.lock), filepath.Join(b.project, c.lock)); err != nil {
			return "", err
		}
	}
	return strings.TrimSpace(string(out)), nil
}

// copyProject makes a new directory with these files of the project.
func (b *bench) copyProject(names ...string) (string, error) {
	dir, err := os.MkdirTemp(b.dir, "project-")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join(b.project, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), raw, 0o644)
		}
		if err != nil {
			return "", errors.Join(err, os.RemoveAll(dir))
		}
	}
	return dir, nil
}

// ci times one install in a fresh copy of the project with an empty cache. An
// empty registry means the client's own configuration.
func (b *bench) ci(ctx context.Context, c client, registry string) (seconds float64, err error) {
	dir, err := b.copyProject("package.json", c.lock)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	args := c.install
	if registry != "" {
		args = append(slices.Clone(args), "--registry", registry)
	}
	begin := time.Now()
	if err := output(b.program(ctx, c, dir, args)); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}
