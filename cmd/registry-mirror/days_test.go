package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/cli/clitest"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/route"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// routed is a node whose records come by a route of the publisher's alone.
type routed struct {
	mirror.NodeReader
	way route.Router
}

func (n routed) Record(ctx context.Context, name ipns.Name) ([]byte, error) {
	return n.way.Get(ctx, name)
}

// Thirty days without a change, by a clock of the test's: a publisher that runs every
// four hours, one mirror on its node and one that reads a web server's directory. At
// every hour what each mirror holds is a valid record and what it serves is not stale,
// also where two runs in a row were missed. Then the publisher is away for good.
func TestThirtyDays(t *testing.T) {
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	registry := npmtest.New(t, clitest.Archive)
	dir := state.Dir(t.TempDir())
	s := &upSettings{Common: &cli.Common{State: string(dir), Settings: &cli.Settings{}}, upstream: registry.URL, name: "main", notices: io.Discard}
	h := &house{}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.open(ctx, h, dir, log, cli.NewProgress(io.Discard, log)); err != nil {
		t.Fatal(err)
	}
	if err := h.fill(ctx, []ledger.Want{{Spec: npm.Spec{Name: "leaf"}}}); err != nil {
		t.Fatal(err)
	}
	signer, err := ipnskeys.Opening{}.Load(ctx, dir.Keys(), "main")
	if err != nil {
		t.Fatal(err)
	}
	web, err := route.Parse(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// The node judges records by the machine's clock: for it, all of them are long valid.
	began := time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	var hour atomic.Int64
	now := func() time.Time { return began.Add(time.Duration(hour.Load()) * time.Hour) }
	publisher := publish.New(publish.Options{
		Ledger: h.ledger, Index: h.index, Node: h.node, Signer: signer, Journal: dir.Journal("main"), Routes: []route.Router{web}, Log: log, Now: now,
	})
	if _, err := publisher.Publish(ctx); err != nil {
		t.Fatal(err)
	}
	mirrors := map[string]*mirror.Mirror{}
	for way, node := range map[string]mirror.NodeReader{"node": h.node, "directory": routed{h.node, web}} {
		m, err := mirror.Open(mirror.Options{Dir: t.TempDir(), Name: signer.IPNSName(), Node: node, Log: log, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		h.own(m.Close)
		mirrors[way] = m
	}
	// look has each mirror resolve, and gives whether what it holds is fresh.
	look := func() bool {
		t.Helper()
		fresh := true
		for way, m := range mirrors {
			err := m.Sync(ctx)
			s := m.Status(ctx)
			if s.Stale {
				fresh = false
			} else if err != nil || s.Error != "" || s.Release.Number != 1 {
				t.Fatalf("hour %d, by the %s: %v, %+v", hour.Load(), way, err, s)
			}
			if r, err := ipnsrecord.Check(signer.IPNSName(), m.Record(), now()); (err == nil) == s.Stale {
				t.Fatalf("hour %d, by the %s: until %s, stale: %t, %v", hour.Load(), way, r.EOL, s.Stale, err)
			}
			w := httptest.NewRecorder()
			m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/leaf", nil))
			if w.Code != http.StatusOK { // what is held is served for ever
				t.Fatalf("hour %d, by the %s: %d %s", hour.Load(), way, w.Code, w.Body)
			}
		}
		return fresh
	}
	signed := 0
	for ; hour.Load() < 30*24; hour.Add(1) {
		if run := hour.Load() / 4; hour.Load()%4 == 0 && run%40 != 13 && run%40 != 14 {
			result, err := publisher.Publish(ctx)
			if err != nil {
				t.Fatalf("hour %d: %v", hour.Load(), err)
			}
			if result.Signed {
				signed++
			}
		}
		if !look() {
			t.Fatalf("stale at hour %d", hour.Load())
		}
	}
	if signed < 7 || signed > 9 {
		t.Errorf("%d signatures in 30 days", signed)
	}

	// Nobody publishes any more: for half a lifetime at least nobody notices, and after
	// a whole one everybody is told.
	for last := hour.Load(); hour.Load() <= last+7*24; hour.Add(1) {
		if fresh := look(); !fresh && hour.Load() < last+7*12 {
			t.Fatalf("stale %d hours after the last run", hour.Load()-last)
		}
	}
	if look() {
		t.Error("fresh a week after the last run")
	}
	if result, err := publisher.Publish(ctx); err != nil || !result.Signed || !look() {
		t.Errorf("back: %+v, %v", result, err)
	}
}
