package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func runCommand(common *cli.Common) *cobra.Command {
	var once, share bool
	var feed, registry string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Fetch what is selected, and follow the feed",
		Long: `Fetches what is selected and not stored yet, then follows a feed of changes:
npm's replicate service, or any CouchDB database of packuments. With --once it
ends when the selection is stored and the feed is read to its head. It can be
stopped at any time and goes on where it was.`,
		Example: `  follower run
  follower run --once --feed none
  follower run --feed http://127.0.0.1:5984/registry`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := common.Logger(cmd.ErrOrStderr(), !once)
			progress := cli.NewProgress(cmd.ErrOrStderr(), log)
			defer progress.End()
			return run(cmd.Context(), settings{common, once, share, feed, registry}, log, progress)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "end when everything is stored and the feed is read to its head")
	f.BoolVar(&share, "share", false, state.ShareUsage)
	f.StringVar(&feed, "feed", "", "URL of the feed's database, or none (default: npm's, where the upstream registry is npm's)")
	f.StringVar(&registry, "upstream", "", "npm registry to fetch from (default: the one npm's configuration names)")
	return cmd
}

type settings struct {
	*cli.Common
	once, share    bool
	feed, registry string
}

func run(ctx context.Context, s settings, log *slog.Logger, progress *cli.Progress) (err error) {
	dir := state.Dir(s.State)
	if err := dir.Make(); err != nil {
		return err
	}
	up, config, err := dir.OpenUpstream(s.registry)
	if err != nil {
		return err
	}
	store, err := dir.OpenLedger(ctx, ledger.Options{Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	node, err := dir.OpenNode(ctx, state.NodeOptions{Kind: s.Node, API: s.IPFSAPI, Network: ipfs.Network(s.Network), Peers: s.Peers, Share: s.share, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()

	o := follow.Options{Ledger: store, Upstream: up, Node: node, Log: log, Progress: progress.Update}
	if url := feedURL(s.feed, config); url != "" {
		o.Feed = couch.New(couch.Options{URL: url, UserAgent: state.UserAgent, Log: log})
		o.FeedName = url
	}
	f, err := follow.New(o)
	if err != nil {
		return err
	}
	l, err := socket.Listen(dir.Socket("follower"))
	if err != nil {
		return err
	}
	asked := ctx
	group, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	group.Go(func() error {
		return socket.Serve(ctx, l, ledger.Serve(store, ledger.WithLoop(func(context.Context) any { return f.Status() })))
	})
	group.Go(func() error {
		defer stop() // without the loop there is nothing to serve
		if !s.once {
			return f.Run(ctx, false)
		}
		return runOnce(ctx, f, store, log)
	})
	err = group.Wait()
	if !s.once && asked.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // stopped by hand or by its service: the ordinary end
	}
	return err
}

// errNothing is returned by a single run to which upstream gave nothing at all.
var errNothing = errors.New("nothing could be fetched, and all is tried again with the next run")

// runOnce runs f to its end, and does not keep to itself what it could not
// fetch: nobody may look at a status after a run from cron.
func runOnce(ctx context.Context, f *follow.Follower, store *ledger.Store, log *slog.Logger) error {
	head := store.Head()
	before, err := store.Retries(ctx)
	if err != nil {
		return err
	}
	if err := f.Run(ctx, true); err != nil {
		return err
	}
	after, err := store.Retries(ctx)
	if err != nil {
		return err
	}
	failed := slices.DeleteFunc(after, func(r ledger.Retry) bool {
		return slices.ContainsFunc(before, func(b ledger.Retry) bool {
			return b.Name == r.Name && b.Version == r.Version && b.Attempts == r.Attempts
		})
	})
	switch {
	case len(failed) == 0:
		return nil
	case store.Head() == head && slices.ContainsFunc(failed, func(r ledger.Retry) bool { return r.Version == "" }):
		return fmt.Errorf("%w: %s", errNothing, failed[0].Detail)
	}
	log.WarnContext(ctx, "not all could be fetched; the rest is tried again with the next run", "waiting", len(failed), "first", failed[0].Name, "detail", failed[0].Detail)
	return nil
}

// feedURL is the feed to follow: the one asked for, npm's own for npm's own
// registry, else none.
func feedURL(asked string, config npm.Config) string {
	switch {
	case asked == "none":
		return ""
	case asked != "":
		return asked
	case config.Registry == npm.DefaultRegistry():
		return npm.DefaultFeed()
	default:
		return ""
	}
}
