package couch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// headerReset marks the answer to a cursor that is none of this feed's.
	headerReset = "Registry-Mirror-Feed-Reset"

	batch        = 1000 // rows asked of a Source at a time
	maxKeys      = 10_000
	maxQuery     = 1 << 20 // bytes of a request's body
	maxHeld      = 1000    // requests that wait, all clients together
	writeTimeout = 30 * time.Second
)

type handler struct {
	src  Source
	held chan struct{}
}

// Handler serves src as a database of CouchDB's form that can only be read:
// enough for those that follow a feed (`_changes` in all its forms), read
// documents and list them. docs/ledger-feed.md has every path, parameter and
// answer; docs.couchdb.org, api/database, is what they are taken from.
//
// Sequences carry the source's identity ("17-5f3c…"). One of another identity, or
// beyond the head, is answered with 409, which Client reports as ErrReset: a
// source that was made anew is never read from the middle.
//
// Answers of any length take the memory of 1,000 rows and one document. A reader
// who takes no 64 KiB in 30 s is cut off; at most 1,000 requests wait at a time.
// They end with the request's context, so a server that is to shut down cancels
// its BaseContext first. To serve below a prefix, wrap it in http.StripPrefix.
func Handler(src Source) http.Handler {
	return &handler{src, make(chan struct{}, maxHeld)}
}

// refusal is an answer that is not what was asked for. It is the one table of
// statuses.
type refusal struct {
	status int
	Word   string `json:"error"`
	Reason string `json:"reason"`
}

func (r *refusal) Error() string { return r.Word + ": " + r.Reason }

func bad(format string, args ...any) error {
	return &refusal{http.StatusBadRequest, "bad_request", fmt.Sprintf(format, args...)}
}

func missing(reason string) error {
	return &refusal{http.StatusNotFound, "not_found", reason}
}

func unavailable(err error) error {
	return &refusal{http.StatusServiceUnavailable, "unavailable", err.Error()}
}

var (
	errMethod      = &refusal{http.StatusMethodNotAllowed, "method_not_allowed", "this database can only be read"}
	errReplication = &refusal{http.StatusNotImplemented, "not_implemented", "replication is not offered: follow _changes"}
	errBusy        = &refusal{http.StatusServiceUnavailable, "unavailable", "too many requests wait already"}
)

// replication are the paths that CouchDB's replicator and bulk readers need and
// that a database without revision trees cannot serve.
var replication = map[string]bool{"_revs_diff": true, "_missing_revs": true, "_bulk_get": true}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.serve(w, r); err != nil {
		h.refuse(w, err)
	}
}

// serve answers, or returns why not while nothing is written yet.
func (h *handler) serve(w http.ResponseWriter, r *http.Request) error {
	path, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/"))
	if err != nil {
		return bad("path: %v", err)
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return bad("query: %v", err)
	}
	path = strings.TrimSuffix(path, "/")
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	asks := read || r.Method == http.MethodPost
	switch {
	case path == "" && read:
		return h.root(w)
	case path == "_changes" && asks:
		return h.changes(w, r, values)
	case path == "_all_docs" && asks:
		return h.allDocs(w, r, values)
	case replication[path] && asks:
		return errReplication
	case !read:
		return errMethod
	case strings.HasPrefix(path, "_"):
		return missing("missing")
	}
	return h.document(w, r, path, values)
}

func (h *handler) refuse(w http.ResponseWriter, err error) {
	var answer *refusal
	switch {
	case errors.Is(err, ErrReset):
		w.Header().Set(headerReset, h.src.Identity())
		answer = &refusal{http.StatusConflict, "reset", err.Error()}
	case errors.Is(err, ErrNotOffered):
		answer = &refusal{http.StatusNotImplemented, "not_implemented", err.Error()}
	case !errors.As(err, &answer):
		answer = &refusal{http.StatusInternalServerError, "failed", err.Error()}
	}
	switch answer.status {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", "GET, HEAD")
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "10")
	}
	write(w, answer.status, answer)
}

