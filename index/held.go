package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Held is what a curation policy keeps out of the list of one package, which may be
// listed with the rest of its versions or not be. It is the registry's own: no
// release shows it.
type Held struct {
	Name npm.Name
	// Due is when the package is to be looked at again though nothing of it
	// changes, in whole seconds, rounded up; zero for never. From 1970 to 2262.
	Due time.Time
	// Note is the text of whoever holds it, which the index does not read.
	Note []byte
}

// none tells a package of which nothing is held.
func (h Held) none() bool { return h.Due.IsZero() && len(h.Note) == 0 }

func heldKey(name npm.Name) []byte { return append([]byte{rowHeld}, name...) }

func dueKey(at uint64, name npm.Name) []byte { return append(numbered(rowDue, at), name...) }

// dueAt is a time in a row, 0 for none.
func dueAt(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	at := t.Unix()
	if t.Nanosecond() > 0 {
		at++
	}
	return uint64(min(max(at, 1), math.MaxInt64/int64(time.Second)))
}

func dueTime(at uint64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(int64(at), 0).UTC()
}

// readHeld gives a row's due time and note; found is false where there is none.
func readHeld(r pebble.Reader, name npm.Name) (at uint64, note []byte, found bool, err error) {
	raw, err := get(r, heldKey(name))
	if err != nil || raw == nil {
		return 0, nil, false, err
	}
	at, note, err = decodeHeld(raw)
	return at, note, true, err
}

func decodeHeld(raw []byte) (at uint64, note []byte, err error) {
	at, n := binary.Uvarint(raw)
	if n <= 0 || at > math.MaxInt64/uint64(time.Second) || at == 0 && n == len(raw) {
		return 0, nil, fmt.Errorf("held row %.64x: %w", raw, ErrCorrupt)
	}
	return at, raw[n:], nil
}

// writeHeld brings the rows of what is held, and of when it is due, up to what a
// batch says, and tells whether any moved.
func writeHeld(b *pebble.Batch, all []Held) (moved bool, err error) {
	for _, h := range all {
		if _, err := npm.ParseName(string(h.Name)); err != nil {
			return false, fmt.Errorf("%w: %w", ErrEntry, err)
		}
		at := dueAt(h.Due)
		was, note, found, err := readHeld(b, h.Name)
		if err != nil {
			return false, err
		}
		if found && was == at && string(note) == string(h.Note) || !found && h.none() {
			continue
		}
		moved = true
		if found && was > 0 {
			err = b.Delete(dueKey(was, h.Name), nil)
		}
		switch {
		case err != nil:
		case h.none():
			err = b.Delete(heldKey(h.Name), nil)
		default:
			err = b.Set(heldKey(h.Name), append(binary.AppendUvarint(nil, at), h.Note...), nil)
		}
		if err == nil && at > 0 {
			err = b.Set(dueKey(at, h.Name), nil, nil)
		}
		if err != nil {
			return false, err
		}
	}
	return moved, nil
}

func writeMark(b *pebble.Batch, mark string) (moved bool, err error) {
	old, err := get(b, []byte{rowMark})
	if err != nil || string(old) == mark {
		return false, err
	}
	if mark == "" {
		return true, b.Delete([]byte{rowMark}, nil)
	}
	return true, b.Set([]byte{rowMark}, []byte(mark), nil)
}

// Mark is Batch.Mark of the last Apply, "" where there was none.
func (ix *Index) Mark() (string, error) {
	if err := ix.begin(); err != nil {
		return "", err
	}
	defer ix.end()
	mark, err := get(ix.db, []byte{rowMark})
	return string(mark), err
}

// Held gives what is held of a package, the zero Held of that name where nothing is.
func (ix *Index) Held(name npm.Name) (Held, error) {
	if err := ix.begin(); err != nil {
		return Held{}, err
	}
	defer ix.end()
	at, note, _, err := readHeld(ix.db, name)
	return Held{name, dueTime(at), note}, err
}

// AllHeld yields what is held, by name. It ends at the first error. Close waits for
// it.
func (ix *Index) AllHeld(ctx context.Context) iter.Seq2[Held, error] {
	return func(yield func(Held, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Held{}, err)
			return
		}
		defer ix.end()
		for row, err := range scan(ctx, ix.db, []byte{rowHeld}) {
			var h Held
			if err == nil {
				var at uint64
				var note []byte
				at, note, err = decodeHeld(row.value)
				h = Held{npm.Name(row.key[1:]), dueTime(at), append([]byte(nil), note...)}
			}
			if !yield(h, err) || err != nil {
				return
			}
		}
	}
}

// Due gives the names that are due by now, those that are longest so first, at most
// limit. It reads no other row: what it costs does not grow with the list, nor with
// what is due later.
func (ix *Index) Due(ctx context.Context, now time.Time, limit int) ([]npm.Name, error) {
	if err := ix.begin(); err != nil {
		return nil, err
	}
	defer ix.end()
	var names []npm.Name
	if now.Unix() < 0 {
		return nil, nil
	}
	for row, err := range scanBetween(ctx, ix.db, []byte{rowDue}, numbered(rowDue, uint64(now.Unix())+1)) {
		if err == nil && len(row.key) < 10 {
			err = fmt.Errorf("due row %q: %w", row.key, ErrCorrupt)
		}
		if err != nil {
			return nil, err
		}
		if len(names) == limit {
			break
		}
		names = append(names, npm.Name(row.key[9:]))
	}
	return names, nil
}

// NextDue is when the first name falls due, zero where none will.
func (ix *Index) NextDue() (time.Time, error) {
	if err := ix.begin(); err != nil {
		return time.Time{}, err
	}
	defer ix.end()
	for row, err := range scan(context.Background(), ix.db, []byte{rowDue}) {
		if err == nil && len(row.key) < 10 {
			err = fmt.Errorf("due row %q: %w", row.key, ErrCorrupt)
		}
		if err != nil {
			return time.Time{}, err
		}
		return dueTime(binary.BigEndian.Uint64(row.key[1:])), nil
	}
	return time.Time{}, nil
}

// held holds a row of what is held to the one of when it is due, and the other way
// round.
func (k rowCheck) held(kind byte, key, raw []byte) error {
	var at uint64
	name := npm.Name(key)
	if kind == rowDue {
		if len(key) < 9 || len(raw) > 0 {
			return errors.New("no time and name, or more than those")
		}
		at, name = binary.BigEndian.Uint64(key), npm.Name(key[8:])
	}
	if _, err := npm.ParseName(string(name)); err != nil {
		return err
	}
	is, _, found, err := readHeld(k.snap, name)
	if err != nil {
		return err
	}
	if kind == rowDue {
		if !found || is != at {
			return errors.New("nothing of that name is held until then")
		}
		return nil
	}
	if is == 0 {
		return nil
	}
	if due, err := get(k.snap, dueKey(is, name)); err != nil || due == nil {
		return errors.Join(err, errors.New("it has no row of when it is due"))
	}
	return nil
}
