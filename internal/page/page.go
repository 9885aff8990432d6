// Package page shows a registry to people: its state, a search over its names, and
// what is known of a package. It renders on the server, loads nothing from elsewhere
// and knows of the mirror only what Source says.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"html/template"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Prefix is where all pages but the first lie: "-" begins no package's path.
const Prefix = "/-/web/"

// Source is what the pages show; *mirror.Table is one. Its methods may be called
// concurrently and end with their ctx.
type Source interface {
	Status(ctx context.Context) mirror.TableStatus
	Search(ctx context.Context, text string, from, size int) (mirror.Hits, error)
	Account(ctx context.Context, name npm.Name, version string, far bool) (mirror.Account, error)
	// Meant gives the address at which a client reaches the registry, an http or https
	// URL with no slash at its end; ok says that pages may be shown there.
	Meant(r *http.Request) (base string, ok bool)
}

const (
	pageSize   = 20  // packages that a search shows at once
	maxQuery   = 214 // bytes of a search's text: what npm allows a name
	maxResult  = 980 // a search shows no more than its first thousand
	fewest     = 30  // versions, and withheld ones, that are shown unless all are asked for
	fewestBare = 150 // versions that are not listed for no known reason: a number each
	renderings = 8   // pages made at once
	patience   = 30 * time.Second
)

//go:embed *.html style.css search.js
var files embed.FS

// asset is a file that pages load. Its name has a part of its hash, so it may be kept
// for ever.
type asset struct {
	path, kind string
	data       []byte
}

func newAsset(file, kind string) asset {
	data, err := files.ReadFile(file)
	if err != nil {
		panic(err) // it was compiled in
	}
	base, ext, _ := strings.Cut(file, ".")
	digest := sha256.Sum256(data)
	return asset{Prefix + base + "-" + hex.EncodeToString(digest[:6]) + "." + ext, kind, data}
}

var (
	style  = newAsset("style.css", "text/css; charset=utf-8")
	script = newAsset("search.js", "text/javascript; charset=utf-8")
)

// pages are parsed once; each is the frame with a content of its own.
var pages = func() map[string]*template.Template {
	all := map[string]*template.Template{}
	frame := template.Must(template.New("frame.html").Funcs(functions).ParseFS(files, "frame.html"))
	for _, name := range []string{"state", "search", "package", "error"} {
		all[name] = template.Must(template.Must(frame.Clone()).ParseFS(files, name+".html"))
	}
	return all
}()

// handler shows pages, and leaves everything else to next.
type handler struct {
	next   http.Handler
	source Source
	log    *slog.Logger
	now    func() time.Time
	making chan struct{} // one token for each page being made
}

// Handler serves pages at / to whoever prefers HTML there, and below Prefix; next has
// all else, and so every request of an npm client.
func Handler(next http.Handler, source Source, log *slog.Logger) http.Handler {
	return &handler{next, source, log, time.Now, make(chan struct{}, renderings)}
}

