package npm

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

var (
	// ErrPublication is returned for a document that is not what `npm publish`
	// sends, or that two JSON parsers could read differently.
	ErrPublication = errors.New("not a valid publication")
	// ErrNoAttachment is returned for a document without attachments: it publishes
	// nothing, and is a change of what is there, as `npm deprecate` sends it.
	ErrNoAttachment = errors.New("the document has no attachment")
)

// Publication is what `npm publish` sends, as libnpmpublish and its like make it:
// one new version of a package and its tarball as the one attachment. All of it is
// what a client says.
type Publication struct {
	Name    Name
	Version string
	Tags    []string // dist-tags that are to name the version, sorted; at least one
	Dist    Dist     // the client's own account of the tarball
	Length  int64    // bytes that the attachment is said to have; -1 where nothing is said

	manifest            []byte // the version's, without dist, readme and readmeFilename
	description, readme string
}

// maxTag is the longest dist-tag that is accepted, in bytes. npm has no bound.
const maxTag = 214

// maxReadme is how many bytes of a readme are kept, as npm's registry does.
const maxReadme = 64 << 10

// ParsePublication reads a publish document whose attachment was taken out: the
// attachment's `data` is the empty string. It refuses, beyond what ParsePackument
// does, whatever leaves a doubt about what is published: more or fewer than one
// version or one attachment, a version that is not strict semver or is spelled
// another way in any place, a name that npm gives to no new package, a dist-tag that
// is a range or names another version. Unknown fields of the document are passed
// over, those of the manifest kept. Errors wrap ErrPublication, or ErrNoAttachment.
func ParsePublication(raw []byte) (Publication, error) {
	p, err := parsePublication(raw)
	if err != nil && !errors.Is(err, ErrNoAttachment) {
		err = fmt.Errorf("%w: %w", ErrPublication, err)
	}
	if err != nil {
		return Publication{}, err
	}
	return p, nil
}

func parsePublication(raw []byte) (p Publication, err error) {
	c, err := Check(raw)
	if err != nil {
		return p, err
	}
	if !utf8.Valid(raw) {
		return p, errors.New("it is not UTF-8")
	}
	var name, id string
	var tags map[string]string
	var manifest span
	var versions, attachments []string
	p.Length = -1
	s := c.scan()
	_, err = s.object(func(field []byte, _ span) (err error) {
		want := byte('{')
		switch string(field) {
		case "name", "_id", "description", "readme":
			want = '"'
		}
		if kind := s.kind(); kind != want && kind != 'n' && (string(field) == "versions" || string(field) == "dist-tags" || string(field) == "_attachments" || want == '"') {
			return fmt.Errorf("its %q is of another type", field)
		}
		if s.kind() == 'n' {
			s.value()
			return nil
		}
		switch string(field) {
		case "name":
			name, _ = s.text()
		case "_id":
			id, _ = s.text()
		case "description":
			p.description, _ = s.text()
		case "readme":
			p.readme, _ = s.text()
		case "dist-tags":
			_, err = s.object(func(tag []byte, _ span) error {
				version, ok := s.text()
				if !ok {
					return fmt.Errorf("the dist-tag %.100q is not a string", tag)
				}
				if tags == nil {
					tags = map[string]string{}
				}
				tags[string(tag)] = version
				return tooMany(len(tags))
			})
		case "versions":
			_, err = s.object(func(version []byte, _ span) error {
				versions = append(versions, string(version))
				manifest = s.value()
				return tooMany(len(versions))
			})
		case "_attachments":
			_, err = s.object(func(file []byte, _ span) error {
				attachments = append(attachments, string(file))
				if err := tooMany(len(attachments)); err != nil {
					return err
				}
				return s.attachment(&p)
			})
		default:
			s.other(field, "name", "_id", "dist-tags", "versions", "_attachments", "description", "readme")
		}
		return err
	})
	if err == nil {
		err = s.odd
	}
	if err != nil {
		return p, err
	}
	if len(attachments) == 0 {
		return p, ErrNoAttachment
	}
	switch {
	case len(versions) != 1:
		return p, fmt.Errorf("it has %d versions: one is published at a time", len(versions))
	case len(attachments) != 1:
		return p, fmt.Errorf("it has %d attachments, where the tarball alone is taken: is --provenance set?", len(attachments))
	}
	if p.Name, err = ParseNewName(name); err != nil {
		return p, err
	}
	if id != "" && id != name {
		return p, fmt.Errorf("its name is %q and its _id %.200q", name, id)
	}
	p.Version = versions[0]
	if err := ParseStrictVersion(p.Version); err != nil {
		return p, err
	}
	if file := "-" + p.Version + ".tgz"; attachments[0] != name+file && attachments[0] != p.Name.Base()+file {
		return p, fmt.Errorf("its attachment is named %.200q, where the tarball is %q", attachments[0], name+file)
	}
	for tag, version := range tags {
		if err := ParseTag(tag); err != nil {
			return p, err
		}
		if version != p.Version {
			return p, fmt.Errorf("its dist-tag %q names version %.100q, and %s is published", tag, version, p.Version)
		}
		p.Tags = append(p.Tags, tag)
	}
	if len(tags) == 0 {
		p.Tags = []string{"latest"}
	}
	slices.Sort(p.Tags)
	return p, p.readManifest(manifest.of(raw))
}

