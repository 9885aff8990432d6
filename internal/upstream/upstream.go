// Package upstream fetches packuments, tarballs and signing keys from an npm
// registry: bounded in size, time, rate and requests at once, with retries that
// end, from no host but the registry's own, and, for tarballs, verified before
// anybody sees a byte. It knows nothing of feeds, stores, IPFS or what is done
// with what it fetched.
package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

var (
	// ErrNotFound is returned where the registry says 404 or 410. It is
	// evidence of a deletion, not proof.
	ErrNotFound = errors.New("not in the registry")
	// ErrRefused is returned for what asking again will not change: another 4xx,
	// a tarball or a redirect on a host that is not the registry's or with a path
	// that climbs, a private address.
	ErrRefused = errors.New("refused")
	// ErrUnavailable is returned once the retries are used up on 429, 5xx, the
	// network, or bodies that are cut off or no JSON. It is worth asking again later.
	ErrUnavailable = errors.New("the registry is not available")
	// ErrTooLarge is returned for bodies beyond MaxPackument or MaxTarball.
	ErrTooLarge = errors.New("larger than the limit")
)

const (
	// memoryTarball is up to how many bytes a tarball is held in memory; larger
	// ones are spooled to a file. So are those of up to largeTarball that say
	// their size, while maxLarge others of them are in use.
	memoryTarball = 2 << 20
	largeTarball  = 8 << 20
	maxLarge      = 8
	// maxChunk is how much more memory is taken at once while a body comes, in bytes.
	maxChunk = 4 << 20
	// A transfer that does not bring stallBytes within stallTime has stalled (1 KiB/s).
	stallBytes = 30 << 10
	stallTime  = 30 * time.Second
	// maxAttempt bounds one attempt at a body, its time to the last byte. What
	// MaxRate makes it wait is not counted, here and above.
	maxAttempt = 20 * time.Minute
	// maxRetryAfter bounds how long a Retry-After header is obeyed.
	maxRetryAfter = time.Minute
	// maxKeys bounds the document of a registry's keys, in bytes.
	maxKeys = 1 << 20
	// maxBurst bounds what one read takes of MaxRate, in bytes.
	maxBurst = 64 << 10
)

// Options configure a Client. Only Registry is needed.
type Options struct {
	Registry  npm.Config
	UserAgent string
	// MaxPackument bounds a packument once decompressed, in bytes; 0 means 128 MiB.
	MaxPackument int64
	// MaxTarball bounds a tarball, in bytes; 0 means 1 GiB.
	MaxTarball int64
	// Hosts are further hosts ("host" or "host:port") from which tarballs may
	// come and to which a registry may redirect.
	Hosts []string
	// AllowPrivate permits private and loopback addresses for Hosts. For the
	// registries of the configuration they always are: where those lie is the
	// operator's word.
	AllowPrivate bool
	// Spool is the directory for tarballs that are too large for memory (over
	// 8 MiB, or over 2 MiB where eight such are in memory) while they are in use;
	// "" means the system's. The files have no name there.
	Spool string
	// Attempts bounds how often one thing is asked for; 0 means 5. 1 is for a
	// caller that keeps a queue of its own: then a tarball that does not match
	// is not fetched again past caches either.
	Attempts int
	// Timeout bounds one call as a whole, waiting for its turn, attempts and the
	// waits between them included; 0 means no bound but those of each attempt. A
	// call that reaches it ends in ErrUnavailable.
	Timeout time.Duration
	// Parallel bounds the requests in flight, and the connections, to one host;
	// 0 means 64. Below it the number follows what the host bears: see HostLimit.
	Parallel int
	// MaxRate bounds the bodies of all transfers together, in bytes a second; 0
	// means no bound.
	MaxRate int64
	// MaxRequests bounds the requests to all hosts together, in requests a
	// second; 0 means no bound.
	MaxRequests float64
	// Backoff is the first wait between attempts; it doubles, with
	// jitter. 0 means half a second.
	Backoff time.Duration
}

// Client fetches from npm registries. Its methods may run concurrently.
type Client struct {
	o        Options
	hosts    hosts
	http     *http.Client
	limits   limiters
	large    chan struct{} // a token per large tarball in memory
	bytes    *rate.Limiter // nil: no bound
	requests *rate.Limiter // nil: no bound
}

