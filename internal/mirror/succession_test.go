package mirror

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

// signer is a key, the owner's or a thief's.
type signer struct {
	key  ic.PrivKey
	name ipns.Name
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key, public, err := ic.GenerateEd25519Key(rand.Reader)
	check(t, err)
	id, err := peer.IDFromPublicKey(public)
	check(t, err)
	return signer{key, ipns.NameFromPeer(id)}
}

func (s signer) promise(t testing.TB) string {
	t.Helper()
	c, err := ipnsrecord.Commitment(s.name)
	check(t, err)
	return c
}

// put makes value what the name of s is a record of.
func (w *world) put(s signer, value cid.Cid, seq uint64, valid time.Duration) {
	w.t.Helper()
	rec, err := ipns.NewRecord(s.key, path.FromCid(value), seq, w.now.Add(valid), time.Minute)
	check(w.t, err)
	raw, err := ipns.MarshalRecord(rec)
	check(w.t, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.records == nil {
		w.records = map[string][]byte{}
	}
	if s.name.Equal(w.name) {
		w.record = raw
	} else {
		w.records[s.name.String()] = raw
	}
}

// house is a registry whose first key promises the second, and that one the third.
func newHouse(t testing.TB) (w *world, first, second, third signer) {
	w = newWorld(t)
	first, second, third = signer{w.key, w.name}, newSigner(t), newSigner(t)
	w.seq, w.number, w.next = 4, 7, second.promise(t)
	w.publish("left-pad")
	return w, first, second, third
}

// rotated is what the owner does: one release, under the names before and the new.
func (w *world) rotated(before, now, next signer, packages ...string) cid.Cid {
	if w.names == nil {
		w.names = []string{before.name.String()}
	}
	w.names, w.next = append(w.names, now.name.String()), next.promise(w.t)
	return w.build(packages...)
}

const day = 24 * time.Hour

func serves(t testing.TB, m *Mirror, names ...string) {
	t.Helper()
	if got := listedNames(t, m); !slices.Equal(got, names) {
		t.Errorf("list %q, want %q", got, names)
	}
}

func TestSuccession(t *testing.T) {
	w, first, second, third := newHouse(t)
	fs := vfs.NewMem()
	onDisk := func(o *Options) { o.FS = fs }
	m := w.synced(onDisk)

	// The announcement is held to the pin, served, and kept until there is a record.
	root := w.rotated(first, second, third, "left-pad", "is-odd")
	w.put(first, root, 6, day)
	check(t, m.Sync(t.Context()))
	serves(t, m, "is-odd", "left-pad")
	if s := m.Status(t.Context()); s.Name != first.name.String() || s.Successor != second.name.String() || s.Told != "" || s.Equivocations != 0 {
		t.Errorf("status %+v", s)
	}
	if high := m.high.Load(); high.Next != second.promise(t) {
		t.Errorf("the pin moved to what the old key alone signed: %+v", high.State)
	}

	// Then the old name counts for nothing any more, whoever has it.
	w.put(second, root, 1, day)
	check(t, m.Sync(t.Context()))
	serves(t, m, "is-odd", "left-pad")
	if s := m.Status(t.Context()); s.Name != second.name.String() || s.Told != first.name.String() || s.Successor != "" || s.Record.Sequence != 1 || s.Release.Number != 9 {
		t.Errorf("status %+v", s)
	}
	high := m.high.Load()
	if high.Next != third.promise(t) || high.Number != 9 || len(high.Former) != 1 || high.Former[0].Sequence != 6 || high.Former[0].Record == nil {
		t.Errorf("high water %+v", high)
	}
	w.number = 100
	w.put(first, w.build("@types/node"), 1<<61, day)
	check(t, m.Sync(t.Context()))
	serves(t, m, "is-odd", "left-pad")

	// A start with the name that was typed, and one with the name that is followed.
	for _, name := range []ipns.Name{first.name, second.name} {
		check(t, m.Close())
		w.number = 9
		m = w.synced(onDisk, func(o *Options) { o.Name = name })
		serves(t, m, "is-odd", "left-pad")
	}
	check(t, m.Close())
	if _, err := Open(Options{Dir: "mirror", FS: fs, Node: w.node, Name: third.name}); !errors.Is(err, ErrState) {
		t.Errorf("opened by a third name: %v", err)
	}
	m = w.synced(onDisk)

	// And the second key is rotated like the first.
	fourth := newSigner(t)
	root = w.rotated(second, third, fourth, "left-pad")
	w.put(second, root, 2, day)
	w.put(third, root, 1, day)
	check(t, m.Sync(t.Context()))
	serves(t, m, "left-pad")
	if s := m.Status(t.Context()); s.Name != third.name.String() || s.Told != first.name.String() {
		t.Errorf("status %+v", s)
	}
}

// What was rotated while the mirror was off is followed as far as there are records.
func TestSuccessionWhileOff(t *testing.T) {
	for _, c := range []struct {
		name string
		late time.Duration // that the old name's record has been expired for
	}{{"in the overlap", 0}, {"after it", 40 * day}} {
		t.Run(c.name, func(t *testing.T) {
			w, first, second, third := newHouse(t)
			m := w.synced()
			w.put(first, w.rotated(first, second, third, "left-pad"), 6, day)
			w.now = w.now.Add(c.late)
			root := w.rotated(second, third, newSigner(t), "is-odd")
			w.put(second, root, 5, 2*day)
			w.put(third, root, 1, 2*day)
			// Beyond the overlap the old name has nothing but a record that has expired.
			if err := m.Sync(t.Context()); err != nil {
				t.Errorf("sync: %v", err)
			}
			serves(t, m, "is-odd")
			if s := m.Status(t.Context()); s.Name != third.name.String() || s.Record.Sequence != 1 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// A mirror that begins in the overlap has no promise to hold the first word to.
func TestSuccessionFirstWord(t *testing.T) {
	w, first, second, third := newHouse(t)
	root := w.rotated(first, second, third, "is-odd")
	w.put(first, root, 6, day)
	w.put(second, root, 1, day)
	for _, s := range []signer{first, second} {
		m := w.synced(func(o *Options) { o.Name = s.name })
		serves(t, m, "is-odd")
		if high := m.high.Load(); high.Name != second.name.String() || high.Next != third.promise(t) || (high.Told != "") != s.name.Equal(first.name) {
			t.Errorf("by %s: %+v", s.name, high)
		}
	}
}

// A state that a mirror left which knew of no successor is gone on with.
func TestHighWaterBefore(t *testing.T) {
	w, first, second, third := newHouse(t)
	fs := vfs.NewMem()
	m := w.synced(func(o *Options) { o.FS = fs })
	old, err := json.Marshal(map[string]any{
		"format": 1, "name": first.name.String(), "sequence": 5, "value": w.release.String(), "eol": w.now.Add(day),
		"number": 8, "root": w.release.String(), "next": second.promise(t), "record": w.record,
	})
	check(t, err)
	check(t, m.Close())
	check(t, writeDurably(fs, "mirror", "highwater.json", old))
	root := w.rotated(first, second, third, "is-odd")
	w.put(first, root, 6, day)
	w.put(second, root, 1, day)
	m = w.synced(func(o *Options) { o.FS = fs })
	if s := m.Status(t.Context()); s.Name != second.name.String() {
		t.Errorf("status %+v", s)
	}
}

// A thief has the key of today. Whatever he says, no mirror that saw the owner's
// promise follows him, and each follows the owner once he rotates.
func TestThief(t *testing.T) {
	for _, c := range []struct {
		name string
		does func(w *world, first, thief signer) // with the first key
		want error
		// told says that the owner's rotation reaches mirrors by the old name too.
		told bool
	}{
		{"another promise", func(w *world, first, thief signer) {
			w.next = thief.promise(w.t)
			w.put(first, w.build("is-odd"), 6, day)
		}, ipnsrecord.ErrSuccessor, true},
		{"a name of his own", func(w *world, first, thief signer) {
			root := w.rotated(first, thief, thief, "is-odd")
			w.put(first, root, 6, day)
			w.put(thief, root, 1, day)
		}, ipnsrecord.ErrSuccessor, true},
		{"a name of his own alone", func(w *world, first, thief signer) {
			w.names, w.next = []string{thief.name.String()}, thief.promise(w.t)
			root := w.build("is-odd")
			w.put(first, root, 6, day)
			w.put(thief, root, 1, day)
		}, ipnsrecord.ErrSuccessor, true},
		{"the sequence run up", func(w *world, first, thief signer) {
			w.next = thief.promise(w.t)
			w.put(first, w.build("is-odd"), ipnsrecord.MaxSequence-1, day)
		}, ipnsrecord.ErrSuccessor, false},
		{"the release's number run up", func(w *world, first, thief signer) {
			w.number = 1 << 60
			w.put(first, w.build("left-pad"), 6, day)
		}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, first, second, third := newHouse(t)
			thief := newSigner(t)
			fs := vfs.NewMem()
			m := w.synced(func(o *Options) { o.FS = fs })
			// This one hears of the rotation before the thief comes, and finds no
			// record of the new name yet.
			w.rotated(first, second, third, "left-pad")
			announced := w.release
			early := w.synced(func(o *Options) { o.FS = vfs.NewMem() })
			w.put(first, announced, 5, day)
			check(t, early.keepHighWater(early.high.Load().moved(ipnsrecord.State{
				Name: first.name.String(), Sequence: 5, Value: announced.String(), EOL: w.now.Add(day), Number: 9, Root: announced.String(),
				Next: second.promise(t), Successor: second.name.String(),
			}, w.record)))

			w.names, w.next = nil, second.promise(t)
			c.does(w, first, thief)
			for range 2 {
				if err := m.Sync(t.Context()); !errors.Is(err, c.want) || c.want == nil && err != nil {
					t.Fatalf("sync: %v, want %v", err, c.want)
				}
			}
			serves(t, m, "left-pad")
			if s := m.Status(t.Context()); s.Name != first.name.String() || s.Successor != "" || (s.Equivocations > 0) != (c.want != nil) {
				t.Errorf("status %+v", s)
			}
			files, _ := fs.List("mirror/evidence")
			if (len(files) == 1) != (c.want != nil) {
				t.Errorf("evidence %q", files)
			}

			// The owner rotates.
			w.names, w.number, w.next = nil, 8, ""
			root := w.rotated(first, second, third, "left-pad", "is-odd")
			w.put(second, root, 1, day)
			if c.told {
				w.put(first, root, 7, day)
			}
			check(t, errorsOtherThan(early.Sync(t.Context()), c.want))
			serves(t, early, "is-odd", "left-pad")
			if !c.told {
				// Nobody can say it by the old name any more: a person does.
				if err := m.FollowTo(t.Context(), thief.name); !errors.Is(err, ErrNoSuccessor) {
					t.Errorf("a person took the thief for the owner: %v", err)
				}
				check(t, m.FollowTo(t.Context(), second.name))
			}
			check(t, m.Sync(t.Context()))
			serves(t, m, "is-odd", "left-pad")
			for _, each := range []*Mirror{m, early} {
				if high := each.high.Load(); high.Name != second.name.String() || high.Next != third.promise(t) || high.Number != 9 {
					t.Errorf("high water %+v", high)
				}
			}
		})
	}
}

// errorsOtherThan is err, nil where it is as expected.
func errorsOtherThan(err, expected error) error {
	if expected != nil && errors.Is(err, expected) {
		return nil
	}
	return err
}

func TestFollowTo(t *testing.T) {
	w, first, second, third := newHouse(t)
	m := w.synced()
	ask := func(name string) (int, Status) {
		r := newRecorder(alone(t, m).Admin(), http.MethodPost, "/sync?follow="+name)
		var s TableStatus
		raw, err := io.ReadAll(r.Body)
		check(t, err)
		if json.Unmarshal(raw, &s) != nil || len(s.Registries) != 1 {
			return r.Code, Status{}
		}
		return r.Code, s.Registries[0].Status
	}
	for name, want := range map[string]int{"nonsense": http.StatusBadRequest, third.name.String(): http.StatusConflict, first.name.String(): http.StatusOK, second.name.String(): http.StatusOK} {
		if code, _ := ask(name); code != want {
			t.Errorf("%s: %d, want %d", name, code, want)
		}
	}
	if s := m.Status(t.Context()); s.Name != first.name.String() || s.Successor != second.name.String() {
		t.Errorf("status %+v", s)
	}
	w.put(second, w.rotated(first, second, third, "is-odd"), 1, day)
	if code, s := ask(second.name.String()); code != http.StatusOK || s.Name != second.name.String() || s.Told != first.name.String() {
		t.Errorf("%d %+v", code, s)
	}
	serves(t, m, "is-odd")
}

// Power is cut at each write of the high-water mark on the way: the mirror goes on
// with the old name or the new one, and ends with the new.
func TestSuccessionPowerCut(t *testing.T) {
	for at := 1; ; at++ {
		w, first, second, third := newHouse(t)
		fs := vfs.NewCrashableMem()
		m := w.synced(func(o *Options) { o.FS = fs })
		root := w.rotated(first, second, third, "is-odd")
		w.put(first, root, 6, day)
		w.put(second, root, 1, day)
		n := 0
		var cut *vfs.MemFS
		m.wrote = func() {
			if n++; n == at {
				cut = fs.CrashClone(vfs.CrashCloneCfg{})
			}
		}
		check(t, m.Sync(context.Background()))
		if cut == nil {
			if n < 4 {
				t.Errorf("%d writes", n)
			}
			return
		}
		check(t, m.Close())
		m = w.open(func(o *Options) { o.FS = cut })
		if name := m.following(); !name.Equal(first.name) && !name.Equal(second.name) {
			t.Errorf("cut %d: follows %s", at, name)
		}
		check(t, m.Sync(context.Background()))
		serves(t, m, "is-odd")
		if high := m.high.Load(); high.Name != second.name.String() || high.Told != first.name.String() || high.Next != third.promise(t) || len(high.Former) != 1 {
			t.Errorf("cut %d: %+v", at, high)
		}
	}
}
