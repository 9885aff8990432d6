package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Retries lists those rows of the queue that were tried in vain, by name and
// version, due or not. Those that were not tried yet may be millions.
func (s *Store) Retries(ctx context.Context) ([]Retry, error) {
	return s.queue(ctx, []byte{rowRetry}, func(r Retry) bool { return !r.Fresh() })
}

// Queue lists the queue's rows of one package: its own first, if there is one,
// then those of its versions.
func (s *Store) Queue(ctx context.Context, name npm.Name) ([]Retry, error) {
	return s.queue(ctx, appendTerm([]byte{rowRetry}, string(name)), func(Retry) bool { return true })
}

func (s *Store) queue(ctx context.Context, prefix []byte, among func(Retry) bool) ([]Retry, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	all := []Retry{}
	for kv, err := range scan(s.db, prefix, nil) {
		var r Retry
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			r, err = readRetry(kv)
		}
		if err != nil {
			return nil, fmt.Errorf("list the queue: %w", err)
		}
		if among(r) {
			all = append(all, r)
		}
	}
	return all, nil
}

func readRetry(kv keyValue) (Retry, error) {
	name, rest, err := readTerm(kv.key[1:])
	if err != nil {
		return Retry{}, err
	}
	version, rest, err := readTerm(rest)
	if err != nil || len(rest) != 0 {
		return Retry{}, fmt.Errorf("queue row %q: %w", kv.key, ErrCorrupt)
	}
	return decodeRetry(Key{npm.Name(name), version}, kv.value)
}

// Queued is closed when a row comes into the queue, or the ledger closes. Taken
// before the queue is read, it misses nothing.
func (s *Store) Queued() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued
}

// Due is a place in the queue, in the order in which rows fall due. The zero
// value is its beginning.
type Due struct{ after []byte }

// Due lists the items that are due at now, at most limit, from a place on, and
// says where to go on; at the end, when the next one will be due, zero where
// there is none.
func (s *Store) Due(ctx context.Context, from Due, now time.Time, limit int) (items []Key, next Due, later time.Time, err error) {
	if err := s.enter(); err != nil {
		return nil, from, time.Time{}, err
	}
	defer s.leave()
	end := dueTime(now)
	for kv, err := range scan(s.db, []byte{rowDue}, from.after) {
		var k Key
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			k, err = readDue(kv.key)
		}
		if err != nil {
			return nil, from, time.Time{}, fmt.Errorf("read the queue: %w", err)
		}
		if at := binary.BigEndian.Uint64(kv.key[1:]); at > end {
			return items, from, time.Unix(0, int64(at)), nil
		}
		if len(items) == limit {
			return items, from, time.Time{}, nil
		}
		from = Due{append(slices.Clone(kv.key), 0)}
		items = append(items, k)
	}
	return items, from, time.Time{}, nil
}

// Refusals lists the dead letters of one package: its own first, if there is
// one, then those of its versions.
func (s *Store) Refusals(ctx context.Context, name npm.Name) ([]Refusal, error) {
	return listPrefix[Refusal](ctx, s, appendTerm([]byte{rowRefusal}, shorten(string(name))))
}

// Head is what Heads says of a package.
type Head struct {
	Rev     string // upstream's revision
	Known   bool   // the ledger has a document of it, or had: Deleted
	Deleted bool
	// Waiting is set where the package as a whole is in the queue or on the
	// dead-letter list.
	Waiting bool
}

