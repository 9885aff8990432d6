package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

func TestTarballURL(t *testing.T) {
	h := newHosts(Options{Hosts: []string{"cdn.example.test", "blob.example.test:8443"}})
	public := npm.DefaultRegistry()
	for _, c := range []struct{ registry, raw, want string }{
		{public, public + "/n/-/n-1.tgz", public + "/n/-/n-1.tgz"},
		{public, strings.Replace(public, "https:", "http:", 1) + "/n/-/n-1.tgz", public + "/n/-/n-1.tgz"},
		{"https://r.example.test/npm", public + "/@s/n/-/n-1%2Bb.tgz", "https://r.example.test/npm/@s/n/-/n-1%2Bb.tgz"},
		{"https://r.example.test/a%2fb/", public + "/n/-/n-1.tgz?x=1#y", "https://r.example.test/a%2fb/n/-/n-1.tgz?x=1"},
		{"https://r.example.test/npm", "https://r.example.test/other/n-1.tgz#x", "https://r.example.test/other/n-1.tgz"},
		{"https://r.example.test", "http://R.example.test/n-1.tgz", "https://r.example.test/n-1.tgz"},
		{"https://r.example.test", "https://r.example.test:443/n-1.tgz", "https://r.example.test/n-1.tgz"},
		{"https://r.example.test", "https://cdn.example.test/n-1.tgz", "https://cdn.example.test/n-1.tgz"},
		{"https://r.example.test", "https://cdn.example.test:99/n-1.tgz", "https://cdn.example.test:99/n-1.tgz"},
		{"https://r.example.test", "https://blob.example.test:8443/n-1.tgz", "https://blob.example.test:8443/n-1.tgz"},
		{"https://r.example.test", "https://blob.example.test/n-1.tgz", ""},
		{"https://r.example.test", "https://r.example.test:444/n-1.tgz", ""},
		{"https://r.example.test", "http://r.example.test:22/n-1.tgz", ""},
		{"https://r.example.test", "https://evil.r.example.test/n-1.tgz", ""},
		{"https://r.example.test", "https://r.example.test.evil.example/n-1.tgz", ""},
		{"https://r.example.test", "https://r.example.test@evil.example/n-1.tgz", ""},
		{"https://r.example.test", "https://u@r.example.test/n-1.tgz", ""},
		{"https://r.example.test", "http://169.254.169.254/latest/meta-data", ""},
		{"https://r.example.test", "http://2130706433/", ""},
		{"https://r.example.test", "http://0x7f.1/", ""},
		{"https://r.example.test", "http://[::ffff:127.0.0.1]/", ""},
		{"https://r.example.test", "gopher://r.example.test/", ""},
		{"https://r.example.test", "//r.example.test/x", ""},
		{"https://r.example.test", "", ""},
		{"https://r.example.test", "https://", ""},
		{"https://r.example.test", "https://r.example.test\\@evil.example/", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/../admin/n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/%2e%2e/admin/n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/.%2E/admin/n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/x%2f..%2f..%2fadmin/n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/..%5cadmin/n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/..;x/admin/n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/./n-1.tgz", ""},
		{"https://r.example.test/npm", "https://r.example.test/npm/n/%2e", ""},
		{"https://r.example.test/npm", public + "/../admin/n-1.tgz", ""},
		{"https://r.example.test/npm", public + "/%2e%2e/admin/n-1.tgz", ""},
		{"https://r.example.test", "https://cdn.example.test/a/%2e%2e/n-1.tgz", ""},
		{"https://r.example.test", "https://r.example.test/..n/.n/n..1.tgz?x=/../", "https://r.example.test/..n/.n/n..1.tgz?x=/../"},
	} {
		got, err := h.tarballURL(c.registry, c.raw)
		if got != c.want || (c.want == "") != errors.Is(err, ErrRefused) {
			t.Errorf("%q from %s: %q, %v; want %q", c.raw, c.registry, got, err, c.want)
		}
	}
}

func TestIsPublic(t *testing.T) {
	for _, s := range []string{"1.1.1.1", "8.8.8.8", "192.0.3.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"} {
		if !isPublic(netip.MustParseAddr(s)) {
			t.Errorf("%s is public", s)
		}
	}
	for _, s := range []string{"127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.1",
		"198.18.0.1", "192.0.0.192", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2002:7f00:1::", "2001:db8::1", "2001::1",
		// IPv4 within IPv6: mapped, compatible, translated, by NAT64 and its local form.
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "100::1", "5f00::1", "4000::1"} {
		if isPublic(netip.MustParseAddr(s)) {
			t.Errorf("%s is not public", s)
		}
	}
}

// What is dialed is what was looked at, whatever the name server says next; a
// host of which one address is private is not dialed at all.
func TestDialPublic(t *testing.T) {
	public, private := netip.MustParseAddr("93.184.216.34"), netip.MustParseAddr("127.0.0.1")
	mapped := netip.MustParseAddr("::ffff:93.184.216.34")
	errDown := errors.New("down")
	for _, c := range []struct {
		name, addr string
		answers    [][]netip.Addr // of the name server, one after the other
		down       int            // dials that fail
		want       error
		dialed     []string
	}{
		{"Public", "cdn.example.test:443", [][]netip.Addr{{public}}, 0, nil, []string{"93.184.216.34:443"}},
		{"Mapped", "cdn.example.test:443", [][]netip.Addr{{mapped}}, 0, nil, []string{"93.184.216.34:443"}},
		{"Rebinding", "cdn.example.test:443", [][]netip.Addr{{public}, {private}}, 1, errDown, []string{"93.184.216.34:443"}},
		{"NextAddress", "cdn.example.test:443", [][]netip.Addr{{public, mapped}}, 1, nil, []string{"93.184.216.34:443", "93.184.216.34:443"}},
		{"Private", "cdn.example.test:443", [][]netip.Addr{{private}}, 0, ErrRefused, nil},
		{"OneOfTwo", "cdn.example.test:443", [][]netip.Addr{{public, private}}, 0, ErrRefused, nil},
		{"Decimal", "2130706433:80", [][]netip.Addr{{private}}, 0, ErrRefused, nil},
		{"Hexadecimal", "0x7f.1:80", [][]netip.Addr{{private}}, 0, ErrRefused, nil},
		{"MappedPrivate", "cdn.example.test:80", [][]netip.Addr{{netip.MustParseAddr("::ffff:10.0.0.1")}}, 0, ErrRefused, nil},
		{"NAT64", "cdn.example.test:80", [][]netip.Addr{{netip.MustParseAddr("64:ff9b::7f00:1")}}, 0, ErrRefused, nil},
		{"Zone", "cdn.example.test:80", [][]netip.Addr{{netip.MustParseAddr("fe80::1%eth0")}}, 0, ErrRefused, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHosts(Options{Hosts: []string{"cdn.example.test"}})
			asked := 0
			lookup := func(context.Context, string, string) ([]netip.Addr, error) {
				asked++
				return c.answers[min(asked, len(c.answers))-1], nil
			}
			var dialed []string
			dial := func(_ context.Context, _, addr string) (net.Conn, error) {
				dialed = append(dialed, addr)
				if len(dialed) <= c.down {
					return nil, errDown
				}
				here, _ := net.Pipe()
				return here, nil
			}
			if h.mayBePrivate(c.addr) {
				t.Fatal("not looked at")
			}
			conn, err := dialPublic(t.Context(), "tcp", c.addr, lookup, dial)
			if !errors.Is(err, c.want) || (conn != nil) != (c.want == nil) || asked != 1 || !slices.Equal(dialed, c.dialed) {
				t.Errorf("%v after %d lookups and dials of %q", err, asked, dialed)
			}
		})
	}
}

