package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/clients"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// says fails where the only thing wrong is not what is wanted, or is not said what to do about.
func says(t *testing.T, all findings, check, part string) {
	t.Helper()
	var bad findings
	for _, one := range all {
		if one.Verdict == wrong {
			bad = append(bad, one)
		}
	}
	if check == "" {
		if len(bad) > 0 {
			t.Errorf("nothing is wrong, and it says %+v", bad)
		}
		return
	}
	if len(bad) != 1 || bad[0].Check != check || !strings.Contains(bad[0].What, part) || bad[0].Do == "" {
		t.Errorf("it says %+v, want %s: %s", bad, check, part)
	}
}

func TestJudge(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		change      func(*mirror.RegistryStatus)
		check, part string
	}{
		"well":                {func(*mirror.RegistryStatus) {}, "", ""},
		"no peers":            {func(r *mirror.RegistryStatus) { r.Node.Peers = 0 }, "peers", "no peer is connected"},
		"no peers, a gateway": {func(r *mirror.RegistryStatus) { r.Node.Peers, r.Gateways = 0, 1 }, "", ""},
		"no peers, offline":   {func(r *mirror.RegistryStatus) { r.Node.Peers, r.Offline = 0, true }, "", ""},
		"no peers of up":      {func(r *mirror.RegistryStatus) { r.Node.Peers, r.Origin = 0, true }, "", ""},
		"node away":           {func(r *mirror.RegistryStatus) { r.Node = nil }, "node", "does not answer"},
		"gateways alone":      {func(r *mirror.RegistryStatus) { r.Node, r.Gateways = nil, 1 }, "", ""},
		"name not found":      {func(r *mirror.RegistryStatus) { r.Release, r.Error = mirror.Release{}, "no record" }, "name", "nobody reachable has a record of it: no record"},
		"record expired":      {func(r *mirror.RegistryStatus) { r.Release, r.Expired = mirror.Release{}, true }, "list", "has expired"},
		"offline, no list":    {func(r *mirror.RegistryStatus) { r.Release, r.Offline = mirror.Release{}, true }, "list", "it is offline"},
		"stale":               {func(r *mirror.RegistryStatus) { r.Stale, r.Record.EOL = true, now.Add(-49*time.Hour) }, "stale", "expired 49h0m0s ago"},
		"too old":             {func(r *mirror.RegistryStatus) { r.Stale, r.TooOld = true, true }, "stale", "nothing is served"},
		"sync fails":          {func(r *mirror.RegistryStatus) { r.Error = "no route" }, "sync", "no route"},
		"clock behind":        {func(r *mirror.RegistryStatus) { r.Release.Created = now.Add(time.Hour) }, "clock", "1h0m0s from now"},
		"equivocation":        {func(r *mirror.RegistryStatus) { r.Equivocations = 1 }, "refused", "1 record that contradict"},
		"integrity":           {func(r *mirror.RegistryStatus) { r.IntegrityFailures = 2 }, "integrity", "2 tarballs"},
		"unavailable":         {func(r *mirror.RegistryStatus) { r.Unavailable = 2 }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := mirror.RegistryStatus{Status: mirror.Status{
				Name: "k51name", Node: &ipfs.Info{Peers: 3, Network: ipfs.Public}, Record: mirror.Record{EOL: now.Add(time.Hour)},
				Release: mirror.Release{Number: 7, Packages: 2, Created: now.Add(-time.Hour)},
			}}
			c.change(&r)
			var all findings
			judge(&all, mirror.TableStatus{Registries: []mirror.RegistryStatus{r}}, now)
			if len(all) == 0 {
				t.Error("nothing is said")
			}
			says(t, all, c.check, c.part)
		})
	}
}

func TestJudgeDisk(t *testing.T) {
	for free, part := range map[uint64]string{10 << 20: "it is full: 10 MiB", 700 << 20: "little is left: 700 MiB"} {
		var all findings
		judgeDisk(&all, "s", free)
		says(t, all, "disk", part)
	}
	var all findings
	judgeDisk(&all, "s", 20<<30)
	says(t, all, "", "")
}

// Somebody who is asked anyway says what the time is.
func TestClock(t *testing.T) {
	for _, c := range []struct {
		off  time.Duration
		part string
	}{{0, ""}, {-3 * time.Hour, "ahead of"}, {3 * time.Hour, "behind"}} {
		gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(c.off).UTC().Format(http.TimeFormat))
		}))
		defer gateway.Close()
		dir := state.Dir(t.TempDir())
		if err := dir.SetTable(state.Table{Rows: []state.Row{{Label: "a", Address: "/ipns/k51", Gateways: []string{gateway.URL}}}}); err != nil {
			t.Fatal(err)
		}
		var all findings
		lookAtClock(t.Context(), &all, dir, "http://127.0.0.1:1", clients.Place{Home: t.TempDir(), Getenv: os.Getenv})
		check := "clock"
		if c.part == "" {
			check = ""
			if len(all) != 1 || all[0].Verdict != fine {
				t.Errorf("%+v", all)
			}
		}
		says(t, all, check, c.part)
	}
}

func TestKuboAway(t *testing.T) {
	dir := state.Dir(t.TempDir())
	var all findings
	lookAtKubo(t.Context(), &all, dir)
	if all != nil {
		t.Errorf("a state without a node: %+v", all)
	}
	if _, err := dir.ChooseNode("kubo", "/ip4/127.0.0.1/tcp/1"); err != nil {
		t.Fatal(err)
	}
	lookAtKubo(t.Context(), &all, dir)
	says(t, all, "node", "is away")
}
