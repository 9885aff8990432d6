package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// entryJSON is one package of `list --json`.
type entryJSON struct {
	Name     npm.Name `json:"name"`
	CID      string   `json:"cid"`
	Tsize    uint64   `json:"tsize"`
	Versions int      `json:"versions,omitempty"`
}

func listCommand(r *registry) *cobra.Command {
	var largest int
	var since, number uint64
	var count bool
	cmd := &cobra.Command{
		Use:   "list [PATTERN]",
		Short: "List packages: all, by name, the largest, or what is new",
		Long: `Lists the packages of the registry by name, with their directories' CIDs, how many
versions they have, and the bytes of all their blocks. A pattern has *, ? and [a-z],
none of which matches a slash: '*' is every package without a scope, '@*/*' every
one with a scope. Filters go together.`,
		Example: `  publisher list '@types/*'
  publisher list --largest 20
  publisher list --since 41 --count`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			pattern := append(args, "")[0]
			if largest < 0 {
				return cli.Usagef("--largest %d: it is a number of packages", largest)
			}
			if _, err := path.Match(pattern, ""); err != nil {
				return cli.Hint(cli.Usagef("pattern %q: %w", pattern, err), `put a backslash before a [ that is meant as it stands`)
			}
			if err := checkRelease(cmd, number); err != nil {
				return err
			}
			ix, done, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			ctx := cmd.Context()
			entries := ix.Entries(ctx)
			switch {
			case number > 0 && since > 0:
				return cli.Hint(cli.Usagef("--since and --release do not go together"), "`publisher diff A B` says what is between two releases")
			case number > 0:
				if entries, err = r.listAt(ctx, cmd.ErrOrStderr(), ix, number); err != nil {
					return err
				}
				if pattern != "" {
					entries = index.Matching(entries, pattern)
				}
			case since > 0 && pattern != "":
				entries = index.Matching(ix.Since(ctx, since), pattern)
			case since > 0:
				entries = ix.Since(ctx, since)
			case pattern != "":
				entries = ix.Match(ctx, pattern)
			}
			if largest > 0 {
				top, err := index.Largest(entries, largest)
				if err != nil {
					return err
				}
				entries = func(yield func(index.Entry, error) bool) {
					for _, e := range top {
						if !yield(e, nil) {
							return
						}
					}
				}
			}
			out := cmd.OutOrStdout()
			if count {
				total, err := index.Count(entries)
				if err != nil {
					return err
				}
				if r.JSON {
					return cli.PrintJSON(out, total)
				}
				if number > 0 {
					_, err = fmt.Fprintf(out, "%s, %d bytes\n", cli.Count(total.Packages, "package"), total.Bytes)
					return err
				}
				_, err = fmt.Fprintf(out, "%s, %s, %d bytes\n", cli.Count(total.Packages, "package"), cli.Count(total.Versions, "version"), total.Bytes)
				return err
			}
			return cli.PrintAll(out, r.JSON, "packages", listed(entries), entryJSON.line, nil, nil)
		},
	}
	cmd.Flags().IntVar(&largest, "largest", 0, "only so many, the largest first")
	cmd.Flags().Uint64Var(&since, "since", 0, "only what is new or other since the release of that number")
	cmd.Flags().Uint64Var(&number, "release", 0, "as of the release of that number, without counts of versions")
	cmd.Flags().BoolVar(&count, "count", false, "count packages, versions and bytes instead")
	return cmd
}

// listAt is the list of a release. One that was collected may be reached from a
// snapshot in the node; where there is no node it takes longer, and does as well.
func (r *registry) listAt(ctx context.Context, w io.Writer, ix *index.Index, number uint64) (iter.Seq2[index.Entry, error], error) {
	oldest, err := ix.Oldest()
	if err != nil {
		return nil, err
	}
	var g unixfs.Getter
	var node ipfs.Node
	if number < oldest {
		log := r.Logger(w, false)
		node, err = state.Dir(r.State).OpenNode(ctx, state.NodeOptions{Kind: r.Node, API: r.IPFSAPI, Network: ipfs.Network(r.Network), Peers: r.Peers, Log: log})
		if err != nil {
			log.WarnContext(ctx, "no node, so no snapshots: the list is told from the newest one alone", "err", err)
		} else {
			g = local{node}
		}
	}
	return func(yield func(index.Entry, error) bool) {
		if node != nil {
			defer node.Close()
		}
		for e, err := range ix.ListAt(ctx, number, g) {
			if !yield(e, err) {
				return
			}
		}
	}, nil
}

// local reads what a node holds, and never asks the network.
type local struct{ ipfs.Node }

func (l local) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) { return l.Local(ctx, c) }

func listed(entries iter.Seq2[index.Entry, error]) iter.Seq2[entryJSON, error] {
	return func(yield func(entryJSON, error) bool) {
		for e, err := range entries {
			if !yield(entryJSON{e.Name, cidText(e.CID), e.Tsize, e.Versions}, err) {
				return
			}
		}
	}
}

func (v entryJSON) line() string {
	if v.Versions == 0 { // as of an older release, which does not say
		return fmt.Sprintf("%s  %s  %d bytes", v.Name, v.CID, v.Tsize)
	}
	return fmt.Sprintf("%s  %s  %s, %d bytes", v.Name, v.CID, cli.Count(v.Versions, "version"), v.Tsize)
}

func cidText(c cid.Cid) string {
	if !c.Defined() {
		return ""
	}
	return c.String()
}
