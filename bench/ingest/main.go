//go:build linux

// Command ingest times how fast tarballs get into an IPFS node and onto its
// disk: by ways that everybody has, by the project's follower into either kind of
// node, and by the least work that would do. All take the same files, in one
// run, each into a new repository.
//
//	go run ./bench/ingest [--files N] [--quick] [--json] [--rounds N] [--kubo IPFS]
//
// It needs a Kubo, as internal/ipfs/kubotest builds it, and for the default
// number of files 4 GB of memory and 15 GB of disk for each round.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
)

// result is what --json prints. Figures are medians over the rounds; ratios
// are of files per second.
type result struct {
	Files  int          `json:"files"`
	Bytes  int64        `json:"bytes"`
	Sample int          `json:"sample"` // files that the paths marked as sampled took
	Rounds int          `json:"rounds"`
	Paths  []pathResult `json:"paths"`

	KuboOverPinned      float64 `json:"kubo_over_rpc_add_pinned"`
	KuboOverAdd         float64 `json:"kubo_over_ipfs_add_r"`
	EmbeddedOverCeiling float64 `json:"embedded_over_ceiling"`
}

type pathResult struct {
	Name        string  `json:"name"`
	Files       int     `json:"files"`
	FilesPerS   float64 `json:"files_per_s"`
	MBPerS      float64 `json:"mb_per_s"`
	OverCeiling float64 `json:"over_ceiling"`
	CPUMs       float64 `json:"cpu_ms_per_file"` // of this process, the registry in it, and the daemon, its start included
	PeakMB      float64 `json:"peak_mb"`         // memory of this process, the registry in it, without the corpus
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	files := flag.Int("files", 20000, "tarballs to ingest")
	sampled := flag.Int("sample", 2000, "of them, how many the slow paths take")
	quick := flag.Bool("quick", false, "2,000 tarballs, slow paths 200: under a minute once built")
	asJSON := flag.Bool("json", false, "print one JSON object")
	rounds := flag.Int("rounds", 1, "rounds, of which the medians are printed")
	binary := flag.String("kubo", kubod.Binary(), "the ipfs binary; by default $"+kubod.Variable)
	dir := flag.String("dir", "", "where to make the repositories; by default the temporary directory")
	only := flag.String("only", "", "some paths alone, separated by commas, to profile them")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process to a file")
	flag.Parse()
	if *quick {
		*files, *sampled = 2000, 200
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "ingest: error:", err)
			os.Exit(1)
		}
	}
	r, err := run(ctx, *dir, *binary, *files, *sampled, *rounds, *only)
	pprof.StopCPUProfile()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ingest: error:", err)
		if errors.Is(err, errNoKubo) {
			fmt.Fprintln(os.Stderr, "ingest: hint: go build -C internal/ipfs/kubotest -trimpath -o OUT github.com/ipfs/kubo/cmd/ipfs, then --kubo OUT")
		}
		os.Exit(1)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(r)
		return
	}
	r.print()
}

var errNoKubo = errors.New("no Kubo to measure was named")

func (r result) print() {
	fmt.Printf("%d tarballs, %.0f MB, from a registry on loopback; median of %d\n", r.Files, float64(r.Bytes)/1e6, r.Rounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "path\tfiles\tfiles_per_s\tMB/s\tof ceiling\tCPU ms/file\tpeak MB\t")
	for _, p := range r.Paths {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.1f\t%.2f\t%.2f\t%.0f\t\n", p.Name, p.Files, p.FilesPerS, p.MBPerS, p.OverCeiling, p.CPUMs, p.PeakMB)
	}
	w.Flush()
	fmt.Println("ceiling and the adds have the bytes in memory or in files; fetch is what the registry and its verification cost alone")
	if r.KuboOverPinned > 0 {
		fmt.Printf("kubo is %.1fx rpc_add_pinned and %.2fx ipfs_add_r\n", r.KuboOverPinned, r.KuboOverAdd)
	}
	if r.EmbeddedOverCeiling > 0 {
		fmt.Printf("embedded is %.2f of ceiling\n", r.EmbeddedOverCeiling)
	}
}

