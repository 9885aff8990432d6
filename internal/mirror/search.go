package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const (
	maxHits        = 1000            // the last hit that is shown, with all before it
	maxResults     = 250             // of one answer, as npm's registry has it
	maxAwaited     = 50              // documents, for one answer
	searchBudget   = 5 * time.Second // for all of it
	searchPatience = 2 * time.Second // of it, for documents that are not held

	// Of what a document says of its package, so much is kept.
	maxSaid  = 1024 // bytes of its description, and of an URL
	maxSays  = 64   // keywords, and maintainers
	maxNamed = 128  // bytes of each
)

// unknownVersion is what a client is told that shows the version and asks for none:
// npm prints it, and without one "undefined"; pnpm 12 ends.
const unknownVersion = "unknown"

// summary is what a search shows of a package, in types that clients rely on:
// pnpm refuses a package without a version, npm fails on one without
// maintainers, on keywords that are no strings, and on a date that is none.
type summary struct {
	Name        npm.Name `json:"name"`
	Version     string   `json:"version"`
	Description string   `json:"description,omitempty"`
	Keywords    []string `json:"keywords"`
	Author      *person  `json:"author,omitempty"`
	Publisher   *person  `json:"publisher,omitempty"`
	Maintainers []person `json:"maintainers"`
	Date        string   `json:"date,omitempty"` // RFC 3339
	Links       links    `json:"links"`
}

// person is somebody in a packument, whose name there is username in a search but
// for an author's.
type person struct {
	Name     string `json:"name,omitempty"`
	Username string `json:"username,omitempty"`
	Email    string `json:"email,omitempty"`
}

// links are http and https URLs.
type links struct {
	Homepage   string `json:"homepage,omitempty"`
	Repository string `json:"repository,omitempty"`
	Bugs       string `json:"bugs,omitempty"`
}

// Hit is a package that a search found. Of one of which no file is held there
// is no more than the name.
type Hit struct {
	Name     npm.Name `json:"name"`
	Registry string   `json:"registry,omitempty"` // its label, in a table
	Held     bool     `json:"held"`               // a document or a tarball of it, if an earlier one
	Version  string   `json:"version,omitempty"`
	// Description and Keywords are what their author wrote.
	Description string   `json:"description,omitempty"`
	Keywords    []string `json:"keywords,omitempty"`
	Date        string   `json:"date,omitempty"` // RFC 3339
}

// Hits are some of the packages that a search found.
type Hits struct {
	Hits  []Hit `json:"hits"`
	Total int   `json:"total"` // of all of them
}

// Search finds packages as one types: every word of text must be in the name, or in
// name, description and keywords of a package of which a file is held; "scope:", "keywords:",
// "author:" and "maintainer:" ask for those, as npm's search has them. Names come
// first that are text, then those that are but for the scope, begin with it, have a
// word that does, or have it anywhere; then keywords; of each the shorter first. It
// gives at most size hits, 250, after the first from, of which no more than 1000 are
// ever shown, and asks nobody for a document. It takes tens of milliseconds for
// millions of names, but for the first time of all, which reads the list once.
// Errors: ErrQuery, ErrNotSynced, ErrStale, ErrUnavailable where too many search,
// ErrClosed, and those of ctx.
func (m *Mirror) Search(ctx context.Context, text string, from, size int) (Hits, error) {
	return searchHeld(ctx, []shelf{{Mirror: m}}, text, from, size)
}

// Search is Mirror.Search of all, each hit from the registry that is asked for it.
func (t *Table) Search(ctx context.Context, text string, from, size int) (Hits, error) {
	return searchHeld(ctx, t.shelves(), text, from, size)
}

func searchHeld(ctx context.Context, in []shelf, text string, from, size int) (Hits, error) {
	ctx, cancel := context.WithTimeout(ctx, searchBudget)
	defer cancel()
	for _, s := range in {
		if !s.enter() {
			return Hits{}, ErrClosed
		}
		defer s.leave()
	}
	matched, total, err := find(ctx, in, text, from, size)
	if err != nil {
		return Hits{}, err
	}
	hits := Hits{Hits: []Hit{}, Total: total}
	for _, f := range matched {
		s := in[f.shelf]
		dir, listed, err := s.entry(f.name)
		if err != nil {
			return Hits{}, err
		}
		if !listed {
			continue // the list moved
		}
		d, held, _ := s.descriptionOf(f.name, dir)
		hits.Hits = append(hits.Hits, Hit{
			Name: f.name, Registry: s.label, Held: held,
			Version: d.Version, Description: d.Description, Keywords: d.Keywords, Date: d.Date,
		})
	}
	return hits, nil
}

