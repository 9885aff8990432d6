package ledger

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Random batches, compared after each with a plain model, over reopenings.
func TestRandomBatches(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := vfs.NewMem()
	s, err := Create("/ledger", testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	model := make(map[npm.Name]map[string]bool)
	for i := range 300 {
		var b Batch
		for range 1 + rng.IntN(4) {
			name := npm.Name(fmt.Sprintf("p%d", rng.IntN(12)))
			if rng.IntN(10) == 0 {
				b.Packages = append(b.Packages, PackageUpdate{Name: name, Deleted: true})
				if model[name] != nil {
					model[name] = map[string]bool{}
				}
				continue
			}
			u := testUpdate(name, fmt.Sprint(rng.IntN(50)))
			if model[name] == nil {
				model[name] = make(map[string]bool)
			}
			for range rng.IntN(3) {
				v := fmt.Sprintf("1.%d.0", rng.IntN(8))
				u.Drop = append(u.Drop, v)
				delete(model[name], v)
			}
			for range rng.IntN(4) {
				v := fmt.Sprintf("1.%d.0", rng.IntN(8))
				u.Versions = append(u.Versions, testVersion(name, v))
				model[name][v] = true
			}
			b.Packages = append(b.Packages, u)
		}
		commit(t, s, b)
		if i%20 == 0 {
			s.Close()
			if s, err = Open("/ledger", testOptions(fs)); err != nil {
				t.Fatal(err)
			}
		}
		check(t, s)
	}
	for name, versions := range model {
		var want []string
		for v := range versions {
			want = append(want, v)
		}
		slices.Sort(want)
		if got := held(t, s, name); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func FuzzDecodeRows(f *testing.F) {
	f.Add(storedVersion{Version: testVersion("a", "1.0.0"), Dropped: true}.encode())
	f.Add(encodePackage(Package{Name: "a", Seq: 3, Document: Document{CID: testCID("d")}}))
	f.Fuzz(func(t *testing.T, row []byte) {
		if v, err := decodeVersion("1.0.0", row); err == nil {
			if again, err := decodeVersion("1.0.0", v.encode()); err != nil || again != v {
				t.Errorf("%+v came back as %+v, %v", v, again, err)
			}
		}
		if p, err := decodePackage("a", row); err == nil {
			if again, err := decodePackage("a", encodePackage(p)); err != nil || !reflect.DeepEqual(again, p) {
				t.Errorf("%+v came back as %+v, %v", p, again, err)
			}
		}
		if term, rest, err := readTerm(row); err == nil {
			if got := string(appendTerm(nil, term)) + string(rest); got != string(row) {
				t.Errorf("%q came back as %q", row, got)
			}
		}
	})
}
