package mirror

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

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
	Since   *Since   `json:"since,omitempty"`   // where the version first stood

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
	// Pulled says that it is missing and asked of upstream once a client wants it.
	Pulled bool `json:"pulled,omitempty"`
	// Nowhere says that it is missing because upstream has no such version, as far as the
	// ledger in this process knows.
	Nowhere bool `json:"nowhere,omitempty"`

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
	FirstSeen map[string]time.Time // by version, of those that are stored
	NotListed []Held
	// Unlisted is why a stored version of a package that is listed is not: what stands
	// for those of which NotListed says nothing. The zero value is no reason.
	Unlisted Held
	// Ledger says that there is one, in which what is not selected is not asked for.
	// Selection are the lines of its selection that take versions of the package. Of
	// Choices among them, which are of the package itself, only what npm would choose is
	// taken.
	Ledger    bool
	Selection []string
	Choices   []npm.Spec
}

// choice is the line of Choices that has a version in range and takes another.
func (b Background) choice(version string) (npm.Spec, bool) {
	i := slices.IndexFunc(b.Choices, func(s npm.Spec) bool {
		return s.Range == "" || npm.IsRange(s.Range) && npm.ParseVersion(s.Range) != nil && npm.Satisfies(version, s.Range)
	})
	if i < 0 {
		return npm.Spec{}, false
	}
	return b.Choices[i], true
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
	for v := range known.FirstSeen {
		if !has[v] && known.Unlisted.Reason != "" {
			a.NotListed = append(a.NotListed, Held{v, known.Unlisted.Reason, known.Unlisted.Detail})
			has[v] = true
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
// is a ledger, because it is not selected, as upstream's times show. pulls says that
// there is an Origin.
func (a *Account) lacks(doc *npm.Packument, known Background, pulls bool) {
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
	version := a.Version
	if doc.Time[version] == "" {
		version = npm.MaxSatisfying(dated, version)
	}
	at, ok := doc.Time[version]
	if !ok {
		a.Nowhere, a.Why = true, "upstream's document has no such version"
		return
	}
	if pulls {
		a.Pulled, a.Why = true, fmt.Sprintf("%s; upstream dates it %s", pulledLater, at)
		return
	}
	a.NotSelected = true
	what := known.selected()
	if line, ok := known.choice(version); ok {
		what = fmt.Sprintf("of %s only what npm would choose is", line)
		if chosen, ok := npm.Pick(doc, line.Range); ok {
			what += ", " + chosen
		}
		what += "; --every takes all versions"
	}
	a.Why = fmt.Sprintf("it is not selected: %s; upstream dates it %s", what, at)
}

func (w Held) text() string {
	if w.Reason == "" {
		return w.Detail
	}
	return w.Reason + ": " + w.Detail
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

// readable is a readme within its bound, in memory of its own.
func readable(text string) string {
	return strings.Clone(strings.ToValidUTF8(text[:min(len(text), MaxReadme)], "\uFFFD"))
}
