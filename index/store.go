package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// Options are what Create and Open take. The zero value is usable.
type Options struct {
	FS  vfs.FS       // nil: the operating system's
	Log *slog.Logger // nil: nothing is logged

	// Documents and Gateway are the Parameters that Create sets. Open takes
	// what the index has where both are empty, else they must be equal
	// (ErrParameters).
	Documents, Gateway string

	// fatal ends the process when Pebble cannot go on, as after a failed write
	// of its log: what is on disk is then unknown, and the next start replays
	// it. It must not return. nil: os.Exit(1).
	fatal func(error)
	// memTable is the greatest size of Pebble's memory table in bytes, so that
	// tests see flushes. 0: 64 MiB, several releases of a long list: a batch that
	// is larger than half of it would become a table of its own at once.
	memTable uint64
	// chunk is how many bytes of rows are held while a list is built anew, so
	// that tests see several. 0: 32 MiB.
	chunk int
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.fatal == nil {
		o.fatal = func(error) { os.Exit(1) }
	}
	if o.memTable == 0 {
		o.memTable = 64 << 20
	}
	if o.chunk == 0 {
		o.chunk = 32 << 20
	}
	return o
}

// Index is an index that this process owns. Its methods may run concurrently.
type Index struct {
	db     *pebble.DB
	dir    lockedDir
	tables sstable.ReaderOptions // for Check
	// writerOptions are for tables.
	writerOptions sstable.WriterOptions
	log           *slog.Logger
	parameters    atomic.Pointer[Parameters] // Apply replaces it
	chunk         int

	// apply is held by Apply from its first read to the synced write.
	apply sync.Mutex
	// collecting is held by Collect, which takes apply now and then.
	collecting sync.Mutex

	mu     sync.Mutex
	idle   sync.Cond // users reached zero
	users  int       // calls that use db; one may be made inside another's loop
	closed bool      // no call may begin
}

// Create makes an index in dir, which may exist but must not hold one
// (ErrExists). A creation that was cut short is begun again.
func Create(dir string, o Options) (*Index, error) {
	o = o.withDefaults()
	ix, err := create(dir, o)
	if err != nil {
		return nil, fmt.Errorf("create index in %s: %w", dir, err)
	}
	return ix, nil
}

func create(dir string, o Options) (*Index, error) {
	if err := o.FS.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	db, held, err := openPebble(dir, o)
	if err != nil {
		return nil, err
	}
	row, err := readFormat(db)
	if err == nil && row.Format > 0 {
		err = ErrExists
	}
	var p Parameters
	if err == nil {
		p = Parameters{Fanout: unixfs.Fanout, DirLimit: unixfs.DirLimit, Documents: o.Documents, Gateway: o.Gateway}
		err = checkEmpty(db)
	}
	if err == nil {
		err = writeParameters(db, p)
	}
	if err != nil {
		return nil, errors.Join(located(err), held.close(db))
	}
	return newIndex(db, held, o, p), nil
}

// Open opens the index in dir: ErrNoIndex if there is none (and nothing is
// made), ErrLocked if another process has it.
func Open(dir string, o Options) (*Index, error) {
	o = o.withDefaults()
	ix, err := open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open index in %s: %w", dir, err)
	}
	return ix, nil
}

func open(dir string, o Options) (*Index, error) {
	found, err := pebble.Peek(dir, o.FS)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !found.Exists {
		return nil, ErrNoIndex
	}
	if err != nil {
		return nil, err
	}
	db, held, err := openPebble(dir, o)
	if err != nil {
		return nil, err
	}
	row, err := readFormat(db)
	p := row.Parameters
	switch {
	case err == nil && row.Format == 0:
		err = ErrNoIndex // a creation that was cut short
	case err == nil && (p.Fanout != unixfs.Fanout || p.DirLimit != unixfs.DirLimit):
		err = fmt.Errorf("%w: fanout %d, directory limit %d", ErrParameters, p.Fanout, p.DirLimit)
	case err == nil && o.Documents+o.Gateway != "" && (p.Documents != o.Documents || p.Gateway != o.Gateway):
		err = fmt.Errorf("%w: documents %q, gateway %q", ErrParameters, p.Documents, p.Gateway)
	}
	if err == nil && row.Format < storeFormat {
		err = upgrade(db, row.Format, p)
	}
	if err != nil {
		return nil, errors.Join(located(err), held.close(db))
	}
	return newIndex(db, held, o, p), nil
}

// OpenOrCreate is for the commands that may begin an index.
func OpenOrCreate(dir string, o Options) (*Index, error) {
	ix, err := Open(dir, o)
	if errors.Is(err, ErrNoIndex) {
		return Create(dir, o)
	}
	return ix, err
}

func newIndex(db *pebble.DB, held lockedDir, o Options, p Parameters) *Index {
	ix := &Index{db: db, dir: held, tables: readerOptions(o), writerOptions: writerOptions(o, db), log: o.Log, chunk: o.chunk}
	ix.parameters.Store(&p)
	ix.idle.L = &ix.mu
	return ix
}

