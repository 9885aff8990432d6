package main

import (
	"crypto/ed25519"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// defaultOverlap is how long a former name is kept up: longer than most mirrors are
// off.
const defaultOverlap = 30 * 24 * time.Hour

// rotateFlags are those of key rotate.
type rotateFlags struct {
	successor, next, program string
	agent                    bool
	overlap                  time.Duration
	seal                     sealFlags
}

func keyRotateCommand(r *registry) *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{
		Use:   "rotate [{--agent | --command PROGRAM} [-- ARG...]]",
		Short: "Put the successor that was promised in the key's place",
		Long: `Makes the successor of the key of --name, which every release promised, the
registry's key, and mints the one that follows it. The registry has another IPNS name
then. For --overlap each release is put under the former name too, where it says which
name follows; mirrors that saw the promise go over to it, and to no other. After that
the former name's record is renewed no more. Its key stays, sealed.

Do it when the key may be in other hands, and now and then before that. Who has the old
key can still make its name useless. Mirrors that heard of the new name in time go on;
for the others there is registry-mirror sync --follow.

--successor names the file with the successor, brought back from where it was moved to:
sealed or not, as publisher key import takes it. With --agent or --command, as of
publisher key add, it is the file of a public key whose private part stays elsewhere.
--next takes the public key of who follows then, instead of minting it here. The new
key is sealed to the identity beside the keys where the one before was; else say to
what.`,
		Example: `  publisher key rotate
  publisher key rotate --successor /media/stick/successor.age --overlap 1440h
  publisher key rotate --next hardware.pub      # and once more, when that is to sign:
  publisher key rotate --successor hardware.pub --agent`,
		RunE: func(cmd *cobra.Command, args []string) error {
			rotation, err := f.rotation(args)
			if err != nil {
				return err
			}
			dir := state.Dir(r.State)
			k, err := r.find(dir)
			if err != nil {
				return err
			}
			if !f.seal.given() && k.IdentityFile == "" && rotation.Signer == nil {
				return cli.Hint(cli.Usagef("say what the successor is sealed to: the key is not sealed to the identity beside it"), "--recipient, or --ask-passphrase")
			}
			if socket.Alive(cmd.Context(), dir.Socket("publisher")) || socket.Alive(cmd.Context(), dir.HostedSocket(r.name, "publisher")) {
				return fmt.Errorf("rotate key %q: %w", r.name, publish.ErrLocked)
			}
			if rotation.Identities, err = r.opening(cmd.Context()).Read(r.name); err != nil {
				return err
			}
			if rotation.Seal, err = f.seal.seal(cmd.Context()); err != nil {
				return err
			}
			rotation.Until = time.Now().Add(f.overlap)
			if k, err = publish.Rotate(cmd.Context(), dir.Keys(), r.name, dir.Journal(r.name), rotation); err != nil {
				return err
			}
			if err := r.printKey(cmd, k); err != nil || r.JSON {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "next        publisher publish: readers hear of it with the next release")
			return err
		},
	}
	f.bind(cmd)
	bindIdentity(cmd, r)
	return cmd
}

func (f *rotateFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.successor, "successor", "", "file with the successor's private key, or its public one with --agent or --command (default: where the key was minted)")
	cmd.Flags().StringVar(&f.next, "next", "", "file with the public key of who follows the successor (default: minted here)")
	cmd.Flags().DurationVar(&f.overlap, "overlap", defaultOverlap, "how long releases are put under the former name too")
	cmd.Flags().BoolVar(&f.agent, "agent", false, "the ssh-agent at $SSH_AUTH_SOCK has the successor")
	cmd.Flags().StringVar(&f.program, "command", "", "absolute path of the program that signs with the successor")
	f.seal.bind(cmd)
}

// rotation is what the flags and the arguments of a program say.
func (f *rotateFlags) rotation(args []string) (r ipnskeys.Rotation, err error) {
	if f.overlap < 0 {
		return r, cli.Hint(cli.Usagef("--overlap %s: it is less than nothing", f.overlap), "--overlap 720h are thirty days")
	}
	switch {
	case f.agent && f.program != "":
		return r, cli.Usagef("give one of --agent and --command")
	case f.program == "" && len(args) > 0:
		return r, cli.Usagef("arguments are of --command: %q", args)
	case f.program != "" && !filepath.IsAbs(f.program):
		return r, cli.Usagef("--command %s: give its absolute path", f.program)
	}
	if f.agent || f.program != "" {
		if f.successor == "" {
			return r, cli.Hint(cli.Usagef("say which key signs"), "--successor names the file of its public key")
		}
		r.Signer = &ipnskeys.Elsewhere{Agent: f.agent}
		if f.program != "" {
			r.Signer.Command = append([]string{f.program}, args...)
		}
		if r.Public, err = ipnskeys.ReadPublic(f.successor); err != nil {
			return r, err
		}
	} else {
		r.File = f.successor
	}
	var next ed25519.PublicKey
	if f.next != "" {
		if next, err = ipnskeys.ReadPublic(f.next); err != nil {
			return r, err
		}
	}
	r.Next = next
	return r, nil
}
