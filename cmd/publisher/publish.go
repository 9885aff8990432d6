package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			var release index.Release
			var changed bool
			var name ipns.Name
			err := r.with(cmd, build, func(ctx context.Context, o *opened) (err error) {
				name = o.key.IPNSName
				release, changed, err = o.Build(ctx)
				return err
			})
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			result := publish.Result{Release: release, Number: release.Number, CID: release.Root, Name: name, Packages: release.Packages, Versions: release.Versions}
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
	bindWait(cmd, r)
	return cmd
}

func publishCommand(r *registry) *cobra.Command {
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Build, sign, put and read back",
		Long: `Builds a release if the ledger moved, signs its root as an IPNS record, hands
it to the node and to every --route, and reads it back from each. Without anything new it puts the
same record again, or signs the same release anew when half of the record's
lifetime is over. Made for cron: it prints nothing on success off a terminal.
Once in a while it also lets go of releases that are older than --retain, as
publisher collect does. With --every it stays until it is ended.`,
		Example: `  publisher publish
  publisher publish --json | jq .name
  publisher publish --every 1m --route /var/www/registry --route https://router.example`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.checkRetain(); err != nil {
				return err
			}
			if err := r.checkRecord(); err != nil {
				return err
			}
			if cmd.Flags().Changed("every") {
				return r.publishEvery(cmd, every)
			}
			var result publish.Result
			err := r.with(cmd, sign, func(ctx context.Context, o *opened) (err error) {
				if result, err = o.Publish(ctx); err != nil {
					return err
				}
				o.CollectIfDue(ctx)
				return ctx.Err()
			})
			return r.report(cmd, result, err, printResult)
		},
	}
	cmd.Flags().DurationVar(&every, "every", 0, "stay, and publish whenever the ledger moved, at most this often")
	bindParameters(cmd, r)
	bindRetain(cmd, r)
	bindRoutes(cmd, r)
	bindWait(cmd, r)
	bindIdentity(cmd, r)
	bindRecord(cmd, r)
	return cmd
}

// publishEvery publishes until the command is ended, or until someone has to look. It
// has nothing open between two runs, so that a follower may come and go.
func (r *registry) publishEvery(cmd *cobra.Command, every time.Duration) error {
	if every <= 0 {
		return cli.Hint(cli.Usagef("--every %s: it is no time", every), "--every 1m publishes once a minute, where there is something to publish")
	}
	ctx, log := cmd.Context(), r.Logger(cmd.ErrOrStderr(), false)
	var due time.Time // for putting the record again
	for {
		began := time.Now()
		err := r.with(cmd, sign, func(ctx context.Context, o *opened) error {
			behind, err := o.Behind()
			if err != nil || !behind && began.Before(due) {
				return err
			}
			result, err := o.Publish(ctx)
			if err != nil {
				return err
			}
			due = began.Add(o.Again(result))
			if err := r.report(cmd, result, nil, printResult); err != nil {
				return err
			}
			o.CollectIfDue(ctx)
			return nil
		})
		if ctx.Err() != nil {
			return nil // as it was asked to
		}
		if publish.Lasting(err) || errors.Is(err, ipnskeys.ErrNoKey) {
			return err
		}
		if err != nil {
			log.WarnContext(ctx, "publishing failed", "registry", r.name, "error", err, "again_in", every)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(began.Add(every))):
		}
	}
}

// with opens the registry for f, and shows progress until f ends.
func (r *registry) with(cmd *cobra.Command, purpose int, f func(context.Context, *opened) error) (err error) {
	log := r.Logger(cmd.ErrOrStderr(), false)
	progress := cli.NewProgress(cmd.ErrOrStderr(), log)
	defer progress.End()
	return r.waiting(cmd.Context(), func() (err error) {
		o, err := r.open(cmd.Context(), purpose, log, progress)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.Close()) }()
		return f(cmd.Context(), o)
	})
}

// report prints what was published, as JSON also where it failed half way.
func (r *registry) report(cmd *cobra.Command, result publish.Result, err error, print func(io.Writer, publish.Result) error) error {
	out := cmd.OutOrStdout()
	switch {
	case r.JSON && result.Number > 0:
		return errors.Join(err, cli.PrintJSON(out, result))
	case err != nil || !cli.IsTerminal(out) && !r.Verbose:
		return err
	}
	return print(out, result)
}

func printResult(w io.Writer, result publish.Result) error {
	fmt.Fprintf(w, "release %d of /ipns/%s: %s, %s\n", result.Number, result.Name, cli.Count(result.Packages, "package"), cli.Count(result.Versions, "version"))
	where := "read back"
	if result.LocalOnly {
		where = "local only: the node has no peers"
	}
	if _, err := fmt.Fprintf(w, "record %d, valid until %s, %s\n", result.Sequence, result.EOL.Local().Format(time.DateTime), where); err != nil {
		return err
	}
	for _, route := range result.Routes[min(1, len(result.Routes)):] {
		if _, err := fmt.Fprintf(w, "route %s: read back\n", route.Name); err != nil {
			return err
		}
	}
	for _, f := range result.Former {
		what := fmt.Sprintf("record %d, valid until %s, read back", f.Sequence, f.EOL.Local().Format(time.DateTime))
		if f.Problem != nil {
			what = f.Problem.Error()
		}
		if _, err := fmt.Fprintf(w, "former /ipns/%s (until %s): %s\n", f.Name, f.Until.Local().Format(time.DateTime), what); err != nil {
			return err
		}
	}
	return nil
}
