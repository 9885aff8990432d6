package npm

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// publication is what npm 11 sends, its attachment taken out.
const publication = `{"_id":"@acme/thing","name":"@acme/thing","description":"a thing","dist-tags":{"latest":"1.2.3"},` +
	`"versions":{"1.2.3":{"name":"@acme/thing","version":"1.2.3","_id":"@acme/thing@1.2.3","scripts":{"test":"x"}, "readme":"# hello",` +
	`"dist":{"integrity":"sha512-aa","shasum":"bb","tarball":"http://elsewhere/@acme/thing/-/@acme/thing-1.2.3.tgz"}}},"access":null,` +
	`"_attachments":{"@acme/thing-1.2.3.tgz":{"content_type":"application/octet-stream","data":"","length":42}}}`

func TestParsePublication(t *testing.T) {
	p, err := ParsePublication([]byte(publication))
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "@acme/thing" || p.Version != "1.2.3" || !slices.Equal(p.Tags, []string{"latest"}) || p.Length != 42 ||
		p.Dist.Integrity != "sha512-aa" || p.Dist.Shasum != "bb" || p.readme != "# hello" || p.description != "a thing" {
		t.Errorf("read %+v", p)
	}
	if want := `{"name":"@acme/thing","version":"1.2.3","_id":"@acme/thing@1.2.3","scripts":{"test":"x"}}`; string(p.manifest) != want {
		t.Errorf("manifest %s, want %s", p.manifest, want)
	}
	for _, test := range []struct{ name, old, new string }{
		{"a tag", `{"latest":"1.2.3"}`, `{"beta":"1.2.3"}`},
		{"no tags", `"dist-tags":{"latest":"1.2.3"},`, ``},
		{"tags are null", `{"latest":"1.2.3"}`, `null`},
		{"an attachment without the scope", `{"@acme/thing-1.2.3.tgz"`, `{"thing-1.2.3.tgz"`},
		{"no length", `,"length":42`, ``},
		{"unknown fields", `"access":null`, `"access":"public","maintainers":[1]`},
	} {
		if _, err := ParsePublication(replaced(t, test.old, test.new)); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func replaced(t *testing.T, old, new string) []byte {
	t.Helper()
	if !strings.Contains(publication, old) {
		t.Fatalf("%s is not in the document", old)
	}
	return []byte(strings.ReplaceAll(publication, old, new))
}

func TestParsePublicationRefuses(t *testing.T) {
	for _, test := range []struct{ name, old, new string }{
		{"no JSON", `{"_id"`, `{_id`},
		{"bytes after it", `"length":42}}}`, `"length":42}}} {}`},
		{"a name twice", `"access":null`, `"access":null,"name":"@acme/thing"`},
		{"a manifest's name twice", `"scripts"`, `"version":"1.2.3","scripts"`},
		{"another spelling of versions", `"access":null`, `"verſions":{}`},
		{"another spelling of _attachments", `"access":null`, `"_Attachments":{}`},
		{"another spelling of the manifest's dist", `"scripts"`, `"Dist":{},"scripts"`},
		{"another spelling in dist", `"shasum":"bb"`, `"shasum":"bb","Integrity":"sha512-cc"`},
		{"another spelling of data", `"length":42`, `"Data":"x"`},
		{"broken UTF-8", `a thing`, "a \xff thing"},
		{"a lone surrogate in what is read", `"latest":`, `"la\ud800":`},
		{"two versions", `"versions":{`, `"versions":{"1.0.0":{},`},
		{"versions is a list", `"versions":{`, `"versions":[],"x":{`},
		{"two attachments", `"_attachments":{`, `"_attachments":{"x.sigstore":{"data":""},`},
		{"attachments is a list", `"_attachments":{"@acme/thing-1.2.3.tgz":`, `"_attachments":[{"data":""}],"x":{"y":`},
		{"an attachment without data", `"data":"",`, ``},
		{"data that was not taken out", `"data":""`, `"data":"YQ=="`},
		{"data that is no string", `"data":""`, `"data":null`},
		{"a length that is none", `"length":42`, `"length":-1`},
		{"an attachment of another name", `{"@acme/thing-1.2.3.tgz"`, `{"../../thing-1.2.3.tgz"`},
		{"the _id of another package", `"_id":"@acme/thing"`, `"_id":"@acme/other"`},
		{"the manifest of another package", `{"name":"@acme/thing","version"`, `{"name":"@acme/other","version"`},
		{"the manifest of another version", `"version":"1.2.3"`, `"version":"1.2.4"`},
		{"the manifest's _id of another version", `thing@1.2.3`, `thing@1.2.4`},
		{"a manifest without dist", `"dist":{`, `"tsid":{`},
		{"a dist that is a list", `"dist":{"integrity":"sha512-aa","shasum":"bb","tarball":"http://elsewhere/@acme/thing/-/@acme/thing-1.2.3.tgz"}`, `"dist":[]`},
		{"a digest that is a number", `"sha512-aa"`, `7`},
		{"a tag of another version", `{"latest":"1.2.3"}`, `{"latest":"1.2.3","next":"1.2.4"}`},
		{"a tag that is a range", `"latest":`, `"1.x":`},
		{"a tag that is a path", `"latest":`, `"a/b":`},
		{"a tag that is no text", `{"latest":"1.2.3"}`, `{"latest":3}`},
		{"loose semver", `1.2.3`, `1.2.3beta`},
		{"leading zeros", `1.2.3`, `1.02.3`},
		{"build metadata", `1.2.3`, `1.2.3+a`},
		{"a version with a v", `1.2.3`, `v1.2.3`},
		{"a prerelease with leading zeros", `1.2.3`, `1.2.3-01`},
		{"capital letters", `@acme/thing`, `@acme/Thing`},
		{"a name that is a path", `@acme/thing`, `@acme/../thing`},
		{"a name that begins with an underscore", `@acme/thing`, `@acme/_thing`},
		{"a reserved name", `@acme/thing`, `node_modules`},
		{"a long name", `@acme/thing`, `@acme/` + strings.Repeat("a", 209)},
	} {
		if _, err := ParsePublication(replaced(t, test.old, test.new)); !errors.Is(err, ErrPublication) {
			t.Errorf("%s: %v, want ErrPublication", test.name, err)
		}
	}
	for _, none := range []string{`"x":{"data":""}`, ``} {
		raw := strings.Replace(publication, `"@acme/thing-1.2.3.tgz":{"content_type":"application/octet-stream","data":"","length":42}`, none, 1)
		if _, err := ParsePublication([]byte(raw)); none == "" && !errors.Is(err, ErrNoAttachment) {
			t.Errorf("without an attachment: %v", err)
		}
	}
}

func TestParseStrictVersion(t *testing.T) {
	for _, v := range []string{"0.0.0", "1.2.3", "1.2.3-0", "1.2.3-alpha.1", "1.2.3--", "10.20.30-0a.x-y", "9007199254740991.0.0"} {
		if err := ParseStrictVersion(v); err != nil {
			t.Error(err)
		}
	}
	for _, v := range []string{"", "1", "1.2", "01.2.3", "1.2.3-", "1.2.3-a..b", "1.2.3-00", "1.2.3+b", "1.2.3-a+b", " 1.2.3", "1.2.3-é", "9007199254740992.0.0", "1.2.3.4", "=1.2.3"} {
		if err := ParseStrictVersion(v); !errors.Is(err, ErrVersion) {
			t.Errorf("%q: %v, want ErrVersion", v, err)
		}
	}
}

// add publishes a version of @acme/thing into h.
func add(t *testing.T, h *Hosted, version, tag string, at time.Time) {
	t.Helper()
	raw := strings.ReplaceAll(strings.ReplaceAll(publication, "1.2.3", version), "latest", tag)
	p, err := ParsePublication([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	h.Add(p, Dist{Integrity: "sha512-own", Shasum: "own", Tarball: "https://registry.invalid/@acme/thing/-/thing-" + version + ".tgz", UnpackedSize: 7}, at)
}

func TestHosted(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	h := NewHosted("@acme/thing")
	add(t, h, "1.0.0", "beta", at)
	add(t, h, "1.1.0", "next", at.Add(-time.Hour)) // the clock went back
	h.SetTag("old", "1.0.0", at)
	h.SetTag("gone", "1.0.0", at)
	h.RemoveTag("gone", at)
	if !h.Deprecate(map[string]string{"1.0.0": `use "1.1"`, "7.0.0": "x"}, at) || h.Deprecate(map[string]string{"1.0.0": `use "1.1"`}, at) {
		t.Error("a message counts once")
	}
	raw := h.Bytes()
	again, err := ParseHosted(raw)
	if err != nil {
		t.Fatal(err)
	}
	if string(again.Bytes()) != string(raw) {
		t.Errorf("read back\n%s, wrote\n%s", again.Bytes(), raw)
	}
	p, err := ParsePackument(raw)
	if err != nil || len(p.Bad) > 0 {
		t.Fatalf("%v, bad: %v\n%s", err, p.Bad, raw)
	}
	if want := map[string]string{"latest": "1.0.0", "beta": "1.0.0", "next": "1.1.0", "old": "1.0.0"}; !maps.Equal(p.DistTags, want) {
		t.Errorf("dist-tags %v, want %v", p.DistTags, want)
	}
	if p.Modified != "2026-11-26T12:00:00.000Z" || p.Time["1.1.0"] != p.Modified || p.Time["created"] != p.Modified {
		t.Errorf("times %v", p.Time)
	}
	if d := p.Versions["1.1.0"].Dist; d.Integrity != "sha512-own" || d.Shasum != "own" || d.UnpackedSize != 7 {
		t.Errorf("dist %+v", d)
	}
	if p.Versions["1.0.0"].Deprecated != `use "1.1"` || p.Versions["1.1.0"].Deprecated != "" {
		t.Errorf("deprecated: %q and %q", p.Versions["1.0.0"].Deprecated, p.Versions["1.1.0"].Deprecated)
	}
	if !again.Deprecate(map[string]string{"1.0.0": ""}, at) {
		t.Error("a message cannot be taken back")
	}
	add(t, again, "2.0.0", "latest", at)
	var readme struct{ Readme, Description string }
	if err := json.Unmarshal(again.Bytes(), &readme); err != nil || readme.Readme != "# hello" || readme.Description != "a thing" {
		t.Errorf("readme %+v, %v", readme, err)
	}
	if got := again.Tags["latest"]; got != "2.0.0" {
		t.Errorf("latest %s", got)
	}
}

func TestParseHostedRefuses(t *testing.T) {
	for _, raw := range []string{``, `[]`, `{"name":"x","_rev":"1"}`, `{"versions":[]}`, `{"name":"x","name":"y"}`} {
		if _, err := ParseHosted([]byte(raw)); !errors.Is(err, ErrPackument) {
			t.Errorf("%s: %v, want ErrPackument", raw, err)
		}
	}
}

func TestParsePackageJSON(t *testing.T) {
	for raw, want := range map[string]string{
		`{"name":"a","version":"1.0.0"}`:               "a 1.0.0 <nil>",
		"\uFEFF{\"name\":\"a\",\"version\":\"1.0.0\"}": "a 1.0.0 <nil>",
		`{"version":7}`: "  <nil>",
	} {
		name, version, err := ParsePackageJSON([]byte(raw))
		if got := fmt.Sprint(name, " ", version, " ", err); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
	for _, raw := range []string{``, `{"name":"a","name":"b"}`, `{"name":"a","Name":"b"}`, `{"name":"a\ud800"}`, `"x"`} {
		if _, _, err := ParsePackageJSON([]byte(raw)); !errors.Is(err, ErrPackument) {
			t.Errorf("%s: %v, want ErrPackument", raw, err)
		}
	}
}

func TestParseText(t *testing.T) {
	for raw, want := range map[string]string{`"1.0.0"`: "1.0.0", ` "a\u0062" `: "ab"} {
		if got, err := ParseText([]byte(raw)); err != nil || got != want {
			t.Errorf("%s: %q, %v", raw, got, err)
		}
	}
	for _, raw := range []string{``, `1`, `"a`, `"a" "b"`, `{"a":1}`, `"\ud800"`} {
		if _, err := ParseText([]byte(raw)); !errors.Is(err, ErrPackument) {
			t.Errorf("%s: %v, want ErrPackument", raw, err)
		}
	}
}

// Whatever passes reads the same to another parser, and what is made of it is a
// packument that every reader here takes with that version in it.
func FuzzPublication(f *testing.F) {
	f.Add([]byte(publication))
	f.Add([]byte(strings.Replace(publication, `"scripts"`, `"deprecated":"x","engines":{"a":"\u00e9"},"Scripts":[1e400],"scripts"`, 1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParsePublication(raw)
		if err != nil {
			return
		}
		var other struct {
			Name     string            `json:"name"`
			Tags     map[string]string `json:"dist-tags"`
			Versions map[string]struct{ Name, Version string }
			Attached map[string]struct{ Data string } `json:"_attachments"`
		}
		if err := json.Unmarshal(raw, &other); err != nil {
			var kind *json.UnmarshalTypeError
			if errors.As(err, &kind) {
				return
			}
			t.Fatalf("%q passes, and another parser says %v", raw, err)
		}
		if other.Name != string(p.Name) || len(other.Versions) != 1 || other.Versions[p.Version].Version != p.Version || len(other.Attached) != 1 {
			t.Fatalf("%q is %s@%s, and to another parser %+v", raw, p.Name, p.Version, other)
		}
		h := NewHosted(p.Name)
		h.Add(p, Dist{Integrity: "sha512-a", Shasum: "b", Tarball: "https://registry.invalid/x/-/x-" + p.Version + ".tgz"}, time.Unix(0, 0))
		doc := h.Bytes()
		packument, err := ParsePackument(doc)
		if err != nil {
			t.Fatalf("%q makes %q: %v", raw, doc, err)
		}
		if m := packument.Versions[p.Version]; len(packument.Bad) == 0 && (m == nil || m.Dist.Integrity != "sha512-a") {
			t.Fatalf("%q makes %q", raw, doc)
		}
		again, err := ParseHosted(doc)
		if err != nil || string(again.Bytes()) != string(doc) {
			t.Fatalf("%q makes %q, read back as %q: %v", raw, doc, again.Bytes(), err)
		}
	})
}
