package mirror

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// maxAudit bounds the body of an audit request in bytes, compressed or not. It
// is read and never decompressed.
const maxAudit = 16 << 20

// Handler is the npm registry.
func (m *Mirror) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !m.enter() {
			m.fail(w, r, ErrClosed)
			return
		}
		defer m.leave()
		m.stats.requests.Add(1)
		if m.o.Origin != nil {
			r = r.WithContext(context.WithValue(r.Context(), clientKey{}, m.clientOf(r)))
		}
		p := newPatientWriter(w, 4*m.o.Deadline)
		p.conn = crowd.ConnOf(r)
		m.route(p, r)
	})
}

// route finds what a path means. A scope may be its own segment or part of the
// name's, and any character may be percent-encoded in either case.
func (m *Mirror) route(w http.ResponseWriter, r *http.Request) {
	segments, err := npm.SplitPath(r.URL)
	if err != nil {
		sendError(w, r, http.StatusBadRequest, err.Error())
		return
	}
	if m.o.Origin == nil && !slices.Equal(segments, []string{"-", "ping"}) {
		m.awaitFirst(r.Context())
	}
	if len(segments) > 0 && segments[0] == "-" {
		m.notifyAge(w, r)
		m.routeService(w, r, segments[1:])
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		m.refuseWrite(w, r)
		return
	}
	if len(segments) == 0 {
		m.serveRoot(w, r)
		return
	}
	name, rest, err := npm.TakeName(segments)
	if err != nil {
		m.fail(w, r, errNotFound)
		return
	}
	// Clients of old wrote the scope into the file's place too.
	if len(rest) == 3 && rest[0] == "-" && rest[1] == name.Scope() {
		rest = []string{"-", rest[2]}
	}
	switch {
	case len(rest) == 0:
		m.notifyAge(w, r)
		m.servePackument(w, r, name)
	case len(rest) == 1 && rest[0] != "-":
		m.notifyAge(w, r)
		m.serveVersion(w, r, name, rest[0])
	case len(rest) == 2 && rest[0] == "-" && safeFile(rest[1]):
		m.serveTarball(w, r, name, rest[1])
	default:
		m.fail(w, r, errNotFound)
	}
}

// routeService answers below /-/.
func (m *Mirror) routeService(w http.ResponseWriter, r *http.Request, path []string) {
	joined := strings.Join(path, "/")
	if r.Method == http.MethodPost {
		switch joined {
		case "npm/v1/security/advisories/bulk":
			m.serveAudit(w, r, struct{}{})
			return
		case "npm/v1/security/audits", "npm/v1/security/audits/quick":
			m.serveAudit(w, r, noAdvisories)
			return
		}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		m.refuseWrite(w, r)
		return
	}
	switch {
	case joined == "ping":
		sendJSON(w, r, http.StatusOK, struct{}{})
	case joined == "whoami":
		sendError(w, r, http.StatusUnauthorized, "this registry has no users: reading needs no login")
	case joined == "v1/search":
		m.serveSearch(w, r)
	case joined == "npm/v1/keys":
		m.serveKeys(w, r)
	case len(path) > 3 && strings.HasPrefix(joined, "npm/v1/attestations/"):
		m.serveAttestations(w, r, strings.Join(path[3:], "/"))
	case len(path) >= 3 && path[0] == "package":
		name, rest, err := npm.TakeName(path[1:])
		if err != nil || len(rest) != 1 || rest[0] != "dist-tags" {
			m.fail(w, r, errNotFound)
			return
		}
		m.serveDistTags(w, r, name)
	default:
		m.fail(w, r, errNotFound)
	}
}

// serveRoot says what this registry is.
func (m *Mirror) serveRoot(w http.ResponseWriter, r *http.Request) {
	h := m.head.Load()
	if h == nil {
		m.fail(w, r, ErrNotSynced)
		return
	}
	sendJSON(w, r, http.StatusOK, struct {
		Name     string `json:"db_name"`
		Packages int    `json:"doc_count"`
		Release  uint64 `json:"update_seq"`
		Root     string `json:"root"`
	}{m.name(), h.Release.Packages, h.Release.Number, h.Release.Root.String()})
}

// noAdvisories is npm's reply to an audit that found nothing.
var noAdvisories = map[string]any{
	"actions": []any{}, "advisories": struct{}{}, "muted": []any{},
	"metadata": map[string]any{
		"vulnerabilities": map[string]int{"info": 0, "low": 0, "moderate": 0, "high": 0, "critical": 0},
		"dependencies":    0, "devDependencies": 0, "optionalDependencies": 0, "totalDependencies": 0,
	},
}

// serveAudit takes an audit request in and answers that no advisory is known:
// none is held. An install asks on its own and is not disturbed; who asks for
// an audit is told.
func (m *Mirror) serveAudit(w http.ResponseWriter, r *http.Request, none any) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(writePatience))
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxAudit)); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			sendError(w, r, http.StatusRequestEntityTooLarge, "the audit request is too large")
			return
		}
		abort()
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	if r.Header.Get("Npm-Command") == "audit" {
		w.Header().Set("Npm-Notice", "this mirror holds no advisories: nothing was audited")
	}
	sendJSON(w, r, http.StatusOK, none)
}

func (m *Mirror) refuseWrite(w http.ResponseWriter, r *http.Request) {
	refuseWrite(w, r, "this registry is a read-only mirror of "+m.Address()+": publish to the registry that owns the name with `npm publish --registry=URL`")
}

// safeFile keeps everything that is no file name away from directories, marks
// and Origin.
func safeFile(file string) bool {
	return file != "" && len(file) <= 512 && file != "." && file != ".." && !strings.ContainsAny(file, "/\\\x00")
}
