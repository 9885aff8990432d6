package follow

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	// patience is the longest that due retries wait for the next look.
	patience = 15 * time.Second
	// dueAtOnce bounds the packages that are tried again in one pass, so that
	// pages take their turn.
	dueAtOnce = 1000
)

// allMark ends the cursor's key where every package is wanted.
const allMark = "#all"

// errSelection ends a reading of the feed whose cursor is no longer the right
// one, because every package is wanted from now on, or no more.
var errSelection = errors.New("what is wanted has changed")

// Run fills the selection and then keeps it up to date until ctx ends: from the
// feed, else by filling again every RefreshAfter. With once it returns nil at
// the feed's head. Any other error than ctx's is our own fault, or that the
// feed was reset or, with once, away; the cursor then stays behind all work
// that is not recorded.
func (f *Follower) Run(ctx context.Context, once bool) error {
	changed := f.ledger.WantsChanged()
	var engine string
	if f.feed != nil {
		// Before Fill: what changes while it runs is then still to be read.
		var err error
		if engine, err = f.prepare(ctx, once); err != nil {
			return fmt.Errorf("follow: %w", err)
		}
	}
	began := f.now()
	if err := f.Fill(ctx); err != nil {
		return err
	}
	if f.feed == nil {
		if once {
			_, err := f.tryAgain(ctx)
			return err
		}
		return f.tend(ctx, changed, began, f.refresh, nil)
	}
	if once {
		if err := f.read(ctx, engine, false); err != nil {
			return fmt.Errorf("follow: %w", err)
		}
		_, err := f.tryAgain(ctx)
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	restart := make(chan struct{}, 1)
	g.Go(func() error { return f.tend(ctx, changed, began, 0, restart) })
	g.Go(func() error {
		for {
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

// tend does what is due beside the feed until ctx ends: a Fill when the
// selection changes or Wake asks for one, or every refresh (0: never), and the
// retries whose time has come. filled is when the last Fill began.
func (f *Follower) tend(ctx context.Context, changed <-chan struct{}, filled time.Time, refresh time.Duration, restart chan<- struct{}) error {
	for {
		due, err := f.tryAgain(ctx)
		if err == nil && restart != nil {
			err = f.checkKey(ctx, restart)
		}
		if err != nil {
			return err
		}
		wait := min(due, patience)
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
		if !fill {
			continue
		}
		changed, filled = f.ledger.WantsChanged(), f.now() // before Fill reads them
		if err := f.Fill(ctx); err != nil {
			return err
		}
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
// package is wanted, the cursor is another, and begins at the beginning.
func (f *Follower) cursorKey(ctx context.Context) (string, error) {
	w, err := f.wanted(ctx)
	if err != nil {
		return "", err
	}
	return f.keyFor(w), nil
}

func (f *Follower) keyFor(w wanted) string {
	if len(w.all) > 0 {
		return f.feedName + allMark
	}
	return f.feedName
}

// prepare asks the feed what it is and, where it was never read, says from
// where it will be. A feed that is away is waited for, but not with once.
func (f *Follower) prepare(ctx context.Context, once bool) (engine string, err error) {
	ask := func() (couch.ServerInfo, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return f.feed.Server(ctx)
	}
	info, err := ask()
	if err != nil && !once {
		f.log.WarnContext(ctx, "the feed is away", "feed", f.feedName, "err", err)
		slow := backoff.NewExponentialBackOff()
		slow.MaxInterval = time.Minute
		info, err = backoff.Retry(ctx, ask, backoff.WithBackOff(slow), backoff.WithMaxElapsedTime(0))
	}
	if err != nil {
		return "", fmt.Errorf("ask feed %s: %w", f.feedName, err)
	}
	f.note(func(s *seen) { s.Head = info.UpdateSeq })
	key, err := f.cursorKey(ctx)
	if err != nil {
		return "", err
	}
	if _, ok := f.ledger.Cursor(key); ok || info.Engine != couch.EngineNPM || key != f.feedName {
		return info.Engine, nil
	}
	// npm's feed has more than a hundred million sequences and no documents in
	// them: for some packages only, Fill brings all that lies before.
	head, err := strconv.ParseUint(info.UpdateSeq, 10, 64)
	if err != nil {
		return "", fmt.Errorf("head %.40q of feed %s is not a number", info.UpdateSeq, f.feedName)
	}
	start := strconv.FormatUint(head-min(head, rewind), 10)
	if _, err := f.ledger.Commit(ctx, ledger.Batch{Cursor: &ledger.Cursor{Feed: key, Value: start}}); err != nil {
		return "", own(err)
	}
	return info.Engine, nil
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
	for page, err := range f.feed.Changes(ctx, since, follow) {
		if err != nil {
			err = fmt.Errorf("read feed %s: %w", f.feedName, err)
			if follow && ctx.Err() == nil && !errors.Is(err, couch.ErrReset) && !errors.Is(err, couch.ErrRefused) {
				f.log.WarnContext(ctx, "the feed is away, asking it again", "err", err)
				continue // the same page comes again
			}
			return err
		}
		if err := f.page(ctx, page, key, engine); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// page does a page's work. Pages come one after the other, work within one runs
// in parallel, and the cursor moves to the page's end in the last commit of
// that work: it is the low-water mark (law 1).
func (f *Follower) page(ctx context.Context, page couch.Page, key, engine string) error {
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.yield()
	w, err := f.wanted(ctx)
	if err != nil {
		return err
	}
	if f.keyFor(w) != key {
		return errSelection
	}
	cursor := &ledger.Cursor{Feed: key, Value: page.LastSeq}
	changes, bad, err := f.coalesce(ctx, page.Changes, w, engine)
	if err != nil {
		return err
	}
	switch before, _ := f.ledger.Cursor(key); {
	case len(changes) > 0 || len(bad) > 0:
		err = f.apply(ctx, changes, bad, w, cursor)
	case before != page.LastSeq:
		err = f.store(ctx, nil, cursor)
	}
	if err != nil {
		return fmt.Errorf("page up to %.80s: %w", page.LastSeq, err)
	}
	f.note(func(s *seen) {
		s.Cursor, s.LastSuccess = page.LastSeq, f.now()
		if newer(page.LastSeq, s.Head) {
			s.Head = page.LastSeq
		}
	})
	return nil
}