// The same through a whole client: the transport's dial is the one that looks.
func TestRebinding(t *testing.T) {
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer s.Close()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"cdn.example.test", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost", "127.0.0.1"} {
		c := client("https://r.example.test", func(o *Options) { o.Hosts = []string{strings.Trim(host, "[]"), host} })
		c.hosts.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		c.http.Transport = c.hosts.transport(1)
		_, err := c.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: "http://" + host + ":" + port + "/n.tgz", Integrity: sri(nil)})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "private address") || asked != 0 {
			t.Errorf("%s: %v after %d requests", host, err, asked)
		}
	}
}

// A proxy of the environment may be where it likes; that makes no way to it
// for what a registry says.
func TestProxy(t *testing.T) {
	body := []byte("tarball")
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = append(asked, req.URL.String())
		w.Write(body)
	}))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := http.DefaultTransport
	defer func() { http.DefaultTransport = transport }()
	through := transport.(*http.Transport).Clone()
	through.Proxy = http.ProxyURL(at)
	http.DefaultTransport = through
	c := client("http://r.example.test")
	d := npm.Dist{Tarball: "http://r.example.test/n.tgz", Integrity: sri(body)}
	tb, err := c.Tarball(t.Context(), "n", "1.0.0", d)
	if err != nil {
		t.Fatal(err)
	}
	tb.Close()
	d.Tarball = proxy.URL + "/n.tgz"
	if _, err := c.Tarball(t.Context(), "n", "1.0.0", d); !errors.Is(err, ErrRefused) {
		t.Errorf("the proxy itself: %v", err)
	}
	if !slices.Equal(asked, []string{"http://r.example.test/n.tgz"}) {
		t.Errorf("asked for %q", asked)
	}
	for proxy, want := range map[string]string{"socks5://P.example.test": "p.example.test:1080", "https://p.example.test": "p.example.test:443"} {
		if got := hostOf(proxy); got != want {
			t.Errorf("%s is dialed at %s, and allowed at %s", proxy, want, got)
		}
	}
}

