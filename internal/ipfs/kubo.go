package ipfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/kubo/client/rpc"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// KuboOptions says where a daemon is.
type KuboOptions struct {
	// API is the RPC API: a multiaddr (/ip4/127.0.0.1/tcp/5001, /unix/PATH),
	// an http or https URL, or "" for where Kubo's own clients look
	// ($IPFS_PATH/api, else ~/.ipfs/api).
	API string
	// Authorization is the header of that name, for a daemon with
	// API.Authorizations. It is never logged.
	Authorization string
	// Repo is the path of the daemon's repository, for Checkpoint; "" means
	// to look where the daemon and Kubo's own clients have it.
	Repo string
	// Patience is how long one call is tried again while the daemon is away;
	// 0 means 30 seconds. OpenKubo itself does not wait.
	Patience time.Duration
}

// Kubo is a Kubo daemon over its RPC API, or an Embedded of another process
// over ListenAPI's socket, which answers the same calls.
type Kubo struct {
	api      *rpc.HttpApi
	addr     string
	http     *http.Client // for the daemon's gateway
	patience time.Duration
	host     string        // the API's host, "" for a unix socket
	suspect  time.Duration // how long a pin may take before it is looked into

	holding *atomic.Bool // Hold was called since Checkpoint last flushed MFS

	// Learnt by OpenKubo.
	repo     string // the repository's path, where it is on this machine, else ""
	embedded bool   // it is one of ours
}

var (
	_ Node      = (*Kubo)(nil)
	_ Collector = (*Kubo)(nil)
)

// Limits of one dag/import.
const (
	carBlocks = 4096
	carBytes  = 64 << 20
)

// OpenKubo connects to a daemon and asks who it is. A daemon that does not
// answer within ten seconds is ErrAway.
func OpenKubo(ctx context.Context, o KuboOptions) (*Kubo, error) {
	addr := o.API
	if addr == "" {
		var err error
		if addr, err = localAPI(); err != nil {
			return nil, err
		}
	}
	k := &Kubo{addr: addr, patience: o.Patience, suspect: 5 * time.Second, holding: new(atomic.Bool), http: &http.Client{Timeout: time.Minute}}
	if k.patience == 0 {
		k.patience = 30 * time.Second
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, WriteBufferSize: 256 << 10}
	base := ""
	if strings.HasPrefix(addr, "http://") || strings.HasPrefix(addr, "https://") {
		u, err := url.Parse(addr)
		if err != nil {
			return nil, fmt.Errorf("IPFS API: %w", err)
		}
		base, k.host = strings.TrimRight(addr, "/"), u.Hostname()
	} else {
		a, err := ma.NewMultiaddr(addr)
		if err != nil {
			return nil, fmt.Errorf("IPFS API %q is neither a URL nor a multiaddr: %w", addr, err)
		}
		network, dial, err := manet.DialArgs(a)
		if err != nil {
			return nil, fmt.Errorf("IPFS API %q: %w", addr, err)
		}
		switch network {
		case "unix":
			base = "http://unix"
			transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", dial)
			}
		default:
			base = "http://" + dial
			for _, p := range a.Protocols() {
				if p.Code == ma.P_HTTPS || p.Code == ma.P_TLS {
					base = "https://" + dial
				}
			}
			if k.host, _, err = net.SplitHostPort(dial); err != nil {
				return nil, fmt.Errorf("IPFS API %q: %w", addr, err)
			}
		}
	}
	var err error
	k.api, err = rpc.NewURLApiWithClient(base, &http.Client{Transport: transport})
	if err != nil {
		return nil, err
	}
	if o.Authorization != "" {
		k.api.Headers.Set("Authorization", o.Authorization)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var id identity
	if err := k.call(ctx, k.api.Request("id"), &id); err != nil {
		if ctx.Err() != nil && !errors.Is(err, ErrAway) {
			err = fmt.Errorf("%w: %w", ErrAway, err)
		}
		return nil, fmt.Errorf("IPFS API %s: %w", addr, err)
	}
	k.embedded = strings.HasPrefix(id.AgentVersion, agentPrefix)
	if k.onThisMachine() && !k.embedded {
		k.repo = k.findRepo(ctx, id.ID, o.Repo)
	}
	return k, nil
}

