package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// What Check finds.
const (
	FoundCorrupt  = "corrupt"  // the index contradicts itself, or its files are damaged
	FoundOther    = "other"    // listed otherwise than ledger and policy, or a rollback, have it
	FoundMissing  = "missing"  // not listed, though ledger and policy, or a rollback, have it
	FoundExtra    = "extra"    // listed, though ledger and policy, or a rollback, do not have it
	FoundWithheld = "withheld" // what is noted as withheld is not what ledger and policy give
	FoundLost     = "lost"     // the node has no such block, or other bytes
)

// Found is one thing that is not as it should be.
type Found struct {
	What    string   `json:"what"`
	Package npm.Name `json:"package,omitempty"`
	CID     string   `json:"cid,omitempty"` // of what is lost
	Detail  string   `json:"detail"`
}

// Checked says what Check looked at.
type Checked struct {
	Release  uint64 `json:"release"`  // the newest that was pinned, whose blocks were read; 0 for none
	Packages int    `json:"packages"` // rebuilt and compared
	Ahead    int    `json:"ahead"`    // that changed since the index read the ledger: the next build's
	Blocks   int    `json:"blocks"`   // read from the node, of that release
	Found    int    `json:"found"`
}

// Stages of a check, in their order.
const (
	StageIndex    = "rows"     // of the index
	StagePackages = "packages" // rebuilt
	StageRelease  = "release"  // packages whose blocks were read from the node
)

// Check compares what Build and Publish made with what it was made of, and changes
// nothing. It yields what is not as it should be, as it is found:
//
//   - the index is held to itself (index.Check);
//   - every package that the index has read of the ledger is built again, as Build
//     does and by the policy that the list follows, and compared with its entry, and
//     with what is noted as withheld; one
//     that was rolled back is held to the release that did it;
//   - of the newest release that is pinned every directory and document is read from
//     the node. Tarballs are for the follower to check.
//
// The network is not asked. sum is complete once the last was yielded. report, where
// not nil, is told how far each stage is, from one goroutine at a time; a total of 0
// is not known. Memory does not grow with the registry, but for what is withheld.
// Build and Publish wait meanwhile. It ends at the first error that says nothing of
// what is checked: ErrOtherLedger, ErrLedgerBehind, ErrJournal, the ledger's, and the
// node's.
func (p *Publisher) Check(ctx context.Context, sum *Checked, report func(stage string, done, total int)) iter.Seq2[Found, error] {
	if report == nil {
		report = func(string, int, int) {}
	}
	return func(yield func(Found, error) bool) {
		p.turn.Lock()
		defer p.turn.Unlock()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		o := p.o
		o.Node = offline{o.Node}
		c := checker{p: New(o), sum: sum, report: report, found: make(chan Found)}
		c.p.pageSize = p.pageSize
		var err error
		go func() {
			defer close(c.found)
			err = c.check(ctx)
		}()
		for f := range c.found {
			sum.Found++
			if !yield(f, nil) {
				cancel()
				for range c.found { // until check has ended
				}
				return
			}
		}
		if err != nil {
			yield(Found{}, fmt.Errorf("check %s: %w", p.o.Registry, err))
		}
	}
}

// offline is a node that asks nobody.
type offline struct{ ipfs.Node }

func (n offline) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) { return n.Local(ctx, c) }

type checker struct {
	p      *Publisher // over an offline node
	found  chan Found
	report func(stage string, done, total int)

	cursor ledger.Seq // up to which the index has read the ledger
	by     curation
	head   index.Release
	oldest uint64 // release whose directories are there

	mu     sync.Mutex // over what follows
	sum    *Checked
	notes  map[npm.Name][]Withheld // as noted; what was looked at goes
	listed int                     // entries of packages that the ledger has
	held   int                     // the same of what the policy holds
}

