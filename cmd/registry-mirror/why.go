package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func whyCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:   "why NAME[@VERSION]",
		Short: "Say where a package comes from, what was checked, or why it is missing",
		Long: `Asks the running daemon which registry answers for a name and why, in which release
the version first stood, by which sources its bytes came, and what was checked of them
by whose keys; and of what is missing, why. VERSION is a version or a dist-tag; without
it, what latest names.`,
		Example: `  registry-mirror why express
  registry-mirror why left-pad@1.3.0 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, version := args[0], ""
			if at := strings.LastIndexByte(text, '@'); at > 0 {
				text, version = text[:at], text[at+1:]
			}
			name, err := npm.ParseName(text)
			if err != nil {
				return err
			}
			path := state.Dir(common.State).Socket("registry-mirror")
			if !socket.Alive(cmd.Context(), path) {
				return errNotRunning
			}
			var a mirror.Account
			query := url.Values{"name": {string(name)}, "version": {version}}
			if err := socket.Call(cmd.Context(), path, http.MethodGet, "/why?"+query.Encode(), &a); err != nil {
				return fmt.Errorf("why %s: %w", args[0], err)
			}
			if common.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), a)
			}
			if err := printAccount(cmd.OutOrStdout(), a, version == ""); err != nil {
				return err
			}
			if hint := hintOf(cmd, a); hint != "" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "hint        %s\n", hint)
			}
			return err
		},
	}
}

// printAccount prints what is known; all says that the package was asked for, and not
// one version of it.
func printAccount(w io.Writer, a mirror.Account, all bool) error {
	spec := string(a.Name)
	if a.Version != "" {
		spec += "@" + a.Version
	}
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "%-11s %s\n", what, fmt.Sprintf(format, args...))
	}
	switch a.State {
	case mirror.Unsynced, mirror.TooOld: // of the registry
		fmt.Fprintf(w, "nothing is known of %s: %s\n", spec, a.Why)
	default:
		fmt.Fprintf(w, "%s is %s: %s\n", spec, a.State, a.Why)
	}
	if o := a.Owner; o.Address != "" {
		row("registry", "%s: %s", strings.TrimPrefix(o.Registry+", "+shown(o.Address), ", "), o.Because)
		for _, other := range o.Others {
			row("", "%s lists the name too, and is never asked for it", other)
		}
	}
	if r := a.Release; r != nil {
		row("release", "%d of %s, %s", r.Number, cli.Time(r.Created), r.Root)
	}
	if s := a.Since; s != nil {
		first := "it first stood in release %d, of %s"
		if s.AtLeast {
			first = "it stood in release %d, of %s; what was before is not held"
		}
		row("since", first, s.Number, cli.Time(s.Created))
	}
	if a.Manifest != nil && a.Manifest.Published != "" {
		row("published", "%s", a.Manifest.Published)
	}
	if !a.FirstSeen.IsZero() {
		row("first seen", "%s, by this state's follower", cli.Time(a.FirstSeen))
	}
	if t := a.Tarball; t != nil {
		row("tarball", "%s, %s, %s", t.File, t.CID, cli.Count(t.Size, "byte"))
		switch {
		case len(t.Arrivals) > 0:
			for _, from := range t.Arrivals {
				row("bytes", "by %s, %s", strings.TrimSpace(from.Source+" "+from.From), cli.Time(from.At))
			}
			if !t.Here {
				row("", "not all of it is here")
			}
		case t.Here:
			row("bytes", "here, and were before anybody asked this mirror for them")
		default:
			row("bytes", "not here yet")
		}
		row("integrity", "%s", cmp.Or(t.Integrity, t.Shasum, "none"))
	}
	if a.Document != "" {
		row("document", "%s in the package's directory %s", a.Document, a.Directory)
	}
	for _, c := range a.Checks {
		row("checked", "%s: %s, %s", c.What, c.Result, c.Detail)
	}
	if a.Signature != nil && a.Signature.Attestations {
		row("", "has attestations: `npm audit signatures` reads them")
	}
	if all {
		printNotListed(row, a.NotListed)
	}
	return nil
}

// printNotListed prints what the registry lacks: each with its reason, those without
// one together.
func printNotListed(row func(what, format string, args ...any), lacking []mirror.Held) {
	var reasonless []string
	shown := 0
	for _, h := range lacking {
		switch {
		case h.Reason == "":
			reasonless = append(reasonless, h.Version)
		case shown < maxMissing:
			row("not listed", "%s: %s: %s", cmp.Or(h.Version, "all"), h.Reason, h.Detail)
			shown++
		}
	}
	if more := len(lacking) - len(reasonless) - shown; more > 0 {
		row("not listed", "%d more; --json lists all", more)
	}
	if n := len(reasonless); n > 0 {
		first := strings.Join(reasonless[:min(n, maxMissing)], ", ")
		if n > maxMissing {
			first += ", …"
		}
		row("not listed", "%s that upstream dates, and that the publisher does not hold or upstream took back: %s", cli.Count(n, "version"), first)
	}
}

// hintOf is what a person can do about an account, "" for nothing.
func hintOf(cmd *cobra.Command, a mirror.Account) string {
	switch a.State {
	case mirror.Unlisted, mirror.Missing, mirror.Withheld:
		switch {
		case a.Pulled, a.Nowhere:
			return ""
		case a.NotSelected:
			return cli.Beside(cmd, "`follower add "+strings.TrimSuffix(string(a.Name)+"@"+a.Version, "@")+"` selects it")
		}
		return "`publisher withheld " + string(a.Name) + "` and `follower why " + string(a.Name) + "`, where the registry is published, know more"
	case mirror.Nobodys:
		return cli.Beside(cmd, "`registry-mirror list` shows what each claims; one that claims nothing is asked for all others")
	case mirror.Unreadable, mirror.Unsynced, mirror.TooOld:
		return cli.Beside(cmd, "`registry-mirror status` says who can be reached")
	case mirror.Refused:
		return "another version may do; whoever publishes this registry should know"
	}
	return ""
}
