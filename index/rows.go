package index

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Rows, by the first byte of their key:
//
//	f                   {"format", "parameters"}; its presence makes this an index
//	s                   [source]: how far sources were read, release or not
//	c                   packages and versions in the entries, uvarints
//	y                   empty: a copy, which Sync keeps: of the release there is
//	                    its row alone, and the list
//	d name              the entry changed since the newest release; 1: it was
//	                    listed then, 0: it was not
//	e name              Tsize, versions (uvarints), CID; then the gateway
//	                    directory's CID and Tsize (uvarint), if there is one
//	h hash path         under its hash a name that is listed and was not in the
//	                    newest release, and its scope; see place
//	b CID               the block
//	r number            the release as JSON, with its root
//	a CID               this block came with an Apply after which there was no
//	                    release yet: nothing leads to it
//	o                   number of the oldest release whose directories are there
//	w number name       what stood under the name before that release, and what
//	                    since: of each a 0, or a 1, the digest of the CID and the
//	                    Tsize (uvarint)
//	m YYYY-MM           number (uvarint), Tsize (uvarint) and CID of a snapshot of
//	                    that month
//	k name              what a policy keeps out of a package: seconds since 1970 when
//	                    to look at it again (uvarint; 0: never), and a note
//	u seconds name      empty: when what is held of the name is due
//	t                   Batch.Mark
//
// Numbers are 8 bytes, big-endian.
const (
	rowFormat  = 'f'
	rowSources = 's'
	rowCounts  = 'c'
	rowCopy    = 'y'
	rowPending = 'd'
	rowEntry   = 'e'
	rowPlace   = 'h'
	rowBlock   = 'b'
	rowRelease = 'r'
	rowAhead   = 'a'
	rowOldest  = 'o'
	rowHistory = 'w'
	rowMonth   = 'm'
	rowHeld    = 'k'
	rowDue     = 'u'
	rowMark    = 't'
)

// storeFormat is the number of the rows' layout. Format 1 had neither counts nor
// pending rows, 2 had no rows "a", but rows "n", of every release's blocks, 3 had rows
// "h" of all that is listed, and 4 had none of "k", "u" and "t". What they have is read as it is, and Open
// gives it this number, so that no program which does not know those rows opens it
// again.
const storeFormat = 5

type formatRow struct {
	Format     int        `json:"format"`
	Parameters Parameters `json:"parameters"`
}

// readFormat gives the zero row where there is none.
func readFormat(r pebble.Reader) (row formatRow, err error) {
	raw, err := get(r, []byte{rowFormat})
	if err != nil || raw == nil {
		return formatRow{}, err
	}
	if err := json.Unmarshal(raw, &row); err != nil {
		return formatRow{}, fmt.Errorf("format row: %w: %w", ErrCorrupt, err)
	}
	if row.Format < 1 || row.Format > storeFormat {
		return formatRow{}, fmt.Errorf("format row: %w: %d", ErrFormat, row.Format)
	}
	return row, nil
}

// checkEmpty refuses rows without a format.
func checkEmpty(db *pebble.DB) error {
	it, err := db.NewIter(nil)
	if err != nil {
		return err
	}
	used := it.First()
	if err := it.Close(); err != nil {
		return err
	}
	if used {
		return fmt.Errorf("rows without a format: %w", ErrCorrupt)
	}
	return nil
}

func writeParameters(to pebble.Writer, p Parameters) error {
	raw, err := json.Marshal(formatRow{storeFormat, p})
	if err != nil {
		return err
	}
	return to.Set([]byte{rowFormat}, raw, pebble.Sync)
}

