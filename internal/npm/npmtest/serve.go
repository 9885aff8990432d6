package npmtest

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// feedPath is where the replicate service lies. It is within npm's own
// namespace, so that no package can be in its way.
const feedPath = "/-/feed"

// ServeHTTP answers as npm's registry does; below "/-/feed", as its replicate service.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	escaped := req.URL.EscapedPath()
	r.mu.Lock()
	r.requests[escaped]++
	faults := slices.Clone(r.faults)
	r.mu.Unlock()
	for _, f := range slices.Backward(faults) {
		if strings.HasPrefix(escaped, f.prefix) && f.handle(w, req) {
			return
		}
	}
	switch {
	case escaped == feedPath || strings.HasPrefix(escaped, feedPath+"/"):
		r.serveFeed(w, req, strings.Trim(escaped[len(feedPath):], "/"))
		return
	case req.Method == http.MethodPost && strings.HasPrefix(escaped, "/-/npm/v1/security/"):
		reply(w, http.StatusOK, map[string]any{}) // no advisories
		return
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		reply(w, http.StatusMethodNotAllowed, map[string]string{"error": "read only"})
		return
	case escaped == "/-/ping":
		reply(w, http.StatusOK, map[string]any{})
		return
	case escaped == "/-/npm/v1/keys":
		if keys := r.Keys(); keys != nil {
			w.Header().Set("Content-Type", "application/json")
			write(w, req, keys)
			return
		}
		reply(w, http.StatusOK, map[string]any{"keys": []any{}})
		return
	}
	if rest, ok := strings.CutPrefix(escaped, "/-/package/"); ok {
		if name, ok := strings.CutSuffix(rest, "/dist-tags"); ok {
			r.serveTags(w, name)
			return
		}
	}
	name, rest := splitPath(escaped)
	switch {
	case name == "":
		notFound(w)
	case rest == "":
		r.servePackument(w, req, name)
	case strings.HasPrefix(rest, "-/"):
		r.serveTarball(w, req, name, rest[2:])
	default:
		r.serveManifest(w, name, rest)
	}
}

// splitPath reads "/@s%2fn/rest", "/@s/n/rest" and "/n/rest".
func splitPath(escaped string) (name, rest string) {
	p := strings.TrimPrefix(escaped, "/")
	first, rest, _ := strings.Cut(p, "/")
	name, err := url.PathUnescape(first)
	if err != nil {
		return "", ""
	}
	if strings.HasPrefix(name, "@") && !strings.Contains(name, "/") {
		var base string
		base, rest, _ = strings.Cut(rest, "/")
		if base, err = url.PathUnescape(base); err != nil {
			return "", ""
		}
		name += "/" + base
	}
	if rest, err = url.PathUnescape(rest); err != nil {
		return "", ""
	}
	return name, rest
}

func reply(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value) // a client that went away is no concern of a test
}

func notFound(w http.ResponseWriter) {
	reply(w, http.StatusNotFound, map[string]string{"error": "Not found"})
}

func (r *Registry) servePackument(w http.ResponseWriter, req *http.Request, name string) {
	doc := r.served(name)
	if doc == nil {
		notFound(w)
		return
	}
	contentType := "application/json"
	// npm gives the abbreviated form whenever it is named, whatever its quality.
	if strings.Contains(req.Header.Get("Accept"), npm.AbbreviatedType) {
		short, err := npm.Abbreviate(doc, npm.AbbreviateOptions{})
		if err != nil {
			reply(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
			return
		}
		doc, contentType = short, npm.AbbreviatedType
	}
	h := w.Header()
	h.Set("Vary", "Accept, Accept-Encoding")
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "public, max-age=300")
	sum := sha256.Sum256(doc)
	if unchanged(w, req, `"`+hex.EncodeToString(sum[:16])+`"`) {
		return
	}
	if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		var buf bytes.Buffer
		zw := gzip.NewWriter(&buf)
		zw.Write(doc) // to memory
		zw.Close()
		doc = buf.Bytes()
		h.Set("Content-Encoding", "gzip")
	}
	write(w, req, doc)
}

// served returns the document to serve for name, nil for 404.
func (r *Registry) served(name string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if p == nil || p.versions == nil {
		return nil
	}
	if p.lag > 0 {
		p.lag--
		r.stale++
		return p.before
	}
	doc := r.document(p)
	if p.edit != nil {
		doc = p.edit(doc)
	}
	return doc
}

