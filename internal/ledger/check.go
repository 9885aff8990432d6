package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Check rereads every row and compares them with each other: sequences with
// packages, head with sequences, versions with packages, counts with rows. It
// returns all that is wrong, wrapping ErrCorrupt. Commits wait meanwhile.
func (s *Store) Check(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	want := s.state
	s.mu.Unlock()
	var wrong []error
	complain := func(format string, args ...any) {
		if len(wrong) < 100 {
			wrong = append(wrong, fmt.Errorf(format+": %w", append(args, ErrCorrupt)...))
		}
	}
	got := state{Stamp: want.Stamp, Reasons: make(map[string]int)}
	row := func(prefix byte, each func(keyValue) error) {
		for kv, err := range scan(s.db, []byte{prefix}, nil) {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = each(kv)
			}
			if err != nil {
				wrong = append(wrong, err)
				if ctx.Err() != nil {
					return
				}
			}
		}
	}
	row(rowPackage, func(kv keyValue) error {
		p, err := readPackage(kv)
		if err != nil {
			return err
		}
		if p.Deleted {
			got.Counts.Deleted++
		} else {
			got.Counts.Packages++
			if p.Document.CID.Defined() && p.Held == 0 {
				got.Counts.Known++
			}
		}
		held, err := s.heldVersions(p.Name)
		if err != nil {
			return err
		}
		if held != p.Held {
			complain("package %s holds %d versions, its row says %d", p.Name, held, p.Held)
		}
		entry, err := get(s.db, seqKey(p.Seq))
		if err != nil {
			return err
		}
		if string(entry) != string(encodeSeq(p.Name, p.Deleted)) {
			complain("package %s is at %d, where there is %q", p.Name, p.Seq, entry)
		}
		return nil
	})
	sequences := 0
	row(rowSeq, func(kv keyValue) error {
		c, err := decodeSeq(kv.key, kv.value)
		if err != nil {
			return err
		}
		sequences++
		got.Head = max(got.Head, c.Seq)
		return nil
	})
	if packages := got.Counts.Packages + got.Counts.Deleted; sequences != packages {
		complain("%d packages have %d sequences", packages, sequences)
	}
	owner, held := "", false
	row(rowVersion, func(kv keyValue) error {
		name, _, err := readTerm(kv.key[1:])
		if err != nil {
			return err
		}
		v, err := readVersion(kv)
		if err != nil {
			return err
		}
		if name != owner || !held {
			p, err := get(s.db, packageKey(npm.Name(name)))
			if err != nil {
				return err
			}
			owner, held = name, p != nil
		}
		if !held {
			complain("version %s of no package %s", v.Version.Version, name)
		}
		if !v.Dropped {
			got.Counts.Versions++
			got.Counts.Bytes += v.Size
		}
		return nil
	})
	row(rowRefusal, func(kv keyValue) error {
		r, err := decodeJSON[Refusal](kv.value)
		if err != nil {
			return err
		}
		got.Counts.Refused++
		got.Reasons[r.Reason]++
		return nil
	})
	row(rowRetry, func(kv keyValue) error {
		r, err := readRetry(kv)
		if err != nil {
			return err
		}
		if r.Fresh() {
			got.Counts.Queued++
		} else {
			got.Counts.Retrying++
		}
		due, err := get(s.db, dueKey(r))
		if err == nil && due == nil {
			complain("%s@%s is in the queue and never falls due", r.Name, r.Version)
		}
		return err
	})
	due := 0
	row(rowDue, func(keyValue) error { due++; return nil })
	if queued := got.Counts.Queued + got.Counts.Retrying; due != queued {
		complain("%d rows of the queue fall due %d times", queued, due)
	}
	row(rowFormer, func(kv keyValue) error {
		f, err := readFormer(kv)
		if err != nil {
			return err
		}
		row, err := get(s.db, packageKey(f.Name))
		if err != nil {
			return err
		}
		if row == nil {
			complain("document %s of no package %s", f.CID, f.Name)
			return nil
		}
		p, err := decodePackage(f.Name, row)
		if err == nil && p.Document.CID == f.CID {
			complain("%s is a former document of %s, and the one that it has", f.CID, f.Name)
		}
		return err
	})
	row(rowDropped, func(kv keyValue) error {
		f, err := readDropped(kv)
		if err != nil {
			return err
		}
		row, err := get(s.db, itemKey(rowVersion, f.Name, f.Version))
		if err == nil && row == nil {
			complain("%s@%s was dropped and is not there", f.Name, f.Version)
		}
		return err
	})
	row(rowWant, func(keyValue) error { got.Counts.Wants++; return nil })
	if ctx.Err() == nil && !got.equal(want) {
		complain("rows say %+v, the head row says %+v", got, want)
	}
	return errors.Join(wrong...)
}

// heldVersions counts the versions of a package that are not dropped.
func (s *Store) heldVersions(name npm.Name) (int, error) {
	n := 0
	for kv, err := range scan(s.db, appendTerm([]byte{rowVersion}, string(name)), nil) {
		if err != nil {
			return 0, err
		}
		v, err := readVersion(kv)
		if err != nil {
			return 0, err
		}
		if !v.Dropped {
			n++
		}
	}
	return n, nil
}
