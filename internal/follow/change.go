package follow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// page does what is to be done at once with a page of the feed, in one commit:
// changes are coalesced by package, the last of each counts, those that need
// work come into the queue, and the cursor moves to the page's end (law 1:
// nothing that it passes is unrecorded). Where rows bring documents, those are
// stored; where rows say no more than the ledger knows, nothing is done.
func (f *Follower) page(ctx context.Context, page couch.Page, key, engine string) error {
	w, err := f.wanted(ctx)
	if err != nil {
		return err
	}
	if f.keyFor(w) != key {
		return errSelection
	}
	items, err := f.announced(ctx, page.Changes, w, engine)
	if err != nil {
		return fmt.Errorf("page up to %.80s: %w", page.LastSeq, err)
	}
	if before, _ := f.ledger.Cursor(key); len(items) > 0 || before != page.LastSeq {
		if err := f.store(ctx, items, &ledger.Cursor{Feed: key, Value: page.LastSeq}); err != nil {
			return fmt.Errorf("page up to %.80s: %w", page.LastSeq, err)
		}
	}
	for _, it := range items {
		if it.paper != nil || it.gone != "" {
			f.touch(it.name)
		}
	}
	f.note(func(s *seen) {
		s.Cursor, s.LastSuccess, s.away = page.LastSeq, f.now(), ""
		s.total.rows += uint64(len(page.Changes))
		if newer(page.LastSeq, s.Head) {
			s.Head = page.LastSeq
		}
	})
	return nil
}

// announced are the items of the changes of a page.
func (f *Follower) announced(ctx context.Context, rows []couch.Change, w *wanted, engine string) (items []item, err error) {
	last := make(map[string]int, len(rows))
	for i, row := range rows {
		last[row.ID] = i
	}
	names := make([]npm.Name, 0, len(last))
	at := make([]int, 0, len(last))
	for i, row := range rows {
		if last[row.ID] != i || strings.HasPrefix(row.ID, "_design/") {
			continue
		}
		name, err := npm.ParseName(row.ID)
		if err != nil {
			if len(w.all) > 0 && row.ID != "" {
				items = append(items, item{refused: &ledger.Refusal{
					Name: npm.Name(row.ID), Reason: ReasonName, Detail: detail(err), Time: f.now(),
				}})
			}
			continue
		}
		names, at = append(names, name), append(at, i)
	}
	heads, err := f.ledger.Heads(ctx, names)
	if err != nil {
		return nil, own(err)
	}
	for n, name := range names {
		row, head := rows[at[n]], heads[n]
		if !w.concerns(name, head) {
			continue
		}
		it, err := f.announce(ctx, name, row, head, w, engine)
		if err != nil {
			return nil, err
		}
		items = append(items, it...)
	}
	return items, nil
}

// announce is what one change of a package that concerns us makes.
func (f *Follower) announce(ctx context.Context, name npm.Name, row couch.Change, head ledger.Head, w *wanted, engine string) ([]item, error) {
	own := engine == couch.EngineNPM || engine == couch.EngineCouch // else revisions are not the registry's
	rev := ""
	for _, r := range row.Revs {
		if own && (rev == "" || older(rev, r)) {
			rev = r
		}
	}
	switch {
	case row.Deleted && (!head.Known || head.Deleted) && !head.Waiting:
		return nil, nil // there is nothing to take away
	case row.Deleted && engine == couch.EngineCouch:
		// The database is the registry itself: its word needs no other.
		return []item{f.tombstone(ledger.Retry{Name: name, Rev: rev + deletedMark}, rev, ledger.RemovedDeleted)}, nil
	case row.Deleted:
		rev += deletedMark
	case row.Doc != nil && own: // another ledger's documents carry its own revisions
		return f.brought(ctx, name, row.Doc, rev, w)
	case rev != "" && head.Known && !head.Deleted && !head.Waiting && (rev == head.Rev || older(rev, head.Rev)):
		return nil, nil // it is known
	}
	return []item{{name: name, queue: []ledger.Retry{{Name: name, Rev: rev}}}}, nil
}

// brought are the items of a document that came with its change.
func (f *Follower) brought(ctx context.Context, name npm.Name, doc []byte, rev string, w *wanted) ([]item, error) {
	raw, err := withoutAttachments(doc)
	if err != nil {
		err = fmt.Errorf("document of %s in the feed: %w: %w", name, npm.ErrPackument, err)
	}
	var pap *paper
	if err == nil {
		var held ledger.Package
		if held, err = f.held(ctx, name); err != nil {
			return nil, err
		}
		if rev != "" && rev == held.Rev && held.Document.CID.Defined() && !held.Deleted {
			pap, err = f.mine(ctx, held) // a revision is one document
			if err != nil && !lost(err) {
				return nil, own(err)
			}
		}
		if pap == nil {
			pap, err = f.fresh(name, raw, "", held)
		}
	}
	if stub := (*unpublished)(nil); errors.As(err, &stub) && !older(stub.rev, rev) {
		return []item{f.tombstone(ledger.Retry{Name: name, Rev: rev}, stub.rev, ledger.RemovedUnpublished)}, nil
	}
	if err != nil {
		if ours(ctx, err) {
			return nil, err
		}
		return []item{f.failed(ledger.Retry{Name: name, Rev: rev}, err)}, nil
	}
	queue, err := f.missing(ctx, pap, w.picks(pap.doc, f.now()), false)
	if err != nil {
		return nil, err
	}
	f.parsed.put(pap.ref.CID, pap.doc)
	return f.document(pap, []ledger.Done{{Key: ledger.Key{Name: name}}}, queue), nil
}

// changed returns the paper of a package whose row of the queue says that it
// changed, or was deleted, or is to be asked for. With an error it is what
// serves meanwhile, nil where there is nothing. A paper older than its change
// is an error.
func (f *Follower) changed(ctx context.Context, row ledger.Retry) (*paper, error) {
	pap, late, err := f.load(ctx, row.Name, 0)
	if err != nil {
		return nil, err
	}
	rev := strings.TrimSuffix(row.Rev, deletedMark)
	if late == nil && older(pap.rev, rev) {
		late = fmt.Errorf("packument of %s is revision %.80s, the change %.80s: %w", row.Name, pap.rev, rev, errStale)
	}
	return pap, late
}

// withoutAttachments drops `_attachments` from a CouchDB document, where old
// registries keep tarballs and new ones stubs of them.
func withoutAttachments(raw []byte) ([]byte, error) { return without(raw, "_attachments") }

// without drops a member of a JSON object; every other member keeps its bytes.
func without(raw []byte, member string) ([]byte, error) {
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
		if string(quoted) == `"`+member+`"` {
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
