package mirror

import (
	"net"
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

// Meant gives the address at which a client reaches this daemon, with no slash at its
// end; ok says that pages may be shown there. A site elsewhere may have its own name
// resolve to this machine, and its scripts would then read the pages as theirs (DNS
// rebinding). So the Host is localhost, or the very address that the connection came
// to; a trusted proxy answers for its own.
func (m *Mirror) Meant(r *http.Request) (base string, ok bool) {
	base, ok = m.base(r)
	return base, ok && (m.isTrusted(r) || isOwn(r))
}

// isOwn says whether a request's Host is this machine, whatever names resolve to.
func isOwn(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // RFC 6761 section 6.3
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if addr = addr.Unmap(); addr.IsLoopback() {
		return true
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return false
	}
	at, err := netip.ParseAddrPort(local.String())
	return err == nil && at.Addr().Unmap().WithZone("") == addr.WithZone("")
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
