package npm

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Hosted is the packument of a package that is published here and nowhere else, as
// what is published changes it. Versions stay in the order in which they came, so
// that another one changes few of the document's bytes.
type Hosted struct {
	Name Name
	Tags map[string]string

	description, readme string
	created, modified   string // as in `time`
	versions            []hostedVersion
}

type hostedVersion struct {
	version   string
	published string // its `time`
	manifest  []byte // JSON, with our dist
}

// timeFormat is that of npm's `time`.
const timeFormat = "2006-01-02T15:04:05.000Z"

// NewHosted is a package of which nothing is published yet.
func NewHosted(name Name) *Hosted { return &Hosted{Name: name, Tags: map[string]string{}} }

// ParseHosted reads what Bytes wrote. Errors wrap ErrPackument: it is no document
// of ours.
func ParseHosted(raw []byte) (*Hosted, error) {
	c, err := Check(raw)
	if err != nil {
		return nil, err
	}
	h := NewHosted("")
	times := map[string]string{}
	s := c.scan()
	_, err = s.object(func(field []byte, _ span) (err error) {
		switch string(field) {
		case "_id", "name":
			text, _ := s.text()
			h.Name = Name(text)
		case "description":
			h.description, _ = s.text()
		case "readme":
			h.readme, _ = s.text()
		case "dist-tags":
			var tags map[string]string
			if tags, err = s.texts(); tags != nil {
				h.Tags = tags
			}
		case "time":
			var all map[string]string
			if all, err = s.texts(); all != nil {
				times = all
			}
		case "versions":
			if s.kind() != '{' {
				return fmt.Errorf("%w: versions is not an object", ErrPackument)
			}
			_, err = s.object(func(version []byte, _ span) error {
				v := string(version)
				h.versions = append(h.versions, hostedVersion{version: v, manifest: slices.Clone(s.value().of(raw))})
				return tooMany(len(h.versions))
			})
		default:
			return fmt.Errorf("%w: a member %.100q", ErrPackument, field)
		}
		return err
	})
	if err == nil && s.odd != nil {
		err = fmt.Errorf("%w: %w", ErrPackument, s.odd)
	}
	if err != nil {
		return nil, err
	}
	h.created, h.modified = times["created"], times["modified"]
	for i, v := range h.versions {
		h.versions[i].published = times[v.version]
	}
	return h, nil
}

// Has says whether a version is in the document.
func (h *Hosted) Has(version string) bool {
	return slices.ContainsFunc(h.versions, func(v hostedVersion) bool { return v.version == version })
}

// Add puts a version into the document, which must not have it, with d as its dist
// and now as its time, and lets p's dist-tags name it. The first version of a package
// is `latest`, whatever p says: without that tag some clients read no document.
func (h *Hosted) Add(p Publication, d Dist, now time.Time) {
	dist := appendMember([]byte{'{'}, "integrity", d.Integrity)
	dist = appendMember(dist, "shasum", d.Shasum)
	dist = appendMember(dist, "tarball", d.Tarball)
	dist = append(appendName(dist, "unpackedSize"), fmt.Sprint(d.UnpackedSize)...)
	dist = append(dist, '}')
	manifest := append(appendName(slices.Clone(p.manifest[:len(p.manifest)-1]), "dist"), dist...)
	h.touch(now)
	h.versions = append(h.versions, hostedVersion{p.Version, h.modified, append(manifest, '}')})
	for _, tag := range p.Tags {
		h.Tags[tag] = p.Version
	}
	if h.Tags["latest"] == "" {
		h.Tags["latest"] = p.Version
	}
	if h.Tags["latest"] == p.Version {
		h.description, h.readme = p.description, p.readme
	}
}

// touch notes a change. `modified` never goes back, whatever the clock does.
func (h *Hosted) touch(now time.Time) {
	h.modified = max(h.modified, now.UTC().Format(timeFormat))
	if h.created == "" {
		h.created = h.modified
	}
}

