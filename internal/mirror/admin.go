package mirror

import (
	"errors"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Admin is the handler for the command's own socket: GET /status gives Status.
// POST /sync does one round of Sync and gives Status too: 504 with the cause where no
// route had a record, 502 where it is another. With ?follow=NAME it does FollowTo
// before that, whose refusal is 409. GET /why?name=NAME&version=VERSION gives Account.
// GET /pins gives what is pinned; POST and DELETE /pins?name=NAME&version=VERSION, with
// no version for all of them, do Pin and Unpin: 409 where those refuse. POST
// /fetch?name=NAME&version=VERSION, with any number of versions, and of
// locked=VERSION+INTEGRITY, does Fetch: 409 for ErrOtherIntegrity. POST /export
// with an ExportRequest as JSON sends a bundle; one that ends early failed. POST
// /import, with ?accept_stale=true where that is so, takes a bundle in and answers, while
// it comes, as ReadImport reads it. POST /diff?from=MOMENT&to=MOMENT, with a Lock or null,
// does Diff and answers as ReadDiff reads it, or 409. It must never be reachable from
// outside.
func (t *Table) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		sendJSON(w, r, http.StatusOK, t.Status(r.Context()))
	})
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, r *http.Request) {
		if text := r.FormValue("follow"); text != "" {
			name, err := ipns.NameFromString(text)
			if err != nil {
				sendError(w, r, http.StatusBadRequest, err.Error())
				return
			}
			if err := t.FollowTo(r.Context(), name); err != nil {
				sendError(w, r, http.StatusConflict, err.Error())
				return
			}
		}
		switch err := t.Sync(r.Context()); {
		case err == nil:
			sendJSON(w, r, http.StatusOK, t.Status(r.Context()))
		case errors.Is(err, ErrClosed):
			sendError(w, r, http.StatusServiceUnavailable, oneLine(err))
		case errors.Is(err, ErrNoRecord):
			sendError(w, r, http.StatusGatewayTimeout, oneLine(err))
		default:
			sendError(w, r, http.StatusBadGateway, oneLine(err))
		}
	})
	mux.HandleFunc("GET /why", func(w http.ResponseWriter, r *http.Request) {
		a, err := t.Account(r.Context(), npm.Name(r.FormValue("name")), r.FormValue("version"), true)
		switch {
		case err == nil:
			sendJSON(w, r, http.StatusOK, a)
		case errors.Is(err, npm.ErrName):
			sendError(w, r, http.StatusBadRequest, err.Error())
		case errors.Is(err, ErrClosed):
			sendError(w, r, http.StatusServiceUnavailable, err.Error())
		default:
			sendError(w, r, http.StatusInternalServerError, err.Error())
		}
	})
	mux.HandleFunc("POST /diff", t.serveDiff)
	mux.HandleFunc("GET /pins", func(w http.ResponseWriter, r *http.Request) {
		sendJSON(w, r, http.StatusOK, map[string]any{"pins": t.Pins()})
	})
	change := func(do func(r *http.Request, name npm.Name, version string) (Pinned, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name, err := npm.ParseName(r.FormValue("name"))
			if err != nil {
				sendError(w, r, http.StatusBadRequest, err.Error())
				return
			}
			got, err := do(r, name, r.FormValue("version"))
			switch {
			case err == nil:
				sendJSON(w, r, http.StatusOK, got)
			case errors.Is(err, ErrNoCache), errors.Is(err, ErrPinned), errors.Is(err, ErrNotPinned), errors.Is(err, ErrOtherIntegrity):
				sendError(w, r, http.StatusConflict, err.Error())
			default:
				sendError(w, r, http.StatusBadGateway, err.Error())
			}
		}
	}
	mux.HandleFunc("POST /pins", change(func(r *http.Request, name npm.Name, version string) (Pinned, error) {
		return t.Pin(r.Context(), name, version)
	}))
	mux.HandleFunc("DELETE /pins", change(func(_ *http.Request, name npm.Name, version string) (Pinned, error) {
		return Pinned{Name: name}, t.Unpin(name, version)
	}))
	mux.HandleFunc("POST /fetch", change(func(r *http.Request, name npm.Name, _ string) (Pinned, error) {
		b := Bundled{Name: name, Versions: r.Form["version"], Integrity: map[string]string{}}
		for _, locked := range r.Form["locked"] {
			version, integrity, _ := strings.Cut(locked, " ")
			b.Integrity[version] = integrity
		}
		return t.Fetch(r.Context(), b)
	}))
	mux.HandleFunc("POST /export", t.serveExport)
	mux.HandleFunc("POST /import", t.serveImport)
	return mux
}

// ExportRequest is what Admin's /export is asked for.
type ExportRequest struct {
	Registry string    `json:"registry,omitempty"`
	Whole    bool      `json:"whole,omitempty"`
	Packages []Bundled `json:"packages"`
}

func (t *Table) serveExport(w http.ResponseWriter, r *http.Request) {
	var want ExportRequest
	if err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxManifest), &want); err != nil {
		sendError(w, r, http.StatusBadRequest, err.Error())
		return
	}
	for _, b := range want.Packages {
		if _, err := npm.ParseName(string(b.Name)); err != nil {
			sendError(w, r, http.StatusBadRequest, err.Error())
			return
		}
	}
	out := &counted{w: w}
	_, err := t.Export(r.Context(), out, want.Packages, ExportOptions{Registry: want.Registry, Whole: want.Whole})
	switch {
	case err == nil:
	case out.n > 0:
		t.rows[0].log.ErrorContext(r.Context(), "a bundle was not written whole", "error", err)
		abort()
	case errors.Is(err, ErrSeveral), errors.Is(err, ErrOtherIntegrity):
		sendError(w, r, http.StatusConflict, err.Error())
	default:
		sendError(w, r, http.StatusBadGateway, err.Error())
	}
}
