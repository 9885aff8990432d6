package ipfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	pebbleds "github.com/ipfs/go-ds-pebble"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
)

// errNoDNS is returned for every look-up of a node that keeps off the
// internet.
var errNoDNS = errors.New("this node's network has no DNS")

type noDNS struct{}

func (noDNS) LookupIPAddr(_ context.Context, host string) ([]net.IPAddr, error) {
	return nil, fmt.Errorf("look up %s: %w", host, errNoDNS)
}

func (noDNS) LookupTXT(_ context.Context, host string) ([]string, error) {
	return nil, fmt.Errorf("look up %s: %w", host, errNoDNS)
}

// reach is a node's network as libp2p's connection gater: no address outside
// it is dialled, whoever named it, and none accepted.
type reach func(ma.Multiaddr) bool

func (r reach) InterceptPeerDial(peer.ID) bool                                  { return true }
func (r reach) InterceptAddrDial(_ peer.ID, a ma.Multiaddr) bool                { return r(a) }
func (r reach) InterceptAccept(c network.ConnMultiaddrs) bool                   { return r(c.RemoteMultiaddr()) }
func (r reach) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
func (r reach) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool {
	return true
}

// newHost starts libp2p and returns the addresses it is bound to. Ports that
// the node chose itself are taken again, or others where they are taken.
func newHost(key crypto.PrivKey, o EmbeddedOptions, st state, log *slog.Logger) (host.Host, []string, error) {
	fresh := []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"}
	if st.Network == Local {
		fresh = []string{"/ip4/127.0.0.1/tcp/0"}
	}
	listen := o.Listen
	if len(listen) == 0 {
		listen = st.Listen
	}
	if len(listen) == 0 {
		listen = fresh
	}
	if o.Offline {
		listen = nil
	}
	h, err := startHost(key, st.Network, listen)
	if err != nil && len(o.Listen) == 0 && len(st.Listen) > 0 {
		log.Warn("the node's ports are taken, choosing others", "addresses", st.Listen, "err", err)
		h, err = startHost(key, st.Network, fresh)
	}
	if err != nil {
		return nil, nil, err
	}
	var bound []string
	for _, a := range h.Network().ListenAddresses() {
		bound = append(bound, a.String())
	}
	return h, bound, nil
}

