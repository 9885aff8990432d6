package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// Status is what is published, and what the next Publish would do.
type Status struct {
	Name       ipns.Name
	Release    index.Release // the newest in the index; its Number is 0 where there is none
	Age        time.Duration // since it was built
	Behind     bool          // see Behind
	Sequence   uint64        // the newest in the journal, 0 where there is none
	Value      cid.Cid       // under that sequence
	EOL        time.Time
	Remaining  time.Duration // until EOL; negative once it has passed
	SigningDue time.Time     // from then on a run signs the same release anew; zero where there is no record
	Confirmed  time.Time     // when it was read back; zero: not yet
	// Network is the best record that the node or a route has; nil where none has one.
	Network  *ipnsrecord.Record
	Routes   []RouteStatus // what each has, the node first
	Next     string        // "build", "sign", "put" or "put again"
	Problem  error         // what would stop it: ErrNoSequence, ErrNewer, …; nil for nothing
	Withheld []Withheld
	// Held are what the policy keeps out, as Held says, of the first names at most
	// heldShown; HeldMore that there are more.
	Held     []Withheld
	HeldMore bool
	Due      time.Time      // when the first of them comes of age; zero: none by itself
	Peers    []string       // multiaddrs that readers may dial
	Former   []FormerStatus // the keys before, the oldest first
}

// FormerStatus is what is published under a name that the registry had before.
type FormerStatus struct {
	Name      ipns.Name
	Until     time.Time // it is kept up
	Ended     bool      // that time has passed: its record is not renewed any more
	Sequence  uint64    // the newest in its journal, 0 where there is none
	Value     cid.Cid
	EOL       time.Time
	Confirmed time.Time
	Problem   error // what would stop its next record; nil for nothing, and once it ended
}

// former asks the network of a name whose overlap has not ended.
func (p *Publisher) former(ctx context.Context, f Former) (FormerStatus, error) {
	s := FormerStatus{Name: f.IPNSName, Until: f.Until, Ended: !p.now().Before(f.Until)}
	h, _, err := readJournal(p.o.FS, f.Journal)
	if a := h.last; a != nil {
		s.Sequence, s.Value, s.EOL, s.Confirmed = a.Sequence, a.Value, a.EOL, a.Confirmed
	}
	if s.Ended {
		return s, nil
	}
	_, views, netErr := p.network(ctx, f.IPNSName)
	switch {
	case netErr != nil && !errors.Is(netErr, ErrNewer):
		return s, netErr
	case netErr != nil || err != nil:
		s.Problem = errors.Join(err, netErr)
	default:
		s.Problem = rivals(h, views)
	}
	return s, nil
}

// heldShown bounds what a status says of what a policy keeps out: that may be all there is.
const heldShown = 1000

// Status changes nothing, and does not wait for a running Publish.
func (p *Publisher) Status(ctx context.Context) (Status, error) {
	s := Status{Peers: p.o.Peers}
	var err error
	now := p.now()
	if s.Release, err = p.o.Index.Head(); err != nil && !errors.Is(err, index.ErrNoRelease) {
		return s, fmt.Errorf("status: %w", err)
	}
	if s.Release.Number > 0 {
		s.Age = now.Sub(s.Release.Created)
	}
	if s.Behind, err = p.Behind(); err != nil {
		s.Problem = err
	}
	for w, err := range p.Held(ctx) {
		if err != nil {
			return s, fmt.Errorf("status: %w", err)
		}
		if s.HeldMore = len(s.Held) == heldShown; s.HeldMore {
			break
		}
		s.Held = append(s.Held, w)
	}
	if s.Due, err = p.o.Index.NextDue(); err != nil {
		return s, fmt.Errorf("status: %w", err)
	}
	if s.Withheld, err = p.Withheld(); err != nil {
		return s, err
	}
	h, _, err := readJournal(p.o.FS, p.o.Journal)
	noJournal := errors.Is(err, ErrNoJournal)
	if err != nil && !noJournal {
		s.Problem = errors.Join(s.Problem, err)
	}
	if a := h.last; a != nil {
		s.Sequence, s.Value, s.EOL, s.Confirmed = a.Sequence, a.Value, a.EOL, a.Confirmed
		s.Remaining, s.SigningDue = a.EOL.Sub(now), p.due(*a)
	}
	if s.Name = p.o.IPNSName; !s.Name.Equal(ipns.Name{}) {
		if s.Network, s.Routes, err = p.network(ctx, s.Name); err != nil {
			if !errors.Is(err, ErrNewer) {
				return s, fmt.Errorf("status: %w", err)
			}
			s.Problem = errors.Join(s.Problem, err)
		} else if noJournal && s.Network == nil {
			s.Problem = errors.Join(s.Problem, ErrNoSequence)
		} else if !noJournal {
			s.Problem = errors.Join(s.Problem, rivals(h, s.Routes))
		}
	}
	for _, f := range p.o.Former {
		one, err := p.former(ctx, f)
		if err != nil {
			return s, fmt.Errorf("status: %w", err)
		}
		s.Former = append(s.Former, one)
	}
	a := h.last
	switch {
	case s.Behind || s.Release.Number == 0 || h.passed(s.Release) || !slices.Equal(s.Release.Names, p.names()):
		s.Next = "build"
	case a == nil || a.Abandoned || a.Record == nil || a.Value != s.Release.Root || !now.Before(s.SigningDue):
		s.Next = "sign"
	case a.Confirmed.IsZero():
		s.Next = "put"
	default:
		s.Next = "put again"
	}
	return s, nil
}
