// Command publisher turns what follower stored into signed releases: it mints
// keys, builds the list of a registry, signs its root as an IPNS record and
// says done only when that record was read back.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/hosted"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/policy"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/route"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// Exit codes of publisher alone; see its help.
const (
	codeUnconfirmed = 10
	codeIncomplete  = 11
	codeNoSequence  = 12
	codeNewer       = 13
	codeRule        = 14
	codeSigner      = 15
	codeDiffers     = 16
)

func main() { os.Exit(cli.Main(root(), causes)) }

// defaultName is the registry that is meant where none is named.
const defaultName = "main"

const upRuns = "`registry-mirror up` and `publisher serve` publish by themselves; otherwise wait for the other publisher to end"

const buildsAnew = "with registries/NAME/index moved out of the state, the next `publisher publish` builds and puts all of it anew from the ledger"

var causes = []cli.Cause{
	{Is: hosted.ErrExists, Code: cli.CodeUsage, Hint: "nothing was changed: `publisher serve` serves it, `publisher token new` makes another token, `publisher key show NAME` shows its key"},
	{Is: hosted.ErrNoRegistry, Code: cli.CodeUsage, Hint: "`publisher init NAME --scope @SCOPE` makes one; --name names one that is there"},
	{Is: hosted.ErrCorrupt, Code: cli.CodeFailed, Hint: "restore what is named from a backup of the state"},
	{Is: hosted.ErrScope, Code: cli.CodeUsage, Hint: "name it with --scope @acme"},
	{Is: hosted.ErrNoToken, Code: cli.CodeUsage, Hint: "`publisher token list` names them"},
	{Is: hosted.ErrTooMany, Code: cli.CodeUsage, Hint: "`publisher token revoke ID` takes one away"},
	{Is: publish.ErrLocked, Code: cli.CodeLocked, Hint: upRuns},
	{Is: index.ErrLocked, Code: cli.CodeLocked, Hint: upRuns},
	{Is: ledger.ErrLocked, Code: cli.CodeLocked, Hint: "a follower is just starting on this state; try again"},
	{Is: ipfs.ErrLocked, Code: cli.CodeLocked, Hint: "another command is just starting its node on this state; try again"},
	{Is: ledger.ErrCorrupt, Code: cli.CodeFailed, Hint: "restore the state's ledger/ from a backup; without one, another --state fetches all of it anew"},
	{Is: ipfs.ErrDamaged, Code: cli.CodeFailed, Hint: "with node/blocks moved out of the state, `follower check --fetch` and `follower run` fetch anew what the ledger names; then move out registries/NAME/index too, and the next `publisher publish` puts all of it anew"},
	{Is: errNoRecord, Code: cli.CodeAway, Hint: "is the node connected to those who have it? a file is looked at without a node"},
	{Is: ipfs.ErrAway, Code: cli.CodeAway, Hint: "start the IPFS node of this state, or say where it answers with --ipfs-api"},
	{Is: index.ErrCorrupt, Code: codeDiffers, Hint: buildsAnew},
	{Is: publish.ErrUnconfirmed, Code: codeUnconfirmed, Hint: "the record is kept and the next run puts the same bytes again"},
	{Is: publish.ErrUnseen, Code: codeIncomplete, Hint: "nothing was signed; is the node behind --witness connected to this one? the next run pushes and asks again"},
	{Is: publish.ErrIncomplete, Code: codeIncomplete, Hint: "nothing was signed, and the next run pushes again; `follower check --fetch` fetches what the ledger names and the node lacks"},
	{Is: publish.ErrGone, Code: codeIncomplete, Hint: "nothing was changed; `publisher log` lists the other releases, `follower check --fetch` fetches what the ledger names"},
	{Is: publish.ErrJournal, Code: cli.CodeFailed, Hint: "restore it from a backup; moved out of the state it counts as lost, and the next run goes on from the network's record, or signs nothing where that has none"},
	{Is: publish.ErrWithheld, Code: cli.CodeFailed, Hint: "restore it from a backup; without one, move registries/NAME/index out of the state with it, and the next `publisher publish` builds all of it anew, as upstream has it"},
	{Is: publish.ErrUnderWay, Code: cli.CodeFailed, Hint: "`publisher build` ends it"},
	{Is: publish.ErrPolicy, Code: codeRule, Hint: "with that policy in the configuration again, `publisher publish` builds the list by it"},
	{Is: policy.ErrRule, Code: cli.CodeUsage, Hint: "a pattern is a name, \"*\" in it for any characters but a slash, and a range after @: \"@acme/*\", \"lodash@<4.17.21\"; an age is 3d or 36h; docs/formats.md has it all"},
	{Is: publish.ErrNoSequence, Code: codeNoSequence, Hint: "restore the journal of this registry, or connect to the network that has its record; of a key from elsewhere `publisher key import` and `key add` say it with --sequence-at-least"},
	{Is: publish.ErrSpent, Code: codeNewer, Hint: "whoever signed that had the key, and the name is lost: publish under another, and tell your readers"},
	{Is: publish.ErrNewer, Code: codeNewer, Hint: "nothing was signed. Is the key in use elsewhere? Of a state restored from a backup move registries/NAME/journal (journal-N after a rotation) out, and the next run goes on above the network's record"},
	{Is: ipnsrecord.ErrEquivocation, Code: codeRule, Hint: "nothing was signed: the key is in use elsewhere, or was. Where that has ended, move registries/NAME/journal (journal-N after a rotation) out of the state, and the next run goes on above both"},
	{Is: publish.ErrPolicyLost, Code: codeRule, Hint: "nothing was built: have its table [registries.NAME.policy] in the configuration file; an empty one lists everything"},
	{Is: publish.ErrOtherLedger, Code: codeRule},
	{Is: publish.ErrLedgerBehind, Code: codeRule},
	{Is: publish.ErrIndexBehind, Code: codeRule, Hint: "`publisher build` makes a release above it"},
	{Is: cli.ErrNoTerminal, Code: codeSigner, Hint: "run it on a terminal, or name an age identity file with --identity"},
	{Is: cli.ErrPassphrases, Code: cli.CodeUsage, Hint: "run it again"},
	{Is: ipnskeys.ErrAway, Code: codeSigner, Hint: "`publisher key show` says who signs: for an ssh-agent SSH_AUTH_SOCK names its socket and `ssh-add -l` lists its keys, a program must be executable"},
	{Is: ipnskeys.ErrSealed, Code: codeSigner, Hint: "name the age identity file that opens it with --identity; a passphrase is asked for on a terminal"},
	{Is: ipnskeys.ErrSign, Code: codeSigner, Hint: "nothing was put; `publisher key show` says who signs"},
	{Is: publish.ErrSigner, Code: codeSigner},
	{Is: ipnskeys.ErrUnsafe, Code: codeSigner},
	{Is: ipnskeys.ErrCorrupt, Code: codeSigner, Hint: "restore that file from a backup of the keys"},
	{Is: ipnskeys.ErrNotHere, Code: codeSigner, Hint: "`publisher key show` says who has it"},
	{Is: ipnskeys.ErrKeyType, Code: cli.CodeUsage, Hint: "IPNS names of other keys do not resolve everywhere: make an Ed25519 one"},
	{Is: ipnskeys.ErrFormat, Code: cli.CodeUsage, Hint: "`ipfs key export` writes either; an OpenSSH private key stays in its agent: `publisher key add --agent`"},
	{Is: ipnskeys.ErrPublicKey, Code: cli.CodeUsage, Hint: "`ssh-add -L` lists an agent's"},
	{Is: ipnskeys.ErrRecipient, Code: cli.CodeUsage, Hint: "`age-keygen -y IDENTITY` prints an identity's; a plugin's needs age-plugin-NAME in PATH"},
	{Is: ipnskeys.ErrNoSuccessor, Code: codeSigner, Hint: "bring it back from where it was moved to, and name its file with --successor"},
	{Is: ipnskeys.ErrSuccessor, Code: codeRule, Hint: "every release promised another key: mirrors would refuse this one"},
	{Is: ipnskeys.ErrNext, Code: cli.CodeUsage, Hint: "--next takes the public key of a new one"},
	{Is: publish.ErrUnpublished, Code: cli.CodeUsage, Hint: "`publisher publish` puts its first release; then it can be rotated"},
	{Is: publish.ErrJournalUsed, Code: codeRule, Hint: "the journal of this --name is of a key that signed: import under another --name, or leave --sequence-at-least out"},
	{Is: publish.ErrSigned, Code: cli.CodeFailed, Hint: "`publisher record put` puts a signed record again; the next one can be drafted once half of its lifetime is over"},
	{Is: publish.ErrOvertaken, Code: codeRule, Hint: "`publisher record draft` drafts a record for the newest release"},
	{Is: publish.ErrNotDrafted, Code: codeRule, Hint: "`publisher record draft` prints the draft that is to be signed"},
	{Is: publish.ErrNotKept, Code: cli.CodeUsage, Hint: "`publisher key show` lists them, and until when each is kept up"},
	{Is: publish.ErrLifetime, Code: codeRule, Hint: "is the clock right, here and where it was drafted? nothing was signed"},
	{Is: publish.ErrDraft, Code: cli.CodeUsage, Hint: "sign the file that `publisher record draft` wrote, as it is"},
	{Is: ipnsrecord.ErrExpired, Code: codeRule, Hint: "is the clock right? what has expired is drafted and signed anew"},
	{Is: ipnsrecord.ErrSequence, Code: codeRule, Hint: "no record can follow it: whoever had the key made the name unusable"},
	{Is: ipnsrecord.ErrTooBig, Code: codeRule},
	{Is: ipnsrecord.ErrMalformed, Code: codeRule},
	{Is: ipnsrecord.ErrSignature, Code: codeRule, Hint: "is it of another name, or was it changed on its way?"},
	{Is: ipnsrecord.ErrValue, Code: codeRule},
	{Is: ipnskeys.ErrNoKey, Code: codeSigner, Hint: "`publisher key new` mints one"},
	{Is: ipnskeys.ErrKeyExists, Code: cli.CodeUsage, Hint: "`publisher key list` shows it; no key is ever replaced"},
	{Is: publish.ErrKeyTaken, Code: cli.CodeUsage, Hint: "publish with --name as that is called: under two names a key would use each sequence twice"},
	{Is: errDiffers, Code: codeDiffers, Hint: "`follower check --fetch` fetches tarballs and upstream's documents; " + buildsAnew},
	{Is: index.ErrNoIndex, Code: cli.CodeFailed, Hint: "`publisher publish` makes the first release"},
	{Is: index.ErrNoRelease, Code: cli.CodeUsage, Hint: "`publisher log` lists the releases, `publisher publish` makes the first"},
	{Is: index.ErrNotFound, Code: cli.CodeFailed, Hint: "`publisher list 'PATTERN*'` looks for names, `follower why NAME` says what became of one"},
	{Is: index.ErrNoBlock, Code: cli.CodeFailed, Hint: "the index does not have that release's directories any more"},
	{Is: ipnskeys.ErrKeyName, Code: cli.CodeUsage},
	{Is: ledger.ErrNoLedger, Code: cli.CodeFailed, Hint: "`follower add NAME`, then `follower run --once`, make one to publish from"},
	{Is: ipfs.ErrNetwork, Code: cli.CodeUsage, Hint: "leave --network out, or use another --state"},
	{Is: state.ErrOtherNode, Code: cli.CodeUsage, Hint: "leave --node out, or use another --state"},
	{Is: route.ErrRoute, Code: cli.CodeUsage, Hint: "--route takes an http or https URL, or the absolute path of a directory"},
	{Is: publish.ErrMetrics, Code: cli.CodeUsage, Hint: "the node exporter's textfile collector reads no others"},
	{Is: publish.ErrOrigin, Code: cli.CodeUsage, Hint: "give scheme and host, as in " + publish.DefaultGatewayOrigin + ", or none"},
	{Is: index.ErrParameters, Code: cli.CodeUsage, Hint: "a registry keeps its --gateway-origin: leave it out, or publish under another --name"},
}

