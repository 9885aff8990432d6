package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// history is an index with many releases, and an IPFS node that has them all.
type history struct {
	ix       *Index
	node     *node
	releases []Release
	rng      *rand.Rand
}

func newHistory(t testing.TB, packages int) *history {
	t.Helper()
	h := &history{ix: newIndexFor(t), node: newNode(), rng: rand.New(rand.NewPCG(1, uint64(packages)))}
	var first []Change
	for i := range packages {
		first = append(first, put(t, fmt.Sprintf("p%d", i), 0), put(t, fmt.Sprintf("@s%d/p%d", i%9, i), 0))
	}
	h.release(t, Batch{Changes: append(first, put(t, collideA, 0), put(t, "@s1/"+collideB, 0))})
	return h
}

func (h *history) release(t testing.TB, b Batch) Release {
	t.Helper()
	b.Now = epoch
	r, changed, err := h.ix.Apply(t.Context(), b)
	if err != nil || !changed {
		t.Fatalf("Apply: changed %v, %v", changed, err)
	}
	for blk, err := range h.ix.Blocks(t.Context(), r.Number-1, r.Number) {
		if err != nil {
			t.Fatal(err)
		}
		h.node.put(blk)
	}
	h.releases = append(h.releases, r)
	return r
}

// next makes a release of some random changes.
func (h *history) next(t testing.TB) Release {
	var changes []Change
	for range 1 + h.rng.IntN(8) {
		name := fmt.Sprintf("p%d", h.rng.IntN(400))
		switch h.rng.IntN(4) {
		case 0:
			name = fmt.Sprintf("@s%d/q%d", h.rng.IntN(12), h.rng.IntN(50))
		case 1:
			name = []string{collideA, collideB, "@s1/" + collideA, "@s1/" + collideB, collideName, collideScope + "/a"}[h.rng.IntN(6)]
		}
		if c := put(t, name, h.rng.IntN(1e6)); h.rng.IntN(4) > 0 {
			changes = append(changes, c)
		} else {
			changes = append(changes, drop(name))
		}
	}
	return h.release(t, Batch{Changes: append(changes, put(t, "always", h.rng.IntN(1e9)))})
}

func newCopy(t testing.TB) *Index {
	t.Helper()
	o := memory(vfs.NewMem())
	o.Gateway = ""
	ix, err := Create("copy", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ix.Close() })
	return ix
}

// mustSync syncs and holds the copy to its release.
func mustSync(t testing.TB, c *Index, g unixfs.Getter, r Release) Synced {
	t.Helper()
	listed := func() map[npm.Name]Entry {
		names := map[npm.Name]Entry{}
		for e, err := range c.Entries(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			names[e.Name] = e
		}
		return names
	}
	names := listed()
	s, err := c.Sync(t.Context(), g, r.Root, nil)
	if err != nil {
		t.Fatalf("sync with release %d: %v", r.Number, err)
	}
	if now := listed(); len(names) > 0 { // not the first of all
		for _, n := range s.Came {
			if _, ok := names[n]; ok {
				t.Errorf("release %d: %s was listed before", r.Number, n)
			}
			names[n] = now[n]
		}
		for _, n := range s.Went {
			if _, ok := names[n]; !ok {
				t.Errorf("release %d: %s was not listed before", r.Number, n)
			}
			delete(names, n)
		}
		for _, n := range s.Moved {
			if e, ok := names[n]; !ok || e == now[n] {
				t.Errorf("release %d: %s did not move", r.Number, n)
			}
			names[n] = now[n]
		}
		if !maps.Equal(names, now) {
			t.Errorf("release %d by %s: what came, went and moved does not lead from list to list", r.Number, s.Way)
		}
	}
	got, err := c.Head()
	if err == nil && (got.Root != r.Root || got.List != r.List) {
		err = fmt.Errorf("it is at %+v", got)
	}
	if err := errors.Join(err, c.Check(t.Context())); err != nil {
		t.Fatalf("sync with release %d by %s: %v", r.Number, s.Way, err)
	}
	return s
}

