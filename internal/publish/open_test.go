package publish

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

func TestOpenIndex(t *testing.T) {
	name, other := testSigner(t, 1).IPNSName(), testSigner(t, 2).IPNSName()
	path := "/ipns/" + name.String()
	type step struct {
		origin string
		want   string // the index's parameter
		err    error
	}
	for what, steps := range map[string][]step{
		"default":      {{"", DefaultGatewayOrigin + path, nil}, {"", DefaultGatewayOrigin + path, nil}, {DefaultGatewayOrigin, DefaultGatewayOrigin + path, nil}, {NoGateway, "", index.ErrParameters}},
		"chosen":       {{"https://g.example.test/", "https://g.example.test" + path, nil}, {"", "https://g.example.test" + path, nil}, {"https://h.example.test", "", index.ErrParameters}},
		"none":         {{NoGateway, "", nil}, {"", "", nil}, {NoGateway, "", nil}, {DefaultGatewayOrigin, "", index.ErrParameters}},
		"no scheme":    {{"127.0.0.1:8080", "", ErrOrigin}},
		"a word":       {{"gateway", "", ErrOrigin}},
		"a path":       {{"http://g.example.test/x", "", ErrOrigin}},
		"a query":      {{"http://g.example.test?", "", ErrOrigin}},
		"a user":       {{"http://u:p@g.example.test", "", ErrOrigin}},
		"another kind": {{"ipfs://g.example.test", "", ErrOrigin}},
		"no URL":       {{"http://[", "", ErrOrigin}},
	} {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "index")
			for i, s := range steps {
				ix, err := OpenIndex(dir, s.origin, name, nil)
				if !errors.Is(err, s.err) {
					t.Fatalf("%d, origin %q: %v, want %v", i, s.origin, err, s.err)
				}
				if err != nil {
					continue
				}
				if p := ix.Parameters(); p.Gateway != s.want || p.Documents != document.Format {
					t.Errorf("%d, origin %q: %+v, want gateway %q", i, s.origin, p, s.want)
				}
				if err := ix.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if steps[0].err != nil {
				if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("something was made: %v", err)
				}
				return
			}
			// With the URLs of one name in it, it is no other's index.
			for _, origin := range []string{"", steps[0].origin} {
				ix, err := OpenIndex(dir, origin, other, nil)
				if steps[0].want == "" {
					if err != nil || ix.Close() != nil {
						t.Errorf("another name: %v", err)
					}
				} else if !errors.Is(err, index.ErrParameters) || ix != nil {
					t.Errorf("another name, origin %q: %v", origin, err)
				}
			}
			// And it was closed each time.
			ix, err := OpenIndex(dir, "", name, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := ix.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMint(t *testing.T) {
	dir := t.TempDir()
	keys, journal := filepath.Join(dir, "keys"), filepath.Join(dir, "registry", "journal")
	if _, err := Mint(keys, "../x", journal); !errors.Is(err, ipnskeys.ErrKeyName) {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(journal)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a bad name left a journal: %v", err)
	}
	// A crash between the two leaves a journal without a key: minting goes on.
	if err := CreateJournal(nil, journal); err != nil {
		t.Fatal(err)
	}
	key, err := Mint(keys, "default", journal)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ipnskeys.Load(t.Context(), keys, "default")
	if err != nil || !signer.IPNSName().Equal(key.IPNSName) {
		t.Fatalf("%v, %v", signer, err)
	}
	before, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Mint(keys, "default", journal); !errors.Is(err, ipnskeys.ErrKeyExists) {
		t.Errorf("again: %v", err)
	}
	if _, err := Mint(keys, "default", journal+"-2"); !errors.Is(err, ipnskeys.ErrKeyExists) {
		t.Errorf("again, with no journal: %v", err)
	}
	if _, err := os.Stat(journal + "-2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a journal for a key that may have signed: %v", err)
	}
	if after, err := os.ReadFile(journal); err != nil || string(after) != string(before) {
		t.Errorf("the journal changed: %v", err)
	}

	// The key lost, its journal not: there is no new key by the old journal.
	j, err := openJournal(vfs.Default, journal, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(j.append(line{
		Op: opIntent, Time: dayZero, Name: key.IPNSName.String(), Sequence: 1, Release: 1,
		Value: "bafkqaaa", EOL: dayZero, TTL: time.Minute,
	}), j.close())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Mint(filepath.Join(dir, "other"), "default", journal); !errors.Is(err, ErrJournalUsed) {
		t.Errorf("a journal in use: %v", err)
	}
	if _, err := ipnskeys.Find(filepath.Join(dir, "other"), "default"); !errors.Is(err, ipnskeys.ErrNoKey) {
		t.Errorf("a key all the same: %v", err)
	}
}

// madeElsewhere is a private key of elsewhere.
func madeElsewhere(t *testing.T) *ipnskeys.Private {
	t.Helper()
	dir := t.TempDir()
	if _, err := ipnskeys.Mint(dir, "x", nil); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "exported")
	if err := ipnskeys.Export(t.Context(), dir, "x", file, ipnskeys.Libp2p, nil); err != nil {
		t.Fatal(err)
	}
	private, err := ipnskeys.ReadPrivate(file)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	keys, journal := filepath.Join(dir, "keys"), filepath.Join(dir, "registry", "journal")
	private, n := madeElsewhere(t), uint64(41)
	if _, err := Import(keys, "../x", journal, private, nil); !errors.Is(err, ipnskeys.ErrKeyName) {
		t.Errorf("a bad name: %v", err)
	}
	// A mint that a crash cut short left a journal that says "nothing was signed".
	if err := CreateJournal(nil, journal); err != nil {
		t.Fatal(err)
	}
	key, err := Import(keys, "default", journal, private, nil)
	if err != nil || !key.IPNSName.Equal(private.IPNSName()) {
		t.Fatalf("%+v, %v", key, err)
	}
	if _, err := os.Stat(journal); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a journal that begins at nothing: %v", err)
	}
	if _, err := Import(keys, "default", journal, private, nil); !errors.Is(err, ipnskeys.ErrKeyExists) {
		t.Errorf("again: %v", err)
	}
	if _, err := Mint(keys, "default", journal); !errors.Is(err, ipnskeys.ErrKeyExists) {
		t.Errorf("mint: %v", err)
	}
	if _, err := os.Stat(journal); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("now there is one: %v", err)
	}
	// Under another name it would end the first.
	second := filepath.Join(dir, "second", "journal")
	if _, err := Import(keys, "second", second, private, &n); !errors.Is(err, ErrKeyTaken) || !strings.Contains(err.Error(), `"default"`) {
		t.Errorf("under a second name: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(second)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was begun: %v", err)
	}
	// Later somebody knows.
	if again, err := Import(keys, "default", journal, private, &n); err != nil || !reflect.DeepEqual(again, key) {
		t.Errorf("with a sequence: %+v, %v", again, err)
	}
	h, _, err := readJournal(vfs.Default, journal)
	if err != nil || h.max != n || !h.floor {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := Import(keys, "default", journal, madeElsewhere(t), &n); !errors.Is(err, ipnskeys.ErrKeyExists) {
		t.Errorf("another key: %v", err)
	}
	// The journal of another key is no ground to sign on, and no key appears.
	if _, err := Import(keys, "other", journal, madeElsewhere(t), nil); !errors.Is(err, ErrJournalUsed) {
		t.Errorf("another's journal: %v", err)
	}
	if _, err := ipnskeys.Find(keys, "other"); !errors.Is(err, ipnskeys.ErrNoKey) {
		t.Errorf("a key all the same: %v", err)
	}
	// A crash between the journal and the key: what was said counts.
	if err := ImportJournal(nil, filepath.Join(dir, "crashed", "journal"), private.IPNSName(), &n); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(filepath.Join(dir, "others"), "crashed", filepath.Join(dir, "crashed", "journal"), private, nil); err != nil {
		t.Error(err)
	}
	if h, _, err := readJournal(vfs.Default, filepath.Join(dir, "crashed", "journal")); err != nil || h.max != n {
		t.Errorf("%+v, %v", h, err)
	}
	// One that signs by a program: what keeps it out leaves nothing either.
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := ipnskeys.Elsewhere{Command: []string{filepath.Join(dir, "gone")}}
	if _, err := Add(keys, "kms", filepath.Join(dir, "kms", "journal"), public, gone, nil); !errors.Is(err, ipnskeys.ErrAway) {
		t.Errorf("no program: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kms", "journal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a journal: %v", err)
	}
}

