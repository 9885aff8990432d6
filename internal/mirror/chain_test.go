package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// jumpJSON is a jump as release.json has it.
type jumpJSON struct {
	Number   uint64    `json:"number"`
	Earliest time.Time `json:"earliest"`
	Root     string    `json:"root"`
}

// myers is the jump of the release that is built next, as Myers' paper has it: its
// depth is how many there are, and the first one's jump leads to itself.
func (w *world) myers() any {
	top := []int{0}
	for d := 1; d <= len(w.past); d++ {
		p := d - 1
		if j := top[p]; p-j == j-top[j] {
			top = append(top, top[j])
		} else {
			top = append(top, p)
		}
	}
	if to := top[len(w.past)]; to < len(w.past)-1 {
		return w.jumpTo(to)
	}
	return nil
}

// jumpTo is a jump to what was built after n others.
func (w *world) jumpTo(n int) jumpJSON {
	j := jumpJSON{w.past[n].Number, w.past[n].Created, w.past[n].Root.String()}
	for _, l := range w.past[n:] {
		if l.Created.Before(j.Earliest) {
			j.Earliest = l.Created
		}
	}
	return j
}

// chain builds n releases of one list, dated by date, and signs the last.
func (w *world) chain(n int, date func(i int) time.Time) {
	root, overflow := w.directory(nil)
	newest := w.now
	for i := range n {
		w.number++
		w.now = date(i)
		w.buildRelease(0, root, root, overflow)
		if w.now.After(newest) {
			newest = w.now
		}
	}
	w.now = newest
	w.seq++
	w.setRecord(w.sign(w.release, w.seq))
}

// everyFiveMinutes dates releases.
func everyFiveMinutes(i int) time.Time { return someday.Add(time.Duration(i) * 5 * time.Minute) }

// numbered is the moment of a number.
func numbered(n uint64) Moment { return Moment{number: n, text: fmt.Sprint(n)} }

// Jumps are a short cut and no more: with them each number and each date, by clocks that
// are right and wrong, is found where it is found without.
func TestJumpsChangeNothing(t *testing.T) {
	for seed := range uint64(4) {
		w := newWorld(t)
		w.jump = w.myers
		rng := rand.New(rand.NewPCG(seed, 1))
		const n = 150
		wrong, off := 0, 0
		w.chain(n, func(i int) time.Time {
			if wrong--; wrong < 0 && rng.IntN(15) == 0 && seed > 0 {
				wrong, off = rng.IntN(2*honest), rng.IntN(200)-100
			}
			if wrong > 0 {
				return dated(i + off)
			}
			return dated(i)
		})
		m := w.synced()
		head := linkOf(m.head.Load().Release)
		for i := -120; i < n+120; i++ {
			moments := []Moment{{time: dated(i), text: "day"}, {time: dated(i).Add(-time.Second), text: "day"}}
			if i > 0 && i <= n {
				moments = append(moments, numbered(uint64(i)))
			}
			for _, at := range moments {
				got, err := (&wayBack{m: m, at: at, most: maxPassed}).from(t.Context(), head)
				want, werr := (&wayBack{m: m, at: at, most: maxPassed, plain: true}).from(t.Context(), head)
				if got != want || fmt.Sprint(err) != fmt.Sprint(werr) {
					t.Errorf("seed %d, %s %d: %v, %v; one by one %v, %v", seed, at.title(), i, got, err, want, werr)
				}
			}
		}
	}
}

// reads is how many blocks a mirror that knows nothing of the chain asks for to find at.
func (w *world) reads(at Moment, change ...func(*wayBack)) (l link, asked int, err error) {
	w.node.held, w.node.gets = map[cid.Cid]blocks.Block{}, nil
	m := w.synced()
	before := w.node.asked()
	way := wayBack{m: m, at: at, most: maxPassed}
	for _, c := range change {
		c(&way)
	}
	l, err = way.from(w.t.Context(), linkOf(m.head.Load().Release))
	return l, w.node.asked() - before, err
}

// oneByOne takes no jumps.
func oneByOne(w *wayBack) { w.plain = true }

// perRelease is how many blocks a release of chain takes: its directory, "_registry"
// and release.json.
const perRelease = 3

