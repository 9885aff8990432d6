package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/ipfs/boxo/ipns"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// errNotRunning is returned when no daemon answers and there is no one mirror
// in the state to look at.
var errNotRunning = errors.New("no registry-mirror runs on this state")

// statusJSON is mirror.Status with its sources summed up, so that a script finds
// the two figures that matter most at the top.
type statusJSON struct {
	mirror.Status
	URL               string               `json:"url,omitempty"`
	Cache             *mirror.CacheStatus  `json:"cache,omitempty"`
	BytesBySource     mirror.Bytes         `json:"bytes_by_source"`
	TarballsBySource  mirror.Bytes         `json:"tarballs_by_source"`
	DocumentsBySource mirror.Bytes         `json:"documents_by_source"`
	Kinds             mirror.BytesBySource `json:"bytes_by_kind_and_source"`
}

func syncCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common}
	cmd := &cobra.Command{
		Use:   "sync [ADDRESS]...",
		Short: "Resolve the names and bring the lists up to date now",
		Long: `Asks the running daemon to resolve its names at once; where none runs, does it
for the registries that were added and for each ADDRESS (or the one registry in this
state) and ends.

A registry whose key was followed by its successor has another name, which its
releases announce. Where none of them can come any more, since the old key is in other
hands, --follow says that name. It is taken only where it is the one that was promised.`,
		Example: `  registry-mirror sync
  registry-mirror sync --ipfs k51...
  registry-mirror sync --follow k51...               # its successor, as its owner told you`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := state.Dir(common.State)
			path := dir.Socket("registry-mirror")
			var status mirror.TableStatus
			var err error
			if s.follow != "" {
				at, err := parseAddress(s.follow)
				if err == nil && at.root.Defined() {
					err = fmt.Errorf("%q is one release, and not a name: %w", s.follow, errNoAddress)
				}
				if err != nil {
					return fmt.Errorf("--follow: %w", err)
				}
				s.successor = at.name
			}
			if socket.Alive(cmd.Context(), path) {
				status, err = s.ask(cmd, path, args)
			} else if args, err = oneName(dir, args, "`registry-mirror sync --ipfs NAME` says which"); err == nil {
				if status, err = s.syncOnce(cmd.Context(), cmd, args); err == nil {
					tellAlone(cmd, status)
				}
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if common.JSON {
				return printJSON(out, status)
			}
			if !cli.IsTerminal(out) && !common.Verbose {
				return nil
			}
			for _, r := range status.Registries {
				if len(status.Registries) > 1 {
					fmt.Fprintf(out, "%s: ", r.Registry)
				}
				if _, err := fmt.Fprintf(out, "release %d, %s\n", r.Release.Number, cli.Count(r.Release.Packages, "package")); err != nil {
					return err
				}
			}
			return nil
		},
	}
	s.bind(cmd)
	cmd.Flags().StringVar(&s.follow, "follow", "", "name that the registry has now; it must be the successor that was promised")
	return cmd
}

// tellAlone says of which registries nobody but this machine's own node was heard: what
// it holds may be old.
func tellAlone(cmd *cobra.Command, status mirror.TableStatus) {
	for _, r := range status.Registries {
		heard := slices.ContainsFunc(r.Routes, func(o mirror.RouteStatus) bool { return o.Name != "node" && o.Sequence > 0 })
		if r.Node == nil || r.Node.Peers > 0 || heard || r.Release.Number == 0 {
			continue
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "registry-mirror: %s: no peer is connected: release %d is what is held here, by this node's own word\n", shown(r.Name), r.Release.Number)
	}
}

func statusCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say what is served, how fresh it is and where its bytes came from",
		Example: "  registry-mirror status --json | jq .bytes_by_source",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := state.Dir(common.State).Socket("registry-mirror")
			if !socket.Alive(cmd.Context(), path) {
				return errNotRunning
			}
			status, err := ask(cmd.Context(), path, http.MethodGet, "/status")
			if err != nil {
				return err
			}
			if common.JSON {
				return printJSON(cmd.OutOrStdout(), status)
			}
			return printStatus(cmd.OutOrStdout(), status)
		},
	}
}

// errOtherName is returned for another name than the running daemon's.
var errOtherName = errors.New("the running registry-mirror serves another name")