// findRepo returns the path of the repository of the daemon with that peer ID,
// "" if it is not found on this machine: a daemon in a container has a path of
// its own, and one of another user may not be readable.
func (k *Kubo) findRepo(ctx context.Context, id, named string) string {
	candidates := []string{named, os.Getenv(rpc.EnvDir)}
	var sys struct {
		Environment struct {
			Path string `json:"IPFS_PATH"`
		} `json:"environment"`
	}
	// Kubo's full repo/stat names the path too, but counts all blocks first.
	if err := k.call(ctx, k.api.Request("diag/sys"), &sys); err == nil {
		candidates = append(candidates, sys.Environment.Path)
	}
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append(candidates, filepath.Join(home, rpc.DefaultPathName))
	}
	for _, dir := range candidates {
		if dir == "" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, "config"))
		if err != nil {
			continue
		}
		var conf struct{ Identity struct{ PeerID string } }
		if json.Unmarshal(raw, &conf) == nil && conf.Identity.PeerID == id {
			return dir
		}
	}
	return ""
}

// localAPI returns the address of this user's Kubo daemon.
func localAPI() (string, error) {
	dir := os.Getenv(rpc.EnvDir)
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, rpc.DefaultPathName)
	}
	return readAPI(dir)
}

// EmbeddedAPI returns the address for KuboOptions.API of the embedded node in
// dir, ErrAway where no process serves it.
func EmbeddedAPI(dir string) (string, error) { return readAPI(dir) }

func readAPI(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, apiFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: no %s, so no daemon is running", ErrAway, filepath.Join(dir, apiFile))
	}
	return strings.TrimSpace(string(raw)), err
}

func (k *Kubo) onThisMachine() bool {
	if k.host == "" || k.host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(k.host)
	return err == nil && ip.IsLoopback()
}

// Close gives up idle connections.
func (k *Kubo) Close() error {
	k.http.CloseIdleConnections()
	return nil
}

// errUnknownCommand is returned for a command that this daemon does not have.
var errUnknownCommand = errors.New("the daemon does not know this command")

// remoteCauses tells errors apart by the text in which Kubo reports them: its
// API has no codes for them. ListenAPI's server uses the same texts.
var remoteCauses = []struct {
	text  string
	cause error
}{
	{"ipld: could not find", ErrNotFound},
	{"routing: not found", ErrNotFound},
	{"failed to find any peer in table", ErrNotFound},
	{"existing IPNS record has sequence", ErrSuperseded},
	{"record validation failed", ErrInvalidRecord},
	{"invalid IPNS record", ErrInvalidRecord},
	{"command not found", errUnknownCommand},
	{ErrCorrupt.Error(), ErrCorrupt},
	{ErrDamaged.Error(), ErrDamaged},
	{ErrCollecting.Error(), ErrCollecting},
	{"no space left on device", ErrFull},
	{"disk quota exceeded", ErrFull},
	{"context canceled", ErrAway}, // so Kubo ends calls when it is told to stop
}

// failure turns what a call ended with into this package's errors.
func failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var remote *rpc.Error
	if !errors.As(err, &remote) {
		// Without an answer, or cut off within one.
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	for _, c := range remoteCauses {
		if strings.Contains(remote.Message, c.text) {
			return fmt.Errorf("%w: %s", c.cause, remote.Message)
		}
	}
	return errors.New(remote.Message)
}

// call sends one request and decodes its one answer, of at most 4 MiB.
func (k *Kubo) call(ctx context.Context, req rpc.RequestBuilder, answer any) error {
	raw, err := k.read(ctx, req, 4<<20)
	if err != nil || answer == nil {
		return err
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("%w: an answer that is not JSON: %w", ErrAway, err)
	}
	return nil
}

// read sends one request and returns its answer, which has at most limit bytes.
func (k *Kubo) read(ctx context.Context, req rpc.RequestBuilder, limit int64) ([]byte, error) {
	resp, err := req.Send(ctx)
	if err != nil {
		return nil, failure(ctx, err)
	}
	if resp.Error != nil {
		return nil, failure(ctx, resp.Error)
	}
	defer resp.Cancel()
	raw, err := io.ReadAll(io.LimitReader(resp.Output, limit+1))
	if err != nil {
		return nil, failure(ctx, streamError(err))
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("an answer of more than %d bytes", limit)
	}
	return raw, nil
}

