package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// maxEarlier bounds the earlier releases of one registry that are open at once, and
// those whose lists are kept on disk, each in <Dir>/at/<CID>.
const maxEarlier = 4

// rebuildDeadline is for one earlier release to be found and its list rebuilt: a
// request waits no longer than Options.Deadline, and the next one joins.
const rebuildDeadline = 15 * time.Minute

// earlier are the releases that are open beside the newest one.
type earlier struct {
	mu   sync.Mutex
	open []*opened // the least recently used first

	found *lru[string, foundAt]
}

func newEarlier() earlier { return earlier{found: newLRU[string, foundAt](64 << 10)} }

// opened is a Mirror of one earlier release. Its list is rebuilt once ready is
// closed, or was not where err is there.
type opened struct {
	root  cid.Cid
	users int // under earlier.mu: it stays while there are some
	ready chan struct{}
	m     *Mirror // it and err: once ready is closed, or users is 0
	err   error
}

// foundAt is what a Moment was found to be while head was the newest.
type foundAt struct {
	head *head
	link link
	err  error // it was not found, for a release that nobody had
	time time.Time
}

// failedFresh is for how long nobody is asked again for a release that nobody had:
// clients try again at once, and each would wait for as long.
const failedFresh = time.Minute

// lookUp is find, once for all that ask.
func (m *Mirror) lookUp(ctx context.Context, moment Moment) (link, error) {
	h := m.head.Load()
	if f, ok := m.earlier.found.get(moment.text); ok && f.head == h && (f.err == nil || m.o.Now().Sub(f.time) < failedFresh) {
		return f.link, f.err
	}
	return shared(ctx, m, "find "+moment.text, rebuildDeadline, func(ctx context.Context) (link, error) {
		l, err := m.find(ctx, moment, nil)
		if err == nil || errors.Is(err, ErrNoRelease) {
			m.earlier.found.put(moment.text, foundAt{h, l, err, m.o.Now()}, 512)
		}
		return l, err
	})
}

// at gives the mirror of the release that moment names, which stays open until done
// is called. For a time it is m itself while that has nothing newer.
func (m *Mirror) at(ctx context.Context, moment Moment) (at *Mirror, done func(), err error) {
	h := m.head.Load()
	l, err := m.lookUp(ctx, moment)
	if err != nil {
		return nil, nil, err
	}
	if !moment.IsNumber() && l.Root.Equals(h.Release.Root) {
		return m, func() {}, nil
	}
	return m.openAt(ctx, l.Root)
}

// openAt gives the mirror of one release.
func (m *Mirror) openAt(ctx context.Context, root cid.Cid) (at *Mirror, done func(), err error) {
	o, began, err := m.earlier.use(root)
	if err != nil {
		return nil, nil, err
	}
	done = func() { m.earlier.leave(o) }
	if began {
		m.rebuildBeside(o)
	}
	select {
	case <-o.ready:
	case <-ctx.Done():
		done()
		return nil, nil, fmt.Errorf("%w: its list is still being rebuilt: %w", ErrUnavailable, context.Cause(ctx))
	}
	if o.err != nil {
		done()
		return nil, nil, o.err
	}
	return o.m, done, nil
}

// use counts a user of root; began says that it is the caller who has to have it
// rebuilt.
func (e *earlier) use(root cid.Cid) (o *opened, began bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.IndexFunc(e.open, func(o *opened) bool { return o.root.Equals(root) }); i >= 0 {
		o = e.open[i]
		e.open = append(slices.Delete(e.open, i, i+1), o)
		o.users++
		return o, false, nil
	}
	if len(e.open) == maxEarlier {
		i := slices.IndexFunc(e.open, func(o *opened) bool { return o.users == 0 })
		if i < 0 {
			return nil, false, fmt.Errorf("%w: %d earlier releases are in use, and no more are opened at once", ErrUnavailable, maxEarlier)
		}
		old := e.open[i]
		e.open = slices.Delete(e.open, i, i+1)
		if old.m != nil {
			if err := old.m.Close(); err != nil {
				old.m.log.Warn("an earlier release was not closed well", "root", old.root, "error", err)
			}
		}
	}
	o = &opened{root: root, users: 1, ready: make(chan struct{})}
	e.open = append(e.open, o)
	return o, true, nil
}

// leave counts a user less. What could not be rebuilt is forgotten with the last one.
func (e *earlier) leave(o *opened) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o.users--; o.users == 0 && o.err != nil {
		e.open = slices.DeleteFunc(e.open, func(other *opened) bool { return other == o })
	}
}

