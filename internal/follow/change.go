package follow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// change is what is to be done for one package.
type change struct {
	name     npm.Name
	rev      string // the revision announced, "" if none
	deleted  bool
	final    bool     // a deletion needs no confirmation
	doc      []byte   // the document, where the feed gives it
	ask      bool     // the document must be upstream's newest
	versions []string // to be fetched, where the document names them
}

// coalesce unites a page's changes by package, the last one of each counts, and
// leaves out those that nobody wants. bad are names that npm does not allow.
func (f *Follower) coalesce(ctx context.Context, rows []couch.Change, w wanted, engine string) (changes []change, bad []item, err error) {
	last := make(map[string]int, len(rows))
	for i, row := range rows {
		last[row.ID] = i
	}
	for i, row := range rows {
		if last[row.ID] != i || strings.HasPrefix(row.ID, "_design/") {
			continue
		}
		name, err := npm.ParseName(row.ID)
		if err != nil {
			if len(w.all) > 0 && row.ID != "" {
				bad = append(bad, item{refused: &ledger.Refusal{
					Name: npm.Name(row.ID), Reason: ReasonName, Detail: detail(err), Time: f.now(),
				}})
			}
			continue
		}
		concerns, err := f.concerns(ctx, w, name)
		if err != nil {
			return nil, nil, err
		}
		if !concerns {
			continue
		}
		c := change{name: name, deleted: row.Deleted, final: engine == couch.EngineCouch, doc: row.Doc, ask: true}
		if engine == couch.EngineNPM || engine == couch.EngineCouch { // else revisions are not the registry's
			for _, rev := range row.Revs {
				if c.rev == "" || older(c.rev, rev) {
					c.rev = rev
				}
			}
		}
		changes = append(changes, c)
	}
	return changes, bad, nil
}

// apply does the work of changes in one pass, which ends with cursor.
func (f *Follower) apply(ctx context.Context, changes []change, bad []item, w wanted, cursor *ledger.Cursor) error {
	p, err := f.begin(ctx, forever)
	if err != nil {
		return err
	}
	defer p.abort()
	for _, it := range bad {
		if err := p.send(p.ctx, it); err != nil {
			return p.cause(err)
		}
	}
	g, gctx := errgroup.WithContext(p.ctx)
	g.SetLimit(f.workers)
	asked := false
	for _, c := range changes {
		asked = asked || c.ask
		g.Go(func() error { return p.change(gctx, c, w) })
	}
	if err := g.Wait(); err != nil {
		return p.cause(err)
	}
	// A changed document may change what any closure selects. Where every
	// package is wanted, each comes with its own change.
	if asked && len(w.all) == 0 && len(w.wants) > 0 {
		picked, err := p.selectVersions(w.wants)
		if err == nil {
			err = p.fetchMissing(picked, false)
		}
		if err != nil {
			return p.cause(err)
		}
	}
	if err := p.finish(cursor); err != nil {
		return p.cause(err)
	}
	return nil
}

// deletedMark ends the revision of a deletion in the retry queue.
const deletedMark = "-deleted"

