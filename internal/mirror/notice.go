package mirror

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// noticeEvery is how long one host is not told the same again: npm prints the
// notice of every response, and an install is hundreds of them.
const noticeEvery = time.Minute

// seeStatus is what a person can do about what only the mirror's machine knows.
const seeStatus = "`registry-mirror status`, where the mirror runs, says why"

// notify puts text into the header that npm shows to people, unless the client is
// another, or its host was told lately. Never on a tarball: caches between may
// keep that for ever, header and all.
func (m *Mirror) notify(w http.ResponseWriter, r *http.Request, text string) {
	if !strings.HasPrefix(r.UserAgent(), "npm/") {
		return
	}
	// By method: npm says nothing of what it takes into its cache (make-fetch-happen's
	// x-local-cache), but prints what comes with the audit that an install posts.
	key := m.clientOf(r) + " " + r.Method + " " + text
	now := m.o.Now()
	if told, ok := m.told.get(key); ok && now.Sub(told) < noticeEvery {
		return
	}
	m.told.put(key, now, int64(len(key))+64)
	w.Header().Set("Npm-Notice", text)
}

// notifyAge tells that the list is an earlier one, or not what its publisher would
// have it be by now, where that is so.
func (m *Mirror) notifyAge(w http.ResponseWriter, r *http.Request) {
	high, h := m.high.Load(), m.head.Load()
	if m.newest != nil && h != nil {
		m.notify(w, r, "this registry is served as it stood in "+linkOf(h.Release).String()+": what came later is not in it")
		return
	}
	if h == nil || high.Value == "" || !m.o.Now().After(high.EOL) {
		return
	}
	m.notify(w, r, "this registry's list is of "+h.Release.Created.UTC().Format("2006-01-02 15:04 MST")+
		", release "+strconv.FormatUint(h.Release.Number, 10)+": its publisher's last word expired at "+
		high.EOL.UTC().Format("2006-01-02 15:04 MST")+" and no newer one was found; "+seeStatus)
}

// notifyError tells what to do about an error.
func (m *Mirror) notifyError(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, npm.ErrIntegrity):
		m.notify(w, r, "withheld: the bytes at hand are not what the packument says; another version may do, and whoever publishes this registry should know")
	case errors.Is(err, npm.ErrNoIntegrity):
		m.notify(w, r, "withheld: the packument says of no digest what the bytes must be; another version may do")
	case errors.Is(err, errWithheld):
		m.notify(w, r, oneLine(err)+"; whoever publishes this registry took it back, and another version may do")
	case errors.Is(err, ErrNotSynced):
		m.notify(w, r, "no list of this registry has come yet; "+seeStatus)
	case errors.Is(err, ErrNoRelease), errors.Is(err, ErrFuture):
		m.notify(w, r, oneLine(err))
	case errors.Is(err, ErrStale):
		m.notify(w, r, "this registry's list is too old to be served: no newer one was found since its publisher's last word expired; "+seeStatus)
	case errors.Is(err, ErrNowhere):
		m.notify(w, r, "no source of this registry has it any more: another version may do, and whoever publishes this registry should know; "+seeStatus)
	case errors.Is(err, errNotInBundle):
		m.notify(w, r, oneLine(err)+"; whether this registry has it is not known")
	case errors.Is(err, ErrOffline):
		m.notify(w, r, ErrOffline.Error()+", and does not hold it: `registry-mirror fetch` brings it while there is a network, `registry-mirror import` from a bundle")
	case errors.Is(err, ErrUnavailable):
		m.notify(w, r, "none of the sources of this registry gave it in time; try again, and "+seeStatus)
	}
}