// view is what every page is made of.
type view struct {
	Root   string // prefix of all links
	Base   string // address of the registry, for npm
	Title  string
	Query  string
	Now    time.Time
	Style  string
	Script string // "" where the page needs none
	Data   any
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at, inside := strings.CutPrefix(r.URL.Path, Prefix)
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !inside && !(r.URL.Path == "/" && read && prefersHTML(r)) {
		h.next.ServeHTTP(w, r)
		return
	}
	control := http.NewResponseController(w)
	// A recorder has no deadline, and needs none.
	_ = control.SetWriteDeadline(time.Now().Add(2 * patience))
	base, ok := h.source.Meant(r)
	v := view{Now: h.now(), Style: style.path}
	if u, err := url.Parse(base); ok && err == nil {
		v.Base, v.Root, v.Style = base, u.Path, u.Path+style.path
	}
	switch {
	case !ok:
		h.refuse(w, r, v, http.StatusMisdirectedRequest, "This is not an address of this registry",
			"Open it at http://localhost and its port, or at the very IP address on which it listens. A name that somebody else may point here is not answered; a proxy's is, where --trusted-proxy names the proxy.")
		return
	case !read:
		w.Header().Set("Allow", "GET, HEAD")
		h.refuse(w, r, v, http.StatusMethodNotAllowed, "Pages are only read", "")
		return
	}
	for _, a := range []asset{style, script} {
		if r.URL.Path == a.path {
			header := w.Header()
			header.Set("Content-Type", a.kind)
			header.Set("Cache-Control", "public, max-age=31536000, immutable")
			send(w, r, http.StatusOK, a.data)
			return
		}
	}
	select {
	case h.making <- struct{}{}:
		defer func() { <-h.making }()
	case <-r.Context().Done():
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	name, isPackage := strings.CutPrefix(at, "package/")
	switch {
	case !inside || at == "":
		v.Title, v.Data = "State", h.source.Status(ctx)
		h.show(w, r, http.StatusOK, "state", v)
	case at == "search":
		h.search(ctx, w, r, v)
	case isPackage:
		h.pkg(ctx, w, r, v, name)
	default:
		h.refuse(w, r, v, http.StatusNotFound, "There is no such page", "")
	}
}

// results is what the page of a search shows.
type results struct {
	mirror.Hits
	From, To       int // of those that are shown, 1 for the first
	Previous, Next int // where the pages beside it begin, -1 for none
	Problem        string
}

func (h *handler) search(ctx context.Context, w http.ResponseWriter, r *http.Request, v view) {
	query := r.URL.Query()
	v.Query = strings.TrimSpace(query.Get("q"))
	v.Title, v.Script = "Search", v.Root+script.path
	from, err := strconv.Atoi(query.Get("from"))
	if err != nil || from < 0 || from > maxResult {
		from = 0
	}
	d := results{Previous: -1, Next: -1}
	status := http.StatusOK
	switch {
	case v.Query == "":
	case len(v.Query) > maxQuery:
		status, d.Problem = http.StatusBadRequest, "No name is as long as that."
	default:
		v.Title = v.Query
		d.Hits, err = h.source.Search(ctx, v.Query, from, pageSize)
		if err != nil {
			status, d.Problem = http.StatusServiceUnavailable, sentence(err.Error())
			break
		}
		d.From, d.To = from+1, from+len(d.Hits.Hits)
		if from > 0 {
			d.Previous = max(0, from-pageSize)
		}
		if next := from + pageSize; next < d.Total && next <= maxResult {
			d.Next = next
		}
	}
	v.Data = d
	h.show(w, r, status, "search", v)
}

// details is what a package's page shows.
type details struct {
	mirror.Account
	Readme   template.HTML
	Versions []mirror.Listed
	Reasons  []mirror.Held // why versions are not listed, where there is a reason
	Lacking  []string      // versions without one, of which there are Lacks
	Lacks    int
	TagsOf   map[string][]string // by version
	Latest   bool                // the version shown is the one npm takes
}

func (h *handler) pkg(ctx context.Context, w http.ResponseWriter, r *http.Request, v view, spec string) {
	version := ""
	if i := strings.LastIndexByte(spec, '@'); i > 0 {
		spec, version = spec[:i], spec[i+1:]
	}
	name, err := npm.ParseName(spec)
	if err != nil {
		h.refuse(w, r, v, http.StatusBadRequest, "That is no package's name", sentence(err.Error()))
		return
	}
	a, err := h.source.Account(ctx, name, version, false)
	switch {
	case err != nil && r.Context().Err() != nil:
		return
	case errors.Is(err, mirror.ErrClosed):
		h.refuse(w, r, v, http.StatusServiceUnavailable, "The registry is stopping", "")
		return
	case err != nil:
		h.log.ErrorContext(ctx, "page failed", "package", string(name), "error", err)
		h.refuse(w, r, v, http.StatusInternalServerError, "This cannot be read", sentence(err.Error()))
		return
	}
	d := details{Account: a, Readme: Readme(a.Readme), Versions: a.Versions, TagsOf: map[string][]string{}}
	for _, lacking := range a.NotListed {
		if lacking.Reason == "" {
			d.Lacking = append(d.Lacking, lacking.Version)
		} else {
			d.Reasons = append(d.Reasons, lacking)
		}
	}
	d.Lacks = len(d.Lacking)
	if r.URL.Query().Get("versions") != "all" {
		d.Lacking = d.Lacking[:min(fewestBare, len(d.Lacking))]
		d.Versions = d.Versions[:min(fewest, len(d.Versions))]
		d.Reasons = d.Reasons[:min(fewest, len(d.Reasons))]
	}
	for _, tag := range slices.Sorted(maps.Keys(a.Tags)) {
		d.TagsOf[a.Tags[tag]] = append(d.TagsOf[a.Tags[tag]], tag)
	}
	d.Latest = a.Version != "" && a.Tags["latest"] == a.Version
	v.Title, v.Data = string(name), d
	h.show(w, r, statusOf(a.State), "package", v)
}

// statusOf is what the state of a package is to HTTP.
func statusOf(s mirror.State) int {
	switch s {
	case mirror.Served, mirror.Refused:
		return http.StatusOK
	case mirror.Unsynced, mirror.TooOld, mirror.Unreadable:
		return http.StatusServiceUnavailable
	}
	return http.StatusNotFound
}

// refuse shows why there is no page.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, v view, status int, title, text string) {
	v.Title, v.Data = title, text
	h.show(w, r, status, "error", v)
}

// policy lets a page load its own style, and a page that needs one its own script: a
// readme's could not run, nor could an image of it tell where it was read.
const policy = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func (h *handler) show(w http.ResponseWriter, r *http.Request, status int, page string, v view) {
	var out bytes.Buffer
	if err := pages[page].Execute(&out, v); err != nil {
		h.log.ErrorContext(r.Context(), "page failed", "page", page, "error", err)
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
		return
	}
	header := w.Header()
	allowed := policy
	if v.Script != "" {
		allowed += "; script-src 'self'; connect-src 'self'"
	}
	header.Set("Content-Security-Policy", allowed)
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Vary", "Accept")
	send(w, r, status, out.Bytes())
}

func send(w http.ResponseWriter, r *http.Request, status int, data []byte) {
	header := w.Header()
	header.Set("Content-Length", strconv.Itoa(len(data)))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // the reader has gone: nothing to do about it
	}
}

// prefersHTML says whether a client names text/html and weighs it above JSON, as
// browsers do and no npm client does (RFC 9110 section 12.5.1).
func prefersHTML(r *http.Request) bool {
	html, json := 0.0, 0.0
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		kind, parameters, _ := strings.Cut(part, ";")
		weight := 1.0
		for p := range strings.SplitSeq(parameters, ";") {
			if q, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
				var err error
				if weight, err = strconv.ParseFloat(q, 64); err != nil || !(weight >= 0 && weight <= 1) {
					weight = 0
				}
			}
		}
		switch kind = strings.ToLower(strings.TrimSpace(kind)); {
		case kind == "text/html":
			html = max(html, weight)
		case strings.HasSuffix(kind, "json"):
			json = max(json, weight)
		}
	}
	return html > json
}
