package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

var (
	// ErrGone is returned by Rollback when index and node no longer have all that
	// the old release lists. Nothing is changed.
	ErrGone = errors.New("what that release lists is no longer all here")
	// ErrUnderWay is returned by Rollback while entries are ahead of the newest
	// release, as a build leaves them that was cut short.
	ErrUnderWay = errors.New("a build is not done yet")
	// ErrPolicy is returned by Rollback for a release that follows another policy than
	// the list does: it may have what that keeps out. Nothing is changed.
	ErrPolicy = errors.New("that release follows another policy")
)

// RolledBackReason is the reason for which a package is withheld that stands as it did in an
// older release, or is not listed as it was not then.
const RolledBackReason = "rolled-back"

// RolledBack says what a Rollback changed.
type RolledBack struct {
	To      uint64 `json:"to"`      // the release whose list is published again
	Put     int    `json:"put"`     // packages that are as they were then
	Removed int    `json:"removed"` // packages that were not listed then
}

// Rollback publishes the list of an older release as a new one. How far the
// ledger was read stays as it is: a package that was rolled back is withheld, for
// the reason "rolled-back", until it changes upstream; then it is listed as
// upstream has it, and the log warns. Rolling back to the release before a
// rollback undoes it. Where the newest release has that list already, it is
// published as Republish does.
//
// All that the old release lists must still be there: it is read back, from the
// index or the node and never the network, before anything is changed (ErrGone).
// That takes the packages' bytes, tarballs included, and memory for each package
// that differs. Further errors: index.ErrNoRelease, ErrUnderWay, and Publish's.
//
// Law: the old content is durable in the node, then the notes of what is rolled
// back are on disk, then one batch of the index moves the list, then notes that
// no longer hold are struck out, then it is published. A crash before the batch
// leaves the list as it was, and the next build strikes the notes out; after it,
// the next Publish publishes the rollback.
func (p *Publisher) Rollback(ctx context.Context, number uint64) (Result, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	release, back, err := p.rollback(ctx, number)
	if err != nil {
		return Result{}, fmt.Errorf("roll back to release %d: %w", number, err)
	}
	result, err := p.publish(ctx, release)
	result.RolledBack = &back
	return result, err
}

func (p *Publisher) rollback(ctx context.Context, number uint64) (index.Release, RolledBack, error) {
	back := RolledBack{To: number}
	if made := p.o.Index.Parameters().Documents; made != document.Format {
		return index.Release{}, back, fmt.Errorf("%w: documents %q, not %q", index.ErrParameters, made, document.Format)
	}
	old, err := p.o.Index.Release(number)
	if err != nil {
		return index.Release{}, back, err
	}
	if old, err = p.whole(ctx, old); err != nil {
		return index.Release{}, back, err
	}
	now, err := p.o.Index.Head()
	if err != nil {
		return index.Release{}, back, err
	}
	if pending, err := p.o.Index.Pending(); err != nil || pending {
		return index.Release{}, back, errors.Join(err, ErrUnderWay)
	}
	cursor, err := p.cursor()
	if err != nil {
		return index.Release{}, back, err
	}
	by, err := p.curation()
	if err != nil {
		return index.Release{}, back, err
	}
	if len(by.From) > 0 {
		return index.Release{}, back, ErrUnderWay
	}
	if was := policyOf(old.Policy); was != policyOf(by.label()) {
		return index.Release{}, back, fmt.Errorf("%w: %s", ErrPolicy, cmp.Or(was, "none"))
	}
	h, err := p.spoken()
	if err != nil {
		return index.Release{}, back, err
	}
	differences, err := p.wayBack(ctx, now, old)
	if err != nil {
		return index.Release{}, back, err
	}
	if err := p.settleRolledBack(now.Number); err != nil {
		return index.Release{}, back, err
	}
	if len(differences) == 0 {
		return now, back, nil
	}
	dirs, err := p.pagesBack(ctx, differences, old.Parameters.Gateway)
	if err != nil {
		return index.Release{}, back, err
	}
	if _, err := p.takeKeys(ctx, now); err != nil {
		return index.Release{}, back, err
	}
	if err := p.checkpoint(ctx); err != nil {
		return index.Release{}, back, err
	}
	if err := hook(p.fault, "old content durable"); err != nil {
		return index.Release{}, back, err
	}
	if err := p.noteRolledBack(differences, number, max(now.Number, h.newest.number)+1); err != nil {
		return index.Release{}, back, err
	}
	if err := hook(p.fault, "rollback noted"); err != nil {
		return index.Release{}, back, err
	}
	batch := p.batch(cursor, h.newest, by)
	batch.Blocks = dirs
	for _, d := range differences {
		c := d.Change()
		if batch.Changes = append(batch.Changes, c); c.Delete {
			back.Removed++
		} else {
			back.Put++
		}
	}
	release, _, err := p.o.Index.Apply(ctx, batch)
	if err != nil {
		return index.Release{}, back, err
	}
	if release.List != old.List {
		return index.Release{}, back, fmt.Errorf("%w: release %d has the list %s, not %s", index.ErrCorrupt, release.Number, release.List.Root, old.List.Root)
	}
	if err := hook(p.fault, "rolled back"); err != nil {
		return index.Release{}, back, err
	}
	p.o.Log.InfoContext(ctx, "rolled back", "registry", p.o.Registry, "to", number, "release", release.Number, "put", back.Put, "removed", back.Removed)
	return release, back, p.settleRolledBack(release.Number)
}

