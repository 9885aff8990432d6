package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func retryCommand(common *cli.Common) *cobra.Command {
	var reason string
	var all bool
	cmd := &cobra.Command{
		Use:   "retry [NAME | NAME@VERSION]...",
		Short: "Try again what was refused, or waits to be tried",
		Long: `Moves items from the list of what was refused back into the queue, and makes
due now what waits there. A follower that runs begins at once. Removals that
were held back, because they were more than likely, are approved by it:

  follower retry --reason mass-removal`,
		Example: `  follower retry express left-pad@1.3.0
  follower retry --reason unavailable
  follower retry --all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0 || reason != "") {
				return cli.Usagef("name packages, or a --reason, or --all")
			}
			which := ledger.Again{Reason: reason}
			for _, arg := range args {
				key, err := parseItem(arg)
				if err != nil {
					return err
				}
				which.Names = append(which.Names, key)
			}
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			n, err := sel.TryAgain(cmd.Context(), which)
			if err != nil {
				return err
			}
			if common.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), map[string]int{"queued": n})
			}
			if cli.IsTerminal(cmd.OutOrStdout()) || common.Verbose {
				fmt.Fprintf(cmd.OutOrStdout(), "%d items are tried again\n", n)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "what was refused for this reason")
	cmd.Flags().BoolVar(&all, "all", false, "everything")
	return cmd
}

// parseItem reads NAME or NAME@VERSION. What stands for the version may be a
// range that nothing satisfied.
func parseItem(text string) (ledger.Key, error) {
	name, version := text, ""
	if at := strings.IndexByte(text[min(1, len(text)):], '@'); at >= 0 {
		name, version = text[:at+1], text[at+2:]
	}
	parsed, err := npm.ParseName(name)
	return ledger.Key{Name: parsed, Version: version}, err
}
