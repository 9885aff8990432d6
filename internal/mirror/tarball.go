package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

const (
	// smallTarball is checked as a whole before its first byte is sent: it is
	// one block, in memory anyway.
	smallTarball = unixfs.ChunkSize
	// tarballPatience is how long a request waits for Origin to have fetched
	// and verified a whole tarball.
	tarballPatience = 2 * time.Minute
	// maxChecked bounds the marks in memory; beyond it all are checked anew.
	maxChecked = 1 << 20
)

// serveTarball answers with a tarball's own bytes, never encoded. On the first
// read since the start they are checked against the integrity that the
// packument gives before the last of them is sent; a tarball that fails is
// never complete at any client.
func (m *Mirror) serveTarball(w http.ResponseWriter, r *http.Request, name npm.Name, file string) {
	ctx := r.Context() // every block has a deadline of its own
	at, obtained, err := m.locate(ctx, name, file)
	if err != nil {
		m.fail(w, r, err)
		return
	}
	c := at.CID
	etag := `"` + c.String() + `"`
	mark := verifiedMark(name, file, c)
	checked := m.isChecked(mark)
	if matches(r.Header.Get("If-None-Match"), etag) {
		sendNotModified(w, etag, cacheTarball, "")
		return
	}

	defer m.using(ctx, name, c)()
	var rescued atomic.Bool
	rescued.Store(obtained)
	d := dag{m: m, kind: tarballs, root: c, rescued: &rescued, again: checked}
	if m.o.Origin != nil && !obtained {
		d.rescue = func(ctx context.Context) error {
			got, err := m.originTarball(ctx, name, file)
			if err == nil && !got.Equals(c) {
				// A version never changes its bytes: what is listed stands.
				err = fmt.Errorf("upstream has other bytes (%s) than the list (%s)", got, c)
			}
			return err
		}
	}
	if m.o.Origin == nil && m.o.Tarballs != nil {
		d.rescue = func(ctx context.Context) error { return m.refetch(ctx, name, file, c) }
	}
	if r.Method != http.MethodHead {
		if d.transfer, err = m.sending.begin(w, r, int64(min(at.Tsize, maxHeld))); err != nil {
			m.fail(w, r, err)
			return
		}
		defer d.transfer.done()
	}
	content, err := unixfs.Open(ctx, d, c)
	if err != nil {
		m.fail(w, r, fmt.Errorf("read %s of %s: %w", file, name, err))
		return
	}
	defer content.Close()
	defer func() {
		if rescued.Load() {
			m.countUpstream(c, content.Size())
		}
	}()

	h := w.Header()
	if checked {
		tarballHeaders(h, etag)
		sendContent(w, r, content)
		return
	}
	if r.Method == http.MethodHead {
		tarballHeaders(h, etag)
		h.Set("Content-Length", strconv.FormatInt(content.Size(), 10))
		w.WriteHeader(http.StatusOK)
		return
	}
	integrity, err := m.expected(ctx, name, file, mark)
	if err != nil {
		m.fail(w, r, fmt.Errorf("check %s of %s: %w", file, name, err))
		return
	}
	if content.Size() <= smallTarball {
		m.checkThenSend(w, r, name, file, content, integrity, mark, etag)
		return
	}
	// A range would leave bytes unread: the whole is sent instead, as RFC 9110
	// section 14.2 allows.
	tarballHeaders(h, etag)
	h.Set("Content-Length", strconv.FormatInt(content.Size(), 10))
	w.WriteHeader(http.StatusOK)
	verifier := integrity.NewVerifier()
	if err := sendChecked(w, content, verifier); err != nil {
		m.countMismatch(ctx, name, file, c, err)
		abort()
	}
	m.keepChecked(name, mark, verifier.SRI())
}

// sendContent answers from content, whose headers are set. What is asked for
// whole is written as the blocks are; net/http would copy it once more.
func sendContent(w http.ResponseWriter, r *http.Request, content *unixfs.Reader) {
	if r.Method != http.MethodGet || r.Header.Get("Range") != "" || r.Header.Get("If-Match") != "" {
		http.ServeContent(w, r, "", time.Time{}, content)
		return
	}
	h := w.Header()
	h.Set("Accept-Ranges", "bytes") // as ServeContent does
	h.Set("Content-Length", strconv.FormatInt(content.Size(), 10))
	w.WriteHeader(http.StatusOK)
	if _, err := content.WriteTo(w); err != nil {
		abort()
	}
}

func tarballHeaders(h http.Header, etag string) {
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", etag)
	h.Set("Cache-Control", cacheTarball)
	h.Set("X-Content-Type-Options", "nosniff")
}

