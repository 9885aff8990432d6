package mirror

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

// A mirror goes with the account of its files, and with nothing of another's; what a
// power cut left of it, another Remove ends.
func TestRemove(t *testing.T) {
	for _, cut := range []string{"", "aside", "forgotten"} {
		disk := vfs.NewCrashableMem()
		check(t, disk.MkdirAll("state/mirror/k51/list", 0o700))
		check(t, writeDurably(disk, "state/mirror/k51", "highwater.json", []byte("{}")))
		for _, dir := range []string{"", "state", "state/mirror", "state/mirror/k51"} {
			check(t, syncDir(disk, dir))
		}
		c := testCache(t, CacheOptions{FS: disk})
		b, files := binOf(rand.New(rand.NewPCG(5, 5)), 100)
		for i, label := range []string{OwnPart("k51"), OwnPart("k51other")} {
			p := c.Part(label, b, nil)
			p.attach(b.look, nil, func(cid.Cid) {})
			for _, file := range files[:99*(1-i)+1] {
				b.read(t, p, file)
			}
		}
		check(t, c.db.LogData(nil, pebble.Sync))
		if cut != "" {
			var after *vfs.MemFS
			c.fault = func(step string) error {
				if step != cut {
					return nil
				}
				after = disk.CrashClone(vfs.CrashCloneCfg{})
				return errCut
			}
			if err := Remove("state/mirror/k51", c); !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			if disk = after; disk == nil {
				t.Fatal("no cut")
			}
			if _, err := disk.Stat("state/mirror/k51"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("cut %s: it is there yet: %v", cut, err)
			}
			c = testCache(t, CacheOptions{FS: disk})
		}
		check(t, Remove("state/mirror/k51", c))
		var size int64
		for _, piece := range b.files[files[0]] {
			size += piece.size
		}
		if got := c.Status().Bytes; got != size {
			t.Errorf("cut %q: %d bytes count, the other mirror has %d", cut, got, size)
		}
		if left, err := disk.List("state/mirror"); err != nil || len(left) > 0 {
			t.Errorf("cut %q: %q, %v", cut, left, err)
		}
		if err := Remove("state/mirror/k51", c); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("nothing is removed: %v", err)
		}
	}
}

// One that is in use stays.
func TestRemoveLocked(t *testing.T) {
	w := newWorld(t)
	disk := vfs.NewMem()
	m := w.open(func(o *Options) { o.FS, o.Dir = disk, "mirror" })
	if err := Remove("mirror", testCache(t, CacheOptions{FS: disk})); !errors.Is(err, ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
	check(t, m.Close())
	if left, err := disk.List("mirror"); err != nil || !slices.Contains(left, "list") {
		t.Errorf("%q, %v", left, err)
	}
}
