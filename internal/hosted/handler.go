package hosted

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const (
	// A body may come as slowly as slowest, in bytes a second, once patience is over.
	slowest  = 16 << 10
	patience = 30 * time.Second
	// drainTime and drainBytes bound what is read of a body that is refused: a client
	// that is still sending may not see an answer.
	drainTime  = 5 * time.Second
	drainBytes = 64 << 20
	// maxSmall bounds the body of what is not a publish document, in bytes.
	maxSmall = 4 << 10
)

// Handler is the npm registry, for reading and for publishing. Whatever writes needs
// a token. Reading needs none from this machine, and one from any other.
func (r *Registry) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.ContentLength != 0 { // also for a body that nobody reads
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(r.patience))
		}
		if err := r.route(w, req); err != nil {
			r.fail(w, req, err)
		}
	})
}

// statusError is an error with the status that it is answered by.
type statusError struct {
	status int
	error
}

func (e statusError) Unwrap() error { return e.error }

func refuse(status int, format string, args ...any) error {
	return statusError{status, fmt.Errorf(format, args...)}
}

// route finds what a request means. A scope may be its own segment or part of the
// name's, and any character may be percent-encoded in either case.
func (r *Registry) route(w http.ResponseWriter, req *http.Request) error {
	settings, err := Open(r.o.Settings)
	if err != nil {
		return err
	}
	path, err := npm.SplitPath(req.URL)
	if err != nil {
		return refuse(http.StatusBadRequest, "%w", err)
	}
	token, known := settings.Holder(bearer(req.Header.Get("Authorization")))
	reads := req.Method == http.MethodGet || req.Method == http.MethodHead
	switch {
	case len(path) == 2 && path[0] == "-" && path[1] == "ping" && reads:
		return send(w, req, http.StatusOK, struct{}{})
	case !known && (!reads || !here(req)):
		w.Header().Set("WWW-Authenticate", "Bearer")
		if req.Header.Get("Authorization") == "" {
			return refuse(http.StatusUnauthorized, "a token is needed: put //%s/:_authToken=TOKEN into .npmrc", req.Host)
		}
		return refuse(http.StatusUnauthorized, "the token is not one of this registry's: `publisher token list` names those that are")
	case len(path) == 0:
		if !reads {
			break
		}
		return send(w, req, http.StatusOK, map[string]any{"scopes": settings.Scopes})
	case path[0] == "-":
		return r.service(w, req, settings, path[1:], token, known)
	}
	if len(path) == 0 {
		return errNotFound
	}
	name, rest, err := npm.TakeName(path)
	if err != nil {
		if reads {
			return errNotFound
		}
		return err
	}
	if !settings.Takes(name) {
		if reads { // and nobody else is ever asked
			return refuse(http.StatusNotFound, "%s is not here: this registry has %s", name, strings.Join(settings.Scopes, ", "))
		}
		return refuse(http.StatusForbidden, "%s cannot be published here: this registry takes %s", name, strings.Join(settings.Scopes, ", "))
	}
	// Clients of old wrote the scope into the file's place too.
	if len(rest) == 3 && rest[0] == "-" && rest[1] == name.Scope() {
		rest = []string{"-", rest[2]}
	}
	switch {
	case reads && len(rest) == 0:
		return r.servePackument(w, req, name)
	case reads && len(rest) == 1 && rest[0] != "-":
		return r.serveVersion(w, req, name, rest[0])
	case reads && len(rest) == 2 && rest[0] == "-":
		return r.serveTarball(w, req, name, rest[1])
	case reads:
		return errNotFound
	case req.Method == http.MethodPut && len(rest) == 0:
		return r.servePublish(w, req, name)
	}
	return refuse(http.StatusMethodNotAllowed, "this registry only adds: a version that was published stays; `npm deprecate` tells people not to use it")
}

// service answers below /-/.
func (r *Registry) service(w http.ResponseWriter, req *http.Request, settings Settings, path []string, token Token, known bool) error {
	reads := req.Method == http.MethodGet || req.Method == http.MethodHead
	joined := strings.Join(path, "/")
	switch {
	case reads && joined == "whoami":
		if !known {
			return refuse(http.StatusUnauthorized, "a token is needed: put //%s/:_authToken=TOKEN into .npmrc", req.Host)
		}
		return send(w, req, http.StatusOK, map[string]string{"username": token.ID})
	case len(path) >= 3 && path[0] == "package":
		name, rest, err := npm.TakeName(path[1:])
		if err != nil || !settings.Takes(name) || len(rest) == 0 {
			return errNotFound
		}
		if rest[0] == "dist-tags" && len(rest) <= 2 {
			return r.serveTags(w, req, name, rest[1:])
		}
		return refuse(http.StatusMethodNotAllowed, "this registry has no access levels: who has a token publishes, and who has the registry's name reads")
	case strings.HasPrefix(joined, "user/"), strings.HasPrefix(joined, "v1/login"), strings.HasPrefix(joined, "npm/v1/tokens"), strings.HasPrefix(joined, "npm/v1/user"):
		if reads {
			return refuse(http.StatusNotFound, "this registry has no users, but tokens: `publisher token list`")
		}
		return refuse(http.StatusForbidden, "this registry has no users: put a token into .npmrc; `publisher token new` makes one")
	case reads:
		return errNotFound
	}
	return refuse(http.StatusMethodNotAllowed, "this registry does not do this")
}