// A further host at a private address is refused at the dial, unless that is
// allowed; the registry of the configuration may be where the operator says.
func TestPrivateAddress(t *testing.T) {
	body := []byte("tarball")
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked++; w.Write(body) }))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	d := npm.Dist{Tarball: s.URL + "/n.tgz", Integrity: sri(body)}
	for _, allow := range []bool{false, true} {
		asked = 0
		c := client("https://r.example.test", func(o *Options) { o.Hosts = []string{host}; o.AllowPrivate = allow })
		tb, err := c.Tarball(t.Context(), "n", "1.0.0", d)
		if allow {
			if err != nil {
				t.Fatal(err)
			}
			tb.Close()
		} else if !errors.Is(err, ErrRefused) || asked != 0 {
			t.Errorf("%v after %d requests", err, asked)
		}
	}
	if tb, err := client(s.URL).Tarball(t.Context(), "n", "1.0.0", d); err != nil {
		t.Error(err)
	} else {
		tb.Close()
	}
}

func TestRedirect(t *testing.T) {
	body := []byte("tarball")
	var auth []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		auth = append(auth, req.Header.Get("Authorization"))
		w.Write(body)
	}))
	defer other.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/off.tgz":
			http.Redirect(w, req, other.URL+"/x.tgz", http.StatusFound)
		case "/same.tgz":
			http.Redirect(w, req, "/there.tgz", http.StatusMovedPermanently)
		case "/loop.tgz":
			http.Redirect(w, req, "/loop.tgz", http.StatusFound)
		case "/climb.tgz":
			w.Header().Set("Location", "/npm/%2e%2e/there.tgz")
			w.WriteHeader(http.StatusFound)
		case "/file.tgz":
			http.Redirect(w, req, "file:///etc/passwd", http.StatusFound)
		case "/there.tgz", "/npm/../there.tgz":
			auth = append(auth, req.Header.Get("Authorization"))
			w.Write(body)
		}
	}))
	defer s.Close()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".npmrc"), []byte("registry="+s.URL+"\n"+strings.TrimPrefix(s.URL, "http:")+"/:_authToken=mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := npm.LoadConfig(func(string) string { return "" }, "", home)
	if err != nil {
		t.Fatal(err)
	}
	otherHost := strings.TrimPrefix(other.URL, "http://")
	for _, c := range []struct {
		name, path string
		hosts      []string
		want       error
		auth       string
	}{
		{"SameHost", "/same.tgz", nil, nil, "Bearer mine"},
		{"OffList", "/off.tgz", nil, ErrRefused, "-"},
		{"Listed", "/off.tgz", []string{otherHost}, nil, ""},
		{"Loop", "/loop.tgz", nil, ErrRefused, "-"},
		{"File", "/file.tgz", nil, ErrRefused, "-"},
		{"Climbing", "/npm/%2e%2e/there.tgz", nil, ErrRefused, "-"},
		{"ToClimbing", "/climb.tgz", nil, ErrRefused, "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			auth = nil
			cl := client("", func(o *Options) { o.Registry = config; o.Hosts = c.hosts; o.AllowPrivate = true })
			tb, err := cl.Tarball(t.Context(), "n", "1.0.0", npm.Dist{Tarball: s.URL + c.path, Integrity: sri(body)})
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if err != nil {
				if len(auth) != 0 {
					t.Errorf("it was asked for all the same")
				}
				return
			}
			defer tb.Close()
			if got, err := io.ReadAll(tb); err != nil || string(got) != string(body) {
				t.Errorf("%q, %v", got, err)
			}
			if len(auth) != 1 || auth[0] != c.auth {
				t.Errorf("Authorization %q, want %q", auth, c.auth)
			}
		})
	}
}

