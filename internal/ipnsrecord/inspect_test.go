package ipnsrecord

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/ipns/pb"
	"google.golang.org/protobuf/proto"
)

// change takes a record's protobuf apart and puts it together again.
func change(t testing.TB, raw []byte, edit func(*pb.IpnsRecord)) []byte {
	t.Helper()
	var p pb.IpnsRecord
	if err := proto.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	edit(&p)
	raw, err := proto.Marshal(&p)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestInspect(t *testing.T) {
	key, name := testKey(t, 1)
	at := "/ipfs/" + testCID(t, "one").String()
	eol := epoch.Add(time.Hour)
	said := Fields{Value: at, EOL: eol, Sequence: 7, TTL: time.Minute, Signature: 64}
	both := sign(t, key, at, 7, eol)

	for _, c := range []struct {
		name   string
		raw    []byte
		v1, v2 *Fields
		more   string
		of     ipns.Name
		err    error
	}{
		{name: "V1 and V2", raw: both, v1: &said, v2: &said},
		{name: "V2 only", raw: sign(t, key, at, 7, eol, ipns.WithV1Compatibility(false)), v2: &said},
		{name: "V1 only", raw: change(t, both, func(p *pb.IpnsRecord) { p.Data, p.SignatureV2 = nil, nil }), v1: &said},
		{name: "unsigned", raw: change(t, both, func(p *pb.IpnsRecord) { p.SignatureV2 = nil }), v1: &said,
			v2: &Fields{Value: at, EOL: eol, Sequence: 7, TTL: time.Minute}},
		{name: "V1 says otherwise", raw: change(t, both, func(p *pb.IpnsRecord) { p.Value, p.Sequence = []byte("\x1b[2J"), proto.Uint64(math.MaxUint64) }),
			v1: &Fields{Value: "\x1b[2J", EOL: eol, Sequence: math.MaxUint64, TTL: time.Minute, Signature: 64}, v2: &said},
		{name: "V1 ends at no time", raw: change(t, both, func(p *pb.IpnsRecord) { p.Validity = []byte("soon") }),
			v1: &Fields{Value: at, Sequence: 7, TTL: time.Minute, Signature: 64, Problem: `end of life: "soon" is no time`}, v2: &said},
		{name: "with its key", raw: sign(t, key, at, 7, eol, ipns.WithPublicKey(true)), v1: &said, v2: &said, of: name},
		{name: "with more", raw: sign(t, key, at, 7, eol, ipns.WithMetadata(map[string]any{"_b": 1, "_a": "x"})), v1: &said, v2: &said, more: "_a _b"},
		{name: "sequence 2^64-1", raw: sign(t, key, at, math.MaxUint64, eol, ipns.WithV1Compatibility(false)),
			v2: &Fields{Value: at, EOL: eol, Sequence: math.MaxUint64, TTL: time.Minute, Signature: 64}},
		{name: "nothing", err: ErrMalformed},
		{name: "no protobuf", raw: []byte("hello, I am no record"), err: ErrMalformed},
		{name: "no CBOR", raw: change(t, both, func(p *pb.IpnsRecord) { p.Data = []byte("x") }), err: ErrMalformed},
		{name: "no key", raw: change(t, both, func(p *pb.IpnsRecord) { p.PubKey = []byte("x") }), err: ErrMalformed},
		{name: "a key twice in its CBOR", raw: change(t, both, func(p *pb.IpnsRecord) { p.Data = twice }), err: ErrMalformed},
		{name: "10 KiB and 1", raw: bytes.Repeat([]byte{0}, MaxSize+1), err: ErrTooBig},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Inspect(c.raw)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if err != nil {
				if strings.ContainsAny(err.Error(), "\n\x1b") {
					t.Errorf("the error is %q", err)
				}
				return
			}
			for form, pair := range map[string][2]*Fields{"V1": {got.V1, c.v1}, "V2": {got.V2, c.v2}} {
				g, w := pair[0], pair[1]
				if (g == nil) != (w == nil) || g != nil && *g != *w {
					t.Errorf("%s is %+v, want %+v", form, g, w)
				}
			}
			if more := strings.Join(got.More, " "); more != c.more || !got.Name.Equal(c.of) || got.Size != len(c.raw) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// twice is CBOR's map {"Value": "/a", "Value": "/b"}.
var twice = slices.Concat([]byte{0xa2, 0x65}, []byte("Value"), []byte{0x42}, []byte("/a"), []byte{0x65}, []byte("Value"), []byte{0x42}, []byte("/b"))

// Two readers might take the first or the last of two equal keys: a record that
// its key did sign is refused all the same.
func TestCheckRepeatedKey(t *testing.T) {
	key, name := testKey(t, 1)
	signature, err := key.Sign(append([]byte("ipns-signature:"), twice...))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&pb.IpnsRecord{Data: twice, SignatureV2: signature})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Check(name, raw, epoch); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "Value") {
		t.Errorf("got %v", err)
	}
}

func TestCheckV2Only(t *testing.T) {
	key, name := testKey(t, 1)
	for _, v1 := range []bool{true, false} {
		r, err := Check(name, sign(t, key, "/ipfs/"+testCID(t, "one").String(), 7, epoch, ipns.WithV1Compatibility(v1)), epoch)
		if err != nil || r.V2Only == v1 {
			t.Errorf("with V1 %v: %+v, %v", v1, r, err)
		}
	}
}
