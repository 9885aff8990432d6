package publish

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

var (
	// ErrNoJournal is returned when there is no publication journal.
	ErrNoJournal = errors.New("no publication journal")
	// ErrJournalUsed is returned by CreateJournal for a journal that records a
	// signature: a new key needs a new one.
	ErrJournalUsed = errors.New("there is a publication journal already")
	// ErrJournal is returned for a journal that is damaged, or that belongs to
	// another name. Nothing is signed by it.
	ErrJournal = errors.New("publication journal cannot be trusted")
	// ErrLocked is returned when another process publishes by this journal.
	ErrLocked = errors.New("another process is publishing")
)

// JournalOf is where the journal of a registry's key lies: that of its first key
// where it was always, and those that followed beside it, by their numbers
// (ipnskeys.Key).
func JournalOf(first string, number int) string {
	if number <= 1 {
		return first
	}
	return first + "-" + strconv.Itoa(number)
}

// maxLine bounds one journal line in bytes; a record takes about 600.
const maxLine = 64 << 10

// What a line of the journal says.
const (
	opCreated   = "created"   // by a human or with a new key: nothing was signed before
	opAdopted   = "adopted"   // the network said what the last sequence was, or a human what it was at least
	opPinned    = "pinned"    // a release is whole in the node and its root
	opIntent    = "intent"    // this will be signed
	opRecord    = "record"    // this was signed: its bytes
	opConfirmed = "confirmed" // read back by another route
	opAbandoned = "abandoned" // will not be put again; the sequence stays used
)

// line is one line of the journal. It is append-only and holds no secret: every
// signed record with its bytes, so that what was said under a sequence can be
// said again and nothing else.
type line struct {
	Op       string        `json:"op"`
	Format   int           `json:"format,omitempty"` // journalFormat in the first line
	Time     time.Time     `json:"time"`
	Name     string        `json:"name,omitempty"` // IPNS name
	Sequence uint64        `json:"sequence,omitempty"`
	Release  uint64        `json:"release,omitempty"`
	Value    string        `json:"value,omitempty"` // CID
	EOL      time.Time     `json:"eol,omitzero"`
	TTL      time.Duration `json:"ttl,omitempty"`     // nanoseconds
	V2Only   bool          `json:"v2_only,omitempty"` // without V1 fields; absent, as in every journal before there was a choice: with them
	Record   []byte        `json:"record,omitempty"`
}

// journalFormat is the number of the form in which lines are written.
const journalFormat = 1

// attempt is the newest sequence of a journal, and how far it came.
type attempt struct {
	Sequence  uint64
	Release   uint64
	Value     cid.Cid
	EOL       time.Time
	TTL       time.Duration
	V2Only    bool
	Record    []byte // nil until signed
	Confirmed time.Time
	Abandoned bool
}

// history is what a journal's lines add up to.
type history struct {
	name   string // "" before the first signature
	used   bool   // a sequence was used, here or by what was adopted
	floor  bool   // max is what a human said, and nothing but that
	max    uint64 // highest sequence used
	last   *attempt
	pinned made // the last one
	newest made // the first to have the highest number of those pinned or intended
}

// made is a release that a journal speaks of.
type made struct {
	number uint64
	root   cid.Cid
}

// spoken is what the journal adds up to, with the newest release of all that the
// journals of former keys speak of too, and what those have pinned where this one
// has nothing yet. Where there is no journal it is nothing.
func (p *Publisher) spoken() (history, error) {
	h, _, err := readJournal(p.o.FS, p.o.Journal)
	if err != nil && !errors.Is(err, ErrNoJournal) {
		return h, err
	}
	for _, f := range slices.Backward(p.o.Former) {
		was, _, err := readJournal(p.o.FS, f.Journal)
		if err != nil && !errors.Is(err, ErrNoJournal) {
			return h, err
		}
		if was.newest.number > h.newest.number {
			h.newest = was.newest
		}
		if !h.pinned.root.Defined() {
			h.pinned = was.pinned
		}
	}
	return h, nil
}

// passed says that r is older than the newest release, or another of its number.
func (h *history) passed(r index.Release) bool {
	return r.Number < h.newest.number || r.Number == h.newest.number && r.Root != h.newest.root
}

