package mirror

import (
	"net/http"
	"net/netip"
	"strings"
)

// base is what the tarball URLs of an answer begin with: the address that the
// client itself used, so that every client accepts them. It says false where a
// header that says so is not usable.
func (m *Mirror) base(r *http.Request) (string, bool) {
	if m.o.PublicURL != "" {
		return strings.TrimSuffix(m.o.PublicURL, "/") + below(r), true
	}
	scheme, host, prefix := "http", r.Host, ""
	if r.TLS != nil {
		scheme = "https"
	}
	if m.isTrusted(r) {
		scheme = forwarded(r, "X-Forwarded-Proto", scheme)
		host = forwarded(r, "X-Forwarded-Host", host)
		prefix = strings.TrimRight(forwarded(r, "X-Forwarded-Prefix", ""), "/")
	}
	ok := (scheme == "http" || scheme == "https") &&
		host != "" && len(host) <= 255 && strings.Trim(host, hostBytes) == "" &&
		(prefix == "" || prefix[0] == '/' && len(prefix) <= 255 && strings.Trim(prefix, prefixBytes) == "")
	return scheme + "://" + host + prefix + below(r), ok
}

// notAddressed is what a client is told whose address cannot be known.
const notAddressed = "the Host header, or what a proxy says in its place, is no address"

const (
	hostBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"
	// prefixBytes are those of RFC 3986's pchar that need no escape in JSON nor a
	// second look.
	prefixBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~/@"
)

// isTrusted says whether the peer is one of Options.TrustedProxies.
func (m *Mirror) isTrusted(r *http.Request) bool {
	if len(m.o.TrustedProxies) == 0 {
		return false
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	for _, p := range m.o.TrustedProxies {
		if p.Contains(peer.Addr().Unmap().WithZone("")) {
			return true
		}
	}
	return false
}

// forwarded is the last value of a header in which each proxy may add its own:
// the peer is trusted, those before it are not. No value counts as otherwise.
func forwarded(r *http.Request, header, otherwise string) string {
	values := strings.Split(strings.Join(r.Header.Values(header), ","), ",")
	return orDefault(strings.TrimSpace(values[len(values)-1]), otherwise)
}
