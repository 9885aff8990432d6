// Package ipfs is the node, behind one small interface of ours: a Kubo daemon
// over client/rpc, or a node embedded in this process (libp2p, bitswap, DHT,
// blocks in Pebble) which other commands reach over a socket as they reach
// Kubo. It knows nothing of npm, ledgers, indexes or private IPNS keys: records
// come to it signed.
package ipfs

import (
	"context"
	"errors"

	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

var (
	// ErrNotFound is returned when a block is not held (Local) or nobody
	// provided it before the context ended (Get), or a name has no record.
	ErrNotFound = errors.New("not found")
	// ErrAway is returned when the node cannot be reached.
	ErrAway = errors.New("the IPFS node is away")
	// ErrFull is returned when the disk under the node has no room for what
	// was to be kept. What a later Checkpoint does not cover is lost; what an
	// earlier one covered stays. Once there is room again, the node goes on.
	ErrFull = errors.New("the IPFS node's disk is full")
	// ErrLocked is returned when another process owns the embedded node's state.
	ErrLocked = errors.New("the embedded node is in use by another process")
	// ErrCorrupt is returned for a block that is held but whose bytes do not
	// match its CID. Putting the block again heals it.
	ErrCorrupt = errors.New("the block does not match its CID")
	// ErrDamaged is returned when a file of the embedded node's store cannot be
	// read as it was written; the error names it.
	ErrDamaged = errors.New("the IPFS node's store is damaged")
	// ErrInvalidRecord is returned by PutRecord for bytes that are no IPNS
	// record of that name, or that have expired. Nothing is kept.
	ErrInvalidRecord = errors.New("invalid IPNS record")
	// ErrSuperseded is returned by PutRecord when the node holds another
	// record of that name with the same or a higher sequence.
	ErrSuperseded = errors.New("the node holds a newer IPNS record")
)

// undefined asks serves about a peer and no block in particular.
var undefined cid.Cid

// maxBlock is the largest block that IPFS nodes exchange, in bytes
// (https://specs.ipfs.tech/bitswap-protocol/#block-sizes).
const maxBlock = 2 << 20

// Info is what a node says of itself.
type Info struct {
	ID      string   `json:"id"`      // peer ID
	Agent   string   `json:"agent"`   // "kubo/0.43.1/", "registry-mirror/…"
	Addrs   []string `json:"addrs"`   // multiaddrs with /p2p/ID
	Gateway string   `json:"gateway"` // base URL of its HTTP gateway and /routing/v1, "" where none
	Peers   int      `json:"peers"`   // connected peers
	Durable bool     `json:"durable"` // Checkpoint reaches the disk; false for a daemon elsewhere, whose disk nobody here can sync
	// Network is where peers come from; Share says whether what is held is announced
	// there, and Announced of how many blocks that is said. "", false and 0 of a daemon,
	// and of a node that runs in another process.
	Network   Network `json:"network,omitempty"`
	Share     bool    `json:"share,omitempty"`
	Announced int     `json:"announced,omitempty"`
}

// Node is what the project needs of an IPFS node. Methods may run concurrently.
// A block handed out has been checked against its CID.
type Node interface {
	// Put stores blocks (in batches of at most a few thousand, or 64 MiB).
	// They are durable only once a later Checkpoint returned nil.
	Put(ctx context.Context, blks []blocks.Block) error
	// Checkpoint makes every block that Put returned for before it began
	// durable. One that fails may have lost whatever no checkpoint had covered,
	// also what others put while it ran.
	Checkpoint(ctx context.Context) error
	// Hold keeps garbage collection away from roots, and from all that lies
	// below them as soon as it is put: called before the Put of a batch, no
	// block of it is ever without a root. It adds to what label holds already,
	// asks for nothing to be there yet, and lasts from a later Checkpoint until
	// Unhold. A label is a file name of at most 100 bytes.
	Hold(ctx context.Context, label string, roots []cid.Cid) error
	// Free is how many bytes the disk under the node has left for it; known is
	// false where that disk is not on this machine. It is cheap: one call of
	// the system where the node is Kubo or in this process.
	Free(ctx context.Context) (bytes uint64, known bool, err error)
	// Local returns a block that the node holds, else ErrNotFound. It never
	// asks the network.
	Local(ctx context.Context, c cid.Cid) (blocks.Block, error)
	// Get returns a block, asking the network for it until ctx ends.
	Get(ctx context.Context, c cid.Cid) (blocks.Block, error)
	// Unhold lets go of roots that Hold was given under label: from then on a
	// collection takes them, unless something else holds or pins them. What is not
	// held is no error. A crash before a later Checkpoint may undo it.
	Unhold(ctx context.Context, label string, roots []cid.Cid) error
	// Pin makes root, whole in the node, a garbage collection root under label,
	// beside those that label has. The check costs what root does not share with
	// near, where that is pinned under label; cid.Undef is none.
	Pin(ctx context.Context, label string, near, root cid.Cid) error
	// Unpin takes root from those pinned under label. One that is not pinned is no
	// error.
	Unpin(ctx context.Context, label string, root cid.Cid) error
	// Pins lists the roots pinned under label, in no order.
	Pins(ctx context.Context, label string) ([]cid.Cid, error)
	// PutRecord hands a signed IPNS record to the network, or only to the
	// node itself where it has no peers. The caller reads it back: a nil error
	// means nothing on the DHT.
	PutRecord(ctx context.Context, name ipns.Name, record []byte) error
	// Record returns the best record the node can find, unverified beyond its
	// own checks, else ErrNotFound.
	Record(ctx context.Context, name ipns.Name) ([]byte, error)
	// Connect dials a peer by multiaddr with /p2p/ID.
	Connect(ctx context.Context, addr string) error
	Info(ctx context.Context) (Info, error)
	Close() error
}
