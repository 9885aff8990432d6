// Package npmtest is a small true npm registry for tests: packuments in both
// forms, tarballs with their real digests, ETags, and the feed and listing of
// npm's replicate service as it is today. It is fed from txtar archives and
// says the same for the same archive every time, but for the port in its URLs.
// It knows nothing of the project's other packages but internal/npm.
package npmtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Registry is a running registry. Its methods may run concurrently.
type Registry struct {
	URL     string // no slash at its end
	FeedURL string // root document of the replicate service; the feed is at "/_changes" below

	fail   func(format string, args ...any)
	server *http.Server

	mu       sync.Mutex
	packages map[string]*pkg
	seq      int64 // of the last change; sparse, as npm's
	clock    time.Time
	faults   []fault
	requests map[string]int
	stale    int // documents from before a change that were served
	signer   *ecdsa.PrivateKey
	keys     []byte // the document of signer; nil: it lists none
}

// Fault handles a request in the registry's place, or returns false.
type Fault func(w http.ResponseWriter, r *http.Request) bool

type fault struct {
	prefix string
	handle Fault
}

type pkg struct {
	name     string
	order    []string // versions in order of publication
	versions map[string]*version
	tags     map[string]string
	times    map[string]string
	created  time.Time
	modified time.Time
	rev      int
	seq      int64
	deleted  bool
	edit     func([]byte) []byte
	// before and lag are what a slow CDN still serves, and for how many requests.
	before []byte
	lag    int
	// hide keeps the next change out of the feed; hidden says that the last one is.
	hide, hidden bool
}

type version struct {
	manifest map[string]json.RawMessage
	tarball  []byte
	file     string
}

// New starts a registry on loopback that holds the txtar archive and ends with
// the test. In the archive "left-pad@1.0.0/package.json" and its like are the
// files of a version, published in the order in which they come, one
// hour apart from 2020-01-01; "left-pad/dist-tags.json" sets dist-tags, which
// otherwise are {"latest": the highest release}. A missing package.json is made
// up; name and version in it are set.
func New(t testing.TB, archive string) *Registry {
	t.Helper()
	r, err := Start("127.0.0.1:0", archive)
	if err != nil {
		t.Fatal(err)
	}
	r.fail = func(format string, args ...any) { t.Helper(); t.Fatalf(format, args...) }
	t.Cleanup(r.Close)
	return r
}

