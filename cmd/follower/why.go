package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// account is all that is known of a package, or of one version of it.
type account struct {
	State    string           `json:"state"` // stored, known, queued, retrying, refused, removed, deleted or unknown
	Package  *ledger.Package  `json:"package,omitempty"`
	Version  *ledger.Version  `json:"version,omitempty"`
	Dropped  *ledger.Version  `json:"dropped,omitempty"` // what the version was, where upstream took it back
	Refused  []ledger.Refusal `json:"refused,omitempty"`
	Queue    []ledger.Retry   `json:"queue,omitempty"`
	Selected []wantJSON       `json:"selected,omitempty"` // lines of the selection that name it
}

func whyCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:   "why NAME[@VERSION]",
		Short: "Say what became of a package or version, and why",
		Example: `  follower why express
  follower why left-pad@1.3.0 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := parseItem(args[0])
			if err != nil {
				return err
			}
			sel, err := openSelection(cmd.Context(), state.Dir(common.State), ledger.Open)
			if err != nil {
				return err
			}
			defer sel.Close()
			a, err := explain(cmd, sel, key)
			if err != nil {
				return err
			}
			if common.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), a)
			}
			a.print(cmd, key)
			return nil
		},
	}
}

func explain(cmd *cobra.Command, sel selection, key ledger.Key) (account, error) {
	a := account{State: "unknown"}
	ctx := cmd.Context()
	p, err := sel.Package(ctx, key.Name)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return a, err
	default:
		a.Package = &p
	}
	refused, err := sel.Refusals(ctx, key.Name)
	if err != nil {
		return a, err
	}
	queue, err := sel.Queue(ctx, key.Name)
	if err != nil {
		return a, err
	}
	wants, err := sel.Wants(ctx)
	if err != nil {
		return a, err
	}
	for _, w := range wants {
		if w.All() || w.Spec.Name == key.Name || w.Scope != "" && w.Scope == key.Name.Scope() {
			a.Selected = append(a.Selected, wantJSON{w.Spec.Name, w.Spec.Range, w.Every, w.NoDeps, w.Exact, w.Scope, w.Newest, w.Days, w.Known})
		}
	}
	if key.Version != "" {
		refused = slices.DeleteFunc(refused, func(r ledger.Refusal) bool { return r.Version != key.Version })
		queue = slices.DeleteFunc(queue, func(r ledger.Retry) bool { return r.Version != key.Version })
		named := func(v ledger.Version) bool { return v.Version == key.Version }
		if i := slices.IndexFunc(p.Versions, named); i >= 0 {
			a.Version = &p.Versions[i]
		}
		if i := slices.IndexFunc(p.Dropped, named); i >= 0 {
			a.Dropped = &p.Dropped[i]
		}
	}
	a.Refused, a.Queue = refused, queue
	a.State = a.state(key)
	return a, nil
}

func (a account) state(key ledger.Key) string {
	own := func(version string) bool { return version == key.Version }
	switch {
	case a.Package != nil && a.Package.Deleted:
		return "deleted"
	case slices.ContainsFunc(a.Refused, func(r ledger.Refusal) bool { return own(r.Version) }):
		return "refused"
	case a.Version != nil, key.Version == "" && a.Package != nil && a.Package.Held > 0:
		return "stored"
	case slices.ContainsFunc(a.Queue, func(r ledger.Retry) bool { return own(r.Version) && !r.Fresh() }):
		return "retrying"
	case slices.ContainsFunc(a.Queue, func(r ledger.Retry) bool { return own(r.Version) }):
		return "queued"
	case a.Package != nil && key.Version == "":
		return "known"
	case a.Dropped != nil:
		return "removed"
	}
	return "unknown"
}

func (a account) print(cmd *cobra.Command, key ledger.Key) {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "%s is %s\n", item(key.Name, key.Version), a.State)
	if p := a.Package; p != nil {
		fmt.Fprintf(w, "document   %s, revision %s, asked for %s\n", p.Document.CID, orNone(p.Rev), cli.Time(p.Checked))
		fmt.Fprintf(w, "versions   %d stored of %d that it names\n", p.Held, p.Listed)
		if r := p.Removed; r != nil && a.Dropped == nil {
			fmt.Fprintf(w, "removed    %s, %s: %s\n", cli.Count(r.Versions, "version"), cli.Time(r.Time), r.Reason)
		}
	}
	if v := a.Dropped; v != nil {
		fmt.Fprintf(w, "removed    %s\n", removal(a.Package))
		fmt.Fprintf(w, "it was     %s, %s, %s, first seen %s\n", v.File, v.CID, cli.Count(v.Size, "byte"), cli.Time(v.FirstSeen))
	}
	if v := a.Version; v != nil {
		fmt.Fprintf(w, "tarball    %s, %s, %s, first seen %s\n", v.File, v.CID, cli.Count(v.Size, "byte"), cli.Time(v.FirstSeen))
		fmt.Fprintf(w, "checked    %s by upstream's %s; registry signature: %s\n", v.Integrity, orNone(v.Proof), orNone(v.Signature))
	}
	for _, r := range a.Refused {
		fmt.Fprintf(w, "refused    %s  %s: %s\n", item(r.Name, r.Version), r.Reason, r.Detail)
	}
	for _, r := range a.Queue {
		if r.Fresh() {
			fmt.Fprintf(w, "queued     %s  since %s\n", item(r.Name, r.Version), cli.Time(r.Queued))
			continue
		}
		fmt.Fprintf(w, "retrying   %s  attempt %d failed: %s; next at %s\n", item(r.Name, r.Version), r.Attempts, r.Detail, cli.Time(r.Next))
	}
	switch {
	case len(a.Selected) == 0 && a.Package == nil:
		fmt.Fprintf(w, "selected   no: %s selects it\n", cli.Beside(cmd, "`follower add "+string(key.Name)+"`"))
	case len(a.Selected) == 0:
		fmt.Fprintln(w, "selected   not by itself: something depends on it, or did")
	default:
		fmt.Fprintf(w, "selected   by %s\n", cli.Count(len(a.Selected), "line"))
	}
}

// removal says when and why a dropped version of p was taken away, as far as the
// ledger knows: of a package's removals it keeps the newest.
func removal(p *ledger.Package) string {
	r := p.Removed
	if r == nil {
		return "when and why is not recorded"
	}
	text := cli.Time(r.Time) + ", " + r.Reason
	if len(p.Dropped) > r.Versions {
		return "no later than " + text + ", the newest removal of several"
	}
	if meaning := removals[r.Reason]; meaning != "" {
		text += ": " + meaning
	}
	return text
}

var removals = map[string]string{
	ledger.RemovedDeleted:     "the package is gone upstream",
	ledger.RemovedUnpublished: "upstream's document no longer names it",
	ledger.RemovedSecurity:    "upstream put a security-holding package in its place",
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