// next applies one line. What our own code never writes is ErrJournal.
func (h *history) next(l line) error {
	var value cid.Cid
	if l.Value != "" {
		var err error
		if value, err = cid.Decode(l.Value); err != nil {
			return fmt.Errorf("%w: value: %w", ErrJournal, err)
		}
	}
	if l.Name != "" {
		if h.name != "" && h.name != l.Name {
			return fmt.Errorf("%w: it names %s and %s", ErrJournal, h.name, l.Name)
		}
		h.name = l.Name
	}
	if (l.Op == opCreated || l.Op == opAdopted) && l.Format != journalFormat {
		return fmt.Errorf("%w: its format is %d, this version knows %d", ErrJournal, l.Format, journalFormat)
	}
	if value.Defined() && l.Release > h.newest.number {
		h.newest = made{l.Release, value}
	}
	a := h.last
	switch l.Op {
	case opCreated:
	case opAdopted:
		h.floor = len(l.Record) == 0 && h.last == nil
		h.used, h.max = true, max(h.max, l.Sequence)
	case opPinned:
		h.pinned = made{l.Release, value}
	case opIntent:
		if !value.Defined() || h.used && l.Sequence <= h.max {
			return fmt.Errorf("%w: intent %d after %d", ErrJournal, l.Sequence, h.max)
		}
		h.used, h.floor, h.max = true, false, l.Sequence
		h.last = &attempt{Sequence: l.Sequence, Release: l.Release, Value: value, EOL: l.EOL, TTL: l.TTL, V2Only: l.V2Only}
	case opRecord, opConfirmed, opAbandoned:
		if a == nil || a.Sequence != l.Sequence {
			return fmt.Errorf("%w: %s of sequence %d without its intent", ErrJournal, l.Op, l.Sequence)
		}
		switch l.Op {
		case opRecord:
			a.Record = l.Record
		case opConfirmed:
			a.Confirmed = l.Time
		case opAbandoned:
			a.Abandoned = true
		}
	default:
		return fmt.Errorf("%w: it says %q, which this version does not know", ErrJournal, l.Op)
	}
	return nil
}

// journal is an open journal, owned by this process until close.
type journal struct {
	history
	fs    vfs.FS
	path  string
	lock  io.Closer
	file  vfs.File
	end   int64    // where the next line goes
	sum   [32]byte // of the last line, and by it of all before
	fault func(step string) error
}

// Each line is "SUM JSON\n": SUM is the first 16 bytes, in hex, of the SHA-256
// over the previous line's sum and this line's JSON. A line that was changed,
// lost or moved breaks the chain.
func seal(previous [32]byte, text []byte) [32]byte {
	h := sha256.New()
	h.Write(previous[:])
	h.Write(text)
	return [32]byte(h.Sum(nil))
}

// CreateJournal begins the journal of a key that has never signed: first the
// journal, then the key, so that a key without a journal always means a lost
// journal. One that exists and records no signature will do; any other is
// ErrJournalUsed. A nil filesystem is the machine's.
func CreateJournal(fsys vfs.FS, path string) error {
	if fsys == nil {
		fsys = vfs.Default
	}
	return locked(fsys, path, func() error { return createLocked(fsys, path) })
}

func createLocked(fsys vfs.FS, path string) error {
	h, _, err := readJournal(fsys, path)
	if err == nil {
		if h.used {
			return fmt.Errorf("create %s: %w", path, ErrJournalUsed)
		}
		return nil
	}
	if !errors.Is(err, ErrNoJournal) {
		return fmt.Errorf("create journal: %w", err)
	}
	return begin(fsys, path, line{Op: opCreated, Time: time.Now().UTC()})
}

