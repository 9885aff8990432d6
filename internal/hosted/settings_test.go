package hosted

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registries", "acme", "hosted.json")
	now := time.Date(2026, 11, 26, 12, 0, 0, 500, time.UTC)
	if _, err := Open(path); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("without a file: %v", err)
	}
	if _, _, err := NewToken(path, now); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("a token of no registry: %v", err)
	}
	token, err := Create(path, []string{"@lab", "@acme", "@lab"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(token) < 40 || !strings.HasPrefix(token, tokenPrefix) {
		t.Errorf("token %q", token)
	}
	raw, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(raw), token) || strings.Contains(string(raw), strings.TrimPrefix(token, tokenPrefix)) {
		t.Errorf("the token is in the file: %s, %v", raw, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Create(path, []string{"@other"}, now); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	s, err := Open(path)
	if err != nil || !slices.Equal(s.Scopes, []string{"@acme", "@lab"}) || len(s.Tokens) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, ok := s.Holder(token); !ok {
		t.Error("its own token is not known")
	}
	for _, wrong := range []string{"", token + "x", token[:len(token)-1], s.Tokens[0].SHA256, tokenPrefix} {
		if _, ok := s.Holder(wrong); ok {
			t.Errorf("%q is a token", wrong)
		}
	}
	if !s.Takes("@acme/x") || s.Takes("acme") || s.Takes("@acme2/x") || s.Takes("@Acme/x") {
		t.Error("scopes")
	}

	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, _, err := NewToken(path, now); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if s, err = Open(path); err != nil || len(s.Tokens) != 5 {
		t.Fatalf("%d tokens, %v", len(s.Tokens), err)
	}
	if err := RevokeToken(path, s.Tokens[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := RevokeToken(path, s.Tokens[0].ID); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoked twice: %v", err)
	}
	if s, err = Open(path); err != nil || len(s.Tokens) != 4 {
		t.Fatalf("%d tokens, %v", len(s.Tokens), err)
	}
	if _, ok := s.Holder(token); ok {
		t.Error("a revoked token is known")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if err != nil || len(left) != 2 { // with the lock
		t.Errorf("files %v, %v", left, err)
	}
}

func TestScopes(t *testing.T) {
	for _, bad := range []string{"", "acme", "@", "@Acme", "@acme/x", "@a/../b", "@.a", "@_a", "@ä", "@a b", "@" + strings.Repeat("a", 300)} {
		if _, err := ParseScope(bad); !errors.Is(err, ErrScope) {
			t.Errorf("%q: %v, want ErrScope", bad, err)
		}
	}
	path := filepath.Join(t.TempDir(), "hosted.json")
	for _, bad := range [][]string{nil, {"@acme", "acme"}} {
		if _, err := Create(path, bad, time.Now()); !errors.Is(err, ErrScope) {
			t.Errorf("%q: %v, want ErrScope", bad, err)
		}
	}
}

func TestDamagedSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosted.json")
	if _, err := Create(path, []string{"@acme"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	good, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(*Settings){
		"format":   func(s *Settings) { s.Format = 2 },
		"no scope": func(s *Settings) { s.Scopes = nil },
		"scope":    func(s *Settings) { s.Scopes = []string{"acme"} },
		"token":    func(s *Settings) { s.Tokens[0].SHA256 = "00" },
		"no id":    func(s *Settings) { s.Tokens[0].ID = "" },
	} {
		s := good
		s.Tokens = slices.Clone(good.Tokens)
		damage(&s)
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range [][]byte{raw, raw[:len(raw)/2], []byte(`{"format":1,"scopes":["@acme"],"admin":true}`)} {
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v, want ErrCorrupt", name, err)
			}
		}
	}
}
