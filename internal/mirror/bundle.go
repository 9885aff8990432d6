package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// A bundle is a CAR of one UnixFS directory, whole, so that any IPFS node takes it
// and keeps it by its root:
//
//	bundle.json                      what is in it
//	list/CID                         blocks of the list, and of the directories on the way to it
//	packages/NAME/packument.json.gz  the packages' files, as their directories have them
//	packages/NAME/install.json.gz
//	packages/NAME/-/FILE
//	record                           the signed IPNS record; absent where the registry is one release
//
// A file of list/ is the very block of that CID: nodes keep blocks by their hash, so
// that the directory is there although it hangs from nothing.
const (
	bundleFormat   = 1
	bundleFile     = "bundle.json"
	bundleList     = "list"
	bundlePackages = "packages"
	bundleRecord   = "record"

	maxBundled  = 1 << 20  // packages of a bundle
	maxManifest = 64 << 20 // bytes of bundle.json
	// maxBundleLinks bounds the blocks of a bundle that are waited for or were had:
	// a whole list of five million names has some 100,000.
	maxBundleLinks = 4 << 20
)

var (
	// ErrBundle is returned for what is no bundle, or is cut off, or holds what its
	// record does not lead to.
	ErrBundle = errors.New("not a usable bundle")
	// ErrSeveral is returned by Export for packages of several registries.
	ErrSeveral = errors.New("a bundle is of one registry")
	// ErrOtherIntegrity is returned where a lock and the registry do not mean the same bytes
	// by one version.
	ErrOtherIntegrity = errors.New("the registry has other bytes than the lockfile under the same version")
	// ErrNotHere is returned by Export where a file could not be fetched.
	ErrNotHere = errors.New("not all of it can be had")
)

// Manifest is bundle.json.
type Manifest struct {
	Format  int    `json:"format"`
	Address string `json:"address"` // "/ipns/NAME" or "/ipfs/CID"
	Release uint64 `json:"release"` // its number
	Root    string `json:"root"`    // CID of the release's directory
	// Whole says that the whole list is in list/, and not only the way to Packages.
	Whole bool `json:"whole,omitempty"`
	// Packages are the versions that are in it, sorted.
	Packages []Bundled `json:"packages"`
}

// Bundled is a package of a bundle.
type Bundled struct {
	Name     npm.Name `json:"name"`
	Versions []string `json:"versions"`
	// Integrity is what a lock says that the bytes of some of the versions are, as
	// npm.Dist has it. Of what is in a bundle it says nothing.
	Integrity map[string]string `json:"integrity,omitempty"`
}

