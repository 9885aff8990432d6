package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/hosted"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// serveListen is where a registry takes what is published, unless it is said
// otherwise, and mirrorListen is where a colleague's mirror serves.
const (
	serveListen  = "127.0.0.1:4874"
	mirrorListen = "127.0.0.1:4873"
)

func initCommand(r *registry) *cobra.Command {
	var scopes []string
	cmd := &cobra.Command{
		Use:   "init NAME --scope @SCOPE",
		Short: "Make a registry that npm publish publishes to",
		Long: `Makes the registry NAME of one or more scopes: its key and the key that will
follow it, a ledger of its own, and one token, which is printed this once and kept
only as its SHA-256. What to type next is printed too. What is there is never
replaced. publisher serve takes what is published.`,
		Example: `  publisher init acme --scope @acme
  publisher init acme --scope @acme --scope @acme-labs --network lan   # colleagues on other machines`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("name") && r.name != args[0] {
				return cli.Usagef("--name %s: the registry is named %s", r.name, args[0])
			}
			r.name = args[0]
			return r.init(cmd, scopes)
		},
	}
	cmd.Flags().StringArrayVar(&scopes, "scope", nil, "scope whose packages it takes, as @acme; may be repeated")
	return cmd
}

// init makes a registry. The settings file is its beginning: it is written last, and
// without it a crash has left a key, a journal and an empty ledger that the next init
// goes on with.
func (r *registry) init(cmd *cobra.Command, scopes []string) error {
	ctx, dir := cmd.Context(), state.Dir(r.State)
	if len(scopes) == 0 {
		return fmt.Errorf("no scope is named: %w", hosted.ErrScope)
	}
	for _, scope := range scopes {
		if _, err := hosted.ParseScope(scope); err != nil {
			return err
		}
	}
	key, err := ipnskeys.Find(dir.Keys(), r.name)
	if err != nil && !errors.Is(err, ipnskeys.ErrNoKey) {
		return err
	}
	if dir.IsHosted(r.name) {
		return fmt.Errorf("registry %s: %w", r.name, hosted.ErrExists)
	}
	if _, err := os.Lstat(dir.Index(r.name)); err == nil {
		return cli.Hint(fmt.Errorf("registry %s: %w", r.name, hosted.ErrExists), "it lists what a follower stored, and goes on doing so: choose another name")
	}
	// The node first: it can be away, and where it answers is printed.
	node, err := dir.OpenNode(ctx, state.NodeOptions{Kind: r.Node, API: r.IPFSAPI, Network: ipfs.Network(r.Network), Peers: r.Peers, Log: r.Logger(cmd.ErrOrStderr(), false)})
	if err != nil {
		return err
	}
	info, err := node.Info(ctx)
	if err = errors.Join(err, node.Close()); err != nil {
		return err
	}
	store, err := ledger.OpenOrCreate(dir.HostedLedger(r.name), ledger.Options{})
	if err == nil {
		err = store.Close()
	}
	if err != nil {
		return err
	}
	if key.Name == "" {
		if key, err = publish.Mint(dir.Keys(), r.name, dir.Journal(r.name)); err != nil {
			return err
		}
	}
	token, err := hosted.Create(dir.Hosted(r.name), scopes, time.Now())
	if err != nil {
		return err
	}
	made := madeRegistry{
		Name: r.name, IPNSName: key.IPNSName.String(), Scopes: scopes, Token: token, Peers: info.Addrs, Key: show(key),
		Serve: r.typed(cmd, "publisher serve --name "+r.name),
		NPMRC: npmrc(scopes, serveListen, token), ColleagueRuns: colleague(key.IPNSName.String(), info.Addrs), ColleagueNPMRC: npmrc(scopes, mirrorListen, ""),
	}
	if r.JSON {
		return cli.PrintJSON(cmd.OutOrStdout(), made)
	}
	return made.print(cmd.OutOrStdout(), key)
}

// madeRegistry is what init prints.
type madeRegistry struct {
	Name           string   `json:"name"`
	IPNSName       string   `json:"ipns_name"`
	Scopes         []string `json:"scopes"`
	Token          string   `json:"token"`
	Peers          []string `json:"peers"`
	Key            keyJSON  `json:"key"`
	Serve          string   `json:"serve"`
	NPMRC          []string `json:"npmrc"` // lines, for who publishes
	ColleagueRuns  string   `json:"colleague_runs"`
	ColleagueNPMRC []string `json:"colleague_npmrc"`
}

