package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

func (w *world) build(p *Publisher) index.Release {
	w.t.Helper()
	r, _, err := p.Build(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// document reads one of a package's documents as a reader of the release does.
func (w *world) document(dir cid.Cid, name string) []byte {
	w.t.Helper()
	link, err := unixfs.Path(context.Background(), w.node, dir, name)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := unixfs.ReadFile(context.Background(), w.node, link.CID, 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	if strings.HasSuffix(name, ".gz") {
		if raw, err = document.Decode(bytes.NewReader(raw), 0, 1<<20); err != nil {
			w.t.Fatal(err)
		}
	}
	return raw
}

type abbreviated struct {
	Name     string            `json:"name"`
	Modified string            `json:"modified"`
	DistTags map[string]string `json:"dist-tags"`
	Time     map[string]string `json:"time"`
	Versions map[string]struct {
		Description string `json:"description"`
		Dist        struct {
			Tarball string `json:"tarball"`
			CID     string `json:"cid"`
		} `json:"dist"`
	} `json:"versions"`
}

func parse(t *testing.T, raw []byte) abbreviated {
	t.Helper()
	var a abbreviated
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return a
}

func TestBuild(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	w.ledger.hold(t, "@scope/thing", []string{"1.0.0", "2.0.0"}, "1.0.0")
	p, stop := w.start()
	defer stop()
	seen := Progress{}
	p.o.Progress = func(g Progress) { seen = g }
	r, changed, err := p.Build(t.Context())
	if err != nil || !changed {
		t.Fatalf("%v, %v", changed, err)
	}
	if r.Number != 1 || r.Packages != 2 || r.Versions != 3 || r.Next != p.o.Next || len(r.Peers) != 1 ||
		len(r.Sources) != 1 || r.Sources[0] != (index.Source{ID: "ledger-1", Cursor: "2"}) {
		t.Errorf("%+v", r)
	}
	if seen != (Progress{Done: 2, Total: 2}) {
		t.Errorf("progress: %+v", seen)
	}

	whole, err := p.o.Index.Entry("left-pad")
	if err != nil {
		t.Fatal(err)
	}
	held := w.ledger.packages["left-pad"]
	link, err := unixfs.Path(t.Context(), w.node, whole.CID, "packument.json.gz")
	if err != nil || link.CID != held.Document.CID || link.Tsize != held.Document.Tsize {
		t.Errorf("an untouched document is stored twice: %+v, %v", link, err)
	}
	for _, v := range held.Versions {
		link, err := unixfs.Path(t.Context(), w.node, whole.CID, "-", v.File)
		if err != nil || link.CID != v.CID || link.Tsize != v.Tsize {
			t.Errorf("%s: %+v, %v", v.File, link, err)
		}
	}

	part, err := p.o.Index.Entry("@scope/thing")
	if err != nil {
		t.Fatal(err)
	}
	held = w.ledger.packages["@scope/thing"]
	tarball := held.Versions[0].CID.String()
	full := parse(t, w.document(part.CID, "packument.json.gz"))
	if len(full.Versions) != 1 || full.DistTags["latest"] != "1.0.0" || full.Versions["1.0.0"].Description != "d" {
		t.Errorf("curated: %+v", full)
	}
	install := parse(t, w.document(part.CID, "install.json.gz"))
	if v := install.Versions["1.0.0"]; len(install.Versions) != 1 || v.Dist.CID != tarball || v.Description != "" ||
		!strings.HasPrefix(v.Dist.Tarball, "https://registry.example.test/") || install.Modified == "" || install.Time["1.0.0"] == "" {
		t.Errorf("install: %+v", install)
	}
	page := parse(t, w.document(part.Gateway.CID, "index.html"))
	want := "http://127.0.0.1:8080/ipns/" + w.signer.IPNSName().String() + "/@scope/thing/-/thing-1.0.0.tgz"
	if v := page.Versions["1.0.0"]; v.Dist.Tarball != want || v.Dist.CID != "" || page.Time["1.0.0"] == "" {
		t.Errorf("page: %+v", page)
	}

	// Nothing moved: nothing is built.
	if again, changed, err := p.Build(t.Context()); err != nil || changed || again.Root != r.Root {
		t.Errorf("again: %+v, %v, %v", again, changed, err)
	}
}

func TestBuildWithoutGateway(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	io := IndexOptions(NoGateway, w.signer.IPNSName())
	io.FS = w.disk
	ix, err := index.Create("state/other", io)
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	p, stop := w.start(func(o *Options) { o.Index = ix })
	defer stop()
	r := w.publish(p)
	if r.Release.Parameters.Gateway != "" {
		t.Errorf("%+v", r.Release.Parameters)
	}
	if _, err := unixfs.Path(t.Context(), w.node, r.CID, "left-pad", "install.json.gz"); err != nil {
		t.Error(err)
	}
	if _, err := unixfs.Path(t.Context(), w.node, r.CID, "left-pad", "index.html"); !errors.Is(err, unixfs.ErrNotFound) {
		t.Errorf("index.html: %v", err)
	}
}

// An index whose documents another program wrote is not built on.
func TestBuildOtherDocuments(t *testing.T) {
	w := newWorld(t)
	ix, err := index.Create("state/other", index.Options{FS: w.disk, Documents: "other-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	p, stop := w.start(func(o *Options) { o.Index = ix })
	defer stop()
	if _, _, err := p.Build(t.Context()); !errors.Is(err, index.ErrParameters) || !Lasting(err) {
		t.Errorf("got %v", err)
	}
}

// What a gateway is shown is read as npm reads it: the page, then the tarball
// that the page names, at a path below the registry's own.
func TestGatewayWalk(t *testing.T) {
	versions := map[string]string{"left-pad": "1.0.0", "@scope/thing": "2.0.0-rc.1", "@s.c~/o'd(d)!*": "1.0.0"}
	files := map[string]string{"left-pad": "left-pad-1.0.0.tgz", "@scope/thing": "thing+x 100%#?é.tgz", "@s.c~/o'd(d)!*": "..odd%2f&=\"<>.tgz"}
	fill := func(w *world) {
		for name, version := range versions {
			w.ledger.hold(t, name, []string{version}, version)
			p := w.ledger.packages[npm.Name(name)]
			p.Versions[0].File = files[name]
			w.ledger.set(p)
		}
	}
	walk := func(w *world, root cid.Cid, base string) {
		t.Helper()
		for name, version := range versions {
			dir, err := unixfs.Path(t.Context(), w.node, root, strings.Split(name, "/")...)
			if err != nil {
				t.Fatal(err)
			}
			page := parse(t, w.document(dir.CID, "index.html"))
			tarball := page.Versions[version].Dist.Tarball
			rest, ok := strings.CutPrefix(tarball, base+name+"/-/")
			u, err := url.Parse(tarball)
			if !ok || err != nil || strings.ContainsAny(rest, "/ ?#\"<>é") || u.RawQuery != "" || u.Fragment != "" {
				t.Errorf("%s: tarball %q, %v", name, tarball, err)
				continue
			}
			path := strings.SplitN(strings.TrimPrefix(u.Path, "/"), "/", 3)
			if path[0] != "ipns" || path[1] != w.signer.IPNSName().String() {
				t.Errorf("%s: tarball %q", name, tarball)
			}
			file, err := unixfs.Path(t.Context(), w.node, root, strings.Split(path[2], "/")...)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := unixfs.ReadFile(t.Context(), w.node, file.CID, 1<<20)
			if want := "tarball of " + name + "@" + version; err != nil || string(raw) != want {
				t.Errorf("%s: %q, %v; want %q", tarball, raw, err, want)
			}
		}
	}
	var lists []index.List
	var roots []cid.Cid
	for seed := range byte(2) {
		w := newWorld(t)
		w.signer = testSigner(t, seed+1)
		fill(w)
		p, stop := w.start()
		defer stop()
		r := w.publish(p)
		base := DefaultGatewayOrigin + "/ipns/" + w.signer.IPNSName().String() + "/"
		if r.Release.Parameters.Gateway+"/" != base || r.Packages != len(versions) {
			t.Errorf("%+v", r.Release)
		}
		walk(w, r.CID, base)
		for name := range versions {
			e, err := index.Lookup(t.Context(), w.node, r.Release.List, npm.Name(name))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unixfs.Lookup(t.Context(), w.node, e.CID, "index.html"); !errors.Is(err, unixfs.ErrNotFound) {
				t.Errorf("%s: index.html in the list: %v", name, err)
			}
		}
		if err := p.o.Index.Check(t.Context()); err != nil {
			t.Error(err)
		}
		lists, roots = append(lists, r.Release.List), append(roots, r.CID)
	}
	// Two keys over one ledger: one list, and each its own release.
	if lists[0] != lists[1] || roots[0] == roots[1] {
		t.Errorf("lists %v, releases %v", lists, roots)
	}
}

// One bad package is withheld with a reason, and stops no other.
func TestBuildWithheld(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "good", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "_registry", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "../escape", []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, "fine-then-bad", []string{"1.0.0"}, "1.0.0")
	w.ledger.holdRaw(t, "twice", []byte(`{"name":"twice","versions":{},"versions":{}}`), "1.0.0")
	w.ledger.holdRaw(t, "no-json", []byte(`<html>`), "1.0.0")
	w.ledger.hold(t, "no-gzip", []string{"1.0.0"}, "1.0.0")
	noGzip := w.ledger.packages["no-gzip"]
	noGzip.Document.CID = noGzip.Versions[0].CID
	w.ledger.set(noGzip)
	w.ledger.hold(t, "no-document", []string{"1.0.0"}, "1.0.0")
	noDocument := w.ledger.packages["no-document"]
	noDocument.Document = ledger.Document{}
	w.ledger.set(noDocument)
	w.ledger.hold(t, "large", []string{"1.0.0"}, "1.0.0")
	large := w.ledger.packages["large"]
	large.Document.Size = 1 << 40
	w.ledger.set(large)
	w.ledger.hold(t, "same-file", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	same := w.ledger.packages["same-file"]
	same.Versions[1].File = same.Versions[0].File
	w.ledger.set(same)
	w.ledger.hold(t, "unlisted", []string{"1.0.0"}, "1.0.0", "9.9.9")

	p, stop := w.start()
	defer stop()
	p.pageSize = 3
	w.build(p)
	w.ledger.holdRaw(t, "fine-then-bad", []byte(`[]`), "1.0.0")
	r := w.build(p)

	var names []string
	for e, err := range p.o.Index.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s:%d", e.Name, e.Versions))
	}
	if got := strings.Join(names, " "); got != "good:1 same-file:1 unlisted:1" {
		t.Errorf("listed: %s", got)
	}
	if r.Packages != 3 {
		t.Errorf("%+v", r)
	}
	withheld, err := p.Withheld()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range withheld {
		if x.Detail == "" {
			t.Errorf("no detail: %+v", x)
		}
		got = append(got, fmt.Sprintf("%s %s %s", x.Name, x.Version, x.Reason))
	}
	want := `../escape  name
_registry  reserved
fine-then-bad  document
large  document
no-document  document
no-gzip  document
no-json  document
same-file 1.1.0 same-file
twice  document
unlisted 9.9.9 not-in-document`
	if strings.Join(got, "\n") != want {
		t.Errorf("withheld:\n%s", strings.Join(got, "\n"))
	}
	// The one whose file came second is in no document either.
	e, err := p.o.Index.Entry("same-file")
	if err != nil {
		t.Fatal(err)
	}
	if doc := parse(t, w.document(e.CID, "packument.json.gz")); len(doc.Versions) != 1 || doc.DistTags["latest"] != "1.0.0" {
		t.Errorf("same-file: %+v", doc)
	}

	// Mended upstream, it is listed and no longer withheld; and a restart knows
	// what is withheld.
	w.ledger.hold(t, "twice", []string{"1.0.0"}, "1.0.0")
	w.build(p)
	stop()
	p, stop = w.start()
	defer stop()
	if withheld, err = p.Withheld(); err != nil || len(withheld) != 9 {
		t.Errorf("%d withheld, %v", len(withheld), err)
	}
}

func TestBuildRemovals(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"stays", "tombstone", "emptied"} {
		w.ledger.hold(t, name, []string{"1.0.0"}, "1.0.0")
	}
	p, stop := w.start()
	defer stop()
	if r := w.build(p); r.Packages != 3 {
		t.Fatalf("%+v", r)
	}
	gone := w.ledger.packages["tombstone"]
	gone.Deleted = true
	w.ledger.set(gone)
	w.ledger.hold(t, "emptied", []string{"1.0.0"})
	if r := w.build(p); r.Packages != 1 || r.Number != 2 {
		t.Errorf("%+v", r)
	}
}

// The list follows from what the ledger holds, not from the order in which it
// came, the size of pages, or how many workers there were.
func TestBuildIsAFunction(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var want index.List
	for run := range 6 {
		w := newWorld(t)
		order := random.Perm(40)
		p, stop := w.start(func(o *Options) { o.Workers = run + 1 })
		p.pageSize = 1 + random.IntN(20)
		for i, n := range order {
			name := fmt.Sprintf("package-%d", n)
			if n%3 == 0 {
				name = "@scope/" + name
			}
			if random.IntN(3) == 0 { // an earlier state, sometimes built
				w.ledger.hold(t, name, []string{"0.1.0"}, "0.1.0")
			}
			if i%7 == run {
				w.build(p)
			}
			w.ledger.hold(t, name, []string{"1.0.0", "1.1.0"}, "1.1.0")
		}
		r := w.build(p)
		stop()
		if run == 0 {
			want = r.List
		}
		if r.List != want || r.Packages != 40 {
			t.Errorf("run %d: %+v", run, r)
		}
	}
}

// Trouble with the node says nothing about a package: the build ends, the
// cursor stays, and the next build does it all.
func TestBuildNodeTrouble(t *testing.T) {
	for name, arm := range map[string]func(n *memNode, fail func() error){
		"reading": func(n *memNode, fail func() error) { n.failLocal = fail },
		"putting": func(n *memNode, fail func() error) { n.failPut = fail },
	} {
		for _, cause := range []error{ipfs.ErrAway, ipfs.ErrNotFound} {
			t.Run(name+" "+cause.Error(), func(t *testing.T) {
				w := newWorld(t)
				w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
				p, stop := w.start()
				defer stop()
				arm(w.node, func() error { return cause })
				if _, _, err := p.Build(t.Context()); !errors.Is(err, cause) {
					t.Errorf("got %v", err)
				}
				if withheld, err := p.Withheld(); err != nil || len(withheld) != 0 {
					t.Errorf("withheld: %+v, %v", withheld, err)
				}
				arm(w.node, nil)
				if r := w.build(p); r.Packages != 1 {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

func TestBuildEnds(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		w.ledger.hold(t, fmt.Sprintf("package-%d", i), []string{"1.0.0"}, "1.0.0")
	}
	p, stop := w.start()
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	p.o.Progress = func(Progress) { cancel() }
	if _, _, err := p.Build(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	p.o.Progress = nil
	if r := w.build(p); r.Packages != 20 {
		t.Errorf("%+v", r)
	}
}

func TestBuildLedgers(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	w.build(p)
	stop()
	w.ledger.head = 0
	p, stop = w.start()
	if _, _, err := p.Build(t.Context()); !errors.Is(err, ErrLedgerBehind) {
		t.Errorf("restored ledger: %v", err)
	}
	stop()
	w.ledger.id = "ledger-2"
	p, stop = w.start()
	defer stop()
	if _, _, err := p.Build(t.Context()); !errors.Is(err, ErrOtherLedger) {
		t.Errorf("another ledger: %v", err)
	}
}

// A new announcement is a new release, though the ledger stands still.
func TestBuildAnnouncements(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	first := w.build(p)
	stop()
	p, stop = w.start(func(o *Options) { o.Peers = nil })
	defer stop()
	r := w.build(p)
	if r.Number != 2 || len(r.Peers) != 0 || r.List != first.List {
		t.Errorf("%+v", r)
	}
}

var _ Ledger = (*ledger.Store)(nil)
var _ Ledger = (*ledger.Client)(nil)
var _ ipfs.Node = (*memNode)(nil)

// A file of what is withheld that cannot be read stops a build, and says which it is.
func TestWithheldUnreadable(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.publish(p)
	if err := replace(w.disk, p.withheldPath(), strings.NewReader("[{")); err != nil {
		t.Fatal(err)
	}
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	if _, _, err := p.Build(t.Context()); !errors.Is(err, ErrWithheld) || !strings.Contains(err.Error(), "withheld.json") {
		t.Errorf("Build: %v", err)
	}
	if _, err := p.Status(t.Context()); !errors.Is(err, ErrWithheld) {
		t.Errorf("Status: %v", err)
	}
}