// upgrade brings the rows of earlier formats up to this one: of the rows "n number
// CID" those count that came after the newest release.
func upgrade(db *pebble.DB, from int, p Parameters) error {
	if from >= 4 {
		return writeParameters(db, p)
	}
	r, err := head(db)
	if err != nil && !errors.Is(err, ErrNoRelease) {
		return err
	}
	const rowNew = 'n'
	b := db.NewBatch()
	defer b.Close()
	ahead := numbered(rowNew, r.Number+1)
	for row, err := range scanBetween(context.Background(), db, ahead, []byte{rowNew + 1}) {
		if err == nil {
			err = b.Set(append([]byte{rowAhead}, row.key[len(ahead):]...), nil, nil)
		}
		if err != nil {
			return err
		}
	}
	for _, row := range []byte{rowNew, rowPlace} {
		if err := b.DeleteRange([]byte{row}, []byte{row + 1}, nil); err != nil {
			return err
		}
	}
	for row, err := range scan(context.Background(), db, []byte{rowPending}) {
		name := npm.Name(row.key)
		var stands bool
		if err == nil {
			name = name[1:]
			stands, err = listed(db, places(name)[0])
		}
		if err == nil && stands && !wasListed(row.value) {
			err = enter(b, name)
		}
		if err != nil {
			return err
		}
	}
	raw, err := json.Marshal(formatRow{storeFormat, p})
	if err == nil {
		err = b.Set([]byte{rowFormat}, raw, nil)
	}
	if err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

func numbered(row byte, number uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{row}, number)
}

func blockKey(c cid.Cid) []byte { return append([]byte{rowBlock}, c.KeyString()...) }

func aheadKey(c cid.Cid) []byte { return append([]byte{rowAhead}, c.KeyString()...) }

func entryKey(name npm.Name) []byte { return append([]byte{rowEntry}, name...) }

func encodeEntry(e Entry) []byte { return appendEntry(nil, e) }

func appendEntry(b []byte, e Entry) []byte {
	b = binary.AppendUvarint(b, e.Tsize)
	b = binary.AppendUvarint(b, uint64(e.Versions))
	b = append(b, e.CID.KeyString()...)
	if e.Gateway.CID.Defined() {
		b = append(b, e.Gateway.CID.KeyString()...)
		b = binary.AppendUvarint(b, e.Gateway.Tsize)
	}
	return b
}

func decodeEntry(name string, raw []byte) (Entry, error) {
	tsize, n := binary.Uvarint(raw)
	if n <= 0 {
		return Entry{}, fmt.Errorf("entry %s: %w", name, ErrCorrupt)
	}
	versions, m := binary.Uvarint(raw[n:])
	if m <= 0 || versions > 1<<31 {
		return Entry{}, fmt.Errorf("entry %s: %w", name, ErrCorrupt)
	}
	raw = raw[n+m:]
	n, c, err := cid.CidFromBytes(raw)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s: %w: %w", name, ErrCorrupt, err)
	}
	e := Entry{Name: npm.Name(name), CID: c, Tsize: tsize, Versions: int(versions)}
	if raw = raw[n:]; len(raw) == 0 {
		return e, nil
	}
	if n, e.Gateway.CID, err = cid.CidFromBytes(raw); err != nil {
		return Entry{}, fmt.Errorf("entry %s: %w: %w", name, ErrCorrupt, err)
	}
	if e.Gateway.Tsize, m = binary.Uvarint(raw[n:]); m <= 0 || n+m != len(raw) {
		return Entry{}, fmt.Errorf("entry %s: %w", name, ErrCorrupt)
	}
	return e, nil
}

func readEntry(r pebble.Reader, name npm.Name) (Entry, bool, error) {
	raw, err := get(r, entryKey(name))
	if err != nil || raw == nil {
		return Entry{}, false, err
	}
	e, err := decodeEntry(string(name), raw)
	return e, true, err
}

func entries(ctx context.Context, r pebble.Reader) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for row, err := range scan(ctx, r, []byte{rowEntry}) {
			var e Entry
			if err == nil {
				e, err = decodeEntry(string(row.key[1:]), row.value)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// gatewayEntries are the entries as a bare gateway shows them.
func gatewayEntries(ctx context.Context, r pebble.Reader) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for e, err := range entries(ctx, r) {
			if !yield(e.shown(), err) {
				return
			}
		}
	}
}

