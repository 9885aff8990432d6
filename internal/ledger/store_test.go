package ledger

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var testTime = time.Date(2026, 11, 22, 12, 0, 0, 5, time.UTC)

func testOptions(fs vfs.FS) Options {
	return Options{FS: fs, Now: func() time.Time { return testTime }}
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Create("/ledger", testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func testCID(seed string) cid.Cid {
	sum, err := mh.Sum([]byte(seed), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, sum)
}

func testVersion(name npm.Name, version string) Version {
	return Version{
		Version: version, Integrity: "sha512-" + strings.Repeat("A", 86) + "==", Shasum: strings.Repeat("ab", 20),
		File: fmt.Sprintf("%s-%s.tgz", name, version), CID: testCID(string(name) + version),
		Size: 1000, Tsize: 1010, FirstSeen: testTime,
	}
}

func testUpdate(name npm.Name, document string, versions ...string) PackageUpdate {
	u := PackageUpdate{Name: name, Rev: "1-a", ETag: `"e"`, Checked: testTime,
		Document: Document{CID: testCID(document), Tsize: 20, Size: 100}}
	for _, v := range versions {
		u.Versions = append(u.Versions, testVersion(name, v))
	}
	return u
}

func commit(t testing.TB, s *Store, b Batch) Seq {
	t.Helper()
	seq, err := s.Commit(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func held(t testing.TB, s *Store, name npm.Name) []string {
	t.Helper()
	p, err := s.Package(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return numbers(p.Versions)
}

func numbers(versions []Version) (all []string) {
	for _, v := range versions {
		all = append(all, v.Version)
	}
	return all
}

func check(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestNothingBeginsByAccident(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrNoLedger) {
		t.Fatalf("Open of nothing: %v", err)
	}
	if list, err := vfs.Default.List(filepath.Dir(dir)); err != nil || len(list) != 0 {
		t.Fatalf("Open of nothing made %v, %v", list, err)
	}
	s, err := Create(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := s.Identity()
	if len(id) != 32 {
		t.Errorf("identity %q", id)
	}
	for name, open := range map[string]func(string, Options) (*Store, error){"Open": Open, "Create": Create, "OpenOrCreate": OpenOrCreate} {
		if _, err := open(dir, Options{}); !errors.Is(err, ErrLocked) {
			t.Errorf("%s of a ledger in use: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, Options{}); !errors.Is(err, ErrExists) {
		t.Fatalf("Create over a ledger: %v", err)
	}
	s, err = OpenOrCreate(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Identity() != id {
		t.Errorf("identity %q became %q", id, s.Identity())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := s.Package(context.Background(), "a"); !errors.Is(err, ErrClosed) {
		t.Errorf("Package after Close: %v", err)
	}
	if _, err := s.Commit(context.Background(), Batch{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after Close: %v", err)
	}
}

func TestCommittedIsReadBack(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Create("/ledger", testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	want := Want{Spec: npm.Spec{Name: "express", Range: "4"}, Every: true, Exact: true}
	retry := Retry{Name: "b", Version: "2.0.0", Attempts: 3, Next: testTime, Detail: "503", Rev: "2-b", Queued: testTime, Missing: 2, Since: testTime, Approved: true}
	refusal := Refusal{Name: "c", Reason: "name", Detail: "not a name", Time: testTime}
	seq := commit(t, s, Batch{
		Packages: []PackageUpdate{testUpdate("@types/node", "d1", "1.0.0", "0.9.0"), testUpdate("zed", "d2", "1.0.0")},
		Retries:  []Retry{retry}, Refused: []Refusal{refusal}, Wants: []Want{want},
		Cursor: &Cursor{Feed: "http://feed.example.test", Value: "5-opaque"},
	})
	if seq != 2 {
		t.Errorf("head %d", seq)
	}
	check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = Open("/ledger", testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check(t, s)
	retry.Stamp = 1 // the first of this ledger
	p, err := s.Package(ctx, "@types/node")
	if err != nil {
		t.Fatal(err)
	}
	u := testUpdate("@types/node", "d1", "0.9.0", "1.0.0") // sorted
	wantPackage := Package{Name: u.Name, Seq: 1, Rev: u.Rev, ETag: u.ETag, Checked: u.Checked, Document: u.Document, Held: 2, Versions: u.Versions}
	if !reflect.DeepEqual(p, wantPackage) {
		t.Errorf("package\n%+v, want\n%+v", p, wantPackage)
	}
	if _, err := s.Package(ctx, "@types"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a name's prefix: %v", err)
	}
	var names []npm.Name
	for p, err := range s.Packages(ctx) {
		if err != nil || p.Versions != nil {
			t.Fatalf("%+v, %v", p, err)
		}
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []npm.Name{"@types/node", "zed"}) {
		t.Errorf("packages %v", names)
	}
	wants, _ := s.Wants(ctx)
	retries, _ := s.Retries(ctx)
	refused, _ := s.Refused(ctx)
	if !reflect.DeepEqual(wants, []Want{want}) || !reflect.DeepEqual(retries, []Retry{retry}) || !reflect.DeepEqual(refused, []Refusal{refusal}) {
		t.Errorf("wants %v, retries %v, refused %v", wants, retries, refused)
	}
	if v, ok := s.Cursor("http://feed.example.test"); !ok || v != "5-opaque" {
		t.Errorf("cursor %q %v", v, ok)
	}
	if _, ok := s.Cursor("http://other.example.test"); ok {
		t.Error("a cursor of a feed that was never read")
	}
	if got, want := s.Counts(), (Counts{Packages: 2, Versions: 3, Bytes: 3000, Refused: 1, Retrying: 1, Wants: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func TestOnlyContentMovesTheSequence(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	first := commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}})
	steps := []struct {
		name  string
		batch Batch
		moves bool
	}{
		{"the same again", Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}}, false},
		{"not modified", Batch{Packages: []PackageUpdate{{Name: "a", Checked: testTime.Add(time.Hour)}}}, false},
		{"another revision of the same bytes", Batch{Packages: []PackageUpdate{{Name: "a", Rev: "9-z"}}}, false},
		{"a cursor", Batch{Cursor: &Cursor{Feed: "f", Value: "1"}}, false},
		{"unknown and deleted", Batch{Packages: []PackageUpdate{{Name: "x", Deleted: true}}}, false},
		{"unknown and not modified", Batch{Packages: []PackageUpdate{{Name: "x", Checked: testTime}}}, false},
		{"drop of what is not there", Batch{Packages: []PackageUpdate{{Name: "a", Drop: []string{"9.9.9"}}}}, false},
		{"nothing", Batch{}, false},
		{"a document", Batch{Packages: []PackageUpdate{testUpdate("a", "d2")}}, true},
		{"a version", Batch{Packages: []PackageUpdate{{Name: "a", Versions: []Version{testVersion("a", "1.1.0")}}}}, true},
		{"a drop", Batch{Packages: []PackageUpdate{{Name: "a", Drop: []string{"1.0.0"}}}}, true},
		{"a return", Batch{Packages: []PackageUpdate{{Name: "a", Versions: []Version{testVersion("a", "1.0.0")}}}}, true},
		{"a tombstone", Batch{Packages: []PackageUpdate{{Name: "a", Deleted: true}}}, true},
		{"a tombstone again", Batch{Packages: []PackageUpdate{{Name: "a", Deleted: true}}}, false},
		{"a check of a tombstone", Batch{Packages: []PackageUpdate{{Name: "a", Checked: testTime}}}, false},
		{"a resurrection", Batch{Packages: []PackageUpdate{testUpdate("a", "d2", "1.0.0")}}, true},
	}
	head := first
	for _, step := range steps {
		got := commit(t, s, step.batch)
		if want := head + map[bool]Seq{true: 1}[step.moves]; got != want {
			t.Errorf("%s: head %d, want %d", step.name, got, want)
		}
		head = got
		check(t, s)
	}
	p, err := s.Package(ctx, "a")
	if err != nil || p.Seq != head || p.Rev != "1-a" {
		t.Errorf("package %+v, %v", p, err)
	}
	all, err := s.Changes(ctx, 0, 0)
	if err != nil || !reflect.DeepEqual(all, []Change{{Seq: head, Name: "a"}}) {
		t.Errorf("changes %v, %v", all, err)
	}
}

func TestAVersionNeverChangesItsBytes(t *testing.T) {
	ctx := context.Background()
	sha1 := "sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0="
	sha512 := testVersion("a", "1.0.0").Integrity
	other512 := "sha512-" + strings.Repeat("B", 86) + "=="
	for _, c := range []struct {
		name      string
		change    func(*Version)
		refused   bool
		integrity string
	}{
		{"other bytes", func(v *Version) { v.CID = testCID("evil") }, true, sha512},
		{"other bytes under the same digest", func(v *Version) { v.CID = testCID("evil"); v.Size = 7 }, true, sha512},
		{"a digest that contradicts", func(v *Version) { v.Integrity = other512 }, true, sha512},
		{"one that agrees and one that contradicts", func(v *Version) { v.Integrity = sha1 + " " + other512 }, true, sha512},
		{"another SHA-1", func(v *Version) { v.Shasum = strings.Repeat("cd", 20) }, true, sha512},
		{"the same with options", func(v *Version) { v.Integrity += "?ct=application/octet-stream" }, false, sha512},
		{"a further digest of the same bytes", func(v *Version) { v.Integrity = sha1 }, false, sha512 + " " + sha1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}})
			v := testVersion("a", "1.0.0")
			c.change(&v)
			// Another package and another version ride along: they go on.
			u := testUpdate("a", "d2", "2.0.0")
			u.Versions = append(u.Versions, v)
			for _, dropped := range []bool{false, true} {
				if dropped { // taken back upstream: its digest is remembered
					commit(t, s, Batch{Packages: []PackageUpdate{{Name: "a", Drop: []string{"1.0.0"}}}})
				}
				commit(t, s, Batch{Packages: []PackageUpdate{u, testUpdate("b", "d", "1.0.0")}})
				p, err := s.Package(ctx, "a")
				if err != nil {
					t.Fatal(err)
				}
				want := []string{"1.0.0", "2.0.0"}
				var gone []string
				if dropped && c.refused {
					want, gone = want[1:], want[:1]
				}
				if got := numbers(p.Dropped); !slices.Equal(got, gone) {
					t.Errorf("dropped %v, want %v", got, gone)
				}
				if got := held(t, s, "a"); !slices.Equal(got, want) {
					t.Fatalf("versions %v, want %v", got, want)
				}
				if len(want) == 2 && (p.Versions[0].Integrity != c.integrity || p.Versions[0].CID != testCID("a1.0.0")) {
					t.Errorf("version %+v, want integrity %s", p.Versions[0], c.integrity)
				}
				if len(held(t, s, "b")) != 1 || p.Document.CID != testCID("d2") {
					t.Error("the rest did not go on")
				}
				refused, err := s.Refused(ctx)
				if err != nil || (len(refused) == 1) != c.refused {
					t.Fatalf("refused %v, %v", refused, err)
				}
				if c.refused && (refused[0].Reason != ReasonIntegrityChanged || refused[0].Version != "1.0.0" || refused[0].Time != testTime) {
					t.Errorf("refusal %+v", refused[0])
				}
				check(t, s)
			}
			if c.refused { // evidence stays when the true bytes come again
				commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d3", "1.0.0")}})
				if s.Counts().Refused != 1 {
					t.Error("the refusal is gone")
				}
				commit(t, s, Batch{Pardoned: []Key{{Name: "a", Version: "1.0.0"}}})
				if s.Counts().Refused != 0 {
					t.Error("the refusal is there after a pardon")
				}
				check(t, s)
			}
		})
	}
}

// Every item is in one list: stored, refused or retried.
func TestAnItemIsInOneList(t *testing.T) {
	s := newStore(t)
	item := Key{Name: "a", Version: "1.0.0"}
	retry := Retry{Name: "a", Version: "1.0.0", Attempts: 1}
	refusal := Refusal{Name: "a", Version: "1.0.0", Reason: "integrity"}
	for _, step := range []struct {
		name              string
		batch             Batch
		retrying, refused int
	}{
		{"retried", Batch{Retries: []Retry{retry}}, 1, 0},
		{"retried again", Batch{Done: []Done{{Key: item}}, Retries: []Retry{retry}}, 1, 0},
		{"done and refused", Batch{Refused: []Refusal{refusal}}, 0, 1},
		{"refused twice", Batch{Refused: []Refusal{refusal, refusal}}, 0, 1},
		{"another is stored", Batch{Packages: []PackageUpdate{testUpdate("a", "d", "2.0.0")}}, 0, 1},
		{"it is stored", Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}}, 0, 0},
		{"done twice", Batch{Done: []Done{{Key: item}, {Key: item}}}, 0, 0},
	} {
		commit(t, s, step.batch)
		if c := s.Counts(); c.Retrying != step.retrying || c.Refused != step.refused {
			t.Errorf("%s: %+v", step.name, c)
		}
		check(t, s)
	}
}

// Feeds send what they like as a name; each refusal has its own row.
func TestHostileNamesAreRefusedAndKept(t *testing.T) {
	s := newStore(t)
	long := strings.Repeat("x", 1<<20)
	names := []string{"", "\x00", "a", "a\x00", "a\x00\x01b", "a\xff", "../../etc", "\xff\xfe", long, long + "y", "@a/b"}
	var b Batch
	for _, name := range names {
		for _, version := range []string{"", "\x00", "1"} {
			b.Refused = append(b.Refused, Refusal{Name: npm.Name(name), Version: version, Reason: "name", Detail: long})
		}
	}
	commit(t, s, b)
	check(t, s)
	if got, want := s.Counts().Refused, len(names)*3; got != want {
		t.Errorf("%d refusals, want %d", got, want)
	}
	all, err := s.Refused(context.Background())
	if err != nil || len(all) != len(names)*3 {
		t.Fatalf("%d, %v", len(all), err)
	}
	for _, r := range all {
		if len(r.Detail) > maxDetail+4 || len(r.Name) > 2*maxTerm {
			t.Errorf("a refusal of %d and %d bytes", len(r.Name), len(r.Detail))
		}
		b.Pardoned = append(b.Pardoned, Key{Name: npm.Name(names[0])})
	}
	var pardon Batch
	for _, r := range b.Refused {
		pardon.Pardoned = append(pardon.Pardoned, Key{r.Name, r.Version})
	}
	commit(t, s, pardon)
	if s.Counts().Refused != 0 {
		t.Errorf("after pardon: %+v", s.Counts())
	}
}

func TestWrongBatchesWriteNothing(t *testing.T) {
	s := newStore(t)
	noCID := testVersion("a", "1.0.0")
	noCID.CID = cid.Undef
	noIntegrity := testVersion("a", "1.0.0")
	noIntegrity.Integrity = ""
	deleted := testUpdate("a", "d", "1.0.0")
	deleted.Deleted = true
	for name, b := range map[string]Batch{
		"no name":      {Packages: []PackageUpdate{testUpdate("", "d", "1.0.0")}},
		"no CID":       {Packages: []PackageUpdate{{Name: "a", Versions: []Version{noCID}}}},
		"no integrity": {Packages: []PackageUpdate{{Name: "a", Versions: []Version{noIntegrity}}}},
		"both":         {Packages: []PackageUpdate{deleted}},
		"long name":    {Retries: []Retry{{Name: npm.Name(strings.Repeat("a", maxTerm+1))}}},
		"no feed":      {Cursor: &Cursor{Value: "1"}},
	} {
		b.Wants = []Want{{}}
		if _, err := s.Commit(context.Background(), b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := s.Counts(); got != (Counts{}) {
		t.Errorf("counts %+v", got)
	}
	check(t, s)
}

func TestWait(t *testing.T) {
	s := newStore(t)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Wait(gone, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with nothing new: %v", err)
	}
	wanted := s.WantsChanged()
	done := make(chan error, 2)
	go func() { done <- s.Wait(context.Background(), 0) }()
	commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}})
	if err := <-done; err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := s.Wait(gone, 0); err != nil {
		t.Errorf("Wait for what is there: %v", err)
	}
	select {
	case <-wanted:
		t.Error("wants changed by a package")
	default:
	}
	commit(t, s, Batch{Wants: []Want{{Spec: npm.Spec{Name: "a"}}}})
	<-wanted
	go func() { done <- s.Wait(context.Background(), 1) }()
	s.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("Wait over Close: %v", err)
	}
}

func TestChangesPages(t *testing.T) {
	s := newStore(t)
	for i := range 25 {
		commit(t, s, Batch{Packages: []PackageUpdate{testUpdate(npm.Name(fmt.Sprintf("p%02d", i%20)), fmt.Sprint(i), "1.0.0")}})
	}
	commit(t, s, Batch{Packages: []PackageUpdate{{Name: "p10", Deleted: true}}})
	var got []Change
	since := Seq(0)
	for {
		page, err := s.Changes(context.Background(), since, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
		since = page[len(page)-1].Seq
	}
	seen := make(map[npm.Name]bool)
	for i, c := range got {
		if i > 0 && c.Seq <= got[i-1].Seq || seen[c.Name] || c.Deleted != (c.Name == "p10") {
			t.Errorf("row %d: %+v", i, c)
		}
		seen[c.Name] = true
	}
	if len(got) != 20 || since != s.Head() || since != 26 {
		t.Errorf("%d rows up to %d, head %d", len(got), since, s.Head())
	}
	if page, err := s.Changes(context.Background(), ^Seq(0), 1); err != nil || len(page) != 0 {
		t.Errorf("after the last possible: %v, %v", page, err)
	}
}

// A package of 10,000 versions is not one value: one more costs one row.
func TestOneMoreVersionIsCheap(t *testing.T) {
	s := newStore(t)
	u := testUpdate("big", "d")
	for i := range 10_000 {
		u.Versions = append(u.Versions, testVersion("big", fmt.Sprintf("1.0.%d", i)))
	}
	commit(t, s, Batch{Packages: []PackageUpdate{u}})
	before := s.db.Metrics().WAL.BytesIn
	commit(t, s, Batch{Packages: []PackageUpdate{{Name: "big", Versions: []Version{testVersion("big", "2.0.0")}}}})
	if n := s.db.Metrics().WAL.BytesIn - before; n == 0 || n > 1000 {
		t.Errorf("one version of 10,001 wrote %d bytes", n)
	}
	if n := len(held(t, s, "big")); n != 10_001 {
		t.Errorf("%d versions", n)
	}
	check(t, s)
}

// Our own corruption is never silent.
func TestCorruptionIsSaid(t *testing.T) {
	for name, spoil := range map[string]func(*pebble.DB) error{
		"package row":   func(db *pebble.DB) error { return db.Set(packageKey("a"), []byte{rowFormat, 0, 1}, pebble.Sync) },
		"row format":    func(db *pebble.DB) error { return db.Set(packageKey("a"), []byte{9}, pebble.Sync) },
		"version row":   func(db *pebble.DB) error { return db.Delete(itemKey(rowVersion, "a", "1.0.0"), pebble.Sync) },
		"sequence":      func(db *pebble.DB) error { return db.Delete(seqKey(1), pebble.Sync) },
		"extra row":     func(db *pebble.DB) error { return db.Set(itemKey(rowRetry, "a", ""), []byte("{}"), pebble.Sync) },
		"orphan":        func(db *pebble.DB) error { return db.Delete(packageKey("a"), pebble.Sync) },
		"head":          func(db *pebble.DB) error { return db.Set([]byte{rowState}, []byte(`{"head":7}`), pebble.Sync) },
		"head not JSON": func(db *pebble.DB) error { return db.Set([]byte{rowState}, []byte(`x`), pebble.Sync) },
		"no head":       func(db *pebble.DB) error { return db.Delete([]byte{rowState}, pebble.Sync) },
		"cursor":        func(db *pebble.DB) error { return db.Set(cursorKey("f"), nil, pebble.Sync) },
		"identity":      func(db *pebble.DB) error { return db.Set([]byte{rowIdentity}, []byte("2.00"), pebble.Sync) },
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			s, err := Create("/ledger", testOptions(fs))
			if err != nil {
				t.Fatal(err)
			}
			commit(t, s, Batch{Packages: []PackageUpdate{testUpdate("a", "d", "1.0.0")}, Cursor: &Cursor{"f", "1"}})
			check(t, s)
			if err := spoil(s.db); err != nil {
				t.Fatal(err)
			}
			s.Close()
			s, err = Open("/ledger", testOptions(fs))
			if err == nil {
				defer s.Close()
				err = s.Check(context.Background())
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A document that another replaces is a former one, since then; one that comes
// back is none; and what was let go of is struck unless it became one anew.
func TestFormerDocuments(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	now := testTime
	o.Now = func() time.Time { return now }
	s, err := Create("/ledger", o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	former := func(want ...string) (all []Former) {
		t.Helper()
		all, err := s.Former(t.Context(), now, 100)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range all {
			got = append(got, fmt.Sprintf("%s %s %s", f.Name, f.CID, f.Since.Sub(testTime)))
		}
		if !slices.Equal(got, want) {
			t.Errorf("former: %v, want %v", got, want)
		}
		check(t, s)
		return all
	}
	a, b, c := testCID("a").String(), testCID("b").String(), testCID("c").String()
	set := func(name npm.Name, document string) {
		t.Helper()
		commit(t, s, Batch{Packages: []PackageUpdate{testUpdate(name, document)}})
		now = now.Add(time.Minute)
	}
	set("p", "a")
	set("p", "a")
	former()
	set("p", "b") // at 2m
	set("q", "a")
	old := former("p " + a + " 2m0s")
	set("p", "a") // at 4m
	former("p " + b + " 4m0s")
	set("p", "c")                                 // at 5m
	former("p "+b+" 4m0s", "p "+a+" 5m0s")        // by the CIDs' bytes
	commit(t, s, Batch{LetGo: old})               // from before it came back
	all := former("p "+b+" 4m0s", "p "+a+" 5m0s") // by the CIDs' bytes
	if early, err := s.Former(t.Context(), testTime.Add(5*time.Minute), 100); err != nil || len(early) != 1 || early[0].CID.String() != b {
		t.Errorf("before 5m: %v, %v", early, err)
	}
	if one, err := s.Former(t.Context(), now, 1); err != nil || len(one) != 1 {
		t.Errorf("one of them: %v, %v", one, err)
	}
	// A deletion leaves the package its last document.
	commit(t, s, Batch{Packages: []PackageUpdate{{Name: "p", Deleted: true}}, LetGo: all[:1]})
	former("p " + a + " 5m0s")
	s.Close()
	if s, err = Open("/ledger", o); err != nil {
		t.Fatal(err)
	}
	commit(t, s, Batch{LetGo: former("p " + a + " 5m0s")})
	former()
	if p, err := s.Package(t.Context(), "p"); err != nil || p.Document.CID.String() != c {
		t.Errorf("%+v, %v", p, err)
	}
	// A program that knows no former documents may have brought one back.
	if err := s.db.Set(formerKey("p", testCID("c")), appendTime(nil, testTime), nil); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Former(t.Context(), now, 100); err != nil || len(all) != 0 {
		t.Errorf("the document that it has: %v, %v", all, err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("check: %v", err)
	}
}

// TestDamagedFile flips a bit of a table: whoever reads there hears of it, and the
// process goes on.
func TestDamagedFile(t *testing.T) {
	fs := vfs.NewMem()
	o := Options{FS: fs, fatal: func(err error) { panic(err) }}
	s, err := Create("ledger", o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if _, err := s.AddWants(t.Context(), Want{Spec: npm.Spec{Name: npm.Name(fmt.Sprint("p", i))}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.db.Flush(), s.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("ledger")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		f, err := fs.OpenReadWrite("ledger/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, 300)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = Open("ledger", o); err == nil {
		_, err = s.Wants(t.Context())
		err = errors.Join(err, s.Close())
	}
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ".sst") {
		t.Errorf("%v", err)
	}
}