// SetTag lets a dist-tag name a version that the document has.
func (h *Hosted) SetTag(tag, version string, now time.Time) {
	h.Tags[tag] = version
	h.touch(now)
}

// RemoveTag takes a dist-tag away.
func (h *Hosted) RemoveTag(tag string, now time.Time) {
	delete(h.Tags, tag)
	h.touch(now)
}

// Deprecate gives each version that the document has the message that messages has
// for it, "" for none; it leaves a version that is not in messages as it is. It
// reports whether anything changed.
func (h *Hosted) Deprecate(messages map[string]string, now time.Time) (changed bool) {
	for i, v := range h.versions {
		message, ok := messages[v.version]
		if !ok {
			continue
		}
		s := (&Checked{v.manifest}).scan()
		was := ""
		var ms []member
		var keep []bool
		o, _ := s.object(func(field []byte, at span) error {
			mine := string(field) == "deprecated"
			if mine {
				was = s.deprecated()
			} else {
				s.value()
			}
			ms, keep = append(ms, member{at, span{at.end, s.at}}), append(keep, !mine)
			return nil
		})
		if was == message {
			continue
		}
		manifest := keepMembers(nil, v.manifest, o, ms, func(i int) bool { return keep[i] }, nil)
		if message != "" {
			manifest = append(appendMember(manifest[:len(manifest)-1], "deprecated", message), '}')
		}
		h.versions[i].manifest, changed = manifest, true
	}
	if changed {
		h.touch(now)
	}
	return changed
}

// Bytes is the document. Equal documents have equal bytes.
func (h *Hosted) Bytes() []byte {
	dst := appendMember([]byte{'{'}, "_id", string(h.Name))
	dst = appendMember(dst, "name", string(h.Name))
	if h.description != "" {
		dst = appendMember(dst, "description", h.description)
	}
	dst = append(appendName(dst, "dist-tags"), '{')
	for _, tag := range slices.Sorted(maps.Keys(h.Tags)) {
		dst = appendMember(dst, tag, h.Tags[tag])
	}
	dst = append(appendName(append(dst, '}'), "versions"), '{')
	for _, v := range h.versions {
		dst = append(appendName(dst, v.version), v.manifest...)
	}
	dst = append(appendName(append(dst, '}'), "time"), '{')
	dst = appendMember(dst, "created", h.created)
	dst = appendMember(dst, "modified", h.modified)
	for _, v := range h.versions {
		dst = appendMember(dst, v.version, v.published)
	}
	dst = append(dst, '}')
	if h.readme != "" {
		dst = appendMember(dst, "readme", h.readme)
	}
	return append(dst, '}')
}

// appendName appends a member's name, and what parts it from the member before.
func appendName(dst []byte, name string) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	return append(appendQuote(dst, name), ':')
}

func appendMember(dst []byte, name, text string) []byte {
	return appendQuote(appendName(dst, name), text)
}

// ParsePackageJSON reads the name and version out of a package.json, which may begin
// with a byte order mark, as npm takes it. Errors wrap ErrPackument.
func ParsePackageJSON(raw []byte) (name, version string, err error) {
	if len(raw) >= 3 && string(raw[:3]) == "\uFEFF" {
		raw = raw[3:]
	}
	c, err := Check(raw)
	if err != nil {
		return "", "", err
	}
	s := c.scan()
	s.members(func(field []byte, _ span) {
		switch string(field) {
		case "name":
			name, _ = s.text()
		case "version":
			version, _ = s.text()
		default:
			s.other(field, "name", "version")
		}
	})
	if s.odd != nil {
		return "", "", fmt.Errorf("%w: %w", ErrPackument, s.odd)
	}
	return name, version, nil
}

// ParseText reads a document that is one JSON string, as the body of `npm dist-tag
// add` is. Errors wrap ErrPackument.
func ParseText(raw []byte) (string, error) {
	v := jsontext.Value(bytes.TrimSpace(raw))
	text, ok := unquote(v)
	if !ok || !v.IsValid() {
		return "", fmt.Errorf("%w: it is not a JSON string", ErrPackument)
	}
	return text, nil
}
