package mirror

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/gzip"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// State is what becomes of a request for a package, or for one version of it.
type State string

const (
	Served     State = "served"
	Unlisted   State = "not listed"  // the registry that is asked for the name does not have it
	Missing    State = "not held"    // the package is listed, that version is not
	Withheld   State = "withheld"    // there is a reason for which it is in no release
	Refused    State = "refused"     // the bytes at hand are not what the packument says
	Unreadable State = "unavailable" // it is listed, and no source gave its document
	Unsynced   State = "no list yet"
	TooOld     State = "too old"   // Options.MaxStale
	Unknown    State = "not known" // only what bundles brought is here, and none had the name
	Nobodys    State = "nobody's"
)

// pulledLater is what is said of a name that is not listed beside an Origin.
const pulledLater = "it is not listed, and is asked of upstream when a client wants it"

// Account is all that is known here of a package and of one version of it.
type Account struct {
	Name    npm.Name `json:"name"`
	Version string   `json:"version,omitempty"` // the one that was asked for, else what `latest` names, else the highest
	State   State    `json:"state"`
	Why     string   `json:"why"` // one sentence
	Owner   Owner    `json:"owner"`

	Release *Release `json:"release,omitempty"` // that says so
	Record  *Record  `json:"record,omitempty"`  // by which it came
	Stale   bool     `json:"stale,omitempty"`   // that record has expired
	Since   *Since   `json:"since,omitempty"`   // where the version, else the package, first stood

	Directory string `json:"directory,omitempty"` // CID of the package's directory
	Document  string `json:"document,omitempty"`  // CID of its packument, compressed
	Manifest  *About `json:"manifest,omitempty"`
	// FirstSeen is when the ledger of this process first saw the version.
	FirstSeen time.Time  `json:"first_seen,omitzero"`
	Tarball   *Tarball   `json:"tarball,omitempty"`
	Signature *Signature `json:"signature,omitempty"`
	Checks    []Check    `json:"checks,omitempty"`

	Tags     map[string]string `json:"dist_tags,omitempty"`
	Versions []Listed          `json:"versions,omitempty"` // the highest first
	// NotListed are versions that the registry does not have, by name; where no
	// reason is known, because its packument dates them.
	NotListed []Held `json:"not_listed,omitempty"`
	// NotSelected says that it is missing because the selection of the ledger in this
	// process does not ask for it.
	NotSelected bool `json:"not_selected,omitempty"`

	Readme string `json:"-"` // Markdown of whoever published it, at most MaxReadme bytes
}

// MaxReadme bounds Account.Readme in bytes; what is longer is cut, as npm itself cuts.
const MaxReadme = 64 << 10

// Owner is the registry that is asked for a name.
type Owner struct {
	Registry string `json:"registry,omitempty"` // its label, where there are several
	Address  string `json:"address,omitempty"`  // IPNS name, or "/ipfs/CID" of a frozen release
	Because  string `json:"because,omitempty"`  // why it and no other
	// Others are the labels of those that list the name too, and are never asked.
	Others []string `json:"others,omitempty"`
}

// Since is a release in which something stood, the first one unless AtLeast.
type Since struct {
	Number  uint64    `json:"number"`
	Created time.Time `json:"created"`
	// AtLeast says that the releases before it could not be read in time.
	AtLeast bool `json:"at_least,omitempty"`
}

// Tarball is a version's tarball as the list has it.
type Tarball struct {
	File      string    `json:"file"`
	CID       string    `json:"cid"`
	Size      uint64    `json:"size"`                // bytes of its blocks
	Integrity string    `json:"integrity,omitempty"` // what the packument says
	Shasum    string    `json:"shasum,omitempty"`
	Upstream  string    `json:"upstream"` // where the packument says that it came from
	Here      bool      `json:"here"`     // it lies on this machine
	Arrivals  []Arrival `json:"arrivals,omitempty"`
}

// Signature is the verdict on a version's registry signatures.
type Signature struct {
	npm.Verdict `json:"verdict"` // "" where one by a known key is wrong
	Keys        []string         `json:"keys,omitempty"` // ids of those that it is signed by
	// Ring says whose keys it was held against: "npm" for those that are compiled
	// in, "release" for those that the registry's publisher gives.
	Ring         string `json:"ring,omitempty"`
	Error        string `json:"error,omitempty"`
	Attestations bool   `json:"attestations,omitempty"` // the packument says that there are some
}

// Check is one of the checks between a registry's key and a version's bytes.
type Check struct {
	What   string `json:"what"`   // record, list, blocks, integrity, signature
	Result Result `json:"result"` // of it
	Detail string `json:"detail"`
}

// Result is a check's.
type Result string

