package ipfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	bsmsg "github.com/ipfs/boxo/bitswap/message"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
)

var (
	// ErrNoPeers is returned by Find where nobody can be asked.
	ErrNoPeers = errors.New("no peer is connected")
	// ErrLacking is returned by Find for a block that every connected peer says it lacks.
	ErrLacking = errors.New("no peer has it")
	// ErrSilent is returned by Find where no peer has said anything for ten seconds. One
	// whose line is slow may yet have it.
	ErrSilent = errors.New("no peer says that it has it")
)

const (
	// alonePatience is how long Find waits for a first peer.
	alonePatience = 2 * time.Second
	// quietPatience is how long Find waits where nobody says yes, and no block of any
	// kind comes meanwhile. A peer that is asked among many says nothing where it has
	// none (bitswap's broadcasts); one that sends may take this long for 1 MiB.
	quietPatience = 10 * time.Second
)

// Find is Get for a caller that has other ways. It ends before ctx does once waiting is
// vain: with ErrNoPeers, with ErrLacking, or with ErrSilent. On a Public node no peer
// speaks for all: there it is ErrSilent, and takes a search of the DHT that has ended;
// without one it waits for ctx, as Get does.
func (n *Embedded) Find(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	w := n.wants.begin(c)
	defer n.wants.end(c)
	n.wg.Go(func() {
		if err := n.vain(ctx, w); err != nil {
			giveUp(err)
		}
	})
	b, err := n.Get(ctx, c)
	if cause := context.Cause(ctx); err != nil && slices.Contains([]error{ErrNoPeers, ErrLacking, ErrSilent}, cause) {
		return nil, fmt.Errorf("block %s: %w", c, cause)
	}
	return b, err
}

// vain returns once it is vain to wait for w, and why; nil when ctx has ended.
func (n *Embedded) vain(ctx context.Context, w *want) error {
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	begun := time.Now()
	company := begun // when there last was a peer
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.ctx.Done():
			return nil
		case now := <-look.C:
			peers := n.host.Network().Peers()
			if len(peers) > 0 {
				company = now
			}
			lacking, quiet := n.wants.state(w, peers, n.network == Public)
			switch {
			case now.Sub(company) >= alonePatience:
				return ErrNoPeers
			case len(peers) > 0 && lacking:
				return ErrLacking
			case !quiet.IsZero() && now.Sub(begun) >= quietPatience && now.Sub(quiet) >= quietPatience:
				return ErrSilent
			}
		}
	}
}

// want is a block that is looked for, and what is known of who has it.
type want struct {
	finds     int                  // that wait for it
	lack      map[peer.ID]struct{} // who said that they lack it
	has       bool                 // somebody said that they have it
	searching int                  // searches for providers under way
	searched  time.Time            // when the last of them ended
}

// wants are those of Find. It hears what peers say (tracer.Tracer), and stands before
// the routing that bitswap asks for providers.
type wants struct {
	routing routing.ContentDiscovery

	mu   sync.Mutex
	of   map[cid.Cid]*want
	came time.Time // when a block came last, of any kind
}

func newWants(r routing.ContentDiscovery) *wants { return &wants{routing: r, of: map[cid.Cid]*want{}} }

func (a *wants) begin(c cid.Cid) *want {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.of[c]
	if w == nil {
		w = &want{lack: map[peer.ID]struct{}{}}
		a.of[c] = w
	}
	w.finds++
	return w
}

func (a *wants) end(c cid.Cid) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.of[c]; w != nil {
		if w.finds--; w.finds == 0 {
			delete(a.of, c)
		}
	}
}

// state says whether all of peers lack w, and since when nothing has come that gives
// hope; zero: there is hope. Where search is set, both need a search that has ended.
func (a *wants) state(w *want, peers []peer.ID, search bool) (lacking bool, quiet time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.has || w.searching > 0 || search && w.searched.IsZero() {
		return false, time.Time{}
	}
	lacking = !search // of the public network no peer knows all
	for _, p := range peers {
		_, lacks := w.lack[p]
		lacking = lacking && lacks
	}
	quiet = a.came
	if w.searched.After(quiet) {
		quiet = w.searched
	}
	if quiet.IsZero() {
		quiet = time.Unix(0, 0) // nothing has ever come
	}
	return lacking, quiet
}

// MessageReceived implements tracer.Tracer.
func (a *wants) MessageReceived(from peer.ID, m bsmsg.BitSwapMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(m.Blocks()) > 0 {
		a.came = time.Now()
	}
	for _, c := range m.Haves() {
		if w := a.of[c]; w != nil {
			w.has = true
		}
	}
	for _, c := range m.DontHaves() {
		if w := a.of[c]; w != nil {
			w.lack[from] = struct{}{}
		}
	}
}

// MessageSent implements tracer.Tracer.
func (*wants) MessageSent(peer.ID, bsmsg.BitSwapMessage) {}

// FindProvidersAsync implements routing.ContentDiscovery.
func (a *wants) FindProvidersAsync(ctx context.Context, c cid.Cid, most int) <-chan peer.AddrInfo {
	a.mu.Lock()
	w := a.of[c]
	if w != nil {
		w.searching++
	}
	a.mu.Unlock()
	found := a.routing.FindProvidersAsync(ctx, c, most)
	if w == nil {
		return found
	}
	all := make(chan peer.AddrInfo)
	go func() {
		defer close(all)
		defer func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			w.searching--
			w.searched = time.Now()
		}()
		for p := range found {
			select {
			case all <- p:
			case <-ctx.Done():
				return
			}
		}
	}()
	return all
}
