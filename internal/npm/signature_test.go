package npm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// signed is a version of testdata/npm-signatures.json. Keys and signature are npm's own.
type signed struct {
	Name       Name
	Version    string
	Integrity  string
	Signatures []Signature
}

func readSigned(t testing.TB) signed {
	t.Helper()
	raw, err := os.ReadFile("testdata/npm-signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct{ Signed []signed }
	if err := json.Unmarshal(raw, &f); err != nil || len(f.Signed) != 1 {
		t.Fatalf("the fixture is not what the test is for: %+v, %v", f, err)
	}
	return f.Signed[0]
}

func TestPublicKeys(t *testing.T) {
	ring := PublicKeys()
	if len(ring) != 2 || ring[0].Expires != time.Date(2025, 1, 29, 0, 0, 0, 0, time.UTC) || !ring[1].Expires.IsZero() {
		t.Fatalf("%+v", ring)
	}
	ring[0] = Key{}
	if PublicKeys()[0].ID == "" {
		t.Error("a caller can change the ring of others")
	}
	// The test's fixture has the same keys.
	raw, err := os.ReadFile("testdata/npm-signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct{ Keys json.RawMessage }
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	other, err := ParseKeys([]byte(`{"keys":` + string(f.Keys) + `}`))
	if err != nil || !slices.EqualFunc(PublicKeys(), other, func(a, b Key) bool {
		return a.ID == b.ID && a.Expires.Equal(b.Expires) && a.Public.Equal(b.Public)
	}) {
		t.Errorf("%+v, %v", other, err)
	}
}

// The keys and the signature are npm's own.
func TestVerifySignature(t *testing.T) {
	ring, s := PublicKeys(), readSigned(t)
	d := Dist{Integrity: s.Integrity, Signatures: s.Signatures}
	const published = "2026-04-01T00:00:00.000Z"
	expiring := []Key{ring[1]}
	expiring[0].Expires = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	by := func(sigs ...Signature) Dist { return Dist{Integrity: d.Integrity, Signatures: sigs} }
	good, stranger := d.Signatures[0], Signature{KeyID: "SHA256:x", Sig: d.Signatures[0].Sig}
	for _, c := range []struct {
		name      string
		ring      []Key
		pkg       Name
		version   string
		d         Dist
		published string
		want      Verdict // "" for ErrSignature
	}{
		{"True", ring, s.Name, s.Version, d, published, Verified},
		{"TrueWithoutTime", ring, s.Name, s.Version, d, "", Verified},
		{"TrueWithNonsenseTime", ring, s.Name, s.Version, d, "yesterday", Verified}, // its key does not expire
		{"TrueBesideAStranger", ring, s.Name, s.Version, by(stranger, good), published, Verified},
		{"OtherVersion", ring, s.Name, "2.1.98", d, published, ""},
		{"OtherName", ring, "express", s.Version, d, published, ""},
		{"OtherIntegrity", ring, s.Name, s.Version, Dist{Integrity: d.Integrity[:len(d.Integrity)-3] + "w==", Signatures: d.Signatures}, published, ""},
		{"AddedIntegrity", ring, s.Name, s.Version, Dist{Integrity: d.Integrity + " " + d.Integrity, Signatures: d.Signatures}, published, ""},
		{"NoIntegrity", ring, s.Name, s.Version, Dist{Shasum: strings.Repeat("0", 40), Signatures: d.Signatures}, published, ""},
		{"OtherKey", ring, s.Name, s.Version, by(Signature{ring[0].ID, good.Sig}), "", ""},
		{"OneFalse", ring, s.Name, s.Version, by(Signature{ring[0].ID, good.Sig}, good), "", ""},
		{"NoBase64", ring, s.Name, s.Version, by(Signature{ring[1].ID, "?"}), published, ""},
		{"Empty", ring, s.Name, s.Version, by(Signature{ring[1].ID, ""}), published, ""},
		{"NoSignature", ring, s.Name, s.Version, by(), published, Unsigned},
		{"UnknownKey", ring[:1], s.Name, s.Version, d, published, UnknownKey},
		{"EmptyKeyID", ring, s.Name, s.Version, by(Signature{}), published, UnknownKey},
		{"NoRing", nil, s.Name, s.Version, d, published, UnknownKey},
		{"KeyHadExpired", expiring, s.Name, s.Version, d, published, ""},
		{"KeyHadExpiredLong", expiring, s.Name, s.Version, d, "2026-05-01T00:00:00.000Z", ""},
		{"KeyHadNot", expiring, s.Name, s.Version, d, "2026-03-31T23:59:59.999Z", Verified},
		{"KeyExpiresNoTime", expiring, s.Name, s.Version, d, "", Verified},
		{"KeyExpiresNonsenseTime", expiring, s.Name, s.Version, d, "yesterday", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := VerifySignature(c.ring, c.pkg, c.version, c.d, c.published)
			if got != c.want || errors.Is(err, ErrSignature) != (c.want == "") || errors.Is(err, ErrUnsigned) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
			for policy, refused := range map[SignaturePolicy]bool{
				PreferSignatures: c.want == "", RequireSignatures: c.want != Verified, IgnoreSignatures: false,
			} {
				verdict, err := policy.Check(c.ring, c.pkg, c.version, c.d, c.published)
				if errors.Is(err, ErrSignature) != refused || (err != nil) != refused {
					t.Errorf("%s: %v; want it refused: %v", policy, err, refused)
				}
				if want := c.want; policy == IgnoreSignatures {
					want = Unchecked
				} else if verdict != want {
					t.Errorf("%s: %q", policy, verdict)
				}
				if errors.Is(err, ErrUnsigned) != (refused && c.want != "") {
					t.Errorf("%s: %v", policy, err)
				}
			}
		})
	}
}

// newSigner returns a ring of one new key and a function that signs by it.
func newSigner(t testing.TB) ([]Key, func(text string) Signature) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return []Key{{ID: "SHA256:k", Public: &private.PublicKey}}, func(text string) Signature {
		digest := sha256.Sum256([]byte(text))
		sig, err := ecdsa.SignASN1(rand.Reader, private, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return Signature{KeyID: "SHA256:k", Sig: base64.StdEncoding.EncodeToString(sig)}
	}
}

// A signature covers the integrity and not the shasum. What verifies must hold
// a tarball to the integrity, or it says nothing of the tarball.
func TestVerifiedMeansTheTarball(t *testing.T) {
	ring, sign := newSigner(t)
	const body, other = "tarball", "tarbalk"
	sri := func(s string) string {
		sum := sha512.Sum512([]byte(s))
		return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	}
	sha1Of := func(s string) []byte { sum := sha1.Sum([]byte(s)); return sum[:] }
	for _, c := range []struct {
		name, integrity string
		want            Verdict
		passes          string // the one body that passes, "" for none
	}{
		{"SHA512", sri(body), Verified, body},
		{"SHA512OfOtherBytes", sri(other), Verified, ""}, // the shasum is body's
		{"SHA512AndUnknown", sri(body) + " sha3-AAAA", Verified, body},
		{"OnlySHA1", "sha1-" + base64.StdEncoding.EncodeToString(sha1Of(body)), Unsigned, body},
		{"OnlyUnknown", "sha3-AAAA", Unsigned, ""},
		{"CutSHA512", sri(body)[:40], Unsigned, ""},
		{"None", "", Unsigned, body},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Dist{Integrity: c.integrity, Shasum: hex.EncodeToString(sha1Of(body)), Signatures: []Signature{sign("n@1.0.0:" + c.integrity)}}
			verdict, err := VerifySignature(ring, "n", "1.0.0", d, "")
			if err != nil || verdict != c.want {
				t.Errorf("%q, %v; want %q", verdict, err, c.want)
			}
			in, err := ParseIntegrity(d)
			for _, bytes := range []string{body, other} {
				v := in.NewVerifier()
				v.Write([]byte(bytes))
				if passes := err == nil && v.Check() == nil; passes != (bytes == c.passes) {
					t.Errorf("%q passes: %v", bytes, passes)
				}
			}
		})
	}
}

