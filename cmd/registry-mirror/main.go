// Command registry-mirror is an npm registry on this machine, out of IPFS:
// daemon serves a registry by its IPNS name, up makes one of your own.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/clients"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/lockfile"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/route"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

func main() { os.Exit(cli.Main(root(), causes)) }

const addBeside = "`follower add NAME` adds packages to what runs; otherwise stop it or use another --state"

const otherRuns = "another command runs on this state; stop it or use another --state"

var causes = []cli.Cause{
	{Is: errRuns, Code: cli.CodeLocked, Hint: addBeside},
	{Is: ledger.ErrLocked, Code: cli.CodeLocked, Hint: otherRuns},
	{Is: index.ErrLocked, Code: cli.CodeLocked, Hint: otherRuns},
	{Is: publish.ErrLocked, Code: cli.CodeLocked, Hint: otherRuns},
	{Is: mirror.ErrLocked, Code: cli.CodeLocked, Hint: otherRuns},
	{Is: ipfs.ErrLocked, Code: cli.CodeLocked, Hint: otherRuns},
	{Is: ipfs.ErrAway, Code: cli.CodeAway, Hint: "start the IPFS node of this state, or say where it answers with --ipfs-api"},
	{Is: policy.ErrRule, Code: cli.CodeUsage, Hint: "docs/formats.md has the rules of a policy; `publisher settings` reads them too"},
	{Is: socket.ErrInUse, Code: cli.CodeLocked, Hint: otherRuns},
	{Is: errOtherName, Code: cli.CodeLocked, Hint: "one registry-mirror runs on a state; give the other a --state of its own"},
	{Is: errNoAddress, Code: cli.CodeUsage, Hint: "an IPNS name begins with k51, a frozen release is /ipfs/bafy..., a domain has a DNSLink"},
	{Is: errMoved, Code: cli.CodeFailed, Hint: "ask its owner whether that is meant; `registry-mirror add LABEL ADDRESS` takes the address itself"},
	{Is: errDNSLink, Code: cli.CodeAway, Hint: "`dig TXT _dnslink.DOMAIN` shows what a domain says; dnslink=/ipns/k51... is what is needed"},
	{Is: errNoRow, Code: cli.CodeUsage, Hint: "`registry-mirror list` shows those that were"},
	{Is: mirror.ErrMoment, Code: cli.CodeUsage, Hint: "give a release's number, as 41, a day, as 2026-11-20, or a time, as 2026-11-20T12:00:00Z"},
	{Is: mirror.ErrFuture, Code: cli.CodeUsage, Hint: "a day is of UTC, and the one that runs is as of now: give that, or an earlier one"},
	{Is: mirror.ErrOffline, Code: cli.CodeFailed, Hint: "without --offline it is asked for; `registry-mirror import` brings it, or a part of it, from a bundle"},
	{Is: mirror.ErrNoRelease, Code: cli.CodeFailed, Hint: "releases from before the newest one stay whole for as long as their publisher's --retain"},
	{Is: mirror.ErrChain, Code: cli.CodeFailed, Hint: "the registry's publisher made it so: tell its owner; releases after that can be served"},
	{Is: errUnread, Code: cli.CodeAway, Hint: "what is printed stands; dial a peer that has the registry with --peer, or ask a gateway with --gateway, and diff again"},
	{Is: mirror.ErrOtherIntegrity, Code: codeOtherIntegrity, Hint: "install nothing of it until it is known which is right: `registry-mirror why NAME@VERSION` says who signed the registry's"},
	{Is: mirror.ErrClaimed, Code: cli.CodeUsage, Hint: "`registry-mirror list` shows what each claims"},
	{Is: mirror.ErrNoCache, Code: cli.CodeFailed, Hint: "`registry-mirror up` keeps all that it has; pins are for `registry-mirror daemon`"},
	{Is: mirror.ErrNotHere, Code: cli.CodeFailed, Hint: "what came stays: the same command again asks for the rest; where a daemon runs, `registry-mirror why NAME` says what it knows of a name"},
	{Is: mirror.ErrSeveral, Code: cli.CodeUsage, Hint: "one bundle for each: name it with --registry"},
	{Is: ipnsrecord.ErrExpired, Code: cli.CodeFailed, Hint: "export it again, or take it as it is with --accept-stale"},
	{Is: ipnsrecord.ErrRollback, Code: cli.CodeFailed, Hint: "this machine has followed a newer release already; export again from one that has too"},
	{Is: mirror.ErrNotTaken, Code: cli.CodeLocked, Hint: "stop it, import again, and start `registry-mirror daemon` with the bundle's address; or import into a --state of its own"},
	{Is: mirror.ErrBundle, Code: cli.CodeFailed, Hint: "if `export` wrote it, carry the file over again; nothing of it is served"},
	{Is: mirror.ErrNotPinned, Code: cli.CodeUsage, Hint: "`registry-mirror pins` shows what is"},
	{Is: mirror.ErrPinned, Code: cli.CodeUsage, Hint: "unpin the package, then pin the versions that shall stay"},
	{Is: state.ErrTable, Code: cli.CodeFailed, Hint: "restore table.json from a backup, or move it away and add the registries again"},
	{Is: errNotRunning, Code: cli.CodeAway, Hint: "start it with `registry-mirror daemon --ipfs NAME` or `registry-mirror up`"},
	{Is: upstream.ErrUnavailable, Code: cli.CodeAway, Hint: "is the registry reachable? `npm ping` asks it; --upstream names another"},
	{Is: mirror.ErrNoRecord, Code: cli.CodeAway, Hint: "nobody reachable knows this name: dial a peer of the publisher with --peer, or ask a gateway with --gateway"},
	{Is: mirror.ErrNoSuccessor, Code: cli.CodeFailed, Hint: "it is not the name that the releases promised: ask the registry's owner by another way, or begin anew with `registry-mirror daemon` and that name"},
	{Is: publish.ErrNoSequence, Code: cli.CodeFailed, Hint: "restore the journal of this registry from a backup, or use a new --state"},
	{Is: publish.ErrSpent, Code: cli.CodeFailed, Hint: "whoever signed that had the key, and the name is lost: begin another with a new --name, and tell your readers"},
	{Is: publish.ErrNewer, Code: cli.CodeFailed, Hint: "is this state restored from a backup, or its key in use elsewhere? nothing was signed"},
	{Is: ipfs.ErrNetwork, Code: cli.CodeUsage, Hint: "leave --network out, or use another --state"},
	{Is: state.ErrOtherNode, Code: cli.CodeUsage, Hint: "leave --node out, or use another --state"},
	{Is: publish.ErrMetrics, Code: cli.CodeUsage, Hint: "the node exporter's textfile collector reads no others"},
	{Is: mirror.ErrPublishTo, Code: cli.CodeUsage, Hint: "--publish-to takes an https URL, or an http one of this machine, of a registry with --scope or --package"},
	{Is: route.ErrRoute, Code: cli.CodeUsage, Hint: "--route takes an http or https URL, or the absolute path of a directory"},
	{Is: publish.ErrOrigin, Code: cli.CodeUsage, Hint: "give scheme and host, as in " + publish.DefaultGatewayOrigin + ", or none"},
	{Is: index.ErrParameters, Code: cli.CodeUsage, Hint: "a registry keeps its --gateway-origin: leave it out, or use another --state"},
	{Is: index.ErrCorrupt, Code: cli.CodeFailed, Hint: "with the index's directory moved away it is built, or synced, anew"},
	{Is: cli.ErrNoTerminal, Code: cli.CodeFailed, Hint: "run it on a terminal, or name an age identity file with --identity"},
	{Is: ipnskeys.ErrSealed, Code: cli.CodeFailed, Hint: "name the age identity file that opens it with --identity; a passphrase is asked for on a terminal"},
	{Is: ipnskeys.ErrAway, Code: cli.CodeFailed, Hint: "`publisher key show` says who signs: for an ssh-agent SSH_AUTH_SOCK names its socket and `ssh-add -l` lists its keys, a program must be executable"},
	{Is: ipnskeys.ErrKeyName, Code: cli.CodeUsage},
	{Is: errNoProject, Code: cli.CodeUsage, Hint: "go to a project, name one with --project DIR, or take --user"},
	{Is: clients.ErrUnknown, Code: cli.CodeUsage, Hint: "it is npm, pnpm, yarn (2 and later), yarn1 or bun"},
	{Is: clients.ErrNoEvidence, Code: cli.CodeUsage, Hint: "name a client: `registry-mirror use npm`"},
	{Is: clients.ErrEdit, Code: cli.CodeFailed, Hint: "nothing in it was changed; docs/clients.md has what to write for each client"},
	{Is: npm.ErrName, Code: cli.CodeUsage},
	{Is: npm.ErrSpec, Code: cli.CodeUsage, Hint: "name a package as npm does: express, express@4, @types/node@latest"},
	{Is: lockfile.ErrBinary, Code: cli.CodeUsage},
	{Is: lockfile.ErrFormat, Code: cli.CodeUsage, Hint: "package-lock.json, pnpm-lock.yaml, yarn.lock and bun.lock are read; it lies beside package.json"},
	{Is: npm.ErrConfig, Code: cli.CodeUsage, Hint: "see `npm config get registry`, or name a registry with --upstream"},
}

func root() *cobra.Command {
	common := &cli.Common{}
	cmd := &cobra.Command{
		Use:   "registry-mirror",
		Short: "An npm registry that lives on IPFS",
		Long: `registry-mirror serves an npm registry on this machine out of IPFS: a curated
list of hashes under one signed name, and the modules from whoever has them.

Exit codes: 0 done, 1 failed, 10 doctor found something wrong, 11 the registry has other
bytes than a lockfile under one version, 64 usage or configuration, 69 node or network away, 75 another
command has this state.`,
		Example: `  registry-mirror up express@4 @types/node lodash    # a registry of your own
  registry-mirror daemon --ipfs k51...               # somebody else's
  registry-mirror use                                # this project installs from it`,
	}
	common.Bind(cmd)
	cmd.AddCommand(upCommand(common), daemonCommand(common), addCommand(common), removeCommand(common), listCommand(common), pinCommand(common), unpinCommand(common), pinsCommand(common), fetchCommand(common), exportCommand(common), importCommand(common), syncCommand(common), statusCommand(common), useCommand(common), unuseCommand(common), doctorCommand(common), whyCommand(common), diffCommand(common), cli.VersionCommand())
	return cmd
}
