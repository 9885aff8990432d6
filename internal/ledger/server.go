package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const (
	// Every answer says whose it is and how far that ledger has come. A request
	// may say whose answer it wants.
	headerIdentity = "Registry-Mirror-Ledger"
	headerHead     = "Registry-Mirror-Head"

	// maxRequest bounds the body of a request, in bytes.
	maxRequest = 16 << 20
	// maxPoll bounds how long a long poll is held.
	maxPoll = time.Minute
)

// Status is what the owner says of a ledger and of its own work.
type Status struct {
	Identity string            `json:"identity"`
	Head     Seq               `json:"head"`
	Counts   Counts            `json:"counts"`
	Reasons  map[string]int    `json:"reasons,omitempty"` // refusals by reason
	Cursors  map[string]string `json:"cursors,omitempty"` // by feed
	// Loop is the owner's own account, where Serve was given one.
	Loop json.RawMessage `json:"loop,omitempty"`
}

// Status is what the ledger says of itself, without Loop.
func (s *Store) Status(context.Context) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cursors := maps.Clone(s.cursors)
	maps.DeleteFunc(cursors, func(feed, _ string) bool { return strings.HasPrefix(feed, MarkPrefix) })
	return Status{Identity: s.identity, Head: s.state.Head, Counts: s.state.Counts, Reasons: s.state.Reasons, Cursors: cursors}, nil
}

// Extra adds to what Serve answers.
type Extra func(*server)

// WithLoop makes report's answer, as JSON, the Loop of Status.
func WithLoop(report func(context.Context) any) Extra {
	return func(s *server) { s.loop = report }
}

// WithRoute answers pattern (of http.ServeMux) with h as well.
func WithRoute(pattern string, h http.Handler) Extra {
	return func(s *server) { s.mux.Handle(pattern, h) }
}

type server struct {
	store *Store
	mux   *http.ServeMux
	loop  func(context.Context) any
}

// Serve answers other processes of this user for the ledger, over a socket that
// nobody else can open: it asks for no credentials.
//
//	GET    /                 identity and head
//	GET    /_changes         since, limit, feed=longpoll, timeout (ms)
//	GET    /package/{name}   a package with its versions; a scope's slash as %2f
//	GET    /packages         every package without versions, one JSON a line
//	GET    /status           Status
//	GET    /refused /retries what is refused, and what was tried in vain so far;
//	                         /refused/{name} and /queue/{name} of one package
//	POST   /again            an Again: what is to be tried again; answers how many
//	GET    /wants            the selection
//	POST   /wants            a list of Want to add
//	DELETE /wants            a list of Want to take out
//
// A failure is {"error": code, "detail": text}.
func Serve(s *Store, extra ...Extra) http.Handler {
	h := &server{store: s, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /{$}", h.root)
	h.mux.HandleFunc("GET /_changes", h.changes)
	h.mux.HandleFunc("GET /package/{name}", h.getPackage)
	h.mux.HandleFunc("GET /packages", h.packages)
	h.mux.HandleFunc("GET /status", h.status)
	h.mux.HandleFunc("GET /refused", func(w http.ResponseWriter, r *http.Request) {
		reply(w)(s.Refused(r.Context()))
	})
	h.mux.HandleFunc("GET /retries", func(w http.ResponseWriter, r *http.Request) {
		reply(w)(s.Retries(r.Context()))
	})
	h.mux.HandleFunc("GET /refused/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w)(s.Refusals(r.Context(), npm.Name(r.PathValue("name"))))
	})
	h.mux.HandleFunc("GET /queue/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w)(s.Queue(r.Context(), npm.Name(r.PathValue("name"))))
	})
	h.mux.HandleFunc("POST /again", func(w http.ResponseWriter, r *http.Request) {
		which, err := request[Again](r)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w)(s.TryAgain(r.Context(), which))
	})
	h.mux.HandleFunc("GET /wants", func(w http.ResponseWriter, r *http.Request) {
		reply(w)(s.Wants(r.Context()))
	})
	h.mux.HandleFunc("POST /wants", edit(s.AddWants))
	h.mux.HandleFunc("DELETE /wants", edit(s.RemoveWants))
	for _, add := range extra {
		add(h)
	}
	return h
}

