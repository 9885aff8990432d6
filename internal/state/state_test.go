package state

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

func TestMain(m *testing.M) { loopback.Main(m) }

func TestNodeIsChosenOnce(t *testing.T) {
	for _, test := range []struct {
		name          string
		first, second choice
		want          string // recorded in the end
		err           error
	}{
		{"Default", choice{}, choice{}, `{"format":1,"node":"embedded"}`, nil},
		{"SameAgain", choice{Node: "embedded"}, choice{Node: "embedded"}, `{"format":1,"node":"embedded"}`, nil},
		{"KuboStays", choice{Node: "kubo"}, choice{}, `{"format":1,"node":"kubo"}`, nil},
		{"AddressStays", choice{Node: "kubo", API: "http://127.0.0.1:5001"}, choice{Node: "kubo"}, `{"format":1,"node":"kubo","api":"http://127.0.0.1:5001"}`, nil},
		{"AddressMayChange", choice{Node: "kubo", API: "http://127.0.0.1:5001"}, choice{API: "http://127.0.0.1:5002"}, `{"format":1,"node":"kubo","api":"http://127.0.0.1:5002"}`, nil},
		{"OtherNode", choice{Node: "kubo"}, choice{Node: "embedded"}, `{"format":1,"node":"kubo"}`, ErrOtherNode},
		{"OtherNodeThanTheDefault", choice{}, choice{Node: "kubo"}, `{"format":1,"node":"embedded"}`, ErrOtherNode},
		{"OtherNodeAndAddress", choice{}, choice{Node: "kubo", API: "http://127.0.0.1:5002"}, `{"format":1,"node":"embedded"}`, ErrOtherNode},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := Dir(filepath.Join(t.TempDir(), "new", "state"))
			if _, err := d.ChooseNode(test.first.Node, test.first.API); err != nil {
				t.Fatal(err)
			}
			if _, err := d.ChooseNode(test.second.Node, test.second.API); !errors.Is(err, test.err) {
				t.Errorf("the second choice: %v, want %v", err, test.err)
			}
			if raw, err := os.ReadFile(d.path("node.json")); err != nil || string(raw) != test.want+"\n" {
				t.Errorf("recorded is %q, %v, want %s", raw, err, test.want)
			}
			if info, err := os.Stat(string(d)); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the state: %v, %v, want mode 0700", info.Mode(), err)
			}
			left, err := os.ReadDir(string(d))
			if err != nil || len(left) != 1 {
				t.Errorf("beside node.json there is %v, %v", left, err)
			}
		})
	}
}

// TestDamagedNodeFile: what cannot be read is never taken for "none chosen".
func TestDamagedNodeFile(t *testing.T) {
	for _, content := range []string{"", "{", "{}", `{"format":1,"node":"other"}`, `{"format":1,"node":"kubo","apy":"x"}`} {
		d := Dir(t.TempDir())
		if err := os.WriteFile(d.path("node.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if kind, err := d.ChooseNode("", ""); err == nil {
			t.Errorf("%q is taken for %s", content, kind)
		}
		if raw, err := os.ReadFile(d.path("node.json")); err != nil || string(raw) != content {
			t.Errorf("%q became %q, %v", content, raw, err)
		}
	}
}

// TestRecordReplacesWhole: node.json is another file afterwards, never one that
// is written to: a crash leaves the old one or the new one. What a crash left
// beside it does no harm.
func TestRecordReplacesWhole(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.ChooseNode("kubo", "http://127.0.0.1:5001"); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(d.path("node.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := os.WriteFile(d.path("node.json.123"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ChooseNode("", "http://127.0.0.1:5002"); err != nil {
		t.Fatal(err)
	}
	before, err := old.Stat()
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(d.path("node.json"))
	if err != nil || os.SameFile(before, after) {
		t.Errorf("node.json was written in place (%v)", err)
	}
	raw := make([]byte, before.Size())
	if _, err := old.ReadAt(raw, 0); err != nil || string(raw) != `{"format":1,"node":"kubo","api":"http://127.0.0.1:5001"}`+"\n" {
		t.Errorf("the old file now says %q, %v", raw, err)
	}
}

// TestRecordThatFails leaves the old file as it was.
func TestRecordThatFails(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	d := Dir(t.TempDir())
	if _, err := d.ChooseNode("kubo", ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(string(d), 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(string(d), 0o700)
	if _, err := d.ChooseNode("", "http://127.0.0.1:5002"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a state that cannot be written: %v", err)
	}
	if raw, _ := os.ReadFile(d.path("node.json")); string(raw) != `{"format":1,"node":"kubo"}`+"\n" {
		t.Errorf("node.json is %q", raw)
	}
}

var errLocked = errors.New("locked")

// TestOpenWaits for a short-lived holder of a lock, and not for ever.
func TestOpenWaits(t *testing.T) {
	for _, test := range []struct {
		name   string
		locked int // so many times, then free
		other  error
		tries  int
		err    error
	}{
		{"Free", 0, nil, 1, nil},
		{"FreeSoon", 3, nil, 4, nil},
		{"FreeAtTheLast", lockTries - 1, nil, lockTries, nil},
		{"NeverFree", lockTries, nil, lockTries, errLocked},
		{"OtherError", 0, fs.ErrPermission, 1, fs.ErrPermission},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := Dir(t.TempDir())
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				got, err := Open(t.Context(), d, "follower", errLocked, func() (int, error) {
					if tries++; tries <= test.locked {
						return 0, errLocked
					}
					return tries, test.other
				})
				if tries != test.tries || !errors.Is(err, test.err) || test.err == nil && got != tries {
					t.Errorf("%d tries, %d, %v, want %d and %v", tries, got, err, test.tries, test.err)
				}
			})
		})
	}
}

