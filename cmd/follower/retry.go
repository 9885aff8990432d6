package main

import (
	"context"
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

  follower retry --reason mass-removal

Ends with 1 if there is nothing to try again of something that is named.`,
		Example: `  follower retry express left-pad@1.3.0
  follower retry --reason unavailable
  follower retry --all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0 || reason != "") {
				return cli.Usagef("name packages, or a --reason, or --all")
			}
			keys := make([]ledger.Key, len(args))
			for i, arg := range args {
				var err error
				if keys[i], err = parseItem(arg); err != nil {
					return err
				}
			}
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			n, absent, err := tryAgain(cmd.Context(), sel, keys, reason)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case common.JSON:
				err = cli.PrintJSON(out, map[string]int{"queued": n})
			case n == 0 && reason != "":
				fmt.Fprintf(cmd.ErrOrStderr(), "follower: nothing was refused for the reason %q\n", reason)
			case n == 0 && all:
				fmt.Fprintln(cmd.ErrOrStderr(), "follower: nothing was refused, and nothing waits to be tried again")
			case n > 0 && (cli.IsTerminal(out) || common.Verbose):
				fmt.Fprintf(out, "tried again: %s\n", cli.Count(n, "item"))
			}
			if err == nil && len(absent) > 0 {
				err = cli.Hint(fmt.Errorf("nothing to try again of %s", strings.Join(absent, ", ")),
					"`follower why "+absent[0]+"` says what became of it; `follower refused` lists what can be tried again")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "what was refused for this reason")
	cmd.Flags().BoolVar(&all, "all", false, "everything")
	return cmd
}

// tryAgain tries again what keys name, all where there are none, and of these
// what was refused for reason, if one is given. It returns how many items that
// were, and the keys that matched none.
func tryAgain(ctx context.Context, sel selection, keys []ledger.Key, reason string) (n int, absent []string, err error) {
	if len(keys) == 0 {
		n, err = sel.TryAgain(ctx, ledger.Again{Reason: reason})
		return n, nil, err
	}
	for _, key := range keys {
		matched, err := sel.TryAgain(ctx, ledger.Again{Names: []ledger.Key{key}, Reason: reason})
		if err != nil {
			return n, absent, err
		}
		if matched == 0 {
			absent = append(absent, item(key.Name, key.Version))
		}
		n += matched
	}
	return n, absent, nil
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