// Heads looks many packages up at once and returns them in the order of names.
// It is for pages of a feed, most of whose rows need no work.
func (s *Store) Heads(ctx context.Context, names []npm.Name) ([]Head, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	order := make([]int, len(names))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(string(names[a]), string(names[b])) })
	heads := make([]Head, len(names))
	snap := s.db.NewSnapshot()
	defer snap.Close()
	var lists []byte
	for _, list := range []byte{rowRetry, rowRefusal} {
		if !s.empty(list) {
			lists = append(lists, list)
		}
	}
	var key []byte
	for n, i := range order {
		if n%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		h := &heads[i]
		key = appendTerm(append(key[:0], rowPackage), string(names[i]))
		row, closer, err := snap.Get(key)
		switch {
		case err == nil:
			p, err := decodePackage(names[i], row)
			if err = errors.Join(err, closer.Close()); err != nil {
				return nil, err
			}
			h.Rev, h.Known, h.Deleted = p.Rev, p.Document.CID.Defined(), p.Deleted
		case !errors.Is(err, pebble.ErrNotFound):
			return nil, fmt.Errorf("read package %s: %w", names[i], located(err))
		}
		for _, list := range lists {
			key = appendTerm(appendTerm(append(key[:0], list), string(names[i])), "")
			if _, closer, err = snap.Get(key); err == nil {
				h.Waiting, err = true, closer.Close()
			}
			if err != nil && !errors.Is(err, pebble.ErrNotFound) {
				return nil, fmt.Errorf("read package %s: %w", names[i], located(err))
			}
		}
	}
	return heads, nil
}

// empty reports whether a list had no rows after the last Commit.
func (s *Store) empty(list byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if list == rowRetry {
		return s.state.Counts.Queued+s.state.Counts.Retrying == 0
	}
	return s.state.Counts.Refused == 0
}

// Reasons are how many refusals there are of each reason.
func (s *Store) Reasons() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Reasons // never changed in place
}

// Again says which items TryAgain tries again: those of Names, all versions of a
// package among them, or those refused for Reason, or both at once: of Names
// those refused for Reason. Neither is everything.
type Again struct {
	Names  []Key  `json:"names,omitempty"` // Version "" is the package and all its versions
	Reason string `json:"reason,omitempty"`
}

// TryAgain makes items of the queue due now, with all their attempts before
// them, and moves items of the dead-letter list back into the queue; removals
// that the breaker held are approved by it. It returns how many. It is durable,
// a part of it where it fails.
func (s *Store) TryAgain(ctx context.Context, which Again) (int, error) {
	matches := func(name npm.Name, version string) bool {
		return len(which.Names) == 0 || slices.ContainsFunc(which.Names, func(k Key) bool {
			return k.Name == name && (k.Version == "" || k.Version == version)
		})
	}
	n := 0
	var b Batch
	flush := func(atLeast int) error {
		if len(b.Retries) < atLeast {
			return nil
		}
		_, err := s.Commit(ctx, b)
		n += len(b.Retries)
		b = Batch{}
		return err
	}
	for r, err := range s.refusals(ctx) {
		if err != nil {
			return n, err
		}
		if !matches(r.Name, r.Version) || which.Reason != "" && which.Reason != r.Reason {
			continue
		}
		if _, err := npm.ParseName(string(r.Name)); err != nil {
			continue // no name at all: there is nothing to ask for
		}
		b.Pardoned = append(b.Pardoned, Key{r.Name, r.Version})
		again := Retry{Name: r.Name, Version: r.Version, Detail: "asked for again, refused before: " + r.Reason}
		if r.Reason == ReasonUnresolved {
			again.Version = "" // its version is a range: the package is asked for
		}
		if r.Reason == ReasonMassRemoval {
			again.Rev, again.Approved = r.Seen, true
		}
		b.Retries = append(b.Retries, again)
		if err := flush(1000); err != nil {
			return n, err
		}
	}
	if which.Reason == "" {
		rows, err := s.Retries(ctx)
		if err != nil {
			return n, err
		}
		for _, r := range rows {
			if !matches(r.Name, r.Version) {
				continue
			}
			r.Attempts, r.Next = 0, time.Time{}
			b.Retries = append(b.Retries, r)
			if err := flush(1000); err != nil {
				return n, err
			}
		}
	}
	return n, flush(1)
}

// refusals yields the dead-letter list as it was when the iteration began.
func (s *Store) refusals(ctx context.Context) iter.Seq2[Refusal, error] {
	return func(yield func(Refusal, error) bool) {
		if err := s.enter(); err != nil {
			yield(Refusal{}, err)
			return
		}
		defer s.leave()
		for kv, err := range scan(s.db, []byte{rowRefusal}, nil) {
			var r Refusal
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				r, err = decodeJSON[Refusal](kv.value)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}
