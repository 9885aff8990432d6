//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// bulkResult is the building of one whole list.
type bulkResult struct {
	Names      int     `json:"names"`
	OursS      float64 `json:"ours_s"` // the release's Apply: rows of Pebble in, all blocks and the release on the disk
	MemoryS    float64 `json:"memory_s"`
	BoxoS      float64 `json:"boxo_s"`
	OursCPUS   float64 `json:"ours_cpu_s"`
	MemoryCPUS float64 `json:"memory_cpu_s"`
	BoxoCPUS   float64 `json:"boxo_cpu_s"`
	OursMiB    float64 `json:"ours_rss_mib"`
	MemoryMiB  float64 `json:"memory_rss_mib"`
	BoxoMiB    float64 `json:"boxo_rss_mib"`
	LoadS      float64 `json:"load_s"` // before ours_s: the entries, in synced batches
	LoadMiB    float64 `json:"load_rss_mib"`
	Blocks     int     `json:"blocks"` // of the list, some of them possibly equal
	Bytes      int     `json:"bytes"`
	SameRoot   bool    `json:"same_root"`

	BoxoOverOurs   float64 `json:"boxo_over_ours"`
	BoxoOverMemory float64 `json:"boxo_over_memory"`
}

func bulk(ctx context.Context, b *bench, r *result) error {
	for _, n := range b.bulk {
		l, err := b.built(ctx, n)
		if err != nil {
			return err
		}
		memory, err := measure(ctx, job{Side: "memory", List: l.path})
		if err != nil {
			return err
		}
		boxo, err := measure(ctx, job{Side: "boxo", List: l.path})
		if err != nil {
			return err
		}
		r.Bulk = append(r.Bulk, bulkResult{
			Names: n, OursS: l.build.Seconds, MemoryS: memory.Seconds, BoxoS: boxo.Seconds,
			OursCPUS: l.build.CPU, MemoryCPUS: memory.CPU, BoxoCPUS: boxo.CPU,
			OursMiB: l.build.RSSMiB, MemoryMiB: memory.RSSMiB, BoxoMiB: boxo.RSSMiB,
			LoadS: l.load.Seconds, LoadMiB: l.load.RSSMiB,
			Blocks: memory.Steps[0].Blocks, Bytes: memory.Steps[0].Bytes,
			SameRoot:     l.build.Root == boxo.Root && memory.Root == boxo.Root,
			BoxoOverOurs: ratio(boxo.Seconds, l.build.Seconds), BoxoOverMemory: ratio(boxo.Seconds, memory.Seconds),
		})
	}
	return nil
}

func printBulk(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "list built whole\tseconds\tCPU s\tpeak MiB\tboxo takes\tsame root\t")
	for _, b := range r.Bulk {
		fmt.Fprintf(w, "%d, boxo\t%.2f\t%.2f\t%.0f\t\t\t\n", b.Names, b.BoxoS, b.BoxoCPUS, b.BoxoMiB)
		fmt.Fprintf(w, "in memory\t%.2f\t%.2f\t%.0f\t%.1fx\t%v\t\n", b.MemoryS, b.MemoryCPUS, b.MemoryMiB, b.BoxoOverMemory, b.SameRoot)
		fmt.Fprintf(w, "from Pebble into Pebble\t%.2f\t%.2f\t%.0f\t%.1fx\t%v\t\n", b.OursS, b.OursCPUS, b.OursMiB, b.BoxoOverOurs, b.SameRoot)
	}
}

// loadPage is how many entries a batch has while an index is filled.
const loadPage = 10_000

// load makes an index and puts the list's entries in it, of which there is no
// release yet.
func load(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Create(j.Index, index.Options{Documents: "bench"})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	m.cost, err = timed(func() error {
		page := make([]index.Change, 0, loadPage)
		apply := func() error {
			_, _, err := ix.Apply(ctx, index.Batch{Changes: page, More: true})
			page = page[:0]
			return err
		}
		for c, err := range readChanges(j.List) {
			if err != nil {
				return err
			}
			if page = append(page, c); len(page) == loadPage {
				if err := apply(); err != nil {
					return err
				}
			}
		}
		return apply()
	})
	return m, err
}

// build makes the first release of an index that load filled.
func build(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	if err := syncfs(j.Index); err != nil {
		return m, err
	}
	m.cost, err = timed(func() error {
		r, changed, err := ix.Apply(ctx, index.Batch{Now: time.Now()})
		if err == nil && !changed {
			err = errors.New("there was nothing to release")
		}
		m.Root = r.List.Root.String()
		return err
	})
	return m, err
}

// inMemory builds the list's directories and counts and drops the blocks, as
// boxoBulk does.
func inMemory(ctx context.Context, j job) (m measured, err error) {
	var s step
	sink := func(blk blocks.Block) error {
		s.Blocks++
		s.Bytes += len(blk.RawData())
		return nil
	}
	m.cost, err = timed(func() error {
		var top unixfs.Bulk
		var links []unixfs.Link
		err := byScope(ctx, j.List, func(e index.Entry) error {
			return top.Add(unixfs.Link{Name: string(e.Name), CID: e.CID, Tsize: e.Tsize})
		}, func(e index.Entry) error {
			links = append(links, unixfs.Link{Name: e.Name.Base(), CID: e.CID, Tsize: e.Tsize})
			return nil
		}, func(scope string) error {
			ref, _, err := unixfs.BuildDir(links, unixfs.DirLimit, sink)
			links = links[:0]
			if err != nil {
				return err
			}
			return top.Add(unixfs.Link{Name: scope, CID: ref.CID, Tsize: ref.Tsize})
		})
		if err != nil {
			return err
		}
		root, _, err := top.Build(sink)
		m.Root = root.CID.String()
		return err
	})
	m.Steps = []step{s}
	return m, err
}

// byScope reads a list: top for each name without a scope, scoped for each of the
// others, and end after a scope's last.
func byScope(ctx context.Context, path string, top, scoped func(index.Entry) error, end func(scope string) error) error {
	scope := ""
	for c, err := range readChanges(path) {
		if err == nil {
			err = ctx.Err()
		}
		if s := c.Name.Scope(); err == nil && s != scope {
			if scope != "" {
				err = end(scope)
			}
			scope = s
		}
		switch {
		case err != nil:
		case scope == "":
			err = top(c.Entry)
		default:
			err = scoped(c.Entry)
		}
		if err != nil {
			return err
		}
	}
	if scope == "" {
		return nil
	}
	return end(scope)
}
