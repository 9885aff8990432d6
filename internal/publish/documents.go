package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/semaphore"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// reserved is the name in the root that is the registry's own.
const reserved npm.Name = "_registry"

// Reasons for which something is withheld.
const (
	reasonName      = "name"            // not a package name
	reasonReserved  = "reserved"        // the name is the registry's own
	reasonDocument  = "document"        // upstream's document cannot be read or curated
	reasonSameFile  = "same-file"       // another version's tarball has the same file name
	reasonCollision = "hash-collision"  // the name's hash equals a listed one's, or the file name's another file's
	reasonNoEntry   = "not-in-document" // stored, but upstream's document does not list it
)

// built is one package's part of a batch.
type built struct {
	change   index.Change   // without a name: none
	blocks   []blocks.Block // all of them, for the node
	dirs     []blocks.Block // the directories among them, for the index too
	withheld []Withheld
	held     index.Held // by the policy; without a name for what can be in no list
}

func (b *built) withhold(version, reason string, format string, args ...any) {
	b.withheld = append(b.withheld, Withheld{Name: b.change.Name, Version: version, Reason: reason, Detail: clip(fmt.Sprintf(format, args...))})
}

// collides leaves a package out for one that is listed.
func (b *built) collides(with string) {
	b.dirs, b.withheld = nil, nil
	b.withhold("", reasonCollision, "its hash is that of %s", with)
	b.change = index.Change{}
}

// clip bounds text that may quote upstream's bytes.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// buildPackage makes a package's directory of what the ledger holds now, and the
// policy keeps of it. What
// is wrong with the package itself is withheld: then the list does not have
// it, whatever it had before, so that the list follows from ledger and policy alone.
// Only the node's and the ledger's failures are errors.
func (p *Publisher) buildPackage(ctx context.Context, by curation, change ledger.Change, memory *semaphore.Weighted) (built, error) {
	b := built{change: index.Change{Entry: index.Entry{Name: change.Name}, Delete: true}}
	reason := ""
	if change.Name == reserved {
		reason = reasonReserved
	} else if _, err := npm.ParseName(string(change.Name)); err != nil {
		reason = reasonName
	}
	if reason != "" {
		if !change.Deleted {
			b.withhold("", reason, "the list can have no %q", string(change.Name))
		}
		b.change = index.Change{} // nor has it ever had one
		return b, nil
	}
	b.held.Name = change.Name
	if !by.policy.Takes(change.Name) {
		return b, nil
	}
	pkg, err := p.o.Ledger.Package(ctx, change.Name)
	if errors.Is(err, ledger.ErrNotFound) {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	j, err := judge(by.policy, pkg, by.now)
	if err != nil {
		return b, err
	}
	if b.held = j.held; len(j.kept) == 0 {
		return b, nil
	}
	pkg.Versions = j.kept
	weight := int64(min(max(pkg.Document.Size, 1), inFlight))
	if err := memory.Acquire(ctx, weight); err != nil {
		return b, err
	}
	defer memory.Release(weight)

	raw, problem, err := p.upstream(ctx, pkg)
	if err != nil {
		return b, err
	}
	if problem != nil {
		b.withhold("", reasonDocument, "%v", problem)
		return b, nil
	}
	files, err := p.files(&b, pkg, raw, nil)
	var collision *index.CollisionError
	if errors.As(err, &collision) {
		// The directory has room for all but these; the documents must say so.
		files, err = p.files(&b, pkg, raw, collision.Files)
	}
	if err != nil {
		b.blocks, b.dirs = nil, nil
		b.withhold("", reasonDocument, "%v", err)
		return b, nil
	}
	if files.Versions > 0 {
		b.change = index.Change{Entry: files}
	} else {
		b.blocks, b.dirs = nil, nil
	}
	return b, nil
}

// upstream reads the packument that the ledger points at. A problem is the
// document's own; an error is the node's.
func (p *Publisher) upstream(ctx context.Context, pkg ledger.Package) (raw []byte, problem, err error) {
	if !pkg.Document.CID.Defined() {
		return nil, errors.New("the ledger has no document"), nil
	}
	if pkg.Document.Size > uint64(p.o.MaxDocument) {
		return nil, fmt.Errorf("the document has %d bytes, %d are allowed", pkg.Document.Size, p.o.MaxDocument), nil
	}
	g := &getter{node: p.o.Node}
	problem = func() error {
		r, err := unixfs.Open(ctx, g, pkg.Document.CID)
		if err != nil {
			return err
		}
		defer r.Close()
		raw, err = document.Decode(r, int64(pkg.Document.Size), p.o.MaxDocument)
		return err
	}()
	if problem == nil {
		return raw, nil, nil
	}
	if err := errors.Join(g.failed(), ctx.Err()); err != nil {
		return nil, nil, fmt.Errorf("read document %s: %w", pkg.Document.CID, err)
	}
	return nil, problem, nil
}

// getter reads from the node, which may ask the network, and remembers that it
// failed: a block that is not there says nothing about the document.
type getter struct {
	node ipfs.Node
	mu   sync.Mutex
	err  error
}

func (g *getter) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := g.node.Local(ctx, c)
	if errors.Is(err, ipfs.ErrNotFound) {
		ctx, cancel := context.WithTimeout(ctx, networkTimeout)
		defer cancel()
		b, err = g.node.Get(ctx, c)
	}
	if err != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.err == nil {
			g.err = err
		}
	}
	return b, err
}

