package index

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble holds tables to checksums when it reads them. Its manifest and its log it
// reads up to the first record that is not right, as after a power cut: of a bit
// that flips in them it makes an older index, or none. So Close notes, in a file
// beside them, what they hold, and Open compares before Pebble sees them.
//
// Law, at Open: the directory is locked, the note compared, then durably removed,
// then Pebble opens. At Close: Pebble closes, which syncs its files, the directory is
// synced, then the note is written, then the lock given up. Whatever Pebble writes,
// or a power cut brings back, no note is there that it could make untrue: a process
// that was killed leaves none.
const (
	closedName    = "closed"
	closedNewName = "closed.new"
)

// lockedDir is an index's directory while it is locked.
type lockedDir struct {
	fs   vfs.FS
	path string
	lock *pebble.Lock
}

// lockDirectory has the directory until close, ErrLocked where another has it.
// Where an index was closed there it must be as it was then, else ErrCorrupt.
func lockDirectory(fs vfs.FS, path string) (lockedDir, error) {
	lock, err := pebble.LockDirectory(path, fs)
	if err != nil && heldElsewhere(err) {
		err = fmt.Errorf("%w: %w", ErrLocked, err)
	}
	if err != nil {
		return lockedDir{}, err
	}
	d := lockedDir{fs, path, lock}
	if err := d.compare(); err != nil {
		return lockedDir{}, errors.Join(err, lock.Close())
	}
	return d, nil
}

// close closes db, of this directory, and gives the directory free.
func (d lockedDir) close(db *pebble.DB) error {
	err := db.Close()
	if err == nil {
		err = d.note()
	}
	return errors.Join(err, d.lock.Close())
}

// compare holds the directory to the note, where there is one, and removes it.
func (d lockedDir) compare() error {
	name := d.fs.PathJoin(d.path, closedName)
	raw, err := d.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	sum, rest, _ := strings.Cut(string(raw), "\n")
	if sum != fmt.Sprintf("%x", sha256.Sum256([]byte(rest))) {
		return fmt.Errorf("%w: %s is damaged", ErrCorrupt, name)
	}
	now, err := d.sums()
	if err != nil {
		return err
	}
	if now != rest {
		return fmt.Errorf("%w: %s, since it was closed", ErrCorrupt, d.different(rest, now))
	}
	if err := d.fs.Remove(name); err != nil {
		return err
	}
	return d.sync()
}

// different says which files are other than they were.
func (d lockedDir) different(before, now string) string {
	was, is := strings.Fields(before), strings.Fields(now)
	var all []string
	for line := range strings.Lines(before) {
		name := strings.Fields(line)[1]
		switch {
		case !slices.Contains(is, name):
			all = append(all, d.fs.PathJoin(d.path, name)+" is gone")
		case !strings.Contains(now, line):
			all = append(all, d.fs.PathJoin(d.path, name)+" has changed")
		}
	}
	for line := range strings.Lines(now) {
		if name := strings.Fields(line)[1]; !slices.Contains(was, name) {
			all = append(all, d.fs.PathJoin(d.path, name)+" has come")
		}
	}
	return strings.Join(all, ", ")
}

// note writes what the directory holds, once what Pebble removed is so durably.
func (d lockedDir) note() error {
	if err := d.sync(); err != nil {
		return err
	}
	sums, err := d.sums()
	if err != nil {
		return err
	}
	name := d.fs.PathJoin(d.path, closedNewName)
	f, err := d.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%x\n%s", sha256.Sum256([]byte(sums)), sums)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.fs.Rename(name, d.fs.PathJoin(d.path, closedName))
	}
	if err == nil {
		err = d.sync()
	}
	return err
}

// noted tells Pebble's files but for the tables, and for what is not Pebble's.
func noted(name string) bool {
	return strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, "OPTIONS-") ||
		strings.HasPrefix(name, "marker.") || strings.HasSuffix(name, ".log")
}

// sums are a line for each file that is noted: SHA-256 and name.
func (d lockedDir) sums() (string, error) {
	names, err := d.fs.List(d.path)
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var all strings.Builder
	for _, name := range names {
		if !noted(name) {
			continue
		}
		f, err := d.fs.Open(d.fs.PathJoin(d.path, name), vfs.SequentialReadsOption)
		if err != nil {
			return "", err
		}
		sum := sha256.New()
		_, err = io.Copy(sum, bufio.NewReaderSize(f, 256<<10))
		if err := cmp.Or(err, f.Close()); err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%x %s\n", sum.Sum(nil), name)
	}
	return all.String(), nil
}

func (d lockedDir) read(name string) ([]byte, error) {
	f, err := d.fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var buf bytes.Buffer
	_, err = buf.ReadFrom(f)
	return buf.Bytes(), err
}

func (d lockedDir) sync() error {
	f, err := d.fs.OpenDir(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
