package hosted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// body is a request's, of at most so many bytes.
func (r *Registry) body(w http.ResponseWriter, req *http.Request, most int64) io.Reader {
	return &patientReader{in: http.MaxBytesReader(w, req.Body, most), control: http.NewResponseController(w), until: time.Now().Add(r.patience)}
}

// patientReader gives a client that sends a body patience, and from then on a second
// for each slowest bytes: one that sends slower, or has stopped, is left.
type patientReader struct {
	in      io.Reader
	control *http.ResponseController
	until   time.Time
	read    int64
}

func (p *patientReader) Read(b []byte) (int, error) {
	// A courtesy, as all deadlines here: a connection that has none (a test's) needs none.
	_ = p.control.SetReadDeadline(p.until.Add(time.Duration(p.read/slowest) * time.Second))
	n, err := p.in.Read(b)
	if p.read += int64(n); err == io.EOF {
		// One that passed later would look as if the client had gone. After any other
		// error it stays: net/http reads what is left of a body that failed.
		_ = p.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// cutOff is what became of a body that could not be read.
func cutOff(ctx context.Context, err error) error {
	var tooLarge *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &tooLarge):
		return fmt.Errorf("the request has more than %d bytes: %w", tooLarge.Limit, errTooLarge)
	case errors.As(err, &timeout) && timeout.Timeout():
		return refuse(http.StatusRequestTimeout, "the body came too slowly")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends too early", errBody)
	}
	return err
}

// drain reads what a client is still sending, within bounds, so that it comes to
// read the answer. The connection ends with that answer where there is more.
func (r *Registry) drain(w http.ResponseWriter, req *http.Request) {
	if req.Context().Err() != nil {
		return // it has gone, or came too slowly
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(min(drainTime, r.patience)))
	if _, err := io.CopyN(io.Discard, req.Body, drainBytes); err != io.EOF {
		w.Header().Set("Connection", "close")
		return
	}
	_ = control.SetReadDeadline(time.Time{})
}

// fail answers with what became of a request, in npm's form of an error: clients
// show the text.
func (r *Registry) fail(w http.ResponseWriter, req *http.Request, err error) {
	status := http.StatusInternalServerError
	var chosen statusError
	// net/http takes a body that came too slowly for a client that has gone.
	if req.Context().Err() != nil && !(errors.As(err, &chosen) && chosen.status == http.StatusRequestTimeout) {
		panic(http.ErrAbortHandler)
	}
	r.drain(w, req)
	switch {
	case errors.As(err, &chosen):
		status = chosen.status
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.Is(err, errConflict):
		status = http.StatusConflict
	case errors.Is(err, errTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errBody), errors.Is(err, errTarball), errors.Is(err, errRequest),
		errors.Is(err, npm.ErrPublication), errors.Is(err, npm.ErrPackument), errors.Is(err, npm.ErrName), errors.Is(err, npm.ErrVersion),
		errors.Is(err, npm.ErrTag), errors.Is(err, npm.ErrIntegrity), errors.Is(err, npm.ErrNoIntegrity):
		status = http.StatusBadRequest
	case errors.Is(err, ledger.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		status = http.StatusServiceUnavailable
	}
	if status >= 500 {
		r.log.ErrorContext(req.Context(), "request failed", "method", req.Method, "path", req.URL.Path, "error", err)
	} else if req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.log.WarnContext(req.Context(), "refused", "method", req.Method, "path", req.URL.Path, "status", status, "error", err)
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	if status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "GET, HEAD, PUT")
	}
	text := line(err)
	if status == http.StatusInternalServerError { // of this machine's insides
		text = "the registry could not do this: its log says why"
	}
	_ = send(w, req, status, map[string]any{"error": text, "success": false})
}

// writeWithin gives a client as long for an answer of so many bytes as it would have
// for a body.
func writeWithin(w http.ResponseWriter, bytes uint64) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience + time.Duration(bytes/slowest)*time.Second))
}

// send sends a small answer of the registry's own.
func send(w http.ResponseWriter, req *http.Request, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	return sendRaw(w, req, status, "application/json", append(data, '\n'))
}

func sendRaw(w http.ResponseWriter, req *http.Request, status int, mediaType string, data []byte) error {
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	h.Set("X-Content-Type-Options", "nosniff")
	writeWithin(w, uint64(len(data)))
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		_, _ = w.Write(data) // the client has gone: nothing to do about it
	}
	return nil
}
