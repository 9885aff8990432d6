package mirror

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// describedKey begins the rows of what documents say that were read here:
//
//	d <CID of the document>   JSON: a description
//
// They are there as long as the document is: who evicts it takes its row away,
// and what a crash left is taken away when the rows are read, by the first search.
const describedKey = 'd'

// maxDescribed bounds what of all descriptions is in memory, in bytes; of what is
// beyond it names alone are found.
const maxDescribed = 32 << 20

// description is what a document that is held says of its package.
type description struct {
	Name    npm.Name  `json:"name"`
	Dir     cid.Cid   `json:"dir"` // the package's directory, with it
	At      time.Time `json:"at"`  // when it was read
	Summary summary   `json:"summary"`

	file  cid.Cid
	text  string   // description and keywords, in lower case
	words []string // keywords, in lower case
	who   []string // author, publisher and maintainers, in lower case
}

func (d *description) cost() int64 {
	n := 1024 + len(d.Name) + 2*len(d.text)
	for _, w := range slices.Concat(d.words, d.who) {
		n += 32 + len(w)
	}
	return int64(n)
}

// ready makes what is searched.
func (d *description) ready(file cid.Cid) {
	d.file = file
	var text strings.Builder
	text.WriteString(strings.ToLower(d.Summary.Description))
	for _, w := range d.Summary.Keywords {
		w = strings.ToLower(w)
		d.words = append(d.words, w)
		text.WriteByte('\n')
		text.WriteString(w)
	}
	d.text = text.String()
	for _, p := range d.Summary.Maintainers {
		d.who = append(d.who, strings.ToLower(p.Username))
	}
	if p := d.Summary.Publisher; p != nil {
		d.who = append(d.who, strings.ToLower(p.Username))
	}
	if a := d.Summary.Author; a != nil {
		d.who = append(d.who, strings.ToLower(a.Name), strings.ToLower(a.Username))
	}
}

// match ranks a description by what is asked for; ok is false where it does not
// match, and where the name alone has all words of a question about names.
func (d *description) match(q query) (rank int, ok bool) {
	name := []byte(strings.ToLower(string(d.Name)))
	if q.scope != "" && !strings.HasPrefix(string(name), q.scope+"/") {
		return 0, false
	}
	for _, any := range q.keywords {
		if !slices.ContainsFunc(any, func(k string) bool { return slices.Contains(d.words, k) }) {
			return 0, false
		}
	}
	for _, p := range q.people {
		if !slices.Contains(d.who, p) {
			return 0, false
		}
	}
	named, exact := true, true
	for _, w := range q.words {
		in := strings.Contains(string(name), w)
		if !in && !strings.Contains(d.text, w) {
			return 0, false
		}
		named = named && in
		exact = exact && (in || slices.Contains(d.words, w))
	}
	switch {
	case named && !q.ofDocuments():
		return 0, false
	case named:
		return q.rank(name, partOfDocument), true
	case exact:
		return exactKeyword, true
	}
	return partOfDocument, true
}

// descriptions are those of a mirror.
type descriptions struct {
	mu     sync.Mutex
	loaded bool // memory has the rows; before, nobody has searched
	byName map[npm.Name]*description
	byFile map[cid.Cid]*description
	size   int64
}

// describe writes down what a document says that is held, and that the newest list has.
// It needs no lock.
func (m *Mirror) describe(name npm.Name, dir, file cid.Cid, s summary) error {
	if m.newest != nil {
		return nil
	}
	d := &description{Name: name, Dir: dir, At: m.o.Now().UTC(), Summary: s}
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	d.ready(file)
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	if part := m.o.Cached; part.counts() && !part.has(file) {
		return nil // it is evicted already
	}
	if err := m.db.Set(descriptionKey(file), raw, pebble.NoSync); err != nil {
		return err
	}
	if m.described.loaded {
		return m.take(d)
	}
	return nil
}

func descriptionKey(file cid.Cid) []byte { return append([]byte{describedKey}, file.Bytes()...) }

