//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
)

// syncResult is how a reader's copy comes to a list, and to the next one.
type syncResult struct {
	Names   int `json:"names"`
	Changes int `json:"changes"`

	DeltaBytes  uint64  `json:"delta_bytes"`
	DeltaBlocks int     `json:"delta_blocks"`
	DeltaMs     float64 `json:"delta_ms"`
	DeltaCPUMs  float64 `json:"delta_cpu_ms"`

	SnapshotBytes  uint64  `json:"snapshot_bytes"`
	SnapshotBlocks int     `json:"snapshot_blocks"`
	SnapshotMs     float64 `json:"snapshot_ms"`
	SnapshotCPUS   float64 `json:"snapshot_cpu_s"`
	SnapshotMiB    float64 `json:"snapshot_rss_mib"` // the source's cache of 64 MiB with it
	MakeSnapshotS  float64 `json:"make_snapshot_s"`

	DAGBytes  uint64  `json:"dag_bytes"`
	DAGBlocks int     `json:"dag_blocks"`
	DAGMs     float64 `json:"dag_ms"`
	DAGCPUS   float64 `json:"dag_cpu_s"`
	DAGMiB    float64 `json:"dag_rss_mib"`
}

// syncChanges is how many changes the release after a snapshot has.
const syncChanges = 1000

func syncing(ctx context.Context, b *bench, r *result) error {
	for _, n := range b.bulk {
		l, err := b.built(ctx, n)
		if err != nil {
			return err
		}
		changes, err := b.updates(l, 1<<40)
		if err != nil {
			return err
		}
		j := job{Side: "snapshot", Index: l.index, Blocks: filepath.Join(b.dir, fmt.Sprint("snapshot-", n)), Changes: []string{changes}}
		made, err := b.measure(ctx, n, j)
		if err != nil {
			return err
		}
		j.Side, j.Copy, j.Roots = "sync", filepath.Join(b.dir, fmt.Sprint("copy-", n)), made.Roots
		fast, err := b.measure(ctx, n, j)
		if err != nil {
			return err
		}
		// Without the snapshot's blocks, only the directories are left.
		j.Copy, j.Blocks, j.Roots = j.Copy+"-dag", "", made.Roots[:1]
		slow, err := b.measure(ctx, n, j)
		if err != nil {
			return err
		}
		if fast.Ways[0] != index.WaySnapshot || fast.Ways[1] != index.WayDelta || slow.Ways[0] != index.WayDAG {
			return fmt.Errorf("synced by %v and %v", fast.Ways, slow.Ways)
		}
		snapshot, delta, dag := fast.Steps[0], fast.Steps[1], slow.Steps[0]
		r.Sync = append(r.Sync, syncResult{
			Names: n, Changes: syncChanges,
			DeltaBytes: uint64(delta.Bytes), DeltaBlocks: delta.Blocks, DeltaMs: 1e3 * delta.Seconds, DeltaCPUMs: 1e3 * delta.CPU,
			SnapshotBytes: uint64(snapshot.Bytes), SnapshotBlocks: snapshot.Blocks, SnapshotMs: 1e3 * snapshot.Seconds, SnapshotCPUS: snapshot.CPU,
			SnapshotMiB: fast.RSSMiB, MakeSnapshotS: made.Seconds,
			DAGBytes: uint64(dag.Bytes), DAGBlocks: dag.Blocks, DAGMs: 1e3 * dag.Seconds, DAGCPUS: dag.CPU, DAGMiB: slow.RSSMiB,
		})
	}
	return nil
}

func printSync(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tsynced by\tbytes\tblocks\tms\tCPU ms\tpeak MiB\t")
	for _, s := range r.Sync {
		fmt.Fprintf(w, "%d\tdelta of %d\t%d\t%d\t%.0f\t%.0f\t\t\n", s.Names, s.Changes, s.DeltaBytes, s.DeltaBlocks, s.DeltaMs, s.DeltaCPUMs)
		fmt.Fprintf(w, "%d\tsnapshot\t%d\t%d\t%.0f\t%.0f\t%.0f\t\n", s.Names, s.SnapshotBytes, s.SnapshotBlocks, s.SnapshotMs, 1e3*s.SnapshotCPUS, s.SnapshotMiB)
		fmt.Fprintf(w, "%d\tDAG\t%d\t%d\t%.0f\t%.0f\t%.0f\t\n", s.Names, s.DAGBytes, s.DAGBlocks, s.DAGMs, 1e3*s.DAGCPUS, s.DAGMiB)
	}
}

// updates writes a file of syncChanges updates of a list, to that revision.
func (b *bench) updates(l *listed, revision uint64) (path string, err error) {
	rnd := rand.New(rand.NewPCG(4, uint64(l.names)))
	at := map[int]bool{}
	for len(at) < min(syncChanges, l.names/mostOf) {
		at[rnd.IntN(l.names)] = true
	}
	var places []int
	for i := range at {
		places = append(places, i)
	}
	names, err := namesAt(l.path, [][]int{places})
	if err != nil {
		return "", err
	}
	var changes []index.Change
	for i, name := range names {
		changes = append(changes, put(name, uint64(i), revision))
	}
	path = filepath.Join(b.dir, fmt.Sprint("updates-", l.names, "-", revision))
	return path, writeChanges(path, slices.Values(changes))
}

// snapshot makes a snapshot of the index, its blocks as files, a release that shows
// it, and one of some changes after that. The snapshot alone is timed.
func snapshot(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	if err := os.Mkdir(j.Blocks, 0o700); err != nil {
		return m, err
	}
	var s index.Snapshot
	m.cost, err = timed(func() (err error) {
		s, err = ix.Snapshot(ctx, func(b blocks.Block) error {
			return os.WriteFile(filepath.Join(j.Blocks, b.Cid().String()), b.RawData(), 0o600)
		})
		return err
	})
	if err != nil {
		return m, err
	}
	changes, err := collect(readChanges(j.Changes[0]))
	if err != nil {
		return m, err
	}
	for _, batch := range []index.Batch{{Snapshot: s}, {Changes: changes}} {
		batch.Now = time.Now()
		r, changed, err := ix.Apply(ctx, batch)
		if err == nil && !changed {
			err = errors.New("there was nothing to release")
		}
		if err != nil {
			return m, err
		}
		m.Roots = append(m.Roots, r.Root.String())
	}
	return m, nil
}

// source gives an index's blocks, and those that lie in a directory as files.
type source struct {
	ix  *index.Index
	dir string
}

func (s source) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := s.ix.Get(ctx, c)
	if s.dir == "" || !errors.Is(err, index.ErrNoBlock) {
		return b, err
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, c.String()))
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(raw, c)
}

// syncCopy makes a copy and brings it to one release after the other.
func syncCopy(ctx context.Context, j job) (m measured, err error) {
	ix, err := index.Open(j.Index, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	c, err := index.Create(j.Copy, index.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, root := range j.Roots {
		root, err := cid.Decode(root)
		if err != nil {
			return m, err
		}
		if err := atRest(ctx, j.Copy); err != nil {
			return m, err
		}
		var s index.Synced
		took, err := timed(func() (err error) {
			s, err = c.Sync(ctx, source{ix, j.Blocks}, root, nil)
			return err
		})
		if err != nil {
			return m, err
		}
		m.Steps = append(m.Steps, step{Seconds: took.Seconds, CPU: took.CPU, Blocks: s.Blocks, Bytes: int(s.Fetched), Root: s.Release.List.Root.String()})
		m.Ways = append(m.Ways, s.Way)
	}
	return m, nil
}
