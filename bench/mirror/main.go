//go:build linux

// Command mirror measures a mirror that holds everything beside Verdaccio and
// beside nginx, which serves from files the bytes that the mirror sends: ten
// connections that each ask again as soon as they have an answer, for documents
// and tarballs of one made registry.
//
//	go run ./bench/mirror [--quick] [--json] [--rounds N] [--seconds S] [--verdaccio DIR]
//
// The three take turns, case by case and round by round; figures are medians
// over the rounds. It needs npm, and the registry that npm's configuration names
// to install Verdaccio from; without nginx it asks apt for the package, and
// without that leaves the column out.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// result is what --json prints.
type result struct {
	PackumentFull        *row `json:"packument_full,omitempty"`
	PackumentAbbreviated *row `json:"packument_abbreviated,omitempty"`
	NotModified          *row `json:"not_modified,omitempty"`
	Tarball3K            *row `json:"tarball_3k,omitempty"`
	Tarball55K           *row `json:"tarball_55k,omitempty"`
	Tarball4M            *row `json:"tarball_4m,omitempty"`
	// Others are the documents that no budget is for.
	Others []*row `json:"others,omitempty"`

	// Resident memory at the end of all rounds, by server, and the most so far.
	RSSMiB  map[string]float64 `json:"rss_mib"`
	PeakMiB map[string]float64 `json:"peak_mib"`
	// RSSOverVerdaccio has a budget of a third.
	RSSOverVerdaccio float64 `json:"rss_over_verdaccio"`

	Rounds   int     `json:"rounds"`
	Seconds  float64 `json:"seconds"` // of each measurement
	NoStatic string  `json:"no_static,omitempty"`
}

// row is one case of one package.
type row struct {
	Case    string `json:"case"`
	Package string `json:"package"`
	Raw     int    `json:"raw_bytes"`  // of what is served, decoded
	Sent    int    `json:"sent_bytes"` // of the body that ours sends

	Ours      *figures `json:"ours"`
	Verdaccio *figures `json:"verdaccio"`
	Static    *figures `json:"static,omitempty"`

	OverVerdaccio float64 `json:"over_verdaccio"` // requests a second
	OverStatic    float64 `json:"over_static,omitempty"`
	Budget        *budget `json:"budget,omitempty"`
}

type figures struct {
	load
	CPU   float64 `json:"cpu_us"` // processor time of the server for a request, in microseconds
	loads []load
	cpus  float64 // seconds
}

// budget is what design.md asks of a case. Zero is nothing.
type budget struct {
	OverVerdaccio float64 `json:"over_verdaccio"`
	OverStatic    float64 `json:"over_static"`
	P99           float64 `json:"p99_ms,omitempty"` // at most
	Met           bool    `json:"met"`
}

func (r *row) judge() {
	r.OverVerdaccio = r.Ours.RPS / r.Verdaccio.RPS
	if r.Static != nil {
		r.OverStatic = r.Ours.RPS / r.Static.RPS
	}
	if b := r.Budget; b != nil {
		b.Met = r.OverVerdaccio >= b.OverVerdaccio && (r.Static == nil || r.OverStatic >= b.OverStatic) && (b.P99 == 0 || r.Ours.P99 <= b.P99)
	}
}

// form is what a case asks for.
type form int

const (
	full form = iota
	abbreviated
	tarball
)

// benchCase is one request, asked again and again.
type benchCase struct {
	name   string
	of     made
	path   string
	form   form
	has    bool // the client has the document: If-None-Match, 304
	budget *budget
}

// headers are those of npm for full documents and tarballs, of pnpm for
// abbreviated ones: the clients that ask for these.
func (c benchCase) headers(etag string) []string {
	accept, agent := "application/json", "npm/11.19.1 node/v22.23.3 linux x64 workspaces/false"
	switch c.form {
	case abbreviated:
		accept, agent = npm.AbbreviatedType+"; q=1.0, application/json; q=0.8, */*", "pnpm/10.34.8 npm/? node/v22.23.3 linux x64"
	case tarball:
		accept = "*/*"
	}
	h := []string{"Accept: " + accept, "Accept-Encoding: gzip, deflate", "User-Agent: " + agent}
	if etag != "" {
		h = append(h, "If-None-Match: "+etag)
	}
	return h
}

