package mirror

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// pkg is a package's directory; what it lacks is undefined.
type pkg struct {
	packument, install, tarballs cid.Cid
}

// body is a document ready to be sent.
type body struct {
	data   []byte
	coding coding
	size   int64 // decompressed
}

func (b *body) reader() *bytes.Reader { return bytes.NewReader(b.data) }

// packument is one form of a package document as its source gave it: tarball
// URLs are still upstream's.
type packument struct {
	name        npm.Name
	id          string  // of its bytes and form, safe in an ETag
	file        cid.Cid // that it is in the list; undefined for Origin's
	abbreviated bool
	load        func(context.Context) (*body, error)
}

// upstreamDoc is what Origin answered lately.
type upstreamDoc struct {
	full    *body
	id      string
	missing bool // upstream has no such name
	at      time.Time
}

// directory reads a package's directory.
func (m *Mirror) directory(ctx context.Context, dir cid.Cid) (pkg, error) {
	if p, ok := m.packages.get(dir); ok {
		return p, nil
	}
	p, err := readDirectory(ctx, dag{m: m, kind: directories}, dir)
	if err != nil {
		return pkg{}, err
	}
	m.packages.put(dir, p, 384)
	m.announce(dir)
	if p.tarballs.Defined() && !m.o.Offline {
		// Whoever reads a document asks for tarballs next, and peers may be gone then.
		m.spawn(func() {
			ctx, cancel := context.WithTimeout(m.life, m.o.Deadline)
			defer cancel()
			_, _ = dag{m: m, kind: directories}.Get(ctx, p.tarballs)
		})
	}
	return p, nil
}

func readDirectory(ctx context.Context, g unixfs.Getter, dir cid.Cid) (p pkg, err error) {
	for _, e := range []struct {
		file string
		to   *cid.Cid
	}{{index.PackumentName, &p.packument}, {index.InstallName, &p.install}, {index.TarballsName, &p.tarballs}} {
		link, err := unixfs.Lookup(ctx, g, dir, e.file)
		switch {
		case errors.Is(err, unixfs.ErrNotFound):
		case err != nil:
			return pkg{}, fmt.Errorf("read package directory %s: %w", dir, err)
		default:
			*e.to = link.CID
		}
	}
	return p, nil
}

// packument finds the document of name in the wanted form: Origin's where there
// is one that answers in time and the package is not withheld, else the list's. It
// returns errNotFound where neither has the name.
func (m *Mirror) packument(ctx context.Context, name npm.Name, abbreviated bool) (*packument, error) {
	dir, listed, err := m.entry(name)
	unsynced := errors.Is(err, ErrNotSynced)
	if err != nil && !(unsynced && m.o.Origin != nil) {
		return nil, err
	}
	withheld, err := m.withheld(name)
	if err != nil {
		return nil, err
	}
	var originErr error
	// One that is withheld is asked for too: it may be so until it changes there.
	if m.o.Origin != nil {
		wait := ctx
		if listed {
			var cancel context.CancelFunc
			wait, cancel = context.WithTimeout(ctx, originPatience)
			defer cancel()
		}
		up, err := m.fromOrigin(wait, name)
		switch {
		case withheld != nil:
		case err == nil && !up.missing:
			return up.packument(name, abbreviated, m), nil
		case err != nil:
			originErr = err
		}
	}
	if !listed {
		return nil, cmp.Or(withheld, originErr, errNotFound)
	}
	return m.listedPackument(ctx, name, dir, abbreviated)
}

// withheld is the errWithheld of a package of which Origin is asked for nothing that is
// to be served; nil where there is none.
func (m *Mirror) withheld(name npm.Name) (held, err error) {
	if m.o.Origin == nil || m.o.Withheld == nil {
		return nil, nil
	}
	why, err := m.o.Withheld(name)
	if err != nil || why == "" {
		return nil, err
	}
	return fmt.Errorf("%s is %w: %s", name, errWithheld, why), nil
}

// listedPackument is the document that the list has of name.
func (m *Mirror) listedPackument(ctx context.Context, name npm.Name, dir cid.Cid, abbreviated bool) (*packument, error) {
	p, err := m.directory(ctx, dir)
	if err != nil {
		return nil, err
	}
	file := p.packument
	if abbreviated && p.install.Defined() {
		file = p.install
	} else {
		abbreviated = false // every client that takes the one takes the other
	}
	if !file.Defined() {
		return nil, fmt.Errorf("package directory of %s: %w: no packument", name, unixfs.ErrMalformed)
	}
	return &packument{
		name: name, id: file.String(), file: file, abbreviated: abbreviated,
		load: func(ctx context.Context) (*body, error) {
			defer m.using(ctx, name, file)()
			data, err := unixfs.ReadFile(ctx, dag{m: m, kind: documents, root: file}, file, maxCompressed)
			if err != nil {
				return nil, fmt.Errorf("read document of %s: %w", name, err)
			}
			if len(data) < 18 { // the least gzip member, RFC 1952
				return nil, fmt.Errorf("read document of %s: %w: no gzip member", name, unixfs.ErrMalformed)
			}
			// ISIZE, RFC 1952 section 2.3.1. A false one is found when the
			// document is decompressed, and ends that response.
			return &body{data, gzipped, int64(binary.LittleEndian.Uint32(data[len(data)-4:]))}, nil
		},
	}, nil
}