// whole is a release with the list of r whose directories are there: r itself, or,
// where it was collected, one after it.
func (p *Publisher) whole(ctx context.Context, r index.Release) (index.Release, error) {
	oldest, err := p.o.Index.Oldest()
	if err != nil || r.Number >= oldest {
		return r, err
	}
	for other, err := range p.o.Index.Log(ctx) {
		if err != nil {
			return index.Release{}, err
		}
		if other.Number < oldest {
			break
		}
		if other.List == r.List {
			return other, nil
		}
	}
	return index.Release{}, fmt.Errorf("%w: it was collected, releases from %d on are whole", ErrGone, oldest)
}

// wayBack gives what differs between the release now and an old one, with the
// entries that the old one had, once all of their content was read back.
func (p *Publisher) wayBack(ctx context.Context, now, old index.Release) ([]index.Difference, error) {
	ctx, cancel := context.WithTimeout(ctx, contentTimeout)
	defer cancel()
	var mu sync.Mutex // over what follows
	var all []index.Difference
	var progress Progress
	var gone []string
	lost := 0
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(p.o.Workers)
	var broken error
	for d, err := range index.Diff(gctx, p.o.Index, now.List, old.List) {
		if err != nil {
			broken = err
			break
		}
		mu.Lock()
		progress.Total++
		mu.Unlock()
		group.Go(func() (err error) {
			if d.New.CID.Defined() {
				d.New, err = p.stillHere(gctx, old, d)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ipfs.ErrNotFound), errors.Is(err, ipfs.ErrCorrupt), errors.Is(err, index.ErrNoBlock):
				if lost++; len(gone) < 10 {
					gone = append(gone, string(d.New.Name))
				}
			case err != nil:
				return fmt.Errorf("package %s: %w", d.New.Name, err)
			default:
				all = append(all, d)
			}
			if progress.Done++; p.o.Progress != nil {
				p.o.Progress(progress)
			}
			return nil
		})
	}
	err := group.Wait()
	switch {
	case err != nil:
		return nil, err
	case errors.Is(broken, index.ErrNoBlock):
		return nil, fmt.Errorf("%w: %w", ErrGone, broken)
	case broken != nil:
		return nil, broken
	case lost > len(gone):
		gone = append(gone, fmt.Sprintf("and %d more", lost-len(gone)))
	}
	if lost > 0 {
		return nil, fmt.Errorf("%w: %d packages have lost content: %s", ErrGone, lost, strings.Join(gone, ", "))
	}
	return all, nil
}

// stillHere gives a package's entry in an old release, and reads back all that it
// has and the present entry has not.
func (p *Publisher) stillHere(ctx context.Context, old index.Release, d index.Difference) (index.Entry, error) {
	g := kept{p.o.Index, p.o.Node}
	e, err := index.ReadEntry(ctx, g, old, d.New.Name)
	if err != nil {
		return index.Entry{Name: d.New.Name}, err
	}
	for _, pair := range [][2]cid.Cid{{d.Old.CID, e.CID}, {e.CID, e.Gateway.CID}} {
		if !pair[1].Defined() {
			continue
		}
		for _, err := range unixfs.Beyond(ctx, g, pair[0], pair[1]) {
			if err != nil {
				return e, err
			}
		}
	}
	return e, nil
}

