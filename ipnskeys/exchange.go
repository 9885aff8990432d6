package ipnskeys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/ipfs/boxo/ipns"
	ic "github.com/libp2p/go-libp2p/core/crypto"
)

// Format is a form of a private key in a file. The names are Kubo's, of
// `ipfs key export --format` and `ipfs key import --format`.
type Format string

const (
	// Libp2p is libp2p's protobuf (libp2p specification, "Peer Ids and Keys").
	Libp2p Format = "libp2p-protobuf-cleartext"
	// PKCS8 is PKCS#8 (RFC 5958, RFC 8410) in PEM, as OpenSSL writes it.
	PKCS8 Format = "pem-pkcs8-cleartext"
)

// ErrFormat is returned for a file that holds no private key in a form that is
// known here, and for a Format that is none.
var ErrFormat = errors.New("no form of a private key that is known: it is " + string(Libp2p) + " or " + string(PKCS8))

// Private is a private key that was read from a file, and is not among the keys
// yet. Printed or logged it shows its name alone.
type Private struct {
	key  ed25519.PrivateKey
	name ipns.Name
}

// IPNSName is the name that the key signs for.
func (p *Private) IPNSName() ipns.Name { return p.name }

// String is the name.
func (p *Private) String() string { return p.name.String() }

// GoString is String, for %#v.
func (p *Private) GoString() string { return p.String() }

// ReadPrivate reads an Ed25519 key in one of the Formats, in the clear or sealed
// with age (armored or not), from a file of at most 64 KiB that its owner alone
// can read. A sealed one is opened with identities. Errors: *UnsafeError,
// os.ErrNotExist, ErrSealed, ErrFormat, ErrKeyType, ErrCorrupt.
func ReadPrivate(path string, identities ...age.Identity) (*Private, error) {
	p, err := readPrivate(path, identities)
	if err != nil {
		return nil, fmt.Errorf("read private key %s: %w", path, err)
	}
	return p, nil
}

func readPrivate(path string, identities []age.Identity) (*Private, error) {
	raw, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	head := bytes.TrimSpace(raw)
	switch {
	case bytes.HasPrefix(head, []byte(armor.Header)):
		raw, err = decrypt(armor.NewReader(bytes.NewReader(head)), identities)
	case bytes.HasPrefix(raw, []byte("age-encryption.org/")):
		raw, err = decrypt(bytes.NewReader(raw), identities)
	}
	if err != nil {
		return nil, err
	}
	key, err := parse(raw)
	if err != nil {
		return nil, err
	}
	name, err := NameOf(key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	return &Private{key, name}, nil
}

// Import keeps a key that was made elsewhere, and mints its successor, as Mint
// does and by the same law. Errors: Mint's.
func Import(dir, name string, private *Private, seal Seal) (Key, error) {
	key, err := place(dir, name, private.key.Public().(ed25519.PublicKey), private.key, nil, seal)
	if err != nil {
		return Key{}, fmt.Errorf("import key %q into %s: %w", name, dir, err)
	}
	return key, nil
}

// Export writes the private key of name to path, which must not exist, mode
// 0600: sealed, or in the clear where seal is nil. Who can read the latter can
// sign. When Export returns, the file is on disk; after an error there is none.
// Errors: ErrFormat, ErrNotHere, os.ErrExist and Load's.
func Export(ctx context.Context, dir, name, path string, form Format, seal *Seal, identities ...age.Identity) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := export(dir, name, path, form, seal, identities); err != nil {
		return fmt.Errorf("export key %q: %w", name, err)
	}
	return nil
}

func export(dir, name, path string, form Format, seal *Seal, identities []age.Identity) error {
	if form != Libp2p && form != PKCS8 {
		return fmt.Errorf("%.100q: %w", form, ErrFormat)
	}
	if _, err := os.Lstat(path); err == nil { // before anybody is asked to open the key
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	key, err := Find(dir, name)
	if err != nil {
		return err
	}
	private, err := key.open(identities)
	if err != nil {
		return err
	}
	data, err := marshal(private, form)
	if err != nil {
		return err
	}
	if seal != nil {
		to, err := seal.resolve(dir)
		if err != nil {
			return err
		}
		if data, err = to.close(data); err != nil {
			return err
		}
	}
	err = writeNew(path, data)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		os.Remove(path) // half a key
	}
	return err
}

func marshal(private ed25519.PrivateKey, form Format) ([]byte, error) {
	switch form {
	case Libp2p:
		key, err := ic.UnmarshalEd25519PrivateKey(private)
		if err != nil {
			return nil, err
		}
		return ic.MarshalPrivateKey(key)
	case PKCS8:
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	}
	return nil, ErrFormat
}

// parse reads a key in either form. No error quotes what it read.
func parse(clear []byte) (ed25519.PrivateKey, error) {
	if bytes.HasPrefix(bytes.TrimSpace(clear), []byte("-----BEGIN")) {
		return parsePEM(clear)
	}
	key, err := ic.UnmarshalPrivateKey(clear)
	if err != nil {
		return nil, ErrFormat
	}
	if _, ok := key.(*ic.Ed25519PrivateKey); !ok {
		return nil, ErrKeyType
	}
	raw, err := key.Raw()
	if err != nil || len(raw) != ed25519.PrivateKeySize {
		return nil, ErrFormat
	}
	// The form holds the public key too. With another one beside the seed, each
	// signature would tell of the private key.
	private := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if !bytes.Equal(private, raw) {
		return nil, fmt.Errorf("%w: its public key is of another private key", ErrCorrupt)
	}
	return private, nil
}

func parsePEM(clear []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(clear)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, ErrFormat
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, ErrFormat
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, ErrKeyType
	}
	return private, nil
}
