package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/page"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// defaultListen is where a registry is served unless it is said otherwise.
const defaultListen = "127.0.0.1:4873"

// source is what a mirror reads from; daemon and sync share its flags.
type source struct {
	*cli.Common
	ipfs, share, offline, noUpstream, acceptStale bool
	gateways, routes                              []string
	upstream, address, at                         string
	registry                                      string // which of several mirrors is meant, where no daemon runs
	maxStale                                      time.Duration
	proxies                                       proxies // that the daemon trusts
	cacheSize                                     cli.Size
	// follow and successor are what sync is told of the name that follows.
	follow    string
	successor ipns.Name
}

func (s *source) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&s.ipfs, "ipfs", false, "use an IPFS node: find peers, fetch from them, serve them")
	f.StringArrayVar(&s.gateways, "gateway", nil, "URL of a trustless gateway to read from as well; may be repeated")
	f.StringArrayVar(&s.routes, "route", nil, routeUsage)
}

// defaultCacheSize is the bound of a state that only reads.
const defaultCacheSize cli.Size = 20 << 30

func daemonCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common}
	cmd := &cobra.Command{
		Use:   "daemon [ADDRESS]...",
		Short: "Serve registries by their IPNS names on this machine",
		Long: `Resolves an IPNS name, keeps its list, and serves it as an npm registry. Every
byte is verified, what is held is served offline too. With --ipfs it uses an
IPFS node; without, only the gateways that --gateway names.

An ADDRESS is an IPNS name, /ipfs/CID of one release (which then never changes), a
domain with a DNSLink, or a file whose first line is one of these. Registries that
` + "`registry-mirror add`" + ` added are served too, and are asked first.

With --at an earlier release is served, as the newest one leads back to it. A running
daemon serves one too, at /-/at/RELEASE or /-/at/DATE below its address.`,
		Example: `  registry-mirror daemon --ipfs k51...
  registry-mirror daemon k51... --gateway http://127.0.0.1:8080
  registry-mirror daemon --ipfs k51... --at 2026-11-20
  npm install express --registry=http://127.0.0.1:4873
  npm install --registry=http://127.0.0.1:4873/-/at/2026-11-20/   # as of that day`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			log := common.Logger(cmd.ErrOrStderr(), true)
			m, close, err := s.open(cmd, args, true)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, close()) }()
			if s.at != "" {
				if m, err = s.goBack(cmd, m, log); err != nil {
					return err
				}
			}
			listeners, url, err := cli.Listen(cmd.Context(), s.address, log)
			if err != nil {
				return err
			}
			m.URL = url
			sock, err := socket.Listen(state.Dir(common.State).Socket("registry-mirror"))
			if err != nil {
				return err
			}
			if err := announce(cmd.OutOrStdout(), common, m.Status(cmd.Context()), url); err != nil {
				return err
			}
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return m.Run(ctx) })
			group.Go(func() error { hurry(ctx, m); return nil })
			group.Go(func() error { return crowd.Serve(ctx, log, page.Handler(m.Handler(), m, log), listeners...) })
			group.Go(func() error { return socket.Serve(ctx, sock, m.Admin()) })
			if err := group.Wait(); err != nil {
				return err
			}
			cli.Stopped(cmd, log, "what came is kept in "+common.State)
			return nil
		},
	}
	s.bind(cmd)
	f := cmd.Flags()
	f.BoolVar(&s.share, "share", false, state.ShareUsage)
	f.StringVar(&s.address, "listen", defaultListen, "address to serve the registry on")
	f.BoolVar(&s.offline, "offline", false, "ask nobody for anything: serve what is held")
	f.StringVar(&s.upstream, "upstream", "", "npm registry to fetch listed tarballs from that no peer gives (default: the one npm's configuration names)")
	f.StringVar(&s.at, "at", "", "serve an earlier release, and stay there: its number, a day (2026-11-20, in UTC) or an RFC 3339 time")
	f.BoolVar(&s.noUpstream, "no-upstream", false, "take tarballs from peers and gateways alone")
	f.BoolVar(&s.acceptStale, "accept-stale", false, "follow a record that has expired where there is no better one, as on a network that is cut off")
	f.DurationVar(&s.maxStale, "max-stale", 0, "serve a list for so long after its record expired, and no longer (default: for ever, and it is said)")
	f.Var(&s.proxies, "trusted-proxy", proxyUsage)
	f.Var(&s.cacheSize, "cache-size", "keep at most so much of what was fetched, the least recently used going first; 0: all (default: 20GiB; all with --offline, in a follower's or publisher's state, and where the node collects its garbage itself)")
	return cmd
}

