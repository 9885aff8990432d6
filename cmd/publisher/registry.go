package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/route"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// registry is the one that a run works on.
type registry struct {
	*cli.Common
	name          string
	gatewayOrigin string
	retain        time.Duration
	routes        []string
	witnesses     []string
	wait          time.Duration
	metrics       string        // file
	identities    []string      // files
	ttl, lifetime time.Duration // of records
	v2Only        bool
	every         time.Duration  // its schedule, or how often to publish at most
	policy        *policy.Policy // nil: as its index has it
	policyName    string
	store         *ledger.Store // of serve, which owns the ledger; nil for others
}

func bindRoutes(cmd *cobra.Command, r *registry) {
	cmd.Flags().StringArrayVar(&r.routes, "route", nil, "where to put the record and read it back beside the node: URL of a delegated routing server, or absolute path of a web server's directory; may be repeated")
}

// bindWitnesses is for what may put a release that is new.
func bindWitnesses(cmd *cobra.Command, r *registry) {
	cmd.Flags().StringArrayVar(&r.witnesses, "witness", nil, "URL of another node's trustless gateway, through which a sample of a new release must be readable before its record is signed; may be repeated")
}

// witness is one that a person named.
func witness(text string) (publish.Witness, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, cli.Hint(cli.Usagef("--witness: %q is no gateway", text), "give its http or https URL, as in http://192.0.2.1:8080")
	}
	return ipfs.NewGateway(text), nil
}

// opened is a publisher with all that it works on.
type opened struct {
	*publish.Publisher
	node     *state.Node
	key      ipnskeys.Key
	progress *cli.Progress
	away     error          // why there is no node to look at; nil where there is one
	close    []func() error // in the order of closing
}

func (o *opened) Close() error {
	var err error
	for _, f := range o.close {
		err = errors.Join(err, f())
	}
	return err
}

// What a run is about to do, and so what open opens for it.
const (
	look     = iota // begins nothing: without an index it is index.ErrNoIndex
	build           // begins an index where there is none
	sign            // build, and opens the key
	rollback        // sign, and begins nothing
	renew           // begins nothing, and opens the key only where it must sign
	tidy            // begins nothing
)

// open opens everything.
func (r *registry) open(ctx context.Context, purpose int, log *slog.Logger, progress *cli.Progress) (_ *opened, err error) {
	dir := state.Dir(r.State)
	o := &opened{progress: progress}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	own := func(f func() error) { o.close = append([]func() error{f}, o.close...) }

	var signer publish.Signer
	if o.key, err = r.find(dir); err != nil {
		return nil, err
	}
	former := r.former(ctx, dir, o.key)
	if _, own := r.Settings.Registries[r.name]; !own && (purpose == sign || purpose == build) && len(r.Settings.Registries) > 0 {
		keys, err := ipnskeys.List(dir.Keys()) // a table may have been meant for this one
		if err != nil {
			return nil, err
		}
		r.warnKeyless(ctx, log, keys)
	}
	switch purpose {
	case renew:
		signer = lateSigner{o.key.IPNSName, func() (publish.Signer, error) { return r.loadKey(ctx, o.key) }}
	case sign, rollback:
		if signer, err = r.loadKey(ctx, o.key); err != nil {
			return nil, err
		}
	}
	routes := make([]route.Router, len(r.routes))
	for i, s := range r.routes {
		if routes[i], err = route.Parse(s, nil); err != nil {
			return nil, err
		}
	}
	witnesses := make([]publish.Witness, len(r.witnesses))
	for i, s := range r.witnesses {
		if witnesses[i], err = witness(s); err != nil {
			return nil, err
		}
	}
	source, err := r.openLedger(ctx, dir)
	if err != nil {
		return nil, err
	}
	own(source.Close)
	var ix *index.Index
	if purpose == look || purpose == rollback || purpose == renew || purpose == tidy {
		ix, err = index.Open(dir.Index(r.name), index.Options{Log: log})
	} else {
		ix, err = publish.OpenIndex(dir.Index(r.name), r.gatewayOrigin, o.key.IPNSName, log, o.key.Names()[:o.key.Number-1]...)
	}
	if err != nil {
		return nil, err
	}
	own(ix.Close)
	node, info, err := r.openNode(ctx, dir, log)
	if purpose == look && errors.Is(err, ipfs.ErrAway) {
		o.away, node, err = err, awayNode{err: err}, nil
	}
	if err != nil {
		return nil, err
	}
	own(node.Close)
	o.node, _ = node.(*state.Node) // nil where it is away
	stage := "building"
	if purpose == rollback {
		stage = "checking"
	}
	keys := dir.RegistryKeys
	if dir.IsHosted(r.name) {
		keys = nil // they sign none of its packages
	}
	o.Publisher = publish.New(publish.Options{
		Registry: r.name, Policy: r.policy, PolicyName: r.policyName, Ledger: source, Index: ix, Node: node, Signer: signer, IPNSName: o.key.IPNSName, Next: o.key.Next, Former: former,
		Journal: journalOf(dir, o.key), TTL: r.ttl, Lifetime: r.lifetime, V2Only: r.v2Only, Peers: info.Addrs, Routes: routes, Witnesses: witnesses, Retain: r.retain, Keys: keys, Log: log,
		Progress:   func(p publish.Progress) { progress.Update(stage, p.Done, p.Total, 0) },
		Collecting: func(stage string, done int) { progress.Update("collecting: "+stage, done, 0, 0) },
	})
	return o, nil
}

