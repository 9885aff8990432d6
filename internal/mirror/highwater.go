package mirror

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// maxEvidence bounds the files in <Dir>/evidence: the first ones say it all.
const maxEvidence = 64

// highWater is <Dir>/highwater.json: how far this mirror has followed its name,
// and the record that brought it there. It lies outside Pebble so that deleting
// the cache forgets nothing: an attacker who can write it can at most make this
// mirror accept an older record that is still valid, or follow another name.
type highWater struct {
	Format int `json:"format"` // highWaterFormat
	ipnsrecord.State
	Record []byte `json:"record,omitempty"` // as it came, so that it can be handed on and held against another
	// Told is the name that this mirror was told to follow; "" where it still
	// follows that one.
	Told string `json:"told,omitempty"`
	// Former are the names followed before, the oldest first, each as it stood when
	// its successor took its place. They are not compared any more. Beyond
	// maxFormer the first and the newest stay.
	Former []followed `json:"former,omitempty"`
}

// followed is a name that was followed, and its last record.
type followed struct {
	ipnsrecord.State
	Record []byte `json:"record,omitempty"`
}

const (
	// highWaterFormat is the number of the form of highwater.json.
	highWaterFormat = 1
	// maxFormer bounds the file: an owner may rotate as often as he likes.
	maxFormer = 64
)

// names are those of Former.
func (h *highWater) names() []string {
	names := make([]string, len(h.Former))
	for i, f := range h.Former {
		names[i] = f.Name
	}
	return names
}

// succeeded is h once a record of the successor began state.
func (h *highWater) succeeded(state ipnsrecord.State, record []byte) *highWater {
	after := &highWater{State: state, Record: bytes.Clone(record), Told: cmp.Or(h.Told, h.Name)}
	after.Former = append(slices.Clone(h.Former), followed{h.State, h.Record})
	if len(after.Former) > maxFormer {
		after.Former = slices.Delete(after.Former, 1, 2)
	}
	return after
}

// moved is h at another state of the same name.
func (h *highWater) moved(state ipnsrecord.State, record []byte) *highWater {
	return &highWater{State: state, Record: bytes.Clone(record), Told: h.Told, Former: h.Former}
}

// readHighWater reads the file. A missing one is a beginning; a damaged one or
// one of another name, neither told nor followed, is an error, never a beginning.
func readHighWater(fsys vfs.FS, dir string, name ipns.Name) (*highWater, error) {
	path := fsys.PathJoin(dir, "highwater.json")
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &highWater{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open mirror: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var h highWater
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", path, ErrState, err)
	}
	if h.Format != highWaterFormat {
		return nil, fmt.Errorf("read %s: %w: its format is %d, this version knows %d", path, ErrState, h.Format, highWaterFormat)
	}
	if h.Name != "" && h.Name != name.String() && h.Told != name.String() {
		return nil, fmt.Errorf("read %s: %w: it follows %s, not %s", path, ErrState, h.Name, name)
	}
	return &h, nil
}

// keepHighWater makes h durable and then current.
func (m *Mirror) keepHighWater(h *highWater) error {
	h.Format = highWaterFormat
	raw, err := json.MarshalIndent(h, "", "  ")
	if err == nil {
		err = writeDurably(m.o.FS, m.o.Dir, "highwater.json", append(raw, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep the high-water mark: %w", err)
	}
	m.high.Store(h)
	if m.wrote != nil {
		m.wrote()
	}
	return nil
}

// writeDurably replaces a file: written aside, synced, renamed, and the
// directory synced. A crash leaves the old bytes or the new ones.
func writeDurably(fsys vfs.FS, dir, base string, data []byte) error {
	path := fsys.PathJoin(dir, base)
	f, err := fsys.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeDir makes dir and what is missing above it. Its own entry is then
// durable: without that, a crash would take all that was synced inside.
func makeDir(fsys vfs.FS, dir string) error {
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fsys, fsys.PathDir(dir))
}

// keepEvidence writes down two records, or two releases, that one honest
// publisher does not sign, each only once.
func (m *Mirror) keepEvidence(seen ipnsrecord.Record, why error) error {
	dir := m.o.FS.PathJoin(m.o.Dir, "evidence")
	if err := makeDir(m.o.FS, dir); err != nil {
		return fmt.Errorf("keep evidence: %w", err)
	}
	held := m.high.Load()
	digest := sha256.Sum256(append(append([]byte(nil), held.Record...), seen.Raw...))
	base := fmt.Sprintf("%d-%s.json", seen.Sequence, hex.EncodeToString(digest[:8]))
	files, err := m.o.FS.List(dir)
	if err != nil {
		return fmt.Errorf("keep evidence: %w", err)
	}
	kept := 0
	for _, f := range files {
		if f == base {
			return nil
		}
		if strings.HasSuffix(f, ".json") {
			kept++
		}
	}
	if kept >= maxEvidence {
		return nil
	}
	raw, err := json.MarshalIndent(struct {
		Time  time.Time        `json:"time"`
		Why   string           `json:"why"`
		State ipnsrecord.State `json:"state"` // what was accepted before
		Held  []byte           `json:"held"`  // the record accepted before
		Seen  []byte           `json:"seen"`  // the record refused
	}{m.o.Now().UTC(), why.Error(), held.State, held.Record, seen.Raw}, "", "  ")
	if err == nil {
		err = writeDurably(m.o.FS, dir, base, append(raw, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep evidence: %w", err)
	}
	return nil
}
