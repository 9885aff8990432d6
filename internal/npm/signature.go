package npm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

var (
	// ErrSignature is returned for a version whose registry signature does not
	// verify, or is by a key that had expired when the version was published.
	ErrSignature = errors.New("registry signature refused")
	// ErrUnsigned is returned for a version that nobody in the ring signed,
	// where a signature is required. It is an ErrSignature.
	ErrUnsigned = fmt.Errorf("%w: there is none by a known key", ErrSignature)
	// ErrKeys is returned for a document that is no usable list of signing keys.
	ErrKeys = errors.New("not a list of registry keys")
)

const (
	maxKeys       = 64      // keys in one ring
	maxKeysSize   = 1 << 20 // a ring's document, in bytes
	maxSignatures = 64      // signatures of one version
	// keyType is the only kind of key, and scheme, that registries use.
	keyType = "ecdsa-sha2-nistp256"
)

// Key is one of a registry's signing keys, as /-/npm/v1/keys lists it.
type Key struct {
	ID      string // "SHA256:…"
	Public  *ecdsa.PublicKey
	Expires time.Time // zero: it does not. Versions published later must not use it
}

// npmKeys are npm's own keys, as its clients have them built in (the seeds of
// @sigstore/tuf). The first has expired and signed all that is older.
//
//go:embed keys.json
var npmKeys []byte

var publicKeys = sync.OnceValue(func() []Key {
	ring, err := ParseKeys(npmKeys)
	if err != nil {
		panic(err) // it was compiled in
	}
	return ring
})

// PublicKeys returns the ring of npm's public registry (DefaultRegistry). It is
// compiled in: a registry that could also choose the keys by which it is
// checked would prove nothing.
func PublicKeys() []Key { return slices.Clone(publicKeys()) }

// PublicKeysDocument is the document that PublicKeys was read from.
func PublicKeysDocument() []byte { return slices.Clone(npmKeys) }

// ParseKeys reads the document of GET /-/npm/v1/keys, of at most 1 MiB and 64
// keys. Keys of a type or scheme other than ECDSA P-256 are passed over, for
// registries may come to use more; a key of that type that cannot be read, and
// a key id that comes twice, fail the whole, for a signature by such a key
// would count as one by a stranger. Errors wrap ErrKeys.
func ParseKeys(raw []byte) ([]Key, error) {
	if len(raw) > maxKeysSize {
		return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrKeys, maxKeysSize)
	}
	var doc struct {
		Keys []struct {
			ID      string  `json:"keyid"`
			Type    string  `json:"keytype"`
			Scheme  string  `json:"scheme"`
			Expires *string `json:"expires"`
			Key     string  `json:"key"`
		} `json:"keys"`
	}
	// This package's json reads names in exact case and refuses duplicates.
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	switch {
	case doc.Keys == nil:
		return nil, fmt.Errorf("%w: it has no keys", ErrKeys)
	case len(doc.Keys) > maxKeys:
		return nil, fmt.Errorf("%w: it has more than %d keys", ErrKeys, maxKeys)
	}
	seen := map[string]bool{}
	ring := make([]Key, 0, len(doc.Keys))
	for _, k := range doc.Keys {
		if k.ID == "" || seen[k.ID] {
			return nil, fmt.Errorf("%w: the key id %.100q is empty or comes twice", ErrKeys, k.ID)
		}
		seen[k.ID] = true
		if k.Type != keyType || k.Scheme != keyType {
			continue
		}
		var expires string
		if k.Expires != nil {
			expires = *k.Expires
		}
		key, err := ParseKey(k.ID, k.Key, expires)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKeys, err)
		}
		ring = append(ring, key)
	}
	return ring, nil
}

// ParseKey reads a key's base64 DER (SubjectPublicKeyInfo); only ECDSA P-256 is
// known. expires is RFC 3339, "" for none.
func ParseKey(id, der, expires string) (Key, error) {
	k := Key{ID: id}
	raw, err := base64.StdEncoding.DecodeString(der)
	if err != nil {
		return Key{}, fmt.Errorf("read key %.100q: %w", id, err)
	}
	public, err := x509.ParsePKIXPublicKey(raw)
	if err != nil {
		return Key{}, fmt.Errorf("read key %.100q: %w", id, err)
	}
	var ok bool
	if k.Public, ok = public.(*ecdsa.PublicKey); !ok || k.Public.Curve.Params().BitSize != 256 {
		return Key{}, fmt.Errorf("read key %.100q: it is not ECDSA P-256", id)
	}
	if expires != "" {
		if k.Expires, err = time.Parse(time.RFC3339, expires); err != nil {
			return Key{}, fmt.Errorf("read key %.100q: %w", id, err)
		}
	}
	return k, nil
}

