package follow

import (
	"context"
	"fmt"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Plan is what a selection comes to.
type Plan struct {
	Packages int `json:"packages"` // that it selects: versions of them, or their documents alone
	Versions int `json:"versions"`
	Held     int `json:"held"` // of the versions, stored already
	// Bytes are those of the tarballs still to be fetched. They are estimated
	// unless Exact: documents give the size of a package once it is unpacked.
	Bytes uint64 `json:"bytes"`
	Exact bool   `json:"exact"`
	// Documents are those that it holds: of each package that is looked at on the
	// way. DocumentsHeld are stored already, as they are now.
	Documents     int `json:"documents"`
	DocumentsHeld int `json:"documents_held"`
	// DocumentBytes are those of the others, compressed as they are stored.
	DocumentBytes uint64 `json:"document_bytes"`
	// Listed is how many packages of the feed the wants of every package, or of
	// a scope, name. Their versions and documents are estimated from what is held.
	Listed int `json:"listed,omitempty"`
	// Problems are what cannot be selected, with the reason.
	Problems []string `json:"problems,omitempty"`
}

// maxPlanProblems bounds what Plan lists.
const maxPlanProblems = 1000

// Plan says what wants would cost, before anything is recorded or fetched but
// documents.
func (f *Follower) Plan(ctx context.Context, wants []ledger.Want) (Plan, error) {
	p := Plan{Exact: true}
	var named, whole []ledger.Want
	for _, want := range wants {
		if want.Spec.Name != "" {
			named = append(named, want)
		} else {
			whole = append(whole, want)
		}
	}
	if err := f.planNamed(ctx, &p, named); err != nil {
		return p, fmt.Errorf("plan: %w", err)
	}
	if err := f.planWhole(ctx, &p, whole); err != nil {
		return p, fmt.Errorf("plan: %w", err)
	}
	return p, nil
}

func (f *Follower) planNamed(ctx context.Context, p *Plan, wants []ledger.Want) error {
	known := make(map[npm.Name]bool) // of which documents are wanted
	for _, want := range wants {
		if want.Known {
			known[want.Spec.Name] = true
		}
	}
	problems := make(map[ledger.Key]string)
	err := f.resolution(ctx, f.refresh, func(r *resolution) error {
		r.dry = true
		selected, wrong, names, err := r.choose(wants)
		if err != nil {
			return err
		}
		problems = wrong
		for name := range names {
			pap, err := r.paper(ctx, name)
			if err != nil {
				if ours(ctx, err) {
					return err
				}
				problems[ledger.Key{Name: name}] = err.Error()
				continue
			}
			if known[name] || len(selected[name]) > 0 {
				p.Packages++
			}
			f.planPaper(p, pap, selected[name])
		}
		return nil
	})
	if err != nil {
		return err
	}
	for key, why := range problems {
		if len(p.Problems) < maxPlanProblems {
			p.Problems = append(p.Problems, strings.TrimSuffix(string(key.Name)+"@"+key.Version, "@")+": "+why)
		}
	}
	return nil
}

// planPaper counts a package's document and its selected versions.
func (f *Follower) planPaper(p *Plan, pap *paper, selected map[string]bool) {
	p.Documents++
	if !pap.held.Deleted && pap.held.Document.CID == pap.ref.CID {
		p.DocumentsHeld++
	} else {
		p.DocumentBytes += pap.ref.Tsize
	}
	likely := f.sizes(pap)
	for version := range selected {
		p.Versions++
		if pap.holds(version) != nil {
			p.Held++
			continue
		}
		p.Bytes += likely.tarball(version)
		p.Exact = false
	}
}

func (f *Follower) planWhole(ctx context.Context, p *Plan, wants []ledger.Want) error {
	if len(wants) == 0 {
		return nil
	}
	if f.feed == nil {
		return ErrNoFeed
	}
	c := f.ledger.Counts()
	perPackage := uint64(typicalVersions)
	if stored := c.Packages - c.Known; stored > 0 {
		perPackage = max(1, uint64(c.Versions)/uint64(stored))
	}
	listed, documents, held, err := f.listed(ctx, wants)
	if err != nil {
		return err
	}
	if wants[0].Newest > 0 {
		perPackage = min(perPackage, uint64(wants[0].Newest))
	}
	if wants[0].Known {
		perPackage, held = 0, 0
	}
	document, err := f.meanDocument(ctx)
	if err != nil {
		return err
	}
	versions := uint64(listed) * perPackage
	held = min(held, int(versions))
	p.Exact = false
	p.Listed += listed
	p.Packages += listed
	p.Documents += listed
	p.DocumentsHeld += documents
	p.DocumentBytes += uint64(listed-documents) * document
	p.Versions += int(versions)
	p.Held += held
	p.Bytes += (versions - uint64(held)) * mean(c.Bytes, c.Versions, typicalTarball)
	return nil
}

// listed is how many packages of the feed wants of every package, or of scopes,
// name, and how many documents and versions of them are held.
func (f *Follower) listed(ctx context.Context, wants []ledger.Want) (packages, documents, versions int, err error) {
	all := wants[0].All()
	info, err := f.feed.Server(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	if all && info.DocCount > 0 {
		packages = info.DocCount
	} else {
		for docs, err := range f.feed.AllDocs(ctx) {
			if err != nil {
				return 0, 0, 0, err
			}
			for _, doc := range docs {
				name, err := npm.ParseName(doc.ID)
				if err != nil || !all && !wantsScope(wants, name.Scope()) {
					continue
				}
				packages++
				if all {
					continue
				}
				held, err := f.held(ctx, name)
				if err != nil {
					return 0, 0, 0, err
				}
				versions += held.Held
				if held.Document.CID.Defined() && !held.Deleted {
					documents++
				}
			}
		}
	}
	if c := f.ledger.Counts(); all {
		documents, versions = min(c.Packages, packages), c.Versions
	}
	return packages, documents, versions, nil
}

func wantsScope(wants []ledger.Want, scope string) bool {
	for _, w := range wants {
		if scope != "" && w.Scope == scope {
			return true
		}
	}
	return false
}