// announce says where the registries are, before their lists may have come.
func announce(out io.Writer, common *cli.Common, s mirror.TableStatus, url string) error {
	first := s.Registries[0]
	if common.JSON {
		said := map[string]any{"name": first.Name, "registry": url, "release": first.Release.Number}
		if first.At != "" {
			said["at"] = first.At
		}
		if len(s.Registries) > 1 {
			said["registries"] = s.Registries
		}
		return cli.PrintJSON(out, said)
	}
	for _, r := range s.Registries {
		held := "no list yet"
		if r.Release.Number > 0 {
			held = fmt.Sprintf("release %d, %s", r.Release.Number, cli.Count(r.Release.Packages, "package"))
		}
		if r.At != "" {
			held = fmt.Sprintf("as of %s and no later: release %d of %s, %s", r.At, r.Release.Number, cli.Time(r.Release.Created), cli.Count(r.Release.Packages, "package"))
		}
		if r.Release.Part > 0 {
			held += fmt.Sprintf(", of which bundles brought %d", r.Release.Part)
		}
		who := shown(r.Name)
		if len(s.Registries) > 1 {
			who = r.Registry + ", " + who
		}
		if _, err := fmt.Fprintf(out, "serving %s (%s) at %s\n", who, held, url); err != nil {
			return err
		}
	}
	var told []string // once for each node
	for _, r := range s.Registries {
		if r.Node == nil || seenBy(*r.Node) == "" || slices.Contains(told, r.Node.ID) {
			continue
		}
		told = append(told, r.Node.ID)
		if _, err := fmt.Fprintf(out, "network %s\n", seenBy(*r.Node)); err != nil {
			return err
		}
	}
	return nil
}

// shown is a registry's name as its path.
func shown(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return "/ipns/" + name
}