func (g *getter) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// files makes the package's documents and directory with the versions that are
// in the ledger, in the document, and not in colliding. It replaces b's blocks
// and withheld versions. Errors are the document's.
func (p *Publisher) files(b *built, pkg ledger.Package, raw []byte, colliding []string) (index.Entry, error) {
	b.blocks, b.dirs, b.withheld = nil, nil, nil
	sink := func(blk blocks.Block) error {
		b.blocks = append(b.blocks, blk)
		return nil
	}
	// Versions come sorted, so the same one of two with one file name stays.
	held, owner := make(map[string]ledger.Version, len(pkg.Versions)), map[string]string{}
	for _, v := range pkg.Versions {
		if first, ok := owner[v.File]; ok {
			b.withhold(v.Version, reasonSameFile, "%s is version %s", v.File, first)
			continue
		}
		if slices.Contains(colliding, v.File) {
			b.withhold(v.Version, reasonCollision, "%s hashes as another file does", v.File)
			continue
		}
		owner[v.File] = v.Version
		held[v.Version] = v
	}
	checked, err := npm.Check(raw)
	if err != nil {
		return index.Entry{}, err
	}
	curated, err := checked.Curate(func(version string) bool { _, ok := held[version]; return ok })
	if err != nil {
		return index.Entry{}, err
	}

	var docs index.PackageFiles
	if bytes.Equal(curated.Bytes(), raw) {
		docs.Packument = unixfs.Ref{CID: pkg.Document.CID, Tsize: pkg.Document.Tsize}
	} else if docs.Packument, err = unixfs.AddChunks(p.encoder.Encode(curated.Bytes()).Segments, sink); err != nil {
		return index.Entry{}, err
	}

	listed := make(map[string]bool, len(held))
	install := curated.Abbreviate(npm.AbbreviateOptions{Time: true, CID: func(version string) string {
		v, ok := held[version]
		if !ok {
			return ""
		}
		listed[version] = true
		return v.CID.String()
	}})
	if docs.Install, err = unixfs.AddChunks(p.encoder.Encode(install.Bytes()).Segments, sink); err != nil {
		return index.Entry{}, err
	}
	if p.gateway != "" {
		// Of install, which is the shorter one: all but the CIDs is the same.
		page := install.Abbreviate(npm.AbbreviateOptions{Time: true, Tarball: func(version, upstreamURL string) string {
			v, ok := held[version]
			if !ok {
				return upstreamURL
			}
			return p.gateway + "/" + string(pkg.Name) + "/" + index.TarballsName + "/" + url.PathEscape(v.File)
		}})
		if docs.Index, err = unixfs.AddChunks(document.Sections(page.Bytes()), sink); err != nil {
			return index.Entry{}, err
		}
	}

	for _, v := range pkg.Versions {
		if _, ok := held[v.Version]; !ok {
			continue
		}
		if !listed[v.Version] {
			b.withhold(v.Version, reasonNoEntry, "upstream's document does not list it")
			continue
		}
		docs.Tarballs = append(docs.Tarballs, unixfs.Link{Name: v.File, CID: v.CID, Tsize: v.Tsize})
	}
	dir, gateway, err := index.PackageDir(docs, func(blk blocks.Block) error {
		b.dirs = append(b.dirs, blk)
		return sink(blk)
	})
	if err != nil {
		return index.Entry{}, err
	}
	return index.Entry{Name: pkg.Name, CID: dir.CID, Tsize: dir.Tsize, Versions: len(docs.Tarballs), Gateway: gateway}, nil
}