func (m madeRegistry) print(w io.Writer, key ipnskeys.Key) error {
	fmt.Fprintf(w, "The registry %s was made. It takes what is published in %s.\n", m.Name, strings.Join(m.Scopes, ", "))
	if err := printKey(w, key); err != nil {
		return err
	}
	fmt.Fprintf(w, "token       %s (shown this once)\n", m.Token)
	fmt.Fprintf(w, "\nServe it, for as long as things are published:\n  %s\n", m.Serve)
	fmt.Fprintf(w, "\nWho publishes has in .npmrc, and types `npm publish`:\n  %s\n", strings.Join(m.NPMRC, "\n  "))
	fmt.Fprintf(w, "\nA colleague runs a mirror, which needs no token:\n  %s\n", m.ColleagueRuns)
	if loopback(reachable(m.Peers)) {
		fmt.Fprintf(w, "  (this node talks to this machine alone; `--network lan`, when a state is made, is for colleagues on others)\n")
	}
	fmt.Fprintf(w, "and has in .npmrc:\n  %s\n", strings.Join(m.ColleagueNPMRC, "\n  "))
	_, err := fmt.Fprintf(w, "\nWho has the name and reaches the node can read what is published.\n")
	return err
}

// typed is a command line with the --state that was typed here.
func (r *registry) typed(cmd *cobra.Command, line string) string {
	if cmd.Flags().Changed("state") {
		line += " --state " + cli.ShellWord(r.State)
	}
	return line
}

// npmrc are the lines of an .npmrc that has the scopes at address, with the token to
// publish there where it is not "".
func npmrc(scopes []string, address, token string) []string {
	var lines []string
	for _, scope := range scopes {
		lines = append(lines, scope+":registry=http://"+address+"/")
	}
	if token != "" {
		lines = append(lines, "//"+address+"/:_authToken="+token)
	}
	return lines
}

// colleague is what another machine's mirror is begun with.
func colleague(name string, peers []string) string {
	line := "registry-mirror daemon --ipfs " + name
	peer := reachable(peers)
	if peer == "" {
		return line
	}
	// A node that need not go beyond asks nobody beyond: names stay here.
	if m, err := multiaddr.NewMultiaddr(peer); err == nil && manet.IsIPLoopback(m) {
		line += " --network local"
	} else if err == nil && manet.IsPrivateAddr(m) {
		line += " --network lan"
	}
	return line + " --peer " + peer
}

// reachable is the address to give to others: one that other machines can dial,
// where there is one.
func reachable(peers []string) string {
	for _, peer := range peers {
		if !loopback(peer) {
			return peer
		}
	}
	if len(peers) > 0 {
		return peers[0]
	}
	return ""
}

// loopback says whether only this machine can dial an address.
func loopback(addr string) bool {
	m, err := multiaddr.NewMultiaddr(addr)
	return err == nil && manet.IsIPLoopback(m)
}

// serveSettings are the flags of serve.
type serveSettings struct {
	listen     string
	maxTarball cli.Size
}

func serveCommand(r *registry) *cobra.Command {
	s := &serveSettings{maxTarball: hosted.DefaultMaxTarball}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Take what npm publish sends, and release it at once",
		Long: `Serves a registry that publisher init made, over npm's protocol: who has a token
publishes new versions of packages in its scopes, moves dist-tags and deprecates.
Each publication is verified, made durable, released, signed, put and read back
before it is answered. A version that exists, or existed, never changes.

Reading needs no token from this machine, and one from any other; everything that
writes needs one. Without --name it serves the one registry of this state that is
published to. It puts the record again by itself, and can be stopped at any time.`,
		Example: `  publisher serve
  publisher serve --name acme --listen 127.0.0.1:4874`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.pickHosted(cmd); err != nil {
				return err
			}
			if err := errors.Join(r.checkRetain(), r.checkRecord()); err != nil {
				return err
			}
			if s.maxTarball <= 0 {
				return cli.Usagef("--max-tarball %d: it is more than nothing", int64(s.maxTarball))
			}
			return r.serve(cmd, s)
		},
	}
	cmd.Flags().StringVar(&s.listen, "listen", serveListen, "address to take publications on")
	cmd.Flags().Var(&s.maxTarball, "max-tarball", "largest tarball that is taken")
	bindParameters(cmd, r)
	bindRetain(cmd, r)
	bindRoutes(cmd, r)
	bindIdentity(cmd, r)
	bindRecord(cmd, r)
	ttl := cmd.Flags().Lookup("ttl") // colleagues wait for what was just published
	ttl.DefValue = serveTTL.String()
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		if !ttl.Changed {
			r.ttl = serveTTL
		}
	}
	return cmd
}

