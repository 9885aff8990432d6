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

// TestProgressOnATerminal: stages by turns share one bar, which stays where it is
// until the end.
func TestProgressOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out, slog.New(slog.DiscardHandler))
		p.w = &out
		p.Update("packuments", 1, 1, 0) // all that is known by now, and not the end
		p.Update("tarballs", 0, 0, 0)
		out.Reset()
		for i := range 50 {
			time.Sleep(time.Second)
			p.Update("packuments", i, 60, 0)
			p.Update("tarballs", i/2, 40, int64(i))
		}
		p.Update("packuments", 1, 1, 0) // another pass
		lines := strings.Split(strings.TrimPrefix(out.String(), "\r"), "\r")
		if len(lines) < 50 {
			t.Errorf("drawn %d times in 50 seconds", len(lines))
		}
		for _, line := range lines {
			if !strings.HasPrefix(line, "packuments ") || !strings.Contains(line, ", tarballs ") {
				t.Fatalf("a line of one stage, or none: %q", line)
			}
		}
		if last := lines[len(lines)-1]; !strings.HasPrefix(last, "packuments 49/60, tarballs 24/40") {
			t.Errorf("the last line is %q", last)
		}
		for i := range 10 {
			time.Sleep(time.Second)
			out.Reset()
			p.Update("building", i, 100000, 0)
			p.Update("a stage of a very long name", i, 100000, 0)
			if line, _, _ := strings.Cut(strings.TrimPrefix(out.String(), "\r"), "|"); len(line) > maxStages+8 {
				t.Errorf("%q leaves no room for the bar", line)
			}
		}
		out.Reset()
		p.End()
		if out.String() != "\x1b[2K\r" {
			t.Errorf("the end leaves %q", out.String())
		}
	})
}

// TestProgressSaysOneThing: what is drawn of the stages and of the bar is of one moment,
// a total that is known is the whole of the bar, and what has none does not move it.
func TestProgressSaysOneThing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out, slog.New(slog.DiscardHandler))
		p.w = &out
		draw := func(stage string, done, total int) string {
			time.Sleep(time.Second)
			out.Reset()
			p.Update(stage, done, total, 0)
			return out.String()
		}
		for _, step := range []struct {
			stage       string
			done, total int
			want        []string
		}{
			{"fetched", 0, 3, []string{"fetched 0/3", "  0% "}},
			{"fetched", 1, 3, []string{"fetched 1/3", " 33% "}},
			{"fetched", 2, 3, []string{"fetched 2/3", " 66% "}},
			{"fetched", 3, 3, []string{"\x1b[2K\r"}}, // all of it: nothing is left to be seen
			{"blocks", 500, 0, []string{"fetched 3/3, blocks 500", " 75% "}},
			{"blocks", 900, 0, []string{"blocks 900", " 75% "}},
			{"names", 1, 1, []string{"names 1/1", " 80% "}},
			{"names", 1, 5, []string{"names 1/5", " 40% "}}, // more was found
			{"names", 5, 5, []string{"names 5/5", " 80% "}},
		} {
			got := draw(step.stage, step.done, step.total)
			for _, want := range step.want {
				if !strings.Contains(got, want) {
					t.Errorf("%s %d/%d: drawn %q, want %q in it", step.stage, step.done, step.total, got, want)
				}
			}
		}
		p.End()
	})
}

// TestProgressAbove: what is printed meanwhile has its own line.
func TestProgressAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out, slog.New(slog.DiscardHandler))
		p.w = &out
		w := p.Above(&out)
		w.Write([]byte("before\n"))
		p.Update("packages", 1, 10, 0)
		w.Write([]byte("found\n"))
		time.Sleep(time.Second)
		p.Update("packages", 2, 10, 0)
		got := out.String()
		p.End()
		if !strings.HasPrefix(got, "before\n") || !strings.Contains(got, "\x1b[2K\rfound\n\rpackages 2/10") {
			t.Errorf("%q", got)
		}
	})
}
