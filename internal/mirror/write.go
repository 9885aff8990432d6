package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// ErrPublishTo is returned for what takes no writes: no https URL, and no http URL of
// this machine.
var ErrPublishTo = errors.New("writes cannot go there")

const (
	// maxWrite bounds the body of a write that is passed on, in bytes: a publish document
	// has its tarball within it, in base64, and npm's largest are of some 200 MB.
	maxWrite = 512 << 20
	// maxWriteAnswer bounds what comes back, in bytes.
	maxWriteAnswer = 256 << 20
	// writeDeadline is for a write from its first byte to the answer's last.
	writeDeadline = 15 * time.Minute
)

// CheckPublishTo refuses a URL to which no token may be sent: it is https, or http to a
// loopback address, so that the token crosses no network in clear, and has neither
// user, query nor fragment. Error: ErrPublishTo.
func CheckPublishTo(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPublishTo, err)
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return fmt.Errorf("%w: %q", ErrPublishTo, u.Redacted())
	}
	addr, notIP := netip.ParseAddr(u.Hostname())
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && notIP == nil && addr.IsLoopback():
	default:
		return fmt.Errorf("%w: %q is neither https nor http to an address of this machine, as http://127.0.0.1:4875 is", ErrPublishTo, text)
	}
	return nil
}

// writer passes writes on. It follows no redirect, which would take the token along.
var writer = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   4,
		DisableCompression:    true, // it is passed on as it is
	},
}

// sentOn are the request's headers that its owner gets, and answered those of the answer.
var (
	sentOn   = []string{"Accept", "Authorization", "Content-Encoding", "Content-Type", "If-Match", "User-Agent"}
	answered = []string{"Content-Encoding", "Content-Type", "Npm-Notice", "Retry-After", "Www-Authenticate"}
)

// writes says whether a request changes something, or reads what is about to be changed:
// npm then asks for write=true, and needs the owner's own revision.
func writes(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return r.URL.Query().Get("write") == "true"
	}
	return true
}

// writePath is where a request is passed on to, spelt as npm does: a package, or its
// dist-tags, and no way out of that.
func writePath(segments []string) (string, error) {
	prefix := "/"
	if len(segments) > 2 && segments[0] == "-" && segments[1] == "package" {
		prefix, segments = "/-/package/", segments[2:]
	}
	name, rest, err := npm.TakeName(segments)
	if err != nil {
		return "", err
	}
	path := prefix + name.Escape()
	for _, s := range rest {
		if s == "" || s == "." || s == ".." {
			return "", fmt.Errorf("%q is no part of a path", s)
		}
		path += "/" + url.PathEscape(s)
	}
	return path, nil
}

// passOn gives a write of a claimed name to its owner, and the owner's answer to the
// client. The name was read from the very segments that are sent.
func (r Registry) passOn(w http.ResponseWriter, req *http.Request, segments []string) {
	path, err := writePath(segments)
	if err != nil {
		sendError(w, req, http.StatusBadRequest, err.Error())
		return
	}
	if req.ContentLength > maxWrite {
		sendError(w, req, http.StatusRequestEntityTooLarge, "the document is too large to be passed on")
		return
	}
	control := http.NewResponseController(w)
	_ = errors.Join(control.SetReadDeadline(time.Now().Add(writeDeadline)), control.SetWriteDeadline(time.Now().Add(writeDeadline)))
	ctx, cancel := context.WithTimeout(req.Context(), writeDeadline)
	defer cancel()
	to := strings.TrimRight(r.PublishTo, "/") + path
	if req.URL.RawQuery != "" {
		to += "?" + req.URL.RawQuery
	}
	var body io.Reader
	if req.ContentLength != 0 {
		body = http.MaxBytesReader(w, req.Body, maxWrite)
	}
	out, err := http.NewRequestWithContext(ctx, req.Method, to, body)
	if err != nil {
		sendError(w, req, http.StatusBadRequest, err.Error())
		return
	}
	out.ContentLength = req.ContentLength
	for key, values := range req.Header {
		if strings.HasPrefix(key, "Npm-") {
			out.Header[key] = values
		}
	}
	for _, key := range sentOn {
		if values := req.Header.Values(key); len(values) > 0 {
			out.Header[key] = values
		}
	}
	resp, err := writer.Do(out)
	if err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			sendError(w, req, http.StatusRequestEntityTooLarge, "the document is too large to be passed on")
		case req.Context().Err() != nil:
			abort()
		default:
			if full := (*url.Error)(nil); errors.As(err, &full) {
				err = full.Err
			}
			r.log.WarnContext(ctx, "a write was not passed on", "registry", r.Label, "to", r.PublishTo, "error", err)
			sendError(w, req, http.StatusBadGateway, "registry "+r.Label+" takes writes at "+r.PublishTo+", which does not answer: "+oneLine(err))
		}
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
		sendError(w, req, http.StatusBadGateway, "registry "+r.Label+" takes writes at "+r.PublishTo+", which leads elsewhere; a token is not taken there")
		return
	}
	for _, key := range answered {
		if values := resp.Header.Values(key); len(values) > 0 {
			w.Header()[key] = values
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(resp.StatusCode)
	if n, err := io.Copy(w, io.LimitReader(resp.Body, maxWriteAnswer+1)); err != nil || n > maxWriteAnswer {
		abort()
	}
}

// refuseWrite says of a write that it cannot be taken, whose it is, and what to type.
func (t *Table) refuseWrite(w http.ResponseWriter, r *http.Request, name npm.Name) {
	text := "this registry is a read-only mirror"
	i, claimed := t.owner(name)
	switch {
	case name == "":
		for _, row := range t.rows {
			if row.PublishTo != "" {
				text += "; " + row.Label + " takes writes: `npm login --registry=" + row.PublishTo + "`"
			}
		}
	case claimed:
		text += ": " + string(name) + " is of the registry " + t.rows[i].Label + ", " + t.rows[i].Address() +
			"; publish to its owner with `npm publish --registry=URL`, or add it with --publish-to URL"
	default:
		text += " of " + string(name) + ", and no registry here claims it: publish to the registry that owns it with `npm publish --registry=URL`"
	}
	refuseWrite(w, r, text)
}

// refuseWrite answers a write that is not taken.
func refuseWrite(w http.ResponseWriter, r *http.Request, text string) {
	w.Header().Set("Allow", "GET, HEAD")
	// The body is not read: without this a client may wait for the server to.
	w.Header().Set("Connection", "close")
	sendError(w, r, http.StatusMethodNotAllowed, text)
}
