package mirror

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// trimSoon has run look at the bound.
func (c *Cache) trimSoon() {
	select {
	case c.trims <- struct{}{}:
	default: // it is about to
	}
}

// run evicts until Close.
func (c *Cache) run() {
	for {
		select {
		case <-c.life.Done():
			return
		case <-c.trims:
		}
		if err := c.trim(c.life); err != nil && c.life.Err() == nil {
			if !errors.Is(err, ipfs.ErrCollecting) {
				c.o.Log.ErrorContext(c.life, "nothing was evicted", "error", err)
			}
			time.AfterFunc(evictAgain, c.trimSoon)
		}
	}
}

// trim evicts files until the bound holds, or none is left that may go.
func (c *Cache) trim(ctx context.Context) error {
	c.mu.Lock()
	held := c.held > 0
	c.mu.Unlock()
	if c.o.Bound <= 0 || held {
		return nil
	}
	victims, err := c.victims()
	if err != nil {
		return err
	}
	for part, files := range victims {
		if err := c.recount(ctx, part, files); err != nil {
			return err
		}
		var failed error
		_, err := part.from.Evict(ctx, c.evicting(files, &failed))
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
	return nil
}

// recount looks for the blocks of those of some files that came only in part, or
// were coming in a crash.
func (c *Cache) recount(ctx context.Context, part *Part, files []victim) error {
	for _, v := range files {
		key := v.key
		c.mu.Lock()
		s, ok, err := c.row(key)
		busy, look := c.inUse[key] > 0, part.look
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if !ok || s.known || busy || look == nil {
			continue
		}
		_, raw, _ := strings.Cut(key, "\x00")
		file, err := cid.Cast([]byte(raw))
		if err != nil {
			return fmt.Errorf("%w: a file of the cache: %w", ErrState, err)
		}
		pieces, whole := look(ctx, file)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := part.took(file, pieces, whole); err != nil {
			return err
		}
	}
	return nil
}

// recover is recount of all files, for a crash may have come while some did.
func (c *Cache) recover(ctx context.Context) error {
	unknown := map[*Part][]victim{}
	for row, err := range c.rows(c.db, []byte{fileSpace}, false) {
		if err != nil {
			return err
		}
		key := string(row[1:])
		s, ok, err := c.row(key)
		if err != nil {
			return err
		}
		if part := c.partOf(key); ok && !s.known && part != nil {
			unknown[part] = append(unknown[part], victim{key, s.used})
		}
	}
	for part, files := range unknown {
		if err := c.recount(ctx, part, files); err != nil {
			return err
		}
	}
	c.trimSoon()
	return nil
}

// victim is a file that is to go, if it was not used since.
type victim struct {
	key  string
	used int64
}

// partOf is the part in which a file lies, nil where none is open.
func (c *Cache) partOf(key string) *Part {
	label, _, _ := strings.Cut(key, "\x00")
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parts[label]
}

// stays says whether a file must not go now. It needs mu.
func (c *Cache) stays(key string) bool {
	return c.held > 0 || c.inUse[key] > 0 || c.pinned[key] > 0
}

// hold keeps all files from eviction until letGo is called, which is never nil: the
// bound is soft. It waits for those that are on their way out.
func (c *Cache) hold(ctx context.Context) (letGo func(), err error) {
	c.mu.Lock()
	c.held++
	going := slices.Collect(maps.Values(c.going))
	c.mu.Unlock()
	for _, gone := range going {
		select {
		case <-gone:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return func() {
		c.mu.Lock()
		c.held--
		c.mu.Unlock()
		c.trimSoon()
	}, err
}

// victims are the files that are to go, by part and the least recently used first.
// Nobody waits for it: it is only a proposal, which leave and strike hold against
// what is then.
func (c *Cache) victims() (map[*Part][]victim, error) {
	c.mu.Lock()
	size := c.size
	if size <= c.o.Bound {
		c.over = false
	}
	c.mu.Unlock()
	if size <= c.o.Bound {
		return nil, nil
	}
	victims := map[*Part][]victim{}
	trial := c.db.NewIndexedBatch() // never committed
	defer trial.Close()
	for row, err := range c.rows(c.db, []byte{timeSpace}, false) {
		if err != nil {
			return nil, err
		}
		if len(row) < 9 {
			return nil, fmt.Errorf("%w: a time of the cache", ErrState)
		}
		v := victim{string(row[9:]), int64(binary.BigEndian.Uint64(row[1:9]))}
		part := c.partOf(v.key)
		if !part.counts() {
			continue
		}
		c.mu.Lock()
		stays := c.stays(v.key)
		c.mu.Unlock()
		if stays {
			continue
		}
		if size, _, err = c.setPieces(trial, v.key, size, nil); err != nil {
			return nil, err
		}
		if victims[part] = append(victims[part], v); size <= c.o.Bound-c.o.Bound/16 {
			return victims, nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if size > c.o.Bound && !c.over {
		c.over = true
		c.o.Log.Warn("the cache is above its bound with what is pinned, in use or of a registry that is not served", "bytes", size, "bound", c.o.Bound)
	}
	return victims, nil
}

// evicting yields the blocks of files, some files at a time, and strikes the files'
// rows once these are gone.
func (c *Cache) evicting(files []victim, failed *error) iter.Seq[[]cid.Cid] {
	return func(yield func([]cid.Cid) bool) {
		for some := range slices.Chunk(files, evictAtOnce) {
			keys, blocks, gone, err := c.leave(some)
			if err == nil && len(keys) > 0 {
				more := yield(blocks)
				if more {
					err = c.step("evicted")
				}
				if more && err == nil {
					if err = c.strike(keys); err == nil {
						err = c.db.LogData(nil, pebble.Sync) // or what is gone would count after a crash
					}
				}
				c.mu.Lock()
				for _, key := range keys {
					delete(c.going, key)
				}
				c.mu.Unlock()
				close(gone)
				if more && err == nil {
					c.tell(keys)
				}
				if !more {
					return
				}
			}
			if err != nil {
				*failed = err
				return
			}
		}
	}
}

// tell tells the mirrors of files whose rows are struck.
func (c *Cache) tell(keys []string) {
	for _, key := range keys {
		label, raw, _ := strings.Cut(key, "\x00")
		file, err := cid.Cast([]byte(raw))
		if err != nil {
			continue // nobody knows it by that name
		}
		c.mu.Lock()
		var gone []func(cid.Cid)
		if part := c.parts[label]; part != nil {
			gone = slices.Clone(part.gone)
		}
		c.mu.Unlock()
		for _, f := range gone {
			f(file)
		}
	}
}

// leave begins to evict those of some files that may still go: nobody begins to use
// them until gone is closed. blocks are those that no other file has.
func (c *Cache) leave(files []victim) (keys []string, blocks []cid.Cid, gone chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	trial := c.db.NewIndexedBatch()
	defer trial.Close()
	gone = make(chan struct{})
	for _, v := range files {
		s, ok, err := c.row(v.key)
		if err != nil {
			return nil, nil, nil, err
		}
		if !ok || s.used != v.used || c.stays(v.key) {
			continue
		}
		_, pieces, err := c.setPieces(trial, v.key, 0, nil)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, p := range pieces {
			blocks = append(blocks, cid.NewCidV1(cid.Raw, p.hash))
		}
		keys = append(keys, v.key)
	}
	for _, key := range keys {
		c.going[key] = gone
	}
	return keys, blocks, gone, nil
}

// strike strikes files whose blocks are gone.
func (c *Cache) strike(keys []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.db.NewIndexedBatch()
	defer batch.Close()
	size := c.size
	for _, key := range keys {
		s, ok, err := c.row(key)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if size, _, err = c.setPieces(batch, key, size, nil); err != nil {
			return err
		}
		if err := errors.Join(batch.Delete(timeKey(s.used, key), nil), batch.Delete(append([]byte{fileSpace}, key...), nil), c.disown(batch, key)); err != nil {
			return err
		}
		delete(c.seen, key)
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	c.size = size
	return nil
}
