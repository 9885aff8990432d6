package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// keyJSON is what may be shown of a key.
type keyJSON struct {
	Name        string       `json:"name"`
	IPNSName    string       `json:"ipns_name"`
	Fingerprint string       `json:"fingerprint"`
	PublicKey   string       `json:"public_key"`
	Next        string       `json:"next"`
	Created     time.Time    `json:"created"`
	Signer      string       `json:"signer"`
	Command     string       `json:"command,omitempty"`
	File        string       `json:"file,omitempty"`
	Successor   string       `json:"successor_file"`
	Identity    string       `json:"identity_file,omitempty"`
	Backup      string       `json:"backup_command"`
	Number      int          `json:"number"`
	DNSLink     string       `json:"dnslink"` // for the TXT record of _dnslink.DOMAIN (https://dnslink.dev)
	Former      []formerJSON `json:"former,omitempty"`
}

// formerJSON is what may be shown of a key that was followed by its successor.
type formerJSON struct {
	IPNSName string    `json:"ipns_name"`
	Created  time.Time `json:"created"`
	Until    time.Time `json:"until"`
	Signer   string    `json:"signer"`
	File     string    `json:"file,omitempty"`
}

func show(k ipnskeys.Key) keyJSON {
	var former []formerJSON
	for _, f := range k.Former {
		former = append(former, formerJSON{f.IPNSName.String(), f.Created, f.Until, f.Signer, f.File})
	}
	return keyJSON{
		k.Name, k.IPNSName.String(), k.Fingerprint, k.PublicKey, k.Next, k.Created, k.Signer, k.Command,
		k.File, k.SuccessorFile, k.IdentityFile, k.BackupCommand(), k.Number, dnslink(k), former,
	}
}

// dnslink is what the TXT record of _dnslink.DOMAIN says for readers to find the
// registry by a domain's name; it stays as it is until the key is rotated.
func dnslink(k ipnskeys.Key) string { return "dnslink=/ipns/" + k.IPNSName.String() }

// printKey says for people what show does.
func printKey(w io.Writer, k ipnskeys.Key) error {
	fmt.Fprintf(w, "name        %s\n", k.IPNSName)
	fmt.Fprintf(w, "fingerprint %s\n", k.Fingerprint)
	switch k.Signer {
	case ipnskeys.SignerFile:
		fmt.Fprintf(w, "key         %s\n", k.File)
	case ipnskeys.SignerAgent:
		fmt.Fprintln(w, "signed by   the ssh-agent at $SSH_AUTH_SOCK")
	case ipnskeys.SignerCommand:
		fmt.Fprintf(w, "signed by   %s\n", k.Command)
	}
	successor := "best moved to another machine"
	if _, err := os.Lstat(k.SuccessorFile); errors.Is(err, os.ErrNotExist) {
		successor = "moved away"
	}
	fmt.Fprintf(w, "successor   %s (%s)\n", k.SuccessorFile, successor)
	opened := k.IdentityFile
	if opened == "" {
		opened = "an identity that is elsewhere, or a passphrase"
	}
	fmt.Fprintf(w, "opened by   %s\n", opened)
	for _, f := range k.Former {
		fmt.Fprintf(w, "former      %s, %s\n", f.IPNSName, keptUp(f.Until))
	}
	fmt.Fprintf(w, "by domain   TXT of _dnslink.DOMAIN: %s\n", dnslink(k))
	_, err := fmt.Fprintf(w, "back up     %s\n", k.BackupCommand())
	return err
}

// keptUp says until when a former name is.
func keptUp(until time.Time) string {
	if time.Now().Before(until) {
		return "kept up until " + cli.Time(until)
	}
	return "given up on " + cli.Time(until)
}

func (r *registry) printKey(cmd *cobra.Command, k ipnskeys.Key) error {
	if r.JSON {
		return cli.PrintJSON(cmd.OutOrStdout(), show(k))
	}
	return printKey(cmd.OutOrStdout(), k)
}

// printTaken is printKey for a key from elsewhere, and says what the first
// publish will do about the sequence.
func (r *registry) printTaken(cmd *cobra.Command, k ipnskeys.Key) error {
	if err := r.printKey(cmd, k); err != nil || r.JSON {
		return err
	}
	if _, err := os.Lstat(journalOf(state.Dir(r.State), k)); errors.Is(err, os.ErrNotExist) {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "sequence    unknown: the first publish asks the network for the last one")
		return err
	}
	return nil
}

func keyCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Mint, show, move, seal and rotate the keys that sign releases"}
	cmd.AddCommand(keyNewCommand(r), keyListCommand(r), keyShowCommand(r), keyImportCommand(r), keyAddCommand(r),
		keyExportCommand(r), keyResealCommand(r), keyRotateCommand(r))
	return cmd
}

func keyNewCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "new",
		Short: "Mint a key, and the key that will follow it",
		Long: `Mints the key of the registry --name and its successor, both sealed to an age
identity that lies beside them. That protects a backup or a disk that holds only
one of the two; it does not protect from who can read both. publisher key reseal
seals them to something else.`,
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
			return r.printKey(cmd, k)
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
				for _, f := range k.Former {
					fmt.Fprintf(cmd.OutOrStdout(), "%-16s   before: %s, %s\n", "", f.IPNSName, keptUp(f.Until))
				}
			}
			return nil
		},
	}
}

func keyShowCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show what may be known of a key",
		Long: `Shows the key of the registry NAME, else of --name: its IPNS name, its fingerprint
as ssh-keygen -l and ssh-add -l print it, who signs, and where its parts lie. It
opens nothing.`,
		Example: `  publisher key show acme
  publisher key show --json | jq -r .public_key`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.name = args[0]
			}
			k, err := r.find(state.Dir(r.State))
			if err != nil {
				return err
			}
			return r.printKey(cmd, k)
		},
	}
}

// atLeastFlag is --sequence-at-least: nil where it was not given.
type atLeastFlag struct{ n uint64 }

func (f *atLeastFlag) bind(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&f.n, "sequence-at-least", 0, "sequence that the key has surely used elsewhere, below 2^62; 0 for a key that never signed (default: the first publish asks the network)")
}

func (f *atLeastFlag) value(cmd *cobra.Command) (*uint64, error) {
	if !cmd.Flags().Changed("sequence-at-least") {
		return nil, nil
	}
	if f.n >= ipnsrecord.MaxSequence {
		return nil, cli.Usagef("--sequence-at-least %d: it is below 2^62", f.n)
	}
	return &f.n, nil
}

const aboutSequence = `A key from elsewhere has signed before, and no sequence may be used twice: the
first publish therefore asks the network what the last one was, and signs nothing
where that is silent. --sequence-at-least says it where the network cannot, or
never heard of the name; it may be given later, by the same command once more.`

func keyImportCommand(r *registry) *cobra.Command {
	var atLeast atLeastFlag
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take in a private key that was made elsewhere",
		Long: `Takes in an Ed25519 private key, seals it as publisher key new does, and mints its
successor. FILE, mode 0600, is what Kubo's ipfs key export writes, in either
format (libp2p-protobuf-cleartext, pem-pkcs8-cleartext), what OpenSSL writes, or
one of those sealed with age: then --identity, or a passphrase that is asked for,
opens it. FILE stays where it is; a key in the clear is best destroyed then.

` + aboutSequence,
		Example: `  ipfs key export registry -o registry.key && publisher key import registry.key
  publisher key import registry.key.age --identity identity.txt --sequence-at-least 41`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := atLeast.value(cmd)
			if err != nil {
				return err
			}
			dir := state.Dir(r.State)
			if err := dir.Make(); err != nil {
				return err
			}
			identities, err := r.opening(cmd.Context()).Read(r.name)
			if err != nil {
				return err
			}
			private, err := ipnskeys.ReadPrivate(args[0], identities...)
			if err != nil {
				return err
			}
			k, err := publish.Import(dir.Keys(), r.name, dir.Journal(r.name), private, n)
			if err != nil {
				return err
			}
			return r.printTaken(cmd, k)
		},
	}
	atLeast.bind(cmd)
	bindIdentity(cmd, r)
	return cmd
}

