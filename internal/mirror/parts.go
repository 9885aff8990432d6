package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// errNotInBundle is why a name cannot be looked up in parts of a list: whether the
// registry has it is not known here.
var errNotInBundle = errors.New("only what bundles brought is here, and none had this name")

// part is what a bundle brought of a release's list: where some names lead. Each was
// looked up in the release's directories, down from the root that its record signs.
type part struct {
	Root   cid.Cid              `json:"root"`
	Number uint64               `json:"number"`
	Names  map[npm.Name]cid.Cid `json:"names"`
}

// maxParts bounds the releases of which parts stay: the newest ones.
const maxParts = 16

// partsLabel is the label under which the node pins the directories that a mirror's parts
// need.
func (m *Mirror) partsLabel() string {
	return "registry-mirror-part-" + strings.TrimPrefix(m.name(), "/ipfs/")
}

// holdPart has the node pin a bundle's list/, where it can.
func (m *Mirror) holdPart(ctx context.Context, list cid.Cid) error {
	node, ok := m.o.Node.(Pinner)
	if !ok {
		return nil
	}
	return node.Pin(ctx, m.partsLabel(), cid.Undef, list)
}

// letGoOfParts unpins them all: a whole list has taken their place.
func (m *Mirror) letGoOfParts(ctx context.Context) {
	node, ok := m.o.Node.(Pinner)
	if !ok {
		return
	}
	roots, err := node.Pins(ctx, m.partsLabel())
	for _, root := range roots {
		err = errors.Join(err, node.Unpin(ctx, m.partsLabel(), root))
	}
	if err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "the node keeps pins of bundles that are of no use any more", "error", err)
	}
}

// local is a getter of what lies on this machine, and asks nobody.
type local struct{ m *Mirror }

func (l local) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if b, err := l.m.list.Get(ctx, c); err == nil {
		return b, nil
	}
	return l.m.held(ctx, c)
}

// loadParts takes up the parts that are newer than whole, which may be nil.
func (m *Mirror) loadParts(whole *head) error {
	raw, closer, err := m.db.Get([]byte{partsKey})
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open mirror: %w", damage.As(err, ErrState))
	}
	var parts []part
	err = json.Unmarshal(raw, &parts)
	closer.Close()
	if err != nil {
		return fmt.Errorf("open mirror: %w: %w", ErrState, err)
	}
	h, err := m.withParts(whole, parts)
	if err != nil {
		// Its node lost the release's blocks: what is whole is served, and importing
		// the bundle again mends the rest.
		m.log.Error("what a bundle brought is not served", "error", err)
		return nil
	}
	if h != nil && len(h.parts) > 0 {
		m.setHead(h)
	}
	return nil
}

// withParts is whole, which may be nil, with those of parts that are newer.
func (m *Mirror) withParts(whole *head, parts []part) (*head, error) {
	h := &head{}
	if whole != nil {
		*h = *whole
		h.parts = nil
	}
	for _, p := range parts {
		if !h.list.Defined() || p.Number > whole.Release.Number {
			h.parts = append(h.parts, p)
		}
	}
	if len(h.parts) == 0 {
		return whole, nil
	}
	r, err := index.ReadRelease(context.Background(), local{m}, h.parts[0].Root)
	if err != nil {
		return nil, err
	}
	h.Release = r
	return h, nil
}

// takePart adds to what is held of lists, durably, and serves it. The caller has the
// syncing token and has accepted the release.
func (m *Mirror) takePart(p part) error {
	var whole *head
	var parts []part
	if h := m.head.Load(); h != nil {
		parts = slices.Clone(h.parts)
		if h.list.Defined() {
			r, err := m.list.Head()
			if err != nil {
				return err
			}
			whole = &head{Release: r, list: r.Root}
			if len(parts) == 0 {
				whole.Synced = h.Synced
			}
		}
	}
	if len(parts) > 0 && parts[0].Root.Equals(p.Root) {
		names := maps.Clone(parts[0].Names)
		maps.Copy(names, p.Names)
		parts[0].Names = names
	} else {
		parts = append([]part{p}, parts...)
	}
	parts = parts[:min(len(parts), maxParts)]
	h, err := m.withParts(whole, parts)
	if err != nil {
		return err
	}
	if len(h.parts) == 0 {
		return fmt.Errorf("%w: the list here is of a later release", ErrBundle)
	}
	h.Synced = m.o.Now().UTC()
	raw, err := json.Marshal(parts)
	if err == nil {
		err = m.db.Set([]byte{partsKey}, raw, pebble.Sync)
	}
	if err != nil {
		return fmt.Errorf("keep a part of release %d: %w", p.Number, err)
	}
	m.setHead(h)
	return nil
}

// partAt is what bundles brought of the release at root, of which no whole list is served.
func (m *Mirror) partAt(root cid.Cid) (part, bool) {
	h := m.head.Load()
	if h == nil {
		return part{}, false
	}
	i := slices.IndexFunc(h.parts, func(p part) bool { return p.Root.Equals(root) })
	if i < 0 {
		return part{}, false
	}
	return h.parts[i], true
}

// servePart makes p all that the mirror of p's release has of its list.
func (m *Mirror) servePart(ctx context.Context, p part) error {
	r, err := index.ReadRelease(ctx, local{m}, p.Root)
	if err != nil {
		return fmt.Errorf("open release %d: %w", p.Number, err)
	}
	m.setHead(&head{Release: r, parts: []part{p}, Synced: m.o.Now().UTC()})
	return nil
}

// partNames are the names of all parts, in order.
func (h *head) partNames() []npm.Name {
	var names []npm.Name
	for _, p := range h.parts {
		names = slices.AppendSeq(names, maps.Keys(p.Names))
	}
	slices.Sort(names)
	return slices.Compact(names)
}
