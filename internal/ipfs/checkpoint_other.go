//go:build !linux

package ipfs

import (
	"os"
	"os/exec"
)

// syncFilesystem writes all file systems to the disk: only Linux can sync one.
func syncFilesystem(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	return exec.Command("sync").Run()
}
