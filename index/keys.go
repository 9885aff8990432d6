package index

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// keysName is the file in "_registry" with the keys by which the packages of a
// registry are signed, as npm's GET /-/npm/v1/keys gives them. A release without
// such keys has none.
const keysName = "keys.json"

// MaxKeys bounds that document, in bytes.
const MaxKeys = 1 << 20

// ReadKeys reads the signing keys of the release whose directory is root, nil
// where it has none. They are as trusted as root is, and as they were given to
// Apply: that they are such a document has not been checked. Errors are those of
// ReadRelease.
func ReadKeys(ctx context.Context, g unixfs.Getter, root cid.Cid) ([]byte, error) {
	file, err := unixfs.Path(ctx, g, root, registryName, keysName)
	if errors.Is(err, unixfs.ErrNotFound) {
		return nil, nil
	}
	var raw []byte
	if err == nil {
		raw, err = unixfs.ReadFile(ctx, g, file.CID, MaxKeys)
	}
	if errors.Is(err, unixfs.ErrMalformed) || errors.Is(err, unixfs.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrRelease, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the signing keys of release %s: %w", root, err)
	}
	return raw, nil
}
