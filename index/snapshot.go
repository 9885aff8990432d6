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
	for l, err := range unixfs.List(ctx, g, dir.CID) {
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
