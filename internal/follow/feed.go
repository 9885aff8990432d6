package follow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
)

const (
	// rewind is how far before the head a new selection begins to read npm's
	// feed, in sequences: packuments lag behind their changes, so the one that
	// Fill is given may be older than the newest change.
	rewind = 1000
	// askTime bounds the question what a feed is.
	askTime = 30 * time.Second
	// patience is how long it is at the most until somebody sees that the feed
	// is to be read under another cursor.
	patience = 15 * time.Second
)

// allMark ends the cursor's key where every package is wanted.
const allMark = "#all"

// errSelection ends a reading of the feed whose cursor is no longer the right
// one, because every package is wanted from now on, or no more.
var errSelection = errors.New("what is wanted has changed")

// Run fills the selection and then keeps it up to date until ctx ends: from the
// feed, else by filling again every RefreshAfter. With once it returns nil when
// the feed was read to its head and nothing is due. A node that is away, or a
// full disk, is waited for, but not with once. Any other error than ctx's is our
// own fault, or that the feed was reset or, with once, away; the cursor then
// stays behind all that is not recorded.
func (f *Follower) Run(ctx context.Context, once bool) error {
	changed := f.ledger.WantsChanged()
	var engine string
	if f.feed != nil && once {
		// Before the selection is resolved: what changes while that runs is
		// then still to be read.
		var err error
		if engine, err = f.prepare(ctx, true); err != nil {
			return fmt.Errorf("follow: %w", err)
		}
	}
	if once {
		err := f.working(ctx, func(ctx context.Context) error {
			if err := f.fill(ctx); err != nil {
				return fmt.Errorf("fill: %w", err)
			}
			if f.feed == nil {
				return nil
			}
			return f.read(ctx, engine, false)
		})
		if err != nil {
			return fmt.Errorf("follow: %w", err)
		}
		f.note(func(s *seen) { s.LastSuccess = f.now() })
		return nil
	}
	if err := f.checkProfile(ctx); err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	never := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.persist(ctx, func() error { return f.drain(ctx, never) }) })
	fill := func() error {
		err := f.persist(ctx, func() error { return f.fill(ctx) })
		if err == nil {
			f.note(func(s *seen) { s.LastSuccess = f.now() })
		}
		return err
	}
	end := func(err error) error {
		g.Go(func() error { return err }) // ends the drain
		return g.Wait()
	}
	if f.feed != nil {
		// As with once; but a feed that is away keeps nobody from what upstream
		// gives. What changed meanwhile is resolved once it is back.
		var err error
		engine, err = f.prepare(ctx, true)
		if err != nil && ctx.Err() == nil && !errors.Is(err, couch.ErrReset) && !errors.Is(err, couch.ErrRefused) && !errors.Is(err, errOwn) {
			f.feedAway(err)
			if err := fill(); err != nil {
				return end(fmt.Errorf("fill: %w", err))
			}
			engine, err = f.prepare(ctx, false)
		}
		if err != nil {
			return end(fmt.Errorf("follow: %w", err))
		}
	}
	began := f.now()
	if err := fill(); err != nil {
		return end(fmt.Errorf("fill: %w", err))
	}
	if f.feed == nil {
		g.Go(func() error { return f.tend(ctx, changed, began, f.refresh, nil) })
		return g.Wait()
	}
	restart := make(chan struct{}, 1)
	g.Go(func() error { return f.tend(ctx, changed, began, 0, restart) })
	g.Go(func() error {
		for {
			err := f.persist(ctx, func() error { return f.readUntil(ctx, engine, restart) })
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				err = errors.New("the feed ended") // it never should
			}
			if !errors.Is(err, errSelection) && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("follow: %w", err)
			}
			if engine, err = f.prepare(ctx, false); err != nil {
				return fmt.Errorf("follow: %w", err)
			}
		}
	})
	return g.Wait()
}

// readUntil reads the feed until restart tells it to end.
func (f *Follower) readUntil(ctx context.Context, engine string, restart <-chan struct{}) error {
	reading, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-restart:
			stop()
		case <-reading.Done():
		}
	}()
	err := f.read(reading, engine, true)
	stop()
	<-ended
	return err
}

// tend resolves the selection again until ctx ends: when it changes, when Wake
// asks for it, and every refresh (0: never). filled is when that was last begun.
func (f *Follower) tend(ctx context.Context, changed <-chan struct{}, filled time.Time, refresh time.Duration, restart chan<- struct{}) error {
	for {
		wait := patience
		if refresh > 0 {
			wait = min(wait, max(0, refresh-f.now().Sub(filled)))
		}
		timer := time.NewTimer(max(wait, 10*time.Millisecond))
		fill := false
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-changed:
			fill = true
		case <-f.wake:
			fill = true
		case <-timer.C:
			fill = refresh > 0 && f.now().Sub(filled) >= refresh
		}
		timer.Stop()
		if restart != nil {
			if err := f.checkKey(ctx, restart); err != nil {
				return err
			}
		}
		if !fill {
			continue
		}
		changed, filled = f.ledger.WantsChanged(), f.now() // before they are read
		if err := f.persist(ctx, func() error { return f.fill(ctx) }); err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		f.note(func(s *seen) { s.LastSuccess = f.now() })
	}
}

