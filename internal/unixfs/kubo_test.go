package unixfs

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/kubo/client/rpc"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
)

// These tests hold BuildDir and Edit against the MFS of a Kubo of the same
// limit, fanout and estimation ("block": exact block size). Kubo's directory is
// a function of its history, ours of the set, and Kubo 0.43.1 (boxo 0.43.0,
// HAMTDirectory.needsToSwitchToBasicDir) is not exact about when a HAMT becomes
// basic again. From basic to HAMT it is.
//
//   - It looks whether a HAMT is small enough only where the changes since it
//     loaded the HAMT sum up to less than nothing, and counts those before the
//     last in bytes of names and CIDs alone: a HAMT may stay one within the limit.
//   - It takes the name of the entry that goes with the two digits of its slot:
//     a removal that leaves one or two bytes too many makes a basic directory.
//   - It takes the link that replaces another without its name: a change inside
//     an entry makes a basic directory as far over the limit as the name is long,
//     and so may each writing of that entry until the directory is loaded anew.
//
// The random mixes keep clear of these: Kubo loads the directory anew before
// each removal. TestKuboShrinksOtherwise shows each, and that what is made is
// one of BuildDir's two forms all the same.

// mfs is one directory in a Kubo's MFS, and what should be in it.
type mfs struct {
	t    testing.TB
	api  *rpc.HttpApi
	path string
	set  map[string]Link
}

// startMFS runs a Kubo, whose profile unixfs-v1-2025 sets all but the limit, and
// makes an empty directory there.
func startMFS(t *testing.T) mfs {
	t.Helper()
	d := kubod.Start(t)
	if _, err := d.Command(t.Context(), "config", "Import.UnixFSHAMTDirectorySizeThreshold", fmt.Sprint(DirLimit, "B")); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	addr, err := ma.NewMultiaddr(d.API)
	if err != nil {
		t.Fatal(err)
	}
	api, err := rpc.NewApi(addr)
	if err != nil {
		t.Fatal(err)
	}
	m := mfs{t: t, api: api, path: "/scope", set: map[string]Link{}}
	m.call(nil, "files/mkdir", m.path)
	return m
}

func (m mfs) call(out any, command string, args ...string) {
	m.t.Helper()
	req := m.api.Request(command, args...)
	if command == "files/rm" {
		req = req.Option("recursive", true)
	}
	if err := req.Exec(m.t.Context(), out); err != nil {
		m.t.Fatalf("%s %s: %v", command, args, err)
	}
}

// put gives Kubo a block.
func (m mfs) put(b blocks.Block) error {
	codec := "raw"
	if b.Cid().Type() == cid.DagProtobuf {
		codec = "dag-pb"
	}
	var out struct{ Key string }
	err := m.api.Request("block/put").Option("cid-codec", codec).FileBody(bytes.NewReader(b.RawData())).Exec(m.t.Context(), &out)
	if err == nil && out.Key != b.Cid().String() {
		err = fmt.Errorf("block/put gave %s for %s", out.Key, b.Cid())
	}
	return err
}

// file puts a file of one raw leaf.
func (m mfs) file(size int) Ref {
	m.t.Helper()
	b, err := newBlock(cid.Raw, bytes.Repeat([]byte("x"), size))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.put(b); err != nil {
		m.t.Fatal(err)
	}
	return Ref{CID: b.Cid(), Tsize: uint64(size)}
}

// folder puts a directory that claims a file of tsize bytes, which Kubo lacks.
func (m mfs) folder(tsize uint64) Ref {
	m.t.Helper()
	ref, err := BasicDir([]Link{{Name: "file", CID: linkNamed(m.t, "absent").CID, Tsize: tsize}}, m.put)
	if err != nil {
		m.t.Fatal(err)
	}
	return ref
}

func (m mfs) insert(name string, ref Ref) {
	m.t.Helper()
	m.call(nil, "files/cp", "/ipfs/"+ref.CID.String(), m.path+"/"+name)
	m.set[name] = Link{Name: name, CID: ref.CID, Tsize: ref.Tsize}
}

