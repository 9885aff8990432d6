package ipnskeys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"
)

func TestReseal(t *testing.T) {
	mine, second := newIdentity(t), newIdentity(t)
	ask := func(passphrase string) age.Identity {
		return &passphraseIdentity{func() (string, error) { return passphrase, nil }}
	}
	dir := t.TempDir()
	minted, err := Mint(dir, "main", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		to    Seal
		opens []age.Identity // what it is sealed to before
		then  age.Identity   // what opens it after; nil for the identity beside it
		tried bool           // the new seal was opened again
	}{
		{"to a recipient", Seal{Recipients: []age.Recipient{mine.Recipient()}, Opens: []age.Identity{mine}}, nil, mine, true},
		{"to one that is not here", Seal{Recipients: []age.Recipient{second.Recipient()}}, []age.Identity{mine}, second, false},
		{"to two", Seal{Recipients: []age.Recipient{second.Recipient(), mine.Recipient()}}, []age.Identity{second}, second, true},
		{"to a passphrase", Seal{Recipients: []age.Recipient{lowScrypt(t, "open")}, Opens: []age.Identity{ask("open")}}, []age.Identity{second}, ask("open"), true},
		{"and back", Seal{}, []age.Identity{ask("open")}, nil, true},
	} {
		r, err := Reseal(t.Context(), dir, "main", c.to, c.opens...)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if r.Left || !r.Successor || r.Tried != c.tried || (r.IdentityFile == "") == (c.then == nil) {
			t.Errorf("%s: %+v", c.name, r)
		}
		var opens []age.Identity
		if c.then != nil {
			opens = []age.Identity{c.then}
			if _, err := Load(t.Context(), dir, "main"); !errors.Is(err, ErrSealed) {
				t.Errorf("%s: it opens without: %v", c.name, err)
			}
		}
		signer, err := Load(t.Context(), dir, "main", opens...)
		if err != nil || !signer.IPNSName().Equal(minted.IPNSName) {
			t.Errorf("%s: %v, %v", c.name, signer, err)
		}
		if _, err := r.openSuccessor(opens); err != nil {
			t.Errorf("%s: successor: %v", c.name, err)
		}
		for _, path := range []string{r.File, r.SuccessorFile} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %s is %v (%v)", c.name, path, info.Mode(), err)
			}
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "main", resealPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Reseal(t.Context(), dir, "none", Seal{}); !errors.Is(err, ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
}

// The successor may be gone, or sealed to what is not at hand; one that is not
// the promised one stops all.
func TestResealSuccessor(t *testing.T) {
	mine := newIdentity(t)
	to := Seal{Recipients: []age.Recipient{mine.Recipient()}}
	for _, c := range []struct {
		name  string
		spoil func(k Key) error
		left  bool
		err   error
	}{
		{"moved away", func(k Key) error { return os.Remove(k.SuccessorFile) }, false, nil},
		{"sealed to another", func(k Key) error {
			return os.WriteFile(k.SuccessorFile, mustSeal(t, mustMarshal(t, newKey(t), PKCS8), newIdentity(t).Recipient()), 0o600)
		}, true, nil},
		{"another key", func(k Key) error {
			identities, err := ReadIdentities(k.IdentityFile)
			if err != nil {
				return err
			}
			return os.WriteFile(k.SuccessorFile, mustSeal(t, mustMarshal(t, newKey(t), PKCS8), identities[0].(*age.X25519Identity).Recipient()), 0o600)
		}, false, ErrCorrupt},
		{"readable by others", func(k Key) error { return os.Chmod(k.SuccessorFile, 0o644) }, false, ErrUnsafe},
	} {
		dir := t.TempDir()
		key, err := Mint(dir, "main", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.spoil(key); err != nil {
			t.Fatal(err)
		}
		r, err := Reseal(t.Context(), dir, "main", to)
		if !errors.Is(err, c.err) || c.err == nil && err != nil || r.Left != c.left || r.Successor {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
		opens := []age.Identity{mine}
		if c.err != nil {
			opens = nil // nothing was changed
		}
		if _, err := Load(t.Context(), dir, "main", opens...); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Wherever it ends, the key and its successor are sealed to the old or to the
// new, either opens what it should, and the same command ends it.
func TestResealCrash(t *testing.T) {
	mine := newIdentity(t)
	away := Seal{Recipients: []age.Recipient{mine.Recipient()}, Opens: []age.Identity{mine}}
	crash := errors.New("power cut")
	for _, direction := range []struct {
		name   string
		before Seal // the seal that it has
		to     Seal
	}{{"away", Seal{}, away}, {"back", away, Seal{}}} {
		steps := 0
		for at := 0; ; at++ {
			dir := t.TempDir()
			key, err := Mint(dir, "main", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Reseal(t.Context(), dir, "main", direction.before); err != nil {
				t.Fatal(err)
			}
			n, where := 0, ""
			_, err = reseal(dir, "main", direction.to, []age.Identity{mine}, func(step string) error {
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
			steps++
			if !errors.Is(err, crash) {
				t.Fatalf("%s, %s: %v", direction.name, where, err)
			}
			signer, err := Load(t.Context(), dir, "main", mine)
			if err != nil || !signer.IPNSName().Equal(key.IPNSName) {
				t.Errorf("%s, %s: %v", direction.name, where, err)
			}
			found, err := Find(dir, "main")
			if err != nil {
				t.Fatalf("%s, %s: %v", direction.name, where, err)
			}
			if _, err := found.openSuccessor([]age.Identity{mine}); err != nil {
				t.Errorf("%s, %s: successor: %v", direction.name, where, err)
			}
			// Until the key's own file is in place what opened it before still does.
			if where != keyFile+" in place" {
				var old []age.Identity
				if direction.name == "back" {
					old = []age.Identity{mine}
				}
				if _, err := Load(t.Context(), dir, "main", old...); err != nil {
					t.Errorf("%s, %s: by the old: %v", direction.name, where, err)
				}
			}
			r, err := Reseal(t.Context(), dir, "main", direction.to, mine)
			if err != nil || !r.Successor {
				t.Errorf("%s, %s, again: %+v, %v", direction.name, where, r, err)
			}
		}
		if steps != 4 {
			t.Errorf("%s: %d steps were tried", direction.name, steps)
		}
	}
}

func TestOpening(t *testing.T) {
	mine := newIdentity(t)
	file := secretFile(t, []byte("# mine\n\n"+mine.String()+"\n"))
	credentials := t.TempDir()
	credential := filepath.Join(credentials, "main")
	if err := os.WriteFile(credential, []byte(mine.String()+"\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	fails := errors.New("no terminal")
	sealed := map[string]age.Recipient{"recipient": mine.Recipient(), "passphrase": lowScrypt(t, "open")}
	for _, c := range []struct {
		name, sealed string
		mode         os.FileMode // of the credential
		o            Opening
		err          error
	}{
		{"identity file", "recipient", 0o400, Opening{Identities: []string{file}}, nil},
		{"credential", "recipient", 0o400, Opening{Credentials: credentials}, nil},
		{"credential by an access list", "recipient", 0o440, Opening{Credentials: credentials}, nil},
		{"credential that all may read", "recipient", 0o444, Opening{Credentials: credentials}, ErrUnsafe},
		{"no such credential", "recipient", 0o400, Opening{Credentials: t.TempDir()}, ErrSealed},
		{"passphrase", "passphrase", 0o400, Opening{Passphrase: func() (string, error) { return "open", nil }}, nil},
		{"wrong passphrase", "passphrase", 0o400, Opening{Passphrase: func() (string, error) { return "no", nil }}, errPassphrase},
		{"nobody to ask", "passphrase", 0o400, Opening{Passphrase: func() (string, error) { return "", fails }}, fails},
		{"nobody to ask, and it is sealed", "passphrase", 0o400, Opening{Passphrase: func() (string, error) { return "", fails }}, ErrSealed},
		{"none is asked for what needs none", "recipient", 0o400, Opening{Identities: []string{file}, Passphrase: func() (string, error) { panic("asked") }}, nil},
		{"nothing", "recipient", 0o400, Opening{}, ErrSealed},
		{"no such file", "recipient", 0o400, Opening{Identities: []string{file + "x"}}, os.ErrNotExist},
	} {
		chmod(t, credential, c.mode)
		dir := t.TempDir()
		key, err := Mint(dir, "main", sealed[c.sealed])
		if err != nil {
			t.Fatal(err)
		}
		signer, err := c.o.Load(t.Context(), dir, "main")
		if !errors.Is(err, c.err) || c.err == nil && (err != nil || !signer.IPNSName().Equal(key.IPNSName)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := (Opening{Credentials: credentials}).Read("../main"); !errors.Is(err, ErrKeyName) {
		t.Errorf("a path for a name: %v", err)
	}
}

func TestReadIdentities(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	token := plugin.EncodeIdentity("example", []byte("token"))
	for _, c := range []struct {
		name, text string
		n          int
	}{
		{"two", newIdentity(t).String() + "\r\n# between\n\n" + hybrid.String(), 2},
		{"none", "# nothing\n", 0},
		{"a plugin's", token, 1},
		{"a recipient", newIdentity(t).Recipient().String(), 0},
		{"a plugin's, damaged", token + "MUSTNOTBESHOWN", 0},
		{"damaged", newIdentity(t).String() + "\nAGE-SECRET-KEY-1MUSTNOTBESHOWN", 0},
	} {
		got, err := ReadIdentities(secretFile(t, []byte(c.text)))
		if len(got) != c.n || (c.n == 0) != errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %d, %v", c.name, len(got), err)
		}
		if err != nil && strings.Contains(err.Error(), "MUSTNOT") {
			t.Errorf("%s: the error shows it: %v", c.name, err)
		}
	}
}

func TestSealTo(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		to   []string
		ok   bool
	}{
		{"none", nil, true},
		{"X25519", []string{newIdentity(t).Recipient().String()}, true},
		{"hybrid", []string{hybrid.Recipient().String()}, true},
		{"nonsense", []string{"nonsense"}, false},
		{"an identity", []string{newIdentity(t).String()}, false},
		{"two in one", []string{newIdentity(t).Recipient().String() + "\n" + newIdentity(t).Recipient().String()}, false},
		{"nothing", []string{""}, false},
	} {
		s, err := SealTo(c.to...)
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrRecipient) || c.ok && len(s.Recipients) != len(c.to) {
			t.Errorf("%s: %v, %v", c.name, s.Recipients, err)
		}
	}
	if _, err := SealWith(""); err == nil {
		t.Error("an empty passphrase")
	}
}

// testPlugin is the name of an age plugin that this test's binary is, when it is
// called age-plugin-house: an X25519 key in a plugin's clothes.
const testPlugin = "house"

func servePlugin() {
	p, err := plugin.New(testPlugin)
	if err != nil {
		panic(err)
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) { return age.ParseX25519Recipient(string(data)) })
	p.HandleIdentity(func(data []byte) (age.Identity, error) { return age.ParseX25519Identity(string(data)) })
	os.Exit(p.Main())
}

func TestPlugin(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(program, filepath.Join(bin, "age-plugin-"+testPlugin)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	mine := newIdentity(t)
	to, err := SealTo(plugin.EncodeRecipient(testPlugin, []byte(mine.Recipient().String())))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, err := Mint(dir, "main", nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Reseal(t.Context(), dir, "main", to); err != nil || !r.Successor {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := Load(t.Context(), dir, "main"); !errors.Is(err, ErrSealed) {
		t.Errorf("without: %v", err)
	}
	o := Opening{Identities: []string{secretFile(t, []byte(plugin.EncodeIdentity(testPlugin, []byte(mine.String()))))}}
	if signer, err := o.Load(t.Context(), dir, "main"); err != nil || !signer.IPNSName().Equal(key.IPNSName) {
		t.Errorf("%v, %v", signer, err)
	}
	// Without the plugin it stays shut.
	t.Setenv("PATH", t.TempDir())
	if _, err := o.Load(t.Context(), dir, "main"); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "plugin") {
		t.Errorf("no plugin: %v", err)
	}
	if _, err := Reseal(t.Context(), dir, "main", to, mine); err == nil {
		t.Error("it was sealed to a plugin that is not there")
	}
	if _, err := Load(t.Context(), dir, "main", mine); err != nil {
		t.Errorf("the old seal is gone: %v", err)
	}
}

// A plugin that does not answer is given up on.
func TestWithin(t *testing.T) {
	if _, err := within(time.Millisecond, func() (int, error) { select {} }); !errors.Is(err, errPluginTime) {
		t.Errorf("got %v", err)
	}
	if n, err := within(time.Minute, func() (int, error) { return 7, nil }); n != 7 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}
