package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/page"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// errRuns is returned where a follower, or up itself, runs on the state.
var errRuns = errors.New("a follower or another up runs on this state")

// publishEvery is the least time between two releases while packages come in.
const publishEvery = 2 * time.Second

// upSettings are the flags of up.
type upSettings struct {
	*cli.Common
	selection                       follow.Selection
	identities                      []string // files
	proxies                         proxies
	upstream, address, name, origin string
	metrics                         string    // file
	notices                         io.Writer // for people
	pull, pullSet, share            bool
}

func upCommand(common *cli.Common) *cobra.Command {
	s := &upSettings{Common: common}
	cmd := &cobra.Command{
		Use:   "up [NAME | NAME@RANGE]...",
		Short: "Make a registry of your own and serve it: follower, publisher and daemon in one",
		Long: `Takes packages and their dependencies from the npm registry, verifies them, adds
them to IPFS, signs a release of them and serves it as an npm registry, all in
one process. Names are added to what was selected before: of each what npm would
install, what the tag latest names, and their dependencies. Without names it is a
pull-through as well: what a client asks for is fetched, verified, stored and in
the next release; --pull-through=false goes on with the selection alone.

It can be stopped at any time; the next start goes on where it was.`,
		Example: `  registry-mirror up express@4 @types/node lodash
  registry-mirror up --lockfile package-lock.json
  registry-mirror up                                 # pull-through
  npm install express --registry=http://127.0.0.1:4873`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.selection.Specs = args
			s.pullSet = cmd.Flags().Changed("pull-through")
			return s.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&s.selection.Lockfiles, "lockfile", nil, "lockfile of npm, pnpm, yarn or bun: exactly the versions in it, and nothing beside; may be repeated")
	f.StringArrayVar(&s.selection.Lists, "from-file", nil, "file with a name or name@range a line; may be repeated")
	f.BoolVar(&s.selection.NoDeps, "no-deps", false, "leave out dependencies")
	f.BoolVar(&s.pull, "pull-through", false, "fetch what a client asks for and the registry lacks (default: when no names are given)")
	f.BoolVar(&s.share, "share", false, state.ShareUsage)
	f.StringVar(&s.upstream, "upstream", "", "npm registry to fetch from (default: the one npm's configuration names)")
	f.StringVar(&s.address, "listen", defaultListen, "address to serve the registry on")
	f.Var(&s.proxies, "trusted-proxy", proxyUsage)
	f.StringVar(&s.name, "name", "main", "name of the registry in this state, and of its key")
	f.StringArrayVar(&s.identities, "identity", nil, "age identity file, mode 0600, that opens the key; may be repeated (default: the one beside the keys, and $CREDENTIALS_DIRECTORY/NAME)")
	f.StringVar(&s.origin, "gateway-origin", "", "origin of the gateway that the registry can also be read from, chosen with the first release; none to leave that out (default: "+publish.DefaultGatewayOrigin+")")
	f.StringVar(&s.metrics, "metrics", "", publish.MetricsUsage)
	return cmd
}

// house is what up runs, all in this process.
type house struct {
	ledger   *ledger.Store
	node     *state.Node
	follower *follow.Follower
	registry string              // that is fetched from
	pull     *follow.PullThrough // nil without pull-through
	keys     func()              // keeps the registry's signing keys up to date
	// attestations asks the registry for those of a version.
	attestations func(ctx context.Context, name npm.Name, version string) ([]byte, error)
	index        *index.Index
	publisher    *publish.Publisher
	mirror       *mirror.Mirror
	key          ipnskeys.Key

	close []func() error // last opened first
}

func (h *house) own(f func() error) { h.close = append([]func() error{f}, h.close...) }

func (h *house) Close() error {
	var err error
	for _, f := range h.close {
		err = errors.Join(err, f())
	}
	return err
}

