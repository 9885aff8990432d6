package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/damage"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Options are what Create and Open take. The zero value is usable.
type Options struct {
	FS  vfs.FS           // nil: the operating system's
	Log *slog.Logger     // nil: nothing is logged
	Now func() time.Time // nil: time.Now; dates refusals that Commit writes

	// fatal ends the process when Pebble cannot go on, as after a failed
	// write of its log: what is on disk is then unknown, and the next start
	// replays it. It must not return. nil: os.Exit(1).
	fatal func(error)
	// memTable is the size of Pebble's memory table in bytes, so that tests
	// see flushes and compactions. 0: 16 MiB.
	memTable uint64
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.fatal == nil {
		o.fatal = func(error) { os.Exit(1) }
	}
	if o.memTable == 0 {
		o.memTable = 16 << 20
	}
	return o
}

// Store is a ledger that this process owns. Its methods may run concurrently;
// once Close was called they return ErrClosed.
type Store struct {
	db       *pebble.DB
	log      *slog.Logger
	now      func() time.Time
	identity string

	// commit is held by Commit from the first read to the synced write, so
	// that sequences are written in order.
	commit sync.Mutex

	mu      sync.Mutex
	idle    sync.Cond         // users reached zero
	users   int               // calls that use db
	closed  bool              // no call may begin
	state   state             // of the last synced batch
	cursors map[string]string // by feed, of the last synced batch
	moved   chan struct{}     // closed and replaced when state.Head rises
	wanted  chan struct{}     // closed and replaced when a want comes or goes
	queued  chan struct{}     // closed and replaced when a row comes into the queue
}

// Create makes a ledger in dir, which may exist but must not hold one. A
// creation that was cut short is begun again.
func Create(dir string, o Options) (*Store, error) {
	o = o.withDefaults()
	s, err := open(dir, o)
	if err == nil {
		return nil, errors.Join(fmt.Errorf("create ledger in %s: %w", dir, ErrExists), s.Close())
	}
	if !errors.Is(err, ErrNoLedger) {
		return nil, fmt.Errorf("create ledger in %s: %w", dir, err)
	}
	db, err := openPebble(dir, o)
	if err != nil {
		return nil, fmt.Errorf("create ledger in %s: %w", dir, err)
	}
	if err := mint(db); err != nil {
		return nil, fmt.Errorf("create ledger in %s: %w", dir, errors.Join(err, db.Close()))
	}
	s, err = load(db, o)
	if err != nil {
		return nil, fmt.Errorf("create ledger in %s: %w", dir, errors.Join(err, db.Close()))
	}
	return s, nil
}

// Open opens the ledger in dir: ErrNoLedger if there is none (and nothing is
// made), ErrLocked if another process has it.
func Open(dir string, o Options) (*Store, error) {
	s, err := open(dir, o.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open ledger in %s: %w", dir, err)
	}
	return s, nil
}

// OpenOrCreate is for the commands that may begin a ledger.
func OpenOrCreate(dir string, o Options) (*Store, error) {
	s, err := Open(dir, o)
	if errors.Is(err, ErrNoLedger) {
		return Create(dir, o)
	}
	return s, err
}

