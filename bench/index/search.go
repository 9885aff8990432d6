//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// searchResult is what a mirror needs to answer searches over a list.
type searchResult struct {
	Names        int     `json:"names"`
	BeforeMiB    float64 `json:"before_rss_mib"`   // of the daemon, when nobody has searched
	FirstMs      float64 `json:"first_ms"`         // the first search of all, that makes the file of names
	FileMiB      float64 `json:"file_mib"`         // which has that size
	AgainMs      float64 `json:"after_start_ms"`   // the first search after a start
	TypedMiB     float64 `json:"typed_rss_mib"`    // after all that is typed
	PeakMiB      float64 `json:"peak_rss_mib"`     // from the second start on
	Changes      int     `json:"changes"`          // of a release
	Inserts      int     `json:"inserts"`          // of these, new names
	SyncMs       float64 `json:"sync_ms"`          // to follow it
	AfterSyncMs  float64 `json:"after_sync_ms"`    // the first search then
	WholeQueryMs float64 `json:"whole_queries_ms"` // median of the queries' last letters
	GrepMs       float64 `json:"grep_ms"`          // median of the same by grep
	OverGrep     float64 `json:"times_grep"`       // the ratio of both
	Typed        []typed `json:"typed"`
}

// typed is one query, letter by letter.
type typed struct {
	Query  string  `json:"query"`
	P50Ms  float64 `json:"p50_ms"`
	MaxMs  float64 `json:"max_ms"`
	CPUMs  float64 `json:"cpu_ms"`  // of the daemon for a letter, on average
	LastMs float64 `json:"last_ms"` // of the whole query
	Total  int     `json:"total"`   // hits of it
	GrepMs float64 `json:"grep_ms"`
}

// keystrokeBudget is what a letter may take at most, in milliseconds.
const keystrokeBudget = 100

// queries are typed, each letter once a round.
var queries = []string{"express", "@types/nod", "react-dom", "zzz", "e", "react native button"}

func searching(ctx context.Context, b *bench, r *result) (err error) {
	n := b.bulk[len(b.bulk)-1]
	l, err := b.built(ctx, n)
	if err != nil {
		return err
	}
	files, counts, err := b.changes(l)
	if err != nil {
		return err
	}
	at := slices.Index(counts, min(syncChanges, slices.Max(counts)))
	d, roots, err := b.mirror(ctx, l, "search", files[at])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.end()) }()
	res := searchResult{Names: n, Changes: counts[at]}
	if err := d.first(ctx, roots[0], n, &startResult{}); err != nil {
		return fmt.Errorf("the first start: %w", err)
	}
	if err := atRest(ctx, filepath.Join(d.dir, "state")); err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	res.BeforeMiB = d.memory("VmRSS")
	if res.FirstMs, _, err = d.search(ctx, "first"); err != nil {
		return errors.Join(err, d.stop())
	}
	if err := d.stop(); err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	if err := d.searches(ctx, b, roots[1], files[at], &res); err != nil {
		return errors.Join(err, d.stop())
	}
	r.Search = append(r.Search, res)
	return d.stop()
}