// Start is New without a test, at an address of choice. Publish and its kind panic on errors.
func Start(listen, archive string) (*Registry, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("npmtest: %w", err)
	}
	r := &Registry{
		URL:      "http://" + l.Addr().String(),
		fail:     func(format string, args ...any) { panic(fmt.Sprintf(format, args...)) },
		packages: map[string]*pkg{},
		requests: map[string]int{},
		seq:      100,
		clock:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	r.FeedURL = r.URL + feedPath
	if err := r.publish(archive); err != nil {
		l.Close()
		return nil, err
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go r.server.Serve(l) // ends with Close
	return r, nil
}

// Close ends the registry and its connections.
func (r *Registry) Close() { r.server.Close() }

// Shutdown ends the registry when the requests in flight have been answered, or ctx ends.
func (r *Registry) Shutdown(ctx context.Context) error { return r.server.Shutdown(ctx) }

// Publish adds what the txtar archive holds, as New says. A version that exists
// already is an error, as at npm.
func (r *Registry) Publish(archive string) {
	if err := r.publish(archive); err != nil {
		r.fail("npmtest: %v", err)
	}
}

// Add is Publish that returns its error.
func (r *Registry) Add(archive string) error { return r.publish(archive) }

func (r *Registry) publish(archive string) error {
	type release struct {
		name, version string
		files         []txtar.File
	}
	var releases []*release
	tags := map[string]map[string]string{}
	for _, f := range txtar.Parse([]byte(archive)).Files {
		name, version, file, err := splitFile(f.Name)
		if err != nil {
			return err
		}
		if version == "" {
			t := map[string]string{}
			if file != "dist-tags.json" {
				return fmt.Errorf("%s: neither name@version/file nor name/dist-tags.json", f.Name)
			}
			if err := json.Unmarshal(f.Data, &t); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
			tags[name] = t
			continue
		}
		i := slices.IndexFunc(releases, func(r *release) bool { return r.name == name && r.version == version })
		if i < 0 {
			i = len(releases)
			releases = append(releases, &release{name: name, version: version})
		}
		releases[i].files = append(releases[i].files, txtar.File{Name: file, Data: f.Data})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var changed []string
	touch := func(name string) *pkg {
		p := r.packages[name]
		if p == nil {
			p = &pkg{name: name}
			r.packages[name] = p
		}
		if p.deleted || p.versions == nil {
			p.deleted = false
			p.versions, p.tags, p.times, p.order = map[string]*version{}, map[string]string{}, map[string]string{}, nil
			p.created = r.clock.Add(time.Hour)
		}
		if !slices.Contains(changed, name) {
			changed = append(changed, name)
			if len(p.order) > 0 {
				p.before = r.document(p)
			}
		}
		return p
	}
	for _, rel := range releases {
		p := touch(rel.name)
		if p.times[rel.version] != "" {
			return fmt.Errorf("%s@%s: cannot publish over a version that exists", rel.name, rel.version)
		}
		v, err := r.pack(rel.name, rel.version, rel.files)
		if err != nil {
			return err
		}
		r.clock = r.clock.Add(time.Hour)
		p.modified = r.clock
		p.times[rel.version] = stamp(r.clock)
		p.versions[rel.version] = v
		p.order = append(p.order, rel.version)
		p.tags["latest"] = highest(p.order)
	}
	for name, t := range tags {
		p := touch(name)
		for tag, v := range t {
			if p.versions[v] == nil {
				return fmt.Errorf("%s: dist-tag %s names %s, which does not exist", name, tag, v)
			}
		}
		p.tags = t
		if p.modified.IsZero() || len(releases) == 0 {
			r.clock = r.clock.Add(time.Hour)
			p.modified = r.clock
		}
	}
	for _, name := range changed {
		r.bump(r.packages[name])
	}
	return nil
}

// Unpublish removes one version, whose name stays in `time`; of a package
// without versions a stub is left.
func (r *Registry) Unpublish(name, version string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil || p.versions[version] == nil {
		r.fail("npmtest: unpublish %s@%s: it does not exist", name, version)
		return
	}
	p.before = r.document(p)
	delete(p.versions, version)
	p.order = slices.DeleteFunc(p.order, func(v string) bool { return v == version })
	for tag, v := range p.tags {
		if v == version {
			delete(p.tags, tag)
		}
	}
	if len(p.order) > 0 && p.tags["latest"] == "" {
		p.tags["latest"] = highest(p.order)
	}
	r.clock = r.clock.Add(time.Hour)
	p.modified = r.clock
	r.bump(p)
}

// Deprecate sets a version's deprecation message.
func (r *Registry) Deprecate(name, version, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil || p.versions[version] == nil {
		r.fail("npmtest: deprecate %s@%s: it does not exist", name, version)
		return
	}
	raw, err := json.Marshal(message)
	if err != nil {
		panic(err) // a string
	}
	p.before = r.document(p)
	v := p.versions[version]
	v.manifest = maps.Clone(v.manifest)
	v.manifest["deprecated"] = raw
	r.clock = r.clock.Add(time.Hour)
	p.modified = r.clock
	r.bump(p)
}

// Delete removes the whole package: 404, and a deletion in the feed.
func (r *Registry) Delete(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil || p.deleted {
		r.fail("npmtest: delete %s: it does not exist", name)
		return
	}
	p.deleted, p.versions, p.before, p.lag = true, nil, nil, 0
	r.bump(p)
}

// Edit makes the registry serve what edit returns in place of the package's
// full document: a hostile or broken one. nil ends that. It is a change in the feed.
func (r *Registry) Edit(name string, edit func(document []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil {
		r.fail("npmtest: edit %s: it does not exist", name)
		return
	}
	p.edit = edit
	r.bump(p)
}

// SetTarball replaces the bytes of a version's tarball and leaves its digests.
func (r *Registry) SetTarball(name, version string, tarball []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil || p.versions[version] == nil {
		r.fail("npmtest: set tarball of %s@%s: it does not exist", name, version)
		return
	}
	p.versions[version].tarball = tarball
}

// Sign makes the registry sign, with a new ECDSA P-256 key: what it holds and
// what will be published carries dist.signatures as npm's registry makes them,
// and /-/npm/v1/keys lists the key. It is no change in the feed. Signatures are
// other bytes each time.
func (r *Registry) Sign() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // it reads randomness alone
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err) // it is a P-256 key
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signer = key
	r.keys, err = json.Marshal(map[string]any{"keys": []any{map[string]any{
		"expires": nil, "keyid": keyID(der), "keytype": "ecdsa-sha2-nistp256", "scheme": "ecdsa-sha2-nistp256",
		"key": base64.StdEncoding.EncodeToString(der),
	}}})
	if err != nil {
		panic(err) // they are strings
	}
	for _, p := range r.packages {
		for v, held := range p.versions {
			held.manifest = maps.Clone(held.manifest)
			r.sign(p.name, v, held.manifest)
		}
	}
}

// Keys is the document that /-/npm/v1/keys gives, nil before Sign.
func (r *Registry) Keys() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys
}

