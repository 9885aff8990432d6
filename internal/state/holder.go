package state

import (
	"fmt"
	"os"
	"time"
)

// Process is a process that holds a lock.
type Process struct {
	PID     int
	Command string        // "" where the system does not tell
	Age     time.Duration // since it began; 0 where the system does not tell
}

// String is how people are told of it: "publisher (process 4711, for 5m0s)".
func (p Process) String() string {
	name := p.Command
	if name == "" {
		name = "another"
	}
	if p.Age <= 0 {
		return fmt.Sprintf("%s (process %d)", name, p.PID)
	}
	return fmt.Sprintf("%s (process %d, for %s)", name, p.PID, p.Age.Round(time.Second))
}

// Holder says which process holds the lock file at path, as all of a state's are
// held: by fcntl(2). ok is false where none does, where this process does, or where
// the system does not tell, as of a process behind a network file system.
func Holder(path string) (p Process, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return Process{}, false
	}
	// Closing any descriptor of a file gives up the locks that this process has on
	// it; it is asked for only where another one has them.
	defer f.Close()
	return holder(f)
}
