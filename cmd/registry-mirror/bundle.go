package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func exportCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common, address: defaultListen}
	var lockfiles []string
	var output string
	var o mirror.ExportOptions
	cmd := &cobra.Command{
		Use:   "export [NAME | NAME@VERSION]...",
		Short: "Write packages into one file, for a machine without a network",
		Long: `Fetches packages as fetch does and writes a bundle: a CAR with the documents, the
tarballs, the signed record, and of the list what leads from the record to each package,
so that the machine that imports it checks all of it as if it came from peers. With
--whole-list it has the whole list, which can be searched, and grows with the registry.

Equal packages of an equal record give equal bytes. Any IPFS node takes the file:
` + "`ipfs dag import`" + `.`,
		Example: `  registry-mirror export --lockfile package-lock.json -o bundle.car
  registry-mirror import bundle.car                  # on the other machine`,
		RunE: func(cmd *cobra.Command, args []string) error {
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
			o.Progress = progress.Update
			path := state.Dir(common.State).Socket("registry-mirror")
			err = writeWhole(output, func(w io.Writer) error {
				if socket.Alive(cmd.Context(), path) {
					return exportBy(cmd.Context(), path, w, wanted, o)
				}
				if table, err := state.Dir(common.State).Table(); err != nil {
					return err
				} else if len(table.Rows) == 0 {
					s.registry = o.Registry
				}
				return s.with(cmd, func(t *mirror.Table) error {
					_, err := t.Export(cmd.Context(), w, wanted, o)
					return err
				})
			})
			progress.End()
			if err != nil {
				return err
			}
			return sayBundle(cmd, common, output)
		},
	}
	s.bindReading(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&lockfiles, "lockfile", nil, lockfileUsage)
	f.StringVarP(&output, "output", "o", "bundle.car", "file to write; one that is there is replaced")
	f.BoolVar(&o.Whole, "whole-list", false, "put the registry's whole list into it")
	f.StringVar(&o.Registry, "registry", "", "label of the registry to export from, where several have what is named: a bundle is of one; where nothing was added and no daemon runs, its address")
	return cmd
}

// sayBundle says what a bundle that was written has.
func sayBundle(cmd *cobra.Command, common *cli.Common, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := mirror.OpenBundle(bufio.NewReader(f))
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case common.JSON:
		return cli.PrintJSON(out, map[string]any{"cid": b.CID.String(), "bytes": info.Size(), "bundle": b.Manifest})
	case cli.IsTerminal(out) || common.Verbose:
		versions := 0
		for _, p := range b.Manifest.Packages {
			versions += len(p.Versions)
		}
		_, err = fmt.Fprintf(out, "%s: %s, %s, %s, release %d of %s\n", path, cli.Count(len(b.Manifest.Packages), "package"),
			cli.Count(versions, "version"), fmt.Sprintf("%.1f MiB", float64(info.Size())/(1<<20)), b.Manifest.Release, b.Manifest.Address)
	}
	return err
}

// exportBy has the running daemon write the bundle.
func exportBy(ctx context.Context, path string, w io.Writer, wanted []mirror.Bundled, o mirror.ExportOptions) error {
	raw, err := json.Marshal(mirror.ExportRequest{Registry: o.Registry, Whole: o.Whole, Packages: wanted})
	if err != nil {
		return err
	}
	body, err := socket.Stream(ctx, path, http.MethodPost, "/export", bytes.NewReader(raw))
	if err != nil {
		var r *socket.Refusal
		if errors.As(err, &r) {
			err = cmp.Or(toldOf(r.Text, mirror.ErrOtherIntegrity, mirror.ErrSeveral, mirror.ErrNotHere), err)
		}
		return err
	}
	defer body.Close()
	buf := make([]byte, 1<<20)
	for total := int64(0); ; {
		n, err := body.Read(buf)
		if _, failed := w.Write(buf[:n]); failed != nil {
			return failed
		}
		total += int64(n)
		o.Progress("write", 0, 0, total)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what the running command answers: %w", err)
		}
	}
}

