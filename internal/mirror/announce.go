package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
)

func (m *Mirror) announce(cids ...cid.Cid) {
	if m.o.Announce != nil {
		m.o.Announce.Announce(cids...)
	}
}

// registry is what the rows of the cache know this mirror by.
func (m *Mirror) registry() string {
	if m.o.Root.Defined() {
		return m.o.Root.String()
	}
	return m.o.Name.String()
}

// listBlocks are the blocks by which a release is found.
func listBlocks(r index.Release) []cid.Cid {
	return []cid.Cid{r.Root, r.List.Root, r.List.Overflow}
}

// announceHeld announces the list that is held, and the files of this registry that are
// in the cache and whole.
func (m *Mirror) announceHeld(ctx context.Context) {
	if m.o.Announce == nil {
		return
	}
	if h := m.head.Load(); h != nil {
		m.announce(listBlocks(h.Release)...)
	}
	if !m.o.Cached.counts() {
		return
	}
	if err := m.o.Cached.of(ctx, m.registry(), m.announce); err != nil && ctx.Err() == nil {
		m.log.ErrorContext(ctx, "files of the cache are not announced", "error", err)
	}
}

// announceList announces the list that is served now in the place of the one before.
func (m *Mirror) announceList(ctx context.Context, before *head, now index.Release) {
	if m.o.Announce == nil {
		return
	}
	if before != nil && !before.Release.Root.Equals(now.Root) {
		if err := m.o.Announce.Withdraw(listBlocks(before.Release)...); err != nil {
			m.log.WarnContext(ctx, "an older release is still announced", "release", before.Release.Number, "error", err)
		}
	}
	m.announce(listBlocks(now)...)
}

// ownRow begins the rows of a file's registries, which each end with one. By them a
// later run announces what a registry has, without what a private one has beside it.
func ownRow(key string) []byte { return append([]byte{ownerSpace}, key...) }

// of gives the files that a registry has here, and that are whole.
func (p *Part) of(ctx context.Context, registry string, give func(...cid.Cid)) error {
	label := ownRow(p.label + "\x00")
	for row, err := range p.c.rows(p.c.db, label, false) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		rest := bytes.TrimPrefix(row, label)
		n, file, err := cid.CidFromBytes(rest)
		if err != nil {
			return fmt.Errorf("%w: whose a file of the cache is: %w", ErrState, err)
		}
		if string(rest[n:]) == registry && p.knows(file) {
			give(file)
		}
	}
	return nil
}

// disown strikes whose a file was.
func (c *Cache) disown(batch *pebble.Batch, key string) error {
	var errs []error
	for row, err := range c.rows(c.db, ownRow(key), false) {
		if err == nil {
			err = batch.Delete(row, nil)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
