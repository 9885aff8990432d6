// Package ipnskeys mints the keys that sign a registry's IPNS records, keeps
// them sealed, and signs with them. No other package sees a private key, and
// nothing here ever writes one in the clear. It knows nothing of networks,
// journals, releases or npm: which sequence may be signed is its caller's to say.
//
// A directory of keys holds:
//
//	identity.txt         the age identity that the keys are sealed to, unless
//	                     the caller gave another recipient
//	NAME/public.json     what may be known of the key
//	NAME/key.age         the private key (PKCS#8, PEM), sealed
//	NAME/successor.age   the private key that follows it, sealed; best moved
//	                     to another machine, since it is needed only to rotate
//
// Sealing to an identity file beside the keys protects a backup or a disk that
// holds only one of the two. It does not protect from who can read both.
package ipnskeys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

var (
	// ErrNoKey is returned when there is no key of that name.
	ErrNoKey = errors.New("no such key")
	// ErrKeyExists is returned by Mint for a name that has a key: none is ever
	// replaced.
	ErrKeyExists = errors.New("there is a key of this name already")
	// ErrKeyName is returned for a name that no key may have.
	ErrKeyName = errors.New("a key's name is at most 64 of a-z, 0-9, - and _, and begins with a letter or digit")
	// ErrSealed is returned when no identity at hand opens a sealed key.
	ErrSealed = errors.New("no identity opens this key")
	// ErrCorrupt is returned for a key's file that is not what Mint wrote.
	ErrCorrupt = errors.New("a key's file is damaged")
	// ErrUnsafe is what every *UnsafeError is.
	ErrUnsafe = errors.New("a secret file that others may reach")
)

const (
	identityFile  = "identity.txt"
	publicFile    = "public.json"
	keyFile       = "key.age"
	successorFile = "successor.age"
	mintPrefix    = ".mint-" // folders of a Mint that did not end

	maxSecret = 64 << 10 // bytes of any file read here
	format    = 1
)

var keyName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// Key is what may be known of a key, and where its parts lie.
type Key struct {
	Name     string
	IPNSName ipns.Name
	// Next commits to the successor: ipnsrecord.Commitment of its name.
	Next    string
	Created time.Time

	Dir           string // the directory of keys: all that a backup needs
	File          string // the sealed private key
	SuccessorFile string // the sealed successor; need not be there any more
	// IdentityFile opens both; "" where they are sealed to something else.
	IdentityFile string
}

// BackupCommand is the one shell command that backs up this key, its successor
// and what opens them, to a file that its owner alone can read.
func (k Key) BackupCommand() string {
	return fmt.Sprintf("(umask 077; tar -C %s -cf registry-mirror-keys.tar %s)", quote(filepath.Dir(k.Dir)), quote(filepath.Base(k.Dir)))
}

