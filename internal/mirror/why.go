package mirror

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/go-json-experiment/json"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/gzip"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

const (
	whyDeadline = 20 * time.Second // for an account, documents included
	// pastDeadline is for the releases before to be read.
	pastDeadline = 3 * time.Second
	maxPast      = 1000 // of them
)

// Account says what is known of a package. version is one, or a dist-tag, or "". far
// says that peers and gateways may be asked for releases before this one, else only
// those are read that lie here. Nothing is asked of upstream. Errors: npm.ErrName,
// ErrClosed, and what the store gives; everything else is a State.
func (t *Table) Account(ctx context.Context, name npm.Name, version string, far bool) (a Account, err error) {
	ctx, cancel := context.WithTimeout(ctx, whyDeadline)
	defer cancel()
	if _, err := npm.ParseName(string(name)); err != nil {
		return a, err
	}
	m := t.of(name)
	if m == nil {
		return Account{
			Name: name, Version: version, State: Nobodys,
			Why: "no registry here claims the name, and none is open to names that nobody claims",
		}, nil
	}
	if a, err = m.account(ctx, name, version, far); err == nil {
		a.Owner = t.ownerOf(name, m, a.State)
	}
	return a, err
}

// ownerOf says why m, and no other, is asked for a name.
func (t *Table) ownerOf(name npm.Name, m *Mirror, state State) Owner {
	at := slices.IndexFunc(t.rows, func(r Registry) bool { return r.Mirror == m })
	o := Owner{Registry: t.rows[at].Label, Address: m.name(), Because: "it is the only registry here"}
	_, byName := t.names[name]
	switch _, claimed := t.owner(name); {
	case byName:
		o.Because = "it claims this name: no other registry is asked for it, hit or miss"
	case claimed:
		o.Because = "it claims the scope " + name.Scope() + ": no other registry is asked for what is in it, hit or miss"
	case len(t.rows) == 1:
	case state == Unlisted:
		o.Because = "nobody claims the name and no open registry lists it; this is the last of them"
	default:
		o.Because = "nobody claims the name, and of the open registries this is the first that lists it"
	}
	for _, r := range t.rows {
		if r.Mirror == m || r.head.Load() == nil {
			continue
		}
		if _, listed, err := r.entry(name); err == nil && listed {
			o.Others = append(o.Others, r.Label)
		}
	}
	return o
}

// account is Account of this mirror.
func (m *Mirror) account(ctx context.Context, name npm.Name, version string, far bool) (a Account, err error) {
	if !m.enter() {
		return a, ErrClosed
	}
	defer m.leave()
	a = Account{Name: name, Version: version, State: Served}
	var known Background
	if m.o.Background != nil {
		if known, err = m.o.Background(ctx, name); err != nil {
			return a, fmt.Errorf("account of %s: %w", name, err)
		}
		a.NotListed = known.NotListed
	}
	dir, listed, err := m.entry(name)
	switch {
	case errors.Is(err, ErrNotSynced):
		a.State, a.Why = Unsynced, "no list of this registry has come yet"
		return a, nil
	case errors.Is(err, ErrStale):
		a.State, a.Why = TooOld, oneLine(err)
		return a, nil
	case errors.Is(err, errNotInBundle):
		a.State, a.Why = Unknown, errNotInBundle.Error()+": whether the registry lists it is not known"
		return a, nil
	case err != nil:
		return a, fmt.Errorf("account of %s: %w", name, err)
	}
	h := m.head.Load()
	a.provenance(m, h)
	if !listed {
		a.State, a.Why = Unlisted, fmt.Sprintf("release %d does not list it", h.Release.Number)
		if m.o.Origin != nil {
			a.Why, a.Pulled = pulledLater, true
		}
		for _, w := range known.NotListed {
			if w.Version == "" || w.Version == version {
				a.State, a.Why, a.Pulled = Withheld, w.text(), false
				return a, nil
			}
		}
		if known.Ledger && m.o.Origin == nil {
			a.Why += "; " + known.selected()
			a.NotSelected = len(known.Selection) == 0
		}
		return a, nil
	}
	a.Directory = dir.String()
	p, err := m.directory(ctx, dir)
	if err == nil {
		a.Document = p.packument.String()
		err = m.read(ctx, &a, dir, p, known)
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, npm.ErrPackument) && !errors.Is(err, unixfs.ErrMalformed) {
			return a, fmt.Errorf("account of %s: %w", name, err)
		}
		a.State, a.Why = Unreadable, "it is listed, and its document cannot be read: "+oneLine(err)
		return a, nil
	}
	if a.Tarball != nil {
		since := m.since(ctx, h.Release, &a, far)
		a.Since = &since
	}
	return a, nil
}

