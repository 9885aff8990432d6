package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/clients"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// codeUnwell is the exit code of doctor where something is wrong.
const codeUnwell = 10

const (
	doctorTime = 20 * time.Second // for all that is looked at
	askTime    = 5 * time.Second  // for one answer
	// maxSkew is how far a clock may be from another's before it is told.
	maxSkew = 2 * time.Minute
	// lowDisk is too little for work that is begun, fullDisk for any.
	lowDisk, fullDisk = 1 << 30, 64 << 20
)

// verdicts of a finding.
const (
	fine  = "ok"
	known = "note" // is as it is, and good to know
	wrong = "wrong"
)

// finding is one thing that doctor looked at.
type finding struct {
	Check   string `json:"check"`
	Verdict string `json:"verdict"`
	What    string `json:"what"`
	Do      string `json:"do,omitempty"` // what a person can do about it
}

// findings gathers them.
type findings []finding

func (f *findings) add(check, verdict, do, format string, args ...any) {
	*f = append(*f, finding{check, verdict, fmt.Sprintf(format, args...), do})
}

func doctorCommand(common *cli.Common) *cobra.Command {
	w := &whose{Common: common}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong around the mirror, and what to do",
		Long: `Looks at the daemon, its registries and peers, the clock, the disk, the state, at
which registry npm's clients really ask (in the project here, and the user's), and
at where lockfiles lead. It changes nothing. For the clock it asks a gateway of a
registry, or the registry that npm's configuration names, for the time.

It ends within 20 seconds, with 10 where something is wrong.`,
		Example: "  registry-mirror doctor -v",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			registry, err := w.mirror()
			if err != nil {
				return err
			}
			_, in, err := w.place()
			if errors.Is(err, errNoProject) && w.project == "" {
				err = nil // the user's alone, then
			}
			if err != nil {
				return err
			}
			if w.known = cmd.Flags().Changed("registry"); !w.known {
				keeper := &clients.Keeper{Dir: state.Dir(w.State).Clients()}
				used := cmp.Or(keeper.Used(in), keeper.Used(clients.Place{Home: in.Home, Getenv: in.Getenv}))
				w.known = used != ""
				registry = cmp.Or(used, registry)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTime)
			defer cancel()
			all := w.look(ctx, registry, in)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			bad := 0
			for i, one := range all {
				all[i].Do = cli.Beside(cmd, one.Do)
				if one.Verdict == wrong {
					bad++
				}
			}
			if err := w.tell(cmd, all, bad); err != nil {
				return err
			}
			if bad > 0 {
				return cli.Exit(codeUnwell)
			}
			return nil
		},
	}
	w.bind(cmd)
	w.bindURL(cmd)
	return cmd
}

func (w *whose) tell(cmd *cobra.Command, all findings, bad int) error {
	out := cmd.OutOrStdout()
	if w.JSON {
		return cli.PrintJSON(out, map[string]any{"wrong": bad, "findings": all})
	}
	for _, one := range all {
		if one.Verdict == fine && !w.Verbose {
			continue
		}
		fmt.Fprintf(out, "%-6s %-9s %s\n", one.Verdict, one.Check, one.What)
		if one.Do != "" {
			fmt.Fprintf(out, "%-6s %-9s %s\n", "", "  do", one.Do)
		}
	}
	said := "nothing is wrong"
	if bad > 0 {
		said = cli.Count(bad, "thing") + " to mend"
	}
	_, err := fmt.Fprintf(out, "%s, of %d looked at\n", said, len(all))
	return err
}

