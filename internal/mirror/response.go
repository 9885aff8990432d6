package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Every status and cache header is chosen in this file.

const (
	// Clients ask again each time and mostly get a 304. Private, because npm
	// and other clients get different bytes under one URL and only the
	// User-Agent tells them apart.
	cacheDocument = "private, max-age=0, must-revalidate"
	// A version never changes its bytes.
	cacheTarball = "public, max-age=31536000, immutable"
	cacheNothing = "no-store"

	varyDocument = "Accept, Accept-Encoding"

	writePatience = 30 * time.Second // for a client to take 64 KiB
	maxPiece      = 128 << 10        // bytes that are written at once
	retryAfter    = "5"              // seconds
)

// errNotFound is for what neither the list nor Origin has.
var errNotFound = errors.New("not found")

// errWithheld is for what Origin may have, and Options.Withheld keeps back.
var errWithheld = errors.New("withheld")

// patientWriter gives a client the time that it may take for each piece of a
// response, so that a slow one gets all of it and one that has stopped reading is
// left. Where others wait for the memory that it holds, End leaves it sooner.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	conn    *crowd.Conn // nil: of a server that is not crowd.Serve's
	writing crowd.Moment

	mu    sync.Mutex // of ended, and of what End does with a Write under way
	ended bool
}

func newPatientWriter(w http.ResponseWriter, first time.Duration) *patientWriter {
	p := &patientWriter{ResponseWriter: w, control: http.NewResponseController(w)}
	p.extend(first + writePatience)
	return p
}

func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// extend is a courtesy: a writer that has no deadline (a recorder) needs none.
func (w *patientWriter) extend(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		_ = w.control.SetWriteDeadline(time.Now().Add(d))
	}
}

// Waits and End make it one of a crowd.Crowd.
func (w *patientWriter) Waits() time.Time { return w.writing.Time() }

func (w *patientWriter) End() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing.Time().IsZero() {
		return // it is done: the connection may be another request's
	}
	w.ended = true
	_ = w.control.SetWriteDeadline(time.Now())
}

func (w *patientWriter) written() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing.Never()
}

func (w *patientWriter) Write(p []byte) (int, error) {
	defer w.written()
	written := 0
	for {
		piece := p[written:]
		piece = piece[:min(len(piece), maxPiece)]
		w.extend(writePatience * time.Duration(1+len(piece)/(64<<10)))
		w.writing.Now()
		n, err := w.conn.Send(w.ResponseWriter, piece)
		if written += n; err != nil || written == len(p) {
			return written, err
		}
	}
}

// abort ends a response that cannot be finished: the client sees it cut short.
func abort() { panic(http.ErrAbortHandler) }

// sendJSON sends a small answer of the mirror's own.
func sendJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		abort()
	}
	sendRaw(w, r, status, append(data, '\n'))
}

func sendRaw(w http.ResponseWriter, r *http.Request, status int, data []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	h.Set("X-Content-Type-Options", "nosniff")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", cacheNothing)
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // the client has gone: nothing to do about it
	}
}

// sendPart answers with JSON that was read out of documents, with a strong ETag of
// its bytes, or 304 to whoever holds them. It is the same whatever a client accepts,
// and so varies by nothing.
func sendPart(w http.ResponseWriter, r *http.Request, data []byte) {
	digest := sha256.Sum256(data)
	etag := `"` + shortHash(digest[:]) + `"`
	if matches(r.Header.Get("If-None-Match"), etag) {
		sendNotModified(w, etag, cacheDocument, "")
		return
	}
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", cacheDocument)
	sendRaw(w, r, http.StatusOK, data)
}

// sendError sends npm's form of an error; clients show the text.
func sendError(w http.ResponseWriter, r *http.Request, status int, text string) {
	sendJSON(w, r, status, struct {
		Error string `json:"error"`
	}{text})
}

// fail chooses the answer to err. A tarball is never refused with 410 or 451:
// pnpm retries those for minutes. npm tries a 503 again after 10 s and once more after
// 60 s: what every source lacks is 404 for it, which no client tries again, and so is what
// a mirror does not hold that asks nobody.
func (m *Mirror) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNotSynced) && m.o.Offline {
		err = fmt.Errorf("%w: %w", err, ErrOffline)
	}
	m.notifyError(w, r, err)
	switch {
	case r.Context().Err() != nil:
		abort() // the client has gone
	case errors.Is(err, errNotFound) && !errors.Is(err, ErrUnavailable):
		sendError(w, r, http.StatusNotFound, "Not found"+m.lookedIn(r))
	case errors.Is(err, errWithheld):
		sendError(w, r, http.StatusNotFound, oneLine(err))
	case errors.Is(err, errNotInBundle) && m.o.Offline:
		sendError(w, r, http.StatusNotFound, oneLine(err)) // it will not come: to try again is vain
	case errors.Is(err, npm.ErrIntegrity), errors.Is(err, npm.ErrNoIntegrity):
		sendError(w, r, http.StatusForbidden, oneLine(err))
	case errors.Is(err, ErrNotSynced), errors.Is(err, ErrStale), errors.Is(err, ErrUnavailable), errors.Is(err, ErrClosed),
		errors.Is(err, context.DeadlineExceeded):
		if errors.Is(err, ErrUnavailable) {
			m.stats.lack(r.URL.Path, err)
		}
		m.log.DebugContext(r.Context(), "not available", "path", r.URL.Path, "error", err)
		if errors.Is(err, ErrNowhere) || errors.Is(err, ErrOffline) {
			sendError(w, r, http.StatusNotFound, oneLine(err))
			return
		}
		w.Header().Set("Retry-After", retryAfter)
		sendError(w, r, http.StatusServiceUnavailable, oneLine(err))
	case errors.Is(err, ErrNoRelease), errors.Is(err, ErrMoment), errors.Is(err, ErrFuture):
		sendError(w, r, http.StatusNotFound, oneLine(err))
	case errors.Is(err, ErrChain), errors.Is(err, npm.ErrPackument), errors.Is(err, unixfs.ErrMalformed), errors.Is(err, unixfs.ErrTooLarge),
		errors.Is(err, document.ErrMalformed), errors.Is(err, document.ErrTooLarge):
		m.log.WarnContext(r.Context(), "content is not usable", "path", r.URL.Path, "error", err)
		sendError(w, r, http.StatusBadGateway, oneLine(err))
	default:
		m.log.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
		sendError(w, r, http.StatusInternalServerError, oneLine(err))
	}
}