func quote(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+@:,", r))
	}) && s != "" && s[0] != '-' {
		return s
	}
	if s != "" && s[0] == '-' {
		s = "./" + s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// public is public.json.
type public struct {
	Format   int       `json:"format"`
	Name     string    `json:"name"`
	IPNSName ipns.Name `json:"ipns_name"`
	Next     string    `json:"next"`
	Created  time.Time `json:"created"`
	// Identity is set when the key is sealed to identity.txt beside it.
	Identity bool `json:"identity,omitempty"`
}

// Mint makes an Ed25519 key and its successor, and seals both to seal; nil
// means the identity in dir, which is made on first use. When Mint returns, all
// of it is on disk. Errors: ErrKeyExists, ErrKeyName, *UnsafeError.
//
// Law: the identity is durable before anything is sealed to it; the sealed
// keys are durable and were opened again before the name appears; and the name
// appears whole, by one rename. A crash leaves the key or no key.
func Mint(dir, name string, seal age.Recipient) (Key, error) {
	key, err := mint(dir, name, seal)
	if err != nil {
		return Key{}, fmt.Errorf("mint key %q in %s: %w", name, dir, err)
	}
	return key, nil
}

func mint(dir, name string, seal age.Recipient) (Key, error) {
	if !keyName.MatchString(name) {
		return Key{}, ErrKeyName
	}
	if err := makeDir(dir); err != nil {
		return Key{}, err
	}
	home := filepath.Join(dir, name)
	if _, err := os.Lstat(home); err == nil {
		return Key{}, ErrKeyExists
	} else if !errors.Is(err, os.ErrNotExist) {
		return Key{}, err
	}
	var opens []age.Identity
	own := seal == nil
	if own {
		identity, err := ownIdentity(dir)
		if err != nil {
			return Key{}, err
		}
		seal, opens = identity.Recipient(), []age.Identity{identity}
	}

	tmp, err := os.MkdirTemp(dir, mintPrefix) // 0700
	if err != nil {
		return Key{}, err
	}
	defer os.RemoveAll(tmp) // after the rename there is none
	current, err := mintSealed(filepath.Join(tmp, keyFile), seal, opens)
	if err != nil {
		return Key{}, err
	}
	successor, err := mintSealed(filepath.Join(tmp, successorFile), seal, opens)
	if err != nil {
		return Key{}, err
	}
	next, err := ipnsrecord.Commitment(successor)
	if err != nil {
		return Key{}, err
	}
	raw, err := json.MarshalIndent(public{
		Format: format, Name: name, IPNSName: current, Next: next,
		Created: time.Now().UTC().Truncate(time.Second), Identity: own,
	}, "", "  ")
	if err != nil {
		return Key{}, err
	}
	if err := writeNew(filepath.Join(tmp, publicFile), append(raw, '\n')); err != nil {
		return Key{}, err
	}
	if err := syncDir(tmp); err != nil {
		return Key{}, err
	}
	// rename(2) does not replace a directory that holds anything.
	if err := os.Rename(tmp, home); err != nil {
		if _, statErr := os.Lstat(home); statErr == nil {
			return Key{}, ErrKeyExists
		}
		return Key{}, err
	}
	if err := syncDir(dir); err != nil {
		return Key{}, err
	}
	return Find(dir, name)
}

// mintSealed makes one key, writes it sealed to path, and opens it again with
// opens, where there are any.
func mintSealed(path string, seal age.Recipient, opens []age.Identity) (ipns.Name, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return ipns.Name{}, err
	}
	signer, err := NewSigner(private)
	if err != nil {
		return ipns.Name{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return ipns.Name{}, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, seal)
	if err != nil {
		return ipns.Name{}, err
	}
	if err := pem.Encode(w, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return ipns.Name{}, err
	}
	if err := w.Close(); err != nil {
		return ipns.Name{}, err
	}
	if err := writeNew(path, sealed.Bytes()); err != nil {
		return ipns.Name{}, err
	}
	if len(opens) > 0 {
		back, err := unseal(path, opens)
		if err != nil {
			return ipns.Name{}, err
		}
		if !back.Equal(private) {
			return ipns.Name{}, fmt.Errorf("read back %s: %w", path, ErrCorrupt)
		}
	}
	return signer.IPNSName(), nil
}

// List gives the keys in dir by name; none where there is no such directory.
func List(dir string) ([]Key, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	var keys []Key
	for _, e := range entries {
		if !e.IsDir() || !keyName.MatchString(e.Name()) {
			continue
		}
		key, err := Find(dir, e.Name())
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.Name, b.Name) })
	return keys, nil
}

