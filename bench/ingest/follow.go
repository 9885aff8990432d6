//go:build linux

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// client is one for the corpus's registry, with what cmd/follower sets.
func (r *registry) client() *upstream.Client {
	return upstream.New(upstream.Options{Registry: r.config(), Attempts: 1})
}

// fetchAll fetches and verifies every file of the corpus, as many at a time as
// the follower would, and keeps none.
func fetchAll(ctx context.Context, c *corpus, r *registry) error {
	client := r.client()
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range 2 * workers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(c.files) {
					return nil
				}
				f := c.files[i]
				t, err := client.Tarball(ctx, f.name, f.version, r.dist(f))
				if err != nil {
					return err
				}
				if err := t.Close(); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// workers is the follower's own default.
const workers = 16

// fill lets the project's follower fill a new ledger in dir and n with every
// version of every package, and returns how long that took: from the wants to
// the last commit. What it commits is held, and durable in the node before.
func fill(ctx context.Context, c *corpus, r *registry, n ipfs.Node, dir string) (took time.Duration, err error) {
	store, err := ledger.Create(filepath.Join(dir, "ledger"), ledger.Options{})
	if err != nil {
		return 0, err
	}
	defer store.Close()
	f, err := follow.New(follow.Options{Ledger: store, Upstream: r.client(), Node: n, Workers: workers})
	if err != nil {
		return 0, err
	}
	var wants []ledger.Want
	for _, files := range c.packages() {
		wants = append(wants, ledger.Want{Spec: npm.Spec{Name: files[0].name}, Every: true, NoDeps: true})
	}
	begin := time.Now()
	if err := f.Add(ctx, wants); err != nil {
		return 0, err
	}
	took = time.Since(begin)
	return took, check(ctx, c, store, n)
}

// check compares the ledger with the corpus, and asks the node for some of it.
func check(ctx context.Context, c *corpus, store *ledger.Store, n ipfs.Node) error {
	for i, files := range c.packages() {
		held, err := store.Package(ctx, files[0].name)
		if err != nil {
			return err
		}
		if len(held.Versions) != len(files) {
			return fmt.Errorf("%d of %d versions of %s were stored", len(held.Versions), len(files), held.Name)
		}
		if i%10 > 0 {
			continue
		}
		if _, err := n.Local(ctx, held.Versions[0].CID); err != nil {
			return fmt.Errorf("what was ingested is not there: %w", err)
		}
	}
	return nil
}