// The releases that are read grow with the logarithm of how far back one is; and what
// was read once is not read again.
func TestFindReadsFew(t *testing.T) {
	w := newWorld(t)
	w.jump = w.myers
	const n = 1000
	w.chain(n, everyFiveMinutes)
	few := 3 * bits.Len(n)
	for number := uint64(1); number < n; number += 37 {
		for at, most := range map[Moment]int{
			numbered(number): few,
			{time: everyFiveMinutes(int(number) - 1), text: "then"}: few + honest,
		} {
			l, blocks, err := w.reads(at)
			if err != nil || l.Number != number || !l.Root.Equals(w.past[number-1].Root) {
				t.Fatalf("%s: %v, %v, want release %d", at.title(), l, err, number)
			}
			if blocks > most*perRelease {
				t.Errorf("%s: %d blocks for release %d, at most %d promised", at.title(), blocks, number, most*perRelease)
			}
		}
	}
	if _, blocks, err := w.reads(numbered(1), oneByOne); err != nil || blocks != (n-1)*perRelease {
		t.Errorf("one by one: %d blocks, %v", blocks, err)
	}
	m := w.synced()
	_, err := m.find(t.Context(), numbered(1), nil)
	check(t, err)
	w.node.alone = true
	if l, err := m.find(t.Context(), numbered(1), nil); err != nil || l.Number != 1 {
		t.Errorf("once more: %v, %v", l, err)
	}
}

// What was published before there were jumps, and after an index was lost, is found by
// jumps as far as there are some.
func TestFindWhereJumpsBegin(t *testing.T) {
	w := newWorld(t)
	w.chain(20, everyFiveMinutes)
	earlier := len(w.past)
	w.jump = func() any { // as a new index has them
		all := w.past
		defer func() { w.past = all }()
		w.past = all[earlier:]
		return w.myers()
	}
	w.number += 5
	w.chain(200, func(i int) time.Time { return everyFiveMinutes(earlier + i) })
	for number, want := range map[uint64]int{3: 3*bits.Len(200) + 18, 20: 3*bits.Len(200) + 1, 26: 3 * bits.Len(200)} {
		if l, blocks, err := w.reads(numbered(number)); err != nil || l.Number != number || blocks > want*perRelease {
			t.Errorf("release %d: %v after %d blocks, %v", number, l, blocks, err)
		}
	}
	if _, _, err := w.reads(numbered(23)); !errors.Is(err, ErrNoRelease) || !strings.Contains(err.Error(), "the chain has release 20 of") {
		t.Errorf("a number that was never given: %v", err)
	}
}

// A jump that lies gives no other release: the way is gone without it, or there is none.
// And all that lie are told of once.
func TestHostileJump(t *testing.T) {
	const n = 60
	nowhere, err := unixfs.AddChunks([][]byte{[]byte("nowhere")}, func(blocks.Block) error { return nil })
	check(t, err)
	for name, tt := range map[string]struct {
		lie   func(w *world, j *jumpJSON) // of those before the newest
		most  int                         // releases that are read, of which 59 are there
		fails bool
	}{
		"another number":   {func(_ *world, j *jumpJSON) { j.Number-- }, n, false},
		"a greater number": {func(_ *world, j *jumpJSON) { j.Number += 10 }, n, false},
		"a later date":     {func(_ *world, j *jumpJSON) { j.Earliest = j.Earliest.Add(time.Hour) }, n, false},
		"another release":  {func(w *world, j *jumpJSON) { j.Root = w.past[10].Root.String() }, n, false},
		"a list": {func(w *world, j *jumpJSON) {
			l, err := unixfs.Path(t.Context(), w, w.release, unixfs.Reserved, "list")
			check(t, err)
			j.Root = l.CID.String()
		}, n, false},
		"what nobody has": {func(_ *world, j *jumpJSON) { j.Root = nowhere.CID.String() }, 2 * n / 3, false}, // others are taken
		"itself":          {func(w *world, j *jumpJSON) { j.Number = w.number }, 2, true},
		"forwards":        {func(w *world, j *jumpJSON) { j.Number = w.number + 1 }, 2, true},
		"no CID":          {func(_ *world, j *jumpJSON) { j.Root = "bafy" }, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.jump = func() any {
				switch {
				case w.number == n:
					return nil
				case w.number > n-5:
					j := w.jumpTo(n / 2)
					tt.lie(w, &j)
					return j
				}
				return w.myers()
			}
			w.chain(n, everyFiveMinutes)
			for _, number := range []uint64{1, 20, n/2 + 5, n - 5} {
				for _, at := range []Moment{numbered(number), {time: everyFiveMinutes(int(number) - 1), text: "then"}} {
					var log bytes.Buffer
					l, blocks, err := w.reads(at, func(w *wayBack) { w.m.log = slog.New(slog.NewTextHandler(&log, nil)) })
					if blocks > tt.most*perRelease {
						t.Errorf("%d, %s: %d blocks were asked for", number, at.title(), blocks)
					}
					if tt.fails && !errors.Is(err, ErrChain) || !tt.fails && (err != nil || !l.Root.Equals(w.past[number-1].Root)) {
						t.Errorf("%d, %s: %v, %v", number, at.title(), l, err)
					}
					if told := strings.Count(log.String(), "one by one"); told > 1 {
						t.Errorf("%d, %s: told of %d times", number, at.title(), told)
					}
				}
			}
		})
	}
}