// unchanged sets the ETag and answers 304 where the client has it.
func unchanged(w http.ResponseWriter, req *http.Request, etag string) bool {
	w.Header().Set("ETag", etag)
	for have := range strings.SplitSeq(req.Header.Get("If-None-Match"), ",") {
		if strings.TrimPrefix(strings.TrimSpace(have), "W/") == etag {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

func write(w http.ResponseWriter, req *http.Request, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if req.Method != http.MethodHead {
		w.Write(body)
	}
}

func (r *Registry) serveTarball(w http.ResponseWriter, req *http.Request, name, file string) {
	r.mu.Lock()
	var tarball []byte
	if p := r.packages[name]; p != nil {
		for _, v := range p.versions {
			if v.file == file {
				tarball = v.tarball
			}
		}
	}
	r.mu.Unlock()
	if tarball == nil {
		notFound(w)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "public, immutable, max-age=31557600")
	sum := sha256.Sum256(tarball)
	if !unchanged(w, req, `"`+hex.EncodeToString(sum[:16])+`"`) {
		write(w, req, tarball)
	}
}

func (r *Registry) serveTags(w http.ResponseWriter, escaped string) {
	name, err := url.PathUnescape(escaped)
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	if err != nil || p == nil || p.deleted {
		notFound(w)
		return
	}
	reply(w, http.StatusOK, p.tags)
}

// serveManifest answers "/name/version" and "/name/tag".
func (r *Registry) serveManifest(w http.ResponseWriter, name, wanted string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.packages[name]; p != nil && !p.deleted {
		if tagged, ok := p.tags[wanted]; ok {
			wanted = tagged
		}
		if v := p.versions[wanted]; v != nil {
			reply(w, http.StatusOK, v.manifest)
			return
		}
	}
	reply(w, http.StatusNotFound, "version not found: "+wanted)
}

// The replicate service, as it is since 2025: no include_docs, no long polling,
// GET only. What it does not take is a 400.

const (
	feedDefault = 1000
	feedMax     = 10000
)

var (
	changesParams = []string{"since", "limit", "descending", "doc_ids", "last-event-id"}
	allDocsParams = []string{"startkey", "endkey", "start_key", "end_key", "key", "keys", "inclusive_end", "descending", "limit"}
)

func (r *Registry) serveFeed(w http.ResponseWriter, req *http.Request, what string) {
	bad := func() { reply(w, http.StatusBadRequest, map[string]string{"error": "Bad Request"}) }
	if req.Method != http.MethodGet {
		bad()
		return
	}
	q, err := url.ParseQuery(req.URL.RawQuery)
	allowed := map[string][]string{"": nil, "_changes": changesParams, "_all_docs": allDocsParams}
	params, known := allowed[what]
	if !known {
		notFound(w)
		return
	}
	for key := range q {
		if !slices.Contains(params, key) {
			err = fmt.Errorf("parameter %s", key)
		}
	}
	limit := feedDefault
	if s := q.Get("limit"); s != "" && err == nil {
		if limit, err = strconv.Atoi(s); err == nil && (limit < 1 || limit > feedMax) {
			err = fmt.Errorf("limit %d", limit)
		}
	}
	if err != nil {
		bad()
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch what {
	case "":
		live := 0
		for _, p := range r.packages {
			if !p.deleted {
				live++
			}
		}
		reply(w, http.StatusOK, map[string]any{"db_name": "registry", "engine": "npm-replicate", "doc_count": live, "update_seq": r.seq})
	case "_changes":
		if !r.changes(w, q, limit) {
			bad()
		}
	case "_all_docs":
		if !r.allDocs(w, q, limit) {
			bad()
		}
	}
}

func (r *Registry) changes(w http.ResponseWriter, q url.Values, limit int) bool {
	type rev struct {
		Rev string `json:"rev"`
	}
	type row struct {
		Seq     int64  `json:"seq"`
		ID      string `json:"id"`
		Changes []rev  `json:"changes"`
		Deleted bool   `json:"deleted,omitempty"`
	}
	since := int64(0)
	if s := cmp.Or(q.Get("last-event-id"), q.Get("since")); s != "" {
		var err error
		if since, err = strconv.ParseInt(s, 10, 64); err != nil || since < 0 {
			return false
		}
	}
	var ids []string
	if s := q.Get("doc_ids"); s != "" && json.Unmarshal([]byte(s), &ids) != nil {
		return false
	}
	rows := []row{}
	for _, p := range r.packages {
		if p.seq > since && !p.hidden && (ids == nil || slices.Contains(ids, p.name)) {
			rows = append(rows, row{p.seq, p.name, []rev{{p.revision()}}, p.deleted})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.Seq, b.Seq) })
	if q.Get("descending") == "true" {
		slices.Reverse(rows)
	}
	rows = rows[:min(limit, len(rows))]
	last := since // past the head npm echoes what was asked for
	if len(rows) > 0 {
		last = rows[len(rows)-1].Seq
	}
	reply(w, http.StatusOK, map[string]any{"results": rows, "last_seq": last})
	return true
}

func (r *Registry) allDocs(w http.ResponseWriter, q url.Values, limit int) bool {
	read := func(names ...string) (v string, given, ok bool) {
		for _, name := range names {
			if s := q.Get(name); s != "" {
				ok := json.Unmarshal([]byte(s), &v) == nil
				return v, true, ok
			}
		}
		return "", false, true
	}
	start, hasStart, ok1 := read("startkey", "start_key")
	end, hasEnd, ok2 := read("endkey", "end_key")
	only, hasOnly, ok3 := read("key")
	var keys []string
	if s := q.Get("keys"); s != "" && json.Unmarshal([]byte(s), &keys) != nil || !ok1 || !ok2 || !ok3 {
		return false
	}
	type row struct {
		ID    string            `json:"id"`
		Key   string            `json:"key"`
		Value map[string]string `json:"value"`
	}
	names := slices.Sorted(maps.Keys(r.packages))
	desc := q.Get("descending") == "true"
	if desc {
		slices.Reverse(names)
	}
	order := func(a, b string) int {
		if desc {
			return strings.Compare(b, a)
		}
		return strings.Compare(a, b)
	}
	rows, total := []row{}, 0
	for _, name := range names {
		p := r.packages[name]
		if p.deleted {
			continue
		}
		total++
		switch {
		case len(rows) == limit,
			hasStart && order(name, start) < 0,
			hasEnd && order(name, end) > 0,
			hasEnd && name == end && q.Get("inclusive_end") == "false",
			hasOnly && name != only,
			keys != nil && !slices.Contains(keys, name):
			continue
		}
		rows = append(rows, row{name, name, map[string]string{"rev": p.revision()}})
	}
	reply(w, http.StatusOK, map[string]any{"total_rows": total, "offset": 0, "rows": rows})
	return true
}
