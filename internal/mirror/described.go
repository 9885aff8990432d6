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

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// describedKey begins the rows of what files say of their packages that are held:
//
//	d <CID of the file>   JSON: a description
//
// They are there as long as the file is: who evicts it takes its row away, and what
// a crash left is taken away when the rows are read, by the first search or look. Then
// the package is looked at again: another of its files may be here. Of a package's rows
// the best counts, and takes the others away.
const describedKey = 'd'

// maxDescribed bounds what all descriptions take in memory, in bytes. Of packages that
// are beyond it nothing is written down, and names alone are found.
const maxDescribed = 32 << 20

// saidBy is the kind of file that a description is from.
type saidBy string

const (
	byDocument saidBy = ""
	byTarball  saidBy = "tarball" // its package.json
	byInstall  saidBy = "install" // the short document, which has no more than the version
)

// description is what a file that is held says of its package.
type description struct {
	Name    npm.Name  `json:"name"`
	Dir     cid.Cid   `json:"dir"` // the package's directory, with it
	At      time.Time `json:"at"`  // when it was read
	From    saidBy    `json:"from,omitempty"`
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
	most   int64      // bytes of them; tests have less
	mu     sync.Mutex // guards what follows, and rows; taken before looking.mu
	loaded bool       // memory has the rows; before, nobody has searched or looked
	byName map[npm.Name]*description
	byFile map[cid.Cid]*description
	size   int64
}

// describe writes down what a held file says of a package that the newest list has,
// unless something better is known. It needs no lock.
func (m *Mirror) describe(ctx context.Context, d *description) error {
	if m.newest != nil {
		return nil
	}
	if err := m.loadDescriptions(ctx); err != nil {
		return err
	}
	d.At = m.o.Now().UTC()
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	d.ready(d.file)
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	if !m.keeps(d.file) {
		return nil // it is evicted already
	}
	return m.take(d, raw)
}

// keeps says whether a file is one of those that count, if any do: it was used here, and
// is not evicted.
func (m *Mirror) keeps(file cid.Cid) bool {
	return m.o.HoldsAll || !m.o.Cached.counts() || m.o.Cached.has(file)
}

func descriptionKey(file cid.Cid) []byte { return append([]byte{describedKey}, file.Bytes()...) }

// beats says whether d, which was read later, takes the place of another description of
// the package: a version alone never that of more, and of one directory no other that of
// the document.
func (d *description) beats(old *description) bool {
	if (d.From == byInstall) != (old.From == byInstall) {
		return old.From == byInstall
	}
	return d.From == byDocument || old.From != byDocument || !d.Dir.Equals(old.Dir)
}

// take puts a description into memory in the place of another of the package, whose row
// goes, if it beats that one. raw is its row, which is written, or goes where there is no
// room; nil of one that was read from there. It needs described.mu.
func (m *Mirror) take(d *description, raw []byte) error {
	all := m.described
	batch := m.db.NewBatch()
	defer batch.Close()
	var err error
	old := all.byName[d.Name]
	switch {
	case old != nil && (!d.beats(old) || raw == nil && old.At.After(d.At)):
		if raw == nil && old.file != d.file {
			err = batch.Delete(descriptionKey(d.file), nil)
		}
		d = nil
	case old != nil:
		m.leaveOut(old)
		if old.file != d.file {
			err = batch.Delete(descriptionKey(old.file), nil)
		}
	}
	switch {
	case d == nil:
	case all.size+d.cost() > all.most:
		err = errors.Join(err, batch.Delete(descriptionKey(d.file), nil))
	default:
		all.byName[d.Name], all.byFile[d.file] = d, d
		all.size += d.cost()
		if raw != nil {
			err = errors.Join(err, batch.Set(descriptionKey(d.file), raw, nil))
		}
	}
	return errors.Join(err, batch.Commit(pebble.NoSync))
}

// leaveOut takes a description out of memory. It needs described.mu.
func (m *Mirror) leaveOut(d *description) {
	delete(m.described.byName, d.Name)
	delete(m.described.byFile, d.file)
	m.described.size -= d.cost()
}

// forget takes away where an evicted file came from, and what it said of its package.
func (m *Mirror) forget(file cid.Cid) {
	if !m.enter() {
		return // the next start finds it
	}
	defer m.leave()
	if err := m.forgetArrivals(file); err != nil {
		m.log.Error("where an evicted file came from is still noted", "cid", file, "error", err)
	}
	if err := m.forgetDescription(file); err != nil {
		m.log.Error("what an evicted file said is still found", "cid", file, "error", err)
	}
}

func (m *Mirror) forgetDescription(file cid.Cid) error {
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	if d := m.described.byFile[file]; d != nil {
		m.leaveOut(d)
	}
	raw, closer, err := m.db.Get(descriptionKey(file))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var d description
	_ = json.Unmarshal(raw, &d) // one that cannot be read is of no package
	closer.Close()
	return m.strike(file, d.Name)
}

// strike takes the row of a file away that is gone. Before that its package is noted, so
// that no crash comes between: another file of it may be here. It needs described.mu.
func (m *Mirror) strike(file cid.Cid, name npm.Name) error {
	if name != "" {
		m.lookAt(name)
	}
	return m.db.Delete(descriptionKey(file), pebble.NoSync)
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
		return fmt.Errorf("read what is held of packages: %w", err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var d description
		file, broken := cid.Cast(slices.Clone(it.Key()[1:]))
		if broken == nil {
			broken = json.Unmarshal(it.Value(), &d)
		}
		switch {
		case broken != nil:
			err = m.db.Delete(slices.Clone(it.Key()), pebble.NoSync)
		case m.keeps(file):
			d.ready(file)
			err = m.take(&d, nil)
		default:
			err = m.strike(file, d.Name)
		}
		err = cmp.Or(err, ctx.Err())
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return fmt.Errorf("read what is held of packages: %w", err)
	}
	all.loaded = true
	return nil
}

// undescribe takes away what is known of a package.
func (m *Mirror) undescribe(ctx context.Context, name npm.Name) error {
	if err := m.loadDescriptions(ctx); err != nil {
		return err
	}
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	d := m.described.byName[name]
	if d == nil {
		return nil
	}
	m.leaveOut(d)
	return m.db.Delete(descriptionKey(d.file), pebble.NoSync)
}

// isSettled says whether there is nothing to be learned of a package by looking at it:
// its document is known, or there is no room for what it says.
func (m *Mirror) isSettled(ctx context.Context, name npm.Name, dir cid.Cid) (bool, error) {
	if err := m.loadDescriptions(ctx); err != nil {
		return false, err
	}
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	d := m.described.byName[name]
	if d == nil {
		return m.described.size >= m.described.most-1024, nil
	}
	return d.From == byDocument && d.Dir.Equals(dir), nil
}

// isCrowded says whether three quarters of the room for descriptions are taken.
func (m *Mirror) isCrowded(ctx context.Context) (bool, error) {
	if err := m.loadDescriptions(ctx); err != nil {
		return false, err
	}
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	return m.described.size > m.described.most/4*3, nil
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

// descriptionOf is what is held of a name; current says whether that is of the list's
// directory, and more than the version.
func (m *Mirror) descriptionOf(name npm.Name, dir cid.Cid) (s summary, held, current bool) {
	m.described.mu.Lock()
	defer m.described.mu.Unlock()
	d := m.described.byName[name]
	if d == nil {
		return summary{}, false, false
	}
	return d.Summary, true, d.From != byInstall && d.Dir.Equals(dir)
}
