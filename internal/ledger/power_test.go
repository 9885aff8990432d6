package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// step is the i-th batch of the workload, i from 1 up. It moves a package, a
// version, a retry and the cursor together, so that any two of them can be
// compared afterwards.
func step(i int) Batch {
	name := npm.Name(fmt.Sprintf("p%d", i%7))
	b := Batch{
		Packages: []PackageUpdate{testUpdate(name, fmt.Sprint("document ", i), fmt.Sprintf("1.0.%d", i))},
		Retries:  []Retry{{Name: name, Version: fmt.Sprint(i), Detail: strings.Repeat("why ", 200)}},
		Cursor:   &Cursor{Feed: "feed", Value: fmt.Sprint(i)},
	}
	if i > 3 {
		b.Done = []Done{{Key: Key{Name: npm.Name(fmt.Sprintf("p%d", (i-3)%7)), Version: fmt.Sprint(i - 3)}}}
	}
	if i%10 == 0 {
		b.Packages = append(b.Packages, PackageUpdate{Name: npm.Name(fmt.Sprintf("p%d", (i+1)%7)), Deleted: true})
	}
	return b
}

// agree checks that s is exactly what the first n steps lead to, and returns n.
func agree(s *Store, acknowledged, begun int) (int, error) {
	ctx := context.Background()
	if err := s.Check(ctx); err != nil {
		return 0, err
	}
	n := 0
	if value, ok := s.Cursor("feed"); ok {
		if _, err := fmt.Sscan(value, &n); err != nil {
			return 0, err
		}
	}
	if n < acknowledged || n > begun {
		return n, fmt.Errorf("the cursor is at %d; %d were acknowledged and %d begun", n, acknowledged, begun)
	}
	model, err := Create("/model", testOptions(vfs.NewMem()))
	if err != nil {
		return n, err
	}
	defer model.Close()
	for i := 1; i <= n; i++ {
		if _, err := model.Commit(ctx, step(i)); err != nil {
			return n, err
		}
	}
	if got, want := dump(s), dump(model); got != want {
		return n, fmt.Errorf("after %d steps the rows are\n%s\nwant\n%s", n, got, want)
	}
	return n, nil
}

// dump is every row but the identity.
func dump(s *Store) string {
	var out strings.Builder
	it, err := s.db.NewIter(nil)
	if err != nil {
		return err.Error()
	}
	for ok := it.First(); ok; ok = it.Next() {
		if it.Key()[0] != rowIdentity {
			fmt.Fprintf(&out, "%q %q\n", it.Key(), it.Value())
		}
	}
	if err := it.Close(); err != nil {
		return err.Error()
	}
	return out.String()
}