// streamError gives an error that Kubo sent after it had begun its answer (in
// a trailer, which the client returns as a bare error) the form of one that it
// sent at once. Errors of the connection stay.
func streamError(err error) error {
	var netErr net.Error
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &netErr) || errors.Is(err, context.Canceled) {
		return err
	}
	return &rpc.Error{Message: err.Error()}
}

// insist calls f again while the daemon is away, for a daemon that restarts,
// until Patience is over. All calls of this client may be repeated.
func (k *Kubo) insist(ctx context.Context, what string, limit time.Duration, f func(ctx context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, 2*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		err := f(ctx)
		if err != nil && !errors.Is(err, ErrAway) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(k.patience))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Put implements Node: one CAR by dag/import for each 4,096 blocks or 64 MiB,
// in one request at a time, the count of blocks compared. Nothing is pinned
// and nothing announced.
func (k *Kubo) Put(ctx context.Context, blks []blocks.Block) error {
	for len(blks) > 0 {
		size, n := 0, 0
		for n < len(blks) && n < carBlocks && (n == 0 || size+len(blks[n].RawData()) <= carBytes) {
			size += len(blks[n].RawData())
			n++
		}
		batch := blks[:n]
		blks = blks[n:]
		err := k.insist(ctx, fmt.Sprintf("import %d blocks", n), 5*time.Minute, func(ctx context.Context) error {
			return k.importCAR(ctx, batch)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// importCAR sends one CAR, under Kubo's lock against garbage collection: one
// that runs beside an import would miss the leaves of a file whose root came
// after it had looked at what Hold was given.
func (k *Kubo) importCAR(ctx context.Context, blks []blocks.Block) error {
	raw, err := k.read(ctx, k.api.Request("dag/import").
		Option("pin-roots", true). // takes the lock, and pins nothing: see nobodysRoot
		Option("fast-provide-root", false).
		Option("stats", true).
		FileBody(newCAR(nobodysRoot, blks)), 4<<20)
	if err != nil {
		return err
	}
	var answer struct{ Stats struct{ BlockCount int } }
	for d := json.NewDecoder(bytes.NewReader(raw)); ; {
		err := d.Decode(&answer)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: an answer that is not JSON: %w", ErrAway, err)
		}
	}
	if answer.Stats.BlockCount != len(blks) {
		return fmt.Errorf("sent %d blocks, the daemon counted %d", len(blks), answer.Stats.BlockCount)
	}
	return nil
}

// heldDir is where Hold keeps its directories in MFS, Kubo's file system of
// what its user wants to keep (https://docs.ipfs.tech/concepts/file-systems/):
// heldDir/LABEL/CID. `ipfs files rm -r` of a label lets go of it.
const heldDir = "/registry-mirror/held"

// Hold implements Node: the roots become one directory, which is copied into
// MFS. MFS is a root of garbage collection that may be incomplete, so this
// comes before what is held; a pin would have to walk and read all of it. The
// daemon knows of it at once, its disk from Checkpoint's flush on.
func (k *Kubo) Hold(ctx context.Context, label string, roots []cid.Cid) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if len(roots) == 0 {
		return nil
	}
	dir, err := k.directory(ctx, roots)
	if err != nil {
		return fmt.Errorf("hold %q: %w", label, err)
	}
	defer k.holding.Store(true) // whatever the call ends with: it may have been done
	return k.insist(ctx, fmt.Sprintf("hold %q", label), time.Minute, func(ctx context.Context) error {
		copy := func() error {
			return k.call(ctx, k.api.Request("files/cp", "/ipfs/"+dir.String(), heldPath(label, dir)).
				Option("parents", true).
				Option("flush", false).
				Option("offline", true), nil)
		}
		err := copy()
		if err != nil && strings.Contains(err.Error(), "unflushed MFS operations") {
			// Kubo bounds how many there may be, whoever made them: 256.
			if err = k.call(ctx, k.api.Request("files/flush"), nil); err == nil {
				err = copy()
			}
		}
		if err != nil && strings.Contains(err.Error(), "already has entry by that name") {
			return nil
		}
		return err
	})
}

func heldPath(label string, dir cid.Cid) string { return path.Join(heldDir, label, dir.String()) }

// directory puts a directory of roots. The same roots are the same directory.
func (k *Kubo) directory(ctx context.Context, roots []cid.Cid) (cid.Cid, error) {
	roots = slices.Clone(roots)
	slices.SortFunc(roots, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })
	roots = slices.CompactFunc(roots, cid.Cid.Equals)
	links := make([]unixfs.Link, len(roots))
	for i, c := range roots {
		links[i] = unixfs.Link{Name: strconv.Itoa(i), CID: c}
	}
	var blks []blocks.Block
	dir, overflow, err := unixfs.BuildDir(links, unixfs.DirLimit, func(b blocks.Block) error {
		blks = append(blks, b)
		return nil
	})
	if err == nil && len(overflow) > 0 {
		err = fmt.Errorf("%d roots do not fit into one directory", len(roots))
	}
	if err != nil {
		return cid.Undef, err
	}
	return dir.CID, k.Put(ctx, blks)
}

// Unhold implements Node. A directory that Hold copied into MFS and that has
// some of roots is replaced by one of what else it has. Kubo has all directories
// of a label read for that, so it is worth its while for many roots at once.
//
// The order is law: the directory of what stays is in MFS, flushed, before the
// one that it replaces goes. A crash between the two leaves both.
func (k *Kubo) Unhold(ctx context.Context, label string, roots []cid.Cid) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if len(roots) == 0 {
		return nil
	}
	if err := k.unhold(ctx, label, roots); err != nil {
		return fmt.Errorf("unhold %q: %w", label, err)
	}
	return nil
}

func (k *Kubo) unhold(ctx context.Context, label string, roots []cid.Cid) error {
	if k.embedded {
		// Our own node takes the directory for what it lists.
		dir, err := k.directory(ctx, roots)
		if err != nil {
			return err
		}
		return k.dropHeld(ctx, label, dir)
	}
	var all struct{ Hash string }
	err := k.insist(ctx, "read what is held", time.Minute, func(ctx context.Context) error {
		return k.call(ctx, k.api.Request("files/stat", path.Join(heldDir, label)).Option("hash", true), &all)
	})
	if err != nil && strings.Contains(err.Error(), "file does not exist") {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := cid.Decode(all.Hash)
	if err != nil {
		return err
	}
	gone := make(map[cid.Cid]bool, len(roots))
	for _, c := range roots {
		gone[c] = true
	}
	for l, err := range unixfs.List(ctx, localBlocks{k}, root) {
		if err != nil {
			return err
		}
		var stay []cid.Cid
		touched := false
		for held, err := range unixfs.List(ctx, localBlocks{k}, l.CID) {
			if err != nil {
				return err
			}
			if gone[held.CID] {
				touched = true
			} else {
				stay = append(stay, held.CID)
			}
		}
		if !touched {
			continue
		}
		if len(stay) > 0 {
			if err := k.Hold(ctx, label, stay); err != nil {
				return err
			}
			err := k.insist(ctx, "flush what is held", 2*time.Minute, func(ctx context.Context) error {
				return k.call(ctx, k.api.Request("files/flush"), nil)
			})
			if err != nil {
				return err
			}
		}
		if err := k.dropHeld(ctx, label, l.CID); err != nil {
			return err
		}
	}
	return nil
}

// dropHeld takes one of Hold's directories out of MFS, which Kubo flushes then.
func (k *Kubo) dropHeld(ctx context.Context, label string, dir cid.Cid) error {
	return k.insist(ctx, "drop "+dir.String(), 2*time.Minute, func(ctx context.Context) error {
		err := k.call(ctx, k.api.Request("files/rm", heldPath(label, dir)).Option("recursive", true).Option("force", true), nil)
		if err != nil && strings.Contains(err.Error(), "file does not exist") {
			return nil
		}
		return err
	})
}

// checkLabel refuses what is no name in a directory.
func checkLabel(label string) error {
	if label == "" || label == "." || label == ".." || len(label) > 100 || strings.ContainsAny(label, "/\x00") || !utf8.ValidString(label) {
		return fmt.Errorf("label %.200q is not a file name of at most 100 bytes", label)
	}
	return nil
}

// Free implements Node. It is unknown for a daemon whose repository is not on
// this machine, as Checkpoint is.
func (k *Kubo) Free(ctx context.Context) (bytes uint64, known bool, err error) {
	if k.embedded {
		var answer struct{ Free *uint64 }
		err = k.insist(ctx, "free space of the IPFS node", 30*time.Second, func(ctx context.Context) error {
			return k.call(ctx, k.api.Request("repo/free"), &answer)
		})
		if err != nil || answer.Free == nil {
			return 0, false, err
		}
		return *answer.Free, true, nil
	}
	if k.repo == "" {
		return 0, false, nil
	}
	for _, dir := range k.disks() {
		free, err := FreeSpace(dir)
		if err != nil {
			return 0, false, err
		}
		if !known || free < bytes {
			bytes, known = free, true
		}
	}
	return bytes, known, nil
}

// disks are directories of the daemon's repository, one for each file system
// that it lies on: datastores may be mounted apart from it.
func (k *Kubo) disks() []string {
	var dirs []string
	seen := map[uint64]bool{}
	for _, dir := range []string{k.repo, filepath.Join(k.repo, "blocks"), filepath.Join(k.repo, "datastore")} {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != k.repo {
			continue
		}
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				if seen[uint64(st.Dev)] {
					continue
				}
				seen[uint64(st.Dev)] = true
			}
		}
		dirs = append(dirs, dir) // what cannot be looked at fails where it is used
	}
	return dirs
}

