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

// Each release names the one before it by its CID ("previous"), so the newest one
// speaks for all: what is reached from it needs no other trust. What was read of a
// link once is kept, for ever and for any chain, since its CID says it all.

// ErrNoRelease is returned for a release that is none of the chain's, or that the
// chain cannot be followed to: then beside ErrUnavailable, where nobody has it now.
var ErrNoRelease = errors.New("no such release can be had")

// ErrChain is returned for a chain of releases that does not go back.
var ErrChain = errors.New("the releases before do not make a chain")

// chainKey begins the rows c <CID>, each a link as JSON.
const chainKey = 'c'

// link is one release of the chain.
type link struct {
	Root     cid.Cid   `json:"-"`
	Number   uint64    `json:"number"`
	Created  time.Time `json:"created"`
	Previous cid.Cid   `json:"previous,omitzero"` // undefined for the first
}

func linkOf(r index.Release) link { return link{r.Root, r.Number, r.Created, r.Previous} }

func (l link) String() string {
	return fmt.Sprintf("release %d of %s", l.Number, l.Created.UTC().Format("2006-01-02 15:04:05 MST"))
}

// honest is how many releases in a row may have been made by a clock that was
// wrong, before a date means what that clock said.
const honest = 16

// find is the release that at names, going back from the newest that is held. With a
// time it is the newest that is dated then or before, and has none dated after that
// among the 16 before it: dates are their publisher's word, and where a clock went
// back the answer is rather older than newer than what stood then. progress, where
// not nil, is told how many releases were passed. Errors: ErrNotSynced, ErrNoRelease,
// ErrChain.
func (m *Mirror) find(ctx context.Context, at Moment, progress func(passed int)) (link, error) {
	h := m.head.Load()
	if h == nil {
		return link{}, ErrNotSynced
	}
	l, err := m.findFrom(ctx, linkOf(h.Release), at, progress)
	if err != nil {
		return link{}, fmt.Errorf("%s of %s: %w", at.title(), m.Address(), err)
	}
	return l, nil
}

func (m *Mirror) findFrom(ctx context.Context, l link, at Moment, progress func(int)) (link, error) {
	if at.isNewest() || at.number == l.Number {
		return l, nil
	}
	if at.number > l.Number {
		return link{}, fmt.Errorf("%w: the newest here is %s", ErrNoRelease, l)
	}
	var found link // by time; its Number is 0 while there is none
	for passed, since := 0, 0; ; passed++ {
		if progress != nil {
			progress(passed)
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
		before, err := m.before(ctx, l)
		if err == nil {
			l = before
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
