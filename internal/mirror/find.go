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
	spelled  int        // bytes of a name that is words with one character between each two
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
			q.spelled += len(f)
		}
	}
	q.spelled += max(0, len(q.words)-1)
	return q, nil
}

// ofDocuments says whether only documents can answer it.
func (q *query) ofDocuments() bool { return len(q.keywords)+len(q.people) > 0 }

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
func (q *query) rank(lower []byte, worst int) int {
	if len(q.words) == 0 {
		return exactName
	}
	before := len(lower) - q.spelled // where a name that is the words begins
	switch {
	case before == 0 && spelled(lower, q.words):
		return exactName
	case before > 0 && lower[before-1] == '/' && spelled(lower[before:], q.words):
		return exactBase
	}
	first := q.words[0]
	begins := len(lower) >= len(first) && string(lower[:len(first)]) == first
	if worst < prefixOfName || worst < startOfWord && !begins {
		return partOfName
	}
	for _, w := range q.words[1:] {
		if !startsWord(lower, w) {
			return partOfName
		}
	}
	switch {
	case begins:
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
		i := bytes.IndexByte(name[at:], word[0])
		if i < 0 {
			return false
		}
		at += i
		if (at == 0 || !alphanumeric(name[at-1])) && bytes.HasPrefix(name[at:], []byte(word)) {
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
	q       query
	needs   [][]byte // of every name, the longest first
	plain   bool     // of which there is one word at most, and nothing else
	in      []shelf
	several bool // of in are open
	lists   []*nameList
	most    int
}

// newWalk has no lists yet.
func newWalk(q query, in []shelf, most int) *walk {
	w := &walk{q: q, plain: len(q.words) <= 1 && q.scope == "", in: in, most: most}
	for _, word := range q.words {
		w.needs = append(w.needs, []byte(word))
	}
	if q.scope != "" {
		w.needs = append(w.needs, []byte(q.scope+"/"))
	}
	slices.SortStableFunc(w.needs, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
	open := 0
	for _, s := range in {
		if s.open {
			open++
		}
	}
	w.several = open > 1
	return w
}

// findNames gives the first most of the names that match, in order, and how many
// match. The time it takes is that of reading the names through, on all cores, and
// little more for a letter that most of them have. It ends with ctx.
func findNames(ctx context.Context, q query, in []shelf, most int) ([]found, int, error) {
	w := newWalk(q, in, most)
	for _, s := range in { // all are made before any is held
		_, done, err := s.searchable(ctx)
		if err != nil {
			return nil, 0, err
		}
		done()
	}
	for _, s := range in {
		l, done, err := s.searchable(ctx)
		if err != nil {
			return nil, 0, err
		}
		defer done()
		w.lists = append(w.lists, l)
	}
	return w.find(ctx)
}

// find is findNames, once the lists are there.
func (w *walk) find(ctx context.Context) ([]found, int, error) {
	// The pieces of the longest list divide all of them.
	divided := slices.MaxFunc(w.lists, func(a, b *nameList) int { return cmp.Compare(a.Size, b.Size) })
	pieces := max(1, len(divided.starts))
	workers := min(pieces, runtime.GOMAXPROCS(0))
	tops, totals := make([]best, workers), make([]int, workers)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i := range workers {
		g.Go(func() error {
			top, p := &tops[i], newPortion(w)
			top.most = w.most
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
	all := best{most: w.most}
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
	spare []byte
	lines [][]line // by shelf
}

func newPortion(w *walk) *portion {
	return &portion{walk: w, bufs: make([][]byte, len(w.in)), lines: make([][]line, len(w.in))}
}

// search finds what matches of the names from from to before to, and returns how
// many those are.
func (p *portion) search(from, to npm.Name, top *best) (total int, err error) {
	for i, s := range p.in {
		text, err := p.lists[i].between(p.bufs[i], from, to)
		if err != nil {
			return 0, err
		}
		p.bufs[i] = text
		if came, went := within(p.lists[i].Came, from, to), within(p.lists[i].Went, from, to); len(came)+len(went) > 0 {
			text = moved(p.spare, text, came, went)
			p.bufs[i], p.spare = text, p.bufs[i]
		}
		if s.only != nil {
			text = inSpans(text, after(s.only, from), true)
		}
		text = inSpans(text, after(s.but, from), false)
		if !s.open || !p.several {
			total += p.each(text, top, func(l line) { p.rate(i, l, top) })
			continue
		}
		lines := p.lines[i][:0]
		p.each(text, nil, func(l line) { lines = append(lines, l) })
		p.lines[i] = lines
		for j := range i {
			if p.in[j].open {
				lines = without(lines, p.lines[j])
			}
		}
		total += len(lines)
		for _, l := range lines {
			p.rate(i, l, top)
		}
	}
	return total, nil
}

// after are those of spans that do not end before from.
func after(spans []span, from npm.Name) []span {
	i, _ := slices.BinarySearchFunc(spans, from, func(s span, n npm.Name) int {
		if s.to <= n {
			return -1
		}
		return 1
	})
	return spans[i:]
}

// inSpans moves those lines of text together whose names are in spans, or those
// whose are not; all are in order.
func inSpans(text []byte, spans []span, in bool) []byte {
	kept := text[:0]
	for _, s := range spans {
		if len(text) == 0 {
			break
		}
		from := offset(text, s.from)
		to := from + offset(text[from:], s.to)
		if in {
			kept = append(kept, text[from:to]...)
		} else {
			kept = append(kept, text[:from]...)
		}
		text = text[to:]
	}
	if in {
		return kept
	}
	return append(kept, text...)
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

// each calls f with each line of text that matches, and returns how many do. Where top
// is not nil, those that pass are only counted.
func (p *portion) each(text []byte, top *best, f func(line)) (total int) {
	cased := bytes.IndexByte(text, '\t') >= 0 // most pieces have no such line
	var need []byte                           // of length 0 it is everywhere
	if len(p.needs) > 0 {
		need = p.needs[0]
	}
	for len(text) > 0 {
		at := bytes.Index(text, need)
		if at < 0 {
			break
		}
		end := at + bytes.IndexByte(text[at:], '\n')
		if top != nil && p.passes(text[:end], at, cased, top) {
			total++
			text = text[end+1:]
			continue
		}
		start := 0 // where a letter is in most lines it is mostly in the next one
		if bytes.IndexByte(text[:at], '\n') >= 0 {
			start = bytes.LastIndexByte(text[:at], '\n') + 1
		}
		l := line{text[start:end], text[start:end]}
		text = text[end+1:]
		if cased {
			l.lower, l.name = nameOf(l.lower)
		}
		if p.matches(l.lower) {
			total++
			f(l)
		}
	}
	return total
}

// passes says whether the last line of text, which matches at at first, is seen to be
// none of the best without a look for its beginning, which would take long for most of
// millions of names: it is longer than the last of them, and of no better rank.
func (p *portion) passes(text []byte, at int, cased bool, top *best) bool {
	if !p.plain || len(top.all) < max(1, top.most) {
		return false
	}
	last, word := &top.all[0], ""
	if len(p.q.words) > 0 {
		word = p.q.words[0]
	}
	longest := len(last.name)
	if cased { // a line may have its name twice
		longest = 2*longest + 1
	}
	before := len(text) - longest - 1 // the line before one that is no longer ends here, or after
	switch {
	case before < 0 || before < at && bytes.IndexByte(text[before:at], '\n') >= 0:
		return false
	case text[len(text)-len(word)-1] == '/': // it may be all but the scope
		return false
	case last.rank <= prefixOfName:
		return true
	case at == 0 || text[at-1] == '\n':
		return false
	}
	return last.rank <= startOfWord || !startsWord(text[at-1:], word)
}

// matches holds a name that has the first of what is needed to the rest.
func (p *portion) matches(lower []byte) bool {
	if p.plain {
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
