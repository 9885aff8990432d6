package route

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "x", "./dir", "ftp://a/b", "http://", "https://h/?q=1", "https://h/#f", "http://%zz"} {
		if r, err := Parse(bad, nil); !errors.Is(err, ErrRoute) {
			t.Errorf("%q: %v, %v", bad, r, err)
		}
	}
	name, err := ipns.NameFromString("k51qzi5uqu5dhz34tt6lpzkh0fkjn7boo9acyw176bv6fkc3m7mcau60sq6pvf")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := Parse(filepath.Join(t.TempDir(), "not mounted"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Put(t.Context(), name, []byte("r")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("put where no directory is: %v", err)
	}
	if _, err := gone.Get(t.Context(), name); !errors.Is(err, ipfs.ErrNotFound) {
		t.Errorf("get where no directory is: %v", err)
	}
	secret, err := Parse("https://user:word@router.example/", nil)
	if err != nil || strings.Contains(secret.String(), "word") {
		t.Errorf("%v, %v", secret, err)
	}
}
