package ipfs

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/namesys"
	"github.com/ipfs/boxo/routing/http/server"
	"github.com/ipfs/boxo/routing/http/types"
	"github.com/ipfs/boxo/routing/http/types/iter"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/prometheus/client_golang/prometheus"
)

// serveGateway serves HTTP for peers on l until Close: the gateway under
// /ipfs and /ipns (https://specs.ipfs.tech/http-gateways/: raw blocks, CARs
// and IPNS records, and deserialised, so that /ipns/NAME/ is a registry that
// npm can read) and delegated routing under /routing/v1
// (https://specs.ipfs.tech/routing/http-routing-v1/: records by GET and PUT).
// It serves what the node holds and fetches nothing on behalf of a visitor.
func (n *Embedded) serveGateway(l net.Listener) error {
	h, err := n.gatewayHandler()
	if err != nil {
		return err
	}
	n.gateway = "http://" + l.Addr().String()
	n.gatewaySrv = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute, // a request has 10 KiB at most
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	srv := n.gatewaySrv
	n.wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the gateway ended", "err", err)
		}
	})
	return nil
}

func (n *Embedded) gatewayHandler() (http.Handler, error) {
	names, err := namesys.NewNameSystem(values{n}, namesys.WithDNSResolver(noDNS{}))
	if err != nil {
		return nil, err
	}
	backend, err := gateway.NewBlocksBackend(blockservice.New(n.blocks, nil),
		gateway.WithValueStore(values{n}), gateway.WithNameSystem(names))
	if err != nil {
		return nil, err
	}
	// Registries of their own: boxo would register in the process's default.
	gw := gateway.NewHandler(gateway.Config{
		DeserializedResponses: true,
		NoDNSLink:             true,
		DisableHTMLErrors:     true,
		RetrievalTimeout:      30 * time.Second,
		MaxConcurrentRequests: 1024,
		MaxRequestDuration:    10 * time.Minute,
		MetricsRegistry:       prometheus.NewRegistry(),
	}, backend)
	mux := http.NewServeMux()
	mux.Handle("/ipfs/", gw)
	mux.Handle("/ipns/", gw)
	mux.Handle("/routing/v1/", server.Handler(router{n},
		server.WithPrometheusRegistry(prometheus.NewRegistry()),
		server.WithRoutingTimeout(findRecord+5*time.Second)))
	return mux, nil
}

// router is the node as boxo's delegated router: itself as the one provider
// of what it holds, and IPNS records.
type router struct{ n *Embedded }

var _ server.DelegatedRouter = router{}

func (r router) self() *types.PeerRecord {
	id := r.n.host.ID()
	rec := &types.PeerRecord{Schema: types.SchemaPeer, ID: &id, Protocols: []string{"transport-bitswap"}}
	for _, a := range r.n.host.Addrs() {
		rec.Addrs = append(rec.Addrs, types.Multiaddr{Multiaddr: a})
	}
	return rec
}

func (r router) FindProviders(ctx context.Context, c cid.Cid, _ int) (iter.ResultIter[types.Record], error) {
	held, err := r.n.blocks.Has(ctx, c)
	if err != nil {
		return nil, err
	}
	if !held {
		return nil, routing.ErrNotFound
	}
	return iter.ToResultIter(iter.FromSlice([]types.Record{r.self()})), nil
}

func (r router) FindPeers(_ context.Context, id peer.ID, _ int) (iter.ResultIter[*types.PeerRecord], error) {
	if id != r.n.host.ID() {
		return nil, routing.ErrNotFound
	}
	return iter.ToResultIter(iter.FromSlice([]*types.PeerRecord{r.self()})), nil
}

func (r router) GetClosestPeers(context.Context, cid.Cid) (iter.ResultIter[*types.PeerRecord], error) {
	return nil, routing.ErrNotSupported
}

//lint:ignore SA1019 boxo's interface still asks for the method
func (r router) ProvideBitswap(context.Context, *server.BitswapWriteProvideRequest) (time.Duration, error) {
	return 0, routing.ErrNotSupported
}

func (r router) GetIPNS(ctx context.Context, name ipns.Name) (*ipns.Record, error) {
	raw, err := r.n.Record(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil, routing.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return ipns.UnmarshalRecord(raw)
}

// PutIPNS takes any valid record, from anybody who reaches the gateway, as long
// as there is room for strangers' names. As Kubo's, it ignores one that is older
// than what is held.
func (r router) PutIPNS(ctx context.Context, name ipns.Name, record *ipns.Record) error {
	raw, err := ipns.MarshalRecord(record)
	if err != nil {
		return err
	}
	if err := r.n.putRecord(ctx, name, raw, false); !errors.Is(err, ErrSuperseded) {
		return err
	}
	return nil
}