func TestParseKeys(t *testing.T) {
	key := string(npmKeys[strings.Index(string(npmKeys), `"key": "`)+8:])
	key = key[:strings.IndexByte(key, '"')]
	entry := func(id, kind, scheme, expires, der string) string {
		return fmt.Sprintf(`{"keyid":%q,"keytype":%q,"scheme":%q,"expires":%s,"key":%q}`, id, kind, scheme, expires, der)
	}
	known := func(id string) string { return entry(id, keyType, keyType, "null", key) }
	list := func(entries ...string) string { return `{"keys":[` + strings.Join(entries, ",") + `]}` }
	many := make([]string, maxKeys+1)
	for i := range many {
		many[i] = known(fmt.Sprint(i))
	}
	for _, c := range []struct {
		name, raw string
		want      int // keys, -1 for ErrKeys
	}{
		{"None", list(), 0},
		{"One", list(known("a")), 1},
		{"Most", list(many[1:]...), maxKeys},
		{"Expiring", list(entry("a", keyType, keyType, `"2025-01-29T00:00:00.000Z"`, key)), 1},
		{"ExpiresAbsent", `{"keys":[{"keyid":"a","keytype":"` + keyType + `","scheme":"` + keyType + `","key":"` + key + `"}]}`, 1},
		{"OtherType", list(entry("a", "ml-dsa-44", "ml-dsa-44", "null", "?"), known("b")), 1},
		{"OtherScheme", list(entry("a", keyType, "new", "null", key)), 0},
		{"UnknownFields", `{"keys":[{"keyid":"a","more":[{}],"keytype":"x"}],"more":1}`, 0},
		{"TooMany", list(many...), -1},
		{"TwiceTheSameID", list(known("a"), known("a")), -1},
		{"TwiceTheSameIDOfOtherType", list(known("a"), entry("a", "x", "x", "null", "")), -1},
		{"NoID", list(known("")), -1},
		{"NoKey", list(entry("a", keyType, keyType, "null", "")), -1},
		{"NoBase64", list(entry("a", keyType, keyType, "null", "?")), -1},
		{"NoDER", list(entry("a", keyType, keyType, "null", "AAAA")), -1},
		{"BadExpiry", list(entry("a", keyType, keyType, `"soon"`, key)), -1},
		{"ExpiryNumber", list(entry("a", keyType, keyType, `7`, key)), -1},
		{"NoKeys", `{}`, -1},
		{"KeysNull", `{"keys":null}`, -1},
		{"KeysInOtherCase", `{"Keys":[]}`, -1},
		{"KeysTwice", `{"keys":[],"keys":[]}`, -1},
		{"Array", `[]`, -1},
		{"Trailing", list() + `{}`, -1},
		{"Cut", list(known("a"))[:50], -1},
		{"HTML", "<html>", -1},
		{"TooLarge", list() + strings.Repeat(" ", maxKeysSize), -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ring, err := ParseKeys([]byte(c.raw))
			if (c.want < 0) != errors.Is(err, ErrKeys) || c.want >= 0 && (err != nil || len(ring) != c.want) {
				t.Errorf("%d keys, %v; want %d", len(ring), err, c.want)
			}
		})
	}
}

