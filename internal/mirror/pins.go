package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

var (
	// ErrPinned is returned by Unpin for a version of a package that is pinned whole.
	ErrPinned = errors.New("the package is pinned with every version")
	// ErrNotPinned is returned by Unpin for what is not pinned.
	ErrNotPinned = errors.New("not pinned")
	// ErrNoCache is returned by a Table that has no Cache.
	ErrNoCache = errors.New("nothing is ever evicted here")
)

// errUnlisted is why nothing of a pin can be fetched.
var errUnlisted = errors.New("no registry here lists it")

// PinLabel is the label under which the node pins the files of pinned packages. No
// registry's releases have it.
const PinLabel = ipfs.QuietLabel

// Pin is a package whose documents and tarballs stay whatever happens.
type Pin struct {
	Name npm.Name `json:"name"`
	// Versions are those that stay, sorted; none: every one that the registry lists.
	Versions []string `json:"versions,omitempty"`
	// Files are the CIDs that these were when they were last fetched, in the part
	// whose label is Part.
	Files []string `json:"files,omitempty"`
	Part  string   `json:"part,omitempty"`
}

// Specs are how people say what is pinned: NAME, or each NAME@VERSION.
func (p Pin) Specs() (specs []string) {
	for _, v := range p.Versions {
		specs = append(specs, string(p.Name)+"@"+v)
	}
	if len(specs) == 0 {
		return []string{string(p.Name)}
	}
	return specs
}