// readBlock holds the block to its CID: what leaves the index is right or an
// ErrCorrupt.
func readBlock(r pebble.Reader, c cid.Cid) (blocks.Block, error) {
	raw, err := get(r, blockKey(c))
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", c, err)
	}
	if raw == nil {
		return nil, fmt.Errorf("block %s: %w", c, ErrNoBlock)
	}
	blk, err := checkedBlock(c, raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return blk, nil
}

func checkedBlock(c cid.Cid, raw []byte) (blocks.Block, error) {
	sum, err := c.Prefix().Sum(raw)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", c, err)
	}
	if sum != c {
		return nil, fmt.Errorf("block %s: its bytes are those of %s", c, sum)
	}
	return blocks.NewBlockWithCid(raw, c)
}

// head reads the newest release.
func head(r pebble.Reader) (Release, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: []byte{rowRelease}, UpperBound: []byte{rowRelease + 1}})
	if err != nil {
		return Release{}, err
	}
	defer it.Close()
	if !it.Last() {
		if err := it.Error(); err != nil {
			return Release{}, located(err)
		}
		return Release{}, ErrNoRelease
	}
	value, err := it.ValueAndErr()
	if err != nil {
		return Release{}, located(err)
	}
	return readReleaseRow(keyValue{it.Key(), value})
}

// releaseAndBefore are the release of that number and the one before it, which is
// zero where that is the first; ErrNoRelease where there is none of that number.
func releaseAndBefore(r pebble.Reader, number uint64) (before, release Release, err error) {
	key := numbered(rowRelease, number)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: []byte{rowRelease}, UpperBound: upperBound(key)})
	if err != nil {
		return before, release, err
	}
	defer it.Close()
	read := func() (Release, error) {
		value, err := it.ValueAndErr()
		if err != nil {
			return Release{}, located(err)
		}
		return readReleaseRow(keyValue{it.Key(), value})
	}
	if !it.Last() || string(it.Key()) != string(key) {
		return before, release, cmp.Or(located(it.Error()), ErrNoRelease)
	}
	if release, err = read(); err != nil || !it.Prev() {
		return before, release, cmp.Or(err, located(it.Error()))
	}
	before, err = read()
	return before, release, err
}

func readReleaseRow(row keyValue) (Release, error) {
	r, err := decodeRelease(row.value)
	if err == nil && (!r.Root.Defined() || string(numbered(rowRelease, r.Number)) != string(row.key)) {
		err = errors.New("not under its number, or without a root")
	}
	if err != nil {
		return Release{}, fmt.Errorf("release row %x: %w: %w", row.key, ErrCorrupt, err)
	}
	return r, nil
}

func readSources(r pebble.Reader) ([]Source, error) {
	raw, err := get(r, []byte{rowSources})
	if err != nil || raw == nil {
		return nil, err
	}
	var s []Source
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("sources row: %w: %w", ErrCorrupt, err)
	}
	return s, nil
}

// counts are those of the entries.
type counts struct{ packages, versions int }

// readCounts counts the entries where an index from before there was a row does
// not say.
func readCounts(ctx context.Context, r pebble.Reader) (n counts, err error) {
	raw, err := get(r, []byte{rowCounts})
	if err != nil {
		return counts{}, err
	}
	if raw == nil {
		for e, err := range entries(ctx, r) {
			if err != nil {
				return counts{}, err
			}
			n.packages++
			n.versions += e.Versions
		}
		return n, nil
	}
	packages, i := binary.Uvarint(raw)
	versions, j := binary.Uvarint(raw[max(i, 0):])
	if i <= 0 || j <= 0 || i+j != len(raw) || packages > math.MaxInt32 || versions > math.MaxInt {
		return counts{}, fmt.Errorf("counts row %x: %w", raw, ErrCorrupt)
	}
	return counts{int(packages), int(versions)}, nil
}

