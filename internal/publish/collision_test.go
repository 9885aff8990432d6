package publish

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Two valid npm names with one 64-bit hash. The second in order comes first to
// the ledger here: it is listed though the other is the smaller.
const (
	collideFirst = "xd53ovnfc5dl4l"
	collideLater = "x2sectmad7mumj"
)

// standing says what is listed and what is withheld.
func (w *world) standing(p *Publisher) string {
	w.t.Helper()
	var all []string
	for e, err := range p.o.Index.Entries(w.t.Context()) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, string(e.Name))
	}
	all = append(all, "|")
	withheld, err := p.Withheld()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, x := range withheld {
		all = append(all, fmt.Sprintf("%s:%s", x.Name, x.Reason))
	}
	return strings.Join(all, " ")
}

// A newcomer whose hash is a listed package's is withheld, and the release has
// no overflow that a bare gateway could not read. It is listed once the place is
// free, though its own upstream is silent.
func TestCollidingNewcomer(t *testing.T) {
	for _, scope := range []string{"", "@s/"} {
		for _, size := range []int{1, 2, 100} {
			t.Run(fmt.Sprintf("%q, pages of %d", scope, size), func(t *testing.T) {
				w := newWorld(t)
				first, later, free := scope+collideFirst, scope+collideLater, "@other/"+collideLater
				w.ledger.hold(t, first, []string{"1.0.0"}, "1.0.0")
				w.ledger.hold(t, later, []string{"1.0.0"}, "1.0.0")
				w.ledger.hold(t, free, []string{"1.0.0"}, "1.0.0")
				p, stop := w.start()
				defer func() { stop() }()
				p.pageSize = size
				check := func(what string, release index.Release, listed ...string) {
					t.Helper()
					slices.Sort(listed)
					want := strings.Join(listed, " ") + " |"
					if !slices.Contains(listed, later) {
						want += " " + later + ":hash-collision"
					}
					if got := w.standing(p); got != want {
						t.Errorf("%s: %s, want %s", what, got, want)
					}
					if release.Packages != len(listed) {
						t.Errorf("%s: %d packages", what, release.Packages)
					}
					for _, name := range listed { // by a plain walk: not from the overflow
						list := index.List{Root: release.List.Root, Overflow: w.emptyDir()}
						if _, err := index.Lookup(t.Context(), w.node, list, npm.Name(name)); err != nil {
							t.Errorf("%s: %v", what, err)
						}
					}
				}
				check("at first", w.publish(p).Release, first, free)
				withheld, err := p.Withheld()
				if err != nil || len(withheld) != 1 || !strings.Contains(withheld[0].Detail, first) {
					t.Errorf("withheld: %+v, %v", withheld, err)
				}

				// Either may change, and a restart: all stays.
				w.ledger.hold(t, later, []string{"1.0.0", "2.0.0"}, "1.0.0", "2.0.0")
				w.ledger.hold(t, first, []string{"1.0.0", "2.0.0"}, "1.0.0", "2.0.0")
				check("both changed", w.publish(p).Release, first, free)
				stop()
				p, stop = w.start()
				p.pageSize = size

				w.ledger.hold(t, "more", []string{"1.0.0"}, "1.0.0")
				gone := w.ledger.packages[npm.Name(first)]
				gone.Deleted = true
				w.ledger.set(gone)
				check("the first gone", w.publish(p).Release, later, free, "more")
				if e, err := p.o.Index.Entry(npm.Name(later)); err != nil || e.Versions != 2 {
					t.Errorf("%+v, %v", e, err)
				}
			})
		}
	}
}

// What a place was freed for is not lost where power is: not between any two
// durable steps.
func TestCollidingPowerCuts(t *testing.T) {
	for fail := 0; ; fail++ {
		w := newWorld(t)
		w.ledger.hold(t, collideFirst, []string{"1.0.0"}, "1.0.0")
		w.ledger.hold(t, collideLater, []string{"1.0.0"}, "1.0.0")
		p, stop := w.start()
		w.build(p)
		gone := w.ledger.packages[collideFirst]
		gone.Deleted = true
		w.ledger.set(gone)
		n := 0
		var after *world
		p.fault = func(string) error {
			if n++; n == fail+1 {
				after = w.powerCut(uint64(fail))
				return errCrash
			}
			return nil
		}
		_, _, err := p.Build(t.Context())
		stop()
		if err == nil {
			if fail < 3 {
				t.Errorf("only %d cuts", fail)
			}
			return
		}
		if !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		after.ledger.hold(t, "more", []string{"1.0.0"}, "1.0.0")
		p, stop = after.start()
		after.build(p)
		if got, want := after.standing(p), "more "+collideLater+" |"; got != want {
			t.Errorf("cut %d: %s, want %s", fail, got, want)
		}
		stop()
	}
}

// A place that is free is no help to a package with a bad document; what is
// said of it is the newest reason.
func TestCollidingAndBad(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, collideFirst, []string{"1.0.0"}, "1.0.0")
	w.ledger.hold(t, collideLater, []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	defer stop()
	w.build(p)
	// As the ledger is by the time that the place is free: bad, at no new sequence.
	later := w.ledger.packages[collideLater]
	later.Document.CID = later.Versions[0].CID
	w.ledger.packages[collideLater] = later
	w.ledger.hold(t, collideFirst, []string{"1.0.0"})
	w.build(p)
	if got, want := w.standing(p), "| "+collideLater+":document"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
