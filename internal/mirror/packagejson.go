package mirror

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/gzip"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Of a tarball whose package.json is looked for, so much is read. npm packs it first,
// others by its place in the alphabet.
const (
	maxSought      = 16 << 20 // bytes
	maxUnpacked    = 64 << 20 // of those, unpacked
	maxEntries     = 100_000  // files, directories and links
	maxPackageJSON = 2 << 20  // bytes of it
)

// errNoPackageJSON is returned for a tarball that has none within what is read of it.
var errNoPackageJSON = errors.New("no package.json is found in the tarball")

// packageJSON is the package.json of a package's tarball, the first where there are
// several: below one directory, whose name npm passes over. What the archive says of
// sizes and entries is not believed beyond the bounds above.
func packageJSON(r io.Reader) ([]byte, error) {
	plain, err := gzip.NewReader(io.LimitReader(r, maxSought))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPackageJSON, err)
	}
	files := tar.NewReader(io.LimitReader(plain, maxUnpacked))
	for range maxEntries {
		at, err := files.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoPackageJSON, err)
		}
		if _, below, _ := strings.Cut(path.Clean(at.Name), "/"); below != "package.json" || at.Typeflag != tar.TypeReg {
			continue
		}
		raw, err := io.ReadAll(io.LimitReader(files, maxPackageJSON+1))
		if err == nil && len(raw) > maxPackageJSON {
			err = fmt.Errorf("it has more than %d bytes", maxPackageJSON)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoPackageJSON, err)
		}
		return raw, nil
	}
	return nil, fmt.Errorf("%w: more than %d entries", errNoPackageJSON, maxEntries)
}

// readPackageJSON is what a package.json says of its package, as npm reads it: it may
// begin with a byte order mark, say a name twice, and have people as one string. One of
// another package is npm.ErrPackument: it says nothing of this one.
func readPackageJSON(name npm.Name, raw []byte) (s summary, err error) {
	var own struct {
		packumentHead
		Name     jsontext.Value `json:"name"`
		Version  jsontext.Value `json:"version"`
		Versions jsontext.Value `json:"versions"` // of documents alone: here it may be anything
		Time     jsontext.Value `json:"time"`     // as is this
	}
	raw = bytes.TrimPrefix(raw, []byte("\uFEFF"))
	if err := json.Unmarshal(raw, &own, jsontext.AllowDuplicateNames(true)); err != nil {
		return s, fmt.Errorf("%w: package.json: %w", npm.ErrPackument, err)
	}
	var called, version string
	if read(own.Name, &called); called != string(name) {
		return s, fmt.Errorf("%w: package.json is of %.200q", npm.ErrPackument, called)
	}
	if read(own.Version, &version); npm.ParseVersion(version) != nil {
		version = unknownVersion
	}
	return summaryOf(name, own.packumentHead, map[string]string{"latest": version}), nil
}