// checkThenSend reads a small tarball whole, so that a bad one is refused with
// a clear error.
func (m *Mirror) checkThenSend(w http.ResponseWriter, r *http.Request, name npm.Name, file string, content *unixfs.Reader, integrity npm.Integrity, mark []byte, etag string) {
	data := make([]byte, content.Size())
	_, err := io.ReadFull(content, data)
	if err == nil {
		verifier := integrity.NewVerifier()
		verifier.Write(data)
		if err = verifier.Check(); err == nil {
			m.keepChecked(name, mark, verifier.SRI())
			tarballHeaders(w.Header(), etag)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			return
		}
	}
	m.countMismatch(r.Context(), name, file, cid.Undef, err)
	m.fail(w, r, fmt.Errorf("%s of %s: %w", file, name, err))
}

// sendChecked sends body and holds its last piece back until all of it has
// passed the verifier.
func sendChecked(w io.Writer, body io.Reader, verifier *npm.Verifier) error {
	held, next := make([]byte, 0, 128<<10), make([]byte, 128<<10)
	for {
		n, err := io.ReadFull(body, next[:cap(next)])
		verifier.Write(next[:n])
		if n > 0 {
			if len(held) > 0 {
				if _, err := w.Write(held); err != nil {
					return err
				}
			}
			held, next = next[:n], held
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			if err := verifier.Check(); err != nil {
				return err
			}
			_, err := w.Write(held)
			return err
		case err != nil:
			return err
		}
	}
}

// countMismatch counts and raises a failed check; other failures of a transfer
// are the client's or a source's and are only noted.
func (m *Mirror) countMismatch(ctx context.Context, name npm.Name, file string, c cid.Cid, err error) {
	if errors.Is(err, npm.ErrIntegrity) {
		m.stats.mismatches.Add(1)
		key, why := string(name)+"\x00"+file, oneLine(err)
		m.wrong.put(key, why, int64(len(key)+len(why))+128)
		m.log.ErrorContext(ctx, "tarball refused", "package", name, "file", file, "cid", c, "error", err)
		return
	}
	m.log.DebugContext(ctx, "tarball not sent whole", "package", name, "file", file, "error", err)
}

// locate finds a tarball's CID and size: in the list, else from Origin; obtained
// says that Origin gave it. A tarball that the list has, in a directory that
// cannot be read, comes from Origin too. Of a package that is withheld nothing else does.
func (m *Mirror) locate(ctx context.Context, name npm.Name, file string) (at unixfs.Link, obtained bool, err error) {
	at, err = m.listed(ctx, name, file)
	if err == nil || m.o.Origin == nil || ctx.Err() != nil {
		return at, false, err
	}
	withheld, failed := m.withheld(name)
	switch {
	case failed != nil:
		return at, false, failed
	case withheld != nil && !errors.Is(err, errNotFound): // it may be listed
		return at, false, err
	case withheld != nil:
		return at, false, withheld
	case errors.Is(err, errNotFound) && m.isUnknown(name):
		return at, false, err
	}
	c, originErr := m.originTarball(ctx, name, file)
	switch {
	case originErr == nil:
		return unixfs.Link{Name: file, CID: c, Tsize: maxHeld}, true, nil // its size is not known yet
	case errors.Is(originErr, errNotFound) && errors.Is(err, ErrUnavailable):
		return at, false, err
	}
	return at, false, originErr
}

// listed finds a tarball in the list.
func (m *Mirror) listed(ctx context.Context, name npm.Name, file string) (at unixfs.Link, err error) {
	dir, ok, err := m.entry(name)
	if err != nil {
		return at, err
	}
	if !ok {
		return at, errNotFound
	}
	// A directory's CID commits to what its names mean: no need to decode it again.
	key := dir.KeyString() + file
	if at, ok := m.files.get(key); ok {
		return at, nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.o.Deadline)
	defer cancel()
	p, err := m.directory(ctx, dir)
	if err != nil {
		return at, err
	}
	if !p.tarballs.Defined() {
		return at, errNotFound
	}
	at, err = unixfs.Lookup(ctx, dag{m: m, kind: directories}, p.tarballs, file)
	if errors.Is(err, unixfs.ErrNotFound) {
		return at, errNotFound
	}
	if err != nil {
		return at, fmt.Errorf("find %s of %s: %w", file, name, err)
	}
	m.files.put(key, at, int64(len(key)+len(file))+320)
	return at, nil
}

// originTarball has Origin fetch a tarball, once for all that ask.
func (m *Mirror) originTarball(ctx context.Context, name npm.Name, file string) (cid.Cid, error) {
	ctx, cancel := context.WithTimeout(ctx, tarballPatience)
	defer cancel()
	return asked(ctx, m, "tarball "+string(name)+" "+file, wholeDeadline, func(ctx context.Context) (cid.Cid, error) {
		c, err := m.o.Origin.Tarball(ctx, name, file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return cid.Undef, errNotFound
		case errors.Is(err, npm.ErrIntegrity):
			m.countMismatch(ctx, name, file, cid.Undef, err)
			return cid.Undef, err
		case err != nil:
			return cid.Undef, fmt.Errorf("%w: upstream: %w", ErrUnavailable, err)
		}
		return c, nil
	})
}

