package follow

import (
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
	// LastSuccess is when a page, or a Fill, was last done to its end by this
	// process; zero if never.
	LastSuccess time.Time     `json:"last_success,omitzero"`
	Stored      ledger.Counts `json:"stored"`
}

// seen is what Status tells and the ledger does not keep.
type seen struct {
	Engine, Cursor, Head string
	LastSuccess          time.Time
	key                  string   // the cursor's, "" before the feed is read
	rows                 uint64   // of the feed, read by this process
	trouble              string   // why nothing is done at the moment, "" where nothing is in the way
	given                npm.Name // the package that upstream gave last, and when
	givenAt              time.Time
	roomAt               time.Time // when there was room on the disk
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
	st := Status{Feed: f.feedName, Engine: s.Engine, Cursor: s.Cursor, Head: s.Head, LastSuccess: s.LastSuccess, LagRows: -1, Stored: f.ledger.Counts()}
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
	return st
}

// newer reports whether cursor a lies behind b, as far as it can be told.
func newer(a, b string) bool {
	na, errA := strconv.ParseUint(a, 10, 64)
	nb, errB := strconv.ParseUint(b, 10, 64)
	return errA != nil || errB != nil || na > nb
}
