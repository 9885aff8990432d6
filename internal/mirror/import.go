package mirror

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Bundle is one that is being read.
type Bundle struct {
	Manifest Manifest
	CID      cid.Cid

	car  *ipfs.CARReader
	read []blocks.Block // before Manifest was there
	// seen are the blocks that have come, and due those that one of them links to and
	// that have not. What nothing links to is not taken.
	seen, due map[cid.Cid]bool
}

// OpenBundle reads the beginning of a bundle, with what is in it: ErrBundle,
// ipfs.ErrCAR. Nothing of that is known to be true yet.
func OpenBundle(r io.Reader) (*Bundle, error) {
	c, err := ipfs.OpenCAR(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if len(c.Roots) != 1 {
		return nil, fmt.Errorf("%w: it has %d roots, not one", ErrBundle, len(c.Roots))
	}
	b := &Bundle{CID: c.Roots[0], car: c, seen: map[cid.Cid]bool{}, due: map[cid.Cid]bool{c.Roots[0]: true}}
	here := map[cid.Cid]blocks.Block{}
	errMissing := errors.New("it has not come yet")
	get := getterFunc(func(_ context.Context, c cid.Cid) (blocks.Block, error) {
		if b, ok := here[c]; ok {
			return b, nil
		}
		return nil, errMissing
	})
	for size := 0; ; {
		blk, err := b.next()
		if err == io.EOF {
			return nil, fmt.Errorf("%w: it is cut off before it says what is in it", ErrBundle)
		}
		if err != nil {
			return nil, err
		}
		if size += len(blk.RawData()); size > maxManifest {
			return nil, fmt.Errorf("%w: it does not begin with %s", ErrBundle, bundleFile)
		}
		here[blk.Cid()] = blk
		b.read = append(b.read, blk)
		link, err := unixfs.Lookup(context.Background(), get, b.CID, bundleFile)
		var raw []byte
		if err == nil {
			raw, err = unixfs.ReadFile(context.Background(), get, link.CID, maxManifest)
		}
		if errors.Is(err, errMissing) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(raw, &b.Manifest)
		}
		if err == nil {
			err = b.Manifest.check()
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBundle, bundleFile, err)
		}
		return b, nil
	}
}

