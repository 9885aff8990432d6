package main

import (
	"errors"
	"fmt"
	"iter"
	"path"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// entryJSON is one package of `list --json`.
type entryJSON struct {
	Name     npm.Name `json:"name"`
	CID      string   `json:"cid"`
	Tsize    uint64   `json:"tsize"`
	Versions int      `json:"versions"`
}

func listCommand(r *registry) *cobra.Command {
	var largest int
	var since uint64
	var count bool
	cmd := &cobra.Command{
		Use:   "list [PATTERN]",
		Short: "List packages: all, by name, the largest, or what is new",
		Long: `Lists the packages of the registry by name, with their directories' CIDs, how many
versions they have, and the bytes of all their blocks. A pattern has *, ? and [a-z],
none of which matches a slash: '*' is every package without a scope, '@*/*' every
one with a scope. Filters go together.`,
		Example: `  publisher list '@types/*'
  publisher list --largest 20
  publisher list --since 41 --count`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			pattern := append(args, "")[0]
			if largest < 0 {
				return cli.Usagef("--largest %d: it is a number of packages", largest)
			}
			if _, err := path.Match(pattern, ""); err != nil {
				return cli.Hint(cli.Usagef("pattern %q: %w", pattern, err), `put a backslash before a [ that is meant as it stands`)
			}
			ix, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, ix.Close()) }()
			ctx := cmd.Context()
			entries := ix.Entries(ctx)
			switch {
			case since > 0 && pattern != "":
				entries = index.Matching(ix.Since(ctx, since), pattern)
			case since > 0:
				entries = ix.Since(ctx, since)
			case pattern != "":
				entries = ix.Match(ctx, pattern)
			}
			if largest > 0 {
				top, err := index.Largest(entries, largest)
				if err != nil {
					return err
				}
				entries = func(yield func(index.Entry, error) bool) {
					for _, e := range top {
						if !yield(e, nil) {
							return
						}
					}
				}
			}
			out := cmd.OutOrStdout()
			if count {
				total, err := index.Count(entries)
				if err != nil {
					return err
				}
				if r.JSON {
					return cli.PrintJSON(out, total)
				}
				_, err = fmt.Fprintf(out, "%s, %s, %d bytes\n", cli.Count(total.Packages, "package"), cli.Count(total.Versions, "version"), total.Bytes)
				return err
			}
			return printAll(out, r.JSON, "packages", listed(entries), entryJSON.line, nil, nil)
		},
	}
	cmd.Flags().IntVar(&largest, "largest", 0, "only so many, the largest first")
	cmd.Flags().Uint64Var(&since, "since", 0, "only what is new or other since the release of that number")
	cmd.Flags().BoolVar(&count, "count", false, "count packages, versions and bytes instead")
	return cmd
}

func listed(entries iter.Seq2[index.Entry, error]) iter.Seq2[entryJSON, error] {
	return func(yield func(entryJSON, error) bool) {
		for e, err := range entries {
			if !yield(entryJSON{e.Name, cidText(e.CID), e.Tsize, e.Versions}, err) {
				return
			}
		}
	}
}

func (v entryJSON) line() string {
	return fmt.Sprintf("%s  %s  %s, %d bytes", v.Name, v.CID, cli.Count(v.Versions, "version"), v.Tsize)
}
