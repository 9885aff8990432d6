package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/route"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// bindOwn binds the settings that a registry has for itself.
func bindOwn(cmd *cobra.Command, r *registry) {
	bindParameters(cmd, r)
	bindRetain(cmd, r)
	bindRoutes(cmd, r)
	bindWitnesses(cmd, r)
	bindIdentity(cmd, r)
	bindRecord(cmd, r)
	bindMetrics(cmd, r)
}

func bindEvery(cmd *cobra.Command, r *registry, by time.Duration, usage string) {
	cmd.Flags().DurationVar(&r.every, "every", by, usage)
}

// named is the registry of a name with the settings that hold for it, and where each
// comes from that has no default.
func (r *registry) named(name string, s *cli.Settings) (*registry, map[string]string, error) {
	one := &registry{Common: r.Common, name: name, wait: r.wait}
	cmd := &cobra.Command{}
	bindOwn(cmd, one)
	bindEvery(cmd, one, 0, "")
	from, err := s.For(name, cmd.Flags())
	if err == nil {
		err = one.curate(s)
	}
	return one, from, err
}

// check refuses settings that cannot be.
func (r *registry) check() error {
	if err := r.checkRetain(); err != nil {
		return err
	}
	if err := r.checkRecord(); err != nil {
		return err
	}
	if err := r.checkMetrics(); err != nil {
		return err
	}
	for _, s := range r.routes {
		if _, err := route.Parse(s, nil); err != nil {
			return err
		}
	}
	if r.every < 0 {
		return cli.Hint(cli.Usagef("--every %s: it is no time", r.every), "5m publishes every five minutes, where there is something to publish")
	}
	return publish.CheckOrigin(r.gatewayOrigin)
}

// checkTables holds every registry's table to what it may be, whichever is worked on.
func (r *registry) checkTables(s *cli.Settings) error {
	written := s.Written()
	for _, name := range slices.Sorted(maps.Keys(s.Registries)) {
		if err := ipnskeys.CheckName(name); err != nil {
			return cli.Hint(cli.Usagef("%s: %s: %w", s.File, cli.RegistryTable(name), err), "a registry's table is called as its key is: `publisher key list`")
		}
		one, _, err := r.named(name, written)
		if err != nil {
			return err
		}
		if err := one.check(); err != nil {
			return cli.Usagef("%s: %s: %w", s.File, cli.RegistryTable(name), err)
		}
	}
	return nil
}

// curate reads the registry's policy. Without one it keeps that of its index.
func (r *registry) curate(s *cli.Settings) (err error) {
	if r.policy, r.policyName, err = policy.Read(s.Registries[r.name].Policy, r.name); err != nil {
		return cli.Usagef("%s: %s: %w", s.File, cli.PolicyTable(r.name), err)
	}
	return nil
}

// settingJSON is one line of `settings --json`.
type settingJSON struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
	From  string `json:"from"` // "default", "typed", a variable, or a file and its table
}

func settingsCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "settings",
		Short: "Say which settings hold for a registry, and where each comes from",
		Long: `Prints the settings that a registry has for itself, as publish would take them: from
the environment, else from its table [registries.NAME] in the configuration file, else
from the table [publisher] there, else the default. It opens nothing.`,
		Example: `  publisher settings --name acme`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			scratch := &cobra.Command{}
			one := &registry{Common: r.Common, name: r.name}
			bindOwn(scratch, one)
			bindEvery(scratch, one, 0, "")
			from, err := r.Settings.For(r.name, scratch.Flags())
			if err != nil {
				return err
			}
			all := []settingJSON{{"name", r.name, ""}}
			if all[0].From = "default"; cmd.Flags().Changed("name") {
				all[0].From = "as asked for"
			}
			scratch.Flags().VisitAll(func(f *pflag.Flag) {
				s := settingJSON{f.Name, f.Value.String(), cmp.Or(from[f.Name], "default")}
				if list, ok := f.Value.(pflag.SliceValue); ok {
					s.Value = list.GetSlice()
				}
				all = append(all, s)
			})
			p := settingJSON{"policy", "as its index has it", "default"}
			if r.policy != nil {
				p.Value, p.From = cmp.Or(r.policy.Canonical(), "none"), r.Settings.File+" "+cli.PolicyTable(r.name)
			}
			all = append(all, p)
			if r.policy.Canonical() != "" {
				all = append(all, settingJSON{"policy-name", r.policyName + " " + r.policy.Hash(), p.From})
			}
			out := cmd.OutOrStdout()
			if r.JSON {
				return cli.PrintJSON(out, map[string]any{"registry": r.name, "settings": all})
			}
			for _, s := range all {
				value := fmt.Sprint(s.Value)
				if list, ok := s.Value.([]string); ok {
					value = strings.Join(list, " ")
				}
				if _, err := fmt.Fprintf(out, "%-14s  %s  (%s)\n", s.Key, cmp.Or(value, "-"), s.From); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// ofState are the registries of this state that can be published from here: those
// that are named, else each that has a key and signs with it here.
func (r *registry) ofState(ctx context.Context, w io.Writer, names []string) ([]*registry, error) {
	if len(names) == 0 {
		keys, err := ipnskeys.List(state.Dir(r.State).Keys())
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k.Signer != ipnskeys.SignerFile || k.File != "" {
				names = append(names, k.Name)
			}
		}
		r.warnKeyless(ctx, r.Logger(w, false), keys)
		if len(names) == 0 {
			return nil, cli.Hint(fmt.Errorf("no registry of %s can be published from here: %w", r.State, ipnskeys.ErrNoKey), "`publisher key new` mints a key, and so begins a registry")
		}
	}
	var all []*registry
	for _, name := range names {
		if slices.ContainsFunc(all, func(one *registry) bool { return one.name == name }) {
			return nil, cli.Usagef("registry %s is named twice", name)
		}
		one, _, err := r.named(name, r.Settings)
		if err == nil {
			_, err = one.find(state.Dir(r.State))
		}
		if err == nil {
			err = one.check()
		}
		if err == nil && one.metrics != "" && slices.ContainsFunc(all, func(other *registry) bool { return other.metrics == one.metrics }) {
			err = cli.Hint(cli.Usagef("--metrics %s is of another registry too", one.metrics), "one file is of one registry: give each its own in its table of the configuration file")
		}
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", name, err)
		}
		all = append(all, one)
	}
	return all, nil
}

// warnKeyless says which tables of the configuration file are of no registry of this
// state: a misspelt one holds for none.
func (r *registry) warnKeyless(ctx context.Context, log *slog.Logger, keys []ipnskeys.Key) {
	for _, name := range slices.Sorted(maps.Keys(r.Settings.Registries)) {
		if !slices.ContainsFunc(keys, func(k ipnskeys.Key) bool { return k.Name == name }) {
			log.WarnContext(ctx, "a registry of the configuration has no key here", "registry", name)
		}
	}
}

// lasting says that publishing again changes nothing: someone has to look.
func lasting(err error) bool {
	return publish.Lasting(err) || errors.Is(err, ipnskeys.ErrNoKey)
}

// worst is the code that several registries end with: a lasting error's before one
// that may pass, and of two of a kind the higher.
type worst struct {
	code    int
	lasting bool
}

func (w *worst) add(code int, lasting bool) {
	if !w.lasting && lasting || w.lasting == lasting && code > w.code {
		w.code, w.lasting = code, lasting
	}
}

func (w worst) err() error {
	if w.code == cli.CodeOK {
		return nil
	}
	return cli.Exit(w.code)
}

