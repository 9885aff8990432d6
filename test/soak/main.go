//go:build linux

// Command soak runs the follower's binary through what a year brings, in
// minutes to an hour, and holds its ledger against what the registry has; and a
// mirror's through what its clients may do:
//
//	go run ./test/soak kill      SIGKILL at random moments, Kubo's among them
//	go run ./test/soak run       a busy feed for an hour, memory sampled
//	go run ./test/soak full      a disk that fills up, and gets room again
//	go run ./test/soak hostile   documents and tarballs that mean harm
//	go run ./test/soak mirror    500 installs, beside clients that mean harm
//
// Each talks to loopback alone and says what it saw; docs/soak.md has the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

// scenarios are what the first argument names.
var scenarios = map[string]func(ctx context.Context, args []string) error{
	"kill": kill, "run": run, "full": full, "hostile": hostile, "mirror": abused, "registry": registry,
}

func main() {
	loopback.Refuse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 || scenarios[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: soak kill | run | full | hostile | mirror, each with --help")
		os.Exit(64)
	}
	err := scenarios[os.Args[1]](ctx, os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "soak: error:", err)
		os.Exit(64)
	case err != nil:
		fmt.Fprintf(os.Stderr, "soak %s: FAILED: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong usage")

// parse reads a scenario's flags, which take no further arguments.
func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: %q is not a flag", errUsage, flags.Arg(0))
	}
	return nil
}

// inWork calls scenario with a new directory that holds the binaries.
// The directory goes when all went well, else it stays to be looked at.
func inWork(ctx context.Context, scenario func(dir string) error) error {
	dir, err := os.MkdirTemp("", "soak-") // short: a socket's path has 107 bytes
	if err != nil {
		return err
	}
	began := time.Now()
	err = build(ctx, dir)
	if err == nil {
		err = scenario(dir)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("after %v, logs and state in %s: %w", time.Since(began).Round(time.Second), dir, err)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// build builds the follower and the mirror into dir.
func build(ctx context.Context, dir string) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-C", strings.TrimSpace(string(root)), "-o", dir+string(filepath.Separator), "./cmd/follower", "./cmd/registry-mirror")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the commands: %w: %s", err, out)
	}
	return nil
}

// say prints a line of what is being done, on standard error.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// figure prints one line of the result.
func figure(name string, value any) { fmt.Printf("%-28s %v\n", name, value) }

func yesNo(ok bool) string {
	if ok {
		return "yes"
	}
	return "NO"
}
