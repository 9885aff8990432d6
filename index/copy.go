package index

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Copy makes in dir, which must not be there, an index that is what this one is now, and
// which another process may open while this one goes on. Its files are hard links where
// the file system makes them: it takes little room and time, however long the list is.
func (ix *Index) Copy(dir string) error {
	if err := ix.begin(); err != nil {
		return fmt.Errorf("copy the index to %s: %w", dir, err)
	}
	defer ix.end()
	if err := ix.db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return fmt.Errorf("copy the index to %s: %w", dir, err)
	}
	return nil
}
