package npm

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
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
			if strong := strings.HasPrefix(c.wantString, "sha512-") || strings.HasPrefix(c.wantString, "sha256-"); in.Weak() == strong {
				t.Errorf("Weak %v", in.Weak())
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