func TestRedirectRules(t *testing.T) {
	c := client("https://r.example.test", func(o *Options) { o.Hosts = []string{"cdn.example.test"} })
	for _, r := range []struct {
		from, to string
		ok       bool
	}{
		{"https://r.example.test/a", "https://r.example.test/b", true},
		{"https://r.example.test/a", "http://r.example.test/b", false},
		{"http://r.example.test/a", "https://r.example.test/b", true},
		{"https://r.example.test/a", "https://cdn.example.test/b", true},
		{"https://r.example.test/a", "https://u:p@r.example.test/b", false},
		{"https://r.example.test/a", "https://r.example.test:8443/b", false},
		{"https://r.example.test/a", "https://127.0.0.1/b", false},
		{"https://r.example.test/a", "https://r.example.test/a/../b", false},
		{"https://r.example.test/a", "https://r.example.test/a/%2E%2e/b", false},
		{"https://r.example.test/a", "https://cdn.example.test/a%2f..%2fb", false},
	} {
		from, err := url.Parse(r.from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := url.Parse(r.to)
		if err != nil {
			t.Fatal(err)
		}
		err = c.redirect(&http.Request{URL: to, Header: http.Header{}}, []*http.Request{{URL: from}})
		if (err == nil) != r.ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s to %s: %v", r.from, r.to, err)
		}
	}
}

// What is fetched is on the registry's host or a listed one, and never climbs.
func FuzzTarballURL(f *testing.F) {
	for _, s := range []string{npm.DefaultRegistry() + "/n/-/n-1.tgz", "https://r.example.test/npm/../x", "https://r.example.test\\@evil.example/", "http://0x7f.1/",
		"https://cdn.example.test:99/%2e%2e/x?y#z", "https://R.example.test:443/..;x/n.tgz", "//r.example.test"} {
		f.Add(s)
	}
	h := newHosts(Options{Hosts: []string{"cdn.example.test", "blob.example.test:8443"}})
	const registry = "https://r.example.test/npm"
	f.Fuzz(func(t *testing.T, raw string) {
		out, err := h.tarballURL(registry, raw)
		if err != nil {
			if !errors.Is(err, ErrRefused) || out != "" {
				t.Fatalf("%q: %q, %v", raw, out, err)
			}
			return
		}
		req, err := http.NewRequest(http.MethodGet, out, nil)
		if err != nil {
			t.Fatalf("%q gives %q: %v", raw, out, err)
		}
		u := req.URL
		switch u.Host {
		case "r.example.test":
			if u.Scheme != "https" {
				t.Fatalf("%q gives %q", raw, out)
			}
		default:
			if u.Hostname() != "cdn.example.test" && !strings.EqualFold(u.Hostname(), "cdn.example.test") && !strings.EqualFold(u.Host, "blob.example.test:8443") {
				t.Fatalf("%q gives %q", raw, out)
			}
		}
		if u.User != nil || u.Fragment != "" || climbs(u) {
			t.Fatalf("%q gives %q", raw, out)
		}
		// A server that cleans the path ends where it was written to.
		for segment := range strings.SplitSeq(strings.ReplaceAll(u.Path, "\\", "/"), "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q gives %q", raw, out)
			}
		}
		if again, err := h.tarballURL(registry, out); err != nil || again != out {
			t.Fatalf("%q gives %q, and that %q, %v", raw, out, again, err)
		}
	})
}
