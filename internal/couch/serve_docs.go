package couch

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
)

// listQuery is a request of _all_docs.
type listQuery struct {
	start, end string // "" for none
	exclusive  bool   // of the end
	descending bool
	keys       []string // nil: all
	skip       int
	limit      int
	docs       Documents
	updateSeq  bool
}

func (h *handler) listQuery(w http.ResponseWriter, r *http.Request, values url.Values) (q listQuery, err error) {
	q.limit = math.MaxInt
	for name, all := range values {
		value := all[0]
		if len(all) > 1 {
			return q, bad("%.32q twice", name)
		}
		switch name {
		case "startkey", "start_key":
			err = key(name, value, &q.start)
		case "endkey", "end_key":
			err = key(name, value, &q.end)
		case "key":
			var only string
			err = key(name, value, &only)
			q.keys = []string{only}
		case "keys":
			q.keys, err = idList(name, []byte(value))
		case "inclusive_end":
			q.exclusive, err = flag(name, value)
			q.exclusive = !q.exclusive
		case "descending":
			q.descending, err = flag(name, value)
		case "limit":
			q.limit, err = number(name, value)
		case "skip":
			if q.skip, err = number(name, value); err == nil && q.skip > maxKeys {
				err = bad("skip is more than %d: use startkey", maxKeys)
			}
		case "include_docs":
			q.docs, err = h.documents(value)
		case "update_seq":
			q.updateSeq, err = flag(name, value)
		case "conflicts", "attachments", "att_encoding_info", "stable", "update", "_nonce":
		default:
			err = bad("%.32q is not served", name)
		}
		if err != nil {
			return q, err
		}
	}
	posted, err := body(w, r, "keys")
	if posted != nil {
		q.keys = posted
	}
	return q, err
}

// key reads a key, which is JSON.
func key(name, value string, to *string) error {
	if json.Unmarshal([]byte(value), to) != nil {
		return bad("%s is no JSON string", name)
	}
	return nil
}

func (h *handler) allDocs(w http.ResponseWriter, r *http.Request, values url.Values) error {
	list, ok := h.src.(Listing)
	if !ok {
		return missing("this feed has no listing")
	}
	q, err := h.listQuery(w, r, values)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		header(w, "application/json")
		return nil
	}
	ctx := r.Context()
	var rows []Row
	if q.keys == nil && q.limit > 0 {
		if rows, err = list.List(ctx, q.start, q.descending, batch); err != nil {
			return err
		}
	}
	out := answer(w, "application/json")
	fmt.Fprintf(out, "{\"total_rows\":%d,\"offset\":null", h.src.Count())
	if q.updateSeq {
		fmt.Fprintf(out, ",\"update_seq\":%q", h.seq(h.src.Head()))
	}
	out.WriteString(",\"rows\":[\n")
	if q.keys != nil {
		err = h.listKeys(ctx, out, &q, list)
	} else {
		err = h.listRange(ctx, out, &q, list, rows)
	}
	if err == nil {
		out.WriteString("\n]}\n")
		err = out.send()
	}
	cut(ctx, err)
	return nil
}

// listRange writes the rows from q.start to q.end, of which rows are the first.
func (h *handler) listRange(ctx context.Context, out *stream, q *listQuery, list Listing, rows []Row) error {
	written := 0
	for len(rows) > 0 {
		var last string
		for _, row := range rows {
			if past(q, row.ID) {
				return nil
			}
			if last = row.ID; q.skip > 0 {
				q.skip--
				continue
			}
			if err := writeDoc(ctx, out, q, written > 0, row); err != nil {
				return err
			}
			if written++; written >= q.limit {
				return nil
			}
		}
		var err error
		if rows, err = list.List(ctx, last, q.descending, batch+1); err != nil {
			return err
		}
		if len(rows) > 0 && rows[0].ID == last {
			rows = rows[1:]
		}
	}
	return nil
}

// past says whether an id lies behind q's end.
func past(q *listQuery, id string) bool {
	if q.end == "" {
		return false
	}
	c := strings.Compare(id, q.end)
	if q.descending {
		c = -c
	}
	return c > 0 || c == 0 && q.exclusive
}

// listKeys writes a row for each of q.keys, whether it is there or not.
func (h *handler) listKeys(ctx context.Context, out *stream, q *listQuery, list Listing) error {
	for i, id := range q.keys[min(q.skip, len(q.keys)):] {
		if i >= q.limit {
			return nil
		}
		row, ok, err := list.Find(ctx, id)
		if err != nil {
			return err
		}
		if ok {
			err = writeDoc(ctx, out, q, i > 0, row)
		} else {
			err = writeItem(out, i > 0, map[string]string{"key": id, "error": "not_found"})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type jsonDoc struct {
	ID    string `json:"id"`
	Key   string `json:"key"`
	Value struct {
		Rev     string `json:"rev"`
		Deleted bool   `json:"deleted,omitempty"`
	} `json:"value"`
	Doc json.RawMessage `json:"doc,omitempty"`
}

func writeDoc(ctx context.Context, out *stream, q *listQuery, more bool, row Row) error {
	v := jsonDoc{ID: row.ID, Key: row.ID}
	v.Value.Rev, v.Value.Deleted = row.Rev, row.Deleted
	if q.docs != nil {
		v.Doc = json.RawMessage("null") // of a deleted one
		var err error
		if !row.Deleted {
			if v.Doc, err = rowDocument(ctx, q.docs, row); err != nil {
				return err
			}
		}
	}
	return writeItem(out, more, v)
}

func writeItem(out *stream, more bool, v any) error {
	if more {
		out.WriteString(",\n")
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// docParams are the parameters of GET /{id} that a database with one revision of
// each document, and no attachments, can leave aside.
var docParams = map[string]bool{
	"rev": true, "revs": true, "revs_info": true, "latest": true, "conflicts": true, "deleted_conflicts": true, "meta": true,
	"attachments": true, "att_encoding_info": true, "local_seq": true, "_nonce": true,
}

// document answers GET /{id}.
func (h *handler) document(w http.ResponseWriter, r *http.Request, id string, values url.Values) error {
	docs, ok := h.src.(Documents)
	if !ok {
		return missing("this feed has no documents")
	}
	for name := range values {
		if !docParams[name] {
			return bad("%.32q is not served", name)
		}
	}
	list, listing := h.src.(Listing)
	rev := values.Get("rev")
	if rev != "" && !listing {
		return bad("rev is not served here")
	}
	if listing {
		row, ok, err := list.Find(r.Context(), id)
		switch {
		case err != nil:
			return err
		case !ok, rev != "" && rev != row.Rev:
			return missing("missing")
		case row.Deleted:
			return missing("deleted")
		}
	}
	doc, err := docs.Document(r.Context(), id)
	if err != nil {
		return err
	}
	if doc == nil {
		return missing("missing")
	}
	out := answer(w, "application/json")
	out.Write(doc)
	out.WriteString("\n")
	cut(r.Context(), out.send())
	return nil
}
