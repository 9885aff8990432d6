package page

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	nethtml "golang.org/x/net/html"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// fake is a registry that says what a test would have it say.
type fake struct {
	prefix  string
	refused bool
	status  mirror.TableStatus
	account mirror.Account
	err     error
	asked   []string // of Search and Account
}

func (f *fake) Meant(*http.Request) (string, bool) {
	return "http://example.com" + f.prefix, !f.refused
}
func (f *fake) Status(context.Context) mirror.TableStatus { return f.status }
func (f *fake) ask(what string)                           { f.asked = append(f.asked, what) }
func (f *fake) Account(_ context.Context, name npm.Name, version string, far bool) (mirror.Account, error) {
	f.ask(string(name) + " " + version)
	if far {
		f.ask("the network")
	}
	a := f.account
	a.Name = name
	return a, f.err
}

func (f *fake) Search(_ context.Context, text string, from, size int) (mirror.Hits, error) {
	f.ask(text)
	if f.err != nil {
		return mirror.Hits{}, f.err
	}
	hits := mirror.Hits{Total: 45}
	for i := from; i < min(from+size, 45); i++ {
		hits.Hits = append(hits.Hits, mirror.Hit{Name: "@acme/left", Version: "1.0.0", Description: text})
	}
	return hits, nil
}

const browsers = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"

func get(f *fake, path, accept string) *httptest.ResponseRecorder {
	return do(f, http.MethodGet, path, accept)
}

func do(f *fake, method, path, accept string) *httptest.ResponseRecorder {
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "registry") })
	r := httptest.NewRequest(method, path, nil)
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	w := httptest.NewRecorder()
	Handler(next, f, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
	return w
}

// Only who prefers HTML sees a page at /, and nobody at a package's path.
func TestClientsNeverGetAPage(t *testing.T) {
	for _, tt := range []struct {
		method, path, accept string
		page                 bool
	}{
		{"GET", "/", browsers, true},
		{"HEAD", "/", browsers, true},
		{"GET", "/", "text/html", true},
		{"GET", "/", "", false},
		{"GET", "/", "*/*", false},
		{"GET", "/", "application/json", false},
		{"GET", "/", "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*", false},
		{"GET", "/", "application/json, text/html;q=0.9", false},
		{"GET", "/", "text/html;q=0", false},
		{"GET", "/", "text/html;q=2", false},
		{"PUT", "/", browsers, false},
		{"GET", "/express", browsers, false},
		{"GET", "/@types%2fnode", browsers, false},
		{"GET", "/-/v1/search?text=a", browsers, false},
		{"GET", "/-/package/web/dist-tags", browsers, false},
		{"GET", "/-/web", browsers, false},
		{"GET", "/-/web/", "", true},
		{"GET", "/-/web/search", "*/*", true},
	} {
		got := do(&fake{}, tt.method, tt.path, tt.accept)
		if is := got.Body.String() != "registry"; is != tt.page {
			t.Errorf("%s %s, Accept %q: page %v, want %v", tt.method, tt.path, tt.accept, is, tt.page)
		}
	}
}

