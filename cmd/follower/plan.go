package main

import (
	"context"
	"errors"
	"fmt"
	"io"

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
		Long: `Says how many packages, versions, documents and bytes a selection comes to, and
how much of that is stored already. It takes what "follower add" takes; with
nothing named it is about the selection as it is. Documents are fetched for it,
nothing is recorded. No registry says how large a tarball is: the bytes are
estimated from what it unpacks to, and from what is stored.`,
		Example: `  follower plan express@4 --every
  follower plan --scope @types --newest 3
  follower plan --all --metadata-only
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
			p, err := atFollower(cmd, s, "", func(ctx context.Context, h *house, _ func(int, int)) (follow.Plan, error) {
				return h.follower.Plan(ctx, wants)
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
			return printPlan(out, p)
		},
	}
	bindSelection(cmd, &selected)
	s.bindSource(cmd.Flags())
	return cmd
}

func printPlan(w io.Writer, p follow.Plan) error {
	versions, bytes, estimate := "", "", ""
	if p.Listed > 0 {
		versions = "about "
	}
	if !p.Exact {
		bytes, estimate = "about ", " (an estimate)"
	}
	fmt.Fprintf(w, "packages   %d\n", p.Packages)
	fmt.Fprintf(w, "versions   %s%d, %d of them stored\n", versions, p.Versions, p.Held)
	fmt.Fprintf(w, "documents  %d, %d of them stored\n", p.Documents, p.DocumentsHeld)
	_, err := fmt.Fprintf(w, "to fetch   %s%s of tarballs and %s of documents%s\n", bytes, size(p.Bytes), size(p.DocumentBytes), estimate)
	for _, problem := range p.Problems {
		_, err = fmt.Fprintf(w, "problem    %s\n", problem)
	}
	return err
}

// size is a count of bytes for people.
func size(bytes uint64) string {
	if bytes < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", mib(bytes))
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
