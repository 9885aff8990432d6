package damage

import (
	"errors"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Ordered is fs, but that whatever was made in a directory is durably there before
// a marker is, which is how Pebble says which manifest is the store's. Pebble syncs
// a new manifest's name and its marker's together, so a file system that keeps no
// order among them may bring back the marker alone, and with it no store.
func Ordered(fs vfs.FS) vfs.FS { return orderedFS{fs} }

type orderedFS struct{ vfs.FS }

func (o orderedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(o.PathBase(name), "marker.") {
		dir, err := o.OpenDir(o.PathDir(name))
		if err != nil {
			return nil, err
		}
		if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
			return nil, err
		}
	}
	return o.FS.Create(name, category)
}

// Unwrap is for vfs.Root.
func (o orderedFS) Unwrap() vfs.FS { return o.FS }
