package follow

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/couch"
)

// TestADiskThatFillsUpKeepsItsReserve: of a queue with more than fits, no more is
// begun than the reserve allows; with room again the rest follows.
func TestADiskThatFillsUpKeepsItsReserve(t *testing.T) {
	const packages, reserve, size = 200, 200 << 10, 1 << 20
	rnd := rand.New(rand.NewPCG(1, 1))
	var archive strings.Builder
	for i := range packages {
		fmt.Fprintf(&archive, "-- p%03d@1.0.0/noise --\n", i)
		for range 200 {
			fmt.Fprintf(&archive, "%016x%016x%016x\n", rnd.Uint64(), rnd.Uint64(), rnd.Uint64())
		}
	}
	w := newWorld(t, archive.String())
	feed := w.follow(couch.EngineCouch)
	for i := range packages {
		feed.push(w.couchDoc(fmt.Sprintf("p%03d", i)))
	}
	var disk atomic.Int64
	disk.Store(size)
	free := func() int64 {
		w.node.mu.Lock()
		defer w.node.mu.Unlock()
		left := disk.Load()
		for _, b := range w.node.durable {
			left -= int64(len(b.RawData()))
		}
		for _, b := range w.node.written {
			left -= int64(len(b.RawData()))
		}
		return max(0, left)
	}
	w.opts.Reserve, w.opts.Workers = reserve, 2
	w.opts.Free = func(context.Context) (uint64, error) { return uint64(free()), nil }
	var said bytes.Buffer // read once all have ended
	w.opts.Log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
	w.start()
	w.add("*")
	ended := make(chan error, 1)
	go func() { ended <- w.f.Run(t.Context(), true) }()
	w.until(func() bool { return w.f.Status().Trouble != "" })
	least := free()
	if n := w.store.Counts().Versions; n == 0 || n == packages {
		t.Errorf("on the full disk there are %d of %d", n, packages)
	}
	if least < reserve/2 {
		t.Errorf("%d bytes are left of a reserve of %d", least, reserve)
	}
	disk.Store(64 << 20)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := w.store.Counts().Versions; n != packages {
		t.Errorf("with room again there are %d of %d", n, packages)
	}
	stopped, on := strings.Count(said.String(), "the disk is full"), strings.Count(said.String(), "room on the disk again")
	if stopped == 0 || on != stopped {
		t.Errorf("it said %d times that it stops, and %d times that it goes on:\n%s", stopped, on, &said)
	}
}
