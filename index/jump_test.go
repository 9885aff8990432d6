package index

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// chain adds n releases to an index, dated by a clock that is now and then wrong, and
// returns all that it has.
func chain(t testing.TB, ix *Index, n int, rng *rand.Rand) []Release {
	t.Helper()
	for range n {
		at := epoch.Add(time.Duration(rng.IntN(3)) * time.Hour)
		if head, err := ix.Head(); err == nil {
			at = head.Created.Add(time.Duration(rng.IntN(3)) * time.Hour)
			if rng.IntN(10) == 0 {
				at = epoch.AddDate(rng.IntN(10)-5, 0, 0)
			}
		}
		batch := Batch{Changes: []Change{put(t, "a", rng.IntN(1<<30))}, Now: at}
		if _, changed, err := ix.Apply(t.Context(), batch); err != nil || !changed {
			t.Fatalf("Apply: changed %v, %v", changed, err)
		}
	}
	return collect(t, ix.Releases(t.Context()))
}

// myers gives where Myers' paper has the jump of each of n nodes lead, by their depths,
// the root's to itself.
func myers(n int) []int {
	jump := make([]int, n)
	for d := 1; d < n; d++ {
		p := d - 1
		if j := jump[p]; p-j == j-jump[j] {
			jump[d] = jump[j]
		} else {
			jump[d] = p
		}
	}
	return jump
}

// holdToMyers holds the jumps of releases, each of which follows the one before it in
// the slice, to the paper and to the dates between.
func holdToMyers(t testing.TB, all []Release) {
	t.Helper()
	for d, to := range myers(len(all)) {
		var want Jump
		if to < d-1 {
			want = Jump{all[to].Number, all[to].Created, all[to].Root}
			for _, r := range all[to:d] {
				if r.Created.Before(want.Earliest) {
					want.Earliest = r.Created
				}
			}
		}
		if all[d].Jump != want {
			t.Errorf("release %d has the jump %v, want %v", all[d].Number, all[d].Jump, want)
		}
	}
}

