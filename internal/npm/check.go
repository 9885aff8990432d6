package npm

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Checked is a packument, full or abbreviated, whose bytes were found to be one
// JSON object that two parsers do not read differently for its form: what is
// made of it need not look at that again.
type Checked struct{ raw []byte }

// Check looks at every byte of raw, which must not change after. It refuses
// duplicate names at every depth, nesting beyond 10,000, what is not JSON by RFC
// 8259 (NaN, comments, a byte order mark), and more names than any real document
// has. Errors wrap ErrPackument.
func Check(raw []byte) (Checked, error) {
	if err := checkNames(raw); err != nil {
		return Checked{}, err
	}
	// A bytes.Buffer is read in place, without a copy.
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowInvalidUTF8(true))
	kind := dec.PeekKind()
	if _, err := dec.ReadValue(); err != nil { // faster than SkipValue
		return Checked{}, fmt.Errorf("%w: %w", ErrPackument, err)
	}
	if kind != '{' {
		return Checked{}, fmt.Errorf("%w: it is not a JSON object", ErrPackument)
	}
	if rest := raw[dec.InputOffset():]; len(bytes.TrimLeft(rest, " \t\r\n")) > 0 {
		return Checked{}, fmt.Errorf("%w: bytes follow the document", ErrPackument)
	}
	return Checked{raw}, nil
}

// Bytes are the document.
func (c Checked) Bytes() []byte { return c.raw }

func (c Checked) scan() *scanner { return &scanner{walker: walker{raw: c.raw}} }

// walker goes through JSON that was checked, from value to value. It sees
// nothing wrong, and where there is something it may read past the end.
type walker struct {
	raw []byte
	at  int // of what comes next, or of what lies before it
}

// kind is how the next value begins, or the end of an object or array; of a
// number it is some byte of that. Names are values too.
func (w *walker) kind() byte {
	for {
		switch c := w.raw[w.at]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
			w.at++
		default:
			return c
		}
	}
}

// step goes into an object or array, or out of it, and returns where the bracket
// is.
func (w *walker) step() int {
	w.kind()
	w.at++
	return w.at - 1
}

// value goes past a value and returns its place.
func (w *walker) value() span {
	kind := w.kind()
	start := w.at
	switch kind {
	case '"':
		w.at = stringEnd(w.raw, w.at) + 1
	case '{', '[':
		for depth := 0; ; {
			switch w.raw[w.at] {
			case '"':
				w.at = stringEnd(w.raw, w.at)
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			if w.at++; depth == 0 {
				return span{start, w.at}
			}
		}
	default: // a number or a word
		for strings.IndexByte(",]} \t\r\n", w.raw[w.at]) < 0 {
			w.at++
		}
	}
	return span{start, w.at}
}
