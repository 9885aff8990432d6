package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"

	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// snapshotName is the directory in "_registry" of a file NUMBER, the whole list
// of that release, which is this one or, for a snapshot is large, an earlier one.
const snapshotName = "snapshot"

// Snapshot is the whole list of a release as one file.
type Snapshot struct {
	Number uint64
	File   unixfs.Ref
}

// Snapshot writes the newest release's list as a file, whose blocks go to sink
// and not into the index. A later Batch.Snapshot shows it to readers.
// ErrNoRelease before the first release, and while entries are ahead of it.
func (ix *Index) Snapshot(ctx context.Context, sink unixfs.Sink) (s Snapshot, err error) {
	if err := ix.begin(); err != nil {
		return Snapshot{}, err
	}
	defer ix.end()
	snap := ix.db.NewSnapshot()
	defer snap.Close()
	r, err := head(snap)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot: %w", err)
	}
	if n, err := countPending(snap, 1); err != nil || n > 0 {
		return Snapshot{}, fmt.Errorf("snapshot: a build is under way: %w", errors.Join(ErrNoRelease, err))
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(writeSnapshot(pw, entries(ctx, snap)))
	}()
	file, err := unixfs.AddFile(pr, sink)
	pr.CloseWithError(err) // ends the writer where sink failed
	<-done
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot of release %d: %w", r.Number, err)
	}
	return Snapshot{r.Number, file}, nil
}

// A list of fewer packages than minSnapshot is as soon read by its directories. A
// snapshot is due again once the deltas since the last are one in snapshotShare of
// its bytes.
const (
	minSnapshot   = 1000
	snapshotShare = 10
)

// SnapshotDue says whether readers of the newest release would be better off with
// a new Snapshot, and whether they have one at all.
func (ix *Index) SnapshotDue(ctx context.Context) (due, shown bool, err error) {
	if err := ix.begin(); err != nil {
		return false, false, err
	}
	defer ix.end()
	r, err := head(ix.db)
	if errors.Is(err, ErrNoRelease) {
		return false, false, nil
	}
	if err == nil && r.Packages >= minSnapshot {
		due, shown, err = snapshotDue(ctx, getter{ix.db}, r)
	}
	if err != nil {
		return false, false, fmt.Errorf("is a snapshot due: %w", err)
	}
	return due, shown, nil
}

func snapshotDue(ctx context.Context, g unixfs.Getter, r Release) (due, shown bool, err error) {
	s, err := snapshotOf(ctx, g, r.Root)
	if err != nil || s.Number == 0 {
		return err == nil, false, err
	}
	if s.Number == r.Number {
		return false, true, nil
	}
	deltas, err := listDeltas(ctx, g, r.Root)
	if err != nil {
		return false, true, err
	}
	since := wayFrom(deltas, s.Number, r.Number)
	size := uint64(0)
	for _, d := range since {
		size += d.file.Tsize
	}
	return len(since) == 0 || size > s.File.Tsize/snapshotShare, true, nil
}

// writeSnapshot writes entries, whose names rise.
func writeSnapshot(w io.Writer, entries iter.Seq2[Entry, error]) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	err = writeOps(z, snapshotMagic, func(yield func(Change, error) bool) {
		for e, err := range entries {
			if !yield(Change{Entry: e}, err) {
				return
			}
		}
	})
	return errors.Join(err, z.Close())
}

// snapshotOf is the snapshot that a release shows; it has no Number where there
// is none.
func snapshotOf(ctx context.Context, g unixfs.Getter, release cid.Cid) (s Snapshot, err error) {
	dir, err := unixfs.Path(ctx, g, release, registryName, snapshotName)
	if errors.Is(err, unixfs.ErrNotFound) {
		return Snapshot{}, nil
	}
	if err != nil {
		return Snapshot{}, err
	}
	listed := 0
	for l, err := range unixfs.List(ctx, g, dir.CID) {
		if listed++; err == nil && listed > maxListed {
			err = fmt.Errorf("%w: more than %d snapshots", ErrDelta, maxListed)
		}
		if err != nil {
			return Snapshot{}, err
		}
		if n, err := strconv.ParseUint(l.Name, 10, 64); err == nil && n >= s.Number {
			s = Snapshot{n, unixfs.Ref{CID: l.CID, Tsize: l.Tsize}}
		}
	}
	return s, nil
}

// dir is the directory that shows a snapshot.
func (s Snapshot) dir(sink unixfs.Sink) (unixfs.Link, error) {
	ref, err := unixfs.BasicDir([]unixfs.Link{{Name: strconv.FormatUint(s.Number, 10), CID: s.File.CID, Tsize: s.File.Tsize}}, sink)
	return unixfs.Link{Name: snapshotName, CID: ref.CID, Tsize: ref.Tsize}, err
}

// ops reads the file.
func (s Snapshot) ops(ctx context.Context, g unixfs.Getter) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		fail := func(err error) { yield(Change{}, fmt.Errorf("snapshot of release %d: %w", s.Number, err)) }
		f, err := unixfs.Open(ctx, g, s.File.CID)
		if err != nil {
			fail(err)
			return
		}
		defer f.Close()
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(16<<20))
		if err != nil {
			fail(err)
			return
		}
		defer z.Close()
		for c, err := range readOps(z, snapshotMagic) {
			if err == nil && c.Delete {
				err = fmt.Errorf("%w: %s is gone", ErrDelta, c.Name)
			}
			if err != nil {
				fail(err)
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}
