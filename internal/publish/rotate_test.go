package publish

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

const day = 24 * time.Hour

// rotated is a world whose first key published a release and was followed by a
// second one.
func rotated(t testing.TB) (w *world, first Former) {
	t.Helper()
	w = newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	second := testSigner(t, 2)
	next, err := ipnsrecord.Commitment(second.IPNSName())
	if err != nil {
		t.Fatal(err)
	}
	p, stop := w.start(func(o *Options) { o.Next = next })
	w.publish(p)
	stop()
	if err := CreateJournal(w.disk, JournalOf(journalPath, 2)); err != nil {
		t.Fatal(err)
	}
	first = Former{w.signer.IPNSName(), w.signer, journalPath, w.clock.Now().Add(30 * day)}
	return w, first
}

// startRotated is start with the second key.
func (w *world) startRotated(first Former) (*Publisher, func()) {
	return w.start(func(o *Options) {
		o.Signer, o.Journal, o.Former = testSigner(w.t, 2), JournalOf(journalPath, 2), []Former{first}
	})
}

// record is what the network has of a signer's name.
func (w *world) record(s Signer) ipnsrecord.Record {
	w.t.Helper()
	was := w.signer
	defer func() { w.signer = was }()
	w.signer = s
	return w.best()
}

// once says that no name ever had two records, so two values, under one sequence.
func (n *memNode) once(t testing.TB) {
	t.Helper()
	for which, raws := range n.said {
		for _, raw := range raws {
			if !bytes.Equal(raw, raws[0]) {
				t.Errorf("%s was put as other bytes", which)
			}
		}
	}
}

func TestPublishRotated(t *testing.T) {
	w, first := rotated(t)
	second := testSigner(t, 2)
	before := w.record(first.Signer)
	p, stop := w.startRotated(first)
	defer stop()

	s, err := p.Status(t.Context())
	if err != nil || s.Next != "build" || len(s.Former) != 1 || s.Former[0].Ended || s.Former[0].Sequence != 1 || s.Former[0].Problem != nil {
		t.Errorf("status %+v, %v", s, err)
	}
	r := w.publish(p)
	names := []string{first.IPNSName.String(), second.IPNSName().String()}
	if r.Number != 2 || !slices.Equal(r.Release.Names, names) || r.Release.Previous != before.Value || !r.Name.Equal(second.IPNSName()) || r.Sequence != 1 {
		t.Errorf("%+v", r)
	}
	if len(r.Former) != 1 || r.Former[0].Problem != nil || r.Former[0].Sequence != 2 || !r.Former[0].Signed || !r.Former[0].Routes[0].ReadBack {
		t.Errorf("former: %+v", r.Former)
	}
	for _, signer := range []Signer{first.Signer, second} {
		if got := w.record(signer); got.Value != r.CID {
			t.Errorf("%s is %+v", signer.IPNSName(), got)
		}
	}
	if n := len(w.node.pins["registry-mirror/main"]); n == 0 {
		t.Error("nothing is pinned")
	}
	// A reader of the old name learns of the new one; of the new one's promise not by it.
	state, err := ipnsrecord.AcceptRelease(ipnsrecord.State{Name: names[0], Next: commitmentOf(t, second)},
		ipnsrecord.Release{Root: r.CID, Number: r.Number, Names: r.Release.Names, Next: r.Release.Next})
	if err != nil || state.Successor != names[1] || state.Next != commitmentOf(t, second) {
		t.Errorf("%+v, %v", state, err)
	}

	// Nothing new: the same bytes, under both.
	if again := w.publish(p); again.Signed || again.Former[0].Signed || again.Sequence != 1 || again.Former[0].Sequence != 2 {
		t.Errorf("again: %+v", again)
	}
	w.ledger.hold(t, "is-odd", []string{"1.0.0"}, "1.0.0")
	if r = w.publish(p); r.Sequence != 2 || r.Former[0].Sequence != 3 {
		t.Errorf("%+v", r)
	}

	if _, err := p.DraftFormer(t.Context(), first.IPNSName); !errors.Is(err, ErrSigned) {
		t.Errorf("draft for the old name: %v", err)
	}

	// Past the overlap the old name stays as it is, and runs out.
	w.clock.add(31 * day)
	w.ledger.hold(t, "is-even", []string{"1.0.0"}, "1.0.0")
	kept := w.rawOf(first)
	if r = w.publish(p); r.Sequence != 3 || len(r.Former) != 0 || w.rawOf(first) != kept {
		t.Errorf("%+v", r)
	}
	if s, err = p.Status(t.Context()); err != nil || !s.Former[0].Ended || s.Former[0].Problem != nil {
		t.Errorf("status %+v, %v", s, err)
	}
	if _, err := p.DraftFormer(t.Context(), first.IPNSName); !errors.Is(err, ErrNotKept) {
		t.Errorf("draft for a name that is given up: %v", err)
	}
	w.node.once(t)
}

