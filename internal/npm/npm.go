// Package npm holds npm's own terms as values: names, specs, versions,
// packuments, abbreviated packuments, integrity, registry signatures and npm's
// configuration files. It is pure but for LoadConfig, which reads
// the configuration files it is pointed at: it knows nothing of HTTP, stores,
// IPFS or time.
package npm

import (
	"errors"
	"maps"
	"slices"
	"strings"
)

var (
	// ErrName is returned for a string that npm would not accept as the name
	// of an existing (old rules) package.
	ErrName = errors.New("not a valid package name")
	// ErrVersion is returned for a string that is not a version under npm's
	// loose semver.
	ErrVersion = errors.New("not a valid version")
	// ErrSpec is returned for a package spec that does not name a package of a
	// registry: a git address, a URL, a file, a workspace.
	ErrSpec = errors.New("not a registry package spec")
	// ErrPackument is returned for a document that is not a packument, or that
	// two JSON parsers could read differently.
	ErrPackument = errors.New("not a valid packument")
	// ErrIntegrity is returned when bytes do not match the integrity that their
	// packument gives. The bytes must be kept nowhere.
	ErrIntegrity = errors.New("tarball does not match its integrity")
	// ErrNoIntegrity is returned when a packument names no digest that can be
	// checked.
	ErrNoIntegrity = errors.New("no usable integrity")
)

// Name is the name of a package, "express" or "@types/node", compared byte for
// byte. Only ParseName makes one from outside input.
type Name string

// Spec names a package and what of it is wanted: a semver range, an exact
// version or a dist-tag. An empty Range means the dist-tag "latest".
type Spec struct {
	Name  Name   `json:"name"`
	Range string `json:"range,omitempty"`
}

// Dependencies are those of a manifest, a range by its name, that are ranges of packages
// of a registry, by name; an alias is what is behind it.
func Dependencies(of map[string]string) (specs []Spec) {
	for _, text := range slices.Sorted(maps.Keys(of)) {
		rng := of[text]
		if alias, ok := strings.CutPrefix(rng, "npm:"); ok {
			at := strings.LastIndexByte(alias, '@')
			if text, rng = alias, ""; at > 0 {
				text, rng = alias[:at], alias[at+1:]
			}
		}
		if name, err := ParseName(text); err == nil && IsRange(rng) {
			specs = append(specs, Spec{Name: name, Range: rng})
		}
	}
	return specs
}

// Dist is the part of a manifest that says where a version's tarball is and
// what its bytes must be.
type Dist struct {
	Tarball    string      `json:"tarball"`
	Shasum     string      `json:"shasum,omitempty"`
	Integrity  string      `json:"integrity,omitempty"`
	Signatures []Signature `json:"signatures,omitempty"`
	// UnpackedSize is what the registry says that the tarball's files come to,
	// in bytes; 0 where it does not say. Nothing may rely on it.
	UnpackedSize int64 `json:"unpackedSize,omitempty"`
}

// Signature is a registry's signature over "name@version:integrity".
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// Manifest is what the project reads of one version in a packument. Fields
// that it does not read stay in the packument's own bytes.
type Manifest struct {
	Name                 Name
	Version              string
	Dist                 Dist
	Deprecated           string
	Dependencies         map[string]string
	OptionalDependencies map[string]string
	PeerDependencies     map[string]string
	// OptionalPeers are the names in PeerDependenciesMeta marked optional.
	OptionalPeers map[string]bool
	// Bundled are the names of bundled dependencies, which lie in the tarball.
	Bundled []string
}

// Packument is what the project reads of a package document.
type Packument struct {
	Name     Name
	Rev      string // CouchDB revision, "" where the registry sends none
	Modified string // time.modified, "" where absent
	DistTags map[string]string
	Versions map[string]*Manifest
	Time     map[string]string
	// Unpublished is set where upstream says that the package as a whole was
	// unpublished: a stub is left, without versions.
	Unpublished bool
	// Bad holds, by version, why a version was left out of Versions: one bad
	// version never hides the others.
	Bad map[string]error
}
