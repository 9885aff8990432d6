//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// job is one measured side, for a process of its own: so neither the other side
// nor the making of names is in its memory.
type job struct {
	Side     string   // of sides
	List     string   // file of the list, in the order of the names
	Index    string   // directory of the index
	Root     string   // of the list in the index, before any change
	Changes  []string // files of changes, one after the other
	Blocks   string   // directory of blocks as files
	Copy     string   // directory of a reader's copy
	Roots    []string // of releases that it comes to
	Withhold bool     // a version of the large package
	Profile  string   // file for a CPU profile, "" for none
}

// measured is what a side says.
type measured struct {
	cost
	Root  string   // of the list that came of it
	Steps []step   // one per file of changes, or per release
	Roots []string // of releases that were made
	Ways  []string // by which a copy came to each release
	Day   *dayResult
}

// cost is what a timed part took. RSSMiB is the most memory that the process ever
// had.
type cost struct{ Seconds, CPU, RSSMiB float64 }

// step is one file of changes.
type step struct {
	Seconds, CPU  float64
	Blocks, Bytes int // new ones
	Root          string
}

var sides = map[string]func(context.Context, job) (measured, error){
	"load":          load,
	"build":         build,
	"memory":        inMemory,
	"pebble":        fromPebble,
	"boxo":          boxoBulk,
	"lookup":        lookThrough,
	"releases":      releases,
	"boxo-releases": boxoReleases,
	"snapshot":      snapshot,
	"sync":          syncCopy,
	"day":           live,
	"documents":     documents,
	"plain":         plainDocuments,
}

// measure runs a side, on a list of n names, in a process of its own.
func (b *bench) measure(ctx context.Context, n int, j job) (m measured, err error) {
	if b.profiles != "" {
		j.Profile = filepath.Join(b.profiles, fmt.Sprint(j.Side, "-", n, ".prof"))
	}
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	raw, err := json.Marshal(j)
	if err != nil {
		return m, err
	}
	cmd := exec.CommandContext(ctx, self, "--job", string(raw))
	// Asked to end, it ends what it does and closes the index.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err != nil {
		return m, fmt.Errorf("%s: %w", j.Side, err)
	}
	return m, nil
}

// serve is that process.
func serve(ctx context.Context, raw string, out io.Writer) error {
	var j job
	if err := json.Unmarshal([]byte(raw), &j); err != nil {
		return err
	}
	side, ok := sides[j.Side]
	if !ok {
		return fmt.Errorf("no side is called %q", j.Side)
	}
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	m, err := side(ctx, j)
	if err != nil {
		return err
	}
	m.RSSMiB = peak()
	return json.NewEncoder(out).Encode(m)
}

// timed runs f and says what it took.
func timed(f func() error) (cost, error) {
	begun, cpu := time.Now(), cpuTime()
	err := f()
	return cost{Seconds: time.Since(begun).Seconds(), CPU: (cpuTime() - cpu).Seconds()}, err
}

// cpuTime is what this process has used, all cores together.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peak is the most memory that this process ever had, in MiB; 0 where the system
// does not tell.
func peak() float64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(raw, []byte("VmHWM:"))
	var kib float64
	if _, err := fmt.Sscan(string(rest), &kib); err != nil {
		return 0
	}
	return kib / 1024
}

// syncfs writes all that is in dir's file system to the disk, so that no sync that
// is timed waits for what came before.
func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// atRest waits until the files in an index's directory stay the same, so that what is
// timed does not pay for what came before: a store merges its tables by and by.
func atRest(ctx context.Context, dir string) error {
	for before, since := "", time.Now(); time.Since(since) < 2*time.Minute; {
		files, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		now := fmt.Sprint(files)
		if now == before {
			break
		}
		before = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(3 * time.Second):
		}
	}
	return syncfs(dir)
}

func median[T float64 | int](s []T) T {
	s = slices.Clone(s)
	slices.Sort(s)
	if n := len(s); n > 0 && n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
