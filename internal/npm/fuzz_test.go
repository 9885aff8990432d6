package npm

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The other parser: exact in case, strict in duplicates and Unicode, and it
// knows nothing of this package.
type otherManifest struct {
	Version string `json:"version"`
	Dist    struct {
		Tarball    string      `json:"tarball"`
		Shasum     string      `json:"shasum"`
		Integrity  string      `json:"integrity"`
		Signatures []Signature `json:"signatures"`
	} `json:"dist"`
}

// What is accepted, in any of the ways in which documents are read here, reads
// the same to another parser.
func FuzzDocuments(f *testing.F) {
	f.Add([]byte(`{"_id":"n","name":"n","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"n","version":"1.0.0","scripts":{"install":"x"},` + dist("1.0.0") + `}},"time":{"modified":"2020-01-01T00:00:00Z"}}`))
	f.Add([]byte(`{"name":"n","verſions":{},"versions":{"1.0.0":{"version":"1.0.0","dist":{"integrity":"a","INTEGRITY":"b","tarball":"http://a/b.tgz","cid":"x","signatures":[{"keyid":"k","sig":"s"}]}}}}`))
	f.Add([]byte(`{"name":"n","dist-tags":{"a\ud800":"1"},"versions":{"1.0.0":{"version":"1.0.0","dist":{"tarball":"http:\/\/a/b.tgz"}}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParsePackument(raw)
		if err != nil {
			return
		}
		var fields map[string]any
		if err := jsonv2.Unmarshal(raw, &fields); err != nil {
			if utf8.Valid(raw) && !bytes.Contains(raw, []byte(`\u`)) {
				t.Fatalf("%q passes, and another parser says %v", raw, err)
			}
			return // broken Unicode where it is not read
		}
		if id, ok := fields["name"].(string); ok && id != string(p.Name) && id != "" {
			t.Fatalf("%q: name %q, and %q to another", raw, p.Name, id)
		}
		for name := range fields {
			for _, read := range []string{"name", "_id", "_rev", "dist-tags", "time", "versions", "modified"} {
				if name != read && strings.EqualFold(name, read) {
					t.Fatalf("%q passes with %q", raw, name)
				}
			}
		}
		versions, _ := fields["versions"].(map[string]any)
		if len(versions) != len(p.Versions)+len(p.Bad) {
			t.Fatalf("%q: %d versions, %d read, %d bad", raw, len(versions), len(p.Versions), len(p.Bad))
		}
		same := func(p *Packument, raw []byte, tarball func(string) string) {
			for v, m := range p.Versions {
				again, err := jsonv2.Marshal(versions[v])
				if err != nil {
					t.Fatal(err)
				}
				var other otherManifest
				if err := jsonv2.Unmarshal(again, &other); err != nil {
					continue // something else in a place where this package has patience
				}
				if other.Version != m.Version || tarball(other.Dist.Tarball) != m.Dist.Tarball || other.Dist.Shasum != m.Dist.Shasum ||
					other.Dist.Integrity != m.Dist.Integrity || !slices.Equal(other.Dist.Signatures, m.Dist.Signatures) {
					t.Fatalf("%q: %+v, and %+v to another", raw, m, other)
				}
			}
		}
		as := func(u string) string { return u }
		same(p, raw, as)

		short, err := Abbreviate(raw, AbbreviateOptions{Time: true, CID: func(string) string { return "c" }})
		if err != nil {
			t.Fatalf("%q does not abbreviate: %v", raw, err)
		}
		if q, err := ParsePackument(short); err == nil {
			same(q, short, as)
			for v := range p.Versions {
				if q.Versions[v] == nil {
					t.Fatalf("%q abbreviated to %q loses %s: %v", raw, short, v, q.Bad[v])
				}
			}
		} else if _, named := fields["name"].(string); named {
			t.Fatalf("%q abbreviates to %q: %v", raw, short, err)
		}
		const moved = "http://127.0.0.1:1/x.tgz?"
		to := func(u string) string { return moved + u }
		// The short form is as good as the whole to make another short form of.
		c, err := Check(raw)
		if err != nil {
			t.Fatal(err)
		}
		other := AbbreviateOptions{Time: true, Tarball: func(_, u string) string { return to(u) }}
		if once, twice := c.Abbreviate(other).Bytes(), (Checked{short}).Abbreviate(other).Bytes(); !bytes.Equal(once, twice) {
			t.Fatalf("%q abbreviates to %q, and by way of %q to %q", raw, once, short, twice)
		}
		rewritten, err := RewriteTarballs(raw, func(_, u string) string { return to(u) })
		if err != nil {
			t.Fatalf("%q does not rewrite: %v", raw, err)
		}
		if bytes.Count(rewritten, []byte(moved)) < len(p.Versions) {
			t.Fatalf("%q rewrites to %q", raw, rewritten)
		}
		back, err := RewriteTarballs(rewritten, func(_, u string) string { return strings.TrimPrefix(u, moved) })
		if err != nil {
			t.Fatalf("%q does not rewrite: %v", rewritten, err)
		}
		if q, err := ParsePackument(back); err != nil || len(q.Versions) != len(p.Versions) {
			t.Fatalf("%q, rewritten and back, is %q: %v", raw, back, err)
		} else {
			same(q, back, as)
		}
	})
}

// The walker, which sees no mistakes, finds in what was checked the values that
// the decoder finds, where it finds them.
func FuzzWalker(f *testing.F) {
	f.Add([]byte(` {"a" : [1, -2.5e+3,"x\\\"y" ,{}, [ ],null,true , false], "b\\\\":{"c}":"]","d":0} ,"e":{ } } `))
	f.Add([]byte(`{"versions":{"1.0.0":{"dist":{"tarball":"http://a/b.tgz"}}},"time":{"1.0.0":"t"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := Check(raw)
		if err != nil {
			return
		}
		w := &walker{raw: c.Bytes()}
		dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowInvalidUTF8(true))
		var value func()
		value = func() {
			kind, end := byte(dec.PeekKind()), byte(0)
			if got := w.kind(); got != kind && (kind != '0' || got != '-' && (got < '0' || got > '9')) {
				t.Fatalf("%q: %q begins a value at %d, not %q", raw, got, w.at, kind)
			}
			switch kind {
			case '{':
				end = '}'
			case '[':
				end = ']'
			default:
				v, err := dec.ReadValue()
				if err != nil {
					t.Fatal(err)
				}
				if at := w.value(); at.end != int(dec.InputOffset()) || !bytes.Equal(at.of(raw), v) {
					t.Fatalf("%q: %q at %v, and %q to the decoder", raw, at.of(raw), at, v)
				}
				return
			}
			bracket := func() {
				if _, err := dec.ReadToken(); err != nil {
					t.Fatal(err)
				}
				if at := w.step(); at != int(dec.InputOffset())-1 {
					t.Fatalf("%q: a bracket at %d, and %d to the decoder", raw, at, dec.InputOffset()-1)
				}
			}
			whole := *w
			all := whole.value()
			bracket()
			for byte(dec.PeekKind()) != end {
				value()
			}
			bracket()
			if all.end != w.at {
				t.Fatalf("%q: passed over to %d, not to %d", raw, all.end, w.at)
			}
		}
		value()
	})
}

// What passes can be checked, by nothing but digests of their right length.
func FuzzParseIntegrity(f *testing.F) {
	f.Add("sha512-"+base64.StdEncoding.EncodeToString(make([]byte, 64)), "", "tarball")
	f.Add("md5-AAAA sha1-AAAA?x", strings.Repeat("0", 40), "")
	f.Fuzz(func(t *testing.T, integrity, shasum, body string) {
		d := Dist{Integrity: integrity, Shasum: shasum}
		in, err := ParseIntegrity(d)
		if err != nil {
			if !errors.Is(err, ErrNoIntegrity) || in.String() != "" || !in.Weak() {
				t.Fatalf("%+v: %v", in, err)
			}
			return
		}
		again, err := ParseIntegrity(Dist{Integrity: in.String()})
		if err != nil || again.String() != in.String() || again.Weak() != in.Weak() {
			t.Fatalf("%q is %q, and that %q, %v", integrity, in, again, err)
		}
		v := in.NewVerifier()
		v.Write([]byte(body))
		err = v.Check()
		if err != nil && !errors.Is(err, ErrIntegrity) {
			t.Fatal(err)
		}
		if err == nil && shasum != "" && !strings.EqualFold(v.Shasum(), shasum) {
			t.Fatalf("%q passes, and its shasum is not %q", body, shasum)
		}
		if err == nil && strings.HasPrefix(in.String(), "sha512-") && !strings.Contains(integrity, v.SRI()) {
			t.Fatalf("%q passes, and is not in %q", body, integrity)
		}
		if sum, err := hex.DecodeString(v.Shasum()); err != nil || len(sum) != 20 {
			t.Fatal(err)
		}
		// Its own digests always pass.
		if own, err := ParseIntegrity(Dist{Integrity: v.SRI(), Shasum: v.Shasum()}); err != nil || own.Weak() {
			t.Fatal(err)
		} else {
			w := own.NewVerifier()
			w.Write([]byte(body))
			if err := w.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Whatever a configuration file says, the registries are plain URLs, and its
// secrets show nowhere but in headers for their own place.
func FuzzLoadConfig(f *testing.F) {
	f.Add("registry=https://r.example.test/npm/\n@s:registry = http://s.example.test:4873\n//r.example.test/npm/:_authToken=${TOKEN}\n")
	f.Add("; comment\n[section]\n//h/:_password=c2VjcmV0\n//h/:username=u\nregistry='https://h' # x\n")
	f.Add("registry=https://u:p@h/\n")
	f.Fuzz(func(t *testing.T, text string) {
		home := t.TempDir()
		if err := os.WriteFile(filepath.Join(home, ".npmrc"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		const secret = "s3cr3t-from-the-environment"
		c, err := LoadConfig(func(key string) string {
			if key == "TOKEN" {
				return secret
			}
			return ""
		}, "", home)
		if err != nil {
			if c.Registry != "" {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		for _, r := range slices.AppendSeq([]string{c.Registry}, maps.Values(c.Scopes)) {
			if again, err := ParseRegistry(r); err != nil || again != r {
				t.Fatalf("%q gives the registry %q, and that %q, %v", text, r, again, err)
			}
		}
		if c.Registry == DefaultRegistry() && !strings.Contains(text, "registry") && len(c.Scopes) > 0 {
			t.Fatalf("%q gives scopes", text)
		}
		if !strings.Contains(c.Registry, secret) && strings.Contains(fmt.Sprintf("%v %+v %#v %s", c, c, c, c.LogValue()), secret) {
			t.Fatalf("%q shows its secret: %v", text, c)
		}
		if a := c.Authorization("https://nobody.example.invalid/x"); a != "" && !strings.Contains(text, "invalid") {
			t.Fatalf("%q gives %q away", text, a)
		}
	})
}
