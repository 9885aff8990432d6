//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"text/tabwriter"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// bulkResult is the building of one whole list, in four ways. Of each: seconds,
// those of one core, and the most memory.
type bulkResult struct {
	Names      int     `json:"names"`
	OursS      float64 `json:"ours_s"`   // a first release: rows of Pebble in, all blocks and the release on the disk
	PebbleS    float64 `json:"pebble_s"` // the same rows in, the blocks dropped
	MemoryS    float64 `json:"memory_s"` // the same from a file, as boxo has it
	BoxoS      float64 `json:"boxo_s"`
	OursCPUS   float64 `json:"ours_cpu_s"`
	PebbleCPUS float64 `json:"pebble_cpu_s"`
	MemoryCPUS float64 `json:"memory_cpu_s"`
	BoxoCPUS   float64 `json:"boxo_cpu_s"`
	OursMiB    float64 `json:"ours_rss_mib"`
	PebbleMiB  float64 `json:"pebble_rss_mib"`
	MemoryMiB  float64 `json:"memory_rss_mib"`
	BoxoMiB    float64 `json:"boxo_rss_mib"`
	LoadS      float64 `json:"load_s"` // the rows, in synced batches, before ours_s
	LoadMiB    float64 `json:"load_rss_mib"`
	Blocks     int     `json:"blocks"` // of the list, some of them possibly equal
	Bytes      int     `json:"bytes"`
	SameRoot   bool    `json:"same_root"` // of all four

	BoxoOverOurs   float64 `json:"boxo_over_ours"` // seconds
	BoxoOverPebble float64 `json:"boxo_over_pebble"`
	BoxoOverMemory float64 `json:"boxo_over_memory"`
}

func bulk(ctx context.Context, b *bench, r *result) error {
	for _, n := range b.bulk {
		l, err := b.built(ctx, n)
		if err != nil {
			return err
		}
		var m [3]measured
		for i, side := range []string{"memory", "pebble", "boxo"} {
			if m[i], err = b.measure(ctx, n, job{Side: side, List: l.path, Index: l.index}); err != nil {
				return err
			}
		}
		memory, rows, boxo, ours := m[0], m[1], m[2], l.build
		r.Bulk = append(r.Bulk, bulkResult{
			Names: n,
			OursS: ours.Seconds, PebbleS: rows.Seconds, MemoryS: memory.Seconds, BoxoS: boxo.Seconds,
			OursCPUS: ours.CPU, PebbleCPUS: rows.CPU, MemoryCPUS: memory.CPU, BoxoCPUS: boxo.CPU,
			OursMiB: ours.RSSMiB, PebbleMiB: rows.RSSMiB, MemoryMiB: memory.RSSMiB, BoxoMiB: boxo.RSSMiB,
			LoadS: l.load.Seconds, LoadMiB: l.load.RSSMiB,
			Blocks: memory.Steps[0].Blocks, Bytes: memory.Steps[0].Bytes,
			SameRoot:       ours.Root == boxo.Root && rows.Root == boxo.Root && memory.Root == boxo.Root,
			BoxoOverOurs:   ratio(boxo.Seconds, ours.Seconds),
			BoxoOverPebble: ratio(boxo.Seconds, rows.Seconds),
			BoxoOverMemory: ratio(boxo.Seconds, memory.Seconds),
		})
	}
	return nil
}

func printBulk(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tbuilt by\tseconds\tCPU s\tpeak MiB\tboxo takes\tsame root\t")
	for _, b := range r.Bulk {
		fmt.Fprintf(w, "%d\tboxo\t%.2f\t%.2f\t%.0f\t\t\t\n", b.Names, b.BoxoS, b.BoxoCPUS, b.BoxoMiB)
		fmt.Fprintf(w, "%d\tours\t%.2f\t%.2f\t%.0f\t%.1fx\t%v\t\n", b.Names, b.MemoryS, b.MemoryCPUS, b.MemoryMiB, b.BoxoOverMemory, b.SameRoot)
		fmt.Fprintf(w, "%d\tours, from Pebble\t%.2f\t%.2f\t%.0f\t%.1fx\t%v\t\n", b.Names, b.PebbleS, b.PebbleCPUS, b.PebbleMiB, b.BoxoOverPebble, b.SameRoot)
		fmt.Fprintf(w, "%d\tours, a release\t%.2f\t%.2f\t%.0f\t%.1fx\t%v\t\n", b.Names, b.OursS, b.OursCPUS, b.OursMiB, b.BoxoOverOurs, b.SameRoot)
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

// inMemory builds the list's directories from the list's file.
func inMemory(ctx context.Context, j job) (measured, error) {
	return buildOnly(ctx, listEntries(j.List))
}

// fromPebble builds the list's directories from an index's rows.
func fromPebble(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	return buildOnly(ctx, ix.Entries(ctx))
}

// buildOnly builds the list's directories, and counts and drops the blocks, as
// boxoBulk does.
func buildOnly(ctx context.Context, entries iter.Seq2[index.Entry, error]) (m measured, err error) {
	var s step
	sink := func(blk blocks.Block) error {
		s.Blocks++
		s.Bytes += len(blk.RawData())
		return nil
	}
	m.cost, err = timed(func() error {
		var top unixfs.Bulk
		var links []unixfs.Link
		err := byScope(ctx, entries, func(e index.Entry) error {
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

// byScope takes entries in the order of their names: top each without a scope,
// scoped each of the others, and end is called after a scope's last.
func byScope(ctx context.Context, entries iter.Seq2[index.Entry, error], top, scoped func(index.Entry) error, end func(scope string) error) error {
	scope := ""
	for e, err := range entries {
		if err == nil {
			err = ctx.Err()
		}
		if s := e.Name.Scope(); err == nil && s != scope {
			if scope != "" {
				err = end(scope)
			}
			scope = s
		}
		switch {
		case err != nil:
		case scope == "":
			err = top(e)
		default:
			err = scoped(e)
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
