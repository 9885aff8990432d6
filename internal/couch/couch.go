// Package couch reads feeds of changes as CouchDB's `_changes` and npm's
// replicate service give them, and serves such a feed. A cursor is a string that
// only its feed understands. It knows nothing of packuments, ledgers or what is
// done with a change.
package couch

import (
	"encoding/json"
	"errors"
)

var (
	// ErrReset is returned when the feed no longer goes on from the cursor: its
	// head is behind it, or it is another feed. Going back is never done alone;
	// what is held must be compared with a full listing.
	ErrReset = errors.New("the feed was reset: it does not go on from this cursor")
	// ErrRefused is returned for a request that will not succeed if repeated
	// (a status of 4xx, but for 408 and 429; a redirect to another host).
	ErrRefused = errors.New("the feed refuses the request")
	// ErrUnavailable is returned when the feed cannot be reached or says so
	// itself (5xx, 408, 429).
	ErrUnavailable = errors.New("the feed is unavailable")
	// ErrMalformed is returned for an answer that is not what a feed says: HTML,
	// cut JSON, a row without a sequence. It is never taken for the end.
	ErrMalformed = errors.New("not a feed's answer")
	// ErrNotOffered is for a Source to return for what it cannot give, such as a
	// listing backwards. Handler answers it with 501.
	ErrNotOffered = errors.New("not offered")
	// ErrTooLarge is returned for an answer beyond Options.MaxBody.
	ErrTooLarge = errors.New("the feed's answer is too large")
)

// Engines that ServerInfo names.
const (
	EngineNPM    = "npm-replicate"        // npm's service: short polls, no documents
	EngineMirror = "registry-mirror-feed" // Handler
	EngineCouch  = "couchdb"              // whatever names no engine
)

// Change is one row: the newest change of a document.
type Change struct {
	Seq     string   // opaque
	ID      string   // as sent, "" where the row has none: check it before use
	Revs    []string // the revisions that the row announces
	Deleted bool     // the document is gone
	// Doc is the document, its contents unchecked: nil where the feed sends
	// none, where it could not be had with its row, and where it is deleted.
	Doc json.RawMessage
}

// Page is a run of changes. Once all of them are dealt with, LastSeq is the
// cursor to keep. It may have no changes and move the cursor all the same.
type Page struct {
	Changes []Change
	LastSeq string
}

// Doc is one row of a listing.
type Doc struct {
	ID      string // as sent: check it before use. At most 4096 bytes
	Rev     string // the current revision; "" where the row has none
	Deleted bool   // it says that it is gone
}

// ServerInfo is what a feed says of itself.
type ServerInfo struct {
	Engine      string
	Name        string // of the database
	UUID        string // of the ledger behind EngineMirror, else ""
	UpdateSeq   string // the head
	DocCount    int    // documents that are there; 0 where it does not say
	IncludeDocs bool   // whether rows can carry documents
}
