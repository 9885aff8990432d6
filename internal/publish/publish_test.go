package publish

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

func TestPublish(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0", "1.1.0"}, "1.0.0", "1.1.0")
	p, stop := w.start()
	defer stop()

	first := w.publish(p)
	if first.Sequence != 1 || first.Number != 1 || first.Packages != 1 || first.Versions != 2 || !first.Signed || !first.LocalOnly {
		t.Errorf("first: %+v", first)
	}
	if len(first.Routes) != 1 || first.Routes[0] != (Route{Name: "node", ReadBack: true, Via: "gateway"}) {
		t.Errorf("routes: %+v", first.Routes)
	}
	r := w.best()
	if r.Value != first.CID || r.TTL != time.Minute || !r.EOL.Equal(dayZero.Add(7*24*time.Hour)) || !first.EOL.Equal(r.EOL) {
		t.Errorf("record: %+v", r)
	}
	if !slices.Equal(w.node.pins["registry-mirror/main"], []cid.Cid{first.CID}) {
		t.Error("the release is not pinned")
	}
	if got := w.ops(); got != "created pinned intent record confirmed" {
		t.Errorf("journal: %s", got)
	}

	// Nothing new: the very same bytes again, and nothing more in the journal.
	w.clock.add(3 * 24 * time.Hour)
	again := w.publish(p)
	if again.Signed || again.Sequence != 1 || len(w.node.putRaws[1]) != 2 || !bytes.Equal(w.node.putRaws[1][0], w.node.putRaws[1][1]) {
		t.Errorf("again: %+v", again)
	}
	if got := w.ops(); got != "created pinned intent record confirmed" {
		t.Errorf("journal: %s", got)
	}

	// Half of its lifetime is over: the same release under the next sequence.
	w.clock.add(12 * time.Hour)
	later := w.publish(p)
	if !later.Signed || later.Sequence != 2 || later.CID != first.CID || later.Number != 1 {
		t.Errorf("later: %+v", later)
	}

	// A new release.
	w.node.set(func() { w.node.peers = 3 })
	w.ledger.hold(t, "@scope/thing", []string{"2.0.0"}, "2.0.0")
	next := w.publish(p)
	if !next.Signed || next.Sequence != 3 || next.Number != 2 || next.Packages != 2 || next.LocalOnly {
		t.Errorf("next: %+v", next)
	}
	if w.best().Value != next.CID || !slices.Equal(w.node.pins["registry-mirror/main"], []cid.Cid{first.CID, next.CID}) {
		t.Error("the name does not point at the new release")
	}

	// A new process knows all that.
	stop()
	p, stop2 := w.start()
	defer stop2()
	if got := w.publish(p); got.Signed || got.Sequence != 3 || got.CID != next.CID {
		t.Errorf("after a restart: %+v", got)
	}
}

// Long away: the record has expired, and is signed anew above it.
func TestPublishExpired(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.publish(p)
	w.clock.add(30 * 24 * time.Hour)
	if got := w.publish(p); got.Sequence != 2 || !got.Signed {
		t.Errorf("%+v", got)
	}
}

func TestRepublish(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	if _, err := p.Republish(t.Context()); !errors.Is(err, index.ErrNoRelease) {
		t.Errorf("with nothing built: %v", err)
	}
	first := w.publish(p)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	got, err := p.Republish(t.Context())
	if err != nil || got.CID != first.CID || got.Signed {
		t.Errorf("%+v, %v", got, err)
	}
}

// Thirty days without a change: the record is never without half its life,
// less one run's distance.
func TestThirtyDays(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	for range 30 * 6 {
		s, err := p.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := w.publish(p); got.Signed == (s.Next == "put again") || got.Signed && w.clock.Now().Before(s.SigningDue) || !got.Due.Equal(got.EOL.Add(-DefaultLifetime/2)) {
			t.Fatalf("signed: %t, due %s and then %s; status said %q, due %s", got.Signed, w.clock.Now(), got.Due, s.Next, s.SigningDue)
		}
		if left := w.best().EOL.Sub(w.clock.Now()); left < 7*24*time.Hour/2 {
			t.Fatalf("%s left", left)
		}
		w.clock.add(4 * time.Hour)
	}
	if n := len(w.node.puts); n < 8 || n > 10 {
		t.Errorf("%d signatures in 30 days", n)
	}
}