// expected is what the tarball's bytes must be: what they were when they were
// last checked, else what the list's packument says, else Origin's.
func (m *Mirror) expected(ctx context.Context, name npm.Name, file string, mark []byte) (npm.Integrity, error) {
	raw, closer, err := m.db.Get(mark)
	if err == nil {
		integrity, err := npm.ParseIntegrity(npm.Dist{Integrity: string(raw)})
		closer.Close()
		if err == nil {
			return integrity, nil
		}
	} else if !errors.Is(err, pebble.ErrNotFound) {
		return npm.Integrity{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*m.o.Deadline)
	defer cancel()
	dir, listed, err := m.entry(name)
	if err != nil && !(errors.Is(err, ErrNotSynced) && m.o.Origin != nil) {
		return npm.Integrity{}, err
	}
	var errs []error
	if listed {
		p, err := m.eitherPackument(ctx, name, dir)
		if err == nil {
			var files map[string]npm.Integrity
			if files, err = m.integrities(ctx, p); err == nil {
				if integrity, ok := files[file]; ok {
					return integrity, nil
				}
			}
		}
		errs = append(errs, err)
	}
	if m.o.Origin != nil {
		u, err := m.fromOrigin(ctx, name)
		if err == nil && !u.missing {
			var files map[string]npm.Integrity
			if files, err = m.integrities(ctx, u.packument(name, false, m)); err == nil {
				if integrity, ok := files[file]; ok {
					return integrity, nil
				}
			}
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return npm.Integrity{}, err
	}
	// A file that no version names cannot be checked, and so is not served.
	return npm.Integrity{}, errNotFound
}

// integrities reads what a document says of its tarballs, by file name.
func (m *Mirror) integrities(ctx context.Context, p *packument) (map[string]npm.Integrity, error) {
	if files, ok := m.integrity.get(p.id); ok {
		return files, nil
	}
	return shared(ctx, m, "integrities "+p.id, 2*m.o.Deadline, func(ctx context.Context) (map[string]npm.Integrity, error) {
		var files map[string]npm.Integrity
		err := m.decoded(ctx, p, func(raw []byte) error {
			doc, err := npm.ParsePackument(raw)
			if err != nil {
				return fmt.Errorf("read packument of %s: %w", p.name, err)
			}
			files = make(map[string]npm.Integrity, len(doc.Versions))
			for version, manifest := range doc.Versions {
				file, err := npm.TarballFile(p.name, version, manifest.Dist.Tarball)
				if err != nil {
					continue
				}
				// A version without a usable digest is one that cannot be checked.
				if integrity, err := npm.ParseIntegrity(manifest.Dist); err == nil {
					files[file] = integrity
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		m.integrity.put(p.id, files, int64(len(files))*320+256)
		return files, nil
	})
}

func markKey(mark []byte) [16]byte {
	digest := sha256.Sum256(mark)
	return [16]byte(digest[:16])
}

func (m *Mirror) isChecked(mark []byte) bool {
	m.checkedMu.Lock()
	defer m.checkedMu.Unlock()
	_, ok := m.checked[markKey(mark)]
	return ok
}

// keepChecked notes that the bytes were right. The mark on disk spares the next
// start a packument; it does not spare it the check. A package with a new one is looked
// at: its tarball may have come before, by a request that did not read it whole.
func (m *Mirror) keepChecked(name npm.Name, mark []byte, sri string) {
	m.checkedMu.Lock()
	if len(m.checked) >= maxChecked {
		clear(m.checked)
	}
	m.checked[markKey(mark)] = struct{}{}
	m.checkedMu.Unlock()
	if was, closer, err := m.db.Get(mark); err == nil {
		same := string(was) == sri
		closer.Close()
		if same {
			return
		}
	}
	if err := m.db.Set(mark, []byte(sri), pebble.NoSync); err != nil {
		m.log.Error("keep a tarball's mark", "error", err)
		return
	}
	m.lookAt(name)
}

// countUpstream counts a tarball that Origin brought, the first time since the start.
func (m *Mirror) countUpstream(c cid.Cid, size int64) {
	m.checkedMu.Lock()
	defer m.checkedMu.Unlock()
	if _, ok := m.obtained[c]; ok {
		return
	}
	if len(m.obtained) >= maxChecked {
		clear(m.obtained)
	}
	m.obtained[c] = struct{}{}
	m.noteArrival(c, fromUpstream, "")
	m.stats.kinds[tarballs].bySource[fromUpstream].Add(size)
}
