package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// PackageDiff is what changed of one package from one release to another.
type PackageDiff struct {
	Registry string `json:"registry,omitempty"` // its label, where several are served
	index.PackageChange
	// Unread says, of one that is Unknown, that no source that may have its content could
	// be asked: no peer was connected, say. Later it may be had.
	Unread bool        `json:"unread,omitempty"`
	Tags   []TagChange `json:"tags,omitempty"`
	Locked []Locked    `json:"locked,omitempty"` // of a Lock's versions, what there is to say

	stayed []string // the versions that the newer release lists, for Locked
}

// TagChange is a dist-tag of a package that stayed, and what it names.
type TagChange struct {
	Tag string `json:"tag"`
	Old string `json:"old,omitempty"` // "" where it is new
	New string `json:"new,omitempty"` // "" where it is gone
}

// What became of a locked version.
const (
	Withdrawn = "withdrawn" // it is listed no more
	Replaced  = "replaced"  // it has another tarball
	Appeared  = "appeared"  // it was not listed before
	Absent    = "unlisted"  // neither release lists it
)

// Locked is a version that a project locks.
type Locked struct {
	Version string `json:"version"`
	State   string `json:"state,omitempty"` // as above; "" where it stayed
	// Newer are the versions that are new, higher, and within every range that led to
	// this one: what depends on it says those, else it is what ^ makes of it.
	Newer []string `json:"newer,omitempty"`
	// Integrity is there where the newer release has the version with another one than
	// the lock: no bytes can match both.
	Integrity *Integrities `json:"integrity,omitempty"`
}

// Integrities are two of one version that contradict each other.
type Integrities struct {
	Lock     string `json:"lock"`
	Registry string `json:"registry"` // "" where its document gives none that can be used
}

func (i Integrities) String() string {
	return fmt.Sprintf("the lockfile has %s, the registry %s", i.Lock, cmp.Or(i.Registry, "none"))
}

// Lock is what a project locks, and the ranges that it itself asks for.
type Lock struct {
	Packages []LockedVersion `json:"packages"`
	Ranges   []npm.Spec      `json:"ranges,omitempty"`
}

// LockedVersion is an exact version, with what its bytes must be.
type LockedVersion struct {
	npm.Spec
	Integrity string `json:"integrity,omitempty"` // as npm.Dist has it; "" where the lock does not say
}

// DiffQuery is what Table.Diff is asked.
type DiffQuery struct {
	From, To string // as ParseMoment has it, or "now"
	Lock     *Lock  // nil: of all packages
}

// Check is ErrMoment where From or To is none, and ErrFuture where it has not come by now.
func (q DiffQuery) Check(now time.Time) error {
	at, err := q.moments()
	return cmp.Or(err, at[0].Begun(now), at[1].Begun(now))
}

func (q DiffQuery) moments() (at [2]Moment, err error) {
	for i, text := range []string{q.From, q.To} {
		if text == "now" {
			continue
		}
		if at[i], err = ParseMoment(text); err != nil {
			return at, err
		}
	}
	return at, nil
}

// Compared says which releases of a registry are compared.
type Compared struct {
	Registry string  `json:"registry,omitempty"` // its label, where several are served
	From     Release `json:"from"`
	To       Release `json:"to"`
}

// diffAtOnce is how many packages are read at the same time.
const diffAtOnce = 16

// maxSorted is how many packages are sorted at once: some 200 MiB of them.
const maxSorted = 1 << 20

