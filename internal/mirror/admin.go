package mirror

import (
	"errors"
	"net/http"

	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Admin is Table.Admin of this mirror alone.
func (m *Mirror) Admin() http.Handler {
	t := &Table{rows: []Registry{{Mirror: m}}}
	return t.Admin()
}

// Admin is the handler for the command's own socket: GET /status gives Status,
// POST /sync does one round of Sync and gives Status too, or 502 with the
// cause; with ?follow=NAME it does FollowTo before that, whose refusal is 409. GET /pins
// gives what is pinned; POST and DELETE /pins?name=NAME&version=VERSION, with no version
// for all of them, do Pin and Unpin: 409 where those refuse. POST /diff?from=MOMENT&to=MOMENT,
// with a Lock or null, does Diff and answers as ReadDiff reads it, or 409. It must never
// be reachable from outside.
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
			sendError(w, r, http.StatusServiceUnavailable, err.Error())
		default:
			sendError(w, r, http.StatusBadGateway, err.Error())
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
			case errors.Is(err, ErrNoCache), errors.Is(err, ErrPinned), errors.Is(err, ErrNotPinned):
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
	return mux
}