// Close waits for calls under way and gives the directory free.
func (ix *Index) Close() error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.closed {
		return nil
	}
	ix.closed = true
	for ix.users > 0 {
		ix.idle.Wait()
	}
	return ix.dir.close(ix.db)
}

// begin is the first call of every method that uses db; end the last.
func (ix *Index) begin() error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.closed {
		return ErrClosed
	}
	ix.users++
	return nil
}

func (ix *Index) end() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.users--; ix.users == 0 {
		ix.idle.Broadcast()
	}
}

// Parameters are those that the index was created with.
func (ix *Index) Parameters() Parameters { return *ix.parameters.Load() }

// Head returns the newest release, ErrNoRelease before the first.
func (ix *Index) Head() (Release, error) {
	if err := ix.begin(); err != nil {
		return Release{}, err
	}
	defer ix.end()
	return head(ix.db)
}

// Sources says how far sources were read, as of the last Apply: further than
// the newest release says, where what came since changed no package.
func (ix *Index) Sources() ([]Source, error) {
	if err := ix.begin(); err != nil {
		return nil, err
	}
	defer ix.end()
	return readSources(ix.db)
}

// Entry returns a package's entry, ErrNotFound where the list has none.
func (ix *Index) Entry(name npm.Name) (Entry, error) {
	if err := ix.begin(); err != nil {
		return Entry{}, err
	}
	defer ix.end()
	e, found, err := readEntry(ix.db, name)
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s: %w", name, err)
	}
	return e, nil
}

// Entries yields the list's entries in the order of their names, all as of one
// moment. It ends at the first error. Close waits for it.
func (ix *Index) Entries(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Entry{}, err)
			return
		}
		defer ix.end()
		for e, err := range entries(ctx, ix.db) {
			if !yield(e, err) {
				return
			}
		}
	}
}

