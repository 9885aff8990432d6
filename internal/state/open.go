package state

import (
	"context"
	"errors"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/socket"
)

// lockTries bounds how long Open waits for a store that a short-lived command
// holds, to about three seconds.
const lockTries = 15

// Open calls open, again while it fails with locked and no owner answers at
// the socket of command: then a short-lived command has the store for a
// moment. With an owner that answers, or once patience ends, it returns the
// error.
func Open[T any](ctx context.Context, d Dir, command string, locked error, open func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := open()
		if err == nil || !errors.Is(err, locked) || try == lockTries || socket.Alive(ctx, d.Socket(command)) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// OpenLedger opens the follower's ledger for its owner, beginning one where
// there is none.
func (d Dir) OpenLedger(ctx context.Context, o ledger.Options) (*ledger.Store, error) {
	return Open(ctx, d, "follower", ledger.ErrLocked, func() (*ledger.Store, error) { return ledger.OpenOrCreate(d.Ledger(), o) })
}

// OpenHostedLedger opens the ledger of a registry that is published to, for its owner.
func (d Dir) OpenHostedLedger(ctx context.Context, registry string, o ledger.Options) (*ledger.Store, error) {
	return Open(ctx, d, hostedCommand(registry, "ledger"), ledger.ErrLocked, func() (*ledger.Store, error) { return ledger.Open(d.HostedLedger(registry), o) })
}

// ReachLedger is for a command that needs the follower's ledger for a moment: ask
// speaks to the follower that owns it; where none runs, open opens it here.
func ReachLedger[T any](ctx context.Context, d Dir, ask func(*ledger.Client) T, open func() (T, error)) (T, error) {
	return reachLedger(ctx, d, d.Socket("follower"), ask, open)
}

// ReachHostedLedger is ReachLedger for the ledger of a registry that is published to,
// which its server owns.
func ReachHostedLedger[T any](ctx context.Context, d Dir, registry string, ask func(*ledger.Client) T, open func() (T, error)) (T, error) {
	return reachLedger(ctx, d, d.HostedSocket(registry, "ledger"), ask, open)
}

func reachLedger[T any](ctx context.Context, d Dir, path string, ask func(*ledger.Client) T, open func() (T, error)) (T, error) {
	return Open(ctx, d, "", ledger.ErrLocked, func() (T, error) {
		client, err := ledger.Dial(path)
		if err == nil {
			return ask(client), nil
		}
		if !errors.Is(err, ledger.ErrAway) {
			var none T
			return none, err
		}
		return open()
	})
}
