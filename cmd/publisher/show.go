package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// packageJSON is what `show --json` prints.
type packageJSON struct {
	Release   uint64        `json:"release"`
	Name      npm.Name      `json:"name"`
	Directory fileJSON      `json:"directory"`
	Gateway   *fileJSON     `json:"gateway,omitempty"`
	Packument *fileJSON     `json:"packument,omitempty"`
	Install   *fileJSON     `json:"install,omitempty"`
	Versions  []versionJSON `json:"versions"`
	Collected bool          `json:"collected,omitempty"` // with its release: the directory alone is known
}

type fileJSON struct {
	CID   string `json:"cid"`
	Tsize uint64 `json:"tsize"`
}

type versionJSON struct {
	Version string `json:"version"`
	File    string `json:"file"`
	fileJSON
}

func file(r unixfs.Ref) *fileJSON {
	if !r.CID.Defined() {
		return nil
	}
	return &fileJSON{r.CID.String(), r.Tsize}
}

func showCommand(r *registry) *cobra.Command {
	var number uint64
	cmd := &cobra.Command{
		Use:   "show NAME[@VERSION]",
		Short: "Say what a release lists of a package",
		Long: `Says what the newest release, or --release, lists of a package: its directory, the
documents in it, and each version's tarball, with CIDs and the bytes of all their
blocks. What the ledger has of it, and why, is for follower why to say.`,
		Example: `  publisher show express
  publisher show @types/node@22.0.0 --release 7
  publisher show express --json | jq -r .directory.cid`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			text, version := args[0], ""
			if i := strings.LastIndexByte(text, '@'); i > 0 {
				text, version = text[:i], text[i+1:]
			}
			name, err := npm.ParseName(text)
			if err != nil {
				return cli.Usagef("%w", err)
			}
			if err := checkRelease(cmd, number); err != nil {
				return err
			}
			ix, done, err := r.look(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			of, err := ix.Head()
			if number > 0 {
				of, err = ix.Release(number)
			}
			if err != nil {
				return err
			}
			e, err := ix.EntryAt(cmd.Context(), of.Number, name)
			if err != nil {
				return err
			}
			files, err := index.ReadPackage(cmd.Context(), ix, e.CID)
			collected := false // what the directory had nobody knows any more
			if oldest, err2 := ix.Oldest(); errors.Is(err, index.ErrNoBlock) && err2 == nil && of.Number < oldest {
				collected, err = true, nil
				if version != "" {
					return cli.Hint(fmt.Errorf("version %s of %s in release %d: the release was collected, and its directories with it", version, name, of.Number),
						fmt.Sprintf("releases from %d on are whole", oldest))
				}
			}
			if err != nil {
				return err
			}
			v := packageJSON{
				Release: of.Number, Name: name, Directory: *file(unixfs.Ref{CID: e.CID, Tsize: e.Tsize}), Gateway: file(e.Gateway),
				Packument: file(files.Packument), Install: file(files.Install), Versions: []versionJSON{}, Collected: collected,
			}
			for _, l := range files.Tarballs {
				one := versionJSON{index.VersionOf(name, l.Name), l.Name, fileJSON{l.CID.String(), l.Tsize}}
				if version == "" || version == one.Version {
					v.Versions = append(v.Versions, one)
				}
			}
			if version != "" && len(v.Versions) == 0 {
				return cli.Hint(fmt.Errorf("version %s of %s in release %d: %w", version, name, of.Number, index.ErrNotFound),
					fmt.Sprintf("`publisher show %s` lists those that are, `follower why %s@%s` says what became of it", name, name, version))
			}
			slices.SortFunc(v.Versions, func(a, b versionJSON) int { return npm.CompareVersions(a.Version, b.Version) })
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), v)
			}
			return v.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().Uint64Var(&number, "release", 0, "number of the release to look into (default: the newest)")
	return cmd
}

func (v packageJSON) print(w io.Writer) error {
	what := cli.Count(len(v.Versions), "version")
	if v.Collected {
		what = "which was collected"
	}
	fmt.Fprintf(w, "package    %s, release %d, %s\n", v.Name, v.Release, what)
	for _, l := range []struct {
		what string
		*fileJSON
	}{{"directory", &v.Directory}, {"gateway", v.Gateway}, {"packument", v.Packument}, {"install", v.Install}} {
		if l.fileJSON != nil {
			fmt.Fprintf(w, "%-9s  %s  %d bytes\n", l.what, l.CID, l.Tsize)
		}
	}
	for _, l := range v.Versions {
		fmt.Fprintf(w, "version    %s  %s  %d bytes\n", l.Version, l.CID, l.Tsize)
	}
	return nil
}