func (s *upSettings) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	log := s.Logger(cmd.ErrOrStderr(), !cli.IsTerminal(cmd.ErrOrStderr())) // a person reads the report
	wants, err := s.selection.Wants()
	if err != nil {
		return cli.Usagef("%w", err)
	}
	locked, err := lockedIn(s.selection.Lockfiles)
	if err != nil {
		return err
	}
	if !s.pullSet {
		s.pull = len(wants) == 0
	}
	if s.upstream != "" {
		if _, err := npm.ParseRegistry(s.upstream); err != nil {
			return fmt.Errorf("--upstream: %w", err)
		}
	}
	if s.metrics != "" {
		if err := publish.CheckMetrics(s.metrics); err != nil {
			return err
		}
	}
	dir := state.Dir(s.State)
	s.notices = cmd.OutOrStdout()
	if s.JSON {
		s.notices = cmd.ErrOrStderr() // the one object has the output to itself
	}
	if socket.Alive(ctx, dir.Socket("follower")) {
		return errRuns
	}
	listeners, url, err := cli.Listen(ctx, s.address, log) // first: an address in use is known before any work
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
	progress := cli.NewProgress(cmd.ErrOrStderr(), log)
	defer progress.End()
	h := &house{}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := s.open(ctx, h, dir, log, progress); err != nil {
		return err
	}

	// One tree of goroutines. The other commands are answered from the start, for
	// filling takes its time.
	group, ctx := errgroup.WithContext(ctx)
	if err := answer(ctx, group, dir, "follower", ledger.Serve(h.ledger, ledger.WithLoop(func(context.Context) any { return h.follower.Status() }))); err != nil {
		return err
	}
	stop := func(err error) error {
		group.Go(func() error { return err })
		return group.Wait()
	}
	if err := answer(ctx, group, dir, "publisher", h.publisher.Admin()); err != nil {
		return stop(err)
	}
	r, err := s.begin(ctx, h, dir, wants, locked, log, progress)
	if err != nil {
		return stop(err)
	}
	table, err := mirror.NewTable(mirror.Registry{Label: s.name, Mirror: h.mirror})
	if err != nil {
		return stop(err)
	}
	table.URL = url
	if err := answer(ctx, group, dir, "registry-mirror", table.Admin()); err != nil {
		return stop(err)
	}
	r.Registry, r.Install = url, installLine(s.selection, r.Missing, url)
	if err := r.print(cmd.OutOrStdout(), s.JSON); err != nil {
		return stop(err)
	}
	served = true
	group.Go(func() error { return crowd.Serve(ctx, log, page.Handler(table.Handler(), table, log), listeners...) })
	h.run(ctx, group, func(result publish.Result, err error) { s.measure(ctx, log, result, err) })
	err = group.Wait()
	if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
		held := h.ledger.Counts()
		cli.Stopped(cmd, log, fmt.Sprintf("%s and %s are kept in %s", cli.Count(held.Packages, "package"), cli.Count(held.Versions, "version"), s.State))
		return nil // by hand: the ordinary end
	}
	return err
}

// begin fills the ledger, holds lockfiles against it, publishes it and opens the mirror on
// that.
func (s *upSettings) begin(ctx context.Context, h *house, dir state.Dir, wants []ledger.Want, locked []mirror.Bundled, log *slog.Logger, progress *cli.Progress) (report, error) {
	before := h.ledger.Counts()
	if err := h.fill(ctx, wants); err != nil {
		return report{}, err
	}
	if err := h.hold(ctx, locked); err != nil {
		return report{}, err
	}
	missing, err := h.missing(ctx)
	if err != nil {
		return report{}, err
	}
	if len(missing) > 0 && h.ledger.Counts().Packages == 0 && !s.pull {
		return report{}, h.nothing(missing)
	}
	result, err := h.publisher.Publish(ctx)
	progress.End()
	s.measure(ctx, log, result, err)
	if err != nil {
		return report{}, err
	}
	if err := h.openMirror(ctx, dir, result, s.proxies, log); err != nil {
		return report{}, err
	}
	info, err := h.node.Info(ctx)
	if err != nil {
		return report{}, err
	}
	back, err := h.publisher.RolledBackPackages()
	if err != nil {
		return report{}, err
	}
	after := h.ledger.Counts()
	return report{
		Result: result, Peers: info.Addrs, Network: seenBy(info), PullThrough: s.pull, State: s.State, Missing: missing,
		Fetched: fetched{Tarballs: after.Versions - before.Versions, Bytes: int64(after.Bytes) - int64(before.Bytes)},
		Key:     h.key, RolledBack: back,
	}, nil
}