// change records a package's new document, or why there is none, and queues
// the versions that it alone decides on. An error is our own fault.
func (p *pass) change(ctx context.Context, c change, w wanted) error {
	pap, err := p.changed(ctx, c)
	if err != nil && ours(ctx, err) {
		return err
	}
	if stub := (*unpublished)(nil); errors.As(err, &stub) && !older(stub.rev, c.rev) {
		// The change and the registry's own word agree: as good as a deletion.
		pap, err = nil, p.send(ctx, item{name: c.name, key: ledger.Key{Name: c.name}, gone: "?" + stub.rev})
	}
	if err != nil {
		held, fault := p.f.held(ctx, c.name)
		if fault != nil {
			return fault
		}
		if !held.Document.CID.Defined() || held.Deleted {
			p.remember(c.name, nil, err) // else the ledger's own document serves
		}
		return p.fail(ctx, c, err)
	}
	if pap == nil {
		p.remember(c.name, nil, errDeleted)
		return p.fail(ctx, change{name: c.name, versions: c.versions}, fmt.Errorf("%w: %w", upstream.ErrNotFound, errDeleted))
	}
	if err := p.record(ctx, pap); err != nil {
		return err
	}
	picked := slices.Clone(c.versions)
	if len(w.all) == 0 {
		p.remember(c.name, pap, nil)
	} else if c.ask {
		picked = append(picked, w.every(pap.doc)...)
	}
	for _, v := range picked {
		if names(pap.doc, v) {
			err = p.fetch(ctx, pap, v, false)
		} else { // taken back since
			err = p.send(ctx, item{name: c.name, key: ledger.Key{Name: c.name, Version: v}})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fail records that nothing came of a change: for the package, where its
// document was asked for, and for each version that waited for it.
func (p *pass) fail(ctx context.Context, c change, err error) error {
	rev := c.rev
	if c.deleted {
		rev += deletedMark
	}
	var items []item
	if c.ask {
		items = append(items, p.failed(ledger.Key{Name: c.name}, rev, err))
	}
	for _, v := range c.versions {
		items = append(items, p.failed(ledger.Key{Name: c.name, Version: v}, "", err))
	}
	for _, it := range items {
		if err := p.send(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// changed returns the paper of a changed package, or sends its tombstone and
// returns nil. A paper older than its change is an error.
func (p *pass) changed(ctx context.Context, c change) (*paper, error) {
	if c.deleted {
		if !c.final {
			// A deletion is evidence, not an accident (law 4): the registry
			// itself must say so too. A document as new as the deletion says
			// that the package is back.
			answer, err := p.f.upstream.Packument(ctx, c.name, "")
			if err == nil {
				held, err := p.f.held(ctx, c.name)
				if err != nil {
					return nil, err
				}
				pap, err := p.f.fresh(c.name, answer.Raw, answer.ETag, held)
				return pap, notOlder(pap, c, err)
			}
			if !errors.Is(err, upstream.ErrNotFound) {
				return nil, fmt.Errorf("confirm the deletion of %s: %w", c.name, err)
			}
		}
		return nil, p.send(ctx, item{name: c.name, key: ledger.Key{Name: c.name}, gone: "?" + c.rev})
	}
	if c.doc != nil {
		raw, err := withoutAttachments(c.doc)
		if err != nil {
			return nil, fmt.Errorf("document of %s in the feed: %w: %w", c.name, npm.ErrPackument, err)
		}
		held, err := p.f.held(ctx, c.name)
		if err != nil {
			return nil, err
		}
		if c.rev != "" && c.rev == held.Rev && held.Document.CID.Defined() && !held.Deleted {
			pap, err := p.f.mine(ctx, held) // a revision is one document
			if err == nil || !lost(err) {
				return pap, own(err)
			}
		}
		return p.f.fresh(c.name, raw, "", held)
	}
	age := time.Duration(0)
	if !c.ask {
		age = forever
	}
	pap, late, err := p.f.load(ctx, c.name, age)
	if err == nil {
		err = late
	}
	return pap, notOlder(pap, c, err)
}

// notOlder is err, or that a paper is older than the change that announced it.
func notOlder(pap *paper, c change, err error) error {
	if err == nil && older(pap.rev, c.rev) {
		return fmt.Errorf("packument of %s is revision %.80s, the change %.80s: %w", c.name, pap.rev, c.rev, errStale)
	}
	return err
}

// withoutAttachments drops `_attachments` from a CouchDB document, where old
// registries keep tarballs and new ones stubs of them; every other member keeps
// its bytes.
func withoutAttachments(raw []byte) ([]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.ReadToken(); err != nil {
		return nil, err
	} else if t.Kind() != '{' {
		return nil, errors.New("it is not an object")
	}
	out, found := []byte{'{'}, false
	for dec.PeekKind() != '}' {
		name, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		quoted := bytes.Clone(name)
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if string(quoted) == `"_attachments"` {
			found = true
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, quoted...), ':'), value...)
	}
	if !found {
		return raw, nil
	}
	return append(out, '}'), nil
}

// tryAgain runs the retries that are due and says how long it is to the next
// one, at most forever.
func (f *Follower) tryAgain(ctx context.Context) (next time.Duration, err error) {
	if err := f.take(ctx); err != nil {
		return 0, err
	}
	defer f.yield()
	rows, err := f.ledger.Retries(ctx)
	if err != nil {
		return 0, own(err)
	}
	next = forever
	now := f.now()
	due := make(map[npm.Name]*change)
	for _, r := range rows {
		wait := r.Next.Sub(now)
		if wait <= 0 && due[r.Name] == nil && len(due) < dueAtOnce {
			due[r.Name] = &change{name: r.Name}
		}
		if wait > 0 || due[r.Name] == nil {
			next = min(next, max(0, wait))
			continue
		}
		if c := due[r.Name]; r.Version != "" {
			c.versions = append(c.versions, r.Version)
		} else {
			c.ask = true
			c.rev, c.deleted = strings.CutSuffix(r.Rev, deletedMark)
		}
	}
	if len(due) == 0 {
		return next, nil
	}
	var changes []change
	for _, name := range slices.Sorted(maps.Keys(due)) {
		changes = append(changes, *due[name])
	}
	w, err := f.wanted(ctx)
	if err != nil {
		return 0, err
	}
	if err := f.apply(ctx, changes, nil, w, nil); err != nil {
		return 0, fmt.Errorf("try again: %w", err)
	}
	return next, nil
}
