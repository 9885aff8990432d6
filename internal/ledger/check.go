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
	var got state
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
	for prefix, count := range map[byte]*int{
		rowRefusal: &got.Counts.Refused, rowRetry: &got.Counts.Retrying, rowWant: &got.Counts.Wants,
	} {
		row(prefix, func(keyValue) error { *count++; return nil })
	}
	if ctx.Err() == nil && got != want {
		complain("rows say %+v, the head row says %+v", got, want)
	}
	return errors.Join(wrong...)
}
