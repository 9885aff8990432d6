package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
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

// RemoveCopies removes the copies in dir, each a directory there, that no process has open
// and that have not changed for so long as fresh: those are being made, or about to be opened.
func RemoveCopies(dir string, fresh time.Duration) error {
	copies, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove copies of the index: %w", err)
	}
	for _, one := range copies {
		if info, err := one.Info(); err != nil || time.Since(info.ModTime()) < fresh {
			continue
		}
		path := filepath.Join(dir, one.Name())
		lock, err := pebble.LockDirectory(path, vfs.Default)
		if err != nil {
			continue // it is looked at, or gone
		}
		if err := errors.Join(os.RemoveAll(path), lock.Close()); err != nil {
			return fmt.Errorf("remove copies of the index: %w", err)
		}
	}
	return nil
}
