package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

// files are what a directory holds.
func files(t testing.TB, fs vfs.FS, dir string) map[string][]byte {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, name := range names {
		f, err := fs.Open(fs.PathJoin(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if all[name], err = io.ReadAll(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return all
}

// disk holds an index of these files.
func disk(t testing.TB, files map[string][]byte) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("ix", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		f, err := fs.Create("ix/"+name, vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.Write(bytes.Clone(data)) // under the race detector it writes over what it is given
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

// contents are all that can be read of an index.
type contents struct {
	Head     Release
	Releases []Release
	Sources  []Source
	Entries  []Entry
	Rows     map[string]string
}

func read(ctx context.Context, ix *Index) (c contents, err error) {
	c.Rows = map[string]string{}
	if c.Head, err = ix.Head(); err != nil {
		return c, err
	}
	if c.Sources, err = ix.Sources(); err != nil {
		return c, err
	}
	for r, err := range ix.Releases(ctx) {
		if err != nil {
			return c, err
		}
		c.Releases = append(c.Releases, r)
	}
	for e, err := range ix.Entries(ctx) {
		if err != nil {
			return c, err
		}
		c.Entries = append(c.Entries, e)
	}
	for row, err := range scanBetween(ctx, ix.db, nil, nil) {
		if err != nil {
			return c, err
		}
		c.Rows[string(row.key)] = string(row.value)
	}
	return c, nil
}

// A bit that flips in any file is found, and the file named, or it changes nothing
// that can be read. In most files it is always found.
func TestCheckFlippedBits(t *testing.T) {
	fs := vfs.NewMem()
	o := memory(fs)
	o.memTable = 64 << 10
	ix, err := Create("ix", o)
	if err != nil {
		t.Fatal(err)
	}
	for k := range uint64(6) {
		if _, _, err := take(t, ix, k); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ix.Collect(t.Context(), 4, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ix.Apply(t.Context(), step(t, 6)[0]); err != nil { // ahead of a release
		t.Fatal(err)
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	whole := files(t, fs, "ix")
	if ix, err = Open("ix", memory(disk(t, whole))); err != nil {
		t.Fatal(err)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	want, err := read(t.Context(), ix)
	if err != nil || len(want.Rows) < 300 {
		t.Fatal(len(want.Rows), err)
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}

	rng := rand.New(rand.NewPCG(7, 8))
	found, harmless := map[string]int{}, map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(whole)) {
		kind := strings.Trim(name, "-.0123456789")
		n := 10
		if kind == "sst" {
			n = 30
		}
		for range min(n, 8*len(whole[name])) {
			bit := rng.IntN(8 * len(whole[name]))
			flipped := maps.Clone(whole)
			flipped[name] = bytes.Clone(whole[name])
			flipped[name][bit/8] ^= 1 << (bit % 8)
			at := fmt.Sprintf("%s, bit %d", name, bit)
			ix, err := Open("ix", memory(disk(t, flipped)))
			if err == nil {
				err = ix.Check(t.Context())
				got, unread := read(t.Context(), ix)
				ix.Close()
				if err == nil {
					if unread != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("%s: not found, and not harmless: %v", at, unread)
					}
					harmless[kind]++
					continue
				}
			}
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "ix/"+name+" ") && !strings.Contains(err.Error(), "ix/"+name+":") {
				t.Errorf("%s: %v", at, err)
			}
			found[kind]++
		}
	}
	t.Logf("found %v, harmless %v", found, harmless)
	for _, kind := range []string{"sst", "log", "MANIFEST", "OPTIONS", "closed"} {
		if found[kind] == 0 || kind != "sst" && harmless[kind] > 0 {
			t.Errorf("%s: %d found, %d harmless", kind, found[kind], harmless[kind])
		}
	}
}

// A file that is gone, or that came, is named.
func TestOpenOtherFiles(t *testing.T) {
	fs := vfs.NewMem()
	ix, err := Create("ix", memory(fs))
	if err != nil {
		t.Fatal(err)
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	whole := files(t, fs, "ix")
	manifest := ""
	for name := range whole {
		if strings.HasPrefix(name, "MANIFEST") {
			manifest = name
		}
	}
	gone, more := maps.Clone(whole), maps.Clone(whole)
	delete(gone, manifest)
	more["000099.log"] = []byte("of another index")
	for _, c := range []struct {
		files map[string][]byte
		want  string
	}{{gone, "ix/" + manifest + " is gone"}, {more, "ix/000099.log has come"}} {
		for range 2 { // it stays so
			if _, err := Open("ix", memory(disk(t, c.files))); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		}
	}
	// What was killed leaves no note, and is opened as it is.
	killed := maps.Clone(whole)
	delete(killed, closedName)
	// A file that is not Pebble's is nobody's business.
	other := maps.Clone(whole)
	other["._MANIFEST"] = []byte("of a file manager")
	for _, files := range []map[string][]byte{killed, other} {
		if ix, err = Open("ix", memory(disk(t, files))); err != nil {
			t.Fatal(err)
		}
		if err := ix.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A row that says something else than it should is found, and named.
func TestCheckRows(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(t *testing.T, ix *Index, b *pebble.Batch) error
		want  string
	}{
		"unknown": {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set([]byte("zz"), nil, nil) }, `row "zz"`},
		"format": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			return b.Set([]byte{rowFormat}, []byte(`{"format":1}`), nil)
		}, `row "f"`},
		"sources": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			return b.Set([]byte{rowSources}, []byte("["), nil)
		}, "sources row"},
		"counts": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			return b.Set([]byte{rowCounts}, []byte{9, 9}, nil)
		}, "are counted"},
		"pending":      {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set([]byte("da"), []byte{2}, nil) }, `row "da"`},
		"pending name": {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set([]byte("d../a"), []byte{1}, nil) }, `row "d../a"`},
		"entry":        {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set(entryKey("a"), []byte{1}, nil) }, "entry a"},
		"entry of another package": {func(t *testing.T, _ *Index, b *pebble.Batch) error {
			e, _ := entry(t, "b", 7)
			return b.Set(entryKey("a"), encodeEntry(e), nil)
		}, "block baf"},
		"entry name": {func(t *testing.T, _ *Index, b *pebble.Batch) error {
			e, _ := entry(t, "b", 7)
			return b.Set(entryKey("../b"), encodeEntry(e), nil)
		}, `row "e../b"`},
		"place":            {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set(pendingKey("a"), []byte{0}, nil) }, "a has no place"},
		"place of nothing": {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set(place{"", "x"}.key(), nil, nil) }, "a place of \"x\", which is not listed"},
		"block": {func(_ *testing.T, ix *Index, b *pebble.Batch) error {
			r, err := ix.Release(1)
			return errors.Join(err, b.Set(blockKey(r.List.Root), []byte("other"), nil))
		}, "row \"b"},
		"block's key": {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set([]byte("bx"), []byte("x"), nil) }, `row "bx"`},
		"ahead": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			c, err := cid.V1Builder{Codec: cid.Raw, MhType: 0x12}.Sum([]byte("nowhere"))
			return errors.Join(err, b.Set(aheadKey(c), nil, nil))
		}, "no such block"},
		"oldest": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			return b.Set([]byte{rowOldest}, numbered(rowOldest, 9)[1:], nil)
		}, `row "o"`},
		"history":            {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set(historyKey(2, "a"), []byte{2}, nil) }, "history of a"},
		"history of nothing": {func(_ *testing.T, _ *Index, b *pebble.Batch) error { return b.Set([]byte("w1"), nil, nil) }, `row "w1"`},
		"snapshot of a month": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			return b.Set(monthKey(epoch), []byte{1, 1, 1}, nil)
		}, "snapshot of 2026-01"},
		"older release lost its directory": {func(_ *testing.T, ix *Index, b *pebble.Batch) error {
			r, err := ix.Release(2)
			return errors.Join(err, b.Delete(blockKey(r.Root), nil))
		}, "release 2"},
		"newest release lost its directory": {func(_ *testing.T, ix *Index, b *pebble.Batch) error {
			r, err := ix.Head()
			return errors.Join(err, b.Delete(blockKey(r.Root), nil))
		}, "release 3"},
		"release row": {func(_ *testing.T, _ *Index, b *pebble.Batch) error {
			return b.Set(numbered(rowRelease, 2), []byte("{"), nil)
		}, "release row"},
		"release row of another": {func(_ *testing.T, ix *Index, b *pebble.Batch) error {
			r, err := ix.Release(2)
			r.Packages++
			raw, err2 := encodeRelease(r, true)
			return errors.Join(err, err2, b.Set(numbered(rowRelease, 2), raw, nil))
		}, "release 2: its row has"},
		"release under another number": {func(_ *testing.T, ix *Index, b *pebble.Batch) error {
			r, err := ix.Release(2)
			raw, err2 := encodeRelease(r, true)
			return errors.Join(err, err2, b.Set(numbered(rowRelease, 1), raw, nil))
		}, "release row"},
	} {
		t.Run(what, func(t *testing.T) {
			ix := newIndexFor(t)
			for k := range 3 {
				batch := Batch{Now: epoch, Sources: []Source{{"ledger", fmt.Sprint(k)}}}
				for _, name := range []string{"a", fmt.Sprint("p", k)} {
					e, blks := entry(t, name, k)
					batch.Changes, batch.Blocks = append(batch.Changes, Change{Entry: e}), append(batch.Blocks, blks...)
				}
				if _, _, err := ix.Apply(t.Context(), batch); err != nil {
					t.Fatal(err)
				}
			}
			if err := ix.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			b := ix.db.NewBatch()
			if err := c.spoil(t, ix, b); err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(pebble.Sync); err != nil {
				t.Fatal(err)
			}
			if err := ix.Check(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// An old release whose directories were collected is no fault.
func TestCheckCollected(t *testing.T) {
	ix := newIndexFor(t)
	first := mustApply(t, ix, put(t, "a", 1))
	second := mustApply(t, ix, put(t, "a", 2))
	if c, err := ix.Collect(t.Context(), second.Number, nil); err != nil || c.Blocks == 0 {
		t.Fatal(c, err)
	}
	if _, err := ReadRelease(t.Context(), ix, first.Root); !errors.Is(err, ErrNoBlock) {
		t.Fatal(err)
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ix.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}

func TestCheckProgress(t *testing.T) {
	ix := newIndexFor(t)
	var changes []Change
	for i := range 900 {
		changes = append(changes, put(t, fmt.Sprint("p", i), 1))
	}
	mustApply(t, ix, changes...)
	last := 0
	if err := ix.CheckProgress(t.Context(), func(n int) {
		if n <= last {
			t.Errorf("%d rows after %d", n, last)
		}
		last = n
	}); err != nil || last == 0 {
		t.Error(last, err)
	}
}
