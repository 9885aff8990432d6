//go:build linux

// Command index times the list: building it whole, and a release of it when some
// of it changed, beside boxo's directories, which make the same blocks; and how a
// reader's copy follows, by delta, snapshot and the directories themselves; what a
// day of releases leaves on the disk; how soon a mirror that holds it is there, and
// answers a search as one types; and what a new version of a large package adds to its documents.
//
//	go run ./bench/index [--names N] [--quick] [--json] [--only bulk,lookup,release,sync,start,search,day,packument]
//	go run ./bench/index packument [--json]
//
// The names are made, as many and as npm's are. All that is measured runs in a
// process of its own, which reads them from a file. For the default numbers it
// needs 8 GB of memory, most of it boxo's, and 5 GB of disk.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
)

// result is what --json prints. What was not measured is not there.
type result struct {
	Bulk      []bulkResult      `json:"bulk,omitempty"`
	Lookup    []lookupResult    `json:"lookup,omitempty"`
	Release   []releaseResult   `json:"release,omitempty"`
	Growth    []growthResult    `json:"growth,omitempty"`
	Sync      []syncResult      `json:"sync,omitempty"`
	Day       []dayResult       `json:"day,omitempty"`
	Start     []startResult     `json:"start,omitempty"`
	Search    []searchResult    `json:"search,omitempty"`
	Packument []packumentResult `json:"packument,omitempty"`
}

// part is one thing to measure.
type part struct {
	name string
	run  func(context.Context, *bench, *result) error
}

var parts = []part{{"bulk", bulk}, {"lookup", lookup}, {"release", release}, {"sync", syncing}, {"start", starting}, {"search", searching}, {"day", day}, {"packument", packuments}}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "index: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("index", flag.ContinueOnError)
	names := flags.Int("names", 0, "names of the longest list; by default 5,000,000, and bulk takes shorter ones too")
	quick := flags.Bool("quick", false, "50,000 names: under a minute once built")
	rounds := flags.Int("rounds", 7, "releases of each size, of which the medians are printed")
	asJSON := flags.Bool("json", false, "print one JSON object")
	only := flags.String("only", "", "some parts alone, separated by commas: "+partNames())
	base := flags.String("dir", "", "where to make lists and indexes; by default the temporary directory")
	profiles := flags.String("cpuprofiles", "", "write CPU profiles of all sides into a directory that there is")
	job := flags.String("job", "", "be a measured side, for this program itself")
	var alone []string  // parts
	for len(args) > 0 { // flags may come after parts too
		if err := flags.Parse(args); err != nil {
			return err
		}
		if args = flags.Args(); len(args) > 0 {
			alone, args = append(alone, args[0]), args[1:]
		}
	}
	if *job != "" {
		return serve(ctx, *job, out)
	}
	if *quick && *names == 0 {
		*names = 50_000
	}
	todo := parts
	if *only != "" {
		alone = append(alone, strings.Split(*only, ",")...)
	}
	if alone != nil {
		todo = nil
		for _, name := range alone {
			i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
			if i < 0 {
				return fmt.Errorf("the parts are %s, there is no %q", partNames(), name)
			}
			todo = append(todo, parts[i])
		}
	}
	if *rounds < 1 || *names < 0 {
		return errors.New("--rounds and --names take numbers above 0")
	}
	dir, err := os.MkdirTemp(*base, "bench-index-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := newBench(dir, *names, *rounds)
	b.profiles = *profiles
	var r result
	for _, p := range todo {
		if err := p.run(ctx, b, &r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	r.print(out)
	return nil
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

func (r result) print(out io.Writer) {
	table := func(print func(*tabwriter.Writer, result)) {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		print(w, r)
		w.Flush()
	}
	if r.Bulk != nil {
		table(printBulk)
		fmt.Fprintln(out, "boxo and \"ours\" read a file; blocks are dropped, but a release has them and itself in Pebble, synced")
	}
	if r.Lookup != nil {
		table(printLookup)
		fmt.Fprintln(out, "by a node that holds nothing, over bitswap from one on loopback that holds the list")
	}
	if r.Release != nil {
		table(printRelease)
		fmt.Fprintln(out, "ours to the disk, synced, one after the other from an index at rest; boxo reads from the same index, and writes into memory")
		printGrowth(out, r)
	}
	if r.Sync != nil {
		table(printSync)
		fmt.Fprintln(out, "each list rebuilt, compared with what the release commits to, and synced to the disk; from an index in the same process, copies at rest")
	}
	if r.Day != nil {
		table(printDay)
		fmt.Fprintln(out, "every release synced; releases before the last 60 collected four times, the last time at the end")
	}
	if r.Start != nil {
		table(printStart)
		fmt.Fprintln(out, "registry-mirror daemon, from its process's start to its first answer; a gateway on loopback has the releases; starts with the state in the system's cache")
	}
	if r.Search != nil {
		table(printSearch)
		table(printTyping)
		fmt.Fprintln(out, "each letter typed is one search over HTTP, of 20 hits; grep counts the lines with the whole query in the same file, on one core, and its process's start is in it")
	}
	if r.Packument != nil {
		table(printPackument)
		fmt.Fprintln(out, "all documents of one large package and the ledger's, first and for each new version, from the parse to the synced index; blocks into memory")
	}
}

// bench is one run, in a directory of its own.
type bench struct {
	dir           string
	profiles      string // directory for CPU profiles, "" for none
	rounds        int
	bulk, release []int // lengths of the lists
	lists         map[int]*listed
}

// newBench is for lists of at most that many names, 0 for the usual ones.
func newBench(dir string, names, rounds int) *bench {
	b := &bench{dir: dir, rounds: rounds, lists: map[int]*listed{}}
	if names == 0 {
		b.bulk, b.release = []int{227_000, 1_000_000, 5_000_000}, []int{50_000, 500_000, 5_000_000}
		return b
	}
	b.bulk = []int{names}
	for _, n := range []int{50_000, 500_000} {
		if n < names {
			b.release = append(b.release, n)
		}
	}
	b.release = append(b.release, names)
	return b
}

// listed is a list that is an index too, and what that took.
type listed struct {
	list
	index       string
	load, build measured
}

// built makes the list of n names, and an index with its first release, once.
func (b *bench) built(ctx context.Context, n int) (*listed, error) {
	if l, ok := b.lists[n]; ok {
		return l, nil
	}
	made, err := makeList(b.dir, n, spareNames(b.rounds))
	if err != nil {
		return nil, err
	}
	l := &listed{list: made, index: filepath.Join(b.dir, fmt.Sprint("index-", n))}
	if l.load, err = b.measure(ctx, n, job{Side: "load", List: l.path, Index: l.index}); err != nil {
		return nil, err
	}
	if l.build, err = b.measure(ctx, n, job{Side: "build", Index: l.index}); err != nil {
		return nil, err
	}
	b.lists[n] = l
	return l, nil
}
