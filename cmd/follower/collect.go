package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// errCached is returned by collect where it would remove what a mirror fetched.
var errCached = errors.New("registry-mirror keeps what it fetched in the node of this state, and nothing pins it")

// leastKept is the shortest time for which former documents are kept: whoever
// just read of one may still be about to use it.
const leastKept = time.Hour

// collected is what collect did.
type collected struct {
	follow.LetGo
	Node *ipfs.Collected `json:"node,omitempty"` // nil for a Kubo daemon
}

func collectCommand(common *cli.Common) *cobra.Command {
	s := settings{Common: common, reserve: 1 << 30, signatures: "prefer", feed: "none"}
	var keep, unlisted time.Duration
	var cached bool
	cmd := &cobra.Command{
		Use:   "collect",
		Short: "Let go of what packages no longer have, and give back its disk",
		Long: `Lets go of documents that packages no longer have since --keep-documents, and has
the embedded node remove what neither a pin nor a hold has below it: what was let go
of, and what only releases had that are no longer pinned. Tarballs are kept, also
those that upstream took back; with --keep-unlisted these go that long after, unless
another version has the same bytes. The ledger's record of them stays.

The node removes a block once two collections, a day or more apart, found that
nothing keeps it, and nobody put it or looked for it in between. So the first run
removes nothing, and one each night keeps the disk clean. It may run beside all else,
and be stopped at any time. A Kubo daemon collects its garbage itself; here it is
only told what to let go of.`,
		Example: `  follower collect
  17 4 * * *  follower collect`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keep < leastKept {
				return cli.Usagef("--keep-documents %s: at least %s", keep, leastKept)
			}
			if unlisted != 0 && unlisted < leastKept {
				return cli.Hint(cli.Usagef("--keep-unlisted %s: at least %s", unlisted, leastKept), "0 keeps the tarballs of versions that upstream took back for ever")
			}
			if names, err := mirrored(state.Dir(s.State)); err != nil {
				return err
			} else if len(names) > 0 && !cached {
				return fmt.Errorf("%w: %s", errCached, strings.Join(names, ", "))
			}
			c, err := atFollower(cmd, s, "/collect?"+url.Values{"keep": {keep.String()}, "unlisted": {unlisted.String()}}.Encode(), func(ctx context.Context, h *house, _ func(int, int)) (collected, error) {
				return h.collect(ctx, keep, unlisted)
			})
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case common.JSON:
				return cli.PrintJSON(out, c)
			case cli.IsTerminal(out) || common.Verbose:
				fmt.Fprintf(out, "let go of %s", cli.Count(c.Documents, "former document"))
				if unlisted > 0 {
					fmt.Fprintf(out, " and %s that no version has any more", cli.Count(c.Tarballs, "tarball"))
				}
				fmt.Fprintln(out)
				if n := c.Node; n != nil {
					fmt.Fprintf(out, "removed %s, %.1f MiB; left: %s, of which a later run may remove %d\n", cli.Count(n.Removed, "block"), float64(n.Bytes)/(1<<20), cli.Count(n.Blocks, "block"), n.Loose)
				}
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&keep, "keep-documents", 7*24*time.Hour, "how long a document is kept that a package no longer has")
	cmd.Flags().DurationVar(&unlisted, "keep-unlisted", 0, "how long the tarball of a version is kept that upstream took back; 0 is for ever")
	cmd.Flags().BoolVar(&cached, "cached", false, "remove also what registry-mirror fetched into this state's node")
	cmd.Flags().StringVar(&s.registry, "upstream", "", "npm registry to fetch from (default: the one npm's configuration names)")
	return cmd
}

// mirrored are the names that a registry-mirror has cached in dir.
func mirrored(dir state.Dir) (names []string, err error) {
	entries, err := os.ReadDir(dir.Mirror(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// collect lets go of former documents and tarballs, then has the node collect.
func (h *house) collect(ctx context.Context, keep, unlisted time.Duration) (c collected, err error) {
	if keep < leastKept || unlisted != 0 && unlisted < leastKept {
		return c, fmt.Errorf("documents and tarballs are kept for %s or longer, not %s and %s", leastKept, keep, unlisted)
	}
	if c.LetGo, err = h.follower.LetGo(ctx, keep, unlisted, func(l follow.LetGo) { h.progress("let go", l.Documents+l.Tarballs, l.Documents+l.Tarballs, 0) }); err != nil {
		return c, err
	}
	node, ok := h.node.Node.(ipfs.Collector)
	if !ok {
		return c, nil
	}
	n, err := node.Collect(ctx, func(stage string, done, total int) { h.progress(stage, done, total, 0) })
	if errors.Is(err, ipfs.ErrKuboCollects) {
		return c, nil
	}
	c.Node = &n
	return c, err
}
