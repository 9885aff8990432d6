package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// nodeVersion is what the clients run on: npm 12 needs Node.js 22.22.2 or later.
const nodeVersion = "22.23.3"

// client is one client at one version.
type client struct {
	family  string // whose commands it takes: npm, pnpm10, pnpm, yarn1, berry, bun
	pack    string // its package at the registry
	version string
	bin     string // name of its program
}

func (c client) name() string { return c.bin + "-" + c.version }

// clients are the versions that the matrix has a row for.
var clients = []client{
	{"npm", "npm", "11.21.2", "npm"},
	{"npm", "npm", "12.2.0", "npm"},
	{"pnpm10", "pnpm", "10.34.8", "pnpm"},
	{"pnpm", "pnpm", "11.28.10", "pnpm"},
	{"pnpm", "pnpm", "12.21.0", "pnpm"},
	{"yarn1", "yarn", "1.22.22", "yarn"},
	{"berry", "@yarnpkg/cli-dist", "4.18.1", "yarn"},
	{"bun", "bun", "1.4.5", "bun"},
}

// house is where the clients are.
type house struct{ dir string }

// bin is the directory of a client's program.
func (h house) bin(c client) string { return filepath.Join(h.dir, c.name(), "node_modules", ".bin") }

// node is the directory of the node program.
func (h house) node() string {
	return filepath.Join(h.dir, "node-"+nodeVersion, "node_modules", nodePackage(), "bin")
}

func nodePackage() string {
	return "node-" + runtime.GOOS + "-" + map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
}

// install puts those clients that are wanted and not there yet into dir. npm 11
// always is: it installs the others, and pnpm 10 calls it.
func install(ctx context.Context, dir string, wanted words) (house, error) {
	h := house{dir}
	if err := h.add(ctx, "npm", "node-"+nodeVersion, nodePackage()+"@"+nodeVersion); err != nil {
		return h, err
	}
	os.Setenv("PATH", h.node()+string(os.PathListSeparator)+os.Getenv("PATH"))
	npm := "npm" // then the matrix's own, whose ways with install scripts are known
	for i, c := range clients {
		if i > 0 && !wanted.has(c.name()) {
			continue
		}
		if err := h.add(ctx, npm, c.name(), c.pack+"@"+c.version); err != nil {
			return h, err
		}
		out, err := exec.CommandContext(ctx, filepath.Join(h.bin(c), c.bin), "--version").Output()
		if err != nil || strings.TrimSpace(string(out)) != c.version {
			return h, fmt.Errorf("%s says it is %q: %v", c.name(), out, err)
		}
		if i == 0 {
			npm = filepath.Join(h.bin(c), "npm")
		}
	}
	return h, nil
}

// add installs one package into a directory of its own. The directory has its
// final name only once it is whole.
func (h house) add(ctx context.Context, npm, name, spec string) error {
	to := filepath.Join(h.dir, name)
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "installing", spec)
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(h.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "package.json"), []byte("{\"private\":true}\n"), 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, npm, "install", "--no-audit", "--no-fund", "--no-save", spec)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm install %s: %w\n%s", spec, err, out)
	}
	return os.Rename(tmp, to)
}
