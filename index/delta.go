package index

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// deltaName is the directory in "_registry" of the files by which a reader of
// an earlier release gets to this one's list. A file LEVEL-FROM-TO says what
// stands, after release TO, under every name that releases after FROM touched.
// So whoever has any release from FROM to TO may apply it, and gets the list of
// TO; several are applied one after the other.
//
// Level 0 is one release. Two files of a level become one of the next, as digits
// carry in a binary number, as long as it is at most maxDelta bytes: from n
// releases back there are some 2 log n files to fetch. What a higher level covers
// stays for the newest keepDeltas of a level, for those who are not so far back.
const deltaName = "delta"

const (
	maxDelta   = 4 << 20 // bytes of a file that is made of two
	keepDeltas = 4
	// maxDeltas bounds the files that no higher level covers. What is beyond is
	// left out, the oldest first: a snapshot is cheaper then.
	maxDeltas = 64
	// Of a stranger's release a reader takes that many deltas at most, and that
	// many bytes of those that it applies: what is longer is no short cut.
	maxListed = 1024
	maxWay    = 128 << 20
)

// delta is a file of deltaName.
type delta struct {
	level    int
	from, to uint64
	file     unixfs.Link
}

func (d delta) name() string { return fmt.Sprintf("%d-%d-%d", d.level, d.from, d.to) }

// parseDelta reads a file's name; ok is false for one of another form.
func parseDelta(l unixfs.Link) (d delta, ok bool) {
	parts := strings.Split(l.Name, "-")
	if len(parts) != 3 {
		return delta{}, false
	}
	level, err1 := strconv.ParseUint(parts[0], 10, 6)
	from, err2 := strconv.ParseUint(parts[1], 10, 64)
	to, err3 := strconv.ParseUint(parts[2], 10, 64)
	d = delta{int(level), from, to, l}
	return d, errors.Join(err1, err2, err3) == nil && from < to && d.name() == l.Name
}

