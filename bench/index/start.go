//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/socket"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

// startResult is what a mirror that holds a list needs to be there again, and to
// follow.
type startResult struct {
	Names int `json:"names"`
	// Rounds are starts; the figures of these are medians.
	Rounds     int     `json:"rounds"`
	StartMs    float64 `json:"start_ms"`     // from the process's start to its first answer
	StartMaxMs float64 `json:"start_max_ms"` // the slowest
	StartMiB   float64 `json:"start_rss_mib"`
	Changes    int     `json:"changes"`
	SyncMs     float64 `json:"sync_ms"` // of one release of these, resolved and synced
	SyncMiB    float64 `json:"sync_rss_mib"`
	PeakMiB    float64 `json:"peak_rss_mib"` // of the last run, that sync with it
	FirstS     float64 `json:"first_s"`      // the first of all, that made the state: all of the list
	FirstMiB   float64 `json:"first_rss_mib"`
	StateMiB   float64 `json:"state_mib"` // on the disk
	MadeS      float64 `json:"made_s"`    // the list and its releases, before that
}

// startBudget is what a start may take, in milliseconds.
const startBudget = 1000

func starting(ctx context.Context, b *bench, r *result) (err error) {
	n := b.bulk[len(b.bulk)-1]
	begun := time.Now()
	l, err := b.built(ctx, n)
	if err != nil {
		return err
	}
	changes, err := b.updates(l, 1<<42)
	if err != nil {
		return err
	}
	d, roots, err := b.mirror(ctx, l, "start", changes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.end()) }()
	res := startResult{Names: n, Rounds: b.rounds, Changes: min(syncChanges, n/mostOf), MadeS: time.Since(begun).Seconds()}
	if err := d.first(ctx, roots[0], n, &res); err != nil {
		return fmt.Errorf("the first start: %w", err)
	}
	var all, memory []float64
	for i := range b.rounds {
		if err := atRest(ctx, filepath.Join(d.dir, "state")); err != nil {
			return err
		}
		ms, err := d.start(ctx)
		if err != nil {
			return err
		}
		all, memory = append(all, ms), append(memory, d.memory("VmRSS"))
		if i < b.rounds-1 {
			if err := d.stop(); err != nil {
				return err
			}
		}
	}
	res.StartMs, res.StartMiB = median(all), median(memory)
	for _, ms := range all {
		res.StartMaxMs = max(res.StartMaxMs, ms)
	}
	if err := d.follow(ctx, roots[1], &res); err != nil {
		return errors.Join(fmt.Errorf("sync: %w", err), d.stop())
	}
	if err := d.stop(); err != nil {
		return err
	}
	if res.StateMiB, err = size(filepath.Join(d.dir, "state")); err != nil {
		return err
	}
	r.Start = append(r.Start, res)
	return nil
}

// mirror builds registry-mirror for a new state, with a gateway that has the list, a
// snapshot of it, and a release of the changes in that file: the roots are of these
// two.
func (b *bench) mirror(ctx context.Context, l *listed, label, changes string) (d *daemon, roots []string, err error) {
	held := filepath.Join(b.dir, fmt.Sprint(label, "-snapshot-", l.names))
	made, err := b.measure(ctx, l.names, job{Side: "snapshot", Index: l.index, Blocks: held, Changes: []string{changes}})
	if err != nil {
		return nil, nil, err
	}
	ix, err := index.Open(l.index, index.Options{})
	if err != nil {
		return nil, nil, err
	}
	g, err := newGateway(source{ix, held})
	if err != nil {
		return nil, nil, errors.Join(err, ix.Close())
	}
	d = &daemon{dir: filepath.Join(b.dir, fmt.Sprint(label, "-mirror-", l.names)), gateway: g, index: ix}
	if err = os.Mkdir(d.dir, 0o700); err == nil {
		var out []byte
		out, err = exec.CommandContext(ctx, "go", "build", "-o", d.dir+"/", "github.com/registry-mirror/registry-mirror/cmd/registry-mirror").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("build registry-mirror: %w: %s", err, out)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, d.end())
	}
	return d, made.Roots, nil
}

func printStart(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "names\tstart ms\tslowest\tbudget\tMiB then\tsync of\tms\tMiB then\tpeak MiB\tfirst sync s\tpeak MiB\tstate MiB\tmade in s\t")
	for _, s := range r.Start {
		verdict := "met"
		if s.StartMs > startBudget {
			verdict = "missed"
		}
		fmt.Fprintf(w, "%d\t%.0f\t%.0f\t<= %d, %s\t%.0f\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t%.0f\t%.0f\t%.0f\t\n", s.Names, s.StartMs, s.StartMaxMs, startBudget, verdict,
			s.StartMiB, s.Changes, s.SyncMs, s.SyncMiB, s.PeakMiB, s.FirstS, s.FirstMiB, s.StateMiB, s.MadeS)
	}
}

