package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func statusCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say what is published and what the next run would do",
		Example: "  publisher status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.checkLifetime(); err != nil {
				return err
			}
			s, err := r.status(cmd)
			if err != nil {
				return err
			}
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	bindRoutes(cmd, r)
	bindLifetime(cmd, r) // the next run signs anew at half of it
	return cmd
}

// status asks the process that owns the index, else looks itself.
func (r *registry) status(cmd *cobra.Command) (s publish.StatusJSON, err error) {
	dir := state.Dir(r.State)
	ctx := cmd.Context()
	path := dir.Socket("publisher")
	if dir.IsHosted(r.name) {
		path = dir.HostedSocket(r.name, "publisher")
	}
	if socket.Alive(ctx, path) {
		err := socket.Call(ctx, path, http.MethodGet, "/status", &s)
		if err == nil && s.Registry != r.name {
			err = cli.Hint(fmt.Errorf("registry %q: another publisher, of %q, has this state: %w", r.name, s.Registry, publish.ErrLocked),
				"`publisher status --name "+s.Registry+"` asks that one; for the other, wait until it ends")
		}
		return s, err
	}
	log := r.Logger(cmd.ErrOrStderr(), false)
	o, err := r.open(ctx, look, log, cli.NewProgress(io.Discard, log))
	if errors.Is(err, index.ErrNoIndex) {
		k, err := r.find(dir)
		return publish.StatusJSON{Registry: r.name, Name: k.IPNSName.String(), Next: "build"}, err
	}
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	full, err := o.Status(ctx)
	return full.JSON(r.name), err
}

func printStatus(w io.Writer, s publish.StatusJSON) error {
	if s.Name != "" {
		fmt.Fprintf(w, "name      /ipns/%s\n", s.Name)
	}
	if s.Number == 0 {
		fmt.Fprintln(w, "release   none")
	} else {
		fmt.Fprintf(w, "release   %d of %s, %s, %s\n", s.Number, s.Created.Local().Format(time.DateTime), cli.Count(s.Packages, "package"), cli.Count(s.Versions, "version"))
		fmt.Fprintf(w, "list      %s\n", s.List.Root)
	}
	if s.Sequence > 0 {
		fmt.Fprintf(w, "record    sequence %d, valid for %s", s.Sequence, time.Duration(s.Remaining)*time.Second)
		if s.Confirmed.IsZero() {
			fmt.Fprint(w, ", not confirmed yet")
		}
		fmt.Fprintln(w)
	}
	for _, route := range s.Routes {
		switch {
		case route.Error != "":
			fmt.Fprintf(w, "route     %s: %s\n", route.Name, route.Error)
		case route.Sequence == 0:
			fmt.Fprintf(w, "route     %s has no record\n", route.Name)
		default:
			fmt.Fprintf(w, "route     %s has sequence %d, until %s\n", route.Name, route.Sequence, route.EOL.Local().Format(time.DateTime))
		}
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "problem   %s\n", s.Problem)
	}
	var back []string
	for _, one := range s.Withheld {
		if one.Reason == publish.RolledBackReason {
			back = append(back, string(one.Name))
			continue
		}
		fmt.Fprintf(w, "withheld  %s %s: %s (%s)\n", one.Name, one.Version, one.Reason, one.Detail)
	}
	if n := len(back); n > 0 {
		more := ""
		if n > 10 {
			back, more = back[:10], ", …"
		}
		fmt.Fprintf(w, "rolled back  %s, until they change upstream: %s%s\n", cli.Count(n, "package"), strings.Join(back, ", "), more)
	}
	_, err := fmt.Fprintf(w, "next      %s\n", s.Next)
	return err
}
