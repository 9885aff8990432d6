package ipfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
)

var (
	// ErrNoNode is returned by OpenEmbedded for a directory without a node.
	ErrNoNode = errors.New("no embedded node was made here")
	// ErrNetwork is returned by OpenEmbedded for a node that was made for
	// another network. A node keeps its network, and so its blocks.
	ErrNetwork = errors.New("this node was made for another network")
	// ErrExists is returned by CreateEmbedded for a directory with a node.
	ErrExists = errors.New("an embedded node exists here")
)

// EmbeddedOptions says which node to make or open. All but Dir have defaults.
type EmbeddedOptions struct {
	Dir string // the node's own directory, 0700

	// Network is chosen by CreateEmbedded ("": Local) and recorded;
	// OpenEmbedded takes the recorded one, and refuses another.
	Network Network
	// Listen is the multiaddrs to listen on. By default, free ports chosen at
	// the first start and kept.
	Listen []string
	// GatewayListen is the host:port of HTTP for peers, "off" for none. By
	// default, 127.0.0.1 with a free port chosen at the first start and kept.
	GatewayListen string
	// Peers (multiaddrs with /p2p/ID) are dialled, and dialled again when lost.
	Peers []string
	// Bootstrap (likewise) is where a Public node enters the DHT; by default
	// libp2p's public bootstrap peers.
	Bootstrap []string
	// Share makes the node announce pinned roots, and what Announce is given, to
	// its network's DHT; and a Public one serve its blocks to everybody. Without it
	// that serves private addresses and the peers that it dialled itself.
	Share bool
	// Offline keeps this run of the node off every network: it listens nowhere, and
	// knows no peers. What is recorded of the node stays as it is.
	Offline bool
	// CacheSize is the memory for blocks read lately, in bytes; 0 means 32 MiB.
	CacheSize int64
	// Log receives what goes wrong in the background. nil discards.
	Log *slog.Logger
}

