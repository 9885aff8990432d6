package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// longest bounds what a running follower is asked to do, a walk of everything.
const longest = 7 * 24 * time.Hour

// errBroken is returned by check where the node lacks something.
var errBroken = errors.New("the node does not have all that the ledger names")

// Exit codes of follower's own.
const (
	codeBroken = 10 // errBroken
	codeReset  = 11 // couch.ErrReset: an operator has to look
)

// atFollower has the running follower do what, or does it here where none runs.
func atFollower[T any](cmd *cobra.Command, s settings, what string, here func(context.Context, *house, func(done, total int)) (T, error)) (out T, err error) {
	ctx := cmd.Context()
	path := state.Dir(s.State).Socket("follower")
	if socket.Alive(ctx, path) {
		if what == "" {
			return out, fmt.Errorf("a follower runs on this state: %w", ledger.ErrLocked)
		}
		ctx, cancel := context.WithTimeout(ctx, longest)
		defer cancel()
		return out, socket.Call(ctx, path, http.MethodPost, what, &out)
	}
	if _, err := os.Stat(state.Dir(s.State).Ledger()); errors.Is(err, fs.ErrNotExist) {
		// None of these commands begins a state: a misspelt --state must not
		// look like one where all is well.
		if !s.scratch {
			return out, ledger.ErrNoLedger
		}
		if s.State, err = os.MkdirTemp("", "follower-plan-*"); err != nil {
			return out, err
		}
		common := *s.Common
		common.State = s.State
		s.Common = &common
		defer func() { err = errors.Join(err, os.RemoveAll(common.State)) }()
	}
	log := s.Logger(cmd.ErrOrStderr(), false)
	progress := cli.NewProgress(cmd.ErrOrStderr(), log)
	defer progress.End()
	h, err := s.open(ctx, 0, log, progress.Update)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return here(ctx, h, func(done, total int) { progress.Update("packages", done, total, 0) })
}

func reconcileCommand(common *cli.Common) *cobra.Command {
	s := settings{Common: common, reserve: 1 << 30, signatures: "prefer"}
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare the ledger with all that the feed's database holds",
		Long: `Walks the feed's listing, by name and revision, and queues what differs from the
ledger or is missing from it, and what the ledger has and the listing lacks. It
finds what the feed dropped. Meant for each night; the running follower, or the
next run, does the work.`,
		Example: `  follower reconcile
  17 3 * * *  follower reconcile`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := atFollower(cmd, s, "/reconcile", func(ctx context.Context, h *house, report func(int, int)) (follow.Reconciliation, error) {
				return h.follower.Reconcile(ctx, func(n int) { report(n, 0) })
			})
			if err != nil {
				return err
			}
			return printReconciliation(cmd, common, r)
		},
	}
	s.bindSource(cmd.Flags())
	return cmd
}

func resyncCommand(common *cli.Common) *cobra.Command {
	s := settings{Common: common, reserve: 1 << 30, signatures: "prefer"}
	cmd := &cobra.Command{
		Use:   "resync",
		Short: "Go on with a feed that began anew",
		Long: `Compares as "follower reconcile" does, and then has the feed read on from where
its head was before that. For a feed whose sequences began anew, at which
"follower run" stops; nothing is removed by it, and what is stored is not
fetched again.`,
		Example: `  follower resync --feed http://127.0.0.1:5984/registry`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := atFollower(cmd, s, "", func(ctx context.Context, h *house, report func(int, int)) (follow.Reconciliation, error) {
				return h.follower.Resync(ctx, func(n int) { report(n, 0) })
			})
			if err != nil {
				return err
			}
			return printReconciliation(cmd, common, r)
		},
	}
	s.bindSource(cmd.Flags())
	return cmd
}

func printReconciliation(cmd *cobra.Command, common *cli.Common, r follow.Reconciliation) error {
	out := cmd.OutOrStdout()
	if common.JSON {
		return cli.PrintJSON(out, r)
	}
	if cli.IsTerminal(out) || common.Verbose {
		fmt.Fprintf(out, "listed %d, held %d; queued: %d new, %d changed, %d vanished\n", r.Listed, r.Held, r.New, r.Changed, r.Vanished)
	}
	return nil
}

func checkCommand(common *cli.Common) *cobra.Command {
	s := settings{Common: common, reserve: 1 << 30, signatures: "prefer", feed: "none"}
	var fetch bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read back from the node all that the ledger names",
		Long: `Walks the ledger and reads every block of every document and tarball from the
node, hash and all. Ends with 10 if something is missing or corrupt. The ledger's
own rows are compared with each other too, where no follower runs.`,
		Example: `  follower check
  follower check --fetch             # what is missing is fetched again`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := atFollower(cmd, s, fmt.Sprintf("/check?fetch=%v", fetch), func(ctx context.Context, h *house, report func(int, int)) (follow.Checked, error) {
				return h.follower.Check(ctx, fetch, func(n int) { report(n, 0) })
			})
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case common.JSON:
				err = cli.PrintJSON(out, c)
			case c.Lost > 0 || cli.IsTerminal(out) || common.Verbose:
				for _, b := range c.Broken {
					fmt.Fprintf(out, "lost  %s  %s: %s\n", item(b.Name, b.Version), b.CID, b.Detail)
				}
				fmt.Fprintf(out, "whole: %s, %s, %.1f MiB; lost: %d\n", cli.Count(c.Packages, "package"), cli.Count(c.Versions, "version"), float64(c.Bytes)/(1<<20), c.Lost)
			}
			if err == nil && c.Lost > 0 && !fetch {
				err = errBroken
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&fetch, "fetch", false, "queue what is lost, to be fetched again")
	cmd.Flags().StringVar(&s.registry, "upstream", "", "npm registry to fetch from (default: the one npm's configuration names)")
	return cmd
}
