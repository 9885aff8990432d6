package index

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func namesOf(t testing.TB, entries []Entry) string {
	t.Helper()
	var names []string
	for _, e := range entries {
		names = append(names, string(e.Name))
	}
	return strings.Join(names, " ")
}

func TestQueries(t *testing.T) {
	ix := newIndexFor(t)
	if _, err := ix.Release(1); !errors.Is(err, ErrNoRelease) {
		t.Errorf("no release: %v", err)
	}
	if all := collect(t, ix.Log(t.Context())); len(all) != 0 {
		t.Errorf("log of nothing: %v", all)
	}
	r1 := mustApply(t, ix, put(t, "leaf", 0), put(t, "leafy", 1), put(t, "@s/leaf", 2), put(t, "@scope/twig", 3), put(t, "branch", 0))
	r2 := mustApply(t, ix, put(t, "leaf", 4), drop("branch"), put(t, "new", 0))
	r3 := mustApply(t, ix, put(t, "leaf", 0))

	if got := collect(t, ix.Log(t.Context())); len(got) != 3 || got[0].Root != r3.Root || got[2].Root != r1.Root {
		t.Errorf("log: %v", got)
	}
	for _, r := range []Release{r1, r2, r3} {
		if got, err := ix.Release(r.Number); err != nil || got.Root != r.Root {
			t.Errorf("release %d: %v, %v", r.Number, got, err)
		}
	}
	for prefix, want := range map[string]string{
		"": "@s/leaf @scope/twig leaf leafy new", "leaf": "leaf leafy", "@s": "@s/leaf @scope/twig", "@s/": "@s/leaf", "zz": "",
	} {
		if got := namesOf(t, collect(t, ix.Prefix(t.Context(), prefix))); got != want {
			t.Errorf("prefix %q: %s, want %s", prefix, got, want)
		}
	}
	for pattern, want := range map[string]string{
		"*": "leaf leafy new", "@*/*": "@s/leaf @scope/twig", "leaf*": "leaf leafy", "lea?": "leaf", "[ln]e*": "leaf leafy new",
		"@s/*": "@s/leaf", "leaf": "leaf", `\leaf`: "leaf", "*/leaf": "@s/leaf", "": "",
	} {
		if got := namesOf(t, collect(t, ix.Match(t.Context(), pattern))); got != want {
			t.Errorf("pattern %q: %s, want %s", pattern, got, want)
		}
	}
	n := 0
	for _, err := range ix.Match(t.Context(), "leaf[") {
		if n++; !errors.Is(err, path.ErrBadPattern) {
			t.Errorf("a bad pattern: %v", err)
		}
	}
	if n != 1 {
		t.Errorf("a bad pattern: %d items", n)
	}
	for number, want := range map[uint64]string{1: "new", 2: "leaf", 3: ""} {
		got := collect(t, ix.Since(t.Context(), number))
		if namesOf(t, got) != want {
			t.Errorf("since %d: %s, want %s", number, namesOf(t, got), want)
		}
		for _, e := range got {
			if known, err := ix.Entry(e.Name); err != nil || known != e {
				t.Errorf("since %d: %+v, not %+v", number, e, known)
			}
		}
	}
	for _, err := range ix.Since(t.Context(), 9) {
		if !errors.Is(err, ErrNoRelease) {
			t.Errorf("since a release that is none: %v", err)
		}
	}
	total, err := Count(ix.Entries(t.Context()))
	var bytes uint64
	for _, e := range collect(t, ix.Entries(t.Context())) {
		bytes += e.Tsize
	}
	if err != nil || total != (Totals{5, 1 + 2 + 3 + 4 + 1, bytes}) {
		t.Errorf("count: %+v, %v", total, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Count(ix.Entries(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("count: %v", err)
	}
	if _, err := Largest(ix.Match(t.Context(), "["), 1); !errors.Is(err, path.ErrBadPattern) {
		t.Errorf("largest: %v", err)
	}
}

func TestLargest(t *testing.T) {
	var all []Entry
	for i := range 1000 {
		all = append(all, Entry{Name: npm.Name(fmt.Sprintf("p%03d", i)), Tsize: uint64(i*7919%500 + i%2)})
	}
	entries := func(yield func(Entry, error) bool) {
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
	sorted := slices.SortedFunc(slices.Values(all), bySize)
	for _, n := range []int{-1, 0, 1, 7, 999, 1000, 5000} {
		got, err := Largest(entries, n)
		if want := sorted[:max(0, min(n, len(all)))]; err != nil || !slices.Equal(got, want) {
			t.Errorf("largest %d: %d entries, %v", n, len(got), err)
		}
	}
}

// TestReadEntry: an entry read from an old release is the one that was applied.
func TestReadEntry(t *testing.T) {
	ix := newIndexFor(t)
	apply := func(name string, revision int, page string) (Entry, Release) {
		e, blks := shownEntry(t, name, revision, page)
		e.Versions = 1
		r, changed, err := ix.Apply(t.Context(), Batch{Changes: []Change{{Entry: e}}, Blocks: blks, Now: epoch})
		if err != nil || !changed {
			t.Fatal(changed, err)
		}
		return e, r
	}
	for _, name := range []string{"p", "@s/p"} {
		for _, page := range []string{"", "a page"} {
			e, r := apply(name, 1, page)
			apply(name, 2, page)
			if got, err := ReadEntry(t.Context(), ix, r, e.Name); err != nil || got != e {
				t.Errorf("%+v, %v; want %+v", got, err, e)
			}
			if page == "" {
				continue
			}
			files, err := ReadPackage(t.Context(), ix, e.Gateway.CID)
			if err != nil || !files.Index.CID.Defined() || !files.Packument.CID.Defined() || !files.Install.CID.Defined() ||
				len(files.Tarballs) != 1 || files.Tarballs[0].Name != "x-1.0.0.tgz" {
				t.Errorf("%+v, %v", files, err)
			}
		}
	}
	r, err := ix.Head()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEntry(t.Context(), ix, r, "absent"); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
}

// A handler gives up by a panic, also in the midst of a list: nothing may stay open.
func TestWalksEndWithAPanic(t *testing.T) {
	ix := newIndexFor(t)
	mustApply(t, ix, put(t, "leaf", 0), put(t, "leafy", 1))
	for name, walk := range map[string]func(func()){
		"entries": func(f func()) {
			for range ix.Entries(t.Context()) {
				f()
			}
		},
		"prefix": func(f func()) {
			for range ix.Prefix(t.Context(), "l") {
				f()
			}
		},
		"log": func(f func()) {
			for range ix.Log(t.Context()) {
				f()
			}
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: it was empty", name)
				}
			}()
			walk(func() { panic(name) })
		}()
	}
	if err := ix.Close(); err != nil { // which panics where an iterator is open
		t.Error(err)
	}
}
