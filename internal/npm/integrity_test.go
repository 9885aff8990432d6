package npm

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestIntegrity(t *testing.T) {
	const body, other = "tarball", "tarbalk"
	sri := func(s string) string {
		sum := sha512.Sum512([]byte(s))
		return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	}
	sri256 := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
	}
	sum1 := func(s string) []byte { sum := sha1.Sum([]byte(s)); return sum[:] }
	shasum := func(s string) string { return hex.EncodeToString(sum1(s)) }
	sri1 := func(s string) string { return "sha1-" + base64.StdEncoding.EncodeToString(sum1(s)) }
	for _, c := range []struct {
		name       string
		d          Dist
		parse      error
		check      error
		wantString string
	}{
		{"Both", Dist{Integrity: sri(body), Shasum: shasum(body)}, nil, nil, sri(body)},
		{"OnlyIntegrity", Dist{Integrity: sri(body)}, nil, nil, sri(body)},
		{"OnlyShasum", Dist{Shasum: shasum(body)}, nil, nil, sri1(body)},
		{"ShasumUpperCase", Dist{Shasum: strings.ToUpper(shasum(body))}, nil, nil, sri1(body)},
		{"OnlySHA1InIntegrity", Dist{Integrity: sri1(body)}, nil, nil, sri1(body)},
		{"WrongIntegrity", Dist{Integrity: sri(other)}, nil, ErrIntegrity, sri(other)},
		{"WrongShasum", Dist{Shasum: shasum(other)}, nil, ErrIntegrity, sri1(other)},
		{"RightIntegrityWrongShasum", Dist{Integrity: sri(body), Shasum: shasum(other)}, nil, ErrIntegrity, sri(body)},
		{"WrongIntegrityRightShasum", Dist{Integrity: sri(other), Shasum: shasum(body)}, nil, ErrIntegrity, sri(other)},
		{"RightStrongWrongWeak", Dist{Integrity: sri(body) + " " + sri256(other)}, nil, ErrIntegrity, sri(body)},
		{"SHA256", Dist{Integrity: sri256(body)}, nil, nil, sri256(body)},
		{"OneOfTwo", Dist{Integrity: sri(other) + " " + sri(body)}, nil, nil, sri(other) + " " + sri(body)},
		{"OptionsAndSpaces", Dist{Integrity: "\n " + sri(body) + "?x=y  md5-AAAA "}, nil, nil, sri(body)},
		{"Nothing", Dist{}, ErrNoIntegrity, nil, ""},
		{"UnknownAlgorithm", Dist{Integrity: "md5-AAAA"}, ErrNoIntegrity, nil, ""},
		{"UnusableIntegrityRightShasum", Dist{Integrity: "sha512-", Shasum: shasum(body)}, ErrNoIntegrity, nil, ""},
		{"ShortDigest", Dist{Integrity: "sha512-AAAA"}, ErrNoIntegrity, nil, ""},
		{"NoPadding", Dist{Integrity: strings.TrimRight(sri(body), "=")}, ErrNoIntegrity, nil, ""},
		{"UpperCaseAlgorithm", Dist{Integrity: strings.ToUpper(sri(body)[:6]) + sri(body)[6:]}, ErrNoIntegrity, nil, ""},
		{"BadShasum", Dist{Integrity: sri(body), Shasum: "xyz"}, ErrNoIntegrity, nil, ""},
		{"ShortShasum", Dist{Shasum: shasum(body)[:38]}, ErrNoIntegrity, nil, ""},
		{"SHA1sContradict", Dist{Integrity: sri1(body), Shasum: shasum(other)}, ErrNoIntegrity, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := ParseIntegrity(c.d)
			if !errors.Is(err, c.parse) || (err != nil) != (c.parse != nil) {
				t.Fatalf("ParseIntegrity: %v; want %v", err, c.parse)
			}
			if in.String() != c.wantString {
				t.Errorf("String %q, want %q", in, c.wantString)
			}
			v := in.NewVerifier()
			v.Write([]byte(body[:3]))
			if err := v.Check(); err == nil {
				t.Error("half of the bytes pass")
			}
			v.Write([]byte(body[3:]))
			for range 2 { // a check changes nothing
				err := v.Check()
				switch {
				case c.parse != nil:
					if err == nil {
						t.Error("no integrity passes")
					}
				case !errors.Is(err, c.check) || (err != nil) != (c.check != nil):
					t.Errorf("Check: %v; want %v", err, c.check)
				}
			}
			if v.SRI() != sri(body) || v.Shasum() != shasum(body) {
				t.Errorf("SRI %s, shasum %s", v.SRI(), v.Shasum())
			}
		})
	}
}

