package npm

import (
	"bytes"
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

// Abbreviate returns npm's install-v1 form of the packument: name, dist-tags,
// versions with the fields that installing needs, and `modified`, which is
// upstream's time.modified, else the latest instant in `time` (pnpm reads it as
// "no version is younger than this"); none where the document has no times. The
// values are the packument's bytes.
func (c Checked) Abbreviate(o AbbreviateOptions) Checked {
	raw := c.raw
	var name, tags, times, modified span
	var versions []byte
	s := c.scan()
	s.members(func(field []byte, _ span) {
		switch string(field) {
		case "name":
			name = s.value()
		case "dist-tags":
			tags = s.value()
		case "modified":
			modified = s.value()
		case "time":
			times = s.value()
		case "versions":
			if s.kind() != '{' {
				s.value()
				return
			}
			// Half is generous for all but the smallest documents.
			versions = make([]byte, 0, len(raw)/2+256)
			versions = append(versions, '{')
			s.members(func(version []byte, at span) {
				if s.kind() != '{' {
					s.value()
					return
				}
				if len(versions) > 1 {
					versions = append(versions, ',')
				}
				v := string(version)
				versions = append(versions, at.of(raw)...)
				versions = append(versions, ':')
				versions = s.abbreviate(versions, v, o)
			})
			versions = append(versions, '}')
		default:
			s.value()
		}
	})
	last := lastModified(raw, times, modified)
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
	return Checked{append(out, '}')}
}

// Abbreviate is Check, and Checked.Abbreviate of its result. Errors wrap
// ErrPackument.
func Abbreviate(raw []byte, o AbbreviateOptions) ([]byte, error) {
	c, err := Check(raw)
	if err != nil {
		return nil, err
	}
	return c.Abbreviate(o).raw, nil
}

// abbreviate appends the short form of the manifest that comes next.
func (s *scanner) abbreviate(dst []byte, version string, o AbbreviateOptions) []byte {
	dst = append(dst, '{')
	empty := len(dst)
	put := func(name, value []byte) {
		if len(dst) > empty {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, name...), ':'), value...)
	}
	scripts, said := false, false
	s.members(func(field []byte, at span) {
		switch {
		case string(field) == "dist" && s.kind() == '{':
			put(at.of(s.raw), nil)
			dst = s.abbreviateDist(dst, version, o)
		case string(field) == "dist":
			s.value()
		case string(field) == "scripts":
			scripts = s.hasInstallScript()
		case abbreviated[string(field)]:
			said = said || string(field) == "hasInstallScript"
			put(at.of(s.raw), s.value().of(s.raw))
		default:
			s.value()
		}
	})
	if scripts && !said {
		put([]byte(`"hasInstallScript"`), []byte("true"))
	}
	return append(dst, '}')
}

func (s *scanner) abbreviateDist(dst []byte, version string, o AbbreviateOptions) []byte {
	dst = append(dst, '{')
	empty := len(dst)
	s.members(func(field []byte, at span) {
		cid, tarball := string(field) == "cid", string(field) == "tarball"
		v := s.value()
		if cid {
			return
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
	})
	if o.CID != nil {
		if cid := o.CID(version); cid != "" {
			if len(dst) > empty {
				dst = append(dst, ',')
			}
			dst = appendQuote(append(dst, `"cid":`...), cid)
		}
	}
	return append(dst, '}')
}

// hasInstallScript reports whether the scripts that come next hold one that
// npm runs on install.
func (s *scanner) hasInstallScript() (has bool) {
	if s.kind() != '{' {
		s.value()
		return false
	}
	s.members(func(field []byte, _ span) {
		var runs bool
		switch string(field) {
		case "preinstall", "install", "postinstall":
			runs = true
		}
		v := s.value()
		if runs && s.raw[v.start] == '"' && v.end-v.start > 2 {
			has = true
		}
	})
	return has
}

// lastModified returns the JSON string for `modified`.
func lastModified(raw []byte, times, modified span) []byte {
	if t := times.of(raw); len(t) == 0 || t[0] != '{' {
		if m := modified.of(raw); len(m) > 0 && m[0] == '"' {
			return m
		}
		return nil
	}
	var said, latest []byte
	var at time.Time
	s := scanner{walker: walker{raw: raw, at: times.start}}
	s.members(func(field []byte, _ span) {
		isModified := string(field) == "modified"
		value := s.value().of(raw)
		if value[0] != '"' {
			return
		}
		if isModified {
			said = value
			return
		}
		if t, err := time.Parse(time.RFC3339, string(value[1:len(value)-1])); err == nil && t.After(at) {
			latest, at = value, t
		}
	})
	switch {
	case said != nil:
		return said
	case latest == nil && bytes.HasPrefix(modified.of(raw), []byte{'"'}):
		return modified.of(raw)
	}
	return latest
}
