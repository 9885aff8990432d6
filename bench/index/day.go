//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/registry-mirror/registry-mirror/index"
)

// dayResult is an index through a day of releases, old ones collected four times.
type dayResult struct {
	Names    int `json:"names"`
	Releases int `json:"releases"`
	Changes  int `json:"changes"` // of each
	Kept     int `json:"kept"`    // releases, by every collection

	ReleaseMs    float64 `json:"release_ms"`
	ReleaseMaxMs float64 `json:"release_max_ms"` // the slowest, collections or not
	CollectS     float64 `json:"collect_s"`
	CollectCPUS  float64 `json:"collect_cpu_s"`
	Blocks       int     `json:"blocks"` // collected in the day
	Bytes        uint64  `json:"bytes"`
	KeptBlocks   int     `json:"kept_blocks"` // by the last collection

	MiBBefore float64 `json:"mib_before"` // of the index's files
	MiBMost   float64 `json:"mib_most"`   // before a collection
	MiBAfter  float64 `json:"mib_after"`  // at the end of the day, closed
	MiB       float64 `json:"rss_mib"`
	ListAtS   float64 `json:"list_at_s"` // the list of the morning, told in the evening
}

const (
	dayReleases  = 1440
	dayChanges   = 100
	dayCollected = 4
	dayKept      = 60
)

func day(ctx context.Context, b *bench, r *result) error {
	for _, n := range b.release {
		l, err := b.built(ctx, n)
		if err != nil {
			return err
		}
		changes, err := b.dayOf(l)
		if err != nil {
			return err
		}
		m, err := b.measure(ctx, n, job{Side: "day", Index: l.index, Changes: []string{changes}})
		if err != nil {
			return err
		}
		delete(b.lists, n) // whose index is another now
		m.Day.Names, m.Day.MiB = n, m.RSSMiB
		r.Day = append(r.Day, *m.Day)
	}
	return nil
}

func printDay(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\treleases of\tms\tslowest\tcollecting s\tCPU s\tblocks gone\tMB gone\tMiB before\tmost\tafter\tpeak MiB\tmorning's list s\t")
	for _, d := range r.Day {
		fmt.Fprintf(w, "%d\t%d × %d\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t\n", d.Names, d.Releases, d.Changes, d.ReleaseMs, d.ReleaseMaxMs,
			d.CollectS, d.CollectCPUS, d.Blocks, float64(d.Bytes)/1e6, d.MiBBefore, d.MiBMost, d.MiBAfter, d.MiB, d.ListAtS)
	}
}

// dayOf writes one file of a day's changes of a list, updates all of them.
func (b *bench) dayOf(l *listed) (path string, err error) {
	rnd := rand.New(rand.NewPCG(6, uint64(l.names)))
	places := make([]int, dayReleases*dayChanges)
	for i := range places {
		places[i] = rnd.IntN(l.names)
	}
	names, err := namesAt(l.path, [][]int{places})
	if err != nil {
		return "", err
	}
	changes := make([]index.Change, len(places))
	for i, place := range places {
		changes[i] = put(names[place], uint64(place), 1<<41+uint64(i))
	}
	path = filepath.Join(b.dir, fmt.Sprint("day-", l.names))
	return path, writeChanges(path, slices.Values(changes))
}

// live makes the releases of a day.
func live(ctx context.Context, j job) (m measured, err error) {
	d := &dayResult{Releases: dayReleases, Changes: dayChanges, Kept: dayKept}
	m.Day = d
	changes, err := collect(readChanges(j.Changes[0]))
	if err != nil {
		return m, err
	}
	if d.MiBBefore, err = size(j.Index); err != nil {
		return m, err
	}
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	first, err := ix.Head()
	if err != nil {
		return m, errors.Join(err, ix.Close())
	}
	var all []float64
	err = func() error {
		for i := range dayReleases {
			batch := index.Batch{Changes: changes[i*dayChanges : (i+1)*dayChanges], Now: time.Now()}
			var r index.Release
			took, err := timed(func() (err error) {
				r, _, err = ix.Apply(ctx, batch)
				return err
			})
			if err != nil {
				return err
			}
			all = append(all, 1e3*took.Seconds)
			if (i+1)%(dayReleases/dayCollected) > 0 {
				continue
			}
			mib, err := size(j.Index)
			if err != nil {
				return err
			}
			d.MiBMost = max(d.MiBMost, mib)
			var c index.Collected
			took, err = timed(func() (err error) {
				c, err = ix.Collect(ctx, r.Number-dayKept+1, nil)
				return err
			})
			if err != nil {
				return err
			}
			d.CollectS, d.CollectCPUS = d.CollectS+took.Seconds, d.CollectCPUS+took.CPU
			d.Blocks, d.Bytes, d.KeptBlocks = d.Blocks+c.Blocks, d.Bytes+c.Bytes, c.Kept
		}
		took, err := timed(func() error {
			for _, err := range ix.ListAt(ctx, first.Number, nil) {
				if err != nil {
					return err
				}
			}
			return nil
		})
		d.ListAtS = took.Seconds
		return err
	}()
	if err = errors.Join(err, ix.Close()); err != nil {
		return m, err
	}
	d.ReleaseMs, d.ReleaseMaxMs = median(all), slices.Max(all)
	d.MiBAfter, err = size(j.Index)
	return m, err
}

// size is that of a directory's files, in MiB.
func size(dir string) (mib float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // compacted away meanwhile
		}
		if err == nil {
			mib += float64(info.Size()) / (1 << 20)
		}
		return err
	})
	return mib, err
}
