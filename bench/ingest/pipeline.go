//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// Bounds: requests to the registry that run at once; and what one batch gathers,
// which is what one CAR to Kubo may hold.
const (
	workers     = 16
	gatherItems = 1000
	gatherBytes = 64 << 20
	gatherTime  = 100 * time.Millisecond
)

// stored is one tarball, verified and cut to blocks.
type stored struct {
	root   cid.Cid
	blocks []blocks.Block
	size   int
}

// fetchAll fetches and verifies every file of the corpus, a few at a time,
// and hands each to keep.
func fetchAll(ctx context.Context, c *corpus, r *registry, keep func(context.Context, *upstream.Tarball) error) error {
	client := upstream.New(upstream.Options{Registry: r.config()})
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range workers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(c.files) {
					return nil
				}
				f := c.files[i]
				t, err := client.Tarball(ctx, f.name, version, r.dist(f))
				if err != nil {
					return err
				}
				if err := keep(ctx, t); err != nil {
					return fmt.Errorf("%s: %w", f.name, err)
				}
				if err := t.Close(); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// ingest is the follower's path for tarballs: fetch, verify, cut to blocks,
// gather, and for each batch hold, put, checkpoint. Each stage works on the next
// batch while the one after it has the last; a checkpoint covers all batches
// that were put by then, so the slower the disk syncs, the fewer there are. It
// returns every file's root.
func ingest(ctx context.Context, c *corpus, r *registry, n ipfs.Node) ([]cid.Cid, error) {
	g, ctx := errgroup.WithContext(ctx)
	items := make(chan stored)
	batches := make(chan []stored)
	written := make(chan []cid.Cid, 16)
	g.Go(func() error {
		defer close(items)
		return fetchAll(ctx, c, r, func(ctx context.Context, t *upstream.Tarball) error {
			it, err := cut(t)
			if err != nil {
				return err
			}
			return send(ctx, items, it)
		})
	})
	g.Go(func() error {
		defer close(batches)
		return gather(ctx, items, batches)
	})
	g.Go(func() error {
		defer close(written)
		for batch := range batches {
			roots, err := put(ctx, n, batch)
			if err != nil {
				return err
			}
			if err := send(ctx, written, roots); err != nil {
				return err
			}
		}
		return nil
	})
	var durable []cid.Cid
	g.Go(func() error {
		for roots := range written {
			for more := true; more; {
				select {
				case next, ok := <-written:
					roots, more = append(roots, next...), ok
				default:
					more = false
				}
			}
			if err := n.Checkpoint(ctx); err != nil {
				return err
			}
			durable = append(durable, roots...)
		}
		return nil
	})
	err := g.Wait()
	return durable, err
}

func send[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func cut(r io.Reader) (stored, error) {
	var it stored
	ref, err := unixfs.AddFile(r, func(b blocks.Block) error {
		it.blocks = append(it.blocks, b)
		it.size += len(b.RawData())
		return nil
	})
	it.root = ref.CID
	return it, err
}

// gather makes batches of items. One is handed on once it is full, or as old as
// gatherTime; while nobody takes it, it grows until it is full.
func gather(ctx context.Context, items <-chan stored, batches chan<- []stored) error {
	var batch []stored
	size := 0
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	ripe := false
	for {
		in, out := items, batches
		if len(batch) >= gatherItems || size >= gatherBytes {
			in = nil
		} else if !ripe {
			out = nil
		}
		select {
		case it, ok := <-in:
			if !ok {
				if len(batch) > 0 {
					return send(ctx, batches, batch)
				}
				return nil
			}
			if len(batch) == 0 {
				timer.Reset(gatherTime)
			}
			batch = append(batch, it)
			size += it.size
		case out <- batch:
			batch, size, ripe = nil, 0, false
		case <-timer.C:
			ripe = len(batch) > 0
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// put hands one batch to the node. It is held first, so that no garbage
// collection finds a block of it without a root.
func put(ctx context.Context, n ipfs.Node, batch []stored) ([]cid.Cid, error) {
	var blks []blocks.Block
	roots := make([]cid.Cid, len(batch))
	for i, it := range batch {
		roots[i] = it.root
		blks = append(blks, it.blocks...)
	}
	if err := n.Hold(ctx, "bench", roots); err != nil {
		return nil, err
	}
	return roots, n.Put(ctx, blks)
}

// sample checks that the node gives back some of what it took.
func sample(ctx context.Context, n ipfs.Node, roots []cid.Cid) error {
	for i := 0; i < len(roots); i += 1 + len(roots)/200 {
		if _, err := n.Local(ctx, roots[i]); err != nil {
			return fmt.Errorf("what was ingested is not there: %w", err)
		}
	}
	return nil
}