// Diff says what changed from one moment to another: of all packages, by registry and
// name, of more than maxSorted by name among as many as are found one after the other;
// or with a lock of those in it, by name. It reads the directories that differ, and of
// each package that does both directories and documents. A package whose content nobody
// has is Unknown, and Unread where nobody could be asked. It ends at the first error.
func (t *Table) Diff(ctx context.Context, q DiffQuery) ([]Compared, iter.Seq2[PackageDiff, error], error) {
	moments, err := q.moments()
	if err != nil {
		return nil, nil, err
	}
	if len(t.rows) > 1 && (moments[0].IsNumber() || moments[1].IsNumber()) {
		return nil, nil, errManyNumbers
	}
	d := diff{table: t}
	var said []Compared
	for i, r := range t.rows {
		c := Compared{Registry: d.label(i)}
		var ends [2]index.Release
		for j, at := range moments {
			l, err := r.find(ctx, at, nil)
			if err == nil {
				ends[j], err = index.ReadRelease(ctx, dag{m: r.Mirror, kind: directories}, l.Root)
			}
			if err != nil {
				return nil, nil, t.labelled(i, err)
			}
		}
		c.From, c.To = releaseOf(ends[0]), releaseOf(ends[1])
		d.ends, said = append(d.ends, ends), append(said, c)
	}
	if q.Lock == nil {
		return said, d.all(ctx), nil
	}
	return said, d.locked(ctx, *q.Lock), nil
}

// maxLock bounds a Lock as JSON, in bytes: of a lockfile of a million versions.
const maxLock = 64 << 20

// diffLine is one line of the answer to POST /diff: the first says what is compared,
// then each has a package, and the last one says that it was the last, or why not.
type diffLine struct {
	Compared []Compared   `json:"compared,omitempty"`
	Package  *PackageDiff `json:"package,omitempty"`
	Error    string       `json:"error,omitempty"`
	End      bool         `json:"end,omitempty"`
}

// serveDiff answers with diffLines.
func (t *Table) serveDiff(w http.ResponseWriter, r *http.Request) {
	q := DiffQuery{From: r.URL.Query().Get("from"), To: r.URL.Query().Get("to")}
	if err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxLock), &q.Lock); err != nil {
		sendError(w, r, http.StatusBadRequest, err.Error())
		return
	}
	compared, packages, err := t.Diff(r.Context(), q)
	if err != nil {
		sendError(w, r, http.StatusConflict, oneLine(err))
		return
	}
	control := http.NewResponseController(w)
	send := func(l diffLine) error {
		raw, err := json.Marshal(l)
		if err == nil {
			_, err = w.Write(append(raw, '\n'))
		}
		return errors.Join(err, control.Flush())
	}
	err = send(diffLine{Compared: compared})
	for p, failed := range packages {
		if err != nil {
			return // who asked has gone
		}
		if failed != nil {
			_ = send(diffLine{Error: oneLine(failed)})
			return
		}
		err = send(diffLine{Package: &p})
	}
	_ = send(diffLine{End: true})
}

// ReadDiff reads the answer to POST /diff.
func ReadDiff(r io.Reader) ([]Compared, iter.Seq2[PackageDiff, error], error) {
	dec := jsontext.NewDecoder(r)
	var first diffLine
	if err := json.UnmarshalDecode(dec, &first); err != nil {
		return nil, nil, fmt.Errorf("read what changed: %w", err)
	}
	return first.Compared, func(yield func(PackageDiff, error) bool) {
		for {
			var l diffLine
			err := json.UnmarshalDecode(dec, &l)
			switch {
			case err != nil:
				err = fmt.Errorf("read what changed: %w", err)
			case l.Error != "":
				err = errors.New(l.Error)
			case l.End:
				return
			case l.Package == nil:
				continue
			}
			if err != nil {
				yield(PackageDiff{}, err)
				return
			}
			if !yield(*l.Package, nil) {
				return
			}
		}
	}, nil
}

type diff struct {
	table *Table
	ends  [][2]index.Release // by row
}

func (d diff) label(i int) string {
	if len(d.table.rows) == 1 {
		return ""
	}
	return d.table.rows[i].Label
}

