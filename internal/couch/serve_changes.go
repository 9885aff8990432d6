package couch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"time"
)

const (
	defaultHold = time.Minute     // of a request that says neither timeout nor heartbeat
	maxHold     = 5 * time.Minute // of a long poll, and between two rows without heartbeats
	maxLive     = time.Hour       // of a continuous feed

	defaultHeartbeat = time.Minute
	minHeartbeat     = 100 * time.Millisecond
)

// query is a request of _changes.
type query struct {
	since      uint64
	limit      int
	feed       string // normal, longpoll, continuous or eventsource
	timeout    time.Duration
	heartbeat  time.Duration // 0: none
	docs       Documents     // nil: none
	ids        []string      // nil: all
	descending bool
}

func (h *handler) query(w http.ResponseWriter, r *http.Request, values url.Values) (q query, err error) {
	q = query{limit: math.MaxInt, feed: "normal", timeout: defaultHold}
	since, byIDs := "0", false
	for name, all := range values {
		value := all[0]
		if len(all) > 1 {
			return q, bad("%.32q twice", name)
		}
		switch name {
		case "since":
			since = cmp.Or(value, "0")
		case "limit":
			q.limit, err = number(name, value)
			q.limit = max(q.limit, 1) // as CouchDB has it
		case "feed":
			q.feed = value
			if !slices.Contains([]string{"normal", "longpoll", "continuous", "eventsource"}, value) {
				err = bad("feed %.32q is not served", value)
			}
		case "timeout":
			var ms int
			ms, err = number(name, value)
			q.timeout = min(time.Duration(ms)*time.Millisecond, maxHold)
		case "heartbeat":
			if q.heartbeat = defaultHeartbeat; value == "true" {
				break
			}
			if value == "false" {
				q.heartbeat = 0
				break
			}
			var ms int
			ms, err = number(name, value)
			q.heartbeat = min(max(time.Duration(ms)*time.Millisecond, minHeartbeat), maxHold)
		case "include_docs":
			q.docs, err = h.documents(value)
		case "descending":
			q.descending, err = flag(name, value)
		case "filter":
			if byIDs = value == "_doc_ids"; !byIDs {
				err = bad("filter %.32q is not served", value)
			}
		case "doc_ids":
			q.ids, err = idList(name, []byte(value))
		case "style":
			// There is one revision of each document: both are the same.
			if value != "main_only" && value != "all_docs" {
				err = bad("style %.32q", value)
			}
		case "last-event-id", "conflicts", "attachments", "att_encoding_info", "seq_interval", "_nonce":
			// There are no conflicts and no attachments to leave out.
		default:
			err = bad("%.32q is not served", name)
		}
		if err != nil {
			return q, err
		}
	}
	since = cmp.Or(r.Header.Get("Last-Event-ID"), values.Get("last-event-id"), since)
	if q.since, err = h.parse(since); err != nil {
		return q, err
	}
	if posted, err := body(w, r, "doc_ids"); err != nil {
		return q, err
	} else if posted != nil {
		q.ids = posted
	}
	_, listing := h.src.(Listing)
	_, backward := h.src.(Backward)
	switch {
	case byIDs && q.ids == nil:
		return q, bad("filter _doc_ids without doc_ids")
	case q.ids != nil && !listing:
		return q, bad("this feed has no filter by doc_ids")
	case q.descending && (!backward || q.ids != nil || q.feed != "normal"):
		return q, bad("descending is not served here")
	}
	return q, nil
}

func (h *handler) changes(w http.ResponseWriter, r *http.Request, values url.Values) error {
	q, err := h.query(w, r, values)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		header(w, "application/json")
		return nil
	}
	if q.feed != "normal" {
		select {
		case h.held <- struct{}{}:
			defer func() { <-h.held }()
		default:
			return errBusy
		}
	}
	if q.feed == "continuous" || q.feed == "eventsource" {
		return h.live(w, r, q)
	}
	if q.descending {
		return h.backward(w, r, q)
	}
	return h.page(w, r, q)
}

// rows returns the next rows after since that q asks for, at most limit, and how
// far they reach: the sequence to go on from.
func (h *handler) rows(ctx context.Context, q *query, since uint64, limit int) ([]Row, uint64, error) {
	limit = min(limit, batch)
	if q.ids != nil {
		return h.rowsOf(ctx, q.ids, since, limit)
	}
	rows, err := h.src.Changes(ctx, since, limit)
	if len(rows) > 0 {
		since = rows[len(rows)-1].Seq
	}
	return rows, since, err
}