// rebuildBeside has o's list rebuilt beside the caller, and is a user of it meanwhile.
func (m *Mirror) rebuildBeside(o *opened) {
	e := &m.earlier
	e.mu.Lock()
	o.users++
	e.mu.Unlock()
	end := func(at *Mirror, err error) {
		o.m, o.err = at, err
		close(o.ready)
		e.leave(o)
	}
	if !m.spawn(func() {
		ctx, cancel := context.WithTimeout(m.life, rebuildDeadline)
		defer cancel()
		m.dropLists()
		end(m.rebuilt(ctx, o.root))
	}) {
		end(nil, ErrClosed)
	}
}

// close closes those that are open. Nobody uses them any more.
func (e *earlier) close() (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range e.open {
		if o.m != nil {
			err = errors.Join(err, o.m.Close())
		}
	}
	e.open = nil
	return err
}

// listsDir is where the lists of earlier releases lie.
func (m *Mirror) listsDir() string { return m.o.FS.PathJoin(m.o.Dir, "at") }

// dropLists takes away lists of releases that are not open, but for as many as may be
// kept.
func (m *Mirror) dropLists() {
	m.earlier.mu.Lock() // no other is opened meanwhile
	defer m.earlier.mu.Unlock()
	names, err := m.o.FS.List(m.listsDir())
	if err != nil {
		return // there are none yet
	}
	open := m.earlier.open
	names = slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(open, func(o *opened) bool { return o.root.String() == name })
	})
	for len(names) > 0 && len(names)+len(open) > maxEarlier {
		if err := m.o.FS.RemoveAll(m.o.FS.PathJoin(m.listsDir(), names[0])); err != nil {
			m.log.Warn("the list of an earlier release was not taken away", "root", names[0], "error", err)
		}
		names = names[1:]
	}
}

// rebuilt opens root's release, and rebuilds its list where that is not on disk. Offline
// it is what bundles brought of that release, or ErrNoRelease beside ErrOffline.
func (m *Mirror) rebuilt(ctx context.Context, root cid.Cid) (*Mirror, error) {
	at, err := m.view(root)
	if err != nil {
		return nil, err
	}
	if p, ok := m.partAt(root); ok && m.o.Offline && at.head.Load() == nil {
		if err := at.servePart(ctx, p); err != nil {
			return nil, errors.Join(err, at.Close())
		}
		return at, nil
	}
	at.syncing <- struct{}{}
	err = at.frozen(ctx)
	<-at.syncing
	if errors.Is(err, ErrOffline) {
		m.log.DebugContext(ctx, "an earlier release is not here", "root", root, "error", err)
		err = fmt.Errorf("%w: its list is not on this machine, nor a part of it: %w", ErrNoRelease, ErrOffline)
	}
	if err != nil {
		return nil, errors.Join(err, at.Close())
	}
	return at, nil
}

// view opens root's release as a mirror whose list is its own. All else is m's: the
// node, the stores, what is in memory by its hash, and the account.
func (m *Mirror) view(root cid.Cid) (*Mirror, error) {
	o := m.o
	o.Root, o.Name = root, ipns.Name{}
	o.Origin, o.Announce = nil, nil // which have no past
	o.Dir = m.o.FS.PathJoin(m.listsDir(), root.String())
	for _, dir := range []string{m.listsDir(), o.Dir} {
		if err := makeDir(o.FS, dir); err != nil {
			return nil, fmt.Errorf("open release %s: %w", root, err)
		}
	}
	at := &Mirror{
		o: o, log: m.log, db: m.db, newest: m, stats: m.stats, patience: m.patience,
		routes: waysTo(o), first: make(chan struct{}), syncing: make(chan struct{}, 1), refresh: make(chan struct{}, 1),
		render: m.render, sending: m.sending, searching: m.searching, cars: map[cid.Cid]*carFetch{},
		entries: newLRU[npm.Name, listedEntry](entryCache),
		blocks:  m.blocks, leaves: m.leaves, packages: m.packages, files: m.files, bodies: m.bodies, portable: m.portable,
		integrity: m.integrity, origins: m.origins, unknown: m.unknown, told: m.told, attested: m.attested, came: m.came, wrong: m.wrong,
		lines: listNames{piece: m.lines.piece, moved: m.lines.moved}, described: m.described,
		checked: map[[16]byte]struct{}{}, obtained: map[cid.Cid]struct{}{}, earlier: newEarlier(),
	}
	at.high.Store(&highWater{})
	var err error
	if at.list, err = index.OpenOrCreate(o.FS.PathJoin(o.Dir, "index"), index.Options{FS: o.FS, Log: m.log}); err != nil {
		return nil, fmt.Errorf("open release %s: %w: %w", root, ErrState, err)
	}
	r, err := at.list.Head()
	switch {
	case err == nil && r.Root.Equals(root):
		at.setHead(&head{Release: r, list: r.Root})
	case err != nil && !errors.Is(err, index.ErrNoRelease):
		return nil, errors.Join(fmt.Errorf("open release %s: %w: %w", root, ErrState, err), at.list.Close())
	}
	at.life, at.end = context.WithCancel(m.life)
	return at, nil
}