func TestNoSequence(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.publish(p)
	w.publish(p)
	if err := w.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	for name, fail := range map[string]func() error{
		"network down":  func() error { return ipfs.ErrAway },
		"network empty": func() error { return ipfs.ErrNotFound },
	} {
		w.node.set(func() { w.node.failRecord = fail })
		if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNoSequence) {
			t.Errorf("%s: %v", name, err)
		}
		if s, err := p.Status(t.Context()); err != nil || !errors.Is(s.Problem, ErrNoSequence) {
			t.Errorf("%s: status %+v, %v", name, s, err)
		}
	}
	if _, err := w.disk.Stat(journalPath); err == nil {
		t.Error("a journal was begun")
	}
	// The network is back: it says what the last was, even if that expired.
	w.clock.add(30 * 24 * time.Hour)
	w.node.set(func() { w.node.failRecord = nil })
	got := w.publish(p)
	if got.Sequence != 2 || !got.Signed {
		t.Errorf("%+v", got)
	}
	if ops := w.ops(); ops != "adopted pinned intent record confirmed" {
		t.Errorf("journal: %s", ops)
	}
}

// The journal is lost, and the index is an old copy: the number of the release that the
// network's record names is adopted with its sequence, so that no release below it is
// signed. Republish says so; Publish makes one above.
func TestLostBehind(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	w.publish(p)
	stop()
	old := w.powerCut(0)
	p, stop = w.start()
	for _, name := range []string{"a", "b"} {
		w.ledger.hold(t, name, []string{"1.0.0"}, "1.0.0")
		w.publish(p)
	}
	stop()
	if err := old.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	p, stop = old.start()
	defer stop()
	if got, err := p.Republish(t.Context()); !errors.Is(err, ErrIndexBehind) || got.Sequence != 0 {
		t.Errorf("over a newer release: %+v, %v", got, err)
	}
	if s, err := p.Status(t.Context()); err != nil || s.Next != "build" {
		t.Errorf("status: %+v, %v", s, err)
	}
	if err := old.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	if got := old.publish(p); got.Number != 4 || got.Sequence != 4 || got.Packages != 2 {
		t.Errorf("above it: %+v", got)
	}
}

// Routes that have the same record are named together.
func TestRivalsTogether(t *testing.T) {
	w := newWorld(t)
	a, b := w.emptyDir(), cid.MustParse("bafkqaaa")
	h := history{used: true, max: 4, last: &attempt{Sequence: 4, Value: a}}
	err := rivals(h, []RouteStatus{
		{Name: "node", Record: &ipnsrecord.Record{Sequence: 5, Value: b}}, {Name: "/www", Record: &ipnsrecord.Record{Sequence: 4, Value: b}},
		{Name: "/web", Record: &ipnsrecord.Record{Sequence: 5, Value: b}}, {Name: "silent"}, {Name: "ours", Record: &ipnsrecord.Record{Sequence: 4, Value: a}},
	})
	want := fmt.Sprintf("node, /web: the network has sequence 5 (bafkqaaa), the journal sequence 4 (%[1]s): %[2]v\n/www: the network has sequence 4 (bafkqaaa), the journal sequence 4 (%[1]s): %[3]v",
		a, ErrNewer, ipnsrecord.ErrEquivocation)
	if err == nil || err.Error() != want || !errors.Is(err, ErrNewer) || !errors.Is(err, ipnsrecord.ErrEquivocation) {
		t.Errorf("%v\nwant %s", err, want)
	}
}

