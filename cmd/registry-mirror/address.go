package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

var (
	// errNoAddress is returned for what names no registry.
	errNoAddress = errors.New("names no registry")
	// errDNSLink is returned where a domain's DNSLink cannot be had.
	errDNSLink = errors.New("no DNSLink")
	// errMoved is returned where a domain's DNSLink leads elsewhere than at first.
	errMoved = errors.New("its DNSLink leads to another registry than at first")
)

const (
	dnsTimeout = 10 * time.Second
	maxAddress = 4 << 10 // bytes of a file that holds one
)

// address is a registry's: an IPNS name or the CID of one release.
type address struct {
	name ipns.Name
	root cid.Cid
}

func (a address) String() string {
	if a.root.Defined() {
		return "/ipfs/" + a.root.String()
	}
	return "/ipns/" + a.name.String()
}

// dir is what its mirror's directory is called.
func (a address) dir() string { return a.String()[len("/ipns/"):] }

func (a address) options(o mirror.Options) mirror.Options {
	o.Name, o.Root = a.name, a.root
	return o
}

// parseAddress takes k51…, /ipns/k51… and ipns://k51…, and a CID only as
// /ipfs/bafy… or ipfs://bafy…: whoever means a frozen release says so.
func parseAddress(text string) (address, error) {
	short := strings.TrimSuffix(text, "/")
	for _, prefix := range []string{"/ipfs/", "ipfs://"} {
		if s, ok := strings.CutPrefix(short, prefix); ok {
			c, err := cid.Decode(s)
			if err != nil || c.Prefix().Version != 1 {
				return address{}, fmt.Errorf("%q %w: the CID of a release is of version 1, and begins with bafy", text, errNoAddress)
			}
			return address{root: c}, nil
		}
	}
	name, err := ipns.NameFromString(strings.TrimPrefix(strings.TrimPrefix(short, "ipns://"), "/ipns/"))
	if err != nil {
		return address{}, fmt.Errorf("%q is not an IPNS name: %w: %w", text, errNoAddress, err)
	}
	return address{name: name}, nil
}

// locate is parseAddress for what a person types: also a domain with a DNSLink,
// or a file whose first line is an address. What a domain led to is kept in
// table, which is kept then: the network need not be there the next time, and
// who takes the domain over moves nobody.
func locate(ctx context.Context, dir state.Dir, table *state.Table, text string, lookup func(context.Context, string) ([]string, error)) (a address, domain string, err error) {
	if a, err = parseAddress(text); err == nil {
		return a, "", nil
	}
	if line, ok, err := firstLine(text); err != nil {
		return a, "", err
	} else if ok {
		if a, err = parseAddress(line); err != nil {
			return a, "", fmt.Errorf("%s: %w", text, err)
		}
		return a, "", nil
	}
	if domain = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(text, "dnslink://"), "/ipns/"), ".")); !isDomain(domain) {
		return a, "", cli.Hint(cli.Usagef("%w", err), "copy the `name` that the registry's `up`, or its publisher's `status`, prints, which begins with k51; `publisher key list` shows yours")
	}
	first, known := table.Domains[domain]
	now, err := dnslink(ctx, domain, lookup)
	switch {
	case known && err != nil: // the network may be away
		a, err = parseAddress(first)
		return a, domain, err
	case err != nil:
		return a, "", err
	case known && now.String() != first:
		return a, "", fmt.Errorf("%s: %w: %s, at first %s", domain, errMoved, now, first)
	case !known:
		if table.Domains == nil {
			table.Domains = map[string]string{}
		}
		table.Domains[domain] = now.String()
		err = dir.SetTable(*table)
	}
	return now, domain, err
}

// firstLine reads an address from a file, if text is one.
func firstLine(text string) (line string, ok bool, err error) {
	info, err := os.Stat(text)
	if err != nil || !info.Mode().IsRegular() {
		return "", false, nil // then it is no file
	}
	f, err := os.Open(text)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxAddress))
	if err != nil {
		return "", false, err
	}
	line, _, _ = strings.Cut(string(raw), "\n")
	return strings.TrimSpace(line), true, nil
}

// isDomain says whether text may be one: at least two labels of RFC 1123.
func isDomain(text string) bool {
	labels := strings.Split(text, ".")
	return len(text) <= 253 && len(labels) > 1 && !slices.ContainsFunc(labels, func(l string) bool {
		return l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != ""
	})
}

// dnslink looks a domain's DNSLink up: the TXT record at _dnslink.DOMAIN that says
// dnslink=/ipns/… or /ipfs/… (https://dnslink.dev). It must be the only one.
func dnslink(ctx context.Context, domain string, lookup func(context.Context, string) ([]string, error)) (a address, err error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	if lookup == nil {
		lookup = net.DefaultResolver.LookupTXT
	}
	records, err := lookup(ctx, "_dnslink."+domain)
	if err != nil {
		return a, fmt.Errorf("%s: %w: %w", domain, errDNSLink, err)
	}
	var links []string
	for _, r := range records {
		if link, ok := strings.CutPrefix(r, "dnslink="); ok {
			links = append(links, link)
		}
	}
	if len(links) != 1 {
		return a, fmt.Errorf("%s: %w: it has %s, and one is taken", domain, errDNSLink, cli.Count(len(links), "link"))
	}
	if a, err = parseAddress(links[0]); err != nil {
		return a, fmt.Errorf("%s: %w: %w", domain, errDNSLink, err)
	}
	return a, nil
}