// No page lets anything of another's load or run, be framed or be kept.
func TestHeaders(t *testing.T) {
	for path, script := range map[string]bool{"/-/web/": false, "/-/web/search?q=a": true, "/-/web/package/left-pad": false, "/-/web/none": false} {
		h := get(&fake{account: full()}, path, browsers).Header()
		want := "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
		if script {
			want += "; script-src 'self'; connect-src 'self'"
		}
		for name, value := range map[string]string{
			"Content-Security-Policy": want, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin", "Content-Type": "text/html; charset=utf-8", "Set-Cookie": "",
		} {
			if got := h.Get(name); got != value {
				t.Errorf("%s: %s is %q, want %q", path, name, got, value)
			}
		}
	}
	for _, a := range []asset{style, script} {
		got := get(&fake{}, a.path, "")
		if h := got.Header(); got.Code != 200 || h.Get("Content-Type") != a.kind || !strings.Contains(h.Get("Cache-Control"), "immutable") || got.Body.String() != string(a.data) {
			t.Errorf("%s: %d %v", a.path, got.Code, h)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		what         string
		f            *fake
		method, path string
		status       int
		text         string
	}{
		{"another's name for this machine", &fake{refused: true}, "GET", "/", 421, "--trusted-proxy"},
		{"a write", &fake{}, "POST", "/-/web/search", 405, "only read"},
		{"no such page", &fake{}, "GET", "/-/web/nothing", 404, "no such page"},
		{"no name", &fake{}, "GET", "/-/web/package/%3Cscript%3E", 400, "no package"},
		{"no name at all", &fake{}, "GET", "/-/web/package/", 400, "no package"},
		{"it is closing", &fake{err: mirror.ErrClosed}, "GET", "/-/web/package/a", 503, "stopping"},
		{"a store that fails", &fake{err: errors.New("disk <b>gone</b>")}, "GET", "/-/web/package/a", 500, "Disk &lt;b&gt;gone"},
		{"a list that has not come", &fake{err: mirror.ErrNotSynced}, "GET", "/-/web/search?q=a", 503, "has not been synced yet"},
		{"a text that is no name", &fake{}, "GET", "/-/web/search?q=" + strings.Repeat("a", 300), 400, "No name is as long"},
		{"not listed", &fake{account: mirror.Account{State: mirror.Unlisted, Why: "release 3 does not list it"}}, "GET", "/-/web/package/a", 404, "Release 3 does not list it."},
		{"refused", &fake{account: mirror.Account{State: mirror.Refused, Why: "its bytes are wrong"}}, "GET", "/-/web/package/a", 200, "Its bytes are wrong."},
	} {
		got := do(tt.f, tt.method, tt.path, browsers)
		if got.Code != tt.status || !strings.Contains(got.Body.String(), tt.text) {
			t.Errorf("%s: %d %s, want %d and %q", tt.what, got.Code, got.Body, tt.status, tt.text)
		}
	}
	f := &fake{refused: true}
	get(f, "/-/web/package/left-pad", browsers)
	if len(f.asked) > 0 {
		t.Errorf("under a name that is not meant, it was looked up: %q", f.asked)
	}
}

// What a page is asked for, it asks for by npm's rules, and never of the network.
func TestPackagePath(t *testing.T) {
	for path, want := range map[string]string{
		"express": "express ", "express@4.18.2": "express 4.18.2", "@types/node": "@types/node ",
		"@types/node@latest": "@types/node latest", "@types%2Fnode": "@types/node ",
	} {
		f := &fake{}
		get(f, "/-/web/package/"+path, browsers)
		if !slices.Equal(f.asked, []string{want}) {
			t.Errorf("%s asks for %q, want %q", path, f.asked, want)
		}
	}
}

func TestSearchPages(t *testing.T) {
	for path, want := range map[string][]string{
		"/-/web/search":               {"Type a part of a name, or a word"},
		"/-/web/search?q=a":           {"45 packages, 1 to 20 shown", "from=20", `href="/x/-/web/package/@acme/left"`},
		"/-/web/search?q=a&from=20":   {"21 to 40 shown", "from=0", "from=40", `start="21"`},
		"/-/web/search?q=a&from=40":   {"41 to 45 shown", "from=20"},
		"/-/web/search?q=a&from=-1":   {"1 to 20 shown"},
		"/-/web/search?q=%22%3Cb%3E":  {`value="&#34;&lt;b&gt;"`, "q=%22%3cb%3e&amp;from=20"},
		"/-/web/search?q=a&from=9999": {"1 to 20 shown"},
	} {
		body := get(&fake{prefix: "/x"}, path, browsers).Body.String()
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s: no %q in %s", path, w, body)
			}
		}
	}
	if body := get(&fake{}, "/-/web/search?q=a&from=40", browsers).Body.String(); strings.Contains(body, `rel="next"`) {
		t.Error("there is a page after the last")
	}
}

// full is an account with all that a page can show.
func full() mirror.Account {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return mirror.Account{
		Version: "1.3.0", State: mirror.Served, Owner: mirror.Owner{Registry: "npm", Because: "it is the only registry here", Others: []string{"other"}},
		Release: &mirror.Release{Number: 42, Root: "bafyroot", Created: at}, Since: &mirror.Since{Number: 3, Created: at},
		Directory: "bafydir", Document: "bafydoc", FirstSeen: at,
		Manifest: &mirror.About{Description: "pads", License: "MIT", Homepage: "https://left-pad.example.org/", Repository: "git+https://git.example.org/left-pad.git",
			Published: "2018-04-09T00:47:29Z", Dependencies: []mirror.Requirement{{Name: "is-odd", Range: "^3", Kind: "peer"}, {Name: "../evil", Range: "1"}}},
		Tarball: &mirror.Tarball{File: "left-pad-1.3.0.tgz", CID: "bafytarball", Size: 2048, Integrity: "sha512-abc", Here: true,
			Arrivals: []mirror.Arrival{{Source: "car", From: "https://gateway.example.org", At: at}}},
		Signature: &mirror.Signature{Verdict: npm.Verified, Keys: []string{"SHA256:key"}, Attestations: true},
		Checks:    []mirror.Check{{What: "integrity", Result: mirror.Passed, Detail: "the bytes matched"}},
		Tags:      map[string]string{"latest": "1.3.0"},
		Versions:  []mirror.Listed{{Version: "1.3.0", CID: "bafytarball"}},
		NotListed: []mirror.Held{{Version: "1.2.0", Reason: "min-age", Detail: "first seen too short a while ago"}, {Version: "0.1.0", Detail: "upstream dates it"}},
		Readme:    "# Pads\n\nleft",
	}
}