func casesOf(quick bool) []benchCase {
	document := func(p made, budgets bool) []benchCase {
		cs := []benchCase{
			{name: "packument_full", of: p, path: p.document(), form: full},
			{name: "packument_abbreviated", of: p, path: p.document(), form: abbreviated},
			{name: "not_modified", of: p, path: p.document(), form: abbreviated, has: true},
		}
		for i, over := range []float64{50, 50, 100} {
			if budgets {
				cs[i].budget = &budget{OverVerdaccio: over, OverStatic: 0.5, P99: 5}
			}
		}
		return cs
	}
	cases := append(document(express, true),
		benchCase{name: "tarball_3k", of: isOdd, path: isOdd.tarballPath(), form: tarball, budget: &budget{OverVerdaccio: 5, OverStatic: 0.5, P99: 5}},
		benchCase{name: "tarball_55k", of: express, path: express.tarballPath(), form: tarball, budget: &budget{OverVerdaccio: 3, OverStatic: 0.5, P99: 5}},
		benchCase{name: "tarball_4m", of: large, path: large.tarballPath(), form: tarball, budget: &budget{OverVerdaccio: 1.3, OverStatic: 0.5}},
	)
	if !quick {
		cases = append(cases, document(isOdd, false)...)
		cases = append(cases, document(react, false)...)
	}
	return cases
}