// Of those that mint and those that import at once one has its way, and the
// journal is the one for its key.
func TestMintAndImportAtOnce(t *testing.T) {
	private := madeElsewhere(t)
	var minted, imported int
	for range 20 {
		dir := t.TempDir()
		keys, journal := filepath.Join(dir, "keys"), filepath.Join(dir, "registry", "journal")
		var wg sync.WaitGroup
		for range 3 {
			for _, f := range []func() (ipnskeys.Key, error){
				func() (ipnskeys.Key, error) { return Mint(keys, "default", journal) },
				func() (ipnskeys.Key, error) { return Import(keys, "default", journal, private, nil) },
			} {
				wg.Go(func() {
					if _, err := f(); err != nil && !errors.Is(err, ErrLocked) && !errors.Is(err, ipnskeys.ErrKeyExists) {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		key, err := ipnskeys.Find(keys, "default")
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = readJournal(vfs.Default, journal)
		if key.IPNSName.Equal(private.IPNSName()) {
			if imported++; !errors.Is(err, ErrNoJournal) {
				t.Errorf("an imported key has a journal: %v", err)
			}
		} else if minted++; err != nil {
			t.Errorf("a minted key has none: %v", err)
		}
	}
	t.Logf("%d minted, %d imported", minted, imported)
}

func decode(t *testing.T, raw []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return v
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestResultJSON(t *testing.T) {
	// Of nothing, nothing is made up.
	want := `{"number":0,"packages":0,"versions":0,"sequence":0,"signed":false,"local_only":false,"routes":[]}`
	if got := string(marshal(t, Result{})); got != want {
		t.Errorf("zero: %s", got)
	}
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	w.ledger.holdRaw(t, "bad", []byte("<html>"), "1.0.0")
	p, stop := w.start()
	defer stop()
	r := w.publish(p)
	v := decode(t, marshal(t, r))
	list := v["list"].(map[string]any)
	if v["name"] != w.signer.IPNSName().String() || v["cid"] != r.CID.String() || v["number"] != 1.0 || v["sequence"] != 1.0 ||
		list["root"] != r.Release.List.Root.String() || list["overflow"] != r.Release.List.Overflow.String() ||
		v["packages"] != 1.0 || v["versions"] != 1.0 || v["signed"] != true || v["local_only"] != true ||
		v["eol"] != dayZero.Add(7*24*time.Hour).Format(time.RFC3339) {
		t.Errorf("%v", v)
	}
	route := v["routes"].([]any)[0].(map[string]any)
	if route["name"] != "node" || route["read_back"] != true || route["via"] != "gateway" || route["put_error"] != nil {
		t.Errorf("%v", route)
	}
	withheld := v["withheld"].([]any)[0].(map[string]any)
	if withheld["name"] != "bad" || withheld["reason"] != "document" || withheld["detail"] == "" {
		t.Errorf("%v", withheld)
	}
}

func TestStatusJSON(t *testing.T) {
	if got, want := string(marshal(t, Status{}.JSON("main"))),
		`{"registry":"main","number":0,"age_s":0,"packages":0,"versions":0,"behind":false,"sequence":0,"remaining_s":0,"network_sequence":0,"next":""}`; got != want {
		t.Errorf("zero: %s", got)
	}
	c := cid.MustParse("bafkqaaa")
	s := Status{
		Name:    testSigner(t, 1).IPNSName(),
		Release: index.Release{Number: 3, Created: dayZero, Root: c, List: index.List{Root: c, Overflow: c}, Packages: 2, Versions: 5},
		Age:     time.Minute, Behind: true, Sequence: 7, Value: c, EOL: dayZero, SigningDue: dayZero, Remaining: -90500 * time.Millisecond, Confirmed: dayZero,
		Network: &ipnsrecord.Record{Sequence: 8}, Next: "build", Problem: errors.Join(ErrNewer, ErrNoSequence),
		Withheld: []Withheld{{Name: "x", Version: "1.0.0", Reason: reasonSameFile, Detail: "why"}},
	}
	want := `{"registry":"main","name":"` + s.Name.String() + `","number":3,"cid":"bafkqaaa","list":{"root":"bafkqaaa","overflow":"bafkqaaa"},` +
		`"created":"2030-01-01T00:00:00Z","age_s":60,"packages":2,"versions":5,"behind":true,"sequence":7,"value":"bafkqaaa",` +
		`"eol":"2030-01-01T00:00:00Z","remaining_s":-90,"signing_due":"2030-01-01T00:00:00Z","confirmed":"2030-01-01T00:00:00Z","network_sequence":8,"next":"build",` +
		`"problem":` + string(marshal(t, s.Problem.Error())) + `,"withheld":[{"name":"x","version":"1.0.0","reason":"same-file","detail":"why"}]}`
	if got := string(marshal(t, s.JSON("main"))); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestAdmin(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	p, stop := w.start()
	defer stop()
	r := w.publish(p)
	get := func(method, path string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		p.Admin().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return rec
	}
	rec := get("GET", "/status")
	var v StatusJSON
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil || rec.Code != 200 || !strings.HasPrefix(rec.Header().Get("Content-Type"), "application/json") {
		t.Fatalf("%d, %v", rec.Code, err)
	}
	if v.CID != r.CID.String() || v.Value != v.CID || v.Sequence != 1 || v.Network != 1 || v.Next != "put again" || v.Problem != "" {
		t.Errorf("%+v", v)
	}
	if rec := get("POST", "/status"); rec.Code != 405 {
		t.Errorf("POST: %d", rec.Code)
	}
	stop() // the index is closed: no status is made up
	if rec := get("GET", "/status"); rec.Code != 500 {
		t.Errorf("closed: %d %s", rec.Code, rec.Body)
	}
}
