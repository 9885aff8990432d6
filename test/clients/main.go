// Command clients runs every npm client that we know of against a registry of
// ours: each operation in a fresh project with an empty home, its result
// checked, and a table of client by operation at the end.
//
//	go run ./test/clients [--client PREFIX]... [--operation NAME]... [--clients DIR] [--logs DIR]
//
// The clients come at pinned versions from the registry that npm's
// configuration names, once: they are kept in the user's cache directory. The
// matrix itself stays on this machine: an npmtest registry, `registry-mirror up`
// over it, and the clients, whose requests to other hosts meet a proxy that
// refuses and notes them. It needs Linux, Go, npm, and ends with 1 where a cell failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients: error:", err)
		os.Exit(1)
	}
}

// words is a flag that may be repeated.
type words []string

func (w *words) String() string     { return strings.Join(*w, ",") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func (w words) has(s string) bool {
	return len(w) == 0 || slices.ContainsFunc(w, func(p string) bool { return strings.HasPrefix(s, p) })
}

func run(ctx context.Context, args []string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("clients", flag.ContinueOnError)
	var only, operation words
	flags.Var(&only, "client", "run only clients whose name begins with this `prefix` (npm-12); may be repeated")
	flags.Var(&operation, "operation", "run only operations whose name begins with this `prefix`; may be repeated")
	dir := flags.String("clients", filepath.Join(cache, "registry-mirror-clients"), "`directory` that the clients are installed into")
	logs := flags.String("logs", "", "`directory` for what failed cells printed (default: a new one)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	work, err := os.MkdirTemp("", "clients-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if *logs == "" {
		if *logs, err = os.MkdirTemp("", "clients-logs-"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(*logs, 0o755); err != nil {
		return err
	}

	house, err := install(ctx, *dir, only)
	if err != nil {
		return fmt.Errorf("install the clients: %w", err)
	}
	reg, err := serve(ctx, work)
	if err != nil {
		return fmt.Errorf("serve a registry: %w", err)
	}
	defer reg.close()
	begin := time.Now()
	t := table{began: begin}
	for _, c := range clients {
		if !only.has(c.name()) {
			continue
		}
		t.clients = append(t.clients, c)
		for _, op := range operations {
			if !operation.has(op) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			t.add(c, op, runCell(ctx, house, reg, c, op, work, *logs))
		}
	}
	failed := t.print(os.Stdout)
	if failed > 0 {
		return fmt.Errorf("%d cells failed; what they printed is in %s", failed, *logs)
	}
	os.Remove(*logs) // only where it is empty
	return nil
}
