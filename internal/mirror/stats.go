package mirror

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
)

// Bytes are bytes of blocks by where they came from since the start. A block
// that two sources sent is counted at both.
type Bytes struct {
	Cache    int64 `json:"cache"`    // the node or this mirror held it
	Bitswap  int64 `json:"bitswap"`  // the node fetched it from peers
	CAR      int64 `json:"car"`      // a trustless gateway sent it
	Upstream int64 `json:"upstream"` // Origin fetched it from an npm registry
}

// BytesBySource is Bytes by what they were. Tarballs and Documents are payload:
// one tarball fetched once adds its exact size. Directories are all other
// blocks: directories, the inner nodes of files, release.json.
type BytesBySource struct {
	Tarballs    Bytes `json:"tarballs"`
	Documents   Bytes `json:"documents"` // compressed, as stored; from upstream uncompressed
	Directories Bytes `json:"directories"`
}

// Status is what `registry-mirror status` shows. Counts are since the start.
type Status struct {
	Name string `json:"name"` // IPNS name that is followed; "/ipfs/CID" of a frozen release
	// Told is the name that this mirror was opened with, where its successor is
	// followed now; Successor one that was announced and has no record yet.
	Told      string `json:"told,omitempty"`
	Successor string `json:"successor,omitempty"`

	// At is as of when an earlier release is served (Table.At); "" for the newest.
	At string `json:"at,omitempty"`

	Synced  time.Time `json:"synced,omitzero"`
	Release Release   `json:"release,omitzero"`
	Record  Record    `json:"record,omitzero"`

	Checked time.Time `json:"checked,omitzero"`  // when a route last gave a valid record
	Stale   bool      `json:"stale"`             // the record has expired; its list is served all the same
	Error   string    `json:"error,omitempty"`   // of the last sync
	Expired bool      `json:"expired,omitempty"` // the last sync met a record that has expired, and follows none
	Offline bool      `json:"offline,omitempty"`
	TooOld  bool      `json:"too_old,omitempty"` // the list is not served any more: Options.MaxStale

	Rollbacks         int64 `json:"rollbacks"`          // records or releases of routes refused as older
	Equivocations     int64 `json:"equivocations"`      // refused as a second value; see <Dir>/evidence
	IntegrityFailures int64 `json:"integrity_failures"` // tarballs not served since their bytes are not what the packument says

	Routes []RouteStatus `json:"routes,omitempty"` // that were asked for the record since the start

	Unavailable     int64  `json:"unavailable"`                // requests that no source could answer in time
	LastUnavailable string `json:"last_unavailable,omitempty"` // the path of the last of them, and why not

	Requests      int64         `json:"requests"`
	Goroutines    int           `json:"goroutines"` // of the whole process, now
	BytesBySource BytesBySource `json:"bytes_by_source"`

	Node     *ipfs.Info `json:"node,omitempty"` // nil: no node, or it does not answer
	Gateways int        `json:"gateways"`
	Origin   bool       `json:"pull_through"`
	Started  time.Time  `json:"started"`
}

// Release is the release being served.
type Release struct {
	Number   uint64    `json:"number"`
	Root     string    `json:"root"` // CID of the release directory
	List     string    `json:"list"` // CID of the list's HAMT root
	Created  time.Time `json:"created"`
	Packages int       `json:"packages"`
	Versions int       `json:"versions"`
	// Part is how many of its names are here, where bundles brought it and not a sync;
	// 0 for a whole list.
	Part int `json:"part,omitempty"`
}

func releaseOf(r index.Release) Release {
	return Release{Number: r.Number, Root: r.Root.String(), List: r.List.Root.String(), Created: r.Created, Packages: r.Packages, Versions: r.Versions}
}

// Record is the IPNS record that was accepted last.
type Record struct {
	Sequence uint64    `json:"sequence"`
	Value    string    `json:"value"` // CID
	EOL      time.Time `json:"eol"`   // valid until
}

// RouteStatus is what a route to the record said when it was last asked: a sequence, or
// an error.
type RouteStatus struct {
	Name     string `json:"name"` // "node", "gateway URL", "route URL" or "route DIR"
	Sequence uint64 `json:"sequence,omitempty"`
	Expired  bool   `json:"expired,omitempty"` // its record has
	Error    string `json:"error,omitempty"`
}

type counters struct{ bySource [4]atomic.Int64 }

func (c *counters) bytes() Bytes {
	return Bytes{
		Cache: c.bySource[fromCache].Load(), Bitswap: c.bySource[fromBitswap].Load(),
		CAR: c.bySource[fromCAR].Load(), Upstream: c.bySource[fromUpstream].Load(),
	}
}

type stats struct {
	kinds         [3]counters
	rollbacks     atomic.Int64
	equivocations atomic.Int64
	mismatches    atomic.Int64
	requests      atomic.Int64
	unavailable   atomic.Int64
	started       time.Time

	mu      sync.Mutex
	checked time.Time
	failure string
	expired bool   // Status.Expired
	lacking string // Status.LastUnavailable
}

// lack counts a request that no source could answer.
func (s *stats) lack(path string, err error) {
	s.unavailable.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lacking = path + ": " + oneLine(err)
}

// count adds a block's payload: leaves count as k, all other blocks as directories.
func (s *stats) count(k kind, from source, b blocks.Block) {
	if b.Cid().Prefix().Codec != cid.Raw {
		k = directories
	}
	s.kinds[k].bySource[from].Add(int64(len(b.RawData())))
}

// Status says how the mirror is doing. It asks the node, for at most a second
// or until ctx ends.
func (m *Mirror) Status(ctx context.Context) Status {
	s := Status{
		Name: m.name(), Gateways: len(m.o.Gateways), Origin: m.o.Origin != nil, Started: m.stats.started, Offline: m.o.Offline,
		Rollbacks: m.stats.rollbacks.Load(), Equivocations: m.stats.equivocations.Load(),
		IntegrityFailures: m.stats.mismatches.Load(), Unavailable: m.stats.unavailable.Load(), Requests: m.stats.requests.Load(),
		Goroutines: runtime.NumGoroutine(), Routes: m.routeStatus(),
		BytesBySource: BytesBySource{
			Tarballs: m.stats.kinds[tarballs].bytes(), Documents: m.stats.kinds[documents].bytes(),
			Directories: m.stats.kinds[directories].bytes(),
		},
	}
	if h := m.head.Load(); h != nil {
		s.Synced = h.Synced
		s.Release = releaseOf(h.Release)
		if len(h.parts) > 0 {
			s.Release.Part = len(h.parts[0].Names)
		}
	}
	high := m.high.Load()
	s.Told, s.Successor = high.Told, high.Successor
	if high.Value != "" {
		s.Record = Record{Sequence: high.Sequence, Value: high.Value, EOL: high.EOL}
		s.Stale, s.TooOld = m.o.Now().After(high.EOL), m.tooOld() != nil
	}
	m.stats.mu.Lock()
	s.Checked, s.Error, s.Expired, s.LastUnavailable = m.stats.checked, m.stats.failure, m.stats.expired, m.stats.lacking
	m.stats.mu.Unlock()
	if m.o.Node != nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if info, err := m.o.Node.Info(ctx); err == nil {
			s.Node = &info
		}
	}
	return s
}