// Pins are what is pinned, by name.
func (c *Cache) Pins() []Pin {
	c.mu.Lock()
	defer c.mu.Unlock()
	pins := make([]Pin, 0, len(c.pins))
	for _, p := range c.pins {
		pins = append(pins, p)
	}
	slices.SortFunc(pins, func(a, b Pin) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return pins
}

// Pin keeps a version of a package, or with "" the whole of it, from now on. It is
// durable when it returns. What has to be fetched for it is not fetched yet.
func (c *Cache) Pin(name npm.Name, version string) error {
	return c.changePin(name, func(p *Pin, had bool) error {
		switch {
		case version == "":
			p.Versions = nil
		case had && len(p.Versions) == 0: // whole already
		case !slices.Contains(p.Versions, version):
			p.Versions = append(slices.Clone(p.Versions), version)
			slices.Sort(p.Versions)
		}
		return nil
	})
}

// Unpin lets go of what Pin was given: ErrNotPinned, ErrPinned. Its files go when it is
// their turn.
func (c *Cache) Unpin(name npm.Name, version string) error {
	return c.changePin(name, func(p *Pin, had bool) error {
		switch {
		case !had:
			return ErrNotPinned
		case version == "":
			p.Name = ""
			return nil
		case len(p.Versions) == 0:
			return ErrPinned
		case !slices.Contains(p.Versions, version):
			return ErrNotPinned
		}
		p.Versions = slices.DeleteFunc(slices.Clone(p.Versions), func(v string) bool { return v == version })
		if len(p.Versions) == 0 {
			p.Name = ""
		}
		return nil
	})
}

// changePin changes the pin of name, durably. One whose Name is "" then is none.
func (c *Cache) changePin(name npm.Name, change func(p *Pin, had bool) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, had := c.pins[name]
	p.Name = name
	if err := change(&p, had); err != nil {
		return fmt.Errorf("pin of %s: %w", name, err)
	}
	row := append([]byte{pinRows}, name...)
	if p.Name == "" {
		if err := c.db.Delete(row, pebble.Sync); err != nil {
			return fmt.Errorf("unpin %s: %w", name, err)
		}
		c.dropPin(name)
	} else {
		raw, err := json.Marshal(p)
		if err == nil {
			err = c.db.Set(row, raw, pebble.Sync)
		}
		if err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
		c.setPin(p)
	}
	select {
	case c.repin <- struct{}{}:
	default:
	}
	return nil
}

// setPin needs mu, or the cache to itself; so does dropPin.
func (c *Cache) setPin(p Pin) {
	c.dropPin(p.Name)
	c.pins[p.Name] = p
	for _, key := range p.keys() {
		c.pinned[key]++
	}
}

func (c *Cache) dropPin(name npm.Name) {
	for _, key := range c.pins[name].keys() {
		if c.pinned[key]--; c.pinned[key] <= 0 {
			delete(c.pinned, key)
		}
	}
	delete(c.pins, name)
}

// keys are the keys of its files.
func (p Pin) keys() (keys []string) {
	for _, text := range p.Files {
		if file, err := cid.Decode(text); err == nil {
			keys = append(keys, p.Part+"\x00"+string(file.Bytes()))
		}
	}
	return keys
}

// setFiles writes down which files a pin is, unless it changed since.
func (c *Cache) setFiles(was Pin, part string, files []string) error {
	return c.changePin(was.Name, func(p *Pin, had bool) error {
		if !had || !slices.Equal(p.Versions, was.Versions) {
			return ErrNotPinned
		}
		p.Part, p.Files = part, files
		return nil
	})
}

// anchor has a part's node pin the files of pins, and no others. A node pins only what
// is whole.
func (c *Cache) anchor(ctx context.Context, part *Part) error {
	if part.node == nil {
		return nil
	}
	c.anchoring.Lock()
	defer c.anchoring.Unlock()
	want := map[cid.Cid]bool{}
	for _, p := range c.Pins() {
		for _, text := range p.Files {
			if file, err := cid.Decode(text); err == nil && p.Part == part.label {
				want[file] = true
			}
		}
	}
	have, err := part.node.Pins(ctx, PinLabel)
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range have {
		if !want[root] {
			errs = append(errs, part.node.Unpin(ctx, PinLabel, root))
		}
		delete(want, root)
	}
	for root := range want {
		errs = append(errs, part.node.Pin(ctx, PinLabel, cid.Undef, root))
	}
	return errors.Join(errs...)
}

// Pinned is what was done for one pin.
type Pinned struct {
	Name    npm.Name `json:"name"`
	Files   int      `json:"files"`             // that are here
	Missing []string `json:"missing,omitempty"` // versions and documents that are not, and why
}

// pinPatience is for all files of one package to come.
const pinPatience = 30 * time.Minute

// fetchPin brings what a pin keeps: both documents as they are in the newest list, and
// the tarballs. What cannot be had is in Missing, and tried again. The node does not pin it
// yet: that is anchor's.
func (t *Table) fetchPin(ctx context.Context, pin Pin) (Pinned, error) {
	got := Pinned{Name: pin.Name}
	m := t.of(pin.Name)
	if m == nil || m.o.Cached == nil {
		return got, errUnlisted
	}
	if !m.enter() {
		return got, ErrClosed
	}
	defer m.leave()
	files, missing, done, err := m.gather(ctx, Bundled{Name: pin.Name, Versions: pin.Versions})
	defer done() // nothing of it is evicted before it is pinned
	got.Files, got.Missing = len(files), missing
	if err != nil {
		return got, err
	}
	if now, ok := m.o.Cached.c.pin(pin.Name); !ok || now.Part != m.o.Cached.label || !slices.Equal(now.Files, files) {
		if err := m.o.Cached.c.setFiles(pin, m.o.Cached.label, files); err != nil {
			return got, err
		}
	}
	return got, nil
}

// Fetch brings versions of a package here, with no versions all that are listed, both of
// its documents, and the registry's signing keys, as Pin does but without pinning them. What cannot be had is in Missing.
// It returns ErrOtherIntegrity, and fetches no tarball, where the registry's document
// contradicts b.Integrity.
func (t *Table) Fetch(ctx context.Context, b Bundled) (Pinned, error) {
	got := Pinned{Name: b.Name}
	m := t.of(b.Name)
	if m == nil {
		return got, errUnlisted
	}
	if !m.enter() {
		return got, ErrClosed
	}
	defer m.leave()
	files, missing, done, err := m.gather(ctx, b)
	done()
	got.Files, got.Missing = len(files), missing
	return got, err
}

// gather brings both documents of a package, as they are in the newest list, the keys that
// its registry's packages are signed with, and the tarballs of its versions in b, of all
// where there are none. Their CIDs come back sorted;
// missing is what cannot be had, and why. Nothing of it is evicted before done is called,
// which is never nil. Errors are those of Fetch.
func (m *Mirror) gather(ctx context.Context, b Bundled) (files, missing []string, done func(), err error) {
	name, want := b.Name, b.Versions
	var uses []func()
	done = func() {
		for _, f := range uses {
			f()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pinPatience)
	defer cancel()
	dir, listed, err := m.entry(name)
	if err == nil && !listed {
		err = errUnlisted
	}
	if err != nil {
		return nil, nil, done, err
	}
	p, err := m.directory(ctx, dir)
	if err != nil {
		return nil, nil, done, fmt.Errorf("fetch %s: %w", name, err)
	}
	keep := func(what string, k kind, root cid.Cid) {
		if err := m.bring(ctx, dag{m: m, kind: k, root: root}); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", what, err))
			return
		}
		files = append(files, root.String())
	}
	for _, root := range []cid.Cid{p.packument, p.install} {
		if root.Defined() {
			uses = append(uses, m.using(ctx, name, root))
			keep("document", documents, root)
		}
	}
	// Without them nobody can check a signature here once there is no network.
	if _, err := m.keys(ctx); err != nil {
		missing = append(missing, fmt.Sprintf("signing keys: %v", err))
	}
	versions, err := m.versions(ctx, name, dir)
	if err != nil {
		return files, missing, done, fmt.Errorf("fetch %s: %w", name, err)
	}
	if err := b.Hold(func(version string) (npm.Dist, bool) {
		l, ok := versions[version]
		return l.dist, ok
	}); err != nil {
		return files, missing, done, err
	}
	for version := range versions {
		if len(want) > 0 && !slices.Contains(want, version) {
			delete(versions, version)
		}
	}
	for _, version := range want {
		if _, ok := versions[version]; !ok {
			missing = append(missing, version+": the registry lists no such version")
		}
	}
	for version, l := range versions {
		file := l.file
		at, err := m.listed(ctx, name, file)
		root := at.CID
		if err == nil {
			uses = append(uses, m.using(ctx, name, root))
			if m.o.Cached == nil || !m.o.Cached.knows(root) {
				err = m.ask(ctx, name, file)
			}
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", version, err))
			continue
		}
		keep(version, tarballs, root)
	}
	slices.Sort(files)
	slices.Sort(missing)
	return files, missing, done, ctx.Err()
}

func (c *Cache) pin(name npm.Name) (Pin, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pins[name]
	return p, ok
}

// bring fetches each block of d's file that is not on this machine, be it in memory.
func (m *Mirror) bring(ctx context.Context, d dag) error {
	return m.below(d.root, func(c cid.Cid) ([]cid.Cid, error) {
		b, err := d.fetch(ctx, c)
		if err != nil {
			return nil, err
		}
		return unixfs.Children(b)
	})
}

// listedFile is a version's tarball as the listed document has it.
type listedFile struct {
	file string
	dist npm.Dist
}

// versions are the tarballs of a package's versions, as its listed document says.
func (m *Mirror) versions(ctx context.Context, name npm.Name, dir cid.Cid) (map[string]listedFile, error) {
	p, err := m.eitherPackument(ctx, name, dir)
	if err != nil {
		return nil, err
	}
	files := map[string]listedFile{}
	err = m.decoded(ctx, p, func(raw []byte) error {
		doc, err := npm.ParsePackument(raw)
		if err != nil {
			return fmt.Errorf("read packument of %s: %w", name, err)
		}
		for version, manifest := range doc.Versions {
			if file, err := npm.TarballFile(name, version, manifest.Dist.Tarball); err == nil {
				files[version] = listedFile{file, manifest.Dist}
			}
		}
		return nil
	})
	return files, err
}

// ask gets a tarball as a client does, checked, and drops it.
func (m *Mirror) ask(ctx context.Context, name npm.Name, file string) (err error) {
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/" + string(name) + "/-/" + file}, Header: http.Header{}}
	w := &discard{header: http.Header{}, status: http.StatusOK}
	defer func() {
		if recover() != nil { // abort: its cause is in the log
			err = fmt.Errorf("%s: %w", file, ErrUnavailable)
		}
	}()
	m.serveTarball(newPatientWriter(w, 4*m.o.Deadline), r.WithContext(ctx), name, file)
	if w.status != http.StatusOK {
		return fmt.Errorf("%s: %w: %s", file, ErrUnavailable, strings.TrimSpace(string(w.said)))
	}
	return nil
}

// discard is a response that nobody reads but its failure.
type discard struct {
	header http.Header
	status int
	said   []byte
}

func (d *discard) Header() http.Header    { return d.header }
func (d *discard) WriteHeader(status int) { d.status = status }
func (d *discard) Write(p []byte) (int, error) {
	if d.status != http.StatusOK && len(d.said) < 1000 {
		d.said = append(d.said, p[:min(len(p), 1000)]...)
	}
	return len(p), nil
}

// cache is what the mirrors of a table share, nil where there is none.
func (t *Table) cache() *Cache {
	for _, r := range t.rows {
		if r.Mirror != nil && r.o.Cached != nil {
			return r.o.Cached.c
		}
	}
	return nil
}

// keepPins fetches what is pinned, now and as lists and pins change, until ctx ends.
// What was missing is tried again after pinAgain.
func (t *Table) keepPins(ctx context.Context) {
	c := t.cache()
	if c == nil {
		return
	}
	if err := c.recover(ctx); err != nil && ctx.Err() == nil {
		c.o.Log.ErrorContext(ctx, "files of the cache are not counted", "error", err)
	}
	var seen []*head
	var tried time.Time
	for {
		changed := false
		select {
		case <-c.repin:
			changed = true
		default:
		}
		var now []*head
		for _, r := range t.rows {
			now = append(now, r.head.Load())
		}
		if changed || !slices.Equal(now, seen) || !tried.IsZero() && time.Since(tried) > pinAgain {
			seen, tried = now, time.Time{}
			if !t.fetchPins(ctx, c) {
				tried = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// pinAgain is how long what was missing of pins is left alone.
const pinAgain = time.Minute

// fetchPins fetches all pins and says whether nothing was missing.
func (t *Table) fetchPins(ctx context.Context, c *Cache) bool {
	whole := true
	for _, p := range c.Pins() {
		got, err := t.fetchPin(ctx, p)
		if ctx.Err() != nil {
			return false
		}
		if err != nil || len(got.Missing) > 0 {
			whole = false
			c.o.Log.DebugContext(ctx, "what is pinned is not all here", "package", string(p.Name), "missing", got.Missing, "error", err)
		}
	}
	c.mu.Lock()
	parts := make([]*Part, 0, len(c.parts))
	for _, part := range c.parts {
		parts = append(parts, part)
	}
	c.mu.Unlock()
	for _, part := range parts {
		if err := c.anchor(ctx, part); err != nil && ctx.Err() == nil {
			whole = false
			c.o.Log.WarnContext(ctx, "the node does not pin what is pinned", "error", err)
		}
	}
	c.trimSoon()
	return whole
}

// Pin pins a version of a package, or with "" the whole of it, and fetches it: ErrNoCache.
// What keeps it from being fetched is in Missing, for it is pinned all the same.
func (t *Table) Pin(ctx context.Context, name npm.Name, version string) (Pinned, error) {
	c := t.cache()
	if c == nil {
		return Pinned{Name: name}, ErrNoCache
	}
	if err := c.Pin(name, version); err != nil {
		return Pinned{Name: name}, err
	}
	p, _ := c.pin(name)
	got, err := t.fetchPin(ctx, p)
	if m := t.of(name); err == nil {
		err = c.anchor(ctx, m.o.Cached)
	}
	if err != nil {
		got.Missing = append(got.Missing, err.Error())
	}
	return got, nil
}

// Unpin lets go of what Pin was given: ErrNoCache, ErrNotPinned, ErrPinned.
func (t *Table) Unpin(name npm.Name, version string) error {
	c := t.cache()
	if c == nil {
		return ErrNoCache
	}
	return c.Unpin(name, version)
}

// Pins are what is pinned, by name.
func (t *Table) Pins() []Pin {
	if c := t.cache(); c != nil {
		return c.Pins()
	}
	return []Pin{}
}