func (c *checker) check(ctx context.Context) error {
	for _, stage := range []func(context.Context) error{c.index, c.packages, c.release} {
		err := stage(ctx)
		if errors.Is(err, index.ErrCorrupt) {
			err = c.tell(ctx, Found{What: FoundCorrupt, Detail: err.Error()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) tell(ctx context.Context, f Found) error {
	select {
	case c.found <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *checker) index(ctx context.Context) error {
	return c.p.o.Index.CheckProgress(ctx, func(rows int) { c.report(StageIndex, rows, 0) })
}

// packages holds the list to the ledger.
func (c *checker) packages(ctx context.Context) (err error) {
	ix := c.p.o.Index
	if c.head, err = ix.Head(); err != nil && !errors.Is(err, index.ErrNoRelease) {
		return err
	}
	if c.oldest, err = ix.Oldest(); err != nil && !errors.Is(err, index.ErrNoRelease) {
		return err
	}
	if c.cursor, err = c.p.cursor(); err != nil {
		return err
	}
	if c.by, err = c.p.curation(); err != nil {
		return err
	}
	target := c.p.o.Ledger.Head()
	if target < c.cursor {
		return fmt.Errorf("%w: it ends at %d, the index has read %d", ErrLedgerBehind, target, c.cursor)
	}
	withheld, err := c.p.Withheld()
	if err == nil {
		withheld, err = c.p.withoutSettled(withheld, c.head.Number)
	}
	if err != nil {
		return err
	}
	c.notes = map[npm.Name][]Withheld{}
	for _, w := range withheld {
		c.notes[w.Name] = append(c.notes[w.Name], w)
	}
	// Each package comes once, with its newest change. One that changes meanwhile
	// goes beyond target.
	memory := semaphore.NewWeighted(inFlight)
	for since := ledger.Seq(0); since < target; {
		changes, err := c.p.o.Ledger.Changes(ctx, since, c.p.pageSize)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			break
		}
		since = changes[len(changes)-1].Seq
		changes = slices.DeleteFunc(changes, func(l ledger.Change) bool { return l.Seq > target })
		if err := c.page(ctx, changes, memory); err != nil {
			return err
		}
	}
	if err := c.unknown(ctx); err != nil {
		return err
	}
	if err := c.unknownHeld(ctx); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.notes)) {
		_, err := c.p.o.Ledger.Package(ctx, name)
		if errors.Is(err, ledger.ErrNotFound) {
			err = c.tell(ctx, Found{What: FoundWithheld, Package: name, Detail: noted(c.notes[name]) + ", and the ledger does not know it"})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) page(ctx context.Context, changes []ledger.Change, memory *semaphore.Weighted) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(c.p.o.Workers)
	for _, change := range changes {
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(gctx, packageTimeout)
			defer cancel()
			if err := c.pkg(ctx, change, memory); err != nil {
				return fmt.Errorf("package %s: %w", change.Name, err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.report(StagePackages, c.sum.Packages+c.sum.Ahead, c.head.Packages)
			return nil
		})
	}
	return cmp.Or(group.Wait(), ctx.Err())
}

// pkg compares one package.
func (c *checker) pkg(ctx context.Context, change ledger.Change, memory *semaphore.Weighted) error {
	e, err := c.p.o.Index.Entry(change.Name)
	if err != nil && !errors.Is(err, index.ErrNotFound) {
		return err
	}
	listed := err == nil
	c.mu.Lock()
	notes := c.notes[change.Name]
	delete(c.notes, change.Name)
	if listed {
		c.listed++
	}
	c.mu.Unlock()
	var found []Found
	ahead, err := c.ahead(ctx, change)
	if err != nil {
		return err
	}
	if !ahead {
		if found, err = c.compare(ctx, change, e, notes, memory); err != nil {
			return err
		}
	}
	if len(found) > 0 { // did it change meanwhile?
		now, err := c.p.o.Ledger.Package(ctx, change.Name)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return err
		}
		ahead = now.Seq > c.cursor
	}
	c.mu.Lock()
	if ahead {
		c.sum.Ahead++
	} else {
		c.sum.Packages++
	}
	c.mu.Unlock()
	if ahead {
		return nil
	}
	for _, f := range found {
		f.Package = change.Name
		if err := c.tell(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// ahead says whether a package is the next build's: it changed since the last one, a
// version of it has come of age, or a policy is on its way to it.
func (c *checker) ahead(ctx context.Context, change ledger.Change) (bool, error) {
	if _, err := npm.ParseName(string(change.Name)); err != nil {
		return change.Seq > c.cursor, nil
	}
	held, err := c.p.o.Index.Held(change.Name)
	if err != nil {
		return false, err
	}
	if !held.Due.IsZero() || len(held.Note) > 0 {
		c.mu.Lock()
		c.held++
		c.mu.Unlock()
	}
	due := !held.Due.IsZero() && !held.Due.After(c.by.now)
	return due || change.Seq > c.cursor || len(c.by.from) > 0 && change.Seq > c.by.At, nil
}

// compare holds a package's entry, without a CID where there is none, to what the
// ledger gives, and so what is noted of it.
func (c *checker) compare(ctx context.Context, change ledger.Change, e index.Entry, notes []Withheld, memory *semaphore.Weighted) ([]Found, error) {
	if i := slices.IndexFunc(notes, func(w Withheld) bool { return w.Reason == RolledBackReason }); i >= 0 {
		return c.rolledBack(ctx, notes[i], e)
	}
	b, err := c.p.buildPackage(ctx, c.by, change, memory)
	if lost(err) {
		return []Found{{What: FoundLost, Detail: err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	if !e.CID.Defined() && b.change.Name != "" && !b.change.Delete {
		with, err := c.p.o.Index.Collisions(ctx, []index.Change{b.change})
		if err != nil {
			return nil, err
		}
		if len(with) > 0 {
			b.collides(with[0].With)
		}
	}
	want := index.Entry{Name: change.Name}
	if b.change.Name != "" && !b.change.Delete {
		want = b.change.Entry
	}
	found := differs(e, want, "the ledger gives")
	if got, want := reasons(notes), reasons(b.withheld); got != want {
		found = append(found, Found{What: FoundWithheld, Detail: fmt.Sprintf("%s, the ledger gives %s", noted(notes), cmp.Or(want, "nothing"))})
	}
	if b.held.Name == "" {
		return found, nil
	}
	held, err := c.p.o.Index.Held(change.Name)
	if err == nil && (string(held.Note) != string(b.held.Note) || held.Due.IsZero() != b.held.Due.IsZero()) {
		found = append(found, Found{What: FoundWithheld, Detail: fmt.Sprintf("the index notes %s, the policy gives %s",
			cmp.Or(clip(string(held.Note)), "nothing"), cmp.Or(clip(string(b.held.Note)), "nothing"))})
	}
	return found, err
}

// rolledBack holds a package's entry to the release that took it back.
func (c *checker) rolledBack(ctx context.Context, note Withheld, e index.Entry) ([]Found, error) {
	want, err := c.p.o.Index.EntryAt(ctx, note.Release, note.Name)
	switch {
	case errors.Is(err, index.ErrNoRelease):
		return []Found{{What: FoundWithheld, Detail: fmt.Sprintf("withheld.json says rolled back by release %d, which is none", note.Release)}}, nil
	case errors.Is(err, index.ErrNotFound):
		want = index.Entry{Name: note.Name}
	case err != nil:
		return nil, err
	case note.Release < c.oldest: // its directories were collected, and told the rest
		want.Versions, want.Gateway = e.Versions, e.Gateway
	default:
		if r, err := c.p.o.Index.Release(note.Release); err != nil {
			return nil, err
		} else if r.Parameters.Gateway != c.p.o.Index.Parameters().Gateway {
			want.Gateway = e.Gateway // its page is another's name, and was made anew since
		}
	}
	return differs(e, want, fmt.Sprintf("rolled back by release %d, it is", note.Release)), nil
}

// differs compares entries, one without a CID standing for none.
func differs(got, want index.Entry, gives string) []Found {
	switch {
	case !got.CID.Defined() && !want.CID.Defined() || got == want:
		return nil
	case !want.CID.Defined():
		return []Found{{What: FoundExtra, Detail: fmt.Sprintf("the list has %s, %s nothing", entryText(got), gives)}}
	case !got.CID.Defined():
		return []Found{{What: FoundMissing, Detail: fmt.Sprintf("the list has nothing, %s %s", gives, entryText(want))}}
	}
	return []Found{{What: FoundOther, Detail: fmt.Sprintf("the list has %s, %s %s", entryText(got), gives, entryText(want))}}
}

func entryText(e index.Entry) string {
	s := fmt.Sprintf("%s (Tsize %d, versions %d", e.CID, e.Tsize, e.Versions)
	if e.Gateway.CID.Defined() {
		s += fmt.Sprintf(", gateway %s, Tsize %d", e.Gateway.CID, e.Gateway.Tsize)
	}
	return s + ")"
}

// reasons says what is withheld, without details: those may be another program's
// words.
func reasons(all []Withheld) string {
	var texts []string
	for _, w := range all {
		texts = append(texts, strings.TrimSpace(w.Reason+" "+w.Version))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

func noted(all []Withheld) string {
	return "withheld.json says " + cmp.Or(reasons(all), "nothing")
}

// unknown finds entries of packages that the ledger does not have.
func (c *checker) unknown(ctx context.Context) error {
	entries := 0
	for _, err := range c.p.o.Index.Entries(ctx) {
		if err != nil {
			return err
		}
		entries++
	}
	if entries == c.listed { // each was of a package of the ledger
		return nil
	}
	for e, err := range c.p.o.Index.Entries(ctx) {
		if err != nil {
			return err
		}
		_, err = c.p.o.Ledger.Package(ctx, e.Name)
		if errors.Is(err, ledger.ErrNotFound) {
			delete(c.notes, e.Name)
			err = c.tell(ctx, Found{What: FoundExtra, Package: e.Name, Detail: fmt.Sprintf("the list has %s, the ledger does not know it", entryText(e))})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unknownHeld finds what is held of packages that the ledger does not have.
func (c *checker) unknownHeld(ctx context.Context) error {
	rows := 0
	for _, err := range c.p.o.Index.AllHeld(ctx) {
		if err != nil {
			return err
		}
		rows++
	}
	if rows == c.held {
		return nil
	}
	for h, err := range c.p.o.Index.AllHeld(ctx) {
		if err != nil {
			return err
		}
		_, err = c.p.o.Ledger.Package(ctx, h.Name)
		if errors.Is(err, ledger.ErrNotFound) {
			err = c.tell(ctx, Found{What: FoundWithheld, Package: h.Name, Detail: "the index notes what the policy holds of it, the ledger does not know it"})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// atOnce is how many packages of a release are read at the same time.
const atOnce = 8

// release reads the newest pinned release from the node.
func (c *checker) release(ctx context.Context) error {
	h, err := c.p.spoken()
	if err != nil {
		return err
	}
	root := h.pinned.root
	if !root.Defined() {
		return nil
	}
	c.sum.Release = h.pinned.number
	own := c.in("")
	r, err := index.ReadRelease(ctx, own, root)
	if err != nil {
		return own.ended(err)
	}
	registry, err := unixfs.Lookup(ctx, own, root, string(reserved))
	if err != nil {
		return own.ended(err)
	}
	for l, err := range unixfs.List(ctx, own, registry.CID) {
		if err == nil && l.CID != r.List.Root && l.CID != r.List.Overflow { // those have packages below them
			err = own.file(ctx, l.CID)
		}
		if err != nil {
			return own.ended(err)
		}
	}
	// What a bare gateway shows: here the directories above the packages alone.
	for l, err := range unixfs.List(ctx, own, root) {
		if err == nil && strings.HasPrefix(l.Name, "@") {
			for _, err = range unixfs.List(ctx, own, l.CID) {
				if err != nil {
					break
				}
			}
		}
		if err := own.ended(err); err != nil {
			return err
		}
	}
	return own.ended(c.contents(ctx, own, r))
}

// contents reads the packages of r.
func (c *checker) contents(ctx context.Context, own *reading, r index.Release) error {
	done := 0
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	var broken error
	for e, err := range index.Names(gctx, own, r.List) {
		if err != nil {
			broken = err
			break
		}
		group.Go(func() error {
			in := c.in(e.Name)
			if err := in.ended(in.pkg(gctx, r, e)); err != nil {
				return fmt.Errorf("package %s: %w", e.Name, err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			done++
			c.report(StageRelease, done, r.Packages)
			return nil
		})
	}
	return cmp.Or(group.Wait(), broken, ctx.Err())
}

// in reads blocks of a package from the node, or of the list for "".
func (c *checker) in(name npm.Name) *reading {
	return &reading{c: c, name: name, told: map[cid.Cid]bool{}}
}

// reading is a unixfs.Getter that reads from the node and tells what is lost; it
// then gives what the index has, so that the rest is found.
type reading struct {
	c    *checker
	name npm.Name
	mu   sync.Mutex // over told
	told map[cid.Cid]bool
}

func (g *reading) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	b, err := g.c.p.o.Node.Local(ctx, c)
	g.c.mu.Lock()
	g.c.sum.Blocks++
	g.c.mu.Unlock()
	if !lost(err) {
		return b, err
	}
	g.mu.Lock()
	again := g.told[c]
	g.told[c] = true
	g.mu.Unlock()
	if !again {
		if err := g.c.tell(ctx, Found{What: FoundLost, Package: g.name, CID: c.String(), Detail: err.Error()}); err != nil {
			return nil, err
		}
	}
	if own, err := g.c.p.o.Index.Get(ctx, c); err == nil {
		return own, nil
	}
	return nil, err
}

// ended takes a walk's end at what is lost, and told already, for none.
func (g *reading) ended(err error) error {
	if lost(err) {
		return nil
	}
	return err
}

// pkg reads a package's directories and documents.
func (g *reading) pkg(ctx context.Context, r index.Release, e index.Entry) error {
	files, err := index.ReadPackage(ctx, g, e.CID)
	if err == nil {
		err = g.file(ctx, files.Packument.CID)
	}
	if err == nil {
		err = g.file(ctx, files.Install.CID)
	}
	if err != nil || r.Parameters.Gateway == "" {
		return err
	}
	shown, err := unixfs.Path(ctx, kept{g.c.p.o.Index, g.c.p.o.Node}, r.Root, strings.Split(string(e.Name), "/")...)
	if errors.Is(err, unixfs.ErrNotFound) {
		return nil // in the overflow
	}
	if err != nil || shown.CID == e.CID {
		return err
	}
	if files, err = index.ReadPackage(ctx, g, shown.CID); err != nil {
		return err
	}
	return g.file(ctx, files.Index.CID)
}

// file reads all blocks of a file, or of a directory of files.
func (g *reading) file(ctx context.Context, c cid.Cid) error {
	if !c.Defined() {
		return nil
	}
	b, err := g.Get(ctx, c)
	if lost(err) {
		return nil // what lies below it cannot be known
	}
	if err != nil {
		return err
	}
	children, err := unixfs.Children(b)
	for _, child := range children {
		if err == nil {
			err = g.file(ctx, child)
		}
	}
	return err
}