// find gives the hits that are asked for, and how many there are.
func find(ctx context.Context, in []shelf, text string, from, size int) ([]found, int, error) {
	q, err := parseQuery(text)
	if err != nil {
		return nil, 0, err
	}
	if len(in) == 0 {
		return nil, 0, ErrNotSynced
	}
	if from < 0 || size < 0 {
		return nil, 0, fmt.Errorf("%w: from and size are not below 0", ErrQuery)
	}
	from = min(from, maxHits)
	most := min(from+min(size, maxResults), maxHits)
	turns := in[0].searching // for all of them
	select {
	case turns <- struct{}{}:
		defer func() { <-turns }()
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%w: too many searches at once: %w", ErrUnavailable, ctx.Err())
	}
	var all []found
	total := 0
	if !q.ofDocuments() {
		if all, total, err = findNames(ctx, q, in, most); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			return nil, 0, err
		}
	}
	for i, s := range in {
		described, err := s.findDescribed(ctx, q)
		if err != nil {
			return nil, 0, err
		}
		for _, f := range described {
			f.shelf = i
			if shown, err := shows(in, i, f.name); err != nil {
				return nil, 0, err
			} else if shown {
				all = append(all, f)
				total++
			}
		}
	}
	slices.SortFunc(all, found.compare)
	all = all[:min(most, len(all))]
	return all[min(from, len(all)):], total, nil
}

// shows says whether a name is listed by a shelf and looked up there.
func shows(in []shelf, i int, name npm.Name) (bool, error) {
	has := func(spans []span) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return s.has(name) })
	}
	if in[i].only != nil && !has(in[i].only) || has(in[i].but) {
		return false, nil
	}
	_, listed, err := in[i].entry(name)
	for j := 0; j < i && listed && err == nil && in[i].open; j++ {
		if in[j].open {
			var before bool
			_, before, err = in[j].entry(name)
			listed = !before
		}
	}
	return listed, err
}

func (m *Mirror) serveSearch(w http.ResponseWriter, r *http.Request) {
	search(w, r, m, []shelf{{Mirror: m}})
}

// search answers npm's search. Who shows the versions, npm and pnpm, waits a while
// for the documents that are not held; nobody else has any fetched.
func search(w http.ResponseWriter, r *http.Request, m *Mirror, in []shelf) {
	ctx, cancel := context.WithTimeout(r.Context(), searchBudget)
	defer cancel()
	asked := r.URL.Query()
	size, err := strconv.Atoi(orDefault(asked.Get("size"), "20"))
	from, fromErr := strconv.Atoi(orDefault(asked.Get("from"), "0"))
	if err != nil || fromErr != nil {
		sendError(w, r, http.StatusBadRequest, "size and from must be numbers")
		return
	}
	matched, total, err := find(ctx, in, asked.Get("text"), from, size)
	if errors.Is(err, ErrQuery) {
		sendError(w, r, http.StatusBadRequest, err.Error())
		return
	}
	if err != nil {
		m.fail(w, r, err)
		return
	}
	shown := make([]*summary, len(matched))
	waiting, cancel := context.WithTimeout(ctx, searchPatience)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(8)
	for i, f := range matched {
		s := in[f.shelf]
		dir, listed, err := s.entry(f.name)
		if err != nil || !listed {
			continue // the list moved
		}
		said, held, current := s.descriptionOf(f.name, dir)
		if !held {
			said = summary{Name: f.name, Version: unknownVersion, Keywords: []string{}, Maintainers: []person{}}
		}
		shown[i] = &said
		if current || i >= maxAwaited || !strings.Contains(r.UserAgent(), "npm/") {
			continue
		}
		g.Go(func() error {
			if now, err := s.summarize(waiting, f.name, dir); err == nil {
				shown[i] = &now
			}
			return nil
		})
	}
	g.Wait()
	type object struct {
		Package *summary `json:"package"`
		Score   struct {
			Final  float64            `json:"final"`
			Detail map[string]float64 `json:"detail"`
		} `json:"score"`
		SearchScore float64 `json:"searchScore"`
	}
	objects := []object{}
	for _, s := range shown {
		if s != nil {
			o := object{Package: s}
			o.Score.Detail = map[string]float64{"quality": 0, "popularity": 0, "maintenance": 0}
			objects = append(objects, o)
		}
	}
	sendJSON(w, r, http.StatusOK, struct {
		Objects []object `json:"objects"`
		Total   int      `json:"total"`
		Time    string   `json:"time"`
	}{objects, total, m.o.Now().UTC().Format(time.RFC1123)})
}