// Embedded is an IPFS node in this process: libp2p, bitswap, a DHT and blocks
// in Pebble and CAR files. It has one owner, the process that opened it; others reach it
// through the socket of ListenAPI.
type Embedded struct {
	dir     string
	network Network
	share   bool
	log     *slog.Logger

	lock   *pebble.Lock
	blocks *store
	host   host.Host
	table  *table
	swap   *bitswap.Bitswap
	wants  *wants // what Find looks for
	// announcer is nil without Share.
	announcer *announcer

	gateway    string // base URL, "" where off
	gatewaySrv *http.Server

	names    *recordCache
	recordMu sync.Mutex // one PutRecord at a time compares and stores
	// strangers are the names whose records strangers brought, with the ends of
	// their lives. Guarded by recordMu once the node is open.
	strangers    map[ipns.Name]time.Time
	maxStrangers int // fixed after open; tests shorten it

	// session asks peers for blocks; see exchange.
	sessionMu  sync.Mutex
	session    exchange.Fetcher
	sessionEnd context.CancelFunc
	sessionAge time.Time

	dialled sync.Map // peer.ID -> struct{}: peers that this node chose itself

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

var (
	_ Node      = (*Embedded)(nil)
	_ Collector = (*Embedded)(nil)
)

// CreateEmbedded makes a node in o.Dir and opens it. A directory with a node
// is ErrExists; what an interrupted CreateEmbedded left is taken up.
func CreateEmbedded(ctx context.Context, o EmbeddedOptions) (*Embedded, error) {
	if o.Network == "" {
		o.Network = Local
	}
	if err := o.Network.valid(); err != nil {
		return nil, err
	}
	lock, err := lockNode(o.Dir)
	if err != nil {
		return nil, err
	}
	n, err := create(ctx, o, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return n, nil
}

func create(ctx context.Context, o EmbeddedOptions, lock *pebble.Lock) (*Embedded, error) {
	_, err := readState(o.Dir)
	if err == nil {
		return nil, fmt.Errorf("%s: %w", o.Dir, ErrExists)
	}
	if !errors.Is(err, ErrNoNode) {
		return nil, err
	}
	// The identity first, then the state that makes the directory a node.
	if err := mintIdentity(o.Dir); err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	st := state{Format: stateFormat, Network: o.Network}
	if err := st.write(o.Dir); err != nil {
		return nil, err
	}
	return open(ctx, o, st, lock)
}

// OpenEmbedded opens the node in o.Dir: ErrNoNode where there is none,
// ErrLocked while another process has it. The node listens and serves from
// then on, until Close.
func OpenEmbedded(ctx context.Context, o EmbeddedOptions) (*Embedded, error) {
	st, err := readState(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Network != "" && o.Network != st.Network {
		return nil, fmt.Errorf("%s: %w: %q, not %q", o.Dir, ErrNetwork, st.Network, o.Network)
	}
	lock, err := lockNode(o.Dir)
	if err != nil {
		return nil, err
	}
	n, err := open(ctx, o, st, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return n, nil
}

// lockNode takes the lock of the node in dir, which is Pebble's own. A node whose
// blocks were moved away is one that has none.
func lockNode(dir string) (*pebble.Lock, error) {
	if dir == "" {
		return nil, errors.New("the embedded node needs a directory")
	}
	path := filepath.Join(dir, blocksDir)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	lock, err := pebble.LockDirectory(path, vfs.Default)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", dir, ErrLocked, err)
	}
	return lock, nil
}

// open starts the node. On an error it has closed all but the lock.
func open(_ context.Context, o EmbeddedOptions, st state, lock *pebble.Lock) (_ *Embedded, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	key, err := readIdentity(o.Dir)
	if err != nil {
		return nil, err
	}
	kept := st // what is written again: an offline run changes nothing of it
	if o.Offline {
		st.Network, st.Listen, st.Gateway = Local, nil, ""
		o.Listen, o.GatewayListen, o.Peers, o.Share = nil, "off", nil, false
	}
	n := &Embedded{dir: o.Dir, network: st.Network, share: o.Share, log: o.Log, lock: lock, names: newRecordCache(), maxStrangers: maxStrangers}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.lock = nil // the caller's until open succeeds
			err = errors.Join(err, n.Close())
		}
	}()
	peers, err := addrInfos(o.Peers)
	if err != nil {
		return nil, err
	}
	n.blocks, err = openStore(vfs.Default, filepath.Join(o.Dir, blocksDir), lock, o.CacheSize, o.Log)
	if err != nil {
		return nil, err
	}
	if err := n.loadStrangers(); err != nil {
		return nil, fmt.Errorf("strangers' records: %w", err)
	}
	var listen []string
	n.host, listen, err = newHost(key, o, st, n.log)
	if err != nil {
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	n.table, err = newTable(n.host, n.network, o, n.blocks.db)
	if err != nil {
		return nil, fmt.Errorf("start the DHT: %w", err)
	}
	n.wants = newWants(n.table.routing)
	n.swap = bitswap.New(n.ctx, bsnet.NewFromIpfsHost(n.host), n.wants, n.blocks,
		bitswap.WithPeerBlockRequestFilter(n.serves),
		bitswap.WithTracer(n.wants),
		bitswap.WithoutDuplicatedBlockStats())
	listener, err := listenGateway(o, st, n.log)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	if !o.Offline {
		kept.Listen = listen
	}
	if listener != nil {
		kept.Gateway = listener.Addr().String()
		if err := n.serveGateway(listener); err != nil {
			return nil, errors.Join(err, listener.Close())
		}
	}
	kept.Format = stateFormat
	if err := kept.write(o.Dir); err != nil {
		return nil, err
	}
	n.host.SetStreamHandler(recordProtocol, n.serveRecords)
	if err := n.table.start(n.ctx); err != nil {
		return nil, fmt.Errorf("start the DHT: %w", err)
	}
	if n.share {
		if n.announcer, err = newAnnouncer(n.table, n.log); err != nil {
			return nil, fmt.Errorf("announce to the DHT: %w", err)
		}
		n.blocks.gone = n.announcer.drop
		pinned, err := n.pinsToTell()
		if err != nil {
			return nil, fmt.Errorf("announce what is pinned: %w", err)
		}
		n.Announce(slices.Collect(maps.Keys(pinned))...)
	}
	if n.network == LAN {
		n.wg.Go(n.meet)
	}
	n.wg.Go(n.settle)
	for _, p := range peers {
		n.wg.Go(func() { n.keepPeer(n.ctx, p) })
	}
	if n.announcer != nil {
		n.wg.Go(func() { n.announcer.run(n.ctx) })
	}
	return n, nil
}

// Close ends the node: what was put is durable, and the directory may be
// opened again.
func (n *Embedded) Close() error {
	n.cancel()
	var errs []error
	if n.gatewaySrv != nil {
		errs = append(errs, n.gatewaySrv.Close())
	}
	n.wg.Wait()
	n.sessionMu.Lock()
	if n.sessionEnd != nil {
		n.sessionEnd()
	}
	n.sessionMu.Unlock()
	if n.swap != nil {
		errs = append(errs, n.swap.Close())
	}
	if n.announcer != nil {
		errs = append(errs, n.announcer.to.Close())
	}
	if n.table != nil {
		errs = append(errs, n.table.Close())
	}
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	if n.blocks != nil {
		errs = append(errs, n.blocks.Close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
		n.lock = nil
	}
	return errors.Join(errs...)
}

// settle makes durable, every few seconds, what was put without a Checkpoint:
// what a mirror fetched from its peers would otherwise be lost in a crash.
func (n *Embedded) settle() {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		if n.blocks.cars.waiting() == 0 {
			continue
		}
		if err := n.blocks.Sync(); err != nil {
			n.log.Error("blocks that were put are lost", "err", err)
		}
	}
}

// Dir is the node's directory.
func (n *Embedded) Dir() string { return n.dir }

// Put implements Node. The blocks are in the system's memory, unsynced, when it
// returns, and peers that wait for them are served. A few seconds later they are
// durable, also without a Checkpoint.
func (n *Embedded) Put(ctx context.Context, blks []blocks.Block) error {
	if err := n.blocks.PutMany(ctx, blks); err != nil {
		return err
	}
	return n.swap.NotifyNewBlocks(ctx, blks...)
}

// Checkpoint implements Node: all earlier Puts and Holds are fsynced together.
func (n *Embedded) Checkpoint(context.Context) error { return n.blocks.checkpoint() }

// Hold implements Node.
func (n *Embedded) Hold(_ context.Context, label string, roots []cid.Cid) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if err := n.blocks.hold(label, roots); err != nil {
		return fmt.Errorf("hold %q: %w", label, err)
	}
	return nil
}

// Unhold implements Node.
func (n *Embedded) Unhold(_ context.Context, label string, roots []cid.Cid) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if err := n.blocks.unhold(label, roots); err != nil {
		return fmt.Errorf("unhold %q: %w", label, err)
	}
	return nil
}

