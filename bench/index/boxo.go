//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// boxoBulk builds the same directories with boxo, which hands its blocks to
// nobody.
func boxoBulk(ctx context.Context, j job) (m measured, err error) {
	nodes := &dag{}
	m.cost, err = timed(func() error {
		root, err := hamt.NewShard(nodes, unixfs.Fanout)
		if err != nil {
			return err
		}
		root.SetCidBuilder(uio.UnixFS_v1_2025.CidBuilder())
		var dir *boxoScope
		err = byScope(ctx, listEntries(j.List), func(e index.Entry) error {
			return root.SetLink(ctx, string(e.Name), &ipld.Link{Cid: e.CID, Size: e.Tsize})
		}, func(e index.Entry) (err error) {
			if dir == nil {
				if dir, err = newBoxoScope(nodes); err != nil {
					return err
				}
			}
			return dir.put(ctx, e)
		}, func(scope string) error {
			l, err := dir.link(ctx)
			if dir = nil; err != nil {
				return err
			}
			return root.SetLink(ctx, scope, l)
		})
		if err != nil {
			return err
		}
		nd, err := root.Node()
		if err != nil {
			return err
		}
		m.Root = nd.Cid().String()
		return nil
	})
	return m, err
}

// boxoReleases makes, of a list in the index, the lists that the files of changes
// give. It reads from the index; what it writes it keeps in memory.
func boxoReleases(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	root, err := cid.Decode(j.Root)
	if err != nil {
		return m, err
	}
	nodes := &dag{under: ix, keep: map[cid.Cid]blocks.Block{}}
	for _, path := range j.Changes {
		changes, err := collect(readChanges(path))
		if err != nil {
			return m, err
		}
		took, err := timed(func() (err error) {
			root, err = boxoRelease(ctx, nodes, root, changes)
			return err
		})
		if err != nil {
			return m, fmt.Errorf("%s: %w", path, err)
		}
		m.Steps = append(m.Steps, step{Seconds: took.Seconds, CPU: took.CPU, Root: root.String()})
	}
	return m, nil
}

