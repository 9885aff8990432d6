package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// OwnPart is the label of the part of a Cache in which the files of a mirror without a
// node lie; base is what its directory is called.
func OwnPart(base string) string { return "mirror " + base }

// Followed says whether a record of its name was ever accepted by the mirror in dir. One
// of a name that nobody has is a directory too, and has nothing that could be lost.
func Followed(dir string) bool {
	_, err := vfs.Default.Stat(vfs.Default.PathJoin(dir, "highwater.json"))
	return err == nil
}

// Remove takes away the mirror in dir, which lies where its cache does: its list, how far
// it followed its name, and what it fetched where it has no node. What it fetched into a
// node stays there.
//
// The order is law:
//
//  1. The directory gets another name, durably: there is no such mirror any more.
//  2. The cache forgets the files that lie in it, durably.
//  3. The directory goes.
//
// A crash between these leaves what another Remove ends. Errors: ErrLocked, and
// fs.ErrNotExist where there is none.
func Remove(dir string, c *Cache) error {
	fsys, gone := c.o.FS, dir+".gone"
	if err := setAside(fsys, dir, gone); err != nil {
		return fmt.Errorf("remove mirror: %w", err)
	}
	err := c.step("aside")
	if err == nil {
		err = c.forget(OwnPart(fsys.PathBase(dir)))
	}
	if err == nil {
		err = c.step("forgotten")
	}
	if err == nil {
		err = fsys.RemoveAll(gone)
	}
	if err == nil {
		err = syncDir(fsys, fsys.PathDir(dir))
	}
	if err != nil {
		return fmt.Errorf("remove mirror: %w", err)
	}
	return nil
}

// setAside renames dir to gone; one that is there already is of a Remove that did not end.
func setAside(fsys vfs.FS, dir, gone string) error {
	if _, err := fsys.Stat(dir); err != nil {
		if _, e := fsys.Stat(gone); e == nil && errors.Is(err, fs.ErrNotExist) {
			return syncDir(fsys, fsys.PathDir(dir))
		}
		return err
	}
	lock, err := pebble.LockDirectory(fsys.PathJoin(dir, "list"), fsys)
	switch {
	case errors.Is(err, fs.ErrNotExist): // it was never opened whole
	case errors.Is(err, fs.ErrPermission):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrLocked, err)
	default:
		defer lock.Close()
	}
	if err := fsys.RemoveAll(gone); err != nil {
		return err
	}
	if err := fsys.Rename(dir, gone); err != nil {
		return err
	}
	return syncDir(fsys, fsys.PathDir(dir))
}

// forget strikes all files of a part that is not open, durably; their blocks are not
// touched.
func (c *Cache) forget(label string) error {
	var keys []string
	begin := slices.Concat([]byte{fileSpace}, []byte(label), []byte{0})
	for row, err := range c.rows(c.db, begin, false) {
		if err != nil {
			return err
		}
		keys = append(keys, string(row[1:]))
	}
	for some := range slices.Chunk(keys, evictAtOnce) {
		if err := c.strike(some); err != nil {
			return err
		}
	}
	return c.db.LogData(nil, pebble.Sync)
}
