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
	Packages int `json:"packages"` // that it selects versions of
	Versions int `json:"versions"`
	Held     int `json:"held"` // of the versions, stored already
	// Bytes are those of the tarballs still to be fetched. They are estimated
	// unless Exact: documents give the size of a package once it is unpacked.
	Bytes uint64 `json:"bytes"`
	Exact bool   `json:"exact"`
	// Documents is how many documents are asked for on the way.
	Documents int `json:"documents"`
	// Listed is how many packages of the feed the wants of every package, or of
	// a scope, name. Their versions are estimated from what is held.
	Listed int `json:"listed,omitempty"`
	// Problems are what cannot be selected, with the reason.
	Problems []string `json:"problems,omitempty"`
}

const (
	// packedShare is the part that a tarball is of what it unpacks to: the
	// median of npm's packages is near a quarter.
	packedShare = 4
	// typicalVersions and typicalBytes stand for the average package and
	// tarball of npm where the ledger holds none to go by.
	typicalVersions = 10
	typicalBytes    = 100 << 10
	// maxPlanProblems bounds what Plan lists.
	maxPlanProblems = 1000
)

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
	selected, problems := make(versions), make(map[ledger.Key]string)
	err := f.resolution(ctx, f.refresh, func(r *resolution) error {
		r.dry = true
		picked, wrong, names, err := r.choose(wants)
		if err != nil {
			return err
		}
		selected, problems = picked, wrong
		p.Documents += len(names)
		for name := range names {
			pap, err := r.paper(ctx, name)
			if err != nil {
				if ours(ctx, err) {
					return err
				}
				problems[ledger.Key{Name: name}] = err.Error()
				continue
			}
			for version := range selected[name] {
				p.Versions++
				if pap.holds(version) != nil {
					p.Held++
					continue
				}
				size, exact := f.expect(pap, version)
				p.Bytes += size
				p.Exact = p.Exact && exact
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.Packages += len(selected)
	for key, why := range problems {
		if len(p.Problems) < maxPlanProblems {
			p.Problems = append(p.Problems, strings.TrimSuffix(string(key.Name)+"@"+key.Version, "@")+": "+why)
		}
	}
	return nil
}

// expect is the likely size of a tarball in bytes.
func (f *Follower) expect(pap *paper, version string) (size uint64, exact bool) {
	if m := pap.doc.Versions[version]; m != nil && m.Dist.UnpackedSize > 0 {
		return uint64(m.Dist.UnpackedSize)/packedShare + 1, false
	}
	if n := len(pap.held.Versions); n > 0 {
		for _, v := range pap.held.Versions {
			size += v.Size
		}
		return size / uint64(n), false
	}
	return f.typicalTarball(), false
}

func (f *Follower) typicalTarball() uint64 {
	if c := f.ledger.Counts(); c.Versions > 0 {
		return c.Bytes / uint64(c.Versions)
	}
	return typicalBytes
}

func (f *Follower) planWhole(ctx context.Context, p *Plan, wants []ledger.Want) error {
	if len(wants) == 0 {
		return nil
	}
	if f.feed == nil {
		return ErrNoFeed
	}
	perPackage := uint64(typicalVersions)
	if c := f.ledger.Counts(); c.Packages-c.Known > 0 {
		perPackage = max(1, uint64(c.Versions)/uint64(c.Packages-c.Known))
	}
	info, err := f.feed.Server(ctx)
	if err != nil {
		return err
	}
	listed := 0
	if info.DocCount > 0 && wants[0].All() {
		listed = info.DocCount
	} else {
		for docs, err := range f.feed.AllDocs(ctx) {
			if err != nil {
				return err
			}
			for _, doc := range docs {
				name, err := npm.ParseName(doc.ID)
				if err == nil && (wants[0].All() || wantsScope(wants, name.Scope())) {
					listed++
				}
			}
		}
	}
	if wants[0].Newest > 0 {
		perPackage = min(perPackage, uint64(wants[0].Newest))
	}
	if wants[0].Known {
		perPackage = 0
	}
	p.Exact = false
	p.Listed += listed
	p.Documents += listed
	p.Packages += listed
	versions := uint64(listed) * perPackage
	p.Versions += int(versions)
	held := uint64(f.ledger.Counts().Versions)
	if wants[0].All() {
		p.Held += int(min(held, versions))
		versions -= min(held, versions)
	}
	p.Bytes += versions * f.typicalTarball()
	return nil
}

func wantsScope(wants []ledger.Want, scope string) bool {
	for _, w := range wants {
		if scope != "" && w.Scope == scope {
			return true
		}
	}
	return false
}
