package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// tableOf is a table of one mirror with a cache.
func tableOf(t testing.TB, w *world, change ...func(*Options)) *Table {
	t.Helper()
	c, err := OpenCache(CacheOptions{Dir: "cache", FS: vfs.NewMem()})
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	m := w.open(append(change, func(o *Options) { o.Cached = c.Part("node", nil, nil) })...)
	table, err := NewTable(Registry{Label: "npm", Mirror: m})
	check(t, err)
	return table
}

// export is a bundle of specs as the world's newest list has them.
func (w *world) export(t testing.TB, whole bool, specs ...string) []byte {
	t.Helper()
	m := w.synced(func(o *Options) { o.Dir = "exporter" })
	table, err := NewTable(Registry{Label: "npm", Mirror: m})
	check(t, err)
	var out bytes.Buffer
	got, err := table.Export(t.Context(), &out, wanted(t, specs...), ExportOptions{Whole: whole})
	check(t, err)
	if got.Bytes != int64(out.Len()) || len(got.Packages) == 0 {
		t.Errorf("export says %+v, and wrote %d bytes", got, out.Len())
	}
	return out.Bytes()
}

func wanted(t testing.TB, specs ...string) (all []Bundled) {
	for _, text := range specs {
		spec, err := npm.ParseSpec(text)
		check(t, err)
		b := Bundled{Name: spec.Name}
		if spec.Range != "" {
			b.Versions = []string{spec.Range}
		}
		all = append(all, b)
	}
	return all
}

// isolated is the world as a machine sees it that has nobody to ask.
func (w *world) isolated(t testing.TB) *world {
	other := &world{t: t, name: w.name, now: w.now, blocks: map[cid.Cid]blocks.Block{}}
	other.node = &fakeNode{w: other, held: map[cid.Cid]blocks.Block{}, alone: true}
	return other
}

func offline(o *Options) { o.Offline = true }

func take(t testing.TB, table *Table, car []byte) (Imported, error) {
	b, err := OpenBundle(bytes.NewReader(car))
	if err != nil {
		return Imported{}, err
	}
	return table.Import(t.Context(), b, ImportOptions{})
}

func status(m *Mirror, path string) int { return get(m, path).Code }

