package npm

import (
	"bytes"
	"fmt"
	"time"
)

// abbreviated names the fields of a manifest that the abbreviated form keeps:
// what npm's own has, less devDependencies, which no client reads there.
// hasInstallScript is derived where the manifest does not say, and dist is
// handled apart.
var abbreviated = map[string]bool{
	"name": true, "version": true, "deprecated": true, "bin": true, "directories": true,
	"dependencies": true, "optionalDependencies": true, "acceptDependencies": true,
	"peerDependencies": true, "peerDependenciesMeta": true,
	"bundleDependencies": true, "bundledDependencies": true,
	"engines": true, "os": true, "cpu": true, "libc": true,
	"funding": true, "hasInstallScript": true, "_hasShrinkwrap": true,
}

// AbbreviateOptions says what an abbreviated document carries beyond npm's own.
type AbbreviateOptions struct {
	// CID, where not nil, gives the CID of a version's tarball for dist.cid;
	// "" adds none. A dist.cid that upstream sent never passes.
	CID func(version string) string
	// Tarball, where not nil, gives the URL to put in place of upstream's.
	Tarball func(version, upstreamURL string) string
	// Time adds the full document's `time`.
	Time bool
}

// Abbreviate returns npm's install-v1 form of the packument raw: name,
// dist-tags, versions with the fields that installing needs, and `modified`,
// which is upstream's time.modified, else the latest instant in `time` (pnpm
// reads it as "no version is younger than this"); none where the document has
// no times. The values are raw's bytes. Errors wrap ErrPackument.
func Abbreviate(raw []byte, o AbbreviateOptions) ([]byte, error) {
	var name, tags, times, modified span
	var versions []byte
	s := scan(raw)
	err := s.document(func(field []byte, _ span) (err error) {
		switch string(field) {
		case "name":
			name, err = s.value()
		case "dist-tags":
			tags, err = s.value()
		case "modified":
			modified, err = s.value()
		case "time":
			times, err = s.value()
		case "versions":
			if s.dec.PeekKind() != '{' {
				return s.skip()
			}
			// Half is generous for all but the smallest documents.
			versions = make([]byte, 0, len(raw)/2+256)
			versions = append(versions, '{')
			_, err = s.object(func(version []byte, at span) error {
				if s.dec.PeekKind() != '{' {
					return s.skip()
				}
				if len(versions) > 1 {
					versions = append(versions, ',')
				}
				v := string(version)
				versions = append(versions, at.of(raw)...)
				versions = append(versions, ':')
				versions, err = s.abbreviate(versions, v, o)
				return err
			})
			versions = append(versions, '}')
		default:
			err = s.skip()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	last, err := lastModified(raw, times, modified)
	if err != nil {
		return nil, err
	}
	size := len(versions) + len(name.of(raw)) + len(tags.of(raw)) + len(last) + 64
	if o.Time {
		size += len(times.of(raw))
	}
	out := append(make([]byte, 0, size), '{')
	put := func(field string, value []byte) {
		if len(value) == 0 {
			return
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(append(out, '"'), field...), '"', ':'), value...)
	}
	put("name", name.of(raw))
	if t := tags.of(raw); len(t) > 0 && t[0] == '{' {
		put("dist-tags", t)
	} else {
		put("dist-tags", []byte("{}")) // pnpm and yarn fail without
	}
	if versions == nil {
		versions = []byte("{}")
	}
	put("versions", versions)
	put("modified", last)
	if o.Time {
		put("time", times.of(raw))
	}
	return append(out, '}'), nil
}

// abbreviate appends the short form of the manifest that comes next.
func (s *scanner) abbreviate(dst []byte, version string, o AbbreviateOptions) ([]byte, error) {
	dst = append(dst, '{')
	empty := len(dst)
	put := func(name, value []byte) {
		if len(dst) > empty {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, name...), ':'), value...)
	}
	scripts, said := false, false
	_, err := s.object(func(field []byte, at span) (err error) {
		switch {
		case string(field) == "dist" && s.dec.PeekKind() == '{':
			put(at.of(s.raw), nil)
			dst, err = s.abbreviateDist(dst, version, o)
		case string(field) == "dist":
			err = s.skip()
		case string(field) == "scripts":
			scripts, err = s.hasInstallScript()
		case abbreviated[string(field)]:
			said = said || string(field) == "hasInstallScript"
			var v span
			v, err = s.value()
			put(at.of(s.raw), v.of(s.raw))
		default:
			err = s.skip()
		}
		return err
	})
	if scripts && !said {
		put([]byte(`"hasInstallScript"`), []byte("true"))
	}
	return append(dst, '}'), err
}

func (s *scanner) abbreviateDist(dst []byte, version string, o AbbreviateOptions) ([]byte, error) {
	dst = append(dst, '{')
	empty := len(dst)
	_, err := s.object(func(field []byte, at span) error {
		cid, tarball := string(field) == "cid", string(field) == "tarball"
		v, err := s.value()
		if err != nil || cid {
			return err
		}
		if len(dst) > empty {
			dst = append(dst, ',')
		}
		dst = append(append(dst, at.of(s.raw)...), ':')
		if tarball && o.Tarball != nil {
			dst = rewriteURL(dst, v.of(s.raw), version, o.Tarball)
		} else {
			dst = append(dst, v.of(s.raw)...)
		}
		return nil
	})
	if err != nil {
		return dst, err
	}
	if o.CID != nil {
		if cid := o.CID(version); cid != "" {
			if len(dst) > empty {
				dst = append(dst, ',')
			}
			dst = appendQuote(append(dst, `"cid":`...), cid)
		}
	}
	return append(dst, '}'), nil
}

// hasInstallScript reports whether the scripts that come next hold one that
// npm runs on install.
func (s *scanner) hasInstallScript() (has bool, err error) {
	if s.dec.PeekKind() != '{' {
		return false, s.skip()
	}
	_, err = s.object(func(field []byte, _ span) error {
		var runs bool
		switch string(field) {
		case "preinstall", "install", "postinstall":
			runs = true
		}
		v, err := s.value()
		if runs && err == nil && s.raw[v.start] == '"' && v.end-v.start > 2 {
			has = true
		}
		return err
	})
	return has, err
}

// lastModified returns the JSON string for `modified`.
func lastModified(raw []byte, times, modified span) ([]byte, error) {
	if t := times.of(raw); len(t) == 0 || t[0] != '{' {
		if m := modified.of(raw); len(m) > 0 && m[0] == '"' {
			return m, nil
		}
		return nil, nil
	}
	var said, latest []byte
	var at time.Time
	base := times.start
	s := scan(times.of(raw))
	_, err := s.object(func(field []byte, _ span) error {
		isModified := string(field) == "modified"
		v, err := s.value()
		if err != nil {
			return err
		}
		value := raw[base+v.start : base+v.end]
		if len(value) < 2 || value[0] != '"' {
			return nil
		}
		if isModified {
			said = value
			return nil
		}
		if t, err := time.Parse(time.RFC3339, string(value[1:len(value)-1])); err == nil && t.After(at) {
			latest, at = value, t
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrPackument, err)
	case said != nil:
		return said, nil
	case latest == nil && bytes.HasPrefix(modified.of(raw), []byte{'"'}):
		return modified.of(raw), nil
	}
	return latest, nil
}
