package publish

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// listJSON is index.List as people and scripts see it.
type listJSON struct {
	Root     string `json:"root"`
	Overflow string `json:"overflow"`
}

func listOf(r index.Release) *listJSON {
	if r.Number == 0 {
		return nil
	}
	return &listJSON{Root: r.List.Root.String(), Overflow: r.List.Overflow.String()}
}

func nameText(n ipns.Name) string {
	if n.Equal(ipns.Name{}) {
		return ""
	}
	return n.String()
}

func cidText(c cid.Cid) string {
	if !c.Defined() {
		return ""
	}
	return c.String()
}

// MarshalJSON gives the object that --json prints, also of a Publish that failed
// before there was a name or a release.
func (r Result) MarshalJSON() ([]byte, error) {
	type route struct {
		Name     string `json:"name"`
		Put      string `json:"put_error,omitempty"`
		ReadBack bool   `json:"read_back"`
		Via      string `json:"via,omitempty"`
		Error    string `json:"error,omitempty"`
	}
	routesOf := func(all []Route) []route {
		routes := make([]route, len(all))
		for i, one := range all {
			routes[i] = route(one)
		}
		return routes
	}
	type former struct {
		Name     string    `json:"name"`
		Until    time.Time `json:"until"`
		Sequence uint64    `json:"sequence"`
		EOL      time.Time `json:"eol,omitzero"`
		Signed   bool      `json:"signed"`
		Routes   []route   `json:"routes"`
		Problem  string    `json:"problem,omitempty"`
	}
	var formers []former
	for _, f := range r.Former {
		formers = append(formers, former{f.Name.String(), f.Until, f.Sequence, f.EOL, f.Signed, routesOf(f.Routes), errText(f.Problem)})
	}
	return json.Marshal(struct {
		Name       string      `json:"name,omitempty"`
		Number     uint64      `json:"number"`
		CID        string      `json:"cid,omitempty"`
		List       *listJSON   `json:"list,omitempty"`
		Packages   int         `json:"packages"`
		Versions   int         `json:"versions"`
		Sequence   uint64      `json:"sequence"`
		EOL        time.Time   `json:"eol,omitzero"`
		Due        time.Time   `json:"signing_due,omitzero"`
		Signed     bool        `json:"signed"`
		LocalOnly  bool        `json:"local_only"`
		Routes     []route     `json:"routes"`
		Withheld   []Withheld  `json:"withheld,omitempty"`
		RolledBack *RolledBack `json:"rolled_back,omitempty"`
		Former     []former    `json:"former,omitempty"`
	}{
		nameText(r.Name), r.Number, cidText(r.CID), listOf(r.Release), r.Packages, r.Versions, r.Sequence, r.EOL, r.Due,
		r.Signed, r.LocalOnly, routesOf(r.Routes), r.Withheld, r.RolledBack, formers,
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// StatusJSON is Status as the socket and --json give it.
type StatusJSON struct {
	Registry   string     `json:"registry"` // its name in this state
	Name       string     `json:"name,omitempty"`
	Number     uint64     `json:"number"`
	CID        string     `json:"cid,omitempty"`
	List       *listJSON  `json:"list,omitempty"`
	Created    time.Time  `json:"created,omitzero"`
	Age        int64      `json:"age_s"` // since then
	Packages   int        `json:"packages"`
	Versions   int        `json:"versions"`
	Behind     bool       `json:"behind"`
	Sequence   uint64     `json:"sequence"`
	Value      string     `json:"value,omitempty"`
	EOL        time.Time  `json:"eol,omitzero"`
	Remaining  int64      `json:"remaining_s"`
	SigningDue time.Time  `json:"signing_due,omitzero"` // from then on the release is signed anew
	Confirmed  time.Time  `json:"confirmed,omitzero"`
	Network    uint64     `json:"network_sequence"` // 0 where no route has a record
	Routes     []viewJSON `json:"routes,omitempty"`
	Next       string     `json:"next"`
	Peers      []string   `json:"peers,omitempty"` // multiaddrs that readers may dial
	Problem    string     `json:"problem,omitempty"`
	Withheld   []Withheld `json:"withheld,omitempty"` // also by the policy, of that a thousand at most
	Policy     string     `json:"policy,omitempty"`   // of the release
	HeldMore   bool       `json:"withheld_more,omitempty"`
	Due        time.Time  `json:"due,omitzero"` // when the first of it comes of age
	// Former are the names that the registry had before, the oldest first.
	Former []FormerJSON `json:"former,omitempty"`
}

// FormerJSON is FormerStatus as the socket and --json give it.
type FormerJSON struct {
	Name      string    `json:"name"`
	Until     time.Time `json:"until"`
	Ended     bool      `json:"ended"`
	Sequence  uint64    `json:"sequence"`
	Value     string    `json:"value,omitempty"`
	EOL       time.Time `json:"eol,omitzero"`
	Confirmed time.Time `json:"confirmed,omitzero"`
	Problem   string    `json:"problem,omitempty"`
}

// viewJSON is what readers get by one route.
type viewJSON struct {
	Name     string    `json:"name"`
	Sequence uint64    `json:"sequence"` // 0 where it has no record
	EOL      time.Time `json:"eol,omitzero"`
	Error    string    `json:"error,omitempty"`
}

func (v RouteStatus) json() viewJSON {
	j := viewJSON{Name: v.Name}
	if v.Record != nil {
		j.Sequence, j.EOL = v.Record.Sequence, v.Record.EOL
	}
	if v.Error != nil && !errors.Is(v.Error, ipfs.ErrNotFound) {
		j.Error = v.Error.Error()
	}
	return j
}

// JSON is the status of a registry in the form that leaves the process.
func (s Status) JSON(registry string) StatusJSON {
	v := StatusJSON{
		Registry: registry,
		Name:     nameText(s.Name), Number: s.Release.Number, CID: cidText(s.Release.Root), List: listOf(s.Release), Created: s.Release.Created, Age: int64(s.Age / time.Second),
		Packages: s.Release.Packages, Versions: s.Release.Versions, Behind: s.Behind,
		Sequence: s.Sequence, Value: cidText(s.Value), EOL: s.EOL, Remaining: int64(s.Remaining / time.Second), SigningDue: s.SigningDue, Confirmed: s.Confirmed,
		Peers: s.Peers, Next: s.Next, Withheld: slices.Concat(s.Withheld, s.Held), Policy: s.Release.Policy, HeldMore: s.HeldMore, Due: s.Due,
	}
	if s.Network != nil {
		v.Network = s.Network.Sequence
	}
	for _, one := range s.Routes {
		v.Routes = append(v.Routes, one.json())
	}
	for _, f := range s.Former {
		v.Former = append(v.Former, FormerJSON{f.Name.String(), f.Until, f.Ended, f.Sequence, cidText(f.Value), f.EOL, f.Confirmed, errText(f.Problem)})
	}
	v.Problem = errText(s.Problem)
	return v
}

// CopyJSON says where a copy of a registry's index lies, which is for whoever asked for
// it to remove.
type CopyJSON struct {
	Registry  string `json:"registry"`  // its name in this state
	Directory string `json:"directory"` // of the copy
}

// copyFresh is how long a copy of the index may wait to be opened by whoever asked for it.
const copyFresh = time.Minute

// copyIndex makes a copy of the index beside the journal, and removes those that were
// left there by commands that were killed.
func (p *Publisher) copyIndex() (CopyJSON, error) {
	dir := filepath.Join(filepath.Dir(p.o.Journal), "copies")
	if err := index.RemoveCopies(dir, copyFresh); err != nil {
		return CopyJSON{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return CopyJSON{}, fmt.Errorf("copy the index: %w", err)
	}
	v := CopyJSON{Registry: p.o.Registry, Directory: filepath.Join(dir, rand.Text())}
	if err := p.o.Index.Copy(v.Directory); err != nil {
		return CopyJSON{}, errors.Join(err, os.RemoveAll(v.Directory))
	}
	return v, nil
}

// Admin answers other processes of this user for the publisher, over a socket
// that nobody else can open: GET /status gives StatusJSON, POST /copy?registry=NAME
// CopyJSON, where this is that registry's publisher (else 409).
func (p *Publisher) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /copy", func(w http.ResponseWriter, r *http.Request) {
		if name := r.URL.Query().Get("registry"); name != p.o.Registry {
			http.Error(w, fmt.Sprintf("this is the publisher of registry %s", p.o.Registry), http.StatusConflict)
			return
		}
		v, err := p.copyIndex()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s, err := p.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s.JSON(p.o.Registry))
	})
	return mux
}
