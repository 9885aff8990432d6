//go:build unix

package state

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

func holder(f *os.File) (Process, bool) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK || lock.Pid <= 0 {
		return Process{}, false
	}
	return process(int(lock.Pid)), true
}