// ImportJournal makes the journal ready for a key that was made elsewhere, and
// so may have signed there; it is called before that key appears. In the order
// of what is looked at:
//
//   - A journal of that very key stays as it is, for it knows more. Where it
//     knows less than atLeast says, it is ErrJournalUsed.
//   - One of another key is ErrJournalUsed.
//   - With atLeast, a sequence that was used at least and is below 2^62, one is
//     begun that has that used, in the place of one that records nothing.
//   - Without, there is none afterwards: one that records nothing is removed. The
//     first publish then begins it with what the network says, and without that
//     signs nothing (ErrNoSequence).
//
// So no sequence that the key used elsewhere is used again for all that is known
// here. Errors: ipnsrecord.ErrSequence, ErrJournalUsed, ErrJournal, ErrLocked. A
// nil filesystem is the machine's.
func ImportJournal(fsys vfs.FS, path string, name ipns.Name, atLeast *uint64) error {
	if fsys == nil {
		fsys = vfs.Default
	}
	return locked(fsys, path, func() error { return importLocked(fsys, path, name, atLeast) })
}

func importLocked(fsys vfs.FS, path string, name ipns.Name, atLeast *uint64) error {
	if atLeast != nil && *atLeast >= ipnsrecord.MaxSequence {
		return fmt.Errorf("import journal: %w: %d", ipnsrecord.ErrSequence, *atLeast)
	}
	h, _, err := readJournal(fsys, path)
	there := err == nil
	if err != nil && !errors.Is(err, ErrNoJournal) {
		return fmt.Errorf("import journal: %w", err)
	}
	if h.used {
		switch {
		case h.name != name.String():
			return fmt.Errorf("import %s: it is of %s, not of %s: %w", path, h.name, name, ErrJournalUsed)
		case atLeast == nil || *atLeast <= h.max:
			return nil
		case !h.floor:
			return fmt.Errorf("import %s: it ends with sequence %d, not %d: %w", path, h.max, *atLeast, ErrJournalUsed)
		}
	}
	if atLeast != nil {
		return begin(fsys, path, line{Op: opAdopted, Time: time.Now().UTC(), Name: name.String(), Sequence: *atLeast})
	}
	if !there {
		return nil
	}
	if err := fsys.Remove(path); err != nil {
		return fmt.Errorf("import journal: %w", err)
	}
	return syncDir(fsys, fsys.PathDir(path))
}

// create begins a journal where there is none.
func create(fsys vfs.FS, path string, first line, fault func(string) error) error {
	return locked(fsys, path, func() error {
		if _, _, err := readJournal(fsys, path); !errors.Is(err, ErrNoJournal) {
			if err == nil {
				err = ErrJournalUsed
			}
			return fmt.Errorf("create journal: %w", err)
		}
		if err := begin(fsys, path, first); err != nil {
			return err
		}
		return hook(fault, "journal created")
	})
}

// begin writes a journal of one line, in the place of any.
func begin(fsys vfs.FS, path string, first line) error {
	first.Format = journalFormat
	text, err := json.Marshal(first)
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if err := replace(fsys, path, bytes.NewReader(appendLine(nil, seal([32]byte{}, text), text))); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	return nil
}

// locked runs f with the lock of the journal, whose directory it makes.
func locked(fsys vfs.FS, path string, f func() error) error {
	dir := fsys.PathDir(path)
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the journal's directory: %w", err)
	}
	if err := syncDir(fsys, fsys.PathDir(dir)); err != nil {
		return fmt.Errorf("make the journal's directory: %w", err)
	}
	lock, err := lockJournal(fsys, path)
	if err != nil {
		return err
	}
	defer lock.Close()
	return f()
}

func appendLine(dst []byte, sum [32]byte, text []byte) []byte {
	dst = hex.AppendEncode(dst, sum[:16])
	dst = append(dst, ' ')
	dst = append(dst, text...)
	return append(dst, '\n')
}

// openJournal locks and reads the journal. A line that a power cut tore off at
// the end was never acted upon, and goes. Errors: ErrNoJournal, ErrLocked,
// ErrJournal.
func openJournal(fsys vfs.FS, path string, fault func(string) error) (_ *journal, err error) {
	if _, err := fsys.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNoJournal)
	} else if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &journal{fs: fsys, path: path, fault: fault}
	if j.lock, err = lockJournal(fsys, path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			j.close()
		}
	}()
	h, good, err := readJournal(fsys, path)
	if err != nil {
		return nil, err
	}
	j.history, j.end, j.sum = h, good.size, good.sum
	if good.torn {
		if err := cut(fsys, path, good.size); err != nil {
			return nil, fmt.Errorf("cut a torn line off the journal: %w", err)
		}
	}
	if j.file, err = fsys.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	// A line that a killed process left in the page cache will now be acted
	// upon: it must be on disk first.
	if err := j.file.Sync(); err != nil {
		return nil, fmt.Errorf("sync journal: %w", err)
	}
	return j, nil
}