// look looks at everything.
func (w *whose) look(ctx context.Context, registry string, in clients.Place) (all findings) {
	dir := state.Dir(w.State)
	lookAtState(&all, dir)
	var status mirror.TableStatus
	runs := socket.Alive(ctx, dir.Socket("registry-mirror"))
	if runs {
		call, cancel := context.WithTimeout(ctx, askTime)
		var err error
		status, err = ask(call, dir.Socket("registry-mirror"), http.MethodGet, "/status")
		cancel()
		if err != nil {
			all.add("daemon", wrong, "start it anew", "it runs and does not answer: %v", err)
		}
	}
	if !w.known {
		registry = cmp.Or(status.URL, registry) // nobody has said more, and the daemon knows
	}
	lookAtAddress(ctx, &all, registry, status.URL, runs, w.State)
	if !runs {
		lookAtKubo(ctx, &all, dir)
	}
	judge(&all, status, time.Now())
	offline := len(status.Registries) > 0 && !slices.ContainsFunc(status.Registries, func(r mirror.RegistryStatus) bool { return !r.Offline })
	if !offline {
		lookAtClock(ctx, &all, dir, registry, in)
	}
	w.lookAtClients(&all, registry, in)
	if in.Project != "" {
		w.lookAtLockfiles(&all, registry, in.Project)
	}
	return all
}

func lookAtState(all *findings, dir state.Dir) {
	info, err := os.Stat(string(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		all.add("state", known, "", "there is none yet in %s: `up`, `daemon` or `use` begins it", dir)
		return
	case err != nil:
		all.add("state", wrong, "see that you own that directory and all above it", "%v", err)
		return
	case !info.IsDir():
		all.add("state", wrong, "move it away, or use another --state", "%s is no directory", dir)
		return
	}
	probe, err := os.CreateTemp(string(dir), ".doctor-*")
	if err == nil {
		probe.Close()
		err = os.Remove(probe.Name())
	}
	switch mode := info.Mode().Perm(); {
	case err != nil:
		all.add("state", wrong, "run it as who owns that directory, or give that to yourself with chown", "nothing can be written: %v", err)
	case mode&0o077 != 0:
		all.add("state", wrong, "chmod 700 "+cli.ShellWord(string(dir)), "%s is open to others (mode %04o): keys and sockets lie in it", dir, mode)
	default:
		all.add("state", fine, "", "%s", dir)
	}
	free, err := ipfs.FreeSpace(string(dir))
	if err != nil {
		all.add("disk", known, "", "its free space is not known: %v", err)
		return
	}
	judgeDisk(all, dir, free)
}

func judgeDisk(all *findings, dir state.Dir, free uint64) {
	const do = "make room, or bound what is fetched with `daemon --cache-size`"
	switch {
	case free < fullDisk:
		all.add("disk", wrong, do, "it is full: %d MiB are free under %s", free>>20, dir)
	case free < lowDisk:
		all.add("disk", wrong, do, "little is left: %d MiB are free under %s", free>>20, dir)
	default:
		all.add("disk", fine, "", "%.1f GiB are free", float64(free)/(1<<30))
	}
}

// lookAtAddress asks the mirror as a client would.
func lookAtAddress(ctx context.Context, all *findings, registry, listens string, runs bool, dir string) {
	start := "start it with `registry-mirror daemon --ipfs NAME` or `registry-mirror up`, or as a service (deploy/systemd/user)"
	u, err := url.Parse(registry)
	if err != nil {
		return // it was parsed before
	}
	ip := net.ParseIP(u.Hostname())
	here := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	status, err := get(ctx, registry+"/-/ping")
	switch {
	case here && !runs && err != nil:
		all.add("daemon", wrong, start, "no registry-mirror runs on %s", dir)
	case here && !runs:
		who := "another program"
		if port, err := strconv.Atoi(u.Port()); err == nil {
			if p, ok := state.Listener(port); ok {
				who = p.String()
			}
		}
		all.add("daemon", wrong, "end that one, or serve elsewhere with --listen and have clients use that (`registry-mirror use --registry URL`); is it ours on another --state, name that", "none runs on %s, and the port of %s is taken by %s", dir, registry, who)
	case err != nil && listens != "" && !clients.Same(listens, registry):
		all.add("address", wrong, "`registry-mirror use --registry "+cli.ShellWord(listens)+"`, for that is where it listens", "nobody answers at %s: %v", registry, err)
	case err != nil:
		all.add("address", wrong, "is this where it listens? `daemon` prints the address at its start: name it with --registry", "nobody answers at %s: %v", registry, err)
	case status != http.StatusOK:
		all.add("address", wrong, "name the mirror's own address with --registry", "what answers at %s is no registry: %d", registry, status)
	default:
		all.add("address", fine, "", "%s answers", registry)
	}
}

// get asks a URL, and gives the status.
func get(ctx context.Context, at string) (int, error) {
	r, err := request(ctx, http.MethodGet, at)
	if err != nil {
		return 0, err
	}
	return r.StatusCode, nil
}

// request asks for a URL and drops the body.
func request(ctx context.Context, method, at string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, at, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", state.UserAgent)
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL is said beside it, without what may be secret in it
		}
		return nil, err
	}
	return r, r.Body.Close()
}

