package ipfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/boxo/ipns"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/routing"
)

const (
	// maxStrangers bounds the names whose records the embedded node keeps for
	// strangers, for the gateway takes them from whoever reaches it.
	maxStrangers = 10_000
	// findRecord is how long Record asks the DHT. A search of the public DHT
	// takes some seconds; what was found by then counts.
	findRecord = 10 * time.Second
	// spreadRecord is how long PutRecord offers a record to the DHT.
	spreadRecord = time.Minute
)

// checkRecord refuses what no IPNS node would keep: wrong name or signature,
// expired, or larger than 10 KiB.
func checkRecord(name ipns.Name, raw []byte) (*ipns.Record, error) {
	rec, err := ipns.UnmarshalRecord(raw)
	if err == nil {
		err = ipns.ValidateWithName(rec, name)
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w: %w", name, ErrInvalidRecord, err)
	}
	return rec, nil
}

// better reports whether record a is to be preferred to b, both of one name,
// by the IPNS order: sequence, then EOL. It does not validate them.
func better(name ipns.Name, a, b []byte) bool {
	i, err := (ipns.Validator{}).Select(string(name.RoutingKey()), [][]byte{b, a})
	return err == nil && i == 1
}

func recordKey(name ipns.Name) []byte {
	return append([]byte{recordSpace}, name.RoutingKey()...)
}

func strangerKey(name ipns.Name) []byte {
	return append([]byte{strangerSpace}, name.RoutingKey()...)
}

// held returns the record that is kept for name, nil where there is none, and
// whether it is there as one of our own.
func (n *Embedded) held(name ipns.Name) (raw []byte, own bool, err error) {
	// In this order, for a record moves from the strangers' to ours.
	strangers, err := n.blocks.value(strangerKey(name))
	if err != nil {
		return nil, false, err
	}
	if raw, err = n.blocks.value(recordKey(name)); raw == nil {
		return strangers, false, err
	}
	return raw, true, err
}

// endOfLife of a record that cannot be read has passed.
func endOfLife(raw []byte) (eol time.Time) {
	if rec, err := ipns.UnmarshalRecord(raw); err == nil {
		eol, _ = rec.Validity()
	}
	return eol
}

// loadStrangers reads which strangers' records are kept.
func (n *Embedded) loadStrangers() error {
	n.strangers = map[ipns.Name]time.Time{}
	var bad error
	err := n.blocks.each(strangerSpace, nil, func(key, raw []byte) bool {
		var name ipns.Name
		if name, bad = ipns.NameFromRoutingKey(key); bad == nil {
			n.strangers[name] = endOfLife(raw)
		}
		return bad == nil
	})
	return errors.Join(err, bad)
}

// room gives the names that must go so that a stranger's new name can be kept.
func (n *Embedded) room() (gone []ipns.Name, err error) {
	if len(n.strangers) < n.maxStrangers {
		return nil, nil
	}
	now := time.Now()
	for name, eol := range n.strangers {
		if !eol.After(now) {
			gone = append(gone, name)
		}
	}
	if len(n.strangers)-len(gone) >= n.maxStrangers {
		return nil, fmt.Errorf("this node keeps %d names for strangers and no more", n.maxStrangers)
	}
	return gone, nil
}

// PutRecord implements Node. The record is durable here before it is offered
// to the DHT; that nobody is there, or that peers refuse it, is logged and no
// error. A record whose sequence does not rise is ErrSuperseded, but for the
// very bytes that are held.
func (n *Embedded) PutRecord(ctx context.Context, name ipns.Name, raw []byte) error {
	return n.putRecord(ctx, name, raw, true)
}

// putRecord is PutRecord. A stranger's record, which is not our own, has its
// place among few, and until it expires.
func (n *Embedded) putRecord(ctx context.Context, name ipns.Name, raw []byte, own bool) error {
	rec, err := checkRecord(name, raw)
	if err != nil {
		return err
	}
	if err := n.keepRecord(name, rec, raw, own); err != nil {
		return fmt.Errorf("record of %s: %w", name, err)
	}
	n.names.drop(name)
	n.table.learn(n.host)
	ctx, cancel := context.WithTimeout(ctx, spreadRecord)
	defer cancel()
	if err := n.table.put(ctx, name, raw); err != nil {
		n.log.WarnContext(ctx, "the DHT did not take a record", "name", name.String(), "err", err)
	}
	return nil
}

func (n *Embedded) keepRecord(name ipns.Name, rec *ipns.Record, raw []byte, own bool) error {
	n.recordMu.Lock()
	defer n.recordMu.Unlock()
	held, wasOwn, err := n.held(name)
	if err != nil {
		return err
	}
	own = own || wasOwn
	if bytes.Equal(held, raw) {
		if own == wasOwn {
			return nil
		}
	} else if old, err := ipns.UnmarshalRecord(held); held != nil && err == nil {
		was, errWas := old.Sequence()
		is, errIs := rec.Sequence()
		if errWas == nil && errIs == nil && was >= is {
			return fmt.Errorf("sequence %d, held is %d: %w", is, was, ErrSuperseded)
		}
	}
	key := strangerKey(name)
	var gone []ipns.Name // of strangers' rows
	switch {
	case own:
		key = recordKey(name)
		if held != nil && !wasOwn {
			gone = []ipns.Name{name}
		}
	case held == nil:
		if gone, err = n.room(); err != nil {
			return err
		}
	}
	keys := make([][]byte, len(gone))
	for i, name := range gone {
		keys[i] = strangerKey(name)
	}
	if err := n.blocks.setSync(key, raw, keys...); err != nil {
		return err
	}
	for _, name := range gone {
		delete(n.strangers, name)
	}
	if !own {
		n.strangers[name] = endOfLife(raw)
	}
	return nil
}

