package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/damage"
)

// Each release names the one before it by its CID ("previous"), and some name one that
// is further back too ("jump", index.Jump), so the newest one speaks for all: what is
// reached from it needs no other trust. What was read of a link once is kept, for ever
// and for any chain, since its CID says it all.

// ErrNoRelease is returned for a release that is none of the chain's, or that the
// chain cannot be followed to: then beside ErrUnavailable, where nobody has it now.
var ErrNoRelease = errors.New("no such release can be had")

// ErrChain is returned for a chain of releases that does not go back.
var ErrChain = errors.New("the releases before do not make a chain")

// chainKey begins the rows c <CID>, each a link as JSON.
const chainKey = 'c'

// link is one release of the chain.
type link struct {
	Root     cid.Cid    `json:"-"`
	Number   uint64     `json:"number"`
	Created  time.Time  `json:"created"`
	Previous cid.Cid    `json:"previous,omitzero"` // undefined for the first
	Jump     index.Jump `json:"jump,omitzero"`
}

func linkOf(r index.Release) link { return link{r.Root, r.Number, r.Created, r.Previous, r.Jump} }

func (l link) String() string {
	return fmt.Sprintf("release %d of %s", l.Number, dateText(l.Created))
}

func dateText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// honest is how many releases in a row may have been made by a clock that was
// wrong, before a date means what that clock said.
const honest = 16

// maxPassed bounds the releases that one search goes through, noted or not. Without
// jumps that is two and a half years of one every five minutes.
const maxPassed = 1 << 18

// find is the release that at names, going back from the newest that is held. With a
// time it is the newest that is dated then or before, and has none dated after that
// among the 16 before it: dates are their publisher's word, and where a clock went
// back the answer is rather older than newer than what stood then.
//
// Jumps change nothing of that: one is taken where it leads to no release before the
// number, or over none that is dated then or before. So it goes through some 3 log2 n
// of n releases at the most, with a time through 16 more, and as many again for each
// spell of dates that are too early; and through all where there are no jumps, up to
// maxPassed. Of each it reads three blocks, or a few more where the registry is large.
//
// progress, where not nil, is told how many releases were passed. Errors: ErrFuture,
// ErrNotSynced, ErrNoRelease, ErrChain.
func (m *Mirror) find(ctx context.Context, at Moment, progress func(passed int)) (link, error) {
	if err := at.Begun(m.o.Now()); err != nil {
		return link{}, err
	}
	h := m.head.Load()
	if h == nil {
		return link{}, ErrNotSynced
	}
	for _, p := range h.parts { // each was accepted as the newest: the way to it may not be here
		if at.number == p.Number {
			return m.linkAt(ctx, p.Root)
		}
	}
	w := wayBack{m: m, at: at, most: maxPassed, progress: progress}
	l, err := w.from(ctx, linkOf(h.Release))
	if err != nil {
		return link{}, fmt.Errorf("%s of %s: %w", at.title(), m.Address(), err)
	}
	return l, nil
}

// wayBack is one search along the chain.
type wayBack struct {
	m        *Mirror
	at       Moment
	most     int              // releases that are passed
	progress func(passed int) // nil: nobody is told

	plain bool // a jump was not what it said: none is taken any more
	// lost is the number of a release that a jump leads to and nobody had: none is
	// taken as far as that again until it is passed.
	lost uint64
}

func (w *wayBack) from(ctx context.Context, l link) (link, error) {
	at := w.at
	if at.isNewest() || at.number == l.Number {
		return l, nil
	}
	if at.number > l.Number {
		return link{}, fmt.Errorf("%w: the newest here is %s", ErrNoRelease, l)
	}
	var found link // by time; its Number is 0 while there is none
	for passed, since := 0, 0; ; passed++ {
		if w.progress != nil {
			w.progress(passed)
		}
		if at.IsNumber() {
			switch {
			case l.Number == at.number:
				return l, nil
			case l.Number < at.number:
				return link{}, fmt.Errorf("%w: the chain has %s, and none of that number after it", ErrNoRelease, l)
			}
		} else if l.Created.After(at.time) {
			found = link{}
		} else if found.Number == 0 {
			found, since = l, 0
		} else if since++; since == honest {
			return found, nil
		}
		if passed == w.most {
			return link{}, fmt.Errorf("%w: not among the %d releases down to %s, and no more are looked through", ErrNoRelease, passed, l)
		}
		back, err := w.back(ctx, l)
		if err == nil {
			l = back
			continue
		}
		if ctx.Err() == nil && found.Number > 0 && (errors.Is(err, ErrNoRelease) || errors.Is(err, ErrUnavailable)) {
			return found, nil // nothing that can be had speaks against it
		}
		if ctx.Err() != nil {
			return link{}, fmt.Errorf("%w: not found before time ran out; %d releases were passed, down to %s: %w", ErrUnavailable, passed, l, context.Cause(ctx))
		}
		if errors.Is(err, ErrChain) {
			return link{}, err
		}
		return link{}, fmt.Errorf("the oldest that can be rebuilt is %s: %w", l, err)
	}
}

