package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/publish"
)

func republishCommand(r *registry) *cobra.Command {
	var result publish.Result
	cmd := &cobra.Command{
		Use:   "republish",
		Short: "Put the newest release's record again",
		Long: `Puts the record of the newest release again, the very same bytes, and reads it back.
It does not look at the ledger, and opens no key, unless less than half of the record's
lifetime is left: then it signs the same release under the next sequence. Networks
forget a record after a day or two: run it every few hours where publisher publish
does not run. Made for cron: it prints nothing on success off a terminal.`,
		Example: `  publisher republish
  0 */4 * * *  publisher republish --wait 30s      # in a crontab`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.checkMetrics(); err != nil {
				return err
			}
			err := r.with(cmd, renew, func(ctx context.Context, o *opened) (err error) {
				result, err = o.Republish(ctx)
				return err
			})
			r.measure(cmd, result, err)
			return r.report(cmd, result, err, printResult)
		},
	}
	bindIdentity(cmd, r)
	bindRoutes(cmd, r)
	bindWitnesses(cmd, r)
	bindWait(cmd, r)
	bindMetrics(cmd, r)
	return cmd
}
