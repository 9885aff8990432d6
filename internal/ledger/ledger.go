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
	// ErrExists is returned by Create where there is a ledger already.
	ErrExists = errors.New("there is a ledger here already")
	// ErrCorrupt is returned for rows of our own that cannot be true. It is
	// never upstream's doing.
	ErrCorrupt = errors.New("the ledger is corrupt")
	// ErrInvalid is returned for a batch that no correct caller makes (a
	// version without a CID, a name that is no key: nothing of it is written),
	// and for a request that the owner does not understand.
	ErrInvalid = errors.New("not valid")
	// ErrClosed is returned once Close was called.
	ErrClosed = errors.New("the ledger is closed")
	// ErrAway is returned by Dial and a Client when no process answers at the
	// socket.
	ErrAway = errors.New("no process answers for the ledger")
	// ErrReplaced is returned by a Client when another ledger answers at the
	// socket than the one it dialled: sequences of the two do not compare.
	ErrReplaced = errors.New("another ledger answers")
)

// Seq numbers the ledger's own changes, from 1 up by one. Zero is before the
// first. A listing shows the newest change of a package only, so numbers are
// missing from it.
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
	// Proof is the strongest digest by which upstream vouched for the bytes:
	// "sha512", or "sha1" where that was all there was.
	Proof string `json:"proof,omitempty"`
	// Signature is the verdict on the registry's own signature (npm.Verdict),
	// "" where nobody looked.
	Signature string `json:"signature,omitempty"`
}

// Document points at the upstream packument in the node, compressed in
// sections (package document), byte for byte what upstream sent once
// decompressed.
type Document struct {
	CID   cid.Cid `json:"cid"`
	Tsize uint64  `json:"tsize"`
	Size  uint64  `json:"size"` // bytes before compression
}

// Package is the ledger's record of one package. Versions and Dropped are filled
// by Store.Package, in bytewise order of Version, and left nil by listings.
type Package struct {
	Name     npm.Name  `json:"name"`
	Seq      Seq       `json:"seq"`
	Rev      string    `json:"rev,omitempty"`  // upstream _rev
	ETag     string    `json:"etag,omitempty"` // of the packument upstream
	Checked  time.Time `json:"checked"`        // when upstream was last asked
	Document Document  `json:"document"`
	Held     int       `json:"held"`              // versions that are stored
	Listed   int       `json:"listed,omitempty"`  // versions that the document names; those beyond Held are known, not stored
	Deleted  bool      `json:"deleted,omitempty"` // tombstone
	Removed  *Removal  `json:"removed,omitempty"` // of the newest removal, if there was one
	Versions []Version `json:"versions,omitempty"`
	Dropped  []Version `json:"dropped,omitempty"` // were held until upstream took them back
}

// Former is a document that a package had before the one it has now, or the tarball
// of a version that it has no more, which the node holds until the follower lets go
// of it.
type Former struct {
	Name    npm.Name
	Version string // "" for a document
	CID     cid.Cid
	Since   time.Time // when another took its place, or it was dropped
}

// Removal says why something that was held no longer is.
type Removal struct {
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"` // RemovedDeleted, …
	// Versions are how many were dropped by it.
	Versions int `json:"versions"`
}

// Reasons of a Removal.
const (
	RemovedDeleted     = "deleted"     // the package is gone upstream
	RemovedUnpublished = "unpublished" // upstream's document no longer names the versions
	RemovedSecurity    = "security"    // upstream put a security-holding package in its place
)

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
	// Exact asks for the one version that the range names and nothing beside
	// it: neither what the tag latest names nor dependencies.
	Exact bool `json:"exact,omitempty"`
	// Scope, "@types", asks for every package of a scope; Spec.Name is "" then.
	Scope string `json:"scope,omitempty"`
	// Newest bounds what Every selects to the newest N by version; what
	// dist-tags name comes beside them. 0 is no bound.
	Newest int `json:"newest,omitempty"`
	// Days bounds what Every selects to versions published within so many
	// days; what dist-tags name comes beside them. 0 is no bound.
	Days int `json:"days,omitempty"`
	// Known asks for documents only: their versions are known and in no
	// release until a tarball is stored on demand.
	Known bool `json:"known,omitempty"`
}

// All reports whether a want asks for every package of the feed.
func (w Want) All() bool { return w.Spec.Name == "" && w.Scope == "" }

// Refusal says why an item was not stored: a row of the dead-letter list.
type Refusal struct {
	Name    npm.Name  `json:"name"`
	Version string    `json:"version,omitempty"` // "" for the whole package
	Reason  string    `json:"reason"`            // a short code: "integrity", "not-found", "name", …
	Detail  string    `json:"detail"`
	Time    time.Time `json:"time"`
	// Seen names what was refused, so that it is left alone until upstream says
	// something else of it: the digest of a version's dist. "" is anything.
	Seen string `json:"seen,omitempty"`
	// Stamp is that of the queue's row that ends with the refusal; 0 ends
	// whichever is there.
	Stamp uint64 `json:"-"`
}

