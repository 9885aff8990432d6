package hosted

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// errTarball is for a tarball that is not what npm pack makes, or not of the version
// that is published.
var errTarball = errors.New("the tarball cannot be taken")

const (
	// maxUnpacked bounds what a tarball's files come to, in bytes: what is compressed
	// a thousandfold is unpacked no further.
	maxUnpacked = 4 << 30
	// maxPackageJSON bounds a package.json, in bytes.
	maxPackageJSON = 2 << 20
	// maxEntries bounds the entries of a tarball.
	maxEntries = 1 << 20
)

// spooled is a tarball that came in and lies in a file without a name: it is gone
// with the process, however that ends.
type spooled struct {
	*os.File
	size     int64
	unpacked int64
	sri      string
	shasum   string
}

func spool(dir string) (*spooled, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	f, err := os.CreateTemp(dir, "publish-*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("spool: %w", err), f.Close())
	}
	return &spooled{File: f}, nil
}

// check reads all of the tarball: its digests must be those that p names, and it
// must be one gzip of one tar archive with one package.json of that very name and
// version at its top. Errors wrap errTarball, npm.ErrIntegrity or npm.ErrNoIntegrity,
// or are the disk's.
func (t *spooled) check(p npm.Publication) error {
	size, err := t.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	t.size = size
	if p.Length >= 0 && p.Length != size {
		return fmt.Errorf("%w: it has %d bytes, and %d are announced", errTarball, size, p.Length)
	}
	want, err := npm.ParseIntegrity(p.Dist)
	if err != nil {
		return err
	}
	// The digests first: bytes that are not those that were sent say nothing.
	digests := want.NewVerifier()
	if err := t.all(digests); err != nil {
		return err
	}
	if err := digests.Check(); err != nil {
		return err
	}
	t.sri, t.shasum = digests.SRI(), digests.Shasum()
	if _, err := t.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	name, version, unpacked, err := packageOf(t.File)
	if err != nil {
		return fmt.Errorf("%w: %w", errTarball, err)
	}
	if name != string(p.Name) || version != p.Version {
		return fmt.Errorf("%w: the package.json in it is of %.200q in version %.200q, and %s@%s is published", errTarball, name, version, p.Name, p.Version)
	}
	t.unpacked = unpacked
	return nil
}

// all writes the tarball to w.
func (t *spooled) all(w io.Writer) error {
	if _, err := t.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if _, err := io.Copy(w, t.File); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// packageOf reads a package tarball: the name and version in its package.json, and
// how many bytes its files come to. What two programs could unpack differently is
// refused: two package.json at the top, of which the first or the last counts; bytes
// after the archive; paths that are not plain.
func packageOf(r io.Reader) (name, version string, unpacked int64, err error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return "", "", 0, fmt.Errorf("it is not gzip: %w", err)
	}
	plain := &io.LimitedReader{R: z, N: maxUnpacked + 1}
	fail := func(err error) (string, string, int64, error) {
		if plain.N <= 0 {
			err = fmt.Errorf("it has more than %d bytes unpacked", int64(maxUnpacked))
		}
		return "", "", 0, err
	}
	archive := tar.NewReader(plain)
	found := false
	for entries := 0; ; entries++ {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fail(fmt.Errorf("it is not a tar archive: %w", err))
		}
		if entries == maxEntries {
			return fail(fmt.Errorf("it has more than %d entries", maxEntries))
		}
		inside, err := entryPath(header.Name)
		if err != nil {
			return fail(err)
		}
		if header.Typeflag == tar.TypeReg {
			unpacked += header.Size
		}
		if !strings.EqualFold(inside, "package.json") {
			continue
		}
		switch {
		case found:
			return fail(errors.New("it has more than one package.json"))
		case inside != "package.json" || header.Typeflag != tar.TypeReg:
			return fail(fmt.Errorf("its %.200q is not a file package.json", header.Name))
		case header.Size > maxPackageJSON:
			return fail(fmt.Errorf("its package.json has more than %d bytes", maxPackageJSON))
		}
		found = true
		raw, err := io.ReadAll(archive)
		if err != nil {
			return fail(err)
		}
		if name, version, err = npm.ParsePackageJSON(raw); err != nil {
			return fail(fmt.Errorf("its package.json: %w", err))
		}
	}
	if !found {
		return fail(errors.New("it has no package.json"))
	}
	// Unpackers differ in whether they go on after the archive's end.
	rest := make([]byte, 32<<10)
	for {
		n, err := plain.Read(rest)
		for _, c := range rest[:n] {
			if c != 0 {
				return fail(errors.New("bytes follow the tar archive in it"))
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fail(fmt.Errorf("it is not gzip: %w", err))
		}
	}
	if plain.N <= 0 {
		return fail(nil)
	}
	return name, version, unpacked, nil
}

// entryPath is where an entry goes within the package: without the directory at
// its top, whose name does not matter.
func entryPath(entry string) (string, error) {
	parts := strings.Split(strings.TrimSuffix(entry, "/"), "/")
	for _, part := range parts {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\\\x00") {
			return "", fmt.Errorf("its entry %.200q is not a plain path", entry)
		}
	}
	return strings.Join(parts[1:], "/"), nil
}
