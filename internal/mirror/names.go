package mirror

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Beside the list its names lie once more, in the file "names", in their order: of
// each a line, in lower case, and after a tab the name itself where that is another.
// A search reads the file through, which takes no longer than a keystroke, and
// needs no memory but for a piece of it at a time. It is made when somebody searches
// for the first time, and follows every release from then on: what came and went
// since is in the row n, and when that is much the file is made anew.
//
// The file is durable before the row that says which release it is of. A crash
// between any two steps, or a bent byte, leaves a row and a file that do not fit, or
// do not fit the list: then they are made anew by the next search.
const (
	namesKey  = 'n' // JSON: a namesRow
	namesFile = "names"

	namePiece    = 256 << 10       // bytes of the file that are read at once
	nameLine     = 2*255 + 2       // the longest line: a name has 255 bytes at most
	maxMoved     = 16 << 10        // names that came and went, before the file is made anew
	namesTimeout = 5 * time.Minute // to make it
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// namesRow says of which release the file's names are, with what came and went.
type namesRow struct {
	Root cid.Cid    `json:"root"` // the release's
	Size int64      `json:"size"` // of the file
	Sum  uint32     `json:"crc32c"`
	Came []npm.Name `json:"came,omitempty"` // in order, and not in the file
	Went []npm.Name `json:"went,omitempty"` // in order, and in the file
}

// nameList is the names of one release.
type nameList struct {
	namesRow
	file vfs.File // nil: not opened since the start
	// The file is read in pieces that begin at these offsets, with these names.
	starts []int64
	firsts []npm.Name
}

// listNames is the nameList of a mirror.
type listNames struct {
	// mu is held for reading while a search reads the file, and for writing while
	// list and head move on.
	mu   sync.RWMutex
	list *nameList // nil: nobody has searched yet; replaced, never changed

	piece int // bytes of the file that are read at once; tests have less
	moved int // names that came and went, before the file is made anew; tests have fewer

	making bool   // a walk through the list is under way
	since  []move // of the list, meanwhile
}

// move is what changed between two releases.
type move struct {
	from, to   cid.Cid
	came, went []npm.Name
}

// with is l and those names, in order, some of which may be in it.
func (l *nameList) with(names []npm.Name) *nameList {
	if len(names) == 0 {
		return l
	}
	both := *l
	both.Came = slices.Concat(l.Came, names)
	slices.Sort(both.Came)
	both.Came = slices.Compact(both.Came)
	return &both
}

// loadNames reads the row. The file is opened by the first search.
func (m *Mirror) loadNames() error {
	raw, closer, err := m.db.Get([]byte{namesKey})
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closer.Close()
	var row namesRow
	if json.Unmarshal(raw, &row) == nil {
		m.lines.list = &nameList{namesRow: row}
	}
	return nil
}

// after is the row once the list has moved so; ok is false where the row is of
// another release, or more than most names have changed since the file.
func (r namesRow) after(v move, most int) (next namesRow, ok bool) {
	if !r.Root.Equals(v.from) {
		return r, false
	}
	next = r
	next.Root = v.to
	if len(v.came)+len(v.went) == 0 {
		return next, true
	}
	came, went := nameSet(r.Came), nameSet(r.Went)
	for _, n := range v.came {
		if went[n] {
			delete(went, n)
		} else {
			came[n] = true
		}
	}
	for _, n := range v.went {
		if came[n] {
			delete(came, n)
		} else {
			went[n] = true
		}
	}
	next.Came, next.Went = sortedNames(came), sortedNames(went)
	return next, len(next.Came)+len(next.Went) <= most
}

func nameSet(names []npm.Name) map[npm.Name]bool {
	set := make(map[npm.Name]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return set
}

func sortedNames(set map[npm.Name]bool) []npm.Name {
	names := make([]npm.Name, 0, len(set))
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// moveNames makes h the head, and the names those of its list. It needs the
// syncing token. Searches see both as they were, or both as they are.
func (m *Mirror) moveNames(h *head, v move) error {
	n := &m.lines
	n.mu.Lock()
	defer n.mu.Unlock()
	defer m.setHead(h)
	if n.making {
		n.since = append(n.since, v)
	}
	if n.list == nil {
		return nil
	}
	next, ok := n.list.after(v, 4*n.moved)
	if !ok {
		return m.dropNames()
	}
	list := *n.list
	list.namesRow = next
	n.list = &list
	if len(next.Came)+len(next.Went) > n.moved && list.file != nil && !n.making {
		m.spawn(func() {
			_, err := shared(m.life, m, "names", namesTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, m.makeNames(ctx) })
			if err != nil && m.life.Err() == nil {
				m.log.Warn("the names for searches are not made anew", "error", err)
			}
		})
	}
	return m.noteNames(next)
}

// noteNames writes the row; the next synced write makes it durable. An earlier release
// has none: its file is made anew by the first search of a process.
func (m *Mirror) noteNames(row namesRow) error {
	if m.newest != nil {
		return nil
	}
	raw, err := json.Marshal(row)
	if err != nil {
		return err
	}
	return m.db.Set([]byte{namesKey}, raw, pebble.NoSync)
}

// dropNames forgets names that are of no release. It needs lines.mu.
func (m *Mirror) dropNames() error {
	var err error
	if f := m.lines.list.file; f != nil {
		err = f.Close()
	}
	m.lines.list = nil
	return errors.Join(err, m.db.Delete([]byte{namesKey}, pebble.NoSync))
}

// closeNames is for Close.
func (m *Mirror) closeNames() error {
	if l := m.lines.list; l != nil && l.file != nil {
		return l.file.Close()
	}
	return nil
}

// searchable returns the names of the list that is served, for as long as done is
// not called, which every caller must. The first call of all makes them, the first
// after a start checks them.
func (m *Mirror) searchable(ctx context.Context) (list *nameList, done func(), err error) {
	for err == nil || errors.Is(err, errMoved) {
		m.lines.mu.RLock()
		h, l := m.head.Load(), m.lines.list
		if err = m.tooOld(); h == nil {
			err = ErrNotSynced
		}
		switch {
		case err != nil:
		case !h.list.Defined():
			return (&nameList{}).with(h.partNames()), m.lines.mu.RUnlock, nil
		case l != nil && l.file != nil && l.Root.Equals(h.list):
			return l.with(h.partNames()), m.lines.mu.RUnlock, nil
		}
		m.lines.mu.RUnlock()
		if err == nil {
			_, err = shared(ctx, m, "names", namesTimeout, func(ctx context.Context) (struct{}, error) {
				if m.openNames() {
					return struct{}{}, nil
				}
				return struct{}{}, m.makeNames(ctx)
			})
		}
	}
	return nil, nil, fmt.Errorf("read the names of the list: %w", err)
}

// openNames opens the file, and says whether it is what the row says, and the row
// of the list that is served.
func (m *Mirror) openNames() bool {
	n := &m.lines
	n.mu.RLock()
	l, h := n.list, m.head.Load()
	n.mu.RUnlock()
	if l == nil || l.file != nil || h == nil || !l.Root.Equals(h.list) {
		return false
	}
	opened, err := readNames(m.o.FS, m.o.FS.PathJoin(m.o.Dir, namesFile), l.namesRow, n.piece)
	if err != nil {
		m.log.Warn("the names for searches are made anew", "because", err)
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list == nil || n.list.file != nil || n.list.Sum != l.Sum || n.list.Size != l.Size {
		opened.file.Close()
		return false
	}
	opened.namesRow = n.list.namesRow // it may have moved on
	n.list = opened
	return true
}

// readNames opens a file of names, and reads it through in pieces of that size.
func readNames(fsys vfs.FS, path string, row namesRow, size int) (*nameList, error) {
	f, err := fsys.Open(path, vfs.RandomReadsOption)
	if err != nil {
		return nil, err
	}
	l := &nameList{namesRow: row, file: f}
	sum, buf := uint32(0), make([]byte, size+nameLine)
	for at := int64(0); at < row.Size; {
		piece := buf[:min(int64(len(buf)), row.Size-at)]
		if _, err = f.ReadAt(piece, at); err != nil && !errors.Is(err, io.EOF) {
			break
		}
		err = nil
		end := bytes.IndexByte(piece[min(size, len(piece)-1):], '\n')
		if end < 0 {
			err = errors.New("a line does not end")
			break
		}
		piece = piece[:min(size, len(piece)-1)+end+1]
		_, first, _ := firstLine(piece)
		l.starts, l.firsts = append(l.starts, at), append(l.firsts, npm.Name(first))
		sum = crc32.Update(sum, castagnoli, piece)
		at += int64(len(piece))
	}
	if info, statErr := f.Stat(); err == nil && (statErr != nil || info.Size() != row.Size || sum != row.Sum) {
		err = cmp.Or(statErr, errors.New("it is not as it was written"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), f.Close())
	}
	return l, nil
}

// firstLine cuts a line off: what is searched in it, and the name.
func firstLine(text []byte) (lower, name, rest []byte) {
	end := bytes.IndexByte(text, '\n')
	if end < 0 {
		end = len(text) - 1
	}
	lower, name = nameOf(text[:end])
	return lower, name, text[end+1:]
}

// nameOf reads a line without its end.
func nameOf(line []byte) (lower, name []byte) {
	if i := bytes.IndexByte(line, '\t'); i >= 0 {
		return line[:i], line[i+1:]
	}
	return line, line
}

// appendLine is the line of a name.
func appendLine(line []byte, name npm.Name) []byte {
	lower := strings.ToLower(string(name))
	line = append(line, lower...)
	if lower != string(name) {
		line = append(append(line, '\t'), name...)
	}
	return append(line, '\n')
}

// errMoved is of a walk that began while the list moved. It is begun again.
var errMoved = errors.New("the list has moved")

// makeNames writes the file from the list, and takes it up once it is durable. It
// runs once at a time, as the flight "names".
func (m *Mirror) makeNames(ctx context.Context) (err error) {
	n := &m.lines
	n.mu.Lock()
	n.making, n.since = true, nil
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.making, n.since = false, nil
	}()
	path := m.o.FS.PathJoin(m.o.Dir, namesFile)
	row, err := m.writeNames(ctx, path+".new")
	if err != nil {
		return errors.Join(fmt.Errorf("write the names: %w", err), removeIfThere(m.o.FS, path+".new"))
	}
	// What reads the file before goes on reading that one.
	if err := m.o.FS.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the names: %w", err)
	}
	if err := syncDir(m.o.FS, m.o.Dir); err != nil {
		return fmt.Errorf("write the names: %w", err)
	}
	list, err := readNames(m.o.FS, path, row, n.piece)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range n.since {
		if next, ok := list.after(v, 4*n.moved); ok {
			list.namesRow = next
		}
	}
	if n.list != nil && n.list.file != nil {
		err = n.list.file.Close()
	}
	n.list = list
	return errors.Join(err, m.noteNames(list.namesRow))
}

func removeIfThere(fsys vfs.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeNames writes and syncs a file of the names of one release.
func (m *Mirror) writeNames(ctx context.Context, path string) (row namesRow, err error) {
	before, err := m.list.Head()
	if err != nil {
		return row, err
	}
	f, err := m.o.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := crc32.New(castagnoli)
	// The sum first: a vfs.File may spoil what it was given.
	w := bufio.NewWriterSize(io.MultiWriter(sum, f), namePiece)
	var line []byte
	began := false
	for e, err := range m.list.Entries(ctx) {
		if err == nil && !began {
			began = true
			// The walk is of one release: that before it began, if it is so still.
			if now, err := m.list.Head(); err != nil || !now.Root.Equals(before.Root) {
				return row, errors.Join(err, errMoved)
			}
		}
		if err == nil {
			line = appendLine(line[:0], e.Name)
			_, err = w.Write(line)
		}
		if err != nil {
			return row, err
		}
		row.Size += int64(len(line))
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return row, err
	}
	row.Root, row.Sum = before.Root, sum.Sum32()
	return row, nil
}

// piece is the bytes of the file from the line at from to that at to, read into buf
// where they fit.
func (l *nameList) piece(buf []byte, from, to int64) ([]byte, error) {
	if int64(cap(buf)) < to-from {
		buf = make([]byte, to-from)
	}
	buf = buf[:to-from]
	if len(buf) == 0 {
		return buf, nil // there may be no file
	}
	if n, err := l.file.ReadAt(buf, from); n < len(buf) {
		return nil, fmt.Errorf("read the names: %w", cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return buf, nil
}

// between is piece from the first line whose name is not before from to that whose
// name is not before to; "" is the beginning, and the end.
func (l *nameList) between(buf []byte, from, to npm.Name) ([]byte, error) {
	start, end := int64(0), l.Size
	var err error
	if from != "" {
		start, err = l.offset(buf, from)
	}
	if to != "" && err == nil {
		end, err = l.offset(buf, to)
	}
	if err != nil {
		return nil, err
	}
	return l.piece(buf, start, end)
}

// offset is where the first line begins whose name is not before name.
func (l *nameList) offset(buf []byte, name npm.Name) (int64, error) {
	i, ok := slices.BinarySearch(l.firsts, name)
	switch {
	case ok:
		return l.starts[i], nil
	case i == 0:
		return 0, nil
	}
	start, end := l.starts[i-1], l.end(i-1)
	text, err := l.piece(buf, start, end)
	if err != nil {
		return 0, err
	}
	return start + int64(offset(text, name)), nil
}

// offset is nameList.offset in lines, which are in order.
func offset(text []byte, name npm.Name) int {
	low, high := 0, len(text) // line starts: those before low are before name
	for low < high {
		middle := low + (high-low)/2
		middle = bytes.LastIndexByte(text[:middle], '\n') + 1
		_, at, rest := firstLine(text[middle:])
		if string(at) < string(name) {
			low = len(text) - len(rest)
		} else {
			high = middle
		}
	}
	return low
}

// moved is text, lines in order, with the lines of what came, some of which may be
// there, and without those of what went and did not come, in buf where they fit.
func moved(buf, text []byte, came, went []npm.Name) []byte {
	buf = buf[:0]
	for len(came)+len(went) > 0 {
		var name npm.Name
		comes := len(went) == 0 || len(came) > 0 && came[0] <= went[0]
		if comes {
			name, came = came[0], came[1:]
		} else {
			name, went = went[0], went[1:]
		}
		at := offset(text, name)
		buf, text = append(buf, text[:at]...), text[at:]
		if len(text) > 0 {
			if _, is, rest := firstLine(text); string(is) == string(name) {
				text = rest
			}
		}
		if comes {
			buf = appendLine(buf, name)
		}
	}
	return append(buf, text...)
}

// end is where the piece i ends.
func (l *nameList) end(i int) int64 {
	if i+1 < len(l.starts) {
		return l.starts[i+1]
	}
	return l.Size
}

// within are those of names, which are in order, from from to before to; "" is no end.
func within(names []npm.Name, from, to npm.Name) []npm.Name {
	i, _ := slices.BinarySearch(names, from)
	names = names[i:]
	if to != "" {
		i, _ = slices.BinarySearch(names, to)
		names = names[:i]
	}
	return names
}