// Record implements Node: the best of what was put or kept here, what nodes of ours
// hold that are connected, and what the DHT has, which is asked for at most ten
// seconds. Where none of them is valid any more, it is the best that has expired.
func (n *Embedded) Record(ctx context.Context, name ipns.Name) ([]byte, error) {
	best, _, err := n.held(name)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", name, err)
	}
	var expired []byte
	take := func(raw []byte) {
		_, err := checkRecord(name, raw)
		switch {
		case err == nil && (best == nil || better(name, raw, best)):
			best = raw
		case errors.Is(err, ipns.ErrExpiredRecord) && (expired == nil || better(name, raw, expired)):
			expired = raw
		}
	}
	held := best
	if best = nil; held != nil {
		take(held)
	}
	near := make(chan [][]byte, 1)
	go func() { near <- n.fromNeighbours(ctx, name) }()
	n.table.learn(n.host)
	if !n.table.empty() {
		for _, raw := range n.search(ctx, name) {
			take(raw)
		}
	}
	for _, raw := range <-near {
		take(raw)
	}
	if best == nil {
		best = expired
	}
	if best == nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("record of %s: %w: %w", name, ErrNotFound, ctx.Err())
		}
		return nil, fmt.Errorf("record of %s: %w", name, ErrNotFound)
	}
	return best, nil
}

// search returns what the DHT answers in the time it has.
func (n *Embedded) search(ctx context.Context, name ipns.Name) (records [][]byte) {
	ctx, cancel := context.WithTimeout(ctx, findRecord)
	defer cancel()
	found, err := n.table.routing.SearchValue(ctx, string(name.RoutingKey()))
	if err != nil {
		if !errors.Is(err, kbucket.ErrLookupFailure) {
			n.log.DebugContext(ctx, "the DHT search failed", "name", name.String(), "err", err)
		}
		return nil
	}
	for raw := range found {
		records = append(records, raw)
	}
	return records
}

// recordCache keeps resolved records for the gateway, at most a minute and at
// most their TTL, so that a page of a registry costs one search and not many.
// PutRecord drops what it replaces.
type recordCache struct {
	mu      sync.Mutex
	entries map[ipns.Name]cachedRecord
	drops   uint64 // so that a search that began before a drop is not kept after it
}

type cachedRecord struct {
	raw   []byte
	until time.Time
}

func newRecordCache() *recordCache {
	return &recordCache{entries: map[ipns.Name]cachedRecord{}}
}

func (c *recordCache) get(name ipns.Name) (raw []byte, drops uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[name]; ok && time.Now().Before(e.until) {
		return e.raw, c.drops
	}
	return nil, c.drops
}

// put keeps raw unless something was dropped since get returned drops.
func (c *recordCache) put(name ipns.Name, raw []byte, ttl time.Duration, drops uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if drops != c.drops {
		return
	}
	if len(c.entries) >= 1024 {
		clear(c.entries)
	}
	c.entries[name] = cachedRecord{raw, time.Now().Add(min(ttl, time.Minute))}
}

func (c *recordCache) drop(name ipns.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, name)
	c.drops++
}

// values is the node's records as libp2p's ValueStore, for the gateway.
type values struct{ n *Embedded }

var _ routing.ValueStore = values{}

func (v values) PutValue(context.Context, string, []byte, ...routing.Option) error {
	return routing.ErrNotSupported
}

func (v values) GetValue(ctx context.Context, key string, _ ...routing.Option) ([]byte, error) {
	name, err := ipns.NameFromRoutingKey([]byte(key))
	if err != nil {
		return nil, err
	}
	raw, drops := v.n.names.get(name)
	if raw != nil {
		return raw, nil
	}
	raw, err = v.n.Record(ctx, name)
	if err == nil {
		if _, bad := checkRecord(name, raw); bad != nil {
			return nil, routing.ErrNotFound // it has expired
		}
	}
	if errors.Is(err, ErrNotFound) {
		return nil, routing.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	rec, err := ipns.UnmarshalRecord(raw)
	if err != nil {
		return nil, err
	}
	if ttl, err := rec.TTL(); err == nil {
		v.n.names.put(name, raw, ttl, drops)
	}
	return raw, nil
}

func (v values) SearchValue(ctx context.Context, key string, o ...routing.Option) (<-chan []byte, error) {
	raw, err := v.GetValue(ctx, key, o...)
	if err != nil {
		return nil, err
	}
	found := make(chan []byte, 1)
	found <- raw
	close(found)
	return found, nil
}
