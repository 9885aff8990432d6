package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// NodeOptions are what a command asks of its node. Empty fields mean what the
// state recorded, else the default.
type NodeOptions struct {
	Kind           string       // "embedded" or "kubo"
	API            string       // of the Kubo daemon
	Network        ipfs.Network // of the embedded node
	DefaultNetwork ipfs.Network // of an embedded node that is made now; "" is local
	Peers          []string     // multiaddrs to dial
	Share          bool         // see ShareUsage
	Offline        bool         // an embedded node of this process talks to nobody
	Log            *slog.Logger
}

// ShareUsage is the help of --share.
const ShareUsage = "announce what is held and published to the network, and on the public one serve it to everybody: others then see this machine's address and which packages it has"

// Node is the state's node. Close ends what this process runs of it.
type Node struct {
	ipfs.Node
	Kind string

	stop   context.CancelFunc // nil where the node is another process's
	served chan error         // what serving the API ended with
}

// OpenNode reaches the state's node: the Kubo daemon; or the embedded node
// that another command runs; or, where none runs, the embedded node in this
// process, which then answers the others until Close.
func (d Dir) OpenNode(ctx context.Context, o NodeOptions) (*Node, error) {
	if err := d.Make(); err != nil {
		return nil, err
	}
	c, err := d.chosen(choice{Node: o.Kind, API: o.API})
	if err != nil {
		return nil, err
	}
	n := &Node{Kind: c.Node}
	if c.Node == "kubo" {
		if n.Node, err = ipfs.OpenKubo(ctx, ipfs.KuboOptions{API: c.API}); err != nil {
			return nil, err
		}
	} else if err := d.openEmbedded(ctx, n, o); err != nil {
		return nil, err
	}
	if n.stop != nil {
		return n, nil // a node of this process dials its peers itself
	}
	for _, addr := range o.Peers {
		dial, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := n.Connect(dial, addr)
		cancel()
		if err != nil {
			o.Log.WarnContext(ctx, "peer not reached", "peer", addr, "err", err)
		}
	}
	return n, nil
}

// openTries bounds how long a command waits for another that is just starting
// or stopping, to about five seconds.
const openTries = 25

func (d Dir) openEmbedded(ctx context.Context, n *Node, o NodeOptions) error {
	for try := 1; ; try++ {
		err := d.tryEmbedded(ctx, n, o)
		if err == nil || !errors.Is(err, ipfs.ErrLocked) && !errors.Is(err, ipfs.ErrAway) || try == openTries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tryEmbedded opens the node, making it on first use, or reaches the process
// that has it.
func (d Dir) tryEmbedded(ctx context.Context, n *Node, o NodeOptions) error {
	options := ipfs.EmbeddedOptions{Dir: d.Node(), Network: o.Network, Peers: o.Peers, Share: o.Share, Offline: o.Offline, Log: o.Log}
	own, err := ipfs.OpenEmbedded(ctx, options)
	if errors.Is(err, ipfs.ErrNoNode) {
		if options.Network == "" {
			options.Network = o.DefaultNetwork
		}
		own, err = ipfs.CreateEmbedded(ctx, options)
	}
	if err == nil {
		return n.serve(own)
	}
	if !errors.Is(err, ipfs.ErrLocked) {
		return err
	}
	api, err := ipfs.EmbeddedAPI(d.Node())
	if err != nil {
		return err
	}
	n.Node, err = ipfs.OpenKubo(ctx, ipfs.KuboOptions{API: api})
	return err
}

// serve answers the other commands for as long as the node is open: longer
// than OpenNode's context, for what is being stopped may still need the node.
func (n *Node) serve(own *ipfs.Embedded) error {
	api, err := own.ListenAPI()
	if err != nil {
		return errors.Join(err, own.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	n.Node, n.stop, n.served = own, stop, make(chan error, 1)
	go func() { n.served <- api.Serve(ctx) }()
	return nil
}

// KeepRecord has the node keep a record for its neighbours, where it can: an
// embedded node of this process does, a Kubo daemon has no way that tells nobody.
func (n *Node) KeepRecord(ctx context.Context, name ipns.Name, record []byte) error {
	if own, ok := n.Node.(*ipfs.Embedded); ok {
		return own.KeepRecord(ctx, name, record)
	}
	return nil
}

// Find is the node's Get, which ends as soon as waiting is vain where the node is an
// embedded one of this process; any other says nothing until ctx ends.
func (n *Node) Find(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if own, ok := n.Node.(*ipfs.Embedded); ok {
		return own.Find(ctx, c)
	}
	return n.Get(ctx, c)
}

// Evictor is what takes blocks out of the node: nil where the node is Kubo or another
// process's, whose garbage is its own.
func (n *Node) Evictor() ipfs.Evictor {
	if own, ok := n.Node.(*ipfs.Embedded); ok {
		return own
	}
	return nil
}

// Announcer is what tells the node's network which blocks are here: nil where the node
// is Kubo, which has its own Provide.Strategy, or another process's.
func (n *Node) Announcer() ipfs.Announcer {
	if own, ok := n.Node.(*ipfs.Embedded); ok {
		return own
	}
	return nil
}

// Own says whether the node runs in this process, and so as long as it.
func (n *Node) Own() bool { return n.stop != nil }

// Close stops answering the others, then closes the node.
func (n *Node) Close() error {
	var served error
	if n.stop != nil {
		n.stop()
		served = <-n.served
	}
	if err := errors.Join(served, n.Node.Close()); err != nil {
		return fmt.Errorf("close the node: %w", err)
	}
	return nil
}
