package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
)

func bindParameters(cmd *cobra.Command, r *registry) {
	cmd.Flags().StringVar(&r.gatewayOrigin, "gateway-origin", "", "origin of the gateway that the registry can also be read from, chosen with the first release; none to leave that out (default: "+publish.DefaultGatewayOrigin+")")
}

func buildCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build a release of what changed, and sign nothing",
		Long: `Reads what changed in the ledger since the last release, builds the documents
and directories of those packages and makes a release. The next publish signs it.`,
		Example: `  publisher build --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			log := r.Logger(cmd.ErrOrStderr(), false)
			progress := cli.NewProgress(cmd.ErrOrStderr(), log)
			defer progress.End()
			o, err := r.open(cmd.Context(), build, log, progress)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, o.Close()) }()
			release, changed, err := o.Build(cmd.Context())
			progress.End()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			result := publish.Result{Release: release, Number: release.Number, CID: release.Root, Name: o.key.IPNSName, Packages: release.Packages, Versions: release.Versions}
			if r.JSON {
				return cli.PrintJSON(out, result)
			}
			if !cli.IsTerminal(out) && !r.Verbose {
				return nil
			}
			what := "unchanged"
			if changed {
				what = "built"
			}
			_, err = fmt.Fprintf(out, "release %d %s: %s, %s, %s\n", release.Number, what, cli.Count(release.Packages, "package"), cli.Count(release.Versions, "version"), release.Root)
			return err
		},
	}
	bindParameters(cmd, r)
	return cmd
}

func publishCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Build, sign, put and read back",
		Long: `Builds a release if the ledger moved, signs its root as an IPNS record, hands
it to the node and reads it back over HTTP. Without anything new it puts the
same record again, or signs the same release anew when half of the record's
lifetime is over. Made for cron: it prints nothing on success off a terminal.`,
		Example: `  publisher publish
  publisher publish --json | jq .name`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			log := r.Logger(cmd.ErrOrStderr(), false)
			progress := cli.NewProgress(cmd.ErrOrStderr(), log)
			defer progress.End()
			o, err := r.open(cmd.Context(), sign, log, progress)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, o.Close()) }()
			result, err := o.Publish(cmd.Context())
			progress.End()
			out := cmd.OutOrStdout()
			if r.JSON && result.Number > 0 {
				return errors.Join(err, cli.PrintJSON(out, result))
			}
			if err != nil || !cli.IsTerminal(out) && !r.Verbose {
				return err
			}
			return printResult(out, result)
		},
	}
	bindParameters(cmd, r)
	return cmd
}

func printResult(w io.Writer, result publish.Result) error {
	fmt.Fprintf(w, "release %d of /ipns/%s: %s, %s\n", result.Number, result.Name, cli.Count(result.Packages, "package"), cli.Count(result.Versions, "version"))
	where := "read back"
	if result.LocalOnly {
		where = "local only: the node has no peers"
	}
	_, err := fmt.Fprintf(w, "record %d, valid until %s, %s\n", result.Sequence, result.EOL.Local().Format(time.DateTime), where)
	return err
}