func startHost(key crypto.PrivKey, where Network, listen []string) (host.Host, error) {
	addrs := make([]ma.Multiaddr, len(listen))
	for i, s := range listen {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("listen address %q: %w", s, err)
		}
		if where == Local && !manet.IsIPLoopback(a) {
			return nil, fmt.Errorf("listen address %s is not loopback, and the network is %q", s, Local)
		}
		addrs[i] = a
	}
	cm, err := connmgr.NewConnManager(32, 96)
	if err != nil {
		return nil, err
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent(agent()),
		libp2p.ConnectionManager(cm),
		libp2p.DisableMetrics(),
		libp2p.Transport(quic.NewTransport),
	}
	switch where {
	case Public:
		opts = append(opts, libp2p.Transport(tcp.NewTCPTransport))
	default:
		allow := reach(manet.IsPrivateAddr)
		if where == Local {
			allow = manet.IsIPLoopback
		}
		resolver, err := madns.NewResolver(madns.WithDefaultResolver(noDNS{}))
		if err != nil {
			return nil, err
		}
		opts = append(opts,
			// Without SO_REUSEPORT a port that another node has is an error,
			// and not shared with it.
			libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
			libp2p.ConnectionGater(allow),
			libp2p.MultiaddrResolver(swarm.ResolverFromMaDNS{Resolver: resolver}),
			libp2p.DisableRelay(),
			libp2p.ForceReachabilityPrivate(),
		)
	}
	h, err := libp2p.New(append(opts, libp2p.NoListenAddrs)...)
	if err != nil {
		return nil, err
	}
	// One by one, for libp2p is content when one of several can be bound.
	for _, a := range addrs {
		if err := h.Network().Listen(a); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

// table is the node's DHT: the LAN's (kad/1.0.0 with the extension /lan, as
// Kubo's), and for Public the internet's beside it.
type table struct {
	routing routing.Routing
	lan     *dht.IpfsDHT
	wan     *dht.IpfsDHT // nil but for Public
}

// lanProtocol is what peers speak that hold the LAN's DHT.
const lanProtocol protocol.ID = "/ipfs" + dual.LanExtension + "/kad/1.0.0"

func newTable(h host.Host, where Network, o EmbeddedOptions, db *pebble.DB) (*table, error) {
	// The wrapper is never closed: that would close the Pebble, which is not its.
	kept, err := pebbleds.NewDatastore("", pebbleds.WithPebbleDB(db))
	if err != nil {
		return nil, err
	}
	common := []dht.Option{
		dht.Datastore(namespace.Wrap(kept, ds.NewKey("/dht"))),
		dht.Validator(record.NamespacedValidator{
			"pk":   record.PublicKeyValidator{},
			"ipns": ipns.Validator{KeyBook: h.Peerstore()},
		}),
	}
	if where == Public {
		entry := dht.GetDefaultBootstrapPeerAddrInfos()
		if o.Bootstrap != nil {
			if entry, err = addrInfos(o.Bootstrap); err != nil {
				return nil, err
			}
		}
		wan := []dht.Option{dht.Mode(dht.ModeClient), dht.BootstrapPeers(entry...)}
		d, err := dual.New(h, dual.DHTOption(common...), dual.WanDHTOption(wan...), dual.LanDHTOption(dht.Mode(dht.ModeServer)))
		if err != nil {
			return nil, err
		}
		return &table{routing: d, lan: d.LAN, wan: d.WAN}, nil
	}
	lan := append(common, dht.Mode(dht.ModeServer), dht.ProtocolExtension(dual.LanExtension))
	if where == Local {
		lan = append(lan,
			dht.QueryFilter(func(any, peer.AddrInfo) bool { return true }),
			dht.RoutingTableFilter(func(any, peer.ID) bool { return true }),
			dht.AddressFilter(nil))
	} else {
		lan = append(lan,
			dht.QueryFilter(dht.PrivateQueryFilter),
			dht.RoutingTableFilter(dht.PrivateRoutingTableFilter),
			// A loopback address that a peer names is its own.
			dht.AddressFilter(func(addrs []ma.Multiaddr) []ma.Multiaddr {
				return ma.FilterAddrs(addrs, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })
			}))
	}
	d, err := dht.New(h, lan...)
	if err != nil {
		return nil, err
	}
	return &table{routing: d, lan: d}, nil
}

func (t *table) start(ctx context.Context) error { return t.routing.Bootstrap(ctx) }

func (t *table) Close() error {
	err := t.lan.Close()
	if t.wan != nil {
		err = errors.Join(err, t.wan.Close())
	}
	return err
}

// learn enters connected peers that speak the LAN's DHT into the routing
// table at once; libp2p does so too, some time after a connection.
func (t *table) learn(h host.Host) {
	for _, p := range h.Network().Peers() {
		if t.lan.RoutingTable().Find(p) != "" {
			continue
		}
		spoken, err := h.Peerstore().SupportsProtocols(p, lanProtocol)
		if err != nil || len(spoken) == 0 || t.wan != nil && !dht.PrivateRoutingTableFilter(t.lan, p) {
			continue
		}
		// A full bucket refuses the peer, which is no error here.
		_, _ = t.lan.RoutingTable().TryAddPeer(p, true, true)
	}
}

// put offers a record to both DHTs. Each keeps it in its own store first, for
// peers that come later; that none is there now is no error.
func (t *table) put(ctx context.Context, name ipns.Name, raw []byte) error {
	err := t.lan.PutValue(ctx, string(name.RoutingKey()), raw)
	if errors.Is(err, kbucket.ErrLookupFailure) {
		err = nil
	}
	if t.wan != nil {
		wan := t.wan.PutValue(ctx, string(name.RoutingKey()), raw)
		if !errors.Is(wan, kbucket.ErrLookupFailure) {
			err = errors.Join(err, wan)
		}
	}
	return err
}

// empty reports whether nobody could be asked.
func (t *table) empty() bool {
	return t.lan.RoutingTable().Size() == 0 && (t.wan == nil || t.wan.RoutingTable().Size() == 0)
}

