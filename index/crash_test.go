package index

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// step is what makes release k+1, a page that is in no release yet and the rest:
// the first step lists many packages, in the others a few change and one goes.
func step(t testing.TB, k uint64) []Batch {
	rng := rand.New(rand.NewPCG(k, 1))
	b := Batch{Now: epoch, Sources: []Source{{"ledger", fmt.Sprint(k)}}}
	add := func(name string) {
		e, blks := shownEntry(t, name, int(k), []string{"", "a", "b"}[rng.IntN(3)])
		b.Changes = append(b.Changes, Change{Entry: e})
		b.Blocks = append(b.Blocks, blks...)
	}
	for range 2 {
		add(fmt.Sprintf("p%d", rng.IntN(30)))
		add(fmt.Sprintf("@s/p%d", rng.IntN(30)))
	}
	if k == 0 {
		for i := range 60 {
			add(fmt.Sprintf("q%d", i))
		}
	}
	page := Batch{Changes: b.Changes[:3], More: true, Sources: []Source{{"ledger", fmt.Sprint(k, " in part")}}}
	page.Mark, b.Mark = page.Sources[0].Cursor, b.Sources[0].Cursor
	note := []byte(fmt.Sprint("held at ", k))
	page.Held = []Held{{Name: page.Changes[0].Name, Due: epoch.Add(time.Duration(k) * time.Hour), Note: note}, {Name: "q1", Note: note}}
	b.Held = []Held{{Name: b.Changes[3].Name, Due: epoch}, {Name: page.Changes[0].Name}, {Name: page.Changes[1].Name, Due: epoch.Add(1), Note: note}}
	b.Changes = append(b.Changes[3:], drop(fmt.Sprintf("p%d", rng.IntN(30))))
	return []Batch{page, b}
}

// take makes release k+1.
func take(t testing.TB, ix *Index, k uint64) (r Release, changed bool, err error) {
	for _, b := range step(t, k) {
		if r, changed, err = ix.Apply(t.Context(), b); err != nil {
			break
		}
	}
	return r, changed, err
}

// model is what the entries must be once the first n steps are done.
func model(t testing.TB, n uint64) map[npm.Name]Entry {
	m := map[npm.Name]Entry{}
	for k := range n {
		for _, b := range step(t, k) {
			change(m, b)
		}
	}
	return m
}

func change(m map[npm.Name]Entry, b Batch) {
	for _, c := range b.Changes {
		if c.Delete {
			delete(m, c.Name)
		} else {
			m[c.Name] = c.Entry
		}
	}
}

// keptOut is what must be held once the first n steps are done, and a page more.
func keptOut(t testing.TB, n uint64, page bool) []Held {
	m := map[npm.Name]Held{}
	for k := range n + 1 {
		for i, b := range step(t, k) {
			if k == n && (i > 0 || !page) {
				break
			}
			for _, h := range b.Held {
				if h.Due = dueTime(dueAt(h.Due)); h.none() {
					delete(m, h.Name)
				} else {
					m[h.Name] = h
				}
			}
		}
	}
	var all []Held
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, m[name])
	}
	return all
}

