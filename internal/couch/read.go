package couch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// rawPage is a page before the iteration has looked at it.
type rawPage struct {
	Page
	rows int // with design documents
}

// reader walks JSON. It allows what a document may contain (double names,
// invalid UTF-8), since a document is handed on as it is for its own parser to
// judge; in the feed's own objects fields refuses double names.
type reader struct{ dec *jsontext.Decoder }

func newReader(body []byte) reader {
	return reader{jsontext.NewDecoder(bytes.NewReader(body),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))}
}

// readServer reads a database's root document.
func readServer(body []byte) (ServerInfo, error) {
	var info ServerInfo
	r := newReader(body)
	docs := true
	err := r.whole(func(name string) (err error) {
		switch name {
		case "engine":
			info.Engine, err = r.text()
		case "db_name":
			info.Name, err = r.text()
		case "uuid":
			info.UUID, err = r.text()
		case "update_seq":
			info.UpdateSeq, err = r.seq()
		case "doc_count":
			info.DocCount, err = r.count()
		case "include_docs":
			docs, err = r.boolean()
		default:
			err = r.dec.SkipValue()
		}
		return err
	})
	if err != nil {
		return ServerInfo{}, malformed("root", err)
	}
	if info.UpdateSeq == "" {
		return ServerInfo{}, malformed("root", errors.New("no update_seq"))
	}
	switch info.Engine {
	case EngineNPM:
		docs = false
	case EngineMirror:
	default:
		info.Engine = EngineCouch
	}
	info.IncludeDocs = docs
	return info, nil
}

// readPage reads the answer of _changes.
func readPage(body []byte) (rawPage, error) {
	var p rawPage
	found := false
	r := newReader(body)
	err := r.whole(func(name string) (err error) {
		switch name {
		case "results":
			found = true
			return r.list(func() error {
				c, err := r.change()
				if err != nil {
					return fmt.Errorf("row %d: %w", p.rows, err)
				}
				p.rows++
				if !strings.HasPrefix(c.ID, "_design/") {
					p.Changes = append(p.Changes, c)
				}
				p.LastSeq = c.Seq
				return nil
			})
		case "last_seq":
			last, err := r.seq()
			// The feed's own word counts, if it comes after the rows as
			// everywhere; rows alone lead as far as their last one.
			if last != "" {
				p.LastSeq = last
			}
			return err
		default:
			return r.dec.SkipValue()
		}
	})
	if err == nil && !found {
		err = errors.New("no results")
	}
	if err != nil {
		return rawPage{}, malformed("changes", err)
	}
	return p, nil
}

// line is a line of a continuous feed: a heartbeat (no Seq), a row, or the last.
type line struct {
	Change
	row, last bool
}

// readLine reads a line of a continuous feed, which is at most one object.
func readLine(text []byte) (line, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return line{}, nil
	}
	var l line
	r := newReader(text)
	err := r.whole(func(name string) (err error) {
		if name == "last_seq" {
			l.last = true
			l.Seq, err = r.seq()
			return err
		}
		l.row = l.row || name == "id" || name == "seq"
		return r.changeField(&l.Change, name)
	})
	if l.Deleted {
		l.Doc = nil
	}
	switch {
	case err != nil:
	case l.row == l.last:
		err = errors.New("neither a row nor the end")
	case l.Seq == "" && l.row:
		err = errors.New("no seq")
	}
	if err != nil {
		return line{}, malformed("line", err)
	}
	return l, nil
}

func (r reader) change() (Change, error) {
	var c Change
	err := r.fields(func(name string) error { return r.changeField(&c, name) })
	if c.Deleted {
		c.Doc = nil // a stub that says so
	}
	if err == nil && c.Seq == "" {
		err = errors.New("no seq")
	}
	return c, err
}

// changeField reads one field of a row into c.
func (r reader) changeField(c *Change, name string) (err error) {
	switch name {
	case "seq":
		c.Seq, err = r.seq()
	case "id":
		c.ID, err = r.text()
	case "deleted":
		c.Deleted, err = r.boolean()
	case "changes":
		err = r.list(func() error {
			return r.fields(func(name string) error {
				if name != "rev" {
					return r.dec.SkipValue()
				}
				rev, err := r.text()
				c.Revs = append(c.Revs, rev)
				return err
			})
		})
	case "doc":
		var raw jsontext.Value
		if raw, err = r.dec.ReadValue(); err == nil && raw.Kind() == '{' {
			c.Doc = json.RawMessage(bytes.Clone(raw))
		}
	default:
		err = r.dec.SkipValue()
	}
	return err
}

// maxID bounds an id that is sent back as the next page's start, in bytes.
const maxID = 4096

// docsPage is an answer of _all_docs.
type docsPage struct {
	docs  []Doc // with design documents
	total int   // what the server says it holds; 0: it does not say
}

// readDocs reads the answer of _all_docs.
func readDocs(body []byte) (docsPage, error) {
	var p docsPage
	found := false
	r := newReader(body)
	err := r.whole(func(name string) (err error) {
		switch name {
		case "rows":
			found = true
			return r.list(func() error {
				d, err := r.doc()
				if err != nil {
					return fmt.Errorf("row %d: %w", len(p.docs), err)
				}
				p.docs = append(p.docs, d)
				return nil
			})
		case "total_rows":
			p.total, err = r.count()
			return err
		default:
			return r.dec.SkipValue()
		}
	})
	if err == nil && !found {
		err = errors.New("no rows")
	}
	if err != nil {
		return docsPage{}, malformed("all_docs", err)
	}
	return p, nil
}

