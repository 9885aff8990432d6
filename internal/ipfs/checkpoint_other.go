//go:build !linux

package ipfs

import (
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// syncFilesystem writes all file systems to the disk: only Linux can sync one.
func syncFilesystem(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	return exec.Command("sync").Run()
}

// FreeSpace is what an unprivileged process may still write to the file system
// that holds dir, in bytes.
func FreeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return uint64(max(st.Bavail, 0)) * uint64(st.Bsize), nil
}
