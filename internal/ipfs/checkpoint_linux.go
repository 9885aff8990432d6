package ipfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncFilesystem writes all of the file system that holds dir to the disk,
// whoever wrote it.
func syncFilesystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// FreeSpace is what an unprivileged process may still write to the file system
// that holds dir, in bytes.
func FreeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), nil
}
