package mirror

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
)

// Arrival is when a source last brought bytes of a file for the first time since a
// start.
type Arrival struct {
	Source string    `json:"source"`            // "bitswap", "car" or "upstream", as in Bytes
	From   string    `json:"gateway,omitempty"` // URL of the gateway
	At     time.Time `json:"at"`
}

// sourceNames are those in an Arrival and in its row.
var sourceNames = [...]string{fromBitswap: "bitswap", fromCAR: "car", fromUpstream: "upstream"}

// noteArrival notes that a source brought bytes of the file at root: one row for each
// source, written once a start.
func (m *Mirror) noteArrival(root cid.Cid, from source, gateway string) {
	row := append(arrivalRows(root), byte(from))
	if _, ok := m.came.get(string(row)); ok {
		return
	}
	m.came.put(string(row), struct{}{}, int64(len(row))+64)
	raw, err := json.Marshal(Arrival{sourceNames[from], gateway, m.o.Now().UTC().Truncate(time.Second)})
	if err == nil {
		err = m.db.Set(row, raw, pebble.NoSync)
	}
	if err != nil {
		m.log.Error("where a file came from is not noted", "cid", root, "error", err)
	}
}

// arrivals are those of a file, none for one that this machine had before anybody
// asked for it here.
func (m *Mirror) arrivals(root cid.Cid) (all []Arrival, err error) {
	prefix := arrivalRows(root)
	for from := fromBitswap; from <= fromUpstream; from++ {
		raw, closer, err := m.db.Get(append(prefix, byte(from)))
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("where %s came from: %w", root, err)
		}
		var a Arrival
		err = json.Unmarshal(raw, &a)
		closer.Close()
		if err != nil {
			return nil, fmt.Errorf("where %s came from: %w: %w", root, ErrState, err)
		}
		all = append(all, a)
	}
	return all, nil
}

// forgetArrivals takes the rows of an evicted file away: should it come again, that is
// an arrival of its own.
func (m *Mirror) forgetArrivals(root cid.Cid) error {
	for from := fromBitswap; from <= fromUpstream; from++ {
		row := append(arrivalRows(root), byte(from))
		if err := m.db.Delete(row, pebble.NoSync); err != nil {
			return err
		}
		m.came.remove(string(row))
	}
	return nil
}

func arrivalRows(root cid.Cid) []byte { return append([]byte{arrivalKey}, root.Hash()...) }
