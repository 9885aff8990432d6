package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/lockfile"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// errNotFetched is returned by pin where something is pinned and not here yet.
var errNotFetched = errors.New("pinned, and not all here yet")

// maxHinted bounds the names in a hint, in bytes.
const maxHinted = 200

// pinDeadline is for the daemon to fetch one package that is pinned.
const pinDeadline = 35 * time.Minute

// pinSpec is what pin and unpin name: a package, and one version or all.
type pinSpec struct {
	name      npm.Name
	version   string // "" for all
	integrity string // what a lockfile says that its bytes are; "" where nobody does
}

// pinSpecs reads arguments and lockfiles. What those have from elsewhere than a registry
// is said.
func pinSpecs(cmd *cobra.Command, args, lockfiles []string) (specs []pinSpec, err error) {
	for _, text := range args {
		at := strings.LastIndexByte(text, '@')
		version := ""
		if at > 0 {
			text, version = text[:at], text[at+1:]
			if err := npm.ParseVersion(version); err != nil {
				return nil, cli.Hint(cli.Usagef("%s@%s: %s takes a package or one version of it: %w", text, version, cmd.Name(), err), "write it as 4.18.2; the name alone is all versions that the registry lists")
			}
		}
		name, err := npm.ParseName(text)
		if err != nil {
			return nil, err
		}
		specs = append(specs, pinSpec{name: name, version: version})
	}
	for _, path := range lockfiles {
		f, err := lockfile.Open(path)
		if err != nil {
			return nil, err
		}
		specs = append(specs, pinsOf(f)...)
		var others []string
		for _, x := range f.Foreign {
			if x.Kind != lockfile.Workspace {
				others = append(others, x.String())
			}
		}
		if len(others) > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "registry-mirror: note: %s: of no registry, and left out: %s\n", path, strings.Join(others[:min(len(others), maxMissing)], ", "))
		}
	}
	if len(specs) == 0 {
		return nil, cli.Hint(cli.Usagef("nothing is named"), "name a package, as in express or express@4.18.2, or --lockfile package-lock.json")
	}
	return specs, nil
}

// pinsOf are the versions of a lockfile.
func pinsOf(f *lockfile.File) []pinSpec {
	specs := make([]pinSpec, len(f.Packages))
	for i, p := range f.Packages {
		specs[i] = pinSpec{p.Name, p.Version, checkable(p.Integrity)}
	}
	return specs
}

// lockedIn is bundled of what lockfiles lock.
func lockedIn(paths []string) ([]mirror.Bundled, error) {
	var specs []pinSpec
	for _, path := range paths {
		f, err := lockfile.Open(path)
		if err != nil {
			return nil, err
		}
		specs = append(specs, pinsOf(f)...)
	}
	return bundled(specs)
}

// checkable is what of an integrity can be checked, "" for nothing.
func checkable(integrity string) string {
	in, err := npm.ParseIntegrity(npm.Dist{Integrity: integrity})
	if err != nil {
		return ""
	}
	return in.String()
}

// call asks the running daemon to pin or unpin one of specs.
func (p pinSpec) call(ctx context.Context, path, method string) (got mirror.Pinned, err error) {
	ctx, cancel := context.WithTimeout(ctx, pinDeadline)
	defer cancel()
	query := url.Values{"name": {string(p.name)}, "version": {p.version}}
	err = socket.Call(ctx, path, method, "/pins?"+query.Encode(), &got)
	for _, known := range []error{mirror.ErrNoCache, mirror.ErrNotPinned, mirror.ErrPinned} {
		if err != nil && strings.HasSuffix(err.Error(), known.Error()) {
			return got, known // what the socket says is text
		}
	}
	return got, err
}

func (p pinSpec) String() string {
	if p.version == "" {
		return string(p.name)
	}
	return string(p.name) + "@" + p.version
}

// offlineCache opens the pins of a state whose daemon does not run.
func offlineCache(common *cli.Common, cmd *cobra.Command) (*mirror.Cache, error) {
	dir := state.Dir(common.State)
	if err := dir.Make(); err != nil {
		return nil, err
	}
	return mirror.OpenCache(mirror.CacheOptions{Dir: dir.Cache(), Log: common.Logger(cmd.ErrOrStderr(), false)})
}