// full makes an error of the system that says so ErrFull.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// Checkpoint implements Node: what was held leaves the daemon's memory, then
// syncfs(2) on its repository, for Kubo has no command that reaches the disk:
// its pins do not, by default. Where the repository is not on this machine it
// returns nil and proves nothing; Info.Durable says so, and what was put must be
// checked again later.
func (k *Kubo) Checkpoint(ctx context.Context) error {
	if k.embedded {
		return k.insist(ctx, "checkpoint", 2*time.Minute, func(ctx context.Context) error {
			return k.call(ctx, k.api.Request("repo/checkpoint"), nil)
		})
	}
	if k.holding.Swap(false) {
		err := k.insist(ctx, "checkpoint", 2*time.Minute, func(ctx context.Context) error {
			return k.call(ctx, k.api.Request("files/flush"), nil)
		})
		if err != nil {
			k.holding.Store(true)
			return err
		}
	}
	if k.repo == "" {
		return nil
	}
	for _, dir := range k.disks() {
		if err := syncFilesystem(dir); err != nil {
			return fmt.Errorf("checkpoint %s: %w", dir, full(err))
		}
	}
	return nil
}

// Collect implements Collector for our own node; a Kubo daemon is
// ErrKuboCollects. It is asked once: one that went away begins anew when it is
// asked again.
func (k *Kubo) Collect(ctx context.Context, progress func(stage string, done, total int)) (c Collected, err error) {
	if !k.embedded {
		return c, ErrKuboCollects
	}
	resp, err := k.api.Request("repo/gc").Send(ctx)
	if err != nil {
		return c, fmt.Errorf("collect garbage: %w", failure(ctx, err))
	}
	if resp.Error != nil {
		return c, failure(ctx, resp.Error)
	}
	defer resp.Cancel()
	for d := json.NewDecoder(resp.Output); ; {
		var line collectLine
		if err := d.Decode(&line); err != nil {
			return c, fmt.Errorf("collect garbage: %w", failure(ctx, err)) // it ended without an answer
		}
		switch {
		case line.Error != "":
			return c, failure(ctx, &rpc.Error{Message: line.Error})
		case line.Collected != nil:
			return *line.Collected, nil
		case progress != nil:
			progress(line.Stage, line.Done, line.Total)
		}
	}
}

