package mirror

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// ErrQuery is returned for a search that is longer than any that is answered.
var ErrQuery = errors.New("search refused")

const (
	maxQuery = 512 // bytes of a search's text
	maxWords = 16  // of it, qualifiers with them
)

// query is what a search asks for, all in lower case.
type query struct {
	words    []string
	scope    string     // "@types"
	keywords [][]string // one of each
	people   []string   // authors or maintainers, each
}

// parseQuery reads the text of a search: words, and npm's qualifiers. Of those,
// "not:", "is:" and "boost-exact:" ask for what no document says, and are passed
// over.
func parseQuery(text string) (q query, err error) {
	if len(text) > maxQuery {
		return q, fmt.Errorf("%w: %d bytes of text, at most %d are taken", ErrQuery, len(text), maxQuery)
	}
	fields := strings.Fields(strings.ToLower(text))
	if len(fields) > maxWords {
		return q, fmt.Errorf("%w: %d words, at most %d are taken", ErrQuery, len(fields), maxWords)
	}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, ":")
		switch {
		case ok && key == "scope":
			q.scope = "@" + strings.TrimPrefix(value, "@")
		case ok && (key == "keywords" || key == "keyword"):
			q.keywords = append(q.keywords, strings.FieldsFunc(value, func(r rune) bool { return r == ',' }))
		case ok && (key == "author" || key == "maintainer" || key == "publisher"):
			q.people = append(q.people, value)
		case ok && (key == "not" || key == "is" || key == "boost-exact"):
		default:
			q.words = append(q.words, f)
		}
	}
	return q, nil
}

// ofDocuments says whether only documents can answer it.
func (q query) ofDocuments() bool { return len(q.keywords)+len(q.people) > 0 }

// ranks of a hit, the best first.
const (
	exactName = iota
	exactBase // without its scope
	prefixOfName
	startOfWord
	partOfName
	exactKeyword
	partOfDocument // of its description, keywords or people
)

// rank is that of a name, in lower case, that has all words. Of one above worst no
// more is known than that it is.
func (q query) rank(lower []byte, worst int) int {
	if len(q.words) == 0 {
		return exactName
	}
	first := q.words[0]
	base := lower
	if len(lower) > 0 && lower[0] == '@' {
		base = lower[bytes.IndexByte(lower, '/')+1:]
	}
	if len(q.words) == 1 {
		switch {
		case string(lower) == first:
			return exactName
		case string(base) == first:
			return exactBase
		case len(lower) > len(first) && string(lower[:len(first)]) == first:
			return prefixOfName
		case worst >= startOfWord && startsWord(lower, first):
			return startOfWord
		}
		return partOfName
	}
	switch {
	case spelled(lower, q.words):
		return exactName
	case spelled(base, q.words):
		return exactBase
	case worst < prefixOfName:
		return partOfName
	}
	for _, w := range q.words[1:] {
		if !startsWord(lower, w) {
			return partOfName
		}
	}
	switch {
	case bytes.HasPrefix(lower, []byte(first)):
		return prefixOfName
	case startsWord(lower, first):
		return startOfWord
	}
	return partOfName
}

// spelled says whether name is words with one character between each two.
func spelled(name []byte, words []string) bool {
	for i, w := range words {
		if i > 0 {
			if len(name) == 0 || alphanumeric(name[0]) {
				return false
			}
			name = name[1:]
		}
		if len(name) < len(w) || string(name[:len(w)]) != w {
			return false
		}
		name = name[len(w):]
	}
	return len(name) == 0
}

// startsWord says whether word stands at the beginning of name, or after something
// that is neither letter nor digit.
func startsWord(name []byte, word string) bool {
	for at := 0; ; at++ {
		i := bytes.Index(name[at:], []byte(word))
		if i < 0 {
			return false
		}
		if at += i; at == 0 || !alphanumeric(name[at-1]) {
			return true
		}
	}
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// span is the names from from to before to.
type span struct{ from, to npm.Name }

func spanOfName(n npm.Name) span      { return span{n, n + "\x00"} }
func spanOfScope(scope string) span   { return span{npm.Name(scope + "/"), npm.Name(scope + "0")} }
func (s span) has(name npm.Name) bool { return s.from <= name && name < s.to }

// shelf is a mirror whose names are searched.
type shelf struct {
	*Mirror
	label string
	// only, where not nil, are the names that are looked up in it; but are those
	// that are not. Both are in order, and no two overlap.
	only, but []span
	// open is that of several which are so, what an earlier one lists is not looked
	// up here.
	open bool
}

// found is a name that matches.
type found struct {
	rank  int
	name  npm.Name
	shelf int
}

func (a found) compare(b found) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
}

