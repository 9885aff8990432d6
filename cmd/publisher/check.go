package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
)

// errDiffers ends check where something is not as it should be.
var errDiffers = errors.New("the registry is not what its ledger gives, or not whole")

func checkCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Build everything again from the ledger, and compare",
		Long: `Looks for what is not as it should be, and changes nothing:

  corrupt   the index contradicts itself, or a file of it is damaged
  other     a package is listed otherwise than the ledger gives it
  missing   it is not listed, though the ledger gives it
  extra     it is listed, though the ledger does not give it
  withheld  what is said to be withheld is not what the ledger gives
  lost      the node does not have a block of the newest published release

Every package is built again from the ledger as publish builds it; what a rollback
took back is held to that rollback. What changed since the last build is left to the
next. From the node are read all directories and documents: tarballs are for follower
check. It asks no network, takes about as long as the first build, and can be stopped
at any time. It prints nothing where all agrees, off a terminal, and ends with 16
where something does not.`,
		Example: `  publisher check
  publisher check --json | jq -r '.found[] | select(.what == "lost") | .cid'
  41 4 * * 0  publisher check         # in a crontab: each Sunday`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var sum publish.Checked
			err := r.with(cmd, tidy, func(ctx context.Context, o *opened) error {
				found := o.Check(ctx, &sum, func(stage string, done, total int) { o.progress.Update(stage, done, total, 0) })
				out := o.progress.Above(cmd.OutOrStdout())
				if r.JSON {
					return cli.PrintAll(out, true, "found", found, foundLine, func() map[string]any {
						return map[string]any{"release": sum.Release, "packages": sum.Packages, "ahead": sum.Ahead, "blocks": sum.Blocks}
					}, nil)
				}
				for f, err := range found { // each at once: it may be hours to the next
					if err == nil {
						_, err = fmt.Fprintln(out, foundLine(f))
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
			out := cmd.OutOrStdout()
			if err == nil && !r.JSON && (sum.Found > 0 || cli.IsTerminal(out) || r.Verbose) {
				_, err = fmt.Fprintln(out, checkedLine(sum))
			}
			if err == nil && sum.Found > 0 {
				err = errDiffers
			}
			return err
		},
	}
	bindWait(cmd, r)
	return cmd
}

func foundLine(f publish.Found) string {
	parts := []string{f.What}
	if f.Package != "" {
		parts = append(parts, string(f.Package))
	}
	return strings.Join(append(parts, f.Detail), "  ")
}

func checkedLine(sum publish.Checked) string {
	text := fmt.Sprintf("checked: %s against the ledger", cli.Count(sum.Packages, "package"))
	if sum.Ahead > 0 {
		text += fmt.Sprintf(", %d changed since the last build", sum.Ahead)
	}
	if sum.Release > 0 {
		text += fmt.Sprintf("; %s of release %d in the node", cli.Count(sum.Blocks, "block"), sum.Release)
	}
	return fmt.Sprintf("%s; found: %d", text, sum.Found)
}