// TestSyncByDelta has a copy follow each release, and copies of every earlier one
// jump to the newest.
func TestSyncByDelta(t *testing.T) {
	h := newHistory(t, 150)
	c := newCopy(t)
	if s := mustSync(t, c, h.node, h.releases[0]); s.Way != WayDAG {
		t.Errorf("the first way was %s", s.Way)
	}
	if s := mustSync(t, c, h.node, h.releases[0]); s.Way != WayNone {
		t.Errorf("nothing to do by %s", s.Way)
	}
	late := map[uint64]*Index{1: newCopy(t), 2: newCopy(t), 14: newCopy(t), 31: newCopy(t), 59: newCopy(t)}
	for range 60 {
		r := h.next(t)
		if s := mustSync(t, c, h.node, r); s.Way != WayDelta || s.Blocks > 20 {
			t.Fatalf("release %d by %s, %d blocks, refused %v", r.Number, s.Way, s.Blocks, s.Refused)
		}
		if l := late[r.Number]; l != nil {
			mustSync(t, l, h.node, r)
		}
	}
	last := h.releases[len(h.releases)-1]
	mustSync(t, late[1], h.node, h.releases[0])
	for n, l := range late {
		if s := mustSync(t, l, h.node, last); s.Way != WayDelta || s.Blocks > 40 {
			t.Errorf("from release %d by %s, %d blocks, refused %v", n, s.Way, s.Blocks, s.Refused)
		}
	}
	if got, want := storedBlocks(t, c), listBlocks(t, c, last.List); !maps.Equal(got, want) {
		t.Errorf("the copy keeps %d blocks, its list has %d", len(got), len(want))
	}
	deltas, err := listDeltas(t.Context(), h.node, last.Root)
	if err != nil || len(deltas) > 40 {
		t.Errorf("%d deltas, %v", len(deltas), err)
	}
	for from := uint64(1); from < last.Number; from++ {
		if way := wayFrom(deltas, from, last.Number); len(way) == 0 || len(way) > 12 {
			t.Errorf("from release %d there are %d deltas", from, len(way))
		}
	}
}

// storedBlocks are the blocks that an index has.
func storedBlocks(t testing.TB, ix *Index) map[cid.Cid]bool {
	all := map[cid.Cid]bool{}
	for row, err := range scan(t.Context(), ix.db, []byte{rowBlock}) {
		if err != nil {
			t.Fatal(err)
		}
		c, err := cid.Cast(row.key[1:])
		if err != nil {
			t.Fatal(err)
		}
		all[c] = true
	}
	return all
}

// listBlocks are those of a list's directories; the packages' own are none of it.
func listBlocks(t testing.TB, ix *Index, list List) map[cid.Cid]bool {
	all := map[cid.Cid]bool{}
	var walk func(c cid.Cid)
	walk = func(c cid.Cid) {
		blk, err := ix.Get(t.Context(), c)
		if errors.Is(err, ErrNoBlock) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		all[c] = true
		below, err := unixfs.Children(blk)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range below {
			walk(c)
		}
	}
	walk(list.Root)
	walk(list.Overflow)
	return all
}