// ask makes the running daemon sync. What else is asked for must fit it.
func (s *source) ask(cmd *cobra.Command, path string, args []string) (mirror.TableStatus, error) {
	if err := refuseSources(cmd); err != nil {
		return mirror.TableStatus{}, err
	}
	if len(args) > 0 {
		status, err := ask(cmd.Context(), path, http.MethodGet, "/status")
		if err != nil {
			return status, err
		}
		dir := state.Dir(s.State)
		table, err := dir.Table()
		if err != nil {
			return status, err
		}
		for _, text := range args {
			at, _, err := locate(cmd.Context(), dir, &table, text, nil)
			if err != nil {
				return status, err
			}
			is := func(r mirror.RegistryStatus) bool {
				return shown(r.Name) == at.String() || r.Told != "" && shown(r.Told) == at.String()
			}
			if !slices.ContainsFunc(status.Registries, is) {
				return status, fmt.Errorf("sync %s: %w, %s", at, errOtherName, shown(status.Registries[0].Name))
			}
		}
	}
	what := "/sync"
	if s.follow != "" {
		what += "?follow=" + s.successor.String()
	}
	status, err := ask(cmd.Context(), path, http.MethodPost, what)
	return status, syncedThere(err)
}

// told is an error of the daemon's, which came as text, with the sentinel that it
// stands for.
type told struct {
	text string
	is   error
}

func (t told) Error() string { return t.text }
func (t told) Unwrap() error { return t.is }

// toldOf is text as the first of known that it has the words of, nil where it has none's.
func toldOf(text string, known ...error) error {
	for _, k := range known {
		if strings.Contains(text, k.Error()) {
			return told{text, k}
		}
	}
	return nil
}

// syncedThere gives a refusal of the daemon's the code and hint that the same sync has
// where none runs.
func syncedThere(err error) error {
	var r *socket.Refusal
	if errors.As(err, &r) {
		switch r.Status {
		case http.StatusGatewayTimeout:
			return told{r.Error(), mirror.ErrNoRecord}
		case http.StatusConflict:
			return told{r.Error(), mirror.ErrNoSuccessor}
		}
	}
	return err
}

const readsWhereTold = "a running registry-mirror reads from where it was told to"

// refuseSources refuses flags that say where to read from: a daemon runs.
func refuseSources(cmd *cobra.Command) error {
	for _, flag := range []string{"ipfs", "gateway", "route", "peer", "registry"} {
		if cmd.Flags().Changed(flag) {
			return cli.Usagef("--%s: %s", flag, readsWhereTold)
		}
	}
	return nil
}

