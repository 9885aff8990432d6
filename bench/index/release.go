//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// releaseResult is one more release of a list, in medians.
type releaseResult struct {
	Names     int     `json:"names"`
	Changes   int     `json:"changes"`
	Rounds    int     `json:"rounds"`
	OursMs    float64 `json:"ours_ms"`     // Apply, its sync included
	OursMaxMs float64 `json:"ours_max_ms"` // the slowest of the rounds
	BoxoMs    float64 `json:"boxo_ms"`     // into memory: nothing is synced
	OursCPUMs float64 `json:"ours_cpu_ms"`
	BoxoCPUMs float64 `json:"boxo_cpu_ms"`
	NewBlocks int     `json:"new_blocks"`
	NewBytes  int     `json:"new_bytes"`
	SameRoot  bool    `json:"same_root"` // in every round

	BoxoOverOurs float64 `json:"boxo_over_ours"`
}

// growthResult is how much dearer a release is in the longest list than in the
// shortest.
type growthResult struct {
	Changes   int     `json:"changes"`
	Names     int     `json:"names"`
	OverNames int     `json:"over_names"`
	MsRatio   float64 `json:"ms_ratio"`
	Blocks    float64 `json:"blocks_ratio"`
}

// changeCounts are how many changes a release has.
var changeCounts = []int{100, 1000, 5000}

// mostOf is the part of a list, one in so many, above which changes are no longer
// a release like others: Apply builds the list anew.
const mostOf = 8

// spareNames is how many names the changes of all rounds may insert.
func spareNames(rounds int) (n int) {
	for _, c := range changeCounts {
		n += (rounds + 1) * c * insertPercent / 100
	}
	return n
}

func release(ctx context.Context, b *bench, r *result) error {
	for _, n := range b.release {
		l, err := b.built(ctx, n)
		if err != nil {
			return err
		}
		files, counts, err := b.changes(l)
		if err != nil {
			return err
		}
		if len(files) == 0 {
			continue
		}
		j := job{Side: "boxo-releases", Index: l.index, Root: l.build.Root, Changes: files}
		boxo, err := b.measure(ctx, n, j)
		if err != nil {
			return err
		}
		j.Side = "releases"
		ours, err := b.measure(ctx, n, j)
		if err != nil {
			return err
		}
		for i := 0; i < len(files); i += b.rounds + 1 {
			// The first of each count is to warm up.
			theirs, own := boxo.Steps[i+1:i+1+b.rounds], ours.Steps[i+1:i+1+b.rounds]
			res := releaseResult{
				Names: n, Changes: counts[i], Rounds: b.rounds,
				OursMs:    1e3 * of(own, func(s step) float64 { return s.Seconds }),
				BoxoMs:    1e3 * of(theirs, func(s step) float64 { return s.Seconds }),
				OursCPUMs: 1e3 * of(own, func(s step) float64 { return s.CPU }),
				BoxoCPUMs: 1e3 * of(theirs, func(s step) float64 { return s.CPU }),
				NewBlocks: of(own, func(s step) int { return s.Blocks }), NewBytes: of(own, func(s step) int { return s.Bytes }),
				SameRoot: true,
			}
			for i := range own {
				res.OursMaxMs = max(res.OursMaxMs, 1e3*own[i].Seconds)
				res.SameRoot = res.SameRoot && own[i].Root == theirs[i].Root
			}
			res.BoxoOverOurs = ratio(res.BoxoMs, res.OursMs)
			r.Release = append(r.Release, res)
		}
	}
	for _, first := range r.Release {
		last := first
		for _, x := range r.Release {
			if x.Changes == first.Changes && x.Names > last.Names {
				last = x
			}
		}
		seen := slices.ContainsFunc(r.Growth, func(g growthResult) bool { return g.Changes == first.Changes })
		if last.Names == first.Names || seen {
			continue
		}
		r.Growth = append(r.Growth, growthResult{
			Changes: first.Changes, Names: last.Names, OverNames: first.Names,
			MsRatio: ratio(last.OursMs, first.OursMs), Blocks: ratio(float64(last.NewBlocks), float64(first.NewBlocks)),
		})
	}
	return nil
}

func of[T float64 | int](steps []step, f func(step) T) T {
	var all []T
	for _, s := range steps {
		all = append(all, f(s))
	}
	return median(all)
}

