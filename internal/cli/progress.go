package cli

import (
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Progress shows how far a long piece of work is: a bar on a terminal, a log
// line every few seconds elsewhere. Its methods may run concurrently.
type Progress struct {
	w   io.Writer
	log *slog.Logger

	mu    sync.Mutex
	bar   *progressbar.ProgressBar // of stage; nil off a terminal
	stage string
	last  map[string]time.Time // of the last log line of each stage
	ended bool
}

// logEvery is the time between two log lines of one stage.
const logEvery = 5 * time.Second

// NewProgress shows progress on w when a person reads it, else in log.
func NewProgress(w io.Writer, log *slog.Logger) *Progress {
	p := &Progress{log: log, last: map[string]time.Time{}}
	if IsTerminal(w) {
		p.w = w
	}
	return p
}

// Update says that done of total items of a stage are done, with bytes moved
// so far. A total of 0 means that it is not known yet.
func (p *Progress) Update(stage string, done, total int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if p.w == nil {
		// By stage: two that run at once must not make each other look new.
		if now := time.Now(); now.Sub(p.last[stage]) >= logEvery {
			p.last[stage] = now
			p.log.Info("progress", "stage", stage, "done", done, "total", total, "bytes", bytes)
		}
		return
	}
	if stage != p.stage || p.bar == nil {
		p.clear()
		p.stage = stage
		p.bar = progressbar.NewOptions(max(total, 1),
			progressbar.OptionSetWriter(p.w), progressbar.OptionSetDescription(stage),
			progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true),
			progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionFullWidth())
	}
	if total > 0 && p.bar.GetMax() != total {
		p.bar.ChangeMax(total)
	}
	_ = p.bar.Set(done) // a bar that cannot be drawn stops nothing
}

// End clears the bar. What is reported after it is not shown: a command that
// serves from then on has its log.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.ended = true
}

func (p *Progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}
