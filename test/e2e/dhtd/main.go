// Command dhtd is a small public DHT for the end-to-end scripts: a server of
// /ipfs/kad/1.0.0 at each address that is an argument, all knowing one another. It prints
// the multiaddrs of the servers, one a line, then an empty line; and from then on each
// message that a server gets from somebody else: the message's type, the sender, and the
// CID (as raw CIDv1) or the /ipns/ name that it is about.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dhtd: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addrs []string) error {
	if len(addrs) == 0 {
		return errors.New("usage: dhtd MULTIADDR [MULTIADDR]")
	}
	var hosts []host.Host
	servers := map[peer.ID]bool{}
	for _, a := range addrs {
		h, err := libp2p.New(libp2p.ListenAddrStrings(a), libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ForceReachabilityPublic(),
			libp2p.ResourceManager(&network.NullResourceManager{})) // all come from one address, and the usual bounds are for each
		if err != nil {
			return err
		}
		defer h.Close()
		hosts, servers[h.ID()] = append(hosts, h), true
	}
	var mu sync.Mutex // one line at a time
	out := bufio.NewWriter(os.Stdout)
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, format+"\n", args...)
		out.Flush()
	}
	var tables []*dht.IpfsDHT
	for _, h := range hosts {
		d, err := dht.New(h, dht.Mode(dht.ModeServer),
			dht.Validator(record.NamespacedValidator{"pk": record.PublicKeyValidator{}, "ipns": ipns.Validator{KeyBook: h.Peerstore()}}),
			dht.OnRequestHook(func(_ context.Context, s network.Stream, m *pb.Message) {
				if from := s.Conn().RemotePeer(); !servers[from] {
					say("%s %s %s", m.GetType(), from, about(m))
				}
			}))
		if err != nil {
			return err
		}
		defer d.Close()
		tables = append(tables, d)
	}
	for i, h := range hosts {
		for _, other := range hosts[:i] {
			if err := h.Connect(ctx, peer.AddrInfo{ID: other.ID(), Addrs: other.Addrs()}); err != nil {
				return err
			}
		}
	}
	for _, d := range tables {
		for _, h := range hosts {
			_, _ = d.RoutingTable().TryAddPeer(h.ID(), true, true)
		}
		if err := d.Bootstrap(ctx); err != nil {
			return err
		}
	}
	for i, h := range hosts {
		say("%s/p2p/%s", addrs[i], h.ID())
	}
	say("")
	<-ctx.Done()
	return nil
}

// about is what a message's key means.
func about(m *pb.Message) string {
	switch m.GetType() {
	case pb.Message_ADD_PROVIDER, pb.Message_GET_PROVIDERS:
		if hash, err := mh.Cast(m.GetKey()); err == nil {
			return cid.NewCidV1(cid.Raw, hash).String()
		}
	case pb.Message_PUT_VALUE, pb.Message_GET_VALUE:
		if name, err := ipns.NameFromRoutingKey(m.GetKey()); err == nil {
			return "/ipns/" + name.String()
		}
	}
	return "-"
}
