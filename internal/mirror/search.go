package mirror

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const (
	maxHits      = 1000            // matches that are ranked; the first of them by name
	maxResults   = 50              // of one answer: each needs its document
	searchBudget = 5 * time.Second // for the walk and the documents
)

// summary is what a search shows of a package, in types that clients rely on:
// pnpm refuses a package without a version, npm fails on one without
// maintainers, on keywords that are no strings, and on a date that is none.
type summary struct {
	Name        npm.Name     `json:"name"`
	Version     string       `json:"version"`
	Description string       `json:"description,omitempty"`
	Keywords    []string     `json:"keywords"`
	Maintainers []maintainer `json:"maintainers"`
	Date        string       `json:"date,omitempty"` // RFC 3339
	Links       struct{}     `json:"links"`
}

// maintainer is what a packument calls name and a search username.
type maintainer struct {
	Username string `json:"username"`
	Email    string `json:"email,omitempty"`
}

func (m *Mirror) serveSearch(w http.ResponseWriter, r *http.Request) {
	search(w, r, []shelf{{m, func(npm.Name) bool { return true }}})
}

// shelf is a mirror whose names are searched, those that shows lets through.
type shelf struct {
	*Mirror
	shows func(npm.Name) bool
}

// search answers npm's search over the listed names: each word of text must be
// in the name. Exact names come first, then those that begin with the first
// word, then shorter ones.
func search(w http.ResponseWriter, r *http.Request, in []shelf) {
	m := in[0].Mirror // for what is of no package
	query := r.URL.Query()
	size, err := strconv.Atoi(orDefault(query.Get("size"), "20"))
	from, fromErr := strconv.Atoi(orDefault(query.Get("from"), "0"))
	if err != nil || fromErr != nil || size < 0 || from < 0 {
		sendError(w, r, http.StatusBadRequest, "size and from must be numbers")
		return
	}
	found, total, err := find(r.Context(), in, query.Get("text"), from, size)
	if err != nil {
		m.fail(w, r, err)
		return
	}
	type object struct {
		Package summary `json:"package"`
		Score   struct {
			Final  float64            `json:"final"`
			Detail map[string]float64 `json:"detail"`
		} `json:"score"`
		SearchScore float64 `json:"searchScore"`
	}
	objects := []object{}
	for _, s := range found {
		o := object{Package: s}
		o.Score.Detail = map[string]float64{"quality": 0, "popularity": 0, "maintenance": 0}
		objects = append(objects, o)
	}
	sendJSON(w, r, http.StatusOK, struct {
		Objects []object `json:"objects"`
		Total   int      `json:"total"`
		Time    string   `json:"time"`
	}{objects, total, m.o.Now().UTC().Format(time.RFC1123)})
}

// find gives what search answers with, and how many names match in all.
func find(ctx context.Context, in []shelf, text string, from, size int) (all []summary, total int, err error) {
	ctx, cancel := context.WithTimeout(ctx, searchBudget)
	defer cancel()
	words := strings.Fields(strings.ToLower(text))
	select {
	case in[0].searching <- struct{}{}:
		defer func() { <-in[0].searching }()
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%w: too many searches at once", ErrUnavailable)
	}
	var hits []hit
	for _, s := range in {
		some := 0
		var broken error
		for e, err := range s.names(ctx) {
			if err != nil {
				broken = err
				break
			}
			name := strings.ToLower(string(e.Name))
			if !containsAll(name, words) || !s.shows(e.Name) {
				continue
			}
			total++
			if some++; some <= maxHits || len(words) > 0 && name == words[0] {
				hits = append(hits, hit{e, s.Mirror})
			}
		}
		if broken != nil {
			return nil, 0, broken
		}
	}
	rank := func(e hit) int {
		name := strings.ToLower(string(e.Name))
		switch {
		case len(words) == 0:
			return 0
		case name == words[0]:
			return 0
		case strings.HasPrefix(name, words[0]):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	hits = hits[min(from, len(hits)):]
	hits = hits[:min(size, maxResults, len(hits))]

	found := make([]*summary, len(hits))
	var g errgroup.Group
	g.SetLimit(8)
	for i, e := range hits {
		g.Go(func() error {
			// One that cannot be read in time is left out.
			if s, err := e.in.summarize(ctx, e.Name, e.CID); err == nil {
				found[i] = &s
			}
			return nil
		})
	}
	g.Wait()
	for _, s := range found {
		if s != nil && s.Version != "" {
			all = append(all, *s)
		}
	}
	return all, total, nil
}

// Found is a package that a search found.
type Found struct {
	Name        npm.Name
	Version     string
	Description string
	Date        string // of that version, RFC 3339; "" where it is not known
}

// Search gives the packages that npm's search for text answers with, from the from'th
// on at most size, and how many match in all. Errors: ErrNotSynced, ErrStale,
// ErrUnavailable, ErrClosed.
func (t *Table) Search(ctx context.Context, text string, from, size int) (found []Found, total int, err error) {
	in := t.shelves()
	if len(in) == 0 {
		return nil, 0, ErrNotSynced
	}
	for _, s := range in {
		if !s.enter() {
			return nil, 0, ErrClosed
		}
		defer s.leave()
	}
	all, total, err := find(ctx, in, text, from, size)
	for _, s := range all {
		found = append(found, Found{s.Name, s.Version, s.Description, s.Date})
	}
	return found, total, err
}

// hit is an entry of one mirror's list.
type hit struct {
	index.Entry
	in *Mirror
}

func containsAll(name string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(name, w) {
			return false
		}
	}
	return true
}

// summarize reads a listed package's summary.
func (m *Mirror) summarize(ctx context.Context, name npm.Name, dir cid.Cid) (summary, error) {
	if s, ok := m.summaries.get(dir); ok {
		return s, nil
	}
	p, err := m.listedPackument(ctx, name, dir, false)
	if err != nil {
		return summary{}, err
	}
	var s summary
	err = m.decoded(ctx, p, func(raw []byte) error {
		head, tags, err := readHead(raw)
		if err == nil {
			s = summaryOf(name, head, tags)
		}
		return err
	})
	if err != nil {
		return summary{}, err
	}
	cost := 256 + len(s.Description)
	for _, word := range s.Keywords {
		cost += 16 + len(word)
	}
	for _, person := range s.Maintainers {
		cost += 32 + len(person.Username) + len(person.Email)
	}
	m.summaries.put(dir, s, int64(cost))
	return s, nil
}

func summaryOf(name npm.Name, head packumentHead, tags map[string]string) summary {
	s := summary{Name: name, Version: tags["latest"], Keywords: []string{}, Maintainers: []maintainer{}}
	read(head.Description, &s.Description)
	for _, raw := range elements(head.Keywords) {
		var word string
		if read(raw, &word) && word != "" {
			s.Keywords = append(s.Keywords, word)
		}
	}
	for _, raw := range elements(head.Maintainers) {
		var person struct {
			Name  string `json:"name"`
			Email string `json:"email"`
		}
		if read(raw, &person) && person.Name != "" {
			s.Maintainers = append(s.Maintainers, maintainer{person.Name, person.Email})
		}
	}
	if s.Version == "" { // no latest: the highest
		for v := range head.Versions {
			if s.Version == "" || npm.CompareVersions(v, s.Version) > 0 {
				s.Version = v
			}
		}
	}
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

// elements are those of an array, none of anything else.
func elements(raw jsontext.Value) (all []jsontext.Value) {
	read(raw, &all)
	return all
}
