//go:build unix

package state

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func holder(f *os.File) (Process, bool) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK || lock.Pid <= 0 {
		return Process{}, false
	}
	p := Process{PID: int(lock.Pid)}
	proc := filepath.Join("/proc", strconv.Itoa(p.PID)) // Linux
	if name, err := os.ReadFile(filepath.Join(proc, "comm")); err == nil {
		p.Command = strings.TrimSpace(string(name))
	}
	if info, err := os.Stat(proc); err == nil { // made when the process began, or was first looked at
		p.Age = time.Since(info.ModTime())
	}
	return p, true
}
