package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// settings are the flags of the commands that fetch.
type settings struct {
	*cli.Common
	share          bool
	feed, registry string
	listen         string
	signatures     string
	reserve        cli.Size
	maxTarball     cli.Size
	maxRate        cli.Size
	hosts          []string
	private        bool
	confirmOver    time.Duration
	removals       int
	scratch        bool // where there is no state, one that goes with the command
}

// bindSource adds the flags that say where things come from.
func (s *settings) bindSource(f *pflag.FlagSet) {
	f.StringVar(&s.feed, "feed", "", "URL of the feed's database, or none (default: npm's, where the upstream registry is npm's)")
	f.StringVar(&s.registry, "upstream", "", "npm registry to fetch from (default: the one npm's configuration names)")
}

func runCommand(common *cli.Common) *cobra.Command {
	var once bool
	s := settings{Common: common, reserve: 1 << 30, maxTarball: 1 << 30}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Fetch what is selected, and follow the feed",
		Long: `Fetches what is selected and not stored yet, then follows a feed of changes:
npm's replicate service, or any CouchDB database of packuments. With --once it
ends when the selection is stored and the feed is read to its head. It can be
stopped at any time and goes on where it was. Once it runs, a node that goes away
or a disk that is full is waited for, unless with --once.

With --listen it serves, on loopback: the ledger as a feed of its own at
/registry (docs/ledger-feed.md), /metrics for Prometheus, /healthz and /readyz.`,
		Example: `  follower run
  follower run --once --feed none
  follower run --feed http://127.0.0.1:5984/registry --listen 127.0.0.1:4874`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := common.Logger(cmd.ErrOrStderr(), !once)
			progress := cli.NewProgress(cmd.ErrOrStderr(), log)
			defer progress.End()
			if err := checkLoopback(s.listen); err != nil {
				return err
			}
			if err := run(cmd.Context(), s, once, log, progress); err != nil {
				return err
			}
			if !once {
				cli.Stopped(cmd, log, "what is stored, and how far the feed was read, is kept in "+common.State)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "end when everything is stored and the feed is read to its head")
	f.BoolVar(&s.share, "share", false, state.ShareUsage)
	s.bindSource(f)
	f.StringVar(&s.listen, "listen", "", "loopback address for the ledger's feed, metrics and health (default: none)")
	f.StringVar(&s.signatures, "signatures", "prefer", "npm's registry signatures: prefer (one that is present must verify), require or ignore")
	f.Var(&s.reserve, "reserve", "free disk space below which no work is begun")
	f.Var(&s.maxTarball, "max-tarball", "largest tarball that is stored")
	f.Var(&s.maxRate, "max-rate", "bytes a second to fetch at the most, 0 for no bound")
	f.StringArrayVar(&s.hosts, "tarball-host", nil, "further host from which tarballs may come; may be repeated")
	f.BoolVar(&s.private, "allow-private", false, "let further hosts have private addresses")
	f.DurationVar(&s.confirmOver, "confirm-over", time.Hour, "how long upstream must say that a package is gone before it counts")
	f.IntVar(&s.removals, "max-removals", 0, "packages that may lose something within an hour; more wait for follower retry (default: 50, or a thousandth of what is held)")
	return cmd
}

// checkLoopback refuses to serve the ledger to other machines: it asks for no
// credentials.
func checkLoopback(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return cli.Usagef("--listen %s: it is HOST:PORT", addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return cli.Hint(cli.Usagef("--listen %s: it is not a loopback address", addr), "the feed asks for no credentials; put a proxy that does before it")
	}
	return nil
}

// house is what the commands that fetch hold open.
type house struct {
	store    *ledger.Store
	node     *state.Node
	upstream *upstream.Client
	follower *follow.Follower
	progress func(stage string, done, total int, bytes int64)
}