// A key from elsewhere goes on above what it is said to have used, and above what
// the network has, whichever is more; with neither it signs nothing.
func TestImported(t *testing.T) {
	for _, c := range []struct {
		name    string
		atLeast uint64 // 0: nothing is said
		network uint64 // 0: it has no record
		want    uint64
		ops     string
	}{
		{"only said", 41, 0, 42, "adopted pinned intent record confirmed"},
		{"only the network", 0, 7, 8, "adopted pinned intent record confirmed"},
		{"the network knows more", 5, 7, 8, "adopted adopted pinned intent record confirmed"},
		{"the network knows less", 41, 7, 42, "adopted pinned intent record confirmed"},
		{"they agree", 7, 7, 8, "adopted pinned intent record confirmed"},
		{"neither", 0, 0, 0, ""},
	} {
		w := newWorld(t)
		var atLeast *uint64
		if c.atLeast > 0 {
			atLeast = &c.atLeast
		}
		if err := ImportJournal(w.disk, journalPath, w.signer.IPNSName(), atLeast); err != nil {
			t.Fatal(err)
		}
		if c.network > 0 {
			raw, err := w.signer.Sign(w.emptyDir(), c.network, dayZero.Add(time.Hour), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			w.node.records[w.signer.IPNSName().String()] = raw
		}
		p, stop := w.start()
		s, err := p.Status(t.Context())
		if err != nil || (s.Problem == nil) == (c.want == 0) {
			t.Errorf("%s: status: %v, %v", c.name, s.Problem, err)
		}
		got, err := p.Publish(t.Context())
		if c.want == 0 {
			if !errors.Is(err, ErrNoSequence) || len(w.node.puts) > 0 {
				t.Errorf("%s: %+v, %v", c.name, got, err)
			}
			stop()
			continue
		}
		if err != nil || got.Sequence != c.want || !got.Signed {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if ops := w.ops(); ops != c.ops {
			t.Errorf("%s: %s", c.name, ops)
		}
		// What was signed here counts from then on: a newer record stops all.
		raw, err := w.signer.Sign(w.emptyDir(), c.want+9, dayZero.Add(time.Hour), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		w.node.set(func() { w.node.records[w.signer.IPNSName().String()] = raw })
		if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNewer) {
			t.Errorf("%s: a newer record: %v", c.name, err)
		}
		stop()
	}
}

// A journal alone is enough: a new network knows nothing yet.
func TestNetworkDown(t *testing.T) {
	w := newWorld(t)
	w.node.failRecord = func() error { return ipfs.ErrAway }
	p, stop := w.start()
	defer stop()
	if got := w.publish(p); got.Sequence != 1 {
		t.Errorf("%+v", got)
	}
}

func sign(t *testing.T, s *ipnskeys.Signer, value cid.Cid, seq uint64, eol time.Time) []byte {
	t.Helper()
	raw, err := s.Sign(value, seq, eol, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRivals(t *testing.T) {
	other := cid.MustParse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
	for _, c := range []struct {
		name string
		seq  uint64
		same bool // the same value as ours
		want error
	}{
		{"a newer record", 2, false, ErrNewer},
		{"a newer record of our release", 2, true, ErrNewer},
		{"our sequence with another value", 1, false, ipnsrecord.ErrEquivocation},
		{"our sequence and value, longer", 1, true, nil},
		{"an older record", 0, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			p, stop := w.start()
			defer stop()
			first := w.publish(p)
			value := other
			if c.same {
				value = first.CID
			}
			raw := sign(t, testSigner(t, 1), value, c.seq, first.EOL.Add(time.Hour))
			w.node.set(func() { w.node.records[first.Name.String()] = raw })
			w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
			lines := len(w.lines())
			_, err := p.Publish(t.Context())
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want != nil && len(w.lines()) != lines {
				t.Errorf("the journal went on: %s", w.ops())
			}
		})
	}
}

// A thief who signs with the last sequence that there is: nothing is signed
// below it, and above it there is nothing.
func TestRivalAtTheEnd(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	first := w.publish(p)
	raw := sign(t, testSigner(t, 1), first.CID, ipnsrecord.MaxSequence-1, first.EOL)
	w.node.set(func() { w.node.records[first.Name.String()] = raw })
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNewer) {
		t.Errorf("beside a journal: %v", err)
	}
	key, err := ic.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	last, err := ipns.NewRecord(key, path.FromCid(first.CID), math.MaxUint64, first.EOL, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	beyond, err := ipns.MarshalRecord(last)
	if err != nil {
		t.Fatal(err)
	}
	w.node.set(func() { w.node.records[first.Name.String()] = beyond })
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNewer) || !errors.Is(err, ErrSpent) {
		t.Errorf("beside a journal, out of bounds: %v", err)
	}
	w.node.set(func() { w.node.records[first.Name.String()] = raw })
	if err := w.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrSpent) || !errors.Is(err, ipnsrecord.ErrSequence) {
		t.Errorf("without a journal: %v", err)
	}
}

// A backup of the journal, restored: its sequences were used since.
func TestJournalRestored(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	w.publish(p)
	backup := w.disk.CrashClone(vfs.CrashCloneCfg{})
	for i := range 3 {
		w.ledger.hold(t, "left-pad", []string{fmt.Sprintf("1.0.%d", i)}, fmt.Sprintf("1.0.%d", i))
		w.publish(p)
	}
	f, err := backup.Open(journalPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := replace(w.disk, journalPath, f); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v", err)
	}
	// As its error's documentation says: moved aside, the network decides.
	if err := w.disk.Remove(journalPath); err != nil {
		t.Fatal(err)
	}
	if got := w.publish(p); got.Sequence != 5 {
		t.Errorf("%+v", got)
	}
}

func TestUnconfirmed(t *testing.T) {
	record := func(raw func() []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", ipnsrecord.MediaType)
			w.Write(raw())
		}
	}
	for name, serve := range map[string]http.HandlerFunc{
		"error":          func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusBadGateway) },
		"none":           func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "delegate error: routing: not found") },
		"rubbish":        record(func() []byte { return []byte("rubbish") }),
		"endless":        record(func() []byte { return bytes.Repeat([]byte{'x'}, 1<<20) }),
		"another's":      record(func() []byte { return sign(t, testSigner(t, 2), cid.MustParse("bafkqaaa"), 9, dayZero.Add(time.Hour)) }),
		"the old record": record(func() []byte { return sign(t, testSigner(t, 1), cid.MustParse("bafkqaaa"), 0, dayZero.Add(time.Hour)) }),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p, stop := w.start()
			defer stop()
			w.node.set(func() { w.node.serve = serve })
			got, err := p.Publish(t.Context())
			if !errors.Is(err, ErrUnconfirmed) {
				t.Fatalf("got %v", err)
			}
			if got.Sequence != 1 || len(got.Routes) != 1 || got.Routes[0].ReadBack || got.Routes[0].Error == "" {
				t.Errorf("%+v", got)
			}
			if s, err := p.Status(t.Context()); err != nil || s.Next != "put" || !s.Confirmed.IsZero() {
				t.Errorf("status: %+v, %v", s, err)
			}
			// The next run puts the same bytes and confirms them.
			w.node.set(func() { w.node.serve = nil })
			if got := w.publish(p); got.Sequence != 1 || got.Signed {
				t.Errorf("%+v", got)
			}
			if raws := w.node.putRaws[1]; len(raws) != 2 || !bytes.Equal(raws[0], raws[1]) {
				t.Error("other bytes were put")
			}
			if got := w.ops(); got != "created pinned intent record confirmed" {
				t.Errorf("journal: %s", got)
			}
		})
	}
}