const (
	Passed  Result = "passed"
	Failed  Result = "failed"
	Pending Result = "pending" // it is made when the bytes come
	None    Result = "none"    // there is nothing to check
)

// Listed is a version that the registry has.
type Listed struct {
	Version    string `json:"version"`
	Published  string `json:"published,omitempty"` // as the packument says, RFC 3339
	Deprecated string `json:"deprecated,omitempty"`
	CID        string `json:"cid,omitempty"` // of its tarball
}

// Held is what is kept out of a registry's list.
type Held struct {
	Version string `json:"version,omitempty"` // "" for the whole package
	Reason  string `json:"reason,omitempty"`  // a short code of the ledger's or the publisher's; "" where none is known
	Detail  string `json:"detail"`
}

// About is what a version's manifest says, as its publisher wrote it.
type About struct {
	Description  string        `json:"description,omitempty"`
	License      string        `json:"license,omitempty"`
	Homepage     string        `json:"homepage,omitempty"`
	Repository   string        `json:"repository,omitempty"`
	Keywords     []string      `json:"keywords,omitempty"`
	Maintainers  []string      `json:"maintainers,omitempty"`
	Published    string        `json:"published,omitempty"` // RFC 3339
	Deprecated   string        `json:"deprecated,omitempty"`
	Unpacked     int64         `json:"unpacked_size,omitempty"` // bytes
	Scripts      bool          `json:"install_scripts,omitempty"`
	Dependencies []Requirement `json:"dependencies,omitempty"`
}

// Requirement is one dependency.
type Requirement struct {
	Name  string `json:"name"`
	Range string `json:"range"`
	Kind  string `json:"kind,omitempty"` // "", "peer" or "optional"
}

// Background is what the ledger and the publisher beside a mirror know of a package.
type Background struct {
	FirstSeen map[string]time.Time // by version
	NotListed []Held
	// Ledger says that there is one, in which what is not selected is not asked for.
	// Selection are the lines of its selection that take versions of the package.
	Ledger    bool
	Selection []string
}

