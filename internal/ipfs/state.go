package ipfs

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// Files in the directory of an embedded node.
const (
	stateFile    = "node.json"    // what the node was made with; its presence makes a directory a node
	identityFile = "identity.key" // libp2p-protobuf-cleartext Ed25519, 0600: the peer ID, not an IPNS key
	apiFile      = "api"          // multiaddr of the RPC socket while the node is served, as in Kubo's repository
	blocksDir    = "blocks"       // the Pebble
	runDir       = "run"          // the RPC socket, 0700
)

// Network is how far an embedded node reaches. It is chosen once, when the
// node is made.
type Network string

const (
	// Local listens and dials on loopback only and neither bootstraps nor
	// announces.
	Local Network = "local"
	// LAN listens on all interfaces, speaks with private addresses only and
	// finds peers by mDNS.
	LAN Network = "lan"
	// Public is a client of the public DHT.
	Public Network = "public"
)

func (n Network) valid() error {
	switch n {
	case Local, LAN, Public:
		return nil
	}
	return fmt.Errorf("network %q is none of %q, %q, %q", string(n), Local, LAN, Public)
}

// state is node.json. Ports that the node chose itself are kept in it, so that
// its addresses survive a restart.
type state struct {
	Format  int      `json:"format"`
	Network Network  `json:"network"`
	Listen  []string `json:"listen,omitempty"`  // multiaddrs bound at the last start
	Gateway string   `json:"gateway,omitempty"` // host:port bound at the last start
}

// stateFormat is 2 since large blocks lie in CAR files. What format 1 holds is
// read as it is, and has the new number once a node was opened on it.
const stateFormat = 2

func readState(dir string) (state, error) {
	path := filepath.Join(dir, stateFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fmt.Errorf("%s: %w", dir, ErrNoNode)
	}
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return state{}, fmt.Errorf("%s: %w", path, err)
	}
	if s.Format < 1 || s.Format > stateFormat {
		return state{}, fmt.Errorf("%s: format %d, this program knows up to %d", path, s.Format, stateFormat)
	}
	return s, s.Network.valid()
}

func (s state) write(dir string) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, stateFile), append(raw, '\n'))
}

// writeFile replaces path by data, 0600, durably: old or new, never half.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// mintIdentity writes a new node identity.
func mintIdentity(dir string) error {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return err
	}
	raw, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, identityFile), raw)
}

func readIdentity(dir string) (crypto.PrivKey, error) {
	path := filepath.Join(dir, identityFile)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %o): chmod 600 it", path, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}
