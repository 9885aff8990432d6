package main

import (
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/follow"
)

// What to type next never installs nothing, and nothing that is missing.
func TestInstallLine(t *testing.T) {
	lacking := []missing{{Name: "express", Version: "99"}, {Name: "nowhere"}}
	for _, tt := range []struct {
		selection follow.Selection
		want      string
	}{
		{follow.Selection{}, "npm install NAME --registry=U"},
		{follow.Selection{Specs: []string{"express@99"}}, "npm install NAME --registry=U"},
		{follow.Selection{Specs: []string{"express@99", "leaf@>1", "nowhere"}}, "npm install 'leaf@>1' --registry=U"},
		{follow.Selection{Lists: []string{"names.txt"}}, "npm install --registry=U"},
		{follow.Selection{Specs: []string{"nowhere"}, Lockfiles: []string{"package-lock.json"}}, "npm ci --registry=U"},
	} {
		if got := installLine(tt.selection, lacking, "U"); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.selection, got, tt.want)
		}
	}
}
