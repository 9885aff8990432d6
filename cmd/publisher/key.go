package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// keyJSON is what may be shown of a key.
type keyJSON struct {
	Name      string `json:"name"`
	IPNSName  string `json:"ipns_name"`
	Next      string `json:"next"`
	File      string `json:"file"`
	Successor string `json:"successor_file"`
	Identity  string `json:"identity_file,omitempty"`
	Backup    string `json:"backup_command"`
}

func show(k ipnskeys.Key) keyJSON {
	return keyJSON{k.Name, k.IPNSName.String(), k.Next, k.File, k.SuccessorFile, k.IdentityFile, k.BackupCommand()}
}

func keyCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Mint and list the keys that sign releases"}
	cmd.AddCommand(keyNewCommand(r), keyListCommand(r))
	return cmd
}

func keyNewCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "new",
		Short: "Mint a key, and the key that will follow it",
		Long: `Mints the key of the registry --name and its successor, both sealed to an age
identity that lies beside them. That protects a backup or a disk that holds only
one of the two; it does not protect from who can read both.`,
		Example: `  publisher key new
  publisher key new --name acme`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := state.Dir(r.State)
			if err := dir.Make(); err != nil {
				return err
			}
			k, err := publish.Mint(dir.Keys(), r.name, dir.Journal(r.name))
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if r.JSON {
				return cli.PrintJSON(out, show(k))
			}
			fmt.Fprintf(out, "name        %s\n", k.IPNSName)
			fmt.Fprintf(out, "key         %s\n", k.File)
			fmt.Fprintf(out, "successor   %s (best moved to another machine)\n", k.SuccessorFile)
			fmt.Fprintf(out, "opened by   %s\n", k.IdentityFile)
			_, err = fmt.Fprintf(out, "back up     %s\n", k.BackupCommand())
			return err
		},
	}
}

func keyListCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the keys and their IPNS names",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := ipnskeys.List(state.Dir(r.State).Keys())
			if err != nil {
				return err
			}
			list := make([]keyJSON, len(keys))
			for i, k := range keys {
				list[i] = show(k)
			}
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), map[string]any{"keys": list})
			}
			for _, k := range list {
				fmt.Fprintf(cmd.OutOrStdout(), "%-16s %s\n", k.Name, k.IPNSName)
			}
			return nil
		},
	}
}