func write(w http.ResponseWriter, status int, v any) {
	header(w, "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // a client that went away is no concern of ours
}

func header(w http.ResponseWriter, contentType string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-cache")
}

// root describes the database, as docs.couchdb.org, api/database/common, does;
// engine, uuid and include_docs are ours.
func (h *handler) root(w http.ResponseWriter) error {
	_, docs := h.src.(Documents)
	write(w, http.StatusOK, struct {
		Name        string   `json:"db_name"`
		Engine      string   `json:"engine"`
		UUID        string   `json:"uuid"`
		DocCount    int      `json:"doc_count"`
		UpdateSeq   string   `json:"update_seq"`
		PurgeSeq    string   `json:"purge_seq"`
		Start       string   `json:"instance_start_time"`
		Compacting  bool     `json:"compact_running"`
		Props       struct{} `json:"props"`
		IncludeDocs bool     `json:"include_docs"`
	}{"registry", EngineMirror, h.src.Identity(), h.src.Count(), h.seq(h.src.Head()), "0", "0", false, struct{}{}, docs})
	return nil
}

func (h *handler) seq(n uint64) string {
	return strconv.FormatUint(n, 10) + "-" + h.src.Identity()
}

// parse reads a since. CouchDB's replicator sends it as a JSON string.
func (h *handler) parse(since string) (uint64, error) {
	if len(since) > 1 && since[0] == '"' && since[len(since)-1] == '"' {
		since = since[1 : len(since)-1]
	}
	switch since {
	case "", "0":
		return 0, nil
	case "now":
		return h.src.Head(), nil
	}
	digits, id, ok := strings.Cut(since, "-")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil {
		return 0, bad("since %.64q", since)
	}
	if head := h.src.Head(); id != h.src.Identity() || n > head {
		return 0, fmt.Errorf("since %.64q, the head is %s: %w", since, h.seq(head), ErrReset)
	}
	return n, nil
}

// flag reads a boolean parameter.
func flag(name, value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, bad("%s %.32q is neither true nor false", name, value)
}

// number reads a parameter that is a number from 0 on.
func number(name, value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return 0, bad("%s %.32q is no number", name, value)
	}
	return int(n), nil
}

// documents returns src's documents if value says that they are wanted.
func (h *handler) documents(value string) (Documents, error) {
	wanted, err := flag("include_docs", value)
	if err != nil || !wanted {
		return nil, err
	}
	docs, ok := h.src.(Documents)
	if !ok {
		return nil, bad("this feed has no documents")
	}
	return docs, nil
}

// idList reads a list of ids.
func idList(name string, text []byte) ([]string, error) {
	list := []string{} // an empty list asks for nothing, none for everything
	if err := json.Unmarshal(text, &list); err != nil || list == nil {
		return nil, bad("%s is no list of strings", name)
	}
	if len(list) > maxKeys {
		return nil, bad("more than %d %s", maxKeys, name)
	}
	return list, nil
}

// body reads what a POST asks for: an object with fields of which field is
// wanted. It returns nil without it.
func body(w http.ResponseWriter, r *http.Request, field string) ([]string, error) {
	if r.Method != http.MethodPost {
		return nil, nil
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuery))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &refusal{http.StatusRequestEntityTooLarge, "too_large", err.Error()}
	}
	if err != nil {
		return nil, bad("body: %v", err)
	}
	if len(text) == 0 {
		return nil, nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, bad("the body is no JSON object")
	}
	if list, ok := object[field]; ok {
		return idList(field, list)
	}
	return nil, nil
}

// stream is an answer that is written as it is read from a Source.
type stream struct {
	*bufio.Writer
	rc *http.ResponseController
}

// answer begins an answer of status 200.
func answer(w http.ResponseWriter, contentType string) *stream {
	header(w, contentType)
	rc := http.NewResponseController(w)
	return &stream{bufio.NewWriterSize(timedWriter{w, rc}, chunk), rc}
}

// send makes sure that what was written is on its way.
func (s *stream) send() error {
	if err := s.Flush(); err != nil {
		return err
	}
	if err := timed(s.rc, s.rc.Flush); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// cut ends an answer that cannot be finished: the client sees that it is not
// whole, which no status could tell it any more.
func cut(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		panic(http.ErrAbortHandler)
	}
}

const chunk = 64 << 10

// timedWriter gives each chunk writeTimeout, so that a slow reader holds nothing
// for ever.
type timedWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func (t timedWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var m int
		err = timed(t.rc, func() (err error) {
			m, err = t.w.Write(p[:min(len(p), chunk)])
			return err
		})
		n, p = n+m, p[m:]
	}
	return n, err
}

// timed gives write writeTimeout. The deadline is taken away again: HTTP/2 would
// end a feed that waits when it passes. Where there are no deadlines (a test's
// recorder) nothing is slow.
func timed(rc *http.ResponseController, write func() error) error {
	rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	defer rc.SetWriteDeadline(time.Time{})
	return write()
}