func main() {
	if os.Getenv(loadVariable) != "" {
		if err := generate(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	quick := flag.Bool("quick", false, "express' documents and the tarballs, 2 rounds of half a second")
	asJSON := flag.Bool("json", false, "print one JSON object")
	rounds := flag.Int("rounds", 0, "rounds; 0 means 5, or 2 with --quick")
	seconds := flag.Float64("seconds", 0, "length of a measurement in seconds; 0 means 4, or 0.5 with --quick")
	only := flag.String("only", "", "one case")
	installed := flag.String("verdaccio", "", "a directory where Verdaccio is installed; empty: it is installed for this run")
	flag.Parse()
	o := options{cases: casesOf(*quick), rounds: *rounds, seconds: *seconds, verdaccio: *installed}
	if *only != "" {
		o.cases = slices.DeleteFunc(o.cases, func(c benchCase) bool { return c.name != *only })
	}
	if o.rounds == 0 {
		o.rounds = 5
		if *quick {
			o.rounds = 2
		}
	}
	if o.seconds == 0 {
		o.seconds = 4
		if *quick {
			o.seconds = 0.5
		}
	}
	r, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mirror: error:", err)
		os.Exit(1)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(r)
		return
	}
	r.print()
}

type options struct {
	cases     []benchCase
	rounds    int
	seconds   float64
	verdaccio string // directory
}

// bench is one run, in a directory of its own.
type bench struct {
	dir      string
	registry *npmtest.Registry
	servers  []*server
}

func run(ctx context.Context, o options) (r result, err error) {
	if len(o.cases) == 0 {
		return r, errors.New("there is no such case")
	}
	r.Rounds, r.Seconds = o.rounds, o.seconds
	dir, err := os.MkdirTemp("", "bench-mirror-")
	if err != nil {
		return r, err
	}
	b := &bench{dir: dir}
	defer os.RemoveAll(dir)
	defer func() {
		for _, s := range b.servers {
			err = errors.Join(err, s.close())
		}
		if b.registry != nil {
			b.registry.Close()
		}
	}()
	if err := b.begin(ctx, o, &r); err != nil {
		return r, err
	}
	rows := make([]*row, len(o.cases))
	for i, c := range o.cases {
		if rows[i], err = b.check(ctx, c); err != nil {
			return r, err
		}
	}
	for range o.rounds {
		for i, c := range o.cases {
			for _, s := range b.servers {
				if err := b.round(ctx, o, c, s, rows[i].of(s.name)); err != nil {
					return r, fmt.Errorf("%s of %s from %s: %w", c.name, c.of.name, s.name, err)
				}
			}
		}
	}
	r.RSSMiB, r.PeakMiB = map[string]float64{}, map[string]float64{}
	for _, s := range b.servers {
		r.RSSMiB[s.name], r.PeakMiB[s.name] = s.memory()
	}
	r.RSSOverVerdaccio = r.RSSMiB["ours"] / r.RSSMiB["verdaccio"]
	for _, w := range rows {
		for _, f := range []*figures{w.Ours, w.Verdaccio, w.Static} {
			if f != nil {
				f.load = median(f.loads)
				f.CPU = 1e6 * f.cpus / float64(f.Requests)
			}
		}
		w.judge()
		r.add(w)
	}
	return r, nil
}

// add puts a row where its case belongs.
func (r *result) add(w *row) {
	at, ok := map[string]**row{
		"packument_full": &r.PackumentFull, "packument_abbreviated": &r.PackumentAbbreviated, "not_modified": &r.NotModified,
		"tarball_3k": &r.Tarball3K, "tarball_55k": &r.Tarball55K, "tarball_4m": &r.Tarball4M,
	}[w.Case]
	if !ok || w.Budget == nil {
		r.Others = append(r.Others, w)
		return
	}
	*at = w
}

func (w *row) of(server string) *figures {
	at := map[string]**figures{"ours": &w.Ours, "verdaccio": &w.Verdaccio, "static": &w.Static}[server]
	if *at == nil {
		*at = &figures{}
	}
	return *at
}

// begin starts the registry and what is measured, in this order.
func (b *bench) begin(ctx context.Context, o options, r *result) (err error) {
	if err := command(exec.CommandContext(ctx, "go", "build", "-o", b.dir+"/bin/",
		"github.com/registry-mirror/registry-mirror/cmd/follower", "github.com/registry-mirror/registry-mirror/cmd/registry-mirror")); err != nil {
		return err
	}
	var packages []made
	for _, c := range o.cases {
		if !slices.Contains(packages, c.of) {
			packages = append(packages, c.of)
		}
	}
	if b.registry, err = startRegistry(packages); err != nil {
		return err
	}
	ours, err := b.ours(ctx, packages, b.registry.URL)
	if err != nil {
		return err
	}
	b.servers = append(b.servers, ours)
	v, err := b.verdaccio(ctx, o.verdaccio, b.registry.URL)
	if err != nil {
		return err
	}
	b.servers = append(b.servers, v)
	static, err := b.static(ctx, o.cases, ours)
	if errors.Is(err, errNoNginx) {
		r.NoStatic = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	b.servers = append(b.servers, static)
	return nil
}

// check asks each server once, which also warms it, for what c asks, and holds
// the answers to what the registry has.
func (b *bench) check(ctx context.Context, c benchCase) (*row, error) {
	w := &row{Case: c.name, Package: c.of.name, Budget: c.budget}
	for _, s := range b.servers {
		a, err := s.ask(ctx, c, "")
		if err != nil {
			return nil, err
		}
		if a.status != 200 || c.form != tarball && a.etag == "" {
			return nil, fmt.Errorf("%s answers %s with %d, ETag %q", s.name, c.path, a.status, a.etag)
		}
		raw := a.body
		if c.form == tarball {
			if !bytes.Equal(raw, b.registry.Tarball(c.of.name, c.of.newest())) {
				return nil, fmt.Errorf("%s answers %s with other bytes", s.name, c.path)
			}
		} else {
			z, err := gzip.NewReader(bytes.NewReader(raw))
			if err == nil {
				raw, err = io.ReadAll(z)
			}
			if err != nil {
				return nil, fmt.Errorf("%s answers %s, not as gzip: %w", s.name, c.path, err)
			}
			if n, err := versionsOf(raw); err != nil || n != c.of.versions {
				return nil, fmt.Errorf("%s answers %s with %d versions of %d, %w", s.name, c.path, n, c.of.versions, err)
			}
		}
		if s.name == "ours" {
			w.Raw, w.Sent = len(raw), len(a.body)
		}
	}
	return w, nil
}

// round is one measurement.
func (b *bench) round(ctx context.Context, o options, c benchCase, s *server, f *figures) error {
	a, err := s.ask(ctx, c, "")
	if err != nil {
		return err
	}
	if a.status != 200 { // it was when it was checked
		return fmt.Errorf("status %d: %.300s", a.status, a.body)
	}
	etag := ""
	if c.has {
		etag = a.etag
		if a, err = s.ask(ctx, c, etag); err != nil {
			return err
		}
		if a.status != 304 {
			return fmt.Errorf("status %d, not 304", a.status)
		}
	}
	before := s.cpu()
	l, err := measure(ctx, job{
		Address: s.address(), Request: requestOf(s.address(), c.path, c.headers(etag)...),
		Status: a.status, Length: int64(len(a.body)), WarmUp: o.seconds / 8, Seconds: o.seconds,
	})
	if err != nil {
		return err
	}
	f.loads = append(f.loads, l)
	f.cpus += (s.cpu() - before) / (1 + 1./8)
	return nil
}

func (r result) print() {
	fmt.Printf("%d connections, medians of %d rounds of %v a server and case; Verdaccio's and nginx's figures are of the same run\n",
		connections, r.Rounds, time.Duration(r.Seconds*float64(time.Second)))
	if r.NoStatic != "" {
		fmt.Println("static is left out:", r.NoStatic)
	}
	rows := slices.DeleteFunc(append([]*row{r.PackumentFull, r.PackumentAbbreviated, r.NotModified, r.Tarball3K, r.Tarball55K, r.Tarball4M}, r.Others...),
		func(w *row) bool { return w == nil })
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tof\traw KB\tsent KB\tours req/s\tp50 ms\tp99 ms\tCPU µs\tverdaccio req/s\tp50 ms\tp99 ms\tCPU µs\tstatic req/s\tp50 ms\tp99 ms\tCPU µs\t")
	for _, c := range rows {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t", c.Case, c.Package, float64(c.Raw)/1e3, float64(c.Sent)/1e3)
		for _, f := range []*figures{c.Ours, c.Verdaccio, c.Static} {
			if f == nil {
				fmt.Fprint(w, "-\t-\t-\t-\t")
				continue
			}
			fmt.Fprintf(w, "%.0f\t%.2f\t%.2f\t%.0f\t", f.RPS, f.P50, f.P99, f.CPU)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	w = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "ours\tof\tx verdaccio\tbudget\tx static\tbudget\tp99 ms\tbudget\t\t")
	atLeast := func(x float64) string { return fmt.Sprintf(">= %v", x) }
	for _, c := range rows {
		b, least, static, p99, verdict := c.Budget, "", "-", "", ""
		if c.Static != nil {
			static = fmt.Sprintf("%.2f", c.OverStatic)
		}
		half := ""
		if b != nil {
			least, half, verdict = atLeast(b.OverVerdaccio), atLeast(b.OverStatic), "missed"
			if b.Met {
				verdict = "met"
			}
			if b.P99 > 0 {
				p99 = fmt.Sprintf("<= %v", b.P99)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%s\t%s\t%s\t%.2f\t%s\t%s\t\n", c.Case, c.Package, c.OverVerdaccio, least, static, half, c.Ours.P99, p99, verdict)
	}
	w.Flush()
	verdict := "met"
	if len(r.Others) == 0 {
		verdict = "which is for a whole run"
	} else if r.RSSOverVerdaccio > 1./3 {
		verdict = "missed"
	}
	fmt.Printf("resident MiB at the end (most): ours %.0f (%.0f), verdaccio %.0f (%.0f), static %.0f (%.0f); ours is %.2fx verdaccio's, budget <= 0.33, %s\n",
		r.RSSMiB["ours"], r.PeakMiB["ours"], r.RSSMiB["verdaccio"], r.PeakMiB["verdaccio"], r.RSSMiB["static"], r.PeakMiB["static"], r.RSSOverVerdaccio, verdict)
}