// all yields what changed of all packages that each registry is asked for.
func (d diff) all(ctx context.Context) iter.Seq2[PackageDiff, error] {
	return func(yield func(PackageDiff, error) bool) {
		for i, r := range d.table.rows {
			differing := index.Diff(ctx, dag{m: r.Mirror, kind: directories}, d.ends[i][0].List, d.ends[i][1].List)
			asked := func(yield func(index.Difference, error) bool) {
				for one, err := range differing {
					owner, claimed := d.table.owner(one.New.Name)
					if err == nil && (claimed && owner != i || !claimed && !r.open()) {
						continue
					}
					if !yield(one, err) {
						return
					}
				}
			}
			for p, err := range inOrder(ctx, byName(asked, maxSorted), func(ctx context.Context, one index.Difference) (PackageDiff, error) {
				return d.read(ctx, i, one)
			}) {
				if !yield(p, err) || err != nil {
					return
				}
			}
		}
	}
}

// byName sorts differences by name, n at a time. It ends at the first error.
func byName(all iter.Seq2[index.Difference, error], n int) iter.Seq2[index.Difference, error] {
	return func(yield func(index.Difference, error) bool) {
		var some []index.Difference
		flush := func() bool {
			slices.SortFunc(some, func(a, b index.Difference) int { return strings.Compare(string(a.New.Name), string(b.New.Name)) })
			for _, one := range some {
				if !yield(one, nil) {
					return false
				}
			}
			some = some[:0]
			return true
		}
		for one, err := range all {
			if err != nil {
				yield(one, err)
				return
			}
			if some = append(some, one); len(some) == n && !flush() {
				return
			}
		}
		flush()
	}
}

// read says what a difference is.
func (d diff) read(ctx context.Context, i int, one index.Difference) (p PackageDiff, err error) {
	m := d.table.rows[i].Mirror
	p.Registry = d.label(i)
	p.PackageChange, err = one.Package(ctx, dag{m: m, kind: directories})
	if err == nil && p.Change == index.IsChanged {
		p.Tags, err = m.tagChanges(ctx, one)
	}
	if errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		p.Unknown, p.Unread, err = true, !errors.Is(err, ErrNowhere), nil
	}
	if err != nil {
		err = fmt.Errorf("package %s: %w", one.New.Name, err)
	}
	return p, err
}

// tagChanges are the dist-tags that moved.
func (m *Mirror) tagChanges(ctx context.Context, one index.Difference) (moved []TagChange, err error) {
	var tags [2]map[string]string
	for i, e := range []index.Entry{one.Old, one.New} {
		p, err := m.eitherPackument(ctx, e.Name, e.CID)
		if err == nil {
			err = m.decoded(ctx, p, func(raw []byte) (err error) {
				_, tags[i], err = readHead(raw)
				return err
			})
		}
		if err != nil {
			return nil, err
		}
	}
	for tag, version := range tags[0] {
		if tags[1][tag] != version {
			moved = append(moved, TagChange{tag, version, tags[1][tag]})
		}
	}
	for tag, version := range tags[1] {
		if _, ok := tags[0][tag]; !ok {
			moved = append(moved, TagChange{Tag: tag, New: version})
		}
	}
	slices.SortFunc(moved, func(a, b TagChange) int { return strings.Compare(a.Tag, b.Tag) })
	return moved, nil
}

