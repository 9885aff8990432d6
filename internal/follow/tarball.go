package follow

import (
	"context"
	"errors"
	"fmt"

	blocks "github.com/ipfs/go-block-format"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// early is how many bytes of one tarball's blocks are held before they are put
// into the node ahead of its commit: memory stays flat whatever the size.
const early = 8 << 20

// errManifest is for a version that a packument lists and that is of no use.
var errManifest = errors.New("not a usable manifest")

// tarball fetches a version's tarball, verified, and cuts it to blocks.
func (f *Follower) tarball(ctx context.Context, pap *paper, version string) (item, error) {
	m := pap.doc.Versions[version]
	if m == nil {
		if bad := pap.doc.Bad[version]; bad != nil {
			return item{}, fmt.Errorf("%s@%s: %w: %w", pap.name, version, errManifest, bad)
		}
		return item{}, fmt.Errorf("%s@%s is not in its packument: %w", pap.name, version, errManifest)
	}
	file, err := npm.TarballFile(pap.name, version, m.Dist.Tarball)
	if err != nil {
		return item{}, fmt.Errorf("%s@%s: %w: %w", pap.name, version, errManifest, err)
	}
	// Verify, then keep (law 6): the registry's signature over the digest, then
	// the bytes, which are whole and checked from here on.
	signature, err := f.checkSignature(pap, m)
	if err != nil {
		return item{}, err
	}
	t, err := f.upstream.Tarball(ctx, pap.name, version, m.Dist)
	if err != nil {
		return item{}, fmt.Errorf("tarball of %s@%s: %w", pap.name, version, err)
	}
	it := item{name: pap.name, done: []ledger.Done{{Key: ledger.Key{Name: pap.name, Version: version}}}, doc: pap, bytes: t.Size}
	held := 0
	sink := func(b blocks.Block) error {
		it.blocks = append(it.blocks, b)
		if held += len(b.RawData()); held < f.early {
			return nil
		}
		err := f.put(ctx, it.blocks)
		it.blocks, it.ahead, held = nil, true, 0
		return err
	}
	var ref unixfs.Ref
	if data := t.Bytes(); data != nil {
		ref, err = unixfs.AddBytes(data, sink)
	} else {
		ref, err = unixfs.AddFile(t, sink)
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return item{}, own(fmt.Errorf("store tarball of %s@%s: %w", pap.name, version, err))
	}
	it.version = &ledger.Version{
		Version: version, Integrity: t.SRI, Shasum: t.Shasum, File: file,
		CID: ref.CID, Size: ref.Size, Tsize: ref.Tsize, FirstSeen: f.now().UTC(),
		Proof: proof(m.Dist), Signature: string(signature),
	}
	return it, nil
}

func (f *Follower) checkSignature(pap *paper, m *npm.Manifest) (npm.Verdict, error) {
	if f.signature == nil {
		return "", nil
	}
	verdict, err := f.signature(pap.name, m.Version, m.Dist, pap.doc.Time[m.Version])
	if err != nil {
		return "", fmt.Errorf("signature of %s@%s: %w", pap.name, m.Version, err)
	}
	return verdict, nil
}