func TestABundleIsServedAlone(t *testing.T) {
	w := newWorld(t)
	w.keys = []byte(`{"keys":[]}`)
	w.peers = []string{"/ip4/127.0.0.1/tcp/1/p2p/12D3KooWPAtvWdSNeiFZiWiWivJdCTMBhKfCDTCVvaNESqiR47wv"}
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0", "@types/node")
	if again := w.export(t, false, "@types/node@20.0.0", "left-pad@1.3.0"); !bytes.Equal(car, again) {
		t.Error("two exports of the same differ")
	}
	fs := vfs.NewMem()
	other := w.isolated(t)
	table := tableOf(t, other, offline, func(o *Options) { o.FS = fs })
	got, err := take(t, table, car)
	check(t, err)
	if got.Sequence != 1 || len(got.Packages) != 2 || got.Blocks == 0 {
		t.Errorf("imported %+v", got)
	}
	if a, err := table.Account(t.Context(), "is-odd", "", false); err != nil || a.State != Unknown {
		t.Errorf("of what no bundle brought: %q, %v", a.State, err)
	}
	serves := func(m *Mirror) {
		t.Helper()
		for path, want := range map[string]int{
			"/left-pad": 200, "/@types%2fnode": 200, "/left-pad/1.0.0": 200, // the document names it
			tarballPath("left-pad", "left-pad-1.3.0.tgz"): 200, tarballPath("@types/node", "node-20.0.0.tgz"): 200,
			tarballPath("left-pad", "left-pad-1.0.0.tgz"): 404, "/is-odd": 404, "/nowhere": 404, "/-/npm/v1/keys": 200,
			"/-/v1/search?text=left": 200,
		} {
			if got := status(m, path); got != want {
				t.Errorf("%s: %d, want %d", path, got, want)
			}
		}
		if names := foundNames(t, m); !slices.Equal(names, []string{"@types/node", "left-pad"}) {
			t.Errorf("it lists %q", names)
		}
	}
	m := table.rows[0].Mirror
	if other.node.asked() > 0 || len(other.node.dialled) > 0 {
		t.Errorf("it asked for blocks %d times, and dialled %q", other.node.asked(), other.node.dialled)
	}
	serves(m)
	if len(table.Pins()) != 2 {
		t.Errorf("pinned: %+v", table.Pins())
	}
	if got := get(m, "/left-pad", "Accept: "+npm.AbbreviatedType).Header().Get("Content-Type"); got != npm.AbbreviatedType {
		t.Errorf("the abbreviated document is %s", got)
	}
	// The same again, after a restart, changes nothing.
	check(t, m.Close())
	table = tableOf(t, other, offline, func(o *Options) { o.FS = fs })
	serves(table.rows[0].Mirror)
	_, err = take(t, table, car)
	check(t, err)
	serves(table.rows[0].Mirror)

	// What is exported of a bundle is a bundle; but it has no whole list.
	m = table.rows[0].Mirror
	var out bytes.Buffer
	_, err = table.Export(t.Context(), &out, wanted(t, "@types/node@20.0.0", "left-pad@1.3.0"), ExportOptions{})
	if err != nil || !bytes.Equal(out.Bytes(), car) {
		t.Errorf("exported again: %v, %d bytes of %d", err, out.Len(), len(car))
	}
	if _, err := table.Export(t.Context(), &out, wanted(t, "left-pad@1.3.0"), ExportOptions{Whole: true}); !errors.Is(err, ErrNotSynced) {
		t.Errorf("the whole list of a bundle: %v", err)
	}
	// Parts of one release are put together.
	_, err = take(t, table, w.export(t, false, "is-odd"))
	check(t, err)
	if names := foundNames(t, m); len(names) != 3 || status(m, "/is-odd") != 200 {
		t.Errorf("after a second bundle it lists %q", names)
	}
}

// An earlier release of which a bundle brought a part is served as that part, though the
// releases between are not here; one of which nothing came is not.
func TestAnEarlierPart(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	one := w.export(t, false, "left-pad@1.3.0")
	w.publish("left-pad", "is-odd")
	w.now = w.now.Add(time.Hour)
	w.publish(everything...)
	three := w.export(t, false, "@types/node")
	table := tableOf(t, w.isolated(t), offline)
	for _, car := range [][]byte{one, three} {
		_, err := take(t, table, car)
		check(t, err)
	}
	m := table.rows[0].Mirror
	for path, want := range map[string]int{
		"/@types/node": 200, "/-/at/1/left-pad": 200, "/-/at/1/left-pad/-/left-pad-1.3.0.tgz": 200, "/-/at/1/left-pad/-/left-pad-1.0.0.tgz": 404,
		"/-/at/1/@types/node": 404, "/-/at/3/@types/node": 200, "/-/at/3/left-pad": 404, "/-/at/2/left-pad": 404,
	} {
		if got := ask(table.Handler(), path); got.Code != want {
			t.Errorf("%s: %d %s, want %d", path, got.Code, got.Body, want)
		}
	}
	if got := ask(table.Handler(), "/-/at/1/@types/node"); !strings.Contains(got.Body.String(), errNotInBundle.Error()) {
		t.Errorf("what the part lacks: %s", got.Body)
	}
	moment, err := ParseMoment("1")
	check(t, err)
	then, err := table.At(t.Context(), moment, nil)
	check(t, err)
	if r := then.Status(t.Context()).Registries[0].Release; r.Number != 1 || r.Part != 1 {
		t.Errorf("it serves %+v", r)
	}
	if got := m.head.Load().Release.Number; got != 3 {
		t.Errorf("the newest is %d", got)
	}
	// Of the second nothing was brought, but where it is was.
	if _, _, err := m.openAt(t.Context(), w.past[1].Root); !errors.Is(err, ErrNoRelease) || !errors.Is(err, ErrOffline) {
		t.Errorf("nothing of it is here: %v", err)
	}
}