// collectLine is a line of repo/gc's answer: how far it came, then what it did or
// why it failed.
type collectLine struct {
	Stage       string     `json:",omitempty"`
	Done, Total int        `json:",omitempty"`
	Collected   *Collected `json:",omitempty"`
	Error       string     `json:",omitempty"`
}

// Local implements Node.
func (k *Kubo) Local(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return k.block(ctx, c, 30*time.Second, true)
}

// Get implements Node. Without a deadline of the caller's it asks for five
// minutes.
func (k *Kubo) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return k.block(ctx, c, 5*time.Minute, false)
}

func (k *Kubo) block(ctx context.Context, c cid.Cid, limit time.Duration, offline bool) (b blocks.Block, err error) {
	err = k.insist(ctx, "block "+c.String(), limit, func(ctx context.Context) error {
		raw, err := k.read(ctx, k.api.Request("block/get", c.String()).Option("offline", offline), maxBlock)
		if err != nil {
			if ctx.Err() != nil && !offline {
				err = fmt.Errorf("%w: %w", ErrNotFound, err)
			}
			return err
		}
		if err := verify(c, raw); err != nil {
			return err
		}
		b, err = blocks.NewBlockWithCid(raw, c)
		return err
	})
	return b, err
}

// Pin implements Node: pin/add for the first root, which walks it whole, and
// pin/update beside near, which walks what differs. A near that the daemon has
// lost is as none. In Kubo a root has one pin and one name: under another label
// it is pinned anew, and the former label no longer has it.
//
// Kubo looks for a missing block on the network, for ever. So a pin that takes
// long is looked into from here: once a block turns out to be missing, the
// call is given up, as ErrNotFound.
func (k *Kubo) Pin(ctx context.Context, label string, near, root cid.Cid) error {
	// Hours, for the first root of a large registry.
	return k.insist(ctx, fmt.Sprintf("pin %q to %s", label, root), 12*time.Hour, func(ctx context.Context) error {
		ctx, giveUp := context.WithCancelCause(ctx)
		defer giveUp(nil)
		looked := make(chan struct{})
		answered := make(chan struct{})
		go func() {
			defer close(looked)
			select {
			case <-time.After(k.suspect):
			case <-answered:
				return
			}
			if err := whole(ctx, localBlocks{k}, near, root); errors.Is(err, ErrNotFound) {
				giveUp(err)
			}
		}()
		err := k.pin(ctx, label, near, root)
		close(answered)
		if err == nil {
			giveUp(nil)
		}
		<-looked
		if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrNotFound) {
			return cause
		}
		return err
	})
}

