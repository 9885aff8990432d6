// Command router is a server of the delegated routing API for the end-to-end scripts:
// boxo's handler over a map of records. It listens on the loopback address that is its
// one argument, and forgets everything when it ends.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/routing/http/server"
	"github.com/libp2p/go-libp2p/core/routing"
)

// records keeps what was put last under each name. boxo's handler has validated it.
type records struct {
	server.DelegatedRouter // nil: nothing else is asked for

	mu   sync.Mutex
	last map[string]*ipns.Record
}

func (r *records) GetIPNS(_ context.Context, name ipns.Name) (*ipns.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.last[name.String()]; rec != nil {
		return rec, nil
	}
	return nil, routing.ErrNotFound
}

func (r *records) PutIPNS(_ context.Context, name ipns.Name, rec *ipns.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[name.String()] = rec
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: router HOST:PORT")
		os.Exit(64)
	}
	err := http.ListenAndServe(os.Args[1], server.Handler(&records{last: map[string]*ipns.Record{}}))
	fmt.Fprintln(os.Stderr, "router: error:", err)
	os.Exit(1)
}