// summarize reads a listed package's summary.
func (m *Mirror) summarize(ctx context.Context, name npm.Name, dir cid.Cid) (summary, error) {
	p, err := m.listedPackument(ctx, name, dir, false)
	if err != nil {
		return summary{}, err
	}
	var s summary
	err = m.decoded(ctx, p, func(raw []byte) error {
		s, err = readSummary(name, raw)
		return err
	})
	if err != nil {
		return summary{}, err
	}
	return s, m.describe(ctx, &description{Name: name, Dir: dir, Summary: s, file: p.file})
}

// readSummary reads a document's.
func readSummary(name npm.Name, raw []byte) (summary, error) {
	head, tags, err := readHead(raw)
	if err != nil {
		return summary{}, err
	}
	return summaryOf(name, head, tags), nil
}

// summaryOf is that of what is latest, as the document and that version say it.
func summaryOf(name npm.Name, head packumentHead, tags map[string]string) summary {
	s := summary{Name: name, Version: tags["latest"], Keywords: []string{}, Maintainers: []person{}}
	if s.Version == "" { // no latest: the highest
		for v := range head.Versions {
			if s.Version == "" || npm.CompareVersions(v, s.Version) > 0 {
				s.Version = v
			}
		}
	}
	var manifest struct { // for what the document does not say itself
		Description jsontext.Value `json:"description"`
		Keywords    jsontext.Value `json:"keywords"`
		Author      jsontext.Value `json:"author"`
		Publisher   jsontext.Value `json:"_npmUser"`
	}
	read(head.Versions[s.Version], &manifest)
	s.Version = cut(cmp.Or(s.Version, unknownVersion), maxNamed)
	or := func(said, otherwise jsontext.Value) jsontext.Value {
		if len(said) > 0 {
			return said
		}
		return otherwise
	}
	read(or(head.Description, manifest.Description), &s.Description)
	s.Description = cut(s.Description, maxSaid)
	for _, word := range readKeywords(or(head.Keywords, manifest.Keywords)) {
		if word != "" {
			s.Keywords = append(s.Keywords, cut(word, maxNamed))
		}
	}
	for _, raw := range elements(head.Maintainers) {
		if p := readPerson(raw); p != nil {
			p.Name, p.Username = "", p.Name
			s.Maintainers = append(s.Maintainers, *p)
		}
	}
	s.Author = readPerson(or(head.Author, manifest.Author))
	if p := readPerson(manifest.Publisher); p != nil {
		s.Publisher = &person{Username: p.Name, Email: p.Email}
	}
	s.Links = links{readURL(head.Homepage), readURL(head.Repository), readURL(head.Bugs)}
	var times map[string]jsontext.Value
	if read(head.Time, &times) && read(times[s.Version], &s.Date) {
		if _, err := time.Parse(time.RFC3339, s.Date); err != nil {
			s.Date = ""
		}
	}
	return s
}

// read reads a value of upstream's, which may be of any type, where it is of v's.
func read(raw jsontext.Value, v any) bool {
	return len(raw) > 0 && json.Unmarshal(raw, v) == nil
}

// elements are the first of those of an array, none of anything else.
func elements(raw jsontext.Value) (all []jsontext.Value) {
	read(raw, &all)
	return all[:min(len(all), maxSays)]
}

// readKeywords reads an array of words, or a text with commas or spaces between them.
func readKeywords(raw jsontext.Value) (words []string) {
	var text string
	if read(raw, &text) {
		words = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
		return words[:min(len(words), maxSays)]
	}
	for _, raw := range elements(raw) {
		var word string
		read(raw, &word)
		words = append(words, word)
	}
	return words
}

// readPerson reads somebody who has a name: an object, or as people write it,
// "Name <email> (URL)", of which the last two may be absent.
func readPerson(raw jsontext.Value) *person {
	var p struct {
		Name  string `json:"name"`
		Email string `json:"email"`
	}
	var text string
	if read(raw, &text) {
		text, _, _ = strings.Cut(text, "(")
		p.Name, p.Email, _ = strings.Cut(text, "<")
		p.Name = strings.TrimSpace(p.Name)
		p.Email, _, _ = strings.Cut(p.Email, ">")
	} else {
		read(raw, &p)
	}
	if p.Name == "" {
		return nil
	}
	return &person{Name: cut(p.Name, maxNamed), Email: cut(p.Email, maxNamed)}
}

// readURL reads where a person may go: a string, or an object's url.
func readURL(raw jsontext.Value) string {
	var s string
	if !read(raw, &s) {
		var o struct {
			URL string `json:"url"`
		}
		read(raw, &o)
		s = o.URL
	}
	s = strings.TrimPrefix(s, "git+")
	if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || len(s) > maxSaid {
		return ""
	}
	return s
}

// cut is the beginning of s, at most that many bytes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