// New returns a client. It opens no connection.
func New(o Options) *Client {
	if o.MaxPackument <= 0 {
		o.MaxPackument = 128 << 20
	}
	if o.MaxTarball <= 0 {
		o.MaxTarball = 1 << 30
	}
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.Parallel <= 0 {
		o.Parallel = 64
	}
	c := &Client{o: o, hosts: newHosts(o), large: make(chan struct{}, maxLarge), limits: limiters{most: o.Parallel, of: map[string]*limiter{}}}
	if o.MaxRate > 0 {
		c.bytes = rate.NewLimiter(rate.Limit(o.MaxRate), maxBurst)
	}
	if o.MaxRequests > 0 {
		c.requests = rate.NewLimiter(rate.Limit(o.MaxRequests), 1)
	}
	c.http = &http.Client{Transport: c.hosts.transport(o.Parallel), CheckRedirect: c.redirect}
	return c
}

// Packument is a package's full document.
type Packument struct {
	Raw         []byte
	ETag        string // to ask with next time; "" where the registry sent none
	NotModified bool   // the document is the one that etag came with; Raw is nil
}

// Packument fetches the full document of name. With an etag from before, an
// unchanged document is not sent again. The document is a whole JSON object
// by its first and last byte and no more is checked: npm.ParsePackument does.
func (c *Client) Packument(ctx context.Context, name npm.Name, etag string) (Packument, error) {
	url := c.o.Registry.RegistryFor(name) + "/" + name.Escape()
	p, err := retry(ctx, c.o, func(ctx context.Context) (Packument, error) {
		resp, body, done, err := c.get(ctx, url, http.Header{
			// Exactly this: any mention of the abbreviated form makes npm send it.
			"Accept":        {"application/json"},
			"If-None-Match": nonEmpty(etag),
		})
		if err != nil {
			return Packument{}, err
		}
		defer done()
		if resp.StatusCode == http.StatusNotModified {
			if etag == "" {
				return Packument{}, fmt.Errorf("%w: 304 to a request without a condition", ErrUnavailable)
			}
			return Packument{ETag: etag, NotModified: true}, nil
		}
		if resp.ContentLength > c.o.MaxPackument {
			return Packument{}, backoff.Permanent(fmt.Errorf("%w: %d of %d bytes", ErrTooLarge, resp.ContentLength, c.o.MaxPackument))
		}
		raw, err := readAll(body, min(resp.ContentLength, memoryTarball), c.o.MaxPackument)
		if err != nil {
			return Packument{}, err
		}
		if t := bytes.TrimSpace(raw); len(t) < 2 || t[0] != '{' || t[len(t)-1] != '}' {
			// A proxy's page with status 200, or a body cut off behind a proxy.
			return Packument{}, fmt.Errorf("%w: the body is not a JSON object", ErrUnavailable)
		}
		return Packument{Raw: raw, ETag: resp.Header.Get("ETag")}, nil
	})
	if err != nil {
		return Packument{}, fmt.Errorf("fetch packument of %s: %w", name, err)
	}
	return p, nil
}

// Keys fetches the signing keys that the default registry of the configuration
// gives for its own: none where it has no such document. Of npm's public
// registry they are npm.PublicKeys, and nobody is asked. The error wraps
// npm.ErrKeys where the document is no list of keys.
func (c *Client) Keys(ctx context.Context) ([]npm.Key, error) {
	raw, err := c.KeysDocument(ctx)
	if err != nil || raw == nil {
		return nil, err
	}
	return npm.ParseKeys(raw)
}

// KeysDocument is the document of Keys, byte for byte, nil where there is none. It
// has been read, and every key in it is usable.
func (c *Client) KeysDocument(ctx context.Context) ([]byte, error) {
	registry := c.o.Registry.RegistryFor("")
	if hostOf(registry) == c.hosts.public {
		return npm.PublicKeysDocument(), nil
	}
	raw, err := retry(ctx, c.o, func(ctx context.Context) ([]byte, error) {
		resp, body, done, err := c.get(ctx, registry+"/-/npm/v1/keys", http.Header{"Accept": {"application/json"}})
		if err != nil {
			return nil, err
		}
		defer done()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
		}
		raw, err := readAll(body, min(resp.ContentLength, maxKeys), maxKeys)
		if err != nil {
			return nil, err
		}
		if _, err := npm.ParseKeys(raw); err != nil {
			return nil, backoff.Permanent(err)
		}
		return raw, nil
	})
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("fetch the registry's keys: %w", err)
	}
	return raw, nil
}

// maxAttestations bounds the attestations of one version, in bytes.
const maxAttestations = 4 << 20

