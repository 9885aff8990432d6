// Package index is the list: for every package the CID of its directory, the
// Merkle directory over all of them, and the releases that were made of it. A
// release's list is a function of the set of packages alone, so that anyone who
// has the set can rebuild it and compare. What depends on the registry's name,
// the directories that a bare gateway shows, lies in the release beside the list
// and not in it. Apply moves entries, blocks, release and source cursors in one
// synced Pebble batch. It knows nothing of feeds, ledgers, HTTP, nodes or keys.
//
// The functions that take a unixfs.Getter read a release as any mirror does,
// without a store.
package index

import (
	"errors"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

var (
	// ErrNoIndex is returned by Open when there is no index: only Create makes one.
	ErrNoIndex = errors.New("no index here")
	// ErrExists is returned by Create when there is an index already.
	ErrExists = errors.New("there is an index already")
	// ErrLocked is returned when another process owns the index.
	ErrLocked = errors.New("the index is in use by another process")
	// ErrClosed is returned by every method once Close was called.
	ErrClosed = errors.New("the index is closed")
	// ErrCorrupt is returned when the index's own rows contradict each other.
	ErrCorrupt = errors.New("the index is corrupt")
	// ErrParameters is returned by Open for parameters other than those that
	// the index was created with.
	ErrParameters = errors.New("the index was made with other parameters")
	// ErrNoRelease is returned before the first release, and for a number that
	// was never one.
	ErrNoRelease = errors.New("no such release")
	// ErrNotFound is returned for a package that the list does not have.
	ErrNotFound = errors.New("not in the list")
	// ErrNoBlock is returned for a block that the index does not have.
	ErrNoBlock = errors.New("no such block in the index")
	// ErrEntry is returned by Apply for a change that the list cannot hold.
	ErrEntry = errors.New("not a usable entry")
	// ErrRelease is returned when a directory read as a release is none, or its
	// release.json does not describe it.
	ErrRelease = errors.New("not a valid release")
	// ErrFormat is returned for a release in a format that this program does
	// not know.
	ErrFormat = errors.New("unknown release format")
	// ErrCopy is returned by Apply for an index that Sync keeps, and by Sync for
	// one with releases of its own.
	ErrCopy = errors.New("an index is for its own releases or a copy of somebody's")
	// ErrCollision is returned by PackageDir when names of tarballs have equal
	// hashes; a *CollisionError says which must stay out.
	ErrCollision = errors.New("hash collision")
)

// Format is the number of the release format that this program writes.
const Format = 1

// Entry is one package of the list. Versions and Gateway are known to the index
// only: they are zero in what Lookup and Names read from a release.
type Entry struct {
	Name     npm.Name
	CID      cid.Cid // of the package directory
	Tsize    uint64  // bytes of all its blocks
	Versions int     // how many versions the directory holds
	// Gateway is the directory that a bare gateway shows for this package: the
	// same, and index.html, whose tarball URLs begin with Parameters.Gateway.
	// Zero where that is the package directory itself.
	Gateway unixfs.Ref
}

// shown is the entry as it stands in the release's own directory.
func (e Entry) shown() Entry {
	if e.Gateway.CID.Defined() {
		e.CID, e.Tsize = e.Gateway.CID, e.Gateway.Tsize
	}
	return e
}

// Change puts Entry in the list, or takes the entry of that name out.
type Change struct {
	Entry
	Delete bool
}

// List commits to a set of packages. No clock, key or machine is in it: two
// registries of one set have one list.
type List struct {
	Root     cid.Cid // HAMT of packages and scopes
	Overflow cid.Cid // directory of those whose hash collides with another's
}

// Source says how far one source was read when a release was made.
type Source struct {
	ID     string `json:"id"`
	Cursor string `json:"cursor"`
}

// Parameters are what the list depends on beside the set of packages, but for
// Gateway, on which depends what a bare gateway shows. They are chosen when an
// index is made, and but for Gateway (Batch) stay.
type Parameters struct {
	Fanout    int    `json:"fanout"`            // of the root; 256
	DirLimit  int    `json:"dir_limit"`         // bytes up to which other directories are basic; 32768
	Documents string `json:"documents"`         // form of the documents, as in package document
	Gateway   string `json:"gateway,omitempty"` // the registry's own URL, which tarball URLs in index.html begin with; "" where there is no index.html
}

// Release is one list that was made public, or is about to be.
type Release struct {
	Format     int
	Number     uint64    // 1 for the first, one more for each, or what follows Batch.After
	Created    time.Time // UTC, whole seconds
	Previous   cid.Cid   // root of the release before; cid.Undef for the first
	Jump       Jump      // leads to one before that; the zero value for none
	List       List
	Root       cid.Cid // the release's directory; not in release.json, which lies in it
	Packages   int
	Versions   int
	Sources    []Source
	Parameters Parameters
	Policy     string   // which curation policy it follows, "" for none
	Names      []string // IPNS names that the registry had, the oldest first, and has; nil for the one that the release is read under
	Next       string   // hash of the public key that follows the last of them, "" where none is promised
	Peers      []string // multiaddrs to dial
}

// Batch is what Apply does at once. Names, Next, Peers, Policy and Keys are what is to
// hold from now on, not changes; the same is true of Sources and Mark.
type Batch struct {
	// Changes in order: of several for one name the last counts.
	Changes []Change
	// Blocks are the nodes of package directories. They are kept as long as a
	// release that Collect leaves has them.
	Blocks  []blocks.Block
	Sources []Source
	Names   []string
	Next    string
	Peers   []string
	Policy  string // for release.json: which curation policy the list follows; "" for none
	// Gateway is the registry's URL (Parameters) from this release on, for an index
	// that has one already; "" leaves it. What its entries have for gateways is the
	// caller's to have brought to it.
	Gateway string
	Keys    []byte // document of the keys that sign the packages (see ReadKeys), at most MaxKeys; nil: none
	Now     time.Time
	// Held is what is held of packages from now on; of several for one name the last
	// counts, and of one that is not named it stays as it is.
	Held []Held
	// Mark is kept for whoever applies, as the batch's changes are.
	Mark string
	// Snapshot is shown to readers from now on; the zero value leaves the one
	// that the newest release shows.
	Snapshot Snapshot
	// More says that further batches come before there is to be a release, as
	// while a large source is read for the first time. Entries and sources are
	// durable all the same. Names, Next, Peers, Policy, Gateway, Keys, Now, After and AfterRoot are the last
	// batch's, which may have no changes of its own.
	More bool
	// After and AfterRoot are number and root of the newest release that was
	// made known, 0 where there is none. Where that is not in this index, which
	// was lost or is an old copy, there is a new release, with a greater number.
	After     uint64
	AfterRoot cid.Cid
}