// rowsOf looks the documents of ids up: that is less than reading the feed.
func (h *handler) rowsOf(ctx context.Context, ids []string, since uint64, limit int) ([]Row, uint64, error) {
	// What changes from here on is left for the next time, or a row that moves
	// while others are looked up would be passed over.
	head := h.src.Head()
	var rows []Row
	for _, id := range ids {
		row, ok, err := h.src.(Listing).Find(ctx, id)
		if err != nil {
			return nil, since, err
		}
		if ok && row.Seq > since && row.Seq <= head {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Seq, b.Seq) })
	rows = slices.CompactFunc(rows, func(a, b Row) bool { return a.Seq == b.Seq })
	if len(rows) > limit {
		rows = rows[:limit]
		head = rows[limit-1].Seq
	}
	return rows, head, nil
}

// page answers feed=normal and feed=longpoll: one object, a row a line, as
// CouchDB writes it, for there are clients that read by lines.
func (h *handler) page(w http.ResponseWriter, r *http.Request, q query) error {
	ctx := r.Context()
	head := h.src.Head()
	rows, upto, err := h.rows(ctx, &q, q.since, q.limit)
	if err != nil {
		return err
	}
	out := answer(w, "application/json")
	if len(rows) == 0 && q.feed == "longpoll" {
		until := time.Now().Add(q.timeout)
		if q.heartbeat > 0 { // which disables the timeout, in CouchDB too
			until = time.Now().Add(maxHold)
		}
		beat := func() error {
			_, err := out.WriteString("\n")
			return cmp.Or(err, out.send())
		}
		for more := true; more && len(rows) == 0; {
			if more, err = h.wait(ctx, upto, until, q.heartbeat, beat); err != nil && q.heartbeat == 0 {
				return unavailable(err)
			} else if err != nil {
				cut(ctx, err)
				return nil
			}
			if rows, upto, err = h.rows(ctx, &q, upto, q.limit); err != nil {
				cut(ctx, err)
				return nil
			}
		}
		head = h.src.Head()
	}
	cut(ctx, h.writePage(ctx, out, &q, rows, upto, head))
	return nil
}

// writePage writes rows and what follows them, up to head.
func (h *handler) writePage(ctx context.Context, out *stream, q *query, rows []Row, upto, head uint64) error {
	out.WriteString(pageBegin) // the first error stays with out
	n := 0
	for len(rows) > 0 {
		for _, row := range rows {
			if err := h.writeItem(ctx, out, q, n > 0, row); err != nil {
				return err
			}
			n++
		}
		if n >= q.limit || upto >= head {
			break
		}
		var err error
		if rows, upto, err = h.rows(ctx, q, upto, q.limit-n); err != nil {
			return err
		}
	}
	// How many rows there are behind last_seq is not known, only that each has
	// a number of its own.
	pending := uint64(0)
	if n >= q.limit && upto < head {
		pending = head - upto
	}
	return h.endPage(out, upto, pending)
}

// backward answers descending: the newest rows first, down to since.
func (h *handler) backward(w http.ResponseWriter, r *http.Request, q query) error {
	ctx, src := r.Context(), h.src.(Backward)
	rows, err := src.Before(ctx, math.MaxUint64, min(q.limit, batch))
	if err != nil {
		return err
	}
	out := answer(w, "application/json")
	out.WriteString(pageBegin)
	n, last := 0, q.since
	for more := true; more && len(rows) > 0; {
		for _, row := range rows {
			if more = row.Seq > q.since && n < q.limit; !more {
				break
			}
			if err := h.writeItem(ctx, out, &q, n > 0, row); err != nil {
				cut(ctx, err)
				return nil
			}
			n, last = n+1, row.Seq
		}
		if more {
			if rows, err = src.Before(ctx, last, batch); err != nil {
				cut(ctx, err)
				return nil
			}
		}
	}
	cut(ctx, h.endPage(out, last, 0))
	return nil
}

const pageBegin = "{\"results\":[\n"

func (h *handler) endPage(out *stream, last, pending uint64) error {
	fmt.Fprintf(out, "\n],\n\"last_seq\":%q,\"pending\":%d}\n", h.seq(last), pending)
	return out.send()
}

