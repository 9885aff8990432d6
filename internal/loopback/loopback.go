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
	"testing"
	"time"
)

// ErrRefused is returned for every dial beyond this machine.
var ErrRefused = errors.New("tests may not reach the network")

// Main refuses the network and runs the tests. It also clears the environment
// variables by which npm's, Kubo's and the project's own settings would leak
// into a test.
func Main(m *testing.M) {
	Refuse()
	os.Exit(m.Run())
}

// Refuse is Main's first half, for a TestMain that has more to do.
func Refuse() {
	for _, kv := range os.Environ() {
		for _, prefix := range []string{"npm_", "NPM_", "REGMIRROR_", "IPFS_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			if len(kv) >= len(prefix) && kv[:len(prefix)] == prefix {
				name := kv
				for i := range kv {
					if kv[i] == '=' {
						name = kv[:i]
						break
					}
				}
				os.Unsetenv(name)
				break
			}
		}
	}
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
