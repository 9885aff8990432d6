package state

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Listener says which process listens on a TCP port of this machine. ok is false where
// none does, and where the system does not tell: beside Linux, and of the processes of
// other users.
func Listener(port int) (p Process, ok bool) {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} { // proc_net_tcp.txt of the kernel
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			const local, state, inode, listening = 1, 3, 9, "0A"
			fields := strings.Fields(lines.Text())
			if len(fields) > inode && fields[state] == listening && strings.HasSuffix(fields[local], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+fields[inode]+"]"] = true
			}
		}
		f.Close()
	}
	if len(inodes) == 0 {
		return Process{}, false
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return Process{}, false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && inodes[to] {
			pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
			if err != nil {
				return Process{}, false
			}
			return process(pid), true
		}
	}
	return Process{}, false
}

// process is what Linux tells of a process.
func process(pid int) Process {
	p := Process{PID: pid}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	if name, err := os.ReadFile(filepath.Join(proc, "comm")); err == nil {
		p.Command = strings.TrimSpace(string(name))
	}
	if info, err := os.Stat(proc); err == nil { // made when the process began, or was first looked at
		p.Age = time.Since(info.ModTime())
	}
	return p
}
