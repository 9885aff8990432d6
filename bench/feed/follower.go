package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// follower is the whole follower, of every package, with a ledger on disk that
// knows each row of the feed already: rows that need no work. It is not to ask
// upstream or the node for anything.
func follower(ctx context.Context, url string, rows int) (take, error) {
	dir, err := os.MkdirTemp("", "bench-feed-*")
	if err != nil {
		return nil, err
	}
	fail := func(err error) (take, error) { return nil, errors.Join(err, os.RemoveAll(dir)) }
	store, err := ledger.Create(dir, ledger.Options{})
	if err != nil {
		return fail(err)
	}
	defer store.Close()
	if err := know(ctx, store, url, rows); err != nil {
		return fail(err)
	}
	return func(ctx context.Context, done func(int)) (err error) {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		store, err := ledger.Open(dir, ledger.Options{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		f, err := follow.New(follow.Options{
			Ledger: store, Upstream: nobody{}, Node: nobody{},
			Feed: couch.New(couch.Options{URL: url}), FeedName: url,
		})
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx, true) }()
		counted := uint64(0)
		count := func() {
			n := f.Status().RowsRead
			done(int(n - counted))
			counted = n
		}
		for {
			select {
			case err := <-ended:
				count()
				return err
			case <-time.After(10 * time.Millisecond):
				count()
			}
		}
	}, nil
}

// know fills the ledger with what the feed says, and has it read from its
// beginning.
func know(ctx context.Context, store *ledger.Store, url string, rows int) error {
	document, err := cid.V1Builder{Codec: cid.Raw, MhType: 0x12}.Sum([]byte("document"))
	if err != nil {
		return err
	}
	const batch = 10_000
	var b, gone ledger.Batch
	for n := 1; n <= rows; n++ {
		name := npm.Name(nameOf(n))
		b.Packages = append(b.Packages, ledger.PackageUpdate{Name: name, Rev: revision, Document: ledger.Document{CID: document, Size: 1, Tsize: 1}, Listed: 1})
		if isDeleted(n) {
			gone.Packages = append(gone.Packages, ledger.PackageUpdate{Name: name, Rev: revision, Deleted: true})
		}
		if n%batch != 0 && n != rows {
			continue
		}
		for _, part := range []ledger.Batch{b, gone} {
			if _, err := store.Commit(ctx, part); err != nil {
				return err
			}
		}
		b, gone = ledger.Batch{}, ledger.Batch{}
	}
	_, err = store.Commit(ctx, ledger.Batch{
		Wants:  []ledger.Want{{Every: true, NoDeps: true}},
		Cursor: &ledger.Cursor{Feed: url + "#all", Value: "0"},
	})
	if err != nil {
		return err
	}
	if c := store.Counts(); c.Packages+c.Deleted != rows {
		return fmt.Errorf("the ledger knows %d of %d packages", c.Packages+c.Deleted, rows)
	}
	return nil
}

// nobody is a registry and a node that are not to be asked.
type nobody struct{}

var errAsked = errors.New("a row that needs no work made some")

func (nobody) Packument(context.Context, npm.Name, string) (upstream.Packument, error) {
	return upstream.Packument{}, errAsked
}
func (nobody) Tarball(context.Context, npm.Name, string, npm.Dist) (*upstream.Tarball, error) {
	return nil, errAsked
}
func (nobody) Hold(context.Context, string, []cid.Cid) error        { return errAsked }
func (nobody) Unhold(context.Context, string, []cid.Cid) error      { return errAsked }
func (nobody) Put(context.Context, []blocks.Block) error            { return errAsked }
func (nobody) Checkpoint(context.Context) error                     { return errAsked }
func (nobody) Local(context.Context, cid.Cid) (blocks.Block, error) { return nil, errAsked }