// At is the table as it stood at a moment, for as long as the process lives: the
// earlier releases of the registries, which then never change. A number is of one
// registry. Errors: ErrMoment, ErrFuture, and those of the registries, by their labels.
func (t *Table) At(ctx context.Context, moment Moment, progress func(passed int)) (*Table, error) {
	if moment.IsNumber() && len(t.rows) > 1 {
		return nil, errManyNumbers
	}
	rows := slices.Clone(t.rows)
	for i, r := range rows {
		l, err := r.find(ctx, moment, progress)
		if err == nil {
			rows[i].Mirror, _, err = r.openAt(ctx, l.Root) // never done: it stays
		}
		if err != nil {
			return nil, t.labelled(i, err)
		}
	}
	at, err := NewTable(rows...)
	if err == nil {
		at.moment = moment
	}
	return at, err
}

// errManyNumbers is for a number where several registries are served.
var errManyNumbers = fmt.Errorf("several registries are served, and each counts its own releases; name a day: %w", ErrMoment)

// labelled is the error of one of several registries.
func (t *Table) labelled(i int, err error) error {
	if len(t.rows) > 1 {
		return fmt.Errorf("registry %s: %w", t.rows[i].Label, err)
	}
	return err
}

// serveAt answers below /-/at/<moment>/, which is the registry as it stood then, for
// clients that are given that as their registry's URL. No package can have such a
// name. Lockfiles may have such URLs of tarballs, whose bytes never change: where that
// release cannot be had any more, or is none yet, they come from the newest.
func (t *Table) serveAt(w http.ResponseWriter, r *http.Request, moment Moment, rest string) {
	first := t.rows[0].Mirror // for what is of no package
	path, err := url.PathUnescape(rest)
	if err != nil {
		sendError(w, r, http.StatusBadRequest, "the path is not properly escaped")
		return
	}
	u := &url.URL{Path: path, RawPath: rest, RawQuery: r.URL.RawQuery}
	ctx, cancel := context.WithTimeout(r.Context(), first.o.Deadline)
	defer cancel()
	then := &Table{rows: slices.Clone(t.rows), scopes: t.scopes, names: t.names, moment: moment}
	if moment.IsNumber() && len(t.rows) > 1 {
		first.fail(w, r, errManyNumbers)
		return
	}
	for i, row := range t.rows {
		row.awaitFirst(ctx)
		at, done, err := row.at(ctx, moment)
		if (errors.Is(err, ErrNoRelease) || errors.Is(err, ErrFuture)) && isTarball(u) {
			then = t
			break
		}
		if err != nil {
			row.fail(w, r, t.labelled(i, err))
			return
		}
		defer done()
		then.rows[i].Mirror = at
	}
	r = r.WithContext(context.WithValue(r.Context(), atKey{}, "/-/at/"+moment.String()))
	r.URL = u
	then.handler().ServeHTTP(w, r)
}

// isTarball says whether a path is a tarball's.
func isTarball(u *url.URL) bool {
	segments, err := npm.SplitPath(u)
	if err != nil || len(segments) < 3 {
		return false
	}
	_, rest, err := npm.TakeName(segments)
	return err == nil && len(rest) > 1 && rest[0] == "-"
}

// atKey is the key of what lies before a request's path: "/-/at/<moment>".
type atKey struct{}

// below is that, "" for what is asked of the newest release.
func below(r *http.Request) string {
	p, _ := r.Context().Value(atKey{}).(string)
	return p
}

// cutAt takes "/-/at/<moment>" off the front of a request's path; ok says that it is
// there.
func cutAt(u *url.URL) (moment, rest string, ok bool) {
	if !strings.HasPrefix(u.Path, "/-/at/") {
		return "", "", false
	}
	parts := append(strings.SplitN(u.EscapedPath(), "/", 5), "")
	for i := range 4 {
		var err error
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return "", "", false
		}
	}
	return parts[3], "/" + parts[4], parts[1] == "-" && parts[2] == "at"
}