func keyID(der []byte) string {
	sum := sha256.Sum256(der)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// sign puts a signature into a manifest's dist. r.mu is held.
func (r *Registry) sign(name, v string, manifest map[string]json.RawMessage) {
	var dist map[string]any
	err := json.Unmarshal(manifest["dist"], &dist)
	var der []byte
	if err == nil {
		der, err = x509.MarshalPKIXPublicKey(&r.signer.PublicKey)
	}
	var sig []byte
	if err == nil {
		digest := sha256.Sum256(fmt.Appendf(nil, "%s@%s:%s", name, v, dist["integrity"]))
		sig, err = ecdsa.SignASN1(rand.Reader, r.signer, digest[:])
	}
	if err == nil {
		dist["signatures"] = []map[string]string{{"keyid": keyID(der), "sig": base64.StdEncoding.EncodeToString(sig)}}
		manifest["dist"], err = json.Marshal(dist)
	}
	if err != nil {
		panic(err) // pack made it
	}
}

// Tarball returns the bytes of a version's tarball, nil where there is none.
func (r *Registry) Tarball(name, version string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.packages[name]; p != nil && p.versions[version] != nil {
		return p.versions[version].tarball
	}
	return nil
}

// Lag makes the registry serve the document from before the last change for the next requests
// requests for the package, as npm's CDN does for seconds after a change.
func (r *Registry) Lag(name string, requests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil || p.before == nil {
		r.fail("npmtest: lag %s: nothing came before", name)
		return
	}
	p.lag = requests
}

// Stale tells how many documents from before a change were served, as Lag asks for.
func (r *Registry) Stale() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stale
}

// Hide keeps the next change of a package out of the feed, as if its row had
// been dropped: the listing has it, and the feed never will.
func (r *Registry) Hide(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil {
		p = &pkg{name: name, deleted: true}
		r.packages[name] = p
	}
	p.hide = true
}

// Announce puts a change of any name at all into the feed and the listing. The
// registry has no such package: 404.
func (r *Registry) Announce(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil {
		p = &pkg{name: name}
		r.packages[name] = p
	}
	r.bump(p)
}

// Fault lets handle answer requests whose escaped path begins with prefix; it
// returns false to leave one to the registry. The last that was set is asked first.
func (r *Registry) Fault(prefix string, handle func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, fault{prefix, handle})
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Requests tells how often an escaped path ("/@types%2fnode") was asked for, by any method.
func (r *Registry) Requests(path string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[path]
}

// Head is the sequence of the last change in the feed.
func (r *Registry) Head() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seq
}

// bump records a change of p in the feed. r.mu is held.
func (r *Registry) bump(p *pkg) {
	r.seq += 3 // npm's sequence has gaps
	p.seq = r.seq
	p.rev++
	p.hide, p.hidden = false, p.hide
}

func (p *pkg) revision() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", p.name, p.rev))
	return fmt.Sprintf("%d-%s", p.rev, hex.EncodeToString(sum[:16]))
}

// splitFile reads "@s/n@1.0.0/lib/a.js" and "@s/n/dist-tags.json".
func splitFile(s string) (name, version, file string, err error) {
	parts := 2
	if strings.HasPrefix(s, "@") {
		parts = 3
	}
	seg := strings.SplitN(s, "/", parts)
	if len(seg) < parts {
		return "", "", "", fmt.Errorf("%q: not name@version/file", s)
	}
	name, file = strings.Join(seg[:parts-1], "/"), seg[parts-1]
	if at := strings.LastIndexByte(name, '@'); at > 0 {
		name, version = name[:at], name[at+1:]
		if err := npm.ParseVersion(version); err != nil {
			return "", "", "", fmt.Errorf("%q: %w", s, err)
		}
	}
	if _, err := npm.ParseName(name); err != nil {
		return "", "", "", fmt.Errorf("%q: %w", s, err)
	}
	if file == "" || path.Clean("/"+file) != "/"+file {
		return "", "", "", fmt.Errorf("%q: its path is not clean", s)
	}
	return name, version, file, nil
}

