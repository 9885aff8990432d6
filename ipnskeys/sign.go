package ipnskeys

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/crypto/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

var (
	// ErrKeyType is returned for a key that is not Ed25519: other types may
	// not resolve everywhere (IPNS specification, "Cryptographic Key Types").
	ErrKeyType = errors.New("not an Ed25519 key")
	// ErrSign is returned when a signer gives no signature, or one that its
	// own public key does not verify.
	ErrSign = errors.New("the signer gave no good signature")

	errNoRaw = errors.New("a private key is not handed out")
)

// Signer signs IPNS records for one name. Its methods may run concurrently
// where those of its crypto.Signer may.
type Signer struct {
	key  privateKey
	name ipns.Name
}

// NewSigner signs with any Ed25519 crypto.Signer: a key in memory, an agent's,
// a token's. Error: ErrKeyType.
func NewSigner(key crypto.Signer) (*Signer, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok || len(public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: %T", ErrKeyType, key.Public())
	}
	pub, err := ic.UnmarshalEd25519PublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyType, err)
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyType, err)
	}
	return &Signer{key: privateKey{key, pub}, name: ipns.NameFromPeer(id)}, nil
}

// IPNSName is the name that the signer signs for.
func (s *Signer) IPNSName() ipns.Name { return s.name }

// String is the name alone: a signer that is printed or logged shows no key.
func (s *Signer) String() string { return s.name.String() }

// GoString is String, for %#v.
func (s *Signer) GoString() string { return s.String() }

// Sign makes a record (V1 and V2) that says /ipfs/value until eol, and gives
// its bytes, which passed ipnsrecord.Check but for the clock. Equal arguments
// give equal bytes. The caller has made sure that seq was never used for
// another value. Errors: ErrSign, ipnsrecord's.
func (s *Signer) Sign(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
	return s.record(value, seq, eol, ttl, true)
}

// SignV2Only is Sign without the fields and the signature of V1 (IPIP-428): some
// 220 bytes and not 400. Nodes from before that do not take such a record.
func (s *Signer) SignV2Only(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
	return s.record(value, seq, eol, ttl, false)
}

func (s *Signer) record(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration, v1 bool) ([]byte, error) {
	raw, err := s.sign(value, seq, eol, ttl, v1)
	if err != nil {
		return nil, fmt.Errorf("sign record %d of %s: %w", seq, s.name, err)
	}
	return raw, nil
}

func (s *Signer) sign(value cid.Cid, seq uint64, eol time.Time, ttl time.Duration, v1 bool) ([]byte, error) {
	// Before the key is used: what was signed cannot be taken back.
	if !value.Defined() {
		return nil, ipnsrecord.ErrValue
	}
	if seq >= ipnsrecord.MaxSequence {
		return nil, ipnsrecord.ErrSequence
	}
	rec, err := ipns.NewRecord(s.key, path.FromCid(value), seq, eol.UTC(), ttl, ipns.WithV1Compatibility(v1))
	if errors.Is(err, ErrSign) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSign, err)
	}
	raw, err := ipns.MarshalRecord(rec)
	if err != nil {
		return nil, err
	}
	// NewRecord checks neither the size nor, with a foreign signer, the
	// signature. The zero time is before every end of life.
	got, err := ipnsrecord.Check(s.name, raw, time.Time{})
	if errors.Is(err, ipnsrecord.ErrSignature) {
		return nil, fmt.Errorf("%w: %w", ErrSign, err)
	}
	if err != nil {
		return nil, err
	}
	if got.Value != value || got.Sequence != seq || !got.EOL.Equal(eol) || got.TTL != ttl {
		return nil, fmt.Errorf("%w: the record says something else", ErrSign)
	}
	return raw, nil
}

// privateKey is the five-method key that boxo signs with, over a crypto.Signer.
type privateKey struct {
	signer crypto.Signer
	public ic.PubKey
}

var _ ic.PrivKey = privateKey{}

func (k privateKey) Sign(message []byte) ([]byte, error) {
	return k.signer.Sign(rand.Reader, message, crypto.Hash(0))
}
func (k privateKey) GetPublic() ic.PubKey { return k.public }
func (k privateKey) Type() pb.KeyType     { return pb.KeyType_Ed25519 }
func (k privateKey) Raw() ([]byte, error) { return nil, errNoRaw }
func (k privateKey) Equals(o ic.Key) bool {
	other, ok := o.(ic.PrivKey)
	return ok && k.public.Equals(other.GetPublic())
}