// ops reads the file, whose size is at most what its link says: so the sizes of a
// few bound the memory that they take.
func (d delta) ops(ctx context.Context, g unixfs.Getter) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		raw, err := unixfs.ReadFile(ctx, g, d.file.CID, int64(d.file.Tsize))
		if errors.Is(err, unixfs.ErrTooLarge) {
			err = fmt.Errorf("%w: %w", ErrDelta, err)
		}
		if err != nil {
			yield(Change{}, fmt.Errorf("delta %s: %w", d.name(), err))
			return
		}
		for c, err := range readOps(bytes.NewReader(raw), deltaMagic) {
			if err != nil {
				err = fmt.Errorf("delta %s: %w", d.name(), err)
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

// listDeltas are a release's deltas, the oldest first; none where it has no
// such directory.
func listDeltas(ctx context.Context, g unixfs.Getter, release cid.Cid) (all []delta, err error) {
	dir, err := unixfs.Path(ctx, g, release, registryName, deltaName)
	if errors.Is(err, unixfs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	listed := 0
	for l, err := range unixfs.List(ctx, g, dir.CID) {
		if listed++; err == nil && listed > maxListed {
			err = fmt.Errorf("%w: more than %d deltas", ErrDelta, maxListed)
		}
		if err != nil {
			return nil, err
		}
		if d, ok := parseDelta(l); ok {
			all = append(all, d)
		}
	}
	sortDeltas(all)
	return all, nil
}

func sortDeltas(all []delta) {
	slices.SortFunc(all, func(a, b delta) int {
		return cmp.Or(cmp.Compare(a.to, b.to), cmp.Compare(a.from, b.from), cmp.Compare(a.level, b.level))
	})
}

// addDelta makes the directory of deltas of release number, in which names were
// touched, out of that of the release before it. r has the entries as they are
// now; what is written to sink, g gives.
func addDelta(ctx context.Context, r pebble.Reader, g unixfs.Getter, before Release, number uint64, names []npm.Name, sink unixfs.Sink) (unixfs.Ref, error) {
	all, err := listDeltas(ctx, g, before.Root)
	if err != nil {
		return unixfs.Ref{}, fmt.Errorf("deltas of release %d: %w", before.Number, err)
	}
	d := delta{from: before.Number, to: number}
	if d, err = writeDelta(d, standing(r, names), sink); err != nil {
		return unixfs.Ref{}, err
	}
	all = append(all, d)
	for {
		a, b, ok := carry(all)
		if !ok {
			break
		}
		d := delta{level: a.level + 1, from: a.from, to: b.to}
		if d, err = writeDelta(d, mergeOps(a.ops(ctx, g), b.ops(ctx, g)), sink); err != nil {
			return unixfs.Ref{}, err
		}
		all = append(all, d)
	}
	var links []unixfs.Link
	for _, d := range prune(all) {
		links = append(links, d.file)
	}
	return unixfs.BasicDir(links, sink)
}

// standing yields, in their order, what stands under names.
func standing(r pebble.Reader, names []npm.Name) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for _, name := range slices.Sorted(slices.Values(names)) {
			e, found, err := readEntry(r, name)
			e.Name = name
			if !yield(Change{Entry: e, Delete: !found}, err) || err != nil {
				return
			}
		}
	}
}

func writeDelta(d delta, ops iter.Seq2[Change, error], sink unixfs.Sink) (delta, error) {
	var buf bytes.Buffer
	err := writeOps(&buf, deltaMagic, ops)
	var ref unixfs.Ref
	if err == nil {
		ref, err = unixfs.AddBytes(buf.Bytes(), sink)
	}
	if err != nil {
		return delta{}, fmt.Errorf("write delta %s: %w", d.name(), err)
	}
	d.file = unixfs.Link{Name: d.name(), CID: ref.CID, Tsize: ref.Tsize}
	return d, nil
}

// covers tells whether d says all that o does, on a higher level.
func (d delta) covers(o delta) bool { return d.level > o.level && d.from <= o.from && d.to >= o.to }

// uncovered are the deltas of a level that no other one covers, the oldest first.
func uncovered(all []delta, level int) (some []delta) {
	for _, d := range all {
		if d.level == level && !slices.ContainsFunc(all, func(o delta) bool { return o.covers(d) }) {
			some = append(some, d)
		}
	}
	return some
}

// carry finds the delta before the last of all, on the same level, that is to
// become one with it.
func carry(all []delta) (a, b delta, ok bool) {
	some := uncovered(all, all[len(all)-1].level)
	if len(some) < 2 {
		return a, b, false
	}
	a, b = some[len(some)-2], some[len(some)-1]
	return a, b, a.to == b.from && a.file.Tsize+b.file.Tsize <= maxDelta
}

// prune leaves out what the constants say.
func prune(all []delta) (kept []delta) {
	sortDeltas(all)
	ofLevel := map[int]int{}
	bare := 0
	for _, d := range slices.Backward(all) {
		ofLevel[d.level]++
		switch {
		case !slices.ContainsFunc(all, func(o delta) bool { return o.covers(d) }):
			if bare++; bare <= maxDeltas {
				kept = append(kept, d)
			}
		case ofLevel[d.level] <= keepDeltas:
			kept = append(kept, d)
		}
	}
	return kept
}

// wayFrom picks the deltas, of the fewest bytes, that lead from release from to
// release to, in the order in which they are applied; none where they do not
// reach. The first may begin at an earlier release.
func wayFrom(all []delta, from, to uint64) (way []delta) {
	type step struct {
		bytes uint64
		next  *delta // the one that leads from here on
	}
	best := map[uint64]step{to: {}}
	// The later its end, the earlier a delta's turn: then what leads on from its
	// end is known.
	all = slices.SortedFunc(slices.Values(all), func(a, b delta) int { return cmp.Compare(b.to, a.to) })
	start, found := step{}, false
	for i := range all {
		d := &all[i]
		rest, ok := best[d.to]
		if !ok || d.to <= from {
			continue
		}
		s := step{rest.bytes + d.file.Tsize, d}
		if d.from <= from {
			if !found || s.bytes < start.bytes {
				start, found = s, true
			}
		} else if other, ok := best[d.from]; !ok || s.bytes < other.bytes {
			best[d.from] = s
		}
	}
	for s := start; s.next != nil; s = best[s.next.to] {
		way = append(way, *s.next)
	}
	return way
}
