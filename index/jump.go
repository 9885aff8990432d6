package index

import (
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
)

// Jump is how a release leads further back than to the one before it, so that any
// earlier one is found in few steps: some 3 log2 n of n releases at the most, where
// each step goes to the jump's release if that is not beyond what is sought, else to
// the one before. These are Myers' skew-binary lists ("An applicative random-access
// stack", Information Processing Letters 17, 1983): behind each release lies a stretch,
// to its jump's release, or to the one before where it has no jump. Where that and the
// stretch behind it are equally long, the next release has a jump over both.
//
// It is made of the releases that the index has, and of nothing else. Those of before
// there were jumps count as they are. The releases that follow one which the index does
// not have (Batch.After) begin anew, and lead beyond it by Previous alone.
type Jump struct {
	Number   uint64    `json:"number"`   // of the release that it leads to
	Earliest time.Time `json:"earliest"` // the earliest Created of that release and of all that the jump leads over
	Root     cid.Cid   `json:"root"`     // of that release; cid.Undef for no jump
}

// jumpAfter is the jump of the release that follows r, which the index has; none where
// the release before is as far as one step goes.
func jumpAfter(rows pebble.Reader, r Release) (Jump, error) {
	first, middle, err := stretch(rows, r)
	if err != nil || !first.Root.Defined() {
		return Jump{}, err
	}
	second, _, err := stretch(rows, middle)
	if err != nil || !second.Root.Defined() || r.Number-first.Number != first.Number-second.Number {
		return Jump{}, err
	}
	for _, t := range []time.Time{r.Created, first.Earliest} {
		if t.Before(second.Earliest) {
			second.Earliest = t
		}
	}
	return second, nil
}

// stretch is where the stretch behind r ends; the zero Jump where the index does not
// have that.
func stretch(rows pebble.Reader, r Release) (Jump, Release, error) {
	before, _, err := releaseAndBefore(rows, r.Number)
	j := Jump{before.Number, before.Created, r.Previous}
	if err == nil && r.Jump.Root.Defined() {
		j = r.Jump
		_, before, err = releaseAndBefore(rows, j.Number)
	}
	if errors.Is(err, ErrNoRelease) || err == nil && before.Root != j.Root {
		return Jump{}, Release{}, nil
	}
	return j, before, err
}
