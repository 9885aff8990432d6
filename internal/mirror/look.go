package mirror

import (
	"bytes"
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
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// What is held of a package says something of it, and searches find that: its document,
// else the package.json in a tarball. Packages are looked at for it beside all requests,
// one at a time and a tenth of the time, and nothing is read but what lies here. Which
// are due is in Pebble:
//
//	q <name>   nothing: a file of the package came or went, and it is to be looked at
//	w          JSON: a walkRow
//
// The row q goes only after what was found is written, in the same log: a crash has the
// package looked at again. What lay here before there were such rows is walked through
// once, in the order of names: those of the tarballs that were served, or, with
// Options.HoldsAll, of the whole list. Of each release after that, the packages that
// came, changed or went get a row q, in one batch with the root in w: a crash between the
// list and that batch leaves a w of another list, and a walk that begins again, which
// costs little where all is known.
const (
	lookKey = 'q'
	walkKey = 'w'

	lookPiece = 64               // packages that are read from the rows at once
	lookShare = 10               // of the time one part is spent on looking
	lookLater = time.Minute      // after the node was away, or a store failed
	lookLimit = 30 * time.Second // for one package, which is passed over then
	// maxTried bounds the tarballs of a package that are opened for a package.json.
	maxTried = 4
)

// walkRow says how far the walk has come.
type walkRow struct {
	All   bool     `json:"all,omitempty"`   // through the list
	Root  cid.Cid  `json:"root,omitzero"`   // of which release, where it is so
	After npm.Name `json:"after,omitempty"` // up to this name all are looked at
}

// looking is how packages are looked at.
type looking struct {
	wake chan struct{} // holds a token: there may be one

	mu    sync.Mutex // guards what follows, and rows between being read and written
	at    npm.Name   // is looked at now
	again bool       // and was noted since it began

	// last was looked at last. Those after it come next and then the first again: rows
	// that went are slow to pass by, and a name that fails holds no other up. It is
	// owned by lookOn.
	last npm.Name
}

// lookAt notes packages of which a file came or went.
func (m *Mirror) lookAt(names ...npm.Name) {
	if m.newest != nil {
		m.newest.lookAt(names...)
		return
	}
	l := &m.looking
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := m.noteLooks(nil, names); err != nil {
		m.log.Error("what is held of packages may not be found", "packages", len(names), "error", err)
	}
}

// noteLooks writes the rows of names, and of w where that is not nil. It needs
// looking.mu.
func (m *Mirror) noteLooks(w *walkRow, names []npm.Name) error {
	batch := m.db.NewBatch()
	defer batch.Close()
	for _, name := range names {
		if err := batch.Set(append([]byte{lookKey}, name...), nil, nil); err != nil {
			return err
		}
		m.looking.again = m.looking.again || name == m.looking.at
	}
	if w != nil {
		raw, err := json.Marshal(w)
		if err == nil {
			err = batch.Set([]byte{walkKey}, raw, nil)
		}
		if err != nil {
			return err
		}
	}
	err := batch.Commit(pebble.NoSync)
	select {
	case m.looking.wake <- struct{}{}:
	default: // it is about to look
	}
	return err
}

// lookAtMoved notes what changed from one list to the next, which is served.
func (m *Mirror) lookAtMoved(from, to cid.Cid, changed []npm.Name) error {
	if m.newest != nil {
		return nil
	}
	l := &m.looking
	l.mu.Lock()
	defer l.mu.Unlock()
	w, err := m.walkedTo()
	if err != nil || !m.o.HoldsAll || !w.All || !w.Root.Equals(from) {
		return errors.Join(err, m.noteLooks(nil, nil)) // the walk comes to all of them
	}
	w.Root = to
	return m.noteLooks(&w, changed)
}

// walkedTo reads the row w.
func (m *Mirror) walkedTo() (w walkRow, err error) {
	raw, closer, err := m.db.Get([]byte{walkKey})
	if errors.Is(err, pebble.ErrNotFound) {
		return w, nil
	}
	if err != nil {
		return w, err
	}
	defer closer.Close()
	if json.Unmarshal(raw, &w) != nil {
		w = walkRow{} // it is only a note: the walk begins again
	}
	return w, nil
}

// describeHeld looks at packages until ctx ends, or the mirror is closed.
func (m *Mirror) describeHeld(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.life, cancel)()
	said := false // since all was looked at
	for ctx.Err() == nil {
		more, err := m.lookOn(ctx)
		if more && err == nil {
			continue
		}
		wake, later := m.looking.wake, (<-chan time.Time)(nil)
		if err != nil {
			wake, later = nil, time.After(lookLater)
		}
		if err != nil && !said && ctx.Err() == nil {
			m.log.WarnContext(ctx, "what is held is not all found by searches yet", "error", err)
		}
		said = err != nil
		select {
		case <-wake:
		case <-later:
		case <-ctx.Done():
		}
	}
}

