package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Tarballs fetches a version's tarball from where its document says, verified
// by every digest in it; *upstream.Client can. An error that matches
// fs.ErrNotExist says that it is not there or must not be asked for.
type Tarballs func(ctx context.Context, name npm.Name, version string, d npm.Dist) (io.ReadCloser, error)

// version finds which version of a listed package a tarball is of.
func (m *Mirror) version(ctx context.Context, name npm.Name, file string) (version string, d npm.Dist, err error) {
	dir, listed, err := m.entry(name)
	if err != nil {
		return "", d, err
	}
	if !listed {
		return "", d, errNotFound
	}
	p, err := m.eitherPackument(ctx, name, dir)
	if err != nil {
		return "", d, err
	}
	err = m.decoded(ctx, p, func(raw []byte) error {
		doc, err := npm.ParsePackument(raw)
		if err != nil {
			return fmt.Errorf("read packument of %s: %w", name, err)
		}
		for v, manifest := range doc.Versions {
			if f, err := npm.TarballFile(name, v, manifest.Dist.Tarball); err == nil && f == file {
				version, d = v, manifest.Dist
				return nil
			}
		}
		return errNotFound
	})
	return version, d, err
}

// refetch has a listed tarball that no peer gives come from the registry that
// its document names. It is taken only where the bytes make the listed CID; the
// blocks are then held here.
func (m *Mirror) refetch(ctx context.Context, name npm.Name, file string, want cid.Cid) error {
	ctx, cancel := context.WithTimeout(ctx, tarballPatience)
	defer cancel()
	_, err := shared(ctx, m, "refetch "+want.KeyString(), wholeDeadline, func(ctx context.Context) (struct{}, error) {
		version, d, err := m.version(ctx, name, file)
		if err != nil {
			return struct{}{}, err
		}
		body, err := m.o.Tarballs(ctx, name, version, d)
		if err != nil {
			if errors.Is(err, npm.ErrIntegrity) {
				m.countMismatch(ctx, name, file, want, err)
			}
			return struct{}{}, err
		}
		defer body.Close()
		var batch []blocks.Block
		size := 0
		ref, err := unixfs.AddFile(body, func(b blocks.Block) error {
			batch, size = append(batch, b), size+len(b.RawData())
			if size < 4<<20 && len(batch) < 256 {
				return nil
			}
			err := m.keep(ctx, batch)
			batch, size = nil, 0
			return err
		})
		if err == nil {
			err = m.keep(ctx, batch)
		}
		if err == nil && !ref.CID.Equals(want) {
			// A version never changes its bytes: what is listed stands.
			err = fmt.Errorf("upstream has other bytes (%s) than the list (%s)", ref.CID, want)
		}
		return struct{}{}, err
	})
	return err
}

const (
	breakAfter = 3                // failures in a row
	breakFor   = 15 * time.Second // at first; twice as long after each trial that fails
	breakMost  = 5 * time.Minute
)

// breaker keeps a source that only fails from holding every request up: after
// breakAfter failures in a row others come first for a while, then it is tried once.
type breaker struct {
	mu     sync.Mutex
	failed int
	until  time.Time
	pause  time.Duration
}

// open says that others come first now. The first to ask after the pause is told
// that it is not so, and tries the source for all.
func (b *breaker) open(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed < breakAfter {
		return false
	}
	if now.Before(b.until) {
		return true
	}
	b.until = now.Add(b.pause)
	return false
}

func (b *breaker) note(now time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.failed, b.pause = 0, 0
		return
	}
	if b.failed++; b.failed < breakAfter {
		return
	}
	b.pause = min(max(2*b.pause, breakFor), breakMost)
	b.until = now.Add(b.pause)
}
