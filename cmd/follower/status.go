package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func statusCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say what is stored, refused and waiting",
		Example: "  follower status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			s, err := sel.Status(cmd.Context())
			if err != nil {
				return err
			}
			if common.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
}

func printStatus(w io.Writer, s ledger.Status) error {
	c := s.Counts
	fmt.Fprintf(w, "stored     %d packages, %d versions, %.1f MiB\n", c.Packages, c.Versions, float64(c.Bytes)/(1<<20))
	fmt.Fprintf(w, "refused    %d\n", c.Refused)
	fmt.Fprintf(w, "retrying   %d\n", c.Retrying)
	fmt.Fprintf(w, "selection  %d lines\n", c.Wants)
	fmt.Fprintf(w, "ledger     %s at sequence %d\n", s.Identity, s.Head)
	for _, feed := range slices.Sorted(maps.Keys(s.Cursors)) {
		fmt.Fprintf(w, "feed       %s read to %s\n", feed, s.Cursors[feed])
	}
	if len(s.Loop) == 0 {
		_, err := fmt.Fprintln(w, "running    no")
		return err
	}
	var loop struct {
		LastSuccess time.Time `json:"last_success"`
	}
	if err := json.Unmarshal(s.Loop, &loop); err != nil {
		return fmt.Errorf("read the follower's account: %w", err)
	}
	last := "nothing done to its end yet"
	if !loop.LastSuccess.IsZero() {
		last = "last success " + loop.LastSuccess.Local().Format(time.DateTime)
	}
	_, err := fmt.Fprintf(w, "running    yes, %s\n", last)
	return err
}