// After yields the list's entries whose names come after name, as Entries does.
func (ix *Index) After(ctx context.Context, name npm.Name) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Entry{}, err)
			return
		}
		defer ix.end()
		for row, err := range scanBetween(ctx, ix.db, append(entryKey(name), 0), upperBound([]byte{rowEntry})) {
			var e Entry
			if err == nil {
				e, err = decodeEntry(string(row.key[1:]), row.value)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Releases yields the releases from the first to the newest.
func (ix *Index) Releases(ctx context.Context) iter.Seq2[Release, error] {
	return func(yield func(Release, error) bool) {
		if err := ix.begin(); err != nil {
			yield(Release{}, err)
			return
		}
		defer ix.end()
		for row, err := range scan(ctx, ix.db, []byte{rowRelease}) {
			var r Release
			if err == nil {
				r, err = readReleaseRow(row)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// Pending says whether entries changed since the newest release, by Batch.More,
// of which there is no release yet.
func (ix *Index) Pending() (bool, error) {
	if err := ix.begin(); err != nil {
		return false, err
	}
	defer ix.end()
	n, err := countPending(ix.db, 1)
	return n > 0, err
}

// Get returns one of the index's own blocks, else ErrNoBlock. With it an Index
// is a unixfs.Getter for its releases' directories.
func (ix *Index) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if err := ix.begin(); err != nil {
		return nil, err
	}
	defer ix.end()
	return readBlock(ix.db, c)
}

// Check holds the index to itself: every block of Pebble's tables to its checksum,
// every row to its form, every block to its CID, every release to what its
// directory says, and its jump to the releases before it, and every entry to its
// place. It rebuilds the list, and what a bare gateway shows, from the entries and
// compares both with the newest release's. Of releases before Oldest the directories
// need not be there. ErrCorrupt, with the file, row, block or release, where something
// is not right. While entries are ahead of the newest release (see Pending), the list
// is not compared.
func (ix *Index) Check(ctx context.Context) error { return ix.CheckProgress(ctx, nil) }

// CheckProgress is Check. report, where not nil, is told now and then how many rows
// were read.
func (ix *Index) CheckProgress(ctx context.Context, report func(rows int)) error {
	if err := ix.begin(); err != nil {
		return err
	}
	defer ix.end()
	err := ix.checkTables(ctx)
	if err == nil {
		snap := ix.db.NewSnapshot()
		defer snap.Close()
		err = ix.check(ctx, snap, report)
	}
	if err != nil {
		return fmt.Errorf("check index: %w", located(err))
	}
	return nil
}

func (ix *Index) check(ctx context.Context, snap *pebble.Snapshot, report func(rows int)) error {
	r, err := head(snap)
	first := errors.Is(err, ErrNoRelease)
	if err != nil && !first {
		return err
	}
	isCopy, err := readCopy(snap)
	if err != nil {
		return err
	}
	from, err := oldest(snap)
	if err != nil && !first {
		return err
	}
	parameters := ix.Parameters()
	rows := rowCheck{snap: snap, oldest: from, gateway: parameters.Gateway != "", isCopy: isCopy, parameters: parameters}
	if err := rows.checkRows(ctx, report); err != nil || first {
		return err
	}
	return check(ctx, snap, r, isCopy)
}

// check holds the rows to each other.
func check(ctx context.Context, snap *pebble.Snapshot, r Release, isCopy bool) error {
	pending, err := countPending(snap, 1)
	if err != nil {
		return err
	}
	stored := func(blk blocks.Block) error {
		_, err := readBlock(snap, blk.Cid())
		if errors.Is(err, ErrNoBlock) {
			err = fmt.Errorf("%w: release %d: %w", ErrCorrupt, r.Number, err)
		}
		return err
	}
	if pending > 0 { // what the entries give nobody has built yet
		stored = discard
	}
	list, err := buildList(ctx, entries(ctx, snap), stored)
	if err != nil {
		return err
	}
	n, err := readCounts(ctx, snap)
	if err == nil && (n != counts{list.packages, list.versions}) {
		err = fmt.Errorf("%d packages and %d versions are counted, the entries have %d and %d", n.packages, n.versions, list.packages, list.versions)
	}
	if err == nil {
		err = checkPlaces(ctx, snap)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if pending > 0 {
		return nil
	}
	if list.list() != r.List || list.packages != r.Packages {
		return fmt.Errorf("%w: the entries give the list %v, release %d has %v", ErrCorrupt, list.list(), r.Number, r.List)
	}
	if isCopy {
		return nil
	}
	return checkRelease(ctx, snap, r, list.root, stored)
}

// checkRelease holds the newest release's own directory, and what a bare gateway
// shows, to the list's root and the entries.
func checkRelease(ctx context.Context, snap *pebble.Snapshot, r Release, root unixfs.Ref, stored unixfs.Sink) error {
	got, err := ReadRelease(ctx, getter{snap}, r.Root)
	if err == nil && got.Number != r.Number {
		err = fmt.Errorf("its directory says %d", got.Number)
	}
	if err == nil && r.Parameters.Gateway != "" {
		root, err = buildFront(ctx, snap, stored)
	}
	var front unixfs.Ref
	if err == nil {
		front, err = frontOf(ctx, getter{snap}, r.Root, discard)
	}
	if err == nil && front != root {
		err = fmt.Errorf("a gateway shows %s, the entries give %s", front.CID, root.CID)
	}
	if err != nil {
		return fmt.Errorf("%w: release %d: %w", ErrCorrupt, r.Number, err)
	}
	return nil
}

// getter reads blocks through a snapshot or a batch.
type getter struct{ r pebble.Reader }

func (g getter) Get(_ context.Context, c cid.Cid) (blocks.Block, error) { return readBlock(g.r, c) }

func pebbleOptions(o Options) *pebble.Options {
	opts := &pebble.Options{
		FS:                 damage.Sparing(damage.Ordered(o.FS)),
		FormatMajorVersion: pebble.FormatValueSeparation, // by name: an upgrade of the module moves no file
		MemTableSize:       o.memTable,
		CacheSize:          192 << 20, // Pebble takes the memory tables out of it
		Logger:             pebbleLog{log: o.Log, fatal: o.fatal},
		EventListener:      damage.Listener(o.Log),
	}
	// Names and CIDs are asked for singly, from all over a store that is larger
	// than the cache, and mostly for blocks that are not there yet.
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].BlockSize = 4 << 10
		// CIDs and names make up the rows: compressed they are as long, and slower.
		opts.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	return opts
}

// readerOptions are for reading a table by itself.
func readerOptions(o Options) sstable.ReaderOptions {
	opts := pebbleOptions(o)
	opts.EnsureDefaults()
	return opts.MakeReaderOptions()
}

// writerOptions are for a table that goes to the store's lowest level.
func writerOptions(o Options, db *pebble.DB) sstable.WriterOptions {
	opts := pebbleOptions(o)
	opts.EnsureDefaults()
	return opts.MakeWriterOptions(len(opts.Levels)-1, db.TableFormat())
}

// openPebble locks dir and opens what is in it.
func openPebble(dir string, o Options) (*pebble.DB, lockedDir, error) {
	held, err := lockDirectory(o.FS, dir)
	if err != nil {
		return nil, lockedDir{}, err
	}
	opts := pebbleOptions(o)
	opts.Lock = held.lock
	db, err := pebble.Open(dir, opts)
	if err != nil {
		return nil, lockedDir{}, errors.Join(damage.AtOpen(err, ErrCorrupt), held.lock.Close())
	}
	return db, held, nil
}

// heldElsewhere tells a lock that is held (fcntl's bare EAGAIN or EACCES, or
// Pebble's own words for a holder in this process) from a LOCK file that may
// not be written, which is a *fs.PathError.
func heldElsewhere(err error) bool {
	var path *fs.PathError
	if errors.As(err, &path) {
		return false
	}
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) ||
		strings.Contains(err.Error(), "lock held by current process")
}

// pebbleLog hands Pebble's own messages to slog. They are prose of its making,
// hence an attribute.
type pebbleLog struct {
	log   *slog.Logger
	fatal func(error)
}

// Infof is what its logs and tables are doing, which nobody can act on.
func (pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("pebble", "says", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Fatalf(format string, args ...any) {
	err := fmt.Errorf("index: "+format, args...)
	l.log.Error("the index's store cannot go on", "err", err)
	l.fatal(err)
	panic(err) // fatal must not return
}
