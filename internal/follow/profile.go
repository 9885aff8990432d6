package follow

import (
	"context"
	"errors"
	"fmt"

	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// ErrProfile is returned for a ledger whose CIDs were made in another way than
// this program makes them: the same bytes would have two.
var ErrProfile = errors.New("the ledger was made with another import profile")

// profileMark is the ledger's mark that says how its CIDs were made, profile how
// this program makes them.
const (
	profileMark = ledger.MarkPrefix + "profile"
	profile     = unixfs.Profile + " " + document.Format
)

// checkProfile records the profile in a ledger that has none, and refuses one of
// another.
func (f *Follower) checkProfile(ctx context.Context) error {
	switch have, ok := f.ledger.Cursor(profileMark); {
	case ok && have != profile:
		return fmt.Errorf("%w: %q, not %q", ErrProfile, have, profile)
	case ok:
		return nil
	}
	_, err := f.ledger.Commit(ctx, ledger.Batch{Cursor: &ledger.Cursor{Feed: profileMark, Value: profile}})
	return own(err)
}
