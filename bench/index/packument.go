//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"text/tabwriter"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/gzip"
	mh "github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// packumentResult is what a large package's documents cost: the ledger's,
// packument.json.gz, install.json.gz, index.html, and the directories that name
// them and the tarballs. Plain is the same documents in one piece, each cut into
// chunks of 1 MiB.
type packumentResult struct {
	Curated  bool `json:"curated"` // a version is withheld: packument.json.gz is not the ledger's
	Versions int  `json:"versions"`
	RawBytes int  `json:"raw_bytes"` // of upstream's document, at first
	Added    int  `json:"added"`     // versions that came one by one

	BytesFirst       int     `json:"bytes_first"`
	BytesPerVersion  float64 `json:"bytes_per_version"`  // the mean
	BlocksPerVersion float64 `json:"blocks_per_version"` // the mean
	MsFirst          float64 `json:"ms_first"`
	MsPerVersion     float64 `json:"ms_per_version"` // the median
	CPUMsPerVersion  float64 `json:"cpu_ms_per_version"`
	RSSMiB           float64 `json:"rss_mib"`

	PlainBytesFirst      int     `json:"plain_bytes_first"`
	PlainBytesPerVersion float64 `json:"plain_bytes_per_version"`
	PlainMsPerVersion    float64 `json:"plain_ms_per_version"`

	PlainOverOurs float64 `json:"plain_over_ours"` // bytes per version
}

const (
	packumentVersions = 3000
	packumentAdded    = 20
	withheldVersion   = packumentVersions / 2
	packumentGateway  = "http://127.0.0.1:8080/ipns/k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8"
)

func packuments(ctx context.Context, b *bench, r *result) error {
	for _, curated := range []bool{false, true} {
		j := job{Side: "documents", Index: filepath.Join(b.dir, fmt.Sprint("documents-", curated)), Withhold: curated}
		ours, err := b.measure(ctx, packumentVersions, j)
		if err != nil {
			return err
		}
		j.Side = "plain"
		plain, err := b.measure(ctx, packumentVersions, j)
		if err != nil {
			return err
		}
		added, plainAdded := ours.Steps[1:], plain.Steps[1:]
		res := packumentResult{
			Curated: curated, Versions: packumentVersions, RawBytes: len(upstreamPackument(packumentVersions)), Added: len(added),
			BytesFirst:       ours.Steps[0].Bytes,
			BytesPerVersion:  mean(added, func(s step) int { return s.Bytes }),
			BlocksPerVersion: mean(added, func(s step) int { return s.Blocks }),
			MsFirst:          1e3 * ours.Steps[0].Seconds,
			MsPerVersion:     1e3 * of(added, func(s step) float64 { return s.Seconds }),
			CPUMsPerVersion:  1e3 * of(added, func(s step) float64 { return s.CPU }),
			RSSMiB:           ours.RSSMiB,

			PlainBytesFirst:      plain.Steps[0].Bytes,
			PlainBytesPerVersion: mean(plainAdded, func(s step) int { return s.Bytes }),
			PlainMsPerVersion:    1e3 * of(plainAdded, func(s step) float64 { return s.Seconds }),
		}
		res.PlainOverOurs = ratio(res.PlainBytesPerVersion, res.BytesPerVersion)
		r.Packument = append(r.Packument, res)
	}
	return nil
}

func mean(steps []step, f func(step) int) float64 {
	sum := 0
	for _, s := range steps {
		sum += f(s)
	}
	return ratio(float64(sum), float64(len(steps)))
}

func printPackument(w *tabwriter.Writer, r result) {
	fmt.Fprintln(w, "curated\tversions\traw MB\tfirst KB\tfirst ms\tnew KB\tnew blocks\tms\tCPU ms\tin 1 MiB chunks: first KB\tnew KB\tms\tmore bytes\t")
	for _, p := range r.Packument {
		fmt.Fprintf(w, "%v\t%d\t%.1f\t%.0f\t%.0f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1fx\t\n", p.Curated, p.Versions, float64(p.RawBytes)/1e6,
			float64(p.BytesFirst)/1e3, p.MsFirst, p.BytesPerVersion/1e3, p.BlocksPerVersion, p.MsPerVersion, p.CPUMsPerVersion,
			float64(p.PlainBytesFirst)/1e3, p.PlainBytesPerVersion/1e3, p.PlainMsPerVersion, p.PlainOverOurs)
	}
}

// counter counts the blocks that were not there before.
type counter struct {
	mu            sync.Mutex
	blks          map[cid.Cid]blocks.Block
	blocks, bytes int
}

func newCounter() *counter { return &counter{blks: map[cid.Cid]blocks.Block{}} }

func (n *counter) add(b blocks.Block) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.blks[b.Cid()]; !ok {
		n.blks[b.Cid()] = b
		n.blocks++
		n.bytes += len(b.RawData())
	}
	return nil
}

// since is what was added, with what it took.
func (n *counter) since(took cost) step {
	s := step{Seconds: took.Seconds, CPU: took.CPU, Blocks: n.blocks, Bytes: n.bytes}
	n.blocks, n.bytes = 0, 0
	return s
}

// memoryNode is of an IPFS node what a build asks for.
type memoryNode struct {
	ipfs.Node
	*counter
}

func (n memoryNode) Put(_ context.Context, blks []blocks.Block) error {
	for _, b := range blks {
		if err := n.add(b); err != nil {
			return err
		}
	}
	return nil
}

