package npm

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func heldOf(versions ...string) func(string) bool {
	return func(v string) bool { return slices.Contains(versions, v) }
}

func TestCurate(t *testing.T) {
	const raw = "{\n  \"_id\": \"n\", \"dist-tags\": { \"old\":\"1.0.0\" ,\"latest\" :\"2.0.0\", \"beta\":\"3.0.0-b\" },\n" +
		`  "versions": { "1.0.0": {"x": [1, 2]} , "1.5.0":{} ,"2.0.0":{"y":"}{"},  "3.0.0-b":null, "3.1.0" : {} },` +
		"\n  \"time\":{\"1.0.0\":\"t\" , \"2.0.0\":\"u\"}, \"readme\":\"\\u00e9 \\ud83d\"\n}\n"
	for _, c := range []struct {
		name string
		held []string
		want [][2]string // replaced in raw, one after the other
	}{
		{"All", []string{"1.0.0", "1.5.0", "2.0.0", "3.0.0-b", "3.1.0"}, nil},
		{"LastGone", []string{"1.0.0", "1.5.0", "2.0.0", "3.0.0-b"}, [][2]string{{`,  "3.0.0-b":null, "3.1.0" : {} }`, `,  "3.0.0-b":null }`}}},
		{"FirstGone", []string{"1.5.0", "2.0.0", "3.0.0-b", "3.1.0"}, [][2]string{
			{`{ "1.0.0": {"x": [1, 2]} , "1.5.0"`, `{ "1.5.0"`}, {`{ "old":"1.0.0" ,"latest"`, `{ "latest"`}}},
		{"LatestGone", []string{"1.0.0", "1.5.0", "3.1.0"}, [][2]string{
			{` ,"2.0.0":{"y":"}{"},  "3.0.0-b":null, "3.1.0"`, `, "3.1.0"`}, {`"2.0.0", "beta":"3.0.0-b" }`, `"1.5.0" }`}}},
		{"NothingBelow", []string{"3.1.0", "3.0.0-b"}, [][2]string{
			{`{ "1.0.0": {"x": [1, 2]} , "1.5.0":{} ,"2.0.0":{"y":"}{"},  "3.0.0-b"`, `{ "3.0.0-b"`},
			{`{ "old":"1.0.0" ,"latest" :"2.0.0"`, `{ "latest" :"3.1.0"`}}},
		{"OnlyPrerelease", []string{"3.0.0-b"}, [][2]string{
			{`{ "1.0.0": {"x": [1, 2]} , "1.5.0":{} ,"2.0.0":{"y":"}{"},  "3.0.0-b":null, "3.1.0" : {} }`, `{ "3.0.0-b":null }`},
			{`{ "old":"1.0.0" ,"latest" :"2.0.0"`, `{ "latest" :"3.0.0-b"`}}},
		{"None", nil, [][2]string{
			{`{ "1.0.0": {"x": [1, 2]} , "1.5.0":{} ,"2.0.0":{"y":"}{"},  "3.0.0-b":null, "3.1.0" : {} }`, `{}`},
			{`{ "old":"1.0.0" ,"latest" :"2.0.0", "beta":"3.0.0-b" }`, `{}`}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := raw
			for _, r := range c.want {
				if strings.Count(want, r[0]) != 1 {
					t.Fatalf("the test is wrong: %q", r[0])
				}
				want = strings.Replace(want, r[0], r[1], 1)
			}
			got, err := Curate([]byte(raw), heldOf(c.held...))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			again, err := Curate(got, heldOf(c.held...))
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("curated again: %s, %v", again, err)
			}
		})
	}
}

