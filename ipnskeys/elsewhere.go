package ipnskeys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// Who signs with a key, as Key.Signer says.
const (
	SignerFile    = "file"    // this package, with the sealed key
	SignerAgent   = "agent"   // an ssh-agent
	SignerCommand = "command" // a program
)

var (
	// ErrAway is returned when an agent, or a command, cannot be reached, or the
	// agent does not have the key.
	ErrAway = errors.New("the signer is away")
	// ErrSigner is returned by Add for signers that cannot be: none, two, or a
	// program without its whole path.
	ErrSigner = errors.New("a key that is elsewhere has one signer: the agent, or a program by its absolute path")
)

// signTime bounds one signature of an agent or a command, with a person's touch.
const signTime = time.Minute

// Elsewhere says who has a private key that is not here. One of its fields is
// set.
type Elsewhere struct {
	// Agent is the ssh-agent at $SSH_AUTH_SOCK (draft-miller-ssh-agent).
	Agent bool `json:"agent,omitempty"`
	// Command is a program, by its absolute path, and its arguments, none of them
	// a secret. No shell sees them. For each signature it is started once, in "/",
	// with the message to sign on its standard input until that ends. It answers
	// with the 64 bytes of an Ed25519 signature (RFC 8032, pure: the message is
	// not hashed beforehand) on its standard output, nothing else, and exits with
	// 0, within a minute. Of what it writes to standard error the beginning is in
	// the error. A signature takes two calls: V2's, then V1's.
	Command []string `json:"command,omitempty"`
}

// kind is Key.Signer; "" where e is none that can be.
func (e *Elsewhere) kind() string {
	switch {
	case e == nil:
		return SignerFile
	case e.Agent && len(e.Command) == 0:
		return SignerAgent
	case !e.Agent && len(e.Command) > 0 && filepath.IsAbs(e.Command[0]):
		return SignerCommand
	}
	return ""
}

// String is the command as a shell would take it.
func (e *Elsewhere) String() string {
	words := make([]string, len(e.Command))
	for i, w := range e.Command {
		words[i] = word(w)
	}
	return strings.Join(words, " ")
}

// Add makes a key whose private part is elsewhere, once that signed a message
// that is no record. Its successor is minted here, and sealed to the identity
// in dir. Errors: ErrSigner, ErrAway, ErrSign, and Mint's.
func Add(dir, name string, public ed25519.PublicKey, has Elsewhere) (Key, error) {
	key, err := add(dir, name, public, has)
	if err != nil {
		return Key{}, fmt.Errorf("add key %q to %s: %w", name, dir, err)
	}
	return key, nil
}

func add(dir, name string, public ed25519.PublicKey, has Elsewhere) (Key, error) {
	if err := has.try(public); err != nil {
		return Key{}, err
	}
	return place(dir, name, public, nil, &has, Seal{})
}

// try has a message signed that is no record.
func (e *Elsewhere) try(public ed25519.PublicKey) error {
	if k := e.kind(); k != SignerAgent && k != SignerCommand {
		return ErrSigner
	}
	signer, err := e.reach(public)
	if err != nil {
		return err
	}
	_, err = signer.Sign(nil, []byte("registry-mirror: a signature to see who signs"), crypto.Hash(0))
	return err
}

// reach gives the signer, having seen that it is there. Error: ErrAway.
func (e *Elsewhere) reach(public ed25519.PublicKey) (crypto.Signer, error) {
	if e.Agent {
		a := agentSigner{os.Getenv("SSH_AUTH_SOCK"), public, signTime}
		return a, a.there()
	}
	c := commandSigner{e.Command, public, signTime}
	return c, c.there()
}

// verified lets only a signature through that the public key verifies.
func verified(public ed25519.PublicKey, message, signature []byte) ([]byte, error) {
	if len(signature) != ed25519.SignatureSize || !ed25519.Verify(public, message, signature) {
		return nil, fmt.Errorf("%w: what it gave, %d bytes, does not verify", ErrSign, len(signature))
	}
	return signature, nil
}

var errHashed = errors.New("Ed25519 signs the message itself, not its hash")