func open(dir string, o Options) (*Store, error) {
	found, err := pebble.Peek(dir, o.FS)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !found.Exists {
		return nil, ErrNoLedger
	}
	if err != nil {
		return nil, err
	}
	db, err := openPebble(dir, o)
	if err != nil {
		return nil, err
	}
	s, err := load(db, o)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func openPebble(dir string, o Options) (*pebble.DB, error) {
	options := &pebble.Options{
		FS:                 damage.Sparing(damage.Ordered(o.FS)),
		FormatMajorVersion: pebble.FormatValueSeparation, // by name: an upgrade of the module moves no file
		MemTableSize:       o.memTable,
		CacheSize:          64 << 20,
		Logger:             pebbleLog{log: o.Log, fatal: o.fatal},
		EventListener:      damage.Listener(o.Log),
	}
	for i := range options.Levels {
		// A feed names mostly packages that are not held.
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, options)
	if err != nil && heldElsewhere(err) {
		return nil, fmt.Errorf("%w: %w", ErrLocked, err)
	}
	return db, damage.AtOpen(err, ErrCorrupt)
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

// mint writes the rows that make a Pebble database a ledger, in one batch.
func mint(db *pebble.DB) error {
	it, err := db.NewIter(nil)
	if err != nil {
		return err
	}
	used := it.First()
	if err := it.Close(); err != nil {
		return err
	}
	if used {
		return fmt.Errorf("rows without an identity: %w", ErrCorrupt)
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	row, err := encodeJSON(state{})
	if err != nil {
		return err
	}
	b := db.NewBatch()
	defer b.Close()
	b.Set([]byte{rowIdentity}, fmt.Appendf(nil, "%d.%s", rowFormat, hex.EncodeToString(id)), nil)
	b.Set([]byte{rowState}, row, nil)
	return b.Commit(pebble.Sync)
}

// load reads what a Store keeps in memory.
func load(db *pebble.DB, o Options) (*Store, error) {
	raw, err := get(db, []byte{rowIdentity})
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, ErrNoLedger // Create was cut short before its one batch
	}
	if bytes.HasPrefix(raw, []byte("1.")) {
		if raw, err = upgrade(db, raw); err != nil {
			return nil, fmt.Errorf("upgrade from row format 1: %w", err)
		}
	}
	id, ok := strings.CutPrefix(string(raw), fmt.Sprintf("%d.", rowFormat))
	if digits, err := hex.DecodeString(id); !ok || err != nil || len(digits) != 16 {
		return nil, fmt.Errorf("identity %q: %w", raw, ErrCorrupt)
	}
	s := &Store{
		db: db, log: o.Log, now: o.Now, identity: id,
		cursors: make(map[string]string),
		moved:   make(chan struct{}),
		wanted:  make(chan struct{}),
		queued:  make(chan struct{}),
	}
	s.idle.L = &s.mu
	raw, err = get(db, []byte{rowState})
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, fmt.Errorf("no head: %w", ErrCorrupt)
	}
	if s.state, err = decodeJSON[state](raw); err != nil {
		return nil, err
	}
	// A cursor that cannot be read stops the start: it must never become
	// "from the beginning" or "from now" by itself.
	for kv, err := range scan(db, []byte{rowCursor}, nil) {
		if err != nil {
			return nil, err
		}
		feed := string(kv.key[1:])
		if s.cursors[feed], err = decodeCursor(feed, kv.value); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Close waits for the calls that run, iterations included, and closes the
// ledger. Waiting calls (Wait) return ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	close(s.moved)
	close(s.wanted)
	close(s.queued)
	for s.users > 0 {
		s.idle.Wait()
	}
	s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close ledger: %w", err)
	}
	return nil
}

// enter begins a call that uses db; leave ends it. Unlike a read lock it may
// nest: a call inside an iteration fails with ErrClosed, it cannot deadlock.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.users++
	return nil
}

func (s *Store) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		s.idle.Broadcast()
	}
}

// Identity is the random ID that Create minted, 32 hex digits. Sequences of
// two identities do not compare.
func (s *Store) Identity() string { return s.identity }

// Head is the sequence of the newest change that is durable, 0 where there is
// none.
func (s *Store) Head() Seq {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Head
}

// Counts is how much the ledger held after the last Commit.
func (s *Store) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Counts
}

// Cursor is how far feed was read, in its own terms; false where it never was.
func (s *Store) Cursor(feed string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.cursors[feed]
	return value, ok
}

// Cursors are those of all feeds, by feed.
func (s *Store) Cursors() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.cursors)
}

// Wait returns nil once Head is above since, else the context's error or
// ErrClosed.
func (s *Store) Wait(ctx context.Context, since Seq) error {
	for {
		s.mu.Lock()
		head, moved, closed := s.state.Head, s.moved, s.closed
		s.mu.Unlock()
		switch {
		case closed:
			return ErrClosed
		case head > since:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a change after %d: %w", since, ctx.Err())
		case <-moved:
		}
	}
}

// WantsChanged is closed when a want comes or goes, or the ledger closes.
// Taken before Wants is read, it misses nothing.
func (s *Store) WantsChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

// Package returns a package with its versions, and those dropped, as they were
// at one moment; ErrNotFound if it was never held. A tombstone is
// returned, with Deleted set.
func (s *Store) Package(ctx context.Context, name npm.Name) (Package, error) {
	if err := s.enter(); err != nil {
		return Package{}, err
	}
	defer s.leave()
	snap := s.db.NewSnapshot()
	defer snap.Close()
	row, err := get(snap, packageKey(name))
	if err != nil {
		return Package{}, fmt.Errorf("read package %s: %w", name, err)
	}
	if row == nil {
		return Package{}, fmt.Errorf("package %s: %w", name, ErrNotFound)
	}
	p, err := decodePackage(name, row)
	if err != nil {
		return Package{}, err
	}
	for kv, err := range scan(snap, appendTerm([]byte{rowVersion}, string(name)), nil) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return Package{}, fmt.Errorf("read package %s: %w", name, err)
		}
		v, err := readVersion(kv)
		if err != nil {
			return Package{}, fmt.Errorf("read package %s: %w", name, err)
		}
		if v.Dropped {
			p.Dropped = append(p.Dropped, v.Version)
		} else {
			p.Versions = append(p.Versions, v.Version)
		}
	}
	return p, nil
}

