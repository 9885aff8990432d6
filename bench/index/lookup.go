//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// lookupResult is how a node that has none of a list finds names in it, from a
// peer on loopback, over bitswap.
type lookupResult struct {
	Names   int `json:"names"`
	Lookups int `json:"lookups"`

	First  lookedUp `json:"first"`  // the first name, of which all blocks are fetched
	Next   lookedUp `json:"next"`   // the others, whose root is held: medians
	Cached lookedUp `json:"cached"` // all of them again
	MaxMs  float64  `json:"max_ms"` // the slowest of the others
}

type lookedUp struct {
	Blocks int     `json:"blocks"`
	Bytes  int     `json:"bytes"`
	Ms     float64 `json:"ms"`
}

// lookups is how many names are looked up.
const lookups = 200

func lookup(ctx context.Context, b *bench, r *result) error {
	for _, n := range b.bulk {
		l, err := b.built(ctx, n)
		if err != nil {
			return err
		}
		rnd := rand.New(rand.NewPCG(7, uint64(n)))
		places := make([]int, lookups)
		for i := range places {
			places[i] = rnd.IntN(n)
		}
		names, err := namesAt(l.path, [][]int{places})
		if err != nil {
			return err
		}
		changes := make([]index.Change, lookups)
		for i, place := range places {
			changes[i] = put(names[place], uint64(place), 0)
		}
		path := filepath.Join(b.dir, fmt.Sprint("lookups-", n))
		if err := writeChanges(path, slices.Values(changes)); err != nil {
			return err
		}
		m, err := b.measure(ctx, n, job{Side: "lookup", Index: l.index, Blocks: filepath.Join(b.dir, fmt.Sprint("nodes-", n)), Changes: []string{path}})
		if err != nil {
			return err
		}
		first, next, cached := m.Steps[0], m.Steps[1:lookups], m.Steps[lookups:]
		x := lookupResult{Names: n, Lookups: lookups, First: at([]step{first}), Next: at(next), Cached: at(cached)}
		for _, s := range next {
			x.MaxMs = max(x.MaxMs, 1e3*s.Seconds)
		}
		r.Lookup = append(r.Lookup, x)
	}
	return nil
}

func at(steps []step) lookedUp {
	return lookedUp{
		Blocks: of(steps, func(s step) int { return s.Blocks }), Bytes: of(steps, func(s step) int { return s.Bytes }),
		Ms: 1e3 * of(steps, func(s step) float64 { return s.Seconds }),
	}
}

func printLookup(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tlooked up\tblocks\tbytes\tms\tslowest\t")
	for _, l := range r.Lookup {
		fmt.Fprintf(w, "%d\tfirst\t%d\t%d\t%.2f\t\t\n", l.Names, l.First.Blocks, l.First.Bytes, l.First.Ms)
		fmt.Fprintf(w, "%d\tnext %d\t%d\t%d\t%.2f\t%.2f\t\n", l.Names, l.Lookups-1, l.Next.Blocks, l.Next.Bytes, l.Next.Ms, l.MaxMs)
		fmt.Fprintf(w, "%d\tagain, cached\t%d\t%d\t%.2f\t\t\n", l.Names, l.Cached.Blocks, l.Cached.Bytes, l.Cached.Ms)
	}
}

// lookThrough gives a list to one node, and looks names up from another.
func lookThrough(ctx context.Context, j job) (m measured, err error) {
	changes, err := collect(readChanges(j.Changes[0]))
	if err != nil {
		return m, err
	}
	seeder, err := ipfs.CreateEmbedded(ctx, ipfs.EmbeddedOptions{Dir: filepath.Join(j.Blocks, "seeder")})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, seeder.Close()) }()
	list, want, err := seed(ctx, j.Index, seeder, changes)
	if err != nil {
		return m, err
	}
	info, err := seeder.Info(ctx)
	if err != nil {
		return m, err
	}
	reader, err := ipfs.CreateEmbedded(ctx, ipfs.EmbeddedOptions{Dir: filepath.Join(j.Blocks, "reader")})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	if err := reader.Connect(ctx, info.Addrs[0]); err != nil {
		return m, err
	}
	for range 2 {
		for i, c := range changes {
			g := &counting{Getter: reader}
			begun := time.Now()
			e, err := index.Lookup(ctx, g, list, c.Name)
			took := time.Since(begun)
			if err == nil && e.CID != want[i] {
				err = fmt.Errorf("it is %s, not %s", e.CID, want[i])
			}
			if err != nil {
				return m, fmt.Errorf("look up %s: %w", c.Name, err)
			}
			m.Steps = append(m.Steps, step{Seconds: took.Seconds(), Blocks: g.blocks, Bytes: g.bytes})
		}
	}
	return m, nil
}

// seed puts the directories of an index's newest list into a node, and says what
// the list has under names.
func seed(ctx context.Context, dir string, node *ipfs.Embedded, names []index.Change) (list index.List, has []cid.Cid, err error) {
	ix, err := index.Open(dir, index.Options{})
	if err != nil {
		return list, nil, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	r, err := ix.Head()
	if err != nil {
		return list, nil, err
	}
	for _, c := range names {
		e, err := ix.Entry(c.Name)
		if err != nil {
			return list, nil, err
		}
		has = append(has, e.CID)
	}
	var some []blocks.Block
	for blk, err := range ix.Blocks(ctx, 0, r.Number) {
		if err != nil {
			return list, nil, err
		}
		if some = append(some, blk); len(some) < 1000 {
			continue
		}
		if err := node.Put(ctx, some); err != nil {
			return list, nil, err
		}
		some = nil
	}
	return r.List, has, errors.Join(node.Put(ctx, some), node.Checkpoint(ctx))
}

// counting is a getter that one goroutine uses.
type counting struct {
	unixfs.Getter
	blocks, bytes int
}

func (g *counting) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := g.Getter.Get(ctx, c)
	if err == nil {
		g.blocks++
		g.bytes += len(b.RawData())
	}
	return b, err
}
