package ledger

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// The rows, by the first byte of their key. Names and versions are terms: NUL
// is written 00 FF and a term ends with 00 01, so no term is another's prefix
// and keys sort as their terms do. One version is one row: a package of ten
// thousand versions costs one small row when one is added.
//
//	i                  identity: row format, a dot, 32 hex digits
//	h                  head and counts (JSON, type state)
//	c feed             cursor: a version byte, then the feed's own value
//	p name             package without its versions (binary, row format 2)
//	v name version     version (binary, row format 2)
//	s seq(8, BE)       the package's name after one byte: 1 if deleted
//	r name version     refusal (JSON)
//	t name version     the queue (binary, row format 2)
//	d time name version  the queue by when a row is due: nanoseconds since 1970 (8, BE); empty
//	w name range       want (JSON); a scope in the place of a name
//	o name CID         a document that the package no longer has: since when (varint, nanoseconds since 1970)
//	x name version     a version that was dropped, and whose tarball is still held: since when (as above)
const (
	rowIdentity = 'i'
	rowState    = 'h'
	rowCursor   = 'c'
	rowPackage  = 'p'
	rowVersion  = 'v'
	rowSeq      = 's'
	rowRefusal  = 'r'
	rowRetry    = 't'
	rowDue      = 'd'
	rowWant     = 'w'
	rowFormer   = 'o'
	rowDropped  = 'x'
)

const (
	rowFormat = 2
	// cursorFormat is that of cursor rows.
	cursorFormat = 1
	// maxTerm bounds a name or version in a key. npm's own limits are 214 and
	// 256; what old packages have stays below this.
	maxTerm = 1024
)

// state is the row that moves with every batch.
type state struct {
	Head   Seq    `json:"head"`
	Counts Counts `json:"counts"`
	// Stamp is that of the newest row of the queue.
	Stamp uint64 `json:"stamp"`
	// Reasons are how many refusals there are of each reason. It is never
	// changed in place.
	Reasons map[string]int `json:"reasons,omitempty"`
}

func (s state) equal(o state) bool {
	return s.Head == o.Head && s.Counts == o.Counts && s.Stamp == o.Stamp && maps.Equal(s.Reasons, o.Reasons)
}

func appendTerm(key []byte, term string) []byte {
	for i := range len(term) {
		if term[i] == 0 {
			key = append(key, 0, 0xff)
			continue
		}
		key = append(key, term[i])
	}
	return append(key, 0, 1)
}

// readTerm takes the first term off key.
func readTerm(key []byte) (term string, rest []byte, err error) {
	out := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		if key[i] != 0 {
			out = append(out, key[i])
			continue
		}
		if i+1 == len(key) {
			break
		}
		switch key[i+1] {
		case 1:
			return string(out), key[i+2:], nil
		case 0xff:
			out = append(out, 0)
			i++
		default:
			return "", nil, fmt.Errorf("key %q: %w", key, ErrCorrupt)
		}
	}
	return "", nil, fmt.Errorf("key %q: %w", key, ErrCorrupt)
}

func packageKey(name npm.Name) []byte {
	return appendTerm([]byte{rowPackage}, string(name))
}

// itemKey is the key of a version, refusal or retry.
func itemKey(row byte, name npm.Name, version string) []byte {
	return appendTerm(appendTerm([]byte{row}, string(name)), version)
}

func wantKey(w Want) []byte {
	name := string(w.Spec.Name)
	if name == "" {
		name = w.Scope
	}
	return appendTerm(appendTerm([]byte{rowWant}, name), w.Spec.Range)
}

func formerKey(name npm.Name, document cid.Cid) []byte {
	return append(appendTerm([]byte{rowFormer}, string(name)), document.Bytes()...)
}

func readFormer(kv keyValue) (Former, error) {
	name, rest, err := readTerm(kv.key[1:])
	if err != nil {
		return Former{}, err
	}
	c, err := cid.Cast(rest)
	r := rowReader{rest: kv.value}
	f := Former{Name: npm.Name(name), CID: c, Since: r.time()}
	if err != nil || f.Since.IsZero() {
		r.bad = true
	}
	return f, r.end("former document of " + name)
}