// rawOf is the bytes that the network has of a name, expired or not.
func (w *world) rawOf(f Former) string {
	raw, err := w.node.Record(w.t.Context(), f.IPNSName)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(raw)
}

func commitmentOf(t testing.TB, s Signer) string {
	t.Helper()
	c, err := ipnsrecord.Commitment(s.IPNSName())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Whatever became of the old key, the registry goes on under its new name.
func TestPublishRotatedFormerFails(t *testing.T) {
	for _, c := range []struct {
		name string
		does func(w *world, first *Former)
		want error
	}{
		{"a thief signs with it", func(w *world, first *Former) {
			w.steal(first.Signer, 9)
		}, ErrNewer},
		{"a thief ran its sequence up", func(w *world, first *Former) {
			w.steal(first.Signer, ipnsrecord.MaxSequence-1)
		}, ErrNewer},
		{"a thief has another value under ours", func(w *world, first *Former) {
			w.steal(first.Signer, 1)
		}, ipnsrecord.ErrEquivocation},
		{"the key is gone", func(w *world, first *Former) { first.Signer = nil }, ErrSigner},
		{"its journal is lost", func(w *world, first *Former) { first.Journal = JournalOf(journalPath, 2) + ".gone" }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, first := rotated(t)
			c.does(w, &first)
			p, stop := w.startRotated(first)
			defer stop()
			r := w.publish(p)
			if r.Sequence != 1 || len(r.Former) != 1 || !errors.Is(r.Former[0].Problem, c.want) || (c.want == nil) != (r.Former[0].Problem == nil) {
				t.Errorf("%+v", r)
			}
			if got := w.record(testSigner(t, 2)); got.Value != r.CID {
				t.Errorf("the name is %+v", got)
			}
			raw, err := r.MarshalJSON()
			if err != nil || strings.Contains(string(raw), `"problem"`) != (c.want != nil) {
				t.Errorf("%s, %v", raw, err)
			}
			s, err := p.Status(t.Context())
			if err != nil || s.Problem != nil || s.Next != "put again" {
				t.Errorf("status %+v, %v", s, err)
			}
			if c.want != nil && c.want != ErrSigner && !errors.Is(s.Former[0].Problem, c.want) {
				t.Errorf("status of the former name: %+v", s.Former[0])
			}
		})
	}
}