// provenance is what stands for the list.
func (a *Account) provenance(m *Mirror, h *head) {
	r := releaseOf(h.Release)
	a.Release = &r
	high := m.high.Load()
	if high.Value == "" {
		a.Checks = append(a.Checks, Check{"record", None, "this release was asked for by its CID, which is all that is trusted"})
	} else {
		a.Record = &Record{Sequence: high.Sequence, Value: high.Value, EOL: high.EOL}
		a.Stale = m.o.Now().After(high.EOL)
		text := fmt.Sprintf("sequence %d, signed by the key of %s", high.Sequence, m.name())
		if a.Stale {
			text += "; it has expired, and no newer one was found"
		}
		a.Checks = append(a.Checks, Check{"record", Passed, text})
	}
	a.Checks = append(a.Checks, Check{"list", Passed, fmt.Sprintf("rebuilt here from %d packages, it has the CID that is asked for", h.Release.Packages)})
}

// read fills a from the package's directory p at dir.
func (m *Mirror) read(ctx context.Context, a *Account, dir cid.Cid, p pkg, known Background) error {
	listed, err := m.listedPackument(ctx, a.Name, dir, false)
	if err != nil {
		return err
	}
	cids := map[string]unixfs.Link{}
	if p.tarballs.Defined() {
		for l, err := range unixfs.List(ctx, dag{m: m, kind: directories}, p.tarballs) {
			if err != nil {
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			cids[l.Name] = l
		}
	}
	var doc *npm.Packument
	var top, own fields
	err = m.decoded(ctx, listed, func(raw []byte) (err error) {
		if doc, err = npm.ParsePackument(raw); err != nil {
			return err
		}
		if err := json.Unmarshal(raw, &top); err != nil {
			return fmt.Errorf("%w: %w", npm.ErrPackument, err)
		}
		a.choose(doc)
		if one := top.Versions[a.Version]; one != nil {
			_ = json.Unmarshal(one, &own) // what is of another shape is not shown
		}
		a.Manifest = about(doc, a.Version, top, own)
		if !read(top.Readme, &a.Readme) || a.Readme == "" {
			read(own.Readme, &a.Readme)
		}
		a.Readme = readable(a.Readme)
		return nil
	})
	if err != nil {
		return err
	}
	a.Tags = doc.DistTags
	a.listVersions(doc, cids)
	a.listMissing(doc, known)
	v := doc.Versions[a.Version]
	if v == nil {
		a.lacks(doc, known, m.o.Origin != nil)
		return nil
	}
	a.FirstSeen = known.FirstSeen[a.Version]
	a.Checks = append(a.Checks, Check{"blocks", Passed, "each is checked against its CID when it comes"})
	file, err := npm.TarballFile(a.Name, a.Version, v.Dist.Tarball)
	link, ok := cids[file]
	if err != nil || !ok {
		a.State, a.Why = Missing, "its document is listed, and the tarball that this names is not"
		return nil
	}
	a.Why = fmt.Sprintf("release %d lists it", a.Release.Number)
	a.Tarball = &Tarball{
		File: file, CID: link.CID.String(), Size: link.Tsize, Integrity: v.Dist.Integrity, Shasum: v.Dist.Shasum, Upstream: v.Dist.Tarball,
	}
	if a.Tarball.Arrivals, err = m.arrivals(link.CID); err != nil {
		return err
	}
	_, a.Tarball.Here = m.pieces(ctx, link.CID)
	if err := m.checks(ctx, a, link.CID, v.Dist, doc.Time[a.Version]); err != nil {
		return err
	}
	if a.Readme == "" && a.Tarball.Here {
		a.Readme = m.readmeIn(ctx, link.CID, v.Dist)
	}
	a.Signature.Attestations = own.Dist.Attestations.Kind() == '{'
	return nil
}

const (
	maxReadmeTarball = 16 << 20 // bytes of a tarball that is looked into for a readme
	maxReadmeAt      = 64 << 20 // bytes, decompressed, before it
)

// readmeIn is the readme in a tarball that lies here, where its bytes are what the
// packument says: registries have ceased to put it into the document. "" for none.
func (m *Mirror) readmeIn(ctx context.Context, c cid.Cid, d npm.Dist) string {
	integrity, err := npm.ParseIntegrity(d)
	if err != nil {
		return ""
	}
	data, err := unixfs.ReadFile(ctx, heldBlocks{m}, c, maxReadmeTarball)
	if err != nil {
		return ""
	}
	verifier := integrity.NewVerifier()
	verifier.Write(data)
	if verifier.Check() != nil {
		return ""
	}
	plain, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return ""
	}
	files := tar.NewReader(io.LimitReader(plain, maxReadmeAt))
	for ctx.Err() == nil {
		at, err := files.Next()
		if err != nil {
			return ""
		}
		_, name, _ := strings.Cut(path.Clean(at.Name), "/") // below "package" or whatever it is called
		switch strings.ToLower(name) {
		case "readme.md", "readme.markdown", "readme":
			if at.Typeflag != tar.TypeReg {
				continue
			}
			text, err := io.ReadAll(io.LimitReader(files, MaxReadme))
			if err != nil {
				return ""
			}
			return readable(string(text))
		}
	}
	return ""
}