// Find gives what may be known of a key, opening nothing. Errors: ErrNoKey,
// ErrCorrupt, *UnsafeError.
func Find(dir, name string) (Key, error) {
	if !keyName.MatchString(name) {
		return Key{}, fmt.Errorf("key %q: %w", name, ErrKeyName)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Key{}, fmt.Errorf("key %q: %w", name, err)
	}
	home := filepath.Join(abs, name)
	raw, err := readSecret(filepath.Join(home, publicFile))
	if errors.Is(err, os.ErrNotExist) {
		return Key{}, fmt.Errorf("key %q in %s: %w", name, dir, ErrNoKey)
	}
	if err != nil {
		return Key{}, fmt.Errorf("key %q: %w", name, err)
	}
	var p public
	if err := json.Unmarshal(raw, &p); err != nil {
		return Key{}, fmt.Errorf("key %q: %s: %w: %w", name, publicFile, ErrCorrupt, err)
	}
	if p.Format != format || p.Name != name || p.IPNSName.Equal(ipns.Name{}) || len(p.Next) != 64 {
		return Key{}, fmt.Errorf("key %q: %s: %w", name, publicFile, ErrCorrupt)
	}
	key := Key{
		Name: name, IPNSName: p.IPNSName, Next: p.Next, Created: p.Created,
		Dir: abs, File: filepath.Join(home, keyFile), SuccessorFile: filepath.Join(home, successorFile),
	}
	if p.Identity {
		key.IdentityFile = filepath.Join(abs, identityFile)
	}
	return key, nil
}

// Load opens a key with identities, or with none given, with the identity
// beside it. Errors: ErrNoKey, ErrSealed, ErrCorrupt, *UnsafeError.
func Load(ctx context.Context, dir, name string, identities ...age.Identity) (*Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	key, err := Find(dir, name)
	if err != nil {
		return nil, err
	}
	if len(identities) == 0 {
		if key.IdentityFile == "" {
			return nil, fmt.Errorf("load key %q: it is not sealed to the identity beside it: %w", name, ErrSealed)
		}
		if identities, err = ReadIdentities(key.IdentityFile); err != nil {
			return nil, fmt.Errorf("load key %q: %w", name, err)
		}
	}
	private, err := unseal(key.File, identities)
	if err != nil {
		return nil, fmt.Errorf("load key %q: %w", name, err)
	}
	signer, err := NewSigner(private)
	if err != nil {
		return nil, fmt.Errorf("load key %q: %w", name, err)
	}
	if !signer.IPNSName().Equal(key.IPNSName) {
		return nil, fmt.Errorf("load key %q: it signs for %s, not %s: %w", name, signer.IPNSName(), key.IPNSName, ErrCorrupt)
	}
	return signer, nil
}

// ReadIdentities reads an age identity file, which must be readable by its
// owner alone. Errors: *UnsafeError, os.ErrNotExist, ErrCorrupt.
func ReadIdentities(path string) ([]age.Identity, error) {
	raw, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	identities, err := age.ParseIdentities(bytes.NewReader(raw))
	if err != nil {
		// age's own error may quote the line, which is a secret.
		return nil, fmt.Errorf("%s is no age identity file: %w", path, ErrCorrupt)
	}
	return identities, nil
}

// ownIdentity reads the identity in dir, making it on first use.
func ownIdentity(dir string) (*age.X25519Identity, error) {
	path := filepath.Join(dir, identityFile)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, err
		}
		text := fmt.Sprintf("# It opens the keys in this directory: back it up with them, and show it to nobody.\n# public key: %s\n%s\n",
			identity.Recipient(), identity)
		if err := linkNew(dir, path, []byte(text)); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	identities, err := ReadIdentities(path)
	if err != nil {
		return nil, err
	}
	for _, i := range identities {
		if x, ok := i.(*age.X25519Identity); ok {
			return x, nil
		}
	}
	return nil, fmt.Errorf("%s holds no X25519 identity: %w", path, ErrCorrupt)
}

func unseal(path string, identities []age.Identity) (ed25519.PrivateKey, error) {
	sealed, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if err != nil {
		if noMatch := new(age.NoIdentityMatchError); errors.As(err, &noMatch) {
			return nil, fmt.Errorf("%s: %w", path, ErrSealed)
		}
		return nil, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	clear, err := io.ReadAll(io.LimitReader(r, maxSecret))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	block, rest := pem.Decode(clear)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s holds no PKCS#8 key: %w", path, ErrCorrupt)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no PKCS#8 key: %w", path, ErrCorrupt)
	}
	private, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, ErrKeyType)
	}
	return private, nil
}
