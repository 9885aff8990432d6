package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Row is a registry that this machine mirrors beside others.
type Row struct {
	Label   string   `json:"registry"` // what people here call it
	Address string   `json:"address"`  // /ipns/NAME or /ipfs/CID
	Domain  string   `json:"domain,omitempty"`
	Scopes  []string `json:"scopes,omitempty"`
	// Packages are names that it claims beside its scopes.
	Packages []string `json:"packages,omitempty"`
	Gateways []string `json:"gateways,omitempty"`
	Routes   []string `json:"routes,omitempty"`
	Peers    []string `json:"peers,omitempty"`
	// PublishTo is the URL of the registry that takes writes of what it claims.
	PublishTo string `json:"publish_to,omitempty"`
	// Network is of the node that only this registry's network is for; "" is the
	// state's own node.
	Network string `json:"network,omitempty"`
}

// Table is table.json: which registries are mirrored, in the order in which they
// are asked.
type Table struct {
	Format int   `json:"format"` // tableFormat
	Rows   []Row `json:"registries"`
	// Domains are where the DNSLink of a domain led when it was first looked up.
	// An attacker who can write the DNS cannot move who has looked before.
	Domains map[string]string `json:"domains,omitempty"`
}

// tableFormat is the number of the form of table.json, maxTable its size in bytes.
const (
	tableFormat = 1
	maxTable    = 4 << 20
)

// ErrTable is returned for a table.json that cannot be read.
var ErrTable = errors.New("the table of registries is damaged")

// Network is the state, within this one, of the node of another network: one
// node, and one set of blocks, for each.
func (d Dir) Network(network string) Dir { return Dir(d.path("networks", network)) }

// Table reads table.json; none is an empty table. Error: ErrTable.
func (d Dir) Table() (Table, error) {
	f, err := os.Open(d.path("table.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Table{Format: tableFormat}, nil
	}
	if err != nil {
		return Table{}, fmt.Errorf("read the table of registries: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxTable))
	if err != nil {
		return Table{}, fmt.Errorf("read the table of registries: %w", err)
	}
	var t Table
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return Table{}, fmt.Errorf("%s: %w: %w", f.Name(), ErrTable, err)
	}
	if t.Format != tableFormat {
		return Table{}, fmt.Errorf("%s: %w: its format is %d, this version knows %d", f.Name(), ErrTable, t.Format, tableFormat)
	}
	return t, nil
}

// SetTable replaces table.json, durably: a crash leaves the old one or the new.
func (d Dir) SetTable(t Table) error {
	t.Format = tableFormat
	raw, err := json.MarshalIndent(t, "", "  ")
	if err == nil {
		err = d.Make()
	}
	if err == nil {
		err = d.replace("table.json", append(raw, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep the table of registries: %w", err)
	}
	return nil
}