// Retry is a row of the queue: an item that was seen and not tried yet
// (Attempts is 0), or that failed for a passing cause and is tried again.
type Retry struct {
	Name     npm.Name  `json:"name"`
	Version  string    `json:"version,omitempty"` // "" for the package's document
	Attempts int       `json:"attempts"`
	Next     time.Time `json:"next"` // it is due from then on
	Detail   string    `json:"detail"`
	Rev      string    `json:"rev,omitempty"` // the revision the feed announced, "" if none
	Queued   time.Time `json:"queued"`        // when it came into the queue; zero is the time of the Commit
	// Missing is how often in a row upstream said that it has no such package,
	// and Since when it did so first.
	Missing int       `json:"missing,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	// Approved is set once an operator let a removal pass the breaker.
	Approved bool `json:"approved,omitempty"`
	// Stamp tells rows of one item apart. Commit gives each row a new one. A
	// row handed to Commit with the Stamp of the row that was worked on gives
	// way to one that came meanwhile; with 0 it replaces what is there.
	Stamp uint64 `json:"stamp,omitempty"`
}

// Fresh reports whether the item was never tried.
func (r Retry) Fresh() bool { return r.Attempts == 0 && r.Missing == 0 }

// Key names an item of the retry queue or of the dead-letter list. Version is
// "" for the whole package.
type Key struct {
	Name    npm.Name `json:"name"`
	Version string   `json:"version,omitempty"`
}

// Cursor is how far a feed was read: the feed's own opaque value.
type Cursor struct {
	Feed  string `json:"feed"` // the feed's URL
	Value string `json:"value"`
}

// PackageUpdate is what was learnt of one package.
//
// An undefined Document.CID leaves document, Rev and ETag as they are, but for
// a Rev or ETag that is given; a zero Checked leaves Checked. With neither
// document nor versions it makes no new package and revives no tombstone.
type PackageUpdate struct {
	Name     npm.Name
	Rev      string
	ETag     string
	Checked  time.Time
	Document Document
	Listed   int // versions that Document names
	// Deleted makes the package a tombstone and drops every version. For a
	// package that was never held it does nothing.
	Deleted bool
	// Reason is that of the Removal, where Deleted or Drop take something away.
	Reason string
	// Drop are versions that upstream took back. Their digests are kept, so
	// that none of them can come back with other bytes.
	Drop []string
	// Versions are those added or confirmed, after Drop; versions that are
	// not named stay.
	Versions []Version
}

// Done says that the queue's row of an item was worked on. With a Stamp it
// leaves only the row of that stamp: a change that came meanwhile stays.
type Done struct {
	Key
	Stamp uint64
}

// Batch is what one Commit writes, all of it or nothing. The parts apply in the
// order of the fields, so an item that is done and retried is retried.
type Batch struct {
	Done     []Done   // items that leave the queue
	Pardoned []Key    // items that leave the dead-letter list
	LetGo    []Former // that the node no longer holds; one whose Since is another by now stays
	Packages []PackageUpdate
	Retries  []Retry
	Refused  []Refusal // an item that is refused leaves the queue
	Wants    []Want    // replaces a want of the same spec
	Unwants  []Want    // by their specs and scopes
	Cursor   *Cursor
}

// Counts is how much the ledger holds. It is kept with every batch, never
// counted by a scan.
type Counts struct {
	Packages int    `json:"packages"` // without tombstones
	Deleted  int    `json:"deleted"`  // tombstones
	Versions int    `json:"versions"` // without those dropped
	Bytes    uint64 `json:"bytes"`    // of the versions' tarballs
	Known    int    `json:"known"`    // packages with a document and no stored version
	Refused  int    `json:"refused"`
	Queued   int    `json:"queued"`   // of the queue, not tried yet
	Retrying int    `json:"retrying"` // of the queue, tried and failed
	Wants    int    `json:"wants"`
}

// MarkPrefix begins the name of a cursor that is no feed's: a mark of the
// owner's own, which moves in a batch as cursors do. Status leaves it out.
const MarkPrefix = "mark:"

// Reasons of a Refusal that the ledger itself knows.
const (
	// ReasonIntegrityChanged is of those that Commit itself writes: a version
	// came with other bytes than those stored.
	ReasonIntegrityChanged = "integrity-changed"
	// ReasonUnresolved is of ranges that no version satisfies; the range stands
	// in the place of the version.
	ReasonUnresolved = "unresolved"
	// ReasonMassRemoval is of removals that the breaker held; Seen is the
	// revision. TryAgain approves them.
	ReasonMassRemoval = "mass-removal"
)
