package follow

import (
	"context"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// missing are queue rows for those versions of a package that are not held, and
// with check for those that the node lost. What was refused is left alone while
// upstream says the same of it.
func (f *Follower) missing(ctx context.Context, pap *paper, versions []string, check bool) ([]ledger.Retry, error) {
	refusals, err := f.refusals(ctx, pap.name)
	if err != nil {
		return nil, err
	}
	var rows []ledger.Retry
	var waiting map[string]ledger.Retry
	for _, version := range versions {
		if held := pap.holds(version); held != nil {
			if !check {
				continue
			}
			ok, err := f.holds(ctx, pap.name, held)
			if err != nil {
				return nil, err
			}
			if ok {
				continue
			}
		}
		if r, ok := refusals[version]; ok && pap.leaveAlone(version, r) {
			continue
		}
		if waiting == nil {
			if waiting, err = f.waiting(ctx, pap.name); err != nil {
				return nil, err
			}
		}
		row := ledger.Retry{Name: pap.name, Version: version, Next: f.now()}
		if w, ok := waiting[version]; ok {
			if row = w; !check || !w.Next.After(f.now()) {
				continue
			}
			row.Next = f.now()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// waiting are the queue's rows of a package by version, "" its own.
func (f *Follower) waiting(ctx context.Context, name npm.Name) (map[string]ledger.Retry, error) {
	rows, err := f.ledger.Queue(ctx, name)
	if err != nil {
		return nil, own(err)
	}
	byVersion := make(map[string]ledger.Retry, len(rows))
	for _, row := range rows {
		byVersion[row.Version] = row
	}
	return byVersion, nil
}

// holds reads back a version from the node and reports whether it is whole.
func (f *Follower) holds(ctx context.Context, name npm.Name, v *ledger.Version) (bool, error) {
	err := f.whole(ctx, v.CID)
	if err != nil && !lost(err) {
		return false, own(err)
	}
	if err != nil {
		f.log.ErrorContext(ctx, "a tarball is missing or corrupt in the node", "package", name, "version", v.Version, "cid", v.CID, "err", err)
	}
	return err == nil, nil
}

// refusals are the dead letters of a package by version, "" its own.
func (f *Follower) refusals(ctx context.Context, name npm.Name) (map[string]ledger.Refusal, error) {
	rows, err := f.ledger.Refusals(ctx, name)
	if err != nil {
		return nil, own(err)
	}
	byVersion := make(map[string]ledger.Refusal, len(rows))
	for _, row := range rows {
		byVersion[row.Version] = row
	}
	return byVersion, nil
}
