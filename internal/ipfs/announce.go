package ipfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	"github.com/libp2p/go-libp2p-kad-dht/provider"
	dualprovider "github.com/libp2p/go-libp2p-kad-dht/provider/dual"
	mh "github.com/multiformats/go-multihash"
)

const (
	// maxAnnounced bounds the blocks that one run of a node announces. Each takes some
	// 300 bytes of memory.
	maxAnnounced = 1 << 19
	// announceTick is how long announcements are gathered, so that those of one install
	// are handed over together.
	announceTick = time.Second
	// announceWorkers is how many regions of a DHT are announced to at a time, and
	// announceConns how many servers of each.
	announceWorkers = 2
	announceConns   = 10
)

// Announcer tells others that this machine has blocks. Its methods may run concurrently
// and do not wait for the network.
type Announcer interface {
	// Announce tells of blocks soon, and again as it is forgotten, until they are gone.
	Announce(cids ...cid.Cid)
	// Withdraw ends what Announce began.
	Withdraw(cids ...cid.Cid) error
}

var _ Announcer = (*Embedded)(nil)

// sweeper announces in batches: to each server of the DHT at once all that lies in its
// region, and again every 22 hours, for a server forgets after 48.
type sweeper interface {
	StartProviding(force bool, keys ...mh.Multihash) error
	StopProviding(keys ...mh.Multihash) error
	Close() error
}

// sweeper begins to announce to a node's DHT; on Public to both. What it was given is in
// memory alone: a run announces what it is told to, and nothing of a run before.
func (t *table) sweeper() (sweeper, error) {
	if both, ok := t.routing.(*dual.DHT); ok {
		return dualprovider.New(both,
			dualprovider.WithMaxWorkers(announceWorkers),
			dualprovider.WithDedicatedPeriodicWorkers(1),
			dualprovider.WithDedicatedBurstWorkers(1),
			dualprovider.WithMaxProvideConnsPerWorker(announceConns))
	}
	return provider.New(
		provider.WithHost(t.lan.Host()),
		provider.WithRouter(t.lan),
		provider.WithMessageSender(t.lan.MessageSender()),
		provider.WithSelfAddrs(t.lan.FilteredAddrs),
		provider.WithReplicationFactor(t.lan.BucketSize()),
		provider.WithAddLocalRecord(ownProvider(t.lan)),
		provider.WithMaxWorkers(announceWorkers),
		provider.WithDedicatedPeriodicWorkers(1),
		provider.WithDedicatedBurstWorkers(1),
		provider.WithMaxProvideConnsPerWorker(announceConns))
}

// ownProvider notes in a node's own part of the DHT that it has a block.
func ownProvider(d *dht.IpfsDHT) func(context.Context, mh.Multihash) error {
	return func(ctx context.Context, hash mh.Multihash) error {
		return d.Provide(ctx, cid.NewCidV1(cid.Raw, hash), false)
	}
}

// announcer tells the DHT which blocks a node has. A block that goes is not announced
// again; what was said of it the DHT forgets within two days.
type announcer struct {
	to  sweeper
	log *slog.Logger

	mu    sync.Mutex
	said  map[string]struct{} // multihashes that are announced, or about to be
	todo  map[string]bool     // to be announced: true; to be so no more: false
	limit int                 // maxAnnounced, but in tests
	full  bool                // that there is no room for more was logged
}

func newAnnouncer(t *table, log *slog.Logger) (*announcer, error) {
	to, err := t.sweeper()
	if err != nil {
		return nil, err
	}
	return &announcer{to: to, log: log, said: map[string]struct{}{}, todo: map[string]bool{}, limit: maxAnnounced}, nil
}

// add announces blocks that are not announced yet.
func (a *announcer) add(cids ...cid.Cid) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range cids {
		key := string(c.Hash())
		if _, ok := a.said[key]; ok {
			continue
		}
		if len(a.said) >= a.limit {
			if !a.full {
				a.full = true
				a.log.Warn("no more is announced; what is announced already stays so", "blocks", a.limit)
			}
			return
		}
		a.said[key], a.todo[key] = struct{}{}, true
	}
}

// drop announces a block no more. It is cheap, and so for blocks that never were.
func (a *announcer) drop(hash mh.Multihash) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.said[string(hash)]; ok {
		delete(a.said, string(hash))
		a.todo[string(hash)] = false
	}
}

func (a *announcer) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.said)
}

// run hands over what was added and dropped until ctx ends.
func (a *announcer) run(ctx context.Context) {
	tick := time.NewTicker(announceTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := a.flush(); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "announcing failed", "err", err)
		}
	}
}

func (a *announcer) flush() error {
	a.mu.Lock()
	todo := a.todo
	a.todo = map[string]bool{}
	a.mu.Unlock()
	var start, stop []mh.Multihash
	for key, begin := range todo {
		if begin {
			start = append(start, mh.Multihash(key))
		} else {
			stop = append(stop, mh.Multihash(key))
		}
	}
	var err error
	if len(stop) > 0 {
		err = a.to.StopProviding(stop...)
	}
	if len(start) > 0 {
		err = errors.Join(err, a.to.StartProviding(false, start...))
	}
	return err
}

// Announce implements Announcer: it tells the node's DHT, until Withdraw, until the
// blocks leave the node, or until it is closed. Without EmbeddedOptions.Share it tells
// nobody. It does so of at most 524,288 blocks in one run, and logs once that there are
// more.
func (n *Embedded) Announce(cids ...cid.Cid) {
	if n.announcer != nil {
		n.announcer.add(cids...)
	}
}

// QuietLabel is the label whose pins are announced only where Announce is given them:
// the node does not know whose they are.
const QuietLabel = "registry-mirror-pinned"

// pinsToTell are the roots that are announced because they are pinned.
func (n *Embedded) pinsToTell() (map[cid.Cid]bool, error) {
	pins, err := n.blocks.pins("")
	roots := map[cid.Cid]bool{}
	for _, p := range pins {
		if p.label != QuietLabel {
			roots[p.root] = true
		}
	}
	return roots, err
}

// Withdraw implements Announcer, but for roots that are pinned.
func (n *Embedded) Withdraw(cids ...cid.Cid) error {
	if n.announcer == nil {
		return nil
	}
	pinned, err := n.pinsToTell()
	if err != nil {
		return fmt.Errorf("announce no more: %w", err)
	}
	for _, c := range cids {
		if !pinned[c] {
			n.announcer.drop(c.Hash())
		}
	}
	return nil
}