func lookAtKubo(ctx context.Context, all *findings, dir state.Dir) {
	api, kubo, err := dir.Kubo()
	if err != nil {
		all.add("node", wrong, "restore node.json from a backup, or use another --state", "%v", err)
	}
	if !kubo || err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	node, err := ipfs.OpenKubo(ctx, ipfs.KuboOptions{API: api, Patience: askTime})
	if err == nil {
		err = node.Close()
	}
	if err != nil {
		all.add("node", wrong, "`ipfs daemon` starts it; --ipfs-api says where it answers", "the Kubo daemon of this state is away: %v", err)
		return
	}
	all.add("node", fine, "", "the Kubo daemon answers")
}

// judge says what is wrong with a running daemon.
func judge(all *findings, s mirror.TableStatus, now time.Time) {
	for _, r := range s.Registries {
		who := shown(r.Name)
		if len(s.Registries) > 1 {
			who = r.Registry + ", " + who
		}
		before := len(*all)
		bad := func(check, do, format string, args ...any) {
			all.add(check, wrong, do, "%s: "+format, append([]any{who}, args...)...)
		}
		peers := 0
		if r.Node != nil {
			peers = r.Node.Peers
		}
		lonely := r.Node != nil && peers == 0 && !r.Offline && !r.Origin && r.Node.Network != ipfs.Local
		switch {
		case r.Offline, r.Origin:
		case r.Node == nil && r.Gateways == 0:
			bad("node", "start the IPFS node of this state (`ipfs daemon`), or say where it answers with --ipfs-api", "its IPFS node does not answer")
		case lonely && r.Gateways == 0:
			bad("peers", "give it the publisher's address with --peer, or a gateway with --gateway; does a firewall hold back what goes out?", "no peer is connected")
		}
		switch {
		case r.Release.Number > 0:
		case r.Expired:
			bad("list", "is the clock right? else its publisher has to sign again (with `republish`); `daemon --accept-stale` follows it all the same", "there is no list, for the record of its name has expired")
		case r.Offline:
			bad("list", "start the daemon once without --offline", "there is no list, and it is offline")
		default:
			why := ""
			if r.Error != "" {
				why = ": " + r.Error
			}
			bad("name", "is that the right name? dial a peer of its publisher with --peer, or ask a gateway with --gateway", "nobody reachable has a record of it%s", why)
		}
		switch {
		case r.TooOld:
			bad("stale", "its publisher has to sign again; until then a greater --max-stale serves what is held", "its record has expired for longer than --max-stale, and nothing is served")
		case r.Stale:
			bad("stale", "is the clock right? else its publisher has to sign again (with `republish`); what is held is served all the same", "its record has expired %s ago, on %s", now.Sub(r.Record.EOL).Round(time.Minute), cli.Time(r.Record.EOL))
		case r.Release.Number > 0 && r.Error != "" && !r.Offline:
			bad("sync", "what is held is served; `registry-mirror sync` tries now", "it was not brought up to date: %s", r.Error)
		}
		if ahead := r.Release.Created.Sub(now); ahead > maxSkew {
			bad("clock", "set this machine's clock (`timedatectl set-ntp true`)", "its release was made %s from now: this clock is behind, or its publisher's ahead", ahead.Round(time.Second))
		}
		if r.Equivocations > 0 || r.Rollbacks > 0 {
			bad("refused", "ask its owner, by another way; the evidence is in the state, below mirror/", "%s older than what is followed and %s that contradict it were refused", cli.Count(r.Rollbacks, "record"), cli.Count(r.Equivocations, "record"))
		}
		if r.IntegrityFailures > 0 {
			bad("integrity", "another source may have them whole: ask the publisher to run `check`", "%s not served, whose bytes are not what is listed", cli.Count(r.IntegrityFailures, "tarball"))
		}
		if r.Unavailable > 0 {
			all.add("sources", known, "", "%s: %s that no source could answer in time; the last: %s", who, cli.Count(r.Unavailable, "request"), r.LastUnavailable)
		}
		if len(*all) == before {
			all.add("registry", fine, "", "%s: release %d, %s, %s", who, r.Release.Number, cli.Count(r.Release.Packages, "package"), cli.Count(peers, "peer"))
		}
	}
	for _, o := range s.Overlaps {
		all.add("overlap", known, "", "%s is claimed by %s and listed by %s too; only the first is asked", o.Name, o.Claim, o.Open)
	}
}

