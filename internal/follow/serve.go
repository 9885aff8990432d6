package follow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Served is what Feed needs of a ledger. *ledger.Store is one.
type Served interface {
	Identity() string
	Head() ledger.Seq
	Counts() ledger.Counts
	Changes(ctx context.Context, since ledger.Seq, limit int) ([]ledger.Change, error)
	Wait(ctx context.Context, since ledger.Seq) error
	Package(ctx context.Context, name npm.Name) (ledger.Package, error)
	PackagesFrom(ctx context.Context, from npm.Name, limit int) ([]ledger.Package, error)
}

// LedgerFeed is a ledger as couch.Handler serves it, with the documents that the
// node holds: publishers and other followers follow it. A row's revision is the
// generation of the ledger's sequence and the CID of the package's document, so
// that it changes when the package does, in whatever way.
type LedgerFeed struct {
	ledger Served
	node   Node
}

// NewLedgerFeed returns the feed of l. It starts nothing.
func NewLedgerFeed(l Served, n Node) *LedgerFeed { return &LedgerFeed{ledger: l, node: n} }

// Identity implements couch.Source.
func (s *LedgerFeed) Identity() string { return s.ledger.Identity() }

// Head implements couch.Source.
func (s *LedgerFeed) Head() uint64 { return uint64(s.ledger.Head()) }

// Count implements couch.Source: packages without tombstones.
func (s *LedgerFeed) Count() int { return s.ledger.Counts().Packages }

// Wait implements couch.Source.
func (s *LedgerFeed) Wait(ctx context.Context, since uint64) error {
	return s.ledger.Wait(ctx, ledger.Seq(since))
}

// Changes implements couch.Source.
func (s *LedgerFeed) Changes(ctx context.Context, since uint64, limit int) ([]couch.Row, error) {
	changes, err := s.ledger.Changes(ctx, ledger.Seq(since), limit)
	rows := make([]couch.Row, len(changes))
	for i, c := range changes {
		rows[i] = couch.Row{Seq: uint64(c.Seq), ID: string(c.Name), Rev: revision(c.Seq), Deleted: c.Deleted}
	}
	return rows, err
}

// revision is the revision of a package as the ledger's feed has it: its
// sequence is its generation, and changes with it.
func revision(seq ledger.Seq) string { return fmt.Sprintf("%d-ledger", seq) }

// List implements couch.Listing.
func (s *LedgerFeed) List(ctx context.Context, from string, descending bool, limit int) ([]couch.Row, error) {
	if descending {
		return nil, fmt.Errorf("a ledger backwards: %w", couch.ErrNotOffered)
	}
	rows := make([]couch.Row, 0, limit)
	for len(rows) < limit {
		page, err := s.ledger.PackagesFrom(ctx, npm.Name(from), limit)
		if err != nil {
			return nil, err
		}
		for _, p := range page {
			if from = string(p.Name) + "\x00"; !p.Deleted && len(rows) < limit {
				rows = append(rows, couch.Row{Seq: uint64(p.Seq), ID: string(p.Name), Rev: revision(p.Seq)})
			}
		}
		if len(page) < limit {
			break
		}
	}
	return rows, nil
}

// Find implements couch.Listing.
func (s *LedgerFeed) Find(ctx context.Context, id string) (couch.Row, bool, error) {
	p, err := s.ledger.Package(ctx, npm.Name(id))
	if errors.Is(err, ledger.ErrNotFound) {
		return couch.Row{}, false, nil
	}
	return couch.Row{Seq: uint64(p.Seq), ID: id, Rev: revision(p.Seq), Deleted: p.Deleted}, err == nil, err
}

// Document implements couch.Documents: upstream's packument as the node holds
// it, with `_id` and this feed's `_rev`, and with the ledger's word on the
// versions that are stored in `_registry_mirror`. nil is none.
func (s *LedgerFeed) Document(ctx context.Context, id string) (json.RawMessage, error) {
	p, err := s.ledger.Package(ctx, npm.Name(id))
	if errors.Is(err, ledger.ErrNotFound) || err == nil && (p.Deleted || !p.Document.CID.Defined()) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := &Follower{node: s.node}
	raw, err := f.readBack(ctx, p.Document)
	if lost(err) {
		return nil, nil // `follower check` tells of it
	}
	if err != nil {
		return nil, err
	}
	own, err := json.Marshal(stored(p))
	if err != nil {
		return nil, err
	}
	return withMembers(raw, [][2]string{
		{"_id", quote(id)}, {"_rev", quote(revision(p.Seq))}, {"_registry_mirror", string(own)},
	})
}

// storedPackage is the member `_registry_mirror` of a served document.
type storedPackage struct {
	Rev      string           `json:"rev,omitempty"` // upstream's revision
	Document cid.Cid          `json:"document"`
	Versions []ledger.Version `json:"versions"` // those that are stored
}

func stored(p ledger.Package) storedPackage {
	if p.Versions == nil {
		p.Versions = []ledger.Version{}
	}
	return storedPackage{p.Rev, p.Document.CID, p.Versions}
}

func quote(s string) string {
	raw, _ := jsontext.AppendQuote(nil, s) // of a name, which is ASCII, and of our own revision
	return string(raw)
}

// withMembers puts members in front of a document's own, in the place of those
// of the same names; every other member keeps its bytes.
func withMembers(raw []byte, members [][2]string) (json.RawMessage, error) {
	rest := raw
	for _, m := range members {
		var err error
		if rest, err = without(rest, m[0]); err != nil {
			return nil, err
		}
	}
	rest = bytes.TrimLeft(bytes.TrimSpace(rest)[1:], " \t\r\n")
	var out strings.Builder
	out.Grow(len(rest) + 256)
	for i, m := range members {
		out.WriteByte("{,"[min(i, 1)])
		out.WriteString(quote(m[0]) + ":" + m[1])
	}
	if rest[0] != '}' {
		out.WriteByte(',')
	}
	out.Write(rest)
	return json.RawMessage(out.String()), nil
}
