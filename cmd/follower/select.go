package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// selection is the part of a ledger that commands edit and show: the ledger
// itself, or the one that a running follower owns.
type selection interface {
	io.Closer
	AddWants(ctx context.Context, wants ...ledger.Want) ([]ledger.Want, error)
	RemoveWants(ctx context.Context, specs ...npm.Spec) ([]ledger.Want, error)
	Status(ctx context.Context) (ledger.Status, error)
	Refused(ctx context.Context) ([]ledger.Refusal, error)
	Retries(ctx context.Context) ([]ledger.Retry, error)
}

// openSelection asks the running follower, else opens the ledger. open says
// whether a ledger may be begun.
func openSelection(ctx context.Context, dir state.Dir, open func(string, ledger.Options) (*ledger.Store, error)) (selection, error) {
	return state.ReachLedger(ctx, dir, func(c *ledger.Client) selection { return c },
		func() (selection, error) { return open(dir.Ledger(), ledger.Options{}) })
}

func addCommand(common *cli.Common) *cobra.Command {
	var s follow.Selection
	cmd := &cobra.Command{
		Use:   "add [NAME | NAME@RANGE]...",
		Short: "Add packages to the selection",
		Long: `Adds packages to the selection: for each name what npm would install, what the
tag latest names, and their dependencies. A follower that runs begins at once;
otherwise the next "follower run" fetches them.`,
		Example: `  follower add express@4 @types/node
  follower add --lockfile package-lock.json
  follower add --from-file names.txt --no-deps
  follower add --all                  # every package of the feed, all versions`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Specs = args
			wants, err := s.Wants()
			if err != nil {
				return cli.Usagef("%w", err)
			}
			if len(wants) == 0 {
				return cli.Usagef("nothing to add: name packages, or use --lockfile, --from-file or --all")
			}
			dir := state.Dir(common.State)
			if _, err := dir.ChooseNode(common.Node, common.IPFSAPI); err != nil {
				return err
			}
			sel, err := openSelection(cmd.Context(), dir, ledger.OpenOrCreate)
			if err != nil {
				return err
			}
			defer sel.Close()
			all, err := sel.AddWants(cmd.Context(), wants...)
			if err != nil {
				return err
			}
			return printSelection(cmd, common, all)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&s.Lockfiles, "lockfile", nil, "package-lock.json: exactly the versions in it, and nothing beside; may be repeated")
	f.StringArrayVar(&s.Lists, "from-file", nil, "file with a name or name@range a line; may be repeated")
	f.BoolVar(&s.NoDeps, "no-deps", false, "leave out dependencies")
	f.BoolVar(&s.Every, "every", false, "every version in range, not only the one npm would choose")
	f.BoolVar(&s.All, "all", false, "every package of the feed, all versions")
	return cmd
}

func removeCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME[@RANGE]...",
		Short: "Take packages out of the selection",
		Long: `Takes packages out of the selection, named as they were added. What is stored
stays stored, and listed: it is only no longer kept up to date.`,
		Example: `  follower remove express@4`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			specs := make([]npm.Spec, len(args))
			for i, text := range args {
				spec, err := npm.ParseSpec(text)
				if err != nil {
					return err
				}
				specs[i] = spec
			}
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			all, err := sel.RemoveWants(cmd.Context(), specs...)
			if err != nil {
				return err
			}
			return printSelection(cmd, common, all)
		},
	}
}

// wantJSON is a line of the selection as --json prints it.
type wantJSON struct {
	Name   npm.Name `json:"name"` // "" for every package of the feed
	Range  string   `json:"range,omitempty"`
	Every  bool     `json:"every,omitempty"`
	NoDeps bool     `json:"no_deps,omitempty"`
	Exact  bool     `json:"exact,omitempty"`
}

func printSelection(cmd *cobra.Command, common *cli.Common, all []ledger.Want) error {
	out := cmd.OutOrStdout()
	if common.JSON {
		list := make([]wantJSON, len(all))
		for i, w := range all {
			list[i] = wantJSON{w.Spec.Name, w.Spec.Range, w.Every, w.NoDeps, w.Exact}
		}
		return cli.PrintJSON(out, map[string]any{"selection": list})
	}
	if !cli.IsTerminal(out) && !common.Verbose {
		return nil
	}
	_, err := fmt.Fprintf(out, "%d lines in the selection\n", len(all))
	return err
}
