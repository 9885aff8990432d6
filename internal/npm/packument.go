package npm

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// AbbreviatedType is the media type of npm's abbreviated ("install-v1")
// packument.
const AbbreviatedType = "application/vnd.npm.install-v1+json"

// maxFile is the longest tarball file name, in bytes.
const maxFile = 255

// ParsePackument reads a full or abbreviated packument. It fails only where the
// document as a whole cannot be trusted (ErrPackument: no JSON object,
// duplicate names anywhere, a second spelling of a field that is read here,
// broken Unicode in what is read, no valid name, a name that `_id` contradicts,
// versions or dist-tags that are no objects, more names or values than any
// real one has); a version that cannot be used goes to Bad with its reason,
// beside the others. Of a manifest's fields the second spelling counts for
// name, version and what is in dist; others occur in what people publish. The
// result shares no bytes with raw and takes a small multiple of its size.
func ParsePackument(raw []byte) (*Packument, error) {
	p := &Packument{DistTags: map[string]string{}, Versions: map[string]*Manifest{}, Bad: map[string]error{}}
	var name, id, modified string
	var named bool
	c, err := Check(raw)
	if err != nil {
		return nil, err
	}
	s := c.scan()
	_, err = s.object(func(field []byte, _ span) (err error) {
		switch string(field) {
		case "name":
			named = true
			name, _ = s.text()
		case "_id":
			id, _ = s.text()
		case "_rev":
			p.Rev, _ = s.text()
		case "modified":
			modified, _ = s.text()
		case "dist-tags":
			switch s.kind() {
			case '{':
				var tags map[string]string
				if tags, err = s.texts(); tags != nil {
					p.DistTags = tags
				}
			case 'n':
				s.value()
			default:
				err = fmt.Errorf("%w: dist-tags is not an object", ErrPackument)
			}
		case "time":
			err = s.times(p)
		case "versions":
			switch s.kind() {
			case '{':
				err = s.versions(p)
			case 'n':
				s.value()
			default:
				err = fmt.Errorf("%w: versions is not an object", ErrPackument)
			}
		default:
			s.other(field, "name", "_id", "_rev", "modified", "dist-tags", "time", "versions")
		}
		if s.odd != nil && err == nil {
			err = fmt.Errorf("%w: %w", ErrPackument, s.odd)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !named {
		name = id
	}
	if id != "" && id != name {
		return nil, fmt.Errorf("%w: its name is %q and its _id %q", ErrPackument, name, id)
	}
	if p.Name, err = ParseName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackument, err)
	}
	if p.Modified = p.Time["modified"]; p.Modified == "" {
		p.Modified = modified
	}
	p.settle()
	return p, nil
}

// times reads `time`, where an unpublished package has an object among the
// strings.
func (s *scanner) times(p *Packument) error {
	if s.kind() != '{' {
		s.value()
		return nil
	}
	p.Time = make(map[string]string)
	_, err := s.object(func(name []byte, _ span) error {
		key := string(name)
		if key == "unpublished" && s.kind() == '{' {
			p.Unpublished = true
		}
		s.spelled(name, "modified", "unpublished")
		t, ok := s.text()
		if !ok {
			return nil
		}
		p.Time[key] = t
		return s.keep()
	})
	return err
}

func (s *scanner) versions(p *Packument) error {
	_, err := s.object(func(name []byte, _ span) error {
		version := string(name)
		// What is odd here is so for this version only.
		defer func() { s.odd = nil }()
		if err := tooMany(len(p.Versions) + len(p.Bad) + 1); err != nil {
			return err
		}
		if s.kind() != '{' {
			p.Bad[version] = errors.New("the manifest is not an object")
			s.value()
			return nil
		}
		m, bad, err := s.manifest()
		switch {
		case err != nil:
			return err
		case bad == nil:
			bad = cmp.Or(s.odd, ParseVersion(version))
		}
		if bad == nil && m.Version != version {
			bad = fmt.Errorf("its manifest says version %q", m.Version)
		}
		if bad != nil {
			p.Bad[version] = bad
			return nil
		}
		p.Versions[version] = m
		return nil
	})
	return err
}

// manifest reads one version. bad says why it is of no use; err that the
// document is too large.
func (s *scanner) manifest() (m *Manifest, bad, err error) {
	m = &Manifest{}
	var hasDist, bundleAll bool
	_, err = s.object(func(field []byte, _ span) (err error) {
		switch string(field) {
		case "name":
			var t string
			var ok bool
			if t, ok = s.text(); !ok {
				bad = errors.New("the manifest's name is not a string")
			}
			m.Name = Name(t)
		case "version":
			m.Version, _ = s.text()
		case "deprecated":
			m.Deprecated = s.deprecated()
		case "dependencies":
			m.Dependencies, err = s.texts()
		case "optionalDependencies":
			m.OptionalDependencies, err = s.texts()
		case "peerDependencies":
			m.PeerDependencies, err = s.texts()
		case "peerDependenciesMeta":
			m.OptionalPeers, err = s.optionalPeers()
		case "bundleDependencies", "bundledDependencies":
			var all bool
			var names []string
			if names, all, err = s.bundled(); names != nil {
				m.Bundled = names
			}
			bundleAll = bundleAll || all
		case "dist":
			if hasDist = s.kind() == '{'; !hasDist {
				s.value()
				return nil
			}
			var why error
			if m.Dist, why, err = s.dist(); why != nil && bad == nil {
				bad = why
			}
		default:
			s.other(field, "name", "version", "dist")
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if bundleAll {
		m.Bundled = nil
		for name := range m.Dependencies { // already counted
			m.Bundled = append(m.Bundled, name)
		}
		slices.Sort(m.Bundled)
	}
	switch {
	case bad != nil:
	case !hasDist:
		bad = errors.New("the manifest has no dist")
	case m.Dist.Tarball == "":
		bad = errors.New("dist has no tarball URL")
	}
	return m, bad, nil
}

func (s *scanner) dist() (d Dist, bad, err error) {
	_, err = s.object(func(field []byte, _ span) (err error) {
		var to *string
		switch string(field) {
		case "tarball":
			to = &d.Tarball
		case "shasum":
			to = &d.Shasum
		case "integrity":
			to = &d.Integrity
		case "signatures":
			d.Signatures, err = s.signatures()
			return err
		case "unpackedSize":
			d.UnpackedSize = s.size()
			return nil
		default:
			s.other(field, "tarball", "shasum", "integrity", "signatures")
			return nil
		}
		if s.kind() == 'n' {
			s.value()
			return nil
		}
		var ok bool
		if *to, ok = s.text(); !ok {
			bad = fmt.Errorf("dist.%s is not a string", field)
		}
		return nil
	})
	return d, bad, err
}

// size reads a count of bytes; what is none is 0.
func (s *scanner) size() int64 {
	n, err := strconv.ParseInt(string(s.value().of(s.raw)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func (s *scanner) signatures() (sigs []Signature, err error) {
	err = s.array(func() error {
		if len(sigs) == maxSignatures {
			s.note("it has more than %d signatures", maxSignatures)
			s.value()
			return nil
		}
		if s.kind() != '{' {
			s.value()
			return nil
		}
		var sig Signature
		s.members(func(field []byte, _ span) {
			switch string(field) {
			case "keyid":
				sig.KeyID, _ = s.text()
			case "sig":
				sig.Sig, _ = s.text()
			default:
				s.other(field, "keyid", "sig")
			}
		})
		sigs = append(sigs, sig)
		return s.keep()
	})
	return sigs, err
}

// array calls item for each element of the array that comes next; any other
// value is passed over. item must read exactly one value.
func (s *scanner) array(item func() error) error {
	if s.kind() != '[' {
		s.value()
		return nil
	}
	s.step()
	for s.kind() != ']' {
		if err := item(); err != nil {
			return err
		}
	}
	s.step()
	return nil
}

// deprecated reads a message; JavaScript's other true values count as one.
func (s *scanner) deprecated() string {
	v := s.value().of(s.raw)
	if t, ok := unquote(v); ok {
		return t
	}
	switch string(v) {
	case "null", "false", "0":
		return ""
	}
	return "deprecated"
}

func (s *scanner) optionalPeers() (map[string]bool, error) {
	if s.kind() != '{' {
		s.value()
		return nil, nil
	}
	var peers map[string]bool
	_, err := s.object(func(name []byte, _ span) error {
		if s.kind() != '{' {
			s.value()
			return nil
		}
		peer := string(name)
		_, err := s.object(func(field []byte, _ span) error {
			optional := string(field) == "optional"
			if v := s.value().of(s.raw); !optional || string(v) != "true" {
				return nil
			}
			if peers == nil {
				peers = make(map[string]bool)
			}
			peers[peer] = true
			return s.keep()
		})
		return err
	})
	return peers, err
}

// bundled reads a list of names, or `true`, which means all dependencies.
func (s *scanner) bundled() (names []string, all bool, err error) {
	if s.kind() == 't' {
		s.value()
		return nil, true, nil
	}
	err = s.array(func() error {
		t, ok := s.text()
		if !ok {
			return nil
		}
		names = append(names, t)
		return s.keep()
	})
	return names, false, err
}

// settle moves to Bad what only the whole document shows to be unusable:
// manifests of another package, tarball URLs without a usable file name, and
// tarballs that would share one. Of those that share a name the version that
// the name is canonical for keeps it.
func (p *Packument) settle() {
	files := make(map[string][]string, len(p.Versions))
	for version, m := range p.Versions {
		if m.Name == "" {
			m.Name = p.Name
		}
		if m.Name != p.Name {
			p.drop(version, fmt.Errorf("its manifest says package %q", m.Name))
			continue
		}
		file, err := TarballFile(p.Name, version, m.Dist.Tarball)
		if err != nil {
			p.drop(version, err)
			continue
		}
		files[file] = append(files[file], version)
	}
	for file, versions := range files {
		if len(versions) == 1 {
			continue
		}
		for _, version := range versions {
			if file != canonicalFile(p.Name, version) {
				p.drop(version, fmt.Errorf("its tarball has the file name of another version's, %q", file))
			}
		}
	}
}

func (p *Packument) drop(version string, why error) {
	delete(p.Versions, version)
	p.Bad[version] = why
}

func canonicalFile(name Name, version string) string { return name.Base() + "-" + version + ".tgz" }

// TarballFile returns the file name under which a version's tarball is kept
// and asked for: the last segment of its upstream URL, since lockfiles hold
// it, or the canonical "<base>-<version>.tgz" where that segment is not a
// tarball's name (some registries end the URL in a digest). The result is one
// safe path component ending in .tgz, .tar.gz or .tar.
func TarballFile(name Name, version, tarballURL string) (string, error) {
	u, err := url.Parse(tarballURL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("tarball URL %.200q is not an absolute HTTP URL", tarballURL)
	}
	file := u.Path[strings.LastIndexByte(u.Path, '/')+1:]
	if !safeFile(file) {
		file = canonicalFile(name, version)
	}
	if !safeFile(file) {
		return "", fmt.Errorf("tarball URL %.200q has no usable file name", tarballURL)
	}
	return file, nil
}

func safeFile(file string) bool {
	if len(file) > maxFile || file == "" || file[0] == '.' {
		return false
	}
	for i := range len(file) {
		if c := file[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`/\"<>?#%:|`, c) >= 0 {
			return false
		}
	}
	return strings.HasSuffix(file, ".tgz") || strings.HasSuffix(file, ".tar.gz") || strings.HasSuffix(file, ".tar")
}
