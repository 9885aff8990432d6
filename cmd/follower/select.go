package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

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
	RemoveWants(ctx context.Context, wants ...ledger.Want) ([]ledger.Want, error)
	Status(ctx context.Context) (ledger.Status, error)
	Refused(ctx context.Context) ([]ledger.Refusal, error)
	Retries(ctx context.Context) ([]ledger.Retry, error)
	TryAgain(ctx context.Context, which ledger.Again) (int, error)
	Package(ctx context.Context, name npm.Name) (ledger.Package, error)
	Refusals(ctx context.Context, name npm.Name) ([]ledger.Refusal, error)
	Queue(ctx context.Context, name npm.Name) ([]ledger.Retry, error)
	Wants(ctx context.Context) ([]ledger.Want, error)
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
otherwise the next "follower run" fetches them. "follower plan" says what that
would cost.

--newest, --days and --metadata-only go with --all, --scope and --every. What
dist-tags name is always among what they select.`,
		Example: `  follower add express@4 @types/node
  follower add --lockfile package-lock.json
  follower add --from-file names.txt --no-deps
  follower add --every 'lodash@>=4.17'
  follower add --scope @types --newest 3
  follower add --all --days 365       # every package of the feed, a year of versions`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Specs = args
			wants, err := s.Wants()
			if err != nil {
				return cli.Usagef("%w", err)
			}
			if len(wants) == 0 {
				return cli.Usagef("nothing to add: name packages, or use --lockfile, --from-file, --scope or --all")
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
	bindSelection(cmd, &s)
	return cmd
}

func bindSelection(cmd *cobra.Command, s *follow.Selection) {
	f := cmd.Flags()
	f.StringArrayVar(&s.Lockfiles, "lockfile", nil, "lockfile of npm, pnpm, yarn or bun: exactly the versions in it, and nothing beside; may be repeated")
	f.StringArrayVar(&s.Lists, "from-file", nil, "file with a name or name@range a line; may be repeated")
	f.StringArrayVar(&s.Scopes, "scope", nil, "every package of a scope, @types, all versions; may be repeated")
	f.BoolVar(&s.All, "all", false, "every package of the feed, all versions")
	f.BoolVar(&s.NoDeps, "no-deps", false, "leave out dependencies")
	f.BoolVar(&s.Every, "every", false, "every version in range, not only the one npm would choose")
	f.IntVar(&s.Newest, "newest", 0, "of these versions only the newest N")
	f.IntVar(&s.Days, "days", 0, "of these versions only those published within so many days")
	f.BoolVar(&s.Known, "metadata-only", false, "documents only: tarballs are fetched when a client asks for them")
}

func removeCommand(common *cli.Common) *cobra.Command {
	var s follow.Selection
	cmd := &cobra.Command{
		Use:   "remove [NAME[@RANGE]]...",
		Short: "Take packages out of the selection",
		Long: `Takes packages out of the selection, named as they were added. What is stored
stays stored, and listed: it is only no longer kept up to date. Ends with 1 if
one of them was not there; the others are taken out all the same.`,
		Example: `  follower remove express@4
  follower remove --scope @types
  follower remove --all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Specs = args
			wants, err := s.Wants()
			if err != nil {
				return err
			}
			if len(wants) == 0 {
				return cli.Usagef("nothing to remove: name packages, or use --scope or --all")
			}
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			before, err := sel.Wants(cmd.Context())
			if err != nil {
				return err
			}
			absent := slices.DeleteFunc(slices.Clone(wants), func(w ledger.Want) bool {
				return slices.ContainsFunc(before, func(b ledger.Want) bool { return b.Spec == w.Spec && b.Scope == w.Scope })
			})
			if len(absent) == len(wants) {
				return notSelected(absent, before)
			}
			all, err := sel.RemoveWants(cmd.Context(), wants...)
			if err != nil {
				return err
			}
			return errors.Join(printSelection(cmd, common, all), notSelected(absent, before))
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&s.Scopes, "scope", nil, "a scope; may be repeated")
	f.BoolVar(&s.All, "all", false, "the selection of every package of the feed")
	return cmd
}

// notSelected is the error for absent, which are no lines of the selection; nil
// where there are none.
func notSelected(absent, selection []ledger.Want) error {
	if len(absent) == 0 {
		return nil
	}
	lines := make([]string, len(absent))
	for i, w := range absent {
		lines[i] = line(w)
	}
	hint := "name packages as they were added; `follower why NAME --json` lists the lines that select one"
	if i := slices.IndexFunc(selection, func(w ledger.Want) bool { return w.Spec.Name != "" && w.Spec.Name == absent[0].Spec.Name }); i >= 0 {
		hint = "name it as it was added: `follower remove " + line(selection[i]) + "`"
	}
	return cli.Hint(fmt.Errorf("not in the selection: %s", strings.Join(lines, ", ")), hint)
}

// line names a line of the selection as people type it.
func line(w ledger.Want) string {
	switch {
	case w.All():
		return "--all"
	case w.Scope != "":
		return "--scope " + w.Scope
	}
	return cli.ShellWord(w.Spec.String())
}

// wantJSON is a line of the selection as --json prints it.
type wantJSON struct {
	Name   npm.Name `json:"name"` // "" for every package of the feed, or of a scope
	Range  string   `json:"range,omitempty"`
	Every  bool     `json:"every,omitempty"`
	NoDeps bool     `json:"no_deps,omitempty"`
	Exact  bool     `json:"exact,omitempty"`
	Scope  string   `json:"scope,omitempty"`
	Newest int      `json:"newest,omitempty"`
	Days   int      `json:"days,omitempty"`
	Known  bool     `json:"metadata_only,omitempty"`
}

func printSelection(cmd *cobra.Command, common *cli.Common, all []ledger.Want) error {
	out := cmd.OutOrStdout()
	if common.JSON {
		list := make([]wantJSON, len(all))
		for i, w := range all {
			list[i] = wantJSON{w.Spec.Name, w.Spec.Range, w.Every, w.NoDeps, w.Exact, w.Scope, w.Newest, w.Days, w.Known}
		}
		return cli.PrintJSON(out, map[string]any{"selection": list})
	}
	if !cli.IsTerminal(out) && !common.Verbose {
		return nil
	}
	_, err := fmt.Fprintf(out, "%s in the selection\n", cli.Count(len(all), "line"))
	return err
}