// Free implements Node.
func (n *Embedded) Free(context.Context) (bytes uint64, known bool, err error) {
	bytes, err = FreeSpace(n.dir)
	return bytes, err == nil, err
}

// Local implements Node.
func (n *Embedded) Local(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := wanted{n.blocks}.Get(ctx, c)
	if ipld.IsNotFound(err) {
		return nil, fmt.Errorf("block %s: %w", c, ErrNotFound)
	}
	return b, err
}

// Get implements Node. A corrupt block is fetched again; a block that came
// from a peer is kept.
func (n *Embedded) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := n.Local(ctx, c)
	if err == nil || !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
		return b, err
	}
	b, err = n.exchange().GetBlock(ctx, c)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("fetch block %s: %w: %w", c, ErrNotFound, ctx.Err())
		}
		return nil, fmt.Errorf("fetch block %s: %w", c, err)
	}
	if err := verify(c, b.RawData()); err != nil {
		return nil, err
	}
	return b, n.Put(ctx, []blocks.Block{b})
}

// exchange returns the bitswap session of the moment. One session shared by
// all requests knows which peers answered before, and asks them at once for a
// block instead of asking all who has it: one round trip instead of two. It is
// renewed each minute, so that it neither grows nor clings to a peer.
func (n *Embedded) exchange() exchange.Fetcher {
	n.sessionMu.Lock()
	defer n.sessionMu.Unlock()
	if n.session == nil || time.Since(n.sessionAge) > time.Minute {
		if end := n.sessionEnd; end != nil {
			// Requests of the old session get the time they may still need.
			time.AfterFunc(10*time.Minute, end)
		}
		var ctx context.Context
		ctx, n.sessionEnd = context.WithCancel(n.ctx)
		n.session, n.sessionAge = n.swap.NewSession(ctx), time.Now()
	}
	return n.session
}