func (n memoryNode) Local(_ context.Context, c cid.Cid) (blocks.Block, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b, ok := n.blks[c]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("block %s: %w", c, ipfs.ErrNotFound)
}

func (n memoryNode) Checkpoint(context.Context) error { return nil }

// documents brings a package's documents to a node in memory, first with
// packumentVersions versions and then with one more at a time: parsed and encoded
// as the follower does, committed to a ledger, and built by the publisher itself
// into an index. Ledger and index are on disk, and synced.
func documents(ctx context.Context, j job) (m measured, err error) {
	store, err := ledger.Create(filepath.Join(j.Index, "ledger"), ledger.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ix, err := index.Create(filepath.Join(j.Index, "index"), index.Options{Documents: document.Format, Gateway: packumentGateway})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	node := memoryNode{counter: newCounter()}
	encoder := document.NewEncoder(64 << 20) // the follower's
	p := publish.New(publish.Options{Ledger: store, Index: ix, Node: node, Journal: filepath.Join(j.Index, "journal")})
	for n := packumentVersions; n <= packumentVersions+packumentAdded; n++ {
		raw := upstreamPackument(n)
		versions := j.tarballs(n)
		if n > packumentVersions {
			versions = versions[len(versions)-1:]
		}
		if err := syncfs(j.Index); err != nil {
			return m, err
		}
		took, err := timed(func() error {
			parsed, err := npm.ParsePackument(raw)
			if err != nil {
				return err
			}
			ref, err := unixfs.AddChunks(encoder.Encode(raw).Segments, node.add)
			if err != nil {
				return err
			}
			_, err = store.Commit(ctx, ledger.Batch{Packages: []ledger.PackageUpdate{{
				Name: parsed.Name, Rev: parsed.Rev, Versions: versions, Listed: len(parsed.Versions),
				Document: ledger.Document{CID: ref.CID, Tsize: ref.Tsize, Size: uint64(len(raw))},
			}}})
			if err != nil {
				return err
			}
			_, _, err = p.Build(ctx)
			return err
		})
		if err != nil {
			return m, err
		}
		m.Steps = append(m.Steps, node.since(took))
		e, err := ix.Entry(packumentName)
		if err != nil {
			return m, err
		}
		if e.Versions != len(j.tarballs(n)) {
			return m, fmt.Errorf("%d versions of %d are listed", e.Versions, len(j.tarballs(n)))
		}
	}
	return m, nil
}

// tarballs are what the ledger holds of the first n versions.
func (j job) tarballs(n int) []ledger.Version {
	var all []ledger.Version
	for i := range n {
		if v := packumentVersion(i); i != withheldVersion || !j.Withhold {
			all = append(all, ledger.Version{
				Version: v, Integrity: "sha512-" + fakeDigest(i, "sha512", 64), File: packumentName.Base() + "-" + v + ".tgz",
				CID: fakeCID(v), Size: 1e6, Tsize: 1e6, FirstSeen: time.Unix(1e9, 0),
			})
		}
	}
	return all
}

func fakeCID(of string) cid.Cid {
	sum, err := mh.Sum([]byte(of), mh.SHA2_256, -1)
	if err != nil {
		panic(err) // of a hash that there is
	}
	return cid.NewCidV1(cid.Raw, sum)
}

// plainDocuments makes the same documents, each compressed in one piece and cut
// into chunks of 1 MiB; index.html as it is. There is no ledger and no index.
func plainDocuments(_ context.Context, j job) (m measured, err error) {
	node := newCounter()
	add := func(doc []byte) (unixfs.Ref, error) {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		if _, err := z.Write(doc); err != nil {
			return unixfs.Ref{}, err
		}
		if err := z.Close(); err != nil {
			return unixfs.Ref{}, err
		}
		return unixfs.AddBytes(buf.Bytes(), node.add)
	}
	for n := packumentVersions; n <= packumentVersions+packumentAdded; n++ {
		raw := upstreamPackument(n)
		held := map[string]ledger.Version{}
		var docs index.PackageFiles
		for _, v := range j.tarballs(n) {
			held[v.Version] = v
			docs.Tarballs = append(docs.Tarballs, unixfs.Link{Name: v.File, CID: v.CID, Tsize: v.Tsize})
		}
		took, err := timed(func() error {
			if _, err := npm.ParsePackument(raw); err != nil {
				return err
			}
			if docs.Packument, err = add(raw); err != nil {
				return err
			}
			curated, err := npm.Curate(raw, func(v string) bool { _, ok := held[v]; return ok })
			if err != nil {
				return err
			}
			if j.Withhold {
				if docs.Packument, err = add(curated); err != nil {
					return err
				}
			}
			install, err := npm.Abbreviate(curated, npm.AbbreviateOptions{Time: true, CID: func(v string) string { return held[v].CID.String() }})
			if err != nil {
				return err
			}
			if docs.Install, err = add(install); err != nil {
				return err
			}
			page, err := npm.Abbreviate(curated, npm.AbbreviateOptions{Time: true, Tarball: func(v, _ string) string {
				return packumentGateway + "/" + string(packumentName) + "/" + index.TarballsName + "/" + held[v].File
			}})
			if err != nil {
				return err
			}
			if docs.Index, err = unixfs.AddBytes(page, node.add); err != nil {
				return err
			}
			_, _, err = index.PackageDir(docs, node.add)
			return err
		})
		if err != nil {
			return m, err
		}
		m.Steps = append(m.Steps, node.since(took))
	}
	return m, nil
}
