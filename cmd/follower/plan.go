package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func planCommand(common *cli.Common) *cobra.Command {
	s := settings{Common: common, reserve: 1 << 30, signatures: "prefer", scratch: true}
	var selected follow.Selection
	cmd := &cobra.Command{
		Use:   "plan [NAME | NAME@RANGE]...",
		Short: "Say what a selection would cost, before it is added",
		Long: `Says how many packages, versions and bytes a selection comes to, and how many of
the versions are stored already. It takes what "follower add" takes; with nothing
named it is about the selection as it is. Documents are fetched for it, nothing
is recorded.`,
		Example: `  follower plan express@4 --every
  follower plan --scope @types --newest 3
  follower plan                       # what is still missing`,
		RunE: func(cmd *cobra.Command, args []string) error {
			selected.Specs = args
			wants, err := selected.Wants()
			if err != nil {
				return cli.Usagef("%w", err)
			}
			if len(wants) == 0 {
				if wants, err = wanted(cmd, common); err != nil {
					return err
				}
			}
			p, err := atFollower(cmd, s, "", func(ctx context.Context, f *follow.Follower, _ func(int, int)) (follow.Plan, error) {
				return f.Plan(ctx, wants)
			})
			if errors.Is(err, ledger.ErrLocked) {
				return cli.Hint(err, "a plan needs the ledger to itself for a moment: use another --state, or stop the follower")
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if common.JSON {
				return cli.PrintJSON(out, p)
			}
			about := ""
			if !p.Exact {
				about = "about "
			}
			fmt.Fprintf(out, "packages   %d\n", p.Packages)
			fmt.Fprintf(out, "versions   %s%d, %d of them stored\n", about, p.Versions, p.Held)
			fmt.Fprintf(out, "to fetch   %s%.1f MiB of tarballs, %d documents looked at\n", about, float64(p.Bytes)/(1<<20), p.Documents)
			for _, problem := range p.Problems {
				fmt.Fprintf(out, "problem    %s\n", problem)
			}
			return nil
		},
	}
	bindSelection(cmd, &selected)
	s.bindSource(cmd.Flags())
	return cmd
}

// wanted is the selection as it is.
func wanted(cmd *cobra.Command, common *cli.Common) ([]ledger.Want, error) {
	sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
	if err != nil {
		return nil, err
	}
	defer sel.Close()
	return sel.Wants(cmd.Context())
}