// Pin implements Node. A missing block is ErrNotFound and changes nothing. When
// it returns, root and the blocks put before are durable.
func (n *Embedded) Pin(ctx context.Context, label string, near, root cid.Cid) error {
	if err := n.pin(ctx, label, near, root); err != nil {
		return fmt.Errorf("pin %q to %s: %w", label, root, err)
	}
	if label != QuietLabel {
		n.Announce(root)
	}
	return nil
}

func (n *Embedded) pin(ctx context.Context, label string, near, root cid.Cid) error {
	if err := checkPinLabel(label); err != nil {
		return err
	}
	pinned, err := n.blocks.pinned(label)
	if err != nil {
		return err
	}
	if !slices.Contains(pinned, near) {
		near = cid.Undef // nobody says that it is whole
	}
	defer n.blocks.expectPin(root)()
	if err := whole(ctx, wanted{n.blocks}, near, root); err != nil {
		return err
	}
	return n.blocks.pin(label, root)
}

// Unpin implements Node. It is durable when it returns.
func (n *Embedded) Unpin(_ context.Context, label string, root cid.Cid) error {
	if err := n.blocks.unpin(label, root); err != nil {
		return fmt.Errorf("unpin %s from %q: %w", root, label, err)
	}
	if label != QuietLabel {
		return n.Withdraw(root)
	}
	return nil
}

// Pins implements Node.
func (n *Embedded) Pins(_ context.Context, label string) ([]cid.Cid, error) {
	roots, err := n.blocks.pinned(label)
	if err != nil {
		return nil, fmt.Errorf("pins of %q: %w", label, err)
	}
	return roots, nil
}

// Collect implements Collector. It takes some 2 bytes of memory a block, and
// 150 MiB. A block that is held and is not what its CID says is ErrCorrupt, if
// others lie below it: which of them stay would be a guess.
func (n *Embedded) Collect(ctx context.Context, progress func(stage string, done, total int)) (Collected, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	c, err := n.blocks.collect(ctx, progress)
	if err != nil {
		return c, fmt.Errorf("collect garbage: %w", err)
	}
	return c, nil
}

// Connect implements Node. A peer that was connected to may fetch blocks.
func (n *Embedded) Connect(ctx context.Context, addr string) error {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return fmt.Errorf("peer %q: %w", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return n.dial(ctx, *info)
}

func (n *Embedded) dial(ctx context.Context, info peer.AddrInfo) error {
	n.dialled.Store(info.ID, struct{}{})
	if err := n.host.Connect(ctx, info); err != nil {
		return fmt.Errorf("dial %s: %w", info.ID, err)
	}
	n.table.learn(n.host)
	return nil
}

// Info implements Node.
func (n *Embedded) Info(context.Context) (Info, error) {
	info := Info{
		ID:      n.host.ID().String(),
		Agent:   agent(),
		Gateway: n.gateway,
		Peers:   len(n.host.Network().Peers()),
		Durable: true,
		Network: n.network, Share: n.share,
	}
	if n.announcer != nil {
		info.Announced = n.announcer.count()
	}
	for _, a := range n.host.Addrs() {
		info.Addrs = append(info.Addrs, a.String()+"/p2p/"+info.ID)
	}
	return info, nil
}

// agentPrefix begins the agent of embedded nodes, by which Kubo knows one.
const agentPrefix = "registry-mirror/"

func agent() string {
	version := "devel"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = strings.Trim(info.Main.Version, "()")
	}
	return agentPrefix + version
}

// listenGateway opens the HTTP listener, nil where it is off. A port that the
// node chose itself may change when another program took it.
func listenGateway(o EmbeddedOptions, st state, log *slog.Logger) (net.Listener, error) {
	addr := o.GatewayListen
	if addr == "off" {
		return nil, nil
	}
	own := addr == ""
	if own {
		if addr = st.Gateway; addr == "" {
			addr = "127.0.0.1:0"
		}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); st.Network == Local && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s is not a loopback address, and the network is %q", addr, Local)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil && own && st.Gateway != "" {
		log.Warn("the gateway's port is taken, choosing another", "address", addr, "err", err)
		l, err = net.Listen("tcp", net.JoinHostPort(host, "0"))
	}
	return l, err
}
