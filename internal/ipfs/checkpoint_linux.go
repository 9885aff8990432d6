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
