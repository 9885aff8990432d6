package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
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
	BytesBySource     mirror.Bytes         `json:"bytes_by_source"`
	TarballsBySource  mirror.Bytes         `json:"tarballs_by_source"`
	DocumentsBySource mirror.Bytes         `json:"documents_by_source"`
	Kinds             mirror.BytesBySource `json:"bytes_by_kind_and_source"`
}

func syncCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common}
	cmd := &cobra.Command{
		Use:   "sync [NAME]",
		Short: "Resolve the name and bring the list up to date now",
		Long: `Asks the running daemon to resolve its name at once; where none runs, does it
for NAME (or the one registry in this state) and ends.

A registry whose key was followed by its successor has another name, which its
releases announce. Where none of them can come any more, since the old key is in other
hands, --follow says that name. It is taken only where it is the one that was promised.`,
		Example: `  registry-mirror sync
  registry-mirror sync --ipfs k51...
  registry-mirror sync --follow k51...               # its successor, as its owner told you`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := state.Dir(common.State)
			path := dir.Socket("registry-mirror")
			var status mirror.Status
			var err error
			if s.follow != "" {
				if s.successor, err = parseName(s.follow); err != nil {
					return err
				}
			}
			if socket.Alive(cmd.Context(), path) {
				status, err = s.ask(cmd, path, args)
			} else {
				var name string
				if name, err = oneName(dir, args); err == nil {
					status, err = s.syncOnce(cmd.Context(), cmd, name)
				}
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if common.JSON {
				return cli.PrintJSON(out, summed(status))
			}
			if !cli.IsTerminal(out) && !common.Verbose {
				return nil
			}
			_, err = fmt.Fprintf(out, "release %d, %s\n", status.Release.Number, cli.Count(status.Release.Packages, "package"))
			return err
		},
	}
	s.bind(cmd)
	cmd.Flags().StringVar(&s.follow, "follow", "", "name that the registry has now; it must be the successor that was promised")
	return cmd
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
				return cli.PrintJSON(cmd.OutOrStdout(), summed(status))
			}
			return printStatus(cmd.OutOrStdout(), status)
		},
	}
}

// errOtherName is returned for another name than the running daemon's.
var errOtherName = errors.New("the running registry-mirror serves another name")

// ask makes the running daemon sync. What else is asked for must fit it.
func (s *source) ask(cmd *cobra.Command, path string, args []string) (mirror.Status, error) {
	for _, flag := range []string{"ipfs", "gateway", "peer"} {
		if cmd.Flags().Changed(flag) {
			return mirror.Status{}, cli.Usagef("--%s: a running registry-mirror reads from where it was told to", flag)
		}
	}
	if len(args) == 1 {
		name, err := parseName(args[0])
		if err != nil {
			return mirror.Status{}, err
		}
		status, err := ask(cmd.Context(), path, http.MethodGet, "/status")
		if err != nil {
			return status, err
		}
		if status.Name != name.String() && status.Told != name.String() {
			return status, fmt.Errorf("sync %s: %w, %s", name, errOtherName, status.Name)
		}
	}
	if s.follow != "" {
		return ask(cmd.Context(), path, http.MethodPost, "/sync?follow="+s.successor.String())
	}
	return ask(cmd.Context(), path, http.MethodPost, "/sync")
}

// oneName is the name that was typed, else that of the only mirror in the state.
func oneName(dir state.Dir, args []string) (string, error) {
	if len(args) == 1 {
		return args[0], nil
	}
	entries, err := os.ReadDir(dir.Mirror(""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if len(entries) != 1 {
		return "", errNotRunning
	}
	return entries[0].Name(), nil
}

// ask speaks to the daemon that runs on this state.
func ask(ctx context.Context, path, method, what string) (s mirror.Status, err error) {
	err = socket.Call(ctx, path, method, what, &s)
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

func printStatus(w io.Writer, s mirror.Status) error {
	fmt.Fprintf(w, "name      /ipns/%s\n", s.Name)
	if s.Told != "" {
		fmt.Fprintf(w, "told      /ipns/%s, whose promised successor that is\n", s.Told)
	}
	if s.Successor != "" {
		fmt.Fprintf(w, "successor /ipns/%s is announced as promised; no record of it yet\n", s.Successor)
	}
	if s.Release.Number == 0 {
		fmt.Fprintln(w, "release   none yet")
	} else {
		fmt.Fprintf(w, "release   %d of %s, %s, %s\n", s.Release.Number, s.Release.Created.Local().Format(time.DateTime), cli.Count(s.Release.Packages, "package"), cli.Count(s.Release.Versions, "version"))
	}
	if s.Record.Sequence > 0 {
		stale := ""
		if s.Stale {
			stale = " (expired: what is held is served all the same)"
		}
		fmt.Fprintf(w, "record    sequence %d, valid until %s%s\n", s.Record.Sequence, s.Record.EOL.Local().Format(time.DateTime), stale)
	}
	if s.Equivocations > 0 {
		fmt.Fprintf(w, "refused   %s that the owner does not sign; mirror/NAME/evidence has them\n", cli.Count(int(s.Equivocations), "record"))
	}
	if s.Error != "" {
		fmt.Fprintf(w, "problem   %s\n", s.Error)
	}
	if s.Node != nil {
		fmt.Fprintf(w, "node      %s, %s\n", s.Node.Agent, cli.Count(s.Node.Peers, "peer"))
	}
	b := summed(s).BytesBySource
	_, err := fmt.Fprintf(w, "bytes     %d held, %d bitswap, %d CAR, %d upstream; %s\n", b.Cache, b.Bitswap, b.CAR, b.Upstream, cli.Count(s.Requests, "request"))
	return err
}