// steal puts a record that somebody else signed with s.
func (w *world) steal(s Signer, seq uint64) {
	w.t.Helper()
	raw, err := s.Sign(w.emptyDir(), seq, w.clock.Now().Add(day), time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	w.node.set(func() { w.node.records[s.IPNSName().String()] = raw })
}

// An index that was lost after the rotation goes on above what the old key's
// journal speaks of.
func TestRotatedIndexLost(t *testing.T) {
	w, first := rotated(t)
	if err := w.disk.RemoveAll("state/index"); err != nil {
		t.Fatal(err)
	}
	p, stop := w.startRotated(first)
	defer stop()
	if r := w.publish(p); r.Number != 2 || r.Former[0].Problem != nil {
		t.Errorf("%+v", r)
	}
}

// Power is cut between every two durable steps of a publish under two names.
func TestRotatedPowerCuts(t *testing.T) {
	w, first := rotated(t)
	p, stop := w.startRotated(first)
	var steps []string
	p.fault = func(step string) error { steps = append(steps, step); return nil }
	list := w.publish(p).Release.List
	stop()
	if n := len(steps) - slices.Index(steps, "confirmed synced"); n < 9 {
		t.Errorf("%d steps under the old name: %q", n, steps)
	}
	for _, want := range []string{"pages durable", "pages applied"} {
		if !slices.Contains(steps, want) {
			t.Errorf("step %q was not passed", want)
		}
	}
	for i, step := range steps {
		t.Run(fmt.Sprintf("%d %s", i, step), func(t *testing.T) {
			w, first := rotated(t)
			p, stop := w.startRotated(first)
			n := 0
			var after *world
			p.fault = func(string) error {
				if n++; n == i+1 {
					after = w.powerCut(0)
				}
				if n > i {
					return errCrash
				}
				return nil
			}
			p.Publish(t.Context()) // what it says of the old name is no error of its own
			stop()
			if after == nil {
				t.Fatal("the step was not passed")
			}
			p, stop = after.startRotated(first)
			defer stop()
			r := after.publish(p)
			if r.Release.List != list || r.Former[0].Problem != nil {
				t.Errorf("%+v", r)
			}
			if _, _, found := after.check(p); found != "" {
				t.Errorf("check: %s", found)
			}
			for _, s := range []Signer{first.Signer, testSigner(t, 2)} {
				if got := after.record(s); got.Value != r.CID {
					t.Errorf("%s is %+v", s.IPNSName(), got)
				}
			}
			if again := after.publish(p); again.Signed || again.Former[0].Signed {
				t.Errorf("again: %+v", again)
			}
			after.node.once(t)
		})
	}
}

// The key of a registry on disk, and its journals.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	keys, journal := filepath.Join(dir, "keys"), filepath.Join(dir, "registries", "main", "journal")
	old, err := Mint(keys, "main", journal)
	if err != nil {
		t.Fatal(err)
	}
	until := dayZero.Add(30 * day)
	crash := errors.New("power cut")
	_, err = rotate(t.Context(), keys, "main", journal, ipnskeys.Rotation{Until: until}, func(step string) error {
		if step != "journal created" {
			t.Errorf("step %q", step)
		}
		return crash
	})
	if !errors.Is(err, crash) {
		t.Fatal(err)
	}
	if k, err := ipnskeys.Find(keys, "main"); err != nil || !k.IPNSName.Equal(old.IPNSName) {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := os.Stat(JournalOf(journal, 2)); err != nil {
		t.Errorf("the key would come before its journal: %v", err)
	}
	// While somebody publishes nothing is rotated.
	if err := locked(vfs.Default, journal, func() error {
		_, err := Rotate(t.Context(), keys, "main", journal, ipnskeys.Rotation{Until: until})
		if !errors.Is(err, ErrLocked) {
			t.Errorf("beside a publisher: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	k, err := Rotate(t.Context(), keys, "main", journal, ipnskeys.Rotation{Until: until})
	if err != nil || k.Number != 2 || !k.Former[0].IPNSName.Equal(old.IPNSName) {
		t.Fatalf("%+v, %v", k, err)
	}
	// A second time only once somebody can know of the first.
	if _, err := Rotate(t.Context(), keys, "main", journal, ipnskeys.Rotation{Until: until}); !errors.Is(err, ErrUnpublished) {
		t.Errorf("again at once: %v", err)
	}
	n := uint64(3)
	public, err := ipnskeys.ReadPublic(publicFile(t, k))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Add(keys, "main", journal, public, ipnskeys.Elsewhere{}, &n); err != nil {
		t.Fatal(err)
	}
	if h, _, err := readJournal(vfs.Default, JournalOf(journal, 2)); err != nil || h.max != n || h.name != k.IPNSName.String() {
		t.Errorf("what was said is in another journal: %+v, %v", h, err)
	}
	if k, err = Rotate(t.Context(), keys, "main", journal, ipnskeys.Rotation{Until: until}); err != nil || k.Number != 3 {
		t.Errorf("%+v, %v", k, err)
	}
	// A journal of the successor that has signed is no beginning.
	if err := begin(vfs.Default, JournalOf(journal, 3), line{Op: opAdopted, Name: k.IPNSName.String(), Sequence: 1}); err != nil {
		t.Fatal(err)
	}
	if err := begin(vfs.Default, JournalOf(journal, 4), line{Op: opAdopted, Name: "k51other", Sequence: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := Rotate(t.Context(), keys, "main", journal, ipnskeys.Rotation{Until: until}); !errors.Is(err, ErrJournalUsed) {
		t.Errorf("over a used journal: %v", err)
	}
	if _, err := Rotate(t.Context(), keys, "none", journal, ipnskeys.Rotation{}); !errors.Is(err, ipnskeys.ErrNoKey) {
		t.Errorf("of no key: %v", err)
	}
}

func publicFile(t *testing.T, k ipnskeys.Key) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(path, []byte(k.PublicKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An index that was made under the first name is opened under those that followed.
func TestOpenIndexRotated(t *testing.T) {
	first, second := testSigner(t, 1).IPNSName(), testSigner(t, 2).IPNSName()
	for _, origin := range []string{"", NoGateway, "http://gateway.example.test"} {
		dir := filepath.Join(t.TempDir(), "index")
		ix, err := OpenIndex(dir, origin, first, nil)
		if err != nil {
			t.Fatal(err)
		}
		made := ix.Parameters().Gateway
		if err := ix.Close(); err != nil {
			t.Fatal(err)
		}
		for _, again := range []string{"", origin} {
			if ix, err = OpenIndex(dir, again, second, nil, first); err != nil {
				t.Fatalf("%q: %v", again, err)
			}
			if got := ix.Parameters().Gateway; got != made {
				t.Errorf("gateway %q became %q", made, got)
			}
			if err := ix.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := OpenIndex(dir, "http://other.example.test", second, nil, first); !errors.Is(err, index.ErrParameters) {
			t.Errorf("another origin: %v", err)
		}
		if origin != NoGateway {
			if _, err := OpenIndex(dir, "", second, nil); !errors.Is(err, index.ErrParameters) {
				t.Errorf("a stranger's name: %v", err)
			}
		}
	}
	// And a new one is made under the name that the registry has.
	ix, err := OpenIndex(filepath.Join(t.TempDir(), "index"), "http://gateway.example.test", second, nil, first)
	if err != nil || !strings.HasSuffix(ix.Parameters().Gateway, second.String()) {
		t.Errorf("%v", err)
	}
	ix.Close()
}

// What bare gateways are shown names the name that the registry has, for what was
// rolled back or is withheld in part too, and is what the ledger gives. A page that
// the node lost holds nothing up.
func TestRotatedPages(t *testing.T) {
	for _, spoil := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost=%v", spoil), func(t *testing.T) {
			w, p, stop := motley(t)
			before := map[string]index.Entry{}
			for e, err := range p.o.Index.Entries(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				before[string(e.Name)] = e
			}
			if spoil {
				files, err := index.ReadPackage(t.Context(), p.o.Index, before["left-pad"].Gateway.CID)
				if err != nil {
					t.Fatal(err)
				}
				w.node.set(func() {
					delete(w.node.durable, string(files.Index.CID.Hash()))
					delete(w.node.fresh, string(files.Index.CID.Hash()))
				})
			}
			stop()
			if err := CreateJournal(w.disk, JournalOf(journalPath, 2)); err != nil {
				t.Fatal(err)
			}
			first := Former{w.signer.IPNSName(), w.signer, journalPath, w.clock.Now().Add(30 * day)}
			p, stop = w.startRotated(first)
			defer stop()
			p.pageSize = 2
			old, own := first.IPNSName.String(), testSigner(t, 2).IPNSName().String()
			if spoil {
				// Its page is in the release, which is then not whole, as before.
				if _, err := p.Publish(t.Context()); err != nil && !errors.Is(err, ErrIncomplete) {
					t.Fatal(err)
				}
			} else {
				w.publish(p)
			}
			if got := p.o.Index.Parameters().Gateway; got != DefaultGatewayOrigin+"/ipns/"+own {
				t.Errorf("the gateway is %q", got)
			}
			for e, err := range p.o.Index.Entries(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if e.CID != before[string(e.Name)].CID {
					t.Errorf("%s moved in the list", e.Name)
				}
				if spoil && e.Name == "left-pad" {
					if e != before[string(e.Name)] {
						t.Errorf("the lost page: %+v", e)
					}
					continue
				}
				page := string(w.document(e.Gateway.CID, "index.html"))
				if strings.Contains(page, old) || !strings.Contains(page, "/ipns/"+own+"/"+string(e.Name)+"/-/") {
					t.Errorf("page of %s: %s", e.Name, page)
				}
			}
			if spoil {
				return
			}
			if _, _, found := w.check(p); found != "" {
				t.Errorf("check: %s", found)
			}
			if again := w.publish(p); again.Signed {
				t.Errorf("again: %+v", again)
			}
			// And what comes back from a release of the former name.
			w.rollback(p, 2)
			e, err := p.o.Index.Entry("twig")
			if err != nil {
				t.Fatal(err)
			}
			if page := string(w.document(e.Gateway.CID, "index.html")); strings.Contains(page, old) || !strings.Contains(page, own) {
				t.Errorf("page of what came back: %s", page)
			}
			if _, _, found := w.check(p); found != "" {
				t.Errorf("check after the rollback: %s", found)
			}
		})
	}
}
