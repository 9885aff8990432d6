package ipnsrecord

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/ipns/pb"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

// Contents are what a record says, field by field, whether or not it may be
// believed: nothing of it was held to a signature.
type Contents struct {
	Size int // in bytes
	V1   *Fields
	V2   *Fields // of the data that V2 signs
	// Name is of the public key that the record carries; the zero Name where it
	// carries none. Ed25519 keys lie in the name, and are left out.
	Name ipns.Name
	// More are the names of further fields that V2 signs, sorted.
	More []string
	// Unknown counts the bytes of protobuf fields that IPNS does not know.
	Unknown int
}

// Fields are what one of a record's two forms says.
type Fields struct {
	Value     string    // as it is written: any bytes
	EOL       time.Time // the zero time where it is none
	Sequence  uint64
	TTL       time.Duration
	Signature int // in bytes; 0 for none
	// Problem says which fields cannot be read, and why; "" for none. They are zero.
	Problem string
}

// Inspect reads raw. Errors: ErrTooBig, and ErrMalformed for what is no record or
// one whose signed data cannot be read (a map's key that comes twice, say). One of
// V1 alone is read: it has no V2, and Check refuses it.
func Inspect(raw []byte) (Contents, error) {
	if len(raw) > MaxSize {
		return Contents{}, fmt.Errorf("%w: %d bytes", ErrTooBig, len(raw))
	}
	var p pb.IpnsRecord
	if err := proto.Unmarshal(raw, &p); err != nil {
		return Contents{}, malformed(err)
	}
	c := Contents{Size: len(raw), Unknown: len(p.ProtoReflect().GetUnknown())}
	if hasV1(&p) {
		c.V1 = &Fields{Value: string(p.GetValue()), Sequence: p.GetSequence(), TTL: time.Duration(p.GetTtl()), Signature: len(p.GetSignatureV1())}
		eol, err := time.Parse(time.RFC3339Nano, string(p.GetValidity()))
		if err != nil {
			c.V1.Problem = fmt.Sprintf("end of life: %.40q is no time", p.GetValidity())
		}
		c.V1.EOL = eol
	}
	if key := p.GetPubKey(); len(key) > 0 {
		id, err := keyID(key)
		if err != nil {
			return Contents{}, malformed(fmt.Errorf("its public key: %w", err))
		}
		c.Name = ipns.NameFromPeer(id)
	}
	rec, err := ipns.UnmarshalRecord(raw)
	switch {
	case c.V1 != nil && errors.Is(err, ipns.ErrDataMissing):
		return c, nil
	case err != nil:
		return Contents{}, malformed(err)
	}
	c.V2 = &Fields{Signature: len(p.GetSignatureV2())}
	c.V2.read(rec)
	for key := range rec.MetadataEntries() {
		c.More = append(c.More, key)
	}
	slices.Sort(c.More)
	return c, nil
}

// hasV1 is where readers begin to compare V1 with V2 (IPNS specification, "Record
// Verification").
func hasV1(p *pb.IpnsRecord) bool { return len(p.GetValue()) > 0 || len(p.GetSignatureV1()) > 0 }

func keyID(raw []byte) (peer.ID, error) {
	key, err := ic.UnmarshalPublicKey(raw)
	if err != nil {
		return "", err
	}
	return peer.IDFromPublicKey(key)
}

func (f *Fields) read(rec *ipns.Record) {
	var problems []string
	note := func(field string, err error) {
		if err != nil {
			problems = append(problems, field+": "+oneLine(err))
		}
	}
	value, err := rec.Value()
	if err == nil {
		f.Value = value.String()
	}
	note("value", err)
	f.EOL, err = rec.Validity()
	note("end of life", err)
	f.Sequence, err = rec.Sequence()
	note("sequence", err)
	f.TTL, err = rec.TTL()
	note("TTL", err)
	f.Problem = strings.Join(problems, "; ")
}
