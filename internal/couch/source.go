package couch

import (
	"context"
	"encoding/json"
)

// Row is the newest change of a document, as a Source has it.
type Row struct {
	Seq     uint64 // from 1; no two rows have the same
	ID      string
	Rev     string // "" where there is none
	Deleted bool
}

// Source is what Handler serves: the newest change of each document, in the
// order of their sequences. When a document changes its row moves to the end, so
// numbers are missing. What else it can do it says by being Documents, Listing or
// Backward too. Methods may run concurrently and end with ctx.
type Source interface {
	// Identity names the source for as long as its sequences go on. It is of
	// letters and digits and does not change while it is served.
	Identity() string
	// Head is the newest sequence, 0 if there is none. It never goes back.
	Head() uint64
	// Count is how many documents there are that are not deleted.
	Count() int
	// Changes returns the rows after since in ascending order, at most limit
	// (1,000 at a time are asked for), none only if there are none.
	Changes(ctx context.Context, since uint64, limit int) ([]Row, error)
	// Wait returns nil once Head is above since. Otherwise it returns ctx's
	// error, or its own if it will never come to that: the feeds that wait then
	// end.
	Wait(ctx context.Context, since uint64) error
}

// Documents is a Source that can give documents: include_docs and GET /{id}.
type Documents interface {
	// Document returns a document as a JSON object to be sent as it is, nil if
	// there is none. CouchDB's clients look for _id and _rev in it.
	Document(ctx context.Context, id string) (json.RawMessage, error)
}

// Listing is a Source that can be looked into by id: `_all_docs`, doc_ids, and
// rev with GET /{id}.
type Listing interface {
	// List returns documents that are not deleted in ascending order of their
	// ids' bytes, from the id from on ("" for the first) or, descending, from it
	// backwards ("" for the last). from itself is in it if it is there. At most
	// limit (1,000 or a few more are asked for), none only if there are none.
	List(ctx context.Context, from string, descending bool, limit int) ([]Row, error)
	// Find returns a document's row, false if there never was one.
	Find(ctx context.Context, id string) (Row, bool, error)
}

// Backward is a Source that can be read from its end: descending.
type Backward interface {
	// Before returns the rows before seq in descending order, at most limit,
	// none only if there are none.
	Before(ctx context.Context, seq uint64, limit int) ([]Row, error)
}
