package follow

import (
	"context"
	"strconv"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Status is how far the follower has come.
type Status struct {
	Feed   string `json:"feed,omitempty"`
	Engine string `json:"engine,omitempty"` // what the feed's server says it is, once asked
	// Cursor is how far the feed was read and Head how far it went when it was
	// last heard of, in the feed's own terms.
	Cursor string `json:"cursor,omitempty"`
	Head   string `json:"head,omitempty"`
	// LagRows is how many sequences lie between the two, -1 where the feed's
	// cursors are no numbers or its head is not known.
	LagRows int64 `json:"lag_rows"`
	// LagSeconds is how long what waits at the front of the queue has waited,
	// not tried yet; 0 where nothing does.
	LagSeconds float64 `json:"lag_seconds"`
	// LastSuccess is when a page, or a Fill, was last done to its end by this
	// process; zero if never.
	LastSuccess time.Time     `json:"last_success,omitzero"`
	Stored      ledger.Counts `json:"stored"`
	// Reasons are the refusals by reason.
	Reasons map[string]int `json:"reasons,omitempty"`
	// Trouble is why nothing is done at the moment, "" where nothing is in the way.
	Trouble string `json:"trouble,omitempty"`
	// What this process did: rows of the feed read, items of the queue ended,
	// versions and bytes of tarballs stored.
	RowsRead       uint64 `json:"rows_read"`
	ItemsDone      uint64 `json:"items_done"`
	VersionsStored uint64 `json:"versions_stored"`
	BytesStored    uint64 `json:"bytes_stored"`
	// … and how much of it in a second, over the last minute.
	ItemsPerSecond float64 `json:"items_per_second"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	// SecondsLeft is how long the queue lasts at this rate, -1 where it cannot
	// be told. Documents may bring more.
	SecondsLeft float64 `json:"seconds_left"`
}

// seen is what Status tells and the ledger does not keep.
type seen struct {
	Engine, Cursor, Head string
	LastSuccess          time.Time
	key                  string // the cursor's, "" before the feed is read
	trouble              string
	away                 string // what the feed's last failure was, and when
	awayAt               time.Time
	given                npm.Name // the package that upstream gave last, and when
	givenAt              time.Time
	roomAt               time.Time // when there was room on the disk …
	roomUntil            uint64    // … for total.bytes and pending up to this
	pending              uint64    // bytes of tarballs that were fetched and are on their way to the node
	total                tally
	recent               []tally // of the last minute, oldest first
}

// tally is what was done by a moment.
type tally struct {
	at                           time.Time
	rows, items, versions, bytes uint64
}

const (
	rateOver  = time.Minute
	rateEvery = time.Second
)

// awayFor is how long a failure of the feed is told: a feed without changes does
// not say that it is back.
const awayFor = 10 * time.Minute

// feedAway notes that the feed could not be read.
func (f *Follower) feedAway(err error) {
	f.note(func(s *seen) { s.away, s.awayAt = detail(err), f.now() })
}

// count adds what one commit did.
func (s *seen) count(now time.Time, items, versions int, bytes uint64) {
	s.total.at = now
	s.total.items += uint64(items)
	s.total.versions += uint64(versions)
	s.total.bytes += bytes
	if n := len(s.recent); n == 0 || now.Sub(s.recent[n-1].at) >= rateEvery {
		s.recent = append(s.recent, s.total)
	}
	for len(s.recent) > 1 && now.Sub(s.recent[0].at) > rateOver {
		s.recent = s.recent[1:]
	}
}

func (f *Follower) note(change func(*seen)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
}

// Status returns at once: it asks nobody.
func (f *Follower) Status() Status {
	f.mu.Lock()
	s := f.state
	f.mu.Unlock()
	st := Status{
		Feed: f.feedName, Engine: s.Engine, Cursor: s.Cursor, Head: s.Head, LastSuccess: s.LastSuccess, LagRows: -1, SecondsLeft: -1,
		Stored: f.ledger.Counts(), Reasons: f.ledger.Reasons(), Trouble: s.trouble,
		RowsRead: s.total.rows, ItemsDone: s.total.items, VersionsStored: s.total.versions, BytesStored: s.total.bytes,
	}
	if st.Trouble == "" && s.away != "" && f.now().Sub(s.awayAt) < awayFor {
		st.Trouble = "the feed is away: " + s.away
	}
	if s.key == "" && f.feedName != "" {
		// Not read yet by this process: every package's cursor, if there is
		// one, else that of the selection.
		var ok bool
		if st.Cursor, ok = f.ledger.Cursor(f.feedName + allMark); !ok {
			st.Cursor, _ = f.ledger.Cursor(f.feedName)
		}
	}
	cursor, errCursor := strconv.ParseInt(st.Cursor, 10, 64)
	head, errHead := strconv.ParseInt(st.Head, 10, 64)
	if errCursor == nil && errHead == nil {
		st.LagRows = max(0, head-cursor)
	}
	if n := len(s.recent); n > 0 {
		first := s.recent[0]
		if over := s.total.at.Sub(first.at).Seconds(); over > 0 && f.now().Sub(s.total.at) < rateOver {
			st.ItemsPerSecond = float64(s.total.items-first.items) / over
			st.BytesPerSecond = float64(s.total.bytes-first.bytes) / over
		}
	}
	switch {
	case st.Stored.Queued == 0:
		st.SecondsLeft = 0
	case st.ItemsPerSecond > 0:
		st.SecondsLeft = float64(st.Stored.Queued) / st.ItemsPerSecond
	}
	if at, ok := f.oldest(); ok {
		st.LagSeconds = max(0, f.now().Sub(at).Seconds())
	}
	return st
}

// oldest is when the item at the front of the queue came there, where it was
// not tried yet.
func (f *Follower) oldest() (time.Time, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	front, _, _, err := f.ledger.Due(ctx, ledger.Due{}, f.now(), 1)
	if err != nil || len(front) == 0 {
		return time.Time{}, false
	}
	rows, err := f.ledger.Queue(ctx, front[0].Name)
	if err != nil {
		return time.Time{}, false
	}
	for _, row := range rows {
		if row.Version == front[0].Version && row.Fresh() {
			return row.Queued, true
		}
	}
	return time.Time{}, false
}

// newer reports whether cursor a lies behind b, as far as it can be told.
func newer(a, b string) bool {
	na, errA := strconv.ParseUint(a, 10, 64)
	nb, errB := strconv.ParseUint(b, 10, 64)
	return errA != nil || errB != nil || na > nb
}
