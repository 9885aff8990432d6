package damage

import "github.com/cockroachdb/pebble/v2/vfs"

// maxAhead bounds, in bytes, what a file takes of the disk before it is written.
const maxAhead = 1 << 20

// Sparing is fs, but that its new files take little room ahead. Pebble takes for each
// log more than its whole memory table: a store of a few rows would fill 70 MB a log,
// and a machine has several stores. Room that is taken ahead makes nothing durable, and a
// log that outgrows it is written as any file.
func Sparing(fs vfs.FS) vfs.FS { return sparingFS{fs} }

type sparingFS struct{ vfs.FS }

func (s sparingFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, category)
	if err != nil {
		return nil, err
	}
	return sparingFile{f}, nil
}

// Unwrap is for vfs.Root.
func (s sparingFS) Unwrap() vfs.FS { return s.FS }

type sparingFile struct{ vfs.File }

func (f sparingFile) Preallocate(offset, length int64) error {
	return f.File.Preallocate(offset, min(length, maxAhead))
}
