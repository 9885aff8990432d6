// Package couchtest is a source of couch.Handler in memory. It knows nothing of
// HTTP. Only tests, and commands that serve tests, import it.
package couchtest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/registry-mirror/registry-mirror/internal/couch"
)

// Source is a couch.Source, and a Listing and Backward. Its documents are given
// out by Documents.
type Source struct {
	id string

	mu    sync.Mutex
	head  uint64
	rows  []couch.Row // in order of Seq
	moved chan struct{}
	err   error // of Wait
}

// New makes an empty source of that identity.
func New(identity string) *Source {
	return &Source{id: identity, moved: make(chan struct{})}
}

// Put gives a document a new revision and a new sequence.
func (s *Source) Put(id string) couch.Row { return s.put(id, false) }

// Delete deletes a document.
func (s *Source) Delete(id string) couch.Row { return s.put(id, true) }

func (s *Source) put(id string, deleted bool) couch.Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head++
	row := couch.Row{Seq: s.head, ID: id, Rev: fmt.Sprintf("%d-abc", s.head), Deleted: deleted}
	s.rows = slices.DeleteFunc(s.rows, func(r couch.Row) bool { return r.ID == id })
	s.rows = append(s.rows, row)
	s.move()
	return row
}

// Close ends every Wait.
func (s *Source) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.New("the source is closed")
	s.move()
}

// move wakes whoever waits. mu is held.
func (s *Source) move() {
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *Source) Identity() string { return s.id }

func (s *Source) Head() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

func (s *Source) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live())
}

// live returns the rows that are not deleted by id. mu is held.
func (s *Source) live() []couch.Row {
	rows := slices.DeleteFunc(slices.Clone(s.rows), func(r couch.Row) bool { return r.Deleted })
	slices.SortFunc(rows, func(a, b couch.Row) int { return strings.Compare(a.ID, b.ID) })
	return rows
}

func (s *Source) Changes(_ context.Context, since uint64, limit int) ([]couch.Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.search(since + 1)
	return slices.Clone(s.rows[i:min(i+limit, len(s.rows))]), nil
}

func (s *Source) Before(_ context.Context, seq uint64, limit int) ([]couch.Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.search(seq)
	rows := slices.Clone(s.rows[max(0, i-limit):i])
	slices.Reverse(rows)
	return rows, nil
}

// search returns the index of the first row from seq on. mu is held.
func (s *Source) search(seq uint64) int {
	i, _ := slices.BinarySearchFunc(s.rows, seq, func(r couch.Row, seq uint64) int { return cmp.Compare(r.Seq, seq) })
	return i
}

func (s *Source) Wait(ctx context.Context, since uint64) error {
	for {
		s.mu.Lock()
		head, moved, err := s.head, s.moved, s.err
		s.mu.Unlock()
		if head > since || err != nil {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Source) List(_ context.Context, from string, descending bool, limit int) ([]couch.Row, error) {
	s.mu.Lock()
	rows := s.live()
	s.mu.Unlock()
	if descending {
		slices.Reverse(rows)
	}
	rows = slices.DeleteFunc(rows, func(r couch.Row) bool {
		return from != "" && (!descending && r.ID < from || descending && r.ID > from)
	})
	return rows[:min(limit, len(rows))], nil
}

func (s *Source) Find(_ context.Context, id string) (couch.Row, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range s.rows {
		if row.ID == id {
			return row, true, nil
		}
	}
	return couch.Row{}, false, nil
}

// Documents is a Source with documents.
type Documents struct{ *Source }

func (d Documents) Document(ctx context.Context, id string) (json.RawMessage, error) {
	row, ok, err := d.Find(ctx, id)
	if !ok || row.Deleted {
		return nil, err
	}
	return json.Marshal(map[string]string{"_id": id, "_rev": row.Rev})
}
