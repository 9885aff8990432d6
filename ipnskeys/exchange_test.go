package ipnskeys

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"golang.org/x/crypto/ssh"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func mustMarshal(t testing.TB, key ed25519.PrivateKey, form Format) []byte {
	t.Helper()
	raw, err := marshal(key, form)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func mustSeal(t testing.TB, clear []byte, to ...age.Recipient) []byte {
	t.Helper()
	sealed, err := Seal{Recipients: to}.close(clear)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// secretFile is a file of mode 0600 in a directory of its own.
func secretFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// lowScrypt is a passphrase's recipient that does not take a second.
func lowScrypt(t testing.TB, passphrase string) *age.ScryptRecipient {
	t.Helper()
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	to.SetWorkFactor(10)
	return to
}

// What was exported is imported as the same key, in each form, in the clear and
// sealed; and the import mints a successor.
func TestExportImport(t *testing.T) {
	mine := newIdentity(t)
	for _, form := range []Format{Libp2p, PKCS8} {
		for name, c := range map[string]struct {
			seal  *Seal
			opens []age.Identity
		}{
			"clear":      {},
			"recipient":  {seal: &Seal{Recipients: []age.Recipient{mine.Recipient()}}, opens: []age.Identity{mine}},
			"passphrase": {seal: &Seal{Recipients: []age.Recipient{lowScrypt(t, "open")}}, opens: []age.Identity{mine, &passphraseIdentity{func() (string, error) { return "open", nil }}}},
		} {
			t.Run(string(form)+" "+name, func(t *testing.T) {
				from, to, file := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "exported")
				key, err := Mint(from, "main", nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := Export(t.Context(), from, "main", file, form, c.seal); err != nil {
					t.Fatal(err)
				}
				if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("the file is %v (%v)", info.Mode(), err)
				}
				if raw, err := os.ReadFile(file); err != nil || c.seal != nil && bytes.Contains(raw, []byte("PRIVATE")) {
					t.Errorf("it shows a secret (%v)", err)
				}
				private, err := ReadPrivate(file, c.opens...)
				if err != nil {
					t.Fatal(err)
				}
				if !private.IPNSName().Equal(key.IPNSName) {
					t.Errorf("it signs for %s, not %s", private.IPNSName(), key.IPNSName)
				}
				got, err := Import(to, "main", private, Seal{})
				if err != nil {
					t.Fatal(err)
				}
				if !got.IPNSName.Equal(key.IPNSName) || got.Next == key.Next || got.Fingerprint != key.Fingerprint || got.Signer != SignerFile {
					t.Errorf("imported %+v, exported %+v", got, key)
				}
				if _, err := got.openSuccessor(nil); err != nil {
					t.Errorf("successor: %v", err)
				}
				signer, err := Load(t.Context(), to, "main")
				if err != nil || !signer.IPNSName().Equal(key.IPNSName) {
					t.Errorf("load: %v, %v", signer, err)
				}
				if _, err := Import(to, "main", private, Seal{}); !errors.Is(err, ErrKeyExists) {
					t.Errorf("again: %v", err)
				}
				if err := Export(t.Context(), from, "main", file, form, c.seal); !errors.Is(err, os.ErrExist) {
					t.Errorf("a file was replaced: %v", err)
				}
			})
		}
	}
}

func TestReadPrivate(t *testing.T) {
	key, other, mine := newKey(t), newKey(t), newIdentity(t)
	libp2p, pkcs8 := mustMarshal(t, key, Libp2p), mustMarshal(t, key, PKCS8)
	var armored bytes.Buffer
	w := armor.NewWriter(&armored)
	if _, err := w.Write(mustSeal(t, libp2p, mine.Recipient())); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// A public key that is not the seed's: signatures by it would give the key away.
	mixed := append(bytes.Clone(key[:ed25519.SeedSize]), other[ed25519.SeedSize:]...)
	crossed, err := marshal(mixed, Libp2p)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curvePEM, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, _, err := ic.KeyPairFromStdKey(long)
	if err != nil {
		t.Fatal(err)
	}
	rsaLibp2p, err := ic.MarshalPrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	secp, _, err := ic.GenerateSecp256k1Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secpLibp2p, err := ic.MarshalPrivateKey(secp)
	if err != nil {
		t.Fatal(err)
	}
	want, err := NameOf(key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		err  error
	}{
		{"libp2p", libp2p, nil},
		{"PKCS#8", pkcs8, nil},
		{"PKCS#8 with space around", append([]byte("\n"), append(bytes.Clone(pkcs8), "\n\n"...)...), nil},
		{"armored", armored.Bytes(), nil},
		{"sealed to another", mustSeal(t, pkcs8, newIdentity(t).Recipient()), ErrSealed},
		{"sealed with a passphrase", mustSeal(t, pkcs8, lowScrypt(t, "x")), ErrSealed},
		{"sealed nonsense", mustSeal(t, []byte("nonsense"), mine.Recipient()), ErrFormat},
		{"sealed and cut", mustSeal(t, pkcs8, mine.Recipient())[:250], ErrCorrupt},
		{"empty", nil, ErrFormat},
		{"nonsense", []byte("AGE-SECRET-KEY-MUSTNOTBESHOWN"), ErrFormat},
		{"libp2p, cut", libp2p[:len(libp2p)-1], ErrFormat},
		{"PKCS#8, cut", pkcs8[:len(pkcs8)-30], ErrFormat},
		{"PKCS#8, twice", append(bytes.Clone(pkcs8), pkcs8...), ErrFormat},
		{"OpenSSH", pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: []byte("MUSTNOTBESHOWN")}), ErrFormat},
		{"another public key", crossed, ErrCorrupt},
		{"ECDSA", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: curvePEM}), ErrKeyType},
		{"RSA", rsaLibp2p, ErrKeyType},
		{"secp256k1", secpLibp2p, ErrKeyType},
		{"over the limit", bytes.Repeat([]byte{'x'}, maxSecret+1), ErrCorrupt},
	} {
		private, err := ReadPrivate(secretFile(t, c.data), mine)
		if !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.err == nil && !private.IPNSName().Equal(want) {
			t.Errorf("%s: it signs for %s", c.name, private.IPNSName())
		}
		if err != nil && strings.Contains(err.Error(), "MUSTNOTBESHOWN") {
			t.Errorf("%s: the error shows a secret: %v", c.name, err)
		}
	}
	private, err := ReadPrivate(secretFile(t, libp2p))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, private); got != want.String() {
			t.Errorf("%s shows %s", verb, got)
		}
	}
}

