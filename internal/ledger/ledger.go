// Package ledger records what the follower stored or refused, by sequence: for
// every package its upstream revision, the CID of its upstream packument and
// each version's integrity and tarball CID; what is selected; what waits to be
// tried again; and how far the feed was read. One synced Pebble batch moves a
// change and the feed cursor together. It knows nothing of HTTP upstreams,
// IPFS nodes, indexes or keys.
package ledger

import (
	"errors"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

var (
	// ErrNotFound is returned for a package that the ledger does not hold.
	ErrNotFound = errors.New("not in the ledger")
	// ErrLocked is returned by Open when another process owns the ledger.
	ErrLocked = errors.New("the ledger is in use by another process")
	// ErrNoLedger is returned by Open when there is no ledger: only Create makes one.
	ErrNoLedger = errors.New("no ledger here")
	// ErrIntegrityChanged is returned for a version whose integrity differs
	// from the one recorded: a version never changes its bytes (law 3).
	ErrIntegrityChanged = errors.New("a stored version's integrity changed")
)

// Seq numbers the ledger's own changes, from 1 up, without gaps in order. Zero
// is before the first.
type Seq uint64

// Version is one stored version.
type Version struct {
	Version   string    `json:"version"`
	Integrity string    `json:"integrity"`        // SRI that the stored bytes match
	Shasum    string    `json:"shasum,omitempty"` // hex SHA-1 that the stored bytes match
	File      string    `json:"file"`             // basename of the tarball, "express-4.18.2.tgz"
	CID       cid.Cid   `json:"cid"`
	Size      uint64    `json:"size"`  // bytes of the tarball
	Tsize     uint64    `json:"tsize"` // bytes of all its blocks
	FirstSeen time.Time `json:"first_seen"`
}

// Document points at the upstream packument in the node, compressed in
// sections (package document), byte for byte what upstream sent once
// decompressed.
type Document struct {
	CID   cid.Cid `json:"cid"`
	Tsize uint64  `json:"tsize"`
	Size  uint64  `json:"size"` // bytes before compression
}

// Package is the ledger's record of one package. Versions is filled by
// Package and left nil by listings.
type Package struct {
	Name     npm.Name  `json:"name"`
	Seq      Seq       `json:"seq"`
	Rev      string    `json:"rev,omitempty"`  // upstream _rev
	ETag     string    `json:"etag,omitempty"` // of the packument upstream
	Checked  time.Time `json:"checked"`        // when upstream was last asked
	Document Document  `json:"document"`
	Deleted  bool      `json:"deleted,omitempty"` // tombstone
	Versions []Version `json:"versions,omitempty"`
}

// Change is one row of the ledger's feed: the newest change of a package.
type Change struct {
	Seq     Seq      `json:"seq"`
	Name    npm.Name `json:"id"`
	Deleted bool     `json:"deleted,omitempty"`
}

// Want is one line of the selection: what the follower keeps up to date.
type Want struct {
	// Spec is what is wanted. The zero name means every package of the feed.
	Spec npm.Spec `json:"spec"`
	// Every asks for every version that satisfies the range (all, where the
	// range is empty), not for npm's one choice.
	Every bool `json:"every,omitempty"`
	// NoDeps leaves out the dependency closure.
	NoDeps bool `json:"no_deps,omitempty"`
}

// Refusal says why an item was not stored: a row of the dead-letter list.
type Refusal struct {
	Name    npm.Name  `json:"name"`
	Version string    `json:"version,omitempty"` // "" for the whole package
	Reason  string    `json:"reason"`            // a short code: "integrity", "not-found", "name", …
	Detail  string    `json:"detail"`
	Time    time.Time `json:"time"`
}

// Retry is an item that failed for a passing cause and is tried again.
type Retry struct {
	Name     npm.Name  `json:"name"`
	Version  string    `json:"version,omitempty"`
	Attempts int       `json:"attempts"`
	Next     time.Time `json:"next"`
	Detail   string    `json:"detail"`
	Rev      string    `json:"rev,omitempty"` // the revision the feed announced, "" if none
}
