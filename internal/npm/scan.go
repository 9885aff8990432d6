package npm

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of what is kept in memory of one document, whatever its size: far
// above every real one, which has at most some ten thousand versions.
const (
	maxVersions = 1 << 17 // versions, and as many dist-tags
	maxTexts    = 2 << 20 // dependencies, times and the like, of all versions together

	// To see duplicates the decoder remembers the names in every object that it
	// is within, at some 70 bytes a name: both bounds are sums over depths.
	maxNames     = 1 << 18
	maxNameBytes = 16 << 20
	// A document smaller than this cannot go far beyond those bounds.
	fewNames = 2 << 20
)

// span is a half-open range of bytes in a document.
type span struct{ start, end int }

func (s span) of(raw []byte) []byte { return raw[s.start:s.end] }

// member is a name and its value in an object of a document, by place.
type member struct{ name, value span }

// scanner walks a document that was checked, once, in place, and knows where it
// is. It reads names as they are, in exact case. Numbers are never evaluated.
//
// What two parsers may still read differently is noted in odd, where it is
// something that this package reads: a name that is another's but for case, and
// broken UTF-8 or a lone surrogate, in a name or a text. Where it is not read it
// passes, for descriptions cut off in the middle of a character exist.
//
// Its errors, and those of what it calls, are never of the form: that was checked.
type scanner struct {
	walker
	name []byte // scratch for names with escapes
	kept int    // texts kept so far
	odd  error  // the first that was noted; nil for none
}

func (s *scanner) note(format string, args ...any) {
	if s.odd == nil {
		s.odd = fmt.Errorf(format, args...)
	}
}

// spelled notes a name that encoding/json and its like take for one of fields,
// though it is none: they fold case, with "ſ" as "s" and the Kelvin sign as "k".
func (s *scanner) spelled(name []byte, fields ...string) {
	for _, f := range fields {
		if string(name) != f && bytes.EqualFold(name, []byte(f)) {
			s.note("its field %q is another spelling of %q", name, f)
		}
	}
}

// other goes past the value of a member that is not read, whose name must not be
// another spelling of one of fields, which are.
func (s *scanner) other(name []byte, fields ...string) {
	s.spelled(name, fields...)
	s.value()
}

// keep counts a text that is kept.
func (s *scanner) keep() error {
	if s.kept++; s.kept > maxTexts {
		return fmt.Errorf("%w: it has more than %d dependencies and times", ErrPackument, maxTexts)
	}
	return nil
}

func tooMany(n int) error {
	if n > maxVersions {
		return fmt.Errorf("%w: it has more than %d versions or dist-tags", ErrPackument, maxVersions)
	}
	return nil
}

// checkNames refuses a document whose names would fill the decoder's memory
// before it came to an end. It need not see that raw is no JSON: the decoder will.
func checkNames(raw []byte) error {
	if len(raw) < fewNames {
		return nil
	}
	// The decoder keeps, by depth, room for the largest object that it has read there.
	type level struct{ names, bytes, mostNames, mostBytes int }
	var levels []level
	var names, size int // sums of the most
	depth, last := -1, 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			end := stringEnd(raw, i)
			if end < 0 {
				return nil
			}
			last, i = end-i, end
		case '{':
			if depth++; depth == len(levels) {
				levels = append(levels, level{})
			}
			levels[depth].names, levels[depth].bytes = 0, 0
		case '}':
			if depth--; depth < -1 {
				return nil
			}
		case ':':
			if depth < 0 {
				return nil
			}
			l := &levels[depth]
			l.names++
			l.bytes += last
			if l.names > l.mostNames {
				l.mostNames = l.names
				names++
			}
			if l.bytes > l.mostBytes {
				size += l.bytes - l.mostBytes
				l.mostBytes = l.bytes
			}
			if names > maxNames || size > maxNameBytes {
				return fmt.Errorf("%w: its objects have more than %d members, or names of more than %d bytes", ErrPackument, maxNames, maxNameBytes)
			}
		}
	}
	return nil
}