func printRelease(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tchanges\tms\tslowest\tCPU ms\tboxo ms\tboxo CPU ms\tboxo takes\tnew blocks\tnew KB\tsame root\t")
	for _, x := range r.Release {
		fmt.Fprintf(w, "%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1fx\t%d\t%.0f\t%v\t\n", x.Names, x.Changes, x.OursMs, x.OursMaxMs, x.OursCPUMs,
			x.BoxoMs, x.BoxoCPUMs, x.BoxoOverOurs, x.NewBlocks, float64(x.NewBytes)/1e3, x.SameRoot)
	}
}

func printGrowth(w io.Writer, r result) {
	for _, g := range r.Growth {
		fmt.Fprintf(w, "%d changes in %d names take %.1fx the time and %.2fx the blocks of those in %d\n",
			g.Changes, g.Names, g.MsRatio, g.Blocks, g.OverNames)
	}
}

const insertPercent, deletePercent = 15, 5 // the others are updates

// changes writes the files of changes for a list, to be applied one after the
// other: for each of changeCounts one to warm up and one for every round. counts
// says how many are in each.
func (b *bench) changes(l *listed) (files []string, counts []int, err error) {
	rnd := rand.New(rand.NewPCG(3, uint64(l.names)))
	gone := map[int]bool{}
	var plan [][]int // of each file, places in the list; the deletes are the last
	for _, count := range changeCounts {
		if count > l.names/mostOf {
			continue
		}
		for range b.rounds + 1 {
			at := map[int]bool{}
			var places []int
			for len(places) < count-count*insertPercent/100 {
				if i := rnd.IntN(l.names); !gone[i] && !at[i] {
					at[i] = true
					places = append(places, i)
				}
			}
			for _, i := range places[len(places)-count*deletePercent/100:] {
				gone[i] = true
			}
			plan, counts = append(plan, places), append(counts, count)
		}
	}
	names, err := namesAt(l.path, plan)
	if err != nil {
		return nil, nil, err
	}
	spare := l.spare
	for f, places := range plan {
		inserts, deletes := counts[f]*insertPercent/100, counts[f]*deletePercent/100
		var changes []index.Change
		for i, place := range places {
			if i < len(places)-deletes {
				changes = append(changes, put(names[place], uint64(place), uint64(f)+1))
			} else {
				changes = append(changes, index.Change{Entry: index.Entry{Name: names[place]}, Delete: true})
			}
		}
		for _, name := range spare[:inserts] {
			changes = append(changes, put(name, uint64(l.names+len(changes)), uint64(f)+1))
		}
		spare = spare[inserts:]
		rnd.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
		path := filepath.Join(b.dir, fmt.Sprint("changes-", l.names, "-", f))
		if err := writeChanges(path, slices.Values(changes)); err != nil {
			return nil, nil, err
		}
		files = append(files, path)
	}
	return files, counts, nil
}

// namesAt are the names at those places of a list.
func namesAt(path string, plan [][]int) (map[int]npm.Name, error) {
	names := map[int]npm.Name{}
	for _, places := range plan {
		for _, i := range places {
			names[i] = ""
		}
	}
	i := 0
	for c, err := range readChanges(path) {
		if err != nil {
			return nil, err
		}
		if _, wanted := names[i]; wanted {
			names[i] = c.Name
		}
		i++
	}
	return names, nil
}

func collect[T any](seq iter.Seq2[T, error]) (all []T, err error) {
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// releases applies files of changes to an index, one release each.
func releases(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	if err := atRest(ctx, j.Index); err != nil {
		return m, err
	}
	for _, path := range j.Changes {
		changes, err := collect(readChanges(path))
		if err != nil {
			return m, err
		}
		var r index.Release
		took, err := timed(func() (err error) {
			var changed bool
			r, changed, err = ix.Apply(ctx, index.Batch{Changes: changes, Now: time.Now()})
			if err == nil && !changed {
				err = errors.New("there was nothing to release")
			}
			return err
		})
		if err != nil {
			return m, fmt.Errorf("%s: %w", path, err)
		}
		s := step{Seconds: took.Seconds, CPU: took.CPU, Root: r.List.Root.String()}
		for blk, err := range ix.Blocks(ctx, r.Number-1, r.Number) {
			if err != nil {
				return m, err
			}
			s.Blocks++
			s.Bytes += len(blk.RawData())
		}
		m.Steps = append(m.Steps, s)
	}
	return m, nil
}