// TestOpenDoesNotWaitForAnOwner that answers: it will keep the lock.
func TestOpenDoesNotWaitForAnOwner(t *testing.T) {
	d := short(t)
	answer(t, d.Socket("follower"), http.NotFoundHandler())
	tries := 0
	_, err := Open(t.Context(), d, "follower", errLocked, func() (int, error) { tries++; return 0, errLocked })
	if tries != 1 || !errors.Is(err, errLocked) {
		t.Errorf("%d tries, %v", tries, err)
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	d := Dir(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Open(ctx, d, "follower", errLocked, func() (int, error) { cancel(); return 0, errLocked })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Open: %v", err)
	}
}

// short is a state whose sockets need no other place.
func short(t *testing.T) Dir {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Dir(dir)
}

// answer answers at a socket until the test ends.
func answer(t *testing.T, path string, h http.Handler) {
	t.Helper()
	l, err := socket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- socket.Serve(ctx, l, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// wants is what both the ledger and a client of its owner have.
type wants interface {
	Wants(context.Context) ([]ledger.Want, error)
	Close() error
}

// TestReachLedger: by its owner where one runs, else by opening it; and where a
// short-lived command has it, by opening it once that has ended.
func TestReachLedger(t *testing.T) {
	d := short(t)
	reach := func() (wants, bool, error) {
		asked := false
		w, err := ReachLedger(t.Context(), d, func(c *ledger.Client) wants { asked = true; return c },
			func() (wants, error) { return ledger.Open(d.Ledger(), ledger.Options{}) })
		return w, asked, err
	}
	if _, _, err := reach(); !errors.Is(err, ledger.ErrNoLedger) {
		t.Fatalf("without a ledger: %v", err)
	}
	store, err := d.OpenLedger(t.Context(), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.AddWants(t.Context(), ledger.Want{Spec: npm.Spec{Name: "leaf"}}); err != nil {
		t.Fatal(err)
	}
	check := func(want bool) {
		t.Helper()
		w, asked, err := reach()
		if err != nil || asked != want {
			t.Fatalf("asked %v, %v, want %v", asked, err, want)
		}
		if all, err := w.Wants(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("the selection is %v, %v", all, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Run("Owner", func(t *testing.T) {
		answer(t, d.Socket("follower"), ledger.Serve(store))
		check(true)
	})
	time.AfterFunc(50*time.Millisecond, func() { store.Close() })
	check(false) // once it was closed
	check(false)
}

// TestEmbeddedNodeIsShared: a second opener of a state's node reaches the first
// one's, over its socket, and opens it itself once that is gone.
func TestEmbeddedNodeIsShared(t *testing.T) {
	d := short(t)
	first, err := d.OpenNode(t.Context(), NodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := first.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"Beside", "Alone"} {
		n, err := d.OpenNode(t.Context(), NodeOptions{})
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		info, err := n.Info(t.Context())
		if err != nil || info.ID != own.ID || n.Kind != "embedded" {
			t.Errorf("%s: %s of kind %q, %v, want %s", step, info.ID, n.Kind, err, own.ID)
		}
		if (n.stop != nil) != (step == "Alone") {
			t.Errorf("%s: the node runs in this process: %v", step, n.stop != nil)
		}
		if err := n.Close(); err != nil {
			t.Errorf("%s: %v", step, err)
		}
		if step == "Beside" {
			if _, err := first.Info(t.Context()); err != nil {
				t.Errorf("the other's Close ended the node: %v", err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := d.OpenNode(t.Context(), NodeOptions{Kind: "kubo"}); !errors.Is(err, ErrOtherNode) {
		t.Errorf("another node: %v", err)
	}
}

func TestOpenUpstream(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "s"))
	t.Chdir(t.TempDir())
	t.Setenv("HOME", t.TempDir())
	for _, test := range []struct {
		name, url, env, want string
		err                  error
	}{
		{"Default", "", "", npm.DefaultRegistry(), nil},
		{"Asked", "http://127.0.0.1:4873/", "", "http://127.0.0.1:4873", nil},
		{"NpmsConfiguration", "", "http://registry.example.test/x/", "http://registry.example.test/x", nil},
		{"AskedBeforeNpms", "http://127.0.0.1:4873", "http://registry.example.test", "http://127.0.0.1:4873", nil},
		{"NoURL", "ftp://127.0.0.1", "", "", npm.ErrConfig},
		{"NpmsIsNoURL", "", "nonsense", "", npm.ErrConfig},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("npm_config_registry", test.env)
			up, config, err := d.OpenUpstream(test.url, upstream.Options{})
			if !errors.Is(err, test.err) || err == nil && (up == nil || config.Registry != test.want) {
				t.Errorf("%v, %q, %v, want %q, %v", up, config.Registry, err, test.want, test.err)
			}
		})
	}
}

// TestHosted: what registries are published to, and their ledgers apart from the
// follower's and from each other.
func TestHosted(t *testing.T) {
	d := short(t)
	if all, err := d.AllHosted(); err != nil || len(all) > 0 {
		t.Errorf("in an empty state: %v, %v", all, err)
	}
	for _, name := range []string{"main", "acme", "lab"} {
		store, err := ledger.Create(d.HostedLedger(name), ledger.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if name != "main" { // its making did not come to an end
			if err := os.WriteFile(d.Hosted(name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if all, err := d.AllHosted(); err != nil || !slices.Equal(all, []string{"acme", "lab"}) || d.IsHosted("main") {
		t.Errorf("published to are %v, %v", all, err)
	}
	store, err := d.OpenHostedLedger(t.Context(), "acme", ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	answer(t, d.HostedSocket("acme", "ledger"), ledger.Serve(store))
	type known interface {
		Identity() string
		Close() error
	}
	for _, name := range []string{"acme", "lab"} {
		l, err := ReachHostedLedger(t.Context(), d, name, func(c *ledger.Client) known { return c },
			func() (known, error) { return ledger.Open(d.HostedLedger(name), ledger.Options{}) })
		if err != nil {
			t.Fatal(err)
		}
		if same := l.Identity() == store.Identity(); same != (name == "acme") {
			t.Errorf("%s is the ledger that is served: %v", name, same)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The registry's own keys lie in the state as they came, and stay where the
// registry is away or has them no more.
func TestRegistryKeys(t *testing.T) {
	d := Dir(t.TempDir())
	log := slog.New(slog.DiscardHandler)
	r := npmtest.New(t, "")
	r.Sign()
	up, _, err := d.OpenUpstream(r.URL, upstream.Options{Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := d.RegistryKeys(); err != nil || raw != nil {
		t.Errorf("before: %q, %v", raw, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	follow := d.FollowRegistryKeys(ctx, up, log)
	held := func(want []byte) {
		t.Helper()
		if raw, err := d.RegistryKeys(); err != nil || !bytes.Equal(raw, want) {
			t.Errorf("%q, %v, want %q", raw, err, want)
		}
	}
	first := r.Keys()
	held(first) // at once, the first time
	for _, answer := range []http.HandlerFunc{
		http.NotFound,
		func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) },
		func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
	} {
		r.Fault("/-/npm/v1/keys", func(w http.ResponseWriter, req *http.Request) bool { answer(w, req); return true })
		d.FetchRegistryKeys(ctx, up, log)
		held(first)
		r.Heal()
	}
	r.Sign()
	stop()
	follow() // ends with its context
	held(first)
	d.FetchRegistryKeys(t.Context(), up, log)
	held(r.Keys())
}
