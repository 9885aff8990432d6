package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
)

// What goes wrong, and what others see, is a line each, however its error is made up.
func TestPrintOne(t *testing.T) {
	for _, tt := range []struct {
		status mirror.Status
		line   string
	}{
		{mirror.Status{Error: "one\ntwo"}, "problem   one; two"},
		{mirror.Status{Error: "old", Expired: true, Node: &ipfs.Info{}}, "hint      on a network that is cut off, `daemon --accept-stale`"},
		{mirror.Status{IntegrityFailures: 2}, "withheld  2 tarballs: "},
		{mirror.Status{Unavailable: 1, LastUnavailable: "/a: gone"}, "lacking   1 request that no source could answer; the last: /a: gone"},
		{mirror.Status{Node: &ipfs.Info{Network: ipfs.Local}}, "network   local: nobody"},
		{mirror.Status{Node: &ipfs.Info{Network: ipfs.Local, Share: true}}, "network   local: nobody but this machine, so that what is shared reaches nobody else"},
		{mirror.Status{Node: &ipfs.Info{Network: ipfs.LAN}}, "network   lan: whoever"},
		{mirror.Status{Node: &ipfs.Info{Network: ipfs.Public}}, "network   public, not shared: nothing"},
		{mirror.Status{Node: &ipfs.Info{Network: ipfs.Public, Share: true}}, "network   public, shared: everybody"},
		{mirror.Status{Node: &ipfs.Info{}}, ""}, // a daemon's, which does not say
	} {
		var out bytes.Buffer
		if err := printOne(&out, tt.status); err != nil {
			t.Fatal(err)
		}
		if tt.line == "" && strings.Contains(out.String(), "network") || !strings.Contains("\n"+out.String(), "\n"+tt.line) {
			t.Errorf("%q is not in\n%s", tt.line, &out)
		}
	}
}
