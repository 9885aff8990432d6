//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

const (
	smallDisk   = "128m"
	largeDisk   = "1g"
	diskReserve = 32 << 20
	// Of so many packages with tarballs of some 330 KB, not all fit the small disk.
	fillers     = 400
	fillerLines = 10_000
)

// full is the scenario of that name: the disk that the node stores on is full
// before all is stored, and is made larger while the follower runs.
func full(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("soak full", flag.ContinueOnError)
	binary := flags.String("kubo", kubod.Binary(), "the ipfs binary; by default $"+kubod.Variable+", and without it the embedded node alone")
	inside := flags.Bool("inside", false, "it runs in a mount namespace of its own already")
	if err := parse(flags, args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: mounting a small disk takes root", errUsage)
	}
	if !*inside {
		// What is mounted there is gone with this process, however that ends.
		self, err := os.Executable()
		if err != nil {
			return err
		}
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			return err
		}
		return syscall.Exec(unshare, append([]string{"unshare", "--mount", "--propagation", "private", self, "full", "--inside"}, args...), os.Environ())
	}
	return inWork(ctx, func(dir string) error {
		rnd := rand.New(rand.NewPCG(1, 0x66756c6c))
		var archive strings.Builder
		for i := range fillers {
			fmt.Fprintf(&archive, "-- filler-%03d@1.0.0/noise.txt --\n", i)
			for range fillerLines {
				fmt.Fprintf(&archive, "%016x%016x%016x%016x\n", rnd.Uint64(), rnd.Uint64(), rnd.Uint64(), rnd.Uint64())
			}
		}
		reg, err := npmtest.Start("127.0.0.1:0", archive.String())
		if err != nil {
			return err
		}
		defer reg.Close()
		err = onSmallDisk(filepath.Join(dir, "embedded"), func(disk string) error {
			return fill(ctx, dir, disk, "embedded/state", reg, "--node", "embedded")
		})
		if err != nil {
			return fmt.Errorf("node embedded: %w", err)
		}
		if *binary == "" {
			figure("Kubo", "left out: no binary was named")
			return nil
		}
		err = onSmallDisk(filepath.Join(dir, "kubo"), func(disk string) (err error) {
			kubo, err := kubod.Run(ctx, *binary, filepath.Join(disk, "repo"))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, kubo.Stop()) }()
			return fill(ctx, dir, disk, "beside-kubo", reg, "--node", "kubo", "--ipfs-api", kubo.API)
		})
		if err != nil {
			return fmt.Errorf("node kubo: %w", err)
		}
		return nil
	})
}

// onSmallDisk calls use with a small disk of its own.
func onSmallDisk(disk string, use func(disk string) error) error {
	if err := os.Mkdir(disk, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("soak", disk, "tmpfs", 0, "size="+smallDisk); err != nil {
		return fmt.Errorf("mount a disk of %s: %w", smallDisk, err)
	}
	err := use(disk)
	return errors.Join(err, unix.Unmount(disk, unix.MNT_DETACH))
}

// fill lets a follower store all of reg on a disk that is too small for it.
func fill(ctx context.Context, dir, disk, state string, reg *npmtest.Registry, node ...string) error {
	began := time.Now()
	f, err := newFollower(ctx, dir, state, reg.URL, reg.FeedURL, node...)
	if err != nil {
		return err
	}
	f.flags = []string{"--reserve", fmt.Sprint(diskReserve)}
	p, err := f.start()
	if err != nil {
		return err
	}
	defer p.end(syscall.SIGKILL)
	if err := f.answers(ctx, p); err != nil {
		return err
	}
	least := uint64(1 << 62)
	look := func() (ledger.Status, string, error) {
		if !p.alive() {
			return ledger.Status{}, "", fmt.Errorf("the follower ended: %v: %s", p.ProcessState, f.logTail())
		}
		free, err := freeOn(disk)
		if err != nil {
			return ledger.Status{}, "", err
		}
		least = min(least, free)
		s, loop, err := f.status(ctx)
		return s, loop.Trouble, err
	}
	figure("node", node[1])
	err = until(ctx, 3*time.Minute, func() (bool, error) {
		_, trouble, err := look()
		return trouble != "", err
	})
	if err != nil {
		return fmt.Errorf("the disk is full, and the follower did not say so: %w", err)
	}
	// What was begun ends; after that nothing is stored, for as long as it lasts.
	if err := rest(ctx, 5*time.Second); err != nil {
		return err
	}
	before, _, err := look()
	if err != nil {
		return err
	}
	if err := rest(ctx, 6*time.Second); err != nil {
		return err
	}
	after, trouble, err := look()
	if err != nil {
		return err
	}
	said, err := f.command(ctx, "status")
	if err != nil {
		return err
	}
	figure("full after", fmt.Sprintf("%v, %d of %d packages stored, %d waiting", time.Since(began).Round(time.Second), after.Counts.Packages, fillers, after.Counts.Queued+after.Counts.Retrying))
	figure("trouble", trouble)
	figure("least that was free", fmt.Sprintf("%s, reserve %s", mib(least), mib(diskReserve)))
	var errs []error
	if trouble != "the disk is full" || !strings.Contains(string(said), trouble) {
		errs = append(errs, fmt.Errorf("the trouble is %q, and `follower status` says: %s", trouble, said))
	}
	if before.Counts.Versions != after.Counts.Versions || after.Counts.Versions == 0 || after.Counts.Versions >= fillers {
		errs = append(errs, fmt.Errorf("on a full disk %d versions became %d", before.Counts.Versions, after.Counts.Versions))
	}
	if least < diskReserve/4 {
		errs = append(errs, fmt.Errorf("of the reserve of %s %s were left", mib(diskReserve), mib(least)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := unix.Mount("soak", disk, "tmpfs", unix.MS_REMOUNT, "size="+largeDisk); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	roomed := time.Now()
	err = until(ctx, 3*time.Minute, func() (bool, error) {
		s, trouble, err := look()
		return s.Counts.Versions == fillers && s.Counts.Queued+s.Counts.Retrying == 0 && trouble == "", err
	})
	if err != nil {
		return fmt.Errorf("there is room, and not all is stored: %w: %s", err, f.logTail())
	}
	figure("all stored with room after", time.Since(roomed).Round(time.Second))
	if !p.end(syscall.SIGTERM) {
		return fmt.Errorf("the follower did not end well: %v: %s", p.ProcessState, f.logTail())
	}
	checked, err := f.check(ctx)
	if err != nil {
		return err
	}
	figure("broken", fmt.Sprintf("%d of %d versions", checked.Lost, checked.Versions))
	w, err := observe(ctx, reg.URL, reg.FeedURL)
	if err != nil {
		return err
	}
	var h holdings
	if err := f.reading(func(l *ledger.Store) (err error) { h, err = hold(ctx, l); return errors.Join(err, l.Check(ctx)) }); err != nil {
		return err
	}
	err = h.account(w).print()
	if len(h.excused) > 0 {
		err = errors.Join(err, fmt.Errorf("not all is stored: %v", h.excused))
	}
	return err
}

func freeOn(disk string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}
