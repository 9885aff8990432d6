package npm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

var (
	// ErrSignature is returned for a registry signature that does not verify.
	ErrSignature = errors.New("registry signature does not verify")
	// ErrUnsigned is returned where no signature is by a key of the ring: what
	// that means is for policy to say.
	ErrUnsigned = errors.New("no registry signature by a known key")
)

// Key is one of a registry's signing keys, as /-/npm/v1/keys lists it.
type Key struct {
	ID      string // "SHA256:…"
	Public  *ecdsa.PublicKey
	Expires time.Time // zero: it does not. Versions published later must not use it
}

// ParseKey reads a key's base64 DER (SubjectPublicKeyInfo); only ECDSA P-256 is
// known. expires is RFC 3339, "" for none.
func ParseKey(id, der, expires string) (Key, error) {
	k := Key{ID: id}
	raw, err := base64.StdEncoding.DecodeString(der)
	if err != nil {
		return Key{}, fmt.Errorf("read key %s: %w", id, err)
	}
	public, err := x509.ParsePKIXPublicKey(raw)
	if err != nil {
		return Key{}, fmt.Errorf("read key %s: %w", id, err)
	}
	var ok bool
	if k.Public, ok = public.(*ecdsa.PublicKey); !ok || k.Public.Curve.Params().BitSize != 256 {
		return Key{}, fmt.Errorf("read key %s: it is not ECDSA P-256", id)
	}
	if expires != "" {
		if k.Expires, err = time.Parse(time.RFC3339, expires); err != nil {
			return Key{}, fmt.Errorf("read key %s: %w", id, err)
		}
	}
	return k, nil
}

// VerifySignature checks the registry's signatures over
// "name@version:integrity" (ECDSA P-256 over SHA-256, ASN.1). published is the
// version's entry in `time`; the zero time counts as before every expiry, as
// in pacote. nil means that at least one signature is by a key of the ring and that every such
// one verifies; ErrUnsigned that none is by a key of the ring; ErrSignature
// that one fails, or that its key had expired when the version was published.
// It says nothing of dist-tags, dependencies or scripts: npm signs none of them.
func VerifySignature(ring []Key, name Name, version string, d Dist, published time.Time) error {
	digest := sha256.Sum256([]byte(string(name) + "@" + version + ":" + d.Integrity))
	verified := false
	for _, s := range d.Signatures {
		for _, k := range ring {
			if k.ID != s.KeyID {
				continue
			}
			if !k.Expires.IsZero() && !published.Before(k.Expires) {
				return fmt.Errorf("%s@%s: %w: key %s expired before it was published", name, version, ErrSignature, k.ID)
			}
			sig, err := base64.StdEncoding.DecodeString(s.Sig)
			if err != nil || !ecdsa.VerifyASN1(k.Public, digest[:], sig) {
				return fmt.Errorf("%s@%s: %w: key %s", name, version, ErrSignature, k.ID)
			}
			verified = true
		}
	}
	if !verified {
		return fmt.Errorf("%s@%s: %w", name, version, ErrUnsigned)
	}
	return nil
}