// Hold returns ErrOtherIntegrity, with both digests, where a registry has versions with
// what contradicts b.Integrity.
func (b Bundled) Hold(has func(version string) (d npm.Dist, ok bool)) error {
	var all []string
	for _, version := range slices.Sorted(maps.Keys(b.Integrity)) {
		if d, ok := has(version); ok {
			if c := contradiction(b.Integrity[version], d); c != nil {
				all = append(all, fmt.Sprintf("%s@%s: %s", b.Name, version, c))
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrOtherIntegrity, strings.Join(all, "; "))
}

// Bundling says what Export did.
type Bundling struct {
	Manifest
	CID    cid.Cid `json:"cid"` // of the bundle's directory
	Files  int     `json:"files"`
	Blocks int     `json:"blocks"`
	Bytes  int64   `json:"bytes"` // of the CAR
}

// ExportOptions are how Export goes about it.
type ExportOptions struct {
	// Registry is the label of the one that is meant; "" where only one has what is
	// wanted. What others have is left out.
	Registry string
	// Whole puts the whole list into the bundle.
	Whole bool
	// Progress, where not nil, is called from one goroutine at a time.
	Progress func(stage string, done, total int, bytes int64)
}

// Export fetches what is missing of these packages and writes a bundle of them, as
// the newest list has them. Of equal packages, versions, record and list the bytes are
// equal. Errors: ErrSeveral, ErrOtherIntegrity, ErrNotHere with what is missing, ErrNotSynced.
func (t *Table) Export(ctx context.Context, w io.Writer, wanted []Bundled, o ExportOptions) (Bundling, error) {
	if o.Progress == nil {
		o.Progress = func(string, int, int, int64) {}
	}
	m, wanted, err := t.exporter(wanted, o.Registry)
	if err != nil {
		return Bundling{}, err
	}
	if !m.enter() {
		return Bundling{}, ErrClosed
	}
	defer m.leave()
	if err := t.FetchAll(ctx, wanted, func(done int, _ Pinned, _ error) { o.Progress("fetch", done, len(wanted), 0) }); err != nil {
		return Bundling{}, err
	}
	return m.export(ctx, w, wanted, o)
}

// fetchAtOnce is how many packages FetchAll fetches at the same time.
const fetchAtOnce = 8

// maxContradictions bounds how many packages OtherIntegrity names.
const maxContradictions = 10

// OtherIntegrity is one ErrOtherIntegrity of those of several packages, nil for none.
func OtherIntegrity(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	var all []string
	for _, err := range errs {
		_, what, _ := strings.Cut(err.Error(), ErrOtherIntegrity.Error()+": ")
		all = append(all, what)
	}
	slices.Sort(all)
	if more := len(all) - maxContradictions; more > 0 {
		all = append(all[:maxContradictions], fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("%w: %s", ErrOtherIntegrity, strings.Join(all, "; "))
}

// FetchAll is Fetch of several packages. It goes on after failures and then returns
// ErrOtherIntegrity, else ErrNotHere with the first of what is missing. said is called
// for each from one goroutine at a time.
func (t *Table) FetchAll(ctx context.Context, wanted []Bundled, said func(done int, got Pinned, err error)) error {
	var mu sync.Mutex
	var missing []string
	var other []error
	done := 0
	each(fetchAtOnce, wanted, func(b Bundled) {
		if ctx.Err() != nil {
			return
		}
		got, err := t.Fetch(ctx, b)
		mu.Lock()
		defer mu.Unlock()
		done++
		switch {
		case errors.Is(err, ErrOtherIntegrity):
			other = append(other, err)
		case err != nil:
			missing = append(missing, fmt.Sprintf("%s: %v", b.Name, err))
		}
		for _, why := range got.Missing {
			missing = append(missing, fmt.Sprintf("%s: %s", b.Name, why))
		}
		said(done, got, err)
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := OtherIntegrity(other); err != nil {
		return err
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("%w: %d missing, as %s", ErrNotHere, len(missing), missing[0])
	}
	return nil
}

// each calls do for all items, n at a time, and waits.
func each[T any](n int, items []T, do func(T)) {
	var wg sync.WaitGroup
	next := make(chan T)
	for range min(n, len(items)) {
		wg.Go(func() {
			for item := range next {
				do(item)
			}
		})
	}
	for _, item := range items {
		next <- item
	}
	close(next)
	wg.Wait()
}

// exporter is the mirror that has wanted, each package once and sorted, and what of it.
func (t *Table) exporter(wanted []Bundled, label string) (m *Mirror, own []Bundled, err error) {
	versions, integrity := map[npm.Name][]string{}, map[npm.Name]map[string]string{}
	for _, b := range wanted {
		versions[b.Name] = append(versions[b.Name], b.Versions...)
		if integrity[b.Name] == nil {
			integrity[b.Name] = map[string]string{}
		}
		maps.Copy(integrity[b.Name], b.Integrity)
	}
	var labels []string
	for _, r := range t.rows {
		var has []Bundled
		for _, name := range slices.Sorted(maps.Keys(versions)) {
			if t.of(name) == r.Mirror {
				has = append(has, Bundled{name, slices.Compact(slices.Sorted(slices.Values(versions[name]))), integrity[name]})
			}
		}
		if len(has) == 0 || label != "" && r.Label != label {
			continue
		}
		m, own, labels = r.Mirror, has, append(labels, r.Label)
	}
	switch {
	case len(labels) == 0:
		return nil, nil, fmt.Errorf("export: %w", errUnlisted)
	case len(labels) > 1:
		return nil, nil, fmt.Errorf("%w: these packages are of %s", ErrSeveral, strings.Join(labels, ", "))
	case len(own) > maxBundled:
		return nil, nil, fmt.Errorf("export: more than %d packages", maxBundled)
	}
	return m, own, nil
}

// recorder notes the directories' blocks that are read by way of it.
type recorder struct {
	m    *Mirror
	mu   sync.Mutex
	seen map[cid.Cid]uint64 // their sizes
}

func (r *recorder) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := r.m.list.Get(ctx, c)
	if err != nil {
		b, err = dag{m: r.m, kind: directories}.Get(ctx, c)
	}
	if err == nil {
		r.mu.Lock()
		r.seen[c] = uint64(len(b.RawData()))
		r.mu.Unlock()
	}
	return b, err
}

// bundleTree is a bundle's directory as it is put together.
type bundleTree struct {
	made map[cid.Cid]blocks.Block // its own blocks
	list map[cid.Cid]cid.Cid      // of a file of list/, the block that it is
}

func (b *bundleTree) sink(blk blocks.Block) error {
	b.made[blk.Cid()] = blk
	return nil
}

// export writes the bundle of what is here.
func (m *Mirror) export(ctx context.Context, w io.Writer, wanted []Bundled, o ExportOptions) (Bundling, error) {
	h, high := m.head.Load(), m.high.Load()
	switch {
	case h == nil:
		return Bundling{}, fmt.Errorf("export: %w", ErrNotSynced)
	case o.Whole && !h.serves(h.Release.Root):
		return Bundling{}, fmt.Errorf("export the whole list: %w: a bundle brought what is here of release %d", ErrNotSynced, h.Release.Number)
	case !m.o.Root.Defined() && high.Value != h.Release.Root.String():
		return Bundling{}, fmt.Errorf("export: %w: the newest record is of %s, the list of %s", ErrNotSynced, high.Value, h.Release.Root)
	}
	got := Bundling{Manifest: Manifest{Format: bundleFormat, Address: m.Address(), Release: h.Release.Number, Root: h.Release.Root.String(), Whole: o.Whole}}
	tree := &bundleTree{made: map[cid.Cid]blocks.Block{}, list: map[cid.Cid]cid.Cid{}}
	proof := &recorder{m: m, seen: map[cid.Cid]uint64{}}
	if _, err := index.ReadRelease(ctx, proof, h.Release.Root); err != nil {
		return Bundling{}, fmt.Errorf("export: %w", err)
	}
	if _, err := index.ReadKeys(ctx, proof, h.Release.Root); err != nil {
		return Bundling{}, fmt.Errorf("export: %w", err)
	}
	var packages []unixfs.Link
	scopes := map[string][]unixfs.Link{}
	for i, b := range wanted {
		o.Progress("look up", i, len(wanted), 0)
		dir, has, err := m.bundlePackage(ctx, proof, tree, h.Release.List, b)
		if err != nil {
			return Bundling{}, fmt.Errorf("export %s: %w", b.Name, err)
		}
		got.Packages = append(got.Packages, has)
		got.Files += len(has.Versions)
		link := unixfs.Link{Name: b.Name.Base(), CID: dir.CID, Tsize: dir.Tsize}
		if scope := b.Name.Scope(); scope != "" {
			scopes[scope] = append(scopes[scope], link)
		} else {
			packages = append(packages, link)
		}
	}
	if o.Whole {
		n := 0
		for _, err := range index.Names(ctx, proof, h.Release.List) {
			if err != nil {
				return Bundling{}, fmt.Errorf("export the whole list: %w", err)
			}
			if n++; n%1000 == 0 {
				o.Progress("list", n, h.Release.Packages, 0)
			}
		}
	}
	var err error
	if got.CID, err = m.bundleDir(tree, proof, got.Manifest, high.Record, packages, scopes); err != nil {
		return Bundling{}, fmt.Errorf("export: %w", err)
	}
	out := &counted{w: w}
	err = ipfs.WriteCAR(out, got.CID, func(yield func(blocks.Block, error) bool) {
		for b, err := range m.bundleBlocks(ctx, tree, got.CID) {
			got.Blocks++
			o.Progress("write", got.Blocks, 0, out.n)
			if !yield(b, err) {
				return
			}
		}
	})
	got.Bytes = out.n
	if err != nil {
		return got, fmt.Errorf("write the bundle: %w", err)
	}
	return got, nil
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// bundlePackage makes a package's directory of a bundle: of the one in the list, what is
// wanted.
func (m *Mirror) bundlePackage(ctx context.Context, proof *recorder, tree *bundleTree, list index.List, b Bundled) (dir unixfs.Ref, has Bundled, err error) {
	e, err := index.Lookup(ctx, proof, list, b.Name)
	if err != nil {
		return dir, has, err
	}
	var links []unixfs.Link
	for _, file := range []string{index.PackumentName, index.InstallName} {
		l, err := unixfs.Lookup(ctx, proof, e.CID, file)
		if errors.Is(err, unixfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return dir, has, err
		}
		links = append(links, l)
	}
	versions, err := m.versions(ctx, b.Name, e.CID)
	if err != nil {
		return dir, has, err
	}
	want := b.Versions
	if len(want) == 0 {
		want = slices.Sorted(maps.Keys(versions))
	}
	var files []unixfs.Link
	for _, version := range want {
		l, err := unixfs.Path(ctx, proof, e.CID, index.TarballsName, versions[version].file)
		if err != nil {
			return dir, has, fmt.Errorf("%s: %w", version, err)
		}
		if !slices.Contains(files, l) {
			files = append(files, l)
		}
	}
	slices.SortFunc(files, func(a, b unixfs.Link) int { return strings.Compare(a.Name, b.Name) })
	held, err := buildWhole(files, tree.sink)
	if err == nil {
		dir, err = unixfs.BasicDir(append(links, unixfs.Link{Name: index.TarballsName, CID: held.CID, Tsize: held.Tsize}), tree.sink)
	}
	return dir, Bundled{Name: b.Name, Versions: want}, err
}

// buildWhole is unixfs.BuildDir for links of which none may be left out.
func buildWhole(links []unixfs.Link, sink unixfs.Sink) (unixfs.Ref, error) {
	ref, lost, err := unixfs.BuildDir(links, unixfs.DirLimit, sink)
	if err == nil && len(lost) > 0 {
		err = fmt.Errorf("%q and another name have one hash", lost[0].Name)
	}
	return ref, err
}

// bundleDir makes the bundle's own directory.
func (m *Mirror) bundleDir(tree *bundleTree, proof *recorder, said Manifest, record []byte, packages []unixfs.Link, scopes map[string][]unixfs.Link) (cid.Cid, error) {
	raw, err := json.MarshalIndent(said, "", " ")
	if err != nil {
		return cid.Undef, err
	}
	manifest, err := unixfs.AddFile(bytes.NewReader(append(raw, '\n')), tree.sink)
	if err != nil {
		return cid.Undef, err
	}
	for _, scope := range slices.Sorted(maps.Keys(scopes)) {
		ref, err := buildWhole(scopes[scope], tree.sink)
		if err != nil {
			return cid.Undef, err
		}
		packages = append(packages, unixfs.Link{Name: scope, CID: ref.CID, Tsize: ref.Tsize})
	}
	all, err := buildWhole(packages, tree.sink)
	if err != nil {
		return cid.Undef, err
	}
	var listed []unixfs.Link
	for c, size := range proof.seen {
		as := cid.NewCidV1(cid.Raw, c.Hash())
		tree.list[as] = c
		listed = append(listed, unixfs.Link{Name: c.String(), CID: as, Tsize: size})
	}
	list, err := buildWhole(listed, tree.sink)
	if err != nil {
		return cid.Undef, err
	}
	links := []unixfs.Link{
		{Name: bundleFile, CID: manifest.CID, Tsize: manifest.Tsize},
		{Name: bundleList, CID: list.CID, Tsize: list.Tsize},
		{Name: bundlePackages, CID: all.CID, Tsize: all.Tsize},
	}
	if !m.o.Root.Defined() {
		ref, err := unixfs.AddBytes(record, tree.sink)
		if err != nil {
			return cid.Undef, err
		}
		links = append(links, unixfs.Link{Name: bundleRecord, CID: ref.CID, Tsize: ref.Tsize})
	}
	root, err := unixfs.BasicDir(links, tree.sink)
	return root.CID, err
}

// bundleBlocks are the blocks of a bundle, each once, parents before their children
// and in the order of names.
func (m *Mirror) bundleBlocks(ctx context.Context, tree *bundleTree, root cid.Cid) iter.Seq2[blocks.Block, error] {
	get := getterFunc(func(ctx context.Context, c cid.Cid) (blocks.Block, error) {
		if b, ok := tree.made[c]; ok {
			return b, nil
		}
		if is, ok := tree.list[c]; ok {
			b, err := local{m}.Get(ctx, is)
			if err != nil {
				return nil, err
			}
			return blocks.NewBlockWithCid(b.RawData(), c)
		}
		return local{m}.Get(ctx, c)
	})
	return func(yield func(blocks.Block, error) bool) {
		seen := map[cid.Cid]bool{}
		for b, err := range unixfs.Beyond(ctx, get, cid.Undef, root) {
			if err == nil && seen[b.Cid()] {
				continue
			}
			if !yield(b, err) || err != nil {
				return
			}
			seen[b.Cid()] = true
		}
	}
}

// getterFunc makes a unixfs.Getter of a function.
type getterFunc func(context.Context, cid.Cid) (blocks.Block, error)

func (f getterFunc) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) { return f(ctx, c) }
