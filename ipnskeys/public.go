package ipnskeys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/ipfs/boxo/ipns"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/ssh"
)

// ErrPublicKey is returned for a file that holds no public key in a form that
// is known here.
var ErrPublicKey = errors.New("no public key: it is a line of ssh-keygen, \"ssh-ed25519 AAAA…\", or a PEM \"PUBLIC KEY\"")

// ReadPublic reads an Ed25519 public key from a file of at most 64 KiB: a line
// as ssh-keygen and `ssh-add -L` write it, or a SubjectPublicKeyInfo in PEM (RFC
// 8410), as OpenSSL, KMS and PKCS#11 tools do. Errors: ErrPublicKey, ErrKeyType.
func ReadPublic(path string) (ed25519.PublicKey, error) {
	public, err := readPublic(path)
	if err != nil {
		return nil, fmt.Errorf("read public key %s: %w", path, err)
	}
	return public, nil
}

func readPublic(path string) (ed25519.PublicKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, ErrPublicKey
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	raw = bytes.TrimSpace(raw)
	if len(raw) > maxSecret {
		return nil, ErrPublicKey
	}
	var key any
	if block, rest := pem.Decode(raw); block != nil {
		if block.Type != "PUBLIC KEY" || len(rest) > 0 {
			return nil, ErrPublicKey
		}
		if key, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return nil, ErrPublicKey
		}
	} else {
		line, _, _, rest, err := ssh.ParseAuthorizedKey(raw)
		if err != nil || len(rest) > 0 {
			return nil, ErrPublicKey
		}
		if line.Type() != ssh.KeyAlgoED25519 {
			return nil, fmt.Errorf("%w: %s", ErrKeyType, line.Type())
		}
		key = line.(ssh.CryptoPublicKey).CryptoPublicKey()
	}
	public, ok := key.(ed25519.PublicKey)
	if !ok || len(public) != ed25519.PublicKeySize {
		return nil, ErrKeyType
	}
	return public, nil
}

// NameOf is the name that records of a key are under: the key itself, which
// the name holds whole (IPNS specification, "IPNS Name"). Error: ErrKeyType.
func NameOf(public ed25519.PublicKey) (ipns.Name, error) {
	key, err := ic.UnmarshalEd25519PublicKey(public)
	if err != nil {
		return ipns.Name{}, fmt.Errorf("%w: %w", ErrKeyType, err)
	}
	id, err := peer.IDFromPublicKey(key)
	if err != nil {
		return ipns.Name{}, fmt.Errorf("%w: %w", ErrKeyType, err)
	}
	return ipns.NameFromPeer(id), nil
}

// publicKey is NameOf backwards. Error: ErrKeyType.
func publicKey(name ipns.Name) (ed25519.PublicKey, error) {
	key, err := name.Peer().ExtractPublicKey()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrKeyType, err)
	}
	if _, ok := key.(*ic.Ed25519PublicKey); !ok {
		return nil, fmt.Errorf("%s: %w", name, ErrKeyType)
	}
	raw, err := key.Raw()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrKeyType, err)
	}
	return raw, nil
}

// sshForm is a name's key as SSH writes it, and its fingerprint there.
func sshForm(name ipns.Name) (line, fingerprint string, err error) {
	public, err := publicKey(name)
	if err != nil {
		return "", "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), ssh.FingerprintSHA256(key), nil
}