// serveTTL is the cache hint of the records that serve signs.
const serveTTL = 5 * time.Second

// pickHosted lets --name name the one registry that is published to, where it was
// not typed and there is one.
func (r *registry) pickHosted(cmd *cobra.Command) error {
	dir := state.Dir(r.State)
	if dir.IsHosted(r.name) {
		return nil
	}
	all, err := dir.AllHosted()
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("name") && len(all) == 1 {
		r.name = all[0]
		return nil
	}
	err = fmt.Errorf("registry %s: %w", r.name, hosted.ErrNoRegistry)
	if len(all) > 0 {
		err = cli.Hint(err, "this state has "+strings.Join(all, ", ")+": name one of them with --name")
	}
	return err
}

// serve owns the registry's ledger, index and, where no other command has it, the
// node, until ctx ends.
func (r *registry) serve(cmd *cobra.Command, s *serveSettings) (err error) {
	log := r.Logger(cmd.ErrOrStderr(), true)
	dir := state.Dir(r.State)
	listeners, url, err := cli.Listen(cmd.Context(), s.listen, log) // first: an address in use is known before any work
	if err != nil {
		return err
	}
	served := false
	defer func() {
		for _, l := range listeners {
			if !served {
				l.Close()
			}
		}
	}()
	if r.store, err = dir.OpenHostedLedger(cmd.Context(), r.name, ledger.Options{Log: log}); err != nil {
		if errors.Is(err, ledger.ErrLocked) {
			err = cli.Hint(err, "another `publisher serve` has this registry")
		}
		return err
	}
	defer func() { err = errors.Join(err, r.store.Close()) }()
	progress := cli.NewProgress(cmd.ErrOrStderr(), log)
	defer progress.End()
	o, err := state.Open(cmd.Context(), dir, "", index.ErrLocked, func() (*opened, error) { return r.open(cmd.Context(), sign, log, progress) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	registry, err := hosted.New(hosted.Options{
		Settings: dir.Hosted(r.name), Ledger: r.store, Node: o.node, Spool: dir.Temp(), MaxTarball: int64(s.maxTarball), Log: log,
	})
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(cmd.Context())
	stop := func(err error) error {
		group.Go(func() error { return err })
		return group.Wait()
	}
	for command, h := range map[string]http.Handler{"ledger": ledger.Serve(r.store), "publisher": o.Admin()} {
		l, err := socket.Listen(dir.HostedSocket(r.name, command))
		if err != nil {
			return stop(err)
		}
		group.Go(func() error { return socket.Serve(ctx, l, h) })
	}
	var told sync.Once
	served = true
	group.Go(func() error { return crowd.Serve(ctx, log, registry.Handler(), listeners...) })
	group.Go(func() error { return registry.Run(ctx) })
	if o.node.Kind == "embedded" && !o.node.Own() {
		group.Go(func() error { return watchNode(ctx, o.node) })
	}
	group.Go(func() error {
		// Nothing is waited for between two releases: one that is under way gathers
		// what is published meanwhile for the next.
		return o.Run(ctx, 0, func(result publish.Result, err error) {
			if err == nil {
				registry.Released(releasedSeq(result, r.store.Identity()), nil)
			} else {
				registry.Released(0, err)
			}
			told.Do(func() {
				progress.End()
				if err := r.tellServing(ctx, cmd.OutOrStdout(), o, result, url); err != nil {
					log.WarnContext(ctx, "not told where it serves", "error", err)
				}
			})
		})
	})
	err = group.Wait()
	if cmd.Context().Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil // stopped by hand: the ordinary end
	}
	return err
}

// watchNode returns when the command that has the node has ended. The next start has
// the node itself.
func watchNode(ctx context.Context, node *state.Node) error {
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
		if _, err := node.Info(ctx); errors.Is(err, ipfs.ErrAway) {
			return cli.Hint(err, "another command had the node, and ended: start `publisher serve` again, and it has the node itself")
		}
	}
}