// here says whether a request comes from this machine.
func here(req *http.Request) bool {
	at, err := netip.ParseAddrPort(req.RemoteAddr)
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// servePublish takes what npm publish sends, and what npm deprecate does.
func (r *Registry) servePublish(w http.ResponseWriter, req *http.Request, name npm.Name) error {
	ctx := req.Context()
	// All of a body: base64 takes four bytes for three.
	most := r.o.MaxTarball/3*4 + 4 + maxDocument
	if req.ContentLength > most {
		return fmt.Errorf("the request has %d bytes, %d are taken: %w", req.ContentLength, most, errTooLarge)
	}
	if err := r.admit(ctx); err != nil {
		return err
	}
	admitted := true
	leave := func() {
		if admitted {
			admitted = false
			<-r.upload
		}
	}
	defer leave()
	t, err := spool(r.o.Spool)
	if err != nil {
		return err
	}
	defer t.Close()
	raw, err := split(r.body(w, req, most), maxDocument, r.o.MaxTarball, t)
	if err != nil {
		return cutOff(ctx, err)
	}
	// What is checked by now goes on, whether or not the client still waits.
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	p, err := npm.ParsePublication(raw)
	if errors.Is(err, npm.ErrNoAttachment) {
		leave()
		k, err := r.deprecate(store, name, raw)
		if err != nil {
			return err
		}
		return r.done(w, req, k, "deprecations changed")
	}
	if err != nil {
		return err
	}
	if p.Name != name {
		return refuse(http.StatusBadRequest, "the document is of %s, and the URL of %s", p.Name, name)
	}
	if err := t.check(p); err != nil {
		return err
	}
	k, err := r.publish(store, p, t)
	if err != nil {
		return err
	}
	leave() // a release may take its time, and takes no memory here
	r.log.InfoContext(ctx, "published", "package", p.Name, "version", p.Version, "bytes", t.size, "sequence", uint64(k.seq))
	if err := r.done(w, req, k, "published"); err != nil {
		return err
	}
	if http.NewResponseController(w).Flush() == nil && ctx.Err() == nil {
		r.answered(ctx, ledger.Key{Name: p.Name, Version: p.Version})
	}
	return nil
}

// admit takes one of the places for a publication, or gives up.
func (r *Registry) admit(ctx context.Context) error {
	wait := time.NewTimer(r.patience)
	defer wait.Stop()
	select {
	case r.upload <- struct{}{}:
		return nil
	case <-wait.C:
		return refuse(http.StatusServiceUnavailable, "%d others are publishing: try again", uploads)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// done answers 201 once a release has k. Where none can be made for now, that is
// said beside it: what was committed is kept, whatever happens, and the next release
// has it. To answer with a failure would be to say that it was not published.
func (r *Registry) done(w http.ResponseWriter, req *http.Request, k kept, what string) error {
	if err := r.await(req.Context(), k); err != nil {
		if req.Context().Err() != nil {
			return req.Context().Err()
		}
		r.log.ErrorContext(req.Context(), "kept, and in no release yet", "sequence", uint64(k.seq), "error", err)
		w.Header().Set("Npm-Notice", "kept, and in the next release; none could be made yet: "+header(line(err)))
	}
	return send(w, req, http.StatusCreated, map[string]any{"ok": what, "success": true})
}

// header is text that may stand in a header.
func header(text string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, text[:min(len(text), 500)])
}

// serveTags answers npm dist-tag ls, add and rm.
func (r *Registry) serveTags(w http.ResponseWriter, req *http.Request, name npm.Name, tag []string) error {
	ctx := req.Context()
	reads := req.Method == http.MethodGet || req.Method == http.MethodHead
	switch {
	case reads && len(tag) == 0:
		_, doc, err := r.load(ctx, name)
		if err != nil {
			return err
		}
		if len(doc.Tags) == 0 {
			return errNotFound
		}
		return send(w, req, http.StatusOK, doc.Tags)
	case reads:
		return errNotFound
	case len(tag) != 1:
		return refuse(http.StatusMethodNotAllowed, "one dist-tag is set at a time")
	}
	version := ""
	switch req.Method {
	case http.MethodPut:
		raw, err := io.ReadAll(r.body(w, req, maxSmall))
		if err != nil {
			return cutOff(ctx, err)
		}
		if version, err = npm.ParseText(raw); err == nil {
			err = npm.ParseVersion(version)
		}
		if err == nil {
			err = npm.ParseTag(tag[0])
		}
		if err != nil {
			return err
		}
	case http.MethodDelete:
	default:
		return refuse(http.StatusMethodNotAllowed, "a dist-tag is set with PUT and removed with DELETE")
	}
	store, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	k, err := r.setTag(store, name, tag[0], version)
	if err != nil {
		return err
	}
	return r.done(w, req, k, "dist-tags changed")
}