// turnJSON is what `publish --all --json` and `run --json` print of a registry.
type turnJSON struct {
	Registry string          `json:"registry"`
	Skipped  bool            `json:"skipped,omitempty"` // it is not due yet
	Due      time.Time       `json:"due,omitzero"`      // when it will be
	Result   *publish.Result `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
	Code     int             `json:"code"`
}

// publishAll publishes each registry that is due by its own schedule, one after the
// other. What one fails with does not stop the next.
func (r *registry) publishAll(cmd *cobra.Command) error {
	all, err := r.ofState(cmd.Context(), cmd.ErrOrStderr(), nil)
	if err != nil {
		return err
	}
	turns := make([]turnJSON, 0, len(all))
	var end worst
	for _, one := range all {
		began := time.Now()
		t := turnJSON{Registry: one.name}
		if t.Due, err = one.due(); err != nil {
			return err
		}
		if socket.Alive(cmd.Context(), state.Dir(r.State).HostedSocket(one.name, "publisher")) {
			began = time.Time{} // publisher serve publishes it
		}
		if t.Skipped = began.Before(t.Due) || began.IsZero(); t.Skipped {
			turns = append(turns, t)
			continue
		}
		var result publish.Result
		err = one.with(cmd, sign, func(ctx context.Context, o *opened) (err error) {
			if result, err = o.Publish(ctx); err != nil {
				return err
			}
			o.CollectIfDue(ctx)
			return ctx.Err()
		})
		if err == nil {
			err = one.ran(began)
		}
		if cmd.Context().Err() != nil {
			return err
		}
		one.measure(cmd, result, err)
		if t.Due = (time.Time{}); one.every > 0 && err == nil {
			t.Due = began.Add(one.every)
		}
		if result.Number > 0 {
			t.Result = &result
		}
		if err != nil {
			err = fmt.Errorf("registry %s: %w", one.name, err)
			t.Error, t.Code = err.Error(), cli.Report(cmd.ErrOrStderr(), cmd, err, causes)
			end.add(t.Code, lasting(err))
		} else if out := cmd.OutOrStdout(); !r.JSON && (cli.IsTerminal(out) || r.Verbose) {
			fmt.Fprintf(out, "registry %s\n", one.name)
			if err := printResult(out, result); err != nil {
				return err
			}
		}
		turns = append(turns, t)
	}
	if r.JSON {
		if err := cli.PrintJSON(cmd.OutOrStdout(), turns); err != nil {
			return err
		}
	}
	return end.err()
}

// due is when the registry is to be published next by its schedule: at once where it
// has none, or was never published by one. A tenth of the schedule is let be, for
// cron does not come to the second.
func (r *registry) due() (time.Time, error) {
	info, err := os.Stat(state.Dir(r.State).Ran(r.name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.every == 0 {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("registry %s: when was it published last? %w", r.name, err)
	}
	last := info.ModTime()
	if last.After(time.Now()) {
		return time.Time{}, nil // the clock was set back since
	}
	return last.Add(r.every - r.every/10), nil
}

// ran notes when the registry was published last. Where that is lost it is published
// sooner, which does no harm.
func (r *registry) ran(began time.Time) error {
	path := state.Dir(r.State).Ran(r.name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Chtimes(path, began, began)
	}
	if err != nil {
		return fmt.Errorf("note when it was published: %w", err)
	}
	return nil
}

// runEvery is how often run publishes a registry whose settings do not say.
const runEvery = time.Minute

func runCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [NAME]...",
		Short: "Publish every registry of this state, each on its own schedule",
		Long: `Stays, and publishes each registry of this state that has a key here, or those named,
as publish --every does: every so often as its setting "every" says, where the ledger
moved, a version came of age, or the record is to be put again or renewed. They take
turns, so a long first build of one delays the others; between turns nothing is open,
and a follower may come and go.

What can pass is tried again at the registry's next turn. What cannot, as a journal
that is not the newest, is said at once and ends that registry's turns, and the code
at the end is that of the worst such error. The registries are looked up at the start.`,
		Example: `  publisher run
  publisher run main acme --every 5m`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if r.every <= 0 {
				return cli.Hint(cli.Usagef("--every %s: it is no time", r.every), "--every 1m publishes once a minute, where there is something to publish")
			}
			all, err := r.ofState(cmd.Context(), cmd.ErrOrStderr(), names)
			if err != nil {
				return err
			}
			for _, one := range all {
				one.every = cmp.Or(one.every, r.every)
			}
			return r.runAll(cmd, all)
		},
	}
	bindOwn(cmd, r)
	bindEvery(cmd, r, runEvery, "how often to publish a registry whose settings do not say, at most")
	return cmd
}

// runAll has registries take turns until the command is ended, or none is left.
func (r *registry) runAll(cmd *cobra.Command, all []*registry) error {
	ctx, log := cmd.Context(), r.Logger(cmd.ErrOrStderr(), false)
	type turns struct {
		*registry
		next  time.Time
		again time.Time // when its record is to be put again
	}
	left := make([]*turns, len(all))
	for i, one := range all {
		left[i] = &turns{registry: one}
	}
	var end worst
	for len(left) > 0 {
		one := slices.MinFunc(left, func(a, b *turns) int { return a.next.Compare(b.next) })
		select {
		case <-ctx.Done():
			return end.err() // as it was asked to
		case <-time.After(time.Until(one.next)):
		}
		began := time.Now()
		err := one.turn(cmd, began, &one.again, func(result publish.Result) error {
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), turnJSON{Registry: one.name, Result: &result})
			}
			return one.report(cmd, result, nil, func(w io.Writer, result publish.Result) error {
				fmt.Fprintf(w, "registry %s\n", one.name)
				return printResult(w, result)
			})
		})
		one.next = began.Add(one.every)
		switch {
		case ctx.Err() != nil:
			return end.err()
		case lasting(err):
			end.add(cli.Report(cmd.ErrOrStderr(), cmd, fmt.Errorf("registry %s: %w", one.name, err), causes), true)
			left = slices.DeleteFunc(left, func(other *turns) bool { return other == one })
		case err != nil:
			log.WarnContext(ctx, "publishing failed", "registry", one.name, "error", err, "again_in", one.every)
		}
	}
	return end.err()
}