// selected says what of a package is selected.
func (b Background) selected() string {
	const most = 5
	switch n := len(b.Selection); {
	case n == 0:
		return "nothing selects the package by its name"
	case n > most:
		return fmt.Sprintf("what is selected is %s and %d more", strings.Join(b.Selection[:most], ", "), n-most)
	}
	return "what is selected is " + strings.Join(b.Selection, ", ")
}

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
			a.Why = pulledLater
		}
		for _, w := range known.NotListed {
			if w.Version == "" || w.Version == version {
				a.State, a.Why = Withheld, w.text()
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
	since := m.since(ctx, h.Release, &a, far)
	a.Since = &since
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

// fields are those of a packument's top, and of one of its manifests, that an account
// shows. They are of any type.
type fields struct {
	packumentHead
	Readme               jsontext.Value `json:"readme"`
	License              jsontext.Value `json:"license"`
	Homepage             jsontext.Value `json:"homepage"`
	Repository           jsontext.Value `json:"repository"`
	Scripts              jsontext.Value `json:"scripts"`
	HasInstallScript     jsontext.Value `json:"hasInstallScript"`
	PeerDependenciesMeta jsontext.Value `json:"peerDependenciesMeta"`
	Dist                 struct {
		Attestations jsontext.Value `json:"attestations"`
	} `json:"dist"`
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
		a.lacks(doc, known)
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

// readable is a readme within its bound, in memory of its own.
func readable(text string) string {
	return strings.Clone(strings.ToValidUTF8(text[:min(len(text), MaxReadme)], "\uFFFD"))
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

// choose settles which version is meant.
func (a *Account) choose(doc *npm.Packument) {
	if v, ok := doc.DistTags[a.Version]; ok {
		a.Version = v
	}
	if a.Version != "" {
		if doc.Versions[a.Version] == nil {
			if best := npm.MaxSatisfying(slices.Collect(maps.Keys(doc.Versions)), a.Version); best != "" {
				a.Version = best
			}
		}
		return
	}
	a.Version = doc.DistTags["latest"]
	if doc.Versions[a.Version] == nil {
		a.Version = ""
		for v := range doc.Versions {
			if a.Version == "" || npm.CompareVersions(v, a.Version) > 0 {
				a.Version = v
			}
		}
	}
}

// listVersions lists what the registry has.
func (a *Account) listVersions(doc *npm.Packument, cids map[string]unixfs.Link) {
	for v, one := range doc.Versions {
		l := Listed{Version: v, Published: doc.Time[v], Deprecated: one.Deprecated}
		if file, err := npm.TarballFile(a.Name, v, one.Dist.Tarball); err == nil && cids[file].CID.Defined() {
			l.CID = cids[file].CID.String()
		}
		a.Versions = append(a.Versions, l)
	}
	slices.SortFunc(a.Versions, func(x, y Listed) int { return npm.CompareVersions(y.Version, x.Version) })
}

// listMissing lists what it has not: with the ledger's reason, else what is wrong
// with the version, else because the packument, which keeps upstream's times, dates it.
func (a *Account) listMissing(doc *npm.Packument, known Background) {
	has := map[string]bool{"created": true, "modified": true, "unpublished": true}
	for v := range doc.Versions {
		has[v] = true
	}
	a.NotListed = nil
	for _, w := range known.NotListed {
		if !has[w.Version] || w.Version == "" {
			a.NotListed = append(a.NotListed, w)
			has[w.Version] = true
		}
	}
	for v, why := range doc.Bad {
		if !has[v] {
			a.NotListed = append(a.NotListed, Held{v, "document", why.Error()})
			has[v] = true
		}
	}
	for v, at := range doc.Time {
		if !has[v] && npm.ParseVersion(v) == nil {
			a.NotListed = append(a.NotListed, Held{Version: v, Detail: "upstream dates it " + at + "; whoever publishes this registry does not hold it, or upstream took it back"})
		}
	}
	slices.SortFunc(a.NotListed, func(x, y Held) int { return npm.CompareVersions(y.Version, x.Version) })
}

// lacks says why a version is not there: with a reason that is known, else, where there
// is a ledger, because it is not selected, as upstream's times show.
func (a *Account) lacks(doc *npm.Packument, known Background) {
	a.State, a.Why = Missing, fmt.Sprintf("release %d has other versions of it; its document says nothing of this one", a.Release.Number)
	if a.Version == "" {
		a.Why = fmt.Sprintf("release %d lists the name and no version of it", a.Release.Number)
	}
	for _, w := range a.NotListed {
		if w.Version == a.Version {
			if a.Why = w.text(); w.Reason != "" {
				a.State = Withheld
				return
			}
		}
	}
	if !known.Ledger || len(doc.Time) == 0 {
		return
	}
	dated := make([]string, 0, len(doc.Time))
	for v := range doc.Time {
		if npm.ParseVersion(v) == nil {
			dated = append(dated, v)
		}
	}
	at, ok := doc.Time[a.Version]
	if !ok {
		at, ok = doc.Time[npm.MaxSatisfying(dated, a.Version)]
	}
	if !ok {
		a.Why = "upstream's document has no such version"
		return
	}
	a.NotSelected = true
	a.Why = fmt.Sprintf("it is not selected: %s; upstream dates it %s", known.selected(), at)
}

func (w Held) text() string {
	if w.Reason == "" {
		return w.Detail
	}
	return w.Reason + ": " + w.Detail
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

// about is what the manifest of a version says, and what it leaves to the packument.
func about(doc *npm.Packument, version string, top, own fields) *About {
	s := summaryOf(doc.Name, top.packumentHead, map[string]string{"latest": version})
	about := &About{Description: s.Description, Keywords: s.Keywords, Published: doc.Time[version]}
	read(own.Description, &about.Description)
	for _, person := range s.Maintainers {
		about.Maintainers = append(about.Maintainers, person.Username)
	}
	text := func(field string, values ...jsontext.Value) (found string) {
		for _, raw := range values {
			var object map[string]jsontext.Value
			switch {
			case read(raw, &found) && found != "":
				return found
			case read(raw, &object) && read(object[field], &found):
				return found
			}
		}
		return ""
	}
	about.License = text("type", own.License, top.License)
	about.Homepage = text("url", own.Homepage, top.Homepage)
	about.Repository = text("url", own.Repository, top.Repository)
	v := doc.Versions[version]
	if v == nil {
		return about
	}
	about.Deprecated, about.Unpacked = v.Deprecated, v.Dist.UnpackedSize
	var scripts map[string]jsontext.Value
	read(own.Scripts, &scripts)
	for _, name := range []string{"preinstall", "install", "postinstall"} {
		about.Scripts = about.Scripts || scripts[name] != nil
	}
	for _, some := range []struct {
		kind string
		of   map[string]string
	}{{"", v.Dependencies}, {"peer", v.PeerDependencies}, {"optional", v.OptionalDependencies}} {
		for _, name := range slices.Sorted(maps.Keys(some.of)) {
			// npm repeats optional ones among the dependencies.
			if _, optional := v.OptionalDependencies[name]; some.kind == "" && optional {
				continue
			}
			about.Dependencies = append(about.Dependencies, Requirement{name, some.of[name], some.kind})
		}
	}
	return about
}

// since walks back from release r to the first one in which a's version, else its
// package, stood without a gap.
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
		if err == nil && a.Tarball != nil {
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