// writeWhole writes a file aside and puts it in place once it is whole and durable.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return cli.OfFile(path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err = write(w); err == nil {
		err = errors.Join(w.Flush(), f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return cli.OfFile(path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func importCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common, offline: true}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take in a bundle that export wrote",
		Long: `Checks a bundle and keeps it, with no network: every block against its CID, the record's
signature against the registry's name, and every package down from what the record signs.
The high-water mark holds for it as for any record: a bundle that is older than what this
machine has followed is refused. The running daemon takes it in, and serves it from then
on; it must follow that registry. Where only a part of the list comes with it, those names
are served, and others answer that it is not known whether they exist.

A record is valid for some days. One that has expired on the way is taken with
--accept-stale: nobody here can say whether there is a newer one.

What is imported is pinned: ` + "`registry-mirror unpin`" + ` takes that back. An import that was
interrupted left nothing that is served; the same command again goes on.`,
		Example: `  registry-mirror import bundle.car
  registry-mirror daemon --ipfs --offline k51...`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			progress := cli.NewProgress(cmd.ErrOrStderr(), common.Logger(cmd.ErrOrStderr(), false))
			defer progress.End()
			path := state.Dir(common.State).Socket("registry-mirror")
			runs := socket.Alive(cmd.Context(), path)
			var got mirror.Imported
			if runs {
				if err := refuseSources(cmd); err != nil {
					return err
				}
				got, err = importBy(cmd.Context(), path, f, s.acceptStale, progress)
			} else {
				got, err = s.importHere(cmd, f, progress)
			}
			progress.End()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			out := cmd.OutOrStdout()
			switch {
			case common.JSON:
				return cli.PrintJSON(out, got)
			case cli.IsTerminal(out) || common.Verbose:
				who := "the running daemon"
				if !runs {
					who = cli.Beside(cmd, "`registry-mirror daemon --ipfs --offline "+got.Address+"`")
				}
				_, err = fmt.Fprintf(out, "%s, release %d: %s serves it\n", cli.Count(len(got.Packages), "package"), got.Release, who)
			}
			return err
		},
	}
	s.bind(cmd)
	cmd.Flags().BoolVar(&s.acceptStale, "accept-stale", false, "take a bundle whose record has expired")
	return cmd
}

// importHere takes a bundle in where no daemon runs.
func (s *source) importHere(cmd *cobra.Command, r io.Reader, progress *cli.Progress) (got mirror.Imported, err error) {
	b, err := mirror.OpenBundle(bufio.NewReaderSize(r, 1<<20))
	if err != nil {
		return got, err
	}
	at, err := parseAddress(b.Manifest.Address)
	if err != nil {
		return got, fmt.Errorf("%w: %w", mirror.ErrBundle, err)
	}
	s.defaultNode()
	t, close, err := s.open(cmd, []string{at.String()}, true)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, close()) }()
	return t.Import(cmd.Context(), b, mirror.ImportOptions{Progress: progress.Update})
}

// importBy has the running daemon take a bundle in. Its refusals have the code and hint
// that they have where none runs.
func importBy(ctx context.Context, path string, r io.Reader, acceptStale bool, progress *cli.Progress) (got mirror.Imported, err error) {
	query := url.Values{"accept_stale": {strconv.FormatBool(acceptStale)}}
	body, err := socket.Stream(ctx, path, http.MethodPost, "/import?"+query.Encode(), r)
	if err != nil {
		return got, err
	}
	defer body.Close()
	got, err = mirror.ReadImport(body, progress.Update)
	if err == nil || ctx.Err() != nil {
		return got, errors.Join(err, ctx.Err())
	}
	return got, cmp.Or(toldOf(err.Error(), mirror.ErrNotTaken, ipnsrecord.ErrExpired, ipnsrecord.ErrRollback, mirror.ErrBundle), err)
}
