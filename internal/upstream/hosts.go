package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// hosts knows which hosts may be asked, and which of them may have private
// addresses. Hosts are "host:port", in lower case.
type hosts struct {
	public       string          // npm's public registry
	configured   map[string]bool // of registries in the configuration: the operator's own choice
	further      map[string]bool
	anyPort      map[string]bool // of further ones given without a port
	allowPrivate bool
	proxies      *sync.Map // proxies from the environment, which are the operator's choice too
	lookup       func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

func newHosts(o Options) hosts {
	h := hosts{configured: map[string]bool{}, further: map[string]bool{}, anyPort: map[string]bool{},
		allowPrivate: o.AllowPrivate, proxies: &sync.Map{},
		lookup: func(ctx context.Context, network, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, network, host)
		}}
	h.public = hostOf(npm.DefaultRegistry())
	registries := []string{o.Registry.RegistryFor("")}
	for _, r := range o.Registry.Scopes {
		registries = append(registries, r)
	}
	for _, r := range registries {
		h.configured[hostOf(r)] = true
	}
	for _, f := range o.Hosts {
		if _, _, err := net.SplitHostPort(f); err == nil {
			h.further[strings.ToLower(f)] = true
		} else {
			h.anyPort[strings.ToLower(f)] = true
		}
	}
	return h
}

func hostOf(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	return hostPort(u)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return strings.ToLower(net.JoinHostPort(u.Hostname(), port))
}

// tarballURL returns where to fetch a tarball from that the registry says is
// at raw: npm's public host stands for the registry itself, path and all, as
// in npm's clients (replace-registry-host); the registry's own host keeps its
// path and takes the registry's scheme; other hosts must be listed. A path that
// climbs is refused.
func (h hosts) tarballURL(registry, raw string) (string, error) {
	u, err := parse(raw)
	if err != nil {
		return "", err
	}
	if climbs(u) {
		return "", fmt.Errorf("%w: the path of %.200q leads elsewhere", ErrRefused, raw)
	}
	r, err := parse(registry)
	if err != nil {
		return "", err
	}
	// A public host that says http, as oldest documents do, is the same host.
	public := hostPort(u) == h.public || strings.EqualFold(u.Host, strings.TrimSuffix(h.public, ":443"))
	switch {
	case public:
		v := *r
		v.Path, v.RawPath = "", ""
		out := v.String() + strings.TrimRight(r.EscapedPath(), "/") + u.EscapedPath()
		if u.RawQuery != "" {
			out += "?" + u.RawQuery
		}
		return out, nil
	case strings.EqualFold(u.Host, r.Host), hostPort(u) == hostPort(r):
		u.Scheme, u.Host, u.Fragment = r.Scheme, r.Host, ""
		return u.String(), nil
	case h.isFurther(u):
		u.Fragment = ""
		return u.String(), nil
	}
	return "", fmt.Errorf("%w: the tarball is on %s, which is not the registry's host", ErrRefused, u.Host)
}

// climbs reports whether a path has a segment "." or "..", percent-encoded or
// not. A server may resolve it to a place outside of the registry's path, while
// credentials are chosen by the path as it is written.
func climbs(u *url.URL) bool {
	for segment := range strings.FieldsFuncSeq(u.Path, func(c rune) bool { return c == '/' || c == '\\' }) {
		segment, _, _ = strings.Cut(segment, ";") // path parameters: Java's servers cut them off
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

func (h hosts) isFurther(u *url.URL) bool {
	return h.further[hostPort(u)] || h.anyPort[strings.ToLower(u.Hostname())]
}

// limited names the host that a request to u counts for. All ports of a host
// that was given without one are the same.
func (h hosts) limited(u *url.URL) string {
	if name := strings.ToLower(u.Hostname()); h.anyPort[name] {
		return name
	}
	return hostPort(u)
}

// listed reports whether a request that began at from may go on to to.
func (h hosts) listed(from, to *url.URL) bool {
	if to.User != nil || to.Scheme != "https" && to.Scheme != "http" {
		return false
	}
	sameButScheme := strings.EqualFold(from.Host, to.Host) // http to https
	return sameButScheme || hostPort(from) == hostPort(to) || h.isFurther(to)
}

// transport returns a transport that dials private addresses only for hosts
// that may have them, and has at most connections to each. It is made from
// http.DefaultTransport as it is now.
func (h hosts) transport(connections int) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxConnsPerHost = connections
	t.MaxIdleConnsPerHost = connections
	t.MaxIdleConns = 2 * connections
	t.ResponseHeaderTimeout = 60 * time.Second
	t.MaxResponseHeaderBytes = 256 << 10
	if proxy := t.Proxy; proxy != nil {
		t.Proxy = func(req *http.Request) (*url.URL, error) {
			u, err := proxy(req)
			if err == nil && u != nil {
				h.proxies.Store(hostPort(u), true)
			}
			return u, err
		}
	}
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if h.mayBePrivate(addr) {
			return dial(ctx, network, addr)
		}
		return dialPublic(ctx, network, addr, h.lookup, dial)
	}
	return t
}

