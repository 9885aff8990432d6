package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func bindWait(cmd *cobra.Command, r *registry) {
	cmd.Flags().DurationVar(&r.wait, "wait", 0, "how long to wait for another publisher of this registry to end; 0 is not at all")
}

// held tells that another process works on this registry, or reads the ledger for
// another of the state.
func held(err error) bool {
	return errors.Is(err, publish.ErrLocked) || errors.Is(err, index.ErrLocked) || errors.Is(err, ledger.ErrLocked)
}

// waiting does f, again while another process has the registry, for --wait. Who has
// it is said where that can be told.
func (r *registry) waiting(ctx context.Context, f func() error) error {
	if r.wait < 0 {
		return cli.Hint(cli.Usagef("--wait %s: it is less than nothing", r.wait), "0 does not wait at all")
	}
	until := time.Now().Add(r.wait)
	for {
		err := f()
		if !held(err) {
			return err
		}
		if left := time.Until(until); left > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(left, 200*time.Millisecond)):
				continue
			}
		}
		dir := state.Dir(r.State)
		journal := dir.Journal(r.name)
		if k, err := r.find(dir); err == nil {
			journal = journalOf(dir, k)
		}
		for _, lock := range []string{journal + ".lock", filepath.Join(dir.Index(r.name), "LOCK")} {
			if who, ok := state.Holder(lock); ok {
				return cli.Hint(err, upRuns+", as --wait 30s does: "+who.String()+" has it")
			}
		}
		if who, ok := state.Holder(filepath.Join(dir.Ledger(), "LOCK")); ok {
			return cli.Hint(err, "a follower is just starting on this state, or another registry of it is published; try again, or --wait 30s: "+who.String()+" has it")
		}
		return err
	}
}
