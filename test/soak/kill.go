//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/follow"
	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

type killing struct {
	*follower
	rnd     *rand.Rand
	kubo    *kubod.Daemon
	reg     *npmtest.Registry
	changes []change
	done    int // of changes

	every                  int // of so many kills one is also Kubo's
	kills, kuboKills, away int
}

// kill is the scenario of that name: the follower is killed while a registry
// changes under it, and ends with what an undisturbed run ends with.
func kill(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("soak kill", flag.ContinueOnError)
	kills := flags.Int("kills", 500, "how often the follower is killed")
	changes := flags.Int("changes", 1000, "how many changes the registry makes")
	binary := flags.String("kubo", kubod.Binary(), "the ipfs binary; by default $"+kubod.Variable)
	seed := flags.Uint64("seed", 1, "of the changes and of the moments")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *binary == "" {
		return fmt.Errorf("%w: name an ipfs binary with --kubo (go build -C internal/ipfs/kubotest -o OUT github.com/ipfs/kubo/cmd/ipfs)", errUsage)
	}
	return inWork(ctx, func(dir string) error { return killIn(ctx, dir, *binary, *seed, *kills, *changes) })
}

func killIn(ctx context.Context, dir, binary string, seed uint64, kills, changes int) (err error) {
	began := time.Now()
	k := &killing{every: min(25, max(3, kills/4)), rnd: rand.New(rand.NewPCG(seed, 0x6b696c6c))}
	first, all := plan(k.rnd, changes)
	k.changes = all
	if k.reg, err = npmtest.Start("127.0.0.1:0", first); err != nil {
		return err
	}
	defer k.reg.Close()
	var requests atomic.Int64
	k.reg.Fault("/", func(http.ResponseWriter, *http.Request) bool { requests.Add(1); return false })
	if k.kubo, err = kubod.Run(ctx, binary, filepath.Join(dir, "kubo")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.kubo.Stop()) }()
	k.follower, err = newFollower(ctx, dir, "killed", k.reg.URL, k.reg.FeedURL, "--node", "kubo", "--ipfs-api", k.kubo.API)
	if err != nil {
		return err
	}
	k.flags = []string{"--confirm-over", "1s"}
	say("seed %d; %d kills while %d changes are made", seed, kills, changes)
	if err := k.kill(ctx, kills); err != nil {
		return err
	}

	say("kills are over: running to the end")
	if err := k.settle(ctx, 20); err != nil {
		return err
	}
	w, err := observe(ctx, k.reg.URL, k.reg.FeedURL)
	if err != nil {
		return err
	}
	hidden, err := k.behind(ctx, w)
	if err != nil {
		return err
	}
	var found follow.Reconciliation
	raw, err := k.command(ctx, "reconcile", "--feed", k.feed, "--json")
	if err == nil {
		err = json.Unmarshal(raw, &found)
	}
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := k.settle(ctx, 20); err != nil {
		return err
	}
	busy := requests.Load()
	checked, checkErr := k.check(ctx)

	say("the same registry, undisturbed")
	calm, err := newFollower(ctx, dir, "calm", k.reg.URL, k.reg.FeedURL, "--node", "embedded")
	if err != nil {
		return err
	}
	if err := calm.settle(ctx, 20); err != nil {
		return err
	}
	var got, want holdings
	if err := k.reading(func(l *ledger.Store) (err error) { got, err = hold(ctx, l); return errors.Join(err, l.Check(ctx)) }); err != nil {
		return err
	}
	if err := calm.reading(func(l *ledger.Store) (err error) { want, err = hold(ctx, l); return err }); err != nil {
		return err
	}

	kinds, dropped, deleted, late := map[string]int{}, 0, []string(nil), 0
	for _, c := range k.changes {
		kinds[c.kind]++
		if c.hide {
			dropped++
		}
		if c.stale > 0 {
			late++
		}
		if c.kind == "deletion" {
			deleted = append(deleted, c.name)
		}
	}
	slices.Sort(deleted)
	figure("seed", seed)
	figure("kills of the follower", k.kills)
	figure("kills of Kubo", fmt.Sprintf("%d (the follower just started and ended with code 69: %d)", k.kuboKills, k.away))
	figure("changes", k.done)
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		figure("  "+kind, kinds[kind])
	}
	figure("stale documents", fmt.Sprintf("%d changes, served %d times", late, k.reg.Stale()))
	figure("rows dropped from the feed", fmt.Sprintf("%d, of which %d were behind before reconcile", dropped, hidden))
	figure("reconcile found", fmt.Sprintf("%d new, %d changed, %d vanished", found.New, found.Changed, found.Vanished))
	figure("requests to the registry", fmt.Sprintf("%d, undisturbed %d", busy, requests.Load()-busy))
	figure("versions held", fmt.Sprintf("%d in %s", checked.Versions, mib(checked.Bytes)))
	figure("broken in Kubo", checked.Lost)
	figure("tombstones", fmt.Sprintf("%d of %d deletions", len(got.tombs), len(deleted)))
	errs := []error{got.account(w).print(), checkErr}
	unlike := got.differences(want)
	equal := len(unlike) == 0 && slices.Equal(got.tombs, deleted) && len(want.tombs) == 0
	figure("final sets equal", yesNo(equal))
	figure("duration", time.Since(began).Round(time.Second))
	if !equal {
		errs = append(errs, fmt.Errorf("the ledgers differ (killed, undisturbed): %s; tombstones %s, want %s", few(unlike), few(got.tombs), few(deleted)))
	}
	if checked.Lost > 0 {
		errs = append(errs, fmt.Errorf("the node lacks %d: %+v", checked.Lost, checked.Broken[0]))
	}
	if len(got.excused) > 0 || len(want.excused) > 0 {
		errs = append(errs, fmt.Errorf("not all was stored: %v; undisturbed: %v", got.excused, want.excused))
	}
	// A dropped row is seen all the same where an earlier one of its package is
	// worked on after it: not of each is the ledger behind.
	if k.reg.Stale() == 0 || hidden < dropped/4 {
		errs = append(errs, errors.New("the faults did not fire, or too few"))
	}
	if n := found.New + found.Changed + found.Vanished; n != hidden {
		errs = append(errs, fmt.Errorf("reconcile found %d of the %d packages of which the ledger was behind", n, hidden))
	}
	return errors.Join(errs...)
}

