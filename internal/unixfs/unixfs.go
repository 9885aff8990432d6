// Package unixfs turns files and directories into IPFS blocks and back: which
// bytes make which CID. Files follow the profile unixfs-v1-2025 (CIDv1, raw
// leaves, 1 MiB chunks, 1024 links); directories are basic up to a limit of
// exact block size, then HAMT (fanout 256, murmur3-x64-64). It is pure: it
// knows nothing of nodes, stores, npm or time.
package unixfs

import (
	"context"
	"errors"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

var (
	// ErrNotFound is returned when a directory has no entry of that name.
	ErrNotFound = errors.New("no such entry")
	// ErrMalformed is returned for a block that is not what the format says.
	ErrMalformed = errors.New("malformed block")
	// ErrTooLarge is returned for a file or a chunk beyond its bound.
	ErrTooLarge = errors.New("larger than allowed")
	// ErrName is returned for a link that a directory cannot hold: an empty
	// name, one with a slash, or one that is there twice.
	ErrName = errors.New("not a usable link name")
)

const (
	// Profile names how files become blocks: another way is another name.
	Profile = "unixfs-v1-2025"
	// ChunkSize is the greatest size of a leaf in bytes (profile unixfs-v1-2025).
	ChunkSize = 1 << 20
	// Width is the greatest number of links of a file's inner node.
	Width = 1024
	// Fanout is the number of slots of a HAMT shard. Readers here accept no other.
	Fanout = 256
	// DirLimit is the size in bytes up to which scopes and tarball directories
	// are one basic block. It is a constant of the format: a directory's CID
	// depends on it.
	DirLimit = 32 << 10
	// Reserved is the name that keeps its place in a hash collision.
	Reserved = "_registry"
)

// Ref points at a file or directory.
type Ref struct {
	CID   cid.Cid
	Tsize uint64 // cumulative size of all its blocks, as in a link's Tsize
	Size  uint64 // file size in bytes; 0 for a directory
}

// Link is one entry of a directory.
type Link struct {
	Name  string
	CID   cid.Cid
	Tsize uint64
}

// Sink receives blocks, children before parents, possibly the same block more
// than once. It may keep the block; an error from it ends the build.
type Sink func(blocks.Block) error

// Getter gives the block of a CID, already checked against that CID.
type Getter interface {
	Get(ctx context.Context, c cid.Cid) (blocks.Block, error)
}