// TestSyncHeals loses and bends blocks of a copy: the list comes from its entries
// again. Two scopes of one content lose one that they share in the same way.
func TestSyncHeals(t *testing.T) {
	h := newHistory(t, 400)
	twins := func(revision int) []Change {
		a, b := put(t, "@twin-a/p", revision), put(t, "@twin-b/p", revision)
		b.CID, b.Tsize = a.CID, a.Tsize
		return []Change{a, b}
	}
	c := newCopy(t)
	for _, changes := range [][]Change{twins(0), twins(1)[:1] /* away from its twin */, twins(2)} {
		if _, err := c.Sync(t.Context(), h.node, h.release(t, Batch{Changes: changes}).Root, nil); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 20 {
		for id := range storedBlocks(t, c) {
			var bent []byte
			if round%2 == 0 {
				bent = []byte("bent")
			}
			err := c.db.Delete(blockKey(id), nil)
			if bent != nil {
				err = c.db.Set(blockKey(id), bent, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.rng.IntN(3) > 0 {
				break
			}
		}
		r := h.next(t)
		if _, err := c.Sync(t.Context(), h.node, r.Root, nil); err != nil {
			t.Fatal(err)
		}
	}
	// What no change came by is bent still; the list is the release's.
	last := h.releases[len(h.releases)-1]
	if got, err := c.Head(); err != nil || got.List != last.List {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSyncBySnapshot starts a copy, and brings one that is too far back.
func TestSyncBySnapshot(t *testing.T) {
	h := newHistory(t, 2000)
	s, err := h.ix.Snapshot(t.Context(), h.node.put)
	if err != nil {
		t.Fatal(err)
	}
	r := h.release(t, Batch{Snapshot: s})
	if r.List != h.releases[0].List {
		t.Error("a snapshot changed the list")
	}
	for range 5 {
		r = h.next(t)
	}
	c := newCopy(t)
	got := mustSync(t, c, h.node, r)
	if got.Way != WaySnapshot || len(got.Refused) > 0 {
		t.Errorf("by %s, refused %v", got.Way, got.Refused)
	}
	other := newCopy(t)
	if walked := mustSync(t, other, without(h.node, snapshotName), r); walked.Way != WayDAG || walked.Blocks < 10*got.Blocks {
		t.Errorf("by %s, %d blocks; the snapshot took %d", walked.Way, walked.Blocks, got.Blocks)
	}
	if same := slices.Equal(collect(t, c.Entries(t.Context())), collect(t, other.Entries(t.Context()))); !same {
		t.Error("two ways lead to different entries")
	}
	// A copy of another history, whose number says nothing here.
	stranger := newHistory(t, 40)
	for range 3 {
		stranger.next(t)
	}
	far := newCopy(t)
	mustSync(t, far, stranger.node, stranger.next(t))
	if got := mustSync(t, far, h.node, r); got.Way != WaySnapshot || len(got.Refused) != 1 || !errors.Is(got.Refused[0], ErrDelta) {
		t.Errorf("by %s, refused %v", got.Way, got.Refused)
	}
}

// TestSyncByDifference: where a copy has neither delta nor snapshot it asks for the
// directories that changed, and no others.
func TestSyncByDifference(t *testing.T) {
	h := newHistory(t, 3000)
	c := newCopy(t)
	whole := mustSync(t, c, h.node, h.releases[0])
	for range 5 {
		got := mustSync(t, c, without(h.node, deltaName), h.next(t))
		if got.Way != WayDAG || 8*got.Blocks > whole.Blocks {
			t.Errorf("by %s, %d blocks; the whole list took %d", got.Way, got.Blocks, whole.Blocks)
		}
	}
}

// hiding is a node that hides a directory of "_registry", and lies where it is
// told to.
type hiding struct {
	unixfs.Getter
	lies map[cid.Cid]blocks.Block
	name string
}

func without(g unixfs.Getter, name string) hiding { return hiding{Getter: g, name: name} }

func (h hiding) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	if b, ok := h.lies[c]; ok { // as if that were what the publisher linked
		return blocks.NewBlockWithCid(b.RawData(), c)
	}
	b, err := h.Getter.Get(ctx, c)
	if err != nil || h.name == "" || !bytes.Contains(b.RawData(), []byte(releaseName)) || !bytes.Contains(b.RawData(), []byte(listName)) {
		return b, err
	}
	var links []unixfs.Link
	for l, err := range unixfs.List(ctx, h.Getter, c) {
		if err != nil {
			return nil, err
		}
		if l.Name != h.name {
			links = append(links, l)
		}
	}
	var dir blocks.Block
	_, err = unixfs.BasicDir(links, func(b blocks.Block) error { dir = b; return nil })
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(dir.RawData(), c)
}

// TestSyncRefusesWrongWays: a publisher whose deltas and snapshot are wrong, or
// gone, costs time and nothing else.
func TestSyncRefusesWrongWays(t *testing.T) {
	h := newHistory(t, 300)
	s, err := h.ix.Snapshot(t.Context(), h.node.put)
	if err != nil {
		t.Fatal(err)
	}
	before := h.release(t, Batch{Snapshot: s})
	r := h.next(t)
	deltas, err := listDeltas(t.Context(), h.node, r.Root)
	if err != nil {
		t.Fatal(err)
	}
	newest := deltas[len(deltas)-1].file.CID
	block := func(raw []byte) blocks.Block { return blocks.NewBlock(raw) }
	ops := func(changes ...Change) blocks.Block {
		var buf bytes.Buffer
		if err := writeOps(&buf, deltaMagic, each(changes)); err != nil {
			t.Fatal(err)
		}
		return block(buf.Bytes())
	}
	var flood []Change
	for i := range 2 * (before.Packages + r.Packages) {
		flood = append(flood, put(t, fmt.Sprintf("flood%06d", i), 1))
	}
	for what, lie := range map[string]blocks.Block{
		"a flood":             ops(flood...),
		"nothing":             ops(),
		"another change":      ops(put(t, "p1", 12345)),
		"a package too many":  ops(put(t, "p1", 1), put(t, "zzz", 1)),
		"no delta":            block([]byte("<html>")),
		"empty":               block(nil),
		"cut short":           block([]byte(deltaMagic + "\x00\x09abc")),
		"no name":             ops(put(t, "../x", 1)),
		"a name out of order": block(slices.Concat(ops(drop("b")).RawData(), ops(drop("a")).RawData()[len(deltaMagic):])),
	} {
		c := newCopy(t)
		mustSync(t, c, h.node, before)
		lying := hiding{Getter: h.node, lies: map[cid.Cid]blocks.Block{newest: lie}}
		got := mustSync(t, c, lying, r)
		if got.Way == WayDelta || len(got.Refused) == 0 || !errors.Is(got.Refused[0], ErrDelta) {
			t.Errorf("%s: by %s, refused %v", what, got.Way, got.Refused)
		}
	}
	for what, lie := range map[string]blocks.Block{"no snapshot": block([]byte("\x28\xb5\x2f\xfd no")), "a bomb": block(make([]byte, 1000))} {
		lying := hiding{Getter: h.node, lies: map[cid.Cid]blocks.Block{s.File.CID: lie}}
		if got := mustSync(t, newCopy(t), lying, r); got.Way != WayDAG || len(got.Refused) != 1 {
			t.Errorf("%s: by %s, refused %v", what, got.Way, got.Refused)
		}
	}
	// More names than the release says, in what a small file unpacks to.
	var zipped bytes.Buffer
	if err := writeSnapshot(&zipped, func(yield func(Entry, error) bool) {
		for _, c := range flood {
			if !yield(c.Entry, nil) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	lying := hiding{Getter: h.node, lies: map[cid.Cid]blocks.Block{s.File.CID: block(zipped.Bytes())}}
	if got := mustSync(t, newCopy(t), lying, r); got.Way != WayDAG || len(got.Refused) != 1 || !strings.Contains(got.Refused[0].Error(), "more than") {
		t.Errorf("a flood: by %s, refused %v", got.Way, got.Refused)
	}
	held := newCopy(t)
	mustSync(t, held, h.node, before)
	again, err := h.ix.Snapshot(t.Context(), h.node.put)
	if err != nil {
		t.Fatal(err)
	}
	later := h.release(t, Batch{Snapshot: again})
	lying.lies = map[cid.Cid]blocks.Block{newest: ops(flood...), again.File.CID: block(zipped.Bytes())}
	got := mustSync(t, held, lying, later)
	if got.Way != WayDAG || len(got.Refused) != 2 || !errors.Is(got.Refused[0], ErrDelta) || !strings.Contains(got.Refused[1].Error(), "more than") {
		t.Errorf("floods: by %s, refused %v", got.Way, got.Refused)
	}
	// The directories of either, gone or no directories.
	for _, name := range []string{deltaName, snapshotName} {
		dir, err := unixfs.Path(t.Context(), h.node, r.Root, registryName, name)
		if err != nil {
			t.Fatal(err)
		}
		c := newCopy(t)
		mustSync(t, c, h.node, before)
		lying := hiding{Getter: h.node, lies: map[cid.Cid]blocks.Block{dir.CID: block([]byte("no directory"))}}
		got := mustSync(t, c, lying, r)
		if len(got.Refused) != 1 || (got.Way == WayDelta) != (name == snapshotName) {
			t.Errorf("without %s: by %s, refused %v", name, got.Way, got.Refused)
		}
	}
	// Where no way leads there, what is held stays.
	c := newCopy(t)
	mustSync(t, c, h.node, before)
	gone := newNode()
	for id, b := range h.node.blks {
		if id != r.List.Root && id != newest && id != s.File.CID {
			gone.put(b)
		}
	}
	if _, err := c.Sync(t.Context(), gone, r.Root, nil); err == nil {
		t.Error("synced with what is not there")
	}
	if got, err := c.Head(); err != nil || got.Root != before.Root {
		t.Errorf("at %+v, %v", got, err)
	}
	if err := c.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCopyAndOwn: an index is one or the other.
func TestCopyAndOwn(t *testing.T) {
	h := newHistory(t, 3)
	if _, err := h.ix.Sync(t.Context(), h.node, h.releases[0].Root, nil); !errors.Is(err, ErrCopy) {
		t.Errorf("Sync of its own: %v", err)
	}
	c := newCopy(t)
	mustSync(t, c, h.node, h.releases[0])
	if _, _, err := c.Apply(t.Context(), Batch{Now: epoch}); !errors.Is(err, ErrCopy) {
		t.Errorf("Apply to a copy: %v", err)
	}
}

func each[T any](all []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// FuzzReadOps: what is read is written again to the same bytes, or to shorter
// ones where what was read did not share all that it could.
func FuzzReadOps(f *testing.F) {
	var buf bytes.Buffer
	if err := writeOps(&buf, deltaMagic, each([]Change{put(f, "a", 0), drop("ab"), put(f, "b", 1)})); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte(deltaMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var all []Change
		last := npm.Name("")
		for c, err := range readOps(bytes.NewReader(raw), deltaMagic) {
			if err != nil {
				if !errors.Is(err, ErrDelta) {
					t.Fatal(err)
				}
				return
			}
			if c.Name <= last {
				t.Fatalf("%q after %q", c.Name, last)
			}
			last = c.Name
			all = append(all, c)
		}
		var again bytes.Buffer
		if err := writeOps(&again, deltaMagic, each(all)); err != nil {
			t.Fatal(err)
		}
		if again.Len() > len(raw) {
			t.Fatalf("%d bytes became %d", len(raw), again.Len())
		}
		if got := collect(t, readOps(&again, deltaMagic)); !slices.Equal(got, all) {
			t.Fatalf("%v became %v", all, got)
		}
	})
}