// oneName is what was typed, or nothing where registries were added, else the
// only mirror in the state; way says how one of several is named. A mirror of a name of
// which no record ever came, as of one that was mistyped, is none beside those of others.
func oneName(dir state.Dir, args []string, way string) ([]string, error) {
	table, err := dir.Table()
	if err != nil {
		return nil, err
	}
	if len(args)+len(table.Rows) > 0 {
		return args, nil
	}
	entries, err := os.ReadDir(dir.Mirror(""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names, empty []string
	for _, e := range entries {
		name := e.Name()
		if _, err := ipns.NameFromString(name); err == nil && !mirror.Followed(dir.Mirror(name)) {
			empty = append(empty, name)
			continue
		} else if err != nil {
			name = "/ipfs/" + name
		}
		if _, err := parseAddress(name); err == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		names = empty
	}
	switch len(names) {
	case 0:
		return nil, errNotRunning
	case 1:
		return names, nil
	}
	return nil, cli.Hint(cli.Usagef("this state has %d mirrors: %s; name one", len(names), strings.Join(names, ", ")),
		way+"; `registry-mirror remove NAME` drops one that is not wanted")
}

// byRegistry is how commands other than sync are told of one mirror.
const byRegistry = "--registry NAME says which"

// bindRegistry binds the flag that names one mirror of several.
func (s *source) bindRegistry(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.registry, "registry", "", "address of the registry to read, where no daemon runs and nothing was added")
}

// one is oneName for a command that takes --registry.
func (s *source) one() ([]string, error) {
	dir := state.Dir(s.State)
	if s.registry == "" {
		return oneName(dir, nil, byRegistry)
	}
	table, err := dir.Table()
	if err == nil && len(table.Rows) > 0 {
		err = cli.Hint(cli.Usagef("--registry: registries were added here, and each package is looked up in the one whose it is"), "leave it out; `registry-mirror list` shows them")
	}
	return []string{s.registry}, err
}

// ask speaks to the daemon that runs on this state.
func ask(ctx context.Context, path, method, what string) (s mirror.TableStatus, err error) {
	err = socket.Call(ctx, path, method, what, &s)
	if err == nil && len(s.Registries) == 0 {
		err = errors.New("the running registry-mirror answers as another version does: start it anew")
	}
	return s, err
}

func summed(s mirror.Status) statusJSON {
	k := s.BytesBySource
	add := func(a, b mirror.Bytes) mirror.Bytes {
		return mirror.Bytes{Cache: a.Cache + b.Cache, Bitswap: a.Bitswap + b.Bitswap, CAR: a.CAR + b.CAR, Upstream: a.Upstream + b.Upstream}
	}
	return statusJSON{
		Status: s, BytesBySource: add(add(k.Tarballs, k.Documents), k.Directories),
		TarballsBySource: k.Tarballs, DocumentsBySource: k.Documents, Kinds: k,
	}
}

// printJSON prints one registry's object, or one of several.
func printJSON(w io.Writer, s mirror.TableStatus) error {
	if len(s.Registries) == 1 && len(s.Registries[0].Scopes)+len(s.Registries[0].Claims) == 0 {
		one := summed(s.Registries[0].Status)
		one.Cache, one.URL = s.Cache, s.URL
		return cli.PrintJSON(w, one)
	}
	type row struct {
		Registry string     `json:"registry"`
		Scopes   []string   `json:"scopes,omitempty"`
		Claims   []npm.Name `json:"claims,omitempty"`
		Publish  string     `json:"publish_to,omitempty"`
		statusJSON
	}
	all := struct {
		URL        string              `json:"url,omitempty"`
		Registries []row               `json:"registries"`
		Overlaps   []mirror.Overlap    `json:"overlaps,omitempty"`
		Cache      *mirror.CacheStatus `json:"cache,omitempty"`
	}{URL: s.URL, Overlaps: s.Overlaps, Cache: s.Cache}
	for _, r := range s.Registries {
		all.Registries = append(all.Registries, row{r.Registry, r.Scopes, r.Claims, r.PublishTo, summed(r.Status)})
	}
	return cli.PrintJSON(w, all)
}

func printStatus(w io.Writer, s mirror.TableStatus) error {
	for i, r := range s.Registries {
		if len(s.Registries) > 1 || len(r.Scopes)+len(r.Claims) > 0 {
			if i > 0 {
				fmt.Fprintln(w)
			}
			row := state.Row{Scopes: r.Scopes, PublishTo: r.PublishTo}
			for _, n := range r.Claims {
				row.Packages = append(row.Packages, string(n))
			}
			fmt.Fprintf(w, "registry  %s, %s\n", r.Registry, claims(row))
		}
		if err := printOne(w, r.Status); err != nil {
			return err
		}
		if r.Node != nil && r.Node.Share && len(r.Scopes)+len(r.Claims) > 0 {
			if _, err := fmt.Fprintln(w, "shared    nothing of this registry, for it claims names"); err != nil {
				return err
			}
		}
	}
	if s.URL != "" {
		if _, err := fmt.Fprintf(w, "address   %s\n", s.URL); err != nil {
			return err
		}
	}
	if c := s.Cache; c != nil {
		bound := "no bound"
		if c.Bound > 0 {
			size := cli.Size(c.Bound)
			bound = "at most " + size.String()
		}
		if _, err := fmt.Fprintf(w, "cache     %d bytes, %s; %s pinned\n", c.Bytes, bound, cli.Count(c.Pins, "package")); err != nil {
			return err
		}
	}
	for _, o := range s.Overlaps {
		if _, err := fmt.Fprintf(w, "warning   %s is claimed by %s, and %s has one too; it is never taken from there\n", o.Name, o.Claim, o.Open); err != nil {
			return err
		}
	}
	return nil
}

func printOne(w io.Writer, s mirror.Status) error {
	fmt.Fprintf(w, "name      %s\n", shown(s.Name))
	if s.Told != "" {
		fmt.Fprintf(w, "told      /ipns/%s, whose promised successor that is\n", s.Told)
	}
	if s.Successor != "" {
		fmt.Fprintf(w, "successor /ipns/%s is announced as promised; no record of it yet\n", s.Successor)
	}
	if s.Release.Number == 0 {
		fmt.Fprintln(w, "release   none yet")
	} else {
		fmt.Fprintf(w, "release   %d of %s, %s, %s\n", s.Release.Number, cli.Time(s.Release.Created), cli.Count(s.Release.Packages, "package"), cli.Count(s.Release.Versions, "version"))
		if s.Release.Part > 0 {
			fmt.Fprintf(w, "part      %s of it, which bundles brought; of others nothing newer is known\n", cli.Count(s.Release.Part, "name"))
		}
	}
	if s.At != "" {
		fmt.Fprintf(w, "at        %s: what came later is not served\n", s.At)
	}
	if s.Record.Sequence > 0 {
		stale := ""
		if s.Stale {
			stale = " (expired: what is held is served all the same)"
			if s.TooOld {
				stale = " (expired for longer than --max-stale: nothing is served)"
			}
		}
		fmt.Fprintf(w, "record    sequence %d, valid until %s%s\n", s.Record.Sequence, cli.Time(s.Record.EOL), stale)
	}
	for _, r := range s.Routes {
		if !strings.HasPrefix(r.Name, "route ") {
			continue // the record's line and the node's say it
		}
		switch stale := ""; {
		case r.Error != "":
			fmt.Fprintf(w, "route     %s: %s\n", strings.TrimPrefix(r.Name, "route "), r.Error)
		default:
			if r.Expired {
				stale = ", which has expired"
			}
			fmt.Fprintf(w, "route     %s has sequence %d%s\n", strings.TrimPrefix(r.Name, "route "), r.Sequence, stale)
		}
	}
	if s.Equivocations > 0 {
		fmt.Fprintf(w, "refused   %s that the owner does not sign; mirror/NAME/evidence has them\n", cli.Count(int(s.Equivocations), "record"))
	}
	if s.Error != "" {
		fmt.Fprintf(w, "problem   %s\n", strings.ReplaceAll(s.Error, "\n", "; "))
	}
	if s.Expired {
		fmt.Fprintln(w, "hint      on a network that is cut off, `daemon --accept-stale` follows a record that has expired; else: is the clock right?")
	}
	if s.IntegrityFailures > 0 {
		fmt.Fprintf(w, "withheld  %s: the bytes at hand are not what the packument says\n", cli.Count(int(s.IntegrityFailures), "tarball"))
	}
	if s.Unavailable > 0 {
		fmt.Fprintf(w, "lacking   %s that no source could answer; the last: %s\n", cli.Count(int(s.Unavailable), "request"), s.LastUnavailable)
	}
	if s.Node != nil {
		fmt.Fprintf(w, "node      %s, %s\n", s.Node.Agent, cli.Count(s.Node.Peers, "peer"))
		if seen := seenBy(*s.Node); seen != "" {
			fmt.Fprintf(w, "network   %s\n", seen)
		}
	}
	b := summed(s).BytesBySource
	_, err := fmt.Fprintf(w, "bytes     %d held, %d bitswap, %d CAR, %d upstream; %s\n", b.Cache, b.Bitswap, b.CAR, b.Upstream, cli.Count(s.Requests, "request"))
	return err
}

// seenBy says what others see of a node and of what is read through it; "" where this
// process cannot know.
func seenBy(n ipfs.Info) string {
	switch {
	case n.Network == ipfs.Local && n.Share:
		return "local: nobody but this machine, so that what is shared reaches nobody else"
	case n.Network == ipfs.Local:
		return "local: nobody but this machine"
	case n.Network == ipfs.LAN && n.Share:
		return "lan, shared: whoever is on the same network finds this machine, is told which packages it has (" + cli.Count(n.Announced, "CID") + ") and may fetch what it holds"
	case n.Network == ipfs.LAN:
		return "lan: whoever is on the same network finds this machine and may fetch what it holds"
	case n.Network == ipfs.Public && n.Share:
		return "public, shared: everybody sees this machine's peer ID and address and which packages it has (" + cli.Count(n.Announced, "CID") + "), and may fetch what it holds"
	case n.Network == ipfs.Public:
		return "public, not shared: nothing held is announced, or given to others than the peers dialled; those that are asked for packages see this machine's address"
	}
	return ""
}
