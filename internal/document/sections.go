package document

import (
	"bytes"
	"hash/fnv"
)

// Sizes of sections in bytes. They are part of Format.
const (
	versionsAvg = 64 << 10 // average inside "versions"
	timeAvg     = 16 << 10 // average inside "time"
	whole       = 64 << 10 // documents up to this size are not cut
	// maxSection leaves room for what compression of random bytes adds.
	maxSection = MaxSegment - 4<<10
)

// Sections cuts raw into pieces of at most MaxSegment bytes, whose
// concatenation is raw. A document of up to 64 KiB is one piece. A larger JSON
// object is cut where the entries of its members "versions" and "time" begin
// and end, and between entries. There the cut depends on the entry before it
// alone: its key's hash against its size, so that cuts lie versionsAvg or
// timeAvg bytes apart on average and stay where they are when other entries
// come or go. Only a piece that would be shorter than a 16th of that, or longer
// than the bound, is cut elsewhere. Bytes that are no JSON are cut by the bound
// alone. The pieces alias raw.
func Sections(raw []byte) [][]byte {
	if len(raw) == 0 {
		return nil
	}
	if len(raw) <= whole {
		return [][]byte{raw}
	}
	s := splitter{raw: raw}
	s.scan()
	s.cut(len(raw))
	return s.out
}

// splitter finds the cuts. It reads JSON only as far as needed to see where
// members end, and where the bytes are no JSON it stops looking: any cut is a
// right one.
type splitter struct {
	raw   []byte
	at    int // of the next byte to read
	start int // of the piece that is open
	out   [][]byte
}

// cut ends the open piece at end, in several parts where it is too long.
func (s *splitter) cut(end int) {
	for s.start < end {
		n := min(end-s.start, maxSection)
		s.out = append(s.out, s.raw[s.start:s.start+n:s.start+n])
		s.start += n
	}
}

// scan goes through the members of the top object.
func (s *splitter) scan() {
	if !s.next('{') {
		return
	}
	for {
		key, ok := s.key()
		if !ok {
			return
		}
		avg := 0
		switch string(key) {
		case "versions":
			avg = versionsAvg
		case "time":
			avg = timeAvg
		}
		if avg > 0 && s.next('{') {
			if !s.entries(avg) {
				return
			}
		} else if !s.skip() {
			return
		}
		if !s.next(',') {
			return
		}
	}
}

// entries goes through the object whose brace was just read. Each entry's bytes
// begin with the comma before it: so one that comes after the last changes
// nothing that stood there. What lies between "versions" and "time" goes with
// the first entries of the latter, as its own piece would be tiny.
func (s *splitter) entries(avg int) bool {
	if avg == versionsAvg {
		s.cut(s.at)
	}
	for first := true; ; first = false {
		before := s.at
		if s.next('}') {
			s.cut(s.at - 1)
			return true
		}
		if !first && !s.next(',') {
			return false
		}
		key, ok := s.key()
		if !ok {
			return false
		}
		value := s.at
		if !s.skip() {
			return false
		}
		if s.at-s.start > maxSection {
			s.cut(before)
		}
		if s.at-s.start >= avg/16 && cutAfter(key, len(key)+s.at-value, avg) {
			s.cut(s.at)
		}
	}
}

// cutAfter is true for one entry in avg/size, chosen by its key.
func cutAfter(key []byte, size, avg int) bool {
	h := fnv.New32a()
	h.Write(key)
	return uint64(mix(h.Sum32()))*uint64(avg) < uint64(size)<<32
}

// mix is the finalizer of murmur3-32: FNV alone leaves the high bits of keys
// that differ in the last character much alike.
func mix(h uint32) uint32 {
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	return h ^ h>>16
}

// space passes over white space.
func (s *splitter) space() {
	for s.at < len(s.raw) {
		switch s.raw[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

// next reads c, after white space, if it is there.
func (s *splitter) next(c byte) bool {
	at := s.at
	s.space()
	if s.at < len(s.raw) && s.raw[s.at] == c {
		s.at++
		return true
	}
	s.at = at
	return false
}

// key reads a string and the colon after it, and returns what stands between
// the quotes.
func (s *splitter) key() ([]byte, bool) {
	if !s.next('"') {
		return nil, false
	}
	start := s.at
	if !s.rest() {
		return nil, false
	}
	return s.raw[start : s.at-1], s.next(':')
}

// rest reads to the end of the string whose first quote was read.
func (s *splitter) rest() bool {
	for {
		i := bytes.IndexByte(s.raw[s.at:], '"')
		if i < 0 {
			return false
		}
		s.at += i + 1
		escapes := 0
		for j := s.at - 2; s.raw[j] == '\\'; j-- {
			escapes++
		}
		if escapes%2 == 0 {
			return true
		}
	}
}

// skip reads one value: to the end of a string, to the bracket that closes the
// first, or to what may follow a number or word.
func (s *splitter) skip() bool {
	s.space()
	start := s.at
	for depth := 0; s.at < len(s.raw); {
		switch c := s.raw[s.at]; c {
		case '"':
			s.at++
			if !s.rest() {
				return false
			}
			if depth == 0 {
				return true
			}
		case '{', '[':
			s.at++
			depth++
		case '}', ']':
			if depth == 0 {
				return s.at > start
			}
			s.at++
			if depth--; depth == 0 {
				return true
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return s.at > start
			}
			s.at++
		default:
			s.at++
		}
	}
	return false
}
