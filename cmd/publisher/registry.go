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
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
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
	switch purpose {
	case renew:
		signer = lateSigner{o.key, func() (publish.Signer, error) { return r.loadKey(ctx, o.key) }}
	case sign, rollback:
		if signer, err = r.loadKey(ctx, o.key); err != nil {
			return nil, err
		}
	}
	routes := make([]publish.Router, len(r.routes))
	for i, s := range r.routes {
		if routes[i], err = publish.ParseRouter(s, nil); err != nil {
			return nil, err
		}
	}
	witnesses := make([]publish.Witness, len(r.witnesses))
	for i, s := range r.witnesses {
		if witnesses[i], err = witness(s); err != nil {
			return nil, err
		}
	}
	source, err := openLedger(ctx, dir)
	if err != nil {
		return nil, err
	}
	own(source.Close)
	var ix *index.Index
	if purpose == look || purpose == rollback || purpose == renew || purpose == tidy {
		ix, err = index.Open(dir.Index(r.name), index.Options{Log: log})
	} else {
		ix, err = publish.OpenIndex(dir.Index(r.name), r.gatewayOrigin, o.key.IPNSName, log)
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
	stage := "building"
	if purpose == rollback {
		stage = "checking"
	}
	o.Publisher = publish.New(publish.Options{
		Registry: r.name, Policy: r.policy, PolicyName: r.policyName, Ledger: source, Index: ix, Node: node, Signer: signer, IPNSName: o.key.IPNSName, Next: o.key.Next,
		Journal: dir.Journal(r.name), TTL: r.ttl, Lifetime: r.lifetime, V2Only: r.v2Only, Peers: info.Addrs, Routes: routes, Witnesses: witnesses, Retain: r.retain, Keys: dir.RegistryKeys, Log: log,
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

// lateSigner opens a key when something is to be signed.
type lateSigner struct {
	key  ipnskeys.Key
	load func() (publish.Signer, error)
}

func (s lateSigner) IPNSName() ipns.Name { return s.key.IPNSName }

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
			"is its private key on another machine? `publisher record draft` writes what `publisher record sign` signs there")
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

// openLedger asks the running follower, else opens its ledger.
func openLedger(ctx context.Context, dir state.Dir) (closingLedger, error) {
	return state.ReachLedger(ctx, dir, func(c *ledger.Client) closingLedger { return c },
		func() (closingLedger, error) { return ledger.Open(dir.Ledger(), ledger.Options{}) })
}