// best are the first of what matches, the last of them at 0.
type best struct {
	most int
	all  []found
}

func (b *best) Len() int           { return len(b.all) }
func (b *best) Less(i, j int) bool { return b.all[i].compare(b.all[j]) > 0 }
func (b *best) Swap(i, j int)      { b.all[i], b.all[j] = b.all[j], b.all[i] }
func (b *best) Push(v any)         { b.all = append(b.all, v.(found)) }
func (b *best) Pop() any {
	last := b.all[len(b.all)-1]
	b.all = b.all[:len(b.all)-1]
	return last
}

// add takes f in if it is one of the best.
func (b *best) add(f found) {
	switch {
	case len(b.all) < b.most:
		heap.Push(b, f)
	case b.most > 0 && f.compare(b.all[0]) < 0:
		b.all[0] = f
		heap.Fix(b, 0)
	}
}

// line is a name that matches, in a piece of a file.
type line struct{ lower, name []byte }

// walk is one search through the names of several shelves.
type walk struct {
	q     query
	needs [][]byte // of every name, the longest first
	in    []shelf
	lists []*nameList
	most  int
}

// findNames gives the first most of the names that match, in order, and how many
// match. The time it takes is that of reading the names through, on all cores. It
// ends with ctx.
func findNames(ctx context.Context, q query, in []shelf, most int) ([]found, int, error) {
	w := &walk{q: q, in: in, most: most}
	for _, word := range q.words {
		w.needs = append(w.needs, []byte(word))
	}
	if q.scope != "" {
		w.needs = append(w.needs, []byte(q.scope+"/"))
	}
	slices.SortStableFunc(w.needs, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
	for _, s := range in { // all are made before any is held
		_, done, err := s.searchable(ctx)
		if err != nil {
			return nil, 0, err
		}
		done()
	}
	longest := 0
	for i, s := range in {
		l, done, err := s.searchable(ctx)
		if err != nil {
			return nil, 0, err
		}
		defer done()
		if w.lists = append(w.lists, l); l.Size > w.lists[longest].Size {
			longest = i
		}
	}
	// The pieces of the longest list divide all of them.
	divided := w.lists[longest]
	pieces := max(1, len(divided.starts))
	workers := min(pieces, runtime.GOMAXPROCS(0))
	tops, totals := make([]best, workers), make([]int, workers)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i := range workers {
		g.Go(func() error {
			top, p := &tops[i], newPortion(w)
			top.most = most
			for {
				k := int(next.Add(1)) - 1
				if k >= pieces {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				var from, to npm.Name
				if k > 0 {
					from = divided.firsts[k]
				}
				if k+1 < pieces {
					to = divided.firsts[k+1]
				}
				n, err := p.search(from, to, top)
				if err != nil {
					return err
				}
				totals[i] += n
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, fmt.Errorf("search the names: %w", err)
	}
	all := best{most: most}
	total := 0
	for i := range tops {
		for _, f := range tops[i].all {
			all.add(f)
		}
		total += totals[i]
	}
	slices.SortFunc(all.all, found.compare)
	return all.all, total, nil
}

// portion is where a worker keeps a part of the names.
type portion struct {
	*walk
	bufs  [][]byte // by shelf
	lines [][]line
}

func newPortion(w *walk) *portion {
	return &portion{walk: w, bufs: make([][]byte, len(w.in)), lines: make([][]line, len(w.in))}
}

// search finds what matches of the names from from to before to, and returns how
// many those are.
func (p *portion) search(from, to npm.Name, top *best) (total int, err error) {
	for i, l := range p.lists {
		if p.bufs[i], err = l.between(p.bufs[i], from, to); err != nil {
			return 0, err
		}
	}
	if came, went := within(p.lists[0].Came, from, to), within(p.lists[0].Went, from, to); len(p.in) == 1 && len(came)+len(went) == 0 && p.in[0].only == nil && p.in[0].but == nil {
		p.each(p.bufs[0], func(l line) {
			total++
			p.rate(0, l, top)
		})
		return total, nil
	}
	for i, l := range p.lists {
		p.lines[i] = p.match(p.lines[i][:0], l, p.bufs[i], from, to)
	}
	for i, s := range p.in {
		lines := p.lines[i]
		if s.open {
			for j := range i {
				if p.in[j].open {
					lines = without(lines, p.lines[j])
				}
			}
		}
		only, but := s.only, s.but
		for _, l := range lines {
			if inSpans(&but, l.name) || s.only != nil && !inSpans(&only, l.name) {
				continue
			}
			total++
			p.rate(i, l, top)
		}
	}
	return total, nil
}

// inSpans says whether one of spans has name. Those that end before it are dropped:
// names are asked for in order.
func inSpans(spans *[]span, name []byte) bool {
	for len(*spans) > 0 && string(name) >= string((*spans)[0].to) {
		*spans = (*spans)[1:]
	}
	return len(*spans) > 0 && string(name) >= string((*spans)[0].from)
}

// rate ranks a name that counts, if it may be one of the best.
func (p *portion) rate(shelf int, l line, top *best) {
	worst := partOfDocument
	if len(top.all) == top.most {
		if top.most == 0 {
			return
		}
		last := &top.all[0]
		if worst = last.rank; len(l.name) > len(last.name) { // it would have to be of a better one
			worst--
		}
	}
	if worst < exactName {
		return
	}
	if rank := p.q.rank(l.lower, worst); rank <= worst {
		top.add(found{rank, npm.Name(l.name), shelf})
	}
}

// match gives the lines of a list that match, in order: of what is in the file, and of
// what came and went.
func (p *portion) match(lines []line, l *nameList, text []byte, from, to npm.Name) []line {
	add := func(at line) { lines = append(lines, at) }
	p.each(text, add)
	if went := within(l.Went, from, to); len(went) > 0 {
		lines = slices.DeleteFunc(lines, func(at line) bool {
			for len(went) > 0 && string(went[0]) < string(at.name) {
				went = went[1:]
			}
			return len(went) > 0 && string(went[0]) == string(at.name)
		})
	}
	if came := within(l.Came, from, to); len(came) > 0 {
		var text []byte
		for _, n := range came {
			text = appendLine(text, n)
		}
		p.each(text, add)
		slices.SortFunc(lines, func(a, b line) int { return bytes.Compare(a.name, b.name) })
		lines = slices.CompactFunc(lines, func(a, b line) bool { return bytes.Equal(a.name, b.name) })
	}
	return lines
}

// each calls f with each line of text that has all that is needed.
func (p *portion) each(text []byte, f func(line)) {
	cased := bytes.IndexByte(text, '\t') >= 0 // most pieces have no such line
	for len(text) > 0 {
		at := 0
		if len(p.needs) > 0 {
			if at = bytes.Index(text, p.needs[0]); at < 0 {
				return
			}
		}
		start := at
		for start > 0 && text[start-1] != '\n' {
			start--
		}
		end := at + bytes.IndexByte(text[at:], '\n')
		l := line{text[start:end], text[start:end]}
		text = text[end+1:]
		if cased {
			l.lower, l.name = nameOf(l.lower)
		}
		if p.matches(l.lower) {
			f(l)
		}
	}
}

// matches holds a name that has the first of what is needed to the rest.
func (p *portion) matches(lower []byte) bool {
	if len(p.needs) == 1 && p.q.scope == "" {
		return true
	}
	for _, need := range p.needs[min(1, len(p.needs)):] {
		if !bytes.Contains(lower, need) {
			return false
		}
	}
	// A scope begins the name.
	return p.q.scope == "" || len(lower) > len(p.q.scope) && string(lower[:len(p.q.scope)]) == p.q.scope && lower[len(p.q.scope)] == '/'
}

// without leaves out the lines whose names others have; both are in order.
func without(lines, others []line) []line {
	kept := make([]line, 0, len(lines))
	for _, l := range lines {
		for len(others) > 0 && bytes.Compare(others[0].name, l.name) < 0 {
			others = others[1:]
		}
		if len(others) == 0 || !bytes.Equal(others[0].name, l.name) {
			kept = append(kept, l)
		}
	}
	return kept
}