func (s Manifest) check() error {
	if s.Format != bundleFormat {
		return fmt.Errorf("its format is %d, this version knows %d", s.Format, bundleFormat)
	}
	if len(s.Packages) > maxBundled {
		return fmt.Errorf("more than %d packages", maxBundled)
	}
	for _, b := range s.Packages {
		if _, err := npm.ParseName(string(b.Name)); err != nil {
			return err
		}
		for _, v := range b.Versions {
			if err := npm.ParseVersion(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// next is the next block that one before it, or the header, links to.
func (b *Bundle) next() (blocks.Block, error) {
	for {
		blk, err := b.car.Next()
		if err == io.EOF {
			return nil, io.EOF
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBundle, err)
		}
		c := blk.Cid()
		if b.seen[c] {
			continue // it costs its reading alone
		}
		if p := c.Prefix(); !b.due[c] || p.Version != 1 || p.MhType != mh.SHA2_256 {
			return nil, fmt.Errorf("%w: block %s is linked to by none before it", ErrBundle, c)
		}
		children, err := unixfs.Children(blk)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBundle, err)
		}
		delete(b.due, c)
		b.seen[c] = true
		for _, child := range children {
			if !b.seen[child] {
				b.due[child] = true
			}
		}
		if len(b.seen)+len(b.due) > maxBundleLinks {
			return nil, fmt.Errorf("%w: more than %d blocks", ErrBundle, maxBundleLinks)
		}
		return blk, nil
	}
}

// Imported says what Import did.
type Imported struct {
	Manifest
	Sequence uint64 `json:"sequence,omitempty"` // of the record
	Blocks   int    `json:"blocks"`
}

// ErrNotTaken is returned by Import for a bundle that has no place in the table.
var ErrNotTaken = errors.New("what runs here takes no such bundle")

// ImportOptions are how Import goes about it.
type ImportOptions struct {
	// AcceptStale takes a record that has expired, as Options.AcceptStale does.
	AcceptStale bool
	// Progress, where not nil, is called from one goroutine at a time.
	Progress func(stage string, done, total int, bytes int64)
}

// Import takes a bundle in: its blocks, then its record and what that leads to, as a
// list of its own or as a part of one, which is served from then on, and pins its
// packages. Nothing that is here is evicted meanwhile. The registry must be one of the
// table's, at its newest release: ErrNotTaken. It is begun again where it was
// interrupted by doing it again. Errors are those of the mirror that follows a record too:
// ipnsrecord.ErrExpired, unless that is accepted, ipnsrecord.ErrRollback.
func (t *Table) Import(ctx context.Context, b *Bundle, o ImportOptions) (Imported, error) {
	progress := o.Progress
	if progress == nil {
		progress = func(string, int, int, int64) {}
	}
	at := slices.IndexFunc(t.rows, func(r Registry) bool { return r.Address() == b.Manifest.Address })
	c := t.cache()
	switch {
	case !t.moment.isNewest():
		return Imported{}, fmt.Errorf("import: %w: it stays at the %s", ErrNotTaken, t.moment.title())
	case at < 0:
		return Imported{}, fmt.Errorf("import: %w: that is of %.100q, which is not served", ErrNotTaken, b.Manifest.Address)
	case c == nil:
		return Imported{}, fmt.Errorf("import: %w: it makes the registry itself", ErrNotTaken)
	}
	letGo, err := c.hold(ctx)
	defer letGo()
	if err != nil {
		return Imported{}, err
	}
	got, err := t.rows[at].Mirror.takeBundle(ctx, b, o.AcceptStale, progress)
	if err != nil {
		return got, fmt.Errorf("import a bundle of %s: %w", b.Manifest.Address, err)
	}
	for i, p := range b.Manifest.Packages {
		if err := ctx.Err(); err != nil {
			return got, err
		}
		progress("check", i, len(b.Manifest.Packages), 0)
		if t.of(p.Name) != t.rows[at].Mirror {
			continue // another registry answers for the name, and has its own files of it
		}
		for _, v := range p.Versions {
			if err := c.Pin(p.Name, v); err != nil {
				return got, err
			}
		}
		pin, _ := c.pin(p.Name)
		pinned, err := t.fetchPin(ctx, pin)
		if ctx.Err() != nil {
			return got, ctx.Err()
		}
		if err == nil && len(pinned.Missing) > 0 {
			err = fmt.Errorf("%w: %s", ErrBundle, pinned.Missing[0])
		}
		if err != nil {
			return got, fmt.Errorf("import %s: %w", p.Name, err)
		}
	}
	return got, c.anchor(ctx, t.rows[at].o.Cached)
}

// takeBundle keeps the blocks, and follows the record. The order is law: the blocks are
// durable, and what the bundle promises was found in them down from what the record
// signs, before the high-water mark moves; that is durable before a name is served by
// it. A crash before the mark leaves blocks that nothing trusts, and one after it a
// mirror that serves what it did; doing it again ends both.
func (m *Mirror) takeBundle(ctx context.Context, b *Bundle, acceptStale bool, progress func(string, int, int, int64)) (Imported, error) {
	got := Imported{Manifest: b.Manifest}
	if !m.enter() {
		return got, ErrClosed
	}
	defer m.leave()
	if err := m.takeBlocks(ctx, b, progress); err != nil {
		return got, err
	}
	got.Blocks = len(b.seen)
	select { // not before: a bundle may come slowly, and lists are synced meanwhile
	case m.syncing <- struct{}{}:
		defer func() { <-m.syncing }()
	case <-ctx.Done():
		return got, ctx.Err()
	}

	var record ipnsrecord.Record
	root := m.o.Root
	if !root.Defined() {
		var err error
		if record, err = m.bundledRecord(ctx, b, acceptStale || m.o.AcceptStale); err != nil {
			return got, err
		}
		root, got.Sequence = record.Value, record.Sequence
	}
	if root.String() != b.Manifest.Root {
		return got, fmt.Errorf("%w: it is of release %.100q, its record of %s", ErrBundle, b.Manifest.Root, root)
	}
	release, err := index.ReadRelease(ctx, local{m}, root)
	if err != nil {
		return got, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	some, err := m.bundledPart(ctx, b, release)
	if err != nil {
		return got, err
	}
	if m.o.Root.Defined() {
		if m.head.Load().serves(root) {
			return got, nil
		}
		return got, m.takeList(ctx, b, some)
	}
	return got, m.followBy(ctx, record, true, func(index.Release) error { return m.takeList(ctx, b, some) })
}

// takeList serves the list that a bundle brought, whole or in part.
func (m *Mirror) takeList(ctx context.Context, b *Bundle, some part) error {
	if b.Manifest.Whole {
		_, err := m.syncList(ctx, some.Root)
		return err
	}
	list, err := unixfs.Lookup(ctx, local{m}, b.CID, bundleList)
	if err == nil {
		err = m.holdPart(ctx, list.CID)
	}
	if err != nil {
		return err
	}
	return m.takePart(some)
}

// takeBlocks keeps all blocks of a bundle, durably, and holds them to be all.
func (m *Mirror) takeBlocks(ctx context.Context, b *Bundle, progress func(string, int, int, int64)) error {
	var batch []blocks.Block
	size, total := 0, int64(0)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := m.keep(ctx, batch)
		batch, size = nil, 0
		if err != nil {
			err = fmt.Errorf("keep blocks of a bundle: %w", err)
		}
		return err
	}
	add := func(blk blocks.Block) error {
		batch = append(batch, blk)
		size += len(blk.RawData())
		if total += int64(len(blk.RawData())); size < 4<<20 && len(batch) < 1024 {
			return nil
		}
		progress("blocks", len(b.seen), 0, total)
		return flush()
	}
	for _, blk := range b.read {
		if err := add(blk); err != nil {
			return err
		}
	}
	b.read = nil
	for {
		blk, err := b.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = errors.Join(add(blk), ctx.Err())
		}
		if err != nil {
			return err
		}
	}
	if len(b.due) > 0 {
		return fmt.Errorf("%w: it is cut off: %d blocks are missing", ErrBundle, len(b.due))
	}
	if err := flush(); err != nil {
		return err
	}
	if m.o.Node == nil {
		return m.db.LogData(nil, pebble.Sync) // and so all that was written before
	}
	if node, ok := m.o.Node.(Checkpointer); ok {
		return node.Checkpoint(ctx)
	}
	return nil
}