// The keys and the signature are npm's own.
func TestVerifySignature(t *testing.T) {
	raw, err := os.ReadFile("testdata/npm-signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Keys   []struct{ KeyID, Key, Expires string }
		Signed []struct {
			Name, Version, Integrity string
			Signatures               []Signature
		}
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	var ring []Key
	for _, k := range f.Keys {
		key, err := ParseKey(k.KeyID, k.Key, k.Expires)
		if err != nil {
			t.Fatal(err)
		}
		ring = append(ring, key)
	}
	if len(ring) != 2 || len(f.Signed) != 1 || ring[0].Expires.IsZero() || !ring[1].Expires.IsZero() {
		t.Fatalf("the fixture is not what the test is for: %+v", f)
	}
	s := f.Signed[0]
	name, d := Name(s.Name), Dist{Integrity: s.Integrity, Signatures: s.Signatures}
	published := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	if err := VerifySignature(ring, name, s.Version, d, published); err != nil {
		t.Errorf("a true signature: %v", err)
	}
	expiring := []Key{ring[1]}
	expiring[0].Expires = published
	flipped := append([]byte(d.Integrity[:len(d.Integrity)-3]), 'w', '=', '=')
	// One true signature and one false by another known key.
	mixed := append([]Signature{{KeyID: ring[0].ID, Sig: d.Signatures[0].Sig}}, d.Signatures...)
	for name2, c := range map[string]struct {
		err  error
		want error
	}{
		"OtherVersion":   {VerifySignature(ring, name, "2.1.98", d, published), ErrSignature},
		"OtherName":      {VerifySignature(ring, "express", s.Version, d, published), ErrSignature},
		"OtherIntegrity": {VerifySignature(ring, name, s.Version, Dist{Integrity: string(flipped), Signatures: d.Signatures}, published), ErrSignature},
		"NoSignature":    {VerifySignature(ring, name, s.Version, Dist{Integrity: d.Integrity}, published), ErrUnsigned},
		"UnknownKey":     {VerifySignature(ring[:1], name, s.Version, d, published), ErrUnsigned},
		"NoRing":         {VerifySignature(nil, name, s.Version, d, published), ErrUnsigned},
		"OtherKey":       {VerifySignature(ring, name, s.Version, Dist{Integrity: d.Integrity, Signatures: []Signature{{ring[0].ID, d.Signatures[0].Sig}}}, time.Time{}), ErrSignature},
		"OneFalse":       {VerifySignature(ring, name, s.Version, Dist{Integrity: d.Integrity, Signatures: mixed}, time.Time{}), ErrSignature},
		"NoBase64":       {VerifySignature(ring, name, s.Version, Dist{Integrity: d.Integrity, Signatures: []Signature{{ring[1].ID, "?"}}}, published), ErrSignature},
		"KeyHadExpired":  {VerifySignature(expiring, name, s.Version, d, published), ErrSignature},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v; want %v", name2, c.err, c.want)
		}
	}
	if err := VerifySignature(expiring, name, s.Version, d, published.Add(-time.Second)); err != nil {
		t.Errorf("published before the key expired: %v", err)
	}
	for _, k := range [][3]string{{"k", "?", ""}, {"k", "AAAA", ""}, {"k", f.Keys[0].Key, "soon"}} {
		if _, err := ParseKey(k[0], k[1], k[2]); err == nil {
			t.Errorf("ParseKey(%q) passes", k)
		}
	}
}
