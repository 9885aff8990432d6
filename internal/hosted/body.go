package hosted

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

var (
	// errTooLarge is for a request that is larger than it may be.
	errTooLarge = errors.New("it is too large")
	// errBody is for a body that cannot be a publish document.
	errBody = errors.New("the body is not what npm publish sends")
)

// split reads a publish document and takes the attachment out of it: the base64 in
// `_attachments`, any name, `data` goes to tarball, decoded, as it comes, and what is
// left of the document, with "" in its place, is returned. It finds that one string by
// looking at brackets and strings alone; since it takes nothing but base64 out of
// strings, what is left is JSON if and only if the body was.
//
// The document may have maxDocument bytes without the attachment, and the attachment
// maxTarball decoded: beyond either it is errTooLarge. A second attachment, and what
// is no base64, is errBody. Other errors are those of r and of tarball.
func split(r io.Reader, maxDocument, maxTarball int64, tarball io.Writer) (document []byte, err error) {
	s := &splitter{in: bufio.NewReaderSize(r, 64<<10), max: maxDocument}
	var depth int
	var keys [4]string // the name of the member that is open, by depth; "" in an array
	var last string    // the string that came last, raw
	value := false     // a member's value comes next
	found := false
	for {
		c, err := s.in.ReadByte()
		if err == io.EOF {
			return s.document, nil
		}
		if err != nil {
			return nil, err
		}
		if err := s.keep(c); err != nil {
			return nil, err
		}
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case ':':
			if value = true; depth < len(keys) {
				keys[depth] = last
			}
			continue
		case '"':
			if value && depth == 3 && keys[1] == "_attachments" && keys[3] == "data" {
				if found {
					return nil, fmt.Errorf("%w: it has more than one attachment", errBody)
				}
				found = true
				if err := s.decode(maxTarball, tarball); err != nil {
					return nil, err
				}
				break
			}
			if last, err = s.text(); err != nil {
				return nil, err
			}
		case '{', '[':
			if depth++; depth < len(keys) {
				keys[depth] = ""
			}
		case '}', ']':
			if depth--; depth < 0 {
				return nil, fmt.Errorf("%w: it is not JSON", errBody)
			}
		case ',':
			if depth < len(keys) {
				keys[depth] = ""
			}
		}
		value = false
	}
}

type splitter struct {
	in       *bufio.Reader
	document []byte
	max      int64
}

func (s *splitter) keep(c byte) error {
	if int64(len(s.document)) >= s.max {
		return fmt.Errorf("the document without its attachment has more than %d bytes: %w", s.max, errTooLarge)
	}
	s.document = append(s.document, c)
	return nil
}

// text keeps a string to its closing quote, and returns what is before that, with
// its escapes.
func (s *splitter) text() (string, error) {
	start := len(s.document)
	escaped := false
	for {
		c, err := s.in.ReadByte()
		if err != nil {
			return "", unexpected(err)
		}
		if err := s.keep(c); err != nil {
			return "", err
		}
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			text := s.document[start : len(s.document)-1]
			if len(text) > len("_attachments") {
				return "", nil // none of the names that are looked for
			}
			return string(text), nil
		}
	}
}

// decode writes the base64 that comes to its closing quote to w, and keeps that.
func (s *splitter) decode(max int64, w io.Writer) error {
	until := &untilQuote{in: s.in}
	n, err := io.Copy(w, io.LimitReader(base64.NewDecoder(base64.StdEncoding.Strict(), until), max+1))
	var corrupt base64.CorruptInputError
	switch {
	case n > max:
		return fmt.Errorf("the tarball has more than %d bytes: %w", max, errTooLarge)
	case errors.As(err, &corrupt), until.ended && errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: its attachment is not base64", errBody)
	case err != nil:
		return unexpected(err)
	}
	return s.keep('"')
}

// untilQuote reads to the quote that ends a string, which it takes, and refuses
// what base64 does not have in a JSON string.
type untilQuote struct {
	in    *bufio.Reader
	ended bool
}

func (u *untilQuote) Read(p []byte) (int, error) {
	if u.ended {
		return 0, io.EOF
	}
	if _, err := u.in.Peek(1); err != nil {
		return 0, unexpected(err)
	}
	have, _ := u.in.Peek(min(u.in.Buffered(), len(p)))
	n := 0
	for _, c := range have {
		if c == '"' {
			u.ended = true
			break
		}
		if c == '\\' || c <= ' ' || c >= 0x7f {
			return 0, fmt.Errorf("%w: its attachment is not base64", errBody)
		}
		p[n] = c
		n++
	}
	skip := n
	if u.ended {
		skip++
	}
	if _, err := u.in.Discard(skip); err != nil {
		return n, err
	}
	if u.ended && n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