// checks says what is known of a version's bytes and signatures.
func (m *Mirror) checks(ctx context.Context, a *Account, c cid.Cid, d npm.Dist, published string) error {
	integrity := Check{"integrity", Pending, "checked before the last byte is sent"}
	raw, closer, err := m.db.Get(verifiedMark(a.Name, a.Tarball.File, c))
	switch {
	case err == nil:
		integrity.Result, integrity.Detail = Passed, "the bytes matched "+string(raw)+" here"
		closer.Close()
	case err != pebble.ErrNotFound:
		return err
	}
	if _, err := npm.ParseIntegrity(d); err != nil {
		integrity.Result, integrity.Detail = Failed, oneLine(err)
	}
	if why, ok := m.wrong.get(string(a.Name) + "\x00" + a.Tarball.File); ok && integrity.Result != Passed {
		integrity.Result, integrity.Detail = Failed, why
	}
	if integrity.Result == Failed {
		a.State, a.Why = Refused, integrity.Detail
	}
	a.Checks = append(a.Checks, integrity)

	s := &Signature{}
	a.Signature = s
	for _, one := range d.Signatures {
		s.Keys = append(s.Keys, one.KeyID)
	}
	s.Ring = "npm"
	s.Verdict, err = npm.VerifySignature(npm.PublicKeys(), a.Name, a.Version, d, published)
	if s.Verdict == npm.UnknownKey {
		// A registry of its own has keys of its own, for which the list's
		// signature speaks.
		if doc, keysErr := m.keys(ctx); keysErr == nil && doc != nil {
			if ring, keysErr := npm.ParseKeys(doc); keysErr == nil {
				s.Ring = "release"
				s.Verdict, err = npm.VerifySignature(ring, a.Name, a.Version, d, published)
			}
		}
	}
	check := Check{"signature", None, "nobody signed it"}
	switch {
	case err != nil:
		s.Error = oneLine(err)
		check.Result, check.Detail = Failed, s.Error
	case s.Verdict == npm.Verified && s.Ring == "npm":
		check.Result, check.Detail = Passed, "by npm's key "+strings.Join(s.Keys, ", ")
	case s.Verdict == npm.Verified:
		check.Result, check.Detail = Passed, "by "+strings.Join(s.Keys, ", ")+", a key that this registry's publisher gives"
	case s.Verdict == npm.UnknownKey:
		check.Detail = "by " + strings.Join(s.Keys, ", ") + ", which is no key of npm's nor of this registry's"
	}
	a.Checks = append(a.Checks, check)
	return nil
}

// since walks back from release r to the first one in which a's version stood without a
// gap.
func (m *Mirror) since(ctx context.Context, r index.Release, a *Account, far bool) Since {
	ctx, cancel := context.WithTimeout(ctx, pastDeadline)
	defer cancel()
	var g unixfs.Getter = heldBlocks{m}
	if far && !m.o.Offline {
		g = dag{m: m, kind: directories}
	}
	s := Since{Number: r.Number, Created: r.Created}
	for range maxPast {
		if !r.Previous.Defined() {
			return s
		}
		before, err := index.ReadRelease(ctx, g, r.Previous)
		if err != nil || before.Number >= r.Number {
			break
		}
		e, err := index.Lookup(ctx, g, before.List, a.Name)
		if err == nil {
			_, err = unixfs.Path(ctx, g, e.CID, index.TarballsName, a.Tarball.File)
		}
		if errors.Is(err, index.ErrNotFound) || errors.Is(err, unixfs.ErrNotFound) {
			return s
		}
		if err != nil {
			break
		}
		s.Number, s.Created, r = before.Number, before.Created, before
	}
	s.AtLeast = true
	return s
}

// heldBlocks are those on this machine.
type heldBlocks struct{ m *Mirror }

// Get implements unixfs.Getter.
func (h heldBlocks) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if b, ok := h.m.blocks.get(c.KeyString()); ok {
		return b, nil
	}
	return h.m.held(ctx, c)
}