func highest(versions []string) string {
	return slices.MaxFunc(versions, func(a, b string) int {
		if pa, pb := npm.IsPrerelease(a), npm.IsPrerelease(b); pa != pb {
			if pa {
				return -1
			}
			return 1
		}
		return npm.CompareVersions(a, b)
	})
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// pack makes a version's tarball, as npm pack does, and its manifest.
func (r *Registry) pack(name, v string, files []txtar.File) (*version, error) {
	at := slices.IndexFunc(files, func(f txtar.File) bool { return f.Name == "package.json" })
	if at < 0 {
		files = append(slices.Clone(files), txtar.File{Name: "package.json", Data: []byte("{}")})
		at = len(files) - 1
	}
	manifest := map[string]json.RawMessage{}
	if err := json.Unmarshal(files[at].Data, &manifest); err != nil {
		return nil, fmt.Errorf("%s@%s/package.json: %w", name, v, err)
	}
	set := func(key string, value any) {
		raw, err := json.Marshal(value)
		if err != nil {
			panic(err) // values are ours
		}
		manifest[key] = raw
	}
	set("name", name)
	set("version", v)
	pkgJSON, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return nil, err
	}
	files[at].Data = append(pkgJSON, '\n')

	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	unpacked := 0
	for _, f := range files {
		h := &tar.Header{Name: "package/" + f.Name, Mode: 0o644, Size: int64(len(f.Data)),
			ModTime: time.Date(1985, 10, 26, 8, 15, 0, 0, time.UTC), Format: tar.FormatUSTAR}
		if err := errors.Join(tw.WriteHeader(h)); err != nil {
			return nil, fmt.Errorf("%s@%s/%s: %w", name, v, f.Name, err)
		}
		if _, err := tw.Write(f.Data); err != nil {
			return nil, err
		}
		unpacked += len(f.Data)
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	tarball := buf.Bytes()
	s1, s512 := sha1.Sum(tarball), sha512.Sum512(tarball)
	file := npm.Name(name).Base() + "-" + v + ".tgz"
	set("_id", name+"@"+v)
	set("_hasShrinkwrap", false)
	set("dist", map[string]any{
		"integrity":    "sha512-" + base64.StdEncoding.EncodeToString(s512[:]),
		"shasum":       hex.EncodeToString(s1[:]),
		"tarball":      r.URL + "/" + name + "/-/" + file,
		"fileCount":    len(files),
		"unpackedSize": unpacked,
	})
	if r.signer != nil {
		r.sign(name, v, manifest)
	}
	return &version{manifest: manifest, tarball: tarball, file: file}, nil
}

// document renders p's full packument. r.mu is held.
func (r *Registry) document(p *pkg) []byte {
	put := func(dst []byte, key string, value any) []byte {
		k, _ := json.Marshal(key)
		v, err := json.Marshal(value)
		if err != nil {
			panic(err) // all values were read from JSON
		}
		if n := len(dst); n > 0 && dst[n-1] != '{' {
			dst = append(dst, ',')
		}
		return append(append(append(dst, k...), ':'), v...)
	}
	doc := put([]byte("{"), "_id", p.name)
	doc = put(doc, "_rev", p.revision())
	doc = put(doc, "name", p.name)
	times := map[string]any{"created": stamp(p.created), "modified": stamp(p.modified)}
	for v, t := range p.times {
		times[v] = t
	}
	if len(p.order) == 0 {
		times["unpublished"] = map[string]any{"name": "someone", "time": stamp(p.modified), "versions": []string{}}
		return append(put(doc, "time", times), '}')
	}
	doc = put(doc, "dist-tags", p.tags)
	doc = append(doc, `,"versions":{`...)
	for _, v := range p.order {
		doc = put(doc, v, p.versions[v].manifest)
	}
	doc = append(doc, '}')
	doc = put(doc, "time", times)
	latest := p.versions[p.tags["latest"]]
	for _, key := range []string{"description", "license", "homepage", "repository"} {
		if latest != nil && latest.manifest[key] != nil {
			doc = put(doc, key, latest.manifest[key])
		}
	}
	doc = put(doc, "readme", "")
	return append(doc, '}')
}
