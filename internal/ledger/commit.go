package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// maxDetail bounds, in bytes, the text kept of why an item failed.
const maxDetail = 2 << 10

// Commit writes b in one synced Pebble batch and returns the head after it. A
// package whose document, versions and tombstone stay as they were gets no new
// sequence.
//
// A version that is held with other bytes (another CID, or a digest that
// contradicts the stored one) is not stored: it is recorded as a Refusal with
// ReasonIntegrityChanged and logged, and the rest of b goes on. A digest of
// another algorithm for the same CID is added.
//
// The law: rows, head, counts and cursor are one batch. When Commit returns nil
// they survive a power cut together; when it does not return, all of them or
// none are there, so the caller repeats the work from the cursor that it reads.
func (s *Store) Commit(ctx context.Context, b Batch) (Seq, error) {
	if err := b.check(); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	t := &transaction{Batch: s.db.NewIndexedBatch(), store: s, now: s.now()}
	defer t.Close()
	s.mu.Lock()
	t.state = s.state
	cursors := s.cursors
	s.mu.Unlock()

	before := t.state
	if err := t.apply(b); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if t.Empty() {
		return before.Head, nil
	}
	if !t.state.equal(before) {
		row, err := encodeJSON(t.state)
		if err != nil {
			return 0, fmt.Errorf("commit: %w", err)
		}
		t.set([]byte{rowState}, row)
	}
	if b.Cursor != nil {
		cursors = maps.Clone(cursors)
		cursors[b.Cursor.Feed] = b.Cursor.Value
	}
	if t.failed != nil {
		return 0, fmt.Errorf("commit: %w", t.failed)
	}
	if err := t.Commit(pebble.Sync); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = t.state
	s.cursors = cursors
	// Close may have begun, and closed both, while this call ran.
	if t.state.Head > before.Head && !s.closed {
		close(s.moved)
		s.moved = make(chan struct{})
	}
	if t.wanted && !s.closed {
		close(s.wanted)
		s.wanted = make(chan struct{})
	}
	if t.queued && !s.closed {
		close(s.queued)
		s.queued = make(chan struct{})
	}
	return t.state.Head, nil
}

// check refuses what no correct caller hands in, before anything is written.
func (b *Batch) check() error {
	for _, p := range b.Packages {
		if err := checkTerms(p.Name, ""); err != nil {
			return err
		}
		if p.Deleted && len(p.Versions) > 0 {
			return fmt.Errorf("package %s is deleted and has versions: %w", p.Name, ErrInvalid)
		}
		for _, v := range p.Versions {
			if v.Version == "" || v.File == "" || v.Integrity == "" || !v.CID.Defined() {
				return fmt.Errorf("version %s@%s lacks a field: %w", p.Name, v.Version, ErrInvalid)
			}
			if err := checkTerms(p.Name, v.Version); err != nil {
				return err
			}
		}
	}
	for _, r := range b.Retries {
		if err := checkTerms(r.Name, r.Version); err != nil {
			return err
		}
	}
	for _, w := range b.Wants {
		if len(w.Spec.Name) > maxTerm || len(w.Scope) > maxTerm || len(w.Spec.Range) > maxTerm || w.Spec.Name != "" && w.Scope != "" {
			return fmt.Errorf("want %.64q: %w", w.Spec.Name, ErrInvalid)
		}
	}
	if b.Cursor != nil && b.Cursor.Feed == "" {
		return fmt.Errorf("cursor of no feed: %w", ErrInvalid)
	}
	return nil
}

func checkTerms(name npm.Name, version string) error {
	if name == "" || len(name) > maxTerm || len(version) > maxTerm {
		return fmt.Errorf("item %.64q %.64q: %w", name, version, ErrInvalid)
	}
	return nil
}

