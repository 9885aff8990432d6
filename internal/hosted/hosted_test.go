package hosted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func TestPublish(t *testing.T) {
	w := newWorld(t)
	first := version("@acme/thing", "1.0.0", "one")
	w.want(404, "", "GET", "/@acme%2fthing", "", "")
	w.publish(201, `"success":true`, first)
	second := version("@acme/thing", "1.1.0-rc.1", "two")
	second.tags = `{"next":"1.1.0-rc.1"}`
	w.want(201, "published", "PUT", "/@acme%2Fthing", "own", second.document())
	w.want(201, "published", "PUT", "/@lab/other", "own", version("@lab/other", "0.0.1", "").document())

	for _, path := range []string{"/@acme%2fthing", "/@acme%2Fthing", "/@acme/thing", "/%40acme%2fthing"} {
		answer := w.want(200, "", "GET", path, "", "")
		doc, err := npm.ParsePackument(answer.Body.Bytes())
		if err != nil || len(doc.Bad) > 0 {
			t.Fatalf("%s: %v, %v", path, err, doc.Bad)
		}
		if doc.DistTags["latest"] != "1.0.0" || doc.DistTags["next"] != "1.1.0-rc.1" || len(doc.Versions) != 2 || doc.Time["1.0.0"] == "" {
			t.Errorf("%s: %s", path, answer.Body)
		}
		if got := doc.Versions["1.0.0"].Dist.Tarball; got != "http://registry.test:4874/@acme/thing/-/thing-1.0.0.tgz" {
			t.Errorf("tarball at %s", got)
		}
		w.want(304, "", "GET", path, "", "", "If-None-Match", answer.Header().Get("ETag"))
	}
	short := w.want(200, `"modified"`, "GET", "/@acme%2fthing", "", "", "Accept", npm.AbbreviatedType+"; q=1.0, application/json; q=0.8", "X-Forwarded-Proto", "https")
	if !strings.Contains(short.Body.String(), `"https://registry.test:4874/@acme/thing/-/thing-1.0.0.tgz"`) || short.Header().Get("Content-Type") != npm.AbbreviatedType {
		t.Errorf("abbreviated: %s", short.Body)
	}
	w.want(200, `"version":"1.1.0-rc.1"`, "GET", "/@acme%2fthing/next", "", "")
	w.want(404, "", "GET", "/@acme%2fthing/9.9.9", "", "")
	for _, path := range []string{"/@acme/thing/-/thing-1.0.0.tgz", "/@acme%2fthing/-/thing-1.0.0.tgz", "/@acme/thing/-/@acme/thing-1.0.0.tgz"} {
		if got := w.want(200, "", "GET", path, "", ""); got.Body.String() != string(first.tarball) {
			t.Errorf("%s: other bytes", path)
		}
	}
	w.want(404, "", "GET", "/@acme/thing/-/thing-2.0.0.tgz", "", "")

	// What the mirror's side reads of it.
	held, err := w.store.Package(t.Context(), "@acme/thing")
	if err != nil || len(held.Versions) != 2 || held.Listed != 2 || held.Versions[0].Proof != "sha512" || held.Versions[0].Size != uint64(len(first.tarball)) {
		t.Errorf("ledger: %+v, %v", held, err)
	}
	if !w.node.held[held.Document.CID] || !w.node.held[held.Versions[0].CID] {
		t.Error("the roots are not held")
	}
	if dir, err := os.ReadDir(w.r.o.Spool); err != nil || len(dir) > 0 {
		t.Errorf("spooled files are left: %v, %v", dir, err)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	good := version("@acme/thing", "1.0.0", "one")
	w.publish(201, "", good)
	doc := version("@acme/thing", "2.0.0", "two").document()
	swapped := func(old, new string) string {
		if !strings.Contains(doc, old) {
			t.Fatalf("no %s in the document", old)
		}
		return strings.Replace(doc, old, new, 1)
	}
	tarball := func(entries ...entry) string {
		return publication{"@acme/thing", "2.0.0", `{"latest":"2.0.0"}`, pack(entries...)}.document()
	}
	raw := func(bytes []byte) string {
		return publication{"@acme/thing", "2.0.0", `{"latest":"2.0.0"}`, bytes}.document()
	}
	own := entry{"package/package.json", `{"name":"@acme/thing","version":"2.0.0"}`}
	ok := archive(own)
	for _, test := range []struct {
		status       int
		says         string
		method, path string
		token, body  string
	}{
		{401, "a token is needed", "PUT", "/@acme%2fthing", "", doc},
		{401, "not one of this registry's", "PUT", "/@acme%2fthing", "rmt_wrong", doc},
		{401, "", "PUT", "/-/package/@acme%2fthing/dist-tags/next", "", `"1.0.0"`},
		{401, "", "DELETE", "/-/package/@acme%2fthing/dist-tags/next", "", ""},
		{401, "", "GET", "/-/whoami", "", ""},
		{403, "this registry takes @acme, @lab", "PUT", "/@other%2fthing", "own", version("@other/thing", "1.0.0", "").document()},
		{403, "this registry takes", "PUT", "/thing", "own", version("thing", "1.0.0", "").document()},
		{404, "this registry has @acme, @lab", "GET", "/lodash", "", ""},
		{404, "", "GET", "/@other%2fthing", "", ""},
		{404, "", "GET", "/@acme%2f..%2f..%2fetc", "", ""},
		{400, "not a valid package name", "PUT", "/@acme%2f..", "own", doc},
		{400, "and the URL of", "PUT", "/@acme%2fother", "own", doc},
		{400, "JSON", "PUT", "/@acme%2fthing", "own", `}{`},
		{400, "", "PUT", "/@acme%2fthing", "own", `{`},
		{400, "ends too early", "PUT", "/@acme%2fthing", "own", doc[:strings.Index(doc, `","length"`)-4]},
		{400, "not base64", "PUT", "/@acme%2fthing", "own", swapped(`"data":"`, `"data":"*`)},
		{400, "not base64", "PUT", "/@acme%2fthing", "own", swapped(`"data":"`, `"data":"\u0041`)},
		{400, "more than one attachment", "PUT", "/@acme%2fthing", "own", swapped(`"_attachments":{`, `"_attachments":{"x":{"data":"YQ=="},`)},
		{400, "duplicate", "PUT", "/@acme%2fthing", "own", swapped(`"access":null`, `"name":"@acme/thing"`)},
		{400, "another spelling", "PUT", "/@acme%2fthing", "own", swapped(`"access":null`, `"Versions":{}`)},
		{400, "are announced", "PUT", "/@acme%2fthing", "own", swapped(`"length":`, `"length":1`)},
		{400, "does not match", "PUT", "/@acme%2fthing", "own", swapped(`"shasum":"`, `"shasum":"`+strings.Repeat("0", 40)+`","x":"`)},
		{400, "integrity", "PUT", "/@acme%2fthing", "own", swapped(`"integrity":"sha512-`, `"integrity":"sha512-AAAA`)},
		{400, "no usable integrity", "PUT", "/@acme%2fthing", "own", strings.ReplaceAll(strings.Replace(doc, `"integrity"`, `"a"`, 1), `"shasum"`, `"b"`)},
		{400, "not gzip", "PUT", "/@acme%2fthing", "own", raw([]byte("no gzip"))},
		{400, "not gzip", "PUT", "/@acme%2fthing", "own", raw(append(zipped(ok), 'x'))},
		{400, "bytes follow", "PUT", "/@acme%2fthing", "own", raw(zipped(append(ok, 'x')))},
		{400, "not a tar archive", "PUT", "/@acme%2fthing", "own", raw(zipped([]byte(strings.Repeat("x", 600))))},
		{400, "has no package.json", "PUT", "/@acme%2fthing", "own", tarball(entry{"package/index.js", ""})},
		{400, "has no package.json", "PUT", "/@acme%2fthing", "own", tarball(entry{"package/sub/package.json", own.data})},
		{400, "@acme/other", "PUT", "/@acme%2fthing", "own", tarball(entry{own.name, `{"name":"@acme/other","version":"2.0.0"}`})},
		{400, "2.0.1", "PUT", "/@acme%2fthing", "own", tarball(entry{own.name, `{"name":"@acme/thing","version":"2.0.1"}`})},
		{400, "more than one package.json", "PUT", "/@acme%2fthing", "own", tarball(own, entry{"other/package.json", own.data})},
		{400, "not a file", "PUT", "/@acme%2fthing", "own", tarball(entry{"package/Package.JSON", own.data})},
		{400, "not a file", "PUT", "/@acme%2fthing", "own", tarball(entry{"package/package.json@", "/etc/passwd"})},
		{400, "not a plain path", "PUT", "/@acme%2fthing", "own", tarball(own, entry{"package/../../x", ""})},
		{400, "not a plain path", "PUT", "/@acme%2fthing", "own", tarball(entry{"./package.json", own.data}, own)},
		{400, "not a plain path", "PUT", "/@acme%2fthing", "own", tarball(own, entry{"/etc/x", ""})},
		{400, "duplicate", "PUT", "/@acme%2fthing", "own", tarball(entry{own.name, `{"name":"@acme/thing","name":"x","version":"2.0.0"}`})},
		{413, "the tarball has more than", "PUT", "/@acme%2fthing", "own", raw(make([]byte, 1<<20+1))},
		{413, "without its attachment", "PUT", "/@acme%2fthing", "own", `{"x":"` + strings.Repeat("x", maxDocument) + `"}`},
		{413, "", "PUT", "/@acme%2fthing", "own", strings.Repeat(" ", 16<<20)},
		{409, "with the very same bytes", "PUT", "/@acme%2fthing", "own", good.document()},
		{409, "give it another number", "PUT", "/@acme%2fthing", "own", version("@acme/thing", "1.0.0", "other").document()},
		{405, "only adds", "PUT", "/@acme%2fthing/-rev/undefined", "own", `{}`},
		{405, "only adds", "DELETE", "/@acme%2fthing/-rev/1", "own", ""},
		{405, "only adds", "DELETE", "/@acme%2fthing/-/thing-1.0.0.tgz/-rev/1", "own", ""},
		{405, "no access levels", "POST", "/-/package/@acme%2fthing/access", "own", `{}`},
		{403, "no users", "PUT", "/-/user/org.couchdb.user:me", "own", `{}`},
		{405, "", "POST", "/-/npm/v1/security/advisories/bulk", "own", `{}`},
		{404, "", "GET", "/-/v1/search", "", ""},
		{404, "no version", "PUT", "/-/package/@acme%2fthing/dist-tags/next", "own", `"3.0.0"`},
		{404, "", "PUT", "/-/package/@acme%2fnone/dist-tags/next", "own", `"3.0.0"`},
		{404, "", "PUT", "/-/package/@other%2fnone/dist-tags/next", "own", `"3.0.0"`},
		{400, "dist-tag", "PUT", "/-/package/@acme%2fthing/dist-tags/1.x", "own", `"1.0.0"`},
		{400, "JSON string", "PUT", "/-/package/@acme%2fthing/dist-tags/next", "own", `1`},
		{413, "", "PUT", "/-/package/@acme%2fthing/dist-tags/next", "own", `"` + strings.Repeat("1", maxSmall) + `"`},
		{400, "not removed", "DELETE", "/-/package/@acme%2fthing/dist-tags/latest", "own", ""},
		{404, "no dist-tag", "DELETE", "/-/package/@acme%2fthing/dist-tags/next", "own", ""},
		{405, "", "POST", "/-/package/@acme%2fthing/dist-tags/next", "own", ""},
		{405, "", "PUT", "/-/package/@acme%2fthing/dist-tags", "own", "{}"},
	} {
		w.want(test.status, test.says, test.method, test.path, test.token, test.body)
	}
	if head := w.store.Head(); head != 1 {
		t.Errorf("what was refused moved the ledger to %d", head)
	}
	w.publish(201, "", version("@acme/thing", "2.0.0", "two"))
}

func TestWhoReads(t *testing.T) {
	w := newWorld(t)
	w.publish(201, "", version("@acme/thing", "1.0.0", ""))
	for _, far := range []string{"192.0.2.1:9", "[2001:db8::1]:9", "nonsense"} {
		w.want(401, "a token is needed", "GET", "/@acme%2fthing", "", "", "remote", far)
		w.want(200, "1.0.0", "GET", "/@acme%2fthing", "own", "", "remote", far)
		w.want(200, "", "GET", "/-/ping", "", "", "remote", far)
	}
	w.want(200, "1.0.0", "GET", "/@acme%2fthing", "", "", "remote", "[::ffff:127.0.0.1]:9")
	w.want(200, "1.0.0", "GET", "/@acme%2fthing", "", "", "remote", "[::1]:9")
	w.want(200, `"username":"`, "GET", "/-/whoami", "own", "")
	w.want(200, "@acme", "GET", "/", "", "")
	// A token that is revoked is a wrong one at once, and a new one counts at once.
	settings, err := Open(w.settings)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := NewToken(w.settings, w.r.o.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := RevokeToken(w.settings, settings.Tokens[0].ID); err != nil {
		t.Fatal(err)
	}
	w.want(401, "not one of", "PUT", "/@acme%2fthing", "own", version("@acme/thing", "2.0.0", "").document())
	w.want(201, "", "PUT", "/@acme%2fthing", other, version("@acme/thing", "2.0.0", "").document())
}

func TestTags(t *testing.T) {
	w := newWorld(t)
	w.publish(201, "", version("@acme/thing", "1.0.0", ""))
	w.publish(201, "", version("@acme/thing", "2.0.0", ""))
	w.want(201, "", "PUT", "/-/package/@acme%2fthing/dist-tags/old", "own", `"1.0.0"`)
	head := w.store.Head()
	w.want(201, "", "PUT", "/-/package/@acme/thing/dist-tags/old", "own", `"1.0.0"`)
	if w.store.Head() != head {
		t.Error("a dist-tag that stays is a change")
	}
	w.want(201, "", "PUT", "/-/package/@acme%2fthing/dist-tags/latest", "own", `"1.0.0"`)
	w.want(200, `{"latest":"1.0.0","old":"1.0.0"}`, "GET", "/-/package/@acme%2fthing/dist-tags", "", "")
	w.want(201, "", "DELETE", "/-/package/@acme%2fthing/dist-tags/old", "own", "")
	w.want(200, `{"latest":"1.0.0"}`, "GET", "/-/package/@acme%2fthing/dist-tags", "", "")
}

func TestDeprecate(t *testing.T) {
	w := newWorld(t)
	w.publish(201, "", version("@acme/thing", "1.0.0", ""))
	w.publish(201, "", version("@acme/thing", "2.0.0", ""))
	get := func() string { return w.want(200, "", "GET", "/@acme%2fthing?write=true", "", "").Body.String() }
	before := get()
	// npm sends the document that it got, and may have changed anything in it.
	changed := strings.Replace(before, `"version":"1.0.0"`, `"version":"1.0.0","deprecated":"no","scripts":{"install":"evil"}`, 1)
	w.want(201, "deprecations", "PUT", "/@acme%2fthing", "own", changed)
	doc, err := npm.ParsePackument([]byte(get()))
	if err != nil || doc.Versions["1.0.0"].Deprecated != "no" || doc.Versions["2.0.0"].Deprecated != "" || strings.Contains(get(), "evil") {
		t.Errorf("deprecated: %s", get())
	}
	head := w.store.Head()
	w.want(201, "", "PUT", "/@acme%2fthing", "own", get())
	if w.store.Head() != head {
		t.Error("the same messages are a change")
	}
	w.want(400, "never published", "PUT", "/@acme%2fthing", "own", strings.ReplaceAll(before, "2.0.0", "3.0.0"))
	w.want(400, "the document is of", "PUT", "/@acme%2fother", "own", before)
	w.want(404, "", "PUT", "/@acme%2fnone", "own", strings.ReplaceAll(before, "@acme/thing", "@acme/none"))
	w.want(401, "", "PUT", "/@acme%2fthing", "", changed)
}

// A publication breaks at every step, as one that failed and as one that failed
// although it was done; then the power goes. The version is whole or absent, and the
// same publication once more succeeds.
func TestCrash(t *testing.T) {
	fired := map[string]bool{}
	for _, kept := range []bool{false, true} {
		for at := 1; ; at++ {
			w := newWorld(t)
			w.publish(201, "", version("@acme/thing", "1.0.0", "one"))
			p := version("@acme/thing", "2.0.0", "two")
			broken := w.arm(at, kept)
			answer := w.ask("PUT", "/@acme%2fthing", "own", p.document())
			if broken.fired == "" {
				if answer.Code != 201 {
					t.Fatalf("nothing broke: %d %s", answer.Code, answer.Body)
				}
				break
			}
			fired[broken.fired] = true
			name := fmt.Sprintf("step %d (%s), kept: %t", at, broken.fired, kept)
			// The last commit notes that the answer was given, and is after it.
			if noted := answer.Code == 201; !noted && answer.Code != 500 {
				t.Errorf("%s: %d %s", name, answer.Code, answer.Body)
			}
			w.crash()
			held, err := w.store.Package(t.Context(), "@acme/thing")
			if err != nil {
				t.Fatal(err)
			}
			doc, err := npm.ParsePackument(w.want(200, "", "GET", "/@acme%2fthing", "", "").Body.Bytes())
			if err != nil || len(doc.Versions) != len(held.Versions) {
				t.Errorf("%s: the document has %d versions, the ledger %d: %v", name, len(doc.Versions), len(held.Versions), err)
			}
			for _, v := range held.Versions {
				w.want(200, "", "GET", "/@acme/thing/-/"+v.File, "", "")
			}
			if answer.Code == 201 && kept {
				w.publish(409, "", p)
			} else {
				w.publish(201, "published", p)
				w.publish(409, "the very same bytes", p)
			}
			if got := w.want(200, "", "GET", "/@acme/thing/-/thing-2.0.0.tgz", "", ""); got.Body.String() != string(p.tarball) {
				t.Errorf("%s: other bytes", name)
			}
		}
	}
	for _, step := range []string{"hold", "put", "checkpoint", "commit"} {
		if !fired[step] {
			t.Errorf("%s never broke", step)
		}
	}
}

// Who had no answer may ask again; who had one gets a conflict.
func TestAgain(t *testing.T) {
	w := newWorld(t)
	w.releases = false
	w.start()
	p := version("@acme/thing", "1.0.0", "one")
	left := httptest.NewRequest("PUT", "/@acme%2fthing", strings.NewReader(p.document()))
	left.Header.Set("Authorization", "Bearer "+w.token)
	ctx, cancel := context.WithCancel(t.Context())
	left = left.WithContext(ctx)
	done := make(chan any)
	go func() {
		defer func() { done <- recover() }() // http.ErrAbortHandler
		w.r.Handler().ServeHTTP(httptest.NewRecorder(), left)
	}()
	if err := w.store.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	w.r.Released(1, nil)
	w.publish(409, "another number", version("@acme/thing", "1.0.0", "two"))
	w.releases = true
	w.crash() // the next process knows it too
	w.publish(201, "", p)
	w.publish(409, "the very same bytes", p)
	w.crash()
	w.publish(409, "the very same bytes", p)

	// A version that was taken back is a conflict for ever.
	if _, err := w.store.Commit(t.Context(), ledger.Batch{Packages: []ledger.PackageUpdate{{Name: "@acme/thing", Deleted: true}}}); err != nil {
		t.Fatal(err)
	}
	w.publish(409, "", p)
	w.publish(409, "", version("@acme/thing", "1.0.0", "two"))
}

// What is durable is published: a release that fails is told beside the answer.
func TestReleaseFails(t *testing.T) {
	w := newWorld(t)
	w.releases = false
	w.start()
	var publishing sync.WaitGroup
	publishing.Go(func() {
		if err := w.store.Wait(t.Context(), 0); err != nil {
			t.Error(err)
		}
		w.r.Released(0, errors.New("the signer\nis away"))
	})
	answer := w.ask("PUT", "/@acme%2fthing", "own", version("@acme/thing", "1.0.0", "").document())
	publishing.Wait()
	if notice := answer.Header().Get("Npm-Notice"); answer.Code != 201 || !strings.Contains(notice, "kept") || !strings.Contains(notice, "the signer") {
		t.Errorf("%d, notice %q", answer.Code, notice)
	}
	w.want(200, "1.0.0", "GET", "/@acme%2fthing", "", "")
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			w.publish(201, "", version("@acme/thing", fmt.Sprintf("1.0.%d", i), ""))
			w.publish(201, "", version(fmt.Sprintf("@lab/p%d", i), "1.0.0", ""))
		})
	}
	all.Wait()
	same := make(chan int, 8)
	for i := range cap(same) {
		all.Go(func() {
			same <- w.ask("PUT", "/@acme%2fthing", "own", version("@acme/thing", "2.0.0", fmt.Sprint(i)).document()).Code
		})
	}
	all.Wait()
	close(same)
	won := 0
	for code := range same {
		if code == 201 {
			won++
		} else if code != 409 {
			t.Errorf("answered %d", code)
		}
	}
	if won != 1 {
		t.Errorf("%d were published as one version", won)
	}
	var doc struct{ Versions map[string]any }
	if err := json.Unmarshal(w.want(200, "", "GET", "/@acme%2fthing", "", "").Body.Bytes(), &doc); err != nil || len(doc.Versions) != 13 {
		t.Errorf("%d versions, %v", len(doc.Versions), err)
	}
}

