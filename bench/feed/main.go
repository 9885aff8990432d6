// Command feed times how fast a feed is followed, and whether memory stays flat
// meanwhile: a server on loopback, in a process of its own, gives rows as npm's
// replicate service does, in pages of at most 10,000, and a consumer in this
// process takes them all.
//
//	go run ./bench/feed [--rows 1000000] [--consumer follower] [--json]
//
// Memory and processor time are this process's alone, thus the consumer's.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/couch"
)

// result is what --json prints. Memory is resident, in MiB, and but for its peak
// from when the first tenth of the rows has gone by.
type result struct {
	Consumer      string  `json:"consumer"`
	Rows          int     `json:"rows"`
	Seconds       float64 `json:"seconds"`
	RowsPerS      float64 `json:"rows_per_s"`
	RowsPerCPUS   float64 `json:"rows_per_cpu_s"` // per second of one core
	RSSMiB        float64 `json:"rss_mib"`        // the most
	RSSMinMiB     float64 `json:"rss_min_mib"`
	RSSPeakMiB    float64 `json:"rss_peak_mib"` // of the whole run
	FirstHalfMiB  float64 `json:"rss_first_half_mib"`
	SecondHalfMiB float64 `json:"rss_second_half_mib"`
}

// take takes a whole feed and says, now and then, that it is done with so many
// more of its rows.
type take func(ctx context.Context, done func(rows int)) error

// consumers prepare, which is not timed, and return what is.
var consumers = map[string]func(ctx context.Context, url string, rows int) (take, error){
	"follower": follower,
	"changes":  bare(changes),
	"all-docs": bare(allDocs),
}

func bare(f func(ctx context.Context, url string, done func(int)) error) func(context.Context, string, int) (take, error) {
	return func(_ context.Context, url string, _ int) (take, error) {
		return func(ctx context.Context, done func(int)) error { return f(ctx, url, done) }, nil
	}
}

// changes is the client alone.
func changes(ctx context.Context, url string, done func(int)) error {
	for page, err := range couch.New(couch.Options{URL: url}).Changes(ctx, "", false) {
		if err != nil {
			return err
		}
		done(len(page.Changes))
	}
	return nil
}

// allDocs is the client's walk of the listing.
func allDocs(ctx context.Context, url string, done func(int)) error {
	for docs, err := range couch.New(couch.Options{URL: url}).AllDocs(ctx) {
		if err != nil {
			return err
		}
		done(len(docs))
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "feed: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	names := slices.Sorted(maps.Keys(consumers))
	flags := flag.NewFlagSet("feed", flag.ContinueOnError)
	rows := flags.Int("rows", 1_000_000, "rows of the feed")
	name := flags.String("consumer", "follower", "who takes them: "+strings.Join(names, ", "))
	asJSON := flags.Bool("json", false, "print one JSON object")
	serving := flags.Bool("serve", false, "be the server: print its URL and serve until standard input ends")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *serving {
		return serve(ctx, *rows, os.Stdin, out)
	}
	consume, ok := consumers[*name]
	if !ok || *rows < 1 {
		return fmt.Errorf("--consumer is one of %s, --rows is at least 1", strings.Join(names, ", "))
	}
	url, stop, err := startServer(ctx, *rows)
	if err != nil {
		return err
	}
	defer stop()
	taking, err := consume(ctx, url, *rows)
	if err != nil {
		return err
	}
	runtime.GC()
	debug.FreeOSMemory() // what preparing took is none of the run's
	r, err := measure(ctx, *rows, taking)
	if err != nil {
		return err
	}
	r.Consumer = *name
	if *asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	fmt.Fprintf(out, "%s: %d rows in %.2f s, %.0f rows/s, %.0f per second of one core\n", r.Consumer, r.Rows, r.Seconds, r.RowsPerS, r.RowsPerCPUS)
	fmt.Fprintf(out, "  resident after the first tenth: %.1f to %.1f MiB (at most %.1f in the first half, %.1f in the second), peak %.1f MiB\n",
		r.RSSMinMiB, r.RSSMiB, r.FirstHalfMiB, r.SecondHalfMiB, r.RSSPeakMiB)
	return nil
}

// startServer runs this program as the server. stop waits for its end.
func startServer(ctx context.Context, rows int) (url string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, self, "--serve", fmt.Sprint("--rows=", rows))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		in.Close()
		cmd.Wait() // its failure, if any, is on standard error
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("start the server: %w", err)
	}
	return strings.TrimSpace(line), stop, nil
}

// measure runs consume and samples this process.
func measure(ctx context.Context, rows int, consume take) (r result, err error) {
	var count atomic.Int64
	r.RSSMinMiB = rss()
	begun, cpu := time.Now(), processorTime()
	finished := make(chan error, 1)
	go func() {
		finished <- consume(ctx, func(n int) { count.Add(int64(n)) })
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for first, running := true, true; running; {
		select {
		case err = <-finished:
			running = false
		case <-tick.C:
		}
		now, done := rss(), int(count.Load())
		r.RSSPeakMiB = max(r.RSSPeakMiB, now)
		if done < rows/10 {
			continue
		}
		if first {
			r.RSSMinMiB, first = now, false
		}
		r.RSSMinMiB, r.RSSMiB = min(r.RSSMinMiB, now), max(r.RSSMiB, now)
		if done < rows/2 {
			r.FirstHalfMiB = max(r.FirstHalfMiB, now)
		} else {
			r.SecondHalfMiB = max(r.SecondHalfMiB, now)
		}
	}
	r.Seconds = time.Since(begun).Seconds()
	r.Rows = int(count.Load())
	if err == nil && r.Rows != rows {
		err = fmt.Errorf("%d rows of %d came", r.Rows, rows)
	}
	r.RowsPerS = float64(rows) / r.Seconds
	r.RowsPerCPUS = float64(rows) / (processorTime() - cpu).Seconds()
	return r, err
}

// rss is the resident memory of this process in MiB, 0 where /proc does not say.
func rss() float64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	return 0
}

// processorTime is what this process has used, all cores together.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
