package follow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// Reasons of the refusals that the follower records. The ledger adds
// ledger.ReasonIntegrityChanged.
const (
	ReasonIntegrity   = "integrity"             // the bytes do not match their packument
	ReasonNoIntegrity = "no-integrity"          // the packument names no usable digest
	ReasonNotFound    = "not-found"             // upstream says 404 or 410
	ReasonTooLarge    = "too-large"             // beyond the size bound
	ReasonName        = "name"                  // no package name by npm's rule
	ReasonUnpublished = "unpublished"           // upstream says that all versions were taken back
	ReasonPackument   = "packument"             // not a packument, or two parsers could read it differently
	ReasonManifest    = "manifest"              // one version of a good packument is of no use
	ReasonRefused     = "refused"               // upstream says another 4xx, or its address is not allowed
	ReasonSignature   = "signature"             // the registry's signature is missing or does not verify
	ReasonUnresolved  = ledger.ReasonUnresolved // no version satisfies what was asked for
	ReasonUnavailable = "unavailable"           // passing causes, more often than Attempts
	ReasonStale       = "stale"                 // upstream's packument never caught up with its feed
)

var (
	// errStale is for a packument older than the change that announced it.
	errStale = errors.New("upstream's packument is older than its change")
	// errDeleted is for a package that is a tombstone, or is becoming one.
	errDeleted = errors.New("the package was deleted")
	// errOwn marks what is no fault of upstream's: it ends the run and the
	// cursor stays.
	errOwn = errors.New("our own fault")
)

// own marks an error of the node or the ledger.
func own(err error) error {
	if err == nil || errors.Is(err, errOwn) {
		return err
	}
	return &ownFault{err}
}

type ownFault struct{ err error }

func (o *ownFault) Error() string        { return o.err.Error() }
func (o *ownFault) Unwrap() error        { return o.err }
func (o *ownFault) Is(target error) bool { return target == errOwn }

// ours reports whether err must end the run: our own fault, or the end of ctx,
// which would make everything look unavailable.
func ours(ctx context.Context, err error) bool {
	return errors.Is(err, errOwn) || ctx.Err() != nil
}

// reason sorts an error of upstream's: a reason code where trying again would
// not help, "" where it may.
func reason(err error) string {
	stub := (*unpublished)(nil)
	switch {
	case errors.As(err, &stub):
		return ReasonUnpublished
	case errors.Is(err, npm.ErrIntegrity):
		return ReasonIntegrity
	case errors.Is(err, npm.ErrNoIntegrity):
		return ReasonNoIntegrity
	case errors.Is(err, npm.ErrSignature):
		return ReasonSignature
	case errors.Is(err, upstream.ErrNotFound):
		return ReasonNotFound
	case errors.Is(err, upstream.ErrTooLarge):
		return ReasonTooLarge
	case errors.Is(err, npm.ErrPackument):
		return ReasonPackument
	case errors.Is(err, npm.ErrName):
		return ReasonName
	case errors.Is(err, errManifest):
		return ReasonManifest
	case errors.Is(err, upstream.ErrRefused):
		return ReasonRefused
	}
	return ""
}

// lasting reports whether an item refused for this reason is left alone: a
// version until upstream says something else of it, a package for a day. Asking
// again would cost a download and end alike.
func lasting(reason string) bool {
	switch reason {
	case ReasonIntegrity, ReasonNoIntegrity, ReasonTooLarge, ReasonManifest, ReasonSignature, ReasonRefused, ledger.ReasonIntegrityChanged:
		return true
	}
	return false
}

// refusedFor is how long a package that was refused for a lasting reason is left
// alone.
const refusedFor = 24 * time.Hour

// maxDetail bounds what of an error is kept in a row, in bytes: it may quote
// upstream.
const maxDetail = 500

func detail(err error) string {
	s := err.Error()
	if len(s) > maxDetail {
		s = s[:maxDetail] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// failed is the record of a row of the queue that was worked on in vain:
// refused, or to be tried again until the limit of attempts.
func (f *Follower) failed(row ledger.Retry, err error) item {
	it := item{name: row.Name}
	refuse := func(why, detail string) item {
		it.refused = &ledger.Refusal{Name: row.Name, Version: row.Version, Reason: why, Detail: detail, Time: f.now(), Stamp: row.Stamp}
		return it
	}
	if why := reason(err); why != "" {
		return refuse(why, detail(err))
	}
	row.Attempts++
	stale := errors.Is(err, errStale)
	if row.Attempts >= f.attempts {
		why := ReasonUnavailable
		if stale {
			why = ReasonStale
		}
		return refuse(why, fmt.Sprintf("gave up after %d attempts: %s", row.Attempts, detail(err)))
	}
	row.Next, row.Detail = f.now().Add(delay(row.Attempts, stale)), detail(err)
	it.queue = []ledger.Retry{row}
	return it
}

// delay is how long an item waits after its nth attempt: it doubles from 10
// seconds to an hour, half of it by chance. A stale packument catches up within
// seconds as a rule, so that begins at 2 seconds.
func delay(attempts int, stale bool) time.Duration {
	first := 10 * time.Second
	if stale {
		first = 2 * time.Second
	}
	d := min(first<<min(attempts-1, 20), time.Hour)
	return d/2 + rand.N(d/2)
}

// revNumber is the number before the hyphen of a CouchDB revision, 0 where
// there is none.
func revNumber(rev string) int {
	n := 0
	for i := range len(rev) {
		c := rev[i]
		if c == '-' {
			return n
		}
		if c < '0' || c > '9' || n > 1<<40 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return 0
}

// older reports that revision a certainly came before revision b.
func older(a, b string) bool {
	na, nb := revNumber(a), revNumber(b)
	return na > 0 && nb > 0 && na < nb
}
