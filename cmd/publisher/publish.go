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
	var all bool
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Build, sign, put and read back",
		Long: `Builds a release if the ledger moved, signs its root as an IPNS record, hands
it to the node and to every --route, and reads it back from each. Without anything new it puts the
same record again, or signs the same release anew when half of the record's
lifetime is over. Made for cron: it prints nothing on success off a terminal.
Once in a while it also lets go of releases that are older than --retain, as
publisher collect does. With --every it stays until it is ended.

With --all it publishes each registry of this state that has a key here and is due by
its own setting "every"; one without it always is. It tries them all, says of each what
it failed with, and ends with the code of the worst: of an error that does not pass by
itself before one that may, and of two of a kind the higher.`,
		Example: `  publisher publish
  publisher publish --json | jq .name
  */5 * * * *  publisher publish --all      # in a crontab
  publisher publish --every 1m --route /var/www/registry --route https://router.example`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.check(); err != nil {
				return err
			}
			stay := cmd.Flags().Changed("every")
			switch {
			case all && stay:
				return cli.Hint(cli.Usagef("--all and --every do not go together"), "`publisher run` stays, and publishes each on its own schedule")
			case all && cmd.Flags().Changed("name"):
				return cli.Hint(cli.Usagef("--all and --name do not go together"), "leave one of them out")
			case all:
				return r.publishAll(cmd)
			case stay:
				return r.publishEvery(cmd)
			}
			var result publish.Result
			err := r.with(cmd, sign, func(ctx context.Context, o *opened) (err error) {
				if result, err = o.Publish(ctx); err != nil {
					return err
				}
				o.CollectIfDue(ctx)
				return ctx.Err()
			})
			r.measure(cmd, result, err)
			return r.report(cmd, result, err, printResult)
		},
	}
	bindEvery(cmd, r, 0, "stay, and publish whenever the ledger moved, at most this often")
	cmd.Flags().BoolVar(&all, "all", false, "every registry of this state that is due")
	bindOwn(cmd, r)
	bindWait(cmd, r)
	return cmd
}

// publishEvery publishes until the command is ended, or until someone has to look. It
// has nothing open between two runs, so that a follower may come and go.
func (r *registry) publishEvery(cmd *cobra.Command) error {
	if r.every <= 0 {
		return cli.Hint(cli.Usagef("--every %s: it is no time", r.every), "--every 1m publishes once a minute, where there is something to publish")
	}
	ctx, log := cmd.Context(), r.Logger(cmd.ErrOrStderr(), false)
	var due time.Time // for putting the record again
	for {
		began := time.Now()
		err := r.turn(cmd, began, &due, func(result publish.Result) error { return r.report(cmd, result, nil, printResult) })
		if ctx.Err() != nil {
			return nil // as it was asked to
		}
		if lasting(err) {
			return err
		}
		if err != nil {
			log.WarnContext(ctx, "publishing failed", "registry", r.name, "error", err, "again_in", r.every)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(began.Add(r.every))):
		}
	}
}

// turn publishes where there is something to publish, or the record is due to be put
// again, which is then due anew.
func (r *registry) turn(cmd *cobra.Command, began time.Time, due *time.Time, report func(publish.Result) error) error {
	var result publish.Result
	err := r.with(cmd, sign, func(ctx context.Context, o *opened) error {
		behind, err := o.Behind()
		if err != nil || !behind && began.Before(*due) {
			return err
		}
		if result, err = o.Publish(ctx); err != nil {
			return err
		}
		*due = began.Add(o.Again(result))
		if err := report(result); err != nil {
			return err
		}
		o.CollectIfDue(ctx)
		return nil
	})
	if cmd.Context().Err() == nil {
		r.measure(cmd, result, err)
	}
	return err
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
	if _, err := fmt.Fprintf(w, "record %d, valid until %s, %s\n", result.Sequence, cli.Time(result.EOL), where); err != nil {
		return err
	}
	for _, route := range result.Routes[min(1, len(result.Routes)):] {
		if _, err := fmt.Fprintf(w, "route %s: read back\n", route.Name); err != nil {
			return err
		}
	}
	for _, f := range result.Former {
		what := fmt.Sprintf("record %d, valid until %s, read back", f.Sequence, cli.Time(f.EOL))
		if f.Problem != nil {
			what = f.Problem.Error()
		}
		if _, err := fmt.Fprintf(w, "former /ipns/%s (until %s): %s\n", f.Name, cli.Time(f.Until), what); err != nil {
			return err
		}
	}
	return nil
}
