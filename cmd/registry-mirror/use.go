package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/clients"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// errNoProject is returned where there is no package.json.
var errNoProject = errors.New("there is no package.json")

// whose is what use, unuse and doctor have in common: whose configuration is meant.
type whose struct {
	*cli.Common
	project string
	user    bool
	url     string
	known   bool // the mirror's address is more than the default: it was typed, or use wrote it
}

func (w *whose) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.project, "project", "", "`directory` of the project, with its package.json (default: this one)")
	f.BoolVar(&w.user, "user", false, "the user's own configuration, for all projects")
}

func (w *whose) bindURL(cmd *cobra.Command) {
	cmd.Flags().StringVar(&w.url, "registry", "http://"+defaultListen, "URL of the mirror, as clients reach it")
}

// mirror is the mirror's URL without a slash at its end.
func (w *whose) mirror() (string, error) {
	registry, err := npm.ParseRegistry(w.url)
	if err != nil {
		return "", cli.Hint(cli.Usagef("--registry: %w", err), "it is what `daemon` or `up` printed, as in http://"+defaultListen)
	}
	return registry, nil
}

// place is the configuration that is meant, and in which place a client meets it: for
// the user's, in the project here, if this is one.
func (w *whose) place() (place, in clients.Place, err error) {
	if w.user && w.project != "" {
		return place, in, cli.Usagef("--user and --project exclude one another")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return place, in, cli.Usagef("no home directory: %w", err)
	}
	dir, err := filepath.Abs(cmp.Or(w.project, "."))
	if err != nil {
		return place, in, err
	}
	place = clients.Place{Home: home, Getenv: os.Getenv}
	in = place
	if clients.IsProject(dir) {
		in.Project = dir
	} else if !w.user {
		return place, in, fmt.Errorf("%s: %w", dir, errNoProject)
	}
	if !w.user {
		place = in
	}
	return place, in, nil
}

func parseClients(args []string) (all []clients.Client, err error) {
	for _, arg := range args {
		c, err := clients.Parse(arg)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// note is what someone should know beside a change.
type note struct {
	Client clients.Client `json:"client"`
	clients.Source
}

func useCommand(common *cli.Common) *cobra.Command {
	w := &whose{Common: common}
	var scopes []string
	cmd := &cobra.Command{
		Use:   "use [npm | pnpm | yarn | yarn1 | bun]...",
		Short: "Have npm's clients use the mirror",
		Long: `Writes the configuration of clients so that they ask the mirror: of the project here,
or with --user of the user. With no client named, it is those for which there is
evidence: their lockfile in the project, or with --user their program on the path. yarn is
version 2 and later, yarn1 is yarn 1.

Everything else in those files stays as it is, byte for byte, and
` + "`registry-mirror unuse`" + ` brings back exactly what was there.

npm is told to leave addresses of registries out of its lockfiles, so that they work
without the mirror, too (omit-lockfile-registry-resolved).`,
		Example: `  registry-mirror use                  # this project's client
  registry-mirror use npm bun --user   # every project of mine
  registry-mirror use --scope @acme    # the packages of one scope alone
  registry-mirror unuse`,
		RunE: func(cmd *cobra.Command, args []string) error {
			registry, err := w.mirror()
			if err != nil {
				return err
			}
			for _, s := range scopes {
				if _, err := npm.ParseName(s + "/x"); err != nil || !strings.HasPrefix(s, "@") {
					return cli.Usagef("--scope %.80q: a scope is written as in @acme", s)
				}
			}
			place, in, err := w.place()
			if err != nil {
				return err
			}
			all, err := parseClients(args)
			if err != nil {
				return err
			}
			if len(all) == 0 {
				if all = place.Found(); len(all) == 0 {
					return clients.ErrNoEvidence
				}
			}
			was, err := npm.LoadConfig(os.Getenv, place.Project, place.Home)
			if err != nil {
				was = npm.Config{} // said by npm itself
			}
			settings := clients.Settings{Registry: registry, Scopes: scopes}
			keeper := &clients.Keeper{Dir: state.Dir(common.State).Clients()}
			before := []string{npm.DefaultRegistry(), registry, keeper.Used(place), keeper.Used(clients.Place{Home: place.Home, Getenv: place.Getenv})}
			foreign := was.Registry != "" && !slices.ContainsFunc(before, func(one string) bool { return one != "" && clients.Same(one, was.Registry) })
			changes, err := keeper.Use(place, all, settings)
			notes := []note{}
			for _, c := range all {
				for _, s := range place.Before(c, in, settings) {
					notes = append(notes, note{c, s})
				}
			}
			if e := w.said(cmd, changes, registry, notes); err == nil {
				err = e
			}
			if err == nil && len(scopes) == 0 && foreign {
				if u, e := url.Parse(was.Registry); e == nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "registry-mirror: note: npm used %s until now: if the daemon is to fetch from there, start it with --upstream\n", u.Redacted())
				}
			}
			if err == nil && slices.Contains(all, clients.NPM) && place.Project != "" {
				if _, e := os.Stat(filepath.Join(place.Project, "package-lock.json")); e == nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "registry-mirror: note: npm will leave the addresses of tarballs out of package-lock.json when it next writes it, which works with every registry; unuse does not put them back")
				}
			}
			return err
		},
	}
	w.bind(cmd)
	w.bindURL(cmd)
	cmd.Flags().StringArrayVar(&scopes, "scope", nil, "have only the packages of this scope looked up at the mirror; may be repeated")
	return cmd
}

