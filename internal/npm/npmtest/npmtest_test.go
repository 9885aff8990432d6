package npmtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func TestMain(m *testing.M) { loopback.Main(m) }

const archive = `
-- left-pad@1.0.0/package.json --
{"description": "pads", "dependencies": {"@s/dep": "^1.0.0"}}
-- left-pad@1.0.0/index.js --
module.exports = 1
-- left-pad@1.1.0/index.js --
module.exports = 2
-- left-pad@2.0.0-rc.1/index.js --
module.exports = 3
-- @s/dep@1.0.0/lib/a.js --
a
-- @s/dep@1.0.1/lib/a.js --
b
-- @s/dep/dist-tags.json --
{"latest": "1.0.0", "next": "1.0.1"}
`

func get(t *testing.T, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestRegistry(t *testing.T) {
	r := New(t, archive)
	resp, raw := get(t, r.URL+"/left-pad")
	p, err := npm.ParsePackument(raw)
	if err != nil || resp.StatusCode != 200 || len(p.Bad) != 0 {
		t.Fatalf("%s: %v, %v", resp.Status, err, p)
	}
	if !slices.Equal(slices.Sorted(maps.Keys(p.Versions)), []string{"1.0.0", "1.1.0", "2.0.0-rc.1"}) || p.DistTags["latest"] != "1.1.0" ||
		p.Time["1.1.0"] != "2020-01-01T02:00:00.000Z" || p.Versions["1.0.0"].Dependencies["@s/dep"] != "^1.0.0" {
		t.Errorf("%s", raw)
	}
	// The tarball is what the digests say, and what was put in.
	d := p.Versions["1.0.0"].Dist
	_, tgz := get(t, d.Tarball)
	in, err := npm.ParseIntegrity(d)
	if err != nil {
		t.Fatal(err)
	}
	v := in.NewVerifier()
	v.Write(tgz)
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	zr, err := gzip.NewReader(bytes.NewReader(tgz))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(b)
	}
	if files["package/index.js"] != "module.exports = 1\n" || !strings.Contains(files["package/package.json"], `"version": "1.0.0"`) || len(files) != 2 {
		t.Errorf("files %q", files)
	}
	// Every way to write a scoped name.
	for _, path := range []string{"/@s%2fdep", "/@s%2Fdep", "/@s/dep"} {
		_, raw := get(t, r.URL+path)
		if p, err := npm.ParsePackument(raw); err != nil || p.Name != "@s/dep" || p.DistTags["latest"] != "1.0.0" || p.DistTags["next"] != "1.0.1" {
			t.Errorf("%s: %s", path, raw)
		}
		if resp, body := get(t, r.URL+path+"/-/dep-1.0.1.tgz"); resp.StatusCode != 200 || !bytes.Equal(body, r.Tarball("@s/dep", "1.0.1")) {
			t.Errorf("%s: tarball: %s", path, resp.Status)
		}
	}
	if n := r.Requests("/@s%2fdep"); n != 1 {
		t.Errorf("counted %d requests", n)
	}
	for _, path := range []string{"/nothing", "/left-pad/-/left-pad-9.0.0.tgz", "/left-pad/9.0.0", "/-/nothing", "/"} {
		if resp, body := get(t, r.URL+path); resp.StatusCode != 404 || !json.Valid(body) {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	// ETags differ by form, and are honoured.
	full, _ := get(t, r.URL+"/left-pad")
	short, body := get(t, r.URL+"/left-pad", "Accept", npm.AbbreviatedType+"; q=0.1, application/json")
	if strings.Contains(string(body), `"time"`) || !strings.Contains(string(body), `"modified":"2020-01-01T03`) || full.Header.Get("Etag") == short.Header.Get("Etag") || short.Header.Get("Content-Type") != npm.AbbreviatedType {
		t.Errorf("abbreviated: %v %s", short.Header, body)
	}
	if resp, body := get(t, r.URL+"/left-pad", "If-None-Match", full.Header.Get("Etag")); resp.StatusCode != 304 || len(body) != 0 {
		t.Errorf("If-None-Match: %s", resp.Status)
	}
	if resp, _ := get(t, r.URL+"/left-pad", "If-None-Match", short.Header.Get("Etag")); resp.StatusCode != 200 {
		t.Errorf("If-None-Match of the other form: %s", resp.Status)
	}
}

func TestChanges(t *testing.T) {
	r := New(t, archive)
	head := r.Head()
	revOf := func(name string) string {
		_, raw := get(t, r.URL+"/"+name)
		p, err := npm.ParsePackument(raw)
		if err != nil {
			t.Fatal(err)
		}
		return p.Rev
	}
	before := revOf("left-pad")
	r.Publish("-- left-pad@1.2.0/index.js --\n4\n")
	if r.Head() <= head || revOf("left-pad") == before {
		t.Error("publishing left no mark")
	}
	r.Lag("left-pad", 1)
	if revOf("left-pad") != before || revOf("left-pad") == before {
		t.Error("Lag serves the wrong documents")
	}
	if err := r.Add("-- left-pad@1.2.0/index.js --\n5\n"); err == nil {
		t.Error("a version was published twice")
	}
	r.Unpublish("left-pad", "1.2.0")
	_, raw := get(t, r.URL+"/left-pad")
	p, err := npm.ParsePackument(raw)
	if err != nil || p.Versions["1.2.0"] != nil || p.Time["1.2.0"] == "" || p.DistTags["latest"] != "1.1.0" {
		t.Errorf("unpublished: %s", raw)
	}
	for _, v := range []string{"1.0.0", "1.0.1"} {
		r.Unpublish("@s/dep", v)
	}
	_, raw = get(t, r.URL+"/@s%2fdep")
	if p, err := npm.ParsePackument(raw); err != nil || !p.Unpublished || len(p.Versions) != 0 {
		t.Errorf("stub: %s, %v", raw, err)
	}
	r.Delete("left-pad")
	if resp, _ := get(t, r.URL+"/left-pad"); resp.StatusCode != 404 {
		t.Errorf("deleted: %s", resp.Status)
	}
	r.Fault("/@s", func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	if resp, _ := get(t, r.URL+"/@s%2fdep"); resp.StatusCode != 503 {
		t.Errorf("fault: %s", resp.Status)
	}
	r.Heal()
	r.Edit("@s/dep", func([]byte) []byte { return []byte("<html>") })
	if _, raw := get(t, r.URL+"/@s%2fdep"); string(raw) != "<html>" {
		t.Errorf("edited: %s", raw)
	}
}

func TestFeed(t *testing.T) {
	r := New(t, archive)
	type page struct {
		Results []struct {
			Seq     int64
			ID      string
			Changes []struct{ Rev string }
			Deleted bool
		}
		LastSeq int64 `json:"last_seq"`
	}
	read := func(query string) (p page) {
		t.Helper()
		resp, body := get(t, r.FeedURL+"/_changes?"+query)
		if resp.StatusCode != 200 || json.Unmarshal(body, &p) != nil {
			t.Fatalf("%s: %s %s", query, resp.Status, body)
		}
		return p
	}
	_, body := get(t, r.FeedURL)
	var root struct {
		Engine    string
		DBName    string `json:"db_name"`
		DocCount  int    `json:"doc_count"`
		UpdateSeq int64  `json:"update_seq"`
	}
	if json.Unmarshal(body, &root) != nil || root.Engine != "npm-replicate" || root.DBName != "registry" || root.DocCount != 2 || root.UpdateSeq != r.Head() {
		t.Errorf("root %s", body)
	}
	p := read("")
	if len(p.Results) != 2 || p.LastSeq != r.Head() || p.Results[0].Seq >= p.Results[1].Seq || p.Results[1].Changes[0].Rev == "" {
		t.Errorf("%+v", p)
	}
	if one := read("limit=1"); len(one.Results) != 1 || one.LastSeq != p.Results[0].Seq {
		t.Errorf("limit=1: %+v", one)
	}
	if last := read("limit=1&descending=true"); len(last.Results) != 1 || last.Results[0].Seq != r.Head() {
		t.Errorf("descending: %+v", last)
	}
	if past := read("since=999999"); len(past.Results) != 0 || past.LastSeq != 999999 {
		t.Errorf("past the head: %+v", past)
	}
	r.Delete("left-pad")
	if del := read("since=" + jsonOf(p.LastSeq)); len(del.Results) != 1 || !del.Results[0].Deleted || del.Results[0].ID != "left-pad" {
		t.Errorf("deleted: %+v", del)
	}
	for _, bad := range []string{"since=now", "since=x", "since=-1", "limit=10001", "limit=0", "limit=x", "feed=longpoll", "feed=normal", "include_docs=true", "timeout=1", "heartbeat=1", "style=all_docs", "skip=1", "doc_ids=x"} {
		if resp, _ := get(t, r.FeedURL+"/_changes?"+bad); resp.StatusCode != 400 {
			t.Errorf("%s: %s", bad, resp.Status)
		}
	}
	resp, err := http.Post(r.FeedURL+"/_changes", "application/json", strings.NewReader(`{"doc_ids":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("POST: %s", resp.Status)
	}
	if resp, _ := get(t, r.FeedURL+"/left-pad"); resp.StatusCode != 404 {
		t.Errorf("a document: %s", resp.Status)
	}
	r.Publish("-- a@1.0.0/x --\n-- b@1.0.0/x --\n-- c@1.0.0/x --\n")
	for query, want := range map[string]string{
		"": "@s/dep a b c", "limit=2": "@s/dep a", `startkey="a"&limit=2`: "a b", `startkey="a"&endkey="b"`: "a b",
		`startkey="a"&endkey="c"&inclusive_end=false`: "a b", `key="b"`: "b", `keys=["a","c"]`: "a c", `startkey="b"&descending=true`: "b a @s/dep",
	} {
		var rows struct {
			Total int `json:"total_rows"`
			Rows  []struct {
				ID    string
				Value struct{ Rev string }
			}
		}
		_, body := get(t, r.FeedURL+"/_all_docs?"+strings.NewReplacer(`"`, "%22", ",", "%2c").Replace(query))
		if err := json.Unmarshal(body, &rows); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, row := range rows.Rows {
			ids = append(ids, row.ID)
		}
		if strings.Join(ids, " ") != want || rows.Total != 4 {
			t.Errorf("_all_docs?%s: %s", query, body)
		}
	}
	for _, bad := range []string{"include_docs=true", "skip=1", "limit=20000", "startkey=a", "update_seq=true"} {
		if resp, _ := get(t, r.FeedURL+"/_all_docs?"+bad); resp.StatusCode != 400 {
			t.Errorf("_all_docs?%s: %s", bad, resp.Status)
		}
	}
}

func jsonOf(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

func TestGenerate(t *testing.T) {
	first, again := Generate(30, 1), Generate(30, 1)
	if first != again || first == Generate(30, 2) {
		t.Error("not a function of its arguments")
	}
	r := New(t, Generate(60, 7))
	versions := map[string]*npm.Packument{}
	for i := range 60 {
		name := npm.Name(GeneratedName(i))
		_, raw := get(t, r.URL+"/"+name.Escape())
		p, err := npm.ParsePackument(raw)
		if err != nil || len(p.Bad) != 0 {
			t.Fatalf("%s: %v %v", name, err, p)
		}
		versions[string(name)] = p
	}
	edges, scoped := 0, 0
	for name, p := range versions {
		if p.Name.Scope() != "" {
			scoped++
		}
		for v, m := range p.Versions {
			for _, deps := range []map[string]string{m.Dependencies, m.OptionalDependencies} {
				for dep, rng := range deps {
					edges++
					if _, ok := npm.Pick(versions[dep], rng); !ok {
						t.Errorf("%s@%s needs %s@%s, which does not resolve", name, v, dep, rng)
					}
				}
			}
		}
	}
	if edges < 60 || scoped != 15 {
		t.Errorf("%d edges, %d scoped", edges, scoped)
	}
}

func TestArchiveErrors(t *testing.T) {
	for _, bad := range []string{
		"-- x --\n", "-- x@latest/a --\n", "-- _x@1.0.0/a --\n", "-- x@1.0.0/../a --\n", "-- x@1.0.0/ --\n", "-- @s@1.0.0/a --\n",
		"-- x@1.0.0/package.json --\n[]\n", "-- x/readme.md --\n", "-- x@1.0.0/a --\n-- x/dist-tags.json --\n{\"latest\":\"2.0.0\"}\n",
	} {
		if r, err := Start("127.0.0.1:0", bad); err == nil {
			r.Close()
			t.Errorf("%q passes", bad)
		}
	}
}

// TestFeedFaults: what the feed hides the listing has, until another change; a
// name that is announced need not exist.
func TestFeedFaults(t *testing.T) {
	r := New(t, "-- a@1.0.0/x --\n-- b@1.0.0/x --\n")
	ids := func(path, key string) string {
		t.Helper()
		_, body := get(t, r.FeedURL+path)
		var page map[string]json.RawMessage
		var rows []struct{ ID string }
		if err := errors.Join(json.Unmarshal(body, &page), json.Unmarshal(page[key], &rows)); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		var all []string
		for _, row := range rows {
			all = append(all, row.ID)
		}
		return strings.Join(all, " ")
	}
	feed := func() string { t.Helper(); return ids("/_changes", "results") }
	docs := func() string { t.Helper(); return ids("/_all_docs", "rows") }
	r.Hide("a")
	if got := feed(); got != "a b" {
		t.Errorf("before the change that is hidden: %s", got)
	}
	r.Deprecate("a", "1.0.0", "no longer")
	r.Hide("c")
	r.Publish("-- c@1.0.0/x --\n")
	if got := feed(); got != "b" {
		t.Errorf("the feed has %s", got)
	}
	if got := docs(); got != "a b c" {
		t.Errorf("the listing has %s", got)
	}
	if _, body := get(t, r.URL+"/a"); !strings.Contains(string(body), `"deprecated":"no longer"`) {
		t.Errorf("not deprecated: %s", body)
	}
	r.Lag("a", 1)
	if _, body := get(t, r.URL+"/a"); strings.Contains(string(body), "no longer") || r.Stale() != 1 {
		t.Errorf("%d stale: %s", r.Stale(), body)
	}
	r.Publish("-- a@2.0.0/x --\n")
	r.Announce("../up")
	if got := feed(); got != "b a ../up" {
		t.Errorf("after a further change: %s", got)
	}
	if got := docs(); got != "../up a b c" {
		t.Errorf("the listing has %s", got)
	}
	if resp, _ := get(t, r.URL+"/..%2fup"); resp.StatusCode != 404 {
		t.Errorf("what was only announced: %s", resp.Status)
	}
}

// TestSign: what is held and what comes later verifies by the listed key.
func TestSign(t *testing.T) {
	r := New(t, "-- a@1.0.0/x --\n")
	r.Sign()
	r.Publish("-- @s/b@1.0.0/x --\n")
	_, raw := get(t, r.URL+"/-/npm/v1/keys")
	if !bytes.Equal(raw, r.Keys()) {
		t.Errorf("keys %s, want %s", raw, r.Keys())
	}
	ring, err := npm.ParseKeys(raw)
	if err != nil || len(ring) != 1 {
		t.Fatalf("%v %v", ring, err)
	}
	for path, name := range map[string]npm.Name{"/a": "a", "/@s%2fb": "@s/b"} {
		_, raw := get(t, r.URL+path)
		p, err := npm.ParsePackument(raw)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := npm.VerifySignature(ring, name, "1.0.0", p.Versions["1.0.0"].Dist, ""); err != nil || v != npm.Verified {
			t.Errorf("%s: %s %v", name, v, err)
		}
	}
}