func TestCurateOddForms(t *testing.T) {
	for _, c := range []struct{ name, raw, want string }{
		{"VersionsFirst", `{"versions":{"1.0.0":{},"2.0.0":{}},"x":1,"dist-tags":{"latest":"2.0.0"}}`, `{"versions":{"1.0.0":{}},"x":1,"dist-tags":{"latest":"1.0.0"}}`},
		{"NoTags", `{"versions":{"1.0.0":{},"2.0.0":{}}}`, `{"versions":{"1.0.0":{}}}`},
		{"NullTags", `{"dist-tags":null,"versions":{"1.0.0":{},"2.0.0":{}}}`, `{"dist-tags":null,"versions":{"1.0.0":{}}}`},
		{"NoLatest", `{"dist-tags":{"a":"1.0.0"},"versions":{"1.0.0":{},"2.0.0":{}}}`, `{"dist-tags":{"a":"1.0.0"},"versions":{"1.0.0":{}}}`},
		{"TagNoString", `{"dist-tags":{"a":["1.0.0"],"latest":{}},"versions":{"1.0.0":{}}}`, `{"dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{}}}`},
		{"LatestNoVersion", `{"dist-tags":{"latest":"x"},"versions":{"1.0.0":{}}}`, `{"dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{}}}`},
		{"TagOfUnlistedVersion", `{"dist-tags":{"a":"1.0.1"},"versions":{"1.0.0":{}}}`, `{"dist-tags":{},"versions":{"1.0.0":{}}}`},
		{"EscapedNames", `{"dist\u002dtags":{"l\u0061test":"2.0\u002e0"},"\u0076ersions":{"1\u002e0.0":{},"2.0.0":{}}}`, `{"dist\u002dtags":{"l\u0061test":"1.0.0"},"\u0076ersions":{"1\u002e0.0":{}}}`},
		{"Stub", `{"name":"n","time":{"unpublished":{}}}`, `{"name":"n","time":{"unpublished":{}}}`},
		{"NoVersionsButTags", `{"dist-tags":{"latest":"1.0.0"},"versions":{}}`, `{"dist-tags":{},"versions":{}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			// 1.0.1 is held, so a caller says, but the document does not have it.
			got, err := Curate([]byte(c.raw), heldOf("1.0.0", "1.0.1"))
			if err != nil || string(got) != c.want {
				t.Errorf("got %s, %v\nwant %s", got, err, c.want)
			}
		})
	}
	raw := bigPackument(1 << 20)
	got, err := Curate(raw, func(string) bool { return true })
	if err != nil || &got[0] != &raw[0] || len(got) != len(raw) {
		t.Errorf("a document in which nothing changes was copied: %v", err)
	}
}

// curateByParsing is Curate written plainly over encoding/json. It returns the
// top-level fields that Curate does not touch, the versions and the tags.
func curateByParsing(raw []byte, held func(string) bool) (rest, versions map[string]json.RawMessage, tags map[string]string, err error) {
	if err := json.Unmarshal(raw, &rest); err != nil {
		return nil, nil, nil, err
	}
	versions = map[string]json.RawMessage{}
	if err := json.Unmarshal(orNull(rest["versions"]), &versions); err != nil {
		return nil, nil, nil, err
	}
	maps.DeleteFunc(versions, func(v string, _ json.RawMessage) bool { return !held(v) })
	all := map[string]any{}
	if err := json.Unmarshal(orNull(rest["dist-tags"]), &all); err != nil {
		return nil, nil, nil, err
	}
	tags = map[string]string{}
	for tag, v := range all {
		s, _ := v.(string)
		_, ok := versions[s]
		if _, isString := v.(string); ok && isString {
			tags[tag] = s
			continue
		}
		if tag != "latest" || len(versions) == 0 {
			continue
		}
		sorted := slices.SortedFunc(maps.Keys(versions), CompareVersions)
		releases := slices.DeleteFunc(slices.Clone(sorted), func(v string) bool { return ParseVersion(v) != nil || IsPrerelease(v) })
		below := slices.DeleteFunc(slices.Clone(releases), func(v string) bool { return ParseVersion(s) != nil || CompareVersions(v, s) >= 0 })
		for _, list := range [][]string{sorted, releases, below} {
			if len(list) > 0 {
				tags[tag] = list[len(list)-1]
			}
		}
	}
	delete(rest, "versions")
	delete(rest, "dist-tags")
	return rest, versions, tags, nil
}

func orNull(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return json.RawMessage("null")
	}
	return raw
}

func FuzzCurate(f *testing.F) {
	for _, s := range []string{
		`{"name":"n","dist-tags":{"latest":"2.0.0","b":"1.0.0"},"versions":{"1.0.0":{"dist":{"tarball":"x"}},"2.0.0":{},"3.0.0-a":{}},"time":{}}`,
		`{"versions": {"1.0.0" :{} , "":1,"x":[] } , "dist-tags" :{"latest":"1.1.0", "y":7}}`,
		`{"dist-tags":null,"versions":null}`, `{}`, `{"v\u0065rsions":{"1.0.0":{}}}`,
	} {
		f.Add([]byte(s), uint64(0b1011))
	}
	f.Fuzz(func(t *testing.T, raw []byte, mask uint64) {
		held := func(v string) bool {
			h := uint64(14695981039346656037)
			for i := range len(v) {
				h = (h ^ uint64(v[i])) * 1099511628211
			}
			return mask>>(h%64)&1 == 1
		}
		got, err := Curate(raw, held)
		if err != nil {
			if !errors.Is(err, ErrPackument) {
				t.Fatalf("%v is no ErrPackument", err)
			}
			return
		}
		if !utf8.Valid(raw) {
			return // encoding/json replaces broken bytes in a way of its own
		}
		rest, versions, tags, err := curateByParsing(raw, held)
		if err != nil {
			t.Fatalf("%q passes, and encoding/json says %v", raw, err)
		}
		// What is held in the result: what is left must be all of it.
		all := func(string) bool { return true }
		gotRest, gotVersions, gotTags, err := curateByParsing(got, all)
		if err != nil {
			t.Fatalf("%q gives %q, which is no packument: %v", raw, got, err)
		}
		same := func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }
		if !maps.EqualFunc(gotRest, rest, same) || !maps.EqualFunc(gotVersions, versions, same) || !maps.Equal(gotTags, tags) {
			t.Fatalf("%q gives %q\nwant rest %s, versions %s, tags %v", raw, got, rest, versions, tags)
		}
		again, err := Curate(got, held)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q gives %q, then %q, %v", raw, got, again, err)
		}
		// The others must take what this one took.
		if _, err := Abbreviate(got, AbbreviateOptions{Time: true}); err != nil {
			t.Fatalf("%q curates to %q, which does not abbreviate: %v", raw, got, err)
		}
		same2, err := RewriteTarballs(got, func(_, u string) string { return u })
		if err != nil || !bytes.Equal(same2, got) {
			t.Fatalf("rewriting nothing in %q gives %q, %v", got, same2, err)
		}
	})
}

func FuzzParsePackument(f *testing.F) {
	f.Add([]byte(`{"_id":"n","name":"n","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"n","version":"1.0.0","dependencies":{"a":"1"},` + dist("1.0.0") + `}},"time":{"modified":"x"}}`))
	f.Add([]byte(`{"name":"n","versions":{"1.0.0":{"version":"1.0.0","bundleDependencies":true,"peerDependenciesMeta":{"a":{"optional":true}},"dist":{"signatures":[{}],"tarball":""}}}}`))
	f.Add([]byte(`{"name":"@s/n","time":{"unpublished":{}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParsePackument(raw)
		if err != nil {
			if !errors.Is(err, ErrPackument) {
				t.Fatalf("%v is no ErrPackument", err)
			}
			return
		}
		if _, err := ParseName(string(p.Name)); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		for v, m := range p.Versions {
			if p.Bad[v] != nil || m.Version != v || m.Name != p.Name || ParseVersion(v) != nil {
				t.Fatalf("version %q: %+v, bad: %v", v, m, p.Bad[v])
			}
			file, err := TarballFile(p.Name, v, m.Dist.Tarball)
			if err != nil || files[file] != "" || strings.ContainsAny(file, "/\\\x00") || strings.HasPrefix(file, ".") {
				t.Fatalf("version %q: file %q (also of %q), %v", v, file, files[file], err)
			}
			files[file] = v
		}
		// What passes is JSON to others too, and they see the same versions.
		var doc struct{ Versions map[string]json.RawMessage }
		if utf8.Valid(raw) {
			var top map[string]json.RawMessage
			if err := json.Unmarshal(raw, &top); err != nil {
				t.Fatalf("%q passes, and encoding/json says %v", raw, err)
			}
			if err := json.Unmarshal(orNull(top["versions"]), &doc.Versions); err != nil {
				t.Fatalf("versions of %q: %v", raw, err)
			}
			if len(doc.Versions) != len(p.Versions)+len(p.Bad) {
				t.Fatalf("%q: %d versions, %d read, %d bad", raw, len(doc.Versions), len(p.Versions), len(p.Bad))
			}
		}
		for _, rng := range []string{"", "*", "^1", "latest"} {
			if v, ok := Pick(p, rng); ok && p.Versions[v] == nil {
				t.Fatalf("picked %q, which is not there", v)
			}
		}
	})
}

func TestAbbreviate(t *testing.T) {
	const raw = `{"_id":"n","_rev":"1-x","name":"n","dist-tags": {"latest":"2.0.0"},"readme":"long","versions":{
		"1.0.0":{"name":"n","version":"1.0.0","description":"d","scripts":{"postinstall":"node x","test":"y"},"dependencies": {"a" : "^1"},"devDependencies":{"b":"1"},
			"bin":{"n":"cli.js"},"engines":["node"],"_npmUser":{},"funding":"x","dist":{"shasum":"s","cid":"upstream's","tarball":"https:\/\/r.example.test\/n-1.0.0.tgz","signatures":[{"keyid":"k"}]}},
		"2.0.0":{"version":"2.0.0","scripts":{"install":"","test":"z"},"hasInstallScript":false,"_hasShrinkwrap":false,"deprecated":"no","os":["linux"],"libc":["glibc"],"dist":{}},
		"2.1.0":{"scripts":{"preinstall":"x"},"hasInstallScript":false},"2.2.0":{"scripts":"x","dist":7},"2.3.0":{"name":"\ud83d"}},
		"time":{"created":"2019-01-01T00:00:00.000Z","1.0.0":"2019-01-02T00:00:00.000Z","2.0.0":"2020-01-02T00:00:00.000Z","x":{},"y":"never","modified":"2019-06-01T00:00:00.000Z"}}`
	const want = `{"name":"n","dist-tags":{"latest":"2.0.0"},"versions":{` +
		`"1.0.0":{"name":"n","version":"1.0.0","dependencies":{"a" : "^1"},"bin":{"n":"cli.js"},"engines":["node"],"funding":"x",` +
		`"dist":{"shasum":"s","tarball":"https:\/\/r.example.test\/n-1.0.0.tgz","signatures":[{"keyid":"k"}],"cid":"cid of 1.0.0"},"hasInstallScript":true},` +
		`"2.0.0":{"version":"2.0.0","hasInstallScript":false,"_hasShrinkwrap":false,"deprecated":"no","os":["linux"],"libc":["glibc"],"dist":{"cid":"cid of 2.0.0"}},` +
		`"2.1.0":{"hasInstallScript":false},"2.2.0":{},"2.3.0":{"name":"\ud83d"}},"modified":"2019-06-01T00:00:00.000Z"}`
	o := AbbreviateOptions{CID: func(v string) string { return "cid of " + v }}
	got, err := Abbreviate([]byte(raw), o)
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	again, err := Abbreviate(got, o)
	if err != nil || string(again) != want {
		t.Errorf("abbreviated again: %s, %v", again, err)
	}
	o = AbbreviateOptions{Time: true, Tarball: func(v, u string) string { return "http://127.0.0.1:1/" + v + "?" + u }}
	got, err = Abbreviate([]byte(raw), o)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Time     map[string]any
		Versions map[string]struct{ Dist any }
	}
	if err := json.Unmarshal(got, &doc); err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	if d := doc.Versions["1.0.0"].Dist.(map[string]any); d["tarball"] != "http://127.0.0.1:1/1.0.0?https://r.example.test/n-1.0.0.tgz" || d["cid"] != nil {
		t.Errorf("dist %v", d)
	}
	if doc.Time["created"] == nil || doc.Time["x"] == nil {
		t.Errorf("time %v", doc.Time)
	}
}

func TestAbbreviateModified(t *testing.T) {
	for name, c := range map[string][2]string{
		"Said":        {`{"time":{"1.0.0":"2021-01-01T00:00:00Z","modified":"2020-01-01T00:00:00Z"}}`, `,"modified":"2020-01-01T00:00:00Z"`},
		"Latest":      {`{"time":{"1.0.0":"2021-01-01T00:00:00Z","2.0.0":"2020-01-01T00:00:00Z"}}`, `,"modified":"2021-01-01T00:00:00Z"`},
		"LatestZones": {`{"time":{"1.0.0":"2021-01-01T00:00:00Z","2.0.0":"2020-12-31T23:30:00-01:00"}}`, `,"modified":"2020-12-31T23:30:00-01:00"`},
		"Abbreviated": {`{"modified":"2020-01-01T00:00:00Z"}`, `,"modified":"2020-01-01T00:00:00Z"`},
		"None":        {`{"name":"n"}`, ``},
		"Nonsense":    {`{"time":{"1.0.0":"now"},"modified":7}`, ``},
		"TimeNull":    {`{"time":null,"modified":"2020-01-01T00:00:00Z"}`, `,"modified":"2020-01-01T00:00:00Z"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Abbreviate([]byte(c[0]), AbbreviateOptions{})
			want := `"dist-tags":{},"versions":{}` + c[1] + `}`
			if err != nil || strings.TrimPrefix(strings.TrimPrefix(string(got), `{`), `"name":"n",`) != want {
				t.Errorf("got %s, %v; want …%s", got, err, want)
			}
		})
	}
}

func TestRewriteTarballs(t *testing.T) {
	const raw = ` {"tarball":"https://a.example.test/x", "versions":{ "1.0.0" : {"tarball":"y","dist": {"a":1, "tarball" : "https:\/\/a.example.test/1.tgz" ,"b":{"tarball":"z"}}},"2.0.0":{"dist":{"tarball":7}},"3.0.0":{"dist":{"tarball":"keep\/"}},"4.0.0":[] } }` + "\n"
	var asked []string
	got, err := RewriteTarballs([]byte(raw), func(v, u string) string {
		asked = append(asked, v+" "+u)
		if v == "3.0.0" {
			return u
		}
		return `http://[::1]:4873/"<é>`
	})
	want := strings.Replace(raw, `"https:\/\/a.example.test/1.tgz"`, `"http://[::1]:4873/\"<é>"`, 1)
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	if !slices.Equal(asked, []string{"1.0.0 https://a.example.test/1.tgz", "3.0.0 keep/"}) {
		t.Errorf("asked %q", asked)
	}
}
