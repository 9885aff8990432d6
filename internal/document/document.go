// Package document is the stored form of a package document: JSON cut at the
// borders of its sections and versions, each piece compressed apart, all of
// them together one ordinary gzip member, so that a new version of a large
// package adds a few blocks. It is pure: it knows nothing of npm's meaning of
// the fields, of IPFS blocks or of stores.
package document

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
)

// Format names the splitter and the encoder. The bytes of a document follow
// from the raw bytes and the format, for a directory's CID depends on them:
// whatever changes them, be it here or in the encoder's module, is another format.
const Format = "sections-64k-16k-gzip-1"

// MaxSegment bounds a segment in bytes, and a section too: each is one UnixFS
// leaf.
const MaxSegment = 1 << 20

var (
	// ErrMalformed is returned for bytes that are not one gzip member and
	// nothing more, or whose checksum is wrong.
	ErrMalformed = errors.New("not a compressed document")
	// ErrTooLarge is returned for a document of more bytes than allowed.
	ErrTooLarge = errors.New("document larger than allowed")
)

// level is the encoder's. Part of the format.
const level = 6

// header opens a gzip member (RFC 1952): deflate, no name, no time, unknown
// system.
var header = [10]byte{0x1f, 0x8b, 8, 9: 255}

// end closes the deflate stream: an empty stored block, marked as the last.
var end = [5]byte{0x01, 0x00, 0x00, 0xff, 0xff}

// Document is a compressed document. The concatenation of Segments is one
// gzip member; each segment is meant to be one UnixFS chunk.
type Document struct {
	Segments [][]byte
	Size     int64 // bytes before compression
}

// Encode compresses raw, which may be any bytes. Each section becomes one
// segment, whose bytes depend on that section alone: no reference reaches over
// its edge, since every one has a new encoder, flushed to a whole byte (RFC
// 1951's empty stored block). The checksum is a segment by itself, for it
// changes with any other, unless there is one section only.
func Encode(raw []byte) Document { return encode(raw, compressed) }

// encode is Encode, where section is what a section comes to when it is
// compressed. It is not asked where there is one section only.
func encode(raw []byte, section func([]byte) []byte) Document {
	var trailer [len(end) + 8]byte
	n := copy(trailer[:], end[:])
	binary.LittleEndian.PutUint32(trailer[n:], crc32.ChecksumIEEE(raw))
	binary.LittleEndian.PutUint32(trailer[n+4:], uint32(len(raw)))

	sections := Sections(raw)
	if len(sections) < 2 {
		return Document{Segments: [][]byte{slices.Concat(header[:], compressed(raw), trailer[:])}, Size: int64(len(raw))}
	}
	d := Document{Segments: make([][]byte, 0, len(sections)+1), Size: int64(len(raw))}
	for i, s := range sections {
		z := section(s)
		if i == 0 {
			z = slices.Concat(header[:], z)
		}
		d.Segments = append(d.Segments, z)
	}
	d.Segments = append(d.Segments, trailer[:])
	return d
}

// compressed is s, deflated and flushed. It has a new writer each time: one that
// was used before need not give the same bytes.
func compressed(s []byte) []byte {
	var buf bytes.Buffer
	buf.Grow(len(s)/6 + 64)
	w, err := flate.NewWriter(&buf, level)
	if err == nil {
		_, err = w.Write(s)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil { // the level is right, and a bytes.Buffer takes all
		panic(err)
	}
	return bytes.Clone(buf.Bytes()) // without the room behind them
}

// Bytes is the whole gzip member.
func (d Document) Bytes() []byte { return bytes.Join(d.Segments, nil) }

// Decode reads a compressed document, also one that another encoder made. size
// is how many bytes of content are expected, for the memory that is taken at
// first; it need not be right. Decode returns ErrTooLarge beyond most bytes of
// content, ErrMalformed for anything but one sound gzip member, and r's own error
// where r fails.
func Decode(r io.Reader, size, most int64) ([]byte, error) {
	src := &source{r: r}
	in := bufio.NewReader(src) // an io.ByteReader, so that gzip takes no byte too many
	malformed := func(err error) error {
		if src.err != nil && !errors.Is(src.err, io.EOF) {
			return fmt.Errorf("decode document: %w", src.err)
		}
		return fmt.Errorf("decode document: %w: %w", ErrMalformed, err)
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, malformed(err)
	}
	z.Multistream(false)
	var out bytes.Buffer
	out.Grow(int(max(0, min(size, most))) + bytes.MinRead)
	if _, err := out.ReadFrom(io.LimitReader(z, most)); err != nil {
		return nil, malformed(err)
	}
	switch n, err := io.ReadFull(z, make([]byte, 1)); {
	case n > 0:
		return nil, fmt.Errorf("decode document: %w: more than %d bytes", ErrTooLarge, most)
	case !errors.Is(err, io.EOF):
		return nil, malformed(err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, malformed(errors.New("bytes follow"))
	}
	return out.Bytes(), nil
}

// source remembers its reader's error, to tell it from the decoder's.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil {
		s.err = err
	}
	return n, err
}