// live answers feed=continuous, a row a line, and feed=eventsource. It ends
// after limit rows, an hour, or timeout without a row; with heartbeats there is
// no timeout.
func (h *handler) live(w http.ResponseWriter, r *http.Request, q query) error {
	ctx := r.Context()
	since := q.since
	rows, upto, err := h.rows(ctx, &q, since, q.limit)
	if err != nil {
		return err
	}
	form := "application/json"
	if q.feed == "eventsource" {
		form = "text/event-stream"
	}
	out := answer(w, form)
	cut(ctx, func() error {
		beat := func() error {
			line := "\n"
			if q.feed == "eventsource" {
				line = "event: heartbeat\ndata: \n\n"
			}
			_, err := out.WriteString(line)
			return cmp.Or(err, out.send())
		}
		if err := out.send(); err != nil { // the status, before the first row
			return err
		}
		end := time.Now().Add(maxLive)
		for n := 0; ; {
			for _, row := range rows {
				if err := h.writeLine(ctx, out, &q, row); err != nil {
					return err
				}
			}
			if n, since = n+len(rows), upto; n >= q.limit || !time.Now().Before(end) {
				break
			}
			if len(rows) < batch {
				if err := out.send(); err != nil {
					return err
				}
				until := end
				if q.heartbeat == 0 {
					until = time.Now().Add(q.timeout)
				}
				if more, err := h.wait(ctx, since, until, q.heartbeat, beat); err != nil || !more {
					break
				}
			}
			if rows, upto, err = h.rows(ctx, &q, since, q.limit-n); err != nil {
				return err
			}
		}
		if q.feed == "continuous" {
			fmt.Fprintf(out, "{\"last_seq\":%q,\"pending\":0}\n", h.seq(since))
		}
		return out.send()
	}())
	return nil
}

// wait returns true once there is more after since, false at until. Every
// heartbeat (0: never) it calls beat. An error is ctx's, beat's, or says that the
// source ends.
func (h *handler) wait(ctx context.Context, since uint64, until time.Time, heartbeat time.Duration, beat func() error) (bool, error) {
	for {
		next := until
		if heartbeat > 0 {
			if t := time.Now().Add(heartbeat); t.Before(until) {
				next = t
			}
		}
		waiting, cancel := context.WithDeadline(ctx, next)
		err := h.src.Wait(waiting, since)
		cancel()
		switch {
		case err == nil:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return false, err
		case !time.Now().Before(until):
			return false, nil
		}
		if err := beat(); err != nil {
			return false, err
		}
	}
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

// writeRow writes a row as one line without its end.
func (h *handler) writeRow(ctx context.Context, out *stream, q *query, row Row) error {
	v := jsonRow{Seq: h.seq(row.Seq), ID: row.ID, Changes: []jsonRev{}, Deleted: row.Deleted}
	if row.Rev != "" {
		v.Changes = append(v.Changes, jsonRev{row.Rev})
	}
	if q.docs != nil {
		var err error
		if v.Doc, err = rowDocument(ctx, q.docs, row); err != nil {
			return err
		}
	}
	text, err := json.Marshal(v) // puts a document on one line, too
	if err != nil {
		return fmt.Errorf("document %.64q: %w", row.ID, err)
	}
	_, err = out.Write(text)
	return err
}

// writeItem writes a row of a list, after others if more.
func (h *handler) writeItem(ctx context.Context, out *stream, q *query, more bool, row Row) error {
	if more {
		out.WriteString(",\n")
	}
	return h.writeRow(ctx, out, q, row)
}

func (h *handler) writeLine(ctx context.Context, out *stream, q *query, row Row) error {
	if q.feed == "eventsource" {
		out.WriteString("data: ")
	}
	if err := h.writeRow(ctx, out, q, row); err != nil {
		return err
	}
	end := "\n"
	if q.feed == "eventsource" {
		end = "\nid: " + h.seq(row.Seq) + "\n\n"
	}
	_, err := out.WriteString(end)
	return err
}

// rowDocument returns the document to send with a row: of a deleted one what
// CouchDB sends, null where there is none.
func rowDocument(ctx context.Context, docs Documents, row Row) (json.RawMessage, error) {
	if row.Deleted {
		return json.Marshal(struct {
			ID      string `json:"_id"`
			Rev     string `json:"_rev,omitempty"`
			Deleted bool   `json:"_deleted"`
		}{row.ID, row.Rev, true})
	}
	doc, err := docs.Document(ctx, row.ID)
	if err != nil {
		return nil, fmt.Errorf("document %.64q: %w", row.ID, err)
	}
	if doc == nil {
		doc = json.RawMessage("null")
	}
	return doc, nil
}