// checkKey tells restart when the feed is being read under another cursor than
// the selection now asks for. A page would find that too, but an idle feed has
// none.
func (f *Follower) checkKey(ctx context.Context, restart chan<- struct{}) error {
	key, err := f.cursorKey(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	reading := f.state.key
	f.mu.Unlock()
	if reading == "" || reading == key {
		return nil
	}
	select {
	case restart <- struct{}{}:
	default:
	}
	return nil
}

// cursorKey is the feed's name in the ledger. A feed that was followed for some
// packages from its head on has not been read for the others: once every
// package is wanted, or all of a scope, the cursor is another, and begins at the
// beginning.
func (f *Follower) cursorKey(ctx context.Context) (string, error) {
	w, err := f.wanted(ctx)
	if err != nil {
		return "", err
	}
	return f.keyFor(w), nil
}

func (f *Follower) keyFor(w *wanted) string {
	switch {
	case len(w.all) > 0:
		return f.feedName + allMark
	case len(w.scopes) > 0:
		return f.feedName + "#" + strings.Join(slices.Sorted(maps.Keys(w.scopes)), ",")
	}
	return f.feedName
}

// prepare asks the feed what it is and, where it was never read, says from
// where it will be. A feed that is away is waited for, but not with once.
func (f *Follower) prepare(ctx context.Context, once bool) (engine string, err error) {
	ask := func() (couch.ServerInfo, error) {
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		return f.feed.Server(ctx)
	}
	info, err := ask()
	if err != nil && !once {
		f.log.WarnContext(ctx, "the feed is away", "feed", f.feedName, "err", err)
		f.feedAway(err)
		slow := backoff.NewExponentialBackOff()
		slow.MaxInterval = time.Minute
		info, err = backoff.Retry(ctx, ask, backoff.WithBackOff(slow), backoff.WithMaxElapsedTime(0))
	}
	if err != nil {
		return "", fmt.Errorf("ask feed %s: %w", f.feedName, err)
	}
	f.note(func(s *seen) { s.Head, s.away = info.UpdateSeq, "" })
	key, err := f.cursorKey(ctx)
	if err != nil {
		return "", err
	}
	if _, ok := f.ledger.Cursor(key); ok || info.Engine != couch.EngineNPM {
		return info.Engine, nil
	}
	if key != f.feedName {
		// Every package of a long history: its listing says as much in fewer
		// rows, and none that is superseded or gone.
		_, err := f.Resync(ctx, func(n int) { f.progress("names", n, max(n, info.DocCount), 0) })
		return info.Engine, err
	}
	// For some packages only, Fill brings all that lies before.
	start, err := beforeHead(info)
	if err != nil {
		return "", err
	}
	if _, err := f.ledger.Commit(ctx, ledger.Batch{Cursor: &ledger.Cursor{Feed: key, Value: start}}); err != nil {
		return "", own(err)
	}
	return info.Engine, nil
}

// beforeHead is where to begin to read a feed all of whose past is dealt with
// otherwise. Packuments lag behind their changes, so one that was asked for a
// moment ago may be older than the newest change: where sequences are numbers,
// it is a little before the head.
func beforeHead(info couch.ServerInfo) (string, error) {
	if info.Engine != couch.EngineNPM {
		return info.UpdateSeq, nil
	}
	head, err := strconv.ParseUint(info.UpdateSeq, 10, 64)
	if err != nil {
		return "", fmt.Errorf("the feed's head %.40q is not a number", info.UpdateSeq)
	}
	return strconv.FormatUint(head-min(head, rewind), 10), nil
}

// read follows the feed from the ledger's cursor: to its head, or with follow
// until ctx ends.
func (f *Follower) read(ctx context.Context, engine string, follow bool) error {
	key, err := f.cursorKey(ctx)
	if err != nil {
		return err
	}
	since, ok := f.ledger.Cursor(key)
	if !ok {
		since = "0"
	}
	f.note(func(s *seen) { s.Cursor, s.Engine, s.key = since, engine, key })
	away := false // which is said once
	for page, err := range f.feed.Changes(ctx, since, follow) {
		if err != nil {
			err = fmt.Errorf("read feed %s: %w", f.feedName, err)
			if follow && ctx.Err() == nil && !errors.Is(err, couch.ErrReset) && !errors.Is(err, couch.ErrRefused) {
				if !away {
					f.log.WarnContext(ctx, "the feed is away, asking it again", "err", err)
				}
				away = true
				f.feedAway(err)
				continue // the same page comes again
			}
			return err
		}
		away = false
		if err := f.room(ctx); err != nil {
			return err
		}
		if err := f.page(ctx, page, key, engine); err != nil {
			return err
		}
	}
	return ctx.Err()
}