func root() *cobra.Command {
	common := &cli.Common{}
	cmd := &cobra.Command{
		Use:   "publisher",
		Short: "Build, sign and publish releases of a registry",
		Long: `publisher turns what follower stored into releases: a list of packages and
their hashes, as an IPFS directory whose root is signed as an IPNS record. It
works beside a running follower and without one.

Exit codes: 0 done, 1 failed, 10 stored but not confirmed, 11 content
incomplete and nothing published, 12 no journal and network unreadable,
13 newer record than ours, 14 rule violated, 15 signer unavailable, 16 index corrupt
or not what the ledger gives, 64 usage or configuration, 69 node away, 75 locked.`,
		Example: `  publisher key new
  publisher publish
  publisher log
  publisher init acme --scope @acme && publisher serve   # takes npm publish
  */5 * * * *  publisher publish      # in a crontab: success prints nothing`,
	}
	common.Bind(cmd)
	r := &registry{Common: common}
	cmd.PersistentFlags().StringVar(&r.name, "name", defaultName, "registry of this state to work on; its key has the same name")
	prior := cmd.PersistentPreRunE
	cmd.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		if err := prior(c, args); err != nil {
			return err
		}
		if err := r.checkTables(r.Settings); err != nil {
			return err
		}
		return r.curate(r.Settings)
	}
	cmd.AddCommand(initCommand(r), serveCommand(r), tokenCommand(r), keyCommand(r), buildCommand(r), publishCommand(r), runCommand(r), republishCommand(r), statusCommand(r), withheldCommand(r), settingsCommand(r),
		logCommand(r), diffCommand(r), showCommand(r), listCommand(r), rollbackCommand(r), collectCommand(r), checkCommand(r), recordCommand(r), cli.VersionCommand())
	return cmd
}