func TestJumps(t *testing.T) {
	ix := newIndexFor(t)
	all := chain(t, ix, 140, rand.New(rand.NewPCG(1, 2)))
	holdToMyers(t, all)
	for _, r := range all {
		if got, err := ReadRelease(t.Context(), ix, r.Root); err != nil || got.Jump != r.Jump {
			t.Errorf("release %d reads %v, %v", r.Number, got.Jump, err)
		}
	}
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
	// They outlive the directories that they lead to.
	if _, err := ix.Collect(t.Context(), 120, nil); err != nil {
		t.Fatal(err)
	}
	holdToMyers(t, chain(t, ix, 10, rand.New(rand.NewPCG(3, 4))))
	if err := ix.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// From each of n releases each other before it is as near as is promised.
func TestJumpsAreFew(t *testing.T) {
	const n = 3000
	jump := myers(n)
	for from := range n {
		most := 3 * bits.Len(uint(from))
		for to := 0; to < from; to += 1 + from/50 {
			steps := 0
			for at := from; at > to; steps++ {
				if jump[at] >= to {
					at = jump[at]
				} else {
					at--
				}
			}
			if steps > most {
				t.Fatalf("%d steps from %d to %d, %d promised", steps, from, to, most)
			}
		}
	}
}

// Where the index was lost, or is an old copy, what follows begins anew, and never
// leads to a release that is not behind it.
func TestJumpsAfterLoss(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	lost := chain(t, newIndexFor(t), 20, rng)
	copied := newIndexFor(t)
	old := chain(t, copied, 9, rng)
	for name, ix := range map[string]*Index{"lost": newIndexFor(t), "an old copy": copied} {
		t.Run(name, func(t *testing.T) {
			last := lost[len(lost)-1]
			r, _, err := ix.Apply(t.Context(), Batch{Changes: []Change{put(t, "b", 1)}, Now: epoch, After: last.Number, AfterRoot: last.Root})
			if err != nil || r.Number != 21 || r.Previous != last.Root {
				t.Fatal(r, err)
			}
			all := chain(t, ix, 30, rng)
			if name != "lost" {
				holdToMyers(t, all[:len(old)])
				all = all[len(old):]
			}
			holdToMyers(t, all)
			if err := ix.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// The releases of before there were jumps count as they are: what follows jumps over
// some, and has Myers' jumps above them.
func TestJumpsBeginLate(t *testing.T) {
	ix := newIndexFor(t)
	rng := rand.New(rand.NewPCG(7, 8))
	for _, r := range chain(t, ix, 10, rng) {
		r.Jump = Jump{}
		raw, err := encodeRelease(r, true)
		if err == nil {
			err = ix.db.Set(numbered(rowRelease, r.Number), raw, pebble.Sync)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var to []uint64
	for _, r := range chain(t, ix, 12, rng)[10:] {
		to = append(to, r.Jump.Number)
	}
	if got := fmt.Sprint(to); got != "[8 0 0 11 8 0 0 15 0 0 18 15]" {
		t.Errorf("jumps of releases 11 and on lead to %s", got)
	}
}

func TestCheckJump(t *testing.T) {
	for what, spoil := range map[string]func(*Jump, []Release){
		"another release": func(j *Jump, all []Release) { j.Number, j.Root = 2, all[1].Root },
		"another root":    func(j *Jump, all []Release) { j.Root = all[1].Root },
		"another number":  func(j *Jump, _ []Release) { j.Number = 2 },
		"a later date":    func(j *Jump, _ []Release) { j.Earliest = j.Earliest.Add(time.Second) },
	} {
		t.Run(what, func(t *testing.T) {
			ix := newIndexFor(t)
			all := chain(t, ix, 6, rand.New(rand.NewPCG(9, 1)))
			if _, err := ix.Collect(t.Context(), 5, nil); err != nil {
				t.Fatal(err)
			}
			r := all[3]
			if r.Jump.Number != 1 {
				t.Fatalf("release 4 has the jump %v", r.Jump)
			}
			spoil(&r.Jump, all)
			raw, err := encodeRelease(r, true)
			if err == nil {
				err = ix.db.Set(numbered(rowRelease, 4), raw, pebble.Sync)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := ix.Check(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "release 4: its jump is") {
				t.Error(err)
			}
		})
	}
}

// A jump that cannot be one makes the release none; one that is absent does not.
func TestDecodeJump(t *testing.T) {
	ix := newIndexFor(t)
	r := chain(t, ix, 4, rand.New(rand.NewPCG(1, 1)))[3]
	raw, err := encodeRelease(r, false)
	if err != nil {
		t.Fatal(err)
	}
	jump := fmt.Sprintf(`"number": 1,
    "earliest": %q,
    "root": %q
  }`, r.Jump.Earliest.Format(time.RFC3339), r.Jump.Root)
	if !strings.Contains(string(raw), `"jump": {
    `+jump) {
		t.Fatalf("release.json is %s", raw)
	}
	for with, ok := range map[string]bool{
		jump:                                true,
		strings.Replace(jump, "1", "2", 1):  true, // what stands there says more
		`}`:                                 true,
		strings.Replace(jump, "1", "3", 1):  false, // the release before
		strings.Replace(jump, "1", "4", 1):  false, // itself
		strings.Replace(jump, "1", "5", 1):  false,
		strings.Replace(jump, "1", "0", 1):  false,
		strings.Replace(jump, "1", "-1", 1): false,
		strings.Replace(jump, "1", "18446744073709551615", 1): false,
		strings.Replace(jump, "T", " ", 1):                    false,
		strings.Replace(jump, "baf", "bax", 1):                false,
		`"number": 1}`:                                        false,
		fmt.Sprintf(`"root": %q}`, r.Jump.Root):               false,
	} {
		_, err := decodeRelease([]byte(strings.Replace(string(raw), jump, with, 1)))
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrRelease) {
			t.Errorf("%s: %v", with, err)
		}
	}
	first := Release{Format: Format, Number: 1, Created: epoch, List: r.List, Jump: Jump{1, epoch, r.Root}}
	if raw, err = encodeRelease(first, false); err != nil {
		t.Fatal(err)
	}
	if _, err := decodeRelease(raw); !errors.Is(err, ErrRelease) {
		t.Errorf("of the first release: %v", err)
	}
}
