package ipnskeys

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// UnsafeError says why a secret file, or the directory around it, is refused,
// and what its owner can do. It is ErrUnsafe.
type UnsafeError struct {
	Path    string
	Problem string // "is readable by others"
	Fix     string // "chmod 600 …"
}

func (e *UnsafeError) Error() string { return e.Path + " " + e.Problem }
func (e *UnsafeError) Unwrap() error { return ErrUnsafe }

// Hint is one line that says what to do.
func (e *UnsafeError) Hint() string { return e.Fix }

// readSecret reads a file of at most maxSecret bytes that its owner alone may
// read, and that is no symbolic link. Errors: *UnsafeError, os.ErrNotExist.
func readSecret(path string) ([]byte, error) { return readOnly(path, 0o077) }

// readOnly is readSecret for a file whose mode has nothing of denied.
func readOnly(path string, denied fs.FileMode) ([]byte, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if before.Mode()&fs.ModeSymlink != 0 {
		return nil, &UnsafeError{path, "is a symbolic link", "put the file itself there, mode 600"}
	}
	if !before.Mode().IsRegular() {
		return nil, &UnsafeError{path, "is no regular file", "put a regular file there, mode 600"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(before, info) {
		return nil, &UnsafeError{path, "was replaced while it was opened", "see who else writes in " + quote(filepath.Dir(path))}
	}
	if info.Mode().Perm()&denied != 0 {
		return nil, &UnsafeError{path, "is readable by others", "chmod 600 " + quote(path)}
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxSecret {
		return nil, fmt.Errorf("%s is over %d bytes: %w", path, maxSecret, ErrCorrupt)
	}
	return raw, nil
}

// makeDir makes dir, readable by its owner alone, and refuses one that others
// may write in.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return &UnsafeError{dir, "is writable by others", "chmod 700 " + quote(dir)}
	}
	return syncDir(filepath.Dir(dir))
}

// writeNew writes a file that must not exist, mode 0600, and syncs it. The
// caller syncs the directory.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// linkNew writes a file of dir that appears whole or not at all, and syncs
// both. It is os.ErrExist when the file is there already.
func linkNew(dir, path string, data []byte) error {
	tmp, err := os.MkdirTemp(dir, mintPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	whole := filepath.Join(tmp, filepath.Base(path))
	if err := writeNew(whole, data); err != nil {
		return err
	}
	if err := os.Link(whole, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
