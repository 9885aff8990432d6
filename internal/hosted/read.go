package hosted

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// servePackument sends a package's document, its tarball URLs at the address by
// which it was asked for.
func (r *Registry) servePackument(w http.ResponseWriter, req *http.Request, name npm.Name) error {
	held, raw, err := r.packument(req.Context(), name)
	if err != nil {
		return err
	}
	base, err := base(req)
	if err != nil {
		return err
	}
	mediaType := "application/json"
	if strings.Contains(strings.Join(req.Header.Values("Accept"), ","), npm.AbbreviatedType) {
		mediaType = npm.AbbreviatedType
		c, err := npm.Check(raw)
		if err != nil {
			return err
		}
		raw = c.Abbreviate(npm.AbbreviateOptions{Time: true}).Bytes()
	}
	sum := sha256.Sum256([]byte(mediaType + " " + base))
	etag := `"` + held.Document.CID.String() + "." + hex.EncodeToString(sum[:8]) + `"`
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "private, max-age=0, must-revalidate")
	h.Set("Vary", "Accept")
	if strings.Contains(req.Header.Get("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	raw, err = npm.RewriteTarballs(raw, func(version, _ string) string {
		return base + "/" + string(name) + "/-/" + file(name, version)
	})
	if err != nil {
		return err
	}
	return sendRaw(w, req, http.StatusOK, mediaType, raw)
}

// packument gives a package's document as it was written.
func (r *Registry) packument(ctx context.Context, name npm.Name) (ledger.Package, []byte, error) {
	held, err := r.o.Ledger.Package(ctx, name)
	if errors.Is(err, ledger.ErrNotFound) || err == nil && held.Deleted {
		return held, nil, errNotFound
	}
	if err != nil {
		return held, nil, err
	}
	raw, err := r.read(ctx, held)
	return held, raw, err
}

// serveVersion sends one version's manifest; what names it may be a dist-tag.
func (r *Registry) serveVersion(w http.ResponseWriter, req *http.Request, name npm.Name, version string) error {
	_, raw, err := r.packument(req.Context(), name)
	if err != nil {
		return err
	}
	base, err := base(req)
	if err != nil {
		return err
	}
	raw, err = npm.RewriteTarballs(raw, func(version, _ string) string {
		return base + "/" + string(name) + "/-/" + file(name, version)
	})
	if err != nil {
		return err
	}
	var doc struct {
		Tags     map[string]string          `json:"dist-tags"`
		Versions map[string]json.RawMessage `json:"versions"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	if tagged, ok := doc.Tags[version]; ok {
		version = tagged
	}
	manifest, ok := doc.Versions[version]
	if !ok {
		return errNotFound
	}
	return sendRaw(w, req, http.StatusOK, "application/json", manifest)
}

// serveTarball sends a tarball out of the node.
func (r *Registry) serveTarball(w http.ResponseWriter, req *http.Request, name npm.Name, file string) error {
	ctx := req.Context()
	held, err := r.o.Ledger.Package(ctx, name)
	if errors.Is(err, ledger.ErrNotFound) {
		return errNotFound
	}
	if err != nil {
		return err
	}
	for _, v := range held.Versions {
		if v.File != file {
			continue
		}
		f, err := unixfs.Open(ctx, local{r.o.Node}, v.CID)
		if err != nil {
			return fmt.Errorf("read %s@%s: %w", name, v.Version, err)
		}
		defer f.Close()
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("ETag", `"`+v.CID.String()+`"`)
		h.Set("Cache-Control", "private, max-age=31536000, immutable")
		writeWithin(w, v.Size)
		http.ServeContent(w, req, "", time.Time{}, f)
		return nil
	}
	return errNotFound
}

// base is the address by which a request reached the registry.
func base(req *http.Request) (string, error) {
	if req.Host == "" || len(req.Host) > 255 || strings.Trim(req.Host, hostBytes) != "" {
		return "", refuse(http.StatusBadRequest, "the Host header is not one")
	}
	// A proxy that ends TLS says so; anything else is HTTP.
	if req.TLS != nil || req.Header.Get("X-Forwarded-Proto") == "https" {
		return "https://" + req.Host, nil
	}
	return "http://" + req.Host, nil
}

const hostBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"
