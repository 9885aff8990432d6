package publish

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
)

// Logged is a release and what became of it.
type Logged struct {
	index.Release
	// ListOf is the first release of the index that had this list: the release's
	// own number unless a rollback, or new peers, made it.
	ListOf    uint64
	Sequence  uint64    // of the newest record for it; 0: none was signed
	Signed    time.Time // when that record was
	Confirmed time.Time // when it was read back; zero: not
	Current   bool      // that record is the newest of the registry
}

// Log yields the releases of an index from the newest to the first, with what the
// journals say of each, those of the registry's keys from the first to the one that
// it has; a nil filesystem is the machine's. Where there is no
// journal nothing was published. It keeps some 100 bytes for each list and
// release. Errors: ErrJournal, and the index's.
func Log(ctx context.Context, ix *index.Index, fsys vfs.FS, journals ...string) iter.Seq2[Logged, error] {
	if fsys == nil {
		fsys = vfs.Default
	}
	return func(yield func(Logged, error) bool) {
		records, newest, err := published(fsys, journals)
		if err != nil {
			yield(Logged{}, fmt.Errorf("log: %w", err))
			return
		}
		firsts := map[index.List]uint64{}
		for r, err := range ix.Releases(ctx) {
			if err != nil {
				yield(Logged{}, fmt.Errorf("log: %w", err))
				return
			}
			if _, ok := firsts[r.List]; !ok {
				firsts[r.List] = r.Number
			}
		}
		for r, err := range ix.Log(ctx) {
			if err != nil {
				yield(Logged{}, fmt.Errorf("log: %w", err))
				return
			}
			l := records[r.Root]
			l.Release, l.ListOf = r, firsts[r.List]
			l.Current = l.Sequence > 0 && r.Root == newest
			if !yield(l, nil) {
				return
			}
		}
	}
}

// published says of each root the newest record that was signed for it, and which
// root the newest of all is of.
func published(fsys vfs.FS, journals []string) (records map[cid.Cid]Logged, newest cid.Cid, err error) {
	records = map[cid.Cid]Logged{}
	for _, journal := range journals {
		value := cid.Undef // of the last intent
		_, _, err = readLines(fsys, journal, func(l line) {
			switch l.Op {
			case opIntent:
				value, _ = cid.Decode(l.Value) // which readLines has checked
			case opRecord:
				records[value] = Logged{Sequence: l.Sequence, Signed: l.Time}
				newest = value
			case opConfirmed:
				r := records[value]
				r.Confirmed = l.Time
				records[value] = r
			}
		})
		if err != nil && !errors.Is(err, ErrNoJournal) {
			return records, newest, err
		}
	}
	return records, newest, nil
}