// Packages yields every package and tombstone in bytewise order of name, as
// they were when the iteration began, without versions. An error is the last
// thing that it yields.
func (s *Store) Packages(ctx context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		if err := s.enter(); err != nil {
			yield(Package{}, err)
			return
		}
		defer s.leave()
		for kv, err := range scan(s.db, []byte{rowPackage}, nil) {
			var p Package
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				p, err = readPackage(kv)
			}
			if err != nil {
				yield(Package{}, fmt.Errorf("list packages: %w", err))
				return
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// PackagesFrom lists packages and tombstones from a name on, in bytewise order,
// at most limit, without versions.
func (s *Store) PackagesFrom(ctx context.Context, from npm.Name, limit int) ([]Package, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	// A term sorts as the name does, and from may be no whole name.
	start := append([]byte{rowPackage}, strings.ReplaceAll(string(from), "\x00", "\x00\x01")...)
	var all []Package
	for kv, err := range scan(s.db, []byte{rowPackage}, start) {
		var p Package
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			p, err = readPackage(kv)
		}
		if err != nil {
			return nil, fmt.Errorf("list packages from %s: %w", from, err)
		}
		if p.Name < from {
			continue
		}
		if all = append(all, p); len(all) == limit {
			break
		}
	}
	return all, nil
}

// Changes returns the changes after since in ascending order, at most limit
// (at most 10,000, which is also what 0 stands for). Fewer than limit means
// that there were no more.
func (s *Store) Changes(ctx context.Context, since Seq, limit int) ([]Change, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if limit <= 0 || limit > MaxChanges {
		limit = MaxChanges
	}
	if since == ^Seq(0) {
		return nil, nil
	}
	var all []Change
	for kv, err := range scan(s.db, []byte{rowSeq}, seqKey(since+1)) {
		var c Change
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			c, err = decodeSeq(kv.key, kv.value)
		}
		if err != nil {
			return nil, fmt.Errorf("list changes after %d: %w", since, err)
		}
		if all = append(all, c); len(all) == limit {
			break
		}
	}
	return all, nil
}

// MaxChanges is the most that one call of Changes returns.
const MaxChanges = 10_000

// Wants lists the selection, by name and range.
func (s *Store) Wants(ctx context.Context) ([]Want, error) { return list[Want](ctx, s, rowWant) }

// AddWants adds to the selection and returns all of it. It is durable.
func (s *Store) AddWants(ctx context.Context, wants ...Want) ([]Want, error) {
	if _, err := s.Commit(ctx, Batch{Wants: wants}); err != nil {
		return nil, err
	}
	return s.Wants(ctx)
}

// RemoveWants takes the wants of exactly these specs and scopes out of the
// selection and returns what is left of it. It is durable.
func (s *Store) RemoveWants(ctx context.Context, wants ...Want) ([]Want, error) {
	if _, err := s.Commit(ctx, Batch{Unwants: wants}); err != nil {
		return nil, err
	}
	return s.Wants(ctx)
}

// Refused is the dead-letter list, by name and version.
func (s *Store) Refused(ctx context.Context) ([]Refusal, error) {
	return list[Refusal](ctx, s, rowRefusal)
}

// Former lists documents that packages no longer have since a time before, at
// most limit, by name. It reads the rows of all that there are.
func (s *Store) Former(ctx context.Context, before time.Time, limit int) ([]Former, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var all []Former
	for kv, err := range scan(s.db, []byte{rowFormer}, nil) {
		var f Former
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			f, err = readFormer(kv)
		}
		if err != nil {
			return nil, fmt.Errorf("list former documents: %w", err)
		}
		if !f.Since.Before(before) {
			continue
		}
		// Never what it has now, though a program that knows no former documents
		// brought it back.
		row, err := get(s.db, packageKey(f.Name))
		if err != nil {
			return nil, fmt.Errorf("list former documents: %w", err)
		}
		if p, err := decodePackage(f.Name, row); err != nil || p.Document.CID == f.CID {
			if err != nil {
				return nil, err
			}
			continue
		}
		if all = append(all, f); len(all) == limit {
			break
		}
	}
	return all, nil
}

// Dropped lists the tarballs of versions that packages no longer have since a time
// before, by name and version from after those of after on. One that a version has all
// the same, of that package or another, is not among them. It looks at limit of them,
// and gives the last one where there are more. Where there are any it reads the rows of
// all versions, and tells progress, which may be nil, of how many.
func (s *Store) Dropped(ctx context.Context, before time.Time, after Former, limit int, progress func(versions int)) (all []Former, last *Former, err error) {
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	snap := s.db.NewSnapshot()
	defer snap.Close()
	if all, last, err = droppedBefore(ctx, snap, before, after, limit); err == nil {
		all, err = unheld(ctx, snap, all, progress)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list tarballs of dropped versions: %w", err)
	}
	return all, last, nil
}