// locked yields what there is to say of a lock's packages.
func (d diff) locked(ctx context.Context, lock Lock) iter.Seq2[PackageDiff, error] {
	versions, integrity := map[npm.Name][]string{}, map[npm.Name]map[string]string{}
	for _, s := range lock.Packages {
		versions[s.Name] = append(versions[s.Name], s.Range)
		if s.Integrity != "" {
			if integrity[s.Name] == nil {
				integrity[s.Name] = map[string]string{}
			}
			integrity[s.Name][s.Range] = s.Integrity
		}
	}
	names := func(yield func(npm.Name, error) bool) {
		for _, name := range slices.Sorted(maps.Keys(versions)) {
			if !yield(name, nil) {
				return
			}
		}
	}
	return func(yield func(PackageDiff, error) bool) {
		// At most as many as are locked.
		var all []PackageDiff
		wanted := false            // some have new versions
		odd := map[npm.Name]bool{} // a version has no tarball that is called after it
		for p, err := range inOrder(ctx, names, d.ofName) {
			if err != nil {
				yield(PackageDiff{}, err)
				return
			}
			all = append(all, p)
			wanted = wanted || len(p.Added) > 0
			odd[p.Name] = slices.ContainsFunc(versions[p.Name], func(v string) bool { return p.of(v, nil).State == Absent })
		}
		ranges := map[npm.Name][]string{}
		for _, s := range lock.Ranges {
			ranges[s.Name] = append(ranges[s.Name], s.Range)
		}
		var read []manifests
		for one, err := range inOrder(ctx, names, func(ctx context.Context, name npm.Name) (manifests, error) {
			if !wanted && integrity[name] == nil && !odd[name] {
				return manifests{}, nil // nothing in its document is asked for
			}
			return d.manifests(ctx, name, versions[name], wanted)
		}) {
			if err != nil {
				yield(PackageDiff{}, err)
				return
			}
			for _, s := range one.asks {
				ranges[s.Name] = append(ranges[s.Name], s.Range)
			}
			one.asks = nil
			read = append(read, one)
		}
		for i, p := range all {
			p.Unknown = p.Unknown || read[i].unread
			for _, v := range slices.Compact(slices.SortedFunc(slices.Values(versions[p.Name]), npm.CompareVersions)) {
				l := p.of(v, ranges[p.Name])
				if dist, ok := read[i].dists[v]; ok {
					if l.State == Absent {
						l.State = ""
					}
					l.Integrity = contradiction(integrity[p.Name][v], dist)
				}
				if l.State != "" || len(l.Newer) > 0 || l.Integrity != nil {
					p.Locked = append(p.Locked, l)
				}
			}
			if p.Change == index.IsSame && !p.Unknown && len(p.Locked) == 0 {
				continue
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// contradiction says where a lock and a registry's document cannot both be right.
func contradiction(lock string, d npm.Dist) *Integrities {
	locked, err := npm.ParseIntegrity(npm.Dist{Integrity: lock})
	if err != nil {
		return nil // the lock says nothing that a client could check
	}
	listed, err := npm.ParseIntegrity(d)
	if err == nil && !locked.Contradicts(listed) {
		return nil
	}
	return &Integrities{Lock: locked.String(), Registry: listed.String()}
}

// of says what became of a locked version.
func (p PackageDiff) of(version string, ranges []string) Locked {
	l := Locked{Version: version}
	switch {
	case p.Unknown:
		return l
	case slices.Contains(p.Removed, version):
		l.State = Withdrawn
	case slices.Contains(p.Replaced, version):
		l.State = Replaced
	case slices.Contains(p.Added, version):
		l.State = Appeared
	case !slices.Contains(p.stayed, version):
		l.State = Absent
	}
	ranges = slices.DeleteFunc(slices.Clone(ranges), func(r string) bool { return !npm.Satisfies(version, r) })
	if len(ranges) == 0 {
		ranges = []string{"^" + version}
	}
	for _, v := range p.Added {
		if npm.CompareVersions(v, version) > 0 && !slices.ContainsFunc(ranges, func(r string) bool { return !npm.Satisfies(v, r) }) {
			l.Newer = append(l.Newer, v)
		}
	}
	return l
}

// entries finds a name in the registry that is asked for it: row is -1 where none has
// it in either release.
func (d diff) entries(ctx context.Context, name npm.Name) (row int, one index.Difference, err error) {
	owner, claimed := d.table.owner(name)
	for i, r := range d.table.rows {
		if claimed && i != owner || !claimed && !r.open() {
			continue
		}
		one = index.Difference{Old: index.Entry{Name: name}, New: index.Entry{Name: name}}
		for j, e := range []*index.Entry{&one.Old, &one.New} {
			got, err := index.Lookup(ctx, dag{m: r.Mirror, kind: directories}, d.ends[i][j].List, name)
			if err == nil {
				*e = got
			} else if !errors.Is(err, index.ErrNotFound) {
				return -1, one, err
			}
		}
		if one.Old.CID.Defined() || one.New.CID.Defined() {
			return i, one, nil
		}
	}
	return -1, one, nil
}

// ofName is what changed of a name.
func (d diff) ofName(ctx context.Context, name npm.Name) (PackageDiff, error) {
	i, one, err := d.entries(ctx, name)
	p := PackageDiff{PackageChange: index.PackageChange{Name: name, Change: index.IsSame}}
	if err != nil || i < 0 {
		return p, err
	}
	if p.Registry = d.label(i); one.Old != one.New {
		if p, err = d.read(ctx, i, one); err != nil || p.Unknown {
			return p, err
		}
	}
	now, err := index.Tarballs(ctx, dag{m: d.table.rows[i].Mirror, kind: directories}, one.New)
	if errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		p.Unknown, err = true, nil
	}
	p.stayed = slices.Collect(maps.Keys(now))
	return p, err
}

// manifests is what some versions' manifests say.
type manifests struct {
	asks   []npm.Spec          // what they depend on
	dists  map[string]npm.Dist // of those that the newer release lists
	unread bool                // nobody has the newer release's document
}

// manifests reads those of some versions of a package; with asks also those that only
// the older release has.
func (d diff) manifests(ctx context.Context, name npm.Name, versions []string, asks bool) (got manifests, err error) {
	i, one, err := d.entries(ctx, name)
	if err != nil || i < 0 {
		return got, err
	}
	m := d.table.rows[i].Mirror
	if one.Old == one.New {
		one.Old.CID = cid.Undef // it is read once
	}
	got.dists = map[string]npm.Dist{}
	for _, dir := range []cid.Cid{one.New.CID, one.Old.CID} {
		newer := dir == one.New.CID
		if !dir.Defined() || len(versions) == 0 || !newer && !asks {
			continue
		}
		p, err := m.eitherPackument(ctx, name, dir)
		if err == nil {
			err = m.decoded(ctx, p, func(raw []byte) error {
				doc, err := npm.ParsePackument(raw)
				if err != nil {
					return err
				}
				versions = slices.DeleteFunc(slices.Clone(versions), func(v string) bool {
					manifest := doc.Versions[v]
					if manifest == nil {
						return false
					}
					if newer {
						got.dists[v] = manifest.Dist
					}
					for _, of := range []map[string]string{manifest.Dependencies, manifest.OptionalDependencies, manifest.PeerDependencies} {
						got.asks = append(got.asks, npm.Dependencies(of)...)
					}
					return true
				})
				return nil
			})
		}
		if !asks && errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
			got.unread = true
			return got, nil
		}
		if err != nil {
			return got, fmt.Errorf("manifests of %s: %w", name, err)
		}
	}
	return got, nil
}

// inOrder calls f for each item, some at the same time, and yields the results in the
// order of the items. It ends at the first error.
func inOrder[A, B any](ctx context.Context, items iter.Seq2[A, error], f func(context.Context, A) (B, error)) iter.Seq2[B, error] {
	type result struct {
		value B
		err   error
	}
	return func(yield func(B, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(diffAtOnce + 1)
		queue := make(chan chan result, diffAtOnce)
		defer group.Wait()
		defer cancel()
		group.Go(func() error {
			defer close(queue)
			for item, err := range items {
				one := make(chan result, 1)
				select {
				case queue <- one:
				case <-ctx.Done():
					return nil
				}
				if err != nil {
					one <- result{err: err}
					return nil
				}
				group.Go(func() error {
					value, err := f(ctx, item)
					one <- result{value, err}
					return nil
				})
			}
			return nil
		})
		for one := range queue {
			r := <-one
			if !yield(r.value, r.err) || r.err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			var none B
			yield(none, err)
		}
	}
}

// String is a line as `registry-mirror diff` prints it.
func (p PackageDiff) String() string {
	words := p.Words()
	for _, t := range p.Tags {
		words = append(words, t.Tag+":"+cmp.Or(t.Old, "none")+"->"+cmp.Or(t.New, "none"))
	}
	switch {
	case p.Unread:
		words = append(words, "(not read)")
	case p.Unknown:
		words = append(words, "(versions unknown: nobody has them)")
	}
	return strings.Join(words, " ")
}