// What publishers keep no more is missed a few times, and then the oldest that is there
// is named as ever.
func TestFindBeyondWhatIsKept(t *testing.T) {
	for _, kept := range []int{1, 2, 8, 100, 255} {
		w := newWorld(t)
		w.jump = w.myers
		const n = 300
		w.chain(n, everyFiveMinutes)
		for _, l := range w.past[:n-kept] {
			w.lose(l.Root)
		}
		for _, at := range []Moment{numbered(1), {time: everyFiveMinutes(0), text: "then"}} {
			_, blocks, err := w.reads(at)
			want := fmt.Sprintf("the oldest that can be rebuilt is release %d of", n-kept+1)
			if !errors.Is(err, ErrNoRelease) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) {
				t.Errorf("%d kept, %s: %v", kept, at.title(), err)
			}
			if most := 3 * bits.Len(n) * (perRelease + 1); blocks > most {
				t.Errorf("%d kept, %s: %d blocks were asked for", kept, at.title(), blocks)
			}
			for _, l := range w.past[:n-kept] {
				if times := w.node.gets[l.Root]; times > 2 { // by a jump, and in the end as the one before
					t.Errorf("%d kept, %s: release %d, which nobody has, was asked for %d times", kept, at.title(), l.Number, times)
				}
			}
		}
		if l, _, err := w.reads(numbered(uint64(n - kept + 1))); err != nil || l.Number != uint64(n-kept+1) {
			t.Errorf("%d kept: the oldest of them: %v, %v", kept, l, err)
		}
	}
}

// No search goes on for ever.
func TestFindIsBounded(t *testing.T) {
	w := newWorld(t)
	w.chain(20, everyFiveMinutes)
	bounded := func(w *wayBack) { w.most = 10 }
	for _, at := range []Moment{numbered(9), {time: everyFiveMinutes(0), text: "then"}} {
		_, blocks, err := w.reads(at, bounded)
		if !errors.Is(err, ErrNoRelease) || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "not among the 10 releases down to release 10 of") || blocks != 10*perRelease {
			t.Errorf("%s: %v after %d blocks", at.title(), err, blocks)
		}
	}
	if l, _, err := w.reads(numbered(10), bounded); err != nil || l.Number != 10 {
		t.Errorf("the last of them: %v, %v", l, err)
	}
}

// BenchmarkFindRelease is of release 1 of 10,000 at a mirror that knows nothing of the chain,
// whose node answers at once: what counts is how many blocks are asked for one after
// another.
func BenchmarkFindRelease(b *testing.B) {
	w := newWorld(b)
	w.jump = w.myers
	const n = 10_000
	w.chain(n, everyFiveMinutes)
	for name, change := range map[string]func(*wayBack){"jumps": func(*wayBack) {}, "one_by_one": oneByOne} {
		for what, at := range map[string]Moment{"number": numbered(1), "date": {time: everyFiveMinutes(0), text: "then"}} {
			b.Run(name+"/"+what, func(b *testing.B) {
				for b.Loop() {
					_, blocks, err := w.reads(at, change)
					check(b, err)
					b.ReportMetric(float64(blocks), "blocks")
				}
			})
		}
	}
}