func TestPackagePage(t *testing.T) {
	body := get(&fake{account: full(), prefix: "/x"}, "/-/web/package/left-pad", browsers).Body.String()
	for _, want := range []string{
		"npm install left-pad --registry=http://example.com/x/", "<h3>Pads</h3>", `href="/x/-/web/package/is-odd"`, "../evil <code>",
		"in release 3", "First seen", "from the gateway https://gateway.example.org", "bafytarball", "sha512-abc", "verified", "SHA256:key", "has attestations",
		"other lists the name too, and is never asked", "min-age", "First seen too short a while ago.", "1 version that upstream dates", "0.1.0",
		`href="https://git.example.org/left-pad.git"`, `href="/x/left-pad/-/left-pad-1.3.0.tgz"`, "<title>left-pad · registry-mirror</title>",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in %s", want, body)
		}
	}
}

// A package of thousands of versions has a page that is small, and one with all.
func TestManyVersions(t *testing.T) {
	a := full()
	for i := range 3000 {
		v := fmt.Sprintf("0.0.%d", i)
		a.Versions = append(a.Versions, mirror.Listed{Version: v})
		a.NotListed = append(a.NotListed, mirror.Held{Version: v, Reason: "min-age", Detail: v}, mirror.Held{Version: v + "-a", Detail: v})
	}
	body := get(&fake{account: a}, "/-/web/package/left-pad", browsers).Body.String()
	if len(body) > 24<<10 || !strings.Contains(body, "3,001 versions") || strings.Contains(body, "0.0.2999") {
		t.Errorf("%d bytes: %s", len(body), body)
	}
	body = get(&fake{account: a}, "/-/web/package/left-pad?versions=all", browsers).Body.String()
	for _, want := range []string{">0.0.2999</a>", "0.0.2999-a", `<th scope="row">0.0.2999</th>`} {
		if !strings.Contains(body, want) {
			t.Errorf("not all: no %s", want)
		}
	}
}

// hostileTexts are what names, documents and readmes can hold.
var hostileTexts = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</title></style></textarea><svg onload=alert(1)>`,
	"javascript:alert(1)", "[a](javascript:alert(1))", "[a](JAVASCRIPT&colon;alert(1))", "[a](data:text/html,<script>alert(1)</script>)", "<javascript:alert(1)>",
	"![a](javascript:alert(1))", "[a]: javascript:alert(1)\n\n[a]", "<a href=\"javascript:alert(1)\">a</a>\n", "<a href=\"\tjava\nscript:alert(1)\">a</a>", "[a](//evil.example.org)",
	"<div>\n<iframe srcdoc='<script>alert(1)</script>'></iframe>\n</div>", "```\"><script>\nx\n```", "<style>*{display:none}</style>", "<!-- --!><script>alert(1)</script> -->",
	"<base href=//evil.example.org>\n<form action=//evil.example.org><input name=q></form>", "# h {#main onclick=alert(1)}", "<p id=main style='position:fixed'>x</p>",
	"| a |\n|---|\n| <img src=x onerror=alert(1)> |", "<![CDATA[<script>alert(1)</script>]]>", "<?php <script>alert(1)</script> ?>", "<https://example.org/\"onclick=alert(1)>",
	"[a](<https://example.org/\" onclick=\"alert(1)>)", "<details ontoggle=alert(1) open>\n<summary>a</summary>\n\nb\n</details>", "\x00<script>alert(1)</script>", "<math><mtext><img src=x onerror=alert(1)>",
}