// lookedIn says which release was looked in, where a client may think of another.
func (m *Mirror) lookedIn(r *http.Request) string {
	h := m.head.Load()
	if h == nil || m.newest == nil && below(r) == "" {
		return ""
	}
	return " in " + linkOf(h.Release).String()
}

// oneLine is an error with all of its causes, as clients show it.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// sendNotModified answers a conditional request.
func sendNotModified(w http.ResponseWriter, etag, cache, vary string) {
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", cache)
	if vary != "" {
		h.Set("Vary", vary)
	}
	w.WriteHeader(http.StatusNotModified)
}

// sendDocument sends a document as the client takes it: as b is, or decompressed
// on the way.
func (m *Mirror) sendDocument(w http.ResponseWriter, r *http.Request, b *body, mediaType, etag string, as coding) {
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("ETag", etag)
	h.Set("Cache-Control", cacheDocument)
	h.Set("Vary", varyDocument)
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodHead {
		// It is in memory already, and stays there for as long as it is sent.
		t, err := m.sending.begin(w, r, int64(len(b.data)))
		if err != nil {
			m.fail(w, r, err)
			return
		}
		defer t.done()
	}
	if as == b.coding {
		h.Set("Content-Encoding", string(b.coding))
		h.Set("Content-Length", strconv.Itoa(len(b.data)))
		w.WriteHeader(http.StatusOK)
		if r.Method != http.MethodHead {
			_, _ = w.Write(b.data)
		}
		return
	}
	h.Set("Content-Length", strconv.FormatInt(b.size, 10))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	plain, err := gzip.NewReader(b.reader()) // of a rendition for identity
	if err == nil {
		_, err = io.CopyBuffer(w, plain, make([]byte, 64<<10))
	}
	if err != nil {
		abort()
	}
}

// matches reports whether If-None-Match names etag (weak comparison, RFC 9110
// section 13.1.2).
func matches(ifNoneMatch, etag string) bool {
	if ifNoneMatch == "" {
		return false
	}
	for candidate := range strings.SplitSeq(ifNoneMatch, ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == etag || candidate == "*" {
			return true
		}
	}
	return false
}

// coding is a content coding of documents (RFC 9110 section 8.4.1).
type coding string

const (
	identity  coding = "identity"
	gzipped   coding = "gzip"
	zstandard coding = "zstd"
)

// negotiate chooses by Accept-Encoding (RFC 9110 section 12.5.3): what has the
// highest weight, of gzip and zstd at one weight the preferred one. Without the
// header nothing is compressed, and zstd is for those who name it.
func negotiate(header string, prefer coding) coding {
	weights := map[coding]float64{}
	for part := range strings.SplitSeq(header, ",") {
		name, parameters, _ := strings.Cut(part, ";")
		weight := 1.0
		if q, ok := strings.CutPrefix(strings.ToLower(strings.Join(strings.Fields(parameters), "")), "q="); ok {
			var err error
			if weight, err = strconv.ParseFloat(q, 64); err != nil || !(weight >= 0 && weight <= 1) {
				weight = 0
			}
		}
		switch name := coding(strings.ToLower(strings.TrimSpace(name))); name {
		case identity, gzipped, zstandard, "*":
			weights[name] = weight
		case "x-gzip": // RFC 9110 section 8.4.1.3
			weights[gzipped] = weight
		}
	}
	if _, named := weights[gzipped]; !named {
		weights[gzipped] = weights["*"]
	}
	best := gzipped
	if weights[zstandard] > weights[gzipped] || weights[zstandard] == weights[gzipped] && prefer == zstandard {
		best = zstandard
	}
	if weights[best] == 0 || weights[identity] > weights[best] {
		return identity
	}
	return best
}

// acceptsAbbreviated says whether the client asks for npm's install-v1 form.
// Every client that can use it names it; anything else means the full one.
func acceptsAbbreviated(r *http.Request) bool {
	for _, v := range r.Header.Values("Accept") {
		if strings.Contains(v, npm.AbbreviatedType) {
			return true
		}
	}
	return false
}
