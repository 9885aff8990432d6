package ipnskeys

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// externalSigner as the first argument makes this test's binary the program of
// Elsewhere.Command: signExternally.
const externalSigner = "external-signer"

func signExternally(how string, args []string) {
	seed, err := hex.DecodeString(args[0])
	if err != nil {
		panic(err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	message, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	signature := ed25519.Sign(key, message)
	switch how {
	case "good":
	case "exits 3":
		fmt.Fprintln(os.Stderr, "the token is locked\x1b[2J")
		os.Exit(3)
	case "short":
		signature = signature[:63]
	case "long":
		signature = append(signature, '\n')
	case "endless":
		for {
			if _, err := os.Stdout.Write(make([]byte, 1<<16)); err != nil {
				os.Exit(0)
			}
		}
	case "hex":
		signature = []byte(hex.EncodeToString(signature))
	case "other message":
		signature = ed25519.Sign(key, message[1:])
	case "signs, then fails":
		os.Stdout.Write(signature)
		os.Exit(1)
	case "hangs":
		select {}
	case "talks":
		os.Stderr.Write(bytes.Repeat([]byte("talk "), 1<<16))
	}
	os.Stdout.Write(signature)
	os.Exit(0)
}

// command is this binary as an external signer.
func command(t testing.TB, how string, key ed25519.PrivateKey) []string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{program, externalSigner, how, hex.EncodeToString(key.Seed())}
}

func TestCommand(t *testing.T) {
	key := newKey(t)
	public := key.Public().(ed25519.PublicKey)
	for _, c := range []struct {
		how  string
		time time.Duration
		err  error
		says string
	}{
		{"good", time.Minute, nil, ""},
		{"talks", time.Minute, nil, ""},
		{"exits 3", time.Minute, ErrSign, `exit status 3: it says "the token is locked\x1b[2J"`},
		{"short", time.Minute, ErrSign, "63 bytes"},
		{"long", time.Minute, ErrSign, "more than 64 bytes"},
		{"endless", time.Minute, ErrSign, "more than 64 bytes"},
		{"hex", time.Minute, ErrSign, "more than 64 bytes"},
		{"other message", time.Minute, ErrSign, "does not verify"},
		{"signs, then fails", time.Minute, ErrSign, "exit status 1"},
		{"hangs", 100 * time.Millisecond, ErrSign, "did not end within"},
	} {
		s := commandSigner{command(t, c.how, key), public, c.time}
		got, err := s.Sign(nil, []byte("message"), crypto.Hash(0))
		if !errors.Is(err, c.err) || c.err == nil && (err != nil || !ed25519.Verify(public, []byte("message"), got)) || c.err != nil && got != nil {
			t.Errorf("%s: %x, %v", c.how, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v does not say %q", c.how, err, c.says)
		}
	}
	if _, err := (commandSigner{command(t, "good", key), public, time.Minute}).Sign(nil, make([]byte, 64), crypto.SHA512); !errors.Is(err, errHashed) {
		t.Errorf("a hash: %v", err)
	}
}

func TestCommandProgram(t *testing.T) {
	key := newKey(t)
	public := key.Public().(ed25519.PublicKey)
	open := secretFile(t, []byte("#!/bin/sh\n"))
	chmod(t, open, 0o777)
	for _, c := range []struct {
		name string
		has  Elsewhere
		err  error
	}{
		{"none", Elsewhere{}, ErrSigner},
		{"two", Elsewhere{Agent: true, Command: []string{"/bin/true"}}, ErrSigner},
		{"by PATH", Elsewhere{Command: []string{"true"}}, ErrSigner},
		{"gone", Elsewhere{Command: []string{filepath.Join(t.TempDir(), "gone")}}, ErrAway},
		{"a directory", Elsewhere{Command: []string{t.TempDir()}}, ErrAway},
		{"not executable", Elsewhere{Command: []string{secretFile(t, nil)}}, ErrAway},
		{"writable by others", Elsewhere{Command: []string{open}}, ErrUnsafe},
		{"of another key", Elsewhere{Command: command(t, "good", newKey(t))}, ErrSign},
	} {
		dir := t.TempDir()
		if _, err := Add(dir, "main", public, c.has); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if keys, err := List(dir); err != nil || len(keys) != 0 {
			t.Errorf("%s: it was added: %v, %v", c.name, keys, err)
		}
	}
}

// startAgent runs an ssh-agent in this process until the test ends.
func startAgent(t testing.TB, keys agent.Agent) string {
	t.Helper()
	// A socket's path has at most some 100 bytes, which a test's directory may exceed.
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer conn.Close()
				agent.ServeAgent(keys, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		served.Wait()
	})
	return path
}

func keyring(t testing.TB, keys ...ed25519.PrivateKey) agent.Agent {
	t.Helper()
	ring := agent.NewKeyring()
	for _, key := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	return ring
}

// A key in an agent, and one behind a program, sign records that are valid,
// while no private key of theirs is in the directory.
func TestElsewhere(t *testing.T) {
	key := newKey(t)
	public := key.Public().(ed25519.PublicKey)
	t.Setenv("SSH_AUTH_SOCK", startAgent(t, keyring(t, newKey(t), key, newKey(t))))
	for kind, has := range map[string]Elsewhere{SignerAgent: {Agent: true}, SignerCommand: {Command: command(t, "good", key)}} {
		dir := t.TempDir()
		added, err := Add(dir, "main", public, has)
		if err != nil {
			t.Fatal(err)
		}
		if added.Signer != kind || added.File != "" || (added.Command != "") != (kind == SignerCommand) {
			t.Errorf("%s: %+v", kind, added)
		}
		if _, err := os.Stat(filepath.Join(dir, "main", keyFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a private key is here: %v", kind, err)
		}
		signer, err := Load(t.Context(), dir, "main")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := signer.Sign(value, 7, eol, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ipnsrecord.Check(added.IPNSName, raw, eol); err != nil {
			t.Error(err)
		}
		if again, err := signer.Sign(value, 7, eol, time.Minute); err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%s: the same call gave other bytes (%v)", kind, err)
		}
		if err := Export(t.Context(), dir, "main", filepath.Join(t.TempDir(), "x"), PKCS8, nil); !errors.Is(err, ErrNotHere) {
			t.Errorf("%s: export: %v", kind, err)
		}
		// Its successor is here, and sealed like any.
		mine := newIdentity(t)
		r, err := Reseal(t.Context(), dir, "main", Seal{Recipients: []age.Recipient{mine.Recipient()}})
		if err != nil || !r.Successor || r.Signer != kind {
			t.Errorf("%s: reseal: %+v, %v", kind, r, err)
		}
		if err := os.Remove(r.SuccessorFile); err != nil {
			t.Fatal(err)
		}
		if _, err := Reseal(t.Context(), dir, "main", Seal{}, mine); !errors.Is(err, ErrNotHere) {
			t.Errorf("%s: reseal nothing: %v", kind, err)
		}
		if _, err := Load(t.Context(), dir, "main"); err != nil {
			t.Errorf("%s: it signs no more: %v", kind, err)
		}
		if _, err := Add(dir, "main", public, has); !errors.Is(err, ErrKeyExists) {
			t.Errorf("%s: again: %v", kind, err)
		}
	}
}

// brokenAgent is an agent that answers otherwise than it should.
type brokenAgent struct {
	agent.Agent
	sign func(key ssh.PublicKey, data []byte) (*ssh.Signature, error)
}

func (b brokenAgent) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return b.sign(key, data)
}

func TestAgentBroken(t *testing.T) {
	key, other := newKey(t), newKey(t)
	public := key.Public().(ed25519.PublicKey)
	signs := func(f func(data []byte) *ssh.Signature) agent.Agent {
		return brokenAgent{keyring(t, key), func(_ ssh.PublicKey, data []byte) (*ssh.Signature, error) { return f(data), nil }}
	}
	silent, err := net.Listen("unix", filepath.Join(filepath.Dir(startAgent(t, keyring(t))), "silent"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	locked := keyring(t, key)
	if err := locked.Lock([]byte("x")); err != nil {
		t.Fatal(err)
	}
	hashed := func(data []byte) *ssh.Signature {
		sum := sha512.Sum512(data)
		return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: ed25519.Sign(key, sum[:])}
	}
	for _, c := range []struct {
		name, socket string
		time         time.Duration
		there, sign  error
	}{
		{"no socket", "", time.Minute, ErrAway, ErrAway},
		{"gone", filepath.Join(t.TempDir(), "gone"), time.Minute, ErrAway, ErrAway},
		{"silent", silent.Addr().String(), 100 * time.Millisecond, ErrAway, ErrSign},
		{"empty", startAgent(t, keyring(t)), time.Minute, ErrAway, ErrSign},
		{"other keys", startAgent(t, keyring(t, other)), time.Minute, ErrAway, ErrSign},
		{"locked", startAgent(t, locked), time.Minute, ErrAway, ErrSign},
		{"signs with another", startAgent(t, signs(func(data []byte) *ssh.Signature {
			return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: ed25519.Sign(other, data)}
		})), time.Minute, nil, ErrSign},
		{"signs a hash", startAgent(t, signs(hashed)), time.Minute, nil, ErrSign},
		{"another format", startAgent(t, signs(func(data []byte) *ssh.Signature {
			return &ssh.Signature{Format: ssh.KeyAlgoRSA, Blob: ed25519.Sign(key, data)}
		})), time.Minute, nil, ErrSign},
		{"cut", startAgent(t, signs(func(data []byte) *ssh.Signature {
			return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: ed25519.Sign(key, data)[:63]}
		})), time.Minute, nil, ErrSign},
	} {
		a := agentSigner{c.socket, public, c.time}
		if err := a.there(); !errors.Is(err, c.there) || c.there == nil && err != nil {
			t.Errorf("%s: there: %v", c.name, err)
		}
		if got, err := a.Sign(nil, []byte("message"), crypto.Hash(0)); !errors.Is(err, c.sign) || got != nil {
			t.Errorf("%s: sign: %v", c.name, err)
		}
	}
	if _, err := (agentSigner{"", public, time.Minute}).Sign(nil, make([]byte, 64), crypto.SHA512); !errors.Is(err, errHashed) {
		t.Errorf("a hash: %v", err)
	}
}

func TestElsewhereCommandText(t *testing.T) {
	e := Elsewhere{Command: []string{"/usr/local/bin/kms sign", "--key-id", "7", "it's", ""}}
	if got, want := e.String(), `'/usr/local/bin/kms sign' --key-id 7 'it'\''s' ''`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