func TestSignaturePolicy(t *testing.T) {
	for _, s := range []string{"require", "prefer", "ignore"} {
		if p, err := ParseSignaturePolicy(s); err != nil || p.String() != s {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "Require", "always"} {
		if p, err := ParseSignaturePolicy(s); err == nil {
			t.Errorf("%q: %v", s, p)
		}
	}
	if (SignaturePolicy(0)).String() != "prefer" || SignaturePolicy(9).String() != "SignaturePolicy(9)" {
		t.Error("names of policies")
	}
	// What is no policy is the strictest.
	if _, err := SignaturePolicy(9).Check(nil, "n", "1.0.0", Dist{}, ""); !errors.Is(err, ErrUnsigned) {
		t.Error(err)
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add(npmKeys)
	f.Add([]byte(`{"keys":[{"keyid":"a","keytype":"x","scheme":"x","expires":null,"key":""}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ring, err := ParseKeys(raw)
		if err != nil {
			if !errors.Is(err, ErrKeys) {
				t.Fatalf("%v is no ErrKeys", err)
			}
			return
		}
		ids := map[string]bool{}
		for _, k := range ring {
			if k.ID == "" || ids[k.ID] || k.Public == nil || k.Public.Curve != elliptic.P256() || len(ring) > maxKeys {
				t.Fatalf("%q gives %+v", raw, ring)
			}
			ids[k.ID] = true
		}
	})
}

// No bytes but the registry's own verify, and a verdict is one of four.
func FuzzVerifySignature(f *testing.F) {
	s := readSigned(f)
	ring := PublicKeys()
	f.Add(string(s.Name), s.Version, s.Integrity, s.Signatures[0].KeyID, s.Signatures[0].Sig, "2026-04-01T00:00:00.000Z")
	f.Add("n", "1.0.0", "", ring[0].ID, "", "")
	f.Fuzz(func(t *testing.T, name, version, integrity, id, sig, published string) {
		d := Dist{Integrity: integrity, Signatures: []Signature{{id, sig}}}
		verdict, err := VerifySignature(ring, Name(name), version, d, published)
		known := id == ring[0].ID || id == ring[1].ID
		text := name + "@" + version + ":" + integrity
		switch {
		case err != nil && (!errors.Is(err, ErrSignature) || !known || verdict != ""):
			t.Fatalf("%q, %v", verdict, err)
		case err == nil && !known && verdict != UnknownKey:
			t.Fatalf("%q for a signature by %q", verdict, id)
		case verdict == Verified && text != string(s.Name)+"@"+s.Version+":"+s.Integrity:
			t.Fatalf("%q verifies", text)
		}
	})
}