func pinCommand(common *cli.Common) *cobra.Command {
	var lockfiles []string
	cmd := &cobra.Command{
		Use:   "pin [NAME | NAME@VERSION]...",
		Short: "Keep packages whatever happens, and fetch them",
		Long: `Keeps the documents and tarballs of packages out of what --cache-size lets go: of
NAME every version that the registry lists, now and later; of NAME@VERSION that one.
The running daemon fetches them at once, and again what a new release brings; where
none runs, the next one does.`,
		Example: `  registry-mirror pin express @types/node@20.1.0
  registry-mirror pin --lockfile package-lock.json`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			specs, err := pinSpecs(cmd, args, lockfiles)
			if err != nil {
				return err
			}
			path := state.Dir(common.State).Socket("registry-mirror")
			if !socket.Alive(cmd.Context(), path) {
				c, err := offlineCache(common, cmd)
				if err != nil {
					return err
				}
				for _, p := range specs {
					if err := c.Pin(p.name, p.version); err != nil {
						return errors.Join(err, c.Close())
					}
				}
				if err := c.Close(); err != nil {
					return err
				}
				if common.JSON {
					return cli.PrintJSON(cmd.OutOrStdout(), map[string]any{"packages": []mirror.Pinned{}})
				}
				_, err = fmt.Fprintln(cmd.ErrOrStderr(), "registry-mirror: note: no daemon runs on this state: the next one fetches what is pinned")
				return err
			}
			progress := cli.NewProgress(cmd.ErrOrStderr(), common.Logger(cmd.ErrOrStderr(), false))
			defer progress.End()
			all := []mirror.Pinned{}
			files, missing := 0, 0
			lacks := "" // what to unpin
			for i, p := range specs {
				progress.Update("fetched", i, len(specs), 0)
				got, err := p.call(cmd.Context(), path, http.MethodPost)
				if cmd.Context().Err() != nil {
					return cmd.Context().Err()
				}
				if err != nil {
					return fmt.Errorf("pin %s: %w", p, err)
				}
				all = append(all, got)
				files += got.Files
				if missing += len(got.Missing); len(got.Missing) > 0 {
					lacks += " " + cli.ShellWord(p.String())
				}
				for _, why := range got.Missing {
					fmt.Fprintf(progress.Above(cmd.ErrOrStderr()), "registry-mirror: note: %s: %s\n", p, why)
				}
			}
			progress.End()
			out := cmd.OutOrStdout()
			switch {
			case common.JSON:
				err = cli.PrintJSON(out, map[string]any{"packages": all})
			case cli.IsTerminal(out) || common.Verbose:
				_, err = fmt.Fprintf(out, "%s pinned, %s here\n", cli.Count(len(specs), "package"), cli.Count(files, "file"))
			}
			if err == nil && missing > 0 {
				if len(lacks) > maxHinted {
					lacks = " NAME"
				}
				err = cli.Hint(fmt.Errorf("pin: %w: %d missing", errNotFetched, missing),
					"the daemon tries again each minute, and when a new release comes; `registry-mirror unpin"+lacks+"` takes it back")
			}
			return err
		},
	}
	cmd.Flags().StringArrayVar(&lockfiles, "lockfile", nil, lockfileUsage)
	return cmd
}

func unpinCommand(common *cli.Common) *cobra.Command {
	var lockfiles []string
	cmd := &cobra.Command{
		Use:   "unpin [NAME | NAME@VERSION]...",
		Short: "Keep packages no longer than others",
		Long: `Takes back what pin was given. The files stay until they are the least recently used
and room is needed.`,
		Example: "  registry-mirror unpin express",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			specs, err := pinSpecs(cmd, args, lockfiles)
			if err != nil {
				return err
			}
			path := state.Dir(common.State).Socket("registry-mirror")
			unpin := func(p pinSpec) error {
				_, err := p.call(cmd.Context(), path, http.MethodDelete)
				return err
			}
			if !socket.Alive(cmd.Context(), path) {
				c, err := offlineCache(common, cmd)
				if err != nil {
					return err
				}
				defer c.Close()
				unpin = func(p pinSpec) error { return c.Unpin(p.name, p.version) }
			}
			for _, p := range specs {
				if err := unpin(p); err != nil {
					return fmt.Errorf("unpin %s: %w", p, err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&lockfiles, "lockfile", nil, lockfileUsage)
	return cmd
}

func pinsCommand(common *cli.Common) *cobra.Command {
	return &cobra.Command{
		Use:     "pins",
		Short:   "Show which packages are kept whatever happens",
		Example: "  registry-mirror pins",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var said struct {
				Pins []mirror.Pin `json:"pins"`
			}
			path := state.Dir(common.State).Socket("registry-mirror")
			if socket.Alive(cmd.Context(), path) {
				if err := socket.Call(cmd.Context(), path, http.MethodGet, "/pins", &said); err != nil {
					return err
				}
			} else {
				c, err := offlineCache(common, cmd)
				if err != nil {
					return err
				}
				said.Pins = c.Pins()
				if err := c.Close(); err != nil {
					return err
				}
			}
			if common.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), said)
			}
			for _, p := range said.Pins {
				for _, spec := range p.Specs() {
					if _, err := fmt.Fprintln(cmd.OutOrStdout(), spec); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
}
