package ipnskeys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/ipfs/kubod"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == externalSigner {
		signExternally(os.Args[2], os.Args[3:])
	}
	if filepath.Base(os.Args[0]) == "age-plugin-"+testPlugin {
		servePlugin()
	}
	loopback.Main(m)
}

var (
	value = cid.MustParse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
	eol   = time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)
)

func TestMint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "keys")
	key, err := Mint(dir, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.HasPrefix(d.Name(), mintPrefix) {
			t.Errorf("%s was left behind", path)
		}
		if !d.IsDir() && d.Name() != identityFile {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if bytes.Contains(raw, []byte("PRIVATE")) || bytes.Contains(raw, []byte("AGE-SECRET")) {
				t.Errorf("%s shows a secret", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{key.File, key.SuccessorFile, key.IdentityFile} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}

	signer, err := Load(t.Context(), dir, "default")
	if err != nil {
		t.Fatal(err)
	}
	if !signer.IPNSName().Equal(key.IPNSName) {
		t.Errorf("%s signs for %s", key.IPNSName, signer.IPNSName())
	}
	// The promise holds: the successor's file has the key that Next commits to.
	identities, err := ReadIdentities(key.IdentityFile)
	if err != nil {
		t.Fatal(err)
	}
	private, err := unseal(key.SuccessorFile, identities)
	if err != nil {
		t.Fatal(err)
	}
	successor, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	if next, err := ipnsrecord.Commitment(successor.IPNSName()); err != nil || next != key.Next {
		t.Errorf("Next is %s, the successor's is %s (%v)", key.Next, next, err)
	}
	if successor.IPNSName().Equal(key.IPNSName) {
		t.Error("the successor is the key itself")
	}
	// It may be moved away: daily work needs only the key.
	if err := os.Remove(key.SuccessorFile); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), dir, "default"); err != nil {
		t.Error(err)
	}
	if _, err := Mint(dir, "default", nil); !errors.Is(err, ErrKeyExists) {
		t.Errorf("second mint: %v", err)
	}
	if _, err := Mint(dir, "another", nil); err != nil {
		t.Error(err)
	}
	keys, err := List(dir)
	if err != nil || len(keys) != 2 || keys[0].Name != "another" || !reflect.DeepEqual(keys[1], key) {
		t.Errorf("list is %+v (%v)", keys, err)
	}
}

func TestMintNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../a", "A", "-a", "identity.txt", ".mint-1", strings.Repeat("a", 65), "a\n"} {
		if _, err := Mint(t.TempDir(), name, nil); !errors.Is(err, ErrKeyName) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := Load(t.Context(), t.TempDir(), name); !errors.Is(err, ErrKeyName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestNoKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := Load(t.Context(), dir, "default"); !errors.Is(err, ErrNoKey) {
		t.Errorf("load: %v", err)
	}
	if keys, err := List(dir); err != nil || len(keys) != 0 {
		t.Errorf("list: %v, %v", keys, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("reading made the directory")
	}
}

// Of many that mint one name at once, one wins; of many names, all open.
func TestMintAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	minted := 0
	for i := range 8 {
		wg.Go(func() {
			_, err := Mint(dir, "same", nil)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				minted++
			} else if !errors.Is(err, ErrKeyExists) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := Mint(dir, fmt.Sprint("key", i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if minted != 1 {
		t.Errorf("%d minted the same name", minted)
	}
	keys, err := List(dir)
	if err != nil || len(keys) != 9 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, k := range keys {
		if _, err := Load(t.Context(), dir, k.Name); err != nil {
			t.Error(err)
		}
	}
}

// What a crash left behind neither counts as a key nor stands in the way.
func TestMintLeftovers(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, mintPrefix+"123")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, keyFile), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if keys, err := List(dir); err != nil || len(keys) != 0 {
		t.Errorf("list: %v, %v", keys, err)
	}
	if _, err := Mint(dir, "default", nil); err != nil {
		t.Error(err)
	}
}

func TestUnsafe(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, k Key)
		fix   string
	}{
		{"key readable by group", func(t *testing.T, k Key) { chmod(t, k.File, 0o640) }, "chmod 600"},
		{"key readable by world", func(t *testing.T, k Key) { chmod(t, k.File, 0o604) }, "chmod 600"},
		{"identity readable by others", func(t *testing.T, k Key) { chmod(t, k.IdentityFile, 0o644) }, "chmod 600"},
		{"public.json writable by others", func(t *testing.T, k Key) { chmod(t, filepath.Join(filepath.Dir(k.File), publicFile), 0o666) }, "chmod 600"},
		{"key is a link", func(t *testing.T, k Key) { link(t, k.File) }, "mode 600"},
		{"identity is a link", func(t *testing.T, k Key) { link(t, k.IdentityFile) }, "mode 600"},
		{"key is a directory", func(t *testing.T, k Key) {
			if err := errors.Join(os.Remove(k.File), os.Mkdir(k.File, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, "regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			key, err := Mint(dir, "default", nil)
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(t, key)
			_, err = Load(t.Context(), dir, "default")
			var unsafe *UnsafeError
			if !errors.As(err, &unsafe) || !errors.Is(err, ErrUnsafe) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(unsafe.Hint(), c.fix) || !strings.Contains(err.Error(), unsafe.Path) {
				t.Errorf("error %q, hint %q", err, unsafe.Hint())
			}
		})
	}
	t.Run("directory writable by others", func(t *testing.T) {
		dir := t.TempDir()
		chmod(t, dir, 0o777)
		if _, err := Mint(dir, "default", nil); !errors.Is(err, ErrUnsafe) {
			t.Errorf("got %v", err)
		}
	})
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path)); err != nil {
		t.Fatal(err)
	}
}

