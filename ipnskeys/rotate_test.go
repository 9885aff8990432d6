package ipnskeys

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

var overlapEnds = time.Date(2030, 2, 1, 0, 0, 0, 0, time.UTC)

func noJournal(ipns.Name) error { return nil }

// promised says that name is who was promised.
func promised(t testing.TB, next string, name ipns.Name) {
	t.Helper()
	if c, err := ipnsrecord.Commitment(name); err != nil || c != next {
		t.Errorf("%s is not %s: %v", name, next, err)
	}
}

func mustLoad(t testing.TB, dir string, k Key, identities ...age.Identity) {
	t.Helper()
	s, err := Load(t.Context(), dir, k.Name, identities...)
	if err != nil || !s.IPNSName().Equal(k.IPNSName) {
		t.Errorf("load: %v, %v", s, err)
	}
	for _, f := range k.Former {
		s, err := LoadFormer(t.Context(), dir, k.Name, f.IPNSName, identities...)
		if err != nil || !s.IPNSName().Equal(f.IPNSName) {
			t.Errorf("load %s: %v, %v", f.IPNSName, s, err)
		}
	}
}

// Three keys follow one another, each the one that the one before promised.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	key, err := Mint(dir, "main", nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 2; n <= 3; n++ {
		var told ipns.Name
		next, err := Rotate(t.Context(), dir, "main", Rotation{Until: overlapEnds}, func(name ipns.Name) error {
			told = name
			if still, err := Find(dir, "main"); err != nil || !still.IPNSName.Equal(key.IPNSName) {
				t.Errorf("it is there before its journal: %v, %v", still.IPNSName, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		promised(t, key.Next, next.IPNSName)
		if !told.Equal(next.IPNSName) || next.Number != n || len(next.Former) != n-1 || next.Next == key.Next || next.IdentityFile == "" {
			t.Errorf("after %d: %+v", n, next)
		}
		last := next.Former[n-2]
		if !last.IPNSName.Equal(key.IPNSName) || !last.Until.Equal(overlapEnds) || last.File != key.File || last.Number != n-1 {
			t.Errorf("former: %+v", last)
		}
		if names := next.Names(); len(names) != n || !names[n-1].Equal(next.IPNSName) || !names[n-2].Equal(key.IPNSName) {
			t.Errorf("names: %v", names)
		}
		mustLoad(t, dir, next)
		if _, err := os.Stat(key.SuccessorFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the successor's file stayed: %v", err)
		}
		key = next
	}
	// All of it is sealed anew together.
	mine := newIdentity(t)
	r, err := Reseal(t.Context(), dir, "main", Seal{Recipients: []age.Recipient{mine.Recipient()}, Opens: []age.Identity{mine}})
	if err != nil || r.Left || !r.Successor {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := LoadFormer(t.Context(), dir, "main", key.Former[0].IPNSName); !errors.Is(err, ErrSealed) {
		t.Errorf("a former key kept its seal: %v", err)
	}
	mustLoad(t, dir, r.Key, mine)
	if _, err := LoadFormer(t.Context(), dir, "main", mustName(t, newKey(t)), mine); !errors.Is(err, ErrNoKey) {
		t.Errorf("a key that it never had: %v", err)
	}
}

func mustName(t testing.TB, key ed25519.PrivateKey) ipns.Name {
	t.Helper()
	name, err := NameOf(key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// Where the successor, and who follows it, may be.
func TestRotateWays(t *testing.T) {
	mine := newIdentity(t)
	away := func(t *testing.T, k Key) string {
		path := filepath.Join(t.TempDir(), "successor.age")
		if err := os.Rename(k.SuccessorFile, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	clear := func(t *testing.T, k Key) string {
		private, err := k.openSuccessor(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(k.SuccessorFile); err != nil {
			t.Fatal(err)
		}
		return secretFile(t, mustMarshal(t, private, Libp2p))
	}
	another := newKey(t)
	for _, c := range []struct {
		name  string
		r     func(t *testing.T, k Key) Rotation
		opens []age.Identity
		err   error
		next  ed25519.PublicKey
	}{
		{name: "brought back, sealed", r: func(t *testing.T, k Key) Rotation { return Rotation{File: away(t, k)} }},
		{name: "brought back, in the clear", r: func(t *testing.T, k Key) Rotation { return Rotation{File: clear(t, k)} }},
		{name: "moved away", r: func(t *testing.T, k Key) Rotation { away(t, k); return Rotation{} }, err: ErrNoSuccessor},
		{name: "another key's file", r: func(t *testing.T, k Key) Rotation {
			return Rotation{File: secretFile(t, mustMarshal(t, another, PKCS8))}
		}, err: ErrSuccessor},
		{name: "sealed to who is not here", r: func(t *testing.T, k Key) Rotation {
			return Rotation{File: secretFile(t, mustSeal(t, mustMarshal(t, another, PKCS8), mine.Recipient()))}
		}, err: ErrSealed},
		{name: "next by public key", r: func(*testing.T, Key) Rotation { return Rotation{Next: another.Public().(ed25519.PublicKey)} },
			next: another.Public().(ed25519.PublicKey)},
		{name: "next is the key itself", r: func(t *testing.T, k Key) Rotation {
			public, err := publicKey(k.IPNSName)
			if err != nil {
				t.Fatal(err)
			}
			return Rotation{Next: public}
		}, err: ErrNext},
		{name: "to another seal", r: func(*testing.T, Key) Rotation {
			return Rotation{Seal: Seal{Recipients: []age.Recipient{mine.Recipient()}, Opens: []age.Identity{mine}}}
		}, opens: []age.Identity{mine}},
		{name: "elsewhere, and not promised", r: func(t *testing.T, _ Key) Rotation {
			t.Setenv("SSH_AUTH_SOCK", startAgent(t, keyring(t, another)))
			return Rotation{Public: another.Public().(ed25519.PublicKey), Signer: &Elsewhere{Agent: true}}
		}, err: ErrSuccessor},
		{name: "elsewhere, and away", r: func(t *testing.T, _ Key) Rotation {
			t.Setenv("SSH_AUTH_SOCK", startAgent(t, keyring(t)))
			return Rotation{Public: another.Public().(ed25519.PublicKey), Signer: &Elsewhere{Agent: true}}
		}, err: ErrAway},
		{name: "elsewhere with nobody", r: func(*testing.T, Key) Rotation { return Rotation{Signer: &Elsewhere{}} }, err: ErrSigner},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			key, err := Mint(dir, "main", nil)
			if err != nil {
				t.Fatal(err)
			}
			began := false
			got, err := Rotate(t.Context(), dir, "main", c.r(t, key), func(ipns.Name) error { began = true; return nil })
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if c.err != nil {
				if began {
					t.Error("something was begun")
				}
				mustLoad(t, dir, key)
				return
			}
			promised(t, key.Next, got.IPNSName)
			mustLoad(t, dir, got, c.opens...)
			if c.next == nil {
				if _, err := got.openSuccessor(c.opens); err != nil {
					t.Errorf("the next successor: %v", err)
				}
				return
			}
			name, err := NameOf(c.next)
			if err != nil {
				t.Fatal(err)
			}
			promised(t, got.Next, name)
			if _, err := os.Stat(got.SuccessorFile); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a successor's file: %v", err)
			}
		})
	}
}

// From an agent's key to the file that was minted with it, then to a key that was
// promised by its public key and is in an agent.
func TestRotateElsewhere(t *testing.T) {
	dir := t.TempDir()
	first, third := newKey(t), newKey(t)
	t.Setenv("SSH_AUTH_SOCK", startAgent(t, keyring(t, first, third)))
	if _, err := Add(dir, "main", first.Public().(ed25519.PublicKey), Elsewhere{Agent: true}); err != nil {
		t.Fatal(err)
	}
	key, err := Rotate(t.Context(), dir, "main", Rotation{Next: third.Public().(ed25519.PublicKey)}, noJournal)
	if err != nil {
		t.Fatal(err)
	}
	if key.Signer != SignerFile || key.Former[0].Signer != SignerAgent || key.Former[0].File != "" {
		t.Errorf("%+v", key)
	}
	mustLoad(t, dir, key)
	if key, err = Rotate(t.Context(), dir, "main", Rotation{Public: third.Public().(ed25519.PublicKey), Signer: &Elsewhere{Agent: true}}, noJournal); err != nil {
		t.Fatal(err)
	}
	if key.Signer != SignerAgent || key.File != "" || key.Former[1].Signer != SignerFile {
		t.Errorf("%+v", key)
	}
	mustLoad(t, dir, key)
}

// Wherever it ends there is one key, whole: the old one and its successor, or the
// successor and its own; and the same command goes on from there.
func TestRotateCrash(t *testing.T) {
	crash := errors.New("power cut")
	var passed []string
	for at := 0; ; at++ {
		dir := t.TempDir()
		old, err := Mint(dir, "main", nil)
		if err != nil {
			t.Fatal(err)
		}
		n, where := 0, ""
		_, err = rotate(dir, "main", Rotation{Until: overlapEnds}, noJournal, func(step string) error {
			if n++; n-1 == at {
				where = step
				return crash
			}
			return nil
		})
		if where == "" {
			if err != nil {
				t.Fatal(err)
			}
			break // past the last step
		}
		passed = append(passed, where)
		if !errors.Is(err, crash) {
			t.Fatalf("%s: %v", where, err)
		}
		found, err := Find(dir, "main")
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		done := where == publicFile+" in place"
		if found.IPNSName.Equal(old.IPNSName) == done {
			t.Errorf("%s: the key is %s", where, found.IPNSName)
		}
		mustLoad(t, dir, found)
		if _, err := found.openSuccessor(nil); err != nil {
			t.Errorf("%s: successor: %v", where, err)
		}
		again, err := Rotate(t.Context(), dir, "main", Rotation{Until: overlapEnds}, noJournal)
		if err != nil {
			t.Errorf("%s, again: %v", where, err)
			continue
		}
		promised(t, found.Next, again.IPNSName)
		mustLoad(t, dir, again)
	}
	if got := strings.Join(passed, ", "); got != "begun, sealed, key-2.age in place, successor-2.age in place, public.json in place" {
		t.Errorf("the steps were %s", got)
	}
}

// A name that is followed is kept up for as long as one before it, whose readers come
// by it, however short its own overlap is.
func TestRotateKeepsTheWay(t *testing.T) {
	dir := t.TempDir()
	if _, err := Mint(dir, "main", nil); err != nil {
		t.Fatal(err)
	}
	long := overlapEnds
	for _, until := range []time.Time{long, long.Add(-time.Hour), long.Add(time.Hour)} {
		key, err := Rotate(t.Context(), dir, "main", Rotation{Until: until}, noJournal)
		if err != nil {
			t.Fatal(err)
		}
		want := until
		if want.Before(long) {
			want = long
		}
		if last := key.Former[len(key.Former)-1]; !last.Until.Equal(want) {
			t.Errorf("asked for %s: kept up until %s, want %s", until, last.Until, want)
		}
	}
}
