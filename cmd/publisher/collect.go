package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
)

func bindRetain(cmd *cobra.Command, r *registry) {
	cmd.Flags().DurationVar(&r.retain, "retain", publish.DefaultRetain, "how long a release stays whole once there is a newer one; 0 is for ever")
}

// checkRetain refuses what would be taken for another value.
func (r *registry) checkRetain() error {
	if r.retain < 0 {
		return cli.Hint(cli.Usagef("--retain %s: it is less than nothing", r.retain), "0 keeps every release for ever")
	}
	return nil
}

func collectCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "collect",
		Short: "Let go of old releases",
		Long: `Lets go of the releases that are older than --retain: the node unpins them, and the
index takes away the blocks that only they have. Their lists can still be told:
publisher log, diff and list --release go by what the index writes down before, and by
a snapshot a month, which the node keeps pinned. They cannot be rolled
back to, unless one that is whole has the same list.

The newest release, the newest eight, and whatever the registry's name may still lead
to stay, whatever the clock says. publisher publish does the same by itself once a
seventh of --retain has gone by, so this is for whoever needs the room now. It can be
stopped at any time.

What the node then has no more use for it takes away when it collects its own garbage:
follower collect has the embedded node do so, ipfs repo gc a Kubo daemon.`,
		Example: `  publisher collect --retain 24h
  publisher collect --json | jq .bytes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.checkRetain(); err != nil {
				return err
			}
			var c publish.Collected
			err := r.with(cmd, tidy, func(ctx context.Context, o *opened) (err error) {
				c, err = o.Collect(ctx)
				return err
			})
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if r.JSON {
				return cli.PrintJSON(out, c)
			}
			if !cli.IsTerminal(out) && !r.Verbose {
				return nil
			}
			_, err = fmt.Fprintf(out, "collected %s, %d bytes; unpinned %s; releases from %d on are whole\n",
				cli.Count(c.Blocks, "block"), c.Bytes, cli.Count(c.Unpinned, "release"), c.Oldest)
			return err
		},
	}
	bindRetain(cmd, r)
	bindWait(cmd, r)
	return cmd
}