// kept gives blocks of the index, else of the node, and never of the network.
type kept struct {
	index *index.Index
	node  ipfs.Node
}

func (k kept) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := k.index.Get(ctx, c)
	if errors.Is(err, index.ErrNoBlock) {
		return k.node.Local(ctx, c)
	}
	return b, err
}

// RolledBack is the note of a package that stands as a rollback put it, of what is not
// listed of it too; ok is false for any other. The file of notes is read once after each
// change of it. Its error is Withheld's.
func (p *Publisher) RolledBack(name npm.Name) (w Withheld, ok bool, err error) {
	notes, err := p.rolledBackNotes()
	w, ok = notes[name]
	return w, ok, err
}

// RolledBackPackages is how many packages stand as a rollback put them.
func (p *Publisher) RolledBackPackages() (int, error) {
	notes, err := p.rolledBackNotes()
	return len(notes), err
}

// rolledBackNotes are those of all such packages, not to be changed.
func (p *Publisher) rolledBackNotes() (map[npm.Name]Withheld, error) {
	p.noting.Lock()
	defer p.noting.Unlock()
	if p.rolledBack != nil {
		return p.rolledBack, nil
	}
	all, err := p.Withheld()
	if err != nil {
		return nil, err
	}
	notes := map[npm.Name]Withheld{}
	for _, w := range all {
		if w.Reason == RolledBackReason {
			notes[w.Name] = w
		}
	}
	p.rolledBack = notes
	return notes, nil
}

// noteRolledBack adds to what is withheld what release number takes back.
func (p *Publisher) noteRolledBack(differences []index.Difference, to, number uint64) error {
	all, err := p.Withheld()
	if err != nil {
		return err
	}
	listed := make(map[npm.Name]bool, len(differences))
	for _, d := range differences {
		w := Withheld{Name: d.New.Name, Reason: RolledBackReason, Release: number, Instead: cidText(d.Old.CID)}
		w.Listed = d.New.CID.Defined()
		if listed[w.Name] = w.Listed; w.Listed {
			w.Detail = fmt.Sprintf("as in release %d", to)
		} else {
			w.Detail = fmt.Sprintf("not in release %d", to)
		}
		all = append(all, w)
	}
	// Whoever has a place again does not wait for it.
	all = slices.DeleteFunc(all, func(w Withheld) bool { return w.Reason == reasonCollision && w.Version == "" && listed[w.Name] })
	slices.SortFunc(all, compareWithheld)
	return p.writeWithheld(all)
}

// settleRolledBack strikes out notes that no longer hold, newest being the last
// release.
func (p *Publisher) settleRolledBack(newest uint64) error {
	before, err := p.Withheld()
	if err != nil {
		return err
	}
	after, err := p.withoutSettled(before, newest)
	if err != nil || slices.Equal(before, after) {
		return err
	}
	return p.writeWithheld(after)
}

// withoutSettled leaves out what is noted of releases that were never made, newest
// being the last one, and of several notes of a package all but the last, which
// keeps what the first said stood there before; where just that stands there again,
// it goes too.
func (p *Publisher) withoutSettled(before []Withheld, newest uint64) ([]Withheld, error) {
	var after []Withheld
	for _, w := range before { // the notes of a package follow each other, by release
		if w.Reason != RolledBackReason {
			after = append(after, w)
			continue
		}
		if w.Release > newest {
			continue
		}
		if last := len(after) - 1; last >= 0 && after[last].Name == w.Name && after[last].Reason == RolledBackReason {
			w.Instead = after[last].Instead
			after = after[:last]
		}
		after = append(after, w)
	}
	var failed error
	after = slices.DeleteFunc(after, func(w Withheld) bool {
		if w.Reason != RolledBackReason || failed != nil {
			return false
		}
		e, err := p.o.Index.Entry(w.Name)
		if err != nil && !errors.Is(err, index.ErrNotFound) {
			failed = err
			return false
		}
		return cidText(e.CID) == w.Instead
	})
	return after, failed
}
