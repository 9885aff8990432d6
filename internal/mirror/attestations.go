package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// attestations is what upstream answered for one version; a nil doc is that it has
// none.
type attestations struct {
	doc []byte
	at  time.Time
}

// noAttestations is the error of a mirror that can ask nobody. npm's audit
// signatures fails on it for a version that has some, so it says what else to do.
const noAttestations = "this mirror holds no attestations: audit them with --registry naming the registry that the packages come from"

// serveAttestations answers /-/npm/v1/attestations/<name>@<version>, a scope in
// either spelling, with upstream's bytes. They prove themselves to the client:
// nothing here is trusted for them.
func (m *Mirror) serveAttestations(w http.ResponseWriter, r *http.Request, spec string) {
	at := strings.LastIndexByte(spec, '@')
	if at < 1 {
		m.fail(w, r, errNotFound)
		return
	}
	name, err := npm.ParseName(spec[:at])
	version := spec[at+1:]
	if err != nil || npm.ParseVersion(version) != nil {
		m.fail(w, r, errNotFound)
		return
	}
	if m.o.Attestations == nil {
		sendError(w, r, http.StatusNotFound, noAttestations)
		return
	}
	if m.o.Origin == nil {
		if err := m.attests(r.Context(), name, version); err != nil {
			m.fail(w, r, err)
			return
		}
	}
	doc, err := m.attestationsOf(r.Context(), name, version)
	if err != nil {
		m.fail(w, r, err)
		return
	}
	sendPart(w, r, doc)
}

// attests is nil where the listed document says that a version has attestations, and
// errNotFound where not: nobody is to learn of a name, or of a private registry's
// version, by being asked for what it does not have.
func (m *Mirror) attests(ctx context.Context, name npm.Name, version string) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.Deadline)
	defer cancel()
	dir, listed, err := m.entry(name)
	if err == nil && !listed {
		err = errNotFound
	}
	if err != nil {
		return err
	}
	p, err := m.eitherPackument(ctx, name, dir)
	if err != nil {
		return err
	}
	var doc struct {
		Versions map[string]struct {
			Dist struct {
				Attestations jsontext.Value `json:"attestations"`
			} `json:"dist"`
		} `json:"versions"`
	}
	if err := m.decoded(ctx, p, func(raw []byte) error { return json.Unmarshal(raw, &doc) }); err != nil {
		return fmt.Errorf("attestations of %s: %w: %w", name, npm.ErrPackument, err)
	}
	if a := doc.Versions[version].Dist.Attestations; len(a) == 0 || a.Kind() != '{' {
		return errNotFound
	}
	return nil
}

// attestationsOf asks upstream, unless it has answered before: that there are none
// is asked again soon, for they may come after the version.
func (m *Mirror) attestationsOf(ctx context.Context, name npm.Name, version string) ([]byte, error) {
	key := string(name) + "@" + version
	a, ok := m.attested.get(key)
	if !ok || a.doc == nil && m.o.Now().Sub(a.at) >= originFresh {
		var err error
		a, err = shared(ctx, m, "attestations "+key, m.o.Deadline, func(ctx context.Context) (attestations, error) {
			doc, err := m.o.Attestations(ctx, name, version)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return attestations{}, fmt.Errorf("%w: upstream: %w", ErrUnavailable, err)
			}
			a := attestations{doc, m.o.Now()}
			m.attested.put(key, a, int64(len(doc)+len(key))+128)
			return a, nil
		})
		if err != nil {
			return nil, err
		}
	}
	if a.doc == nil {
		return nil, errNotFound
	}
	return a.doc, nil
}