// Attestations fetches the attestations of one version, byte for byte: a JSON
// object by its first and last byte. They prove themselves to whoever knows
// sigstore's keys, and nothing is checked here. Errors: ErrNotFound where the
// version has none, ErrTooLarge beyond 4 MiB, ErrUnavailable.
func (c *Client) Attestations(ctx context.Context, name npm.Name, version string) ([]byte, error) {
	address := c.o.Registry.RegistryFor(name) + "/-/npm/v1/attestations/" + name.Escape() + "@" + url.PathEscape(version)
	raw, err := retry(ctx, c.o, func(ctx context.Context) ([]byte, error) {
		resp, body, done, err := c.get(ctx, address, http.Header{"Accept": {"application/json"}})
		if err != nil {
			return nil, err
		}
		defer done()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
		}
		raw, err := readAll(body, min(resp.ContentLength, maxAttestations), maxAttestations)
		if err != nil {
			return nil, err
		}
		if t := bytes.TrimSpace(raw); len(t) < 2 || t[0] != '{' || t[len(t)-1] != '}' {
			return nil, fmt.Errorf("%w: the body is not a JSON object", ErrUnavailable)
		}
		return raw, nil
	})
	if err != nil {
		return nil, fmt.Errorf("fetch attestations of %s@%s: %w", name, version, err)
	}
	return raw, nil
}

// Tarball is a whole, verified tarball. Close frees it.
type Tarball struct {
	io.ReadSeeker
	Size   int64
	SRI    string // sha512 of the bytes, "sha512-<base64>"
	Shasum string // sha1 of the bytes, hexadecimal
	bytes  []byte
	file   *os.File
	large  <-chan struct{} // holds a token of this tarball's, if not nil
}

// Bytes is the tarball where it is in memory, else nil. It is the caller's, also
// after Close.
func (t *Tarball) Bytes() []byte { return t.bytes }

// Close frees what the tarball occupies, but for what Bytes gave. It is called
// once.
func (t *Tarball) Close() error {
	if t.large != nil {
		<-t.large
	}
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// Tarball fetches a version's tarball from where d says, receives it whole and
// checks it against every digest that d gives before it returns: what does
// not match is dropped and fetched once more past caches, then the error wraps
// npm.ErrIntegrity. A tarball on npm's own public host comes from the
// configured registry instead, as npm's clients do; any other host must be the
// registry's.
func (c *Client) Tarball(ctx context.Context, name npm.Name, version string, d npm.Dist) (*Tarball, error) {
	t, err := c.tarball(ctx, name, d)
	if err != nil {
		return nil, fmt.Errorf("fetch %s@%s: %w", name, version, err)
	}
	return t, nil
}

func (c *Client) tarball(ctx context.Context, name npm.Name, d npm.Dist) (*Tarball, error) {
	integrity, err := npm.ParseIntegrity(d)
	if err != nil {
		return nil, err
	}
	from, err := c.hosts.tarballURL(c.o.Registry.RegistryFor(name), d.Tarball)
	if err != nil {
		return nil, err
	}
	mismatches := 0
	return retry(ctx, c.o, func(ctx context.Context) (*Tarball, error) {
		header := http.Header{
			// Set, so that a .tgz labelled Content-Encoding: gzip is not unpacked.
			"Accept-Encoding": {"identity"},
		}
		if mismatches > 0 {
			header["Cache-Control"] = []string{"no-cache"}
		}
		resp, body, done, err := c.get(ctx, from, header)
		if err != nil {
			return nil, err
		}
		defer done()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
		}
		t, err := c.receive(body, resp.ContentLength, integrity)
		if errors.Is(err, npm.ErrIntegrity) {
			if mismatches++; mismatches > 1 {
				return nil, backoff.Permanent(err)
			}
		}
		return t, err
	})
}

// receive reads a tarball whole and verifies it. length is what the header
// promised, -1 for nothing.
func (c *Client) receive(body io.Reader, length int64, integrity npm.Integrity) (_ *Tarball, err error) {
	if length > c.o.MaxTarball {
		return nil, backoff.Permanent(fmt.Errorf("%w: %d of %d bytes", ErrTooLarge, length, c.o.MaxTarball))
	}
	t := &Tarball{}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	room := int64(memoryTarball)
	if length > room && length <= largeTarball {
		select {
		case c.large <- struct{}{}:
			t.large, room = c.large, length
		default:
		}
	}
	verifier := integrity.NewVerifier()
	in := io.TeeReader(body, verifier)
	first, err := readAll(io.LimitReader(in, room+1), min(length, room), room+1)
	if err != nil {
		return nil, err
	}
	t.Size = int64(len(first))
	if t.Size <= room {
		if t.Size > c.o.MaxTarball {
			return nil, backoff.Permanent(fmt.Errorf("%w: more than %d bytes", ErrTooLarge, c.o.MaxTarball))
		}
		t.bytes, t.ReadSeeker = first, bytes.NewReader(first)
	} else {
		f, err := os.CreateTemp(c.o.Spool, "tarball-*")
		if err != nil {
			return nil, backoff.Permanent(fmt.Errorf("spool: %w", err))
		}
		t.file, t.ReadSeeker = f, f
		// Without a name it is gone with the process, however that ends.
		if err := os.Remove(f.Name()); err != nil {
			return nil, backoff.Permanent(fmt.Errorf("spool: %w", err))
		}
		if t.Size, err = spool(f, first, in, c.o.MaxTarball); err != nil {
			return nil, err
		}
	}
	if err := verifier.Check(); err != nil {
		return nil, err
	}
	t.SRI, t.Shasum = verifier.SRI(), verifier.Shasum()
	return t, nil
}

