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
// long a look at one with room is good for.
const roomAgain = 2 * time.Second

// room returns once there is room to store things: at once, as a rule. While
// there is none nothing is begun and nothing breaks; the ledger is served, for
// reading takes no room.
func (f *Follower) room(ctx context.Context) error {
	if f.free == nil {
		return nil
	}
	f.mu.Lock()
	recent := time.Since(f.state.roomAt) < roomAgain
	f.mu.Unlock()
	if recent {
		return nil
	}
	need := f.reserve
	for full := false; ; full = true {
		free, err := f.free(ctx)
		if err != nil {
			return own(err)
		}
		if free >= need {
			if full {
				f.log.InfoContext(ctx, "there is room on the disk again", "free", free)
			}
			f.note(func(s *seen) {
				s.roomAt = time.Now()
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