// readDropped reads of a dropped version all but its CID.
func readDropped(kv keyValue) (Former, error) {
	name, rest, err := readTerm(kv.key[1:])
	if err != nil {
		return Former{}, err
	}
	version, rest, err := readTerm(rest)
	r := rowReader{rest: kv.value}
	f := Former{Name: npm.Name(name), Version: version, Since: r.time()}
	if err != nil || len(rest) > 0 || f.Since.IsZero() {
		r.bad = true
	}
	return f, r.end("dropped version of " + name)
}

// dueKey is the key of a queue row in the order in which rows fall due.
func dueKey(r Retry) []byte {
	key := binary.BigEndian.AppendUint64([]byte{rowDue}, dueTime(r.Next))
	return appendTerm(appendTerm(key, string(r.Name)), r.Version)
}

// dueTime is a time in a due key. Times before 1970 are due at once.
func dueTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(0, t.UnixNano()))
}

func readDue(key []byte) (Key, error) {
	if len(key) < 9 {
		return Key{}, fmt.Errorf("due row %x: %w", key, ErrCorrupt)
	}
	name, rest, err := readTerm(key[9:])
	if err != nil {
		return Key{}, err
	}
	version, rest, err := readTerm(rest)
	if err != nil || len(rest) != 0 {
		return Key{}, fmt.Errorf("due row %x: %w", key, ErrCorrupt)
	}
	return Key{Name: npm.Name(name), Version: version}, nil
}

func (r Retry) encode() []byte {
	out := make([]byte, 0, 64+len(r.Rev)+len(r.Detail))
	out = append(out, rowFormat, flag(r.Approved))
	out = binary.AppendUvarint(out, uint64(r.Attempts))
	out = binary.AppendUvarint(out, uint64(r.Missing))
	out = binary.AppendUvarint(out, r.Stamp)
	out = appendTime(out, r.Next)
	out = appendTime(out, r.Queued)
	out = appendTime(out, r.Since)
	out = appendString(out, r.Rev)
	return appendString(out, r.Detail)
}

func decodeRetry(k Key, row []byte) (Retry, error) {
	r := rowReader{rest: row}
	r.format()
	q := Retry{Name: k.Name, Version: k.Version, Approved: r.flag()}
	q.Attempts = int(r.uvarint())
	q.Missing = int(r.uvarint())
	q.Stamp = r.uvarint()
	q.Next = r.time()
	q.Queued = r.time()
	q.Since = r.time()
	q.Rev = r.string()
	q.Detail = r.string()
	return q, r.end("queue row of " + string(k.Name))
}

func cursorKey(feed string) []byte { return append([]byte{rowCursor}, feed...) }

func seqKey(seq Seq) []byte {
	return binary.BigEndian.AppendUint64([]byte{rowSeq}, uint64(seq))
}

// upperBound is the smallest key above every key that starts with prefix,
// whose last byte is never 0xff here.
func upperBound(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}

// storedVersion is a version row. A dropped one keeps its digests and no more
// counts as held.
type storedVersion struct {
	Version
	Dropped bool
}

const flagSet = 1

func (v storedVersion) encode() []byte {
	out := make([]byte, 0, 64+len(v.Integrity)+len(v.Shasum)+len(v.File))
	out = append(out, rowFormat, flag(v.Dropped))
	out = binary.AppendUvarint(out, v.Size)
	out = binary.AppendUvarint(out, v.Tsize)
	out = appendTime(out, v.FirstSeen)
	out = appendString(out, v.Integrity)
	out = appendString(out, v.Shasum)
	out = appendString(out, v.File)
	out = appendString(out, v.CID.KeyString())
	out = appendString(out, v.Proof)
	return appendString(out, v.Signature)
}

func decodeVersion(version string, row []byte) (storedVersion, error) {
	r := rowReader{rest: row}
	r.format()
	v := storedVersion{Dropped: r.flag()}
	v.Version.Version = version
	v.Size = r.uvarint()
	v.Tsize = r.uvarint()
	v.FirstSeen = r.time()
	v.Integrity = r.string()
	v.Shasum = r.string()
	v.File = r.string()
	v.CID = r.cid()
	if r.is != 1 {
		v.Proof = r.string()
		v.Signature = r.string()
	}
	return v, r.end("version " + version)
}

