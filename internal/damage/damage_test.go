package damage

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

var errDamaged = errors.New("the store is damaged")

// table makes a store of one table on a file system, and gives the table's path.
func table(t *testing.T) (*vfs.MemFS, string) {
	t.Helper()
	fs := vfs.NewMem()
	db, err := pebble.Open("db", &pebble.Options{FS: fs, Logger: quiet{t}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if err := db.Set(fmt.Appendf(nil, "key %d", i), bytes.Repeat([]byte{byte(i)}, 50), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("db")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			return fs, fs.PathJoin("db", name)
		}
	}
	t.Fatal("no table")
	return nil, ""
}

// quiet fails the test where Pebble would end the process.
type quiet struct{ t *testing.T }

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (q quiet) Fatalf(format string, args ...any) {
	q.t.Errorf("fatal: "+format, args...)
	panic("fatal")
}

func rewrite(t *testing.T, fs *vfs.MemFS, path string, change func([]byte) []byte) {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, info.Size())
	_, err = f.ReadAt(raw, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	g, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = g.Write(change(raw))
		err = errors.Join(err, g.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped":   func(raw []byte) []byte { raw[100] ^= 1; return raw },
		"truncated": func(raw []byte) []byte { return raw[:len(raw)/2] },
		"gone":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			fs, path := table(t)
			if damage == nil {
				if err := fs.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				rewrite(t, fs, path, damage)
			}
			var log bytes.Buffer
			db, err := pebble.Open("db", &pebble.Options{FS: fs, Logger: quiet{t}, EventListener: Listener(slog.New(slog.NewTextHandler(&log, nil)))})
			if err != nil {
				err = AtOpen(err, errDamaged)
			} else {
				for range 3 {
					_, closer, e := db.Get([]byte("key 1"))
					if e == nil {
						e = closer.Close()
					}
					err = As(e, errDamaged)
				}
				if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), path) {
					t.Errorf("logged %d times: %s", n, log.String())
				}
				if e := db.Close(); e != nil {
					t.Error(e)
				}
			}
			if !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), path[strings.LastIndex(path, "/")+1:len(path)-len(".sst")]) {
				t.Errorf("%v", err)
			}
			if As(err, errDamaged) != err {
				t.Error("it is wrapped twice")
			}
		})
	}
	other := errors.New("another error")
	if As(other, errDamaged) != other || AtOpen(other, errDamaged) != other || As(nil, errDamaged) != nil {
		t.Error("another error is changed")
	}
}

// TestOrdered cuts the power before every sync and removal of a store that opens
// again and again, with a file system that keeps or loses each name by itself.
func TestOrdered(t *testing.T) {
	disk := vfs.NewCrashableMem()
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex // files are removed beside what else is done
	var cuts []*vfs.MemFS
	fs := errorfs.Wrap(renaming{disk}, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == errorfs.OpRemove || op.Kind == errorfs.OpFileSync {
			for range 20 {
				cuts = append(cuts, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
			}
		}
		return nil
	}))
	open := func(fs vfs.FS) error {
		db, err := pebble.Open("db", &pebble.Options{FS: Ordered(fs), Logger: quiet{t}})
		if err != nil {
			return err
		}
		return errors.Join(db.Set([]byte("a"), nil, pebble.Sync), db.Close())
	}
	for range 3 {
		if err := open(fs); err != nil {
			t.Fatal(err)
		}
	}
	for i, cut := range cuts {
		if err := open(cut); err != nil {
			t.Errorf("cut %d of %d: %v", i, len(cuts), err)
		}
	}
	if len(cuts) < 100 {
		t.Errorf("%d cuts", len(cuts))
	}
}

// renaming reuses a log without MemFS.ReuseForWrite, which takes its read lock
// twice and so waits for ever where CrashClone comes between (Pebble v2.1.7).
type renaming struct{ *vfs.MemFS }

func (fs renaming) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Rename(from, to); err != nil {
		return nil, err
	}
	return fs.OpenReadWrite(to, category)
}
