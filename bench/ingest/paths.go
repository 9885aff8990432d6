//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/boxo/files"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/kubo/client/rpc"
	"github.com/ipfs/kubo/core/coreiface/options"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sys/unix"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
)

// A path is one way to take the files in. It prepares a repository of its own
// in dir, times the ingest, and stops its clock when every block is under a
// garbage collection root and on the disk.
type path struct {
	name   string
	daemon bool // it needs a Kubo
	sample bool // it is so slow that it takes a part of the files
	run    func(ctx context.Context, b *bench, dir string, c *corpus) (time.Duration, error)
}

// paths are in the order in which they run: what writes least comes first.
var paths = []path{
	{name: "ceiling", run: ceiling},
	{name: "fetch", run: fetchOnly},
	{name: "embedded", run: embedded},
	{name: "kubo", daemon: true, run: kubo},
	{name: "ipfs_add_r", daemon: true, run: ipfsAdd},
	{name: "rpc_add", daemon: true, sample: true, run: rpcAdd(false)},
	{name: "rpc_add_pinned", daemon: true, sample: true, run: rpcAdd(true)},
}

// syncfs writes all that is in dir's file system to the disk.
func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// ceiling is the least that an IPFS node could do: hash every file, append it,
// and sync once.
func ceiling(_ context.Context, _ *bench, dir string, c *corpus) (time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	begin := time.Now()
	for _, file := range c.files {
		sha256.Sum256(file.data)
		if _, err := f.Write(file.data); err != nil {
			return 0, err
		}
	}
	err = f.Sync()
	return time.Since(begin), err
}

// fetchOnly fetches and verifies, and keeps nothing.
func fetchOnly(ctx context.Context, b *bench, _ string, c *corpus) (time.Duration, error) {
	begin := time.Now()
	err := fetchAll(ctx, c, b.registry)
	return time.Since(begin), err
}

func embedded(ctx context.Context, b *bench, dir string, c *corpus) (time.Duration, error) {
	n, err := ipfs.CreateEmbedded(ctx, ipfs.EmbeddedOptions{Dir: filepath.Join(dir, "node")})
	if err != nil {
		return 0, err
	}
	took, err := fill(ctx, c, b.registry, n, dir)
	return took, errors.Join(err, n.Close())
}

func kubo(ctx context.Context, b *bench, dir string, c *corpus) (time.Duration, error) {
	d, err := kubod.Run(ctx, b.kubo, filepath.Join(dir, "kubo"))
	if err != nil {
		return 0, err
	}
	took, err := overKubo(ctx, b, d, dir, c)
	return took, errors.Join(err, d.Stop())
}

func overKubo(ctx context.Context, b *bench, d *kubod.Daemon, dir string, c *corpus) (time.Duration, error) {
	n, err := openKubo(ctx, d)
	if err != nil {
		return 0, err
	}
	defer n.Close()
	return fill(ctx, c, b.registry, n, dir)
}

func openKubo(ctx context.Context, d *kubod.Daemon) (*ipfs.Kubo, error) {
	return ipfs.OpenKubo(ctx, ipfs.KuboOptions{API: d.API, Repo: d.Repo})
}

// ipfsAdd is the command line that Kubo's users know, which pins what it adds.
func ipfsAdd(ctx context.Context, b *bench, dir string, c *corpus) (time.Duration, error) {
	d, err := kubod.Run(ctx, b.kubo, filepath.Join(dir, "kubo"))
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	_, err = d.Command(ctx, "add", "-r", "-Q", b.tree)
	err = errors.Join(err, syncfs(d.Repo))
	took := time.Since(begin)
	return took, errors.Join(err, d.Stop())
}

// rpcAdd adds files one by one through Kubo's own client, each pinned, or all
// of them held at the end.
func rpcAdd(pin bool) func(context.Context, *bench, string, *corpus) (time.Duration, error) {
	return func(ctx context.Context, b *bench, dir string, c *corpus) (time.Duration, error) {
		d, err := kubod.Run(ctx, b.kubo, filepath.Join(dir, "kubo"))
		if err != nil {
			return 0, err
		}
		took, err := addOneByOne(ctx, d, c, pin)
		return took, errors.Join(err, d.Stop())
	}
}

func addOneByOne(ctx context.Context, d *kubod.Daemon, c *corpus, pin bool) (time.Duration, error) {
	addr, err := ma.NewMultiaddr(d.API)
	if err != nil {
		return 0, err
	}
	client, err := rpc.NewApi(addr)
	if err != nil {
		return 0, err
	}
	n, err := openKubo(ctx, d)
	if err != nil {
		return 0, err
	}
	defer n.Close()
	begin := time.Now()
	var roots []cid.Cid
	for _, f := range c.files {
		added, err := client.Unixfs().Add(ctx, files.NewReaderFile(bytes.NewReader(f.data)),
			options.Unixfs.Pin(pin, ""), options.Unixfs.CidVersion(1), options.Unixfs.RawLeaves(true), options.Unixfs.Chunker("size-1048576"))
		if err != nil {
			return 0, err
		}
		roots = append(roots, added.RootCid())
	}
	if !pin {
		if err := n.Hold(ctx, "bench", roots); err != nil {
			return 0, err
		}
	}
	if err := syncfs(d.Repo); err != nil {
		return 0, err
	}
	return time.Since(begin), sample(ctx, n, roots)
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