func encodePackage(p Package) []byte {
	out := make([]byte, 0, 96+len(p.Rev)+len(p.ETag))
	out = append(out, rowFormat, flag(p.Deleted))
	out = binary.AppendUvarint(out, uint64(p.Seq))
	out = appendString(out, p.Rev)
	out = appendString(out, p.ETag)
	out = appendTime(out, p.Checked)
	out = appendString(out, p.Document.CID.KeyString())
	out = binary.AppendUvarint(out, p.Document.Tsize)
	out = binary.AppendUvarint(out, p.Document.Size)
	out = binary.AppendUvarint(out, uint64(p.Held))
	out = binary.AppendUvarint(out, uint64(p.Listed))
	if p.Removed == nil {
		return append(out, 0)
	}
	out = appendTime(append(out, flagSet), p.Removed.Time)
	out = appendString(out, p.Removed.Reason)
	return binary.AppendUvarint(out, uint64(p.Removed.Versions))
}

func decodePackage(name npm.Name, row []byte) (Package, error) {
	r := rowReader{rest: row}
	r.format()
	p := Package{Name: name, Deleted: r.flag()}
	p.Seq = Seq(r.uvarint())
	p.Rev = r.string()
	p.ETag = r.string()
	p.Checked = r.time()
	p.Document.CID = r.cid()
	p.Document.Tsize = r.uvarint()
	p.Document.Size = r.uvarint()
	if r.is != 1 {
		p.Held = int(r.uvarint())
		p.Listed = int(r.uvarint())
		if r.flag() {
			p.Removed = &Removal{Time: r.time(), Reason: r.string(), Versions: int(r.uvarint())}
		}
	}
	return p, r.end("package " + string(name))
}

func encodeSeq(name npm.Name, deleted bool) []byte {
	return append([]byte{flag(deleted)}, name...)
}

func decodeSeq(key, row []byte) (Change, error) {
	if len(key) != 9 || len(row) < 2 || row[0] > flagSet {
		return Change{}, fmt.Errorf("sequence row %x: %w", key, ErrCorrupt)
	}
	return Change{
		Seq:     Seq(binary.BigEndian.Uint64(key[1:])),
		Name:    npm.Name(row[1:]),
		Deleted: row[0] == flagSet,
	}, nil
}

func encodeCursor(value string) []byte { return append([]byte{cursorFormat}, value...) }

func decodeCursor(feed string, row []byte) (string, error) {
	if len(row) == 0 || row[0] != cursorFormat {
		return "", fmt.Errorf("cursor of %s: %w", feed, ErrCorrupt)
	}
	return string(row[1:]), nil
}

// encodeJSON is for rows that are few or rarely written.
func encodeJSON(v any) ([]byte, error) {
	row, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return row, nil
}

func decodeJSON[T any](row []byte) (T, error) {
	var v T
	if err := json.Unmarshal(row, &v); err != nil {
		return v, fmt.Errorf("decode %T: %w: %w", v, ErrCorrupt, err)
	}
	return v, nil
}

func flag(set bool) byte {
	if set {
		return flagSet
	}
	return 0
}

func appendString(out []byte, s string) []byte {
	return append(binary.AppendUvarint(out, uint64(len(s))), s...)
}

// appendTime keeps nanoseconds since 1970; zero stands for the zero time.
func appendTime(out []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendVarint(out, 0)
	}
	return binary.AppendVarint(out, t.UnixNano())
}

// rowReader reads a row's fields in order. After the first fault it gives
// zeros and end reports it.
type rowReader struct {
	rest []byte
	is   byte // the row's format
	bad  bool
}

func (r *rowReader) byte() byte {
	if len(r.rest) == 0 {
		r.bad = true
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

// format reads the row's format: this one, or 1, which upgrade rewrites.
func (r *rowReader) format() {
	if r.is = r.byte(); r.is != rowFormat && r.is != 1 {
		r.bad = true
	}
}

func (r *rowReader) flag() bool {
	b := r.byte()
	if b > flagSet {
		r.bad = true
	}
	return b == flagSet
}

func (r *rowReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *rowReader) time() time.Time {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.bad = true
		return time.Time{}
	}
	r.rest = r.rest[n:]
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, v).UTC()
}

func (r *rowReader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.bad = true
		return ""
	}
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}

func (r *rowReader) cid() cid.Cid {
	raw := r.string()
	if raw == "" {
		return cid.Undef
	}
	c, err := cid.Cast([]byte(raw))
	if err != nil {
		r.bad = true
	}
	return c
}

func (r *rowReader) end(what string) error {
	if r.bad || len(r.rest) != 0 {
		return fmt.Errorf("%s: %w", what, ErrCorrupt)
	}
	return nil
}
