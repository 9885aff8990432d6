package cli

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Progress shows how far a long piece of work is: a bar on a terminal, the same
// one for all its stages, a log line every few seconds elsewhere. Its methods may
// run concurrently.
type Progress struct {
	w   io.Writer // nil off a terminal
	log *slog.Logger

	mu     sync.Mutex
	bar    *progressbar.ProgressBar
	stages []stage              // shown by bar, in the order in which they began
	last   map[string]time.Time // of the last log line of each stage
	ended  bool
}

// stage is a part of the work: several may go on at the same time.
type stage struct {
	name        string
	done, total int
	open        bool // its total is not known, or has grown: more is found on the way
	reported    time.Time
}

const (
	// logEvery is the time between two log lines of one stage.
	logEvery = 5 * time.Second
	// maxStages bounds what is said of the stages before the bar, in characters:
	// the rest of a terminal's 80 is the bar and its times.
	maxStages = 48
	// barSteps is the bar's length. At its end it is taken away; work that is found on
	// the way has none before End.
	barSteps = 1000
)

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
	p.note(stage, done, total)
	if p.bar == nil {
		p.bar = progressbar.NewOptions(barSteps,
			progressbar.OptionSetWriter(p.w), progressbar.OptionSetPredictTime(true),
			progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionFullWidth(), progressbar.OptionUseANSICodes(true))
	}
	progressbar.OptionSetDescription(p.line())(p.bar) // undrawn: the bar is still where it was
	_ = p.bar.Set(p.steps())                          // a bar that cannot be drawn stops nothing
	if p.bar.IsFinished() {
		p.bar = nil // another one, where more comes after all
		return
	}
	p.bar.Describe(p.line()) // where the bar has not moved
}

// note keeps what is said of a stage. Where they do not all fit, the one of which
// nothing was heard for the longest time is left out.
func (p *Progress) note(name string, done, total int) {
	s := stage{name, done, total, total <= 0, time.Now()}
	if i := slices.IndexFunc(p.stages, func(s stage) bool { return s.name == name }); i >= 0 {
		was := p.stages[i]
		s.open = s.open || was.open || total > was.total
		p.stages[i] = s
	} else {
		p.stages = append(p.stages, s)
	}
	for len(p.stages) > 1 && len(p.line()) > maxStages {
		oldest := slices.MinFunc(p.stages, func(a, b stage) int { return a.reported.Compare(b.reported) })
		p.stages = slices.DeleteFunc(p.stages, func(s stage) bool { return s.name == oldest.name })
	}
}

// line says how far the stages are.
func (p *Progress) line() string {
	parts := make([]string, len(p.stages))
	for i, s := range p.stages {
		parts[i] = fmt.Sprintf("%s %d", s.name, s.done)
		if s.total > 0 {
			parts[i] += fmt.Sprintf("/%d", s.total)
		}
	}
	return strings.Join(parts, ", ")
}

// steps is how far the bar is, all stages together.
func (p *Progress) steps() int {
	done, total := 0, 0
	for _, s := range p.stages {
		if s.total > 0 { // else how much is done says nothing of how far that is
			done += min(max(0, s.done), s.total)
			total += s.total
		}
		if s.open {
			total++ // one more is always to come
		}
	}
	return int(int64(barSteps) * int64(done) / int64(max(1, total)))
}

// Above gives a writer to w for what is printed meanwhile: the bar makes way for
// each write, which is of whole lines, and is drawn again below it.
func (p *Progress) Above(w io.Writer) io.Writer { return above{p, w} }

type above struct {
	p *Progress
	w io.Writer
}

func (a above) Write(b []byte) (int, error) {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	if a.p.bar != nil {
		_ = a.p.bar.Clear()
	}
	return a.w.Write(b)
}

// End clears the bar. What is reported after it is not shown: a command that
// serves from then on has its log.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
	p.ended = true
}
