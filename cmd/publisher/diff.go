package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// What changed of a package.
const (
	isNew     = "new"
	isChanged = "changed"
	isGone    = "gone"
)

var signs = map[string]string{isNew: "+", isChanged: "~", isGone: "-"}

// changeJSON is one package of `diff --json`.
type changeJSON struct {
	Name     npm.Name `json:"name"`
	Change   string   `json:"change"`
	Old      string   `json:"old,omitempty"`
	New      string   `json:"new,omitempty"`
	Added    []string `json:"added,omitempty"`            // versions
	Removed  []string `json:"removed,omitempty"`          // versions
	Replaced []string `json:"replaced,omitempty"`         // versions with another tarball, which no follower stores
	Unknown  bool     `json:"versions_unknown,omitempty"` // a directory was collected with its release
}

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
			ix, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, ix.Close()) }()
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
				return map[string]any{"from": from.Number, "to": to.Number, isNew: count[isNew], isChanged: count[isChanged], isGone: count[isGone]}
			}
			end := func() string {
				return fmt.Sprintf("release %d to %d: %d new, %d changed, %d gone", from.Number, to.Number, count[isNew], count[isChanged], count[isGone])
			}
			return printAll(cmd.OutOrStdout(), r.JSON, "changes", changes(cmd.Context(), ix, from, to, count), changeJSON.line, rest, end)
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
func changes(ctx context.Context, ix *index.Index, from, to index.Release, count map[string]int) iter.Seq2[changeJSON, error] {
	return func(yield func(changeJSON, error) bool) {
		for d, err := range ix.Between(ctx, from.Number, to.Number) {
			if err != nil {
				yield(changeJSON{}, err)
				return
			}
			c := changeJSON{Name: d.New.Name, Change: isChanged, Old: cidText(d.Old.CID), New: cidText(d.New.CID)}
			switch {
			case c.Old == "":
				c.Change = isNew
			case c.New == "":
				c.Change = isGone
			}
			count[c.Change]++
			err = c.versions(ctx, ix, d)
			if c.Unknown = errors.Is(err, index.ErrNoBlock); err != nil && !c.Unknown {
				yield(changeJSON{}, fmt.Errorf("package %s: %w", c.Name, err))
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// versions compares the packages' directories.
func (c *changeJSON) versions(ctx context.Context, ix *index.Index, d index.Difference) error {
	old, err := tarballs(ctx, ix, d.Old)
	if err != nil {
		return err
	}
	now, err := tarballs(ctx, ix, d.New)
	if err != nil {
		return err
	}
	for version, file := range old {
		switch {
		case !now[version].Defined():
			c.Removed = append(c.Removed, version)
		case now[version] != file:
			c.Replaced = append(c.Replaced, version)
		}
	}
	for version := range now {
		if !old[version].Defined() {
			c.Added = append(c.Added, version)
		}
	}
	for _, versions := range [][]string{c.Added, c.Removed, c.Replaced} {
		slices.SortFunc(versions, npm.CompareVersions)
	}
	return nil
}

// tarballs are those in a package's directory, by version.
func tarballs(ctx context.Context, ix *index.Index, e index.Entry) (map[string]cid.Cid, error) {
	if !e.CID.Defined() {
		return nil, nil
	}
	files, err := index.ReadPackage(ctx, ix, e.CID)
	all := make(map[string]cid.Cid, len(files.Tarballs))
	for _, l := range files.Tarballs {
		all[versionOf(e.Name, l.Name)] = l.CID
	}
	return all, err
}

// versionOf is the version of which a package's directory has the tarball file:
// what its name says, else the name itself.
func versionOf(name npm.Name, file string) string {
	version, ok := strings.CutPrefix(file, name.Base()+"-")
	for _, end := range []string{".tgz", ".tar.gz", ".tar"} {
		if v, cut := strings.CutSuffix(version, end); cut && ok && npm.ParseVersion(v) == nil {
			return v
		}
	}
	return file
}

func (c changeJSON) line() string {
	parts := []string{signs[c.Change], string(c.Name)}
	for _, dir := range []string{c.Old, c.New} {
		if dir != "" {
			parts = append(parts, dir)
		}
	}
	add := func(sign string, versions []string) {
		for _, v := range versions {
			parts = append(parts, sign+v)
		}
	}
	add("+", c.Added)
	add("~", c.Replaced)
	add("-", c.Removed)
	if c.Unknown {
		parts = append(parts, "(versions unknown: collected)")
	}
	return strings.Join(parts, " ")
}
