package ipnsrecord

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func testKey(t testing.TB, seed byte) (ic.PrivKey, ipns.Name) {
	t.Helper()
	key, _, err := ic.GenerateEd25519Key(bytes.NewReader(bytes.Repeat([]byte{seed}, 64)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, ipns.NameFromPeer(id)
}

func testCID(t testing.TB, s string) cid.Cid {
	t.Helper()
	h, err := multihash.Sum([]byte(s), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.Raw, h)
}

func sign(t testing.TB, key ic.PrivKey, value string, seq uint64, eol time.Time, opts ...ipns.Option) []byte {
	t.Helper()
	p, err := path.NewPath(value)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := ipns.NewRecord(key, p, seq, eol, time.Minute, opts...)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ipns.MarshalRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func record(t testing.TB, key ic.PrivKey, name ipns.Name, value string, seq uint64, eol time.Time) Record {
	t.Helper()
	r, err := Check(name, sign(t, key, "/ipfs/"+testCID(t, value).String(), seq, eol), epoch)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCheck(t *testing.T) {
	key, name := testKey(t, 1)
	_, other := testKey(t, 2)
	one := testCID(t, "one")
	at := "/ipfs/" + one.String()
	eol := epoch.Add(time.Hour)
	good := sign(t, key, at, 7, eol)

	for _, c := range []struct {
		name string
		of   ipns.Name
		raw  []byte
		now  time.Time
		want error
	}{
		{"good", name, good, epoch, nil},
		{"V2 only", name, sign(t, key, at, 7, eol, ipns.WithV1Compatibility(false)), epoch, nil},
		{"at its very end", name, good, eol, nil},
		{"expired by our clock", name, good, eol.Add(time.Nanosecond), ErrExpired},
		// The machine's clock must not matter: this one is long past for it.
		{"expired by the machine's clock only", name, sign(t, key, at, 7, time.Unix(1000, 0)), time.Unix(999, 0), nil},
		{"expired at year zero of the clock", name, sign(t, key, at, 7, time.Unix(1000, 0)), time.Time{}, nil},
		{"another's name", other, good, epoch, ErrSignature},
		{"sequence 2^62", name, sign(t, key, at, 1<<62, eol), epoch, ErrSequence},
		{"sequence 2^64-1", name, sign(t, key, at, math.MaxUint64, eol), epoch, ErrSequence},
		{"largest sequence", name, sign(t, key, at, 1<<62-1, eol), epoch, nil},
		{"points below a CID", name, sign(t, key, at+"/left-pad", 7, eol), epoch, ErrValue},
		{"points at a name", name, sign(t, key, "/ipns/"+other.String(), 7, eol), epoch, ErrValue},
		{"too big", name, sign(t, key, at, 7, eol, ipns.WithMetadata(map[string]any{"_x": bytes.Repeat([]byte{1}, MaxSize)})), epoch, ErrTooBig},
		{"no record", name, []byte("hello"), epoch, ErrMalformed},
		{"nothing", name, nil, epoch, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Check(c.of, c.raw, c.now)
			if !errors.Is(err, c.want) || (c.want == nil && err != nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			switch {
			case c.want == nil, errors.Is(c.want, ErrExpired):
				if r.Value != one || !bytes.Equal(r.Raw, c.raw) || !r.Name.Equal(name) || r.TTL != time.Minute {
					t.Errorf("record is %+v", r)
				}
			case r.Raw != nil || r.Value.Defined():
				t.Errorf("a refused record came back: %+v", r)
			}
		})
	}
}

// Every single changed byte is refused, or changes nothing that a reader sees.
func TestCheckTampered(t *testing.T) {
	key, name := testKey(t, 1)
	raw := sign(t, key, "/ipfs/"+testCID(t, "one").String(), 7, epoch.Add(time.Hour))
	want, err := Check(name, raw, epoch)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range raw {
		bad := slices.Clone(raw)
		bad[i] ^= 0x41
		got, err := Check(name, bad, epoch)
		if err != nil {
			refused++
			continue
		}
		if got.Value != want.Value || got.Sequence != want.Sequence || !got.EOL.Equal(want.EOL) || got.TTL != want.TTL {
			t.Fatalf("byte %d: %+v", i, got)
		}
	}
	// Only signatureV1, which IPNS never verifies, may change unseen.
	if least := len(raw) - 64 - 16; refused < least {
		t.Errorf("refused %d of %d, want at least %d", refused, len(raw), least)
	}
}

func FuzzCheck(f *testing.F) {
	key, name := testKey(f, 1)
	f.Add(sign(f, key, "/ipfs/"+testCID(f, "one").String(), 7, epoch.Add(time.Hour)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := Check(name, raw, epoch)
		if err == nil && (!r.Value.Defined() || r.Sequence >= MaxSequence || r.EOL.Before(epoch) || r.TTL < 0) {
			t.Fatalf("%+v", r)
		}
		said, inspectErr := Inspect(raw)
		if err == nil && (inspectErr != nil || said.V2 == nil || said.V2.Sequence != r.Sequence || said.V2.Problem != "") {
			t.Fatalf("%+v, %v", said, inspectErr)
		}
	})
}

func TestBetter(t *testing.T) {
	key, name := testKey(t, 1)
	hour, day := epoch.Add(time.Hour), epoch.Add(24*time.Hour)
	// From worst to best; of the two with all else equal the bytes decide.
	x, y := record(t, key, name, "a", 2, day), record(t, key, name, "b", 2, day)
	if bytes.Compare(x.Raw, y.Raw) > 0 {
		x, y = y, x
	}
	rising := []Record{{}, record(t, key, name, "z", 1, day), record(t, key, name, "a", 2, hour), x, y, record(t, key, name, "a", 3, hour)}
	for i, a := range rising {
		for j, b := range rising {
			if got := Better(a, b); got != (i > j) {
				t.Errorf("Better(%d, %d) is %v", i, j, got)
			}
		}
	}
	// boxo's order is the one that nodes use.
	for i, a := range rising[1:] {
		for j, b := range rising[1:] {
			best, err := ipns.Validator{}.Select(string(name.RoutingKey()), [][]byte{b.Raw, a.Raw})
			if err != nil {
				t.Fatal(err)
			}
			if (best == 1) != (i > j) {
				t.Errorf("boxo disagrees on %d, %d", i, j)
			}
		}
	}
}

func TestAccept(t *testing.T) {
	key, name := testKey(t, 1)
	thief, elsewhere := testKey(t, 2)
	hour, day := epoch.Add(time.Hour), epoch.Add(24*time.Hour)
	first := record(t, key, name, "one", 0, hour)
	second := record(t, key, name, "two", 5, hour)

	s, err := Accept(State{}, first)
	if err != nil {
		t.Fatal(err)
	}
	// The first sequence may be 0, and is then remembered as accepted.
	if _, err := Accept(s, record(t, key, name, "other", 0, day)); !errors.Is(err, ErrEquivocation) {
		t.Errorf("second value under sequence 0: %v", err)
	}
	if s, err = Accept(s, second); err != nil {
		t.Fatal(err)
	}
	want := State{Name: name.String(), Sequence: 5, Value: testCID(t, "two").String(), EOL: hour}
	if s != want {
		t.Fatalf("state is %+v", s)
	}
	for _, c := range []struct {
		name string
		r    Record
		err  error
		eol  time.Time
	}{
		{"older", first, ErrRollback, hour},
		{"older with later end", record(t, key, name, "one", 4, day), ErrRollback, hour},
		{"another value", record(t, key, name, "three", 5, day), ErrEquivocation, hour},
		{"another name", record(t, thief, elsewhere, "two", 9, day), ErrName, hour},
		{"same again", second, nil, hour},
		{"same, later end", record(t, key, name, "two", 5, day), nil, day},
		{"same, earlier end", record(t, key, name, "two", 5, epoch), nil, hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Accept(s, c.r)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			expect := s
			expect.EOL = c.eol
			if got != expect {
				t.Errorf("state is %+v", got)
			}
		})
	}
}

// A state that went through a file is the same state.
func TestStateJSON(t *testing.T) {
	key, name := testKey(t, 1)
	s, err := Accept(State{}, record(t, key, name, "one", 9, epoch.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if s, err = AcceptRelease(s, Release{Root: testCID(t, "one"), Number: 4, Next: "aa"}); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if back != s {
		t.Errorf("%+v became %+v", s, back)
	}
}

func TestCommitment(t *testing.T) {
	_, name := testKey(t, 1)
	_, other := testKey(t, 2)
	a, err := Commitment(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Commitment(other)
	if err != nil {
		t.Fatal(err)
	}
	if a == b || len(a) != 64 {
		t.Errorf("commitments %q and %q", a, b)
	}
	if _, err := Commitment(ipns.Name{}); err == nil {
		t.Error("no error for the empty name")
	}
}
