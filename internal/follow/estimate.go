package follow

import (
	"context"
	"math"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
)

// What a tarball or a document comes to where nothing says it, in bytes. The
// ledger's own means take their place the more it holds, see mean.
const (
	// typicalTarball is the mean of npm's registry: of sizes spread as those that
	// docs/benchmarks.md has, median 10 KB and 90th percentile 150 KB.
	typicalTarball = 80 << 10
	// plainTarball is that of a version whose document gives no unpacked size,
	// within a selection by name. npm has given one since 2018; what is older is
	// small: 13 KB is the mean of express@4 with its dependencies, and 14 KB that
	// of tarballs below 1 MB in the caches of npm that were looked at.
	plainTarball = 16 << 10
	// typicalDocument is the mean of the documents of express@4 and its
	// dependencies, as they are stored: compressed.
	typicalDocument = 5 << 10
	// typicalVersions is that of the average package.
	typicalVersions = 10
)

const (
	// priorItems is how many typical items count beside what the ledger holds: a
	// few packages say little of the rest.
	priorItems = 100
	// maxExpected bounds what is believed of one tarball, in bytes: a registry may
	// say anything of an unpacked size.
	maxExpected = 1 << 30
)

// packed is the likely size of a tarball, in bytes, that unpacks to so many: 1 KiB
// and a quarter of the first MiB, and two fifths of the rest. Small packages
// barely compress, and the largest hold binaries and images. For 366 tarballs of
// npm's, 119 MB that unpack to 310 MB, that gives their sum, and a size within a
// factor of two for all but five.
func packed(unpacked int64) float64 {
	const mib = 1 << 20
	u := float64(unpacked)
	return 1<<10 + min(u, mib)/4 + max(0, u-mib)*2/5
}

// mean is that of count items of so many bytes that the ledger holds, and of
// priorItems typical ones.
func mean(bytes uint64, count int, typical uint64) uint64 {
	return (bytes + priorItems*typical) / uint64(count+priorItems)
}

// sizes say what a package's tarballs come to: by their unpacked size, as
// the versions that are held compressed, else as packages do; else the mean of
// those that are held.
type sizes struct {
	paper    *paper
	plain    uint64  // where nothing is known of the package, in bytes
	mean     uint64  // of the held tarballs, in bytes; 0 where there are none
	packed   float64 // bytes of held tarballs whose unpacked size is known …
	unpacked float64 // … and what they unpack to
}

func (f *Follower) sizes(pap *paper) sizes {
	c := f.ledger.Counts()
	s := sizes{paper: pap, plain: mean(c.Bytes, c.Versions, plainTarball)}
	for _, v := range pap.held.Versions {
		s.mean += v.Size
		if u := s.unpackedSize(v.Version); u > 0 {
			s.packed, s.unpacked = s.packed+float64(v.Size), s.unpacked+float64(u)
		}
	}
	if n := len(pap.held.Versions); n > 0 {
		s.mean /= uint64(n)
	}
	return s
}

func (s sizes) unpackedSize(version string) int64 {
	if m := s.paper.doc.Versions[version]; m != nil {
		return m.Dist.UnpackedSize
	}
	return 0
}

// tarball is the likely size of a version's, in bytes.
func (s sizes) tarball(version string) uint64 {
	switch u := s.unpackedSize(version); {
	case u > 0 && s.unpacked > 0:
		return uint64(math.Ceil(min(float64(u)*s.packed/s.unpacked, maxExpected)))
	case u > 0:
		return uint64(min(packed(u), maxExpected))
	case s.mean > 0:
		return s.mean
	}
	return s.plain
}

// sampled is of how many of the ledger's documents meanDocument takes the mean.
const sampled = 1000

// meanDocument is the likely size of a document as it is stored, in bytes.
func (f *Follower) meanDocument(ctx context.Context) (uint64, error) {
	var bytes uint64
	n := 0
	for p, err := range f.ledger.Packages(ctx) {
		if err != nil {
			return 0, own(err)
		}
		if p.Deleted || p.Document == (ledger.Document{}) {
			continue
		}
		bytes += p.Document.Tsize
		if n++; n == sampled {
			break
		}
	}
	return mean(bytes, n, typicalDocument), nil
}
