package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// openUpstream is a client of the registry at given, else of npm's configured one.
// That may be the very one that is served at address, for whoever installs by it
// has it configured: then npm's own is meant.
func openUpstream(dir state.Dir, given, address string) (*upstream.Client, npm.Config, error) {
	up, config, err := dir.OpenUpstream(given, upstream.Options{})
	if err == nil && given == "" && isOurs(config.Registry, address) {
		return dir.OpenUpstream(npm.DefaultRegistry(), upstream.Options{})
	}
	return up, config, err
}

// isOurs says whether a registry's URL leads to who listens on address.
func isOurs(registry, address string) bool {
	u, err := url.Parse(registry)
	if err != nil {
		return false
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil || u.Port() != port {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// tarballsFrom fetches what public documents name: a tarball at npm's own registry
// or at the configured one. What else is named is a private registry's, whose
// package names are nobody else's to hear.
func tarballsFrom(up *upstream.Client, config npm.Config) mirror.Tarballs {
	return func(ctx context.Context, name npm.Name, version string, d npm.Dist) (io.ReadCloser, error) {
		if !strings.HasPrefix(d.Tarball, npm.DefaultRegistry()+"/") && !strings.HasPrefix(d.Tarball, strings.TrimSuffix(config.Registry, "/")+"/") {
			return nil, fmt.Errorf("%s@%s is not of a registry that may be asked: %w", name, version, fs.ErrNotExist)
		}
		return up.Tarball(ctx, name, version, d)
	}
}

// attestationsFrom asks the configured registry for a version's attestations, which
// npm publishes and which prove themselves.
func attestationsFrom(up *upstream.Client) func(context.Context, npm.Name, string) ([]byte, error) {
	return func(ctx context.Context, name npm.Name, version string) ([]byte, error) {
		raw, err := up.Attestations(ctx, name, version)
		if errors.Is(err, upstream.ErrNotFound) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return raw, err
	}
}