// known are the elements and attributes that a page of ours may have.
var known = map[string][]string{
	"html": {"lang"}, "head": nil, "body": nil, "meta": {"charset", "name", "content"}, "title": nil, "link": {"rel", "href"}, "header": nil,
	"a": {"class", "href", "rel"}, "form": {"role", "action"}, "label": {"for"}, "button": nil,
	"input": {"id", "name", "type", "value", "maxlength", "autocomplete", "autocapitalize", "spellcheck", "placeholder"},
	"main":  {"id", "tabindex"}, "div": {"class", "tabindex", "role", "aria-label"}, "section": {"class", "aria-labelledby"}, "i": {"class"}, "aside": {"aria-label"},
	"h1": nil, "h2": {"id"}, "h3": nil, "h4": nil, "h5": nil, "h6": nil, "p": {"class"}, "span": {"class", "aria-hidden"}, "strong": nil, "em": nil, "del": nil, "code": {"class"},
	"pre": {"class", "tabindex"}, "ul": {"class"}, "ol": {"class", "start"}, "li": {"class"}, "dl": {"class"}, "dt": nil, "dd": {"class"}, "br": nil, "hr": nil,
	"table": {"class"}, "thead": nil, "tbody": nil, "tr": {"aria-current"}, "th": {"scope"}, "td": {"class"}, "time": {"datetime"}, "details": nil, "summary": nil, "blockquote": nil,
}

// unknown gives what a document has beside them.
func unknown(t *testing.T, document string) (bad []string) {
	t.Helper()
	root, err := nethtml.Parse(strings.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for n := range root.Descendants() {
		if n.Type != nethtml.ElementNode {
			continue
		}
		allowed, ok := known[n.Data]
		if !ok {
			bad = append(bad, "element "+n.Data)
		}
		for _, a := range n.Attr {
			if !slices.Contains(allowed, a.Key) {
				bad = append(bad, "attribute "+a.Key+" of "+n.Data)
			}
			if a.Key == "id" && ids[a.Val] {
				bad = append(bad, "id "+a.Val+" twice")
			}
			ids[a.Val] = ids[a.Val] || a.Key == "id"
			if a.Key == "href" && n.Data == "a" && !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#main") &&
				!strings.HasPrefix(a.Val, "https://") && !strings.HasPrefix(a.Val, "http://") || strings.HasPrefix(a.Val, "//") {
				bad = append(bad, "link to "+a.Val)
			}
		}
	}
	return bad
}

func TestShare(t *testing.T) {
	for _, test := range []struct {
		held, asked int64
		want        string
	}{
		{0, 0, ""}, {0, 10, "0 %"}, {10, 0, "100 %"}, {1, 1, "50 %"},
		{1, 9999, "under 1 %"}, {9999, 1, "over 99 %"}, {990, 10, "99 %"},
	} {
		if got := share(mirror.Bytes{Cache: test.held, Bitswap: test.asked}); got != test.want {
			t.Errorf("%d held, %d asked for: %q, want %q", test.held, test.asked, got, test.want)
		}
	}
}

func TestHostileText(t *testing.T) {
	for _, text := range hostileTexts {
		a := full()
		a.Why, a.Readme, a.Version, a.State = text, text, text, mirror.Missing
		a.Owner.Because, a.Owner.Registry, a.Owner.Others = text, text, []string{text}
		a.Manifest = &mirror.About{Description: text, License: text, Homepage: text, Repository: text, Keywords: []string{text}, Maintainers: []string{text}, Published: text,
			Deprecated: text, Dependencies: []mirror.Requirement{{Name: text, Range: text, Kind: text}}}
		a.Tarball.File, a.Tarball.Integrity, a.Tarball.Arrivals = text, text, []mirror.Arrival{{Source: text, From: text}, {Source: "car", From: text}}
		a.Signature = &mirror.Signature{Keys: []string{text}, Error: text}
		a.Checks = []mirror.Check{{What: text, Result: mirror.Failed, Detail: text}}
		a.Tags = map[string]string{text: text, "latest": text}
		a.Versions = []mirror.Listed{{Version: text, Published: text, Deprecated: text, CID: text}}
		a.NotListed = []mirror.Held{{Version: text, Reason: text, Detail: text}, {Version: text, Detail: text}}
		if bad := unknown(t, get(&fake{account: a}, "/-/web/package/left-pad", browsers).Body.String()); len(bad) > 0 {
			t.Errorf("%q brings %q", text, bad)
		}
		f := &fake{status: mirror.TableStatus{Overlaps: []mirror.Overlap{{Name: npm.Name(text), Claim: text, Open: text}}, Registries: []mirror.RegistryStatus{
			{Registry: text, Scopes: []string{text}, Claims: []npm.Name{npm.Name(text)}, Status: mirror.Status{Name: text, Told: text, Error: text, Unavailable: 1, LastUnavailable: text}}, {Registry: "b"},
		}}}
		if bad := unknown(t, get(f, "/", browsers).Body.String()); len(bad) > 0 {
			t.Errorf("%q brings %q to the state", text, bad)
		}
	}
	if unknown(t, `<p onclick=x><script></script><a href="javascript:x">`) == nil {
		t.Fatal("the test finds nothing")
	}
}
