package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

var (
	errNoRow = errors.New("no registry of that name was added or followed")
	label    = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
)

// restartHint is what is said where a daemon runs that has read the table.
const restartHint = "a registry-mirror runs on this state: it serves this from its next start on"

func addCommand(common *cli.Common) *cobra.Command {
	row := state.Row{}
	cmd := &cobra.Command{
		Use:   "add LABEL ADDRESS",
		Short: "Serve a registry beside others, and say what it alone has",
		Long: `Adds a registry to those that daemon serves. ADDRESS is an IPNS name, /ipfs/CID
of one release (which then never changes), a domain with a DNSLink, or a file whose
first line is one of these.

What it claims, whole scopes and single packages, is looked up in it and nowhere
else, hit or miss: nobody can slip in a public package of the same name. A registry
that claims nothing is open: it is asked, in the order in which they were added,
for what nobody claims.

With --network its packages are read by a node of their own, whose peers and blocks
no other registry shares.`,
		Example: `  registry-mirror add acme k51... --scope @acme --network lan --peer /ip4/...
  registry-mirror add npm k51...
  registry-mirror daemon --ipfs`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := state.Dir(common.State)
			table, err := dir.Table()
			if err != nil {
				return err
			}
			if !label.MatchString(args[0]) {
				return cli.Usagef("%q: a label is at most 64 of a-z, 0-9, - and _, and begins with a letter or digit", args[0])
			}
			if i := slices.IndexFunc(table.Rows, func(r state.Row) bool { return r.Label == args[0] }); i >= 0 {
				return cli.Hint(cli.Usagef("registry %s is there already, at %s", args[0], table.Rows[i].Address), "`registry-mirror remove "+args[0]+"` takes it out")
			}
			a, domain, err := locate(cmd.Context(), dir, &table, args[1], nil)
			if err != nil {
				return err
			}
			row.Label, row.Address, row.Domain = args[0], a.String(), domain
			// The flags that others have for the state's own node are the row's here.
			row.Peers, row.Network = common.Peers, common.Network
			if row.Network != "" && row.Network != string(ipfs.Local) && row.Network != string(ipfs.LAN) && row.Network != string(ipfs.Public) {
				return cli.Usagef("--network %s: it is local, lan or public", row.Network)
			}
			if err := checkGateways(row.Gateways); err != nil {
				return err
			}
			if _, err := routes(row.Routes); err != nil {
				return err
			}
			table.Rows = append(table.Rows, row)
			if err := check(table); err != nil {
				return err
			}
			if err := dir.SetTable(table); err != nil {
				return err
			}
			return said(cmd, common, fmt.Sprintf("%s is %s, %s", row.Label, row.Address, claims(row)))
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&row.Scopes, "scope", nil, "scope that this registry alone has; may be repeated")
	f.StringArrayVar(&row.Packages, "package", nil, "package that this registry alone has; may be repeated")
	f.StringVar(&row.PublishTo, "publish-to", "", "URL of the registry that takes npm publish of the names that this one claims; your token goes there, and nowhere else")
	f.StringArrayVar(&row.Gateways, "gateway", nil, "URL of a trustless gateway to read it from as well; may be repeated")
	f.StringArrayVar(&row.Routes, "route", nil, routeUsage)
	return cmd
}

func removeCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:   "remove LABEL | ADDRESS",
		Short: "Serve a registry no more, or forget it",
		Long: `Takes a registry out of those that daemon serves. What is held of it stays, and is
there at once when it is added again.

With an ADDRESS that was not added it forgets that registry: its list, and how far it was
followed, so that a later daemon begins anew with it. Packages in the IPFS node stay
until it is their turn.`,
		Example: `  registry-mirror remove acme
  registry-mirror remove k51...                      # one that was given to daemon`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := state.Dir(common.State)
			table, err := dir.Table()
			if err != nil {
				return err
			}
			i := slices.IndexFunc(table.Rows, func(r state.Row) bool { return r.Label == args[0] })
			if i < 0 {
				return forget(cmd, common, table, args[0])
			}
			gone := table.Rows[i]
			table.Rows = slices.Delete(table.Rows, i, i+1)
			if gone.Domain != "" && !slices.ContainsFunc(table.Rows, func(r state.Row) bool { return r.Domain == gone.Domain }) {
				delete(table.Domains, gone.Domain)
			}
			if err := dir.SetTable(table); err != nil {
				return err
			}
			return said(cmd, common, fmt.Sprintf("%s, %s, is served no more", gone.Label, gone.Address))
		},
	}
}

// forget takes away the mirror of an address that was not added.
func forget(cmd *cobra.Command, common *cli.Common, table state.Table, text string) (err error) {
	at, err := parseAddress(text)
	if err != nil {
		return fmt.Errorf("remove %s: %w", text, errNoRow)
	}
	if i := slices.IndexFunc(table.Rows, func(r state.Row) bool { return r.Address == at.String() }); i >= 0 {
		return cli.Hint(cli.Usagef("%s was added as %s", text, table.Rows[i].Label), "`registry-mirror remove "+table.Rows[i].Label+"` takes it out; after that its address forgets it")
	}
	dir := state.Dir(common.State)
	if _, err := os.Stat(dir.Mirror("")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", text, errNoRow)
	}
	cache, err := mirror.OpenCache(mirror.CacheOptions{Dir: dir.Cache(), Log: common.Logger(cmd.ErrOrStderr(), false)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	switch err := mirror.Remove(dir.Mirror(at.dir()), cache); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("remove %s: %w", text, errNoRow)
	case err != nil:
		return err
	}
	return said(cmd, common, at.String()+" is forgotten")
}

// said is for people, and tells them of a daemon that does not know yet.
func said(cmd *cobra.Command, common *cli.Common, text string) error {
	if cli.IsTerminal(cmd.OutOrStdout()) || common.Verbose {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), text); err != nil {
			return err
		}
	}
	if socket.Alive(cmd.Context(), state.Dir(common.State).Socket("registry-mirror")) {
		_, err := fmt.Fprintln(cmd.ErrOrStderr(), "registry-mirror: note:", restartHint)
		return err
	}
	return nil
}

func listCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "Show the registries that were added, and what each claims",
		Example: "  registry-mirror list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			table, err := state.Dir(common.State).Table()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if common.JSON {
				if table.Rows == nil {
					table.Rows = []state.Row{}
				}
				return cli.PrintJSON(out, map[string]any{"registries": table.Rows})
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			for _, r := range table.Rows {
				at := r.Address
				if r.Domain != "" {
					at = r.Domain + ", " + at
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", r.Label, at, claims(r))
			}
			return w.Flush()
		},
	}
}

// open is what claims says of a row that has nothing alone.
const open = "open"

// claims says what a row alone has.
func claims(r state.Row) string {
	if all := append(slices.Clone(r.Scopes), r.Packages...); len(all) > 0 {
		said := "for " + strings.Join(all, ", ") + " alone"
		if r.PublishTo != "" {
			said += "; writes go to " + r.PublishTo
		}
		return said
	}
	return open
}

// check says what is wrong with a table, as mirror.NewTable does when it is served.
func check(table state.Table) error {
	rows := make([]mirror.Registry, len(table.Rows))
	for i, r := range table.Rows {
		rows[i] = registryOf(r)
	}
	_, err := mirror.NewTable(rows...)
	return err
}

// registryOf is a row without its mirror.
func registryOf(r state.Row) mirror.Registry {
	reg := mirror.Registry{Label: r.Label, Scopes: r.Scopes, PublishTo: r.PublishTo}
	for _, p := range r.Packages {
		reg.Names = append(reg.Names, npm.Name(p))
	}
	return reg
}
