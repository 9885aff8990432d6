package main

import (
	"errors"
	"net/netip"
	"strings"
)

const proxyUsage = "address or CIDR `range` of a proxy before this registry, whose X-Forwarded-Proto, -Host and -Prefix are believed; may be repeated"

// proxies is the flag --trusted-proxy.
type proxies []netip.Prefix

func (p *proxies) Set(text string) error {
	one, err := netip.ParsePrefix(text)
	if a, aErr := netip.ParseAddr(text); aErr == nil {
		one, err = a.WithZone("").Prefix(a.BitLen())
	}
	if err != nil {
		return errors.New("no address or range, as in 10.0.0.0/8 or 192.0.2.7")
	}
	*p = append(*p, one.Masked())
	return nil
}

func (p *proxies) String() string {
	var all []string
	for _, one := range *p {
		all = append(all, one.String())
	}
	return strings.Join(all, ",")
}

func (p *proxies) Type() string { return "range" }