// eitherPackument is the form of the listed document that is here already, for
// what both say: a client that had the one must not wait for the other.
func (m *Mirror) eitherPackument(ctx context.Context, name npm.Name, dir cid.Cid) (*packument, error) {
	p, err := m.directory(ctx, dir)
	if err != nil {
		return nil, err
	}
	here := func(file cid.Cid) bool {
		if _, ok := m.bodies.get(file.String() + " "); ok {
			return true
		}
		_, err := m.held(ctx, file)
		return err == nil
	}
	full := p.install.Defined() && !here(p.install) && p.packument.Defined() && here(p.packument)
	return m.listedPackument(ctx, name, dir, !full)
}

// packument gives one form of what Origin sent.
func (u *upstreamDoc) packument(name npm.Name, abbreviated bool, m *Mirror) *packument {
	p := &packument{name: name, id: u.id, abbreviated: abbreviated}
	if !abbreviated {
		p.load = func(context.Context) (*body, error) { return u.full, nil }
		return p
	}
	p.id += ".install"
	p.load = func(ctx context.Context) (b *body, err error) {
		err = m.rendering(ctx, func() error {
			raw, err := document.Decode(u.full.reader(), 0, maxDocument)
			if err == nil {
				raw, err = npm.Abbreviate(raw, npm.AbbreviateOptions{Time: true})
			}
			if err != nil {
				return fmt.Errorf("abbreviate %s: %w", name, err)
			}
			b, err = compress(raw, gzipped)
			return err
		})
		return b, err
	}
	return p
}

// isUnknown says that Origin did not know name lately. What it said of names that do
// not exist lies apart: whoever makes them up must not push documents out.
func (m *Mirror) isUnknown(name npm.Name) bool {
	at, ok := m.unknown.get(name)
	return ok && m.o.Now().Sub(at) < originFresh
}

// fromOrigin asks Origin for the packument, unless it has answered lately.
func (m *Mirror) fromOrigin(ctx context.Context, name npm.Name) (*upstreamDoc, error) {
	if u, ok := m.origins.get(name); ok && m.o.Now().Sub(u.at) < originFresh {
		return u, nil
	}
	if m.isUnknown(name) {
		return &upstreamDoc{missing: true}, nil
	}
	return asked(ctx, m, "origin "+string(name), m.o.Deadline, func(ctx context.Context) (*upstreamDoc, error) {
		raw, err := m.o.Origin.Packument(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			m.unknown.put(name, m.o.Now(), int64(len(name))+128)
			return &upstreamDoc{missing: true}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: upstream: %w", ErrUnavailable, err)
		}
		m.stats.kinds[documents].bySource[fromUpstream].Add(int64(len(raw)))
		full, err := compress(raw, gzipped)
		if err != nil {
			return nil, err
		}
		digest := sha256.Sum256(raw)
		u := &upstreamDoc{full: full, id: "up-" + shortHash(digest[:]), at: m.o.Now()}
		m.origins.put(name, u, int64(len(full.data))+256)
		return u, nil
	})
}

func (m *Mirror) servePackument(w http.ResponseWriter, r *http.Request, name npm.Name) {
	ctx, cancel := context.WithTimeout(r.Context(), m.o.Deadline)
	defer cancel()
	base, ok := m.base(r)
	if !ok {
		sendError(w, r, http.StatusBadRequest, notAddressed)
		return
	}
	p, err := m.packument(ctx, name, acceptsAbbreviated(r))
	if err != nil {
		m.fail(w, r, err)
		return
	}
	accepts := strings.Join(r.Header.Values("Accept-Encoding"), ",")
	isNPM := strings.HasPrefix(r.UserAgent(), "npm/")
	// What is stored is gzip, and is sent as it is to whoever takes that. What is
	// made here is made as zstd just as well.
	asStored, as := negotiate(accepts, gzipped), negotiate(accepts, zstandard)
	etag, stored := p.etag(base, as), ""
	if isNPM {
		stored = p.etag("", asStored)
	}
	// Who holds the stored form got it because it is fit for npm, and that
	// follows from its bytes alone: the document need not be touched.
	if inm := r.Header.Get("If-None-Match"); inm != "" {
		if isNPM && matches(inm, stored) {
			sendNotModified(w, stored, cacheDocument, varyDocument)
			return
		}
		if matches(inm, etag) {
			sendNotModified(w, etag, cacheDocument, varyDocument)
			return
		}
	}
	if isNPM {
		fit, err := m.isPortable(ctx, p)
		if err != nil {
			m.fail(w, r, err)
			return
		}
		if fit {
			base, etag, as = "", stored, asStored
		}
	}
	b, err := m.rendition(ctx, p, base, as)
	if err != nil {
		m.fail(w, r, err)
		return
	}
	mediaType := "application/json"
	if p.abbreviated {
		mediaType = npm.AbbreviatedType
	}
	m.sendDocument(w, r, b, mediaType, etag, as)
}