// transaction is one Commit at work: an indexed batch, so that its reads see
// its own writes, and the state that it leads to.
type transaction struct {
	*pebble.Batch
	store  *Store
	now    time.Time
	state  state
	wanted bool  // a want came or went
	queued bool  // a row came into the queue
	failed error // the first failed write into the batch
}

func (t *transaction) set(key, row []byte) {
	if err := t.Set(key, row, nil); err != nil && t.failed == nil {
		t.failed = err
	}
}

func (t *transaction) unset(key []byte) {
	if err := t.Delete(key, nil); err != nil && t.failed == nil {
		t.failed = err
	}
}

// put sets a row of a counted list and counts it if it is new.
func (t *transaction) put(key []byte, v any, count *int) error {
	old, err := get(t, key)
	if err != nil {
		return err
	}
	row, err := encodeJSON(v)
	if err != nil {
		return err
	}
	if old == nil {
		*count++
	}
	t.set(key, row)
	return nil
}

// remove deletes a row of a counted list and reports whether it was there.
func (t *transaction) remove(key []byte, count *int) (bool, error) {
	old, err := get(t, key)
	if err != nil || old == nil {
		return false, err
	}
	*count--
	t.unset(key)
	return true, nil
}

func (t *transaction) apply(b Batch) error {
	counts := &t.state.Counts
	for _, d := range b.Done {
		if err := t.dequeue(d); err != nil {
			return err
		}
	}
	for _, k := range b.Pardoned {
		if err := t.pardon(k); err != nil {
			return err
		}
	}
	for _, f := range b.LetGo {
		if err := t.letGo(f); err != nil {
			return err
		}
	}
	for _, p := range b.Packages {
		if err := t.update(p); err != nil {
			return fmt.Errorf("package %s: %w", p.Name, err)
		}
	}
	for _, r := range b.Retries {
		if err := t.enqueue(r); err != nil {
			return err
		}
	}
	for _, r := range b.Refused {
		if err := t.refuse(r); err != nil {
			return err
		}
	}
	for _, w := range b.Wants {
		if err := t.put(wantKey(w), w, &counts.Wants); err != nil {
			return err
		}
		t.wanted = true
	}
	for _, w := range b.Unwants {
		gone, err := t.remove(wantKey(w), &counts.Wants)
		if err != nil {
			return err
		}
		t.wanted = t.wanted || gone
	}
	if b.Cursor != nil {
		t.set(cursorKey(b.Cursor.Feed), encodeCursor(b.Cursor.Value))
	}
	return nil
}

// queueRow reads the queue's row of an item; ok is false where there is none.
func (t *transaction) queueRow(k Key) (r Retry, ok bool, err error) {
	row, err := get(t, itemKey(rowRetry, k.Name, k.Version))
	if err != nil || row == nil {
		return Retry{}, false, err
	}
	r, err = decodeRetry(k, row)
	return r, err == nil, err
}

// count adds n to the count of queue rows of r's kind.
func (t *transaction) count(r Retry, n int) {
	if r.Fresh() {
		t.state.Counts.Queued += n
	} else {
		t.state.Counts.Retrying += n
	}
}

// enqueue puts a row into the queue. One that was made from a row that was
// replaced meanwhile gives way to what replaced it.
func (t *transaction) enqueue(r Retry) error {
	old, found, err := t.queueRow(Key{r.Name, r.Version})
	if err != nil {
		return err
	}
	if found && r.Stamp != 0 && old.Stamp != r.Stamp {
		return nil
	}
	if found {
		t.unset(dueKey(old))
		t.count(old, -1)
	}
	if r.Queued.IsZero() {
		r.Queued = t.now
	}
	r.Detail, r.Rev = clip(r.Detail), clip(r.Rev)
	t.state.Stamp++
	r.Stamp = t.state.Stamp
	t.set(itemKey(rowRetry, r.Name, r.Version), r.encode())
	t.set(dueKey(r), nil)
	t.count(r, 1)
	t.queued = true
	return nil
}