// Former documents are let go of after a while, whatever breaks in between, and
// nothing that a package has is.
func TestLetGo(t *testing.T) {
	fired := map[string]bool{}
	for _, kept := range []bool{false, true} {
		for at := 1; ; at++ {
			w := newWorld(t)
			for _, v := range []string{"1.0.0", "1.1.0", "1.2.0"} {
				w.publish(201, "", version("@acme/thing", v, v))
			}
			count := func(want int, when string) {
				t.Helper()
				held, err := w.store.Package(t.Context(), "@acme/thing")
				if err != nil {
					t.Fatal(err)
				}
				if len(w.node.held) != want || !w.node.held[held.Document.CID] || !w.node.held[held.Versions[0].CID] {
					t.Errorf("%s, step %d: %d roots are held, want %d", when, at, len(w.node.held), want)
				}
			}
			if err := w.r.letGo(t.Context()); err != nil {
				t.Fatal(err)
			}
			count(6, "young")
			w.later = keepDocuments + time.Minute
			broken := w.arm(at, kept)
			err := w.r.letGo(t.Context())
			if broken.fired == "" {
				if err != nil {
					t.Fatal(err)
				}
				count(4, "old")
				break
			}
			fired[broken.fired] = true
			w.crash()
			if err := w.r.letGo(t.Context()); err != nil {
				t.Fatal(err)
			}
			count(4, "after a crash")
			if rows, err := w.store.Former(t.Context(), w.now(), 10); err != nil || len(rows) > 0 {
				t.Errorf("step %d: %d rows are left, %v", at, len(rows), err)
			}
			w.want(200, "1.2.0", "GET", "/@acme%2fthing", "", "")
		}
	}
	for _, step := range []string{"unhold", "checkpoint", "commit"} {
		if !fired[step] {
			t.Errorf("%s never broke", step)
		}
	}
}

// A client that stops in the middle of a body is told so, and its connection ends:
// here, before it is answered, and for a body that nobody reads.
func TestSlowClient(t *testing.T) {
	w := newWorld(t)
	w.r.patience = 50 * time.Millisecond
	server := httptest.NewServer(w.r.Handler())
	defer server.Close()
	for request, want := range map[string]string{
		"PUT /@acme%2fthing HTTP/1.1":                          "HTTP/1.1 408 ",
		"PUT /-/package/@acme%2fthing/dist-tags/next HTTP/1.1": "HTTP/1.1 408 ",
		"GET /@acme%2fthing HTTP/1.1":                          "",
	} {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "%s\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n{", request, w.token)
		if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), want) {
			t.Errorf("%s: %q, %v", request, answer, err)
		}
		c.Close()
	}
	w.publish(201, "", version("@acme/thing", "1.0.0", "")) // no place for a publication is lost
	if n := len(w.r.upload); n > 0 {
		t.Errorf("%d places are taken", n)
	}
}