// etag is a strong validator of the bytes that are sent: the document, its
// form, the address in its tarball URLs ("": as stored) and the encoding.
func (p *packument) etag(base string, as coding) string {
	var b strings.Builder
	b.Grow(len(p.id) + 24)
	b.WriteByte('"')
	b.WriteString(p.id)
	if base != "" {
		digest := sha256.Sum256([]byte(base))
		b.WriteByte('.')
		b.WriteString(shortHash(digest[:])[:12])
	}
	switch as {
	case gzipped:
		b.WriteString(".gz")
	case zstandard:
		b.WriteString(".zst")
	}
	b.WriteByte('"')
	return b.String()
}

func shortHash(digest []byte) string { return lowerBase32.EncodeToString(digest[:20]) }

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// rendition is the document with tarball URLs at base, "" for those it came with,
// compressed for a client that is to get it as that: gzip where that is identity,
// for nothing is kept decompressed. It is made once and kept.
func (m *Mirror) rendition(ctx context.Context, p *packument, base string, as coding) (*body, error) {
	key := p.id + " " + base
	if as == zstandard {
		key += " zstd"
	} else {
		as = gzipped
	}
	if b, ok := m.bodies.get(key); ok {
		m.usedAgain(ctx, p.file)
		return b, nil
	}
	b, err := shared(ctx, m, "body "+key, 2*m.o.Deadline, func(ctx context.Context) (*body, error) {
		if base == "" && as == gzipped {
			return p.load(ctx)
		}
		var b *body
		err := m.decoded(ctx, p, func(raw []byte) (err error) {
			if base != "" {
				raw, err = npm.RewriteTarballs(raw, func(version, upstreamURL string) string {
					return tarballURL(base, p.name, version, upstreamURL)
				})
				if err != nil {
					return fmt.Errorf("rewrite %s: %w", p.name, err)
				}
			}
			b, err = compress(raw, as)
			return err
		})
		return b, err
	})
	if err != nil {
		return nil, err
	}
	m.bodies.put(key, b, int64(len(b.data)+len(key)+128))
	return b, nil
}

// decoded calls use with the document's JSON as its source gave it. As long as that
// takes, it is one of the few that are in memory: use must not ask for another, nor
// wait for a client.
func (m *Mirror) decoded(ctx context.Context, p *packument, use func(raw []byte) error) error {
	b, err := m.rendition(ctx, p, "", gzipped)
	if err != nil {
		return err
	}
	return m.rendering(ctx, func() error {
		raw, err := document.Decode(b.reader(), 0, maxDocument)
		if err != nil {
			return fmt.Errorf("document of %s: %w", p.name, err)
		}
		return use(raw)
	})
}

// rendering calls f once few enough documents are in memory decoded.
func (m *Mirror) rendering(ctx context.Context, f func() error) error {
	select {
	case m.render <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: too many documents at once", ErrUnavailable)
	}
	defer func() { <-m.render }()
	return f()
}

// isPortable says whether npm itself turns every tarball URL of the document
// into one of the registry that it was given: that is so for URLs on npm's own
// host (replace-registry-host=npmjs, its default), and lockfiles then stay free
// of this mirror's address.
func (m *Mirror) isPortable(ctx context.Context, p *packument) (bool, error) {
	if fit, ok := m.portable.get(p.id); ok {
		return fit, nil
	}
	return shared(ctx, m, "portable "+p.id, 2*m.o.Deadline, func(ctx context.Context) (bool, error) {
		fit := true
		err := m.decoded(ctx, p, func(raw []byte) error {
			_, err := npm.RewriteTarballs(raw, func(version, upstreamURL string) string {
				fit = fit && upstreamURL == tarballURL(npm.DefaultRegistry(), p.name, version, upstreamURL)
				return upstreamURL
			})
			if err != nil {
				return fmt.Errorf("read tarball URLs of %s: %w", p.name, err)
			}
			return nil
		})
		if err == nil {
			m.portable.put(p.id, fit, int64(len(p.id))+64)
		}
		return fit, err
	})
}

