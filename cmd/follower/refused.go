package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func refusedCommand(common *cli.Common) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "refused",
		Short: "List what was refused, and what is tried again, with the reasons",
		Long: `Lists every package and version that is not stored though it should be: refused,
with a reason that will not pass by itself, or waiting to be tried again.`,
		Example: `  follower refused
  follower refused --reason mass-removal
  follower refused --json | jq '.refused[] | select(.reason == "integrity")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			refused, err := sel.Refused(cmd.Context())
			if err != nil {
				return err
			}
			retries, err := sel.Retries(cmd.Context())
			if err != nil {
				return err
			}
			if reason != "" {
				refused = slices.DeleteFunc(refused, func(r ledger.Refusal) bool { return r.Reason != reason })
				retries = []ledger.Retry{}
			}
			out := cmd.OutOrStdout()
			if common.JSON {
				return cli.PrintJSON(out, map[string]any{"refused": refused, "retrying": retries})
			}
			for _, r := range refused {
				fmt.Fprintf(out, "refused   %s  %s: %s\n", item(r.Name, r.Version), r.Reason, r.Detail)
			}
			for _, r := range retries {
				fmt.Fprintf(out, "retrying  %s  attempt %d failed: %s; next at %s\n", item(r.Name, r.Version), r.Attempts, r.Detail, cli.Time(r.Next))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "only those refused for this reason")
	return cmd
}

// item names a package, or one version of it.
func item(name npm.Name, version string) string {
	if version == "" {
		return string(name)
	}
	return string(name) + "@" + version
}
