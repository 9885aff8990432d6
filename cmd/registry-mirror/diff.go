package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/lockfile"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// maxManifest bounds the package.json beside a lockfile, in bytes.
const maxManifest = 4 << 20

func diffCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common}
	var locked string
	cmd := &cobra.Command{
		Use:   "diff A [B]",
		Short: "Say what changed from one release to another",
		Long: `Lists the packages that are new (+), changed (~) or gone (-) in release B since
release A, with the versions that were added (+), removed (-) or replaced (~), and the
dist-tags that moved. A and B are numbers, days (all of it, in UTC), RFC 3339 times or
now; without B it is now. Lines are sorted by name.

With --lockfile it is of the packages that a project locks: which of its versions were
withdrawn, and which newer ones within its ranges came. Under the same version the registry
may have another integrity than the lockfile: that is an error, with a code of its own.

The running daemon is asked; where none runs, the registries that were added are read,
or the only one in this state.`,
		Example: `  registry-mirror diff 41 42
  registry-mirror diff 2026-11-20 now --lockfile package-lock.json
  registry-mirror diff 2026-11-20 --json | jq -r '.packages[].name'`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			q := mirror.DiffQuery{From: args[0], To: append(args, "now")[1]}
			if err := q.Check(time.Now()); err != nil {
				return err
			}
			if locked != "" {
				if q.Lock, err = readLock(locked); err != nil {
					return err
				}
			}
			var compared []mirror.Compared
			var packages iter.Seq2[mirror.PackageDiff, error]
			path := state.Dir(common.State).Socket("registry-mirror")
			if socket.Alive(cmd.Context(), path) {
				if err := refuseSources(cmd); err != nil {
					return err
				}
				body, err := askDiff(cmd.Context(), path, q)
				if err != nil {
					return err
				}
				defer body.Close()
				if compared, packages, err = mirror.ReadDiff(body); err != nil {
					return err
				}
			} else {
				m, close, err := s.openBeside(cmd)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, close()) }()
				if compared, packages, err = m.Diff(cmd.Context(), q); err != nil {
					return err
				}
			}
			t := tally{compared: compared, lock: q.Lock}
			err = cli.PrintAll(cmd.OutOrStdout(), common.JSON, "packages", t.of(packages), packageLine, t.rest, t.line)
			if err == nil && t.other > 0 {
				err = fmt.Errorf("%w: %d of %s", mirror.ErrOtherIntegrity, t.other, cli.Count(t.locked, "locked version"))
			}
			if err == nil && t.unread > 0 {
				err = fmt.Errorf("%s %w", cli.Count(t.unread, "package"), errUnread)
			}
			return err
		},
	}
	s.bind(cmd)
	s.bindRegistry(cmd)
	cmd.Flags().StringVar(&locked, "lockfile", "", "lockfile of npm, pnpm, yarn or bun: only the packages in it, and what that means for it")
	return cmd
}

// errUnread is returned by diff where the content of packages that changed could not be
// asked for.
var errUnread = errors.New("could not be read: no peer is connected, nor is there another source that may have them")

// codeOtherIntegrity is the exit code of mirror.ErrOtherIntegrity: `doctor` has the one
// before it.
const codeOtherIntegrity = 11

// openBeside opens what there is in a state on which no daemon runs, and brings it up
// to date, where it can be.
func (s *source) openBeside(cmd *cobra.Command) (*mirror.Table, func() error, error) {
	args, err := s.one()
	if err != nil {
		return nil, nil, err
	}
	m, close, err := s.open(cmd, args, false)
	if err != nil {
		return nil, nil, err
	}
	if err := s.sync(cmd.Context(), m); err != nil {
		if cmd.Context().Err() != nil {
			return nil, nil, errors.Join(cmd.Context().Err(), close())
		}
		s.Logger(cmd.ErrOrStderr(), false).WarnContext(cmd.Context(), "no newer list was found than what is held", "error", err)
	}
	return m, close, nil
}

// askDiff asks the running daemon.
func askDiff(ctx context.Context, path string, q mirror.DiffQuery) (io.ReadCloser, error) {
	raw, err := json.Marshal(q.Lock)
	if err != nil {
		return nil, err
	}
	body, err := socket.Stream(ctx, path, http.MethodPost, "/diff?"+url.Values{"from": {q.From}, "to": {q.To}}.Encode(), bytes.NewReader(raw))
	var r *socket.Refusal
	if errors.As(err, &r) {
		err = cmp.Or(toldOf(r.Text, mirror.ErrMoment, mirror.ErrFuture, mirror.ErrNoRelease, mirror.ErrChain, mirror.ErrNotSynced), err)
	}
	return body, err
}