func (j *journal) close() error {
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	return errors.Join(err, j.lock.Close())
}

// append writes one line and returns once it is on disk. After an error it is
// not in the journal, which must be opened again.
func (j *journal) append(l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	after := j.history
	if after.last != nil {
		last := *after.last
		after.last = &last
	}
	if err := after.next(l); err != nil {
		return err
	}
	sum := seal(j.sum, text)
	whole := appendLine(nil, sum, text)
	size := int64(len(whole))
	if size > maxLine {
		return fmt.Errorf("journal: a line of %d bytes", size)
	}
	if _, err := j.file.WriteAt(whole, j.end); err != nil {
		return fmt.Errorf("journal: %w", errors.Join(err, cut(j.fs, j.path, j.end)))
	}
	if err := hook(j.fault, l.Op+" written"); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		// The line may be read back and yet never reach the disk, and a later
		// fsync may say nothing of it: it goes, by a file written anew.
		return fmt.Errorf("journal: %w", errors.Join(err, cut(j.fs, j.path, j.end)))
	}
	j.history, j.end, j.sum = after, j.end+size, sum
	return hook(j.fault, l.Op+" synced")
}

// whole is what of a journal's file is good.
type whole struct {
	size int64
	sum  [32]byte
	torn bool // something unfinished follows
}

// readJournal reads without a lock. Only a last line without its newline may
// be wrong: that is one whose write did not end. Anything else is damage.
func readJournal(fsys vfs.FS, path string) (history, whole, error) {
	return readLines(fsys, path, func(line) {})
}

// readLines is readJournal, and hands over each line.
func readLines(fsys vfs.FS, path string, each func(line)) (history, whole, error) {
	var h history
	var w whole
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, w, fmt.Errorf("%s: %w", path, ErrNoJournal)
	}
	if err != nil {
		return h, w, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, maxLine)
	for n := 1; ; n++ {
		text, err := r.ReadSlice('\n')
		switch {
		case err == io.EOF:
			w.torn = len(text) > 0
			if n == 1 {
				// It is made whole, by a rename: an empty one is no torn one.
				return h, w, fmt.Errorf("%s: %w: it is empty", path, ErrJournal)
			}
			return h, w, nil
		case err != nil:
			return h, w, fmt.Errorf("%s, line %d: %w: %w", path, n, ErrJournal, err)
		}
		sum, body, ok := bytes.Cut(text[:len(text)-1], []byte{' '})
		want := seal(w.sum, body)
		if !ok || string(sum) != hex.EncodeToString(want[:16]) {
			return h, w, fmt.Errorf("%s, line %d: %w: its checksum is wrong", path, n, ErrJournal)
		}
		var l line
		if err := json.Unmarshal(body, &l); err != nil {
			return h, w, fmt.Errorf("%s, line %d: %w: %w", path, n, ErrJournal, err)
		}
		if err := h.next(l); err != nil {
			return h, w, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		each(l)
		w.size += int64(len(text))
		w.sum = want
	}
}

func lockJournal(fsys vfs.FS, path string) (io.Closer, error) {
	lock, err := fsys.Lock(path + ".lock")
	if err == nil {
		return lock, nil
	}
	var pathError *fs.PathError
	if !errors.As(err, &pathError) && (errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) ||
		strings.Contains(err.Error(), "lock held by current process")) {
		return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// cut makes the file end after size bytes.
func cut(fsys vfs.FS, path string, size int64) error {
	f, err := fsys.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return replace(fsys, path, io.LimitReader(f, size))
}

// replace writes a file whole or not at all, durably.
func replace(fsys vfs.FS, path string, data io.Reader) error {
	tmp := path + ".new"
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, struct{ io.Reader }{data}) // by a buffer of its own: Write may change what it is given
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := fsys.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fsys, fsys.PathDir(path))
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}

func hook(fault func(string) error, step string) error {
	if fault == nil {
		return nil
	}
	return fault(step)
}