// dequeue takes a row out of the queue, unless another has replaced it.
func (t *transaction) dequeue(d Done) error {
	old, found, err := t.queueRow(d.Key)
	if err != nil || !found || d.Stamp != 0 && d.Stamp != old.Stamp {
		return err
	}
	t.unset(itemKey(rowRetry, d.Name, d.Version))
	t.unset(dueKey(old))
	t.count(old, -1)
	return nil
}

// pardon takes an item off the dead-letter list.
func (t *transaction) pardon(k Key) error {
	key := itemKey(rowRefusal, npm.Name(shorten(string(k.Name))), shorten(k.Version))
	row, err := get(t, key)
	if err != nil || row == nil {
		return err
	}
	old, err := decodeJSON[Refusal](row)
	if err != nil {
		return err
	}
	t.unset(key)
	t.tally(old.Reason, -1)
	return nil
}

// letGo strikes a former document or tarball, unless it became one anew.
func (t *transaction) letGo(f Former) error {
	key, read := formerKey(f.Name, f.CID), readFormer
	if f.Version != "" {
		key, read = itemKey(rowDropped, f.Name, f.Version), readDropped
	}
	row, err := get(t, key)
	if err != nil || row == nil {
		return err
	}
	now, err := read(keyValue{key, row})
	if err == nil && now.Since.Equal(f.Since) {
		t.unset(key)
	}
	return err
}

// replace records that a package has another document: the one before is a
// former one, and this one is none.
func (t *transaction) replace(name npm.Name, before, now cid.Cid) {
	if before == now {
		return
	}
	if before.Defined() {
		t.set(formerKey(name, before), appendTime(nil, t.now))
	}
	t.unset(formerKey(name, now))
}

// tally counts refusals, all and by reason.
func (t *transaction) tally(reason string, n int) {
	t.state.Counts.Refused += n
	reasons := maps.Clone(t.state.Reasons)
	if reasons == nil {
		reasons = make(map[string]int)
	}
	if reasons[reason] += n; reasons[reason] <= 0 {
		delete(reasons, reason)
	}
	t.state.Reasons = reasons
}

// update applies one PackageUpdate.
func (t *transaction) update(u PackageUpdate) error {
	key := packageKey(u.Name)
	row, err := get(t, key)
	if err != nil {
		return err
	}
	known := row != nil
	empty := !u.Document.CID.Defined() && len(u.Versions) == 0
	if !known && (u.Deleted || empty) {
		return nil
	}
	old := Package{Name: u.Name}
	if known {
		if old, err = decodePackage(u.Name, row); err != nil {
			return err
		}
	}
	next := old
	if u.Document.CID.Defined() {
		t.replace(u.Name, old.Document.CID, u.Document.CID)
		next.Document, next.Rev, next.ETag, next.Listed = u.Document, u.Rev, u.ETag, u.Listed
		// What is stored is no more refused.
		if err := t.pardon(Key{Name: u.Name}); err != nil {
			return err
		}
	}
	if u.Rev != "" {
		next.Rev = u.Rev
	}
	if u.ETag != "" {
		next.ETag = u.ETag
	}
	if !u.Checked.IsZero() {
		next.Checked = u.Checked
	}
	next.Deleted = u.Deleted || old.Deleted && empty // a mere check revives nothing

	moved := !known || next.Deleted != old.Deleted || next.Document != old.Document
	if u.Deleted {
		if u.Drop, err = t.versions(u.Name); err != nil {
			return err
		}
	}
	removed := 0
	for _, version := range u.Drop {
		dropped, err := t.drop(u.Name, version)
		if err != nil {
			return err
		}
		if dropped {
			removed++
			next.Held--
		}
	}
	if removed > 0 || next.Deleted && !old.Deleted {
		next.Removed = &Removal{Time: t.now, Reason: u.Reason, Versions: removed}
		if u.Reason == "" {
			next.Removed.Reason = RemovedUnpublished
			if u.Deleted {
				next.Removed.Reason = RemovedDeleted
			}
		}
		moved = true
	}
	for _, v := range u.Versions {
		stored, added, err := t.keep(u.Name, v)
		if err != nil {
			return err
		}
		if added {
			next.Held++
		}
		moved = moved || stored
	}

	if moved {
		t.state.Head++
		if old.Seq != 0 {
			t.unset(seqKey(old.Seq))
		}
		next.Seq = t.state.Head
		t.set(seqKey(next.Seq), encodeSeq(u.Name, next.Deleted))
	}
	if known {
		t.countPackage(old, -1)
	}
	t.countPackage(next, 1)
	t.set(key, encodePackage(next))
	return nil
}

