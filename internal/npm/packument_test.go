package npm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// dist is a usable dist for package n at version v.
func dist(v string) string {
	return `"dist":{"tarball":"https://r.example.test/n/-/n-` + v + `.tgz","shasum":"aa"}`
}

func TestParsePackument(t *testing.T) {
	raw := `{"_id":"n","_rev":"3-x","name":"n","dist-tags":{"latest":"1.0.0","odd":7},
		"versions":{
		"1.0.0":{"name":"n","version":"1.0.0","deprecated":"old","dependencies":{"a":"^1","b":{"version":"2"}},
			"optionalDependencies":{"a":"^1"},"peerDependencies":{"p":"*","q":"*"},"peerDependenciesMeta":{"p":{"optional":true},"q":{"optional":"yes"}},
			"bundledDependencies":["a"],
			"dist":{"tarball":"https://r.example.test/n/-/n-1.0.0.tgz","shasum":"aa","integrity":"sha512-x","signatures":[{"keyid":"k","sig":"s"}],"extra":[{}]}},
		"2.0.0":{"version":"2.0.0","dependencies":[],"deprecated":false,"bundleDependencies":true,` + dist("2.0.0") + `},
		"3.0.0":{"version":"3.0.1",` + dist("3.0.0") + `},
		"3.0.1":{"name":"m","version":"3.0.1",` + dist("3.0.1") + `},
		"3.0.2":{"version":"3.0.2"},
		"3.0.3":{"version":"3.0.3","dist":{"tarball":7}},
		"3.0.4":{"version":"3.0.4","dist":{"tarball":"https://r.example.test/n-3.0.4.tgz","integrity":{}}},
		"3.0.5":"gone",
		"../x":{"version":"../x",` + dist("3.0.6") + `},
		"3.0.7":{"version":"3.0.7","dist":{"tarball":"file:///etc/passwd"}},
		"3.0.8":{"version":"3.0.8","dist":{"tarball":"https://r.example.test/n/-/n-1.0.0.tgz"}}
		},"time":{"modified":"2020-01-02T00:00:00.000Z","1.0.0":"2020-01-01T00:00:00.000Z","x":{}},"readme":"\ud83d cut"}`
	p, err := ParsePackument([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "n" || p.Rev != "3-x" || p.Modified != "2020-01-02T00:00:00.000Z" || p.Unpublished {
		t.Errorf("%+v", p)
	}
	if !maps.Equal(p.DistTags, map[string]string{"latest": "1.0.0"}) {
		t.Errorf("dist-tags %v", p.DistTags)
	}
	want := map[string]*Manifest{
		"1.0.0": {Name: "n", Version: "1.0.0", Deprecated: "old", Dependencies: map[string]string{"a": "^1"},
			OptionalDependencies: map[string]string{"a": "^1"}, PeerDependencies: map[string]string{"p": "*", "q": "*"},
			OptionalPeers: map[string]bool{"p": true}, Bundled: []string{"a"},
			Dist: Dist{Tarball: "https://r.example.test/n/-/n-1.0.0.tgz", Shasum: "aa", Integrity: "sha512-x", Signatures: []Signature{{"k", "s"}}}},
		"2.0.0": {Name: "n", Version: "2.0.0", Dist: Dist{Tarball: "https://r.example.test/n/-/n-2.0.0.tgz", Shasum: "aa"}},
	}
	if !reflect.DeepEqual(p.Versions, want) {
		got, _ := json.MarshalIndent(p.Versions, "", " ")
		t.Errorf("versions %s", got)
	}
	bad := slices.Sorted(maps.Keys(p.Bad))
	if !slices.Equal(bad, []string{"../x", "3.0.0", "3.0.1", "3.0.2", "3.0.3", "3.0.4", "3.0.5", "3.0.7", "3.0.8"}) {
		t.Errorf("bad %v", p.Bad)
	}
	for v, err := range p.Bad {
		if err == nil || err.Error() == "" {
			t.Errorf("%s is bad for no reason", v)
		}
	}
}

func TestParsePackumentStub(t *testing.T) {
	p, err := ParsePackument([]byte(`{"_id":"n","name":"n","time":{"unpublished":{"time":"2020-01-01T00:00:00.000Z"}}}`))
	if err != nil || !p.Unpublished || len(p.Versions) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// What two parsers could read differently, and what is no packument at all,
// is refused whole.
func TestParsePackumentRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"Empty":             ``,
		"Truncated":         `{"name":"n","versions":{`,
		"Array":             `[]`,
		"String":            `"n"`,
		"Trailing":          `{"name":"n"}{}`,
		"TrailingComma":     `{"name":"n",}`,
		"HTML":              `<html></html>`,
		"NoName":            `{"versions":{}}`,
		"BadName":           `{"name":"../n"}`,
		"NameNoString":      `{"name":{}}`,
		"NameEmptyBesideID": `{"_id":"n","name":""}`,
		"NameNullBesideID":  `{"_id":"n","name":null}`,
		"IDContradicts":     `{"_id":"m","name":"n"}`,
		"VersionsArray":     `{"name":"n","versions":[]}`,
		"TagsString":        `{"name":"n","dist-tags":"latest"}`,
		"TwoNames":          `{"name":"n","name":"m"}`,
		"TwoEscaped":        `{"name":"n","n\u0061me":"m"}`,
		"TwoVersions":       `{"name":"n","versions":{"1.0.0":{},"1.0.0":{}}}`,
		"TwoIntegrities":    `{"name":"n","versions":{"1.0.0":{"version":"1.0.0","dist":{"integrity":"a","integrity":"b"}}}}`,
		"TwoInUnreadPlaces": `{"name":"n","x":{"y":[{"a":1,"a":2}]}}`,
		"Comment":           `{"name":"n"/**/}`,
		"ControlCharacter":  "{\"name\":\"n\n\"}",
		"TooDeep":           `{"name":"n","x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := ParsePackument([]byte(raw)); !errors.Is(err, ErrPackument) {
				t.Errorf("%+v, %v; want ErrPackument", p, err)
			}
			for what, f := range map[string]func() ([]byte, error){
				"Curate":     func() ([]byte, error) { return Curate([]byte(raw), func(string) bool { return true }) },
				"Abbreviate": func() ([]byte, error) { return Abbreviate([]byte(raw), AbbreviateOptions{}) },
				"Rewrite":    func() ([]byte, error) { return RewriteTarballs([]byte(raw), func(_, u string) string { return u }) },
			} {
				_, err := f()
				if structural := !slices.Contains([]string{"NoName", "BadName", "NameNoString", "NameEmptyBesideID", "NameNullBesideID", "IDContradicts", "VersionsArray", "TagsString"}, name); structural && !errors.Is(err, ErrPackument) {
					t.Errorf("%s: %v; want ErrPackument", what, err)
				}
			}
		})
	}
}

// A document may not fill memory by being many small things.
func TestParsePackumentBounds(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	all := func(string) bool { return true }
	versions := []byte(`{"name":"n","versions":{` + many(maxVersions+1, `"%d":0`) + `}}`)
	if _, err := ParsePackument(versions); !errors.Is(err, ErrPackument) {
		t.Errorf("many versions: %v", err)
	}
	if _, err := Curate(versions, all); !errors.Is(err, ErrPackument) {
		t.Errorf("many versions to curate: %v", err)
	}
	if _, err := Curate([]byte(`{"name":"n","dist-tags":{`+many(maxVersions+1, `"%d":0`)+`}}`), all); !errors.Is(err, ErrPackument) {
		t.Errorf("many tags: %v", err)
	}
	// Names cost the decoder more memory than the document has, wherever they are.
	for name, raw := range map[string]string{
		"OneObject": `{"name":"n","x":{` + many(maxNames+1, `"%d":0`) + `}}`,
		"Long":      `{"name":"n","x":{` + many(maxNameBytes/500, `"%d`+strings.Repeat("x", 500)+`":0`) + `}}`,
		"Nested":    `{"name":"n","x":{` + many(maxNames/2, `"%d":0`) + `,"x":[{` + many(maxNames/2, `"%d":0`) + `}]}}`,
		"Escaped":   `{"name":"n","x":{` + many(maxNames+1, `"\\\"\u007b%d\\":0`) + `}}`,
	} {
		if p, err := ParsePackument([]byte(raw)); !errors.Is(err, ErrPackument) || !strings.Contains(err.Error(), "members") {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	for name, raw := range map[string]string{
		"Array":     `{"name":"n","x":[` + many(maxNames+1, `{"a%d":{"b":0}}`) + `]}`,
		"InStrings": `{"name":"n","x":[` + many(maxNames+1, `"{\\\":%d:{:"`) + `]}`,
		"OneText":   `{"name":"n","x":"` + strings.Repeat(`\"`, 2<<20) + `"}`,
	} {
		if _, err := ParsePackument([]byte(raw)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := Checked{[]byte(`{"a":"1"}`)}.scan()
	s.kept = maxTexts
	if _, err := s.texts(); !errors.Is(err, ErrPackument) {
		t.Errorf("many texts: %v", err)
	}
}

// What a parser that folds case, or one that is strict about Unicode, would
// read differently is refused: the document, or the one version that it is in.
func TestParsePackumentDifferential(t *testing.T) {
	const good = `"name":"n","version":"1.0.0",` + "\x00"
	for _, c := range []struct {
		name, raw string
		want      string // "document", "version" or "" for nothing refused
	}{
		{"Name", `{"name":"n","NAME":"m"}`, "document"},
		{"ID", `{"name":"n","_ID":"m"}`, "document"},
		{"Rev", `{"name":"n","_Rev":"m"}`, "document"},
		{"Versions", `{"name":"n","Versions":7}`, "document"},
		{"LongS", `{"name":"n","verſions":{}}`, "document"},
		{"LongSEscaped", `{"name":"n","ver\u017fions":{}}`, "document"},
		{"DistTags", `{"name":"n","diſt-tags":{}}`, "document"},
		{"Time", `{"name":"n","Time":{}}`, "document"},
		{"TimeModified", `{"name":"n","time":{"Modified":"x"}}`, "document"},
		{"TimeUnpublished", `{"name":"n","time":{"unpubliſhed":{}}}`, "document"},
		{"BrokenName", `{"name":"n\ud800"}`, "document"},
		{"BrokenTag", `{"name":"n","dist-tags":{"latest\udc00":"1.0.0"}}`, "document"},
		{"BrokenTagVersion", `{"name":"n","dist-tags":{"latest":"1.0.0\ud800"}}`, "document"},
		{"BrokenTagBytes", "{\"name\":\"n\",\"dist-tags\":{\"latest\xff\":\"1.0.0\"}}", "document"},
		{"BrokenTime", "{\"name\":\"n\",\"time\":{\"1.0.0\":\"\xc3\"}}", "document"},
		{"BrokenField", `{"name":"n","\ud800":1}`, "document"},
		{"ByteOrderMark", "\uFEFF" + `{"name":"n"}`, "document"},
		{"NaN", `{"name":"n","x":NaN}`, "document"},
		{"Infinity", `{"name":"n","x":-Infinity}`, "document"},
		{"Hexadecimal", `{"name":"n","x":0x10}`, "document"},
		{"LeadingZero", `{"name":"n","x":010}`, "document"},
		{"SingleQuotes", `{"name":'n'}`, "document"},
		{"NUL", "{\"name\":\"n\"}\x00", "document"},
		// In places that are not read everything that is JSON may be.
		{"HugeNumbers", `{"name":"n","x":[1e999999999,` + strings.Repeat("9", 10000) + `,-0.0e-9999]}`, ""},
		{"Deep", `{"name":"n","x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, ""},
		{"CutReadme", `{"name":"n","readme":"\ud83d","description":"` + "\xf0\x9f" + `"}`, ""},
		{"OldFields", `{"name":"n","README":"x","Keywords":[],"License":"x","Description":"x","users":{"Name":true}}`, ""},
		// In a version.
		{"M_Version", `{"name":"n","versions":{"1.0.0":{` + good + `,"Version":"2.0.0"}}}`, "version"},
		{"M_Name", `{"name":"n","versions":{"1.0.0":{` + good + `,"NAME":"m"}}}`, "version"},
		{"M_Dist", `{"name":"n","versions":{"1.0.0":{` + good + `,"diſt":{}}}}`, "version"},
		{"M_BeforeTheTrueOne", `{"name":"n","versions":{"1.0.0":{"DIST":{},` + good + `}}}`, "version"},
		{"M_Integrity", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"INTEGRITY":"EVIL"}}}}`, "version"},
		{"M_Tarball", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"Tarball":7}}}}`, "version"},
		{"M_Shasum", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"ſhasum":""}}}}`, "version"},
		{"M_Signatures", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"Signatures":[]}}}}`, "version"},
		{"M_KeyID", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"signatures":[{"Keyid":"x"}]}}}}`, "version"},
		{"M_KeyIDKelvin", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"signatures":[{"\u212aeyid":"x"}]}}}}`, "version"},
		{"M_ManySignatures", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"signatures":[{}` + strings.Repeat(",{}", maxSignatures) + `]}}}}`, "version"},
		{"M_BrokenIntegrity", `{"name":"n","versions":{"1.0.0":{` + strings.Replace(good, "\x00", "\x01", 1) + `"integrity":"\ud800"}}}}`, "version"},
		{"M_BrokenDependency", `{"name":"n","versions":{"1.0.0":{` + good + `,"dependencies":{"a\ud800":"1"}}}}`, "version"},
		{"M_BrokenRange", `{"name":"n","versions":{"1.0.0":{` + good + `,"dependencies":{"a":"\ud800"}}}}`, "version"},
		{"M_BrokenField", "{\"name\":\"n\",\"versions\":{\"1.0.0\":{" + good + ",\"\xff\":1}}}", "version"},
		{"M_OldFields", `{"name":"n","versions":{"1.0.0":{` + good + `,"Dependencies":{},"devdependencies":{},"License":"x","Keywords":[],"Scripts":{}}}}`, ""},
		{"M_CutMessages", `{"name":"n","versions":{"1.0.0":{` + good + `,"deprecated":"\ud83d","description":"\ud83d"}}}`, ""},
		{"M_ReplacementCharacter", `{"name":"n","versions":{"1.0.0":{` + good + `,"dependencies":{"a":"\ufffd"}}}}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := strings.Replace(c.raw, "\x00", dist("1.0.0"), 1)
			raw = strings.Replace(raw, "\x01", strings.TrimSuffix(dist("1.0.0"), "}")+",", 1)
			if _, beside, ok := strings.Cut(raw, `"versions":{"1.0.0":`); ok {
				// A good one beside it must stay.
				raw = strings.TrimSuffix(raw, beside) + strings.TrimSuffix(beside, "}}") + `,"2.0.0":{"version":"2.0.0",` + dist("2.0.0") + `}}}`
			}
			p, err := ParsePackument([]byte(raw))
			if c.want == "document" {
				if !errors.Is(err, ErrPackument) {
					t.Errorf("%+v, %v; want ErrPackument", p, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if bad := p.Bad["1.0.0"] != nil; bad != (c.want == "version") || len(p.Bad) > 1 {
				t.Errorf("bad: %v", p.Bad)
			}
			if strings.HasPrefix(c.name, "M_") && p.Versions["2.0.0"] == nil {
				t.Errorf("the other version is gone: %v", p.Bad)
			}
		})
	}
	// A version's own name that is broken hides no other.
	p, err := ParsePackument([]byte(`{"name":"n","versions":{"1.0.0\ud800":{"version":"1.0.0"},"2.0.0":{"version":"2.0.0",` + dist("2.0.0") + `}}}`))
	if err != nil || p.Versions["2.0.0"] == nil || len(p.Bad) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestTarballFile(t *testing.T) {
	for _, c := range []struct{ name, version, url, want string }{
		{"n", "1.0.0", "https://r.example.test/n/-/n-1.0.0.tgz", "n-1.0.0.tgz"},
		{"@s/n", "1.0.0", "https://r.example.test/@s/n/-/n-1.0.0.tgz", "n-1.0.0.tgz"},
		{"n", "1.0.0+b", "https://r.example.test/n/-/n-1.0.0%2Bb.tgz", "n-1.0.0+b.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/other.tar.gz?x=1#y", "other.tar.gz"},
		{"n", "1.0.0", "https://r.example.test/download/n/1.0.0/0123abcd", "n-1.0.0.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/%2e%2e%2fx.tgz", "x.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/..", "n-1.0.0.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/.tgz", "n-1.0.0.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/a%00b.tgz", "n-1.0.0.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/a%5c..%5cb.tgz", "n-1.0.0.tgz"},
		{"n", "1.0.0", "https://r.example.test/n/-/" + strings.Repeat("a", 300) + ".tgz", "n-1.0.0.tgz"},
		{"n", "1.0.0", "https://r.example.test", "n-1.0.0.tgz"},
		{"n", "1.0.0", "/n/-/n-1.0.0.tgz", ""},
		{"n", "1.0.0", "file:///n-1.0.0.tgz", ""},
		{"n", "1.0.0", "https:///n-1.0.0.tgz", ""},
		{"n", "1.0.0", "git://r.example.test/n-1.0.0.tgz", ""},
		{"n", "1.0.0", "https://r.example.test/%zz.tgz", ""},
		{Name(strings.Repeat("n", 250)).Base(), "1.0.0", "https://r.example.test/x", ""},
	} {
		got, err := TarballFile(Name(c.name), c.version, c.url)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("TarballFile(%s, %s, %s) = %q, %v; want %q", c.name, c.version, c.url, got, err, c.want)
		}
	}
}