// take puts a description into memory, in the place of an older one of the name,
// whose row goes. It needs described.mu.
func (m *Mirror) take(d *description) error {
	all := m.described
	if old := all.byName[d.Name]; old != nil {
		if old.file != d.file && old.At.After(d.At) {
			return m.db.Delete(descriptionKey(d.file), pebble.NoSync)
		}
		m.leaveOut(old)
		if old.file != d.file {
			if err := m.db.Delete(descriptionKey(old.file), pebble.NoSync); err != nil {
				return err
			}
		}
	}
	if all.size+d.cost() > maxDescribed {
		return nil
	}
	all.byName[d.Name], all.byFile[d.file] = d, d
	all.size += d.cost()
	return nil
}

// leaveOut takes a description out of memory. It needs described.mu.
func (m *Mirror) leaveOut(d *description) {
	delete(m.described.byName, d.Name)
	delete(m.described.byFile, d.file)
	m.described.size -= d.cost()
}

// forget takes away where an evicted file came from, and what it said if it was a
// document.
func (m *Mirror) forget(file cid.Cid) {
	if !m.enter() {
		return // the next start finds it
	}
	defer m.leave()
	if err := m.forgetArrivals(file); err != nil {
		m.log.Error("where an evicted file came from is still noted", "cid", file, "error", err)
	}
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	if d := m.described.byFile[file]; d != nil {
		m.leaveOut(d)
	}
	if err := m.db.Delete(descriptionKey(file), pebble.NoSync); err != nil {
		m.log.Error("what an evicted document said is still found", "cid", file, "error", err)
	}
}

// loadDescriptions reads the rows, once.
func (m *Mirror) loadDescriptions(ctx context.Context) error {
	all := m.described
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.loaded {
		return nil
	}
	all.byName, all.byFile, all.size = map[npm.Name]*description{}, map[cid.Cid]*description{}, 0
	it, err := m.db.NewIter(&pebble.IterOptions{LowerBound: []byte{describedKey}, UpperBound: []byte{describedKey + 1}})
	if err != nil {
		return err
	}
	part := m.o.Cached
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var d description
		file, broken := cid.Cast(slices.Clone(it.Key()[1:]))
		if broken == nil {
			broken = json.Unmarshal(it.Value(), &d)
		}
		if broken == nil && (!part.counts() || part.has(file)) {
			d.ready(file)
			err = m.take(&d)
		} else {
			err = m.db.Delete(slices.Clone(it.Key()), pebble.NoSync)
		}
		err = cmp.Or(err, ctx.Err())
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return fmt.Errorf("read what documents say: %w", err)
	}
	all.loaded = true
	return nil
}

// findDescribed gives the descriptions that match and whose packages are listed.
func (s shelf) findDescribed(ctx context.Context, q query) (all []found, err error) {
	if err := s.loadDescriptions(ctx); err != nil {
		return nil, err
	}
	s.described.mu.Lock()
	defer s.described.mu.Unlock()
	for _, d := range s.described.byName {
		if rank, ok := d.match(q); ok {
			all = append(all, found{rank: rank, name: d.Name})
		}
	}
	return all, ctx.Err()
}

// descriptionOf is what is held of a name; current says whether the document is the
// list's.
func (m *Mirror) descriptionOf(name npm.Name, dir cid.Cid) (s summary, held, current bool) {
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	d := m.described.byName[name]
	if d == nil {
		return summary{}, false, false
	}
	return d.Summary, true, d.Dir.Equals(dir)
}

// learn writes down what a document says that was just read, beside the caller.
func (m *Mirror) learn(name npm.Name, dir, file cid.Cid, b *body) {
	m.spawn(func() {
		ctx, cancel := context.WithTimeout(m.life, m.o.Deadline)
		defer cancel()
		if m.knowsOf(dir, file) {
			return
		}
		err := m.rendering(ctx, func() error {
			raw, err := document.Decode(b.reader(), 0, maxDocument)
			if err != nil {
				return err
			}
			s, err := readSummary(name, raw)
			if err != nil {
				return err
			}
			return m.describe(name, dir, file, s)
		})
		if err != nil && ctx.Err() == nil {
			m.log.DebugContext(ctx, "a document is not found by what it says", "package", string(name), "error", err)
		}
	})
}

// knowsOf says whether what a document says is written down.
func (m *Mirror) knowsOf(dir, file cid.Cid) bool {
	raw, closer, err := m.db.Get(descriptionKey(file))
	if err != nil {
		return false
	}
	defer closer.Close()
	var d description
	return json.Unmarshal(raw, &d) == nil && d.Dir.Equals(dir)
}