func (t *transaction) countPackage(p Package, n int) {
	counts := &t.state.Counts
	switch {
	case p.Deleted:
		counts.Deleted += n
		return
	case p.Document.CID.Defined() && p.Held == 0:
		counts.Known += n
	}
	counts.Packages += n
}

// versions lists all version rows of a package, dropped ones too.
func (t *transaction) versions(name npm.Name) ([]string, error) {
	var all []string
	for kv, err := range scan(t, appendTerm([]byte{rowVersion}, string(name)), nil) {
		if err != nil {
			return nil, err
		}
		v, err := readVersion(kv)
		if err != nil {
			return nil, err
		}
		all = append(all, v.Version.Version)
	}
	return all, nil
}

func (t *transaction) version(name npm.Name, version string) (storedVersion, bool, error) {
	row, err := get(t, itemKey(rowVersion, name, version))
	if err != nil || row == nil {
		return storedVersion{}, false, err
	}
	v, err := decodeVersion(version, row)
	return v, err == nil, err
}

// drop marks a version as taken back and reports whether it was held.
func (t *transaction) drop(name npm.Name, version string) (bool, error) {
	v, found, err := t.version(name, version)
	if err != nil || !found || v.Dropped {
		return false, err
	}
	v.Dropped = true
	t.set(itemKey(rowDropped, name, version), appendTime(nil, t.now))
	t.state.Counts.Versions--
	t.state.Counts.Bytes -= v.Size
	t.set(itemKey(rowVersion, name, version), v.encode())
	return true, nil
}

// keep adds, confirms or refuses one version and reports whether its row
// changed, and whether it is one more that is held.
func (t *transaction) keep(name npm.Name, v Version) (changed, added bool, err error) {
	old, found, err := t.version(name, v.Version)
	if err != nil {
		return false, false, err
	}
	next := storedVersion{Version: v}
	if found {
		merged, ok := merge(old.Version, v)
		if !ok {
			t.store.log.Error("a version changed its bytes", "package", name, "version", v.Version,
				"stored", old.Integrity, "stored_cid", old.CID, "came", v.Integrity, "came_cid", v.CID)
			return false, false, t.refuse(Refusal{
				Name: name, Version: v.Version, Reason: ReasonIntegrityChanged,
				Detail: fmt.Sprintf("%v: stored %s %s (%s), came %s %s (%s)", ErrIntegrityChanged,
					old.Integrity, old.Shasum, old.CID, v.Integrity, v.Shasum, v.CID),
			})
		}
		next.Version = merged
	} else if next.FirstSeen.IsZero() {
		next.FirstSeen = t.now
	}
	if found && next == old {
		return false, false, nil
	}
	if found && old.Dropped {
		t.unset(itemKey(rowDropped, name, v.Version))
	}
	if added = !found || old.Dropped; added {
		t.state.Counts.Versions++
		t.state.Counts.Bytes += next.Size
	}
	if !found {
		// What is stored is no more refused. A refusal of a version that is
		// already held is evidence and stays until it is pardoned.
		if err := t.pardon(Key{Name: name, Version: v.Version}); err != nil {
			return false, false, err
		}
	}
	t.set(itemKey(rowVersion, name, v.Version), next.encode())
	return true, added, nil
}

