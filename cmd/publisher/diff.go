package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
)

func diffCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "diff A [B]",
		Short: "Say what changed from one release to another",
		Long: `Lists the packages that are new (+), changed (~) or gone (-) in release B since
release A, with their directories' CIDs, old and new, and the versions that were
added or removed. Without B it is the newest release. Lines come in the list's own
order, as they are found; sort them by name with sort -k2. Where a release was collected,
versions may be unknown.`,
		Example: `  publisher diff 41 42
  publisher diff 7 | grep '^-'
  publisher diff 42 41      # what a rollback to 41 would do`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ix, done, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			from, err := release(ix, args[0])
			if err != nil {
				return err
			}
			to, err := release(ix, append(args, "")[1])
			if err != nil {
				return err
			}
			count := map[string]int{}
			rest := func() map[string]any {
				return map[string]any{"from": from.Number, "to": to.Number, index.IsNew: count[index.IsNew], index.IsChanged: count[index.IsChanged], index.IsGone: count[index.IsGone]}
			}
			end := func() string {
				return fmt.Sprintf("release %d to %d: %d new, %d changed, %d gone", from.Number, to.Number, count[index.IsNew], count[index.IsChanged], count[index.IsGone])
			}
			return cli.PrintAll(cmd.OutOrStdout(), r.JSON, "changes", changes(cmd.Context(), ix, from, to, count), changeLine, rest, end)
		},
	}
}

// release is the one of that number, "" the newest.
func release(ix *index.Index, number string) (index.Release, error) {
	if number == "" {
		return ix.Head()
	}
	n, err := releaseNumber(number)
	if err != nil {
		return index.Release{}, err
	}
	return ix.Release(n)
}

func releaseNumber(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, cli.Hint(cli.Usagef("release %q is not a number", text), logHint)
	}
	if n == 0 {
		return 0, noReleaseZero()
	}
	return n, nil
}

const logHint = "`publisher log` lists the releases"

func noReleaseZero() error {
	return cli.Hint(cli.Usagef("release 0 is none: the first one has number 1"), logHint)
}

// checkRelease refuses --release 0, which would be taken for the newest.
func checkRelease(cmd *cobra.Command, number uint64) error {
	if number == 0 && cmd.Flags().Changed("release") {
		return noReleaseZero()
	}
	return nil
}

// changes says what changed, and counts it.
func changes(ctx context.Context, ix *index.Index, from, to index.Release, count map[string]int) iter.Seq2[index.PackageChange, error] {
	return func(yield func(index.PackageChange, error) bool) {
		for d, err := range ix.Between(ctx, from.Number, to.Number) {
			if err != nil {
				yield(index.PackageChange{}, err)
				return
			}
			c, err := d.Package(ctx, ix)
			if err != nil && !errors.Is(err, index.ErrNoBlock) {
				yield(index.PackageChange{}, fmt.Errorf("package %s: %w", c.Name, err))
				return
			}
			count[c.Change]++
			if !yield(c, nil) {
				return
			}
		}
	}
}

func changeLine(c index.PackageChange) string {
	words := c.Words(slices.DeleteFunc([]string{c.Old, c.New}, func(dir string) bool { return dir == "" })...)
	if c.Unknown {
		words = append(words, "(versions unknown: collected)")
	}
	return strings.Join(words, " ")
}