func (h hosts) mayBePrivate(addr string) bool {
	addr = strings.ToLower(addr)
	if _, ok := h.proxies.Load(addr); ok || h.allowPrivate || h.configured[addr] {
		return true
	}
	// The registry with the other scheme's port: an http URL that was redirected to https.
	host, port, err := net.SplitHostPort(addr)
	return err == nil && port == "443" && h.configured[net.JoinHostPort(host, "80")]
}

// dialPublic looks addr's host up, once, refuses it where any of its addresses
// is not public, and dials the very addresses that it looked at, so that a
// second answer of the name server cannot differ. Spellings of an address that
// only some resolvers know ("0x7f.1", "2130706433") are names here like others:
// what they resolve to is looked at.
func dialPublic(ctx context.Context, network, addr string, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error),
	dial func(ctx context.Context, network, addr string) (net.Conn, error)) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, err := lookup(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for _, ip := range ips {
		if !isPublic(ip) {
			return nil, fmt.Errorf("%w: %s is at the private address %s", ErrRefused, host, ip)
		}
	}
	var errs []error
	for _, ip := range ips {
		conn, err := dial(ctx, network, net.JoinHostPort(ip.Unmap().String(), port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// special are the address blocks beside those netip knows that are not on the
// public internet or lead to some that are not (IANA's special-purpose
// registries). Of IPv6 only global is on it at all, but for nat64, of which the
// address behind it counts.
var (
	special = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
	global = netip.MustParsePrefix("2000::/3")
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
)

func prefixes(all ...string) (blocks []netip.Prefix) {
	for _, s := range all {
		blocks = append(blocks, netip.MustParsePrefix(s))
	}
	return blocks
}

func isPublic(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.Is6() && !global.Contains(ip) {
		return false // IsGlobalUnicast excludes loopback, link-local, multicast and unspecified
	}
	for _, block := range special {
		if block.Contains(ip) {
			return false
		}
	}
	return true
}

var (
	errSlow    = errors.New("the transfer stalled or took too long")
	errTimeout = errors.New("the call took too long")
)

// watch is a reader that calls stalled when stallBytes have not come within
// stallTime, or all within maxAttempt of its making. What pace makes it wait is
// not counted.
type watch struct {
	r          io.Reader
	cause      func() error      // why the reader's context ended, if it did
	pace       func(n int) error // waits until n bytes more may have come; nil does not
	timer      *time.Timer       // fires at the earlier of the two
	stall, end time.Time
	since      int
}

func newWatch(stalled func()) *watch {
	// The first wait also covers the connection and the header.
	w := &watch{stall: time.Now().Add(4 * stallTime), end: time.Now().Add(maxAttempt)}
	w.timer = time.AfterFunc(4*stallTime, stalled)
	return w
}

func (w *watch) stop() { w.timer.Stop() }

func (w *watch) rearm() {
	until := w.stall
	if w.end.Before(until) {
		until = w.end
	}
	w.timer.Reset(time.Until(until))
}

func (w *watch) Read(p []byte) (int, error) {
	if w.since == 0 {
		w.stall = time.Now().Add(stallTime)
		w.rearm()
	}
	if w.pace != nil && len(p) > maxBurst {
		p = p[:maxBurst]
	}
	n, err := w.r.Read(p)
	if w.pace != nil && n > 0 {
		w.timer.Stop()
		began := time.Now()
		if paced := w.pace(n); paced != nil && (err == nil || err == io.EOF) {
			err = paced
		}
		waited := time.Since(began)
		w.stall, w.end = w.stall.Add(waited), w.end.Add(waited)
		w.rearm()
	}
	if w.since += n; w.since >= stallBytes {
		w.since = 0
	}
	if err != nil && err != io.EOF {
		if cause := w.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}
