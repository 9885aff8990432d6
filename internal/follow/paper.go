package follow

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// maxDocument bounds a document read back from the node, in bytes after
// decompression. Upstream's own bound on packuments is lower.
const maxDocument = 1 << 30

// forever, as a document's age, means that the ledger's own is always good
// enough: the feed keeps it current.
const forever = time.Duration(math.MaxInt64)

// paper is a package's document as one pass sees it.
type paper struct {
	name npm.Name
	doc  *npm.Packument
	ref  ledger.Document
	rev  string
	etag string
	// checked is when upstream was asked in this pass, zero if it was not.
	checked time.Time
	// blocks hold the document where the node may lack it. They are let go
	// once they are on their way to the node.
	blocks []blocks.Block
	// held is the ledger's record before, zero where there was none.
	held ledger.Package
	// raw is kept only where the caller asked for it.
	raw []byte
}

// seen names what the document says of a version's tarball, for a refusal. "" is
// nothing of use.
func (p *paper) seen(version string) string {
	m := p.doc.Versions[version]
	if m == nil {
		if bad := p.doc.Bad[version]; bad != nil {
			return bad.Error()
		}
		return ""
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q", m.Dist.Tarball, m.Dist.Integrity, m.Dist.Shasum)
	for _, sig := range m.Dist.Signatures {
		fmt.Fprintf(sum, " %q %q", sig.KeyID, sig.Sig)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// leaveAlone reports whether a version that was refused is not tried again: its
// reason lasts and upstream says the same of it.
func (p *paper) leaveAlone(version string, was ledger.Refusal) bool {
	return lasting(was.Reason) && was.Seen == p.seen(version)
}

// holds returns what the ledger held of a version when the paper was read, nil
// where it did not.
func (p *paper) holds(version string) *ledger.Version {
	for i := range p.held.Versions {
		if p.held.Versions[i].Version == version {
			return &p.held.Versions[i]
		}
	}
	return nil
}

// names reports whether a document says anything of a version, usable or not.
func names(doc *npm.Packument, version string) bool {
	if _, ok := doc.Versions[version]; ok {
		return true
	}
	_, ok := doc.Bad[version]
	return ok
}

// local reads the blocks that the node holds, never the network's.
type local struct{ node Node }

func (l local) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) { return l.node.Local(ctx, c) }

// lost reports whether err says that the node no longer has a block, or has it
// corrupt: upstream may have it still, and a Put heals both.
func lost(err error) bool {
	return errors.Is(err, ipfs.ErrNotFound) || errors.Is(err, ipfs.ErrCorrupt)
}

// whole reads every block of a file that the node should hold. Its error is
// lost where one is missing or corrupt.
func (f *Follower) whole(ctx context.Context, file cid.Cid) error {
	blk, err := f.node.Local(ctx, file)
	if err != nil {
		return fmt.Errorf("read back %s: %w", file, err)
	}
	children, err := unixfs.Children(blk)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := f.whole(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// readBack returns the raw document that the ledger recorded. Its error is lost
// where the node lacks a block of it, or has one corrupt.
func (f *Follower) readBack(ctx context.Context, d ledger.Document) ([]byte, error) {
	r, err := unixfs.Open(ctx, local{f.node}, d.CID)
	if err != nil {
		return nil, fmt.Errorf("read back document %s: %w", d.CID, err)
	}
	raw, err := document.Decode(r, int64(d.Size), maxDocument)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read back document %s: %w", d.CID, err)
	}
	return raw, nil
}

// mine returns the ledger's own paper of a package. Its error is lost, and was
// logged, where the node does not have it whole.
func (f *Follower) mine(ctx context.Context, held ledger.Package) (*paper, error) {
	raw, err := f.readBack(ctx, held.Document)
	if lost(err) {
		f.log.ErrorContext(ctx, "a document is missing or corrupt in the node", "package", held.Name, "cid", held.Document.CID, "err", err)
	}
	if err != nil {
		return nil, err
	}
	doc, err := parse(held.Name, raw)
	if err != nil {
		// It was parsed before it was stored (law 9).
		return nil, fmt.Errorf("document of %s in the ledger: %w", held.Name, err)
	}
	return &paper{name: held.Name, doc: doc, ref: held.Document, rev: held.Rev, etag: held.ETag, held: held, raw: raw}, nil
}

// unpublished is the error for the stub that npm leaves of a package without
// versions.
type unpublished struct{ rev string }

func (*unpublished) Error() string { return "it was unpublished: no versions" }
func (*unpublished) Unwrap() error { return npm.ErrPackument }

// parse reads a packument and refuses one of another package, or of none.
func parse(name npm.Name, raw []byte) (*npm.Packument, error) {
	doc, err := npm.ParsePackument(raw)
	if err != nil {
		return nil, err
	}
	if doc.Name != name {
		return nil, fmt.Errorf("it is named %.100q: %w", doc.Name, npm.ErrPackument)
	}
	if len(doc.Versions)+len(doc.Bad) == 0 && doc.Unpublished {
		return nil, &unpublished{rev: doc.Rev}
	}
	if len(doc.Versions)+len(doc.Bad) == 0 {
		return nil, fmt.Errorf("it has no versions: %w", npm.ErrPackument)
	}
	return doc, nil
}

// fresh makes the paper of a document that upstream or a feed just sent.
func (f *Follower) fresh(name npm.Name, raw []byte, etag string, held ledger.Package) (*paper, error) {
	doc, err := parse(name, raw)
	if err != nil {
		return nil, fmt.Errorf("packument of %s: %w", name, err)
	}
	p := &paper{name: name, doc: doc, rev: doc.Rev, etag: etag, checked: f.now(), held: held, raw: raw}
	ref, err := unixfs.AddChunks(f.encoder.Encode(raw).Segments, func(b blocks.Block) error {
		p.blocks = append(p.blocks, b)
		return nil
	})
	if err != nil {
		return nil, own(fmt.Errorf("cut the document of %s: %w", name, err))
	}
	p.ref = ledger.Document{CID: ref.CID, Tsize: ref.Tsize, Size: uint64(len(raw))}
	return p, nil
}

// held returns the ledger's record, zero but for the name where there is none.
func (f *Follower) held(ctx context.Context, name npm.Name) (ledger.Package, error) {
	held, err := f.ledger.Package(ctx, name)
	if errors.Is(err, ledger.ErrNotFound) {
		return ledger.Package{Name: name}, nil
	}
	if err != nil {
		return ledger.Package{}, own(err)
	}
	return held, nil
}

// ask asks upstream for a package's document, and notes that upstream gave one.
func (f *Follower) ask(ctx context.Context, name npm.Name, etag string) (upstream.Packument, error) {
	answer, err := f.upstream.Packument(ctx, name, etag)
	if err == nil {
		f.note(func(s *seen) { s.given, s.givenAt = name, f.now() })
	}
	return answer, err
}

// load returns a package's paper: the ledger's own where upstream was asked
// less than age ago, else what upstream says now. Where upstream cannot say
// (away, or the package is gone there, which is no proof: law 4) or says less
// than is known, it is the ledger's own, and late says why.
func (f *Follower) load(ctx context.Context, name npm.Name, age time.Duration) (pap *paper, late, err error) {
	held, err := f.held(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	known := held.Document.CID.Defined() && !held.Deleted
	whole := known // until the node turns out to have lost it: upstream has it
	var mine *paper
	if since := f.now().Sub(held.Checked); known && (age == forever || since >= 0 && since < age) {
		mine, err = f.mine(ctx, held)
		if err == nil {
			return mine, nil, nil
		}
		if !lost(err) {
			return nil, nil, own(err)
		}
		whole = false
	}
	etag := ""
	if whole {
		etag = held.ETag
	}
	answer, err := f.ask(ctx, name, etag)
	if err == nil && answer.NotModified {
		asked := f.now()
		mine, err = f.mine(ctx, held)
		if err == nil {
			mine.checked = asked
			return mine, nil, nil
		}
		if !lost(err) {
			return nil, nil, own(err)
		}
		whole = false
		answer, err = f.ask(ctx, name, "")
	}
	if err == nil {
		pap, err = f.fresh(name, answer.Raw, answer.ETag, held)
	}
	if err == nil && known && older(pap.rev, held.Rev) {
		err = fmt.Errorf("it is revision %.80s, %.80s is known: %w", pap.rev, held.Rev, errStale)
	}
	if err == nil {
		return pap, nil, nil
	}
	if ours(ctx, err) || !whole {
		return nil, nil, err
	}
	mine, fault := f.mine(ctx, held)
	if lost(fault) {
		return nil, nil, err
	}
	if fault != nil {
		return nil, nil, own(fault)
	}
	if errors.Is(err, upstream.ErrNotFound) {
		mine.checked = f.now()
	}
	return mine, err, nil
}

// document are the items that record what upstream said of a package: its
// document, with the queue's rows that it ends and those that it begins, and
// held versions that now have other digests.
func (f *Follower) document(pap *paper, done []ledger.Done, queue []ledger.Retry) []item {
	var items []item
	for _, r := range pap.changed(f.now()) {
		items = append(items, item{name: pap.name, refused: &r})
	}
	it := item{name: pap.name, paper: pap, blocks: pap.blocks, done: done, queue: queue}
	pap.blocks, pap.raw = nil, nil
	return append(items, it)
}

// changed lists the held versions whose digest in the document is not that of
// the stored bytes (law 3). They stay as they are.
func (p *paper) changed(now time.Time) []ledger.Refusal {
	if p.ref.CID == p.held.Document.CID {
		return nil
	}
	var all []ledger.Refusal
	for _, v := range p.held.Versions {
		m := p.doc.Versions[v.Version]
		if m == nil {
			continue
		}
		want, err := npm.ParseIntegrity(m.Dist)
		if err != nil || agrees(want, v) {
			continue
		}
		all = append(all, ledger.Refusal{
			Name: p.name, Version: v.Version, Reason: ledger.ReasonIntegrityChanged, Time: now, Seen: p.seen(v.Version),
			Detail: fmt.Sprintf("upstream now says %.200s, the stored bytes are %s", want.String(), v.Integrity),
		})
	}
	return all
}

// agrees reports whether stored bytes are what want asks for, as far as the
// digests that the ledger holds can tell.
func agrees(want npm.Integrity, v ledger.Version) bool {
	stored := strings.Fields(v.Integrity)
	if sum, err := hex.DecodeString(v.Shasum); err == nil && len(sum) > 0 {
		stored = append(stored, "sha1-"+base64.StdEncoding.EncodeToString(sum))
	}
	comparable := false
	for _, w := range strings.Fields(want.String()) {
		algorithm, _, _ := strings.Cut(w, "-")
		for _, s := range stored {
			if s == w {
				return true
			}
			comparable = comparable || strings.HasPrefix(s, algorithm+"-")
		}
	}
	return !comparable
}