// refuse records a refusal; the item leaves the queue. Feeds may send any
// string for a name, so what is too long for a key is shortened.
func (t *transaction) refuse(r Refusal) error {
	r.Name, r.Version = npm.Name(shorten(string(r.Name))), shorten(r.Version)
	r.Detail = clip(r.Detail)
	if r.Time.IsZero() {
		r.Time = t.now
	}
	if err := t.dequeue(Done{Key{r.Name, r.Version}, r.Stamp}); err != nil {
		return err
	}
	if err := t.pardon(Key{r.Name, r.Version}); err != nil { // one row an item
		return err
	}
	row, err := encodeJSON(r)
	if err != nil {
		return err
	}
	t.set(itemKey(rowRefusal, r.Name, r.Version), row)
	t.tally(r.Reason, 1)
	return nil
}

// merge is what is known of a version once both are taken as true: ok is false
// if they cannot be, because the bytes differ.
func merge(old, came Version) (v Version, ok bool) {
	if old.CID != came.CID {
		return old, false
	}
	v = old
	v.File = came.File
	if came.Proof != "" && v.Proof != "sha512" {
		v.Proof = came.Proof
	}
	if came.Signature != "" {
		v.Signature = came.Signature
	}
	if came.Shasum != "" {
		if old.Shasum != "" && !strings.EqualFold(old.Shasum, came.Shasum) {
			return old, false
		}
		if old.Shasum == "" {
			v.Shasum = came.Shasum
		}
	}
	v.Integrity, ok = mergeIntegrity(old.Integrity, came.Integrity)
	return v, ok
}

// strength orders the algorithms of Subresource Integrity; unknown ones come
// last.
var strength = []string{"sha512", "sha384", "sha256", "sha1"}

// mergeIntegrity unites two Subresource Integrity strings of the same bytes.
// They contradict each other if both give digests of one algorithm and share
// none.
func mergeIntegrity(old, came string) (string, bool) {
	have, more := digests(old), digests(came)
	added := false
	for algorithm, values := range more {
		if len(have[algorithm]) == 0 {
			have[algorithm] = values
			added = true
			continue
		}
		if !slices.ContainsFunc(values, func(v string) bool { return slices.Contains(have[algorithm], v) }) {
			return old, false
		}
	}
	if !added {
		return old, true
	}
	rank := func(algorithm string) int {
		if i := slices.Index(strength, algorithm); i >= 0 {
			return i
		}
		return len(strength)
	}
	algorithms := slices.SortedFunc(maps.Keys(have), func(a, b string) int {
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	var out []string
	for _, algorithm := range algorithms {
		for _, value := range have[algorithm] {
			out = append(out, algorithm+"-"+value)
		}
	}
	return strings.Join(out, " "), true
}

// digests reads a Subresource Integrity string, options dropped, by algorithm.
// A digest is compared as bytes where it is base64 and as text otherwise.
func digests(sri string) map[string][]string {
	all := make(map[string][]string)
	for _, token := range strings.Fields(sri) {
		token, _, _ = strings.Cut(token, "?")
		algorithm, value, _ := strings.Cut(token, "-")
		if raw, err := base64.StdEncoding.DecodeString(value); err == nil {
			value = base64.StdEncoding.EncodeToString(raw)
		}
		all[algorithm] = append(all[algorithm], value)
	}
	return all
}

// shorten keeps a term that fits a key and replaces the tail of another by a
// digest of the whole, so that two long terms stay two.
func shorten(term string) string {
	if len(term) <= maxTerm {
		return term
	}
	return fmt.Sprintf("%s…(%d bytes, sha256 %x)", strings.ToValidUTF8(term[:256], ""), len(term), sha256.Sum256([]byte(term)))
}

// clip bounds a text that may quote upstream, at a character.
func clip(text string) string {
	if len(text) > maxDetail {
		n := maxDetail
		for n > 0 && !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
