package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// defaultListen is where a registry is served unless it is said otherwise.
const defaultListen = "127.0.0.1:4873"

// source is what a mirror reads from; daemon and sync share its flags.
type source struct {
	*cli.Common
	ipfs     bool
	share    bool
	gateways []string
}

func (s *source) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&s.ipfs, "ipfs", false, "use an IPFS node: find peers, fetch from them, serve them")
	f.StringArrayVar(&s.gateways, "gateway", nil, "URL of a trustless gateway to read from as well; may be repeated")
}

func daemonCommand(common *cli.Common) *cobra.Command {
	s := &source{Common: common}
	var address string
	cmd := &cobra.Command{
		Use:   "daemon [NAME]",
		Short: "Serve the registry of an IPNS name on this machine",
		Long: `Resolves an IPNS name, keeps its list, and serves it as an npm registry. Every
byte is verified, what is held is served offline too. With --ipfs it uses an
IPFS node; without, only the gateways that --gateway names.`,
		Example: `  registry-mirror daemon --ipfs k51...
  registry-mirror daemon k51... --gateway http://127.0.0.1:8080
  npm install express --registry=http://127.0.0.1:4873`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 {
				return cli.Hint(cli.Usagef("no registry to serve"),
					"name one: `registry-mirror daemon --ipfs k51...`; or make one of your own: `registry-mirror up express`")
			}
			log := common.Logger(cmd.ErrOrStderr(), true)
			m, close, err := s.open(cmd, args[0], true)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, close()) }()
			listeners, url, err := cli.Listen(cmd.Context(), address, log)
			if err != nil {
				return err
			}
			sock, err := socket.Listen(state.Dir(common.State).Socket("registry-mirror"))
			if err != nil {
				return err
			}
			if err := announce(cmd.OutOrStdout(), common, m.Status(cmd.Context()), url); err != nil {
				return err
			}
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return m.Run(ctx) })
			group.Go(func() error { hurry(ctx, m); return nil })
			group.Go(func() error { return m.Serve(ctx, m.Handler(), listeners...) })
			group.Go(func() error { return socket.Serve(ctx, sock, m.Admin()) })
			return group.Wait()
		},
	}
	s.bind(cmd)
	cmd.Flags().BoolVar(&s.share, "share", false, state.ShareUsage)
	cmd.Flags().StringVar(&address, "listen", defaultListen, "address to serve the registry on")
	return cmd
}

// announce says where the registry is, before its list may have come.
func announce(out io.Writer, common *cli.Common, s mirror.Status, url string) error {
	if common.JSON {
		return cli.PrintJSON(out, map[string]any{"name": s.Name, "registry": url, "release": s.Release.Number})
	}
	held := "no list yet"
	if s.Release.Number > 0 {
		held = fmt.Sprintf("release %d, %s", s.Release.Number, cli.Count(s.Release.Packages, "package"))
	}
	_, err := fmt.Fprintf(out, "serving /ipns/%s (%s) at %s\n", s.Name, held, url)
	return err
}

// open opens the mirror of a name, for a command that runs on (daemon) or does
// one thing. The returned function closes it.
func (s *source) open(cmd *cobra.Command, text string, daemon bool) (*mirror.Mirror, func() error, error) {
	name, err := parseName(text)
	if err != nil {
		return nil, nil, err
	}
	if !s.ipfs && len(s.gateways) == 0 {
		return nil, nil, cli.Hint(cli.Usagef("nothing to read from"), "add --ipfs to use an IPFS node, or --gateway URL")
	}
	for _, flag := range []string{"node", "ipfs-api", "network", "peer", "share"} {
		if !s.ipfs && cmd.Flags().Changed(flag) {
			return nil, nil, cli.Usagef("--%s is of the IPFS node, which needs --ipfs", flag)
		}
	}
	log := s.Logger(cmd.ErrOrStderr(), daemon)
	dir := state.Dir(s.State)
	if err := dir.Make(); err != nil {
		return nil, nil, err
	}
	o := mirror.Options{Dir: dir.Mirror(name.String()), Name: name, Gateways: gateways(s.gateways), Log: log}
	var node *state.Node
	if s.ipfs {
		node, err = dir.OpenNode(cmd.Context(), state.NodeOptions{
			Kind: s.Node, API: s.IPFSAPI, Network: ipfs.Network(s.Network), DefaultNetwork: ipfs.Public, Peers: s.Peers, Share: s.share, Log: log,
		})
		if err != nil {
			return nil, nil, err
		}
		o.Node = node
	}
	close := func() error {
		if node == nil {
			return nil
		}
		return node.Close()
	}
	m, err := mirror.Open(o)
	if err != nil {
		return nil, nil, errors.Join(err, close())
	}
	return m, func() error { return errors.Join(m.Close(), close()) }, nil
}

// parseName takes k51…, /ipns/k51… and ipns://k51….
func parseName(text string) (ipns.Name, error) {
	short := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(text, "ipns://"), "/ipns/"), "/")
	name, err := ipns.NameFromString(short)
	if err != nil {
		return ipns.Name{}, cli.Hint(cli.Usagef("%q is not an IPNS name: %w", text, err), "`publisher key list` shows yours; it begins with k51")
	}
	return name, nil
}

// patience is how long a node that has just started is given to reach a peer:
// peers are dialled beside the resolution.
const patience = 5 * time.Second

// hurry asks again for a name of which nothing is held yet, for as long as
// patience: m itself would wait for its interval.
func hurry(ctx context.Context, m *mirror.Mirror) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for m.Status(ctx).Release.Number == 0 {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			m.Refresh()
		}
	}
}

// syncOnce opens the mirror, does one round and closes it.
func (s *source) syncOnce(ctx context.Context, cmd *cobra.Command, name string) (status mirror.Status, err error) {
	m, close, err := s.open(cmd, name, false)
	if err != nil {
		return status, err
	}
	defer func() { err = errors.Join(err, close()) }()
	for end := time.Now().Add(patience); ; {
		err = m.Sync(ctx)
		if !s.ipfs || !errors.Is(err, mirror.ErrNoRecord) || time.Now().After(end) {
			return m.Status(ctx), err
		}
		select {
		case <-ctx.Done():
			return status, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
