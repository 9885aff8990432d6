package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// located makes what Pebble found in a file an ErrCorrupt that names the file.
func located(err error) error { return damage.As(err, ErrCorrupt) }

// checkTables holds every block of Pebble's tables, also those that no row is read
// from, to its checksum.
func (ix *Index) checkTables(ctx context.Context) error {
	levels, err := ix.db.SSTables()
	if err != nil {
		return err
	}
	for _, level := range levels {
		for _, t := range level {
			if err := ctx.Err(); err != nil {
				return err
			}
			path := ix.dir.fs.PathJoin(ix.dir.path, t.BackingSSTNum.String()+".sst")
			if err := ix.checkTable(ctx, path); err != nil && !errors.Is(err, fs.ErrNotExist) { // else a compaction took it
				return fmt.Errorf("%w: file %s: %w", ErrCorrupt, path, err)
			}
		}
	}
	return nil
}

func (ix *Index) checkTable(ctx context.Context, path string) error {
	f, err := ix.dir.fs.Open(path)
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r, err := sstable.NewReader(ctx, readable, ix.tables)
	if err != nil {
		return errors.Join(err, readable.Close())
	}
	return errors.Join(r.ValidateBlockChecksums(), r.Close())
}

// rowCheck holds the rows, each by itself, to what they may be.
type rowCheck struct {
	snap       *pebble.Snapshot
	oldest     uint64 // release whose directories are there
	gateway    bool   // entries may have a directory for one
	isCopy     bool
	parameters Parameters
}

// checkRows reads every row. report, where not nil, is told now and then how many
// were read.
func (k rowCheck) checkRows(ctx context.Context, report func(rows int)) error {
	n := 0
	for row, err := range scanBetween(ctx, k.snap, nil, nil) {
		if err == nil {
			err = k.row(ctx, row)
		}
		if err != nil {
			return err
		}
		if n++; report != nil && n%1000 == 0 {
			report(n)
		}
	}
	return nil
}

func (k rowCheck) row(ctx context.Context, row keyValue) error {
	err := errors.New("no row of ours")
	switch kind, rest := row.key[0], row.key[1:]; kind {
	case rowFormat, rowSources, rowCounts, rowCopy, rowOldest, rowMark:
		if len(rest) == 0 {
			err = k.single(ctx, kind)
		}
	case rowPending:
		if _, err = npm.ParseName(string(rest)); err == nil && !bytes.Equal(row.value, []byte{0}) && !bytes.Equal(row.value, []byte{1}) {
			err = fmt.Errorf("its value is %x", row.value)
		}
	case rowEntry:
		var e Entry
		if e, err = decodeEntry(string(rest), row.value); err == nil {
			err = checkChange(Change{Entry: e}, k.gateway)
		}
	case rowPlace:
		err = nil // see checkPlaces
	case rowBlock, rowAhead:
		err = k.block(kind, rest, row.value)
	case rowRelease:
		err = k.release(ctx, row)
	case rowHistory:
		err = k.history(rest, row.value)
	case rowHeld, rowDue:
		err = k.held(kind, rest, row.value)
	case rowMonth:
		_, err = snapshots(ctx, k.snap)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("row %q: %w: %w", row.key, ErrCorrupt, err)
}

// single checks a row that there is one of.
func (k rowCheck) single(ctx context.Context, kind byte) (err error) {
	switch kind {
	case rowFormat:
		var row formatRow
		if row, err = readFormat(k.snap); err == nil && row != (formatRow{storeFormat, k.parameters}) {
			err = fmt.Errorf("it is %+v", row)
		}
	case rowSources:
		_, err = readSources(k.snap)
	case rowCounts:
		_, err = readCounts(ctx, k.snap)
	case rowOldest:
		_, _, err = releaseAndBefore(k.snap, k.oldest)
	}
	return err
}

func (k rowCheck) block(kind byte, key, raw []byte) error {
	c, err := cid.Cast(key)
	if err != nil {
		return err
	}
	if kind == rowAhead {
		_, err = readBlock(k.snap, c)
	} else {
		_, err = checkedBlock(c, raw)
	}
	return err
}

// history checks what is written down of a release whose directories went, or are
// about to.
func (k rowCheck) history(key, raw []byte) error {
	if len(key) < 8 || binary.BigEndian.Uint64(key) == 0 {
		return errors.New("no release has that number")
	}
	name, err := npm.ParseName(string(key[8:]))
	if err == nil {
		_, err = decodeDifference(name, raw)
	}
	return err
}

// release holds a release's row to those before it, and to the release.json in its
// directory, unless that was collected.
func (k rowCheck) release(ctx context.Context, row keyValue) error {
	r, err := readReleaseRow(row)
	if err != nil || k.isCopy {
		return err
	}
	if err := k.jump(r); err != nil || r.Number < k.oldest {
		return err
	}
	got, err := ReadRelease(ctx, getter{k.snap}, r.Root)
	if err != nil {
		return fmt.Errorf("release %d: %w", r.Number, err)
	}
	said, err := encodeRelease(got, true)
	if err == nil && !bytes.Equal(said, row.value) {
		err = fmt.Errorf("release %d: its row has %q, its directory says %q", r.Number, row.value, said)
	}
	return err
}

// jump holds a release's jump to those before it. One that has none may be of before
// there were jumps.
func (k rowCheck) jump(r Release) error {
	if !r.Jump.Root.Defined() {
		return nil
	}
	before, _, err := releaseAndBefore(k.snap, r.Number)
	if err != nil {
		return err
	}
	var want Jump
	if before.Root == r.Previous {
		want, err = jumpAfter(k.snap, before)
	}
	if err == nil && r.Jump != want {
		err = fmt.Errorf("release %d: its jump is %v, those before it give %v", r.Number, r.Jump, want)
	}
	return err
}