// spool writes first and the rest of in to f, at most limit bytes, and goes
// back to the start.
func spool(f *os.File, first []byte, in io.Reader, limit int64) (int64, error) {
	size := int64(len(first))
	if _, err := f.Write(first); err != nil {
		return 0, backoff.Permanent(fmt.Errorf("spool: %w", err))
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := in.Read(buf)
		if size += int64(n); size > limit {
			return 0, backoff.Permanent(fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit))
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return 0, backoff.Permanent(fmt.Errorf("spool: %w", err))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, backoff.Permanent(fmt.Errorf("spool: %w", err))
	}
	return size, nil
}

// readAll reads r to its end; more than limit bytes is ErrTooLarge. hint is the
// size that it makes room for before any byte has come, negative for nothing
// known. Without one it takes twice the body's size and a chunk at most while it
// reads; what it returns has little room to spare.
func readAll(r io.Reader, hint, limit int64) ([]byte, error) {
	r = io.LimitReader(r, limit+1)
	var chunks [][]byte
	var total int64
	size := min(hint, limit) + 1 // one byte more shows the end
	if hint < 0 {
		size = 8 << 10
	}
	for end := false; !end; {
		chunk := make([]byte, 0, size)
		for !end && len(chunk) < cap(chunk) {
			n, err := r.Read(chunk[len(chunk):cap(chunk)])
			chunk = chunk[:len(chunk)+n]
			if err == io.EOF {
				end = true
			} else if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
		chunks = append(chunks, chunk)
		if total += int64(len(chunk)); total > limit {
			return nil, backoff.Permanent(fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit))
		}
		size = max(min(total, maxChunk), 8<<10)
	}
	if len(chunks) == 1 && cap(chunks[0]) <= len(chunks[0])+8<<10 {
		return chunks[0], nil
	}
	all := make([]byte, 0, total)
	for i, chunk := range chunks {
		all = append(all, chunk...)
		chunks[i] = nil
	}
	return all, nil
}

// get sends one request, once it is its turn, and returns a response of status
// 200 or 304, with a body that ends in an error when it stalls. done must be
// called. Any other status is an error.
func (c *Client) get(ctx context.Context, url string, header http.Header) (resp *http.Response, body io.Reader, done func(), err error) {
	fail := func(err error) (*http.Response, io.Reader, func(), error) { return nil, nil, nil, err }
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return fail(backoff.Permanent(fmt.Errorf("%w: %w", ErrRefused, err)))
	}
	for k, v := range header {
		if len(v) > 0 {
			req.Header[k] = v
		}
	}
	if c.o.UserAgent != "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	if a := c.o.Registry.Authorization(url); a != "" {
		req.Header.Set("Authorization", a)
	}

	limit := c.limits.host(c.hosts.limited(req.URL))
	slot, err := limit.acquire(ctx)
	if err != nil {
		return fail(backoff.Permanent(err))
	}
	if c.requests != nil {
		if err := c.requests.Wait(ctx); err != nil {
			limit.release(slot, unknown, 0, 0)
			return fail(fmt.Errorf("%w: %w", ErrUnavailable, err))
		}
	}
	attempt, end := context.WithCancelCause(ctx)
	watch := newWatch(func() { end(errSlow) })
	watch.cause = func() error { return context.Cause(attempt) }
	if c.bytes != nil {
		watch.pace = func(n int) error { return c.bytes.WaitN(attempt, n) }
	}
	asked := time.Now()
	var told outcome
	var latency, pause time.Duration
	done = func() {
		watch.stop()
		if resp != nil {
			resp.Body.Close()
		}
		if context.Cause(attempt) == errSlow {
			told = throttled
		}
		end(nil)
		limit.release(slot, told, latency, pause)
	}
	resp, err = c.http.Do(req.WithContext(attempt))
	latency = time.Since(asked)
	if err != nil {
		var timeout net.Error
		switch {
		case errors.Is(err, ErrRefused):
			err = backoff.Permanent(err)
		case ctx.Err() == nil:
			if cause := context.Cause(attempt); cause != nil {
				err = cause
			}
			if errors.As(err, &timeout) && timeout.Timeout() {
				told = throttled
			}
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		done()
		return fail(err)
	}
	told = answered
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusRequestTimeout, http.StatusGatewayTimeout:
		told, pause = throttled, retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	if err := statusError(resp); err != nil {
		// A little is read, so that the connection can be used again.
		io.CopyN(io.Discard, resp.Body, 4<<10)
		done()
		return fail(err)
	}
	watch.r = resp.Body
	return resp, watch, done, nil
}