// tarballURL is where a registry at base has the tarball.
func tarballURL(base string, name npm.Name, version, upstreamURL string) string {
	file, err := npm.TarballFile(name, version, upstreamURL)
	if err != nil {
		// Nothing is held under it; but no client is sent elsewhere either.
		file = url.PathEscape(name.Base() + "-" + version + ".tgz")
	}
	return base + "/" + string(name) + "/-/" + file
}

// compress makes a body of a document in this process.
func compress(raw []byte, as coding) (*body, error) {
	if as == zstandard {
		return &body{zstandardEncoder().EncodeAll(raw, make([]byte, 0, len(raw)/8+512)), as, int64(len(raw))}, nil
	}
	var out bytes.Buffer
	out.Grow(len(raw)/8 + 512)
	z, err := gzip.NewWriterLevel(&out, 5)
	if err == nil {
		_, err = z.Write(raw)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return &body{out.Bytes(), gzipped, int64(len(raw))}, nil
}

// zstandardEncoder may be used concurrently. Its window is the largest that
// every client must take, RFC 9659 section 3.
var zstandardEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	if err != nil {
		panic(err) // its options are constants
	}
	return e
})

// packumentHead is the fields that services read. They are kept raw, since
// upstream's may be of any type.
type packumentHead struct {
	Description jsontext.Value            `json:"description"`
	DistTags    jsontext.Value            `json:"dist-tags"`
	Versions    map[string]jsontext.Value `json:"versions"`
	Keywords    jsontext.Value            `json:"keywords"`
	Author      jsontext.Value            `json:"author"`
	Maintainers jsontext.Value            `json:"maintainers"`
	Homepage    jsontext.Value            `json:"homepage"`
	Repository  jsontext.Value            `json:"repository"`
	Bugs        jsontext.Value            `json:"bugs"`
	Time        jsontext.Value            `json:"time"`
}

func readHead(raw []byte) (packumentHead, map[string]string, error) {
	var h packumentHead
	if err := json.Unmarshal(raw, &h); err != nil {
		return h, nil, fmt.Errorf("%w: %w", npm.ErrPackument, err)
	}
	var tags map[string]string
	if len(h.DistTags) > 0 {
		if err := json.Unmarshal(h.DistTags, &tags); err != nil {
			return h, nil, fmt.Errorf("%w: dist-tags: %w", npm.ErrPackument, err)
		}
	}
	return h, tags, nil
}

// serveVersion answers /<name>/<version or tag> with one manifest.
func (m *Mirror) serveVersion(w http.ResponseWriter, r *http.Request, name npm.Name, want string) {
	ctx, cancel := context.WithTimeout(r.Context(), m.o.Deadline)
	defer cancel()
	base, ok := m.base(r)
	if !ok {
		sendError(w, r, http.StatusBadRequest, notAddressed)
		return
	}
	var manifest jsontext.Value
	err := m.full(ctx, name, func(raw []byte) error {
		raw, err := npm.RewriteTarballs(raw, func(version, upstreamURL string) string {
			return tarballURL(base, name, version, upstreamURL)
		})
		if err != nil {
			return err
		}
		head, tags, err := readHead(raw)
		if err != nil {
			return err
		}
		found := head.Versions[want]
		if found == nil {
			found = head.Versions[tags[want]]
		}
		manifest = bytes.Clone(found) // a part of raw
		return nil
	})
	if err != nil {
		m.fail(w, r, err)
		return
	}
	if manifest == nil {
		if withheld, err := m.withheld(name); err != nil || withheld != nil {
			m.fail(w, r, cmp.Or(err, withheld))
			return
		}
		sendError(w, r, http.StatusNotFound, "version not found: "+want+m.lookedIn(r))
		return
	}
	sendPart(w, r, manifest)
}

func (m *Mirror) serveDistTags(w http.ResponseWriter, r *http.Request, name npm.Name) {
	ctx, cancel := context.WithTimeout(r.Context(), m.o.Deadline)
	defer cancel()
	var tags map[string]string
	err := m.full(ctx, name, func(raw []byte) (err error) {
		_, tags, err = readHead(raw)
		return err
	})
	if err != nil {
		m.fail(w, r, err)
		return
	}
	if tags == nil {
		tags = map[string]string{}
	}
	data, err := json.Marshal(tags, json.Deterministic(true))
	if err != nil {
		m.fail(w, r, err)
		return
	}
	sendPart(w, r, data)
}

// full calls use with the full packument's JSON, as decoded does.
func (m *Mirror) full(ctx context.Context, name npm.Name, use func(raw []byte) error) error {
	p, err := m.packument(ctx, name, false)
	if err != nil {
		return err
	}
	return m.decoded(ctx, p, use)
}
