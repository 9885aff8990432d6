package ipfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Nodes of ours hand the records that they hold to one another, whether a DHT is
// there or not and also once they have expired: the DHT gives no record then, and
// on a network that is cut off nobody can sign another. On a stream of recordProtocol the
// asker writes the multihash of the name, and closes its side; the answer is the
// record, or nothing.
const recordProtocol protocol.ID = "/registry-mirror/record/1"

const (
	maxNeighbours    = 8               // asked at once for one record
	neighbourTimeout = 3 * time.Second // for one to answer
	maxNameBytes     = 128             // of a multihash
)

// serveRecords answers neighbours, those that may have blocks too.
func (n *Embedded) serveRecords(s network.Stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(neighbourTimeout)) // a stream that takes none is one that has ended
	if !n.serves(s.Conn().RemotePeer(), undefined) {
		_ = s.Reset()
		return
	}
	id, err := io.ReadAll(io.LimitReader(s, maxNameBytes+1))
	if err != nil || len(id) > maxNameBytes {
		_ = s.Reset()
		return
	}
	pid, err := peer.IDFromBytes(id)
	if err != nil {
		_ = s.Reset()
		return
	}
	raw, _, err := n.held(ipns.NameFromPeer(pid))
	if err != nil {
		n.log.Warn("a record was not read for a neighbour", "err", err)
	}
	_, _ = s.Write(raw) // it asks again
}

// fromNeighbours gives the records of name that connected nodes of ours hold. They
// are of that name and signed by it; they may have expired.
func (n *Embedded) fromNeighbours(ctx context.Context, name ipns.Name) (records [][]byte) {
	ctx, cancel := context.WithTimeout(ctx, neighbourTimeout)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	asked := 0
	for _, p := range n.host.Network().Peers() {
		if some, err := n.host.Peerstore().SupportsProtocols(p, recordProtocol); err != nil || len(some) == 0 {
			continue
		}
		if asked++; asked > maxNeighbours {
			break
		}
		all.Go(func() {
			raw, err := n.fromNeighbour(ctx, p, name)
			if err != nil {
				n.log.DebugContext(ctx, "a neighbour gave no record", "peer", p.String(), "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			records = append(records, raw)
		})
	}
	all.Wait()
	return records
}

func (n *Embedded) fromNeighbour(ctx context.Context, p peer.ID, name ipns.Name) ([]byte, error) {
	s, err := n.host.NewStream(network.WithNoDial(ctx, "records"), p, recordProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(end)
	}
	_, err = s.Write([]byte(name.Peer()))
	if err == nil {
		err = s.CloseWrite()
	}
	var raw []byte
	if err == nil {
		raw, err = io.ReadAll(io.LimitReader(s, int64(ipns.MaxRecordSize)+1))
	}
	if err == nil && len(raw) == 0 {
		err = ErrNotFound
	}
	if err == nil {
		_, err = checkRecord(name, raw)
	}
	if err != nil && !errors.Is(err, ipns.ErrExpiredRecord) {
		_ = s.Reset()
		return nil, fmt.Errorf("record of %s from %s: %w", name, p, err)
	}
	return raw, nil
}

// KeepRecord keeps a record that came from elsewhere, so that the neighbours get it
// and so does the next start; nobody else is told. One that has expired is kept
// where none is held. It is no error that the node holds a better one.
func (n *Embedded) KeepRecord(_ context.Context, name ipns.Name, raw []byte) error {
	rec, err := checkRecord(name, raw)
	if errors.Is(err, ipns.ErrExpiredRecord) {
		if held, _, heldErr := n.held(name); heldErr != nil || held != nil && !better(name, raw, held) {
			return heldErr
		}
		rec, err = ipns.UnmarshalRecord(raw)
	}
	if err == nil {
		err = n.keepRecord(name, rec, raw, false)
	}
	if err != nil && !errors.Is(err, ErrSuperseded) {
		return fmt.Errorf("keep the record of %s: %w", name, err)
	}
	n.names.drop(name)
	return nil
}