func (h *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(headerIdentity, h.store.Identity())
	w.Header().Set(headerHead, strconv.FormatUint(uint64(h.store.Head()), 10))
	// Whoever dialled another ledger is told at once, not after a long poll.
	if id := r.Header.Get(headerIdentity); id != "" && id != h.store.Identity() {
		fail(w, ErrReplaced)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	h.mux.ServeHTTP(w, r)
}

func (h *server) root(w http.ResponseWriter, r *http.Request) {
	reply(w)(map[string]any{
		"engine":     "registry-mirror-ledger",
		"uuid":       h.store.Identity(),
		"update_seq": h.store.Head(),
	}, nil)
}

// changesPage is the answer of /_changes, in the form of CouchDB's.
type changesPage struct {
	Results []Change `json:"results"`
	LastSeq Seq      `json:"last_seq"`
}

func (h *server) changes(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	since, err := number(query.Get("since"), 64)
	limit, err2 := number(query.Get("limit"), 31)
	timeout, err3 := number(query.Get("timeout"), 31)
	if err := errors.Join(err, err2, err3); err != nil {
		fail(w, err)
		return
	}
	switch query.Get("feed") {
	case "", "normal":
	case "longpoll":
		poll := maxPoll
		if timeout > 0 {
			poll = min(poll, time.Duration(timeout)*time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(r.Context(), poll)
		err := h.store.Wait(ctx, Seq(since))
		cancel()
		// An empty page is the answer to a poll that ran out.
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			fail(w, err)
			return
		}
	default:
		fail(w, fmt.Errorf("feed %.32q: %w", query.Get("feed"), ErrInvalid))
		return
	}
	all, err := h.store.Changes(r.Context(), Seq(since), int(limit))
	page := changesPage{Results: all, LastSeq: Seq(since)}
	if len(all) > 0 {
		page.LastSeq = all[len(all)-1].Seq
	} else {
		page.Results = []Change{}
	}
	reply(w)(page, err)
}

// number reads an optional non-negative number of a query.
func number(text string, bits int) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("number %.32q: %w", text, ErrInvalid)
	}
	return n, nil
}

func (h *server) getPackage(w http.ResponseWriter, r *http.Request) {
	reply(w)(h.store.Package(r.Context(), npm.Name(r.PathValue("name"))))
}

func (h *server) packages(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	for p, err := range h.store.Packages(r.Context()) {
		if err == nil {
			err = out.Encode(p)
		}
		if err != nil {
			// The status is sent: only a broken body says that the list
			// is not whole.
			panic(http.ErrAbortHandler)
		}
	}
	// The last line tells a whole list from one that was cut.
	out.Encode(struct {
		End bool `json:"end"`
	}{true})
}

func (h *server) status(w http.ResponseWriter, r *http.Request) {
	status, err := h.store.Status(r.Context())
	if err == nil && h.loop != nil {
		status.Loop, err = json.Marshal(h.loop(r.Context()))
	}
	reply(w)(status, err)
}

// edit reads a list and hands it to apply.
func edit[T any](apply func(context.Context, ...T) ([]Want, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		list, err := request[[]T](r)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w)(apply(r.Context(), list...))
	}
}

// request reads the body of a request.
func request[T any](r *http.Request) (v T, err error) {
	in := json.NewDecoder(r.Body)
	in.DisallowUnknownFields()
	if err := in.Decode(&v); err != nil {
		return v, fmt.Errorf("read the request: %w: %w", ErrInvalid, err)
	}
	return v, nil
}

// reply writes what a read returned.
func reply(w http.ResponseWriter) func(v any, err error) {
	return func(v any, err error) {
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v) // a client that went away is no concern of ours
	}
}

// failures are the errors that cross the socket, with the status and the code
// they cross it as.
var failures = []struct {
	err    error
	status int
	code   string
}{
	{ErrNotFound, http.StatusNotFound, "not-found"},
	{ErrInvalid, http.StatusBadRequest, "invalid"},
	{ErrReplaced, http.StatusConflict, "replaced"},
	{ErrClosed, http.StatusServiceUnavailable, "closed"},
	{ErrCorrupt, http.StatusInternalServerError, "corrupt"},
}

// failure is the body of an answer that is none.
type failure struct {
	Error  string `json:"error"`
	Detail string `json:"detail"`
}

func fail(w http.ResponseWriter, err error) {
	status, code := http.StatusInternalServerError, "failed"
	for _, f := range failures {
		if errors.Is(err, f.err) {
			status, code = f.status, f.code
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(failure{code, err.Error()})
}