// open opens the ledger and the node for their owner.
func (s settings) open(ctx context.Context, attempts int, log *slog.Logger, progress func(stage string, done, total int, bytes int64)) (h *house, err error) {
	policy, err := npm.ParseSignaturePolicy(s.signatures)
	if err != nil {
		return nil, cli.Usagef("--signatures: %w", err)
	}
	if u, err := url.Parse(s.feed); s.feed != "" && s.feed != "none" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return nil, cli.Usagef("--feed %.200s: it is an http or https URL, or none", s.feed)
	}
	if s.removals < 0 {
		return nil, cli.Usagef("--max-removals %d: it is not below 0", s.removals)
	}
	dir := state.Dir(s.State)
	if err := dir.Make(); err != nil {
		return nil, err
	}
	h = &house{progress: progress}
	up, config, err := dir.OpenUpstream(s.registry, upstream.Options{
		Attempts: attempts, Timeout: callTime, MaxTarball: int64(s.maxTarball), MaxRate: int64(s.maxRate), Hosts: s.hosts, AllowPrivate: s.private,
	})
	if err != nil {
		return nil, err
	}
	h.upstream = up
	if h.store, err = dir.OpenLedger(ctx, ledger.Options{Log: log}); err != nil {
		return nil, err
	}
	h.node, err = dir.OpenNode(ctx, state.NodeOptions{Kind: s.Node, API: s.IPFSAPI, Network: ipfs.Network(s.Network), Peers: s.Peers, Share: s.share, Log: log})
	if err != nil {
		return nil, errors.Join(err, h.store.Close())
	}
	o := follow.Options{
		Ledger: h.store, Upstream: up, Node: h.node, Log: log, Progress: progress, Workers: 32,
		Signature: state.NewSignatures(up, policy, log).Check, Free: dir.Free(h.node), Reserve: uint64(s.reserve),
		ConfirmOver: s.confirmOver, Removals: s.removals,
	}
	if url := feedURL(s.feed, config); url != "" {
		c := couch.Options{URL: url, UserAgent: state.UserAgent, Log: log}
		if attempts == 0 {
			c.Retry = soon
		}
		o.Feed, o.FeedName = couch.New(c), url
	}
	if h.follower, err = follow.New(o); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func (h *house) close() error { return errors.Join(h.node.Close(), h.store.Close()) }

// inline is how often something is asked for before it goes to the queue, whose
// waits are longer: a follower that runs on has time.
const inline = 2

// soon is how long a command that ends asks a feed that is away.
const soon = 20 * time.Second

// callTime bounds one packument or tarball, all attempts together: what drips is
// not waited for longer, and goes to the queue.
const callTime = 20 * time.Minute

func run(ctx context.Context, s settings, once bool, log *slog.Logger, progress *cli.Progress) (err error) {
	attempts := inline
	if once {
		attempts = 0 // the client's own number
	}
	h, err := s.open(ctx, attempts, log, progress.Update)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	l, err := socket.Listen(state.Dir(s.State).Socket("follower"))
	if err != nil {
		return err
	}
	var web net.Listener
	if s.listen != "" {
		if web, err = net.Listen("tcp", s.listen); err != nil {
			return errors.Join(cli.Hint(err, "another program has that address; choose another --listen"), l.Close())
		}
		log.Info("serving the ledger", "feed", "http://"+web.Addr().String()+"/registry", "metrics", "http://"+web.Addr().String()+"/metrics")
	}
	asked := ctx
	group, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	feed := couch.Handler(follow.NewLedgerFeed(h.store, h.node))
	group.Go(func() error {
		return socket.Serve(ctx, l, ledger.Serve(h.store,
			ledger.WithLoop(func(context.Context) any { return h.follower.Status() }),
			ledger.WithRoute("POST /reconcile", answering(func(r *http.Request) (any, error) { return h.follower.Reconcile(r.Context(), nil) })),
			ledger.WithRoute("POST /check", answering(func(r *http.Request) (any, error) {
				return h.follower.Check(r.Context(), r.URL.Query().Get("fetch") == "true", nil)
			})),
			ledger.WithRoute("POST /collect", answering(func(r *http.Request) (any, error) {
				keep, err := time.ParseDuration(r.URL.Query().Get("keep"))
				unlisted, err2 := time.ParseDuration(r.URL.Query().Get("unlisted"))
				if err := errors.Join(err, err2); err != nil {
					return nil, err
				}
				return h.collect(r.Context(), keep, unlisted)
			})),
			ledger.WithRoute("/registry/", http.StripPrefix("/registry", feed)),
		))
	})
	if web != nil {
		group.Go(func() error { return socket.Serve(ctx, web, serveWeb(h, feed)) })
	}
	followKeys := state.Dir(s.State).FollowRegistryKeys(ctx, h.upstream, log)
	group.Go(func() error { followKeys(); return nil })
	group.Go(func() error {
		defer stop() // without the loop there is nothing to serve
		if !once {
			return h.follower.Run(ctx, false)
		}
		return runOnce(ctx, h.follower, h.store, log)
	})
	err = group.Wait()
	if !once && asked.Err() != nil && errors.Is(err, context.Canceled) {
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
		// What upstream says is gone was answered: it waits to be confirmed.
		return r.Missing > 0 || slices.ContainsFunc(before, func(b ledger.Retry) bool {
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
