package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/ipfs/go-cid"
)

// maxRelease bounds release.json in bytes: what grows in it is the peers' and
// sources' lists.
const maxRelease = 1 << 20

// document is a release as JSON, in the order of fields that release.json has.
type document struct {
	Format     int          `json:"format"`
	Number     uint64       `json:"number"`
	Created    string       `json:"created"`
	Previous   string       `json:"previous,omitempty"`
	Jump       jumpDocument `json:"jump,omitzero"`
	List       listDocument `json:"list"`
	Parameters Parameters   `json:"parameters"`
	Packages   int          `json:"packages"`
	Versions   int          `json:"versions"`
	Sources    []Source     `json:"sources,omitempty"`
	Policy     string       `json:"policy,omitempty"`
	Names      []string     `json:"names,omitempty"`
	Next       string       `json:"next,omitempty"`
	Peers      []string     `json:"peers,omitempty"`
	Root       string       `json:"root,omitempty"` // in the store's row only
}

type jumpDocument struct {
	Number   uint64 `json:"number"`
	Earliest string `json:"earliest"`
	Root     string `json:"root"`
}

type listDocument struct {
	Root     string `json:"root"`
	Overflow string `json:"overflow"`
}

// encodeRelease writes release.json, or with root the store's row. The bytes
// follow from the release: fixed order, two spaces, one newline at the end.
func encodeRelease(r Release, root bool) ([]byte, error) {
	d := document{
		Format: r.Format, Number: r.Number, Created: r.Created.UTC().Format(time.RFC3339),
		Previous: text(r.Previous), List: listDocument{text(r.List.Root), text(r.List.Overflow)},
		Parameters: r.Parameters, Packages: r.Packages, Versions: r.Versions,
		Sources: r.Sources, Policy: r.Policy, Names: r.Names, Next: r.Next, Peers: r.Peers,
	}
	if r.Jump.Root.Defined() {
		d.Jump = jumpDocument{r.Jump.Number, r.Jump.Earliest.UTC().Format(time.RFC3339), text(r.Jump.Root)}
	}
	if root {
		d.Root = text(r.Root)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil {
		return nil, fmt.Errorf("encode release %d: %w", r.Number, err)
	}
	if buf.Len() > maxRelease {
		return nil, fmt.Errorf("encode release %d: %d bytes, %d allowed: %w", r.Number, buf.Len(), maxRelease, ErrRelease)
	}
	return buf.Bytes(), nil
}

// decodeRelease reads what encodeRelease wrote. Fields that it does not know
// are passed over; those that it does must be right. Errors wrap ErrRelease or
// ErrFormat.
func decodeRelease(raw []byte) (Release, error) {
	var v struct {
		Format int `json:"format"`
	}
	if err := jsonv2.Unmarshal(raw, &v); err != nil {
		return Release{}, fmt.Errorf("decode release: %w: %w", ErrRelease, err)
	}
	if v.Format != Format {
		return Release{}, fmt.Errorf("decode release: %w: %d", ErrFormat, v.Format)
	}
	var d document
	if err := jsonv2.Unmarshal(raw, &d); err != nil {
		return Release{}, fmt.Errorf("decode release: %w: %w", ErrRelease, err)
	}
	r := Release{
		Format: d.Format, Number: d.Number, Parameters: d.Parameters, Packages: d.Packages, Versions: d.Versions,
		Sources: d.Sources, Policy: d.Policy, Names: d.Names, Next: d.Next, Peers: d.Peers,
	}
	created, err := time.Parse(time.RFC3339, d.Created)
	r.Created = created.UTC()
	jumps := d.Jump != jumpDocument{}
	if jumps {
		earliest, jerr := time.Parse(time.RFC3339, d.Jump.Earliest)
		r.Jump = Jump{Number: d.Jump.Number, Earliest: earliest.UTC()}
		if err = errors.Join(err, jerr); d.Jump.Number == 0 || d.Jump.Number >= d.Number-1 {
			err = errors.Join(err, errors.New("its jump does not lead beyond the release before"))
		}
	}
	for _, f := range []struct {
		to   *cid.Cid
		text string
		need bool
	}{
		{&r.Previous, d.Previous, d.Number > 1}, {&r.Jump.Root, d.Jump.Root, jumps}, {&r.List.Root, d.List.Root, true},
		{&r.List.Overflow, d.List.Overflow, true}, {&r.Root, d.Root, false},
	} {
		if f.text == "" && !f.need {
			continue
		}
		c, cerr := cid.Decode(f.text)
		*f.to = c
		err = errors.Join(err, cerr)
	}
	if d.Number == 0 || d.Packages < 0 || d.Versions < 0 {
		err = errors.Join(err, errors.New("a number is out of range"))
	}
	if err != nil {
		return Release{}, fmt.Errorf("decode release: %w: %w", ErrRelease, err)
	}
	return r, nil
}

func text(c cid.Cid) string {
	if !c.Defined() {
		return ""
	}
	return c.String()
}
