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
			s, away, err := r.status(cmd)
			if err != nil {
				return err
			}
			if r.JSON {
				return errors.Join(away, cli.PrintJSON(cmd.OutOrStdout(), s))
			}
			return errors.Join(away, printStatus(cmd, s))
		},
	}
	bindRoutes(cmd, r)
	bindLifetime(cmd, r) // the next run signs anew at half of it
	return cmd
}

// status asks the process that owns the index, else looks itself. away is not nil
// where it could not look at the node.
func (r *registry) status(cmd *cobra.Command) (s publish.StatusJSON, away, err error) {
	dir := state.Dir(r.State)
	ctx := cmd.Context()
	if path := r.socket(); socket.Alive(ctx, path) {
		err := socket.Call(ctx, path, http.MethodGet, "/status", &s)
		if err == nil && s.Registry != r.name {
			err = cli.Hint(fmt.Errorf("registry %q: another publisher, of %q, has this state: %w", r.name, s.Registry, publish.ErrLocked),
				"`publisher status --name "+s.Registry+"` asks that one; for the other, wait until it ends")
		}
		return s, nil, err
	}
	log := r.Logger(cmd.ErrOrStderr(), false)
	o, err := r.open(ctx, look, log, cli.NewProgress(io.Discard, log))
	if errors.Is(err, index.ErrNoIndex) {
		k, err := r.find(dir)
		return publish.StatusJSON{Registry: r.name, Name: k.IPNSName.String(), Next: "build"}, nil, err
	}
	if err != nil {
		return s, nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	full, err := o.Status(ctx)
	return full.JSON(r.name), o.away, err
}

// statusLines is how much of what is withheld a status shows to people.
const statusLines = 50

func printStatus(cmd *cobra.Command, s publish.StatusJSON) error {
	w := cmd.OutOrStdout()
	if s.Name != "" {
		fmt.Fprintf(w, "name      /ipns/%s\n", s.Name)
	}
	if s.Number == 0 {
		fmt.Fprintln(w, "release   none")
	} else {
		fmt.Fprintf(w, "release   %d of %s, %s ago, %s, %s\n", s.Number, cli.Time(s.Created), seconds(s.Age), cli.Count(s.Packages, "package"), cli.Count(s.Versions, "version"))
		fmt.Fprintf(w, "list      %s\n", s.List.Root)
	}
	if s.Sequence > 0 {
		valid := "valid for " + seconds(s.Remaining).String()
		if s.Remaining <= 0 {
			valid = fmt.Sprintf("expired %s ago", seconds(-s.Remaining))
		}
		confirmed := "read back " + cli.Time(s.Confirmed)
		if s.Confirmed.IsZero() {
			confirmed = "not confirmed yet"
		}
		fmt.Fprintf(w, "record    sequence %d, %s, %s\n", s.Sequence, valid, confirmed)
		due := "now"
		if left := seconds(s.Remaining) - s.EOL.Sub(s.SigningDue); left > 0 {
			due = fmt.Sprintf("%s, in %s", cli.Time(s.SigningDue), left)
		}
		fmt.Fprintf(w, "signing   due %s\n", due)
	}
	for _, route := range s.Routes {
		switch {
		case route.Error != "":
			fmt.Fprintf(w, "route     %s: %s\n", route.Name, route.Error)
		case route.Sequence == 0:
			fmt.Fprintf(w, "route     %s has no record\n", route.Name)
		default:
			fmt.Fprintf(w, "route     %s has sequence %d, until %s\n", route.Name, route.Sequence, cli.Time(route.EOL))
		}
	}
	for _, p := range s.Peers {
		fmt.Fprintf(w, "peer      %s\n", p)
	}
	for _, f := range s.Former {
		fmt.Fprintf(w, "former    /ipns/%s: ", f.Name)
		switch {
		case f.Ended:
			fmt.Fprintf(w, "not renewed since %s\n", cli.Time(f.Until))
		case f.Problem != "":
			fmt.Fprintf(w, "kept up until %s, but: %s\n", cli.Time(f.Until), f.Problem)
		default:
			fmt.Fprintf(w, "kept up until %s, sequence %d\n", cli.Time(f.Until), f.Sequence)
		}
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "problem   %s\n", strings.ReplaceAll(s.Problem, "\n", "; "))
	}
	if s.Policy != "" {
		fmt.Fprintf(w, "policy    %s\n", s.Policy)
	}
	if !s.Due.IsZero() {
		fmt.Fprintf(w, "of age    the next version at %s\n", cli.Time(s.Due))
	}
	var back []string
	shown, more := 0, s.HeldMore
	for _, one := range s.Withheld {
		if one.Reason == publish.RolledBackReason {
			back = append(back, string(one.Name))
			continue
		}
		if shown++; shown > statusLines {
			more = true
			continue
		}
		fmt.Fprintf(w, "withheld  %s: %s (%s)\n", one.What(), one.Reason, one.Detail)
	}
	if more {
		fmt.Fprintln(w, "withheld  and more:", cli.Beside(cmd, "`publisher withheld`"), "lists them")
	}
	if n := len(back); n > 0 {
		more := ""
		if n > 10 {
			back, more = back[:10], ", …"
		}
		fmt.Fprintf(w, "rolled back  %s, until they change upstream: %s%s\n", cli.Count(n, "package"), strings.Join(back, ", "), more)
	}
	next := s.Next
	if s.Problem != "" {
		next += ", once the problem is no more"
	}
	_, err := fmt.Fprintf(w, "next      %s\n", next)
	return err
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