// gateway is a trustless gateway of single blocks, and of one name's record.
type gateway struct {
	server *httptest.Server
	key    crypto.PrivKey
	name   ipns.Name
	record atomic.Pointer[[]byte]
	seq    uint64
}

func newGateway(blocks source) (*gateway, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	g := &gateway{key: key, name: ipns.NameFromPeer(id)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /routing/v1/ipns/{name}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.ipfs.ipns-record")
		w.Write(*g.record.Load())
	})
	mux.HandleFunc("GET /ipfs/{cid}", func(w http.ResponseWriter, r *http.Request) {
		c, err := cid.Decode(r.PathValue("cid"))
		if err != nil || r.URL.Query().Get("format") != "raw" {
			http.Error(w, "single blocks alone", http.StatusBadRequest)
			return
		}
		b, err := blocks.Get(r.Context(), c)
		if err != nil {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.ipld.raw")
		w.Write(b.RawData())
	})
	g.server = httptest.NewServer(mux)
	return g, nil
}

// point signs a record of the release at root.
func (g *gateway) point(root string) error {
	c, err := cid.Decode(root)
	if err != nil {
		return err
	}
	g.seq++
	record, err := ipns.NewRecord(g.key, path.FromCid(c), g.seq, time.Now().Add(24*time.Hour), time.Minute)
	if err != nil {
		return err
	}
	raw, err := ipns.MarshalRecord(record)
	if err == nil {
		g.record.Store(&raw)
	}
	return err
}

// daemon is `registry-mirror daemon` on one state, with a gateway alone.
type daemon struct {
	dir     string // with the binary
	gateway *gateway
	index   *index.Index // of the gateway
	cmd     *exec.Cmd
	address string
}

// end ends what serves the mirror.
func (d *daemon) end() error {
	d.gateway.server.Close()
	return d.index.Close()
}

func (d *daemon) state() state.Dir { return state.Dir(filepath.Join(d.dir, "state")) }

// start gives the milliseconds from the process's start to its first answer, which
// is that a name is not in the list.
func (d *daemon) start(ctx context.Context) (float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	d.address = l.Addr().String()
	l.Close()
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	d.cmd = exec.CommandContext(ctx, filepath.Join(d.dir, "registry-mirror"), "daemon", d.gateway.name.String(), "--gateway", d.gateway.server.URL,
		"--no-upstream", "--listen", d.address, "--state", string(d.state()))
	d.cmd.Env = append(os.Environ(), "REGMIRROR_CONFIG=/dev/null")
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(os.Interrupt) }
	d.cmd.WaitDelay = 30 * time.Second
	d.cmd.Stdout, d.cmd.Stderr = log, log
	begun := time.Now()
	if err := d.cmd.Start(); err != nil {
		return 0, err
	}
	for time.Since(begun) < time.Hour {
		resp, err := http.Get("http://" + d.address + "/" + "no-such-name-is-listed")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusNotFound {
			return 1e3 * time.Since(begun).Seconds(), nil
		}
		select {
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), d.stop())
		case <-time.After(time.Millisecond):
		}
	}
	return 0, errors.Join(errors.New("it does not answer"), d.stop())
}

func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	if err := d.cmd.Wait(); err != nil {
		raw, _ := os.ReadFile(filepath.Join(d.dir, "log"))
		return fmt.Errorf("the mirror ended: %w: %s", err, raw[max(0, len(raw)-1000):])
	}
	return nil
}

// first lets the mirror make its state.
func (d *daemon) first(ctx context.Context, root string, n int, res *startResult) error {
	if err := d.gateway.point(root); err != nil {
		return err
	}
	ms, err := d.start(ctx)
	if err != nil {
		return err
	}
	res.FirstS, res.FirstMiB = ms/1e3, d.memory("VmHWM")
	var s mirror.TableStatus
	err = socket.Call(ctx, d.state().Socket("registry-mirror"), http.MethodGet, "/status", &s)
	if err == nil && s.Registries[0].Release.Packages != n {
		err = fmt.Errorf("it holds %d names", s.Registries[0].Release.Packages)
	}
	return errors.Join(err, d.stop())
}

// follow has the mirror sync to the release at root.
func (d *daemon) follow(ctx context.Context, root string, res *startResult) error {
	if err := d.gateway.point(root); err != nil {
		return err
	}
	var s mirror.TableStatus
	begun := time.Now()
	if err := socket.Call(ctx, d.state().Socket("registry-mirror"), http.MethodPost, "/sync", &s); err != nil {
		return err
	}
	res.SyncMs = 1e3 * time.Since(begun).Seconds()
	if now := s.Registries[0].Release.Root; now != root {
		return fmt.Errorf("it serves %s, and not %s", now, root)
	}
	res.SyncMiB, res.PeakMiB = d.memory("VmRSS"), d.memory("VmHWM")
	return nil
}

// memory is a figure of the process in MiB, 0 where the system does not tell.
func (d *daemon) memory(key string) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), key+":")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0
	}
	return kib / 1024
}