// cut is the disk as a power cut leaves it.
type cut struct {
	what  string
	acked uint64 // releases that Apply had returned
	disk  *vfs.MemFS
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

// TestPowerCuts fails the power before every write, sync, create and rename of
// an index's life, its creation and flushes included. What comes back is a
// release whose list, entries, blocks and sources are of one batch: none that
// Apply had returned is lost, none that it had not begun is there; entries may be
// ahead of it by the page that Apply had taken. Work goes on from it to the same
// list.
func TestPowerCuts(t *testing.T) {
	const releases = 18
	rng := rand.New(rand.NewPCG(5, 6))
	disk := vfs.NewCrashableMem()
	var (
		mu    sync.Mutex // flushes run beside Apply
		acked uint64
		cuts  []cut
	)
	fs := errorfs.Wrap(renaming{disk}, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpFilePreallocate {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		percent := []int{0, 50, 100}[len(cuts)%3]
		cuts = append(cuts, cut{fmt.Sprintf("%d: %v %s, %d %%", len(cuts), op.Kind, op.Path, percent), acked,
			disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})})
		return nil
	}))
	o := memory(nil)
	o.FS, o.memTable, o.chunk = fs, 64<<10, 4<<10
	ix, err := Create("ix", o)
	if err != nil {
		t.Fatal(err)
	}
	var lists []List // by number of release - 1
	for k := range uint64(releases) {
		r, changed, err := take(t, ix, k)
		if err != nil || !changed {
			t.Fatal(changed, err)
		}
		lists = append(lists, r.List)
		mu.Lock()
		acked = r.Number
		mu.Unlock()
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	if len(cuts) < 5*releases {
		t.Fatalf("only %d cuts", len(cuts))
	}
	models := make([]map[npm.Name]Entry, releases+1)
	for n := range models {
		models[n] = model(t, uint64(n))
	}
	ahead, within := 0, 0
	for _, cut := range cuts {
		ix, err := OpenOrCreate("ix", memory(cut.disk))
		if err != nil {
			t.Fatalf("cut %s: %v", cut.what, err)
		}
		r, err := ix.Head()
		if err != nil && !errors.Is(err, ErrNoRelease) {
			t.Fatalf("cut %s: %v", cut.what, err)
		}
		if r.Number < cut.acked || r.Number > cut.acked+1 {
			t.Fatalf("cut %s: release %d came back, %d was acknowledged", cut.what, r.Number, cut.acked)
		}
		if r.Number > cut.acked {
			ahead++
		}
		if r.Number > 0 && (r.List != lists[r.Number-1] || r.Sources[0].Cursor != fmt.Sprint(r.Number-1)) {
			t.Errorf("cut %s: release %d is %+v", cut.what, r.Number, r)
		}
		want := models[r.Number]
		pending, err := ix.Pending()
		if err != nil {
			t.Errorf("cut %s: %v", cut.what, err)
		} else if pending {
			within++
			want = maps.Clone(want)
			change(want, step(t, r.Number)[0])
		}
		got := collect(t, ix.Entries(t.Context()))
		if len(got) != len(want) {
			t.Errorf("cut %s: %d entries, want %d", cut.what, len(got), len(want))
		}
		for _, e := range got {
			if want[e.Name] != e {
				t.Errorf("cut %s: entry %v, want %v", cut.what, e, want[e.Name])
			}
		}
		mark := ""
		if pending {
			mark = fmt.Sprint(r.Number, " in part")
		} else if r.Number > 0 {
			mark = fmt.Sprint(r.Number - 1)
		}
		if got, err := ix.Mark(); err != nil || got != mark {
			t.Errorf("cut %s: mark %q, want %q, %v", cut.what, got, mark, err)
		}
		if got, want := collect(t, ix.AllHeld(t.Context())), keptOut(t, r.Number, pending); !reflect.DeepEqual(got, want) {
			t.Errorf("cut %s: held %v, want %v", cut.what, got, want)
		}
		if err := ix.Check(t.Context()); err != nil {
			t.Errorf("cut %s: %v", cut.what, err)
		}
		if r.Number > 0 {
			for _, err := range ix.Blocks(t.Context(), r.Number-1, r.Number) {
				if err != nil {
					t.Errorf("cut %s: %v", cut.what, err)
				}
			}
		}
		if r.Number < releases {
			again, _, err := take(t, ix, r.Number)
			if err == nil {
				err = ix.Check(t.Context())
			}
			if err != nil || again.Number != r.Number+1 || again.List != lists[r.Number] {
				t.Errorf("cut %s: going on gives %+v, %v", cut.what, again, err)
			}
		}
		if err := ix.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d cuts, %d of them came back with the release that was being made", len(cuts), ahead)
	if ahead == 0 || within == 0 {
		t.Errorf("no cut fell between the write of a batch and Apply's return (%d), or between the page and its release (%d)", ahead, within)
	}
}

// TestPowerCutsAtClose fails the power before every write of an index that is opened
// and closed again and again: what Close notes never makes what comes back look
// damaged.
func TestPowerCutsAtClose(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	disk := vfs.NewCrashableMem()
	var (
		mu    sync.Mutex
		acked uint64
		cuts  []cut
	)
	o := memory(nil)
	o.FS = errorfs.Wrap(renaming{disk}, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpFilePreallocate {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		percent := []int{0, 50, 100}[len(cuts)%3]
		cuts = append(cuts, cut{fmt.Sprintf("%d: %v %s, %d %%", len(cuts), op.Kind, op.Path, percent), acked,
			disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})})
		return nil
	}))
	for k := range uint64(3) {
		ix, err := OpenOrCreate("ix", o)
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := take(t, ix, k)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		acked = r.Number
		mu.Unlock()
		if err := ix.Close(); err != nil {
			t.Fatal(err)
		}
	}
	atNote := 0
	for _, cut := range cuts {
		if strings.Contains(cut.what, "ix/"+closedName) {
			atNote++
		}
		ix, err := OpenOrCreate("ix", memory(cut.disk))
		if err != nil {
			t.Errorf("cut %s: %v", cut.what, err)
			continue
		}
		r, err := ix.Head()
		if errors.Is(err, ErrNoRelease) {
			err = nil
		}
		if err == nil {
			err = ix.Check(t.Context())
		}
		if err != nil || r.Number < cut.acked {
			t.Errorf("cut %s: release %d, %d was acknowledged: %v", cut.what, r.Number, cut.acked, err)
		}
		if err := ix.Close(); err != nil {
			t.Error(err)
		}
	}
	if atNote < 3*4 { // created, written, synced, renamed; later removed
		t.Errorf("only %d of %d cuts at the note", atNote, len(cuts))
	}
}

// TestPowerCutAtCreate cuts the power after a directory was made but before the
// index was: Open sees none, Create makes it.
func TestPowerCutAtCreate(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := memory(fs)
	if err := fs.MkdirAll("ix", 0o700); err != nil {
		t.Fatal(err)
	}
	db, held, err := openPebble("ix", o.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	if err := held.close(db); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("ix", o); !errors.Is(err, ErrNoIndex) {
		t.Errorf("Open: %v", err)
	}
	ix, err := OpenOrCreate("ix", o)
	if err != nil {
		t.Fatal(err)
	}
	if err := ix.Close(); err != nil {
		t.Error(err)
	}
}
