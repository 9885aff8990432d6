package couch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// headerReset marks the answer to a cursor that is none of this feed's.
	headerReset = "Registry-Mirror-Feed-Reset"

	defaultLimit = 1000
	maxLimit     = 10_000
	defaultPoll  = time.Minute
	maxPoll      = 5 * time.Minute
)

// Row is a change as a Source has it.
type Row struct {
	Seq     uint64
	ID      string
	Rev     string // "" where there is none
	Deleted bool
}

// Source is what Handler serves. Its methods may run concurrently.
type Source interface {
	// Changes returns the rows after since in ascending order, at most limit.
	Changes(ctx context.Context, since uint64, limit int) ([]Row, error)
	// Wait returns nil once Head is above since, else ctx's error.
	Wait(ctx context.Context, since uint64) error
	// Head is the newest sequence, 0 if there is none.
	Head() uint64
	// Identity names the source for as long as its sequences go on. It is of
	// letters and digits.
	Identity() string
}

// Documents is a Source that can give documents, for include_docs.
type Documents interface {
	// Document returns a document as JSON, nil if there is none.
	Document(ctx context.Context, id string) (json.RawMessage, error)
}

type handler struct {
	src Source
	mux *http.ServeMux
}

// Handler serves src as a feed in CouchDB's form: the root document at "/" and
// `_changes` with since (a sequence of this feed, 0 or now), limit (1 to 10,000,
// else 1,000), feed (normal or longpoll), timeout (ms, at most 5 minutes) and,
// where src is Documents, include_docs. Anything else is refused with 400.
//
// Sequences carry the source's identity ("17-5f3c…"). One of another identity, or
// beyond the head, is answered with 409, which Client reports as ErrReset: a
// source that was made anew is never read from the middle.
func Handler(src Source) http.Handler {
	h := &handler{src: src, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /{$}", h.root)
	h.mux.HandleFunc("GET /_changes", h.changes)
	return h
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *handler) root(w http.ResponseWriter, r *http.Request) {
	_, docs := h.src.(Documents)
	write(w, http.StatusOK, map[string]any{
		"db_name":      "registry",
		"engine":       EngineMirror,
		"uuid":         h.src.Identity(),
		"update_seq":   h.seq(h.src.Head()),
		"include_docs": docs,
	})
}

type jsonRev struct {
	Rev string `json:"rev"`
}

type jsonRow struct {
	Seq     string          `json:"seq"`
	ID      string          `json:"id"`
	Changes []jsonRev       `json:"changes"`
	Deleted bool            `json:"deleted,omitempty"`
	Doc     json.RawMessage `json:"doc,omitempty"`
}

type jsonPage struct {
	Results []jsonRow `json:"results"`
	LastSeq string    `json:"last_seq"`
}

func (h *handler) changes(w http.ResponseWriter, r *http.Request) {
	q, err := h.query(r.URL.Query())
	switch {
	case errors.Is(err, ErrReset):
		w.Header().Set(headerReset, h.src.Identity())
		write(w, http.StatusConflict, failure{"reset", err.Error()})
		return
	case err != nil:
		write(w, http.StatusBadRequest, failure{"bad_request", err.Error()})
		return
	}
	if q.wait > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), q.wait)
		err := h.src.Wait(ctx, q.since)
		cancel()
		// An empty page is the answer to a poll that ran out.
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			write(w, http.StatusServiceUnavailable, failure{"unavailable", err.Error()})
			return
		}
	}
	rows, err := h.src.Changes(r.Context(), q.since, q.limit)
	page := jsonPage{Results: make([]jsonRow, 0, len(rows)), LastSeq: h.seq(q.since)}
	for _, row := range rows {
		out := jsonRow{Seq: h.seq(row.Seq), ID: row.ID, Changes: []jsonRev{}, Deleted: row.Deleted}
		if row.Rev != "" {
			out.Changes = append(out.Changes, jsonRev{row.Rev})
		}
		if q.docs != nil && err == nil && !row.Deleted {
			out.Doc, err = q.docs.Document(r.Context(), row.ID)
		}
		page.Results = append(page.Results, out)
		page.LastSeq = out.Seq
	}
	if err != nil {
		write(w, http.StatusInternalServerError, failure{"failed", err.Error()})
		return
	}
	write(w, http.StatusOK, page)
}

// query is a request of _changes.
type query struct {
	since uint64
	limit int
	wait  time.Duration // 0: none
	docs  Documents     // nil: none
}

func (h *handler) query(values url.Values) (q query, err error) {
	q.limit = defaultLimit
	poll, timeout := false, defaultPoll
	for name, all := range values {
		value := all[0]
		if len(all) > 1 {
			return q, fmt.Errorf("%.32q twice", name)
		}
		switch name {
		case "since":
			if q.since, err = h.parse(value); err != nil {
				return q, err
			}
		case "limit":
			if q.limit, err = strconv.Atoi(value); err != nil || q.limit < 1 || q.limit > maxLimit {
				return q, fmt.Errorf("limit %.32q is not from 1 to %d", value, maxLimit)
			}
		case "feed":
			if poll = value == "longpoll"; !poll && value != "normal" {
				return q, fmt.Errorf("feed %.32q is not served", value)
			}
		case "timeout":
			ms, err := strconv.ParseUint(value, 10, 31)
			if err != nil {
				return q, fmt.Errorf("timeout %.32q", value)
			}
			timeout = min(time.Duration(ms)*time.Millisecond, maxPoll)
		case "include_docs":
			switch value {
			case "false":
			case "true":
				var ok bool
				if q.docs, ok = h.src.(Documents); !ok {
					return q, errors.New("this feed has no documents")
				}
			default:
				return q, fmt.Errorf("include_docs %.32q", value)
			}
		default:
			return q, fmt.Errorf("%.32q is not served", name)
		}
	}
	if poll {
		q.wait = timeout
	}
	return q, nil
}

func (h *handler) seq(n uint64) string {
	return strconv.FormatUint(n, 10) + "-" + h.src.Identity()
}

func (h *handler) parse(since string) (uint64, error) {
	switch since {
	case "", "0":
		return 0, nil
	case "now":
		return h.src.Head(), nil
	}
	digits, id, ok := strings.Cut(since, "-")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("since %.64q", since)
	}
	if head := h.src.Head(); id != h.src.Identity() || n > head {
		return 0, fmt.Errorf("since %.64q, the head is %s: %w", since, h.seq(head), ErrReset)
	}
	return n, nil
}

type failure struct {
	Error  string `json:"error"`
	Reason string `json:"reason"`
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // a client that went away is no concern of ours
}
