//go:build linux

package main

import (
	"bytes"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// The figures mean something only for a document that is as large as npm's
// largest, as hard to compress, and good.
func TestPackumentIsLikeNpms(t *testing.T) {
	const n = 1000
	raw := upstreamPackument(n)
	if !bytes.Equal(raw, upstreamPackument(n)) {
		t.Fatal("it is another one each time")
	}
	p, err := npm.ParsePackument(raw)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != packumentName || len(p.Versions) != n || len(p.Bad) > 0 || len(p.Time) != n+2 {
		t.Fatalf("%s has %d versions, %d bad ones and %d times", p.Name, len(p.Versions), len(p.Bad), len(p.Time))
	}
	if p.Versions[p.DistTags["latest"]] == nil || p.Versions[packumentVersion(withheldVersion%n)] == nil {
		t.Error("a version that is named is not there")
	}
	for _, x := range []struct {
		what     string
		got      float64
		min, max float64
	}{
		{"bytes a version", float64(len(raw)) / n, 2800, 4200},
		{"times smaller when compressed", float64(len(raw)) / float64(len(document.Encode(raw).Bytes())), 6, 12},
	} {
		t.Logf("%s: %.1f", x.what, x.got)
		if x.got < x.min || x.got > x.max {
			t.Errorf("%s: %.1f, not within %v and %v", x.what, x.got, x.min, x.max)
		}
	}
}
