// Package state is the directory that the commands share: what lies where in
// it, which IPFS node it was made for, and which process answers for a part
// that has one owner. It opens nodes and ledgers; it knows nothing of what the
// commands do with them, nor of keys.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Dir is a state directory.
//
//	node.json                 which node, chosen once
//	node/                     the embedded node: identity, blocks, records, api
//	ledger/                   the follower's ledger
//	registry-keys.json        the public keys by which what is in it is signed, as its registry gave them
//	registries/NAME/index/    the publisher's index of the registry NAME
//	registries/NAME/journal   every record signed for it
//	registries/NAME/ran       empty; its time is when "publish --all" last published it
//	registries/NAME/hosted.json  of one that is published to: its scopes and tokens
//	registries/NAME/ledger/   of such a one: its own ledger
//	registries/NAME/COMMAND.sock  how others reach the COMMAND that serves it
//	keys/                     sealed keys, and the identity that opens them
//	mirror/NAME/              what registry-mirror caches of the IPNS name NAME, or of a CID
//	cache/                    which of its files go first, and which never
//	table.json                which registries it serves
//	clients/                  what the configuration of npm's clients said before "use"
//	networks/NETWORK/         a state of its own for the node of another network
//	tmp/                      tarballs too large for memory, while they come in
//	COMMAND.sock              how other processes reach the running COMMAND
type Dir string

func (d Dir) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}

// Node is the directory of the embedded node.
func (d Dir) Node() string { return d.path("node") }

// Ledger is the directory of the follower's ledger.
func (d Dir) Ledger() string { return d.path("ledger") }

// Index is the directory of the index of a registry of ours.
func (d Dir) Index(registry string) string { return d.path("registries", registry, "index") }

// Journal is the file that holds every record signed for a registry of ours.
func (d Dir) Journal(registry string) string { return d.path("registries", registry, "journal") }

// Ran is the file whose time is when a registry of ours was last published on its
// schedule.
func (d Dir) Ran(registry string) string { return d.path("registries", registry, "ran") }

// Hosted is the file that a registry has which is published to.
func (d Dir) Hosted(registry string) string { return d.path("registries", registry, "hosted.json") }

// HostedLedger is the directory of such a registry's own ledger.
func (d Dir) HostedLedger(registry string) string { return d.path("registries", registry, "ledger") }

// HostedSocket is where a command answers that serves such a registry.
func (d Dir) HostedSocket(registry, command string) string {
	return d.Socket(hostedCommand(registry, command))
}

func hostedCommand(registry, command string) string {
	return filepath.Join("registries", registry, command)
}

// IsHosted says whether a registry is published to, and so has a ledger of its own.
func (d Dir) IsHosted(registry string) bool {
	_, err := os.Lstat(d.Hosted(registry))
	return err == nil
}

// AllHosted lists the registries that are published to, by name.
func (d Dir) AllHosted() (names []string, err error) {
	all, err := os.ReadDir(d.path("registries"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, one := range all {
		if d.IsHosted(one.Name()) {
			names = append(names, one.Name())
		}
	}
	return names, err
}

// Keys is the directory of sealed keys.
func (d Dir) Keys() string { return d.path("keys") }

// Mirror is the directory of what is cached of the registry of an IPNS name.
func (d Dir) Mirror(name string) string { return d.path("mirror", name) }

// Cache is the directory of the account of what registry-mirror fetched, and of what
// is pinned.
func (d Dir) Cache() string { return d.path("cache") }

// Clients is the directory of notes on the configuration of npm's clients.
func (d Dir) Clients() string { return d.path("clients") }

// Makes says whether a follower or a publisher has this state too.
func (d Dir) Makes() bool {
	for _, path := range []string{d.Ledger(), d.path("registries")} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// Temp is a directory for spooled downloads.
func (d Dir) Temp() string { return d.path("tmp") }

// Socket is where a running command answers.
func (d Dir) Socket(command string) string { return d.path(command + ".sock") }

// Make makes the directory, for its owner alone.
func (d Dir) Make() error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("make state: %w", err)
	}
	return nil
}

// choice is node.json.
type choice struct {
	Format int    `json:"format"`        // choiceFormat
	Node   string `json:"node"`          // "embedded" or "kubo"
	API    string `json:"api,omitempty"` // of a Kubo daemon, "" for where Kubo's own clients look
}

// choiceFormat is the number of the form of node.json.
const choiceFormat = 1

// ErrOtherNode is returned when a command asks for another node than the one
// that the state was made with. A node is never replaced in silence: what the
// state lists lies in the old one.
var ErrOtherNode = errors.New("this state was made with another node")

// chosen returns the recorded node, after recording want if there is none.
func (d Dir) chosen(want choice) (choice, error) {
	path := d.path("node.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if want.Node == "" {
			want.Node = "embedded"
		}
		want.Format = choiceFormat
		return want, d.record(want)
	}
	if err != nil {
		return choice{}, fmt.Errorf("read the node of this state: %w", err)
	}
	var have choice
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&have); err != nil || have.Format != choiceFormat || have.Node != "embedded" && have.Node != "kubo" {
		return choice{}, fmt.Errorf("%s is damaged: %q", path, raw)
	}
	if want.Node != "" && want.Node != have.Node {
		return choice{}, fmt.Errorf("%w: %s, not %s", ErrOtherNode, have.Node, want.Node)
	}
	if want.API != "" && want.API != have.API {
		have.API = want.API // where the daemon answers may change; its blocks stay
		return have, d.record(have)
	}
	return have, nil
}

// ChooseNode records which node this state is made for, without reaching it,
// and returns its kind. Empty kind and api mean what is recorded, else embedded.
func (d Dir) ChooseNode(kind, api string) (string, error) {
	if err := d.Make(); err != nil {
		return "", err
	}
	c, err := d.chosen(choice{Node: kind, API: api})
	return c.Node, err
}

// Kubo says whether this state is made for a Kubo daemon, and where that answers (""
// for where Kubo's own clients look). It records nothing.
func (d Dir) Kubo() (api string, ok bool, err error) {
	if _, err := os.Stat(d.path("node.json")); errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	c, err := d.chosen(choice{})
	return c.API, c.Node == "kubo", err
}

// record replaces node.json.
func (d Dir) record(c choice) error {
	c.Format = choiceFormat
	raw, err := json.Marshal(c)
	if err == nil {
		err = d.replace("node.json", append(raw, '\n'))
	}
	if err != nil {
		return fmt.Errorf("record the node of this state: %w", err)
	}
	return nil
}

// replace replaces a file of d: written beside it, synced, renamed, and the
// directory synced, so that a crash leaves the old file or the new one.
func (d Dir) replace(base string, data []byte) error {
	f, err := os.CreateTemp(string(d), base+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), d.path(base)); err != nil {
		return err
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
