package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// bundled are specs by package, in their order. It returns mirror.ErrOtherIntegrity where
// two lockfiles mean different bytes by one version.
func bundled(specs []pinSpec) (wanted []mirror.Bundled, err error) {
	at := map[string]int{}
	for _, p := range specs {
		i, ok := at[string(p.name)]
		if !ok {
			i = len(wanted)
			at[string(p.name)] = i
			wanted = append(wanted, mirror.Bundled{Name: p.name, Integrity: map[string]string{}})
			if p.version != "" {
				wanted[i].Versions = []string{p.version}
			}
		} else if p.version == "" || len(wanted[i].Versions) == 0 {
			wanted[i].Versions = nil // all of them
		} else {
			wanted[i].Versions = append(wanted[i].Versions, p.version)
		}
		if p.integrity == "" {
			continue
		}
		if other := wanted[i].Integrity[p.version]; other != "" && other != p.integrity {
			return nil, fmt.Errorf("%w: %s: one lockfile has %s, another %s", mirror.ErrOtherIntegrity, p, other, p.integrity)
		}
		wanted[i].Integrity[p.version] = p.integrity
	}
	return wanted, nil
}

func fetchCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common, address: defaultListen}
	var lockfiles []string
	cmd := &cobra.Command{
		Use:   "fetch [NAME | NAME@VERSION]...",
		Short: "Bring packages here before they are asked for",
		Long: `Fetches both documents of each package, and the tarballs of the versions named: of NAME
alone every version that the registry lists. The running daemon fetches them; where none
runs, this command does, from the registries that were added or the one in this state.
What is here already costs nothing, so that it goes on where it was interrupted.
Unlike what is pinned, it goes as --cache-size has it.`,
		Example: `  registry-mirror fetch --lockfile package-lock.json
  registry-mirror fetch --lockfile pnpm-lock.yaml express@4.18.2`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			specs, err := pinSpecs(cmd, args, lockfiles)
			if err != nil {
				return err
			}
			wanted, err := bundled(specs)
			if err != nil {
				return err
			}
			progress := cli.NewProgress(cmd.ErrOrStderr(), common.Logger(cmd.ErrOrStderr(), false))
			defer progress.End()
			all := []mirror.Pinned{}
			files := 0
			said := func(done int, got mirror.Pinned, err error) {
				if err != nil {
					got.Missing = append(got.Missing, err.Error())
				}
				all = append(all, got)
				files += got.Files
				progress.Update("fetched", done, len(wanted), 0)
				for _, why := range got.Missing {
					fmt.Fprintf(progress.Above(cmd.ErrOrStderr()), "registry-mirror: note: %s: %s\n", got.Name, why)
				}
			}
			path := state.Dir(common.State).Socket("registry-mirror")
			if socket.Alive(cmd.Context(), path) {
				if cmd.Flags().Changed("registry") {
					return cli.Usagef("--registry: %s", readsWhereTold)
				}
				err = fetchBy(cmd.Context(), path, wanted, said)
			} else {
				err = s.with(cmd, func(t *mirror.Table) error { return t.FetchAll(cmd.Context(), wanted, said) })
			}
			progress.End()
			if err != nil && !errors.Is(err, mirror.ErrNotHere) && !errors.Is(err, mirror.ErrOtherIntegrity) {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case common.JSON:
				err = errors.Join(cli.PrintJSON(out, map[string]any{"packages": all}), err)
			case cli.IsTerminal(out) || common.Verbose:
				_, printed := fmt.Fprintf(out, "%s, %s here\n", cli.Count(len(wanted), "package"), cli.Count(files, "file"))
				err = errors.Join(printed, err)
			}
			return err
		},
	}
	s.bindReading(cmd)
	s.bindRegistry(cmd)
	cmd.Flags().StringArrayVar(&lockfiles, "lockfile", nil, lockfileUsage)
	return cmd
}

const lockfileUsage = "lockfile of npm, pnpm, yarn or bun: exactly the versions in it; may be repeated"

// bindReading binds the flags of a command that reads from the registries for a while,
// as daemon does.
func (s *source) bindReading(cmd *cobra.Command) {
	s.bind(cmd)
	f := cmd.Flags()
	f.BoolVar(&s.offline, "offline", false, "ask nobody for anything: what is held is all there is")
	f.StringVar(&s.upstream, "upstream", "", "npm registry to fetch listed tarballs from that no peer gives (default: the one npm's configuration names)")
	f.BoolVar(&s.noUpstream, "no-upstream", false, "take tarballs from peers and gateways alone")
	f.BoolVar(&s.acceptStale, "accept-stale", false, "follow a record that has expired where there is no better one")
}

// fetchBy has the running daemon fetch.
func fetchBy(ctx context.Context, path string, wanted []mirror.Bundled, said func(int, mirror.Pinned, error)) error {
	var mu sync.Mutex
	done, missing := 0, 0
	var other []error
	next := make(chan mirror.Bundled)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for b := range next {
				call, cancel := context.WithTimeout(ctx, pinDeadline)
				query := url.Values{"name": {string(b.Name)}, "version": b.Versions}
				for version, integrity := range b.Integrity {
					query.Add("locked", version+" "+integrity)
				}
				got := mirror.Pinned{Name: b.Name}
				err := socket.Call(call, path, http.MethodPost, "/fetch?"+query.Encode(), &got)
				cancel()
				var r *socket.Refusal
				if errors.As(err, &r) {
					err = cmp.Or(toldOf(r.Text, mirror.ErrOtherIntegrity), err)
				}
				mu.Lock()
				if done++; ctx.Err() == nil {
					switch {
					case errors.Is(err, mirror.ErrOtherIntegrity):
						other = append(other, err)
					case err != nil || len(got.Missing) > 0:
						missing++
					}
					said(done, got, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, b := range wanted {
		if ctx.Err() != nil {
			break
		}
		next <- b
	}
	close(next)
	wg.Wait()
	if err := mirror.OtherIntegrity(other); err != nil && ctx.Err() == nil {
		return err
	}
	if ctx.Err() == nil && missing > 0 {
		return fmt.Errorf("fetch: %w: of %s something is missing", mirror.ErrNotHere, cli.Count(missing, "package"))
	}
	return ctx.Err()
}

// with opens the registries of this state, brings their lists up to date and calls do.
func (s *source) with(cmd *cobra.Command, do func(*mirror.Table) error) (err error) {
	ctx := cmd.Context()
	names, err := s.one()
	if err != nil {
		return err
	}
	s.defaultNode()
	t, close, err := s.open(cmd, names, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, close()) }()
	for end := time.Now().Add(patience); !s.offline; {
		err := t.Sync(ctx)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			if held := t.Status(ctx).Registries; len(held) > 0 && held[0].Release.Number > 0 {
				s.Logger(cmd.ErrOrStderr(), false).WarnContext(ctx, "the list is as it was when it came last", "error", err)
				break
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return do(t)
}

// defaultNode takes the state's node where nothing else is there to read from or to keep
// what is read in.
func (s *source) defaultNode() {
	if len(s.gateways) == 0 {
		s.ipfs = true
	}
}