// While it was being read back, someone else signed with our key.
func TestOvertaken(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	raw := sign(t, testSigner(t, 1), cid.MustParse("bafkqaaa"), 9, dayZero.Add(time.Hour))
	w.node.serve = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ipnsrecord.MediaType)
		w.Write(raw)
	}
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v", err)
	}
}

// The put says that it failed and it did not, and the other way round.
func TestPutLies(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	first := w.publish(p)
	w.clock.add(time.Hour)
	w.node.set(func() { w.node.failPutRecord = func() error { return ipfs.ErrAway } })
	got := w.publish(p) // what was put before is still there
	if !got.Routes[0].ReadBack || got.Routes[0].Put == "" || got.Sequence != first.Sequence {
		t.Errorf("%+v", got)
	}
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("nothing was put: %v", err)
	}
}

type brokenSigner struct {
	*ipnskeys.Signer
	sign func(cid.Cid, uint64, time.Time, time.Duration) ([]byte, error)
}

func (b brokenSigner) Sign(v cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
	return b.sign(v, seq, eol, ttl)
}

func TestSignerGone(t *testing.T) {
	good := testSigner(t, 1)
	for name, bad := range map[string]func(cid.Cid, uint64, time.Time, time.Duration) ([]byte, error){
		"gone": func(cid.Cid, uint64, time.Time, time.Duration) ([]byte, error) { return nil, errors.New("gone") },
		"another's key": func(v cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
			return testSigner(t, 2).Sign(v, seq, eol, ttl)
		},
		"another sequence": func(v cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
			return good.Sign(v, seq+1, eol, ttl)
		},
		"expired": func(v cid.Cid, seq uint64, eol time.Time, ttl time.Duration) ([]byte, error) {
			return good.Sign(v, seq, dayZero.Add(-time.Hour), ttl)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.signer = brokenSigner{good, bad}
			p, stop := w.start()
			if _, err := p.Publish(t.Context()); !errors.Is(err, ErrSigner) {
				t.Errorf("got %v", err)
			}
			if len(w.node.puts) != 0 {
				t.Error("something was put")
			}
			stop()
			// It is back: the intent is signed as it stood.
			w.signer = good
			p, stop = w.start()
			defer stop()
			if got := w.publish(p); got.Sequence != 1 {
				t.Errorf("%+v", got)
			}
			if got := w.ops(); got != "created pinned intent record confirmed" {
				t.Errorf("journal: %s", got)
			}
		})
	}
	w := newWorld(t)
	p, stop := w.start(func(o *Options) { o.Signer = nil })
	defer stop()
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrSigner) {
		t.Errorf("no signer: %v", err)
	}
}

// Another key with this journal signs nothing.
func TestAnotherKey(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	w.publish(p)
	stop()
	p, stop = w.start(func(o *Options) { o.Signer = testSigner(t, 2) })
	defer stop()
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrJournal) {
		t.Errorf("got %v", err)
	}
}

