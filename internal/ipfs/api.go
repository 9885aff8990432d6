package ipfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// maxSocketPath is the longest path of a unix socket, in bytes: 108 with the
// final NUL on Linux, 104 on BSD and macOS.
const maxSocketPath = 103

// API is the socket by which other commands use an Embedded, as they use
// Kubo: OpenKubo with the address that EmbeddedAPI finds in the node's
// directory. Who may open the socket (0600) owns the node.
type API struct {
	l    net.Listener
	dir  string
	srv  *http.Server
	addr string
}

// ListenAPI opens the socket and writes its address to DIR/api. Connections
// wait until Serve.
func (n *Embedded) ListenAPI() (*API, error) {
	path, err := socketPath(n.dir)
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	// The directory's lock is held, so a socket that is there is a dead one.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	a := &API{l: l, dir: n.dir, addr: "/unix" + path}
	a.srv = &http.Server{Handler: APIHandler(n, n.log), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	// Its directory is 0700, so nobody could connect before this.
	err = os.Chmod(path, 0o600)
	if err == nil {
		err = writeFile(filepath.Join(n.dir, apiFile), []byte(a.addr+"\n"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("API socket: %w", err), l.Close())
	}
	return a, nil
}

// Addr is the socket's multiaddr, as in DIR/api.
func (a *API) Addr() string { return a.addr }

// Serve answers until ctx ends, then removes the socket and DIR/api. Calls
// under way get five seconds to end.
func (a *API) Serve(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- a.srv.Serve(a.l) }()
	select {
	case err := <-ended:
		return errors.Join(err, a.remove())
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := a.srv.Shutdown(last)
	if errors.Is(err, context.DeadlineExceeded) {
		err = a.srv.Close()
	}
	<-ended
	return errors.Join(err, a.remove())
}

func (a *API) remove() error {
	err := os.Remove(filepath.Join(a.dir, apiFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// socketPath returns where the socket of the node in dir lies, in a directory
// that is made 0700: DIR/run, and if that is too long for a socket, one of the
// user's runtime or temporary directory.
func socketPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(abs, runDir, "api.sock")
	if len(path) > maxSocketPath {
		base := os.Getenv("XDG_RUNTIME_DIR")
		if base == "" {
			base = os.TempDir()
		}
		sum := sha256.Sum256([]byte(abs))
		path = filepath.Join(base, "regmirror-"+strconv.Itoa(os.Getuid()), hex.EncodeToString(sum[:8])+".sock")
		if len(path) > maxSocketPath {
			return "", fmt.Errorf("%s is too long for a socket, set XDG_RUNTIME_DIR to a short path", path)
		}
	}
	own := filepath.Dir(path)
	if err := os.Mkdir(own, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	// In a shared temporary directory, somebody else may have made it first.
	info, err := os.Lstat(own)
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm() != 0o700 || ok && int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not a directory of this user's with mode 0700", own)
	}
	return path, nil
}

// APIHandler answers those calls of Kubo's RPC API
// (https://docs.ipfs.tech/reference/kubo/rpc/) that Kubo makes, for a node in
// this process, and repo/checkpoint and repo/free, which Kubo has not. repo/gc
// answers in lines of our own. Errors have Kubo's texts.
func APIHandler(n Node, log *slog.Logger) http.Handler {
	a := api{n, log}
	mux := http.NewServeMux()
	for command, f := range map[string]func(http.ResponseWriter, *http.Request) (any, error){
		"version":         a.version,
		"id":              a.id,
		"config":          a.config,
		"swarm/peers":     a.peers,
		"swarm/connect":   a.connect,
		"dag/import":      a.dagImport,
		"block/get":       a.blockGet,
		"pin/add":         a.pinAdd,
		"pin/update":      a.pinUpdate,
		"pin/rm":          a.pinRm,
		"pin/ls":          a.pinLs,
		"name/put":        a.namePut,
		"name/get":        a.nameGet,
		"files/cp":        a.filesCp,
		"files/rm":        a.filesRm,
		"repo/checkpoint": a.checkpoint,
		"repo/free":       a.free,
	} {
		mux.HandleFunc("POST /api/v0/"+command, func(w http.ResponseWriter, r *http.Request) {
			answer, err := f(w, r)
			if err != nil {
				a.fail(w, r, err)
				return
			}
			if raw, ok := answer.([]byte); ok {
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Write(raw)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(answer)
		})
	}
	mux.HandleFunc("POST /api/v0/repo/gc", a.collect)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "404 page not found", http.StatusNotFound)
	})
	return mux
}

type api struct {
	n   Node
	log *slog.Logger
}

// text is an error's as Kubo has it.
func text(err error) string {
	text := err.Error()
	for _, c := range remoteCauses {
		if errors.Is(err, c.cause) {
			if !strings.Contains(text, c.text) {
				text = c.text + ": " + text
			}
			break
		}
	}
	return text
}

// fail answers as Kubo does: status 500 and a message.
func (a api) fail(w http.ResponseWriter, r *http.Request, err error) {
	a.log.DebugContext(r.Context(), "API call failed", "path", r.URL.Path, "err", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusInternalServerError)
	json.NewEncoder(w).Encode(map[string]any{"Message": text(err), "Code": 0, "Type": "error"})
}

func (a api) version(http.ResponseWriter, *http.Request) (any, error) {
	// The client's library asks for it, to know how to write a multipart body.
	return map[string]string{"Version": "0.43.0"}, nil
}

func (a api) id(_ http.ResponseWriter, r *http.Request) (any, error) {
	info, err := a.n.Info(r.Context())
	return identity{ID: info.ID, Addresses: info.Addrs, AgentVersion: info.Agent}, err
}

func (a api) config(_ http.ResponseWriter, r *http.Request) (any, error) {
	key := r.URL.Query().Get("arg")
	if key != "Addresses.Gateway" {
		return nil, fmt.Errorf("key %q has no attribute", key)
	}
	info, err := a.n.Info(r.Context())
	if err != nil || info.Gateway == "" {
		return map[string]any{"Key": key, "Value": []string{}}, err
	}
	u, err := url.Parse(info.Gateway)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return nil, err
	}
	addr, err := manet.FromNetAddr(&net.TCPAddr{IP: net.ParseIP(u.Hostname()), Port: port})
	if err != nil {
		return nil, err
	}
	return map[string]any{"Key": key, "Value": addr.String()}, nil
}

func (a api) peers(_ http.ResponseWriter, r *http.Request) (any, error) {
	info, err := a.n.Info(r.Context())
	if err != nil {
		return nil, err
	}
	// Who they are is not asked; how many is.
	return map[string]any{"Peers": make([]struct{ Peer string }, info.Peers)}, nil
}

func (a api) connect(_ http.ResponseWriter, r *http.Request) (any, error) {
	addr := r.URL.Query().Get("arg")
	if err := a.n.Connect(r.Context(), addr); err != nil {
		return nil, err
	}
	return map[string]any{"Strings": []string{"connect " + addr + " success"}}, nil
}

func (a api) checkpoint(_ http.ResponseWriter, r *http.Request) (any, error) {
	return struct{}{}, a.n.Checkpoint(r.Context())
}

// collect is Kubo's garbage collection, with an answer of our own: a line each
// second or so, and a last one. It ends when the caller goes away.
func (a api) collect(w http.ResponseWriter, r *http.Request) {
	n, ok := a.n.(Collector)
	if !ok {
		a.fail(w, r, errors.ErrUnsupported)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	flush := http.NewResponseController(w).Flush
	answer := json.NewEncoder(w)
	var said time.Time
	c, err := n.Collect(r.Context(), func(stage string, done, total int) {
		if now := time.Now(); now.Sub(said) >= time.Second {
			said = now
			answer.Encode(collectLine{Stage: stage, Done: done, Total: total})
			flush()
		}
	})
	if err != nil {
		answer.Encode(collectLine{Error: text(err)})
		return
	}
	answer.Encode(collectLine{Collected: &c})
}

// filesCp is Kubo's copy into MFS, for what Hold copies there and nothing else:
// what the directory lists is held.
func (a api) filesCp(_ http.ResponseWriter, r *http.Request) (any, error) {
	args := r.URL.Query()["arg"]
	if len(args) != 2 {
		return nil, fmt.Errorf("%d arguments, not a source and a destination", len(args))
	}
	label, dir, err := readHeldPath(args[1])
	if err != nil {
		return nil, err
	}
	if args[0] != "/ipfs/"+dir.String() {
		return nil, fmt.Errorf("%q is not a place for %s", args[1], args[0])
	}
	roots, err := a.listed(r.Context(), dir)
	if err != nil {
		return nil, err
	}
	return struct{}{}, a.n.Hold(r.Context(), label, roots)
}

// filesRm is Kubo's removal from MFS, for what Unhold removes there.
func (a api) filesRm(_ http.ResponseWriter, r *http.Request) (any, error) {
	label, dir, err := readHeldPath(r.URL.Query().Get("arg"))
	if err != nil {
		return nil, err
	}
	roots, err := a.listed(r.Context(), dir)
	if err != nil {
		return nil, err
	}
	return struct{}{}, a.n.Unhold(r.Context(), label, roots)
}

func readHeldPath(name string) (label string, dir cid.Cid, err error) {
	rest, ok := strings.CutPrefix(name, heldDir+"/")
	label, text, _ := strings.Cut(rest, "/")
	if dir, err = cid.Decode(text); err != nil || !ok || text != dir.String() {
		return "", cid.Undef, fmt.Errorf("%q: this node has no MFS but %s/LABEL/CID", name, heldDir)
	}
	return label, dir, nil
}

// listed is what a directory of Hold's or Unhold's lists.
func (a api) listed(ctx context.Context, dir cid.Cid) (roots []cid.Cid, err error) {
	for l, err := range unixfs.List(ctx, localBlocks{a.n}, dir) {
		if err != nil {
			return nil, err
		}
		roots = append(roots, l.CID)
	}
	return roots, nil
}

func (a api) free(_ http.ResponseWriter, r *http.Request) (any, error) {
	bytes, known, err := a.n.Free(r.Context())
	if err != nil || !known {
		return struct{}{}, err
	}
	return map[string]uint64{"Free": bytes}, nil
}

// filePart returns the one file of a multipart body.
func filePart(r *http.Request) (*multipart.Part, error) {
	mr, err := r.MultipartReader()
	if err != nil {
		return nil, err
	}
	return mr.NextPart()
}

// dagImport puts the blocks of a CAR, in batches of at most 16 MiB. It is no
// transaction: blocks before an error stay.
func (a api) dagImport(_ http.ResponseWriter, r *http.Request) (any, error) {
	part, err := filePart(r)
	if err != nil {
		return nil, err
	}
	var batch []blocks.Block
	var count, total, size int
	flush := func() error {
		err := a.n.Put(r.Context(), batch)
		batch, size = batch[:0], 0
		return err
	}
	err = readCAR(part, func(b blocks.Block) error {
		batch = append(batch, b)
		size += len(b.RawData())
		count++
		total += len(b.RawData())
		if len(batch) == 256 || size >= 16<<20 {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return nil, fmt.Errorf("import failed after %d blocks: %w", count, err)
	}
	return map[string]any{"Stats": map[string]int{"BlockCount": count, "BlockBytesCount": total}}, nil
}

func (a api) blockGet(_ http.ResponseWriter, r *http.Request) (any, error) {
	c, err := cid.Decode(r.URL.Query().Get("arg"))
	if err != nil {
		return nil, err
	}
	get := a.n.Get
	if r.URL.Query().Get("offline") == "true" {
		get = a.n.Local
	}
	b, err := get(r.Context(), c)
	if err != nil {
		return nil, err
	}
	return b.RawData(), nil
}

func (a api) pinAdd(_ http.ResponseWriter, r *http.Request) (any, error) {
	c, err := cid.Decode(r.URL.Query().Get("arg"))
	if err != nil {
		return nil, err
	}
	if err := a.n.Pin(r.Context(), r.URL.Query().Get("name"), cid.Undef, c); err != nil {
		return nil, err
	}
	return map[string]any{"Pins": []string{c.String()}}, nil
}

// pinUpdate adds a pin beside another. Kubo's gives it that one's name; here a
// name is said.
func (a api) pinUpdate(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	if len(q["arg"]) != 2 || q.Get("unpin") != "false" {
		return nil, errors.New("pin/update takes two roots here, and unpin=false")
	}
	near, err := cid.Decode(q["arg"][0])
	if err != nil {
		return nil, err
	}
	root, err := cid.Decode(q["arg"][1])
	if err != nil {
		return nil, err
	}
	if err := a.n.Pin(r.Context(), q.Get("name"), near, root); err != nil {
		return nil, err
	}
	return map[string]any{"Pins": []string{near.String(), root.String()}}, nil
}

// pinRm unpins a root under one name.
func (a api) pinRm(_ http.ResponseWriter, r *http.Request) (any, error) {
	c, err := cid.Decode(r.URL.Query().Get("arg"))
	if err != nil {
		return nil, err
	}
	if err := a.n.Unpin(r.Context(), r.URL.Query().Get("name"), c); err != nil {
		return nil, err
	}
	return map[string]any{"Pins": []string{c.String()}}, nil
}

// pinLs lists the pins of one name.
func (a api) pinLs(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.URL.Query().Get("name")
	roots, err := a.n.Pins(r.Context(), name)
	if err != nil {
		return nil, err
	}
	keys := make(map[string]map[string]string, len(roots))
	for _, c := range roots {
		keys[c.String()] = map[string]string{"Type": "recursive", "Name": name}
	}
	return map[string]any{"Keys": keys}, nil
}

func (a api) namePut(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := ipns.NameFromString(strings.TrimPrefix(r.URL.Query().Get("arg"), "/ipns/"))
	if err != nil {
		return nil, err
	}
	part, err := filePart(r)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(part, int64(ipns.MaxRecordSize)+1))
	if err != nil {
		return nil, err
	}
	if err := a.n.PutRecord(r.Context(), name, raw); err != nil {
		return nil, err
	}
	return map[string]string{"Name": name.String()}, nil
}

func (a api) nameGet(_ http.ResponseWriter, r *http.Request) (any, error) {
	name, err := ipns.NameFromString(strings.TrimPrefix(r.URL.Query().Get("arg"), "/ipns/"))
	if err != nil {
		return nil, err
	}
	return a.n.Record(r.Context(), name)
}