// back is a release before l: the one that its jump leads to, where what is sought is
// not passed by that, else the one before.
func (w *wayBack) back(ctx context.Context, l link) (link, error) {
	if w.jumps(l.Jump) {
		to, err := w.m.jump(ctx, l)
		switch {
		case err == nil || ctx.Err() != nil:
			return to, err
		case errors.Is(err, ErrUnavailable):
			w.lost = l.Jump.Number
		default:
			w.plain = true
			w.m.log.WarnContext(ctx, "the releases before are gone through one by one", "because", err)
		}
	}
	before, err := w.m.before(ctx, l)
	if err == nil && before.Number <= w.lost {
		w.lost = 0
	}
	return before, err
}

// jumps says whether j is to be taken.
func (w *wayBack) jumps(j index.Jump) bool {
	if w.plain || !j.Root.Defined() || j.Number <= w.lost {
		return false
	}
	if w.at.IsNumber() {
		return j.Number >= w.at.number
	}
	return j.Earliest.After(w.at.time)
}

// jump is the release that l's jump leads to. It must be what the jump says of it: else
// ErrChain, and ErrUnavailable where nobody has it.
func (m *Mirror) jump(ctx context.Context, l link) (link, error) {
	to, err := m.linkAt(ctx, l.Jump.Root)
	if err != nil {
		return link{}, fmt.Errorf("the jump of %s: %w", l, err)
	}
	if to.Number != l.Jump.Number || to.Number >= l.Number /* so every way ends */ || to.Created.Before(l.Jump.Earliest) {
		return link{}, fmt.Errorf("%w: from %s a jump is to lead to release %d, dated %s or after, and leads to %s",
			ErrChain, l, l.Jump.Number, dateText(l.Jump.Earliest), to)
	}
	return to, nil
}

// before is the release before l: ErrNoRelease where l is the first, ErrUnavailable
// beside that where nobody has it, ErrChain where it is none that can stand there.
func (m *Mirror) before(ctx context.Context, l link) (link, error) {
	if !l.Previous.Defined() {
		return link{}, fmt.Errorf("%w: there is none before it", ErrNoRelease)
	}
	before, err := m.linkAt(ctx, l.Previous)
	if err != nil {
		if errors.Is(err, index.ErrRelease) || errors.Is(err, index.ErrFormat) {
			return link{}, fmt.Errorf("%w: before %s: %w", ErrChain, l, err)
		}
		return link{}, fmt.Errorf("%w: the one before it: %w", ErrNoRelease, err)
	}
	if before.Number >= l.Number { // so every chain ends
		return link{}, fmt.Errorf("%w: before %s it has %s", ErrChain, l, before)
	}
	return before, nil
}

// linkAt reads a link, from what was noted of it where there is that.
func (m *Mirror) linkAt(ctx context.Context, root cid.Cid) (l link, err error) {
	key := append([]byte{chainKey}, root.Bytes()...)
	raw, closer, err := m.db.Get(key)
	if err == nil {
		err = json.Unmarshal(raw, &l)
		closer.Close()
		if l.Root = root; err == nil && l.Number > 0 {
			return l, nil
		}
	} else if !errors.Is(err, pebble.ErrNotFound) {
		return link{}, damage.As(err, ErrState)
	}
	r, err := index.ReadRelease(ctx, dag{m: m, kind: directories}, root)
	if err != nil {
		return link{}, err
	}
	return linkOf(r), m.note(linkOf(r))
}

// note keeps what a release says of itself. It need not be durable.
func (m *Mirror) note(l link) error {
	raw, err := json.Marshal(l)
	if err == nil {
		err = m.db.Set(append([]byte{chainKey}, l.Root.Bytes()...), raw, pebble.NoSync)
	}
	if err != nil {
		return fmt.Errorf("note release %d: %w", l.Number, err)
	}
	return nil
}
