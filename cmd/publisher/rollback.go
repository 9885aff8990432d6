package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
)

func rollbackCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback NUMBER",
		Short: "Publish the list of an older release as a new one",
		Long: `Publishes the list of an older release as a new release: the number rises, and
readers follow as they follow any release. publisher diff, from the newest release
to the older one, says beforehand what that changes.

A package that is rolled back stays as it was then until it changes upstream; then
it is listed as upstream has it, with a warning. publisher status says which ones
those are. So a rollback mends a list at once, and keeps nothing out for ever.
Rolling back to the release before the rollback undoes it.

All that the older release lists is first read back from this state, tarballs
included; where some of it is gone, nothing is changed.`,
		Example: `  publisher diff 42 41
  publisher rollback 41`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := releaseNumber(args[0])
			if err != nil {
				return err
			}
			if err := r.checkRecord(); err != nil {
				return err
			}
			var result publish.Result
			err = r.with(cmd, rollback, func(ctx context.Context, o *opened) (err error) {
				result, err = o.Rollback(ctx, number)
				return err
			})
			return r.report(cmd, result, err, func(out io.Writer, result publish.Result) error {
				if back := result.RolledBack; back.Put+back.Removed == 0 {
					fmt.Fprintf(out, "release %d has the list of release %d already\n", result.Number, number)
				} else {
					fmt.Fprintf(out, "rolled back to release %d: %s as before, %d taken out\n", number, cli.Count(back.Put, "package"), back.Removed)
				}
				return printResult(out, result)
			})
		},
	}
	bindIdentity(cmd, r)
	bindRoutes(cmd, r)
	bindWitnesses(cmd, r)
	bindWait(cmd, r)
	bindRecord(cmd, r)
	return cmd
}