// cut is the disk as a power cut leaves it.
type cut struct {
	op                  int
	kind                string
	percent             int // of what was not synced that survived
	acknowledged, begun int
	disk                *vfs.MemFS
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

// Power fails at every write, sync, create and rename of the whole life of a
// ledger, its creation, flushes and compactions included. What was acknowledged
// is there after it, and cursor, head, counts and rows agree.
func TestPowerCuts(t *testing.T) {
	const steps = 60
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	disk := vfs.NewCrashableMem()
	var (
		mu                  sync.Mutex
		acknowledged, begun int
		ops                 int
		cuts                []cut
		// While it opens, Pebble points its marker at a new manifest before
		// the directory is synced. A disk that kept the later of two new
		// entries of one directory and lost the earlier would break it; those
		// we run on write them in order. So then all is kept or nothing.
		opening = true
	)
	setOpening := func(b bool) {
		mu.Lock()
		defer mu.Unlock()
		opening = b
	}
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpFilePreallocate {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		ops++
		percent := []int{0, 50, 100}[ops%3]
		if opening && percent == 50 {
			percent = 100 * (ops % 2)
		}
		cuts = append(cuts, cut{ops, fmt.Sprint(op.Kind, " ", op.Path), percent, acknowledged, begun,
			disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})})
		return nil
	})
	o := testOptions(errorfs.Wrap(renaming{disk}, inject))
	o.memTable = 32 << 10 // some flushes on the way
	s, err := Create("/state/ledger", o)
	if err != nil {
		t.Fatal(err)
	}
	setOpening(false)
	for i := 1; i <= steps; i++ {
		mu.Lock()
		begun = i
		mu.Unlock()
		if _, err := s.Commit(context.Background(), step(i)); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		acknowledged = i
		mu.Unlock()
		if i%20 == 0 { // reopening replays the log
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			setOpening(true)
			if s, err = Open("/state/ledger", o); err != nil {
				t.Fatal(err)
			}
			setOpening(false)
		}
	}
	if flushes := s.db.Metrics().Flush.Count; flushes == 0 {
		t.Error("the workload flushed nothing")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	var inBatch, lost, kept, unborn int
	for _, c := range cuts {
		s, err := Open("/state/ledger", testOptions(c.disk))
		if errors.Is(err, ErrNoLedger) && c.begun == 0 {
			unborn++
			s, err = Create("/state/ledger", testOptions(c.disk))
		}
		if err != nil {
			t.Fatalf("cut at %d (%s, %d%%): %v", c.op, c.kind, c.percent, err)
		}
		n, err := agree(s, c.acknowledged, c.begun)
		if err != nil {
			t.Fatalf("cut at %d (%s, %d%%): %v", c.op, c.kind, c.percent, err)
		}
		if c.begun > c.acknowledged {
			inBatch++
			if n == c.begun {
				kept++
			} else {
				lost++
			}
		}
		// The caller repeats from the cursor; that must be harmless.
		if n < c.begun {
			if _, err := s.Commit(context.Background(), step(n+1)); err != nil {
				t.Fatal(err)
			}
			if _, err := agree(s, n+1, n+1); err != nil {
				t.Fatalf("repeated after the cut at %d: %v", c.op, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d cuts, %d in mid-batch (%d batches kept, %d lost), %d before there was a ledger", len(cuts), inBatch, kept, lost, unborn)
	// Each kind of cut really happened, or the test proves nothing.
	if inBatch < steps || kept == 0 || lost == 0 || unborn == 0 {
		t.Error("the cuts did not hit what they should")
	}
}

// The n-th write or sync of the log fails, the batch being kept on disk or not.
// Commit never acknowledges it, and the next start finds one or the other.
func TestFailedWrites(t *testing.T) {
	for _, keep := range []int{0, 100} {
		for n := 1; ; n++ {
			fired, err := failNthWrite(t, n, keep)
			if err != nil {
				t.Fatalf("write %d failed, %d%% kept: %v", n, keep, err)
			}
			if !fired {
				if n < 10 {
					t.Errorf("only %d faults fired", n-1)
				}
				break
			}
		}
	}
}

var errDisk = errors.New("injected disk fault")

func failNthWrite(t *testing.T, n, keep int) (fired bool, err error) {
	disk := vfs.NewCrashableMem()
	var (
		mu    sync.Mutex
		armed bool
		seen  int
	)
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		isLog := strings.HasSuffix(op.Path, ".log")
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		default:
			isLog = false
		}
		mu.Lock()
		defer mu.Unlock()
		if !armed || !isLog {
			return nil
		}
		if seen++; seen >= n { // a disk that fails goes on failing
			fired = true
			return errDisk
		}
		return nil
	})
	o := testOptions(errorfs.Wrap(renaming{disk}, inject))
	o.fatal = func(error) {} // Fatalf panics after it
	s, err := Create("/ledger", o)
	if err != nil {
		return false, err
	}
	mu.Lock()
	armed = true
	mu.Unlock()
	acknowledged, begun := 0, 0
	for i := 1; i <= 6; i++ {
		begun = i
		if !commits(s, step(i)) {
			break
		}
		acknowledged = i
	}
	mu.Lock()
	armed = false
	got := fired
	mu.Unlock()
	if got == (acknowledged == 6) {
		return got, fmt.Errorf("fault fired: %v, yet %d of 6 were acknowledged", got, acknowledged)
	}
	if !got {
		return false, s.Close()
	}
	after := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rand.New(rand.NewPCG(1, uint64(n)))})
	again, err := Open("/ledger", testOptions(after))
	if err != nil {
		return true, err
	}
	defer again.Close()
	_, err = agree(again, acknowledged, begun)
	return true, err
}

// commits reports whether Commit acknowledged b; the end of the process, which
// is a panic here, is no acknowledgement.
func commits(s *Store, b Batch) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	_, err := s.Commit(context.Background(), b)
	return err == nil
}
