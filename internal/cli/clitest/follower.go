package clitest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// A command's test binary runs that command alone. What another command's tests
// need of the follower is done here, in the test's own process, by the packages
// that the follower wires: the same ledger, node and sockets.

// follower is what `follower run` holds.
type follower struct {
	dir   state.Dir
	store *ledger.Store
	node  *state.Node
	*follow.Follower
}

func openFollower(ctx context.Context, dir state.Dir, registry string) (_ *follower, err error) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	f := &follower{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if err := dir.Make(); err != nil {
		return nil, err
	}
	up, _, err := dir.OpenUpstream(registry, upstream.Options{})
	if err != nil {
		return nil, err
	}
	if f.store, err = dir.OpenLedger(ctx, ledger.Options{Log: log}); err != nil {
		return nil, err
	}
	if f.node, err = dir.OpenNode(ctx, state.NodeOptions{Log: log}); err != nil {
		return nil, err
	}
	f.Follower, err = follow.New(follow.Options{Ledger: f.store, Upstream: up, Node: f.node, Log: log, RefreshAfter: time.Nanosecond})
	return f, err
}

func (f *follower) close() error {
	var err error
	if f.node != nil {
		err = f.node.Close()
	}
	if f.store != nil {
		err = errors.Join(err, f.store.Close())
	}
	return err
}

// fillTime bounds one fill of a script.
const fillTime = time.Minute

func fill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: fill NAME[@RANGE]...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), fillTime)
	defer cancel()
	wants, err := follow.Selection{Specs: args}.Wants()
	ts.Check(err)
	f, err := openFollower(ctx, state.Dir(ts.Getenv(stateVar)), ts.Getenv("UPSTREAM"))
	ts.Check(err)
	ts.Check(errors.Join(f.Add(ctx, wants), f.close()))
}

func followerRuns(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: follower-runs")
	}
	ctx, cancel := context.WithCancel(context.Background())
	f, err := openFollower(ctx, state.Dir(ts.Getenv(stateVar)), ts.Getenv("UPSTREAM"))
	if err != nil {
		cancel()
		ts.Fatalf("follower: %v", err)
	}
	ended := make(chan error, 2)
	l, err := socket.Listen(f.dir.Socket("follower"))
	if err == nil {
		go func() { ended <- socket.Serve(ctx, l, ledger.Serve(f.store)) }()
	} else {
		ended <- err
	}
	go func() { ended <- f.Run(ctx, false) }()
	ts.Defer(func() {
		cancel()
		err := errors.Join(<-ended, <-ended, f.close())
		if err != nil && !errors.Is(err, context.Canceled) {
			ts.Logf("the follower ended with %v", err)
		}
	})
}
