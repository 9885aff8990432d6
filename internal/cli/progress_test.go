package cli

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgressOffATerminal logs a line a stage and one every few seconds, and
// draws nothing.
func TestProgressOffATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, logged bytes.Buffer
		p := NewProgress(&out, slog.New(slog.NewTextHandler(&logged, nil)))
		for i := range 100 {
			p.Update("packuments", i, 100, int64(i))
		}
		if n := strings.Count(logged.String(), "stage=packuments"); n != 1 {
			t.Errorf("at once: %d lines, want 1", n)
		}
		time.Sleep(logEvery)
		p.Update("packuments", 100, 100, 100)
		p.Update("packuments", 100, 100, 100)
		p.Update("tarballs", 0, 0, 0)
		if n := strings.Count(logged.String(), "\n"); n != 3 || !strings.Contains(logged.String(), "stage=packuments done=100 total=100 bytes=100") {
			t.Errorf("%d lines, want 3: %s", n, &logged)
		}
		for i := range 100 { // both at once, as the follower does
			p.Update("packuments", i, 100, 0)
			p.Update("tarballs", i, 100, 0)
		}
		if n := strings.Count(logged.String(), "\n"); n != 3 {
			t.Errorf("two stages by turns: %d lines, want 3", n)
		}
		before := logged.Len()
		p.End()
		p.Update("later", 1, 1, 1)
		if logged.Len() != before || out.Len() > 0 {
			t.Errorf("after its end: %q, drawn: %q", logged.String()[before:], out.String())
		}
	})
}

func TestProgressAtOnce(t *testing.T) {
	p := NewProgress(&bytes.Buffer{}, slog.New(slog.DiscardHandler))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			p.Update("stage", i, 8, 0)
			p.End()
		})
	}
	all.Wait()
}