// open opens all but the mirror, which needs a release.
func (s *upSettings) open(ctx context.Context, h *house, dir state.Dir, log *slog.Logger, progress *cli.Progress) error {
	if err := dir.Make(); err != nil {
		return err
	}
	up, config, err := openUpstream(dir, s.upstream, s.address)
	if err != nil {
		return err
	}
	h.registry = config.Registry
	h.keys = dir.FollowRegistryKeys(ctx, up, log)
	h.attestations = attestationsFrom(up)
	if h.ledger, err = dir.OpenLedger(ctx, ledger.Options{Log: log}); err != nil {
		return err
	}
	h.own(h.ledger.Close)
	if h.node, err = dir.OpenNode(ctx, state.NodeOptions{Kind: s.Node, API: s.IPFSAPI, Network: ipfs.Network(s.Network), Peers: s.Peers, Share: s.share, Log: log}); err != nil {
		return err
	}
	h.own(h.node.Close)
	info, err := h.node.Info(ctx)
	if err != nil {
		return err
	}
	if h.follower, err = follow.New(follow.Options{
		Ledger: h.ledger, Upstream: up, Node: h.node, Log: log, Progress: progress.Update,
		Signature: state.NewSignatures(up, npm.PreferSignatures, log).Check, Free: dir.Free(h.node),
	}); err != nil {
		return err
	}
	if h.key, err = ipnskeys.Find(dir.Keys(), s.name); errors.Is(err, ipnskeys.ErrNoKey) {
		if h.key, err = publish.Mint(dir.Keys(), s.name, dir.Journal(s.name)); err == nil {
			err = tellMinted(s.notices, h.key) // at once: this run may end before it serves
		}
	}
	if err != nil {
		return err
	}
	identities, err := ipnskeys.Opening{
		Identities: s.identities, Credentials: os.Getenv("CREDENTIALS_DIRECTORY"),
		Passphrase: func() (string, error) { return cli.ReadPassphrase(ctx, "Passphrase of the key "+s.name+": ") },
	}.Read(s.name)
	if err != nil {
		return err
	}
	signer, err := ipnskeys.Load(ctx, dir.Keys(), s.name, identities...)
	if err != nil {
		return err
	}
	former := make([]publish.Former, len(h.key.Former))
	for i, f := range h.key.Former {
		former[i] = publish.Former{IPNSName: f.IPNSName, Journal: publish.JournalOf(dir.Journal(s.name), f.Number), Until: f.Until}
		if !time.Now().Before(f.Until) {
			continue
		}
		// Without it that name is not kept up, which is said, and nothing else.
		if before, err := ipnskeys.LoadFormer(ctx, dir.Keys(), s.name, f.IPNSName, identities...); err == nil {
			former[i].Signer = before
		} else {
			log.WarnContext(ctx, "a former key does not open", "name", f.IPNSName.String(), "error", err)
		}
	}
	if h.index, err = state.Open(ctx, dir, "publisher", index.ErrLocked, func() (*index.Index, error) {
		return publish.OpenIndex(dir.Index(s.name), s.origin, h.key.IPNSName, log, h.key.Names()[:h.key.Number-1]...)
	}); err != nil {
		return err
	}
	h.own(h.index.Close)
	rules, called, err := policy.Read(s.Settings.Registries[s.name].Policy, s.name)
	if err != nil {
		return cli.Usagef("%s: %s: %w", s.Settings.File, cli.PolicyTable(s.name), err)
	}
	h.publisher = publish.New(publish.Options{
		Registry: s.name, Policy: rules, PolicyName: called, Ledger: h.ledger, Index: h.index, Node: h.node, Signer: signer, Next: h.key.Next, Former: former,
		Journal: publish.JournalOf(dir.Journal(s.name), h.key.Number), Peers: info.Addrs, Retain: publish.DefaultRetain, Log: log,
		Progress: func(p publish.Progress) { progress.Update("building", p.Done, p.Total, 0) },
		Keys:     dir.RegistryKeys,
	})
	return s.openPull(h, rules)
}

// openPull opens the pull-through, where there is to be one. It serves what it fetched
// before that is in any release, and so around a policy; what a rollback took back the
// mirror leaves out of it, see rolledBack.
func (s *upSettings) openPull(h *house, rules *policy.Policy) error {
	follows := rules.Canonical()
	if rules == nil {
		var err error
		if follows, err = h.publisher.Policy(); err != nil {
			return err
		}
	}
	switch {
	case follows != "" && s.pull && s.pullSet:
		return cli.Hint(cli.Usagef("--pull-through: registry %s has a policy, and would be served around it", s.name), "leave it out, or give the registry of another --name no policy")
	case follows != "":
		s.pull = false
	case s.pull:
		h.pull = follow.NewPullThrough(h.follower)
		h.own(h.pull.Close)
	}
	return nil
}

// filledMark is the ledger's cursor that says for which selection everything
// was fetched once.
const filledMark = ledger.MarkPrefix + "selection"