func writeCounts(b *pebble.Batch, n counts) error {
	raw := binary.AppendUvarint(nil, uint64(n.packages))
	return b.Set([]byte{rowCounts}, binary.AppendUvarint(raw, uint64(n.versions)), nil)
}

func readCopy(r pebble.Reader) (bool, error) {
	row, err := get(r, []byte{rowCopy})
	return row != nil, err
}

func pendingKey(name npm.Name) []byte { return append([]byte{rowPending}, name...) }

// writePending notes a change that is in no release yet.
func writePending(b *pebble.Batch, t touch) error {
	was, err := get(b, pendingKey(t.name))
	if err != nil {
		return err
	}
	if was == nil { // else what stands there is how it was at the release
		if was = []byte{0}; t.was {
			was[0] = 1
		}
		if err := b.Set(pendingKey(t.name), was, nil); err != nil {
			return err
		}
	}
	if wasListed(was) {
		return nil // the list says which places it has
	}
	row, err := get(b, entryKey(t.name))
	if err != nil {
		return err
	}
	if row == nil {
		return leave(b, t.name)
	}
	return enter(b, t.name)
}

// wasListed reads a pending row.
func wasListed(row []byte) bool { return len(row) == 1 && row[0] == 1 }

// countPending counts changes that are in no release yet, up to most.
func countPending(r pebble.Reader, most int) (n int, err error) {
	for _, err := range scan(context.Background(), r, []byte{rowPending}) {
		if err != nil {
			return 0, err
		}
		if n++; n == most {
			break
		}
	}
	return n, nil
}

// changedNames are the names, each once, of which b's entries are new, other or
// gone since the newest release: those that were touched, and pending ones.
func changedNames(ctx context.Context, b pebble.Reader, touched []touch) (names []npm.Name, err error) {
	add := func(name npm.Name, was bool) error {
		if !was {
			if is, err := get(b, entryKey(name)); err != nil || is == nil {
				return err // it came and went
			}
		}
		names = append(names, name)
		return nil
	}
	seen := map[npm.Name]bool{}
	for row, err := range scan(ctx, b, []byte{rowPending}) {
		if err != nil {
			return nil, err
		}
		name := npm.Name(row.key[1:])
		seen[name] = true
		if err := add(name, wasListed(row.value)); err != nil {
			return nil, err
		}
	}
	for _, t := range touched {
		if !seen[t.name] {
			if err := add(t.name, t.was); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// keyValue is a row during a scan; its bytes are good until the next one.
type keyValue struct{ key, value []byte }

// scan yields the rows whose key starts with prefix, until ctx ends. An error is
// the last thing that it yields.
func scan(ctx context.Context, r pebble.Reader, prefix []byte) iter.Seq2[keyValue, error] {
	return scanBetween(ctx, r, prefix, upperBound(prefix))
}

// scanBetween is scan from the key from to that before to.
func scanBetween(ctx context.Context, r pebble.Reader, from, to []byte) iter.Seq2[keyValue, error] {
	return func(yield func(keyValue, error) bool) {
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
		if err != nil {
			yield(keyValue{}, err)
			return
		}
		ended := false
		defer func() {
			if !ended { // the loop's body panicked, as a handler's may
				it.Close()
			}
		}()
		stopped := false
		for ok := it.First(); ok && !stopped; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err == nil {
				err = ctx.Err()
			}
			stopped = !yield(keyValue{it.Key(), value}, located(err)) || err != nil
		}
		ended = true
		if err := it.Close(); err != nil && !stopped {
			yield(keyValue{}, located(err))
		}
	}
}

// upperBound is the first key after all that start with prefix.
func upperBound(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			b := append([]byte(nil), prefix[:i+1]...)
			b[i]++
			return b
		}
	}
	return nil
}

// get returns a copy of a row, nil where there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, located(err)
	}
	row := append([]byte{}, value...)
	return row, closer.Close()
}
