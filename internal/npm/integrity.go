package npm

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"
)

// algorithms are the digests that are checked, strongest first.
var algorithms = []struct {
	name string
	size int
	new  func() hash.Hash
}{
	{"sha512", sha512.Size, sha512.New},
	{"sha384", sha512.Size384, sha512.New384},
	{"sha256", sha256.Size, sha256.New},
	{"sha1", sha1.Size, sha1.New},
}

// maxDigests bounds how many digests one integrity may list.
const maxDigests = 64

// Integrity is every digest that a packument gives for one tarball. The zero
// value gives none, and nothing passes it.
type Integrity struct {
	// digests are by algorithm, in the order of algorithms. Of one algorithm
	// any digest will do, as in Subresource Integrity; each algorithm must match.
	digests [4][][]byte
}

// ParseIntegrity reads dist.integrity (Subresource Integrity, a list; unknown
// algorithms, options and unreadable entries are passed over, as the
// specification says) and dist.shasum (hexadecimal SHA-1). It returns
// ErrNoIntegrity where there is nothing to check by, where the integrity is
// given but nothing in it is usable, and where the shasum is not one: clients
// read such documents differently.
func ParseIntegrity(d Dist) (Integrity, error) {
	var in Integrity
	n := 0
	for _, entry := range strings.Fields(d.Integrity) {
		entry, _, _ = strings.Cut(entry, "?")
		algorithm, encoded, ok := strings.Cut(entry, "-")
		if !ok {
			continue
		}
		for i, a := range algorithms {
			if a.name != algorithm {
				continue
			}
			sum, err := base64.StdEncoding.Strict().DecodeString(encoded)
			if err == nil && len(sum) == a.size && n < maxDigests {
				in.digests[i] = append(in.digests[i], sum)
				n++
			}
		}
	}
	if strings.TrimSpace(d.Integrity) != "" && n == 0 {
		return Integrity{}, fmt.Errorf("integrity %.200q: %w", d.Integrity, ErrNoIntegrity)
	}
	if d.Shasum != "" {
		sum, err := hex.DecodeString(d.Shasum)
		if err != nil || len(sum) != sha1.Size {
			return Integrity{}, fmt.Errorf("shasum %.200q: %w", d.Shasum, ErrNoIntegrity)
		}
		if listed := in.digests[3]; len(listed) > 0 && !slices.ContainsFunc(listed, func(l []byte) bool { return bytes.Equal(l, sum) }) {
			return Integrity{}, fmt.Errorf("integrity %.200q contradicts shasum %s: %w", d.Integrity, d.Shasum, ErrNoIntegrity)
		}
		in.digests[3] = [][]byte{sum}
		n++
	}
	if n == 0 {
		return Integrity{}, ErrNoIntegrity
	}
	return in, nil
}

// String is the strongest digest in Subresource Integrity form,
// "sha512-<base64>"; where several of that algorithm are given, all of them.
func (in Integrity) String() string {
	for i, a := range algorithms {
		if len(in.digests[i]) == 0 {
			continue
		}
		var b strings.Builder
		for j, sum := range in.digests[i] {
			if j > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(a.name + "-" + base64.StdEncoding.EncodeToString(sum))
		}
		return b.String()
	}
	return ""
}

// Contradicts reports whether no bytes can match both: of an algorithm that both have, they
// share no digest. Where they have none in common it says false.
func (in Integrity) Contradicts(other Integrity) bool {
	for i, mine := range in.digests {
		shared := func(sum []byte) bool {
			return slices.ContainsFunc(other.digests[i], func(theirs []byte) bool { return bytes.Equal(sum, theirs) })
		}
		if len(mine) > 0 && len(other.digests[i]) > 0 && !slices.ContainsFunc(mine, shared) {
			return true
		}
	}
	return false
}

// Weak reports whether SHA-1 is all there is to check by, as for many versions
// from before 2017: whoever can make colliding files could pass one for the
// other. The zero value, which nothing passes, is weak too.
func (in Integrity) Weak() bool {
	for i, a := range algorithms {
		if a.name != "sha1" && len(in.digests[i]) > 0 {
			return false
		}
	}
	return true
}

// NewVerifier returns a Verifier of bytes that must match in.
func (in Integrity) NewVerifier() *Verifier {
	v := &Verifier{in: in}
	for i, a := range algorithms {
		// SHA-512 and SHA-1 are always wanted, for SRI and Shasum.
		if a.name == "sha512" || a.name == "sha1" || len(in.digests[i]) > 0 {
			v.hashes[i] = a.new()
		}
	}
	return v
}

// Verifier hashes what is written to it and tells whether it matches. It keeps
// no bytes. Methods must not run concurrently.
type Verifier struct {
	in     Integrity
	hashes [4]hash.Hash
}

// Write never fails.
func (v *Verifier) Write(p []byte) (int, error) {
	for _, h := range v.hashes {
		if h != nil {
			h.Write(p)
		}
	}
	return len(p), nil
}

// Check tells whether all that was written so far matches every algorithm that
// the packument gives. Otherwise the error wraps ErrIntegrity.
func (v *Verifier) Check() error {
	checked := false
	for i, a := range algorithms {
		want := v.in.digests[i]
		if len(want) == 0 {
			continue
		}
		got := v.hashes[i].Sum(nil)
		if !slices.ContainsFunc(want, func(w []byte) bool { return bytes.Equal(w, got) }) {
			return fmt.Errorf("%w: want %s-%s, have %s", ErrIntegrity, a.name,
				base64.StdEncoding.EncodeToString(want[0]), base64.StdEncoding.EncodeToString(got))
		}
		checked = true
	}
	if !checked {
		return ErrNoIntegrity
	}
	return nil
}

// SRI is the SHA-512 of what was written so far, "sha512-<base64>".
func (v *Verifier) SRI() string {
	return "sha512-" + base64.StdEncoding.EncodeToString(v.hashes[0].Sum(nil))
}

// Shasum is the SHA-1 of what was written so far, in hexadecimal.
func (v *Verifier) Shasum() string { return hex.EncodeToString(v.hashes[3].Sum(nil)) }