func (r reader) doc() (Doc, error) {
	var d Doc
	err := r.fields(func(name string) (err error) {
		switch name {
		case "id":
			d.ID, err = r.text()
		case "value":
			err = r.fields(func(name string) (err error) {
				switch name {
				case "rev":
					d.Rev, err = r.text()
				case "deleted":
					d.Deleted, err = r.boolean()
				default:
					err = r.dec.SkipValue()
				}
				return err
			})
		default:
			err = r.dec.SkipValue()
		}
		return err
	})
	switch {
	case err != nil:
	case d.ID == "":
		err = errors.New("no id")
	case len(d.ID) > maxID:
		err = fmt.Errorf("an id of %d bytes", len(d.ID))
	}
	return d, err
}

func malformed(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, ErrMalformed, err)
}

// whole reads a text that is one object and nothing after it.
func (r reader) whole(field func(name string) error) error {
	if err := r.fields(field); err != nil {
		return err
	}
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("something after the object")
	}
	return nil
}

// fields reads an object and refuses a name that comes twice.
func (r reader) fields(field func(name string) error) error {
	if err := r.open('{'); err != nil {
		return err
	}
	var few [8]string // as a rule
	seen := few[:0]
	for r.dec.PeekKind() != '}' {
		name, err := r.name()
		if err != nil {
			return err
		}
		for _, s := range seen {
			if s == name {
				return fmt.Errorf("field %.64q twice", name)
			}
		}
		if len(seen) == maxFields {
			return errors.New("too many fields")
		}
		seen = append(seen, name)
		if err := field(name); err != nil {
			return fmt.Errorf("field %.64q: %w", name, err)
		}
	}
	_, err := r.dec.ReadToken()
	return err
}

// names are those that rows have, as they are written: a name that is not made
// anew for each row is most of what reading a page costs less.
var names = map[string]string{
	`"seq"`: "seq", `"id"`: "id", `"key"`: "key", `"changes"`: "changes", `"rev"`: "rev", `"value"`: "value", `"deleted"`: "deleted", `"doc"`: "doc",
}

// name reads a field's name.
func (r reader) name() (string, error) {
	raw, err := r.dec.ReadValue()
	if err != nil {
		return "", err
	}
	if name, ok := names[string(raw)]; ok {
		return name, nil
	}
	text, err := jsontext.AppendUnquote(nil, raw)
	return string(text), err
}

// maxFields bounds the fields of a feed's own object; CouchDB's root has fifteen.
const maxFields = 100

// list reads an array.
func (r reader) list(item func() error) error {
	if err := r.open('['); err != nil {
		return err
	}
	for r.dec.PeekKind() != ']' {
		if err := item(); err != nil {
			return err
		}
	}
	_, err := r.dec.ReadToken()
	return err
}

func (r reader) open(kind jsontext.Kind) error {
	t, err := r.dec.ReadToken()
	if err != nil {
		return noEOF(err)
	}
	if t.Kind() != kind {
		return fmt.Errorf("%s in place of %s", t.Kind(), kind)
	}
	return nil
}

// text reads a string; null is "".
func (r reader) text() (string, error) {
	t, err := r.dec.ReadToken()
	switch {
	case err != nil:
		return "", noEOF(err)
	case t.Kind() == '"':
		return t.String(), nil
	case t.Kind() == 'n':
		return "", nil
	}
	return "", fmt.Errorf("%s in place of a string", t.Kind())
}

// boolean reads true or false; null is false.
func (r reader) boolean() (bool, error) {
	t, err := r.dec.ReadToken()
	switch {
	case err != nil:
		return false, noEOF(err)
	case t.Kind() == 't' || t.Kind() == 'f':
		return t.Bool(), nil
	case t.Kind() == 'n':
		return false, nil
	}
	return false, fmt.Errorf("%s in place of a boolean", t.Kind())
}

// count reads a number of things; null, and what is no such number, is 0: it only
// serves to judge by.
func (r reader) count() (int, error) {
	raw, err := r.dec.ReadValue()
	if err != nil {
		return 0, noEOF(err)
	}
	n, err := strconv.Atoi(string(raw))
	if err != nil || n < 0 || n > maxCount {
		return 0, nil
	}
	return n, nil
}

// maxCount bounds a number of documents that is believed.
const maxCount = 1 << 40

// maxSeq bounds a cursor in bytes. CouchDB's grow with its shards, to some
// thousand bytes.
const maxSeq = 64 << 10

// seq reads a sequence as the text to send back: a string's contents, a
// number's digits, "" for null.
func (r reader) seq() (string, error) {
	raw, err := r.dec.ReadValue()
	if err != nil {
		return "", noEOF(err)
	}
	if len(raw) > maxSeq {
		return "", fmt.Errorf("a sequence of %d bytes", len(raw))
	}
	switch raw.Kind() {
	case '"':
		text, err := jsontext.AppendUnquote(nil, raw)
		return string(text), err
	case '0':
		return string(raw), nil
	case 'n':
		return "", nil
	}
	return "", fmt.Errorf("%s in place of a sequence", raw.Kind())
}

// noEOF keeps a cut text from looking like the end of one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