func (m mfs) remove(name string) {
	m.t.Helper()
	m.call(nil, "files/rm", m.path+"/"+name)
	delete(m.set, name)
}

// reload makes Kubo load the directory anew, and so count its changes from here.
func (m mfs) reload() {
	m.t.Helper()
	m.call(nil, "files/flush", "/")
}

// copy copies the directory within MFS.
func (m mfs) copy(path string) mfs {
	m.t.Helper()
	m.call(nil, "files/cp", m.path, path)
	m.path, m.set = path, maps.Clone(m.set)
	return m
}

func (m mfs) stat(path string) Ref {
	m.t.Helper()
	var out struct {
		Hash           string
		CumulativeSize uint64
	}
	m.call(&out, "files/stat", path)
	c, err := cid.Decode(out.Hash)
	if err != nil {
		m.t.Fatal(err)
	}
	return Ref{CID: c, Tsize: out.CumulativeSize}
}

func (m mfs) links() []Link { return slices.Collect(maps.Values(m.set)) }

// over is by how many bytes a basic directory would be over the limit.
func (m mfs) over() int {
	m.t.Helper()
	es, _, err := sortLinks(m.links())
	if err != nil {
		m.t.Fatal(err)
	}
	return basicLen(es) - DirLimit
}

// expect holds Kubo's directory against BuildDir with a limit.
func (m mfs) expect(what string, limit int) {
	m.t.Helper()
	if got, want := m.stat(m.path), mustBuild(m.t, m.links(), limit, newStore().sink); got != want {
		m.t.Fatalf("%s: %d entries, %+d bytes over the limit: Kubo %v, built with limit %d %v", what, len(m.set), m.over(), got, limit, want)
	}
}

// TestDirEqualsKubo inserts, updates and deletes at random in one directory:
// few entries, over the limit and back several times, down to nothing and up
// again.
func TestDirEqualsKubo(t *testing.T) {
	m := startMFS(t)
	rng := rand.New(rand.NewPCG(3, 4))
	var refs []Ref // with Tsizes of one to five bytes
	for i := range 16 {
		refs = append(refs, m.file(40*i), m.folder(1<<(2*i)))
	}
	made := 0
	change := func(growth float64) {
		names := slices.Sorted(maps.Keys(m.set))
		switch p := rng.Float64(); {
		case len(names) == 0 || p < 0.8*growth:
			made++
			m.insert(fmt.Sprint("p", made, strings.Repeat("-", rng.IntN(200))), refs[rng.IntN(len(refs))])
		case p < 0.8:
			name := names[rng.IntN(len(names))]
			old := m.set[name]
			delete(m.set, name)
			left := m.over()
			m.set[name] = old
			if left == 1 || left == 2 { // Kubo's two digits
				return
			}
			m.reload()
			m.remove(name)
		default:
			name := names[rng.IntN(len(names))]
			m.reload()
			m.remove(name)
			m.insert(name, refs[rng.IntN(len(refs))])
		}
	}
	s := newStore()
	var (
		before          map[string]Link
		dir             Ref
		basic           = true
		grown, shrunk   int
		edited, deleted int
	)
	check := func() {
		t.Helper()
		m.expect("random mix", DirLimit)
		wasBasic := basic
		basic = m.over() <= 0
		switch {
		case wasBasic && !basic:
			grown++
		case !wasBasic && basic:
			shrunk++
		case !basic:
			edits := difference(before, m.set)
			if got, want := mustEdit(t, s, dir, edits...).Ref, m.stat(m.path); got != want {
				t.Fatalf("%d edits of %d entries: edited %v, Kubo %v", len(edits), len(m.set), got, want)
			}
			edited++
			for _, l := range edits {
				if !l.CID.Defined() {
					deleted++
				}
			}
		}
		before, dir = maps.Clone(m.set), mustBuild(t, m.links(), DirLimit, s.sink)
	}
	walk := func(until func() bool, growth float64) {
		t.Helper()
		for n := 0; !until(); n++ {
			change(growth)
			if over := m.over(); n%4 == 0 || -800 < over && over < 800 {
				check()
			}
		}
		check()
	}
	entries := func(n int) func() bool { return func() bool { return len(m.set) == n } }
	larger := func() bool { return m.over() > 1200 }
	smaller := func() bool { return m.over() < -1200 }

	check()
	for _, n := range []int{8, 2, 12, 0, 5} {
		growth := 0.85
		if n < len(m.set) {
			growth = 0.15
		}
		walk(entries(n), growth)
	}
	if grown > 0 {
		t.Fatal("few entries were a HAMT")
	}
	for range 2 {
		walk(larger, 0.85)
		walk(smaller, 0.15)
		for range 30 { // to and fro over the limit
			growth := 0.2
			if m.over() < 0 {
				growth = 0.8
			}
			change(growth)
			check()
		}
	}
	walk(larger, 0.85)
	walk(entries(0), 0.05)
	walk(larger, 0.95)
	if grown < 5 || shrunk < 5 || edited < 50 || deleted < 20 {
		t.Errorf("over the limit %d times, back %d times, %d edits of a HAMT with %d deletes: too few to tell", grown, shrunk, edited, deleted)
	}
}