// serves decides whether a peer may have a block: all peers that the node's
// network admits, but on the public one without Share only private addresses
// and peers that this node dialled itself.
func (n *Embedded) serves(p peer.ID, _ cid.Cid) bool {
	if n.network != Public || n.share {
		return true
	}
	if _, ok := n.dialled.Load(p); ok {
		return true
	}
	for _, c := range n.host.Network().ConnsToPeer(p) {
		if manet.IsPrivateAddr(c.RemoteMultiaddr()) {
			return true
		}
	}
	return false
}

// keepPeer dials a peer, and again when it is lost, until ctx ends.
func (n *Embedded) keepPeer(ctx context.Context, p peer.AddrInfo) {
	n.host.ConnManager().Protect(p.ID, "peers")
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = time.Second, 30*time.Second
	away := false
	for ctx.Err() == nil {
		if n.host.Network().Connectedness(p.ID) != network.Connected {
			dialCtx, cancel := context.WithTimeout(ctx, 15*time.Second)
			err := n.dial(dialCtx, p)
			cancel()
			if (err != nil) != away && ctx.Err() == nil {
				if away = err != nil; away {
					n.log.WarnContext(ctx, "peer is away", "peer", p.ID.String(), "err", err)
				} else {
					n.log.InfoContext(ctx, "peer is back", "peer", p.ID.String())
				}
			}
			if err == nil {
				wait.Reset()
			}
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

// lookAround is how often the machine's addresses are compared.
const lookAround = 5 * time.Second

// meet announces this node on the local network and dials those that do, until the node
// is closed. It begins anew whenever the machine's addresses change: the service joins
// the interfaces, and names the addresses, that were there at its start, so that a
// machine which moved to another network would neither be found there nor find anybody.
func (n *Embedded) meet() {
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	var service interface{ Close() error }
	var at []string
	for begun := false; ; begun = true {
		if now := n.addresses(); !begun || !slices.Equal(at, now) {
			at = now
			var err error
			if service != nil {
				_ = service.Close() // it has no error to give
			}
			if service, err = n.startMDNS(); err != nil {
				// No multicast here (a container, say): dialled peers still work.
				n.log.Warn("mDNS is off", "err", err)
				service = nil
			}
		}
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			if service != nil {
				_ = service.Close()
			}
			return
		}
	}
}

// addresses are the machine's, sorted, and those that libp2p takes for the machine's:
// it looks once a minute, and names no other before that.
func (n *Embedded) addresses() (all []string) {
	machine, err := net.InterfaceAddrs()
	listen, listenErr := n.host.Network().InterfaceListenAddresses()
	if err := errors.Join(err, listenErr); err != nil {
		n.log.Debug("not all of the machine's addresses are known", "err", err)
	}
	for _, a := range machine {
		all = append(all, a.String())
	}
	for _, a := range listen {
		all = append(all, a.String())
	}
	slices.Sort(all)
	return all
}

// startMDNS announces this node on the local network as it is now, and dials those that
// do, until what it returns is closed.
func (n *Embedded) startMDNS() (interface{ Close() error }, error) {
	s := mdns.NewMdnsService(n.host, "", found(func(p peer.AddrInfo) {
		if n.ctx.Err() != nil || p.ID == n.host.ID() {
			return
		}
		n.wg.Go(func() {
			ctx, cancel := context.WithTimeout(n.ctx, 15*time.Second)
			defer cancel()
			if err := n.dial(ctx, p); err != nil {
				n.log.DebugContext(ctx, "a peer found by mDNS does not answer", "peer", p.ID.String(), "err", err)
			}
		})
	}))
	if err := s.Start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// found is mdns.Notifee as a function.
type found func(peer.AddrInfo)

func (f found) HandlePeerFound(p peer.AddrInfo) { f(p) }

func addrInfos(addrs []string) ([]peer.AddrInfo, error) {
	var infos []peer.AddrInfo
	for _, a := range addrs {
		info, err := peer.AddrInfoFromString(a)
		if err != nil {
			return nil, fmt.Errorf("peer %q: %w", a, err)
		}
		infos = append(infos, *info)
	}
	return infos, nil
}