func TestABundleOfTheWholeList(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	table := tableOf(t, w.isolated(t), offline)
	_, err := take(t, table, w.export(t, true, "left-pad@1.3.0"))
	check(t, err)
	m := table.rows[0].Mirror
	for path, want := range map[string]int{"/left-pad": 200, "/is-odd": 404, "/nowhere": 404} {
		if got := status(m, path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	if names := foundNames(t, m); len(names) != 3 {
		t.Errorf("it lists %q", names)
	}
}

// A mirror that has followed the name keeps what it had, and comes to the whole list by
// itself once there is somebody to ask.
func TestABundleBesideAList(t *testing.T) {
	w := newWorld(t)
	w.publish("left-pad", "is-odd")
	fs := vfs.NewMem()
	table := tableOf(t, w, func(o *Options) { o.FS = fs })
	m := table.rows[0].Mirror
	check(t, m.Sync(t.Context()))
	old := w.export(t, false, "left-pad")
	w.publish(everything...)
	_, err := take(t, table, w.export(t, false, "@types/node"))
	check(t, err)
	for path, want := range map[string]int{"/left-pad": 200, "/@types%2fnode": 200, "/nowhere": 404} {
		if got := status(m, path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	if names := foundNames(t, m); !slices.Equal(names, []string{"@types/node", "is-odd", "left-pad"}) {
		t.Errorf("it lists %q", names)
	}
	if pins, _ := w.node.Pins(t.Context(), m.partsLabel()); len(pins) != 1 {
		t.Errorf("the node pins %v of its directories", pins)
	}
	if _, err := take(t, table, old); !errors.Is(err, ipnsrecord.ErrRollback) {
		t.Errorf("a bundle from before: %v", err)
	}
	if s := m.Status(t.Context()); s.Rollbacks != 0 {
		t.Errorf("a bundle from before counts as %d that the network gave", s.Rollbacks)
	}
	check(t, m.Sync(t.Context()))
	if h := m.head.Load(); !h.serves(w.release) {
		t.Errorf("after a sync it serves %+v", h)
	}
	if pins, _ := w.node.Pins(t.Context(), m.partsLabel()); len(pins) != 0 {
		t.Errorf("and the node pins %v still", pins)
	}
	check(t, m.Close())
	again := w.open(func(o *Options) { o.FS = fs; o.Offline = true })
	if !again.head.Load().serves(w.release) {
		t.Error("and after a restart it does not")
	}
}

func TestAFrozenReleaseIsBundled(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced(func(o *Options) { o.Dir = "frozen"; o.Root = w.release; o.Name = ipns.Name{} })
	table, err := NewTable(Registry{Label: "npm", Mirror: m})
	check(t, err)
	var car bytes.Buffer
	_, err = table.Export(t.Context(), &car, wanted(t, "left-pad@1.3.0"), ExportOptions{})
	check(t, err)
	to := tableOf(t, w.isolated(t), offline, func(o *Options) { o.Root, o.Name = w.release, ipns.Name{} })
	_, err = take(t, to, car.Bytes())
	check(t, err)
	if got := status(to.rows[0].Mirror, tarballPath("left-pad", "left-pad-1.3.0.tgz")); got != 200 {
		t.Errorf("its tarball: %d", got)
	}
}

func TestAnExpiredBundle(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0")
	late := w.isolated(t)
	late.now = w.now.Add(48 * time.Hour)
	table := tableOf(t, late, offline)
	m := table.rows[0].Mirror
	if _, err := take(t, table, car); !errors.Is(err, ipnsrecord.ErrExpired) {
		t.Errorf("an expired record: %v", err)
	}
	if m.high.Load().Value != "" || m.head.Load() != nil || len(table.Pins()) != 0 {
		t.Error("what was refused left a mark")
	}
	m.o.AcceptStale = true
	_, err := take(t, table, car)
	check(t, err)
	if got := status(m, "/left-pad"); got != 200 {
		t.Errorf("with --accept-stale: %d", got)
	}
}

// rebuilt is a CAR of some blocks.
func rebuilt(t testing.TB, root cid.Cid, blks ...blocks.Block) []byte {
	var out bytes.Buffer
	check(t, ipfs.WriteCAR(&out, root, func(yield func(blocks.Block, error) bool) {
		for _, b := range blks {
			if !yield(b, nil) {
				return
			}
		}
	}))
	return out.Bytes()
}

func blocksOf(t testing.TB, car []byte) (root cid.Cid, all []blocks.Block) {
	c, err := ipfs.OpenCAR(bytes.NewReader(car))
	check(t, err)
	for {
		b, err := c.Next()
		if err != nil {
			return c.Roots[0], all
		}
		all = append(all, b)
	}
}

func TestBundlesThatLie(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0")
	root, all := blocksOf(t, car)
	junk, err := blockOf(mustSum(t, "junk"), []byte("junk"))
	check(t, err)
	thief := newWorld(t)
	thief.publish("left-pad")
	stolen := thief.export(t, false, "left-pad@1.3.0")

	// A bundle with another's record, and one that promises what is not there.
	changed := func(change func(links []unixfs.Link, sink unixfs.Sink) []unixfs.Link) []byte {
		made := map[cid.Cid]blocks.Block{}
		for _, b := range all {
			made[b.Cid()] = b
		}
		get := getterFunc(func(_ context.Context, c cid.Cid) (blocks.Block, error) { return made[c], nil })
		links, _, err := unixfs.Basic(t.Context(), get, root)
		check(t, err)
		sink := func(b blocks.Block) error { made[b.Cid()] = b; return nil }
		ref, err := unixfs.BasicDir(change(links, sink), sink)
		check(t, err)
		var out []blocks.Block
		for b, err := range unixfs.Beyond(t.Context(), get, cid.Undef, ref.CID) {
			check(t, err)
			out = append(out, b)
		}
		return rebuilt(t, ref.CID, out...)
	}
	replaced := func(name string, data []byte) []byte {
		return changed(func(links []unixfs.Link, sink unixfs.Sink) []unixfs.Link {
			ref, err := unixfs.AddBytes(data, sink)
			check(t, err)
			for i := range links {
				if links[i].Name == name {
					links[i].CID, links[i].Tsize = ref.CID, ref.Tsize
				}
			}
			return links
		})
	}
	without := func(name string) []byte {
		return changed(func(links []unixfs.Link, _ unixfs.Sink) []unixfs.Link {
			return slices.DeleteFunc(links, func(l unixfs.Link) bool { return l.Name == name })
		})
	}
	manifest := func(packages string) []byte {
		return replaced(bundleFile, []byte(fmt.Sprintf(`{"format":1,"address":%q,"release":1,"root":%q,"packages":%s}`, "/ipns/"+w.name.String(), w.release, packages)))
	}
	reversed := slices.Clone(all[1:])
	slices.Reverse(reversed)
	flipped := bytes.Clone(car)
	flipped[len(flipped)-1] ^= 1
	for name, test := range map[string]struct {
		car  []byte
		says string
	}{
		"Empty":          {nil, "malformed CAR"},
		"NoCAR":          {[]byte("{}"), "malformed CAR"},
		"HugeHeader":     {[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, "malformed CAR"},
		"HugeBlock":      {append(rebuilt(t, root, all...), 0xff, 0xff, 0xff, 0xff, 0x7f), "malformed CAR"},
		"OtherRoot":      {rebuilt(t, junk.Cid(), all...), "linked to by none"},
		"NoBlocks":       {rebuilt(t, root), "cut off before"},
		"CutOff":         {car[:len(car)-10], "malformed CAR"},
		"CutAtABlock":    {rebuilt(t, root, all[:len(all)-1]...), "1 blocks are missing"},
		"Flipped":        {flipped, "malformed CAR"},
		"Trailing":       {append(bytes.Clone(car), "more"...), "malformed CAR"},
		"Stranger":       {rebuilt(t, root, append(slices.Clone(all), junk)...), "linked to by none"},
		"OutOfOrder":     {rebuilt(t, root, append([]blocks.Block{all[0]}, reversed...)...), "linked to by none"},
		"OtherRegistry":  {stolen, "which is not served"},
		"NoRecord":       {without(bundleRecord), "its record"},
		"NoList":         {without(bundleList), "not a usable bundle"},
		"JunkRecord":     {replaced(bundleRecord, []byte("junk")), "record"},
		"StolenRecord":   {replaced(bundleRecord, thief.record), "signed"},
		"JunkManifest":   {replaced(bundleFile, []byte("{")), "bundle.json"},
		"NewFormat":      {replaced(bundleFile, []byte(`{"format":2}`)), "format is 2"},
		"BadName":        {manifest(`[{"name":"../x","versions":[]}]`), "../x"},
		"UnlistedName":   {manifest(`[{"name":"nowhere","versions":["1.0.0"]}]`), "not a usable bundle"},
		"UnknownVersion": {manifest(`[{"name":"left-pad","versions":["9.9.9"]}]`), "9.9.9"},
		"AbsentVersion":  {manifest(`[{"name":"left-pad","versions":["1.0.0"]}]`), "1.0.0"},
		"AbsentName":     {manifest(`[{"name":"is-odd","versions":["3.0.1"]}]`), "not a usable bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			table := tableOf(t, w.isolated(t), offline)
			m := table.rows[0].Mirror
			_, err := take(t, table, test.car)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v; want an error that says %q", err, test.says)
			}
			if m.high.Load().Value != "" || m.head.Load() != nil || len(table.Pins()) != 0 {
				t.Error("it left a mark")
			}
			if got := status(m, "/left-pad"); got == http.StatusOK {
				t.Error("it is served")
			}
			_, err = take(t, table, car) // and the good one comes in after it
			check(t, err)
			if got := status(m, "/left-pad"); got != http.StatusOK {
				t.Errorf("after the good one: %d", got)
			}
		})
	}
	// Repeated blocks cost their reading alone.
	table := tableOf(t, w.isolated(t), offline)
	_, err = take(t, table, rebuilt(t, root, slices.Concat(all[:1], all[:1], all[1:], all)...))
	check(t, err)
}

func mustSum(t testing.TB, text string) cid.Cid {
	c, err := cid.V1Builder{Codec: cid.Raw, MhType: 0x12}.Sum([]byte(text))
	check(t, err)
	return c
}

// A crash anywhere in an import leaves what was served before, and the import can be
// done again. Of the file system everything unsynced is lost.
func TestAnImportThatCrashes(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	car := w.export(t, false, "left-pad@1.3.0")
	for name, at := range map[string]func(m *Mirror, crash func()) ([]byte, bool){
		"AfterTheBlocks": func(m *Mirror, crash func()) ([]byte, bool) { return car[:len(car)-1], false },
		"AfterTheMark": func(m *Mirror, crash func()) ([]byte, bool) {
			m.wrote = crash
			return car, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			var left *vfs.MemFS
			table := tableOf(t, w.isolated(t), offline, func(o *Options) { o.FS, o.Node, o.Gateways = fs, nil, []Gateway{&fakeGateway{w: w}} })
			m := table.rows[0].Mirror
			crash := func() {
				if left == nil {
					left = fs.CrashClone(vfs.CrashCloneCfg{})
				}
			}
			bytes, marked := at(m, crash)
			_, err := take(t, table, bytes)
			crash()
			if (err == nil) != marked {
				t.Fatal(err)
			}
			after := tableOf(t, w.isolated(t), offline, func(o *Options) { o.FS, o.Node, o.Gateways = left, nil, []Gateway{&fakeGateway{w: w}} })
			m = after.rows[0].Mirror
			if m.head.Load() != nil || (m.high.Load().Value != "") != marked {
				t.Errorf("after the crash: list %v, mark %+v", m.head.Load(), m.high.Load())
			}
			_, err = take(t, after, car)
			check(t, err)
			if got := status(m, tarballPath("left-pad", "left-pad-1.3.0.tgz")); got != http.StatusOK {
				t.Errorf("done again: %d", got)
			}
		})
	}
}

// What a lock says of a version's bytes is held against the document before any tarball
// comes, whatever versions are asked for.
func TestFetchHoldsALock(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	table, err := NewTable(Registry{Label: "npm", Mirror: m})
	check(t, err)
	forged := "sha512-" + strings.Repeat("A", 86) + "=="
	var all []error
	for _, versions := range [][]string{{"1.3.0"}, nil} {
		got, err := table.Fetch(t.Context(), Bundled{"left-pad", versions, map[string]string{"1.3.0": forged, "99.0.0": forged}})
		if !errors.Is(err, ErrOtherIntegrity) || !strings.Contains(err.Error(), ": left-pad@1.3.0: the lockfile has "+forged+", the registry sha") {
			t.Errorf("Fetch of %v: %v", versions, err)
		}
		if got.Files > 2 { // both documents
			t.Errorf("Fetch of %v says that %d files are here", versions, got.Files)
		}
		for len(all) <= maxContradictions {
			all = append(all, err)
		}
	}
	if err := OtherIntegrity(all); !errors.Is(err, ErrOtherIntegrity) || strings.Count(err.Error(), "left-pad@1.3.0") != maxContradictions || !strings.HasSuffix(err.Error(), "; 1 more") {
		t.Errorf("of %d: %v", len(all), err)
	}
	if _, err := table.Fetch(t.Context(), Bundled{"left-pad", []string{"1.3.0"}, map[string]string{"1.3.0": "sha512-x"}}); err != nil {
		t.Errorf("with what nobody can check: %v", err)
	}
}

func TestExportRefuses(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	acme, err := NewTable(Registry{Label: "acme", Scopes: []string{"@types"}, Mirror: m}, Registry{Label: "npm", Mirror: w.synced(func(o *Options) { o.Dir = "other" })})
	check(t, err)
	var out bytes.Buffer
	for name, test := range map[string]struct {
		specs    []string
		registry string
		is       error
	}{
		"Several":  {[]string{"@types/node", "left-pad"}, "", ErrSeveral},
		"Unlisted": {[]string{"nowhere"}, "", ErrNotHere},
		"Version":  {[]string{"left-pad@9.9.9"}, "", ErrNotHere},
		"Label":    {[]string{"left-pad"}, "acme", errUnlisted},
	} {
		if _, err := acme.Export(t.Context(), &out, wanted(t, test.specs...), ExportOptions{Registry: test.registry}); !errors.Is(err, test.is) || out.Len() > 0 {
			t.Errorf("%s: %v, %d bytes", name, err, out.Len())
		}
	}
	got, err := acme.Export(t.Context(), &out, wanted(t, "@types/node", "left-pad"), ExportOptions{Registry: "acme"})
	if err != nil || len(got.Packages) != 1 || got.Packages[0].Name != "@types/node" {
		t.Errorf("of one of two registries: %+v, %v", got, err)
	}
}

func FuzzBundle(f *testing.F) {
	w := newWorld(f)
	w.publish("left-pad")
	car := w.export(f, false, "left-pad@1.3.0")
	f.Add(car)
	f.Add(car[:len(car)/2])
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := OpenBundle(bytes.NewReader(raw))
		for err == nil {
			_, err = b.next()
		}
		if err != io.EOF && !errors.Is(err, ErrBundle) {
			t.Fatalf("%v is no ErrBundle", err)
		}
		if b != nil && err == io.EOF && len(b.due) == 0 && len(b.seen) < 2 {
			t.Fatalf("a bundle of %d blocks is whole", len(b.seen))
		}
	})
}

// foundNames are what a search for nothing in particular finds.
func foundNames(t testing.TB, m *Mirror) []string {
	t.Helper()
	hits, err := m.Search(t.Context(), "", 0, 250)
	check(t, err)
	var names []string
	for _, h := range hits.Hits {
		names = append(names, string(h.Name))
	}
	if hits.Total != len(names) {
		t.Errorf("%d are found, %d in all", len(names), hits.Total)
	}
	slices.Sort(names)
	return names
}