// kill kills the follower so many times while the changes are made. They begin
// once what was there first is stored, so that each has something to change.
func (k *killing) kill(ctx context.Context, kills int) error {
	begun, warm := false, 0
	for k.kills < kills || k.done < len(k.changes) {
		if !begun {
			if warm++; warm > 200 {
				return errors.New("what was there first is not stored after 200 kills")
			}
			var s ledger.Status
			if err := k.reading(func(l *ledger.Store) (err error) { s, err = l.Status(ctx); return err }); err != nil {
				return err
			}
			// With a cursor the listing is over with, and the feed is what counts.
			if begun = len(s.Cursors) > 0 && s.Counts.Queued+s.Counts.Retrying == 0; begun {
				say("the first %d packages are stored after %d kills", s.Counts.Packages, k.kills)
			}
		}
		due := k.done
		if left := max(1, kills-k.kills); begun {
			due += (len(k.changes) - k.done + left - 1) / left
		}
		if err := k.once(ctx, due); err != nil {
			return fmt.Errorf("kill %d: %w", k.kills, err)
		}
		if k.kills%100 == 0 {
			say("%d kills, %d changes", k.kills, k.done)
		}
	}
	return nil
}

// once starts the follower, makes changes up to due and kills it.
func (k *killing) once(ctx context.Context, due int) error {
	moment := func() time.Duration {
		return 10*time.Millisecond + time.Duration(k.rnd.Int64N(int64(790*time.Millisecond)))
	}
	withKubo := k.kills%k.every == k.every-1
	absent := withKubo && k.kuboKills%3 == 2 // it is started without a Kubo at all
	if absent {
		if err := k.kubo.Kill(); err != nil {
			return err
		}
	}
	p, err := k.start()
	if err != nil {
		return err
	}
	defer p.end(syscall.SIGKILL)
	delay := moment()
	step := delay / time.Duration(due-k.done+1)
	for k.done < due {
		if err := rest(ctx, step); err != nil {
			return err
		}
		k.changes[k.done].do(k.reg)
		k.done++
	}
	if withKubo {
		step = delay
		k.kuboKills++
		if !absent {
			if err := k.kubo.Kill(); err != nil {
				return err
			}
			if err := rest(ctx, moment()); err != nil {
				return err
			}
		}
		if k.kuboKills%2 == 0 && p.alive() {
			// The follower goes while Kubo is away.
			p.end(syscall.SIGKILL)
		}
		if err := k.kubo.Restart(ctx); err != nil {
			return fmt.Errorf("restart Kubo: %w", err)
		}
	}
	if err := rest(ctx, step); err != nil {
		return err
	}
	k.kills++
	if p.alive() && p.end(syscall.SIGKILL) {
		return nil
	}
	switch code := p.ProcessState.ExitCode(); {
	case code == -1:
		return nil // killed while Kubo was away
	case code == 69 && withKubo: // it was just starting
		k.away++
		return nil
	default:
		return fmt.Errorf("the follower ended by itself with code %d: %s", code, k.logTail())
	}
}

// behind counts the packages of which the ledger does not know the newest.
func (k *killing) behind(ctx context.Context, w world) (n int, err error) {
	err = k.reading(func(l *ledger.Store) error {
		h, err := hold(ctx, l)
		for name, p := range w {
			if held, ok := h.items[string(name)]; !ok || !strings.HasPrefix(held, p.rev+" ") {
				n++
			}
		}
		for _, c := range k.changes {
			if c.kind == "deletion" && h.items[c.name] != "" {
				n++
			}
		}
		return err
	})
	return n, err
}
