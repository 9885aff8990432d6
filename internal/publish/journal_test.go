package publish

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

const testValue = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"

func testJournal(t testing.TB, lines ...line) *vfs.MemFS {
	t.Helper()
	disk := vfs.NewCrashableMem()
	if err := CreateJournal(disk, journalPath); err != nil {
		t.Fatal(err)
	}
	appendLines(t, disk, lines...)
	return disk
}

func appendLines(t testing.TB, disk vfs.FS, lines ...line) {
	t.Helper()
	j, err := openJournal(disk, journalPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if err := j.append(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

func intent(seq uint64) line {
	return line{Op: opIntent, Name: "k51", Sequence: seq, Value: testValue}
}

func contents(t testing.TB, disk vfs.FS) []byte {
	t.Helper()
	f, err := disk.Open(journalPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestCreateJournal(t *testing.T) {
	disk := testJournal(t)
	// Between a journal and its key a crash leaves this: it will do.
	if err := CreateJournal(disk, journalPath); err != nil {
		t.Error(err)
	}
	appendLines(t, disk, intent(1))
	if err := CreateJournal(disk, journalPath); !errors.Is(err, ErrJournalUsed) {
		t.Errorf("got %v", err)
	}
	if _, err := openJournal(disk, "state/none", nil); !errors.Is(err, ErrNoJournal) {
		t.Errorf("got %v", err)
	}
	if _, err := disk.Stat("state/none"); err == nil {
		t.Error("reading made a journal")
	}
}

// A last line that a power cut tore off is gone, wherever it was torn; all
// before it stays.
func TestJournalTorn(t *testing.T) {
	whole := contents(t, testJournal(t, intent(1), line{Op: opRecord, Sequence: 1, Record: []byte("record")}))
	first := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for n := first; n < len(whole); n++ {
		torn := vfs.NewMem()
		if err := torn.MkdirAll("state", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := replace(torn, journalPath, bytes.NewReader(whole[:n])); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(torn, journalPath, nil)
		if err != nil {
			t.Fatalf("torn at %d: %v", n, err)
		}
		if j.max != 1 || j.last == nil || j.last.Record != nil {
			t.Fatalf("torn at %d: %+v", n, j.history)
		}
		if err := j.append(line{Op: opAbandoned, Sequence: 1}); err != nil {
			t.Fatal(err)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		h, good, err := readJournal(torn, journalPath)
		if err != nil || good.torn || !h.last.Abandoned {
			t.Fatalf("torn at %d, then: %+v, %v", n, h, err)
		}
	}
}

// Any change to a finished line is seen. Nothing is signed by such a journal.
func TestJournalDamaged(t *testing.T) {
	disk := testJournal(t, intent(1), line{Op: opRecord, Sequence: 1, Record: []byte("record")}, line{Op: opConfirmed, Sequence: 1})
	whole := contents(t, disk)
	try := func(name string, data []byte) {
		t.Helper()
		bad := vfs.NewMem()
		if err := bad.MkdirAll("state", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := replace(bad, journalPath, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if _, err := openJournal(bad, journalPath, nil); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range whole[:len(whole)-1] {
		data := bytes.Clone(whole)
		data[i] ^= 1
		try("byte "+string(whole[i]), data)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	try("a line lost", bytes.Join(append(append([][]byte{}, lines[:1]...), lines[2:]...), nil))
	try("a line twice", bytes.Join([][]byte{lines[0], lines[1], lines[1]}, nil))
	try("lines moved", bytes.Join([][]byte{lines[0], lines[2], lines[1]}, nil))
	try("empty", nil)
	try("a long line", []byte(strings.Repeat("x", maxLine+1)+"\n"))
}

func TestJournalRules(t *testing.T) {
	for name, lines := range map[string][]line{
		"sequence again":  {intent(2), intent(2)},
		"sequence falls":  {intent(2), intent(1)},
		"below adopted":   {{Op: opAdopted, Format: journalFormat, Sequence: 7}, intent(7)},
		"another name":    {intent(1), {Op: opIntent, Name: "k52", Sequence: 2, Value: testValue}},
		"no value":        {{Op: opIntent, Name: "k51", Sequence: 1}},
		"no intent":       {{Op: opRecord, Sequence: 1}},
		"another's bytes": {intent(2), {Op: opRecord, Sequence: 1}},
		"unknown":         {{Op: "revoked"}},
		"another format":  {{Op: opAdopted, Format: journalFormat + 1, Sequence: 7}},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := openJournal(testJournal(t, lines[:len(lines)-1]...), journalPath, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer j.close()
			if err := j.append(lines[len(lines)-1]); !errors.Is(err, ErrJournal) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Every call of the filesystem fails once. A line whose append failed is not
// in the journal afterwards, though its bytes may have been written.
func TestJournalFaults(t *testing.T) {
	failed := errors.New("disk trouble")
	for n := 1; ; n++ {
		disk := testJournal(t, intent(1))
		calls := 0
		faulty := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if calls++; calls == n {
				return failed
			}
			return nil
		}))
		err := func() error {
			j, err := openJournal(faulty, journalPath, nil)
			if err != nil {
				return err
			}
			return errors.Join(j.append(intent(2)), j.close())
		}()
		if (calls >= n) != errors.Is(err, failed) {
			t.Fatalf("fault %d of %d calls: %v", n, calls, err)
		}
		h, _, readErr := readJournal(disk, journalPath)
		if readErr != nil {
			t.Fatalf("fault %d (%v): %v", n, err, readErr)
		}
		if err == nil && h.max != 2 {
			t.Fatalf("fault %d: the line is lost", n)
		}
		// What is there also survives a power cut.
		after, _, cutErr := readJournal(disk.CrashClone(vfs.CrashCloneCfg{}), journalPath)
		if cutErr != nil || after.max != h.max {
			t.Fatalf("fault %d: after a power cut %d, before it %d (%v)", n, after.max, h.max, cutErr)
		}
		if calls < n {
			if n < 8 {
				t.Errorf("only %d calls", n)
			}
			return
		}
	}
}

// A failed fsync leaves bytes that can be read and may never reach the disk.
func TestJournalSyncFails(t *testing.T) {
	disk := testJournal(t, intent(1))
	failed, armed := errors.New("disk trouble"), false
	faulty := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed && op.Kind == errorfs.OpFileSync {
			armed = false
			return failed
		}
		return nil
	}))
	j, err := openJournal(faulty, journalPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	armed = true
	if err := j.append(intent(2)); !errors.Is(err, failed) {
		t.Fatalf("got %v", err)
	}
	if h, _, err := readJournal(disk, journalPath); err != nil || h.max != 1 {
		t.Errorf("sequence %d is there (%v)", h.max, err)
	}
}

// What a key from elsewhere may find, and what its journal is then. Nothing that
// was signed is lost, and no journal says that nothing was.
func TestImportJournal(t *testing.T) {
	name, other := testSigner(t, 1).IPNSName(), testSigner(t, 2).IPNSName()
	n := func(n uint64) *uint64 { return &n }
	adopted := func(name ipns.Name, seq uint64, record []byte) line {
		return line{Op: opAdopted, Format: journalFormat, Name: name.String(), Sequence: seq, Record: record}
	}
	signed := line{Op: opIntent, Name: name.String(), Sequence: 7, Value: testValue}
	for _, c := range []struct {
		name    string
		before  []line // after "created"; nil for no journal
		atLeast *uint64
		ops     string // "" for no journal
		max     uint64
		err     error
	}{
		{"none, and nothing said", nil, nil, "", 0, nil},
		{"none", nil, n(41), "adopted", 41, nil},
		{"none, of a key that never signed", nil, n(0), "adopted", 0, nil},
		{"none, the last that may be", nil, n(1<<62 - 1), "adopted", 1<<62 - 1, nil},
		{"none, out of bounds", nil, n(1 << 62), "", 0, ipnsrecord.ErrSequence},
		{"none, far out of bounds", nil, n(math.MaxUint64), "", 0, ipnsrecord.ErrSequence},
		{"of nothing, and nothing said", []line{}, nil, "", 0, nil},
		{"of nothing", []line{}, n(41), "adopted", 41, nil},
		{"its own, and nothing said", []line{signed}, nil, "created intent", 7, nil},
		{"its own, which knows more", []line{signed}, n(3), "created intent", 7, nil},
		{"its own, which knows less", []line{signed}, n(8), "created intent", 7, ErrJournalUsed},
		{"its own, from the network", []line{adopted(name, 5, []byte("record"))}, n(6), "created adopted", 5, ErrJournalUsed},
		{"what was said before, and nothing now", []line{adopted(name, 5, nil)}, nil, "created adopted", 5, nil},
		{"what was said before, and less now", []line{adopted(name, 5, nil)}, n(4), "created adopted", 5, nil},
		{"what was said before, and more now", []line{adopted(name, 5, nil)}, n(6), "adopted", 6, nil},
		{"said, then signed", []line{adopted(name, 5, nil), signed}, n(9), "created adopted intent", 7, ErrJournalUsed},
		{"another's", []line{{Op: opIntent, Name: other.String(), Sequence: 7, Value: testValue}}, n(9), "created intent", 7, ErrJournalUsed},
		{"another's, only said", []line{adopted(other, 5, nil)}, nil, "created adopted", 5, ErrJournalUsed},
	} {
		disk := vfs.NewCrashableMem()
		if c.before != nil {
			disk = testJournal(t, c.before...)
		}
		err := ImportJournal(disk, journalPath, name, c.atLeast)
		if !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		// All of it is durable.
		disk = disk.CrashClone(vfs.CrashCloneCfg{})
		var ops []string
		h, _, err := readLines(disk, journalPath, func(l line) { ops = append(ops, l.Op) })
		if err != nil && !errors.Is(err, ErrNoJournal) {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := strings.Join(ops, " "); got != c.ops || h.max != c.max || c.ops != "" && !h.used {
			t.Errorf("%s: %q, %+v", c.name, got, h)
		}
	}
	disk := testJournal(t)
	lock, err := lockJournal(disk, journalPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := ImportJournal(disk, journalPath, name, n(1)); !errors.Is(err, ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}

// Every call of the filesystem fails once. There is no journal then, or a whole
// one that survives a power cut.
func TestImportJournalFaults(t *testing.T) {
	name, failed := testSigner(t, 1).IPNSName(), errors.New("disk trouble")
	for n := 1; ; n++ {
		disk, calls, seq := vfs.NewCrashableMem(), 0, uint64(41)
		faulty := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if calls++; calls == n {
				return failed
			}
			return nil
		}))
		err := ImportJournal(faulty, journalPath, name, &seq)
		h, _, readErr := readJournal(disk.CrashClone(vfs.CrashCloneCfg{}), journalPath)
		if readErr == nil && h.max != seq || readErr != nil && (err == nil || !errors.Is(readErr, ErrNoJournal)) {
			t.Errorf("fault %d of %d calls: %v; left: %+v, %v", n, calls, err, h, readErr)
		}
		if calls < n {
			if err != nil || n < 8 {
				t.Errorf("%d calls, %v", calls, err)
			}
			return
		}
	}
}