// Whatever a file holds, it is a whole key or an error that says which.
func FuzzParse(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	for _, form := range []Format{Libp2p, PKCS8} {
		raw, err := marshal(key, form)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parse(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrKeyType) && !errors.Is(err, ErrCorrupt) || key != nil {
				t.Errorf("%v, %v", key, err)
			}
			return
		}
		if !key.Equal(ed25519.NewKeyFromSeed(key.Seed())) {
			t.Error("its halves do not belong together")
		}
	})
}

func TestReadPrivateUnsafe(t *testing.T) {
	data := mustMarshal(t, newKey(t), Libp2p)
	readable := secretFile(t, data)
	chmod(t, readable, 0o644)
	linked := secretFile(t, data)
	link(t, linked)
	for path, fix := range map[string]string{readable: "chmod 600", linked: "mode 600", t.TempDir(): "regular file"} {
		_, err := ReadPrivate(path)
		var unsafe *UnsafeError
		if !errors.As(err, &unsafe) || !strings.Contains(unsafe.Hint(), fix) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// An export leaves a whole file or none, and nothing else is touched.
func TestExportRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := Mint(dir, "cold", newIdentity(t).Recipient()); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	existing := secretFile(t, []byte("mine"))
	dangling := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(out, "elsewhere"), dangling); err != nil {
		t.Fatal(err)
	}
	mixed := &Seal{Recipients: []age.Recipient{lowScrypt(t, "x"), newIdentity(t).Recipient()}}
	for _, c := range []struct {
		name, path string
		form       Format
		seal       *Seal
		opens      []age.Identity
		err        error
	}{
		{"no such form", filepath.Join(out, "a"), "openssh", nil, nil, ErrFormat},
		{"sealed to another", filepath.Join(out, "b"), PKCS8, nil, []age.Identity{newIdentity(t)}, ErrSealed},
		{"a file is there", existing, PKCS8, nil, nil, os.ErrExist},
		{"a link is there", dangling, PKCS8, nil, nil, os.ErrExist},
		{"standard output", "/dev/stdout", PKCS8, nil, nil, os.ErrExist},
	} {
		if err := Export(t.Context(), dir, "cold", c.path, c.form, c.seal, c.opens...); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := Mint(dir, "warm", nil); err != nil {
		t.Fatal(err)
	}
	if err := Export(t.Context(), dir, "warm", filepath.Join(out, "c"), PKCS8, mixed); err == nil {
		t.Error("a passphrase beside another recipient")
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	if raw, err := os.ReadFile(existing); err != nil || string(raw) != "mine" {
		t.Errorf("the file now says %q (%v)", raw, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Export(ended, dir, "warm", filepath.Join(out, "d"), PKCS8, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

// The fingerprint is what `ssh-keygen -lf` prints of the public key; the pair is
// of RFC 8032, section 7.1, test 1.
func TestFingerprint(t *testing.T) {
	seed := []byte{
		0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
		0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
	}
	private, err := ReadPrivate(secretFile(t, mustMarshal(t, ed25519.NewKeyFromSeed(seed), Libp2p)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := Import(t.TempDir(), "rfc", private, Seal{})
	if err != nil {
		t.Fatal(err)
	}
	const line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"
	const fingerprint = "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8"
	if key.PublicKey != line || key.Fingerprint != fingerprint {
		t.Errorf("%s, %s", key.PublicKey, key.Fingerprint)
	}
}

func TestReadPublic(t *testing.T) {
	key := newKey(t)
	want := key.Public().(ed25519.PublicKey)
	name, err := NameOf(want)
	if err != nil {
		t.Fatal(err)
	}
	line, _, err := sshForm(name)
	if err != nil {
		t.Fatal(err)
	}
	pemOf := func(key any) []byte {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curveLine, err := ssh.NewPublicKey(curve.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		err  error
	}{
		{"ssh", []byte(line), nil},
		{"ssh with a comment", []byte(line + " me@here\n"), nil},
		{"PEM", pemOf(want), nil},
		{"ECDSA", pemOf(curve.Public()), ErrKeyType},
		{"ssh, ECDSA", ssh.MarshalAuthorizedKey(curveLine), ErrKeyType},
		{"two lines", []byte(line + "\n" + line), ErrPublicKey},
		{"a private key", mustMarshal(t, key, PKCS8), ErrPublicKey},
		{"nothing", nil, ErrPublicKey},
		{"too much", bytes.Repeat([]byte{'#'}, maxSecret+1), ErrPublicKey},
	} {
		got, err := ReadPublic(secretFile(t, c.data))
		if !errors.Is(err, c.err) || c.err == nil && (err != nil || !got.Equal(want)) {
			t.Errorf("%s: %x, %v", c.name, got, err)
		}
	}
	if _, err := ReadPublic(t.TempDir()); !errors.Is(err, ErrPublicKey) {
		t.Errorf("a directory: %v", err)
	}
}

// Kubo takes what Export writes and writes what Import takes, in both formats
// and under one name.
func TestKubo(t *testing.T) {
	if kubod.Binary() == "" {
		t.Skipf("no Kubo: %s does not name an ipfs binary", kubod.Variable)
	}
	kubo := &kubod.Daemon{Binary: kubod.Binary(), Repo: filepath.Join(t.TempDir(), "kubo")}
	ipfs := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := kubo.Command(ctx, args...)
		if err != nil {
			t.Fatalf("ipfs %s: %v", strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	ipfs("init", "--profile=test,autoconf-off")
	dir := t.TempDir()
	for _, form := range []Format{Libp2p, PKCS8} {
		short := strings.SplitN(string(form), "-", 2)[0]
		ours, err := Mint(dir, short, nil)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "ours")
		if err := Export(t.Context(), dir, short, file, form, nil); err != nil {
			t.Fatal(err)
		}
		if got := ipfs("key", "import", "--ipns-base=base36", "--format="+string(form), short, file); got != ours.IPNSName.String() {
			t.Errorf("%s: Kubo imports %s as %s", form, ours.IPNSName, got)
		}
		theirs := ipfs("key", "gen", "--type=ed25519", "--ipns-base=base36", "theirs-"+short)
		file = filepath.Join(t.TempDir(), "theirs")
		ipfs("key", "export", "--format="+string(form), "-o", file, "theirs-"+short)
		private, err := ReadPrivate(file)
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		key, err := Import(dir, "theirs-"+short, private, Seal{})
		if err != nil {
			t.Fatal(err)
		}
		if key.IPNSName.String() != theirs {
			t.Errorf("%s: Kubo's %s is imported as %s", form, theirs, key.IPNSName)
		}
		signer, err := Load(t.Context(), dir, "theirs-"+short)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := signer.Sign(value, 1, eol, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ipnsrecord.Check(key.IPNSName, raw, time.Now()); err != nil {
			t.Error(err)
		}
	}
}