// lookAtClock compares this clock with that of a server that is asked anyway: the
// gateways of the registries, else npm's registry.
func lookAtClock(ctx context.Context, all *findings, dir state.Dir, registry string, in clients.Place) {
	var servers []string
	if table, err := dir.Table(); err == nil {
		for _, r := range table.Rows {
			servers = append(servers, r.Gateways...)
		}
	}
	config, err := npm.LoadConfig(os.Getenv, in.Project, in.Home)
	if err != nil || clients.Same(config.Registry, registry) {
		config.Registry = npm.DefaultRegistry()
	}
	servers = append(servers, config.Registry)
	const most = 2
	for _, server := range servers[:min(most, len(servers))] {
		r, err := request(ctx, http.MethodHead, server)
		if err != nil {
			continue
		}
		date, err := http.ParseTime(r.Header.Get("Date"))
		if err != nil {
			continue
		}
		host := server
		if u, err := url.Parse(server); err == nil {
			host = u.Host
		}
		off := time.Since(date)
		if off.Abs() <= maxSkew {
			all.add("clock", fine, "", "as %s has it", host)
			return
		}
		word := "ahead of"
		if off < 0 {
			word = "behind"
		}
		all.add("clock", wrong, "set it (`timedatectl set-ntp true`): records seem expired, or not yet so, by a wrong clock", "this clock is %s %s that of %s", off.Abs().Round(time.Second), word, host)
		return
	}
	all.add("clock", known, "", "there was nobody to compare it with")
}

// use is the command that has c use the mirror: in the project that is looked at, or as
// the user's.
func (w *whose) use(c clients.Client, registry string, user bool) string {
	line := "registry-mirror use " + string(c)
	if user {
		line += " --user"
	} else if w.project != "" {
		line += " --project " + cli.ShellWord(w.project)
	}
	if registry != "http://"+defaultListen {
		line += " --registry " + cli.ShellWord(registry)
	}
	return "`" + line + "`"
}

