package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// report is what up prints once it serves.
type report struct {
	publish.Result
	Registry    string
	Peers       []string // where other machines reach this node
	Network     string   // what others see of it; "" where that is not known
	PullThrough bool
	State       string
	Fetched     fetched
	Key         ipnskeys.Key
	Install     string
	Missing     []missing
	RolledBack  int // packages that stand as a rollback put them
}

// fetched is what this run brought before it served.
type fetched struct {
	Tarballs int   `json:"tarballs"`
	Bytes    int64 `json:"bytes"`
}

// maxMissing bounds how many missing packages and versions are printed.
const maxMissing = 10

// installLine is what to type next, ready for a shell, without what is missing.
func installLine(s follow.Selection, lacking []missing, url string) string {
	line, names := "npm install", ""
	if len(s.Lockfiles) > 0 {
		line = "npm ci"
	}
	for _, spec := range s.Specs {
		if slices.ContainsFunc(lacking, func(m missing) bool { return m.spec() == spec }) {
			continue
		}
		names += " " + cli.ShellWord(spec)
	}
	if names == "" && len(s.Lockfiles)+len(s.Lists) == 0 {
		names = " NAME"
	}
	return line + names + " --registry=" + url
}

// tellMinted says where a new key lies and how to back it up.
func tellMinted(w io.Writer, k ipnskeys.Key) error {
	fmt.Fprintf(w, "A key was minted for this registry, and the key that will follow it:\n")
	fmt.Fprintf(w, "  key        %s\n", k.File)
	fmt.Fprintf(w, "  successor  %s (best moved to another machine)\n", k.SuccessorFile)
	fmt.Fprintf(w, "  opened by  %s: who can read that and the key can sign\n", k.IdentityFile)
	_, err := fmt.Fprintf(w, "  back up    %s\n\n", k.BackupCommand())
	return err
}

func (r report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		raw, err := json.Marshal(r.Result)
		if err != nil {
			return err
		}
		var all map[string]any
		if err := json.Unmarshal(raw, &all); err != nil {
			return err
		}
		all["registry"], all["peers"], all["pull_through"] = r.Registry, r.Peers, r.PullThrough
		all["state"], all["fetched"], all["install"] = r.State, r.Fetched, r.Install
		all["missing"], all["backup_command"] = r.Missing, r.Key.BackupCommand()
		all["rolled_back_packages"] = r.RolledBack
		return cli.PrintJSON(w, all)
	}
	fmt.Fprintf(w, "Serving %s\n", r.Registry)
	fmt.Fprintf(w, "  name       /ipns/%s\n", r.Name)
	fmt.Fprintf(w, "  release    %d  %s\n", r.Number, r.CID)
	fmt.Fprintf(w, "  packages   %d, versions %d\n", r.Packages, r.Versions)
	where := "read back from the network"
	if r.LocalOnly {
		where = "local only: no peers yet"
	}
	fmt.Fprintf(w, "  record     sequence %d, valid until %s, %s\n", r.Sequence, cli.Time(r.EOL), where)
	for _, f := range r.Former {
		what := fmt.Sprintf("put too until %s", cli.Time(f.Until))
		if f.Problem != nil {
			what = "not put: " + f.Problem.Error()
		}
		fmt.Fprintf(w, "  former     /ipns/%s, %s\n", f.Name, what)
	}
	if len(r.Peers) > 0 {
		fmt.Fprintf(w, "  peer       %s\n", r.Peers[0])
	}
	if r.Network != "" {
		fmt.Fprintf(w, "  network    %s\n", r.Network)
	}
	fmt.Fprintf(w, "  fetched    %s, %.1f MiB\n", cli.Count(r.Fetched.Tarballs, "tarball"), float64(r.Fetched.Bytes)/(1<<20))
	for _, one := range r.Withheld {
		fmt.Fprintf(w, "  withheld   %s: %s (%s)\n", one.What(), one.Reason, one.Detail)
	}
	for i, m := range r.Missing {
		if i == maxMissing {
			fmt.Fprintf(w, "  missing    %d more; --json lists all\n", len(r.Missing)-i)
			break
		}
		again := ""
		if m.Waiting {
			again = "; tried again"
		}
		fmt.Fprintf(w, "  missing    %s%s\n", m, again)
	}
	if r.PullThrough {
		but := ""
		if r.RolledBack > 0 {
			but = fmt.Sprintf(", but for %s rolled back, until upstream changes", cli.Count(r.RolledBack, "package"))
		}
		fmt.Fprintf(w, "  lacking    is fetched when asked for, and in the next release%s\n", but)
	}
	_, err := fmt.Fprintf(w, "\n  %s\n", r.Install)
	return err
}