func (k *Kubo) pin(ctx context.Context, label string, near, root cid.Cid) error {
	if near.Defined() && !near.Equals(root) {
		req := k.api.Request("pin/update", near.String(), root.String()).Option("unpin", false)
		if k.embedded {
			return k.call(ctx, req.Option("name", label), nil) // Kubo gives the new pin the old one's name
		}
		err := k.call(ctx, req, nil)
		if err == nil || strings.Contains(err.Error(), "was already recursively pinned") {
			return nil
		}
		if !strings.Contains(err.Error(), "not recursively pinned") {
			return err
		}
	}
	return k.call(ctx, k.api.Request("pin/add", root.String()).Option("name", label), nil)
}

// Unpin implements Node by pin/rm.
func (k *Kubo) Unpin(ctx context.Context, label string, root cid.Cid) error {
	return k.insist(ctx, fmt.Sprintf("unpin %s from %q", root, label), 2*time.Minute, func(ctx context.Context) error {
		req := k.api.Request("pin/rm", root.String())
		if k.embedded {
			return k.call(ctx, req.Option("name", label), nil)
		}
		pins, err := k.listPins(ctx, k.api.Request("pin/ls", root.String()).Option("names", true))
		if err != nil && strings.Contains(err.Error(), "is not pinned") {
			return nil
		}
		if err != nil {
			return err
		}
		// Another label's stays. Without a name it is an older Kubo's pin/update.
		if name := pins[root]; name != label && name != "" {
			return nil
		}
		err = k.call(ctx, req, nil)
		if err != nil && strings.Contains(err.Error(), "not pinned") {
			return nil
		}
		return err
	})
}

// Pins implements Node by pin/ls.
func (k *Kubo) Pins(ctx context.Context, label string) (roots []cid.Cid, err error) {
	err = k.insist(ctx, fmt.Sprintf("pins of %q", label), 2*time.Minute, func(ctx context.Context) error {
		pins, err := k.listPins(ctx, k.api.Request("pin/ls").Option("name", label).Option("names", true))
		roots = nil
		for c, name := range pins {
			if name == label { // Kubo lists also those that have label in their name
				roots = append(roots, c)
			}
		}
		return err
	})
	return roots, err
}

// listPins gives the recursive pins that a pin/ls lists, with their names.
func (k *Kubo) listPins(ctx context.Context, req rpc.RequestBuilder) (map[cid.Cid]string, error) {
	var answer struct {
		Keys map[string]struct{ Name string }
	}
	if err := k.call(ctx, req.Option("type", "recursive"), &answer); err != nil {
		return nil, err
	}
	pins := make(map[cid.Cid]string, len(answer.Keys))
	for text, pin := range answer.Keys {
		c, err := cid.Decode(text)
		if err != nil {
			return nil, fmt.Errorf("%w: a pin that is no CID: %w", ErrAway, err)
		}
		pins[c] = pin.Name
	}
	return pins, nil
}

