// Package ipnskeys mints the keys that sign a registry's IPNS records, takes
// them in and hands them out in the forms that others know, keeps them sealed,
// and signs with them: by itself, through an ssh-agent or an external command.
// No other package sees a private key. One is written in the clear by Export
// alone, when it is asked for that in so many words, and then to a new file
// that its owner alone can read. The package knows nothing of networks,
// journals, releases or npm: which sequence may be signed is its caller's to say.
//
// A directory of keys holds:
//
//	identity.txt         the age identity that the keys are sealed to, unless
//	                     the caller gave another recipient
//	NAME/public.json     what may be known of the key
//	NAME/key.age         the private key (PKCS#8, PEM), sealed; there is none
//	                     where an agent or a command signs
//	NAME/successor.age   the private key that follows it, sealed; best moved
//	                     to another machine, since it is needed only to rotate
//	NAME/key-2.age       the same of the second key, once Rotate put it in the
//	NAME/successor-2.age place of the first, and so on; key.age stays
//
// Sealing to an identity file beside the keys protects a backup or a disk that
// holds only one of the two. It does not protect from who can read both.
package ipnskeys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
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
	// ErrKeyExists is returned by Mint, Import and Add for a name that has a key:
	// none is ever replaced.
	ErrKeyExists = errors.New("there is a key of this name already")
	// ErrKeyName is returned for a name that no key may have.
	ErrKeyName = errors.New("a key's name is at most 64 of a-z, 0-9, - and _, and begins with a letter or digit")
	// ErrSealed is returned when no identity at hand opens a sealed key.
	ErrSealed = errors.New("no identity opens this key")
	// ErrCorrupt is returned for a key's file that is not what Mint wrote.
	ErrCorrupt = errors.New("a key's file is damaged")
	// ErrNotHere is returned where a private key would have to be at hand, of a
	// key that an agent or a command signs for.
	ErrNotHere = errors.New("the private key is not here: an agent or a command signs with it")
	// ErrNoSuccessor is returned by Rotate when the successor's private key is not
	// where Mint put it, and nobody said where it is.
	ErrNoSuccessor = errors.New("the successor's private key is not here")
	// ErrSuccessor is returned by Rotate for another key than the one promised.
	ErrSuccessor = errors.New("not the successor that was promised")
	// ErrNext is returned by Rotate for a public key that cannot follow: the
	// registry has it, or had it.
	ErrNext = errors.New("a key that this registry has, or had, cannot follow")
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
	// rotatedFormat is of a public.json that speaks of former keys: what knows
	// format 1 alone would look for the key in the wrong file.
	rotatedFormat = 2
)

// numbered is the file's name for the key of that number, 1 for the first.
func numbered(file string, number int) string {
	if number == 1 {
		return file
	}
	return fmt.Sprintf("%s-%d.age", strings.TrimSuffix(file, ".age"), number)
}

var keyName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// Key is what may be known of a key, and where its parts lie.
type Key struct {
	Name     string
	IPNSName ipns.Name
	// Number is 1 for the key that was minted, imported or added, and one more
	// after each Rotate. Former are those before it, the oldest first.
	Number int
	Former []Former
	// Next commits to the successor: ipnsrecord.Commitment of its name.
	Next    string
	Created time.Time
	// PublicKey is the line of the key in an authorized_keys file, and
	// Fingerprint what `ssh-keygen -l` says of it: "SHA256:" and the SHA-256 of
	// its wire form (RFC 4253, section 6.6; RFC 8709), in base64 without padding.
	PublicKey   string
	Fingerprint string

	Signer        string // SignerFile, SignerAgent or SignerCommand
	Command       string // of SignerCommand, as a shell takes it
	Dir           string // the directory of keys: all that a backup needs
	File          string // the sealed private key; "" where it is not here
	SuccessorFile string // the sealed successor; need not be there any more
	// IdentityFile opens both; "" where they are sealed to something else.
	IdentityFile string
}

// Former is a key that was followed by its successor.
type Former struct {
	Number   int // 1 for the first
	IPNSName ipns.Name
	Created  time.Time
	Until    time.Time // its records are renewed until then

	Signer  string // as Key's
	Command string
	File    string // the sealed private key; "" where it was never here
}

// Names are the IPNS names that the registry had, the oldest first, and has.
func (k Key) Names() []ipns.Name {
	names := make([]ipns.Name, 0, len(k.Former)+1)
	for _, f := range k.Former {
		names = append(names, f.IPNSName)
	}
	return append(names, k.IPNSName)
}

// BackupCommand is the one shell command that backs up this key, its successor
// and what opens them, to a file that its owner alone can read.
func (k Key) BackupCommand() string {
	return fmt.Sprintf("(umask 077; tar -C %s -cf registry-mirror-keys.tar %s)", quote(filepath.Dir(k.Dir)), quote(filepath.Base(k.Dir)))
}

// quote is a path as a shell takes it; word is anything else.
func quote(path string) string {
	if strings.HasPrefix(path, "-") {
		path = "./" + path
	}
	return word(path)
}

