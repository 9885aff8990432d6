package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// watchEvery is the time between two looks of --watch.
const watchEvery = 2 * time.Second

func statusCommand(common *cli.Common) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what is stored, refused and waiting",
		Example: `  follower status --json
  follower status --watch`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for {
				s, err := status(cmd.Context(), common)
				if err != nil {
					return err
				}
				if err := show(cmd.OutOrStdout(), common, s, watch); err != nil {
					return err
				}
				if !watch {
					return nil
				}
				select {
				case <-cmd.Context().Done():
					return nil // being stopped is the end of a watch
				case <-time.After(watchEvery):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "again every two seconds, until it is stopped")
	return cmd
}

func status(ctx context.Context, common *cli.Common) (ledger.Status, error) {
	sel, err := openSelection(ctx, state.Dir(common.State), ledger.Open)
	if err != nil {
		return ledger.Status{}, err
	}
	defer sel.Close()
	return sel.Status(ctx)
}

func show(w io.Writer, common *cli.Common, s ledger.Status, watch bool) error {
	if common.JSON {
		return cli.PrintJSON(w, s)
	}
	if watch && cli.IsTerminal(w) {
		fmt.Fprint(w, "\x1b[H\x1b[2J") // the screen anew
	}
	return printStatus(w, s)
}

func printStatus(w io.Writer, s ledger.Status) error {
	c := s.Counts
	fmt.Fprintf(w, "stored     %s, %s, %.1f MiB\n", cli.Count(c.Packages-c.Known, "package"), cli.Count(c.Versions, "version"), mib(c.Bytes))
	if c.Known > 0 {
		fmt.Fprintf(w, "known      %s, documents only\n", cli.Count(c.Known, "package"))
	}
	if c.Deleted > 0 {
		fmt.Fprintf(w, "deleted    %d\n", c.Deleted)
	}
	fmt.Fprintf(w, "refused    %d%s\n", c.Refused, reasons(s.Reasons))
	if c.Queued > 0 {
		fmt.Fprintf(w, "queued     %d\n", c.Queued)
	}
	fmt.Fprintf(w, "retrying   %d\n", c.Retrying)
	fmt.Fprintf(w, "selection  %s\n", cli.Count(c.Wants, "line"))
	fmt.Fprintf(w, "ledger     %s at sequence %d\n", s.Identity, s.Head)
	for _, feed := range slices.Sorted(maps.Keys(s.Cursors)) {
		fmt.Fprintf(w, "feed       %s read to %s\n", feed, s.Cursors[feed])
	}
	if len(s.Loop) == 0 {
		_, err := fmt.Fprintln(w, "running    no")
		return err
	}
	var loop follow.Status
	if err := json.Unmarshal(s.Loop, &loop); err != nil {
		return fmt.Errorf("read the follower's account: %w", err)
	}
	if loop.Feed != "" {
		behind := "at its head"
		switch {
		case loop.LagRows < 0:
			behind = "how far its head is, is not known"
		case loop.LagRows > 0:
			behind = cli.Count(loop.LagRows, "sequence") + " behind its head"
		}
		fmt.Fprintf(w, "lag        %s; the queue's front waits for %s\n", behind, seconds(loop.LagSeconds))
	}
	if loop.ItemsPerSecond > 0 {
		left := ""
		if c.Queued > 0 && loop.SecondsLeft >= 0 {
			left = ", " + seconds(loop.SecondsLeft) + " left"
		}
		fmt.Fprintf(w, "rate       %.1f items/s, %.1f MiB/s%s\n", loop.ItemsPerSecond, loop.BytesPerSecond/(1<<20), left)
	}
	if loop.Trouble != "" {
		fmt.Fprintf(w, "trouble    %s\n", loop.Trouble)
	}
	last := "nothing done to its end yet"
	if !loop.LastSuccess.IsZero() {
		last = "last success " + cli.Time(loop.LastSuccess)
	}
	_, err := fmt.Fprintf(w, "running    yes, %s\n", last)
	return err
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

func reasons(by map[string]int) string {
	if len(by) == 0 {
		return ""
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, fmt.Sprintf("%s %d", reason, by[reason]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
