package follow

import (
	"context"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Bounds of the documents that are kept parsed, for the tarballs that they name:
// documents, and versions in all of them.
const (
	maxParsed         = 512
	maxParsedVersions = 50_000
)

// parsed holds documents that were read a moment ago, by their CIDs.
type parsed struct {
	mu       sync.Mutex
	docs     map[cid.Cid]*npm.Packument
	versions int
}

func (p *parsed) get(c cid.Cid) *npm.Packument {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.docs[c]
}

func (p *parsed) put(c cid.Cid, doc *npm.Packument) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.docs == nil {
		p.docs = make(map[cid.Cid]*npm.Packument)
	}
	if p.docs[c] != nil {
		return
	}
	for other, old := range p.docs {
		if len(p.docs) < maxParsed && p.versions < maxParsedVersions {
			break
		}
		delete(p.docs, other)
		p.versions -= len(old.Versions)
	}
	p.docs[c] = doc
	p.versions += len(doc.Versions)
}

// current is mine, without parsing again what was read a moment ago.
func (f *Follower) current(ctx context.Context, held ledger.Package) (*paper, error) {
	if doc := f.parsed.get(held.Document.CID); doc != nil && f.whole(ctx, held.Document.CID) == nil {
		return &paper{name: held.Name, doc: doc, ref: held.Document, rev: held.Rev, etag: held.ETag, held: held}, nil
	}
	pap, err := f.mine(ctx, held)
	if err == nil {
		f.parsed.put(pap.ref.CID, pap.doc)
	}
	return pap, err
}