// Checkpointer is what a NodeReader may be too: it makes what was Put durable.
type Checkpointer interface {
	Checkpoint(ctx context.Context) error
}

// bundledRecord is the bundle's record, checked.
func (m *Mirror) bundledRecord(ctx context.Context, b *Bundle, acceptStale bool) (r ipnsrecord.Record, err error) {
	name, err := ipns.NameFromString(m.name())
	if err != nil {
		return r, err
	}
	link, err := unixfs.Lookup(ctx, local{m}, b.CID, bundleRecord)
	var raw []byte
	if err == nil {
		raw, err = unixfs.ReadFile(ctx, local{m}, link.CID, int64(ipnsrecord.MaxSize))
	}
	if err != nil {
		return r, fmt.Errorf("%w: its record: %w", ErrBundle, err)
	}
	r, err = ipnsrecord.Check(name, raw, m.o.Now())
	if errors.Is(err, ipnsrecord.ErrExpired) && acceptStale {
		err = nil
	}
	return r, err
}

// bundledPart finds all that the bundle promises below the release that the record signs:
// every name, its files and each of their blocks are here. What the bundle says of them
// itself is not asked.
func (m *Mirror) bundledPart(ctx context.Context, b *Bundle, release index.Release) (part, error) {
	p := part{Root: release.Root, Number: release.Number, Names: map[npm.Name]cid.Cid{}}
	for _, has := range b.Manifest.Packages {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		e, err := index.Lookup(ctx, local{m}, release.List, has.Name)
		if err != nil {
			return p, fmt.Errorf("%w: %w", ErrBundle, err)
		}
		for _, file := range []string{index.PackumentName, index.InstallName} {
			l, err := unixfs.Lookup(ctx, local{m}, e.CID, file)
			if errors.Is(err, unixfs.ErrNotFound) {
				continue
			}
			if err == nil {
				_, err = unixfs.ReadFile(ctx, local{m}, l.CID, maxCompressed)
			}
			if err != nil {
				return p, fmt.Errorf("%w: document of %s: %w", ErrBundle, has.Name, err)
			}
		}
		files, err := m.versions(ctx, has.Name, e.CID)
		if err != nil {
			return p, fmt.Errorf("%w: %w", ErrBundle, err)
		}
		for _, v := range has.Versions {
			l, err := unixfs.Path(ctx, local{m}, e.CID, index.TarballsName, files[v].file)
			if err == nil {
				if _, whole := m.pieces(ctx, l.CID); !whole {
					err = ErrUnavailable
				}
			}
			if err != nil {
				return p, fmt.Errorf("%w: tarball of %s@%s: %w", ErrBundle, has.Name, v, err)
			}
		}
		p.Names[has.Name] = e.CID
	}
	return p, nil
}

