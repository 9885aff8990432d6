package npm

import (
	"bytes"
	"errors"
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

// scanner walks a JSON document once, in place, and knows where it is. The
// decoder refuses duplicate names at every depth, nesting beyond 10,000, and
// what is not JSON by RFC 8259 (NaN, comments, a byte order mark), and reads
// names as they are, in exact case. Numbers are never evaluated.
//
// What two parsers may still read differently is noted in odd, where it is
// something that this package reads: a name that is another's but for case, and
// broken UTF-8 or a lone surrogate, in a name or a text. Where it is not read it
// passes, for descriptions cut off in the middle of a character exist.
type scanner struct {
	dec  *jsontext.Decoder
	raw  []byte
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

// other skips the value of a member that is not read, whose name must not be
// another spelling of one of fields, which are.
func (s *scanner) other(name []byte, fields ...string) error {
	s.spelled(name, fields...)
	return s.skip()
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

func scan(raw []byte) *scanner {
	// A bytes.Buffer is read in place, without a copy.
	return &scanner{raw: raw, dec: jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowInvalidUTF8(true))}
}

// document calls field for each member of the one object that the document
// must be. Errors wrap ErrPackument.
func (s *scanner) document(field func(name []byte, at span) error) error {
	if err := checkNames(s.raw); err != nil {
		return err
	}
	if s.dec.PeekKind() != '{' {
		if _, err := s.dec.ReadToken(); err != nil {
			return fmt.Errorf("%w: %w", ErrPackument, err)
		}
		return fmt.Errorf("%w: it is not a JSON object", ErrPackument)
	}
	if _, err := s.object(field); err != nil {
		if errors.Is(err, ErrPackument) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrPackument, err)
	}
	if rest := s.raw[s.dec.InputOffset():]; len(bytes.TrimLeft(rest, " \t\r\n")) > 0 {
		return fmt.Errorf("%w: bytes follow the document", ErrPackument)
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
	if _, err := s.dec.ReadToken(); err != nil {
		return span{}, err
	}
	o := span{start: int(s.dec.InputOffset()) - 1}
	for s.dec.PeekKind() != '}' {
		quoted, err := s.dec.ReadValue()
		if err != nil {
			return span{}, err
		}
		end := int(s.dec.InputOffset())
		name := quoted[1 : len(quoted)-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			// Broken UTF-8 comes back as U+FFFD, with an error.
			if s.name, err = jsontext.AppendUnquote(s.name[:0], quoted); err != nil {
				s.note("the name %q in it is broken Unicode", quoted)
			}
			name = s.name
		}
		if !utf8.Valid(name) {
			s.note("the name %q in it is broken Unicode", quoted)
			name = bytes.ToValidUTF8(name, []byte("\uFFFD"))
		}
		if err := field(name, span{end - len(quoted), end}); err != nil {
			return span{}, err
		}
	}
	if _, err := s.dec.ReadToken(); err != nil {
		return span{}, err
	}
	o.end = int(s.dec.InputOffset())
	return o, nil
}

// value reads one value of any kind.
func (s *scanner) value() (span, error) {
	v, err := s.dec.ReadValue()
	if err != nil {
		return span{}, err
	}
	end := int(s.dec.InputOffset())
	return span{end - len(v), end}, nil
}

// skip reads one value of no interest.
func (s *scanner) skip() error { return s.dec.SkipValue() }

// text reads one value and, where it is a string, unquotes it.
func (s *scanner) text() (string, bool, error) {
	v, err := s.dec.ReadValue()
	if err != nil {
		return "", false, err
	}
	t, ok := unquote(v)
	if ok && strings.ContainsRune(t, utf8.RuneError) {
		if _, err := jsontext.AppendUnquote(nil, v); err != nil {
			s.note("the text %.200q in it is broken Unicode", v)
		}
	}
	return t, ok, nil
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
	if s.dec.PeekKind() != '{' {
		return nil, s.skip()
	}
	var m map[string]string
	_, err := s.object(func(name []byte, _ span) error {
		key := string(name)
		t, ok, err := s.text()
		if err == nil && ok {
			if m == nil {
				m = make(map[string]string)
			}
			m[key] = t
			err = s.keep()
		}
		return err
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
