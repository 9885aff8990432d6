package npm

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// outline is where the parts of a packument lie that curation touches.
type outline struct {
	tags         span
	tagMembers   []member
	tagNames     []string
	tagVersions  []string // "" where the value is not a string
	versions     span
	versMembers  []member
	versionNames []string
}

func (c Checked) outline() (outline, error) {
	var o outline
	s := c.scan()
	_, err := s.object(func(field []byte, _ span) (err error) {
		switch string(field) {
		case "dist-tags":
			if s.kind() == 'n' {
				s.value()
				return nil
			}
			if s.kind() != '{' {
				return fmt.Errorf("%w: dist-tags is not an object", ErrPackument)
			}
			o.tags, err = s.object(func(name []byte, at span) error {
				o.tagNames = append(o.tagNames, string(name))
				v := s.value()
				version, _ := unquote(v.of(c.raw))
				o.tagMembers = append(o.tagMembers, member{at, v})
				o.tagVersions = append(o.tagVersions, version)
				return tooMany(len(o.tagNames))
			})
		case "versions":
			if s.kind() == 'n' {
				s.value()
				return nil
			}
			if s.kind() != '{' {
				return fmt.Errorf("%w: versions is not an object", ErrPackument)
			}
			o.versions, err = s.object(func(name []byte, at span) error {
				o.versionNames = append(o.versionNames, string(name))
				o.versMembers = append(o.versMembers, member{at, s.value()})
				return tooMany(len(o.versionNames))
			})
		default:
			s.value()
		}
		return err
	})
	return o, err
}

// Curate returns the packument with only the versions that held accepts. A
// dist-tag whose version stays is untouched; `latest`, where its version goes,
// moves to the highest held version below it that is not a prerelease, else to the
// highest such version at all, else to the highest held; every other such tag
// goes. All else, `time` included, is upstream's, byte for byte, and where nothing
// changes it is c itself. The result is a pure function of c and of what held
// answers. Errors wrap ErrPackument.
func (c Checked) Curate(held func(version string) bool) (Checked, error) {
	raw := c.raw
	o, err := c.outline()
	if err != nil {
		return Checked{}, err
	}
	keep := make([]bool, len(o.versionNames))
	stays := make(map[string]bool, len(o.versionNames))
	for i, v := range o.versionNames {
		if held(v) {
			keep[i] = true
			stays[v] = true
		}
	}
	// latest is the version that the tag moves to, "" where it does not move.
	latest := ""
	keepTag := make([]bool, len(o.tagNames))
	for i, tag := range o.tagNames {
		keepTag[i] = stays[o.tagVersions[i]]
		if !keepTag[i] && tag == "latest" && len(stays) > 0 {
			latest = latestOf(stays, o.tagVersions[i])
			keepTag[i] = true
		}
	}
	if latest == "" && !slices.Contains(keep, false) && !slices.Contains(keepTag, false) {
		return c, nil
	}

	tags := func(dst []byte) []byte {
		return keepMembers(dst, raw, o.tags, o.tagMembers,
			func(i int) bool { return keepTag[i] },
			func(dst []byte, i int) []byte {
				if latest != "" && o.tagNames[i] == "latest" {
					return appendQuote(dst, latest)
				}
				return append(dst, o.tagMembers[i].value.of(raw)...)
			})
	}
	versions := func(dst []byte) []byte {
		return keepMembers(dst, raw, o.versions, o.versMembers, func(i int) bool { return keep[i] }, nil)
	}
	size := len(raw) + len(latest) + 16
	for i, m := range o.versMembers {
		if !keep[i] {
			size -= m.value.end - m.name.start
		}
	}
	dst, at := make([]byte, 0, size), 0
	put := func(part span, write func([]byte) []byte) {
		if part.end == 0 {
			return // the document has no such member
		}
		dst = write(append(dst, raw[at:part.start]...))
		at = part.end
	}
	if o.tags.start < o.versions.start {
		put(o.tags, tags)
		put(o.versions, versions)
	} else {
		put(o.versions, versions)
		put(o.tags, tags)
	}
	return Checked{append(dst, raw[at:]...)}, nil
}

// Curate is Check, and Checked.Curate of its result; where nothing changes the
// result is raw itself.
func Curate(raw []byte, held func(version string) bool) ([]byte, error) {
	c, err := Check(raw)
	if err == nil {
		c, err = c.Curate(held)
	}
	return c.raw, err
}

// latestOf chooses where `latest` goes when the version was that it names is
// not held.
func latestOf(held map[string]bool, was string) string {
	below, release, highest := "", "", ""
	higher := func(a, b string) bool { return b == "" || CompareVersions(a, b) > 0 }
	_, isVersion := parseVersion(was)
	for v := range held {
		if higher(v, highest) {
			highest = v
		}
		if _, ok := parseVersion(v); !ok || IsPrerelease(v) {
			continue
		}
		if higher(v, release) {
			release = v
		}
		if isVersion && CompareVersions(v, was) < 0 && higher(v, below) {
			below = v
		}
	}
	switch {
	case below != "":
		return below
	case release != "":
		return release
	}
	return highest
}

// appendQuote appends s as a JSON string.
func appendQuote(dst []byte, s string) []byte {
	// The only error is for broken UTF-8, which is then replaced.
	dst, _ = jsontext.AppendQuote(dst, s)
	return dst
}