// readLock reads a lockfile with the ranges in it, and those in the package.json beside
// it, if there is one.
func readLock(path string) (*mirror.Lock, error) {
	f, err := lockfile.Open(path)
	if err != nil {
		return nil, err
	}
	lock := &mirror.Lock{Ranges: f.Ranges}
	for _, p := range f.Packages {
		lock.Packages = append(lock.Packages, mirror.LockedVersion{Spec: npm.Spec{Name: p.Name, Range: p.Version}, Integrity: p.Integrity})
	}
	path = filepath.Join(filepath.Dir(path), "package.json")
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return lock, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxManifest))
	if err != nil {
		return nil, err
	}
	var project struct {
		Dependencies         map[string]string `json:"dependencies"`
		DevDependencies      map[string]string `json:"devDependencies"`
		OptionalDependencies map[string]string `json:"optionalDependencies"`
	}
	if err := json.Unmarshal(raw, &project); err != nil {
		return nil, cli.Usagef("read %s: %w", path, err)
	}
	for _, of := range []map[string]string{project.Dependencies, project.DevDependencies, project.OptionalDependencies} {
		lock.Ranges = append(lock.Ranges, npm.Dependencies(of)...)
	}
	return lock, nil
}

// packageLine is a package's line, and one for each locked version of which there is
// something to say.
func packageLine(p mirror.PackageDiff) string {
	line := p.String()
	if p.Registry != "" {
		line += " (" + p.Registry + ")"
	}
	for _, l := range p.Locked {
		if l.Integrity != nil {
			line += fmt.Sprintf("\n!   locked %s: ANOTHER INTEGRITY: %s", l.Version, l.Integrity)
		}
		if l.State == "" && len(l.Newer) == 0 {
			continue
		}
		var what []string
		if l.State != "" {
			what = append(what, l.State)
		}
		if len(l.Newer) > 0 {
			what = append(what, "newer in range: "+strings.Join(l.Newer, " "))
		}
		line += "\n    locked " + l.Version + ": " + strings.Join(what, "; ")
	}
	return line
}

// tally counts what is printed.
type tally struct {
	compared             []mirror.Compared
	lock                 *mirror.Lock
	fresh, changed, gone int
	unread               int // of these
	// Versions that are locked; of those.
	locked, withdrawn, upgrade, other, unlisted, bare int
}

func (t *tally) of(packages iter.Seq2[mirror.PackageDiff, error]) iter.Seq2[mirror.PackageDiff, error] {
	names := map[npm.Spec]bool{}
	if t.lock != nil {
		for _, s := range t.lock.Packages {
			if !names[s.Spec] && checkable(s.Integrity) == "" {
				t.bare++
			}
			names[s.Spec] = true
		}
	}
	t.locked = len(names)
	return func(yield func(mirror.PackageDiff, error) bool) {
		for p, err := range packages {
			switch {
			case err != nil:
			case p.Change == index.IsNew:
				t.fresh++
			case p.Change == index.IsGone:
				t.gone++
			case p.Change == index.IsChanged:
				t.changed++
			}
			if p.Unread {
				t.unread++
			}
			for _, l := range p.Locked {
				if l.State == mirror.Withdrawn {
					t.withdrawn++
				}
				if l.State == mirror.Absent {
					t.unlisted++
				}
				if len(l.Newer) > 0 {
					t.upgrade++
				}
				if l.Integrity != nil {
					t.other++
				}
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

func (t *tally) rest() map[string]any {
	all := map[string]any{index.IsNew: t.fresh, index.IsChanged: t.changed, index.IsGone: t.gone}
	if t.unread > 0 {
		all["unread"] = t.unread
	}
	if len(t.compared) == 1 {
		all["from"], all["to"] = t.compared[0].From, t.compared[0].To
	} else {
		all["registries"] = t.compared
	}
	if t.lock != nil {
		all["locked"], all["withdrawn"], all["with_newer"], all["other_integrity"] = t.locked, t.withdrawn, t.upgrade, t.other
		all["unlisted"], all["no_integrity"] = t.unlisted, t.bare
	}
	return all
}

func (t *tally) line() string {
	var ends []string
	for _, c := range t.compared {
		end := fmt.Sprintf("release %s to %s", releaseText(c.From), releaseText(c.To))
		if c.Registry != "" {
			end = c.Registry + ", " + end
		}
		ends = append(ends, end)
	}
	line := strings.Join(ends, "; ")
	if t.lock != nil {
		line += ", of " + cli.Count(t.locked, "locked version")
	}
	line += fmt.Sprintf(": %d new, %d changed, %d gone", t.fresh, t.changed, t.gone)
	if t.lock != nil {
		line += fmt.Sprintf("; %d withdrawn, %d with newer in range, %d with another integrity", t.withdrawn, t.upgrade, t.other)
		if t.unlisted > 0 {
			line += fmt.Sprintf(", %d unlisted", t.unlisted)
		}
		if t.bare > 0 {
			line += fmt.Sprintf("; %d of %d have no integrity to compare", t.bare, t.locked)
		}
	}
	return line
}

func releaseText(r mirror.Release) string {
	return fmt.Sprintf("%d (%s)", r.Number, cli.Time(r.Created))
}
