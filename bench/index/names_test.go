//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// The figures mean something only for names that are spread as npm's are.
func TestNamesAreLikeNpms(t *testing.T) {
	const n = 50_000
	g, again := newNamer(n), newNamer(2*n)
	seen, hashes := map[string]bool{}, map[uint64]bool{}
	scopes := map[string]int{}
	length, scoped, largest := 0, 0, 0
	for range n {
		raw, err := g.next()
		if err != nil {
			t.Fatal(err)
		}
		s := string(raw)
		if other, err := again.next(); err != nil || string(other) != s {
			t.Fatalf("%q, and %q in a longer list (%v)", s, other, err)
		}
		if seen[s] {
			t.Fatalf("%q came twice", s)
		}
		seen[s] = true
		length += len(s)
		if scope := npm.Name(s).Scope(); scope != "" {
			scoped++
			scopes[scope]++
			largest = max(largest, scopes[scope])
		} else if h := unixfs.Hash(s); hashes[h] {
			t.Fatalf("%q has another's hash", s)
		} else {
			hashes[h] = true
		}
	}
	for _, x := range []struct {
		what     string
		got      float64
		min, max float64
	}{
		{"mean length", float64(length) / n, 18, 22},
		{"share of scoped names", float64(scoped) / n, 0.48, 0.56},
		{"names a scope", float64(scoped) / float64(len(scopes)), 5, 10},
		{"share of the largest scope", float64(largest) / n, 0.01, 0.06},
	} {
		t.Logf("%s: %.3f", x.what, x.got)
		if x.got < x.min || x.got > x.max {
			t.Errorf("%s is %.3f, not within %v and %v", x.what, x.got, x.min, x.max)
		}
	}
	if strings.Contains(strings.Join(g.scopes, ""), "/") {
		t.Error("a scope has a slash")
	}
}