// lookOn looks at some of the packages that are due; more says that there may be others.
func (m *Mirror) lookOn(ctx context.Context) (more bool, err error) {
	h := m.head.Load()
	if h == nil || m.tooOld() != nil {
		return false, nil
	}
	var due []npm.Name
	it, err := m.db.NewIter(&pebble.IterOptions{LowerBound: []byte{lookKey}, UpperBound: []byte{lookKey + 1}})
	if err != nil {
		return false, err
	}
	l := &m.looking
	ok := it.SeekGE(append(append([]byte{lookKey}, l.last...), 0))
	if !ok {
		ok = it.First()
	}
	for ; ok && len(due) < lookPiece; ok = it.Next() {
		due = append(due, npm.Name(it.Key()[1:]))
	}
	if err := it.Close(); err != nil {
		return false, err
	}
	if len(due) == 0 {
		return m.walkOn(ctx, h)
	}
	for _, name := range due {
		l.last = name
		l.mu.Lock()
		l.at, l.again = name, false
		l.mu.Unlock()
		if err := m.look(ctx, name); err != nil {
			return false, err
		}
		l.mu.Lock()
		if l.at = ""; !l.again {
			err = m.db.Delete(append([]byte{lookKey}, name...), pebble.NoSync)
		}
		l.mu.Unlock()
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// walkOn looks at the next packages of the walk, where it is not over and there is room
// for what they say: the last quarter is for what is asked for.
func (m *Mirror) walkOn(ctx context.Context, h *head) (more bool, err error) {
	all := m.o.HoldsAll && h.list.Defined()
	l := &m.looking
	l.mu.Lock()
	w, err := m.walkedTo()
	if err == nil && (w.All != all || all && !w.Root.Equals(h.list)) {
		if w = (walkRow{All: all}); all {
			w.Root = h.list
		}
		// At once: there may be no room, and what changes is noted all the same.
		err = m.noteLooks(&w, nil)
	}
	l.mu.Unlock()
	if err != nil {
		return false, err
	}
	names, err := m.walkedNext(ctx, w)
	if err != nil || len(names) == 0 {
		return false, err
	}
	if full, err := m.isCrowded(ctx); err != nil || full {
		return false, err
	}
	for _, name := range names {
		if err := m.look(ctx, name); err != nil {
			return false, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if w, err = m.walkedTo(); err != nil { // the list may have moved, and what changed has rows of its own
		return false, err
	}
	w.After = names[len(names)-1]
	return true, m.noteLooks(&w, nil)
}

// walkedNext are the next names of a walk, in order.
func (m *Mirror) walkedNext(ctx context.Context, w walkRow) (names []npm.Name, err error) {
	if w.All {
		for e, err := range m.list.After(ctx, w.After) {
			if err != nil {
				return nil, err
			}
			if names = append(names, e.Name); len(names) == lookPiece {
				break
			}
		}
		return names, nil
	}
	it, err := m.db.NewIter(&pebble.IterOptions{LowerBound: []byte{verifiedKey}, UpperBound: []byte{verifiedKey + 1}})
	if err != nil {
		return nil, err
	}
	past := func(name npm.Name) []byte { return append(append([]byte{verifiedKey}, name...), 1) } // its rows have a 0 there
	for ok := it.SeekGE(past(w.After)); ok && len(names) < lookPiece; ok = it.SeekGE(past(names[len(names)-1])) {
		name, _, _ := bytes.Cut(it.Key()[1:], []byte{0})
		names = append(names, npm.Name(name))
	}
	return names, it.Close()
}

// look writes down what the files of a package say of it that are held, and then rests.
// An error is of the mirror's own, or that ctx ended: what is wrong with the files is none.
func (m *Mirror) look(ctx context.Context, name npm.Name) error {
	began := time.Now()
	dir, listed, err := m.entry(name)
	switch {
	case errors.Is(err, errNotInBundle):
		return nil
	case err != nil:
		return err
	case !listed && m.o.HoldsAll: // a release that has it again will have it looked at
		return m.undescribe(ctx, name)
	case !listed:
		return nil
	}
	if settled, err := m.isSettled(ctx, name, dir); err != nil || settled {
		return err
	}
	within, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	d, err := m.heldOf(within, name, dir)
	if ctx.Err() != nil {
		return ctx.Err() // nothing was found out
	}
	if within.Err() != nil && errors.Is(err, ipfs.ErrAway) {
		err = nil // it is too slow for this package; others wait
	}
	if err == nil && d != nil {
		err = m.describe(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	rest := time.NewTimer((lookShare - 1) * time.Since(began))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-ctx.Done():
	}
	return nil
}

// heldOf is what the files of a listed package that lie here say of it: its document;
// else a tarball's package.json, that of the version which is latest or of the highest,
// and what the short document says; nil where there is nothing of it. An error is that
// the node did not say what it has.
func (m *Mirror) heldOf(ctx context.Context, name npm.Name, dir cid.Cid) (*description, error) {
	g := getterFunc(m.held)
	d := &description{Name: name, Dir: dir}
	p, err := readDirectory(ctx, g, dir)
	if err == nil {
		d.file = p.packument
		err = m.readHeld(ctx, d.file, func(raw []byte) (err error) {
			d.Summary, err = readSummary(name, raw)
			return err
		})
		if err == nil {
			return d, nil
		}
	}
	if errors.Is(err, ipfs.ErrAway) {
		return nil, err
	}
	var short summary
	latest := "" // file of the version that is
	err = m.readHeld(ctx, p.install, func(raw []byte) error {
		head, tags, err := readHead(raw)
		if err != nil {
			return err
		}
		short = summaryOf(name, head, tags)
		var manifest struct {
			Dist struct {
				Tarball string `json:"tarball"`
			} `json:"dist"`
		}
		if read(head.Versions[short.Version], &manifest) {
			latest, _ = npm.TarballFile(name, short.Version, manifest.Dist.Tarball)
		}
		return nil
	})
	if errors.Is(err, ipfs.ErrAway) {
		return nil, err
	}
	isShort := err == nil
	files, err := m.verifiedFiles(name, latest)
	if err != nil {
		return nil, err
	}
	tried := 0
	for _, file := range files {
		if !m.keeps(file) {
			continue
		}
		content, err := unixfs.Open(ctx, g, file)
		if err == nil {
			var raw []byte
			raw, err = packageJSON(content)
			content.Close()
			if err == nil {
				d.Summary, err = readPackageJSON(name, raw)
			}
			tried++
		}
		if errors.Is(err, ipfs.ErrAway) {
			return nil, err
		}
		if err == nil {
			d.file, d.From = file, byTarball
			if isShort {
				d.Summary.Version, d.Summary.Date = short.Version, short.Date
			}
			return d, nil
		}
		if tried == maxTried {
			break
		}
	}
	if isShort {
		d.file, d.From, d.Summary = p.install, byInstall, short
		return d, nil
	}
	return nil, nil
}

// readHeld calls use with the JSON of a document that lies here.
func (m *Mirror) readHeld(ctx context.Context, file cid.Cid, use func(raw []byte) error) error {
	if !file.Defined() || !m.keeps(file) {
		return errNotFound
	}
	data, err := unixfs.ReadFile(ctx, getterFunc(m.held), file, maxCompressed)
	if err != nil {
		return err
	}
	return m.rendering(ctx, func() error {
		raw, err := document.Decode(bytes.NewReader(data), 0, maxDocument)
		if err != nil {
			return err
		}
		return use(raw)
	})
}

// verifiedFiles are the tarballs of a package that were served and checked here, whether
// they are here still or not: the file latest first, then those of the highest versions,
// as their names say.
func (m *Mirror) verifiedFiles(name npm.Name, latest string) ([]cid.Cid, error) {
	type tarball struct {
		file, version string
		cid           cid.Cid
	}
	var all []tarball
	prefix := append(append([]byte{verifiedKey}, name...), 0)
	upper := append(append([]byte{verifiedKey}, name...), 1)
	it, err := m.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		file, raw, _ := bytes.Cut(it.Key()[len(prefix):], []byte{0})
		c, err := cid.Cast(bytes.Clone(raw))
		if err != nil {
			continue // no row of this version's
		}
		t := tarball{file: string(file), cid: c}
		t.version, _ = strings.CutPrefix(t.file, name.Base()+"-")
		t.version = strings.TrimSuffix(t.version, ".tgz")
		all = append(all, t)
	}
	if err := it.Close(); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b tarball) int {
		if (a.file == latest) != (b.file == latest) {
			if a.file == latest {
				return -1
			}
			return 1
		}
		return cmp.Or(npm.CompareVersions(b.version, a.version), strings.Compare(a.file, b.file))
	})
	files := make([]cid.Cid, len(all))
	for i, t := range all {
		files[i] = t.cid
	}
	return files, nil
}