func boxoRelease(ctx context.Context, nodes *dag, old cid.Cid, changes []index.Change) (cid.Cid, error) {
	nd, err := nodes.Get(ctx, old)
	if err != nil {
		return cid.Undef, err
	}
	root, err := hamt.NewHamtFromDag(nodes, nd)
	if err != nil {
		return cid.Undef, err
	}
	scopes := map[string][]index.Change{}
	for _, c := range changes {
		switch scope := c.Name.Scope(); {
		case scope != "":
			scopes[scope] = append(scopes[scope], c)
		case c.Delete:
			err = root.Remove(ctx, string(c.Name))
		default:
			err = root.SetLink(ctx, string(c.Name), &ipld.Link{Cid: c.CID, Size: c.Tsize})
		}
		if err != nil {
			return cid.Undef, fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	for scope, changes := range scopes {
		if err := boxoScopeRelease(ctx, nodes, root, scope, changes); err != nil {
			return cid.Undef, fmt.Errorf("%s: %w", scope, err)
		}
	}
	if nd, err = root.Node(); err != nil {
		return cid.Undef, err
	}
	return nd.Cid(), nil
}

func boxoScopeRelease(ctx context.Context, nodes *dag, root *hamt.Shard, scope string, changes []index.Change) error {
	was, err := root.Find(ctx, scope)
	var dir *boxoScope
	switch {
	case errors.Is(err, os.ErrNotExist):
		dir, err = newBoxoScope(nodes)
	case err == nil:
		dir, err = openBoxoScope(ctx, nodes, was.Cid)
	}
	if err != nil {
		return err
	}
	for _, c := range changes {
		if c.Delete {
			err = dir.remove(ctx, c.Name)
		} else {
			err = dir.put(ctx, c.Entry)
		}
		if err != nil {
			return err
		}
	}
	if dir.empty() {
		return root.Remove(ctx, scope)
	}
	l, err := dir.link(ctx)
	if err != nil {
		return err
	}
	return root.SetLink(ctx, scope, l)
}

// boxoScope is a scope's directory, basic or a HAMT by the limit that ours has.
type boxoScope struct {
	nodes *dag
	dir   *uio.DynamicDirectory
}

func newBoxoScope(nodes *dag) (*boxoScope, error) {
	d, err := uio.NewDirectory(nodes, uio.WithCidBuilder(uio.UnixFS_v1_2025.CidBuilder()),
		uio.WithSizeEstimationMode(uio.SizeEstimationBlock))
	if err != nil {
		return nil, err
	}
	return limited(nodes, d), nil
}

func openBoxoScope(ctx context.Context, nodes *dag, c cid.Cid) (*boxoScope, error) {
	nd, err := nodes.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	d, err := uio.NewDirectoryFromNode(nodes, nd)
	if err != nil {
		return nil, err
	}
	d.SetSizeEstimationMode(uio.SizeEstimationBlock)
	return limited(nodes, d), nil
}

func limited(nodes *dag, d uio.Directory) *boxoScope {
	dir, ok := d.(*uio.DynamicDirectory)
	if !ok {
		dir = &uio.DynamicDirectory{Directory: d}
	}
	dir.SetHAMTShardingSize(unixfs.DirLimit)
	return &boxoScope{nodes, dir}
}

func (s *boxoScope) put(ctx context.Context, e index.Entry) error {
	if err := s.dir.AddChild(ctx, e.Name.Base(), stub{cid: e.CID, size: e.Tsize}); err != nil {
		return err
	}
	// A HAMT that became basic has lost it.
	s.dir.SetHAMTShardingSize(unixfs.DirLimit)
	return nil
}

func (s *boxoScope) remove(ctx context.Context, name npm.Name) error {
	return s.dir.RemoveChild(ctx, name.Base())
}

// empty can be a basic directory alone.
func (s *boxoScope) empty() bool {
	basic, ok := s.dir.Directory.(*uio.BasicDirectory)
	if !ok {
		return false
	}
	nd, err := basic.GetNode()
	return err == nil && len(nd.Links()) == 0
}

// link writes the directory.
func (s *boxoScope) link(ctx context.Context) (*ipld.Link, error) {
	nd, err := s.dir.GetNode()
	if err != nil {
		return nil, err
	}
	if err := s.nodes.Add(ctx, nd); err != nil {
		return nil, err
	}
	return ipld.MakeLink(nd)
}

// stub is a package's directory, of which only CID and size are known.
type stub struct {
	ipld.Node
	cid  cid.Cid
	size uint64
}

func (s stub) Cid() cid.Cid          { return s.cid }
func (s stub) Size() (uint64, error) { return s.size, nil }

// dag is boxo's store of nodes: a map over an index, or, without one, nothing at
// all.
type dag struct {
	ipld.DAGService // nil: what boxo calls is below
	under           *index.Index

	mu   sync.Mutex
	keep map[cid.Cid]blocks.Block // nil: nothing is kept
}

func (d *dag) Add(_ context.Context, nd ipld.Node) error {
	if _, ok := nd.(stub); ok || d.keep == nil {
		return nil
	}
	blk, err := blocks.NewBlockWithCid(nd.RawData(), nd.Cid())
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keep[blk.Cid()] = blk
	return nil
}

func (d *dag) Get(ctx context.Context, c cid.Cid) (ipld.Node, error) {
	d.mu.Lock()
	blk, ok := d.keep[c]
	d.mu.Unlock()
	if !ok {
		if d.under == nil {
			return nil, ipld.ErrNotFound{Cid: c}
		}
		var err error
		if blk, err = d.under.Get(ctx, c); err != nil {
			return nil, err
		}
	}
	return merkledag.DecodeProtobufBlock(blk)
}

func (d *dag) GetMany(ctx context.Context, cs []cid.Cid) <-chan *ipld.NodeOption {
	out := make(chan *ipld.NodeOption, len(cs))
	defer close(out)
	for _, c := range cs {
		nd, err := d.Get(ctx, c)
		out <- &ipld.NodeOption{Node: nd, Err: err}
	}
	return out
}