// stringEnd returns where the string that begins at start ends, at its closing
// quote; -1 where it does not.
func stringEnd(raw []byte, start int) int {
	for end := start + 1; ; end++ {
		n := bytes.IndexByte(raw[end:], '"')
		if n < 0 {
			return -1
		}
		end += n
		escapes := 0
		for raw[end-1-escapes] == '\\' { // the opening quote ends it
			escapes++
		}
		if escapes%2 == 0 {
			return end
		}
	}
}

// object reads the object that comes next, calls field with each name, unescaped
// and valid until field returns, and its place in the document, and returns the
// object's place. field must read exactly one value.
func (s *scanner) object(field func(name []byte, at span) error) (span, error) {
	o := span{start: s.step()}
	for s.kind() != '}' {
		at := s.value()
		quoted := at.of(s.raw)
		name := quoted[1 : len(quoted)-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			// Broken UTF-8 comes back as U+FFFD, with an error.
			var err error
			if s.name, err = jsontext.AppendUnquote(s.name[:0], quoted); err != nil {
				s.note("the name %q in it is broken Unicode", quoted)
			}
			name = s.name
		}
		if !utf8.Valid(name) {
			s.note("the name %q in it is broken Unicode", quoted)
			name = bytes.ToValidUTF8(name, []byte("\uFFFD"))
		}
		if err := field(name, at); err != nil {
			return span{}, err
		}
	}
	o.end = s.step() + 1
	return o, nil
}

// members is object, for a field that finds nothing wrong.
func (s *scanner) members(field func(name []byte, at span)) {
	s.object(func(name []byte, at span) error {
		field(name, at)
		return nil
	})
}

// text reads one value and, where it is a string, unquotes it.
func (s *scanner) text() (string, bool) {
	v := s.value().of(s.raw)
	t, ok := unquote(v)
	if ok && strings.ContainsRune(t, utf8.RuneError) {
		if _, err := jsontext.AppendUnquote(nil, v); err != nil {
			s.note("the text %.200q in it is broken Unicode", v)
		}
	}
	return t, ok
}

// unquote returns the string that v holds; false where v is something else.
// Broken UTF-8 becomes U+FFFD.
func unquote(v []byte) (string, bool) {
	if len(v) < 2 || v[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return string(bytes.ToValidUTF8(v[1:len(v)-1], []byte("\uFFFD"))), true
	}
	t, _ := jsontext.AppendUnquote(nil, v)
	return string(t), true
}

// texts reads an object of strings. Members that are no strings are left out,
// and so is the whole where it is no object: npm's oldest documents have
// arrays, strings and null in such places, and clients read them as empty.
func (s *scanner) texts() (map[string]string, error) {
	if s.kind() != '{' {
		s.value()
		return nil, nil
	}
	var m map[string]string
	_, err := s.object(func(name []byte, _ span) error {
		key := string(name)
		t, ok := s.text()
		if !ok {
			return nil
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[key] = t
		return s.keep()
	})
	return m, err
}

// keepMembers appends the object at o with only the members that keep accepts
// (by place in ms), separators and white space as they were. put, where not
// nil, writes a kept member's value.
func keepMembers(dst, raw []byte, o span, ms []member, keep func(i int) bool, put func(dst []byte, i int) []byte) []byte {
	first := true
	for i, m := range ms {
		if !keep(i) {
			continue
		}
		if first {
			dst = append(dst, raw[o.start:ms[0].name.start]...)
			first = false
		} else {
			dst = append(dst, raw[ms[i-1].value.end:m.name.start]...)
		}
		dst = append(dst, raw[m.name.start:m.value.start]...)
		if put != nil {
			dst = put(dst, i)
		} else {
			dst = append(dst, m.value.of(raw)...)
		}
	}
	if first {
		return append(dst, "{}"...)
	}
	return append(dst, raw[ms[len(ms)-1].value.end:o.end]...)
}
