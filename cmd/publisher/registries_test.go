package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// An error that does not pass comes before one that may, then the higher code.
func TestWorst(t *testing.T) {
	type end struct {
		code    int
		lasting bool
	}
	for _, test := range []struct {
		ends []end
		want int
	}{
		{nil, 0},
		{[]end{{cli.CodeAway, false}, {codeUnconfirmed, false}}, cli.CodeAway},
		{[]end{{codeNewer, true}, {cli.CodeLocked, false}}, codeNewer},
		{[]end{{cli.CodeLocked, false}, {cli.CodeFailed, true}}, cli.CodeFailed},
		{[]end{{cli.CodeFailed, true}, {codeNoSequence, true}, {codeNewer, true}}, codeNewer},
	} {
		var w worst
		for _, e := range test.ends {
			w.add(e.code, e.lasting)
		}
		if w.code != test.want || (w.err() == nil) != (test.want == 0) {
			t.Errorf("%v: %d, want %d", test.ends, w.code, test.want)
		}
	}
}

// A schedule counts from the last success, and nine tenths of it are enough.
func TestDue(t *testing.T) {
	r := &registry{Common: &cli.Common{State: t.TempDir()}, name: "acme", every: time.Hour}
	due := func(r registry) bool {
		t.Helper()
		at, err := r.due()
		if err != nil {
			t.Fatal(err)
		}
		return !time.Now().Before(at)
	}
	if !due(*r) {
		t.Error("never published, and not due")
	}
	if err := os.MkdirAll(filepath.Dir(state.Dir(r.State).Ran(r.name)), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		ago  time.Duration
		want bool
	}{{0, false}, {50 * time.Minute, false}, {55 * time.Minute, true}, {100 * time.Hour, true}, {-10 * time.Hour, true}} {
		if err := r.ran(time.Now().Add(-test.ago)); err != nil {
			t.Fatal(err)
		}
		if due(*r) != test.want {
			t.Errorf("published %s ago: due %v", test.ago, !test.want)
		}
		often := *r
		if often.every = 0; !due(often) {
			t.Errorf("published %s ago, without a schedule: not due", test.ago)
		}
	}
}
