package follow

import (
	"context"
	"errors"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Checked is what Check found.
type Checked struct {
	Packages int      `json:"packages"`
	Versions int      `json:"versions"`
	Bytes    uint64   `json:"bytes"`  // of the tarballs that are whole
	Broken   []Broken `json:"broken"` // at most maxBroken
	Lost     int      `json:"lost"`   // all of them
}

// Broken is a document or tarball that the ledger names and the node does not
// have whole.
type Broken struct {
	Name    npm.Name `json:"name"`
	Version string   `json:"version,omitempty"` // "" for the document
	CID     string   `json:"cid"`
	Detail  string   `json:"detail"`
}

// maxBroken bounds what Checked lists.
const maxBroken = 10_000

// Check walks the ledger and reads every block of what it names from the node,
// hash and all. With fetch, what is missing or corrupt comes into the queue, to
// be fetched again. report, where not nil, is told how many packages were looked
// at.
func (f *Follower) Check(ctx context.Context, fetch bool, report func(done int)) (Checked, error) {
	c := Checked{Broken: []Broken{}}
	for p, err := range f.ledger.Packages(ctx) {
		if err != nil {
			return c, own(err)
		}
		if p.Deleted {
			continue
		}
		full, err := f.ledger.Package(ctx, p.Name)
		if errors.Is(err, ledger.ErrNotFound) {
			continue
		}
		if err != nil {
			return c, own(err)
		}
		if err := f.checkPackage(ctx, &c, full, fetch); err != nil {
			return c, err
		}
		if c.Packages++; report != nil {
			report(c.Packages)
		}
	}
	return c, nil
}

func (f *Follower) checkPackage(ctx context.Context, c *Checked, p ledger.Package, fetch bool) error {
	var queue []ledger.Retry
	broken := func(version, cid string, err error) {
		if c.Lost++; len(c.Broken) < maxBroken {
			c.Broken = append(c.Broken, Broken{Name: p.Name, Version: version, CID: cid, Detail: detail(err)})
		}
		queue = append(queue, ledger.Retry{Name: p.Name, Version: version, Next: f.now(), Detail: detail(err)})
	}
	if p.Document.CID.Defined() {
		if err := f.whole(ctx, p.Document.CID); lost(err) {
			broken("", p.Document.CID.String(), err)
		} else if err != nil {
			return own(err)
		}
	}
	for _, v := range p.Versions {
		c.Versions++
		switch err := f.whole(ctx, v.CID); {
		case err == nil:
			c.Bytes += v.Size
		case lost(err):
			broken(v.Version, v.CID.String(), err)
		default:
			return own(err)
		}
	}
	if !fetch || len(queue) == 0 {
		return nil
	}
	_, err := f.ledger.Commit(ctx, ledger.Batch{Retries: queue})
	return own(err)
}
