package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

const (
	someName  = "k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8"
	otherName = "k51qzi5uqu5dhz34tt6lpzkh0fkjn7boo9acyw176bv6fkc3m7mcau60sq6pvf"
	someRoot  = "bafybeidoe32j6sjkvpmkdqmzeqtc7noifqefbjzjo3lcgngx4zepudyvum"
)

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{
		someName:                         "/ipns/" + someName,
		"/ipns/" + someName:              "/ipns/" + someName,
		"ipns://" + someName:             "/ipns/" + someName,
		"/ipns/" + someName + "/":        "/ipns/" + someName,
		"/ipfs/" + someRoot:              "/ipfs/" + someRoot,
		"ipfs://" + someRoot:             "/ipfs/" + someRoot,
		someRoot:                         "", // who means a frozen release says so
		"/ipfs/" + someRoot + "/express": "",
		"/ipfs/QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn": "",
		"":            "",
		"../../etc":   "",
		"npm.example": "",
	} {
		a, err := parseAddress(text)
		switch {
		case want == "" && !errors.Is(err, errNoAddress):
			t.Errorf("%q: %v", text, err)
		case want != "" && (err != nil || a.String() != want || a.dir() != want[len("/ipns/"):]):
			t.Errorf("%q: %s, %v, want %s", text, a, err, want)
		}
	}
}

// A domain leads where it led when it was first looked up, with and without a
// network; and one that leads elsewhere now is refused.
func TestDNSLink(t *testing.T) {
	dir := state.Dir(t.TempDir())
	link := "dnslink=/ipns/" + someName
	var away error
	lookup := func(_ context.Context, name string) ([]string, error) {
		if name != "_dnslink.npm.example.org" {
			return nil, &net.DNSError{IsNotFound: true, Name: name}
		}
		return []string{"v=spf1", link}, away
	}
	ask := func(text string) (string, string, error) {
		t.Helper()
		table, err := dir.Table()
		if err != nil {
			t.Fatal(err)
		}
		a, domain, err := locate(t.Context(), dir, &table, text, lookup)
		if err != nil {
			return "", domain, err
		}
		return a.String(), domain, nil
	}
	away = errors.New("no network")
	if _, _, err := ask("npm.example.org"); !errors.Is(err, errDNSLink) {
		t.Errorf("never looked up, and the network is away: %v", err)
	}
	away = nil
	for _, text := range []string{"npm.example.org", "NPM.example.org.", "dnslink://npm.example.org", "/ipns/npm.example.org"} {
		if got, domain, err := ask(text); got != "/ipns/"+someName || domain != "npm.example.org" || err != nil {
			t.Errorf("%s: %s of %s, %v", text, got, domain, err)
		}
	}
	away = errors.New("no network")
	if got, _, err := ask("npm.example.org"); got != "/ipns/"+someName || err != nil {
		t.Errorf("the network is away: %s, %v", got, err)
	}
	away, link = nil, "dnslink=/ipns/"+otherName
	if _, _, err := ask("npm.example.org"); !errors.Is(err, errMoved) || !strings.Contains(err.Error(), otherName) {
		t.Errorf("moved: %v", err)
	}
	for _, link = range []string{"dnslink=/ipns/other.example.org", "dnslink=", "dnslink=/ipns/" + someName + "/x"} {
		dir = state.Dir(t.TempDir())
		if _, _, err := ask("npm.example.org"); !errors.Is(err, errDNSLink) {
			t.Errorf("%s: %v", link, err)
		}
	}
	if _, _, err := ask("no-link.example.org"); !errors.Is(err, errDNSLink) {
		t.Errorf("no record: %v", err)
	}
	for _, text := range []string{"localhost", "a..b", "-a.b", "a_b.c", strings.Repeat("a.", 200) + "b", "a/b.c"} {
		if _, _, err := ask(text); !errors.Is(err, cli.ErrUsage) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTwoLinks(t *testing.T) {
	both := func(context.Context, string) ([]string, error) {
		return []string{"dnslink=/ipns/" + someName, "dnslink=/ipns/" + otherName}, nil
	}
	if _, err := dnslink(t.Context(), "npm.example.org", both); !errors.Is(err, errDNSLink) {
		t.Errorf("got %v", err)
	}
}

func TestAddressInFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "registry.txt")
	for content, want := range map[string]string{
		someName:                               "/ipns/" + someName,
		"/ipfs/" + someRoot + "\r\n# a note\n": "/ipfs/" + someRoot,
		"":                                     "",
		"other.txt":                            "",
		strings.Repeat("x", 1<<20):             "",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		a, _, err := locate(t.Context(), state.Dir(dir), &state.Table{}, file, nil)
		if want == "" && !errors.Is(err, errNoAddress) || want != "" && (err != nil || a.String() != want) {
			t.Errorf("%.40q: %v, %v", content, a, err)
		}
	}
}