// open opens the mirrors of the table and of args, for a command that runs on
// (daemon) or does one thing. The returned function closes them.
func (s *source) open(cmd *cobra.Command, args []string, daemon bool) (_ *mirror.Table, _ func() error, err error) {
	dir := state.Dir(s.State)
	table, err := dir.Table()
	if err != nil {
		return nil, nil, err
	}
	if len(args)+len(table.Rows) == 0 {
		return nil, nil, cli.Hint(cli.Usagef("no registry to serve"),
			"name one: `registry-mirror daemon --ipfs k51...`; or make one of your own: `registry-mirror up express`")
	}
	rows, err := s.rows(cmd, dir, table, args)
	if err != nil {
		return nil, nil, err
	}
	for _, flag := range []string{"node", "ipfs-api", "network", "peer", "share"} {
		if !s.ipfs && cmd.Flags().Changed(flag) {
			return nil, nil, cli.Usagef("--%s is of the IPFS node, which needs --ipfs", flag)
		}
	}
	if err := checkGateways(s.gateways); err != nil {
		return nil, nil, err
	}
	if err := dir.Make(); err != nil {
		return nil, nil, err
	}
	if s.offline && cmd.Flags().Changed("share") {
		return nil, nil, cli.Usagef("--share and --offline exclude one another")
	}
	if s.at != "" {
		at, err := mirror.ParseMoment(s.at)
		if err := cmp.Or(err, at.Begun(time.Now())); err != nil {
			return nil, nil, fmt.Errorf("--at: %w", err)
		}
	}
	if s.noUpstream && s.upstream != "" {
		return nil, nil, cli.Usagef("--upstream and --no-upstream exclude one another")
	}
	h := &opened{source: s, log: s.Logger(cmd.ErrOrStderr(), daemon), nodes: map[string]*state.Node{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if daemon {
		o := mirror.CacheOptions{Dir: dir.Cache(), Bound: int64(defaultCacheSize), Log: h.log}
		h.bounded = cmd.Flags().Changed("cache-size")
		switch {
		case s.offline: // what goes could not come again
			o.Bound = 0
		case h.bounded:
			o.Bound = int64(s.cacheSize)
		case dir.Makes():
			o.Bound = 0
		}
		h.bound = o.Bound
		if h.cache, err = mirror.OpenCache(o); err != nil {
			return nil, nil, err
		}
		h.own(h.cache.Close)
	}
	registries := make([]mirror.Registry, len(rows))
	for i, r := range rows {
		registries[i] = registryOf(r.Row)
		if registries[i].Mirror, err = h.mirror(cmd.Context(), dir, r, rows); err != nil {
			return nil, nil, err
		}
	}
	m, err := mirror.NewTable(registries...)
	if err != nil {
		return nil, nil, err
	}
	if h.cache != nil {
		h.own(h.cache.Stop) // before what it evicts from is closed
	}
	return m, h.Close, nil
}

// located is a row, and what its address is.
type located struct {
	state.Row
	at address
}

// rows are those that were added, then an open one for each argument.
func (s *source) rows(cmd *cobra.Command, dir state.Dir, table state.Table, args []string) (rows []located, err error) {
	for _, r := range table.Rows {
		at, err := parseAddress(r.Address)
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", r.Label, err)
		}
		if r.Domain != "" {
			// It may have moved, which stops nothing here: what was followed is.
			if _, _, err := locate(cmd.Context(), dir, &table, r.Domain, nil); errors.Is(err, errMoved) {
				s.Logger(cmd.ErrOrStderr(), true).WarnContext(cmd.Context(), "a domain's DNSLink has moved; what was added is served", "registry", r.Label, "error", err)
			}
		}
		rows = append(rows, located{r, at})
	}
	for _, text := range args {
		at, domain, err := locate(cmd.Context(), dir, &table, text, nil)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(rows, func(r located) bool { return r.at == at }); i >= 0 {
			if claims(rows[i].Row) == open {
				continue // it is served already
			}
			return nil, cli.Hint(cli.Usagef("%s was added as %s, %s", text, rows[i].Label, claims(rows[i].Row)), "leave it out here, or `registry-mirror remove "+rows[i].Label+"`")
		}
		rows = append(rows, located{state.Row{Label: text, Address: at.String(), Domain: domain}, at})
	}
	for _, r := range rows {
		if !s.ipfs && len(s.gateways) == 0 && len(r.Gateways) == 0 {
			return nil, cli.Hint(cli.Usagef("nothing to read from"), "add --ipfs to use an IPFS node, or --gateway URL")
		}
	}
	return rows, nil
}

// opened is what a run has open.
type opened struct {
	*source
	log   *slog.Logger
	nodes map[string]*state.Node // by network; "" is the state's own
	cache *mirror.Cache          // nil for a command that does one thing
	// bound is the cache's, in bytes; bounded says that it was asked for.
	bound   int64
	bounded bool
	close   []func() error // in the order of closing
}

func (h *opened) own(f func() error) { h.close = append([]func() error{f}, h.close...) }

func (h *opened) Close() error {
	var err error
	for _, f := range h.close {
		err = errors.Join(err, f())
	}
	return err
}

// mirror opens the mirror of one of rows.
func (h *opened) mirror(ctx context.Context, dir state.Dir, r located, rows []located) (*mirror.Mirror, error) {
	routes, err := routes(append(slices.Clone(r.Routes), h.routes...))
	if err != nil {
		return nil, err
	}
	o := r.at.options(mirror.Options{Routes: routes, Dir: dir.Mirror(r.at.dir()), Gateways: gateways(append(slices.Clone(r.Gateways), h.gateways...)), TrustedProxies: h.proxies, Offline: h.offline, MaxStale: h.maxStale, AcceptStale: h.acceptStale, Log: h.log})
	if claims(r.Row) == open && !h.noUpstream && !h.offline && h.address != "" {
		up, config, err := openUpstream(dir, h.upstream, h.address)
		if err != nil {
			return nil, err
		}
		o.Tarballs, o.Attestations = tarballsFrom(up, config), attestationsFrom(up)
	}
	if h.ipfs {
		node, err := h.node(ctx, dir, r.Network, rows)
		if err != nil {
			return nil, err
		}
		o.Node = node
		o.HoldsAll = r.Network == "" && dir.Makes()
		if h.share {
			to := node.Announcer()
			if to == nil {
				return nil, cli.Hint(cli.Usagef("--share: this state's node is Kubo, or another command's"),
					"leave it out; Kubo announces what its Provide.Strategy says, and the command that runs the node has a --share of its own")
			}
			// What a private registry has is nobody else's to know of.
			if r.Network == "" && claims(r.Row) == open {
				o.Announce = to
			}
		}
		if h.cache != nil {
			from := node.Evictor()
			if from == nil && h.bounded && h.cacheSize > 0 {
				return nil, cli.Hint(cli.Usagef("--cache-size: this state's node is Kubo, or another command's, and what goes there its own garbage collection decides"),
					"leave it out; Kubo has Datastore.StorageMax, and keeps what `registry-mirror pin` names")
			}
			o.Cached = h.cache.Part(strings.TrimSpace("node "+r.Network), from, node)
		}
	} else if h.cache != nil {
		o.Cached = h.cache.Part(mirror.OwnPart(r.at.dir()), nil, nil)
	}
	m, err := mirror.Open(o)
	if err != nil {
		return nil, err
	}
	h.own(m.Close)
	return m, nil
}

// node is the node of a network: the state's own, or one whose peers and blocks
// are of that network alone. It dials the peers of all rows that are read by it.
func (h *opened) node(ctx context.Context, dir state.Dir, network string, rows []located) (node *state.Node, err error) {
	node, have := h.nodes[network]
	if !have {
		o := state.NodeOptions{Kind: h.Node, API: h.IPFSAPI, Network: ipfs.Network(h.Network), DefaultNetwork: ipfs.Public, Peers: h.Peers, Share: h.share, Offline: h.offline, Log: h.log}
		if network != "" {
			dir = dir.Network(network)
			o = state.NodeOptions{Kind: "embedded", Network: ipfs.Network(network), Offline: h.offline, Log: h.log}
		}
		for _, r := range rows {
			if r.Network == network {
				o.Peers = append(slices.Clone(o.Peers), r.Peers...)
			}
		}
		if node, err = dir.OpenNode(ctx, o); err != nil {
			return nil, err
		}
		h.nodes[network] = node
		h.own(node.Close)
		if h.bound > 0 && node.Evictor() == nil && !h.bounded {
			h.log.WarnContext(ctx, "nothing that is fetched is let go here: the node decides, for it is not this command's", "bound", collects(node))
		}
	}
	return node, nil
}

// collects says what bounds a node that takes no blocks out for a mirror.
func collects(node *state.Node) string {
	if node.Kind == "kubo" {
		return "Kubo's Datastore.StorageMax, with `ipfs daemon --enable-gc`"
	}
	return "none but `follower collect`, by the command that runs the node"
}

// goBack is m as it stood at s.at, and no later. What is held serves where nothing
// newer is found.
func (s *source) goBack(cmd *cobra.Command, m *mirror.Table, log *slog.Logger) (*mirror.Table, error) {
	ctx := cmd.Context()
	moment, err := mirror.ParseMoment(s.at)
	if err != nil {
		return nil, fmt.Errorf("--at: %w", err)
	}
	if !s.offline {
		if err := s.sync(ctx, m); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "no newer list was found than what is held", "error", err)
		}
	}
	progress := cli.NewProgress(cmd.ErrOrStderr(), log)
	defer progress.End()
	then, err := m.At(ctx, moment, func(passed int) { progress.Update("releases passed", passed, 0, 0) })
	if err != nil {
		return nil, fmt.Errorf("--at %s: %w", s.at, err)
	}
	return then, nil
}