func keyAddCommand(r *registry) *cobra.Command {
	var atLeast atLeastFlag
	var has ipnskeys.Elsewhere
	var program string
	cmd := &cobra.Command{
		Use:   "add PUBLIC {--agent | --command PROGRAM [-- ARG...]}",
		Short: "Use a private key that stays where it is: in an ssh-agent, a KMS, a token",
		Long: `Makes the key of the registry --name one whose private part stays elsewhere. PUBLIC
is a file with its Ed25519 public key: a line "ssh-ed25519 AAAA...", as
ssh-keygen and ssh-add -L write it, or a PEM "PUBLIC KEY", as OpenSSL, KMS and
PKCS#11 tools do. The signer signs one message, which is no record, before the key
is added. Its successor is minted here.

--agent asks the ssh-agent at $SSH_AUTH_SOCK, for this and for each signature.

--command starts PROGRAM, by its absolute path, with the ARGs, which are kept in
the state and are no place for a secret: for each signature once, without a
shell, in /, with the message on standard input until that ends. It writes the 64
raw bytes of the Ed25519 signature over the message itself, and nothing else, to
standard output and exits with 0, within a minute. What it writes to standard
error is shown where it fails. Each signature is verified before it is used.

` + aboutSequence,
		Example: `  ssh-keygen -t ed25519 -f registry && ssh-add registry
  publisher key add registry.pub --agent --sequence-at-least 0
  publisher key add kms.pem --command /usr/local/bin/kms-sign -- --key-id 7`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if has.Agent == (program != "") {
				return cli.Usagef("give one of --agent and --command")
			}
			if program != "" {
				if !filepath.IsAbs(program) {
					return cli.Usagef("--command %s: give its absolute path", program)
				}
				has.Command = append([]string{program}, args[1:]...)
			} else if len(args) > 1 {
				return cli.Usagef("--agent takes no arguments: %q", args[1:])
			}
			n, err := atLeast.value(cmd)
			if err != nil {
				return err
			}
			public, err := ipnskeys.ReadPublic(args[0])
			if err != nil {
				return err
			}
			dir := state.Dir(r.State)
			if err := dir.Make(); err != nil {
				return err
			}
			k, err := publish.Add(dir.Keys(), r.name, dir.Journal(r.name), public, has, n)
			if err != nil {
				return err
			}
			return r.printTaken(cmd, k)
		},
	}
	cmd.Flags().BoolVar(&has.Agent, "agent", false, "the ssh-agent at $SSH_AUTH_SOCK has the key")
	cmd.Flags().StringVar(&program, "command", "", "absolute path of the program that signs")
	atLeast.bind(cmd)
	return cmd
}

// sealFlags say what to seal to.
type sealFlags struct {
	recipients []string
	ask        bool
}

func (f *sealFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.recipients, "recipient", nil, "age recipient to seal to, age1...; a plugin's too; may be repeated")
	cmd.Flags().BoolVar(&f.ask, "ask-passphrase", false, "seal with a passphrase, which is asked for on the terminal")
}

// given says whether there is anything to seal to.
func (f *sealFlags) given() bool { return f.ask || len(f.recipients) > 0 }

func (f *sealFlags) seal(ctx context.Context) (ipnskeys.Seal, error) {
	if !f.ask {
		return ipnskeys.SealTo(f.recipients...)
	}
	if len(f.recipients) > 0 {
		return ipnskeys.Seal{}, cli.Usagef("give --recipient or --ask-passphrase: age seals to one passphrase alone")
	}
	passphrase, err := cli.NewPassphrase(ctx)
	if err != nil {
		return ipnskeys.Seal{}, err
	}
	return ipnskeys.SealWith(passphrase)
}

