package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"syscall"
)

// Listen opens the address at which a registry is served, and for 127.0.0.1 the same
// port on ::1 too: people type localhost, and many machines look there first. It
// returns the URL to print.
func Listen(ctx context.Context, address string, log *slog.Logger) ([]net.Listener, string, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", noAddress(address, err)
	}
	var c net.ListenConfig
	first, err := c.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, "", Hint(fmt.Errorf("listen: %w", err), "another program has this address; choose one with --listen")
	}
	var unknown *net.DNSError
	var wrong *net.AddrError
	if errors.As(err, &unknown) || errors.As(err, &wrong) {
		return nil, "", noAddress(address, err)
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, "", Hint(fmt.Errorf("listen: %w", err), "this machine does not have that address: choose one with --listen")
	}
	if err != nil {
		return nil, "", fmt.Errorf("listen: %w", err)
	}
	port := first.Addr().(*net.TCPAddr).Port
	listeners := []net.Listener{first}
	if host == "127.0.0.1" {
		six, err := c.Listen(ctx, "tcp", net.JoinHostPort("::1", strconv.Itoa(port)))
		if err != nil {
			log.WarnContext(ctx, "not on ::1; type 127.0.0.1 rather than localhost", "err", err)
		} else {
			listeners = append(listeners, six)
		}
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	return listeners, "http://" + net.JoinHostPort(host, strconv.Itoa(port)), nil
}

// noAddress is the error where a program cannot listen at what was given.
func noAddress(address string, err error) error {
	return Hint(Usagef("--listen %s: %w", address, err), "it is HOST:PORT of this machine, as in 127.0.0.1:4873, with a port up to 65535")
}