// Verdict is what a version's registry signatures show.
type Verdict string

const (
	// Unchecked: the policy is to look at none.
	Unchecked Verdict = "unchecked"
	// Unsigned: there are no signatures, or they cover no digest that a tarball
	// can be held to (an integrity of SHA-1 alone, or none).
	Unsigned Verdict = "unsigned"
	// UnknownKey: there are some, all by keys that are not in the ring.
	UnknownKey Verdict = "unknown key"
	// Verified: at least one is by a key of the ring, and every such one
	// verifies. It covers the name, the version and the text of dist.integrity,
	// and that has a digest stronger than SHA-1.
	//
	// So it speaks for the bytes of a tarball that were checked against
	// ParseIntegrity of the same Dist, which demands the integrity's own
	// digests whatever the shasum says, and for no bytes that match the shasum
	// alone. It says nothing of dist-tags, time, dependencies or scripts: npm
	// signs none of them.
	Verified Verdict = "verified"
)

// VerifySignature checks a version's registry signatures: ECDSA P-256 over
// SHA-256, in ASN.1, of "name@version:integrity", as pacote does
// (lib/registry.js), but that a signature by a stranger's key beside a good one
// is no failure, so that a registry can bring in a new key. The error wraps
// ErrSignature where one by a key of the ring fails.
//
// published is the version's entry in the packument's `time`. "" counts as
// before every expiry: pacote puts 2015 in its place. What is no time counts as
// after every expiry, as in pacote, where it compares false.
func VerifySignature(ring []Key, name Name, version string, d Dist, published string) (Verdict, error) {
	if len(d.Signatures) == 0 {
		return Unsigned, nil
	}
	at, timeErr := time.Parse(time.RFC3339, published)
	digest := sha256.Sum256([]byte(string(name) + "@" + version + ":" + d.Integrity))
	verdict := UnknownKey
	for _, s := range d.Signatures {
		i := slices.IndexFunc(ring, func(k Key) bool { return k.ID == s.KeyID })
		if i < 0 {
			continue
		}
		k := ring[i]
		if !k.Expires.IsZero() && published != "" && (timeErr != nil || !at.Before(k.Expires)) {
			return "", fmt.Errorf("%s@%s: %w: key %s expired before it was published, at %.40q", name, version, ErrSignature, k.ID, published)
		}
		sig, err := base64.StdEncoding.DecodeString(s.Sig)
		if err != nil || !ecdsa.VerifyASN1(k.Public, digest[:], sig) {
			return "", fmt.Errorf("%s@%s: %w: that by key %s does not verify", name, version, ErrSignature, k.ID)
		}
		verdict = Verified
	}
	if verdict == Verified {
		// The shasum is not signed: the integrity must do without it.
		if in, err := ParseIntegrity(Dist{Integrity: d.Integrity}); err != nil || in.Weak() {
			return Unsigned, nil
		}
	}
	return verdict, nil
}

// SignaturePolicy says what to make of registry signatures. The zero value is
// PreferSignatures.
type SignaturePolicy int

const (
	// PreferSignatures refuses a version whose signature by a known key does
	// not verify. That there is none, or none by a known key, is only a verdict.
	PreferSignatures SignaturePolicy = iota
	// RequireSignatures refuses every version that is not Verified.
	RequireSignatures
	// IgnoreSignatures checks nothing.
	IgnoreSignatures
)

var policies = [...]string{PreferSignatures: "prefer", RequireSignatures: "require", IgnoreSignatures: "ignore"}

// ParseSignaturePolicy reads "prefer", "require" or "ignore".
func ParseSignaturePolicy(s string) (SignaturePolicy, error) {
	if i := slices.Index(policies[:], s); i >= 0 {
		return SignaturePolicy(i), nil
	}
	return 0, fmt.Errorf("signature policy %.40q: it is none of prefer, require and ignore", s)
}

// String is the policy as ParseSignaturePolicy reads it.
func (p SignaturePolicy) String() string {
	if p < 0 || int(p) >= len(policies) {
		return fmt.Sprintf("SignaturePolicy(%d)", int(p))
	}
	return policies[p]
}

// Check is VerifySignature under the policy: an error means that the version
// must not be used. It wraps ErrSignature where a signature fails, and
// ErrUnsigned (with the verdict beside it) where one is required and there is none.
func (p SignaturePolicy) Check(ring []Key, name Name, version string, d Dist, published string) (Verdict, error) {
	if p == IgnoreSignatures {
		return Unchecked, nil
	}
	verdict, err := VerifySignature(ring, name, version, d, published)
	if err == nil && verdict != Verified && p != PreferSignatures {
		err = fmt.Errorf("%s@%s: %w (%s)", name, version, ErrUnsigned, verdict)
	}
	return verdict, err
}
