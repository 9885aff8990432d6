package ipnsrecord

import (
	"errors"
	"testing"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/ipns/pb"
)

// vectors are the six cases of the IPNS specification's test vectors ("Test Vectors"
// of https://specs.ipfs.tech/ipns/ipns-record/), by what follows the IPNS name in
// their files' names: how each is made, and what it must be held to be.
var vectors = map[string]struct {
	v2   bool // made without V1
	edit func(*pb.IpnsRecord)
	err  error
}{
	"v1":                        {edit: func(p *pb.IpnsRecord) { p.Data, p.SignatureV2 = nil, nil }, err: ErrMalformed},
	"v1-v2":                     {},
	"v1-v2-broken-v1-value":     {edit: func(p *pb.IpnsRecord) { p.Value = []byte("/ipfs/bafkqaaa") }, err: ErrMalformed},
	"v1-v2-broken-signature-v1": {edit: func(p *pb.IpnsRecord) { p.SignatureV1 = []byte("no signature") }}, // nothing verifies it
	"v1-v2-broken-signature-v2": {edit: func(p *pb.IpnsRecord) { p.SignatureV2 = []byte("no signature") }, err: ErrSignature},
	"v2":                        {v2: true},
}

// The six cases, made here. These are not the specification's own files: those are
// in no Go module that this one can fetch.
func TestVectors(t *testing.T) {
	key, name := testKey(t, 1)
	value := testCID(t, "one")
	for kind, c := range vectors {
		t.Run(kind, func(t *testing.T) {
			raw := sign(t, key, "/ipfs/"+value.String(), 0, epoch, ipns.WithV1Compatibility(!c.v2))
			if c.edit != nil {
				raw = change(t, raw, c.edit)
			}
			r, err := Check(name, raw, epoch)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if err == nil && (r.Value != value || r.V2Only != c.v2) || err != nil && r.Raw != nil {
				t.Errorf("record is %+v", r)
			}
		})
	}
}