// bigPackument is a document of about size bytes, shaped as npm's large ones.
func bigPackument(size int) []byte {
	var b strings.Builder
	b.WriteString(`{"_id":"big","_rev":"9-a","name":"big","dist-tags":{"latest":"1.0.0","next":"1.0.1"},"versions":{`)
	var times strings.Builder
	for i := 0; b.Len() < size; i++ {
		v := fmt.Sprintf("1.%d.%d", i/100, i%100)
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%s":{"name":"big","version":"%s","description":"A library of \"much\" use","scripts":{"test":"x && y","postinstall":"node x"},"dependencies":{"a":"^1.0.0","b":"~2.0.0","c":"*"},`+
			`"devDependencies":{%s"z":"1"},"dist":{"shasum":"0123456789012345678901234567890123456789","integrity":"sha512-%s==","tarball":"https://r.example.test/big/-/big-%s.tgz","fileCount":12,"unpackedSize":123456},`+
			`"_npmUser":{"name":"x","email":"x@example.test"},"maintainers":[{"name":"x"}],"engines":{"node":">=18"}}`,
			v, v, devDeps(i), strings.Repeat("A", 86), v)
		fmt.Fprintf(&times, `,"%s":"2020-01-01T00:00:00.%03dZ"`, v, i%1000)
	}
	b.WriteString(`},"time":{"modified":"2021-01-01T00:00:00.000Z"` + times.String() + `},"readme":"x"}`)
	return []byte(b.String())
}

func devDeps(i int) string {
	var b strings.Builder
	for j := range 25 {
		fmt.Fprintf(&b, `"dev-dependency-%d-%d":"^1.2.3",`, i%7, j)
	}
	return b.String()
}

func BenchmarkDocuments(b *testing.B) {
	raw := bigPackument(10 << 20)
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("Parse", func() error { _, err := ParsePackument(raw); return err })
	run("CurateNothing", func() error { _, err := Curate(raw, func(string) bool { return true }); return err })
	run("CurateHalf", func() error { _, err := Curate(raw, func(v string) bool { return len(v)%2 == 0 }); return err })
	run("Abbreviate", func() error {
		_, err := Abbreviate(raw, AbbreviateOptions{Time: true, CID: func(string) string { return "bafkreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }})
		return err
	})
	run("Rewrite", func() error {
		_, err := RewriteTarballs(raw, func(_, u string) string { return "http://127.0.0.1:4873" + u[len("https://r.example.test"):] })
		return err
	})
}

// However a document is made, reading it takes a bounded amount of memory.
func TestParsePackumentMemory(t *testing.T) {
	const size = 4 << 20
	for _, c := range []struct {
		name, before, each, after string
		most                      uint64 // bytes allocated in all
	}{
		{"EmptyObjects", `"x":[`, `{}`, `]`, 1 << 20},
		{"Nested", `"x":[`, `{"a":{"b":{"c":[{}]}}}`, `]`, 1 << 20},
		{"Names", `"x":{`, `"%x":0`, `}`, 1 << 20},
		{"TopNames", ``, `"%x":0`, ``, 1 << 20},
		{"ManifestNames", `"versions":{"1.0.0":{`, `"%x":0`, `}}`, 1 << 20},
		{"Signatures", `"versions":{"1.0.0":{"dist":{"signatures":[`, `{}`, `]}}}`, 1 << 20},
		{"Bundled", `"versions":{"1.0.0":{"bundledDependencies":[`, `""`, `]}}`, 256 << 20},
		{"Dependencies", `"versions":{`, `"1.0.%[1]d":{"version":"1.0.%[1]d","dependencies":{"a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":"","j":"","k":"","l":"","m":"","n":"","o":"","p":""},"dist":{"tarball":"http://a/%[1]d.tgz"}}`, `}`, 20 * size},
		{"LongTexts", `"versions":{`, `"1.0.%[1]d":{"version":"1.0.%[1]d","dist":{"tarball":"http://a/%[1]d.tgz","integrity":"` + strings.Repeat("x", 10_000) + `"}}`, `}`, 3 * size},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			b.Grow(size + 1<<20)
			b.WriteString(`{"name":"n",` + c.before)
			for i := 0; b.Len() < size; i++ {
				if i > 0 {
					b.WriteByte(',')
				}
				if strings.Contains(c.each, "%") {
					fmt.Fprintf(&b, c.each, i)
				} else {
					b.WriteString(c.each)
				}
			}
			b.WriteString(c.after + "}")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := ParsePackument(b.Bytes())
			runtime.ReadMemStats(&after)
			if err != nil && !errors.Is(err, ErrPackument) {
				t.Error(err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > c.most {
				t.Errorf("allocated %d MiB, of at most %d: %v", grown>>20, c.most>>20, err)
			} else {
				t.Logf("allocated %d KiB: %v", grown>>10, err)
			}
		})
	}
}