func unuseCommand(common *cli.Common) *cobra.Command {
	w := &whose{Common: common}
	cmd := &cobra.Command{
		Use:   "unuse [npm | pnpm | yarn | yarn1 | bun]...",
		Short: "Bring back the configuration that was before use",
		Long: `Takes out of the configuration of clients what ` + "`registry-mirror use`" + ` put there, in the
project here or with --user the user's; with no client named, of all. What was there
before is back byte for byte, what was changed since stays changed, and a file that
was not there is no more.

npm config set, npm login and yarn config set write a file anew without its comments, and
with them goes what use had marked. Then a note in the state says what was there, and
the settings of registries are put back as they were.`,
		Example: "  registry-mirror unuse",
		RunE: func(cmd *cobra.Command, args []string) error {
			place, _, err := w.place()
			if err != nil {
				return err
			}
			all, err := parseClients(args)
			if err != nil {
				return err
			}
			keeper := &clients.Keeper{Dir: state.Dir(common.State).Clients()}
			changes, err := keeper.Unuse(place, all)
			if e := w.said(cmd, changes, "", nil); err == nil {
				err = e
			}
			return err
		},
	}
	w.bind(cmd)
	return cmd
}

// said prints what was changed to use registry, or back where that is "".
func (w *whose) said(cmd *cobra.Command, changes []clients.Change, registry string, notes []note) error {
	if changes == nil {
		changes = []clients.Change{}
	}
	out := cmd.OutOrStdout()
	if w.JSON {
		said := map[string]any{"changes": changes}
		if registry != "" {
			said["registry"], said["overridden_by"] = registry, notes
		}
		return cli.PrintJSON(out, said)
	}
	for _, n := range notes {
		only, what := "", n.Registry
		if n.Only != "" {
			only = " (" + n.Only + ")"
		}
		if what == "" {
			what = "another registry for the scope"
		}
		if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "registry-mirror: note: %s%s will not use it: %s names %s, and goes before\n", n.Client, only, n.Where, what); err != nil {
			return err
		}
	}
	if !cli.IsTerminal(out) && !w.Verbose {
		return nil
	}
	if len(changes) == 0 && registry == "" {
		_, err := fmt.Fprintln(out, "nothing here was changed by `registry-mirror use`")
		return err
	}
	for _, c := range changes {
		who := make([]string, len(c.Clients))
		for i, one := range c.Clients {
			who[i] = string(one)
		}
		what := "uses " + registry
		switch {
		case registry != "" && !c.Changed:
			what += " already"
		case registry != "":
		case c.Gone:
			what = "back as before: there was no such file"
		case c.Approximate:
			what = "its registries are back; another program had written it anew"
		default:
			what = "back as before"
		}
		if _, err := fmt.Fprintf(out, "%s: %s: %s\n", strings.Join(who, ", "), c.File, what); err != nil {
			return err
		}
	}
	return nil
}