// lookAtClients says which registry each client asks that is used here.
func (w *whose) lookAtClients(all *findings, registry string, in clients.Place) {
	found := in.Found()
	here, user := "in this project", false
	if in.Project == "" || len(found) == 0 {
		found, here, user = clients.Place{Home: in.Home, Getenv: in.Getenv}.Found(), "of yours", true
	}
	uses := 0
	var others findings
	for _, c := range found {
		sources := in.Sources(c)
		goesTo, by := "", "" // the first that names a default registry
		unset := ""          // what takes that back, where it is a variable
		names := false       // one that counts names the mirror, if only for a scope
		for _, s := range sources {
			if s.Problem != "" {
				all.add("client", wrong, "mend that file, or move it away", "%s: %s: %s", c, s.Where, s.Problem)
			}
			for _, to := range s.Scopes {
				names = names || clients.Same(to, registry)
			}
			if goesTo == "" && s.Registry != "" {
				goesTo, by = s.Registry, s.Where
				if s.Variable {
					unset = "`unset " + s.Where + "`, and take it out of where it is set"
				}
				if s.Only != "" {
					by += ", which " + s.Only + " reads"
				}
			}
		}
		switch {
		case goesTo != "" && clients.Same(goesTo, registry):
			uses++
			all.add("client", fine, "", "%s uses the mirror, by %s", c, by)
		case names:
			uses++
			all.add("client", fine, "", "%s uses the mirror for a scope", c)
		case slices.ContainsFunc(sources, func(s clients.Source) bool { return s.Names(registry) }):
			all.add("client", wrong, cmp.Or(unset, "take the registry out of that one"), "%s %s goes around the mirror: %s names %s, and goes before what names the mirror", c, here, by, goesTo)
			uses++
		case goesTo != "":
			do := w.use(c, registry, user)
			if unset != "" {
				do = unset + "; then " + do
			}
			others.add("client", wrong, do, "%s %s goes around the mirror: %s names %s", c, here, by, goesTo)
		default:
			others.add("client", wrong, w.use(c, registry, user), "%s %s goes around the mirror: nothing names it", c, here)
		}
	}
	// Of all the clients that are installed not each has to be used; those of a project do.
	if user && uses > 0 {
		for i := range others {
			others[i].Verdict = known
		}
	}
	*all = append(*all, others...)
}

// lookAtLockfiles says which lockfiles lead past the mirror, and which to it alone.
func (w *whose) lookAtLockfiles(all *findings, registry, project string) {
	files, err := clients.Lockfiles(project)
	if err != nil {
		all.add("lockfile", known, "", "%v", err)
	}
	mirrorAt := registry
	if u, err := url.Parse(registry); err == nil {
		mirrorAt = u.Scheme + "://" + u.Host
	}
	for _, l := range files {
		clean := true
		for _, origin := range slices.Sorted(maps.Keys(l.Origins)) {
			n := cli.Count(l.Origins[origin], "package")
			switch {
			case clients.Same(origin, mirrorAt) && (l.Client == clients.Yarn1 || l.Client == clients.Bun):
				clean = false
				all.add("lockfile", known, "have everybody who installs by it use a mirror at that address", "%s names the mirror for %s: %s always writes where it fetched from", l.File, n, l.Client)
			case clients.Same(origin, mirrorAt):
				clean = false
				do := "make it anew: " + w.use(l.Client, registry, false) + ", then remove and install"
				if l.Client == clients.NPM {
					do = "`npm install --package-lock-only --omit-lockfile-registry-resolved` takes the addresses out"
				}
				all.add("lockfile", wrong, do, "%s names the mirror for %s: it works only where the mirror is", l.File, n)
			case l.Client == clients.NPM && origin == npm.DefaultRegistry():
				// npm puts its configured registry in the place of this one.
			case l.Client == clients.NPM:
				clean = false
				all.add("lockfile", wrong, "`npm install --package-lock-only --omit-lockfile-registry-resolved` takes the addresses out", "%s leads past the mirror, to %s, for %s: npm 12 refuses these (EALLOWREMOTE), npm 11 fetches them there", l.File, origin, n)
			case l.Client == clients.Yarn1:
				clean = false
				all.add("lockfile", wrong, fmt.Sprintf("put the mirror's address there: sed -i 's|%s/|%s/|' %s", origin, registry, cli.ShellWord(l.File)), "%s leads past the mirror, to %s, for %s", l.File, origin, n)
			default:
				clean = false
				all.add("lockfile", wrong, "remove it and install again, or take those addresses out", "%s leads past the mirror, to %s, for %s", l.File, origin, n)
			}
		}
		if clean {
			all.add("lockfile", fine, "", "%s names no registry but the configured one", l.File)
		}
	}
}
