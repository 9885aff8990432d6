// Package loopback keeps tests off the network: a test binary whose TestMain
// calls Main can reach servers on this machine and nothing else. Only tests
// import it.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// ErrRefused is returned for every dial beyond this machine.
var ErrRefused = errors.New("tests may not reach the network")

// Main refuses the network and runs the tests. It also clears the environment
// variables by which npm's, Kubo's and the project's own settings would leak
// into a test.
func Main(m *testing.M) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		for _, prefix := range []string{"npm_", "NPM_", "REGMIRROR_", "IPFS_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			if strings.HasPrefix(name, prefix) {
				os.Unsetenv(name)
			}
		}
	}
	Refuse()
	os.Exit(m.Run())
}

// Refuse makes this process dial loopback addresses only, as far as it dials
// through net/http's and net's defaults. Main calls it; so does a command that
// a test runs as a process of its own, whose environment must stay.
func Refuse() {
	net.DefaultResolver = &net.Resolver{
		PreferGo: true,
		Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			return nil, fmt.Errorf("resolve by %s: %w", addr, ErrRefused)
		},
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.DialContext = Dial
	http.DefaultTransport = transport
}

// Dial dials loopback addresses only.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("dial %s: %w", addr, ErrRefused)
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	return d.DialContext(ctx, network, addr)
}
