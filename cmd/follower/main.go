// Command follower keeps a selection of npm packages, or all of a feed, in
// IPFS, and records in its ledger what is stored, refused or to be tried again.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/lockfile"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func main() { os.Exit(cli.Main(root(), causes)) }

var causes = []cli.Cause{
	{Is: ledger.ErrLocked, Code: cli.CodeLocked, Hint: "another follower, or `registry-mirror up`, runs on this state; stop it or use another --state"},
	{Is: ipfs.ErrLocked, Code: cli.CodeLocked, Hint: "another command is just starting its node on this state; try again"},
	{Is: socket.ErrInUse, Code: cli.CodeLocked, Hint: "another follower, or `registry-mirror up`, runs on this state; stop it or use another --state"},
	{Is: ledger.ErrCorrupt, Code: cli.CodeFailed, Hint: "restore the state's ledger/ from a backup; without one, another --state fetches all of it anew"},
	{Is: ipfs.ErrDamaged, Code: cli.CodeFailed, Hint: "with node/blocks moved out of the state, `follower check --fetch` and `follower run` fetch anew what the ledger names; then move out registries/NAME/index too, and the next `publisher publish` puts all of it anew"},
	{Is: ipfs.ErrAway, Code: cli.CodeAway, Hint: "start the IPFS node of this state, or say where it answers with --ipfs-api"},
	{Is: errNothing, Code: cli.CodeAway, Hint: "is the registry reachable? `npm ping` asks it; --upstream names another"},
	{Is: ipfs.ErrNetwork, Code: cli.CodeUsage, Hint: "leave --network out, or use another --state"},
	{Is: state.ErrOtherNode, Code: cli.CodeUsage, Hint: "leave --node out, or use another --state"},
	{Is: ledger.ErrNoLedger, Code: cli.CodeFailed, Hint: "`follower add NAME` begins one"},
	{Is: couch.ErrReset, Code: codeReset, Hint: "the feed began anew; `follower resync` compares the ledger with its listing and goes on from its new head"},
	{Is: couch.ErrUnavailable, Code: cli.CodeAway, Hint: "is the feed reachable? --feed names another, --feed none does without"},
	{Is: couch.ErrRefused, Code: cli.CodeFailed, Hint: "is it a feed? --feed names a CouchDB database, or npm's replicate service"},
	{Is: socket.ErrNoRoute, Code: cli.CodeLocked, Hint: "`registry-mirror up` runs on this state, and does not do this; stop it, or use another --state"},
	{Is: follow.ErrProfile, Code: cli.CodeFailed, Hint: "use the program that made this state, or begin another with --state"},
	{Is: follow.ErrNoFeed, Code: cli.CodeUsage, Hint: "name one with --feed"},
	{Is: follow.ErrSelection, Code: cli.CodeUsage},
	{Is: errBroken, Code: codeBroken, Hint: "`follower check --fetch` has it fetched again"},
	{Is: errCached, Code: cli.CodeUsage, Hint: "--cached removes that too, and registry-mirror fetches it again where it can; what `registry-mirror up` serves of its own registry is pinned, and stays"},
	{Is: ipfs.ErrCollecting, Code: cli.CodeLocked},
	{Is: npm.ErrName, Code: cli.CodeUsage},
	{Is: npm.ErrSpec, Code: cli.CodeUsage, Hint: "name a package as npm does: express, express@4, @types/node@latest"},
	{Is: lockfile.ErrBinary, Code: cli.CodeUsage},
	{Is: lockfile.ErrFormat, Code: cli.CodeUsage, Hint: "package-lock.json, pnpm-lock.yaml, yarn.lock and bun.lock are read; it lies beside package.json"},
	{Is: npm.ErrConfig, Code: cli.CodeUsage, Hint: "see `npm config get registry`, or name a registry with --upstream"},
}

func root() *cobra.Command {
	common := &cli.Common{}
	cmd := &cobra.Command{
		Use:   "follower",
		Short: "Keep npm packages in IPFS, and a ledger of what is stored",
		Long: `follower keeps a selection of npm packages, or all of a feed, in IPFS. What is
stored, refused or to be tried again stands in its ledger, which publisher
turns into releases.

Exit codes: 0 done, 1 failed, 10 the node lost something (check), 11 the feed
began anew (run), 64 usage or configuration, 69 node or registry away, 75 another
follower has this state.`,
		Example: `  follower add express@4 @types/node lodash
  follower run --once --feed none     # fetch what is selected, then end
  follower run                        # ... and keep it up to date
  follower status --watch`,
	}
	common.Bind(cmd)
	cmd.AddCommand(addCommand(common), removeCommand(common), planCommand(common), runCommand(common), statusCommand(common),
		refusedCommand(common), retryCommand(common), whyCommand(common),
		reconcileCommand(common), resyncCommand(common), checkCommand(common), collectCommand(common), cli.VersionCommand())
	return cmd
}
