package mirror

import (
	"context"
	"iter"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// maxPieces bounds the blocks of one file that are counted: a tarball of 1 GiB in the
// chunks of the list's encoder has some 1,030.
const maxPieces = 1 << 18

// using keeps a file of a package from eviction until the function that it returns is
// called, and sees to it that the file counts from then on, and that the package is
// looked at for what it says.
func (m *Mirror) using(ctx context.Context, name npm.Name, file cid.Cid) (done func()) {
	part := m.o.Cached
	switch {
	case part == nil && m.o.HoldsAll: // the walk and each release come to all there is
		return func() {}
	case !part.counts():
		return func() { m.lookOnce(name, file) }
	}
	part.use(ctx, file, m.registry())
	return func() {
		// Before it may be evicted: what is gone must not be announced.
		if m.o.Announce != nil && part.knows(file) {
			m.announce(file)
		}
		if part.done(file, false) {
			return
		}
		if !m.spawn(func() {
			defer part.done(file, true)
			m.arrived(m.life, file)
			m.mend(m.life, file)
			pieces, whole := m.pieces(m.life, file)
			if m.life.Err() != nil {
				return
			}
			if err := part.took(file, pieces, whole); err != nil {
				m.log.Error("a file of the cache is not counted", "cid", file, "error", err)
			} else if whole {
				m.announce(file)
			}
			m.lookAt(name)
		}) {
			part.done(file, true)
		}
	}
}

// lookOnce is lookAt for a file that is in use where none are counted, once a start, if
// it came.
func (m *Mirror) lookOnce(name npm.Name, file cid.Cid) {
	key := string(lookKey) + file.KeyString()
	if _, ok := m.came.get(key); ok {
		return
	}
	m.came.put(key, struct{}{}, int64(len(key))+64)
	m.spawn(func() {
		m.arrived(m.life, file)
		if _, err := m.held(m.life, file); err != nil && m.life.Err() == nil {
			m.came.remove(key)
			return
		}
		m.lookAt(name)
	})
}

// usedAgain notes a use of a file whose bytes are in memory.
func (m *Mirror) usedAgain(ctx context.Context, file cid.Cid) {
	if file.Defined() && m.o.Cached.counts() {
		m.o.Cached.again(ctx, file)
	}
}

// arrived waits for the gateways' fetch of a file to end: a client that has gone does
// not end it.
func (m *Mirror) arrived(ctx context.Context, file cid.Cid) {
	m.carsMu.Lock()
	f := m.cars[file]
	m.carsMu.Unlock()
	for f != nil {
		f.mu.Lock()
		ended, changed := f.ended, f.changed
		f.mu.Unlock()
		if ended {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// mend keeps those blocks of a file that are in memory alone: it was evicted, and is in
// use again. What lies below them would be out of sight else.
func (m *Mirror) mend(ctx context.Context, file cid.Cid) {
	err := m.below(file, func(c cid.Cid) ([]cid.Cid, error) {
		b, err := m.held(ctx, c)
		if err == nil {
			return unixfs.Children(b)
		}
		b, ok := m.blocks.get(c.KeyString())
		if !ok {
			b, ok = m.leaves.get(c.KeyString())
		}
		if !ok {
			return nil, nil
		}
		if err := m.keep(ctx, []blocks.Block{b}); err != nil {
			return nil, err
		}
		return unixfs.Children(b)
	})
	if err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "a file of the cache is not whole on disk", "cid", file, "error", err)
	}
}

// pieces are the blocks of a file that lie on this machine; whole says that none is
// missing.
func (m *Mirror) pieces(ctx context.Context, file cid.Cid) (pieces []piece, whole bool) {
	whole = true
	m.below(file, func(c cid.Cid) ([]cid.Cid, error) {
		b, err := m.held(ctx, c)
		if err != nil {
			whole = false
			return nil, nil
		}
		pieces = append(pieces, piece{c.Hash(), int64(len(b.RawData()))})
		return unixfs.Children(b)
	})
	return pieces, whole
}

// below calls read with each CID below root once, root first, which gives the links.
// It ends with read's first error, and after maxPieces.
func (m *Mirror) below(root cid.Cid, read func(cid.Cid) ([]cid.Cid, error)) error {
	queue, known := []cid.Cid{root}, map[cid.Cid]bool{root: true}
	for n := 0; len(queue) > 0 && n < maxPieces; n++ {
		children, err := read(queue[0])
		if err != nil {
			return err
		}
		queue = queue[1:]
		for _, c := range children {
			if !known[c] {
				known[c] = true
				queue = append(queue, c)
			}
		}
	}
	return nil
}

// ownBlocks are those of a mirror without a node.
type ownBlocks struct{ m *Mirror }

// Evict implements ipfs.Evictor.
func (o ownBlocks) Evict(ctx context.Context, victims iter.Seq[[]cid.Cid]) (c ipfs.Collected, err error) {
	if !o.m.enter() {
		return c, ErrClosed
	}
	defer o.m.leave()
	for some := range victims {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		batch := o.m.db.NewBatch()
		for _, v := range some {
			if err := batch.Delete(append([]byte{blockKey}, v.Hash()...), nil); err != nil {
				return c, err
			}
		}
		if err := batch.Commit(pebble.Sync); err != nil {
			return c, err
		}
		c.Removed += len(some)
	}
	return c, nil
}