// releasedSeq is up to where a release has a ledger.
func releasedSeq(result publish.Result, identity string) ledger.Seq {
	for _, s := range result.Release.Sources {
		if n, err := strconv.ParseUint(s.Cursor, 10, 64); err == nil && s.ID == identity {
			return ledger.Seq(n)
		}
	}
	return 0
}

// tellServing says where the registry is, and how others come to it.
func (r *registry) tellServing(ctx context.Context, w io.Writer, o *opened, result publish.Result, url string) error {
	settings, err := hosted.Open(state.Dir(r.State).Hosted(r.name))
	if err != nil {
		return err
	}
	info, err := o.node.Info(ctx)
	if err != nil {
		return err
	}
	name := o.key.IPNSName.String()
	if r.JSON {
		return cli.PrintJSON(w, map[string]any{
			"registry": url, "name": r.name, "ipns_name": name, "scopes": settings.Scopes, "number": result.Number, "peers": info.Addrs,
			"colleague_runs": colleague(name, info.Addrs), "colleague_npmrc": npmrc(settings.Scopes, mirrorListen, ""),
		})
	}
	fmt.Fprintf(w, "Taking npm publish for %s at %s\n", strings.Join(settings.Scopes, ", "), url)
	fmt.Fprintf(w, "  name       /ipns/%s\n", name)
	fmt.Fprintf(w, "  release    %d, %s, %s\n", result.Number, cli.Count(result.Packages, "package"), cli.Count(result.Versions, "version"))
	rc := func(lines []string) string { return strings.Join(lines, "\n               ") }
	fmt.Fprintf(w, "  publish    .npmrc:\n               %s\n", rc(npmrc(settings.Scopes, strings.TrimPrefix(url, "http://"), "TOKEN")))
	_, err = fmt.Fprintf(w, "  colleague  %s\n             .npmrc:\n               %s\n", colleague(name, info.Addrs), rc(npmrc(settings.Scopes, mirrorListen, "")))
	return err
}

func tokenCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make, list and revoke the tokens by which people publish"}
	cmd.AddCommand(tokenNewCommand(r), tokenListCommand(r), tokenRevokeCommand(r))
	return cmd
}

func tokenNewCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "new",
		Short: "Make a token",
		Long: `Makes a token for the registry --name, prints it this once and keeps its SHA-256.
A running publisher serve knows it at once.`,
		Example: "  publisher token new --name acme",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.pickHosted(cmd); err != nil {
				return err
			}
			token, t, err := hosted.NewToken(state.Dir(r.State).Hosted(r.name), time.Now())
			if err != nil {
				return err
			}
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), map[string]any{"id": t.ID, "token": token, "created": t.Created})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "id          %s\ntoken       %s (shown this once)\n", t.ID, token)
			return err
		},
	}
}

func tokenListCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the tokens, as far as they are known",
		Example: "  publisher token list --name acme",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.pickHosted(cmd); err != nil {
				return err
			}
			s, err := hosted.Open(state.Dir(r.State).Hosted(r.name))
			if err != nil {
				return err
			}
			type one struct {
				ID      string    `json:"id"`
				Created time.Time `json:"created"`
			}
			list := make([]one, len(s.Tokens))
			for i, t := range s.Tokens {
				list[i] = one{t.ID, t.Created}
			}
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), map[string]any{"tokens": list})
			}
			for _, t := range list {
				fmt.Fprintf(cmd.OutOrStdout(), "%s  made %s\n", t.ID, cli.Time(t.Created))
			}
			return nil
		},
	}
}

func tokenRevokeCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Take a token away, at once",
		Example: "  publisher token revoke 1f2e3d4c --name acme",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.pickHosted(cmd); err != nil {
				return err
			}
			return hosted.RevokeToken(state.Dir(r.State).Hosted(r.name), args[0])
		},
	}
}
