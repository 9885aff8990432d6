package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func withheldCommand(r *registry) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "withheld [PATTERN]",
		Short: "List what the ledger has and the list does not, with reasons",
		Long: `Lists what is in the ledger and not in the list, as of the last build, by name, with
a reason: of the registry's policy

  only        no pattern of only takes it
  except      a pattern of except takes it
  signatures  its registry signature is not one that verified
  min-age     it was first seen too short a while ago, or nobody knows when

or one that has to do with the package itself, as a bad document. A package whose name
no pattern of only takes is told of where it is asked for by name alone: there may be
millions. A pattern has *, ? and [a-z], as for publisher list.`,
		Example: `  publisher withheld
  publisher withheld express
  publisher withheld '@types/*' --reason min-age --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			pattern := append(args, "")[0]
			if _, err := path.Match(pattern, ""); err != nil {
				return cli.Hint(cli.Usagef("pattern %q: %w", pattern, err), `put a backslash before a [ that is meant as it stands`)
			}
			ix, done, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			all := r.withheld(cmd.Context(), ix, pattern)
			wanted := func(yield func(publish.Withheld, error) bool) {
				for w, err := range all {
					if (err != nil || reason == "" || w.Reason == reason) && !yield(w, err) {
						return
					}
				}
			}
			return cli.PrintAll(cmd.OutOrStdout(), r.JSON, "withheld", wanted, withheldLine, nil, nil)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "only what is withheld for this reason")
	return cmd
}

func withheldLine(w publish.Withheld) string {
	return fmt.Sprintf("%s: %s (%s)", w.What(), w.Reason, w.Detail)
}

// withheld yields, by name, what is noted of packages and what the policy keeps out.
func (r *registry) withheld(ctx context.Context, ix *index.Index, pattern string) iter.Seq2[publish.Withheld, error] {
	return func(yield func(publish.Withheld, error) bool) {
		p := publish.New(publish.Options{Registry: r.name, Index: ix, Journal: state.Dir(r.State).Journal(r.name)})
		notes, err := p.Withheld()
		if err != nil {
			yield(publish.Withheld{}, err)
			return
		}
		found := false
		give := func(w publish.Withheld) bool {
			if pattern != "" {
				if ok, _ := path.Match(pattern, string(w.Name)); !ok {
					return true
				}
			}
			found = true
			return yield(w, nil)
		}
		for w, err := range p.Held(ctx) {
			if err != nil {
				yield(w, err)
				return
			}
			for len(notes) > 0 && notes[0].Name <= w.Name {
				if !give(notes[0]) {
					return
				}
				notes = notes[1:]
			}
			if !give(w) {
				return
			}
		}
		for _, w := range notes {
			if !give(w) {
				return
			}
		}
		name, err := npm.ParseName(pattern)
		if found || err != nil || strings.Contains(pattern, "*") {
			return
		}
		text, err := p.Policy()
		if err != nil {
			yield(publish.Withheld{}, err)
			return
		}
		if by, err := policy.Decode(text); err != nil {
			yield(publish.Withheld{}, err)
		} else if !by.Takes(name) {
			yield(publish.Withheld{Name: name, Reason: policy.ReasonOnly, Detail: "no pattern of only takes the name"}, nil)
		}
	}
}