// attachment reads one of the attachments.
func (s *scanner) attachment(p *Publication) error {
	if s.kind() != '{' {
		return errors.New("an attachment is not an object")
	}
	data := false
	_, err := s.object(func(field []byte, _ span) error {
		switch string(field) {
		case "data":
			v := s.value().of(s.raw)
			if data = string(v) == `""`; !data {
				return errors.New("its attachment's data is not plain base64")
			}
		case "length":
			n, err := strconv.ParseInt(string(s.value().of(s.raw)), 10, 64)
			if err != nil || n < 0 {
				return errors.New("its attachment's length is not a number of bytes")
			}
			p.Length = n
		default:
			s.other(field, "data", "length")
		}
		return nil
	})
	if err == nil && !data {
		err = errors.New("its attachment has no data")
	}
	return err
}

// readManifest reads the one version's manifest.
func (p *Publication) readManifest(raw []byte) error {
	if len(raw) == 0 || raw[0] != '{' {
		return errors.New("the manifest is not an object")
	}
	s := (&Checked{raw}).scan()
	var ms []member
	var keep []bool
	var description, readme string
	bad := errors.New("the manifest has no dist")
	name, version, id := "", "", ""
	o, err := s.object(func(field []byte, at span) (err error) {
		stays := true
		switch string(field) {
		case "name":
			name, _ = s.text()
		case "version":
			version, _ = s.text()
		case "_id":
			id, _ = s.text()
		case "description":
			description, _ = s.text()
		case "readme":
			readme, _ = s.text()
			stays = false
		case "readmeFilename":
			s.value()
			stays = false
		case "dist":
			stays = false
			if s.kind() != '{' {
				return errors.New("the manifest's dist is not an object")
			}
			p.Dist, bad, err = s.dist()
		default:
			s.other(field, "name", "version", "_id", "dist")
		}
		ms = append(ms, member{at, span{at.end, s.at}})
		keep = append(keep, stays)
		return err
	})
	switch {
	case err != nil:
	case bad != nil:
		err = bad
	case s.odd != nil:
		err = s.odd
	case name != string(p.Name):
		err = fmt.Errorf("its manifest says package %.200q", name)
	case version != p.Version:
		err = fmt.Errorf("its manifest says version %.200q", version)
	case id != "" && id != name+"@"+version:
		err = fmt.Errorf("its manifest has the _id %.200q", id)
	}
	if err != nil {
		return err
	}
	if p.description == "" {
		p.description = description
	}
	if p.readme == "" {
		p.readme = readme
	}
	if len(p.readme) > maxReadme {
		p.readme = strings.ToValidUTF8(p.readme[:maxReadme], "")
	}
	compact := jsontext.Value(keepMembers(nil, raw, o, ms, func(i int) bool { return keep[i] }, nil))
	if err := compact.Compact(); err != nil {
		return err
	}
	p.manifest = compact
	return nil
}

// ParseNewName is ParseName by the rules that npm has for packages that are new
// (validate-npm-package-name's validForNewPackages): no upper case, at most 214
// bytes, none of the characters ~'!()* and no hyphen or underscore in front of it.
// Errors wrap ErrName.
func ParseNewName(s string) (Name, error) {
	name, err := ParseName(s)
	if err != nil {
		return "", err
	}
	why := ""
	switch base := name.Base(); {
	case len(s) > 214:
		why = "a new name has at most 214 characters"
	case strings.ToLower(s) != s:
		why = "a new name has no capital letters"
	case strings.ContainsAny(s, "~'!()*"):
		why = "a new name has none of ~'!()*"
	case strings.IndexByte("-_", base[0]) >= 0, strings.HasPrefix(s, "@-"), strings.HasPrefix(s, "@_"):
		why = "a new name begins with neither a hyphen nor an underscore"
	}
	if why != "" {
		return "", fmt.Errorf("%q: %w: %s", s, ErrName, why)
	}
	return name, nil
}

// ParseStrictVersion is ParseVersion for a version that is new: semver 2.0.0 as it
// is written there, and without build metadata, by which npm does not tell versions
// apart. Errors wrap ErrVersion.
func ParseStrictVersion(s string) error {
	if err := ParseVersion(s); err != nil {
		return err
	}
	core, prerelease, dashed := strings.Cut(s, "-")
	ok := !strings.Contains(s, "+") && (!dashed || prerelease != "")
	for _, number := range strings.Split(core, ".") {
		ok = ok && isNumber(number) && (number == "0" || number[0] != '0')
	}
	for _, part := range strings.Split(prerelease, ".") {
		switch {
		case !dashed:
		case part == "", isNumber(part) && part != "0" && part[0] == '0':
			ok = false
		}
		for i := range len(part) {
			c := part[i]
			ok = ok && ('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-')
		}
	}
	if !ok {
		return fmt.Errorf("%.200q: %w: semver 2.0.0 without build metadata is taken", s, ErrVersion)
	}
	return nil
}

func isNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// ErrTag is returned for a string that cannot be a dist-tag.
var ErrTag = errors.New("not a valid dist-tag")

// ParseTag checks a dist-tag by npm's rule, that it must not be a semver range; by
// this project's, that it is safe in a URL and has at most 214 bytes. Errors wrap
// ErrTag.
func ParseTag(s string) error {
	switch {
	case s == "" || len(s) > maxTag || !urlSafe(s) || s == "." || s == "..":
		return fmt.Errorf("%.214q: %w: it has at most %d characters, those that a URL carries as they are", s, ErrTag, maxTag)
	case IsRange(s):
		return fmt.Errorf("%q: %w: it reads as a version or range", s, ErrTag)
	}
	return nil
}