func droppedBefore(ctx context.Context, r pebble.Reader, before time.Time, after Former, limit int) (all []Former, last *Former, err error) {
	from := []byte{rowDropped}
	if after.Name != "" {
		from = append(itemKey(rowDropped, after.Name, after.Version), 0)
	}
	for kv, err := range scan(r, []byte{rowDropped}, from) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, nil, err
		}
		f, err := readDropped(kv)
		if err != nil {
			return nil, nil, err
		}
		if !f.Since.Before(before) {
			continue
		}
		row, err := get(r, itemKey(rowVersion, f.Name, f.Version))
		if err == nil && row == nil {
			err = fmt.Errorf("%s@%s was dropped and is not there: %w", f.Name, f.Version, ErrCorrupt)
		}
		if err != nil {
			return nil, nil, err
		}
		v, err := decodeVersion(f.Version, row)
		if err != nil {
			return nil, nil, err
		}
		if !v.Dropped {
			continue // a program that knows no such rows brought it back
		}
		f.CID = v.CID
		if all = append(all, f); len(all) == limit {
			return all, &f, nil
		}
	}
	return all, nil, nil
}

// unheld leaves of tarballs those that no version has.
func unheld(ctx context.Context, r pebble.Reader, all []Former, progress func(int)) ([]Former, error) {
	if len(all) == 0 {
		return nil, nil
	}
	held := make(map[cid.Cid]bool, len(all))
	for _, f := range all {
		held[f.CID] = false
	}
	n := 0
	for kv, err := range scan(r, []byte{rowVersion}, nil) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		v, err := readVersion(kv)
		if err != nil {
			return nil, err
		}
		if _, asked := held[v.CID]; asked && !v.Dropped {
			held[v.CID] = true
		}
		if n++; progress != nil && n%100_000 == 0 {
			progress(n)
		}
	}
	return slices.DeleteFunc(all, func(f Former) bool { return held[f.CID] }), nil
}

func list[T any](ctx context.Context, s *Store, row byte) ([]T, error) {
	return listPrefix[T](ctx, s, []byte{row})
}

func listPrefix[T any](ctx context.Context, s *Store, prefix []byte) ([]T, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	all := []T{} // an empty list crosses the socket as one
	for kv, err := range scan(s.db, prefix, nil) {
		var v T
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			v, err = decodeJSON[T](kv.value)
		}
		if err != nil {
			return nil, fmt.Errorf("list rows %q: %w", prefix[0], err)
		}
		all = append(all, v)
	}
	return all, nil
}

// keyValue is a row during a scan; its bytes are good until the next one.
type keyValue struct{ key, value []byte }

// scan yields the rows whose key starts with prefix, from from on if it is
// given. An error is the last thing that it yields.
func scan(r pebble.Reader, prefix, from []byte) iter.Seq2[keyValue, error] {
	return func(yield func(keyValue, error) bool) {
		if from == nil {
			from = prefix
		}
		it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: upperBound(prefix)})
		if err != nil {
			yield(keyValue{}, err)
			return
		}
		stopped := false
		for ok := it.First(); ok && !stopped; ok = it.Next() {
			value, err := it.ValueAndErr()
			stopped = !yield(keyValue{it.Key(), value}, located(err)) || err != nil
		}
		if err := it.Close(); err != nil && !stopped {
			yield(keyValue{}, located(err))
		}
	}
}

// located makes what Pebble found in a file an ErrCorrupt that names the file.
func located(err error) error { return damage.As(err, ErrCorrupt) }

func readPackage(kv keyValue) (Package, error) {
	name, rest, err := readTerm(kv.key[1:])
	if err != nil || len(rest) != 0 {
		return Package{}, fmt.Errorf("package row %q: %w", kv.key, ErrCorrupt)
	}
	return decodePackage(npm.Name(name), kv.value)
}

func readVersion(kv keyValue) (storedVersion, error) {
	_, rest, err := readTerm(kv.key[1:])
	if err != nil {
		return storedVersion{}, err
	}
	version, rest, err := readTerm(rest)
	if err != nil || len(rest) != 0 {
		return storedVersion{}, fmt.Errorf("version row %q: %w", kv.key, ErrCorrupt)
	}
	return decodeVersion(version, kv.value)
}

// get returns a copy of a row, nil where there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, located(err)
	}
	row := append([]byte{}, value...)
	return row, closer.Close()
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
	err := fmt.Errorf("ledger: "+format, args...)
	l.log.Error("the ledger's store cannot go on", "err", err)
	l.fatal(err)
	panic(err) // fatal must not return
}