func keyExportCommand(r *registry) *cobra.Command {
	var to sealFlags
	var inClear bool
	var form string
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write a private key to a file, for Kubo or for another machine",
		Long: `Writes the private key of the registry --name to FILE, which must not exist and is
made with mode 0600: sealed with age to --recipient or --ask-passphrase, or with
--clear as it is, in a format that ipfs key import takes. Who can read a key in
the clear can sign for the registry for ever: a name has no other lock. It goes to
no terminal and no pipe.

Two places that sign with one key, and not by one journal, give one sequence two
values; readers keep that as evidence. The journal's place is beside the key that
is in use.`,
		Example: `  publisher key export backup.age --recipient age1...
  publisher key export registry.key --clear && ipfs key import registry registry.key`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if inClear == to.given() {
				return cli.Hint(cli.Usagef("say what the key is sealed to"), "--recipient or --ask-passphrase seal it; --clear alone writes it as it is")
			}
			if args[0] == "-" {
				return cli.Usagef("a private key goes to a file, and not to standard output")
			}
			dir := state.Dir(r.State)
			if _, err := r.find(dir); err != nil {
				return err
			}
			var seal *ipnskeys.Seal
			if !inClear {
				s, err := to.seal(cmd.Context())
				if err != nil {
					return err
				}
				seal = &s
			}
			identities, err := r.opening(cmd.Context()).Read(r.name)
			if err != nil {
				return err
			}
			err = ipnskeys.Export(cmd.Context(), dir.Keys(), r.name, args[0], ipnskeys.Format(form), seal, identities...)
			if errors.Is(err, os.ErrExist) {
				return cli.Hint(cli.Usagef("%w", err), "name a file that is not there: none is ever replaced")
			}
			if err != nil {
				return err
			}
			if inClear {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is the private key, in the clear: who can read it can sign for this registry\n", args[0])
			}
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), map[string]any{"name": r.name, "file": args[0], "format": form, "sealed": !inClear})
			}
			return nil
		},
	}
	to.bind(cmd)
	cmd.Flags().BoolVar(&inClear, "clear", false, "write the key as it is: who can read the file can sign")
	cmd.Flags().StringVar(&form, "format", string(ipnskeys.Libp2p), "form of the key: "+string(ipnskeys.Libp2p)+" or "+string(ipnskeys.PKCS8))
	bindIdentity(cmd, r)
	return cmd
}

func keyResealCommand(r *registry) *cobra.Command {
	var to sealFlags
	cmd := &cobra.Command{
		Use:   "reseal",
		Short: "Seal a key to something else",
		Long: `Seals the key of the registry --name, and its successor where that is here and
opens, to --recipient or to --ask-passphrase; to the identity beside the keys
without either. What it is sealed to now opens it: the identity beside the keys,
--identity, or a passphrase that is asked for. Give the new identity too, where it is
at hand: then the new seal is opened with it before it counts. A crash leaves the old
seal or the new one; run again, it ends what was begun.

Backups, and what a disk keeps of deleted files, stay sealed as they were. What
publishes unattended then needs --identity, or a credential of systemd.`,
		Example: `  age-keygen -o /media/stick/identity.txt     # prints the recipient
  publisher key reseal --recipient age1... --identity /media/stick/identity.txt
  publisher publish --identity /media/stick/identity.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := state.Dir(r.State)
			if _, err := r.find(dir); err != nil {
				return err
			}
			seal, err := to.seal(cmd.Context())
			if err != nil {
				return err
			}
			identities, err := r.opening(cmd.Context()).Read(r.name)
			if err != nil {
				return err
			}
			done, err := ipnskeys.Reseal(cmd.Context(), dir.Keys(), r.name, seal, identities...)
			if err != nil {
				return err
			}
			if done.Left {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s stays sealed as it was: nothing given opens it\n", done.SuccessorFile)
			}
			if !done.Tried {
				fmt.Fprintln(cmd.ErrOrStderr(), cli.Beside(cmd, "nothing given opens the new seal, so whether it opens was not tried: `publisher key reseal` with --identity tries it"))
			}
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), struct {
					keyJSON
					Resealed bool `json:"successor_resealed"`
					Tried    bool `json:"tried"`
				}{show(done.Key), done.Successor, done.Tried})
			}
			return printKey(cmd.OutOrStdout(), done.Key)
		},
	}
	to.bind(cmd)
	bindIdentity(cmd, r)
	return cmd
}

func bindIdentity(cmd *cobra.Command, r *registry) {
	cmd.Flags().StringArrayVar(&r.identities, "identity", nil, "age identity file, mode 0600, that opens the key; may be repeated (default: the one beside the keys, and $CREDENTIALS_DIRECTORY/NAME)")
}

// opening is what the registry's key may be opened with.
func (r *registry) opening(ctx context.Context) ipnskeys.Opening {
	return ipnskeys.Opening{
		Identities: r.identities, Credentials: os.Getenv("CREDENTIALS_DIRECTORY"),
		Passphrase: func() (string, error) { return cli.ReadPassphrase(ctx, "Passphrase of the key "+r.name+": ") },
	}
}