// bench is one run, in a directory of its own.
type bench struct {
	dir      string
	kubo     string // the ipfs binary
	registry *registry
	tree     string // the files as a directory, where a path wants them
}

func run(ctx context.Context, base, binary string, files, sampled, rounds int, only string) (r result, err error) {
	todo := slices.DeleteFunc(slices.Clone(paths), func(p path) bool { return only != "" && !slices.Contains(strings.Split(only, ","), p.name) })
	if len(todo) == 0 {
		return r, fmt.Errorf("no path is called %q", only)
	}
	if binary == "" && slices.ContainsFunc(todo, func(p path) bool { return p.daemon }) {
		return r, errNoKubo
	}
	dir, err := os.MkdirTemp(base, "bench-ingest-")
	if err != nil {
		return r, err
	}
	// Nothing is removed before the end: creating files is slow for a while
	// after many were deleted.
	defer os.RemoveAll(dir)
	c, err := newCorpus(files)
	if err != nil {
		return r, err
	}
	defer c.Close()
	b := &bench{dir: dir, kubo: binary}
	if b.registry, err = c.serve(); err != nil {
		return r, err
	}
	defer b.registry.srv.Close()
	r = result{Files: len(c.files), Bytes: c.bytes, Sample: min(sampled, files), Rounds: rounds}

	if slices.ContainsFunc(todo, func(p path) bool { return p.name == "ipfs_add_r" }) {
		b.tree = filepath.Join(dir, "tree")
		if err := c.writeTree(b.tree); err != nil {
			return r, err
		}
	}

	times, cpu, memory := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for i := range rounds {
		for _, p := range todo {
			before, stop := cpuTime(), peak()
			took, err := b.once(ctx, p, filepath.Join(dir, fmt.Sprint(p.name, "-", i)), c, sampled)
			memory[p.name] = append(memory[p.name], float64(stop())/1e6)
			if err != nil {
				return r, fmt.Errorf("%s: %w", p.name, err)
			}
			times[p.name] = append(times[p.name], took.Seconds())
			cpu[p.name] = append(cpu[p.name], (cpuTime() - before).Seconds())
		}
	}
	rates := map[string]float64{}
	for _, p := range todo {
		part := p.part(c, sampled)
		seconds := median(times[p.name])
		rates[p.name] = float64(len(part.files)) / seconds
		r.Paths = append(r.Paths, pathResult{
			Name:      p.name,
			Files:     len(part.files),
			FilesPerS: rates[p.name],
			MBPerS:    float64(part.bytes) / 1e6 / seconds,
			CPUMs:     1e3 * median(cpu[p.name]) / float64(len(part.files)),
			PeakMB:    median(memory[p.name]),
		})
	}
	for i := range r.Paths {
		r.Paths[i].OverCeiling = ratio(r.Paths[i].FilesPerS, rates["ceiling"])
	}
	r.KuboOverPinned = ratio(rates["kubo"], rates["rpc_add_pinned"])
	r.KuboOverAdd = ratio(rates["kubo"], rates["ipfs_add_r"])
	r.EmbeddedOverCeiling = ratio(rates["embedded"], rates["ceiling"])
	return r, nil
}

func (p path) part(c *corpus, sampled int) *corpus {
	if p.sample {
		return c.first(sampled)
	}
	return c
}

// once times one path, beginning with nothing left to write.
func (b *bench) once(ctx context.Context, p path, dir string, c *corpus, sampled int) (time.Duration, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	if err := syncfs(dir); err != nil {
		return 0, err
	}
	return p.run(ctx, b, dir, p.part(c, sampled))
}

// cpuTime is what this process and its ended children have used.
func cpuTime() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

func median(s []float64) float64 {
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
