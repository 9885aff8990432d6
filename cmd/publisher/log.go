package main

import (
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// look opens the index alone, or where `registry-mirror up` or `publisher serve` has it,
// a copy that it makes. Done closes it, and takes the copy away.
func (r *registry) look(cmd *cobra.Command) (ix *index.Index, done func() error, err error) {
	dir := state.Dir(r.State)
	o := index.Options{Log: r.Logger(cmd.ErrOrStderr(), false)}
	ix, err = index.Open(dir.Index(r.name), o)
	if err == nil {
		return ix, ix.Close, nil
	}
	socketPath := r.socket()
	if !errors.Is(err, index.ErrLocked) || !socket.Alive(cmd.Context(), socketPath) {
		return nil, nil, err
	}
	var c publish.CopyJSON
	asked := socket.Call(cmd.Context(), socketPath, http.MethodPost, "/copy?"+url.Values{"registry": {r.name}}.Encode(), &c)
	if refusal := (*socket.Refusal)(nil); errors.Is(asked, socket.ErrNoRoute) || errors.As(asked, &refusal) && refusal.Status == http.StatusConflict {
		return nil, nil, err // it is another registry's, or of a time before it could
	}
	if asked != nil {
		return nil, nil, fmt.Errorf("look at registry %s: %w", r.name, asked)
	}
	if ix, err = index.Open(c.Directory, o); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(c.Directory))
	}
	return ix, func() error { return errors.Join(ix.Close(), os.RemoveAll(c.Directory)) }, nil
}

// socket is where the command that has the registry's index answers, if one runs.
func (r *registry) socket() string {
	dir := state.Dir(r.State)
	if dir.IsHosted(r.name) {
		return dir.HostedSocket(r.name, "publisher")
	}
	return dir.Socket("publisher")
}

// releaseJSON is one release of `log --json`.
type releaseJSON struct {
	Number    uint64    `json:"number"`
	Created   time.Time `json:"created"`
	CID       string    `json:"cid"`
	Root      string    `json:"list_root"`
	Overflow  string    `json:"list_overflow"`
	ListOf    uint64    `json:"list_of"`
	Packages  int       `json:"packages"`
	Versions  int       `json:"versions"`
	Sequence  uint64    `json:"sequence"`
	Signed    time.Time `json:"signed,omitzero"`
	Confirmed time.Time `json:"confirmed,omitzero"`
	Current   bool      `json:"current"`
	Collected bool      `json:"collected,omitempty"` // its directories are gone
}

func logCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "log",
		Short: "List the releases, the newest first",
		Long: `Lists the releases of the registry, the newest first: number, date, root, how many
packages and versions, the newest record that was signed for it, and whether that
was read back. A release that has the list of an earlier one says which; so a
rollback shows. One that was collected can be told of, and not rolled back to.`,
		Example: `  publisher log
  publisher log --json | jq '.releases[] | select(.current) | .number'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ix, done, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			oldest, err := ix.Oldest()
			if err != nil && !errors.Is(err, index.ErrNoRelease) {
				return err
			}
			releases := publish.Log(cmd.Context(), ix, nil, r.journals()...)
			return cli.PrintAll(cmd.OutOrStdout(), r.JSON, "releases", logged(releases, oldest), releaseJSON.line, nil, nil)
		},
	}
}

func logged(releases iter.Seq2[publish.Logged, error], oldest uint64) iter.Seq2[releaseJSON, error] {
	return func(yield func(releaseJSON, error) bool) {
		for l, err := range releases {
			if err != nil {
				yield(releaseJSON{}, err)
				return
			}
			v := releaseJSON{
				Number: l.Number, Created: l.Created, CID: l.Root.String(), Root: l.List.Root.String(), Overflow: l.List.Overflow.String(),
				ListOf: l.ListOf, Packages: l.Packages, Versions: l.Versions,
				Sequence: l.Sequence, Signed: l.Signed, Confirmed: l.Confirmed, Current: l.Current, Collected: l.Number < oldest,
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

func (v releaseJSON) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d  %s  %s  %s, %s", v.Number, cli.Time(v.Created), v.CID, cli.Count(v.Packages, "package"), cli.Count(v.Versions, "version"))
	switch {
	case v.Sequence == 0:
		b.WriteString("  not published")
	case v.Confirmed.IsZero():
		fmt.Fprintf(&b, "  record %d, not read back", v.Sequence)
	default:
		fmt.Fprintf(&b, "  record %d", v.Sequence)
	}
	if v.Current {
		b.WriteString(", current")
	}
	if v.ListOf != v.Number {
		fmt.Fprintf(&b, "  list of %d", v.ListOf)
	}
	if v.Collected {
		b.WriteString("  collected")
	}
	return b.String()
}
