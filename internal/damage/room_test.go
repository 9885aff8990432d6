package damage

import (
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ahead counts what files take of the disk before they are written.
type ahead struct {
	vfs.FS
	times, bytes *int64
}

func (a ahead) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := a.FS.Create(name, category)
	return aheadFile{f, a}, err
}

type aheadFile struct {
	vfs.File
	of ahead
}

func (f aheadFile) Preallocate(offset, length int64) error {
	*f.of.times++
	*f.of.bytes += length
	return f.File.Preallocate(offset, length)
}

func TestSparing(t *testing.T) {
	var times, bytes int64
	db, err := pebble.Open(t.TempDir(), &pebble.Options{
		FS: Sparing(ahead{vfs.Default, &times, &bytes}), MemTableSize: 64 << 20,
		FormatMajorVersion: pebble.FormatValueSeparation, Logger: quiet{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte("k"), make([]byte, 3<<20), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if times == 0 || bytes > times*maxAhead {
		t.Errorf("took %d bytes ahead, %d times", bytes, times)
	}
}