func TestSealedElsewhere(t *testing.T) {
	mine, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, err := Mint(dir, "cold", mine.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if key.IdentityFile != "" {
		t.Errorf("an identity at %s", key.IdentityFile)
	}
	if _, err := os.Stat(filepath.Join(dir, identityFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an identity was made: %v", err)
	}
	if _, err := Load(t.Context(), dir, "cold"); !errors.Is(err, ErrSealed) {
		t.Errorf("opened with nothing: %v", err)
	}
	if _, err := Load(t.Context(), dir, "cold", other); !errors.Is(err, ErrSealed) {
		t.Errorf("opened by another: %v", err)
	}
	if _, err := Load(t.Context(), dir, "cold", other, mine); err != nil {
		t.Error(err)
	}
}

func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	key, err := Mint(dir, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(key.File)
	if err != nil {
		t.Fatal(err)
	}
	successor, err := os.ReadFile(key.SuccessorFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{
		"cut":             sealed[:len(sealed)-1],
		"empty":           {},
		"another's key":   successor, // it would sign for a name that nobody follows
		"over the limit":  bytes.Repeat([]byte{'x'}, maxSecret+1),
		"a flipped last":  append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1),
		"a flipped first": append([]byte{sealed[0] ^ 1}, sealed[1:]...),
	} {
		write(key.File, data)
		if _, err := Load(t.Context(), dir, "default"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	write(key.File, sealed)
	// age would quote the line that it cannot read, which is the secret.
	const secret = "AGE-SECRET-KEY-1THISISASECRETTHATMUSTNOTBESHOWN"
	write(key.IdentityFile, []byte(secret))
	_, err = Load(t.Context(), dir, "default")
	if !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "MUSTNOTBESHOWN") {
		t.Errorf("damaged identity: %v", err)
	}
}

// The printed command backs up all that another machine needs.
func TestBackupCommand(t *testing.T) {
	state := filepath.Join(t.TempDir(), "it's here; or $HOME")
	dir := filepath.Join(state, "-keys")
	key, err := Mint(dir, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	cmd := exec.Command("sh", "-c", key.BackupCommand())
	cmd.Dir = elsewhere
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", key.BackupCommand(), err, out)
	}
	if info, err := os.Stat(filepath.Join(elsewhere, "registry-mirror-keys.tar")); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("backup is %v (%v)", info, err)
	}
	cmd = exec.Command("tar", "-xf", "registry-mirror-keys.tar")
	cmd.Dir = elsewhere
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	signer, err := Load(t.Context(), filepath.Join(elsewhere, "-keys"), "default")
	if err != nil {
		t.Fatal(err)
	}
	if !signer.IPNSName().Equal(key.IPNSName) {
		t.Error("the backup holds another key")
	}
}

func TestSign(t *testing.T) {
	dir := t.TempDir()
	if _, err := Mint(dir, "default", nil); err != nil {
		t.Fatal(err)
	}
	signer, err := Load(t.Context(), dir, "default")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := signer.Sign(value, 7, eol, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	again, err := signer.Sign(value, 7, eol, time.Minute)
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("the same call gave other bytes (%v)", err)
	}
	r, err := ipnsrecord.Check(signer.IPNSName(), raw, eol)
	if err != nil {
		t.Fatal(err)
	}
	if r.Value != value || r.Sequence != 7 || !r.EOL.Equal(eol) || r.TTL != time.Minute {
		t.Errorf("record is %+v", r)
	}
	// Nodes judge by boxo; old ones need the V1 fields too.
	if err := (ipns.Validator{}).Validate(string(signer.IPNSName().RoutingKey()), raw); err != nil {
		t.Error(err)
	}
	if len(raw) < 350 || len(raw) > 450 {
		t.Errorf("%d bytes: V1 and V2 take about 397", len(raw))
	}
	v2, err := signer.SignV2Only(value, 7, eol, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := signer.SignV2Only(value, 7, eol, time.Minute); err != nil || !bytes.Equal(v2, again) {
		t.Errorf("V2 only: the same call gave other bytes (%v)", err)
	}
	if r, err := ipnsrecord.Check(signer.IPNSName(), v2, eol); err != nil || !r.V2Only || r.Value != value || r.Sequence != 7 {
		t.Errorf("V2 only: record is %+v (%v)", r, err)
	}
	if err := (ipns.Validator{}).Validate(string(signer.IPNSName().RoutingKey()), v2); err != nil {
		t.Errorf("V2 only: %v", err)
	}
	if len(v2) > 250 {
		t.Errorf("V2 only: %d bytes, about 221 will do", len(v2))
	}
	// boxo would floor it, and sign what nobody asked for.
	if _, err := signer.Sign(value, 8, eol, -1); !errors.Is(err, ErrSign) {
		t.Errorf("TTL below 0: %v", err)
	}
	// An end of life that is past is the caller's business, not the clock's.
	if _, err := signer.Sign(value, 7, time.Unix(1000, 0), time.Minute); err != nil {
		t.Error(err)
	}
	for _, seq := range []uint64{1 << 62, 1 << 63, math.MaxUint64} {
		if _, err := signer.Sign(value, seq, eol, time.Minute); !errors.Is(err, ipnsrecord.ErrSequence) {
			t.Errorf("sequence %d: %v", seq, err)
		}
	}
	if _, err := signer.Sign(cid.Undef, 8, eol, time.Minute); !errors.Is(err, ipnsrecord.ErrValue) {
		t.Errorf("no value: %v", err)
	}
}

// Kubo says of our records what we say, by its own command.
func TestSignKubo(t *testing.T) {
	kubo := kubod.Start(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	for form, sign := range map[string]func(cid.Cid, uint64, time.Time, time.Duration) ([]byte, error){"V1+V2": signer.Sign, "V2": signer.SignV2Only} {
		t.Run(form, func(t *testing.T) {
			raw, err := sign(value, 7, eol, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "record")
			if err := os.WriteFile(file, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := kubo.Command(t.Context(), "name", "inspect", "--enc=json", "--verify="+signer.IPNSName().String(), file)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Entry struct {
					Value    string
					Sequence uint64
				}
				SignatureType string
				Validation    struct {
					Valid  bool
					Reason string
				}
			}
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if !got.Validation.Valid || got.SignatureType != form || got.Entry.Sequence != 7 || got.Entry.Value != "/ipfs/"+value.String() {
				t.Errorf("Kubo says %s", out)
			}
		})
	}
}

// brokenSigner stands for an agent or token that misbehaves.
type brokenSigner struct {
	ed25519.PrivateKey
	sign func(message []byte) ([]byte, error)
}

func (b brokenSigner) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	return b.sign(message)
}

func TestSignBroken(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, sign := range map[string]func([]byte) ([]byte, error){
		"away":          func([]byte) ([]byte, error) { return nil, errors.New("agent is gone") },
		"wrong key":     func(m []byte) ([]byte, error) { return ed25519.Sign(other, m), nil },
		"wrong message": func(m []byte) ([]byte, error) { return ed25519.Sign(key, m[1:]), nil },
		"nothing":       func([]byte) ([]byte, error) { return nil, nil },
	} {
		signer, err := NewSigner(brokenSigner{key, sign})
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := signer.Sign(value, 1, eol, time.Minute); !errors.Is(err, ErrSign) || raw != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	big, err := NewSigner(brokenSigner{key, func(m []byte) ([]byte, error) { return bytes.Repeat([]byte{1}, ipnsrecord.MaxSize), nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := big.Sign(value, 1, eol, time.Minute); !errors.Is(err, ipnsrecord.ErrTooBig) {
		t.Errorf("a record over 10 KiB: %v", err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSigner(curve); !errors.Is(err, ErrKeyType) {
		t.Errorf("ECDSA: %v", err)
	}
}

func TestSignerShowsNoKey(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, signer); got != signer.IPNSName().String() {
			t.Errorf("%s shows %s", verb, got)
		}
	}
	if _, err := signer.key.Raw(); err == nil {
		t.Error("the key is handed out")
	}
}

func TestLoadEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Load(ctx, t.TempDir(), "default"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkSign(b *testing.B) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := NewSigner(key)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := signer.Sign(value, 1, eol, time.Minute); err != nil {
			b.Fatal(err)
		}
	}
}