// difference gives the edits that make one set of another.
func difference(from, to map[string]Link) []Link {
	var edits []Link
	for name, l := range to {
		if from[name] != l {
			edits = append(edits, l)
		}
	}
	for name := range from {
		if _, ok := to[name]; !ok {
			edits = append(edits, Link{Name: name})
		}
	}
	return edits
}

// TestKuboShrinksOtherwise shows where Kubo's HAMT does not become basic at the
// limit, and how the two come together again. Where it fails after an update of
// Kubo, that has come closer to us.
func TestKuboShrinksOtherwise(t *testing.T) {
	const whatever = 1 << 30 // a limit within which all is basic
	m := startMFS(t)
	ref := m.folder(1 << 22)
	long := func(i int) string { return fmt.Sprint("long", i, strings.Repeat("-", 190)) }
	for i := 0; m.over() < -2500; i++ {
		m.insert(long(i), ref)
	}
	short := 0
	for ; m.over() < -120; short++ {
		m.insert(fmt.Sprint("s", short), ref)
	}
	// padded is a copy with an entry more, which is over bytes over the limit.
	padded := func(over int) mfs {
		t.Helper()
		d := m.copy(fmt.Sprint("/over", over))
		for name := "p"; ; name += "p" {
			d.set[name] = Link{Name: name, CID: ref.CID, Tsize: ref.Tsize}
			at := d.over()
			delete(d.set, name)
			if at == over {
				d.insert(name, ref)
				return d
			}
			if at > over {
				t.Fatalf("no name makes a directory %d bytes over", over)
			}
		}
	}

	for _, over := range []int{-1, 0, 1, 2, 3} {
		d := padded(over)
		d.expect("inserted", DirLimit)
		d.insert("gone", ref)
		d.expect("one more", DirLimit)
		d.reload()
		d.remove("gone")
		if over == 1 || over == 2 {
			d.expect("basic over the limit", whatever)
			d.insert("next", ref)
		}
		d.expect("in the end", DirLimit)
	}

	d := m.copy("/counted")
	for i := range 5 {
		d.insert(long(1000+i), ref)
	}
	d.expect("grown", DirLimit)
	for d.over() > 0 {
		short--
		d.remove(fmt.Sprint("s", short))
	}
	d.expect("a HAMT within the limit", 0)
	d.reload()
	short--
	d.remove(fmt.Sprint("s", short))
	d.expect("loaded anew and one less", DirLimit)

	d = padded(10)
	d.expect("over the limit", DirLimit)
	d.reload()
	d.call(nil, "files/cp", "/ipfs/"+ref.CID.String(), d.path+"/"+long(0)+"/inside")
	inside := d.stat(d.path + "/" + long(0))
	d.set[long(0)] = Link{Name: long(0), CID: inside.CID, Tsize: inside.Tsize}
	if d.over() <= 0 {
		t.Fatalf("changed inside: %+d bytes over the limit", d.over())
	}
	d.expect("basic over the limit after a change inside", whatever)
	d.reload()
	d.insert("next", ref)
	d.expect("and one more", DirLimit)
}
