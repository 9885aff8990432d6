package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// upgradeRows bounds what one batch of an upgrade rewrites.
const upgradeRows = 10_000

// upgrade brings a ledger of row format 1 to format 2 and returns its new
// identity row: packages count what they hold, the queue's rows are binary and
// stand a second time in the order in which they fall due, refusals are counted
// by reason.
//
// The law: each row says its own format, so what is written twice is the same,
// and the identity row, which says that all are done, comes in the last batch.
func upgrade(db *pebble.DB, identity []byte) ([]byte, error) {
	raw, err := get(db, []byte{rowState})
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, fmt.Errorf("no head: %w", ErrCorrupt)
	}
	st, err := decodeJSON[state](raw)
	if err != nil {
		return nil, err
	}
	counts := &st.Counts
	counts.Known, counts.Queued, counts.Retrying, st.Stamp, st.Reasons = 0, 0, 0, 0, map[string]int{}

	b := db.NewBatch()
	defer func() { b.Close() }()
	flush := func(atLeast uint32) error {
		if b.Count() < atLeast {
			return nil
		}
		err := b.Commit(pebble.Sync)
		b.Close()
		b = db.NewBatch()
		return err
	}
	for kv, err := range scan(db, []byte{rowPackage}, nil) {
		if err != nil {
			return nil, err
		}
		p, err := readPackage(kv)
		if err != nil {
			return nil, err
		}
		p.Held = 0
		for row, err := range scan(db, appendTerm([]byte{rowVersion}, string(p.Name)), nil) {
			if err != nil {
				return nil, err
			}
			v, err := readVersion(row)
			if err != nil {
				return nil, err
			}
			if !v.Dropped {
				p.Held++
			}
			b.Set(bytes.Clone(row.key), v.encode(), nil)
		}
		if !p.Deleted && p.Document.CID.Defined() && p.Held == 0 {
			counts.Known++
		}
		b.Set(bytes.Clone(kv.key), encodePackage(p), nil)
		if err := flush(upgradeRows); err != nil {
			return nil, err
		}
	}
	for kv, err := range scan(db, []byte{rowRefusal}, nil) {
		if err != nil {
			return nil, err
		}
		r, err := decodeJSON[Refusal](kv.value)
		if err != nil {
			return nil, err
		}
		st.Reasons[r.Reason]++
	}
	for kv, err := range scan(db, []byte{rowRetry}, nil) {
		if err != nil {
			return nil, err
		}
		var r Retry
		if len(kv.value) > 0 && kv.value[0] == '{' {
			if err := json.Unmarshal(kv.value, &r); err != nil {
				return nil, fmt.Errorf("queue row %q: %w: %w", kv.key, ErrCorrupt, err)
			}
		} else if r, err = readRetry(kv); err != nil {
			return nil, err
		}
		st.Stamp++
		r.Stamp = st.Stamp
		if r.Queued.IsZero() {
			r.Queued = time.Unix(0, 1) // nobody knows
		}
		if r.Fresh() {
			counts.Queued++
		} else {
			counts.Retrying++
		}
		b.Set(bytes.Clone(kv.key), r.encode(), nil)
		b.Set(dueKey(r), nil, nil)
		if err := flush(upgradeRows); err != nil {
			return nil, err
		}
	}
	raw, err = encodeJSON(st)
	if err != nil {
		return nil, err
	}
	_, id, _ := strings.Cut(string(identity), ".")
	identity = fmt.Appendf(nil, "%d.%s", rowFormat, id)
	b.Set([]byte{rowState}, raw, nil)
	b.Set([]byte{rowIdentity}, identity, nil)
	return identity, flush(1)
}