// patience is how long a node that has just started is given to reach a peer:
// peers are dialled beside the resolution.
const patience = 5 * time.Second

// hurry asks again for names of which nothing is held yet, for as long as
// patience: m itself would wait longer.
func hurry(ctx context.Context, m *mirror.Table) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for slices.ContainsFunc(m.Status(ctx).Registries, func(r mirror.RegistryStatus) bool { return r.Release.Number == 0 }) {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			m.Refresh()
		}
	}
}

// syncOnce opens the mirrors, does one round and closes them.
func (s *source) syncOnce(ctx context.Context, cmd *cobra.Command, args []string) (status mirror.TableStatus, err error) {
	m, close, err := s.open(cmd, args, false)
	if err != nil {
		return status, err
	}
	defer func() { err = errors.Join(err, close()) }()
	if s.follow != "" {
		if err := m.FollowTo(ctx, s.successor); err != nil {
			return m.Status(ctx), err
		}
	}
	err = s.sync(ctx, m)
	return m.Status(ctx), err
}

// sync does one round, and another for as long as patience while a node that has
// just started finds no record.
func (s *source) sync(ctx context.Context, m *mirror.Table) error {
	for end := time.Now().Add(patience); ; {
		err := m.Sync(ctx)
		if !s.ipfs || !errors.Is(err, mirror.ErrNoRecord) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
