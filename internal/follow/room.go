package follow

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// roomAgain is how long it is from one look at a full disk to the next, and how
// long a look at one with room is good for at the most.
const roomAgain = 2 * time.Second

// room returns once there is room to store things: at once, as a rule. While
// there is none nothing is begun and nothing breaks; the ledger is served, for
// reading takes no room. What was fetched and is not stored yet counts as
// stored. It is asked before each package and each tarball, for of one look's
// room little may be taken before the next.
func (f *Follower) room(ctx context.Context) error {
	if f.free == nil || f.roomy() {
		return nil
	}
	// One looks; the others wait for what it sees.
	if err := take(ctx, f.measuring); err != nil {
		return err
	}
	defer release(f.measuring)
	if f.roomy() {
		return nil
	}
	need := f.reserve
	for full := false; ; full = true {
		free, err := f.free(ctx)
		if err != nil {
			return own(err)
		}
		f.mu.Lock()
		pending := f.state.pending
		f.mu.Unlock()
		if free >= need+pending {
			if full {
				// A warning, for whoever was told that it stopped is to hear that it goes on.
				f.log.WarnContext(ctx, "there is room on the disk again: it goes on", "free", free)
			}
			f.note(func(s *seen) {
				s.roomAt, s.roomUntil = time.Now(), s.total.bytes+s.pending+(free-need-pending)/4
				if full {
					s.trouble = ""
				}
			})
			return nil
		}
		if !full {
			f.log.ErrorContext(ctx, "the disk is full: nothing is fetched until there is room", "free", free, "reserve", f.reserve)
			f.note(func(s *seen) { s.trouble = "the disk is full" })
			need += need / 10 // not on and off at the edge
		}
		select {
		case <-time.After(roomAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// roomy reports whether the last look at the disk still holds: it was a moment
// ago, and not much was stored since.
func (f *Follower) roomy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.state.roomAt) < roomAgain && f.state.total.bytes+f.state.pending <= f.state.roomUntil
}

// passing reports whether an error of ours may be over in a while: the node is
// away or full.
func passing(err error) bool {
	return errors.Is(err, ipfs.ErrAway) || errors.Is(err, ipfs.ErrFull) || errors.Is(err, syscall.ENOSPC)
}

// persist calls work again while it fails for a passing cause of our own, each
// time after a longer wait of at most a minute. So a node that restarts, or
// whose disk is full, stops nothing for good.
func (f *Follower) persist(ctx context.Context, work func() error) error {
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = time.Minute
	for {
		began := time.Now()
		err := work()
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		if time.Since(began) > time.Minute {
			wait.Reset()
		}
		next := wait.NextBackOff()
		f.log.ErrorContext(ctx, "the node cannot be used, trying again", "in", next, "err", err)
		f.note(func(s *seen) { s.trouble = detail(err) })
		select {
		case <-time.After(next):
		case <-ctx.Done():
			return ctx.Err()
		}
		f.note(func(s *seen) { s.trouble = "" })
	}
}