// openNode opens the state's node, and asks who it is.
func (r *registry) openNode(ctx context.Context, dir state.Dir, log *slog.Logger) (ipfs.Node, ipfs.Info, error) {
	node, err := dir.OpenNode(ctx, state.NodeOptions{Kind: r.Node, API: r.IPFSAPI, Network: ipfs.Network(r.Network), Peers: r.Peers, Log: log})
	if err != nil {
		return nil, ipfs.Info{}, err
	}
	info, err := node.Info(ctx)
	if err != nil {
		return nil, info, errors.Join(err, node.Close())
	}
	return node, info, nil
}

// awayNode stands for a node that is away, where there is more to look at than that.
type awayNode struct {
	ipfs.Node // nil: nothing else is asked for
	err       error
}

func (n awayNode) Record(context.Context, ipns.Name) ([]byte, error) { return nil, n.err }
func (awayNode) Close() error                                        { return nil }

// journalOf is where the journal of a registry's key lies.
func journalOf(dir state.Dir, k ipnskeys.Key) string {
	return publish.JournalOf(dir.Journal(k.Name), k.Number)
}

// journals are those of all keys that the registry had and has, in order. Where it has
// no key it may have had one.
func (r *registry) journals() []string {
	dir := state.Dir(r.State)
	all := []string{dir.Journal(r.name)}
	if k, err := ipnskeys.Find(dir.Keys(), r.name); err == nil {
		for n := 2; n <= k.Number; n++ {
			all = append(all, publish.JournalOf(all[0], n))
		}
	}
	return all
}

// former are the keys that the registry had before. They are opened only where they
// must sign, with what opens the key; a passphrase is asked for once.
func (r *registry) former(ctx context.Context, dir state.Dir, k ipnskeys.Key) []publish.Former {
	identities := sync.OnceValues(func() ([]age.Identity, error) { return r.opening(ctx).Read(k.Name) })
	all := make([]publish.Former, len(k.Former))
	for i, f := range k.Former {
		load := func() (publish.Signer, error) {
			with, err := identities()
			if err != nil {
				return nil, err
			}
			return ipnskeys.LoadFormer(ctx, k.Dir, k.Name, f.IPNSName, with...)
		}
		all[i] = publish.Former{
			IPNSName: f.IPNSName, Signer: lateSigner{f.IPNSName, load},
			Journal: publish.JournalOf(dir.Journal(k.Name), f.Number), Until: f.Until,
		}
	}
	return all
}

// lateSigner opens a key when something is to be signed.
type lateSigner struct {
	name ipns.Name
	load func() (publish.Signer, error)
}

func (s lateSigner) IPNSName() ipns.Name { return s.name }

func (s lateSigner) Sign(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
	signer, err := s.load()
	if err != nil {
		return nil, err
	}
	return signer.Sign(value, seq, eol, ttl)
}

func (s lateSigner) SignV2Only(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
	signer, err := s.load()
	if err != nil {
		return nil, err
	}
	return signer.SignV2Only(value, seq, eol, ttl)
}

// loadKey opens a key. One whose public.json alone is here signs elsewhere.
func (r *registry) loadKey(ctx context.Context, k ipnskeys.Key) (*ipnskeys.Signer, error) {
	s, err := r.opening(ctx).Load(ctx, k.Dir, k.Name)
	if _, gone := os.Lstat(k.File); err != nil && errors.Is(gone, fs.ErrNotExist) && k.Signer == ipnskeys.SignerFile {
		err = cli.Hint(fmt.Errorf("%w: %w", publish.ErrSigner, err),
			"is its private key on another machine? `publisher record draft` writes what `record sign` signs there")
	}
	return s, err
}

// find gives what may be known of the registry's key. ErrNoKey says which keys
// there are, and how to mint this one.
func (r *registry) find(dir state.Dir) (ipnskeys.Key, error) {
	k, err := ipnskeys.Find(dir.Keys(), r.name)
	if !errors.Is(err, ipnskeys.ErrNoKey) {
		return k, err
	}
	mint := "`publisher key new`"
	if r.name != defaultName {
		mint = "`publisher key new --name " + r.name + "`"
	}
	hint := mint + " mints it"
	if others, err := ipnskeys.List(dir.Keys()); err == nil && len(others) > 0 {
		names := make([]string, len(others))
		for i, other := range others {
			names[i] = other.Name
		}
		hint = "this state has keys of " + strings.Join(names, ", ") + ": name one of them with --name; or " + mint + " mints this one"
	}
	return k, cli.Hint(err, hint)
}

type closingLedger interface {
	publish.Ledger
	Close() error
}

// lent is a ledger that stays open.
type lent struct{ *ledger.Store }

func (lent) Close() error { return nil }

// openLedger asks who owns the registry's ledger, else opens it: the registry's own
// where it is one that is published to, the follower's otherwise.
func (r *registry) openLedger(ctx context.Context, dir state.Dir) (closingLedger, error) {
	ask := func(c *ledger.Client) closingLedger { return c }
	switch {
	case r.store != nil:
		return lent{r.store}, nil
	case dir.IsHosted(r.name):
		return state.ReachHostedLedger(ctx, dir, r.name, ask,
			func() (closingLedger, error) { return ledger.Open(dir.HostedLedger(r.name), ledger.Options{}) })
	}
	return state.ReachLedger(ctx, dir, ask, func() (closingLedger, error) { return ledger.Open(dir.Ledger(), ledger.Options{}) })
}