const (
	// importStall is how long a bundle that is sent may bring nothing, and an answer may
	// find no reader.
	importStall = time.Minute
	// importSays is the time between two lines of one stage.
	importSays = 100 * time.Millisecond
)

// importLine is one line of the answer to POST /import: how far it is, and last what was
// done or why not.
type importLine struct {
	Progress *importStage `json:"progress,omitempty"`
	Imported *Imported    `json:"imported,omitempty"`
	Error    string       `json:"error,omitempty"`
}

type importStage struct {
	Stage string `json:"stage"`
	Done  int    `json:"done"`
	Total int    `json:"total,omitempty"`
	Bytes int64  `json:"bytes,omitempty"`
}

// serveImport answers with importLines while the bundle comes. It ends with who sends
// it: what had come is kept and served no more than after a crash.
func (t *Table) serveImport(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	if err := control.EnableFullDuplex(); err != nil {
		sendError(w, r, http.StatusInternalServerError, err.Error())
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer control.SetWriteDeadline(time.Time{})
	// A read that is under way ends with ctx too: a command that stops waits for nobody.
	defer context.AfterFunc(ctx, func() { _ = control.SetReadDeadline(time.Unix(1, 0)) })()
	send := func(l importLine) {
		raw, err := json.Marshal(l)
		if err == nil {
			err = control.SetWriteDeadline(time.Now().Add(importStall))
		}
		if err == nil {
			_, err = w.Write(append(raw, '\n'))
		}
		if errors.Join(err, control.Flush()) != nil {
			cancel() // nobody reads it
		}
	}
	got, err := t.importFrom(ctx, stallingReader{ctx, r.Body, control}, r.FormValue("accept_stale") == "true", send)
	if err != nil {
		t.rows[0].log.WarnContext(ctx, "a bundle was not taken in", "error", err)
		send(importLine{Error: oneLine(err)})
		// Who is still sending reads that only if sending does not fail before.
		if control.SetReadDeadline(time.Now().Add(importStall)) == nil && ctx.Err() == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return
	}
	t.rows[0].log.InfoContext(ctx, "took a bundle in", "of", got.Address, "release", got.Release, "packages", len(got.Packages))
	send(importLine{Imported: &got})
}

// importFrom is Import of what is read from r.
func (t *Table) importFrom(ctx context.Context, r io.Reader, acceptStale bool, send func(importLine)) (Imported, error) {
	b, err := OpenBundle(bufio.NewReaderSize(r, 1<<20))
	if err != nil {
		return Imported{}, err
	}
	var last importStage
	var said time.Time
	return t.Import(ctx, b, ImportOptions{AcceptStale: acceptStale, Progress: func(stage string, done, total int, bytes int64) {
		if now := time.Now(); stage != last.Stage || now.Sub(said) >= importSays {
			last, said = importStage{stage, done, total, bytes}, now
			send(importLine{Progress: &last})
		}
	}})
}

// stallingReader is a request's body that fails once nothing has come for importStall,
// and with ctx, at whose end a read under way is cut short. With the body's end the
// server takes the deadline away.
type stallingReader struct {
	ctx context.Context
	io.Reader
	control *http.ResponseController
}

func (s stallingReader) Read(p []byte) (int, error) {
	if err := s.control.SetReadDeadline(time.Now().Add(importStall)); err != nil {
		return 0, err
	}
	if err := s.ctx.Err(); err != nil { // after the deadline was set, which may have undone its end
		return 0, err
	}
	return s.Reader.Read(p)
}

// ReadImport reads the answer to POST /import. Its error, where Import failed, is what
// that says.
func ReadImport(r io.Reader, progress func(stage string, done, total int, bytes int64)) (Imported, error) {
	dec := jsontext.NewDecoder(r)
	for {
		var l importLine
		switch err := json.UnmarshalDecode(dec, &l); {
		case err != nil:
			return Imported{}, fmt.Errorf("read what became of the bundle: %w", err)
		case l.Error != "":
			return Imported{}, errors.New(l.Error)
		case l.Imported != nil:
			return *l.Imported, nil
		case l.Progress != nil:
			progress(l.Progress.Stage, l.Progress.Done, l.Progress.Total, l.Progress.Bytes)
		}
	}
}