// searches is what is measured of one run of the daemon.
func (d *daemon) searches(ctx context.Context, b *bench, next, changes string, res *searchResult) (err error) {
	if res.AgainMs, _, err = d.search(ctx, "again"); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(string(d.state()), "*", "*", "names"))
	if err != nil || len(found) != 1 {
		return errors.Join(err, fmt.Errorf("%d files of names", len(found)))
	}
	info, err := os.Stat(found[0])
	if err != nil {
		return err
	}
	res.FileMiB = float64(info.Size()) / (1 << 20)
	var whole, grep []float64
	for _, q := range queries {
		t := typed{Query: q}
		var letters, last, floor []float64
		before := d.cpu()
		for range b.rounds {
			for i := range len(q) {
				ms, total, err := d.search(ctx, q[:i+1])
				if err != nil {
					return err
				}
				letters = append(letters, ms)
				if t.Total = total; i == len(q)-1 {
					last = append(last, ms)
				}
			}
		}
		t.CPUMs = (d.cpu() - before) / float64(len(letters))
		for range b.rounds {
			begun := time.Now()
			cmd := exec.CommandContext(ctx, "grep", "-c", "-F", "-e", q, found[0])
			cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
			var none *exec.ExitError
			// Into a pipe: to /dev/null grep would end with the first line.
			if _, err := cmd.Output(); err != nil && !errors.As(err, &none) {
				return err
			}
			floor = append(floor, 1e3*time.Since(begun).Seconds())
		}
		t.P50Ms, t.MaxMs, t.LastMs, t.GrepMs = median(letters), slices.Max(letters), median(last), median(floor)
		whole, grep = append(whole, t.LastMs), append(grep, t.GrepMs)
		res.Typed = append(res.Typed, t)
	}
	res.WholeQueryMs, res.GrepMs = median(whole), median(grep)
	res.OverGrep = res.WholeQueryMs / res.GrepMs
	res.TypedMiB, res.PeakMiB = d.memory("VmRSS"), d.memory("VmHWM")

	var s startResult
	if err := d.follow(ctx, next, &s); err != nil {
		return err
	}
	res.SyncMs = s.SyncMs
	var gone []string
	var came []string
	for c, err := range readChanges(changes) {
		if err != nil {
			return err
		}
		if c.Delete {
			gone = append(gone, string(c.Name))
		} else {
			came = append(came, string(c.Name))
		}
	}
	res.Inserts = res.Changes * insertPercent / 100
	if res.AfterSyncMs, _, err = d.search(ctx, "after"); err != nil {
		return err
	}
	for name, want := range map[string]bool{gone[0]: false, came[0]: true, came[len(came)-1]: true} {
		if is, err := d.finds(ctx, name); err != nil || is != want {
			return errors.Join(err, fmt.Errorf("that %s is found is %v after the release", name, is))
		}
	}
	return nil
}

// search types one query, and gives the milliseconds to its answer and how many hits
// there are.
func (d *daemon) search(ctx context.Context, text string) (ms float64, total int, err error) {
	begun := time.Now()
	answer, err := d.ask(ctx, text)
	return 1e3 * time.Since(begun).Seconds(), answer.Total, err
}

// cpu is what the process has used, in milliseconds; 0 where the system does not tell.
func (d *daemon) cpu() float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// After the name, in parentheses, the 12th and 13th: hundredths of a second, proc_pid_stat(5).
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return 10 * (user + system)
}

// finds says whether a name is the first that is found by itself.
func (d *daemon) finds(ctx context.Context, name string) (bool, error) {
	answer, err := d.ask(ctx, name)
	return err == nil && len(answer.Objects) > 0 && answer.Objects[0].Package.Name == name, err
}

type searchAnswer struct {
	Total   int
	Objects []struct{ Package struct{ Name string } }
}

func (d *daemon) ask(ctx context.Context, text string) (a searchAnswer, err error) {
	for { // the first of all takes longer than an answer may
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.address+"/-/v1/search?text="+url.QueryEscape(text), nil)
		if err != nil {
			return a, err
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return a, err
		}
		if resp.StatusCode == http.StatusOK {
			err = json.NewDecoder(resp.Body).Decode(&a)
		} else if resp.StatusCode != http.StatusServiceUnavailable {
			err = fmt.Errorf("search for %q: %s", text, resp.Status)
		}
		resp.Body.Close()
		if err != nil || resp.StatusCode == http.StatusOK {
			return a, err
		}
	}
}

func printSearch(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tfirst search of all ms\tof a start ms\tfile MiB\tMiB before\tMiB after typing\tpeak MiB\tsync of\twith new names\tms\tsearch then ms\t")
	for _, s := range r.Search {
		fmt.Fprintf(w, "%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t%d\t%.0f\t%.0f\t\n", s.Names, s.FirstMs, s.AgainMs, s.FileMiB,
			s.BeforeMiB, s.TypedMiB, s.PeakMiB, s.Changes, s.Inserts, s.SyncMs, s.AfterSyncMs)
	}
}

func printTyping(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tquery\tletter p50 ms\tslowest\tCPU ms\tbudget\twhole ms\tgrep -c ms\thits\t")
	for _, s := range r.Search {
		for _, t := range s.Typed {
			verdict := "met"
			if t.MaxMs > keystrokeBudget {
				verdict = "missed"
			}
			fmt.Fprintf(w, "%d\t%s\t%.1f\t%.1f\t%.1f\t<= %d, %s\t%.1f\t%.1f\t%d\t\n", s.Names, t.Query, t.P50Ms, t.MaxMs, t.CPUMs, keystrokeBudget, verdict, t.LastMs, t.GrepMs, t.Total)
		}
		fmt.Fprintf(w, "%d\tmedian\t\t\t\t\t%.1f\t%.1f\t%.2fx grep\t\n", s.Names, s.WholeQueryMs, s.GrepMs, s.OverGrep)
	}
}