// Blocks that are not there are not announced.
func TestIncomplete(t *testing.T) {
	w := newWorld(t)
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	tarball := w.ledger.packages["left-pad"].Versions[0].CID
	blk := w.node.durable[string(tarball.Hash())]
	w.node.set(func() { delete(w.node.durable, string(tarball.Hash())) })
	p, stop := w.start()
	defer stop()
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrIncomplete) {
		t.Errorf("got %v", err)
	}
	if len(w.node.puts) != 0 || strings.Contains(w.ops(), opIntent) {
		t.Errorf("something was announced: %s", w.ops())
	}
	w.node.set(func() { w.node.durable[string(tarball.Hash())] = blk })
	w.publish(p)
}

func TestLocked(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	lock, err := lockJournal(w.disk, journalPath)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(t.Context()); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	w.publish(p)
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	status := func() Status {
		t.Helper()
		s, err := p.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := status(); s.Next != "build" || s.Release.Number != 0 || s.Network != nil || s.Problem != nil {
		t.Errorf("new: %+v", s)
	}
	first := w.publish(p)
	s := status()
	if s.Next != "put again" || s.Behind || s.Sequence != 1 || s.Value != first.CID || s.Confirmed.IsZero() ||
		s.Network == nil || s.Network.Sequence != 1 || s.Remaining != 7*24*time.Hour || s.Problem != nil || !s.Name.Equal(first.Name) {
		t.Errorf("published: %+v", s)
	}
	w.clock.add(4 * 24 * time.Hour)
	if s := status(); s.Next != "sign" {
		t.Errorf("half its life later: %+v", s)
	}
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	if s := status(); s.Next != "build" || !s.Behind {
		t.Errorf("ledger moved: %+v", s)
	}
	raw := sign(t, testSigner(t, 1), cid.MustParse("bafkqaaa"), 9, w.clock.Now().Add(time.Hour))
	w.node.set(func() { w.node.records[first.Name.String()] = raw })
	if s := status(); !errors.Is(s.Problem, ErrNewer) {
		t.Errorf("rival: %+v", s)
	}
}

func TestRun(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start()
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	results, done := make(chan Result), make(chan error, 1)
	go func() {
		done <- p.Run(ctx, 0, func(r Result, err error) {
			if err != nil {
				t.Error(err)
			}
			select {
			case results <- r:
			case <-ctx.Done():
			}
		})
	}()
	if r := <-results; r.Number != 1 || r.Packages != 0 {
		t.Errorf("first: %+v", r)
	}
	w.ledger.hold(t, "left-pad", []string{"1.0.0"}, "1.0.0")
	if r := <-results; r.Packages != 1 {
		t.Errorf("after a change: %+v", r)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v", err)
	}
}

// With nothing new it puts again by itself, and ends by itself when only a
// person can help.
func TestRunAgainAndEnds(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start(func(o *Options) { o.Republish = time.Millisecond })
	defer stop()
	rival := sign(t, testSigner(t, 1), cid.MustParse("bafkqaaa"), 9, dayZero.Add(time.Hour))
	runs := 0
	err := p.Run(t.Context(), 0, func(r Result, err error) {
		if runs++; runs == 3 {
			w.node.set(func() { w.node.records[r.Name.String()] = rival })
		}
	})
	if !errors.Is(err, ErrNewer) || runs != 4 {
		t.Errorf("after %d runs: %v", runs, err)
	}
	if len(w.node.putRaws[1]) != 3 {
		t.Errorf("put %d times", len(w.node.putRaws[1]))
	}
}

// A node without peers told nobody: the same bytes are put again soon, and once
// there are peers at leisure.
func TestRunAlone(t *testing.T) {
	w := newWorld(t)
	p, stop := w.start(func(o *Options) { o.Alone = time.Millisecond })
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []Result
	err := p.Run(ctx, 0, func(r Result, err error) {
		if err != nil {
			t.Error(err)
		}
		switch all = append(all, r); {
		case len(all) == 2:
			w.node.set(func() { w.node.peers = 1 })
		case !r.LocalOnly:
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || len(all) != 3 {
		t.Fatalf("after %d runs: %v", len(all), err)
	}
	if raws := w.node.putRaws[1]; len(raws) != 3 || !bytes.Equal(raws[0], raws[1]) || !bytes.Equal(raws[0], raws[2]) {
		t.Errorf("put %d times", len(raws))
	}
	if again := p.Again(all[2]); again != 4*time.Hour {
		t.Errorf("with peers it is put again in %s", again)
	}
	if again := New(Options{}).Again(all[0]); again != time.Minute {
		t.Errorf("alone it is put again in %s", again)
	}
}