func statusError(resp *http.Response) error {
	switch s := resp.StatusCode; {
	case s == http.StatusOK, s == http.StatusNotModified:
		return nil
	case s == http.StatusNotFound, s == http.StatusGone:
		return backoff.Permanent(fmt.Errorf("%w: %s", ErrNotFound, resp.Status))
	case s == http.StatusTooManyRequests, s == http.StatusRequestTimeout, s == http.StatusTooEarly, s >= 500:
		err := fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
		if wait := retryAfter(resp.Header.Get("Retry-After"), time.Now()); wait > 0 {
			return delayed{err, &backoff.RetryAfterError{Duration: wait}}
		}
		return err
	case s >= 400:
		return backoff.Permanent(fmt.Errorf("%w: %s", ErrRefused, resp.Status))
	default:
		return fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
	}
}

// retryAfter reads a Retry-After header, in seconds or as a date. Nonsense and
// zero, which Cloudflare sends, are 0; the rest is cut to maxRetryAfter.
func retryAfter(header string, now time.Time) time.Duration {
	var wait time.Duration
	if t, err := http.ParseTime(header); err == nil {
		wait = t.Sub(now)
	} else if d, err := time.ParseDuration(strings.TrimSpace(header) + "s"); err == nil {
		wait = d
	}
	return max(0, min(wait, maxRetryAfter))
}

// delayed is an error that says when to try again.
type delayed struct {
	error
	after *backoff.RetryAfterError
}

func (d delayed) Unwrap() []error { return []error{d.error, d.after} }

// retry calls op until it succeeds, fails for good, has failed Attempts times,
// or ctx or Timeout ends.
func retry[T any](ctx context.Context, o Options, op func(context.Context) (T, error)) (T, error) {
	bounded := ctx
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeoutCause(ctx, o.Timeout, errTimeout)
		defer cancel()
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.Multiplier, wait.MaxInterval = o.Backoff, 2, max(30*time.Second, o.Backoff)
	v, err := backoff.Retry(bounded, func() (T, error) { return op(bounded) }, backoff.WithBackOff(wait),
		backoff.WithMaxTries(uint(o.Attempts)), backoff.WithMaxElapsedTime(2*maxAttempt))
	var permanent *backoff.PermanentError
	if errors.As(err, &permanent) {
		err = permanent.Err // the last attempt's comes wrapped
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case bounded.Err() != nil:
		err = fmt.Errorf("%w: %w (%v)", ErrUnavailable, errTimeout, o.Timeout)
	}
	return v, err
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// redirect follows redirects to the hosts that tarballs may come from, and
// sends each only the credentials that are its own.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= 10:
		return fmt.Errorf("%w: more than 10 redirects", ErrRefused)
	case via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("%w: a redirect from https to %s", ErrRefused, req.URL.Scheme)
	case !c.hosts.listed(via[0].URL, req.URL):
		return fmt.Errorf("%w: a redirect to %s, which is not the registry's host", ErrRefused, req.URL.Host)
	case climbs(req.URL):
		return fmt.Errorf("%w: a redirect to %.200q, which leads elsewhere", ErrRefused, req.URL.EscapedPath())
	}
	req.Header.Del("Authorization")
	req.Header.Del("Referer") // the registry's paths are none of another host's business
	if a := c.o.Registry.Authorization(req.URL.String()); a != "" {
		req.Header.Set("Authorization", a)
	}
	return nil
}

func parse(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: the tarball's URL cannot be read", ErrRefused)
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "", u.User != nil:
		return nil, fmt.Errorf("%w: %.200q is not a plain http or https URL", ErrRefused, raw)
	}
	return u, nil
}
