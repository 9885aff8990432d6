//go:build linux

// Command publish times how long a release takes to reach a reader: twenty times
// a package gets a new version, `publisher publish` releases it through a Kubo
// node, and a mirror on a second Kubo node, which served the release before
// seconds ago, is asked until it serves the new one. All three are the real
// commands in their default configuration. In the same run it times IPNS itself
// between those nodes, signed by Kubo, and how fast records are signed and
// verified, beside boxo.
//
//	go run ./bench/publish [--kubo IPFS] [--updates N] [--json]
//
// It needs a Kubo, as internal/ipfs/kubotest builds it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
)

// result is what --json prints.
type result struct {
	Updates int `json:"updates"`
	// From the start of `publisher publish` until the mirror serves the release.
	PublishToResolved spread `json:"publish_to_resolved_ms"`
	// The same from the moment that the command had put the record and read it
	// back; negative where the mirror was first.
	DoneToResolved spread `json:"done_to_resolved_ms"`
	// `ipfs name publish` at one node, until `ipfs name resolve` at the other,
	// told to use no cache, gives the new value: asked without a pause, by RPC.
	KuboToResolved spread `json:"kubo_publish_to_resolved_ms"`

	Signed       float64 `json:"records_signed_per_s"` // of one core, as all below
	Verified     float64 `json:"records_verified_per_s"`
	BoxoSigned   float64 `json:"boxo_signed_per_s"`
	BoxoVerified float64 `json:"boxo_verified_per_s"`
}

// spread is of one figure over the updates, in milliseconds.
type spread struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	Max float64 `json:"max"`
}

// spreadOf takes the value that so many of all do not exceed.
func spreadOf(ms []float64) spread {
	if len(ms) == 0 {
		return spread{}
	}
	s := slices.Sorted(slices.Values(ms))
	at := func(part int) float64 { return s[(len(s)*part+99)/100-1] }
	return spread{P50: at(50), P90: at(90), Max: s[len(s)-1]}
}

var errNoKubo = errors.New("no Kubo to measure with was named")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	binary := flag.String("kubo", kubod.Binary(), "the ipfs binary; by default $"+kubod.Variable)
	updates := flag.Int("updates", 20, "releases to time")
	asJSON := flag.Bool("json", false, "print one JSON object")
	flag.Parse()
	r, err := run(ctx, *binary, *updates)
	if err != nil {
		fmt.Fprintln(os.Stderr, "publish: error:", err)
		if errors.Is(err, errNoKubo) {
			fmt.Fprintln(os.Stderr, "publish: hint: go build -C internal/ipfs/kubotest -trimpath -o OUT github.com/ipfs/kubo/cmd/ipfs, then --kubo OUT")
		}
		os.Exit(1)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(r)
		return
	}
	r.print()
}

func (r result) print() {
	fmt.Printf("%d updates over two Kubo nodes\n", r.Updates)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "ms\tp50\tp90\tmax\t")
	row := func(name string, s spread) {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t\n", name, s.P50, s.P90, s.Max)
	}
	row("publish to resolved", r.PublishToResolved)
	row("done to resolved", r.DoneToResolved)
	row("kubo's own name publish to name resolve", r.KuboToResolved)
	w.Flush()
	w = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "records/s of one core\tours\tboxo\tratio\t")
	fmt.Fprintf(w, "signed\t%.0f\t%.0f\t%.2fx\t\n", r.Signed, r.BoxoSigned, r.Signed/r.BoxoSigned)
	fmt.Fprintf(w, "verified\t%.0f\t%.0f\t%.2fx\t\n", r.Verified, r.BoxoVerified, r.Verified/r.BoxoVerified)
	w.Flush()
}
