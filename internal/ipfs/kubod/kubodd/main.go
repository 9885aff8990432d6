// Command kubodd runs a throw-away Kubo daemon for scripts: it prints the
// daemon's addresses as shell variables once it is ready, and ends it when it
// is interrupted. REGMIRROR_TEST_KUBO names the ipfs binary.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
)

func main() {
	repo := flag.String("repo", "", "directory for the repository, which must not exist (default: a temporary one, removed at the end)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *repo)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubodd: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, repo string) (err error) {
	if kubod.Binary() == "" {
		return fmt.Errorf("%s does not name an ipfs binary", kubod.Variable)
	}
	if repo == "" {
		dir, err := os.MkdirTemp("", "kubodd-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		repo = filepath.Join(dir, "repo")
	}
	d, err := kubod.Run(ctx, kubod.Binary(), repo)
	if err != nil {
		return err
	}
	fmt.Printf("IPFS_PATH=%s\nKUBO_API=%s\nKUBO_GATEWAY=%s\nKUBO_ADDR=%s\n", d.Repo, d.API, d.Gateway, d.Addr)
	select {
	case <-ctx.Done():
		return d.Stop()
	case <-d.Exited():
		return errors.New("the daemon ended")
	}
}