// fill adds wants and fetches what is missing of the whole selection. Where it
// was all fetched before, the follower looks for newer versions later, beside
// serving: a second start must not wait for that.
func (h *house) fill(ctx context.Context, wants []ledger.Want) error {
	if len(wants) > 0 {
		if _, err := h.ledger.AddWants(ctx, wants...); err != nil {
			return err
		}
	}
	all, err := h.ledger.Wants(ctx)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	mark := hex.EncodeToString(sum[:])
	if have, ok := h.ledger.Cursor(filledMark); ok && have == mark {
		return nil
	}
	if err := h.follower.Fill(ctx); err != nil {
		return err
	}
	if h.ledger.Counts().Retrying > 0 {
		return nil // not all of it came; the next start tries again
	}
	_, err = h.ledger.Commit(ctx, ledger.Batch{Cursor: &ledger.Cursor{Feed: filledMark, Value: mark}})
	return err
}

// hold is mirror.ErrOtherIntegrity where lockfiles mean other bytes than those stored.
func (h *house) hold(ctx context.Context, locked []mirror.Bundled) error {
	var other []error
	for _, b := range locked {
		p, err := h.ledger.Package(ctx, b.Name)
		if errors.Is(err, ledger.ErrNotFound) {
			continue // it is missing, which is told
		}
		if err != nil {
			return err
		}
		err = b.Hold(func(version string) (npm.Dist, bool) {
			i := slices.IndexFunc(p.Versions, func(v ledger.Version) bool { return v.Version == version })
			if i < 0 {
				return npm.Dist{}, false
			}
			return npm.Dist{Integrity: p.Versions[i].Integrity, Shasum: p.Versions[i].Shasum}, true
		})
		if err != nil {
			other = append(other, err)
		}
	}
	return mirror.OtherIntegrity(other)
}

// missing is one thing that is selected and could not be had.
type missing struct {
	Name    npm.Name `json:"name"`
	Version string   `json:"version,omitempty"` // "" for the whole package
	Reason  string   `json:"reason"`
	Waiting bool     `json:"waiting,omitempty"` // it is tried again
}

func (m missing) String() string { return m.spec() + ": " + m.Reason }

// spec names it as people type it.
func (m missing) spec() string {
	if m.Version == "" {
		return string(m.Name)
	}
	return string(m.Name) + "@" + m.Version
}

// missing lists what was refused, then what waits to be tried again.
func (h *house) missing(ctx context.Context) ([]missing, error) {
	refused, err := h.ledger.Refused(ctx)
	if err != nil {
		return nil, err
	}
	waiting, err := h.ledger.Retries(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]missing, 0, len(refused)+len(waiting))
	for _, r := range refused {
		list = append(list, missing{r.Name, r.Version, r.Reason, false})
	}
	for _, r := range waiting {
		list = append(list, missing{r.Name, r.Version, r.Detail, true})
	}
	return list, nil
}

// nothing is the error where there is nothing at all to serve.
func (h *house) nothing(list []missing) error {
	for _, m := range list {
		if m.Waiting {
			return fmt.Errorf("fetch from %s: %w", h.registry, upstream.ErrUnavailable)
		}
	}
	return cli.Hint(fmt.Errorf("nothing of what is selected can be had from %s: %s", h.registry, list[0]), "`follower remove NAME` takes a misspelt name out of the selection")
}

// openMirror opens the mirror that this state has of the registry, if under a former
// name, which it then follows to the one that the registry has.
func (h *house) openMirror(ctx context.Context, dir state.Dir, result publish.Result, trusted proxies, log *slog.Logger) error {
	names := h.key.Names()
	for _, begun := range names {
		last := begun.Equal(result.Name)
		if _, err := os.Stat(dir.Mirror(begun.String())); err != nil && !last {
			continue
		}
		o := mirror.Options{Dir: dir.Mirror(begun.String()), Name: begun, Node: h.node, HoldsAll: true, TrustedProxies: trusted, Attestations: h.attestations, Background: h.background, Log: log}
		if h.pull != nil {
			o.Origin, o.Withheld = h.pull, h.rolledBack
		}
		m, err := mirror.Open(o)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(names, func(n ipns.Name) bool { return n.String() == m.Status(ctx).Name })
		if at >= 0 && at < len(names)-1 {
			err = m.FollowTo(ctx, names[at+1])
		}
		if errors.Is(err, mirror.ErrNoSuccessor) && !last { // it never saw the promise
			if err := m.Close(); err != nil {
				return err
			}
			continue
		}
		h.mirror = m
		h.own(m.Close)
		if err != nil {
			return err
		}
		break
	}
	return h.mirror.Sync(ctx)
}