// agentSigner asks an agent, over a connection of its own each time.
type agentSigner struct {
	socket string
	public ed25519.PublicKey
	time   time.Duration // of one question
}

func (a agentSigner) Public() crypto.PublicKey { return a.public }

func (a agentSigner) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != 0 {
		return nil, errHashed
	}
	key, err := ssh.NewPublicKey(a.public)
	if err != nil {
		return nil, err
	}
	var signature []byte
	err = a.ask(func(c agent.Agent) error {
		s, err := c.Sign(key, message)
		if err != nil {
			return fmt.Errorf("%w: ssh-agent: %w", ErrSign, err)
		}
		if s.Format != ssh.KeyAlgoED25519 {
			return fmt.Errorf("%w: ssh-agent: it is a %q", ErrSign, s.Format)
		}
		signature, err = verified(a.public, message, s.Blob)
		return err
	})
	return signature, err
}

// there says whether the agent answers and has the key.
func (a agentSigner) there() error {
	key, err := ssh.NewPublicKey(a.public)
	if err != nil {
		return err
	}
	return a.ask(func(c agent.Agent) error {
		keys, err := c.List()
		if err != nil {
			return fmt.Errorf("%w: ssh-agent: %w", ErrAway, err)
		}
		for _, k := range keys {
			if bytes.Equal(k.Marshal(), key.Marshal()) {
				return nil
			}
		}
		return fmt.Errorf("%w: the ssh-agent at %s does not have %s", ErrAway, a.socket, ssh.FingerprintSHA256(key))
	})
}

func (a agentSigner) ask(f func(agent.Agent) error) error {
	if a.socket == "" {
		return fmt.Errorf("%w: no ssh-agent: SSH_AUTH_SOCK is not set", ErrAway)
	}
	d := net.Dialer{Timeout: a.time}
	conn, err := d.Dial("unix", a.socket)
	if err != nil {
		return fmt.Errorf("%w: ssh-agent: %w", ErrAway, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(a.time)); err != nil {
		return fmt.Errorf("%w: ssh-agent: %w", ErrAway, err)
	}
	return f(agent.NewClient(conn))
}

// commandSigner runs a program for each signature.
type commandSigner struct {
	command []string
	public  ed25519.PublicKey
	time    time.Duration
}

func (c commandSigner) Public() crypto.PublicKey { return c.public }

func (c commandSigner) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != 0 {
		return nil, errHashed
	}
	if err := c.there(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.time)
	defer cancel()
	out, said := &bounded{max: ed25519.SignatureSize}, &bounded{max: 1 << 10, quiet: true}
	cmd := exec.CommandContext(ctx, c.command[0], c.command[1:]...)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(message), out, said
	cmd.WaitDelay = time.Second // for what it started and left with our pipes
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %s did not end within %v", ErrSign, c.command[0], c.time)
	case out.over: // a program that went on writing then ended by a broken pipe
		err = fmt.Errorf("%w: %s wrote more than %d bytes", ErrSign, c.command[0], ed25519.SignatureSize)
	case err != nil:
		err = fmt.Errorf("%w: %s: %w", ErrSign, c.command[0], err)
	default:
		return verified(c.public, message, out.data)
	}
	if text := bytes.TrimSpace(said.data); len(text) > 0 {
		err = fmt.Errorf("%w: it says %q", err, text)
	}
	return nil, err
}

// there says whether the program can be run, and is nobody else's to change.
func (c commandSigner) there() error {
	program := c.command[0]
	info, err := os.Stat(program)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%w: %s is no program", ErrAway, program)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return &UnsafeError{program, "is writable by others", "chmod go-w " + quote(program)}
	}
	return nil
}

var errBounded = errors.New("more than was asked for")

// bounded keeps what is written up to max bytes; more is errBounded, or goes
// nowhere when it is quiet.
type bounded struct {
	data  []byte
	max   int
	quiet bool
	over  bool // there was more
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.max-len(b.data))
	b.data = append(b.data, p[:keep]...)
	if b.over = b.over || keep < len(p); b.over && !b.quiet {
		return keep, errBounded
	}
	return len(p), nil
}