func word(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+@:,", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// description is public.json.
type description struct {
	Format   int       `json:"format"`
	Name     string    `json:"name"`
	IPNSName ipns.Name `json:"ipns_name"`
	Next     string    `json:"next"`
	Created  time.Time `json:"created"`
	// Identity is set when the key is sealed to identity.txt beside it.
	Identity bool `json:"identity,omitempty"`
	// Signer says who signs; nil for a key whose private part is here.
	Signer *Elsewhere `json:"signer,omitempty"`
	// Former are the keys before, the oldest first.
	Former []formerDescription `json:"former,omitempty"`
}

type formerDescription struct {
	IPNSName ipns.Name  `json:"ipns_name"`
	Created  time.Time  `json:"created"`
	Until    time.Time  `json:"until"`
	Signer   *Elsewhere `json:"signer,omitempty"`
}

// number is Key.Number.
func (p description) number() int { return len(p.Former) + 1 }

func (p description) write(path string) error {
	raw, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeNew(path, append(raw, '\n'))
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
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, err
	}
	var to Seal
	if seal != nil {
		to.Recipients = []age.Recipient{seal}
	}
	return place(dir, name, private.Public().(ed25519.PublicKey), private, nil, to)
}

// place is Mint for a public key and its private one, nil where signer says who
// has that.
func place(dir, name string, public ed25519.PublicKey, private ed25519.PrivateKey, signer *Elsewhere, seal Seal) (Key, error) {
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
	current, err := NameOf(public)
	if err != nil {
		return Key{}, err
	}
	_, successor, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, err
	}
	follows, err := NameOf(successor.Public().(ed25519.PublicKey))
	if err != nil {
		return Key{}, err
	}
	next, err := ipnsrecord.Commitment(follows)
	if err != nil {
		return Key{}, err
	}
	own := len(seal.Recipients) == 0
	if seal, err = seal.resolve(dir); err != nil {
		return Key{}, err
	}

	tmp, err := os.MkdirTemp(dir, mintPrefix) // 0700
	if err != nil {
		return Key{}, err
	}
	defer os.RemoveAll(tmp) // after the rename there is none
	if private != nil {
		if err := writeSealed(filepath.Join(tmp, keyFile), private, seal); err != nil {
			return Key{}, err
		}
	}
	if err := writeSealed(filepath.Join(tmp, successorFile), successor, seal); err != nil {
		return Key{}, err
	}
	p := description{
		Format: format, Name: name, IPNSName: current, Next: next,
		Created: time.Now().UTC().Truncate(time.Second), Identity: own, Signer: signer,
	}
	if err := p.write(filepath.Join(tmp, publicFile)); err != nil {
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

// writeSealed writes a key sealed to a new file, and opens it again with what
// the seal is opened by, where that is at hand.
func writeSealed(path string, private ed25519.PrivateKey, seal Seal) error {
	clear, err := marshal(private, PKCS8)
	if err != nil {
		return err
	}
	sealed, err := seal.close(clear)
	if err != nil {
		return err
	}
	if err := writeNew(path, sealed); err != nil {
		return err
	}
	if len(seal.Opens) == 0 {
		return nil
	}
	back, err := unseal(path, seal.Opens)
	if err != nil {
		return err
	}
	if !back.Equal(private) {
		return fmt.Errorf("read back %s: %w", path, ErrCorrupt)
	}
	return nil
}

// CheckName says whether a key may have that name. Error: ErrKeyName.
func CheckName(name string) error {
	if !keyName.MatchString(name) {
		return fmt.Errorf("%q: %w", name, ErrKeyName)
	}
	return nil
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
	key, _, err := find(dir, name)
	if err != nil {
		return Key{}, fmt.Errorf("key %q in %s: %w", name, dir, err)
	}
	return key, nil
}

func find(dir, name string) (Key, description, error) {
	var p description
	if !keyName.MatchString(name) {
		return Key{}, p, ErrKeyName
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Key{}, p, err
	}
	home := filepath.Join(abs, name)
	raw, err := readSecret(filepath.Join(home, publicFile))
	if errors.Is(err, os.ErrNotExist) {
		return Key{}, p, ErrNoKey
	}
	if err != nil {
		return Key{}, p, err
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return Key{}, p, fmt.Errorf("%s: %w: %w", publicFile, ErrCorrupt, err)
	}
	want := format
	if len(p.Former) > 0 {
		want = rotatedFormat
	}
	if p.Format != want || p.Name != name || p.IPNSName.Equal(ipns.Name{}) || len(p.Next) != 64 {
		return Key{}, p, fmt.Errorf("%s: %w", publicFile, ErrCorrupt)
	}
	key := Key{
		Name: name, IPNSName: p.IPNSName, Next: p.Next, Created: p.Created,
		Number: p.number(), Signer: p.Signer.kind(), Dir: abs, SuccessorFile: filepath.Join(home, numbered(successorFile, p.number())),
	}
	if key.Signer == "" {
		return Key{}, p, fmt.Errorf("%s: it names no signer: %w", publicFile, ErrCorrupt)
	}
	if key.PublicKey, key.Fingerprint, err = sshForm(p.IPNSName); err != nil {
		return Key{}, p, fmt.Errorf("%s: %w: %w", publicFile, ErrCorrupt, err)
	}
	if key.Signer == SignerFile {
		key.File = filepath.Join(home, numbered(keyFile, key.Number))
	}
	if key.Signer == SignerCommand {
		key.Command = p.Signer.String()
	}
	for i, f := range p.Former {
		was := Former{Number: i + 1, IPNSName: f.IPNSName, Created: f.Created, Until: f.Until, Signer: f.Signer.kind()}
		switch was.Signer {
		case "":
			return Key{}, p, fmt.Errorf("%s: it names no signer of %s: %w", publicFile, f.IPNSName, ErrCorrupt)
		case SignerFile:
			was.File = filepath.Join(home, numbered(keyFile, was.Number))
		case SignerCommand:
			was.Command = f.Signer.String()
		}
		key.Former = append(key.Former, was)
	}
	if p.Identity {
		key.IdentityFile = filepath.Join(abs, identityFile)
	}
	return key, p, nil
}

// Load gives the signer of a key. One that is here it opens, with identities or
// with the identity beside it; an agent or a command must be at hand, and the
// agent have the key. Errors: ErrNoKey, ErrSealed, ErrCorrupt, ErrAway,
// *UnsafeError.
func Load(ctx context.Context, dir, name string, identities ...age.Identity) (*Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	signer, err := load(dir, name, identities)
	if err != nil {
		return nil, fmt.Errorf("load key %q of %s: %w", name, dir, err)
	}
	return signer, nil
}

func load(dir, name string, identities []age.Identity) (*Signer, error) {
	key, p, err := find(dir, name)
	if err != nil {
		return nil, err
	}
	return key.signer(p.Signer, identities)
}

// LoadFormer is Load for a key that was followed by its successor, by its IPNS
// name. Further error: ErrNoKey, where the key name never had it.
func LoadFormer(ctx context.Context, dir, name string, former ipns.Name, identities ...age.Identity) (*Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	signer, err := loadFormer(dir, name, former, identities)
	if err != nil {
		return nil, fmt.Errorf("load former key %s of %q in %s: %w", former, name, dir, err)
	}
	return signer, nil
}

func loadFormer(dir, name string, former ipns.Name, identities []age.Identity) (*Signer, error) {
	key, p, err := find(dir, name)
	if err != nil {
		return nil, err
	}
	for i, f := range key.Former {
		if f.IPNSName.Equal(former) {
			return key.as(f).signer(p.Former[i].Signer, identities)
		}
	}
	return nil, ErrNoKey
}

// as is the key as it was while it was f.
func (k Key) as(f Former) Key {
	k.IPNSName, k.Signer, k.File = f.IPNSName, f.Signer, f.File
	return k
}

func (k Key) signer(has *Elsewhere, identities []age.Identity) (*Signer, error) {
	if k.Signer != SignerFile {
		public, err := publicKey(k.IPNSName)
		if err != nil {
			return nil, err
		}
		there, err := has.reach(public)
		if err != nil {
			return nil, err
		}
		return NewSigner(there)
	}
	private, err := k.open(identities)
	if err != nil {
		return nil, err
	}
	return NewSigner(private)
}

// open opens the private key, which must be of the key's name.
func (k Key) open(identities []age.Identity) (ed25519.PrivateKey, error) {
	if k.Signer != SignerFile {
		return nil, ErrNotHere
	}
	identities, err := k.withOwn(identities)
	if err != nil {
		return nil, err
	}
	private, err := unseal(k.File, identities)
	if err != nil {
		return nil, err
	}
	got, err := NameOf(private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	if !got.Equal(k.IPNSName) {
		return nil, fmt.Errorf("it signs for %s, not %s: %w", got, k.IPNSName, ErrCorrupt)
	}
	return private, nil
}

// withOwn adds the identity beside the keys. It does so whatever public.json
// says: where a Reseal was cut short, that may be ahead of the seal.
func (k Key) withOwn(identities []age.Identity) ([]age.Identity, error) {
	own, err := ReadIdentities(filepath.Join(k.Dir, identityFile))
	switch {
	case errors.Is(err, os.ErrNotExist) && k.IdentityFile != "" && len(identities) == 0:
		return nil, fmt.Errorf("the identity that it was sealed to is gone: %w: %w", ErrSealed, err)
	case errors.Is(err, os.ErrNotExist) && len(identities) == 0:
		return nil, fmt.Errorf("it is not sealed to the identity beside it: %w", ErrSealed)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	return append(slices.Clone(identities), own...), nil
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
	clear, err := decrypt(bytes.NewReader(sealed), identities)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	private, err := parsePEM(clear)
	if errors.Is(err, ErrFormat) {
		err = ErrCorrupt
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return private, nil
}