// rolledBack says that a package stands as a rollback put it: what the pull-through
// could give beside that would be served around it.
func (h *house) rolledBack(name npm.Name) (string, error) {
	w, ok, err := h.publisher.RolledBack(name)
	if err != nil || !ok {
		return "", err
	}
	return w.Reason + " (" + w.Detail + ")", nil
}

// background is what the ledger and the publisher know of a package.
func (h *house) background(ctx context.Context, name npm.Name) (mirror.Background, error) {
	known := mirror.Background{FirstSeen: map[string]time.Time{}}
	p, err := h.ledger.Package(ctx, name)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return known, err
	}
	for _, v := range p.Versions {
		known.FirstSeen[v.Version] = v.FirstSeen
	}
	for _, v := range p.Dropped {
		known.NotListed = append(known.NotListed, mirror.Held{Version: v.Version, Reason: "removed", Detail: "upstream took it back after it was stored"})
	}
	if err := h.selected(ctx, name, &known); err != nil {
		return known, err
	}
	waiting, err := h.ledger.Queue(ctx, name)
	if err != nil {
		return known, err
	}
	for _, r := range waiting {
		switch {
		case r.Version == "" && p.Held > 0: // its document is asked for again
		case r.Fresh():
			known.NotListed = append(known.NotListed, mirror.Held{Version: r.Version, Reason: "queued", Detail: "since " + cli.Time(r.Queued)})
		default:
			known.NotListed = append(known.NotListed, mirror.Held{Version: r.Version, Reason: "retrying",
				Detail: fmt.Sprintf("attempt %d failed: %s; next at %s", r.Attempts, r.Detail, cli.Time(r.Next))})
		}
	}
	refused, err := h.ledger.Refusals(ctx, name)
	if err != nil {
		return known, err
	}
	for _, r := range refused {
		known.NotListed = append(known.NotListed, mirror.Held{Version: r.Version, Reason: r.Reason, Detail: r.Detail})
	}
	withheld, err := h.publisher.WithheldOf(name)
	for _, w := range withheld {
		if w.Listed {
			known.Unlisted = mirror.Held{Reason: w.Reason, Detail: fmt.Sprintf(
				"it is stored, and release %d, a rollback, keeps it out: the package stands %s until it changes upstream; `publisher rollback` to a release that had it takes it back", w.Release, w.Detail)}
			continue
		}
		known.NotListed = append(known.NotListed, mirror.Held{Version: w.Version, Reason: w.Reason, Detail: w.Detail})
	}
	return known, err
}

// selected puts into known what the selection asks for of a package.
func (h *house) selected(ctx context.Context, name npm.Name, known *mirror.Background) error {
	wants, err := h.ledger.Wants(ctx)
	if err != nil {
		return err
	}
	known.Ledger = true
	for _, w := range wants {
		switch {
		case w.All():
			known.Selection = append(known.Selection, "every package")
		case w.Scope != "" && w.Scope == name.Scope():
			known.Selection = append(known.Selection, w.Scope)
		case w.Spec.Name == name:
			known.Selection = append(known.Selection, w.Spec.String())
			if !w.Every && !w.Exact && !w.Known {
				known.Choices = append(known.Choices, w.Spec)
			}
		}
	}
	return nil
}

// measure writes --metrics. That it cannot be written is said, and stops nothing.
func (s *upSettings) measure(ctx context.Context, log *slog.Logger, result publish.Result, err error) {
	if s.metrics == "" {
		return
	}
	o := publish.Outcome{Registry: s.name, Result: result, Err: err, Code: cli.Code(err, causes), Ended: time.Now()}
	if err := publish.WriteMetrics(s.metrics, o); err != nil {
		log.WarnContext(ctx, "metrics not written", "error", err)
	}
}

// run runs the three loops in group, until ctx ends or one of them fails. measure
// hears of each run of the publisher.
func (h *house) run(ctx context.Context, group *errgroup.Group, measure func(publish.Result, error)) {
	group.Go(func() error { return h.mirror.Run(ctx) })
	group.Go(func() error { return h.follower.Run(ctx, false) })
	group.Go(func() error { h.keys(); return nil })
	group.Go(func() error {
		return h.publisher.Run(ctx, publishEvery, func(result publish.Result, err error) {
			measure(result, err)
			if err == nil {
				h.mirror.Refresh()
			}
		})
	})
}

// answer answers other processes in the place of command, until ctx ends.
func answer(ctx context.Context, group *errgroup.Group, dir state.Dir, command string, h http.Handler) error {
	l, err := socket.Listen(dir.Socket(command))
	if err != nil {
		return err
	}
	group.Go(func() error { return socket.Serve(ctx, l, h) })
	return nil
}