// PutRecord implements Node by name/put, and by routing/put for a Kubo before
// 0.40. The record is checked here first, for routing/put reports no failure.
func (k *Kubo) PutRecord(ctx context.Context, name ipns.Name, record []byte) error {
	if _, err := checkRecord(name, record); err != nil {
		return err
	}
	return k.insist(ctx, "put record of "+name.String(), 3*time.Minute, func(ctx context.Context) error {
		err := k.call(ctx, k.api.Request("name/put", name.String()).
			Option("allow-offline", true).
			FileBody(bytes.NewReader(record)), nil)
		if errors.Is(err, errUnknownCommand) {
			_, err = k.read(ctx, k.api.Request("routing/put", name.AsPath().String()).
				Option("allow-offline", true).
				FileBody(bytes.NewReader(record)), 4<<20)
		}
		return err
	})
}

// Record implements Node by name/get, and where that fails (a Kubo before
// 0.40, or one with --offline) by the daemon's own gateway.
func (k *Kubo) Record(ctx context.Context, name ipns.Name) (record []byte, err error) {
	err = k.insist(ctx, "record of "+name.String(), time.Minute, func(ctx context.Context) error {
		var err error
		record, err = k.read(ctx, k.api.Request("name/get", name.String()), int64(ipns.MaxRecordSize))
		if err == nil || errors.Is(err, ErrAway) || errors.Is(err, ErrNotFound) {
			return err
		}
		base, errGateway := k.gateway(ctx)
		if errGateway != nil || base == "" {
			return err
		}
		var errRecord error
		record, errRecord = NewGateway(base).Record(ctx, name)
		if errRecord != nil && !errors.Is(errRecord, ErrNotFound) {
			return errors.Join(err, errRecord)
		}
		return errRecord
	})
	return record, err
}

// Connect implements Node.
func (k *Kubo) Connect(ctx context.Context, addr string) error {
	return k.insist(ctx, "dial "+addr, 30*time.Second, func(ctx context.Context) error {
		return k.call(ctx, k.api.Request("swarm/connect", addr), nil)
	})
}

// identity is the answer of id.
type identity struct {
	ID           string
	Addresses    []string
	AgentVersion string
}

// Info implements Node.
func (k *Kubo) Info(ctx context.Context) (info Info, err error) {
	err = k.insist(ctx, "ask the IPFS node", 30*time.Second, func(ctx context.Context) error {
		var id identity
		if err := k.call(ctx, k.api.Request("id"), &id); err != nil {
			return err
		}
		var peers struct{ Peers []struct{ Peer string } }
		if err := k.call(ctx, k.api.Request("swarm/peers"), &peers); err != nil && !strings.Contains(err.Error(), "offline") {
			return err
		}
		base, err := k.gateway(ctx)
		if err != nil {
			return err
		}
		info = Info{ID: id.ID, Agent: id.AgentVersion, Addrs: id.Addresses, Gateway: base,
			Peers: len(peers.Peers), Durable: k.embedded || k.repo != ""}
		return nil
	})
	return info, err
}

// gateway returns the base URL of the daemon's gateway, as seen from here, ""
// where it has none.
func (k *Kubo) gateway(ctx context.Context) (string, error) {
	var conf struct{ Value any }
	if err := k.call(ctx, k.api.Request("config", "Addresses.Gateway"), &conf); err != nil {
		return "", err
	}
	var addrs []string
	switch v := conf.Value.(type) {
	case string:
		addrs = []string{v}
	case []any:
		for _, a := range v {
			if s, ok := a.(string); ok {
				addrs = append(addrs, s)
			}
		}
	}
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		network, dial, err := manet.DialArgs(a)
		if err != nil || !strings.HasPrefix(network, "tcp") {
			continue
		}
		host, port, err := net.SplitHostPort(dial)
		if err != nil {
			continue
		}
		if port == "0" {
			// The port that was chosen is in the repository alone.
			raw, err := os.ReadFile(filepath.Join(k.repo, "gateway"))
			if k.repo == "" || err != nil {
				continue
			}
			return strings.TrimRight(strings.TrimSpace(string(raw)), "/"), nil
		}
		if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
			if host = k.host; host == "" || k.onThisMachine() {
				host = "127.0.0.1"
			}
		}
		return "http://" + net.JoinHostPort(host, port), nil
	}
	return "", nil
}
